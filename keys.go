package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"userd/internal/apikey"
	"userd/internal/param"
	"userd/internal/refresh"
	"userd/internal/setting"
	"userd/internal/validate"
)

// The sets of scopes in the route table. An API key opens a route only if the route's set has
// the scope of the key; a route without a set accepts no API key.
var (
	verifyKeys     = []keyScope{verifyScope, readScope, writeScope, adminScope}
	introspectKeys = []keyScope{verifyScope, writeScope, adminScope} // those other than verifyScope only of admins: see resourceServer
	readKeys       = []keyScope{readScope, writeScope, adminScope}
	writeKeys      = []keyScope{writeScope, adminScope}
	adminKeys      = []keyScope{adminScope}
)

// keyLife bounds how long an API key is valid. Only the command line makes keys that never expire.
var keyLife = lifetime{90 * 24 * time.Hour, time.Hour, 366 * 24 * time.Hour}

// maxKeyName is the longest name of an API key, in bytes.
const maxKeyName = 80

// addKey makes an API key for a caller, and returns it. The caller of addKey sets the owner,
// the name and the scope of k; addKey sets the rest. The key expires after life, or never if
// life is 0. The statements in then belong to the same write. addKey returns errInvalid or an
// error of store.addKey.
func (s *userService) addKey(ctx context.Context, by caller, k *apiKey, life time.Duration, then ...statement) (key string, err error) {
	wrong := make(fieldErrors)
	k.name = validate.TrimName(k.name)
	wrong.add("name", checkKeyName(k.name))
	if err := wrong.err(); err != nil {
		return "", err
	}
	key = apikey.New()
	now := s.wall()
	k.prefix, k.createdAt, k.expiresAt = apikey.Prefix(key), now.Unix(), 0
	if life != 0 {
		k.expiresAt = now.Add(life).Unix()
	}
	return key, s.store.addKey(ctx, by, k, apikey.Hash(key), then...)
}

// checkKeyName returns what is wrong with the name of a key, or "".
func checkKeyName(name string) string {
	if name == "" || len(name) > maxKeyName || !utf8.ValidString(name) {
		return fmt.Sprintf("must have 1 to %d bytes", maxKeyName)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return "must have only printable characters"
		}
	}
	return ""
}

type keyRequest struct {
	Name      string   `json:"name"`
	Scope     keyScope `json:"scope"`
	ExpiresIn *int64   `json:"expires_in"` // seconds
	proofRequest
}

// A keyAnswer is an API key as the API and the command line show it.
type keyAnswer struct {
	ID          int64      `json:"id"`
	Name        string     `json:"name"`
	Prefix      string     `json:"prefix"`
	Scope       keyScope   `json:"scope"`
	CreatedAt   time.Time  `json:"created_at"`
	ExpiresAt   *time.Time `json:"expires_at"`   // null: never
	LastUsedAt  *time.Time `json:"last_used_at"` // null: never
	LastAddress string     `json:"last_address,omitempty"`
	Key         string     `json:"key,omitempty"` // only when the key is made
}

func newKeyAnswer(k *apiKey) keyAnswer {
	orNull := func(unix int64) *time.Time {
		if unix == 0 {
			return nil
		}
		return new(utc(unix))
	}
	return keyAnswer{k.id, k.name, k.prefix, k.scope, utc(k.createdAt), orNull(k.expiresAt), orNull(k.lastUsedAt), k.lastAddress, ""}
}

