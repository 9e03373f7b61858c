package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/groupcommit/groupcommittest"
)

// linkCode returns the code of a link.
func linkCode(link string) string {
	_, code, _ := strings.Cut(link, "#")
	return code
}

// resetLink returns the code of a new reset link for the user at a path.
func (s *service) resetLink(token, path string) (code string) {
	s.t.Helper()
	return linkCode(s.do(token, "POST", path+"/reset-link", "").want(s.t, 201, "").field("url"))
}

// reset sends a code and a new password.
func (s *service) reset(code, password string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":%q}`, code, password))
}

const newPassword = "staple and paper clip"

func TestAResetLinkSetsAPasswordOnce(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, id := s.register("ann")
	access, refresh := s.pair("ann")
	_, root := s.admin("root")

	made := s.do(root, "POST", path+"/reset-link", `{"expires_in":3600}`).want(t, 201, "")
	link := made.field("url")
	code, found := strings.CutPrefix(link, "https://id.example.com/reset#")
	if !found || made.field("expires_at") != "2026-05-04T04:02:01Z" {
		t.Fatalf("got %s", made.body)
	}
	for range 3 { // as the scanner of a mail server does
		s.do("", "GET", "/reset", "").want(t, 200, "")
		s.do("", "GET", "/reset?code="+code, "").want(t, 200, "")
	}
	s.reset(code, "ann-1984").want(t, 400, "invalid_fields") // the policy knows the user, and the code is still good
	r := s.reset(" "+code+"\n", newPassword).want(t, 200, "")
	if r.body != `{"message":"Password changed"}`+"\n" {
		t.Errorf("it logs in, or says %s", r.body)
	}
	s.reset(code, newPassword).want(t, 400, "invalid_code")
	s.do(access, "GET", path, "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/refresh", `{"refresh_token":"`+refresh+`"}`).want(t, 401, "session_ended")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).want(t, 401, "invalid_credentials")
	ann := s.do("", "POST", "/api/login", `{"username":"ann","password":"`+newPassword+`"}`).want(t, 200, "").field("access_token")
	if got := s.do(ann, "GET", path, "").field("email_verified_at"); got != "" {
		t.Errorf("the address is verified: %s", got) // an admin's link says nothing about it
	}

	events := s.do(root, "GET", "/api/events?user="+id, "")
	if got := fmt.Sprint(events.list(t, "type")); !strings.Contains(got, "reset_link_created password_reset login]") {
		t.Errorf("the events are %s", events.body)
	}
	if got := events.list(t, "actor_id"); got[2] == "<nil>" || got[3] != "<nil>" {
		t.Errorf("the actors are %s", got) // root made the link; who used it is not known
	}
	if strings.Contains(events.body, code) {
		t.Error("the events have the code")
	}
}

// What makes a reset link invalid, before it was used.
func TestAResetLinkThatIsNotValidAnyMore(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim string
		spoil func(t *testing.T, s *service, path, root string)
	}{
		{"it has expired", func(t *testing.T, s *service, _, _ string) { s.clock.add(24 * time.Hour) }},
		{"a newer one exists", func(t *testing.T, s *service, path, root string) { s.resetLink(root, path) }},
		{"the password changed", func(t *testing.T, s *service, path, root string) {
			s.do(root, "PUT", path, `{"password":"another long one"}`).want(t, 200, "")
		}},
		{"the address changed, and changed back", func(t *testing.T, s *service, path, root string) {
			s.do(root, "PUT", path, `{"email":"x@example.com"}`).want(t, 200, "")
			s.do(root, "PUT", path, `{"email":"ann@example.com"}`).want(t, 200, "")
		}},
		{"the user is disabled", func(t *testing.T, s *service, path, root string) {
			s.do(root, "PUT", path, `{"disabled":true}`).want(t, 200, "")
		}},
		{"the user was disabled meanwhile", func(t *testing.T, s *service, path, root string) {
			s.do(root, "PUT", path, `{"disabled":true}`).want(t, 200, "")
			s.do(root, "PUT", path, `{"disabled":false}`).want(t, 200, "")
		}},
		{"an older userd disabled the user", func(t *testing.T, s *service, _, _ string) {
			runSQL(t, another(t, s.path), `UPDATE user SET disabled = 1 WHERE username = 'ann'`)
		}},
		{"the user is deleted", func(t *testing.T, s *service, path, root string) {
			s.do(root, "DELETE", path, "").want(t, 200, "")
		}},
		{"another code was used", func(t *testing.T, s *service, path, _ string) {
			second := newCode(resetLinkCode)
			hash, err := hashCode(resetLinkCode, second)
			if err != nil {
				t.Fatal(err)
			}
			now := s.wall().Unix()
			runSQL(t, another(t, s.path), fmt.Sprintf(insertCode+`VALUES (x'%x', 'ul', 1, '', 0, 0, %d, %d)`, hash, now, now+60))
			s.reset(second, "another long one").want(t, 200, "")
		}},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			path, _ := s.register("ann")
			_, root := s.admin("root")
			code := s.resetLink(root, path)
			s.clock.add(time.Second)
			row.spoil(t, s, path, s.login("root"))
			s.reset(code, newPassword).want(t, 400, "invalid_code")
		})
	}
	t.Run("it is valid a second before it expires", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		path, _ := s.register("ann")
		_, root := s.admin("root")
		code := s.resetLink(root, path)
		s.clock.add(24*time.Hour - time.Second)
		s.reset(code, newPassword).want(t, 200, "")
	})
	t.Run("other changes leave it valid", func(t *testing.T) {
		t.Parallel()
		s := newService(t)
		path, _ := s.register("ann")
		_, root := s.admin("root")
		code := s.resetLink(root, path)
		s.do(root, "PUT", path, `{"username":"annette","role":"admin"}`).want(t, 200, "")
		s.login("annette")
		s.reset(code, newPassword).want(t, 200, "")
	})
}

