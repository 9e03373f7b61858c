package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"userd/internal/passhash"
)

// unknownHashes counts the users whose password hash has an unknown format.
func (s *store) unknownHashes(ctx context.Context) (n int, err error) {
	err = s.onNewConnection(func(db *sql.DB) error {
		return eachHash(ctx, db, func(_ int64, known bool) {
			if !known {
				n++
			}
		})
	})
	return n, err
}

// checkFiles returns an error if a file of the database was deleted, moved or replaced
// since it was opened. The store then refuses every write until it is closed: what it
// writes to a file without a name would be lost with the process. checkFiles compares
// device and inode by name, because closing a descriptor would drop SQLite's locks.
func (s *store) checkFiles() error {
	for name, opened := range s.files {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, opened) {
			s.filesLost.Store(true)
			return fmt.Errorf("%s was deleted, moved or replaced", name)
		}
	}
	return nil
}

// checkIntegrity runs SQLite's check, which reads the whole file, and returns its
// findings, none if the file is sound. It stops after about most findings. If SQLite
// fails because the file is damaged, that error is also a finding.
func checkIntegrity(ctx context.Context, db *sql.DB, most int) (findings []string, err error) {
	findings, err = collect(ctx, db, fmt.Sprintf(`PRAGMA integrity_check(%d)`, most))
	findings = slices.DeleteFunc(findings, func(line string) bool { // not a finding
		return line == "ok" || strings.HasPrefix(line, "*** in database")
	})
	if isDamaged(err) {
		findings, err = append(findings, err.Error()), nil
	}
	return findings, err
}

// checkIntegrity returns the first finding of SQLite's check, or none if the file is
// sound.
func (s *store) checkIntegrity(ctx context.Context) (findings []string, err error) {
	err = s.onNewConnection(func(db *sql.DB) (err error) {
		findings, err = checkIntegrity(ctx, db, 1)
		return err
	})
	return findings, err
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
	db, _, err := openToRead(path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	findings, err := checkIntegrity(ctx, db, 1)
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
	db, _, err := openToRead(path)
	if err == nil {
		err = errors.Join(refuseHooks(ctx, db), db.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// eachHash calls f with the id of each user, and whether the password hash is text of a
// format that passhash knows. It reads the whole table.
func eachHash(ctx context.Context, db *sql.DB, f func(id int64, known bool)) error {
	var id int64
	var hash string
	return scanQuery(ctx, db, `SELECT id, iif(typeof(password_hash) = 'text', password_hash, '') FROM user ORDER BY id`, []any{&id, &hash}, func() {
		f(id, passhash.Known(hash))
	})
}

// A check reports mostFindings rows of each rule, and then moreFindings.
const mostFindings, moreFindings = 100, "… and more like this"

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
}

// examine checks a database by SQLite's rules and by userd's. If the file is
// quiet (see isQuiet), the result is valid only if it is still quiet afterwards.
// examine calls step before each step, with the number of users that it will check (0:
// unknown), and show with the number of users checked so far.
func examine(ctx context.Context, path string, step func(what string, users int64), show func(n int, done int64)) (x examination, quiet bool, err error) {
	db, quiet, err := openToRead(path)
	if err != nil {
		return x, quiet, err
	}
	defer db.Close()
	if err = x.run(ctx, db, step, show); isDamaged(err) {
		if !slices.Contains(x.findings, err.Error()) { // checkIntegrity may have found it
			x.findings = append(x.findings, err.Error())
		}
		err = nil
	}
	return x, quiet, err
}

func (x *examination) run(ctx context.Context, db *sql.DB, step func(what string, users int64), show func(n int, done int64)) (err error) {
	step("checking the pages", 0)
	if x.findings, err = checkIntegrity(ctx, db, mostFindings); err != nil {
		return err
	}
	if err := x.compareSchema(ctx, db); err != nil {
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
		found, err := collect(ctx, db, rule)
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
		if n++; n <= mostFindings {
			x.findings = append(x.findings, fmt.Sprintf("user %d cannot log in: the format of the password hash is unknown", id))
		}
	})
	if n > mostFindings {
		x.findings = append(x.findings, moreFindings)
	}
	if err != nil {
		return err
	}
	return db.QueryRowContext(ctx, selectTotals).Scan(&x.users, &x.sessions, &x.admins, &x.keys)
}

// collect returns the lines of a query's first mostFindings rows, and moreFindings if
// there are more rows. With an error, it returns the lines before the error.
func collect(ctx context.Context, db *sql.DB, query string) (findings []string, err error) {
	var text string
	n := 0
	err = scanQuery(ctx, db, query, []any{&text}, func() {
		if n++; n <= mostFindings {
			findings = append(findings, strings.Split(text, "\n")...)
		}
	})
	if n > mostFindings {
		findings = append(findings, moreFindings)
	}
	return findings, err
}

// compareSchema adds findings for the tables, columns and indexes that the database lacks,
// for indexes that differ from those of the migrations, and for values of the wrong type.
func (x *examination) compareSchema(ctx context.Context, db *sql.DB) error {
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	model, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return err
	}
	defer model.Close()
	model.SetMaxOpenConns(1) // each connection has its own :memory: database
	for _, script := range migrations[:version] {
		if _, err := model.ExecContext(ctx, script); err != nil {
			return err
		}
	}
	want, err := schemaOf(ctx, model)
	if err != nil {
		return err
	}
	got, err := schemaOf(ctx, db)
	if err != nil {
		return err
	}
	complete := true
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch text, ok := got[name]; {
		case !ok:
			complete = false
			x.findings = append(x.findings, name+" is missing")
		case text != want[name]:
			x.findings = append(x.findings, name+" differs from userd's: "+text)
		}
	}
	if !complete { // a query of what is missing would fail
		return nil
	}
	return x.checkTypes(ctx, model, db)
}

