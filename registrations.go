package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/param"
	"userd/internal/setting"
	"userd/internal/validate"
)

type registerRequest struct {
	Username   string `json:"username"`
	Email      string `json:"email"`
	Password   string `json:"password"`
	Invitation string `json:"invitation"` // the code of an invitation; empty: none
}

// register adds a user: with an invitation, a user with the role of the invitation, otherwise a
// member. Without an invitation, REGISTRATION and EMAIL_DOMAINS decide who can register. With
// REGISTRATION=verified, register stores a registration instead of a user.
func (s *server) register(x *exchange) error {
	in, err := decode[registerRequest](x.body())
	if err != nil {
		return err
	}
	u := user{username: in.Username, email: in.Email, role: member}
	var code []byte
	if in.Invitation != "" {
		code, err = hashCode(inviteCode, in.Invitation)
	} else {
		err = s.mayRegister(&u)
	}
	if err != nil {
		return err
	}
	if err := s.checkNew(&u, in.Password); err != nil {
		return err
	}
	var v invitation
	if code != nil {
		if v, err = s.store.invitationOfCode(code, s.wall().Unix()); err != nil {
			return s.countWrong(x, err)
		}
	}
	if err := s.count(x, 0); err != nil {
		return err
	}
	if code == nil && s.registration == registrationVerified {
		return s.startRegistration(x, &u, in.Password)
	}
	then := s.askForApproval(&u)
	if s.mailOn && (code != nil || s.mayMail(x)) {
		m := queuedMail{kind: verifyMail}
		then = append(then, m.causedBy(x, s.wall().Unix()).toNewUser())
	}
	if code != nil {
		err = s.addInvited(x.r.Context(), x.address, code, &v, &u, in.Password, then...)
	} else {
		err = s.addUser(x.r.Context(), caller{kind: strangerCaller, address: x.address}, &u, in.Password, then...)
	}
	if err != nil {
		return err
	}
	x.Header().Set("Location", userPath(u.id))
	return x.send(http.StatusCreated, append(appendUser(nil, &u, viewEmail), '\n'))
}

// registrationLife is how long a registration can be confirmed, in seconds.
const registrationLife = 24 * 60 * 60

// startRegistration stores a registration that checkNew has accepted, and queues a mail with a
// link that completes it. It does not look up other users, so the answer and its time are the
// same whether the names are taken or not. Only the owner of the address learns this, from the
// mail.
func (s *server) startRegistration(x *exchange, u *user, password string) error {
	hash, err := s.hasher.Hash(x.r.Context(), clientaddr.Network(x.address), password)
	if err != nil {
		return err
	}
	if s.mayMail(x) {
		m := queuedMail{kind: registerMail, email: u.email}
		if err := s.store.addRegistration(x.r.Context(), u.username, hash, m.causedBy(x, s.wall().Unix()), registrationLife); err != nil {
			return err
		}
	}
	return x.sendMessage(http.StatusAccepted, "To complete the registration, open the link in the message that is on its way")
}

// completeRegistration adds the user of a registration, and answers with the user. It requires
// the code and the password, because another person may have registered with the address of
// the code's holder. If another user has taken the username meanwhile, the code stays valid, and
// the client can send another username; nil keeps that of the registration.
// completeRegistration returns errCredentials, an error of matchesPassword or mayRegister, or
// an error of store.addRegistered.
func (s *server) completeRegistration(x *exchange, r *registration, code []byte, password string, username *string) error {
	x.counted = true
	if password == "" {
		return errCredentials.with("Send the password that you chose when you registered")
	}
	// The limits count a registration under its negative id, because users have positive ids.
	ok, err := s.matchesPassword(x, -r.id, &credentials{hash: r.hash}, "", password)
	switch {
	case err != nil:
		return err
	case !ok:
		return errCredentials
	}
	// Like a change of a user: a refusal shows that a name exists, and the code stays valid.
	if err := s.allowOwner(userChanges, -r.id); err != nil {
		return err
	}
	u := user{username: r.username, email: r.email, role: member}
	if username != nil {
		u.username = validate.TrimName(*username)
		if err := s.checkChange(&change{username: &u.username}, &u, &password); err != nil {
			return err
		}
	}
	if err := s.mayRegister(&u); err != nil { // the settings may have changed meanwhile
		return err
	}
	if err := s.store.addRegistered(x.r.Context(), &u, r, code, x.address, s.wall().Unix(), s.askForApproval(&u)...); err != nil {
		return err
	}
	x.target = u.id // for the log
	return x.sendUser(http.StatusOK, &u, viewAll)
}

