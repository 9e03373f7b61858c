// Package netlisten limits connections, and takes sockets from systemd.
package netlisten

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Limit lets at most n connections of a listener be open at once.
func Limit(l net.Listener, n int) *Listener {
	return &Listener{
		Listener: l,
		start:    time.Now(),
		most:     n,
		open:     make(map[*Conn]struct{}),
		freed:    make(chan struct{}, 1),
		closed:   make(chan struct{}),

		mostBeside: int64(n),
	}
}

// A Listener has room for so many connections. Where there is none left,
// those that have waited longest for their client make room: idle ones, and
// those whose client sends or reads too slowly. To open many and leave them so
// then shuts nobody out, and a request that runs is never cut off for another.
// Others are closed when their next request is answered: else whoever asks often
// enough on all of them, and so never keeps the server waiting, shuts the others out.
type Listener struct {
	net.Listener
	closed chan struct{}
	once   sync.Once
	freed  chan struct{} // a connection has been closed
	short  atomic.Bool   // there is no place for the next
	start  time.Time

	mu   sync.Mutex
	most int
	open map[*Conn]struct{}

	beside     atomic.Int64 // requests begun while another was, on their connection
	mostBeside int64
}

// Patience is how long a client may be waited for where room is short: some
// round trips, as a handshake takes.
const Patience = time.Second

// sendBuffer is how many bytes of an answer that its client has not taken the
// system is asked to hold (Linux takes twice as many). By itself it holds up to 4
// MB, and whoever asks for the list on every connection and reads nothing would
// fill gigabytes of the kernel's memory.
const sendBuffer = 256 << 10

// spareFiles is how many file descriptors are left for the database.
const spareFiles = 16

func (l *Listener) Accept() (net.Conn, error) {
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
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetWriteBuffer(sendBuffer) // where that fails, the system's own size does
		}
		c := &Conn{Conn: conn, l: l, since: l.now()} // a connection that is new waits for its client
		l.mu.Lock()
		l.open[c] = struct{}{}
		l.mu.Unlock()
		return c, nil
	}
}

// makeRoom returns when there is room for one more, or net.ErrClosed.
func (l *Listener) makeRoom() error {
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
func (l *Listener) hasRoom() bool {
	l.mu.Lock()
	if len(l.open) < l.most {
		l.mu.Unlock()
		return true
	}
	type waiter struct {
		c     *Conn
		since int64
	}
	var waiting []waiter
	for c := range l.open {
		if since := c.waitsSince(); since > 0 && since < l.now()-int64(Patience) {
			waiting = append(waiting, waiter{c, since})
		}
	}
	n := len(l.open) - l.most + 1 + l.most/64
	l.mu.Unlock()
	slices.SortFunc(waiting, func(a, b waiter) int { return cmp.Compare(a.since, b.since) })
	for _, w := range waiting[:min(n, len(waiting))] {
		if w.c.waitsSince() == w.since { // else its request has come by now
			w.c.Close()
		}
	}
	return false
}

// now is in nanoseconds; by the monotonic clock alone, as it is read with each request.
func (l *Listener) now() int64 { return int64(time.Since(l.start)) + 1 }

// Close also ends an Accept that waits for a place.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A Conn gives its place back when it is closed. It waits for its client
// while none of its requests runs, and while what is written to it does not
// leave. HTTP/2 runs several requests on one.
type Conn struct {
	net.Conn
	l *Listener

	mu       sync.Mutex
	requests int   // begun and not ended
	running  int   // those of them that do not wait for the client
	since    int64 // when running became 0, by l.now
	writing  int64 // when the write began that is under way; 0: none
}

// waitsSince returns when c began to wait for its client, 0 where it does not.
func (c *Conn) waitsSince() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.writing != 0:
		return c.writing
	case c.running > 0:
		return 0
	}
	return c.since
}

// BeginRequest notes that a request runs. It refuses one beside another on the same
// connection where there are as many of those as there may be connections:
// what requests hold is bounded as in HTTP/1, or nearly, and the first request
// of a connection is always let in.
func (c *Conn) BeginRequest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests > 0 && c.l.beside.Add(1) > c.l.mostBeside {
		c.l.beside.Add(-1)
		return false
	}
	c.requests++
	c.running++
	return true
}

// EndRequest notes that a request which BeginRequest let in has ended.
func (c *Conn) EndRequest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop()
	if c.requests--; c.requests > 0 {
		c.l.beside.Add(-1)
	}
}

// AwaitClient notes that a request waits for the client.
func (c *Conn) AwaitClient() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop()
}

func (c *Conn) stop() {
	if c.running--; c.running == 0 {
		c.since = c.l.now()
	}
}

// Resume notes that a request waits no more.
func (c *Conn) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
}

func (c *Conn) Write(p []byte) (int, error) {
	c.noteWriting(c.l.now())
	defer c.noteWriting(0)
	return c.Conn.Write(p)
}

func (c *Conn) noteWriting(since int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing = since
}

func (c *Conn) Close() error {
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

// ShouldClose reports whether there is no place for the next connection.
func (c *Conn) ShouldClose() bool { return c.l.short.Load() }

// connKey is the key of a request's *Conn in its context.
type connKey struct{}

// ConnContext is for http.Server.ConnContext.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, underlying(conn))
}

// FromContext returns the Conn of a request's context, or nil.
func FromContext(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// underlying returns the Conn below a connection, or nil.
func underlying(conn net.Conn) *Conn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*Conn)
	return c
}
