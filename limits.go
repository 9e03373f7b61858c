package main

import (
	"hash/maphash"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A limiter bounds what a stranger can try. It counts by network, a /24 of IPv4
// or a /64 of IPv6, since whoever has one address of those has all of them. It
// lives in memory: a restart forgets, which nobody outside can bring about.
//
// Failed logins are counted three times. By user and network, with a delay that
// soon grows: this is what stops guessing. More gently by network alone, which
// stops trying one password on everybody, and by user alone, which stops those
// with many networks. These two would also let them lock a user out; so they do
// not count in a network that the user has logged in from before.
type limiter struct {
	seed maphash.Seed // nobody outside can make two keys fall together

	mu     sync.Mutex
	pairs  tallies // failed logins of a user from a network
	known  tallies // networks that a user has logged in from
	limits [limits]allowance
}

// The limits that a limiter has beside the pairs' growing delay.
const (
	userFailures = iota
	networkFailures
	registrations // by network, as refreshes
	refreshes
	passwords // by network, right ones too: each costs a hash, and a login a row
	limits
)

const (
	// freeFailures is how often one mistypes before it costs time.
	freeFailures = 5
	// firstDelay doubles with each further failure, up to maxDelay: some hundred
	// guesses a day.
	firstDelay = 2 * time.Second
	maxDelay   = 15 * time.Minute
	// forgiveness is how long each failure is remembered after the last one.
	forgiveness = time.Hour
	// knownFor is how long a network stays known after the last login from it.
	knownFor = 30 * 24 * time.Hour
)

func newLimiter() *limiter {
	return &limiter{
		seed:  maphash.MakeSeed(),
		pairs: make(tallies),
		known: make(tallies),
		limits: [limits]allowance{
			// A hundred failures at once is NIST's bound for one account (SP 800-63B
			// section 5.2.2), and a bad day of a whole office.
			userFailures:    {"user", make(tallies), 100, time.Minute},
			networkFailures: {"network", make(tallies), 100, 6 * time.Second},
			// A classroom or a test suite passes; the names of a large service cannot
			// be tried out one by one, nor its disk filled.
			registrations: {"registration", make(tallies), 1000, time.Second},
			// What 18,000 users behind one address need with access tokens of 15 minutes.
			refreshes: {"refresh", make(tallies), 10_000, 50 * time.Millisecond},
			// An eighth of what two cores check; 36,000 logins an hour.
			passwords: {"password", make(tallies), 1000, 100 * time.Millisecond},
		},
	}
}

// A limited is an errLimited: which limit it was, for the log, and for how long.
type limited struct {
	by   string
	wait time.Duration
}

func (e *limited) Error() string { return "limited by " + e.by + " for " + e.wait.String() }

func (e *limited) Unwrap() error { return errLimited }

// A tally is what a limiter knows under one key. Its times are those of the
// server's monotonic clock.
type tally struct {
	failures int32
	until    time.Duration // no further try before
	gone     time.Duration // nothing is known any more from then on
}

// Tallies are kept by the hash of what they are about. A stranger can make
// up any number of networks and names, so they are bounded.
type tallies map[uint64]tally

const (
	maxTallies = 1 << 16 // some 3 MB
	candidates = 8
)

func (t tallies) get(key uint64, now time.Duration) tally {
	if v := t[key]; v.gone > now {
		return v
	}
	return tally{}
}

// put keeps a tally. Where there are too many, another makes room: of a few drawn
// at random the one that would be gone first. A flood brings entries of one
// failure each, which go before those of somebody who has failed often.
func (t tallies) put(key uint64, v tally) {
	if _, ok := t[key]; !ok && len(t) >= maxTallies {
		var first uint64
		var gone time.Duration
		n := 0
		for k, other := range t { // in random order
			if n == 0 || other.gone < gone {
				first, gone = k, other.gone
			}
			if n++; n == candidates {
				break
			}
		}
		delete(t, first)
	}
	t[key] = v
}

// An allowance lets each key have so many at once and then one every so often
// (the generic cell rate algorithm, with the time at which all would be given
// back as its only state).
type allowance struct {
	name  string
	given tallies
	burst int64
	every time.Duration
}

// refusal says that a key must wait for its next, or nil.
func (a *allowance) refusal(key uint64, now time.Duration) error {
	full := a.given.get(key, now).gone
	if wait := full - now - time.Duration(a.burst-1)*a.every; wait > 0 {
		return &limited{a.name, wait}
	}
	return nil
}

// take counts one, which need not have been allowed.
func (a *allowance) take(key uint64, now time.Duration) {
	full := max(now, a.given.get(key, now).gone)
	a.given.put(key, tally{gone: min(full+a.every, now+time.Duration(a.burst)*a.every)})
}

// key is what the parts are kept by.
func (l *limiter) key(parts ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	for _, p := range parts {
		h.WriteString(strconv.Itoa(len(p)))
		h.WriteByte(':')
		h.WriteString(p)
	}
	return h.Sum64()
}

// network returns the network of an address, as clientAddress gives it.
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
	p, err := a.Prefix(bits)
	if err != nil {
		panic(err) // fewer bits than the address has
	}
	return p.String()
}

