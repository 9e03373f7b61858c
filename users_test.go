package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRegisterNamesEachWrongField(t *testing.T) {
	t.Parallel()
	s := newService(t)
	long := strings.Repeat
	for _, test := range []struct {
		claim                     string
		username, email, password string
		wrong                     string // the fields at fault, sorted
	}{
		{"a good user", "Ann.B-c_9", "ann+tag@mail.example.com", "12 34 56 78", ""},
		{"one character", "a", "a@b", "testpass", ""},
		{"the longest names", long("a", 80), long("a", 64) + "@" + long("b", 63) + "." + long("c", 63) + "." + long("d", 61), long("p", 1024), ""},
		{"a password in another script", "lang", "lang@example.com", "пароль-ß", ""},
		{"a username too long", long("a", 81), "x1@example.com", "testpass", "username"},
		{"a username beginning with a dot", ".ann", "x2@example.com", "testpass", "username"},
		{"a username with a space", "an n", "x3@example.com", "testpass", "username"},
		{"a username with an @", "ann@example.com", "x4@example.com", "testpass", "username"},
		{"a username outside ASCII", "änn", "x5@example.com", "testpass", "username"},
		{"a username with a line break", "an\nn", "x6@example.com", "testpass", "username"},
		{"an email without @", "x7", "ann.example.com", "testpass", "email"},
		{"an email with two @", "x8", "a@b@example.com", "testpass", "email"},
		{"an email with a display name", "x9", "Ann <ann@example.com>", "testpass", "email"},
		{"an email with a quoted local part", "x10", `"ann"@example.com`, "testpass", "email"},
		{"an email with a comment", "x11", "ann(c)@example.com", "testpass", "email"},
		{"an email with two dots", "x12", "a..b@example.com", "testpass", "email"},
		{"an email beginning with a dot", "x13", ".a@example.com", "testpass", "email"},
		{"an email at an address literal", "x14", "ann@[127.0.0.1]", "testpass", "email"},
		{"an email at a host beginning with a hyphen", "x15", "ann@-example.com", "testpass", "email"},
		{"an email whose host ends in a dot", "x16", "ann@example.com.", "testpass", "email"},
		{"an email outside ASCII", "x17", "änn@example.com", "testpass", "email"},
		{"an email with a line break", "x18", "ann@example\n.com", "testpass", "email"},
		{"an email with a long local part", "x19", long("a", 65) + "@example.com", "testpass", "email"},
		{"an email too long", "x20", long("a", 64) + "@" + long("b", 63) + "." + long("c", 63) + "." + long("d", 62), "testpass", "email"},
		{"a short password", "x21", "x21@example.com", "seven77", "password"},
		{"a long password", "x22", "x22@example.com", long("p", 1025), "password"},
		{"a common password", "x23", "x23@example.com", "PassWord1", "password"},
		{"the username as the password", "x24-longer", "x24@example.com", "X24-LONGER", "password"},
		{"the email as the password", "x25", "x25@example.com", "X25@example.com", "password"},
		{"all wrong", "?", "?", "?", "email password username"},
	} {
		body, _ := json.Marshal(map[string]string{"username": test.username, "email": test.email, "password": test.password})
		r := s.do("", "POST", "/api/register", string(body))
		if test.wrong == "" {
			if r.status != 201 {
				t.Errorf("%s: got %d %s", test.claim, r.status, r.body)
			}
			continue
		}
		var failed struct {
			Code   string
			Fields map[string]string
		}
		json.Unmarshal([]byte(r.body), &failed)
		var fields []string
		for name := range failed.Fields {
			fields = append(fields, name)
		}
		slices.Sort(fields)
		if r.status != 400 || failed.Code != "invalid_fields" || strings.Join(fields, " ") != test.wrong {
			t.Errorf("%s: got %d %s", test.claim, r.status, r.body)
		}
	}
}

