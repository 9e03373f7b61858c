// Package sqlitefile opens SQLite database files that another program may have made or
// damaged, checks them, and says what the errors of SQLite mean.
//
// [OpenToRead] changes no file and leaves none next to the database. [CheckIntegrity] and
// [CompareSchema] return findings: sentences for the operator about a database that is
// damaged, or that is not as its program made it. [Columns] describes the tables of any
// database. A function such as [IsBusy] answers one question about an error, which may be
// wrapped. The driver is modernc.org/sqlite.
package sqlitefile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"userd/internal/safefile"
)

// DSN returns the data source name of a database file, for [sql.Open] with the driver
// "sqlite". It contains the params, such as mode=ro. Pragmas are parameters too,
// because a PRAGMA that Exec runs affects only one connection of a pool. With
// trusted_schema off, SQL that another program put into the schema can call only
// functions without side effects. With secure_delete on, SQLite overwrites deleted
// data: FAST would leave secrets in free pages.
func DSN(path string, params ...string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") { // C:/…
		path = "/" + path
	}
	params = append(params, "_pragma=trusted_schema(0)", "_pragma=secure_delete(1)")
	u := url.URL{Scheme: "file", Path: path, RawQuery: strings.Join(params, "&")}
	return u.String()
}

// OpenToRead opens a database without changing it. If quiet is true, the results of
// queries are valid only if the database is still quiet after them.
func OpenToRead(path string) (db *sql.DB, quiet bool, err error) {
	params := []string{"mode=ro", "_busy_timeout=5000"}
	quiet, err = IsQuiet(path)
	if err != nil {
		return nil, false, err
	}
	if quiet {
		params = append(params, "immutable=1")
	}
	db, err = sql.Open("sqlite", DSN(path, params...))
	return db, quiet, err
}

// An OnlyConn is the only connection of a pool.
type OnlyConn struct {
	*sql.Conn
	pool *sql.DB
}

// Close closes the connection and its pool.
func (c *OnlyConn) Close() error { return errors.Join(c.Conn.Close(), c.pool.Close()) }

// OpenToWrite opens a database in WAL mode for all writes of the process. Each commit is
// synced, foreign keys are on, and a transaction starts with the write lock. A statement
// waits at most for the busy timeout for the lock of another process.
func OpenToWrite(path string, busyTimeout time.Duration) (*OnlyConn, error) {
	pool, err := sql.Open("sqlite", DSN(path,
		"mode=rw", fmt.Sprintf("_busy_timeout=%d", busyTimeout.Milliseconds()),
		"_journal_mode=WAL", "_synchronous=FULL", "_foreign_keys=1", "_txlock=immediate"))
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(1)
	conn, err := pool.Conn(context.Background())
	// SQLite ignores the busy timeout when it changes the journal mode, and another
	// process may be creating the same file.
	for end := time.Now().Add(busyTimeout); IsBusy(err) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		conn, err = pool.Conn(context.Background())
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &OnlyConn{conn, pool}, nil
}

// IsQuiet reports whether the database is in WAL mode and no process has it open.
// An ordinary reader would leave a -wal and a -shm file next to such a database. A
// reader with immutable=1, which assumes that the file does not change, leaves none.
func IsQuiet(path string) (bool, error) {
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
	defer f.Close() // drops the process's locks on the file: without a -wal it has none
	versions := make([]byte, 2)
	if _, err := f.ReadAt(versions, 18); err != nil && err != io.EOF { // https://www.sqlite.org/fileformat.html#file_format_version_numbers
		return false, err
	}
	return versions[0] == 2 && versions[1] == 2, nil
}

// CheckLogOwners returns an error if the -wal or -journal of a database belongs to a user
// other than the owner of the database, the user of this process, or root. SQLite would
// write its contents into the database, so a user who can only make files in the directory
// could change the database.
func CheckLogOwners(path string) error {
	path, err := filepath.EvalSymlinks(path) // SQLite puts the -wal next to a link's target
	if err != nil {
		return err
	}
	file, err := os.Stat(path)
	for _, suffix := range []string{"-wal", "-journal"} {
		if log, missing := os.Lstat(path + suffix); err == nil && missing == nil && !safefile.OwnedBy(log, file) {
			err = fmt.Errorf("%s%s belongs to another user than %[1]s: find out who put it there, and move it away", path, suffix)
		}
	}
	return err
}

// A Header is what a database says about itself.
type Header struct {
	Owner   int // PRAGMA application_id
	Version int // PRAGMA user_version
	Objects int // the tables, indexes, triggers and views
}

// OpenToInspect opens a database like [OpenToRead], and reads its header. If a killed process
// left a transaction to roll back, OpenToInspect first lets SQLite do so. It returns the error of
// [CheckLogOwners].
func OpenToInspect(ctx context.Context, path string) (*sql.DB, Header, error) {
	var h Header
	if err := CheckLogOwners(path); err != nil {
		return nil, h, err
	}
	db, _, err := OpenToRead(path)
	if err != nil {
		return nil, h, err
	}
	const about = `
		SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id AS a, pragma_user_version AS v`
	err = db.QueryRowContext(ctx, about).Scan(&h.Owner, &h.Version, &h.Objects)
	if isUnfinished(err) {
		db.Close()
		if db, err = sql.Open("sqlite", DSN(path, "mode=rw", "_busy_timeout=5000")); err != nil {
			return nil, h, err
		}
		err = db.QueryRowContext(ctx, about).Scan(&h.Owner, &h.Version, &h.Objects)
	}
	if err != nil {
		db.Close()
		return nil, h, fmt.Errorf("reading %s: %w", path, err)
	}
	return db, h, nil
}
