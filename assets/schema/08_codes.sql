-- Verified addresses, users that wait for approval, codes
-- and invitations. The use of a reset code deletes it. The code of an invitation stays until it
-- expires, and uses_left counts its uses. email is the address that a code is bound to.
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
) WITHOUT ROWID;
