package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"userd/internal/certs/certstest"
	"userd/internal/netlisten"
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
				if resp.Proto != c.proto || resp.StatusCode != status {
					t.Errorf("%s: %s %s", path, resp.Proto, resp.Status)
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
	hangup() // there is nothing new, and it says what there is
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

func TestAHangupWithoutACertificateDoesNothing(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), nil)
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
		{"a certificate without a key", []string{"TLS_CERT=cert.pem"}, []string{"TLS_CERT", "TLS_KEY", "not set"}},
		{"a key without a certificate", []string{"TLS_KEY=key.pem"}, []string{"TLS_CERT", "TLS_KEY", "not set"}},
		{"a certificate of one's own and one by ACME", []string{"TLS_CERT=cert.pem", "TLS_KEY=key.pem", "HTTPS_DOMAIN=example.com"}, []string{"HTTPS_DOMAIN", "TLS_CERT", "both"}},
		{"another certificate's key", []string{"TLS_CERT=cert.pem", "TLS_KEY=other.pem"}, []string{"TLS_CERT", "TLS_KEY", "does not match"}},
		{"a key in place of the certificate", []string{"TLS_CERT=key.pem", "TLS_KEY=key.pem"}, []string{"TLS_CERT", "PEM"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			userdHere(t, "", c.environ).wantFailure(t, 2, c.words...)
		})
	}
	wantFiles(t, dir, "cert.pem", "key.pem", "other.pem")
}

// serveTLSOn is serveOn with TLS. The client keeps no connections.
func (s *service) serveTLSOn(most int, options ...func(*http.Server)) (address string, client *http.Client) {
	s.t.Helper()
	dir := s.t.TempDir()
	cert := certstest.New(90 * certstest.Day)
	certFile, keyFile := writePair(s.t, dir, cert)
	h, err := newHTTPS(&config{tlsCert: certFile, tlsKey: keyFile}, nil, s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	web := newHTTPServer(s.server)
	for _, option := range options {
		option(web)
	}
	s.t.Cleanup(func() { web.Close() })
	go h.serve(web, netlisten.Limit(inner, most))
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
		3: 16,       // streams at once
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

func TestThoseWhoKeepHTTPSWaitingMakeRoom(t *testing.T) {
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
		{"within a body, and a request beside it done", func(t *testing.T, s *service, address string, bodies <-chan struct{}) {
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
			client.Timeout = 4 * time.Second
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

func TestRequestsBesideOthersAreBoundedTogether(t *testing.T) {
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
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		if resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "1" {
			t.Errorf("503 with %v", resp.Header)
		}
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
	if status := get(client, "/api/test"); status != 503 {
		t.Errorf("one more on the same connection: %d, want 503", status)
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

// A pebble is Let's Encrypt's ACME server for tests, on loopback, with a name
// server that finds every name there.
type pebble struct {
	directory string
	trust     string // the file of the certificate that it shows itself
	roots     *x509.CertPool
	process   *exec.Cmd
}

// startPebble starts one that looks for challenges on these ports and whose
// certificates are good for so many seconds.
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

// certificate returns the one that userd.example shows, verified.
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
	p := startPebble(t, 1, 443, 90*24*60*60) // challenges by TLS alone
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
		userdProcess(t, other, "", []string{"HTTPS_DOMAIN=b.example"}).wantFailure(t, 1, "127.0.0.1:80", "in use")
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
	p := startPebble(t, 80, 1, 25) // challenges by HTTP alone
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
