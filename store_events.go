package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// An eventType is the kind of act that an event records.
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

	passwordReset     eventType = "password_reset"
	resetLinkCreated  eventType = "reset_link_created"
	invitationCreated eventType = "invitation_created"
	invitationDeleted eventType = "invitation_deleted"
	invitationUsed    eventType = "invitation_used"
	userApproved      eventType = "user_approved"
	emailVerified     eventType = "email_verified"
	emailChanged      eventType = "email_changed"
	emailRestored     eventType = "email_restored"

	keyCreated       eventType = "key_created"
	keyRevoked       eventType = "key_revoked"
	factorAdded      eventType = "factor_added"
	factorRemoved    eventType = "factor_removed"
	factorLocked     eventType = "factor_locked"
	codesRenewed     eventType = "recovery_codes_renewed"
	recoveryCodeUsed eventType = "recovery_code_used"
)

var eventTypes = []eventType{
	userCreated, userChanged, userDeleted, usersImported, loggedIn,
	sessionEnded, sessionsEnded, tokenReused, keyRotated, eventsTrimmed,
	passwordReset, resetLinkCreated, invitationCreated, invitationDeleted, invitationUsed, userApproved,
	emailVerified, emailChanged, emailRestored,
	keyCreated, keyRevoked,
	factorAdded, factorRemoved, factorLocked, codesRenewed, recoveryCodeUsed,
}

// An event is one row of the table event; assets/schema/02_events.sql describes its columns. It
// holds ids and addresses but no name, e-mail address or secret, so that it does not identify
// a person whose user is deleted.
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

// eventColumns and (*event).columns list the columns in the same order.
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

// by returns the statement that records the event as an act of the caller. The changes end
// with the caller's API key, if it has one.
func (e event) by(who caller) statement {
	e.actorID, e.address = who.user, who.address
	if who.key != 0 {
		e.changes = strings.TrimPrefix(fmt.Sprintf("%s,by_key=%d", e.changes, who.key), ",")
	}
	if e.sessionID == 0 {
		e.sessionID = who.session
	}
	return e.statement()
}

// statement returns the statement that records the event, for the end of the act's
// own write.
func (e event) statement() statement {
	return statement{
		Query: insertEvent,
		Args: args{
			{"at", e.at}, {"type", string(e.kind)}, {"actor", e.actorID}, {"user", e.userID},
			{"session", e.sessionID}, {"address", e.address}, {"changes", e.changes},
		},
	}
}

// ofNewUser is statement for an event about the user that the same write has just added.
func (e event) ofNewUser() statement {
	record := e.statement()
	record.Query = insertNewUserEvent
	return record
}

// The queries of an event's statement. The last four use the id of the user, the
// session, the invitation or the API key that the same write has just created.
const (
	intoEvent                = `INSERT INTO event (at, type, actor_id, user_id, session_id, address, changes) `
	insertEvent              = intoEvent + `VALUES (@at, @type, @actor, @user, @session, @address, @changes)`
	insertNewUserEvent       = intoEvent + `SELECT @at, @type, @actor, user_id, @session, @address, @changes FROM counter`
	insertNewSessionEvent    = intoEvent + `SELECT @at, @type, @actor, @user, max(id), @address, @changes FROM session`
	insertNewInvitationEvent = intoEvent + `SELECT @at, @type, @actor, @user, @session, @address, 'invitation=' || max(id) FROM user_invitation`
	insertNewKeyEvent        = intoEvent + `SELECT @at, @type, @actor, @user, @session, @address, 'key=' || max(id) || ',' || @changes FROM user_key`
)

// An eventFilter narrows a list of events. The zero eventFilter matches every event.
type eventFilter struct {
	userID int64     // 0: any
	kind   eventType // empty: any
}

