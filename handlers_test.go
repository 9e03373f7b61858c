package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"userd/internal/checkup"
	"userd/internal/groupcommit/groupcommittest"
)

const (
	okBody       = `{"status":"ok"}` + "\n"
	notReadyBody = `{"error":"The service is not ready","code":"unavailable"}` + "\n"
)

func TestReadyzReportsWhetherTheDatabaseCanBeReadAndWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		fault func(t *testing.T, s *service) (end func())
		cause string
	}{
		{"another program holds the lock", func(t *testing.T, s *service) func() {
			runSQL(t, s.store.conn.Conn, `PRAGMA busy_timeout = 0`)
			other := another(t, s.path)
			runSQL(t, other, `BEGIN IMMEDIATE`)
			return func() { runSQL(t, other, `ROLLBACK`) }
		}, "locked"},
		{"a commit fails", func(t *testing.T, s *service) func() {
			var refuse atomic.Bool
			refuse.Store(true)
			groupcommittest.OnCommit(t, s.store.conn.Conn, refuse.Load)
			return func() { refuse.Store(false) }
		}, "constraint failed"},
		{"nothing can be read", func(t *testing.T, s *service) func() {
			runSQL(t, s.store.conn.Conn, `ALTER TABLE counter RENAME COLUMN user_id TO gone`)
			return func() { runSQL(t, s.store.conn.Conn, `ALTER TABLE counter RENAME COLUMN gone TO user_id`) }
		}, "user_id"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := newService(t)
			book := s.keepLog()
			s.do("", "GET", "/readyz", "").want(t, 200, "")

			end := c.fault(t, s)
			for range 5 {
				s.clock.add(time.Second)
				r := s.do("", "GET", "/readyz", "").want(t, 503, "unavailable")
				if r.body != notReadyBody || r.header.Get("Retry-After") != "1" {
					t.Errorf("got %v %s", r.header, r.body)
				}
			}
			s.do("", "GET", "/healthz", "").want(t, 200, "")
			end()
			for range 5 {
				s.clock.add(time.Second)
				if r := s.do("", "GET", "/readyz", "").want(t, 200, ""); r.body != okBody {
					t.Errorf("the body is %s", r.body)
				}
			}

			failed := book.records(t, slog.LevelError)
			if len(failed) != 1 || failed[0]["msg"] != "not ready" || !strings.Contains(fmt.Sprint(failed[0]["err"]), c.cause) {
				t.Errorf("the errors of the log are %v, want one that says %q", failed, c.cause)
			}
			again := 0
			for _, record := range book.records(t, slog.LevelInfo) {
				if record["msg"] == "ready again" {
					again++
				}
			}
			if again != 1 {
				t.Errorf("the log says %d times that it is ready again:\n%s", again, book)
			}
			if warned := book.records(t, slog.LevelWarn); len(warned) != 0 {
				t.Errorf("each question that was answered with 503 is warned about: %v", warned)
			}
		})
	}
}

func TestReadyzChecksTheDatabaseAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	s := newService(t)
	commits := groupcommittest.CountCommits(t, s.store.conn.Conn)
	asked := func(want int64) {
		t.Helper()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
				if w.Code != 200 {
					t.Errorf("answered %d", w.Code)
				}
			})
		}
		wg.Wait()
		if got := commits.Load(); got != want {
			t.Errorf("%d commits, want %d", got, want)
		}
	}
	asked(1)
	asked(1)
	s.clock.add(time.Second - 1)
	asked(1)
	s.clock.add(1)
	asked(2)
	s.clock.set(s.wall().Add(-time.Hour)) // must neither cause a check nor stop them for an hour
	asked(2)
	s.clock.add(time.Second)
	asked(3)
}

func TestReadyzStartsNoSecondCheckOfAStuckDatabase(t *testing.T) {
	t.Parallel()
	s := newService(t)
	book := s.keepLog()
	s.health.database = checkup.New(time.Second, 20*time.Millisecond, s.mono, s.store.probe)
	release := groupcommittest.Busy(t, s.store.writer)
	for range 10 {
		s.do("", "GET", "/readyz", "").want(t, 503, "unavailable")
		s.clock.add(time.Second)
	}
	if n := s.store.writer.Waiting(); n != 1 {
		t.Errorf("%d writes wait behind the one that is stuck, want 1", n)
	}
	if failed := book.records(t, slog.LevelError); len(failed) != 1 || failed[0]["err"] != checkup.ErrTimeout.Error() {
		t.Errorf("the errors of the log are %v", failed)
	}
	s.health.database = checkup.New(time.Second, patience, s.mono, s.store.probe)
	release()
	await(t, "it is ready again", func() bool {
		s.clock.add(time.Second)
		return s.do("", "GET", "/readyz", "").status == 200
	})
}

