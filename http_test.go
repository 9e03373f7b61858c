package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"

	"userd/internal/reqbody"
)

// post sends a body of any kind with exactly these headers. A body of a type
// that net/http does not know is sent in chunks.
func (s *service) post(path string, body io.Reader, headers ...string) reply {
	s.t.Helper()
	r, err := http.NewRequest("POST", s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return s.ask(r)
}

// firstStatus sends the head of a request, and none of its body, and returns
// the status of whatever comes back first: 100 invites the body.
func (s *service) firstStatus(head ...string) int {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, strings.Join(append(head, "Host: userd", "", ""), "\r\n")); err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// handle adds a route that anyone may call and whose handler is the test's.
func (s *service) handle(pattern string, f func(*exchange) error) {
	s.server.handle(route{pattern: pattern, access: anyone, handle: f})
}

// A logBook is everything that a server logs, down to the level debug.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *service) keepLog() *logBook {
	b := new(logBook)
	s.log = slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return b
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// records returns the records of a level.
func (b *logBook) records(t *testing.T, level slog.Level) []map[string]any {
	t.Helper()
	var list []map[string]any
	for line := range strings.Lines(b.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if record["level"] == level.String() {
			list = append(list, record)
		}
	}
	return list
}

func TestAuthenticationComesBeforeTheBody(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.member("ann")
	_, bob := s.member("bob")
	for _, rt := range s.routes() {
		if rt.access == anyone {
			continue
		}
		method, path, _ := strings.Cut(strings.ReplaceAll(rt.pattern, "{id}", "1"), " ")
		check := func(name, token string, status int, code string) {
			t.Run(rt.pattern+" by "+name, func(t *testing.T) {
				r := httptest.NewRequest(method, path, unreadBody{t})
				r.Header.Set("Content-Type", "application/json")
				if token != "" {
					r.Header.Set("Authorization", "Bearer "+token)
				}
				w := httptest.NewRecorder()
				s.ServeHTTP(w, r)
				reply{w.Code, w.Header(), w.Body.String()}.want(t, status, code)
			})
		}
		check("a stranger", "", 401, "missing_token")
		check("a forger", bob+"A", 401, "invalid_token")
		if rt.access == adminOnly || rt.access == selfOrAdmin {
			check("another", bob, 403, "forbidden")
		}
	}
}

func TestPathsAndMethods(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	const (
		notFound = `{"error":"Path not found","code":"not_found"}` + "\n"
		noMethod = `{"error":"This path does not allow the method; see the Allow header","code":"method_not_allowed"}` + "\n"
	)
	for _, row := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/api", 404, ""},
		{"GET", "/api/", 404, ""},
		{"GET", "/api/nothing", 404, ""},
		{"POST", "/api/nothing", 404, ""},
		{"GET", "//api/test", 404, ""},
		{"GET", "/api//test", 404, ""},
		{"GET", "/api/test/", 404, ""},
		{"GET", "/api/./test", 404, ""},
		{"GET", "/api/x/../test", 404, ""},
		{"GET", "/api/users/", 404, ""},
		{"DELETE", "/api/users/", 404, ""},
		{"GET", "/api/users/1/", 404, ""},
		{"GET", "/api/users//1", 404, ""},
		{"GET", "/API/test", 404, ""},
		{"GET", "//evil.example/api/../..", 404, ""},
		{"POST", "/api/test", 405, "GET, HEAD"},
		{"DELETE", "/api/test", 405, "GET, HEAD"},
		{"OPTIONS", "/api/test", 405, "GET, HEAD"},
		{"NONSENSE", "/api/test", 405, "GET, HEAD"},
		{"get", "/api/test", 405, "GET, HEAD"},
		{"GET", "/api/login", 405, "POST"},
		{"HEAD", "/api/login", 405, "POST"},
		{"GET", "/api/register", 405, "POST"},
		{"GET", "/api/logout", 405, "POST"},
		{"DELETE", "/api/users", 405, "GET, HEAD, POST"},
		{"POST", "/api/users/1", 405, "DELETE, GET, HEAD, PATCH, PUT"},
	} {
		t.Run(row.method+" "+row.path, func(t *testing.T) {
			r := s.do(token, row.method, row.path, "")
			want := noMethod
			if row.status == 404 {
				want = notFound
			}
			if row.method == "HEAD" {
				want = ""
			}
			if r.status != row.status || r.body != want {
				t.Errorf("got %d %q, want %d %q", r.status, r.body, row.status, want)
			}
			if got := r.header.Get("Allow"); got != row.allow {
				t.Errorf("Allow: %q, want %q", got, row.allow)
			}
			if r.header.Get("Location") != "" {
				t.Errorf("Location: %q", r.header["Location"])
			}
			if got := r.header.Get("Content-Type"); got != "application/json; charset=utf-8" {
				t.Errorf("Content-Type: %q", got)
			}
		})
	}
}

func TestHEAD(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	for _, row := range []struct {
		token, path string
		status      int
	}{
		{"", "/api/test", 200},
		{token, "/api/users", 200},
		{token, "/api/users?limit=1", 200},
		{token, path, 200},
		{token, "/api/users/99", 404},
		{"", path, 401},
		{"", "/api/nothing", 404},
	} {
		t.Run(row.path, func(t *testing.T) {
			get, head := s.do(row.token, "GET", row.path, ""), s.do(row.token, "HEAD", row.path, "")
			if head.status != row.status || head.body != "" {
				t.Errorf("got %d %q, want %d and no body", head.status, head.body, row.status)
			}
			for _, h := range []http.Header{get.header, head.header} {
				h.Del("X-Request-Id")
				h.Del("Date")
			}
			if !reflect.DeepEqual(head.header, get.header) {
				t.Errorf("HEAD answers with %v, GET with %v", head.header, get.header)
			}
		})
	}
}

