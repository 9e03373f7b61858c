-- API keys, and service users, which have only API keys.
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
CREATE INDEX user_key_expiry ON user_key (expires_at) WHERE expires_at > 0;
