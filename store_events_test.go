package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A ledger is a database with linked events.
type ledger struct {
	*store
	t    *testing.T
	path string
	chain
}

// newLedger makes a ledger of four links, on the events 1 to 3, 4 to 6, 7 to 9 and 10
// to 12, and one event after them.
func newLedger(t *testing.T) *ledger {
	t.Helper()
	l := openLedger(t, filepath.Join(t.TempDir(), "app.db"))
	for range 4 {
		addEvents(t, l.store, 3)
		l.mustExtend()
	}
	addEvents(t, l.store, 1)
	return l
}

func openLedger(t *testing.T, path string) *ledger {
	t.Helper()
	st := openTestStore(t, path)
	return &ledger{store: st, t: t, path: path, chain: chain{st: st}}
}

// copy returns a copy of the ledger, changed by SQL, in a process that has just started.
func (l *ledger) copy(t *testing.T, queries ...string) *ledger {
	t.Helper()
	path := copyDatabase(t, l.path)
	runSQL(t, another(t, path), queries...)
	return openLedger(t, path)
}

func (l *ledger) mustExtend() {
	l.t.Helper()
	if err := l.chain.extend(context.Background()); err != nil {
		l.t.Fatal(err)
	}
}

// mustTrim trims the events from before a time.
func (l *ledger) mustTrim(before int64) (more bool) {
	l.t.Helper()
	more, err := l.chain.trim(context.Background(), before, 2777777778)
	if err != nil {
		l.t.Fatal(err)
	}
	return more
}

// wantChain fails the test unless verifying, with a head that was noted, fails with an
// error that contains the words or, if words is empty, succeeds.
func (l *ledger) wantChain(noted head, words string) *verification {
	l.t.Helper()
	v, err := l.store.verifyEvents(context.Background(), math.MaxInt64, noted)
	if err == nil {
		err = checkNoted(&v)
	}
	if words == "" && err != nil || words != "" && (err == nil || !strings.Contains(err.Error(), words)) {
		l.t.Errorf("verify says %v, want %q", err, words)
	}
	return &v
}

// content returns all events and links.
func (l *ledger) content() string {
	l.t.Helper()
	var links []string
	var x link
	err := l.store.eachRow(context.Background(), `SELECT`+linkColumns+` FROM event_link`, x.columns(), func() { links = append(links, fmt.Sprintf("%+v", x)) })
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.Join(append(eventLines(l.t, l.store, math.MinInt64), links...), "\n")
}

