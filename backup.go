package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
)

// backup writes a copy of the database to a file or to standard output. A server
// may write meanwhile: the copy is what a reader saw when it began.
func backup(ctx context.Context, c *cli) error {
	name := c.args[0]
	if f, ok := c.stdout.(*os.File); ok && name == "-" && isTerminal(f) {
		return usagef("a database is nothing for a terminal: name a file, or a command behind |")
	}
	if _, err := os.Lstat(name); err == nil && name != "-" {
		return fmt.Errorf("%s is there already, and a backup is written over no file", name) // before the work
	}
	if err := mustBeUserds(ctx, c.database); err != nil {
		return err
	}
	// Not read-only: SQLite would leave a -wal and a -shm file where no server runs.
	db, err := sql.Open("sqlite", dsn(c.database, "mode=rw", "_busy_timeout=5000"))
	if err != nil {
		return err
	}
	path := c.database // for standard output: there is room for a copy, or not for long
	if name != "-" {
		path, err = filepath.Abs(name)
	}
	var part *staged
	if err == nil {
		part, err = stage(ctx, db, path)
	}
	if part != nil {
		defer part.discard()
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("copying %s: %w", c.database, err)
	}
	if name == "-" {
		return c.pour(ctx, part)
	}
	if err := place(part.name, path); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s: %s\n", name, part)
	return err
}

