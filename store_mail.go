package main

import (
	"cmp"
	"context"
	"errors"
	"time"
)

// A mailKind says what a mail is for. It is also the name of its text in assets/mail and
// the type of its webhook event.
type mailKind string

const (
	resetMail    mailKind = "reset"    // a link that sets a new password; login is what a client typed, or detail is restored
	verifyMail   mailKind = "verify"   // a link that verifies the address of a user
	registerMail mailKind = "register" // a link that completes a registration
	takenMail    mailKind = "taken"    // a user already has the address of a registration
	inviteMail   mailKind = "invite"   // a link of an invitation
	changeMail   mailKind = "change"   // a link that confirms a new address
	undoMail     mailKind = "undo"     // a link that restores the old address; detail is the new address
	approvalMail mailKind = "approval" // to an admin: users wait for approval
	changedMail  mailKind = "changed"  // a notice; detail says what changed
	loginMail    mailKind = "login"    // a notice of a login from a new network
	factorMail   mailKind = "factor"   // a notice of a right password without the second factor
)

// restored is the detail of a resetMail to an address that an undo code has restored.
const restored = "restored"

// A budget limits the mails to one address: 1 a minute, 5 an hour and 10 a day. Each budget
// counts separately. Otherwise a stranger could, for example, register with the address of
// another person to block the reset links of that person.
type budget int

const (
	noBudget       budget = iota
	strangerBudget        // reset links that a stranger asks for
	registerBudget        // also takenMail, which takes the place of a registerMail
	verifyBudget
	changeBudget
	claimBudget // reset links that a user asks for itself, if its address is only a claim
)

// A mailRule describes the mails of one kind.
type mailRule struct {
	code   codeKind      // of its link; empty: it has no link
	life   time.Duration // of the code; the codes of invitations and registrations expire with these
	expiry time.Duration // after createdAt; the mail is then not sent any more
	budget budget

	// insert is the rest of intoMailCode. It inserts nothing if the mail is not needed any more.
	insert string
}

const (
	intoMailCode = `INSERT INTO user_code
		(hash, kind, user_id, email, invitation_id, created_by, created_at, expires_at, old_email, registration_id, mail_id) `

	newCodeOfUser = `
		SELECT @hash, @code, user.id, user.email, 0, 0, @now, @expires, '', 0, @mail FROM user
		WHERE user.id = @user AND user.email = @email AND user.disabled = 0 `

	// fewLive is the condition that fewer than three other mails of this kind have live
	// codes. The codes of earlier tries of the mail do not count: perhaps none arrived.
	fewLive = `AND (SELECT count(DISTINCT mail_id) FROM user_code
		WHERE user_id = @user AND kind = @code AND expires_at > @now AND mail_id <> @mail) < 3`
)

var mailRules = map[mailKind]mailRule{
	resetMail:  {resetMailCode, 30 * time.Minute, 24 * time.Hour, strangerBudget, newCodeOfUser + fewLive},
	verifyMail: {verifyCode, 24 * time.Hour, 24 * time.Hour, verifyBudget, newCodeOfUser + `AND user.email_verified_at = 0 ` + fewLive},
	registerMail: {verifyCode, 24 * time.Hour, 24 * time.Hour, registerBudget, `
		SELECT @hash, @code, 0, email, 0, 0, @now, expires_at, '', id, @mail FROM user_registration
		WHERE id = @subject AND expires_at > @now`},
	takenMail: {"", 0, 24 * time.Hour, registerBudget, ""},
	inviteMail: {inviteCode, 30 * 24 * time.Hour, 30 * 24 * time.Hour, noBudget, `
		SELECT @hash, @code, 0, email, id, created_by, @now, expires_at, '', 0, @mail FROM user_invitation
		WHERE id = @subject AND email = @email AND expires_at > @now AND uses_left > 0`},
	changeMail: {changeCode, time.Hour, time.Hour, changeBudget, `
		SELECT @hash, @code, user.id, user.pending_email, 0, 0, @now, @expires, '', 0, @mail FROM user
		WHERE user.id = @user AND user.pending_email = @email AND user.disabled = 0`},
	undoMail: {undoCode, 72 * time.Hour, 72 * time.Hour, noBudget, `
		SELECT @hash, @code, user.id, @detail, 0, 0, @now, @expires, @email, 0, @mail FROM user
		WHERE user.id = @user`},
	approvalMail: {"", 0, 24 * time.Hour, noBudget, ""},
	changedMail:  {"", 0, 24 * time.Hour, noBudget, ""},
	loginMail:    {"", 0, 24 * time.Hour, noBudget, ""},
	factorMail:   {"", 0, 24 * time.Hour, noBudget, ""},
}

