package passhash

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A gate lets in as many at once as it has slots. A bounded number waits, for at
// most MaxWait. They stand in a line for each network, and the lines take turns;
// where too many wait, the last of the longest line is refused. So a network that
// sends many passwords, right ones too, costs each other one turn.
type gate struct {
	slots int

	mu      sync.Mutex
	inside  int
	waiting int
	lines   []line // none is empty; the first has the next turn
}

type line struct {
	from    string
	waiters []chan error // each is told one thing: nil is to go in
}

const (
	// MaxWait is below what a client waits before it asks again, which would
	// only add to the load.
	MaxWait = 2 * time.Second
	// MaxWaitingPerCore at 25 ms a hash are served within MaxWait; letting in more
	// would keep connections open only to refuse them later.
	MaxWaitingPerCore = 80
)

// enter returns nil when the caller is inside, ErrBusy, or the context's error.
func (g *gate) enter(ctx context.Context, from string) error {
	w := g.join(from)
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
	if !g.quit(from, w) && <-w == nil { // its turn has come just now
		g.leave()
	}
	return err
}

// join goes in, and returns nil, or stands in line and returns what will tell
// the outcome.
func (g *gate) join(from string) chan error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside < g.slots { // then nobody waits
		g.inside++
		return nil
	}
	i := g.lineOf(from)
	if i < 0 {
		i = len(g.lines)
		g.lines = append(g.lines, line{from: from})
	}
	w := make(chan error, 1)
	g.lines[i].waiters = append(g.lines[i].waiters, w)
	if g.waiting++; g.waiting > MaxWaitingPerCore*g.slots {
		for j, l := range g.lines {
			if len(l.waiters) > len(g.lines[i].waiters) {
				i = j
			}
		}
		g.take(i, len(g.lines[i].waiters)-1) <- ErrBusy
	}
	return w
}

// quit takes a waiter out of the line, or returns false where it is out already.
func (g *gate) quit(from string, w chan error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := g.lineOf(from)
	if i < 0 {
		return false
	}
	n := slices.Index(g.lines[i].waiters, w)
	if n < 0 {
		return false
	}
	g.take(i, n)
	return true
}

// leave lets in the first of the line whose turn it is, which is then the last.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting == 0 {
		g.inside--
		return
	}
	g.lines = append(g.lines[1:], g.lines[0])
	g.take(len(g.lines)-1, 0) <- nil
}

func (g *gate) lineOf(from string) int {
	return slices.IndexFunc(g.lines, func(l line) bool { return l.from == from })
}

// take takes the nth waiter out of a line, and the line away where that was all.
func (g *gate) take(i, n int) chan error {
	l := &g.lines[i]
	w := l.waiters[n]
	g.waiting--
	if l.waiters = slices.Delete(l.waiters, n, n+1); len(l.waiters) == 0 {
		g.lines = slices.Delete(g.lines, i, i+1)
	}
	return w
}

// count returns how many are inside and how many wait.
func (g *gate) count() (inside, waiting int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside, g.waiting
}
