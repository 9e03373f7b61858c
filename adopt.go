package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"userd/internal/safefile"
	"userd/internal/sqlitefile"
	"userd/internal/terminal"
)

// A resolution says what adopt does with users whose names differ only in case,
// which the tutorial allowed and userd does not.
type resolution string

const (
	refuse      resolution = ""       // change nothing, and list them
	resolveByID resolution = "suffix" // rename all but the oldest, which has the lowest id: see renameDuplicates
)

// adopt upgrades a database of the tutorial to one of userd, in one transaction, after
// writing a copy of it. It rebuilds no table. It adds columns with constant defaults, so
// that the Flask app can still use the file and loses no rows of its other tables. It
// reports its steps to say, and the progress of the copy to p.
func adopt(ctx context.Context, path string, resolve resolution, say func(text string), p *terminal.Progress) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("adopting %s: %w", path, err)
		}
	}()
	target, err := checkWritable(path)
	if err != nil {
		return err
	}
	// Before SQLite opens the file, and closed after it: closing a descriptor drops locks.
	file, err := safefile.Open(target)
	if err != nil {
		return err
	}
	defer file.Close()
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "mode=rw", fmt.Sprintf("_busy_timeout=%d", busyTimeout.Milliseconds()), "_synchronous=FULL", "_txlock=immediate"))
	if err != nil {
		return err
	}
	defer db.Close()
	// This takes the write lock, so that the copy holds everything that others wrote.
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var owner, users int
	if err := tx.QueryRowContext(ctx, `SELECT application_id, (SELECT count(*) FROM user) FROM pragma_application_id`).Scan(&owner, &users); err != nil {
		return err
	}
	if owner == applicationID {
		return nil // another process has adopted it meanwhile
	}
	if err := refuseHooks(ctx, tx); err != nil { // made since inspect
		return err
	}
	duplicates, err := findDuplicates(ctx, tx)
	if err == nil && duplicates > 0 {
		err = refuseDuplicates(ctx, tx, resolve)
	}
	if err != nil {
		return err
	}
	backup, err := copyBefore(ctx, db, path, p)
	if err != nil {
		return err
	}
	say(fmt.Sprintf("copied the database of the Flask app to %s", backup))
	say("upgrading the database, " + plural(users, "user"))
	if err := upgradeTutorial(ctx, tx, file, say); err != nil {
		os.Remove(backup) // otherwise each start that fails would leave one
		return err
	}
	// After a commit that fails, the file may still be the new one: the copy stays.
	if err = tx.Commit(); err == nil {
		say("the database is upgraded")
	}
	return err
}

// textColumns converts numbers and bytes to text. An app that does not decode a hash stores
// it as bytes. userd compares text, and SQLite never considers a BLOB equal to text.
const textColumns = `
	UPDATE user SET username = CAST(username AS TEXT), email = CAST(email AS TEXT), password_hash = CAST(password_hash AS TEXT)
	WHERE typeof(username) <> 'text' OR typeof(email) <> 'text' OR typeof(password_hash) <> 'text';`

// upgradeTutorial renames duplicates and records that as events, converts BLOBs to text,
// adds userd's columns and tables, and makes the file private.
func upgradeTutorial(ctx context.Context, tx *sql.Tx, file *os.File, say func(text string)) error {
	columns, err := sqlitefile.Columns(ctx, tx, "user")
	if err != nil {
		return err
	}
	before, after, taken := takeTimes(columns)
	if len(taken) > 0 {
		say("the Flask app can no longer use these columns, which userd takes over: " + strings.Join(taken, ", "))
	}
	if err = renameDuplicates(ctx, tx, say); err == nil {
		err = execTx(ctx, tx, textColumns+before+addColumns+after+restOfSchema+strings.Join(migrations[1:], "")+
			fmt.Sprintf("%s; PRAGMA user_version = %d", markOwner, len(migrations)))
	}
	if err == nil { // only now the table of events exists
		_, err = tx.ExecContext(ctx, renameEvents, userChanged, console.address, time.Now().Unix())
	}
	if sqlitefile.IsDuplicate(err) { // by the tutorial's constraints, or by userd's indexes if the case differs
		return errors.New("a user already has the name that -resolve suffix would give to another; rename one of them in the Flask app")
	}
	if err != nil {
		return err
	}
	// From now on the file holds the signing key. The Flask app can still read it as the same
	// user. By descriptor, because another file could have its name by now.
	return file.Chmod(0o600)
}

func execTx(ctx context.Context, tx *sql.Tx, query string) error {
	_, err := tx.ExecContext(ctx, query)
	return err
}

