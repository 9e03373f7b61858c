-- Events, and the seals that links replaced.
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
CREATE TABLE seal (event_id INTEGER NOT NULL PRIMARY KEY, key_id TEXT NOT NULL, mac BLOB NOT NULL, anchor BLOB NOT NULL DEFAULT x'');
