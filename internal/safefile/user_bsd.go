//go:build unix && !linux

package safefile

import (
	"os"
	"syscall"
)

func access(path string, mode uint32) error { return syscall.Access(path, mode) }

func executable() (string, error) { return os.Executable() }

// keepReading does nothing: this system cannot give a process some of root's rights.
func keepReading(*syscall.SysProcAttr) {}
