// Package safefile makes files that only their owner can read, from the first
// byte, and that get their name only when they are complete.
//
// [CreateTemp] makes an empty file with mode 0600 in a new directory with mode 0700.
// The caller fills it, by its descriptor or, if another library has to open it, by its
// name: no other user can put a file next to it. Publish then
// gives it a name that must not exist; Replace gives it a name that another file
// may have. Both sync the contents before and the directory after the change: after
// a power cut the name refers to the complete new file, or still to what it referred
// to before. Discard removes the temporary name in any case; defer it.
//
// In a directory that others can write, a name can refer to another file at each
// use (CWE-367). [ChownLike] therefore works on a descriptor: a chown by name would
// follow a symbolic link that took the file's place.
package safefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A Temp is a file that has only a temporary name, in a directory of its own.
type Temp struct {
	*os.File
	dir string
}

// CreateTemp makes a new directory in dir, with mode 0700 and a name from pattern as in
// [os.MkdirTemp], and in it an empty file with mode 0600. dir must be the directory of
// the file's later name.
func CreateTemp(dir, pattern string) (*Temp, error) {
	private, err := os.MkdirTemp(dir, pattern)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(private, "file"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		os.Remove(private)
		return nil, err
	}
	return &Temp{File: f, dir: private}, nil
}

// Publish gives the file the name path. It fails with fs.ErrExist, and changes
// nothing, if path exists in any form, even as a symbolic link that leads nowhere.
// The temporary name stays until Discard.
func (t *Temp) Publish(path string) error {
	if err := t.Sync(); err != nil {
		return err
	}
	if err := os.Link(t.Name(), path); err != nil { // a rename would overwrite a file
		return err
	}
	return errors.Join(t.check(path), SyncDir(filepath.Dir(path)))
}

// Replace gives the file the name path instead of its temporary one. A file that
// had this name loses it.
func (t *Temp) Replace(path string) error {
	if err := t.Sync(); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), path); err != nil {
		return err
	}
	t.Hide()
	return errors.Join(t.check(path), SyncDir(filepath.Dir(path)))
}

// check returns an error unless the file has the name path: in a directory without the
// sticky bit, others can rename the temporary directory and put another in its place.
func (t *Temp) check(path string) error {
	info, err := t.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(path)
	if err == nil && !os.SameFile(info, named) {
		err = &fs.PathError{Op: "name", Path: path, Err: errors.New("another file has the name")}
	}
	return err
}

// Hide removes the temporary directory and name. The open file stays, unless the system
// removes names of open files only when they are closed.
func (t *Temp) Hide() { os.RemoveAll(t.dir) }

// Discard closes the file and removes the temporary directory. A published file
// keeps its lasting name.
func (t *Temp) Discard() {
	t.Close()
	t.Hide()
}

// CreateIfMissing makes an empty file with mode 0600, unless path exists. It
// never opens a file that exists. Root gives the file to the directory's owner.
func CreateIfMissing(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(ChownLike(f, filepath.Dir(path)), f.Close())
}

// MakePrivate takes the rights to the file at path from its group and all others. It
// does not follow a symbolic link, and only opens a file that it must change: to close
// a descriptor of a file drops the locks of this process on it.
func MakePrivate(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	f, err := Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chmod(info.Mode().Perm() &^ 0o077)
}

// Open opens a regular file for reading. It does not follow a symbolic link.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SyncDir makes the names in a directory survive a power cut. Some systems, such
// as Windows, cannot sync directories: there it does nothing.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return syncError(d.Sync())
}

// syncError drops the error of a system that cannot sync directories.
func syncError(err error) error {
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// TimestampedName returns path with a label and the time in UTC, to the
// millisecond: app.db.before-restore-20260504T030201.000Z. Names with the same
// label sort by time.
func TimestampedName(path, label string, at time.Time) string {
	return path + "." + label + "-" + at.UTC().Format("20060102T150405.000Z")
}
