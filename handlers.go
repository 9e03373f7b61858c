package main

import (
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"userd/internal/passhash"
)

// A server answers HTTP. Its parts are set once, by newServer.
type server struct {
	settings
	userService
	keys      *keyring
	refresher *refresher
	limiter   *limiter // nil: RATE_LIMIT=off
	feed      *feed
	log       *slog.Logger
	mono      func() time.Duration // time since some start, on the monotonic clock: for limits
	mux       *http.ServeMux
	stats     *stats
	health    *health
	large     chan struct{} // bodies over smallBody that are being read
}

func newServer(c settings, st *store, h *passhash.Hasher, keys *keyring, r *refresher, log *slog.Logger, now func() time.Time, mono func() time.Duration) *server {
	s := &server{
		settings:    c,
		userService: userService{st, h, now},
		keys:        keys,
		refresher:   r,
		feed:        newFeed(),
		log:         log,
		mux:         http.NewServeMux(),
		mono:        mono,
		stats:       newStats(st, now),
		health:      newHealth(st, now),
		large:       make(chan struct{}, maxLargeBodies),
	}
	if c.rateLimit == rateLimitOn {
		s.limiter = newLimiter()
	}
	for _, rt := range s.routes() {
		s.handle(rt)
	}
	return s
}

// A route is one row of the table below. One that does not say who may call it
// admits nobody.
type route struct {
	pattern string
	access  access
	handle  func(*exchange) error
}

// routes is every path that the server answers.
func (s *server) routes() []route {
	return []route{
		{"GET /healthz", anyone, s.healthz},
		{"GET /readyz", anyone, s.readyz},
		{"GET /metrics", adminOnly, s.metrics}, // anyone, on METRICS_ADDR

		{"GET /api/test", anyone, s.test},
		{"POST /api/register", anyone, s.register},
		{"POST /api/login", anyone, s.login},
		{"POST /api/refresh", anyone, s.refresh}, // the holder of a refresh token
		{"POST /api/logout", signedIn, s.logout},
		{"GET /api/verify", signedIn, s.verify},
		{"GET /api/users", signedIn, s.listUsers},
		{"POST /api/users", adminOnly, s.createUser},
		{"GET /api/users/{id}", byDirectory, s.getUser},
		{"PUT /api/users/{id}", selfOrAdmin, s.updateUser},
		{"PATCH /api/users/{id}", selfOrAdmin, s.updateUser},
		{"DELETE /api/users/{id}", selfOrAdmin, s.deleteUser},
		{"GET /api/users/{id}/sessions", selfOrAdmin, s.listSessions},
		{"DELETE /api/users/{id}/sessions", selfOrAdmin, s.endSessions},
		{"DELETE /api/users/{id}/sessions/{sid}", selfOrAdmin, s.endSession},
		{"GET /api/events", adminOnly, s.listEvents},
		{"GET /openapi.json", anyone, s.openAPI},
	}
}

// handle makes the mux answer a route: the guard first, then its handler.
func (s *server) handle(rt route) {
	stats := s.stats.route(rt.pattern)
	s.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
		x := w.(*exchange)
		x.r = r // with the path's values
		x.routed = true
		x.stats = stats
		err := s.admit(x, rt.access)
		if err == nil {
			err = rt.handle(x)
		}
		if err != nil {
			x.fail(err)
		}
	})
}

func (s *server) test(x *exchange) error {
	return x.send(http.StatusOK, []byte(`{"message":"Welcome to the User Management Microservice!"}`+"\n"))
}

// A checkup caches the result of an expensive check. However many callers there
// are, the check runs at most once per interval and never concurrently. A check
// that hangs, in a disk or behind a lock, cannot be stopped: until it returns, no
// other one starts, and each caller waits for the timeout only.
type checkup struct {
	interval time.Duration // from the start of a check to the start of the next
	timeout  time.Duration
	check    func(context.Context) error // its context ends after the timeout
	now      func() time.Time

	slot    chan struct{} // holds a value while a check runs or a caller uses the fields below
	started time.Time     // the latest check
	err     error         // its result
}

func newCheckup(interval, timeout time.Duration, now func() time.Time, check func(context.Context) error) *checkup {
	return &checkup{interval: interval, timeout: timeout, check: check, now: now, slot: make(chan struct{}, 1)}
}

var errCheckTimeout = errors.New("the database did not answer in time")

// result returns the result of the latest check. It runs the check first if that
// was an interval ago or the clock was set back since. It returns errCheckTimeout
// if the check does not end within the timeout.
func (c *checkup) result() error {
	timeout := time.After(c.timeout)
	select {
	case c.slot <- struct{}{}:
	case <-timeout:
		return errCheckTimeout
	}
	now := c.now() // read in the slot: a caller that waited for a check must not run another
	if age := now.Sub(c.started); 0 <= age && age < c.interval {
		defer func() { <-c.slot }()
		return c.err
	}
	c.started = now
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
		defer cancel()
		err := c.check(ctx)
		c.err = err
		<-c.slot
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-timeout:
		return errCheckTimeout
	}
}

// A health is the readiness of a server.
type health struct {
	database *checkup
	failing  atomic.Bool // the last answer of readyz was that the database is not ready
	draining atomic.Bool // userd was told to stop
}

// newHealth returns the health of a server with a database. Each check costs a
// synced write, so strangers must not be able to multiply it. The timeout is
// shorter than the usual timeouts of probes.
func newHealth(st *store, now func() time.Time) *health {
	return &health{database: newCheckup(time.Second, 2*time.Second, now, st.probe)}
}

var statusOK = []byte(`{"status":"ok"}` + "\n")

// healthz answers 200 as long as the process can answer.
func (s *server) healthz(x *exchange) error {
	return x.send(http.StatusOK, statusOK)
}

// readyz answers 200 if the database can be read and written, otherwise 503. The
// reason is logged once and never sent to the client.
func (s *server) readyz(x *exchange) error {
	if s.health.draining.Load() {
		return errNotReady
	}
	err := s.health.database.result()
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

// openAPI is the OpenAPI document of the routes. It is written by hand: a
// document generated from the code could not be checked against the code.
//
//go:embed assets/openapi.json
var openAPI []byte

func (s *server) openAPI(x *exchange) error {
	return x.send(http.StatusOK, openAPI)
}
