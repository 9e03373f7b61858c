package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"userd/internal/otp"
)

// A browser is a headless Chromium, driven by WebDriver (https://www.w3.org/TR/webdriver2/).
type browser struct {
	t       *testing.T
	session string          // the URL of the WebDriver session
	mailed  map[string]bool // the links that mailedLink has returned
	origins []string        // the pages may ask these only
	axe     string          // the source of axe-core, or "" before its first use
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	driver := exec.Command("chromedriver", "--port=0")
	driver.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := driver.StdoutPipe()
	if err == nil {
		err = driver.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, mailed: make(map[string]bool)}
	t.Cleanup(func() {
		if quit, err := http.NewRequest("DELETE", b.session, nil); err == nil {
			http.DefaultClient.Do(quit) // ends Chromium too
		}
		driver.Process.Kill()
		driver.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if port := regexp.MustCompile(`successfully on port (\d+)`).FindStringSubmatch(lines.Text()); port != nil {
			b.session = "http://127.0.0.1:" + port[1] + "/session"
			break
		}
	}
	go io.Copy(io.Discard, out)
	var made struct {
		SessionID string `json:"sessionId"`
	}
	b.call("POST", "", object{"capabilities": object{"alwaysMatch": object{
		"goog:chromeOptions": object{"args": []string{
			"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(),
			"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", // ask no server of Google's
		}},
		"goog:loggingPrefs": object{"browser": "ALL", "performance": "ALL"},
		"timeouts":          object{"script": 10 * time.Minute / time.Millisecond}, // some tests send all their requests in one script
	}}}, &made)
	b.session += "/" + made.SessionID
	return b
}

// call sends a command of WebDriver. Its result goes to result, unless that is nil.
func (b *browser) call(method, path string, parameters, result any) {
	b.t.Helper()
	if err := b.try(method, path, parameters, result); err != nil {
		b.t.Fatal(err)
	}
}

// try is call, but returns the error of a command that fails.
func (b *browser) try(method, path string, parameters, result any) error {
	b.t.Helper()
	var body []byte
	if parameters != nil {
		body = must(json.Marshal(parameters))
	}
	r, err := http.NewRequest(method, b.session+path, bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("%s %s %.300s: %d, %v: %s", method, path, body, resp.StatusCode, err, answer.Value)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Value, result); err != nil {
		return fmt.Errorf("%s %s: %v: %s", method, path, err, answer.Value)
	}
	return nil
}

// open loads a page. From then on, pages may ask its server too.
func (b *browser) open(page string) {
	b.t.Helper()
	at, err := url.Parse(page)
	if err != nil {
		b.t.Fatal(err)
	}
	b.origins = append(b.origins, at.Scheme+"://"+at.Host)
	b.call("POST", "/url", object{"url": "about:blank"}, nil) // another fragment would not load the page again
	b.call("POST", "/url", object{"url": page}, nil)
}

// devtools sends a command of the DevTools protocol.
func (b *browser) devtools(command string, parameters object, result any) {
	b.t.Helper()
	b.call("POST", "/goog/cdp/execute", object{"cmd": command, "params": parameters}, result)
}

// tryDevtools is devtools, but returns the error of a command that fails.
func (b *browser) tryDevtools(command string, parameters object, result any) error {
	b.t.Helper()
	return b.try("POST", "/goog/cdp/execute", object{"cmd": command, "params": parameters}, result)
}

// eval returns the value of an expression in the page, as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var v any
	b.call("POST", "/execute/sync", object{"script": "return " + expression, "args": []any{}}, &v)
	return fmt.Sprint(v)
}

// element returns the path of the first element that a selector matches.
func (b *browser) element(selector string) string {
	b.t.Helper()
	var found map[string]string
	b.call("POST", "/element", object{"using": "css selector", "value": selector}, &found)
	for _, reference := range found {
		return "/element/" + reference
	}
	b.t.Fatalf("no element %s", selector)
	return ""
}

func (b *browser) click(selector string) {
	b.t.Helper()
	b.call("POST", b.element(selector)+"/click", object{}, nil)
}

