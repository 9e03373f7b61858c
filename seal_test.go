package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A ledger is a database with sealed events.
type ledger struct {
	*store
	t    *testing.T
	path string
	sealer
	keys []sealKey
}

// newLedger makes a ledger of four seals, on the events 1 to 3, 4 to 6, 7 to 9
// and 10 to 12, and an event after them.
func newLedger(t *testing.T, secret string) *ledger {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	l := &ledger{store: openTestStore(t, path), t: t, path: path}
	var err error
	if l.keys, err = loadSealKeys(context.Background(), l.store, []byte(secret)); err != nil {
		t.Fatal(err)
	}
	l.sealer = sealer{st: l.store, key: l.keys[0]}
	for range 4 {
		addEvents(t, l.store, 3)
		l.mustSeal()
	}
	addEvents(t, l.store, 1)
	return l
}

func (l *ledger) mustSeal() {
	l.t.Helper()
	if err := l.sealer.seal(context.Background()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *ledger) verify(noted head) (verdict, error) {
	return verifyEvents(context.Background(), l.store, l.keys, noted)
}

// wantFault fails the test unless the events verify as the words say, or, where
// there are none, well.
func (l *ledger) wantFault(noted head, words string) verdict {
	l.t.Helper()
	v, err := l.verify(noted)
	if words == "" && err != nil || words != "" && (err == nil || !strings.Contains(err.Error(), words)) {
		l.t.Errorf("verify says %v, want %q", err, words)
	}
	return v
}

var longKey = strings.Repeat("seal", 8)

func TestSealedEventsHold(t *testing.T) {
	t.Parallel()
	l := newLedger(t, "")
	v := l.wantFault(head{}, "")
	if v.events != 12 || v.seals != 4 || v.unsealed != 1 || v.head.eventID != 12 {
		t.Errorf("got %+v", v)
	}
	l.mustSeal()
	l.mustSeal() // there is nothing new
	if v := l.wantFault(v.head, ""); v.events != 13 || v.seals != 5 || v.unsealed != 0 {
		t.Errorf("got %+v", v)
	}
	addEvents(t, l.store, 2*sealSize+1)
	l.mustSeal()
	if v := l.wantFault(head{}, ""); v.seals != 8 || v.unsealed != 0 {
		t.Errorf("a backlog is sealed in steps: got %+v", v)
	}
	if got := plan(t, another(t, l.path), trailQuery(t, l.store)); strings.Contains(got, "TEMP B-TREE") {
		t.Errorf("verifying sorts the table:\n%s", got)
	}
}

// trailQuery returns the statement of trail.
func trailQuery(t *testing.T, st *store) string {
	t.Helper()
	for query := range st.reads.stmts {
		if strings.Contains(query, "UNION ALL") {
			return query
		}
	}
	t.Fatal("trail has not run")
	return ""
}

// Whatever somebody without the key does to what is sealed, the first range that
// it touches is named.
func TestVerifyNamesTheFirstRangeThatDoesNotHold(t *testing.T) {
	t.Parallel()
	ledgers := []*ledger{newLedger(t, ""), newLedger(t, longKey)}
	for _, c := range []struct{ act, sql, fault string }{
		{"nothing", ``, ""},
		{"an event changed", `UPDATE event SET address = '198.51.100.1' WHERE id = 5`, "events 4 to 6 were"},
		{"the time of an event", `UPDATE event SET at = at + 1 WHERE id = 1`, "events 1 to 3 were"},
		{"the type of an event", `UPDATE event SET type = 'logout' WHERE id = 7`, "events 7 to 9 were"},
		{"the actor of an event", `UPDATE event SET actor_id = 1 WHERE id = 7`, "events 7 to 9 were"},
		{"the user of an event", `UPDATE event SET user_id = 1 WHERE id = 7`, "events 7 to 9 were"},
		{"the session of an event", `UPDATE event SET session_id = 0 WHERE id = 7`, "events 7 to 9 were"},
		{"the changes of an event", `UPDATE event SET changes = 'x' WHERE id = 7`, "events 7 to 9 were"},
		{"a text moved from one column to the next", `UPDATE event SET address = '', changes = address || changes WHERE id = 7`, "events 7 to 9 were"},
		{"two events changed", `UPDATE event SET at = 0 WHERE id IN (5, 8)`, "events 4 to 6 were"},
		{"an event removed", `DELETE FROM event WHERE id = 8`, "events 7 to 9 were"},
		{"the last event of a seal removed", `DELETE FROM event WHERE id = 6`, "events 4 to 6 were"},
		{"a whole sealed range removed", `DELETE FROM event WHERE id BETWEEN 4 AND 6`, "events 4 to 6 were"},
		{"a range removed with its seal", `DELETE FROM event WHERE id BETWEEN 4 AND 6; DELETE FROM seal WHERE event_id = 6`, "events 4 to 9 were"},
		{"an event inserted in front", `INSERT INTO event SELECT -1, at, type, actor_id, user_id, session_id, address, changes FROM event LIMIT 1`, "events 1 to 3 were"},
		{"an event given another id", `DELETE FROM event WHERE id = 13; UPDATE event SET id = 13 WHERE id = 5`, "events 4 to 6 were"},
		{"two events exchanged", `UPDATE event SET id = 99 WHERE id = 5; UPDATE event SET id = 5 WHERE id = 4; UPDATE event SET id = 4 WHERE id = 99`, "events 4 to 6 were"},
		{"a seal removed", `DELETE FROM seal WHERE event_id = 6`, "events 4 to 9 were"},
		{"a seal changed", `UPDATE seal SET mac = zeroblob(32) WHERE event_id = 6`, "events 4 to 6 were"},
		{"a seal added", `INSERT INTO seal SELECT 5, key_id, mac, anchor FROM seal WHERE event_id = 6`, "events 4 to 5 were"},
		{"a seal by another key", `UPDATE seal SET key_id = '00000000' WHERE event_id = 6`, `events 4 to 6 are sealed under another key, "00000000"`},
		{"the oldest removed, as if trimmed", `DELETE FROM event WHERE id <= 6; DELETE FROM seal WHERE event_id < 6`, "events 1 to 6 are gone"},
		{"the oldest removed, with a proof made up", `DELETE FROM event WHERE id <= 6; DELETE FROM seal WHERE event_id < 6; UPDATE seal SET anchor = mac`, "events 1 to 6 are gone"},
		{"everything but the newest removed", `DELETE FROM event WHERE id <= 12; DELETE FROM seal WHERE event_id < 12`, "events 1 to 12 are gone"},
		{"a proof on what is not trimmed", `UPDATE seal SET anchor = mac WHERE event_id = 6`, ""},
	} {
		for _, whole := range ledgers {
			l := &ledger{t: t, path: copyDatabase(t, whole.path), keys: whole.keys}
			l.store = openTestStore(t, l.path)
			if c.sql != "" {
				runSQL(t, another(t, l.path), c.sql)
			}
			if v := l.wantFault(head{}, c.fault); t.Failed() {
				t.Fatalf("%s: %+v", c.act, v)
			}
		}
	}
}

// What is cut off at the end shows only against a head that was noted elsewhere.
func TestAHeadShowsWhatWasCutOff(t *testing.T) {
	t.Parallel()
	l := newLedger(t, longKey)
	noted := l.wantFault(head{}, "").head
	other := another(t, l.path)
	runSQL(t, other, `DELETE FROM event WHERE id > 9; DELETE FROM seal WHERE event_id > 9`)
	l.wantFault(head{}, "")
	l.wantFault(noted, "events 10 to 12, up to the head that was noted, are gone")
	t.Run("a sealer that runs does not go on from there", func(t *testing.T) {
		if err := l.sealer.seal(context.Background()); err != errSealsGone {
			t.Errorf("it says %v", err)
		}
	})
	t.Run("and one that was started since is found out", func(t *testing.T) {
		addEvents(t, l.store, 3)
		runSQL(t, other, `UPDATE event SET address = '198.51.100.1' WHERE id = 12`)
		l.last = seal{}
		l.mustSeal()
		l.wantFault(head{}, "")
		l.wantFault(noted, "events up to 12 are not those of the head that was noted")
	})
	runSQL(t, other, `DELETE FROM event; DELETE FROM seal`)
	l.wantFault(head{}, "")
	l.wantFault(noted, "are gone")
}

// Who can write the file has the key that it holds: what that sealed counts only
// up to a head that was noted before there was another.
func TestTheDatabasesOwnKeyVouchesForNothingOnceThereIsAnother(t *testing.T) {
	t.Parallel()
	l := newLedger(t, "")
	noted := l.wantFault(head{}, "").head
	var err error
	if l.keys, err = loadSealKeys(context.Background(), l.store, []byte(longKey)); err != nil {
		t.Fatal(err)
	}
	l.sealer = sealer{st: l.store, key: l.keys[0]}
	l.mustSeal()
	l.wantFault(head{}, "events 1 to 3 are sealed under the key in the database alone")
	l.wantFault(noted, "")
	l.wantFault(head{9, strings.Repeat("0", 64)}, "events 10 to 12 are sealed under the key in the database alone")
	l.keys = l.keys[1:]
	l.wantFault(head{}, "events 13 to 13 are sealed under another key")
}

func TestTrimmingLeavesWhatVerifies(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLedger(t, longKey)
	noted := l.wantFault(head{}, "").head
	other := another(t, l.path)
	runSQL(t, other, `UPDATE event SET at = 2777777777 WHERE id >= 8; DELETE FROM seal WHERE event_id > 6`)
	l.last = seal{}
	l.mustSeal()
	trim := func(before int64) bool {
		t.Helper()
		more, err := l.sealer.trim(ctx, before, 2777777778)
		if err != nil {
			t.Fatal(err)
		}
		return more
	}
	if trim(1777777777) {
		t.Error("it trims what is not from before the time")
	}
	if !trim(1777777778) || trim(1777777778) {
		t.Error("it does not trim once")
	}
	if got := trailOf(t, l.store, 13); len(got) != 1 || got[0] != `events_trimmed actor=0 user=0 session=0 "" "until=6"` {
		t.Errorf("the trimming is the event %q", got)
	}
	if first := scan[int64](t, other, `SELECT min(id) FROM event`); first != 7 {
		t.Errorf("the first event left is %d: only whole ranges go, up to the first event to be kept", first)
	}
	v := l.wantFault(head{}, "")
	if v.events != 7 || v.unsealed != 1 {
		t.Errorf("got %+v", v)
	}
	l.wantFault(head{3, noted.mac}, "trimmed: note a newer one")
	l.mustSeal()
	l.wantFault(head{}, "")

	t.Run("but not what somebody without the key trims further", func(t *testing.T) {
		runSQL(t, other, `CREATE TABLE kept AS SELECT * FROM seal`,
			`UPDATE seal SET anchor = (SELECT anchor FROM seal WHERE event_id = 6) WHERE event_id = 13; DELETE FROM event WHERE id <= 13; DELETE FROM seal WHERE event_id < 13`)
		l.wantFault(head{}, "events 1 to 13 are gone")
	})
}

func TestTheNewestEventIsNeverDeleted(t *testing.T) {
	t.Parallel()
	l := newLedger(t, "")
	l.mustSeal()
	for range 3 {
		if more, err := l.sealer.trim(context.Background(), 1<<40, 9); err != nil || !more {
			t.Fatal(more, err)
		}
		l.mustSeal()
		l.wantFault(head{}, "")
	}
	// 13 events and their trimmings: each begins with a new one.
	if id, _ := l.lastEvent(); id != 16 {
		t.Errorf("the newest event is %d, want 16", id)
	}
}

func TestTrimmingIsDoneInSteps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	l := &ledger{store: openTestStore(t, path), t: t, path: path}
	l.keys = []sealKey{newSealKey([]byte(longKey))}
	l.sealer = sealer{st: l.store, key: l.keys[0]}
	addEvents(t, l.store, 3*trimSize)
	l.mustSeal()
	for step := 1; step <= 3; step++ {
		if more, err := l.sealer.trim(context.Background(), 1<<40, 9); err != nil || !more {
			t.Fatal(more, err)
		}
		if n := scan[int](t, another(t, path), `SELECT count(*) FROM event`); n != (3-step)*trimSize+step {
			t.Errorf("after step %d there are %d events", step, n)
		}
		l.wantFault(head{}, "")
	}
}

