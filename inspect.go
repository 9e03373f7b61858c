package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// A fileKind is what inspect finds at a path.
type fileKind int

const (
	kindNone     fileKind = iota // no file, or an empty one
	kindUserd                    // a database of userd
	kindTutorial                 // a database of the Flask tutorial, which adopt upgrades
)

// inspect returns what is at a path, without changing it. It returns an error if
// userd must not open the file.
func inspect(ctx context.Context, path string) (fileKind, error) {
	empty, err := inspectFile(path)
	if empty || err != nil {
		return kindNone, err
	}
	db, _, err := openToRead(path)
	if err != nil {
		return kindNone, err
	}
	defer func() { db.Close() }()

	const about = `
		SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id AS a, pragma_user_version AS v`
	var owner, version, tables int
	err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	if isUnfinished(err) {
		// A killed process left a rollback journal: SQLite must first undo its transaction.
		db.Close()
		if db, err = sql.Open("sqlite", dsn(path, "mode=rw", "_busy_timeout=5000")); err != nil {
			return kindNone, err
		}
		err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	}
	if err != nil {
		return kindNone, fmt.Errorf("reading %s: %w", path, err)
	}
	switch {
	case owner == 0 && version == 0 && tables == 0:
		return kindNone, nil
	case owner == 0 && version == 0:
		if err := checkTutorial(ctx, db); err != nil {
			return kindNone, fmt.Errorf("%s: %w", path, err)
		}
		return kindTutorial, nil
	case owner != applicationID:
		return kindNone, fmt.Errorf("%s: %w", path, errOtherProgram)
	case version > len(migrations):
		return kindNone, fmt.Errorf("%s has schema %d, but this userd supports schemas up to %d: use a newer userd", path, version, len(migrations))
	}
	if err := readFirstPages(ctx, db, version); err != nil {
		return kindNone, fmt.Errorf("reading %s: %w", path, err)
	}
	return kindUserd, nil
}

var errOtherProgram = errors.New("this is another program's database")

// inspectFile reports whether the file at a path is empty or does not exist. It
// returns an error if the file cannot be a database.
func inspectFile(path string) (empty bool, err error) {
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing || err == nil && info.Size() == 0 {
		// Flask-SQLAlchemy 3 puts what DATABASE_URL calls app.db under instance/. An
		// empty database next to it would look as if all users were gone.
		instance := filepath.Join(filepath.Dir(path), "instance", filepath.Base(path))
		if _, err := os.Stat(instance); err == nil {
			return false, fmt.Errorf("the database %s does not exist, but %s does: set DATABASE_URL=sqlite:///%s", path, instance, instance)
		}
	}
	switch {
	case missing:
		_, err := os.Stat(filepath.Dir(path))
		return true, err
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a file", path)
	case info.Size() == 0:
		return true, nil
	case info.Size() < 100: // the size of SQLite's header; SQLite treats one byte as an empty file
		return false, fmt.Errorf("%s is not a database", path)
	}
	return false, nil
}

// readFirstPages reads the first page of each table of a schema version, to find
// gross damage before any request is served.
func readFirstPages(ctx context.Context, db *sql.DB, version int) error {
	tables := []string{"user", "counter", "session", "signing_key", "secret"}
	if version > 1 {
		tables = append(tables, "event")
	}
	if version > 3 {
		tables = append(tables, "event_link")
	}
	for _, table := range tables {
		rows, err := db.QueryContext(ctx, "SELECT * FROM "+table+" LIMIT 1")
		if err == nil {
			for rows.Next() {
			}
			err = errors.Join(rows.Err(), rows.Close())
		}
		if err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
	}
	return nil
}

// openToRead opens a database without changing it. If quiet is true, what is read
// is only valid if the database is still quiet afterwards.
func openToRead(path string) (db *sql.DB, quiet bool, err error) {
	params := []string{"mode=ro", "_busy_timeout=5000"}
	quiet, err = isQuiet(path)
	if err != nil {
		return nil, false, err
	}
	if quiet {
		params = append(params, "immutable=1")
	}
	db, err = sql.Open("sqlite", dsn(path, params...))
	return db, quiet, err
}

// isQuiet reports whether the database is in WAL mode and no process has it open.
// An ordinary reader would leave a -wal and a -shm file next to such a database;
// a reader that assumes that the file does not change leaves none.
func isQuiet(path string) (bool, error) {
	path, err := filepath.EvalSymlinks(path) // SQLite puts the -wal next to a link's target
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close() // this drops the process's locks on the file; without a -wal it has none
	versions := make([]byte, 2)
	if _, err := f.ReadAt(versions, 18); err != nil && err != io.EOF { // https://www.sqlite.org/fileformat.html#file_format_version_numbers
		return false, err
	}
	return versions[0] == 2 && versions[1] == 2, nil
}

