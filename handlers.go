package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"userd/internal/checkup"
	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/passhash"
	"userd/internal/prom"
	"userd/internal/reqbody"
	"userd/internal/sse"
	"userd/internal/validate"
)

// A server answers HTTP. Its parts are set once, by newServer.
type server struct {
	settings
	userService
	keys        *keyring
	limiter     *limiter   // nil: RATE_LIMIT=off
	mailLimit   *mailLimit // of strangers
	memberMails *mailLimit
	feed        *sse.Feed
	log         *slog.Logger
	mono        func() time.Duration // the monotonic clock, for limits and intervals: the time since some start
	mux         *http.ServeMux
	stats       *stats
	health      *health
	bodies      *reqbody.Reader
	lists       chan struct{} // holds one token for each part of a full list that is being read
	crossOrigin *http.CrossOriginProtection
	webPages    webPages
}

// A userService adds and changes users, for HTTP and for the command line.
type userService struct {
	store    *store
	hasher   *passhash.Hasher
	policy   validate.Policy
	dataKeys dataKeys         // that encrypt the secrets of factors
	wall     func() time.Time // the wall clock, for what is stored or signed
}

func newServer(c settings, st *store, h *passhash.Hasher, keys *keyring, log *slog.Logger, wall func() time.Time, mono func() time.Duration) *server {
	s := &server{
		settings:    c,
		userService: userService{st, h, c.passwords, c.dataKeys, wall},
		keys:        keys,
		mailLimit:   newMailLimit(c.mailsPerHour),
		memberMails: newMailLimit(c.mailsPerHour),
		feed:        newFeed(),
		log:         log,
		mono:        mono,
		mux:         http.NewServeMux(),
		stats:       newStats(st, mono),
		health:      &health{database: checkup.New(time.Second, 2*time.Second, mono, st.probe)},
		bodies:      reqbody.NewReader(maxBody, smallBody, maxLargeBodies),
		lists:       make(chan struct{}, readerCount/2),
		crossOrigin: newCrossOrigin(&c.console),
	}
	s.webPages = s.newWebPages()
	if c.rateLimit == switchOn {
		s.limiter = newLimiter()
	}
	for _, rt := range s.routes() {
		s.handle(rt)
	}
	return s
}

// A route is one row of the route table. A row that does not say who may call it
// rejects every request.
type route struct {
	pattern string     // method and path
	access  access     // who may call it
	proof   proof      // the acts that require proof (see requireProof)
	limit   limit      // counts the requests of a network; the handler calls count, after it has read the body
	scopes  []keyScope // the scopes of the API keys that may call it; nil: none may
	handle  func(*exchange) error
}

