package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	"syscall"
	"time"

	"userd/internal/certs"
	"userd/internal/logging"
	"userd/internal/netlisten"
	"userd/internal/passhash"
	"userd/internal/terminal"
)

// gcPercent is GOGC unless the environment sets it: the percentage by which the
// heap grows before a collection. The heap has a few MB. At Go's default of 100 it
// would be collected every few hundred requests, for 15 % of their CPU time; at 250
// it grows to about 14 MB. At 400, 64 clients that log in need 6 MB more.
const gcPercent = 250

// The Go runtime collects more often if its memory exceeds this number of bytes. It
// is more than strangers can make all connections and cores hold: 4,096 idle connections
// with TLS need up to 250 MB. A lower limit would cause endless collections. The memory of
// the argon2 kernel does not count.
const (
	memoryGoal    = 192 << 20
	memoryPerCore = 64 << 20 // adopted hashes of 100 MiB then need 330 MB on two cores, not 545
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
	signal.Ignore(syscall.SIGPIPE) // userd must not end if the reader of its log does
	kind, err := inspectDatabase(ctx, c.database)
	if err != nil {
		return err
	}
	ctx, hangup, stop := watchHangups(ctx, &c)
	defer stop()
	// Before the database is opened: if the port is in use, another userd may use
	// the file.
	l, err := listen(&c, hangup, log)
	if err != nil {
		return err
	}
	defer l.close()
	development := c.isDevelopment(l.api.Addr(), l.activated)
	c.setPages(development, l.url())
	c.setConsole(development, os.Args[0])
	if err := checkSecrets(&c, development, log); err != nil {
		return err
	}
	mails, err := newOutbox(&c, development, stderr)
	if err != nil {
		return err
	}
	if kind == kindTutorial {
		if err := adopt(ctx, c.database, refuse, func(text string) { log.Info(text) }, nil); err != nil {
			return err
		}
	}
	st, err := openStore(ctx, c.database)
	if err != nil {
		return openError(c.database, err)
	}
	if kind == kindNone { // also if its file was deleted
		log.Info("created an empty database", "database", c.database)
	}
	stopping := make(chan time.Time, 1) // the time at which ctx ended
	context.AfterFunc(ctx, func() { stopping <- time.Now() })
	err = serveStore(ctx, &c, log, l, st, mails)
	if err := errors.Join(err, st.close()); err != nil {
		return err
	}
	log.Info("stopped", "took_ms", time.Since(<-stopping).Milliseconds())
	return nil
}

// watchHangups returns a channel that gets each SIGHUP if the server has
// certificates. Without certificates, the first SIGHUP ends the returned context: a
// server does not outlive its terminal, unless nohup started it. The caller calls
// stop at the end.
func watchHangups(ctx context.Context, c *config) (_ context.Context, hangup <-chan os.Signal, stop func()) {
	if c.tlsCert != "" || len(c.domains) > 0 {
		hangup := make(chan os.Signal, 1)
		signal.Notify(hangup, syscall.SIGHUP)
		return ctx, hangup, func() { signal.Stop(hangup) }
	}
	if signal.Ignored(syscall.SIGHUP) {
		return ctx, nil, func() {}
	}
	ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second SIGHUP ends the process
	return ctx, nil, stop
}

// listeners are the sockets of a server, and the certificates for them.
type listeners struct {
	api          net.Listener
	activated    bool         // systemd opened api
	metrics      net.Listener // nil if METRICS_ADDR is not set
	port80       net.Listener // nil if the certificates are not from ACME
	certificates interface {  // nil for plain HTTP
		TLSConfig() *tls.Config
		Run(ctx context.Context)
	}
	acme *certs.ACME // nil if the certificates are not from ACME
}

// listen opens the addresses of a configuration, or systemd's socket.
func listen(c *config, hangup <-chan os.Signal, log *slog.Logger) (l *listeners, err error) {
	l = new(listeners)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if err := l.setCertificates(c, hangup, log); err != nil {
		return l, err
	}
	l.api, l.activated, err = netlisten.Listen(c.addr)
	if errors.Is(err, netlisten.ErrSocket) {
		return l, usagef("%v", err)
	}
	if err != nil {
		return l, listenError("ADDR (-addr)", err)
	}
	if l.acme != nil {
		if err := l.listenForACME(c.addr); err != nil {
			return l, listenError("HTTPS_DOMAIN (-https-domain)", err)
		}
	}
	if c.metricsAddr != "" {
		if l.metrics, err = net.Listen("tcp", c.metricsAddr); err != nil {
			return l, listenError("METRICS_ADDR (-metrics-addr)", err)
		}
	}
	return l, nil
}

