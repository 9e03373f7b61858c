package main

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/throttle"
	"userd/internal/validate"
)

// A limiter limits the requests of strangers. It counts by network, which is a /24 of
// IPv4 or a /64 of IPv6, because a client that has one address of a network usually has
// all. Some clients have an IPv6 /56 or /48, so each of these has an allowance for all
// its networks together. A restart clears the counts; only an operator can restart userd.
//
// A failed login counts three times: by user and network, with a growing delay, against
// an attacker who guesses the password of a user; by network, against an attacker who
// tries one password for many users; and by user, against an attacker with many networks.
// An attacker could use the last two to lock a user out, so they do not apply in a
// network that the user has logged in from.
type limiter struct {
	seed throttle.Seed

	mu         sync.Mutex
	guesses    throttle.Delays // failed logins, by user and network
	known      throttle.Set    // networks that a user has logged in from, by user and network
	knownNames throttle.Set    // the same networks, by the user's names and network
	allowances [limitCount]throttle.Nest
}

// An IPv6 /56 has 4 times the allowance of a /64, and a /48 has 16 times.
var (
	wideNetworks = []int{56, 48}
	wideFactors  = []int{4, 16}
)

const (
	noLimit          limit = iota
	userFailures           // failed logins, by user
	userChanges            // changes, by user
	sessionRefreshes       // refreshes, by session
	networkFailures        // failed logins, by network
	registrations          // by network, like all below
	refreshes
	passwords // checked passwords, correct ones too: each costs a hash
	malformed // requests that failed before they counted toward another limit
	lookups   // of users, by logins from a network that has no failures left
	codeTries // wrong codes of links
	mails     // mails that strangers ask for
	badKeys   // API keys that are not valid
	changes   // by members, refused ones too: a refusal can show that a name exists; see userChanges
	limitCount
)

const (
	freeFailures = 5                   // the fifth failure is the first with a delay
	firstDelay   = 2 * time.Second     // doubles with each further failure, up to maxDelay
	maxDelay     = 15 * time.Minute    // allows about a hundred guesses a day
	forgiveness  = time.Hour           // per failure: n failures are forgotten after n hours
	knownFor     = 30 * 24 * time.Hour // after the latest login from a network
)

func newLimiter() *limiter {
	l := &limiter{
		seed:       throttle.NewSeed(),
		guesses:    throttle.Delays{Name: "user and network", Free: freeFailures, First: firstDelay, Max: maxDelay, Memory: forgiveness},
		known:      throttle.Set{For: knownFor},
		knownNames: throttle.Set{For: knownFor},
	}
	for i, a := range allowances() {
		l.allowances[i] = throttle.NewNest(a, wideFactors...)
	}
	return l
}

// allowances returns the allowances of a user or of a network that is a /24 or /64.
func allowances() [limitCount]throttle.Allowance {
	return [limitCount]throttle.Allowance{
		// 100 consecutive failures are NIST's limit for an account (SP 800-63B section
		// 5.2.2), and as many as an entire office makes on a bad day.
		userFailures:    {Name: "user", Burst: 100, Every: time.Minute},
		networkFailures: {Name: "network", Burst: 100, Every: 6 * time.Second},
		// Enough for a classroom or a test suite, but not for a stranger to try all
		// names of a large service or to fill its disk.
		registrations: {Name: "registration", Burst: 1000, Every: time.Second},
		// Enough for 18,000 users with one address and access tokens of 15 minutes.
		refreshes: {Name: "refresh", Burst: 10_000, Every: 50 * time.Millisecond},
		// 36,000 logins an hour: less than a fifth of what two cores verify.
		passwords: {Name: "password", Burst: 1000, Every: 100 * time.Millisecond},
		// Enough for the mistakes of everyone in a network.
		malformed: {Name: "malformed", Burst: 1000, Every: time.Second},
		// As often as a failure is allowed. See allowLookup.
		lookups: {Name: "lookup", Burst: 20, Every: 6 * time.Second},
		// A code has 130 bits, so this limit only shows and slows down a flood.
		codeTries: {Name: "code", Burst: 1000, Every: time.Second},
		// A key has 178 bits, so this limit only shows and slows down a flood.
		badKeys: {Name: "key", Burst: 1000, Every: time.Second},
		// More than the people in one network forget in an hour.
		mails: {Name: "mail", Burst: 20, Every: 3 * time.Minute},
		// Each change adds an event of some 100 bytes for 400 days: a user can add 150 kB
		// a day, and a network 9 MB.
		changes:     {Name: "change", Burst: 1000, Every: time.Second},
		userChanges: {Name: "user change", Burst: 60, Every: time.Minute},
		// More than many tabs with access tokens of one second need. Otherwise one used-up
		// token, sent again and again, would use up the refreshes of its network.
		sessionRefreshes: {Name: "session refresh", Burst: 100, Every: time.Second},
	}
}

