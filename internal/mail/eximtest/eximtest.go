// Package eximtest runs Debian's mail server Exim for tests, which must run as root.
package eximtest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"userd/internal/certs/certstest"
)

// A Server is an Exim with exim.conf, in a directory of its own. As with inetd, a process
// of its own serves each connection, delivers its messages and ends.
type Server struct {
	StartTLSAddr, TLSAddr string
	Certificate           certstest.Pair
	CertFile              string
	Ended                 chan error // of each process; the next connection waits until it is received

	dir string
}

//go:embed exim.conf
var config []byte

// Start starts a server that requires a login, and ends it with the test.
func Start(t *testing.T, login, password string) *Server {
	t.Helper()
	// The directories of T.TempDir are closed to Exim's user.
	dir, err := os.MkdirTemp("", "exim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{Certificate: certstest.New(certstest.Day), Ended: make(chan error), dir: dir}
	certFile, keyFile, err := s.Certificate.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.CertFile = certFile
	s.StartTLSAddr = s.listen(t)
	s.TLSAddr = s.listen(t, "-tls-on-connect")
	account, err := user.Lookup("Debian-exim")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	_, tlsPort, _ := net.SplitHostPort(s.TLSAddr)
	text := fmt.Appendf(nil, "DIR = %s\nTLS_PORT = %s\nUSER = %s\nPASS = %s\n%s", dir, tlsPort, login, password, config)
	if err := errors.Join(os.Chown(dir, uid, -1), os.Chown(certFile, uid, -1), os.Chown(keyFile, uid, -1), os.WriteFile(s.config(), text, 0o644)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) config() string { return filepath.Join(s.dir, "exim.conf") }

// listen returns an address whose connections Exim serves, with these arguments.
func (s *Server) listen(t *testing.T, args ...string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			err = s.serve(t.Context(), conn.(*net.TCPConn), args)
			select {
			case s.Ended <- err:
			case <-t.Context().Done():
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		done.Wait()
	})
	return l.Addr().String()
}

// serve returns when Exim has served the connection and delivered its messages.
func (s *Server) serve(ctx context.Context, conn *net.TCPConn, args []string) error {
	file, err := conn.File()
	conn.Close()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, "/usr/sbin/exim4", append(args, "-C", s.config(), "-bs", "-odf")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, os.Stderr
	return cmd.Run()
}

// Mails returns the files of the messages that Exim has delivered to ann@example.org.
func (s *Server) Mails() ([]string, error) {
	return filepath.Glob(filepath.Join(s.dir, "mail", "new", "*"))
}

// Log returns what Exim has logged.
func (s *Server) Log() []byte {
	log, _ := os.ReadFile(filepath.Join(s.dir, "mainlog"))
	panics, _ := os.ReadFile(filepath.Join(s.dir, "paniclog"))
	return append(log, panics...)
}
