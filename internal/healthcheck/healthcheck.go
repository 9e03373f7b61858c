// Package healthcheck says how a program asks a server on the same machine, whose
// configuration it has, whether it is ready.
package healthcheck

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Timeout is how long a check waits for an answer: longer than a server needs to say that it is
// not ready.
const Timeout = 4 * time.Second

// A Server is the server that is asked.
type Server struct {
	Address string // HOST:PORT, on which it listens
	Path    string // of the check
	HTTPS   bool
	Name    string // with HTTPS, the name of its certificate; may be empty
}

// URL returns the URL of the check. Its host is a loopback address if the server listens on
// every address.
func (s *Server) URL() string {
	scheme := "http://"
	if s.HTTPS {
		scheme = "https://"
	}
	host, port, _ := net.SplitHostPort(s.Address)
	ip, _ := netip.ParseAddr(host)
	switch ip.Unmap() {
	case netip.IPv4Unspecified():
		host = "127.0.0.1"
	case netip.IPv6Unspecified():
		host = "::1"
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return scheme + net.JoinHostPort(host, port) + s.Path
}

// Client returns a client for the check. It uses no proxy and follows no redirect. It accepts
// any certificate: it sends no secret, and the certificate of a name is not valid for an
// address.
func (s *Server) Client() *http.Client {
	return &http.Client{
		Timeout:       Timeout,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: s.Name}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
