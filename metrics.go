package main

import (
	"context"
	"math"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A histogram counts values by their size.
type histogram struct {
	bounds []int64         // the highest value of each bucket but the last, which has none
	counts []atomic.Uint64 // of the buckets
	sum    atomic.Int64
}

func newHistogram(bounds []int64) *histogram {
	return &histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (h *histogram) observe(value int64) {
	i := 0
	for i < len(h.bounds) && value > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(value)
}

// durationBounds are in nanoseconds, from less than a read takes to the longest
// that a request may. Two in each power of ten: each costs a line in every series.
var durationBounds = []int64{1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10}

// groupBounds are in writes; the last is maxGroup.
var groupBounds = []int64{1, 2, 4, 8, 16, 32, 64, 128, maxGroup}

// Counts are counters that differ by a word. The words are known beforehand:
// nobody can make up more, and a rate can be taken of the first of its kind.
type counts struct {
	words []string
	n     []atomic.Uint64
}

func newCounts(words ...string) counts {
	return counts{words, make([]atomic.Uint64, len(words))}
}

func (c *counts) add(word string) {
	if i := slices.Index(c.words, word); i >= 0 {
		c.n[i].Add(1)
	}
}

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
	took   *histogram
}

// observe counts a request. It is on the way of each, so it takes no lock and
// allocates nothing but a new series.
func (r *routeStats) observe(method string, status int, took time.Duration) {
	method = knownMethod(method)
	x := r.find(method, status)
	if x == nil {
		x = r.add(method, status)
	}
	x.took.observe(int64(took))
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
		x = &requestSeries{method, status, newHistogram(durationBounds)}
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
	limited     counts
	connections atomic.Int64
	damaged     atomic.Bool // the check of the database has found damage

	rows                    checkup // how many there are of these:
	users, sessions, events atomic.Int64
}

func newStats(st *store) *stats {
	t := &stats{
		limited: newCounts("user and network", "user", "network", "registration", "refresh", "password"),
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

// A page is metrics in the text format 0.0.4 of Prometheus.
type page struct{ text []byte }

// family begins the samples of one name.
func (p *page) family(name, kind, help string) {
	p.text = append(p.text, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+kind+"\n"...)
}

// sample adds a sample. The labels are as in the format, without the braces.
func (p *page) sample(name, labels string, value float64) {
	p.text = append(p.text, name...)
	if labels != "" {
		p.text = append(append(append(p.text, '{'), labels...), '}')
	}
	p.text = strconv.AppendFloat(append(p.text, ' '), value, 'g', -1, 64)
	p.text = append(p.text, '\n')
}

func (p *page) gauge(name, help string, value float64) {
	p.family(name, "gauge", help)
	p.sample(name, "", value)
}

func (p *page) counter(name, help string, value float64) {
	p.family(name, "counter", help)
	p.sample(name, "", value)
}

// counters adds a family of counters that differ by a label.
func (p *page) counters(name, help, label string, c *counts) {
	p.family(name, "counter", help)
	for i, word := range c.words {
		p.sample(name, label+"="+strconv.Quote(word), float64(c.n[i].Load()))
	}
}

// histogram adds the samples of a histogram whose values are in a unit.
func (p *page) histogram(name, labels string, h *histogram, unit float64) {
	sum := float64(h.sum.Load()) / unit
	comma := ""
	if labels != "" {
		comma = ","
	}
	n := uint64(0)
	for i := range h.counts {
		bound := math.Inf(1)
		if i < len(h.bounds) {
			bound = float64(h.bounds[i]) / unit
		}
		n += h.counts[i].Load()
		p.sample(name+"_bucket", labels+comma+`le="`+strconv.FormatFloat(bound, 'g', -1, 64)+`"`, float64(n))
	}
	p.sample(name+"_sum", labels, sum)
	p.sample(name+"_count", labels, float64(n))
}

// metrics answers with what is counted. It stops nobody: the counters are read
// as they are, one after the other.
func (s *server) metrics(x *exchange) error {
	var p page
	s.requestFamilies(&p)
	s.databaseFamilies(&p)
	p.goFamilies()
	p.processFamilies()
	v := version()
	p.family("userd_build_info", "gauge", "The program that runs; always 1.")
	p.sample("userd_build_info", "version="+strconv.Quote(strings.TrimSuffix(v, " "+runtime.Version()))+",go="+strconv.Quote(runtime.Version()), 1)
	x.Header()["Content-Type"] = []string{"text/plain; version=0.0.4; charset=utf-8"}
	return x.send(http.StatusOK, p.text)
}

func (s *server) requestFamilies(p *page) {
	const requests = "http_request_duration_seconds"
	p.family(requests, "histogram", "Requests by route, method and status, from the end of their header to the end of their answer.")
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
			p.histogram(requests, labels, q.took, float64(time.Second))
		}
	}
	p.gauge("userd_connections", "Open connections, idle ones too.", float64(s.stats.connections.Load()))
	p.counters("userd_limited_total", "Requests refused by a limit, which answers 429.", "limit", &s.stats.limited)
	inside, waiting := s.hasher.gate.count()
	p.gauge("userd_password_hashes_running", "Passwords that are being hashed.", float64(inside))
	p.gauge("userd_password_hashes_waiting", "Passwords that wait to be hashed.", float64(waiting))
	p.counter("userd_password_hashes_total", "Passwords that were hashed, to be checked or to be kept.", float64(s.hasher.hashed.Load()))
	p.counter("userd_password_hashes_refused_total", "Passwords that were not hashed because too many waited, or one too long.", float64(s.hasher.refused.Load()))
}

func (s *server) databaseFamilies(p *page) {
	if s.stats.rows.at(s.now()) == nil { // else how many there are is not known
		p.gauge("userd_users", "Users, counted at most once a minute.", float64(s.stats.users.Load()))
		p.gauge("userd_sessions", "Sessions, counted at most once a minute.", float64(s.stats.sessions.Load()))
		p.counter("userd_events_total", "Events that were ever recorded, looked up at most once a minute.", float64(s.stats.events.Load()))
	}
	if file, log, err := s.store.size(); err == nil {
		p.gauge("userd_database_size_bytes", "Size of the database file.", float64(file))
		p.gauge("userd_database_wal_size_bytes", "Size of the write-ahead log beside it.", float64(log))
	}
	damaged := 0.0
	if s.stats.damaged.Load() {
		damaged = 1
	}
	p.gauge("userd_database_damaged", "Whether the check at the start has found damage.", damaged)

	w := s.store.writer
	const commits, writes = "userd_commit_duration_seconds", "userd_commit_writes"
	p.family(commits, "histogram", "How long transactions took, their commit and its sync included.")
	p.histogram(commits, "", w.took, float64(time.Second))
	p.family(writes, "histogram", "Writes that took effect, by commit.")
	p.histogram(writes, "", w.landed, 1)
	p.counter("userd_writes_refused_total", "Writes that the database could not do, or not in time.", float64(w.refused.Load()))
}

// runtimeFamilies are those of Go's runtime, under the names that Prometheus'
// own Go client gives them. Reading them does not stop the world.
var runtimeFamilies = []struct{ from, name, kind, help string }{
	{"/sched/goroutines:goroutines", "go_goroutines", "gauge", "Goroutines that exist."},
	{"/memory/classes/heap/objects:bytes", "go_memstats_heap_alloc_bytes", "gauge", "Memory of objects on the heap."},
	{"/gc/heap/allocs:bytes", "go_memstats_alloc_bytes_total", "counter", "Memory ever allocated on the heap."},
	{"/gc/heap/allocs:objects", "go_memstats_mallocs_total", "counter", "Objects ever allocated on the heap."},
	{"/gc/heap/goal:bytes", "go_memstats_next_gc_bytes", "gauge", "Size of the heap at which the next collection begins."},
	{"/memory/classes/total:bytes", "go_memstats_sys_bytes", "gauge", "Memory that the Go runtime has from the system; SQLite has more."},
}

func (p *page) goFamilies() {
	samples := make([]metrics.Sample, len(runtimeFamilies))
	for i, f := range runtimeFamilies {
		samples[i].Name = f.from
	}
	metrics.Read(samples)
	for i, f := range runtimeFamilies {
		if samples[i].Value.Kind() == metrics.KindUint64 {
			p.family(f.name, f.kind, f.help)
			p.sample(f.name, "", float64(samples[i].Value.Uint64()))
		}
	}
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	p.family("go_gc_duration_seconds", "summary", "Pauses of the garbage collector.")
	p.sample("go_gc_duration_seconds_sum", "", gc.PauseTotal.Seconds())
	p.sample("go_gc_duration_seconds_count", "", float64(gc.NumGC))
}

// processFamilies adds what Linux tells of the process, under the names that
// Prometheus' clients give it (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics).
// Other systems have no /proc, and these are left out.
func (p *page) processFamilies() {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// From the third field on, proc(5): the second may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	field := func(n int) (v float64) {
		if n-3 < len(fields) {
			v, _ = strconv.ParseFloat(fields[n-3], 64)
		}
		return v
	}
	const ticks = 100 // a second, on every system that Go knows
	p.counter("process_cpu_seconds_total", "Processor time, user and system.", (field(14)+field(15))/ticks)
	p.gauge("process_virtual_memory_bytes", "Address space.", field(23))
	p.gauge("process_resident_memory_bytes", "Memory in use.", field(24)*float64(os.Getpagesize()))
	if boot, ok := procNumber("/proc/stat", "btime"); ok {
		p.gauge("process_start_time_seconds", "When the process started, in Unix time.", boot+field(22)/ticks)
	}
	if dir, err := os.Open("/proc/self/fd"); err == nil {
		names, _ := dir.Readdirnames(-1)
		dir.Close()
		p.gauge("process_open_fds", "Open file descriptors.", float64(len(names)-1)) // one is dir's
	}
	if most, ok := procNumber("/proc/self/limits", "Max open files"); ok {
		p.gauge("process_max_fds", "File descriptors that the process may have open.", most)
	}
}

// procNumber returns the number behind a word at the beginning of a line.
func procNumber(file, word string) (float64, bool) {
	data, _ := os.ReadFile(file)
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+word+" ")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseFloat(fields[0], 64)
	return n, err == nil
}
