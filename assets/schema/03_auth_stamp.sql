-- A counter that grows with each change of
-- a user's password or of disabled, so that a login that began before such a
-- change fails.
ALTER TABLE user ADD COLUMN auth_stamp INTEGER NOT NULL DEFAULT 0;
