package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

type loginRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// login starts a session of the user that the name and the password prove.
func (s *server) login(x *exchange) error {
	in, err := decode[loginRequest](x.body())
	if err != nil {
		return err
	}
	if in.Username == "" || in.Password == "" {
		return errLoginFields
	}
	p, err := s.prove(x, in.Username, in.Password)
	if err != nil {
		return err
	}
	return s.startSession(x, p)
}

// A provenUser is a user who has just proven who it is. Only prove makes one.
type provenUser struct {
	id      int64
	stamp   int64  // auth_stamp when the proof began
	newHash string // of the same password, if the stored hash is outdated; otherwise empty
}

// prove checks a login name and a password. It returns errCredentials,
// errUserDisabled after the right password only, or errLimited. An unknown name
// takes as long as a wrong password.
func (s *server) prove(x *exchange, name, password string) (p provenUser, err error) {
	u, c, err := s.store.userByLogin(name)
	if err != nil && err != errUserNotFound {
		return p, err
	}
	x.target, x.name = u.id, u.username // logged if this fails; an unknown name is not
	ok, err := s.matchesPassword(x, u.id, c.hash, name, password)
	switch {
	case err != nil:
		return p, err
	case !ok:
		return p, errCredentials
	case u.disabled:
		return p, errUserDisabled
	}
	p = provenUser{id: u.id, stamp: c.stamp}
	if s.hasher.Stale(c.hash) {
		p.newHash, err = s.hasher.Hash(x.r.Context(), network(x.address), password)
	}
	return p, err
}

// startSession starts a session of a proven user and answers with its tokens. No
// other function starts sessions. A password or a state that changed after the
// proof began is errCredentials.
func (s *server) startSession(x *exchange, p provenUser) error {
	now := s.wall()
	token := s.refresher.first()
	session := s.newSession(x, now, token)
	session.userID = p.id
	key, err := s.store.startSession(x.r.Context(), &session, p.stamp, p.newHash)
	if err != nil {
		return err
	}
	x.logUser = p.id
	return s.sendTokens(x, &session, key, token, now, true)
}

