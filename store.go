package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"userd/internal/safefile"
)

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

// unknownHashes counts the users whose password hash is in no form that
// parseHash knows, by its beginning. It reads the whole table.
func (s *store) unknownHashes(ctx context.Context) (n int, err error) {
	err = s.readAside(ctx, &n, `SELECT count(*) FROM user WHERE `+hashIsUnknown)
	return n, err
}

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
