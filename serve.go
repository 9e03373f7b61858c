package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"userd/internal/certs"
	"userd/internal/netlisten"
	"userd/internal/passhash"
)

// gcPercent is GOGC if the environment does not set it: by how many percent the
// heap grows before a collection. A server's heap is a few MB, and at Go's 100 it
// is collected every few hundred requests, which costs 15 % of their CPU. At 400
// the heap is about 20 MB.
const gcPercent = 400

// The Go runtime collects more often to stay within these bytes. They exceed what
// all connections and cores hold if strangers make them hold what they can: a
// lower limit would cause endless collections.
const (
	memoryGoal    = 128 << 20
	memoryPerCore = 64 << 20 // three of our hashes; adopted ones may need more
)

func tuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryGoal + memoryPerCore*int64(runtime.GOMAXPROCS(0)))
	}
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, c config, stderr io.Writer) error {
	tuneRuntime()
	log := c.logger(stderr)
	signal.Ignore(syscall.SIGPIPE) // if the log's reader ends, lines are lost, but userd must not end
	kind, err := inspect(ctx, c.database)
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	// Before the database: if the port is taken, another userd may hold the file.
	l, err := listen(&c, hangup, log)
	if err != nil {
		return err
	}
	defer l.close()
	if err := checkSecrets(&c, l.api.Addr(), log); err != nil {
		return err
	}
	if kind == kindTutorial {
		if err := adopt(ctx, c.database, refuse, func(text string) { log.Info(text) }); err != nil {
			return err
		}
	}
	st, err := openStore(ctx, c.database)
	if err != nil {
		return fmt.Errorf("database %s: %w", c.database, err)
	}
	stopping := make(chan time.Time, 1) // when the stop began
	context.AfterFunc(ctx, func() { stopping <- time.Now() })
	err = serveStore(ctx, &c, log, l, st)
	if err := errors.Join(err, st.close()); err != nil {
		return err
	}
	log.Info("stopped", "took_ms", time.Since(<-stopping).Milliseconds())
	return nil
}

// listeners are what a server listens on.
type listeners struct {
	api     net.Listener
	metrics net.Listener // nil if METRICS_ADDR is not set
	https   *httpsSetup  // nil for plain HTTP
}

// listen opens the addresses of a configuration, or systemd's socket.
func listen(c *config, hangup <-chan os.Signal, log *slog.Logger) (l *listeners, err error) {
	l = new(listeners)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.https, err = newHTTPS(c, hangup, log); err != nil {
		return l, err
	}
	l.api, err = netlisten.Listen(c.addr)
	if errors.Is(err, netlisten.ErrSocket) {
		return l, usagef("%v", err)
	}
	if err == nil {
		err = l.https.listen(c.addr)
	}
	if err == nil && c.metricsAddr != "" {
		l.metrics, err = net.Listen("tcp", c.metricsAddr)
	}
	return l, err
}

func (l *listeners) close() {
	if l.api != nil {
		l.api.Close()
	}
	if l.metrics != nil {
		l.metrics.Close()
	}
	l.https.close()
}

// checkSecrets refuses weak signing keys, or warns of them if the server listens
// only on a loopback address.
func checkSecrets(c *config, address net.Addr, log *slog.Logger) error {
	for setting, secret := range map[string][]byte{c.secretFrom: c.secret, "JWT_SECRET_KEY_PREVIOUS": c.previousSecret} {
		why := weakSecret(secret)
		if why == "" {
			continue
		}
		if !isLoopback(address) {
			return usagef("%s: %s", setting, why)
		}
		log.Warn("weak signing key; use it only where no one else can reach this address", "setting", setting, "why", why)
	}
	return nil
}

