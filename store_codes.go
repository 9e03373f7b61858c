package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// A codeKind is the prefix of a kind of code. One kind is never accepted in place of
// another.
type codeKind string

const (
	resetMailCode codeKind = "ur" // sets a new password; it was mailed to the user
	resetLinkCode codeKind = "ul" // sets a new password; an admin or the command line made it
	verifyCode    codeKind = "uv" // verifies an address, or completes a registration
	changeCode    codeKind = "uc" // confirms a new address
	undoCode      codeKind = "uu" // restores the address before the new one
	inviteCode    codeKind = "ui" // admits a new user
)

// A lifetime bounds how long a kind of code is valid.
type lifetime struct{ standard, shortest, longest time.Duration }

var (
	resetLinkLife  = lifetime{24 * time.Hour, time.Second, 7 * 24 * time.Hour}
	invitationLife = lifetime{72 * time.Hour, time.Hour, 30 * 24 * time.Hour}
)

// newCode returns a new code: the prefix of its kind and 130 random bits.
func newCode(kind codeKind) string { return string(kind) + "_" + rand.Text() }

// codeLength is the length of a code in bytes.
var codeLength = len(newCode(resetLinkCode))

// hashCode returns the SHA-256 of a code: the database stores only this. A fast hash is
// enough for 130 random bits. hashCode ignores spaces around the code. It returns
// errInvalidCode for a text that newCode cannot have made, so that userd does not look it up.
func hashCode(kind codeKind, text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	random := strings.TrimPrefix(text, string(kind)+"_")
	if !isCode(text, kind) || len(text) != codeLength || strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		return nil, errInvalidCode
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:], nil
}

// isCode reports whether a text begins like a code of a kind.
func isCode(text string, kind codeKind) bool {
	return strings.HasPrefix(strings.TrimSpace(text), string(kind)+"_")
}

// insertCode inserts a code of the kind @kind for what its FROM selects.
const insertCode = `INSERT INTO user_code (hash, kind, user_id, email, invitation_id, created_by, created_at, expires_at) `

// addResetLink stores the hash of a reset code of a user for a caller, which must be an
// admin or the console. It replaces the user's earlier one. It returns errSessionEnded,
// errForbidden, another error of authorizationError, errUserNotFound or errUserDisabled.
func (s *store) addResetLink(ctx context.Context, by caller, userID int64, hash []byte, now, expires int64) error {
	values := by.with(args{
		{"id", nil}, // not a user, so mayChange only accepts admins
		{"user", userID}, {"hash", hash}, {"kind", string(resetLinkCode)}, {"by", by.user}, {"now", now}, {"expires", expires},
	})
	err := s.write(ctx,
		statement{
			Query: insertCode + `
				SELECT @hash, @kind, user.id, '', 0, @by, @now, @expires FROM user
				WHERE user.id = @user AND user.disabled = 0 AND user.service = 0 AND ` + mayChange,
			Args:   values,
			IfNone: errNotApplied,
		},
		statement{Query: `DELETE FROM user_code WHERE user_id = @user AND kind = @kind AND hash <> @hash`, Args: values},
		event{at: now, kind: resetLinkCreated, userID: userID}.by(by))
	if errors.Is(err, errNotApplied) {
		u, missing := s.user(userID)
		err = cmp.Or[error](s.authorizationError(by, 0), missing)
		if err == nil && u.service {
			err = errServiceUser
		}
		return cmp.Or[error](err, errUserDisabled)
	}
	return err
}

// usable is the condition that a code of the kind @kind with the hash @hash is valid at
// @now. A write with this condition must also delete the code or count its use.
const usable = `user_code.hash = @hash AND user_code.kind = @kind AND user_code.expires_at > @now`

// codeArgs returns the arguments of usable.
func codeArgs(kind codeKind, hash []byte, now int64) args {
	return args{{"kind", string(kind)}, {"hash", hash}, {"now", now}}
}

// resets is the condition that a reset code is for a user: a mailed one only as long as the
// user has the address that it was mailed to.
const resets = `user_code.user_id = user.id AND user.disabled = 0 AND user.service = 0 AND (user_code.kind = 'ul' OR user_code.kind = 'ur' AND user_code.email = user.email)`