// Nothing but a code of its own kind is accepted, and what cannot be one is not looked up.
func TestWhatIsNotACode(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, access := s.member("ann")
	_, root := s.admin("root")
	code := s.resetLink(root, path)
	good := strings.TrimPrefix(code, "ul_")
	for _, bad := range []string{
		"x", "ul_", good, "UL_" + good, "ul-" + good, "ur_" + good, "ui_" + good, "uv_" + good, code + "A", code[:len(code)-1],
		strings.ToLower(code), "ul_" + strings.Repeat("1", 26), "ul_" + strings.Repeat("=", 26), code + code,
		newCode(resetLinkCode), access, "ul_" + good[:25] + " ",
	} {
		s.reset(bad, newPassword).want(t, 400, "invalid_code")
	}
	s.do("", "POST", "/api/password/reset", `{"code":["`+code+`"],"password":"`+newPassword+`"}`).want(t, 400, "wrong_type")
	s.do(code, "GET", path, "").want(t, 401, "invalid_token") // a code is not a token
	s.do("", "POST", "/api/refresh", `{"refresh_token":"`+code+`"}`).want(t, 401, "invalid_token")
	s.reset(code, newPassword).want(t, 200, "")
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_code`); n != 0 {
		t.Errorf("%d codes are left", n)
	}
}

// The database holds only hashes of codes, and the log neither codes nor passwords.
func TestACodeIsStoredAndLoggedNowhere(t *testing.T) {
	t.Parallel()
	s := newService(t)
	book := s.keepLog()
	path, _ := s.register("ann")
	_, root := s.admin("root")
	code := s.resetLink(root, path)
	for _, table := range []string{"user_code", "event", "user"} {
		if n := scanStore[int](t, s, `SELECT count(*) FROM `+table+` WHERE instr(cast(concat_ws(' ', `+columnsOf(t, s, table)+`) AS TEXT), '`+code[3:]+`') > 0`); n > 0 {
			t.Errorf("the table %s has the code", table)
		}
	}
	s.do("", "GET", "/reset/"+code, "").want(t, 404, "")
	s.do("", "GET", "/reset?code="+code, "").want(t, 200, "")
	s.reset(code, newPassword).want(t, 200, "")
	if text := book.String(); strings.Contains(text, code[3:]) || strings.Contains(text, newPassword) {
		t.Errorf("the log has a secret:\n%s", text)
	}
}

func columnsOf(t *testing.T, s *service, table string) string {
	t.Helper()
	return scanStore[string](t, s, `SELECT group_concat(name, ', ') FROM pragma_table_info('`+table+`')`)
}

// The host of a link comes from the configuration, never from a request.
func TestALinkHasTheConfiguredHost(t *testing.T) {
	t.Parallel()
	s := newService(t, proxied)
	path, _ := s.register("ann")
	_, root := s.admin("root")
	r, err := http.NewRequest("POST", s.url+path+"/reset-link", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "evil.example"
	for name, value := range map[string]string{
		"Authorization": "Bearer " + root, "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "Forwarded": "host=evil.example", "Origin": "https://evil.example",
	} {
		r.Header.Set(name, value)
	}
	if link := s.ask(r).want(t, 201, "").field("url"); !strings.HasPrefix(link, "https://id.example.com/reset#ul_") {
		t.Errorf("the link is %s", link)
	}
}

func TestResetLinksAreOnlyForAdminsWithProof(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, ann := s.member("ann")
	rootPath, root := s.admin("root")
	s.do(ann, "POST", path+"/reset-link", "").want(t, 403, "forbidden")
	s.do(ann, "POST", rootPath+"/reset-link", "").want(t, 403, "forbidden")
	s.do(refreshed(s, "root"), "POST", path+"/reset-link", "").want(t, 401, "fresh_login_required")
	s.do(root, "POST", "/api/users/99/reset-link", "").want(t, 404, "user_not_found")
	for body, valid := range map[string]bool{
		`{"expires_in":1}`: true, `{"expires_in":604800}`: true,
		`{"expires_in":0}`: false, `{"expires_in":-1}`: false, `{"expires_in":604801}`: false, `{"expires_in":9223372036854775807}`: false,
	} {
		status, code := 201, ""
		if !valid {
			status, code = 400, "invalid_fields"
		}
		s.do(root, "POST", path+"/reset-link", body).want(t, status, code)
	}
	s.do(root, "PATCH", path, `{"disabled":true}`).want(t, 200, "")
	s.do(root, "POST", path+"/reset-link", "").want(t, 403, "user_disabled")
	// The token that changed a password is not proof any more, because a thief may have it too.
	s.do(root, "PUT", rootPath, `{"password":"another long one"}`).want(t, 200, "")
	s.do(root, "POST", path+"/reset-link", "").want(t, 401, "fresh_login_required")
}

// The rights of the caller are checked by the write itself.
func TestAResetLinkIsNotMadeByWhoHasLostTheRight(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	root, ann := aUser(t, st, "root", admin), aUser(t, st, "ann", member)
	aUser(t, st, "keeper", admin)
	asRoot, asAnn := aSession(t, st, root), aSession(t, st, ann)
	hash := func() []byte {
		h, err := hashCode(resetLinkCode, newCode(resetLinkCode))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	link := func(by caller, id int64) error { return st.addResetLink(t.Context(), by, id, hash(), 1, 100) }
	wantError(t, "an admin", link(asRoot, ann.id), nil)
	wantError(t, "the console", link(console, ann.id), nil)
	wantError(t, "a member for itself", link(asAnn, ann.id), errForbidden)
	wantError(t, "a stranger", link(caller{kind: strangerCaller}, ann.id), errForbidden)
	wantError(t, "nothing", link(caller{}, ann.id), errForbidden)
	wantError(t, "for a user that does not exist", link(asRoot, 99), errUserNotFound)
	if _, err := st.updateUser(t.Context(), console, root.id, change{role: new(member)}, 0, 1); err != nil {
		t.Fatal(err)
	}
	wantError(t, "a former admin", link(asRoot, ann.id), errForbidden)
}

// An admin, or a thief of its session, could otherwise prepare links and come back as any
// user after it lost the rights.
func TestLinksDoNotOutliveTheRightToMakeThem(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim            string
		method, body     string
		resets, admitted bool // whether the links are still good
	}{
		{"its maker was demoted", "PUT", `{"role":"member"}`, false, false},
		{"its maker was disabled", "PUT", `{"disabled":true}`, false, false},
		{"its maker was deleted", "DELETE", ``, false, false},
		{"its maker has a new password", "PUT", `{"password":"another long one"}`, false, true},
		{"its maker has a new name", "PUT", `{"username":"other"}`, true, true},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			path, root := s.admin("root")
			evePath, eve := s.admin("eve")
			code := s.resetLink(eve, path)
			invitation := linkCode(s.do(eve, "POST", "/api/invitations", "").want(t, 201, "").field("url"))
			kept := linkCode(s.do(root, "POST", "/api/invitations", "").want(t, 201, "").field("url"))
			s.do(root, row.method, evePath, row.body).want(t, 200, "")
			if row.method == "PUT" && strings.Contains(row.body, "disabled") {
				s.do(root, "PUT", evePath, `{"disabled":false}`).want(t, 200, "")
			}
			if got := s.join("bob", kept).status; got != 201 {
				t.Errorf("the invitation of another admin gets %d", got)
			}
			if got := s.join("ann", invitation).status == 201; got != row.admitted {
				t.Errorf("the invitation admits: %t", got)
			}
			if got := s.reset(code, newPassword).status == 200; got != row.resets {
				t.Errorf("the link sets a password: %t", got)
			}
		})
	}
}

// Two servers on one file, and many clients of each: one code is used once.
func TestACodeIsUsedOnceByTwoServers(t *testing.T) {
	t.Parallel()
	first := newService(t, unlimited)
	path, _ := first.register("ann")
	_, root := first.admin("root")
	second := newServiceOn(t, first.path, unlimited)
	for round := range 5 {
		code := first.resetLink(root, path)
		statuses := race(10, func(i int) int {
			s := []*service{first, second}[i%2]
			return s.reset(code, fmt.Sprintf("round %d, password %d", round, i)).status
		})
		if n := howMany(statuses, 200); n != 1 || howMany(statuses, 400) != len(statuses)-1 {
			t.Errorf("the answers are %v", statuses)
		}
	}
	if n := scanStore[int](t, first, `SELECT count(*) FROM event WHERE type = 'password_reset'`); n != 5 {
		t.Errorf("%d events", n)
	}
}

// race runs n calls concurrently, and returns their results.
func race(n int, f func(i int) int) []int {
	results := make([]int, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { results[i] = f(i) })
	}
	running.Wait()
	return results
}

func howMany(list []int, value int) (n int) {
	for _, v := range list {
		if v == value {
			n++
		}
	}
	return n
}

func TestExpiredCodesAreDeleted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	for i := range 3 {
		path, _ := s.register(fmt.Sprintf("user%d", i))
		s.do(root, "POST", path+"/reset-link", fmt.Sprintf(`{"expires_in":%d}`, 60*(i+1))).want(t, 201, "")
	}
	for want := 3; want >= 0; want-- {
		if err := s.store.sweepCodes(t.Context(), s.wall().Unix()); err != nil {
			t.Fatal(err)
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM user_code`); n != want {
			t.Errorf("%d codes are left, want %d", n, want)
		}
		s.clock.add(time.Minute)
	}
}

