package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/groupcommit/groupcommittest"
	"userd/internal/passhash"
	"userd/internal/throttle"
)

// Samples are the values of a page of metrics, by name and labels.
type samples map[string]float64

// parseMetrics reads the text format (https://prometheus.io/docs/instrumenting/exposition_formats/)
// and fails the test if the text breaks one of its rules.
func parseMetrics(t *testing.T, text string) samples {
	t.Helper()
	found := make(samples)
	seen := make(map[string]bool)
	line := regexp.MustCompile(`^([a-z_]+)(\{[a-z]+="[^"\\]*"(,[a-z]+="[^"\\]*")*\})? (\S+)$`)
	family, kind, help := "", "", ""
	for l := range strings.Lines(text) {
		l, whole := strings.CutSuffix(l, "\n")
		if rest, ok := strings.CutPrefix(l, "# HELP "); ok {
			help, _, _ = strings.Cut(rest, " ")
			continue
		}
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			family, kind, _ = strings.Cut(rest, " ")
			if family != help || seen[family] {
				t.Errorf("the family %s has no help, or is there twice", family)
			}
			seen[family] = true
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil || !whole {
			t.Fatalf("a line that is none of the format: %q", l)
		}
		name := m[1]
		if kind == "histogram" {
			name = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		}
		if kind == "summary" {
			name = regexp.MustCompile(`_(sum|count)$`).ReplaceAllString(name, "")
		}
		if name != family {
			t.Errorf("%q is in the family %s", l, family)
		}
		value, err := strconv.ParseFloat(m[4], 64)
		if _, twice := found[m[1]+m[2]]; err != nil || twice {
			t.Errorf("%q: %v, twice: %t", l, err, twice)
		}
		found[m[1]+m[2]] = value
	}
	return found
}

// scrape returns the service's metrics, as METRICS_ADDR serves them.
func (s *service) scrape() samples {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.monitor().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if got := w.Header().Get("Content-Type"); w.Code != 200 || got != "text/plain; version=0.0.4; charset=utf-8" {
		s.t.Fatalf("answered %d, %s", w.Code, got)
	}
	return parseMetrics(s.t.(*testing.T), w.Body.String())
}

// want fails the test unless each sample has its value.
func (v samples) want(t *testing.T, want samples) {
	t.Helper()
	for name, n := range want {
		if got, ok := v[name]; !ok || got != n {
			t.Errorf("%s is %v (there: %t), want %v", name, got, ok, n)
		}
	}
}

// moved fails the test unless each sample has grown by so much since before.
func (v samples) moved(t *testing.T, before, by samples) {
	t.Helper()
	for name, n := range by {
		if got := v[name] - before[name]; got != n {
			t.Errorf("%s has grown by %v, want %v", name, got, n)
		}
	}
}

func requests(route, method string, status int) string {
	return fmt.Sprintf(`http_request_duration_seconds_count{route=%q,method=%q,status="%d"}`, route, method, status)
}

// withOrigin lets a page of one origin call the API.
func withOrigin(c *settings) { c.corsOrigins = []string{"https://app.example.com"} }

