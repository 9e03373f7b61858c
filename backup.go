package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"userd/internal/safefile"
	"userd/internal/setting"
	"userd/internal/sqlitefile"
	"userd/internal/terminal"
)

// backup writes a copy of the database to a file or to standard output. Servers
// can write at the same time: the copy is what a reader saw when it began.
func backup(ctx context.Context, c *cli) error {
	name := c.args[0]
	if f, ok := c.stdout.(*os.File); ok && name == "-" && terminal.Is(f) {
		return usagef("refusing to write a database to a terminal; name a file or pipe the output")
	}
	if err := refuseExisting(name); err != nil {
		return err
	}
	if err := mustBeUserds(ctx, c.database); err != nil {
		return err
	}
	// Not read-only: SQLite would leave a -wal and a -shm file if no server runs.
	if quiet, err := sqlitefile.IsQuiet(c.database); err == nil && quiet {
		if _, err := checkWritable(c.database); err != nil {
			return pathError(c.database, err)
		}
	}
	db, err := sql.Open("sqlite", sqlitefile.DSN(c.database, "mode=rw", "_busy_timeout=5000"))
	if err != nil {
		return err
	}
	path := c.database // for standard output: next to the database there must be room for a copy anyway
	if name != "-" {
		path, err = filepath.Abs(name)
	}
	var copied *databaseCopy
	if err == nil {
		copied, err = copyToTemp(ctx, db, path, c.progress("", 0))
	}
	if copied != nil {
		defer copied.file.Discard()
		if hooked := refuseHooks(ctx, db); hooked != nil { // a backup is useful nevertheless
			fmt.Fprintln(c.stderr, "warning:", hooked)
		}
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("copying %s: %w", c.database, err)
	}
	if name == "-" {
		return sendCopy(ctx, c, copied)
	}
	if err := copied.file.Publish(filepath.Base(path)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s: %s\n", name, copied)
	return err
}

// refuseExisting returns an error if a backup would overwrite a file. It saves the work;
// Publish checks again.
func refuseExisting(name string) error {
	if _, err := os.Lstat(name); err == nil && name != "-" {
		return fmt.Errorf("%s already exists; backup never overwrites a file", name)
	}
	return nil
}

// backupElsewhere runs as root and writes a backup to a directory of owner, who is not the
// user of the database's directory. A process of the reader makes the copy. This process
// does not use SQLite, which opens files by name: it works on descriptors, so it writes
// nothing outside the directory.
func (c *cli) backupElsewhere(reader, owner *safefile.User) error {
	name := c.args[0]
	if err := refuseExisting(name); err != nil {
		return err
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	to, err := safefile.CreateTempOf(owner, path)
	if err != nil {
		return err
	}
	defer to.Discard()
	if err := c.runAs(reader, []string{"backup", "-", "-database", c.database}, to.File); err != nil {
		return err
	}
	if err := to.Publish(filepath.Base(path)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s: %s\n", name, plural(safefile.Size(to.File), "byte"))
	return err
}

// sendCopy writes a copy to standard output. SQLite could not write it there
// directly: it does not write a file from its start to its end.
func sendCopy(ctx context.Context, c *cli, copied *databaseCopy) (err error) {
	// Before the first byte: if the reader exits, a signal ends this process, and the
	// temporary copy must not stay. Windows removes it only when it is closed.
	copied.file.Hide()
	p := c.progress("", 0)
	p.Next("writing the copy, in MB", copied.bytes)
	for n, sent := int64(0), int64(0); err == nil; {
		if err = ctx.Err(); err == nil {
			n, err = io.CopyN(c.stdout, copied.file, 1<<20)
			sent += n
			p.Show(int(sent/1e6), sent)
		}
	}
	p.End()
	if err != io.EOF {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	if f, ok := c.stdout.(*os.File); ok && safefile.Size(f) > 0 {
		return nil // the caller knows the file's name; backupElsewhere prints it
	}
	_, err = fmt.Fprintf(c.stderr, "standard output: %s\n", copied)
	return err
}

// idGap is how many ids a restore skips if it cannot know which were given out
// since the backup: more than are given out between two backups.
const idGap = 1 << 20

// restore replaces the database by a copy, and keeps the previous one.
//
// At every instant the path refers to one of the two, complete, and SQLite never
// combines one with the -wal file of the other:
//  1. lockDatabase locks the database and folds its write-ahead log into it.
//  2. readBackup copies the backup, and prepareRestore makes the new file from that copy,
//     checks, changes and syncs it. Both are in new directories, where no other user can
//     put a -wal or -journal next to them.
//  3. replaceDatabase gives the previous database a second name, which stays if
//     the process is killed before step 4. The -wal file of a damaged database
//     moves along: SQLite would take it for that of the new one.
//  4. It renames the new file over the database. Only then is the lock released.
//
// A process that opened the file before step 4, and waited for the lock, cannot
// write to it any more, nor make a -wal file: outside of WAL mode SQLite writes
// only to a database that still has the name by which it was opened
// (SQLITE_READONLY_DBMOVED).
func restore(ctx context.Context, c *cli) error {
	from, err := filepath.Abs(c.args[0])
	if err != nil {
		return err
	}
	path := c.database
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a symbolic link stays one
	}
	exists, err := checkRestore(from, path)
	if err != nil {
		return err
	}
	source, err := safefile.CreateTemp(path)
	if err != nil {
		return err
	}
	defer source.Discard()
	p := c.progress("", 0)
	defer p.End()
	if err := readBackup(from, source, p); err != nil {
		return err
	}
	p.Next("checking the backup", 0)
	if err := checkBackup(ctx, source.Name()); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), source.Name(), from))
	}
	previous := &lockedDatabase{}
	if exists {
		if previous, err = lockDatabase(ctx, path); err != nil {
			return err
		}
		defer previous.db.Close()
	}
	copied, err := prepareRestore(ctx, source.Name(), path, previous, p)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	defer copied.file.Discard()
	kept := safefile.TimestampedName(path, "before-restore", time.Now())
	if err := replaceDatabase(copied.file, path, kept, exists); err != nil {
		return err
	}
	text := fmt.Sprintf("%s: %s", path, copied)
	if exists {
		text += "; the previous database is " + kept
	}
	_, err = fmt.Fprintln(c.stdout, text)
	return err
}