// forgeTrim deletes the events up to one with a link as userd does, whatever their time.
func (l *ledger) forgeTrim(upTo int64) {
	l.t.Helper()
	v, err := l.store.verifyEvents(context.Background(), upTo, head{})
	if err == nil && v.head.eventID != upTo {
		err = fmt.Errorf("no link at event %d", upTo)
	}
	if err == nil {
		err = l.store.trim(context.Background(), v.head, 2777777778)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func TestLinkedEventsHold(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	v := l.wantChain(head{}, "")
	if v.events != 12 || v.links != 4 || v.unlinked.events != 1 || v.head.eventID != 12 || v.base.eventID != 0 {
		t.Errorf("got %+v", v)
	}
	l.mustExtend()
	before := l.content()
	l.mustExtend()
	if after := l.content(); after != before {
		t.Errorf("without new events it adds a link: %s", after)
	}
	if v := l.wantChain(v.head.name(), ""); v.events != 13 || v.links != 5 || v.unlinked.events != 0 {
		t.Errorf("got %+v", v)
	}
	addEvents(t, l.store, 2*linkSize+1)
	l.mustExtend()
	if v := l.wantChain(head{}, ""); v.links != 8 || v.unlinked.events != 0 {
		t.Errorf("a link covers more than %d events: got %+v", linkSize, v)
	}
	if v, err := l.store.verifyEvents(context.Background(), 6, head{}); err != nil || v.events != 6 || v.unlinked.events != 0 {
		t.Errorf("up to event 6: %+v, %v", v, err)
	}
	for _, query := range l.store.reads.Queries() {
		if strings.Contains(query, "UNION ALL") {
			if got := plan(t, another(t, l.path), query); strings.Contains(got, "TEMP B-TREE") {
				t.Errorf("verifying sorts the table:\n%s", got)
			}
			return
		}
	}
	t.Error("the statement that verifies was not found")
}

// forgedChanges are changes by a program that does not recompute the chain, with the first
// range of events that then does not hold.
var forgedChanges = []struct{ act, sql, fault string }{
	{"an event changed", `UPDATE event SET address = '198.51.100.1' WHERE id = 5`, "events 4 to 6 were changed"},
	{"the time of an event", `UPDATE event SET at = at + 1 WHERE id = 1`, "events 1 to 3 were"},
	{"the type of an event", `UPDATE event SET type = 'logout' WHERE id = 7`, "events 7 to 9 were"},
	{"the actor of an event", `UPDATE event SET actor_id = 1 WHERE id = 7`, "events 7 to 9 were"},
	{"the user of an event", `UPDATE event SET user_id = 1 WHERE id = 7`, "events 7 to 9 were"},
	{"the session of an event", `UPDATE event SET session_id = 0 WHERE id = 7`, "events 7 to 9 were"},
	{"the changes of an event", `UPDATE event SET changes = 'x' WHERE id = 7`, "events 7 to 9 were"},
	{"a text moved from one column to the next", `UPDATE event SET address = '', changes = address || changes WHERE id = 7`, "events 7 to 9 were"},
	{"two events changed", `UPDATE event SET at = 0 WHERE id IN (5, 8)`, "events 4 to 6 were"},
	{"an event removed", `DELETE FROM event WHERE id = 8`, "events 7 to 9 were"},
	{"the last event of a link removed", `DELETE FROM event WHERE id = 6`, "events 4 to 6 were"},
	{"all events of a link removed", `DELETE FROM event WHERE id BETWEEN 4 AND 6`, "events 4 to 6 were"},
	{"all events of the last link removed", `DELETE FROM event WHERE id >= 10`, "events 10 to 12 were"},
	{"a range removed with its link", `DELETE FROM event WHERE id BETWEEN 4 AND 6; DELETE FROM event_link WHERE event_id = 6`, "events 4 to 9 were"},
	{"an event inserted in front", `INSERT INTO event SELECT -1, at, type, actor_id, user_id, session_id, address, changes FROM event LIMIT 1`, "events 1 to 3 were"},
	{"an event given another id", `DELETE FROM event WHERE id = 13; UPDATE event SET id = 13 WHERE id = 5`, "events 4 to 6 were"},
	{"two events exchanged", `UPDATE event SET id = 99 WHERE id = 5; UPDATE event SET id = 5 WHERE id = 4; UPDATE event SET id = 4 WHERE id = 99`, "events 4 to 6 were"},
	{"a link removed", `DELETE FROM event_link WHERE event_id = 6`, "events 4 to 9 were"},
	{"the hash of a link changed", `UPDATE event_link SET hash = zeroblob(32) WHERE event_id = 6`, "events 4 to 6 were"},
	{"the time of a link changed", `UPDATE event_link SET at = 1 WHERE event_id = 6`, "events 4 to 6 were"},
	{"a link moved to the next event", `UPDATE event_link SET event_id = 13 WHERE event_id = 12; DELETE FROM event WHERE id = 13`, "events 10 to 13 were"},
	{"a link added", `INSERT INTO event_link SELECT 5, at, hash, NULL, NULL FROM event_link WHERE event_id = 6`, "events 4 to 5 were"},
	{"a link added after the last event", `INSERT INTO event_link SELECT 14, at, hash, NULL, NULL FROM event_link WHERE event_id = 12`, "events 13 to 14 were"},
	{"the first link removed with its events", `DELETE FROM event WHERE id <= 3; DELETE FROM event_link WHERE event_id = 3`, "events 1 to 6 were"},
	{"the oldest removed, as if trimmed", `DELETE FROM event WHERE id <= 6; DELETE FROM event_link WHERE event_id < 6`, "events 1 to 6 are deleted"},
	{"the oldest removed, with a proof made up", `DELETE FROM event WHERE id <= 6; DELETE FROM event_link WHERE event_id < 6; UPDATE event_link SET previous = hash, digest = hash`, "events 1 to 6 are deleted"},
	{"everything but the newest removed", `DELETE FROM event WHERE id <= 12; DELETE FROM event_link WHERE event_id < 12`, "events 1 to 12 are deleted"},
}

func TestVerifyNamesTheFirstRangeThatDoesNotHold(t *testing.T) {
	t.Parallel()
	whole := newLedger(t)
	for _, c := range forgedChanges {
		t.Run(c.act, func(t *testing.T) {
			l := whole.copy(t, c.sql)
			v, err := l.store.verifyEvents(context.Background(), math.MaxInt64, head{})
			if !errors.Is(err, errChainBroken) || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("verify says %v, want %q", err, c.fault)
			}
			if want := strings.Fields(c.fault)[1]; fmt.Sprint(v.head.eventID+1) != want {
				t.Errorf("events up to %d hold, and those from %s do not", v.head.eventID, want)
			}
		})
	}
	t.Run("a proof of what is not deleted changes nothing", func(t *testing.T) {
		l := whole.copy(t, `UPDATE event_link SET previous = hash, digest = hash WHERE event_id = 6`)
		l.wantChain(head{}, "")
	})
	t.Run("the base", func(t *testing.T) {
		trimmed := whole.copy(t)
		trimmed.forgeTrim(6)
		trimmed.wantChain(head{}, "")
		for _, set := range []string{
			`at = 1`, `hash = zeroblob(32)`, `previous = zeroblob(32)`, `previous = NULL`, `digest = zeroblob(32)`, `digest = NULL`, `event_id = 5`,
			`digest = digest || x'00'`, `previous = substr(previous, 2), digest = substr(previous, 1, 1) || digest`,
		} {
			trimmed.copy(t, `UPDATE event_link SET `+set+` WHERE event_id = 6`).wantChain(head{}, "are deleted, and the last link that covered them")
		}
		trimmed.copy(t, `DELETE FROM event_link WHERE event_id = 6`).wantChain(head{}, "events 1 to 9 were changed")
	})
}

// The hash of a BLOB is that of the same text, but a filter does not find it.
// A damaged index hides events from lists with a filter. The chain is verified from the table.
func TestVerifyReadsTheTableAndNoIndex(t *testing.T) {
	t.Parallel()
	l := newLedger(t).copy(t,
		`PRAGMA writable_schema = ON`,
		`UPDATE sqlite_schema SET sql = sql || ' WHERE id < 0' WHERE name = 'event_type'`,
		`PRAGMA writable_schema = RESET`,
		`REINDEX event_type`,
		`PRAGMA writable_schema = ON`,
		`UPDATE sqlite_schema SET sql = replace(sql, ' WHERE id < 0', '') WHERE name = 'event_type'`,
		`PRAGMA writable_schema = RESET`)
	err := l.store.events(t.Context(), 0, 1, eventFilter{kind: loggedIn}, func(e *event) { t.Errorf("event %d is found by the index, which should be damaged", e.id) })
	if err != nil {
		t.Fatal(err)
	}
	if v := l.wantChain(head{}, ""); v.events != 12 || v.unlinked.events != 1 {
		t.Errorf("verified: %+v", v)
	}
	if found, err := l.store.checkIntegrity(t.Context()); err != nil || !strings.Contains(strings.Join(found, "; "), "event_type") {
		t.Errorf("the check finds %q, %v", found, err)
	}
}

func TestVerifyFindsAValueOfAnotherType(t *testing.T) {
	t.Parallel()
	whole := newLedger(t)
	for _, column := range []string{"at", "type", "actor_id", "user_id", "session_id", "address", "changes"} {
		whole.copy(t, `UPDATE event SET `+column+` = CAST(CAST(`+column+` AS TEXT) AS BLOB) WHERE id = 4`).
			wantChain(head{}, "event 4 has a value of another type than its column")
	}
}

// A head that was noted elsewhere finds every change up to it, by anyone.
func TestAHeadShowsWhatWasCutOff(t *testing.T) {
	t.Parallel()
	whole := newLedger(t)
	whole.mustExtend()
	noted := whole.wantChain(head{}, "").head.name()
	if noted.eventID != 13 {
		t.Fatalf("the head is %s", noted)
	}
	whole.wantChain(noted, "")
	whole.wantChain(head{12, noted.hash}, "is not in the chain: its events were changed")
	whole.wantChain(head{11, noted.hash}, "is not in the chain: its events were changed")
	whole.wantChain(head{14, noted.hash}, "is not in the chain: the newest link is at event 13")
	whole.wantChain(head{13, strings.Repeat("0", 64)}, "is not in the chain: its events were changed")

	for _, c := range []struct{ act, sql, fault string }{
		{"the end cut off", `DELETE FROM event WHERE id > 9; DELETE FROM event_link WHERE event_id > 9`, "newer events or links were removed"},
		{"everything removed", `DELETE FROM event; DELETE FROM event_link`, "newer events or links were removed"},
		{"the links removed", `DELETE FROM event_link`, "newer events or links were removed"},
	} {
		t.Run(c.act, func(t *testing.T) {
			l := whole.copy(t, c.sql)
			l.wantChain(head{}, "")
			l.wantChain(noted, c.fault)
		})
	}
	older := newLedger(t)
	notedOlder := older.wantChain(head{}, "").head.name()
	for _, c := range forgedChanges {
		t.Run(c.act+", and the chain recomputed", func(t *testing.T) {
			l := older.copy(t, c.sql, `DELETE FROM event_link`, `UPDATE event SET id = 14 WHERE id < 0`)
			l.mustExtend()
			l.wantChain(head{}, "")
			l.wantChain(notedOlder, "is not in the chain")
		})
	}
	t.Run("the head itself is kept by a trimming up to it", func(t *testing.T) {
		l := whole.copy(t)
		older := l.wantChain(head{}, "").head
		l.forgeTrim(13)
		l.wantChain(older.name(), "")
		l.wantChain(head{9, noted.hash}, "events up to 13 were deleted since; note a newer head")
		l.wantChain(head{13, strings.Repeat("0", 64)}, "its events were changed")
	})
	t.Run("a server does not continue from an older head", func(t *testing.T) {
		l := whole.copy(t)
		l.mustExtend()
		runSQL(t, another(t, l.path), `DELETE FROM event WHERE id > 9; DELETE FROM event_link WHERE event_id > 9`)
		addEvents(t, l.store, 1)
		before := l.content()
		wantError(t, "linking", l.chain.extend(context.Background()), errHeadChanged)
		if after := l.content(); after != before {
			t.Errorf("it adds a link: %s", after)
		}
	})
	t.Run("or from another head at the same event", func(t *testing.T) {
		l := whole.copy(t)
		l.mustExtend()
		runSQL(t, another(t, l.path), `UPDATE event_link SET hash = zeroblob(32) WHERE event_id = 13`)
		addEvents(t, l.store, 1)
		wantError(t, "linking", l.chain.extend(context.Background()), errHeadChanged)
	})
	t.Run("or from a head before its own newest", func(t *testing.T) {
		l := whole.copy(t)
		addEvents(t, l.store, 1)
		l.mustExtend()
		runSQL(t, another(t, l.path), `DELETE FROM event_link WHERE event_id = 14`)
		wantError(t, "linking", l.chain.extend(context.Background()), errHeadChanged)
	})
}

// Deleting the oldest events as userd does leaves a chain that holds. Its base shows it.
func TestAForgedTrimIsFoundByTheAgeOfTheBase(t *testing.T) {
	t.Parallel()
	const last = 1777777777 // the time of all events
	l := newLedger(t)
	if v := l.wantChain(head{}, ""); checkBase(v, time.Hour, time.Unix(last, 0)) != nil || checkBase(v, 0, time.Unix(last, 0)) != nil {
		t.Error("without a base it is too young")
	}
	noted := l.wantChain(head{}, "").head.name()
	l.forgeTrim(6)
	v := l.wantChain(noted, "")
	if v.base.eventID != 6 || v.base.at != last {
		t.Fatalf("the base is %+v", v.base)
	}
	for _, c := range []struct {
		claim     string
		now       int64
		retention time.Duration
		words     string // of the error; empty: none
	}{
		{"one of now", last, time.Hour, "keeps events for 1h0m0s"},
		{"one in the future", last - 9999999, time.Hour, "were deleted too early"},
		{"one as old as the retention", last + 3600, time.Hour, "events up to 6, the last from 2026-05-03T03:09:37Z, were deleted too early"},
		{"one a second older than that", last + 3601, time.Hour, ""},
		{"one of a short retention that became long", last + 3601, 2 * time.Hour, "also happens after EVENT_RETENTION was made longer"},
		{"one of a retention that became endless", last + 1e9, 0, "keeps all events"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			err := checkBase(v, c.retention, time.Unix(c.now, 0))
			if c.words == "" && err != nil || c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) {
				t.Errorf("got %v, want %q", err, c.words)
			}
		})
	}
	t.Run("and what userd trims is always old enough", func(t *testing.T) {
		l := newLedger(t)
		now := time.Unix(last+3601, 0)
		for before := now.Add(-time.Hour).Unix(); l.mustTrim(before); {
		}
		v := l.wantChain(head{}, "")
		if err := checkBase(v, time.Hour, now); v.base.eventID != 12 || err != nil {
			t.Errorf("the base is %+v: %v", v.base, err)
		}
	})
}

