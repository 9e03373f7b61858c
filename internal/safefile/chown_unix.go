//go:build unix

package safefile

import (
	"os"
	"syscall"
)

// ChownLike gives an open file the owner and group of the file at path like. It does
// nothing, here and on systems without Unix owners, unless the process runs as root:
// others cannot give files away.
func ChownLike(f *os.File, like string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	return f.Chown(int(stat.Uid), int(stat.Gid))
}
