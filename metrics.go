package main

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"userd/internal/prom"
)

// durationBounds are in nanoseconds, from less than a read takes to the longest
// that a request may. Two in each power of ten: each costs a line in every series.
var durationBounds = []int64{1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10}

// groupBounds are in writes; the last is maxGroup.
var groupBounds = []int64{1, 2, 4, 8, 16, 32, 64, 128, maxGroup}

// A routeStats counts the requests of one row of the route table, or of none.
type routeStats struct {
	pattern string // empty: of none
	mu      sync.Mutex
	series  atomic.Pointer[[]*requestSeries] // few; it only grows, under mu
}

// A requestSeries is the requests of a route with one method and status.
type requestSeries struct {
	method string
	status int
	took   *prom.Histogram
}

// observe counts a request. It is on the way of each, so it takes no lock and
// allocates nothing but a new series.
func (r *routeStats) observe(method string, status int, took time.Duration) {
	method = knownMethod(method)
	x := r.find(method, status)
	if x == nil {
		x = r.add(method, status)
	}
	x.took.Observe(int64(took))
}

func (r *routeStats) find(method string, status int) *requestSeries {
	for _, x := range r.all() {
		if x.status == status && x.method == method {
			return x
		}
	}
	return nil
}

func (r *routeStats) all() []*requestSeries {
	if list := r.series.Load(); list != nil {
		return *list
	}
	return nil
}

func (r *routeStats) add(method string, status int) *requestSeries {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.find(method, status)
	if x == nil {
		x = &requestSeries{method, status, prom.NewHistogram(durationBounds)}
		list := append(slices.Clone(r.all()), x)
		r.series.Store(&list)
	}
	return x
}

// knownMethod returns the method, or "other": a client can send any word.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

// Stats are what a server counts of its own work, beside what its store and its
// hasher count.
type stats struct {
	mu          sync.Mutex
	routes      []*routeStats
	unrouted    *routeStats // the first of them: of requests that no route took
	limited     prom.Counters
	connections atomic.Int64
	damaged     atomic.Bool // the check of the database has found damage

	rows                    checkup // how many there are of these:
	users, sessions, events atomic.Int64
}

func newStats(st *store) *stats {
	t := &stats{
		limited: prom.NewCounters("user and network", "user", "network", "registration", "refresh", "password"),
	}
	t.unrouted = t.route("")
	// It reads two indexes from end to end, so not for each that asks. Prometheus
	// waits 10 seconds.
	t.rows = checkup{every: time.Minute, patience: 5 * time.Second, ask: func(ctx context.Context) error {
		users, sessions, err := st.count(ctx)
		if err != nil {
			return err
		}
		events, err := st.lastEvent()
		t.users.Store(users)
		t.sessions.Store(sessions)
		t.events.Store(events)
		return err
	}}
	return t
}

// route returns what counts the requests of a pattern.
func (t *stats) route(pattern string) *routeStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.routes {
		if r.pattern == pattern {
			return r
		}
	}
	r := &routeStats{pattern: pattern}
	t.routes = append(t.routes, r)
	return r
}

// maxMonitors is how many connections the address of the metrics has.
const maxMonitors = 64

// monitor returns a server for METRICS_ADDR, which those who watch alone can
// reach: it answers these three to anyone, and counts with s.
func (s *server) monitor() *server {
	m := *s
	m.mux, m.corsOrigins = http.NewServeMux(), nil
	for _, rt := range m.routes() {
		if slices.Contains([]string{"GET /healthz", "GET /readyz", "GET /metrics"}, rt.pattern) {
			rt.access = anyone
			m.handle(rt)
		}
	}
	return &m
}

// metrics answers with what is counted. It stops nobody: the counters are read
// as they are, one after the other.
func (s *server) metrics(x *exchange) error {
	var p prom.Page
	s.requestFamilies(&p)
	s.databaseFamilies(&p)
	p.GoFamilies()
	p.ProcessFamilies()
	v := version()
	p.Family("userd_build_info", "gauge", "The program that runs; always 1.")
	p.Sample("userd_build_info", "version="+strconv.Quote(strings.TrimSuffix(v, " "+runtime.Version()))+",go="+strconv.Quote(runtime.Version()), 1)
	x.Header()["Content-Type"] = []string{"text/plain; version=0.0.4; charset=utf-8"}
	return x.send(http.StatusOK, p.Bytes())
}

func (s *server) requestFamilies(p *prom.Page) {
	const requests = "http_request_duration_seconds"
	p.Family(requests, "histogram", "Requests by route, method and status, from the end of their header to the end of their answer.")
	s.stats.mu.Lock()
	routes := slices.Clone(s.stats.routes)
	s.stats.mu.Unlock()
	for _, r := range routes {
		path := "none"
		if r.pattern != "" {
			_, path, _ = strings.Cut(r.pattern, " ")
		}
		for _, q := range r.all() {
			labels := "route=" + strconv.Quote(path) + `,method="` + q.method + `",status="` + strconv.Itoa(q.status) + `"`
			p.Histogram(requests, labels, q.took, float64(time.Second))
		}
	}
	p.Gauge("userd_connections", "Open connections, idle ones too.", float64(s.stats.connections.Load()))
	p.Counters("userd_limited_total", "Requests refused by a limit, which answers 429.", "limit", &s.stats.limited)
	inside, waiting := s.hasher.gate.count()
	p.Gauge("userd_password_hashes_running", "Passwords that are being hashed.", float64(inside))
	p.Gauge("userd_password_hashes_waiting", "Passwords that wait to be hashed.", float64(waiting))
	p.Counter("userd_password_hashes_total", "Passwords that were hashed, to be checked or to be kept.", float64(s.hasher.hashed.Load()))
	p.Counter("userd_password_hashes_refused_total", "Passwords that were not hashed because too many waited, or one too long.", float64(s.hasher.refused.Load()))
}

func (s *server) databaseFamilies(p *prom.Page) {
	if s.stats.rows.at(s.now()) == nil { // else how many there are is not known
		p.Gauge("userd_users", "Users, counted at most once a minute.", float64(s.stats.users.Load()))
		p.Gauge("userd_sessions", "Sessions, counted at most once a minute.", float64(s.stats.sessions.Load()))
		p.Counter("userd_events_total", "Events that were ever recorded, looked up at most once a minute.", float64(s.stats.events.Load()))
	}
	if file, log, err := s.store.size(); err == nil {
		p.Gauge("userd_database_size_bytes", "Size of the database file.", float64(file))
		p.Gauge("userd_database_wal_size_bytes", "Size of the write-ahead log beside it.", float64(log))
	}
	damaged := 0.0
	if s.stats.damaged.Load() {
		damaged = 1
	}
	p.Gauge("userd_database_damaged", "Whether the check at the start has found damage.", damaged)

	w := s.store.writer
	const commits, writes = "userd_commit_duration_seconds", "userd_commit_writes"
	p.Family(commits, "histogram", "How long transactions took, their commit and its sync included.")
	p.Histogram(commits, "", w.took, float64(time.Second))
	p.Family(writes, "histogram", "Writes that took effect, by commit.")
	p.Histogram(writes, "", w.landed, 1)
	p.Counter("userd_writes_refused_total", "Writes that the database could not do, or not in time.", float64(w.refused.Load()))
}