// routes is the route table: every path that the server answers.
func (s *server) routes() []route {
	return []route{
		{"GET /healthz", anyone, noProof, noLimit, nil, s.healthz},
		{"GET /readyz", anyone, noProof, noLimit, nil, s.readyz},
		{"GET /metrics", adminOnly, noProof, noLimit, adminKeys, s.metrics}, // for anyone on METRICS_ADDR
		{"GET /", anyone, noProof, noLimit, nil, s.root},
		{"GET /console", anyone, noProof, noLimit, nil, s.sendConsole},
		{"GET /openapi.json", anyone, noProof, noLimit, nil, s.openAPI},

		{"GET /api/test", anyone, noProof, noLimit, nil, s.test},
		{"POST /api/register", anyone, noProof, registrations, nil, s.register},
		{"POST /api/login", anyone, noProof, noLimit, nil, s.login}, // newGuess and passwords limit it
		{"POST /api/login/factor", anyone, noProof, codeTries, nil, s.loginFactor},
		{"POST /api/refresh", anyone, noProof, refreshes, nil, s.refresh},
		{"POST /api/logout", anySession, endOtherSessions, noLimit, nil, s.logout},
		{"GET /api/verify", signedIn, noProof, noLimit, verifyKeys, s.verify},
		{"POST /api/introspect", resourceServer, noProof, noLimit, introspectKeys, s.introspect},

		{"GET /api/users", signedIn, noProof, noLimit, readKeys, s.listUsers},
		{"POST /api/users", adminOnly, createAdmin, noLimit, writeKeys, s.createUser},
		{"GET /api/users/{id}", byDirectory, noProof, noLimit, readKeys, s.getUser},
		{"PUT /api/users/{id}", selfOrAdmin, changeUser, changes, writeKeys, s.updateUser},
		{"PATCH /api/users/{id}", selfOrAdmin, changeUser, changes, writeKeys, s.updateUser},
		{"DELETE /api/users/{id}", selfOrAdmin, deleteUser, changes, adminKeys, s.deleteUser},

		{"GET /api/users/{id}/sessions", selfOrAdmin, noProof, noLimit, nil, s.listSessions},
		{"DELETE /api/users/{id}/sessions", selfOrAdmin, endOtherSessions, noLimit, adminKeys, s.endSessions}, // ends the caller's session too, so each costs a login
		{"DELETE /api/users/{id}/sessions/{sid}", selfOrAdmin, endOtherSessions, changes, adminKeys, s.endSession},
		{"GET /api/users/{id}/totp", selfOnly, noProof, noLimit, readKeys, s.getTOTP},
		{"POST /api/users/{id}/totp", selfOnly, changeFactor, changes, nil, s.addTOTP},
		{"POST /api/users/{id}/totp/confirm", selfOnly, noProof, changes, nil, s.confirmTOTP},
		{"DELETE /api/users/{id}/totp", selfOrAdmin, changeFactor, changes, nil, s.removeTOTP},
		{"POST /api/users/{id}/recovery-codes", selfOnly, changeFactor, changes, nil, s.renewRecoveryCodes},
		{"GET /api/users/{id}/keys", selfOrAdmin, noProof, noLimit, readKeys, s.listKeys},
		{"POST /api/users/{id}/keys", selfOrAdmin, makeKey, changes, nil, s.createKey},
		{"DELETE /api/users/{id}/keys/{key}", selfOrAdmin, noProof, changes, nil, s.revokeKey},
		{"GET /api/events", adminOnly, noProof, noLimit, adminKeys, s.listEvents},

		{"POST /api/password/forgot", anyone, noProof, mails, nil, s.forgotPassword},
		{"POST /api/password/reset", anyone, noProof, codeTries, nil, s.resetPassword},
		{"POST /api/users/{id}/email/verify", ownOrAdmin, noProof, changes, nil, s.sendVerification},
		{"POST /api/email/verify", anyone, noProof, codeTries, nil, s.verifyEmail}, // newGuess and passwords limit its passwords
		{"POST /api/email/change", anyone, noProof, codeTries, nil, s.confirmEmail},
		{"POST /api/email/undo", anyone, noProof, codeTries, nil, s.restoreEmail},
		{"POST /api/users/{id}/reset-link", adminOnly, makeLink, noLimit, nil, s.createResetLink},
		{"POST /api/users/{id}/approve", adminOnly, noProof, noLimit, writeKeys, s.approveUser},
		{"GET /api/invitations", adminOnly, noProof, noLimit, readKeys, s.listInvitations},
		{"POST /api/invitations", adminOnly, invite, noLimit, nil, s.createInvitation},
		{"DELETE /api/invitations/{invitation}", adminOnly, noProof, noLimit, writeKeys, s.deleteInvitation},
		{"POST /api/invitations/{invitation}/send", adminOnly, invite, noLimit, nil, s.sendInvitation},

		{"GET /api/mail", adminOnly, noProof, noLimit, adminKeys, s.listMails},
		{"POST /api/mail/{mail}/retry", adminOnly, noProof, noLimit, adminKeys, s.retryMail},
		{"GET /reset", anyone, noProof, noLimit, nil, s.accountPage},
		{"GET /invite", anyone, noProof, noLimit, nil, s.accountPage},
		{"GET /verify", anyone, noProof, noLimit, nil, s.accountPage},
		{"GET /change", anyone, noProof, noLimit, nil, s.accountPage},
		{"GET /undo", anyone, noProof, noLimit, nil, s.accountPage},
	}
}

// handle adds a route to the mux. It checks the access before the handler runs. A path that ends
// with a slash is only that path, not those below it.
func (s *server) handle(rt route) {
	counters := s.stats.requests.Route(rt.pattern) // METRICS_ADDR shares them
	pattern := rt.pattern
	if strings.HasSuffix(pattern, "/") {
		pattern += "{$}"
	}
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		x := w.(*exchange)
		x.r = r // with the path's values
		x.routed, x.proof, x.limit, x.scopes, x.counters = true, rt.proof, rt.limit, rt.scopes, counters
		err := s.admit(x, rt.access)
		if err == nil {
			if err = rt.handle(x); err != nil {
				err = s.countMalformed(x, clientError(err))
			}
		}
		if err != nil {
			x.fail(err)
		}
	})
}

func (s *server) test(x *exchange) error {
	return x.sendMessage(http.StatusOK, "Welcome to the User Management Microservice!")
}

// An eventAnswer is an event as clients and the command line see it.
type eventAnswer struct {
	ID        int64     `json:"id"`
	Type      eventType `json:"type"`
	At        time.Time `json:"at"`
	ActorID   int64     `json:"actor_id,omitempty"`
	UserID    int64     `json:"user_id,omitempty"`
	SessionID int64     `json:"session_id,omitempty"`
	Address   string    `json:"address,omitempty"`
	Changes   []string  `json:"changes,omitempty"`
}

