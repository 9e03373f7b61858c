CREATE TABLE user (
	id            INTEGER NOT NULL PRIMARY KEY,
	username      VARCHAR(80) NOT NULL,
	email         VARCHAR(120) NOT NULL,
	password_hash VARCHAR(128) NOT NULL
);