// send clicks the button that sends the form.
func (b *browser) send() {
	b.t.Helper()
	b.click("form [type=submit]")
}

// write replaces the text of a field.
func (b *browser) write(id, text string) {
	b.t.Helper()
	field := b.element("#" + id)
	b.call("POST", field+"/clear", object{}, nil)
	b.call("POST", field+"/value", object{"text": text}, nil)
}

// press presses keys, which the element with the focus gets.
func (b *browser) press(keys string) {
	b.t.Helper()
	var strokes []object
	for _, key := range keys {
		strokes = append(strokes, object{"type": "keyDown", "value": string(key)}, object{"type": "keyUp", "value": string(key)})
	}
	b.call("POST", "/actions", object{"actions": []object{{"type": "key", "id": "keyboard", "actions": strokes}}}, nil)
}

// Keys of WebDriver.
const (
	tabKey    = "\uE004"
	enterKey  = "\uE007"
	escapeKey = "\uE00C"
	homeKey   = "\uE011"
	downKey   = "\uE015"
	deleteKey = "\uE017"
)

// wantMessage waits until the page says something.
func (b *browser) wantMessage(text string) {
	b.t.Helper()
	said := ""
	defer func() {
		if !strings.Contains(said, text) {
			b.t.Logf("the page says %q", said)
		}
	}()
	await(b.t, "the page says "+text, func() bool {
		said = b.text()
		return strings.Contains(said, text)
	})
}

// wantWrong waits until the page says what is wrong with the field with an id, and the field has
// the focus.
func (b *browser) wantWrong(id, text string) {
	b.t.Helper()
	said := ""
	defer func() {
		if !strings.Contains(said, text) {
			b.t.Logf("the page says %q about %s; it says %q", said, id, b.text())
		}
	}()
	await(b.t, id+": "+text, func() bool {
		said = b.eval(fmt.Sprintf(`document.querySelector("#%s[aria-invalid]") && document.getElementById("%[1]s-about").innerText`, id))
		return strings.Contains(said, text)
	})
	b.wantFocus(id)
}

// wantFocus waits until the element with an id has the focus.
func (b *browser) wantFocus(id string) {
	b.t.Helper()
	await(b.t, "the focus is on "+id, func() bool { return b.eval(`document.activeElement.id`) == id })
}

// wantDone waits until the page says that it has done its work, and fails the test unless
// the form is gone and the title has the focus.
func (b *browser) wantDone(text string) {
	b.t.Helper()
	b.wantMessage(text)
	b.wantFocus("title")
	if got := b.eval(`document.querySelector("form, input") === null`); got != "true" {
		b.t.Error("the form is still there")
	}
}

// follow opens a link, after a program that follows links has done so three times. It fails
// the test unless the code leaves the address and the history.
func (b *browser) follow(link string) {
	b.t.Helper()
	for _, method := range []string{"GET", "HEAD", "GET"} {
		resp, err := http.DefaultClient.Do(must(http.NewRequest(method, link, nil)))
		if err != nil {
			b.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			b.t.Errorf("%s %s: %s", method, link, resp.Status)
		}
	}
	b.open(link)
	b.wantClean(link)
}

// wantClean fails the test if the address or the history has the code of a link that was
// opened, if the page is too wide, or for what wantNoFaults finds.
func (b *browser) wantClean(link string) {
	b.t.Helper()
	page, code, _ := strings.Cut(link, "#")
	var at string
	b.call("GET", "/url", nil, &at)
	if at != page {
		b.t.Errorf("the address is %s", at)
	}
	var history struct{ Entries []struct{ URL string } }
	b.devtools("Page.getNavigationHistory", object{}, &history)
	for _, e := range history.Entries {
		if code != "" && strings.Contains(e.URL, code) {
			b.t.Errorf("the history has %s", e.URL)
		}
	}
	b.wantNoFaults()
	b.wantNoScrolling()
}

// wantNoScrolling fails the test if the page is wider than the window.
func (b *browser) wantNoScrolling() {
	b.t.Helper()
	if got := b.eval(`document.documentElement.scrollWidth <= document.documentElement.clientWidth`); got != "true" {
		b.t.Error("the page is wider than the window")
	}
}

