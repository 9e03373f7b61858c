package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"userd/internal/groupcommit"
	"userd/internal/prom"
	"userd/internal/safefile"
	"userd/internal/sqlitefile"
)

// A role says which users a user may change. Any other role, also an empty one,
// permits nothing.
type role string

const (
	member role = "member" // only itself
	admin  role = "admin"  // all users
)

// checkRole returns what is wrong with a role, or "".
func checkRole(r role) string {
	if r != member && r != admin {
		return "must be member or admin"
	}
	return ""
}

// A callerKind says how userd knows a caller.
type callerKind string

const (
	consoleCaller  callerKind = "console"  // a command, which can open the database file
	strangerCaller callerKind = "stranger" // a client without a token, which may only add a member
	sessionCaller  callerKind = "session"  // a user with an access token
	keyCaller      callerKind = "apiKey"   // a program with an API key of a user
)

// A keyScope says what an API key may do. A key may never do more than its user may do now.
type keyScope string

const (
	verifyScope keyScope = "verify" // ask who is calling, and introspect tokens
	readScope   keyScope = "read"   // most reads
	writeScope  keyScope = "write"  // what the user may do without proof
	adminScope  keyScope = "admin"  // also events, metrics, and keyActs to members
)

// A caller asks for a write. The write's own SQL checks the caller's rights when
// it runs, because they may have changed since the request came in. The zero
// caller may do nothing.
type caller struct {
	kind    callerKind
	user    int64  // 0: none
	session int64  // of the user; 0: none
	key     int64  // of the user; 0: none
	address string // only for the event

	token   tokenID // the access token
	renewed bool    // the act requires a token that was made after the last re-keying
	stamp   *int64  // auth_stamp when the password was verified; nil: it was not

	keyReadAt     int64 // when the row of the key was read, in Unix seconds
	requiresProof bool  // the key does an act that requires proof, so it needs adminScope
}

// A tokenID names an access token of a session.
type tokenID struct {
	jti        string
	generation int64 // of the refresh token that was live when it was made
}

// console is the command line.
var console = caller{kind: consoleCaller, address: "console"}

// with adds the parameters of mayChange to the values.
func (c caller) with(values args) args {
	return slices.Concat(values, args{
		{"caller", string(c.kind)}, {"session", c.session},
		{"generation", c.token.generation}, {"jti", c.token.jti},
		{"renewed", c.renewed}, {"stamp", c.stamp},
		{"key", c.key}, {"key_read_at", c.keyReadAt}, {"requires_proof", c.requiresProof},
	})
}

// moveCounter records the id of the user that the statement before it has added.
const moveCounter = `UPDATE counter SET user_id = (SELECT max(id) FROM user)`

// mayChange is the condition of every change of the user @id: the caller may make
// the change when the statement runs, and its token or password still proves what it
// proved when the request came in.
const mayChange = `(@caller = 'console' OR @caller = 'session' AND EXISTS (
	SELECT 1 FROM session JOIN user AS asker ON asker.id = session.user_id
	WHERE session.id = @session AND (session.rekeyed_at <= @generation OR session.kept_jti = @jti AND NOT @renewed)
		AND @generation <= session.generation
		AND (@stamp IS NULL OR asker.auth_stamp = @stamp) AND asker.disabled = 0 AND (asker.id = @id OR asker.role = 'admin'))
	OR @caller = 'apiKey' AND ` + byKey + `)`

// byKey is the part of mayChange for the API key @key. The key must be valid, and its user an
// admin. If the act requires proof (@requires_proof), the scope must be admin. Only members can be
// changed, and if @id is null, which means no user, only without proof.
const byKey = `EXISTS (
	SELECT 1 FROM user_key JOIN user AS asker ON asker.id = user_key.user_id
	WHERE user_key.id = @key AND (user_key.expires_at = 0 OR user_key.expires_at > @key_read_at)
		AND (user_key.scope = 'admin' OR user_key.scope = 'write' AND NOT @requires_proof)
		AND asker.disabled = 0 AND asker.pending = 0 AND asker.role = 'admin'
		AND iif(@id IS NULL, NOT @requires_proof, EXISTS (SELECT 1 FROM user AS changed WHERE changed.id = @id AND changed.role = 'member')))`

