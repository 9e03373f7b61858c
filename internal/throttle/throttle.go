// Package throttle limits how often strangers can do something. It counts by
// key: the caller decides whether a key is a user, a network or both.
//
//   - [Allowance] lets each key act in a burst, and then once per interval.
//   - [Delays] makes each key wait longer after each failure.
//   - [Set] remembers keys for some time, for example those that are exempt.
//
// Time is a [time.Duration] since some start, which the caller passes as now. It
// comes from a monotonic clock, so that setting the wall clock neither ends a
// wait nor makes it longer. It is never negative.
//
// Everything is in memory: a restart forgets it. A stranger can make up any
// number of keys, so each limit remembers at most [MaxKeys] of them. Keys that
// would be forgotten soon make room for new ones, so a flood of new keys does
// not free a key that failed often.
//
// Like a map, nothing here is safe for concurrent use. A decision often concerns
// several limits: it checks all of them and then counts in all of them. The
// caller holds one lock over both steps. Otherwise requests in parallel would all
// pass the check before the first of them counts.
package throttle

import (
	"hash/maphash"
	"strconv"
	"time"
)

// A Limited is the error of a limit that has been reached.
type Limited struct {
	By   string        // the name of the limit
	Wait time.Duration // until it lets the key try again; more than 0
}

func (e *Limited) Error() string { return "limited by " + e.By + " for " + e.Wait.String() }

// A Key is what a limit counts by.
type Key uint64

// A Seed makes keys. Keys of different seeds have nothing in common. Use
// [NewSeed].
type Seed struct{ seed maphash.Seed }

// NewSeed returns a random seed.
func NewSeed() Seed { return Seed{maphash.MakeSeed()} }

// Key returns the key of a list of parts. Another list has another key, even if
// its parts joined are the same text. A client that does not know the seed cannot
// find two lists that share a key.
func (s Seed) Key(parts ...string) Key {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, p := range parts {
		h.WriteString(strconv.Itoa(len(p)))
		h.WriteByte(':')
		h.WriteString(p)
	}
	return Key(h.Sum64())
}

// An Allowance lets each key act Burst times in a row and then once per Every. It
// is the generic cell rate algorithm of ITU-T I.371: the only state of a key is
// the time at which its burst will be whole again. Set the fields before the
// first use.
type Allowance struct {
	Name  string // for Limited
	Burst int    // 1 or more
	Every time.Duration

	whole table // its entries are gone once the burst is whole
}

// Check returns nil if key may act now, and otherwise a *Limited. It counts
// nothing.
func (a *Allowance) Check(key Key, now time.Duration) error {
	whole := a.whole.get(key, now).gone
	if wait := whole - now - time.Duration(a.Burst-1)*a.Every; wait > 0 {
		return &Limited{a.Name, wait}
	}
	return nil
}

// Take counts one act, even if Check refuses it. A key never has to wait longer
// than if it had just used up its burst.
func (a *Allowance) Take(key Key, now time.Duration) {
	whole := max(now, a.whole.get(key, now).gone) + a.Every
	a.whole.put(key, entry{gone: min(whole, now+time.Duration(a.Burst)*a.Every)})
}

// Delays make each key wait after a failure. The first few cost nothing, and
// after them each failure doubles the delay. Set the fields before the first use.
type Delays struct {
	Name  string        // for Limited
	Free  int           // the Free-th failure is the first with a delay; 1 or more
	First time.Duration // the delay of that failure
	Max   time.Duration // the longest delay
	// Memory is how long one failure is remembered after its delay. After n
	// failures it is n times as long, for an n up to 24.
	Memory time.Duration

	failed table
}

// maxMemories bounds how many times Memory a key is remembered.
const maxMemories = 24

// Check returns nil if key may try now, and otherwise a *Limited. It counts
// nothing.
func (d *Delays) Check(key Key, now time.Duration) error {
	if wait := d.failed.get(key, now).until - now; wait > 0 {
		return &Limited{d.Name, wait}
	}
	return nil
}

// Fail counts a failure.
func (d *Delays) Fail(key Key, now time.Duration) {
	e := d.failed.get(key, now)
	e.failures++
	e.until = now + d.delay(e.failures)
	e.gone = e.until + time.Duration(min(e.failures, maxMemories))*d.Memory
	d.failed.put(key, e)
}

// delay returns how long the n-th failure makes its key wait.
func (d *Delays) delay(n int) time.Duration {
	if n < d.Free {
		return 0
	}
	delay := d.First
	for ; n > d.Free && delay < d.Max; n-- {
		delay *= 2
	}
	return min(delay, d.Max)
}

// Reset forgets all failures of key.
func (d *Delays) Reset(key Key) { delete(d.failed, key) }

// A Set remembers each key for some time. Set For before the first use.
type Set struct {
	For time.Duration

	keys table
}

// Add remembers key from now on.
func (s *Set) Add(key Key, now time.Duration) { s.keys.put(key, entry{gone: now + s.For}) }

// Has reports whether key was added less than For ago, and not forgotten in a
// flood since.
func (s *Set) Has(key Key, now time.Duration) bool { return s.keys.get(key, now).gone > now }
