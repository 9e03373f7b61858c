package netlisten

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A pipeListener accepts pipes. In a bubble of synctest, time passes while
// everything waits for a pipe, but not while something waits for a socket.
type pipeListener struct {
	queue  chan net.Conn
	errs   chan error // Accept returns these first
	closed chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn, 1000), make(chan error, 10), make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.errs:
		return nil, err
	default:
	}
	select {
	case conn := <-l.queue:
		return conn, nil
	default:
	}
	select {
	case conn := <-l.queue:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// dial returns a client, whose connection waits to be accepted.
func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.queue <- server
	return client
}

func newListener(inner net.Listener, n int) *listener { return Limit(inner, n).(*listener) }

// connect dials and accepts a connection.
func connect(t *testing.T, l *listener) (client net.Conn, c *Conn) {
	t.Helper()
	client = l.Listener.(*pipeListener).dial()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, conn.(*Conn)
}

// isClosed reports whether the other end of a pipe is closed. What the other end
// sends is lost.
func isClosed(t *testing.T, client net.Conn) bool {
	t.Helper()
	client.SetReadDeadline(time.Now())
	_, err := io.Copy(io.Discard, client)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// later calls f in a goroutine and returns how long that took, by the bubble's
// time.
func later(f func()) <-chan time.Duration {
	took := make(chan time.Duration, 1)
	start := time.Now()
	go func() {
		f()
		took <- time.Since(start)
	}()
	return took
}

// accept is later with Accept, which must succeed.
func accept(t *testing.T, l *listener) <-chan time.Duration {
	return later(func() {
		if _, err := l.Accept(); err != nil {
			t.Error(err)
		}
	})
}

func TestAFullListenerWaitsWhileRequestsRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 2)
		clientA, a := connect(t, l)
		clientB, b := connect(t, l)
		a.BeginRequest()
		b.BeginRequest()
		inner.dial()
		accepted := accept(t, l)
		time.Sleep(time.Minute)
		if len(accepted) != 0 || isClosed(t, clientA) || isClosed(t, clientB) {
			t.Error("a connection with a request that runs made room")
		}
		a.Close()
		if got := <-accepted; got != time.Minute {
			t.Errorf("Accept returned after %v", got)
		}
	})
}

func TestTheConnectionThatWaitedLongestMakesRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 4)
		var clients []net.Conn
		for _, end := range []time.Duration{300, 100, 200, 0} { // milliseconds from now
			client, c := connect(t, l)
			clients = append(clients, client)
			c.BeginRequest()
			if end > 0 {
				time.AfterFunc(end*time.Millisecond, c.EndRequest)
			}
		}
		for i, want := range []struct {
			closed int
			after  time.Duration
		}{{1, 100 * time.Millisecond}, {2, 100 * time.Millisecond}, {0, 100 * time.Millisecond}} {
			inner.dial()
			wait := <-later(func() {
				_, c := connect(t, l)
				c.BeginRequest()
			})
			if i == 0 {
				want.after += Patience
			}
			if wait < want.after-retryInterval || wait > want.after+2*retryInterval {
				t.Errorf("Accept %d returned after %v, want about %v", i, wait, want.after)
			}
			if !isClosed(t, clients[want.closed]) {
				t.Errorf("connection %d is open", want.closed)
			}
			clients[want.closed] = nil
			for j, client := range clients {
				if client != nil && isClosed(t, client) {
					t.Errorf("connection %d is closed", j)
				}
			}
		}
	})
}