// monotonic returns a clock that tells the time since now. No one can set it, so
// a step of the wall clock neither lifts a limit nor makes it longer.
func monotonic() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// serveStore serves an open database until ctx ends and the running requests are
// done.
func serveStore(ctx context.Context, c *config, log *slog.Logger, l *listeners, st *store) error {
	keys, err := loadKeys(ctx, st, c, time.Now().Unix())
	if err != nil {
		return err
	}
	refresher, err := loadRefresher(ctx, st)
	if err != nil {
		return err
	}
	s := newServer(c.settings, st, passhash.New(passhash.Default()), keys, refresher, log, time.Now, monotonic())
	httpServer := newHTTPServer(s)
	served := make(chan error, 3)
	go func() { served <- l.https.serve(httpServer, netlisten.Limit(l.api, maxConnections)) }()
	log.Info("serving", "url", l.https.scheme()+"://"+l.api.Addr().String(), "database", c.database, "signing_key", c.secretFrom)
	if l.metrics != nil {
		metricsServer := newHTTPServer(s.monitor())
		metricsServer.ConnState = nil // its connections are not counted
		go func() { served <- metricsServer.Serve(netlisten.Limit(l.metrics, maxMonitors)) }()
		defer metricsServer.Close() // after the last request, so that the drain can be watched
		log.Info("serving metrics", "url", "http://"+l.metrics.Addr().String())
	}
	notifySystemd("READY=1", log)

	events := chain{st: st}
	defer func() { // after the last request and after keepChain
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastLinks)
		defer cancel()
		if err := events.extend(limit); err != nil {
			log.Warn("could not link the last events; the next start does it", "err", err)
		}
	}()
	var background sync.WaitGroup
	defer background.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	background.Go(func() { sweepSessions(ctx, st, log) })
	background.Go(func() { keepChain(ctx, &events, c.eventRetention, log) })
	background.Go(func() { checkDatabase(ctx, s) })
	background.Go(func() {
		if err := l.https.run(ctx); err != nil {
			served <- err
		}
	})
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain(ctx, s, httpServer)
	return nil
}

// checkDatabase reads the whole database once and logs what is wrong with it.
func checkDatabase(ctx context.Context, s *server) {
	if findings, err := s.store.checkIntegrity(ctx); len(findings) > 0 {
		s.stats.damaged.Store(true)
		s.log.Error("the database is damaged: restore a copy", "found", strings.Join(findings, "; "))
	} else if err != nil && ctx.Err() == nil {
		s.log.Error("could not check the database", "err", err)
	}
	if n, err := s.store.unknownHashes(ctx); err == nil && n > 0 {
		s.log.Warn("users with an unknown password hash cannot log in", "users", n)
	}
}

// drain stops the server: it waits for the running requests, for drainTimeout at
// most.
func drain(ctx context.Context, s *server, httpServer *http.Server) {
	s.health.draining.Store(true)
	s.log.Info("stopping")
	notifySystemd("STOPPING=1", s.log)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := httpServer.Shutdown(limit); err != nil {
		s.log.Warn("cut off requests that did not end in time", "after", drainTimeout)
		httpServer.Close()
	}
}

func notifySystemd(state string, log *slog.Logger) {
	if err := netlisten.Notify(state); err != nil {
		log.Warn("could not notify systemd", "state", state, "err", err)
	}
}

// maxPort80 bounds the connections to port 80. Each is closed after one answer,
// which takes no work.
const maxPort80 = 256

// An httpsSetup is what HTTPS needs. A nil *httpsSetup serves plain HTTP.
type httpsSetup struct {
	certificates interface {
		TLSConfig() *tls.Config
		Run(ctx context.Context)
	}
	acme   *certs.ACME  // the certificates, if they are from ACME
	port80 net.Listener // for acme
}

// newHTTPS returns nil if neither HTTPS_DOMAIN nor TLS_CERT is set. Each hangup
// makes it read the files of TLS_CERT again.
func newHTTPS(c *config, hangup <-chan os.Signal, log *slog.Logger) (*httpsSetup, error) {
	switch {
	case c.tlsCert != "":
		files, err := certs.OpenFiles(c.tlsCert, c.tlsKey, hangup, log)
		if err != nil {
			return nil, usagef("TLS_CERT and TLS_KEY: %v", err)
		}
		return &httpsSetup{certificates: files}, nil
	case len(c.domains) > 0:
		acme := certs.NewACME(certs.ACMEOptions{
			Domains:   c.domains,
			Directory: c.acmeDirectory,
			Dir:       filepath.Join(filepath.Dir(c.database), "certs"),
			UserAgent: "userd",
		}, log)
		return &httpsSetup{certificates: acme, acme: acme}, nil
	}
	return nil, nil
}

func (h *httpsSetup) scheme() string {
	if h == nil {
		return "http"
	}
	return "https"
}

// listen opens port 80 on the host of addr, if the certificates are from ACME,
// and makes the directory for them.
func (h *httpsSetup) listen(addr string) error {
	if h == nil || h.acme == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if h.port80, err = net.Listen("tcp", net.JoinHostPort(host, "80")); err != nil {
		return err
	}
	return h.acme.MakeDir()
}

func (h *httpsSetup) close() {
	if h != nil && h.port80 != nil {
		h.port80.Close()
	}
}

