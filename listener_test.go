package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
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
	l := limitConnections(inner, 1)
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
	web := newHTTPServer(newService(t).server)
	defer web.Close()
	go web.Serve(limitConnections(counting, most))
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

// serveOn serves the service on a listener with room for so many connections,
// as main does, and returns its address.
func (s *service) serveOn(most int) string {
	s.t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	web := newHTTPServer(s.server)
	s.t.Cleanup(func() { web.Close() })
	go web.Serve(limitConnections(inner, most))
	return inner.Addr().String()
}

// A client that dials and sends a text, and leaves it at that.
func (s *service) stall(address, text string) *bufio.Reader {
	s.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	return bufio.NewReader(conn)
}

func TestThoseWhoKeepTheServerWaitingMakeRoom(t *testing.T) {
	const most = 4
	for _, row := range []struct {
		name, sent string
		answered   bool // once, before it stalls
	}{
		{"silent from the beginning", "", false},
		{"within the header", "GET /api/test HTTP/1.1\r\nHost: us", false},
		{"idle after a request", "GET /api/test HTTP/1.1\r\nHost: userd\r\n\r\n", true},
		{"within the next header", "GET /api/test HTTP/1.1\r\nHost: userd\r\n\r\nGET /api/te", true},
		{"within the body", "POST /api/login HTTP/1.1\r\nHost: userd\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{", false},
		{"before the first chunk", "POST /api/refresh HTTP/1.1\r\nHost: userd\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"within a body that nobody reads", "GET /api/test HTTP/1.1\r\nHost: userd\r\nContent-Length: 40\r\n\r\n", false},
		{"within a body of a request that is refused", "POST /api/users HTTP/1.1\r\nHost: userd\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"within a body before a large answer", "GET /large HTTP/1.1\r\nHost: userd\r\nContent-Length: 40\r\n\r\n", false},
		{"not reading", "GET /large HTTP/1.1\r\nHost: userd\r\n\r\n", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.keepLog()
			s.handle("GET /large", func(x *exchange) error { return x.send(200, make([]byte, 64<<20)) })
			begun, release := make(chan struct{}), make(chan struct{})
			s.handle("GET /long", func(x *exchange) error {
				close(begun)
				<-release
				return x.send(200, []byte("{}"))
			})
			address := s.serveOn(most)
			long := s.stall(address, "GET /long HTTP/1.1\r\nHost: userd\r\n\r\n")
			receive(t, "the long request runs", begun)
			for range most {
				in := s.stall(address, row.sent)
				if row.answered {
					if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
						t.Fatal(resp, err)
					}
				}
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 4 * time.Second}
			for range 2 * most {
				resp, err := client.Get("http://" + address + "/api/test")
				if err != nil {
					t.Fatalf("others are not answered: %v", err)
				}
				resp.Body.Close()
			}
			close(release)
			if resp, err := http.ReadResponse(long, nil); err != nil || resp.StatusCode != 200 {
				t.Errorf("a request that ran was cut off: %v", err)
			}
		})
	}
}

// Their connections never wait long for them.
func TestThoseWhoAskAgainAndAgainMakeRoom(t *testing.T) {
	const most = 4
	s := newService(t)
	t.Run("by HTTP", func(t *testing.T) {
		t.Parallel()
		askAgainAndAgain(t, most, "http://"+s.serveOn(most), new(http.Transport))
	})
	t.Run("by HTTPS", func(t *testing.T) {
		t.Parallel()
		address, client := newService(t).serveTLSOn(most)
		askAgainAndAgain(t, most, "https://"+address, client.Transport.(*http.Transport))
	})
}

func askAgainAndAgain(t *testing.T, most int, url string, transport *http.Transport) {
	ask := func(client *http.Client) error {
		resp, err := client.Get(url + "/api/test")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		return err
	}
	begun, stop := make(chan struct{}, most), make(chan struct{})
	var wg sync.WaitGroup
	for range most {
		wg.Go(func() {
			client := &http.Client{Transport: transport.Clone(), Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			ask(client)
			begun <- struct{}{}
			for {
				select {
				case <-stop:
					return
				case <-time.After(clientPatience / 10):
					ask(client)
				}
			}
		})
	}
	for range most {
		receive(t, "a client that asks again and again is answered", begun)
	}
	for range 2 * most {
		once := transport.Clone()
		once.DisableKeepAlives = true
		if err := ask(&http.Client{Transport: once, Timeout: 4 * time.Second}); err != nil {
			t.Errorf("others are not answered: %v", err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestFileDescriptorsRunOut(t *testing.T) {
	t.Parallel()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := userdCommand(t, t.TempDir(), nil)
	cmd.Args = append([]string{sh, "-c", `ulimit -n 64 && exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = sh
	p := spawn(t, cmd)
	p.awaitServing()
	p.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	p.register("ann")
	address := strings.TrimPrefix(p.url, "http://")
	var idle []net.Conn
	for range 200 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	token := p.login("ann", goodPassword)
	if runtime.GOOS == "linux" {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
		if err != nil || len(files) > 64-spareFiles/2 {
			t.Errorf("%d of 64 file descriptors are in use, %v: the database could open no more", len(files), err)
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if r, err := p.ask(token, "GET", "/api/users", ""); err != nil || r.status != 200 {
				t.Errorf("answered %v, %v", r, err)
			}
		})
	}
	wg.Wait()
	p.must(token, "PUT", "/api/users/me", `{"username":"anna"}`).want(t, 200, "")
	for _, conn := range idle {
		conn.Close()
	}
	p.register("bob")
}

// It is the system's memory, of which a client must not fill much by not reading.
func TestLittleOfAnAnswerIsHeldForAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limitConnections(inner, 1)
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

func TestTwoThousandIdleConnections(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	address := s.serveOn(maxConnections)
	for range 2000 {
		s.stall(address, "")
	}
	s.url = "http://" + address
	s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
	s.register("bob")
}

func TestAConnectionWaitsForItsClientWhileNoneOfItsRequestsRuns(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := limitConnections(inner, 2).(*limitedListener)
	c := &limitedConn{l: l, since: l.now()}
	for _, step := range []struct {
		claim string
		do    func()
		waits bool
	}{
		{"new", func() {}, true},
		{"one runs", func() { c.begin() }, false},
		{"one of two waits", func() { c.begin(); c.await() }, false},
		{"both wait", c.await, true},
		{"one goes on", c.goOn, false},
		{"it ends, the other waits", c.end, true},
		{"that goes on", c.goOn, false},
		{"and ends", c.end, true},
		{"one runs, and a write does not leave", func() { c.begin(); c.noteWriting(l.now()) }, true},
		{"it leaves", func() { c.noteWriting(0) }, false},
		{"one ends", c.end, true},
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