// An administrator without APP_URL is told what to set, and nothing is stored.
func TestLinksNeedAnAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.pages = pageURLs{} })
	path, _ := s.register("ann")
	_, root := s.admin("root")
	if r := s.do(root, "POST", path+"/reset-link", "").want(t, 409, "no_app_url"); !strings.Contains(r.field("error"), "APP_URL") {
		t.Errorf("it says %s", r.body)
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_code`); n != 0 {
		t.Errorf("%d codes", n)
	}
}

func TestForgottenPasswordsGetTheSameAnswerForAll(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	for _, login := range []string{"ann", "nobody", ""} {
		s.do("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, login)).want(t, 403, "mail_off")
	}
}

func TestThePagesAreThoseOfTheLastServer(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	for _, want := range []pageURLs{{}, {reset: "a"}, {reset: "a", invite: "b"}, {reset: "c", invite: "b"}, {}} {
		wantError(t, "storing the pages", st.recordPages(t.Context(), want), nil)
		if got, err := st.pages(); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestTheCommandLineMakesTheLinksOfTheServer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim   string
		environ []string
		prefix  string // of the reset link; empty: no link is made
		invites string // the prefix of the invite link
	}{
		{"in development", nil, "URL/reset#ul_", "URL/invite#ui_"},
		{"with APP_URL", []string{"APP_URL=https://id.example.com/users/"}, "https://id.example.com/users/reset#ul_", "https://id.example.com/users/invite#ui_"},
		{"with RESET_URL", []string{"RESET_URL=https://app.example.com/?c={code}#x"}, "https://app.example.com/?c=ul_", "URL/invite#ui_"},
		{"with INVITE_URL", []string{"INVITE_URL=https://app.example.com/?c={code}#x"}, "URL/reset#ul_", "https://app.example.com/?c=ui_"},
		{"in production without APP_URL", []string{"TRUSTED_PROXIES=127.0.0.1"}, "", ""},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			environ := []string{"DATABASE_URL=" + filepath.Join(dir, "app.db")}
			userdHere(t, goodPassword, environ, "user", "add", "ann", "ann@example.com")
			userdHere(t, "", environ, "user", "reset-link", "ann").wantFailure(t, 1, "APP_URL")
			userdHere(t, "", environ, "user", "invite").wantFailure(t, 1, "APP_URL")

			p := startUserd(t, dir, append(environ, row.environ...))
			got := userdHere(t, "", environ, "user", "reset-link", "-ttl", "90m", "ann")
			invited := userdHere(t, "", environ, "user", "invite")
			if row.prefix == "" {
				got.wantFailure(t, 1, "APP_URL")
				invited.wantFailure(t, 1, "APP_URL")
				return
			}
			if want := strings.Replace(row.invites, "URL/", p.url+"/", 1); invited.status != 0 || !strings.HasPrefix(invited.stdout, want) {
				t.Errorf("got %+v, want %s", invited, want)
			}
			prefix := strings.Replace(row.prefix, "URL/", p.url+"/", 1)
			if got.status != 0 || !strings.HasPrefix(got.stdout, prefix) || strings.Count(got.stdout, "\n") != 1 || !strings.Contains(got.stderr, "for ann") {
				t.Fatalf("got %+v, want %s", got, prefix)
			}
			code := got.stdout[strings.Index(got.stdout, "ul_"):][:codeLength]
			p.must("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":%q}`, code, newPassword)).want(t, 200, "")
			p.login("ann", newPassword)
		})
	}
	t.Run("it refuses a lifetime that is too long", func(t *testing.T) {
		userdHere(t, "", nil, "user", "reset-link", "-ttl", "169h", "ann").wantFailure(t, 2, "-ttl", "from 1s to 168h")
	})
}

// The page must not run a script of another, nor send a code elsewhere.
func TestTheHeadersOfThePages(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, page := range linkPages {
		wantPage(t, s.do("", "GET", page, "").want(t, 200, ""))
	}
}

// linkPages are the paths of the pages that links open.
var linkPages = []string{"/reset", "/invite", "/verify", "/change", "/undo"}