// userOfCode returns the user whose password a reset code may set now, or
// errInvalidCode.
func (s *store) userOfCode(kind codeKind, hash []byte, now int64) (u user, err error) {
	err = s.readNamed(`SELECT`+userColumns+` FROM user_code JOIN user ON user.id = user_code.user_id
		WHERE `+usable+` AND `+resets, errInvalidCode, u.columns(), codeArgs(kind, hash, now))
	return u, err
}

// resetPassword sets a user's password by a reset code, which works only once. A mailed
// code also verifies the user's address. It ends all of the user's sessions and codes. If an
// admin made the code, or if it is the first proof of the address, it also ends the user's API
// keys: a stranger may have made them. The statements in before belong to the same write, and
// run first. It uses up the code of p. It returns errOTPUsed if that was used before, and
// errInvalidCode if the reset code is not valid any more, or if the user has a second factor
// and p does not prove it.
func (s *store) resetPassword(ctx context.Context, userID int64, kind codeKind, hash []byte, newHash string, p provenFactor, address string, now int64, before ...statement) error {
	values := args{
		{"factor", p.proven()},
		{"id", userID}, {"hash", hash}, {"kind", string(kind)}, {"new_hash", newHash}, {"now", now},
	}
	return s.write(ctx, append(append(p.statements(userID, address, now), before...),
		statement{
			Query: `
				UPDATE user SET
					password_hash = @new_hash,
					pending_email = '',
					updated_at = @now,
					version = version + 1,
					auth_stamp = auth_stamp + 1
				WHERE id = @id AND EXISTS (SELECT 1 FROM user_code WHERE ` + usable + ` AND ` + resets + `) AND ` + hasFactor,
			Args:   values,
			IfNone: errInvalidCode,
		},
		statement{
			Query: endKeys + ` AND (@kind = 'ul' OR EXISTS (SELECT 1 FROM user WHERE id = @id AND email_verified_at = 0))`,
			Args:  values,
		},
		statement{Query: `UPDATE user SET email_verified_at = @now WHERE id = @id AND @kind = 'ur' AND email_verified_at = 0`, Args: values},
		statement{Query: endCodes, Args: values},
		statement{Query: endPendingFactor, Args: values},
		statement{Query: `DELETE FROM session WHERE user_id = @id`, Args: values},
		event{at: now, kind: passwordReset, userID: userID, address: address}.statement())...)
}

// An invitation is one row of the table invitation.
type invitation struct {
	id        int64
	email     string // the only address that can register; empty: any
	username  string // the only username that can register; empty: any
	role      role   // of the users that register
	usesLeft  int64
	createdBy int64 // 0: the command line
	createdAt int64
	expiresAt int64
}

// invitationColumns and (*invitation).columns list the columns in the same order.
const invitationColumns = `
	user_invitation.id,
	user_invitation.email,
	user_invitation.username,
	user_invitation.role,
	user_invitation.uses_left,
	user_invitation.created_by,
	user_invitation.created_at,
	user_invitation.expires_at`

func (v *invitation) columns() []any {
	return []any{
		&v.id,
		&v.email,
		&v.username,
		(*string)(&v.role),
		&v.usesLeft,
		&v.createdBy,
		&v.createdAt,
		&v.expiresAt,
	}
}

// addInvitation stores an invitation and the hash of its code for a caller, which must
// be an admin or the console, and sets v.id. The statements in then belong to the same write.
// It returns an error of authorizationError.
func (s *store) addInvitation(ctx context.Context, by caller, v *invitation, hash []byte, then ...statement) error {
	values := by.with(args{
		{"id", nil}, // not a user, so mayChange only accepts admins
		{"email", v.email}, {"username", v.username}, {"role", string(v.role)}, {"uses", v.usesLeft},
		{"by", by.user}, {"now", v.createdAt}, {"expires", v.expiresAt}, {"hash", hash}, {"kind", string(inviteCode)},
	})
	record := event{at: v.createdAt, kind: invitationCreated}.by(by)
	record.Query = insertNewInvitationEvent
	err := s.write(ctx, append([]statement{
		{
			Query: `
				INSERT INTO user_invitation (email, username, role, uses_left, created_by, created_at, expires_at)
				SELECT @email, @username, @role, @uses, @by, @now, @expires WHERE ` + mayChange + `
				RETURNING id`,
			Args:   values,
			Scan:   []any{&v.id},
			IfNone: errNotApplied,
		},
		{Query: insertCode + `SELECT @hash, @kind, 0, email, max(id), created_by, created_at, expires_at FROM user_invitation`, Args: values},
		record,
	}, then...)...)
	if errors.Is(err, errNotApplied) {
		return cmp.Or[error](s.authorizationError(by, 0), errForbidden)
	}
	v.createdBy = by.user
	return err
}

