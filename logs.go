package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// logPatience is how long a record of the log waits for the one that is being written.
const logPatience = time.Second

// A logHandler gives a record up where the one before is not taken: a pipe that
// somebody holds and does not read, as a collector of logs that hangs, would else
// stop each request that has something to log, and the end of the server too.
// It stops the one that writes. The next record that is written tells how many
// were lost.
type logHandler struct {
	slog.Handler
	turn chan struct{} // holds whoever writes
	lost atomic.Int64  // since the last one that was written
}

func newLogHandler(h slog.Handler) *logHandler {
	return &logHandler{Handler: h, turn: make(chan struct{}, 1)}
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	select {
	case h.turn <- struct{}{}: // without a timer, as nearly always
	default:
		wait := logPatience
		if h.lost.Load() > 0 {
			wait = 0 // others have waited for this one
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