// The clock can be set back, and a program that writes the file can add an event with an
// old time, which the server then links. Neither must make later events look old.
func TestAnEventWithAnOldTimeDoesNotMakeTheBaseOld(t *testing.T) {
	t.Parallel()
	const last = 1777777777 // the time of the other events
	l := newLedger(t)
	runSQL(t, another(t, l.path), `INSERT INTO event (at, type, actor_id, user_id, session_id, address, changes) VALUES (1, 'login', 0, 0, 0, '', '')`)
	l.mustExtend()
	for _, upTo := range []int64{12, 14} {
		l.forgeTrim(upTo)
		v := l.wantChain(head{}, "")
		if v.base.at != last || checkBase(v, time.Hour, time.Unix(last+10, 0)) == nil {
			t.Errorf("the base at event %d has the time %d", upTo, v.base.at)
		}
	}
}

func TestTrimmingLeavesWhatVerifies(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	noted := l.wantChain(head{}, "").head.name()
	other := another(t, l.path)
	runSQL(t, other, `UPDATE event SET at = 2777777777 WHERE id >= 8; DELETE FROM event_link WHERE event_id > 6`)
	l.last = link{}
	l.mustExtend()
	if l.mustTrim(1777777777) {
		t.Error("it trims what is not from before the time")
	}
	if !l.mustTrim(1777777778) || l.mustTrim(1777777778) {
		t.Error("it does not trim once")
	}
	if got := eventLines(t, l.store, 13); len(got) != 1 || got[0] != `events_trimmed actor=0 user=0 session=0 "" "until=6"` {
		t.Errorf("the trimming is the event %q", got)
	}
	if first := scan[int64](t, other, `SELECT min(id) FROM event`); first != 7 {
		t.Errorf("the first event left is %d: only whole ranges go, up to the first event to be kept", first)
	}
	v := l.wantChain(head{}, "")
	if v.events != 7 || v.unlinked.events != 1 || v.base.eventID != 6 || v.base.at != 1777777777 {
		t.Errorf("got %+v", v)
	}
	l.wantChain(head{3, noted.hash}, "note a newer head")
	l.mustExtend()
	l.wantChain(head{}, "")
	t.Run("again, from a base", func(t *testing.T) {
		if !l.mustTrim(2777777778) {
			t.Error("it does not trim")
		}
		if v := l.wantChain(head{}, ""); v.base.eventID != 13 || v.events != 1 {
			t.Errorf("got %+v", v)
		}
	})
}