// invitations calls f for at most limit invitations that are still valid, with ids above
// after, in id order. It reuses f's argument for the next row.
func (s *store) invitations(ctx context.Context, after, limit, now int64, f func(*invitation)) error {
	var v invitation
	return s.eachRow(ctx, `SELECT`+invitationColumns+` FROM user_invitation WHERE id > ?1 AND expires_at > ?3 ORDER BY id LIMIT ?2`,
		v.columns(), func() { f(&v) }, after, limit, now)
}

// deleteInvitation deletes an invitation and its codes for a caller, which must be an
// admin or the console. It returns errInvitationNotFound or an error of
// authorizationError.
func (s *store) deleteInvitation(ctx context.Context, by caller, id, now int64) error {
	values := by.with(args{{"id", nil}, {"invitation", id}}) // not a user, so mayChange only accepts admins
	err := s.write(ctx,
		statement{
			Query:  `DELETE FROM user_invitation WHERE id = @invitation AND ` + mayChange,
			Args:   values,
			IfNone: errNotApplied,
		},
		statement{Query: `DELETE FROM user_code WHERE invitation_id = @invitation`, Args: values},
		event{at: now, kind: invitationDeleted, changes: fmt.Sprintf("invitation=%d", id)}.by(by))
	if errors.Is(err, errNotApplied) {
		return cmp.Or[error](s.authorizationError(by, 0), errInvitationNotFound)
	}
	return err
}

// admits is the condition that a code belongs to a valid invitation for a user with
// the names @username and @email.
const admits = `user_invitation.id = user_code.invitation_id AND user_invitation.expires_at > @now AND user_invitation.uses_left > 0
	AND user_invitation.email COLLATE NOCASE IN ('', @email) AND user_invitation.username COLLATE NOCASE IN ('', @username)`

// invitationOfCode returns the invitation of a code that is valid now, or
// errInvalidCode.
func (s *store) invitationOfCode(hash []byte, now int64) (v invitation, err error) {
	err = s.readNamed(`SELECT`+invitationColumns+` FROM user_code JOIN user_invitation ON user_invitation.id = user_code.invitation_id
		WHERE `+usable+` AND user_invitation.expires_at > @now AND user_invitation.uses_left > 0`,
		errInvalidCode, v.columns(), codeArgs(inviteCode, hash, now))
	return v, err
}

// addInvited adds a user that has a code of an invitation, uses the invitation once, and
// sets u's id, role, times and version. An address that the invitation is bound to is
// verified. The statements in then belong to the same write. It returns errInvalidCode if the
// code or the invitation is not valid for this user any more, errUsernameTaken or errEmailTaken.
func (s *store) addInvited(ctx context.Context, u *user, hash string, code []byte, v *invitation, address string, now int64, then ...statement) error {
	created := event{at: now, kind: userCreated, address: address, changes: fmt.Sprintf("invitation=%d", v.id)}
	if v.role == admin {
		created.changes += ",role=admin"
	}
	used := event{at: now, kind: invitationUsed, address: address, changes: fmt.Sprintf("invitation=%d", v.id)}
	err := s.write(ctx, append([]statement{
		{
			Query: `
				INSERT INTO user (id, username, email, password_hash, role, email_verified_at, created_at, updated_at)
				SELECT
					1 + max(counter.user_id, (SELECT coalesce(max(id), 0) FROM user)),
					@username, @email, @password, @role, iif(user_invitation.email = '', 0, @now), @now, @now
				FROM counter, user_code, user_invitation
				WHERE ` + usable + ` AND ` + admits + ` AND user_invitation.id = @invitation AND user_invitation.role = @role
				RETURNING` + userColumns,
			Args: args{
				{"username", u.username}, {"email", u.email}, {"password", hash}, {"role", string(v.role)}, {"now", now},
				{"hash", code}, {"kind", string(inviteCode)}, {"invitation", v.id},
			},
			Scan:   u.columns(),
			IfNone: errInvalidCode,
		},
		{Query: moveCounter},
		{Query: `UPDATE user_invitation SET uses_left = uses_left - 1 WHERE id = @invitation`, Args: args{{"invitation", v.id}}},
		created.ofNewUser(),
		used.ofNewUser(),
	}, then...)...)
	return s.takenError(err, u.username, u.email, 0)
}

