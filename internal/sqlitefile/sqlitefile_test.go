package sqlitefile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// script makes the tables of the tests.
const script = `
	CREATE TABLE pet (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(80) NOT NULL, weight INTEGER);
	CREATE UNIQUE INDEX pet_name ON pet (name);
	CREATE TABLE owner (pet INTEGER REFERENCES pet (id), name TEXT NOT NULL DEFAULT '');`

// run runs a query, or queries, on a database file.
func run(t *testing.T, path string, queries ...string) error {
	t.Helper()
	db, err := sql.Open("sqlite", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, query := range queries {
		if _, err := db.ExecContext(t.Context(), query); err != nil {
			return err
		}
	}
	return nil
}

// made returns a new database file that the queries made.
func made(t *testing.T, queries ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a b?.db")
	if err := run(t, path, queries...); err != nil {
		t.Fatal(err)
	}
	return path
}

func opened(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, _, err := OpenToRead(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// damage overwrites a part of a file.
func damage(t *testing.T, path string, offset int64, text []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(text, offset)
	if err := cmp.Or(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestCheckIntegrity(t *testing.T) {
	t.Parallel()
	noise := bytes.Repeat([]byte{0xa5}, 4096)
	const index = 2 * 4096 // the third page is the root of the index
	for _, c := range []struct {
		claim string
		spoil func(path string)
		most  int
		want  []string // the beginnings of the findings
	}{
		{"nothing in a sound file", func(string) {}, 100, nil},
		{"one finding of several", func(path string) { damage(t, path, index, noise) }, 1, []string{"Tree "}},
		{"all findings, and that SQLite gave up", func(path string) { damage(t, path, index, noise) }, 100,
			[]string{"Tree ", "wrong # of entries in index pet_name", "database disk image is malformed"}},
		{"a file that SQLite cannot read", func(path string) { damage(t, path, 100, noise[:3000]) }, 1, []string{"database disk image is malformed"}},
		{"a file that is not a database", func(path string) { damage(t, path, 0, noise) }, 1, []string{"file is not a database"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := made(t, script, `INSERT INTO pet (name) VALUES ('rex'), ('tom')`)
			c.spoil(path)
			findings, err := CheckIntegrity(t.Context(), opened(t, path), c.most)
			if err != nil || !slices.EqualFunc(findings, c.want, strings.HasPrefix) {
				t.Errorf("got %q, %v", findings, err)
			}
		})
	}
	t.Run("an error if it is interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if findings, err := CheckIntegrity(ctx, opened(t, made(t, script)), 1); err == nil || len(findings) > 0 {
			t.Errorf("got %q, %v", findings, err)
		}
	})
}

func TestASchemaIsComparedWithItsModel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		made []string
		want []string
	}{
		"the same": {[]string{script, `INSERT INTO pet (name) VALUES ('rex')`}, nil},
		"more":     {[]string{script, `CREATE TABLE toy (id)`, `ALTER TABLE pet ADD COLUMN color`}, nil},
		"less": {[]string{strings.ReplaceAll(script, ", weight INTEGER", ""), `DROP TABLE owner`, `DROP INDEX pet_name`, `INSERT INTO pet VALUES (1, x'00')`},
			[]string{"column name of table owner is missing", "column pet of table owner is missing", "column weight of table pet is missing", "index pet_name is missing", "table owner is missing"}},
		"another index": {[]string{strings.Replace(script, "UNIQUE ", "", 1)},
			[]string{"index pet_name differs from the shelter's: CREATE INDEX pet_name ON pet (name)"}},
		"wrong types": {[]string{script, `INSERT INTO pet (id, name, weight) VALUES (7, x'00', 'light'), (8, 'tom', NULL), (9, 'rex', 1.5)`, `INSERT INTO owner VALUES (7, x'01')`},
			[]string{"owner 7 has blob instead of text in name", "pet 7 has blob instead of text in name and text instead of integer in weight", "pet 9 has real instead of integer in weight"}},
	} {
		got, err := CompareSchema(t.Context(), opened(t, made(t, c.made...)), []string{script}, "the shelter")
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
}

func TestManyFindingsAreCutShort(t *testing.T) {
	t.Parallel()
	db := opened(t, made(t, script))
	for _, n := range []int{MostFindings, MostFindings + 1} {
		got, err := Findings(t.Context(), db, fmt.Sprintf(`
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) SELECT 'row ' || i FROM n`, n))
		more := len(got) == MostFindings+1 && got[MostFindings] == MoreFindings
		if err != nil || len(got) < MostFindings || more != (n > MostFindings) {
			t.Errorf("%d rows: %d findings, %v", n, len(got), err)
		}
	}
}

func TestColumnsOfAnyTables(t *testing.T) {
	t.Parallel()
	columns, err := Columns(t.Context(), opened(t, made(t, script, `CREATE TABLE "Toy" ("a b" my_blob NOT NULL, id INT PRIMARY KEY)`)), "PET")
	want := []Column{
		{"pet", "id", "INTEGER", true, true},
		{"pet", "name", "VARCHAR(80)", true, false},
		{"pet", "weight", "INTEGER", false, false},
		{"Toy", "a b", "my_blob", true, false},
		{"Toy", "id", "INT", false, false},
		{"owner", "pet", "INTEGER", false, false},
		{"owner", "name", "TEXT", false, false},
	}
	if err != nil || !reflect.DeepEqual(columns, want) {
		t.Fatalf("got %+v, %v, want %+v", columns, err, want)
	}
	if got := Find(columns, "toy", "name", "ID"); got != "ID" {
		t.Errorf("found %q", got)
	}
	if got := Find(columns, "toy", "name"); got != "" {
		t.Errorf("found %q", got)
	}
	if got, want := Describe(columns[:5]), `"pet" (id INTEGER, name VARCHAR(80), weight INTEGER), "Toy" (a b my_blob, id INT)`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := Describe(slices.Repeat(columns, 100)); len(got) > 500 {
		t.Errorf("a description of %d bytes", len(got))
	}
	if got := Describe(nil); got != "no table" {
		t.Errorf("got %q", got)
	}
	for declared, want := range map[string]bool{"": true, "text": true, "VARCHAR(8)": true, "BLOB": true, "CHARINT": false, "REAL": false, "NUMERIC": false} {
		if KeepsText(declared) != want {
			t.Errorf("%q: %t", declared, !want)
		}
	}
}

func TestWhichErrorIsWhich(t *testing.T) {
	t.Parallel()
	broken := made(t, script)
	damage(t, broken, 100, bytes.Repeat([]byte{0xa5}, 3000))
	locked := made(t, script)
	lock, err := sql.Open("sqlite", DSN(locked, "_txlock=immediate"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	tx, err := lock.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	ask := map[string]func(error) bool{
		"damaged": IsDamaged, "unfinished": isUnfinished, "busy": IsBusy, "I/O": IsIOError,
		"constraint": IsConstraint, "duplicate": IsDuplicate, "foreign key": IsForeignKey,
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{run(t, made(t, script), `INSERT INTO pet (name) VALUES ('rex'), ('rex')`), "constraint, duplicate"},
		{run(t, made(t, script), `INSERT INTO pet VALUES (1, 'rex', 2), (1, 'tom', 3)`), "constraint, duplicate"},
		{run(t, made(t, script), `INSERT INTO pet (name) VALUES (NULL)`), "constraint"},
		{run(t, made(t, script), `INSERT INTO pet (id, name) VALUES ('one', 'rex')`), "constraint"},
		{run(t, made(t, script), `PRAGMA foreign_keys = ON`, `INSERT INTO owner (pet) VALUES (7)`), "constraint, foreign key"},
		{run(t, broken, `SELECT * FROM pet`), "damaged"},
		{run(t, locked, `DELETE FROM pet`), "busy"},
		{run(t, made(t, script), `SELECT * FROM nothing`), ""},
		{context.Canceled, ""},
		{nil, ""},
	} {
		var got []string
		for name, is := range ask {
			if is(c.err) && is(fmt.Errorf("wrapped: %w", c.err)) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if got := strings.Join(got, ", "); got != c.want {
			t.Errorf("%v is %q, want %q", c.err, got, c.want)
		}
	}
}

func TestAReaderLeavesNoFiles(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"DELETE", "WAL"} {
		path := made(t, `PRAGMA journal_mode = `+mode, script)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		db, quiet, err := OpenToRead(path)
		if err != nil || quiet != (mode == "WAL") {
			t.Fatalf("%s: quiet is %t, %v", mode, quiet, err)
		}
		n := 0
		if err := Scan(t.Context(), db, `SELECT count(*) FROM pet`, []any{&n}, func() {}); err != nil {
			t.Error(err)
		}
		if _, err := db.ExecContext(t.Context(), `DELETE FROM pet`); err == nil {
			t.Errorf("%s: a reader could write", mode)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		after, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s: the file changed, %v", mode, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("%s: %v, %v", mode, entries, err)
		}
	}
}

func TestADatabaseThatIsOpenIsNotQuiet(t *testing.T) {
	t.Parallel()
	path := made(t, `PRAGMA journal_mode = WAL`, script)
	writer, err := sql.Open("sqlite", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := writer.ExecContext(t.Context(), `INSERT INTO pet (name) VALUES ('rex')`); err != nil {
		t.Fatal(err)
	}
	if quiet, err := IsQuiet(path); quiet || err != nil {
		t.Errorf("quiet is %t, %v", quiet, err)
	}
	n := 0
	if err := Scan(t.Context(), opened(t, path), `SELECT count(*) FROM pet`, []any{&n}, func() {}); n != 1 || err != nil {
		t.Errorf("%d rows in the log, %v", n, err)
	}
	if err := CheckLogOwners(path); err != nil {
		t.Error(err)
	}
	if _, err := IsQuiet(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error about a file that does not exist")
	}
}

func TestIsEmpty(t *testing.T) {
	t.Parallel()
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		claim string
		make  func(path string)
		empty bool
		want  string // in the error; empty: there is none
	}{
		{"no file", func(string) {}, true, ""},
		{"an empty file", func(path string) { write(path, "") }, true, ""},
		{"no file, and an empty log", func(path string) { write(path+"-wal", "") }, true, ""},
		{"no file, and a log with writes", func(path string) { write(path+"-wal", "x") }, true, "-wal has writes"},
		{"an empty file, and a log with writes", func(path string) { write(path, ""); write(path+"-wal", "x") }, true, "-wal has writes"},
		{"a file shorter than a header", func(path string) { write(path, strings.Repeat("x", 99)) }, false, "not a database"},
		{"a file as long as a header", func(path string) { write(path, strings.Repeat("x", 100)) }, false, ""},
		{"a directory", func(path string) { os.Mkdir(path, 0o700) }, false, "not a regular file"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			c.make(path)
			empty, err := IsEmpty(path)
			if empty != c.empty || c.want == "" && err != nil || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %t and the error %v, want %t and %q", empty, err, c.empty, c.want)
			}
		})
	}
}

func TestAFileThatLostItsNameIsNoticed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		lose  func(path string) error
	}{
		{"deleted", os.Remove},
		{"moved", func(path string) error { return os.Rename(path, path+".old") }},
		{"replaced", func(path string) error { return os.Rename(path+"-shm", path) }},
		{"the log deleted", func(path string) error { return os.Remove(path + "-wal") }},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := made(t, script)
			created, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := OpenToWrite(path, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.ExecContext(t.Context(), `UPDATE pet SET weight = 1`); err != nil { // makes the log
				t.Fatal(err)
			}
			files, err := StatOpened(path, created)
			if err != nil {
				t.Fatal(err)
			}
			if err := files.Check(); err != nil {
				t.Errorf("before that: %v", err)
			}
			if err := c.lose(path); err != nil {
				t.Fatal(err)
			}
			if err := files.Check(); err == nil || !strings.Contains(err.Error(), "deleted, moved or replaced") {
				t.Errorf("got the error %v", err)
			}
		})
	}
}