// The server trims only verified events: it must not delete the traces of a change.
func TestTrimmingRefusesEventsThatDoNotMatchTheChain(t *testing.T) {
	t.Parallel()
	whole := newLedger(t)
	trimmed := newLedger(t)
	trimmed.forgeTrim(6)
	refused := 0
	for _, c := range append(slices.Clone(forgedChanges), []struct{ act, sql, fault string }{
		{"all times changed, so that all events look old", `UPDATE event SET at = 1`, "events 1 to 3 were changed"},
		{"a base with an old time", `UPDATE event_link SET at = 1 WHERE event_id = 6`, "are deleted"},
	}...) {
		t.Run(c.act, func(t *testing.T) {
			from := whole
			if strings.Contains(c.act, "base") {
				from = trimmed
			}
			l := from.copy(t, c.sql)
			before := l.content()
			var first int64
			fmt.Sscanf(c.fault, "events %d", &first)
			if upTo, err := l.store.trimmable(1 << 40); err != nil || upTo < first {
				return // it would trim only what was not changed
			}
			refused++
			_, err := l.chain.trim(context.Background(), 1<<40, 9)
			if !errors.Is(err, errChainBroken) || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("trimming says %v, want %q", err, c.fault)
			}
			if after := l.content(); after != before {
				t.Errorf("it was\n%s\nand is\n%s", before, after)
			}
		})
	}
	if refused < 20 {
		t.Errorf("%d changes were refused", refused)
	}
}

func TestTheNewestEventIsNeverDeleted(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.mustExtend()
	for range 3 {
		if !l.mustTrim(1 << 40) {
			t.Fatal("it does not trim")
		}
		l.mustExtend()
		l.wantChain(head{}, "")
	}
	// 13 events and their trimmings: each begins with a new one.
	if id, _ := l.lastEvent(); id != 16 {
		t.Errorf("the newest event is %d, want 16", id)
	}
}

func TestTrimmingIsDoneInSteps(t *testing.T) {
	t.Parallel()
	l := openLedger(t, filepath.Join(t.TempDir(), "app.db"))
	addEvents(t, l.store, 3*trimSize)
	l.mustExtend()
	for step := 1; step <= 3; step++ {
		if !l.mustTrim(1 << 40) {
			t.Fatal("it does not trim")
		}
		if n := scan[int](t, another(t, l.path), `SELECT count(*) FROM event`); n != (3-step)*trimSize+step {
			t.Errorf("after step %d there are %d events", step, n)
		}
		l.wantChain(head{}, "")
	}
}

// A step that fails, as one whose process is killed, leaves a chain that holds and that
// the next process continues.
func TestEveryStepOfTheChainLeavesItWhole(t *testing.T) {
	t.Parallel()
	for _, step := range []string{
		`BEFORE INSERT ON event_link WHEN new.event_id > 2500`,
		`AFTER INSERT ON event_link WHEN new.event_id > 2500`,
	} {
		l := openLedger(t, filepath.Join(t.TempDir(), "app.db"))
		addEvents(t, l.store, 4*linkSize)
		runSQL(t, another(t, l.path), `CREATE TRIGGER stop `+step+` BEGIN SELECT RAISE(ABORT, 'killed'); END`)
		if err := l.chain.extend(context.Background()); !errors.Is(err, errStorage) {
			t.Errorf("%s: linking says %v", step, err)
		}
		if v := l.wantChain(head{}, ""); v.links != 2 || v.unlinked.events != 2*linkSize {
			t.Errorf("%s: got %+v", step, v)
		}
		next := l.copy(t, `DROP TRIGGER stop`)
		next.mustExtend()
		if v := next.wantChain(l.last.name(), ""); v.links != 4 {
			t.Errorf("%s: got %+v", step, v)
		}
	}
	whole := newLedger(t)
	for _, step := range []string{
		`AFTER UPDATE ON event_link`, `AFTER INSERT ON event`,
		`BEFORE DELETE ON event`, `AFTER DELETE ON event WHEN old.id = 12`,
		`BEFORE DELETE ON event_link`, `AFTER DELETE ON event_link WHEN old.event_id = 9`,
	} {
		l := whole.copy(t)
		before := l.content()
		runSQL(t, another(t, l.path), `CREATE TRIGGER stop `+step+` BEGIN SELECT RAISE(ABORT, 'killed'); END`)
		if _, err := l.chain.trim(context.Background(), 1<<40, 9); !errors.Is(err, errStorage) {
			t.Errorf("%s: trimming says %v", step, err)
		}
		if after := l.content(); after != before {
			t.Errorf("%s: it was\n%s\nand is\n%s", step, before, after)
		}
		next := l.copy(t, `DROP TRIGGER stop`)
		if !next.mustTrim(1 << 40) {
			t.Errorf("%s: the next process does not trim", step)
		}
		next.wantChain(head{}, "")
	}
}

