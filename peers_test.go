package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"userd/internal/mail/eximtest"
	"userd/internal/otp"
)

// peers says that the programs userd works with are installed, and to be tested with.
var peers = flag.Bool("peers", false, "test with nginx, Caddy, Chromium, Flask, PyJWT, promtool, Exim, oathtool and zbarimg of Debian, which must be installed, and with Traefik, Litestream and Pebble, which are built")

// Each proxy runs with its configuration in examples/.
func TestReverseProxies(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	traefik := filepath.Join(programDir(t), "traefik")
	if out, err := exec.Command(".ci/traefik", traefik).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, proxy := range []struct {
		name    string
		command func(t *testing.T, dir string) *exec.Cmd
	}{
		{"nginx", nginxCommand},
		{"caddy", caddyCommand},
		{"traefik", func(_ *testing.T, dir string) *exec.Cmd {
			return exec.Command(traefik, "--configFile="+filepath.Join(dir, "traefik.yml"))
		}},
	} {
		start := func(t *testing.T, u *process, service string) (port string) {
			t.Helper()
			dir := t.TempDir()
			port = proxyExample(t, proxy.name, dir, u, service)
			startProxy(t, "http://id.example.com:"+port, proxy.command(t, dir))
			return port
		}
		t.Run(proxy.name+" tells userd the client's address", func(t *testing.T) {
			u := startUserd(t, t.TempDir(), []string{"TRUSTED_PROXIES=127.0.0.1"})
			testForwardedAddress(t, u, "http://id.example.com:"+start(t, u, "http://127.0.0.1:1"))
		})
		t.Run(proxy.name+" asks userd who is calling", func(t *testing.T) {
			service := httptest.NewServer(http.HandlerFunc(sayWhoIsCalling))
			defer service.Close()
			u := startUserd(t, t.TempDir(), []string{"TRUSTED_PROXIES=127.0.0.1"})
			testForwardAuth(t, u, "http://app.example.com:"+start(t, u, service.URL))
		})
	}
}

func nginxCommand(t *testing.T, dir string) *exec.Cmd {
	config := fmt.Sprintf("daemon off;\nuser root;\npid %[1]s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
		"client_body_temp_path %[1]s;\nproxy_temp_path %[1]s;\nfastcgi_temp_path %[1]s;\nuwsgi_temp_path %[1]s;\nscgi_temp_path %[1]s;\ninclude %[1]s/userd.conf;\n}\n", dir)
	file := filepath.Join(dir, "nginx.conf")
	writeFile(t, file, []byte(config))
	return exec.Command("nginx", "-c", file, "-p", dir)
}

func caddyCommand(t *testing.T, dir string) *exec.Cmd {
	file := filepath.Join(dir, "Caddyfile.test")
	writeFile(t, file, []byte("{\nadmin off\ndefault_bind 127.0.0.1\nlog {\nlevel ERROR\n}\n}\nimport Caddyfile\n"))
	cmd := exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", file)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	return cmd
}

// proxyExample copies an example to dir, for this userd and this service, and returns the free
// port that the proxy listens on.
func proxyExample(t *testing.T, name, dir string, u *process, service string) (port string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	_, port, _ = net.SplitHostPort(address)
	replacer := strings.NewReplacer(
		"listen 80;", "listen "+address+";",
		"id.example.com {", "http://id.example.com:"+port+" {",
		"app.example.com {", "http://app.example.com:"+port+" {",
		`":80"`, `"`+address+`"`,
		"/etc/traefik", dir,
		"127.0.0.1:5000", strings.TrimPrefix(u.url, "http://"),
		"127.0.0.1:3000", strings.TrimPrefix(service, "http://"),
	)
	files, err := filepath.Glob(filepath.Join("examples", name, "*"))
	if err != nil || len(files) < 2 {
		t.Fatalf("examples/%s has %v, %v", name, files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, filepath.Base(file)), []byte(replacer.Replace(string(text))))
	}
	return port
}

