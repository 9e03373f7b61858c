package certs

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"userd/internal/certs/certstest"
)

// write writes a certificate and its key to cert.pem and key.pem.
func write(t *testing.T, dir string, cert, key []byte) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile, err := certstest.Pair{Cert: cert, Key: key}.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func TestOnlyACertificateWithItsKeyIsLoaded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, other := certstest.New(90*certstest.Day), certstest.New(90*certstest.Day)
	marked := func(text []byte) []byte { return slices.Concat([]byte("\ufeff"), text) }
	f := &Files{certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem")}
	for _, c := range []struct {
		claim     string
		cert, key []byte
		isNew     bool
		fault     string
	}{
		{"a pair is loaded", good.Cert, good.Key, true, ""},
		{"but not twice", good.Cert, good.Key, false, ""},
		{"another certificate's key is refused", good.Cert, other.Key, false, "does not match"},
		{"but reported only once", good.Cert, other.Key, false, ""},
		{"two empty files are refused", nil, nil, false, "PEM"},
		{"half a certificate is refused", good.Cert[:100], good.Key, false, "PEM"},
		{"half a key is refused", good.Cert, good.Key[:100], false, "PEM"},
		{"swapped files are refused", good.Key, good.Cert, false, "PEM"},
		{"a chain is loaded", slices.Concat(other.Cert, good.Cert), other.Key, true, ""},
		{"byte-order marks are dropped", marked(good.Cert), marked(good.Key), true, ""},
		{"and the first pair again", good.Cert, good.Key, true, ""},
	} {
		before := f.loaded.Load()
		write(t, dir, c.cert, c.key)
		isNew, err := f.load()
		if isNew != c.isNew || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: got %t, %v", c.claim, isNew, err)
		}
		if (f.loaded.Load() != before) != c.isNew {
			t.Errorf("%s: the certificate changed: %t", c.claim, !c.isNew)
		}
	}
}

func TestOpenFilesNamesTheFileThatItCannotUse(t *testing.T) {
	t.Parallel()
	pair := certstest.New(90 * certstest.Day)
	certFile, keyFile := write(t, t.TempDir(), pair.Cert, pair.Key)
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for _, c := range []struct{ certFile, keyFile, says string }{
		{missing, keyFile, missing + ": no such file"},
		{certFile, missing, missing + ": no such file"},
		{keyFile, keyFile, "certificate " + keyFile + " with key " + keyFile},
	} {
		if _, err := OpenFiles(c.certFile, c.keyFile, nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("OpenFiles(%q, %q): %v", c.certFile, c.keyFile, err)
		}
	}
}

func TestFilesAreReloaded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // whose clock starts in 2000
		first, second := certstest.New(90*certstest.Day, "first"), certstest.New(90*certstest.Day, "second")
		old := certstest.New(65*time.Minute, "old") // of which 5 are left
		certFile, keyFile := write(t, dir, first.Cert, first.Key)
		log, lines := newLog()
		reread := make(chan os.Signal, 1)
		f, err := OpenFiles(certFile, keyFile, reread, log)
		if err != nil {
			t.Fatal(err)
		}
		f.warnEvery = time.Minute
		served := func() string {
			cert, err := f.TLSConfig().GetCertificate(&tls.ClientHelloInfo{ServerName: "any"})
			if err != nil {
				t.Fatal(err)
			}
			return cert.Leaf.DNSNames[0]
		}
		wait := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		quiet := func(when string) {
			t.Helper()
			if len(lines) > 0 {
				t.Errorf("%s it logged %s", when, <-lines)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stopped := make(chan struct{})
		go func() { f.Run(ctx); close(stopped) }()

		lines.wantNext(t, "level=INFO", `msg="loaded certificate"`, "[first]")
		wait(reloadEvery)
		quiet("without a change")
		reread <- syscall.SIGHUP
		synctest.Wait()
		if len(lines) == 0 {
			t.Error("after a signal nothing is read until the next tick")
		}
		lines.wantNext(t, "level=INFO", `msg="loaded certificate"`, "[first]")

		write(t, dir, second.Cert[:100], first.Key)
		wait(reloadEvery)
		lines.wantNext(t, "level=WARN", "keeping the previous one", certFile)
		wait(10 * reloadEvery)
		quiet("while the failure lasts")
		reread <- syscall.SIGHUP
		lines.wantNext(t, "level=WARN", "keeping the previous one", certFile)
		if got := served(); got != "first" {
			t.Errorf("serves %s", got)
		}
		write(t, dir, first.Cert, first.Key)
		wait(reloadEvery)
		lines.wantNext(t, "level=INFO", "[first]")

		write(t, dir, old.Cert, old.Key)
		wait(reloadEvery)
		lines.wantNext(t, "level=WARN", "expires soon", "[old]")
		for range 2 {
			wait(f.warnEvery)
			lines.wantNext(t, "level=WARN", "expires soon", "[old]")
		}
		write(t, dir, second.Cert, second.Key)
		wait(reloadEvery)
		lines.wantNext(t, "level=INFO", "[second]")
		if got := served(); got != "second" {
			t.Errorf("serves %s", got)
		}
		wait(f.warnEvery)
		quiet("with a new certificate")
		cancel()
		synctest.Wait()
		select {
		case <-stopped:
		default:
			t.Error("Run goes on after its context has ended")
		}
	})
}