// checkRestore returns an error unless from can replace the database at path. It reports
// whether a file exists at path. checkBackup checks the contents.
func checkRestore(from, path string) (exists bool, err error) {
	source, err := os.Stat(from)
	if err != nil {
		return false, err
	}
	target, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	exists = err == nil
	switch {
	case os.SameFile(source, target):
		return false, fmt.Errorf("%s is the database itself; name a backup", from)
	case exists && !target.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file", path)
	}
	if _, err := os.Lstat(from + "-journal"); err == nil {
		return false, fmt.Errorf("%s is not a backup: it has an unfinished transaction in %[1]s-journal", from)
	}
	if exists {
		return true, sqlitefile.CheckLogOwners(path)
	}
	return false, nil
}

// readBackup copies a backup, and its -wal if it has one, into a private directory.
// It reads each by one descriptor, so the directory of the backup may belong to any user.
// But a -wal changes the contents, so it must belong to root or the user of this process.
func readBackup(from string, to *safefile.Temp, p *terminal.Progress) error {
	from, err := filepath.EvalSymlinks(from) // SQLite puts the -wal next to a link's target
	if err != nil {
		return err
	}
	f, err := safefile.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	files := map[string]*os.File{"": f}
	log, err := safefile.Open(from + "-wal")
	if err == nil {
		defer log.Close()
		files["-wal"] = log
		if info, statErr := log.Stat(); statErr != nil || !safefile.OwnedBy(info) {
			return fmt.Errorf("%s-wal belongs to another user, who may have put it there: move it away, or chown it if it is part of the backup", from)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p.Next("reading the backup, in MB", safefile.Size(f))
	defer p.Watch(func() int64 { return safefile.Size(to.File) })()
	err = safefile.CopyUnchanged(files, to)
	if errors.Is(err, safefile.ErrChanged) {
		err = fmt.Errorf("%w: stop the program that writes it, or use userd backup", err)
	}
	return err
}

// prepareRestore makes the file that is to replace the database at path: a copy
// of from, with ids that follow those of the previous database, and its owner.
func prepareRestore(ctx context.Context, from, path string, previous *lockedDatabase, p *terminal.Progress) (_ *databaseCopy, err error) {
	db, _, err := sqlitefile.OpenToRead(from)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	copied, err := copyToTemp(ctx, db, path, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			copied.file.Discard()
		}
	}()
	if err := raiseIDs(ctx, copied.file.Name(), previous); err != nil {
		return nil, err
	}
	like := path
	if previous.db == nil {
		like = filepath.Dir(path)
	}
	// Root restores for the server's user.
	if err := safefile.ChownLike(copied.file.File, like); err != nil {
		return nil, err
	}
	return copied, copied.file.Sync() // before replaceDatabase changes anything
}

// replaceDatabase gives the new file the name path. The database that exists
// there gets the name kept first. See restore for the order.
func replaceDatabase(file *safefile.Temp, path, kept string, exists bool) (err error) {
	if exists {
		if err := os.Link(path, kept); err != nil {
			return fmt.Errorf("keeping the previous database: %w", err)
		}
		defer func() {
			if err != nil {
				removeSecondName(path, kept)
			}
		}()
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if err := os.Rename(path+suffix, kept+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keeping the previous database: %w", err)
		}
	}
	if err := safefile.SyncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if exists {
		return file.Replace(filepath.Base(path))
	}
	return file.Publish(filepath.Base(path)) // which fails if a server has just made a database
}

// removeSecondName removes the name other if it refers to the same file as path:
// a database in use must not have two names. If Replace failed after its rename,
// path is already the new file, and other stays.
func removeSecondName(path, other string) {
	a, _ := os.Lstat(path) // on an error a is nil, and SameFile returns false
	b, _ := os.Lstat(other)
	if os.SameFile(a, b) {
		os.Remove(other)
	}
}

// A lockedDatabase is a database that no other process can use.
type lockedDatabase struct {
	db          *sql.DB
	lastUser    int64 // the last id given to a user; 0 if unknown
	lastSession int64 // likewise
}

// lockDatabase locks the database for this process, without waiting, and folds
// its write-ahead log into it. It cannot lock a file that is so damaged that
// SQLite refuses it, but then no other process can use it either.
func lockDatabase(ctx context.Context, path string) (_ *lockedDatabase, err error) {
	ctx = context.WithoutCancel(ctx)
	// Leaving WAL mode needs a file that no other process has open; from then on the
	// lock of this connection keeps others out. https://www.sqlite.org/wal.html#persistence_of_wal_mode
	db, err := openLocked(ctx, path, `PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE`)
	mode := ""
	if err == nil {
		err = db.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode)
	}
	if sqlitefile.IsDamaged(err) {
		// A change of the journal mode reads the schema, which is damaged. An exclusive
		// lock does not. It must be the connection's first statement: only then it fails
		// if another process has the write-ahead log open.
		db.Close()
		db, err = openLocked(ctx, path, `PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE`)
	}
	defer func() {
		if err != nil {
			db.Close()
		}
	}()
	if sqlitefile.IsBusy(err) || mode == "wal" { // another process opened it between the two statements
		return nil, fmt.Errorf("%s is in use: stop the server and every other program that has it open", path)
	}
	var owner, tables int
	if err == nil {
		err = db.QueryRowContext(ctx, `SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id`).Scan(&owner, &tables)
	}
	if err == nil && owner != applicationID && (owner != 0 || tables > 0) {
		return nil, fmt.Errorf("%s is another program's database or the Flask tutorial's; move it away and restore again", path)
	}
	if err != nil && !sqlitefile.IsDamaged(err) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	locked := &lockedDatabase{db: db}
	// If the query fails, they stay unknown.
	db.QueryRowContext(ctx, `
		SELECT max(user_id, (SELECT coalesce(max(id), 0) FROM user)), coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'session'), 0)
		FROM counter`).Scan(&locked.lastUser, &locked.lastSession)
	return locked, nil
}

