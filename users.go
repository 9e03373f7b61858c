package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"userd/internal/appendjson"
	"userd/internal/clientaddr"
	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/validate"
)

// changeUser makes a change that checkChange accepted, and sets the password unless it
// is nil, for a caller. It returns the changed user. If version is not 0, the user
// must still have it. The statements in then belong to the same write. The error is
// passhash.ErrBusy or one of store.updateUser.
func (s *userService) changeUser(ctx context.Context, by caller, id int64, c change, password *string, version int64, then ...statement) (user, error) {
	if password != nil {
		hash, err := s.hasher.Hash(ctx, clientaddr.Network(by.address), *password)
		if err != nil {
			return user{}, err
		}
		c.hash = &hash
	}
	return s.store.updateUser(ctx, by, id, c, version, s.wall().Unix(), then...)
}

type createRequest struct {
	Username string `json:"username"`
	Email    string `json:"email"`
	Password string `json:"password"`
	Role     *role  `json:"role"`
	proofRequest
}

func (s *server) createUser(x *exchange) error {
	in, err := decode[createRequest](x.body())
	if err != nil {
		return err
	}
	u := user{username: in.Username, email: in.Email, role: member}
	if in.Role != nil {
		u.role = *in.Role
	}
	acts := noProof
	if u.role == admin {
		acts = createAdmin
	}
	if err := s.requireProof(x, acts, in.proofRequest); err != nil {
		return err
	}
	if err := s.addUser(x.r.Context(), x.caller(), &u, in.Password); err != nil {
		return err
	}
	x.Header().Set("Location", userPath(u.id))
	return x.sendUser(http.StatusCreated, &u, viewAll)
}

const (
	listPage   = 500 // users that one read of a list without a limit returns
	searchSize = 100 // users that a search without a limit returns at most
)

// listUsers answers with all users, with a page of them, or with those that q
// finds.
func (s *server) listUsers(x *exchange) error {
	p, err := x.page("q", "role", "disabled", "pending")
	if err != nil {
		return err
	}
	q := p.Query
	var only filter
	if only.role, err = param.Word(q, "role", member, admin); err != nil {
		return err
	}
	if only.disabled, err = param.Bool(q, "disabled"); err != nil {
		return err
	}
	if only.pending, err = param.Bool(q, "pending"); err != nil {
		return err
	}
	if x.who.role != admin && only != (filter{}) {
		return errForbidden.with("Only an admin may filter by role, disabled or pending")
	}
	prefix := q.Get("q")
	if q.Has("q") {
		if len(q) > 2 || len(q) == 2 && p.Limit == 0 {
			return &param.Error{Name: "q", Text: "can be combined only with limit"}
		}
		if prefix == "" || !utf8.ValidString(prefix) || strings.ContainsRune(prefix, 0) {
			return &param.Error{Name: "q", Text: "must be the beginning of a name"}
		}
	}
	switch {
	case x.who.role != admin && s.directory == directorySelf:
		list := s.newUserArray(x, 1)
		matches := func(name string) bool { return strings.HasPrefix(validate.FoldName(name), validate.FoldName(prefix)) }
		if x.who.id > p.AfterID && (matches(x.who.username) || matches(x.who.email)) {
			list.add(&x.who.user)
		}
		return x.send(http.StatusOK, list.end())
	case prefix != "":
		return s.searchUsers(x, prefix, int(p.Limit))
	case p.Limit > 0:
		return s.pageUsers(x, &p, only)
	}
	return s.streamUsers(x, p.AfterID, only)
}

// searchUsers answers with the users whose name, or whose e-mail address if the
// principal may see addresses, begins with prefix.
func (s *server) searchUsers(x *exchange, prefix string, limit int) error {
	list := s.newUserArray(x, 1)
	byEmail := x.who.role == admin || s.directory == directoryFull
	if err := s.store.search(x.r.Context(), prefix, byEmail, cmp.Or(limit, searchSize), list.add); err != nil {
		return err
	}
	return x.send(http.StatusOK, list.end())
}

// pageUsers answers with a page of users, and with a Link to the next page if there is one.
func (s *server) pageUsers(x *exchange, p *param.Page, only filter) error {
	limit := int(p.Limit)
	list := s.newUserArray(x, limit)
	n, last := 0, int64(0)
	err := s.store.users(x.r.Context(), p.AfterID, limit+1, only, func(u *user) {
		if n++; n <= limit {
			last = u.id
			list.add(u)
		}
	})
	if err != nil {
		return err
	}
	if n > limit {
		x.Header().Set("Link", p.LinkNext(x.r.URL.Path, last))
	}
	return x.send(http.StatusOK, list.end())
}

