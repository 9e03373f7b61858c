package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// withConsole turns the console on, as in development.
func withConsole(c *settings) { c.console.on = true }

// withSecureConsole turns the console on, as behind HTTPS.
func withSecureConsole(c *settings) {
	c.console = consoleSettings{on: true, secure: true, origin: "https://id.example.com", firstAdmin: "userd user add -admin NAME EMAIL"}
}

// newCookie returns the cookie that a reply sets or deletes, or nil.
func newCookie(t testing.TB, r reply) *http.Cookie {
	t.Helper()
	lines := r.header.Values("Set-Cookie")
	if len(lines) == 0 {
		return nil
	}
	c, err := http.ParseSetCookie(lines[0])
	if err != nil || len(lines) > 1 {
		t.Fatalf("%v: %q", err, lines)
	}
	return c
}

// cookieOf returns the header with the cookie that a reply sets.
func cookieOf(r reply) string {
	pair, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	return "Cookie: " + pair
}

// here is the header of a request from a page of the service.
func (s *service) here() string { return "Origin: " + s.url }

// loginForCookie logs in from a page of the service, which asks for the cookie.
func (s *service) loginForCookie(name string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/login", cookieLogin(name), s.here()).want(s.t, 200, "")
}

func cookieLogin(name string) string {
	return fmt.Sprintf(`{"username":%q,"password":%q,"cookie":true}`, name, goodPassword)
}

func TestConsoleSettings(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name        string
		word        switchSetting
		appURL      string
		development bool
		on, secure  bool
		origin      string
	}{
		{"development", "", "", true, true, false, ""},
		{"off in development", switchOff, "", true, false, false, ""},
		{"production", "", "https://id.example.com", false, false, true, "https://id.example.com"},
		{"on in production", switchOn, "https://id.example.com/users", false, true, true, "https://id.example.com"},
		{"the port of HTTPS", switchOn, "https://ID.example.com:443", false, true, true, "https://id.example.com"},
		{"another port", switchOn, "https://id.example.com:80", false, true, true, "https://id.example.com:80"},
		{"HTTP on loopback", switchOn, "http://localhost:80", false, true, false, "http://localhost"},
		{"without APP_URL", switchOn, "", false, true, true, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := config{consoleSwitch: row.word, appURL: row.appURL}
			c.setConsole(row.development, "userd")
			c.console.firstAdmin = ""
			if want := (consoleSettings{on: row.on, secure: row.secure, origin: row.origin}); c.console != want {
				t.Errorf("got %+v, want %+v", c.console, want)
			}
		})
	}
}

func TestTheCommandLineOfTheFirstAdmin(t *testing.T) {
	t.Parallel()
	standard, err := filepath.Abs("app.db")
	if err != nil {
		t.Fatal(err)
	}
	cached := "/home/ann/.cache/x/e0/" + strings.Repeat("e0", 32) + "-d/userd"
	for _, row := range []struct {
		program, database string
		development       bool
		want              string
	}{
		{"/tmp/go-build1660852566/b001/exe/userd", standard, true, "go run . user add -admin NAME EMAIL"},
		{"/root/.cache/go-build/e0/x-d/userd", standard, true, "go run . user add -admin NAME EMAIL"},
		{cached, standard, true, "go run . user add -admin NAME EMAIL"},
		{cached, "/srv/app.db", true, "go run . user add -admin -database /srv/app.db NAME EMAIL"},
		{"./userd", standard, true, "./userd user add -admin NAME EMAIL"},
		{"./userd", "/home/ann's/app.db", true, `./userd user add -admin -database '/home/ann'\''s/app.db' NAME EMAIL`},
		{"/opt/my programs/userd", standard, true, "'/opt/my programs/userd' user add -admin NAME EMAIL"},
		{"/opt/secret/userd", "/srv/secret/app.db", false, "userd user add -admin NAME EMAIL"},
		{cached, "/srv/secret/app.db", false, "userd user add -admin NAME EMAIL"},
	} {
		c := config{database: row.database}
		if got := c.firstAdmin(row.development, row.program); got != row.want {
			t.Errorf("%s with %s: got %q, want %q", row.program, row.database, got, row.want)
		}
	}
}

