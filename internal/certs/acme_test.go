package certs

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"userd/internal/certs/certstest"
)

// newTestACME returns a source for the domains, whose server refuses everything,
// and the number of requests to that server.
func newTestACME(t *testing.T, log *slog.Logger, domains ...string) (a *ACME, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	ca := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		http.Error(w, "out of order", http.StatusForbidden)
	}))
	ca.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	ca.StartTLS()
	t.Cleanup(ca.Close)
	a = NewACME(ACMEOptions{Domains: domains, Directory: ca.URL, Dir: filepath.Join(t.TempDir(), "certs")}, log)
	a.manager.Client.HTTPClient = ca.Client()
	if err := a.MakeDir(); err != nil {
		t.Fatal(err)
	}
	return a, requests
}

// cacheFile writes a file to the directory of keys and certificates.
func cacheFile(t *testing.T, a *ACME, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs a source until the function returned is called.
func start(t *testing.T, a *ACME) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { a.Run(ctx); close(stopped) }()
	return func() {
		t.Helper()
		select {
		case <-stopped:
			t.Error("Run returned before its context ended")
		default:
		}
		cancel()
		select {
		case <-stopped:
		case <-time.After(timeout):
			t.Fatal("Run goes on after its context has ended")
		}
	}
}

// handshake returns the DNS names of the certificate that a client gets.
func handshake(t *testing.T, a *ACME, name string, protocols ...string) ([]string, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	ours.SetDeadline(time.Now().Add(timeout))
	server := tls.Server(ours, a.TLSConfig())
	client := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: protocols})
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	clientErr := client.Handshake()
	if err := errors.Join(<-failed, clientErr); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0].DNSNames, nil
}

func TestMakeDir(t *testing.T) {
	t.Parallel()
	a, _ := newTestACME(t, slog.New(slog.DiscardHandler), "userd.example")
	if info, err := os.Stat(a.dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the directory has the mode %v, %v", info.Mode(), err)
	}
	if err := a.MakeDir(); err != nil {
		t.Errorf("a directory that exists: %v", err)
	}
	a.dir = filepath.Join(a.dir, "missing", "certs")
	if err := a.MakeDir(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that does not exist: %v", err)
	}
}

