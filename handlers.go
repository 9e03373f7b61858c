package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A route is one row of the table below. One that does not say who may call it
// admits nobody.
type route struct {
	pattern string
	access  access
	handle  func(*exchange) error
}

// routes is every path that the server answers.
func (s *server) routes() []route {
	return []route{
		{"GET /healthz", anyone, s.healthz},
		{"GET /readyz", anyone, s.readyz},
		{"GET /metrics", adminOnly, s.metrics}, // anyone, on METRICS_ADDR

		{"GET /api/test", anyone, s.welcome},
		{"POST /api/register", anyone, s.register},
		{"POST /api/login", anyone, s.countedLogin},
		{"POST /api/refresh", anyone, s.refresh}, // the holder of a refresh token
		{"POST /api/logout", signedIn, s.logout},
		{"GET /api/verify", signedIn, s.verify},
		{"GET /api/users", signedIn, s.listUsers},
		{"POST /api/users", adminOnly, s.createUser},
		{"GET /api/users/{id}", byDirectory, s.getUser},
		{"PUT /api/users/{id}", selfOrAdmin, s.updateUser},
		{"PATCH /api/users/{id}", selfOrAdmin, s.updateUser},
		{"DELETE /api/users/{id}", selfOrAdmin, s.deleteUser},
		{"GET /api/users/{id}/sessions", selfOrAdmin, s.listSessions},
		{"DELETE /api/users/{id}/sessions", selfOrAdmin, s.endSessions},
		{"DELETE /api/users/{id}/sessions/{sid}", selfOrAdmin, s.endSession},
		{"GET /api/events", adminOnly, s.listEvents},
		{"GET /openapi.json", anyone, s.describe},
	}
}

// registration says who makes users.
type registration string

const (
	registrationOpen   registration = "open"   // anyone
	registrationClosed registration = "closed" // admins
)

// directory says what a member sees of others.
type directory string

const (
	directoryFull  directory = "full"  // id, username, email
	directoryNames directory = "names" // id, username
	directorySelf  directory = "self"  // nothing
)

func (s *server) welcome(x *exchange) error {
	return x.send(http.StatusOK, []byte(`{"message":"Welcome to the User Management Microservice!"}`+"\n"))
}

type registerRequest struct {
	Username string `json:"username"`
	Email    string `json:"email"`
	Password string `json:"password"`
}

func (s *server) register(x *exchange) error {
	if s.registration != registrationOpen {
		return errRegistrationClosed
	}
	if err := s.allow(x, registrations); err != nil {
		return err
	}
	in, err := decode[registerRequest](x)
	if err != nil {
		return err
	}
	u := user{username: in.Username, email: in.Email, role: member}
	if err := s.addUser(x.r.Context(), stranger.from(s.clientAddress(x.r)), &u, in.Password); err != nil {
		return err
	}
	x.Header().Set("Location", userPath(u.id))
	return x.send(http.StatusCreated, append(appendUser(nil, &u, viewEmail), '\n'))
}

type createRequest struct {
	Username string `json:"username"`
	Email    string `json:"email"`
	Password string `json:"password"`
	Role     *role  `json:"role"`
}

func (s *server) createUser(x *exchange) error {
	in, err := decode[createRequest](x)
	if err != nil {
		return err
	}
	u := user{username: in.Username, email: in.Email, role: member}
	if in.Role != nil {
		u.role = *in.Role
	}
	if err := s.addUser(x.r.Context(), x.caller(), &u, in.Password); err != nil {
		return err
	}
	x.Header().Set("Location", userPath(u.id))
	return x.sendUser(http.StatusCreated, &u, viewAll)
}