// listenError names the setting in an error about a port, and says what to do about a port
// that is in use, or below 1024.
func listenError(setting string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s: %w: stop the program that listens there, perhaps another userd, or choose another address", setting, err)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && errors.Is(err, fs.ErrPermission) {
		if tcp, ok := op.Addr.(*net.TCPAddr); ok && tcp.Port < 1024 {
			return fmt.Errorf("%s: %w: a port below 1024 needs the capability CAP_NET_BIND_SERVICE (setcap cap_net_bind_service=+ep FILE, or AmbientCapabilities in the systemd unit)", setting, err)
		}
	}
	return fmt.Errorf("%s: %w", setting, err)
}

// setCertificates sets the certificates of TLS_CERT or HTTPS_DOMAIN, if one of them
// is set. Each hangup makes it read the files of TLS_CERT again.
func (l *listeners) setCertificates(c *config, hangup <-chan os.Signal, log *slog.Logger) error {
	switch {
	case c.tlsCert != "":
		files, err := certs.OpenFiles(c.tlsCert, c.tlsKey, hangup, log)
		if err != nil {
			return usagef("TLS_CERT and TLS_KEY: %v", err)
		}
		l.certificates = files
	case len(c.domains) > 0:
		l.acme = certs.NewACME(certs.ACMEOptions{
			Domains:   c.domains,
			Directory: c.acmeDirectory,
			Dir:       filepath.Join(filepath.Dir(c.database), "certs"),
			UserAgent: "userd",
		}, log)
		l.certificates = l.acme
	}
	return nil
}

// listenForACME opens port 80 on the host of addr, and makes the directory for the
// certificates.
func (l *listeners) listenForACME(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if l.port80, err = net.Listen("tcp", net.JoinHostPort(host, "80")); err != nil {
		return err
	}
	return l.acme.MakeDir()
}

func (l *listeners) close() {
	for _, socket := range []net.Listener{l.api, l.metrics, l.port80} {
		if socket != nil {
			socket.Close()
		}
	}
}

// url returns the URL of the API.
func (l *listeners) url() string {
	if l.certificates != nil {
		return "https://" + l.api.Addr().String()
	}
	return "http://" + l.api.Addr().String()
}

// serve is s.ServeTLS with the certificates, or s.Serve for plain HTTP.
func (l *listeners) serve(s *http.Server, api net.Listener) error {
	if l.certificates == nil {
		return s.Serve(api)
	}
	s.TLSConfig = l.certificates.TLSConfig()
	return s.ServeTLS(api, "", "")
}

// maxPort80 is the largest number of connections to port 80. Each is closed after
// one short answer.
const maxPort80 = 256