// askForApproval returns the statement that queues mails to the admins, who can approve the
// user, or nil if the user does not wait for approval or mail is off.
func (s *server) askForApproval(u *user) []statement {
	if !s.mailOn || !u.pending {
		return nil
	}
	return []statement{approvalMails(s.wall().Unix())}
}

// mayRegister returns nil if a user may register without an invitation. It sets u.pending if
// an admin must approve the user. It returns errRegistrationClosed, errNotInvited, or
// errInvalid for an address that is not at one of EMAIL_DOMAINS.
func (s *server) mayRegister(u *user) error {
	switch s.registration {
	case registrationOpen, registrationVerified:
	case registrationApproval:
		u.pending = true
	case registrationInvite:
		return errNotInvited
	default:
		return errRegistrationClosed
	}
	wrong := make(fieldErrors)
	if u.email != "" {
		wrong.add("email", setting.CheckEmailDomain(validate.TrimName(u.email), s.emailDomains))
	}
	return wrong.err()
}

// checkNew trims and checks a new user and checks its password. A service user has neither an
// address nor a password. It returns errRegisterFields or errInvalid.
func (s *userService) checkNew(u *user, password string) error {
	if u.service {
		u.username = validate.TrimName(u.username)
		return s.checkChange(&change{username: &u.username, role: &u.role}, u, nil)
	}
	u.username, u.email = validate.TrimName(u.username), validate.TrimName(u.email)
	if u.username == "" || u.email == "" || password == "" {
		return errRegisterFields
	}
	all := change{username: &u.username, email: &u.email, role: &u.role}
	return s.checkChange(&all, u, &password)
}

// addUser adds a user that checkNew accepts, for a caller, and sets its id and times.
// The statements in then belong to the same write.
// It returns an error of checkNew, passhash.ErrBusy, or an error of store.addUser.
func (s *userService) addUser(ctx context.Context, by caller, u *user, password string, then ...statement) error {
	if err := s.checkNew(u, password); err != nil {
		return err
	}
	if u.service {
		return s.store.addUser(ctx, by, u, "", s.wall().Unix())
	}
	if err := s.store.checkFree(u.username, u.email, 0); err != nil { // before the hash, which costs more
		return err
	}
	hash, err := s.hasher.Hash(ctx, clientaddr.Network(by.address), password)
	if err != nil {
		return err
	}
	return s.store.addUser(ctx, by, u, hash, s.wall().Unix(), then...)
}

// addInvited adds a user that checkNew has accepted, by the code of an invitation. The
// statements in then belong to the same write. It returns errInvalid if the invitation is for
// another user, errUsernameTaken, errEmailTaken, passhash.ErrBusy, or an error of
// store.addInvited.
func (s *userService) addInvited(ctx context.Context, address string, code []byte, v *invitation, u *user, password string, then ...statement) error {
	wrong := make(fieldErrors)
	if v.username != "" && !strings.EqualFold(v.username, u.username) {
		wrong.add("username", "must be the one that the invitation is for")
	}
	if v.email != "" && !strings.EqualFold(v.email, u.email) {
		wrong.add("email", "must be the address that the invitation is for")
	}
	if err := wrong.err(); err != nil {
		return err
	}
	if err := s.store.checkFree(u.username, u.email, 0); err != nil { // before the hash, which costs more
		return err
	}
	hash, err := s.hasher.Hash(ctx, clientaddr.Network(address), password)
	if err != nil {
		return err
	}
	return s.store.addInvited(ctx, u, hash, code, v, address, s.wall().Unix(), then...)
}

