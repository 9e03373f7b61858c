package main

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"net/http"
	"strconv"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/refresh"
	"userd/internal/useragent"
)

type loginRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
	OTP      string `json:"otp"`    // a code of the second factor; empty: none
	Cookie   *bool  `json:"cookie"` // the refresh token goes into a cookie
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
	if err := s.askForCookie(x, in.Cookie); err != nil {
		return err
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
	Cookie   *bool  `json:"cookie"`
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
	if err := s.askForCookie(x, in.Cookie); err != nil {
		return err
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
	if err != nil && !errors.Is(err, errUserNotFound) {
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
		p.newHash, err = s.hasher.Hash(x.r.Context(), clientaddr.Network(x.address), password)
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
	token := refresh.New(0) // the store sets the session's id
	session := s.newSession(x, now, token)
	session.userID = p.id
	tokens, err := refreshKey(x.r.Context(), s.store)
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
	answer := s.newTokens(x, tokens, &session, key, token, now, true)
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
		return cmp.Or[error](s.warnOwner(x, &p.user, "it sent your password, but no code"), e)
	}
	p.code, err = s.checkCode(x, p.id, &p.credentials, typed, withPassword)
	if errors.Is(err, errWrongOTP) {
		return cmp.Or(s.warnOwner(x, &p.user, "it sent your password and a wrong code"), err)
	}
	return err
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

// The grace: a client may repeat the last rotation, with the token before the live one,
// and gets the same answer. Otherwise a lost answer, or two tabs that refresh
// concurrently, would end the session. A thief must not be able to follow the rotations
// this way, so the network and the User-Agent must be those of the last rotation.
const (
	refreshGrace = 10 // seconds after the rotation
	maxGraceUses = 3
)

type refreshRequest struct {
	RefreshToken string `json:"refresh_token"`
}

// refresh exchanges a refresh token for a new pair of tokens. The token is in the
// body or, as the clients of Flask-JWT-Extended send it, in the Authorization
// header. Clients that always send their access token there use the body. Without either, it is
// in the cookie.
func (s *server) refresh(x *exchange) (err error) {
	defer func() { s.dropCookie(x, err) }()
	in, err := decode[refreshRequest](x.optionalBody())
	if err != nil {
		return err
	}
	text := in.RefreshToken
	if text == "" {
		text, err = headers.Bearer(x.r)
		if errors.Is(err, headers.ErrNoBearer) {
			text, err = s.readCookie(x)
			x.cookie = err == nil
		}
		if err != nil {
			return err
		}
	}
	tokens, err := refreshKey(x.r.Context(), s.store)
	if err != nil {
		return err
	}
	presented, ok := tokens.Parse(text)
	if !ok {
		return errBadToken
	}
	if err := s.count(x, presented.Session); err != nil {
		return err
	}
	now := s.wall()
	next := tokens.Next(presented)
	session := s.newSession(x, now, next)
	key, err := s.store.rotate(x.r.Context(), &session, presented.Hash(), now.Unix())
	if errors.Is(err, errNotApplied) {
		session, key, err = s.refreshAgain(x, presented, next, now)
	}
	if err != nil {
		return err
	}
	x.logUser = session.userID
	return x.sendJSON(http.StatusOK, s.newTokens(x, tokens, &session, key, next, now, false))
}

// refreshAgain handles a refresh token that rotate did not accept. In the grace it returns
// the session, whose live token is next, and the key that signs. A token that was used
// before ends its session, and refreshAgain returns errReused. It also returns
// errExpiredToken, errSessionEnded, errBadToken and errStorage.
func (s *server) refreshAgain(x *exchange, presented, next refresh.Token, now time.Time) (live session, key keyRow, err error) {
	if live, err = s.store.session(presented.Session); err != nil {
		return live, key, err
	}
	life := int64(s.sessionLife / time.Second)
	switch {
	case live.expiresAt <= now.Unix(), life > 0 && live.createdAt+life <= now.Unix():
		return live, key, errExpiredToken
	case live.rekeyedAt > presented.Generation:
		return live, key, errSessionEnded // not a theft: the client may not know yet that the password changed
	case live.generation == presented.Generation && hmac.Equal(live.refreshHash, presented.Hash()):
		return live, key, errSessionEnded // the token is live, but its user is disabled
	case live.generation <= presented.Generation:
		return live, key, errBadToken // issued before the database was restored from an older copy
	}
	d := now.Unix() - live.rotatedAt
	if live.generation == next.Generation && hmac.Equal(live.refreshHash, next.Hash()) && 0 <= d && d <= refreshGrace &&
		clientaddr.Network(x.address) == clientaddr.Network(live.address) && useragent.Of(x.r) == live.userAgent {
		key, err = s.store.repeatRotation(x.r.Context(), &live, maxGraceUses)
		if !errors.Is(err, errNotApplied) {
			if err == nil {
				s.stats.graceAnswers.Add(1)
			}
			return live, key, err
		}
	}
	x.logUser = live.userID
	if err = s.store.endReused(x.r.Context(), live.userID, live.id, x.address, now.Unix()); err == nil {
		err = errReused
	}
	return live, key, err
}

// newSession returns a session with t as its live token, and the client of x as the client
// that uses it at now.
func (s *server) newSession(x *exchange, now time.Time, t refresh.Token) session {
	return session{
		id:          t.Session,
		createdAt:   now.Unix(),
		expiresAt:   now.Add(s.refreshTTL).Unix(),
		lifetime:    int64(s.sessionLife / time.Second),
		address:     x.address,
		userAgent:   useragent.Of(x.r),
		generation:  t.Generation,
		refreshHash: t.Hash(),
	}
}

type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`              // seconds
	RefreshToken string `json:"refresh_token,omitempty"` // empty: it is in the cookie

	RecoveryCodesLeft *int64 `json:"recovery_codes_left,omitempty"` // if few are left
}

// newTokens returns the pair of tokens of a session with t as its live token. fresh means
// that the pair is the result of a proof, such as a login. If x.cookie, newTokens puts the refresh
// token into the cookie instead.
func (s *server) newTokens(x *exchange, tokens refresh.Key, session *session, key keyRow, t refresh.Token, now time.Time, fresh bool) tokenAnswer {
	t.Session, t.Generation = session.id, session.generation
	return tokenAnswer{
		AccessToken:  s.keys.signer(key).sign(s.newClaims(session, now, fresh)),
		TokenType:    "Bearer",
		ExpiresIn:    int64(s.accessTTL / time.Second),
		RefreshToken: s.intoCookie(x, tokens.Format(&t)),
	}
}

// newClaims returns the claims of a new access token of a session.
func (c *settings) newClaims(x *session, now time.Time, fresh bool) claims {
	return claims{
		fresh:      fresh,
		issued:     now.Unix(),
		id:         strconv.FormatInt(x.generation, 10) + "-" + rand.Text(), // see newTokenID
		subject:    x.userID,
		notBefore:  now.Unix(),
		expires:    now.Add(c.accessTTL).Unix(),
		session:    x.id,
		tokenNames: c.tokenNames,
		otp:        x.factor,
	}
}

// rekey returns a rekeying of the caller's session, for the write that changes the
// caller's password. After the write, answer returns the new pair of tokens. These are
// proof like those of a login.
func (s *server) rekey(x *exchange) (r *rekeying, answer func() tokenAnswer, err error) {
	tokens, err := refreshKey(x.r.Context(), s.store)
	if err != nil {
		return nil, nil, err
	}
	now := s.wall()
	x.cookie = s.ownCookie(x)
	token := refresh.New(x.who.session) // not the successor of the old one, whose holder must not get it
	r = &rekeying{session: s.newSession(x, now, token), kept: x.who.token.jti}
	r.session.userID = x.who.id
	return r, func() tokenAnswer { return s.newTokens(x, tokens, &r.session, r.key, token, now, true) }, nil
}

// listSessions answers with a user's live sessions, the oldest first.
func (s *server) listSessions(x *exchange) error {
	if _, err := s.targetUser(x); err != nil {
		return err
	}
	list := []sessionAnswer{}
	err := s.store.sessionsOf(x.r.Context(), x.target, s.wall().Unix(), func(v *session) {
		list = append(list, newSessionAnswer(v, x.who.session))
	})
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusOK, list)
}

type sessionAnswer struct {
	ID         int64     `json:"id"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at"`
	Address    string    `json:"address"`
	UserAgent  string    `json:"user_agent"`
	ExpiresAt  time.Time `json:"expires_at"`
	Current    bool      `json:"current"`
}

// newSessionAnswer returns a session as clients and the command line see it. current is
// the id of the client's own session, or 0.
func newSessionAnswer(x *session, current int64) sessionAnswer {
	return sessionAnswer{
		ID:         x.id,
		CreatedAt:  utc(x.createdAt),
		LastUsedAt: utc(x.lastUsedAt),
		Address:    x.address,
		UserAgent:  x.userAgent,
		ExpiresAt:  utc(x.expiresAt),
		Current:    x.id == current,
	}
}

// logout ends the caller's session or, with ?all=true, all of the caller's
// sessions.
func (s *server) logout(x *exchange) error {
	in, err := decode[proofRequest](x.optionalBody())
	if err != nil {
		return err
	}
	q, err := x.query("all")
	if err != nil {
		return err
	}
	all, err := param.Bool(q, "all")
	if err != nil {
		return err
	}
	acts := noProof
	if all != nil && *all {
		acts = endOtherSessions
	}
	if err := s.requireProof(x, acts, in); err != nil {
		return err
	}
	if acts == endOtherSessions {
		err = s.store.endSessions(x.r.Context(), x.caller(), x.who.id, s.wall().Unix())
	} else {
		err = s.store.endSession(x.r.Context(), x.caller(), x.who.id, x.who.session, s.wall().Unix())
	}
	if err != nil {
		return err
	}
	s.endCookie(x, x.who.id)
	return x.sendNothing()
}

// endSessions ends every session of a user.
func (s *server) endSessions(x *exchange) error {
	if err := s.proveActs(x, endOtherSessions); err != nil {
		return err
	}
	if err := s.store.endSessions(x.r.Context(), x.caller(), x.target, s.wall().Unix()); err != nil {
		return err
	}
	s.endCookie(x, x.target)
	return x.sendNothing()
}

// endSession ends one session of a user.
func (s *server) endSession(x *exchange) error {
	in, err := decode[proofRequest](x.optionalBody())
	if err != nil {
		return err
	}
	sid, err := param.ID(x.r.PathValue("sid"))
	if err != nil {
		return errSessionNotFound
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	acts := noProof
	if sid != x.who.session {
		acts = endOtherSessions
	}
	if err := s.requireProof(x, acts, in); err != nil {
		return err
	}
	if err := s.store.endSession(x.r.Context(), x.caller(), x.target, sid, s.wall().Unix()); err != nil {
		return err
	}
	if sid == x.who.session {
		s.endCookie(x, x.target)
	}
	return x.sendNothing()
}
