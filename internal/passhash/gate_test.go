package passhash

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func slotted(slots int) *Hasher {
	h := New(cheap)
	h.gate.slots = slots
	return h
}

// fill takes every slot, until leave gives them back.
func (g *gate) fill() (leave func()) {
	for range g.slots {
		if g.join("a filler") != nil {
			panic("somebody is inside")
		}
	}
	return func() {
		for range g.slots {
			g.leave()
		}
	}
}

// crowd also has as many wait as may, all of one network.
func (g *gate) crowd(from string) {
	for _, waiting := g.count(); waiting < MaxWaitingPerCore*g.slots; _, waiting = g.count() {
		g.join(from)
	}
}

// clear lets everybody go.
func (g *gate) clear() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside, g.waiting, g.lines = 0, 0, nil
}

// mustBeEmpty asks that nobody is inside and nobody waits.
func (g *gate) mustBeEmpty(t *testing.T) {
	t.Helper()
	if inside, waiting := g.count(); inside != 0 || waiting != 0 || len(g.lines) != 0 {
		t.Errorf("%d are inside and %d wait in %d lines", inside, waiting, len(g.lines))
	}
}

func mustEnter(t *testing.T, h *Hasher) (leave func()) {
	t.Helper()
	leave, err := h.enter(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestGateHasASlotForEachCore(t *testing.T) {
	if got, want := New(Default()).gate.slots, runtime.GOMAXPROCS(0); got != want {
		t.Errorf("%d slots on %d cores", got, want)
	}
}

func TestGateLetsInAsManyAsItHasSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, callers = 3, 20
		h := slotted(slots)
		inside, most, done := make(chan struct{}, callers), 0, 0
		release := make(chan struct{})
		for range callers {
			go func() {
				leave, err := h.enter(context.Background(), "")
				if err != nil {
					t.Error(err)
					return
				}
				inside <- struct{}{}
				<-release
				<-inside
				leave()
				done++ // one at a time: release is given one by one
			}()
		}
		for range callers {
			synctest.Wait()
			most = max(most, len(inside))
			release <- struct{}{}
		}
		synctest.Wait()
		if most != slots || done != callers {
			t.Errorf("%d at a time, %d in all; want %d and %d", most, done, slots, callers)
		}
		h.gate.mustBeEmpty(t)
	})
}

func TestGateBoundsItsQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 2
		h := slotted(slots)
		leave := mustEnter(t, h)
		mustEnter(t, h)
		results := make(chan error, slots*MaxWaitingPerCore)
		for range slots * MaxWaitingPerCore {
			go func() {
				_, err := h.enter(context.Background(), "")
				results <- err
			}()
		}
		synctest.Wait()
		if len(results) != 0 {
			t.Fatalf("%d did not wait: %v", len(results), <-results)
		}

		start := time.Now()
		if _, err := h.enter(t.Context(), ""); err != ErrBusy || !time.Now().Equal(start) {
			t.Errorf("one more than the queue holds got %v after %v, want ErrBusy at once", err, time.Since(start))
		}
		leave()
		synctest.Wait()
		if len(results) != 1 || <-results != nil {
			t.Error("a place given back did not go to one of the queue")
		}
		go func() {
			_, err := h.enter(context.Background(), "")
			results <- err
		}()
		synctest.Wait()
		if len(results) != 0 {
			t.Errorf("the place in the queue that was left is still taken: %v", <-results)
		}

		for range slots * MaxWaitingPerCore {
			if err := <-results; err != ErrBusy {
				t.Errorf("one that waited in vain got %v, want ErrBusy", err)
			}
		}
		if waited := time.Since(start); waited != MaxWait {
			t.Errorf("they waited %v, want %v", waited, MaxWait)
		}
		if _, waiting := h.gate.count(); waiting != 0 {
			t.Errorf("%d wait when all have gone", waiting)
		}
	})
}

func TestGateLetsGoOfWhoHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := slotted(1)
		leave := mustEnter(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, MaxWaitingPerCore)
		for range MaxWaitingPerCore {
			go func() {
				_, err := h.enter(ctx, "")
				results <- err
			}()
		}
		synctest.Wait()
		start := time.Now()
		cancel()
		for range MaxWaitingPerCore {
			if err := <-results; !errors.Is(err, context.Canceled) || errors.Is(err, ErrBusy) {
				t.Errorf("got %v, want the context's error", err)
			}
		}
		if !time.Now().Equal(start) {
			t.Errorf("they left after %v, want at once", time.Since(start))
		}
		entered := make(chan error, 1)
		go func() {
			leave, err := h.enter(context.Background(), "")
			if err == nil {
				leave()
			}
			entered <- err
		}()
		synctest.Wait()
		leave()
		if err := <-entered; err != nil {
			t.Errorf("the next one got %v: their places are still taken", err)
		}
		h.gate.mustBeEmpty(t)
	})
}

// Whoever sends many passwords, though they be right, waits behind himself.
func TestGateIsSharedByNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 2
		h := slotted(slots)
		leave := h.gate.fill()
		ends := make(chan string)
		ask := func(from string) {
			go func() {
				leave, err := h.enter(context.Background(), from)
				if err != nil {
					ends <- from + " refused"
					return
				}
				ends <- from
				leave()
			}()
			synctest.Wait()
		}
		receive := func(want string) {
			t.Helper()
			synctest.Wait()
			select {
			case got := <-ends:
				if got != want {
					t.Errorf("%s, want %s", got, want)
				}
			default:
				t.Errorf("nothing, want %s", want)
			}
		}
		for range MaxWaitingPerCore * slots {
			ask("many")
		}
		ask("few")
		receive("many refused") // to make room
		ask("many")
		receive("many refused") // itself: its line is the longest
		ask("few")
		receive("many refused")
		ask("one")
		receive("many refused")
		leave()
		synctest.Wait()
		got := make(map[string]int)
		for range 2*3 - 1 { // in two turns
			got[<-ends]++
			synctest.Wait()
		}
		if got["few"] != 2 || got["one"] != 1 || got["many"] != 2 {
			t.Errorf("let in: %v", got)
		}
		for range MaxWaitingPerCore*slots - 5 {
			<-ends
		}
		synctest.Wait()
		h.gate.mustBeEmpty(t)
	})
}

// A turn that comes when the waiter has just gone is the next one's.
func TestGateLosesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := slotted(1)
		var group sync.WaitGroup
		for range 500 {
			leave := h.gate.fill()
			ctx, cancel := context.WithCancel(t.Context())
			for _, ctx := range []context.Context{ctx, t.Context()} { // the second stays
				group.Go(func() {
					if leave, err := h.enter(ctx, "a network"); err == nil {
						leave()
					}
				})
				synctest.Wait()
			}
			go cancel()
			go leave()
			synctest.Wait()
		}
		group.Wait()
		h.gate.mustBeEmpty(t)
	})
}