// authorizationError returns nil if mayChange holds, and otherwise why not:
// errSessionEnded, errWrongPassword or errNotFresh if the password has changed since
// the request came in, or errForbidden.
func (s *store) authorizationError(by caller, id int64) error {
	if by.kind == consoleCaller {
		return nil
	}
	if by.kind == keyCaller {
		return s.keyAuthorizationError(by, id)
	}
	if by.kind != sessionCaller {
		return errForbidden
	}
	var asker int64
	var kind string
	var kept, changed bool
	err := s.read(`SELECT user.id, user.role, session.rekeyed_at > ?2, coalesce(user.auth_stamp <> ?4, 0)
		FROM session JOIN user ON user.id = session.user_id
		WHERE session.id = ?1 AND (session.rekeyed_at <= ?2 OR session.kept_jti = ?3)
			AND ?2 <= session.generation AND user.disabled = 0`,
		errSessionEnded, []any{&asker, &kind, &kept, &changed}, by.session, by.token.generation, by.token.jti, by.stamp)
	switch {
	case err != nil:
		return err
	case changed:
		return errWrongPassword
	case kept && by.renewed:
		return errNotFresh
	case asker != id && role(kind) != admin:
		return errForbidden
	}
	return nil
}

// keyAuthorizationError is authorizationError for an API key. It returns errBadToken if the
// key was revoked or its user disabled, errExpiredKey, errKeyScope or errForbidden.
func (s *store) keyAuthorizationError(by caller, id int64) error {
	var kind, changed, scope string
	var expires int64
	err := s.read(`SELECT user.role, user_key.scope, user_key.expires_at, coalesce((SELECT role FROM user WHERE id = ?2), '')
		FROM user_key JOIN user ON user.id = user_key.user_id
		WHERE user_key.id = ?1 AND user.disabled = 0 AND user.pending = 0`,
		errBadToken, []any{&kind, &scope, &expires, &changed}, by.key, id)
	switch {
	case err != nil:
		return err
	case expires != 0 && expires <= by.keyReadAt:
		return errExpiredKey
	case role(kind) != admin:
		return errForbidden
	case keyScope(scope) != adminScope && (by.requiresProof || keyScope(scope) != writeScope), by.requiresProof && id == 0:
		return errKeyScope
	case changed != "" && role(changed) != member:
		return errKeyScope.with("An API key cannot change an admin")
	}
	return nil
}

// Short names for the parts of each write.
type (
	statement = groupcommit.Statement
	args      = groupcommit.Args
	arg       = groupcommit.Arg
)

var (
	errDuplicate  = groupcommit.ErrDuplicate
	errNotApplied = errors.New("a condition of the write did not hold")
	errFilesLost  = &storageError{"writing", errors.New("a file of the database was deleted, moved or replaced; restart userd")}
)

// A store is the database file and the statements of requests. A small pool of
// connections reads; one goroutine writes. An error of a request's
// statement is one of the named sentinels, the context's error, or a storageError.
type store struct {
	path      string
	readers   *sql.DB
	readerDSN string
	reads     *groupcommit.Cache
	files     sqlitefile.Opened
	conn      *sqlitefile.OnlyConn // of the writer
	writer    *groupcommit.Writer

	commitDurations *prom.Histogram
	commitSizes     *prom.Histogram // successful writes per commit
	failedWrites    atomic.Uint64   // writes that returned errStorage
	wrote           atomic.Bool     // at least one write took effect
	filesLost       atomic.Bool     // set by checkFiles: refuse every write
}

// busyTimeout is how long a write waits for the lock of another process, such as a
// command: long enough for a large import, and less than the time that a server may
// take to stop.
const busyTimeout = 7 * time.Second

// readerCount is the size of the read pool. Measured on two cores: with one
// reader the throughput is half, with eight little more, and each costs 3 MB.
const readerCount = 4

// sweepSize is how many sessions one sweep reads at most.
const sweepSize = 1000

