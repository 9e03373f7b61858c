package main

// These benchmarks compare the costs of userd with the lowest possible costs of its work
// on this machine:
//
//	go test -run '^$' -bench .
//
// userd runs as a process of its own. 64 clients with keep-alive send it requests over
// loopback HTTP. A line of BenchmarkServer shows
//
//	ns/op         time, all clients together: the throughput
//	server-µs/op  the server's CPU time, which does not depend on the clients on the same machine
//	floor-µs/op   the CPU time of the operation's floor, measured right after it
//	×floor        server-µs/op divided by floor-µs/op
//	server-allocs/op, server-B/op  what the server allocates on its heap
//
// The floor is a bare net/http server with an answer of 60 bytes. For an operation that
// hashes a password, it is the argon2id hash of golang.org/x/crypto. Only Linux shows the
// CPU time of another process; other systems omit the last three lines. Linux counts in
// hundredths of a second, so use -benchtime 2s for steady figures. The process is the test
// binary, which needs 2 MiB more memory than the program.
//
// USERD_BENCH_USERS is the number of users, 10000 if not set, and
// USERD_BENCH_CLIENTS that of clients. The database is in $TMPDIR: on a tmpfs
// an update costs no fsync.

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"userd/internal/argon2"
	"userd/internal/passhash"
	"userd/internal/prom"
)

var (
	benchUsers   = benchSetting("USERD_BENCH_USERS", 10_000)
	benchClients = benchSetting("USERD_BENCH_CLIENTS", 64)
)

func benchSetting(name string, standard int) int {
	n, _ := strconv.Atoi(os.Getenv(name))
	return cmp.Or(n, standard)
}

// benchName returns a name that no user of any run has.
func benchName() string { return strings.ToLower(rand.Text()) }

// A benchOp is one operation, as a client asks for it.
type benchOp struct {
	name    string
	status  int                            // of the answer; 0: any
	hashes  bool                           // its floor is a hash
	request func(c *benchClient) string    // the first line and, after a line break, the body
	after   func(c *benchClient, b []byte) // keeps what later requests need of the answer's body
}

var (
	benchBare    = benchOp{"bare", 200, false, func(*benchClient) string { return "GET /" }, nil}
	benchWelcome = benchOp{"test", 200, false, func(*benchClient) string { return "GET /api/test" }, nil}

	// benchLogin logs in as any user, who the client then is.
	benchLogin = benchOp{"login", 200, true, func(c *benchClient) string {
		c.user = 1 + mathrand.IntN(benchUsers)
		return fmt.Sprintf("POST /api/login\n"+`{"username":"user%d","password":"%s"}`, c.user, goodPassword)
	}, func(c *benchClient, body []byte) {
		c.token = reply{body: string(body)}.field("access_token")
		benchKeep(c, body)
	}}
)

// benchKeep keeps the refresh token of an answer: each is valid once.
func benchKeep(c *benchClient, body []byte) {
	_, token, _ := strings.Cut(string(body), `"refresh_token":"`)
	*c.refresh, _, _ = strings.Cut(token, `"`)
}

var benchOps = []benchOp{
	benchWelcome,
	{"read", 200, false, func(c *benchClient) string {
		return fmt.Sprintf("GET /api/users/%d", c.user)
	}, nil},
	{"read-other", 200, false, func(*benchClient) string {
		return fmt.Sprintf("GET /api/users/%d", 1+mathrand.IntN(benchUsers))
	}, nil},
	{"page", 200, false, func(*benchClient) string {
		return fmt.Sprintf("GET /api/users?limit=100&after=%d", mathrand.IntN(max(1, benchUsers-100)))
	}, nil},
	{"update", 200, false, func(c *benchClient) string {
		return fmt.Sprintf("PUT /api/users/%d\n"+`{"email":"%s@example.com"}`, c.user, benchName())
	}, nil},
	{"refresh", 200, false, func(c *benchClient) string {
		return fmt.Sprintf("POST /api/refresh\n"+`{"refresh_token":"%s"}`, *c.refresh)
	}, benchKeep},
	benchLogin,
	{"register", 201, true, func(*benchClient) string {
		return fmt.Sprintf("POST /api/register\n"+`{"username":"%s","email":"%[1]s@example.com","password":"%s"}`, benchName(), goodPassword)
	}, nil},
}

