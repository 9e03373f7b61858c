package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/sse"
)

// eventLines returns the events after an id: type, actor, user, session, address
// and changes, as they are in the table.
func eventLines(t testing.TB, st *store, after int64) (list []string) {
	t.Helper()
	err := st.events(context.Background(), after, -1, eventFilter{}, func(e *event) {
		list = append(list, fmt.Sprintf("%s actor=%d user=%d session=%d %q %q", e.kind, e.actorID, e.userID, e.sessionID, e.address, e.changes))
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// newest returns the id of the newest event.
func (s *service) newest() int64 {
	s.t.Helper()
	id, err := s.store.lastEvent()
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// Actors are a service with root, 1, an admin in session 1, and ann, 2, a member
// in session 2.
type actors struct {
	*service
	root, ann string // access tokens
	refresh   string // ann's
}

func newActors(t *testing.T) *actors {
	a := &actors{service: newService(t)}
	_, a.root = a.admin("root")
	a.register("ann")
	a.ann, a.refresh = a.pair("ann")
	return a
}

// copy returns the actors in a service on a copy of the database.
func (a *actors) copy(t *testing.T) *actors {
	return &actors{newServiceOn(t, copyDatabase(t, a.path)), a.root, a.ann, a.refresh}
}

// copyDatabase makes a copy of a database that may be in use.
func copyDatabase(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "app.db")
	runSQL(t, another(t, path), `VACUUM INTO '`+to+`'`)
	return to
}

func TestEachActIsOneEvent(t *testing.T) {
	t.Parallel()
	const bob = `"username":"bob","email":"bob@example.com","password":"` + goodPassword + `"`
	ctx := context.Background()
	all := newActors(t)
	for _, c := range []struct {
		act  string
		do   func(t *testing.T, a *actors)
		want string // empty: it changes nothing, and is none
	}{
		{"a registration", func(t *testing.T, a *actors) { a.register("bob") },
			`user_created actor=0 user=3 session=0 "127.0.0.1" ""`},
		{"an admin adding a member", func(t *testing.T, a *actors) {
			a.do(a.root, "POST", "/api/users", `{`+bob+`}`).want(t, 201, "")
		}, `user_created actor=1 user=3 session=1 "127.0.0.1" ""`},
		{"an admin adding an admin", func(t *testing.T, a *actors) {
			a.do(a.root, "POST", "/api/users", `{"role":"admin",`+bob+`}`).want(t, 201, "")
		}, `user_created actor=1 user=3 session=1 "127.0.0.1" "role=admin"`},
		{"a user added on the command line", func(t *testing.T, a *actors) { aUser(t, a.store, "bob", member) },
			`user_created actor=0 user=3 session=0 "console" ""`},
		{"a registration that is refused", func(t *testing.T, a *actors) {
			wantError(t, "the write", a.store.addUser(ctx, caller{kind: strangerCaller}, &user{username: "ANN", email: "a@example.com", role: member}, "", 1), errUsernameTaken)
			wantError(t, "the write", a.store.addUser(ctx, caller{kind: strangerCaller}, &user{username: "bob", email: "a@example.com", role: admin}, "", 1), errForbidden)
		}, ""},
		{"a login", func(t *testing.T, a *actors) { a.login("ann") },
			`login actor=2 user=2 session=3 "127.0.0.1" ""`},
		{"a login by which the oldest session ends", func(t *testing.T, a *actors) {
			for range maxSessions {
				aSessionWith(t, a.store, 2)
			}
			runSQL(t, another(t, a.path), `DELETE FROM event WHERE id > 4`)
			a.login("ann")
		}, `login actor=2 user=2 session=103 "127.0.0.1" ""`},
		{"a failed login", func(t *testing.T, a *actors) {
			a.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "")
		}, ""},
		{"a login that is too late", func(t *testing.T, a *actors) {
			_, err := a.store.startSession(ctx, &session{userID: 2}, 7, "", provenFactor{})
			wantError(t, "the write", err, errCredentials)
		}, ""},
		{"a change of a name", func(t *testing.T, a *actors) {
			a.do(a.ann, "PUT", "/api/users/me", `{"username":"ann2"}`).want(t, 200, "")
		}, `user_changed actor=2 user=2 session=2 "127.0.0.1" "username"`},
		{"a change of everything", func(t *testing.T, a *actors) {
			a.do(a.root, "PUT", "/api/users/2", `{"username":"x","email":"x@example.com","password":"another good one","role":"admin","disabled":true}`).want(t, 200, "")
		}, `user_changed actor=1 user=2 session=1 "127.0.0.1" "username,email,password,role=admin,disabled=true"`},
		{"a change on the command line", func(t *testing.T, a *actors) {
			hash := "hash"
			_, err := a.store.updateUser(ctx, console, 2, change{hash: &hash}, 0, 9)
			wantError(t, "the write", err, nil)
		}, `user_changed actor=0 user=2 session=0 "console" "password"`},
		{"a change to the current value", func(t *testing.T, a *actors) {
			a.do(a.ann, "PUT", "/api/users/me", `{"username":"ann"}`).want(t, 200, "")
		}, ""},
		{"a change that is refused", func(t *testing.T, a *actors) {
			a.do(a.ann, "PUT", "/api/users/me", `{"username":"ROOT"}`).want(t, 400, "username_taken")
			a.do(a.ann, "PUT", "/api/users/me", `{"username":"ann2"}`, `If-Match: "9"`).want(t, 412, "")
			name := "root"
			_, err := a.store.updateUser(ctx, console, 2, change{username: &name}, 0, 9)
			wantError(t, "the write", err, errUsernameTaken)
			_, err = a.store.updateUser(ctx, console, 2, change{username: &name}, 9, 9)
			wantError(t, "the write", err, errVersion)
		}, ""},
		{"deleting oneself", func(t *testing.T, a *actors) { a.do(a.ann, "DELETE", "/api/users/me", "").want(t, 200, "") },
			`user_deleted actor=2 user=2 session=2 "127.0.0.1" ""`},
		{"deleting the last admin", func(t *testing.T, a *actors) { a.do(a.root, "DELETE", "/api/users/me", "").want(t, 409, "") }, ""},
		{"a logout", func(t *testing.T, a *actors) { a.do(a.ann, "POST", "/api/logout", "").want(t, 204, "") },
			`session_ended actor=2 user=2 session=2 "127.0.0.1" ""`},
		{"a logout everywhere", func(t *testing.T, a *actors) { a.do(a.ann, "POST", "/api/logout?all=true", "").want(t, 204, "") },
			`sessions_ended actor=2 user=2 session=2 "127.0.0.1" ""`},
		{"an admin ending a session", func(t *testing.T, a *actors) {
			a.do(a.root, "DELETE", "/api/users/2/sessions/2", "").want(t, 204, "")
		}, `session_ended actor=1 user=2 session=2 "127.0.0.1" ""`},
		{"an admin ending a session that is not there", func(t *testing.T, a *actors) {
			a.do(a.root, "DELETE", "/api/users/2/sessions/1", "").want(t, 404, "")
		}, ""},
		{"an admin ending all sessions, and then those that are none", func(t *testing.T, a *actors) {
			a.do(a.root, "DELETE", "/api/users/2/sessions", "").want(t, 204, "")
			a.do(a.root, "DELETE", "/api/users/2/sessions", "").want(t, 204, "")
		}, `sessions_ended actor=1 user=2 session=1 "127.0.0.1" ""`},
		{"a session that is over being swept", func(t *testing.T, a *actors) {
			_, err := a.store.sweep(ctx, 0, 1<<40)
			wantError(t, "the sweep", err, nil)
		}, ""},
		{"a refresh and a read", func(t *testing.T, a *actors) {
			a.do(a.refresh, "POST", "/api/refresh", "").want(t, 200, "")
			a.clock.add(2 * touchEvery * time.Second)
			a.do(a.ann, "GET", "/api/users/me", "").want(t, 200, "")
			wantError(t, "a write behind the touch", a.store.write(ctx, statement{Query: `UPDATE counter SET user_id = user_id`}), nil)
		}, ""},
		{"a refresh token that comes back, twice", func(t *testing.T, a *actors) {
			a.do(a.refresh, "POST", "/api/refresh", "").want(t, 200, "")
			a.clock.add(time.Minute)
			a.do(a.refresh, "POST", "/api/refresh", "").want(t, 401, "reused_token")
			a.do(a.refresh, "POST", "/api/refresh", "").want(t, 401, "session_ended")
			wantError(t, "one who saw it at the same time", a.store.endReused(ctx, 2, 2, "", 9), nil)
		}, `token_reused actor=0 user=2 session=2 "127.0.0.1" ""`},
		{"a key rotated on the command line", func(t *testing.T, a *actors) {
			wantError(t, "the write", a.store.rotateKey(ctx, keyRow{"abcdefgh", []byte("secret")}, false, 9), nil)
		}, `key_rotated actor=0 user=0 session=0 "console" "kid=abcdefgh"`},
		{"an import", func(t *testing.T, a *actors) {
			sh := &shell{t, a.path}
			sh.run(0, "username,email,password,role\nbob,bob@example.com,"+goodPassword+",member\ncas,cas@example.com,"+goodPassword+",admin\n", "user", "import", "-")
		}, `users_imported actor=0 user=0 session=0 "console" "users=2,admins=1"`},
		{"an import that is refused, only tried, or empty", func(t *testing.T, a *actors) {
			sh := &shell{t, a.path}
			sh.run(1, "username,email,password\nANN,bob@example.com,"+goodPassword+"\n", "user", "import", "-")
			sh.run(0, "username,email,password\nbob,bob@example.com,"+goodPassword+"\n", "user", "import", "-dry-run", "-")
			sh.run(0, "username,email,password\n", "user", "import", "-")
		}, ""},
	} {
		t.Run(c.act, func(t *testing.T) {
			a := all.copy(t)
			if got := eventLines(t, a.store, 0); len(got) != 4 {
				t.Fatalf("it begins with %q", got)
			}
			c.do(t, a)
			if got := strings.Join(eventLines(t, a.store, 4), "\n"); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// aSessionWith starts a session of a user, whatever its credentials are.
func aSessionWith(t *testing.T, st *store, userID int64) {
	t.Helper()
	c, err := st.credentials(userID)
	if err == nil {
		_, err = st.startSession(context.Background(), &session{userID: userID, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("hash")}, c.stamp, "", provenFactor{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// If the event of a write cannot be written, nothing is written.
func TestAnActWithoutItsEventDoesNotHappen(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	runSQL(t, another(t, s.path), `CREATE TRIGGER refuse BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no'); END`)
	s.keepLog()
	s.do(token, "PUT", "/api/users/me", `{"username":"ann2"}`).want(t, 503, "unavailable")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).want(t, 503, "unavailable")
	s.do("", "POST", "/api/register", registerBody("bob", goodPassword)).want(t, 503, "unavailable")
	s.do(token, "POST", "/api/logout", "").want(t, 503, "unavailable")
	s.do(token, "DELETE", "/api/users/me", "").want(t, 503, "unavailable")
	if got := usernames(t, s.store); !slices.Equal(got, []string{"ann"}) {
		t.Errorf("the users are %q", got)
	}
	if n := count(t, s, "session"); n != 1 {
		t.Errorf("there are %d sessions, want 1", n)
	}
}

func TestWithTheUserThePersonIsGoneFromTheEvents(t *testing.T) {
	t.Parallel()
	a := newActors(t)
	a.do(a.ann, "PUT", "/api/users/me", `{"username":"anna","email":"anna@example.com","password":"another good one"}`).want(t, 200, "")
	a.do(a.root, "DELETE", "/api/users/2", "").want(t, 200, "")
	r := a.do(a.root, "GET", "/api/events?user=2", "").want(t, 200, "")
	if n := len(r.list(t, "id")); n != 4 {
		t.Errorf("there are %d events of the user, want 4: %s", n, r.body)
	}
	dump := scan[string](t, another(t, a.path), `SELECT group_concat(concat_ws(' ', id, at, type, actor_id, user_id, session_id, address, changes), char(10)) FROM event`)
	for _, personal := range []string{"ann", "example.com", "another good", "$argon2"} {
		if strings.Contains(r.body+dump, personal) {
			t.Errorf("an event holds %q: %s\n%s", personal, r.body, dump)
		}
	}
}

func TestEventsArePagedByCursor(t *testing.T) {
	t.Parallel()
	a := newActors(t) // events 1 to 4
	for range 3 {
		a.login("ann")
	}
	a.do(a.root, "PUT", "/api/users/2", `{"role":"admin","disabled":true}`).want(t, 200, "")
	for _, c := range []struct{ query, ids, next string }{
		{"", "1 2 3 4 5 6 7 8", ""},
		{"?after=6", "7 8", ""},
		{"?after=8", "", ""},
		{"?after=99", "", ""},
		{"?limit=3", "1 2 3", "/api/events?after=3&limit=3"},
		{"?limit=3&after=3", "4 5 6", "/api/events?after=6&limit=3"},
		{"?limit=2&after=6", "7 8", ""},
		{"?user=1", "1 2", ""},
		{"?user=2&limit=2", "3 4", "/api/events?after=4&limit=2&user=2"},
		{"?type=login", "2 4 5 6 7", ""},
		{"?type=login&user=2&limit=3", "4 5 6", "/api/events?after=6&limit=3&type=login&user=2"},
		{"?type=login&user=2&after=6", "7", ""},
		{"?type=token_reused", "", ""},
	} {
		t.Run(c.query, func(t *testing.T) {
			r := a.do(a.root, "GET", "/api/events"+c.query, "").want(t, 200, "")
			if got := strings.Join(r.list(t, "id"), " "); got != c.ids {
				t.Errorf("got the events %s, want %s", got, c.ids)
			}
			link := r.header.Get("Link")
			if c.next != "" && link != "<"+c.next+`>; rel="next"` || c.next == "" && link != "" {
				t.Errorf("Link is %q, want %q", link, c.next)
			}
			if !strings.HasPrefix(r.body, "[") {
				t.Errorf("got %s", r.body)
			}
		})
	}
	want := `[{"id":8,"type":"user_changed","at":"2026-05-04T03:02:01Z","actor_id":1,"user_id":2,"session_id":1,"address":"127.0.0.1","changes":["role=admin","disabled=true"]}]` + "\n"
	if r := a.do(a.root, "GET", "/api/events?after=7", ""); r.body != want {
		t.Errorf("got %s\nwant %s", r.body, want)
	}
	want = `[{"id":1,"type":"user_created","at":"2026-05-04T03:02:01Z","user_id":1,"address":"console","changes":["role=admin"]}]` + "\n"
	if r := a.do(a.root, "GET", "/api/events?limit=1", ""); r.body != want {
		t.Errorf("got %s\nwant %s", r.body, want)
	}
	addEvents(t, a.store, 200)
	if n := len(a.do(a.root, "GET", "/api/events", "").list(t, "id")); n != 100 {
		t.Errorf("a page has %d events if not told, want 100", n)
	}
}

// addEvents adds n events without an actor, in one write.
func addEvents(t testing.TB, st *store, n int) {
	t.Helper()
	err := st.write(context.Background(), statement{
		Query: `
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < @n)
			INSERT INTO event (at, type, actor_id, user_id, session_id, address, changes)
			SELECT 1777777777, 'login', 0, 0, i, '192.0.2.1', '' FROM n`,
		Args: args{{"n", n}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEventListsUseTheirIndexes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		only eventFilter
		step string
	}{
		{eventFilter{}, "SEARCH event USING INTEGER PRIMARY KEY (rowid>?)"},
		{eventFilter{userID: 1}, "SEARCH event USING INDEX event_user (user_id=? AND rowid>?)"},
		{eventFilter{kind: loggedIn}, "SEARCH event USING INDEX event_type (type=? AND rowid>?)"},
		{eventFilter{userID: 1, kind: loggedIn}, "SEARCH event USING INDEX event_user (user_id=? AND rowid>?)"},
	} {
		path := filepath.Join(t.TempDir(), "app.db")
		st := openTestStore(t, path)
		if err := st.events(context.Background(), 0, 9, c.only, func(*event) {}); err != nil {
			t.Fatal(err)
		}
		for _, query := range st.reads.Queries() {
			if got := plan(t, another(t, path), query); got != c.step {
				t.Errorf("%+v: the plan is %s, want %s", c.only, got, c.step)
			}
		}
	}
}

func TestBadParametersOfEvents(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	const stream = "Accept: text/event-stream"
	for _, c := range []struct{ query, header string }{
		{"limit=0", ""}, {"limit=1001", ""}, {"limit=x", ""}, {"after=-1", ""}, {"after=01", ""}, {"user=0", ""}, {"user=me", ""}, {"type=", ""}, {"type=LOGIN", ""},
		{"type=login&type=login", ""}, {"q=ann", ""}, {"after=1;2", ""},
		{"limit=1", stream}, {"after=99", stream}, {"type=x", stream},
		{"", "Last-Event-ID: 99"}, {"", "Last-Event-ID: x"}, {"after=1", "Last-Event-ID: -1"},
	} {
		headers := []string{stream}
		if c.header == "" {
			headers = nil
		} else if c.header != stream {
			headers = append(headers, c.header)
		}
		if r := s.do(root, "GET", "/api/events?"+c.query, "", headers...); r.status != 400 || r.field("code") != "bad_parameter" {
			t.Errorf("%+v: %d %s", c, r.status, r.body)
		}
	}
	s.do(root, "GET", "/api/events?limit=1000&after=0", "", "Last-Event-ID: x").want(t, 200, "")
	if r := s.do(root, "GET", "/api/events", "", "Accept: text/event-stream;q=0, application/json").want(t, 200, ""); !strings.HasPrefix(r.body, "[") {
		t.Errorf("who refuses a stream gets %s", r.body)
	}
	s.feed = sse.New(0)
	if r := s.do(root, "GET", "/api/events", "", stream).want(t, 503, "busy"); r.header.Get("Retry-After") == "" {
		t.Errorf("one stream too many: %v", r.header)
	}
}

func FuzzEventQuery(f *testing.F) {
	for _, q := range []string{"", "limit=10&after=3", "user=1&type=login&limit=1", "type=%00", "user=-1", "after=9223372036854775807", "limit=1&limit=2", "%zz", "type=login'--"} {
		f.Add(q)
	}
	s := newService(f)
	_, token := s.admin("root")
	f.Fuzz(func(t *testing.T, q string) {
		r := httptest.NewRequest("GET", "/api/events", nil)
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
			values, err := url.ParseQuery(q)
			if err != nil || values.Has("limit") && int64(len(list)) > limitOf(t, values) || len(list) > defaultLimit {
				t.Errorf("%q is answered with %d events", q, len(list))
			}
		case w.Code != 400:
			t.Errorf("%q: %d %s", q, w.Code, w.Body)
		}
	})
}

// A stream is an open event stream.
type stream struct {
	t      testing.TB
	header http.Header
	blocks chan string // closed at the end
	err    error       // how it ended
	leave  func()
}

// follow opens an event stream. A server of a test looks for events often.
func (s *service) follow(token, query string, headers ...string) *stream {
	s.t.Helper()
	return followAt(s.t, s.url, token, query, headers...)
}

func followAt(t testing.TB, base, token, query string, headers ...string) *stream {
	t.Helper()
	f, err := tryFollow(t, base, token, query, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// tryFollow is followAt, but it returns the error of a request that got no answer.
func tryFollow(t testing.TB, base, token, query string, headers ...string) (*stream, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", base+"/api/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "text/event-stream")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 {
		t.Fatalf("the stream is answered with %d", resp.StatusCode)
	}
	f := &stream{t, resp.Header, make(chan string), nil, cancel}
	go func() {
		defer close(f.blocks)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		block := ""
		for lines.Scan() {
			if lines.Text() != "" {
				block += lines.Text() + "\n"
				continue
			}
			select {
			case f.blocks <- block:
			case <-ctx.Done():
			}
			block = ""
		}
		f.err = lines.Err()
	}()
	return f, nil
}

// next returns the next block, "" at the end.
func (f *stream) next() string {
	f.t.Helper()
	return f.await(time.After(patience))
}

func (f *stream) await(timeout <-chan time.Time) string {
	f.t.Helper()
	select {
	case block := <-f.blocks:
		return block
	case <-timeout:
		f.t.Fatal("nothing has come on the stream")
		return ""
	}
}

// nextEvent returns the id and the type of the next event; 0 at the end.
func (f *stream) nextEvent() (id int64, kind string) {
	f.t.Helper()
	timeout := time.After(patience)
	for {
		block := f.await(timeout)
		fields := make(map[string]string)
		for line := range strings.Lines(block) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			fields[name] = value
		}
		if fields["data"] == "" && block != "" {
			continue
		}
		if block == "" {
			return 0, ""
		}
		var data eventAnswer
		if err := json.Unmarshal([]byte(fields["data"]), &data); err != nil {
			f.t.Fatalf("%v: %s", err, block)
		}
		if fields["id"] != strconv.FormatInt(data.ID, 10) || fields["event"] != string(data.Type) {
			f.t.Errorf("the lines do not agree: %s", block)
		}
		return data.ID, fields["event"]
	}
}

// hasten makes the streams of a service read the database and check rights more often.
func (s *service) hasten() {
	s.feed.PollEvery, s.feed.RecheckEvery = 2*time.Millisecond, 10*time.Millisecond
}

func TestAStreamFollowsTheEvents(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.hasten()
	_, root := s.admin("root") // events 1 and 2
	f := s.follow(root, "")
	if got := f.header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type: %s", got)
	}
	if got := f.next(); got != "id: 2\n" {
		t.Errorf("it begins with %q, want the place", got)
	}
	s.register("ann")
	want := "id: 3\nevent: user_created\n" + `data: {"id":3,"type":"user_created","at":"2026-05-04T03:02:01Z","user_id":2,"address":"127.0.0.1"}` + "\n"
	if got := f.next(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	t.Run("also those of another process", func(t *testing.T) {
		aUser(t, openTestStore(t, s.path), "bob", member)
		if id, kind := f.nextEvent(); id != 4 || kind != "user_created" {
			t.Errorf("got %d %s", id, kind)
		}
	})
	t.Run("from the beginning, after an event, or after Last-Event-ID, which goes first", func(t *testing.T) {
		for _, c := range []struct {
			query, header string
			first         int64
		}{
			{"?after=0", "Accept-Language: en", 1},
			{"?after=2", "Accept-Language: en", 3},
			{"?after=2", "Last-Event-ID: 3", 4},
			{"?after=2", "Last-Event-ID: 0", 1},
			{"", "Last-Event-ID: 1", 2},
		} {
			f := s.follow(root, c.query, c.header)
			if got := f.next(); got != fmt.Sprintf("id: %d\n", c.first-1) {
				t.Errorf("%+v: it begins with %q", c, got)
			}
			if id, _ := f.nextEvent(); id != c.first {
				t.Errorf("%+v: the first event is %d", c, id)
			}
			f.leave()
		}
	})
	t.Run("and lets through what its filter does", func(t *testing.T) {
		f := s.follow(root, "?user=2&type=login&after=0")
		f.next()
		s.login("ann")
		s.do(root, "PUT", "/api/users/2", `{"username":"ann2"}`).want(t, 200, "")
		s.login("root")
		s.login("ann2")
		for _, want := range []int64{5, 8} {
			if id, kind := f.nextEvent(); id != want || kind != "login" {
				t.Errorf("got %d %s, want the login %d", id, kind, want)
			}
		}
	})
	t.Run("in batches where there are many", func(t *testing.T) {
		addEvents(t, s.store, 2*streamBatch+7)
		f := s.follow(root, "?after=0")
		for want := int64(1); want <= s.newest(); want++ {
			if id, _ := f.nextEvent(); id != want {
				t.Fatalf("got %d, want %d", id, want)
			}
		}
	})
}

func TestASilentStreamGivesASignOfLife(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.hasten()
	s.feed.PingEvery = 30 * time.Millisecond
	_, root := s.admin("root")
	f := s.follow(root, "?type=token_reused&after=0")
	if got := f.next(); got != "id: 0\n" {
		t.Errorf("it begins with %q", got)
	}
	// And how far it has looked, so that who comes back need not begin anew.
	if got := f.next(); got != ":\nid: 2\n" {
		t.Errorf("got %q", got)
	}
	if speak := newFeed().PingEvery; speak >= writeTimeout {
		t.Errorf("HTTP/2 would end a stream that is silent for %v", speak)
	}
}

// net/http removes the deadline for reads after a complete request. A stream extends its
// deadline for writes itself.
func TestAStreamOutlivesTheDeadlinesOfARequest(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.hasten()
	s.feed.PingEvery = 20 * time.Millisecond
	_, root := s.admin("root")
	// On a busy machine, a request can take longer than a short deadline.
	for deadline := 100 * time.Millisecond; ; deadline *= 2 {
		web := newHTTPServer(s.server)
		web.ReadHeaderTimeout, web.ReadTimeout, web.WriteTimeout = deadline, deadline, deadline
		short := httptest.NewUnstartedServer(s.server)
		short.Config = web
		short.Start()
		t.Cleanup(short.Close)
		f, err := tryFollow(t, short.URL, root, "")
		if err != nil && deadline < patience/10 {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for time.Since(begun) < 5*deadline {
			if f.next() == "" {
				t.Fatalf("it ended after %v: %v", time.Since(begun), f.err)
			}
		}
		f.leave()
		return
	}
}

func TestAStreamEndsWithTheRightToIt(t *testing.T) {
	t.Parallel()
	yes, demoted := true, member
	for _, c := range []struct {
		claim string
		do    func(s *service, token string) error
	}{
		{"at the logout", func(s *service, token string) error {
			s.do(token, "POST", "/api/logout", "").want(s.t, 204, "")
			return nil
		}},
		{"when the admin is demoted", func(s *service, _ string) error {
			_, err := s.store.updateUser(context.Background(), console, 1, change{role: &demoted}, 0, 1)
			return err
		}},
		{"when the admin is disabled", func(s *service, _ string) error {
			_, err := s.store.updateUser(context.Background(), console, 1, change{disabled: &yes}, 0, 1)
			return err
		}},
		{"when the admin is deleted", func(s *service, _ string) error {
			return s.store.deleteUser(context.Background(), console, 1, 0, 1)
		}},
		{"when the token has expired", func(s *service, _ string) error {
			s.clock.add(s.accessTTL)
			return nil
		}},
		{"when the server stops", func(s *service, _ string) error {
			s.feed.Stop()
			return nil
		}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := newService(t)
			s.hasten()
			_, token := s.admin("root")
			s.admin("other")
			f := s.follow(token, "")
			f.next()
			if err := c.do(s, token); err != nil {
				t.Fatal(err)
			}
			for id, _ := f.nextEvent(); id != 0; id, _ = f.nextEvent() {
			}
			if f.err != nil {
				t.Errorf("it ended with %v", f.err)
			}
			await(t, "its place is free", func() bool { return s.feed.Open() == 0 })
		})
	}
}

func TestAStreamWhoseClientHasGoneIsGone(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.hasten()
	_, root := s.admin("root")
	f := s.follow(root, "")
	f.next()
	if n := s.feed.Open(); n != 1 {
		t.Errorf("%d places are taken", n)
	}
	f.leave()
	await(t, "its place is free", func() bool { return s.feed.Open() == 0 })
	if r := s.do(root, "HEAD", "/api/events", "", "Accept: text/event-stream").want(t, 200, ""); r.header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%v", r.header)
	}
	await(t, "a HEAD has held no place", func() bool { return s.feed.Open() == 0 })
}

func TestASlowReaderOfAStreamIsCutOff(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.hasten()
	s.feed.WriteTimeout = 500 * time.Millisecond
	_, root := s.admin("root")
	addEvents(t, s.store, 8_000)
	runSQL(t, another(t, s.path), `UPDATE event SET changes = hex(zeroblob(2000))`) // more than any buffer on the way takes
	in := s.stall(strings.TrimPrefix(s.url, "http://"), "GET /api/events?after=0 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nAuthorization: Bearer "+root+"\r\n\r\n")
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Fatal(line, err)
	}
	await(t, "its place is free", func() bool { return s.feed.Open() == 0 })
	s.do(root, "GET", "/api/users/me", "").want(t, 200, "")
}

// The stores of two other processes write events continuously. Meanwhile, the client
// reconnects and the server restarts.
func TestNoEventIsLostOrDoubledAcrossReconnectsAndRestarts(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 150
	path := filepath.Join(t.TempDir(), "app.db")
	s := newServiceOn(t, path)
	s.hasten()
	_, root := s.admin("root")
	first := s.newest()
	var group sync.WaitGroup
	for i := range writers {
		st := s.store
		if i%2 == 0 {
			st = openTestStore(t, path)
		}
		group.Go(func() {
			for range each {
				name := fmt.Sprint(i)
				if _, err := st.updateUser(context.Background(), console, 1, change{email: &name}, 0, 1); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer group.Wait()
	var got []int64
	last := fmt.Sprint(first)
	for round := 0; len(got) < writers*each; round++ {
		f := s.follow(root, "", "Last-Event-ID: "+last)
		for range 1 + round*7%50 {
			if len(got) == writers*each {
				break
			}
			id, _ := f.nextEvent()
			if id == 0 {
				break
			}
			got, last = append(got, id), fmt.Sprint(id)
		}
		if round%5 == 4 {
			s.feed.Stop()
			for id, _ := f.nextEvent(); id != 0; id, _ = f.nextEvent() {
				got, last = append(got, id), fmt.Sprint(id)
			}
			s.http.Close()
			s = newServiceOn(t, path)
			s.hasten()
			continue
		}
		f.leave()
	}
	for i, id := range got {
		if want := first + 1 + int64(i); id != want {
			t.Fatalf("event %d came in the place of %d", id, want)
		}
	}
	if len(got) != writers*each {
		t.Errorf("%d events came, want %d", len(got), writers*each)
	}
}

func TestStreamsEndBeforeTheServerDoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	userdProcess(t, dir, goodPassword+"\n", nil, "user", "add", "-admin", "root", "root@example.com")
	f := followAt(t, p.url, p.login("root", goodPassword), "")
	f.next()
	if status := p.end(os.Interrupt); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
	for id, _ := f.nextEvent(); id != 0; id, _ = f.nextEvent() {
	}
	if f.err != nil {
		t.Errorf("the stream ended with %v", f.err)
	}
	for _, line := range p.log() {
		if strings.Contains(line, "cut off") {
			t.Error(line)
		}
	}
}

func TestEventsOnTheCommandLine(t *testing.T) {
	t.Parallel()
	a := newActors(t)
	a.do(a.ann, "DELETE", "/api/users/me", "").want(t, 200, "")
	sh := &shell{t, a.path}
	for _, c := range []struct {
		args string
		ids  string
	}{
		{"events -json", "1 2 3 4 5"},
		{"events -json -after 3", "4 5"},
		{"events -after 0 -json -user root", "1 2"},
		{"events -json -user id=2", "3 4 5"},
		{"events -json -user id=2 -type login", "4"},
		{"events -json -type token_reused", ""},
	} {
		out, _ := sh.run(0, "", strings.Fields(c.args)...)
		list := "[" + strings.TrimSuffix(strings.ReplaceAll(out, "\n", ","), ",") + "]"
		if got := strings.Join(reply{body: list}.list(t, "id"), " "); got != c.ids {
			t.Errorf("%s prints %s, want %s", c.args, got, c.ids)
		}
	}
	out, _ := sh.run(0, "", "events", "-after", "0", "-user", "root")
	if want := "2         2026-05-04T03:02:01Z  login           1 root            1 root            1 "; !strings.Contains(out, want) {
		t.Errorf("events prints %s, want %s", out, want)
	}
	out, _ = sh.run(0, "", "events", "-after", "4") // a deleted user has no name
	if want := "5         2026-05-04T03:02:01Z  user_deleted    2                 2                 2         127.0.0.1        \n"; !strings.HasSuffix(out, want) || !strings.HasPrefix(out, "ID ") {
		t.Errorf("events prints %s, want %s", out, want)
	}
	sh.run(2, "", "events", "-type", "nothing")
	sh.run(2, "", "events", "-after", "x")
	sh.run(2, "", "events", "more")
	sh.run(1, "", "events", "-user", "nobody")

	t.Run("are followed until it is interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in, out := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, []string{"events", "-follow", "-json", "-after", "4"}, getenvOf([]string{"DATABASE_URL=" + a.path}), strings.NewReader(""), out, out)
		}()
		lines := bufio.NewScanner(in)
		for _, id := range []int64{5, 6} {
			if !lines.Scan() || !strings.HasPrefix(lines.Text(), fmt.Sprintf(`{"id":%d,`, id)) {
				t.Fatalf("it prints %s, want event %d", lines.Text(), id)
			}
			a.login("root")
		}
		cancel()
		go func() {
			for lines.Scan() {
			}
		}()
		if err := receive(t, "it ends", ended); err != nil {
			t.Error(err)
		}
	})
}
