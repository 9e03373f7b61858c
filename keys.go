package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"userd/internal/apikey"
	"userd/internal/setting"
	"userd/internal/validate"
)

// The scopes that open a route. A route without any is closed to all API keys.
var (
	verifyKeys     = []keyScope{verifyScope, readScope, writeScope, adminScope}
	introspectKeys = []keyScope{verifyScope, writeScope, adminScope} // access says which users
	readKeys       = []keyScope{readScope, writeScope, adminScope}
	writeKeys      = []keyScope{writeScope, adminScope}
	adminKeys      = []keyScope{adminScope}
)

// keyLife bounds how long an API key is valid.
var keyLife = lifetime{90 * 24 * time.Hour, time.Hour, 366 * 24 * time.Hour}

// maxKeyName is the longest name of an API key, in bytes.
const maxKeyName = 80

// authenticateKey sets x.who from an API key. It reads the rows of the key and of its user
// each time. It returns errBadToken, errExpiredKey or errStorage, or errLimited if the network
// has sent too many keys that are not valid. A key cannot be guessed, so these count toward no
// limit that others need.
func (s *server) authenticateKey(x *exchange, key string) error {
	now := s.wall().Unix()
	u, k, err := s.lookUpKey(key, now)
	if err != nil {
		if errors.Is(err, errStorage) {
			return err
		}
		x.counted = true
		s.stats.badKeys.Add(1)
		if limited := s.allow(x, badKeys); limited != nil {
			return limited
		}
		return err
	}
	if k.lastUsedAt <= now-touchKeyEvery {
		s.store.touchKey(k.id, x.address, now)
	}
	x.who.user, x.who.key, x.who.scope, x.who.asked, x.who.exempt = u, k.id, k.scope, now, k.exempt
	x.logUser = u.id
	return nil
}

// lookUpKey returns the user of an API key and the key. It returns errBadToken, for a text
// that apikey.New cannot have made before it looks anything up, or an error of
// store.userOfKey.
func (s *server) lookUpKey(key string, now int64) (u user, k apiKey, err error) {
	if !apikey.Valid(key) {
		return u, k, errBadToken
	}
	return s.store.userOfKey(apikey.Hash(key), now)
}

// addKey makes a key with the owner, name and scope of k, which is valid for life, or without
// end if life is 0, for a caller. It sets the other fields of k, and returns the key. The
// statements in then belong to the same write. It returns errInvalid or an error of
// store.addKey.
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
	Name            string   `json:"name"`
	Scope           keyScope `json:"scope"`
	ExpiresIn       *int64   `json:"expires_in"` // seconds
	CurrentPassword *string  `json:"current_password"`
	OTP             *string  `json:"otp"`
}

// A keyAnswer is an API key as clients and the command line see it.
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

// createKey answers with a new API key of the user of the path. Only this answer shows it.
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
	if err := s.requireProof(x, x.proof, in.CurrentPassword, in.OTP); err != nil {
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

// listKeys answers with the API keys of a user, the oldest first. Expired ones remain for
// keepExpiredKeys.
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

// revokeKey deletes an API key of a user. It requires no proof, because it must be
// fast when a key has leaked.
func (s *server) revokeKey(x *exchange) error {
	id, err := parseID(x.r.PathValue("key"))
	if err != nil {
		return errKeyNotFound
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	if err := s.store.revokeKey(x.r.Context(), x.caller(), x.target, id, s.wall().Unix()); err != nil {
		return err
	}
	return x.sendNothing()
}

// An introspection says what a token is worth (RFC 7662 section 2.2).
type introspection struct {
	Active    bool     `json:"active"` // if false, the other members are absent
	Subject   string   `json:"sub,omitempty"`
	Username  string   `json:"username,omitempty"`
	Role      role     `json:"role,omitempty"`
	Scope     keyScope `json:"scope,omitempty"` // of an API key
	Expires   int64    `json:"exp,omitempty"`   // 0: never
	Issued    int64    `json:"iat,omitempty"`
	Session   string   `json:"sid,omitempty"` // of an access token
	TokenType string   `json:"token_type,omitempty"`
}

// introspect tells another service what an access token or an API key is worth now (RFC
// 7662). A refresh token is not active: a service must not accept one for an access token.
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

// inspectToken returns what a token is worth at now. Its error is errStorage.
func (s *server) inspectToken(token string, now int64) (found introspection, err error) {
	var u user
	var proven bool
	if apikey.Begins(token) {
		var k apiKey
		u, k, err = s.lookUpKey(token, now)
		proven = k.exempt
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
