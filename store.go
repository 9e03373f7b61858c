package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A role says what a user may do to others. Anything but these two, and so
// also a role that is missing, may do nothing.
type role string

const (
	member role = "member" // itself alone
	admin  role = "admin"  // anyone
)

// A user is one row of the table user, without the password's hash.
type user struct {
	id          int64
	username    string
	email       string
	role        role
	disabled    bool
	createdAt   int64 // Unix seconds, as all times here
	updatedAt   int64
	lastLoginAt int64 // 0: never
	version     int64 // counts the changes a client can see; the ETag
}

// userColumns and (*user).Scan are the one list of a user's columns, in step. A
// row comes as one text, because the driver's work for each column of a result
// (its name, its declared type, a lock, a value on the heap) costs more than
// reading all nine off a text.
const userColumns = `
	json_array(
		user.id,
		user.username,
		user.email,
		user.role,
		user.disabled,
		user.created_at,
		user.updated_at,
		user.last_login_at,
		user.version
	)`

// Scan is for database/sql: it reads a row of userColumns.
func (u *user) Scan(row any) error {
	text, _ := row.(string)
	a := jsonArray{rest: text}
	u.id = a.integer()
	u.username = a.text()
	u.email = a.text()
	u.role = role(a.text())
	u.disabled = a.integer() != 0
	u.createdAt = a.integer()
	u.updatedAt = a.integer()
	u.lastLoginAt = a.integer()
	u.version = a.integer()
	return a.err
}

// columns returns where a row of userColumns, and then more, is to be scanned.
func (u *user) columns(more ...any) []any { return append([]any{u}, more...) }

// A jsonArray is what is left of an array that SQLite's json_array made, without
// white space.
type jsonArray struct {
	rest string
	err  error // the first
}

// next takes the next element off; it is empty where there is none.
func (a *jsonArray) next() string {
	if a.rest == "" {
		return ""
	}
	rest, end, quoted := a.rest[1:], 0, false // after [ or ,
	for ; end < len(rest); end++ {
		if c := rest[end]; c == '\\' {
			end++
		} else if c == '"' {
			quoted = !quoted
		} else if (c == ',' || c == ']') && !quoted {
			break
		}
	}
	end = min(end, len(rest))
	a.rest = rest[end:]
	return rest[:end]
}

func (a *jsonArray) integer() int64 {
	n, err := strconv.ParseInt(a.next(), 10, 64)
	if err != nil && a.err == nil {
		a.err = err
	}
	return n
}

func (a *jsonArray) text() (s string) {
	element := a.next()
	if n := len(element); n >= 2 && element[0] == '"' && strings.IndexByte(element, '\\') < 0 {
		return element[1 : n-1]
	}
	if err := json.Unmarshal([]byte(element), &s); err != nil && a.err == nil {
		a.err = err
	}
	return s
}

// A caller says who asks for a write, and from where. The write's own SQL checks
// the rights of the session's user at the instant it runs; the rest is for the
// event. The zero caller may do nothing.
type caller struct {
	session int64 // that it was asked in, or one of the below
	user    int64 // of the session
	address string
}

var (
	// console is whoever can open the database file: the command line.
	console = caller{session: -1, address: "console"}
	// stranger is whoever registers; it may add a member, and nothing else.
	stranger = caller{session: -2}
)

// from returns the caller with the address of a client.
func (by caller) from(address string) caller {
	by.address = address
	return by
}

// applicationID marks a database as userd's in its header ("user" in ASCII).
const applicationID = 0x75736572

// migrations take an empty database to the schema this program knows, one
// transaction each; PRAGMA user_version counts those done. They only ever add
// tables, indexes, and columns with constant defaults: rebuilding a table would
// empty others that cascade from it.
var migrations = []string{tutorialTable + addColumns + restOfSchema, eventTables}

