package main

import (
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// pair logs a user in and returns both of its tokens.
func (s *service) pair(name string) (access, refresh string) {
	s.t.Helper()
	r := s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)).want(s.t, 200, "")
	return r.field("access_token"), r.field("refresh_token")
}

func TestRefreshGivesANewPair(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	access, first := s.pair("ann")
	s.clock.add(14 * time.Minute)
	r := s.do(first, "POST", "/api/refresh", "").want(t, 200, "")
	if r.field("token_type") != "Bearer" || r.field("expires_in") != "900" || r.field("refresh_token") == first || r.field("access_token") == access {
		t.Errorf("got %s", r.body)
	}
	c, err := s.keys.verify(r.field("access_token"), s.clock.wall().Unix())
	if err != nil || c.fresh || c.subject != 1 {
		t.Errorf("the new token says %+v, %v", c, err)
	}
	// The old access token still has its own time, the new one its own.
	s.do(access, "GET", path, "").want(t, 200, "")
	s.clock.add(2 * time.Minute)
	s.do(access, "GET", path, "").want(t, 401, "expired_token")
	s.do(r.field("access_token"), "GET", path, "").want(t, 200, "")

	second := r.field("refresh_token")
	third := s.do("", "POST", "/api/refresh", fmt.Sprintf(`{"refresh_token":%q}`, second)).want(t, 200, "").field("refresh_token")
	s.do("", "POST", "/api/refresh", "{}").want(t, 401, "missing_token")
	s.do("", "POST", "/api/refresh", "").want(t, 401, "missing_token")
	s.do("", "POST", "/api/refresh", `{"refresh_token":7}`).want(t, 400, "wrong_type")
	s.do(access, "POST", "/api/refresh", "{}").want(t, 401, "invalid_token")
	fourth := s.do(third, "POST", "/api/refresh", "{}").want(t, 200, "").field("refresh_token")
	s.do(access, "POST", "/api/refresh", fmt.Sprintf(`{"refresh_token":%q}`, fourth)).want(t, 200, "") // the body goes first
}

// A refreshed session lives on; one that is left alone ends.
func TestSessionExpires(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	for range 3 {
		s.clock.add(700 * time.Hour)
		token = s.do(token, "POST", "/api/refresh", "").want(t, 200, "").field("refresh_token")
	}
	s.clock.add(720 * time.Hour)
	s.do(token, "POST", "/api/refresh", "").want(t, 401, "expired_token")
	if _, err := s.store.sweep(t.Context(), 0, s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	s.do(token, "POST", "/api/refresh", "").want(t, 401, "session_ended")
}

// The token before the live one is answered with the live one, for 10 s.
func TestRefreshGrace(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	_, first := s.pair("ann")
	a := s.do(first, "POST", "/api/refresh", "").want(t, 200, "")
	s.clock.add(10 * time.Second)
	b := s.do(first, "POST", "/api/refresh", "").want(t, 200, "")
	if a.field("refresh_token") != b.field("refresh_token") {
		t.Error("two successors of one token")
	}
	s.do(b.field("access_token"), "GET", path, "").want(t, 200, "")
	s.do(b.field("refresh_token"), "POST", "/api/refresh", "").want(t, 200, "")
}

func TestRefreshReuseEndsTheSession(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		claim string
		steal func(s *service, first, second string) (stolen string)
	}{
		{"the token before the live one, after its grace", func(s *service, first, second string) string {
			s.clock.add(11 * time.Second)
			return first
		}},
		{"an older token, within seconds", func(s *service, first, second string) string {
			s.do(second, "POST", "/api/refresh", "").want(s.t, 200, "")
			return first
		}},
	} {
		t.Run(test.claim, func(t *testing.T) {
			s := newService(t)
			path, _ := s.register("ann")
			_, first := s.pair("ann")
			r := s.do(first, "POST", "/api/refresh", "").want(t, 200, "")
			second := r.field("refresh_token")
			stolen := test.steal(s, first, second)
			book := s.keepLog()
			refused := s.do(stolen, "POST", "/api/refresh", "").want(t, 401, "reused_token")
			if h := refused.header.Get("WWW-Authenticate"); h != `Bearer error="invalid_token"` {
				t.Errorf("challenged with %s", h)
			}
			if warned := book.records(t, slog.LevelWarn); len(warned) != 1 || warned[0]["code"] != "reused_token" || warned[0]["user"] != 1.0 {
				t.Errorf("warned of %v", warned)
			}
			s.do(second, "POST", "/api/refresh", "").want(t, 401, "session_ended")
			s.do(r.field("access_token"), "GET", path, "").want(t, 401, "session_ended")
		})
	}
}