// between returns the text between two marks, which a page has exactly once.
func between(t *testing.T, page, begin, end string) string {
	t.Helper()
	_, text, _ := strings.Cut(page, begin)
	text, _, _ = strings.Cut(text, end)
	if strings.Count(page, begin) != 1 || strings.Count(page, end) != 1 || text == "" {
		t.Fatalf("the page does not have %s and %s once", begin, end)
	}
	return text
}

func TestTheConsoleIsOneDocument(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	r := s.do("", "GET", "/console", "", "Accept-Encoding: identity").want(t, 200, "")
	hash := func(tag string) string {
		sum := sha256.Sum256([]byte(between(t, r.body, "<"+tag+">", "</"+tag+">")))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	for name, want := range map[string]string{
		"Content-Type":               "text/html; charset=utf-8",
		"Content-Encoding":           "",
		"Cache-Control":              "no-store",
		"Referrer-Policy":            "no-referrer",
		"Cross-Origin-Opener-Policy": "same-origin",
		"X-Content-Type-Options":     "nosniff",
		"Content-Security-Policy": "default-src 'none'; script-src " + hash("script") + "; style-src " + hash("style") +
			"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
	} {
		if got := r.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, row := range []struct {
		accepts string
		gzipped bool
	}{{"gzip", true}, {"deflate, gzip;q=0.5", true}, {"gzip;q=0", false}, {"br", false}} {
		zipped := s.do("", "GET", "/console", "", "Accept-Encoding: "+row.accepts).want(t, 200, "")
		if got := zipped.header.Get("Content-Encoding") == "gzip"; got != row.gzipped {
			t.Errorf("%s: gzip is %t", row.accepts, got)
		} else if !got {
			continue
		}
		in, err := gzip.NewReader(strings.NewReader(zipped.body))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(in); err != nil || string(text) != r.body {
			t.Errorf("%v: the compressed document differs", err)
		}
		if len(zipped.body) > 40<<10 {
			t.Errorf("the document has %d bytes, want at most 40 KiB", len(zipped.body))
		}
	}
	if r := s.do("", "HEAD", "/console", "").want(t, 200, ""); r.body != "" {
		t.Errorf("HEAD answers with %q", r.body)
	}
}

// The policy would block these: then the page would not work. Other origins would learn who uses it.
func TestTheConsoleHasNoSinksAndAsksNoOtherOrigin(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("console/*")
	if err != nil {
		t.Fatal(err)
	}
	used := slices.Concat(consoleScripts, []string{"console.html", "console.css"})
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(used, filepath.Base(name)) {
			t.Errorf("%s is not part of the document", name)
		}
		for _, bad := range []string{
			`\r`, `(?i)\b(inner|outer)HTML\b`, `insertAdjacentHTML`, `setHTML`, `document\.write`, `createContextualFragment`, `DOMParser`, `srcdoc`,
			`\beval\b`, `\bnew Function\b`, `\bset(Timeout|Interval)\(["'` + "`" + `]`, `javascript:`, `\bimport\b\s*[("'{*]`, `importScripts`, `new Worker`,
			`(?i)<[^>]*\son\w+\s*=`, `(?i)<[^>]*\sstyle\s*=`, `setAttribute\(["'](on|style)`, `cssText`,
			`@import`, `url\(`, `(?i)</(script|style)>.*</(script|style)>`,
			`(?i)https?://[^w]`, `(?i)https?://w[^w]`, `["'(=]//\w`,
			`localStorage[.\[]\w*[tT]oken`, `document\.cookie`,
		} {
			if found := regexp.MustCompile(bad).Find(data); found != nil {
				t.Errorf("%s has %q", name, found)
			}
		}
		if filepath.Ext(name) != ".html" && regexp.MustCompile(`(?i)</(script|style)`).Match(data) {
			t.Errorf("%s ends its element", name)
		}
	}
	html, err := os.ReadFile("console/console.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{`<html lang="en">`, "<style></style>", "<script></script>"} {
		if n := bytes.Count(html, []byte(mark)); n != 1 {
			t.Errorf("console.html has %s %d times", mark, n)
		}
	}
}

func TestTheConsoleSaysHowToMakeTheFirstAdmin(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole, func(c *settings) {
		c.console.firstAdmin = `./"a" & <b>`
		c.registration = registrationInvite
	})
	tag := func() string {
		return between(t, s.do("", "GET", "/console", "").want(t, 200, "").body, "<!doctype html>\n", "\n<head>")
	}
	const (
		usual = `<html lang="en" data-console="on" data-registration="invite" data-mail="off"`
		first = usual + ` data-first-admin="./&#34;a&#34; &amp; &lt;b&gt;">`
	)
	s.addNamed("root", admin, false)
	for _, state := range []struct{ columns, want string }{
		{"disabled = 0", usual + ">"},
		{"disabled = 1", first},
		{"disabled = 0, pending = 1", first},
		{"pending = 0, service = 1", first},
		{"service = 0, role = 'member'", first},
		{"role = 'admin'", usual + ">"},
	} {
		s.change(`UPDATE user SET ` + state.columns)
		if got := tag(); got != state.want {
			t.Errorf("after %s: %s, want %s", state.columns, got, state.want)
		}
	}
	s.store.readers.Close()
	if got := tag(); got != usual+">" {
		t.Errorf("without the database: %s", got)
	}

	s = newService(t, withConsole, withMail)
	if got := tag(); !strings.Contains(got, `data-mail="on"`) {
		t.Errorf("with mail: %s", got)
	}
}