// A phone's keyboard or a copy adds spaces that the user does not see.
func TestSpacesAroundANameAreTrimmed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	for _, row := range []struct {
		name string
		send func() reply
	}{
		{"register", func() reply {
			return s.do("", "POST", "/api/register", `{"username":" ann\n","email":"\tann@example.com ","password":"`+goodPassword+`"}`).want(t, 201, "")
		}},
		{"create", func() reply {
			return s.do(root, "POST", "/api/users", `{"username":"ann\u00a0","email":" ann@example.com","password":"`+goodPassword+`"}`).want(t, 201, "")
		}},
		{"change", func() reply {
			path, _ := s.register("bob")
			return s.do(root, "PUT", path, `{"username":"ann ","email":" ann@example.com"}`).want(t, 200, "")
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := row.send()
			if r.field("username") != "ann" || r.field("email") != "ann@example.com" {
				t.Fatalf("answered %s", r.body)
			}
			for _, name := range []string{"ann ", " ann", "ann@example.com ", "\tann\n", " ANN@example.com"} {
				s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)).want(t, 200, "")
			}
			path := "/api/users/" + r.field("id")
			tag := s.do(root, "GET", path, "").header.Get("ETag")
			if got := s.do(root, "PATCH", path, `{"username":" ann","email":"ann@example.com "}`).want(t, 200, "").header.Get("ETag"); got != tag {
				t.Error("a name that only gets spaces is a change")
			}
			s.do(root, "DELETE", path, "").want(t, 200, "")
		})
	}
	t.Run("only around it", func(t *testing.T) {
		s.do("", "POST", "/api/register", `{"username":"a nn","email":"ann@example.com","password":"`+goodPassword+`"}`).want(t, 400, "invalid_fields")
		s.do("", "POST", "/api/register", `{"username":" ","email":"ann@example.com","password":"`+goodPassword+`"}`).want(t, 400, "missing_fields")
	})
	t.Run("not around a password", func(t *testing.T) {
		s.register("cleo")
		s.do("", "POST", "/api/login", `{"username":"cleo","password":"`+goodPassword+` "}`).want(t, 401, "invalid_credentials")
	})
	t.Run("not if an adopted name has them", func(t *testing.T) {
		const spaced = " dan "
		s.register("dan")
		s.register("spaced")
		if _, err := s.store.conn.ExecContext(t.Context(), `UPDATE user SET username = ? WHERE username = 'spaced'`, spaced); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{spaced, "dan"} {
			token := s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)).want(t, 200, "").field("access_token")
			r := s.do(token, "GET", "/api/users/me", "")
			if r.field("username") != name {
				t.Errorf("%q logs in as %q", name, r.field("username"))
			}
			if got := s.do(token, "PUT", "/api/users/me", r.body).want(t, 200, "").field("username"); got != name {
				t.Errorf("sent back, the name became %q", got)
			}
		}
	})
}

func TestRegistrationClosed(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.registration = registrationClosed })
	_, root := s.admin("root")
	s.do("", "POST", "/api/register", `{"username":"ann","email":"ann@example.com","password":"testpass"}`).want(t, 403, "registration_closed")
	s.do(root, "POST", "/api/users", `{"username":"ann","email":"ann@example.com","password":"testpass"}`).want(t, 201, "")
}

