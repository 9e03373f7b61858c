package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"userd/internal/passhash"
	"userd/internal/safefile"
)

// A callerKind says how userd knows a caller.
type callerKind string

const (
	consoleCaller  callerKind = "console"  // a command, which can open the database file
	strangerCaller callerKind = "stranger" // a client without a token, which may only add a member
	sessionCaller  callerKind = "session"  // a user with an access token
)

// A caller asks for a write. The write's own SQL checks the caller's rights when
// it runs, because they may have changed since the request came in. The zero
// caller may do nothing.
type caller struct {
	kind    callerKind
	user    int64  // 0: none
	session int64  // of the user; 0: none
	address string // only for the event
}

// console is the command line.
var console = caller{kind: consoleCaller, address: "console"}

// with returns a copy of the values with @caller and @session for mayChange.
func (c caller) with(values args) args {
	values = maps.Clone(values)
	values["caller"], values["session"] = string(c.kind), c.session
	return values
}

// A store is the database file and every statement that runs on it. A small pool
// of connections reads; one goroutine writes (write.go). An error is one of the
// named sentinels, the context's error, or a storageError.
type store struct {
	path      string
	readers   *sql.DB
	readerDSN string
	reads     prepared
	files     map[string]fs.FileInfo // the open files, by the paths that they had
	*writer
}

// readerCount is the size of the read pool. Measured on two cores: with one
// reader the throughput is half, with eight little more, and each costs 3 MB.
const readerCount = 4

// openStore opens the database at path and upgrades its schema. If the file does
// not exist, openStore creates it with mode 0600. The caller has inspected it.
func openStore(ctx context.Context, path string) (*store, error) {
	// Nothing else in the process may open the file later: closing a descriptor of
	// it drops SQLite's locks.
	if err := prepareFiles(path); err != nil {
		return nil, err
	}
	created, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	w, err := openWriter(path)
	if err != nil {
		return nil, err
	}
	readerDSN := dsn(path, "mode=rw", "_query_only=1", "_busy_timeout=5000")
	if err = refuseHooks(ctx, w.conn); err == nil { // a migration could run a trigger
		err = migrate(ctx, w.conn, migrations)
	}
	var files map[string]fs.FileInfo
	if err == nil {
		files, err = statFiles(path, created)
	}
	var readers *sql.DB
	if err == nil {
		readers, err = sql.Open("sqlite", readerDSN)
	}
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
		files:     files,
		writer:    w,
	}, nil
}

// checkWritable returns the path without symbolic links. It returns an error that names
// the missing right if the process may not write to the file or, if SQLite must make the
// -wal and -shm, to its directory. It runs before SQLite leaves something there.
func checkWritable(path string) (target string, err error) {
	if target, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	for _, name := range []string{target, target + "-wal", target + "-shm"} {
		err := safefile.CheckWritable(name)
		if errors.Is(err, fs.ErrNotExist) {
			err = safefile.CheckWritable(filepath.Dir(target))
		}
		if err != nil {
			return "", fmt.Errorf("userd must be able to write to the database and its directory: %w", err)
		}
	}
	return target, nil
}