// addUser checks and adds a user for by and gives it its id. The cheap checks go
// before the hash.
func (s *server) addUser(ctx context.Context, by caller, u *user, password string) error {
	if u.username == "" || u.email == "" || password == "" {
		return errRegisterFields
	}
	wrong := make(fieldErrors)
	wrong.add("username", checkUsername(u.username))
	wrong.add("email", checkEmail(u.email))
	wrong.add("password", checkPassword(password, u.username, u.email))
	wrong.add("role", checkRole(u.role))
	if err := wrong.err(); err != nil {
		return err
	}
	if err := s.store.taken(u.username, u.email, 0); err != nil {
		return err
	}
	hash, err := s.hasher.hash(ctx, network(by.address), password)
	if err != nil {
		return err
	}
	return s.store.addUser(ctx, by, u, hash, s.now().Unix())
}

type loginRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// try reports whether a password is that of the user with an id and a hash, or
// of nobody, whose id is 0 and hash empty, by a name. It counts: errLimited.
func (s *server) try(x *exchange, id int64, hash, name, password string) (bool, error) {
	a, err := s.attempt(x, id, hash, name)
	if err != nil {
		return false, err
	}
	// What is refused above takes no hash, and nothing from others of its network.
	if err := s.allow(x, passwords); err != nil {
		return false, err
	}
	ok, err := s.hasher.verify(x.r.Context(), s.network(x), hash, password)
	if err != nil {
		return false, err
	}
	return ok, a.settle(ok)
}

// login starts a session. A name nobody has costs what a wrong password costs.
func (s *server) login(x *exchange) error {
	in, err := decode[loginRequest](x)
	if err != nil {
		return err
	}
	if in.Username == "" || in.Password == "" {
		return errLoginFields
	}
	u, hash, err := s.store.userByLogin(in.Username)
	if err != nil && err != errUserNotFound {
		return err
	}
	x.target, x.name = u.id, u.username // for the log of a failure: of a name that nobody has, nothing
	ok, err := s.try(x, u.id, hash, in.Username, in.Password)
	if err != nil {
		return err
	}
	if !ok {
		return errCredentials
	}
	if u.disabled {
		return errUserDisabled
	}
	newHash := ""
	if s.hasher.stale(hash) {
		if newHash, err = s.hasher.hash(x.r.Context(), s.network(x), in.Password); err != nil {
			return err
		}
	}
	now := s.now()
	token := s.refresher.first()
	session := s.newSession(x, now, token)
	session.userID = u.id
	key, err := s.store.addSession(x.r.Context(), &session, hash, newHash)
	if err != nil {
		return err
	}
	x.who.id, x.who.session = u.id, session.id // for the log
	return s.sendTokens(x, &session, key, token, now, true)
}

