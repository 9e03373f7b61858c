package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"userd/internal/safefile"
	"userd/internal/sqlitefile"
)

// manyUsers is what makes a copy take a while.
const manyUsers = `
	WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
	INSERT INTO user (id, username, email, password_hash) SELECT i, 'user' || i, 'user' || i || '@example.com', '` + someHash + `' FROM n`

// makeLargeStore is makeStore with many users more.
func makeLargeStore(t *testing.T, names ...string) (path string) {
	t.Helper()
	path = makeStore(t, names...)
	db, err := sql.Open("sqlite", sqlitefile.DSN(path))
	if err == nil {
		_, err = db.Exec(manyUsers + `; UPDATE counter SET user_id = 10000`)
	}
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// unfinished returns the copies in the directory of path that have no name yet.
func unfinished(t *testing.T, path string) []string {
	t.Helper()
	found, err := filepath.Glob(path + ".part-*/file")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A renamer gives its user one name after the other, and the address with it.
type renamer struct {
	name         string
	mu           sync.Mutex
	acknowledged []time.Time // of each name
}

// startRenamers starts n renamers. They end with the server, which kill ends.
func startRenamers(t *testing.T, p *process, n int) (all []*renamer, kill func()) {
	t.Helper()
	var ending atomic.Bool
	var wg sync.WaitGroup
	for i := range n {
		r := &renamer{name: fmt.Sprintf("w%d", i)}
		all = append(all, r)
		id := p.register(r.name + "-0")
		token := p.login(r.name+"-0", goodPassword)
		wg.Go(func() {
			for n := 1; ; n++ {
				r.mu.Lock()
				r.acknowledged = append(r.acknowledged, time.Now())
				r.mu.Unlock()
				body := fmt.Sprintf(`{"username":"%[1]s-%[2]d","email":"%[1]s-%[2]d@example.com"}`, r.name, n)
				if answer, err := p.ask(token, "PUT", userPath(id), body); err != nil || answer.status != 200 {
					if !ending.Load() {
						t.Errorf("name %d: %d %s, %v", n, answer.status, answer.body, err)
					}
					return
				}
			}
		})
	}
	kill = sync.OnceFunc(func() {
		ending.Store(true)
		p.end(syscall.SIGKILL)
		wg.Wait()
	})
	t.Cleanup(kill)
	return all, kill
}

// times returns when each of the names was acknowledged, so far.
func (r *renamer) times() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.acknowledged)
}

// in returns the index of the user's name in a database.
func (r *renamer) in(t *testing.T, conn *sql.Conn) (n int) {
	t.Helper()
	names := scan[string](t, conn, `SELECT group_concat(username || ' ' || email) FROM user WHERE username GLOB ?`, r.name+"-*")
	fmt.Sscanf(names, r.name+"-%d ", &n)
	if want := fmt.Sprintf("%[1]s-%[2]d %[1]s-%[2]d@example.com", r.name, n); names != want {
		t.Errorf("half a write: %s, want %s", names, want)
	}
	return n
}

// Each copy shows one moment: it has every write that was acknowledged before, and no half
// of a later one. Writers continue meanwhile, and other users can never read the copy.
func TestABackupUnderLoadIsOneMoment(t *testing.T) {
	t.Parallel()
	const writers = 4
	path := makeLargeStore(t)
	runSQL(t, another(t, path), `
		WITH RECURSIVE n(i) AS (SELECT 10001 UNION ALL SELECT i + 1 FROM n WHERE i < 16000)
		INSERT INTO user (id, username, email, password_hash) SELECT i, 'user' || i, 'user' || i || '@example.com', '`+someHash+`' FROM n`)
	p := startUserd(t, filepath.Dir(path), loadEnviron)
	renamers, _ := startRenamers(t, p, writers)
	written := func() (counts []int) {
		for _, r := range renamers {
			counts = append(counts, len(r.times()))
		}
		return counts
	}
	stopped := 0 // in the middle of a copy
	for round := 0; round < 3 || stopped == 0 && round < 100; round++ {
		file := filepath.Join(t.TempDir(), "copy.db")
		before := written()
		cmd := userdCommand(t, filepath.Dir(path), nil)
		cmd.Args = []string{"sh", "-c", `umask 0; exec "$0" backup "$1"`, cmd.Path, file}
		cmd.Path = "/bin/sh"
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		var err error
		var during int64 // the size when it was stopped
		for running := true; running; {
			select {
			case err = <-done:
				running = false
			default:
			}
			for _, name := range append(unfinished(t, file), file) {
				info, err := os.Stat(name)
				if err != nil {
					continue // not yet, or not any more
				}
				if info.Mode().Perm() != 0o600 {
					t.Fatalf("%s of %d bytes has the mode %v", name, info.Size(), info.Mode())
				}
				if name == file && info.Size() < 1<<20 {
					t.Fatalf("%s has its name and %d bytes", name, info.Size())
				}
				if name == file || info.Size() == 0 || during > 0 {
					continue
				}
				cmd.Process.Signal(syscall.SIGSTOP)
				if info, err = os.Stat(name); err == nil {
					during = info.Size()
					counts := written()
					await(t, "every writer goes on while the copy stands still", func() bool {
						now := written()
						for i := range counts {
							if now[i] < counts[i]+5 {
								return false
							}
						}
						return true
					})
				}
				cmd.Process.Signal(syscall.SIGCONT)
			}
		}
		if err != nil {
			t.Fatalf("%v: %s", err, &said)
		}
		if info, err := os.Stat(file); err != nil {
			t.Fatal(err)
		} else if during > 0 && during < info.Size() {
			stopped++
		}
		conn := another(t, file)
		if n := scan[int](t, conn, `SELECT count(*) FROM user`); n != 15001+writers || !strings.Contains(said.String(), fmt.Sprintf("%d users", n)) {
			t.Errorf("the copy has %d users; userd said %s", n, &said)
		}
		after := written()
		for i, r := range renamers {
			if n := r.in(t, conn); n < before[i]-1 || n > after[i] {
				t.Errorf("round %d: the copy has %s-%d; %d were written before it and %d after", round, r.name, n, before[i]-1, after[i]-1)
			}
		}
		if got := scan[string](t, conn, `PRAGMA integrity_check`); got != "ok" {
			t.Errorf("round %d: %s", round, got)
		}
	}
	if stopped == 0 {
		t.Error("no copy was stopped while it grew")
	}
	t.Logf("stopped %d times", stopped)
}

