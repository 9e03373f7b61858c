package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// An eventAnswer is what is shown of an event; what it has not is left out.
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

const eventPage = 100 // events of a page if not told

// listEvents answers with a page of events, or follows them where that is asked for.
func (s *server) listEvents(x *exchange) error {
	q, err := x.query("limit", "after", "user", "type")
	if err != nil {
		return err
	}
	limit, after, err := pageOf(q)
	if err != nil {
		return err
	}
	var only eventFilter
	if q.Has("user") {
		if only.userID, err = parseID(q.Get("user")); err != nil {
			return badParameter("user", "must be the id of a user")
		}
	}
	if q.Has("type") {
		if err := setWord(&only.kind, q.Get("type"), eventTypes...); err != nil {
			return badParameter("type", err.Error())
		}
	}
	if accepts(x.r, "text/event-stream") {
		if q.Has("limit") {
			return badParameter("limit", "does not go with a stream")
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
		x.linkNext(q, list[limit-1].ID)
	}
	return x.sendJSON(http.StatusOK, list)
}

// A feed is what the event streams of a server have in common.
type feed struct {
	places chan struct{} // one for each that is open
	ending chan struct{} // closed when the server is told to stop
	end    func()

	poll  time.Duration // between two looks for new events
	ask   time.Duration // how long a stream goes on for one who may not have it any more
	speak time.Duration // the longest silence
	write time.Duration // for one part of a stream to be sent
}

// maxStreams is how many event streams can be open: each holds a connection, and
// reads the database five times a second.
const maxStreams = 64

func newFeed() *feed {
	f := &feed{
		places: make(chan struct{}, maxStreams),
		ending: make(chan struct{}),
		poll:   200 * time.Millisecond,
		ask:    time.Second,
		// Below writeTimeout, at which HTTP/2 ends a stream that is silent.
		speak: 15 * time.Second,
		write: writeTimeout,
	}
	f.end = sync.OnceFunc(func() { close(f.ending) })
	return f
}

// streamEvents sends the events after an id, -1 for the newest, and those to come,
// as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
// It asks the database for them, and so sees what other processes write too. A
// client that reads too slowly is cut off: with the id of the last event that it
// has, it goes on from there.
func (s *server) streamEvents(x *exchange, after int64, only eventFilter) error {
	newest, err := s.store.lastEvent()
	if err != nil {
		return err
	}
	if last := x.r.Header.Get("Last-Event-ID"); last != "" && last != "0" {
		if after, err = parseID(last); err != nil {
			return errBadParameter.with("Last-Event-ID must be the id of an event")
		}
	} else if last == "0" {
		after = 0
	}
	if after < 0 {
		after = newest
	}
	if after > newest { // else it would be silent until others have that id
		return errBadParameter.with("There is no event %d yet: was the database restored from an older copy?", after)
	}
	select {
	case s.feed.places <- struct{}{}:
		defer func() { <-s.feed.places }()
	default:
		return errBusy.with("Too many event streams are open")
	}
	conn := http.NewResponseController(x.ResponseWriter)
	x.Header()["Content-Type"] = []string{"text/event-stream"}
	x.Header()["X-Accel-Buffering"] = []string{"no"} // nginx would hold it back
	x.WriteHeader(http.StatusOK)
	if x.r.Method == http.MethodHead {
		return nil
	}
	ctx := x.r.Context()
	// The place first, so that a connection lost before the first event loses none.
	out := fmt.Appendf(nil, "id: %d\n\n", after)
	asked, spoken := time.Now(), time.Now()
	// The end of an answer is written after this returns.
	defer func() { conn.SetWriteDeadline(time.Now().Add(s.feed.write)) }()
	for {
		more := false
		after, more, err = s.store.eventsSince(ctx, after, only, func(e *event) { out = appendServerSent(out, e) })
		if err != nil {
			return err
		}
		now := time.Now()
		if len(out) == 0 && now.Sub(spoken) >= s.feed.speak {
			// A comment for whoever waits for a sign of life, and how far it has looked.
			out = fmt.Appendf(out, ":\nid: %d\n\n", after)
		}
		if len(out) > 0 {
			if err := conn.SetWriteDeadline(now.Add(s.feed.write)); err != nil {
				return err
			}
			if err := x.send(http.StatusOK, out); err != nil {
				return err
			}
			if err := conn.Flush(); err != nil {
				return fmt.Errorf("%w: answering: %w", context.Canceled, err)
			}
			out, spoken = out[:0], now
		}
		pause := s.feed.poll
		if more {
			pause = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.feed.ending:
			return nil
		case <-time.After(pause):
		}
		if time.Since(asked) >= s.feed.ask {
			if s.admit(x, adminOnly) != nil {
				return nil // whoever comes back is told why
			}
			asked = time.Now()
		}
	}
}

func appendServerSent(b []byte, e *event) []byte {
	data, err := json.Marshal(newEventAnswer(e))
	if err != nil {
		panic(err) // strings, numbers and a time
	}
	return fmt.Appendf(b, "id: %d\nevent: %s\ndata: %s\n\n", e.id, e.kind, data)
}