// Two registrations of one name at the same moment: one adds the user, and the
// others get username_taken.
func TestRegisterRace(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.wantOneOf(201, "username_taken", func(i int) reply {
		return s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"ann","email":"ann%d@example.com","password":"testpass"}`, i))
	})
}

// wantOneOf sends eight requests concurrently: one of them must have the status, and the others
// the code of an error.
func (s *service) wantOneOf(status int, code string, request func(i int) reply) {
	s.t.Helper()
	var wg sync.WaitGroup
	results := make([]reply, 8)
	for i := range results {
		wg.Go(func() { results[i] = insist(func() reply { return request(i) }) })
	}
	wg.Wait()
	n := 0
	for _, r := range results {
		if r.status == status {
			n++
		} else if r.field("code") != code {
			s.t.Errorf("got %d %s", r.status, r.body)
		}
	}
	if n != 1 {
		s.t.Errorf("%d answers are %d, want 1", n, status)
	}
}

// A member against another member: nothing it sends changes or shows more.
func TestMemberAgainstMember(t *testing.T) {
	t.Parallel()
	s := newService(t)
	victim, token := s.member("victim")
	_, mallory := s.member("mallory")
	for _, method := range []string{"PUT", "PATCH"} {
		s.do(mallory, method, victim, `{"password":"taken over 123"}`).want(t, 403, "forbidden")
		s.do(mallory, method, victim, `{"email":"mallory2@example.com"}`).want(t, 403, "forbidden")
		s.do(mallory, method, "/api/users/me", `{"role":"admin"}`).want(t, 403, "forbidden")
		s.do(mallory, method, "/api/users/me", `{"disabled":true}`).want(t, 403, "forbidden")
		s.do(mallory, method, "/api/users/me", `{"role":"member","disabled":false}`).want(t, 200, "")
		s.do(mallory, method, "/api/users/me", `{"username":"Victim"}`).want(t, 400, "username_taken")
		s.do(mallory, method, "/api/users/me", `{"email":"VICTIM@example.com"}`).want(t, 400, "email_taken")
	}
	s.do(mallory, "DELETE", victim, "").want(t, 403, "forbidden")
	s.do(mallory, "PUT", "/api/users/999", `{}`).want(t, 403, "forbidden")
	s.do("", "POST", "/api/register", `{"username":"evil","email":"evil@example.com","password":"testpass","role":"admin"}`).want(t, 400, "unknown_member")
	if r := s.do(token, "GET", victim, "").want(t, 200, ""); r.field("role") != "member" || r.field("email") != "victim@example.com" {
		t.Errorf("the victim is now %s", r.body)
	}
	if r := s.do(mallory, "GET", "/api/users/me", ""); r.field("role") != "member" {
		t.Errorf("mallory is now %s", r.body)
	}
}

// For each DIRECTORY, the table says what a member sees of another user, of itself and of
// the list, and what an admin sees.
func TestDirectory(t *testing.T) {
	t.Parallel()
	keys := func(r reply) string {
		var object map[string]any
		json.Unmarshal([]byte(r.body), &object)
		var names []string
		for name := range object {
			names = append(names, name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	const all = "created_at disabled email email_verified_at id last_login_at role updated_at username"
	for _, test := range []struct {
		directory   directory
		otherStatus int
		otherKeys   string
		missing     int    // for an unknown id
		list        string // the usernames in a member's list
		emails      string // the e-mail addresses in it
		byName      string // found by the other's username
		byEmail     string // found by the other's e-mail address
	}{
		{directoryFull, 200, "email id username", 404, "ann bob root", "ann@example.com bobby@mail.test root@example.com", "bob", "bob"},
		{directoryNames, 200, "id username", 404, "ann bob root", "ann@example.com <nil> <nil>", "bob", ""},
		{directorySelf, 403, "code error", 403, "ann", "ann@example.com", "", ""},
	} {
		t.Run(string(test.directory), func(t *testing.T) {
			s := newService(t, func(c *settings) { c.directory = test.directory })
			ann, token := s.member("ann")
			bob := s.do("", "POST", "/api/register", `{"username":"bob","email":"bobby@mail.test","password":"testpass"}`).header.Get("Location")
			_, root := s.admin("root")

			if r := s.do(token, "GET", ann, "").want(t, 200, ""); keys(r) != all {
				t.Errorf("itself: %s", r.body)
			}
			if r := s.do(root, "GET", bob, "").want(t, 200, ""); keys(r) != all {
				t.Errorf("an admin: %s", r.body)
			}
			r := s.do(token, "GET", bob, "")
			if r.status != test.otherStatus || keys(r) != test.otherKeys {
				t.Errorf("another: %d %s", r.status, r.body)
			}
			if tag := r.header.Get("ETag"); tag != "" {
				t.Errorf("another's ETag is %s", tag)
			}
			if r := s.do(token, "GET", "/api/users/999", ""); r.status != test.missing {
				t.Errorf("an unknown id: %d %s", r.status, r.body)
			}
			for _, path := range []string{"/api/users", "/api/users?limit=10"} {
				r := s.do(token, "GET", path, "").want(t, 200, "")
				if got := strings.Join(r.list(t, "username"), " "); got != test.list {
					t.Errorf("%s has %s", path, got)
				}
				if got := strings.Join(r.list(t, "email"), " "); got != test.emails {
					t.Errorf("%s shows the addresses %s", path, got)
				}
			}
			if got := strings.Join(s.do(token, "GET", "/api/users?q=BO", "").list(t, "username"), " "); got != test.byName {
				t.Errorf("q by username finds %q", got)
			}
			if got := strings.Join(s.do(token, "GET", "/api/users?q=bobby@", "").list(t, "username"), " "); got != test.byEmail {
				t.Errorf("q by e-mail address finds %q", got)
			}
			if got := strings.Join(s.do(token, "GET", "/api/users?q=AN", "").list(t, "username"), " "); got != "ann" {
				t.Errorf("q finds oneself as %q", got)
			}
			if got := strings.Join(s.do(root, "GET", "/api/users?q=bobby", "").list(t, "username"), " "); got != "bob" {
				t.Errorf("an admin's q finds %q", got)
			}
		})
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("u01")
	for i := 2; i <= 7; i++ {
		s.register(fmt.Sprintf("u%02d", i))
	}
	_, root := s.admin("root")
	s.do(root, "DELETE", "/api/users/4", "").want(t, 200, "")

	var got []string
	path := "/api/users?limit=3"
	for pages := 0; path != ""; pages++ {
		if pages == 4 {
			t.Fatal("the pages do not end")
		}
		r := s.do(token, "GET", path, "").want(t, 200, "")
		got = append(got, r.list(t, "id")...)
		link := r.header.Get("Link")
		path, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), `>; rel="next"`)
	}
	if fmt.Sprint(got) != "[1 2 3 5 6 7 8]" {
		t.Errorf("the pages hold %v", got)
	}
	if r := s.do(token, "GET", "/api/users?after=5", ""); fmt.Sprint(r.list(t, "id")) != "[6 7 8]" {
		t.Errorf("after=5: %s", r.body)
	}
	if r := s.do(token, "GET", "/api/users?limit=7", ""); r.header.Get("Link") != "" {
		t.Errorf("a last page that is full links to %s", r.header.Get("Link"))
	}
	if r := s.do(token, "GET", "/api/users?limit=5&after=999", ""); strings.TrimSpace(r.body) != "[]" {
		t.Errorf("past the end: %s", r.body)
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "limit=-1", "limit=01", "limit=", "after=x", "after=-1", "after=9223372036854775808",
		"q=", "q=%00", "q=%ff", "q=a&after=3", "limt=3", "limit=1&limit=2", "%zz", "a;b"} {
		s.do(token, "GET", "/api/users?"+query, "").want(t, 400, "bad_parameter")
	}
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	bob, _ := s.register("bob")
	_, root := s.admin("root")
	s.admin("root2")
	s.do(root, "PUT", bob, `{"disabled":true}`).want(t, 200, "")
	for query, want := range map[string]string{
		"role=admin":                        "root root2",
		"role=member":                       "ann bob",
		"disabled=true":                     "bob",
		"disabled=false":                    "ann root root2",
		"role=member&disabled=false":        "ann",
		"role=admin&disabled=true":          "",
		"role=admin&limit=1":                "root",
		"role=member&disabled=true&after=1": "bob",
	} {
		r := s.do(root, "GET", "/api/users?"+query, "").want(t, 200, "")
		if got := strings.Join(r.list(t, "username"), " "); got != want {
			t.Errorf("%s: %s", query, got)
		}
	}
	if link := s.do(root, "GET", "/api/users?role=admin&limit=1", "").header.Get("Link"); link != `</api/users?after=3&limit=1&role=admin>; rel="next"` {
		t.Errorf("Link: %s", link)
	}
	s.do(root, "GET", "/api/users?role=king", "").want(t, 400, "bad_parameter")
	s.do(root, "GET", "/api/users?disabled=1", "").want(t, 400, "bad_parameter")
	s.do(token, "GET", "/api/users?role=admin", "").want(t, 403, "forbidden")
	s.do(token, "GET", "/api/users?disabled=true", "").want(t, 403, "forbidden")
	s.do(token, "GET", "/api/users?pending=true", "").want(t, 403, "forbidden")
}

func TestSearchIsInNameOrderAndCapped(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	for _, name := range []string{"zoe", "Mia", "mike", "max", "MILA", "m_x", "m%x"} {
		u := user{username: name, email: "x" + strings.ToLower(name) + "@example.com", role: member}
		if err := s.store.addUser(t.Context(), console, &u, "hash", 1); err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string]string{
		"q=mi":         "Mia mike MILA",
		"q=MI&limit=2": "Mia mike",
		"q=m_":         "m_x",
		"q=m%25":       "m%x",
		"q=mike":       "mike",
		"q=mikes":      "",
		"q=x":          "m%x m_x max Mia mike MILA zoe",
		"q=xz":         "zoe",
	} {
		r := s.do(root, "GET", "/api/users?"+query, "").want(t, 200, "")
		if got := strings.Join(r.list(t, "username"), " "); got != want {
			t.Errorf("%s: %s", query, got)
		}
		if r.header.Get("Link") != "" {
			t.Errorf("%s has a Link", query)
		}
	}
}

// A list is read and sent in parts; nothing is lost or doubled between them.
func TestListStreamsEveryUser(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	const n = 2*listPage + 1
	for i := range n - 1 {
		u := user{username: fmt.Sprintf("user%d", i), email: fmt.Sprintf("user%d@example.com", i), role: member}
		if err := s.store.addUser(t.Context(), console, &u, "hash", 1); err != nil {
			t.Fatal(err)
		}
	}
	ids := s.do(token, "GET", "/api/users", "").want(t, 200, "").list(t, "id")
	if len(ids) != n {
		t.Fatalf("%d users listed, of %d", len(ids), n)
	}
	for i, id := range ids {
		if id != fmt.Sprint(i+1) {
			t.Fatalf("user %s is at index %d", id, i)
		}
	}
}

// A slowWriter is a client that does something after the first part of an answer.
type slowWriter struct {
	*httptest.ResponseRecorder
	then func()
}

func (w *slowWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseRecorder.Write(p)
	if w.then != nil {
		w.then()
		w.then = nil
	}
	return n, err
}

func (w *slowWriter) SetWriteDeadline(time.Time) error { return nil }

// A list that is sent in parts ends when its reader loses the right to read it.
func TestAListChecksItsReaderForEachPart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		claim string
		who   role
		lose  func(s *service, id int64)
		whole bool
	}{
		{"nothing happens", member, func(*service, int64) {}, true},
		{"the reader is disabled", member, func(s *service, id int64) {
			_, err := s.store.updateUser(s.t.Context(), console, id, change{disabled: new(true)}, 0, 1)
			wantError(s.t.(*testing.T), "disabling", err, nil)
		}, false},
		{"the session ends", member, func(s *service, id int64) {
			wantError(s.t.(*testing.T), "ending", s.store.endSessions(s.t.Context(), console, id, 1), nil)
		}, false},
		{"the token expires", member, func(s *service, id int64) { s.clock.add(s.accessTTL) }, false},
		{"an admin becomes a member", admin, func(s *service, id int64) {
			_, err := s.store.updateUser(s.t.Context(), console, id, change{role: new(member)}, 0, 1)
			wantError(s.t.(*testing.T), "demoting", err, nil)
		}, false},
	} {
		t.Run(test.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.admin("root")
			reader := user{username: "reader", email: "reader@example.com", role: test.who}
			if err := s.addUser(t.Context(), console, &reader, goodPassword); err != nil {
				t.Fatal(err)
			}
			token := s.login("reader")
			for i := range 2 * listPage {
				u := user{username: fmt.Sprintf("user%d", i), email: fmt.Sprintf("user%d@example.com", i), role: member}
				if err := s.store.addUser(t.Context(), console, &u, "hash", 1); err != nil {
					t.Fatal(err)
				}
			}
			w := &slowWriter{httptest.NewRecorder(), func() { test.lose(s, reader.id) }}
			r := httptest.NewRequest("GET", "/api/users", nil)
			r.Header.Set("Authorization", "Bearer "+token)
			var broken any
			func() {
				defer func() { broken = recover() }()
				s.ServeHTTP(w, r)
			}()
			if got := strings.Count(w.Body.String(), `"id":`); test.whole && (got != 2*listPage+2 || broken != nil) || !test.whole && (got != listPage || broken != http.ErrAbortHandler) {
				t.Errorf("%d users were sent, and the handler ended with %v", got, broken)
			}
		})
	}
}

func TestCreateUser(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	r := s.do(root, "POST", "/api/users", `{"username":"ann","email":"ann@example.com","password":"correct horse battery","role":"admin"}`).want(t, 201, "")
	if r.field("role") != "admin" || r.header.Get("Location") != "/api/users/2" || r.header.Get("ETag") != `"1"` {
		t.Errorf("got %v %s", r.header, r.body)
	}
	s.do(s.login("ann"), "GET", "/api/users?role=admin", "").want(t, 200, "")
	s.do(root, "POST", "/api/users", `{"username":"bob","email":"bob@example.com","password":"testpass","role":"king"}`).want(t, 400, "invalid_fields")
	s.do(root, "POST", "/api/users", `{"username":"bob","email":"bob@example.com"}`).want(t, 400, "missing_fields")
	s.do(root, "POST", "/api/users", `{"username":"ANN","email":"bob@example.com","password":"testpass"}`).want(t, 400, "username_taken")
}

func TestUpdateMerges(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.register("bob")

	r := s.do(token, "PATCH", path, `{"email":"new@example.com"}`).want(t, 200, "")
	if r.field("username") != "ann" || r.field("email") != "new@example.com" || r.header.Get("ETag") != `"2"` {
		t.Errorf("got %v %s", r.header.Get("ETag"), r.body)
	}
	// What was fetched can be sent back, and changes nothing.
	back := s.do(token, "PUT", path, s.do(token, "GET", path, "").body).want(t, 200, "")
	if back.body != r.body || back.header.Get("ETag") != `"2"` {
		t.Errorf("sent back: %s, was %s", back.body, r.body)
	}
	// A user's own name in another case is not taken.
	if r := s.do(token, "PUT", path, `{"username":"ANN"}`).want(t, 200, ""); r.field("username") != "ANN" {
		t.Errorf("got %s", r.body)
	}
	s.do(token, "PUT", path, `{"username":"b o b"}`).want(t, 400, "invalid_fields")
	s.do(token, "PUT", path, `{"email":"?"}`).want(t, 400, "invalid_fields")
	s.do(token, "PUT", path, `{"username":""}`).want(t, 400, "invalid_fields")
	s.do(token, "PUT", path, `{"password":"short"}`).want(t, 400, "invalid_fields")
	s.do(token, "PUT", path, `{"password":"NEW@example.com"}`).want(t, 400, "invalid_fields")
	s.do(token, "PUT", path, `{"username":"Long-Enough","password":"long-enough"}`).want(t, 400, "invalid_fields")
	s.do(token, "PUT", path, `{"username":null}`).want(t, 400, "wrong_type")
	s.do(token, "PUT", path, `{"username":"bob"}`).want(t, 400, "username_taken")
	s.do(token, "PUT", path, `{"email":"BOB@example.com"}`).want(t, 400, "email_taken")
	s.do(token, "PUT", path, `{"current_password":"wrong"}`).want(t, 401, "wrong_password")
	if r := s.do(token, "GET", path, ""); r.header.Get("ETag") != `"3"` {
		t.Errorf("refused changes moved the version to %s", r.header.Get("ETag"))
	}
}

func TestChangedPasswordEndsTheOtherSessions(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	other := s.login("ann")
	s.do(token, "PUT", path, `{"password":"another long one"}`).want(t, 200, "")
	s.do(token, "GET", path, "").want(t, 200, "")
	s.do(other, "GET", path, "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"correct horse battery"}`).want(t, 401, "invalid_credentials")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"another long one"}`).want(t, 200, "")

	_, root := s.admin("root")
	s.do(root, "PUT", path, `{"password":"set by the admin"}`).want(t, 200, "")
	s.do(token, "GET", path, "").want(t, 401, "session_ended")
	s.do(root, "GET", path, "").want(t, 200, "")
}

// A thief who holds tokens of the session in which the owner changes the password
// loses all of them, and cannot change the password back.
func TestAChangedPasswordRekeysTheSession(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, _ := s.register("ann")
	_, root := s.admin("root")
	access, refresh := s.pair("ann")
	r := s.do(refresh, "POST", "/api/refresh", "").want(t, 200, "")
	refresh2, thief := r.field("refresh_token"), r.field("access_token")
	c, err := s.keys.verify(thief, s.clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	c.fresh, c.id = true, "0-"+c.id
	fresh := s.signer().sign(c) // as a second login token of the same session and second

	r = s.do(access, "PUT", path, `{"password":"another long one"}`).want(t, 200, "")
	var member struct{ ID, ExpiresIn int }
	if err := json.Unmarshal([]byte(r.body), &member); err != nil || !strings.HasPrefix(r.body, `{"id":1,"username":"ann"`) ||
		!strings.Contains(r.body, `"last_login_at":"2026-05-04T03:02:01Z","email_verified_at":null,"access_token":"`) || r.field("token_type") != "Bearer" ||
		r.field("expires_in") != "900" || r.header.Get("ETag") != `"2"` {
		t.Fatalf("got %v %s", r.header, r.body)
	}
	next := r.field("access_token")

	for _, dead := range []string{thief, fresh} {
		s.do(dead, "GET", path, "").want(t, 401, "session_ended")
		s.do(dead, "PUT", path, `{"password":"correct horse battery"}`).want(t, 401, "session_ended")
	}
	for _, dead := range []string{refresh, refresh2} { // also after the grace
		s.do(dead, "POST", "/api/refresh", "").want(t, 401, "session_ended")
		s.clock.add(time.Minute)
		s.do(dead, "POST", "/api/refresh", "").want(t, 401, "session_ended")
	}

	// The token of the request stays valid, but is not proof for the acts of renewedOnly.
	s.do(access, "GET", path, "").want(t, 200, "")
	for _, body := range []string{`{"password":"correct horse battery"}`, `{"email":"thief@example.com"}`, `{"username":"ann2","email":"thief@example.com"}`} {
		s.do(access, "PUT", path, body).want(t, 401, "fresh_login_required")
	}
	s.do(access, "PUT", path, `{"username":"annette"}`).want(t, 200, "")

	// The new pair is as after a login.
	s.do(next, "PUT", path, `{"email":"new@example.com"}`).want(t, 200, "")
	pair := s.do(r.field("refresh_token"), "POST", "/api/refresh", "").want(t, 200, "")
	s.do(pair.field("access_token"), "GET", path, "").want(t, 200, "")
	s.do(pair.field("access_token"), "PUT", path, `{"email":"newer@example.com"}`).want(t, 401, "fresh_login_required")
	again := s.do(access, "PUT", path, `{"password":"a third long one","current_password":"another long one"}`).want(t, 200, "")
	s.do(next, "GET", path, "").want(t, 401, "session_ended")
	s.do(pair.field("refresh_token"), "POST", "/api/refresh", "").want(t, 401, "session_ended")
	s.do(again.field("refresh_token"), "POST", "/api/refresh", "").want(t, 200, "")

	if r := s.do(root, "PUT", path, `{"password":"set by the admin"}`).want(t, 200, ""); r.field("access_token") != "" {
		t.Errorf("the admin got tokens: %s", r.body)
	}
	s.do(again.field("access_token"), "GET", path, "").want(t, 401, "session_ended")
}