// The first migration in three parts: a database of the Flask tutorial has the
// first of them already (adopt.go).
const (
	tutorialTable = `
	CREATE TABLE user (
		id            INTEGER NOT NULL PRIMARY KEY,
		username      VARCHAR(80) NOT NULL,
		email         VARCHAR(120) NOT NULL,
		password_hash VARCHAR(128) NOT NULL
	);`

	addColumns = `
	ALTER TABLE user ADD COLUMN role          TEXT NOT NULL DEFAULT 'member';
	ALTER TABLE user ADD COLUMN disabled      INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE user ADD COLUMN created_at    INTEGER NOT NULL DEFAULT 0; -- 0: not known
	ALTER TABLE user ADD COLUMN updated_at    INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE user ADD COLUMN last_login_at INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE user ADD COLUMN version       INTEGER NOT NULL DEFAULT 1;`

	restOfSchema = `
	CREATE UNIQUE INDEX user_username ON user (username COLLATE NOCASE);
	CREATE UNIQUE INDEX user_email ON user (email COLLATE NOCASE);
	-- Few rows each: they make "is there another active admin?" and the admins' filters one step.
	CREATE INDEX user_admin ON user (id) WHERE role = 'admin';
	CREATE INDEX user_disabled ON user (id) WHERE disabled = 1;

	-- The last user id given out. SQLite would give the id of a deleted last user
	-- again, and an old token would then speak for somebody new.
	CREATE TABLE counter (
		id      INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
		user_id INTEGER NOT NULL
	);
	INSERT INTO counter (id, user_id) SELECT 1, coalesce(max(id), 0) FROM user;

	-- One login each; its id is the sid of its tokens.
	CREATE TABLE session (
		id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		user_id      INTEGER NOT NULL,
		created_at   INTEGER NOT NULL,
		last_used_at INTEGER NOT NULL,
		expires_at   INTEGER NOT NULL,
		address      TEXT NOT NULL,
		user_agent   TEXT NOT NULL,
		-- The live refresh token: how many came before it, the SHA-256 of its
		-- secret, and since when it is live.
		generation   INTEGER NOT NULL DEFAULT 0,
		refresh_hash BLOB NOT NULL DEFAULT x'',
		rotated_at   INTEGER NOT NULL DEFAULT 0
	);
	CREATE INDEX session_user ON session (user_id);

	-- The keys that sign access tokens where JWT_SECRET_KEY is not set; the newest
	-- signs. A retired one is good for token_ttl more seconds, the longest that a
	-- token it signed can have.
	CREATE TABLE signing_key (
		id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		kid        TEXT NOT NULL UNIQUE,
		secret     BLOB NOT NULL,
		created_at INTEGER NOT NULL,
		retired_at INTEGER NOT NULL DEFAULT 0,
		token_ttl  INTEGER NOT NULL DEFAULT 0
	);

	-- Keys that never leave this file, by their use.
	CREATE TABLE secret (
		name  TEXT NOT NULL PRIMARY KEY,
		value BLOB NOT NULL
	) WITHOUT ROWID;`
)

// maxID is the highest id that an import or an adopted database may bring: above
// it, JSON's numbers are not exact everywhere, and the counter could run out.
const maxID = 1<<53 - 1

// maxSessions is how many sessions a user can have; past it the oldest ends.
const maxSessions = 100

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
	// Made here because SQLite would make it 0644; the -wal and -shm files take
	// their mode from it. Nothing else in the process may open the file once
	// SQLite has: closing any descriptor of it drops SQLite's locks.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Close()
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
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

// dsn names the database file to the driver. Pragmas stand in it because one
// run by Exec would reach one connection of the pool.
func dsn(path string, params ...string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") { // C:/…
		path = "/" + path
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: strings.Join(params, "&")}
	return u.String()
}

// A fileKind is what inspect finds at a path.
type fileKind int

const (
	kindNone     fileKind = iota // no file, or an empty one
	kindUserd                    // userd's own
	kindTutorial                 // of the Flask tutorial, to be adopted
)

// inspect looks at the file at path without changing it, and returns an error
// where userd must not open it.
func inspect(ctx context.Context, path string) (fileKind, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		// Flask-SQLAlchemy 3 puts what DATABASE_URL calls app.db under instance/.
		// An empty database made beside it would look as if all users were gone.
		instance := filepath.Join(filepath.Dir(path), "instance", filepath.Base(path))
		if _, err := os.Stat(instance); err == nil {
			return 0, fmt.Errorf("there is no database %s, but there is %s: set DATABASE_URL=sqlite:///%s", path, instance, instance)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Dir(path))
		return kindNone, err
	}
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a file", path)
	}
	if info.Size() == 0 {
		return kindNone, nil
	}
	if info.Size() < 100 { // SQLite's header; it takes a file of one byte for an empty one
		return 0, fmt.Errorf("%s is not a database", path)
	}
	db, _, err := openToRead(path)
	if err != nil {
		return 0, err
	}
	defer func() { db.Close() }()

	const about = `
		SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id AS a, pragma_user_version AS v`
	var owner, version, tables int
	err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	if isUnfinished(err) {
		// Somebody was killed in the middle of a transaction, and its rollback
		// journal stands beside the file: SQLite must first take it back.
		db.Close()
		if db, err = sql.Open("sqlite", dsn(path, "mode=rw", "_busy_timeout=5000")); err != nil {
			return 0, err
		}
		err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	}
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", path, err)
	}
	switch {
	case owner == 0 && version == 0 && tables == 0:
		return kindNone, nil
	case owner == 0 && version == 0:
		if err := checkTutorial(ctx, db, path); err != nil {
			return 0, err
		}
		return kindTutorial, nil
	case owner != applicationID:
		return 0, fmt.Errorf("%s is another program's database", path)
	case version > len(migrations):
		return 0, fmt.Errorf("%s has schema %d, and this userd knows only up to %d: use a newer userd", path, version, len(migrations))
	}
	// The first page of each table, so that gross damage is found before anybody is served.
	firstPages := []string{"user", "counter", "session", "signing_key", "secret"}
	if version > 1 {
		firstPages = append(firstPages, "event", "seal")
	}
	for _, table := range firstPages {
		rows, err := db.QueryContext(ctx, "SELECT * FROM "+table+" LIMIT 1")
		if err == nil {
			for rows.Next() {
			}
			err = errors.Join(rows.Err(), rows.Close())
		}
		if err != nil {
			return 0, fmt.Errorf("reading %s: table %s: %w", path, table, err)
		}
	}
	return kindUserd, nil
}

// openToRead opens a database without changing it. What is read of a quiet one
// holds only while it stays quiet.
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

