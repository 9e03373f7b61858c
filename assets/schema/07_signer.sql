-- With which kind of key the servers of this database sign.
-- Commands read it, because their shells may lack the servers' environment.
CREATE TABLE signer (
	id         INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
	configured INTEGER NOT NULL, -- 1: with JWT_SECRET_KEY; 0: with the newest key of signing_key
	since      INTEGER NOT NULL  -- the start of the first server that did so
);
