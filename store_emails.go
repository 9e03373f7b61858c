package main

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
)

// concerns is the condition that a code is for an address of a user: a verify code for its
// address, a change code for its pending address, an undo code for an earlier address.
const concerns = `user_code.user_id = user.id AND user.disabled = 0 AND (
	user_code.kind = 'uv' AND user_code.email = user.email
	OR user_code.kind = 'uc' AND user_code.email = user.pending_email
	OR user_code.kind = 'uu')`

// An emailCode is a valid code for an address of a user.
type emailCode struct {
	kind   codeKind
	hash   []byte
	user   user
	email  string // the address that the code verifies, confirms or restores
	mailID int64  // of the mail that had the code
}

// emailCode returns the code of this kind with this hash, or errInvalidCode.
func (s *store) emailCode(kind codeKind, hash []byte, now int64) (c emailCode, err error) {
	c.kind, c.hash = kind, hash
	err = s.readNamed(`SELECT`+userColumns+`, iif(user_code.kind = 'uu', user_code.old_email, user_code.email), user_code.mail_id
		FROM user_code JOIN user ON user.id = user_code.user_id
		WHERE `+usable+` AND `+concerns,
		errInvalidCode, c.user.columns(&c.email, &c.mailID), codeArgs(kind, hash, now))
	return c, err
}

// args returns the arguments of a write that uses the code at now, in Unix seconds.
func (c *emailCode) args(now int64) args {
	return args{{"id", c.user.id}, {"hash", c.hash}, {"kind", string(c.kind)}, {"undone", c.mailID}, {"now", now}}
}

// queueVerification queues a mail with a verify link, for a caller. It returns an error of
// authorizationError, errUserNotFound, errUserDisabled, errServiceUser or errAlreadyVerified.
func (s *store) queueVerification(ctx context.Context, by caller, m *queuedMail) error {
	err := s.write(ctx, statement{
		Query: intoMail + `
			SELECT @kind, user.id, '', user.email, @subject, @detail, @address, @agent, @now, @now FROM user
			WHERE user.id = @id AND user.email_verified_at = 0 AND user.disabled = 0 AND user.service = 0 AND ` + mayChange,
		Args:   by.with(append(m.args(), arg{"id", m.userID})),
		IfNone: errNotApplied,
	})
	if !errors.Is(err, errNotApplied) {
		return err
	}
	if err := s.authorizationError(by, m.userID); err != nil {
		return err
	}
	u, err := s.user(m.userID)
	switch {
	case err != nil:
		return err
	case u.disabled:
		return errUserDisabled
	case u.service:
		return errServiceUser
	}
	return errAlreadyVerified
}

// toNewUser returns the statement that queues the mail to the user that an earlier statement of
// the same write has added, unless the address of the user is verified.
func (m *queuedMail) toNewUser() statement {
	return statement{
		Query: intoMail + `
			SELECT @kind, user.id, '', user.email, @subject, @detail, @address, @agent, @now, @now
			FROM counter JOIN user ON user.id = counter.user_id
			WHERE user.email_verified_at = 0`,
		Args: m.args(),
	}
}

// toPending returns the statements that queue the mail to the pending address of its user, and
// end the codes of earlier mails: one of these could be for the same address.
func (m *queuedMail) toPending() []statement {
	return []statement{
		{Query: `DELETE FROM user_code WHERE user_id = @user AND kind = 'uc'`, Args: m.args()},
		m.statement(),
	}
}

// verifyEmail verifies the address of the user of a code, for a caller: a session of the
// user, or a stranger that has sent the password of the user. It ends all verify codes of the
// user, and returns the user. It returns errInvalidCode, or an error of authorizationError if
// the caller is a session.
func (s *store) verifyEmail(ctx context.Context, by caller, c *emailCode, now int64) (u user, err error) {
	values := by.with(c.args(now))
	err = s.write(ctx,
		statement{
			Query: `
				UPDATE user SET
					email_verified_at = iif(email_verified_at = 0, @now, email_verified_at),
					updated_at = @now,
					version = version + 1
				WHERE user.id = @id AND EXISTS (SELECT 1 FROM user_code WHERE ` + usable + ` AND ` + concerns + `)
					AND (@caller = 'stranger' AND auth_stamp = @stamp OR ` + mayChange + `)
				RETURNING` + userColumns,
			Args:   values,
			Scan:   u.columns(),
			IfNone: errNotApplied,
		},
		statement{Query: `DELETE FROM user_code WHERE user_id = @id AND kind = 'uv'`, Args: values},
		event{at: now, kind: emailVerified, userID: c.user.id}.by(by))
	if !errors.Is(err, errNotApplied) {
		return u, err
	}
	if by.kind == sessionCaller {
		err = s.authorizationError(by, c.user.id)
	}
	if err == nil || errors.Is(err, errNotApplied) {
		err = errInvalidCode
	}
	return u, err
}