func TestMigrationsRunOnceEach(t *testing.T) {
	t.Parallel()
	m := Migrations{`CREATE TABLE pet (id INTEGER); CREATE TABLE old (id INTEGER)`, `CREATE UNIQUE INDEX pet_id ON pet (id); DROP TABLE old`}
	if got, want := fmt.Sprint(m.Tables(), m.AllTables(), m.Names()), "[pet] [pet old] [pet old pet_id]"; got != want {
		t.Errorf("the tables and names are %s, want %s", got, want)
	}
	path := made(t, `VACUUM`)
	conn, err := OpenToWrite(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, scripts := range []Migrations{m[:1], m, m, m[:1]} {
		if err := scripts.Run(t.Context(), conn.Conn, 7); err != nil {
			t.Fatal(err)
		}
	}
	broken := append(slices.Clone(m), `CREATE TABLE half (id INTEGER); SELEKT`)
	if err := broken.Run(t.Context(), conn.Conn, 7); err == nil || !strings.Contains(err.Error(), "migration 3") {
		t.Errorf("a migration that fails: got the error %v", err)
	}
	db, h, err := OpenToInspect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if want := (Header{Owner: 7, Version: 2, Objects: 2}); h != want {
		t.Errorf("the header is %+v, want %+v", h, want)
	}
}

func TestCopyIsPrivateAndComplete(t *testing.T) {
	t.Parallel()
	path := made(t, script, `INSERT INTO pet (id, name) VALUES (1, 'rex')`)
	f, err := Copy(t.Context(), opened(t, path), filepath.Join(t.TempDir(), "copy.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if info, err := f.Stat(); err != nil || info.Mode() != 0o600 {
		t.Errorf("the copy is %v, %v", info, err)
	}
	if findings, err := Findings(t.Context(), opened(t, f.Name()), `SELECT name FROM pet`); err != nil || !slices.Equal(findings, []string{"rex"}) {
		t.Errorf("the copy has %q, %v", findings, err)
	}
}

func TestRemnantsOfDeletedRowsAreErased(t *testing.T) {
	t.Parallel()
	const rows = 1000 // half of them stay
	path := made(t, `PRAGMA journal_mode = WAL`, `CREATE TABLE note (text TEXT NOT NULL, more TEXT NOT NULL)`, `CREATE UNIQUE INDEX note_text ON note (text)`)
	db, err := sql.Open("sqlite", DSN(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	text := func(id int) string { return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, id))) }
	exec(`BEGIN`)
	for id := range rows {
		exec(`INSERT INTO note VALUES (?, hex(zeroblob(?)))`, text(id), id*7%60)
	}
	for _, id := range rand.New(rand.NewPCG(1, 3)).Perm(rows) {
		if id%2 == 1 {
			exec(`DELETE FROM note WHERE text = ?`, text(id))
		}
	}
	exec(`COMMIT`)
	pages, err := pagesWithRemnants(t.Context(), db)
	if len(pages) == 0 || err != nil {
		t.Fatalf("SQLite left nothing of the deleted rows, so this test shows nothing: %v", err)
	}
	err = EraseRemnants(t.Context(), db, func(found []Remnant) error {
		for _, x := range found {
			exec(Erasure, sql.Named("number", x.Number), sql.Named("page", x.Erased), sql.Named("erased", x.Page)) // the page has changed
			exec(Erasure, sql.Named("number", x.Number), sql.Named("page", x.Page), sql.Named("erased", x.Erased))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pages, err := pagesWithRemnants(t.Context(), db); len(pages) > 0 || err != nil {
		t.Errorf("pages %d still have remnants, %v", pages, err)
	}
	exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for id := range rows {
		if got, want := bytes.Contains(data, []byte(text(id))), id%2 == 0; got != want {
			t.Errorf("the file has the text of row %d: %v, want %v", id, got, want)
		}
	}
	if findings, err := CheckIntegrity(t.Context(), opened(t, path), 1); len(findings) > 0 || err != nil {
		t.Errorf("the file is damaged: %q, %v", findings, err)
	}
}

func TestOtherPagesHaveNoUnusedPart(t *testing.T) {
	for name, page := range map[string][]byte{
		"an empty page":                          {},
		"a page of another kind":                 bytes.Repeat([]byte{0}, 512),
		"a page whose cells begin after it":      append([]byte{13, 0, 0, 0, 1, 255, 255, 0}, bytes.Repeat([]byte{7}, 504)...),
		"a page whose pointers end in the cells": append([]byte{13, 0, 0, 1, 0, 0, 100, 0}, bytes.Repeat([]byte{7}, 504)...),
	} {
		if before := slices.Clone(page); eraseUnused(2, page) || !bytes.Equal(page, before) {
			t.Errorf("%s has changed", name)
		}
	}
}
