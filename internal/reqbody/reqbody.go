// Package reqbody reads the bodies of HTTP requests into memory, of which strangers must not
// be able to fill much.
//
// A [Reader] bounds each body, and also how many large bodies it reads concurrently.
// Otherwise clients that never send the last byte could make each connection hold the
// largest body.
package reqbody

import (
	"bufio"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
)

// The errors of [Reader.Read].
var (
	ErrTooLarge   = errors.New("the body is too large")
	ErrBusy       = errors.New("too many large bodies are being read")
	ErrIncomplete = errors.New("the body is incomplete")
)

// A Reader reads the bodies of all requests of a server. Its methods can be called
// concurrently.
type Reader struct {
	maxSize, smallSize int64         // bytes
	large              chan struct{} // holds one token for each large body that is being read
}

// NewReader returns a Reader of bodies of at most maxSize bytes. A body of more than smallSize
// bytes is large; the Reader reads at most maxLarge large bodies concurrently.
func NewReader(maxSize, smallSize int64, maxLarge int) *Reader {
	return &Reader{maxSize, smallSize, make(chan struct{}, maxLarge)}
}

// Read returns the body of a request, or ErrTooLarge, ErrBusy, or ErrIncomplete if the client
// or the connection fails. For a request that announces a body that is too large, Read reads
// nothing, so that net/http sends no 100 Continue.
func (b *Reader) Read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > b.maxSize {
		return nil, ErrTooLarge
	}
	body := http.MaxBytesReader(w, r.Body, b.maxSize)
	data, err := io.ReadAll(io.LimitReader(body, b.smallSize+1))
	if err == nil && int64(len(data)) > b.smallSize {
		select {
		case b.large <- struct{}{}:
			defer func() { <-b.large }()
		default:
			return nil, ErrBusy
		}
		var rest []byte
		rest, err = io.ReadAll(body)
		data = append(data, rest...)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, ErrTooLarge
	}
	if err != nil {
		return nil, ErrIncomplete
	}
	return data, nil
}

// HasType reports whether the request says that its body has a media type, in UTF-8 and
// without a Content-Encoding.
func HasType(r *http.Request, mediaType string) bool {
	t, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, named := params["charset"]
	return err == nil && t == mediaType && r.Header.Get("Content-Encoding") == "" && (!named || strings.EqualFold(charset, "utf-8"))
}

// Exists reports whether the request has a body. If the length of the body is unknown, Exists
// reads the first byte, and replaces r.Body by a reader that returns it again.
func Exists(r *http.Request) bool {
	if r.ContentLength >= 0 {
		return r.ContentLength > 0
	}
	in := bufio.NewReader(r.Body)
	r.Body = struct {
		io.Reader
		io.Closer
	}{in, r.Body}
	_, err := in.Peek(1)
	return err == nil
}