// events calls f for at most limit events with ids above after, in id order. It
// reuses f's argument for the next row.
func (s *store) events(ctx context.Context, after, limit int64, only eventFilter, f func(*event)) error {
	var e event
	const (
		from = `SELECT` + eventColumns + ` FROM event WHERE `
		page = `id > ?1 ORDER BY id LIMIT ?2`
	)
	each := func() { f(&e) }
	switch {
	case only.userID != 0 && only.kind != "":
		// The + makes SQLite use the index on users, who have fewer events than types.
		return s.eachRow(ctx, from+`user_id = ?3 AND +type = ?4 AND `+page, e.columns(), each, after, limit, only.userID, only.kind)
	case only.userID != 0:
		return s.eachRow(ctx, from+`user_id = ?3 AND `+page, e.columns(), each, after, limit, only.userID)
	case only.kind != "":
		return s.eachRow(ctx, from+`type = ?3 AND `+page, e.columns(), each, after, limit, only.kind)
	}
	return s.eachRow(ctx, from+page, e.columns(), each, after, limit)
}

// lastEvent returns the id of the newest event, or 0 if there are no events.
func (s *store) lastEvent() (id int64, err error) {
	err = s.read(`SELECT coalesce(max(id), 0) FROM event`, errStorage, []any{&id})
	return id, err
}

// streamBatch is how many events eventsSince reads.
const streamBatch = 500

// eventsSince calls f for at most streamBatch events with ids above after, in id
// order. It returns the id to continue from, which skips events that the filter
// excludes, and whether more events exist now.
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

// A link is one row of the table event_link: a hash of the previous link and of the
// events since then. The links form the chain of events. The chain has no key: a
// comparison with a head that was noted elsewhere shows every change.
type link struct {
	eventID int64 // of the last event that it covers; 0: no link
	at      int64 // the latest time of the events so far, also if the clock was set back

	// hash is SHA-256(previous ‖ eventID ‖ at ‖ digest). previous is the hash of the
	// previous link, or 32 zero bytes; digest is SHA-256 of the events since then.
	// Only the row of the base has previous and digest: they prove its time when the
	// events that it covers are deleted.
	hash, previous, digest []byte
}

// linkColumns and (*link).columns list the columns in the same order.
const linkColumns = `
	event_link.event_id,
	event_link.at,
	event_link.hash,
	event_link.previous,
	event_link.digest`

func (x *link) columns() []any {
	return []any{&x.eventID, &x.at, &x.hash, &x.previous, &x.digest}
}

// sum returns the hash that the link must have. Each part has a fixed size, so that
// different links are different bytes.
func (x *link) sum() []byte {
	b := make([]byte, sha256.Size, 2*sha256.Size+16)
	copy(b, x.previous)
	b = binary.BigEndian.AppendUint64(b, uint64(x.eventID))
	b = binary.BigEndian.AppendUint64(b, uint64(x.at))
	sum := sha256.Sum256(append(b, x.digest...))
	return sum[:]
}

// A tail accumulates the events for the next link.
type tail struct {
	previous link
	events   int
	last, at int64 // of the next link: its eventID and at
	digest   hash.Hash
}

func tailAfter(previous link) tail {
	return tail{previous: previous, at: previous.at, digest: sha256.New()}
}

// add adds an event. Different lists of events write different bytes to the digest.
func (l *tail) add(e *event) {
	l.events++
	l.last = e.id
	l.at = max(l.at, e.at) // an event with an old time must not make earlier ones look old
	b := make([]byte, 0, 256)
	for _, n := range []int64{e.id, e.at, e.actorID, e.userID, e.sessionID} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	for _, text := range []string{string(e.kind), e.address, e.changes} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(text)))
		b = append(b, text...)
	}
	l.digest.Write(b)
}

// link returns the link that covers the tail.
func (l *tail) link() link {
	x := link{eventID: l.last, at: l.at, previous: l.previous.hash, digest: l.digest.Sum(nil)}
	x.hash = x.sum()
	return x
}

