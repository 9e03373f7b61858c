-- A request that changes the password re-keys its session: the
-- session's access tokens of generations before rekeyed_at become invalid, except kept_jti, the token
-- of the request. userd compares generations, because times have the precision of a second and clocks
-- are set back.
ALTER TABLE session ADD COLUMN rekeyed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN kept_jti   TEXT NOT NULL DEFAULT '';