func TestWhenAConnectionWaitsForItsClient(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim string
		do    func(c *Conn)
		waits bool
	}{
		{"before the first request", func(c *Conn) {}, true},
		{"not while a request runs", func(c *Conn) { c.BeginRequest() }, false},
		{"between requests", func(c *Conn) { c.BeginRequest(); c.EndRequest() }, true},
		{"not in the second request", func(c *Conn) { c.BeginRequest(); c.EndRequest(); c.BeginRequest() }, false},
		{"while a request awaits the client", func(c *Conn) { c.BeginRequest(); c.AwaitClient(0) }, true},
		{"while a request awaits the client, until done", func(c *Conn) { c.BeginRequest(); c.Await(0) }, true},
		{"not after done", func(c *Conn) { c.BeginRequest(); c.Await(0)() }, false},
		{"not after it wrote a part of an answer", func(c *Conn) {
			c.BeginRequest()
			c.WriteAnswer(httptest.NewRecorder(), &http.Request{ProtoMajor: 2}, []byte("answer"))
		}, false},
		{"while a client does not let HTTP/2 write", func(c *Conn) {
			c.BeginRequest()
			go c.WriteAnswer(answerTo{Conn: c.Conn}, &http.Request{ProtoMajor: 2}, []byte("answer"))
		}, true},
		{"not after it resumed", func(c *Conn) { c.BeginRequest(); c.AwaitClient(0); c.Resume(0) }, false},
		{"not while one of two requests awaits the client", func(c *Conn) { c.BeginRequest(); c.BeginRequest(); c.AwaitClient(0) }, false},
		{"while both do", func(c *Conn) { c.BeginRequest(); c.BeginRequest(); c.AwaitClient(0); c.AwaitClient(0) }, true},
		{"not while one of two requests has ended", func(c *Conn) { c.BeginRequest(); c.BeginRequest(); c.EndRequest() }, false},
		{"while the client does not read", func(c *Conn) { c.BeginRequest(); go c.Write([]byte("answer")) }, true},
		{"not after the client has read", func(c *Conn) {
			c.BeginRequest()
			other := c.Conn
			c.Conn = writeTo{other, io.Discard}
			c.Write([]byte("answer"))
			c.Conn = other
		}, false},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				inner := newPipeListener()
				l := newListener(inner, 1)
				client, c := connect(t, l)
				time.Sleep(time.Minute)
				row.do(c)
				synctest.Wait()
				state := "open"
				inner.dial()
				accepted := accept(t, l)
				time.Sleep(2 * Patience)
				synctest.Wait()
				if isClosed(t, client) {
					state = "closed"
				}
				if closed := state == "closed"; closed != row.waits || (len(accepted) == 1) != row.waits {
					t.Errorf("the connection is %s, Accept returned: %t", state, len(accepted) == 1)
				}
				c.Close()
				<-accepted
			})
		})
	}
}

// A writeTo is a connection that writes elsewhere.
type writeTo struct {
	net.Conn
	to io.Writer
}

func (c writeTo) Write(p []byte) (int, error) { return c.to.Write(p) }

func TestWaitingStartsAnewWithEachRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 1)
		_, c := connect(t, l)
		time.Sleep(time.Minute)
		c.BeginRequest()
		c.EndRequest()
		inner.dial()
		if got := <-accept(t, l); got < Patience || got > Patience+2*retryInterval {
			t.Errorf("the connection was closed after it had waited %v", got)
		}
	})
}

func TestShouldCloseWhileAnotherClientWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 2)
		_, a := connect(t, l)
		_, b := connect(t, l)
		a.BeginRequest()
		b.BeginRequest()
		want := func(claim string, want bool) {
			t.Helper()
			synctest.Wait()
			if a.ShouldClose() != want || b.ShouldClose() != want {
				t.Errorf("%s: ShouldClose returns %t", claim, !want)
			}
		}
		want("before Accept", false)
		inner.dial()
		accepted := accept(t, l)
		want("while Accept waits for room", true)
		b.Close()
		<-accepted
		want("afterwards", false)
	})
}

// A full listener looks at every connection, so it must not do that once for each
// client if there are many.
func TestALargeListenerMakesRoomForSeveralClients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 128)
		var clients []net.Conn
		for range 128 {
			client, _ := connect(t, l)
			clients = append(clients, client)
		}
		time.Sleep(2 * Patience)
		inner.dial()
		<-accept(t, l)
		closed := 0
		for _, client := range clients {
			if isClosed(t, client) {
				closed++
			}
		}
		if closed != 3 {
			t.Errorf("%d connections were closed, want 1 + 128/64", closed)
		}
	})
}