// userAgent returns the part of the client's User-Agent that a session stores.
func userAgent(r *http.Request) string {
	const most = 256
	text := strings.ToValidUTF8(r.UserAgent(), "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

// A refreshToken is SESSION.GENERATION.SECRET.TAG: the session's id, the number of
// earlier tokens, 256 random bits, and a tag over the three. Each use makes the
// next generation, so a theft becomes visible: sooner or later both the thief and
// the owner use the same token (OAuth 2.0 Security BCP, RFC 9700 section 4.14.2).
type refreshToken struct {
	session    int64
	generation int64
	secret     [sha256.Size]byte
}

// refreshGrace is how long, in seconds, the token before the live one still gets
// the live one as its answer. Without it, a lost answer or two tabs that refresh
// at the same time would end the session.
const refreshGrace = 10

// A refresher makes and recognizes refresh tokens. Its key is only in the database.
// Other services may know JWT_SECRET_KEY; with it they could compute the
// successors of the tokens that they see.
type refresher struct{ key []byte }

func loadRefresher(ctx context.Context, st *store) (*refresher, error) {
	fresh := make([]byte, sha256.Size)
	rand.Read(fresh)
	key, err := st.secret(ctx, "refresh", fresh)
	if err != nil {
		return nil, fmt.Errorf("refresh key: %w", err)
	}
	return &refresher{key}, nil
}

// mac returns the HMAC-SHA-256 of a text for one use of the key.
func (r *refresher) mac(use, text string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, r.key)
	h.Write([]byte(use + ":" + text))
	h.Sum(sum[:0])
	return sum
}

// hash returns the SHA-256 of the secret, which is all that the database stores. A
// fast hash is enough for 256 random bits.
func (t *refreshToken) hash() []byte {
	sum := sha256.Sum256(t.secret[:])
	return sum[:]
}

func (t *refreshToken) untagged() string {
	return strconv.FormatInt(t.session, 10) + "." + strconv.FormatInt(t.generation, 10) + "." +
		base64.RawURLEncoding.EncodeToString(t.secret[:])
}

func (r *refresher) format(t *refreshToken) string {
	text := t.untagged()
	tag := r.mac("tag", text)
	return text + "." + base64.RawURLEncoding.EncodeToString(tag[:])
}

// parse returns the token that format wrote as s, or errBadToken. It refuses a
// token that userd did not write before any look-up: a guessed token cannot end a
// session.
func (r *refresher) parse(s string) (t refreshToken, err error) {
	if len(s) > maxToken {
		return t, errBadToken
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 {
		return t, errBadToken
	}
	var err1, err2 error
	t.session, err1 = parseID(parts[0])
	if parts[1] != "0" {
		t.generation, err2 = parseID(parts[1])
	}
	secret, ok := decodeBase64URL(parts[2])
	if err1 != nil || err2 != nil || !ok || len(secret) != len(t.secret) {
		return t, errBadToken
	}
	copy(t.secret[:], secret)
	if !hmac.Equal([]byte(s), []byte(r.format(&t))) {
		return t, errBadToken
	}
	return t, nil
}

// first returns the first token of a session whose id is not known yet.
func (r *refresher) first() (t refreshToken) {
	rand.Read(t.secret[:])
	return t
}

// next returns the successor of t, always the same one.
func (r *refresher) next(t refreshToken) refreshToken {
	return refreshToken{t.session, t.generation + 1, r.mac("next", t.untagged())}
}

type refreshRequest struct {
	RefreshToken string `json:"refresh_token"`
}

// refresh exchanges a refresh token for a new pair of tokens. The token is in the
// body or, as the clients of Flask-JWT-Extended send it, in the Authorization
// header. Clients that always send their access token there use the body.
func (s *server) refresh(x *exchange) error {
	var in refreshRequest
	var err error
	if x.hasBody() {
		if in, err = decode[refreshRequest](x.body()); err != nil {
			return err
		}
	}
	text := in.RefreshToken
	if text == "" {
		if text, err = bearer(x); err == errNoToken {
			err = errNoRefresh
		}
		if err != nil {
			return err
		}
	}
	presented, err := s.refresher.parse(text)
	if err != nil {
		return err
	}
	now := s.wall()
	next := s.refresher.next(presented)
	session := s.newSession(x, now, next)
	key, err := s.store.rotate(x.r.Context(), &session, presented.hash(), now.Unix())
	if errors.Is(err, errNotApplied) {
		session, key, err = s.successor(x, presented, next, now)
	}
	if err != nil {
		return err
	}
	x.logUser = session.userID
	return s.sendTokens(x, &session, key, next, now, false)
}

// successor answers a refresh token that is not the live one: with the live one
// during the grace, otherwise with an error. A reused token ends its session.
func (s *server) successor(x *exchange, presented, next refreshToken, now time.Time) (session, keyRow, error) {
	live, err := s.store.session(presented.session)
	if err != nil {
		return session{}, keyRow{}, err
	}
	switch {
	case live.expiresAt <= now.Unix():
		return session{}, keyRow{}, errExpiredToken
	case live.generation == next.generation && hmac.Equal(live.refreshHash, next.hash()) && now.Unix()-live.rotatedAt <= refreshGrace:
		key, err := s.store.newestKey()
		return live, key, err
	case live.generation > presented.generation:
		x.logUser = live.userID // whose token was stolen
		if err := s.store.endReused(x.r.Context(), live.userID, live.id, x.address, now.Unix()); err != nil {
			return session{}, keyRow{}, err
		}
		return session{}, keyRow{}, errReused
	case live.generation == presented.generation && hmac.Equal(live.refreshHash, presented.hash()):
		return session{}, keyRow{}, errSessionEnded // the token is live, but its user is disabled
	}
	// This database never issued the token: it was restored from an older copy.
	return session{}, keyRow{}, errBadToken
}

// newSession returns the session of a login or a refresh by the client of x, with
// t as its live token.
func (s *server) newSession(x *exchange, now time.Time, t refreshToken) session {
	return session{
		id:          t.session,
		createdAt:   now.Unix(),
		expiresAt:   now.Add(s.refreshTTL).Unix(),
		address:     x.address,
		userAgent:   userAgent(x.r),
		generation:  t.generation,
		refreshHash: t.hash(),
	}
}

type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
	RefreshToken string `json:"refresh_token"`
}

// sendTokens answers a login or a refresh with a pair of tokens.
func (s *server) sendTokens(x *exchange, session *session, key keyRow, t refreshToken, now time.Time, fresh bool) error {
	t.session = session.id
	return x.sendJSON(http.StatusOK, tokenAnswer{
		AccessToken:  s.keys.signer(key).sign(newClaims(session, now, s.accessTTL, fresh)),
		TokenType:    "Bearer",
		ExpiresIn:    int64(s.accessTTL / time.Second),
		RefreshToken: s.refresher.format(&t),
	})
}

// logout ends the caller's session or, with ?all=true, all of the caller's
// sessions.
func (s *server) logout(x *exchange) error {
	if x.hasBody() {
		if _, err := decode[struct{}](x.body()); err != nil {
			return err
		}
	}
	q, err := x.query("all")
	if err != nil {
		return err
	}
	all, err := boolParameter(q, "all")
	if err != nil {
		return err
	}
	if all != nil && *all {
		err = s.store.endSessions(x.r.Context(), x.caller(), x.who.id, s.wall().Unix())
	} else {
		err = s.store.endSession(x.r.Context(), x.caller(), x.who.id, x.who.session, s.wall().Unix())
	}
	if err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

type verifyAnswer struct {
	ID       int64  `json:"id"`
	Username string `json:"username"`
	Role     role   `json:"role"`
}

// verify tells a reverse proxy who is calling, so that the proxy can pass a request
// on to a service that knows nothing of tokens. It percent-encodes what a header
// cannot carry.
func (s *server) verify(x *exchange) error {
	header := x.Header()
	header.Set("X-User-Id", strconv.FormatInt(x.who.id, 10))
	header.Set("X-User-Name", url.PathEscape(x.who.username))
	header.Set("X-User-Role", string(x.who.role))
	return x.sendJSON(http.StatusOK, verifyAnswer{x.who.id, x.who.username, x.who.role})
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

// newSessionAnswer returns a session as a client sees it whose own session is
// current.
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

// endSessions ends every session of a user.
func (s *server) endSessions(x *exchange) error {
	if _, err := s.targetUser(x); err != nil {
		return err
	}
	if err := s.store.endSessions(x.r.Context(), x.caller(), x.target, s.wall().Unix()); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// endSession ends one session of a user.
func (s *server) endSession(x *exchange) error {
	sid, err := parseID(x.r.PathValue("sid"))
	if err != nil {
		return errSessionNotFound
	}
	if err := s.store.endSession(x.r.Context(), x.caller(), x.target, sid, s.wall().Unix()); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}
