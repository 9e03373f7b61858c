package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	maxBody = 64 << 10 // bytes of a request's body; two passwords of escapes alone take 12 KiB
	// Longer bodies than smallBody are read so many at once: else all connections
	// together could make userd hold maxBody each, by never sending the last byte.
	smallBody      = 8 << 10
	maxLargeBodies = 256
)

// A server answers HTTP. Its parts are set once, by newServer.
type server struct {
	settings
	store     *store
	hasher    *hasher
	keys      *keyring
	refresher *refresher
	limiter   *limiter // nil: RATE_LIMIT=off
	feed      *feed
	log       *slog.Logger
	now       func() time.Time
	mux       *http.ServeMux
	stats     *stats
	health    *health
	large     chan struct{} // bodies over smallBody that are being read
}

// Settings are what the configuration says of how requests are answered.
type settings struct {
	accessTTL      time.Duration
	refreshTTL     time.Duration
	registration   registration
	directory      directory
	trustedProxies []netip.Prefix
	corsOrigins    []string
	rateLimit      rateLimit
}

func newServer(c settings, st *store, h *hasher, keys *keyring, r *refresher, log *slog.Logger, now func() time.Time) *server {
	s := &server{c, st, h, keys, r, nil, newFeed(), log, now, http.NewServeMux(), newStats(st), newHealth(st), make(chan struct{}, maxLargeBodies)}
	if c.rateLimit == rateLimitOn {
		s.limiter = newLimiter()
	}
	for _, rt := range s.routes() {
		s.handle(rt)
	}
	return s
}

// handle makes the mux answer a route: the guard first, then its handler.
func (s *server) handle(rt route) {
	stats := s.stats.route(rt.pattern)
	s.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
		x := w.(*exchange)
		x.r = r // with the path's values
		x.routed = true
		x.stats = stats
		err := s.admit(x, rt.access)
		if err == nil {
			err = rt.handle(x)
		}
		if err != nil {
			x.fail(err)
		}
	})
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

// clientAddress returns the address of the client: the peer's or, where the
// peer is a trusted proxy, the last address of X-Forwarded-For that is not one.
// What stands to the left of it is the client's own invention.
func (s *server) clientAddress(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	if len(s.trustedProxies) == 0 {
		return host
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	forwarded := strings.Join(r.Header["X-Forwarded-For"], ",")
	for s.isTrusted(address) && forwarded != "" {
		i := strings.LastIndexByte(forwarded, ',')
		hop := strings.TrimSpace(forwarded[i+1:])
		next, err := netip.ParseAddr(hop)
		if err != nil { // some proxies add the port
			withPort, err := netip.ParseAddrPort(hop)
			if err != nil {
				break
			}
			next = withPort.Addr()
		}
		address = next
		forwarded = forwarded[:max(i, 0)]
	}
	return address.Unmap().String()
}

func (s *server) isTrusted(address netip.Addr) bool {
	address = address.Unmap().WithZone("") // a prefix has no zone
	for _, p := range s.trustedProxies {
		if p.Contains(address) {
			return true
		}
	}
	return false
}

// body returns the request's body: JSON, at most maxBody.
func (x *exchange) body() ([]byte, error) {
	mediaType, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" || x.r.Header.Get("Content-Encoding") != "" {
		return nil, errMediaType
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return nil, errMediaType
	}
	// Refused by its length before a byte is read, it is not invited by 100 Continue.
	if x.r.ContentLength > maxBody {
		return nil, errTooLarge
	}
	defer x.awaitClient()()
	body := http.MaxBytesReader(x.ResponseWriter, x.r.Body, maxBody)
	data, err := io.ReadAll(io.LimitReader(body, smallBody+1))
	if err == nil && len(data) > smallBody {
		select {
		case x.s.large <- struct{}{}:
			defer func() { <-x.s.large }()
		default:
			return nil, errBusy
		}
		var rest []byte
		rest, err = io.ReadAll(body)
		data = append(data, rest...)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, errTooLarge
	case err != nil:
		return nil, &fault{kind: errMalformedBody, text: "The body did not arrive whole"}
	}
	return data, nil
}

// hasBody reports whether the request came with a body. One of unknown length
// may turn out to be empty.
func (x *exchange) hasBody() bool {
	if x.r.ContentLength >= 0 {
		return x.r.ContentLength > 0
	}
	defer x.awaitClient()()
	first := make([]byte, 1)
	n, _ := io.ReadFull(x.r.Body, first) // an error will come again
	x.r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(first[:n]), x.r.Body), x.r.Body}
	return n > 0
}

// decode reads the request's body into a T, a struct whose fields have json
// tags. It is stricter than encoding/json: exactly one object of valid UTF-8,
// no member twice, none unknown or in another case, none null unless its field
// is a json.RawMessage, no NUL and no half of a surrogate pair in a string.
// Where programs differ in what they make of a text, one checks what another
// uses.
func decode[T any](x *exchange) (in T, err error) {
	data, err := x.body()
	if err != nil {
		return in, err
	}
	return in, decodeBody(data, &in)
}

