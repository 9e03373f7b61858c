// Package certstest makes self-signed certificates for tests.
package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Day is 24 hours.
const Day = 24 * time.Hour

// A Pair is a self-signed certificate and its key, in PEM.
type Pair struct {
	Cert, Key []byte
	Leaf      *x509.Certificate
}

// New makes a certificate for 127.0.0.1 and the names. It is valid from an hour
// ago, for the lifetime. New panics if it fails, which only a bug can cause.
func New(lifetime time.Duration, names ...string) Pair {
	begin := time.Now().Add(-time.Hour)
	template := &x509.Certificate{
		DNSNames:    names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   begin,
		NotAfter:    begin.Add(lifetime),
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))}),
		Leaf: must(x509.ParseCertificate(der)),
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Write writes the pair to cert.pem and key.pem in dir, and returns their paths.
func (p Pair) Write(dir string) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	err = errors.Join(os.WriteFile(certFile, p.Cert, 0o600), os.WriteFile(keyFile, p.Key, 0o600))
	return certFile, keyFile, err
}
