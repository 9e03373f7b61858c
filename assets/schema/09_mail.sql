-- Pending addresses and registrations, which wait for their
-- confirmation, and the outbox. Each try of a mail makes a new code, so no table contains a
-- code. mail_id of user_code is the mail that contained it. For an undo code, email is the new
-- address, and old_email is the address that the code restores.
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
	subject_id  INTEGER NOT NULL, -- of the invitation or the registration; 0: neither
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
CREATE INDEX user_mail_closed ON user_mail (closed_at) WHERE state <> 'queued';