// wantNoFaults fails the test if, since it was last called, a page has written to the
// console, which includes violations of the content security policy, or has asked a server
// that b.origins does not name. Chromium writes a line for each request that fails, which
// can be as intended.
func (b *browser) wantNoFaults() {
	b.t.Helper()
	for _, e := range b.log("browser") {
		if !strings.Contains(e.Message, " - Failed to load resource: ") {
			b.t.Errorf("the console says %+v", e)
		}
	}
	for _, e := range b.log("performance") {
		var sent struct {
			Message struct {
				Method string
				Params struct{ Request struct{ URL string } }
			}
		}
		if err := json.Unmarshal([]byte(e.Message), &sent); err != nil {
			b.t.Fatal(err)
		}
		asked, err := url.Parse(sent.Message.Params.Request.URL)
		if sent.Message.Method != "Network.requestWillBeSent" || err == nil && slices.Contains([]string{"about", "data", "blob", "chrome"}, asked.Scheme) {
			continue // chrome: the first page of the browser
		}
		if err != nil || !slices.Contains(b.origins, asked.Scheme+"://"+asked.Host) {
			b.t.Errorf("the page asked %s; it may ask %s only", asked, b.origins)
		}
	}
}

// A logEntry is an entry of a log of the browser.
type logEntry struct{ Level, Message string }

// log returns the entries of a log since it was last called.
func (b *browser) log(kind string) (entries []logEntry) {
	b.t.Helper()
	b.call("POST", "/se/log", object{"type": kind}, &entries)
	return entries
}

// text returns what a person sees of the page.
func (b *browser) text() string {
	b.t.Helper()
	return b.eval(`document.querySelector("main").innerText`)
}

// mailedLink returns the next link with a code of a kind in the mails to an address, which
// userd writes to its log.
func (b *browser) mailedLink(p *process, to string, kind codeKind) (link string) {
	b.t.Helper()
	pattern := regexp.MustCompile(`\bhttp\S+#` + string(kind) + `_[A-Z2-7]+\b`)
	await(b.t, "a mail to "+to, func() bool {
		for _, text := range strings.Split(strings.Join(p.log(), "\n"), "\nTo: ")[1:] {
			if found := pattern.FindString(text); strings.HasPrefix(text, to+"\n") && found != "" && !b.mailed[found] {
				link = found
			}
		}
		return link != ""
	})
	b.mailed[link] = true
	return link
}

// within runs a subtest in the same browser.
func (b *browser) within(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		outer := b.t
		b.t = t
		defer func() { b.t = outer }()
		f(t)
	})
}