// A queuedMail is one row of the table user_mail; assets/schema/09_mail.sql describes its
// columns.
type queuedMail struct {
	id        int64
	kind      mailKind
	userID    int64
	login     string
	email     string
	subjectID int64
	detail    string
	address   string
	userAgent string
	createdAt int64
	nextTryAt int64
	tries     int64
	state     mailState
	closedAt  int64
	lastError string
}

// mailColumns and (*queuedMail).columns list the columns in the same order.
const mailColumns = `
	user_mail.id,
	user_mail.kind,
	user_mail.user_id,
	user_mail.login,
	user_mail.email,
	user_mail.subject_id,
	user_mail.detail,
	user_mail.address,
	user_mail.user_agent,
	user_mail.created_at,
	user_mail.next_try_at,
	user_mail.tries,
	user_mail.state,
	user_mail.closed_at,
	user_mail.last_error`

func (m *queuedMail) columns() []any {
	return []any{
		&m.id,
		(*string)(&m.kind),
		&m.userID,
		&m.login,
		&m.email,
		&m.subjectID,
		&m.detail,
		&m.address,
		&m.userAgent,
		&m.createdAt,
		&m.nextTryAt,
		&m.tries,
		(*string)(&m.state),
		&m.closedAt,
		&m.lastError,
	}
}

const intoMail = `INSERT INTO user_mail (kind, user_id, login, email, subject_id, detail, address, user_agent, created_at, next_try_at) `

// args returns the arguments of the statements that queue the mail.
func (m *queuedMail) args() args {
	return args{
		{"kind", string(m.kind)}, {"user", m.userID}, {"login", m.login}, {"email", m.email}, {"subject", m.subjectID},
		{"detail", m.detail}, {"address", m.address}, {"agent", m.userAgent}, {"now", m.createdAt},
	}
}

// statement returns the statement that queues the mail as it is. It belongs to the write of the
// act that causes the mail.
func (m *queuedMail) statement() statement {
	return statement{
		Query: intoMail + `VALUES (@kind, @user, @login, @email, @subject, @detail, @address, @agent, @now, @now)`,
		Args:  m.args(),
	}
}

// toVerified returns the statement that queues the mail to the current address of the user, if
// the address is verified and the user is not disabled. The statement must run before those
// that change the address.
func (m *queuedMail) toVerified() statement {
	return statement{
		Query: intoMail + `
			SELECT @kind, id, '', email, @subject, @detail, @address, @agent, @now, @now FROM user
			WHERE id = @user AND email_verified_at <> 0 AND disabled = 0`,
		Args: m.args(),
	}
}

// warn returns the statement that queues a notice to the verified address of a user, to be
// sent after delay seconds, unless five notices of this kind, or one about the same address
// of a client, were queued in the last day.
func (m *queuedMail) warn(delay int64) statement {
	return statement{
		Query: intoMail + `
			SELECT @kind, id, '', email, 0, @detail, @address, @agent, @now, @now + @delay FROM user
			WHERE id = @user AND email_verified_at <> 0 AND disabled = 0 AND 0 = (
				SELECT coalesce(sum(address = @address), 0) + count(*) / 5 FROM user_mail AS other
				WHERE other.user_id = @user AND other.kind = @kind AND other.created_at > @now - 86400)`,
		Args: append(args{{"delay", delay}}, m.args()...),
	}
}

// endWarning returns the statement that drops a notice of warn that is not due yet, because the
// user itself has now logged in from this address.
func endWarning(userID int64, address string, now int64) statement {
	return statement{
		Query: `
			DELETE FROM user_mail
			WHERE user_id = @user AND kind = @kind AND address = @address AND state = 'queued' AND next_try_at > @now`,
		Args: args{{"user", userID}, {"kind", string(factorMail)}, {"address", address}, {"now", now}},
	}
}

// mailLease is how long a try of a mail can take, in seconds. If its outcome is
// not recorded by then, another try begins.
const mailLease = 120

