package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/setting"
	"userd/internal/useragent"
)

// linkTo returns a link with a new code of a kind, and the hash of the code. page is the URL of
// the link with {code} in place of the code. It comes from the configuration, never from a
// request: otherwise a client could direct a link to its own host. linkTo returns errNoAppURL
// if page is empty.
func linkTo(page string, kind codeKind) (link string, hash []byte, err error) {
	if page == "" {
		return "", nil, errNoAppURL
	}
	code := newCode(kind)
	hash, err = hashCode(kind, code)
	return strings.Replace(page, "{code}", code, 1), hash, err
}

// makeResetLink makes a link with which a user can set a new password once, for a caller. The
// link is valid for life. makeResetLink returns it, and when it expires, in Unix seconds. It
// returns errNoAppURL or an error of store.addResetLink.
func (s *userService) makeResetLink(ctx context.Context, by caller, pages pageURLs, userID int64, life time.Duration) (link string, expires int64, err error) {
	link, hash, err := linkTo(pages.reset, resetLinkCode)
	if err != nil {
		return "", 0, err
	}
	now := s.wall()
	expires = now.Add(life).Unix()
	return link, expires, s.store.addResetLink(ctx, by, userID, hash, now.Unix(), expires)
}

// lifetimeOf returns the lifetime that a client asks for, or the standard one if seconds is
// nil. why says what is wrong with the seconds; it is empty if they are valid.
func lifetimeOf(seconds *int64, l lifetime) (life time.Duration, why string) {
	if seconds == nil {
		return l.standard, ""
	}
	least, most := int64(l.shortest/time.Second), int64(l.longest/time.Second)
	if *seconds < least || *seconds > most {
		return 0, fmt.Sprintf("must be from %d to %d seconds", least, most)
	}
	return time.Duration(*seconds) * time.Second, ""
}

type forgotRequest struct {
	Login string `json:"login"`
}

// maxLogin is the longest login, in bytes, for which a mail can be requested.
const maxLogin = 512

// forgotPassword queues a mail with a reset link for a login, a username or an address. Only
// the outbox looks up the user, so the answer and its time do not show whether the user exists.
func (s *server) forgotPassword(x *exchange) error {
	in, err := decode[forgotRequest](x.body())
	switch {
	case err != nil:
		return err
	case !s.mailOn:
		return errMailOff
	case in.Login == "":
		return errForgotFields
	case len(in.Login) > maxLogin:
		return errInvalid.with("The login is longer than %d bytes", maxLogin)
	}
	x.counted = true
	if s.mayMail(x) {
		m := queuedMail{kind: resetMail, login: in.Login}
		if err := s.store.write(x.r.Context(), m.causedBy(x, s.wall().Unix()).statement()); err != nil {
			return err
		}
	}
	return x.sendMessage(http.StatusAccepted, "If this user exists, a message is on its way")
}

type resetRequest struct {
	Code     string `json:"code"`
	Password string `json:"password"`
	OTP      string `json:"otp"` // if the user has a second factor
}

// resetPassword sets the password of the user that a reset code belongs to, and ends all
// of the user's sessions. It starts none: the holder of the code may not be the user.
func (s *server) resetPassword(x *exchange) error {
	in, err := decode[resetRequest](x.body())
	if err != nil {
		return err
	}
	if in.Code == "" || in.Password == "" {
		return errResetFields
	}
	kind := resetLinkCode
	if isCode(in.Code, resetMailCode) {
		kind = resetMailCode
	}
	code, err := hashCode(kind, in.Code)
	if err != nil {
		return err
	}
	u, err := s.store.userOfCode(kind, code, s.wall().Unix())
	if err != nil {
		return s.countWrong(x, err)
	}
	x.counted = true // only wrong codes count toward codeTries
	x.target = u.id  // for the log
	if err := s.checkChange(&change{}, &u, &in.Password); err != nil {
		return err
	}
	factor, err := s.proveForReset(x, u.id, in.OTP)
	if err != nil {
		return err
	}
	if err := s.allow(x, passwords); err != nil {
		return err
	}
	hash, err := s.hasher.Hash(x.r.Context(), clientaddr.Network(x.address), in.Password)
	if err != nil {
		return err
	}
	if err := s.store.resetPassword(x.r.Context(), u.id, kind, code, hash, factor, x.address, s.wall().Unix(), s.notice(x, changedMail, u.id, "the password")...); err != nil {
		return err
	}
	return x.sendMessage(http.StatusOK, "Password changed")
}

