package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// retryEvery is how long ACME.Run waits after a failure. Let's Encrypt allows 5
// failures an hour (https://letsencrypt.org/docs/rate-limits/), and one attempt of
// autocert can count as two.
const retryEvery = 30 * time.Minute

// ACMEOptions are the settings of an ACME source.
type ACMEOptions struct {
	Domains   []string // in lower case and ASCII; no wildcards, which need the DNS
	Directory string   // the URL of the server's directory, RFC 8555 section 7.1.1
	Dir       string   // the local directory for keys and certificates, see MakeDir
	UserAgent string   // of requests to the server, RFC 8555 section 6.1
}

// ACME is a source with one certificate per domain from an ACME server. It proves
// control of a domain by TLS-ALPN-01 (RFC 8737) on the HTTPS port and by HTTP-01
// (RFC 8555 section 8.3) on port 80.
type ACME struct {
	dir     string
	manager *autocert.Manager
	ready   map[string]*atomic.Bool // by domain: Run has its certificate
	log     *slog.Logger

	retryEvery, warnEvery time.Duration // shorter in tests
}

// NewACME returns a source that sends nothing to its server until Run. Its user
// accepts the server's terms of service.
func NewACME(o ACMEOptions, log *slog.Logger) *ACME {
	a := &ACME{dir: o.Dir, ready: make(map[string]*atomic.Bool), log: log, retryEvery: retryEvery, warnEvery: warnEvery}
	for _, d := range o.Domains {
		a.ready[d] = new(atomic.Bool)
	}
	a.manager = &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      cache{autocert.DirCache(o.Dir)},
		HostPolicy: a.checkHost,
		Client:     &acme.Client{DirectoryURL: o.Directory, UserAgent: o.UserAgent},
	}
	return a
}

// MakeDir creates the directory for keys and certificates with mode 0700, if it does
// not exist. Call it before Run. The manager would create it only for its first
// certificate and would ignore a failure: each start would obtain another
// certificate, until the server refuses.
func (a *ACME) MakeDir() error {
	if err := os.Mkdir(a.dir, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// TLSConfig returns a configuration that serves the certificates and answers
// TLS-ALPN-01 challenges. Handshakes for a domain fail until Run has obtained its
// certificate.
func (a *ACME) TLSConfig() *tls.Config {
	c := a.manager.TLSConfig() // with the protocols of HTTP and of the challenge
	c.MinVersion, c.GetCertificate = tls.VersionTLS12, a.certificate
	return c
}

// certificate answers a handshake. It refuses a domain without a certificate
// immediately: otherwise strangers could use up the server's rate limits, and their
// handshakes would pile up while the manager waits for the server.
func (a *ACME) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return a.manager.GetCertificate(hello) // a challenge, RFC 8737 section 3
	}
	domain := strings.ToLower(hello.ServerName)
	if ready := a.ready[domain]; ready == nil || !ready.Load() {
		return nil, fmt.Errorf("no certificate for %q", domain)
	}
	return a.obtain(domain)
}

// obtain returns the certificate of a domain from memory or from the directory.
// Otherwise it requests one from the server, which takes up to minutes.
func (a *ACME) obtain(domain string) (*tls.Certificate, error) {
	// Every client that speaks TLS 1.2 accepts ECDSA. Without this cipher suite
	// the manager would request a second certificate, with RSA, for old clients.
	return a.manager.GetCertificate(&tls.ClientHelloInfo{
		ServerName:   domain,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
}

// Run obtains a certificate for each domain, and retries after a failure; the
// manager renews them. It returns when ctx ends. Requests that are under way then
// continue, because the manager cannot cancel them.
func (a *ACME) Run(ctx context.Context) {
	for domain := range a.ready {
		go a.keep(ctx, domain)
	}
	<-ctx.Done()
}

// keep obtains the certificate of one domain and logs when it expires.
func (a *ACME) keep(ctx context.Context, domain string) {
	var last *x509.Certificate
	for ctx.Err() == nil {
		wait := a.warnEvery
		if cert, err := a.obtain(domain); err != nil {
			wait = a.retryEvery
			a.log.Warn("could not obtain a certificate", "domain", domain, "err", err, "retry_in", wait.String())
		} else {
			a.ready[domain].Store(true)
			logExpiry(a.log, cert.Leaf, !cert.Leaf.Equal(last))
			last = cert.Leaf
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// The texts of these errors reach clients on port 80.
var (
	errOtherHost   = errors.New("this host is not served here")
	errNoChallenge = errors.New("challenge not found")
)

// A cache is the manager's directory of keys and certificates. The manager sends the
// error for a missing challenge to the client, so that error must not name a file.
type cache struct{ autocert.DirCache }

func (c cache) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := c.DirCache.Get(ctx, name)
	if err != nil && strings.HasSuffix(name, "+http-01") {
		err = errNoChallenge
	}
	return data, err
}

// checkHost is the manager's policy. Unlike its own, it accepts a port and does
// not repeat the host in the error.
func (a *ACME) checkHost(_ context.Context, host string) error {
	if a.ready[hostname(host)] == nil {
		return errOtherHost
	}
	return nil
}

// hostname returns a Host header without its port, in lower case.
func hostname(host string) string {
	return strings.ToLower((&url.URL{Host: host}).Hostname())
}

// HTTPHandler returns the handler for port 80. It answers HTTP-01 challenges and
// redirects other requests to HTTPS. Call it before Run, which otherwise does not use
// HTTP-01.
func (a *ACME) HTTPHandler() http.Handler {
	return a.manager.HTTPHandler(http.HandlerFunc(a.redirect))
}

// redirect redirects to HTTPS. The manager's own redirect would send clients to any
// host that a request names. Only GET and HEAD are redirected: a client that sends a
// password in plain text should notice.
func (a *ACME) redirect(w http.ResponseWriter, r *http.Request) {
	host := hostname(r.Host)
	switch {
	case a.ready[host] == nil:
		http.Error(w, errOtherHost.Error(), http.StatusMisdirectedRequest)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "Use HTTPS: this request was sent in plain text", http.StatusBadRequest)
	default:
		// Not from r.RequestURI, which may be "x:.evil.example".
		to := url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
		http.Redirect(w, r, to.String(), http.StatusMovedPermanently)
	}
}