// createKey makes an API key of the user in the path. Only its answer shows the key.
func (s *server) createKey(x *exchange) error {
	in, err := decode[keyRequest](x.body())
	if err != nil {
		return err
	}
	k := apiKey{userID: x.target, name: in.Name, scope: in.Scope}
	wrong := make(fieldErrors)
	wrong.add("name", checkKeyName(validate.TrimName(k.name)))
	var scope keyScope
	if err := setting.Word(&scope, string(k.scope), verifyScope, readScope, writeScope); err != nil {
		wrong.add("scope", err.Error())
	}
	life, why := lifetimeOf(in.ExpiresIn, keyLife)
	if in.ExpiresIn == nil {
		why = "is required: the number of seconds for which the key is valid"
	}
	wrong.add("expires_in", why)
	if err := wrong.err(); err != nil {
		return err
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	if err := s.requireProof(x, x.proof, in.proofRequest); err != nil {
		return err
	}
	key, err := s.addKey(x.r.Context(), x.caller(), &k, life, s.notice(x, changedMail, k.userID, "an API key was created")...)
	if err != nil {
		return err
	}
	answer := newKeyAnswer(&k)
	answer.Key = key
	return x.sendJSON(http.StatusCreated, answer)
}

// listKeys answers with the API keys of a user, the oldest first. It includes keys that expired
// less than keepExpiredKeys ago.
func (s *server) listKeys(x *exchange) error {
	if _, err := s.store.user(x.target); err != nil {
		return err
	}
	list := []keyAnswer{}
	if err := s.store.keysOf(x.r.Context(), x.target, func(k *apiKey) { list = append(list, newKeyAnswer(k)) }); err != nil {
		return err
	}
	return x.sendJSON(http.StatusOK, list)
}

// revokeKey deletes an API key of a user. It requires no proof: an owner whose key has leaked
// must be able to revoke it immediately.
func (s *server) revokeKey(x *exchange) error {
	id, err := param.ID(x.r.PathValue("key"))
	if err != nil {
		return errKeyNotFound
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	if err := s.store.revokeKey(x.r.Context(), x.caller(), x.target, id, s.wall().Unix(), s.notice(x, changedMail, x.target, "an API key was revoked")...); err != nil {
		return err
	}
	return x.sendNothing()
}

type verifyAnswer struct {
	ID       int64  `json:"id"`
	Username string `json:"username"`
	Role     role   `json:"role"`
}

// verify tells a reverse proxy who is calling, so that the proxy can forward the
// request to a service that cannot read tokens. The username is percent-encoded, because
// an adopted one can have characters that a header cannot carry. For an adopted user with
// an empty username verify returns errNoUsername: proxies drop an empty header, or keep
// the one that a client sent. With ?factor=required it returns errFactorRequired unless the
// session has proven a second factor.
func (s *server) verify(x *exchange) error {
	q, err := x.query("factor")
	if err != nil {
		return err
	}
	switch factor := q.Get("factor"); {
	case q.Has("factor") && factor != "required":
		return &param.Error{Name: "factor", Text: "can only be required"}
	case factor != "" && !x.who.factor:
		return errFactorRequired.with("This requires a login with a second factor: add one, or log in with it")
	}
	if x.who.username == "" {
		return errNoUsername
	}
	header := x.Header()
	header.Set("X-User-Id", strconv.FormatInt(x.who.id, 10))
	header.Set("X-User-Name", url.PathEscape(x.who.username))
	header.Set("X-User-Role", string(x.who.role))
	return x.sendJSON(http.StatusOK, verifyAnswer{x.who.id, x.who.username, x.who.role})
}

// An introspection is the state of a token (RFC 7662 section 2.2).
type introspection struct {
	Active    bool     `json:"active"` // if false, the other members are absent
	Subject   string   `json:"sub,omitempty"`
	Username  string   `json:"username,omitempty"`
	Role      role     `json:"role,omitempty"`
	Scope     keyScope `json:"scope,omitempty"` // of an API key
	Expires   int64    `json:"exp,omitempty"`   // 0: never
	Issued    int64    `json:"iat,omitempty"`
	Session   string   `json:"sid,omitempty"` // of an access token
	AMR       []string `json:"amr,omitempty"` // of an access token whose login proved a second factor
	TokenType string   `json:"token_type,omitempty"`
}

// introspect tells another service whether an access token or an API key is valid now, and
// whose it is (RFC 7662). It reports a refresh token as not active: a service must not accept
// one as an access token.
func (s *server) introspect(x *exchange) error {
	if _, err := x.query(); err != nil { // a URL is logged, so it must not contain the token
		return err
	}
	body, err := x.bodyOf("application/x-www-form-urlencoded")
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return errMalformedBody.with("The body must be a form")
	}
	if len(form["token"]) != 1 || form.Get("token") == "" {
		return errNoFormToken
	}
	found, err := s.inspectToken(form.Get("token"), s.wall().Unix())
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusOK, found)
}