// mailDue is the condition that a mail can be tried at @now. No mail waits longer than two
// hours for its next try. If a mail seems to, the clock was set back.
const mailDue = `user_mail.state = 'queued' AND (user_mail.next_try_at <= @now OR user_mail.next_try_at > @now + 7200)`

// dueMails calls f for at most limit mails that can be tried now, the longest due first. It
// reuses f's argument for the next row.
func (s *store) dueMails(ctx context.Context, limit, now int64, f func(*queuedMail)) error {
	var m queuedMail
	// These are the two cases of mailDue. With an OR, SQLite would read every mail that waits.
	const from = `SELECT` + mailColumns + ` FROM user_mail WHERE state = 'queued' AND `
	return s.eachRow(ctx, from+`next_try_at <= ?1 UNION ALL `+from+`next_try_at > ?1 + 7200 ORDER BY next_try_at LIMIT ?2`,
		m.columns(), func() { f(&m) }, now, limit)
}

var (
	errMailTaken   = errors.New("another process sends this mail")
	errMailEnded   = errors.New("the mail is not needed any more")
	errMailLimited = errors.New("the recipient got too many mails")
	errMailExpired = errors.New("the mail could not be sent in time")
	errMailNoUser  = errors.New("no active user has the login that was typed")
)

// takeMail begins a try of a mail whose recipient is known, and counts the mail toward a
// budget of the recipient. No other process tries the mail during mailLease. If the kind of
// the mail has a code, the same write stores the hash of the code of this try. takeMail
// returns when this code expires, in Unix seconds. It returns errMailTaken, errMailEnded or
// errMailLimited.
func (s *store) takeMail(ctx context.Context, m *queuedMail, budget budget, hash []byte, now int64) (expires int64, err error) {
	rule := mailRules[m.kind]
	expires = now + int64(rule.life/time.Second)
	values := append(args{
		{"mail", m.id}, {"tries", m.tries}, {"lease", mailLease}, {"budget", int(budget)},
		{"hash", hash}, {"code", string(rule.code)}, {"now", now}, {"expires", expires},
	}, m.args()...)
	statements := []statement{
		{
			Query: `
				UPDATE user_mail SET
					kind = @kind,
					user_id = @user,
					login = '',
					email = @email,
					tries = tries + 1,
					next_try_at = @now + @lease
				WHERE id = @mail AND tries = @tries AND ` + mailDue,
			Args:   values,
			IfNone: errMailTaken,
		},
		{
			Query: `
				UPDATE user_mail SET budget = @budget
				WHERE id = @mail AND (@budget = 0 OR (
					SELECT coalesce(sum(created_at > @now - 60), 0) < 1
						AND coalesce(sum(created_at > @now - 3600), 0) < 5
						AND count(*) < 10
					FROM user_mail AS other
					WHERE other.email = @email COLLATE NOCASE AND other.budget <> 0 AND other.budget = @budget
						AND other.created_at > @now - 86400 AND other.created_at <= @now + 60 AND other.id <> @mail))`,
			Args:   values,
			IfNone: errMailLimited,
		},
	}
	if rule.insert != "" {
		statements = append(statements, statement{Query: intoMailCode + rule.insert + ` RETURNING expires_at`, Args: values, Scan: []any{&expires}, IfNone: errMailEnded})
	}
	if m.kind == changeMail { // at most one live code
		statements = append(statements, statement{Query: `DELETE FROM user_code WHERE user_id = @user AND kind = @code AND mail_id <> @mail`, Args: values})
	}
	if m.kind == takenMail {
		statements = append(statements, endRegistration(values)...)
	}
	return expires, s.write(ctx, statements...)
}

// closeMail records that a mail was sent, failed or dropped: state. The outbox does not try it
// again. closeMail changes nothing if another process has begun a try since.
func (s *store) closeMail(ctx context.Context, m *queuedMail, state, lastError string, now int64) error {
	return s.write(ctx, statement{
		Query: `
			UPDATE user_mail SET state = @state, login = '', last_error = @error, closed_at = @now
			WHERE id = @mail AND tries = @tries AND state = 'queued'`,
		Args: args{{"mail", m.id}, {"tries", m.tries}, {"state", state}, {"error", lastError}, {"now", now}},
	})
}

