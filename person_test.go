package main

import (
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// screenshots is where the browser tests keep a picture of each screen.
var screenshots = flag.String("screenshots", "", "keep a picture of each screen of the browser tests in this directory")

// A person uses a page in a browser. It finds what it uses by the role and the name that a
// screen reader reads out, and uses it by mouse, or with the keyboard only.
type person struct {
	*browser
	keyboard bool
	scope    node // the part of the page in which it looks; 0: the whole page
}

// A node is an element of the page: its backendNodeId in the DevTools protocol.
type node int64

// The roles of what has a value.
const fieldRoles = "textbox|searchbox|spinbutton|combobox|Date|DateTime"

// findAll returns the elements with one of the roles, separated by |, and with a name that
// matches a pattern, in the order of the page. It leaves out what a screen reader does.
func (p *person) findAll(roles, pattern string) (found []node, names []string) {
	p.t.Helper()
	root := object{"backendNodeId": p.scope}
	if p.scope == 0 {
		var document struct{ Root struct{ BackendNodeID node } }
		p.devtools("DOM.getDocument", object{"depth": 0}, &document)
		root["backendNodeId"] = document.Root.BackendNodeID
	}
	name := regexp.MustCompile(`(?s)^(?:` + pattern + `)$`)
	for role := range strings.SplitSeq(roles, "|") {
		root["role"] = role
		var tree struct {
			Nodes []struct {
				Ignored          bool
				Name             struct{ Value string }
				BackendDOMNodeID node
			}
		}
		if p.tryDevtools("Accessibility.queryAXTree", root, &tree) != nil {
			return nil, nil // the page has replaced the scope
		}
		for _, n := range tree.Nodes {
			if text := strings.TrimSpace(n.Name.Value); !n.Ignored && n.BackendDOMNodeID != p.scope && name.MatchString(text) {
				found, names = append(found, n.BackendDOMNodeID), append(names, text)
			}
		}
	}
	return found, names
}

// find waits until there is exactly one such element, and returns it.
func (p *person) find(roles, pattern string) node {
	p.t.Helper()
	var found []node
	var names []string
	what := fmt.Sprintf("one %s named %s", roles, pattern)
	defer func() {
		if len(found) != 1 {
			p.t.Logf("found %q; %s", names, p.sight(roles))
		}
	}()
	await(p.t, what, func() bool {
		found, names = p.findAll(roles, pattern)
		return len(found) == 1
	})
	return found[0]
}

// sight says what a person sees, for the message of a test that fails.
func (p *person) sight(roles string) string {
	_, names := p.findAll(roles, ".*")
	return fmt.Sprintf("each %s: %q; the page says %q", roles, names, p.pageText())
}

// sees reports whether there is such an element.
func (p *person) sees(roles, pattern string) bool {
	p.t.Helper()
	found, _ := p.findAll(roles, pattern)
	return len(found) > 0
}

// awaitGone waits until there is no such element.
func (p *person) awaitGone(roles, pattern string) {
	p.t.Helper()
	await(p.t, "no "+roles+" named "+pattern, func() bool { return !p.sees(roles, pattern) })
}

// in returns the same person, who looks only within the one such element.
func (p *person) in(roles, pattern string) *person {
	p.t.Helper()
	return &person{p.browser, p.keyboard, p.find(roles, pattern)}
}

// pageText returns what a person can read.
func (p *person) pageText() string {
	p.t.Helper()
	if p.scope != 0 {
		return p.property(p.scope, "innerText")
	}
	return p.eval(`document.body.innerText`)
}

// wantText waits until the page, or the part of it in which the person looks, says something.
func (p *person) wantText(pattern string) {
	p.t.Helper()
	said, want := "", regexp.MustCompile(pattern)
	defer func() {
		if !want.MatchString(said) {
			p.t.Logf("the page says %q", said)
		}
	}()
	await(p.t, "the page says "+pattern, func() bool {
		said = p.pageText()
		return want.MatchString(said)
	})
}

// wantSpoken waits until a live region says something, and is not inert behind a dialog.
func (p *person) wantSpoken(pattern string) {
	p.t.Helper()
	said, want := "", regexp.MustCompile(pattern)
	defer func() {
		if !want.MatchString(said) {
			p.t.Logf("the live regions say %q; the page says %q", said, p.pageText())
		}
	}()
	await(p.t, "a live region says "+pattern, func() bool {
		said = p.eval(`[...([...document.querySelectorAll("dialog:modal")].at(-1) ?? document).querySelectorAll("[role=status],[role=alert],[aria-live]:not([aria-live=off]),output")].map(e => e.innerText).join("\n")`)
		return want.MatchString(said)
	})
}

// on runs a function of JavaScript on an element, and returns its result as text.
func (p *person) on(n node, function string, args ...any) string {
	p.t.Helper()
	var resolved struct{ Object struct{ ObjectID string } }
	if p.tryDevtools("DOM.resolveNode", object{"backendNodeId": n}, &resolved) != nil {
		return ""
	}
	list := []object{}
	for _, a := range args {
		list = append(list, object{"value": a})
	}
	var result struct{ Result struct{ Value any } }
	p.devtools("Runtime.callFunctionOn", object{"objectId": resolved.Object.ObjectID, "functionDeclaration": function, "arguments": list, "returnByValue": true}, &result)
	return fmt.Sprint(result.Result.Value)
}

// closest returns the closest element around a node that a selector matches.
func (p *person) closest(n node, selector string) node {
	p.t.Helper()
	var resolved struct{ Object struct{ ObjectID string } }
	p.devtools("DOM.resolveNode", object{"backendNodeId": n}, &resolved)
	var result struct{ Result struct{ ObjectID string } }
	p.devtools("Runtime.callFunctionOn", object{"objectId": resolved.Object.ObjectID, "functionDeclaration": `function(selector) { return this.closest(selector) }`, "arguments": []object{{"value": selector}}}, &result)
	var described struct{ Node struct{ BackendNodeID node } }
	p.devtools("DOM.describeNode", object{"objectId": result.Result.ObjectID}, &described)
	return described.Node.BackendNodeID
}

func (p *person) property(n node, name string) string {
	p.t.Helper()
	return p.on(n, `function(name) { return this[name] }`, name)
}

// focused returns the element with the focus.
func (p *person) focused() node {
	p.t.Helper()
	var active struct{ Result struct{ ObjectID string } }
	p.devtools("Runtime.evaluate", object{"expression": "document.activeElement"}, &active)
	var described struct{ Node struct{ BackendNodeID node } }
	p.tryDevtools("DOM.describeNode", object{"objectId": active.Result.ObjectID}, &described) // 0 if the page is about to change
	return described.Node.BackendNodeID
}

// reach presses Tab until an element has the focus.
func (p *person) reach(n node) {
	p.t.Helper()
	for range 300 {
		if p.focused() == n {
			return
		}
		p.press(tabKey)
	}
	p.t.Fatalf("Tab does not reach %s", p.property(n, "outerHTML"))
}

// use clicks on an element, or presses a key on it.
func (p *person) use(n node, key string) {
	p.t.Helper()
	if p.keyboard {
		p.reach(n)
		if key != "" {
			p.press(key)
		}
		return
	}
	p.devtools("DOM.scrollIntoViewIfNeeded", object{"backendNodeId": n}, nil)
	var x, y float64
	await(p.t, "the mouse can click on "+p.property(n, "outerHTML"), func() bool {
		// The middle of the element, unless another element covers it.
		_, err := fmt.Sscan(p.on(n, `function() {
			const r = this.getClientRects()[0] ?? new DOMRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;
			const hit = document.elementFromPoint(x, y);
			return hit && (this.contains(hit) || [...this.labels ?? []].some(l => l.contains(hit))) ? x + " " + y : "";
		}`), &x, &y)
		return err == nil
	})
	for _, event := range []string{"mousePressed", "mouseReleased"} {
		p.devtools("Input.dispatchMouseEvent", object{"type": event, "x": x, "y": y, "button": "left", "clickCount": 1}, nil)
	}
}

// click uses a button, a link or the like.
func (p *person) click(roles, pattern string) {
	p.t.Helper()
	p.use(p.find(roles, pattern), enterKey)
}

// check uses a checkbox or a radio button.
func (p *person) check(roles, pattern string) {
	p.t.Helper()
	p.use(p.find(roles, pattern), " ")
}

// fill replaces the text of a field.
func (p *person) fill(pattern, text string) {
	p.t.Helper()
	n := p.find(fieldRoles, pattern)
	p.use(n, "")
	await(p.t, "the field has the focus", func() bool { return p.focused() == n })
	p.on(n, `function() { this.select?.() }`)
	p.press(deleteKey)
	p.devtools("Input.insertText", object{"text": text}, nil)
}

// choose selects an option of a list by its text.
func (p *person) choose(pattern, option string) {
	p.t.Helper()
	n := p.find("combobox|listbox", pattern)
	if p.keyboard {
		p.reach(n)
	} else {
		p.use(n, "")
		p.press(escapeKey) // closes the list that the click opened
	}
	at := p.on(n, `function(text) { return [...this.options].findIndex(o => o.text === text) }`, option)
	steps, err := strconv.Atoi(at)
	if err != nil || steps < 0 {
		p.t.Fatalf("%s has no option %s", pattern, option)
	}
	p.press(homeKey + strings.Repeat(downKey, steps))
	if got := p.on(n, `function() { return this.selectedOptions[0].text }`); got != option {
		p.t.Fatalf("%s is %s instead of %s", pattern, got, option)
	}
}

// goTo opens a screen.
func (p *person) goTo(name string) {
	p.t.Helper()
	p.click("link|button|tab", name)
}

// keep keeps a picture of the screen.
func (p *person) keep(name string) {
	p.t.Helper()
	if *screenshots == "" {
		return
	}
	if err := os.MkdirAll(*screenshots, 0o755); err != nil {
		p.t.Fatal(err)
	}
	writeFile(p.t, filepath.Join(*screenshots, name+".png"), p.picture())
}

// picture returns a picture of what the window shows.
func (p *person) picture() []byte {
	p.t.Helper()
	var data string
	p.browser.call("GET", "/screenshot", nil, &data)
	return must(base64.StdEncoding.DecodeString(data))
}

// readQR returns the text of the QR code on the screen.
func (p *person) readQR() string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "qr.png")
	writeFile(p.t, file, p.picture())
	out, err := exec.Command("zbarimg", "-q", "--raw", file).Output()
	if err != nil {
		p.t.Fatalf("zbarimg: %v", err)
	}
	return strings.TrimSpace(string(out))
}
