package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"userd/internal/headers"
	"userd/internal/strictjson"
)

//go:embed console
var consoleFiles embed.FS

// consoleScripts are the scripts of the console, in the order in which they run.
var consoleScripts = []string{
	"dom.js", "api.js", "login.js", "codes.js", "account.js", "factor.js",
	"users.js", "user.js", "invitations.js", "mail.js", "events.js", "state.js",
	"start.js",
}

// A webPage is the document of the console.
type webPage struct {
	html, gzipped []byte
	policy        string // the Content-Security-Policy: its own script and style run, and the script may only call this server
}

// newWebPage returns the document with these attributes of its html element.
func newWebPage(attributes string) *webPage {
	read := func(name string) string {
		text, err := consoleFiles.ReadFile("console/" + name)
		if err != nil {
			panic(err)
		}
		return string(text)
	}
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	style, script := read("console.css"), ""
	for _, name := range consoleScripts {
		script += read(name)
	}
	text := strings.NewReplacer(
		`<html lang="en">`, `<html lang="en"`+attributes+">",
		"<style></style>", "<style>"+style+"</style>",
		"<script></script>", "<script>"+script+"</script>",
	).Replace(read("console.html"))
	var gzipped bytes.Buffer
	w, err := gzip.NewWriterLevel(&gzipped, gzip.BestCompression)
	if err != nil {
		panic(err)
	}
	w.Write([]byte(text)) // a buffer cannot fail
	w.Close()
	return &webPage{[]byte(text), gzipped.Bytes(), "default-src 'none'; script-src " + hash(script) + "; style-src " + hash(style) +
		"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"}
}

// A pageState says what a document of the console depends on.
type pageState struct {
	admin   bool // the service has an admin; otherwise the page shows the command line that makes the first one
	session bool // the browser may have a session; otherwise the page does not ask for one
}

// webPages are the documents of the console. Each is made when it is first sent.
type webPages map[pageState]func() *webPage

func (s *server) newWebPages() webPages {
	pages := webPages{}
	for _, state := range []pageState{{true, true}, {true, false}, {false, true}, {false, false}} {
		pages[state] = sync.OnceValue(func() *webPage {
			attributes := ""
			add := func(name, value string) { attributes += " data-" + name + `="` + html.EscapeString(value) + `"` }
			add("console", onOff(s.console.on))
			add("registration", string(s.registration))
			add("mail", onOff(s.mailOn))
			if !state.admin {
				add("first-admin", s.console.firstAdmin)
			}
			if !state.session {
				add("session", "none")
			}
			return newWebPage(attributes)
		})
	}
	return pages
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// sendConsole answers with the console.
func (s *server) sendConsole(x *exchange) error {
	if !s.console.on {
		return errNotFound
	}
	found, err := s.store.hasAdmin()
	// If the database is unavailable, the page itself shows that.
	return x.sendDocument(s.webPages[pageState{found || err != nil, s.mayHaveSession(x.r)}]())
}

// mayHaveSession reports whether the browser that asks for a document may have the cookie. It does
// not send the cookie if a page of another site led to the document (SameSite=Strict). Browsers
// send Sec-Fetch-Site only over HTTPS and to loopback addresses.
func (s *server) mayHaveSession(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site == "" || site == "cross-site" || len(r.CookiesNamed(s.console.cookieName())) > 0
}

// sendDocument answers with a document of the console.
func (x *exchange) sendDocument(p *webPage) error {
	header := x.Header()
	header["Content-Type"] = []string{"text/html; charset=utf-8"}
	header["Content-Security-Policy"] = []string{p.policy}
	header["Referrer-Policy"] = []string{"no-referrer"}
	header["Cross-Origin-Opener-Policy"] = []string{"same-origin"}
	if headers.Accepts(x.r, "Accept-Encoding", "gzip") {
		header["Content-Encoding"] = []string{"gzip"}
		return x.send(http.StatusOK, p.gzipped)
	}
	return x.send(http.StatusOK, p.html)
}

// root redirects a browser to the console, and tells other clients where the API is described. The
// redirect is relative: a proxy may serve userd below a path.
func (s *server) root(x *exchange) error {
	if s.console.on {
		x.Header()["Location"] = []string{"console"}
		return x.sendMessage(http.StatusSeeOther, "The console is at /console")
	}
	return x.sendMessage(http.StatusOK, "The API is described in /openapi.json")
}

// openAPI returns the OpenAPI document of the routes, assets/openapi.json. People write it: a
// test could not check the code against a document that was generated from the code. The
// binary has it compressed, which is an eighth of its size; a test compares the two files.
var openAPI = sync.OnceValue(func() []byte {
	unzipped, err := gzip.NewReader(bytes.NewReader(openAPIGzip))
	if err != nil {
		panic(err)
	}
	text, err := io.ReadAll(unzipped)
	if err != nil {
		panic(err)
	}
	return text
})

//go:embed assets/openapi.json.gz
var openAPIGzip []byte

func (s *server) openAPI(x *exchange) error { return x.send(http.StatusOK, openAPI()) }

// setConsole sets the settings of the console. program is how the server was started.
func (c *config) setConsole(development bool, program string) {
	c.console.on = c.consoleSwitch == switchOn || c.consoleSwitch == "" && development
	c.console.secure = !development && !strings.HasPrefix(c.appURL, "http:")
	if u, err := url.Parse(c.appURL); err == nil && c.appURL != "" {
		standardPort := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
		c.console.origin = u.Scheme + "://" + strings.TrimSuffix(strings.ToLower(u.Host), standardPort) // as browsers send it
	}
	c.console.firstAdmin = c.firstAdmin(development, program)
}

// goRun matches the programs that "go run" builds: in a temporary directory or, from the second
// time on, in the cache of builds.
var goRun = regexp.MustCompile(`[/\\]go-build[^/\\]*[/\\]|[/\\][0-9a-f]{64}-d[/\\]`)

// firstAdmin returns the command line that makes the first admin. It shows paths only in
// development: strangers can read it.
func (c *config) firstAdmin(development bool, program string) string {
	if !development {
		return filepath.Base(program) + " user add -admin NAME EMAIL"
	}
	if goRun.MatchString(program) {
		program = "go run ."
	} else {
		program = shellWord(program)
	}
	if standard, err := filepath.Abs("app.db"); err != nil || c.database != standard {
		return program + " user add -admin -database " + shellWord(c.database) + " NAME EMAIL"
	}
	return program + " user add -admin NAME EMAIL"
}

var plainWord = regexp.MustCompile(`^[\w@%+=:,./\\-]+$`)

// shellWord returns a text as one word of a command line for a shell.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// cookieName returns the name of the cookie with the refresh token. With the prefix, browsers
// accept the cookie only from this host over HTTPS: a sibling subdomain cannot set it.
func (c *consoleSettings) cookieName() string {
	if c.secure {
		return "__Host-userd"
	}
	return "userd"
}

// setCookie puts a refresh token into the cookie for life, or deletes the cookie if life is negative.
func (s *server) setCookie(x *exchange, token string, life time.Duration) {
	http.SetCookie(x.ResponseWriter, &http.Cookie{
		Name:     s.console.cookieName(),
		Value:    token,
		Path:     "/",
		MaxAge:   int(life / time.Second),
		Secure:   s.console.secure,
		HttpOnly: true,
		SameSite: http.SameSiteStrictMode,
	})
}

// newCrossOrigin returns the check of where a request comes from. Behind a proxy, the Host can
// differ from the host of APP_URL.
func newCrossOrigin(c *consoleSettings) *http.CrossOriginProtection {
	p := http.NewCrossOriginProtection()
	if c.origin != "" {
		if err := p.AddTrustedOrigin(c.origin); err != nil {
			panic(err) // setting.PublicURL accepted it
		}
	}
	return p
}

// checkOrigin returns nil if a page of this server sent the request, and otherwise
// errCrossOrigin. A request without the headers that say so is refused: every browser sends one
// of them with a POST.
func (s *server) checkOrigin(r *http.Request) error {
	if r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" || s.crossOrigin.Check(r) != nil {
		return errCrossOrigin
	}
	return nil
}