// A chain adds links to the events of a database and trims them.
type chain struct {
	st   *store
	last link // the newest link that this process has seen
}

// linkSize is how many events a link covers at most.
const linkSize = 1000

var errHeadChanged = errors.New("the newest link of the chain of events is older than the last one that this process saw, or differs from it")

// extend adds links until all events are covered. If another process adds a link
// first, extend continues from that one. It returns errHeadChanged if the last link
// that this process has seen was changed or removed: a new link would hide that.
func (c *chain) extend(ctx context.Context) error {
	for {
		newest, err := c.st.newestLink()
		if err != nil {
			return err
		}
		if newest.eventID < c.last.eventID || newest.eventID == c.last.eventID && !bytes.Equal(newest.hash, c.last.hash) {
			return errHeadChanged
		}
		c.last = newest
		unlinked := tailAfter(newest)
		if err := c.st.events(ctx, newest.eventID, linkSize, eventFilter{}, unlinked.add); err != nil || unlinked.events == 0 {
			return err
		}
		if err := c.st.addLink(ctx, unlinked.link()); err != nil && !errors.Is(err, errNotApplied) {
			return err
		}
	}
}

// trim deletes some of the events from before a time, up to a link that becomes the
// base, and reports whether there may be more. If the events do not match their
// links, it deletes nothing and returns errChainBroken.
func (c *chain) trim(ctx context.Context, before, now int64) (more bool, err error) {
	upTo, err := c.st.trimmable(before)
	if err != nil || upTo == 0 {
		return false, err
	}
	v, err := c.st.verifyEvents(ctx, upTo, head{})
	if err != nil {
		return false, err
	}
	return true, c.st.trim(ctx, v.head, now)
}

// A head identifies a link. userd events verify prints the newest one, so that the operator
// can note it elsewhere.
type head struct {
	eventID int64
	hash    string // hexadecimal
}

func (h head) String() string { return fmt.Sprintf("%d:%s", h.eventID, h.hash) }

func (x *link) name() head { return head{x.eventID, hex.EncodeToString(x.hash)} }

// A verification recomputes the chain from its events and links, in order.
type verification struct {
	noted    head // the head to find
	found    bool // noted is in the chain
	events   int  // events that match their links
	links    int
	base     link // the last link whose events are deleted; zero: no events are deleted
	head     link // the newest link
	unlinked tail // the events after the newest link
	err      error
}

var errChainBroken = errors.New("the chain of events is broken")

// add adds the next event or, if x is not nil, the link that follows the events that
// it covers. After a link that does not match, add does nothing.
func (v *verification) add(e *event, x *link) {
	if v.err != nil {
		return
	}
	if x == nil {
		v.unlinked.add(e)
		return
	}
	want, fault := v.unlinked.link(), "were changed, removed or inserted"
	if v.links == 0 && v.unlinked.events == 0 {
		want, fault = *x, "are deleted, and the last link that covered them does not match"
		want.hash = want.sum()
		v.base = want
	}
	if x.eventID != want.eventID || x.at != want.at || !bytes.Equal(x.hash, want.hash) {
		v.err = fmt.Errorf("%w: events %d to %d %s", errChainBroken, v.head.eventID+1, x.eventID, fault)
		return
	}
	v.head = want
	v.links++
	v.events += v.unlinked.events
	v.found = v.found || want.name() == v.noted
	v.unlinked = tailAfter(want)
}

// newestLink returns the newest link, or the zero link if there is none.
func (s *store) newestLink() (x link, err error) {
	err = s.read(`SELECT`+linkColumns+` FROM event_link ORDER BY event_id DESC LIMIT 1`, nil, x.columns())
	return x, err
}