// The pages of all links, in Debian's Chromium, at 320 pixels and in the dark. Each flow
// runs once by mouse, and once with only the keyboard.
func TestThePagesInABrowser(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	dir := t.TempDir()
	environ := []string{"DATABASE_URL=" + filepath.Join(dir, "app.db"), "MAIL_URL=log:", "REGISTRATION=verified", "RATE_LIMIT=off"}
	const markup = "<img src=x onerror=document.title=1>"
	for _, name := range []string{"ann", "carl", "dora", "markup", "pat"} {
		userdHere(t, goodPassword, environ, "user", "add", name, name+"@example.com")
	}
	userdHere(t, goodPassword, environ, "user", "add", "-admin", "root", "root@example.com")
	const secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP" // of eve's authenticator app
	userdHere(t, "username,email,password,totp_secret\neve,eve@example.com,"+goodPassword+","+secret+"\n", environ, "user", "import", "-")
	runSQL(t, another(t, filepath.Join(dir, "app.db")), `UPDATE user SET username = '`+markup+`' WHERE username = 'markup'`)
	runSQL(t, another(t, filepath.Join(dir, "app.db")), `UPDATE user SET pending = 1 WHERE username = 'pat'`)
	p := startUserd(t, dir, environ)
	root := p.login("root", goodPassword)
	resetLink := func() string {
		return p.must(root, "POST", "/api/users/1/reset-link", "").want(t, 201, "").field("url")
	}
	invite := func() string {
		return p.must(root, "POST", "/api/invitations", `{"email":"bob@example.com"}`).want(t, 201, "").field("url")
	}
	b := startBrowser(t)
	b.devtools("Emulation.setDeviceMetricsOverride", object{"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": true}, nil)
	b.devtools("Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": "dark"}}}, nil)

	b.within(t, "a reset by mouse", func(t *testing.T) {
		link := resetLink()
		b.follow(link)
		if got := b.eval(`getComputedStyle(document.body).color`); got != "rgb(255, 255, 255)" {
			t.Errorf("in the dark the text is %s", got)
		}
		b.write("password", "short")
		b.send()
		b.wantWrong("password", "Must have at least 8 characters")
		b.write("password", "short but longer")
		b.click("form [type=checkbox]") // shows it
		if got := b.eval(`document.getElementById("password").type`); got != "text" {
			t.Errorf("the password is %s", got)
		}
		b.send()
		b.wantDone("Your password has changed")
		b.wantClean(link)
		p.login("ann", "short but longer")

		b.follow(link)
		b.write("password", "another long one")
		b.send()
		b.wantDone("invalid, has expired or was used. Ask an admin")
		b.wantClean(link)
	})
	b.within(t, "a reset by keyboard, with a mailed link", func(t *testing.T) {
		p.must("", "POST", "/api/password/forgot", `{"login":"ann"}`).want(t, 202, "")
		link := b.mailedLink(p, "ann@example.com", resetMailCode)
		b.follow(link)
		b.press("staple and paper clip" + tabKey + " ") // shows the password
		b.press(tabKey + enterKey)
		b.wantDone("Your password has changed")
		b.wantClean(link)
		p.login("ann", "staple and paper clip")
	})
	b.within(t, "a reset of a user with a second factor by keyboard", func(t *testing.T) {
		p.must("", "POST", "/api/password/forgot", `{"login":"eve"}`).want(t, 202, "")
		link := b.mailedLink(p, "eve@example.com", resetMailCode)
		b.follow(link)
		if text := b.text(); strings.Contains(text, "authenticator") {
			t.Errorf("the page says %s", text)
		}
		b.press("staple and paper clip" + enterKey)
		b.wantMessage("Your account has a second factor.")
		b.wantFocus("otp")
		b.press(enterKey)
		b.wantWrong("otp", "Enter a code.")
		b.press("00000" + enterKey)
		b.wantWrong("otp", "This code is wrong")
		key, err := otp.ParseSecret(secret)
		if err != nil {
			t.Fatal(err)
		}
		b.write("otp", otp.Code(key, otp.Step(time.Now())))
		b.press(enterKey)
		b.wantDone("Your password has changed")
		b.wantClean(link)
		p.must("", "POST", "/api/login", `{"username":"eve","password":"staple and paper clip"}`).want(t, 401, "second_factor_required")
	})
	b.within(t, "an invitation by mouse", func(t *testing.T) {
		link := invite()
		b.follow(link)
		b.write("username", "<b>bob</b>")
		b.write("email", "bob@example.com")
		b.write("password", goodPassword)
		b.send()
		b.wantWrong("username", "Must be 1 to 80")
		b.write("username", "ann")
		b.send()
		b.wantWrong("username", "Username already exists. Choose another one.")
		b.write("username", "bob")
		b.write("email", "bob@example.net")
		b.send()
		b.wantWrong("email", "Must be the address that the invitation is for")
		b.write("email", "bob@example.com")
		b.send()
		b.wantDone("Your account exists now")
		b.wantClean(link)
		if got := p.must(p.login("bob", goodPassword), "GET", "/api/users/me", "").field("email_verified_at"); got == "" {
			t.Error("the address is not verified")
		}
	})
	b.within(t, "an invitation by keyboard", func(t *testing.T) {
		link := p.must(root, "POST", "/api/invitations", "").want(t, 201, "").field("url")
		b.follow(link)
		b.press("beth" + tabKey + "beth@example.com" + tabKey + goodPassword + enterKey)
		b.wantDone("Your account exists now")
		b.wantClean(link)
		p.login("beth", goodPassword)
	})
	b.within(t, "an address is verified by mouse", func(t *testing.T) {
		p.must(p.login(markup, goodPassword), "POST", "/api/users/me/email/verify", "").want(t, 202, "")
		link := b.mailedLink(p, "markup@example.com", verifyCode)
		b.follow(link)
		if text := b.text(); !strings.Contains(text, "Enter the password of your account") || strings.Contains(text, "Username") {
			t.Errorf("the page says %s", text)
		}
		b.write("password", "not the password")
		b.send()
		b.wantWrong("password", "The password is wrong.")
		b.write("password", goodPassword)
		b.send()
		b.wantDone("The address markup@example.com is confirmed. You can log in as " + markup)
		b.wantClean(link)
		if got := b.eval(`document.images.length`); got != "0" {
			t.Error("the username became markup")
		}
	})
	b.within(t, "an address is verified of a user that waits for approval", func(t *testing.T) {
		p.must(root, "POST", "/api/users/5/email/verify", "").want(t, 202, "")
		b.follow(b.mailedLink(p, "pat@example.com", verifyCode))
		b.write("password", goodPassword)
		b.send()
		b.wantDone("The address pat@example.com is confirmed. You can log in after an admin has approved")
	})
	b.within(t, "a registration is completed by keyboard, with another username", func(t *testing.T) {
		p.must("", "POST", "/api/register", registerBody("dan", goodPassword)).want(t, 202, "")
		link := b.mailedLink(p, "dan@example.com", verifyCode)
		p.must(root, "POST", "/api/users", `{"username":"dan","email":"other@example.com","password":"`+goodPassword+`"}`).want(t, 201, "")
		b.follow(link)
		b.press(goodPassword + enterKey)
		b.wantWrong("username", "Username already exists. Choose another one.")
		b.press("daniel" + enterKey) // the password is still there
		b.wantDone("The address dan@example.com is confirmed. You can log in as daniel.")
		b.wantClean(link)
		p.login("daniel", goodPassword)
	})
	for _, row := range []struct {
		claim   string
		user    string
		confirm func() // the only button
	}{
		{"by mouse", "carl", func() { b.send() }},
		{"by keyboard", "dora", func() { b.wantFocus("title"); b.press(tabKey + enterKey) }},
	} {
		b.within(t, "an address is changed and restored "+row.claim, func(t *testing.T) {
			old, fresh := row.user+"@example.com", row.user+"@example.net"
			token := p.login(row.user, goodPassword)
			path := "/api/users/" + p.must(token, "GET", "/api/users/me", "").field("id")
			p.must(root, "PATCH", path, `{"email":"`+old+`","email_verified":true}`).want(t, 200, "")
			p.must(token, "PATCH", path, `{"email":"`+fresh+`"}`).want(t, 200, "")
			link := b.mailedLink(p, fresh, changeCode)
			b.follow(link)
			if text := b.text(); !strings.Contains(text, "becomes the address of your account") || strings.Contains(text, "Password") {
				t.Errorf("the page says %s", text)
			}
			row.confirm()
			b.wantDone("Your e-mail address has changed")
			b.wantClean(link)
			if got := p.must(root, "GET", path, "").field("email"); got != fresh {
				t.Fatalf("the address is %s", got)
			}

			link = b.mailedLink(p, old, undoCode)
			b.follow(link)
			if text := b.text(); !strings.Contains(text, "This logs out all devices") || !strings.Contains(text, "an e-mail with a link to set a new one") {
				t.Errorf("the page says %s", text)
			}
			row.confirm()
			b.wantDone("Your old address is restored")
			b.wantClean(link)
			if got := p.must(root, "GET", path, "").field("email"); got != old {
				t.Errorf("the address is %s", got)
			}
			p.must(token, "GET", path, "").want(t, 401, "session_ended")
			b.follow(b.mailedLink(p, old, resetMailCode))

			b.follow(link)
			row.confirm()
			b.wantDone("invalid, has expired or was used. Ask an admin")
		})
	}
	b.within(t, "an address without a code", func(t *testing.T) {
		for _, link := range []string{"/reset", "/verify#", "/change#x", "/undo#uu", "/invite#xx_"} {
			b.open(p.url + link)
			b.wantMessage("not complete")
			b.wantClean(p.url + link)
		}
	})
	b.within(t, "axe finds no violation", func(t *testing.T) {
		for _, link := range []string{resetLink(), p.url + "/invite#ui_A", p.url + "/verify#uv_A", p.url + "/change#uc_A", p.url + "/undo#uu_A", p.url + "/reset"} {
			b.open(link)
			b.wantAccessible()
			b.wantNoFaults()
		}
	})
	b.within(t, "without style and without JavaScript", func(t *testing.T) {
		b.open(resetLink())
		b.eval(`document.querySelector("style").remove()`)
		if text := b.text(); !strings.Contains(text, "New password") || strings.Contains(text, "Username") {
			t.Errorf("without style the page says %s", text)
		}
		b.devtools("Emulation.setScriptExecutionDisabled", object{"value": true}, nil)
		defer b.devtools("Emulation.setScriptExecutionDisabled", object{"value": false}, nil)
		for _, page := range linkPages {
			b.open(p.url + page)
			var tree json.RawMessage
			b.devtools("Accessibility.getFullAXTree", object{}, &tree)
			if !strings.Contains(string(tree), "This page needs JavaScript") || strings.Contains(string(tree), "Show the password") {
				t.Errorf("%s shows %s", page, tree)
			}
		}
	})
	b.within(t, "a reset of a user with a second factor", b.testSecondFactor)
	b.within(t, "a server that refuses", b.testRefusals)
}

