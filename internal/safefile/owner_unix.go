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

// noFollow makes opening a symbolic link fail. The file may be a pipe by now, which
// must not block.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// CheckWritable returns an error unless the process may write to the file or
// directory at path. It does not open it.
func CheckWritable(path string) error {
	const write = 2 // W_OK
	if err := syscall.Access(path, write); err != nil {
		return &fs.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}
