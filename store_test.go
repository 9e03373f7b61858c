package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"userd/internal/groupcommit/groupcommittest"
	"userd/internal/sqlitefile"
)

// another opens the database file as another program does.
func another(t *testing.T, path string) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "_busy_timeout=10000"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(conn.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// runSQL runs statements on a connection.
func runSQL(t *testing.T, conn *sql.Conn, queries ...string) {
	t.Helper()
	for _, query := range queries {
		if _, err := conn.ExecContext(context.Background(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

// scan returns the one value of a query.
func scan[T any](t *testing.T, conn *sql.Conn, query string, args ...any) (v T) {
	t.Helper()
	if err := conn.QueryRowContext(context.Background(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// makeStore makes a database of userd's with some users, closes it, and returns
// its path.
func makeStore(t *testing.T, names ...string) (path string) {
	t.Helper()
	path = newDatabase(t)
	if len(names) == 0 {
		return path
	}
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		aUser(t, st, name, member)
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// snapshot says all there is to know of the files in a directory: names, modes, owners,
// times and contents. No database in it may be open.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		fmt.Fprintf(&all, "%s %s %d %s %d", entry.Name(), info.Mode(), owner, info.ModTime(), info.Size())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&all, " %x", sha256.Sum256(data))
		}
		all.WriteByte('\n')
	}
	return all.String()
}

func TestEveryConnectionOfTheStoreHasItsPragmas(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	conns := map[string]*sql.Conn{"the writer": st.conn.Conn}
	for _, name := range []string{"one reader", "another reader"} {
		// Both are held, so they are two connections of the pool.
		conn, err := st.readers.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns[name] = conn
	}
	for name, want := range map[string]map[string]string{
		"the writer":     {"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "query_only": "0", "busy_timeout": "7000", "trusted_schema": "0", "secure_delete": "1"},
		"one reader":     {"journal_mode": "wal", "query_only": "1", "busy_timeout": "5000", "trusted_schema": "0", "secure_delete": "1"},
		"another reader": {"journal_mode": "wal", "query_only": "1", "busy_timeout": "5000", "trusted_schema": "0", "secure_delete": "1"},
	} {
		for pragma, value := range want {
			if got := scan[string](t, conns[name], "PRAGMA "+pragma); got != value {
				t.Errorf("%s has %s=%s, want %s", name, pragma, got, value)
			}
		}
	}
	for _, name := range []string{"one reader", "another reader"} {
		if _, err := conns[name].ExecContext(context.Background(), `UPDATE counter SET user_id = 7`); err == nil {
			t.Errorf("%s could write", name)
		}
	}
}

// It is not parallel, because the umask belongs to the process: with the umask 0, other
// tests would make directories that all users can write, which root's commands refuse.
func TestOnlyTheOwnerCanReadTheDatabaseFiles(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // so that the program determines the mode
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	aUser(t, st, "ann", member)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode(); mode != 0o600 {
			t.Errorf("app.db%s has mode %v, want 0600", suffix, mode)
		}
	}
}

func TestAReadableDatabaseIsMadePrivate(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	st := openTestStore(t, path)
	aUser(t, st, "bob", member)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if info, err := os.Stat(path + suffix); err != nil || info.Mode() != 0o600 {
			t.Errorf("app.db%s has the mode %v, %v", suffix, info.Mode(), err)
		}
	}
}

// asNobody makes the command run as a user whom the modes of files bind.
func asNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	reachable := filepath.Join(programDir(t), "userd")
	copyFile(t, cmd.Path, reachable)
	cmd.Path = reachable
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

func TestAMissingRightIsNamedAndNothingIsLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim     string
		database  func(t *testing.T) string
		file, dir os.FileMode
		says      string
	}{
		{"a file that cannot be written", func(t *testing.T) string { return makeStore(t, "ann") }, 0o444, 0o777, "write to PATH: permission denied"},
		{"a directory that cannot be written", func(t *testing.T) string { return makeStore(t, "ann") }, 0o666, 0o555, "write to DIR: permission denied"},
		{"one of Flask's", func(t *testing.T) string { return flaskDatabase(t) }, 0o444, 0o777, "write to PATH: permission denied"},
		{"a file of another user", func(t *testing.T) string { return makeStore(t, "ann") }, 0o666, 0o777, "chmod PATH: operation not permitted"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if os.Getuid() != 0 && strings.HasPrefix(c.says, "chmod") {
				return // the file is ours
			}
			path := c.database(t)
			dir := filepath.Dir(path)
			if err := errors.Join(os.Chmod(path, c.file), os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, c.dir)); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, dir)
			cmd := userdCommand(t, dir, nil)
			asNobody(t, cmd)
			out, err := cmd.CombinedOutput()
			says := strings.NewReplacer("PATH", path, "DIR", dir).Replace(c.says)
			if err == nil || !strings.Contains(string(out), says) || strings.Count(string(out), "\n") != 1 {
				t.Errorf("%v: %s, want %q", err, out, says)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("the files were\n%s\nand are\n%s", before, after)
			}
			os.Chmod(dir, 0o755)
		})
	}
}