func wantPage(t *testing.T, r reply) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
	} {
		if got := r.header.Get(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	policy := strings.Split(r.header.Get("Content-Security-Policy"), "; ")
	if !slices.Contains(policy, "default-src 'none'") || !slices.Contains(policy, "connect-src 'self'") || !slices.Contains(policy, "frame-ancestors 'none'") || strings.Contains(strings.Join(policy, " "), "unsafe") {
		t.Errorf("the policy is %q", policy)
	}
	body := strings.ReplaceAll(r.body, "http://www.w3.org/2000/svg", "") // a name, not a link
	for _, unsafe := range []string{"http://", "https://", "src=", `"//`, "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"} {
		if strings.Contains(body, unsafe) {
			t.Errorf("the page has %s", unsafe)
		}
	}
	if size := gzippedSize(r.body); size > 40_000 {
		t.Errorf("the page has %d bytes, compressed", size)
	}
	if !strings.Contains(r.body, "<noscript>") {
		t.Error("without JavaScript the page says nothing")
	}
}

func gzippedSize(text string) int {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(text))
	w.Close()
	return b.Len()
}

// A code that was read is not used if its write comes too late.
func TestACodeIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	_, root := s.admin("root")
	code, err := hashCode(resetLinkCode, s.resetLink(root, path))
	if err != nil {
		t.Fatal(err)
	}
	late := s.wall().Add(24 * time.Hour).Unix()
	if err := s.store.resetPassword(context.Background(), 1, resetLinkCode, code, "x", provenFactor{}, "", late); !errors.Is(err, errInvalidCode) {
		t.Errorf("an expired code: %v", err)
	}
	if err := s.store.resetPassword(context.Background(), 2, resetLinkCode, code, "x", provenFactor{}, "", 1); !errors.Is(err, errInvalidCode) {
		t.Errorf("a code of another user: %v", err)
	}
	s.login("ann")
	s.login("root")
}

// Both the request and its write check a mailed code. A code that is not valid does not even show
// that the user has a second factor.
func TestAMailedCodeIsCheckedTwice(t *testing.T) {
	t.Parallel()
	for spoil, want := range map[string]struct {
		status int
		code   string
	}{
		``:                             {401, "second_factor_required"},
		`DELETE FROM user_code`:        {400, "invalid_code"},
		`UPDATE user SET disabled = 1`: {400, "invalid_code"},
		`UPDATE user SET service = 1`:  {400, "invalid_code"},
		`UPDATE user SET email = 'x' WHERE id = 1`: {400, "invalid_code"},
		`UPDATE user_code SET user_id = 2`:         {400, "invalid_code"},
		`UPDATE user_code SET expires_at = 1`:      {400, "invalid_code"},
		`UPDATE user_code SET kind = 'uv'`:         {400, "invalid_code"},
		`UPDATE user_code SET hash = x'00'`:        {400, "invalid_code"},
	} {
		s := newService(t)
		ann, _ := s.addNamed("ann", member, false), s.addNamed("bob", member, false)
		code := newCode(resetMailCode)
		hash, err := hashCode(resetMailCode, code)
		if err != nil {
			t.Fatal(err)
		}
		now := s.wall().Unix()
		s.change(insertCode+`SELECT @hash, 'ur', id, email, 0, 0, @now, @now + 60 FROM user WHERE id = @ann`, args{{"hash", hash}, {"now", now}, {"ann", ann}}...)
		if spoil != "" {
			s.change(spoil)
			wantError(t, "the write after "+spoil, s.store.resetPassword(t.Context(), ann, resetMailCode, hash, "x", provenFactor{}, "", now), errInvalidCode)
		}
		s.change(`INSERT INTO user_totp (user_id, secret, confirmed_at, last_step) VALUES (1, x'01', 1, 1)`)
		if r := s.reset(code, newPassword); r.status != want.status || r.field("code") != want.code {
			t.Errorf("after %s: %d %s", spoil, r.status, r.body)
		}
	}
}

// The write admits a user only by the invitation that the request has read.
func TestAnInvitationIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	for _, spoil := range []string{
		`UPDATE user_invitation SET email = 'other@example.com'`,
		`UPDATE user_invitation SET username = 'other'`,
		`UPDATE user_invitation SET role = 'admin'`,
		`UPDATE user_invitation SET expires_at = 1`,
		`UPDATE user_invitation SET uses_left = 0`,
		`UPDATE user_code SET invitation_id = 2`,
		``,
	} {
		s := newService(t)
		_, root := s.admin("root")
		code, _ := s.invitation(root, `{}`)
		s.invitation(root, `{}`)
		hash, err := hashCode(inviteCode, code)
		if err != nil {
			t.Fatal(err)
		}
		now := s.wall().Unix()
		v, err := s.store.invitationOfCode(hash, now)
		if err != nil {
			t.Fatal(err)
		}
		want := error(nil)
		if spoil != "" {
			want = errInvalidCode
			s.change(spoil)
		}
		wantError(t, spoil, s.store.addInvited(t.Context(), &user{username: "ann", email: "ann@example.com"}, "x", hash, &v, "", now), want)
	}
}

// anInvitation returns the id of a new invitation, which has an address, as text.
func (s *service) anInvitation() string {
	s.t.Helper()
	v := invitation{email: "invited@example.com", role: member, usesLeft: 1, expiresAt: 1 << 40}
	if err := s.store.addInvitation(context.Background(), console, &v, []byte(newCode(inviteCode))); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprint(v.id)
}

// invitation returns the code and the id of a new invitation.
func (s *service) invitation(token, body string) (code, id string) {
	s.t.Helper()
	r := s.do(token, "POST", "/api/invitations", body).want(s.t, 201, "")
	code, found := strings.CutPrefix(r.field("url"), "https://id.example.com/invite#")
	if !found {
		s.t.Errorf("the link is %s", r.field("url"))
	}
	return code, r.field("id")
}

func TestAnInvitationForATakenNameIsRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	s.register("ann")
	for body, code := range map[string]string{
		`{"email":"Ann@example.com"}`: "email_taken",
		`{"username":"ANN"}`:          "username_taken",
	} {
		s.do(root, "POST", "/api/invitations", body).want(t, 400, code)
	}
}

// join registers name@example.com with an invitation.
func (s *service) join(name, code string) reply {
	s.t.Helper()
	return s.joinAs(name, name+"@example.com", code)
}

func (s *service) joinAs(name, email, code string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":%q,"email":%q,"password":%q,"invitation":%q}`, name, email, goodPassword, code))
}