// pour writes a copy to standard output. SQLite could not: it writes a file in
// no order that a pipe could take.
func (c *cli) pour(ctx context.Context, part *staged) (err error) {
	// Before the first byte: a reader that goes away ends this process by a
	// signal, and the copy must not stay. (Windows removes it at the end.)
	os.Remove(part.name)
	for err == nil {
		if err = ctx.Err(); err == nil {
			_, err = io.CopyN(c.stdout, part.file, 1<<20)
		}
	}
	if err != io.EOF {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	_, err = fmt.Fprintf(c.stderr, "standard output: %s\n", part)
	return err
}

// mustBeUserds returns an error unless there is a database of userd's at path,
// of this schema or an older one.
func mustBeUserds(ctx context.Context, path string) error {
	kind, err := inspect(ctx, path)
	switch {
	case err != nil:
		return err
	case kind == kindNone:
		return fmt.Errorf("there is no database %s, or it is empty", path)
	case kind == kindTutorial:
		return fmt.Errorf("%s is a database of the Flask tutorial: make it userd's first, by userd adopt -database %[1]s", path)
	}
	return nil
}

// A staged is a copy of a database that has not got its name yet.
type staged struct {
	file  *os.File
	name  string
	users int
	bytes int64
}

func (s *staged) String() string { return fmt.Sprintf("%d users, %d bytes", s.users, s.bytes) }

// discard removes the file, but not under another name that place gave it.
func (s *staged) discard() {
	s.file.Close()
	os.Remove(s.name)
}

// stage writes a consistent copy of a database into a new file beside path,
// checks it as a database, and syncs it. Nobody is kept from writing: the copy is
// one long read, and what is written meanwhile stays in the write-ahead log.
func stage(ctx context.Context, db *sql.DB, path string) (_ *staged, err error) {
	// Made here, and so 0600, since SQLite would make it 0644; an empty file it accepts.
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-")
	if err != nil {
		return nil, err
	}
	s := &staged{file: f, name: f.Name()}
	defer func() {
		if err != nil {
			s.discard()
		}
	}()
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, s.name); err != nil {
		return nil, err
	}
	if s.users, err = checkCopy(ctx, s.name); err != nil {
		return nil, fmt.Errorf("the copy is not good: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s.bytes = info.Size()
	return s, f.Sync() // VACUUM INTO does not
}

// checkCopy returns how many users a database has, or an error unless it is whole.
func checkCopy(ctx context.Context, path string) (users int, err error) {
	if kind, err := inspect(ctx, path); err != nil {
		return 0, err
	} else if kind == kindNone {
		return 0, errors.New("it is empty")
	}
	db, _, err := openToRead(path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var found string
	err = db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&found)
	if err == nil && found != "ok" {
		err = errors.New(strings.ReplaceAll(found, "\n", " "))
	}
	if err == nil {
		err = db.QueryRowContext(ctx, `SELECT count(*) FROM user`).Scan(&users)
	}
	return users, err
}

// place gives a synced file the name path too, over no other file, for good.
func place(name, path string) error {
	if err := os.Link(name, path); err != nil { // Rename would go over a file
		return err
	}
	return syncDir(filepath.Dir(path))
}

// keptName names what a database is kept as before a change.
func keptName(path, change string) string {
	return path + ".before-" + change + "-" + time.Now().UTC().Format("20060102T150405.000Z")
}

// syncDir makes the names in a directory durable, where the system can.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// idGap is how many ids a restore leaves out where it cannot know which were
// given since the backup: more than anybody gives between two backups.
const idGap = 1 << 20

// restore puts a copy in the place of the database, and keeps the one before.
//
// At every instant there is one of the two at the path, whole, and no -wal of the
// one meets the other:
//  1. The database is locked, and its write-ahead log folded into it (claim).
//  2. The copy is copied beside it, checked, changed and synced.
//  3. The one before gets its second name, which stays where a kill comes before 4.
//     The -wal of one that is damaged moves along: it would be taken for that of
//     the new one. Both for good.
//  4. The new one is renamed over it, for good, and only then the lock is gone.
//
// Whoever opened the file before 4, and waited for the lock, cannot write into it
// any more, nor make a -wal: a database outside of WAL mode SQLite writes to only
// under the name by which it was opened (SQLITE_READONLY_DBMOVED).
func restore(ctx context.Context, c *cli) error {
	from, err := filepath.Abs(c.args[0])
	if err != nil {
		return err
	}
	path := c.database
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a link stays one
	}
	source, err := os.Stat(from)
	if err != nil {
		return err
	}
	there, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.SameFile(source, there) {
		return fmt.Errorf("%s is the database itself", from)
	}
	if there != nil && !there.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	if _, err := os.Lstat(from + "-journal"); err == nil {
		return fmt.Errorf("%s has an unfinished transaction beside it, %[1]s-journal: it is no backup", from)
	}
	if err := mustBeUserds(ctx, from); err != nil {
		return err
	}
	if _, err := checkCopy(ctx, from); err != nil {
		return fmt.Errorf("%s is damaged: %w", from, err)
	}

	old := &claimed{}
	owner := filepath.Dir(path)
	if there != nil {
		if old, err = claim(ctx, path); err != nil {
			return err
		}
		defer old.close()
		owner = path
	}
	db, _, err := openToRead(from)
	if err != nil {
		return err
	}
	defer db.Close()
	part, err := stage(ctx, db, path)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	defer part.discard()
	if err := liftIDs(ctx, part.name, old); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	if err := chownLike(part.name, owner); err != nil {
		return err
	}
	if err := part.file.Sync(); err != nil {
		return err
	}

	kept := keptName(path, "restore")
	said := ""
	if there != nil {
		if err := os.Link(path, kept); err != nil {
			return fmt.Errorf("keeping the database: %w", err)
		}
		said = "; the one before is " + kept
	}
	replaced := false
	defer func() {
		if !replaced {
			os.Remove(kept) // no second name for a database in use
		}
	}()
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if err := os.Rename(path+suffix, kept+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keeping the database: %w", err)
		}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if there != nil {
		err = os.Rename(part.name, path)
	} else {
		err = os.Link(part.name, path) // not over one that a server has just made
	}
	if err != nil {
		return err
	}
	replaced = true
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s: %s%s\n", path, part, said)
	return err
}

// A claimed is a database that is held, and is to be replaced.
type claimed struct {
	db      *sql.DB
	user    int64 // the last id given to a user and
	session int64 // to a session; 0: not known
}

func (o *claimed) close() { o.db.Close() }

// claim takes the database for this process alone, without waiting, and folds
// its write-ahead log into it. A file that is so damaged that SQLite refuses it
// cannot be locked, but nobody else can use it either.
func claim(ctx context.Context, path string) (_ *claimed, err error) {
	held := context.WithoutCancel(ctx)
	open := func(statements string) (db *sql.DB, err error) {
		if db, err = sql.Open("sqlite", dsn(path, "mode=rw")); err == nil { // synchronous=FULL is SQLite's own default
			db.SetMaxOpenConns(1)
			_, err = db.ExecContext(held, statements)
		}
		return db, err
	}
	// Leaving WAL mode takes a file that nobody else has open; from then on a lock
	// of this connection keeps others out. https://www.sqlite.org/wal.html#persistence_of_wal_mode
	db, err := open(`PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE`)
	mode := ""
	if err == nil {
		err = db.QueryRowContext(held, `PRAGMA journal_mode`).Scan(&mode)
	}
	if isDamaged(err) {
		// That needed the schema. This does not, and fails too where somebody has the
		// write-ahead log open; but only as the very first that a connection does.
		db.Close()
		db, err = open(`PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE`)
	}
	defer func() {
		if err != nil {
			db.Close()
		}
	}()
	if isBusy(err) || mode == "wal" { // of somebody who came in between
		return nil, fmt.Errorf("%s is in use: stop the server, and whatever else has it open", path)
	}
	o := &claimed{db: db}
	var owner, tables int
	if err == nil {
		err = db.QueryRowContext(held, `SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id`).Scan(&owner, &tables)
	}
	if err == nil && owner != applicationID && (owner != 0 || tables > 0) {
		return nil, fmt.Errorf("%s is another program's database, or the Flask tutorial's: move it away, and restore again", path)
	}
	if err != nil && !isDamaged(err) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Whatever fails here leaves them unknown.
	db.QueryRowContext(held, `
		SELECT max(user_id, (SELECT coalesce(max(id), 0) FROM user)), coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'session'), 0)
		FROM counter`).Scan(&o.user, &o.session)
	return o, nil
}

// liftIDs makes the next ids in a restored database higher than any that the one
// before gave, since other programs and tokens that are still good name those.
func liftIDs(ctx context.Context, path string, old *claimed) error {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw", "_synchronous=FULL"))
	if err != nil {
		return err
	}
	for _, st := range []statement{
		// One with a lower counter than the copy's did not follow from it, and knows nothing.
		{query: `UPDATE counter SET user_id = iif(?1 >= user_id, ?1, user_id + ?2)`, args: []any{old.user, idGap}},
		{query: `INSERT INTO sqlite_sequence (name, seq) SELECT 'session', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'session')`},
		{query: `UPDATE sqlite_sequence SET seq = max(seq, ?1) + ?2 WHERE name = 'session'`, args: []any{old.session, idGap}},
	} {
		if err == nil {
			_, err = db.ExecContext(ctx, st.query, st.args...)
		}
	}
	return errors.Join(err, db.Close())
}

// chownLike gives a file the owner of another, where root restores for the
// server's user. By reflection, since only some systems have such owners.
func chownLike(path, like string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner := reflect.Indirect(reflect.ValueOf(info.Sys()))
	return os.Chown(path, int(owner.FieldByName("Uid").Uint()), int(owner.FieldByName("Gid").Uint()))
}
