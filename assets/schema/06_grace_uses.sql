-- How often the last rotation of a refresh token was repeated.
ALTER TABLE session ADD COLUMN grace_uses INTEGER NOT NULL DEFAULT 0;
