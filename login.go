package main

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

type loginRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
	OTP      string `json:"otp"` // a code of the second factor; empty: none
}

// login starts a session of the user whose name and password the body has.
func (s *server) login(x *exchange) error {
	in, err := decode[loginRequest](x.body())
	if err != nil {
		return err
	}
	if in.Username == "" || in.Password == "" {
		return errLoginFields
	}
	p, err := s.prove(x, in.Username, in.Password)
	if err == nil {
		err = s.proveFactor(x, &p, in.OTP)
	}
	if err != nil {
		return err
	}
	return s.startSession(x, p)
}

type loginFactorRequest struct {
	MFAToken string `json:"mfa_token"`
	OTP      string `json:"otp"`
}

// loginFactor completes a login: the mfa_token proves the password, and otp the second factor.
func (s *server) loginFactor(x *exchange) error {
	in, err := decode[loginFactorRequest](x.body())
	if err != nil {
		return err
	}
	if in.MFAToken == "" || in.OTP == "" {
		return errLoginFactorFields
	}
	id, stamp, err := s.parseMFAToken(x.r.Context(), in.MFAToken)
	var p provenUser
	if err == nil {
		p, err = s.proveAgain(x, id, stamp)
	}
	x.counted = true
	if errors.Is(err, errMFAToken) {
		return cmp.Or(s.allow(x, codeTries), err)
	}
	if err == nil {
		err = s.proveFactor(x, &p, in.OTP)
	}
	if err != nil {
		return err
	}
	return s.startSession(x, p)
}

// A provenUser is a user who has proven its password. Only prove and proveAgain return one.
// Before startSession, proveFactor must check the second factor.
type provenUser struct {
	user
	credentials              // as they were when the password was checked
	newHash     string       // of the same password, if the stored hash is outdated; otherwise empty
	code        provenFactor // of the second factor; zero: not proven, or the user has none
}

// allowed returns p if the user may log in, and otherwise errUserDisabled or errPendingApproval.
func (p provenUser) allowed() (provenUser, error) {
	switch {
	case p.disabled:
		return p, errUserDisabled
	case p.pending:
		return p, errPendingApproval
	}
	return p, nil
}

// prove checks a login name and a password. It returns errCredentials, errLimited,
// errStorage, passhash.ErrBusy or, only if the password is correct, errUserDisabled or
// errPendingApproval. It takes as long for an unknown name as for a wrong password.
func (s *server) prove(x *exchange, name, password string) (p provenUser, err error) {
	if err := s.allowLookup(x, name); err != nil {
		return p, err
	}
	u, c, err := s.store.userByLogin(name)
	if err != nil && err != errUserNotFound {
		return p, err
	}
	x.target, x.name = u.id, u.username // for the log, which does not get an unknown name: it can be a password
	ok, err := s.matchesPassword(x, u.id, &c, name, password)
	if err == nil && !ok {
		err = errCredentials
	}
	if err != nil {
		return p, err
	}
	p, err = provenUser{user: u, credentials: c}.allowed()
	if err == nil && s.hasher.Stale(c.hash) {
		p.newHash, err = s.hasher.Hash(x.r.Context(), network(x.address), password)
	}
	return p, err
}

// startSession starts a session of a proven user and answers with its tokens. No other
// function starts sessions. It uses up the code of the second factor. It returns errOTPUsed
// if the code was used meanwhile, and errCredentials if the password or a factor of the user
// changed, or the user was disabled, after the proof began, or if the user has a factor that
// p does not prove.
func (s *server) startSession(x *exchange, p provenUser) error {
	now := s.wall()
	var token refreshToken // the store sets the session's id
	rand.Read(token.secret[:])
	session := s.newSession(x, now, token)
	session.userID = p.id
	r, err := loadRefresher(x.r.Context(), s.store)
	if err != nil {
		return err
	}
	var notice []statement
	if p.emailVerifiedAt != 0 {
		if notice, err = s.loginNotice(x, p.id); err != nil {
			return err
		}
	}
	if p.code.proven() && s.mailOn {
		notice = append(notice, endWarning(p.id, x.address, now.Unix()))
	}
	key, err := s.store.startSession(x.r.Context(), &session, p.stamp, p.newHash, p.code, notice...)
	if err != nil {
		return err
	}
	s.noteLogin(x, &p.user)
	x.logUser = p.id
	answer := s.newTokens(r, &session, key, token, now, true)
	if session.factor && session.codesLeft < fewCodes {
		answer.RecoveryCodesLeft = &session.codesLeft
	}
	return x.sendJSON(http.StatusOK, answer)
}