// Two processes on one file link and trim it at the same time.
func TestTwoProcessesMakeOneChain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	t.Run("if one has linked what the other was about to link", func(t *testing.T) {
		l := newLedger(t)
		newest, err := l.newestLink()
		if err != nil {
			t.Fatal(err)
		}
		late := tailAfter(newest)
		late.add(&event{id: 13})
		addEvents(t, l.store, 1)
		l.mustExtend()
		before := l.content()
		wantError(t, "the link that is too late", l.addLink(ctx, late.link()), errNotApplied)
		again := tailAfter(link{})
		again.add(&event{id: 99})
		wantError(t, "a second first link", l.addLink(ctx, again.link()), errNotApplied)
		if after := l.content(); after != before {
			t.Errorf("it was\n%s\nand is\n%s", before, after)
		}
	})
	t.Run("if one has trimmed what the other was about to trim", func(t *testing.T) {
		l := newLedger(t)
		upTo, err := l.trimmable(1 << 40)
		if err != nil {
			t.Fatal(err)
		}
		v, err := l.verifyEvents(ctx, upTo, head{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wantError(t, "the trimming", l.store.trim(ctx, v.head, 9), nil)
		}
		if got := eventLines(t, l.store, 13); len(got) != 1 {
			t.Errorf("it is the events %q, want one", got)
		}
		l.wantChain(head{}, "")
	})
	t.Run("if a link was replaced between its verification and the trimming", func(t *testing.T) {
		l := newLedger(t)
		v, err := l.verifyEvents(ctx, 12, head{})
		if err != nil {
			t.Fatal(err)
		}
		runSQL(t, another(t, l.path), `UPDATE event_link SET hash = zeroblob(32) WHERE event_id = 12`)
		before := l.content()
		wantError(t, "the trimming", l.store.trim(ctx, v.head, 9), nil)
		if after := l.content(); after != before {
			t.Errorf("it was\n%s\nand is\n%s", before, after)
		}
	})
	path := filepath.Join(t.TempDir(), "app.db")
	var group sync.WaitGroup
	for range 2 {
		l := openLedger(t, path)
		group.Go(func() {
			for range 30 {
				addEvents(t, l.store, 5)
				if err := l.chain.extend(ctx); err != nil {
					t.Error(err)
				}
				if _, err := l.chain.trim(ctx, 1<<40, 9); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	l := openLedger(t, path)
	l.mustExtend()
	if v := l.wantChain(head{}, ""); v.base.eventID == 0 || v.unlinked.events != 0 {
		t.Errorf("got %+v", v)
	}
}

func TestAServerLinksAndTrimsAsTimePasses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		retention time.Duration
		trims     bool
	}{{time.Hour, true}, {0, false}, {10 * 365 * 24 * time.Hour, false}} {
		t.Run(c.retention.String(), func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			cancel, done := l.keep(c.retention, testLog(t))
			trimmed := func() bool {
				return strings.Contains(strings.Join(eventLines(t, l.store, 0), "\n"), "events_trimmed")
			}
			for range 2 { // the second link shows that the turn of the first has ended
				want, _ := l.lastEvent()
				await(t, "the newest event is linked, and what is old is trimmed", func() bool {
					newest, err := l.newestLink()
					return err == nil && newest.eventID >= want && (trimmed() || !c.trims)
				})
				addEvents(t, l.store, 1)
			}
			cancel()
			receive(t, "keepChain ends", done)
			if trimmed() != c.trims {
				t.Errorf("with a retention of %v it trims: %t", c.retention, trimmed())
			}
			l.wantChain(head{}, "")
		})
	}
	t.Run("until the head is changed", func(t *testing.T) {
		t.Parallel()
		l := newLedger(t)
		runSQL(t, another(t, l.path), `DELETE FROM event_link WHERE event_id > 9`)
		log := new(lines)
		_, done := l.keep(time.Hour, slog.New(slog.NewTextHandler(log, nil)))
		receive(t, "keepChain ends by itself", done)
		if got := log.String(); !strings.Contains(got, "stopped linking and trimming events") || strings.Count(got, "level=ERROR") != 1 {
			t.Errorf("logged: %s", got)
		}
		if got := eventLines(t, l.store, 12); len(got) != 1 {
			t.Errorf("it has trimmed: %q", got)
		}
	})
	t.Run("and says once that it does not trim what does not hold", func(t *testing.T) {
		t.Parallel()
		l := newLedger(t)
		runSQL(t, another(t, l.path), `UPDATE event SET at = 1 WHERE id = 2`)
		log := new(lines)
		cancel, done := l.keep(time.Hour, slog.New(slog.NewTextHandler(log, nil)))
		await(t, "it says so", func() bool { return strings.Contains(log.String(), "did not trim events that do not match the chain") })
		before, _ := l.lastEvent()
		addEvents(t, l.store, 1)
		await(t, "it links on", func() bool { newest, err := l.newestLink(); return err == nil && newest.eventID == before+1 })
		cancel()
		receive(t, "keepChain ends", done)
		if got := log.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, "events 1 to 3 were changed") {
			t.Errorf("logged: %s", got)
		}
		if got := eventLines(t, l.store, 0); len(got) != 14 {
			t.Errorf("it has trimmed: %q", got)
		}
	})
}

