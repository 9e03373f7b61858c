package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"userd/internal/throttle"
)

// A limiter bounds what a stranger can try. It counts by network, a /24 of IPv4
// or a /64 of IPv6: a client that has one address of those usually has all of
// them. Only an operator can restart userd, so a limiter may forget everything
// in a restart.
//
// A failed login counts three times. The first count is by user and network,
// with a delay that soon grows: this stops guessing. The second is by network
// and stops trying one password on all users. The third is by user and stops an
// attacker with many networks. The last two would let an attacker lock a user
// out, so they do not apply in a network that the user has logged in from.
type limiter struct {
	seed throttle.Seed

	mu         sync.Mutex
	guesses    throttle.Delays // failed logins, by user and network
	known      throttle.Set    // networks that a user has logged in from, by both
	allowances [limitCount]throttle.Allowance
}

// A limit names an allowance of a limiter.
type limit int

const (
	noLimit         limit = iota
	userFailures          // failed logins, by user
	networkFailures       // failed logins, by network
	registrations         // by network, as the following ones
	refreshes
	passwords // correct ones too: each costs a hash, and a login costs a row
	limitCount
)

const (
	// freeFailures is how often a user can mistype before it costs time.
	freeFailures = 5
	// firstDelay doubles with each further failure, up to maxDelay: this leaves
	// some hundred guesses a day.
	firstDelay = 2 * time.Second
	maxDelay   = 15 * time.Minute
	// forgiveness is how long each failure is remembered after the last one.
	forgiveness = time.Hour
	// knownFor is how long a network stays known after the last login from it.
	knownFor = 30 * 24 * time.Hour
)

func newLimiter() *limiter {
	return &limiter{
		seed:    throttle.NewSeed(),
		guesses: throttle.Delays{Name: "user and network", Free: freeFailures, First: firstDelay, Max: maxDelay, Memory: forgiveness},
		known:   throttle.Set{For: knownFor},
		allowances: [limitCount]throttle.Allowance{
			// 100 failures in a row is NIST's bound for one account (SP 800-63B section
			// 5.2.2), and a bad day of an entire office.
			userFailures:    {Name: "user", Burst: 100, Every: time.Minute},
			networkFailures: {Name: "network", Burst: 100, Every: 6 * time.Second},
			// A classroom or a test suite passes. A stranger can neither try the names
			// of a large service one by one nor fill its disk.
			registrations: {Name: "registration", Burst: 1000, Every: time.Second},
			// 18,000 users behind one address need this with access tokens of 15 minutes.
			refreshes: {Name: "refresh", Burst: 10_000, Every: 50 * time.Millisecond},
			// An eighth of what two cores verify; 36,000 logins an hour.
			passwords: {Name: "password", Burst: 1000, Every: 100 * time.Millisecond},
		},
	}
}

// limited returns the error that answers a client if a limit returned err. It
// is nil if err is nil.
func limited(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errLimited, err)
}

// network returns the network of an address that clientAddress returned.
func network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	a = a.Unmap()
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits) // no address has fewer bits
	return p.String()
}

// allow counts a request of x's network toward a limit, or returns errLimited.
func (s *server) allow(x *exchange, limit limit) error {
	l := s.limiter
	if l == nil || limit == noLimit {
		return nil
	}
	now, key := s.mono(), l.seed.Key(network(x.address))
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.allowances[limit]
	if err := a.Check(key, now); err != nil {
		return limited(err)
	}
	a.Take(key, now)
	return nil
}

// A guess is one try of a password, with the keys under which it counts.
type guess struct {
	l                       *limiter
	mono                    func() time.Duration
	pair, user, from, known throttle.Key
	exempt                  bool // the user has logged in from this network
}

// newGuess returns the guess of a password of a user, or errLimited. For a name
// that does not exist, id is 0: it counts like one that exists. A guess counts
// for the user with this very hash, so a new password starts without failures, no
// matter who set it and in which process. Without a limiter the guess is nil.
func (s *server) newGuess(x *exchange, id int64, hash, name string) (*guess, error) {
	l := s.limiter
	if l == nil {
		return nil, nil
	}
	from := network(x.address)
	user := []string{"name", strings.Map(foldASCII, name)}
	if id != 0 {
		user = []string{"user", strconv.FormatInt(id, 10), hash}
	}
	g := &guess{
		l:     l,
		mono:  s.mono,
		pair:  l.seed.Key(append(user, from)...),
		user:  l.seed.Key(user...),
		from:  l.seed.Key(from),
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
	// After a restart only a session can tell that the network is known. The
	// search runs for a name that does not exist too: it must take as long.
	if err := s.store.sessionsOf(x.r.Context(), id, s.wall().Unix(), func(v *session) {
		g.exempt = g.exempt || network(v.address) == from
	}); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return g, g.check(now)
}

// foldASCII folds the letters that the database's NOCASE folds, and no others:
// the Kelvin sign is not the k of kate, whether kate exists or not.
func foldASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// check returns errLimited if g is not allowed now. The caller holds the lock.
func (g *guess) check(now time.Duration) error {
	err := g.l.guesses.Check(g.pair, now)
	if err == nil && !g.exempt {
		err = g.l.allowances[userFailures].Check(g.user, now)
	}
	if err == nil && !g.exempt {
		err = g.l.allowances[networkFailures].Check(g.from, now)
	}
	return limited(err)
}

// finish counts the outcome of g. Of many guesses in parallel, those that end
// after a limit was reached get errLimited, correct or not, so that asking in
// parallel tells a client no more. Report success only if finish returns nil.
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
	l.allowances[networkFailures].Take(g.from, now)
	return nil
}
