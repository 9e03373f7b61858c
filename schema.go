package main

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"userd/internal/sqlitefile"
)

// applicationID marks a database as userd's in its header ("user" in ASCII).
const applicationID = 0x75736572

// markOwner writes applicationID.
var markOwner = fmt.Sprintf("PRAGMA application_id = %d", applicationID)

// migrations upgrade an empty database to the current schema, one transaction each; PRAGMA
// user_version counts them. They add tables, indexes, and columns with constant defaults. They never
// rebuild a table: that would empty tables that cascade from it. The fourth drops a table to which
// no other table refers.
var migrations = []string{
	tutorialTable + addColumns + restOfSchema,
	eventTables,
	addAuthStamp,
	linkTable,
	addRekeying,
	addGraceUses,
	signerTable,
	codeTables,
	mailTables,
	keyTables,
	factorTables,
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
	-- Small indexes, for the check for another active admin and for the filters of user lists.
	CREATE INDEX user_admin ON user (id) WHERE role = 'admin';
	CREATE INDEX user_disabled ON user (id) WHERE disabled = 1;

	-- The last user id given out. SQLite would reuse the id of a deleted last user, and an
	-- old token of that user would then be valid for the new one.
	CREATE TABLE counter (
		id      INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
		user_id INTEGER NOT NULL
	);
	INSERT INTO counter (id, user_id) SELECT 1, coalesce(max(id), 0) FROM user;

	-- One row for each login. The id is the sid of its tokens.
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

	-- The keys that sign access tokens if JWT_SECRET_KEY is not set. The newest signs. A retired key
	-- verifies for token_ttl more seconds, the longest lifetime of its tokens.
	CREATE TABLE signing_key (
		id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		kid        TEXT NOT NULL UNIQUE,
		secret     BLOB NOT NULL,
		created_at INTEGER NOT NULL,
		retired_at INTEGER NOT NULL DEFAULT 0,
		token_ttl  INTEGER NOT NULL DEFAULT 0
	);

	-- Random values for other purposes. Only that of the outbox leaves this file: it is in the IDs of mails.
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
	-- One row for each act that changed something. The id is the cursor of the feed. Ids are never
	-- reused, because the newest event is never deleted. AUTOINCREMENT would write to another table.
	CREATE TABLE event (
		id         INTEGER NOT NULL PRIMARY KEY,
		at         INTEGER NOT NULL,
		type       TEXT NOT NULL,
		actor_id   INTEGER NOT NULL, -- the user who did it; 0: not a signed-in user
		user_id    INTEGER NOT NULL, -- the user it was done to; 0: none
		session_id INTEGER NOT NULL, -- the session that began or ended, otherwise the actor's; 0: none
		address    TEXT NOT NULL,    -- of the client; 'console': the command line; empty: userd itself
		changes    TEXT NOT NULL     -- the names of the changed fields, separated by commas, some as name=value
	);
	CREATE INDEX event_user ON event (user_id);
	CREATE INDEX event_type ON event (type);
	CREATE TABLE seal (event_id INTEGER NOT NULL PRIMARY KEY, key_id TEXT NOT NULL, mac BLOB NOT NULL, anchor BLOB NOT NULL DEFAULT x'');`

// linkTable is the fourth migration: the chain of events. SQLite cannot hash, so the first process
// that adds links covers the older events too. No table refers to seal, so it can be dropped.
const linkTable = `
	CREATE TABLE event_link (
		event_id INTEGER NOT NULL PRIMARY KEY, -- the last event that the link covers
		at       INTEGER NOT NULL,             -- the latest time of the events so far
		hash     BLOB NOT NULL,                -- SHA-256 of the previous link's hash, event_id, at and the digest of the events
		previous BLOB, digest BLOB             -- inputs of hash; only in the base, the last link whose events are deleted
	);
	DROP TABLE seal;
	DELETE FROM secret WHERE name = 'seal';`

// addRekeying is the fifth migration. A request that changes the password re-keys its session: the
// session's access tokens of generations before rekeyed_at become invalid, except kept_jti, the token
// of the request. userd compares generations, because times have the precision of a second and clocks
// are set back.
const addRekeying = `
	ALTER TABLE session ADD COLUMN rekeyed_at INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE session ADD COLUMN kept_jti   TEXT NOT NULL DEFAULT '';`

// addGraceUses is the sixth migration: how often the last rotation of a refresh token was repeated.
const addGraceUses = `ALTER TABLE session ADD COLUMN grace_uses INTEGER NOT NULL DEFAULT 0;`

// signerTable is the seventh migration: with which kind of key the servers of this database sign.
// Commands read it, because their shells may lack the servers' environment.
const signerTable = `
	CREATE TABLE signer (
		id         INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
		configured INTEGER NOT NULL, -- 1: with JWT_SECRET_KEY; 0: with the newest key of signing_key
		since      INTEGER NOT NULL  -- the start of the first server that did so
	);`

// codeTables is the eighth migration: verified addresses, users that wait for approval, codes
// and invitations. The use of a reset code deletes it. The code of an invitation stays until it
// expires, and uses_left counts its uses. email is the address that a code is bound to.
const codeTables = `
	ALTER TABLE user ADD COLUMN email_verified_at INTEGER NOT NULL DEFAULT 0; -- 0: not verified
	ALTER TABLE user ADD COLUMN pending           INTEGER NOT NULL DEFAULT 0; -- 1: an admin must approve the user
	CREATE INDEX user_pending ON user (id) WHERE pending = 1;

	CREATE TABLE user_code (
		hash          BLOB NOT NULL PRIMARY KEY, -- SHA-256 of the code
		kind          TEXT NOT NULL,             -- the prefix of the code
		user_id       INTEGER NOT NULL,          -- 0: none
		email         TEXT NOT NULL,             -- empty: none
		invitation_id INTEGER NOT NULL,          -- 0: none
		created_by    INTEGER NOT NULL,          -- 0: the command line
		created_at    INTEGER NOT NULL,
		expires_at    INTEGER NOT NULL
	) WITHOUT ROWID;
	CREATE INDEX user_code_owner ON user_code (user_id);
	CREATE INDEX user_code_maker ON user_code (created_by);
	CREATE INDEX user_code_invitation ON user_code (invitation_id);
	CREATE INDEX user_code_expiry ON user_code (expires_at);

	CREATE TABLE user_invitation (
		id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		email      TEXT NOT NULL,    -- the only address that it is for; empty: any
		username   TEXT NOT NULL,    -- the only username that it is for; empty: any
		role       TEXT NOT NULL,    -- of the users that it admits
		uses_left  INTEGER NOT NULL,
		created_by INTEGER NOT NULL, -- 0: the command line
		created_at INTEGER NOT NULL,
		expires_at INTEGER NOT NULL
	);
	CREATE INDEX user_invitation_maker ON user_invitation (created_by);
	CREATE INDEX user_invitation_expiry ON user_invitation (expires_at);

	-- The pages that links open, as the last server stored them: commands run without its environment.
	CREATE TABLE page_url (
		page TEXT NOT NULL PRIMARY KEY,
		url  TEXT NOT NULL -- with {code} in the place of the code
	) WITHOUT ROWID;`

// mailTables is the ninth migration: pending addresses and registrations, which wait for their
// confirmation, and the outbox. Each try of a mail makes a new code, so no table contains a
// code. mail_id of user_code is the mail that contained it. For an undo code, email is the new
// address, and old_email is the address that the code restores.
const mailTables = `
	ALTER TABLE user ADD COLUMN pending_email TEXT NOT NULL DEFAULT ''; -- the next address; empty: none

	ALTER TABLE user_code ADD COLUMN old_email       TEXT NOT NULL DEFAULT '';
	ALTER TABLE user_code ADD COLUMN registration_id INTEGER NOT NULL DEFAULT 0; -- 0: none
	ALTER TABLE user_code ADD COLUMN mail_id         INTEGER NOT NULL DEFAULT 0; -- 0: not mailed
	CREATE INDEX user_code_registration ON user_code (registration_id) WHERE registration_id <> 0;

	-- The registrations of REGISTRATION=verified. A registration reserves neither its username nor its address.
	CREATE TABLE user_registration (
		id            INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		username      TEXT NOT NULL,
		email         TEXT NOT NULL,
		password_hash TEXT NOT NULL,
		created_at    INTEGER NOT NULL,
		expires_at    INTEGER NOT NULL
	);
	CREATE INDEX user_registration_expiry ON user_registration (expires_at);

	CREATE TABLE user_mail (
		id          INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		kind        TEXT NOT NULL,
		user_id     INTEGER NOT NULL, -- 0: none, or not known yet
		login       TEXT NOT NULL,    -- what a client typed, until the user is looked up
		email       TEXT NOT NULL,    -- the recipient; empty: not known yet
		subject_id  INTEGER NOT NULL, -- of the invitation or the registration; for undo: 1 if the user had a second factor; otherwise 0
		detail      TEXT NOT NULL,    -- depends on kind
		address     TEXT NOT NULL,    -- of the client that caused it
		user_agent  TEXT NOT NULL,
		created_at  INTEGER NOT NULL,
		next_try_at INTEGER NOT NULL, -- while a process sends it: when others may try
		tries       INTEGER NOT NULL DEFAULT 0,
		budget      INTEGER NOT NULL DEFAULT 0, -- the limit of its recipient that it counts toward; 0: none
		state       TEXT NOT NULL DEFAULT 'queued', -- then sent, failed or dropped
		closed_at   INTEGER NOT NULL DEFAULT 0,     -- when state changed
		last_error  TEXT NOT NULL DEFAULT ''
	);
	CREATE INDEX user_mail_queue ON user_mail (next_try_at) WHERE state = 'queued';
	CREATE INDEX user_mail_owner ON user_mail (user_id);
	CREATE INDEX user_mail_recipient ON user_mail (email COLLATE NOCASE, created_at) WHERE budget <> 0;
	CREATE INDEX user_mail_closed ON user_mail (closed_at) WHERE state <> 'queued';`

// keyTables is the tenth migration: API keys, and service users, which have only API keys.
const keyTables = `
	ALTER TABLE user ADD COLUMN service INTEGER NOT NULL DEFAULT 0; -- 1: a service user, which has no password and no address

	CREATE TABLE user_key (
		id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
		user_id      INTEGER NOT NULL,
		name         TEXT NOT NULL,
		prefix       TEXT NOT NULL,        -- the first characters of the key, so that people recognize it
		hash         BLOB NOT NULL UNIQUE, -- SHA-256 of the key
		scope        TEXT NOT NULL,        -- verify, read, write or admin
		created_at   INTEGER NOT NULL,
		expires_at   INTEGER NOT NULL,     -- 0: never
		last_used_at INTEGER NOT NULL DEFAULT 0,
		last_address TEXT NOT NULL DEFAULT ''
	);
	CREATE INDEX user_key_owner ON user_key (user_id);
	CREATE INDEX user_key_expiry ON user_key (expires_at) WHERE expires_at > 0;`

// factorTables is the eleventh migration: second factors. Every session of a user with a row in
// user_totp has session.factor = 1, because adding a factor ends the others.
const factorTables = `
	ALTER TABLE session ADD COLUMN factor INTEGER NOT NULL DEFAULT 0; -- 1: the user proved its second factor

	CREATE TABLE user_totp (
		user_id      INTEGER NOT NULL PRIMARY KEY,
		secret       BLOB NOT NULL,    -- sealed
		confirmed_at INTEGER NOT NULL,
		last_step    INTEGER NOT NULL, -- of the last code that was accepted, in periods of 30 seconds since 1970
		failures     INTEGER NOT NULL DEFAULT 0 -- wrong codes since then
	);
	-- The names of the keys that sealed the secrets: see sealKeys.
	CREATE INDEX user_totp_key ON user_totp (substr(secret, 1, 8));
	CREATE TABLE user_totp_pending (
		user_id    INTEGER NOT NULL PRIMARY KEY,
		secret     BLOB NOT NULL, -- sealed
		created_at INTEGER NOT NULL
	);
	CREATE TABLE user_recovery_code (
		hash    BLOB NOT NULL PRIMARY KEY, -- SHA-256 of the code
		user_id INTEGER NOT NULL
	) WITHOUT ROWID;
	CREATE INDEX user_recovery_code_owner ON user_recovery_code (user_id);`

// maxID is the highest id that an imported or adopted user may have. JavaScript rounds
// integers from 2^53 on, and the ids of later users, which are higher, must stay below.
const maxID = 1<<52 - 1

var (
	createTable = regexp.MustCompile(`CREATE TABLE (\w+)`)
	dropTable   = regexp.MustCompile(`DROP TABLE (\w+)`)
	createAny   = regexp.MustCompile(`CREATE (?:TABLE|INDEX|UNIQUE INDEX) (\w+)`)
)

// tablesOf returns the tables that migrations make and do not drop, in their order.
func tablesOf(migrations []string) (tables []string) {
	script := strings.Join(migrations, "")
	dropped := dropTable.FindAllString(script, -1)
	for _, match := range createTable.FindAllStringSubmatch(script, -1) {
		if !slices.Contains(dropped, "DROP TABLE "+match[1]) {
			tables = append(tables, match[1])
		}
	}
	return tables
}

// findHooks returns the triggers and views whose SQL mentions a table of userd. A
// trigger of another table counts too, because a deletion can cascade to that table.
func findHooks(ctx context.Context, db sqlitefile.Querier) (hooks []string, err error) {
	var tables []string
	for _, match := range createTable.FindAllStringSubmatch(strings.Join(migrations, ""), -1) {
		tables = append(tables, match[1])
	}
	mention := regexp.MustCompile(`(?i)\b(` + strings.Join(tables, "|") + `)\b`)
	var kind, name, table, text string
	err = sqlitefile.Scan(ctx, db, `SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE type IN ('trigger', 'view') ORDER BY name`,
		[]any{&kind, &name, &table, &text}, func() {
			switch {
			case !mention.MatchString(text):
			case kind == "trigger":
				hooks = append(hooks, fmt.Sprintf("trigger %q on table %q", name, table))
			default:
				hooks = append(hooks, fmt.Sprintf("view %q", name))
			}
		})
	return hooks, err
}

// refuseHooks returns an error that names what findHooks finds, if anything. A trigger
// could make any user an admin, within a write of userd.
func refuseHooks(ctx context.Context, db sqlitefile.Querier) error {
	hooks, err := findHooks(ctx, db)
	if err == nil && len(hooks) > 0 {
		err = fmt.Errorf("userd refuses triggers and views that use its tables, and found %s: find out what they do, then drop them with sqlite3", strings.Join(hooks, ", "))
	}
	return err
}

// migrate runs the scripts that the database still lacks.
func migrate(ctx context.Context, conn *sql.Conn, scripts []string) error {
	for done := false; !done; {
		var err error
		if done, err = migrateOnce(ctx, conn, scripts); err != nil {
			return fmt.Errorf("upgrading the database: %w", err)
		}
	}
	return nil
}

// migrateOnce runs one script, or returns true if there are none left. It reads the
// version under the write lock, because another process may be opening the same new
// file.
func migrateOnce(ctx context.Context, conn *sql.Conn, scripts []string) (done bool, err error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return false, err
	}
	if version >= len(scripts) {
		return true, nil
	}
	script := scripts[version] + fmt.Sprintf("; %s; PRAGMA user_version = %d", markOwner, version+1)
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return false, fmt.Errorf("migration %d: %w", version+1, err)
	}
	return false, tx.Commit()
}
