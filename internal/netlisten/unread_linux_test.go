package netlisten

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come. Only a test that fails takes so
// long.
const patience = 2 * time.Minute

// listenTCP returns a listener that is closed with all its connections at the end.
func listenTCP(t *testing.T, n int) *listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner, n)
	t.Cleanup(func() {
		l.Close()
		for _, c := range l.connections() {
			c.discard()
		}
	})
	return l
}

// connectTCP returns both ends of a connection. The kernel holds little for the
// client.
func connectTCP(t *testing.T, l *listener) (client net.Conn, c *Conn) {
	t.Helper()
	small := func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
	}
	client, err := (&net.Dialer{Control: small}).Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, conn.(*Conn)
}

// kernelTotal returns what the kernel holds for the open connections. Meanwhile no write
// begins.
func kernelTotal(l *listener) (total int64) {
	l.unread.mu.Lock()
	defer l.unread.mu.Unlock()
	for _, c := range l.connections() {
		n, _ := kernelBytes(c.Conn)
		total += n
	}
	return total
}

func awaitTrue(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for start := time.Now(); !condition(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestTheSumOfUnreadAnswersIsBounded(t *testing.T) {
	t.Parallel()
	const n = 128
	for _, size := range []int{300, 74_000, 1 << 20} {
		l := listenTCP(t, n)
		var writers sync.WaitGroup
		for range n {
			_, c := connectTCP(t, l)
			writers.Go(func() {
				defer c.Close()
				c.SetWriteDeadline(time.Now().Add(patience))
				answer := make([]byte, size)
				for sent := 0; sent < 1<<20; sent += size {
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			})
		}
		promised := l.unread.most * 4 / 3 // 64 MiB of 48
		var peak int64
		look := func() bool {
			peak = max(peak, kernelTotal(l))
			return peak > 0
		}
		awaitTrue(t, "some bytes are held", look)
		for done := time.Now().Add(300 * time.Millisecond); time.Now().Before(done); time.Sleep(time.Millisecond) {
			look()
		}
		if peak > promised {
			t.Errorf("answers of %d bytes: %d bytes were held, want at most %d", size, peak, promised)
		}
		for _, c := range l.connections() {
			c.discard()
		}
		writers.Wait()
		if l.unread.total != 0 || len(l.open) != 0 {
			t.Errorf("answers of %d bytes: %d bytes of %d connections are still counted", size, l.unread.total, len(l.open))
		}
	}
}

func TestAClientThatReadsIsNotClosedForOthersThatDoNot(t *testing.T) {
	t.Parallel()
	l := listenTCP(t, 64)
	client, c := connectTCP(t, l)
	for range 63 {
		_, other := connectTCP(t, l)
		go other.Write(make([]byte, 1<<20))
	}
	answer := make([]byte, 3<<10)
	for i := range 1000 {
		if _, err := c.Write(answer); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if _, err := io.ReadFull(client, answer); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
}

func TestAClosedConnectionCountsUntilItsClientHasReceivedEverything(t *testing.T) {
	t.Parallel()
	l := listenTCP(t, 8)
	client, c := connectTCP(t, l)
	answer := make([]byte, 100<<10)
	if _, err := c.Write(answer); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := c.Close(); !errors.Is(err, net.ErrClosed) { // http.Server.Shutdown causes two
		t.Errorf("the second Close returned %v", err)
	}
	if n := kernelTotal(l); n < 50<<10 || len(l.connections()) != 1 {
		t.Errorf("%d bytes are counted", n)
	}
	if n, err := io.Copy(io.Discard, client); n != int64(len(answer)) || err != nil {
		t.Errorf("the client received %d bytes, %v", n, err)
	}
	awaitTrue(t, "the connection is forgotten", func() bool { return len(l.connections()) == 0 })
}

func TestClosedConnectionsMakeRoomForUnreadAnswers(t *testing.T) {
	t.Parallel()
	l := listenTCP(t, 64)
	for range 64 {
		_, c := connectTCP(t, l)
		c.Write(make([]byte, 100<<10))
		c.Close()
		if n := kernelTotal(l); n > l.unread.most {
			t.Fatalf("%d bytes are held, want at most %d", n, l.unread.most)
		}
	}
}

// The kernel keeps the unsent bytes of a closed connection, unless it is reset. The
// reset also tells the client that the answer is incomplete.
func TestAConnectionWithAFailedWriteIsReset(t *testing.T) {
	t.Parallel()
	for name, deadline := range map[string]time.Duration{
		"nothing was written":     -time.Second,
		"a part was written":      10 * time.Millisecond,
		"the send buffer is full": time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listenTCP(t, 8)
			client, c := connectTCP(t, l)
			c.SetWriteDeadline(time.Now().Add(deadline))
			if _, err := c.Write(make([]byte, 16<<20)); err == nil {
				t.Fatal("the client has received everything")
			}
			c.Close()
			if len(l.connections()) != 0 {
				t.Error("the connection still counts")
			}
			if _, err := io.Copy(io.Discard, client); err == nil {
				t.Error("the client was not told that the answer is incomplete")
			}
		})
	}
}

func TestAnswersOfWaitingRequestsCount(t *testing.T) {
	t.Parallel()
	l := listenTCP(t, 8)
	client, a := connectTCP(t, l)
	_, b := connectTCP(t, l)
	for _, c := range []*Conn{a, b} {
		c.BeginRequest()
		c.AwaitClient(minUnread * 3 / 5)
	}
	time.Sleep(answerPatience + 10*time.Millisecond)
	b.Write([]byte("x"))
	if open := l.connections(); len(open) != 1 || open[0] != b {
		t.Errorf("%d connections are open, want only the one that waits for less time", len(open))
	}
	if _, err := client.Read(make([]byte, 1)); err == io.EOF {
		t.Error("the client was not told that its answer is missing")
	}
	a.Resume(minUnread * 3 / 5)
	b.Resume(minUnread * 3 / 5)
	if b.Close(); l.unread.total != 0 {
		t.Errorf("%d bytes are still counted", l.unread.total)
	}
}
