// Package sse sends streams of server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html) that a server polls from a
// source, such as a table to which other processes write too.
//
// The id of an event is an ascending integer. A client that lost its connection continues
// after the last id that it received. A client that reads too slowly loses its connection.
package sse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// A Feed holds the state and the intervals that all streams of a server share. Set the
// intervals before the first stream.
type Feed struct {
	PollEvery    time.Duration // between two reads of the source
	RecheckEvery time.Duration // between two checks that the client may still read
	PingEvery    time.Duration // the longest silence
	WriteTimeout time.Duration // for one part of a stream

	slots    chan struct{} // holds one token for each open stream
	stopping chan struct{} // closed when the server stops
	stop     func()
}

// New returns a Feed of at most maxStreams concurrent streams.
func New(maxStreams int) *Feed {
	stopping := make(chan struct{})
	return &Feed{slots: make(chan struct{}, maxStreams), stopping: stopping, stop: sync.OnceFunc(func() { close(stopping) })}
}

// Stop ends all streams, also those that begin later. It may be called more than once.
func (f *Feed) Stop() { f.stop() }

// Open returns the number of open streams.
func (f *Feed) Open() int { return len(f.slots) }

// ErrBusy is the error of [Feed.Serve] if too many streams are open.
var ErrBusy = errors.New("too many event streams are open")

// A Source is what one stream sends.
type Source struct {
	// Read calls add with each event after an id, in order. It returns the last id that it
	// searched, and whether there are more events now. add encodes data as JSON, and panics
	// if that fails.
	Read func(after int64, add func(id int64, kind string, data any)) (last int64, more bool, err error)
	// Allowed reports whether the client may still read.
	Allowed func() bool
}

// Serve answers with the events after an id, and then each new one, until the client has gone,
// the server stops or the client may not read any more. It returns ErrBusy before it answers, an
// error of src.Read, or an error that wraps context.Canceled if it cannot write. For HEAD, it
// sends only the header.
func (f *Feed) Serve(w http.ResponseWriter, r *http.Request, after int64, src Source) error {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return ErrBusy
	}
	w.Header()["Content-Type"] = []string{"text/event-stream"}
	w.Header()["X-Accel-Buffering"] = []string{"no"} // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	out := writer{w, f, http.NewResponseController(w), time.Now()}
	// net/http writes the end of the answer after Serve returns.
	defer func() { out.conn.SetWriteDeadline(time.Now().Add(f.WriteTimeout)) }()
	// The start first: a client whose connection breaks before the first event then
	// knows where to continue.
	text := fmt.Appendf(nil, "id: %d\n\n", after)
	add := func(id int64, kind string, data any) { text = appendEvent(text, id, kind, data) }
	rechecked := time.Now()
	for {
		var more bool
		var err error
		if after, more, err = src.Read(after, add); err != nil {
			return err
		}
		if err := out.write(text, after); err != nil {
			return err
		}
		text = text[:0]
		if !f.wait(r.Context(), more) {
			return nil
		}
		if time.Since(rechecked) >= f.RecheckEvery {
			if !src.Allowed() {
				return nil // the client gets the reason when it connects again
			}
			rechecked = time.Now()
		}
	}
}

// wait waits until the next read, which is due now if the last one left some events. It
// returns false if the stream must end.
func (f *Feed) wait(ctx context.Context, more bool) bool {
	pause := f.PollEvery
	if more {
		pause = 0
	}
	select {
	case <-ctx.Done():
		return false
	case <-f.stopping:
		return false
	case <-time.After(pause):
		return true
	}
}

// A writer sends the parts of a stream.
type writer struct {
	w       http.ResponseWriter
	feed    *Feed
	conn    *http.ResponseController
	written time.Time // when the last part was sent
}

// write sends a text. If the text is empty and the stream was silent for PingEvery, it sends
// after, the last id that was searched, and a comment, which keeps the connection open.
func (w *writer) write(text []byte, after int64) error {
	now := time.Now()
	if len(text) == 0 && now.Sub(w.written) >= w.feed.PingEvery {
		text = fmt.Appendf(text, ":\nid: %d\n\n", after)
	}
	if len(text) == 0 {
		return nil
	}
	if err := w.conn.SetWriteDeadline(now.Add(w.feed.WriteTimeout)); err != nil {
		return err
	}
	_, err := w.w.Write(text)
	if err == nil {
		err = w.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("%w: answering: %w", context.Canceled, err)
	}
	w.written = now
	return nil
}

// appendEvent appends an event. JSON has no line breaks, so it is one line of data.
func appendEvent(b []byte, id int64, kind string, data any) []byte {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(b, "id: %d\nevent: %s\ndata: %s\n\n", id, kind, text)
}