// checkInvitation returns errInvalid if an invitation is not valid. whyLife says what is wrong
// with its lifetime; it is empty if the lifetime is valid.
func checkInvitation(v *invitation, whyLife string) error {
	wrong := make(fieldErrors)
	wrong.add("expires_in", whyLife)
	if v.email != "" {
		wrong.add("email", validate.Email(v.email))
	}
	if v.username != "" {
		wrong.add("username", validate.Username(v.username))
	}
	switch {
	case v.usesLeft < 1 || v.usesLeft > maxUses:
		wrong.add("uses", fmt.Sprintf("must be from 1 to %d", maxUses))
	case v.usesLeft > 1 && v.email+v.username != "":
		wrong.add("uses", "must be 1 for an invitation with an email or a username")
	}
	return wrong.err()
}

// boundTo returns the name that an invitation is for, or "" if name is nil. It returns
// errInvalid for an empty name, because the invitation would then admit anyone: a script
// could have forgotten to set a variable.
func boundTo(field string, name *string) (string, error) {
	if name == nil {
		return "", nil
	}
	trimmed, wrong := validate.TrimName(*name), make(fieldErrors)
	if trimmed == "" {
		wrong.add(field, "must not be empty; leave it out to invite anyone")
	}
	return trimmed, wrong.err()
}

// maxUses is the largest number of users that can register with one invitation.
const maxUses = 100

// makeInvitation stores an invitation that is valid for life, for a caller, sets its id
// and times, and returns its link. The statements in then belong to the same write. It returns
// errNoAppURL, errUsernameTaken, errEmailTaken or an error of store.addInvitation.
func (s *userService) makeInvitation(ctx context.Context, by caller, pages pageURLs, v *invitation, life time.Duration, then ...statement) (link string, err error) {
	link, hash, err := linkTo(pages.invite, inviteCode)
	if err == nil {
		err = s.store.checkFree(v.username, v.email, 0)
	}
	if err != nil {
		return "", err
	}
	now := s.wall()
	v.createdAt, v.expiresAt = now.Unix(), now.Add(life).Unix()
	return link, s.store.addInvitation(ctx, by, v, hash, then...)
}

type inviteRequest struct {
	Email     *string `json:"email"`
	Username  *string `json:"username"`
	Uses      *int64  `json:"uses"`
	ExpiresIn *int64  `json:"expires_in"` // seconds
	proofRequest
}

// createInvitation answers with a link with which new members can register. If the
// invitation is for an address, it also queues a mail with another link for it.
func (s *server) createInvitation(x *exchange) error {
	in, err := decode[inviteRequest](x.optionalBody())
	if err != nil {
		return err
	}
	v := invitation{role: member, usesLeft: 1}
	v.email, err = boundTo("email", in.Email)
	if err == nil {
		v.username, err = boundTo("username", in.Username)
	}
	if err != nil {
		return err
	}
	if in.Uses != nil {
		v.usesLeft = *in.Uses
	}
	life, why := lifetimeOf(in.ExpiresIn, invitationLife)
	if err := checkInvitation(&v, why); err != nil {
		return err
	}
	if err := s.requireProof(x, invite, in.proofRequest); err != nil {
		return err
	}
	var then []statement
	if v.email != "" && s.mailOn {
		m := queuedMail{kind: inviteMail, email: v.email}
		then = append(then, m.causedBy(x, s.wall().Unix()).ofNewInvitation())
	}
	link, err := s.makeInvitation(x.r.Context(), x.caller(), s.pages, &v, life, then...)
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusCreated, linkAnswer{ID: v.id, URL: link, ExpiresAt: utc(v.expiresAt)})
}

