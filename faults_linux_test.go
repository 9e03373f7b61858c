package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// A diskFault makes the disk fail for a process that serves from dir, until the
// function that it returns is called.
type diskFault func(t *testing.T, p *process, dir string) (end func())

// limitFileSize lets no file grow beyond the current size of the write-ahead log.
func limitFileSize(t *testing.T, p *process, dir string) (end func()) {
	info, err := os.Stat(filepath.Join(dir, "app.db-wal"))
	if err != nil {
		t.Fatal(err)
	}
	set := func(size uint64) {
		limit := syscall.Rlimit{Cur: size, Max: ^uint64(0)}
		_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(p.cmd.Process.Pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	set(uint64(info.Size()))
	return func() { set(^uint64(0)) }
}

// fill fills the file system that dir is on.
func fill(t *testing.T, p *process, dir string) (end func()) {
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 1<<10))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
}

// inject makes system calls of the process fail, as strace calls them.
func inject(calls, failure string) diskFault {
	return func(t *testing.T, p *process, dir string) (end func()) {
		strace := exec.Command("strace", "-f", "-p", fmt.Sprint(p.cmd.Process.Pid), "-o", "/dev/null", "-e", "inject="+calls+":error="+failure)
		stderr, err := strace.StderrPipe()
		if err == nil {
			err = strace.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(stderr)
		if !in.Scan() || !strings.Contains(in.Text(), "attached") {
			t.Fatalf("strace: %s", in.Text())
		}
		return func() {
			strace.Process.Signal(os.Interrupt)
			for in.Scan() {
			}
			strace.Wait() // with the status of the signal
		}
	}
}

func TestAFileSizeLimitRefusesWritesAndNothingIsLost(t *testing.T) {
	t.Parallel()
	testDiskFault(t, t.TempDir(), limitFileSize, true)
}

func TestADirectoryThatCannotBeWrittenLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "app.db")
	command := func() *exec.Cmd { return userdCommand(t, dir, nil) }
	if os.Getuid() == 0 { // whom the modes of files do not bind
		const nobody = 65534
		if err := cmp.Or(os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
		command = func() *exec.Cmd {
			cmd := userdCommand(t, dir, nil)
			asNobody(t, cmd)
			return cmd
		}
	}
	start := func() *process {
		p := spawn(t, command())
		p.awaitServing()
		return p
	}
	mode := func(m os.FileMode) {
		if err := os.Chmod(dir, m); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { mode(0o700) })

	p := start()
	p.register("ann")
	mode(0o500)
	p.register("bob") // nothing new is needed in the directory
	token := p.login("ann", goodPassword)
	p.end(syscall.SIGKILL)
	p = start()
	p.must(token, "GET", "/api/users/2", "").want(t, 200, "")
	p.register("cas")
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}

	// userd could write only because the last stop could not remove the -wal and -shm. After
	// a stop that removes them, it cannot write.
	mode(0o700)
	start().end(syscall.SIGTERM)
	wantFiles(t, dir, "app.db")
	mode(0o500)
	before := snapshot(t, dir)
	p = spawn(t, command())
	receive(t, "userd exits", p.exited)
	(result{p.cmd.ProcessState.ExitCode(), p.stdout.String(), strings.Join(p.log(), "\n") + "\n"}).wantFailure(t, 1, path)
	if after := snapshot(t, dir); after != before {
		t.Errorf("the directory holds\n%s, want\n%s", after, before)
	}

	mode(0o700)
	p = start()
	if got := p.must(token, "GET", "/api/users", "").want(t, 200, "").list(t, "username"); !slices.Equal(got, []string{"ann", "bob", "cas"}) {
		t.Errorf("the users are %v", got)
	}
}

func TestADiskThatFailsRefusesWritesAndNothingIsLost(t *testing.T) {
	t.Parallel()
	if !*faults {
		t.Skip("runs with -faults")
	}
	for _, c := range []struct {
		claim string
		fault diskFault
		reads bool // go on
	}{
		{"a full disk", fill, true},
		{"no room when the log is written", inject("pwrite64", "ENOSPC"), true},
		{"an error when the log is written", inject("pwrite64", "EIO"), true},
		{"an error when the log is synced", inject("fsync,fdatasync", "EIO"), true},
		{"no room when the log is synced", inject("fsync,fdatasync", "ENOSPC"), true},
		{"a file system that has become read-only", inject("pwrite64,ftruncate,fsync,fdatasync", "EROFS"), true},
		{"an error when anything is read or synced", inject("pread64,fsync,fdatasync", "EIO"), false},
		{"an error whatever is done", inject("pread64,pwrite64,ftruncate,fsync,fdatasync", "EIO"), false},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := t.TempDir()
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir).CombinedOutput(); err != nil {
				t.Fatalf("mount: %v: %s", err, out)
			}
			t.Cleanup(func() {
				if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
					t.Errorf("umount: %v: %s", err, out)
				}
			})
			testDiskFault(t, dir, c.fault, c.reads)
		})
	}
}

