package passhash

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// MaxWait is how long a call waits for its turn at most. Clients wait longer
	// before they try again, which would only add to the load.
	MaxWait = 2 * time.Second

	// MaxWaitingPerCore is how many calls can wait for each core: what a core serves
	// within MaxWait at 25 ms a hash. If more could wait, they would only keep their
	// connections open until they are refused, as some are on a slower core.
	MaxWaitingPerCore = 80
)

// A queue gives out turns, one per core at a time. Calls wait in order of arrival
// within their network; the networks take turns.
type queue struct {
	cores int

	mu       sync.Mutex
	running  int       // turns that have not ended
	waiting  int       // waiters of all networks
	networks []network // each has a waiter; the first gets the next turn
}

type network struct {
	name    string
	waiters []waiter // the first gets the network's next turn
}

// A waiter receives one value: nil for its turn, or ErrBusy.
type waiter chan error

// wait returns nil when the caller has a turn, and done must end it. Otherwise it
// returns ErrBusy, or an error that wraps the context's.
func (q *queue) wait(ctx context.Context, from string) error {
	w := q.join(from)
	if w == nil {
		return nil
	}
	timeout := time.NewTimer(MaxWait)
	defer timeout.Stop()
	var err error
	select {
	case err = <-w:
		return err
	case <-timeout.C:
		err = ErrBusy
	case <-ctx.Done():
		err = fmt.Errorf("waiting to hash: %w", ctx.Err())
	}
	if !q.abandon(from, w) && <-w == nil { // the turn came just now
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
	i := q.find(from)
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
func (q *queue) abandon(from string, w waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.find(from)
	if i < 0 {
		return false
	}
	n := slices.Index(q.networks[i].waiters, w)
	if n < 0 {
		return false
	}
	q.remove(i, n)
	return true
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

// find returns the index of a network that has waiters, or -1.
func (q *queue) find(name string) int {
	return slices.IndexFunc(q.networks, func(n network) bool { return n.name == name })
}

// remove removes the nth waiter of a network and returns it. A network without
// waiters is removed too.
func (q *queue) remove(i, n int) waiter {
	net := &q.networks[i]
	w := net.waiters[n]
	q.waiting--
	net.waiters = slices.Delete(net.waiters, n, n+1)
	if len(net.waiters) == 0 {
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