// A refresh without the cookie would fail, and browsers show that as an error.
func TestTheConsoleSaysThatABrowserHasNoSession(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	for headers, none := range map[string]bool{
		"Accept: */*":                               false, // over HTTP, browsers do not say where a request comes from
		"Sec-Fetch-Site: cross-site":                false, // the browser withholds the cookie
		"Sec-Fetch-Site: none":                      true,
		"Sec-Fetch-Site: same-site":                 true,
		"Sec-Fetch-Site: none\nCookie: userd=1.0.x": false,
		"Sec-Fetch-Site: none\nCookie: other=1":     true,
	} {
		r := s.do("", "GET", "/console", "", strings.Split(headers, "\n")...).want(t, 200, "")
		if got := strings.Contains(r.body, ` data-session="none"`); got != none {
			t.Errorf("%q: %t, want %t", headers, got, none)
		}
	}
}

func TestTheRootLeadsToTheConsole(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	if r := s.do("", "GET", "/", "").want(t, 303, ""); r.header.Get("Location") != "console" {
		t.Errorf("Location: %q", r.header["Location"])
	}
	s.do("", "GET", "/nothing", "").want(t, 404, "not_found")
	s.do("", "GET", "/console/", "").want(t, 404, "not_found")

	s = newService(t)
	if r := s.do("", "GET", "/", "").want(t, 200, ""); !strings.Contains(r.field("message"), "/openapi.json") {
		t.Errorf("the answer is %s", r.body)
	}
	s.do("", "GET", "/console", "").want(t, 404, "not_found")
}