// startProxy starts a proxy and returns when it has read its routes, until which
// Traefik answers 404. The proxy ends with the test.
func startProxy(t *testing.T, url string, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	deadline := time.Now().Add(patience)
	for {
		resp, err := clientAt(stranger).Get(url + "/api/test")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != 404 {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the proxy does not serve: %v, %v", resp, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stranger and owner are addresses in different networks.
const stranger, owner = "127.0.1.2", "127.0.2.2"

// clientAt returns a client that connects from this loopback address to 127.0.0.1, whatever the
// name of the host.
func clientAt(address string) *http.Client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	dial := func(ctx context.Context, network, host string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(host)
		if err != nil {
			return nil, err
		}
		return dialer.DialContext(ctx, network, "127.0.0.1:"+port)
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// spoofed is what clients send as the id of their requests.
const spoofed = "spoofed-id"

// askAs sends a request from a loopback address, with headers that say that it comes
// from another address.
func askAs(t *testing.T, client, from string, r *http.Request) reply {
	t.Helper()
	for _, name := range []string{"X-Forwarded-For", "X_Forwarded_For", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"} {
		r.Header[name] = []string{from}
	}
	r.Header["X-Forwarded-For"] = []string{from, from + ", 127.0.0.1"}
	r.Header.Set("Forwarded", "for="+from)
	r.Header.Set("X-Request-Id", spoofed)
	resp, err := clientAt(client).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

// wantClients checks that userd has logged requests to this route, all of them from
// these clients and with ids that the clients did not choose.
func wantClients(t *testing.T, u *process, route string, clients ...string) {
	t.Helper()
	count := 0
	for _, line := range u.log() {
		var record map[string]any
		if json.Unmarshal([]byte(line), &record) != nil || record["route"] != route {
			continue
		}
		count++
		if client, _ := record["client"].(string); !slices.Contains(clients, client) || record["id"] == spoofed {
			t.Errorf("the log has %s, want the client %v and an id that it did not choose", line, clients)
		}
	}
	if count == 0 {
		t.Errorf("the log has no request to %s", route)
	}
}

// testForwardedAddress checks that a client behind the proxy cannot choose its
// address, and that userd counts clients in different networks separately.
func testForwardedAddress(t *testing.T, u *process, url string) {
	u.register("ann")
	login := func(client, from, password string) reply {
		t.Helper()
		r, err := http.NewRequest("POST", url+"/api/login", strings.NewReader(fmt.Sprintf(`{"username":"ann","password":%q}`, password)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		return askAs(t, client, from, r)
	}
	statuses := []int{}
	for i := range 30 {
		statuses = append(statuses, login(stranger, fmt.Sprintf("8.8.%d.8", i), "a wrong password").status)
	}
	if !slices.Contains(statuses, 401) || !slices.Contains(statuses, 429) {
		t.Errorf("wrong passwords from addresses that the client chose: %v, want 401 and 429", statuses)
	}
	r := login(owner, "8.8.8.8", goodPassword).want(t, 200, "")
	if id := r.header.Get("X-Request-Id"); id == "" || id == spoofed {
		t.Errorf("the response has the request id %q", id)
	}
	event := userdProcess(t, u.cmd.Dir, "", nil, "events", "-json", "-type", "login")
	if (reply{body: event.stdout}).field("address") != owner {
		t.Errorf("the event of the login is %q %q, want the address %s", event.stdout, event.stderr, owner)
	}
	wantClients(t, u, "POST /api/login", stranger, owner)
}

// sayWhoIsCalling is a service that trusts the headers of userd. It reports all names
// that WSGI, CGI and PHP take for one of them, and a token.
func sayWhoIsCalling(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s is %s, %s", r.Header["X-User-Name"], r.Header["X-User-Id"], r.Header["X-User-Role"])
	for name := range r.Header {
		if strings.ContainsAny(name, "_.") || name == "Authorization" {
			fmt.Fprintf(w, ", and %s came through", name)
		}
	}
}

// testForwardAuth checks that the service behind the proxy gets the headers that
// userd sets, and none that the client sets.
func testForwardAuth(t *testing.T, u *process, url string) {
	u.register("ann")
	token := u.login("ann", goodPassword)
	ask := func(token string) reply {
		t.Helper()
		r, err := http.NewRequest("POST", url+"/page", strings.NewReader("a body"))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		for _, name := range []string{"Id", "Name", "Role"} {
			for _, prefix := range []string{"X-User-", "x-user-", "X_User_", "X_User-", "X-User_", "x.user.", "X.User-", "X-User."} {
				r.Header[prefix+name] = []string{"an invention"}
			}
		}
		return askAs(t, stranger, "8.8.8.8", r)
	}
	if r := ask(token); r.status != 200 || r.body != "[ann] is [1], [member]" {
		t.Errorf("with a token: %d %s", r.status, r.body)
	}
	if r := ask(""); r.status != 401 || strings.Contains(r.body, "invention") {
		t.Errorf("without a token: %d %s", r.status, r.body)
	}
	if r := ask(token + "x"); r.status != 401 {
		t.Errorf("with a forged token: %d", r.status)
	}
	u.must(token, "POST", "/api/logout", "").want(t, 204, "")
	if r := ask(token); r.status != 401 {
		t.Errorf("after logout: %d", r.status)
	}
	wantClients(t, u, "GET /api/verify", stranger)
}

// enrol adds a second factor to the user of a token, which must be proof.
func (p *process) enrol(token string) (secret []byte, codes []string) {
	p.t.Helper()
	secret, err := otp.ParseSecret(p.must(token, "POST", "/api/users/me/totp", "").want(p.t, 201, "").field("secret"))
	if err != nil {
		p.t.Fatal(err)
	}
	r := p.must(token, "POST", "/api/users/me/totp/confirm", fmt.Sprintf(`{"otp":%q}`, otp.Code(secret, otp.Step(time.Now())))).want(p.t, 200, "")
	return secret, recoveryCodesOf(p.t, r)
}

// A client with types that openapi-typescript generates from openapi.json logs in with a second
// factor, in one step and in two.
func TestATypeScriptClientLogsIn(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	dir := programDir(t)
	node := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	for _, name := range []string{"assets/openapi.json", "testdata/client.ts"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, filepath.Base(name)), text)
	}
	writeFile(t, filepath.Join(dir, "package.json"), []byte(`{"type":"module"}`))
	node("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3")
	node("node_modules/.bin/openapi-typescript", "openapi.json", "--output", "schema.d.ts")
	node("node_modules/.bin/tsc", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "client.ts")
	u := startUserd(t, t.TempDir(), nil)
	u.register("ann")
	_, codes := u.enrol(u.login("ann", goodPassword))
	if got, want := node("node", "client.js", u.url, "ann", goodPassword, codes[0], codes[1]), "two steps: totp,recovery_code\nann\none step\nann\n"; got != want {
		t.Errorf("the client prints\n%s\nwant\n%s", got, want)
	}
}

// The QR code that the command prints is that of its address. The codes of oathtool of the 30
// seconds before add the factor, and those of now and of the 30 seconds after log in, once.
func TestTheCommandWorksWithZbarimgAndOathtool(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	t.Parallel()
	s := newService(t, unlimited)
	s.clock.t = time.Now()
	s.member("ann")
	var secret string
	oathtool := func(seconds int64) string {
		t.Helper()
		out, err := exec.Command("oathtool", "--totp", "--base32", fmt.Sprintf("--now=@%d", s.clock.t.Unix()+seconds), secret).Output()
		if err != nil {
			t.Errorf("oathtool: %v", err)
		}
		return strings.TrimSpace(string(out))
	}
	d := &dialog{ready: make(chan struct{})}
	d.code = func(printed string) string {
		secret = printed
		if left := 30 - time.Now().Unix()%30; left < 10 {
			time.Sleep(time.Duration(left) * time.Second) // the command reads the clock of the machine
		}
		s.clock.set(time.Now())
		return oathtool(-30)
	}
	if _, err := enrolByCommand(t, s.path, d); err != nil {
		t.Fatal(err)
	}
	if text, uri := readBlocks(t, d.text), regexp.MustCompile(`otpauth://\S+`).FindString(d.text); text != uri || uri == "" {
		t.Errorf("zbarimg reads %q, and the command prints %q", text, uri)
	}
	for _, step := range []struct {
		seconds int64
		status  int
		code    string
	}{{-30, 401, "otp_used"}, {-60, 401, "wrong_otp"}, {60, 401, "wrong_otp"}, {0, 200, ""}, {0, 401, "otp_used"}, {30, 200, ""}} {
		s.loginWith("ann", oathtool(step.seconds)).want(t, step.status, step.code)
	}
}

// readBlocks returns the text of a QR code that is printed in block characters, which zbarimg reads.
func readBlocks(t *testing.T, printed string) string {
	t.Helper()
	const scale = 4
	var rows [][]rune
	for line := range strings.Lines(printed) {
		if row := []rune(strings.TrimSuffix(line, "\n")); strings.ContainsAny(line, "█▀▄") {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		t.Fatalf("no QR code: %s", printed)
	}
	picture := image.NewGray(image.Rect(0, 0, scale*len(rows[0]), scale*2*len(rows)))
	for x := range picture.Rect.Dx() {
		for y := range picture.Rect.Dy() {
			lit := "█▀" // on a dark terminal
			if y/scale%2 == 1 {
				lit = "█▄"
			}
			if strings.ContainsRune(lit, rows[y/scale/2][x/scale]) {
				picture.SetGray(x, y, color.Gray{Y: 255})
			}
		}
	}
	var data bytes.Buffer
	if err := png.Encode(&data, picture); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "code.png")
	writeFile(t, file, data.Bytes())
	out, err := exec.Command("zbarimg", "--quiet", "--raw", file).Output()
	if err != nil {
		t.Fatalf("zbarimg: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// Exim has a certificate that only SSL_CERT_FILE makes valid.
func TestEximDeliversLinks(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	exim := eximtest.Start(t, "mailer@example.com", "p@ss/w%rd: 1")
	u := startUserd(t, t.TempDir(), []string{
		"APP_URL=https://id.example.com", "SSL_CERT_FILE=" + exim.CertFile, "MAIL_FROM=no-reply@example.com",
		"MAIL_URL=smtp://mailer%40example.com:p%40ss%2Fw%25rd%3A%201@" + exim.StartTLSAddr,
	})
	follow := func(path, password string) {
		t.Helper()
		if err := receive(t, "Exim delivers a mail", exim.Ended); err != nil {
			t.Fatalf("%v: %s\n%s", err, exim.Log(), strings.Join(u.log(), "\n"))
		}
		files, err := exim.Mails()
		if err != nil || len(files) != 1 {
			t.Fatalf("the mailbox contains %q, %v: %s", files, err, exim.Log())
		}
		data, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		u.must("", "POST", path, resetBody(readMail(t, bytes.NewReader(data)).code, password)).want(t, 200, "")
		if err := os.Remove(files[0]); err != nil {
			t.Fatal(err)
		}
	}
	u.must("", "POST", "/api/register", fmt.Sprintf(`{"username":"ann","email":"ann@example.org","password":%q}`, goodPassword)).want(t, 201, "")
	follow("/api/email/verify", goodPassword)
	u.forgot("ann@example.org")
	follow("/api/password/reset", "another long one")
	u.login("ann", "another long one")
}
