package main

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"userd/internal/sqlitefile"
)

// makeDatabase makes a database file by SQL, closes it, and returns its path.
func makeDatabase(t *testing.T, queries ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "app.db")
	db, err := sql.Open("sqlite", sqlitefile.DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range queries {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestANewDatabaseHasTheNewestSchema(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		path  string
	}{
		{"where there was no file", filepath.Join(t.TempDir(), "app.db")},
		{"where there was an empty file", emptyFile(t)},
		{"where there was an empty database", makeDatabase(t, `CREATE TABLE x (y)`, `DROP TABLE x`)},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if _, err := inspect(context.Background(), c.path); err != nil {
				t.Fatal(err)
			}
			st := openTestStore(t, c.path)
			conn := another(t, c.path)
			if got := scan[int](t, conn, `PRAGMA user_version`); got != len(migrations) {
				t.Errorf("user_version is %d, want %d", got, len(migrations))
			}
			if got := scan[int](t, conn, `PRAGMA application_id`); got != applicationID {
				t.Errorf("application_id is %#x, want %#x", got, applicationID)
			}
			aUser(t, st, "ann", member)
			if _, err := inspect(context.Background(), c.path); err != nil {
				t.Errorf("inspecting it while it is open: %v", err)
			}
		})
	}
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAMigrationThatFailsLeavesTheDatabaseAsItWas(t *testing.T) {
	t.Parallel()
	upgrade := func(path, script string) error {
		conn, err := sqlitefile.OpenToWrite(path, busyTimeout)
		if err != nil {
			t.Fatal(err)
		}
		return errors.Join(append(slices.Clone(migrations), script).Run(t.Context(), conn.Conn, applicationID), conn.Close())
	}
	const failing = `
		CREATE TABLE half (id INTEGER);
		UPDATE user SET username = 'changed';
		INSERT INTO half SELECT id FROM nowhere`

	t.Run("one with users", func(t *testing.T) {
		path := makeStore(t, "ann")
		before := snapshot(t, filepath.Dir(path))
		if err := upgrade(path, failing); err == nil || !strings.Contains(err.Error(), "nowhere") {
			t.Errorf("got the error %v", err)
		}
		if got := snapshot(t, filepath.Dir(path)); got != before {
			t.Errorf("the files were\n%s\nand are\n%s", before, got)
		}
		if got := usernames(t, openTestStore(t, path)); !slices.Equal(got, []string{"ann"}) {
			t.Errorf("the users are %v", got)
		}
	})
	t.Run("a new one, which stays at the last migration that succeeded", func(t *testing.T) {
		path := emptyFile(t)
		if err := upgrade(path, failing); err == nil {
			t.Error("it was upgraded")
		}
		conn := another(t, path)
		if got := scan[int](t, conn, `PRAGMA user_version`); got != len(migrations) {
			t.Errorf("user_version is %d, want %d", got, len(migrations))
		}
		if got := scan[int](t, conn, `SELECT count(*) FROM sqlite_schema WHERE name = 'half'`); got != 0 {
			t.Error("half of the migration is there")
		}
		openTestStore(t, path)
	})
	t.Run("and the next start tries again", func(t *testing.T) {
		path := makeStore(t, "ann")
		if err := upgrade(path, failing); err == nil {
			t.Error("it was upgraded")
		}
		if err := upgrade(path, `ALTER TABLE user ADD COLUMN more INTEGER NOT NULL DEFAULT 7`); err != nil {
			t.Error(err)
		}
		if got := scan[int](t, another(t, path), `SELECT more FROM user`); got != 7 {
			t.Errorf("the new column holds %d, want 7", got)
		}
		if got := usernames(t, openTestStore(t, path)); !slices.Equal(got, []string{"ann"}) {
			t.Errorf("the users are %v", got)
		}
	})
	t.Run("and openStore closes it", func(t *testing.T) {
		path := makeStore(t, "ann")
		damage(t, path, 60, []byte{0, 0, 0, 1}) // user_version, in the header; its table event exists already
		before := snapshot(t, filepath.Dir(path))
		st, err := openStore(t.Context(), path)
		if err == nil {
			st.close()
			t.Fatal("it was opened")
		}
		if !strings.Contains(err.Error(), "migration 2") {
			t.Errorf("got the error %v", err)
		}
		if got := snapshot(t, filepath.Dir(path)); got != before {
			t.Errorf("the files were\n%s\nand are\n%s", before, got)
		}
	})
}