func BenchmarkServer(b *testing.B) {
	path := benchDatabase(b)

	// From the start of the process to the end of the first answer.
	b.Run("start", func(b *testing.B) {
		for range b.N {
			p := startBenchUserd(b, path)
			benchLoad(b, p.clients(b, 1), &benchWelcome, 1)
			b.StopTimer()
			p.stop()
			b.StartTimer()
		}
	})

	// The memory of a server after its start, and its largest memory while all clients log
	// in concurrently, again and again.
	b.Run("memory", func(b *testing.B) {
		p := startBenchUserd(b, path)
		p.settle()
		idle := p.memory("VmRSS")
		if idle == 0 {
			b.Skip("only Linux tells the memory of another process")
		}
		login := benchLogin
		login.status = 0 // any: where a hash is slow, some are rightly told that the server is busy
		benchLoad(b, p.clients(b, benchClients), &login, 2*benchClients+b.N)
		b.ReportMetric(0, "ns/op") // leaves it out
		b.ReportMetric(idle, "idle-MiB")
		b.ReportMetric(p.memory("VmHWM"), "peak-MiB")
	})

	b.Run("overload", func(b *testing.B) { benchOverload(b, path) })

	bare := startBenchProcess(b, []string{"-test.run=^TestFloorServer$"}, "USERD_BENCH_FLOOR=1")
	userd := startBenchUserd(b, path)
	userd.settle()
	users := make([]*benchClient, benchClients)
	for i := range users { // one by one, so that each logs in
		users[i] = userd.clients(b, 1)[0]
		benchLoad(b, users[i:i+1], &benchLogin, 1)
	}
	for _, op := range benchOps {
		b.Run(op.name, func(b *testing.B) { benchOperation(b, &op, userd, bare, users) })
	}

	mailing := startBenchUserd(b, path, "MAIL_URL=dir:"+b.TempDir(), "MAIL_LIMIT=100000")
	b.Run("forgot", func(b *testing.B) {
		benchOperation(b, &benchOp{"forgot", 202, false, func(*benchClient) string {
			return fmt.Sprintf("POST /api/password/forgot\n"+`{"login":"user%d"}`, 1+mathrand.IntN(benchUsers))
		}, nil}, mailing, bare, users)
	})
}

// benchOperation measures an operation of clients that are these users, and its floor.
func benchOperation(b *testing.B, op *benchOp, userd, bare *benchProcess, users []*benchClient) {
	n := benchClients
	if op.hashes {
		// No more clients than concurrent hashes: none has to wait, so the server
		// refuses none as busy if the machine pauses.
		n = min(n, runtime.GOMAXPROCS(0))
	}
	clients := userd.clients(b, n) // new ones: the server closes idle connections
	for i, c := range clients {
		c.user, c.token, c.refresh = users[i].user, users[i].token, users[i].refresh
	}
	b.ResetTimer()
	objects, bytes := userd.allocated(b)
	cost := userd.costOf(b.N, func() { benchLoad(b, clients, op, b.N) })
	b.StopTimer()
	objectsThen, bytesThen := userd.allocated(b)
	b.ReportMetric((objectsThen-objects)/float64(b.N), "server-allocs/op")
	b.ReportMetric((bytesThen-bytes)/float64(b.N), "server-B/op")
	var floor float64
	if op.hashes {
		hashes := min(b.N, 64)
		self := &benchProcess{pid: os.Getpid()}
		floor = self.costOf(hashes, func() { benchHash(hashes, func() *argon2.Memory { return nil }) })
	} else {
		requests, clients := min(100*b.N, 30_000), bare.clients(b, n)
		floor = bare.costOf(requests, func() { benchLoad(b, clients, &benchBare, requests) })
	}
	if cost > 0 && floor > 0 { // more than a tick of the clock
		b.ReportMetric(cost, "server-µs/op")
		b.ReportMetric(floor, "floor-µs/op")
		b.ReportMetric(cost/floor, "×floor")
	}
}

