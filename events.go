package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/setting"
)

// An eventAnswer is an event as clients and the command line see it.
type eventAnswer struct {
	ID        int64     `json:"id"`
	Type      eventType `json:"type"`
	At        time.Time `json:"at"`
	ActorID   int64     `json:"actor_id,omitempty"`
	UserID    int64     `json:"user_id,omitempty"`
	SessionID int64     `json:"session_id,omitempty"`
	Address   string    `json:"address,omitempty"`
	Changes   []string  `json:"changes,omitempty"`
}

func newEventAnswer(e *event) eventAnswer {
	a := eventAnswer{
		ID:        e.id,
		Type:      e.kind,
		At:        utc(e.at),
		ActorID:   e.actorID,
		UserID:    e.userID,
		SessionID: e.sessionID,
		Address:   e.address,
	}
	if e.changes != "" {
		a.Changes = strings.Split(e.changes, ",")
	}
	return a
}

// eventPage is the number of events of a page without a limit.
const eventPage = 100

// listEvents answers with a page of events, or with a stream of them if the
// request accepts text/event-stream.
func (s *server) listEvents(x *exchange) error {
	q, err := x.query("limit", "after", "user", "type")
	if err != nil {
		return err
	}
	limit, after, err := param.Page(q, maxLimit)
	if err != nil {
		return err
	}
	var only eventFilter
	if q.Has("user") {
		if only.userID, err = parseID(q.Get("user")); err != nil {
			return &param.Error{Name: "user", Text: "must be the id of a user"}
		}
	}
	if q.Has("type") {
		if err := setting.Word(&only.kind, q.Get("type"), eventTypes...); err != nil {
			return &param.Error{Name: "type", Text: err.Error()}
		}
	}
	if headers.Accepts(x.r, "text/event-stream") {
		if q.Has("limit") {
			return &param.Error{Name: "limit", Text: "is not allowed with a stream"}
		}
		if !q.Has("after") {
			after = -1
		}
		return s.streamEvents(x, after, only)
	}
	if limit == 0 {
		limit = eventPage
	}
	list := []eventAnswer{}
	err = s.store.events(x.r.Context(), after, limit+1, only, func(e *event) { list = append(list, newEventAnswer(e)) })
	if err != nil {
		return err
	}
	if len(list) > int(limit) {
		list = list[:limit]
		x.Header().Set("Link", param.LinkNext(x.r.URL.Path, q, list[limit-1].ID))
	}
	return x.sendJSON(http.StatusOK, list)
}

// A feed holds the state and the intervals that all event streams share.
type feed struct {
	slots    chan struct{} // holds one token for each open stream
	stopping chan struct{} // closed when the server stops
	stop     func()        // closes stopping; may be called more than once

	pollEvery    time.Duration // between two reads of the database
	recheckEvery time.Duration // between two checks that the client is still an admin
	pingEvery    time.Duration // the longest silence
	writeTimeout time.Duration // for one part of a stream
}

// maxStreams is the largest number of open event streams. Each one holds a
// connection and reads the database once per followEvery.
const maxStreams = 64

// followEvery is the time between two searches for new events.
const followEvery = 200 * time.Millisecond

func newFeed() *feed {
	f := &feed{
		slots:        make(chan struct{}, maxStreams),
		stopping:     make(chan struct{}),
		pollEvery:    followEvery,
		recheckEvery: time.Second,
		pingEvery:    15 * time.Second, // HTTP/2 ends a stream that is silent for writeTimeout
		writeTimeout: writeTimeout,
	}
	f.stop = sync.OnceFunc(func() { close(f.stopping) })
	return f
}

