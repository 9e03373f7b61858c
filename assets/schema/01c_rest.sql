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
) WITHOUT ROWID;