// checkTypes adds a finding for each row that has a value of another type than the column
// has in model, because SQLite stores values of any type in a column. It reads each table
// once.
func (x *examination) checkTypes(ctx context.Context, model, db *sql.DB) error {
	queries, err := collect(ctx, model, `
		SELECT format('SELECT ''%s '' || %s || '' has '' || concat_ws('' and '', %s) FROM %s WHERE %s',
			"table", key,
			group_concat(format('iif(%s, typeof(%s) || '' instead of %s in %s'', NULL)', wrong, name, type, name), ', '),
			"table", group_concat(wrong, ' OR '))
		FROM (
			SELECT *, format('typeof(%s) NOT IN (''%s'', ''%s'')', name, type, iif(nullable, 'null', type)) AS wrong
			FROM (
				SELECT t.name AS "table", c.name, c."notnull" = 0 AS nullable,
					iif(c.type LIKE 'VARCHAR%', 'text', lower(c.type)) AS type,
					first_value(c.name) OVER (PARTITION BY t.name ORDER BY c.pk = 0, c.pk) AS key
				FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
				WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'))
		GROUP BY "table" ORDER BY "table"`)
	for _, query := range queries {
		var found []string
		if err == nil {
			found, err = collect(ctx, db, query)
			x.findings = append(x.findings, found...)
		}
	}
	return err
}

// schemaOf returns the tables, columns and indexes of a database. The value of an
// index is its SQL. Other values are empty, because an adopted table has the SQL
// of the Flask app.
func schemaOf(ctx context.Context, db *sql.DB) (found map[string]string, err error) {
	found = make(map[string]string)
	var name, text string
	err = scanQuery(ctx, db, `
		SELECT type || ' ' || name, iif(type = 'index', coalesce(sql, ''), '') FROM sqlite_schema
		UNION ALL
		SELECT 'column ' || c.name || ' of table ' || t.name, '' FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'`,
		[]any{&name, &text}, func() { found[name] = text })
	return found, err
}

// watchFiles checks the files of the database every second until ctx ends or a file is
// lost. A restart would begin with an empty database, so the server does not end itself.
func watchFiles(ctx context.Context, st *store, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := st.checkFiles(); err != nil {
				log.Error("refusing writes: put the lost file of the database back, then restart userd", "err", err)
				return
			}
		}
	}
}

// sizeOf returns the bytes of a regular file, or 0 if they are unknown.
func sizeOf(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}