// countWrong counts a wrong code toward codeTries: err is errInvalidCode. It returns errLimited
// if the network has no tries left, otherwise err.
func (s *server) countWrong(x *exchange, err error) error {
	if !errors.Is(err, errInvalidCode) {
		return err
	}
	x.counted = true
	return cmp.Or(s.allow(x, codeTries), err)
}

type linkRequest struct {
	proofRequest
	ExpiresIn *int64 `json:"expires_in"` // seconds
}

type linkAnswer struct {
	ID        int64     `json:"id,omitempty"` // of an invitation
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// createResetLink answers with a reset link for the user of the path. The admin neither
// learns nor chooses the password.
func (s *server) createResetLink(x *exchange) error {
	in, err := decode[linkRequest](x.optionalBody())
	if err != nil {
		return err
	}
	if _, err := s.targetUser(x); err != nil {
		return err
	}
	wrong := make(fieldErrors)
	life, why := lifetimeOf(in.ExpiresIn, resetLinkLife)
	wrong.add("expires_in", why)
	if err := wrong.err(); err != nil {
		return err
	}
	if err := s.requireProof(x, makeLink, in.proofRequest); err != nil {
		return err
	}
	link, expires, err := s.makeResetLink(x.r.Context(), x.caller(), s.pages, x.target, life)
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusCreated, linkAnswer{URL: link, ExpiresAt: utc(expires)})
}

// prepareMails adds a notice to the change of a user, which also sets the password unless that
// is nil. It returns the statements that mail a link to the pending address, or nil if the
// change has none. It returns errInvalid if this address is not at one of EMAIL_DOMAINS, and
// errUsernameTaken or errEmailTaken if another user has a name of the change, or errLimited.
func (s *server) prepareMails(x *exchange, c *change, u *user, password *string) ([]statement, error) {
	var changed []string
	if c.email != nil {
		changed = append(changed, "the e-mail address")
	}
	if password != nil {
		changed = append(changed, "the password")
	}
	if changed != nil {
		detail := strings.Join(changed, " and ")
		if u.id != x.who.id {
			detail += ", by an admin"
		}
		if notice := s.notice(x, changedMail, u.id, detail); notice != nil {
			c.notice = &notice[0]
		}
	}
	if c.pendingEmail == nil || *c.pendingEmail == "" {
		return nil, nil
	}
	wrong := make(fieldErrors)
	wrong.add("email", setting.CheckEmailDomain(*c.pendingEmail, s.emailDomains))
	if err := wrong.err(); err != nil {
		return nil, err
	}
	if err := s.store.checkFree(*cmp.Or(c.username, &u.username), *c.pendingEmail, u.id); err != nil {
		return nil, err
	}
	if err := s.countMail(x); err != nil {
		return nil, err
	}
	m := queuedMail{kind: changeMail, userID: u.id, email: *c.pendingEmail}
	return m.causedBy(x, s.wall().Unix()).toPending(), nil
}

type codeRequest struct {
	Code string `json:"code"`
}

// emailCode returns the code of a kind that a client sent. It counts a wrong code. It returns
// errCodeFields, errInvalidCode or errLimited.
func (s *server) emailCode(x *exchange, kind codeKind, text string) (c emailCode, err error) {
	if text == "" {
		return c, errCodeFields
	}
	hash, err := hashCode(kind, text)
	if err != nil {
		return c, err
	}
	if c, err = s.store.emailCode(kind, hash, s.wall().Unix()); err != nil {
		return c, s.countWrong(x, err)
	}
	x.counted = true // only wrong codes count toward codeTries
	x.target = c.user.id
	return c, nil
}

// sendVerification queues a mail with a verify link to the user of the path.
func (s *server) sendVerification(x *exchange) error {
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	if _, err := s.targetUser(x); err != nil {
		return err
	}
	if !s.mailOn {
		return errMailOff.with("This service sends no mail: an admin can mark an address as verified")
	}
	if err := s.countMail(x); err != nil {
		return err
	}
	m := queuedMail{kind: verifyMail, userID: x.target}
	if err := s.store.queueVerification(x.r.Context(), x.caller(), m.causedBy(x, s.wall().Unix())); err != nil {
		return err
	}
	return x.sendMessage(http.StatusAccepted, "A message is on its way")
}