func TestALoginKeepsTheRefreshTokenInTheCookie(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	s.register("ann")
	book := s.keepLog()
	var secrets []string
	check := func(what string, r reply, name string) {
		t.Helper()
		c := newCookie(t, r)
		if c == nil {
			t.Fatalf("%s sets no cookie", what)
		}
		if c.Name != name || c.Path != "/" || c.Domain != "" || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.MaxAge != 720*60*60 ||
			c.Secure != strings.HasPrefix(name, "__Host-") || strings.Count(c.Value, ".") != 3 {
			t.Errorf("%s sets %q", what, r.header["Set-Cookie"])
		}
		if strings.Contains(r.body, "refresh_token") || r.field("access_token") == "" || r.field("expires_in") != "900" {
			t.Errorf("%s answers with %s", what, r.body)
		}
		secrets = append(secrets, c.Value, r.field("access_token"))
	}
	r := s.loginForCookie("ann")
	check("a login", r, "userd")
	first := cookieOf(r)
	r = s.do("", "POST", "/api/refresh", "", first, s.here()).want(t, 200, "")
	check("a refresh", r, "userd")
	again := s.do("", "POST", "/api/refresh", "{}", first, s.here()).want(t, 200, "") // another tab
	check("a refresh in another tab", again, "userd")
	if cookieOf(again) != cookieOf(r) {
		t.Error("two tabs got different tokens")
	}
	r = s.do("", "POST", "/api/refresh", "", cookieOf(again), "Sec-Fetch-Site: same-origin").want(t, 200, "")
	access := s.do("", "POST", "/api/refresh", "", cookieOf(r), s.here()).want(t, 200, "").field("access_token")

	// A refreshed token is not proof.
	s.do(access, "PATCH", "/api/users/me", `{"password":"another long one"}`, first, s.here()).want(t, 401, "fresh_login_required")
	r = s.loginForCookie("ann")
	secret, _ := s.enrol(r.field("access_token"))
	mfa := s.loginWith("ann", "").field("mfa_token")
	r = s.do("", "POST", "/api/login/factor", fmt.Sprintf(`{"mfa_token":%q,"otp":%q,"cookie":true}`, mfa, s.nextCode(secret)), s.here()).want(t, 200, "")
	check("the second step of a login", r, "userd")

	log := book.String()
	if !strings.Contains(log, `"POST /api/refresh"`) {
		t.Fatalf("the log is %s", log)
	}
	for _, secret := range secrets {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %s", secret)
		}
	}

	s = newService(t, withSecureConsole)
	s.register("ann")
	r = s.loginForCookie("ann")
	check("a login over HTTPS", r, "__Host-userd")
	s.do("", "POST", "/api/refresh", "", strings.Replace(cookieOf(r), "__Host-", "", 1), s.here()).want(t, 401, "missing_token")
	s.do("", "POST", "/api/refresh", "", cookieOf(r), s.here()).want(t, 200, "")
}

func TestOnlyALoginThatAsksGetsTheCookie(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	s.register("ann")
	for _, more := range []string{"", `,"cookie":false`} {
		r := s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":%q%s}`, goodPassword, more), s.here()).want(t, 200, "")
		if newCookie(t, r) != nil || r.field("refresh_token") == "" {
			t.Errorf("%s: %q and %s", more, r.header["Set-Cookie"], r.body)
		}
	}
	s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":%q,"cookie":"yes"}`, goodPassword), s.here()).want(t, 400, "wrong_type")
	if r := s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong","cookie":true}`, s.here()).want(t, 401, "invalid_credentials"); newCookie(t, r) != nil {
		t.Errorf("a failed login sets %q", r.header["Set-Cookie"])
	}
}

func TestATokenThatIsSentComesBeforeTheCookie(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	s.register("ann")
	_, refresh := s.pair("ann")
	cookie := cookieOf(s.loginForCookie("ann"))
	inBody := fmt.Sprintf(`{"refresh_token":%q}`, refresh)
	r := s.do("", "POST", "/api/refresh", inBody, cookie, s.here()).want(t, 200, "")
	if newCookie(t, r) != nil || r.field("refresh_token") == "" {
		t.Errorf("a token in the body: %q and %s", r.header["Set-Cookie"], r.body)
	}
	r = s.do(r.field("refresh_token"), "POST", "/api/refresh", "", cookie, s.here()).want(t, 200, "")
	if newCookie(t, r) != nil || r.field("refresh_token") == "" {
		t.Errorf("a token in the header: %q and %s", r.header["Set-Cookie"], r.body)
	}
	if r := s.do("x", "POST", "/api/refresh", "", cookie, s.here()).want(t, 401, "invalid_token"); newCookie(t, r) != nil {
		t.Errorf("a bad token in the header deletes the cookie: %q", r.header["Set-Cookie"])
	}
	s.do("", "POST", "/api/refresh", "", cookie, s.here()).want(t, 200, "")
}

