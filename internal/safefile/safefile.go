// Package safefile makes files that only their owner can read, from the first
// byte, and that get their name only when they are complete.
//
// [CreateTemp] makes an empty file with mode 0600 in a new directory with mode 0700.
// The caller fills it by its descriptor or, if another library has to open it, by its
// name: no other user can put a file next to it. Publish then gives it a name that must
// not exist; Replace gives it a name that another file may have. Both sync the contents
// before the change, and the directory after it. After a power cut the name therefore
// refers to the complete new file, or to the same file as before. Discard removes the
// temporary name in any case; defer it.
//
// In a directory that others can write, a name can refer to another file at each
// use (CWE-367). A [Temp] therefore reaches its files from one descriptor of the directory,
// and [ChownLike] works on a descriptor: a chown by name would follow a symbolic link that
// replaced the file. A library that requires a name is not safe there: [ActAs] returns the
// user as whom root must run it.
package safefile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A Temp is a file that has only a temporary name, in a directory of its own.
type Temp struct {
	*os.File
	dir     *os.Root // of the file's later name
	private string   // the temporary directory in it
}

// CreateTemp makes a new directory with mode 0700 in the directory of path, and in it an
// empty file with mode 0600. path is the file's later name; the name of the new directory
// begins with it.
func CreateTemp(path string) (*Temp, error) {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return createTemp(dir, path)
}

// CreateTempOf is CreateTemp for a process of root. It returns an error unless the
// directory of path belongs to the user, whom ActAs has returned; nil is root.
func CreateTempOf(user *User, path string) (*Temp, error) {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	info, err := dir.Stat(".")
	if err == nil && !ownerOf(info).Equal(user) {
		err = &fs.PathError{Op: "write to", Path: filepath.Dir(path), Err: errors.New("its owner changed")}
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return createTemp(dir, path)
}

func createTemp(dir *os.Root, path string) (*Temp, error) {
	t := &Temp{dir: dir, private: filepath.Base(path) + ".part-" + rand.Text()}
	err := dir.Mkdir(t.private, 0o700)
	if err == nil {
		if t.File, err = t.Create(""); err != nil {
			t.Hide()
		}
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return t, nil
}

// Create makes another empty file with mode 0600 and returns it. Its name is the temporary
// name followed by the suffix. Hide and Discard remove it, but do not close it.
func (t *Temp) Create(suffix string) (*os.File, error) {
	return t.dir.OpenFile(t.name()+suffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// name returns the temporary name, from dir.
func (t *Temp) name() string { return filepath.Join(t.private, "file") }

// Publish gives the file a name in the directory. It fails with fs.ErrExist, and changes
// nothing, if the name exists in any form, even as a symbolic link that leads nowhere.
// The temporary name stays until Discard.
func (t *Temp) Publish(name string) error {
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.dir.Link(t.name(), name); err != nil { // a rename would overwrite a file
		return err
	}
	return errors.Join(t.check(name), t.syncDir())
}

// Replace gives the file a name in the directory instead of its temporary one. A file
// that had this name loses it.
func (t *Temp) Replace(name string) error {
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.dir.Rename(t.name(), name); err != nil {
		return err
	}
	t.Hide()
	return errors.Join(t.check(name), t.syncDir())
}

// check returns an error unless the file has the name: in a directory without the
// sticky bit, others can rename the temporary directory and put another in its place.
func (t *Temp) check(name string) error {
	info, err := t.Stat()
	if err != nil {
		return err
	}
	named, err := t.dir.Lstat(name)
	if err == nil && !os.SameFile(info, named) {
		err = &fs.PathError{Op: "name", Path: name, Err: errors.New("another file has the name")}
	}
	return err
}

func (t *Temp) syncDir() error {
	d, err := t.dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return syncError(d.Sync())
}

// ErrChanged means that another program changed a file of CopyUnchanged.
var ErrChanged = errors.New("changed while it was read")

// CopyUnchanged copies open files, by the suffixes of their names, to a new file and to new
// files with its name and the suffix. It returns an error that wraps ErrChanged if one of the
// open files changed meanwhile, because the copy could hold half of a change.
func CopyUnchanged(files map[string]*os.File, to *Temp) error {
	before := make(map[string]fs.FileInfo)
	var err error
	for suffix, f := range files {
		if before[suffix], err = f.Stat(); err != nil {
			return err
		}
	}
	for suffix, f := range files {
		copied := to.File
		if suffix != "" {
			if copied, err = to.Create(suffix); err != nil {
				return err
			}
			defer copied.Close()
		}
		if _, err := io.Copy(copied, f); err != nil {
			return err
		}
	}
	for suffix, f := range files {
		after, err := f.Stat()
		if err != nil {
			return err
		}
		if after.Size() != before[suffix].Size() || !after.ModTime().Equal(before[suffix].ModTime()) {
			return fmt.Errorf("%s %w", f.Name(), ErrChanged)
		}
	}
	return nil
}

// Hide removes the temporary directory and name. The open file stays, unless the system
// removes names of open files only when they are closed.
func (t *Temp) Hide() { t.dir.RemoveAll(t.private) }

// Discard closes the file and removes the temporary directory. A published file
// keeps its lasting name.
func (t *Temp) Discard() {
	t.Close()
	t.Hide()
	t.dir.Close()
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

// MakePrivate removes the permissions of the group and of others from the file at path. It
// does not follow a symbolic link. It opens the file only if it must change it: closing a
// descriptor of a file drops this process's locks on the file.
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

// Open opens a regular file for reading. It returns an error for any other file, and for
// a symbolic link, which it does not follow.
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

// SyncDir makes the names in a directory survive a power cut. It does nothing on systems
// that cannot sync directories, such as Windows.
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

// Size returns the bytes of a regular file, or 0 if they are unknown.
func Size(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}
