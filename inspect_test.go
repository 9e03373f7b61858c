package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestInspectRefusesForeignFilesAndChangesNone(t *testing.T) {
	t.Parallel()
	aFile := func(content string) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := emptyFile(t)
			damage(t, path, 0, []byte(content))
			return path
		}
	}
	noise := make([]byte, 8192)
	for i := range noise {
		noise[i] = byte(i*i>>3 ^ i*31)
	}
	type row struct {
		claim string
		make  func(t *testing.T) (path string)
		want  string // in the error; empty: there is none
	}
	rows := []row{
		{"no file is fine", func(t *testing.T) string { return filepath.Join(t.TempDir(), "app.db") }, ""},
		{"an empty file is fine", emptyFile, ""},
		{"an empty database is fine", func(t *testing.T) string { return makeDatabase(t, `VACUUM`) }, ""},
		{"userd's own is fine", func(t *testing.T) string { return makeStore(t, "ann") }, ""},
		{"a directory that is not there", func(t *testing.T) string { return filepath.Join(t.TempDir(), "missing", "app.db") }, "missing"},
		{"a directory", func(t *testing.T) string { return t.TempDir() }, "not a regular file"},
		{"a file taken for a directory", func(t *testing.T) string { return filepath.Join(emptyFile(t), "app.db") }, "not a directory"},
		{"a named pipe, which would never answer", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "app.db")
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, "not a regular file"},
		{"a link to itself", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "app.db")
			if err := os.Symlink(path, path); err != nil {
				t.Fatal(err)
			}
			return path
		}, "app.db"},
		{"a text file", aFile("These are my notes.\n" + strings.Repeat("More of them. ", 500)), "not a database"},
		{"a short text file", aFile("notes\n"), "not a database"},
		{"a file of two bytes", aFile("x\n"), "not a database"},
		{"random bytes", aFile(string(noise)), "not a database"},
		{"zeros", aFile(string(make([]byte, 8192))), "not a database"},
		{"the right header and then random bytes", aFile("SQLite format 3\x00" + string(noise)), "reading"},
		{"a database cut in half", func(t *testing.T) string {
			path := makeStore(t, "ann")
			info, err := os.Stat(path)
			if err == nil {
				err = os.Truncate(path, info.Size()/2)
			}
			if err != nil {
				t.Fatal(err)
			}
			return path
		}, "malformed"},
		{"a database of which only the header is left", func(t *testing.T) string {
			path := makeStore(t, "ann")
			if err := os.Truncate(path, 100); err != nil {
				t.Fatal(err)
			}
			return path
		}, "reading"},
		{"a database whose schema is damaged", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, 100, noise[:3000])
			return path
		}, "malformed"},
		{"another program's database, without an application_id", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`)
		}, "another program's"},
		{"another program's database, with its own user_version", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`, `PRAGMA user_version = 1`)
		}, "another program's"},
		{"another program's database, with its own application_id", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`, `PRAGMA application_id = 123`)
		}, "another program's"},
		{"another program's database without tables, with its own application_id", func(t *testing.T) string {
			return makeDatabase(t, `PRAGMA application_id = 123`)
		}, "another program's"},
		{"another program's database that has a table user", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE user (id INTEGER PRIMARY KEY, name TEXT)`)
		}, "another program's"},
		{"another program's database in WAL mode", func(t *testing.T) string {
			return makeDatabase(t, `PRAGMA journal_mode = WAL`, `CREATE TABLE song (title)`)
		}, "another program's"},
		{"a newer userd's database", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, 60, []byte{0, 0, 0, byte(len(migrations) + 1)}) // user_version, in the header
			return path
		}, "newer userd"},
		{"userd's mark on a database without its tables", func(t *testing.T) string {
			return makeDatabase(t, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID), `PRAGMA user_version = 1`, `CREATE TABLE song (title)`)
		}, "no such table"},
	}
	for _, table := range []string{"user", "counter", "session", "signing_key", "user_code", "user_invitation", "page_url"} {
		rows = append(rows, row{"a database whose first page of the table " + table + " is damaged", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, firstPage(t, path, table), noise[:4096])
			return path
		}, "table " + table})
	}
	if os.Getuid() != 0 { // whom no mode keeps from reading
		rows = append(rows, row{"a file that may not be read", func(t *testing.T) string {
			path := makeStore(t, "ann")
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
			return path
		}, "app.db"})
	}
	for _, c := range rows {
		t.Run(c.claim, func(t *testing.T) {
			path := c.make(t)
			dir := filepath.Dir(path)
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				dir = filepath.Dir(dir)
			}
			before := snapshot(t, dir)
			_, err := inspect(context.Background(), path)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && err == nil:
				t.Error("let through")
			case c.want != "" && !strings.Contains(err.Error(), c.want):
				t.Errorf("the error %q does not say %q", err, c.want)
			case err != nil && strings.ContainsAny(err.Error(), "\r\n"):
				t.Errorf("the error has more than one line: %q", err)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("the files were\n%sand are\n%s", before, after)
			}
		})
	}
}