// limited wraps an error of package throttle in errLimited. It returns nil if err is nil.
func limited(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errLimited, err)
}

// networkKeys returns the keys of an address's network and of the wider ones that
// contain it, as throttle.Nest counts them.
func (l *limiter) networkKeys(address string) []throttle.Key {
	keys := make([]throttle.Key, 1, 1+len(wideNetworks))
	keys[0] = l.seed.Key(clientaddr.Network(address))
	if a, err := netip.ParseAddr(address); err == nil && a.Unmap().Is6() {
		for _, bits := range wideNetworks {
			p, _ := a.Prefix(bits)
			keys = append(keys, l.seed.Key(p.String()))
		}
	}
	return keys
}

// count counts a request toward the limit of its route, or returns errLimited. Changes
// and refreshes first count toward a limit of their owner, which is the id of the user
// or session: a request that this limit refuses does not count for the network.
//
// A handler calls count after the checks that cost little and reveal nothing about
// others: of the body, its fields, and the tag of a token. Otherwise one client could use
// up the limits of its network with garbage. Admins may make changes without limit.
func (s *server) count(x *exchange, owner int64) error {
	x.counted = true
	own := noLimit
	switch x.limit {
	case changes:
		own = userChanges
	case refreshes:
		own = sessionRefreshes
	}
	l := s.limiter
	if l == nil || x.limit == changes && x.who.role == admin {
		return nil
	}
	if err := s.allowOwner(own, owner); err != nil {
		return err
	}
	return s.allow(x, x.limit)
}

// allowOwner counts a request of a user, a session or a registration toward a limit, or returns
// errLimited.
func (s *server) allowOwner(limit limit, owner int64) error {
	l := s.limiter
	if l == nil || limit == noLimit {
		return nil
	}
	now, key := s.mono(), l.seed.Key(strconv.FormatInt(owner, 10))
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(limit, now, key)
}

// countMalformed counts a request of a limited route that failed before its handler
// called count. It returns errLimited, or err, the reason of the failure.
func (s *server) countMalformed(x *exchange, err error) error {
	if x.limit == noLimit || x.counted || answerFor(err).status >= http.StatusInternalServerError {
		return err
	}
	return cmp.Or(s.allow(x, malformed), err)
}

// allow counts a request of x's network toward a limit, or returns errLimited.
func (s *server) allow(x *exchange, limit limit) error {
	l := s.limiter
	if l == nil || limit == noLimit {
		return nil
	}
	now, keys := s.mono(), l.networkKeys(x.address)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(limit, now, keys...)
}

// A mailLimit bounds the mails that all strangers together can cause, or all members:
// perHour in a row, then perHour an hour.
type mailLimit struct {
	mu  sync.Mutex
	all throttle.Allowance
}

func newMailLimit(perHour int) *mailLimit {
	return &mailLimit{all: throttle.Allowance{Name: "mail", Burst: perHour, Every: time.Hour / time.Duration(max(perHour, 1))}}
}

// mayMail counts a mail that a stranger asks for, and reports whether to queue the mail. The
// answer to the stranger must not depend on the result. RATE_LIMIT=off does not lift the
// mailLimit, because the operator's mail server has limits too.
func (s *server) mayMail(x *exchange) bool {
	err := s.allow(x, mails)
	if err == nil {
		err = s.mailLimit.take(s.mono())
	}
	if err != nil {
		s.stats.mails.Add("limited")
	}
	return err == nil
}

// countMail counts a mail that a member asks for, or returns errLimited: its address can be
// that of any person, and where anyone can register, any stranger can be a member. Strangers
// cannot use up the mails of members in all.
func (s *server) countMail(x *exchange) error {
	if x.who.role == admin {
		return nil
	}
	if err := s.allow(x, mails); err != nil {
		return err
	}
	return s.memberMails.take(s.mono())
}

// take counts a mail at now, or returns errLimited.
func (m *mailLimit) take(now time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.all.Check(0, now)
	if err == nil {
		m.all.Take(0, now)
	}
	return limited(err)
}

// take counts one request toward a limit, or returns errLimited. The caller holds
// the lock.
func (l *limiter) take(limit limit, now time.Duration, keys ...throttle.Key) error {
	a := &l.allowances[limit]
	if err := a.CheckAll(keys, now); err != nil {
		return limited(err)
	}
	a.TakeAll(keys, now)
	return nil
}

