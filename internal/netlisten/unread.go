package netlisten

import (
	"cmp"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// unreadPerConn is how many bytes of unread answers a listener may hold for each
	// connection of its limit: 48 MiB for 4,096. One connection can hold more.
	unreadPerConn = 12 << 10

	// minUnread is what a listener with a low limit may hold.
	minUnread = 1 << 20

	// writeCost is what a write costs the kernel, in addition to 3/2 of its bytes.
	writeCost = 1 << 10

	// answerCost is the memory of a request that waits until its client reads, in
	// addition to the answer: above all the stack of its goroutine.
	answerCost = 16 << 10

	// answerPatience is how long a request may wait until its client reads before its
	// memory counts. Many requests wait for a moment if many are answered.
	answerPatience = Patience / 4

	// closeTimeout is how long linger keeps a connection whose client receives
	// nothing, and closePoll is how often linger asks the kernel.
	closeTimeout = 20 * time.Second
	closePoll    = 50 * time.Millisecond
)

// An unread counts the bytes that the connections of a listener hold for clients
// that do not read, in the process and in the kernel. Each write adds to the count.
// Only if the count exceeds the limit does shed ask the kernel how much the clients
// have received, so a request needs no additional system call.
type unread struct {
	mu    sync.Mutex // also guards the held of each connection
	total int64      // bytes; never less than the connections hold
	most  int64      // bytes; the limit of total
	next  int64      // the earliest time of the next shed, by listener.now
}

// A held counts the bytes that one connection holds.
type held struct {
	total   int64 // never less than the connection holds; includes answers
	answers int64 // of the requests that wait until the client reads
	closed  bool  // the connection no longer counts
}

// hold adds n bytes to the count of c. If the listener would then exceed its limit,
// hold first closes some connections, which can include c. The caller holds the lock.
func (c *Conn) hold(n int64) {
	u := &c.l.unread
	if u.total+n > u.most && c.l.now() >= u.next {
		c.l.shed()
	}
	if !c.held.closed {
		c.held.total += n
		u.total += n
	}
}

// holdWrite adds a write of n bytes to the count of c.
func (c *Conn) holdWrite(n int) {
	c.l.unread.mu.Lock()
	defer c.l.unread.mu.Unlock()
	cost := int64(n + n/2 + writeCost)
	c.hold(cost)
	c.pending.Store(cost)
}

// holdAnswer adds a request that waits until the client reads n bytes to the count of c.
func (c *Conn) holdAnswer(n int) {
	c.l.unread.mu.Lock()
	defer c.l.unread.mu.Unlock()
	c.hold(int64(n + answerCost))
	c.held.answers += int64(n + answerCost)
}

// dropAnswer undoes holdAnswer.
func (c *Conn) dropAnswer(n int) {
	u := &c.l.unread
	u.mu.Lock()
	defer u.mu.Unlock()
	c.held.answers -= int64(n + answerCost)
	if !c.held.closed {
		c.held.total -= int64(n + answerCost)
		u.total -= int64(n + answerCost)
	}
}

// holdRequests counts the bytes of requests that the kernel has received, and that
// the server still has to read: a client can send faster than the server reads.
func (c *Conn) holdRequests() {
	c.l.unread.mu.Lock()
	defer c.l.unread.mu.Unlock()
	c.count()
	c.hold(0)
}

// count makes the count of c exact, if the system tells. The caller holds the lock.
func (c *Conn) count() {
	if c.held.closed {
		return
	}
	total, ok := kernelBytes(c.Conn)
	if !ok { // the system does not tell
		total = min(c.held.total-c.held.answers, sendBuffer)
	} else {
		total += c.pending.Load()
	}
	total += c.held.answers
	c.l.unread.total += total - c.held.total
	c.held.total = total
}