// testDiskFault makes the disk of a server fail twice. After the first fault, the server
// continues. After the second, the test kills the server before it writes again, and starts
// it again. reads says whether reads succeed during the fault.
func testDiskFault(t *testing.T, dir string, fault diskFault, reads bool) {
	p := startUserd(t, dir, nil)
	users := []string{"ann"}
	p.register("ann")
	credentials := fmt.Sprintf(`{"username":"ann@example.com","password":%q}`, goodPassword)
	pair := p.must("", "POST", "/api/login", credentials).want(t, 200, "")
	for round := range 2 {
		access, refresh := pair.field("access_token"), pair.field("refresh_token")
		// A write also makes what the readers have cached old: they go to the disk next.
		users[0] = fmt.Sprint("ann", round)
		p.must(access, "PUT", "/api/users/1", fmt.Sprintf(`{"username":%q}`, users[0])).want(t, 200, "")

		end := fault(t, p, dir)
		ready := func(want int) { // it is asked once a second
			t.Helper()
			await(t, fmt.Sprint("/readyz is answered ", want), func() bool { return p.must("", "GET", "/readyz", "").status == want })
		}
		ready(503)
		for _, c := range []struct{ token, method, path, body string }{
			{"", "POST", "/api/register", registerBody("refused", goodPassword)},
			{access, "PUT", "/api/users/me", `{"username":"refused"}`},
			{access, "PUT", "/api/users/me", `{"password":"refused password"}`},
			{"", "POST", "/api/login", credentials},
			{refresh, "POST", "/api/refresh", ""},
			{access, "DELETE", "/api/users/me", ""},
			{access, "POST", "/api/logout", ""},
		} {
			r := p.must(c.token, c.method, c.path, c.body)
			if r.status != 503 || r.field("code") != "unavailable" || r.header.Get("Retry-After") == "" {
				t.Errorf("%s %s was answered %d %s", c.method, c.path, r.status, r.body)
			}
		}
		status, wrong := 503, 503
		if reads {
			status, wrong = 200, 401
		}
		p.must("", "POST", "/api/login", `{"username":"ann@example.com","password":"a wrong one"}`).want(t, wrong, "")
		p.must("", "GET", "/api/test", "").want(t, 200, "")
		p.must(access, "GET", "/api/users", "").want(t, status, "")
		if r := p.must(access, "GET", "/api/users/me", "").want(t, status, ""); reads && r.field("username") != users[0] {
			t.Errorf("in the fault the user is %s", r.body)
		}
		end()

		if round == 1 {
			p.end(syscall.SIGKILL)
			p = startUserd(t, dir, nil)
		}
		ready(200)
		if r := p.must(access, "GET", "/api/users/1", "").want(t, 200, ""); r.field("username") != users[0] {
			t.Errorf("the user is %s", r.body)
		}
		if got := p.must(access, "GET", "/api/users/1/sessions", "").want(t, 200, "").list(t, "id"); len(got) != 1 {
			t.Errorf("the sessions are %v, want one", got)
		}
		p.must(refresh, "POST", "/api/refresh", "").want(t, 200, "")
		p.must(access, "POST", "/api/logout", "").want(t, 204, "")
		pair = p.must("", "POST", "/api/login", credentials).want(t, 200, "")
		users = append(users, fmt.Sprint("next", round))
		if id := p.register(users[round+1]); id != int64(round+2) {
			t.Errorf("the next user has the id %d: one that was refused has taken an id", id)
		}
	}
	p.end(syscall.SIGKILL)
	st, err := openStore(context.Background(), filepath.Join(dir, "app.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	if found, err := st.checkIntegrity(context.Background()); err != nil || len(found) > 0 {
		t.Errorf("the integrity check: %s, %v", found, err)
	}
	if got := usernames(t, st); !slices.Equal(got, users) {
		t.Errorf("the users are %v, want %v", got, users)
	}
}
