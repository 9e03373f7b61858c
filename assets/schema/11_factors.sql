-- Second factors. Every session of a user with a row in
-- user_totp has session.factor = 1, because adding a factor ends the others.
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
CREATE INDEX user_recovery_code_owner ON user_recovery_code (user_id);