// Whoever does not hold a token that userd wrote ends nobody's session.
func TestRefreshForgeries(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	access, token := s.pair("ann")
	live := s.do(token, "POST", "/api/refresh", "").want(t, 200, "").field("refresh_token")
	s.clock.add(time.Minute)

	parts := strings.Split(token, ".")
	zero := base64.RawURLEncoding.EncodeToString(make([]byte, sha256.Size))
	last := token[len(token)-1]
	otherKey := (&refresher{make([]byte, sha256.Size)}).format(&refreshToken{session: 1})
	for claim, forged := range map[string]string{
		"an access token":                    access,
		"the old token without its tag":      strings.Join(parts[:3], "."),
		"a word":                             "x",
		"two parts":                          strings.Join(parts[:2], "."),
		"another tag":                        strings.Join(parts[:3], ".") + "." + zero,
		"another secret":                     parts[0] + "." + parts[1] + "." + zero + "." + parts[3],
		"another generation":                 parts[0] + ".1." + parts[2] + "." + parts[3],
		"another session":                    "2." + parts[1] + "." + parts[2] + "." + parts[3],
		"another spelling of the session":    "01." + parts[1] + "." + parts[2] + "." + parts[3],
		"another spelling of the generation": parts[0] + ".00." + parts[2] + "." + parts[3],
		"a negative generation":              parts[0] + ".-1." + parts[2] + "." + parts[3],
		"other trailing bits":                token[:len(token)-1] + string(last+1),
		"a fifth part":                       token + ".x",
		"a tag under another key":            otherKey,
		"a very long token":                  token + strings.Repeat("A", maxToken),
	} {
		if r := s.do(forged, "POST", "/api/refresh", ""); r.status != 401 || r.field("code") != "invalid_token" {
			t.Errorf("%s: %d %s", claim, r.status, r.body)
		}
	}
	s.do(live, "POST", "/api/refresh", "").want(t, 200, "")
}

// A token of a generation that the database has not given out, as after going
// back to an older copy, is refused and ends nothing.
func TestRefreshFromTheFuture(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	presented, err := s.refresher.parse(token)
	if err != nil {
		t.Fatal(err)
	}
	second := s.refresher.next(s.refresher.next(presented))
	s.do(s.refresher.format(&second), "POST", "/api/refresh", "").want(t, 401, "invalid_token")
	other := presented
	other.secret[0] ^= 1
	s.do(s.refresher.format(&other), "POST", "/api/refresh", "").want(t, 401, "invalid_token")
	s.do(token, "POST", "/api/refresh", "").want(t, 200, "")
}