// keepCertificates keeps the certificates current, and serves port 80 for ACME,
// until ctx ends.
func (l *listeners) keepCertificates(ctx context.Context) error {
	if l.certificates == nil {
		return nil
	}
	if l.acme == nil {
		l.certificates.Run(ctx)
		return nil
	}
	s := &http.Server{
		Handler:        l.acme.HTTPHandler(),
		ReadTimeout:    headerTimeout,
		WriteTimeout:   headerTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // broken connections of strangers
	}
	s.SetKeepAlivesEnabled(false)
	go l.acme.Run(ctx)
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(netlisten.Limit(l.port80, maxPort80)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// checkSecrets refuses weak signing keys, but only warns of them in development.
func checkSecrets(c *config, development bool, log *slog.Logger) error {
	for setting, secret := range map[string][]byte{c.secretFrom: c.secret, c.previousFrom: c.previousSecret} {
		why := weakSecret(secret)
		if why == "" {
			continue
		}
		if !development {
			return usagef("%s: %s", setting, why)
		}
		log.Warn("weak signing key, accepted only in development", "setting", setting, "why", why)
	}
	return nil
}

// monotonic returns a clock of the time since now. It cannot be set, so a step of
// the wall clock neither lifts nor extends a limit.
func monotonic() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// serveStore serves an open database until ctx ends and the running requests are
// done.
func serveStore(ctx context.Context, c *config, log *slog.Logger, l *listeners, st *store, mails *outbox) error {
	keys, err := loadKeys(ctx, st, c, time.Now().Unix())
	if err != nil {
		return err
	}
	if _, err := refreshKey(ctx, st); err != nil { // the first start makes its key
		return err
	}
	if err := st.recordPages(ctx, c.pages); err != nil {
		return err
	}
	hasher := passhash.NewChecked(func(err error) { log.Error("hashing passwords without the argon2 kernel, which is slower", "err", err) })
	s := newServer(c.settings, st, hasher, keys, log, time.Now, monotonic())
	if err := errors.Join(mails.attach(ctx, st, s.stats.mails, time.Now, log), s.checkDataKeys(ctx)); err != nil {
		return err
	}
	httpServer := newHTTPServer(s)
	served := make(chan error, 3)
	go func() { served <- l.serve(httpServer, netlisten.Limit(l.api, maxConnections)) }()
	log.Info("serving", "url", l.url(), "database", c.database, "signing_key", c.secretFrom)
	if l.metrics != nil {
		metricsServer := newHTTPServer(s.monitor())
		metricsServer.ConnState = nil // does not count its connections
		go func() { served <- metricsServer.Serve(netlisten.Limit(l.metrics, maxMonitors)) }()
		defer metricsServer.Close() // after the last request, so that monitoring sees the drain
		log.Info("serving metrics", "url", "http://"+l.metrics.Addr().String())
	}
	notifySystemd("READY=1", log)

	events := chain{st: st}
	defer func() { // after the last request and after keepChain
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalLinkTimeout)
		defer cancel()
		if err := events.extend(limit); err != nil {
			log.Warn("could not link the last events; the next start does it", "err", err)
		}
	}()
	var background sync.WaitGroup
	defer background.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	background.Go(func() { mails.run(ctx) })
	background.Go(func() { deleteExpired(ctx, st, log) })
	background.Go(func() { keepChain(ctx, &events, c.eventRetention, log) })
	background.Go(func() { checkDatabase(ctx, s) })
	background.Go(func() { watchFiles(ctx, st, log) })
	background.Go(func() {
		if err := l.keepCertificates(ctx); err != nil {
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

// checkDatabase reads the entire database once and logs any damage. If the database is sound, it
// then runs keepErasing.
func checkDatabase(ctx context.Context, s *server) {
	findings, err := s.store.checkIntegrity(ctx)
	if len(findings) > 0 {
		s.stats.damaged.Store(true)
		s.log.Error("the database is damaged: restore a copy", "found", strings.Join(findings, "; "))
	} else if err != nil && ctx.Err() == nil {
		s.log.Error("could not check the database", "err", err)
	}
	if n, err := s.store.unknownHashes(ctx); err == nil && n > 0 {
		s.log.Warn("users with an unknown password hash cannot log in", "users", n)
	}
	if len(findings) == 0 && err == nil {
		keepErasing(ctx, s.store, s.log)
	}
}

// drain stops the server. It waits for the running requests, but at most for
// drainTimeout.
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
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // broken connections of strangers
	}
	h.RegisterOnShutdown(s.feed.Stop)
	return h
}

const (
	linkEvery        = time.Second
	finalLinkTimeout = time.Second    // at the end; only the first run after an upgrade can have more to link
	trimEvery        = 24 * time.Hour // not more often, since each trimming adds an event
)

// keepChain links new events, and trims those that are older than retention unless
// that is 0, until ctx ends.
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

// logger returns a log to w. Its default format is text on a terminal, otherwise JSON.
func (c *config) logger(w io.Writer) *slog.Logger {
	format := c.logFormat
	if format == "" {
		format = "json"
		if f, ok := w.(*os.File); ok && terminal.Is(f) {
			format = "text"
		}
	}
	opts := &slog.HandlerOptions{Level: c.logLevel}
	if format == "text" {
		return slog.New(logging.NewHandler(slog.NewTextHandler(w, opts)))
	}
	return slog.New(logging.NewHandler(slog.NewJSONHandler(w, opts)))
}

// watchFiles checks the files of the database every second until ctx ends or a file is
// lost. A restart would begin with an empty database, so the server does not end itself.
func watchFiles(ctx context.Context, st *store, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := st.checkFiles(); err != nil {
				log.Error("refusing writes: put the lost file of the database back, then restart userd", "err", err)
				return
			}
		}
	}
}
