package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/netlisten"
)

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
	go web.Serve(netlisten.Limit(inner, most))
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
				case <-time.After(netlisten.Patience / 10):
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
	for range 100 { // more than the process may have open
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
		if err != nil || len(files) > 64-16/2 {
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