// A sibling subdomain can add a cookie without the prefix. userd must not choose one.
func TestTheCookieIsOnlyForRefreshes(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	s.register("ann")
	r := s.loginForCookie("ann")
	cookie, access := cookieOf(r), r.field("access_token")
	for _, c := range []string{cookie, "Cookie: userd=" + access} {
		s.do("", "GET", "/api/users/me", "", c, s.here()).want(t, 401, "missing_token")
		s.do("", "POST", "/api/logout", "", c, s.here()).want(t, 401, "missing_token")
	}
	for _, two := range []string{cookie + "; userd=x", "Cookie: userd=x; " + strings.TrimPrefix(cookie, "Cookie: ")} {
		if r := s.do("", "POST", "/api/refresh", "", two, s.here()).want(t, 401, "missing_token"); newCookie(t, r) != nil {
			t.Errorf("two cookies: %q", r.header["Set-Cookie"])
		}
	}
	s.do("", "POST", "/api/refresh", "", "Cookie: userd="+access, s.here()).want(t, 401, "invalid_token")
	s.do("", "POST", "/api/refresh", "", "Cookie: userd=", s.here()).want(t, 401, "missing_token")
	s.do("", "POST", "/api/refresh", "", "Cookie: __Host-userd="+strings.TrimPrefix(cookie, "Cookie: userd="), s.here()).want(t, 401, "missing_token")
	s.do("", "POST", "/api/refresh", "", cookie, s.here()).want(t, 200, "")
}

func TestAnInvalidCookieIsDeleted(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	s.register("ann")
	refuses := func(cookie, code string) {
		t.Helper()
		c := newCookie(t, s.do("", "POST", "/api/refresh", "", cookie, s.here()).want(t, 401, code))
		if c == nil || c.Name != "userd" || c.Value != "" || c.MaxAge != -1 || c.Path != "/" {
			t.Errorf("%s: %v", code, c)
		}
	}
	refuses("Cookie: userd=x", "invalid_token")
	used := cookieOf(s.loginForCookie("ann"))
	s.do("", "POST", "/api/refresh", "", used, s.here()).want(t, 200, "")
	s.clock.add(11 * time.Second)
	refuses(used, "reused_token")
	refuses(used, "session_ended")
	old := cookieOf(s.loginForCookie("ann"))
	s.clock.add(720 * time.Hour)
	refuses(old, "expired_token")

	kept := cookieOf(s.loginForCookie("ann"))
	s.keepLog()
	s.store.filesLost.Store(true)
	if r := s.do("", "POST", "/api/refresh", "", kept, s.here()).want(t, 503, "unavailable"); newCookie(t, r) != nil {
		t.Errorf("a failing database deletes the cookie: %q", r.header["Set-Cookie"])
	}
}

func TestARequestThatEndsItsSessionDeletesTheCookie(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	path, _ := s.register("ann")
	for _, row := range []struct {
		method, path string
		status       int
	}{
		{"POST", "/api/logout", 204},
		{"POST", "/api/logout?all=true", 204},
		{"DELETE", path + "/sessions/{sid}", 204},
		{"DELETE", path + "/sessions", 204},
		{"DELETE", path, 200},
	} {
		r := s.loginForCookie("ann")
		sid, _, _ := strings.Cut(strings.TrimPrefix(cookieOf(r), "Cookie: userd="), ".")
		ended := s.do(r.field("access_token"), row.method, strings.Replace(row.path, "{sid}", sid, 1), "", cookieOf(r), s.here()).want(t, row.status, "")
		if c := newCookie(t, ended); c == nil || c.Value != "" || c.MaxAge != -1 {
			t.Errorf("%s %s: %v", row.method, row.path, c)
		}
		if r := s.do("", "POST", "/api/refresh", "", cookieOf(r), s.here()); r.status != 401 || r.field("code") != "session_ended" {
			t.Errorf("%s %s: the cookie works: %s", row.method, row.path, r.body)
		}
	}
}