// A registration is one row of the table user_registration. It becomes a user when its
// address is confirmed.
type registration struct {
	id       int64
	username string
	email    string
	hash     string // of the password
}

// registrationColumns and (*registration).columns list the columns in the same order.
const registrationColumns = `
	user_registration.id,
	user_registration.username,
	user_registration.email,
	user_registration.password_hash`

func (r *registration) columns() []any { return []any{&r.id, &r.username, &r.email, &r.hash} }

// registrationOfCode returns the registration of a code that is valid now, or errInvalidCode.
func (s *store) registrationOfCode(hash []byte, now int64) (r registration, err error) {
	err = s.readNamed(`SELECT`+registrationColumns+`
		FROM user_code JOIN user_registration ON user_registration.id = user_code.registration_id
		WHERE `+usable+` AND user_registration.expires_at > @now`,
		errInvalidCode, r.columns(), codeArgs(verifyCode, hash, now))
	return r, err
}

// addRegistered makes a user of a registration, by a code of the registration. The user has
// u's username, which may differ from that of the registration, and its address is verified.
// addRegistered ends the registration, and sets u's id, times and version. The statements in
// then belong to the same write. It returns errInvalidCode if the code is not valid any more,
// errUsernameTaken or errEmailTaken.
func (s *store) addRegistered(ctx context.Context, u *user, r *registration, code []byte, address string, now int64, then ...statement) error {
	created := event{at: now, kind: userCreated, address: address}
	if u.pending {
		created.changes = "pending=true"
	}
	values := args{
		{"username", u.username}, {"pending", u.pending}, {"now", now},
		{"hash", code}, {"kind", string(verifyCode)}, {"subject", r.id},
	}
	statements := []statement{
		{
			Query: `
				INSERT INTO user (id, username, email, password_hash, role, pending, email_verified_at, created_at, updated_at)
				SELECT
					1 + max(counter.user_id, (SELECT coalesce(max(id), 0) FROM user)),
					@username, user_registration.email, user_registration.password_hash, 'member', @pending, @now, @now, @now
				FROM counter, user_code, user_registration
				WHERE ` + usable + ` AND user_code.registration_id = user_registration.id
					AND user_registration.id = @subject AND user_registration.expires_at > @now
				RETURNING` + userColumns,
			Args:   values,
			Scan:   u.columns(),
			IfNone: errInvalidCode,
		},
		{Query: moveCounter},
		created.ofNewUser(),
	}
	statements = append(statements, endRegistration(values)...)
	err := s.write(ctx, append(statements, then...)...)
	return s.takenError(err, u.username, r.email, 0)
}

// endRegistration returns the statements that delete the registration @subject and its codes.
func endRegistration(values args) []statement {
	return []statement{
		{Query: `DELETE FROM user_code WHERE registration_id = @subject AND registration_id <> 0`, Args: values},
		{Query: `DELETE FROM user_registration WHERE id = @subject`, Args: values},
	}
}

// approve approves a user, which can then log in, for a caller, which must be an admin or
// the console, and returns the user. It changes nothing if the user does not wait for
// approval. It returns errUserNotFound or an error of authorizationError.
func (s *store) approve(ctx context.Context, by caller, id, now int64) (u user, err error) {
	err = s.write(ctx,
		statement{
			Query: `
				UPDATE user SET pending = 0, updated_at = @now, version = version + 1
				WHERE user.id = @user AND pending = 1 AND ` + mayChange + `
				RETURNING` + userColumns,
			Args:   by.with(args{{"id", nil}, {"user", id}, {"now", now}}), // not a user, so mayChange only accepts admins
			Scan:   u.columns(),
			IfNone: errNotApplied,
		},
		event{at: now, kind: userApproved, userID: id}.by(by))
	if errors.Is(err, errNotApplied) {
		if err := s.authorizationError(by, 0); err != nil {
			return u, err
		}
		return s.user(id)
	}
	return u, err
}

// pendingDays is how many days a user waits for approval before it is deleted.
const pendingDays = 30

// mailDays is how many days the outbox keeps a mail after it was sent, failed or was dropped.
const mailDays = 7