// userAgent returns what a session keeps of its client's User-Agent.
func userAgent(r *http.Request) string {
	const most = 256
	text := strings.ToValidUTF8(r.UserAgent(), "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

// logout ends the caller's session, and with ?all=true each of the caller's.
func (s *server) logout(x *exchange) error {
	if x.hasBody() {
		if _, err := decode[struct{}](x); err != nil {
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
		err = s.store.endSessions(x.r.Context(), x.caller(), x.who.id, s.now().Unix())
	} else {
		err = s.store.endSession(x.r.Context(), x.caller(), x.who.id, x.who.session, s.now().Unix())
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

// verify tells a reverse proxy who is calling, so that it can let a request
// through to a service that knows nothing of tokens. A name that a header
// cannot carry is percent-encoded.
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
	err := s.store.sessionsOf(x.r.Context(), x.target, s.now().Unix(), func(v *session) {
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

// newSessionAnswer returns what is shown of a session to one whose own is current.
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
	if err := s.store.endSessions(x.r.Context(), x.caller(), x.target, s.now().Unix()); err != nil {
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
	if err := s.store.endSession(x.r.Context(), x.caller(), x.target, sid, s.now().Unix()); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

const (
	listPage   = 500  // users read at a time for a list without a limit
	maxLimit   = 1000 // users or events of a page
	searchSize = 100  // users that a search finds if not told
)

// listUsers answers with all users, a page of them, or those that q finds.
func (s *server) listUsers(x *exchange) error {
	q, err := x.query("limit", "after", "q", "role", "disabled")
	if err != nil {
		return err
	}
	limit, after, err := pageOf(q)
	if err != nil {
		return err
	}
	var only filter
	if q.Has("role") {
		only.role = role(q.Get("role"))
		if why := checkRole(only.role); why != "" {
			return badParameter("role", why)
		}
	}
	if only.disabled, err = boolParameter(q, "disabled"); err != nil {
		return err
	}
	if x.who.role != admin && (q.Has("role") || q.Has("disabled")) {
		return &fault{kind: errForbidden, text: "Only an admin may filter by role or disabled"}
	}
	prefix := q.Get("q")
	if q.Has("q") {
		if len(q) > 2 || len(q) == 2 && limit == 0 {
			return badParameter("q", "can be combined only with limit")
		}
		if prefix == "" || !utf8.ValidString(prefix) || strings.ContainsRune(prefix, 0) {
			return badParameter("q", "must be the beginning of a name")
		}
	}
	switch {
	case x.who.role != admin && s.directory == directorySelf:
		list := newUserArray(s, x)
		if x.who.id > after && (hasPrefixFold(x.who.username, prefix) || hasPrefixFold(x.who.email, prefix)) {
			list.add(&x.who.user)
		}
		return x.send(http.StatusOK, list.end())
	case prefix != "":
		return s.searchUsers(x, prefix, int(limit))
	case limit > 0:
		return s.pageUsers(x, q, after, int(limit), only)
	}
	return s.streamUsers(x, after, only)
}

// pageOf returns the limit and the after of a list, 0 where they are not given.
func pageOf(q url.Values) (limit, after int64, err error) {
	if q.Has("limit") {
		if limit, err = parseID(q.Get("limit")); err != nil || limit > maxLimit {
			return 0, 0, badParameter("limit", fmt.Sprintf("must be from 1 to %d", maxLimit))
		}
	}
	if q.Has("after") && q.Get("after") != "0" {
		if after, err = parseID(q.Get("after")); err != nil {
			return 0, 0, badParameter("after", "must be an id")
		}
	}
	return limit, after, nil
}

// linkNext says in the answer where the list goes on after its last id.
func (x *exchange) linkNext(q url.Values, last int64) {
	q.Set("after", strconv.FormatInt(last, 10))
	x.Header().Set("Link", "<"+x.r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// searchUsers answers with the users whose name begins with prefix. A member
// finds by e-mail address only where it may see the addresses.
func (s *server) searchUsers(x *exchange, prefix string, limit int) error {
	if limit == 0 {
		limit = searchSize
	}
	list := newUserArray(s, x)
	byEmail := x.who.role == admin || s.directory == directoryFull
	if err := s.store.search(x.r.Context(), prefix, byEmail, limit, list.add); err != nil {
		return err
	}
	return x.send(http.StatusOK, list.end())
}

// pageUsers answers with at most limit users after an id, and a Link to the
// next page where there is one.
func (s *server) pageUsers(x *exchange, q url.Values, after int64, limit int, only filter) error {
	list := newUserArray(s, x)
	n, last, more := 0, after, false
	err := s.store.users(x.r.Context(), after, limit+1, only, func(u *user) {
		if n++; n > limit {
			more = true
			return
		}
		last = u.id
		list.add(u)
	})
	if err != nil {
		return err
	}
	if more {
		x.linkNext(q, last)
	}
	return x.send(http.StatusOK, list.end())
}

// streamUsers answers with every user after an id, by short reads and in
// constant memory. The answer is as large as the table, so each part of it
// gets the time that other answers get whole; a failure midway breaks the
// connection, since half a list must not look like a whole one.
func (s *server) streamUsers(x *exchange, after int64, only filter) error {
	list := newUserArray(s, x)
	deadline := http.NewResponseController(x.ResponseWriter)
	for {
		n := 0
		err := s.store.users(x.r.Context(), after, listPage, only, func(u *user) {
			n++
			after = u.id
			list.add(u)
		})
		if err != nil {
			return err
		}
		if n < listPage {
			break
		}
		if err := deadline.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if err := x.send(http.StatusOK, list.json); err != nil {
			return err
		}
		list.json = list.json[:0]
	}
	return x.send(http.StatusOK, list.end())
}

// A userArray is a JSON array of users in the making.
type userArray struct {
	s     *server
	who   *principal
	json  []byte
	comma bool
}

func newUserArray(s *server, x *exchange) *userArray {
	return &userArray{s: s, who: &x.who, json: []byte{'['}}
}

func (l *userArray) add(u *user) {
	if l.comma {
		l.json = append(l.json, ',')
	}
	l.comma = true
	l.json = appendUser(l.json, u, l.s.viewOf(l.who, u.id))
}

func (l *userArray) end() []byte { return append(l.json, "]\n"...) }

func (s *server) getUser(x *exchange) error {
	u, err := s.targetUser(x)
	if err != nil {
		return err
	}
	v := s.viewOf(&x.who, u.id)
	if v == viewAll && matches(x.r.Header.Values("If-None-Match"), u.version, true) {
		x.Header().Set("ETag", etag(u.version))
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	return x.sendUser(http.StatusOK, u, v)
}

// targetUser returns the user that the path names. The caller's own row has
// been read already.
func (s *server) targetUser(x *exchange) (*user, error) {
	if x.target == x.who.id {
		return &x.who.user, nil
	}
	u, err := s.store.user(x.target)
	return &u, err
}

type updateRequest struct {
	Username        *string `json:"username"`
	Email           *string `json:"email"`
	Password        *string `json:"password"`
	Role            *role   `json:"role"`
	Disabled        *bool   `json:"disabled"`
	CurrentPassword *string `json:"current_password"`

	// Ignored, so that what was fetched can be sent back.
	ID          json.RawMessage `json:"id"`
	CreatedAt   json.RawMessage `json:"created_at"`
	UpdatedAt   json.RawMessage `json:"updated_at"`
	LastLoginAt json.RawMessage `json:"last_login_at"`
}

// updateUser changes the given fields of a user. A field that is given as it
// stands is no change: it needs no right, and an adopted user whose name breaks
// today's rules can change the others.
func (s *server) updateUser(x *exchange) error {
	in, err := decode[updateRequest](x)
	if err != nil {
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
	c := change{
		username: unlessSame(in.Username, u.username),
		email:    unlessSame(in.Email, u.email),
		role:     unlessSame(in.Role, u.role),
		disabled: unlessSame(in.Disabled, u.disabled),
	}
	if (c.role != nil || c.disabled != nil) && x.who.role != admin {
		return &fault{kind: errForbidden, text: "Only an admin sets role and disabled"}
	}
	if err := c.check(u, in.Password); err != nil {
		return err
	}
	if c.email != nil || in.Password != nil || in.CurrentPassword != nil {
		if err := s.confirm(x, in.CurrentPassword); err != nil {
			return err
		}
	}
	if in.Password != nil {
		if err := s.allow(x, passwords); err != nil {
			return err
		}
		hash, err := s.hasher.hash(x.r.Context(), s.network(x), *in.Password)
		if err != nil {
			return err
		}
		c.hash = &hash
	}
	if c != (change{}) {
		changed, err := s.store.updateUser(x.r.Context(), x.caller(), u.id, c, version, s.now().Unix())
		if err != nil {
			return err
		}
		u = &changed
	} else {
		// Nothing is written, so nothing has been checked since before the body
		// came, which may be long ago.
		if err := s.admit(x, selfOrAdmin); err != nil {
			return err
		}
		if u, err = s.targetUser(x); err != nil {
			return err
		}
	}
	return x.sendUser(http.StatusOK, u, s.viewOf(&x.who, u.id))
}

// check says what is wrong with the new values of a change of u and with its
// new password, nil where there is none.
func (c *change) check(u *user, password *string) error {
	wrong := make(fieldErrors)
	username, email := u.username, u.email
	if c.username != nil {
		username = *c.username
		wrong.add("username", checkUsername(username))
	}
	if c.email != nil {
		email = *c.email
		wrong.add("email", checkEmail(email))
	}
	if c.role != nil {
		wrong.add("role", checkRole(*c.role))
	}
	if password != nil {
		wrong.add("password", checkPassword(*password, username, email))
	}
	return wrong.err()
}

// unlessSame returns given, or nil where it is what stands already.
func unlessSame[T comparable](given *T, stands T) *T {
	if given != nil && *given == stands {
		return nil
	}
	return given
}

// confirm asks that the caller proved just now to be its user: by a login that
// gave this very token, or by the password. A stolen refresh token alone must
// not take a user over.
func (s *server) confirm(x *exchange, password *string) error {
	if password == nil {
		if x.who.fresh {
			return nil
		}
		return errNotFresh
	}
	hash, err := s.store.passwordHash(x.who.id)
	if err != nil {
		return err
	}
	ok, err := s.try(x, x.who.id, hash, "", *password)
	if err == nil && !ok {
		err = errWrongPassword
	}
	return err
}

type deleteRequest struct {
	CurrentPassword *string `json:"current_password"`
}

func (s *server) deleteUser(x *exchange) error {
	var in deleteRequest
	if x.hasBody() {
		var err error
		if in, err = decode[deleteRequest](x); err != nil {
			return err
		}
	}
	u, err := s.targetUser(x)
	if err != nil {
		return err
	}
	version, err := ifMatch(x.r, u)
	if err != nil {
		return err
	}
	if u.id == x.who.id || in.CurrentPassword != nil {
		if err := s.confirm(x, in.CurrentPassword); err != nil {
			return err
		}
	}
	if err := s.store.deleteUser(x.r.Context(), x.caller(), u.id, version, s.now().Unix()); err != nil {
		return err
	}
	return x.send(http.StatusOK, []byte(`{"message":"User deleted successfully"}`+"\n"))
}

// A view is how much of a user somebody sees.
type view int

const (
	viewName  view = iota // id, username
	viewEmail             // and email
	viewAll               // and the rest
)

// viewOf returns how much of the user id who sees.
func (s *server) viewOf(who *principal, id int64) view {
	switch {
	case who.id == id || who.role == admin:
		return viewAll
	case s.directory == directoryFull:
		return viewEmail
	}
	return viewName
}

// appendUser appends a user in JSON; what the view hides is left out. By hand,
// because a list is made of nothing else.
func appendUser(b []byte, u *user, v view) []byte {
	b = append(b, `{"id":`...)
	b = strconv.AppendInt(b, u.id, 10)
	b = append(b, `,"username":`...)
	b = appendString(b, u.username)
	if v >= viewEmail {
		b = append(b, `,"email":`...)
		b = appendString(b, u.email)
	}
	if v == viewAll {
		b = append(b, `,"role":`...)
		b = appendString(b, string(u.role))
		b = append(b, `,"disabled":`...)
		b = strconv.AppendBool(b, u.disabled)
		b = append(b, `,"created_at":`...)
		b = appendTime(b, u.createdAt)
		b = append(b, `,"updated_at":`...)
		b = appendTime(b, u.updatedAt)
		b = append(b, `,"last_login_at":`...)
		b = appendTime(b, u.lastLoginAt)
	}
	return append(b, '}')
}

// appendString appends s as a JSON string. A name under today's rules needs no
// escape; an adopted one may.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendTime appends a time, or null for one that is not known.
func appendTime(b []byte, unix int64) []byte {
	if unix == 0 {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = time.Unix(unix, 0).UTC().AppendFormat(b, time.RFC3339)
	return append(b, '"')
}

// sendUser answers with a user, and with its ETag where all of it is shown.
func (x *exchange) sendUser(status int, u *user, v view) error {
	if v == viewAll {
		x.Header()["Etag"] = []string{etag(u.version)}
	}
	return x.send(status, append(appendUser(make([]byte, 0, 256), u, v), '\n'))
}

func userPath(id int64) string { return "/api/users/" + strconv.FormatInt(id, 10) }

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// ifMatch returns the version that the request's If-Match lets a change apply
// to, 0 where it does not say, or errVersion where the user has another.
func ifMatch(r *http.Request, u *user) (int64, error) {
	tags := r.Header.Values("If-Match")
	switch {
	case len(tags) == 0:
		return 0, nil
	case matches(tags, u.version, false):
		return u.version, nil
	}
	return 0, errVersion
}

// matches reports whether one of the entity tags of an If-Match or, where weak
// ones count, an If-None-Match is the version's (RFC 9110 section 13.1).
func matches(tags []string, version int64, weak bool) bool {
	want := etag(version)
	for tag := range strings.SplitSeq(strings.Join(tags, ","), ",") {
		tag = strings.TrimSpace(tag)
		if weak {
			tag = strings.TrimPrefix(tag, "W/")
		}
		if tag == want || tag == "*" {
			return true
		}
	}
	return false
}

// query returns the query parameters, of which only the named may be there,
// once each.
func (x *exchange) query(names ...string) (url.Values, error) {
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, &fault{kind: errBadParameter, text: "The query is malformed"}
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return nil, badParameter(shorten(name), "is not known here")
		}
		if len(values) > 1 {
			return nil, badParameter(name, "appears twice")
		}
	}
	return q, nil
}

func badParameter(name, why string) error {
	return &fault{
		kind:   errBadParameter,
		text:   fmt.Sprintf("The query parameter %q %s", name, why),
		fields: map[string]string{name: why},
	}
}

// boolParameter returns a query parameter that is true or false; nil: absent.
func boolParameter(q url.Values, name string) (*bool, error) {
	if !q.Has(name) {
		return nil, nil
	}
	value := q.Get(name) == "true"
	if !value && q.Get(name) != "false" {
		return nil, badParameter(name, "must be true or false")
	}
	return &value, nil
}

// fieldErrors gathers what is wrong with the fields of a body.
type fieldErrors map[string]string

func (f fieldErrors) add(name, why string) {
	if why != "" {
		f[name] = why
	}
}

// err returns an error that names each field and its fault, or nil.
func (f fieldErrors) err() error {
	if len(f) == 0 {
		return nil
	}
	var text []string
	for name, why := range f {
		text = append(text, name+" "+why)
	}
	slices.Sort(text)
	return &fault{kind: errInvalid, text: "Not valid: " + strings.Join(text, "; "), fields: f}
}

var (
	usernamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$`)

	// An addr-spec whose local part is a dot-atom (RFC 5322 section 3.4.1) and
	// whose domain is a name (RFC 1035 section 2.3.1), as mail is delivered to.
	emailPattern = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*" +
		`@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
)

const (
	maxEmail     = 254 // RFC 5321 section 4.5.3.1.3, without the angle brackets
	maxLocalPart = 64  // RFC 5321 section 4.5.3.1.1
)

// checkUsername says what is wrong with a new username, or nothing. It cannot
// hold an @, so that a login name is either a username or an address.
func checkUsername(s string) string {
	if !usernamePattern.MatchString(s) {
		return "must be 1 to 80 of the letters A to Z, digits, '.', '_' and '-', beginning with a letter or digit"
	}
	return ""
}

// checkEmail says what is wrong with a new e-mail address, or nothing.
func checkEmail(s string) string {
	if len(s) > maxEmail || strings.IndexByte(s, '@') > maxLocalPart || !emailPattern.MatchString(s) {
		return "must be an address such as ann@example.com, in ASCII"
	}
	return ""
}

func checkRole(r role) string {
	if r != member && r != admin {
		return "must be member or admin"
	}
	return ""
}