func TestOnlyTheCookieOfTheSessionIsDeleted(t *testing.T) {
	t.Parallel()
	s := newService(t, withConsole)
	s.register("ann")
	one, two := s.loginForCookie("ann"), s.loginForCookie("ann")
	for _, headers := range [][]string{{cookieOf(two), s.here()}, {s.here()}, {cookieOf(one), "Origin: https://evil.example"}} {
		one = s.loginForCookie("ann")
		if r := s.do(one.field("access_token"), "POST", "/api/logout", "", headers...).want(t, 204, ""); newCookie(t, r) != nil {
			t.Errorf("with %q: %q", headers, r.header["Set-Cookie"])
		}
	}
	s.do("", "POST", "/api/refresh", "", cookieOf(two), s.here()).want(t, 200, "")

	bob, _ := s.register("bob")
	s.admin("root")
	root := s.loginForCookie("root")
	for _, path := range []string{bob + "/sessions", bob} {
		if r := s.do(root.field("access_token"), "DELETE", path, "", cookieOf(root), s.here()); r.status >= 300 || newCookie(t, r) != nil {
			t.Errorf("DELETE %s: %d, %q", path, r.status, r.header["Set-Cookie"])
		}
	}
	other := s.loginForCookie("root")
	sid, _, _ := strings.Cut(strings.TrimPrefix(cookieOf(other), "Cookie: userd="), ".")
	if r := s.do(root.field("access_token"), "DELETE", "/api/users/me/sessions/"+sid, "", cookieOf(root), s.here()).want(t, 204, ""); newCookie(t, r) != nil {
		t.Errorf("another session: %q", r.header["Set-Cookie"])
	}
	s.do("", "POST", "/api/refresh", "", cookieOf(root), s.here()).want(t, 200, "")
}

func TestAChangedPasswordSetsTheNextCookie(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"PUT", "PATCH"} {
		s := newService(t, withConsole)
		path, _ := s.register("ann")
		other := s.loginForCookie("ann")
		one := s.loginForCookie("ann")
		change := func(password string, headers ...string) reply {
			t.Helper()
			return s.do(one.field("access_token"), method, path, fmt.Sprintf(`{"password":%q}`, password), headers...).want(t, 200, "")
		}
		r := change("another long one", cookieOf(one), s.here())
		if newCookie(t, r) == nil || strings.Contains(r.body, "refresh_token") || r.field("token_type") != "Bearer" {
			t.Fatalf("%s: %q and %s", method, r.header["Set-Cookie"], r.body)
		}
		s.do("", "POST", "/api/refresh", "", cookieOf(one), s.here()).want(t, 401, "session_ended")
		s.do("", "POST", "/api/refresh", "", cookieOf(other), s.here()).want(t, 401, "session_ended")
		s.do("", "POST", "/api/refresh", "", cookieOf(r), s.here()).want(t, 200, "")

		// Without the cookie of this session, the answer has the token as usual.
		one = s.do(r.field("access_token"), method, path, fmt.Sprintf(`{"password":%q}`, goodPassword)).want(t, 200, "")
		for _, headers := range [][]string{nil, {cookieOf(other), s.here()}, {cookieOf(r), "Origin: https://evil.example"}} {
			one = s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":%q}`, goodPassword)).want(t, 200, "")
			if r := change(goodPassword, headers...); newCookie(t, r) != nil || r.field("refresh_token") == "" {
				t.Errorf("%s with %q: %q and %s", method, headers, r.header["Set-Cookie"], r.body)
			}
		}
	}
}

func TestWithoutTheConsoleThereAreNoCookies(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	for _, value := range []string{"true", "false"} {
		body := fmt.Sprintf(`{"username":"ann","password":%q,"cookie":%s}`, goodPassword, value)
		if r := s.do("", "POST", "/api/login", body, s.here()).want(t, 400, "unknown_member"); !strings.Contains(r.field("error"), `"cookie"`) {
			t.Errorf("the error is %s", r.field("error"))
		}
		s.do("", "POST", "/api/login/factor", `{"mfa_token":"x","otp":"123456","cookie":`+value+`}`, s.here()).want(t, 400, "unknown_member")
	}
	access, refresh := s.pair("ann")
	cookie := "Cookie: userd=" + refresh
	if r := s.do("", "POST", "/api/refresh", "", cookie, s.here()).want(t, 401, "missing_token"); newCookie(t, r) != nil {
		t.Errorf("a refresh: %q", r.header["Set-Cookie"])
	}
	r := s.do(access, "PATCH", path, `{"password":"another long one"}`, cookie, s.here()).want(t, 200, "")
	if newCookie(t, r) != nil || r.field("refresh_token") == "" {
		t.Errorf("a changed password: %q and %s", r.header["Set-Cookie"], r.body)
	}
	if r := s.do(access, "POST", "/api/logout", "", "Cookie: userd="+r.field("refresh_token"), s.here()).want(t, 204, ""); newCookie(t, r) != nil {
		t.Errorf("a logout: %q", r.header["Set-Cookie"])
	}
}