// serve is s.Serve, or s.ServeTLS for HTTPS.
func (h *httpsSetup) serve(s *http.Server, l net.Listener) error {
	if h == nil {
		return s.Serve(l)
	}
	s.TLSConfig = h.certificates.TLSConfig()
	return s.ServeTLS(l, "", "")
}

// run keeps the certificates current, and serves port 80 for ACME, until ctx ends.
func (h *httpsSetup) run(ctx context.Context) error {
	switch {
	case h == nil:
		return nil
	case h.acme == nil:
		h.certificates.Run(ctx)
		return nil
	}
	s := &http.Server{
		Handler:        h.acme.HTTPHandler(),
		ReadTimeout:    headerTimeout,
		WriteTimeout:   headerTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // strangers' broken connections
	}
	s.SetKeepAlivesEnabled(false)
	go h.acme.Run(ctx)
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(netlisten.Limit(h.port80, maxPort80)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// newHTTPServer returns an http.Server that passes requests to s. Its listener
// should come from netlisten.Limit.
func newHTTPServer(s *server) *http.Server {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         s.stats.noteState,
		ConnContext:       netlisten.ConnContext,
		HTTP2:             http2Bounds,

		DisableGeneralOptionsHandler: true,                                                // OPTIONS * is a request like any other
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // strangers' broken connections
	}
	h.RegisterOnShutdown(s.feed.stop)
	return h
}

// sweepSessions deletes expired sessions, a few at a time, until ctx ends.
func sweepSessions(ctx context.Context, st *store, log *slog.Logger) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	var after int64
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			var err error
			if after, err = st.sweep(ctx, after, now.Unix()); err != nil && ctx.Err() == nil {
				log.Warn("could not delete expired sessions", "err", err)
			}
		}
	}
}

const (
	linkEvery = time.Second
	lastLinks = time.Second    // at the end; only the first run after an upgrade has more to link
	trimEvery = 24 * time.Hour // each trimming is an event, which is trimmed itself one day
)

// keepChain links new events, and trims those that are older than retention (0: none),
// until ctx ends.
func keepChain(ctx context.Context, events *chain, retention time.Duration, log *slog.Logger) {
	tick := time.NewTicker(linkEvery)
	defer tick.Stop()
	var nextTrim time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			err := events.extend(ctx)
			if err == nil && retention > 0 && !now.Before(nextTrim) {
				var more bool
				if more, err = events.trim(ctx, now.Add(-retention).Unix(), now.Unix()); err == nil && !more || errors.Is(err, errChainBroken) {
					nextTrim = now.Add(trimEvery)
				}
			}
			switch {
			case errors.Is(err, errHeadChanged):
				log.Error("stopped linking and trimming events: run userd events verify", "err", err)
				return
			case errors.Is(err, errChainBroken):
				log.Error("did not trim events that do not match the chain: run userd events verify", "err", err)
			case err != nil && ctx.Err() == nil:
				log.Warn("could not link or trim events", "err", err)
			}
		}
	}
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// logger returns the log. Its default format is text on a terminal, otherwise JSON.
func (c *config) logger(w io.Writer) *slog.Logger {
	format := c.logFormat
	if format == "" {
		format = "json"
		if f, ok := w.(*os.File); ok && isTerminal(f) {
			format = "text"
		}
	}
	opts := &slog.HandlerOptions{Level: c.logLevel}
	if format == "text" {
		return slog.New(newLogHandler(slog.NewTextHandler(w, opts)))
	}
	return slog.New(newLogHandler(slog.NewJSONHandler(w, opts)))
}

// logPatience is how long a record of the log waits while another one is written.
const logPatience = time.Second

// A logHandler drops records while the log's reader does not read. Otherwise a
// collector of logs that hangs, and so fills its pipe, would stop each request that
// logs something, and the end of the server too. Only the request that writes
// waits. The next record says how many were dropped.
type logHandler struct {
	slog.Handler
	turn chan struct{} // holds one token while a record is written
	lost atomic.Int64  // records since the last one that was written
}

func newLogHandler(h slog.Handler) *logHandler {
	return &logHandler{Handler: h, turn: make(chan struct{}, 1)}
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	select {
	case h.turn <- struct{}{}: // the usual case needs no timer
	default:
		wait := logPatience
		if h.lost.Load() > 0 {
			wait = 0 // an earlier record has already waited for this writer
		}
		select {
		case h.turn <- struct{}{}:
		case <-time.After(wait):
			h.lost.Add(1)
			return nil
		}
	}
	defer func() { <-h.turn }()
	if n := h.lost.Swap(0); n > 0 {
		r.AddAttrs(slog.Int64("lost_before", n))
	}
	return h.Handler.Handle(ctx, r)
}
