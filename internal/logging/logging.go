// Package logging keeps a program running even if the reader of its log hangs, and secrets out
// of the paths that it logs.
package logging

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// Timeout is how long a record waits while another one is being written.
const Timeout = time.Second

// A Handler drops records while the reader of the log does not read. Otherwise a
// log collector that hangs, and so fills its pipe, would block each request that
// logs, and the end of the server too. Only the request that is writing waits. The
// next record has the number of dropped ones.
type Handler struct {
	slog.Handler
	turn chan struct{} // holds one token while a record is being written
	lost atomic.Int64  // records dropped since the last one that was written
}

// NewHandler returns a Handler that passes records to h.
func NewHandler(h slog.Handler) *Handler {
	return &Handler{Handler: h, turn: make(chan struct{}, 1)}
}

// Handle passes a record to the next handler, or drops it.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	select {
	case h.turn <- struct{}{}: // the usual case needs no timer
	default:
		wait := Timeout
		if h.lost.Load() > 0 {
			wait = 0 // an earlier record has already waited for this writer
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

// pathWord matches the segments of a path that are words, versions, file names and
// small numbers. Tokens, e-mail addresses and most passwords are not.
var pathWord = regexp.MustCompile(`^(|[A-Z]?[a-z0-9._-]{0,23}|[A-Z]{1,24})$`)

// Path returns what a log may say of the path of a URL: at most its first 8 segments, of at
// most 24 bytes. Segments that could be secrets are "…", since a client that puts one into a
// path by mistake must not put it into the log.
func Path(path string) string {
	const most = 8
	segments := strings.SplitN(path, "/", most+1)
	for i, segment := range segments {
		if i == most || !pathWord.MatchString(segment) {
			segments[i] = "…"
		}
	}
	return strings.Join(segments, "/")
}
