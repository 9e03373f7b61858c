package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseID(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		text string
		want int64 // 0: refused
	}{
		{"1", 1},
		{"10", 10},
		{"9223372036854775807", math.MaxInt64},
		{"9223372036854775808", 0},
		{"", 0},
		{"0", 0},
		{"-0", 0},
		{"+0", 0},
		{"-1", 0},
		{"+1", 0},
		{"01", 0},
		{"00", 0},
		{"1.0", 0},
		{"1e1", 0},
		{"0x1", 0},
		{"1_000", 0},
		{" 1", 0},
		{"1 ", 0},
		{"1\n", 0},
		{"１", 0},
		{"me", 0},
	} {
		got, err := parseID(row.text)
		if got != row.want || (err == nil) != (row.want > 0) {
			t.Errorf("parseID(%q) = %d, %v; want %d", row.text, got, err, row.want)
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, seed := range []string{"1", "0", "-1", "+1", "01", "1.0", "", "9223372036854775807", "9223372036854775808"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseID(s)
		n, convErr := strconv.ParseInt(s, 10, 64)
		canonical := convErr == nil && n > 0 && strconv.FormatInt(n, 10) == s
		if (err == nil) != canonical || canonical && got != n {
			t.Errorf("parseID(%q) = %d, %v", s, got, err)
		}
	})
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
	{"an array of what is refused by itself", `{"username":["\u0000"]}`, "wrong_type", `"username"`},
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
	t.Run("few large ones at the same time", func(t *testing.T) {
		if len(s.largeBodies) != 0 {
			t.Fatalf("%d places were not given back", len(s.largeBodies))
		}
		for range maxLargeBodies {
			s.largeBodies <- struct{}{}
		}
		ask := func(size int) reply {
			return s.post("/api/login", chunked(sized(size)), "Content-Type: application/json")
		}
		ask(smallBody).want(t, 401, "invalid_credentials")
		ask(smallBody+1).want(t, 503, "busy")
		<-s.largeBodies
		for range 2 { // its place is given back
			ask(smallBody+1).want(t, 401, "invalid_credentials")
		}
		for range maxLargeBodies - 1 {
			<-s.largeBodies
		}
		if len(s.largeBodies) != 0 {
			t.Errorf("%d places are taken", len(s.largeBodies))
		}
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
func TestAnEmptyChunkedBodyIsNone(t *testing.T) {
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
