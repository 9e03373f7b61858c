//go:build unix

package safefile

import (
	"io/fs"
	"syscall"
)

// owner returns the owner and group of a file; -1, which chown leaves alone, if
// they are unknown.
func owner(info fs.FileInfo) (uid, gid int) {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid), int(stat.Gid)
	}
	return -1, -1
}
