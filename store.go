package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"userd/internal/passhash"

	"userd/internal/safefile"
)

// A callerKind says how a caller is known.
type callerKind string

const (
	consoleCaller  callerKind = "console"  // the command line, which can open the database file
	strangerCaller callerKind = "stranger" // a client without a token: it may add a member
	sessionCaller  callerKind = "session"  // a user, known by an access token
)

// A caller is the one that asks for a write. The write's own SQL checks the
// caller's rights when it runs: they may have changed since the request came in.
// The address is only for the event. The zero caller may do nothing.
type caller struct {
	kind    callerKind
	user    int64 // 0: none
	session int64 // of the user; 0: none
	address string
}

// console is the command line.
var console = caller{kind: consoleCaller, address: "console"}

// with returns a copy of the values that also names the caller: @caller and
// @session, as mayChange reads them.
func (c caller) with(values args) args {
	values = maps.Clone(values)
	values["caller"], values["session"] = string(c.kind), c.session
	return values
}

// A store is the database file and every statement that runs on it. Reads go to
// a small pool; every write goes through one goroutine (write.go).
// An error that is neither one of the named sentinels nor the caller's own
// cancelled context is errStorage, with its cause wrapped beside it.
type store struct {
	path      string
	readers   *sql.DB
	readerDSN string
	reads     prepared
	*writer
}

// readerCount is the size of the read pool. Measured on two cores: one reader
// halves the throughput, eight gain little, and each costs about 3 MB.
const readerCount = 4

// openStore opens the database at path, making it (mode 0600) where there is
// none, and brings its schema up to date. The caller has inspected the file.
func openStore(ctx context.Context, path string) (*store, error) {
	// SQLite would create it with mode 0644; the -wal and -shm files get its mode.
	// Nothing else in the process may open the file once SQLite has: closing any
	// descriptor of it drops SQLite's locks.
	if err := safefile.CreateIfMissing(path); err != nil {
		return nil, err
	}

	w, err := openWriter(path)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, w.conn); err != nil {
		w.close()
		return nil, err
	}
	readerDSN := dsn(path, "mode=rw", "_query_only=1", "_busy_timeout=5000")
	readers, err := sql.Open("sqlite", readerDSN)
	if err != nil {
		w.close()
		return nil, err
	}
	readers.SetMaxOpenConns(readerCount)
	readers.SetMaxIdleConns(readerCount)
	go w.run()
	return &store{
		path:      path,
		readers:   readers,
		readerDSN: readerDSN,
		reads:     prepared{by: readers},
		writer:    w,
	}, nil
}

// close waits for the writes under way and closes the file. The writer goes
// last, as the connection that may fold the write-ahead log into the database.
func (s *store) close() error {
	s.stop()
	return errors.Join(s.readers.Close(), s.writer.close())
}

// probe tells whether the database can be read and written: errStorage where
// it cannot, the context's error where it has not begun to write in time. The
// write is committed and synced like any other, and changes nothing: of a row
// that is set to what it holds SQLite would write nothing, so this one is moved
// to where it stands. It goes first, because what the readers have cached is
// then old, and they go to the disk too.
func (s *store) probe(ctx context.Context) error {
	err := s.write(ctx, statement{query: `UPDATE counter SET id = id`, ifNone: errStorage})
	if err != nil {
		return err
	}
	var id int64
	return s.read(`SELECT user_id FROM counter`, errStorage, []any{&id})
}

// count returns how many users and sessions there are. It reads an index of
// each from end to end.
func (s *store) count(ctx context.Context) (users, sessions int64, err error) {
	if err = s.readAside(ctx, &users, `SELECT count(*) FROM user`); err == nil {
		err = s.readAside(ctx, &sessions, `SELECT count(*) FROM session`)
	}
	return users, sessions, err
}

// size returns the bytes of the database file and of its write-ahead log. It
// asks by their names: to close a descriptor of theirs would drop SQLite's locks.
func (s *store) size() (file, log int64, err error) {
	info, err := os.Stat(s.path)
	if err != nil {
		return 0, 0, err
	}
	wal, err := os.Stat(s.path + "-wal")
	if err != nil {
		return 0, 0, err
	}
	return info.Size(), wal.Size(), nil
}