func TestEachRequestIsCountedByRouteMethodAndStatus(t *testing.T) {
	t.Parallel()
	s := newService(t, withOrigin)
	s.keepLog()
	s.handle("GET /panic", func(*exchange) error { panic("oh no") })
	s.handle("GET /half", func(x *exchange) error {
		x.send(200, []byte("half"))
		return errStorage
	})
	path, token := s.member("ann")
	for range 3 {
		s.do("", "GET", "/api/test", "").want(t, 200, "")
	}
	s.do("", "HEAD", "/api/test", "").want(t, 200, "")
	s.do("", "POST", "/api/register", `{"username":"ann","email":"ann@example.com","password":"`+goodPassword+`"}`).want(t, 400, "")
	s.do("", "GET", path, "").want(t, 401, "")
	s.do(token, "GET", path, "").want(t, 200, "")
	s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
	s.do(token, "PUT", path, `{"username":"anna"}`).want(t, 200, "")
	s.do(token, "GET", "/api/users/99", "").want(t, 404, "")
	s.do("", "GET", "/api/nothing", "").want(t, 404, "")
	s.do("", "POST", "/api/test", "").want(t, 405, "")
	s.do("", "NONSENSE", "/api/test", "").want(t, 405, "")
	s.do("", "OPTIONS", "/api/users", "", "Origin: https://app.example.com", "Access-Control-Request-Method: GET").want(t, 204, "")
	s.do("", "GET", "/panic", "").want(t, 500, "")
	if resp, err := http.Get(s.url + "/half"); err == nil {
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("half an answer looks whole")
		}
		resp.Body.Close()
	}
	got := s.scrape()
	want := samples{
		requests("/api/test", "GET", 200):       3,
		requests("/api/test", "HEAD", 200):      1,
		requests("/api/register", "POST", 201):  1,
		requests("/api/register", "POST", 400):  1,
		requests("/api/login", "POST", 200):     1,
		requests("/api/users/{id}", "GET", 401): 1,
		requests("/api/users/{id}", "GET", 200): 2,
		requests("/api/users/{id}", "GET", 404): 1,
		requests("/api/users/{id}", "PUT", 200): 1,
		requests("none", "GET", 404):            1,
		requests("none", "POST", 405):           1,
		requests("none", "other", 405):          1,
		requests("none", "OPTIONS", 204):        1,
		requests("/panic", "GET", 500):          1,
		requests("/half", "GET", 200):           1,
	}
	got.want(t, want)
	for name, n := range got {
		if strings.HasPrefix(name, "http_request_duration_seconds_count") && want[name] == 0 {
			t.Errorf("%s is %v, but no request was sent", name, n)
		}
	}
	s.scrape().want(t, samples{requests("/metrics", "GET", 200): 1}) // the one before
}

func TestNothingThatAStrangerChoosesMakesANewSeries(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.keepLog()
	ask := func(method, path string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.URL.Path = method, path
		r.Header.Set("User-Agent", path)
		s.ServeHTTP(w, r)
	}
	word := func() string { return strconv.FormatUint(rand.Uint64(), 36) }
	try := func() {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "", word(), word() + "\"\n{"} {
			for _, path := range []string{"/" + word(), "/api/users/" + word(), "/api/users/1/sessions/" + word(), "/api/test", "/" + word() + "\"\n{}", "/metrics"} {
				ask(method, path)
			}
		}
	}
	try()
	s.scrape() // whose own series is then there
	before := s.scrape()
	for range 20 {
		try()
	}
	after := s.scrape()
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
}

func TestLoginsAreCountedByStatus(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	s.keepLog()
	_, root := s.admin("root")
	path, _ := s.register("ann")
	before := s.scrape()
	login := func(from, password string, status int) {
		t.Helper()
		s.tryLogin(from, "ann", password).want(t, status, "")
	}
	login(homeNet, goodPassword, 200)
	login(homeNet, goodPassword, 200)
	for range freeFailures {
		login(otherNet, wrongPassword, 401)
	}
	login(otherNet, wrongPassword, 429)
	s.do("", "POST", "/api/login", `{"username":"ann"}`).want(t, 400, "")
	s.do("", "POST", "/api/login", `{`).want(t, 400, "")

	release := s.occupyHasher()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(gone, "POST", "/api/login", strings.NewReader(`{"username":"ann","password":"`+goodPassword+`"}`))
	r.Header.Set("Content-Type", "application/json")
	s.ServeHTTP(httptest.NewRecorder(), r)
	disperse := s.crowdHasher(clientaddr.Network(homeNet))
	login(homeNet, goodPassword, 503)
	disperse()
	release()

	runSQL(t, s.store.conn.Conn, `PRAGMA busy_timeout = 0`)
	other := another(t, s.path)
	runSQL(t, other, `BEGIN IMMEDIATE`)
	login(homeNet, goodPassword, 503)
	runSQL(t, other, `ROLLBACK`)

	s.do(root, "PUT", path, `{"disabled":true}`).want(t, 200, "")
	login(homeNet, goodPassword, 403)

	s.scrape().moved(t, before, samples{
		requests("/api/login", "POST", 200): 2,
		requests("/api/login", "POST", 400): 2, // the body is not a login
		requests("/api/login", "POST", 401): freeFailures,
		requests("/api/login", "POST", 403): 1, // the user is disabled
		requests("/api/login", "POST", 429): 1,
		requests("/api/login", "POST", 503): 3, // the client left, the queue was full, the database was locked

		`userd_limited_total{limit="user and network"}`: 1,
		"userd_writes_refused_total":                    1,
	})
}

