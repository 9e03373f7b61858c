package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/refresh"
	"userd/internal/throttle"
)

// proxied makes a service believe X-Forwarded-For, so that a test can come from anywhere.
func proxied(c *settings) { c.trustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} }

// tryLogin logs in from an address.
func (s *service) tryLogin(from, name, password string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, password), "X-Forwarded-For: "+from)
}

// wantWait fails the test unless the reply says to wait so many seconds.
func (r reply) wantWait(t *testing.T, seconds int) {
	t.Helper()
	r.want(t, 429, "too_many_requests")
	if got := r.header.Get("Retry-After"); got != strconv.Itoa(seconds) {
		t.Fatalf("Retry-After: %s, want %d", got, seconds)
	}
}

const wrongPassword = "wrong horse battery"

// An address in the network of a test that needs only one, and one in another.
const (
	homeNet  = "192.0.2.7"
	otherNet = "198.51.100.7"
)

func TestGuessingTakesLongerAndLonger(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ann", "nobody"} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, proxied)
			s.register("ann")
			for range freeFailures {
				s.tryLogin(homeNet, name, wrongPassword).want(t, 401, "invalid_credentials")
			}
			for _, delay := range []int{2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900} {
				s.tryLogin(homeNet, name, wrongPassword).wantWait(t, delay)
				s.clock.add(time.Duration(delay)*time.Second - time.Millisecond)
				s.tryLogin(homeNet, name, wrongPassword).wantWait(t, 1) // a refused try does not count
				s.clock.add(time.Millisecond)
				s.tryLogin(homeNet, name, wrongPassword).want(t, 401, "invalid_credentials")
			}
		})
	}
}

// Otherwise setting the clock back would lock users out, and setting it forward
// would end their delays.
func TestAStepOfTheWallClockChangesNoLimit(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	for range freeFailures {
		s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
	}
	noon := s.wall()
	for _, step := range []time.Duration{-24 * time.Hour, 0, 24 * time.Hour} {
		s.clock.set(noon.Add(step))
		s.tryLogin(homeNet, "ann", wrongPassword).wantWait(t, 2)
	}
	s.clock.add(2 * time.Second)
	s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
}

func TestARightPasswordIsRefusedWhileGuessesAre(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	for range freeFailures {
		s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
	}
	s.tryLogin(homeNet, "ann", goodPassword).wantWait(t, 2)
	s.clock.add(2 * time.Second)
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
	for range freeFailures { // the successful login has reset the count
		s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
	}
	s.tryLogin(homeNet, "ann", goodPassword).wantWait(t, 2)
}

func TestFailuresAreForgotten(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	for range freeFailures - 1 {
		s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
	}
	s.clock.add((freeFailures - 1) * forgiveness)
	s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
}

func TestEachSpellingOfAUserCountsAsTheUser(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("Ann")
	for _, name := range []string{"Ann", "ann", "ANN", "ann@example.com", "Ann@Example.COM"} {
		s.tryLogin(homeNet, name, wrongPassword).want(t, 401, "")
	}
	s.tryLogin(homeNet, "ann", wrongPassword).wantWait(t, 2)

	for _, name := range []string{"nobody", "Nobody", "NOBODY", " nobody ", "noBody"} {
		s.tryLogin(homeNet, name, wrongPassword).want(t, 401, "")
	}
	s.tryLogin(homeNet, "nobody", wrongPassword).wantWait(t, 2)
	s.tryLogin(homeNet, "somebody", wrongPassword).want(t, 401, "")

	// A letter that only Unicode folds to an ASCII letter makes another name, whether
	// the user exists or not.
	s.register("kate")
	for _, name := range []string{"kate", "kim"} {
		for range freeFailures {
			s.tryLogin(otherNet, name, wrongPassword).want(t, 401, "")
		}
		s.tryLogin(otherNet, "\u212a"+name[1:], wrongPassword).want(t, 401, "")
	}
}