// delayMail records that a try of a mail failed, and when the next one is due, in Unix
// seconds. It changes nothing if another process has begun a try since.
func (s *store) delayMail(ctx context.Context, m *queuedMail, lastError string, next int64) error {
	return s.write(ctx, statement{
		Query: `
			UPDATE user_mail SET next_try_at = @next, last_error = @error
			WHERE id = @mail AND tries = @tries AND state = 'queued'`,
		Args: args{{"mail", m.id}, {"tries", m.tries}, {"error", lastError}, {"next", next}},
	})
}

// A mailState is the state of a mail in the table.
type mailState string

const (
	mailQueued  mailState = "queued"
	mailSent    mailState = "sent"
	mailFailed  mailState = "failed"
	mailDropped mailState = "dropped"
)

// notSent is the condition of the index user_mail_state: SQLite uses a partial index only if the
// query repeats its condition.
const notSent = `state <> 'sent'`

// mails calls f for at most limit mails after an id, in id order, or for all of them if limit is
// negative; only those in a state unless that is empty. It reuses f's argument for the next row.
func (s *store) mails(ctx context.Context, after, limit int64, state mailState, f func(*queuedMail)) error {
	var m queuedMail
	const page = `id > ?1 ORDER BY id LIMIT ?2`
	query := `SELECT` + mailColumns + ` FROM user_mail WHERE `
	switch state {
	case "":
		return s.eachRow(ctx, query+page, m.columns(), func() { f(&m) }, after, limit)
	case mailSent: // most mails
		query += `state = ?3 AND ` + page
	default:
		query += notSent + ` AND state = ?3 AND ` + page
	}
	return s.eachRow(ctx, query, m.columns(), func() { f(&m) }, after, limit, string(state))
}

// retryMail makes the mail with this id due now, or every mail if id is 0, for a caller, and
// returns the number of mails. It only changes mails that are queued or have failed. If it changes
// no mail and id is not 0, it returns errMailNotFound or an error of authorizationError.
func (s *store) retryMail(ctx context.Context, by caller, id, now int64) (n int64, err error) {
	var ifNone error
	which := notSent
	if id != 0 {
		which, ifNone = `id = @mail`, errNotApplied
	}
	err = s.write(ctx, statement{
		Query: `
			WITH again AS MATERIALIZED (SELECT id FROM user_mail WHERE ` + which + ` AND state IN ('queued', 'failed') AND ` + mayChange + `)
			UPDATE user_mail SET state = 'queued', closed_at = 0, next_try_at = @now
			WHERE id IN (SELECT id FROM again)
			RETURNING (SELECT count(*) FROM again)`,
		Args:   by.with(args{{"mail", id}, {"now", now}, {"id", nil}}), // not a user, so mayChange only accepts admins
		Scan:   []any{&n},
		IfNone: ifNone,
	})
	if errors.Is(err, errNotApplied) {
		err = cmp.Or[error](s.authorizationError(by, 0), errMailNotFound)
	}
	return n, err
}

// mailQueue returns the number of queued mails, and when the oldest of them was queued, in
// Unix seconds, or 0.
func (s *store) mailQueue() (n, oldest int64, err error) {
	const queued = `FROM user_mail WHERE ` + notSent + ` AND state = 'queued'`
	err = s.read(`SELECT count(*), coalesce((SELECT created_at `+queued+` ORDER BY id LIMIT 1), 0) `+queued, errStorage, []any{&n, &oldest})
	return n, oldest, err
}

// addRegistration stores a registration that is valid for life seconds, and queues m, a mail
// to its address. It reserves neither the username nor the address.
func (s *store) addRegistration(ctx context.Context, username, hash string, m *queuedMail, life int64) error {
	return s.write(ctx,
		statement{
			Query: `
				INSERT INTO user_registration (username, email, password_hash, created_at, expires_at)
				VALUES (@username, @email, @password, @now, @now + @life)`,
			Args: append(m.args(), args{{"username", username}, {"password", hash}, {"life", life}}...),
		},
		statement{
			Query: intoMail + `
				SELECT @kind, 0, '', @email, max(id), '', @address, @agent, @now, @now FROM user_registration`,
			Args: m.args(),
		})
}

// registration returns the registration with this id, or errMailEnded.
func (s *store) registration(id int64) (r registration, err error) {
	err = s.read(`SELECT`+registrationColumns+` FROM user_registration WHERE id = ?`, errMailEnded, r.columns(), id)
	return r, err
}

