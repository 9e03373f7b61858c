package main

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"userd/internal/sqlitefile"
)

// unprivileged is the id of a user without rights, which owns the directories in which root
// works, and attacks them.
const unprivileged = 65534

// ownDir makes a directory of a user, or of the user of this test if that is not root.
func ownDir(t *testing.T, path string, uid int, mode os.FileMode) string {
	t.Helper()
	err := os.Mkdir(path, 0o700)
	if err == nil && os.Getuid() == 0 {
		err = os.Chown(path, uid, 0)
	}
	if err := errors.Join(err, os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

// reachableDir returns a temporary directory that every user can enter.
func reachableDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ownerAt(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

// mayReadAll reports whether root can let another user read everything. Containers often
// deny it.
func mayReadAll(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var mask uint64
	_, rest, _ := strings.Cut(string(status), "CapPrm:")
	if _, err := fmt.Sscanf(rest, "%x", &mask); err != nil {
		t.Fatal(err)
	}
	return mask&(1<<2) != 0 // CAP_DAC_READ_SEARCH
}

func TestRootRunsACommandAsTheOwnerOfTheDirectory(t *testing.T) {
	t.Parallel()
	owner, mode, private := os.Getuid(), os.FileMode(0o755), os.FileMode(0o644)
	if owner == 0 {
		owner = unprivileged
		if mayReadAll(t) {
			mode, private = 0o700, 0o600
		}
	}
	top := ownDir(t, filepath.Join(reachableDir(t), "top"), 0, mode) // as /var/lib/private is
	database := filepath.Join(ownDir(t, filepath.Join(top, "owner"), unprivileged, 0o700), "app.db")
	own, third := ownDir(t, filepath.Join(top, "own"), 0, 0o755), ownDir(t, filepath.Join(top, "third"), 65533, 0o700)
	ofRoot := ownDir(t, filepath.Join(top, "tmp"), 0, 0o700)
	users := filepath.Join(own, "users.csv")
	writeFile(t, users, []byte("username,email,password\nbob,bob@example.com,"+goodPassword+"\n"))
	if err := os.Chmod(users, private); err != nil {
		t.Fatal(err)
	}
	do := func(status int, says string, args ...string) {
		t.Helper()
		got := userdProcess(t, top, goodPassword+"\n", []string{"DATABASE_URL=" + database, "TMPDIR=" + ofRoot}, args...)
		if got.status != status || !strings.Contains(got.stdout+got.stderr, says) || strings.Count(got.stderr, "userd:") != min(status, 1) {
			t.Errorf("userd %q: status %d, prints %q and %q, want %d and %q", args, got.status, got.stdout, got.stderr, status, says)
		}
	}
	do(0, "would import 1 user", "user", "import", "-dry-run", users)
	do(0, "added admin ann, id 1\n", "user", "add", "-admin", "ann", "ann@example.com")
	do(0, "imported 1 user", "user", "import", users)
	do(0, "owner/copy.db: 2 users", "backup", "owner/copy.db")
	do(0, "own/copy.db: ", "backup", "own/copy.db")
	do(0, "third/copy.db: ", "backup", "third/copy.db")
	link := filepath.Join(top, "link.db")
	if err := os.Symlink(database, link); err != nil {
		t.Fatal(err)
	}
	do(0, "owner/linked.db: 2 users", "backup", "owner/linked.db", "-database", link)
	do(1, "own/copy.db already exists", "backup", "own/copy.db")
	do(1, "missing", "backup", "missing/copy.db")
	do(2, "backup: missing FILE", "backup")
	do(0, "2 users", "restore", "owner/copy.db")
	if err := os.Chmod(filepath.Join(own, "copy.db"), private); err != nil {
		t.Fatal(err)
	}
	do(0, "2 users", "restore", filepath.Join(own, "copy.db"))
	do(0, "nothing found; 2 users", "check")
	do(1, "does not exist", "user", "show", "carl")
	if os.Getuid() == 0 {
		do(1, fmt.Sprintf("this command ran as user %d, the owner of the directory of %s", unprivileged, database), "user", "show", "carl")
	}
	for dir, want := range map[string]int{filepath.Dir(database): owner, own: os.Getuid(), third: os.Getuid()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if got := ownerAt(t, filepath.Join(dir, e.Name())); got != want {
				t.Errorf("%s in %s belongs to %d, want %d", e.Name(), dir, got, want)
			}
		}
	}
	wantFiles(t, own, "copy.db", "users.csv")
	wantFiles(t, third, "copy.db")

	if err := os.Chmod(own, 0o777); err != nil {
		t.Fatal(err)
	}
	status, says := 0, "nothing found"
	if os.Getuid() == 0 {
		status, says = 1, "a user other than root can change "+own
	}
	do(status, says, "check", "-database", filepath.Join(own, "copy.db"))
}

// A -wal of the owner of the directory would keep the server from starting.
func TestABackupLeavesNothingNextToAFileOfAThirdUser(t *testing.T) {
	t.Parallel()
	dir := ownDir(t, filepath.Join(reachableDir(t), "dir"), unprivileged, 0o755)
	path := filepath.Join(dir, "app.db")
	copyFile(t, makeStore(t, "ann"), path)
	status := 0
	if os.Getuid() == 0 {
		status = 1 // the owner of the directory cannot write to the database
		if err := os.Chown(path, 65533, -1); err != nil {
			t.Fatal(err)
		}
	}
	got := userdProcess(t, dir, "", []string{"DATABASE_URL=" + path}, "backup", "-")
	if got.status != status || status > 0 && !strings.Contains(got.stderr, "permission denied") {
		t.Errorf("status %d, prints %q", got.status, got.stderr)
	}
	wantFiles(t, dir, "app.db")
}

func TestSignalsReachACommandOfAnotherUser(t *testing.T) {
	t.Parallel()
	// Otherwise userd would ignore SIGHUP if nohup started the tests.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for sent, ends := range map[syscall.Signal]bool{syscall.SIGTERM: true, syscall.SIGHUP: false} { // whether the command ends by itself
		dir := ownDir(t, filepath.Join(reachableDir(t), "dir"), unprivileged, 0o700)
		path := filepath.Join(dir, "app.db")
		copyFile(t, makeStore(t, "ann"), path)
		if err := os.Chown(path, ownerAt(t, dir), -1); err != nil {
			t.Fatal(err)
		}
		cmd := userdCommand(t, dir, []string{"DATABASE_URL=" + path}, "events", "-follow", "-after", "0")
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stdout.Read(make([]byte, 1)); err != nil { // it follows
			t.Fatal(err)
		}
		cmd.Process.Signal(sent)
		ended := make(chan error, 1)
		go func() {
			io.Copy(io.Discard, stdout) // until both processes have closed it
			ended <- cmd.Wait()
		}()
		if err := receive(t, "the end of the command", ended); (err == nil) != ends {
			t.Errorf("%v: %v", sent, err)
		}
		if ends {
			wantFiles(t, dir, "app.db")
		}
	}
}

func TestACommandOfAnotherUserEndsQuietlyWithItsReader(t *testing.T) {
	t.Parallel()
	dir := ownDir(t, filepath.Join(reachableDir(t), "dir"), unprivileged, 0o700)
	path := filepath.Join(dir, "app.db")
	copyFile(t, makeStore(t, "ann"), path)
	if err := os.Chown(path, ownerAt(t, dir), -1); err != nil {
		t.Fatal(err)
	}
	cmd := userdCommand(t, dir, []string{"DATABASE_URL=" + path}, "user", "list")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd.Stdout = w
	cmd.Run()
	w.Close()
	// Without root, the signal itself ends the command.
	if status := cmd.ProcessState.ExitCode(); status != 128+int(syscall.SIGPIPE) && (os.Getuid() == 0 || status != -1) || stderr.Len() > 0 {
		t.Errorf("status %d, prints %q", status, stderr.String())
	}
}

// An attacker is a user who can write in the directory dir, and perhaps in the one above
// it, and wants root to write in the directory victim, where only root can.
type attacker struct {
	dir, victim string
	logs        map[string][]byte // of another database, by their suffixes
	hits        int               // exchanged names
}

// attack plays a trick until the caller calls end, which returns how many names were
// exchanged.
func (a *attacker) attack(t *testing.T, play func(a *attacker, n int)) (end func() int) {
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if os.Getuid() == 0 {
			runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
			for _, call := range [][4]uintptr{{syscall.SYS_SETGROUPS}, {syscall.SYS_SETRESGID, unprivileged, unprivileged, unprivileged}, {syscall.SYS_SETRESUID, unprivileged, unprivileged, unprivileged}} {
				if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
					t.Error(errno)
					return
				}
			}
		}
		for n := 0; ; n++ {
			select {
			case <-stopped:
				return
			default:
				play(a, n)
			}
		}
	}()
	return func() int { close(stopped); <-ended; return a.hits }
}

