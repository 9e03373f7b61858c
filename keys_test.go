package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/apikey"
)

// allScopes are the scopes of keys. No write makes a key with the first, which permits nothing.
var allScopes = []keyScope{"", verifyScope, readScope, writeScope, adminScope}

// keyOf returns a key of a user, as the command line makes it, and its id.
func (s *service) keyOf(userID int64, scope keyScope, life time.Duration) (key string, id int64) {
	s.t.Helper()
	k := apiKey{userID: userID, name: "job", scope: cmpScope(scope)}
	key, err := s.addKey(s.t.Context(), console, &k, life)
	if err != nil {
		s.t.Fatal(err)
	}
	if scope != k.scope {
		if err := s.store.write(s.t.Context(), statement{Query: `UPDATE user_key SET scope = @scope WHERE id = @id`, Args: args{{"scope", string(scope)}, {"id", k.id}}}); err != nil {
			s.t.Fatal(err)
		}
	}
	return key, k.id
}

// cmpScope returns a scope that the store accepts for every user.
func cmpScope(scope keyScope) keyScope {
	if scope == "" || scope == adminScope {
		return readScope
	}
	return scope
}

// keyToRevoke returns the id of a new key of a user as text.
func (s *service) keyToRevoke(userID int64) string {
	s.t.Helper()
	_, id := s.keyOf(userID, readScope, time.Hour)
	return strconv.FormatInt(id, 10)
}

// addNamed adds a user as the command line does, and returns its id.
func (s *service) addNamed(name string, r role, service bool) int64 {
	s.t.Helper()
	u := user{username: name, role: r, service: service}
	if !service {
		u.email = name + "@example.com"
	}
	if err := s.addUser(s.t.Context(), console, &u, goodPassword); err != nil {
		s.t.Fatal(err)
	}
	return u.id
}

// makeKeyOver makes a key over HTTP and returns the reply.
func (s *service) makeKeyOver(token, path string, scope keyScope) reply {
	s.t.Helper()
	return s.do(token, "POST", path+"/keys", fmt.Sprintf(`{"name":"job","scope":%q,"expires_in":3600}`, scope))
}

// A scopeCase is one request of the table of scopes. The outcomes are the statuses for a key
// whose scope opens the route. Another scope is refused with 403.
type scopeCase struct {
	pattern string
	body    string
	scopes  string // that open the route, by their first letters; empty: none
	proof   bool   // the scope write is refused too
	// The outcomes for a member that asks for itself, a member that asks for another member, an
	// admin that asks for itself, for a member, and for another admin.
	want [5]int
}