// openLocked opens a database, on one connection, and runs the statements that
// lock it. The caller closes db, also after an error.
func openLocked(ctx context.Context, path, statements string) (db *sql.DB, err error) {
	if db, err = sql.Open("sqlite", sqlitefile.DSN(path, "mode=rw")); err != nil { // synchronous=FULL is SQLite's default
		return db, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.ExecContext(ctx, statements)
	return db, err
}

// raiseIDs makes the next ids in a restored database higher than any that the
// previous database gave out: other programs, and tokens that are still valid,
// refer to those.
func raiseIDs(ctx context.Context, path string, previous *lockedDatabase) error {
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "mode=rw", "_synchronous=FULL"))
	if err != nil {
		return err
	}
	for _, st := range []statement{
		// A previous database with a lower counter does not descend from the copy, so its counter says nothing.
		{Query: `UPDATE counter SET user_id = iif(@previous >= user_id, @previous, user_id + @gap)`, Args: args{{"previous", previous.lastUser}, {"gap", idGap}}},
		{Query: `INSERT INTO sqlite_sequence (name, seq) SELECT 'session', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'session')`},
		{Query: `UPDATE sqlite_sequence SET seq = max(seq, @previous) + @gap WHERE name = 'session'`, Args: args{{"previous", previous.lastSession}, {"gap", idGap}}},
	} {
		if err == nil {
			err = st.Exec(ctx, db)
		}
	}
	return errors.Join(err, db.Close())
}

