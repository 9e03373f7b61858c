package sqlitefile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"userd/internal/safefile"
	"userd/internal/terminal"
)

// IsEmpty reports whether the file at a path is empty or does not exist. It returns an error
// if the file cannot be a database. With the error, empty can be true: the file is a named
// pipe, its directory does not exist, or there is a log without a database.
func IsEmpty(path string) (empty bool, err error) {
	// The log first: a process that is creating both writes the database before the log.
	log, logErr := os.Stat(path + "-wal")
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	empty = missing || err == nil && info.Size() == 0
	// SQLite deletes the log of a database that it creates. This one can hold the
	// latest writes of a database that was moved or deleted.
	if empty && logErr == nil && log.Size() > 0 {
		return true, fmt.Errorf("the database %s does not exist or is empty, but %[1]s-wal has writes of one: bring the database back next to it, or move %[1]s-wal away", path)
	}
	switch {
	case missing:
		_, err = os.Stat(filepath.Dir(path))
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", path)
	case !empty && info.Size() < 100: // the size of SQLite's header; SQLite treats one byte as an empty file
		err = fmt.Errorf("%s is not a database", path)
	}
	return empty, err
}

// CheckWritable returns the path without symbolic links, or an error if that fails. It
// returns both if the process may not write to the database, its -wal or its -shm, or to the
// directory if it must make a missing one there; the error names the file. Call it before
// SQLite opens the database: SQLite would leave files behind.
func CheckWritable(path string) (target string, err error) {
	if target, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	for _, name := range []string{target, target + "-wal", target + "-shm"} {
		err := safefile.CheckWritable(name)
		if errors.Is(err, fs.ErrNotExist) {
			err = safefile.CheckWritable(filepath.Dir(target))
		}
		if err != nil {
			return target, err
		}
	}
	return target, nil
}

// MakePrivate removes the permissions of other users from a database and its -wal, if there
// is one. The path must not be a symbolic link.
func MakePrivate(path string) error {
	for _, name := range []string{path, path + "-wal"} {
		if err := safefile.MakePrivate(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Opened are the files of an open database, by the paths that they had.
type Opened map[string]fs.FileInfo

// StatOpened returns the files of an open database, whose WAL exists. It returns an error if
// the file at path is no longer created, the file that had the path before SQLite opened it.
func StatOpened(path string, created fs.FileInfo) (Opened, error) {
	target, err := filepath.EvalSymlinks(path) // SQLite puts the -wal next to a link's target
	if err != nil {
		return nil, err
	}
	files := make(Opened)
	for _, name := range []string{path, target + "-wal", target + "-shm"} {
		if files[name], err = os.Stat(name); err != nil {
			return nil, err
		}
	}
	if !os.SameFile(files[path], created) {
		return nil, errors.New("another file replaced it while this process opened it")
	}
	return files, nil
}

// Check returns an error if a file was deleted, moved or replaced since. What a process writes
// to a file without a name is lost when it ends. Check compares device and inode by name,
// because closing a descriptor would drop SQLite's locks.
func (o Opened) Check() error {
	for name, opened := range o {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, opened) {
			return fmt.Errorf("%s was deleted, moved or replaced", name)
		}
	}
	return nil
}

// Copy writes a consistent copy of a database into a new file in the directory of path. It
// does not sync the file. Others can write at the same time: the copy is one long read, and
// what they write stays in the write-ahead log meanwhile. The caller ends p.
func Copy(ctx context.Context, db *sql.DB, path string, p *terminal.Progress) (_ *safefile.Temp, err error) {
	// SQLite would create the file with mode 0644, but accepts an empty one.
	f, err := safefile.CreateTemp(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Discard()
		}
	}()
	var size int64
	err = db.QueryRowContext(ctx, `SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size`).Scan(&size)
	if err != nil {
		return nil, err
	}
	p.Next("copying the database, in MB", size)
	stop := p.Watch(func() int64 { return safefile.Size(f.File) })
	_, err = db.ExecContext(ctx, `VACUUM INTO ?`, f.Name())
	stop()
	if err != nil {
		return nil, err
	}
	return f, nil
}