func TestAWrongCurrentPasswordCounts(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	for i := range freeFailures {
		switch i % 3 {
		case 0:
			s.do(token, "PUT", path, `{"email":"new@example.com","current_password":"`+wrongPassword+`"}`).want(t, 401, "wrong_password")
		case 1:
			s.do(token, "DELETE", path, `{"current_password":"`+wrongPassword+`"}`).want(t, 401, "wrong_password")
		case 2:
			s.do("", "POST", "/api/login", `{"username":"ann","password":"`+wrongPassword+`"}`).want(t, 401, "invalid_credentials")
		}
	}
	s.do(token, "PUT", path, `{"email":"new@example.com","current_password":"`+goodPassword+`"}`).wantWait(t, 2)
	s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).wantWait(t, 2)
}

// Otherwise a client with an IPv6 /48 would have 65,536 times each allowance.
func TestAWideNetworkHasOneAllowance(t *testing.T) {
	t.Parallel()
	for limit := networkFailures; limit < limitCount; limit++ {
		s := &server{settings: settings{}, limiter: newLimiter(), mono: func() time.Duration { return time.Hour }}
		burst := s.limiter.allowances[limit].Burst
		var id int64 // of another user each time
		ask := func(address string) error {
			id++
			return s.allow(&exchange{address: address, who: principal{user: user{id: id}}}, limit)
		}
		fill := func(format string, times int) {
			t.Helper()
			for i := range times * burst {
				if err := ask(fmt.Sprintf(format, i%(8*times))); err != nil {
					t.Fatalf("limit %d: request %d: %v", limit, i, err)
				}
			}
		}
		refuse := func(address string) {
			t.Helper()
			if ask(address) == nil {
				t.Fatalf("limit %d does not refuse %s", limit, address)
			}
		}
		fill("2001:db8:1:0%02x::1", 4)
		refuse("2001:db8:1:ff::1")
		for i := 1; i < 4; i++ {
			fill(fmt.Sprintf("2001:db8:1:%d%%02x::1", i), 4)
		}
		refuse("2001:db8:1:8888::1")
		if err := errors.Join(ask("2001:db8:2::1"), ask("192.0.2.1"), ask("a name")); err != nil {
			t.Errorf("limit %d: another network: %v", limit, err)
		}
	}
}

func TestAStrangerDoesNotLockAUserOutOfHerNetwork(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		home func(s *service) // makes her network known
	}{
		{"after a login and a logout", func(s *service) {
			token := s.tryLogin(homeNet, "ann", goodPassword).want(s.t, 200, "").field("access_token")
			s.do(token, "POST", "/api/logout", "").want(s.t, 204, "")
		}},
		{"by a session from before a restart", func(s *service) {
			s.tryLogin(homeNet, "ann", goodPassword).want(s.t, 200, "")
			s.limiter = newLimiter()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t, proxied)
			s.register("ann")
			row.home(s)
			// An attacker with so many networks that the user's allowance is used up.
			for i := range s.limiter.allowances[userFailures].Burst {
				s.tryLogin(fmt.Sprintf("10.0.%d.1", i), "ann", wrongPassword).want(t, 401, "")
			}
			s.tryLogin("10.1.0.1", "ann", wrongPassword).wantWait(t, 60)
			s.tryLogin("10.1.0.1", "ann", goodPassword).wantWait(t, 60)
			s.tryLogin("192.0.2.99", "ann", wrongPassword).want(t, 401, "") // in her network she can even mistype
			s.tryLogin("192.0.2.99", "ann", goodPassword).want(t, 200, "")
			s.tryLogin(otherNet, "ann", goodPassword).wantWait(t, 60)
			s.clock.add(time.Minute)
			s.tryLogin("10.1.0.1", "ann", wrongPassword).want(t, 401, "")
			s.tryLogin("10.1.0.2", "ann", wrongPassword).wantWait(t, 60)
		})
	}
}