// network returns the network that a request comes from.
func (s *server) network(x *exchange) string { return network(s.clientAddress(x.r)) }

// allow counts a request of x's network, or says errLimited.
func (s *server) allow(x *exchange, limit int) error {
	l := s.limiter
	if l == nil {
		return nil
	}
	now, key := s.mono(), l.key(s.network(x))
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.limits[limit]
	if err := a.refusal(key, now); err != nil {
		return err
	}
	a.take(key, now)
	return nil
}

// An attempt is a password that is about to be tried.
type attempt struct {
	l                          *limiter
	mono                       func() time.Duration
	pair, user, network, known uint64
	exempt                     bool // in a network that the user is known in
}

// attempt lets a password be tried on a user, or says errLimited. A name that
// nobody has, id 0, counts like one that somebody has. What is counted is the
// user with this very hash: a new password, whoever set it and in whichever
// process, begins anew.
func (s *server) attempt(x *exchange, id int64, hash, name string) (*attempt, error) {
	l := s.limiter
	if l == nil {
		return nil, nil
	}
	from := s.network(x)
	who := []string{"name", strings.Map(foldASCII, name)}
	if id != 0 {
		who = []string{"user", strconv.FormatInt(id, 10), hash}
	}
	a := &attempt{
		l:       l,
		mono:    s.mono,
		pair:    l.key(append(who, from)...),
		user:    l.key(who...),
		network: l.key(from),
		known:   l.key(strconv.FormatInt(id, 10), from),
	}
	now := s.mono()
	l.mu.Lock()
	a.exempt = id != 0 && l.known.get(a.known, now).gone != 0
	err := a.refusal(now)
	certain := a.exempt || l.pairs.get(a.pair, now).until > now
	l.mu.Unlock()
	if err == nil || certain {
		return a, err
	}
	// Since a restart, a session alone may tell that the user is known here. It
	// is looked for where there is no user too: that must take as long.
	if err := s.store.sessionsOf(x.r.Context(), id, s.now().Unix(), func(v *session) {
		a.exempt = a.exempt || network(v.address) == from
	}); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return a, a.refusal(now)
}

// foldASCII makes one of the letters that are one to the database's NOCASE, and
// of no others: the K of kelvin is not in kate, whether she exists or not.
func foldASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// refusal says why a may not be tried at now, or nil.
func (a *attempt) refusal(now time.Duration) error {
	if pair := a.l.pairs.get(a.pair, now); pair.until > now {
		return &limited{"user and network", pair.until - now}
	}
	if a.exempt {
		return nil
	}
	if err := a.l.limits[userFailures].refusal(a.user, now); err != nil {
		return err
	}
	return a.l.limits[networkFailures].refusal(a.network, now)
}

// settle counts how a try went. Of many that were made at once, those that end
// after a limit is reached are refused, right or wrong: nobody learns more by
// asking in parallel. A right one is told only where it settles nil.
func (a *attempt) settle(ok bool) error {
	if a == nil {
		return nil
	}
	now := a.mono()
	l := a.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := a.refusal(now); err != nil {
		return err
	}
	if ok {
		delete(l.pairs, a.pair)
		l.known.put(a.known, tally{gone: now + knownFor})
		return nil
	}
	pair := l.pairs.get(a.pair, now)
	pair.failures++
	pair.until = now
	if n := pair.failures - freeFailures; n >= 0 {
		pair.until += min(firstDelay<<min(n, 20), maxDelay)
	}
	pair.gone = pair.until + time.Duration(min(pair.failures, 24))*forgiveness
	l.pairs.put(a.pair, pair)
	l.limits[userFailures].take(a.user, now)
	l.limits[networkFailures].take(a.network, now)
	return nil
}
