package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"userd/internal/certs/certstest"
	"userd/internal/netlisten"
	"userd/internal/param"
	"userd/internal/sqlitefile"
)

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// writePair writes a certificate and its key to cert.pem and key.pem.
func writePair(t testing.TB, dir string, p certstest.Pair) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile, err := p.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

// trusting returns a client that trusts these certificates and no other.
func trusting(h2 bool, certs ...certstest.Pair) *http.Client {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c.Leaf)
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: h2},
		Timeout:   patience,
	}
}

// startHTTPS starts userd with a certificate in dir.
func startHTTPS(t *testing.T, dir string, c certstest.Pair) *process {
	t.Helper()
	writePair(t, dir, c)
	p := startUserd(t, dir, []string{"TLS_CERT=cert.pem", "TLS_KEY=key.pem"})
	p.client = trusting(true, c)
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

func TestWithACertificateItSpeaksHTTPS(t *testing.T) {
	t.Parallel()
	cert := certstest.New(90*certstest.Day, "userd.example")
	dir := t.TempDir()
	p := startHTTPS(t, dir, cert)
	address, ok := strings.CutPrefix(p.url, "https://")
	if !ok {
		t.Fatalf("it serves %s", p.url)
	}
	record := p.awaitLog("loaded certificate")
	if at, _ := time.Parse(time.RFC3339, fmt.Sprint(record["expires"])); !at.Equal(cert.Leaf.NotAfter) || fmt.Sprint(record["names"]) != "[userd.example]" {
		t.Errorf("it logged %v", record)
	}
	p.register("ann")
	token := p.login("ann", goodPassword)
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")

	for _, c := range []struct {
		claim string
		http2 bool
		proto string
	}{{"HTTP/2 to who speaks it", true, "HTTP/2.0"}, {"HTTP/1.1 to who does not", false, "HTTP/1.1"}} {
		t.Run(c.claim, func(t *testing.T) {
			client := trusting(c.http2, cert)
			defer client.CloseIdleConnections()
			for path, status := range map[string]int{"/api/test": 200, "/api/users": 401, "/none": 404} {
				resp, err := client.Get(p.url + path)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.Proto != c.proto || resp.StatusCode != status || resp.ContentLength <= 0 {
					t.Errorf("%s: %s %s with %d bytes", path, resp.Proto, resp.Status, resp.ContentLength)
				}
				if got := resp.Header["Strict-Transport-Security"]; !slices.Equal(got, []string{"max-age=31536000"}) {
					t.Errorf("%s: Strict-Transport-Security is %q", path, got)
				}
			}
		})
	}
	for version, good := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version})
			if err == nil {
				conn.Close()
			}
			if (err == nil) != good {
				t.Errorf("the handshake said %v", err)
			}
		})
	}
	t.Run("nothing to who speaks no TLS", func(t *testing.T) {
		resp, err := http.Get("http://" + address + "/api/test")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 || resp.Header["Strict-Transport-Security"] != nil {
			t.Errorf("got %s, %v", resp.Status, resp.Header)
		}
	})
	t.Run("and a health check asks by HTTPS", func(t *testing.T) {
		got := userdProcess(t, dir, "", []string{"ADDR=" + address, "TLS_CERT=cert.pem", "TLS_KEY=key.pem"}, "healthcheck")
		if want := (result{0, p.url + "/readyz: ready\n", ""}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("and it ends when it is terminated, though a client stays connected", func(t *testing.T) {
		p.must("", "GET", "/api/test", "")
		if status := p.end(syscall.SIGTERM); status != 0 {
			t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
		}
	})
}

func TestPlainAnswersDoNotAskForHTTPS(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, path := range []string{"/api/test", "/api/users", "/none"} {
		if r := s.do("", "GET", path, "", "X-Forwarded-Proto: https"); r.header["Strict-Transport-Security"] != nil {
			t.Errorf("%s: %v", path, r.header)
		}
	}
}

// serial returns the serial number of the certificate that a handshake gets.
func serial(t *testing.T, address string) *big.Int {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber
}

func TestACertificateIsReplacedWhileItServes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second, third := certstest.New(90*certstest.Day), certstest.New(90*certstest.Day), certstest.New(90*certstest.Day)
	p := startHTTPS(t, dir, first)
	address := strings.TrimPrefix(p.url, "https://")
	hangup := func() {
		t.Helper()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	becomes := func(c certstest.Pair) {
		t.Helper()
		await(t, "the new certificate is served", func() bool { return serial(t, address).Cmp(c.Leaf.SerialNumber) == 0 })
	}
	stays := func(c certstest.Pair) {
		t.Helper()
		if serial(t, address).Cmp(c.Leaf.SerialNumber) != 0 {
			t.Error("another certificate is served")
		}
	}
	becomes(first)
	hangup() // nothing has changed, and it says so
	await(t, "it says again which certificate it has", func() bool {
		return strings.Count(strings.Join(p.log(), "\n"), `"msg":"loaded certificate"`) == 2
	})
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func() {
		t.Helper()
		io.WriteString(conn, "GET /api/test HTTP/1.1\r\nHost: userd\r\n\r\n")
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("a connection from before: %v", err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	ask()

	writeFile(t, filepath.Join(dir, "cert.pem"), second.Cert[:len(second.Cert)/2]) // half written, and the key not yet
	hangup()
	if line := p.awaitLog("could not load the new certificate; keeping the previous one"); line["level"] != "WARN" {
		t.Errorf("it logged %v", line)
	}
	stays(first)
	writePair(t, dir, second)
	hangup()
	becomes(second)
	ask()
	writePair(t, dir, third) // and no signal
	becomes(third)
	ask()
	if err := os.Remove(filepath.Join(dir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	hangup()
	stays(third)
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	if log := strings.Join(p.log(), "\n"); strings.Contains(log, "PRIVATE") || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("it logged:\n%s", log)
	}
}

// Otherwise a server would outlive the terminal that it was started in.
func TestAHangupWithoutACertificateEndsTheServer(t *testing.T) {
	t.Parallel()
	// Otherwise userd would ignore SIGHUP if nohup started the tests.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	p := startUserd(t, t.TempDir(), nil)
	if status := p.end(syscall.SIGHUP); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	if log := strings.Join(p.log(), "\n"); !strings.Contains(log, `"msg":"stopped"`) {
		t.Errorf("it logged:\n%s", log)
	}
}

func TestAHangupDoesNotEndWhatNohupStarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := userdCommand(t, dir, nil)
	nohup := exec.Command("nohup", cmd.Args...)

	nohup.Dir, nohup.Env = cmd.Dir, cmd.Env
	p := spawn(t, nohup)
	p.awaitServing()
	for range 3 {
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.must("", "GET", "/api/test", "").want(t, 200, "")
	}
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// pipes is a listener that accepts what is sent to it.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// A load balancer that keeps a connection longer than the server answers 502 now and
// then: the server closes the connection while a request is on its way.
func TestAnIdleConnectionOutlivesThoseOfProxies(t *testing.T) {
	t.Parallel()
	s := newService(t)
	synctest.Test(t, func(t *testing.T) {
		client, accepted := net.Pipe()
		l := make(pipes, 1)
		l <- accepted
		h := newHTTPServer(s.server)
		go h.Serve(l)
		in := bufio.NewReader(client)
		get := func() error {
			go fmt.Fprint(client, "GET /api/test HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(in, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			return err
		}
		for _, idle := range []time.Duration{
			0,
			60 * time.Second,  // AWS, nginx
			90 * time.Second,  // Traefik
			120 * time.Second, // Caddy
			149 * time.Second,
		} {
			time.Sleep(idle)
			if err := get(); err != nil {
				t.Fatalf("after %v without a request: %v", idle, err)
			}
		}
		start := time.Now()
		if _, err := in.ReadByte(); err != io.EOF || time.Since(start) != idleTimeout {
			t.Errorf("closed after %v: %v", time.Since(start), err)
		}
		close(l)
		h.Close()
	})
}

func TestContradictionsAboutHTTPSAreRefused(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	good, other := certstest.New(90*certstest.Day), certstest.New(90*certstest.Day)
	writePair(t, ".", good)
	writeFile(t, "other.pem", other.Key)
	for _, c := range []struct {
		claim   string
		environ []string
		words   []string
	}{
		{"a certificate without a key", []string{"TLS_CERT=cert.pem"}, []string{"TLS_CERT", "TLS_KEY", "set both"}},
		{"a key without a certificate", []string{"TLS_KEY=key.pem"}, []string{"TLS_CERT", "TLS_KEY", "set both"}},
		{"a certificate in files and one from ACME", []string{"TLS_CERT=cert.pem", "TLS_KEY=key.pem", "HTTPS_DOMAIN=example.com"}, []string{"HTTPS_DOMAIN", "TLS_CERT", "both"}},
		{"another certificate's key", []string{"TLS_CERT=cert.pem", "TLS_KEY=other.pem"}, []string{"TLS_CERT", "TLS_KEY", "does not match"}},
		{"a key in place of the certificate", []string{"TLS_CERT=key.pem", "TLS_KEY=key.pem"}, []string{"TLS_CERT", "PEM"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			userdHere(t, "", c.environ).wantFailure(t, 2, c.words...)
		})
	}
	wantFiles(t, dir, "cert.pem", "key.pem", "other.pem")
}

// patientServer is newHTTPServer with timeouts that never end within a test, so that only
// netlisten makes room.
func (s *service) patientServer() *http.Server {
	web := newHTTPServer(s.server)
	const never = time.Hour
	web.ReadHeaderTimeout, web.ReadTimeout, web.WriteTimeout, web.IdleTimeout = never, never, never, never
	bounds := *web.HTTP2
	bounds.WriteByteTimeout = never
	web.HTTP2 = &bounds
	return web
}

// serveTLSOn is serveOn with TLS. The client keeps no connections.
func (s *service) serveTLSOn(most int, options ...func(*http.Server)) (address string, client *http.Client) {
	s.t.Helper()
	dir := s.t.TempDir()
	cert := certstest.New(90 * certstest.Day)
	certFile, keyFile := writePair(s.t, dir, cert)
	var l listeners
	if err := l.setCertificates(&config{tlsCert: certFile, tlsKey: keyFile}, nil, s.log); err != nil {
		s.t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	web := s.patientServer()
	for _, option := range options {
		option(web)
	}
	s.t.Cleanup(func() { web.Close() })
	go l.serve(web, netlisten.Limit(inner, most))
	return inner.Addr().String(), trusting(true, cert)
}

func TestAHandshakeThatStallsIsCutOff(t *testing.T) {
	t.Parallel()
	s := newService(t)
	if got := newHTTPServer(s.server).ReadHeaderTimeout; got != headerTimeout {
		t.Errorf("a handshake may take %v, want %v", got, headerTimeout)
	}
	address, _ := s.serveTLSOn(maxConnections, func(web *http.Server) { web.ReadHeaderTimeout = 50 * time.Millisecond })
	for claim, sent := range map[string]string{
		"silent":          "",
		"within a record": "\x16\x03\x01\x02\x00\x01",
		"within a hello":  "\x16\x03\x01\x00\x05\x01\x00\x01\xfc\x03",
	} {
		in := s.stall(address, sent)
		cut := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, in)
			cut <- err
		}()
		receive(t, "a handshake is cut off that stalls "+claim, cut)
	}
}

// An h2Client speaks HTTP/2 frame by frame (RFC 9113), to do what no client does.
type h2Client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

const (
	frameHeaders, frameSettings = 1, 4
	endStream, endHeaders       = 1, 4
)

// dialH2 opens a connection and, if it is to begin, sends what a client begins with.
func dialH2(t *testing.T, address string, begin bool, settings ...byte) *h2Client {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Fatalf("the protocol is %q", got)
	}
	h := &h2Client{t, conn, bufio.NewReader(conn)}
	if begin {
		io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		h.frame(frameSettings, 0, 0, settings)
	}
	return h
}

func (h *h2Client) frame(kind, flags byte, stream uint32, payload []byte) {
	h.t.Helper()
	head := []byte{0, byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	if _, err := h.conn.Write(append(binary.BigEndian.AppendUint32(head, stream), payload...)); err != nil {
		h.t.Fatal(err)
	}
}

// read returns the next frame of a kind.
func (h *h2Client) read(kind byte) (payload []byte) {
	h.t.Helper()
	h.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(h.in, head); err != nil {
			h.t.Fatal(err)
		}
		payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(h.in, payload); err != nil {
			h.t.Fatal(err)
		}
		if head[3] == kind {
			return payload
		}
	}
}

// request sends a header, in HPACK without compression (RFC 7541): of a GET, or
// of a POST with a JSON body that does not come.
func (h *h2Client) request(stream uint32, method, path string) {
	h.t.Helper()
	text := func(s string) string { return string([]byte{byte(len(s))}) + s }
	header, flags := "\x82", byte(endHeaders|endStream)
	if method == "POST" {
		header, flags = "\x83\x0f\x10"+text("application/json"), endHeaders
	}
	header = header[:1] + "\x87\x04" + text(path) + "\x01" + text("userd") + header[1:]
	h.frame(frameHeaders, flags, stream, []byte(header))
}

func TestAnHTTP2ConnectionIsBounded(t *testing.T) {
	t.Parallel()
	address, _ := newService(t).serveTLSOn(maxConnections)
	settings := make(map[uint16]uint32)
	for payload := dialH2(t, address, true).read(frameSettings); len(payload) >= 6; payload = payload[6:] {
		settings[binary.BigEndian.Uint16(payload)] = binary.BigEndian.Uint32(payload[2:])
	}
	for id, most := range map[uint16]uint32{
		3: 8,        // concurrent streams
		4: maxBody,  // bytes not yet read, of a stream
		5: 16 << 10, // bytes of a frame
		6: 16 << 10, // bytes of a header
	} {
		if got, ok := settings[id]; !ok || got > most {
			t.Errorf("setting %d is %d, want at most %d", id, got, most)
		}
	}
	if got := http2Bounds.MaxReceiveBufferPerConnection; got > maxBody {
		t.Errorf("a connection may hold %d bytes not yet read", got)
	}
}

func TestHTTPSClientsThatStallMakeRoom(t *testing.T) {
	const most = 4
	noWindow := []byte{0, 4, 0, 0, 0, 0}
	for _, row := range []struct {
		name  string
		stall func(t *testing.T, s *service, address string, bodies <-chan struct{})
	}{
		{"within the handshake", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
			s.stall(address, "\x16\x03\x01")
		}},
		{"after the handshake", func(t *testing.T, s *service, address string, bodies <-chan struct{}) { dialH2(t, address, false) }},
		{"before the first request", func(t *testing.T, s *service, address string, bodies <-chan struct{}) { dialH2(t, address, true) }},
		{"idle after a request", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
			h := dialH2(t, address, true)
			h.request(1, "GET", "/api/test")
			h.read(frameHeaders)
		}},
		{"within a body", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
			h := dialH2(t, address, true)
			h.request(1, "POST", "/body")
			receive(t, "the body is read", bodies)
		}},
		{"within a body, next to a request that is done", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
			h := dialH2(t, address, true)
			h.request(1, "POST", "/body")
			receive(t, "the body is read", bodies)
			h.request(3, "GET", "/api/test")
			h.read(frameHeaders)
		}},
		{"taking none of an answer", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
			h := dialH2(t, address, true, noWindow...)
			h.request(1, "GET", "/api/test")
			h.read(frameHeaders)
		}},
		{"taking no more of an answer", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
			h := dialH2(t, address, true)
			h.request(1, "GET", "/large")
			h.read(frameHeaders)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.keepLog()
			begun, release := make(chan struct{}), make(chan struct{})
			s.handle("GET /long", func(x *exchange) error {
				close(begun)
				<-release
				return x.send(200, []byte("{}"))
			})
			s.handle("GET /large", func(x *exchange) error { return x.send(200, make([]byte, 1<<20)) })
			bodies := make(chan struct{}, 1)
			s.handle("POST /body", func(x *exchange) error {
				x.r.Body = &toldBody{x.r.Body, bodies}
				_, err := x.body()
				return err
			})
			address, client := s.serveTLSOn(most)
			client.Transport.(*http.Transport).DisableKeepAlives = true
			long := trusting(true)
			long.Transport = client.Transport.(*http.Transport).Clone()
			answered := make(chan error, 1)
			go func() {
				resp, err := long.Get("https://" + address + "/long")
				if err == nil {
					resp.Body.Close()
				}
				answered <- err
			}()
			receive(t, "the long request runs", begun)
			for range most {
				row.stall(t, s, address, bodies)
			}
			for range 2 * most {
				resp, err := client.Get("https://" + address + "/api/test")
				if err != nil {
					t.Fatalf("others are not answered: %v", err)
				}
				resp.Body.Close()
			}
			close(release)
			if err := receive(t, "the long request ends", answered); err != nil {
				t.Errorf("a request that ran was cut off: %v", err)
			}
		})
	}
}

