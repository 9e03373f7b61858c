package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// flaskDatabase returns the path of a database that the tutorial's app wrote
// (testdata/flask_app.py), in a directory of its own, after some more SQL.
func flaskDatabase(t *testing.T, more ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	data, err := os.ReadFile("testdata/flask.db")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, query := range more {
		runSQL(t, another(t, path), query)
	}
	return path
}

// flaskUsers returns the tutorial's columns of all users, and the post.
func flaskUsers(t *testing.T, path string) string {
	t.Helper()
	return scan[string](t, another(t, path), `
		SELECT group_concat(id || '|' || username || '|' || email || '|' || password_hash, char(10)) || (SELECT group_concat(user_id || text) FROM post)
		FROM (SELECT * FROM user ORDER BY id)`)
}

// backups returns the copies that adoptions of a database have made, the oldest first.
func backups(t *testing.T, path string) []string { return labeled(t, path, "before-userd") }

// labeled returns the files next to a database that safefile.TimestampedName named with a label, the
// oldest first.
func labeled(t *testing.T, path, label string) []string {
	t.Helper()
	found, err := filepath.Glob(path + "." + label + "-*Z")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAdoptedUsersGoOn(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t, `ALTER TABLE user ADD COLUMN shoe_size INTEGER`, `UPDATE user SET shoe_size = 44`)
	before := flaskUsers(t, path)
	sh := &shell{t, path}
	_, said := sh.run(0, "", "adopt")
	if found := backups(t, path); len(found) != 1 || !strings.Contains(said, found[0]) {
		t.Fatalf("copies: %v; said: %s", found, said)
	} else if info, err := os.Stat(found[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy has the mode %v, %v", info.Mode(), err)
	} else if kind, err := inspect(t.Context(), found[0]); kind != kindTutorial || err != nil || flaskUsers(t, found[0]) != before {
		t.Errorf("the copy is of kind %d, %v, with\n%s", kind, err, flaskUsers(t, found[0]))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the database has the mode %v, %v", info.Mode(), err)
	}
	if after := flaskUsers(t, path); after != before {
		t.Errorf("the users were\n%s\nand are\n%s", before, after)
	}
	if n := scan[int](t, another(t, path), `SELECT sum(shoe_size) FROM user`); n != 4*44 {
		t.Errorf("the column that is not ours adds up to %d", n)
	}

	s := newServiceOn(t, path)
	login := func(name, password string) string {
		t.Helper()
		return s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, password)).want(t, 200, "").field("access_token")
	}
	for _, u := range []struct{ id, name, password string }{
		{"1", "ann", "short"},
		{"2", "Bob Müller", goodPassword},
		{"4", "ann@example.com", "another long one"}, // the username goes before ann's address
		{"5", "GONE", goodPassword},
	} {
		for range 2 { // by the old hash, then by the new
			if got := s.do(login(u.name, u.password), "GET", "/api/users/me", "").field("id"); got != u.id {
				t.Errorf("%s is %s", u.name, got)
			}
		}
	}
	if hashes := scan[int](t, another(t, path), `SELECT count(*) FROM user WHERE password_hash GLOB '$argon2id$*'`); hashes != 4 {
		t.Errorf("%d hashes were replaced", hashes)
	}

	// What today's rules forbid stays as it is, and hinders no other change.
	bob := login("bob müller", goodPassword)
	r := s.do(bob, "GET", "/api/verify", "")
	if got := r.header.Get("X-User-Name"); got != "Bob%20M%C3%BCller" {
		t.Errorf("X-User-Name: %s", got)
	}
	fetched := s.do(bob, "GET", "/api/users/me", "")
	if fetched.field("email") != "not an address" || fetched.field("created_at") != "" || fetched.field("role") != "member" {
		t.Errorf("bob is %s", fetched.body)
	}
	s.do(bob, "PUT", "/api/users/me", fetched.body).want(t, 200, "")
	s.do(bob, "PUT", "/api/users/me", `{"email":"still none"}`).want(t, 400, "invalid_fields")
	s.do(bob, "PUT", "/api/users/me", `{"username":"Bob  Müller"}`).want(t, 400, "invalid_fields")
	s.do(bob, "PUT", "/api/users/me", `{"email":"bob@example.com"}`).want(t, 200, "")

	if _, id := s.register("new"); id != "6" {
		t.Errorf("the next id is %s", id)
	}
	s.do(login("gone", goodPassword), "DELETE", "/api/users/me", "").want(t, 200, "")
	if posts := scan[int](t, another(t, path), `SELECT count(*) FROM post`); posts != 1 {
		t.Errorf("%d posts", posts)
	}
	if kind, err := inspect(t.Context(), path); kind != kindUserd || err != nil {
		t.Errorf("inspect says %d, %v", kind, err)
	}
}