// isQuiet reports whether the database is in WAL mode and nobody has it open.
// Read like any other, it would get a -wal and a -shm file beside it, which
// stay; read as one that nobody changes, it does not.
func isQuiet(path string) (bool, error) {
	// SQLite puts the -wal beside the file that a link leads to.
	path, err := filepath.EvalSymlinks(path)
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
	defer f.Close() // drops the locks that this process has on the file: none, without a -wal
	versions := make([]byte, 2)
	if _, err := f.ReadAt(versions, 18); err != nil && err != io.EOF { // https://www.sqlite.org/fileformat.html#file_format_version_numbers
		return false, err
	}
	return versions[0] == 2 && versions[1] == 2, nil
}

// migrate runs the migrations that the database has not seen.
func migrate(ctx context.Context, conn *sql.Conn) error {
	for {
		done, err := migrateOnce(ctx, conn)
		if err != nil {
			return fmt.Errorf("upgrading the database: %w", err)
		}
		if done {
			return nil
		}
	}
}

// migrateOnce runs one migration. The version is read under the write lock:
// another process may be opening the same new file.
func migrateOnce(ctx context.Context, conn *sql.Conn) (done bool, err error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return false, err
	}
	if version >= len(migrations) {
		return true, nil
	}
	script := migrations[version] + fmt.Sprintf("; PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, version+1)
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return false, fmt.Errorf("migration %d: %w", version+1, err)
	}
	return false, tx.Commit()
}

// unknownHashes counts the users whose password hash is in no form that
// parseHash knows, by its beginning. It reads the whole table.
func (s *store) unknownHashes(ctx context.Context) (n int, err error) {
	err = s.readAside(ctx, &n, `SELECT count(*) FROM user WHERE `+hashIsUnknown)
	return n, err
}

const hashIsUnknown = `NOT (
	password_hash GLOB '$argon2i*' OR password_hash GLOB '$scrypt$*' OR password_hash GLOB '$2[aby]$*'
	OR password_hash GLOB 'scrypt:*' OR password_hash GLOB 'pbkdf2:*' OR password_hash GLOB 'pbkdf2_sha256$*')`

// checkIntegrity runs SQLite's full check and returns what it found first, or
// "ok". It reads the whole file.
func (s *store) checkIntegrity(ctx context.Context) (found string, err error) {
	err = s.readAside(ctx, &found, "PRAGMA integrity_check(1)")
	return found, err
}

// readAside scans the one value of a query that reads very much. It runs on a
// connection of its own, so that no request waits for it, and with few pages in
// memory: reading each once, it gains nothing from more, and SQLite's allocator
// would not give them back.
func (s *store) readAside(ctx context.Context, value any, query string) error {
	db, err := sql.Open("sqlite", s.readerDSN+"&_pragma=cache_size(-256)") // KiB
	if err != nil {
		return err
	}
	return errors.Join(db.QueryRowContext(ctx, query).Scan(value), db.Close())
}