// A toldBody says when it is first read.
type toldBody struct {
	io.ReadCloser
	read chan<- struct{}
}

func (b *toldBody) Read(p []byte) (int, error) {
	select {
	case b.read <- struct{}{}:
	default:
	}
	return b.ReadCloser.Read(p)
}

func TestConcurrentRequestsAreBoundedTogether(t *testing.T) {
	t.Parallel()
	const most = 3
	s := newService(t)
	s.keepLog()
	begun, release := make(chan struct{}, most+1), make(chan struct{})
	s.handle("GET /long", func(x *exchange) error {
		begun <- struct{}{}
		<-release
		return x.send(200, []byte("{}"))
	})
	address, client := s.serveTLSOn(most)
	get := func(client *http.Client, path string) int {
		resp, err := client.Get("https://" + address + path)
		if err != nil {
			t.Log(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if status := get(client, "/api/test"); status != 200 { // now there is a connection to share
		t.Fatal(status)
	}
	ended := make(chan int, most+1)
	for range most + 1 {
		go func() { ended <- get(client, "/long") }()
		receive(t, "a request runs", begun)
	}
	if _, err := client.Get("https://" + address + "/api/test"); err == nil || !strings.Contains(err.Error(), "INTERNAL_ERROR; received from peer") {
		t.Errorf("one more on the same connection: %v, want a reset stream", err)
	}
	other := &http.Client{Transport: client.Transport.(*http.Transport).Clone(), Timeout: patience}
	defer other.CloseIdleConnections()
	if status := get(other, "/api/test"); status != 200 {
		t.Errorf("the first of another connection: %d, want 200", status)
	}
	close(release)
	for range most + 1 {
		if status := receive(t, "a request ends", ended); status != 200 {
			t.Errorf("one that ran: %d", status)
		}
	}
	if status := get(client, "/api/test"); status != 200 {
		t.Errorf("when they have ended: %d, want 200", status)
	}
}

// net/http keeps a small answer until the request has ended, and then waits for the client.
func TestAnswersOfHTTP2ThatWaitForTheirClientsCount(t *testing.T) {
	t.Parallel()
	const connections = 16
	s := newService(t)
	address, client := s.serveTLSOn(8 * connections) // holds 1.5 MiB, and each answer counts as 16 KiB
	closed := make(chan error, connections)
	for range connections {
		h := dialH2(t, address, true, 0, 4, 0, 0, 0, 0) // a window of 0 bytes
		for i := range uint32(http2Bounds.MaxConcurrentStreams) {
			h.request(1+2*i, "GET", "/api/test")
		}
		h.read(frameHeaders)
		h.conn.SetReadDeadline(time.Time{})
		go func() {
			_, err := io.Copy(io.Discard, h.conn)
			closed <- err
		}()
	}
	for start := time.Now(); len(closed) == 0; {
		if time.Since(start) > patience {
			t.Fatal("no connection was closed")
		}
		resp, err := client.Get("https://" + address + "/api/test")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
}

// A pebble is Let's Encrypt's ACME server for tests, on loopback, with a name
// server that finds every name there.
type pebble struct {
	directory string
	trust     string // the file of the certificate that it shows itself
	roots     *x509.CertPool
	process   *exec.Cmd
}

// startPebble starts a pebble that checks challenges on these ports, and whose certificates
// are valid for so many seconds.
func startPebble(t *testing.T, httpPort, tlsPort, seconds int) *pebble {
	t.Helper()
	dir := programDir(t)
	const commands, version = "github.com/letsencrypt/pebble/v2/cmd/", "@v2.10.1"
	build := exec.Command("go", "install", commands+"pebble"+version, commands+"pebble-challtestsrv"+version)
	build.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	own := certstest.New(certstest.Day)
	writePair(t, dir, own)
	var free []net.Listener
	for range 4 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		free = append(free, l)
	}
	take := func() string {
		l := free[0]
		free = free[1:]
		l.Close()
		return l.Addr().String()
	}
	listen, management, names, namesManagement := take(), take(), take(), take()
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress":           listen,
		"managementListenAddress": management,
		"certificate":             filepath.Join(dir, "cert.pem"),
		"privateKey":              filepath.Join(dir, "key.pem"),
		"httpPort":                httpPort,
		"tlsPort":                 tlsPort,
		"retryAfter":              map[string]int{"authz": 1, "order": 1},
		"keyAlgorithm":            "ecdsa",
		"profiles":                map[string]any{"default": map[string]any{"description": "of a test", "validityPeriod": seconds}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "pebble.json"), config)
	start := func(name string, args ...string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command(filepath.Join(dir, name), args...)
		cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
		output := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = output, output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			if t.Failed() {
				t.Logf("%s:\n%s", name, output)
			}
		})
		return cmd
	}
	start("pebble-challtestsrv", "-dnsserver", names, "-management", namesManagement, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
		"-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
	p := &pebble{
		directory: "https://" + listen + "/dir",
		trust:     filepath.Join(dir, "cert.pem"),
		roots:     x509.NewCertPool(),
		process:   start("pebble", "-config", filepath.Join(dir, "pebble.json"), "-dnsserver", names),
	}
	client := trusting(false, own)
	defer client.CloseIdleConnections()
	await(t, "pebble listens", func() bool {
		resp, err := client.Get("https://" + management + "/roots/0")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		root, err := io.ReadAll(resp.Body)
		return err == nil && p.roots.AppendCertsFromPEM(root)
	})
	return p
}

// startUserd starts userd with a certificate of the pebble's, on the ports that
// a CA looks at.
func (p *pebble) startUserd(t *testing.T, dir string) *process {
	t.Helper()
	u := startUserd(t, dir, []string{
		"ADDR=127.0.0.1:443", "HTTPS_DOMAIN=userd.example", "ACME_DIRECTORY=" + p.directory, "SSL_CERT_FILE=" + p.trust,
	})
	if u.url != "https://127.0.0.1:443" {
		t.Errorf("it serves %s", u.url)
	}
	u.awaitLog("loaded certificate")
	u.url = "https://userd.example"
	u.client = &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: p.roots},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, strings.Replace(address, "userd.example", "127.0.0.1", 1))
		},
	}}
	return u
}

