package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/passhash"
	"userd/internal/refresh"
	"userd/internal/validate"
)

// TestMain lets the tests run userd as a process: if the environment asks for
// it, the test binary is userd.
func TestMain(m *testing.M) {
	if os.Getenv("USERD_TEST_RUN_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(runTests(m))
}

// runTests runs the tests on databases in memory if the system has a place for
// them: a sync to a disk takes longer than most tests. Benchmarks measure it,
// and so use the disk.
func runTests(m *testing.M) int {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		parallel.Value.Set(fmt.Sprint(4 * runtime.GOMAXPROCS(0))) // many tests wait
	}
	if os.Getenv("TMPDIR") == "" && flag.Lookup("test.bench").Value.String() == "" && hasMemoryDir() {
		dir, err := os.MkdirTemp(memoryDir, "userd-test-")
		if err == nil {
			err = os.Chmod(dir, 0o755) // some tests run userd as another user
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		os.Setenv("TMPDIR", dir)
	}
	return m.Run()
}

// diskDir is the system's directory for temporary files, before runTests sets
// another.
var diskDir = os.TempDir()

// programDir returns a directory for programs that a test builds or copies:
// memoryDir may forbid to run them.
func programDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(diskDir, "userd-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // other users run them too
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// cheap is a cost that lets a test hash often.
var cheap = passhash.Cost{Memory: 8, Passes: 1, Threads: 1}

// goodPassword is a password that every rule lets through.
const goodPassword = "correct horse battery"

// A clock is the server's time, moved by hand: the wall clock and the monotonic
// one, which go together unless the wall clock is set.
type clock struct {
	mu      sync.Mutex
	t       time.Time
	elapsed time.Duration // since the test began
}

func (c *clock) wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) mono() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.elapsed
}

// add lets time pass.
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
	c.elapsed += d
}

// set steps the wall clock, as an operator or NTP does.
func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

// A service is a whole userd on a file of its own, asked over real HTTP.
type service struct {
	*server
	t     testing.TB
	url   string
	clock *clock
	path  string
	http  *httptest.Server
	acts  int // that testAct has done
}

// newService starts a service. The options change its settings first.
func newService(t testing.TB, options ...func(*settings)) *service {
	t.Helper()
	return newServiceOn(t, newDatabase(t), options...)
}

// newDatabase writes a copy of emptyDatabase and returns its path. A copy is cheap: openStore needs
// more time for a new database than most tests need.
func newDatabase(t testing.TB) (path string) {
	t.Helper()
	data, err := emptyDatabase()
	path = filepath.Join(t.TempDir(), "app.db")
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// emptyDatabase returns the file that openStore makes.
var emptyDatabase = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "userd-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "app.db")
	st, err := openStore(context.Background(), path)
	if err == nil {
		err = st.close()
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// newServiceOn is newService on a database that may be there.
func newServiceOn(t testing.TB, path string, options ...func(*settings)) *service {
	t.Helper()
	st := openTestStore(t, path)
	clock := &clock{t: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
	c := settings{
		accessTTL:    15 * time.Minute,
		refreshTTL:   720 * time.Hour,
		sessionLife:  4320 * time.Hour,
		registration: registrationOpen,
		pages:        testPages,
		directory:    directoryNames,
		rateLimit:    switchOn,
		mailsPerHour: 300,
		notices:      switchOn,
		passwords:    validate.Policy{Minimum: validate.MinPassword},
	}
	for _, option := range options {
		option(&c)
	}
	keys, err := loadKeys(t.Context(), st, &config{settings: c}, clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(c, st, passhash.New(cheap), keys, testLog(t), clock.wall, clock.mono)
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	web.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &service{server: s, t: t, url: web.URL, clock: clock, path: path, http: web}
}

// testPages are the pages of a server whose APP_URL is https://id.example.com.
var testPages = func() pageURLs {
	c := config{appURL: "https://id.example.com"}
	c.setPages(false, "")
	return c.pages
}()

// unlimited lets a test fail to log in as often as it likes.
func unlimited(c *settings) { c.rateLimit = switchOff }

func openTestStore(t testing.TB, path string) *store {
	t.Helper()
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

// testLog fails the test that causes a record of level error.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{t}, nil))
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("level=ERROR")) {
		w.t.Errorf("logged: %s", p)
	}
	return len(p), nil
}

// A reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request. A token that is not empty goes along; the headers are
// "Name: value"; a body that is not empty is sent as JSON.
func (s *service) do(token, method, path, body string, headers ...string) reply {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	return s.ask(r)
}

// insist repeats a request while the server answers that it is busy, but only for as long as
// patience: on a busy machine, one of many concurrent requests can wait too long for its hash.
func insist(ask func() reply) reply {
	for start := time.Now(); ; {
		if r := ask(); r.field("code") != "busy" || time.Since(start) > patience {
			return r
		}
	}
}

// ask sends a request and reads its answer.
func (s *service) ask(r *http.Request) reply {
	s.t.Helper()
	resp, err := s.http.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(data)}
}

// want fails the test unless the reply has the status and, if code is not empty, the
// code.
func (r reply) want(t testing.TB, status int, code string) reply {
	t.Helper()
	if r.status != status || code != "" && r.field("code") != code {
		t.Fatalf("got %d %s, want %d %s", r.status, strings.TrimSpace(r.body), status, code)
	}
	return r
}

// field returns a member of the reply's object as text, "" where it is absent.
func (r reply) field(name string) string {
	var object map[string]any
	if json.Unmarshal([]byte(r.body), &object) != nil || object[name] == nil {
		return ""
	}
	return fmt.Sprint(object[name])
}

// list returns one member of each object in the reply's array.
func (r reply) list(t testing.TB, name string) []string {
	t.Helper()
	var objects []map[string]any
	if err := json.Unmarshal([]byte(r.body), &objects); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	values := []string{}
	for _, o := range objects {
		values = append(values, fmt.Sprint(o[name]))
	}
	return values
}

// register adds a member, name@example.com with goodPassword, and returns its
// path and id.
func (s *service) register(name string) (path, id string) {
	s.t.Helper()
	r := s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":%q,"email":%q,"password":%q}`, name, name+"@example.com", goodPassword))
	r.want(s.t, 201, "")
	return r.header.Get("Location"), r.field("id")
}

// login returns an access token of the user.
func (s *service) login(name string) string {
	s.t.Helper()
	r := s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword))
	return r.want(s.t, 200, "").field("access_token")
}