func newEventAnswer(e *event) eventAnswer {
	a := eventAnswer{
		ID:        e.id,
		Type:      e.kind,
		At:        utc(e.at),
		ActorID:   e.actorID,
		UserID:    e.userID,
		SessionID: e.sessionID,
		Address:   e.address,
	}
	if e.changes != "" {
		a.Changes = strings.Split(e.changes, ",")
	}
	return a
}

// listEvents answers with a page of events, or with a stream of them if the
// request accepts text/event-stream.
func (s *server) listEvents(x *exchange) error {
	p, err := x.page("user", "type")
	if err != nil {
		return err
	}
	var only eventFilter
	if p.Query.Has("user") {
		if only.userID, err = param.ID(p.Query.Get("user")); err != nil {
			return &param.Error{Name: "user", Text: "must be the id of a user"}
		}
	}
	if only.kind, err = param.Word(p.Query, "type", eventTypes...); err != nil {
		return err
	}
	if headers.Accepts(x.r, "Accept", "text/event-stream") {
		if p.Limit != 0 {
			return &param.Error{Name: "limit", Text: "is not allowed with a stream"}
		}
		if !p.Query.Has("after") {
			p.AfterID = -1
		}
		return s.streamEvents(x, p.AfterID, only)
	}
	limit := cmp.Or(p.Limit, defaultLimit)
	list := []eventAnswer{}
	err = s.store.events(x.r.Context(), p.AfterID, limit+1, only, func(e *event) { list = append(list, newEventAnswer(e)) })
	if err != nil {
		return err
	}
	return sendPage(x, &p, limit, list, func(e *eventAnswer) int64 { return e.ID })
}

// maxStreams is the largest number of open event streams. Each one holds a
// connection and reads the database once per followEvery.
const maxStreams = 64

// followEvery is the time between two searches for new events.
const followEvery = 200 * time.Millisecond

func newFeed() *sse.Feed {
	f := sse.New(maxStreams)
	f.PollEvery, f.RecheckEvery, f.WriteTimeout = followEvery, time.Second, writeTimeout
	f.PingEvery = 15 * time.Second // HTTP/2 ends a stream that is silent for writeTimeout
	return f
}

// streamEvents sends the events after an id, and then each new one. The id -1 means the
// newest. streamEvents polls the database, so it also sends the events of other processes.
func (s *server) streamEvents(x *exchange, after int64, only eventFilter) error {
	after, err := s.streamStart(x, after)
	if err != nil {
		return err
	}
	err = s.feed.Serve(x, x.r, after, sse.Source{
		Read: func(after int64, add func(int64, string, any)) (last int64, more bool, err error) {
			return s.store.eventsSince(x.r.Context(), after, only, func(e *event) { add(e.id, string(e.kind), newEventAnswer(e)) })
		},
		Allowed: func() bool { return s.admit(x, adminOnly) == nil },
	})
	if errors.Is(err, sse.ErrBusy) {
		return errBusy.with("Too many event streams are open")
	}
	return err
}

// streamStart returns the id after which a stream starts: Last-Event-ID if the
// request has it, otherwise after, or the id of the newest event if after is -1.
// It returns errBadParameter for the id of an event that does not exist yet.
func (s *server) streamStart(x *exchange, after int64) (int64, error) {
	newest, err := s.store.lastEvent()
	if err != nil {
		return 0, err
	}
	switch last := x.r.Header.Get("Last-Event-ID"); last {
	case "":
	case "0":
		after = 0
	default:
		if after, err = param.ID(last); err != nil {
			return 0, errBadParameter.with("Last-Event-ID must be the id of an event")
		}
	}
	if after < 0 {
		after = newest
	}
	if after > newest { // the stream would be silent until other events have these ids
		return 0, errBadParameter.with("Event %d does not exist yet: was the database restored from an older copy?", after)
	}
	return after, nil
}

// maxMonitors is the largest number of connections to METRICS_ADDR.
const maxMonitors = 64

// monitor returns a server for METRICS_ADDR, which only monitoring should be able
// to reach. It answers three routes without a token, and shares the counters of s.
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

// metrics answers with the page of all metrics. No request waits for it.
func (s *server) metrics(x *exchange) error {
	var p prom.Page
	s.requestFamilies(&p)
	s.databaseFamilies(&p)
	p.GoFamilies()
	p.ProcessFamilies()
	p.Family("userd_build_info", "gauge", "The program that runs; always 1.")
	p.Sample("userd_build_info", prom.Labels("version", strings.TrimSuffix(version(), " "+runtime.Version()), "go", runtime.Version()), 1)
	x.Header()["Content-Type"] = []string{prom.ContentType}
	return x.send(http.StatusOK, p.Bytes())
}

// A health is the readiness of a server. Strangers must not be able to cause many
// checks of the database, since each costs a synced write. The timeout of a check
// is shorter than the usual timeouts of probes.
type health struct {
	database *checkup.Checkup
	failing  atomic.Bool // the latest check of the database failed
	draining atomic.Bool // the server is stopping
}