// findDuplicates fills the temporary table duplicate, and returns the number of
// its rows: one for each username or e-mail address that differs from another
// user's only in case, with the oldest of these users.
func findDuplicates(ctx context.Context, tx *sql.Tx) (n int, err error) {
	// A join, because the unique indexes on these columns do not exist yet. As text,
	// because textColumns comes later.
	err = execTx(ctx, tx, `
		CREATE TEMP TABLE duplicate AS
			WITH names AS MATERIALIZED (SELECT id, CAST(username AS TEXT) AS username, CAST(email AS TEXT) AS email FROM main.user)
			SELECT names.id, 'username' AS field, names.username AS value, oldest.id AS oldest FROM names JOIN (
				SELECT min(id) AS id, username FROM names GROUP BY username COLLATE NOCASE HAVING count(*) > 1
			) AS oldest ON names.username = oldest.username COLLATE NOCASE
			UNION ALL
			SELECT names.id, 'email', names.email, oldest.id FROM names JOIN (
				SELECT min(id) AS id, email FROM names GROUP BY email COLLATE NOCASE HAVING count(*) > 1
			) AS oldest ON names.email = oldest.email COLLATE NOCASE`)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `SELECT count(*) FROM temp.duplicate`).Scan(&n)
	return n, err
}

// renameDuplicates renames all but the oldest of the users that findDuplicates found: their
// usernames become NAME-ID and their addresses LOCAL+ID@HOST. It reports each change to say.
func renameDuplicates(ctx context.Context, tx *sql.Tx, say func(text string)) error {
	err := execTx(ctx, tx, `
		UPDATE user SET username = username || '-' || id
		WHERE id IN (SELECT id FROM temp.duplicate WHERE field = 'username' AND id <> oldest);
		UPDATE user SET email = substr(email, 1, instr(email, '@') - 1) || '+' || id || substr(email, instr(email, '@'))
		WHERE id IN (SELECT id FROM temp.duplicate WHERE field = 'email' AND id <> oldest) AND instr(email, '@') > 0;
		UPDATE user SET email = email || '+' || id
		WHERE id IN (SELECT id FROM temp.duplicate WHERE field = 'email' AND id <> oldest) AND instr(email, '@') = 0`)
	if err != nil {
		return err
	}
	var field, before, after string
	var id int64
	return sqlitefile.Scan(ctx, tx, `
		SELECT field, value, user.id, iif(field = 'email', email, username)
		FROM temp.duplicate JOIN user ON user.id = duplicate.id
		WHERE user.id <> oldest ORDER BY user.id, field DESC`,
		[]any{&field, &before, &id, &after}, func() {
			say(fmt.Sprintf("changed the %s of user %d from %q to %q", field, id, before, after))
		})
}

// renameEvents records an event for each user that renameDuplicates renamed.
const renameEvents = intoEvent + `
	SELECT ?3, ?1, 0, id, 0, ?2, group_concat(field, ',' ORDER BY field DESC)
	FROM temp.duplicate WHERE id <> oldest GROUP BY id ORDER BY id`

// refuseDuplicates returns an error unless resolve is resolveByID and no duplicate is empty:
// a rename would make a name or an address of an empty one.
func refuseDuplicates(ctx context.Context, tx *sql.Tx, resolve resolution) error {
	if resolve == refuse {
		return listDuplicates(ctx, tx)
	}
	var empty string
	err := tx.QueryRowContext(ctx, `
		SELECT coalesce(group_concat(field || ' of user ' || id, ', '), '')
		FROM (SELECT field, id FROM temp.duplicate WHERE trim(value) = '' ORDER BY field DESC, id LIMIT 100)`).Scan(&empty)
	if err == nil && empty != "" {
		err = fmt.Errorf("only one user can have an empty username or email; give the others one in the Flask app: %s", empty)
	}
	return err
}

