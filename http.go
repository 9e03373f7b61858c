package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds on what one connection may take; a stranger can open many.
const (
	headerTimeout  = 5 * time.Second  // for a request's header to arrive
	requestTimeout = 10 * time.Second // and its body too
	writeTimeout   = 20 * time.Second // for an answer, or one part of a long one
	idleTimeout    = 60 * time.Second // between requests
	maxHeader      = 12 << 10         // bytes; net/http lets in 4 KiB more
	maxConnections = 4096
	drainTimeout   = 7 * time.Second // for requests that run when the server is told to stop
)

// http2Bounds are what one HTTP/2 connection may take. The defaults of net/http
// let each of a stranger's connections fill 2 MiB.
var http2Bounds = &http.HTTP2Config{
	MaxConcurrentStreams:          16, // at once; a client with more to ask waits, or opens another connection
	MaxReadFrameSize:              16 << 10,
	MaxReceiveBufferPerConnection: maxBody,
	MaxReceiveBufferPerStream:     maxBody,
	WriteByteTimeout:              writeTimeout,
}

// An exchange is one request and its answer on the way through the server.
type exchange struct {
	http.ResponseWriter
	r      *http.Request
	s      *server
	conn   *limitedConn // nil: in tests
	id     string       // X-Request-Id
	who    principal    // who.id is 0 where nobody has signed in
	target int64        // the user that the path's {id} names
	name   string       // the username of target, where a login failed
	routed bool         // the mux found a route
	stats  *routeStats
	status int   // of the answer; 0: not begun
	err    error // why the request failed
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// The header values that every answer has, made once.
var (
	jsonType    = []string{"application/json; charset=utf-8"}
	problemType = []string{"application/problem+json"}
	noSniff     = []string{"nosniff"}
	noStore     = []string{"no-store"}
	lastAnswer  = []string{"close"}            // in HTTP/2 net/http sends GOAWAY instead
	onlyHTTPS   = []string{"max-age=31536000"} // RFC 6797: for a year, browsers come by HTTPS or not at all
)

// ServeHTTP is the way in for every request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{ResponseWriter: w, r: r, s: s, stats: s.stats.unrouted, id: requestID()}
	header := w.Header()
	header["Content-Type"] = jsonType
	header["X-Content-Type-Options"] = noSniff
	header["Cache-Control"] = noStore
	header["X-Request-Id"] = []string{x.id}
	if r.TLS != nil {
		header["Strict-Transport-Security"] = onlyHTTPS
	}

	defer func() {
		p := recover()
		if p != nil && p != http.ErrAbortHandler {
			x.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			if x.status == 0 {
				x.fail(x.err)
				p = nil
			} else {
				p = http.ErrAbortHandler // half an answer must not look whole
			}
		}
		x.stats.observe(r.Method, x.status, time.Since(start))
		s.logRequest(x, start)
		if p != nil {
			panic(p)
		}
	}()
	if c, _ := r.Context().Value(connKey{}).(*limitedConn); c != nil {
		if !c.begin() {
			x.fail(errBusy)
			return
		}
		defer c.end() // from here on net/http waits for the client: for the rest of a body that nobody has read, then for it to take the answer
		x.conn = c
		if c.l.short.Load() {
			header["Connection"] = lastAnswer
		}
	}
	if len(s.corsOrigins) > 0 && s.cors(x) {
		return
	}
	s.mux.ServeHTTP(x, r)
}

// requestID returns 16 hexadecimal digits that no other request of these days has.
func requestID() string {
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	return hex.EncodeToString(id[:])
}

// cors lets pages of the listed origins read the answers and ask beforehand
// whether they may send a request (https://fetch.spec.whatwg.org/#http-cors-protocol);
// it reports whether that question was all. Cookies are not spoken of: userd
// has none, and a page must hold the token that it sends.
func (s *server) cors(x *exchange) (preflight bool) {
	header := x.Header()
	header["Vary"] = []string{"Origin"}
	origin := x.r.Header.Get("Origin")
	if !slices.Contains(s.corsOrigins, origin) {
		return false
	}
	header["Access-Control-Allow-Origin"] = []string{origin}
	if x.r.Method != http.MethodOptions || x.r.Header.Get("Access-Control-Request-Method") == "" {
		header["Access-Control-Expose-Headers"] = []string{"ETag, Link, Location, Retry-After, X-Request-Id"}
		return false
	}
	header["Access-Control-Allow-Methods"] = []string{"GET, POST, PUT, PATCH, DELETE"}
	header["Access-Control-Allow-Headers"] = []string{"Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID"}
	header["Access-Control-Max-Age"] = []string{"600"}
	x.routed = true
	x.WriteHeader(http.StatusNoContent)
	return true
}

