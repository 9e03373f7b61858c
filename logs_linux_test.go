package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pipe returns both ends of a pipe, which end with the test.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// servesOn fails the test unless userd answers and ends as if it had a log.
func (p *process) servesOn() {
	p.t.Helper()
	p.register("ann")
	p.login("ann", goodPassword)
	p.must("", "GET", "/api/test", "").want(p.t, 200, "")
	if status := p.end(syscall.SIGTERM); status != 0 {
		p.t.Errorf("exit status %d, want 0", status)
	}
}

// Go ends a process that writes to a standard error that nobody reads, as a
// command in a pipeline should.
func TestALogWhoseReaderHasGoneDoesNotEndIt(t *testing.T) {
	t.Parallel()
	r, w := pipe(t)
	p := spawnLoggingTo(t, w)
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	p.servesOn()
}

// A pipe that nobody reads stops the one request whose line has no room in it.
// The others, and the end, go on without their lines, and the log tells of that.
func TestALogThatNobodyReadsStopsOneRequestAtMost(t *testing.T) {
	t.Parallel()
	r, w := pipe(t)
	p := spawnLoggingTo(t, w)
	p.register("ann")
	token := p.login("ann", goodPassword)
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	conn.Control(func(fd uintptr) { // it is userd's too
		for _, size := range []int{4096, 1} { // to the last byte
			for err = syscall.SetNonblock(int(fd), true); err == nil; {
				_, err = syscall.Write(int(fd), bytes.Repeat([]byte("\n"), size))
			}
		}
		syscall.SetNonblock(int(fd), false)
	})
	if err != syscall.EAGAIN {
		t.Fatal(err)
	}

	answers := make(chan error, 8)
	for range cap(answers) {
		go func() {
			_, err := p.ask(token, "GET", "/api/users/me", "")
			answers <- err
		}()
	}
	answered := func(n int) {
		t.Helper()
		for range n {
			if err := receive(t, "a request is answered", answers); err != nil {
				t.Error(err)
			}
		}
	}
	answered(cap(answers) - 1)
	start := time.Now()
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	if took := time.Since(start); took > logPatience {
		t.Errorf("when it is known that the log hangs, a request takes %v", took)
	}

	lines := bufio.NewScanner(r)
	next := func() (record map[string]any) {
		for lines.Scan() {
			if json.Unmarshal(lines.Bytes(), &record) == nil {
				return record
			}
		}
		t.Fatal("the log has ended")
		return nil
	}
	r.SetReadDeadline(time.Now().Add(patience))
	for next()["route"] != "GET /api/users/{id}" {
	}
	answered(1)
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	if record := next(); record["lost_before"] != float64(cap(answers)) {
		t.Errorf("after %d lost lines the log says %v", cap(answers), record)
	}
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	if record := next(); record["lost_before"] != nil {
		t.Errorf("and again %v", record)
	}
	go io.Copy(io.Discard, r)
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// With descriptor 2 closed, the next file that is opened, such as the database,
// could take its place; Go opens another there first.
func TestWithoutAStandardErrorTheLogGoesNowhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket, address := tcpSocket(t)
	cmd := handed(userdCommand(t, dir, nil), socket)
	cmd.Args[2] += " 2>&-"
	p := spawn(t, cmd)
	p.url = "http://" + address
	p.servesOn()
	if names := usernames(t, openTestStore(t, filepath.Join(dir, "app.db"))); len(names) != 1 || len(p.log()) > 0 {
		t.Errorf("the users are %v, want ann; the log is %q", names, p.log())
	}
}

func TestACommandWhoseReaderHasGoneEndsQuietly(t *testing.T) {
	t.Parallel()
	cmd := userdCommand(t, t.TempDir(), []string{"DATABASE_URL=" + makeStore(t, "ann")}, "user", "list")
	r, w := pipe(t)
	r.Close()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	err, _ := cmd.Run().(*exec.ExitError)
	if err == nil || err.Sys().(syscall.WaitStatus).Signal() != syscall.SIGPIPE || stderr.Len() > 0 {
		t.Errorf("it came to %v and said %q; in a pipeline, SIGPIPE is how a command ends", err, stderr.String())
	}
}

func TestALogOnAFullDiskDoesNotEndIt(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	spawnLoggingTo(t, full).servesOn()
}

// What collects logs takes a write for a line, and lines of several processes
// in one file do not mix.
func TestEachLineOfTheLogIsOneWrite(t *testing.T) {
	t.Parallel()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0) // keeps writes apart
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), "log"), os.NewFile(uintptr(pair[1]), "log")
	defer theirs.Close()
	defer ours.Close()
	p := spawnLoggingTo(t, theirs)
	theirs.Close()
	p.servesOn()
	lines := 0
	for buf := make([]byte, 64<<10); ; lines++ {
		n, err := ours.Read(buf)
		if err != nil || n == 0 { // it has exited
			break
		}
		line, whole := bytes.CutSuffix(buf[:n], []byte("\n"))
		if !whole || !json.Valid(line) {
			t.Errorf("one write of %q", buf[:n])
		}
	}
	if lines < 6 {
		t.Errorf("%d lines", lines)
	}
}

// logrotate's copytruncate cuts the file off while userd has it open.
func TestALogFileThatIsTruncatedHasNoHole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "userd.log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := spawnLoggingTo(t, file)
	p.register("bob")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	p.servesOn()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var last struct{ Msg string }
	for line := range strings.Lines(string(log)) {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Errorf("%v: %q", err, line)
		}
	}
	if last.Msg != "stopped" {
		t.Errorf("the last line says %q, want stopped", last.Msg)
	}
}