// addLink adds a link. It returns errNotApplied if the newest link is not the one
// before it.
func (s *store) addLink(ctx context.Context, x link) error {
	return s.write(ctx, statement{
		Query: `
			INSERT INTO event_link (event_id, at, hash)
			SELECT @event, @at, @hash
			WHERE (SELECT hash FROM event_link ORDER BY event_id DESC LIMIT 1) IS @previous`,
		Args:   args{{"event", x.eventID}, {"at", x.at}, {"hash", x.hash}, {"previous", x.previous}},
		IfNone: errNotApplied,
	})
}

// trimSize bounds the events that one trim deletes, so that other writes do not wait
// long.
const trimSize = 2 * linkSize

// trimmable returns the event id of the newest link such that all events up to it are
// from before a time and are among the trimSize oldest, or 0 if there is no such link.
func (s *store) trimmable(before int64) (eventID int64, err error) {
	err = s.read(`
		SELECT coalesce(max(event_id), 0) FROM event_link
		WHERE event_id >= (SELECT min(id) FROM event) AND event_id <= (
			SELECT coalesce(min(id) FILTER (WHERE at >= ?1) - 1, max(id))
			FROM (SELECT id, at FROM event ORDER BY id LIMIT ?2))`,
		errStorage, []any{&eventID}, before, trimSize)
	return eventID, err
}

// trim makes a link the base: it deletes the events up to it and the links before
// it. If another process has already done so, it does nothing.
func (s *store) trim(ctx context.Context, base link, now int64) error {
	err := s.write(ctx,
		statement{
			Query: `
				UPDATE event_link SET previous = @previous, digest = @digest
				WHERE event_id = @event AND hash = @hash AND EXISTS (SELECT 1 FROM event WHERE id <= @event)`,
			Args:   args{{"event", base.eventID}, {"hash", base.hash}, {"previous", base.previous}, {"digest", base.digest}},
			IfNone: errNotApplied,
		},
		// This comes first, because the newest event must never be deleted.
		event{at: now, kind: eventsTrimmed, changes: fmt.Sprintf("until=%d", base.eventID)}.statement(),
		statement{Query: `DELETE FROM event WHERE id <= @event`, Args: args{{"event", base.eventID}}},
		statement{Query: `DELETE FROM event_link WHERE event_id < @event`, Args: args{{"event", base.eventID}}})
	if errors.Is(err, errNotApplied) {
		err = nil
	}
	return err
}

// verifyEvents recomputes the chain from its base up to an event, as of one moment.
// It returns errChainBroken, with the first range of events that does not match its
// link, and what it verified before that.
func (s *store) verifyEvents(ctx context.Context, upTo int64, noted head) (verification, error) {
	v := verification{noted: noted, unlinked: tailAfter(link{})}
	var e event
	var x link
	var isLink bool
	var place int64 // only to sort by
	err := s.eachRow(ctx, `
		SELECT`+eventColumns+`, 0, 0, NULL, NULL, NULL, event.id AS place, 0 AS is_link FROM event WHERE event.id <= ?1
		UNION ALL
		SELECT 0, 0, '', 0, 0, 0, '', '',`+linkColumns+`, event_link.event_id, 1 FROM event_link WHERE event_link.event_id <= ?1
		ORDER BY place, is_link`,
		append(e.columns(x.columns()...), &place, &isLink),
		func() {
			if isLink {
				v.add(nil, &x)
			} else {
				v.add(&e, nil)
			}
		}, upTo)
	if err = errors.Join(err, v.err); err != nil {
		return v, err
	}
	// A value of another type can have the same hash, and a filter would not find it.
	var id int64
	err = s.eachRow(ctx, `
		SELECT id FROM event
		WHERE id <= ?1 AND (typeof(at), typeof(type), typeof(actor_id), typeof(user_id), typeof(session_id), typeof(address), typeof(changes))
			IS NOT ('integer', 'text', 'integer', 'integer', 'integer', 'text', 'text')
		LIMIT 1`, []any{&id}, func() {}, upTo)
	if err == nil && id > 0 {
		err = fmt.Errorf("%w: event %d has a value of another type than its column", errChainBroken, id)
	}
	return v, err
}