func TestABackupIsAWholeDatabase(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann", "bob")
	dir := filepath.Dir(path)
	before := snapshot(t, dir)
	copies := t.TempDir()
	got := userdProcess(t, copies, "", []string{"DATABASE_URL=" + path}, "backup", "copy.db")
	if got.status != 0 || got.stderr != "" || !strings.HasPrefix(got.stdout, "copy.db: 2 users, ") || strings.Count(got.stdout, "\n") != 1 {
		t.Errorf("backup: %+v", got)
	}
	wantFiles(t, copies, "copy.db")
	data, err := os.ReadFile(filepath.Join(copies, "copy.db"))
	if err != nil {
		t.Fatal(err)
	}
	piped := userdProcess(t, copies, "", []string{"DATABASE_URL=" + path}, "backup", "-")
	if piped.status != 0 || piped.stdout != string(data) || piped.stderr != "standard output: "+strings.TrimPrefix(got.stdout, "copy.db: ") {
		t.Errorf("to standard output: %d, %d bytes of %d, %s", piped.status, len(piped.stdout), len(data), piped.stderr)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("the files were\n%s\nand are\n%s", before, after)
	}
	if got := usernames(t, openTestStore(t, filepath.Join(copies, "copy.db"))); strings.Join(got, " ") != "ann bob" {
		t.Errorf("the users are %v", got)
	}
}