// If an operator goes back to the Flask app and it adds users, no ids conflict.
func TestTheCounterPassesIDsThatOthersGave(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t)
	(&shell{t, path}).run(0, "", "adopt")
	s := newServiceOn(t, path)
	runSQL(t, another(t, path), `INSERT INTO user (username, email, password_hash) VALUES ('late', 'late@example.com', 'x')`)
	if _, id := s.register("new"); id != "7" {
		t.Errorf("the next id is %s", id)
	}
}

// A table of another program can forbid the deletion of a user. That is not a failure of
// the database, and other writes of the same group succeed.
func TestDeletingAUserThatOtherDataRefersTo(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t, `CREATE TABLE bill (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES user (id))`, `INSERT INTO bill (user_id) VALUES (1)`)
	(&shell{t, path}).run(0, "", "adopt")
	s := newServiceOn(t, path)
	token := s.do("", "POST", "/api/login", `{"username":"ann","password":"short"}`).want(t, 200, "").field("access_token")
	s.do(token, "DELETE", "/api/users/me", "").want(t, 409, "user_referenced")
	s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
}

func TestDuplicatesAreRefusedOrRenamed(t *testing.T) {
	t.Parallel()
	duplicates := []string{
		`INSERT INTO user (id, username, email, password_hash) VALUES (7, 'ANN', 'seven@example.com', 'x'), (8, 'Ann', 'eight', 'x'), (9, 'nine', 'ANN@example.com', 'x'), (10, 'ten', 'EIGHT', 'x')`,
	}
	t.Run("refused, by name, and nothing has changed", func(t *testing.T) {
		path := flaskDatabase(t, duplicates...)
		before := snapshot(t, filepath.Dir(path))
		_, said := (&shell{t, path}).run(1, "", "adopt")
		for _, want := range []string{`username "ann", id 1`, `username "ANN", id 7`, `username "Ann", id 8`, `email "ann@example.com", id 1`, `email "ANN@example.com", id 9`, `email "eight", id 8`, `email "EIGHT", id 10`, "userd adopt -resolve"} {
			if !strings.Contains(said, want) {
				t.Errorf("%s is not in %s", want, said)
			}
		}
		if strings.Contains(said, "id 2") || strings.Contains(said, "seven") {
			t.Errorf("too much is named: %s", said)
		}
		if after := snapshot(t, filepath.Dir(path)); after != before {
			t.Errorf("the files were\n%s\nand are\n%s", before, after)
		}
		if got := userdHere(t, "", []string{"DATABASE_URL=" + path, "ADDR=127.0.0.1:0"}); got.status != 1 || !strings.Contains(got.stderr, `"ANN", id 7`) {
			t.Errorf("the server ended with %d, %s", got.status, got.stderr)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		path := flaskDatabase(t, duplicates...)
		before := flaskUsers(t, path)
		_, said := (&shell{t, path}).run(0, "", "adopt", "-resolve", "suffix")
		for _, line := range []string{`username of user 7 from "ANN" to "ANN-7"`, `username of user 8 from "Ann" to "Ann-8"`, `email of user 9 from "ANN@example.com" to "ANN+9@example.com"`, `email of user 10 from "EIGHT" to "EIGHT+10"`} {
			if !strings.Contains(said, "changed the "+line+"\n") {
				t.Errorf("%s is not in %s", line, said)
			}
		}
		if n := strings.Count(said, "changed the "); n != 4 {
			t.Errorf("%d changes: %s", n, said)
		}
		const want = "1 ann ann@example.com, 7 ANN-7 seven@example.com, 8 Ann-8 eight, 9 nine ANN+9@example.com, 10 ten EIGHT+10"
		got := scan[string](t, another(t, path), `SELECT group_concat(id || ' ' || username || ' ' || email, ', ') FROM (SELECT * FROM user WHERE id = 1 OR id > 5 ORDER BY id)`)
		if got != want {
			t.Errorf("got %s", got)
		}
		if found := backups(t, path); len(found) != 1 || flaskUsers(t, found[0]) != before {
			t.Errorf("the copies %v do not hold what was", found)
		}
	})
	t.Run("renamed, with an event for each renamed user", func(t *testing.T) {
		path := flaskDatabase(t, append(duplicates, `INSERT INTO user (id, username, email, password_hash) VALUES (11, 'TEN', 'Seven@example.com', 'x'), (12, 'twelve', 'Ann@example.com', 'x')`)...)
		sh := &shell{t, path}
		sh.run(0, "", "adopt", "-resolve", "suffix")
		want := []string{
			`user_changed actor=0 user=7 session=0 "console" "username"`,
			`user_changed actor=0 user=8 session=0 "console" "username"`,
			`user_changed actor=0 user=9 session=0 "console" "email"`,
			`user_changed actor=0 user=10 session=0 "console" "email"`,
			`user_changed actor=0 user=11 session=0 "console" "username,email"`,
			`user_changed actor=0 user=12 session=0 "console" "email"`,
		}
		if got := eventLines(t, openTestStore(t, path), 0); !slices.Equal(got, want) {
			t.Errorf("the events are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if out, _ := sh.run(0, "", "events", "verify"); !strings.HasSuffix(out, "\nevents without a link yet: 0\n") {
			t.Errorf("events verify prints %s", out)
		}
	})
	for _, taken := range []string{"ANN-7", "ann-7"} {
		t.Run("refused if a user has the new name "+taken, func(t *testing.T) {
			path := flaskDatabase(t, fmt.Sprintf(`INSERT INTO user (id, username, email, password_hash) VALUES (7, 'ANN', 'seven', 'x'), (8, '%s', 'eight', 'x')`, taken))
			_, said := (&shell{t, path}).run(1, "", "adopt", "-resolve", "suffix")
			if !strings.Contains(said, "a user already has the name") {
				t.Errorf("said %s", said)
			}
			if found := backups(t, path); len(found) != 0 {
				t.Errorf("an unchanged database was copied: %v", found)
			}
		})
	}
	t.Run("refused if nothing is left of the name", func(t *testing.T) {
		path := flaskDatabase(t, `DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash)`,
			`INSERT INTO user VALUES (1, 'a', '', 'x'), (2, 'b', '', 'x'), (3, ' ', 'c', 'x'), (4, ' ', 'd', 'x'), (5, 'e', 'e', 'x')`)
		before := snapshot(t, filepath.Dir(path))
		_, said := (&shell{t, path}).run(1, "", "adopt", "-resolve", "suffix")
		if !strings.Contains(said, "username of user 3, username of user 4, email of user 1, email of user 2\n") {
			t.Errorf("said %s", said)
		}
		if after := snapshot(t, filepath.Dir(path)); after != before {
			t.Errorf("the files were\n%s\nand are\n%s", before, after)
		}
		runSQL(t, another(t, path), `UPDATE user SET email = 'b@example.com' WHERE id = 2`, `UPDATE user SET username = 'd' WHERE id = 4`)
		(&shell{t, path}).run(0, "", "adopt") // one can stay
	})
	t.Run("refused with any other word", func(t *testing.T) {
		for _, word := range []string{"oldest", ""} { // oldest deleted users in earlier versions
			(&shell{t, flaskDatabase(t, duplicates...)}).run(2, "", "adopt", "-resolve", word)
		}
	})
}

// An app that does not decode bcrypt's bytes stores BLOBs, and some store numbers.
func TestBytesBecomeText(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t,
		`UPDATE user SET username = CAST(username AS BLOB), email = CAST(email AS BLOB), password_hash = CAST(password_hash AS BLOB) WHERE id IN (1, 2)`)
	(&shell{t, path}).run(0, "", "adopt")
	s := newServiceOn(t, path)
	token := s.do("", "POST", "/api/login", `{"username":"ann","password":"short"}`).want(t, 200, "").field("access_token")
	s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
	s.do("", "POST", "/api/login", `{"username":"Bob Müller","password":"`+goodPassword+`"}`).want(t, 200, "")
	if n := len(usernames(t, s.store)); n != 4 {
		t.Errorf("%d users", n)
	}
	for _, column := range []string{"username", "email", "password_hash"} {
		if types := scan[string](t, another(t, path), `SELECT group_concat(DISTINCT typeof(`+column+`)) FROM user`); types != "text" {
			t.Errorf("%s is %s", column, types)
		}
	}
	t.Run("and can then be a duplicate", func(t *testing.T) {
		path := flaskDatabase(t, `INSERT INTO user VALUES (7, CAST('ann' AS BLOB), x'61', 'x')`)
		_, said := (&shell{t, path}).run(1, "", "adopt")
		if !strings.Contains(said, `username "ann", id 7`) {
			t.Errorf("said %s", said)
		}
		(&shell{t, path}).run(0, "", "adopt", "-resolve", "suffix")
		if got := scan[string](t, another(t, path), `SELECT username || typeof(username) || email || typeof(email) FROM user WHERE id = 7`); got != "ann-7textatext" {
			t.Errorf("got %s", got)
		}
	})
}

func TestTimesOfTheAppAreTakenOver(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t,
		`DROP TABLE user`,
		`CREATE TABLE user (id INTEGER PRIMARY KEY, username TEXT, email TEXT, password_hash TEXT, Created_At DATETIME NOT NULL, updated_at DATETIME)`,
		`INSERT INTO user VALUES
			(1, 'a', 'a@example.com', 'x', '2024-01-02 03:04:05.678901', NULL),
			(2, 'b', 'b@example.com', 'x', '2024-01-02T03:04:05Z', '2024-01-02T05:04:05+02:00'),
			(3, 'c', 'c@example.com', 'x', '2024-01-02', 1704164645),
			(4, 'd', 'd@example.com', 'x', 1704164645.5, '')`)
	(&shell{t, path}).run(1, "", "adopt") // the empty time is not a date
	runSQL(t, another(t, path), `UPDATE user SET updated_at = '2024-01-02 03:04' WHERE id = 4`)
	_, said := (&shell{t, path}).run(0, "", "adopt")
	if !strings.Contains(said, "takes over: created_at, updated_at\n") {
		t.Errorf("said %s", said)
	}
	const want = "1704164645 0, 1704164645 1704164645, 1704153600 1704164645, 1704164645 1704164640"
	conn := another(t, path)
	if got := scan[string](t, conn, `SELECT group_concat(created_at || ' ' || updated_at, ', ') FROM user`); got != want {
		t.Errorf("the times are %s, want %s", got, want)
	}
	if types := scan[string](t, conn, `SELECT group_concat(DISTINCT typeof(created_at) || typeof(updated_at)) FROM user`); types != "integerinteger" {
		t.Errorf("they are %s", types)
	}
	if left := scan[int](t, conn, `SELECT count(*) FROM pragma_table_info('user') WHERE name LIKE 'taken%'`); left != 0 {
		t.Error("the app's columns are left")
	}
	newServiceOn(t, path).register("new") // which needs no value for the app's columns
}