// The paths that a DSN could misread.
func TestADatabaseIsCreatedAtItsPath(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"app.db",
		"with a space.db",
		"with?mode=ro.db",
		"with#hash.db",
		"with%20percent.db",
		"with%percent.db",
		"with+plus&and=is.db",
		"file:app.db",
		"größe-数据.db",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st, err := openStore(context.Background(), filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			aUser(t, st, "ann", member)
			if err := st.close(); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 || entries[0].Name() != name {
				t.Errorf("the directory holds %v, want only %q", entries, name)
			}
			if _, err := inspect(context.Background(), filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
			if got := usernames(t, openTestStore(t, filepath.Join(dir, name))); !slices.Equal(got, []string{"ann"}) {
				t.Errorf("opened again it has the users %v", got)
			}
		})
	}
}

func TestAClosedStoreReturnsErrors(t *testing.T) {
	t.Parallel()
	st, err := openStore(context.Background(), filepath.Join(t.TempDir(), "app.db"))
	if err != nil {
		t.Fatal(err)
	}
	ann := aUser(t, st, "ann", member)
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the queue has room: which way a write takes is chance
		wantError(t, "a write", add(st, "bob")(), errStorage)
	}
	_, err = st.user(ann.id)
	wantError(t, "a read by a statement that was prepared", err, errStorage)
	_, err = st.credentials(ann.id)
	wantError(t, "a read by a new statement", err, errStorage)
	wantError(t, "a list", st.users(context.Background(), 0, 1, filter{}, func(*user) {}), errStorage)
}

func TestALostFileRefusesWrites(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		lose  func(path string) error
	}{
		{"a deleted database", func(path string) error {
			return errors.Join(os.Remove(path), os.Remove(path+"-wal"), os.Remove(path+"-shm"))
		}},
		{"a moved database", func(path string) error { return os.Rename(path, path+".old") }},
		{"another database in its place", func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, []byte("x"), 0o600))
		}},
		{"a deleted write-ahead log", func(path string) error { return os.Remove(path + "-wal") }},
		{"deleted shared memory", func(path string) error { return os.Remove(path + "-shm") }},
		{"a moved directory", func(path string) error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+".old") }},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			s := newServiceOn(t, filepath.Join(dir, "app.db"))
			s.register("ann")
			if err := s.store.checkFiles(); err != nil {
				t.Fatal(err)
			}
			if err := c.lose(s.path); err != nil {
				t.Fatal(err)
			}
			s.keepLog()
			synctest.Test(t, func(t *testing.T) { // for the ticker
				var log lines
				watchFiles(t.Context(), s.store, slog.New(slog.NewTextHandler(&log, nil)))
				if text := log.text.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "was deleted, moved or replaced") {
					t.Errorf("the log says %s", text)
				}
			})
			s.do("", "POST", "/api/register", registerBody("bob", goodPassword)).want(t, 503, "unavailable")
			s.do("", "GET", "/readyz", "").want(t, 503, "unavailable")
		})
	}
}

func TestCloseLeavesOnlyTheDatabaseFile(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann", "bob")
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("the directory holds %v, want only app.db", entries)
	}
}