// streamUsers answers with every user after an id, in short reads and constant
// memory. The answer can be as large as the table, so each part has the time limit
// of an entire answer, and the reader's rights are checked again before it is sent.
// A failure breaks the connection: a part of the list must not look like all of it.
func (s *server) streamUsers(x *exchange, after int64, only filter) error {
	list := s.newUserArray(x, listPage)
	deadline := http.NewResponseController(x.ResponseWriter)
	for role, parts := x.who.role, 0; ; parts++ {
		n := 0
		err := s.readPart(x.r.Context(), after, only, func(u *user) {
			n++
			after = u.id
			list.add(u)
		})
		if err == nil && parts > 0 {
			err = s.admit(x, signedIn)
		}
		if err == nil && x.who.role != role { // the role decides what the list shows
			err = errForbidden
		}
		if err != nil {
			return err
		}
		if n < listPage {
			break
		}
		if err := deadline.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return fmt.Errorf("%w: answering: %w", context.Canceled, err) // the connection was closed
		}
		if err := x.sendPart(http.StatusOK, list.json); err != nil || x.r.Method == http.MethodHead {
			return err // the rest of the list would change no header
		}
		list.json = list.json[:0]
	}
	return x.sendPart(http.StatusOK, list.end())
}

// readPart reads a part of a full list. It waits for its turn, so that other reads do
// not wait for those of all full lists.
func (s *server) readPart(ctx context.Context, after int64, only filter, add func(*user)) error {
	s.lists <- struct{}{}
	defer func() { <-s.lists }()
	return s.store.users(ctx, after, listPage, only, add)
}

// A userArray builds a JSON array of users, as one principal sees them.
type userArray struct {
	viewOf func(id int64) view
	json   []byte
	comma  bool
}

// newUserArray returns an empty array with room for n users of usual size.
func (s *server) newUserArray(x *exchange, n int) *userArray {
	const size = 192 // bytes of a user that an admin sees
	return &userArray{viewOf: func(id int64) view { return s.viewOf(&x.who, id) }, json: append(make([]byte, 0, size*n), '[')}
}

func (l *userArray) add(u *user) {
	if l.comma {
		l.json = append(l.json, ',')
	}
	l.comma = true
	l.json = appendUser(l.json, u, l.viewOf(u.id))
}

func (l *userArray) end() []byte { return append(l.json, "]\n"...) }