var scopeCases = []scopeCase{
	// These routes do not look at the header.
	{"GET /healthz", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /readyz", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /openapi.json", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /console", "", "*", false, [5]int{404, 404, 404, 404, 404}}, // off
	{"GET /api/test", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /invite", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /reset", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /verify", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /change", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"GET /undo", "", "*", false, [5]int{200, 200, 200, 200, 200}},
	{"POST /api/email/verify", "{}", "*", false, [5]int{400, 400, 400, 400, 400}}, // see TestAKeyVerifiesNoAddress
	{"POST /api/email/change", "{}", "*", false, [5]int{400, 400, 400, 400, 400}},
	{"POST /api/email/undo", "{}", "*", false, [5]int{400, 400, 400, 400, 400}},
	{"POST /api/register", "{}", "*", false, [5]int{400, 400, 400, 400, 400}},
	{"POST /api/login", "{}", "*", false, [5]int{400, 400, 400, 400, 400}},
	{"POST /api/login/factor", "{}", "*", false, [5]int{400, 400, 400, 400, 400}},
	{"POST /api/refresh", "", "*", false, [5]int{401, 401, 401, 401, 401}}, // a key is not a refresh token
	{"POST /api/password/forgot", "{}", "*", false, [5]int{403, 403, 403, 403, 403}},
	{"POST /api/password/reset", "{}", "*", false, [5]int{400, 400, 400, 400, 400}},

	{"GET /metrics", "", "a", false, [5]int{403, 403, 200, 200, 200}},
	{"GET /api/events", "", "a", false, [5]int{403, 403, 200, 200, 200}},
	{"POST /api/logout", "", "", false, [5]int{}},
	{"GET /api/verify", "", "vrwa", false, [5]int{200, 200, 200, 200, 200}},
	{"POST /api/introspect", "token=x", "vwa", false, [5]int{}}, // see below
	{"GET /api/users", "", "rwa", false, [5]int{200, 200, 200, 200, 200}},
	{"POST /api/users", `{"username":"NEW","email":"NEW@example.com","password":"` + goodPassword + `"}`, "wa", false, [5]int{403, 403, 201, 201, 201}},
	{"POST /api/users", `{"username":"NEW","email":"NEW@example.com","password":"` + goodPassword + `","role":"admin"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"GET /api/users/{id}", "", "rwa", false, [5]int{200, 200, 200, 200, 200}},
	{"PUT /api/users/{id}", "{}", "wa", false, [5]int{200, 403, 200, 200, 200}},
	{"PATCH /api/users/{id}", "{}", "wa", false, [5]int{200, 403, 200, 200, 200}},
	{"PATCH /api/users/{id}", `{"username":"NEW"}`, "wa", true, [5]int{403, 403, 403, 200, 403}},
	{"PUT /api/users/{id}", `{"username":"NEW"}`, "wa", true, [5]int{403, 403, 403, 200, 403}},
	{"PATCH /api/users/{id}", `{"disabled":true}`, "wa", true, [5]int{403, 403, 403, 200, 403}},
	{"PATCH /api/users/{id}", `{"email_verified":true}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"PATCH /api/users/{id}", `{"email":"NEW@example.com"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"PATCH /api/users/{id}", `{"password":"another long one"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"PATCH /api/users/{id}", `{"role":"OTHER"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"PATCH /api/users/{id}", `{"username":"NEW","email":"NEW@example.com"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"PATCH /api/users/{id}", `{"username":"NEW","current_password":"` + goodPassword + `"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"PATCH /api/users/{id}", `{"current_password":"` + goodPassword + `"}`, "wa", false, [5]int{403, 403, 403, 403, 403}},
	{"DELETE /api/users/{id}", "", "a", false, [5]int{403, 403, 403, 200, 403}},
	{"DELETE /api/users/{id}", `{"current_password":"` + goodPassword + `"}`, "a", false, [5]int{403, 403, 403, 403, 403}},
	{"GET /api/users/{id}/sessions", "", "", false, [5]int{}},
	{"DELETE /api/users/{id}/sessions", "", "a", false, [5]int{403, 403, 403, 204, 403}},
	{"DELETE /api/users/{id}/sessions/{sid}", "", "a", false, [5]int{403, 403, 403, 204, 403}},
	{"GET /api/users/{id}/totp", "", "rwa", false, [5]int{200, 403, 200, 403, 403}},
	{"POST /api/users/{id}/totp", "", "", false, [5]int{}},
	{"POST /api/users/{id}/totp/confirm", `{"otp":"123456"}`, "", false, [5]int{}},
	{"DELETE /api/users/{id}/totp", "", "", false, [5]int{}},
	{"POST /api/users/{id}/recovery-codes", "", "", false, [5]int{}},
	{"GET /api/users/{id}/keys", "", "rwa", false, [5]int{200, 403, 200, 200, 200}},
	{"POST /api/users/{id}/keys", `{"name":"job","scope":"read","expires_in":3600}`, "", false, [5]int{}},
	{"DELETE /api/users/{id}/keys/{key}", "", "", false, [5]int{}},
	{"POST /api/users/{id}/reset-link", "{}", "", false, [5]int{}},
	{"POST /api/users/{id}/approve", "", "wa", false, [5]int{403, 403, 200, 200, 200}},
	{"GET /api/mail", "", "a", false, [5]int{403, 403, 200, 200, 200}},
	{"POST /api/mail/{mail}/retry", "", "a", false, [5]int{403, 403, 404, 404, 404}},
	{"GET /api/invitations", "", "rwa", false, [5]int{403, 403, 200, 200, 200}},
	{"POST /api/invitations", "{}", "", false, [5]int{}},
	{"POST /api/invitations/{invitation}/send", "", "", false, [5]int{}},
	{"POST /api/users/{id}/email/verify", "", "", false, [5]int{}},
	{"DELETE /api/invitations/{invitation}", "", "wa", false, [5]int{403, 403, 204, 204, 204}},
}

// The table of scopes: every route, with keys of every scope, of members and admins, for
// their own user and for others.
func TestScopesOfRoutes(t *testing.T) {
	t.Parallel()
	for _, rt := range new(server).routes() {
		cases := slices.DeleteFunc(slices.Clone(scopeCases), func(c scopeCase) bool { return c.pattern != rt.pattern })
		if len(cases) == 0 {
			t.Errorf("%s: no row", rt.pattern)
		}
		t.Run(rt.pattern, func(t *testing.T) {
			t.Parallel()
			s := newService(t, unlimited)
			s.addNamed("keeper", admin, false) // never the last admin
			for _, c := range cases {
				for i, of := range []struct {
					asker, other role
					itself       bool
				}{{member, member, true}, {member, member, false}, {admin, admin, true}, {admin, member, false}, {admin, admin, false}} {
					for _, scope := range allScopes {
						testScope(t, s, c, i, scope, of.asker, of.other, of.itself)
					}
				}
			}
		})
	}
}

// testScope sends one request of the table, and compares the answer with it.
func testScope(t *testing.T, s *service, c scopeCase, i int, scope keyScope, asker, other role, itself bool) {
	t.Helper()
	s.acts++
	name := fmt.Sprintf("caller%d", s.acts)
	caller := s.addNamed(name, asker, false)
	target := caller
	if !itself {
		name = fmt.Sprintf("other%d", s.acts)
		target = s.addNamed(name, other, false)
	}
	if strings.HasSuffix(c.pattern, "{sid}") {
		s.login(name)
	}
	key, _ := s.keyOf(caller, scope, time.Hour)
	method, path, _ := strings.Cut(c.pattern, " ")
	opposite := map[role]string{admin: "member", member: "admin"}[other]
	body := strings.NewReplacer("NEW", fmt.Sprintf("new%d", s.acts), "OTHER", opposite).Replace(c.body)
	want := c.want[i]
	letter := "-"
	if scope != "" {
		letter = string(scope[:1])
	}
	open := c.scopes == "*" || strings.Contains(c.scopes, letter)
	if !open || c.proof && scope == writeScope {
		want = 403
	} else if c.pattern == "POST /api/introspect" {
		if want = 403; scope == verifyScope || asker == admin {
			want = 200
		}
	}
	replace := map[string]string{"{id}": strconv.FormatInt(target, 10)}
	if strings.Contains(path, "{sid}") {
		replace["{sid}"] = strconv.FormatInt(scanStore[int64](t, s, fmt.Sprintf("SELECT coalesce(max(id), 999) FROM session WHERE user_id = %d", target)), 10)
	}
	if strings.Contains(path, "{invitation}") {
		replace["{invitation}"] = s.anInvitation()
	}
	if strings.Contains(path, "{key}") {
		replace["{key}"] = s.keyToRevoke(target)
	}
	for name, value := range replace {
		path = strings.Replace(path, name, value, 1)
	}
	var headers []string
	if c.pattern == "POST /api/introspect" {
		headers = []string{"Content-Type: application/x-www-form-urlencoded"}
	}
	before := scanStore[string](t, s, fmt.Sprintf("SELECT json_array(username, email, password_hash, role, disabled, email_verified_at) FROM user WHERE id = %d", target))
	r := s.do(key, method, path, body, headers...)
	what := fmt.Sprintf("%s %s with the scope %q of a %s, on %s", c.pattern, c.body, scope, asker, []string{"itself", "a member", "itself", "a member", "an admin"}[i])
	if r.status != want {
		t.Errorf("%s: got %d %s, want %d", what, r.status, r.body, want)
	}
	if !open && (r.field("code") != "insufficient_scope" || r.header.Get("WWW-Authenticate") != `Bearer error="insufficient_scope"`) {
		t.Errorf("%s: got %s, challenged with %q", what, r.body, r.header.Get("WWW-Authenticate"))
	}
	if want == 403 {
		after := scanStore[string](t, s, fmt.Sprintf("SELECT json_array(username, email, password_hash, role, disabled, email_verified_at) FROM user WHERE id = %d", target))
		if after != before {
			t.Errorf("%s was refused, but changed %s to %s", what, before, after)
		}
	}
}

// The write checks the key when it runs: what changed since the request came in counts.
func TestAWriteChecksTheKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change        string // of the key @key, its user @asker, or the user @other
		scope         keyScope
		requiresProof bool
		want          error
	}{
		{"", adminScope, true, nil},
		{"", adminScope, false, nil},
		{"", writeScope, false, nil},
		{"", writeScope, true, errKeyScope},
		{"", readScope, false, errKeyScope},
		{"", verifyScope, false, errKeyScope},
		{"", "", false, errKeyScope},
		{"DELETE FROM user_key WHERE id = @key", adminScope, true, errBadToken},
		{"UPDATE user_key SET expires_at = 1 WHERE id = @key", adminScope, true, errExpiredKey},
		{"UPDATE user_key SET scope = 'write' WHERE id = @key", adminScope, true, errKeyScope},
		{"UPDATE user_key SET scope = 'read' WHERE id = @key", writeScope, false, errKeyScope},
		{"UPDATE user SET role = 'member' WHERE id = @asker", adminScope, true, errForbidden},
		{"UPDATE user SET role = 'member' WHERE id = @asker", writeScope, false, errForbidden},
		{"UPDATE user SET disabled = 1 WHERE id = @asker", adminScope, true, errBadToken},
		{"UPDATE user SET pending = 1 WHERE id = @asker", adminScope, true, errBadToken},
		{"DELETE FROM user WHERE id = @asker", adminScope, true, errBadToken},
		{"UPDATE user SET role = 'admin' WHERE id = @other", adminScope, true, errKeyScope},
		{"UPDATE user SET role = 'admin' WHERE id = @other", writeScope, false, errKeyScope},
		{"DELETE FROM user WHERE id = @other", adminScope, true, errUserNotFound},
	} {
		t.Run(fmt.Sprintf("%s %s requiresProof=%t", c.change, c.scope, c.requiresProof), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.addNamed("keeper", admin, false)
			asker, other := s.addNamed("asker", admin, false), s.addNamed("other", member, false)
			_, id := s.keyOf(asker, c.scope, time.Hour)
			_, others := s.keyOf(other, readScope, time.Hour)
			by := caller{kind: keyCaller, user: asker, key: id, keyReadAt: s.clock.wall().Unix(), requiresProof: c.requiresProof}
			if c.change != "" {
				if err := s.store.write(t.Context(), statement{Query: c.change, Args: args{{"key", id}, {"asker", asker}, {"other", other}}}); err != nil {
					t.Fatal(err)
				}
			}
			_, err := s.store.updateUser(t.Context(), by, other, change{username: new("new")}, 0, 1)
			wantError(t, "updateUser", err, c.want)
			for name, err := range map[string]error{
				"addKey":    s.store.addKey(t.Context(), by, &apiKey{userID: other, scope: readScope, createdAt: 1, expiresAt: 2}, []byte("x")),
				"revokeKey": s.store.revokeKey(t.Context(), by, other, others, 1),
			} {
				if err == nil {
					t.Errorf("%s by a key succeeded", name)
				}
			}
		})
	}
	s := newService(t)
	asker := s.addNamed("asker", admin, false)
	_, id := s.keyOf(asker, adminScope, time.Hour)
	by := caller{kind: keyCaller, user: asker, key: id, requiresProof: true}
	wantError(t, "an act that is not about a user", s.store.addInvitation(t.Context(), by, &invitation{role: member, usesLeft: 1}, []byte("x")), errKeyScope)
}

func TestAKeyIsShownOnce(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, ann := s.member("ann")
	r := s.makeKeyOver(ann, path, writeScope).want(t, 201, "")
	key := r.field("key")
	if !regexp.MustCompile(`^ud_[0-9A-Za-z]{36}$`).MatchString(key) || !apikey.Valid(key) {
		t.Fatalf("the key is %q", key)
	}
	if r.field("prefix") != key[:8] || r.field("scope") != "write" || r.field("name") != "job" || r.field("expires_at") != "2026-05-04T04:02:01Z" {
		t.Errorf("made %s", r.body)
	}
	s.do(key, "GET", path, "").want(t, 200, "")
	for token, what := range map[string]string{ann: "a session", key: "the key"} {
		r := s.do(token, "GET", path+"/keys", "").want(t, 200, "")
		if len(r.list(t, "id")) != 1 || strings.Contains(r.body, key) || strings.Contains(r.body, `"key"`) {
			t.Errorf("%s lists %s", what, r.body)
		}
	}
	dump := scanStore[string](t, s, "SELECT group_concat(hex(hash) || name || prefix) FROM user_key")
	if strings.Contains(dump, key[8:]) {
		t.Errorf("the database has the key: %s", dump)
	}
}

// GitHub and others search source code for the documented pattern.
func TestScannersFindKeysInText(t *testing.T) {
	t.Parallel()
	page := documentation(t)["docs/api-keys.md"]
	pattern := regexp.MustCompile("`(\\S*ud_\\[0-9A-Za-z\\]\\{36\\}\\S*)`").FindStringSubmatch(page)
	if pattern == nil {
		t.Fatal("docs/api-keys.md has no pattern")
	}
	key := apikey.New()
	text := "export TOKEN=" + key + "\ncurl -H 'Authorization: Bearer " + key + "' https://id.example.com/api/users # ud_short\nurl=\"https://x/?k=" + key + "\";"
	if found := regexp.MustCompile(pattern[1]).FindAllString(text, -1); !slices.Equal(found, []string{key, key, key}) {
		t.Errorf("%s finds %q", pattern[1], found)
	}
}

func TestMakingAKeyRequiresProofAndValidFields(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, ann := s.member("ann")
	other, bob := s.member("bob")
	_, root := s.admin("root")
	for body, field := range map[string]string{
		`{"scope":"read","expires_in":3600}`:                                                "name",
		`{"name":" ","scope":"read","expires_in":3600}`:                                     "name",
		`{"name":"a\u0007","scope":"read","expires_in":3600}`:                               "name",
		`{"name":"` + strings.Repeat("x", 81) + `","scope":"read","expires_in":3600}`:       "name",
		`{"name":"job","expires_in":3600}`:                                                  "scope",
		`{"name":"job","scope":"","expires_in":3600}`:                                       "scope",
		`{"name":"job","scope":"admin","expires_in":3600}`:                                  "scope",
		`{"name":"job","scope":"READ","expires_in":3600}`:                                   "scope",
		`{"name":"job","scope":"read write","expires_in":3600}`:                             "scope",
		`{"name":"job","scope":"read"}`:                                                     "expires_in",
		`{"name":"job","scope":"read","expires_in":0}`:                                      "expires_in",
		`{"name":"job","scope":"read","expires_in":3599}`:                                   "expires_in",
		`{"name":"job","scope":"read","expires_in":` + fmt.Sprint(366*24*3600+1) + `}`:      "expires_in",
		`{"name":"job","scope":"read","expires_in":-9223372036854775808}`:                   "expires_in",
		`{"name":"job","scope":"read","expires_in":9223372036854775807}`:                    "expires_in",
		`{"name":"job","scope":"admin","expires_in":3600,"current_password":"wrong thing"}`: "scope",
	} {
		for _, token := range []string{ann, root} {
			r := s.do(token, "POST", path+"/keys", body).want(t, 400, "invalid_fields")
			if !strings.Contains(r.body, `"`+field+`":`) {
				t.Errorf("%s: %s", body, r.body)
			}
		}
	}
	// The body does not choose the user.
	for _, member := range []string{"user_id", "id", "userId", "user", "prefix", "hash", "created_at"} {
		s.do(ann, "POST", path+"/keys", fmt.Sprintf(`{"name":"job","scope":"read","expires_in":3600,%q:2}`, member)).want(t, 400, "unknown_member")
	}
	s.makeKeyOver(bob, path, readScope).want(t, 403, "forbidden")
	s.makeKeyOver("", path, readScope).want(t, 401, "missing_token")
	s.makeKeyOver(refreshed(s, "ann"), path, readScope).want(t, 401, "fresh_login_required")
	s.makeKeyOver(root, "/api/users/999", readScope).want(t, 404, "user_not_found")
	// An admin makes a key for another user, and it has the rights of that user.
	key := s.makeKeyOver(root, path, writeScope).want(t, 201, "").field("key")
	s.do(key, "GET", "/api/events", "").want(t, 403, "insufficient_scope")
	s.do(key, "GET", "/api/invitations", "").want(t, 403, "forbidden")
	s.do(key, "GET", other+"/keys", "").want(t, 403, "forbidden")
	if who := s.do(key, "GET", "/api/users/me", "").want(t, 200, "").field("username"); who != "ann" {
		t.Errorf("the key is of %s", who)
	}
	// Another user's key cannot be revoked, with any path.
	id := s.do(ann, "GET", path+"/keys", "").list(t, "id")[0]
	s.do(bob, "DELETE", path+"/keys/"+id, "").want(t, 403, "forbidden")
	s.do(bob, "DELETE", other+"/keys/"+id, "").want(t, 404, "key_not_found")
	s.do(bob, "DELETE", other+"/keys/0"+id, "").want(t, 404, "key_not_found")
	s.do(key, "GET", path, "").want(t, 200, "")
	// Revoking requires no proof.
	s.do(refreshed(s, "ann"), "DELETE", path+"/keys/"+id, "").want(t, 204, "")
	s.do(key, "GET", path, "").want(t, 401, "invalid_token")
	s.do(ann, "DELETE", path+"/keys/"+id, "").want(t, 404, "key_not_found")
}

// A key is only accepted in the header Authorization.
func TestAKeyIsAcceptedOnlyInTheHeader(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.keyOf(s.addNamed("ann", member, false), readScope, time.Hour)
	s.do("", "GET", "/api/users?access_token="+key, "").want(t, 401, "missing_token")
	s.do("", "GET", "/api/users?token="+key, "").want(t, 401, "missing_token")
	s.do("", "GET", "/api/verify", "", "X-Api-Key: "+key).want(t, 401, "missing_token")
	s.do("", "GET", "/api/verify", "", "Authorization: Basic "+key).want(t, 401, "missing_token")
	s.do("", "GET", "/api/verify", "", "Authorization: bearer  "+key).want(t, 200, "")
	s.do("", "POST", "/api/refresh", `{"refresh_token":"`+key+`"}`).want(t, 401, "invalid_token")
}

// A mistyped key costs no look-up. The store prepares the statement of a look-up when it first
// runs.
func TestAMistypedKeyCostsNoLookup(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := apikey.New()
	lookups := func() int {
		n := 0
		for _, query := range s.store.reads.Queries() {
			if strings.Contains(query, "user_key") {
				n++
			}
		}
		return n
	}
	for i := 3; i < len(key); i++ {
		mistyped := []byte(key)
		if mistyped[i]++; mistyped[i] == '9'+1 || mistyped[i] == 'Z'+1 || mistyped[i] == 'z'+1 {
			mistyped[i] = '-'
		}
		s.do(string(mistyped), "GET", "/api/verify", "").want(t, 401, "invalid_token")
	}
	for _, text := range []string{"ud_", key[:38], key + "0", "ud_" + strings.Repeat("0", 36), "UD_" + key[3:]} {
		s.do(text, "GET", "/api/verify", "").want(t, 401, "invalid_token")
	}
	if n := lookups(); n != 0 {
		t.Errorf("mistyped keys made %d look-ups", n)
	}
	s.do(key, "GET", "/api/verify", "").want(t, 401, "invalid_token")
	if n := lookups(); n != 1 {
		t.Errorf("an unknown key made %d look-ups: this test counts the wrong thing", n)
	}
}

func TestWhenAKeyEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *service, id int64, root, path string){
		"revoked by an admin": func(s *service, id int64, root, path string) {
			s.do(root, "DELETE", path+"/keys/"+strconv.FormatInt(id, 10), "").want(s.t, 204, "")
		},
		"the user is disabled": func(s *service, _ int64, root, path string) {
			s.do(root, "PATCH", path, `{"disabled":true}`).want(s.t, 200, "")
		},
		"the user is disabled and enabled": func(s *service, _ int64, root, path string) {
			s.do(root, "PATCH", path, `{"disabled":true}`).want(s.t, 200, "")
			s.do(root, "PATCH", path, `{"disabled":false}`).want(s.t, 200, "")
		},
		"the user is deleted": func(s *service, _ int64, root, path string) {
			s.do(root, "DELETE", path, "").want(s.t, 200, "")
		},
		"the address is restored": func(s *service, _ int64, _, path string) {
			code := newCode(undoCode)
			hash, err := hashCode(undoCode, code)
			if err != nil {
				s.t.Fatal(err)
			}
			values := args{{"hash", hash}, {"now", s.clock.wall().Unix()}, {"path", path}}
			if err := s.store.write(s.t.Context(),
				statement{Query: insertCode + `SELECT @hash, 'uu', id, email, 0, 0, @now, @now + 60 FROM user WHERE '/api/users/' || id = @path`, Args: values},
				statement{Query: `UPDATE user_code SET old_email = 'old@example.com'`}); err != nil {
				s.t.Fatal(err)
			}
			s.do("", "POST", "/api/email/undo", `{"code":"`+code+`"}`).want(s.t, 200, "")
		},
		"a reset by a link of an admin": func(s *service, _ int64, root, path string) {
			s.do("", "POST", "/api/password/reset", `{"code":"`+s.resetLink(root, path)+`","password":"another long one"}`).want(s.t, 200, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			_, root := s.admin("root")
			path, ann := s.member("ann")
			other, _ := s.member("bob")
			key := s.makeKeyOver(ann, path, readScope).want(t, 201, "").field("key")
			kept := s.makeKeyOver(root, other, readScope).want(t, 201, "").field("key")
			s.do(key, "GET", "/api/verify", "").want(t, 200, "")
			end(s, scanStore[int64](t, s, "SELECT min(id) FROM user_key"), root, path)
			s.do(key, "GET", "/api/verify", "").want(t, 401, "invalid_token")
			s.do(kept, "GET", "/api/verify", "").want(t, 200, "")
			if n := scanStore[int](t, s, "SELECT count(*) FROM user_key"); n != 1 {
				t.Errorf("%d keys are left, want the other user's", n)
			}
		})
	}
}

func TestAPasswordChangeKeepsKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, ann := s.member("ann")
	key := s.makeKeyOver(ann, path, readScope).want(t, 201, "").field("key")
	s.do(ann, "PATCH", path, `{"password":"another long one"}`).want(t, 200, "")
	s.do(key, "GET", "/api/verify", "").want(t, 200, "")
	// The token that changed the password may be a thief's too, so it makes no keys.
	s.makeKeyOver(ann, path, readScope).want(t, 401, "fresh_login_required")
}

// A mailed reset ends the keys only if it is the first proof of the address: before, a
// stranger may have registered the address and made keys.
func TestAMailedResetEndsKeysOfAnUnprovenAddress(t *testing.T) {
	t.Parallel()
	for _, verified := range []int64{0, 1} {
		s := newService(t)
		path, ann := s.member("ann")
		s.register("bob") // whose address is not verified
		key := s.makeKeyOver(ann, path, readScope).want(t, 201, "").field("key")
		code := newCode(resetMailCode)
		hash, err := hashCode(resetMailCode, code)
		if err != nil {
			t.Fatal(err)
		}
		now := s.clock.wall().Unix()
		values := args{{"hash", hash}, {"now", now}, {"verified", verified}}
		if err := s.store.write(t.Context(),
			statement{Query: `UPDATE user SET email_verified_at = @verified WHERE id = 1`, Args: values},
			statement{Query: insertCode + `SELECT @hash, 'ur', id, email, 0, 0, @now, @now + 60 FROM user WHERE id = 1`, Args: values}); err != nil {
			t.Fatal(err)
		}
		s.do("", "POST", "/api/password/reset", `{"code":"`+code+`","password":"another long one"}`).want(t, 200, "")
		want := 200
		if verified == 0 {
			want = 401
		}
		s.do(key, "GET", "/api/verify", "").want(t, want, "")
		if at := scanStore[int64](t, s, "SELECT email_verified_at FROM user WHERE id = 1"); at != max(verified, (1-verified)*now) {
			t.Errorf("the address is verified since %d", at)
		}
		if at := scanStore[int64](t, s, "SELECT email_verified_at FROM user WHERE id = 2"); at != 0 {
			t.Errorf("the address of another user is verified since %d", at)
		}
	}
}

// A verify link is for the user itself, which a key does not prove.
func TestAKeyVerifiesNoAddress(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := s.addNamed("ann", admin, false)
	code := newCode(verifyCode)
	hash, err := hashCode(verifyCode, code)
	if err != nil {
		t.Fatal(err)
	}
	now := s.clock.wall().Unix()
	if err := s.store.write(t.Context(), statement{Query: insertCode + `SELECT @hash, 'uv', id, email, 0, 0, @now, @now + 60 FROM user`, Args: args{{"hash", hash}, {"now", now}}}); err != nil {
		t.Fatal(err)
	}
	for _, scope := range allScopes {
		key, _ := s.keyOf(id, scope, time.Hour)
		s.do(key, "POST", "/api/email/verify", `{"code":"`+code+`"}`).want(t, 403, "insufficient_scope")
	}
	s.do(s.login("ann"), "POST", "/api/email/verify", `{"code":"`+code+`"}`).want(t, 200, "")
}

// A demotion ends the rights of keys, and keys with the scope admin do not come back.
func TestADemotionEndsTheRightsOfKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	id := s.addNamed("ann", admin, false)
	make := func(scope keyScope) string {
		key, err := s.addKey(t.Context(), console, &apiKey{userID: id, name: "job", scope: scope}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	strong, weak := make(adminScope), make(writeScope)
	s.do(strong, "GET", "/api/events", "").want(t, 200, "")
	s.do(weak, "GET", "/api/invitations", "").want(t, 200, "")
	s.do(root, "PATCH", userPath(id), `{"role":"member"}`).want(t, 200, "")
	s.do(strong, "GET", "/api/events", "").want(t, 401, "invalid_token")
	s.do(weak, "GET", "/api/invitations", "").want(t, 403, "forbidden")
	s.do(root, "PATCH", userPath(id), `{"role":"admin"}`).want(t, 200, "")
	s.do(strong, "GET", "/api/events", "").want(t, 401, "invalid_token")
	s.do(weak, "GET", "/api/invitations", "").want(t, 200, "")
}

func TestExpiredKeysAreKeptFor30Days(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := s.addNamed("ann", member, false)
	key, _ := s.keyOf(id, readScope, time.Hour)
	forever, _ := s.keyOf(id, readScope, 0)
	s.clock.add(time.Hour - time.Second)
	s.do(key, "GET", "/api/verify", "").want(t, 200, "")
	s.clock.add(time.Second)
	if r := s.do(key, "GET", "/api/verify", "").want(t, 401, "expired_key"); r.header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
		t.Errorf("challenged with %q", r.header.Get("WWW-Authenticate"))
	}
	sweep := func(want string) {
		t.Helper()
		if err := s.store.sweepKeys(t.Context(), s.clock.wall().Unix()); err != nil {
			t.Fatal(err)
		}
		s.do(key, "GET", "/api/verify", "").want(t, 401, want)
	}
	s.clock.add(30*24*time.Hour - time.Second)
	sweep("expired_key")
	s.clock.add(time.Second)
	sweep("invalid_token")
	s.clock.add(20 * 366 * 24 * time.Hour)
	sweep("invalid_token")
	s.do(forever, "GET", "/api/verify", "").want(t, 200, "")
}

// Expired keys do not count toward the limit, and only the user's own are deleted.
func TestTheLastExpiredKeysAreKept(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ann, bob := s.addNamed("ann", member, false), s.addNamed("bob", member, false)
	for range maxUserKeys {
		s.keyOf(bob, readScope, time.Hour)
	}
	for range 3 {
		for range maxUserKeys {
			s.keyOf(ann, readScope, time.Hour)
		}
		s.clock.add(time.Hour)
	}
	s.keyOf(ann, readScope, time.Hour)
	s.keyOf(bob, readScope, time.Hour)
	for id, want := range map[int64]int{ann: maxUserKeys + 1, bob: maxUserKeys + 1} {
		if n := scanStore[int](t, s, fmt.Sprintf("SELECT count(*) FROM user_key WHERE user_id = %d", id)); n != want {
			t.Errorf("user %d has %d keys, want %d", id, n, want)
		}
	}
}

// 64 clients make the last keys concurrently. The limit is part of the write.
func TestAUserHasAtMost50Keys(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, ann := s.member("ann")
	other, bob := s.member("bob")
	s.makeKeyOver(bob, other, readScope).want(t, 201, "")
	var group sync.WaitGroup
	replies := make(chan reply, 64)
	for range 64 {
		group.Go(func() { replies <- s.makeKeyOver(ann, path, readScope) })
	}
	group.Wait()
	close(replies)
	made := 0
	for r := range replies {
		if r.status == 201 {
			made++
		} else {
			r.want(t, 409, "too_many_keys")
		}
	}
	if made != maxUserKeys {
		t.Errorf("made %d keys", made)
	}
	wantError(t, "the command line", func() error {
		_, err := s.addKey(t.Context(), console, &apiKey{userID: 1, name: "job", scope: readScope}, time.Hour)
		return err
	}(), errKeyLimit)
	s.change(`UPDATE user_key SET expires_at = 0`) // they never expire
	s.makeKeyOver(ann, path, readScope).want(t, 409, "too_many_keys")
	s.makeKeyOver(bob, other, readScope).want(t, 201, "")
}

// A key that is revoked while clients use it is refused from the answer of the revocation on.
func TestAKeyIsRevokedWhileItIsUsed(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	_, root := s.admin("root")
	boss := s.addNamed("boss", admin, false)
	key, id := s.keyOf(boss, adminScope, time.Hour)
	var group sync.WaitGroup
	begin, revoked := make(chan struct{}), make(chan struct{})
	for i := range 8 {
		target := userPath(s.addNamed(fmt.Sprintf("leaver%d", i), member, false))
		group.Go(func() {
			<-begin
			for j, late := 0, false; ; j++ {
				select {
				case <-revoked:
					late = true
				default:
				}
				r := s.do(key, "PATCH", target, fmt.Sprintf(`{"username":"leaver%d-%d"}`, i, j))
				switch {
				case r.status == 401 && r.field("code") == "invalid_token":
					return
				case late || r.status != 200:
					t.Errorf("got %d %s, after the revocation: %t", r.status, r.body, late)
					return
				}
			}
		})
	}
	close(begin)
	s.do(root, "DELETE", userPath(boss)+"/keys/"+strconv.FormatInt(id, 10), "").want(t, 204, "")
	close(revoked)
	group.Wait()
}

// Keys that are not valid never slow down the logins or the other requests of their network.
func TestWrongKeysHaveAnAllowanceOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	good, _ := s.keyOf(1, readScope, time.Hour)
	s.limiter.allowances[badKeys].Burst = 3
	for range 3 {
		s.do(apikey.New(), "PATCH", path, "{}").want(t, 401, "invalid_token")
	}
	for _, wrong := range []string{apikey.New(), "ud_x"} {
		r := s.do(wrong, "PATCH", path, "{}").want(t, 429, "too_many_requests")
		if r.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	s.do(good, "GET", path, "").want(t, 200, "")
	for i := range s.limiter.allowances {
		if a := &s.limiter.allowances[i]; i != int(badKeys) && i != int(noLimit) && a.CheckAll(s.limiter.networkKeys("127.0.0.1"), 0) != nil {
			t.Errorf("allowance %d is used up", i)
		}
	}
	s.do(s.login("ann"), "PATCH", path, "{}").want(t, 200, "")
	metrics := s.do(func() string { _, root := s.admin("root"); return root }(), "GET", "/metrics", "").body
	for _, line := range []string{"userd_bad_keys_total 5\n", "userd_api_keys 1\n", `userd_limited_total{limit="key"} 2` + "\n"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

func TestTheUseOfAKeyIsRecordedOnceAnHour(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	ann := s.addNamed("ann", member, false)
	key, id := s.keyOf(ann, readScope, 0)
	_, unused := s.keyOf(ann, readScope, 0)
	last := func() string {
		// A write after the queued one shows that it has run.
		if err := s.store.write(t.Context(), statement{Query: `UPDATE counter SET id = id`}); err != nil {
			t.Fatal(err)
		}
		return scanStore[string](t, s, fmt.Sprintf("SELECT last_used_at || ' ' || last_address FROM user_key WHERE id = %d", id))
	}
	if got := last(); got != "0 " {
		t.Errorf("an unused key was last used at %s", got)
	}
	first := fmt.Sprint(s.clock.wall().Unix(), " 192.0.2.1")
	for _, step := range []time.Duration{0, time.Minute, 59*time.Minute - time.Second} {
		s.clock.add(step)
		s.do(key, "GET", "/api/verify", "", "X-Forwarded-For: 192.0.2.1").want(t, 200, "")
		if got := last(); got != first {
			t.Errorf("last used at %s, want %s", got, first)
		}
	}
	s.clock.add(time.Second)
	s.do(key, "GET", "/api/verify", "", "X-Forwarded-For: 192.0.2.2").want(t, 200, "")
	second := fmt.Sprint(s.clock.wall().Unix(), " 192.0.2.2")
	s.store.touchKey(id, "192.0.2.3", s.wall().Unix()+1) // of a request that read the row before the last note
	if got := last(); got != second {
		t.Errorf("last used at %s, want %s", got, second)
	}
	if id = unused; last() != "0 " {
		t.Errorf("another key was last used at %s", last())
	}
}

// Neither a key nor its name is in logs, events, errors or metrics.
func TestKeysAreNotLogged(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.mailOn = true })
	var log bytes.Buffer
	var mu sync.Mutex
	s.log = slog.New(slog.NewJSONHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, root := s.admin("root")
	path, ann := s.member("ann")
	if err := s.store.write(t.Context(), statement{Query: `UPDATE user SET email_verified_at = 1`}); err != nil {
		t.Fatal(err)
	}
	r := s.do(ann, "POST", path+"/keys", `{"name":"secret-job","scope":"write","expires_in":3600}`).want(t, 201, "")
	key, id := r.field("key"), r.field("id")
	admins, _ := s.keyOf(1, adminScope, time.Hour)
	for _, token := range []string{key, key[:38] + "x", apikey.New()} {
		for _, p := range []string{path, "/api/events", "/" + token, "/api/users?q=" + token} {
			if body := s.do(token, "GET", p, "").body; strings.Contains(body, key[3:]) {
				t.Errorf("%s answers %s", p, body)
			}
		}
	}
	s.do(admins, "PATCH", path, `{"disabled":true}`).want(t, 200, "")
	events := s.do(root, "GET", "/api/events?user=2", "").want(t, 200, "").body
	for _, want := range []string{`"key_created","at":"2026-05-04T03:02:01Z","actor_id":2,"user_id":2,`, `"changes":["key=` + id + `","scope=write"]`, `"changes":["disabled=true","by_key=2"]`} {
		if !strings.Contains(events, want) {
			t.Errorf("the events lack %s: %s", want, events)
		}
	}
	mails := scanStore[string](t, s, "SELECT group_concat(kind || ' ' || detail) FROM user_mail WHERE user_id = 2")
	if !strings.Contains(mails, "changed an API key was created") {
		t.Errorf("the mails are %s", mails)
	}
	metrics := s.do(root, "GET", "/metrics", "").body
	mu.Lock()
	defer mu.Unlock()
	for _, text := range []string{log.String(), events, mails, metrics} {
		if strings.Contains(text, key[3:]) || strings.Contains(text, "secret-job") {
			t.Errorf("found the key or its name in %s", text)
		}
	}
	if !strings.Contains(log.String(), `"user":2`) {
		t.Errorf("the log lacks the user: %s", log.String())
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

// introspectWith introspects a token.
func (s *service) introspectWith(token, form string) reply {
	return s.do(token, "POST", "/api/introspect", form, "Content-Type: application/x-www-form-urlencoded")
}

func TestIntrospection(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	_, root := s.admin("root")
	path, _ := s.register("ann")
	bot := s.addNamed("bot", member, true)
	verifier, _ := s.keyOf(bot, verifyScope, 0)
	access, refresh := s.pair("ann")
	key, keyID := s.keyOf(2, writeScope, time.Hour)
	now := s.clock.wall().Unix()
	const inactive = `{"active":false}` + "\n"
	for _, asker := range []string{root, verifier} {
		for token, want := range map[string]string{
			access:                   fmt.Sprintf(`{"active":true,"sub":"2","username":"ann","role":"member","exp":%d,"iat":%d,"sid":"2","token_type":"Bearer"}`+"\n", now+900, now),
			key:                      fmt.Sprintf(`{"active":true,"sub":"2","username":"ann","role":"member","scope":"write","exp":%d,"iat":%d,"token_type":"Bearer"}`+"\n", now+3600, now),
			verifier:                 fmt.Sprintf(`{"active":true,"sub":"3","username":"bot","role":"member","scope":"verify","iat":%d,"token_type":"Bearer"}`+"\n", now),
			refresh:                  inactive,
			apikey.New():             inactive,
			"ud_x":                   inactive,
			"x":                      inactive,
			access + "x":             inactive,
			strings.Repeat("x", 9e3): inactive,
		} {
			if r := s.introspectWith(asker, "token="+token+"&token_type_hint=refresh_token"); r.status != 200 || r.body != want {
				t.Errorf("%.20s…: got %d %s, want %s", token, r.status, r.body, want)
			}
		}
	}
	for form, code := range map[string]string{"": "missing_fields", "token=": "missing_fields", "token=a&token=b": "missing_fields", "tok=en": "missing_fields", "token=%": "malformed_body"} {
		r := s.ask(func() *http.Request {
			r, _ := http.NewRequest("POST", s.url+"/api/introspect", strings.NewReader(form))
			r.Header.Set("Authorization", "Bearer "+verifier)
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
			return r
		}())
		r.want(t, 400, code)
	}
	s.do(verifier, "POST", "/api/introspect", `{"token":"x"}`).want(t, 415, "unsupported_media_type")
	s.do(verifier, "POST", "/api/introspect?token="+access, "x").want(t, 400, "bad_parameter")
	reader, _ := s.keyOf(2, readScope, time.Hour)
	s.introspectWith(reader, "token=x").want(t, 403, "insufficient_scope")
	s.introspectWith(access, "token=x").want(t, 403, "forbidden")
	s.introspectWith("", "token=x").want(t, 401, "missing_token")
	// A question is not a use.
	if at := scanStore[int64](t, s, fmt.Sprint("SELECT last_used_at FROM user_key WHERE id = ", keyID)); at != 0 {
		t.Errorf("the key was used at %d", at)
	}
	s.do(root, "PATCH", path, `{"disabled":true}`).want(t, 200, "")
	for _, token := range []string{access, key} {
		if r := s.introspectWith(verifier, "token="+token); r.body != inactive {
			t.Errorf("after the user was disabled: %s", r.body)
		}
	}
}

func TestAnIntrospectionChecksTheSession(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	s.register("bob")
	verifier, _ := s.keyOf(s.addNamed("bot", member, true), verifyScope, 0)
	access, _ := s.pair("bob")
	s.introspectWith(verifier, "token="+access).want(t, 200, "")
	s.change(`UPDATE session SET user_id = 1`)
	if r := s.introspectWith(verifier, "token="+access); r.body != `{"active":false}`+"\n" {
		t.Errorf("the session of another user: %s", r.body)
	}
	s.keepLog()
	s.change(`ALTER TABLE session RENAME TO gone`)
	s.introspectWith(verifier, "token="+access).want(t, 503, "unavailable")
}

func TestAServiceUserOnlyHasKeys(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, func(c *settings) { c.mailOn, c.directory = true, directoryFull })
	_, root := s.admin("root")
	_, ann := s.member("ann")
	id := s.addNamed("bot", member, true)
	path := userPath(id)
	stored := scanStore[string](t, s, fmt.Sprint("SELECT email FROM user WHERE id = ", id))
	key, _ := s.keyOf(id, writeScope, 0)
	for _, token := range []string{root, ann, key} {
		for _, p := range []string{path, "/api/users", "/api/users?q=bot", "/api/users?limit=9"} {
			r := s.do(token, "GET", p, "").want(t, 200, "")
			if strings.Contains(r.body, "service:") || !strings.Contains(r.body, `"bot"`) {
				t.Errorf("%s: %s", p, r.body)
			}
			if own := regexp.MustCompile(`{[^{]*"bot"[^}]*}`).FindString(r.body); strings.Contains(own, "email\"") || strings.Contains(own, `"service":true`) == (token == ann) {
				t.Errorf("%s shows %s", p, own)
			}
		}
	}
	for _, q := range []string{"service", stored[:12]} {
		if r := s.do(root, "GET", "/api/users?q="+q, ""); r.body != "[]\n" {
			t.Errorf("a search for %s finds %s", q, r.body)
		}
	}
	for _, name := range []string{"bot", stored, strings.ToUpper(stored), ""} {
		for _, password := range []string{goodPassword, serviceHash, "x"} {
			if r := s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, password)); r.status < 400 || name != "" && r.field("code") != "invalid_credentials" {
				t.Errorf("a login as %q: %s", name, r.body)
			}
		}
	}
	err := func() error {
		_, err := s.store.startSession(t.Context(), &session{userID: id}, 0, "", provenFactor{})
		return err
	}()
	wantError(t, "startSession", err, errCredentials)
	s.do(root, "POST", path+"/reset-link", "").want(t, 409, "service_user")
	s.do(root, "POST", path+"/email/verify", "").want(t, 409, "service_user")
	for _, body := range []string{`{"email":"bot@example.com"}`, `{"password":"another long one"}`, `{"email_verified":true}`} {
		s.do(root, "PATCH", path, body).want(t, 409, "service_user")
	}
	for _, c := range []change{{email: new("bot@example.com")}, {hash: new("x")}, {verified: new(true)}, {pendingEmail: new("bot@example.com")}} {
		_, err := s.store.updateUser(t.Context(), console, id, c, 0, 1)
		wantError(t, "updateUser", err, errServiceUser)
	}
	// What was read can be sent back.
	s.do(root, "PUT", path, s.do(root, "GET", path, "").body).want(t, 200, "")
	s.do(root, "PATCH", path, `{"username":"robot","role":"admin"}`).want(t, 200, "")
	s.do("", "POST", "/api/password/forgot", `{"login":"robot"}`).want(t, 202, "")
	o := &outbox{store: s.store, wall: s.wall, log: s.log, outcomes: s.stats.mails}
	if _, _, err := o.facts(t.Context(), &queuedMail{kind: resetMail, login: "robot"}, strangerBudget); !errors.Is(err, errMailEnded) {
		t.Errorf("a mail to a service user: %v", err)
	}
	// A service user is not the last admin, because it cannot log in.
	s.do(root, "PATCH", "/api/users/me", `{"role":"member"}`).want(t, 409, "last_admin")
	s.do(root, "DELETE", path, "").want(t, 200, "")
	s.do(key, "GET", "/api/verify", "").want(t, 401, "invalid_token")
}

func TestTokenCommands(t *testing.T) {
	t.Parallel()
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	sh.run(0, goodPassword, "user", "add", "-admin", "root", "root@example.com")
	sh.run(0, goodPassword, "user", "add", "ann", "ann@example.com")
	if out, _ := sh.run(0, "", "user", "add", "-service", "bot"); out != "added member bot, a service user, id 3\n" {
		t.Errorf("user add -service: %s", out)
	}
	sh.run(2, "", "user", "add", "-service", "bot2", "bot2@example.com")
	sh.run(2, "", "user", "add", "ann2")
	sh.run(1, "", "user", "add", "-service", "bot")
	sh.run(1, "", "user", "add", "-service", "a b")
	sh.run(1, goodPassword, "user", "passwd", "bot")
	sh.run(1, "", "user", "set", "bot", "-email", "bot@example.com")
	sh.run(1, "", "user", "reset-link", "bot")
	if _, text := sh.run(1, "000000\n", "user", "totp", "-on", "bot"); !strings.Contains(text, "A service user has neither") {
		t.Errorf("user totp -on: %s", text)
	}

	out, text := sh.run(0, "", "token", "add", "ann", "backup job")
	if !apikey.Valid(strings.TrimSuffix(out, "\n")) || !strings.Contains(text, "key 1 of ann, with the scope read, valid until 20") {
		t.Errorf("token add: %s%s", out, text)
	}
	sh.run(0, "", "token", "add", "-scope", "admin", "-expires", "never", "root", "ops")
	for _, name := range []string{"ann", "bot"} {
		if out, text := sh.run(1, "", "token", "add", "-scope", "admin", name, "x"); out != "" || !strings.Contains(text, name+" is a member: only an admin can have a key with the scope admin") {
			t.Errorf("token add -scope admin: %s%s", out, text)
		}
	}
	sh.run(0, "", "user", "set", "-role", "admin", "bot")
	sh.run(0, "", "token", "add", "-scope", "admin", "-expires", "366d", "bot", "x")
	for _, args := range []string{"-scope all ann x", "-expires 367d ann x", "-expires 59m ann x", "-expires -1d ann x", "-expires forever ann x", "ann"} {
		sh.run(2, "", append([]string{"token", "add"}, strings.Fields(args)...)...)
	}
	sh.run(1, "", "token", "add", "nobody", "x")
	sh.run(1, "", "token", "add", "ann", "")
	if out, _ := sh.run(0, "", "token", "list", "root"); !regexp.MustCompile(`^ID  NAME  PREFIX    SCOPE  CREATED               EXPIRES  LAST USED  ADDRESS\n2   ops   ud_\w{5}  admin  20\S+Z  -        -          \n$`).MatchString(out) {
		t.Errorf("token list:\n%s", out)
	}
	var listed keyAnswer
	list, _ := sh.run(0, "", "token", "list", "-json", "ann")
	if err := json.Unmarshal([]byte(list), &listed); err != nil || listed.ID != 1 || listed.Name != "backup job" || listed.Key != "" {
		t.Errorf("token list -json: %s", list)
	}
	sh.run(1, "", "token", "revoke", "root", "1")
	sh.run(2, "", "token", "revoke", "ann", "x")
	if out, _ := sh.run(0, "", "token", "revoke", "ann", "1"); out != "revoked key 1 of ann\n" {
		t.Errorf("token revoke: %s", out)
	}
	events, _ := sh.run(0, "", "events", "-json", "-type", "key_revoked")
	if !strings.Contains(events, `"changes":["key=1"]`) {
		t.Errorf("events: %s", events)
	}
}

// Keys stay in the database: an export has none. A service user keeps its kind.
func TestServiceUsersAreExportedAndImported(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"-ndjson=false", "-ndjson"} {
		from, to := &shell{t, filepath.Join(t.TempDir(), "a.db")}, &shell{t, filepath.Join(t.TempDir(), "b.db")}
		from.run(0, goodPassword, "user", "add", "ann", "ann@example.com")
		from.run(0, "", "user", "add", "-service", "bot")
		from.run(0, "", "user", "add", "-service", "-admin", "bot2")
		key, _ := from.run(0, "", "token", "add", "bot", "job")
		export, _ := from.run(0, "", "user", "export", format)
		if strings.Contains(export, key[:8]) || strings.Contains(export, "service:") || strings.Contains(export, "job") {
			t.Errorf("the export has a key or an address of a service user:\n%s", export)
		}
		if out, _ := to.run(0, export, "user", "import", "-"); out != "imported 3 users\n" {
			t.Errorf("user import: %s", out)
		}
		if again, _ := to.run(0, "", "user", "export", format); again != export {
			t.Errorf("exported again:\n%s\nwant\n%s", again, export)
		}
		if list, _ := to.run(0, "", "token", "list", "bot"); strings.Count(list, "\n") != 1 {
			t.Errorf("the imported user has keys:\n%s", list)
		}
		to.run(0, "", "check")
	}
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	for _, row := range []string{"a,a@example.com,,true", "a,,secret password,true", "a,,,maybe", "a,,,false", "a,,$2a,true"} {
		sh.run(1, "username,email,password,service\n"+row+"\n", "user", "import", "-")
	}
	// Mails go to verified addresses.
	sh.run(1, "username,email,email_verified_at,service\na,,2026-05-04T03:02:01Z,true\n", "user", "import", "-")
}

// REQUIRE_FACTOR closes a key as it closes a session: a user that must add a second factor can
// do nothing with a key until then. A key of a user with a factor works, but proves no factor.
func TestKeysAndARequiredFactor(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.requireFactor = requireFactorAll })
	_, ann := s.member("ann")
	_, bob := s.member("bob")
	s.enrol(bob)
	key, _ := s.keyOf(1, readScope, time.Hour)
	s.do(key, "GET", "/api/users/me", "").want(t, 403, "factor_required")
	s.do(key, "GET", "/api/users/me/totp", "").want(t, 403, "factor_required") // a key adds no factor
	bot, _ := s.keyOf(s.addNamed("bot", member, true), readScope, time.Hour)
	s.do(bot, "GET", "/api/users/me", "").want(t, 200, "")
	s.enrol(ann)
	s.do(key, "GET", "/api/users/me", "").want(t, 200, "")
	s.do(key, "GET", "/api/verify", "").want(t, 200, "")
	for _, token := range []string{key, bot} {
		s.do(token, "GET", "/api/verify?factor=required", "").want(t, 403, "factor_required")
	}
}

// A service must not accept what userd itself refuses, so an introspection says so.
func TestIntrospectionAndARequiredFactor(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.requireFactor = requireFactorAll })
	_, ann := s.member("ann")
	bot, _ := s.keyOf(s.addNamed("bot", member, true), verifyScope, 0)
	key, _ := s.keyOf(1, readScope, time.Hour)
	active := func(want string) {
		t.Helper()
		for _, token := range []string{ann, key} {
			if r := s.introspectWith(bot, "token="+token); r.field("active") != want {
				t.Errorf("%.3s…: %s, want active %s", token, r.body, want)
			}
		}
	}
	active("false")
	if r := s.introspectWith(bot, "token="+bot); r.field("active") != "true" {
		t.Errorf("the key of a service user: %s", r.body)
	}
	s.enrol(ann)
	active("true")
}

// A service that requires the second factor itself reads amr, which is that of the token.
func TestAnIntrospectionHasTheAMROfTheToken(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, ann := s.member("ann")
	bot, _ := s.keyOf(s.addNamed("bot", member, true), verifyScope, 0)
	key, _ := s.keyOf(1, readScope, time.Hour)
	secret, _ := s.enrol(ann)
	proven := s.loginWith("ann", s.nextCode(secret)).want(t, 200, "").field("access_token")
	for token, want := range map[string]string{proven: "[pwd otp]", ann: "", key: ""} {
		r := s.introspectWith(bot, "token="+token)
		if r.field("active") != "true" || r.field("amr") != want {
			t.Errorf("%.3s…: %s, want the amr %q", token, r.body, want)
		}
		if claims := strings.Contains(token, ".") && strings.Contains(claimsOf(t, token), `"amr":["pwd","otp"]`); claims != (want != "") {
			t.Errorf("the token and its introspection differ: %s", r.body)
		}
	}
}

// userd deletes the keys of a user that it disables. Another program may only disable the user: each
// request then refuses the keys.
func TestAKeyOfAUserThatAnotherProgramDisabledIsRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	id := s.addNamed("ann", member, false)
	key, _ := s.keyOf(id, readScope, 0)
	for _, c := range []struct {
		change string
		status int    // of the request for a new key
		code   string // of the same
	}{
		{"disabled", 403, "user_disabled"},
		{"pending", 403, "pending_approval"},
	} {
		s.change(fmt.Sprintf("UPDATE user SET %s = 1 WHERE id = %d", c.change, id))
		s.do(key, "GET", "/api/verify", "").want(t, 401, "invalid_token")
		s.makeKeyOver(root, userPath(id), readScope).want(t, c.status, c.code)
		s.change(fmt.Sprintf("UPDATE user SET %s = 0 WHERE id = %d", c.change, id))
		s.do(key, "GET", "/api/verify", "").want(t, 200, "")
	}
}

// Only a demotion ends the keys with the scope admin: enabling an admin that another program has
// disabled ends none.
func TestEnablingAnAdminEndsNoKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	id := s.addNamed("ann", admin, false)
	key, _ := s.keyOf(id, adminScope, 0)
	s.change("UPDATE user SET disabled = 1 WHERE username = 'ann'")
	s.do(key, "GET", "/api/events", "").want(t, 401, "invalid_token")
	s.do(root, "PATCH", userPath(id), `{"disabled":false}`).want(t, 200, "")
	s.do(key, "GET", "/api/events", "").want(t, 200, "")
}

// The write refuses a session that makes a key with adminScope, or one that never expires, although
// the request already does.
func TestOnlyTheCommandLineMakesAnAdminKeyOrOneThatNeverExpires(t *testing.T) {
	t.Parallel()
	s := newService(t)
	root := aUser(t, s.store, "root", admin)
	by := aSession(t, s.store, root)
	for scope, expires := range map[keyScope]int64{adminScope: 1 << 40, readScope: 0} {
		if err := s.store.addKey(t.Context(), by, &apiKey{userID: root.id, scope: scope, expiresAt: expires}, []byte("x")); err == nil {
			t.Errorf("a session made a key with the scope %s that expires at %d", scope, expires)
		}
	}
	wantError(t, "another key", s.store.addKey(t.Context(), by, &apiKey{userID: root.id, scope: readScope, expiresAt: 1 << 40}, []byte("x")), nil)
}

// A member has no key with the scope admin, also if it is a service user: such a key would have
// only the rights of a member, until the user becomes an admin.
func TestOnlyAnAdminHasAKeyWithTheScopeAdmin(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	bot := s.addNamed("bot", member, true)
	add := func() (string, error) {
		return s.addKey(t.Context(), console, &apiKey{userID: bot, name: "job", scope: adminScope}, time.Hour)
	}
	_, err := add()
	wantError(t, "a key of a member", err, errKeyScope)
	s.do(root, "PATCH", userPath(bot), `{"role":"admin"}`).want(t, 200, "")
	key, err := add()
	if err != nil {
		t.Fatal(err)
	}
	s.do(key, "GET", "/api/events", "").want(t, 200, "")
	s.do(root, "PATCH", userPath(bot), `{"role":"member"}`).want(t, 200, "")
	s.do(key, "GET", "/api/events", "").want(t, 401, "invalid_token")
}