// private calls f with the path of each private directory.
func (a *attacker) private(f func(path string)) {
	entries, _ := os.ReadDir(a.dir)
	for _, e := range entries {
		if strings.Contains(e.Name(), ".part-") && !strings.HasSuffix(e.Name(), ".mine") {
			f(filepath.Join(a.dir, e.Name()))
		}
	}
}

// take renames the file at path to a name of the attacker.
func (a *attacker) take(path string) bool {
	if os.Rename(path, path+".mine") != nil {
		return false
	}
	a.hits++
	return true
}

// swap replaces the file at path by a link to another path, for a moment.
func (a *attacker) swap(path, to string) {
	if a.take(path) {
		os.Symlink(to, path)
		runtime.Gosched()
		os.Remove(path)
		os.Rename(path+".mine", path)
	}
}

// link makes a hard link to a file of the victim, if the system allows that, or a symbolic
// link to a file that the victim does not have. It reports whether the name was free.
func (a *attacker) link(path string, hard bool) bool {
	return hard && os.Link(filepath.Join(a.victim, "secret"), path) == nil ||
		os.Symlink(filepath.Join(a.victim, "new"), path) == nil
}

// tricks are what an attacker does in a directory, again and again. n counts the times.
var tricks = []struct {
	claim string
	play  func(a *attacker, n int)
}{
	{"a link in the place of a private directory", func(a *attacker, _ int) {
		a.private(func(path string) {
			if a.take(path) {
				os.Symlink(a.victim, path)
			}
		})
	}},
	{"a link for a moment in the place of a private directory", func(a *attacker, _ int) {
		a.private(func(path string) { a.swap(path, a.victim) })
	}},
	{"a directory with links in the place of a private one", func(a *attacker, n int) {
		a.private(func(path string) {
			if !a.take(path) || os.Mkdir(path, 0o777) != nil {
				return
			}
			for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
				a.link(path+"/file"+suffix, n%2 == 1)
			}
		})
	}},
	{"links in the place of logs and copies", func(a *attacker, n int) {
		for _, suffix := range []string{"app.db-wal", "app.db-shm", "app.db-journal", "copy.db", "copy.db-journal"} {
			path := filepath.Join(a.dir, suffix)
			if a.link(path, n%2 == 1) && n%16 > 0 { // a copy that root has made stays
				runtime.Gosched()
				os.Remove(path)
			}
		}
	}},
	{"logs of another database", func(a *attacker, n int) {
		for _, name := range []string{"app.db", "copy.db"} {
			suffix := []string{"-wal", "-journal"}[n%2]
			path := filepath.Join(a.dir, name+suffix)
			if os.WriteFile(path, a.logs[suffix], 0o666) == nil {
				os.Remove(path)
			}
		}
	}},
	{"a link in the place of the database", func(a *attacker, n int) {
		a.swap(filepath.Join(a.dir, "app.db"), filepath.Join(a.victim, []string{"app.db", "empty", "new"}[n%3]))
	}},
	{"a link that stays in the place of the database", func(a *attacker, n int) {
		if path := filepath.Join(a.dir, "app.db"); n == 0 && a.take(path) {
			os.Symlink(filepath.Join(a.victim, "app.db"), path)
		}
	}},
	{"a link in the place of the directory", func(a *attacker, _ int) { a.swap(a.dir, a.victim) }},
}

