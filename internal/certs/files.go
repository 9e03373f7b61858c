package certs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"userd/internal/setting"
)

// reloadEvery is how often Files.Run reads the files.
const reloadEvery = 3 * time.Second

// Files is a source with one certificate, read from a pair of PEM files.
type Files struct {
	certFile, keyFile string
	reread            <-chan os.Signal
	log               *slog.Logger
	lastRead          string // the contents that load read last, or its error
	loaded            atomic.Pointer[tls.Certificate]

	warnEvery time.Duration // shorter in tests
}

// OpenFiles reads a certificate, followed by its chain, and its key. It fails if
// the files cannot be read or do not belong together. At each signal from reread,
// which may be nil, Run reads the files again and logs the result.
func OpenFiles(certFile, keyFile string, reread <-chan os.Signal, log *slog.Logger) (*Files, error) {
	f := &Files{certFile: certFile, keyFile: keyFile, reread: reread, log: log, warnEvery: warnEvery}
	if _, err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// TLSConfig returns a configuration that serves the certificate that was loaded last.
func (f *Files) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.loaded.Load(), nil },
	}
}

// load reads the files and reports whether they contain a new certificate. On an
// error the previous certificate stays: files are replaced one after the other, and
// not always atomically. The same contents, or the same failure, as at the last call
// are neither new nor an error.
func (f *Files) load() (isNew bool, err error) {
	cert, err := os.ReadFile(f.certFile)
	key, keyErr := os.ReadFile(f.keyFile)
	err = cmp.Or(err, keyErr)
	read := fmt.Sprintf("%s\n%s\n%v", cert, key, err)
	if read == f.lastRead {
		return false, nil
	}
	f.lastRead = read
	if err != nil {
		return false, err // it names the file
	}
	mark := []byte(setting.ByteOrderMark)
	pair, err := tls.X509KeyPair(bytes.TrimPrefix(cert, mark), bytes.TrimPrefix(key, mark))
	if err != nil {
		return false, fmt.Errorf("certificate %s with key %s: %w", f.certFile, f.keyFile, err)
	}
	f.loaded.Store(&pair)
	return true, nil
}

// Run loads the files whenever they change, and warns daily about a certificate
// that expires soon. It returns when ctx ends.
func (f *Files) Run(ctx context.Context) {
	logExpiry(f.log, f.loaded.Load().Leaf, true)
	reload, warn := time.Tick(reloadEvery), time.Tick(f.warnEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-warn:
			logExpiry(f.log, f.loaded.Load().Leaf, false)
		case <-f.reread:
			f.lastRead = ""
			f.reload()
		case <-reload:
			f.reload()
		}
	}
}

func (f *Files) reload() {
	if isNew, err := f.load(); err != nil {
		f.log.Warn("could not load the new certificate; keeping the previous one", "err", err)
	} else if isNew {
		logExpiry(f.log, f.loaded.Load().Leaf, true)
	}
}
