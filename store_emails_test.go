package main

import (
	"fmt"
	"testing"
)

// A code is checked again when its write runs, and so is what proved the caller.
func TestACodeOfAnAddressIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	read := func(t *testing.T, s *service, kind codeKind, text string) emailCode {
		t.Helper()
		hash, err := hashCode(kind, text)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.store.emailCode(kind, hash, s.wall().Unix())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, row := range []struct {
		claim string
		spoil string
		stamp int64 // the caller has proven the password; otherwise it has a session
		want  error
	}{
		{"a verify code that was used", `DELETE FROM user_code`, 0, errInvalidCode},
		{"another code", `UPDATE user_code SET hash = x'00'`, 0, errInvalidCode},
		{"one that has expired", `UPDATE user_code SET expires_at = 1`, 0, errInvalidCode},
		{"one whose address changed", `UPDATE user SET email = 'other@example.com'`, 0, errInvalidCode},
		{"one whose user is disabled", `UPDATE user SET disabled = 1`, 0, errSessionEnded},
		{"one whose user is disabled, by password", `UPDATE user SET disabled = 1`, 7, errInvalidCode},
		{"one with a session that ended", `DELETE FROM session`, 0, errSessionEnded},
		{"one with a password that changed", `UPDATE user SET auth_stamp = 8`, 7, errInvalidCode},
		{"one with a session", ``, 0, nil},
		{"one with a password", ``, 7, nil},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			s.member("ann")
			c := read(t, s, verifyCode, p.only("ann@example.com", "Confirm").code)
			by := caller{kind: sessionCaller, user: 1, session: 1}
			if row.stamp != 0 {
				by = caller{kind: strangerCaller, user: 1, stamp: &row.stamp}
			}
			runSQL(t, another(t, s.path), `UPDATE user SET auth_stamp = 7`, row.spoil)
			_, err := s.store.verifyEmail(t.Context(), by, &c, s.wall().Unix())
			wantError(t, row.claim, err, row.want)
			if n := scanStore[int](t, s, `SELECT count(*) FROM event WHERE type = 'email_verified'`); (n == 1) != (row.want == nil) {
				t.Errorf("%d events", n)
			}
		})
	}
	for _, spoil := range []string{
		`DELETE FROM user_code`,
		`UPDATE user_code SET hash = x'00'`,
		`UPDATE user SET pending_email = 'other@example.com'`,
		`UPDATE user SET disabled = 1`,
		`UPDATE user_code SET expires_at = 1`,
		`UPDATE user_code SET user_id = 2`,
	} {
		t.Run("change "+spoil, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			path, ann := s.verified(p, "ann")
			c := read(t, s, changeCode, s.setEmail(p, ann, path, "next@example.net"))
			runSQL(t, another(t, s.path), spoil)
			m := queuedMail{kind: undoMail, userID: 1, detail: c.email}
			_, err := s.store.confirmEmail(t.Context(), &c, &m, s.wall().Unix())
			wantError(t, spoil, err, errInvalidCode)
			if got := s.queued(t); got != "verify change" {
				t.Errorf("queued %s", got)
			}
		})
	}
	for _, spoil := range []string{`DELETE FROM user_code`, `UPDATE user_code SET hash = x'00'`, `UPDATE user SET disabled = 1`, `UPDATE user_code SET expires_at = 1`, `UPDATE user_code SET user_id = 2`} {
		t.Run("undo "+spoil, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			_, _, undo := s.moved(p, "ann", "next@example.net")
			c := read(t, s, undoCode, undo)
			runSQL(t, another(t, s.path), spoil)
			m := queuedMail{kind: resetMail, userID: 1, email: c.email, detail: restored}
			wantError(t, spoil, s.store.restoreEmail(t.Context(), &c, "", &m, s.wall().Unix()), errInvalidCode)
			if n := scanStore[int](t, s, `SELECT count(*) FROM session`); n != 1 {
				t.Errorf("%d sessions are left", n)
			}
		})
	}
}

// The rights of a caller are checked when the write runs.
func TestAVerifyMailIsQueuedOnlyForItsUserAndAdmins(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.member("ann")
	s.member("bob")
	s.admin("root")
	now := s.wall().Unix()
	for i, row := range []struct {
		by   caller
		user int64
		want error
	}{
		{caller{kind: sessionCaller, session: 1}, 1, nil},
		{caller{kind: sessionCaller, session: 3}, 1, nil},
		{caller{kind: sessionCaller, session: 2}, 1, errForbidden},
		{caller{kind: sessionCaller, session: 9}, 1, errSessionEnded},
		{caller{kind: strangerCaller}, 1, errForbidden},
		{caller{kind: sessionCaller, session: 3}, 9, errUserNotFound},
	} {
		m := queuedMail{kind: verifyMail, userID: row.user, createdAt: now}
		wantError(t, fmt.Sprint("row ", i), s.store.queueVerification(t.Context(), row.by, &m), row.want)
	}
	if got := s.queued(t); got != "verify verify" {
		t.Errorf("queued %q", got)
	}
}

// An adopted address can have spaces. A pending one cannot.
func TestAPendingAddressIsReadApartFromTheAddress(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	file := another(t, s.path)
	for _, email := range []string{"ann@example.com", "Ann B <ann@example.com>", "", " ", `a "b" \ c`, "é x"} {
		for _, pending := range []string{"", "next@example.net"} {
			if _, err := file.ExecContext(t.Context(), `UPDATE user SET email = ?, pending_email = ?`, email, pending); err != nil {
				t.Fatal(err)
			}
			u, err := s.store.user(1)
			if err != nil || u.email != email || u.pendingEmail != pending {
				t.Errorf("%q and %q were read as %q and %q: %v", email, pending, u.email, u.pendingEmail, err)
			}
		}
	}
}
