package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"userd/internal/strictjson"
	"userd/internal/validate"
)

const (
	maxBody = 64 << 10 // bytes of a request's body; two passwords written in escapes need 12 KiB
	// At most maxLargeBodies bodies of more than smallBody bytes are read
	// concurrently. Otherwise clients that never send the last byte could make each
	// connection hold maxBody.
	smallBody      = 8 << 10
	maxLargeBodies = 256
)

// body returns the request's body, which must be JSON. See bodyOf.
func (x *exchange) body() ([]byte, error) { return x.bodyOf("application/json") }

// bodyOf returns the request's body, of at most maxBody bytes. It returns errMediaType if
// the request does not say that this has the media type, errTooLarge, errMalformedBody, or
// errBusy if too many large bodies are being read.
func (x *exchange) bodyOf(required string) ([]byte, error) {
	mediaType, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	charset, named := params["charset"]
	if err != nil || mediaType != required || x.r.Header.Get("Content-Encoding") != "" || named && !strings.EqualFold(charset, "utf-8") {
		return nil, errMediaType.with("Send Content-Type: %s", required)
	}
	if x.r.ContentLength > maxBody { // before a read, which would send 100 Continue
		return nil, errTooLarge
	}
	defer x.awaitClient(0)()
	body := http.MaxBytesReader(x.ResponseWriter, x.r.Body, maxBody)
	data, err := io.ReadAll(io.LimitReader(body, smallBody+1))
	if err == nil && len(data) > smallBody {
		select {
		case x.largeBodies <- struct{}{}:
			defer func() { <-x.largeBodies }()
		default:
			return nil, errBusy
		}
		var rest []byte
		rest, err = io.ReadAll(body)
		data = append(data, rest...)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errTooLarge
	}
	if err != nil {
		return nil, errMalformedBody.with("The body is incomplete")
	}
	return data, nil
}

// optionalBody is body, but returns an empty object if the request has no body.
func (x *exchange) optionalBody() ([]byte, error) {
	if x.hasBody() {
		return x.body()
	}
	return []byte("{}"), nil
}

// hasBody reports whether the request has a body. If its length is unknown,
// hasBody reads the first byte.
func (x *exchange) hasBody() bool {
	if x.r.ContentLength >= 0 {
		return x.r.ContentLength > 0
	}
	defer x.awaitClient(0)()
	in := bufio.NewReader(x.r.Body)
	x.r.Body = struct {
		io.Reader
		io.Closer
	}{in, x.r.Body}
	_, err := in.Peek(1)
	return err == nil
}

// awaitClient records that x waits for its client until done is called: to read an answer
// of so many bytes, or to send more if answer is 0.
func (x *exchange) awaitClient(answer int) (done func()) {
	if x.conn == nil {
		return func() {}
	}
	x.conn.AwaitClient(answer)
	return func() { x.conn.Resume(answer) }
}

// decode reads the results of body or optionalBody as a T, a struct as
// strictjson.Unmarshal requires it. It returns err if that is not nil.
func decode[T any](body []byte, err error) (in T, _ error) {
	if err != nil {
		return in, err
	}
	return in, bodyError(strictjson.Unmarshal(body, &in))
}

// bodyError returns the error that tells a client why strictjson refused its
// body. It returns other errors unchanged.
func bodyError(err error) error {
	e, ok := errors.AsType[*strictjson.Error](err)
	if !ok {
		return err
	}
	name := shorten(e.Member)
	switch e.Kind {
	case strictjson.Duplicate:
		return errDuplicateMember.with("The member %q %s in the body", name, e.Text)
	case strictjson.Unknown:
		return errUnknownMember.with("The body has the member %q, which this route does not know", name)
	case strictjson.WrongType:
		err := errWrongType.with("The member %q %s", name, e.Text)
		err.fields = map[string]string{e.Member: e.Text}
		return err
	}
	if e.Member == "" {
		return errMalformedBody.with("The body %s", e.Text)
	}
	return errMalformedBody.with("The member %q %s", name, e.Text)
}

// query returns the query parameters. It returns errBadParameter if one of them
// is not among names or appears twice.
func (x *exchange) query(names ...string) (url.Values, error) {
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, errBadParameter.with("The query is malformed")
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return nil, badParameter(shorten(name), "is unknown")
		}
		if len(values) > 1 {
			return nil, badParameter(name, "appears twice")
		}
	}
	return q, nil
}

func badParameter(name, why string) error {
	err := errBadParameter.with("The query parameter %q %s", name, why)
	err.fields = map[string]string{name: why}
	return err
}

// boolParameter returns the value of a query parameter, or nil if it is absent. It returns
// errBadParameter for a value other than true and false.
func boolParameter(q url.Values, name string) (*bool, error) {
	if !q.Has(name) {
		return nil, nil
	}
	value := q.Get(name)
	if value != "true" && value != "false" {
		return nil, badParameter(name, "must be true or false")
	}
	return new(value == "true"), nil
}

// maxLimit is the largest number of users or events on a page.
const maxLimit = 1000

