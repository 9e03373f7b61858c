package passhash

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newWithCores(cores int) *Hasher {
	h := New(cheap)
	h.queue.cores = cores
	return h
}

func mustTurn(t *testing.T, h *Hasher) (done func()) {
	t.Helper()
	done, err := h.Turn(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func (q *queue) mustBeEmpty(t *testing.T) {
	t.Helper()
	if q.running != 0 || q.waiting != 0 || len(q.networks) != 0 {
		t.Errorf("%d calls run and %d wait in %d networks", q.running, q.waiting, len(q.networks))
	}
}

func TestQueueHasATurnForEachCore(t *testing.T) {
	t.Parallel()
	if got, want := New(cheap).queue.cores, runtime.GOMAXPROCS(0); got != want {
		t.Errorf("%d turns on %d cores", got, want)
	}
}

func TestQueueRunsOneCallPerCore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const cores, calls = 3, 20
		h := newWithCores(cores)
		running, most, ended := make(chan struct{}, calls), 0, 0
		release := make(chan struct{})
		for range calls {
			go func() {
				done, err := h.Turn(context.Background(), "")
				if err != nil {
					t.Error(err)
					return
				}
				running <- struct{}{}
				<-release
				<-running
				done()
				ended++ // release is sent one by one, so this never runs concurrently
			}()
		}
		for range calls {
			synctest.Wait()
			most = max(most, len(running))
			release <- struct{}{}
		}
		synctest.Wait()
		if most != cores || ended != calls {
			t.Errorf("%d calls ran concurrently and %d ended; want %d and %d", most, ended, cores, calls)
		}
		h.queue.mustBeEmpty(t)
	})
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const cores = 2
		h := newWithCores(cores)
		done := mustTurn(t, h)
		mustTurn(t, h)
		results := make(chan error, cores*MaxWaitingPerCore)
		call := func() {
			_, err := h.Turn(context.Background(), "")
			results <- err
		}
		for range cores * MaxWaitingPerCore {
			go call()
		}
		synctest.Wait()
		if len(results) != 0 {
			t.Fatalf("%d calls did not wait: %v", len(results), <-results)
		}

		start := time.Now()
		if _, err := h.Turn(t.Context(), ""); err != ErrBusy || !time.Now().Equal(start) {
			t.Errorf("a call to the full queue returned %v after %v, want ErrBusy immediately", err, time.Since(start))
		}
		done()
		synctest.Wait()
		if len(results) != 1 || <-results != nil {
			t.Error("a turn that ended was not passed on")
		}
		go call()
		synctest.Wait()
		if len(results) != 0 {
			t.Errorf("a call did not get the free place in the queue: %v", <-results)
		}

		for range cores * MaxWaitingPerCore {
			if err := <-results; err != ErrBusy {
				t.Errorf("a call without a turn returned %v, want ErrBusy", err)
			}
		}
		if waited := time.Since(start); waited != MaxWait {
			t.Errorf("the calls waited %v, want %v", waited, MaxWait)
		}
		if n := h.Stats().Waiting; n != 0 {
			t.Errorf("%d calls wait after all have returned", n)
		}
	})
}

func TestCanceledCallsLeaveTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newWithCores(1)
		done := mustTurn(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, MaxWaitingPerCore)
		for range MaxWaitingPerCore {
			go func() {
				_, err := h.Turn(ctx, "")
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
			t.Errorf("the calls returned after %v, want immediately", time.Since(start))
		}
		next := make(chan error, 1)
		go func() {
			done, err := h.Turn(context.Background(), "")
			if err == nil {
				done()
			}
			next <- err
		}()
		synctest.Wait()
		done()
		if err := <-next; err != nil {
			t.Errorf("the next call returned %v: the canceled ones kept their places", err)
		}
		h.queue.mustBeEmpty(t)
	})
}

