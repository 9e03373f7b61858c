//go:build unix && !linux

package safefile

import (
	"os"
	"syscall"
)

func access(path string, mode uint32) error { return syscall.Access(path, mode) }

func executable() (string, error) { return os.Executable() }

// keepReading does nothing: rights are not divided here.
func keepReading(*syscall.SysProcAttr) {}