// Every refusal says what was found and how to import the users. The SQL that it
// prints makes a file that user import accepts.
func TestARefusalLeadsToAnImport(t *testing.T) {
	t.Parallel()
	hash := scan[string](t, another(t, flaskDatabase(t)), `SELECT password_hash FROM user WHERE username = 'gone'`) // of goodPassword
	for _, c := range []struct {
		claim string
		sql   []string
		says  string
	}{
		{"a table users with text ids and bytes", []string{`CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT, email TEXT, password BLOB, is_admin BOOLEAN, is_active BOOLEAN)`,
			`INSERT INTO users SELECT 'u1', 'ann', 'ann@example.com', CAST('%s' AS BLOB), 1, 1`}, `found "post" (text), "users" (id TEXT, name TEXT, email TEXT, password BLOB, is_admin BOOLEAN, is_active BOOLEAN)`},
		{"a column role", []string{`CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash, role NOT NULL, disabled NOT NULL, created_at)`,
			`INSERT INTO user SELECT 7, 'ann', 'ann@example.com', '%s', 'admin', 0, '2024-01-02 03:04:05.678'`}, "the name of the column role"},
		{"a required column", []string{`CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash, is_admin BOOLEAN NOT NULL)`,
			`INSERT INTO user SELECT 7, 'ann', 'ann@example.com', '%s', 1`}, "cannot fill the column is_admin"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := makeDatabase(t, `CREATE TABLE post (text)`, c.sql[0], fmt.Sprintf(c.sql[1], hash))
			got := userdHere(t, "", []string{"DATABASE_URL=" + path, "ADDR=127.0.0.1:0"})
			got.wantFailure(t, 1, c.says, "userd user import -database new.db users.csv", "'"+path+"'")
			_, query, _ := strings.Cut(got.stderr, `"SELECT `)
			query, _, _ = strings.Cut(query, `" >users.csv`)
			rows, err := another(t, path).QueryContext(t.Context(), "SELECT "+query)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			names, err := rows.Columns()
			if err != nil || !rows.Next() {
				t.Fatal(err)
			}
			values, row := make([]string, len(names)), make([]any, len(names))
			for i := range row {
				row[i] = &values[i]
			}
			if err := rows.Scan(row...); err != nil {
				t.Fatal(err)
			}
			sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
			sh.run(0, strings.Join(names, ",")+"\n"+strings.Join(values, ",")+"\n", "user", "import", "-")
			s := newServiceOn(t, sh.database)
			token := s.login("ann")
			if r := s.do(token, "GET", "/api/users/me", ""); r.field("role") != "admin" {
				t.Errorf("ann is %s", r.body)
			}
		})
	}
	t.Run("unless no table holds users", func(t *testing.T) {
		path := makeDatabase(t, `CREATE TABLE song (title)`)
		got := userdHere(t, "", []string{"DATABASE_URL=" + path, "ADDR=127.0.0.1:0"})
		got.wantFailure(t, 1, `found "song" (title)`)
		if strings.Contains(got.stderr, "import") {
			t.Errorf("said %s", got.stderr)
		}
	})
}