// damage overwrites a part of a file.
func damage(t *testing.T, path string, offset int64, bytes []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes, offset)
	if err := cmp.Or(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// firstPage returns where in the database file the first page of a table is.
func firstPage(t *testing.T, path, table string) int64 {
	t.Helper()
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "mode=ro", "immutable=1"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var offset int64
	err = db.QueryRow(`
		SELECT (rootpage - 1) * (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?`, table).Scan(&offset)
	if err != nil {
		t.Fatal(err)
	}
	return offset
}

// promote is a trigger that makes a user an admin by a login.
const promote = `CREATE TRIGGER promote AFTER INSERT ON session BEGIN UPDATE user SET role = 'admin' WHERE id = new.user_id; END`

// addHooks runs SQL in a closed database.
func addHooks(t *testing.T, path string, queries ...string) {
	t.Helper()
	t.Run("changed by SQL", func(t *testing.T) { runSQL(t, another(t, path), queries...) })
}

func TestTriggersAndViewsOfOurTablesAreFound(t *testing.T) {
	t.Parallel()
	const post = `CREATE TABLE post (id INTEGER PRIMARY KEY, user_id INTEGER, users TEXT)`
	for _, c := range []struct{ sql, want string }{
		{promote, `[trigger "promote" on table "session"]`},
		{`CREATE TRIGGER t AFTER DELETE ON "User" BEGIN SELECT 1; END`, `[trigger "t" on table "user"]`},
		{`CREATE TRIGGER t AFTER DELETE ON post BEGIN UPDATE [user] SET role = 'admin'; END`, `[trigger "t" on table "post"]`},
		{`CREATE TRIGGER t AFTER DELETE ON post BEGIN DELETE FROM/**/event; END`, `[trigger "t" on table "post"]`},
		{`CREATE VIEW v AS SELECT password_hash FROM 'user'`, `[view "v"]`},
		{`CREATE VIEW v AS SELECT * FROM secret`, `[view "v"]`},
		{`CREATE TRIGGER t AFTER DELETE ON post BEGIN UPDATE post SET users = old.user_id; END`, `[]`},
		{`CREATE VIEW v AS SELECT user_id, users FROM post`, `[]`},
		{`CREATE TEMP TRIGGER t AFTER DELETE ON user BEGIN SELECT 1; END`, `[]`}, // of one connection only
	} {
		t.Run(c.sql, func(t *testing.T) {
			path := makeStore(t)
			conn := another(t, path)
			runSQL(t, conn, post, c.sql)
			hooks, err := findHooks(t.Context(), conn)
			if got := fmt.Sprint(hooks); err != nil || !strings.EqualFold(got, c.want) {
				t.Errorf("found %s, %v, want %s", got, err, c.want)
			}
		})
	}
	t.Run("of every table that the migrations make", func(t *testing.T) {
		path := makeStore(t)
		conn := another(t, path)
		tables := strings.Fields(scan[string](t, conn, `SELECT group_concat(name, ' ') FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'`))
		for _, table := range tables {
			runSQL(t, conn, `CREATE TRIGGER on_`+table+` AFTER DELETE ON `+table+` BEGIN SELECT 1; END`)
		}
		if hooks, err := findHooks(t.Context(), conn); err != nil || len(hooks) != len(tables) || len(tables) < 7 {
			t.Errorf("found %s of %s, %v", hooks, tables, err)
		}
	})
}

func TestADatabaseWithATriggerIsNotUsed(t *testing.T) {
	t.Parallel()
	const says = `trigger "promote" on table "session"`
	path := makeStore(t, "mallory")
	addHooks(t, path, promote)
	environ := []string{"DATABASE_URL=" + path, "ADDR=127.0.0.1:0"}
	for _, args := range [][]string{nil, {"user", "list"}, {"events", "verify"}, {"adopt"}, {"user", "add", "ann", "ann@example.com"}} {
		userdHere(t, goodPassword, environ, args...).wantFailure(t, 1, says)
	}
	if got := userdHere(t, "", environ, "backup", filepath.Join(t.TempDir(), "copy.db")); got.status != 0 || !strings.Contains(got.stderr, says) {
		t.Errorf("backup: %+v", got)
	}
	wantFiles(t, filepath.Dir(path), "app.db")
	addHooks(t, path, `DROP TRIGGER promote`)
	(&shell{t, path}).run(0, "", "user", "list")

	t.Run("but a store that is open keeps working", func(t *testing.T) {
		s := newService(t)
		s.register("ann")
		runSQL(t, another(t, s.path), `CREATE VIEW names AS SELECT username FROM user`)
		s.login("ann")
	})
}

// An upgrade that is interrupted stops after any of its transactions.
func TestAnInterruptedUpgradeContinues(t *testing.T) {
	t.Parallel()
	for version := 1; version <= len(migrations); version++ {
		path := emptyFile(t)
		conn, err := sqlitefile.OpenToWrite(path, busyTimeout)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(migrations[:version].Run(t.Context(), conn.Conn, applicationID), conn.Close()); err != nil {
			t.Fatal(err)
		}
		if kind, err := inspect(t.Context(), path); err != nil || kind != kindUserd {
			t.Errorf("after migration %d: %v, %v", version, kind, err)
			continue
		}
		aUser(t, openTestStore(t, path), "ann", member)
	}
}

// check does not upgrade the database, so it must know each schema version.
func TestACheckOfEachSchemaVersion(t *testing.T) {
	t.Parallel()
	for version := 1; version <= len(migrations); version++ {
		path := emptyFile(t)
		conn, err := sqlitefile.OpenToWrite(path, busyTimeout)
		if err != nil {
			t.Fatal(err)
		}
		if err := migrations[:version].Run(t.Context(), conn.Conn, applicationID); err != nil {
			t.Fatal(err)
		}
		runSQL(t, conn.Conn, `INSERT INTO user (id, username, email, password_hash, role) VALUES (1, 'root', 'root@example.com', '`+someHash+`', 'admin')`, `UPDATE counter SET user_id = 1`)
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		x, _, err := examine(t.Context(), path, func(string, int64) {}, func(int, int64) {})
		if err != nil || len(x.findings) > 0 || x.users != 1 || x.admins != 1 {
			t.Errorf("version %d: %+v, %v", version, x, err)
		}
	}
}

// Each table with a column user_id has the rule, or a reason why its users may be deleted.
func TestACheckFindsRowsOfUsersThatDoNotExist(t *testing.T) {
	t.Parallel()
	exempt := []string{"counter", "event", "user_mail"} // the last id, the past, and see userTables
	tried := 0
	for _, table := range migrations.Tables() {
		path := makeStore(t)
		st := openTestStore(t, path)
		u := user{username: "ann", email: "ann@example.com", role: member}
		if err := st.addUser(t.Context(), console, &u, someHash, 1); err != nil {
			t.Fatal(err)
		}
		conn := another(t, path)
		if slices.Contains(exempt, table) || scan[int](t, conn, `SELECT count(*) FROM pragma_table_info(?) WHERE name = 'user_id'`, table) == 0 {
			continue
		}
		tried++
		runSQL(t, conn, scan[string](t, conn, `
			SELECT format('INSERT INTO %s (%s) VALUES (%s)', ?1, group_concat(name),
				group_concat(CASE WHEN name = 'user_id' THEN '9' WHEN type = 'BLOB' THEN 'x''00''' WHEN type = 'TEXT' THEN '''x''' ELSE '1' END))
			FROM pragma_table_info(?1)`, table))
		x, _, err := examine(t.Context(), path, func(string, int64) {}, func(int, int64) {})
		want := "table " + table + " has rows of user 9, which does not exist"
		if err != nil || !slices.Equal(x.findings, []string{want}) {
			t.Errorf("%s: got %q and the error %v, want %q", table, x.findings, err, want)
		}
	}
	if tried != len(userTables) {
		t.Errorf("%d tables were tried, and userTables has %d", tried, len(userTables))
	}
}

func TestAPendingAdminIsNotActive(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann")
	runSQL(t, another(t, path), `UPDATE user SET role = 'admin', pending = 1`)
	if x, _, err := examine(t.Context(), path, func(string, int64) {}, func(int, int64) {}); err != nil || x.admins != 0 {
		t.Errorf("got %d active admins and the error %v, want 0", x.admins, err)
	}
}

func TestAServerErasesWhatDeletedRowsLeft(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann")
	damage(t, path, firstPage(t, path, "user")+1000, []byte("a hash")) // in the unused part of the page
	p := startUserd(t, t.TempDir(), []string{"DATABASE_URL=" + path})
	defer p.end(syscall.SIGTERM)
	await(t, "the server erases it", func() bool {
		runSQL(t, another(t, path), `PRAGMA wal_checkpoint`)
		copyFile(t, path, path+".copy") // by another process: closing a descriptor here would drop SQLite's locks
		data, err := os.ReadFile(path + ".copy")
		return err == nil && !bytes.Contains(data, []byte("a hash"))
	})
}