func TestManyProcessesCanOpenANewDatabase(t *testing.T) {
	t.Parallel()
	const rounds, openers = 10, 4
	for round := range rounds {
		path := filepath.Join(t.TempDir(), "app.db")
		stores := make([]*store, openers)
		var wg sync.WaitGroup
		for i := range stores {
			wg.Go(func() {
				_, err := inspect(context.Background(), path)
				if err == nil {
					stores[i], err = openStore(context.Background(), path)
				}
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		var writes sync.WaitGroup
		opened := 0
		for i, st := range stores {
			if st == nil {
				continue
			}
			opened++
			writes.Go(func() { wantError(t, "a write", add(st, fmt.Sprint("u", i))(), nil) })
		}
		writes.Wait()
		for _, st := range stores {
			if st == nil {
				continue
			}
			if got := len(usernames(t, st)); got != opened {
				t.Errorf("round %d: a store sees %d of %d users", round, got, opened)
			}
			if err := st.close(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// copyFile copies a file by another process: to close a descriptor of a
// database here would drop the locks that SQLite holds on it.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// The lock that another process holds while it makes the same database. SQLite
// waits for no lock when it changes the journal's mode.
func TestOpenWaitsForAProcessThatCreatesTheDatabase(t *testing.T) {
	t.Parallel()
	path := makeDatabase(t, `VACUUM`)
	other := another(t, path)
	runSQL(t, other, `BEGIN IMMEDIATE`)
	type result struct {
		st  *store
		err error
	}
	opened := make(chan result, 1)
	go func() {
		st, err := openStore(context.Background(), path)
		opened <- result{st, err}
	}()
	var got result
	select {
	case got = <-opened:
		runSQL(t, other, `ROLLBACK`)
	case <-time.After(100 * time.Millisecond): // nothing tells that it waits
		runSQL(t, other, `ROLLBACK`)
		got = receive(t, "the database is opened", opened)
	}
	if got.err != nil {
		t.Fatal(got.err)
	}
	wantError(t, "a write", add(got.st, "ann")(), nil)
	wantError(t, "close", got.st.close(), nil)
}

// A foreign key that is deferred to the commit fails there. Only the write at fault
// must fail.
func TestADeferredForeignKeyFailsOnlyItsWrite(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ann := aUser(t, st, "ann", member)
	runSQL(t, another(t, path),
		`CREATE TABLE bill (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES user (id) DEFERRABLE INITIALLY DEFERRED)`,
		`INSERT INTO bill (user_id) VALUES (1)`)
	wantError(t, "the deletion by itself", st.deleteUser(ctx, console, ann.id, 0, 1), errReferenced)
	release := groupcommittest.Busy(t, st.writer)
	before := groupcommittest.Enqueue(t, st.writer, add(st, "before"))
	deletion := groupcommittest.Enqueue(t, st.writer, func() error { return st.deleteUser(ctx, console, ann.id, 0, 1) })
	after := groupcommittest.Enqueue(t, st.writer, add(st, "after"))
	release()
	errs := groupcommittest.Answers(t, before, deletion, after)
	wantError(t, "the write before it", errs[0], nil)
	wantError(t, "the deletion", errs[1], errReferenced)
	wantError(t, "the write after it", errs[2], nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ann", "before", "after"}) {
		t.Errorf("the users are %v", got)
	}
}

func TestAWriteReturnsTheStoresErrors(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	aUser(t, st, "ann", member)
	write := func(query string) error {
		return st.write(t.Context(), statement{Query: query, IfNone: errNotApplied})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, "a write that takes effect", write(`UPDATE user SET id = id`), nil)
	wantError(t, "a duplicate", write(`INSERT INTO user (id, username, email, password_hash) VALUES (9, 'ANN', '', '')`), errDuplicate)
	wantError(t, "a condition that does not hold", write(`UPDATE user SET id = id WHERE id = 9`), errNotApplied)
	wantError(t, "a cancelled write", st.write(cancelled, statement{Query: `UPDATE user SET id = id`}), context.Canceled)
	if n := st.failedWrites.Load(); n != 0 {
		t.Errorf("%d of these are failures of the database, want none", n)
	}
	err := write(`UPDATE user SET username = NULL`)
	wantError(t, "a bug", err, errStorage)
	if text := fmt.Sprint(err); !strings.HasPrefix(text, "database: writing: constraint failed") {
		t.Errorf("the bug is reported as %q", text)
	}
	st.filesLost.Store(true)
	wantError(t, "a write to a file without a name", write(`UPDATE user SET id = id`), errFilesLost)
	if n := st.failedWrites.Load(); n != 2 {
		t.Errorf("%d failures of the database are counted, want 2", n)
	}
}
