package main

import (
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
)

// migrations take an empty database to the current schema, one transaction each; PRAGMA
// user_version counts them. They only add tables, indexes, and columns with constant defaults,
// because rebuilding a table would empty others that cascade from it.
var migrations = []string{
	tutorialTable + addColumns + restOfSchema,
	eventTables,
	addAuthStamp,
	linkTable,
}

// The first migration in three parts. A tutorial database already has the first (adopt.go).
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
		-- The live refresh token: how many came before it, the SHA-256 of its secret, and its time.
		generation   INTEGER NOT NULL DEFAULT 0,
		refresh_hash BLOB NOT NULL DEFAULT x'',
		rotated_at   INTEGER NOT NULL DEFAULT 0
	);
	CREATE INDEX session_user ON session (user_id);

	-- The keys that sign access tokens if JWT_SECRET_KEY is not set; the newest signs. A retired key
	-- verifies for token_ttl more seconds, the longest that a token it signed can live.
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

// addAuthStamp is the third migration: a counter that grows with each change of
// a user's password or of disabled, so that a login that began before such a
// change fails.
const addAuthStamp = `ALTER TABLE user ADD COLUMN auth_stamp INTEGER NOT NULL DEFAULT 0;`

// eventTables is the second migration: events, and the seals that links replaced.
const eventTables = `
	-- One act each, which changed something. The id is the cursor of the feed. No id is given twice,
	-- because the newest event is never deleted; AUTOINCREMENT would write to one more table.
	CREATE TABLE event (
		id         INTEGER NOT NULL PRIMARY KEY,
		at         INTEGER NOT NULL,
		type       TEXT NOT NULL,
		actor_id   INTEGER NOT NULL, -- the user who did it; 0: nobody who was signed in
		user_id    INTEGER NOT NULL, -- to whom; 0: to nobody
		session_id INTEGER NOT NULL, -- that began or ended, else that it was asked in; 0: none
		address    TEXT NOT NULL,    -- of the client; 'console': the command line; empty: userd itself
		changes    TEXT NOT NULL     -- the names of what changed, by commas, some as name=value
	);
	CREATE INDEX event_user ON event (user_id);
	CREATE INDEX event_type ON event (type);
	CREATE TABLE seal (event_id INTEGER NOT NULL PRIMARY KEY, key_id TEXT NOT NULL, mac BLOB NOT NULL, anchor BLOB NOT NULL DEFAULT x'');`

// linkTable is the fourth migration: the chain of events. SQLite cannot hash, so the first process
// that adds links covers the older events too. No table refers to seal, so it can be dropped.
const linkTable = `
	CREATE TABLE event_link (
		event_id INTEGER NOT NULL PRIMARY KEY, -- the last event that it covers
		at       INTEGER NOT NULL,             -- the time of that event, or a later one of an event before it
		hash     BLOB NOT NULL,                -- SHA-256 of the previous link's hash, event_id, at and the digest of the events
		previous BLOB, digest BLOB             -- these two, only in the base: the last link whose events are deleted
	);
	DROP TABLE seal;
	DELETE FROM secret WHERE name = 'seal';`

// maxID is the highest id that an import or an adopted database may bring: above
// it, JSON's numbers are not exact everywhere, and the counter could run out.
const maxID = 1<<53 - 1

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
		// A killed process left a rollback journal: SQLite must first undo its transaction.
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
		firstPages = append(firstPages, "event")
	}
	if version > 3 {
		firstPages = append(firstPages, "event_link")
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

// checkTutorial returns an error unless the Flask tutorial's app wrote the database and it can be
// adopted: it has a table user with the four columns, and perhaps more columns and tables.
func checkTutorial(ctx context.Context, db *sql.DB, path string) error {
	rows, err := db.QueryContext(ctx, `SELECT name, type, "notnull", dflt_value IS NULL, pk FROM pragma_table_info('user')`)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	defer rows.Close()
	missing := []string{"id", "username", "email", "password_hash"}
	var clashing, demanding []string
	for rows.Next() {
		var name, declared string
		var notNull, noDefault bool
		var key int
		if err := rows.Scan(&name, &declared, &notNull, &noDefault, &key); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		i := slices.Index(missing, strings.ToLower(name))
		switch {
		case i >= 0 && missing[i] == "id" && (key != 1 || !strings.EqualFold(declared, "INTEGER")):
			// not the row's id, so it could be anything
		case i >= 0:
			missing = slices.Delete(missing, i, i+1)
		case strings.Contains(addColumns+addAuthStamp, "ADD COLUMN "+strings.ToLower(name)+" "):
			clashing = append(clashing, name)
		case notNull && noDefault:
			demanding = append(demanding, name)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("%s is another program's database", path)
	case len(clashing) > 0:
		return fmt.Errorf("%s: userd needs the name of the column %s of the table user: rename it", path, strings.Join(clashing, ", "))
	case len(demanding) > 0:
		return fmt.Errorf("%s: userd cannot fill the column %s of the table user, which must not be NULL: give it a default", path, strings.Join(demanding, ", "))
	}
	var names string
	err = db.QueryRowContext(ctx, `
		SELECT coalesce(group_concat(name, ', '), '') FROM sqlite_schema WHERE name IN (
			'counter', 'session', 'signing_key', 'secret', 'event', 'seal', 'event_link',
			'user_username', 'user_email', 'user_admin', 'user_disabled', 'session_user', 'event_user', 'event_type')`).Scan(&names)
	if err == nil && names != "" {
		err = fmt.Errorf("userd needs the names %s, which tables or indexes have: rename them", names)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var highest int64
	err = db.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM user`).Scan(&highest)
	if err == nil && highest > maxID {
		err = fmt.Errorf("the user with the id %d has a higher one than userd can go on from", highest)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var n int
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM user WHERE username IS NULL OR email IS NULL OR password_hash IS NULL`).Scan(&n)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d users lack a username, an email or a password_hash", n)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
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
