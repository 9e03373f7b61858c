package healthcheck

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAServerOnEveryAddressIsAskedOnLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"127.0.0.1:5000":         "http://127.0.0.1:5000/readyz",
		"192.0.2.7:80":           "http://192.0.2.7:80/readyz",
		"userd.example.com:5000": "http://userd.example.com:5000/readyz",
		"[2001:db8::1]:5000":     "http://[2001:db8::1]:5000/readyz",
		":5000":                  "http://127.0.0.1:5000/readyz",
		"0.0.0.0:5000":           "http://127.0.0.1:5000/readyz",
		"[::ffff:0.0.0.0]:5000":  "http://127.0.0.1:5000/readyz",
		"[::]:5000":              "http://[::1]:5000/readyz",
	} {
		s := Server{Address: addr, Path: "/readyz"}
		if got := s.URL(); got != want {
			t.Errorf("%s is asked at %s, want %s", addr, got, want)
		}
	}
	s := Server{Address: ":443", Path: "/readyz", HTTPS: true}
	if got := s.URL(); got != "https://127.0.0.1:443/readyz" {
		t.Errorf("with HTTPS it is asked at %s", got)
	}
}

func TestTheClientAsksTheServerItself(t *testing.T) {
	t.Parallel()
	name := ""
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name = r.TLS.ServerName
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	}))
	web.StartTLS() // with a certificate that is not valid for the name
	defer web.Close()
	s := Server{Address: web.Listener.Addr().String(), Path: "/readyz", HTTPS: true, Name: "userd.example"}
	client := s.Client()
	resp, err := client.Get(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusFound || name != "userd.example" {
		t.Errorf("it got %s as %q", resp.Status, name)
	}
	if client.Transport.(*http.Transport).Proxy != nil {
		t.Error("it uses a proxy that the environment names")
	}
	if !strings.HasPrefix(s.URL(), "https://") || client.Timeout != Timeout {
		t.Errorf("%s is asked within %s", s.URL(), client.Timeout)
	}
}