// forgedLogs returns a write-ahead log and a rollback journal that each put the user
// mallory in the place of ann.
func forgedLogs(t *testing.T, base string) map[string][]byte {
	t.Helper()
	const forge = `UPDATE user SET username = 'mallory', email = 'mallory@example.com'`
	logs := make(map[string][]byte)
	for suffix, script := range map[string]string{
		"-wal": forge,
		// A journal has the pages from before its transaction. The small cache writes
		// the header before the end.
		"-journal": `PRAGMA journal_mode = DELETE; ` + forge + `; PRAGMA cache_size = 1; BEGIN; UPDATE user SET username = username || 'x'; UPDATE counter SET user_id = 9; DELETE FROM event; CREATE TABLE more AS SELECT randomblob(9000)`,
	} {
		path := filepath.Join(t.TempDir(), "app.db")
		copyFile(t, base, path)
		conn := another(t, path)
		if _, err := conn.ExecContext(t.Context(), script); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path + suffix)
		if err != nil || len(data) < 4096 {
			t.Fatalf("%d bytes of %s, %v", len(data), suffix, err)
		}
		logs[suffix] = data
	}
	return logs
}

// wantUsers fails the test unless the file at path is a sound database of root with these
// users. It reads no log, which the attacker may have left.
func wantUsers(t *testing.T, path string, names ...string) {
	t.Helper()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
		return
	}
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "mode=ro", "immutable=1"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found, err := sqlitefile.Findings(t.Context(), db, `SELECT username FROM user ORDER BY id`)
	if damage, checkErr := sqlitefile.CheckIntegrity(t.Context(), db, 1); err != nil || checkErr != nil || len(damage) > 0 || !slices.Equal(found, names) {
		t.Errorf("%s has the users %q, %v, and the damage %q, %v; want %q", path, found, err, damage, checkErr, names)
	}
	if owner := ownerAt(t, path); owner != os.Getuid() {
		t.Errorf("%s belongs to %d", path, owner)
	}
}

