package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"userd/internal/strictjson"
)

const (
	maxBody = 64 << 10 // bytes of a request's body; two passwords of escapes alone take 12 KiB
	// At most maxLargeBodies bodies over smallBody are read concurrently. Otherwise
	// clients that never send the last byte could make each connection hold maxBody.
	smallBody      = 8 << 10
	maxLargeBodies = 256
)

// body returns the request's body: JSON, at most maxBody.
func (x *exchange) body() ([]byte, error) {
	mediaType, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" || x.r.Header.Get("Content-Encoding") != "" {
		return nil, errMediaType
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return nil, errMediaType
	}
	// Refused before a byte is read, so that the client gets no 100 Continue.
	if x.r.ContentLength > maxBody {
		return nil, errTooLarge
	}
	defer x.awaitClient()()
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
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, errTooLarge
	case err != nil:
		return nil, errMalformedBody.with("The body did not arrive whole")
	}
	return data, nil
}

// hasBody reports whether the request has a body. It reads the first byte if the
// length is unknown.
func (x *exchange) hasBody() bool {
	if x.r.ContentLength >= 0 {
		return x.r.ContentLength > 0
	}
	defer x.awaitClient()()
	first := make([]byte, 1)
	n, _ := io.ReadFull(x.r.Body, first) // the next read repeats an error
	x.r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(first[:n]), x.r.Body), x.r.Body}
	return n > 0
}

// awaitClient records that a request waits for its client, until done is called.
func (x *exchange) awaitClient() (done func()) {
	if x.conn == nil {
		return func() {}
	}
	x.conn.AwaitClient()
	return x.conn.Resume
}

// decode parses the result of body as a T, a struct as strictjson.Unmarshal
// requires it. It returns err if that is not nil.
func decode[T any](body []byte, err error) (in T, _ error) {
	if err != nil {
		return in, err
	}
	return in, bodyError(strictjson.Unmarshal(body, &in))
}

// bodyError returns the error that tells a client why strictjson refused its
// body. It returns other errors as they are.
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

// query returns the query parameters. Only the named ones may occur, each once.
func (x *exchange) query(names ...string) (url.Values, error) {
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, errBadParameter.with("The query is malformed")
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return nil, badParameter(shorten(name), "is not known here")
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

// boolParameter returns a query parameter that is true or false; nil: absent.
func boolParameter(q url.Values, name string) (*bool, error) {
	if !q.Has(name) {
		return nil, nil
	}
	value := q.Get(name) == "true"
	if !value && q.Get(name) != "false" {
		return nil, badParameter(name, "must be true or false")
	}
	return &value, nil
}

// maxLimit is how many users or events a page may have.
const maxLimit = 1000

// pageOf returns the limit and after parameters of a list, 0 if they are absent.
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

// linkNext says in the answer where the list goes on after its last id.
func (x *exchange) linkNext(q url.Values, last int64) {
	q.Set("after", strconv.FormatInt(last, 10))
	x.Header().Set("Link", "<"+x.r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
}

var errID = errors.New("not a positive integer in its shortest form")

// parseID reads a positive integer written as strconv writes it: no sign, no
// leading zero, no fraction or exponent. One number has one name.
func parseID(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, errID
	}
	return n, nil
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// ifMatch returns the version that the request's If-Match lets a change apply
// to, 0 where it does not say, or errVersion where the user has another.
func ifMatch(r *http.Request, u *user) (int64, error) {
	tags := r.Header.Values("If-Match")
	switch {
	case len(tags) == 0:
		return 0, nil
	case matches(tags, u.version, false):
		return u.version, nil
	}
	return 0, errVersion
}

// matches reports whether one of the entity tags of an If-Match or, where weak
// ones count, an If-None-Match is the version's (RFC 9110 section 13.1).
func matches(tags []string, version int64, weak bool) bool {
	want := etag(version)
	for tag := range strings.SplitSeq(strings.Join(tags, ","), ",") {
		tag = strings.TrimSpace(tag)
		if weak {
			tag = strings.TrimPrefix(tag, "W/")
		}
		if tag == want || tag == "*" {
			return true
		}
	}
	return false
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
