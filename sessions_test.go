package main

import (
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/passhash"
	"userd/internal/refresh"
	"userd/internal/sqlitefile"
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

// A refreshed session continues; a session that is not refreshed ends.
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
	s.scrape().want(t, samples{"userd_refresh_grace_total": 1})
	s.do(b.field("refresh_token"), "POST", "/api/refresh", "").want(t, 200, "")
}

// The grace is only for the client that lost an answer.
func TestTheGraceIsForTheSameClient(t *testing.T) {
	t.Parallel()
	const ann, near, thief = "X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 192.0.2.200", "X-Forwarded-For: 198.51.100.7"
	const agent, other = "User-Agent: app/1", "User-Agent: app/2"
	for _, test := range []struct {
		claim   string
		after   time.Duration // of the wall clock
		headers []string
		used    int // graces before
		status  int
	}{
		{"the same client", time.Second, []string{ann, agent}, 0, 200},
		{"in the same moment", 0, []string{ann, agent}, 0, 200},
		{"another address of the network", time.Second, []string{near, agent}, 0, 200},
		{"the third time", time.Second, []string{ann, agent}, 2, 200},
		{"the fourth time", time.Second, []string{ann, agent}, 3, 401},
		{"another network", time.Second, []string{thief, agent}, 0, 401},
		{"another User-Agent", time.Second, []string{ann, other}, 0, 401},
		{"after 11 seconds", 11 * time.Second, []string{ann, agent}, 0, 401},
		{"after the clock was set back by a second", -time.Second, []string{ann, agent}, 0, 401},
		{"after the clock was set back by four hours", -4 * time.Hour, []string{ann, agent}, 0, 401},
		{"after the clock was set back by 31 days", -31 * 24 * time.Hour, []string{ann, agent}, 0, 401},
	} {
		t.Run(test.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t, proxied)
			s.register("ann")
			_, first := s.pair("ann")
			r := s.do(first, "POST", "/api/refresh", "", ann, agent).want(t, 200, "")
			for range test.used {
				s.do(first, "POST", "/api/refresh", "", ann, agent).want(t, 200, "")
			}
			s.clock.set(s.clock.wall().Add(test.after))
			got := s.do(first, "POST", "/api/refresh", "", test.headers...).want(t, test.status, "")
			if test.status == 200 {
				// The next rotation has its own grace.
				second := got.field("refresh_token")
				for range 1 + maxGraceUses {
					s.do(second, "POST", "/api/refresh", "", ann, agent).want(t, 200, "")
				}
				return
			}
			got.want(t, 401, "reused_token")
			s.do(r.field("refresh_token"), "POST", "/api/refresh", "", ann, agent).want(t, 401, "session_ended")
			if n := scanStore[int](t, s, "SELECT count(*) FROM event WHERE type = 'token_reused'"); n != 1 {
				t.Errorf("%d events", n)
			}
		})
	}
}