// openStore opens the database at path and upgrades its schema. If the file does
// not exist, openStore creates it with mode 0600. The caller calls inspect first.
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
	conn, err := sqlitefile.OpenToWrite(path, busyTimeout)
	if err != nil {
		return nil, err
	}
	readerDSN := sqlitefile.DSN(path, "mode=rw", "_query_only=1", "_busy_timeout=5000")
	if err = refuseHooks(ctx, conn); err == nil { // a migration could run a trigger
		err = migrations.Run(ctx, conn.Conn, applicationID)
	}
	var files sqlitefile.Opened
	if err == nil {
		files, err = sqlitefile.StatOpened(path, created)
	}
	var readers *sql.DB
	if err == nil {
		readers, err = sql.Open("sqlite", readerDSN)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	readers.SetMaxOpenConns(readerCount)
	readers.SetMaxIdleConns(readerCount)
	s := &store{
		path:      path,
		readers:   readers,
		readerDSN: readerDSN,
		reads:     groupcommit.NewCache(readers),
		files:     files,
		conn:      conn,

		commitDurations: prom.NewDurationHistogram(),
		commitSizes:     prom.NewHistogram(1, 1, 2, 4, 8, 16, 32, 64, 128, groupcommit.MaxGroup),
	}
	s.writer = groupcommit.Start(conn.Conn, markOwner, func(took time.Duration, writes int) {
		s.commitDurations.Observe(int64(took))
		s.commitSizes.Observe(int64(writes))
		if writes > 0 {
			s.wrote.Store(true)
		}
	})
	return s, nil
}

// write runs the statements as one write: see groupcommit.Writer. It returns the IfNone of a
// statement, errDuplicate, errReferenced, the context's error, or errStorage.
func (s *store) write(ctx context.Context, statements ...statement) error {
	if s.filesLost.Load() {
		s.failedWrites.Add(1)
		return errFilesLost
	}
	err := s.writer.Write(ctx, statements...)
	if err == nil {
		return nil
	}
	if errors.Is(err, groupcommit.ErrForeignKey) { // of another program's table: userd has none
		return errReferenced
	}
	if f, ok := errors.AsType[*groupcommit.Failure](err); ok {
		err = &storageError{"writing", f.Cause}
	}
	if errors.Is(err, errStorage) {
		s.failedWrites.Add(1)
	}
	return err
}

// prepareFiles creates the database with mode 0600 if it does not exist, because SQLite
// would use 0644. It removes the permissions of other users from an existing one. SQLite
// gives new -wal and -shm files the mode of the database.
func prepareFiles(path string) error {
	if err := safefile.CreateIfMissing(path); err != nil {
		return err
	}
	target, err := checkWritable(path)
	if err != nil {
		return err
	}
	return sqlitefile.MakePrivate(target)
}

// checkWritable is sqlitefile.CheckWritable with what the operator must know.
func checkWritable(path string) (target string, err error) {
	target, err = sqlitefile.CheckWritable(path)
	if err != nil && target != "" {
		err = fmt.Errorf("userd must be able to write to the database and its directory: %w", err)
	}
	return target, err
}

// close waits for the queued writes and closes the file. The write connection is
// the last to close, because only it can checkpoint the WAL.
func (s *store) close() error {
	return errors.Join(s.writer.Close(), s.readers.Close(), s.conn.Close())
}

// probe checks that the database can be written and read. It returns errStorage,
// or the context's error if the write does not begin in time. Its commit is synced
// but changes no value. SQLite would skip an update that leaves the row as it is,
// so this one sets the row's id. The write comes first: it invalidates the
// readers' caches, so that the read goes to the disk too.
func (s *store) probe(ctx context.Context) error {
	err := s.write(ctx, statement{Query: `UPDATE counter SET id = id`, IfNone: errStorage})
	if err != nil {
		return err
	}
	var id int64
	return s.read(`SELECT user_id FROM counter`, errStorage, []any{&id})
}

