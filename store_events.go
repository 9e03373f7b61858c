package main

import (
	"context"
	"errors"
	"fmt"
)

// An eventType says what kind of act an event was.
type eventType string

const (
	userCreated   eventType = "user_created"
	userChanged   eventType = "user_changed"
	userDeleted   eventType = "user_deleted"
	usersImported eventType = "users_imported"
	loggedIn      eventType = "login"
	sessionEnded  eventType = "session_ended"
	sessionsEnded eventType = "sessions_ended"
	tokenReused   eventType = "token_reused"
	keyRotated    eventType = "key_rotated"
	eventsTrimmed eventType = "events_trimmed"
)

// eventTypes are all types of events.
var eventTypes = []eventType{userCreated, userChanged, userDeleted, usersImported, loggedIn, sessionEnded, sessionsEnded, tokenReused, keyRotated, eventsTrimmed}

// An event is one row of the table event. It holds ids and addresses, and no name,
// e-mail address or secret: with the user's row, the person is gone from it.
type event struct {
	id        int64
	at        int64
	kind      eventType
	actorID   int64
	userID    int64
	sessionID int64
	address   string
	changes   string
}

// eventColumns and (*event).columns are the one list of an event's columns, in step.
const eventColumns = `
	event.id,
	event.at,
	event.type,
	event.actor_id,
	event.user_id,
	event.session_id,
	event.address,
	event.changes`

func (e *event) columns(more ...any) []any {
	return append([]any{
		&e.id,
		&e.at,
		(*string)(&e.kind),
		&e.actorID,
		&e.userID,
		&e.sessionID,
		&e.address,
		&e.changes,
	}, more...)
}

// by returns the statement that records the event as an act of a caller.
func (e event) by(who caller) statement {
	e.actorID, e.address = who.user, who.address
	if e.sessionID == 0 {
		e.sessionID = who.session
	}
	return e.statement()
}

// statement returns the statement that records the event. It belongs at the end
// of the act's own write.
func (e event) statement() statement {
	return statement{
		query: insertEvent,
		args: args{
			"at":      e.at,
			"type":    string(e.kind),
			"actor":   e.actorID,
			"user":    e.userID,
			"session": e.sessionID,
			"address": e.address,
			"changes": e.changes,
		},
	}
}

// The queries of an event's statement. The last two take the id of the user or
// the session that the same write has just made.
const (
	intoEvent             = `INSERT INTO event (at, type, actor_id, user_id, session_id, address, changes) `
	insertEvent           = intoEvent + `VALUES (@at, @type, @actor, @user, @session, @address, @changes)`
	insertNewUserEvent    = intoEvent + `SELECT @at, @type, @actor, user_id, @session, @address, @changes FROM counter`
	insertNewSessionEvent = intoEvent + `SELECT @at, @type, @actor, @user, max(id), @address, @changes FROM session`
)

// An eventFilter narrows a list of events. Its zero value lets every event through.
type eventFilter struct {
	userID int64     // 0: any
	kind   eventType // empty: any
}

// events calls f for at most limit events with ids above after, in id order.
// The event f is given is reused for the next row.
func (s *store) events(ctx context.Context, after int64, limit int64, only eventFilter, f func(*event)) error {
	var e event
	const (
		from = `SELECT` + eventColumns + ` FROM event WHERE `
		page = `id > ?1 ORDER BY id LIMIT ?2`
	)
	each := func() { f(&e) }
	switch {
	case only.userID != 0 && only.kind != "":
		// +: by the index of users, who have fewer events than a type has.
		return s.eachRow(ctx, from+`user_id = ?3 AND +type = ?4 AND `+page, e.columns(), each, after, limit, only.userID, only.kind)
	case only.userID != 0:
		return s.eachRow(ctx, from+`user_id = ?3 AND `+page, e.columns(), each, after, limit, only.userID)
	case only.kind != "":
		return s.eachRow(ctx, from+`type = ?3 AND `+page, e.columns(), each, after, limit, only.kind)
	}
	return s.eachRow(ctx, from+page, e.columns(), each, after, limit)
}

// lastEvent returns the id of the newest event, 0 where there is none.
func (s *store) lastEvent() (id int64, err error) {
	err = s.read(`SELECT coalesce(max(id), 0) FROM event`, errStorage, []any{&id})
	return id, err
}

// streamBatch is how many events are read at a time.
const streamBatch = 500

