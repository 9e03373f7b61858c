package throttle

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// wantWait fails the test unless err is the limit's and says to wait so long; 0 means
// no error.
func wantWait(t *testing.T, err error, by string, wait time.Duration) {
	t.Helper()
	if wait == 0 {
		if err != nil {
			t.Errorf("got %v, want no error", err)
		}
		return
	}
	if e, ok := errors.AsType[*Limited](err); !ok || *e != (Limited{by, wait}) {
		t.Errorf("got %v, want %v", err, &Limited{by, wait})
	}
}

func TestAnAllowance(t *testing.T) {
	t.Parallel()
	const start = time.Hour
	full := func(now time.Duration) *Allowance {
		a := &Allowance{Name: "mail", Burst: 3, Every: time.Minute}
		for range a.Burst {
			wantWait(t, a.Check(1, now), "mail", 0)
			a.Take(1, now)
		}
		return a
	}
	t.Run("lets a burst through and then one per interval", func(t *testing.T) {
		t.Parallel()
		a := full(start)
		for now := start; now < start+5*time.Minute; now += time.Minute {
			wantWait(t, a.Check(1, now), "mail", time.Minute)
			wantWait(t, a.Check(1, now+time.Minute-1), "mail", 1)
			wantWait(t, a.Check(1, now+time.Minute), "mail", 0)
			a.Take(1, now+time.Minute)
		}
	})
	t.Run("begins at time 0", func(t *testing.T) {
		t.Parallel()
		wantWait(t, full(0).Check(1, 0), "mail", time.Minute)
	})
	t.Run("gives the burst back in time", func(t *testing.T) {
		t.Parallel()
		a := full(start)
		now := start + 2*time.Minute
		for range 2 {
			wantWait(t, a.Check(1, now), "mail", 0)
			a.Take(1, now)
		}
		wantWait(t, a.Check(1, now), "mail", time.Minute)
	})
	t.Run("gives no more than the burst back", func(t *testing.T) {
		t.Parallel()
		a := full(start)
		now := start + 24*time.Hour
		for range 3 {
			wantWait(t, a.Check(1, now), "mail", 0)
			a.Take(1, now)
		}
		wantWait(t, a.Check(1, now), "mail", time.Minute)
	})
	t.Run("counts each key by itself", func(t *testing.T) {
		t.Parallel()
		a := full(start)
		wantWait(t, a.Check(1, start), "mail", time.Minute)
		wantWait(t, a.Check(2, start), "mail", 0)
	})
	t.Run("lets no key wait longer than after a burst", func(t *testing.T) {
		t.Parallel()
		a := full(start)
		for range 100 {
			a.Take(1, start)
		}
		wantWait(t, a.Check(1, start), "mail", time.Minute)
	})
}

func TestANest(t *testing.T) {
	t.Parallel()
	const now = time.Hour
	n := NewNest(Allowance{Name: "mail", Burst: 3, Every: time.Minute}, 2, 4)
	act := func(want time.Duration, keys ...Key) {
		t.Helper()
		wantWait(t, n.CheckAll(keys, now), "mail", want)
		if want == 0 {
			n.TakeAll(keys, now)
		}
	}
	for range 3 {
		act(0, 1, 100, 1000)
	}
	act(time.Minute, 1, 100, 1000) // the narrowest key
	for range 3 {
		act(0, 2, 100, 1000)
	}
	act(30*time.Second, 3, 100, 1000) // the wider key has twice the allowance
	act(time.Minute, 1, 100, 1000)    // the longest wait counts
	for narrow := range Key(6) {
		act(0, 10+narrow, 101+narrow, 1000)
	}
	act(15*time.Second, 20, 200, 1000) // the widest has four times
	act(0, 20, 200, 2000)
	act(0, 30) // a key without wider ones
	act(0)
}

func TestNoTimeHasMoreThanItsAllowance(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		a := Allowance{Burst: 1 + r.IntN(10), Every: time.Duration(1 + r.IntN(100))}
		var now time.Duration
		var taken []time.Duration
		for range 500 {
			now += time.Duration(r.Int64N(2 * int64(a.Every)))
			if a.Check(0, now) == nil {
				a.Take(0, now)
				taken = append(taken, now)
			}
		}
		for i, from := range taken {
			for j, to := range taken[i:] {
				if most := a.Burst + int((to-from)/a.Every); j+1 > most {
					t.Fatalf("%d, then one per %d: %d within %d, want at most %d", a.Burst, a.Every, j+1, to-from, most)
				}
			}
		}
	}
}