// pageOf returns the parameters limit and after of a list, 0 for an absent one, or
// errBadParameter.
func pageOf(q url.Values) (limit, after int64, err error) {
	if q.Has("limit") {
		if limit, err = parseID(q.Get("limit")); err != nil || limit > maxLimit {
			return 0, 0, badParameter("limit", fmt.Sprintf("must be from 1 to %d", maxLimit))
		}
	}
	if q.Has("after") && q.Get("after") != "0" {
		if after, err = parseID(q.Get("after")); err != nil {
			return 0, 0, badParameter("after", "must be an id")
		}
	}
	return limit, after, nil
}

// linkNext adds a Link to the next page, which starts after the id last.
func (x *exchange) linkNext(q url.Values, last int64) {
	q.Set("after", strconv.FormatInt(last, 10))
	x.Header().Set("Link", "<"+x.r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
}

var errID = errors.New("not a positive integer in its shortest form")

// parseID reads a positive integer in the form in which strconv writes it, without
// a sign or a leading zero: each number has only one form. Otherwise it returns
// errID.
func parseID(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, errID
	}
	return n, nil
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// ifMatch returns the version of u if the request's If-Match names it, or 0 if the
// request has no If-Match: the change then applies to any version. Otherwise it
// returns errVersion.
func ifMatch(r *http.Request, u *user) (int64, error) {
	tags := r.Header["If-Match"]
	switch {
	case len(tags) == 0:
		return 0, nil
	case matches(tags, u.version):
		return u.version, nil
	}
	return 0, errVersion
}

// matches reports whether tags, the values of If-Match or If-None-Match, name a
// version. A proxy that compresses answers rewrites their tags, and clients send
// back what they got: nginx makes W/"1" of "1", Apache "1-gzip", and Jetty
// "1--gzip". RFC 9110 section 13.1.1 would refuse these in If-Match, since the bytes
// of the answer may differ. Here a tag names the version of a user, not bytes.
func matches(tags []string, version int64) bool {
	want := strconv.FormatInt(version, 10)
	for tag := range strings.SplitSeq(strings.Join(tags, ","), ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" {
			return true
		}
		tag, opened := strings.CutPrefix(strings.TrimPrefix(tag, "W/"), `"`)
		tag, closed := strings.CutSuffix(tag, `"`)
		number, coding, _ := strings.Cut(tag, "-")
		if opened && closed && number == want && (number == tag || slices.Contains(contentCodings, strings.TrimPrefix(coding, "-"))) {
			return true
		}
	}
	return false
}

// contentCodings are those that proxies append to tags.
var contentCodings = []string{"gzip", "br", "zstd", "deflate"}

// unlessSame returns given, or nil if it is the current value.
func unlessSame[T comparable](given *T, current T) *T {
	if given != nil && *given == current {
		return nil
	}
	return given
}

// newName returns a given name or address without spaces around it, or nil if it is
// the current one, which may have them if it was adopted.
func newName(given *string, current string) *string {
	if given == nil || *given == current {
		return nil
	}
	return unlessSame(new(validate.TrimName(*given)), current)
}

// userAgent returns at most 256 bytes of the request's User-Agent, as valid UTF-8.
func userAgent(r *http.Request) string {
	const most = 256
	text := strings.ToValidUTF8(r.UserAgent(), "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

// pathWord matches the segments of a path that are words, versions, file names and
// small numbers. Tokens, e-mail addresses and most passwords are not.
var pathWord = regexp.MustCompile(`^(|[A-Z]?[a-z0-9._-]{0,23}|[A-Z]{1,24})$`)

// loggedPath returns what the log says of a path that is not a route. Segments that
// could be secrets are "…", since a client that puts one into a path by mistake must
// not put it into the log.
func loggedPath(path string) string {
	const most = 8
	segments := strings.SplitN(path, "/", most+1)
	for i, segment := range segments {
		if i == most || !pathWord.MatchString(segment) {
			segments[i] = "…"
		}
	}
	return shorten(strings.Join(segments, "/"))
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

// bearer returns the token of the request's Authorization header (RFC 6750
// section 2.1), or errNoToken. For two headers it returns errBadToken. It ignores the
// case of the scheme (RFC 9110 section 11.1).
func (x *exchange) bearer() (string, error) {
	header := x.r.Header["Authorization"]
	if len(header) > 1 {
		return "", errBadToken
	}
	if len(header) == 1 {
		scheme, token, _ := strings.Cut(header[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimLeft(token, " "), nil
		}
	}
	return "", errNoToken
}

// newTokenID returns the id of the token with a jti, which begins with the generation. The
// jti of a token of an earlier build has none, so its generation is 0.
func newTokenID(jti string) tokenID {
	text, _, _ := strings.Cut(jti, "-")
	generation, err := strconv.ParseInt(text, 10, 64)
	if err != nil || generation < 0 || strconv.FormatInt(generation, 10) != text {
		generation = 0
	}
	return tokenID{jti, generation}
}
