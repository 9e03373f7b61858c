// Package headers reads headers of HTTP requests: the media types that a client accepts, its
// bearer token, and the entity tags of what it has.
package headers

import (
	"errors"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Accepts reports whether a request accepts name: a media type if header is "Accept", or a
// coding if header is "Accept-Encoding". It ignores wildcards.
func Accepts(r *http.Request, header, name string) bool {
	for _, value := range r.Header[header] {
		for part := range strings.SplitSeq(value, ",") {
			t, params, err := mime.ParseMediaType(part)
			if err != nil || t != name {
				continue
			}
			if q, err := strconv.ParseFloat(params["q"], 64); err != nil || q > 0 { // 0 means not acceptable, RFC 9110 section 12.4.2
				return true
			}
		}
	}
	return false
}

// The errors of [Bearer].
var (
	ErrNoBearer   = errors.New("the request has no bearer token")
	ErrTwoHeaders = errors.New("the request has two Authorization headers")
)

// Bearer returns the token of a request's Authorization header (RFC 6750 section 2.1), or
// ErrNoBearer. For two headers it returns ErrTwoHeaders. It ignores the case of the scheme
// (RFC 9110 section 11.1).
func Bearer(r *http.Request) (string, error) {
	header := r.Header["Authorization"]
	if len(header) > 1 {
		return "", ErrTwoHeaders
	}
	if len(header) == 1 {
		scheme, token, _ := strings.Cut(header[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimLeft(token, " "), nil
		}
	}
	return "", ErrNoBearer
}

// ETag returns the entity tag of a version.
func ETag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// MatchETag reports whether tags, the values of If-Match or If-None-Match, name the ETag of a
// version. A proxy that compresses answers rewrites their tags, and clients send back what
// they got: nginx makes W/"1" of "1", Apache "1-gzip", and Jetty "1--gzip". RFC 9110 section
// 13.1.1 would refuse these in If-Match, since the bytes of the answer may differ. Here a tag
// names a version, not bytes.
func MatchETag(tags []string, version int64) bool {
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
