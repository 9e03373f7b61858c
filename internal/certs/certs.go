// Package certs provides the certificates of a TLS server and keeps them
// current while the server runs.
//
// There are two sources. [Files] serves one certificate from a pair of PEM files
// that another program replaces. [ACME] obtains and renews one certificate per
// domain from an ACME server such as Let's Encrypt (RFC 8555).
//
// Both have TLSConfig, which returns the configuration for an http.Server, and
// Run, which keeps the certificates current until its context ends, and logs when
// each of them expires. Call Run exactly once. A handshake never waits for the disk
// or the network.
package certs

import (
	"crypto/x509"
	"log/slog"
	"time"
)

// warnEvery is how often the log repeats that a certificate expires soon.
const warnEvery = 24 * time.Hour

// logExpiry warns about a certificate that expires so soon that its renewal must have
// failed: certificates are renewed when a third of their lifetime is left. Otherwise
// it logs when the certificate expires, but only if it is new.
func logExpiry(log *slog.Logger, leaf *x509.Certificate, isNew bool) {
	soon := min(7*24*time.Hour, leaf.NotAfter.Sub(leaf.NotBefore)/6)
	attrs := []any{"names", leaf.DNSNames, "expires", leaf.NotAfter}
	switch {
	case time.Until(leaf.NotAfter) < soon:
		log.Warn("certificate expires soon or has expired, and was not renewed", attrs...)
	case isNew:
		log.Info("loaded certificate", attrs...)
	}
}
