package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// A browser is a headless Chromium, driven by WebDriver (https://www.w3.org/TR/webdriver2/).
type browser struct {
	t       *testing.T
	session string // the URL of the WebDriver session
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
	b := &browser{t: t}
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
		"goog:chromeOptions": object{"args": []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir()}},
		"goog:loggingPrefs":  object{"browser": "ALL"},
	}}}, &made)
	b.session += "/" + made.SessionID
	return b
}

// call sends a command of WebDriver. Its result goes to result, unless that is nil.
func (b *browser) call(method, path string, parameters, result any) {
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
		b.t.Fatalf("%s %s: %d, %v: %s", method, path, resp.StatusCode, err, answer.Value)
	}
	if result == nil {
		return
	}
	if err := json.Unmarshal(answer.Value, result); err != nil {
		b.t.Fatalf("%s %s: %v: %s", method, path, err, answer.Value)
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.call("POST", "/url", object{"url": "about:blank"}, nil) // another fragment would not load the page again
	b.call("POST", "/url", object{"url": url}, nil)
}

// devtools sends a command of the DevTools protocol.
func (b *browser) devtools(command string, parameters object, result any) {
	b.t.Helper()
	b.call("POST", "/goog/cdp/execute", object{"cmd": command, "params": parameters}, result)
}

// eval returns the value of an expression in the page, as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var v any
	b.call("POST", "/execute/sync", object{"script": "return " + expression, "args": []any{}}, &v)
	return fmt.Sprint(v)
}

// element returns the path of the element with an id, or of the active one.
func (b *browser) element(id string) string {
	b.t.Helper()
	var found map[string]string
	if id == "" {
		b.call("GET", "/element/active", nil, &found)
	} else {
		b.call("POST", "/element", object{"using": "css selector", "value": "#" + id}, &found)
	}
	for _, reference := range found {
		return "/element/" + reference
	}
	b.t.Fatalf("no element %s", id)
	return ""
}

func (b *browser) click(id string) {
	b.t.Helper()
	b.call("POST", b.element(id)+"/click", object{}, nil)
}

func (b *browser) write(id, text string) {
	b.t.Helper()
	b.call("POST", b.element(id)+"/value", object{"text": text}, nil)
}

// press types into the element that has the focus.
func (b *browser) press(keys string) { b.t.Helper(); b.write("", keys) }

const enterKey, tabKey = "\uE007", "\uE004"

// wantMessage waits until the page says something.
func (b *browser) wantMessage(text string) {
	b.t.Helper()
	await(b.t, "the page says "+text, func() bool {
		return strings.Contains(b.eval(`document.getElementById("message").textContent`), text)
	})
}

// wantClean fails the test if the address has a code, if the page has asked another
// server, or if the console has an error that the page does not explain.
func (b *browser) wantClean(s *service, path string) {
	b.t.Helper()
	var at string
	b.call("GET", "/url", nil, &at)
	if at != s.url+path {
		b.t.Errorf("the address is %s", at)
	}
	if got := b.eval(`performance.getEntries().map(e => e.name).filter(n => n.startsWith("http") && !n.startsWith(location.origin + "/")).join(" ")`); got != "" {
		b.t.Errorf("it asked %s", got)
	}
	var entries []struct{ Level, Message string }
	b.call("POST", "/se/log", object{"type": "browser"}, &entries)
	for _, e := range entries {
		if !strings.Contains(e.Message, "the server responded with a status of 400") { // Chromium logs each failed request
			b.t.Errorf("the console says %+v", e)
		}
	}
	if got := b.eval(`document.documentElement.scrollWidth <= document.documentElement.clientWidth`); got != "true" {
		b.t.Error("the page is wider than the window")
	}
}

// The pages for links, in Debian's Chromium, at 320 pixels and in the dark.
func TestThePageInABrowser(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	s := newService(t)
	s.pages = pageURLs{reset: s.url + "/reset#{code}", invite: s.url + "/invite#{code}"}
	path, _ := s.register("ann")
	_, root := s.admin("root")
	link := func() string { return s.do(root, "POST", path+"/reset-link", "").want(t, 201, "").field("url") }
	b := startBrowser(t)
	b.devtools("Emulation.setDeviceMetricsOverride", object{"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": true}, nil)
	b.devtools("Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": "dark"}}}, nil)

	t.Run("a reset by mouse", func(t *testing.T) {
		b.t = t
		url := link()
		for range 3 {
			s.ask(must(http.NewRequest("GET", url, nil))).want(t, 200, "")
		}
		b.open(url)
		b.wantClean(s, "/reset")
		if got := b.eval(`getComputedStyle(document.body).color`); got != "rgb(255, 255, 255)" {
			t.Errorf("in the dark the text is %s", got)
		}
		b.write("password", "short")
		b.click("send")
		b.wantMessage("at least 8 characters")
		b.write("password", " but longer")
		b.click("show")
		if got := b.eval(`document.getElementById("password").value`); got != "short but longer" {
			t.Errorf("the field holds %q", got)
		}
		b.click("send")
		b.wantMessage("Your password has changed")
		b.wantClean(s, "/reset")
		s.do("", "POST", "/api/login", `{"username":"ann","password":"short but longer"}`).want(t, 200, "")

		b.open(url)
		b.press("another long one" + enterKey)
		b.wantMessage("invalid, has expired or was used")
		b.wantClean(s, "/reset")
	})
	t.Run("a reset by keyboard", func(t *testing.T) {
		b.t = t
		b.open(link())
		b.press("staple and paper clip" + tabKey) // the focus is in the field
		b.press(" ")                              // shows the password
		b.press(tabKey)
		b.press(enterKey)
		b.wantMessage("Your password has changed")
		b.wantClean(s, "/reset")
		s.do("", "POST", "/api/login", `{"username":"ann","password":"staple and paper clip"}`).want(t, 200, "")
	})
	t.Run("an invitation", func(t *testing.T) {
		b.t = t
		b.open(s.do(root, "POST", "/api/invitations", `{"email":"bob@example.com"}`).want(t, 201, "").field("url"))
		b.press("<b>bob</b>" + tabKey + "bob@example.com" + tabKey + goodPassword + enterKey)
		b.wantMessage("username must be 1 to 80")
		b.call("POST", b.element("username")+"/clear", object{}, nil)
		b.write("username", "ann")
		b.click("send")
		b.wantMessage("Username already exists")
		b.call("POST", b.element("username")+"/clear", object{}, nil)
		b.write("username", "bob")
		b.click("send")
		b.wantMessage("Your account exists now")
		b.wantClean(s, "/invite")
		if got := s.do(s.login("bob"), "GET", "/api/users/me", "").field("email_verified_at"); got == "" {
			t.Error("the address is not verified")
		}
	})
	t.Run("an address without a code", func(t *testing.T) {
		b.t = t
		b.open(s.url + "/reset")
		b.wantMessage("lacks its code")
		b.wantClean(s, "/reset")
	})
	t.Run("without JavaScript the page says what to do", func(t *testing.T) {
		b.t = t
		b.devtools("Emulation.setScriptExecutionDisabled", object{"value": true}, nil)
		defer b.devtools("Emulation.setScriptExecutionDisabled", object{"value": false}, nil)
		b.open(s.url + "/reset")
		var tree json.RawMessage
		b.devtools("Accessibility.getFullAXTree", object{}, &tree)
		if !strings.Contains(string(tree), "This page needs JavaScript") || strings.Contains(string(tree), "Show the password") {
			t.Errorf("it shows %s", tree)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