// A network that sends many passwords, even correct ones, delays itself only.
func TestNetworksTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const cores = 2
		h := newWithCores(cores)
		occupied := []func(){mustTurn(t, h), mustTurn(t, h)}
		ends := make(chan string)
		call := func(from string) {
			go func() {
				done, err := h.Turn(context.Background(), from)
				if err != nil {
					ends <- from + " refused"
					return
				}
				ends <- from
				done()
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
		for range MaxWaitingPerCore * cores {
			call("many")
		}
		call("few")
		receive("many refused") // to make room
		call("many")
		receive("many refused") // itself: its network has the most waiters
		call("few")
		receive("many refused")
		call("one")
		receive("many refused")
		for _, done := range occupied {
			done()
		}
		synctest.Wait()
		got := make(map[string]int)
		for range 2*3 - 1 { // two turns for each network that has two waiters
			got[<-ends]++
			synctest.Wait()
		}
		if got["few"] != 2 || got["one"] != 1 || got["many"] != 2 {
			t.Errorf("the first turns went to %v", got)
		}
		for range MaxWaitingPerCore*cores - 5 {
			<-ends
		}
		synctest.Wait()
		h.queue.mustBeEmpty(t)
	})
}

func TestOfTwoNetworksWithAsManyCallsTheNewestCallIsRefused(t *testing.T) {
	t.Parallel()
	q := queue{cores: 1, running: 1}
	const half = MaxWaitingPerCore / 2
	for from, calls := range []int{half - 1, half, 1} {
		for range calls {
			q.join(string(rune('a' + from)))
		}
	}
	select {
	case err := <-q.join("a"):
		if err != ErrBusy {
			t.Errorf("got %v", err)
		}
	default:
		t.Error("another call was refused")
	}
}

func TestCallsOfANetworkWaitInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newWithCores(1)
		release := mustTurn(t, h)
		var order []int
		for i := range 5 {
			go func() {
				done, err := h.Turn(context.Background(), "a network")
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i)
				done()
			}()
			synctest.Wait()
		}
		release()
		synctest.Wait()
		for i, got := range order {
			if got != i {
				t.Fatalf("the calls ran in the order %v", order)
			}
		}
	})
}

// A turn can come at the moment when its caller gives up; it then goes to the next.
// The caller has seen only the end of its context, so cancel comes first.
func TestNoTurnIsLost(t *testing.T) {
	t.Parallel()
	for name, others := range map[string]int{"with another call of the network": 1, "with no other call": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newWithCores(1)
				var ended atomic.Int64
				call := func(ctx context.Context) {
					go func() {
						if done, err := h.Turn(ctx, "a network"); err == nil {
							done()
						}
						ended.Add(1)
					}()
					synctest.Wait()
				}
				for range 200 {
					done := mustTurn(t, h)
					ctx, cancel := context.WithCancel(t.Context())
					call(ctx)
					for range others {
						call(t.Context())
					}
					cancel()
					done()
					synctest.Wait()
					h.queue.mustBeEmpty(t)
				}
				if got, want := ended.Load(), int64(200*(1+others)); got != want {
					t.Errorf("%d calls ended, want %d", got, want)
				}
			})
		})
	}
}

// A call can be refused at the moment when it gives up; it then has no turn to end.
func TestARefusedCallThatGivesUpEndsNoTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newWithCores(1)
		for range 20 {
			done := mustTurn(t, h)
			ctx, cancel := context.WithCancel(t.Context())
			all, cancelAll := context.WithCancel(t.Context())
			call := func(ctx context.Context, from string) {
				go func() {
					if done, err := h.Turn(ctx, from); err == nil {
						t.Error("a turn came while another call had it")
						done()
					}
				}()
			}
			for range MaxWaitingPerCore - 1 {
				call(all, "many")
			}
			synctest.Wait()
			call(ctx, "many")
			synctest.Wait()
			cancel()
			if w := h.queue.join("few"); w == nil {
				t.Fatal("the queue is not full")
			} else {
				synctest.Wait()
				h.queue.abandon(w)
			}
			cancelAll()
			synctest.Wait()
			done()
			h.queue.mustBeEmpty(t)
		}
	})
}