// benchOverload reads again and again while clients request 200 logins a second, more than
// the machine can hash, and do not wait for the answers. It shows the time of the slowest
// hundredth of the reads, the server's memory, and the ratio of successful logins to the
// bare hashes that the machine can compute with the kernel.
func benchOverload(b *testing.B, path string) {
	const every = time.Second / 200
	p := startBenchUserd(b, path)
	p.settle()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var group sync.WaitGroup
	var done atomic.Int64
	login := benchLogin
	login.status = 0
	login.after = func(c *benchClient, body []byte) {
		if strings.Contains(string(body), "access_token") {
			done.Add(1)
		}
	}
	idle := make(chan *benchClient, 2*200*int(passhash.MaxWait/time.Second))
	for _, c := range p.clients(b, cap(idle)) {
		idle <- c
	}
	group.Go(func() {
		for tick := time.NewTicker(every); ctx.Err() == nil; <-tick.C {
			c := <-idle
			group.Go(func() {
				c.do(&login)
				idle <- c
			})
		}
	})
	time.Sleep(passhash.MaxWait) // until as many wait as may
	reader := p.clients(b, 1)
	took := make([]time.Duration, 0, b.N)
	start := time.Now()
	before := done.Load()
	b.ResetTimer()
	for range b.N {
		asked := time.Now()
		benchLoad(b, reader, &benchWelcome, 1)
		took = append(took, time.Since(asked))
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	logins, elapsed := done.Load()-before, time.Since(start)
	cancel()
	group.Wait()
	for range cap(idle) {
		if c := <-idle; c.err != nil { // it has asked no more
			b.Fatal(c.err)
		}
	}
	start = time.Now()
	benchHash(64, argon2.NewMemory)
	bare := 64 / time.Since(start).Seconds()
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(p.memory("VmHWM"), "peak-MiB")
	b.ReportMetric(float64(logins)/elapsed.Seconds()/bare, "×hashes")
}

// BenchmarkHandler has no HTTP and no other process: it shows what a request
// allocates inside the server.
func BenchmarkHandler(b *testing.B) {
	s, token := benchServer(b)

	for _, op := range []struct{ name, path string }{{"read", "/api/users/1"}, {"page", "/api/users?limit=100"}} {
		b.Run(op.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", op.path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := &discardResponse{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				if s.ServeHTTP(w, r); w.status != 200 {
					b.Fatalf("%s: status %d", op.path, w.status)
				}
			}
		})
	}
}