// certificate returns the verified certificate of userd.example.
func (p *pebble) certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", "127.0.0.1:443", &tls.Config{RootCAs: p.roots, ServerName: "userd.example"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

func TestPebbleGivesACertificateThatIsKept(t *testing.T) {
	t.Parallel()
	if !*peers {
		t.Skip("runs with -peers")
	}
	p := startPebble(t, 1, 443, 90*24*60*60) // only challenges by TLS
	dir := t.TempDir()
	u := p.startUserd(t, dir)
	resp, err := u.client.Get("http://userd.example/api/test?x=1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Request.URL.String() != "https://userd.example/api/test?x=1" || resp.Proto != "HTTP/2.0" || resp.Header.Get("Strict-Transport-Security") == "" {
		t.Errorf("from port 80 one comes to %s: %s %s, %v", resp.Request.URL, resp.Proto, resp.Status, resp.Header)
	}
	u.register("ann")
	resp, err = u.client.Post("http://userd.example/api/login", "application/json", strings.NewReader(`{"username":"ann","password":"`+goodPassword+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 || resp.Request.Method != "POST" {
		t.Errorf("a password in plain text: %s %s", resp.Request.Method, resp.Status)
	}
	files, err := os.ReadDir(filepath.Join(dir, "certs"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "certs")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("their directory has the mode %v, %v", info.Mode(), err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has the mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
	check := userdProcess(t, dir, "", []string{"ADDR=127.0.0.1:443", "HTTPS_DOMAIN=userd.example"}, "healthcheck")
	if want := (result{0, "https://127.0.0.1:443/readyz: ready\n", ""}); check != want {
		t.Errorf("the health check came to %+v, want %+v", check, want)
	}
	t.Run("a port 80 that is taken is a failure", func(t *testing.T) {
		other := t.TempDir()
		userdProcess(t, other, "", []string{"HTTPS_DOMAIN=b.example"}).wantFailure(t, 1, "HTTPS_DOMAIN (-https-domain)", "127.0.0.1:80", "in use")
		wantFiles(t, other)
	})
	t.Run("and so is a port 443", func(t *testing.T) {
		userdProcess(t, t.TempDir(), "", []string{"HTTPS_DOMAIN=b.example", "ADDR=127.0.0.1:443"}).wantFailure(t, 1, "127.0.0.1:443", "in use")
	})
	first := p.certificate(t)
	if status := u.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(u.log(), "\n"))
	}
	p.process.Process.Kill() // who asks for a certificate now gets none
	u = p.startUserd(t, dir)
	if !p.certificate(t).Equal(first) {
		t.Error("after a restart the certificate is another one")
	}
	u.login("ann", goodPassword)
	if status := u.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(u.log(), "\n"))
	}
}

