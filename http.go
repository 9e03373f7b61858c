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
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/cors"
	"userd/internal/headers"
	"userd/internal/logging"
	"userd/internal/netlisten"
	"userd/internal/param"
	"userd/internal/prom"
	"userd/internal/reqbody"
	"userd/internal/strictjson"
	"userd/internal/throttle"
)

// Limits of each connection, of which a stranger can open many.
const (
	headerTimeout  = 5 * time.Second   // for a request's header to arrive
	requestTimeout = 10 * time.Second  // for the header and the body
	writeTimeout   = 20 * time.Second  // for an answer, or one part of a long one
	idleTimeout    = 150 * time.Second // between requests; proxies keep connections for 60 to 120 s, and answer 502 if userd closes first
	maxHeader      = 12 << 10          // bytes; net/http adds 4 KiB
)

// Limits of the server.
const (
	maxConnections = 4096
	drainTimeout   = 7 * time.Second // for the running requests when the server stops
)

// Limits of the bodies of requests.
const (
	maxBody        = 64 << 10 // bytes; two passwords written in escapes need 12 KiB
	smallBody      = 8 << 10  // bytes; a longer body is large
	maxLargeBodies = 256      // that are read concurrently
)

// http2Bounds limit each HTTP/2 connection. With the defaults of net/http, a
// stranger could fill 2 MiB per connection.
var http2Bounds = &http.HTTP2Config{
	MaxConcurrentStreams:          8, // a client with more requests waits, or opens another connection
	MaxReadFrameSize:              16 << 10,
	MaxReceiveBufferPerConnection: maxBody,
	MaxReceiveBufferPerStream:     maxBody,
	WriteByteTimeout:              writeTimeout,
}

// An exchange is one request and its answer.
type exchange struct {
	http.ResponseWriter
	r       *http.Request
	conn    *netlisten.Conn // nil in tests without a netlisten.Listener
	id      string          // X-Request-Id; a trusted proxy may choose it
	address string          // of the client
	who     principal       // who.id is 0 until the request is authenticated
	target  int64           // the user that the path's {id} or a login's name refers to

	// Only for the log line.
	logUser int64  // the user that sent the request; 0: unknown
	name    string // the username of a login; logged only if it fails

	routed        bool            // the mux found a route
	proof         proof           // the acts of the route that require proof
	renewed       bool            // the caller's token is the proof for an act of renewedOnly
	stamp         *int64          // auth_stamp when the caller's password proved its acts
	requiresProof bool            // an API key does an act that requires proof
	cookie        bool            // the refresh token is in the cookie, not in the body
	scopes        []keyScope      // of the API keys that may use the route
	limit         limit           // of the route
	counted       bool            // the request counts toward the limit of the route
	stats         *stats          // of the server
	counters      *prom.Route     // of the route; until the mux finds one, of requests without a route
	bodies        *reqbody.Reader // of the server
	status        int             // of the answer; 0: not yet sent
	err           error           // why the request failed; nil: it did not fail
}

// A principal is the user of a request, proven by an access token of a session or by an API
// key.
type principal struct {
	user
	session int64
	token   tokenID
	fresh   bool  // a login made the token, not a refresh
	issued  int64 // when the token was made
	factor  bool  // the user has a second factor, and proved it in this session
	otp     bool  // the token says so: its login proved the factor

	key          int64 // the id of the API key; 0: an access token, and the fields below are not set
	scope        keyScope
	keyReadAt    int64 // when the row of the key was read, in Unix seconds
	factorExempt bool  // from REQUIRE_FACTOR: the user has a second factor or is a service user
}

// A limit names an allowance of a limiter. limits.go lists them.
type limit int

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// Header values, allocated once.
var (
	jsonType    = []string{"application/json; charset=utf-8"}
	problemType = []string{"application/problem+json"}
	noSniff     = []string{"nosniff"}
	noStore     = []string{"no-store"}
	lastAnswer  = []string{"close"}            // HTTP/2: net/http sends GOAWAY instead
	onlyHTTPS   = []string{"max-age=31536000"} // RFC 6797: for a year, browsers use only HTTPS
)

// ServeHTTP answers every request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := netlisten.FromContext(r.Context())
	if c != nil && !c.BeginRequest() {
		// Only HTTP/2. A 503 could wait for its client, and nothing would bound how many do.
		s.stats.unrouted.Observe(r.Method, http.StatusServiceUnavailable, 0)
		panic(http.ErrAbortHandler) // resets the stream
	}
	address, id := clientaddr.Proxies(s.trustedProxies).Origin(r)
	if id == "" {
		id = hex.EncodeToString(binary.BigEndian.AppendUint64(nil, rand.Uint64()))
	}
	x := &exchange{
		ResponseWriter: w,
		r:              r,
		id:             id,
		address:        address,
		stats:          s.stats,
		counters:       s.stats.unrouted,
		bodies:         s.bodies,
	}
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
				p = http.ErrAbortHandler // a part of an answer must not look like all of it
			}
		}
		x.counters.Observe(r.Method, x.status, time.Since(start))
		s.logRequest(x, start)
		if p != nil {
			panic(p)
		}
	}()
	if c != nil {
		defer c.EndRequest() // net/http then waits for the client to send the rest of the body and, for HTTP/1, to read the answer
		x.conn = c
		if c.ShouldClose() {
			header["Connection"] = lastAnswer
		}
	}
	if x.routed = len(s.corsOrigins) > 0 && publicAPI.Allow(header, r, s.corsOrigins); x.routed { // a preflight request
		x.WriteHeader(http.StatusNoContent)
		return
	}
	s.mux.ServeHTTP(x, r)
}