// confirmEmail makes the pending address of the user of a code its address, which is then
// verified, and returns the user. It queues the mail undo to the old address if that was
// verified, and ends the codes that endCodes ends. It returns errInvalidCode or errEmailTaken.
func (s *store) confirmEmail(ctx context.Context, c *emailCode, undo *queuedMail, now int64) (u user, err error) {
	values := c.args(now)
	err = s.write(ctx,
		undo.toVerified(), // first, because it reads the old address
		statement{
			Query: `
				UPDATE user SET
					email = pending_email,
					pending_email = '',
					email_verified_at = @now,
					updated_at = @now,
					version = version + 1
				WHERE user.id = @id AND EXISTS (SELECT 1 FROM user_code WHERE ` + usable + ` AND ` + concerns + `)
				RETURNING` + userColumns,
			Args:   values,
			Scan:   u.columns(),
			IfNone: errInvalidCode,
		},
		statement{Query: endCodes, Args: values},
		event{at: now, kind: emailChanged, userID: c.user.id, address: undo.address}.statement())
	return u, s.takenError(err, c.user.username, c.email, c.user.id)
}

// claimed is the condition that a user other than @id has the address that the undo code with
// the hash @hash restores, and never proved it.
const claimed = `user.email = (SELECT old_email FROM user_code WHERE ` + usable + `) COLLATE NOCASE
	AND user.id <> @id AND user.email_verified_at = 0`

// endClaim returns the statements that take the address that an undo code restores from a user
// that only claims it, and give that user an address to which no mail can go. Otherwise a thief
// could keep an address from its owner by registering another user with it.
func endClaim(c *emailCode, now int64, client string) []statement {
	record := event{at: now, kind: userChanged, address: client, changes: "email"}.statement()
	values := append(append(c.args(now), record.Args...), arg{"random", strings.ToLower(rand.Text())})
	return []statement{
		{Query: intoEvent + `SELECT @at, @type, 0, user.id, 0, @address, @changes FROM user WHERE ` + claimed, Args: values},
		{
			Query: `
				UPDATE user SET
					email = 'user-' || id || '-' || @random || '@invalid',
					pending_email = '',
					updated_at = @now,
					version = version + 1
				WHERE ` + claimed,
			Args: values,
		},
	}
}

// restoreEmail restores the address of an undo code, which is then verified, and replaces the
// password. It ends all of the user's sessions and API keys, and all of its codes except the
// undo codes of earlier changes. It queues the mail reset to the restored address. The statements in before
// belong to the same write, and run first. It returns errInvalidCode, or errEmailTaken if
// another user has verified the address.
func (s *store) restoreEmail(ctx context.Context, c *emailCode, newHash string, reset *queuedMail, now int64, before ...statement) error {
	values := append(c.args(now), arg{"new_hash", newHash})
	statements := append(append(before, endClaim(c, now, reset.address)...), []statement{
		{
			Query: `
				UPDATE user SET
					email = (SELECT old_email FROM user_code WHERE hash = @hash),
					pending_email = '',
					email_verified_at = @now,
					password_hash = @new_hash,
					auth_stamp = auth_stamp + 1,
					updated_at = @now,
					version = version + 1
				WHERE user.id = @id AND EXISTS (SELECT 1 FROM user_code WHERE ` + usable + ` AND ` + concerns + `)`,
			Args:   values,
			IfNone: errInvalidCode,
		},
		{Query: endCodes, Args: values},
		{Query: endPendingFactor, Args: values},
		{Query: `DELETE FROM session WHERE user_id = @id`, Args: values},
		{Query: endKeys, Args: values},
		reset.statement(),
		event{at: now, kind: emailRestored, userID: c.user.id, address: reset.address}.statement(),
	}...)
	err := s.write(ctx, append(statements, endUndo(values)...)...)
	return s.takenError(err, c.user.username, c.email, c.user.id)
}
