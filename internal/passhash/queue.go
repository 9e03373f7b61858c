package passhash

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// MaxWait is the longest time that a call waits for its turn. Clients wait longer
	// before they try again, which would only add to the load.
	MaxWait = 2 * time.Second

	// MaxWaitingPerCore is how many calls can wait for each core: what a core serves
	// within MaxWait at 25 ms a hash, which is more than the argon2 kernel needs and
	// about what x/crypto needs. If more could wait, they would only keep their
	// connections open until they are refused, as some are on a slower core.
	MaxWaitingPerCore = 80
)

// A queue gives out turns, one per core at a time. The networks take turns. The
// calls of one network wait in order of arrival.
type queue struct {
	cores int

	mu       sync.Mutex
	running  int       // turns that go on
	waiting  int       // waiters of all networks
	networks []network // each has a waiter; the first gets the next turn
}

type network struct {
	name    string
	waiters []waiter // the first gets the network's next turn
}

// A waiter receives one value: nil for its turn, or ErrBusy.
type waiter chan error

// wait returns nil when the caller has a turn, which it ends with done. The error is
// ErrBusy or wraps that of ctx.
func (q *queue) wait(ctx context.Context, from string) error {
	w := q.join(from)
	if w == nil {
		return nil
	}
	var err error
	select {
	case err = <-w:
		return err
	case <-time.After(MaxWait):
		err = ErrBusy
	case <-ctx.Done():
		err = fmt.Errorf("waiting to hash: %w", ctx.Err())
	}
	if !q.abandon(w) && <-w == nil { // the turn came just now
		q.done()
	}
	return err
}

// join takes a free turn and returns nil, or returns a new waiter. If too many
// wait, it refuses the last waiter of the network that has the most.
func (q *queue) join(from string) waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running < q.cores { // then no other call waits
		q.running++
		return nil
	}
	i := slices.IndexFunc(q.networks, func(n network) bool { return n.name == from })
	if i < 0 {
		i = len(q.networks)
		q.networks = append(q.networks, network{name: from})
	}
	w := make(waiter, 1)
	q.networks[i].waiters = append(q.networks[i].waiters, w)
	q.waiting++
	if q.waiting > MaxWaitingPerCore*q.cores {
		for j, n := range q.networks { // of two that have as many, the network of w comes first
			if len(n.waiters) > len(q.networks[i].waiters) {
				i = j
			}
		}
		q.remove(i, len(q.networks[i].waiters)-1) <- ErrBusy
	}
	return w
}

// abandon removes a waiter, or returns false if it has received its value.
func (q *queue) abandon(w waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, n := range q.networks {
		if j := slices.Index(n.waiters, w); j >= 0 {
			q.remove(i, j)
			return true
		}
	}
	return false
}

// done ends a turn and passes it on to the next network, which then goes last.
func (q *queue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting == 0 {
		q.running--
		return
	}
	q.networks = append(q.networks[1:], q.networks[0])
	q.remove(len(q.networks)-1, 0) <- nil
}

// remove removes waiter j of network i and returns it. A network without waiters is
// removed too.
func (q *queue) remove(i, j int) waiter {
	n := &q.networks[i]
	w := n.waiters[j]
	q.waiting--
	n.waiters = slices.Delete(n.waiters, j, j+1)
	if len(n.waiters) == 0 {
		q.networks = slices.Delete(q.networks, i, i+1)
	}
	return w
}

// count returns the number of running turns and of waiters.
func (q *queue) count() (running, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running, q.waiting
}