// count returns the number of users and of sessions. It reads a whole index of
// each table.
func (s *store) count(ctx context.Context) (users, sessions int64, err error) {
	err = s.onNewConnection(func(db *sql.DB) error {
		const query = `SELECT (SELECT count(*) FROM user), (SELECT count(*) FROM session)`
		return db.QueryRowContext(ctx, query).Scan(&users, &sessions)
	})
	return users, sessions, err
}

// size returns the sizes in bytes of the database file and of its WAL. It uses their
// names, because closing a descriptor of them would drop SQLite's locks.
func (s *store) size() (file, log int64, err error) {
	info, err := os.Stat(s.path)
	wal, walErr := os.Stat(s.path + "-wal")
	if err := cmp.Or(err, walErr); err != nil {
		return 0, 0, err
	}
	return info.Size(), wal.Size(), nil
}

// read scans the only row of a query into dest, or returns ifNone, which may be nil.
// It has no context: a lookup takes microseconds, and for a context that can end the
// driver starts a goroutine.
func (s *store) read(query string, ifNone error, dest []any, args ...any) error {
	stmt, err := s.reads.Get(query)
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

// readNamed is read for a query with named parameters.
func (s *store) readNamed(query string, ifNone error, dest []any, values args) error {
	query, list, err := values.Positional(query)
	if err != nil {
		return &storageError{"reading", err}
	}
	return s.read(query, ifNone, dest, list...)
}

// eachRow calls f after scanning each row of a query into dest.
func (s *store) eachRow(ctx context.Context, query string, dest []any, f func(), args ...any) error {
	stmt, err := s.reads.Get(query)
	if err != nil {
		return &storageError{"reading", err}
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err == nil {
		err = sqlitefile.ScanRows(rows, dest, f)
	}
	if err != nil {
		return &storageError{"reading", err}
	}
	return nil
}

// onNewConnection runs f on a connection of its own, so that no request waits for a query
// that reads a lot. The connection's cache is small: such a query reads each page only
// once, and SQLite's allocator would not return the memory.
func (s *store) onNewConnection(f func(db *sql.DB) error) error {
	db, err := sql.Open("sqlite", s.readerDSN+"&_pragma=cache_size(-256)") // KiB
	if err != nil {
		return err
	}
	return errors.Join(f(db), db.Close())
}

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
// writes to a file without a name would be lost with the process.
func (s *store) checkFiles() error {
	err := s.files.Check()
	if err != nil {
		s.filesLost.Store(true)
	}
	return err
}

// checkIntegrity returns the first finding of SQLite's check, or none if the file is
// sound.
func (s *store) checkIntegrity(ctx context.Context) (findings []string, err error) {
	err = s.onNewConnection(func(db *sql.DB) (err error) {
		findings, err = sqlitefile.CheckIntegrity(ctx, db, 1)
		return err
	})
	return findings, err
}

// utc returns a time of the database, or the zero time for 0, which means never.
func utc(unix int64) (t time.Time) {
	if unix != 0 {
		t = time.Unix(unix, 0).UTC()
	}
	return t
}

// eraseRemnants overwrites the copies of deleted rows that SQLite leaves in the unused parts of
// pages. It reads the whole file.
func (s *store) eraseRemnants(ctx context.Context) error {
	return s.onNewConnection(func(db *sql.DB) error {
		return sqlitefile.EraseRemnants(ctx, db, func(found []sqlitefile.Remnant) error {
			var statements []statement
			for _, x := range found {
				statements = append(statements, statement{
					Query: sqlitefile.Erasure,
					Args:  args{{"number", x.Number}, {"page", x.Page}, {"erased", x.Erased}},
				})
			}
			return s.write(ctx, statements...)
		})
	})
}

const eraseEvery = 24 * time.Hour // each time reads the entire database

// keepErasing erases what deleted rows left in the database, at the start and then daily, until
// ctx ends.
func keepErasing(ctx context.Context, st *store, log *slog.Logger) {
	for {
		if err := st.eraseRemnants(ctx); err != nil && ctx.Err() == nil {
			log.Warn("could not erase what deleted rows left in the database", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(eraseEvery):
		}
	}
}