// streamEvents sends the events after an id, and then each new one, as server-sent
// events (https://html.spec.whatwg.org/multipage/server-sent-events.html). The id -1
// means the newest. streamEvents polls the database, so it also sends the events of
// other processes. A client that reads too slowly loses its connection. It can continue
// after the last event that it received.
func (s *server) streamEvents(x *exchange, after int64, only eventFilter) error {
	after, err := s.streamStart(x, after)
	if err != nil {
		return err
	}
	select {
	case s.feed.slots <- struct{}{}:
		defer func() { <-s.feed.slots }()
	default:
		return errBusy.with("Too many event streams are open")
	}
	x.Header()["Content-Type"] = []string{"text/event-stream"}
	x.Header()["X-Accel-Buffering"] = []string{"no"} // nginx would hold events back
	x.WriteHeader(http.StatusOK)
	if x.r.Method == http.MethodHead {
		return nil
	}
	out := eventWriter{x, s.feed, http.NewResponseController(x.ResponseWriter), time.Now()}
	// net/http writes the end of the answer after streamEvents returns.
	defer func() { out.conn.SetWriteDeadline(time.Now().Add(s.feed.writeTimeout)) }()
	// The start first: a client whose connection breaks before the first event then
	// knows where to continue.
	text := fmt.Appendf(nil, "id: %d\n\n", after)
	rechecked := time.Now()
	for {
		more := false
		after, more, err = s.store.eventsSince(x.r.Context(), after, only, func(e *event) { text = appendServerSent(text, e) })
		if err != nil {
			return err
		}
		if err := out.write(text, after); err != nil {
			return err
		}
		text = text[:0]
		if !s.feed.wait(x.r.Context(), more) {
			return nil
		}
		if time.Since(rechecked) >= s.feed.recheckEvery {
			if s.admit(x, adminOnly) != nil {
				return nil // the client gets the reason when it connects again
			}
			rechecked = time.Now()
		}
	}
}

// streamStart returns the id after which a stream starts: Last-Event-ID if the
// request has it, otherwise after, or the id of the newest event if after is -1.
// It returns errBadParameter for the id of an event that does not exist yet.
func (s *server) streamStart(x *exchange, after int64) (int64, error) {
	newest, err := s.store.lastEvent()
	if err != nil {
		return 0, err
	}
	switch last := x.r.Header.Get("Last-Event-ID"); last {
	case "":
	case "0":
		after = 0
	default:
		if after, err = parseID(last); err != nil {
			return 0, errBadParameter.with("Last-Event-ID must be the id of an event")
		}
	}
	if after < 0 {
		after = newest
	}
	if after > newest { // the stream would be silent until other events have these ids
		return 0, errBadParameter.with("Event %d does not exist yet: was the database restored from an older copy?", after)
	}
	return after, nil
}

// wait waits until the next search for events, which is due now if the last one
// left some. It returns false if the stream must end.
func (f *feed) wait(ctx context.Context, more bool) bool {
	pause := f.pollEvery
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

// An eventWriter sends the parts of a stream.
type eventWriter struct {
	x       *exchange
	feed    *feed
	conn    *http.ResponseController
	written time.Time // when the last part was sent
}

// write sends a text. If the text is empty and the stream was silent for pingEvery,
// it sends after, the last id that was searched, and a comment, which keeps the
// connection open.
func (w *eventWriter) write(text []byte, after int64) error {
	now := time.Now()
	if len(text) == 0 && now.Sub(w.written) >= w.feed.pingEvery {
		text = fmt.Appendf(text, ":\nid: %d\n\n", after)
	}
	if len(text) == 0 {
		return nil
	}
	if err := w.conn.SetWriteDeadline(now.Add(w.feed.writeTimeout)); err != nil {
		return err
	}
	if err := w.x.sendPart(http.StatusOK, text); err != nil {
		return err
	}
	if err := w.conn.Flush(); err != nil {
		return fmt.Errorf("%w: answering: %w", context.Canceled, err)
	}
	w.written = now
	return nil
}

func appendServerSent(b []byte, e *event) []byte {
	data, err := json.Marshal(newEventAnswer(e))
	if err != nil {
		panic(err) // strings, numbers and a time cannot fail
	}
	return fmt.Appendf(b, "id: %d\nevent: %s\ndata: %s\n\n", e.id, e.kind, data)
}