// keep runs keepChain until cancel is called or keepChain ends by itself.
func (l *ledger) keep(retention time.Duration, log *slog.Logger) (cancel func(), done chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	done = make(chan struct{})
	go func() { keepChain(ctx, &l.chain, retention, log); close(done) }()
	return cancel, done
}

// lines are a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A running userd links what happens, and at its end the last of it.
func TestUserdLinksItsEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	p.register("ann")
	p.login("ann", goodPassword)
	if status := p.end(os.Interrupt); status != 0 {
		t.Fatalf("it ended with status %d", status)
	}
	verify := func(environ []string, args ...string) result {
		t.Helper()
		return userdProcess(t, dir, "", environ, append([]string{"events", "verify"}, args...)...)
	}
	printed := regexp.MustCompile(`^verified events: 2, in links: [12]\nhead: (2:[0-9a-f]{64})\nevents without a link yet: 0\n$`)
	r := verify(nil)
	said := printed.FindStringSubmatch(r.stdout)
	if r.status != 0 || said == nil {
		t.Fatalf("events verify: %+v", r)
	}
	noted := said[1]
	userdProcess(t, dir, goodPassword+"\n", nil, "user", "add", "bob", "bob@example.com")
	for _, spelled := range []string{noted, strings.ToUpper(noted)} {
		if r := verify(nil, spelled); r.status != 0 || !strings.HasSuffix(r.stdout, "\nevents without a link yet: 0\n") || !strings.Contains(r.stdout, "\nhead: 3:") {
			t.Errorf("with a head and a new event: %+v", r)
		}
	}
	for _, bad := range []string{"12:x", "x:" + noted[2:], noted[2:], noted + "0", noted + "00", noted[:len(noted)-1] + "g", "0" + noted[1:]} {
		if r := verify(nil, bad); r.status != 2 || !strings.Contains(r.stderr, "is not a head") {
			t.Errorf("with %q as the head: %+v", bad, r)
		}
	}
	if r := verify(nil, "3"+noted[1:]); r.status != 1 || !strings.Contains(r.stderr, "userd: the head 3"+noted[1:]+" is not in the chain") {
		t.Errorf("with another head: %+v", r)
	}

	conn := another(t, filepath.Join(dir, "app.db"))
	runSQL(t, conn, `UPDATE event SET address = '' WHERE id = 1`)
	if r := verify(nil); r.status != 1 || !strings.Contains(r.stderr, "userd: the chain of events is broken: events 1 to ") || strings.Contains(r.stdout, "head") {
		t.Errorf("after a change: %+v", r)
	}
	runSQL(t, conn, `UPDATE event SET address = '127.0.0.1' WHERE id = 1`)

	l := openLedger(t, filepath.Join(dir, "app.db"))
	l.forgeTrim(2)
	for _, c := range []struct {
		claim   string
		environ []string
		args    []string
		status  int
		words   string
	}{
		{"a base that is too young", nil, nil, 1, "events up to 2, the last from 20"},
		{"and a head", nil, []string{noted}, 1, "keeps events for 9600h0m0s"},
		{"and a head that was deleted", nil, []string{"1" + noted[1:]}, 1, "were deleted since"},
		{"a retention of a second", []string{"EVENT_RETENTION=1s"}, nil, 0, ""},
		{"as a flag", nil, []string{"-event-retention", "1"}, 0, ""},
		{"no retention", []string{"EVENT_RETENTION=0"}, nil, 1, "keeps all events"},
		{"a retention that is not one", []string{"EVENT_RETENTION=x"}, nil, 2, "EVENT_RETENTION"},
	} {
		await(t, "the events are two seconds old", func() bool {
			return scan[int64](t, conn, `SELECT unixepoch() - at FROM event_link WHERE event_id = 2`) > 1
		})
		r := verify(c.environ, c.args...)
		if r.status != c.status || !strings.Contains(r.stderr, c.words) || c.status < 2 && !strings.Contains(r.stdout, "\ndeleted events: up to 2, the last from 20") {
			t.Errorf("%s: %+v", c.claim, r)
		}
	}
	if r := userdProcess(t, dir, "", nil, "events", "-event-retention", "1s"); r.status != 2 {
		t.Errorf("another command accepts the retention: %+v", r)
	}
}

// The server must not delete the traces of a change because it makes events look old.
func TestUserdDoesNotTrimEventsThatWereMadeToLookOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	p.register("ann")
	p.end(os.Interrupt)
	noted := strings.TrimSpace(regexp.MustCompile(`1:[0-9a-f]+`).FindString(userdProcess(t, dir, "", nil, "events", "verify").stdout))
	conn := another(t, filepath.Join(dir, "app.db"))
	runSQL(t, conn, `UPDATE event SET at = 1`)

	p = startUserd(t, dir, nil)
	record := p.awaitLog("did not trim events that do not match the chain: run userd events verify")
	if record["level"] != "ERROR" || !strings.Contains(fmt.Sprint(record["err"]), "events 1 to 1 were changed") {
		t.Errorf("logged: %v", record)
	}
	p.end(os.Interrupt)
	if got := scan[string](t, conn, `SELECT group_concat(type || at) FROM event`); got != "user_created1" {
		t.Errorf("the events are %s", got)
	}
	for _, args := range [][]string{nil, {noted}} {
		r := userdProcess(t, dir, "", nil, append([]string{"events", "verify"}, args...)...)
		if r.status != 1 || !strings.Contains(r.stderr, "events 1 to 1 were changed") {
			t.Errorf("events verify %v: %+v", args, r)
		}
	}
}