func TestARefusalIsCountedByItsLimit(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for i, a := range s.limiter.allowances {
		name := a.Name
		if limit(i) == noLimit || limit(i) == mails { // TestTheMetricsOfMail
			continue
		}
		s.handle("GET /limited/"+name, func(*exchange) error { return limited(&throttle.Limited{By: name, Wait: time.Second}) })
		before := s.scrape()
		s.do("", "GET", "/limited/"+name, "").want(t, 429, "")
		s.scrape().moved(t, before, samples{fmt.Sprintf("userd_limited_total{limit=%q}", name): 1})
	}
}

func TestPasswordHashesAreCounted(t *testing.T) {
	t.Parallel() // one waits its two seconds
	s := newService(t)
	s.register("ann")
	before := s.scrape()
	s.login("ann")
	s.scrape().moved(t, before, samples{"userd_password_hashes_total": 1, "userd_password_hashes_running": 0, "userd_password_hashes_waiting": 0})

	defer s.occupyHasher()()
	disperse := s.crowdHasher("127.0.0.0/24")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).want(t, 503, "busy")
	disperse()
	s.scrape().moved(t, before, samples{"userd_password_hashes_total": 1, "userd_password_hashes_refused_total": 1})
	waits := make(chan error, 1)
	go func() {
		_, err := s.hasher.Hash(context.Background(), "", goodPassword)
		waits <- err
	}()
	await(t, "a hash waits", func() bool { return s.hasher.Stats().Waiting == 1 })
	s.scrape().want(t, samples{"userd_password_hashes_running": float64(runtime.GOMAXPROCS(0)), "userd_password_hashes_waiting": 1})
	if err := receive(t, "the one that waited too long", waits); err != passhash.ErrBusy {
		t.Error(err)
	}
	s.scrape().moved(t, before, samples{"userd_password_hashes_total": 1, "userd_password_hashes_refused_total": 2})
}

func TestRowsAreCountedOnceAMinute(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.scrape().want(t, samples{"userd_users": 0, "userd_sessions": 0, "userd_events_total": 0})
	s.register("ann")
	s.login("ann")
	s.login("ann")
	s.clock.add(time.Minute - 1)
	s.scrape().want(t, samples{"userd_users": 0, "userd_sessions": 0, "userd_events_total": 0})
	s.clock.add(1)
	s.scrape().want(t, samples{"userd_users": 1, "userd_sessions": 2, "userd_events_total": 3})
}

func TestCommitsAndFilesAreMeasured(t *testing.T) {
	t.Parallel()
	s := newService(t)
	before := s.scrape()
	s.register("ann")
	s.do("", "POST", "/api/register", `{"username":"ANN","email":"x@example.com","password":"`+goodPassword+`"}`).want(t, 400, "")
	s.scrape().moved(t, before, samples{"userd_commit_writes_sum": 1, "userd_commit_writes_count": 1, "userd_commit_duration_seconds_count": 1})

	release := groupcommittest.Busy(t, s.store.writer)
	before = s.scrape()
	writes := []<-chan error{
		groupcommittest.Enqueue(t, s.store.writer, add(s.store, "bob")),
		groupcommittest.Enqueue(t, s.store.writer, add(s.store, "bob")), // only this one fails
		groupcommittest.Enqueue(t, s.store.writer, add(s.store, "cas")),
		groupcommittest.Enqueue(t, s.store.writer, add(s.store, "dan")),
	}
	release()
	groupcommittest.Answers(t, writes...)
	got := s.scrape()
	got.moved(t, before, samples{ // the hold's own is one of the two commits
		"userd_commit_writes_count":           2,
		"userd_commit_writes_sum":             1 + 3,
		`userd_commit_writes_bucket{le="1"}`:  1,
		`userd_commit_writes_bucket{le="2"}`:  1,
		`userd_commit_writes_bucket{le="4"}`:  2,
		"userd_commit_duration_seconds_count": 2,
		"userd_writes_refused_total":          0,
	})
	for name, file := range map[string]string{"userd_database_size_bytes": s.path, "userd_database_wal_size_bytes": s.path + "-wal"} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if got[name] != float64(info.Size()) || info.Size() == 0 {
			t.Errorf("%s is %v, and %s has %d bytes", name, got[name], file, info.Size())
		}
	}
}