// Closed registration does not shut out the invited, and nothing else opens it.
func TestAnInvitationAdmitsInEveryMode(t *testing.T) {
	t.Parallel()
	for mode, code := range map[registrationMode]string{registrationOpen: "", registrationInvite: "invitation_required", registrationClosed: "registration_closed"} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			s := newService(t, func(c *settings) { c.registration = mode })
			_, root := s.admin("root")
			invitation, id := s.invitation(root, "")
			status := 201
			if code != "" {
				status = 403
			}
			s.do("", "POST", "/api/register", registerBody("eve", goodPassword)).want(t, status, code)
			s.join("bob", "").want(t, status, code)
			r := s.join("ann", invitation).want(t, 201, "")
			if want := fmt.Sprintf(`{"id":%s,"username":"ann","email":"ann@example.com"}`+"\n", r.field("id")); r.body != want || r.header.Get("Location") != "/api/users/"+r.field("id") {
				t.Errorf("got %v %s", r.header, r.body)
			}
			s.join("eva", invitation).want(t, 400, "invalid_code")
			me := s.do(s.login("ann"), "GET", "/api/users/me", "").want(t, 200, "")
			if me.field("role") != "member" || me.field("email_verified_at") != "" || me.field("pending") != "" {
				t.Errorf("the user is %s", me.body)
			}
			events := s.do(root, "GET", "/api/events?user="+r.field("id"), "")
			if got := fmt.Sprint(events.list(t, "type"), events.list(t, "changes")); got != fmt.Sprintf("[user_created invitation_used login] [[invitation=%[1]s] [invitation=%[1]s] <nil>]", id) {
				t.Errorf("the events are %s", events.body)
			}
		})
	}
}

func TestABoundInvitationVerifiesTheAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.registration = registrationClosed })
	_, root := s.admin("root")
	code, _ := s.invitation(root, `{"email":" Ann@example.com ","username":"Ann"}`)
	for _, other := range [][2]string{{"ann", "eve@example.com"}, {"eve", "ann@example.com"}, {"ann", "ann@example.com.evil.example"}} {
		s.joinAs(other[0], other[1], code).want(t, 400, "invalid_fields")
	}
	s.joinAs("ann", "ann@example.com,eve@example.com", code).want(t, 400, "invalid_fields")
	s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"ann","email":["ann@example.com","eve@example.com"],"password":%q,"invitation":%q}`, goodPassword, code)).want(t, 400, "wrong_type")
	s.joinAs("ann", "ann@EXAMPLE.com", code).want(t, 201, "")
	ann := s.login("ann")
	if got := s.do(ann, "GET", "/api/users/me", "").field("email_verified_at"); got != "2026-05-04T03:02:01Z" {
		t.Errorf("verified at %q", got)
	}
	s.do(ann, "PUT", "/api/users/me", `{"email":"other@example.com"}`).want(t, 200, "")
	if got := s.do(ann, "GET", "/api/users/me", "").field("email_verified_at"); got != "" {
		t.Errorf("a new address is verified at %q", got)
	}
	for _, end := range []string{`UPDATE user_invitation SET expires_at = 1`, `UPDATE user_invitation SET uses_left = 0`} {
		bound, _ := s.invitation(root, `{"email":"carl@example.com"}`)
		s.change(end)
		s.join("eve", bound).want(t, 400, "invalid_code") // does not say for whom it was
	}
	for _, body := range []string{`{"email":"x@example.com","uses":2}`, `{"username":"x","uses":2}`} {
		s.do(root, "POST", "/api/invitations", body).want(t, 400, "invalid_fields")
	}
}

// A refused registration does not use an invitation up.
func TestARefusedRegistrationKeepsTheInvitation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, root := s.admin("root")
	code, _ := s.invitation(root, "")
	s.join("ann", code).want(t, 400, "username_taken")
	s.joinAs("bob", "ann@example.com", code).want(t, 400, "email_taken")
	s.joinAs("bob", "bob", code).want(t, 400, "invalid_fields")
	s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"bob","email":"bob@example.com","password":"bob-1984","invitation":%q}`, code)).want(t, 400, "invalid_fields")
	s.join("bob", code).want(t, 201, "")
}

func TestWhatEndsAnInvitation(t *testing.T) {
	t.Parallel()
	for claim, end := range map[string]func(t *testing.T, s *service, root, id string){
		"its time": func(t *testing.T, s *service, _, _ string) { s.clock.add(72 * time.Hour) },
		"its deletion": func(t *testing.T, s *service, root, id string) {
			s.do(root, "DELETE", "/api/invitations/"+id, "").want(t, 204, "")
			s.do(root, "DELETE", "/api/invitations/"+id, "").want(t, 404, "invitation_not_found")
		},
		"its last use": func(t *testing.T, s *service, _, _ string) {
			runSQL(t, another(t, s.path), `UPDATE user_invitation SET uses_left = 0`)
		},
		"an earlier end of the invitation than of the code": func(t *testing.T, s *service, _, _ string) {
			runSQL(t, another(t, s.path), `UPDATE user_invitation SET expires_at = 1`)
		},
	} {
		t.Run(claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			_, root := s.admin("root")
			code, id := s.invitation(root, `{"uses":2}`)
			s.join("ann", code).want(t, 201, "")
			end(t, s, root, id)
			s.join("bob", code).want(t, 400, "invalid_code")
		})
	}
}

// A code of one kind is not one of another, whatever table has its hash.
func TestKindsOfCodesAreNotInterchangeable(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, access := s.member("ann")
	_, root := s.admin("root")
	link := s.resetLink(root, path)
	invited, _ := s.invitation(root, `{"uses":9}`)
	s.join("bob", link).want(t, 400, "invalid_code")
	s.reset(invited, newPassword).want(t, 400, "invalid_code")
	s.join("bob", access).want(t, 400, "invalid_code")
	s.join("bob", "ui_"+link[3:]).want(t, 400, "invalid_code")
	s.reset("ul_"+invited[3:], newPassword).want(t, 400, "invalid_code")
	s.do(invited, "GET", "/api/users/me", "").want(t, 401, "invalid_token")
	// Even if a row had the hash of a code of another kind.
	hash, err := hashCode(inviteCode, invited)
	if err != nil {
		t.Fatal(err)
	}
	runSQL(t, another(t, s.path), `UPDATE user_code SET user_id = 1 WHERE kind = 'ui'`, `UPDATE user_code SET invitation_id = 1 WHERE kind = 'ul'`)
	if err := s.store.resetPassword(t.Context(), 1, resetLinkCode, hash, "x", provenFactor{}, "", s.wall().Unix()); !errors.Is(err, errInvalidCode) {
		t.Errorf("an invitation sets a password: %v", err)
	}
	s.join("bob", invited).want(t, 201, "")
}

// An invitation for any name is not one for the empty name, which an adopted user can have.
func TestAUserWithoutANameBlocksNoInvitation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	_, root := s.admin("root")
	runSQL(t, another(t, s.path), `UPDATE user SET username = '', email = '' WHERE id = 1`)
	s.do(root, "POST", "/api/invitations", "").want(t, 201, "")
}

