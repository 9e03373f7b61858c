package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	reloadEvery   = 3 * time.Second  // how often the files of a certificate are looked at
	certWarnEvery = 24 * time.Hour   // how often the log warns of a certificate that ends soon
	acmeRetry     = 30 * time.Minute // Let's Encrypt lets 5 attempts an hour fail, and one of ours can be two
	maxPlain      = 256              // connections to port 80; they are answered at once and closed
)

// An https is how userd speaks HTTPS by itself; nil: it does not.
type https struct {
	config *tls.Config
	pair   *keyPair     // of TLS_CERT; else nil
	acme   *acmeCerts   // of HTTPS_DOMAIN; else nil
	plain  net.Listener // port 80, for acme
}

// newHTTPS returns nil where neither HTTPS_DOMAIN nor TLS_CERT is set. A
// hangup means that the files of TLS_CERT are to be read again.
func newHTTPS(c *config, hangup <-chan os.Signal, log *slog.Logger) (*https, error) {
	h := &https{config: &tls.Config{MinVersion: tls.VersionTLS12}}
	switch {
	case c.tlsCert != "":
		h.pair = &keyPair{certFile: c.tlsCert, keyFile: c.tlsKey, hangup: hangup, log: log}
		if _, err := h.pair.load(); err != nil {
			return nil, usagef("%v", err)
		}
		h.config.GetCertificate = h.pair.certificate
	case len(c.domains) > 0:
		h.acme = newACMECerts(c, log)
		h.config.GetCertificate = h.acme.certificate
		h.config.NextProtos = []string{"h2", "http/1.1", acme.ALPNProto}
	default:
		return nil, nil
	}
	return h, nil
}

func (h *https) scheme() string {
	if h == nil {
		return "http"
	}
	return "https"
}

// listen opens port 80 on the host of addr, for HTTPS_DOMAIN, and makes the
// directory where certificates are kept. The manager would make it too, but
// with a certificate that it cannot keep it would ask for another at each
// start, until it gets no more.
func (h *https) listen(addr string) error {
	if h == nil || h.acme == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if h.plain, err = net.Listen("tcp", net.JoinHostPort(host, "80")); err != nil {
		return err
	}
	if err := os.Mkdir(h.acme.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (h *https) close() {
	if h != nil && h.plain != nil {
		h.plain.Close()
	}
}

// serve is s.Serve, by TLS where h is not nil.
func (h *https) serve(s *http.Server, l net.Listener) error {
	if h == nil {
		return s.Serve(l)
	}
	s.TLSConfig = h.config
	return s.ServeTLS(l, "", "")
}

// run keeps the certificates new, and answers on port 80, until ctx ends.
func (h *https) run(ctx context.Context) error {
	switch {
	case h == nil:
		return nil
	case h.pair != nil:
		h.pair.keep(ctx)
		return nil
	}
	plain := &http.Server{
		Handler:        h.acme.plainHandler(),
		ReadTimeout:    headerTimeout,
		WriteTimeout:   headerTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // strangers' broken connections
	}
	plain.SetKeepAlivesEnabled(false)
	h.acme.keep(ctx)
	defer context.AfterFunc(ctx, func() { plain.Close() })()
	err := plain.Serve(limitConnections(h.plain, maxPlain))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// endsSoon reports whether a certificate ends so soon that its renewal must have
// been missed: they are renewed when a third of their time is left.
func endsSoon(leaf *x509.Certificate, now time.Time) bool {
	return leaf.NotAfter.Sub(now) < min(7*24*time.Hour, leaf.NotAfter.Sub(leaf.NotBefore)/6)
}

// logCertificate says once until when a new certificate is good, and each time
// that it ends soon.
func logCertificate(log *slog.Logger, leaf *x509.Certificate, isNew bool) {
	attrs := []any{"names", leaf.DNSNames, "expires", leaf.NotAfter}
	switch {
	case endsSoon(leaf, time.Now()):
		log.Warn("the certificate expires soon, or has expired, and was not renewed", attrs...)
	case isNew:
		log.Info("certificate", attrs...)
	}
}

// A keyPair is the certificate of TLS_CERT and its key of TLS_KEY.
type keyPair struct {
	certFile, keyFile string
	hangup            <-chan os.Signal
	log               *slog.Logger
	seen              string // what the files held when they were last read, or why they could not be
	loaded            atomic.Pointer[tls.Certificate]
}

func (p *keyPair) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return p.loaded.Load(), nil
}

// load reads the files and reports whether they are a new certificate and its
// key. The pair before stays where they are not one, or cannot be read: files
// are replaced one after the other, and some not at once. That is an error
// the first time that it is seen.
func (p *keyPair) load() (isNew bool, err error) {
	cert, err := os.ReadFile(p.certFile)
	key, keyErr := os.ReadFile(p.keyFile)
	err = cmp.Or(err, keyErr)
	seen := fmt.Sprintf("%s\n%s\n%v", cert, key, err)
	if seen == p.seen {
		return false, nil
	}
	p.seen = seen
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(cert, key)
	}
	if err != nil {
		return false, fmt.Errorf("TLS_CERT and TLS_KEY: %w", err)
	}
	p.loaded.Store(&pair)
	return true, nil
}

// keep loads the files when they change, and says so at each hangup, until ctx ends.
func (p *keyPair) keep(ctx context.Context) {
	logCertificate(p.log, p.loaded.Load().Leaf, true)
	look, warn := time.NewTicker(reloadEvery), time.NewTicker(certWarnEvery)
	defer look.Stop()
	defer warn.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-warn.C:
			logCertificate(p.log, p.loaded.Load().Leaf, false)
		case <-p.hangup:
			p.seen = ""
			p.reload()
		case <-look.C:
			p.reload()
		}
	}
}

