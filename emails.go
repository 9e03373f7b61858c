package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"userd/internal/setting"
)

type updateRequest struct {
	Username        *string `json:"username"`
	Email           *string `json:"email"`
	Password        *string `json:"password"`
	Role            *role   `json:"role"`
	Disabled        *bool   `json:"disabled"`
	EmailVerified   *bool   `json:"email_verified"`
	CurrentPassword *string `json:"current_password"`

	// Ignored, so that a client can send back the user that it read.
	ID          json.RawMessage `json:"id"`
	CreatedAt   json.RawMessage `json:"created_at"`
	UpdatedAt   json.RawMessage `json:"updated_at"`
	LastLoginAt json.RawMessage `json:"last_login_at"`
	VerifiedAt  json.RawMessage `json:"email_verified_at"`
	Pending     json.RawMessage `json:"pending"`
	NextEmail   json.RawMessage `json:"pending_email"`
}

// updateUser changes the given fields of a user. A field with its current value is
// not a change: it requires no right, and a user who was adopted with a name that
// is invalid today can still change other fields.
func (s *server) updateUser(x *exchange) error {
	in, err := decode[updateRequest](x.body())
	if err != nil {
		return err
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	u, err := s.targetUser(x)
	if err != nil {
		return err
	}
	version, err := ifMatch(x.r, u)
	if err != nil {
		return err
	}
	c := s.changeOf(x, &in, u)
	if (c.role != nil || c.disabled != nil || c.verified != nil) && x.who.role != admin {
		return errForbidden.with("Only an admin sets role, disabled and email_verified")
	}
	if c.verified != nil {
		version = u.version // another address would be verified if the user changed it now
	}
	if err := s.checkChange(&c, u, in.Password); err != nil {
		return err
	}
	if err := s.requireProof(x, actsOf(&c, in.Password), in.CurrentPassword); err != nil {
		return err
	}
	then, err := s.prepareMails(x, &c, u, in.Password)
	if err != nil {
		return err
	}
	if in.Password != nil {
		if err := s.allow(x, passwords); err != nil {
			return err
		}
	}
	if c != (change{}) || in.Password != nil {
		if in.Password != nil && u.id == x.who.id && c.disabled == nil { // a disabled user has no session
			return s.changeOwnPassword(x, c, in.Password, version, then)
		}
		changed, err := s.changeUser(x.r.Context(), x.caller(), u.id, c, in.Password, version, then...)
		if err != nil {
			return err
		}
		return x.sendUser(http.StatusOK, &changed, s.viewOf(&x.who, u.id))
	}
	// No write checks the rights here, and the body may have taken long to arrive:
	// check them again.
	if err := s.admit(x, selfOrAdmin); err != nil {
		return err
	}
	if u, err = s.targetUser(x); err != nil {
		return err
	}
	return x.sendUser(http.StatusOK, u, s.viewOf(&x.who, u.id))
}

// changeOf returns what a body changes of a user. If mail is on, a member that sets another
// address must confirm it; the current address cancels that.
func (s *server) changeOf(x *exchange, in *updateRequest, u *user) change {
	c := change{
		username: newName(in.Username, u.username),
		email:    newName(in.Email, u.email),
		role:     unlessSame(in.Role, u.role),
		disabled: unlessSame(in.Disabled, u.disabled),
	}
	if in.Email != nil && c.email == nil && u.pendingEmail != "" {
		c.pendingEmail = new("")
	} else if s.mailOn && x.who.role != admin {
		c.email, c.pendingEmail = nil, c.email
	}
	c.verified = unlessSame(in.EmailVerified, u.emailVerifiedAt != 0 && c.email == nil)
	return c
}

// prepareMails adds the notice of a change to it. The change gives a user a new password unless
// that is nil. prepareMails returns the statements that mail a link to an address that the user
// must confirm. It returns errInvalid if this address is not at one of EMAIL_DOMAINS, and
// errUsernameTaken or errEmailTaken if the new names are taken now.
func (s *server) prepareMails(x *exchange, c *change, u *user, password *string) ([]statement, error) {
	var changed []string
	if c.email != nil {
		changed = append(changed, "the e-mail address")
	}
	if password != nil {
		changed = append(changed, "the password")
	}
	if notice := s.notice(x, changedMail, u.id, strings.Join(changed, " and ")); notice != nil && changed != nil {
		c.notice = &notice[0]
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
	m := queuedMail{kind: changeMail, userID: u.id, email: *c.pendingEmail}
	return m.from(x, s.wall().Unix()).toPending(), nil
}

// changeOwnPassword changes the caller, with a new password. It answers with the user and
// a new pair of tokens: the session's other tokens become invalid, because a thief may
// hold them. The statements in then belong to the same write.
func (s *server) changeOwnPassword(x *exchange, c change, password *string, version int64, then []statement) error {
	r, answer, err := s.rekey(x)
	if err != nil {
		return err
	}
	u, err := s.changeUser(x.r.Context(), x.caller(), x.who.id, c, password, version, append(then, r.statements()...)...)
	if err != nil {
		return err
	}
	tokens, err := json.Marshal(answer())
	if err != nil {
		return err
	}
	x.Header().Set("ETag", etag(u.version))
	body := appendUser(nil, &u, viewAll)
	body[len(body)-1] = ','
	return x.send(http.StatusOK, append(append(body, tokens[1:]...), '\n'))
}

type codeRequest struct {
	Code string `json:"code"`
}

// emailCode returns the code of a kind that a client sent, if it is valid. It counts a wrong
// one. It returns errCodeFields, errInvalidCode or errLimited.
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
	x.counted = true // only wrong codes count, so these use up nothing that honest clients share
	x.target = c.user.id
	return c, nil
}

// sendVerification mails a verify link to the user of the path.
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
	m := queuedMail{kind: verifyMail, userID: x.target}
	if err := s.store.queueVerification(x.r.Context(), x.caller(), m.from(x, s.wall().Unix())); err != nil {
		return err
	}
	return x.send(http.StatusAccepted, []byte(`{"message":"A message is on its way"}`+"\n"))
}

