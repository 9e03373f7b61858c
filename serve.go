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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"userd/internal/certs"
	"userd/internal/netlisten"
	"userd/internal/passhash"
)

// collectAt is GOGC where the environment does not set it: how many percent the
// heap grows before garbage is collected. A server's heap is a few MB, and at
// Go's 100 it is collected after every few hundred requests, for 15 % of their
// cost. At 400 it is 20 MB.
const collectAt = 400

// The Go runtime collects more often than that so as to stay within these bytes.
// They are more than all connections and all cores hold at once when strangers
// make them hold what they can: less would turn that into endless collecting.
const (
	memoryGoal    = 128 << 20
	memoryPerCore = 64 << 20 // three of our hashes; adopted ones may take more
)

// serve runs the server until ctx ends.
func serve(ctx context.Context, c config, stderr io.Writer) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryGoal + memoryPerCore*int64(runtime.GOMAXPROCS(0)))
	}
	log := c.logger(stderr)
	signal.Ignore(syscall.SIGPIPE) // who reads the log may go: that loses lines, and must not end userd
	kind, err := inspect(ctx, c.database)
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // it means to read the certificate again, and without one nothing
	defer signal.Stop(hangup)
	https, err := newHTTPS(&c, hangup, log)
	if err != nil {
		return err
	}
	// The port comes first: where it is taken, another userd may hold the file.
	listener, err := netlisten.Listen(c.addr)
	if errors.Is(err, netlisten.ErrSocket) {
		return usagef("%v", err)
	}
	if err != nil {
		return err
	}
	defer listener.Close()
	defer https.close()
	if err := https.listen(c.addr); err != nil {
		return err
	}
	var metricsListener net.Listener // nil: there is none
	if c.metricsAddr != "" {
		if metricsListener, err = net.Listen("tcp", c.metricsAddr); err != nil {
			return err
		}
		defer metricsListener.Close()
	}
	for setting, secret := range map[string][]byte{c.secretFrom: c.secret, "JWT_SECRET_KEY_PREVIOUS": c.previousSecret} {
		why := weakSecret(secret)
		if why == "" {
			continue
		}
		if !isLoopback(listener.Addr()) {
			return usagef("%s: %s", setting, why)
		}
		log.Warn(why+": fine only while nobody else can reach this address", "setting", setting)
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
	told := make(chan time.Time, 1) // to stop
	context.AfterFunc(ctx, func() { told <- time.Now() })
	err = serveStore(ctx, c, log, listener, metricsListener, https, st)
	if err := errors.Join(err, st.close()); err != nil {
		return err
	}
	log.Info("stopped", "took_ms", time.Since(<-told).Milliseconds())
	return nil
}

// monotonic returns a clock that tells the time since now. No one can set it, so
// a step of the wall clock neither lifts a limit nor makes it longer.
func monotonic() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// serveStore serves an open database until ctx ends and the last request is
// done. metricsListener may be nil.
func serveStore(ctx context.Context, c config, log *slog.Logger, listener, metricsListener net.Listener, https *httpsSetup, st *store) error {
	keys, err := loadKeys(ctx, st, &c, time.Now().Unix())
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
	go func() { served <- https.serve(httpServer, netlisten.Limit(listener, maxConnections)) }()
	log.Info("serving", "url", https.scheme()+"://"+listener.Addr().String(), "database", c.database, "signing_key", c.secretFrom)
	if metricsListener != nil {
		metricsServer := newHTTPServer(s.monitor())
		metricsServer.ConnState = nil // they are not counted
		go func() { served <- metricsServer.Serve(netlisten.Limit(metricsListener, maxMonitors)) }()
		defer metricsServer.Close() // when the last request is done: until then it tells how that goes
		log.Info("serving metrics", "url", "http://"+metricsListener.Addr().String())
	}
	if err := netlisten.Notify("READY=1"); err != nil {
		log.Warn("could not notify systemd", "state", "READY=1", "err", err)
	}

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
	background.Go(func() {
		if err := https.run(ctx); err != nil {
			served <- err
		}
	})
	background.Go(func() {
		if found, err := st.checkIntegrity(ctx); err != nil && ctx.Err() == nil {
			log.Error("the database could not be checked", "err", err)
		} else if err == nil && found != "ok" {
			s.stats.damaged.Store(true)
			log.Error("the database is damaged: restore a copy", "found", found)
		}
		if n, err := st.unknownHashes(ctx); err == nil && n > 0 {
			log.Warn("some users have a password hash in no known form and cannot log in", "users", n)
		}
	})

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.health.draining.Store(true)
	log.Info("stopping")
	if err := netlisten.Notify("STOPPING=1"); err != nil {
		log.Warn("could not notify systemd", "state", "STOPPING=1", "err", err)
	}
	// Serve returns as soon as Shutdown begins; the requests are done when Shutdown returns.
	drain, cancelDrain := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancelDrain()
	if err := httpServer.Shutdown(drain); err != nil {
		log.Warn("some requests did not end in time and were cut off", "after", drainTimeout)
		httpServer.Close()
	}
	return nil
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
	web := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         s.noteState,
		ConnContext:       netlisten.ConnContext,
		HTTP2:             http2Bounds,

		DisableGeneralOptionsHandler: true,                                                // OPTIONS * is answered like any other
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // strangers' broken connections
	}
	web.RegisterOnShutdown(s.feed.stop)
	return web
}

// sweepSessions deletes sessions that are over, a few at a time, until ctx ends.
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
				log.Warn("sessions that are over could not be deleted", "err", err)
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

// logger returns the log, in text for people and in JSON for programs.
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

// logPatience is how long a record of the log waits for the one that is being written.
const logPatience = time.Second

// A logHandler gives a record up where the one before is not taken: a pipe that
// somebody holds and does not read, as a collector of logs that hangs, would else
// stop each request that has something to log, and the end of the server too.
// It stops the one that writes. The next record that is written tells how many
// were lost.
type logHandler struct {
	slog.Handler
	turn chan struct{} // holds whoever writes
	lost atomic.Int64  // since the last one that was written
}

func newLogHandler(h slog.Handler) *logHandler {
	return &logHandler{Handler: h, turn: make(chan struct{}, 1)}
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	select {
	case h.turn <- struct{}{}: // without a timer, as nearly always
	default:
		wait := logPatience
		if h.lost.Load() > 0 {
			wait = 0 // others have waited for this one
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