// Of many parallel refreshes each is answered, all with the one successor.
func TestParallelRefresh(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	for range 5 {
		var wg sync.WaitGroup
		got := make([]string, 16)
		for i := range got {
			wg.Go(func() { got[i] = s.do(token, "POST", "/api/refresh", "").want(t, 200, "").field("refresh_token") })
		}
		wg.Wait()
		for _, g := range got {
			if g != got[0] {
				t.Fatal("two successors of one token")
			}
		}
		token = got[0]
	}
	if n := count(t, s, "session"); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// What the database keeps of a refresh token is no refresh token.
func TestRefreshTokenIsNotInTheDatabase(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	x, err := s.store.session(1)
	if err != nil {
		t.Fatal(err)
	}
	presented, _ := s.refresher.parse(token)
	if want := sha256.Sum256(presented.secret[:]); string(x.refreshHash) != string(want[:]) {
		t.Errorf("the database keeps %x", x.refreshHash)
	}
}

func TestRefreshEndsWithTheSession(t *testing.T) {
	t.Parallel()
	for claim, end := range map[string]func(s *service, access, root string){
		"logout":   func(s *service, access, root string) { s.do(access, "POST", "/api/logout", "").want(s.t, 204, "") },
		"deletion": func(s *service, access, root string) { s.do(access, "DELETE", "/api/users/me", "").want(s.t, 200, "") },
		"disabling": func(s *service, access, root string) {
			s.do(root, "PUT", "/api/users/1", `{"disabled":true}`).want(s.t, 200, "")
		},
		"a reset password": func(s *service, access, root string) {
			s.do(root, "PUT", "/api/users/1", `{"password":"set by the admin"}`).want(s.t, 200, "")
		},
	} {
		t.Run(claim, func(t *testing.T) {
			s := newService(t)
			s.register("ann")
			_, root := s.admin("root")
			access, token := s.pair("ann")
			end(s, access, root)
			s.do(token, "POST", "/api/refresh", "").want(t, 401, "session_ended")
		})
	}
}

func TestSessionList(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	s.admin("root")
	login := func(agent string) reply {
		return s.do("", "POST", "/api/login", `{"username":"ann","password":"correct horse battery"}`, "User-Agent: "+agent).want(t, 200, "")
	}
	one := login("first\tagent").field("access_token")
	s.clock.add(time.Hour)
	two := login(strings.Repeat("x", 300)).field("access_token")
	root := s.login("root")

	list := s.do(two, "GET", path+"/sessions", "").want(t, 200, "")
	if want := `{"id":2,"created_at":"2026-05-04T03:02:01Z","last_used_at":"2026-05-04T03:02:01Z","address":"127.0.0.1",` +
		`"user_agent":"first\tagent","expires_at":"2026-06-03T03:02:01Z","current":false}`; !strings.HasPrefix(list.body, "["+want) {
		t.Errorf("got %s\nwant %s", list.body, want)
	}
	if got := fmt.Sprint(list.list(t, "current")); got != "[false true]" {
		t.Errorf("current: %s", got)
	}
	if agents := list.list(t, "user_agent"); len(agents[1]) != 256 {
		t.Errorf("a User-Agent of %d bytes was kept", len(agents[1]))
	}
	if got := fmt.Sprint(s.do(root, "GET", path+"/sessions", "").list(t, "id")); got != "[2 3]" {
		t.Errorf("an admin sees %s", got)
	}
	s.do(root, "GET", "/api/users/999/sessions", "").want(t, 404, "user_not_found")

	s.do(two, "DELETE", path+"/sessions/2", "").want(t, 204, "")
	s.do(one, "GET", path, "").want(t, 401, "")
	s.do(two, "DELETE", path+"/sessions/2", "").want(t, 404, "session_not_found")
	s.do(two, "DELETE", path+"/sessions/4", "").want(t, 404, "session_not_found") // root's
	s.do(two, "DELETE", path+"/sessions/x", "").want(t, 404, "session_not_found")
	s.do(root, "GET", "/api/users/me", "").want(t, 200, "")
	s.do(root, "DELETE", path+"/sessions", "").want(t, 204, "")
	s.do(two, "GET", path, "").want(t, 401, "session_ended")
	s.do(root, "DELETE", path+"/sessions", "").want(t, 204, "") // none left
	s.do(root, "DELETE", "/api/users/999/sessions", "").want(t, 404, "user_not_found")
}

func TestLastUsedIsWrittenOnceAMinute(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	used := func() int64 {
		// The note is queued behind nothing: a write that waits sees it done.
		if err := s.store.write(t.Context(), statement{query: `UPDATE counter SET user_id = user_id`}); err != nil {
			t.Fatal(err)
		}
		x, err := s.store.session(1)
		if err != nil {
			t.Fatal(err)
		}
		return x.lastUsedAt - x.createdAt
	}
	for _, step := range []struct{ after, want int64 }{{0, 0}, {59, 0}, {60, 60}, {70, 60}, {119, 60}, {121, 121}} {
		s.clock.add(time.Duration(step.after)*time.Second - s.clock.wall().Sub(time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)))
		s.do(token, "GET", path, "").want(t, 200, "")
		if got := used(); got != step.want {
			t.Errorf("used after %d s: noted is %d", step.after, got)
		}
	}
}