func TestInvitationsAreListedInPages(t *testing.T) {
	t.Parallel()
	s := newService(t)
	rootPath, root := s.admin("root")
	for i := range 5 {
		s.invitation(root, fmt.Sprintf(`{"username":"user%d","expires_in":%d}`, i, 3600*(i+1)))
	}
	code, _ := s.invitation(root, `{"uses":2}`)
	s.join("ann", code).want(t, 201, "")
	s.clock.add(time.Hour) // the first one expires
	root = s.login("root")
	var ids []string
	for next := "/api/invitations?limit=2"; next != ""; {
		r := s.do(root, "GET", next, "").want(t, 200, "")
		ids = append(ids, r.list(t, "id")...)
		next, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
	}
	if !slices.Equal(ids, []string{"2", "3", "4", "5", "6"}) {
		t.Errorf("the invitations are %s", ids)
	}
	last := s.do(root, "GET", "/api/invitations?after=5", "").want(t, 200, "").body
	if want := `[{"id":6,"role":"member","uses_left":1,"created_by":` + strings.TrimPrefix(rootPath, "/api/users/") + `,"created_at":"2026-05-04T03:02:01Z","expires_at":"2026-05-07T03:02:01Z"}]` + "\n"; last != want {
		t.Errorf("got %s, want %s", last, want)
	}
	if strings.Contains(last, code[3:]) {
		t.Error("the list has a code")
	}
}

// Two servers on one file admit no more users than the invitation allows.
func TestAnInvitationIsUsedAsOftenAsItAllows(t *testing.T) {
	t.Parallel()
	first := newService(t, unlimited)
	_, root := first.admin("root")
	second := newServiceOn(t, first.path, unlimited)
	code, _ := first.invitation(root, `{"uses":3}`)
	statuses := race(12, func(i int) int { return []*service{first, second}[i%2].join(fmt.Sprintf("user%d", i), code).status })
	if howMany(statuses, 201) != 3 || howMany(statuses, 400) != 9 {
		t.Errorf("the answers are %v", statuses)
	}
	if n := scanStore[int](t, first, `SELECT uses_left FROM user_invitation`); n != 0 {
		t.Errorf("%d uses are left", n)
	}
	if n := scanStore[int](t, first, `SELECT count(*) FROM event WHERE type = 'user_created' AND changes LIKE 'invitation=%'`); n != 3 {
		t.Errorf("%d events", n)
	}
}

func TestOnlyAdminsInvite(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, ann := s.member("ann")
	rootPath, root := s.admin("root")
	_, id := s.invitation(root, "")
	s.do(ann, "POST", "/api/invitations", "").want(t, 403, "forbidden")
	s.do(ann, "GET", "/api/invitations", "").want(t, 403, "forbidden")
	s.do(ann, "DELETE", "/api/invitations/"+id, "").want(t, 403, "forbidden")
	s.do(root, "POST", "/api/invitations", `{"role":"admin"}`).want(t, 400, "unknown_member") // only the command line
	s.do(refreshed(s, "root"), "POST", "/api/invitations", "").want(t, 401, "fresh_login_required")
	for _, body := range []string{`{"email":""}`, `{"email":" "}`, `{"username":""}`} { // it would admit anyone
		s.do(root, "POST", "/api/invitations", body).want(t, 400, "invalid_fields")
	}
	s.do(root, "PUT", rootPath, `{"password":"another long one"}`).want(t, 200, "")
	s.do(root, "POST", "/api/invitations", "").want(t, 401, "fresh_login_required")

	st := s.store
	root2 := aUser(t, st, "root2", admin)
	by := aSession(t, st, root2)
	if _, err := st.updateUser(t.Context(), console, root2.id, change{role: new(member)}, 0, 1); err != nil {
		t.Fatal(err)
	}
	wantError(t, "a former admin invites", st.addInvitation(t.Context(), by, &invitation{}, []byte("x")), errForbidden)
	wantError(t, "a former admin deletes", st.deleteInvitation(t.Context(), by, 1, 1), errForbidden)
	wantError(t, "a stranger invites", st.addInvitation(t.Context(), caller{kind: strangerCaller}, &invitation{}, []byte("x")), errForbidden)
}

func TestExpiredInvitationsAreDeleted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	s.invitation(root, `{"expires_in":3600}`)
	s.invitation(root, `{"expires_in":7200}`)
	for want := 2; want >= 0; want-- {
		if err := s.store.sweepCodes(t.Context(), s.wall().Unix()); err != nil {
			t.Fatal(err)
		}
		if n, m := scanStore[int](t, s, `SELECT count(*) FROM user_code`), scanStore[int](t, s, `SELECT count(*) FROM user_invitation`); n != want || m != want {
			t.Errorf("%d codes and %d invitations are left, want %d", n, m, want)
		}
		s.clock.add(time.Hour)
	}
}

func TestTheCommandLineInvites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	environ := []string{"DATABASE_URL=" + filepath.Join(dir, "app.db")}
	p := startUserd(t, dir, append(environ, "REGISTRATION=closed"))
	code := func(args ...string) string {
		t.Helper()
		got := userdHere(t, "", environ, append([]string{"user", "invite"}, args...)...)
		if got.status != 0 || !strings.HasPrefix(got.stdout, p.url+"/invite#ui_") || strings.Count(got.stdout, "\n") != 1 {
			t.Fatalf("got %+v", got)
		}
		return linkCode(strings.TrimSpace(got.stdout))
	}
	join := func(name, code string) reply {
		t.Helper()
		return p.must("", "POST", "/api/register", fmt.Sprintf(`{"username":%q,"email":%q,"password":%q,"invitation":%q}`, name, name+"@example.com", goodPassword, code))
	}
	join("root", code("-admin")).want(t, 201, "")
	bound := code("-email", "ann@example.com", "-ttl", "1h")
	join("eve", bound).want(t, 400, "invalid_fields")
	join("ann", bound).want(t, 201, "")
	twice := code("-uses", "2")
	join("bob", twice).want(t, 201, "")
	join("carl", twice).want(t, 201, "")
	join("eve", twice).want(t, 400, "invalid_code")
	root := p.login("root", goodPassword)
	users := p.must(root, "GET", "/api/users", "").want(t, 200, "")
	if got := fmt.Sprint(users.list(t, "role")); got != "[admin member member member]" {
		t.Errorf("the roles are %s", got)
	}
	for _, args := range []string{"-email x", "-email a@example.com -uses 2"} {
		userdHere(t, "", environ, append([]string{"user", "invite"}, strings.Fields(args)...)...).wantFailure(t, 1)
	}
	bounds := map[string]string{"-ttl": "from 1h to 720h", "-uses": "from 1 to 100"}
	for _, args := range [][]string{{"-ttl", "59m"}, {"-ttl", "721h"}, {"-uses", "0"}, {"-uses", "101"}, {"-uses", "x"}} {
		userdHere(t, "", environ, append([]string{"user", "invite"}, args...)...).wantFailure(t, 2, args[0], bounds[args[0]])
	}
	if got := userdHere(t, "", environ, "user", "invite", "-admin", "-uses", "2"); !strings.Contains(got.stderr, "for 2 new admins") {
		t.Errorf("an invitation of admins says %q", got.stderr)
	}
	userdHere(t, "", environ, "user", "invite", "-admin", "-email", "").wantFailure(t, 2, "-email") // it would admit anyone
}

