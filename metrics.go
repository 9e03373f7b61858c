package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"userd/internal/prom"
)

// A checkup caches the result of an expensive check. However many callers there
// are, the check runs at most once per interval and never concurrently. A check
// that hangs, in a disk or behind a lock, cannot be stopped: until it returns, no
// other one starts, and each caller waits only for the timeout.
type checkup struct {
	interval time.Duration // from the start of a check to the start of the next
	timeout  time.Duration
	check    func(context.Context) error // its context ends after the timeout
	mono     func() time.Duration

	slot    chan struct{} // holds a value while a check runs or a caller uses the fields below
	started time.Duration // the start of the latest check
	err     error         // its result
}

func newCheckup(interval, timeout time.Duration, mono func() time.Duration, check func(context.Context) error) *checkup {
	return &checkup{interval: interval, timeout: timeout, check: check, mono: mono, slot: make(chan struct{}, 1), started: -interval}
}

var errCheckTimeout = errors.New("the database did not answer in time")

// result returns the result of the latest check, and runs the check first if the
// latest one started an interval ago or earlier. It returns errCheckTimeout if the
// check does not end within the timeout.
func (c *checkup) result() error {
	timeout := time.After(c.timeout)
	select {
	case c.slot <- struct{}{}:
	case <-timeout:
		return errCheckTimeout
	}
	now := c.mono() // read in the slot: a caller that waited for a check must not run another
	if now-c.started < c.interval {
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

// A routeStats counts the requests of one row of the route table, or those that
// matched no row.
type routeStats struct {
	pattern string // empty: the requests matched no row
	mu      sync.RWMutex
	series  []*requestSeries // few
}

// A requestSeries counts the requests of a route with one method and one status.
type requestSeries struct {
	method    string
	status    int
	durations *prom.Histogram
}

// observe counts a request. Every request runs it, so it allocates only if it adds
// a series.
func (r *routeStats) observe(method string, status int, duration time.Duration) {
	method = knownMethod(method)
	r.mu.RLock()
	x := r.find(method, status)
	r.mu.RUnlock()
	if x == nil {
		r.mu.Lock()
		if x = r.find(method, status); x == nil {
			x = &requestSeries{method, status, prom.NewDurationHistogram()}
			r.series = append(r.series, x)
		}
		r.mu.Unlock()
	}
	x.durations.Observe(int64(duration))
}

// find returns a series, or nil. The caller holds the lock.
func (r *routeStats) find(method string, status int) *requestSeries {
	for _, x := range r.series {
		if x.status == status && x.method == method {
			return x
		}
	}
	return nil
}

// knownMethod returns the method, or "other" if userd does not know it: a client
// can send any word, and each word would be a series.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

// stats are the counters of a server. Its store and its hasher have their own.
type stats struct {
	mu           sync.Mutex
	routes       []*routeStats
	unrouted     *routeStats // the first of routes: requests that matched no row
	limited      *prom.Counters
	mails        *prom.Counters
	graceAnswers atomic.Uint64 // to refresh tokens that were used twice
	connections  atomic.Int64
	damaged      atomic.Bool // the check of the database found damage

	rowCount                *checkup // sets these:
	users, sessions, events atomic.Int64
}

func newStats(st *store, mono func() time.Duration) *stats {
	t := &stats{
		limited: prom.NewCounters("limit", "user and network", "user", "network", "registration", "refresh", "password", "lookup", "change", "user change", "malformed", "session refresh", "code"),
		mails:   prom.NewCounters("outcome", "sent", "failed", "abandoned", "limited"),
	}
	t.unrouted = t.route("")
	// A count reads two entire indexes, which is too expensive for each scrape.
	// Prometheus waits 10 seconds for a page.
	t.rowCount = newCheckup(time.Minute, 5*time.Second, mono, func(ctx context.Context) error {
		users, sessions, err := st.count(ctx)
		if err != nil {
			return err
		}
		events, err := st.lastEvent()
		t.users.Store(users)
		t.sessions.Store(sessions)
		t.events.Store(events)
		return err
	})
	return t
}

// route returns the counters of a pattern's requests. METRICS_ADDR has patterns
// of the other address, and shares their counters.
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

// noteState counts the open connections, as http.Server.ConnState.
func (t *stats) noteState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		t.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		t.connections.Add(-1)
	}
}