// shed makes the count exact. If the total is still more than three quarters of the
// limit, shed closes connections until it is half, so that the next shed is far away:
// those that have waited for their client longest first, those with a running request
// last. It closes no connection that holds at most its share of half of the limit. The
// caller holds the lock.
func (l *listener) shed() {
	u, now := &l.unread, l.now()
	type holder struct {
		c     *Conn
		since int64
	}
	var holders []holder
	l.mu.Lock() // Accept can lower the limit
	few := u.most / 2 / int64(l.limit)
	l.mu.Unlock()
	for _, c := range l.connections() {
		if c.held.total <= few {
			continue
		}
		c.count()
		since := cmp.Or(c.waitsSince(), now)
		if held := c.held.total; held-c.held.answers > few || held > few && since < now-int64(answerPatience) {
			holders = append(holders, holder{c, since})
		}
	}
	if u.total <= u.most*3/4 {
		return
	}
	slices.SortFunc(holders, func(a, b holder) int { return cmp.Compare(a.since, b.since) })
	// The kernel frees the bytes only after the running reads and writes have returned. Close
	// waits for those too: one after the other would take seconds on a busy machine.
	var closing sync.WaitGroup
	for n := 0; n < len(holders) && u.total > u.most/2; n++ {
		c := holders[n].c
		c.drop()
		closing.Go(func() {
			c.cut.Store(true)
			c.reset()
			c.io.Lock()
			c.forget()
			c.io.Unlock()
		})
	}
	closing.Wait()
	if u.total > u.most/2 {
		u.next = now + int64(retryInterval) // the rest belongs to answers that have just begun
	}
}

// drop removes c from the count. The caller holds the lock.
func (c *Conn) drop() {
	c.l.unread.total -= c.held.total
	c.held.total, c.held.closed = 0, true
}

// Read reads from the client.
func (c *Conn) Read(p []byte) (int, error) {
	c.io.RLock()
	n, err := c.Conn.Read(p)
	c.io.RUnlock()
	if n == len(p) && n > 1 { // there may be more; net/http reads single bytes to notice that a client has gone
		c.holdRequests()
	}
	return n, err
}

// Write writes to the client. While it blocks, the connection waits for its client.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Store(c.l.now())
	defer c.writing.Store(0)
	c.holdWrite(len(p))
	defer c.pending.Store(0)
	c.io.RLock()
	defer c.io.RUnlock()
	n, err := c.Conn.Write(p)
	if err != nil {
		c.cut.Store(true)
	}
	return n, err
}

// Close closes the connection and makes room for another one. While bytes
// are on their way to the client, the connection counts: the kernel would keep
// the bytes of a closed connection for minutes, and nothing would limit them. A second
// Close does nothing and returns net.ErrClosed.
func (c *Conn) Close() error {
	if !c.closing.CompareAndSwap(false, true) {
		return net.ErrClosed // http.Server.Shutdown and the connection's goroutine both close it
	}
	if n, ok := kernelBytes(c.Conn); ok && n > 0 && !c.cut.Load() {
		c.Conn.(*net.TCPConn).CloseWrite()
		if n, _ := kernelBytes(c.Conn); n > 0 {
			c.SetDeadline(time.Unix(1, 0)) // reads and writes return
			go c.linger(n)
			return nil
		}
	}
	return c.discard()
}

// linger closes c when the client has received everything, or has received nothing
// for closeTimeout.
func (c *Conn) linger(n int64) {
	for progress := time.Now(); n > 0 && time.Since(progress) < closeTimeout; {
		time.Sleep(closePoll)
		left, ok := kernelBytes(c.Conn)
		if !ok {
			break // it was shed
		}
		if left < n {
			progress = time.Now()
		}
		n = left
	}
	c.discard()
}

// discard closes c, drops the bytes on their way to the client, and makes room for
// another connection.
func (c *Conn) discard() error {
	err := c.reset()
	c.l.unread.mu.Lock()
	c.drop()
	c.l.unread.mu.Unlock()
	c.forget()
	return err
}

// reset closes the connection below c. The kernel discards the bytes on their way
// to the client, and tells the client so. It also tells a client that has received all
// bytes of an answer that was cut off.
func (c *Conn) reset() error {
	n, _ := kernelBytes(c.Conn)
	if tcp, ok := c.Conn.(*net.TCPConn); ok && (n > 0 || c.cut.Load()) {
		tcp.SetLinger(0)
	}
	return c.Conn.Close()
}

// forget makes room for another connection.
func (c *Conn) forget() {
	c.l.mu.Lock()
	delete(c.l.open, c)
	c.l.mu.Unlock()
	select {
	case c.l.freed <- struct{}{}:
	default: // Accept did not see the last one yet
	}
}

// connections returns the open connections.
func (l *listener) connections() []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	open := make([]*Conn, 0, len(l.open))
	for c := range l.open {
		open = append(open, c)
	}
	return open
}