func TestABackupThatIsRefusedLeavesEverythingAsItWas(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann")
	dir := filepath.Dir(path)
	there := filepath.Join(dir, "there.db")
	if err := os.WriteFile(there, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link.db")); err != nil {
		t.Fatal(err)
	}
	damaged := makeStore(t, "ann")
	damage(t, damaged, firstPage(t, damaged, "user"), make([]byte, 4096))
	terminal, err := os.OpenFile("/dev/zero", os.O_WRONLY, 0) // a character device, like a terminal
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	for _, c := range []struct {
		claim, database, name string
		status                int
		says                  string
	}{
		{"over a file", path, there, 1, "already exists; backup never overwrites a file"},
		{"over a link", path, filepath.Join(dir, "link.db"), 1, "already exists; backup never overwrites a file"},
		{"over the database", path, path, 1, "already exists; backup never overwrites a file"},
		{"in no directory", path, filepath.Join(dir, "no", "copy.db"), 1, "no such file"},
		{"of no database", filepath.Join(dir, "none.db"), filepath.Join(dir, "copy.db"), 1, "does not exist or is empty"},
		{"of another file", there, filepath.Join(dir, "copy.db"), 1, "not a database"},
		{"of Flask's", flaskDatabase(t), filepath.Join(dir, "copy.db"), 1, "userd adopt"},
		{"of a damaged one", damaged, filepath.Join(dir, "copy.db"), 1, "malformed"},
		{"to a terminal", path, "-", 2, "refusing to write a database to a terminal"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			before := snapshot(t, dir)
			err := run(t.Context(), []string{"backup", c.name}, getenvOf([]string{"DATABASE_URL=" + c.database}), nil, terminal, terminal)
			if err == nil || exitStatus(err) != c.status || !strings.Contains(err.Error(), c.says) {
				t.Errorf("backup: %v", err)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("the files were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// After a full disk, a signal or a closed pipe, no copy is left.
func TestABackupThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	path := makeLargeStore(t, "ann")
	dir := filepath.Dir(path)
	t.Run("by a file that must not grow", func(t *testing.T) {
		for _, name := range []string{"copy.db", "-"} {
			cmd := userdCommand(t, dir, nil)
			cmd.Args = []string{"sh", "-c", `ulimit -f 500; exec "$0" backup "$1"`, cmd.Path, name}
			cmd.Path = "/bin/sh"
			out, err := cmd.CombinedOutput()
			if err == nil || strings.Count(string(out), "\n") != 1 || cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("%s: %v, %s", name, err, out)
			}
			wantFiles(t, dir, "app.db")
		}
	})
	t.Run("by a signal", func(t *testing.T) {
		for interrupted := false; !interrupted; {
			cmd := userdCommand(t, dir, nil, "backup", "copy.db")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, "a copy", func() bool {
				_, err := os.Stat(filepath.Join(dir, "copy.db"))
				return err == nil || len(unfinished(t, filepath.Join(dir, "copy.db"))) > 0
			})
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
			if interrupted = cmd.ProcessState.ExitCode() == 1; !interrupted { // it was faster
				if err := os.Remove(filepath.Join(dir, "copy.db")); err != nil {
					t.Fatalf("exit status %d, %v", cmd.ProcessState.ExitCode(), err)
				}
			}
			wantFiles(t, dir, "app.db")
		}
	})
	t.Run("by a reader that goes", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := userdCommand(t, dir, nil, "backup", "-")
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		r.Close()
		if err := cmd.Wait(); err == nil {
			t.Error("a backup to a closed pipe succeeded")
		}
		wantFiles(t, dir, "app.db")
	})
}

// keptOnes returns the databases that restores have kept, the oldest first.
func keptOnes(t *testing.T, path string) []string { return labeled(t, path, "before-restore") }

// A restore undoes all changes since the copy, but reuses no id that was given out since.
func TestARestoreTakesBackWhatHasChangedButNotIDs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, file := filepath.Join(dir, "app.db"), filepath.Join(t.TempDir(), "copy.db")
	sh := &shell{t, path}
	p := startUserd(t, dir, nil)
	p.register("ann")
	early := p.login("ann", goodPassword)
	sh.run(0, "", "backup", file)
	p.register("bob")
	p.register("cas")
	lost := p.login("ann", goodPassword)
	p.must(lost, "PUT", "/api/users/me", `{"username":"anna"}`).want(t, 200, "")
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Fatal(status)
	}
	if err := os.Chmod(path, 0o640); err != nil { // which the new one does not inherit
		t.Fatal(err)
	}
	source := snapshot(t, filepath.Dir(file))
	out, _ := sh.run(0, "", "restore", file)
	kept := keptOnes(t, path)
	if len(kept) != 1 || !strings.Contains(out, "1 user,") || !strings.Contains(out, kept[0]) {
		t.Fatalf("kept is %v; userd said %s", kept, out)
	}
	wantFiles(t, dir, "app.db", filepath.Base(kept[0]))
	if after := snapshot(t, filepath.Dir(file)); after != source {
		t.Errorf("the copy was\n%s\nand is\n%s", source, after)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the database has the mode %v, %v", info.Mode(), err)
	}

	p = startUserd(t, dir, nil)
	if name := p.must(early, "GET", "/api/users/me", "").want(t, 200, "").field("username"); name != "ann" {
		t.Errorf("the user is %s", name)
	}
	for range 3 { // none of these sessions is the lost one
		p.login("ann", goodPassword)
		p.must(lost, "GET", "/api/users/me", "").want(t, 401, "session_ended")
	}
	if id := p.register("dan"); id != 4 {
		t.Errorf("the next user has the id %d, want 4", id)
	}
	if sid := scan[int](t, another(t, path), `SELECT max(id) FROM session`); sid < idGap {
		t.Errorf("the last session has the id %d", sid)
	}
	if names := usernames(t, openTestStore(t, kept[0])); strings.Join(names, " ") != "anna bob cas" {
		t.Errorf("the one before has the users %v", names)
	}
}

// If the previous database does not tell which ids were given out since the copy, the
// restore skips many ids.
func TestARestoreSkipsIDsIfTheLastOnesAreUnknown(t *testing.T) {
	t.Parallel()
	file := makeStore(t, "ann", "bob")
	for claim, path := range map[string]string{
		"on a new machine":                   filepath.Join(t.TempDir(), "app.db"),
		"over a database that was made anew": makeStore(t, "cas"),
		"over an empty file":                 emptyFile(t),
	} {
		(&shell{t, path}).run(0, "", "restore", file)
		if id := aUser(t, openTestStore(t, path), "new", member).id; id != 2+idGap+1 {
			t.Errorf("%s: the next user has the id %d", claim, id)
		}
	}
}

