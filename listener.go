package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// limitConnections lets at most n connections of a listener be open at once.
func limitConnections(l net.Listener, n int) net.Listener {
	return &limitedListener{
		Listener: l,
		start:    time.Now(),
		most:     n,
		open:     make(map[*limitedConn]struct{}),
		freed:    make(chan struct{}, 1),
		closed:   make(chan struct{}),
	}
}

// A limitedListener has room for so many connections. Where there is none left,
// those that have waited longest for their client make room: idle ones, and
// those whose client sends or reads too slowly. To open many and leave them so
// then shuts nobody out, and a request that runs is never cut off for another.
type limitedListener struct {
	net.Listener
	closed chan struct{}
	once   sync.Once
	freed  chan struct{} // a connection has been closed
	short  atomic.Bool   // there is no place for the next
	start  time.Time

	mu   sync.Mutex
	most int
	open map[*limitedConn]struct{}
}

// clientPatience is how long a client may be waited for where room is short: some
// round trips, as a handshake takes.
const clientPatience = time.Second

// spareFiles is how many file descriptors are left for the database.
const spareFiles = 16

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		if err := l.makeRoom(); err != nil {
			return nil, err
		}
		conn, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) {
			l.mu.Lock()
			l.most = max(1, min(l.most, len(l.open))-spareFiles) // what the process is allowed
			l.mu.Unlock()
			continue
		}
		if err != nil {
			return nil, err
		}
		c := &limitedConn{Conn: conn, l: l}
		l.mu.Lock()
		l.open[c] = struct{}{}
		l.mu.Unlock()
		return c, nil
	}
}

// makeRoom returns when there is room for one more, or net.ErrClosed.
func (l *limitedListener) makeRoom() error {
	defer l.short.Store(false)
	for !l.hasRoom() {
		l.short.Store(true)
		select {
		case <-l.freed:
		case <-time.After(10 * time.Millisecond): // one may wait for its client by now
		case <-l.closed:
			return net.ErrClosed
		}
	}
	return nil
}

// hasRoom reports whether there is room for one more, and if not begins to make
// some: for a few at once, because it looks at every connection.
func (l *limitedListener) hasRoom() bool {
	l.mu.Lock()
	if len(l.open) < l.most {
		l.mu.Unlock()
		return true
	}
	type waiter struct {
		c     *limitedConn
		since int64
	}
	var waiting []waiter
	for c := range l.open {
		if since := c.since.Load(); since > 0 && since < l.now()-int64(clientPatience) {
			waiting = append(waiting, waiter{c, since})
		}
	}
	n := len(l.open) - l.most + 1 + l.most/64
	l.mu.Unlock()
	slices.SortFunc(waiting, func(a, b waiter) int { return cmp.Compare(a.since, b.since) })
	for _, w := range waiting[:min(n, len(waiting))] {
		if w.c.since.CompareAndSwap(w.since, closing) { // else its request has come by now
			w.c.Close()
		}
	}
	return false
}

// now is in nanoseconds; by the monotonic clock alone, as it is read with each request.
func (l *limitedListener) now() int64 { return int64(time.Since(l.start)) + 1 }

// Close also ends an Accept that waits for a place.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	l     *limitedListener
	since atomic.Int64 // when it began to wait for its client, by l.now; 0: it does not wait
}

// closing stands for the time of a connection that makes room.
const closing = -1

func (c *limitedConn) await() { c.since.Store(c.l.now()) }

func (c *limitedConn) Write(p []byte) (int, error) {
	before := c.since.Swap(c.l.now())
	defer c.since.Store(before)
	return c.Conn.Write(p)
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.l.mu.Lock()
	delete(c.l.open, c)
	c.l.mu.Unlock()
	select {
	case c.l.freed <- struct{}{}:
	default:
	}
	return err
}

// noteState is for http.Server.ConnState, and counts the connections.
func (s *server) noteState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.stats.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.stats.connections.Add(-1)
	}
	noteState(conn, state)
}

// noteState is for http.Server.ConnState. A connection that is new or idle
// waits for its client until a whole header is there. Where there is no room
// left, one that has been answered makes some: else whoever asks often enough on
// all of them, and so never keeps the server waiting, shuts the others out.
func noteState(conn net.Conn, state http.ConnState) {
	c := underlying(conn)
	switch {
	case c == nil:
	case state == http.StateActive:
		c.since.Store(0)
	case state == http.StateIdle && c.l.short.Load():
		c.Close()
	case state == http.StateNew, state == http.StateIdle:
		c.await()
	}
}

// connKey is the key of a request's *limitedConn in its context.
type connKey struct{}

// withConn is for http.Server.ConnContext.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, underlying(conn))
}

// underlying returns the limitedConn below a connection, or nil.
func underlying(conn net.Conn) *limitedConn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*limitedConn)
	return c
}

// awaitClient notes that a request's connection waits for its client, until
// done is called.
func awaitClient(r *http.Request) (done func()) {
	c, _ := r.Context().Value(connKey{}).(*limitedConn)
	if c == nil {
		return func() {}
	}
	c.await()
	return func() { c.since.Store(0) }
}