// sweepCodes deletes codes, invitations and registrations that have expired, and mails that
// were closed mailDays ago or earlier: at most sweepSize of each.
func (s *store) sweepCodes(ctx context.Context, now int64) error {
	var expired, closed bool
	values := args{{"now", now}, {"closed", now - mailDays*24*60*60}, {"most", sweepSize}}
	err := s.read(`
		SELECT
			EXISTS (SELECT 1 FROM user_code WHERE expires_at <= ?1)
				OR EXISTS (SELECT 1 FROM user_invitation WHERE expires_at <= ?1)
				OR EXISTS (SELECT 1 FROM user_registration WHERE expires_at <= ?1),
			EXISTS (SELECT 1 FROM user_mail WHERE state <> 'queued' AND closed_at <= ?2)`,
		errStorage, []any{&expired, &closed}, now, now-mailDays*24*60*60)
	if err == nil && expired {
		err = s.write(ctx,
			statement{Query: `DELETE FROM user_code WHERE hash IN (SELECT hash FROM user_code WHERE expires_at <= @now LIMIT @most)`, Args: values},
			statement{Query: `DELETE FROM user_invitation WHERE id IN (SELECT id FROM user_invitation WHERE expires_at <= @now LIMIT @most)`, Args: values},
			statement{Query: `DELETE FROM user_registration WHERE id IN (SELECT id FROM user_registration WHERE expires_at <= @now LIMIT @most)`, Args: values})
	}
	if err == nil && closed {
		err = s.write(ctx, statement{
			Query: `
				DELETE FROM user_mail WHERE id IN (
					SELECT id FROM user_mail WHERE state <> 'queued' AND closed_at <= @closed LIMIT @most)`,
			Args: values,
		})
	}
	return err
}

// dropPending reads at most sweepSize users that wait for approval and have ids above after.
// It deletes those that have waited for pendingDays. It returns the id to continue after, or 0
// after the last user.
func (s *store) dropPending(ctx context.Context, after, now int64) (next int64, err error) {
	type waiter struct{ id, version, createdAt int64 }
	var w waiter
	var due []waiter
	n := 0
	err = s.eachRow(ctx, `SELECT id, version, created_at FROM user WHERE pending = 1 AND id > ?1 ORDER BY id LIMIT ?2`,
		[]any{&w.id, &w.version, &w.createdAt}, func() {
			n++
			if w.createdAt <= now-pendingDays*24*60*60 {
				due = append(due, w)
			}
		}, after, sweepSize)
	for _, w := range due {
		// An admin may have approved it meanwhile, and a row of another program may refer to it.
		dropped := s.deleteUser(ctx, caller{kind: consoleCaller}, w.id, w.version, now)
		if errors.Is(dropped, errStorage) || ctx.Err() != nil {
			err = cmp.Or(err, dropped)
		}
	}
	if n < sweepSize {
		return 0, err
	}
	return w.id, err
}

// deleteExpired runs sweep, sweepCodes, sweepKeys and dropPending every 5 seconds until ctx ends.
func deleteExpired(ctx context.Context, st *store, log *slog.Logger) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	var session, pending int64 // the last ids that were read
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			var err, pendingErr error
			session, err = st.sweep(ctx, session, now.Unix())
			pending, pendingErr = st.dropPending(ctx, pending, now.Unix())
			if err := errors.Join(err, pendingErr, st.sweepCodes(ctx, now.Unix()), st.sweepKeys(ctx, now.Unix())); err != nil && ctx.Err() == nil {
				log.Warn("could not delete expired rows", "err", err)
			}
		}
	}
}

// recordPages stores the pages that the links of commands open. A server calls it when it
// starts.
func (s *store) recordPages(ctx context.Context, p pageURLs) error {
	if last, err := s.pages(); err != nil || last == (pageURLs{reset: p.reset, invite: p.invite}) {
		return err
	}
	return s.write(ctx, statement{
		Query: `
			INSERT INTO page_url (page, url) VALUES ('reset', @reset), ('invite', @invite)
			ON CONFLICT (page) DO UPDATE SET url = excluded.url`,
		Args: args{{"reset", p.reset}, {"invite", p.invite}},
	})
}

// pages returns the pages that the last server stored when it started. A page is empty if
// the server had no URL for it, or if no server has started.
func (s *store) pages() (p pageURLs, err error) {
	err = s.read(`
		SELECT
			coalesce((SELECT url FROM page_url WHERE page = 'reset'), ''),
			coalesce((SELECT url FROM page_url WHERE page = 'invite'), '')`,
		errStorage, []any{&p.reset, &p.invite})
	return p, err
}