// Whatever the state of the database, a restore replaces it by the copy and keeps it.
func TestARestoreReplacesWhateverIsThere(t *testing.T) {
	t.Parallel()
	file := makeStore(t, "ann")
	runSQL(t, another(t, file), `UPDATE user SET password_hash = '`+someHash+`'`)
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(i*i>>3 ^ i*31)
	}
	killed := func(t *testing.T, path string) { // what a killed server leaves has its work in the log
		live := filepath.Join(t.TempDir(), "app.db")
		st := openTestStore(t, live)
		aUser(t, st, "old", member)
		aUser(t, st, "late", member)
		copyFile(t, live, path)
		copyFile(t, live+"-wal", path+"-wal")
	}
	const toTheByte, something, nothing = "to the byte", "something", "nothing"
	for _, c := range []struct {
		claim string
		spoil func(t *testing.T, path string)
		kept  string // or else its users
	}{
		{"a good one", func(*testing.T, string) {}, "old"},
		{"one whose server was killed", killed, "old late"},
		{"noise", func(t *testing.T, path string) { damage(t, path, 0, noise) }, toTheByte},
		{"a text", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("notes\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, toTheByte},
		{"one with a damaged schema", func(t *testing.T, path string) { damage(t, path, 100, noise[:3000]) }, toTheByte},
		{"one with a damaged schema whose server was killed", func(t *testing.T, path string) {
			killed(t, path)
			copyFile(t, makeStore(t, "old"), path)
			damage(t, path, 100, noise[:3000])
			damage(t, path+"-wal", 40, noise[:8]) // the page that would mend it
		}, something},
		{"one with a damaged table", func(t *testing.T, path string) { damage(t, path, firstPage(t, path, "counter"), noise) }, "old"},
		{"one without its counter", func(t *testing.T, path string) { runSQL(t, another(t, path), `DROP TABLE counter`) }, "old"},
		{"one cut short", func(t *testing.T, path string) {
			if err := os.Truncate(path, 5000); err != nil {
				t.Fatal(err)
			}
		}, something},
		{"a log of one that is gone", func(t *testing.T, path string) {
			killed(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, nothing},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := makeStore(t, "old")
			t.Run("when", func(t *testing.T) { c.spoil(t, path) }) // all that it has open is closed
			was := contents(t, path)
			sh := &shell{t, path}
			sh.run(0, "", "restore", file)
			sh.run(0, "", "check")
			if c.kept == nothing {
				if left, err := filepath.Glob(path + ".before-restore-*Z-wal"); len(left) != 1 {
					t.Errorf("the log was not kept: %v, %v", left, err)
				}
			} else if kept := keptOnes(t, path); len(kept) != 1 {
				t.Fatalf("kept is %v", kept)
			} else if c.kept == toTheByte {
				if contents(t, kept[0]) != was {
					t.Error("the kept file differs from the previous database")
				}
			} else if c.kept != something {
				if names := scan[string](t, another(t, kept[0]), `SELECT group_concat(username, ' ' ORDER BY id) FROM user`); names != c.kept {
					t.Errorf("kept are %s", names)
				}
			}
			st := openTestStore(t, path)
			aUser(t, st, "new", member)
			if names := usernames(t, st); strings.Join(names, " ") != "ann new" {
				t.Errorf("the users are %v", names)
			}
		})
	}
}

// contents returns the sums of a database's file and of its log, "" for an empty one.
func contents(t *testing.T, path string) (sums [2]string) {
	t.Helper()
	for i, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		if len(data) > 0 && err == nil {
			sums[i] = fmt.Sprintf("%x", sha256.Sum256(data))
		}
	}
	return sums
}

// A restore accepts the copies that other programs make.
func TestARestoreTakesCopiesOfAnyMaking(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		make  func(t *testing.T, path string)
	}{
		{"a file that was copied while no process had it open", func(t *testing.T, path string) { copyFile(t, makeStore(t, "ann"), path) }},
		{"a file and its log, as a snapshot of the disk has them", func(t *testing.T, path string) {
			live := filepath.Join(t.TempDir(), "app.db")
			aUser(t, openTestStore(t, live), "ann", member)
			copyFile(t, live, path)
			copyFile(t, live+"-wal", path+"-wal")
		}},
		{"one that is in use", func(t *testing.T, path string) { aUser(t, openTestStore(t, path), "ann", member) }},
		{"one outside of WAL mode", func(t *testing.T, path string) {
			copyFile(t, makeStore(t, "ann"), path)
			runSQL(t, another(t, path), `PRAGMA journal_mode = DELETE`)
		}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(t.TempDir(), "copy.db")
			c.make(t, file)
			before := contents(t, file)
			if got := userdProcess(t, dir, "", nil, "restore", file); got.status != 0 {
				t.Fatalf("restore: %+v", got)
			}
			if after := contents(t, file); after != before {
				t.Error("the copy has changed")
			}
			wantFiles(t, dir, "app.db")
			if names := usernames(t, openTestStore(t, filepath.Join(dir, "app.db"))); strings.Join(names, " ") != "ann" {
				t.Errorf("the users are %v", names)
			}
		})
	}
}

