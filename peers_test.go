package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// peers says that the programs userd works with are installed, and to be tested with.
var peers = flag.Bool("peers", false, "test with nginx, Flask, PyJWT and promtool of Debian, which must be installed, and with Litestream and Pebble, which are built")

// nginx, with the configuration in docs/proxy.md, asks userd who is calling before
// it passes a request to a service that knows nothing of tokens.
func TestNginxAuthRequest(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	s := newService(t)
	_, token := s.member("ann")
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s is %s, %s", r.Header.Get("X-User-Name"), r.Header.Get("X-User-Id"), r.Header.Get("X-User-Role"))
		for name := range r.Header {
			if strings.ContainsAny(name, "_.") {
				fmt.Fprintf(w, ", and %s came through", name)
			}
		}
	}))
	defer behind.Close()

	page, err := os.ReadFile("docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(page), "```nginx\n")
	block, _, found2 := strings.Cut(block, "```")
	if !found || !found2 {
		t.Fatal("docs/proxy.md has no nginx configuration")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	dir := t.TempDir()
	block = strings.NewReplacer(
		"listen 80;", "listen "+address+";",
		"http://127.0.0.1:5000", s.url,
		"http://127.0.0.1:3000", behind.URL,
	).Replace(block)
	config := fmt.Sprintf("daemon off;\nuser root;\npid %[1]s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
		"client_body_temp_path %[1]s;\nproxy_temp_path %[1]s;\nfastcgi_temp_path %[1]s;\nuwsgi_temp_path %[1]s;\nscgi_temp_path %[1]s;\n%[2]s\n}\n", dir, block)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	nginx := exec.Command("nginx", "-c", file, "-p", dir)
	nginx.Stderr = os.Stderr
	if err := nginx.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		nginx.Process.Signal(os.Interrupt)
		nginx.Wait()
	}()
	ask := func(token string) (int, string) {
		t.Helper()
		var lastErr error
		for range 1000 { // until it listens
			r, _ := http.NewRequest("POST", "http://"+address+"/page", strings.NewReader("a body"))
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			for _, name := range []string{"X-User-Name", "X_User_Name", "X-User_Role", "x.user.role"} {
				r.Header.Set(name, "an invention")
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				lastErr = err
				continue
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(body)
		}
		t.Fatal(lastErr)
		return 0, ""
	}
	if status, body := ask(token); status != 200 || body != "ann is 1, member" {
		t.Errorf("with a token: %d %s", status, body)
	}
	if status, body := ask(""); status != 401 || strings.Contains(body, "invention") {
		t.Errorf("without a token: %d %s", status, body)
	}
	if status, _ := ask(token + "x"); status != 401 {
		t.Errorf("with a forged token: %d", status)
	}
	s.do(token, "POST", "/api/logout", "").want(t, 204, "")
	if status, _ := ask(token); status != 401 {
		t.Errorf("after logout: %d", status)
	}
}