func TestDelays(t *testing.T) {
	t.Parallel()
	const start = time.Hour
	newDelays := func() *Delays {
		return &Delays{Name: "login", Free: 3, First: 2 * time.Second, Max: 10 * time.Second, Memory: time.Minute}
	}
	fail := func(d *Delays, times int, now time.Duration) *Delays {
		for range times {
			d.Fail(1, now)
		}
		return d
	}
	t.Run("double from the first to the longest", func(t *testing.T) {
		t.Parallel()
		for _, start := range []time.Duration{0, start} {
			d, now := newDelays(), start
			for _, wait := range []time.Duration{0, 0, 2, 4, 8, 10, 10, 10} {
				d.Fail(1, now)
				wait *= time.Second
				wantWait(t, d.Check(1, now), "login", wait)
				if wait > 0 {
					wantWait(t, d.Check(1, now+wait-1), "login", 1)
				}
				now += wait
				wantWait(t, d.Check(1, now), "login", 0)
			}
		}
	})
	t.Run("stay the longest", func(t *testing.T) {
		t.Parallel()
		wantWait(t, fail(newDelays(), 10_000, start).Check(1, start), "login", 10*time.Second)
	})
	t.Run("count each key by itself", func(t *testing.T) {
		t.Parallel()
		wantWait(t, fail(newDelays(), 3, start).Check(2, start), "login", 0)
	})
	t.Run("start again after a reset", func(t *testing.T) {
		t.Parallel()
		d := fail(newDelays(), 5, start)
		d.Reset(1)
		wantWait(t, d.Check(1, start), "login", 0)
		fail(d, 2, start)
		wantWait(t, d.Check(1, start), "login", 0)
		fail(d, 1, start)
		wantWait(t, d.Check(1, start), "login", 2*time.Second)
	})
	t.Run("can be reset before the first failure", func(t *testing.T) {
		t.Parallel()
		newDelays().Reset(1)
	})
	// A further failure tells whether the earlier ones are remembered.
	for _, row := range []struct {
		name     string
		failures int
		memory   time.Duration // from the last delay on
	}{
		{"remember two failures for two minutes", 2, 2 * time.Minute},
		{"remember three failures for three minutes", 3, 2*time.Second + 3*time.Minute},
		{"remember 24 failures for 24 minutes", 24, 10*time.Second + 24*time.Minute},
		{"remember more failures no longer than that", 1000, 10*time.Second + 24*time.Minute},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			late := start + row.memory
			d := fail(fail(newDelays(), row.failures, start), 1, late-1)
			wantWait(t, d.Check(1, late-1), "login", newDelays().delay(row.failures+1))
			d = fail(fail(newDelays(), row.failures, start), 1, late)
			wantWait(t, d.Check(1, late), "login", 0)
		})
	}
}

func TestASetRemembersAKeyForItsTime(t *testing.T) {
	t.Parallel()
	s := Set{For: time.Hour}
	if s.Has(1, 0) {
		t.Error("an empty set has a key")
	}
	s.Add(1, time.Minute)
	for _, row := range []struct {
		key  Key
		now  time.Duration
		want bool
	}{
		{1, time.Minute, true},
		{2, time.Minute, false},
		{1, time.Hour + time.Minute - 1, true},
		{1, time.Hour + time.Minute, false},
	} {
		if got := s.Has(row.key, row.now); got != row.want {
			t.Errorf("key %d at %v: %t, want %t", row.key, row.now, got, row.want)
		}
	}
	s.Add(1, time.Hour)
	if !s.Has(1, 2*time.Hour-1) {
		t.Error("a key that was added again is forgotten like the first one")
	}
}

func TestListsOfPartsHaveTheirOwnKeys(t *testing.T) {
	t.Parallel()
	s := NewSeed()
	seen := make(map[Key][]string)
	for _, parts := range [][]string{nil, {""}, {"", ""}, {"a"}, {"a", ""}, {"", "a"}, {"ab"}, {"a", "b"}, {"b", "a"}, {"1:a"}, {"a1:b"}, {"a", "1:b"}, {"1", "", "abcdefghi"}, {"09abcdefghi"}} {
		key := s.Key(parts...)
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %q share a key", parts, other)
		}
		seen[key] = parts
		if s.Key(parts...) != key {
			t.Errorf("%q has two keys", parts)
		}
	}
	if s.Key("a") == NewSeed().Key("a") {
		t.Error("two seeds make the same key")
	}
}

func TestLimitedSaysWhatAndHowLong(t *testing.T) {
	t.Parallel()
	if got := (&Limited{"login", 90 * time.Second}).Error(); got != "limited by login for 1m30s" {
		t.Error(got)
	}
}

func TestANestSaysTheLongestWait(t *testing.T) {
	t.Parallel()
	n := NewNest(Allowance{Name: "mail", Burst: 1, Every: 10 * time.Second}, 2) // the wider key acts twice, then once in 5 s
	n.TakeAll([]Key{1, 100}, 0)
	n.TakeAll([]Key{2, 100}, 9*time.Second)
	n.TakeAll([]Key{3, 100}, 9*time.Second)
	wantWait(t, n.CheckAll([]Key{1, 100}, 9*time.Second), "mail", 5*time.Second) // the narrow key waits 1 s
	wantWait(t, n.CheckAll([]Key{3, 100}, 9*time.Second), "mail", 10*time.Second)
}