// ofNewInvitation returns the statement that queues the mail of the invitation that earlier
// statements of the same write have added.
func (m *queuedMail) ofNewInvitation() statement {
	return statement{
		Query: intoMail + `
			SELECT @kind, 0, '', @email, max(id), '', @address, @agent, @now, @now FROM user_invitation`,
		Args: m.args(),
	}
}

// sendInvitation queues the mail for an invitation with an address, for a caller, which must
// be an admin or the console. It returns errInvitationNotFound, errNotSendable or an error of
// authorizationError.
func (s *store) sendInvitation(ctx context.Context, by caller, m *queuedMail) error {
	err := s.write(ctx, statement{
		Query: intoMail + `
			SELECT @kind, 0, '', email, id, '', @address, @agent, @now, @now FROM user_invitation
			WHERE id = @subject AND email <> '' AND uses_left > 0 AND expires_at > @now AND ` + mayChange,
		Args:   by.with(append(m.args(), arg{"id", nil})), // not a user, so mayChange only accepts admins
		IfNone: errNotApplied,
	})
	if errors.Is(err, errNotApplied) {
		var id int64
		return cmp.Or[error](s.authorizationError(by, 0),
			s.read(`SELECT id FROM user_invitation WHERE id = ?1 AND expires_at > ?2`, errInvitationNotFound, []any{&id}, m.subjectID, m.createdAt),
			errNotSendable)
	}
	return err
}

// approvalMails returns the statement that queues an approvalMail to the admins whose address
// is verified, at most 50. It skips admins for whom such a mail is queued. An admin gets the
// next mail an hour after the last one, or later.
func approvalMails(now int64) statement {
	return statement{
		Query: intoMail + `
			SELECT @kind, id, '', email, 0, '', '', '', @now, min(@now + 3600, max(@now, 3600 + (
				SELECT coalesce(max(closed_at), 0) FROM user_mail WHERE user_id = user.id AND kind = @kind AND state IN ('sent', 'failed'))))
			FROM user
			WHERE role = 'admin' AND disabled = 0 AND pending = 0 AND email_verified_at <> 0
				AND NOT EXISTS (SELECT 1 FROM user_mail WHERE user_id = user.id AND kind = @kind AND state = 'queued')
			ORDER BY id LIMIT 50`,
		Args: args{{"kind", string(approvalMail)}, {"now", now}},
	}
}

// waitsForApproval reports whether a user waits for approval.
func (s *store) waitsForApproval() (waits bool, err error) {
	err = s.read(`SELECT EXISTS (SELECT 1 FROM user WHERE pending = 1)`, errStorage, []any{&waits})
	return waits, err
}

// userByEmail returns the user that has an address, or errUserNotFound. It ignores case.
func (s *store) userByEmail(email string) (u user, err error) {
	err = s.read(`SELECT`+userColumns+` FROM user WHERE email = ? COLLATE NOCASE`, errUserNotFound, u.columns(), email)
	return u, err
}

// endUndo returns the statements that end the undo codes of the user @id, from that of the
// mail @undone on, and drop the later undo mails that were not sent. A thief who changes the
// address twice gets an undo code too: it must not outlive the undo of the first change.
func endUndo(values args) []statement {
	return []statement{
		{Query: `DELETE FROM user_code WHERE user_id = @id AND kind = 'uu' AND mail_id >= @undone`, Args: values},
		{
			Query: `
				UPDATE user_mail SET state = 'dropped', last_error = 'the mail is not needed any more', closed_at = @now
				WHERE user_id = @id AND kind = 'undo' AND id >= @undone AND state IN ('queued', 'failed')`,
			Args: values,
		},
	}
}

// endMails returns the statements that delete the mails of the user @id. Mails that count
// toward a budget stay, without the user and its network. Otherwise a client could add and
// delete users to send any number of mails to a stranger.
func endMails(values args) []statement {
	return []statement{
		{Query: `DELETE FROM user_mail WHERE user_id = @id AND budget = 0`, Args: values},
		{
			Query: `
				UPDATE user_mail SET
					user_id = 0,
					detail = '',
					address = '',
					user_agent = '',
					last_error = iif(state = 'queued', 'the user was deleted', ''),
					state = iif(state = 'queued', 'dropped', state),
					closed_at = iif(state = 'queued', @now, closed_at)
				WHERE user_id = @id`,
			Args: values,
		},
	}
}