// Otherwise each wrong password would cost a read of the sessions.
func TestAGuessReadsTheSessionsOnlyIfTheyDecide(t *testing.T) {
	t.Parallel()
	s := newService(t)
	if err := s.store.readers.Close(); err != nil {
		t.Fatal(err)
	}
	newGuess := func(id int64) (*guess, error) {
		return s.newGuess(&exchange{r: httptest.NewRequest("POST", "/api/login", nil), address: "192.0.2.1"}, id, "hash", "")
	}
	for range freeFailures {
		g, err := newGuess(1)
		if err != nil {
			t.Fatalf("a guess that no limit stops: %v", err)
		}
		if err := g.finish(false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newGuess(1); !errors.Is(err, errLimited) {
		t.Errorf("a guess that a delay stops: %v", err)
	}
	a := &s.limiter.allowances[networkFailures]
	for range a.Burst {
		a.Take(s.limiter.seed.Key(clientaddr.Network("192.0.2.1")), s.mono())
	}
	if _, err := newGuess(2); !errors.Is(err, errStorage) {
		t.Errorf("a guess that an allowance stops did not read the sessions: %v", err)
	}
}

// Otherwise the time of a 429 would show which names exist.
func TestALimitedNetworkLooksUpNoUser(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		limit limit
		wait  int // seconds
	}{{networkFailures, 6}, {passwords, 1}} {
		t.Run(fmt.Sprint(row.limit), func(t *testing.T) {
			s := newService(t, proxied)
			s.register("ann")
			s.register("bob")
			s.register("cleo")
			s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
			s.tryLogin(homeNet, "bob", goodPassword).want(t, 200, "")
			from := s.limiter.seed.Key(clientaddr.Network(homeNet))
			drain := func(limit limit) {
				a := &s.limiter.allowances[limit]
				for range a.Burst {
					a.Take(from, s.mono())
				}
			}
			drain(row.limit)
			if row.limit == networkFailures {
				t.Run("unless the user is known there", func(t *testing.T) {
					for _, name := range []string{"ann", "ANN ", "ann@example.com"} {
						s.tryLogin(homeNet, name, goodPassword).want(t, 200, "")
					}
				})
				t.Run("unless its sessions might show that it is", func(t *testing.T) {
					s.limiter.knownNames = throttle.Set{For: knownFor}
					s.limiter.known = throttle.Set{For: knownFor}
					s.tryLogin(homeNet, "bob", goodPassword).want(t, 200, "")
					s.tryLogin(homeNet, "cleo", goodPassword).wantWait(t, row.wait)
				})
				drain(lookups)
			}
			if err := s.store.readers.Close(); err != nil { // a read would be 503
				t.Fatal(err)
			}
			for _, name := range []string{"cleo", "cleo@example.com", "nobody"} {
				s.tryLogin(homeNet, name, goodPassword).wantWait(t, row.wait)
			}
		})
	}
}

// A network without failures left looks up the users that log in from there without a limit.
func TestALimitedNetworkLooksUpItsUsers(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	for _, limit := range []limit{networkFailures, lookups} {
		s.limiter.allowances[limit] = throttle.NewNest(throttle.Allowance{Name: "one", Burst: 1, Every: time.Hour}, wideFactors...)
	}
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
	s.tryLogin(homeNet, "nobody", wrongPassword).want(t, 401, "")
	for range 3 {
		s.tryLogin(homeNet, " ANN", goodPassword).want(t, 200, "")
	}
	s.tryLogin(homeNet, "nobody", wrongPassword).want(t, 429, "")
}

// Neither an outage nor a request of a route without a limit uses up what the clients of a network
// may do wrong.
func TestWhatDoesNotCountAsMalformed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, token := s.pair("ann")
	s.limiter.allowances[malformed] = throttle.NewNest(throttle.Allowance{Name: "one", Burst: 1, Every: time.Hour}, wideFactors...)
	s.keepLog()
	s.change(`ALTER TABLE secret RENAME TO gone`)
	for range 2 {
		s.do(token, "POST", "/api/refresh", "").want(t, 503, "unavailable")
		s.do("", "POST", "/api/login", "x").want(t, 400, "malformed_body")
	}
	s.do("", "POST", "/api/refresh", "").want(t, 401, "")
	s.do("", "POST", "/api/refresh", "").want(t, 429, "")
}

func TestOneNetworkTriesOnlySoManyUsers(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
	for i := range s.limiter.allowances[networkFailures].Burst {
		s.tryLogin(homeNet, fmt.Sprintf("user%d", i), wrongPassword).want(t, 401, "")
	}
	s.tryLogin(homeNet, "another", wrongPassword).wantWait(t, 6)
	s.tryLogin(otherNet, "another", wrongPassword).want(t, 401, "") // another network is not limited
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")       // and a user who is known here is not
	s.clock.add(6 * time.Second)
	s.tryLogin(homeNet, "another", wrongPassword).want(t, 401, "")
	s.tryLogin(homeNet, "another", wrongPassword).wantWait(t, 6)
}