func TestPebbleRenewsACertificate(t *testing.T) {
	t.Parallel()
	if !*peers {
		t.Skip("runs with -peers")
	}
	p := startPebble(t, 80, 1, 25) // only challenges by HTTP
	u := p.startUserd(t, t.TempDir())
	first := p.certificate(t)
	if life := first.NotAfter.Sub(first.NotBefore); life > 25*time.Second {
		t.Fatalf("the certificate is good for %v", life)
	}
	for !p.certificate(t).NotAfter.After(first.NotAfter) {
		if time.Now().After(first.NotAfter) {
			t.Fatal("the certificate has ended and was not renewed")
		}
		u.must("", "GET", "/api/test", "").want(t, 200, "")
	}
}

func TestWhileItDrainsItIsNotReady(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), []string{"METRICS_ADDR=127.0.0.1:0"})
	watched, _ := p.awaitLog("serving metrics")["url"].(string)
	get := func(path string) int {
		t.Helper()
		resp, err := p.client.Get(watched + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := get("/readyz"); got != 200 {
		t.Errorf("before, it is answered %d", got)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// A request that runs: it has asked for its body.
	fmt.Fprint(conn, "POST /api/login HTTP/1.1\r\nHost: userd\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
		t.Fatalf("got %q, %v, want 100 Continue", line, err)
	}
	in.ReadString('\n')
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.awaitLog("stopping")
	for path, want := range map[string]int{"/readyz": 503, "/healthz": 200, "/metrics": 200} {
		if got := get(path); got != want {
			t.Errorf("while it drains, %s is answered %d, want %d", path, got, want)
		}
	}
	if _, err := io.WriteString(conn, "{}"); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 400 {
		t.Errorf("the request that ran: %v", err)
	}
	receive(t, "userd exits", p.exited)
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(watched, "http://")); err == nil {
		t.Error("the second address is still open")
	}
}

// serveOn serves the service on a listener with room for so many connections,
// as main does except for the timeouts, and returns its address.
func (s *service) serveOn(most int) string {
	s.t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	web := s.patientServer()
	s.t.Cleanup(func() { web.Close() })
	go web.Serve(netlisten.Limit(inner, most))
	return inner.Addr().String()
}

// stall connects as a client that sends a text and then neither sends nor reads.
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

func TestClientsThatStallMakeRoom(t *testing.T) {
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
		{"within a body that is not read", "GET /api/test HTTP/1.1\r\nHost: userd\r\nContent-Length: 40\r\n\r\n", false},
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
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
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
func TestClientsThatKeepSendingRequestsMakeRoom(t *testing.T) {
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
			client := &http.Client{Transport: transport.Clone(), Timeout: patience}
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
		if err := ask(&http.Client{Transport: once, Timeout: patience}); err != nil {
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
	p.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
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

func TestWithoutConfigurationItServes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	r := p.must("", "GET", "/api/test", "").want(t, 200, "")
	if want := `{"message":"Welcome to the User Management Microservice!"}`; strings.TrimSpace(r.body) != want {
		t.Errorf("the body is %s, want %s", r.body, want)
	}
	info, err := os.Stat(filepath.Join(dir, "app.db"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("app.db has mode %v, want 0600", info.Mode())
	}
	p.register("ann")
	p.login("ann", goodPassword)

	t.Run("and its log begins with a new database, and with where it serves", func(t *testing.T) {
		for i, want := range []map[string]any{
			{"level": "INFO", "msg": "created an empty database", "database": filepath.Join(dir, "app.db")},
			{"level": "INFO", "msg": "serving", "url": p.url, "database": filepath.Join(dir, "app.db"), "signing_key": "kept in the database"},
		} {
			var record map[string]any
			if err := json.Unmarshal([]byte(p.log()[i]), &record); err != nil {
				t.Fatalf("%v: %s", err, p.log()[i])
			}
			delete(record, "time")
			if !reflect.DeepEqual(record, want) {
				t.Errorf("the record is %v, want %v", record, want)
			}
		}
		if u, err := url.Parse(p.url); err != nil || u.Scheme != "http" || u.Hostname() != "127.0.0.1" {
			t.Errorf("the url is %s", p.url)
		}
	})
	t.Run("and it ends when it is terminated", func(t *testing.T) {
		if status := p.end(syscall.SIGTERM); status != 0 {
			t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
		}
		if p.stdout.Len() != 0 {
			t.Errorf("standard output holds %q", p.stdout.String())
		}
		wantFiles(t, dir, "app.db")
	})
}

func TestAnInterruptEndsItToo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	if status := p.end(os.Interrupt); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	wantFiles(t, dir, "app.db")
}

func TestATakenPortIsAFailureThatLeavesNothing(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dir := t.TempDir()
	for _, c := range []struct{ flag, setting string }{{"-addr", "ADDR (-addr)"}, {"-metrics-addr", "METRICS_ADDR (-metrics-addr)"}} {
		got := userdProcess(t, dir, "", []string{"ADDR=127.0.0.1:0"}, c.flag, listener.Addr().String())
		got.wantFailure(t, 1, c.setting+": ", listener.Addr().String(), "in use: stop the program that listens there, perhaps another userd, or choose another address")
	}
	wantFiles(t, dir)
}

func TestATokenOutlivesARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	p.register("ann")
	token := p.login("ann", goodPassword)
	p.end(syscall.SIGTERM)
	p = startUserd(t, dir, nil)
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	p.end(syscall.SIGTERM)

	t.Run("but not a change of the key", func(t *testing.T) {
		key := strings.Repeat("k", 32)
		p := startUserd(t, dir, []string{"JWT_SECRET_KEY=" + key})
		p.must(token, "GET", "/api/users/me", "").want(t, 200, "") // the database's keys stay good
		token := p.login("ann", goodPassword)
		p.end(syscall.SIGTERM)
		p = startUserd(t, dir, []string{"JWT_SECRET_KEY=" + strings.Repeat("x", 32)})
		p.must(token, "GET", "/api/users/me", "").want(t, 401, "invalid_token")
		p.end(syscall.SIGTERM)
		p = startUserd(t, dir, []string{"JWT_SECRET_KEY=" + strings.Repeat("x", 32), "JWT_SECRET_KEY_PREVIOUS=" + key})
		p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
		p.end(syscall.SIGTERM)

		file := filepath.Join(dir, "key")
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		p = startUserd(t, dir, []string{"JWT_SECRET_KEY_FILE=key"})
		p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	})
}

// As with a restart that overlaps.
func TestTwoServersThatStartConcurrentlyMakeOneDatabaseWithOneKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two := spawnUserd(t, dir, nil), spawnUserd(t, dir, nil)
	one.awaitServing()
	two.awaitServing()
	one.register("ann")
	two.must(one.login("ann", goodPassword), "GET", "/api/users/me", "").want(t, 200, "")
	one.must(two.login("ann", goodPassword), "GET", "/api/users/me", "").want(t, 200, "")
	for i, p := range []*process{one, two} {
		if status := p.end(syscall.SIGTERM); status != 0 {
			t.Errorf("server %d: exit status %d, want 0:\n%s", i+1, status, strings.Join(p.log(), "\n"))
		}
	}
	wantFiles(t, dir, "app.db")
}

// A load holds the requests of concurrent clients, each about a user of its own, and the
// answers to them.
type load struct {
	t       *testing.T
	clients []*loadClient
	added   []addition
	round   int
}

// An addition is a registration that was acknowledged by the answer to a request.
type addition struct{ name, id, request string }

// A loadClient goes from one state of its user to the next, a write each.
type loadClient struct {
	id       int64
	states   []loadUser // each follows from the write that was sent next
	requests []string   // the X-Request-Id of each answer: requests[i] acknowledged states[i+1]
}

// A loadUser is what the writes of a client have made of its user.
type loadUser struct {
	client, name, password, version int
	sessions                        []loadSession // in the order of their ids
}

type loadSession struct {
	generation      int
	access, refresh string // empty: its answer was lost
	fresh           bool   // the access token is a proof
}

// take keeps the tokens of an answer.
func (s *loadSession) take(r reply) {
	s.access, s.refresh = r.field("access_token"), r.field("refresh_token")
}

// row is what selectLoadUser gives for the user. The address names the password.
func (u *loadUser) row() string {
	if u.version == 0 {
		return "nobody"
	}
	generations := []string{}
	for _, s := range u.sessions {
		generations = append(generations, strconv.Itoa(s.generation))
	}
	return fmt.Sprintf("c%d-%d c%d-p%d@example.com %d [%s]", u.client, u.name, u.client, u.password, u.version, strings.Join(generations, " "))
}

const selectLoadUser = `
	SELECT username || ' ' || email || ' ' || version || ' [' ||
		coalesce((SELECT group_concat(generation, ' ' ORDER BY id) FROM session WHERE user_id = user.id), '') || ']'
	FROM user WHERE id = ?`

// loadEnviron lets a load come from one address.
var loadEnviron = []string{"RATE_LIMIT=off"}

func newLoad(p *process) *load {
	l := &load{t: p.t}
	for i := range 4 {
		u := loadUser{client: i, version: 1}
		name, email, _ := strings.Cut(u.row(), " ")
		email, _, _ = strings.Cut(email, " ")
		r := p.must("", "POST", "/api/register", fmt.Sprintf(`{"username":%q,"email":%q,"password":"%s 0"}`, name, email, goodPassword)).want(p.t, 201, "")
		id, err := param.ID(r.field("id"))
		if err != nil {
			p.t.Fatal(err)
		}
		l.clients = append(l.clients, &loadClient{id, []loadUser{{}, u}, []string{r.header.Get("X-Request-Id")}})
	}
	return l
}

// run loads the server until so many writes are acknowledged, and ends it by the
// signal. It returns the exit status and how long the end took.
func (l *load) run(p *process, writes int64, s os.Signal) (status int, took time.Duration) {
	l.t.Helper()
	l.round++
	var acknowledged atomic.Int64
	var end time.Time
	var wg sync.WaitGroup
	ask := func(status int, token, method, path, body string) (reply, bool) {
		r, err := p.ask(token, method, path, body)
		for r.field("code") == "busy" { // on a machine that has much else to do
			r, err = p.ask(token, method, path, body)
		}
		if err != nil { // the server has gone
			return r, false
		}
		if r.status != status { // even now a fault
			l.t.Errorf("round %d: %s %s was answered %d %s", l.round, method, path, r.status, strings.TrimSpace(r.body))
			return r, false
		}
		if acknowledged.Add(1) == writes {
			// At once: what was acknowledged must be safe by now, not soon.
			if err := p.cmd.Process.Signal(s); err != nil {
				l.t.Error(err)
			}
			end = time.Now()
		}
		return r, true
	}
	for _, c := range l.clients {
		wg.Go(func() { c.run(ask) })
	}
	wg.Go(func() {
		for i := 0; ; i++ {
			name := fmt.Sprintf("r%d-%d", l.round, i)
			r, ok := ask(201, "", "POST", "/api/register", registerBody(name, goodPassword))
			if !ok {
				return
			}
			l.added = append(l.added, addition{name, r.field("id"), r.header.Get("X-Request-Id")})
		}
	})
	wg.Wait()
	if end.IsZero() {
		l.t.Fatalf("the load has ended after %d writes:\n%s", acknowledged.Load(), strings.Join(p.log(), "\n"))
	}
	receive(l.t, "userd exits", p.exited)
	return p.cmd.ProcessState.ExitCode(), time.Since(end)
}

// run makes one change after the other until an answer is missing. Most of them cost no
// hash, so that the kill happens during many different writes.
func (c *loadClient) run(ask func(status int, token, method, path, body string) (reply, bool)) {
	u := c.states[len(c.states)-1]
	send := func(next loadUser, status int, token, method, path, body string) (r reply, ok bool) {
		c.states = append(c.states, next)
		if r, ok = ask(status, token, method, path, body); ok {
			c.requests = append(c.requests, r.header.Get("X-Request-Id"))
			u = next
		}
		return r, ok
	}
	pair := func(i int, next loadUser, token, path, body string) bool {
		r, ok := send(next, 200, token, "POST", path, body)
		if ok {
			u.sessions[i].take(r)
		}
		return ok
	}
	login := func() bool {
		next := u
		next.sessions = append(slices.Clone(u.sessions), loadSession{fresh: true})
		return pair(len(u.sessions), next, "", "/api/login", fmt.Sprintf(`{"username":"c%d-%d","password":"%s %d"}`, u.client, u.name, goodPassword, u.password))
	}
	refresh := func(i int) bool {
		next := u
		next.sessions = slices.Clone(u.sessions)
		next.sessions[i] = loadSession{generation: u.sessions[i].generation + 1}
		return pair(i, next, u.sessions[i].refresh, "/api/refresh", "")
	}
	rename := func(i int) bool {
		next := u
		next.name++
		next.version++
		_, ok := send(next, 200, u.sessions[i].access, "PUT", userPath(c.id), fmt.Sprintf(`{"username":"c%d-%d"}`, u.client, next.name))
		return ok
	}
	newPassword := func(i int) bool {
		next := u
		next.password++
		next.version++
		next.sessions = []loadSession{{generation: u.sessions[i].generation + 1, fresh: true}}
		r, ok := send(next, 200, u.sessions[i].access, "PUT", userPath(c.id),
			fmt.Sprintf(`{"email":"c%d-p%d@example.com","password":"%s %[2]d"}`, u.client, next.password, goodPassword))
		if ok {
			u.sessions[0].take(r)
		}
		return ok
	}
	logout := func(i int) bool {
		next := u
		next.sessions = slices.Delete(slices.Clone(u.sessions), i, i+1)
		_, ok := send(next, 204, u.sessions[i].access, "POST", "/api/logout", "")
		return ok
	}
	for going := true; going; {
		var held []int // the sessions whose tokens are known
		for i, s := range u.sessions {
			if s.access != "" {
				held = append(held, i)
			}
		}
		if len(held) == 0 {
			going = login()
			continue
		}
		i := held[rand.IntN(len(held))]
		switch n := rand.IntN(100); {
		case n < 60 && u.sessions[i].fresh:
			going = rename(i)
		case n < 94:
			going = refresh(i)
		case n < 96:
			going = logout(i)
		case n < 98 && u.sessions[i].fresh:
			going = newPassword(i)
		default:
			going = login()
		}
	}
}

// check fails the test unless every write that was acknowledged is in the
// database, and each of the others there whole or not at all. acknowledged says
// whether the answer to a request counts. It returns the state of each client's user.
func (l *load) check(path string, acknowledged func(request string) bool) (found []loadUser) {
	l.t.Helper()
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "_busy_timeout=10000"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	if got := scan[string](l.t, conn, `PRAGMA integrity_check`); got != "ok" {
		l.t.Errorf("integrity_check: %s", got)
	}
	for i, c := range l.clients {
		landed := 0
		for landed < len(c.requests) && acknowledged(c.requests[landed]) {
			landed++
		}
		row := scan[string](l.t, conn, `SELECT coalesce((`+selectLoadUser+`), 'nobody')`, c.id)
		n := slices.IndexFunc(c.states[landed:], func(u loadUser) bool { return u.row() == row })
		if n < 0 {
			l.t.Errorf("round %d: the user of client %d is %s, which is neither what was acknowledged, %s, nor a later state",
				l.round, i, row, c.states[landed].row())
			n = 0
		}
		found = append(found, c.states[landed+n])
	}
	for _, a := range l.added {
		if !acknowledged(a.request) {
			continue
		}
		if got := scan[string](l.t, conn, `SELECT coalesce(max(id), 'none') FROM user WHERE username = ? AND password_hash <> ''`, a.name); got != a.id {
			l.t.Errorf("round %d: %s was registered with the id %s and has the id %s", l.round, a.name, a.id, got)
		}
	}
	for half, query := range map[string]string{
		"ids were given out and not used":              `SELECT user_id - (SELECT count(*) FROM user) FROM counter`,
		"sessions began and their user did not log in": `SELECT count(*) FROM session LEFT JOIN user ON user.id = session.user_id WHERE user.last_login_at IS NULL OR user.last_login_at < session.created_at`,
	} {
		if got := scan[int](l.t, conn, query); got != 0 {
			l.t.Errorf("round %d: half a write: %d %s", l.round, got, half)
		}
	}
	return found
}

// all counts every answer: the process has ended, and not the system.
func all(string) bool { return true }

func TestTerminatedUnderLoadItFinishesWhatItHasBegun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, loadEnviron)
	l := newLoad(p)
	status, took := l.run(p, 100, syscall.SIGTERM)
	if status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	if took > 10*time.Second { // the contract with whatever supervises it
		t.Errorf("it took %v to exit", took)
	}
	wantFiles(t, dir, "app.db")
	l.check(filepath.Join(dir, "app.db"), all)
}