// member registers a user, logs it in, and returns its path and token.
func (s *service) member(name string) (path, token string) {
	s.t.Helper()
	path, _ = s.register(name)
	return path, s.login(name)
}

// admin adds an admin as the command line does and returns its path and token.
func (s *service) admin(name string) (path, token string) {
	s.t.Helper()
	u := user{username: name, email: name + "@example.com", role: admin}
	if err := s.addUser(context.Background(), console, &u, goodPassword); err != nil {
		s.t.Fatal(err)
	}
	return userPath(u.id), s.login(name)
}

// occupyHasher takes every turn to hash, until release gives them back.
func (s *service) occupyHasher() (release func()) {
	s.t.Helper()
	var turns []func()
	for range runtime.GOMAXPROCS(0) {
		done, err := s.hasher.Turn(context.Background(), "a test")
		if err != nil {
			s.t.Fatal(err)
		}
		turns = append(turns, done)
	}
	return func() {
		for _, done := range turns {
			done()
		}
	}
}

// crowdHasher fills the queue of an occupied hasher with callers of one network,
// until disperse sends them away. They leave by themselves after passhash.MaxWait.
func (s *service) crowdHasher(from string) (disperse func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var crowd sync.WaitGroup
	full := passhash.MaxWaitingPerCore * runtime.GOMAXPROCS(0)
	for range full - s.hasher.Stats().Waiting {
		crowd.Go(func() {
			if done, err := s.hasher.Turn(ctx, from); err == nil {
				done()
			}
		})
	}
	await(s.t, "the hasher's queue is full", func() bool { return s.hasher.Stats().Waiting == full })
	return func() {
		cancel()
		crowd.Wait()
	}
}

// signer returns the key that signs the service's tokens.
func (s *service) signer() *signingKey {
	s.t.Helper()
	row, err := s.store.newestKey()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.keys.signer(row)
}

// patience is how long a test waits for what must come. Only a test that fails
// takes so long.
const patience = 2 * time.Minute

// await returns when the condition holds. Use it only for conditions without a better way
// to wait: the length of a channel, the size of a file.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for start := time.Now(); !condition(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// receive returns what comes from a channel.
func receive[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// wantError fails the test unless err is want. No error is nil.
func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		t.Errorf("%s: got the error %v, want %v", what, err, want)
	}
}

// refreshKey returns the key of the refresh tokens of the service's database.
func (s *service) refreshKey() refresh.Key {
	s.t.Helper()
	key, err := refreshKey(context.Background(), s.store)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// parseRefresh returns what a refresh token of the service says.
func (s *service) parseRefresh(token string) refresh.Token {
	s.t.Helper()
	t, ok := s.refreshKey().Parse(token)
	if !ok {
		s.t.Fatalf("%s is not a refresh token", token)
	}
	return t
}