// In each round, root runs a command in a directory where an attacker plays a trick. Files
// that only root can write must not change.
func TestAttacksOnADirectoryMakeRootWriteNowhereElse(t *testing.T) {
	t.Parallel()
	ann, bob, flask := makeStore(t, "ann"), makeStore(t, "bob"), flaskDatabase(t)
	logs := forgedLogs(t, ann)
	// The directories are own, of root; hers, of the attacker, in another one of hers or
	// in a sticky one; and sticky, in which all can write.
	scenarios := []struct {
		database, start string // the file that the database is made of
		args            string
		attacked        string // directory
		result          string // the file that has the users of result if the command succeeds
		users           string
	}{
		{"own/app.db", ann, "backup hers/copy.db", "hers", "hers/copy.db", "ann"},
		{"own/app.db", ann, "backup sticky/copy.db", "sticky", "sticky/copy.db", "ann"},
		{"sticky/app.db", ann, "restore own/bob.db", "sticky", "sticky/app.db", "bob"},
		{"hers/app.db", ann, "backup own/copy.db", "hers", "", ""},
		{"hers/app.db", ann, "backup hers/copy.db", "hers", "", ""},
		{"hers/app.db", ann, "restore own/bob.db", "hers", "", ""},
		{"hers/app.db", flask, "adopt", "hers", "", ""},
		{"hers/app.db", ann, "user import own/users.csv", "hers", "", ""},
		{"hers/app.db", "", "user add cas cas@example.com", "hers", "", ""},
	}
	rounds := len(tricks) * len(scenarios) * 4
	if !*faults {
		rounds = 24 // with 8 tricks and 9 scenarios, all differ
	}
	if os.Getuid() != 0 {
		t.Log("without root there is no attacker: this only checks that the commands work")
		rounds = len(scenarios)
	}
	succeeded, hits := 0, 0
	for round := range rounds {
		trick, s := tricks[round%len(tricks)], scenarios[round%len(scenarios)]
		top := reachableDir(t)
		place := func(name string) string {
			return filepath.Join(top, strings.Replace(name, "hers/", "parent/hers/", 1))
		}
		own, victim := ownDir(t, place("own"), 0, 0o755), ownDir(t, place("victim"), 0, 0o755)
		if round/len(tricks)%2 == 0 {
			ownDir(t, place("parent"), unprivileged, 0o755)
		} else {
			ownDir(t, place("parent"), 0, 0o777|os.ModeSticky) // so only what is in it is hers
		}
		ownDir(t, place("hers/"), unprivileged, 0o755)
		ownDir(t, place("sticky"), 0, 0o777|os.ModeSticky)
		copyFile(t, bob, place("own/bob.db"))
		copyFile(t, ann, place("victim/app.db"))
		writeFile(t, place("victim/secret"), []byte("secret"))
		writeFile(t, place("victim/empty"), nil)
		writeFile(t, place("own/users.csv"), []byte("username,email,password_hash\ndan,dan@example.com,"+someHash+"\n"))
		if s.start != "" {
			copyFile(t, s.start, place(s.database))
			if err := os.Chown(place(s.database), ownerAt(t, filepath.Dir(place(s.database))), -1); err != nil {
				t.Fatal(err)
			}
		}
		before := snapshot(t, victim)
		args := strings.Fields(s.args)
		for i, arg := range args {
			if strings.Contains(arg, "/") {
				args[i] = place(arg)
			}
		}
		end := func() int { return 0 }
		if os.Getuid() == 0 {
			end = (&attacker{dir: filepath.Clean(place(s.attacked + "/")), victim: victim, logs: logs}).attack(t, trick.play)
		}
		got := userdProcess(t, top, goodPassword+"\n", []string{"DATABASE_URL=" + place(s.database)}, args...)
		hits += end()
		if got.status == 0 {
			succeeded++
		}
		if after := snapshot(t, victim); after != before {
			t.Errorf("%s, userd %s: status %d, %s; root's directory was\n%sand is\n%s", trick.claim, s.args, got.status, got.stderr, before, after)
		}
		if got.status == 0 && s.result != "" {
			wantUsers(t, place(s.result), s.users)
		}
		if os.Getuid() != 0 && got.status != 0 {
			t.Errorf("userd %s: %s", s.args, got.stderr)
		}
		os.Remove(place("own/copy.db"))
		os.Remove(place("own/app.db"))
		wantFiles(t, own, "bob.db", "users.csv")
	}
	t.Logf("%d rounds, in which %d commands succeeded and the attacker exchanged %d names", rounds, succeeded, hits)
	if os.Getuid() == 0 && hits == 0 {
		t.Error("the attacker did nothing")
	}
}
