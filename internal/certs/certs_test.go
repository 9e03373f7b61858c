package certs

import (
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"time"

	"userd/internal/certs/certstest"
)

// timeout is how long a test waits for what must happen.
const timeout = 30 * time.Second

// A lineWriter receives a log, line by line. It drops lines while it is full, so that no writer waits.
type lineWriter chan string

func newLog() (*slog.Logger, lineWriter) {
	w := make(lineWriter, 100)
	return slog.New(slog.NewTextHandler(w, nil)), w
}

func (w lineWriter) Write(p []byte) (int, error) {
	select {
	case w <- string(p):
	default:
	}
	return len(p), nil
}

// next returns the next line.
func (w lineWriter) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-w:
		return line
	case <-time.After(timeout):
		t.Fatal("nothing was logged")
		panic("unreachable")
	}
}

// wantNext fails the test unless the next line contains all words.
func (w lineWriter) wantNext(t *testing.T, words ...string) {
	t.Helper()
	line := w.next(t)
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("logged %q, which lacks %q", line, word)
		}
	}
}

func TestACertificateThatExpiresSoon(t *testing.T) {
	t.Parallel()
	const day = certstest.Day
	now := time.Now()
	for _, c := range []struct {
		lifetime, left time.Duration
		soon           bool
	}{
		{365 * day, 8 * day, false},
		{365 * day, 6 * day, true},
		{365 * day, -day, true},
		{90 * day, 29 * day, false},
		{6 * day, 2 * day, false}, // about to be renewed
		{6 * day, 23 * time.Hour, true},
		{24 * time.Hour, 5 * time.Hour, false},
	} {
		leaf := &x509.Certificate{DNSNames: []string{"a.example"}, NotBefore: now.Add(c.left - c.lifetime), NotAfter: now.Add(c.left)}
		for _, isNew := range []bool{true, false} {
			log, lines := newLog()
			logExpiry(log, leaf, isNew)
			switch {
			case c.soon:
				lines.wantNext(t, "level=WARN", "names=[a.example]", "expires=")
			case isNew:
				lines.wantNext(t, "level=INFO", "names=[a.example]", "expires=")
			}
			if len(lines) > 0 {
				t.Errorf("%v of %v are left: it also logged %s", c.left, c.lifetime, <-lines)
			}
		}
	}
}
