//go:build unix

package safefile

import (
	"io/fs"
	"os"
	"slices"
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

// noFollow makes opening a symbolic link fail, and opening a pipe not block: another user
// may have replaced the file by either.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// CheckWritable returns an error unless the process may write to the file or
// directory at path. It does not open it.
func CheckWritable(path string) error {
	if err := access(path, 2); err != nil { // W_OK
		return &fs.PathError{Op: "write to", Path: path, Err: err}
	}
	return nil
}

// OwnedBy reports whether a file belongs to root, to the user of this process, or to the
// owner of one of the other files.
func OwnedBy(info fs.FileInfo, others ...fs.FileInfo) bool {
	owner := func(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
	return owner(info) == 0 || int(owner(info)) == os.Geteuid() ||
		slices.ContainsFunc(others, func(other fs.FileInfo) bool { return owner(other) == owner(info) })
}