func TestLastLoginShowsToSelfAndAdmin(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	_, root := s.admin("root")
	if got := s.do(root, "GET", path, "").field("last_login_at"); got != "" {
		t.Errorf("before any login: %s", got)
	}
	s.clock.add(time.Hour)
	r := s.do(s.login("ann"), "GET", path, "")
	if got := r.field("last_login_at"); got != "2026-05-04T04:02:01Z" || r.header.Get("ETag") != `"1"` {
		t.Errorf("after a login: %s, %s", got, r.header.Get("ETag"))
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	now := s.clock.wall().Unix()
	for i := range 2*sweepSize + 10 {
		expires := now
		if i%2 == 0 {
			expires++
		}
		err := s.store.write(t.Context(), statement{
			query: `INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent) VALUES (1, 1, 1, @expires, '', '')`,
			args:  args{"expires": expires},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var after int64
	for round := range 4 {
		var err error
		if after, err = s.store.sweep(t.Context(), after, now); err != nil {
			t.Fatal(err)
		}
		if done := after == 0; done != (round == 2) {
			t.Fatalf("sweep %d goes on at %d", round, after)
		}
		if after == 0 {
			break
		}
	}
	if n := count(t, s, "session"); n != sweepSize+5 {
		t.Errorf("%d sessions are left", n)
	}
}

// count returns how many rows a table has.
func count(t *testing.T, s *service, table string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(s.path, "mode=ro"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, old := s.member("ann")
	if err := s.store.rotateKey(t.Context(), randomKey(), s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	s.do(old, "GET", path, "").want(t, 200, "")
	renewed := s.login("ann") // by the key that another process made
	if header(old) == header(renewed) {
		t.Error("the old key still signs")
	}
	s.do(renewed, "GET", path, "").want(t, 200, "")

	// When the last token that the old key can have signed is dead, so is the key:
	// whoever stole it can sign as they like.
	c, err := s.keys.verify(old, s.clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	stolen := s.keys.byHeader[header(old)]
	s.clock.add(15*time.Minute - time.Second)
	c.expires = s.clock.wall().Add(time.Hour).Unix()
	s.do(stolen.sign(c), "GET", path, "").want(t, 200, "")
	s.clock.add(time.Second)
	s.do(stolen.sign(c), "GET", path, "").want(t, 401, "invalid_token")
	if _, err := s.store.sweep(t.Context(), 0, s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s, "signing_key"); n != 1 {
		t.Errorf("%d keys are left", n)
	}
	fresh := newKeyring(s.store.keySecret)
	if _, err := fresh.verify(stolen.sign(c), s.clock.wall().Unix()); err == nil {
		t.Error("a key that is gone verifies")
	}
}

func header(token string) string {
	h, _, _ := strings.Cut(token, ".")
	return h
}

// The configured key signs with PyJWT's own header; the one before it still
// verifies, and so do the database's.
func TestConfiguredKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, fromDatabase := s.member("ann")
	use := func(secret, previous string) {
		t.Helper()
		keys, err := loadKeys(t.Context(), s.store, &config{settings: s.settings, secret: []byte(secret), previousSecret: []byte(previous)}, s.clock.wall().Unix())
		if err != nil {
			t.Fatal(err)
		}
		s.keys = keys
	}
	use("first-secret-first-secret-first-secret", "")
	first := s.login("ann")
	if header(first) != "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" {
		t.Errorf("the header is %s", header(first))
	}
	s.do(fromDatabase, "GET", path, "").want(t, 200, "")
	use("second-secret-second-secret-second-secret", "first-secret-first-secret-first-secret")
	second := s.login("ann")
	s.do(first, "GET", path, "").want(t, 200, "")
	s.do(second, "GET", path, "").want(t, 200, "")
	use("second-secret-second-secret-second-secret", "")
	s.do(first, "GET", path, "").want(t, 401, "invalid_token")
	s.do(second, "GET", path, "").want(t, 200, "")
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	r := s.do(token, "GET", "/api/verify", "").want(t, 200, "")
	if strings.TrimSpace(r.body) != `{"id":1,"username":"ann","role":"member"}` ||
		r.header.Get("X-User-Id") != "1" || r.header.Get("X-User-Name") != "ann" || r.header.Get("X-User-Role") != "member" {
		t.Errorf("got %v %s", r.header, r.body)
	}
	refused := s.do("", "GET", "/api/verify", "").want(t, 401, "missing_token")
	if refused.header.Get("X-User-Id") != "" {
		t.Error("a refusal names a user")
	}
}
