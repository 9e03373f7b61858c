-- The chain of events. SQLite cannot hash, so the first process
-- that adds links covers the older events too. No table refers to seal, so it can be dropped.
CREATE TABLE event_link (
	event_id INTEGER NOT NULL PRIMARY KEY, -- the last event that the link covers
	at       INTEGER NOT NULL,             -- the latest time of the events so far
	hash     BLOB NOT NULL,                -- SHA-256 of the previous link's hash, event_id, at and the digest of the events
	previous BLOB, digest BLOB             -- inputs of hash; only in the base, the last link whose events are deleted
);
DROP TABLE seal;
DELETE FROM secret WHERE name = 'seal';