// A killed server leaves its last writes in the WAL.
func TestInspectKnowsTheTablesOfEachSchema(t *testing.T) {
	t.Parallel()
	for version := 1; version <= len(migrations); version++ {
		queries := append(slices.Clone(migrations[:version]), fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d`, applicationID, version))
		path := makeDatabase(t, queries...)
		if kind, err := inspect(t.Context(), path); err != nil || kind != kindUserd {
			t.Errorf("schema %d: %v, %v", version, kind, err)
		}
		tables := strings.Split(scan[string](t, another(t, path), `SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name)`), ",")
		if got := slices.Sorted(slices.Values(migrations[:version].Tables())); !slices.Equal(got, tables) {
			t.Errorf("schema %d has the tables %q, and Tables returns %q", version, tables, got)
		}
	}
}

func TestInspectReadsTheWALOfAKilledServer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	aUser(t, st, "ann", member)
	left := filepath.Join(t.TempDir(), "app.db")
	for _, suffix := range []string{"", "-wal"} {
		// By another process: closing a descriptor here would drop SQLite's locks.
		copyFile(t, path+suffix, left+suffix)
	}
	if _, err := inspect(context.Background(), left); err != nil {
		t.Fatal(err)
	}
	if got := usernames(t, openTestStore(t, left)); !slices.Equal(got, []string{"ann"}) {
		t.Errorf("the users are %v", got)
	}
}

// SQLite would delete the log, which can hold the latest acknowledged writes.
func TestALogWithoutItsDatabaseIsKept(t *testing.T) {
	t.Parallel()
	for _, empty := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "app.db")
		st, err := openStore(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		u := user{username: "ann", email: "ann@example.com", role: member}
		if err := st.addUser(t.Context(), console, &u, someHash, testNow); err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(path + "-wal")
		if err != nil || len(log) == 0 {
			t.Fatalf("the log has %d bytes, %v", len(log), err)
		}
		moved := filepath.Join(t.TempDir(), "app.db")
		if err := errors.Join(os.Rename(path, moved), os.Rename(path+"-wal", moved+"-wal"), st.close()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+"-wal", log, 0o600); err != nil {
			t.Fatal(err)
		}
		if empty {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		database := []string{"DATABASE_URL=" + path}
		for _, args := range [][]string{{}, {"user", "add", "bob", "bob@example.com"}, {"user", "list"}, {"check"}} {
			userdHere(t, goodPassword, database, args...).wantFailure(t, 1, "app.db-wal")
		}
		if left, err := os.ReadFile(path + "-wal"); err != nil || !bytes.Equal(left, log) {
			t.Errorf("empty file: %t: the log was changed: %d bytes, %v", empty, len(left), err)
		}
	}
}

// Every name that a migration gives to a table or an index, also in other letters. The
// tutorial's table is the only one that may exist.
func TestTheNamesThatUserdNeeds(t *testing.T) {
	t.Parallel()
	n := 0
	for _, name := range migrations.Names() {
		if name == "user" {
			continue
		}
		n++
		path := makeDatabase(t, tutorialTable, `CREATE TABLE `+strings.ToUpper(name)+` (title)`)
		if _, err := inspect(context.Background(), path); err == nil || !strings.Contains(err.Error(), "userd needs the names "+strings.ToUpper(name)+",") {
			t.Errorf("with the table %s the error is %v", name, err)
		}
	}
	if n < 20 {
		t.Errorf("only %d names", n)
	}
	// Words that other programs use for their own tables and columns are not among them.
	path := makeDatabase(t, tutorialTable, `CREATE TABLE invitation (code)`, `CREATE TABLE code (id)`, `CREATE VIEW codes AS SELECT code FROM invitation`)
	if kind, err := inspect(context.Background(), path); kind != kindTutorial || err != nil {
		t.Errorf("got %v and %v", kind, err)
	}
}