// checkTutorial returns an error unless the Flask tutorial's app wrote the
// database and userd can adopt it. More columns and tables than the tutorial's
// may exist.
func checkTutorial(ctx context.Context, db *sql.DB) error {
	if err := checkTutorialColumns(ctx, db); err != nil {
		return err
	}
	if err := refuseHooks(ctx, db); err != nil {
		return err
	}
	var names string
	err := db.QueryRowContext(ctx, `
		SELECT coalesce(group_concat(name, ', '), '') FROM sqlite_schema WHERE name IN (
			'counter', 'session', 'signing_key', 'secret', 'event', 'seal', 'event_link',
			'user_username', 'user_email', 'user_admin', 'user_disabled', 'session_user', 'event_user', 'event_type')`).Scan(&names)
	if err == nil && names != "" {
		err = fmt.Errorf("userd needs the names %s, which existing tables or indexes have: rename them", names)
	}
	if err != nil {
		return err
	}
	return checkTutorialUsers(ctx, db)
}

// checkTutorialUsers returns an error that names the users that userd cannot keep, ten
// at most: each needs a usable id, and text in the three columns. Bytes are text if they
// are valid UTF-8: adopt casts them.
func checkTutorialUsers(ctx context.Context, db *sql.DB) error {
	const most = 10
	var faults []string
	n := 0
	var id int64
	columns := []string{"username", "email", "password_hash"}
	isNull, texts := make([]bool, 3), make([][]byte, 3)
	err := scanQuery(ctx, db, `
		SELECT id,
			username IS NULL, email IS NULL, password_hash IS NULL,
			CAST(username AS BLOB), CAST(email AS BLOB), CAST(password_hash AS BLOB)
		FROM user ORDER BY id`,
		[]any{&id, &isNull[0], &isNull[1], &isNull[2], &texts[0], &texts[1], &texts[2]}, func() {
			var wrong []string
			if id < 1 || id > maxID {
				wrong = append(wrong, fmt.Sprintf("an id outside 1 to %d", int64(maxID)))
			}
			for i, column := range columns {
				switch {
				case isNull[i]:
					wrong = append(wrong, "no "+column)
				case !utf8.Valid(texts[i]) || bytes.IndexByte(texts[i], 0) >= 0:
					wrong = append(wrong, "bytes in "+column+" that are not UTF-8 text")
				}
			}
			if len(wrong) > 0 {
				if n++; n <= most {
					faults = append(faults, fmt.Sprintf("user %d has %s", id, strings.Join(wrong, " and ")))
				}
			}
		})
	if n > most {
		faults = append(faults, fmt.Sprintf("and %d more", n-most))
	}
	if err == nil && n > 0 {
		err = fmt.Errorf("correct or delete these users first: %s", strings.Join(faults, ", "))
	}
	return err
}

// checkTutorialColumns returns an error unless the table user has the tutorial's
// four columns, and no other column that userd needs or cannot fill.
func checkTutorialColumns(ctx context.Context, db *sql.DB) error {
	missing := []string{"id", "username", "email", "password_hash"}
	var clashing, required []string
	var name, declared string
	var notNull, noDefault bool
	var key int
	err := scanQuery(ctx, db, `SELECT name, type, "notnull", dflt_value IS NULL, pk FROM pragma_table_info('user')`,
		[]any{&name, &declared, &notNull, &noDefault, &key}, func() {
			i := slices.Index(missing, strings.ToLower(name))
			switch {
			case i >= 0 && missing[i] == "id" && (key != 1 || !strings.EqualFold(declared, "INTEGER")):
				// SQLite does not use this column as the row's id, so it can hold anything.
			case i >= 0:
				missing = slices.Delete(missing, i, i+1)
			case strings.Contains(addColumns+addAuthStamp, "ADD COLUMN "+strings.ToLower(name)+" "):
				clashing = append(clashing, name)
			case notNull && noDefault:
				required = append(required, name)
			}
		})
	if err != nil {
		return err
	}
	switch {
	case len(missing) > 0:
		return errOtherProgram
	case len(clashing) > 0:
		return fmt.Errorf("userd needs the name of the column %s of the table user: rename the column", strings.Join(clashing, ", "))
	case len(required) > 0:
		return fmt.Errorf("userd cannot fill the column %s of the table user, which must not be NULL: give it a default", strings.Join(required, ", "))
	}
	return nil
}