// WriteHeader sends the status. Where the mux answers by itself, in plain
// text, there is no route: it is answered here instead, in JSON.
func (x *exchange) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	if !x.routed {
		x.routed = true
		if status == http.StatusMethodNotAllowed {
			x.fail(errMethod)
		} else {
			x.Header().Del("Location") // of a path that only needs cleaning
			x.fail(errNotFound)
		}
		return
	}
	x.status = status
	if status == http.StatusNoContent {
		delete(x.Header(), "Content-Type")
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body; of an answer by the mux, nothing.
func (x *exchange) Write(p []byte) (int, error) {
	if x.err != nil {
		return len(p), nil
	}
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	return x.write(p)
}

// write sends a part of the body. Before a long one net/http takes the rest of a
// request's body that nobody has read, and in HTTP/2 it waits until the client
// takes more (RFC 9113 section 5.2), with no write to the connection.
func (x *exchange) write(p []byte) (int, error) {
	defer x.awaitClient()()
	return x.ResponseWriter.Write(p)
}

// send answers with a JSON text.
func (x *exchange) send(status int, body []byte) error {
	x.WriteHeader(status)
	_, err := x.write(body)
	if err != nil {
		return fmt.Errorf("%w: answering: %w", context.Canceled, err) // the client has gone, or reads too slowly
	}
	return nil
}

// sendJSON answers with v.
func (x *exchange) sendJSON(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.send(status, append(body, '\n'))
}

// A failure is the body of an answer to an error.
type failure struct {
	Error  string            `json:"error"`
	Code   string            `json:"code"`
	Fields map[string]string `json:"fields,omitempty"`

	// RFC 9457, where it was asked for; its type is then the default, about:blank.
	Title  string `json:"title,omitempty"`
	Status int    `json:"status,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// fail answers with an error: the one place where an error becomes a status.
func (x *exchange) fail(err error) {
	x.err = err
	if x.status != 0 {
		panic(http.ErrAbortHandler) // too late to say so
	}
	a := answerFor(err)
	body := failure{Error: a.text, Code: a.code}
	var f *fault
	if errors.As(err, &f) {
		if f.text != "" {
			body.Error = f.text
		}
		body.Fields = f.fields
	}
	header := x.Header()
	header["Content-Type"] = jsonType // the mux has set its own
	switch a.status {
	case http.StatusUnauthorized:
		header["Www-Authenticate"] = []string{challenge(err)}
	case http.StatusServiceUnavailable:
		header["Retry-After"] = []string{"1"}
	}
	var l *limited
	if errors.As(err, &l) {
		x.s.stats.limited.add(l.by)
		header["Retry-After"] = []string{strconv.FormatInt(int64((l.wait+time.Second-1)/time.Second), 10)}
	}
	if accepts(x.r, "application/problem+json") { // RFC 9457
		header["Content-Type"] = problemType
		body.Title, body.Status, body.Detail = http.StatusText(a.status), a.status, body.Error
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and a number
	}
	x.status = a.status
	x.ResponseWriter.WriteHeader(a.status)
	x.write(append(text, '\n')) // a client that has gone needs no answer
}

// challenge is the WWW-Authenticate of a 401 (RFC 6750 section 3).
func challenge(err error) string {
	for _, bad := range []error{errBadToken, errExpiredToken, errSessionEnded, errReused} {
		if errors.Is(err, bad) {
			return `Bearer error="invalid_token"`
		}
	}
	if errors.Is(err, errNotFresh) {
		return `Bearer error="insufficient_user_authentication"` // RFC 9470 section 3
	}
	return "Bearer"
}

// accepts reports whether the request asks for a media type by name.
func accepts(r *http.Request, mediaType string) bool {
	for _, value := range r.Header["Accept"] {
		for part := range strings.SplitSeq(value, ",") {
			t, params, err := mime.ParseMediaType(part)
			if err != nil || t != mediaType {
				continue
			}
			if q, err := strconv.ParseFloat(params["q"], 64); err != nil || q > 0 { // 0 is a refusal, RFC 9110 section 12.4.2
				return true
			}
		}
	}
	return false
}

// logRequest writes the one line of a request. Reads that went well are many
// and tell little: they are for the level debug.
func (s *server) logRequest(x *exchange, start time.Time) {
	level := slog.LevelInfo
	switch {
	case x.err != nil && answerFor(x.err).status == http.StatusInternalServerError, errors.Is(x.err, errStorage) && !errors.Is(x.err, context.Canceled):
		level = slog.LevelError
	case x.err == errNotReady: // why, readyz has logged once
		level = slog.LevelDebug
	case x.status == http.StatusServiceUnavailable, errors.Is(x.err, errReused):
		level = slog.LevelWarn
	case x.err == nil && (x.r.Method == http.MethodGet || x.r.Method == http.MethodHead):
		level = slog.LevelDebug
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs,
		slog.String("id", x.id),
		slog.String("method", shorten(x.r.Method)),
		slog.String("route", x.r.Pattern),
		slog.Int("status", x.status),
		slog.Int64("took_us", time.Since(start).Microseconds()),
		slog.String("client", s.clientAddress(x.r)),
	)
	if x.who.id != 0 {
		attrs = append(attrs, slog.Int64("user", x.who.id))
	}
	if x.target != 0 && x.target != x.who.id {
		attrs = append(attrs, slog.Int64("target", x.target))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("code", answerFor(x.err).code))
		if x.name != "" {
			attrs = append(attrs, slog.String("name", x.name))
		}
		var l *limited
		if errors.As(x.err, &l) {
			attrs = append(attrs, slog.String("limit", l.by))
		}
	}
	if level == slog.LevelError {
		attrs = append(attrs, slog.String("err", x.err.Error()))
	}
	s.log.LogAttrs(context.Background(), level, "request", attrs...)
}

func utc(unix int64) (t time.Time) {
	if unix != 0 {
		t = time.Unix(unix, 0).UTC()
	}
	return t
}

// noteState is for http.Server.ConnState: it counts the connections.
func (s *server) noteState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.stats.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.stats.connections.Add(-1)
	}
}

// connKey is the key of a request's *limitedConn in its context.
type connKey struct{}

// withConn is for http.Server.ConnContext.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, underlying(conn))
}

// awaitClient notes that a request waits for its client, until done is called.
func (x *exchange) awaitClient() (done func()) {
	if x.conn == nil {
		return func() {}
	}
	x.conn.await()
	return x.conn.goOn
}
