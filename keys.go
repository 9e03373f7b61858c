package main

import (
	"context"
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
	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/setting"
	"userd/internal/sse"
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

// authenticateKey sets x.who from an API key. It reads the rows of the key and of its user
// for each request. It returns errBadToken, errExpiredKey, errStorage, or errLimited if the
// network has sent too many keys that are not valid. Such keys count only toward the limit
// badKeys: a key cannot be guessed, so they must not use up the limits of logins.
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
	x.who.user, x.who.key, x.who.scope, x.who.keyReadAt, x.who.factorExempt = u, k.id, k.scope, now, k.factorExempt
	x.logUser = u.id
	return nil
}

// lookUpKey returns the user of an API key and the key's row. It returns errBadToken, or
// another error of store.userOfKey. A text with a wrong form or checksum costs no look-up.
func (s *server) lookUpKey(key string, now int64) (u user, k apiKey, err error) {
	if !apikey.Valid(key) {
		return u, k, errBadToken
	}
	return s.store.userOfKey(apikey.Hash(key), now)
}

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
	Name            string   `json:"name"`
	Scope           keyScope `json:"scope"`
	ExpiresIn       *int64   `json:"expires_in"` // seconds
	CurrentPassword *string  `json:"current_password"`
	OTP             *string  `json:"otp"`
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
	if err := s.store.revokeKey(x.r.Context(), x.caller(), x.target, id, s.wall().Unix()); err != nil {
		return err
	}
	return x.sendNothing()
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
		u, k, err = s.lookUpKey(token, now)
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

// An eventAnswer is an event as clients and the command line see it.
type eventAnswer struct {
	ID        int64     `json:"id"`
	Type      eventType `json:"type"`
	At        time.Time `json:"at"`
	ActorID   int64     `json:"actor_id,omitempty"`
	UserID    int64     `json:"user_id,omitempty"`
	SessionID int64     `json:"session_id,omitempty"`
	Address   string    `json:"address,omitempty"`
	Changes   []string  `json:"changes,omitempty"`
}

func newEventAnswer(e *event) eventAnswer {
	a := eventAnswer{
		ID:        e.id,
		Type:      e.kind,
		At:        utc(e.at),
		ActorID:   e.actorID,
		UserID:    e.userID,
		SessionID: e.sessionID,
		Address:   e.address,
	}
	if e.changes != "" {
		a.Changes = strings.Split(e.changes, ",")
	}
	return a
}

// eventPage is the number of events of a page without a limit.
const eventPage = 100

// listEvents answers with a page of events, or with a stream of them if the
// request accepts text/event-stream.
func (s *server) listEvents(x *exchange) error {
	q, err := x.query("limit", "after", "user", "type")
	if err != nil {
		return err
	}
	limit, after, err := param.Page(q, maxLimit)
	if err != nil {
		return err
	}
	var only eventFilter
	if q.Has("user") {
		if only.userID, err = param.ID(q.Get("user")); err != nil {
			return &param.Error{Name: "user", Text: "must be the id of a user"}
		}
	}
	if q.Has("type") {
		if err := setting.Word(&only.kind, q.Get("type"), eventTypes...); err != nil {
			return &param.Error{Name: "type", Text: err.Error()}
		}
	}
	if headers.Accepts(x.r, "Accept", "text/event-stream") {
		if q.Has("limit") {
			return &param.Error{Name: "limit", Text: "is not allowed with a stream"}
		}
		if !q.Has("after") {
			after = -1
		}
		return s.streamEvents(x, after, only)
	}
	if limit == 0 {
		limit = eventPage
	}
	list := []eventAnswer{}
	err = s.store.events(x.r.Context(), after, limit+1, only, func(e *event) { list = append(list, newEventAnswer(e)) })
	if err != nil {
		return err
	}
	if len(list) > int(limit) {
		list = list[:limit]
		x.Header().Set("Link", param.LinkNext(x.r.URL.Path, q, list[limit-1].ID))
	}
	return x.sendJSON(http.StatusOK, list)
}

// maxStreams is the largest number of open event streams. Each one holds a
// connection and reads the database once per followEvery.
const maxStreams = 64

// followEvery is the time between two searches for new events.
const followEvery = 200 * time.Millisecond

func newFeed() *sse.Feed {
	f := sse.New(maxStreams)
	f.PollEvery, f.RecheckEvery, f.WriteTimeout = followEvery, time.Second, writeTimeout
	f.PingEvery = 15 * time.Second // HTTP/2 ends a stream that is silent for writeTimeout
	return f
}

// streamEvents sends the events after an id, and then each new one. The id -1 means the
// newest. streamEvents polls the database, so it also sends the events of other processes.
func (s *server) streamEvents(x *exchange, after int64, only eventFilter) error {
	after, err := s.streamStart(x, after)
	if err != nil {
		return err
	}
	err = s.feed.Serve(x, x.r, after, sse.Source{
		Read: func(after int64, add func(int64, string, any)) (last int64, more bool, err error) {
			return s.store.eventsSince(x.r.Context(), after, only, func(e *event) { add(e.id, string(e.kind), newEventAnswer(e)) })
		},
		Allowed: func() bool { return s.admit(x, adminOnly) == nil },
	})
	if err == sse.ErrBusy {
		return errBusy.with("Too many event streams are open")
	}
	return err
}

// streamStart returns the id after which a stream starts: Last-Event-ID if the
// request has it, otherwise after, or the id of the newest event if after is -1.
// It returns errBadParameter for the id of an event that does not exist yet.
func (s *server) streamStart(x *exchange, after int64) (int64, error) {
	newest, err := s.store.lastEvent()
	if err != nil {
		return 0, err
	}
	switch last := x.r.Header.Get("Last-Event-ID"); last {
	case "":
	case "0":
		after = 0
	default:
		if after, err = param.ID(last); err != nil {
			return 0, errBadParameter.with("Last-Event-ID must be the id of an event")
		}
	}
	if after < 0 {
		after = newest
	}
	if after > newest { // the stream would be silent until other events have these ids
		return 0, errBadParameter.with("Event %d does not exist yet: was the database restored from an older copy?", after)
	}
	return after, nil
}
