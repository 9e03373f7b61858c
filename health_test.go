package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"modernc.org/sqlite"
)

const (
	okBody       = `{"status":"ok"}` + "\n"
	notReadyBody = `{"error":"The service is not ready","code":"unavailable"}` + "\n"
)

func TestReadyzTellsWhetherTheDatabaseCanBeReadAndWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		fault func(t *testing.T, s *service) (end func())
		cause string
	}{
		{"another program holds the lock", func(t *testing.T, s *service) func() {
			runSQL(t, s.store.conn, `PRAGMA busy_timeout = 0`)
			other := another(t, s.path)
			runSQL(t, other, `BEGIN IMMEDIATE`)
			return func() { runSQL(t, other, `ROLLBACK`) }
		}, "locked"},
		{"a commit fails", func(t *testing.T, s *service) func() {
			var refuse atomic.Bool
			refuse.Store(true)
			err := s.store.conn.Raw(func(c any) error {
				c.(sqlite.HookRegisterer).RegisterCommitHook(func() int32 {
					if refuse.Load() {
						return 1
					}
					return 0
				})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return func() { refuse.Store(false) }
		}, "constraint failed"},
		{"nothing can be read", func(t *testing.T, s *service) func() {
			runSQL(t, s.store.conn, `ALTER TABLE counter RENAME COLUMN user_id TO gone`)
			return func() { runSQL(t, s.store.conn, `ALTER TABLE counter RENAME COLUMN gone TO user_id`) }
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

func TestTheDatabaseIsAskedAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	s := newService(t)
	commits := countCommits(t, s.store)
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
	s.clock.set(s.wall().Add(-time.Hour)) // a clock that was set back must not stop the questions for an hour
	asked(3)
}

func TestAStuckDatabaseIsNotReadyAndAskedNoMore(t *testing.T) {
	t.Parallel()
	s := newService(t)
	book := s.keepLog()
	s.health.database.timeout = 20 * time.Millisecond
	release := holdWriter(t, s.store)
	for range 10 {
		s.do("", "GET", "/readyz", "").want(t, 503, "unavailable")
		s.clock.add(time.Second)
	}
	if n := len(s.store.queue); n != 1 {
		t.Errorf("%d writes wait behind the one that is stuck, want 1", n)
	}
	if failed := book.records(t, slog.LevelError); len(failed) != 1 || failed[0]["err"] != errCheckTimeout.Error() {
		t.Errorf("the errors of the log are %v", failed)
	}
	s.health.database.timeout = patience
	release()
	await(t, "it is ready again", func() bool {
		s.clock.add(time.Second)
		return s.do("", "GET", "/readyz", "").status == 200
	})
}

func TestACheckRunsOncePerIntervalAndNeverConcurrently(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running, runs atomic.Int64
		failure := errors.New("failed")
		c := newCheckup(time.Minute, 10*time.Second, time.Now, func(context.Context) error {
			if running.Add(1) != 1 {
				t.Error("two checks run concurrently")
			}
			defer running.Add(-1)
			time.Sleep(3 * time.Second)
			if runs.Add(1) == 2 {
				return failure
			}
			return nil
		})
		ask := func(wantErr error, wantRuns int64, wantWait time.Duration) {
			t.Helper()
			start := time.Now()
			var callers sync.WaitGroup
			for range 20 {
				callers.Go(func() {
					if err := c.result(); err != wantErr {
						t.Errorf("got %v, want %v", err, wantErr)
					}
				})
			}
			callers.Wait()
			if got := runs.Load(); got != wantRuns {
				t.Errorf("the check ran %d times, want %d", got, wantRuns)
			}
			if got := time.Since(start); got != wantWait {
				t.Errorf("the callers waited %v, want %v", got, wantWait)
			}
		}
		ask(nil, 1, 3*time.Second)
		ask(nil, 1, 0)
		time.Sleep(57*time.Second - 1) // a minute after the check began, less one nanosecond
		ask(nil, 1, 0)
		time.Sleep(time.Nanosecond)
		ask(failure, 2, 3*time.Second)
		ask(failure, 2, 0)
		time.Sleep(time.Minute)
		ask(nil, 3, 3*time.Second)
	})
}

func TestACheckThatHangsDelaysCallersOnlyByTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		release := make(chan struct{})
		c := newCheckup(time.Second, 2*time.Second, time.Now, func(ctx context.Context) error {
			if runs.Add(1) > 1 {
				return nil
			}
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) != 2*time.Second {
				t.Errorf("the deadline of the check is %v", deadline)
			}
			<-release
			return ctx.Err()
		})
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				start := time.Now()
				if err := c.result(); err != errCheckTimeout {
					t.Errorf("got %v, want %v", err, errCheckTimeout)
				}
				if got := time.Since(start); got != 2*time.Second {
					t.Errorf("the caller waited %v", got)
				}
			})
			time.Sleep(100 * time.Millisecond)
		}
		callers.Wait()
		if got := runs.Load(); got != 1 {
			t.Errorf("the check ran %d times while the first one hung", got)
		}
		close(release)
		synctest.Wait()
		if err := c.result(); err != nil || runs.Load() != 2 {
			t.Errorf("after it ended: %v after %d runs", err, runs.Load())
		}
	})
}