// userd refuses a database that it cannot adopt, and does not change it.
func TestADatabaseThatCannotBeAdoptedIsRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		claim string
		sql   []string
		says  string
	}{
		{"a column that userd needs", []string{`ALTER TABLE user ADD COLUMN role TEXT`}, "the name of the column role"},
		{"times that are not dates", []string{`ALTER TABLE user ADD COLUMN created_at DATETIME`, `UPDATE user SET created_at = 'yesterday' WHERE id > 3`}, "the column created_at holds 'yesterday' for user 4"},
		{"times from before 1970", []string{`ALTER TABLE user ADD COLUMN updated_at DATETIME`, `UPDATE user SET updated_at = '1969-12-31' WHERE id = 2`}, "the column updated_at holds '1969-12-31' for user 2"},
		{"times in milliseconds", []string{`ALTER TABLE user ADD COLUMN created_at INTEGER`, `UPDATE user SET created_at = 1700000000000`}, "1700000000000 for user 1"},
		{"times with an index", []string{`ALTER TABLE user ADD COLUMN created_at DATETIME`, `CREATE INDEX ix ON user (created_at)`}, `drop the index`},
		{"a column that does not keep text", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username STRING, email, password_hash)`}, "username is declared as STRING"},
		{"a column that userd cannot fill", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash, team TEXT NOT NULL)`}, "team"},
		{"a column missing", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username, email)`}, "another program"},
		{"an id of another kind", []string{`DROP TABLE user`, `CREATE TABLE user (id TEXT PRIMARY KEY, username, email, password_hash)`}, "another program"},
		{"a table of two keys", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER, username, email, password_hash, PRIMARY KEY (username, id))`}, "another program"},
		{"a table with a user without a password", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash)`, `INSERT INTO user VALUES (1, 'a', 'b', NULL)`}, "user 1 has no password_hash"},
		{"users without an address or a name, each by its id", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash)`, `INSERT INTO user VALUES (3, 'a', NULL, 'x'), (7, NULL, NULL, 'x'), (8, 'c', 'c', 'x')`}, "user 3 has no email, user 7 has no username and no email"},
		{"many of them", []string{`DROP TABLE user`, `CREATE TABLE user (id INTEGER PRIMARY KEY, username, email, password_hash)`, `INSERT INTO user (username) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) SELECT i FROM n`}, "and 40 more"},
		{"bytes that are not text", []string{`UPDATE user SET username = x'ff' WHERE id = 2`}, "user 2 has bytes in username that are not UTF-8 text"},
		{"text that ends early", []string{`UPDATE user SET email = 'a' || char(0) || 'b' WHERE id = 2`}, "user 2 has bytes in email"},
		{"an id that leaves later ones no room", []string{`UPDATE user SET id = 4503599627370496 WHERE id = 2`}, "user 4503599627370496 has an id outside"},
		{"an id below 1", []string{`UPDATE user SET id = 0 WHERE id = 2`}, "user 0 has an id outside"},
		{"a table of userd's name", []string{`CREATE TABLE session (id INTEGER)`}, "session"},
		{"a table of the name of one that a later migration makes", []string{`CREATE TABLE event (id INTEGER)`}, "names event"},
		{"a table of the name of the table of links", []string{`CREATE TABLE event_link (id INTEGER)`}, "names event_link"},
		{"an index of userd's name", []string{`CREATE INDEX user_email ON user (email)`}, "user_email"},
		{"an id near the end of all", []string{`INSERT INTO user VALUES (9223372036854775807, 'a', 'b', 'c')`}, "9223372036854775807"},
		{"a trigger on the table user", []string{`CREATE TRIGGER promote AFTER INSERT ON user BEGIN SELECT 1; END`}, `trigger "promote" on table "user"`},
		{"a view of the table user", []string{`CREATE VIEW hashes AS SELECT password_hash FROM user`}, `view "hashes"`},
		{"no table user", []string{`DROP TABLE user`}, "another program"},
		{"a version of another program", []string{`PRAGMA user_version = 1`}, "another program"},
	} {
		t.Run(test.claim, func(t *testing.T) {
			path := flaskDatabase(t, test.sql...)
			before := snapshot(t, filepath.Dir(path))
			got := userdHere(t, "", []string{"DATABASE_URL=" + path, "ADDR=127.0.0.1:0"})
			got.wantFailure(t, 1, test.says)
			if after := snapshot(t, filepath.Dir(path)); after != before {
				t.Errorf("the files were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// Flask-SQLAlchemy 3 keeps app.db in instance/. An empty database next to that directory
// would look as if all users were deleted.
func TestTheInstanceDirectoryIsSeen(t *testing.T) {
	t.Parallel()
	for _, empty := range []bool{false, true} {
		path := flaskDatabase(t)
		dir := filepath.Dir(path)
		instance := filepath.Join(dir, "instance")
		if err := os.Mkdir(instance, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, filepath.Join(instance, "app.db")); err != nil {
			t.Fatal(err)
		}
		if empty {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := snapshot(t, dir)
		userdHere(t, "", []string{"DATABASE_URL=" + path, "ADDR=127.0.0.1:0"}).wantFailure(t, 1, "DATABASE_URL=sqlite:///"+filepath.Join(instance, "app.db"))
		(&shell{t, path}).run(1, goodPassword, "user", "add", "root", "root@example.com")
		if after := snapshot(t, dir); after != before {
			t.Errorf("the files were\n%s\nand are\n%s", before, after)
		}
	}
}

// If userd is killed at any instant of the upgrade, the file is the old or the new one.
func TestAdoptionKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t, `
		WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 8000)
		INSERT INTO user (id, username, email, password_hash) SELECT i, 'user' || i, 'user' || i || '@example.com', 'x' FROM n`)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[fileKind]int)
	var whole time.Duration
	const rounds = 12
	for round := 0; round <= rounds || kinds[kindTutorial] == 0 && round < 10*rounds; round++ {
		path := filepath.Join(t.TempDir(), "app.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := userdCommand(t, filepath.Dir(path), nil, "adopt")
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			defer time.AfterFunc(whole*time.Duration((round-1)%rounds)/rounds+rand.N(whole/rounds), func() { cmd.Process.Kill() }).Stop()
		}
		cmd.Wait()
		if round == 0 {
			whole = time.Since(begun)
		}
		kind, err := inspect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		kinds[kind]++
		for _, backup := range backups(t, path) { // whatever has the name of a copy is one
			if n := scan[int](t, another(t, backup), `SELECT count(*) FROM user`); n != 7905 {
				t.Errorf("a copy of %d users", n)
			}
		}
		conn := another(t, path)
		if n := scan[int](t, conn, `SELECT count(*) FROM user`); n != 7905 {
			t.Errorf("%d users", n)
		}
		if found := scan[string](t, conn, `PRAGMA integrity_check`); found != "ok" {
			t.Error(found)
		}
		if kind == kindUserd {
			if n := scan[int](t, conn, `SELECT user_id FROM counter`); n != 8000 {
				t.Errorf("the counter is %d", n)
			}
		}
	}
	if kinds[kindTutorial] == 0 || kinds[kindUserd] == 0 {
		t.Errorf("found %v, want adoptions that ended and others that did not", kinds)
	}
	t.Logf("found %v", kinds)
}

// A login with a hash of an unknown format fails, and the start logs one warning.
func TestUnknownHashesAreWarnedOf(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t, `UPDATE user SET password_hash = 'md5$x$5f4dcc3b5aa765d61d8327deb882cf99' WHERE id IN (1, 2)`)
	p := startUserd(t, filepath.Dir(path), nil)
	if n := p.awaitLog("users with an unknown password hash cannot log in")["users"]; n != 2.0 {
		t.Errorf("%v users are warned of", n)
	}
	p.must("", "POST", "/api/login", `{"username":"ann","password":"password"}`).want(t, 401, "invalid_credentials")
}

// The tutorial's own app, by Debian's Flask, before userd and after it; and
// userd's tokens, by Debian's PyJWT.
func TestFlaskAndBack(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	const python = "/usr/bin/python3" // Debian's, which sees Debian's packages
	script, err := filepath.Abs("testdata/flask_app.py")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	runPython := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(python, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	runPython(script, dir)
	const key = "a secret that two services share, long enough"
	environ := []string{"DATABASE_URL=sqlite:///app.db", "JWT_SECRET_KEY=" + key}
	p := startUserd(t, dir, environ)
	p.must("", "POST", "/api/login", `{"username":"Bob Müller","password":"correct horse battery"}`).want(t, 200, "")
	p.end(os.Interrupt)

	runPython(script, dir, "again") // ann's hash is still Flask's
	p = startUserd(t, dir, environ)
	p.must("", "POST", "/api/login", `{"username":"late","password":"correct horse battery"}`).want(t, 200, "")
	if id := p.register("next"); id != 7 {
		t.Errorf("the next id is %d", id)
	}
	token := p.login("late", goodPassword)
	claims := runPython("-c", `
import jwt, sys
c = jwt.decode(sys.argv[1], sys.argv[2], algorithms=["HS256"])
print(sorted((k, type(v).__name__) for k, v in c.items()), c["type"], c["fresh"], c["sub"], c["exp"] - c["iat"], jwt.get_unverified_header(sys.argv[1]))`, token, key)
	want := `[('exp', 'int'), ('fresh', 'bool'), ('iat', 'int'), ('jti', 'str'), ('nbf', 'int'), ('sid', 'str'), ('sub', 'str'), ('type', 'str')] access True 6 900 {'alg': 'HS256', 'typ': 'JWT'}`
	if claims != want {
		t.Errorf("PyJWT reads %s\nwant %s", claims, want)
	}
	_, codes := p.enrol(token)
	proven := p.must("", "POST", "/api/login", fmt.Sprintf(`{"username":"late","password":%q,"otp":%q}`, goodPassword, codes[0])).want(t, 200, "").field("access_token")
	amr := runPython("-c", `
import jwt, sys
print([jwt.decode(token, sys.argv[1], algorithms=["HS256"]).get("amr") for token in sys.argv[2:]])`, key, token, proven)
	if amr != "[None, ['pwd', 'otp']]" {
		t.Errorf("PyJWT reads the amr %s", amr)
	}
}

// A hundred thousand users, written by the tutorial's own app.
func TestFlaskWithManyUsers(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	dir := t.TempDir()
	if out, err := exec.Command("/usr/bin/python3", "testdata/flask_app.py", dir, "many", "100000").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := startUserd(t, dir, nil)
	p.awaitLog("upgrading the database, 100004 users")
	p.awaitLog("the database is upgraded")
	r := p.must("", "POST", "/api/login", `{"username":"USER99999","password":"correct horse battery"}`).want(t, 200, "")
	if ids := p.must(r.field("access_token"), "GET", "/api/users", "").want(t, 200, "").list(t, "id"); len(ids) != 100004 {
		t.Errorf("%d users are listed", len(ids))
	}
}

// If several processes start concurrently on a database of the tutorial, one adopts it.
func TestConcurrentStartsAdoptADatabaseOnce(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t)
	done := make(chan error, 4)
	for range cap(done) {
		go func() { done <- adopt(context.Background(), path, refuse, func(string) {}, nil) }()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if found := backups(t, path); len(found) != 1 {
		t.Errorf("copies: %v", found)
	}
	if n := scan[int](t, another(t, path), `SELECT user_version FROM pragma_user_version`); n != len(migrations) {
		t.Errorf("version %d", n)
	}
}

// A process that is killed in a transaction leaves a rollback journal next to the
// file. A read-only connection cannot undo that transaction, but the next start
// must. The test copies the files in the middle of a transaction.
func TestAJournalThatAKilledProcessLeftIsTakenBack(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t)
	want := flaskUsers(t, path)
	conn := another(t, path)
	runSQL(t, conn,
		`PRAGMA cache_size = 1`, // so that pages go to the file before the commit
		`BEGIN IMMEDIATE`,
		`UPDATE user SET username = 'changed' || id, password_hash = 'changed'`,
		`WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
			INSERT INTO user (id, username, email, password_hash) SELECT i, 'user' || i, 'user' || i || '@example.com', 'x' FROM n`)
	killed := filepath.Join(t.TempDir(), "app.db")
	for _, suffix := range []string{"", "-journal"} {
		copyFile(t, path+suffix, killed+suffix)
	}
	runSQL(t, conn, `ROLLBACK`)
	if kind, err := inspect(t.Context(), killed); kind != kindTutorial || err != nil {
		t.Errorf("inspect says %d, %v", kind, err)
	}
	if got := flaskUsers(t, killed); got != want {
		t.Errorf("the users were\n%s\nand are\n%s", want, got)
	}
	(&shell{t, killed}).run(0, "", "adopt")
}