// A session lives at most SESSION_LIFETIME, however often it is refreshed.
func TestSessionLifetime(t *testing.T) {
	t.Parallel()
	life := func(d time.Duration) func(*settings) { return func(c *settings) { c.sessionLife = d } }
	t.Run("it ends", func(t *testing.T) {
		s := newService(t, life(1000*time.Hour))
		path, _ := s.register("ann")
		_, token := s.pair("ann")
		var access string
		for _, step := range []time.Duration{700 * time.Hour, 299 * time.Hour, 59 * time.Minute} {
			s.clock.add(step)
			r := s.do(token, "POST", "/api/refresh", "").want(t, 200, "")
			token, access = r.field("refresh_token"), r.field("access_token")
		}
		if ends := s.do(access, "GET", path+"/sessions", "").list(t, "expires_at"); ends[0] != "2026-06-14T19:02:01Z" {
			t.Errorf("the session ends at %s", ends)
		}
		s.clock.add(time.Minute)
		s.do(access, "GET", path, "").want(t, 401, "session_ended")
		s.do(token, "POST", "/api/refresh", "").want(t, 401, "expired_token")
	})
	t.Run("a changed password does not extend it", func(t *testing.T) {
		s := newService(t, life(time.Hour))
		path, token := s.member("ann")
		s.clock.add(10 * time.Minute)
		r := s.do(token, "PUT", path, `{"password":"another long one"}`).want(t, 200, "")
		s.clock.add(50 * time.Minute)
		s.do(r.field("refresh_token"), "POST", "/api/refresh", "").want(t, 401, "expired_token")
	})
	t.Run("a login has it too", func(t *testing.T) {
		s := newService(t, life(time.Minute))
		path, token := s.member("ann")
		s.clock.add(time.Minute)
		s.do(token, "GET", path, "").want(t, 401, "session_ended")
	})
	t.Run("made shorter, it ends sessions at their refresh", func(t *testing.T) {
		s := newService(t, life(0))
		s.register("ann")
		_, token := s.pair("ann")
		for range 20 { // there is no limit
			s.clock.add(700 * time.Hour)
			token = s.do(token, "POST", "/api/refresh", "").want(t, 200, "").field("refresh_token")
		}
		s.settings.sessionLife = 1000 * time.Hour
		s.do(token, "POST", "/api/refresh", "").want(t, 401, "expired_token")
	})
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

// A client without a token that userd wrote cannot end a session.
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
	otherKey := make(refresh.Key, sha256.Size).Format(&refresh.Token{Session: 1})
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

// userd refuses a token of a generation that the database never issued, as after the
// restore of an older copy. The token ends no session.
func TestRefreshFromTheFuture(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	key, presented := s.refreshKey(), s.parseRefresh(token)
	second := key.Next(key.Next(presented))
	s.do(key.Format(&second), "POST", "/api/refresh", "").want(t, 401, "invalid_token")
	other := presented
	other.Secret[0] ^= 1
	s.do(key.Format(&other), "POST", "/api/refresh", "").want(t, 401, "invalid_token")
	s.do(token, "POST", "/api/refresh", "").want(t, 200, "")
}

// A restored backup may hold an older state of a session than its newest tokens, which a
// later change of the password could not end.
func TestATokenNewerThanItsSessionIsRefused(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, _ := s.register("ann")
	_, refresh := s.pair("ann")
	newer := s.do(refresh, "POST", "/api/refresh", "").want(t, 200, "").field("access_token")
	s.do(newer, "GET", path, "").want(t, 200, "")
	runSQL(t, another(t, s.path), `UPDATE session SET generation = generation - 1`)
	s.do(newer, "GET", path, "").want(t, 401, "session_ended")
}

// Of a few parallel refreshes each is answered, all with the one successor.
func TestParallelRefresh(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	for range 5 {
		var wg sync.WaitGroup
		got := make([]string, 1+maxGraceUses)
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

// The values that the database stores about a refresh token do not work as one.
func TestRefreshTokenIsNotInTheDatabase(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	x, err := s.store.session(1)
	if err != nil {
		t.Fatal(err)
	}
	secret := s.parseRefresh(token).Secret
	if want := sha256.Sum256(secret[:]); string(x.refreshHash) != string(want[:]) {
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
	s.change(`UPDATE session SET expires_at = @now WHERE id = 2`, arg{"now", s.wall().Unix()})
	if got := fmt.Sprint(s.do(root, "GET", path+"/sessions", "").list(t, "id")); got != "[3]" {
		t.Errorf("when a session has expired, the list is %s", got)
	}

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
	s.member("bob")
	used := func() int64 {
		// The note is queued behind nothing: a write that waits sees it done.
		if err := s.store.write(t.Context(), statement{Query: `UPDATE counter SET user_id = user_id`}); err != nil {
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
	s.store.touch(1, s.wall().Unix()+59) // of a request that read the row before the last note
	if got := used(); got != 121 {
		t.Errorf("used twice in a minute: noted is %d", got)
	}
	if bob, err := s.store.session(2); err != nil || bob.lastUsedAt != bob.createdAt {
		t.Errorf("the unused session is %+v, %v", bob, err)
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
			Query: `INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent) VALUES (1, 1, 1, @expires, '', '')`,
			Args:  args{{"expires", expires}},
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
	db, err := sql.Open("sqlite", sqlitefile.DSN(s.path, "mode=ro"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
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

// A proxy would drop an empty header, or pass on the one that the client sent.
func TestVerifyRefusesAnAdoptedUserWithoutAName(t *testing.T) {
	t.Parallel()
	path := flaskDatabase(t,
		`UPDATE user SET username = '', email = '-bob@example.com' WHERE id = 2`)
	(&shell{t, path}).run(0, "", "adopt")
	s := newServiceOn(t, path)
	bob := s.do("", "POST", "/api/login", `{"username":"-bob@example.com","password":"`+goodPassword+`"}`).want(t, 200, "").field("access_token")
	r := s.do(bob, "GET", "/api/verify", "").want(t, 403, "forbidden")
	for name := range r.header {
		if strings.HasPrefix(name, "X-User-") {
			t.Errorf("the refusal has %s", name)
		}
	}
	// The adopted address stays, and hinders no other change.
	fetched := s.do(bob, "GET", "/api/users/me", "").body
	s.do(bob, "PUT", "/api/users/me", fetched).want(t, 200, "")
	s.do(bob, "PATCH", "/api/users/me", `{"email":"=bob@example.com"}`).want(t, 400, "invalid_fields")
	s.do(bob, "PATCH", "/api/users/me", `{"username":"bob"}`).want(t, 200, "")
	if got := s.do(bob, "GET", "/api/verify", "").want(t, 200, "").header.Get("X-User-Name"); got != "bob" {
		t.Errorf("X-User-Name: %s", got)
	}
}

func TestLoginAcceptsNameOrAddressInAnyCase(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("Ann")
	for _, name := range []string{"Ann", "ANN", "ann@example.com", "aNN@EXAMPLE.com"} {
		s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)).want(t, 200, "")
	}
	for _, name := range []string{"an", "An n", "ann@example", "%", "A_n"} {
		s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)).want(t, 401, "invalid_credentials")
	}
	for _, password := range []string{goodPassword + " ", goodPassword[1:], strings.ToUpper(goodPassword), strings.Repeat("x", 2000)} {
		s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":%q}`, password)).want(t, 401, "invalid_credentials")
	}
}

// An older, cheaper hash is replaced by the login that proves it.
func TestLoginReplacesAWeakHash(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	before, err := s.store.credentials(1)
	if err != nil {
		t.Fatal(err)
	}
	s.hasher = passhash.New(passhash.Cost{Memory: 16, Passes: 2, Threads: 1})
	s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "")
	if c, _ := s.store.credentials(1); c != before {
		t.Error("a wrong password replaced the hash")
	}
	token := s.login("ann")
	after, _ := s.store.credentials(1)
	if after == before || !strings.Contains(after.hash, "m=16,t=2,p=1") {
		t.Errorf("the hash is %s", after.hash)
	}
	if tag := s.do(token, "GET", path, "").header.Get("ETag"); tag != `"1"` {
		t.Errorf("a new hash moved the version to %s", tag)
	}
	s.login("ann")
	if again, _ := s.store.credentials(1); again != after {
		t.Error("a good hash was replaced")
	}
}

func TestDisabledUser(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	_, root := s.admin("root")
	s.do(root, "PATCH", path, `{"disabled":true}`).want(t, 200, "")
	s.do(token, "GET", path, "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"correct horse battery"}`).want(t, 403, "user_disabled")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "invalid_credentials")
	s.do(root, "PATCH", path, `{"disabled":false}`).want(t, 200, "")
	s.do(token, "GET", path, "").want(t, 401, "session_ended")
	s.do(s.login("ann"), "GET", path, "").want(t, 200, "")
}

// userd ends the sessions of a user that it disables. Another program may only disable the user: its
// sessions are then refused, but not deleted as if their refresh tokens were stolen.
func TestAUserThatAnotherProgramDisabledHasNoSession(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	s.register("bob")
	access, token := s.pair("ann")
	s.change(`UPDATE user SET disabled = 1 WHERE id = 1`)
	s.do(access, "GET", path, "").want(t, 401, "session_ended")
	s.do(token, "POST", "/api/refresh", "").want(t, 401, "session_ended")
	s.change(`UPDATE user SET disabled = 0`)
	s.do(access, "GET", path, "").want(t, 200, "")
	s.do(token, "POST", "/api/refresh", "").want(t, 200, "")
}

func TestLogout(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, one := s.member("ann")
	two, three := s.login("ann"), s.login("ann")
	_, other := s.member("bob")

	if r := s.do(one, "POST", "/api/logout", "").want(t, 204, ""); r.body != "" {
		t.Errorf("204 with the body %q", r.body)
	}
	s.do(one, "GET", path, "").want(t, 401, "session_ended")
	s.do(one, "POST", "/api/logout", "").want(t, 401, "session_ended")
	s.do(two, "GET", path, "").want(t, 200, "")
	s.do(two, "POST", "/api/logout?all=maybe", "").want(t, 400, "bad_parameter")
	s.do(two, "POST", "/api/logout?all=true", "{}").want(t, 204, "")
	s.do(two, "GET", path, "").want(t, 401, "session_ended")
	s.do(three, "GET", path, "").want(t, 401, "session_ended")
	s.do(other, "GET", "/api/users/me", "").want(t, 200, "")
}

// A foreignHash is a hash that another program made.
type foreignHash struct{ format, password, hash string }

// foreignHashes reads the hashes that passhash's own tests verify.
func foreignHashes(t *testing.T) (list []foreignHash) {
	t.Helper()
	data, err := os.ReadFile("internal/passhash/testdata/foreign.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(strings.TrimSpace(line), "\t"); len(fields) == 3 {
			list = append(list, foreignHash{fields[0], fields[1], fields[2]})
		}
	}
	return list
}

func TestAClientThatHangsUpLeavesTheQueue(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	defer s.occupyHasher()()
	for _, row := range []struct{ name, token, method, path, body string }{
		{"login", "", "POST", "/api/login", `{"username":"ann","password":"` + goodPassword + `"}`},
		{"registration", "", "POST", "/api/register", registerBody("bob", goodPassword)},
		{"a new password", token, "PUT", "/api/users/me", `{"password":"another good password"}`},
		{"the current password", token, "DELETE", "/api/users/me", `{"current_password":"` + goodPassword + `"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			wait := func(n int) {
				await(t, fmt.Sprintf("%d calls wait", n), func() bool { return s.hasher.Stats().Waiting == n })
			}
			for try := 1; ; try++ {
				refused := s.hasher.Stats().Refused
				conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: userd\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
					row.method, row.path, row.token, len(row.body), row.body)
				wait(1)
				conn.Close()
				wait(0)
				if s.hasher.Stats().Refused == refused {
					break
				}
				if try == 3 { // on a busy machine, the call can have waited too long before
					t.Errorf("it stayed for %v", passhash.MaxWait)
					break
				}
			}
		})
	}
}

// With a full queue, any answer but 503 would show that nothing was hashed.
func TestFullQueueIs503(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	defer s.occupyHasher()()
	for _, row := range []struct{ name, token, method, path, body string }{
		{"login with the right password", "", "POST", "/api/login", `{"username":"ann","password":"` + goodPassword + `"}`},
		{"login with a wrong password", "", "POST", "/api/login", `{"username":"ann","password":"wrong"}`},
		{"login with an unknown name", "", "POST", "/api/login", `{"username":"nobody","password":"wrong"}`},
		{"registration", "", "POST", "/api/register", `{"username":"bob","email":"bob@example.com","password":"` + goodPassword + `"}`},
		{"a new password", token, "PUT", path, `{"password":"another good password"}`},
		{"the current password", token, "DELETE", path, `{"current_password":"` + goodPassword + `"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			for try := 1; ; try++ {
				disperse := s.crowdHasher("127.0.0.0/24")
				start := time.Now()
				r := s.do(row.token, row.method, row.path, row.body).want(t, 503, "busy")
				waited := time.Since(start)
				disperse()
				if got := r.header.Get("Retry-After"); got != "1" {
					t.Errorf("Retry-After: %q", got)
				}
				if waited < passhash.MaxWait {
					break
				}
				if try == 3 { // on a busy machine, the crowd can have left before
					t.Errorf("refused after %v, want immediately: it does not count as of the crowd's network", waited)
					break
				}
			}
		})
	}
	s.do(token, "GET", path, "").want(t, 200, "")
}

// A login replaces a foreign hash, and the next login still works.
func TestForeignHashesAreReplaced(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	for _, foreign := range foreignHashes(t) {
		if err := s.store.write(t.Context(), statement{Query: `UPDATE user SET password_hash = @hash`, Args: args{{"hash", foreign.hash}}}); err != nil {
			t.Fatal(err)
		}
		body := `{"username":"ann","password":"` + foreign.password + `"}`
		s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "invalid_credentials")
		s.do("", "POST", "/api/login", body).want(t, 200, "")
		if c, _ := s.store.credentials(1); s.hasher.Stale(c.hash) {
			t.Errorf("%s: still %s", foreign.format, c.hash)
		}
		s.do("", "POST", "/api/login", body).want(t, 200, "")
	}
}
