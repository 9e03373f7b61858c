package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// aSession starts a session of a user of aUser.
func aSession(t *testing.T, st *store, u user) caller {
	t.Helper()
	x := session{userID: u.id, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("hash")}
	if _, err := st.startSession(context.Background(), &x, 0, "", provenFactor{}); err != nil {
		t.Fatal(err)
	}
	return caller{kind: sessionCaller, session: x.id, user: u.id}
}

// hasSession reports whether the session is there and good.
func hasSession(t *testing.T, st *store, sid caller) bool {
	t.Helper()
	_, _, _, err := st.principal(sid.session, sid.token, "", 0)
	if err != nil && err != errSessionEnded {
		t.Fatal(err)
	}
	return err == nil
}

func TestSessionIDsAreNeverReused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ann := aUser(t, st, "ann", member)
	first := aSession(t, st, ann)
	if err := st.endSession(context.Background(), first, ann.id, first.session, 1); err != nil {
		t.Fatal(err)
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	st = openTestStore(t, path)
	if next := aSession(t, st, ann); next.session <= first.session {
		t.Errorf("the session after %d has the id %d: an old token would speak for it", first.session, next.session)
	}
}

func TestAUserHasAtMostAHundredSessionsAndTheOldestEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ann, bob := aUser(t, st, "ann", member), aUser(t, st, "bob", member)
	bobs := aSession(t, st, bob) // remains, however many sessions others start
	var anns []caller
	for range 105 {
		anns = append(anns, aSession(t, st, ann))
	}
	for i, sid := range anns {
		if want := i >= 5; hasSession(t, st, sid) != want {
			t.Errorf("session %d of 105 is there: %t, want %t", i+1, !want, want)
		}
	}
	aSession(t, st, bob)
	if !hasSession(t, st, bobs) {
		t.Error("a session of another has ended")
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			x := session{userID: ann.id, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("hash")}
			if _, err := st.startSession(context.Background(), &x, 0, "", provenFactor{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := scan[int](t, another(t, path), `SELECT count(*) FROM session WHERE user_id = ?`, ann.id); got != 100 {
		t.Errorf("after 50 more at the same moment there are %d sessions, want 100", got)
	}
}

func TestASessionBeginsOnlyForTheUserWhosePasswordWasVerified(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	yes, other := true, "other hash"
	for _, c := range []struct {
		claim string
		first func(st *store, id int64) error // happens while the password is verified
		want  error
	}{
		{"and not after the password was changed", func(st *store, id int64) error {
			_, err := st.updateUser(ctx, console, id, change{hash: &other}, 0, 2)
			return err
		}, errCredentials},
		{"and not after the user was disabled", func(st *store, id int64) error {
			_, err := st.updateUser(ctx, console, id, change{disabled: &yes}, 0, 2)
			return err
		}, errCredentials},
		{"and not after the user was disabled and enabled again", func(st *store, id int64) error {
			no := false
			_, err := st.updateUser(ctx, console, id, change{disabled: &yes}, 0, 2)
			if err == nil {
				_, err = st.updateUser(ctx, console, id, change{disabled: &no}, 0, 3)
			}
			return err
		}, errCredentials},
		{"and not after the same password was set again", func(st *store, id int64) error {
			same := "hash"
			_, err := st.updateUser(ctx, console, id, change{hash: &same}, 0, 2)
			return err
		}, errCredentials},
		{"and not after the user was deleted", func(st *store, id int64) error {
			return st.deleteUser(ctx, console, id, 0, 1)
		}, errCredentials},
		{"and after another change all the same", func(st *store, id int64) error {
			_, err := st.updateUser(ctx, console, id, change{email: &other}, 0, 2)
			return err
		}, nil},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			ann := aUser(t, st, "ann", member)
			if err := c.first(st, ann.id); err != nil {
				t.Fatal(err)
			}
			before, _ := st.user(ann.id)
			x := session{userID: ann.id, createdAt: 5, expiresAt: 9, address: "192.0.2.1", userAgent: "curl", refreshHash: []byte("hash")}
			_, err := st.startSession(ctx, &x, 0, "new hash", provenFactor{})
			wantError(t, "the session", err, c.want)
			login, loginErr := st.credentials(ann.id)
			sessions := scan[int](t, another(t, path), `SELECT count(*) FROM session`)
			if c.want != nil {
				if login.hash == "new hash" {
					t.Error("the hash was replaced")
				}
				if sessions != 0 {
					t.Errorf("there are %d sessions", sessions)
				}
				return
			}
			if loginErr != nil || login.hash != "new hash" {
				t.Errorf("the hash is %q, %v, want the new one", login.hash, loginErr)
			}
			u, _, _, err := st.principal(x.id, tokenID{}, "", 6)
			if err != nil || u.id != ann.id || u.lastLoginAt != 5 {
				t.Errorf("the session's user is %+v, %v", u, err)
			}
			if u.version != before.version || u.updatedAt != before.updatedAt {
				t.Errorf("a replaced hash moved the version from %d to %d", before.version, u.version)
			}
			row := scan[string](t, another(t, path), `
				SELECT user_id || ' ' || created_at || ' ' || last_used_at || ' ' || expires_at || ' ' || address || ' ' || user_agent
				FROM session WHERE id = ?`, x.id)
			if want := fmt.Sprintf("%d 5 5 9 192.0.2.1 curl", ann.id); row != want {
				t.Errorf("the session is %q, want %q", row, want)
			}
		})
	}
}

func TestWhichSessionsAChangeEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	yes, no, hash, name := true, false, "new hash", "anna"
	type sessions struct{ own, second, admins, others caller }
	for _, c := range []struct {
		claim string
		act   func(st *store, id int64, s sessions) error
		want  string // what is left
	}{
		{"a changed password ends one's other sessions", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.own, id, change{hash: &hash}, 0, 2)
			return err
		}, "own admin's other's"},
		{"a password changed by an admin ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{hash: &hash}, 0, 2)
			return err
		}, "admin's other's"},
		{"a password changed by the console ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, console, id, change{hash: &hash}, 0, 2)
			return err
		}, "admin's other's"},
		{"disabling ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{disabled: &yes}, 0, 2)
			return err
		}, "admin's other's"},
		{"disabling with a new password ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{disabled: &yes, hash: &hash}, 0, 2)
			return err
		}, "admin's other's"},
		{"enabling and a new name end none", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{disabled: &no, username: &name}, 0, 2)
			return err
		}, "own second admin's other's"},
		{"a deletion ends all of the user's", func(st *store, id int64, s sessions) error {
			return st.deleteUser(ctx, s.own, id, 0, 1)
		}, "admin's other's"},
		{"a logout ends one", func(st *store, id int64, s sessions) error {
			return st.endSession(ctx, s.own, id, s.own.session, 1)
		}, "second admin's other's"},
		{"a logout everywhere ends all of the user's", func(st *store, id int64, s sessions) error {
			return st.endSessions(ctx, s.own, id, 1)
		}, "admin's other's"},
		{"a new password that comes with a name that is taken ends none", func(st *store, id int64, s sessions) error {
			taken := "ROOT"
			_, err := st.updateUser(ctx, s.own, id, change{hash: &hash, username: &taken}, 0, 2)
			if !errors.Is(err, errUsernameTaken) {
				return fmt.Errorf("got the error %v, want %v", err, errUsernameTaken)
			}
			return nil
		}, "own second admin's other's"},
		{"a refused deletion ends none", func(st *store, id int64, s sessions) error {
			if err := st.deleteUser(ctx, s.others, id, 0, 1); !errors.Is(err, errForbidden) {
				return fmt.Errorf("got the error %v, want %v", err, errForbidden)
			}
			return nil
		}, "own second admin's other's"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			root, ann, bob := aUser(t, st, "root", admin), aUser(t, st, "ann", member), aUser(t, st, "bob", member)
			s := sessions{aSession(t, st, ann), aSession(t, st, ann), aSession(t, st, root), aSession(t, st, bob)}
			if err := c.act(st, ann.id, s); err != nil {
				t.Fatal(err)
			}
			var left []string
			rows := 0
			for _, x := range []struct {
				name string
				sid  caller
			}{{"own", s.own}, {"second", s.second}, {"admin's", s.admins}, {"other's", s.others}} {
				if hasSession(t, st, x.sid) {
					left = append(left, x.name)
				}
				rows += scan[int](t, another(t, path), `SELECT count(*) FROM session WHERE id = ?`, x.sid.session)
			}
			if got := strings.Join(left, " "); got != c.want {
				t.Errorf("left are %q, want %q", got, c.want)
			}
			if rows != len(left) {
				t.Errorf("%d sessions are good and %d rows are there", len(left), rows)
			}
		})
	}
	t.Run("a session that has ended cannot end again", func(t *testing.T) {
		st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
		ann := aUser(t, st, "ann", member)
		sid := aSession(t, st, ann)
		wantError(t, "the first time", st.endSession(ctx, sid, ann.id, sid.session, 1), nil)
		wantError(t, "the second time", st.endSession(ctx, sid, ann.id, sid.session, 1), errSessionEnded)
		wantError(t, "everywhere", st.endSessions(ctx, sid, ann.id, 1), errSessionEnded)
	})
}