// Requests that pages of other origins can cause a browser to send, and those of programs that
// say nothing of their origin, neither use nor set the cookie.
func TestForgedRequestsDoNotUseTheCookie(t *testing.T) {
	t.Parallel()
	const evil = "https://evil.example"
	s := newService(t, withConsole, unlimited, func(c *settings) { c.corsOrigins = []string{evil} })
	path, _ := s.register("ann")
	first := s.loginForCookie("ann")
	cookie, access := cookieOf(first), first.field("access_token")
	otherPort := strings.TrimRight(s.url, "0123456789") + "1"
	origins := [][]string{
		nil,
		{"Origin: null"},
		{"Origin: " + evil},
		{"Origin: " + otherPort},
		{"Origin: " + s.url + ".evil.example"},
		{"Origin: x"},
		{"Sec-Fetch-Site: cross-site"},
		{"Sec-Fetch-Site: same-site"},
		{"Sec-Fetch-Site: x"},
		{"Sec-Fetch-Site: cross-site", "Origin: null"},
		{"Sec-Fetch-Site: cross-site", "Origin: " + s.url},
		{"Sec-Fetch-Site: same-site", "Origin: " + otherPort},
		{"Sec-Fetch-Site: cross-site", "Origin: " + evil, "Sec-Fetch-Mode: no-cors", "Referer: " + s.url + "/console"},
		{"Host: evil.example", "Referer: " + s.url + "/console"},
	}
	routes := []struct{ path, body string }{
		{"/api/refresh", ""}, {"/api/refresh", "{}"}, {"/api/login", cookieLogin("ann")},
		{"/api/login/factor", `{"mfa_token":"x","otp":"123456","cookie":true}`},
		{"/api/logout", ""}, {"/api/logout?all=true", "{}"}, {path, `{"password":"another long one"}`},
	}
	types := []string{"", "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/octet-stream"}
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "NONSENSE"}
	for _, origin := range origins {
		for _, method := range methods {
			for _, route := range routes {
				for _, kind := range types {
					headers := append([]string{cookie, "Content-Type: " + kind}, origin...)
					if kind == "" {
						headers = headers[:1]
						headers = append(headers, origin...)
					}
					r := s.do("", method, route.path, route.body, headers...)
					if r.status < 400 && r.status != 204 || newCookie(t, r) != nil || strings.Contains(r.body, "token\":") || r.header.Get("Access-Control-Allow-Credentials") != "" {
						t.Fatalf("%s %s with %q: %d, %v, %s", method, route.path, headers, r.status, r.header, r.body)
					}
				}
			}
		}
	}
	for _, origin := range origins {
		for _, route := range routes[:3] {
			s.do("", "POST", route.path, route.body, append([]string{cookie}, origin...)...).want(t, 403, "cross_origin")
		}
	}
	if list := s.do(access, "GET", "/api/users/me/sessions", "").want(t, 200, "").list(t, "id"); len(list) != 1 {
		t.Errorf("the sessions are %v", list)
	}
	s.do("", "POST", "/api/refresh", "", cookie, s.here()).want(t, 200, "") // its first use
	s.scrape().want(t, samples{"userd_refresh_grace_total": 0})
}