// read scans the one row of a query into dest; no row is the error none.
// It takes no context: a lookup ends in microseconds, and one that could be
// cancelled would cost a goroutine each in the driver.
func (s *store) read(query string, none error, dest []any, args ...any) error {
	stmt, err := s.reads.get(query)
	if err == nil {
		err = stmt.QueryRow(args...).Scan(dest...)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return none
	}
	return &storageError{"reading", err}
}

// eachRow calls f after scanning each row of a query into dest.
func (s *store) eachRow(ctx context.Context, query string, dest []any, f func(), args ...any) error {
	stmt, err := s.reads.get(query)
	if err != nil {
		return &storageError{"reading", err}
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return &storageError{"reading", err}
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return &storageError{"reading a row", err}
		}
		f()
	}
	if err := rows.Err(); err != nil {
		return &storageError{"reading", err}
	}
	return nil
}

// openAside opens a connection for queries that read very much, so that no request
// waits for them. It keeps few pages in memory: such a query reads each page once,
// so more would gain nothing, and SQLite's allocator would not give them back.
func (s *store) openAside() (*sql.DB, error) {
	return sql.Open("sqlite", s.readerDSN+"&_pragma=cache_size(-256)") // KiB
}

// readAside scans the only value of a query that reads very much.
func (s *store) readAside(ctx context.Context, value any, query string) error {
	db, err := s.openAside()
	if err != nil {
		return err
	}
	return errors.Join(db.QueryRowContext(ctx, query).Scan(value), db.Close())
}

// checkIntegrity returns what SQLite's check finds first; nothing if the file is
// sound. Like readAside, it uses a connection of its own.
func (s *store) checkIntegrity(ctx context.Context) (findings []string, err error) {
	db, err := s.openAside()
	if err != nil {
		return nil, err
	}
	findings, err = checkIntegrity(ctx, db, 1)
	return findings, errors.Join(err, db.Close())
}

// checkIntegrity runs SQLite's own check, which reads the whole file, and
// returns its findings, a line each; none if the file is sound. It stops after
// about as many faults as most. That SQLite gave up is a finding too.
func checkIntegrity(ctx context.Context, db *sql.DB, most int) (findings []string, err error) {
	findings, err = collect(ctx, db, fmt.Sprintf(`PRAGMA integrity_check(%d)`, most))
	findings = slices.DeleteFunc(findings, func(line string) bool { // what is not a finding
		return line == "ok" || strings.HasPrefix(line, "*** in database")
	})
	if isDamaged(err) {
		findings, err = append(findings, err.Error()), nil
	}
	return findings, err
}

// unknownHashes counts the users whose password hash is unknown. Like readAside,
// it uses a connection of its own.
func (s *store) unknownHashes(ctx context.Context) (n int, err error) {
	db, err := s.openAside()
	if err != nil {
		return 0, err
	}
	err = eachUnknownHash(ctx, db, func(int64) (more bool) { n++; return true })
	return n, errors.Join(err, db.Close())
}