func TestOpenConnectionsAreCounted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	address := s.serveOn(10)
	var conns []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	open := func(n float64) {
		t.Helper()
		await(t, fmt.Sprint(n, " connections"), func() bool { return s.scrape()["userd_connections"] == n })
	}
	open(3)
	conns[0].Close()
	conns[1].Close()
	open(1)
}

func TestMetricsDescribeTheProcess(t *testing.T) {
	t.Parallel()
	got := newService(t).scrape()
	names := []string{"go_goroutines", "go_memstats_heap_alloc_bytes", "go_memstats_alloc_bytes_total", "go_memstats_next_gc_bytes", "go_memstats_sys_bytes", "go_gc_duration_seconds_count"}
	if runtime.GOOS == "linux" {
		names = append(names, "process_cpu_seconds_total", "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_start_time_seconds", "process_open_fds", "process_max_fds")
		if age := float64(time.Now().Unix()) - got["process_start_time_seconds"]; age < -2 || age > 3600 {
			t.Errorf("the process has started %v seconds ago", age)
		}
		if fds, most := got["process_open_fds"], got["process_max_fds"]; fds > most {
			t.Errorf("%v of %v file descriptors are open", fds, most)
		}
	}
	for _, name := range names {
		if got[name] <= 0 && name != "go_gc_duration_seconds_count" {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	found := false
	for name, value := range got {
		if strings.HasPrefix(name, `userd_build_info{version="`) && strings.Contains(name, `,go="`+runtime.Version()+`"`) && value == 1 {
			found = true
		}
	}
	if !found {
		t.Error("there is no userd_build_info")
	}
}

func TestEachOfManyRequestsIsCountedWhileOthersRead(t *testing.T) {
	t.Parallel()
	s := newService(t)
	const clients, each = 16, 200
	var asking, reading sync.WaitGroup
	done := make(chan struct{})
	reading.Go(func() {
		last := 0.0
		for {
			v := s.scrape()
			n := v[requests("/api/test", "GET", 200)]
			if n < last || n != v[`http_request_duration_seconds_bucket{route="/api/test",method="GET",status="200",le="+Inf"}`] {
				t.Errorf("the count is %v after %v", n, last)
			}
			last = n
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for range clients {
		asking.Go(func() {
			for i := range each {
				method, path := "GET", "/api/test"
				switch i % 4 {
				case 1:
					method = "HEAD"
				case 2:
					path = "/nothing"
				}
				s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
			}
		})
	}
	asking.Wait()
	close(done)
	reading.Wait()
	s.scrape().want(t, samples{
		requests("/api/test", "GET", 200):  clients * each / 2,
		requests("/api/test", "HEAD", 200): clients * each / 4,
		requests("none", "GET", 404):       clients * each / 4,
	})
}

func TestMetricsAreNotPublic(t *testing.T) {
	t.Parallel()
	s := newService(t, withOrigin)
	_, member := s.member("ann")
	_, admin := s.admin("root")
	s.do("", "GET", "/metrics", "").want(t, 401, "missing_token")
	s.do(member, "GET", "/metrics", "").want(t, 403, "forbidden")
	r := s.do(admin, "GET", "/metrics", "").want(t, 200, "")
	if _, ok := parseMetrics(t, r.body)["userd_users"]; !ok {
		t.Errorf("an admin is answered %s", r.body)
	}
	if strings.Contains(r.body, "ann") || strings.Contains(r.body, "127.0.0.1") {
		t.Errorf("the metrics name a user: %s", r.body)
	}
	w, ofPage := httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil)
	ofPage.Header.Set("Origin", "https://app.example.com")
	s.monitor().ServeHTTP(w, ofPage)
	if w.Code != 200 || w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without a token, a page of another origin is answered %d %v", w.Code, w.Header())
	}
}

func TestTheAddressOfTheMetricsAnswersNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, []string{"METRICS_ADDR=127.0.0.1:0"})
	main := p.url
	p.register("ann")
	p.url, _ = p.awaitLog("serving metrics")["url"].(string)
	for path, want := range map[string]int{
		"/metrics": 200, "/healthz": 200, "/readyz": 200,
		"/": 404, "/api/test": 404, "/api/users": 404, "/api/register": 404, "/debug/pprof/": 404,
	} {
		r := p.must("", "GET", path, "").want(t, want, "")
		if want == 404 && r.field("code") != "not_found" {
			t.Errorf("%s: %s", path, r.body)
		}
	}
	p.must("", "POST", "/api/login", "{}").want(t, 404, "not_found")
	p.must("", "POST", "/metrics", "{}").want(t, 405, "method_not_allowed")
	parseMetrics(t, p.must("", "GET", "/metrics", "").body).want(t, samples{
		requests("/api/register", "POST", 201): 1,
		requests("/readyz", "GET", 200):        1,
		"userd_connections":                    1, // that of the main address
		"userd_users":                          1,
	})

	taken := strings.TrimPrefix(p.url, "http://")
	elsewhere := t.TempDir()
	userdProcess(t, elsewhere, "", nil, "-metrics-addr", taken).wantFailure(t, 1, "METRICS_ADDR (-metrics-addr)", taken, "in use")
	userdProcess(t, elsewhere, "", []string{"METRICS_ADDR=" + taken}).wantFailure(t, 1, "METRICS_ADDR (-metrics-addr)", taken, "in use")
	wantFiles(t, elsewhere)

	// One that watches must not keep a server from ending.
	conn, err := net.Dial("tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\n")
	p.url = main
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	wantFiles(t, dir, "app.db")
}

func TestDamageShowsInTheMetrics(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann")
	damage(t, path, firstPage(t, path, "user_email"), make([]byte, 4096))
	p := startUserd(t, t.TempDir(), []string{"METRICS_ADDR=127.0.0.1:0", "DATABASE_URL=" + path})
	p.awaitLog("the database is damaged: restore a copy")
	p.url, _ = p.awaitLog("serving metrics")["url"].(string)
	parseMetrics(t, p.must("", "GET", "/metrics", "").want(t, 200, "").body).want(t, samples{"userd_database_damaged": 1})
}

// Every metric that docs/operations.md names exists.
func TestTheDocumentationNamesMetricsThatExist(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	got := newService(t).scrape()
	got[requests("", "", 0)] = 1 // no request was sent yet
	names := make(map[string]bool)
	for name := range got {
		name, _, _ = strings.Cut(name, "{")
		names[name] = true
		names[strings.TrimSuffix(name, "_count")] = true // of a histogram
	}
	found := regexp.MustCompile(`\b(userd|process|go|http_request)_[a-z_]+\b`).FindAllString(string(text), -1)
	if len(found) < 10 {
		t.Errorf("docs/operations.md names only %d metrics", len(found))
	}
	for _, name := range found {
		if !names[name] && !(runtime.GOOS != "linux" && strings.HasPrefix(name, "process_")) {
			t.Errorf("docs/operations.md names the metric %s, which does not exist", name)
		}
	}
}

// promtool checks the names of the metrics and the rules in docs/operations.md.
func TestPromtoolAcceptsTheMetrics(t *testing.T) {
	t.Parallel()
	if !*peers {
		t.Skip("runs with -peers")
	}
	s := newService(t)
	s.member("ann")
	w := httptest.NewRecorder()
	s.monitor().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = bytes.NewReader(w.Body.Bytes())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, found := strings.Cut(string(page), "```yaml\ngroups:\n")
	rules, _, found2 := strings.Cut(rules, "```")
	if !found || !found2 {
		t.Fatal("docs/operations.md has no rules")
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte("groups:\n"+rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	rules = "groups:\n- name: dashboard\n  rules:\n"
	for i, expr := range dashboardQueries(t) {
		rules += fmt.Sprintf("  - record: query_%d\n    expr: %q\n", i, strings.ReplaceAll(expr, "$__rate_interval", "5m"))
	}
	writeFile(t, file, []byte(rules))
	if out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules, of examples/grafana.json: %v\n%s", err, out)
	}
}

// dashboardQueries returns the queries of examples/grafana.json.
func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	text, err := os.ReadFile("examples/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries = append(queries, target.Expr)
		}
	}
	return queries
}

func TestTheDashboardShowsMetricsThatExist(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.member("ann")
	w := httptest.NewRecorder()
	s.monitor().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	queries := dashboardQueries(t)
	if len(queries) < 20 {
		t.Errorf("the dashboard has only %d queries", len(queries))
	}
	for _, query := range queries {
		for _, name := range regexp.MustCompile(`\b(userd|http|process|go)_[a-z_]+`).FindAllString(query, -1) {
			if !regexp.MustCompile(`(?m)^` + name + `[ {]`).MatchString(w.Body.String()) {
				t.Errorf("%s: userd has no metric %s", query, name)
			}
		}
	}
}