func TestANewPasswordClearsTheFailures(t *testing.T) {
	t.Parallel()
	const next = "next horse battery"
	for _, row := range []struct {
		name  string
		reset func(s *service, path string)
	}{
		{"set by an admin", func(s *service, path string) {
			_, root := s.admin("root")
			s.do(root, "PUT", path, `{"password":"`+next+`"}`).want(s.t, 200, "")
		}},
		{"set from the command line", func(s *service, path string) {
			err := run(context.Background(), []string{"user", "passwd", "ann"}, getenvOf([]string{"DATABASE_URL=" + s.path}),
				strings.NewReader(next+"\n"), io.Discard, io.Discard)
			if err != nil {
				s.t.Fatal(err)
			}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t, proxied)
			path, _ := s.register("ann")
			for i := range s.limiter.allowances[userFailures].Burst {
				s.tryLogin(fmt.Sprintf("10.0.%d.1", i), "ann", wrongPassword).want(t, 401, "")
			}
			for range freeFailures { // the user's allowance refuses these, so they add no delay
				s.tryLogin(homeNet, "ann", wrongPassword).wantWait(t, 60)
			}
			row.reset(s, path)
			s.tryLogin(homeNet, "ann", next).want(t, 200, "")
			s.tryLogin("10.0.1.1", "ann", next).want(t, 200, "")
		})
	}
}

// Parallel requests all pass the first check, before any of them counts.
func TestGuessesInParallelAreNoMoreThanOneByOne(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	release := s.occupyHasher() // until all guesses wait for it
	const guesses = 30
	answers := make(chan reply, guesses)
	var wg sync.WaitGroup
	for range guesses {
		wg.Go(func() {
			answers <- insist(func() reply {
				return s.do("", "POST", "/api/login", `{"username":"ann","password":"`+wrongPassword+`"}`)
			})
		})
	}
	await(t, "all guesses wait", func() bool { return s.hasher.Stats().Waiting == guesses })
	release()
	wg.Wait()
	close(answers)
	count := make(map[int]int)
	for r := range answers {
		count[r.status]++
	}
	if count[401] != freeFailures || count[429] != guesses-freeFailures {
		t.Errorf("answered %v, want %d times 401 and otherwise 429", count, freeFailures)
	}
}

