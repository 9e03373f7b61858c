package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	"userd/internal/passhash"
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

// unknownHashes adds a line for each user whose password hash is unknown.
func (x *examination) unknownHashes(ctx context.Context, db *sql.DB) error {
	n := 0
	return eachUnknownHash(ctx, db, func(id int64) (more bool) {
		if n++; n > mostFindings {
			x.findings = append(x.findings, moreFindings)
			return false
		}
		x.findings = append(x.findings, fmt.Sprintf("user %d has a password hash in no known form, and cannot log in", id))
		return true
	})
}

// checkIntegrity runs SQLite's full check and returns what it found first, or
// "ok". It reads the whole file.
func (s *store) checkIntegrity(ctx context.Context) (found string, err error) {
	err = s.readAside(ctx, &found, "PRAGMA integrity_check(1)")
	return found, err
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