// BenchmarkKey compares a read with an API key with a read with an access token, without HTTP,
// in turns: the median of the ratios, and its confidence interval of 95 %.
func BenchmarkKey(b *testing.B) {
	s, token := benchServer(b)
	key, err := s.addKey(context.Background(), console, &apiKey{userID: 1, name: "job", scope: readScope}, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	took := func(token string) time.Duration {
		r := httptest.NewRequest("GET", "/api/users/1", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := &discardResponse{header: make(http.Header)}
		start := time.Now()
		for range 500 {
			clear(w.header)
			if s.ServeHTTP(w, r); w.status != 200 {
				b.Fatalf("status %d", w.status)
			}
		}
		return time.Since(start)
	}
	took(token)
	took(key) // it records the use
	var ratios []float64
	for b.Loop() {
		withToken := took(token)
		ratios = append(ratios, float64(took(key))/float64(withToken))
	}
	slices.Sort(ratios)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ratios[len(ratios)/2], "×token")
	half := int(0.98 * math.Sqrt(float64(len(ratios))))
	b.ReportMetric(ratios[max(len(ratios)/2-half, 0)], "×token-from")
	b.ReportMetric(ratios[min(len(ratios)/2+half, len(ratios)-1)], "×token-to")
}

// BenchmarkObserve measures the cost of counting a request, on one core and on all cores in
// the same series, and the cost of a page of metrics.
func BenchmarkObserve(b *testing.B) {
	b.Run("alone", func(b *testing.B) {
		r := benchStats()
		b.ReportAllocs()
		start := time.Now()
		for b.Loop() {
			r.Observe("GET", 404, time.Since(start))
		}
	})
	b.Run("contended", func(b *testing.B) {
		r := benchStats()
		b.ReportAllocs()
		start := time.Now()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				r.Observe("GET", 404, time.Since(start))
			}
		})
	})
	// A page of metrics of a server that has answered every route in four ways.
	b.Run("scrape", func(b *testing.B) {
		st, err := openStore(context.Background(), benchDatabase(b))
		if err != nil {
			b.Fatal(err)
		}
		defer st.close()
		s := newServer(settings{}, st, passhash.New(cheap), newKeyring(st.keySecret), slog.New(slog.DiscardHandler), time.Now, monotonic())
		for _, rt := range s.routes() {
			r := s.stats.requests.Route(rt.pattern)
			for _, status := range []int{200, 401, 404, 503} {
				r.Observe("GET", status, time.Millisecond)
			}
		}
		r := httptest.NewRequest("GET", "/metrics", nil)
		w := &discardResponse{header: make(http.Header)}
		monitor := s.monitor()
		b.ReportAllocs()
		for b.Loop() {
			clear(w.header)
			monitor.ServeHTTP(w, r)
		}
	})
	// What the page asks for once a minute.
	b.Run("count", func(b *testing.B) {
		st, err := openStore(context.Background(), benchDatabase(b))
		if err != nil {
			b.Fatal(err)
		}
		defer st.close()
		for b.Loop() {
			if _, _, err := st.count(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchStats counts a route's requests, the third of whose series is observed.
func benchStats() *prom.Route {
	r := new(prom.Requests).Route("")
	for _, status := range []int{200, 401, 404} {
		r.Observe("GET", status, time.Millisecond)
	}
	return r
}

type discardResponse struct {
	header http.Header
	status int
}

func (w *discardResponse) Header() http.Header         { return w.header }
func (w *discardResponse) WriteHeader(status int)      { w.status = status }
func (w *discardResponse) Write(p []byte) (int, error) { return len(p), nil }

// benchServer returns a server with a benchDatabase, and an access token of user1.
func benchServer(b *testing.B) (_ *server, token string) {
	b.Helper()
	st, err := openStore(context.Background(), benchDatabase(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { st.close() })
	now := time.Now()
	login := session{userID: 1, createdAt: now.Unix(), expiresAt: now.Add(24 * time.Hour).Unix(), refreshHash: []byte("hash")}
	if _, err := st.startSession(context.Background(), &login, 0, "", provenFactor{}); err != nil {
		b.Fatal(err)
	}
	keys := newKeyring(st.keySecret, newSigningKey("", randomKey().secret))
	token = keys.configured[0].sign((&settings{accessTTL: 24 * time.Hour}).newClaims(&login, now, true))
	return newServer(settings{directory: directoryNames}, st, passhash.New(cheap), keys, slog.New(slog.DiscardHandler), time.Now, monotonic()), token
}

// benchDatabase makes a database with user1 to userN. They have one hash, of
// goodPassword, so that a million take seconds.
func benchDatabase(b *testing.B) (path string) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		b.Fatal(err)
	}
	defer st.close()
	hash, err := passhash.New(passhash.Default()).Hash(context.Background(), "", goodPassword)
	if err != nil {
		b.Fatal(err)
	}
	err = st.write(context.Background(),
		statement{
			Query: `
				WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < @users)
				INSERT INTO user (id, username, email, password_hash, created_at, updated_at)
				SELECT i, 'user' || i, 'user' || i || '@example.com', @hash, @now, @now FROM n`,
			Args: args{{"users", benchUsers}, {"hash", hash}, {"now", time.Now().Unix()}},
		},
		statement{
			Query: `UPDATE counter SET user_id = @users`,
			Args:  args{{"users", benchUsers}},
		})
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// benchHash makes n hashes, one per core concurrently. If memory is nil,
// golang.org/x/crypto makes them.
func benchHash(n int, memory func() *argon2.Memory) {
	c := passhash.Default()
	var begun atomic.Int64
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			mem := memory()
			defer mem.Release()
			for begun.Add(1) <= int64(n) {
				argon2.Key(mem, []byte(goodPassword), make([]byte, 16), c.Passes, c.Memory, 32)
			}
		})
	}
	group.Wait()
}

// TestFloorServer is the bare server, when a benchmark runs it as a process.
func TestFloorServer(t *testing.T) {
	if os.Getenv("USERD_BENCH_FLOOR") == "" {
		return
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, `"url":"http://%s"`+"\n", listener.Addr())
	answer := []byte(`{"message":"Welcome to the User Management Microservice!"}` + "\n\n")
	t.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = jsonType
		w.Write(answer)
	})))
}