// publicAPI is what pages of the configured origins may use. The headers that a page may send
// are those that userd reads, and those that tracing and libraries in the page add to every
// request. Pages of other origins cannot use the cookie of the console: they send a token.
var publicAPI = &cors.API{
	Methods: "GET, POST, PUT, PATCH, DELETE",
	Accepts: "Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID, " +
		"X-Requested-With, X-Request-Id, Traceparent, Tracestate, Baggage, Sentry-Trace",
	Exposes: "ETag, Link, Location, Retry-After, X-Request-Id",
}

// WriteHeader sends the status. The mux answers in plain text if no route matches;
// WriteHeader turns that into an answer in JSON.
func (x *exchange) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	if !x.routed {
		x.routed = true
		if status == http.StatusMethodNotAllowed {
			x.fail(errMethod)
		} else {
			x.Header().Del("Location") // the mux redirects to a clean path
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

// Write sends a part of the body. It discards the body of the mux's own answers.
func (x *exchange) Write(p []byte) (int, error) {
	if x.err != nil {
		return len(p), nil
	}
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	return x.write(p)
}

// write sends a part of the body.
func (x *exchange) write(p []byte) (int, error) {
	return x.conn.WriteAnswer(x.ResponseWriter, x.r, p)
}

// setLength sets the Content-Length of an answer whose body is one write of n bytes. For
// HTTP/1, net/http does it.
func (x *exchange) setLength(n int) {
	if x.r.ProtoMajor == 2 {
		x.Header()["Content-Length"] = []string{strconv.Itoa(n)}
	}
}

// send answers with a status and a body, which is JSON unless the handler has set
// another type. Its error is a context.Canceled: the client has gone, or reads too
// slowly.
func (x *exchange) send(status int, body []byte) error {
	x.setLength(len(body))
	return x.sendPart(status, body)
}

// sendPart is send for a part of a body. Only the first part sends the status.
func (x *exchange) sendPart(status int, body []byte) error {
	x.WriteHeader(status)
	if _, err := x.write(body); err != nil {
		return fmt.Errorf("%w: answering: %w", context.Canceled, err)
	}
	return nil
}

// sendNothing answers 204.
func (x *exchange) sendNothing() error {
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// sendMessage answers with a text for people. sendMessage escapes nothing, so the text must be valid
// in a JSON string.
func (x *exchange) sendMessage(status int, text string) error {
	return x.send(status, []byte(`{"message":"`+text+`"}`+"\n"))
}

// sendJSON answers with v.
func (x *exchange) sendJSON(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.send(status, append(body, '\n'))
}

// A failure is the body of an answer that reports an error.
type failure struct {
	Error  string            `json:"error"`
	Code   string            `json:"code"`
	Fields map[string]string `json:"fields,omitempty"`
	*factorChallenge

	// Only if the client accepts RFC 9457. The type is the default, about:blank.
	Title  string `json:"title,omitempty"`
	Status int    `json:"status,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// fail answers with an error. It breaks the connection if the answer has begun.
func (x *exchange) fail(err error) {
	x.err = err
	if x.status != 0 {
		panic(http.ErrAbortHandler) // too late for another status
	}
	a := answerFor(err)
	body := failure{Error: a.text, Code: a.code}
	if d, ok := errors.AsType[*detailedError](err); ok {
		body.Error, body.Fields, body.factorChallenge = d.text, d.fields, d.factorChallenge
	}
	header := x.Header()
	header["Content-Type"] = jsonType // the mux has set its own
	switch a.status {
	case http.StatusUnauthorized:
		header["Www-Authenticate"] = []string{challenge(err)}
	case http.StatusForbidden:
		if errors.Is(err, errKeyScope) {
			header["Www-Authenticate"] = []string{`Bearer error="insufficient_scope"`} // RFC 6750 section 3.1
		}
	case http.StatusServiceUnavailable:
		header["Retry-After"] = []string{"1"}
	}
	if l, ok := errors.AsType[*throttle.Limited](err); ok {
		x.stats.limited.Add(l.By)
		header["Retry-After"] = []string{strconv.FormatInt(int64((l.Wait+time.Second-1)/time.Second), 10)}
	}
	if headers.Accepts(x.r, "Accept", "application/problem+json") { // RFC 9457
		header["Content-Type"] = problemType
		body.Title, body.Status, body.Detail = http.StatusText(a.status), a.status, body.Error
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and a number cannot fail
	}
	text = append(text, '\n')
	x.setLength(len(text))
	x.status = a.status
	x.ResponseWriter.WriteHeader(a.status)
	x.write(text) // it does not matter if the client has gone
}

// challenge returns the WWW-Authenticate header of a 401 (RFC 6750 section 3).
func challenge(err error) string {
	for _, bad := range []error{errBadToken, errExpiredToken, errExpiredKey, errSessionEnded, errReused} {
		if errors.Is(err, bad) {
			return `Bearer error="invalid_token"`
		}
	}
	if errors.Is(err, errNotFresh) {
		return fmt.Sprintf(`Bearer error="insufficient_user_authentication", max_age="%d"`, proofAge) // RFC 9470 section 3: a refresh would not help
	}
	return "Bearer"
}

// logRequest logs a request. The level of a successful read is debug, since there
// are many of them and few matter.
func (s *server) logRequest(x *exchange, start time.Time) {
	level := slog.LevelInfo
	switch {
	case x.err != nil && answerFor(x.err).status == http.StatusInternalServerError, errors.Is(x.err, errStorage) && !errors.Is(x.err, context.Canceled):
		level = slog.LevelError
	case errors.Is(x.err, errNotReady): // readyz has logged the reason once
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
		slog.String("client", x.address),
	)
	if x.r.Pattern == "" {
		attrs = append(attrs, slog.String("path", shorten(logging.Path(x.r.URL.Path))))
	}
	if x.logUser != 0 {
		attrs = append(attrs, slog.Int64("user", x.logUser))
	}
	if x.target != 0 && x.target != x.logUser {
		attrs = append(attrs, slog.Int64("target", x.target))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("code", answerFor(x.err).code))
		if x.name != "" {
			attrs = append(attrs, slog.String("name", x.name))
		}
		if l, ok := errors.AsType[*throttle.Limited](x.err); ok {
			attrs = append(attrs, slog.String("limit", l.By))
		}
	}
	if level == slog.LevelError {
		attrs = append(attrs, slog.String("err", x.err.Error()))
	}
	s.log.LogAttrs(context.Background(), level, "request", attrs...)
}

// body returns the request's body, which must be JSON. See bodyOf.
func (x *exchange) body() ([]byte, error) { return x.bodyOf("application/json") }

// bodyOf returns the request's body, of at most maxBody bytes. It returns errMediaType if
// the request does not say that this has the media type, or an error of reqbody.Reader.
func (x *exchange) bodyOf(required string) ([]byte, error) {
	if !reqbody.HasType(x.r, required) {
		return nil, errMediaType.with("Send Content-Type: %s", required)
	}
	defer x.conn.Await(0)()
	return x.bodies.Read(x.ResponseWriter, x.r)
}

// optionalBody is body, but returns an empty object if the request has no body.
func (x *exchange) optionalBody() ([]byte, error) {
	done := x.conn.Await(0)
	exists := reqbody.Exists(x.r)
	done()
	if !exists {
		return []byte("{}"), nil
	}
	return x.body()
}

// decode reads the results of body or optionalBody as a T, a struct as
// strictjson.Unmarshal requires it. It returns err if that is not nil.
func decode[T any](body []byte, err error) (in T, _ error) {
	if err != nil {
		return in, err
	}
	return in, strictjson.Unmarshal(body, &in)
}

// query returns the query parameters, or an error of param.Query.
func (x *exchange) query(names ...string) (url.Values, error) {
	return param.Query(x.r.URL.RawQuery, names...)
}

// page returns the part of a list that the query asks for, or an error of param.ParsePage. The
// query may also have the named parameters.
func (x *exchange) page(names ...string) (param.Page, error) {
	return param.ParsePage(x.r.URL.RawQuery, maxLimit, names...)
}

const (
	maxLimit     = 1000 // elements of a list on one page, at most
	defaultLimit = 100  // elements on a page of events, invitations or mails if the client sets no limit
)

// sendPage answers with the first limit elements of a list that was read for a page. If the list
// has more, the header Link leads to the next page, which starts after the id of the last element
// on this one.
func sendPage[T any](x *exchange, p *param.Page, limit int64, list []T, id func(*T) int64) error {
	if int64(len(list)) > limit {
		list = list[:limit]
		x.Header().Set("Link", p.LinkNext(x.r.URL.Path, id(&list[limit-1])))
	}
	return x.sendJSON(http.StatusOK, list)
}

// caller returns the principal of x as the caller of a write.
func (x *exchange) caller() caller {
	kind := sessionCaller
	if x.who.key != 0 {
		kind = keyCaller
	}
	return caller{
		kind:          kind,
		user:          x.who.id,
		session:       x.who.session,
		key:           x.who.key,
		address:       x.address,
		token:         x.who.token,
		renewed:       x.renewed,
		stamp:         x.stamp,
		keyReadAt:     x.who.keyReadAt,
		requiresProof: x.requiresProof,
	}
}