func TestAnAnswerCountsOnlyAfterItsClientHadTimeToReadIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newListener(newPipeListener(), 8)
		clientA, a := connect(t, l)
		clientB, b := connect(t, l)
		_, c := connect(t, l)
		for _, conn := range []*Conn{a, b, c} {
			conn.BeginRequest()
		}
		a.AwaitClient(minUnread * 3 / 5)
		time.Sleep(answerPatience)
		b.AwaitClient(minUnread * 3 / 5)
		if isClosed(t, clientA) || isClosed(t, clientB) {
			t.Error("a connection was closed before its client had time to read")
		}
		time.Sleep(retryInterval)
		c.AwaitClient(1)
		if !isClosed(t, clientA) || isClosed(t, clientB) {
			t.Error("not only the connection was closed whose client had time to read")
		}
	})
}

// A closeHook calls a function when it is closed.
type closeHook struct {
	net.Conn
	hook func()
}

func (c closeHook) Close() error {
	c.hook()
	return c.Conn.Close()
}

func TestARequestThatBeginsInTimeSavesItsConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 64) // makes room for two clients at a time
		clientA, a := connect(t, l)
		time.Sleep(time.Nanosecond)
		clientB, b := connect(t, l)
		a.Conn = closeHook{a.Conn, func() { b.BeginRequest() }}
		for range 62 {
			_, c := connect(t, l)
			c.BeginRequest()
		}
		time.Sleep(2 * Patience)
		inner.dial()
		<-accept(t, l)
		if !isClosed(t, clientA) || isClosed(t, clientB) {
			t.Errorf("closed: a %t, b %t; want only a", isClosed(t, clientA), isClosed(t, clientB))
		}
	})
}

func TestTheLimitIsLoweredWhenFileDescriptorsRunOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 100)
		var clients []net.Conn
		for range 40 {
			client, _ := connect(t, l)
			clients = append(clients, client)
		}
		time.Sleep(2 * Patience)
		inner.errs <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept", syscall.EMFILE)}
		clients = append(clients, inner.dial())
		<-accept(t, l)
		open := 0
		for _, client := range clients {
			if !isClosed(t, client) {
				open++
			}
		}
		if want := 40 - spareFiles; open != want {
			t.Errorf("%d connections are open, want %d", open, want)
		}
		// The limit stays: one more client costs one more connection.
		time.Sleep(2 * Patience)
		inner.dial()
		<-accept(t, l)
		if got := len(l.open); got > 40-spareFiles {
			t.Errorf("%d connections are open after one more client", got)
		}
	})
}

func TestAListenerServesAtLeastOneConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 100)
		for range 3 {
			inner.errs <- syscall.EMFILE // the rest of the process has taken all of them
		}
		inner.dial()
		if got := <-accept(t, l); got != 3*retryInterval {
			t.Errorf("Accept tried again after %v, want a pause of %v each time", got, retryInterval)
		}
	})
}

// The race detector fails this test if the two share the limit without a lock.
func TestTheLimitFallsWhileAnswersAreCounted(t *testing.T) {
	t.Parallel()
	inner := newPipeListener()
	l := newListener(inner, 100)
	inner.errs <- syscall.EMFILE
	inner.dial()
	accepted := accept(t, l)
	l.unread.mu.Lock()
	l.shed()
	l.unread.mu.Unlock()
	<-accepted
	if l.limit >= 100 {
		t.Errorf("the limit is still %d", l.limit)
	}
}

func TestAcceptReturnsOtherErrors(t *testing.T) {
	t.Parallel()
	inner := newPipeListener()
	l := newListener(inner, 1)
	inner.errs <- syscall.ENFILE
	if _, err := l.Accept(); err != syscall.ENFILE {
		t.Errorf("got %v", err)
	}
}

func TestAFullListenerCanBeClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := newListener(inner, 1)
		_, c := connect(t, l)
		c.BeginRequest()
		inner.dial() // Accept must not take it
		accepted := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept returned the error %v, want %v", err, net.ErrClosed)
		}
	})
}

// http.Server and the program both close it.
func TestAListenerCanBeClosedTwice(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner, 1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close returned the error %v, want %v", err, net.ErrClosed)
	}
}

