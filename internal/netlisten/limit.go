// Package netlisten opens the listeners of a server: sockets from systemd, and a
// limit on the connections of a listener that idle clients cannot exhaust.
//
// A server that only counts its connections stops serving once strangers have opened
// as many as it allows. So a full listener of [Limit] makes room when a client wants
// to connect: it closes the connections that have waited for their own client
// longest, if that is longer than [Patience]. A connection waits for its client
// before its first request and between requests, while a request waits for more of
// its body, and while the client does not read what the server writes.
//
// All connections together hold at most 12 KiB of unread answers for each connection
// that the limit allows, in the kernel and in requests that wait. If they would hold
// more, the listener resets those that have waited for their client longest. Clients
// that leave no more than 4 KiB unread are never among them. A connection that the
// server closed counts until its client has received everything. Only on Linux does
// the kernel say how much that is. On other systems, everything that the server
// wrote counts, up to the size of the send buffer, so idle connections can be reset.
//
// Otherwise the listener never closes a connection on which the server is working.
// The server has to say when that is: handlers find their connection with
// [FromContext], mark each request with [Conn.BeginRequest] and [Conn.EndRequest],
// and each time that they need the client with [Conn.AwaitClient] and [Conn.Resume].
//
// Clients that send requests often enough never keep the server waiting. While
// another client waits for a connection, [Conn.ShouldClose] tells the server to close
// each connection after its current answer.
package netlisten

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

const (
	// Patience is how long a full listener lets a connection wait for its client. A
	// handshake needs some round trips.
	Patience = time.Second

	// retryInterval is how often a full listener looks for connections that have
	// waited too long, and how long Accept waits if no file descriptor is left.
	retryInterval = 10 * time.Millisecond

	// sendBuffer is how many bytes of an answer the system is asked to hold while
	// the client does not read (Linux doubles it). By default Linux holds up to 4
	// MB: clients that request large answers on every connection and read none of
	// them would fill gigabytes of kernel memory.
	sendBuffer = 256 << 10

	// spareFiles is how many file descriptors the limit leaves to the rest of the
	// process, such as its database, after the process ran out of them.
	spareFiles = 16
)

// A listener limits how many of its connections are open.
type listener struct {
	net.Listener
	start     time.Time
	full      atomic.Bool   // Accept waits for a connection to close; each request reads this
	freed     chan struct{} // receives after a connection was closed
	closed    chan struct{}
	closeOnce sync.Once

	mu    sync.Mutex
	limit int // Accept lowers it if the process runs out of file descriptors
	open  map[*Conn]struct{}

	unread unread

	extra    atomic.Int64 // requests that began while another one ran on their connection
	maxExtra int64
}

// Limit returns a listener that accepts connections of l, of which at most n are
// open at a time. More clients wait in the system's queue. The connections are of
// type *[Conn]. Closing the listener closes l.
func Limit(l net.Listener, n int) net.Listener {
	return &listener{
		Listener: l,
		start:    time.Now(),
		freed:    make(chan struct{}, 1),
		closed:   make(chan struct{}),
		limit:    n,
		open:     make(map[*Conn]struct{}),
		maxExtra: int64(n),
		unread:   unread{most: max(minUnread, int64(n)*unreadPerConn)},
	}
}

// Accept waits for room and for the next client. If the process has no file
// descriptor left, Accept lowers the limit permanently: connections must not use the
// last descriptors again.
func (l *listener) Accept() (net.Conn, error) {
	for {
		if err := l.makeRoom(); err != nil {
			return nil, err
		}
		conn, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) {
			l.mu.Lock()
			l.limit = max(1, min(l.limit, len(l.open))-spareFiles)
			l.mu.Unlock()
			time.Sleep(retryInterval) // without an open connection, makeRoom does not wait
			continue
		}
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetWriteBuffer(sendBuffer) // if this fails, the size stays the system's default
		}
		c := &Conn{Conn: conn, l: l, since: l.now()} // a new connection waits for its client
		l.mu.Lock()
		l.open[c] = struct{}{}
		l.mu.Unlock()
		return c, nil
	}
}

// makeRoom returns when there is room for a connection, or net.ErrClosed.
func (l *listener) makeRoom() error {
	defer l.full.Store(false)
	for !l.hasRoom() {
		l.full.Store(true)
		select {
		case <-l.freed:
		case <-time.After(retryInterval): // a connection may have waited too long by now
		case <-l.closed:
			return net.ErrClosed
		}
	}
	return nil
}