func TestACertificateThatWasKeptIsServedWithoutAsking(t *testing.T) {
	t.Parallel()
	log, lines := newLog()
	a, requests := newTestACME(t, log, "userd.example", "other.example")
	pair := certstest.New(90*certstest.Day, "userd.example")
	cacheFile(t, a, "userd.example", slices.Concat(pair.Key, pair.Cert))

	for _, name := range []string{"userd.example", "other.example"} {
		if names, err := handshake(t, a, name); err == nil {
			t.Errorf("before Run, %s got a certificate for %v", name, names)
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("strangers caused %d requests to the CA", n)
	}
	defer start(t, a)()
	got := []string{lines.next(t), lines.next(t)}
	slices.SortFunc(got, func(a, b string) int {
		return strings.Compare(a[strings.Index(a, "level="):], b[strings.Index(b, "level="):])
	})
	for i, words := range [][]string{
		{"level=INFO", "loaded certificate", "[userd.example]", "expires="},
		{"level=WARN", "could not obtain a certificate", "domain=other.example", "out of order", "retry_in=30m"},
	} {
		for _, word := range words {
			if !strings.Contains(got[i], word) {
				t.Errorf("logged %q, which lacks %q", got[i], word)
			}
		}
	}
	before := requests.Load()
	for name, good := range map[string]bool{
		"userd.example": true, "USERD.example": true, "other.example": false, "www.userd.example": false, "": false, "127.0.0.1": false,
	} {
		names, err := handshake(t, a, name, "h2", "http/1.1")
		if (err == nil) != good || good && !slices.Equal(names, []string{"userd.example"}) {
			t.Errorf("%q: got %v, %v", name, names, err)
		}
	}
	for _, name := range []string{"userd.example", "../userd.example", strings.Repeat("a.", 120) + "example"} {
		if names, err := handshake(t, a, name, acme.ALPNProto); err == nil {
			t.Errorf("without a challenge, %q got a certificate for %v", name, names)
		}
	}
	if n := requests.Load(); n != before {
		t.Errorf("strangers caused %d requests to the CA", n-before)
	}
}

func TestTheCAsChallengeIsAnsweredInAHandshake(t *testing.T) {
	t.Parallel()
	a, _ := newTestACME(t, slog.New(slog.DiscardHandler), "userd.example")
	pair := certstest.New(certstest.Day, "userd.example")
	cacheFile(t, a, "userd.example+token", slices.Concat(pair.Key, pair.Cert))
	if names, err := handshake(t, a, "userd.example", acme.ALPNProto); err != nil || !slices.Equal(names, []string{"userd.example"}) {
		t.Errorf("got %v, %v", names, err)
	}
	if names, err := handshake(t, a, "userd.example", acme.ALPNProto, "h2"); err == nil {
		t.Errorf("a client that is not the CA got a certificate for %v", names)
	}
}

func TestACMERetriesAndWarns(t *testing.T) {
	t.Parallel()
	log, lines := newLog()
	a, requests := newTestACME(t, log, "userd.example")
	a.retryEvery, a.warnEvery = time.Millisecond, time.Millisecond
	file := filepath.Join(a.dir, "userd.example")
	if err := os.Symlink(".", file); err != nil { // a directory cannot be read
		t.Fatal(err)
	}
	stop := start(t, a)
	for range 2 {
		lines.wantNext(t, "level=WARN", "could not obtain a certificate", "retry_in=1ms")
	}
	pair := certstest.New(65*time.Minute, "userd.example") // of which 5 are left
	cacheFile(t, a, "new", slices.Concat(pair.Key, pair.Cert))
	if err := os.Rename(filepath.Join(a.dir, "new"), file); err != nil {
		t.Fatal(err)
	}
	line := lines.next(t)
	for strings.Contains(line, "could not obtain") {
		line = lines.next(t)
	}
	for range 2 { // each time, although it is not new
		if !strings.Contains(line, "expires soon") {
			t.Fatalf("logged %s", line)
		}
		line = lines.next(t)
	}
	for requests.Load() == 0 { // the manager renews it, and first writes the key of its account
		time.Sleep(time.Millisecond)
	}
	stop()
}

func TestPort80(t *testing.T) {
	t.Parallel()
	a, _ := newTestACME(t, slog.New(slog.DiscardHandler), "userd.example", "b.example")
	dir := a.dir
	cacheFile(t, a, "token+http-01", []byte("token.thumbprint"))
	cacheFile(t, a, "acme_account+key", []byte("secret"))
	if err := os.Mkdir(filepath.Join(dir, "dir+http-01"), 0o700); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(a.HTTPHandler())
	t.Cleanup(web.Close)
	const challenge = "/.well-known/acme-challenge/"
	for _, c := range []struct {
		method, host, target string
		status               int
		location, body       string
	}{
		{"GET", "userd.example", "/", 301, "https://userd.example/", ""},
		{"GET", "userd.example", "/api/users?limit=3&q=a%20b", 301, "https://userd.example/api/users?limit=3&q=a%20b", ""},
		{"HEAD", "userd.example", "/api/users", 301, "https://userd.example/api/users", ""},
		{"GET", "B.Example:80", "/", 301, "https://b.example/", ""},
		{"GET", "userd.example", "//evil.example/", 301, "https://userd.example//evil.example/", ""},
		{"GET", "userd.example", "/a%2f..%2Fb", 301, "https://userd.example/a%2f..%2Fb", ""},
		{"GET", "userd.example", "x:.evil.example", 301, "https://userd.example", ""},
		{"GET", "userd.example", "http://evil.example/", 421, "", ""},
		{"POST", "userd.example", "/api/login", 400, "", "Use HTTPS"},
		{"PUT", "userd.example", "/api/users/me", 400, "", "Use HTTPS"},
		{"DELETE", "userd.example", "/api/users/me", 400, "", "Use HTTPS"},
		{"OPTIONS", "userd.example", "/api/login", 400, "", "Use HTTPS"},
		{"GET", "evil.example", "/", 421, "", ""},
		{"GET", "userd.example.evil.example", "/", 421, "", ""},
		{"GET", "127.0.0.1", "/", 421, "", ""},
		{"GET", "", "/", 421, "", ""},
		{"GET", "userd.example", challenge + "token", 200, "", "token.thumbprint"},
		{"GET", "userd.example:80", challenge + "token", 200, "", "token.thumbprint"},
		{"GET", "USERD.example", challenge + "token", 200, "", "token.thumbprint"},
		{"POST", "userd.example", challenge + "none", 404, "", "not found"},
		{"GET", "evil.example", challenge + "token", 403, "", "not served here"},
		{"GET", "userd.example", challenge + "none", 404, "", "not found"},
		{"GET", "userd.example", challenge + "dir", 404, "", "not found"},
		{"GET", "userd.example", challenge + strings.Repeat("x", 300), 404, "", "not found"},
		{"GET", "userd.example", challenge + "../acme_account%2Bkey", 404, "", "not found"},
	} {
		t.Run(c.method+" "+c.host+" "+c.target, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", web.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", c.method, c.target, c.host)
			resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: c.method})
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || resp.Header.Get("Location") != c.location || !strings.Contains(string(body), c.body) {
				t.Errorf("got %d, %q, %s", resp.StatusCode, resp.Header.Get("Location"), body)
			}
			if text := string(body); strings.Contains(text, dir) || strings.Contains(text, "autocert") || strings.Contains(text, "secret") || c.status != 301 && strings.Contains(text, "evil") {
				t.Errorf("the body is %s", text)
			}
			if resp.Header["Strict-Transport-Security"] != nil { // RFC 6797 section 7.2
				t.Errorf("the header is %v", resp.Header)
			}
		})
	}
}