// A command that wrote events links them at its end. A command that only reads writes nothing.
func TestACommandLinksItsEvents(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	sh := &shell{t, path}
	events := int64(0)
	for _, c := range []struct {
		stdin  string
		status int
		args   string
		writes int64 // events
	}{
		{goodPassword + "\n", 0, "user add -admin root root@example.com", 1},
		{goodPassword + "\n", 0, "user add ann ann@example.com", 1},
		{"", 0, "user set -username anna ann", 1},
		{goodPassword + "\n", 0, "user passwd anna", 1},
		{"username,email,password\nbob,bob@example.com," + goodPassword + "\n", 0, "user import -", 1},
		{"username,email,password\ncas,cas@example.com," + goodPassword + "\n?,,\n", 1, "user import -partial -", 1},
		{"", 0, "user delete bob", 1},
		{"", 0, "key rotate", 1},
		{"", 1, "user delete root", 0},
		{"", 0, "user list", 0},
		{"", 0, "user show anna", 0},
		{"", 0, "user export", 0},
		{"", 0, "session list anna", 0},
		{"", 0, "key list", 0},
		{"", 0, "events", 0},
		{"", 0, "events verify", 0},
		{"", 0, "adopt", 0},
	} {
		t.Run(c.args, func(t *testing.T) {
			sh := &shell{t, path}
			if c.writes == 0 && events > 0 {
				// An event of a running server, which a reader must not link.
				l := openLedger(t, path)
				addEvents(t, l.store, 1)
				events++
				before := l.content()
				sh.run(c.status, c.stdin, strings.Fields(c.args)...)
				if after := l.content(); after != before {
					t.Errorf("it was\n%s\nand is\n%s", before, after)
				}
				l.mustExtend()
				return
			}
			sh.run(c.status, c.stdin, strings.Fields(c.args)...)
			events += c.writes
			l := openLedger(t, path)
			if v := l.wantChain(head{}, ""); v.head.eventID != events || v.unlinked.events != 0 {
				t.Errorf("%d events were written, the newest link is at %d, and %d events have none", events, v.head.eventID, v.unlinked.events)
			}
		})
	}
	l := openLedger(t, path)
	aSessionWith(t, l.store, 1)
	sh.run(0, "", "session", "end", "root")
	if v := l.wantChain(head{}, ""); v.unlinked.events != 0 {
		t.Errorf("%d events have no link", v.unlinked.events)
	}
	t.Run("a link that fails is a warning, since the act is done", func(t *testing.T) {
		newest := scan[int](t, another(t, path), `SELECT max(event_id) FROM event_link`)
		runSQL(t, another(t, path), fmt.Sprintf(`CREATE UNIQUE INDEX stop ON event_link (min(event_id, %d))`, newest))
		_, said := sh.run(0, "", "key", "rotate")
		if !strings.Contains(said, "warning: could not link the new events") {
			t.Errorf("it says %q", said)
		}
	})
}

// A server and commands write to one file, and every one of them adds links.
func TestAServerAndCommandsMakeOneChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	var heads []string
	for i := range 8 {
		p.register("member" + strconv.Itoa(i))
		if r := userdProcess(t, dir, "", nil, "key", "rotate"); r.status != 0 {
			t.Fatalf("key rotate: %+v", r)
		}
		r := userdProcess(t, dir, "", nil, "events", "verify")
		if r.status != 0 {
			t.Fatalf("events verify: %+v", r)
		}
		heads = append(heads, regexp.MustCompile(`\d+:[0-9a-f]{64}`).FindString(r.stdout))
	}
	p.end(os.Interrupt)
	for _, noted := range heads {
		if r := userdProcess(t, dir, "", nil, "events", "verify", noted); r.status != 0 || !strings.HasSuffix(r.stdout, "without a link yet: 0\n") {
			t.Errorf("events verify %s: %+v", noted, r)
		}
	}
}

// oldDatabase makes a database of the schema before links, of users, events and seals.
func oldDatabase(t *testing.T, queries ...string) string {
	t.Helper()
	return makeDatabase(t, append([]string{
		migrations[0],
		`CREATE TABLE event (
			id         INTEGER NOT NULL PRIMARY KEY,
			at         INTEGER NOT NULL,
			type       TEXT NOT NULL,
			actor_id   INTEGER NOT NULL,
			user_id    INTEGER NOT NULL,
			session_id INTEGER NOT NULL,
			address    TEXT NOT NULL,
			changes    TEXT NOT NULL
		);
		CREATE INDEX event_user ON event (user_id);
		CREATE INDEX event_type ON event (type);
		CREATE TABLE seal (
			event_id INTEGER NOT NULL PRIMARY KEY,
			key_id   TEXT NOT NULL,
			mac      BLOB NOT NULL,
			anchor   BLOB NOT NULL DEFAULT x''
		)`,
		fmt.Sprintf(`PRAGMA application_id = %d`, applicationID), `PRAGMA user_version = 2`, `PRAGMA journal_mode = WAL`,
		`INSERT INTO user (username, email, password_hash, role) VALUES ('root', 'root@example.com', '` + someHash + `', 'admin')`, `UPDATE counter SET user_id = 1`,
		`INSERT INTO secret (name, value) VALUES ('seal', zeroblob(32)), ('refresh', zeroblob(32))`,
		`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
			INSERT INTO event (at, type, actor_id, user_id, session_id, address, changes) SELECT 1777777777, 'login', 0, 0, i, '192.0.2.1', '' FROM n`,
		`INSERT INTO seal (event_id, key_id, mac) VALUES (1000, '0a0b0c0d', zeroblob(32)), (2000, '0a0b0c0d', zeroblob(32))`,
	}, queries...)...)
}