// check prints what is wrong with the database, one finding a line. It writes
// nothing and blocks no writer.
func check(ctx context.Context, c *cli) error {
	// SQLite's own check describes damage better than this error does.
	if err := mustBeUserds(ctx, c.database); err != nil && !sqlitefile.IsDamaged(err) {
		return err
	}
	for {
		p := c.progress("", 0)
		x, quiet, err := examine(ctx, c.database, p.Next, p.Show)
		p.End()
		if err != nil {
			return fmt.Errorf("checking %s: %w", c.database, err)
		}
		if still, err := sqlitefile.IsQuiet(c.database); quiet && (err != nil || !still) {
			continue // a server began to write while the file was read as if it did not change
		}
		for _, line := range x.findings {
			fmt.Fprintln(c.stdout, terminal.Printable(line))
		}
		if len(x.findings) > 0 {
			return fmt.Errorf("%s: %s", c.database, plural(len(x.findings), "finding"))
		}
		if x.admins == 0 {
			fmt.Fprintln(c.stderr, "warning: no active admin; userd user add -admin NAME EMAIL adds one")
		}
		if x.keys == 0 && len(c.secret) == 0 {
			fmt.Fprintln(c.stderr, "warning: no signing key; the next start makes one")
		}
		if n, err := x.unreadable(&c.settings.dataKeys); err != nil {
			return err
		} else if n > 0 {
			fmt.Fprintf(c.stderr, "warning: %v (%s). A server with these settings does not start\n", errDataKey, plural(n, "user"))
		}
		_, err = fmt.Fprintf(c.stdout, "%s: nothing found; %s, %s\n", c.database, plural(x.users, "user"), plural(x.sessions, "session"))
		return err
	}
}

func adoptDatabase(f *flag.FlagSet) action {
	resolve := refuse
	f.Func("resolve", "Rename all such users but the oldest to NAME-ID and LOCAL+ID@HOST: `suffix`.", func(v string) error {
		return setting.Word(&resolve, v, resolveByID)
	})
	return func(ctx context.Context, c *cli) error {
		return c.withDatabase(ctx, false, resolve, func(context.Context, *cli) error {
			_, err := fmt.Fprintf(c.stdout, "%s is ready for userd\n", c.database)
			return err
		})
	}
}