// SQLite omits a write that changes nothing.
func TestAProbeReallyWrites(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	aUser(t, st, "ann", member)
	size := func() int64 {
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	if err := st.probe(context.Background()); err != nil {
		t.Fatal(err)
	}
	if after := size(); after <= before {
		t.Errorf("the write-ahead log had %d bytes and has %d", before, after)
	}
	bob := aUser(t, st, "bob", member)
	if bob.id != 2 {
		t.Errorf("the next user has the id %d: the probe has changed something", bob.id)
	}
}

// The tutorial's seven requests have the answers that it prints, for a reader who needs a
// minute or almost a quarter of an hour from the login to the last one.
func TestTutorial(t *testing.T) {
	t.Parallel()
	for _, pause := range []time.Duration{time.Minute, 14 * time.Minute} {
		t.Run(pause.String(), func(t *testing.T) { followTutorial(t, pause) })
	}
}

func followTutorial(t *testing.T, pause time.Duration) {
	s := newService(t)
	expect := func(r reply, status int, body string) {
		t.Helper()
		if got := strings.TrimSpace(r.body); r.status != status || got != body {
			t.Errorf("got %d %s, want %d %s", r.status, got, status, body)
		}
	}
	expect(s.do("", "GET", "/api/test", ""), 200, `{"message":"Welcome to the User Management Microservice!"}`)
	expect(s.do("", "POST", "/api/register", `{"username": "testuser", "email": "test@example.com", "password": "testpass"}`),
		201, `{"id":1,"username":"testuser","email":"test@example.com"}`)
	login := s.do("", "POST", "/api/login", `{"username": "testuser", "password": "testpass"}`).want(t, 200, "")
	token := login.field("access_token")
	if login.field("token_type") != "Bearer" || login.field("expires_in") != "900" {
		t.Errorf("login answered %s", login.body)
	}
	user := func(name, updated string) string {
		return `{"id":1,"username":"` + name + `","email":"test@example.com","role":"member","disabled":false,` +
			`"created_at":"2026-05-04T03:02:01Z","updated_at":"` + updated + `","last_login_at":"2026-05-04T03:02:01Z","email_verified_at":null}`
	}
	expect(s.do(token, "GET", "/api/users", ""), 200, "["+user("testuser", "2026-05-04T03:02:01Z")+"]")
	expect(s.do(token, "GET", "/api/users/1", ""), 200, user("testuser", "2026-05-04T03:02:01Z"))
	s.clock.add(pause)
	expect(s.do(token, "PUT", "/api/users/1", `{"username": "updateduser"}`), 200, user("updateduser", s.clock.wall().Format(time.RFC3339)))
	expect(s.do(token, "DELETE", "/api/users/1", ""), 200, `{"message":"User deleted successfully"}`)
	s.do("", "POST", "/api/login", `{"username":"updateduser","password":"testpass"}`).want(t, 401, "invalid_credentials")
}

// The tutorial's error texts, to the letter.
func TestTutorialErrors(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	for _, test := range []struct {
		path, body string
		status     int
		text, code string
	}{
		{"/api/register", `{"username":"bob","email":"bob@example.com"}`, 400, "Username, email, and password are required", "missing_fields"},
		{"/api/register", `{}`, 400, "Username, email, and password are required", "missing_fields"},
		{"/api/register", `{"username":"","email":"","password":""}`, 400, "Username, email, and password are required", "missing_fields"},
		{"/api/register", `{"username":"ann","email":"new@example.com","password":"correct horse"}`, 400, "Username already exists", "username_taken"},
		{"/api/register", `{"username":"ANN","email":"new@example.com","password":"correct horse"}`, 400, "Username already exists", "username_taken"},
		{"/api/register", `{"username":"new","email":"ANN@example.com","password":"correct horse"}`, 400, "Email already exists", "email_taken"},
		{"/api/login", `{"username":"ann"}`, 400, "Username and password are required", "missing_fields"},
		{"/api/login", `{"password":"x"}`, 400, "Username and password are required", "missing_fields"},
		{"/api/login", `{"username":"ann","password":"wrong"}`, 401, "Invalid credentials", "invalid_credentials"},
		{"/api/login", `{"username":"nobody","password":"wrong"}`, 401, "Invalid credentials", "invalid_credentials"},
	} {
		r := s.do("", "POST", test.path, test.body)
		if r.status != test.status || r.field("error") != test.text || r.field("code") != test.code {
			t.Errorf("%s %s: got %d %s", test.path, test.body, r.status, r.body)
		}
	}
	if h := s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).header.Get("WWW-Authenticate"); h != "Bearer" {
		t.Errorf("a wrong password is challenged with %q", h)
	}
}