func TestManyRightLoginsAtOnce(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			insist(func() reply {
				return s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`)
			}).want(t, 200, "")
		})
	}
	wg.Wait()
}

func TestKnownAndUnknownNamesAreRefusedAlike(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	refused := func(name string) reply {
		for range freeFailures {
			s.tryLogin(homeNet, name, wrongPassword).want(t, 401, "")
		}
		r := s.tryLogin(homeNet, name, wrongPassword)
		r.wantWait(t, 2)
		r.header.Del("X-Request-Id")
		r.header.Del("Date")
		return r
	}
	ann, nobody := refused("ann"), refused("nobody")
	if fmt.Sprint(ann) != fmt.Sprint(nobody) {
		t.Errorf("a user: %v\nan unknown name: %v", ann, nobody)
	}
}

func TestANetworkIsLimitedInAll(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	_, token := s.member("bob")
	right := `{"username":"ann","password":"` + goodPassword + `"}`
	session := int64(1000)
	used := func() string { // a token of a session that has ended; its tag is right
		session++
		return `{"refresh_token":"` + s.refreshKey().Format(&refresh.Token{Session: session}) + `"}`
	}
	always := func(body string) func() string { return func() string { return body } }
	for _, row := range []struct {
		method, path string
		limit        limit
		body         func() string
		status       int
		code         string
	}{
		{"POST", "/api/register", registrations, always(`{"username":"ann","email":"x@example.com","password":"` + goodPassword + `"}`), 400, "username_taken"},
		{"POST", "/api/register", malformed, always(`{"x":1}`), 400, "unknown_member"},
		{"POST", "/api/register", malformed, always(`{"username":"?","email":"x@example.com","password":"` + goodPassword + `"}`), 400, "invalid_fields"},
		{"POST", "/api/refresh", refreshes, used, 401, "session_ended"},
		{"POST", "/api/refresh", malformed, always(`{"x":1}`), 400, "unknown_member"},
		{"POST", "/api/refresh", malformed, always(`{"refresh_token":"x"}`), 401, "invalid_token"},
		{"POST", "/api/login", passwords, always(right), 200, ""},
		{"PATCH", "/api/users/me", malformed, always(`{"x":1}`), 400, "unknown_member"},
		{"DELETE", "/api/users/me", malformed, always(`{"x":1}`), 400, "unknown_member"},
		{"DELETE", "/api/users/me/sessions/x", malformed, always(``), 404, "session_not_found"},
		{"PUT", "/api/users/me", passwords, always(`{"current_password":"` + goodPassword + `"}`), 200, ""},
		{"PUT", "/api/users/me", passwords, always(`{"password":"` + goodPassword + `"}`), 200, ""}, // by a fresh token
	} {
		t.Run(row.path+" "+row.code, func(t *testing.T) {
			a := &s.limiter.allowances[row.limit]
			*a = newLimiter().allowances[row.limit]
			ask := func(from string) reply {
				r := s.do(token, row.method, row.path, row.body(), "X-Forwarded-For: "+from)
				if renewed := r.field("access_token"); row.method == "PUT" && renewed != "" {
					token = renewed // the old one is not proof for another change of the password
				}
				return r
			}
			const left = 3
			key := s.limiter.seed.Key(clientaddr.Network(homeNet))
			for range a.Burst - left {
				a.Take(key, s.mono())
			}
			for range left {
				ask(homeNet).want(t, row.status, row.code)
			}
			ask(homeNet).wantWait(t, 1) // rounded up to a second
			ask(otherNet).want(t, row.status, row.code)
			s.clock.add(a.Every)
			ask(homeNet).want(t, row.status, row.code)
			ask(homeNet).wantWait(t, 1) // rounded up to a second
		})
	}
}

// Otherwise one client of a network could shut out all the others.
func TestGarbageUsesUpNothingThatHonestClientsShare(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	evePath, _ := s.register("eve")
	_, root := s.admin("root")
	login := func(name string) reply { return s.tryLogin(homeNet, name, goodPassword).want(t, 200, "") }
	ann, eve := login("ann"), login("eve")
	send := func(token, method, path, body string, headers ...string) reply {
		return s.do(token, method, path, body, append(headers, "X-Forwarded-For: "+homeNet)...)
	}
	used := login("eve").field("refresh_token") // a token that was used, again and again
	send("", "POST", "/api/refresh", `{"refresh_token":"`+used+`"}`).want(t, 200, "")
	s.clock.add(time.Minute)
	tag := strings.LastIndexByte(used, '.')

	for _, row := range []struct{ token, method, path, body string }{
		{"", "POST", "/api/register", `x`},
		{"", "POST", "/api/register", `{}`},
		{"", "POST", "/api/register", `{"username":"` + strings.Repeat("x", maxBody) + `"}`},
		{"", "POST", "/api/register", `{"username":"eve2","email":"eve2@example.com","password":"x"}`},
		{"", "POST", "/api/refresh", `x`},
		{"", "POST", "/api/refresh", ``},
		{"", "POST", "/api/refresh", `{"refresh_token":"x"}`},
		{"", "POST", "/api/refresh", `{"refresh_token":"` + used[:tag] + `.x"}`},
		{"", "POST", "/api/refresh", `{"refresh_token":"` + used + `"}`},
		{eve.field("access_token"), "POST", "/api/refresh", ``},
		{"", "POST", "/api/login", `x`},
		{"", "POST", "/api/login", `{}`},
		{eve.field("access_token"), "PUT", "/api/users/me", `x`},
		{eve.field("access_token"), "PUT", "/api/users/me", `{"username":"?"}`},
		{eve.field("access_token"), "DELETE", "/api/users/me", `x`},
		{eve.field("access_token"), "DELETE", "/api/users/me/sessions/x", ``},
		{"x", "PUT", "/api/users/me", `{"username":"x"}`},
		{"", "POST", "/api/password/reset", `x`},
		{"", "POST", "/api/password/reset", `{"code":"` + newCode(resetLinkCode) + `","password":"x"}`},
		{"", "POST", "/api/register", `{"username":"eve2","email":"eve2@example.com","password":"` + goodPassword + `","invitation":"` + newCode(inviteCode) + `"}`},
	} {
		const left = 5 // of each allowance, so that the flood can be small
		l := newLimiter()
		from := l.seed.Key(clientaddr.Network(homeNet))
		for _, limit := range []limit{registrations, refreshes, changes, passwords, malformed, codeTries} {
			a := &l.allowances[limit]
			for range a.Burst - left {
				a.Take(from, s.mono())
			}
		}
		own := l.seed.Key(fmt.Sprint(s.sessionOf(used)))
		for range l.allowances[sessionRefreshes].Burst - 1 {
			l.allowances[sessionRefreshes].Take(own, s.mono())
		}
		eveKey := l.seed.Key("2")
		for range l.allowances[userChanges].Burst - 1 {
			l.allowances[userChanges].Take(eveKey, s.mono())
		}
		s.limiter = l
		for range 3 * left {
			if r := send(row.token, row.method, row.path, row.body); r.status < 400 || r.status >= 500 {
				t.Fatalf("%s %s %.40s: %d", row.method, row.path, row.body, r.status)
			}
		}
		name := fmt.Sprintf("honest%d", time.Now().UnixNano())
		send("", "POST", "/api/register", `{"username":"`+name+`","email":"`+name+`@example.com","password":"`+goodPassword+`"}`).want(t, 201, "")
		ann = send("", "POST", "/api/refresh", `{"refresh_token":"`+ann.field("refresh_token")+`"}`).want(t, 200, "")
		login("ann")
		send(ann.field("access_token"), "PATCH", "/api/users/me", `{}`).want(t, 200, "")
		send("", "POST", "/api/password/reset", `{"code":"`+s.resetLink(root, evePath)+`","password":"x"}`).want(t, 400, "invalid_fields")
	}
}

// sessionOf returns the session of a refresh token.
func (s *service) sessionOf(token string) int64 {
	s.t.Helper()
	return s.parseRefresh(token).Session
}

// Each handler of a limited route must call count, and no other may.
func TestEachRouteCountsTowardItsLimit(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	refused := 0
	for _, rt := range s.routes() {
		if rt.limit == noLimit {
			continue
		}
		l := newLimiter()
		for i := range l.allowances {
			if i != int(malformed) {
				l.allowances[i].Burst = 0
			}
		}
		s.limiter = newLimiter()
		token := s.login("ann")
		refresh := s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).field("refresh_token")
		s.limiter = l
		method, path, _ := strings.Cut(rt.pattern, " ")
		body := map[string]string{
			"/api/register": `{"username":"eve","email":"eve@example.com","password":"` + goodPassword + `"}`,
			"/api/refresh":  `{"refresh_token":"` + refresh + `"}`,

			"/api/login/factor":            `{"mfa_token":"x","otp":"123456"}`,
			"/api/users/{id}/totp/confirm": `{"otp":"123456"}`,

			"/api/password/reset":  `{"code":"` + newCode(resetLinkCode) + `","password":"` + goodPassword + `"}`,
			"/api/email/verify":    `{"code":"` + newCode(verifyCode) + `"}`,
			"/api/email/change":    `{"code":"` + newCode(changeCode) + `"}`,
			"/api/email/undo":      `{"code":"` + newCode(undoCode) + `"}`,
			"/api/users/{id}/keys": `{"name":"job","scope":"read","expires_in":3600}`,
		}[path]
		if body == "" && method != "DELETE" {
			body = `{}`
		}
		path = strings.NewReplacer("{id}", "me", "{sid}", "999", "{key}", "999").Replace(path)
		if rt.limit == mails { // see TestAForgottenPasswordHasLimits
			continue
		}
		s.do(token, method, path, body).want(t, 429, "too_many_requests")
		refused++
	}
	if refused < 6 {
		t.Errorf("%d limited routes", refused)
	}
}

// A guess that is refused for one user costs the others of the network nothing.
func TestARefusedGuessDelaysNoOtherUserOfTheNetwork(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
	for i := range s.limiter.allowances[passwords].Burst {
		status := 401
		if i >= freeFailures {
			status = 429
		}
		s.tryLogin(homeNet, "nobody", wrongPassword).want(t, status, "")
	}
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
}

func TestTheChangesOfAMemberAreLimited(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	_, root := s.admin("root")
	_, bob := s.member("bob")
	s.register("taken")
	home, other := "X-Forwarded-For: "+homeNet, "X-Forwarded-For: "+otherNet
	for i, row := range []struct {
		name   string
		change func(token, from string) reply
		status int
	}{
		{"renames", func(token, from string) reply {
			return s.do(token, "PUT", "/api/users/me", fmt.Sprintf(`{"username":"name%d"}`, time.Now().UnixNano()), from)
		}, 200},
		{"questions whether a name exists", func(token, from string) reply {
			return s.do(token, "PATCH", "/api/users/me", `{"username":"free","email":"taken@example.com","current_password":"`+goodPassword+`"}`, from)
		}, 400},
		{"changes of nothing", func(token, from string) reply { return s.do(token, "PATCH", "/api/users/me", `{}`, from) }, 200},
		{"changes of another version", func(token, from string) reply {
			return s.do(token, "PATCH", "/api/users/me", `{}`, from, `If-Match: "0"`)
		}, 412},
		{"deletions of another version", func(token, from string) reply {
			return s.do(token, "DELETE", "/api/users/me", ``, from, `If-Match: "0"`)
		}, 412},
		{"ends of sessions", func(token, from string) reply { return s.do(token, "DELETE", "/api/users/me/sessions/999", ``, from) }, 404},
	} {
		t.Run(row.name, func(t *testing.T) {
			name := fmt.Sprintf("ann%d", i)
			_, ann := s.member(name)
			a := &s.limiter.allowances[changes]
			s.limiter.allowances[changes] = newLimiter().allowances[changes]
			for range 60 {
				row.change(ann, home).want(t, row.status, "")
			}
			row.change(ann, home).wantWait(t, 60)
			row.change(ann, other).wantWait(t, 60) // a limit of the user
			row.change(bob, home).want(t, row.status, "")
			s.do(ann, "GET", "/api/users/me", "").want(t, 200, "")
			s.clock.add(time.Minute)
			row.change(ann, home).want(t, row.status, "")
			row.change(ann, home).wantWait(t, 60)
			s.limiter.allowances[userChanges] = newLimiter().allowances[userChanges]
			for range a.Burst {
				a.Take(s.limiter.seed.Key(clientaddr.Network(homeNet)), s.mono())
			}
			row.change(bob, home).wantWait(t, 1)
			row.change(bob, other).want(t, row.status, "")
			for range 70 {
				row.change(root, home).want(t, row.status, "")
			}
			s.do(ann, "DELETE", "/api/users/me/sessions", "", home).want(t, 204, "") // the way out for a user whose token was stolen
		})
	}
}

func TestASuiteThatRegistersAHundredUsersPasses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for i := range 100 {
		s.member(fmt.Sprintf("user%d", i))
	}
}

func TestTheLimiterCanBeOff(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	s.register("ann")
	for range 2 * freeFailures {
		s.do("", "POST", "/api/login", `{"username":"ann","password":"`+wrongPassword+`"}`).want(t, 401, "")
	}
	s.do("", "POST", "/api/refresh", `{}`).want(t, 401, "missing_token")
}

func TestTheLogHasFailedLoginsAndLimits(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.register("ann")
	book := s.keepLog()
	for range freeFailures {
		s.tryLogin(homeNet, "ann@example.com", wrongPassword)
	}
	s.tryLogin(homeNet, "ann", wrongPassword).wantWait(t, 2)
	s.tryLogin(homeNet, "Hunter2-typed-into-the-wrong-field", "ann").want(t, 401, "")
	s.clock.add(2 * time.Second)
	s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
	records := book.records(t, slog.LevelInfo)
	for i, want := range map[int]map[string]any{
		0:                {"name": "ann", "target": 1.0, "user": nil, "code": "invalid_credentials", "limit": nil, "client": homeNet, "status": 401.0},
		freeFailures:     {"name": "ann", "target": 1.0, "code": "too_many_requests", "limit": "user and network", "status": 429.0},
		freeFailures + 1: {"name": nil, "target": nil, "code": "invalid_credentials"},
		freeFailures + 2: {"name": nil, "target": nil, "user": 1.0, "code": nil, "status": 200.0},
	} {
		for attr, value := range want {
			if records[i][attr] != value {
				t.Errorf("record %d: %s = %v, want %v", i, attr, records[i][attr], value)
			}
		}
	}
	if strings.Contains(book.String(), "unter2") {
		t.Error("an unknown name is in the log, although it may be a password")
	}
}