// A benchProcess is a server in a process of its own.
type benchProcess struct {
	addr    string
	metrics string // where it serves them; empty: nowhere
	pid     int
	stop    func()
}

// allocated returns how many objects and bytes the process has allocated so far.
func (p *benchProcess) allocated(b *testing.B) (objects, bytes float64) {
	b.Helper()
	resp, err := http.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		fmt.Sscanf(lines.Text(), "go_memstats_mallocs_total %g", &objects)
		fmt.Sscanf(lines.Text(), "go_memstats_alloc_bytes_total %g", &bytes)
	}
	return objects, bytes
}

func startBenchUserd(b *testing.B, path string, env ...string) *benchProcess {
	b.Helper()
	return startBenchProcess(b, nil, append(env, "USERD_TEST_RUN_MAIN=1", "DATABASE_URL="+path, "ADDR=127.0.0.1:0", "METRICS_ADDR=127.0.0.1:0", "LOG_FORMAT=json", "JWT_ACCESS_TOKEN_EXPIRES=24h", "RATE_LIMIT=off")...)
}

// startBenchProcess runs the test binary with no environment but env, and
// waits until it says where it listens.
func startBenchProcess(b *testing.B, args []string, env ...string) *benchProcess {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = env
	stderr, _ := cmd.StderrPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	stop := func() {
		if cmd.Process.Signal(os.Interrupt) != nil {
			cmd.Process.Kill() // Windows has no such signal
		}
		cmd.Wait()
	}
	b.Cleanup(stop)
	said := ""
	p := &benchProcess{pid: cmd.Process.Pid, stop: stop}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said += lines.Text() + "\n"
		_, rest, _ := strings.Cut(lines.Text(), `"url":"http://`)
		url, _, _ := strings.Cut(rest, `"`)
		if p.addr == "" {
			p.addr = url
		} else {
			p.metrics = url
		}
		if p.addr != "" && (p.metrics != "" || args != nil) { // the bare server has none
			go io.Copy(io.Discard, stderr)
			return p
		}
	}
	b.Fatalf("the server did not start:\n%s", said)
	return nil
}

// costOf returns the microseconds of processor time that the process takes for
// each of the n operations of f, or 0 if the system does not tell.
func (p *benchProcess) costOf(n int, f func()) (µs float64) {
	before := p.ticks()
	f()
	return (p.ticks() - before) * 10_000 / float64(n)
}

// ticks returns the processor time of the process in hundredths of a second.
func (p *benchProcess) ticks() float64 {
	fields := append(strings.Fields(p.proc("stat", ")")), make([]string, 13)...) // from the third on, proc(5)
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return user + system
}