func (b *browser) testSecondFactor(t *testing.T) {
	s := newService(t)
	path, token := s.member("ann")
	otherPath, _ := s.register("bob")
	secret, _ := s.enrol(token)
	_, root := s.admin("root")
	b.follow(s.url + "/reset#" + s.resetLink(root, path))
	b.write("password", newPassword)
	b.send()
	b.wantMessage("Your account has a second factor.")
	b.wantFocus("otp")
	b.write("otp", s.wrongCode(secret))
	b.send()
	b.wantWrong("otp", "This code is wrong")
	b.write("otp", s.nextCode(secret))
	b.send()
	b.wantDone("Your password has changed")

	b.open(s.url + "/reset#" + s.resetLink(root, otherPath)) // in the same tab
	if got := b.eval(`document.getElementById("otp").parentElement.hidden`); got != "true" {
		t.Error("a user without a factor is asked for a code")
	}
}

// testRefusals is what the page says if the server refuses for now, or does not answer.
func (b *browser) testRefusals(t *testing.T) {
	s := newService(t)
	path, _ := s.register("ann")
	otherPath, _ := s.register("bob")
	_, root := s.admin("root")
	link, other := s.url+"/reset#"+s.resetLink(root, path), s.url+"/reset#"+s.resetLink(root, otherPath)
	limit := &s.limiter.allowances[passwords]
	limit.Every = 5 * time.Minute
	for range limit.Burst {
		limit.TakeAll(s.limiter.networkKeys("127.0.0.1"), s.mono())
	}
	b.follow(link)
	b.write("password", newPassword)
	b.send()
	b.wantMessage("Too many attempts. Wait 5 minutes, then try again.")
	s.clock.add(5*time.Minute - time.Second)
	b.send()
	b.wantMessage("Too many attempts. Wait 1 second, then try again.")
	s.clock.add(time.Second)
	b.send()
	b.wantDone("Your password has changed")
	b.wantClean(link)

	b.follow(other)
	b.write("password", newPassword)
	s.keepLog()
	if err := s.store.readers.Close(); err != nil {
		t.Fatal(err)
	}
	for _, fail := range []func(){func() {}, s.http.Close} { // 503, and then no answer
		fail()
		b.send()
		b.wantMessage("The server is busy or cannot be reached. Try again in a moment.")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