// eventsSince calls f for events with ids above after, in id order, streamBatch at
// most, and returns the id to go on from and whether there are more now. It looks
// at each event once, also at those that only does not let through.
func (s *store) eventsSince(ctx context.Context, after int64, only eventFilter, f func(*event)) (next int64, more bool, err error) {
	newest, err := s.lastEvent()
	if err != nil || newest <= after {
		return after, false, err
	}
	n := 0
	err = s.events(ctx, after, streamBatch, only, func(e *event) {
		n++
		after = e.id
		f(e)
	})
	if n == streamBatch {
		return after, true, err
	}
	return max(after, newest), false, err
}

// A seal is one row of the table seal.
type seal struct {
	eventID int64
	keyID   string
	mac     []byte
	anchor  []byte
}

// sealColumns and (*seal).columns are the one list of a seal's columns, in step.
const sealColumns = `
	seal.event_id,
	seal.key_id,
	seal.mac,
	seal.anchor`

func (x *seal) columns() []any {
	return []any{&x.eventID, &x.keyID, &x.mac, &x.anchor}
}

var errNoSeal = errors.New("no seal")

// lastSeal returns the newest seal, or the zero seal.
func (s *store) lastSeal() (x seal, err error) {
	err = s.read(`SELECT`+sealColumns+` FROM seal ORDER BY event_id DESC LIMIT 1`, errNoSeal, x.columns())
	if errors.Is(err, errNoSeal) {
		err = nil
	}
	return x, err
}

// addSeal adds a seal after prev. Where another process has added one it is none, and that is fine.
func (s *store) addSeal(ctx context.Context, x, prev seal) error {
	return s.write(ctx, statement{
		query: `
			INSERT INTO seal (event_id, key_id, mac)
			SELECT @event, @key, @mac WHERE (SELECT coalesce(max(event_id), 0) FROM seal) = @previous`,
		args: args{"event": x.eventID, "key": x.keyID, "mac": x.mac, "previous": prev.eventID},
	})
}

// trimSize is how many events one trimming looks at: as many as a write may
// delete without others having to wait long.
const trimSize = 2 * sealSize

// trimmable returns the newest seal of the oldest events up to which all are from
// before a time; the zero seal where there is none.
func (s *store) trimmable(before int64) (x seal, err error) {
	err = s.read(`
		SELECT`+sealColumns+` FROM seal
		WHERE event_id >= (SELECT min(id) FROM event) AND event_id <= (
			SELECT coalesce(min(id) FILTER (WHERE at >= ?1) - 1, max(id))
			FROM (SELECT id, at FROM event ORDER BY id LIMIT ?2))
		ORDER BY event_id DESC LIMIT 1`, errNoSeal, x.columns(), before, trimSize)
	if errors.Is(err, errNoSeal) {
		err = nil
	}
	return x, err
}

// trim deletes the events up to a seal, and the seals before it. Where another
// process has done so it does nothing.
func (s *store) trim(ctx context.Context, upTo seal, now int64) error {
	err := s.write(ctx,
		statement{
			query:  `UPDATE seal SET anchor = @anchor WHERE event_id = @event AND EXISTS (SELECT 1 FROM event WHERE id <= @event)`,
			args:   args{"event": upTo.eventID, "anchor": upTo.anchor},
			ifNone: errNotApplied,
		},
		// Before the deletion: the newest event must never be among the deleted.
		event{at: now, kind: eventsTrimmed, changes: fmt.Sprintf("until=%d", upTo.eventID)}.statement(),
		statement{
			query: `DELETE FROM event WHERE id <= @event`,
			args:  args{"event": upTo.eventID},
		},
		statement{
			query: `DELETE FROM seal WHERE event_id < @event`,
			args:  args{"event": upTo.eventID},
		})
	if errors.Is(err, errNotApplied) {
		err = nil
	}
	return err
}

// trail calls f with each event and each seal, the seal after the events that it
// covers, all as of one moment. What f is given is reused for the next row.
func (s *store) trail(ctx context.Context, f func(*event, *seal)) error {
	var e event
	var x seal
	var isSeal bool
	var place int64
	return s.eachRow(ctx, `
		SELECT`+eventColumns+`, 0, '', x'', x'', event.id AS place, 0 AS is_seal FROM event
		UNION ALL
		SELECT 0, 0, '', 0, 0, 0, '', '',`+sealColumns+`, seal.event_id, 1 FROM seal
		ORDER BY place, is_seal`,
		append(e.columns(x.columns()...), &place, &isSeal),
		func() {
			if isSeal {
				f(nil, &x)
			} else {
				f(&e, nil)
			}
		})
}