// inspectToken returns the state of a token at now, in Unix seconds. A token that is not valid
// is not an error: its introspection is not active. The only error is errStorage.
func (s *server) inspectToken(token string, now int64) (found introspection, err error) {
	var u user
	var proven bool
	if apikey.Begins(token) {
		var k apiKey
		u, k, err = s.store.userOfKey(token, now)
		proven = k.factorExempt
		found = introspection{Scope: k.scope, Expires: k.expiresAt, Issued: k.createdAt}
	} else {
		c, verifyErr := s.keys.verify(token, now)
		if err = verifyErr; err == nil {
			u, _, proven, err = s.store.principal(c.session, newTokenID(c.id), c.kid, now)
		}
		if err == nil && u.id != c.subject {
			err = errBadToken
		}
		found = introspection{Expires: c.expires, Issued: c.issued, Session: strconv.FormatInt(c.session, 10)}
		if c.otp {
			found.AMR = []string{"pwd", "otp"}
		}
	}
	if errors.Is(err, errStorage) {
		return introspection{}, err
	}
	if err != nil || !proven && s.requireFactor.concerns(u.role == admin) { // admit refuses it too
		return introspection{}, nil
	}
	found.Active, found.TokenType = true, "Bearer"
	found.Subject, found.Username, found.Role = strconv.FormatInt(u.id, 10), u.username, u.role
	return found, nil
}

// newSecret returns 32 random bytes, for the key of an HMAC-SHA-256.
func newSecret() []byte {
	secret := make([]byte, sha256.Size)
	rand.Read(secret)
	return secret
}

// refreshKey returns the key of the refresh tokens of a database. If the database has no key,
// refreshKey makes one. Only the database has it: with JWT_SECRET_KEY instead, other services
// that know that could compute the successors of the tokens that they see. Each request reads
// the key again, because a command can replace it, which invalidates the earlier tokens.
func refreshKey(ctx context.Context, st *store) (refresh.Key, error) {
	key, err := st.secret(ctx, "refresh", newSecret())
	if err != nil {
		return nil, fmt.Errorf("refresh key: %w", err)
	}
	return key, nil
}

// randomKey returns a new key with a secret of 256 bits, the size of the hash of
// HS256 (RFC 7518 section 3.2).
func randomKey() keyRow {
	secret := make([]byte, sha256.Size)
	rand.Read(secret)
	return keyRow{strings.ToLower(rand.Text()[:8]), secret}
}

// loadKeys returns the keyring of a configuration and a database. If neither has a
// key, loadKeys makes one in the database. If the configuration has one, loadKeys
// retires those of the database.
func loadKeys(ctx context.Context, st *store, c *config, now int64) (*keyring, error) {
	if err := st.recordSigner(ctx, len(c.secret) > 0, now); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	ring := newKeyring(st.keySecret)
	ring.required = c.tokenNames
	if len(c.secret) == 0 {
		if err := st.ensureKey(ctx, randomKey(), int64(c.accessTTL/time.Second), now); err != nil {
			return nil, fmt.Errorf("signing key: %w", err)
		}
		return ring, nil
	}
	// Otherwise a key that leaked with an old copy of the database would be valid forever.
	if err := st.retireKeys(ctx, now); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	ring.configured = []*signingKey{newSigningKey("", c.secret)}
	if len(c.previousSecret) > 0 {
		ring.configured = append(ring.configured, newSigningKey("", c.previousSecret))
	}
	return ring, nil
}