func (p *keyPair) reload() {
	if isNew, err := p.load(); err != nil {
		p.log.Warn("the new certificate is not used: the one before stays", "err", err)
	} else if isNew {
		logCertificate(p.log, p.loaded.Load().Leaf, true)
	}
}

// acmeCerts are the certificates of HTTPS_DOMAIN, from an ACME server (RFC 8555).
type acmeCerts struct {
	dir     string // where they are kept
	manager *autocert.Manager
	domains map[string]*atomic.Bool // whether there is a certificate
	log     *slog.Logger
}

func newACMECerts(c *config, log *slog.Logger) *acmeCerts {
	a := &acmeCerts{
		dir:     filepath.Join(filepath.Dir(c.database), "certs"),
		domains: make(map[string]*atomic.Bool),
		log:     log,
	}
	for _, d := range c.domains {
		a.domains[d] = new(atomic.Bool)
	}
	a.manager = &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(a.dir),
		HostPolicy: autocert.HostWhitelist(c.domains...),
		Client:     &acme.Client{DirectoryURL: c.acmeDirectory, UserAgent: "userd"},
	}
	return a
}

// ask returns the manager's certificate of a domain, which the manager gets
// first, for minutes, where it has none.
func (a *acmeCerts) ask(domain string) (*tls.Certificate, error) {
	// Always one of elliptic curves, which whoever speaks TLS 1.2 knows: for an
	// old client's sake the manager would get another of RSA.
	return a.manager.GetCertificate(&tls.ClientHelloInfo{
		ServerName:   domain,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
}

// certificate answers a handshake. Where there is no certificate yet it is
// refused at once: strangers neither make us ask the CA, which gives only so
// many, nor pile up while we do.
func (a *acmeCerts) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return a.manager.GetCertificate(hello) // the CA looks for its challenge, RFC 8737
	}
	name := strings.ToLower(hello.ServerName)
	if there := a.domains[name]; there == nil || !there.Load() {
		return nil, fmt.Errorf("no certificate for %q", name)
	}
	return a.ask(name)
}

// keep begins to see to it that there is a certificate for each domain, until
// ctx ends; the manager renews it. Nothing waits for the end of that: the
// manager cannot be stopped, and asks for minutes.
func (a *acmeCerts) keep(ctx context.Context) {
	for domain, there := range a.domains {
		go func() {
			var last *x509.Certificate
			for ctx.Err() == nil {
				wait := certWarnEvery
				if cert, err := a.ask(domain); err != nil {
					wait = acmeRetry
					a.log.Warn("there is no certificate", "domain", domain, "err", err, "tries_again_in", wait.String())
				} else {
					there.Store(true)
					logCertificate(a.log, cert.Leaf, !cert.Leaf.Equal(last))
					last = cert.Leaf
				}
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		}()
	}
}

// plainHandler answers on port 80: the CA's challenges, and all else with the
// way to HTTPS. It names only hosts that we are, and only for what carries no
// secret in its body: who sends a password in plain text should notice.
func (a *acmeCerts) plainHandler() http.Handler {
	challenges := a.manager.HTTPHandler(http.NotFoundHandler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := strings.ToLower((&url.URL{Host: r.Host}).Hostname())
		switch {
		case a.domains[host] == nil:
			http.Error(w, "This host is not served here", http.StatusMisdirectedRequest)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			http.Error(w, "Use HTTPS; what was sent could be read on the way", http.StatusBadRequest)
		case strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/"):
			r.Host = host
			challenges.ServeHTTP(&ownWords{ResponseWriter: w}, r)
		default:
			to := url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
			http.Redirect(w, r, to.String(), http.StatusMovedPermanently)
		}
	})
}

// ownWords keeps the text of an error from the client: the manager's can hold
// the path of a file.
type ownWords struct {
	http.ResponseWriter
	failed bool
}

func (w *ownWords) WriteHeader(status int) {
	w.failed = status >= 400
	w.ResponseWriter.WriteHeader(status)
	if w.failed {
		fmt.Fprintln(w.ResponseWriter, http.StatusText(status))
	}
}

func (w *ownWords) Write(p []byte) (int, error) {
	if w.failed {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}