// net/http discards the body of an answer to HEAD, but the handler would read the whole list.
func TestHEADReadsOnePartOfALongList(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.admin("root")
	for i := range 2 * listPage {
		aUser(t, s.store, fmt.Sprint("user", i), member)
	}
	for method, want := range map[string]int{"GET": 2*listPage + 1, "HEAD": listPage} {
		w := &slowWriter{httptest.NewRecorder(), func() {}}
		r := httptest.NewRequest(method, "/api/users", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		s.ServeHTTP(w, r)
		if n := strings.Count(w.Body.String(), `"id":`); w.Code != 200 || n != want {
			t.Errorf("%s: %d, with %d users, want %d", method, w.Code, n, want)
		}
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.keepLog()
	s.handle("GET /panic", func(*exchange) error { panic("oh no") })
	path, token := s.member("ann")
	login := func(body string, headers ...string) reply {
		return s.post("/api/login", strings.NewReader(body), headers...)
	}
	const isJSON = "Content-Type: application/json"
	seen := make(map[string]bool)
	for _, row := range []struct {
		status int
		reply  reply
	}{
		{200, s.do("", "GET", "/api/test", "")},
		{200, s.do("", "HEAD", "/api/test", "")},
		{200, login(`{"username":"ann","password":"`+goodPassword+`"}`, isJSON)},
		{200, s.do(token, "GET", "/api/users", "")},
		{200, s.do(token, "GET", path, "")},
		{200, s.do(token, "PUT", path, `{"username":"ann2"}`)},
		{201, s.do("", "POST", "/api/register", `{"username":"bob","email":"bob@example.com","password":"`+goodPassword+`"}`)},
		{304, s.do(token, "GET", path, "", "If-None-Match: *")},
		{400, login(`{`, isJSON)},
		{401, login(sized(60), isJSON)},
		{401, s.do("", "GET", path, "")},
		{403, s.do(token, "POST", "/api/users", "")},
		{404, s.do("", "GET", "/nothing", "")},
		{404, s.do("", "GET", "//api/test", "")},
		{404, s.do(token, "GET", "/api/users/99", "")},
		{405, s.do("", "POST", "/api/test", "")},
		{412, s.do(token, "PUT", path, `{"username":"ann3"}`, `If-Match: "1"`)},
		{413, login(sized(64<<10+1), isJSON)},
		{415, login(sized(60))},
		{500, s.do("", "GET", "/panic", "")},
		{204, s.do(token, "POST", "/api/logout", "")},
	} {
		t.Run(fmt.Sprint(row.status), func(t *testing.T) {
			row.reply.want(t, row.status, "")
			h := row.reply.header
			if got := h.Get("Content-Type"); got != "application/json; charset=utf-8" && row.reply.body != "" {
				t.Errorf("Content-Type: %q", got)
			}
			if got := h.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options: %q", got)
			}
			if got := h.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control: %q", got)
			}
			id := h.Get("X-Request-Id")
			if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(id) || seen[id] {
				t.Errorf("X-Request-Id: %q", id)
			}
			seen[id] = true
			if h.Get("Server") != "" || h.Get("X-Powered-By") != "" {
				t.Errorf("it says what it is made of: %v", h)
			}
			for name := range h {
				if len(h[name]) != 1 {
					t.Errorf("%s: %q", name, h[name])
				}
			}
		})
	}
}