// Two processes on one file seal and trim it at once.
func TestTwoSealersMakeOneChain(t *testing.T) {
	t.Parallel()
	t.Run("where one has sealed what the other was about to", func(t *testing.T) {
		ctx := context.Background()
		l := newLedger(t, longKey)
		stale, err := l.lastSeal()
		if err != nil {
			t.Fatal(err)
		}
		addEvents(t, l.store, 1)
		l.mustSeal()
		wantError(t, "the seal that is too late", l.addSeal(ctx, l.key.seal(stale.mac, 13, newDigest().Sum(nil)), stale), nil)
		if v := l.wantFault(head{}, ""); v.seals != 5 {
			t.Errorf("got %+v", v)
		}
	})
	t.Run("where one has trimmed what the other was about to", func(t *testing.T) {
		ctx := context.Background()
		l := newLedger(t, longKey)
		upTo, err := l.trimmable(1 << 40)
		if err != nil {
			t.Fatal(err)
		}
		upTo.anchor = l.key.anchor(upTo)
		for range 2 {
			wantError(t, "the trimming", l.store.trim(ctx, upTo, 9), nil)
		}
		if got := trailOf(t, l.store, 13); len(got) != 1 {
			t.Errorf("it is the events %q, want one", got)
		}
	})
	path := filepath.Join(t.TempDir(), "app.db")
	keys := []sealKey{newSealKey([]byte(longKey))}
	var group sync.WaitGroup
	for range 2 {
		st := openTestStore(t, path)
		s := sealer{st: st, key: keys[0]}
		group.Go(func() {
			for range 30 {
				addEvents(t, st, 5)
				if err := s.seal(context.Background()); err != nil {
					t.Error(err)
				}
				if _, err := s.trim(context.Background(), 1<<40, 9); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	st := openTestStore(t, path)
	if _, err := verifyEvents(context.Background(), st, keys, head{}); err != nil {
		t.Error(err)
	}
}

func TestASealerSealsAndTrimsAsTimePasses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		retention time.Duration
		trims     bool
	}{{time.Hour, true}, {0, false}, {10 * 365 * 24 * time.Hour, false}} {
		l := newLedger(t, "")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { l.sealer.run(ctx, c.retention, testLog(t)); close(done) }()
		trimmed := func() bool {
			list := trailOf(t, l.store, 0)
			return strings.HasPrefix(list[len(list)-1], "events_trimmed")
		}
		await(t, "the newest event is sealed, and what is old is trimmed", func() bool {
			last, err := l.lastSeal()
			return err == nil && last.eventID >= 13 && (trimmed() || !c.trims)
		})
		cancel()
		receive(t, "the sealer ends", done)
		if trimmed() != c.trims {
			t.Errorf("with a retention of %v it trims: %t", c.retention, trimmed())
		}
		l.wantFault(head{}, "")
	}
}

// A running userd seals what happens, and at its end the last of it, under the key
// that it was given.
func TestUserdSealsItsEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	environ := []string{"EVENT_SEAL_KEY=" + longKey}
	p := startUserd(t, dir, environ)
	p.register("ann")
	p.login("ann", goodPassword)
	if status := p.end(os.Interrupt); status != 0 {
		t.Fatalf("it ended with status %d", status)
	}
	r := userdProcess(t, dir, "", environ, "events", "verify")
	said := regexp.MustCompile(`^events that hold: 2, in (1|2) seals\nhead: (2:[0-9a-f]{64})\nnewest events not sealed yet: 0\n$`).FindStringSubmatch(r.stdout)
	if r.status != 0 || said == nil {
		t.Fatalf("events verify: %+v", r)
	}
	noted := said[2]
	userdProcess(t, dir, goodPassword+"\n", environ, "user", "add", "bob", "bob@example.com")
	if r := userdProcess(t, dir, "", environ, "events", "verify", noted); r.status != 0 || !strings.HasSuffix(r.stdout, "newest events not sealed yet: 1\n") {
		t.Errorf("with a head and a new event: %+v", r)
	}
	if r := userdProcess(t, dir, "", nil, "events", "verify"); r.status != 1 || !strings.Contains(r.stderr, "are sealed under another key") {
		t.Errorf("without the key: %+v", r)
	}
	if r := userdProcess(t, dir, "", environ, "events", "verify", "12:x"); r.status != 2 {
		t.Errorf("with half a head: %+v", r)
	}
	runSQL(t, another(t, filepath.Join(dir, "app.db")), `UPDATE event SET address = '' WHERE id = 1`)
	if r := userdProcess(t, dir, "", environ, "events", "verify"); r.status != 1 || !strings.Contains(r.stderr, "userd: events 1 to ") || !strings.Contains(r.stderr, "were changed, removed or inserted") {
		t.Errorf("after a change: %+v", r)
	}
}

// No two lists of events are the same bytes to a seal.
func TestADigestTellsEventsApart(t *testing.T) {
	t.Parallel()
	sums := make(map[string]event)
	for _, e := range []event{
		{}, {id: 1}, {at: 1}, {actorID: 1}, {userID: 1}, {sessionID: 1}, {kind: "a"}, {address: "a"}, {changes: "a"},
		{kind: "ab"}, {kind: "a", address: "b"}, {address: "ab"}, {address: "a", changes: "b"}, {id: 1 << 8}, {id: -1},
	} {
		d := newDigest()
		d.add(&e)
		if other, ok := sums[string(d.Sum(nil))]; ok {
			t.Errorf("%+v and %+v are the same", e, other)
		}
		sums[string(d.Sum(nil))] = e
	}
	a, b := newSealKey([]byte("a")), newSealKey([]byte("b"))
	if a.id == b.id || bytes.Equal(a.seal(nil, 1, nil).mac, b.seal(nil, 1, nil).mac) || bytes.Equal(a.seal(nil, 1, nil).mac, a.seal([]byte{1}, 1, nil).mac) || bytes.Equal(a.seal(nil, 1, nil).mac, a.seal(nil, 2, nil).mac) {
		t.Error("two seals are the same")
	}
}