// An admin's token that changed its password proves nothing for other users' roles,
// addresses and passwords either.
func TestAKeptTokenOfAnAdmin(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ann, _ := s.register("ann")
	root, token := s.admin("root")
	s.do(token, "PUT", root, `{"password":"another long one"}`).want(t, 200, "")
	for _, body := range []string{`{"password":"set by the thief"}`, `{"email":"x@example.com"}`, `{"role":"admin"}`} {
		s.do(token, "PUT", ann, body).want(t, 401, "fresh_login_required")
	}
	s.do(token, "POST", "/api/users", `{"username":"eve","email":"eve@example.com","password":"another one","role":"admin"}`).want(t, 401, "fresh_login_required")
	s.do(token, "POST", "/api/users", `{"username":"eve","email":"eve@example.com","password":"another one"}`).want(t, 201, "")
	s.do(token, "PUT", ann, `{"username":"annette"}`).want(t, 200, "")
	s.do(token, "DELETE", ann, "").want(t, 200, "")
}

// A write checks the proof of its request again, because the password may have changed.
func TestAProofIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	token := s.login("ann")
	c, err := s.keys.verify(token, s.clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.store.credentials(1)
	if err != nil {
		t.Fatal(err)
	}
	s.do(token, "PUT", path, `{"password":"another long one"}`).want(t, 200, "")
	asked := newTokenID(c.id)
	for _, test := range []struct {
		claim string
		by    caller
		want  error
	}{
		{"a token that the re-keying made dead", caller{token: tokenID{"0-OTHER", 0}}, errSessionEnded},
		{"the token that asked, for an act that it no longer proves", caller{token: asked, renewed: true}, errNotFresh},
		{"a token newer than the session", caller{token: tokenID{"9-OTHER", 9}}, errSessionEnded},
		{"the old password", caller{token: asked, stamp: &before.stamp}, errWrongPassword},
		{"the token that asked", caller{token: asked}, nil},
	} {
		by := test.by
		by.kind, by.user, by.session = sessionCaller, 1, 1
		_, err := s.store.updateUser(t.Context(), by, 1, change{username: new("annette")}, 0, 1)
		wantError(t, test.claim, err, test.want)
		wantError(t, test.claim, s.store.authorizationError(by, 1), test.want)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	s := newService(t)
	rootPath, root := s.admin("root")
	path, token := s.member("ann")

	s.do(root, "PUT", path, `{"role":"king"}`).want(t, 400, "invalid_fields")
	s.do(root, "PUT", path, `{"role":"admin"}`).want(t, 200, "")
	s.do(token, "GET", "/api/users?role=admin", "").want(t, 200, "") // on the very next request
	s.do(token, "PUT", rootPath, `{"role":"member"}`).want(t, 200, "")
	s.do(root, "PUT", path, `{"role":"member"}`).want(t, 403, "forbidden")
}

func TestLastAdminStays(t *testing.T) {
	t.Parallel()
	s := newService(t)
	rootPath, root := s.admin("root")
	ann, _ := s.register("ann")
	for _, body := range []string{`{"role":"member"}`, `{"disabled":true}`} {
		s.do(root, "PUT", rootPath, body).want(t, 409, "last_admin")
	}
	s.do(root, "DELETE", rootPath, "").want(t, 409, "last_admin")

	// A disabled admin does not count.
	s.do(root, "PUT", ann, `{"role":"admin","disabled":true}`).want(t, 200, "")
	s.do(root, "DELETE", rootPath, "").want(t, 409, "last_admin")
	s.do(root, "PUT", ann, `{"disabled":false}`).want(t, 200, "")
	s.do(root, "DELETE", rootPath, "").want(t, 200, "")
}

func TestAnAdminWhoDisablesItselfGetsNoTokens(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.admin("root")
	path, eve := s.admin("eve")
	r := s.do(eve, "PUT", path, `{"password":"another long one","disabled":true}`).want(t, 200, "")
	if r.field("disabled") != "true" || r.field("access_token") != "" {
		t.Errorf("got %s", r.body)
	}
	s.do(eve, "GET", path, "").want(t, 401, "session_ended")
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	_, root := s.admin("root")
	s.do(token, "DELETE", path, `{"current_password":"wrong"}`).want(t, 401, "wrong_password")
	s.do(token, "DELETE", path, `{"password":"x"}`).want(t, 400, "unknown_member")
	s.do(token, "DELETE", "/api/users/me", `{"current_password":"correct horse battery"}`).want(t, 200, "")
	s.do(token, "GET", path, "").want(t, 401, "session_ended")
	s.do(root, "GET", path, "").want(t, 404, "user_not_found")
	s.do(root, "DELETE", path, "").want(t, 404, "user_not_found")
	s.do(root, "PUT", path, "{}").want(t, 404, "user_not_found")
	if again, _ := s.register("ann"); again == path {
		t.Error("the id came back")
	}
}

// Anyone can register a name that sounds like an office.
func TestANameGivesNoRights(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, name := range []string{"admin", "root", "userd", "me"} {
		_, token := s.member(name)
		r := s.do(token, "GET", "/api/verify", "").want(t, 200, "")
		if got := r.header.Get("X-User-Role"); got != "member" {
			t.Errorf("%s has the role %s", name, got)
		}
		s.do(token, "GET", "/api/events", "").want(t, 403, "forbidden")
	}
}

func TestETag(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	tag := s.do(token, "GET", path, "").header.Get("ETag")
	if r := s.do(token, "GET", path, "", "If-None-Match: "+tag); r.status != http.StatusNotModified || r.body != "" || r.header.Get("ETag") != tag {
		t.Errorf("If-None-Match: %d %q", r.status, r.body)
	}
	s.do(token, "GET", path, "", `If-None-Match: "x", W/`+tag).want(t, 304, "")
	s.do(token, "GET", path, "", `If-None-Match: "7"`).want(t, 200, "")

	s.do(token, "PUT", path, `{"username":"ann2"}`, `If-Match: "7", `+tag).want(t, 200, "")
	s.do(token, "PUT", path, `{"username":"ann3"}`, "If-Match: "+tag).want(t, 412, "version_mismatch")
	s.do(token, "PATCH", path, `{}`, "If-Match: "+tag).want(t, 412, "version_mismatch")
	s.do(token, "DELETE", path, "", "If-Match: "+tag).want(t, 412, "version_mismatch")
	s.do(token, "PUT", path, `{"username":"ann3"}`, `If-Match: W/"1"`).want(t, 412, "version_mismatch")
	s.do(token, "PUT", path, `{"username":"ann3"}`, "If-Match: *").want(t, 200, "")
	s.do(token, "DELETE", path, "", `If-Match: "3"`).want(t, 200, "")
}

// A proxy that compresses answers rewrites their tags.
func TestMatchesTheTagsThatProxiesMake(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	for _, tag := range []string{`W/"1"`, `"1-gzip"`} {
		s.do(token, "GET", path, "", "If-None-Match: "+tag).want(t, 304, "")
		s.do(token, "PATCH", path, `{}`, "If-Match: "+tag).want(t, 200, "")
	}
	s.do(token, "PATCH", path, `{"username":"ann2"}`, `If-Match: "1-gzip"`).want(t, 200, "")
	s.do(token, "PATCH", path, `{"username":"ann3"}`, `If-Match: "1-gzip"`).want(t, 412, "version_mismatch")
	s.do(token, "DELETE", path, ``, `If-Match: W/"2"`).want(t, 200, "")
}

// Of many changes that name one version, one is made.
func TestLostUpdates(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.wantOneOf(200, "version_mismatch", func(i int) reply {
		return s.do(token, "PUT", path, fmt.Sprintf(`{"username":"ann%d"}`, i), `If-Match: "1"`)
	})
}

func TestAnAddressThatBeginsWithASignDoesNotRegister(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.do("", "POST", "/api/register", `{"username":"ann","email":"+ann@example.com","password":"`+goodPassword+`"}`).want(t, 400, "invalid_fields")
}