func (s *server) requestFamilies(p *prom.Page) {
	const requests = "http_request_duration_seconds"
	p.Family(requests, "histogram", "Requests by route, method and status, from the end of the header to the end of the answer.")
	s.stats.mu.Lock()
	routes := slices.Clone(s.stats.routes)
	s.stats.mu.Unlock()
	for _, r := range routes {
		path := "none"
		if r.pattern != "" {
			_, path, _ = strings.Cut(r.pattern, " ")
		}
		r.mu.RLock()
		list := slices.Clone(r.series) // requests must not wait for the page
		r.mu.RUnlock()
		for _, q := range list {
			p.Histogram(requests, prom.Labels("route", path, "method", q.method, "status", strconv.Itoa(q.status)), q.durations)
		}
	}
	p.Gauge("userd_connections", "Open connections, idle ones too.", float64(s.stats.connections.Load()))
	p.Counters("userd_limited_total", "Requests refused by a limit, which answers 429.", s.stats.limited)
	p.Counter("userd_refresh_grace_total", "Refresh tokens that were used again within the grace, and got the same answer.", float64(s.stats.graceAnswers.Load()))
	p.Counters("userd_mails_total", "Mails by outcome: sent, failed for good, abandoned because they had lost their purpose, or limited.", s.stats.mails)
	hashes := s.hasher.Stats()
	p.Gauge("userd_password_hashes_running", "Passwords that are being hashed.", float64(hashes.Running))
	p.Gauge("userd_password_hashes_waiting", "Passwords that wait to be hashed.", float64(hashes.Waiting))
	p.Counter("userd_password_hashes_total", "Passwords that were hashed, to check or to store them.", float64(hashes.Hashed))
	p.Counter("userd_password_hashes_refused_total", "Passwords that were not hashed, because too many waited or the wait was too long.", float64(hashes.Refused))
}

func (s *server) databaseFamilies(p *prom.Page) {
	if s.stats.rowCount.result() == nil { // otherwise the numbers are unknown
		p.Gauge("userd_users", "Users, counted at most once a minute.", float64(s.stats.users.Load()))
		p.Gauge("userd_sessions", "Sessions, counted at most once a minute.", float64(s.stats.sessions.Load()))
		p.Counter("userd_events_total", "Events that were ever recorded, looked up at most once a minute.", float64(s.stats.events.Load()))
	}
	if n, oldest, err := s.store.mailQueue(); err == nil {
		p.Gauge("userd_mails_queued", "Mails that wait to be sent.", float64(n))
		age := 0.0
		if oldest > 0 {
			age = float64(max(s.wall().Unix()-oldest, 0))
		}
		p.Gauge("userd_mail_oldest_seconds", "Age of the oldest mail that waits to be sent.", age)
	}
	if file, log, err := s.store.size(); err == nil {
		p.Gauge("userd_database_size_bytes", "Size of the database file.", float64(file))
		p.Gauge("userd_database_wal_size_bytes", "Size of the write-ahead log.", float64(log))
	}
	damaged := 0.0
	if s.stats.damaged.Load() {
		damaged = 1
	}
	p.Gauge("userd_database_damaged", "Whether the check at the start found damage: 1 or 0.", damaged)
	w := s.store.writer
	const commits, writes = "userd_commit_duration_seconds", "userd_commit_writes"
	p.Family(commits, "histogram", "Durations of transactions, with their commit and its sync.")
	p.Histogram(commits, "", w.commitDurations)
	p.Family(writes, "histogram", "Writes that share a commit and took effect.")
	p.Histogram(writes, "", w.commitSizes)
	p.Counter("userd_writes_refused_total", "Writes that failed because of the database, or waited too long for it.", float64(w.failedWrites.Load()))
}

// version returns the versions of userd and of Go, with the commit if known.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(v, s.Value[:min(12, len(s.Value))]) {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}
