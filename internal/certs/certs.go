// Package certs provides the certificates of a TLS server and keeps them
// current while the server runs.
//
// There are two sources. [Files] serves one certificate from a pair of PEM files
// that another program replaces. [ACME] obtains and renews one certificate per
// domain from an ACME server such as Let's Encrypt (RFC 8555).
//
// Both are used in the same way. The constructor fails if the settings are
// wrong. TLSConfig returns the configuration for an http.Server. Run keeps the
// certificates current until its context ends, and logs when each of them
// expires; call it exactly once. A handshake never waits for the disk or the
// network.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"time"
)

// warnEvery is how often the log repeats that a certificate expires soon.
const warnEvery = 24 * time.Hour

// newTLSConfig returns a configuration for HTTPS with certificates from get.
func newTLSConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: get}
}

// expiresSoon reports whether a certificate expires so soon that its renewal
// must have failed: certificates are renewed when a third of their lifetime is left.
func expiresSoon(leaf *x509.Certificate, now time.Time) bool {
	return leaf.NotAfter.Sub(now) < min(7*24*time.Hour, leaf.NotAfter.Sub(leaf.NotBefore)/6)
}

// logExpiry warns about a certificate that expires soon. Otherwise it logs when
// the certificate expires, but only if it is new.
func logExpiry(log *slog.Logger, leaf *x509.Certificate, isNew bool) {
	attrs := []any{"names", leaf.DNSNames, "expires", leaf.NotAfter}
	switch {
	case expiresSoon(leaf, time.Now()):
		log.Warn("certificate expires soon or has expired, and was not renewed", attrs...)
	case isNew:
		log.Info("loaded certificate", attrs...)
	}
}