func TestLinksReplaceSeals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim   string
		queries []string
		events  int
		links   int
	}{
		{"of all events", nil, 2500, 3},
		{"of events that were trimmed", []string{`DELETE FROM event WHERE id <= 1000`, `UPDATE seal SET anchor = mac WHERE event_id = 1000`}, 1500, 2},
		{"of all events, in the schema just before", []string{migrations[2], `PRAGMA user_version = 3`}, 2500, 3},
		{"of no events", []string{`DELETE FROM event`, `DELETE FROM seal`}, 0, 0},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			path := oldDatabase(t, c.queries...)
			sh := &shell{t, path}
			if out, _ := sh.run(0, "", "check"); !strings.Contains(out, "nothing found; 1 user,") {
				t.Errorf("check of the old schema: %s", out)
			}
			sh.run(0, "", "user", "list") // migrates the schema, and adds no event
			conn := another(t, path)
			if got := scan[string](t, conn, `SELECT coalesce(group_concat(name), '') FROM (SELECT name FROM secret UNION ALL SELECT name FROM sqlite_schema WHERE name = 'seal')`); got != "refresh" {
				t.Errorf("of the seals and secrets %q is left", got)
			}
			why := "no event has a link"
			if c.events == 0 {
				why = "the database has no events"
			}
			if out, _ := sh.run(0, "", "events", "verify"); out != fmt.Sprintf("no head yet: %s\nevents without a link yet: %d\n", why, c.events) {
				t.Errorf("before the first link, events verify prints %s", out)
			}
			l := openLedger(t, path)
			if v := l.wantChain(head{}, ""); v.links != 0 || v.unlinked.events != c.events {
				t.Errorf("before the first link: %+v", v)
			}
			l.mustExtend()
			v := l.wantChain(head{}, "")
			if v.events != c.events || v.links != c.links || v.unlinked.events != 0 || v.base.eventID != 0 {
				t.Errorf("got %+v", v)
			}
			if out, _ := sh.run(0, "", "check"); !strings.Contains(out, "nothing found; 1 user,") {
				t.Errorf("check of the new schema: %s", out)
			}
			sh.run(0, goodPassword+"\n", "user", "add", "ann", "ann@example.com")
			if v := l.wantChain(v.head.name(), ""); v.links != c.links+1 {
				t.Errorf("after a command: %+v", v)
			}
			if more, err := l.chain.trim(context.Background(), 1777777778, 9); err != nil || more != (c.events > 0) {
				t.Errorf("trimming: %t, %v", more, err)
			}
			l.wantChain(head{}, "")
		})
	}
	t.Run("and a command that writes links the older events too", func(t *testing.T) {
		t.Parallel()
		path := oldDatabase(t)
		(&shell{t, path}).run(0, goodPassword+"\n", "user", "add", "ann", "ann@example.com")
		if v := openLedger(t, path).wantChain(head{}, ""); v.events != 2501 || v.links != 3 || v.unlinked.events != 0 {
			t.Errorf("got %+v", v)
		}
	})
	t.Run("and a server does", func(t *testing.T) {
		t.Parallel()
		path := oldDatabase(t)
		p := startUserd(t, t.TempDir(), []string{"DATABASE_URL=" + path, "EVENT_RETENTION=0"})
		if status := p.end(os.Interrupt); status != 0 {
			t.Errorf("it ended with status %d", status)
		}
		if v := openLedger(t, path).wantChain(head{}, ""); v.events != 2500 || v.links != 3 {
			t.Errorf("got %+v", v)
		}
	})
	t.Run("and a check misses the table of links", func(t *testing.T) {
		t.Parallel()
		path := oldDatabase(t)
		sh := &shell{t, path}
		sh.run(0, "", "user", "list")
		runSQL(t, another(t, path), `ALTER TABLE event_link DROP COLUMN digest`)
		if out, _ := sh.run(1, "", "check"); !strings.Contains(out, "column digest of table event_link is missing") {
			t.Errorf("check says %s", out)
		}
		runSQL(t, another(t, path), `DROP TABLE event_link`)
		if _, said := sh.run(1, "", "user", "list"); !strings.Contains(said, "event_link") {
			t.Errorf("user list says %s", said)
		}
	})
}

// No two lists of events, and no two links, are the same bytes to a hash.
func TestADigestTellsEventsApart(t *testing.T) {
	t.Parallel()
	sums := make(map[string]string)
	add := func(name, sum string) {
		if other, ok := sums[sum]; ok {
			t.Errorf("%s and %s are the same", name, other)
		}
		sums[sum] = name
	}
	for _, e := range []event{
		{}, {id: 1}, {at: 1}, {actorID: 1}, {userID: 1}, {sessionID: 1}, {kind: "a"}, {address: "a"}, {changes: "a"},
		{kind: "ab"}, {kind: "a", address: "b"}, {address: "ab"}, {address: "a", changes: "b"}, {id: 1 << 8}, {id: -1},
	} {
		l := tailAfter(link{})
		l.add(&e)
		add(fmt.Sprintf("%+v", e), string(l.link().digest))
	}
	a, b := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	for _, x := range []link{
		{}, {eventID: 1}, {at: 1}, {previous: a}, {previous: b}, {digest: a}, {digest: b}, {previous: a, digest: b}, {previous: b, digest: a}, {previous: a[:16]}, {digest: a[:31]},
	} {
		add(fmt.Sprintf("%+v", x), string(x.sum()))
	}
}

// The chain is documented so that others can recompute it: it must not change.
func TestTheChainIsAsDocumented(t *testing.T) {
	t.Parallel()
	l := tailAfter(link{})
	l.add(&event{id: 1, at: 1777777777, kind: userCreated, userID: 1, address: "console", changes: "role=admin"})
	first := l.link()
	l = tailAfter(first)
	l.add(&event{id: 2, at: 1777777778, kind: loggedIn, actorID: 1, userID: 1, sessionID: 1, address: "127.0.0.1"})
	l.add(&event{id: 3, at: 1777777779, kind: userDeleted, actorID: 1, userID: 1, sessionID: 1, address: "127.0.0.1"})
	second := l.link()
	if got, want := first.name().String(), "1:0907e7e76d09b990aacfd669ec7487e66176ce1974b4fbadb4752730a5e10803"; got != want {
		t.Errorf("the first head is %s, want %s", got, want)
	}
	if got, want := second.name().String(), "3:ae343cd97705e7dba8420fbd2c6dae368f20c686ade441c8003dc2e665c3766a"; got != want {
		t.Errorf("the second head is %s, want %s", got, want)
	}
}
