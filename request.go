package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
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
		return nil, errMalformedBody.with("The body did not arrive whole")
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
			return errUnknownMember.with("The body has the member %q, which this route does not know", shorten(name))
		}
		if t.Field(i).Type == reflect.TypeFor[json.RawMessage]() {
			return nil
		}
		if string(value) == "null" {
			return wrongType(name, t.Field(i).Type)
		}
		if value[0] == '"' && hasBadEscape(value) {
			return errMalformedBody.with("The member %q holds an escape that is no character", name)
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
	err := errWrongType.with("The member %q must be %s", name, want)
	err.fields = map[string]string{name: "must be " + want}
	return err
}

// maxMembers bounds the search for a member that stands twice.
const maxMembers = 64

// eachMember calls f with the name and the JSON text of each member of the one
// object that data is. It refuses what is not valid JSON in valid UTF-8, and a
// name that stands twice: parsers differ in which of the two they take
// (RFC 8259 section 4).
func eachMember(data []byte, f func(name string, value []byte) error) error {
	if len(data) == 0 {
		return errMalformedBody.with("The body is empty")
	}
	if !utf8.Valid(data) {
		return errMalformedBody.with("The body is not valid UTF-8")
	}
	if !json.Valid(data) {
		return errMalformedBody.with("The body is not valid JSON")
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
			return errMalformedBody.with("The body has too many members")
		}
		for _, s := range seen[:n] {
			if s == name {
				return errDuplicateMember.with("The member %q appears twice in the body", shorten(name))
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

// query returns the query parameters, of which only the named may be there,
// once each.
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