func byApproval(c *settings) { c.registration = registrationApproval }

func TestAUserWaitsForApproval(t *testing.T) {
	t.Parallel()
	s := newService(t, byApproval)
	_, root := s.admin("root")
	path, id := s.register("ann")
	s.register("bob")
	login := `{"username":"ann","password":"` + goodPassword + `"}`
	s.do("", "POST", "/api/login", login).want(t, 403, "pending_approval")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "invalid_credentials") // tells nothing
	if r := s.do(root, "GET", path, ""); !strings.HasSuffix(r.body, `"email_verified_at":null,"pending":true}`+"\n") {
		t.Errorf("an admin sees %s", r.body)
	}
	if got := fmt.Sprint(s.do(root, "GET", "/api/users?pending=true", "").list(t, "username"), s.do(root, "GET", "/api/users?pending=false", "").list(t, "username")); got != "[ann bob] [root]" {
		t.Errorf("the lists are %s", got)
	}
	s.do(root, "PUT", path, `{"pending":false}`).want(t, 200, "") // ignored
	s.do("", "POST", "/api/login", login).want(t, 403, "pending_approval")
	// A new password is not an approval.
	s.reset(s.resetLink(root, path), goodPassword).want(t, 200, "")
	s.do("", "POST", "/api/login", login).want(t, 403, "pending_approval")

	before := s.do(root, "GET", path, "").header.Get("ETag")
	for range 2 {
		r := s.do(root, "POST", path+"/approve", "").want(t, 200, "")
		if r.field("pending") != "" || r.header.Get("ETag") == before {
			t.Errorf("got %v %s", r.header, r.body)
		}
	}
	ann := s.login("ann")
	s.do(ann, "POST", "/api/users/3/approve", "").want(t, 403, "forbidden")
	s.do(ann, "POST", path+"/approve", "").want(t, 403, "forbidden")
	s.do(root, "POST", "/api/users/99/approve", "").want(t, 404, "user_not_found")
	events := s.do(root, "GET", "/api/events?user="+id, "")
	if got := fmt.Sprint(events.list(t, "type")); got != "[user_created reset_link_created password_reset user_approved login]" {
		t.Errorf("the events are %s", got)
	}
	if got := events.list(t, "changes")[0]; got != "[pending=true]" {
		t.Errorf("the changes of a registration are %s", got)
	}

	code, _ := s.invitation(root, "")
	s.join("cas", code).want(t, 201, "") // the invitation is the approval
	s.login("cas")
}

// A session must not begin for a pending user, also if a caller does not check that.
func TestAPendingUserHasNoSession(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	u := user{username: "ann", email: "ann@example.com", role: member, pending: true}
	if err := st.addUser(t.Context(), caller{kind: strangerCaller}, &u, "hash", 1); err != nil {
		t.Fatal(err)
	}
	_, err := st.startSession(t.Context(), &session{userID: u.id, createdAt: 1, expiresAt: 100}, 0, "", provenFactor{})
	wantError(t, "a login", err, errCredentials)
	_, err = st.approve(t.Context(), caller{kind: strangerCaller}, u.id, 1)
	wantError(t, "an approval by a stranger", err, errForbidden)
	if u, err = st.approve(t.Context(), console, u.id, 1); err != nil || u.pending {
		t.Errorf("an approval by the console: %v", err)
	}
}

func TestUsersThatCannotBeDroppedDoNotKeepOthers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	runSQL(t, another(t, s.path), fmt.Sprintf(`
		INSERT INTO user (id, username, email, password_hash, pending)
		WITH n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= %d)
		SELECT i, 'user' || i, i || '@example.com', '', 1 FROM n`, sweepSize),
		`CREATE TABLE bill (user_id INTEGER REFERENCES user (id))`,
		fmt.Sprintf(`INSERT INTO bill SELECT id FROM user WHERE id <= %d`, sweepSize))
	after := int64(0)
	for _, want := range []int64{sweepSize, 0} {
		var err error
		if after, err = s.store.dropPending(t.Context(), after, s.wall().Unix()); err != nil || after != want {
			t.Fatalf("it continues after %d, want %d: %v", after, want, err)
		}
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM user`); n != sweepSize {
		t.Errorf("%d users are left, want %d", n, sweepSize)
	}
}

func TestUsersWhoWaitForAMonthAreDropped(t *testing.T) {
	t.Parallel()
	s := newService(t, byApproval)
	rootPath, root := s.admin("root")
	var paths []string
	for _, name := range []string{"ann", "bob", "cas"} {
		path, _ := s.register(name)
		paths = append(paths, path)
	}
	s.do(root, "POST", paths[1]+"/approve", "").want(t, 200, "")
	runSQL(t, another(t, s.path), `CREATE TABLE bill (id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES user (id))`,
		`INSERT INTO bill (user_id) SELECT id FROM user WHERE username = 'cas'`) // must not stop the others
	sweep := func() {
		t.Helper()
		if _, err := s.store.dropPending(t.Context(), 0, s.wall().Unix()); err != nil {
			t.Fatal(err)
		}
	}
	s.clock.add(30*24*time.Hour - time.Second)
	sweep()
	s.resetLink(s.login("root"), paths[0])
	if n := scanStore[int](t, s, `SELECT count(*) FROM user`); n != 4 {
		t.Errorf("%d users, want 4", n)
	}
	s.clock.add(time.Second)
	sweep()
	if got := usernames(t, s.store); !slices.Equal(got, []string{"root", "bob", "cas"}) {
		t.Errorf("the users are %s", got)
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_code`); n != 0 {
		t.Errorf("%d codes of a deleted user", n)
	}
	events := s.do(s.login("root"), "GET", "/api/events?type=user_deleted", "")
	if !strings.HasSuffix(paths[0], "/"+strings.Join(events.list(t, "user_id"), "")) || strings.Contains(events.body, "address") || strings.Contains(events.body, "actor_id") {
		t.Errorf("the events are %s", events.body)
	}
	s.do(s.login("root"), "GET", rootPath, "").want(t, 200, "")
}