// hasRoom reports whether there is room for a connection. If not, it closes some
// connections that have waited longer than Patience. It looks at every connection,
// so if the limit is high, it closes several in one pass.
func (l *listener) hasRoom() bool {
	l.mu.Lock()
	if len(l.open) < l.limit {
		l.mu.Unlock()
		return true
	}
	type waiting struct {
		c     *Conn
		since int64
	}
	var idle []waiting
	for c := range l.open {
		if since := c.waitsSince(); since > 0 && since < l.now()-int64(Patience) {
			idle = append(idle, waiting{c, since})
		}
	}
	n := len(l.open) - l.limit + 1 + l.limit/64
	l.mu.Unlock()
	slices.SortFunc(idle, func(a, b waiting) int { return cmp.Compare(a.since, b.since) })
	for _, w := range idle[:min(n, len(idle))] {
		if w.c.waitsSince() == w.since { // otherwise its request has come by now
			w.c.discard()
		}
	}
	return false
}

// now returns the nanoseconds since the listener was made, plus 1: never 0. It reads
// only the monotonic clock, which costs less, because every request calls it.
func (l *listener) now() int64 { return int64(time.Since(l.start)) + 1 }

// Close closes the listener, also while Accept waits for room: http.Server.Shutdown
// waits until Accept has returned, even if its context ends.
func (l *listener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A Conn is a connection of a listener of [Limit]. Its methods can be called
// concurrently: HTTP/2 runs several requests on one connection.
type Conn struct {
	net.Conn
	l       *listener
	writing atomic.Int64 // when the current write began, by l.now; 0 if there is none

	mu       sync.Mutex
	requests int   // that began and go on
	running  int   // those of them that do not wait for the client
	since    int64 // when the last request stopped running, by l.now

	pending atomic.Int64 // bytes of the current write: the kernel may not have them yet
	held    held         // l.unread.mu guards it
	io      sync.RWMutex // read-locked while a read or write of the process runs
	cut     atomic.Bool  // an answer was cut off: a write failed, or there was no room
	closing atomic.Bool  // Close was called
}

// waitsSince returns when c began to wait for its client, by l.now, or 0 if it does
// not wait.
func (c *Conn) waitsSince() int64 {
	if writing := c.writing.Load(); writing != 0 {
		return writing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running > 0 {
		return 0
	}
	return c.since
}

// BeginRequest marks the beginning of a request and returns true. If it returns
// false, the server should refuse the request, and must not call EndRequest.
//
// The first request of a connection can always begin. HTTP/2 allows more: the total of
// these is limited to the limit of connections. So HTTP/2 clients can make the server
// hold at most twice what HTTP/1 clients can.
func (c *Conn) BeginRequest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests > 0 && c.l.extra.Add(1) > c.l.maxExtra {
		c.l.extra.Add(-1)
		return false
	}
	c.requests++
	c.running++
	return true
}

// EndRequest marks the end of a request for which BeginRequest returned true. From
// then on the connection waits for its client: to send the rest of a body that the
// handler did not read, to read the answer, and to send the next request.
func (c *Conn) EndRequest() {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests--; c.requests > 0 {
		c.l.extra.Add(-1)
	}
}

// AwaitClient marks that a request waits for the client until Resume. If answer is 0,
// the client has to send more. Otherwise it has to read an answer of that many bytes.
func (c *Conn) AwaitClient(answer int) {
	c.stop()
	if answer > 0 {
		c.holdAnswer(answer)
	}
}

// Resume marks that a request no longer waits for the client. It requires the same
// answer as AwaitClient.
func (c *Conn) Resume(answer int) {
	if answer > 0 {
		c.dropAnswer(answer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
}

// Await is AwaitClient. It returns a function that calls Resume. If c is nil, because the
// listener is not one of this package, both do nothing.
func (c *Conn) Await(answer int) (done func()) {
	if c == nil {
		return func() {}
	}
	c.AwaitClient(answer)
	return func() { c.Resume(answer) }
}

// WriteAnswer writes a part of the answer to r. Before net/http writes to the connection, it
// may wait for the client: for the rest of the request's body, or for HTTP/2 flow control (RFC
// 9113 section 5.2). WriteAnswer marks that. For HTTP/2, it does not leave the wait to
// net/http, because an answer that waits after the request has ended would not count. c can be
// nil.
func (c *Conn) WriteAnswer(w http.ResponseWriter, r *http.Request, p []byte) (int, error) {
	if r.ProtoMajor != 2 { // Write counts p
		defer c.Await(0)()
		return w.Write(p)
	}
	defer c.Await(len(p))()
	n, err := w.Write(p)
	if err == nil {
		err = http.NewResponseController(w).Flush()
	}
	return n, err
}

// stop marks that a request stops running.
func (c *Conn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.since = c.l.now() // counts once nothing runs
}

// ShouldClose reports whether another client waits because the listener is full. If
// so, the server should close the connection after the current answer.
func (c *Conn) ShouldClose() bool { return c.l.full.Load() }

type connKey struct{} // of a request's *Conn in its context

// ConnContext returns a context in which [FromContext] finds conn, a *Conn or a
// *tls.Conn over one. It is for http.Server.ConnContext.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*Conn)
	return context.WithValue(ctx, connKey{}, c)
}

// FromContext returns the connection of a request, or nil if its server does not use
// Limit and ConnContext.
func FromContext(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}