func TestProblemJSON(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.keepLog()
	s.handle("GET /panic", func(*exchange) error { panic("oh no") })
	const asked = "Accept: application/problem+json"
	for _, row := range []struct {
		name  string
		reply reply
		want  string
	}{
		{"no such path", s.do("", "GET", "/nothing", "", asked),
			`{"error":"Path not found","code":"not_found","title":"Not Found","status":404,"detail":"Path not found"}`},
		{"no such method", s.do("", "POST", "/api/test", "", asked),
			`{"error":"This path does not allow the method; see the Allow header","code":"method_not_allowed","title":"Method Not Allowed","status":405,"detail":"This path does not allow the method; see the Allow header"}`},
		{"a wrong field", s.do("", "POST", "/api/register", `{"username":1}`, asked),
			`{"error":"The member \"username\" must be a string","code":"wrong_type","fields":{"username":"must be a string"},"title":"Bad Request","status":400,"detail":"The member \"username\" must be a string"}`},
		{"no token", s.do("", "GET", "/api/users", "", asked),
			`{"error":"Log in, and send the access token as Authorization: Bearer","code":"missing_token","title":"Unauthorized","status":401,"detail":"Log in, and send the access token as Authorization: Bearer"}`},
		{"a panic", s.do("", "GET", "/panic", "", asked),
			`{"error":"Internal server error","code":"internal","title":"Internal Server Error","status":500,"detail":"Internal server error"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := row.reply.header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("Content-Type: %q", got)
			}
			if row.reply.body != row.want+"\n" {
				t.Errorf("got  %swant %s", row.reply.body, row.want)
			}
		})
	}
	for _, row := range []struct {
		name    string
		accept  string
		problem bool
	}{
		{"problem+json", "application/problem+json", true},
		{"in another case, with a parameter", "Application/Problem+JSON; charset=utf-8", true},
		{"first of several", "application/problem+json, */*;q=0.1", true},
		{"last of several", "application/json,application/problem+json;q=0.9", true},
		{"after what cannot be parsed", ";;;, application/problem+json", true},
		{"anything", "*/*", false},
		{"any application", "application/*", false},
		{"JSON", "application/json", false},
		{"what a browser sends", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false},
		{"a longer name", "application/problem+json2", false},
		{"problem+xml", "application/problem+xml", false},
		{"nothing", "", false},
		{"anything but problem+json", "*/*, application/problem+json;q=0", false},
	} {
		t.Run("Accept: "+row.name, func(t *testing.T) {
			r := s.do("", "GET", "/nothing", "", "Accept: "+row.accept).want(t, 404, "not_found")
			want, title := "application/json; charset=utf-8", ""
			if row.problem {
				want, title = "application/problem+json", "Not Found"
			}
			if got := r.header.Get("Content-Type"); got != want || r.field("title") != title {
				t.Errorf("Content-Type: %s: %s", got, r.body)
			}
		})
	}
	t.Run("a success stays JSON", func(t *testing.T) {
		if got := s.do("", "GET", "/api/test", "", asked).header.Get("Content-Type"); got != "application/json; charset=utf-8" {
			t.Errorf("Content-Type: %s", got)
		}
	})
}

// wantLogged fails the test unless the log has exactly one record of level
// error, with these texts in its err.
func wantLogged(t *testing.T, book *logBook, texts ...string) (record map[string]any) {
	t.Helper()
	records := book.records(t, slog.LevelError)
	if len(records) != 1 {
		t.Fatalf("%d records of level error: %s", len(records), book)
	}
	for _, text := range texts {
		if why, _ := records[0]["err"].(string); !strings.Contains(why, text) {
			t.Errorf("%q is not in the log: %v", text, records[0])
		}
	}
	return records[0]
}

func TestUnknownFailure(t *testing.T) {
	t.Parallel()
	const secret = "the disk of db-7 is full"
	for _, row := range []struct {
		name string
		fail func(x *exchange) error
		logs []string
	}{
		{"an unknown error", func(x *exchange) error { return errors.New(secret) }, []string{secret}},
		{"a panic with a text", func(x *exchange) error { panic(secret) }, []string{secret, "http_test.go"}},
		{"a panic with an error that has an answer", func(x *exchange) error { panic(fmt.Errorf("%w: %s", errForbidden, secret)) }, []string{secret, "http_test.go"}},
		{"a panic of the runtime", func(x *exchange) error { return (*detailedError)(nil).Unwrap() }, []string{"nil pointer", "http_test.go"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t)
			book := s.keepLog()
			s.handle("GET /fail", row.fail)
			r := s.do("", "GET", "/fail", "").want(t, 500, "internal")
			if want := `{"error":"Internal server error","code":"internal"}` + "\n"; r.body != want {
				t.Errorf("got %s, want %s", r.body, want)
			}
			if text := fmt.Sprint(r.header, r.body); strings.Contains(text, "db-7") || strings.Contains(text, "nil pointer") {
				t.Errorf("the client was told %s", text)
			}
			record := wantLogged(t, book, row.logs...)
			if id := r.header.Get("X-Request-Id"); record["id"] != id || record["route"] != "GET /fail" || record["status"] != 500.0 {
				t.Errorf("the answer has the id %s, the log says %v", id, record)
			}
			s.do("", "GET", "/api/test", "").want(t, 200, "")
		})
	}
}

func TestFailureWhenTheClientHasGone(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		fail   func(x *exchange) error
		logged int // records of level error
	}{
		{"a panic is logged", func(*exchange) error { panic("oh no") }, 1},
		{"work given up for it is not an error", func(x *exchange) error { return fmt.Errorf("waiting: %w", x.r.Context().Err()) }, 0},
		{"a read given up for it is not an error", func(x *exchange) error { return fmt.Errorf("%w: %w", errStorage, x.r.Context().Err()) }, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t)
			book := s.keepLog()
			s.handle("GET /fail", row.fail)
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", "/fail", nil))
			if got := len(book.records(t, slog.LevelError)); got != row.logged || !strings.Contains(book.String(), "GET /fail") {
				t.Errorf("%d records of level error, want %d: %s", got, row.logged, book)
			}
		})
	}
}

func TestHalfAnAnswerBreaksTheConnection(t *testing.T) {
	t.Parallel()
	half := func(x *exchange) {
		if err := x.send(200, []byte(`[{"id":1},`)); err != nil {
			panic(err)
		}
		if err := http.NewResponseController(x).Flush(); err != nil {
			panic(err)
		}
	}
	for _, row := range []struct {
		name string
		fail func(x *exchange) error
	}{
		{"a panic after the answer began", func(x *exchange) error { half(x); panic("oh no") }},
		{"an error after the answer began", func(x *exchange) error { half(x); return errors.New("oh no") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t)
			book := s.keepLog()
			s.handle("GET /half", row.fail)
			resp, err := s.http.Client().Get(s.url + "/half")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			data, err := io.ReadAll(resp.Body)
			if err == nil {
				t.Errorf("half an answer looks whole: %s", data)
			}
			if string(data) != `[{"id":1},` {
				t.Errorf("after the half came more: %s", data)
			}
			record := wantLogged(t, book, "oh no")
			if record["id"] != resp.Header.Get("X-Request-Id") {
				t.Errorf("the answer has the id %s, the log says %v", resp.Header.Get("X-Request-Id"), record)
			}
		})
	}
	t.Run("a handler that breaks it off itself is not logged as an error", func(t *testing.T) {
		s := newService(t)
		book := s.keepLog()
		s.handle("GET /half", func(x *exchange) error { panic(http.ErrAbortHandler) })
		if resp, err := s.http.Client().Get(s.url + "/half"); err == nil {
			t.Errorf("answered %s", resp.Status)
		}
		if errs := book.records(t, slog.LevelError); len(errs) != 0 || !strings.Contains(book.String(), "GET /half") {
			t.Errorf("logged %s", book)
		}
	})
}

func TestNoSecretReachesTheLog(t *testing.T) {
	t.Parallel()
	s := newService(t)
	book := s.keepLog()
	const password, wrong, next = "old-Secret-pass", "wrong-Secret-pass", "new-Secret-pass"
	body := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	register := body(`{"username":"ann","email":"ann@example.com","password":%q}`, password)

	r := s.do("", "POST", "/api/register", register).want(t, 201, "")
	path := r.header.Get("Location")
	s.do("", "POST", "/api/register", register).want(t, 400, "username_taken")
	token := s.do("", "POST", "/api/login", body(`{"username":"ann","password":%q}`, password)).want(t, 200, "").field("access_token")
	header, _, _ := strings.Cut(token, ".")
	s.do("", "POST", "/api/login", body(`{"username":"ann","password":%q}`, wrong)).want(t, 401, "invalid_credentials")
	s.do("", "POST", "/api/login", body(`{"username":%q,"password":"x"}`, password)).want(t, 401, "invalid_credentials")
	s.do("", "POST", "/api/login", body(`{%q:1}`, password)).want(t, 400, "unknown_member")
	s.do("", "POST", "/api/login", body(`{"password":%q`, password)).want(t, 400, "malformed_body")
	s.do("", "POST", "/api/login", body(`{"username":"ann","password":[%q]}`, password)).want(t, 400, "wrong_type")
	s.do("", "GET", "/api/"+password, "").want(t, 404, "not_found")
	s.do("", "GET", "/api/test?password="+password, "").want(t, 200, "")
	s.do(token, "GET", path, "").want(t, 200, "")
	s.do(token, "GET", "/api/users?access_token="+token, "").want(t, 400, "bad_parameter")
	s.do(token, "GET", "/api/users/"+token, "").want(t, 404, "user_not_found")
	s.do(token+"A", "GET", path, "").want(t, 401, "invalid_token")
	s.do("", "GET", path, "", "Authorization: Basic "+password).want(t, 401, "missing_token")
	s.do(token, "GET", path, "", "X-Forwarded-For: "+password, "User-Agent: "+password, "X-Request-Id: "+password).want(t, 200, "")
	s.do(token, "PUT", path, body(`{"password":%q,"current_password":%q}`, next, wrong)).want(t, 401, "wrong_password")
	s.do(token, "PUT", path, body(`{"password":%q,"current_password":%q}`, next, password)).want(t, 200, "")
	s.do(token, "DELETE", path, body(`{"current_password":%q}`, next)).want(t, 200, "")
	s.do(token, "DELETE", path, body(`{"current_password":%q}`, next)).want(t, 401, "session_ended")

	if n := strings.Count(book.String(), "\n"); n != 20 {
		t.Errorf("%d records of 20 requests", n)
	}
	for _, secret := range []string{"secret-pass", "argon2id", header, "eyJ", string(s.signer().secret)} {
		if strings.Contains(strings.ToLower(book.String()), strings.ToLower(secret)) {
			t.Errorf("the log has %q:\n%s", secret, book)
		}
	}
}

func TestTheLogNamesUserAndTarget(t *testing.T) {
	t.Parallel()
	s := newService(t)
	book := s.keepLog()
	_, token := s.member("ann")
	s.member("bob")
	last := func(t *testing.T) map[string]any {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(book.String()), "\n")
		var record map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &record); err != nil {
			t.Fatal(err)
		}
		return record
	}
	for _, row := range []struct {
		name string
		send func() reply
		want map[string]any // nil: must not be there
	}{
		{"a read without a token", func() reply { return s.do("", "GET", "/api/test", "") },
			map[string]any{"level": "DEBUG", "method": "GET", "route": "GET /api/test", "status": 200.0, "client": "127.0.0.1", "user": nil, "code": nil, "err": nil}},
		{"a HEAD", func() reply { return s.do("", "HEAD", "/api/test", "") },
			map[string]any{"level": "DEBUG", "method": "HEAD", "status": 200.0}},
		{"a list", func() reply { return s.do(token, "GET", "/api/users", "") },
			map[string]any{"level": "DEBUG", "status": 200.0, "user": 1.0, "target": nil}},
		{"a read of oneself", func() reply { return s.do(token, "GET", "/api/users/me", "") },
			map[string]any{"level": "DEBUG", "route": "GET /api/users/{id}", "status": 200.0, "user": 1.0, "target": nil}},
		{"a read of another", func() reply { return s.do(token, "GET", "/api/users/2", "") },
			map[string]any{"level": "DEBUG", "status": 200.0, "user": 1.0, "target": 2.0}},
		{"a write refused", func() reply { return s.do(token, "PUT", "/api/users/2", `{}`) },
			map[string]any{"level": "INFO", "method": "PUT", "status": 403.0, "user": 1.0, "target": 2.0, "code": "forbidden", "err": nil}},
		{"a read refused", func() reply { return s.do("", "GET", "/api/users", "") },
			map[string]any{"level": "INFO", "status": 401.0, "user": nil, "code": "missing_token"}},
		{"a write", func() reply { return s.do(token, "PUT", "/api/users/me", `{"username":"anna"}`) },
			map[string]any{"level": "INFO", "status": 200.0, "user": 1.0, "code": nil}},
		{"no such path", func() reply { return s.do("", "GET", "/nothing", "") },
			map[string]any{"level": "INFO", "route": "", "path": "/nothing", "status": 404.0, "code": "not_found"}},
		{"no such path, with a query", func() reply { return s.do("", "GET", "/api/user/7?password=x", "") },
			map[string]any{"route": "", "path": "/api/user/7", "status": 404.0}},
		{"a path that does not allow the method", func() reply { return s.do("", "GET", "/api/login", "") },
			map[string]any{"route": "", "path": "/api/login", "status": 405.0, "code": "method_not_allowed"}},
		{"a route has no path", func() reply { return s.do(token, "GET", "/api/users/99", "") },
			map[string]any{"route": "GET /api/users/{id}", "path": nil, "status": 404.0, "code": "user_not_found"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := row.send()
			got := last(t)
			if got["id"] != r.header.Get("X-Request-Id") {
				t.Errorf("logged as %v, answered as %s", got["id"], r.header.Get("X-Request-Id"))
			}
			for name, want := range row.want {
				if got[name] != want {
					t.Errorf("%s = %v, want %v", name, got[name], want)
				}
			}
		})
	}
	t.Run("too many concurrent hashes are a warning", func(t *testing.T) {
		defer s.occupyHasher()()
		defer s.crowdHasher("127.0.0.0/24")()
		s.do("", "POST", "/api/login", sized(60)).want(t, 503, "busy")
		if got := last(t); got["level"] != "WARN" || got["code"] != "busy" {
			t.Errorf("logged %v", got)
		}
	})
	t.Run("a storage that fails is an error, whose cause the client does not learn", func(t *testing.T) {
		if err := s.store.readers.Close(); err != nil {
			t.Fatal(err)
		}
		r := s.do(token, "GET", "/api/users/2", "").want(t, 503, "unavailable")
		if strings.Contains(r.body, "sql") || r.header.Get("Retry-After") == "" {
			t.Errorf("answered %v %s", r.header, r.body)
		}
		wantLogged(t, book, "database is closed")
	})
	t.Run("nothing below the level is logged", func(t *testing.T) {
		quiet := new(logBook)
		s.log = slog.New(slog.NewJSONHandler(quiet, nil))
		s.do("", "GET", "/api/test", "").want(t, 200, "")
		if quiet.String() != "" {
			t.Errorf("logged %s", quiet)
		}
	})
}

func TestOneAnswerPerRequest(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		answer func(x *exchange) error
		status int
		body   string
	}{
		{"the first status counts", func(x *exchange) error {
			x.WriteHeader(http.StatusTeapot)
			x.WriteHeader(http.StatusOK)
			_, err := x.Write([]byte("once\n"))
			return err
		}, http.StatusTeapot, "once\n"},
		{"a body without a status is a success", func(x *exchange) error {
			_, err := x.Write([]byte("{}\n"))
			return err
		}, http.StatusOK, "{}\n"},
		{"parts make one answer", func(x *exchange) error {
			return errors.Join(x.send(http.StatusOK, []byte("[")), x.send(http.StatusOK, []byte("]\n")))
		}, http.StatusOK, "[]\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t)
			book := s.keepLog()
			s.handle("GET /answer", row.answer)
			if r := s.do("", "GET", "/answer", ""); r.status != row.status || r.body != row.body {
				t.Errorf("got %d %q", r.status, r.body)
			}
			if want := fmt.Sprintf(`"status":%d,`, row.status); !strings.Contains(book.String(), want) {
				t.Errorf("logged %s", book)
			}
		})
	}
}

// A closedWriter is an answer to a client that has hung up.
type closedWriter struct{ http.ResponseWriter }

func (closedWriter) Write([]byte) (int, error) { return 0, net.ErrClosed }

// A long answer must end if the client does not read it.
func TestSendReportsThatTheClientHasGone(t *testing.T) {
	t.Parallel()
	x := &exchange{ResponseWriter: closedWriter{httptest.NewRecorder()}, r: httptest.NewRequest("GET", "/", nil), routed: true}
	if err := x.send(http.StatusOK, []byte("[")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if err := x.sendJSON(http.StatusOK, "x"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("sendJSON: %v", err)
	}
}

// The caller's rights can change while a slow body arrives.
func TestAnUpdateOfNothingIsCheckedAfterItsBody(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.directory = directorySelf })
	path, _ := s.register("ann")
	_, root := s.admin("root")
	evil, token := s.admin("evil")
	body, in := io.Pipe()
	r, err := http.NewRequest("PATCH", s.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	status := make(chan int, 1)
	go func() {
		resp, err := s.http.Client().Do(r)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	in.Write([]byte("{")) // the server reads it after it has let the caller in
	s.do(root, "PUT", evil, `{"role":"member"}`).want(t, 200, "")
	in.Write([]byte("}"))
	in.Close()
	if got := <-status; got != 403 {
		t.Errorf("a demoted admin got %d", got)
	}
}

// A stranger chooses the method, and must not be able to fill the log with it.
func TestALongMethodOrPathIsLoggedShort(t *testing.T) {
	t.Parallel()
	s := newService(t)
	book := s.keepLog()
	s.do("", strings.Repeat("A", 10_000), "/api/test", "").want(t, 405, "method_not_allowed")
	s.do("", "GET", strings.Repeat("/abcdefghijklmnopq", 7), "").want(t, 404, "not_found")
	if n := len(book.String()); n == 0 || n > 1000 {
		t.Errorf("%d bytes were logged", n)
	}
	if path := `"path":"/abcdefghijklmnopq/abcdefghijklmnopq/abcdefghijklmnopq/abcdefghi…"`; !strings.Contains(book.String(), path) {
		t.Errorf("the log is without %s: %s", path, book)
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	const listed = "https://app.example.com"
	open := func(c *settings) { c.corsOrigins = []string{listed, "http://localhost:3000"} }
	for _, row := range []struct {
		name    string
		options []func(*settings)
		method  string
		headers []string
		status  int
		allowed bool
		vary    bool
	}{
		{"closed, a request", nil, "GET", []string{"Origin: " + listed}, 200, false, false},
		{"closed, a question", nil, "OPTIONS", []string{"Origin: " + listed, "Access-Control-Request-Method: GET"}, 405, false, false},
		{"open, a request", []func(*settings){open}, "GET", []string{"Origin: " + listed}, 200, true, true},
		{"open, a question", []func(*settings){open}, "OPTIONS", []string{"Origin: " + listed, "Access-Control-Request-Method: PUT"}, 204, true, true},
		{"open, OPTIONS that asks nothing", []func(*settings){open}, "OPTIONS", []string{"Origin: " + listed}, 405, true, true},
		{"open, an error", []func(*settings){open}, "POST", []string{"Origin: " + listed}, 405, true, true},
		{"open, no origin", []func(*settings){open}, "GET", nil, 200, false, true},
		{"open, the question of another", []func(*settings){open}, "OPTIONS", []string{"Origin: https://evil.example", "Access-Control-Request-Method: GET"}, 405, false, true},
		{"open, another", []func(*settings){open}, "GET", []string{"Origin: https://evil.example"}, 200, false, true},
		{"open, a longer one", []func(*settings){open}, "GET", []string{"Origin: " + listed + ".evil.example"}, 200, false, true},
		{"open, another scheme", []func(*settings){open}, "GET", []string{"Origin: http://app.example.com"}, 200, false, true},
		{"open, another port", []func(*settings){open}, "GET", []string{"Origin: " + listed + ":8443"}, 200, false, true},
		{"open, null", []func(*settings){open}, "GET", []string{"Origin: null"}, 200, false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newService(t, row.options...).do("", row.method, "/api/test", "", row.headers...).want(t, row.status, "")
			want := map[string]string{"Access-Control-Allow-Credentials": "", "Access-Control-Allow-Origin": "", "Vary": ""}
			if row.allowed {
				want["Access-Control-Allow-Origin"] = listed
			}
			if row.vary {
				want["Vary"] = "Origin"
			}
			if row.status == 204 {
				want["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
				want["Access-Control-Max-Age"] = "600"
				want["Access-Control-Allow-Headers"] = "Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Requested-With, X-Request-Id, Traceparent, Tracestate, Baggage, Sentry-Trace"
			} else if row.allowed {
				want["Access-Control-Expose-Headers"] = "ETag, Link, Location, Retry-After, X-Request-Id"
			}
			for name, value := range want {
				if got := r.header.Get(name); got != value {
					t.Errorf("%s: %q, want %q", name, got, value)
				}
			}
		})
	}
}

// A stranger who could forge a line of the log could hide an attack.
func TestNoInputBreaksALineOfTheLog(t *testing.T) {
	t.Parallel()
	const evil = "x\r\n{\"level\":\"INFO\",\"msg\":\"forged\"}\x1b[31m\u2028"
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			s := newService(t, proxied)
			book := new(logBook)
			s.log = (&config{logFormat: format, logLevel: slog.LevelDebug}).logger(book)
			u := user{username: evil, email: "evil@example.com"} // adopted: no rule for names held there
			if _, err := s.store.conn.ExecContext(t.Context(), `INSERT INTO user (id, username, email, password_hash) VALUES (1, ?, ?, 'x')`, u.username, u.email); err != nil {
				t.Fatal(err)
			}
			s.do("", "POST", "/api/login", `{"username":"evil@example.com","password":"x"}`).want(t, 401, "")
			conn, err := net.Dial("tcp", s.http.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "FORGE\x1b[31m /api/test%%0d%%0aforged HTTP/1.1\r\nHost: forged\r\nX-Forwarded-For: forged\x1b[31m\r\nUser-Agent: forged\x1b\r\nConnection: close\r\n\r\n")
			if _, err := io.ReadAll(conn); err != nil {
				t.Fatal(err)
			}
			s.do("", "GET", "/api/%0d%0aforged?forged=%0a", "", "X-Forwarded-For: forged").want(t, 404, "")
			lines := strings.Split(strings.TrimSuffix(book.String(), "\n"), "\n")
			if len(lines) != 2 { // text that is not HTTP leaves no line of a request
				t.Errorf("%d lines:\n%s", len(lines), book)
			}
			for _, line := range lines {
				if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("a character that is not printable: %q", line)
				}
			}
		})
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	_, root := s.admin("root")
	if r := s.do(token, "GET", "/api/users/me", "").want(t, 200, ""); r.body != s.do(token, "GET", path, "").body {
		t.Errorf("me is %s", r.body)
	}
	for _, id := range []string{"0", "-1", "+1", "01", "1.0", "1e0", "abc", "Me", "%31x", "9223372036854775808", "1%00"} {
		s.do(root, "GET", "/api/users/"+id, "").want(t, 404, "user_not_found")
	}
	s.do(root, "GET", "/api/users/9223372036854775807", "").want(t, 404, "user_not_found")
}

// badBodies are refused for what they are by every route that takes the
// members of registerRequest.
var badBodies = []struct {
	name string
	body string
	code string
	text string // in the answer
}{
	{"nothing", ``, "malformed_body", "empty"},
	{"spaces", "  \r\n\t ", "malformed_body", "JSON"},
	{"a word", `username`, "malformed_body", "JSON"},
	{"a form", `username=ann&password=x`, "malformed_body", "JSON"},
	{"a string", `"username"`, "malformed_body", "one JSON object"},
	{"a number", `1`, "malformed_body", "one JSON object"},
	{"null", `null`, "malformed_body", "one JSON object"},
	{"true", `true`, "malformed_body", "one JSON object"},
	{"an array", `[]`, "malformed_body", "one JSON object"},
	{"an array of the right object", `[{"username":"ann"}]`, "malformed_body", "one JSON object"},
	{"an object that does not end", `{"username":"ann"`, "malformed_body", "JSON"},
	{"a string that does not end", `{"username":"ann`, "malformed_body", "JSON"},
	{"a member without a value", `{"username"}`, "malformed_body", "JSON"},
	{"a member without quotes", `{username:"ann"}`, "malformed_body", "JSON"},
	{"single quotes", `{'username':'ann'}`, "malformed_body", "JSON"},
	{"a comma after the last member", `{"username":"ann",}`, "malformed_body", "JSON"},
	{"a comma before the first member", `{,"username":"ann"}`, "malformed_body", "JSON"},
	{"no comma between members", `{"username":"ann" "email":"e"}`, "malformed_body", "JSON"},
	{"a comment", `{"username":"ann"/**/}`, "malformed_body", "JSON"},
	{"two objects", `{"username":"ann"}{"username":"bob"}`, "malformed_body", "JSON"},
	{"two objects on two lines", "{\"username\":\"ann\"}\n{\"username\":\"bob\"}\n", "malformed_body", "JSON"},
	{"a brace after the object", `{"username":"ann"}}`, "malformed_body", "JSON"},
	{"a word after the object", `{"username":"ann"} x`, "malformed_body", "JSON"},
	{"a NUL after the object", "{\"username\":\"ann\"}\x00", "malformed_body", "JSON"},
	{"a byte order mark", "\ufeff{}", "malformed_body", "JSON"},
	{"UTF-16", "\xff\xfe{\x00}\x00", "malformed_body", "UTF-8"},
	{"a control character in a string", "{\"username\":\"a\x01b\"}", "malformed_body", "JSON"},
	{"a line break in a string", "{\"username\":\"a\nb\"}", "malformed_body", "JSON"},
	{"an escape that JSON does not have", `{"username":"\x41"}`, "malformed_body", "JSON"},
	{"an escape cut short", `{"username":"\u004"}`, "malformed_body", "JSON"},
	{"invalid UTF-8 in a value", "{\"username\":\"a\xffb\"}", "malformed_body", "UTF-8"},
	{"invalid UTF-8 in a name", "{\"a\xffb\":1}", "malformed_body", "UTF-8"},
	{"a surrogate in UTF-8", "{\"username\":\"\xed\xa0\x80\"}", "malformed_body", "UTF-8"},
	{"an overlong letter", "{\"username\":\"\xc1\x81\"}", "malformed_body", "UTF-8"},
	{"nesting of ten thousand and one", `{"username":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`, "malformed_body", "JSON"},
	{"nesting of a thousand", `{"username":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, "wrong_type", `"username"`},

	{"a NUL as an escape", `{"username":"a\u0000b"}`, "malformed_body", `"username"`},
	{"a NUL as an escape in the password", `{"password":"\u0000 correct horse"}`, "malformed_body", `"password"`},
	{"the first half of a surrogate pair", `{"username":"\ud83d"}`, "malformed_body", `"username"`},
	{"the first half of a surrogate pair, before a letter", `{"username":"\ud83dx"}`, "malformed_body", `"username"`},
	{"the second half of a surrogate pair", `{"username":"\ude00"}`, "malformed_body", `"username"`},
	{"a surrogate pair in the wrong order", `{"username":"\ude00\ud83d"}`, "malformed_body", `"username"`},
	{"half a surrogate pair after a whole one", `{"username":"\ud83d\ude00\uD83D"}`, "malformed_body", `"username"`},

	{"a member twice", `{"username":"ann","username":"bob"}`, "duplicate_member", `"username"`},
	{"a member twice with the same value", `{"username":"ann","email":"e","username":"ann"}`, "duplicate_member", `"username"`},
	{"a member twice, once with an escape", `{"username":"ann","\u0075sername":"bob"}`, "duplicate_member", `"username"`},
	{"a member twice, first with an escape", `{"user\u006eame":"ann","username":"bob"}`, "duplicate_member", `"username"`},
	{"a member twice, in two ways with escapes", `{"\u0075sername":"ann","u\u0073ername":"bob"}`, "duplicate_member", `"username"`},

	{"an unknown member", `{"username":"ann","age":3}`, "unknown_member", `"age"`},
	{"a member of another route", `{"username":"ann","role":"admin"}`, "unknown_member", `"role"`},
	{"a member without a name", `{"":1}`, "unknown_member", `""`},
	{"a member in another case", `{"Username":"ann"}`, "unknown_member", `"Username"`},
	{"a member in upper case", `{"USERNAME":"ann"}`, "unknown_member", `"USERNAME"`},
	{"a member whose s is a long one", `{"u\u017fername":"ann"}`, "unknown_member", "u\u017fername"},
	{"a member with a space", `{"username ":"ann"}`, "unknown_member", `"username "`},
	{"a member with a NUL", `{"username\u0000":"ann"}`, "unknown_member", `"username\\x00"`},
	{"the name of the struct's field", `{"Password":"x"}`, "unknown_member", `"Password"`},
	{"an unknown member of 64 letters", `{"` + strings.Repeat("a", 64) + `":1}`, "unknown_member", `"` + strings.Repeat("a", 64) + `"`},
	{"a long unknown member", `{"` + strings.Repeat("a", 70) + `":1}`, "unknown_member", `"` + strings.Repeat("a", 64) + `…"`},
	{"a long member, cut within a letter", `{"` + strings.Repeat("a", 63) + `ääää":1}`, "unknown_member", `"` + strings.Repeat("a", 63) + `…"`},
	{"65 members", `{"username":"ann"` + manyMembers(64) + `}`, "unknown_member", `"m0"`},

	{"a number for a string", `{"username":1}`, "wrong_type", `"username"`},
	{"a large number for a string", `{"username":1e999}`, "wrong_type", `"username"`},
	{"true for a string", `{"email":true}`, "wrong_type", `"email"`},
	{"false for a string", `{"email":false}`, "wrong_type", `"email"`},
	{"null for a string", `{"password":null}`, "wrong_type", `"password"`},
	{"null between others", `{"username":"ann","email" : null ,"password":"x"}`, "wrong_type", `"email"`},
	{"an array for a string", `{"username":["ann"]}`, "wrong_type", `"username"`},
	{"an empty array for a string", `{"username":[]}`, "wrong_type", `"username"`},
	{"an object for a string", `{"password":{"$ne":""}}`, "wrong_type", `"password"`},
	{"an array with an invalid text", `{"username":["\u0000"]}`, "wrong_type", `"username"`},
}

func TestBadBodies(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, row := range badBodies {
		t.Run(row.name, func(t *testing.T) {
			r := s.post("/api/register", strings.NewReader(row.body), "Content-Type: application/json")
			r.want(t, 400, row.code)
			if !strings.Contains(strings.ReplaceAll(r.field("error"), `\`, `\\`), row.text) {
				t.Errorf("%q does not say %s", r.field("error"), row.text)
			}
			if len(r.body) > 300 {
				t.Errorf("the answer has %d bytes", len(r.body))
			}
		})
	}
	if all := s.do("", "POST", "/api/login", `{"username":"ann","password":"x"}`); all.status != 401 {
		t.Errorf("one of them made a user: %s", all.body)
	}
}

func TestABadBodyIsAnsweredWithAWholeSentence(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, row := range []struct{ body, code, text string }{
		{``, "malformed_body", `The body is empty`},
		{"\xff", "malformed_body", `The body is not valid UTF-8`},
		{`{`, "malformed_body", `The body is not valid JSON`},
		{`[]`, "malformed_body", `The body must be one JSON object`},
		{`{"username":"\u0000"}`, "malformed_body", `The member "username" contains an escape that is not a character`},
		{`{"username":"ann","username":"bob"}`, "duplicate_member", `The member "username" appears twice in the body`},
		{`{"age":3}`, "unknown_member", `The body has the member "age", which this route does not know`},
		{`{"username":1}`, "wrong_type", `The member "username" must be a string`},
	} {
		r := s.post("/api/register", strings.NewReader(row.body), "Content-Type: application/json").want(t, 400, row.code)
		if got := r.field("error"); got != row.text {
			t.Errorf("%q: got %q, want %q", row.body, got, row.text)
		}
	}
}

func TestWrongTypeNamesTheField(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.admin("root")
	for _, row := range []struct{ body, field, want string }{
		{`{"username":1}`, "username", "must be a string"},
		{`{"email":null}`, "email", "must be a string"},
		{`{"password":[]}`, "password", "must be a string"},
		{`{"role":1}`, "role", "must be a string"},
		{`{"role":null}`, "role", "must be a string"},
		{`{"disabled":"true"}`, "disabled", "must be true or false"},
		{`{"disabled":0}`, "disabled", "must be true or false"},
		{`{"disabled":null}`, "disabled", "must be true or false"},
		{`{"current_password":{}}`, "current_password", "must be a string"},
	} {
		t.Run(row.body, func(t *testing.T) {
			r := s.do(token, "PUT", "/api/users/me", row.body).want(t, 400, "wrong_type")
			var got failure
			if err := json.Unmarshal([]byte(r.body), &got); err != nil {
				t.Fatal(err)
			}
			want := failure{
				Error:  fmt.Sprintf("The member %q %s", row.field, row.want),
				Code:   "wrong_type",
				Fields: map[string]string{row.field: row.want},
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// sized returns a body for login that decodes and has n bytes.
func sized(n int) string {
	const body = `{"username":"nobody","password":"x"}`
	return body + strings.Repeat(" ", n-len(body))
}

func TestBodySize(t *testing.T) {
	t.Parallel()
	s := newService(t)
	// Without its own type net/http cannot know its length and sends chunks.
	chunked := func(body string) io.Reader { return iotest.DataErrReader(strings.NewReader(body)) }
	for _, row := range []struct {
		name   string
		body   io.Reader
		status int
		code   string
	}{
		{"64 KiB", strings.NewReader(sized(64 << 10)), 401, "invalid_credentials"},
		{"64 KiB in chunks", chunked(sized(64 << 10)), 401, "invalid_credentials"},
		{"a byte more", strings.NewReader(sized(64<<10 + 1)), 413, "body_too_large"},
		{"a byte more in chunks", chunked(sized(64<<10 + 1)), 413, "body_too_large"},
		{"a byte more, and no JSON", strings.NewReader(strings.Repeat("x", 64<<10+1)), 413, "body_too_large"},
		{"three times as much in chunks", chunked(sized(192 << 10)), 413, "body_too_large"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s.post("/api/login", row.body, "Content-Type: application/json").want(t, row.status, row.code)
		})
	}
	t.Run("a large one while too many are read", func(t *testing.T) {
		s.bodies = reqbody.NewReader(maxBody, smallBody, 0)
		ask := func(size int) reply {
			return s.post("/api/login", chunked(sized(size)), "Content-Type: application/json")
		}
		ask(smallBody).want(t, 401, "invalid_credentials")
		ask(smallBody+1).want(t, 503, "busy")
	})
	t.Run("a body that breaks off, even after a whole object", func(t *testing.T) {
		r := httptest.NewRequest("POST", "/api/login", io.MultiReader(strings.NewReader(sized(100)), iotest.ErrReader(io.ErrUnexpectedEOF)))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		reply{w.Code, w.Header(), w.Body.String()}.want(t, 400, "malformed_body")
	})
}

func TestOnlyAGoodBodyIsInvited(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	const (
		expect = "Expect: 100-continue"
		isJSON = "Content-Type: application/json"
	)
	for _, row := range []struct {
		name   string
		head   []string
		status int
	}{
		{"a login", []string{"POST /api/login HTTP/1.1", expect, isJSON, "Content-Length: 40"}, 100},
		{"a login of 64 KiB", []string{"POST /api/login HTTP/1.1", expect, isJSON, "Content-Length: 65536"}, 100},
		{"a login in chunks", []string{"POST /api/login HTTP/1.1", expect, isJSON, "Transfer-Encoding: chunked"}, 100},
		{"a login of a byte more", []string{"POST /api/login HTTP/1.1", expect, isJSON, "Content-Length: 65537"}, 413},
		{"a login of a terabyte", []string{"POST /api/login HTTP/1.1", expect, isJSON, "Content-Length: 1099511627776"}, 413},
		{"a login that is not JSON", []string{"POST /api/login HTTP/1.1", expect, "Content-Length: 40"}, 415},
		{"no path", []string{"POST /api/nothing HTTP/1.1", expect, isJSON, "Content-Length: 40"}, 404},
		{"no method", []string{"PUT /api/login HTTP/1.1", expect, isJSON, "Content-Length: 40"}, 405},
		{"a new user without a token", []string{"POST /api/users HTTP/1.1", expect, isJSON, "Content-Length: 40"}, 401},
		{"a new user by a member", []string{"POST /api/users HTTP/1.1", expect, isJSON, "Content-Length: 40", "Authorization: Bearer " + token}, 403},
		{"a change by a member of another", []string{"PUT /api/users/2 HTTP/1.1", expect, isJSON, "Content-Length: 40", "Authorization: Bearer " + token}, 403},
		{"a change by a member of itself", []string{"PUT /api/users/me HTTP/1.1", expect, isJSON, "Content-Length: 40", "Authorization: Bearer " + token}, 100},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := s.firstStatus(row.head...); got != row.status {
				t.Errorf("got %d, want %d", got, row.status)
			}
		})
	}
}

// An unread body fails the test that reads it.
type unreadBody struct{ t *testing.T }

func (b unreadBody) Read([]byte) (int, error) {
	b.t.Error("the body was read")
	return 0, io.ErrUnexpectedEOF
}

func TestContentType(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	for _, row := range []struct {
		name    string
		headers []string
		ok      bool
	}{
		{"application/json", []string{"Content-Type: application/json"}, true},
		{"application/json in another case", []string{"Content-Type: Application/JSON"}, true},
		{"charset utf-8", []string{"Content-Type: application/json; charset=utf-8"}, true},
		{"charset UTF-8", []string{"Content-Type: application/json;charset=UTF-8"}, true},
		{"charset in quotes", []string{`Content-Type: application/json; charset="utf-8"`}, true},
		{"a parameter that means nothing", []string{"Content-Type: application/json; v=1"}, true},
		{"none", nil, false},
		{"an empty one", []string{"Content-Type: "}, false},
		{"what a form sends", []string{"Content-Type: application/x-www-form-urlencoded"}, false},
		{"what a form can send as text", []string{"Content-Type: text/plain"}, false},
		{"text/json", []string{"Content-Type: text/json"}, false},
		{"a type that begins with application/json", []string{"Content-Type: application/json-patch+json"}, false},
		{"a type that ends in +json", []string{"Content-Type: application/merge-patch+json"}, false},
		{"two types", []string{"Content-Type: text/plain, application/json"}, false},
		{"no type", []string{"Content-Type: ; charset=utf-8"}, false},
		{"a parameter cut short", []string{"Content-Type: application/json; charset"}, false},
		{"charset latin1", []string{"Content-Type: application/json; charset=latin1"}, false},
		{"charset UTF-16", []string{"Content-Type: application/json; charset=UTF-16"}, false},
		{"an empty charset", []string{`Content-Type: application/json; charset=""`}, false},
		{"a gzip body", []string{"Content-Type: application/json", "Content-Encoding: gzip"}, false},
		{"an unknown encoding", []string{"Content-Type: application/json", "Content-Encoding: x"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := s.post("/api/login", strings.NewReader(sized(60)), row.headers...)
			if row.ok {
				r.want(t, 401, "invalid_credentials")
			} else {
				r.want(t, 415, "unsupported_media_type")
			}
		})
	}
}

// Otherwise an operator could not match the lines of the proxy's log with those of userd's.
func TestTheAnswerAndTheLogHaveTheIDOfTheProxy(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	book := s.keepLog()
	if got := s.do("", "GET", "/nothing", "", "X-Request-Id: the-proxys").header.Get("X-Request-Id"); got != "the-proxys" {
		t.Errorf("the answer has %q", got)
	}
	if got := s.do("", "GET", "/nothing", "", "X-Request-Id: a b").header.Get("X-Request-Id"); len(got) != 16 {
		t.Errorf("the answer to an id that is not valid has %q", got)
	}
	if got := book.records(t, slog.LevelInfo)[0]["id"]; got != "the-proxys" {
		t.Errorf("the log has %q", got)
	}
}

// An empty body of unknown length counts as no body.
func TestAnEmptyChunkedBodyCountsAsNoBody(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	r, err := http.NewRequest("POST", s.url+"/api/logout", io.NopCloser(strings.NewReader("")))
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = -1
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 204 || resp.Header.Get("Content-Type") != "" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	s.do(token, "GET", path, "").want(t, 401, "session_ended")
}

func limitOf(t *testing.T, q url.Values) int64 {
	n, err := strconv.ParseInt(q.Get("limit"), 10, 64)
	if err != nil {
		t.Errorf("accepted: %v", err)
	}
	return n
}

// FuzzListQuery checks that no query causes an internal error.
func FuzzListQuery(f *testing.F) {
	for _, q := range []string{"", "limit=10&after=3", "q=an&limit=2", "role=admin", "disabled=true&role=member&limit=1", "limit=1&limit=2", "q=%00", "q=%ff", "after=-1", "limit=1e3",
		"q=" + strings.Repeat("a", 300), "Limit=1", "q=%25_", "a;b", "%zz", "limit=9223372036854775808", "after=9223372036854775807"} {
		f.Add(q)
	}
	s := newService(f)
	_, token := s.admin("root")
	s.register("ann")
	s.register("bob")
	f.Fuzz(func(t *testing.T, q string) {
		r := httptest.NewRequest("GET", "/api/users", nil)
		r.URL.RawQuery = q
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		var list []struct{ ID int64 }
		switch {
		case w.Code == 200:
			if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil {
				t.Fatalf("%q: %v %s", q, err, w.Body)
			}
			if values, err := url.ParseQuery(q); err != nil || values.Has("limit") && int64(len(list)) > limitOf(t, values) {
				t.Errorf("%q is answered with %d users", q, len(list))
			}
		case w.Code != 400:
			t.Errorf("%q: %d %s", q, w.Code, w.Body)
		}
	})
}
