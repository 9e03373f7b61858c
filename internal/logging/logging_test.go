package logging

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A log whose reader does not read delays each record for Timeout at most, and drops it.
func TestAReaderThatDoesNotReadDelaysOnlyOneRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		log := slog.New(NewHandler(slog.NewTextHandler(writer, nil)))
		go log.Info("first") // waits for the reader
		synctest.Wait()
		start := time.Now()
		log.Info("second")
		if waited := time.Since(start); waited != Timeout {
			t.Errorf("the second record waited for %v, want %v", waited, Timeout)
		}
		start = time.Now()
		log.Info("third")
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the third record waited for %v", waited)
		}
		var read bytes.Buffer
		done := make(chan struct{})
		go func() { io.Copy(&read, reader); close(done) }()
		synctest.Wait()
		log.Info("fourth")
		writer.Close()
		<-done
		text := read.String()
		if !strings.Contains(text, "first") || !strings.Contains(text, "fourth lost_before=2") || strings.Contains(text, "third") {
			t.Errorf("logged %q", text)
		}
	})
}

func TestALoggedPathIsShortAndHasNoSecret(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"":                                  "",
		"*":                                 "…",
		"/":                                 "/",
		"/API/v1/Users/42/":                 "/API/v1/Users/42/",
		"/wp-login.php":                     "/wp-login.php",
		"//favicon.ico":                     "//favicon.ico",
		"/../etc":                           "/../etc",
		"/api/reset/Xk29-tQ":                "/api/reset/…",
		"/api/users/ann@example.com/x":      "/api/users/…/x",
		"/eyJhbGciOiJIUzI1NiJ9.eyJ9.c2ln":   "/…",
		"/7b1f0a4c8d2e4c6b9d7d2f4f5a1b3c9e": "/…",
		"/a\r\nb/\x1b[31m/\u2028/\xff":      "/…/…/…/…",
		"/correct horse battery":            "/…",
		"/1/2/3/4/5/6/7/8/9":                "/1/2/3/4/5/6/7/…",
		"/" + strings.Repeat("/a", 50000):   "//a/a/a/a/a/a/…",
	} {
		if got := Path(path); got != want {
			t.Errorf("%.40q is logged as %q, want %q", path, got, want)
		}
	}
}
