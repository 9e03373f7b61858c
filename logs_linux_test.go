package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
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
	r, w := pipe(t)
	p := spawnLoggingTo(t, w)
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	p.servesOn()
}

func TestALogOnAFullDiskDoesNotEndIt(t *testing.T) {
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