// eachUnknownHash calls f with the id of each user whose password hash passhash
// does not know, until f returns false. It reads the whole table.
func eachUnknownHash(ctx context.Context, db *sql.DB, f func(id int64) (more bool)) error {
	rows, err := db.QueryContext(ctx, `SELECT id, coalesce(password_hash, '') FROM user ORDER BY id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var hash string
		if err := rows.Scan(&id, &hash); err != nil {
			return err
		}
		if !passhash.Known(hash) && !f(id) {
			break
		}
	}
	return rows.Err()
}

// mostFindings is how many lines each rule of a check can add, before moreFindings.
const mostFindings, moreFindings = 100, "… and more like this"

// rules find what this program never writes, a line each.
var rules = []string{
	`SELECT 'the counter of user ids is missing' WHERE NOT EXISTS (SELECT 1 FROM counter)`,
	`SELECT 'the counter of user ids is at ' || user_id || ', but user ' || (SELECT max(id) FROM user) || ' exists'
	FROM counter WHERE user_id < (SELECT max(id) FROM user)`,
	`SELECT 'user ' || id || ' has the unknown role ' || quote(role) FROM user WHERE role NOT IN ('member', 'admin')`,
	`SELECT 'user ' || id || ' has ' || quote(disabled) || ' instead of 0 or 1 in disabled' FROM user WHERE disabled NOT IN (0, 1)`,
	`SELECT 'session ' || id || ' belongs to user ' || user_id || ', which does not exist' FROM session WHERE user_id NOT IN (SELECT id FROM user)`,
	`SELECT 'signing key ' || kid || ' has ' || length(secret) || ' bytes instead of at least 32' FROM signing_key WHERE length(secret) < 32`,
}

// An examination is the result of one check.
type examination struct {
	findings                      []string
	users, sessions, admins, keys int
}

// examine checks a database by SQLite's rules and by userd's. If the file is
// quiet (see openToRead), the result is valid only if it is still quiet afterwards.
func examine(ctx context.Context, path string) (x examination, quiet bool, err error) {
	db, quiet, err := openToRead(path)
	if err != nil {
		return x, quiet, err
	}
	defer db.Close()
	x.findings, err = checkIntegrity(ctx, db, mostFindings)
	if err == nil {
		err = x.missing(ctx, db)
	}
	for _, rule := range rules {
		if err == nil {
			var found []string
			found, err = collect(ctx, db, rule)
			x.findings = append(x.findings, found...)
		}
	}
	if err == nil {
		err = x.unknownHashes(ctx, db)
	}
	if err == nil {
		err = db.QueryRowContext(ctx, `
			SELECT
				(SELECT count(*) FROM user),
				(SELECT count(*) FROM session),
				(SELECT count(*) FROM user WHERE role = 'admin' AND disabled = 0),
				(SELECT count(*) FROM signing_key WHERE retired_at = 0)`).Scan(&x.users, &x.sessions, &x.admins, &x.keys)
	}
	if isDamaged(err) {
		if !slices.Contains(x.findings, err.Error()) { // checkIntegrity may have found it
			x.findings = append(x.findings, err.Error())
		}
		err = nil
	}
	return x, quiet, err
}

// collect returns the lines of a rule or of SQLite's check, of mostFindings rows
// at most. With an error it returns the lines before the error.
func collect(ctx context.Context, db *sql.DB, query string) (findings []string, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for n := 0; rows.Next(); n++ {
		var text string
		if err := rows.Scan(&text); err != nil {
			return findings, err
		}
		if n == mostFindings {
			findings = append(findings, moreFindings)
			break
		}
		findings = append(findings, strings.Split(text, "\n")...)
	}
	return findings, rows.Err()
}

// unknownHashes adds a line for each user whose password hash is unknown.
func (x *examination) unknownHashes(ctx context.Context, db *sql.DB) error {
	n := 0
	return eachUnknownHash(ctx, db, func(id int64) (more bool) {
		if n++; n > mostFindings {
			x.findings = append(x.findings, moreFindings)
			return false
		}
		x.findings = append(x.findings, fmt.Sprintf("user %d cannot log in: the format of the password hash is unknown", id))
		return true
	})
}

// missing adds what the migrations create and the database lacks.
func (x *examination) missing(ctx context.Context, db *sql.DB) error {
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	model, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return err
	}
	defer model.Close()
	model.SetMaxOpenConns(1) // a second would be another database
	for _, script := range migrations[:version] {
		if _, err := model.ExecContext(ctx, script); err != nil {
			return err
		}
	}
	want, err := parts(ctx, model)
	if err != nil {
		return err
	}
	got, err := parts(ctx, db)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch text, ok := got[name]; {
		case !ok:
			x.findings = append(x.findings, name+" is missing")
		case text != want[name]:
			x.findings = append(x.findings, name+" is not userd's: "+text)
		}
	}
	return nil
}

// parts returns the tables, columns and indexes of a database; an index with its
// text, since a table's text may be that of the Flask app.
func parts(ctx context.Context, db *sql.DB) (map[string]string, error) {
	rows, err := db.QueryContext(ctx, `
		SELECT type || ' ' || name, iif(type = 'index', coalesce(sql, ''), '') FROM sqlite_schema
		UNION ALL
		SELECT 'column ' || c.name || ' of table ' || t.name, '' FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make(map[string]string)
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return nil, err
		}
		found[name] = text
	}
	return found, rows.Err()
}
