// Package throttle limits how often strangers can do something. It counts by
// key: the caller decides whether a key is a user, a network or both.
//
//   - [Allowance] lets each key act in a burst, and then once per interval.
//   - [Nest] is an allowance for keys that contain each other, such as networks.
//   - [Delays] makes each key wait longer after each failure.
//   - [Set] remembers keys for some time, for example those that are exempt.
//
// The caller passes the time as now, a [time.Duration] since some start, never
// negative. It comes from a monotonic clock, so that setting the wall clock neither
// ends a wait nor makes it longer.
//
// Everything is in memory: a restart forgets it. A stranger can make up any number
// of keys, so each limit remembers at most 65,536 of them. Keys that would be
// forgotten soon make room for new ones, so a flood of new keys does not free a key
// that failed often.
//
// Like a map, nothing here is safe for concurrent use. A decision often concerns
// several limits: check all of them and then count in all of them, under one lock.
// Otherwise requests in parallel would all pass the check before the first of them
// counts.
package throttle

import (
	"hash/maphash"
	"strconv"
	"time"
)

// A Limited is the error of a key that has reached a limit.
type Limited struct {
	By   string        // the name of the limit
	Wait time.Duration // until it lets the key try again; more than 0
}

func (e *Limited) Error() string { return "limited by " + e.By + " for " + e.Wait.String() }

// A Key is what a limit counts by.
type Key uint64

// A Seed makes keys. Use [NewSeed]: keys of different seeds have nothing in common.
type Seed struct{ seed maphash.Seed }

// NewSeed returns a random seed.
func NewSeed() Seed { return Seed{maphash.MakeSeed()} }

// Key returns the key of a list of parts. Another list has another key, even if its
// parts join to the same text. A client, which does not know the seed, cannot find
// two lists that share a key.
func (s Seed) Key(parts ...string) Key {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, p := range parts {
		h.WriteString(strconv.Itoa(len(p)) + ":" + p)
	}
	return Key(h.Sum64())
}

// An Allowance lets each key act Burst times in a row and then once per Every. It
// is the generic cell rate algorithm of ITU-T I.371: the only state of a key is the
// time at which its burst will be whole again. Set the fields before the first use.
type Allowance struct {
	Name  string // for Limited
	Burst int    // 1 or more
	Every time.Duration

	whole table // its entries are gone once the burst is whole
}

// Check returns a *Limited if key may not act now. It counts nothing.
func (a *Allowance) Check(key Key, now time.Duration) error {
	whole := a.whole.get(key, now).gone
	if wait := whole - now - time.Duration(a.Burst-1)*a.Every; wait > 0 {
		return &Limited{a.Name, wait}
	}
	return nil
}

// Take counts one act, even if Check refuses it. A key never waits longer than if it
// had just used up its burst.
func (a *Allowance) Take(key Key, now time.Duration) {
	whole := max(now, a.whole.get(key, now).gone) + a.Every
	a.whole.put(key, entry{gone: min(whole, now+time.Duration(a.Burst)*a.Every)})
}

// A Nest is an Allowance for keys that contain each other, such as networks. An act
// counts for its key and for all wider ones, each of which has a multiple of the
// allowance. Otherwise a client with many narrow keys, such as the 65,536 networks
// of an IPv6 /48, would have as many allowances. Use [NewNest].
type Nest struct {
	Allowance // of the narrowest keys
	wider     []Allowance
}

// NewNest returns a Nest of an allowance. Each factor is that of one wider kind of
// key, in the order in which they contain each other.
func NewNest(a Allowance, factors ...int) Nest {
	n := Nest{Allowance: a}
	for _, factor := range factors {
		n.wider = append(n.wider, Allowance{Name: a.Name, Burst: a.Burst * factor, Every: a.Every / time.Duration(factor)})
	}
	return n
}

// level returns the allowance of the i-th key, of which the narrowest is the 0th.
func (n *Nest) level(i int) *Allowance {
	if i == 0 {
		return &n.Allowance
	}
	return &n.wider[i-1]
}

// CheckAll returns nil if all keys may act now, and otherwise the *Limited with the
// longest wait. The keys begin with the narrowest, and there can be fewer than the
// Nest has kinds. It counts nothing.
func (n *Nest) CheckAll(keys []Key, now time.Duration) error {
	var longest *Limited
	for i, key := range keys {
		if err, ok := n.level(i).Check(key, now).(*Limited); ok && (longest == nil || err.Wait > longest.Wait) {
			longest = err
		}
	}
	if longest == nil {
		return nil
	}
	return longest
}

// TakeAll counts one act for all keys, even if CheckAll refuses it.
func (n *Nest) TakeAll(keys []Key, now time.Duration) {
	for i, key := range keys {
		n.level(i).Take(key, now)
	}
}

// Delays make each key wait after a failure. The first few failures cost nothing,
// and each further one doubles the delay. Set the fields before the first use.
type Delays struct {
	Name  string        // for Limited
	Free  int           // the Free-th failure is the first with a delay; 1 or more
	First time.Duration // the delay of that failure
	Max   time.Duration // the longest delay
	// Memory is how long one failure is remembered after its delay. n failures are
	// remembered n times as long, for an n up to 24.
	Memory time.Duration

	failed table
}

const maxMemories = 24

// Check returns a *Limited if key may not try now. It counts nothing.
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

// Has reports whether key was added less than For ago. It is false if a flood of keys
// made the set forget it.
func (s *Set) Has(key Key, now time.Duration) bool { return s.keys.get(key, now).gone > now }