// confirmEmail makes the pending address of a user its address. It queues a mail with a link
// that undoes the change, to the old address.
func (s *server) confirmEmail(x *exchange) error {
	in, err := decode[codeRequest](x.body())
	if err != nil {
		return err
	}
	c, err := s.emailCode(x, changeCode, in.Code)
	if err != nil {
		return err
	}
	now := s.wall().Unix()
	undo := queuedMail{kind: undoMail, userID: c.user.id, detail: c.email}
	u, err := s.store.confirmEmail(x.r.Context(), &c, undo.causedBy(x, now), now)
	if err != nil {
		return err
	}
	return x.send(http.StatusOK, append(appendUser(nil, &u, viewEmail), '\n')) // the holder of the code may not be the user
}

// restoreEmail undoes a change of the address of a user. It gives the user a random password,
// and queues a mail with a reset link to the restored address: the person who changed the
// address may know the password, and would change the address again before the user opens the
// link.
func (s *server) restoreEmail(x *exchange) error {
	in, err := decode[codeRequest](x.body())
	if err != nil {
		return err
	}
	c, err := s.emailCode(x, undoCode, in.Code)
	if err != nil {
		return err
	}
	if err := s.allow(x, passwords); err != nil {
		return err
	}
	hash, err := s.hasher.Hash(x.r.Context(), clientaddr.Network(x.address), rand.Text())
	if err != nil {
		return err
	}
	now := s.wall().Unix()
	reset := queuedMail{kind: resetMail, userID: c.user.id, email: c.email, detail: restored}
	notice := s.notice(x, changedMail, c.user.id, "the e-mail address and the password")
	if err := s.store.restoreEmail(x.r.Context(), &c, hash, reset.causedBy(x, now), now, notice...); err != nil {
		return err
	}
	return x.sendMessage(http.StatusOK, "Address restored")
}

// accountPage answers with the page that all links open: the document of the console, also if
// CONSOLE is off. The kind of the code decides what the page does. The code is in the fragment of
// the URL, which browsers do not send. So no log contains the code, and a program that follows links
// does not use it up.
func (s *server) accountPage(x *exchange) error {
	return x.sendDocument(s.webPages[pageState{admin: true}]())
}

// causedBy returns the mail with the client of a request, which causes it, and with its time
// in Unix seconds.
func (m queuedMail) causedBy(x *exchange, now int64) *queuedMail {
	m.address, m.userAgent, m.createdAt = x.address, useragent.Of(x.r), now
	return &m
}

// notice returns the statement that queues a notice to a user about an act, or nil if notices
// are off. The statement must run before the statements of the act.
func (s *server) notice(x *exchange, kind mailKind, userID int64, detail string) []statement {
	if !s.mailOn || s.notices == switchOff {
		return nil
	}
	m := queuedMail{kind: kind, userID: userID, detail: detail}
	return []statement{m.causedBy(x, s.wall().Unix()).toVerified()}
}

// loginNotice returns the notice of a login from a network that is new for the user,
// otherwise nil. The first login of a user causes no notice.
func (s *server) loginNotice(x *exchange, userID int64) ([]statement, error) {
	notice := s.notice(x, loginMail, userID, "")
	if notice == nil {
		return nil, nil
	}
	known, others, err := s.store.loginsFrom(x.r.Context(), userID, clientaddr.SameNetwork(x.address))
	if err != nil || known || !others {
		return nil, err
	}
	return notice, nil
}

// warnOwner queues a mail to a user: a client knows its password, but did not prove its
// second factor. It queues none if the user has logged in from the client's network before. The
// mail leaves when the mfa_token has expired; a login from the same address before that drops
// the mail.
func (s *server) warnOwner(x *exchange, u *user, detail string) error {
	if !s.mailOn || s.notices == switchOff || u.emailVerifiedAt == 0 {
		return nil
	}
	known, _, err := s.store.loginsFrom(x.r.Context(), u.id, clientaddr.SameNetwork(x.address))
	if err != nil || known {
		return err
	}
	m := queuedMail{kind: factorMail, userID: u.id, detail: detail}
	return s.store.write(x.r.Context(), m.causedBy(x, s.wall().Unix()).warn(mfaLife+clockLeeway))
}