type verifyEmailRequest struct {
	Code     string `json:"code"`
	Password string `json:"password"` // of the user, if the request has no token of it

	Username *string `json:"username"` // of the user of a registration, in place of that of the registration
}

// verifyEmail verifies the address of the user of a code, or completes the registration of
// the code. The code only proves that its
// holder reads the mails to this address. Another person may have registered with the
// address, and the holder must not verify that user for it. So the caller must also be the
// user.
func (s *server) verifyEmail(x *exchange) error {
	in, err := decode[verifyEmailRequest](x.body())
	if err != nil {
		return err
	}
	if code, err := hashCode(verifyCode, in.Code); err == nil {
		r, err := s.store.registrantOfCode(code, s.wall().Unix())
		if err == nil {
			return s.completeRegistration(x, &r, code, in.Password, in.Username)
		}
		if !errors.Is(err, errInvalidCode) {
			return err
		}
	}
	c, err := s.emailCode(x, verifyCode, in.Code) // only of users: a registration has user_id 0
	if err != nil {
		return err
	}
	by, err := s.proveOwner(x, &c.user, in.Password)
	if err != nil {
		return err
	}
	u, err := s.store.verifyEmail(x.r.Context(), by, &c, s.wall().Unix())
	if err != nil {
		return err
	}
	return x.sendUser(http.StatusOK, &u, viewAll)
}

// proveOwner returns the caller of a write if the request is from a user: it has a password
// of the user, which counts like one of a login, or the token of a session of the user. It
// returns errNoToken, another error of authenticate, errCredentials or an error of
// matchesPassword.
func (s *server) proveOwner(x *exchange, u *user, password string) (caller, error) {
	if password == "" {
		err := s.authenticate(x)
		if errors.Is(err, errNoToken) {
			err = errNoToken.with("Log in, or send the password of the user")
		} else if err == nil && x.who.id != u.id {
			err = errCredentials.with("This link is for another user: log in as that user, or send its password")
		}
		return x.caller(), err
	}
	c, err := s.store.credentials(u.id)
	if err != nil {
		return caller{}, err
	}
	ok, err := s.matchesPassword(x, u.id, c.hash, "", password)
	if err == nil && !ok {
		err = errCredentials
	}
	return caller{kind: strangerCaller, user: u.id, address: x.address, stamp: &c.stamp}, err
}

// confirmEmail changes the address of the user of a code to the one that it set. The old
// address gets a mail that can undo the change.
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
	u, err := s.store.confirmEmail(x.r.Context(), &c, undo.from(x, now), now)
	if err != nil {
		return err
	}
	return x.send(http.StatusOK, append(appendUser(nil, &u, viewEmail), '\n')) // the holder of the code may not be the user
}

// restoreEmail undoes a change of the address of the user of a code, and mails a reset link
// to the restored address: the person who changed it may know the password.
func (s *server) restoreEmail(x *exchange) error {
	in, err := decode[codeRequest](x.body())
	if err != nil {
		return err
	}
	c, err := s.emailCode(x, undoCode, in.Code)
	if err != nil {
		return err
	}
	now := s.wall().Unix()
	reset := queuedMail{kind: resetMail, userID: c.user.id, email: c.email, detail: restored}
	if err := s.store.restoreEmail(x.r.Context(), &c, reset.from(x, now), now); err != nil {
		return err
	}
	return x.send(http.StatusOK, []byte(`{"message":"Address restored"}`+"\n"))
}