// An invitationAnswer is an invitation as admins see it, without its link.
type invitationAnswer struct {
	ID        int64     `json:"id"`
	Email     string    `json:"email,omitempty"`
	Username  string    `json:"username,omitempty"`
	Role      role      `json:"role"`
	UsesLeft  int64     `json:"uses_left"`
	CreatedBy int64     `json:"created_by,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

func newInvitationAnswer(v *invitation) invitationAnswer {
	return invitationAnswer{v.id, v.email, v.username, v.role, v.usesLeft, v.createdBy, utc(v.createdAt), utc(v.expiresAt)}
}

// listInvitations answers with a page of the invitations that are still valid.
func (s *server) listInvitations(x *exchange) error {
	p, err := x.page()
	if err != nil {
		return err
	}
	limit := cmp.Or(p.Limit, defaultLimit)
	list := []invitationAnswer{}
	err = s.store.invitations(x.r.Context(), p.AfterID, limit+1, s.wall().Unix(), func(v *invitation) {
		list = append(list, newInvitationAnswer(v))
	})
	if err != nil {
		return err
	}
	return sendPage(x, &p, limit, list, func(v *invitationAnswer) int64 { return v.ID })
}

// deleteInvitation deletes an invitation: no user can register with its link any more.
func (s *server) deleteInvitation(x *exchange) error {
	id, err := param.ID(x.r.PathValue("invitation"))
	if err != nil {
		return errInvitationNotFound
	}
	if err := s.store.deleteInvitation(x.r.Context(), x.caller(), id, s.wall().Unix()); err != nil {
		return err
	}
	return x.sendNothing()
}

// sendInvitation queues a mail with a new link to the address of the invitation of the path.
// The earlier links stay valid.
func (s *server) sendInvitation(x *exchange) error {
	in, err := decode[proofRequest](x.optionalBody())
	if err != nil {
		return err
	}
	id, err := param.ID(x.r.PathValue("invitation"))
	if err != nil {
		return errInvitationNotFound
	}
	if err := s.requireProof(x, invite, in); err != nil {
		return err
	}
	if !s.mailOn {
		return errMailOff.with("This service sends no mail: send a link of the invitation yourself")
	}
	m := queuedMail{kind: inviteMail, subjectID: id}
	if err := s.store.sendInvitation(x.r.Context(), x.caller(), m.causedBy(x, s.wall().Unix())); err != nil {
		return err
	}
	return x.sendMessage(http.StatusAccepted, "The invitation is on its way")
}

// approveUser approves the user of the path, which can then log in. It changes nothing for
// a user that does not wait for approval.
func (s *server) approveUser(x *exchange) error {
	u, err := s.store.approve(x.r.Context(), x.caller(), x.target, s.wall().Unix())
	if err != nil {
		return err
	}
	return x.sendUser(http.StatusOK, &u, viewAll)
}

type verifyEmailRequest struct {
	Code     string `json:"code"`
	Password string `json:"password"` // of the user or the registration; empty: the request has a token of the user

	Username *string `json:"username"` // for a registration: replaces its username
}

// verifyEmail verifies the address of the user of a code, or completes the registration of
// a code. The code only proves that its holder reads the mails to the address. Another person
// may have registered with this address, and the holder must not verify the user of that
// person. So the client must also prove that it is the user (see proveOwner).
func (s *server) verifyEmail(x *exchange) error {
	in, err := decode[verifyEmailRequest](x.body())
	if err != nil {
		return err
	}
	if code, err := hashCode(verifyCode, in.Code); err == nil {
		r, err := s.store.registrationOfCode(code, s.wall().Unix())
		if err == nil {
			return s.completeRegistration(x, &r, code, in.Password, in.Username)
		}
		if !errors.Is(err, errInvalidCode) {
			return err
		}
	}
	c, err := s.emailCode(x, verifyCode, in.Code) // finds no code of a registration, whose user_id is 0
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

// proveOwner returns the caller of a write if the request is from the user u: it has the
// password of u, which counts like that of a login, or an access token of u. proveOwner
// returns errCredentials, or an error of authenticate or matchesPassword.
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
	ok, err := s.matchesPassword(x, u.id, &c, "", password)
	if err == nil && !ok {
		err = errCredentials
	}
	return caller{kind: strangerCaller, user: u.id, address: x.address, stamp: &c.stamp}, err
}
