package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"userd/internal/passhash"
	"userd/internal/sqlitefile"
)

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
	empty, err := inspectFile(path)
	if empty || err != nil {
		return kindNone, err
	}
	if err := sqlitefile.CheckLogOwners(path); err != nil {
		return kindNone, err
	}
	db, _, err := sqlitefile.OpenToRead(path)
	if err != nil {
		return kindNone, err
	}
	defer func() { db.Close() }()

	const about = `
		SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id AS a, pragma_user_version AS v`
	var owner, version, tables int
	err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	if sqlitefile.IsUnfinished(err) {
		// A killed process left a rollback journal: SQLite must first undo its transaction.
		db.Close()
		if db, err = sql.Open("sqlite", sqlitefile.DSN(path, "mode=rw", "_busy_timeout=5000")); err != nil {
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
		if err := checkTutorial(ctx, db, path); err != nil {
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

// inspectFile reports whether the file at a path is empty or does not exist. It
// returns an error if the file cannot be a database.
func inspectFile(path string) (empty bool, err error) {
	// The log first: a process that is creating both writes the database before the log.
	log, logErr := os.Stat(path + "-wal")
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing || err == nil && info.Size() == 0 {
		// Flask-SQLAlchemy 3 puts what DATABASE_URL calls app.db under instance/. An
		// empty database next to it would look as if all users were gone.
		instance := filepath.Join(filepath.Dir(path), "instance", filepath.Base(path))
		if _, err := os.Stat(instance); err == nil {
			return false, fmt.Errorf("the database %s does not exist, but %s does: set DATABASE_URL=sqlite:///%s", path, instance, instance)
		}
		// SQLite deletes the log of a database that it creates. This one can hold the
		// latest writes of a database that was moved or deleted.
		if logErr == nil && log.Size() > 0 {
			return false, fmt.Errorf("the database %s does not exist or is empty, but %[1]s-wal has writes of one: bring the database back next to it, or move %[1]s-wal away", path)
		}
	}
	switch {
	case missing:
		_, err := os.Stat(filepath.Dir(path))
		return true, err
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file", path)
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
	for _, table := range tablesOf(migrations[:version]) {
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

// eachHash calls f with the id of each user, and whether the password hash is text of a
// format that passhash knows, or that of a service user. It reads the whole table.
func eachHash(ctx context.Context, db *sql.DB, f func(id int64, known bool)) error {
	var id int64
	var hash string
	return sqlitefile.Scan(ctx, db, `SELECT id, iif(typeof(password_hash) = 'text', password_hash, '') FROM user ORDER BY id`, []any{&id, &hash}, func() {
		f(id, passhash.Known(hash) || hash == serviceHash)
	})
}

// rules are queries for faults that no write of userd causes. Each row of a result
// is a finding.
var rules = []string{
	`SELECT 'the counter of user ids is missing' WHERE NOT EXISTS (SELECT 1 FROM counter)`,
	`SELECT 'the counter of user ids is at ' || user_id || ', but user ' || (SELECT max(id) FROM user) || ' exists'
	FROM counter WHERE user_id < (SELECT max(id) FROM user)`,
	`SELECT 'user ' || id || ' has the unknown role ' || quote(role) FROM user WHERE role NOT IN ('member', 'admin')`,
	`SELECT 'user ' || id || ' has ' || quote(disabled) || ' instead of 0 or 1 in disabled' FROM user WHERE disabled NOT IN (0, 1)`,
	`SELECT 'session ' || id || ' belongs to user ' || user_id || ', which does not exist' FROM session WHERE user_id NOT IN (SELECT id FROM user)`,
	`SELECT 'signing key ' || kid || ' has ' || length(secret) || ' bytes instead of at least 32' FROM signing_key WHERE length(secret) < 32`,
}

const selectTotals = `
	SELECT
		(SELECT count(*) FROM user),
		(SELECT count(*) FROM session),
		(SELECT count(*) FROM user WHERE role = 'admin' AND disabled = 0),
		(SELECT count(*) FROM signing_key WHERE retired_at = 0)`

// An examination is the result of one check. It counts only active admins and keys.
type examination struct {
	findings                      []string
	users, sessions, admins, keys int
	dataKey                       []byte           // of the database; nil: none
	sealed                        map[string]int64 // the number of TOTP secrets by the name of the key that sealed them
}

// examine checks a database by SQLite's rules and by userd's. If the file is
// quiet (see sqlitefile.IsQuiet), the result is valid only if it is still quiet afterwards.
// examine calls step before each step, with the number of users that it will check (0:
// unknown), and show with the number of users checked so far.
func examine(ctx context.Context, path string, step func(what string, users int64), show func(n int, done int64)) (x examination, quiet bool, err error) {
	db, quiet, err := sqlitefile.OpenToRead(path)
	if err != nil {
		return x, quiet, err
	}
	defer db.Close()
	if err = x.run(ctx, db, step, show); sqlitefile.IsDamaged(err) {
		if !slices.Contains(x.findings, err.Error()) { // checkIntegrity may have found it
			x.findings = append(x.findings, err.Error())
		}
		err = nil
	}
	return x, quiet, err
}

func (x *examination) run(ctx context.Context, db *sql.DB, step func(what string, users int64), show func(n int, done int64)) (err error) {
	step("checking the pages", 0)
	if x.findings, err = sqlitefile.CheckIntegrity(ctx, db, sqlitefile.MostFindings); err != nil {
		return err
	}
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	found, err := sqlitefile.CompareSchema(ctx, db, migrations[:version], "userd")
	if x.findings = append(x.findings, found...); err != nil {
		return err
	}
	hooks, err := findHooks(ctx, db)
	if err != nil {
		return err
	}
	for _, hook := range hooks {
		x.findings = append(x.findings, hook+" uses a table of userd")
	}
	for _, rule := range rules {
		found, err := sqlitefile.Findings(ctx, db, rule)
		x.findings = append(x.findings, found...)
		if err != nil {
			return err
		}
	}
	var users int64
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM user`).Scan(&users); err != nil {
		return err
	}
	step("checking users", users)
	n, done := 0, 0
	err = eachHash(ctx, db, func(id int64, known bool) {
		done++
		show(done, int64(done))
		if known {
			return
		}
		if n++; n <= sqlitefile.MostFindings {
			x.findings = append(x.findings, fmt.Sprintf("user %d cannot log in: the format of the password hash is unknown", id))
		}
	})
	if n > sqlitefile.MostFindings {
		x.findings = append(x.findings, sqlitefile.MoreFindings)
	}
	if err != nil {
		return err
	}
	if slices.Contains(tablesOf(migrations[:version]), "user_totp") {
		var id, key []byte
		var users, first int64
		x.sealed = make(map[string]int64)
		err = errors.Join(
			sqlitefile.Scan(ctx, db, selectSealKeys, []any{&id, &users, &first}, func() { x.sealed[string(id)] += users }),
			sqlitefile.Scan(ctx, db, `SELECT value FROM secret WHERE name = '`+dataSecret+`'`, []any{&key}, func() { x.dataKey = key }))
		if err != nil {
			return err
		}
	}
	return db.QueryRowContext(ctx, selectTotals).Scan(&x.users, &x.sessions, &x.admins, &x.keys)
}

// unreadable returns the number of users whose TOTP secret neither these keys nor that of the
// database can open.
func (x *examination) unreadable(keys *dataKeys) (users int64, err error) {
	ring, err := keys.ring(x.dataKey)
	if err != nil {
		return 0, err
	}
	for id, n := range x.sealed {
		if !ring.Has([]byte(id)) {
			users += n
		}
	}
	return users, nil
}