// askForCookie makes the answer to a login put the refresh token into the cookie if the member
// cookie of the body is true.
func (s *server) askForCookie(x *exchange, asked *bool) error {
	if asked == nil {
		return nil
	}
	if !s.console.on {
		return &strictjson.Error{Kind: strictjson.Unknown, Member: "cookie"}
	}
	x.cookie = *asked
	if x.cookie {
		return s.checkOrigin(x.r)
	}
	return nil
}

// readCookie returns the refresh token in the cookie of the request. It returns errNoRefresh if
// there is none, or more than one cookie, and errCrossOrigin if another page sent the request.
func (s *server) readCookie(x *exchange) (string, error) {
	cookies := x.r.CookiesNamed(s.console.cookieName())
	if !s.console.on || len(cookies) != 1 || cookies[0].Value == "" {
		return "", errNoRefresh
	}
	return cookies[0].Value, s.checkOrigin(x.r)
}

// ownCookie reports whether the cookie of the request has a refresh token of the caller's session.
func (s *server) ownCookie(x *exchange) bool {
	token, err := s.readCookie(x)
	return err == nil && strings.HasPrefix(token, strconv.FormatInt(x.who.session, 10)+".")
}

// intoCookie puts a refresh token into the cookie and returns "" if x.cookie; otherwise it returns
// the token, for the body.
func (s *server) intoCookie(x *exchange, token string) string {
	if !x.cookie {
		return token
	}
	s.setCookie(x, token, s.refreshTTL)
	return ""
}

// endCookie deletes the cookie of the request if it is that of the caller's session. A handler calls
// it after it has ended sessions of a user; if the user is not the caller, the cookie stays.
func (s *server) endCookie(x *exchange, user int64) {
	if user == x.who.id && s.ownCookie(x) {
		s.setCookie(x, "", -time.Second)
	}
}

// dropCookie deletes the cookie that the request used if its refresh token is not valid any more.
func (s *server) dropCookie(x *exchange, err error) {
	if x.cookie && err != nil && answerFor(err).status == http.StatusUnauthorized {
		s.setCookie(x, "", -time.Second)
	}
}