func decodeBody(data []byte, in any) error {
	t := reflect.TypeOf(in).Elem()
	err := eachMember(data, func(name string, value []byte) error {
		i := 0
		for i < t.NumField() && t.Field(i).Tag.Get("json") != name {
			i++
		}
		if i == t.NumField() {
			return &fault{kind: errUnknownMember, text: fmt.Sprintf("The body has the member %q, which this route does not know", shorten(name))}
		}
		if t.Field(i).Type == reflect.TypeFor[json.RawMessage]() {
			return nil
		}
		if string(value) == "null" {
			return wrongType(name, t.Field(i).Type)
		}
		if value[0] == '"' && hasBadEscape(value) {
			return &fault{kind: errMalformedBody, text: fmt.Sprintf("The member %q holds an escape that is no character", name)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, in)
	var mistyped *json.UnmarshalTypeError
	if errors.As(err, &mistyped) {
		return wrongType(mistyped.Field, mistyped.Type)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformedBody, err)
	}
	return nil
}

// hasBadEscape reports whether a valid JSON string escapes a NUL or half of a
// surrogate pair. encoding/json would make U+FFFD of the half, and one password
// of many.
func hasBadEscape(value []byte) bool {
	for i := 0; i < len(value); i++ {
		if value[i] != '\\' {
			continue
		}
		if i++; value[i] != 'u' {
			continue
		}
		r := hexRune(value[i+1:])
		i += 4
		if utf16.IsSurrogate(r) {
			if !bytes.HasPrefix(value[i+1:], []byte(`\u`)) || utf16.DecodeRune(r, hexRune(value[i+3:])) == utf8.RuneError {
				return true
			}
			i += 6
		}
		if r == 0 {
			return true
		}
	}
	return false
}

// hexRune returns the code unit that the four hexadecimal digits of an escape name.
func hexRune(digits []byte) rune {
	n, err := strconv.ParseUint(string(digits[:4]), 16, 16)
	if err != nil {
		panic(err) // of valid JSON
	}
	return rune(n)
}

func wrongType(name string, t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	want := map[reflect.Kind]string{reflect.String: "a string", reflect.Bool: "true or false"}[t.Kind()]
	return &fault{
		kind:   errWrongType,
		text:   fmt.Sprintf("The member %q must be %s", name, want),
		fields: map[string]string{name: "must be " + want},
	}
}

// shorten cuts what a client sent to what an error should repeat of it.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// maxMembers bounds the search for a member that stands twice.
const maxMembers = 64

// eachMember calls f with the name and the JSON text of each member of the one
// object that data is. It refuses what is not valid JSON in valid UTF-8, and a
// name that stands twice: parsers differ in which of the two they take
// (RFC 8259 section 4).
func eachMember(data []byte, f func(name string, value []byte) error) error {
	if len(data) == 0 {
		return &fault{kind: errMalformedBody, text: "The body is empty"}
	}
	if !utf8.Valid(data) {
		return &fault{kind: errMalformedBody, text: "The body is not valid UTF-8"}
	}
	if !json.Valid(data) {
		return &fault{kind: errMalformedBody, text: "The body is not valid JSON"}
	}
	// From here on the syntax is known to be right; what is left is to find the ends.
	rest := bytes.TrimLeft(data, " \t\r\n")
	if rest[0] != '{' {
		return errMalformedBody
	}
	var seen [maxMembers]string
	for n := 0; ; n++ {
		rest = bytes.TrimLeft(rest[1:], " \t\r\n") // after { or ,
		if rest[0] == '}' {
			return nil
		}
		end := valueEnd(rest)
		name := unquoteName(rest[:end])
		if n == maxMembers {
			return &fault{kind: errMalformedBody, text: "The body has too many members"}
		}
		for _, s := range seen[:n] {
			if s == name {
				return &fault{kind: errDuplicateMember, text: fmt.Sprintf("The member %q appears twice in the body", shorten(name))}
			}
		}
		seen[n] = name
		rest = bytes.TrimLeft(rest[end:], " \t\r\n")
		rest = bytes.TrimLeft(rest[1:], " \t\r\n") // after :
		end = valueEnd(rest)
		if err := f(name, rest[:end]); err != nil {
			return err
		}
		rest = bytes.TrimLeft(rest[end:], " \t\r\n")
		if rest[0] == '}' {
			return nil
		}
	}
}

func unquoteName(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var name string
	json.Unmarshal(quoted, &name) // a valid string of a valid text
	return name
}

// valueEnd returns the length of the value that valid JSON begins with.
func valueEnd(data []byte) int {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
			continue
		default: // within a number or a word
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(data)
}