// prepareFiles creates the database with mode 0600 if it does not exist, because SQLite
// would use 0644, and takes the rights of others to an existing one. The -wal and -shm
// files get the mode of the file.
func prepareFiles(path string) error {
	if err := safefile.CreateIfMissing(path); err != nil {
		return err
	}
	target, err := checkWritable(path)
	for _, name := range []string{target, target + "-wal"} {
		if err == nil {
			err = safefile.MakePrivate(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// statFiles returns the files of an open database, whose WAL exists, by their paths.
// created is what had the path before it was opened.
func statFiles(path string, created fs.FileInfo) (map[string]fs.FileInfo, error) {
	target, err := filepath.EvalSymlinks(path) // SQLite puts the -wal next to a link's target
	if err != nil {
		return nil, err
	}
	files := make(map[string]fs.FileInfo)
	for _, name := range []string{path, target + "-wal", target + "-shm"} {
		if files[name], err = os.Stat(name); err != nil {
			return nil, err
		}
	}
	if !os.SameFile(files[path], created) {
		return nil, errors.New("another file took its place while it was being opened")
	}
	return files, nil
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

// close waits for the queued writes and closes the file. The write connection is
// the last to close, because only it can checkpoint the WAL.
func (s *store) close() error {
	s.stop()
	return errors.Join(s.readers.Close(), s.writer.close())
}

// probe checks that the database can be written and read. It returns errStorage,
// or the context's error if the write has not begun in time. Its commit is synced
// but changes no value. SQLite would skip an update that leaves the row as it is,
// so this one sets the row's id. The write comes first: it invalidates the
// readers' caches, so that the read goes to the disk too.
func (s *store) probe(ctx context.Context) error {
	err := s.write(ctx, statement{query: `UPDATE counter SET id = id`, ifNone: errStorage})
	if err != nil {
		return err
	}
	var id int64
	return s.read(`SELECT user_id FROM counter`, errStorage, []any{&id})
}

// count returns the number of users and of sessions. It reads a whole index of
// each table.
func (s *store) count(ctx context.Context) (users, sessions int64, err error) {
	err = s.aside(func(db *sql.DB) error {
		const query = `SELECT (SELECT count(*) FROM user), (SELECT count(*) FROM session)`
		return db.QueryRowContext(ctx, query).Scan(&users, &sessions)
	})
	return users, sessions, err
}

// size returns the bytes of the database file and of its WAL. It asks by name:
// closing a descriptor of them would drop SQLite's locks.
func (s *store) size() (file, log int64, err error) {
	info, err := os.Stat(s.path)
	wal, walErr := os.Stat(s.path + "-wal")
	if err := cmp.Or(err, walErr); err != nil {
		return 0, 0, err
	}
	return info.Size(), wal.Size(), nil
}

// read scans the only row of a query into dest, or returns ifNone, which may be nil.
// It accepts no context: a lookup takes microseconds, and to make it cancellable
// costs a goroutine in the driver.
func (s *store) read(query string, ifNone error, dest []any, args ...any) error {
	stmt, err := s.reads.get(query)
	if err == nil {
		err = stmt.QueryRow(args...).Scan(dest...)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return ifNone
	}
	if err != nil {
		return &storageError{"reading", err}
	}
	return nil
}

// eachRow calls f after scanning each row of a query into dest.
func (s *store) eachRow(ctx context.Context, query string, dest []any, f func(), args ...any) error {
	stmt, err := s.reads.get(query)
	if err != nil {
		return &storageError{"reading", err}
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err == nil {
		err = scanRows(rows, dest, f)
	}
	if err != nil {
		return &storageError{"reading", err}
	}
	return nil
}

// aside runs f on a new connection, so that no request waits for a query that
// reads a lot. Its cache is small: such a query reads each page only once, and
// SQLite's allocator would not return the memory.
func (s *store) aside(f func(db *sql.DB) error) error {
	db, err := sql.Open("sqlite", s.readerDSN+"&_pragma=cache_size(-256)") // KiB
	if err != nil {
		return err
	}
	return errors.Join(f(db), db.Close())
}

// checkIntegrity returns the first finding of SQLite's check, or nothing if the
// file is sound.
func (s *store) checkIntegrity(ctx context.Context) (findings []string, err error) {
	err = s.aside(func(db *sql.DB) (err error) {
		findings, err = checkIntegrity(ctx, db, 1)
		return err
	})
	return findings, err
}

// checkIntegrity runs SQLite's check, which reads the whole file, and returns its
// findings, or nothing if the file is sound. It stops after about most faults. An
// error that says that the file is damaged is a finding too.
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

// unknownHashes counts the users whose password hash has an unknown format.
func (s *store) unknownHashes(ctx context.Context) (n int, err error) {
	err = s.aside(func(db *sql.DB) error {
		return eachUnknownHash(ctx, db, func(int64) { n++ })
	})
	return n, err
}

// eachUnknownHash calls f with the id of each user whose password hash is not text or
// has a format that passhash does not know. It reads the whole table.
func eachUnknownHash(ctx context.Context, db *sql.DB, f func(id int64)) error {
	var id int64
	var hash string
	return scanQuery(ctx, db, `SELECT id, iif(typeof(password_hash) = 'text', password_hash, '') FROM user ORDER BY id`, []any{&id, &hash}, func() {
		if !passhash.Known(hash) {
			f(id)
		}
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
// quiet (see isQuiet), the result is only valid if it is still quiet afterwards.
func examine(ctx context.Context, path string) (x examination, quiet bool, err error) {
	db, quiet, err := openToRead(path)
	if err != nil {
		return x, quiet, err
	}
	defer db.Close()
	if err = x.run(ctx, db); isDamaged(err) {
		if !slices.Contains(x.findings, err.Error()) { // checkIntegrity may have found it
			x.findings = append(x.findings, err.Error())
		}
		err = nil
	}
	return x, quiet, err
}

func (x *examination) run(ctx context.Context, db *sql.DB) (err error) {
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
	n := 0
	err = eachUnknownHash(ctx, db, func(id int64) {
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

// collect returns the lines of a query's first mostFindings rows. With an error, it
// returns the lines before the error.
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

// compareSchema adds what the migrations create and the database lacks, and the values
// that have another type than the migrations give their column.
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
			x.findings = append(x.findings, name+" is not userd's: "+text)
		}
	}
	if !complete { // a query of what is missing would fail
		return nil
	}
	return x.checkTypes(ctx, model, db)
}

// checkTypes adds the rows with a value of another type than its column has in model:
// SQLite stores values of every type in a column. One query reads each table once.
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