// fewCodes is the number of recovery codes below which the answer to a login says how many
// are left.
const fewCodes = 3

// proveFactor sets p.code if the user of p has a second factor and typed is a code of it. If
// typed is empty, it returns errSecondFactor with a token for loginFactor. It also returns the
// errors of checkCode, and errStorage. For a user without a factor, it does nothing.
func (s *server) proveFactor(x *exchange, p *provenUser, typed string) (err error) {
	if !p.factor.exists() {
		return nil
	}
	if typed == "" {
		if p.newHash != "" { // the next step does not know the password
			if err := s.store.upgradeHash(x.r.Context(), p.id, p.stamp, p.newHash); err != nil {
				return err
			}
		}
		token, err := s.newMFAToken(x.r.Context(), p.id, p.stamp)
		if err != nil {
			return err
		}
		e := errSecondFactor.with("%s", errSecondFactor.text)
		e.factorChallenge = &factorChallenge{token, mfaLife, methodsOf(&p.factor)}
		return cmp.Or[error](s.warnOwner(x, p, "it sent no code"), e)
	}
	p.code, err = s.checkCode(x, p.id, &p.credentials, typed)
	if errors.Is(err, errWrongOTP) {
		return cmp.Or(s.warnOwner(x, p, "it sent a wrong code"), err)
	}
	return err
}

// methodsOf returns the kinds of code that the factor accepts now.
func methodsOf(f *factor) []string {
	if f.locked() {
		return []string{"recovery_code"}
	}
	return []string{"totp", "recovery_code"}
}

// warnOwner queues a mail to the user of p: a client knows its password, but did not prove its
// second factor. It queues none if the user has logged in from the client's network before. The
// mail leaves when the mfa_token has expired; a login from the same address before that drops
// the mail.
func (s *server) warnOwner(x *exchange, p *provenUser, detail string) error {
	if !s.mailOn || s.notices == switchOff || p.emailVerifiedAt == 0 {
		return nil
	}
	known, _, err := s.store.loginsFrom(x.r.Context(), p.id, inNetworkOf(x.address))
	if err != nil || known {
		return err
	}
	m := queuedMail{kind: factorMail, userID: p.id, detail: detail}
	return s.store.write(x.r.Context(), m.causedBy(x, s.wall().Unix()).warn(mfaLife+clockLeeway))
}

// mfaLife is how many seconds the token of the first step of a login is valid.
const mfaLife = 300

// tagMFA returns a text followed by its MAC. The key of the MAC has no other use.
func (s *server) tagMFA(ctx context.Context, text string) (string, error) {
	fresh := make([]byte, sha256.Size)
	rand.Read(fresh)
	key, err := s.store.secret(ctx, "mfa", fresh)
	if err != nil {
		return "", err
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil)), nil
}

// newMFAToken returns a token that proves only that the user has sent its password. The token
// is valid for mfaLife, and until the password or a factor of the user changes.
func (s *server) newMFAToken(ctx context.Context, id, stamp int64) (string, error) {
	return s.tagMFA(ctx, fmt.Sprintf("%d.%d.%d", id, stamp, s.wall().Unix()))
}

// parseMFAToken returns the user and the stamp of a token of newMFAToken, or errMFAToken.
func (s *server) parseMFAToken(ctx context.Context, token string) (id, stamp int64, err error) {
	text := token[:max(strings.LastIndexByte(token, '.'), 0)]
	want, err := s.tagMFA(ctx, text)
	if err != nil {
		return 0, 0, err
	}
	if !hmac.Equal([]byte(token), []byte(want)) {
		return 0, 0, errMFAToken
	}
	var made int64
	fmt.Sscanf(text, "%d.%d.%d", &id, &stamp, &made) // newMFAToken wrote it, so this cannot fail
	if age := s.wall().Unix() - made; age < -clockLeeway || age > mfaLife {
		return 0, 0, errMFAToken
	}
	return id, stamp, nil
}

// proveAgain returns the user of a valid token of newMFAToken, as prove does. It returns
// errMFAToken if the password or a factor has changed since.
func (s *server) proveAgain(x *exchange, id, stamp int64) (p provenUser, err error) {
	u, err := s.store.user(id)
	c, credentialsErr := s.store.credentials(id)
	switch err := cmp.Or(err, credentialsErr); {
	case errors.Is(err, errUserNotFound), err == nil && c.stamp != stamp:
		return p, errMFAToken
	case err != nil:
		return p, err
	}
	x.target, x.name = u.id, u.username
	return provenUser{user: u, credentials: c}.allowed()
}