// SQLite leaves out a write of what stands there already.
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

func TestWhileItDrainsItIsNotReady(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), []string{"METRICS_ADDR=127.0.0.1:0"})
	watched, _ := p.awaitLog("serving metrics")["url"].(string)
	get := func(path string) int {
		t.Helper()
		resp, err := p.client.Get(watched + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := get("/readyz"); got != 200 {
		t.Errorf("before, it is answered %d", got)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// A request that runs: it has asked for its body.
	fmt.Fprint(conn, "POST /api/login HTTP/1.1\r\nHost: userd\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
		t.Fatalf("got %q, %v, want 100 Continue", line, err)
	}
	in.ReadString('\n')
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.awaitLog("stopping")
	for path, want := range map[string]int{"/readyz": 503, "/healthz": 200, "/metrics": 200} {
		if got := get(path); got != want {
			t.Errorf("while it drains, %s is answered %d, want %d", path, got, want)
		}
	}
	if _, err := io.WriteString(conn, "{}"); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 400 {
		t.Errorf("the request that ran: %v", err)
	}
	receive(t, "userd exits", p.exited)
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(watched, "http://")); err == nil {
		t.Error("the second address is still open")
	}
}

func TestHealthcheckAsksTheRunningServer(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), []string{"ADDR=0.0.0.0:0"})
	_, port, err := net.SplitHostPort(strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(environ []string, args ...string) result {
		return userdProcess(t, dir, "", environ, append([]string{"healthcheck"}, args...)...)
	}
	for _, c := range []struct {
		claim, args string
		environ     []string
	}{
		{"by its address", "", []string{"ADDR=127.0.0.1:" + port}},
		{"by the address of all interfaces", "", []string{"ADDR=0.0.0.0:" + port}},
		{"by an address without a host", "", []string{"ADDR=:" + port}},
		{"by PORT", "", []string{"ADDR=", "PORT=" + port}},
		{"by the flag", "-addr 127.0.0.1:" + port, nil},
		{"with a database that it must not need", "", []string{"ADDR=127.0.0.1:" + port, "DATABASE_URL=" + filepath.Join(dir, "none", "app.db")}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			want := result{0, "http://127.0.0.1:" + port + "/readyz: ready\n", ""}
			if got := run(c.environ, strings.Fields(c.args)...); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if status := p.end(os.Interrupt); status != 0 {
		t.Fatal(status)
	}
	run([]string{"ADDR=127.0.0.1:" + port}).wantFailure(t, 1, "http://127.0.0.1:"+port+"/readyz", "refused")
	run(nil, "-database", "app.db").wantFailure(t, 2, "-database")
	run(nil, "now").wantFailure(t, 2, "usage: userd healthcheck")
	run([]string{"ADDR=5000"}).wantFailure(t, 2, "ADDR")
	wantFiles(t, dir)
}

func TestHealthcheckFailsWhereTheServerIsNotReady(t *testing.T) {
	for _, c := range []struct {
		claim string
		serve http.HandlerFunc
		want  string
	}{
		{"it says so", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "503"},
		{"it sends elsewhere", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/readyz" {
				http.Redirect(w, r, "/ok", http.StatusFound)
			}
		}, "302"},
		{"it does not answer", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "Timeout"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			web := httptest.NewServer(c.serve)
			defer web.Close()
			userdProcess(t, t.TempDir(), "", nil, "healthcheck", "-addr", web.Listener.Addr().String()).wantFailure(t, 1, c.want)
		})
	}
}

func TestAServerOnEveryAddressIsAskedOnLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"127.0.0.1:5000":         "http://127.0.0.1:5000/readyz",
		"192.0.2.7:80":           "http://192.0.2.7:80/readyz",
		"userd.example.com:5000": "http://userd.example.com:5000/readyz",
		"[2001:db8::1]:5000":     "http://[2001:db8::1]:5000/readyz",
		":5000":                  "http://127.0.0.1:5000/readyz",
		"0.0.0.0:5000":           "http://127.0.0.1:5000/readyz",
		"[::ffff:0.0.0.0]:5000":  "http://127.0.0.1:5000/readyz",
		"[::]:5000":              "http://[::1]:5000/readyz",
	} {
		got, client := readyURL(&config{addr: addr})
		if got != want {
			t.Errorf("%s is asked at %s, want %s", addr, got, want)
		}
		if transport, ok := client.Transport.(*http.Transport); !ok || transport.Proxy != nil {
			t.Errorf("%s is asked through a proxy that the environment names", addr)
		}
	}
	got, client := readyURL(&config{addr: ":443", domains: []string{"userd.example", "b.example"}})
	if name := client.Transport.(*http.Transport).TLSClientConfig.ServerName; got != "https://127.0.0.1:443/readyz" || name != "userd.example" {
		t.Errorf("with certificates by name it is asked at %s for %s", got, name)
	}
}