// A proxy can send another Host than the one in the address of the page.
func TestThePageOfAPPURLMayUseTheCookie(t *testing.T) {
	t.Parallel()
	s := newService(t, withSecureConsole)
	s.register("ann")
	login := func(headers ...string) reply { return s.do("", "POST", "/api/login", cookieLogin("ann"), headers...) }
	r := login("Origin: https://id.example.com").want(t, 200, "")
	s.do("", "POST", "/api/refresh", "", cookieOf(r), "Origin: https://id.example.com", "Sec-Fetch-Site: same-origin").want(t, 200, "")
	login("Origin: http://id.example.com").want(t, 403, "cross_origin")
	login("Origin: https://app.id.example.com").want(t, 403, "cross_origin")

	s = newService(t, withConsole)
	s.register("ann")
	login("Origin: https://id.example.com").want(t, 403, "cross_origin")
}

func TestListMails(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	_, root := s.admin("root")
	for i := range defaultLimit + 1 {
		s.change(`INSERT INTO user_mail (kind, user_id, login, email, subject_id, detail, address, user_agent, created_at, next_try_at, state)
			VALUES ('reset', 0, 'secret', '', 0, '', '', '', 1, 2, iif(@i % 2 = 0, 'queued', 'failed'))`, arg{"i", i})
	}
	list := func(query string) (ids []int64, next string) {
		t.Helper()
		r := s.do(root, "GET", "/api/mail"+query, "").want(t, 200, "")
		var mails []mailAnswer
		if err := json.Unmarshal([]byte(r.body), &mails); err != nil {
			t.Fatal(err)
		}
		for _, m := range mails {
			ids = append(ids, m.ID)
			if (m.State == mailQueued) != m.NextTryAt.Equal(time.Unix(2, 0)) {
				t.Errorf("%+v", m)
			}
		}
		if strings.Contains(r.body, "secret") {
			t.Errorf("the answer has what a client typed: %s", r.body)
		}
		return ids, r.header.Get("Link")
	}
	if ids, next := list(""); len(ids) != defaultLimit || ids[0] != 1 || !strings.Contains(next, "after=100") {
		t.Errorf("without a limit: %v, %s", ids, next)
	}
	if ids, next := list("?after=100"); !slices.Equal(ids, []int64{101}) || next != "" {
		t.Errorf("the last page: %v, %s", ids, next)
	}
	if ids, next := list("?state=failed&limit=2&after=2"); !slices.Equal(ids, []int64{4, 6}) || !strings.Contains(next, "state=failed") {
		t.Errorf("failed ones: %v, %s", ids, next)
	}
	for _, query := range []string{"?state=", "?state=new", "?limit=0", "?after=x", "?x=1"} {
		s.do(root, "GET", "/api/mail"+query, "").want(t, 400, "bad_parameter")
	}
	_, ann := s.member("ann")
	s.do(ann, "GET", "/api/mail", "").want(t, 403, "forbidden")
}

func TestRetryMail(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	_, root := s.admin("root")
	s.change(`INSERT INTO user_mail (kind, user_id, login, email, subject_id, detail, address, user_agent, created_at, next_try_at, state, closed_at)
		VALUES ('reset', 0, 'x', '', 0, '', '', '', 1, 2, 'failed', 3), ('reset', 0, 'x', '', 0, '', '', '', 1, 2, 'sent', 3)`)
	s.do(root, "POST", "/api/mail/1/retry", "").want(t, 204, "")
	if r := s.do(root, "GET", "/api/mail?state=queued", "").want(t, 200, ""); !slices.Equal(r.list(t, "next_try_at"), []string{s.wall().UTC().Format(time.RFC3339)}) {
		t.Errorf("after the retry: %s", r.body)
	}
	for _, id := range []string{"2", "3", "0", "x"} {
		s.do(root, "POST", "/api/mail/"+id+"/retry", "").want(t, 404, "mail_not_found")
	}

	// The write checks the rights: the caller can lose them after its request came in.
	by := caller{kind: sessionCaller, session: 1}
	if _, err := s.store.retryMail(t.Context(), by, 1, 4); err != nil {
		t.Fatal(err)
	}
	s.change(`UPDATE user SET role = 'member'`)
	_, err := s.store.retryMail(t.Context(), by, 1, 5)
	wantError(t, "a retry by a member", err, errForbidden)
	s.do(root, "POST", "/api/mail/1/retry", "").want(t, 403, "forbidden")
}