func TestTheCommandLineApproves(t *testing.T) {
	t.Parallel()
	s := newService(t, byApproval)
	s.register("ann")
	sh := &shell{t, s.path}
	for _, want := range []string{"approved ann, id 1\n", "nothing to do: no approval is pending for ann, id 1\n"} {
		if out, _ := sh.run(0, "", "user", "approve", "ann"); out != want {
			t.Errorf("got %q, want %q", out, want)
		}
	}
	s.login("ann")
	sh.run(1, "", "user", "approve", "nobody")
}

// EMAIL_DOMAINS narrows open registration and that with approval, never an invitation.
func TestOnlySomeDomainsRegister(t *testing.T) {
	t.Parallel()
	for _, mode := range []registrationMode{registrationOpen, registrationApproval} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			s := newService(t, func(c *settings) { c.registration, c.emailDomains = mode, []string{"example.com", ".example.org"} })
			_, root := s.admin("root")
			post := func(name, email, code string) reply { return s.joinAs(name, email, code) }
			r := post("eve", "eve@evil.example", "").want(t, 400, "invalid_fields")
			if !strings.Contains(r.field("error"), "email must be an address at example.com or .example.org") {
				t.Errorf("it says %s", r.body)
			}
			post("ann", " ann@Example.COM ", "").want(t, 201, "")
			code, _ := s.invitation(root, "")
			post("bob", "bob@evil.example", code).want(t, 201, "")
			s.do(root, "POST", "/api/users", `{"username":"carl","email":"carl@evil.example","password":"`+goodPassword+`"}`).want(t, 201, "")
		})
	}
}

func TestAnAdminSaysThatAnAddressIsVerified(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, ann := s.member("ann")
	_, root := s.admin("root")
	verified := func() string { return s.do(root, "GET", path, "").field("email_verified_at") }
	at := s.wall().Format(time.RFC3339)
	for _, body := range []string{`{"email_verified":true}`, `{"email_verified":true,"email":"x@example.com","current_password":"` + goodPassword + `"}`} {
		s.do(ann, "PUT", path, body).want(t, 403, "forbidden")
	}
	s.do(ann, "PUT", path, `{"email_verified":false,"email_verified_at":"2020-01-01T00:00:00Z"}`).want(t, 200, "") // not a change
	for _, step := range []struct{ body, want string }{
		{`{"email_verified":true}`, at},
		{`{"username":"annette"}`, at},
		{`{"email":"ann2@example.com"}`, ""},
		{`{"email":"ann3@example.com","email_verified":true}`, at},
		{`{"email":"ann4@example.com","email_verified":true}`, at}, // also if the one before was verified
		{`{"email":"ann5@example.com","email_verified":false}`, ""},
		{`{"email_verified":false}`, ""},
	} {
		s.do(root, "PUT", path, step.body).want(t, 200, "")
		if got := verified(); got != step.want {
			t.Errorf("%s: verified at %q, want %q", step.body, got, step.want)
		}
	}
	s.do(root, "PUT", path, `{"email_verified":true}`).want(t, 200, "")
	s.clock.add(time.Minute)
	etag := s.do(root, "GET", path, "").header.Get("ETag")
	s.do(root, "PUT", path, `{"email_verified":true}`).want(t, 200, "")
	if got := s.do(root, "GET", path, ""); got.field("email_verified_at") != at || got.header.Get("ETag") != etag {
		t.Errorf("a verified address was verified again: %s", got.body)
	}
	changes := fmt.Sprint(s.do(root, "GET", "/api/events?type=user_changed", "").list(t, "changes"))
	if !strings.HasPrefix(changes, "[[email_verified=true] [username] [email] [email email_verified=true]") {
		t.Errorf("the changes are %s", changes)
	}
}

func TestExportsHaveTheStateOfAnAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, byApproval)
	path, _ := s.register("ann")
	s.register("bob")
	_, root := s.admin("root")
	s.do(root, "PUT", path, `{"email_verified":true}`).want(t, 200, "")
	s.do(root, "POST", path+"/approve", "").want(t, 200, "")
	for _, format := range []string{"", "-ndjson"} {
		export, _ := (&shell{t, s.path}).run(0, "", strings.Fields("user export "+format)...)
		copied := &shell{t, filepath.Join(t.TempDir(), "app.db")}
		copied.run(0, export, "user", "import", "-")
		again, _ := copied.run(0, "", strings.Fields("user export "+format)...)
		if again != export {
			t.Errorf("the export is\n%s\nafter an import it is\n%s", export, again)
		}
		if !strings.Contains(export, "2026-05-04T03:02:01Z,false,false,\n") && !strings.Contains(export, `"email_verified_at":"2026-05-04T03:02:01Z","password_hash"`) {
			t.Errorf("the export is\n%s", export)
		}
	}
}

// An admin says of the address that it has seen that it is verified.
func TestAnAddressThatChangesMeanwhileIsNotVerified(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	path, _ := s.member("ann")
	u, _, err := s.store.userByLogin("ann")
	if err != nil {
		t.Fatal(err)
	}
	release := groupcommittest.Busy(t, s.store.writer)
	changed := groupcommittest.Enqueue(t, s.store.writer, func() error {
		_, err := s.store.updateUser(t.Context(), console, u.id, change{email: new("victim@example.com")}, 0, testNow)
		return err
	})
	replies := make(chan reply, 1)
	groupcommittest.Enqueue(t, s.store.writer, func() error {
		replies <- s.do(root, "PUT", path, `{"email_verified":true}`)
		return nil
	})
	release()
	if err := receive(t, "the change of the address", changed); err != nil {
		t.Fatal(err)
	}
	receive(t, "the reply", replies).want(t, 412, "version_mismatch")
	s.do(root, "PUT", path, `{"email_verified":true}`).want(t, 200, "")
}

// Each reset and each undo hashes a password, so it counts toward the passwords of its network
// like a login. One that is refused does not use up its code.
func TestResetsAndUndosCountTowardThePasswordsOfTheNetwork(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, _, undo := s.moved(p, "ann", "next@example.net")
	_, root := s.admin("root")
	link := s.resetLink(root, path)
	keys := s.limiter.networkKeys("127.0.0.1")
	for s.limiter.take(passwords, s.mono(), keys...) == nil {
	}
	for _, act := range []func() reply{
		func() reply { return s.reset(link, newPassword) },
		func() reply { return s.sendCode("", "undo", undo) },
	} {
		act().want(t, 429, "too_many_requests")
		s.clock.add(s.limiter.allowances[passwords].Every)
		r := act().want(t, 200, "")
		if s.limiter.take(passwords, s.mono(), keys...) == nil {
			t.Errorf("this did not count: %s", r.body)
		}
	}
}