func TestARestoreThatIsRefusedLeavesEverythingAsItWas(t *testing.T) {
	t.Parallel()
	good := makeStore(t, "ann")
	damaged := makeStore(t, "ann")
	damage(t, damaged, firstPage(t, damaged, "user_email"), make([]byte, 4096))
	newer := makeStore(t, "ann")
	damage(t, newer, 60, []byte{0, 0, 0, byte(len(migrations) + 1)})
	text := emptyFile(t)
	damage(t, text, 0, []byte(strings.Repeat("my notes\n", 100)))
	unfinished := makeStore(t, "ann")
	if err := os.WriteFile(unfinished+"-journal", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	hooked := makeStore(t, "ann")
	addHooks(t, hooked, promote)
	ours := makeStore(t, "old")
	for _, c := range []struct{ claim, database, file, says string }{
		{"no file", ours, filepath.Join(t.TempDir(), "none.db"), "no such file"},
		{"an empty file", ours, emptyFile(t), "does not exist or is empty"},
		{"a text", ours, text, "not a database"},
		{"a damaged copy", ours, damaged, "damaged"},
		{"a newer userd's", ours, newer, "newer userd"},
		{"Flask's", ours, flaskDatabase(t), "userd adopt -database"},
		{"another program's", ours, makeDatabase(t, `CREATE TABLE song (title)`), "another program's"},
		{"one with a journal next to it", ours, unfinished, "unfinished"},
		{"one with a trigger", ours, hooked, `trigger "promote" on table "session"`},
		{"the database itself", ours, ours, "the database itself"},
		{"over another program's", makeDatabase(t, `CREATE TABLE song (title)`), good, "another program's"},
		{"over Flask's", flaskDatabase(t), good, "Flask"},
		{"over a directory", t.TempDir(), good, "not a regular file"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			before := snapshot(t, filepath.Dir(c.database)) + snapshot(t, filepath.Dir(c.file))
			userdHere(t, "", []string{"DATABASE_URL=" + c.database}, "restore", c.file).wantFailure(t, 1, c.says)
			if after := snapshot(t, filepath.Dir(c.database)) + snapshot(t, filepath.Dir(c.file)); after != before {
				t.Errorf("the files were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// In a directory that others can write, a log next to a file may be a stranger's.
func TestAStrangersLogIsNotRead(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		return // only root can make a stranger's file
	}
	for _, c := range []struct {
		claim, suffix string
		uid           int
		status        int // of a restore
		starts        int // status of a command on it as the database
	}{
		{"root's log", "-wal", 0, 0, 0},
		{"a stranger's log", "-wal", 65533, 1, 1},
		{"a log of the file's owner", "-wal", 65534, 1, 0}, // who may have made both
		{"a stranger's journal", "-journal", 65533, 1, 1},
	} {
		t.Run(c.claim, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "copy.db")
			live := filepath.Join(t.TempDir(), "app.db")
			aUser(t, openTestStore(t, live), "ann", member)
			copyFile(t, live, file)
			copyFile(t, live+"-wal", file+c.suffix)
			if err := errors.Join(os.Chown(file, 65534, 65534), os.Chown(file+c.suffix, c.uid, c.uid)); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, filepath.Dir(file))
			dir := t.TempDir()
			got := userdProcess(t, dir, "", nil, "restore", file)
			if got.status != c.status || c.status != 0 && !strings.Contains(got.stderr, file+c.suffix) && !strings.Contains(got.stderr, "unfinished") {
				t.Errorf("restore: %+v", got)
			}
			if after := snapshot(t, filepath.Dir(file)); after != before {
				t.Errorf("the files were\n%s\nand are\n%s", before, after)
			}
			if c.status != 0 {
				wantFiles(t, dir)
			}
			if got := userdProcess(t, dir, "", []string{"DATABASE_URL=" + file}, "user", "list"); got.status != c.starts {
				t.Errorf("user list: %+v", got)
			}
		})
	}
	t.Run("a link in the place of a log", func(t *testing.T) {
		file := makeStore(t, "ann")
		if err := os.Symlink(makeStore(t, "bob"), file+"-wal"); err != nil {
			t.Fatal(err)
		}
		userdProcess(t, t.TempDir(), "", nil, "restore", file).wantFailure(t, 1, "app.db-wal")
	})
}

// A restore changes nothing while another process has the database open, even if the
// database is damaged.
func TestARestoreIsRefusedWhileAServerRuns(t *testing.T) {
	t.Parallel()
	file := makeStore(t, "ann")
	refused := func(t *testing.T, dir string) {
		t.Helper()
		userdProcess(t, dir, "", nil, "restore", file).wantFailure(t, 1, "in use")
		if kept := keptOnes(t, filepath.Join(dir, "app.db")); len(kept) != 0 {
			t.Errorf("kept is %v", kept)
		}
	}
	t.Run("a server", func(t *testing.T) {
		dir := t.TempDir()
		p := startUserd(t, dir, nil)
		p.register("bob")
		refused(t, dir)
		p.register("cas")
		if status := p.end(syscall.SIGTERM); status != 0 {
			t.Fatal(status)
		}
		wantFiles(t, dir, "app.db")
	})
	t.Run("a server whose file is damaged", func(t *testing.T) {
		for _, offset := range []int64{0, 100} {
			dir := filepath.Dir(makeStore(t, "bob")) // whose first page is not in the log
			p := startUserd(t, dir, nil)
			damage(t, filepath.Join(dir, "app.db"), offset, []byte("these are notes, not a database"))
			refused(t, dir)
			p.end(syscall.SIGKILL)
		}
	})
	t.Run("a reader", func(t *testing.T) {
		path := makeStore(t, "bob")
		if n := scan[int](t, another(t, path), `SELECT count(*) FROM user`); n != 1 {
			t.Fatal(n)
		}
		refused(t, filepath.Dir(path))
	})
	t.Run("a transaction outside of WAL mode", func(t *testing.T) {
		path := makeStore(t, "bob")
		conn := another(t, path)
		runSQL(t, conn, `PRAGMA journal_mode = DELETE`, `BEGIN IMMEDIATE`)
		refused(t, filepath.Dir(path))
		runSQL(t, conn, `COMMIT`)
	})
}

// A server that opened the old file and waited for the lock writes nothing to that file,
// and makes no log next to the new one.
func TestAServerWithTheOldFileCannotWriteAfterARestore(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "old")
	late := another(t, path) // open, and no statement run
	if got := userdProcess(t, filepath.Dir(path), "", nil, "restore", makeStore(t, "ann")); got.status != 0 {
		t.Fatalf("restore: %+v", got)
	}
	for _, query := range []string{`PRAGMA journal_mode = WAL`, `UPDATE user SET version = 2`} {
		if _, err := late.ExecContext(t.Context(), query); err == nil {
			t.Errorf("%s was done", query)
		}
	}
	if _, err := os.Stat(path + "-wal"); err == nil {
		t.Error("there is a log")
	}
}

// If the last step of a restore fails, the database keeps its one name.
func TestReplaceDatabaseThatFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim  string
		exists bool
		spoil  func(t *testing.T, file *safefile.Temp, path, kept string)
		says   string
		names  []string // next to the new file
	}{
		{"because the new file cannot be synced", true, func(t *testing.T, file *safefile.Temp, _, _ string) { file.Close() }, "already closed", []string{"app.db"}},
		{"because the other name exists", true, func(t *testing.T, _ *safefile.Temp, _, kept string) { writeFile(t, kept, nil) }, "keeping the previous database", []string{"app.db", "kept"}},
		{"because the log cannot be moved", true, func(t *testing.T, _ *safefile.Temp, path, kept string) {
			writeFile(t, path+"-wal", nil)
			if err := os.Mkdir(kept+"-wal", 0o700); err != nil {
				t.Fatal(err)
			}
		}, "keeping the previous database", []string{"app.db", "app.db-wal", "kept-wal"}},
		{"because a server has just made a database", false, func(*testing.T, *safefile.Temp, string, string) {}, "exists", []string{"app.db"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := t.TempDir()
			path, kept := filepath.Join(dir, "app.db"), filepath.Join(dir, "kept")
			writeFile(t, path, []byte("previous"))
			file, err := safefile.CreateTemp(filepath.Join(dir, "part"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Discard()
			c.spoil(t, file, path, kept)
			if err := replaceDatabase(file, path, kept, c.exists); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
			wantFiles(t, dir, append(slices.Clone(c.names), filepath.Base(filepath.Dir(file.Name())))...)
			if data, err := os.ReadFile(path); string(data) != "previous" {
				t.Errorf("the database contains %q, %v", data, err)
			}
		})
	}
}

func TestASecondNameIsRemovedOnlyIfItIsOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, link, other := filepath.Join(dir, "app.db"), filepath.Join(dir, "link"), filepath.Join(dir, "other")
	writeFile(t, path, nil)
	writeFile(t, other, nil)
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{link, other, filepath.Join(dir, "missing")} {
		removeSecondName(path, name)
		removeSecondName(filepath.Join(dir, "gone"), name)
	}
	wantFiles(t, dir, "app.db", "other")
}