// probe tells whether the database can be read and written: errStorage where
// it cannot, the context's error where it has not begun to write in time. The
// write is committed and synced like any other, and changes nothing: of a row
// that is set to what it holds SQLite would write nothing, so this one is moved
// to where it stands. It goes first, because what the readers have cached is
// then old, and they go to the disk too.
func (s *store) probe(ctx context.Context) error {
	err := s.write(ctx, statement{query: `UPDATE counter SET id = id`, none: errStorage})
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

// prepared keeps a prepared statement for each query text, made at first use.
// The texts are constants of this package, so it stays small.
type prepared struct {
	by interface {
		PrepareContext(context.Context, string) (*sql.Stmt, error)
	}
	mu    sync.RWMutex
	stmts map[string]*sql.Stmt
}

func (p *prepared) get(query string) (*sql.Stmt, error) {
	p.mu.RLock()
	stmt := p.stmts[query]
	p.mu.RUnlock()
	if stmt != nil {
		return stmt, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if stmt := p.stmts[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := p.by.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	if p.stmts == nil {
		p.stmts = make(map[string]*sql.Stmt)
	}
	p.stmts[query] = stmt
	return stmt, nil
}

func (p *prepared) close() error {
	var errs []error
	for _, stmt := range p.stmts {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(errs...)
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
	return fmt.Errorf("%w: reading: %w", errStorage, err)
}

// eachRow calls f after scanning each row of a query into dest.
func (s *store) eachRow(ctx context.Context, query string, dest []any, f func(), args ...any) error {
	stmt, err := s.reads.get(query)
	if err != nil {
		return fmt.Errorf("%w: reading: %w", errStorage, err)
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return fmt.Errorf("%w: reading: %w", errStorage, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return fmt.Errorf("%w: reading a row: %w", errStorage, err)
		}
		f()
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%w: reading: %w", errStorage, err)
	}
	return nil
}

// user returns the user with this id, or errUserNotFound.
func (s *store) user(id int64) (u user, err error) {
	err = s.read(`SELECT`+userColumns+` FROM user WHERE id = ?`, errUserNotFound, u.columns(), id)
	return u, err
}

// userByLogin returns the user whose username, or else whose e-mail address,
// is login in any case, with the password's hash; or errUserNotFound. The
// username goes first because an adopted one may equal another's address.
func (s *store) userByLogin(login string) (u user, hash string, err error) {
	var rank int
	err = s.read(`
		SELECT`+userColumns+`, user.password_hash, 0 AS rank FROM user WHERE username = ?1 COLLATE NOCASE
		UNION ALL
		SELECT`+userColumns+`, user.password_hash, 1 AS rank FROM user WHERE email = ?1 COLLATE NOCASE
		ORDER BY rank LIMIT 1`, errUserNotFound, u.columns(&hash, &rank), login)
	return u, hash, err
}

// passwordHash returns the hash of a user's password, or errUserNotFound.
func (s *store) passwordHash(id int64) (hash string, err error) {
	err = s.read(`SELECT password_hash FROM user WHERE id = ?`, errUserNotFound, []any{&hash}, id)
	return hash, err
}

// taken returns errUsernameTaken or errEmailTaken where a user other than
// except has one of them already, in any case; else nil.
func (s *store) taken(username, email string, except int64) error {
	var name, address bool
	err := s.read(`
		SELECT EXISTS (SELECT 1 FROM user WHERE username = ?1 COLLATE NOCASE AND id <> ?3),
		       EXISTS (SELECT 1 FROM user WHERE email = ?2 COLLATE NOCASE AND id <> ?3)`,
		errStorage, []any{&name, &address}, username, email, except)
	switch {
	case err != nil:
		return err
	case name:
		return errUsernameTaken
	case address:
		return errEmailTaken
	}
	return nil
}

// whichTaken explains a failed UNIQUE constraint; other errors pass as they are.
func (s *store) whichTaken(err error, username, email string, except int64) error {
	if !errors.Is(err, errDuplicate) {
		return err
	}
	if taken := s.taken(username, email, except); taken != nil {
		return taken
	}
	return fmt.Errorf("%w: a name in the way has just gone", errStorage)
}

// A filter narrows a list of users. Its zero value lets every user through.
type filter struct {
	role     role  // empty: any
	disabled *bool // nil: either
}

// users calls f for at most limit users with ids above after, in id order.
// The user f is given is reused for the next row.
func (s *store) users(ctx context.Context, after int64, limit int, only filter, f func(*user)) error {
	var u user
	var disabled any
	if only.disabled != nil {
		disabled = *only.disabled
	}
	const (
		from  = `SELECT` + userColumns + ` FROM user WHERE `
		page  = `id > ?1 ORDER BY id LIMIT ?2`
		match = `(?3 = '' OR role = ?3) AND (?4 IS NULL OR disabled = ?4) AND ` + page
	)
	// SQLite uses a partial index only where the query repeats its condition.
	query := from + match
	switch {
	case only.role == "" && only.disabled == nil:
		return s.eachRow(ctx, from+page, u.columns(), func() { f(&u) }, after, limit)
	case only.role == admin:
		query = from + `role = 'admin' AND ` + match
	case only.disabled != nil && *only.disabled:
		query = from + `disabled = 1 AND ` + match
	}
	return s.eachRow(ctx, query, u.columns(), func() { f(&u) }, after, limit, only.role, disabled)
}

// export calls f with each user and its password's hash, in id order, all as of
// one moment.
func (s *store) export(ctx context.Context, f func(u *user, hash string)) error {
	var u user
	var hash string
	return s.eachRow(ctx, `SELECT`+userColumns+`, user.password_hash FROM user ORDER BY id`,
		u.columns(&hash), func() { f(&u, hash) })
}

// search calls f, in name order, for at most limit users whose username, or
// where byEmail is true whose e-mail address, begins with prefix in any case.
// It reads at most limit entries of each of two indexes, whatever the prefix.
func (s *store) search(ctx context.Context, prefix string, byEmail bool, limit int, f func(*user)) error {
	var u user
	// Every string with the prefix sorts below the prefix and the last code point.
	const byName = `SELECT id FROM user INDEXED BY user_username
		WHERE username >= ?1 COLLATE NOCASE AND username < ?1 || char(0x10FFFF) COLLATE NOCASE
		ORDER BY username COLLATE NOCASE LIMIT ?2`
	const byAddress = `SELECT id FROM user INDEXED BY user_email
		WHERE email >= ?1 COLLATE NOCASE AND email < ?1 || char(0x10FFFF) COLLATE NOCASE
		ORDER BY email COLLATE NOCASE LIMIT ?2`
	query := `SELECT` + userColumns + ` FROM user WHERE id IN (SELECT id FROM (` + byName + `)`
	if byEmail {
		query += ` UNION SELECT id FROM (` + byAddress + `)`
	}
	query += `) ORDER BY username COLLATE NOCASE LIMIT ?2`
	return s.eachRow(ctx, query, u.columns(), func() { f(&u) }, prefix, limit)
}

// addUser adds a user for by and gives it its id; u's id, times and version are
// set here. It returns errSessionEnded, errForbidden, errUsernameTaken or
// errEmailTaken.
func (s *store) addUser(ctx context.Context, by caller, u *user, hash string, now int64) error {
	created := ""
	if u.role == admin {
		created = "role=admin"
	}
	err := s.write(ctx,
		statement{
			// The Flask app, where somebody went back to it for a while, moved no counter.
			query: `
				INSERT INTO user (id, username, email, password_hash, role, disabled, created_at, updated_at)
				SELECT 1 + max(user_id, (SELECT coalesce(max(id), 0) FROM user)), ?3, ?4, ?5, ?6, ?7, ?8, ?8 FROM counter
				WHERE ?2 = -2 AND ?6 = 'member' OR ` + mayChange + `
				RETURNING` + userColumns,
			args: []any{nil, by.session, u.username, u.email, hash, u.role, u.disabled, now},
			into: u.columns(),
			none: errNotApplied,
		},
		statement{query: `UPDATE counter SET user_id = (SELECT max(id) FROM user)`},
		event{at: now, kind: userCreated, userID: justMade, changes: created}.by(by))
	if errors.Is(err, errNotApplied) {
		if err := s.mayNot(by, 0); err != nil {
			return err
		}
		return errForbidden
	}
	return s.whichTaken(err, u.username, u.email, 0)
}

// mayChange is the condition of every change of a user, checked as it runs: ?1
// is the user, ?2 the caller. What was allowed when a request came in may not
// be any more when it has waited for its turn.
const mayChange = `(?2 = -1 OR EXISTS (
	SELECT 1 FROM session JOIN user AS asker ON asker.id = session.user_id
	WHERE session.id = ?2 AND asker.disabled = 0 AND (asker.id = ?1 OR asker.role = 'admin')))`

// otherAdmin says that an active admin other than the row at hand exists.
const otherAdmin = `EXISTS (
	SELECT 1 FROM user AS other WHERE other.role = 'admin' AND other.disabled = 0 AND other.id <> user.id)`

// A change holds new values of a user's columns; nil leaves one as it is.
type change struct {
	username *string
	email    *string
	hash     *string
	role     *role
	disabled *bool
}

// names tells what a change sets, and to what where that names nobody and is no secret.
func (c *change) names() string {
	var names []string
	if c.username != nil {
		names = append(names, "username")
	}
	if c.email != nil {
		names = append(names, "email")
	}
	if c.hash != nil {
		names = append(names, "password")
	}
	if c.role != nil {
		names = append(names, "role="+string(*c.role))
	}
	if c.disabled != nil {
		names = append(names, "disabled="+strconv.FormatBool(*c.disabled))
	}
	return strings.Join(names, ",")
}

// updateUser makes the change for by and returns the user as it now is. Where
// version is not 0 the user must still have that version. A new password ends
// the user's sessions, but not the one that asked; disabling ends them all.
// It returns errSessionEnded, errForbidden, errUserNotFound, errVersion,
// errLastAdmin, errUsernameTaken or errEmailTaken.
func (s *store) updateUser(ctx context.Context, by caller, id int64, c change, version, now int64) (u user, err error) {
	statements := []statement{{
		query: `
			UPDATE user SET
				username = coalesce(?3, username),
				email = coalesce(?4, email),
				password_hash = coalesce(?5, password_hash),
				role = coalesce(?6, role),
				disabled = coalesce(?7, disabled),
				updated_at = ?8,
				version = version + 1
			WHERE id = ?1
				AND (?9 = 0 OR version = ?9)
				AND ` + mayChange + `
				AND (role <> 'admin' OR disabled <> 0
					OR (coalesce(?6, role) = 'admin' AND coalesce(?7, disabled) = 0)
					OR ` + otherAdmin + `)
			RETURNING` + userColumns,
		args: []any{id, by.session, c.username, c.email, c.hash, c.role, c.disabled, now, version},
		into: u.columns(),
		none: errNotApplied,
	}}
	if c.disabled != nil && *c.disabled {
		statements = append(statements, statement{
			query: `DELETE FROM session WHERE user_id = ?`,
			args:  []any{id},
		})
	} else if c.hash != nil {
		statements = append(statements, statement{
			query: `DELETE FROM session WHERE user_id = ? AND id <> ?`,
			args:  []any{id, by.session},
		})
	}
	statements = append(statements, event{at: now, kind: userChanged, userID: id, changes: c.names()}.by(by))
	err = s.write(ctx, statements...)
	if errors.Is(err, errNotApplied) {
		return user{}, s.whyNot(by, id, version)
	}
	var username, email string
	if c.username != nil {
		username = *c.username
	}
	if c.email != nil {
		email = *c.email
	}
	return u, s.whichTaken(err, username, email, id)
}

// deleteUser deletes a user and its sessions for by. Version and errors are as
// in updateUser; errReferenced is where another program's table refers to it.
func (s *store) deleteUser(ctx context.Context, by caller, id, version, now int64) error {
	err := s.write(ctx,
		statement{
			query: `
				DELETE FROM user
				WHERE id = ?1
					AND (?3 = 0 OR version = ?3)
					AND ` + mayChange + `
					AND (role <> 'admin' OR disabled <> 0 OR ` + otherAdmin + `)`,
			args: []any{id, by.session, version},
			none: errNotApplied,
		},
		statement{
			query: `DELETE FROM session WHERE user_id = ?`,
			args:  []any{id},
		},
		event{at: now, kind: userDeleted, userID: id}.by(by))
	if errors.Is(err, errNotApplied) {
		return s.whyNot(by, id, version)
	}
	return err
}

// whyNot explains a change that did not apply, in the order in which a client
// wants to know: who it is, what it may do, what is there, what has changed.
func (s *store) whyNot(by caller, id, version int64) error {
	if err := s.mayNot(by, id); err != nil {
		return err
	}
	u, err := s.user(id)
	if err != nil {
		return err
	}
	if version != 0 && u.version != version {
		return errVersion
	}
	return errLastAdmin
}

// mayNot says why mayChange does not hold: errSessionEnded or errForbidden; nil
// where it does.
func (s *store) mayNot(by caller, id int64) error {
	if by.session == console.session {
		return nil
	}
	if by.session == stranger.session {
		return errForbidden
	}
	var asker user
	err := s.read(`SELECT`+userColumns+`
		FROM session JOIN user ON user.id = session.user_id
		WHERE session.id = ? AND user.disabled = 0`, errSessionEnded, asker.columns(), by.session)
	if err == nil && asker.id != id && asker.role != admin {
		err = errForbidden
	}
	return err
}

// A session is one login of a user.
type session struct {
	id          int64
	userID      int64
	createdAt   int64
	lastUsedAt  int64
	expiresAt   int64
	address     string // of the client, at the login or the last refresh
	userAgent   string
	generation  int64
	refreshHash []byte
	rotatedAt   int64
}

// sessionColumns and (*session).columns are the one list of a session's columns, in step.
const sessionColumns = `
	session.id,
	session.user_id,
	session.created_at,
	session.last_used_at,
	session.expires_at,
	session.address,
	session.user_agent,
	session.generation,
	session.refresh_hash,
	session.rotated_at`

func (x *session) columns(more ...any) []any {
	return append([]any{
		&x.id,
		&x.userID,
		&x.createdAt,
		&x.lastUsedAt,
		&x.expiresAt,
		&x.address,
		&x.userAgent,
		&x.generation,
		&x.refreshHash,
		&x.rotatedAt,
	}, more...)
}

// A keyRow is a row of signing_key: a key's name and what makes its tokens.
type keyRow struct {
	kid    string
	secret []byte
}

// keyIsGood is the condition that tokens of a key are good at ?2.
const keyIsGood = `(retired_at = 0 OR retired_at + token_ttl > ?2)`

// selectNewestKey selects the key that signs now. A token is signed under the key
// that is read with its session: a key rotated elsewhere signs from then on.
const selectNewestKey = `SELECT kid, secret FROM signing_key WHERE retired_at = 0 ORDER BY id DESC LIMIT 1`

// addSession starts a session of a user whose password was just verified
// against hash, gives it its id, and returns the key to sign its token. It ends
// the oldest of the user's sessions past maxSessions. Where newHash is not empty
// it replaces the hash, which moves no version: a client sees nothing of it. A
// password or a state of the user that has changed since hash was read is
// errCredentials.
func (s *store) addSession(ctx context.Context, x *session, hash, newHash string) (key keyRow, err error) {
	if newHash == "" {
		newHash = hash
	}
	err = s.write(ctx,
		statement{
			query: `
				UPDATE user SET last_login_at = ?2, password_hash = ?4
				WHERE id = ?1 AND password_hash = ?3 AND disabled = 0`,
			args: []any{x.userID, x.createdAt, hash, newHash},
			none: errCredentials,
		},
		statement{
			query: `
				INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent, refresh_hash, rotated_at)
				VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?2)
				RETURNING id`,
			args: []any{x.userID, x.createdAt, x.expiresAt, x.address, x.userAgent, x.refreshHash},
			into: []any{&x.id},
		},
		event{at: x.createdAt, kind: loggedIn, actorID: x.userID, userID: x.userID, sessionID: justMade, address: x.address}.statement(),
		statement{
			query: `
				DELETE FROM session WHERE user_id = ?1 AND id <= (
					SELECT id FROM session WHERE user_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)`,
			args: []any{x.userID, maxSessions},
		},
		statement{
			query: selectNewestKey,
			into:  []any{&key.kid, &key.secret},
		})
	return key, err
}

// principal returns the user of a session and when the session was last used,
// or errSessionEnded where the session is over or its user is gone or disabled.
// A key of the database that is retired and past its time is errBadToken; kid
// is empty for a key of the configuration.
func (s *store) principal(sid int64, kid string, now int64) (u user, lastUsedAt int64, err error) {
	var keyGood bool
	err = s.read(`SELECT`+userColumns+`, session.last_used_at,
			?3 = '' OR EXISTS (SELECT 1 FROM signing_key WHERE kid = ?3 AND `+keyIsGood+`)
		FROM session JOIN user ON user.id = session.user_id
		WHERE session.id = ?1 AND session.expires_at > ?2 AND user.disabled = 0`,
		errSessionEnded, u.columns(&lastUsedAt, &keyGood), sid, now, kid)
	if err == nil && !keyGood {
		err = errBadToken
	}
	return u, lastUsedAt, err
}

// touchEvery is how long a session's last use may go unwritten, in seconds: a
// read must not cost a write.
const touchEvery = 60

// touch notes, without waiting, that a session is used.
func (s *store) touch(sid, now int64) {
	s.writeLater(statement{
		query: `UPDATE session SET last_used_at = ?2 WHERE id = ?1 AND last_used_at <= ?2 - ?3`,
		args:  []any{sid, now, touchEvery},
	})
}

// session returns a session, or errSessionEnded.
func (s *store) session(sid int64) (x session, err error) {
	err = s.read(`SELECT`+sessionColumns+` FROM session WHERE id = ?`, errSessionEnded, x.columns(), sid)
	return x, err
}

// sessionsOf calls f for each live session of a user, the oldest first.
func (s *store) sessionsOf(ctx context.Context, userID, now int64, f func(*session)) error {
	var x session
	return s.eachRow(ctx, `SELECT`+sessionColumns+` FROM session WHERE user_id = ? AND expires_at > ? ORDER BY id`,
		x.columns(), func() { f(&x) }, userID, now)
}

// rotate puts next in the place of the live refresh token of a session, which
// must have the given generation and hash, and returns the key to sign its
// access token. x brings the new hash and the times and client of now; it comes
// back with the session's user. Where the session is over, or another token is
// live, it is errNotApplied.
func (s *store) rotate(ctx context.Context, x *session, hash []byte, now int64) (key keyRow, err error) {
	err = s.write(ctx,
		statement{
			query: `
				UPDATE session SET
					generation = generation + 1,
					refresh_hash = ?4,
					rotated_at = ?5,
					last_used_at = ?5,
					expires_at = ?6,
					address = ?7,
					user_agent = ?8
				WHERE id = ?1 AND generation = ?2 AND refresh_hash = ?3 AND expires_at > ?5
					AND EXISTS (SELECT 1 FROM user WHERE user.id = session.user_id AND user.disabled = 0)
				RETURNING user_id`,
			args: []any{x.id, x.generation - 1, hash, x.refreshHash, now, x.expiresAt, x.address, x.userAgent},
			into: []any{&x.userID},
			none: errNotApplied,
		},
		statement{
			query: selectNewestKey,
			into:  []any{&key.kid, &key.secret},
		})
	return key, err
}

// endSession ends a session for by, or returns errSessionEnded,
// errForbidden or, where the user has no such session, errSessionNotFound.
func (s *store) endSession(ctx context.Context, by caller, userID, sid, now int64) error {
	err := s.write(ctx,
		statement{
			query: `DELETE FROM session WHERE user_id = ?1 AND id = ?3 AND ` + mayChange,
			args:  []any{userID, by.session, sid},
			none:  errNotApplied,
		},
		event{at: now, kind: sessionEnded, userID: userID, sessionID: sid}.by(by))
	if errors.Is(err, errNotApplied) {
		if err := s.mayNot(by, userID); err != nil {
			return err
		}
		return errSessionNotFound
	}
	return err
}

// endSessions ends every session of a user for by. That there is none is fine.
func (s *store) endSessions(ctx context.Context, by caller, userID, now int64) error {
	err := s.write(ctx,
		statement{
			query: `DELETE FROM session WHERE user_id = ?1 AND ` + mayChange,
			args:  []any{userID, by.session},
			none:  errNotApplied,
		},
		event{at: now, kind: sessionsEnded, userID: userID}.by(by))
	if errors.Is(err, errNotApplied) {
		return s.mayNot(by, userID)
	}
	return err
}

// endReused ends a session of a user whose refresh token came back, from an
// address. That it has ended already is fine.
func (s *store) endReused(ctx context.Context, userID, sid int64, address string, now int64) error {
	err := s.write(ctx,
		statement{
			query: `DELETE FROM session WHERE id = ?`,
			args:  []any{sid},
			none:  errNotApplied,
		},
		event{at: now, kind: tokenReused, userID: userID, sessionID: sid, address: address}.statement())
	if errors.Is(err, errNotApplied) {
		err = nil
	}
	return err
}

// sweepSize is how many sessions one sweep looks at.
const sweepSize = 1000

// sweep deletes what is over among the sweepSize sessions after an id, and the
// keys past their time. It returns where to go on, 0 at the end. By id and in
// small steps, it needs no index that each refresh would have to move.
func (s *store) sweep(ctx context.Context, after, now int64) (next int64, err error) {
	var n, over, oldKeys int
	err = s.read(`
		SELECT count(*), coalesce(max(id), 0), count(*) FILTER (WHERE expires_at <= ?2),
			(SELECT count(*) FROM signing_key WHERE NOT `+keyIsGood+`)
		FROM (SELECT id, expires_at FROM session WHERE id > ?1 ORDER BY id LIMIT ?3)`,
		errStorage, []any{&n, &next, &over, &oldKeys}, after, now, sweepSize)
	if err == nil && over > 0 {
		err = s.write(ctx, statement{
			query: `DELETE FROM session WHERE id > ?1 AND id <= ?2 AND expires_at <= ?3`,
			args:  []any{after, next, now},
		})
	}
	if err == nil && oldKeys > 0 {
		err = s.write(ctx, statement{
			query: `DELETE FROM signing_key WHERE id > ?1 AND NOT ` + keyIsGood,
			args:  []any{0, now},
		})
	}
	if n < sweepSize {
		next = 0
	}
	return next, err
}

// A signingKeyInfo is what may be shown of a signing key.
type signingKeyInfo struct {
	kid       string
	createdAt int64
	retiredAt int64 // 0: it signs
	goodUntil int64 // for its last token; 0: it signs
}

// signingKeys returns the keys in the database, the newest first.
func (s *store) signingKeys(ctx context.Context) (keys []signingKeyInfo, err error) {
	var k signingKeyInfo
	err = s.eachRow(ctx, `
		SELECT kid, created_at, retired_at, iif(retired_at = 0, 0, retired_at + token_ttl)
		FROM signing_key ORDER BY id DESC`,
		[]any{&k.kid, &k.createdAt, &k.retiredAt, &k.goodUntil},
		func() { keys = append(keys, k) })
	return keys, err
}

// newestKey returns the database's key that signs; its kid is empty where there
// is none, because the configuration has one.
func (s *store) newestKey() (key keyRow, err error) {
	err = s.read(selectNewestKey, errNoKey, []any{&key.kid, &key.secret})
	if errors.Is(err, errNoKey) {
		err = nil
	}
	return key, err
}

// keySecret returns the secret of a key that is not past its time, or errNoKey.
func (s *store) keySecret(kid string, now int64) (secret []byte, err error) {
	err = s.read(`SELECT secret FROM signing_key WHERE kid = ?1 AND `+keyIsGood,
		errNoKey, []any{&secret}, kid, now)
	return secret, err
}

var errNoKey = errors.New("no signing key")

// ensureKey adds key as the signing key unless there is one, and notes that
// tokens of ttl seconds are signed from now on.
func (s *store) ensureKey(ctx context.Context, key keyRow, ttl, now int64) error {
	var one int
	err := s.read(`SELECT 1 FROM signing_key WHERE retired_at = 0 AND token_ttl >= ?`, errNoKey, []any{&one}, ttl)
	if !errors.Is(err, errNoKey) {
		return err
	}
	return s.write(ctx,
		statement{
			query: `
				INSERT INTO signing_key (kid, secret, created_at)
				SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM signing_key WHERE retired_at = 0)`,
			args: []any{key.kid, key.secret, now},
		},
		statement{
			query: `UPDATE signing_key SET token_ttl = ?1 WHERE retired_at = 0 AND token_ttl < ?1`,
			args:  []any{ttl},
		})
}

// retireKeys retires every signing key, because the configuration has one.
func (s *store) retireKeys(ctx context.Context, now int64) error {
	key, err := s.newestKey()
	if err != nil || key.kid == "" {
		return err
	}
	return s.write(ctx, statement{
		query: `UPDATE signing_key SET retired_at = ? WHERE retired_at = 0`,
		args:  []any{now},
	})
}

// rotateKey makes key the one that signs and retires the others.
func (s *store) rotateKey(ctx context.Context, key keyRow, now int64) error {
	return s.write(ctx,
		statement{
			query: `
				INSERT INTO signing_key (kid, secret, created_at, token_ttl)
				SELECT ?1, ?2, ?3, coalesce(max(token_ttl), 0) FROM signing_key`,
			args: []any{key.kid, key.secret, now},
		},
		statement{
			query: `UPDATE signing_key SET retired_at = ?2 WHERE kid <> ?1 AND retired_at = 0`,
			args:  []any{key.kid, now},
		},
		event{at: now, kind: keyRotated, changes: "kid=" + key.kid}.by(console))
}

// secret returns the named secret of this database; the first to ask gives it
// the value fresh.
func (s *store) secret(ctx context.Context, name string, fresh []byte) (value []byte, err error) {
	const query = `SELECT value FROM secret WHERE name = ?`
	if err = s.read(query, errNoKey, []any{&value}, name); !errors.Is(err, errNoKey) {
		return value, err
	}
	err = s.write(ctx, statement{
		query: `INSERT INTO secret (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`,
		args:  []any{name, fresh},
	})
	if err == nil {
		err = s.read(query, errStorage, []any{&value}, name)
	}
	return value, err
}

// codeOf returns SQLite's extended result code of an error
// (https://www.sqlite.org/rescode.html), 0 where it is none of SQLite's.
func codeOf(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// isDamaged reports whether err says that a file is no database, or no longer one.
func isDamaged(err error) bool {
	code := codeOf(err) & 0xff
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

// isUnfinished reports whether err says that a database opened to be read alone
// has a transaction to be taken back.
func isUnfinished(err error) bool { return codeOf(err) == sqlite3.SQLITE_READONLY_ROLLBACK }

// isBusy reports whether err says that another process holds the lock.
func isBusy(err error) bool { return codeOf(err)&0xff == sqlite3.SQLITE_BUSY }

// isIOError reports whether err says that the system refused to read, write or sync.
func isIOError(err error) bool { return codeOf(err)&0xff == sqlite3.SQLITE_IOERR }

// isConstraint reports whether err says that a statement broke a constraint or
// had a value of the wrong type: SQLite has then undone that statement and nothing else.
func isConstraint(err error) bool {
	code := codeOf(err) & 0xff
	return code == sqlite3.SQLITE_CONSTRAINT || code == sqlite3.SQLITE_MISMATCH
}

// isReferenced reports whether err is a failed FOREIGN KEY constraint: of
// another program's table, as userd has none.
func isReferenced(err error) bool { return codeOf(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY }

// isDuplicate reports whether err is a failed UNIQUE constraint.
func isDuplicate(err error) bool {
	return codeOf(err) == sqlite3.SQLITE_CONSTRAINT_UNIQUE || codeOf(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}