// The rows of each table expire by themselves, and a sweep that finds none writes nothing.
func TestASweepDeletesOnlyWhatHasExpired(t *testing.T) {
	t.Parallel()
	const now = 1 << 40
	week := int64(mailDays * 24 * 60 * 60)
	s := newService(t)
	s.addNamed("ann", member, false)
	s.keyOf(1, readScope, 0) // never expires
	s.aMail()                // queued
	sweep := func() (wrote bool) {
		s.store.wrote.Store(false)
		_, err := s.store.sweep(t.Context(), 0, now)
		if err := errors.Join(err, s.store.sweepCodes(t.Context(), now), s.store.sweepKeys(t.Context(), now)); err != nil {
			t.Fatal(err)
		}
		return s.store.wrote.Load()
	}
	for _, c := range []struct {
		table, insert string
		expired       int64
	}{
		{"session", `INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent) VALUES (1, 1, 1, @at, '', '')`, now},
		{"user_code", insertCode + `VALUES (@at, 'ul', 1, '', 0, 0, 1, @at)`, now},
		{"user_invitation", `INSERT INTO user_invitation (email, username, role, uses_left, created_by, created_at, expires_at) VALUES ('', '', 'member', 1, 0, 1, @at)`, now},
		{"user_registration", `INSERT INTO user_registration (username, email, password_hash, created_at, expires_at) VALUES ('x', 'x', 'x', 1, @at)`, now},
		{"user_mail", intoMail + `VALUES ('reset', 0, '', '', 0, '', '', '', 1, 1); UPDATE user_mail SET state = 'sent', closed_at = @at WHERE id = last_insert_rowid()`, now - week},
		{"user_key", `INSERT INTO user_key (user_id, name, prefix, hash, scope, created_at, expires_at) VALUES (1, '', '', @at, 'read', 1, @at)`, now - keepExpiredKeys},
		{"signing_key", `INSERT INTO signing_key (kid, secret, created_at, retired_at, token_ttl) VALUES (@at, zeroblob(32), 1, @at - 60, 60)`, now},
	} {
		before := count(t, s, c.table)
		for _, at := range []int64{c.expired, c.expired + 1} {
			for query := range strings.SplitSeq(c.insert, ";") {
				s.change(query, arg{"at", at})
			}
		}
		if sweep(); count(t, s, c.table) != before+1 {
			t.Errorf("%s: %d of 2 rows are left, want 1", c.table, count(t, s, c.table)-before)
		}
		if sweep() {
			t.Errorf("%s: a sweep that finds nothing writes", c.table)
		}
	}
}

// A client may repeat a rotation only as long as the session has the token that it got.
func TestARotationIsRepeatedOnlyForTheLiveToken(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	ann := aUser(t, st, "ann", member)
	live, err := st.session(aSession(t, st, ann).session)
	if err != nil {
		t.Fatal(err)
	}
	other, later := live, live
	other.refreshHash = []byte("another hash")
	later.generation++
	for claim, c := range map[string]struct {
		session session
		want    error
	}{
		"the live token":            {live, nil},
		"another token":             {other, errNotApplied},
		"a token of another number": {later, errNotApplied},
	} {
		_, err := st.repeatRotation(t.Context(), &c.session, maxGraceUses)
		wantError(t, claim, err, c.want)
	}
	next := live
	next.refreshHash, next.expiresAt = []byte("next"), 1<<40
	if _, err := st.rotate(t.Context(), &next, live.refreshHash, 2); err != errNotApplied {
		t.Errorf("a rotation to the same number: %v", err)
	}
}