// listDuplicates returns an error that lists what findDuplicates found, 100 at
// most, and says what to do.
func listDuplicates(ctx context.Context, tx *sql.Tx) error {
	const most = 100
	rows, err := tx.QueryContext(ctx, `SELECT field, value, id FROM temp.duplicate ORDER BY field DESC, value COLLATE NOCASE, id LIMIT ?`, most+1)
	if err != nil {
		return err
	}
	defer rows.Close()
	var text strings.Builder
	text.WriteString("some usernames or e-mail addresses differ only in case, and userd ignores case:")
	n := 0
	for rows.Next() {
		var field, value string
		var id int64
		if err := rows.Scan(&field, &value, &id); err != nil {
			return err
		}
		if n++; n > most {
			text.WriteString("\n\t…")
			break
		}
		fmt.Fprintf(&text, "\n\t%s %q, id %d", field, value, id)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	text.WriteString("\nNothing was changed. Rename them in the Flask app, or run userd adopt -resolve suffix, " +
		"which renames all but the oldest to NAME-ID and LOCAL+ID@HOST.")
	return errors.New(text.String())
}

// copyBefore writes a consistent copy of the database to a new file next to it,
// and returns the path of the copy.
func copyBefore(ctx context.Context, db *sql.DB, path string, p *terminal.Progress) (string, error) {
	backup := safefile.TimestampedName(path, "before-userd", time.Now())
	copied, err := copyToTemp(ctx, db, path, p)
	if err == nil {
		defer copied.file.Discard()
		err = safefile.ChownLike(copied.file.File, path) // root adopts for the server's user
	}
	if err == nil {
		err = copied.file.Publish(filepath.Base(backup))
	}
	if err != nil {
		return "", fmt.Errorf("copying it to %s: %w", backup, err)
	}
	return backup, nil
}

// A fileKind is what inspect finds at a path.
type fileKind int

const (
	kindNone     fileKind = iota // no file, or an empty one
	kindUserd                    // a database of userd
	kindTutorial                 // a database of the Flask tutorial, which adopt upgrades
)

// inspect returns the kind of the file at a path, or an error if userd must not open
// it. It changes the file only to roll back the transaction of a killed process.
func inspect(ctx context.Context, path string) (fileKind, error) {
	empty, err := sqlitefile.IsEmpty(path)
	if empty { // there may also be an error
		// Flask-SQLAlchemy 3 puts what DATABASE_URL calls app.db under instance/. An
		// empty database next to it would look as if all users were gone.
		instance := filepath.Join(filepath.Dir(path), "instance", filepath.Base(path))
		if _, err := os.Stat(instance); err == nil {
			return kindNone, fmt.Errorf("the database %s does not exist, but %s does: set DATABASE_URL=sqlite:///%s", path, instance, instance)
		}
	}
	if empty || err != nil {
		return kindNone, err
	}
	db, h, err := sqlitefile.OpenToInspect(ctx, path)
	if err != nil {
		return kindNone, err
	}
	defer db.Close()
	switch {
	case h == sqlitefile.Header{}:
		return kindNone, nil
	case h.Owner == 0 && h.Version == 0:
		if err := checkTutorial(ctx, db, path); err != nil {
			return kindNone, fmt.Errorf("%s: %w", path, err)
		}
		return kindTutorial, nil
	case h.Owner != applicationID:
		return kindNone, fmt.Errorf("%s: %w", path, errOtherProgram)
	case h.Version > len(migrations):
		return kindNone, fmt.Errorf("%s has schema %d, but this userd supports schemas up to %d: use a newer userd", path, h.Version, len(migrations))
	}
	if err := sqlitefile.ReadFirstPages(ctx, db, migrations); err != nil {
		return kindNone, fmt.Errorf("reading %s: %w", path, err)
	}
	return kindUserd, nil
}

// A databaseCopy is a checked copy of a database that has only a temporary name.
type databaseCopy struct {
	file  *safefile.Temp
	users int
	bytes int64
}

func (d *databaseCopy) String() string {
	return plural(d.users, "user") + ", " + plural(d.bytes, "byte")
}

// copyToTemp writes a consistent copy of a database into a new file in the directory of
// path, checks it as a database, and syncs it: see sqlitefile.Copy.
func copyToTemp(ctx context.Context, db *sql.DB, path string, p *terminal.Progress) (_ *databaseCopy, err error) {
	defer p.End()
	f, err := sqlitefile.Copy(ctx, db, path, p)
	if err != nil {
		return nil, err
	}
	copied := &databaseCopy{file: f}
	defer func() {
		if err != nil {
			f.Discard()
		}
	}()
	p.Next("checking the copy", 0)
	if copied.users, err = checkCopy(ctx, f.Name()); err != nil {
		return nil, fmt.Errorf("the copy is damaged: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	copied.bytes = info.Size()
	return copied, f.Sync() // VACUUM INTO does not
}

// mustBeUserds returns an error unless path is a database of userd, with this
// program's schema or an older one.
func mustBeUserds(ctx context.Context, path string) error {
	kind, err := inspect(ctx, path)
	switch {
	case err != nil:
		return err
	case kind == kindNone:
		return fmt.Errorf("database %s does not exist or is empty", path)
	case kind == kindTutorial:
		return fmt.Errorf("%s is a database of the Flask tutorial; adopt it first: userd adopt -database %[1]s", path)
	}
	return nil
}

// checkCopy returns how many users a database has. It returns an error if the
// database is empty or damaged, or is not userd's or the tutorial's.
func checkCopy(ctx context.Context, path string) (users int, err error) {
	if kind, err := inspect(ctx, path); err != nil {
		return 0, err
	} else if kind == kindNone {
		return 0, errors.New("it is empty")
	}
	db, _, err := sqlitefile.OpenToRead(path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	findings, err := sqlitefile.CheckIntegrity(ctx, db, 1)
	if len(findings) > 0 {
		err = errors.New(strings.Join(findings, "; "))
	}
	if err == nil {
		err = db.QueryRowContext(ctx, `SELECT count(*) FROM user`).Scan(&users)
	}
	return users, err
}

// checkBackup returns an error unless the file is a sound backup without triggers.
func checkBackup(ctx context.Context, path string) error {
	if err := mustBeUserds(ctx, path); err != nil {
		return err
	}
	if _, err := checkCopy(ctx, path); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	db, _, err := sqlitefile.OpenToRead(path)
	if err == nil {
		err = errors.Join(refuseHooks(ctx, db), db.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