func (s *server) getUser(x *exchange) error {
	u, err := s.targetUser(x)
	if err != nil {
		return err
	}
	v := s.viewOf(&x.who, u.id)
	if v == viewAll && headers.MatchETag(x.r.Header.Values("If-None-Match"), u.version) {
		x.Header().Set("ETag", headers.ETag(u.version))
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	return x.sendUser(http.StatusOK, u, v)
}

type updateRequest struct {
	Username      *string `json:"username"`
	Email         *string `json:"email"`
	Password      *string `json:"password"`
	Role          *role   `json:"role"`
	Disabled      *bool   `json:"disabled"`
	EmailVerified *bool   `json:"email_verified"`
	proofRequest

	// Ignored, so that a client can send back the user that it read.
	ID          json.RawMessage `json:"id"`
	CreatedAt   json.RawMessage `json:"created_at"`
	UpdatedAt   json.RawMessage `json:"updated_at"`
	LastLoginAt json.RawMessage `json:"last_login_at"`
	VerifiedAt  json.RawMessage `json:"email_verified_at"`
	Pending     json.RawMessage `json:"pending"`
	NextEmail   json.RawMessage `json:"pending_email"`
	Service     json.RawMessage `json:"service"`
}

// updateUser changes the given fields of a user. A field with its current value is
// not a change: it requires no right, and a user who was adopted with a name that
// is invalid today can still change other fields.
func (s *server) updateUser(x *exchange) error {
	in, err := decode[updateRequest](x.body())
	if err != nil {
		return err
	}
	u, version, err := s.targetVersion(x)
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
	if err := s.requireProof(x, actsOf(&c, in.Password), in.proofRequest); err != nil {
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

// changeOf returns the change of a user that a body asks for. If mail is on, a new address of a
// member is the pending address until the member confirms it. The current address cancels a
// pending one.
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

// newName returns a given name or address without spaces around it, or nil if it is
// the current one, which may have them if it was adopted.
func newName(given *string, current string) *string {
	if given == nil || *given == current {
		return nil
	}
	return unlessSame(new(validate.TrimName(*given)), current)
}

// unlessSame returns given, or nil if it is the current value.
func unlessSame[T comparable](given *T, current T) *T {
	if given != nil && *given == current {
		return nil
	}
	return given
}

// targetVersion counts a change of the user that the path names, and returns the user. version
// is that of the user if the request's If-Match names it, and 0 if the request has no If-Match:
// the change then applies to any version. targetVersion returns errVersion for another version,
// or an error of count or targetUser.
func (s *server) targetVersion(x *exchange) (u *user, version int64, err error) {
	if err := s.count(x, x.who.id); err != nil {
		return nil, 0, err
	}
	if u, err = s.targetUser(x); err != nil {
		return nil, 0, err
	}
	tags := x.r.Header["If-Match"]
	switch {
	case len(tags) == 0:
		return u, 0, nil
	case headers.MatchETag(tags, u.version):
		return u, u.version, nil
	}
	return nil, 0, errVersion
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
	x.Header().Set("ETag", headers.ETag(u.version))
	body := appendUser(nil, &u, viewAll)
	body[len(body)-1] = ','
	return x.send(http.StatusOK, append(append(body, tokens[1:]...), '\n'))
}

// checkChange returns errInvalid if a new value of u, or its new password unless that
// is nil, is invalid. It returns errServiceUser for what a service user does not have.
func (s *userService) checkChange(c *change, u *user, password *string) error {
	if u.service && (password != nil || c.email != nil || c.verified != nil || c.pendingEmail != nil) {
		return errServiceUser
	}
	wrong := make(fieldErrors)
	username, email := u.username, u.email
	if c.username != nil {
		username = *c.username
		wrong.add("username", validate.Username(username))
	}
	if c.email != nil {
		email = *c.email
		wrong.add("email", validate.Email(email))
	}
	if c.pendingEmail != nil && *c.pendingEmail != "" {
		email = *c.pendingEmail
		wrong.add("email", validate.Email(email))
	}
	if c.role != nil {
		wrong.add("role", checkRole(*c.role))
	}
	if password != nil {
		wrong.add("password", s.policy.Check(*password, username, email))
	}
	return wrong.err()
}

func (s *server) deleteUser(x *exchange) error {
	in, err := decode[proofRequest](x.optionalBody())
	if err != nil {
		return err
	}
	u, version, err := s.targetVersion(x)
	if err != nil {
		return err
	}
	if err := s.requireProof(x, deleteUser, in); err != nil {
		return err
	}
	if err := s.store.deleteUser(x.r.Context(), x.caller(), u.id, version, s.wall().Unix()); err != nil {
		return err
	}
	s.endCookie(x, u.id)
	return x.sendMessage(http.StatusOK, "User deleted successfully")
}

// A view is the part of a user that a principal sees.
type view int

const (
	viewName  view = iota // id, username
	viewEmail             // and email
	viewAll               // and the rest
)

// viewOf returns the part that a principal sees of the user with this id.
func (s *server) viewOf(who *principal, id int64) view {
	switch {
	case who.id == id || who.role == admin:
		return viewAll
	case s.directory == directoryFull:
		return viewEmail
	}
	return viewName
}

// appendUser appends the part of a user that v shows, as JSON. It does not use
// encoding/json because a list spends most of its time here.
func appendUser(b []byte, u *user, v view) []byte {
	b = strconv.AppendInt(append(b, `{"id":`...), u.id, 10)
	b = appendjson.String(append(b, `,"username":`...), u.username)
	if v >= viewEmail && !u.service {
		b = appendjson.String(append(b, `,"email":`...), u.email)
	}
	if v == viewAll {
		b = appendjson.String(append(b, `,"role":`...), string(u.role))
		b = strconv.AppendBool(append(b, `,"disabled":`...), u.disabled)
		b = appendjson.Time(append(b, `,"created_at":`...), u.createdAt)
		b = appendjson.Time(append(b, `,"updated_at":`...), u.updatedAt)
		b = appendjson.Time(append(b, `,"last_login_at":`...), u.lastLoginAt)
		b = appendjson.Time(append(b, `,"email_verified_at":`...), u.emailVerifiedAt)
		if u.pendingEmail != "" {
			b = appendjson.String(append(b, `,"pending_email":`...), u.pendingEmail)
		}
		if u.pending {
			b = append(b, `,"pending":true`...)
		}
		if u.service {
			b = append(b, `,"service":true`...)
		}
	}
	return append(b, '}')
}

// sendUser answers with a user, and with its ETag if the view shows all of it.
func (x *exchange) sendUser(status int, u *user, v view) error {
	if v == viewAll {
		x.Header()["Etag"] = []string{headers.ETag(u.version)}
	}
	return x.send(status, append(appendUser(make([]byte, 0, 256), u, v), '\n'))
}

func userPath(id int64) string { return "/api/users/" + strconv.FormatInt(id, 10) }
