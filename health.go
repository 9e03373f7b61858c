package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A checkup is a question that costs the database something, with its answer. It
// is put at most once in so often and once at a time, however many ask.
type checkup struct {
	every    time.Duration // between two questions, by the server's clock
	patience time.Duration // how long an answer is waited for
	ask      func(context.Context) error

	mu    sync.Mutex
	asked time.Time       // when the last question was put
	late  <-chan struct{} // closed when its answer is waited for no longer
	done  chan struct{}   // closed when its answer is there
	err   error           // that answer
}

var errLate = errors.New("the database has not answered in time")

// at returns the answer that stands at now, or errLate. A question that is stuck
// in a disk or behind a lock cannot be taken back: no other is put beside it.
func (v *checkup) at(now time.Time) error {
	v.mu.Lock()
	if v.done == nil || isClosed(v.done) && (now.Sub(v.asked) >= v.every || now.Before(v.asked)) {
		ctx, cancel := context.WithTimeout(context.Background(), v.patience)
		done := make(chan struct{})
		v.asked, v.late, v.done = now, ctx.Done(), done
		go func() {
			err := v.ask(ctx)
			v.mu.Lock()
			v.err = err
			v.mu.Unlock()
			close(done)
			cancel()
		}()
	}
	late, done := v.late, v.done
	v.mu.Unlock()
	select {
	case <-done:
	case <-late:
		if !isClosed(done) { // else both are closed: it was in time
			return errLate
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A health is what is known of a server's readiness.
type health struct {
	database checkup
	failing  atomic.Bool // the database was not ready when it was last asked
	draining atomic.Bool // userd has been told to stop
}

// newHealth returns the health of a server on a database. Each question costs a
// synced write, which strangers must not be able to multiply. The wait is less
// than what a prober gives an answer.
func newHealth(st *store) *health {
	return &health{database: checkup{every: time.Second, patience: 2 * time.Second, ask: st.probe}}
}

var statusOK = []byte(`{"status":"ok"}` + "\n")

// healthz answers that the process answers.
func (s *server) healthz(x *exchange) error {
	return x.send(http.StatusOK, statusOK)
}

// readyz answers whether requests can be served: the database can be read and
// written. Why not is for the log, where it stands once.
func (s *server) readyz(x *exchange) error {
	if s.health.draining.Load() {
		return errNotReady
	}
	err := s.health.database.at(s.now())
	if s.health.failing.Swap(err != nil) != (err != nil) {
		if err != nil {
			s.log.Error("not ready", "err", err)
		} else {
			s.log.Info("ready again")
		}
	}
	if err != nil {
		return errNotReady
	}
	return x.send(http.StatusOK, statusOK)
}

// healthcheckTimeout is more than a server takes to say that it is not ready.
const healthcheckTimeout = 4 * time.Second

// healthcheck asks the server of this configuration whether it is ready, for
// containers that have no curl. It leaves the database alone.
func healthcheck(ctx context.Context, c *cli) error {
	url, client := readyURL(&c.config)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	_, err = fmt.Fprintf(c.stdout, "%s: ready\n", url)
	return err
}

// readyURL returns where the server of a configuration is asked whether it is
// ready, and what asks it: no proxy that the environment names, and no server
// that the answer does. It believes any certificate: it tells no secret, and
// that of a name is not good for an address.
func readyURL(c *config) (string, *http.Client) {
	scheme, trust := "http://", &tls.Config{InsecureSkipVerify: true}
	if c.tlsCert != "" || len(c.domains) > 0 {
		scheme = "https://"
	}
	if len(c.domains) > 0 {
		trust.ServerName = c.domains[0]
	}
	host, port, _ := net.SplitHostPort(c.addr) // which setHostPort has checked
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
	return scheme + net.JoinHostPort(host, port) + "/readyz", &http.Client{
		Timeout:       healthcheckTimeout,
		Transport:     &http.Transport{TLSClientConfig: trust},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