func TestRequestsBeyondTheFirstOfAConnectionAreLimitedInTotal(t *testing.T) {
	t.Parallel()
	l := newListener(newPipeListener(), 2)
	_, a := connect(t, l)
	_, b := connect(t, l)
	for i, step := range []struct {
		c    *Conn
		want bool
	}{
		{a, true},
		{a, true},
		{a, true},  // two more than one
		{a, false}, // three more
		{b, true},  // the first one of its connection
		{b, false},
	} {
		if got := step.c.BeginRequest(); got != step.want {
			t.Errorf("step %d: BeginRequest returned %t", i, got)
		}
	}
	a.EndRequest()
	if !b.BeginRequest() || b.BeginRequest() {
		t.Error("the end of one request did not let in exactly one")
	}
	for range 2 {
		a.EndRequest()
		b.EndRequest()
	}
	if a.requests != 0 || a.running != 0 || b.requests != 0 || b.running != 0 || l.extra.Load() != 0 {
		t.Errorf("left are %d and %d requests, %d and %d running, %d extra", a.requests, b.requests, a.running, b.running, l.extra.Load())
	}
}

// A countingListener counts its connections.
type countingListener struct {
	net.Listener
	open, peak atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.peak.Store(max(l.peak.Load(), l.open.Add(1)))
	return &countedConn{Conn: conn, l: l}, nil
}

type countedConn struct {
	net.Conn
	l    *countingListener
	once sync.Once
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.l.open.Add(-1) })
	return err
}

func TestNoMoreConnectionsAreOpenThanAllowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 3
		inner := newPipeListener()
		counting := &countingListener{Listener: inner}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })}
		defer server.Close()
		go server.Serve(Limit(counting, limit))
		dial := func(context.Context, string, string) (net.Conn, error) { return inner.dial(), nil }
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
		var clients sync.WaitGroup
		for range 50 { // none of them is closed: no connection waits long enough
			clients.Go(func() {
				resp, err := client.Get("http://server")
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
			})
		}
		clients.Wait()
		if peak := counting.peak.Load(); peak != limit {
			t.Errorf("%d connections were open, want %d", peak, limit)
		}
	})
}

// The kernel's memory must not fill up with answers that clients do not read.
func TestLittleOfAnAnswerIsHeldForAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner, 1)
	defer l.Close()
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	held := 0
	for chunk := make([]byte, 4<<10); err == nil; held += len(chunk) {
		conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = conn.Write(chunk)
	}
	if held > 1<<20 {
		t.Errorf("%d bytes are held", held)
	}
}

func TestARequestFindsItsConnection(t *testing.T) {
	t.Parallel()
	l := newListener(newPipeListener(), 1)
	_, c := connect(t, l)
	other, _ := net.Pipe()
	for _, row := range []struct {
		claim string
		conn  net.Conn
		want  *Conn
	}{
		{"by HTTP", c, c},
		{"by HTTPS", tls.Server(c, &tls.Config{}), c},
		{"of another listener", other, nil},
		{"by HTTPS of another listener", tls.Server(other, &tls.Config{}), nil},
	} {
		if got := FromContext(ConnContext(t.Context(), row.conn)); got != row.want {
			t.Errorf("%s: found %p, want %p", row.claim, got, row.want)
		}
	}
	if FromContext(context.Background()) != nil {
		t.Error("a context without a connection has one")
	}
}

func TestAConnectionCarriesWhatIsWritten(t *testing.T) {
	t.Parallel()
	l := newListener(newPipeListener(), 1)
	client, c := connect(t, l)
	go func() {
		c.Write([]byte("hello "))
		c.Write([]byte("world"))
		c.Close()
	}()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, []byte("hello world")) {
		t.Errorf("got %q, %v", got, err)
	}
}

// An answerTo writes to a connection, like net/http.
type answerTo struct {
	http.ResponseWriter
	net.Conn
}

func (a answerTo) Write(p []byte) (int, error) { return a.Conn.Write(p) }

func TestANilConnWritesAnswers(t *testing.T) {
	t.Parallel()
	var c *Conn
	for _, version := range []int{1, 2} {
		w := httptest.NewRecorder()
		if n, err := c.WriteAnswer(w, &http.Request{ProtoMajor: version}, []byte("answer")); n != 6 || err != nil || w.Body.String() != "answer" || w.Flushed != (version == 2) {
			t.Errorf("HTTP/%d: %d, %v, %q, flushed: %t", version, n, err, w.Body, w.Flushed)
		}
	}
}
