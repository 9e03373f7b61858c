package netlisten

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// http.Server.Shutdown waits, without regard to its context, until Accept has
// returned.
func TestAListenerWithAllItsConnectionsTakenCanBeClosed(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Limit(inner, 1)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	taken, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-accepted:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept returned the error %v, want %v", err, net.ErrClosed)
		}
	case <-time.After(2 * time.Second):
		t.Error("Accept has not returned: a server with all its connections taken would not stop before one of them ends")
	}
}

// A countingListener notes how many of its connections were open at once.
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

func TestNoMoreConnectionsAreOpenAtOnceThanAllowed(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const most = 3
	counting := &countingListener{Listener: inner}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })}
	defer web.Close()
	go web.Serve(Limit(counting, most))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var wg sync.WaitGroup
	for range 50 { // of which none is cut off: each has just come
		wg.Go(func() {
			resp, err := client.Get("http://" + inner.Addr().String() + "/api/test")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	wg.Wait()
	if peak := counting.peak.Load(); peak > most {
		t.Errorf("%d connections were open at once, want at most %d", peak, most)
	}
}

// It is the system's memory, of which a client must not fill much by not reading.
func TestLittleOfAnAnswerIsHeldForAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Limit(inner, 1)
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

func TestAConnectionWaitsForItsClientWhileNoneOfItsRequestsRuns(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := Limit(inner, 2)
	c := &Conn{l: l, since: l.now()}
	for _, step := range []struct {
		claim string
		do    func()
		waits bool
	}{
		{"new", func() {}, true},
		{"one runs", func() { c.BeginRequest() }, false},
		{"one of two waits", func() { c.BeginRequest(); c.AwaitClient() }, false},
		{"both wait", c.AwaitClient, true},
		{"one goes on", c.Resume, false},
		{"it ends, the other waits", c.EndRequest, true},
		{"that goes on", c.Resume, false},
		{"and ends", c.EndRequest, true},
		{"one runs, and a write does not leave", func() { c.BeginRequest(); c.noteWriting(l.now()) }, true},
		{"it leaves", func() { c.noteWriting(0) }, false},
		{"one ends", c.EndRequest, true},
	} {
		step.do()
		if waits := c.waitsSince() != 0; waits != step.waits {
			t.Errorf("%s: it waits: %t", step.claim, waits)
		}
	}
	if c.requests != 0 || c.running != 0 || l.beside.Load() != 0 {
		t.Errorf("left are %d requests, %d running, %d beside", c.requests, c.running, l.beside.Load())
	}
}