// memory returns a size from /proc/PID/status, in MiB.
func (p *benchProcess) memory(name string) (mib float64) {
	fmt.Sscan(p.proc("status", name+":"), &mib)
	return mib / 1024
}

// proc returns the text after the label in a file of /proc/PID.
func (p *benchProcess) proc(file, label string) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, file))
	_, rest, _ := strings.Cut(string(data), label)
	return rest
}

// settle waits until the process is idle: userd checks the whole database after
// its start, which would count as work for requests.
func (p *benchProcess) settle() {
	for before := -1.0; before != p.ticks(); time.Sleep(500 * time.Millisecond) {
		before = p.ticks()
	}
}

// A benchClient is one keep-alive connection. It implements only as much of HTTP/1.1 as the
// benchmarks need, so that it costs little compared with the server.
type benchClient struct {
	conn      net.Conn
	r         *bufio.Reader
	err       error // the first
	out, body []byte
	user      int
	token     string
	refresh   *string // the live one, shared by the clients of one user
}

// clients connects n clients.
func (p *benchProcess) clients(b *testing.B, n int) []*benchClient {
	b.Helper()
	clients := make([]*benchClient, n)
	for i := range clients {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		clients[i] = &benchClient{conn: conn, r: bufio.NewReader(conn), refresh: new(string)}
	}
	return clients
}

// benchLoad makes the clients do an operation concurrently, n times in total.
func benchLoad(b *testing.B, clients []*benchClient, op *benchOp, n int) {
	b.Helper()
	var begun atomic.Int64
	var group sync.WaitGroup
	for _, c := range clients {
		group.Go(func() {
			for begun.Add(1) <= int64(n) && c.err == nil {
				c.do(op)
			}
		})
	}
	group.Wait()
	for _, c := range clients {
		if c.err != nil {
			b.Fatalf("%s: %v", op.name, c.err)
		}
	}
}

// do does one operation. It is an error if the status is not that of the operation.
func (c *benchClient) do(op *benchOp) {
	line, body, _ := strings.Cut(op.request(c), "\n")
	c.out = append(append(c.out[:0], line...), " HTTP/1.1\r\nHost: userd\r\n"...)
	if c.token != "" {
		c.out = append(append(append(c.out, "Authorization: Bearer "...), c.token...), "\r\n"...)
	}
	if body != "" {
		c.out = fmt.Appendf(c.out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	_, c.err = c.conn.Write(c.out)

	status := c.line()
	length, chunked := int64(0), false
	for h := c.line(); h != ""; h = c.line() {
		if value, ok := strings.CutPrefix(h, "Content-Length: "); ok {
			length, _ = strconv.ParseInt(value, 10, 64)
		}
		chunked = chunked || h == "Transfer-Encoding: chunked"
	}
	c.body = c.body[:0]
	for more := true; more && c.err == nil; more = chunked && length > 0 {
		if chunked {
			length, _ = strconv.ParseInt(c.line(), 16, 64)
		}
		have := len(c.body)
		c.body = slices.Grow(c.body, int(length))[:have+int(length)]
		_, err := io.ReadFull(c.r, c.body[have:])
		c.err = cmp.Or(c.err, err)
		if chunked {
			c.line()
		}
	}
	if op.status != 0 && !strings.HasPrefix(status, fmt.Sprintf("HTTP/1.1 %d ", op.status)) {
		c.err = cmp.Or(c.err, fmt.Errorf("%s: %s %s", line, status, c.body))
	}
	if op.after != nil && c.err == nil {
		op.after(c, c.body)
	}
}

// line reads a line; after an error it is empty, as the last of a header is.
func (c *benchClient) line() string {
	line, err := c.r.ReadSlice('\n')
	c.err = cmp.Or(c.err, err)
	return strings.TrimSpace(string(line))
}
