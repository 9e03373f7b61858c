package main

import (
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
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
	mux       *http.ServeMux
	stats     *stats
	health    *health
	large     chan struct{} // bodies over smallBody that are being read
}

func newServer(c settings, st *store, h *hasher, keys *keyring, r *refresher, log *slog.Logger, now func() time.Time) *server {
	s := &server{
		settings:    c,
		userService: userService{st, h, now},
		keys:        keys,
		refresher:   r,
		feed:        newFeed(),
		log:         log,
		mux:         http.NewServeMux(),
		stats:       newStats(st),
		health:      newHealth(st),
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

		{"GET /api/test", anyone, s.welcome},
		{"POST /api/register", anyone, s.register},
		{"POST /api/login", anyone, s.countedLogin},
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
		{"GET /openapi.json", anyone, s.describe},
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

func (s *server) welcome(x *exchange) error {
	return x.send(http.StatusOK, []byte(`{"message":"Welcome to the User Management Microservice!"}`+"\n"))
}

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

// openAPI is the OpenAPI document of the routes. It is written by hand: what is
// made from code says what the code does, and so cannot be held against it.
//
//go:embed openapi.json
var openAPI []byte

func (s *server) describe(x *exchange) error {
	return x.send(http.StatusOK, openAPI)
}