func TestARestoreBehindALinkKeepsTheLink(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "old")
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	(&shell{t, link}).run(0, "", "restore", makeStore(t, "ann"))
	wantFiles(t, filepath.Dir(link), "link.db")
	if kept := keptOnes(t, path); len(kept) != 1 {
		t.Errorf("kept is %v", kept)
	}
	if names := usernames(t, openTestStore(t, path)); strings.Join(names, " ") != "ann" {
		t.Errorf("the users are %v", names)
	}
}

// Root restores for the user that the server runs as.
func TestARestoredDatabaseHasTheOwnerOfTheOneBefore(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "old")
	uid := os.Getuid()
	if uid == 0 {
		uid = 65534
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	(&shell{t, path}).run(0, "", "restore", makeStore(t, "ann"))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != uid {
		t.Errorf("the owner is %d, want %d", owner, uid)
	}
}

// If a restore is killed at any instant, the path refers to the old or the new database,
// complete.
func TestARestoreKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	file := makeLargeStore(t, "new")
	base := makeLargeStore(t, "old")
	found := make(map[string]int)
	look := func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, "app.db")
		conn := another(t, path)
		found[scan[string](t, conn, `SELECT username FROM user WHERE id = 1`)]++
		if n := scan[int](t, conn, `SELECT count(*) FROM user`); n != 9002 {
			t.Errorf("%d users", n)
		}
		if got := scan[string](t, conn, `PRAGMA integrity_check`); got != "ok" {
			t.Error(got)
		}
		for _, kept := range keptOnes(t, path) {
			if name := scan[string](t, another(t, kept), `SELECT username FROM user WHERE id = 1`); name != "old" {
				t.Errorf("kept is %s", name)
			}
		}
	}
	t.Run("by the clock", func(t *testing.T) {
		var whole time.Duration
		const rounds = 6
		for round := 0; round <= rounds || found["old"] == 0 && round < 10*rounds; round++ {
			dir := t.TempDir()
			copyFile(t, base, filepath.Join(dir, "app.db"))
			cmd := userdCommand(t, dir, nil, "restore", file)
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
			look(t, dir)
		}
	})
	t.Run("by the system call", func(t *testing.T) {
		if !*faults {
			t.Skip("runs with -faults")
		}
		for when := 1; ; when++ {
			dir := t.TempDir()
			copyFile(t, base, filepath.Join(dir, "app.db"))
			restore := userdCommand(t, dir, nil, "restore", file)
			const calls = "link,linkat,rename,renameat,renameat2,unlink,unlinkat,ftruncate,fsync,fdatasync"
			cmd := exec.Command("strace", "-f", "-o", "/dev/null", "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, when), restore.Path, "restore", file)
			cmd.Dir, cmd.Env = dir, restore.Env
			err := cmd.Run()
			look(t, dir)
			if err == nil {
				break
			}
		}
	})
	if found["old"] == 0 || found["new"] == 0 {
		t.Errorf("found %v", found)
	}
	t.Logf("found %v", found)
}

func TestACheckTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	good := makeStore(t)
	st, err := openStore(context.Background(), good)
	if err != nil {
		t.Fatal(err)
	}
	u := user{username: "root", email: "root@example.com", role: admin}
	v := user{username: "ann", email: "ann@example.com", role: member}
	for _, u := range []*user{&u, &v} {
		if err := st.addUser(context.Background(), console, u, someHash, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	if out, _ := (&shell{t, good}).run(0, "", "check"); out != good+": nothing found; 2 users, 0 sessions\n" {
		t.Fatalf("check: %s", out)
	}
	noise := bytes.Repeat([]byte{0xa5}, 4096)
	sql := func(queries ...string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { runSQL(t, another(t, path), queries...) }
	}
	for _, c := range []struct {
		claim string
		spoil func(t *testing.T, path string)
		says  []string
	}{
		{"a session of a user that does not exist", sql(`INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent) VALUES (9, 1, 1, 1, '', '')`),
			[]string{"table session has rows of user 9, which does not exist"}},
		{"an unknown role", sql(`UPDATE user SET role = 'king' || char(27) WHERE id = 1`), []string{`user 1 has the unknown role 'king?'`}},
		{"an unknown value of disabled", sql(`UPDATE user SET disabled = 2 WHERE id = 1`), []string{"user 1 has 2 instead of 0 or 1 in disabled"}},
		{"an unknown hash", sql(`UPDATE user SET password_hash = 'md5' WHERE id = 2`), []string{"user 2 cannot log in: the format of the password hash is unknown"}},
		{"a damaged hash", sql(`UPDATE user SET password_hash = '$argon2id$' WHERE id = 2`), []string{"user 2 cannot log in: the format of the password hash is unknown"}},
		{"no hash", sql(`PRAGMA writable_schema = ON`, `UPDATE sqlite_schema SET sql = replace(sql, 'password_hash VARCHAR(128) NOT NULL', 'password_hash VARCHAR(128)') WHERE name = 'user'`,
			`PRAGMA writable_schema = RESET`, `UPDATE user SET password_hash = NULL WHERE id = 2`), []string{"user 2 cannot log in: the format of the password hash is unknown"}},
		{"many unknown hashes", sql(manyUsers, `UPDATE user SET password_hash = 'md5'`), []string{"user 1 cannot log in: the format of the password hash is unknown", sqlitefile.MoreFindings}},
		{"a counter behind the users", sql(`UPDATE counter SET user_id = 1`), []string{"the counter of user ids is at 1, but user 2 exists"}},
		{"no counter", sql(`DELETE FROM counter`), []string{"the counter of user ids is missing"}},
		{"a key that is too short", sql(`INSERT INTO signing_key (kid, secret, created_at) VALUES ('k', x'00', 1)`), []string{"signing key k has 1 bytes instead of at least 32"}},
		{"no index of names", sql(`DROP INDEX user_username`), []string{"index user_username is missing"}},
		{"an index that lets case pass", sql(`DROP INDEX user_email; CREATE UNIQUE INDEX user_email ON user (email)`), []string{"index user_email differs from userd's: CREATE UNIQUE INDEX"}},
		{"no column", sql(`ALTER TABLE user DROP COLUMN version`), []string{"column version of table user is missing"}},
		{"values of other types", sql(`UPDATE user SET email = CAST(email AS BLOB), password_hash = CAST(password_hash AS BLOB) WHERE id = 1`, `UPDATE user SET created_at = 'now', version = 1.5 WHERE id = 2`),
			[]string{"user 1 has blob instead of text in email and blob instead of text in password_hash", "user 2 has text instead of integer in created_at and real instead of integer in version", "user 1 cannot log in"}},
		{"another type in another table", sql(`UPDATE event SET address = x'00', at = 'then' WHERE id = 1`, `UPDATE secret SET value = 'text'`, `INSERT INTO secret VALUES ('n', 7)`),
			[]string{"event 1 has text instead of integer in at and blob instead of text in address", "secret n has integer instead of blob in value"}},
		{"a trigger", sql(promote), []string{`trigger "promote" on table "session" uses a table of userd`}},
		{"two things", sql(`DROP INDEX user_username`, `UPDATE counter SET user_id = 1`), []string{"index user_username is missing", "but user 2 exists"}},
		{"many of one", sql(manyUsers, `UPDATE user SET role = 'king'`), []string{"user 1 has the unknown role 'king'", sqlitefile.MoreFindings}},
		{"a damaged index", func(t *testing.T, path string) { damage(t, path, firstPage(t, path, "user_email"), noise) }, []string{"page"}},
		{"a damaged table", func(t *testing.T, path string) { damage(t, path, firstPage(t, path, "user"), noise) }, []string{"malformed"}},
		{"a damaged schema", func(t *testing.T, path string) { damage(t, path, 100, noise[:3000]) }, []string{"malformed"}},
		{"an entry that an index lacks", func(t *testing.T, path string) {
			conn := another(t, path)
			runSQL(t, conn, `PRAGMA writable_schema = ON`, `UPDATE sqlite_schema SET name = 'hidden', sql = replace(sql, 'user_admin', 'hidden') WHERE name = 'user_admin'`,
				`DELETE FROM sqlite_schema WHERE name = 'user_disabled'`)
		}, []string{"index user_disabled is missing"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "app.db")
			copyFile(t, good, path)
			sh := &shell{t, path}
			t.Run("when", func(t *testing.T) { c.spoil(t, path) })
			before := snapshot(t, filepath.Dir(path))
			out, stderr := sh.run(1, "", "check")
			for _, says := range c.says {
				if !strings.Contains(out, says) {
					t.Errorf("check does not say %q: %s%s", says, out, stderr)
				}
			}
			if n := strings.Count(out, "\n"); n < len(c.says) || n > sqlitefile.MostFindings+2 || !strings.Contains(stderr, ": "+plural(n, "finding")+"\n") {
				t.Errorf("%d lines: %s%s", n, out, stderr)
			}
			if after := snapshot(t, filepath.Dir(path)); after != before {
				t.Errorf("the files were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

func TestACheckBesideAServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	p.register("ann")
	p.login("ann", goodPassword)
	conn := another(t, filepath.Join(dir, "app.db"))
	runSQL(t, conn, `BEGIN IMMEDIATE`) // a writer does not block the check
	got := userdProcess(t, dir, "", nil, "check")
	runSQL(t, conn, `COMMIT`)
	if got.status != 0 || !strings.HasSuffix(got.stdout, "app.db: nothing found; 1 user, 1 session\n") || !strings.HasPrefix(got.stderr, "warning: no active admin") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("check: %+v", got)
	}
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Error(status)
	}
	for _, test := range []struct{ environ, says string }{{"", "no signing key"}, {"JWT_SECRET_KEY=" + strings.Repeat("k", 32), ""}} {
		path := makeStore(t)
		if got := userdProcess(t, filepath.Dir(path), "", []string{test.environ}, "check"); got.status != 0 || strings.Contains(got.stderr, "signing key") != (test.says != "") {
			t.Errorf("check: %+v", got)
		}
	}
	userdProcess(t, t.TempDir(), "", nil, "check").wantFailure(t, 1, "does not exist or is empty")
	(&shell{t, flaskDatabase(t)}).run(1, "", "check")
}

// SQLite keeps the write-ahead log next to the file that a symbolic link points to.
func TestADatabaseBehindALinkIsReadWithItsLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	aUser(t, st, "ann", member)
	if kind, err := inspect(t.Context(), link); kind != kindUserd || err != nil {
		t.Errorf("inspect says %v, %v", kind, err)
	}
	if out, _ := (&shell{t, link}).run(1, "", "check"); !strings.Contains(out, "user 1 cannot log in") {
		t.Errorf("check: %s", out)
	}
}