func TestKilledUnderLoadItKeepsWhatItHasAcknowledged(t *testing.T) {
	t.Parallel()
	long := 3 * time.Second
	if *faults {
		long = 40 * time.Second
	}
	dir := t.TempDir()
	p := startUserd(t, dir, loadEnviron)
	l := newLoad(p)
	for start := time.Now(); time.Since(start) < long && !t.Failed(); {
		if status, _ := l.run(p, 1+rand.Int64N(60), syscall.SIGKILL); status != -1 {
			t.Errorf("exit status %d, want that of a killed process", status)
		}
		p = startUserd(t, dir, loadEnviron)
		for i, u := range l.check(filepath.Join(dir, "app.db"), all) {
			l.clients[i].states, l.clients[i].requests = []loadUser{u}, nil
		}
	}
	t.Logf("killed %d times", l.round)
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	wantFiles(t, dir, "app.db")
	if r := userdProcess(t, dir, "", nil, "events", "verify"); r.status != 0 || !strings.HasSuffix(r.stdout, "\nevents without a link yet: 0\n") {
		t.Errorf("after the kills, events verify: %+v", r)
	}
}

func TestARequestThatRunsIsFinishedBeforeItEnds(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), nil)
	id := p.register("ann")
	token := p.login("ann", goodPassword)
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"username":"anna"}`
	_, err = fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: userd\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		userPath(id), token, len(body))
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	// The server asks for the body when the handler reads it: the request runs.
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
		t.Fatalf("got %q, %v, want 100 Continue", line, err)
	}
	in.ReadString('\n')
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.awaitLog("stopping")
	if _, err := io.WriteString(conn, body); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != 200 {
		t.Errorf("the request was answered %d", resp.StatusCode)
	}
	receive(t, "userd exits", p.exited)
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

func TestAnErrorAboutAPortNamesTheSettingAndTheMissingCapability(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		port  int
		cause error
		hint  bool
	}{
		{443, syscall.EACCES, true},
		{1023, syscall.EACCES, true},
		{1024, syscall.EACCES, false},
		{443, syscall.EADDRINUSE, false},
	} {
		cause := &net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{Port: c.port}, Err: os.NewSyscallError("bind", c.cause)}
		err := listenError("ADDR (-addr)", cause)
		if !errors.Is(err, c.cause) || !strings.HasPrefix(err.Error(), "ADDR (-addr): listen tcp :") || strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") != c.hint {
			t.Errorf("port %d: %v", c.port, err)
		}
	}
}