var statusOK = []byte(`{"status":"ok"}` + "\n")

// healthz answers 200 as long as the process can answer.
func (s *server) healthz(x *exchange) error { return x.send(http.StatusOK, statusOK) }

// readyz answers 200 if the database can be read and written, otherwise 503. It
// logs the reason once and never sends it to the client.
func (s *server) readyz(x *exchange) error {
	if s.health.draining.Load() {
		return errNotReady
	}
	err := s.health.database.Result()
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

// stats are the counters of a server. Its store and its hasher have their own.
type stats struct {
	requests     prom.Requests
	unrouted     *prom.Route // those that matched no row
	limited      *prom.Counters
	mails        *prom.Counters
	badKeys      atomic.Uint64 // API keys that were not valid
	wrongCodes   atomic.Uint64 // of second factors
	graceAnswers atomic.Uint64 // to refresh tokens that were used twice
	connections  atomic.Int64
	damaged      atomic.Bool // the check of the database found damage

	rowCount                *checkup.Checkup // sets these:
	users, sessions, events atomic.Int64
	apiKeys                 atomic.Int64
}

func newStats(st *store, mono func() time.Duration) *stats {
	t := &stats{
		limited: prom.NewCounters("limit", "user and network", "user", "network", "registration", "refresh", "password", "lookup", "change", "user change", "malformed", "session refresh", "code", "key", "mail"),
		mails:   prom.NewCounters("outcome", "sent", "failed", "abandoned", "limited"),
	}
	t.unrouted = t.requests.Route("")
	// A count reads two entire indexes, which is too expensive for each scrape.
	// Prometheus waits 10 seconds for a page.
	t.rowCount = checkup.New(time.Minute, 5*time.Second, mono, func(ctx context.Context) error {
		users, sessions, err := st.count(ctx)
		if err != nil {
			return err
		}
		keys, err := st.countKeys(ctx)
		if err != nil {
			return err
		}
		events, err := st.lastEvent()
		t.apiKeys.Store(keys)
		t.users.Store(users)
		t.sessions.Store(sessions)
		t.events.Store(events)
		return err
	})
	return t
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
	p.Requests("http_request_duration_seconds", "Requests by route, method and status, from the end of the header to the end of the answer.", &s.stats.requests)
	p.Gauge("userd_connections", "Open connections, idle ones too.", float64(s.stats.connections.Load()))
	p.Counters("userd_limited_total", "Requests refused by a limit, which answers 429.", s.stats.limited)
	p.Counter("userd_second_factor_failures_total", "Wrong codes of second factors.", float64(s.stats.wrongCodes.Load()))
	p.Counter("userd_refresh_grace_total", "Refresh tokens that were used again within the grace, and got the same answer.", float64(s.stats.graceAnswers.Load()))
	p.Counter("userd_bad_keys_total", "Requests with an API key that is mistyped, unknown, revoked or expired.", float64(s.stats.badKeys.Load()))
	p.Counters("userd_mails_total", "Mails by outcome: sent, failed for good, abandoned because they were not needed any more, or limited.", s.stats.mails)
	hashes := s.hasher.Stats()
	p.Gauge("userd_password_hashes_running", "Passwords that are being hashed.", float64(hashes.Running))
	p.Gauge("userd_password_hashes_waiting", "Passwords that wait to be hashed.", float64(hashes.Waiting))
	p.Counter("userd_password_hashes_total", "Passwords that were hashed, to check or to store them.", float64(hashes.Hashed))
	p.Counter("userd_password_hashes_refused_total", "Passwords that were not hashed, because too many waited or the wait was too long.", float64(hashes.Refused))
}

func (s *server) databaseFamilies(p *prom.Page) {
	if s.stats.rowCount.Result() == nil { // otherwise the numbers are unknown
		p.Gauge("userd_users", "Users, counted at most once a minute.", float64(s.stats.users.Load()))
		p.Gauge("userd_sessions", "Sessions, counted at most once a minute.", float64(s.stats.sessions.Load()))
		p.Gauge("userd_api_keys", "API keys, also those that expired at most 30 days ago, counted at most once a minute.", float64(s.stats.apiKeys.Load()))
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
	const commits, writes = "userd_commit_duration_seconds", "userd_commit_writes"
	p.Family(commits, "histogram", "Durations of transactions, with their commit and its sync.")
	p.Histogram(commits, "", s.store.commitDurations)
	p.Family(writes, "histogram", "Writes that share a commit and took effect.")
	p.Histogram(writes, "", s.store.commitSizes)
	p.Counter("userd_writes_refused_total", "Writes that failed because of the database, or waited too long for it.", float64(s.store.failedWrites.Load()))
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