// allowLookup returns nil if a login from x's network may look up the user with this
// name, or errLimited. Without this limit, the time of a 429 would show which names
// exist: reading a row takes longer. A network that has no failures left may look up the
// names that logged in from there, without a limit, and a few others: after a restart,
// only the sessions of a user show that it logged in from there. These are too few to
// measure times.
func (s *server) allowLookup(x *exchange, name string) error {
	l := s.limiter
	if l == nil {
		return nil
	}
	from := clientaddr.Network(x.address)
	now, keys := s.mono(), l.networkKeys(x.address)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.allowances[passwords].CheckAll(keys, now); err != nil {
		return limited(err)
	}
	if l.allowances[networkFailures].CheckAll(keys, now) == nil || l.knownNames.Has(l.nameKey(name, from), now) {
		return nil
	}
	return l.take(lookups, now, keys...)
}

// nameKey returns the key of a login name and a network. It ignores the case of the name and the
// spaces around it exactly as the database does. Otherwise two spellings could share a limit only
// if their user exists, and the limit would show this.
func (l *limiter) nameKey(name, from string) throttle.Key {
	return l.seed.Key("name", validate.FoldName(validate.TrimName(name)), from)
}

// noteLogin records that a user has logged in from x's network.
func (s *server) noteLogin(x *exchange, u *user) {
	l := s.limiter
	if l == nil {
		return
	}
	from, now := clientaddr.Network(x.address), s.mono()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range []string{u.username, u.email} {
		l.knownNames.Add(l.nameKey(name, from), now)
	}
}

// A guess is a password that a client sent, with the keys under which it counts.
type guess struct {
	l                 *limiter
	mono              func() time.Duration
	pair, user, known throttle.Key
	from              []throttle.Key // the network, and wider ones
	exempt            bool           // the user has logged in from this network
}

// newGuess returns a guess of the password of a user, or errLimited. For a name
// that does not exist, id is 0, and the name counts like one that exists. A guess
// counts for the user and this hash: a new password, even one that another process
// set, starts without failures. Without a limiter, newGuess returns nil.
func (s *server) newGuess(x *exchange, id int64, hash, name string) (*guess, error) {
	l := s.limiter
	if l == nil {
		return nil, nil
	}
	from := clientaddr.Network(x.address)
	user := []string{"name", validate.FoldName(validate.TrimName(name))}
	if id != 0 {
		user = []string{"user", strconv.FormatInt(id, 10), hash}
	}
	g := &guess{
		l:     l,
		mono:  s.mono,
		pair:  l.seed.Key(append(user, from)...),
		user:  l.seed.Key(user...),
		from:  l.networkKeys(x.address),
		known: l.seed.Key(strconv.FormatInt(id, 10), from),
	}
	now := s.mono()
	l.mu.Lock()
	delayed := l.guesses.Check(g.pair, now)
	g.exempt = l.known.Has(g.known, now)
	err := g.check(now)
	l.mu.Unlock()
	if err == nil || delayed != nil {
		return g, err
	}
	// After a restart, only the sessions show which networks are known. The search
	// also runs for a name that does not exist, which must take as long.
	if err := s.store.sessionsOf(x.r.Context(), id, s.wall().Unix(), func(v *session) {
		g.exempt = g.exempt || clientaddr.Network(v.address) == from
	}); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return g, g.check(now)
}

// check returns errLimited if g is not allowed now. The caller holds the lock.
func (g *guess) check(now time.Duration) error {
	err := g.l.guesses.Check(g.pair, now)
	if err == nil && !g.exempt {
		err = g.l.allowances[userFailures].Check(g.user, now)
	}
	if err == nil && !g.exempt {
		err = g.l.allowances[networkFailures].CheckAll(g.from, now)
	}
	return limited(err)
}

// finish counts the outcome of g. It returns errLimited, even for a correct guess,
// if concurrent guesses have reached a limit since newGuess: otherwise concurrent
// guesses would not be limited. The caller must not report success then.
func (g *guess) finish(correct bool) error {
	if g == nil {
		return nil
	}
	now := g.mono()
	l := g.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := g.check(now); err != nil {
		return err
	}
	if correct {
		l.guesses.Reset(g.pair)
		l.known.Add(g.known, now)
		return nil
	}
	l.guesses.Fail(g.pair, now)
	l.allowances[userFailures].Take(g.user, now)
	l.allowances[networkFailures].TakeAll(g.from, now)
	return nil
}

// finishFirstFactor is finish for a correct password of a user with a second factor. It returns
// errLimited like finish, but resets no count: otherwise a client with the password could
// guess codes without a delay.
func (g *guess) finishFirstFactor() error {
	if g == nil {
		return nil
	}
	now := g.mono()
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	return g.check(now)
}
