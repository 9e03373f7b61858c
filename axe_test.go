package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// axeVersion is the version of https://www.npmjs.com/package/axe-core that the tests install.
const axeVersion = "4.14.1"

// loadAxe puts axe-core into the page. DevTools runs it, so the content security policy of
// the page does not apply to it.
func (b *browser) loadAxe() {
	b.t.Helper()
	if b.axe == "" {
		dir := b.t.TempDir()
		if out, err := exec.Command("npm", "install", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "axe-core@"+axeVersion).CombinedOutput(); err != nil {
			b.t.Fatalf("%v: %s", err, out)
		}
		b.axe = string(must(os.ReadFile(filepath.Join(dir, "node_modules/axe-core/axe.min.js"))))
	}
	if b.eval(`typeof axe`) == "undefined" {
		b.devtools("Runtime.evaluate", object{"expression": b.axe + ";0"}, nil)
	}
}

// wantAccessible fails the test if axe-core finds a violation in the page, light or dark.
func (b *browser) wantAccessible() {
	b.t.Helper()
	b.loadAxe()
	for _, scheme := range []string{"dark", "light"} {
		b.prefer(scheme)
		var result struct {
			Result struct {
				Value string
			}
			ExceptionDetails json.RawMessage
		}
		b.devtools("Runtime.evaluate", object{"expression": `axe.run({resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations.map(v =>
			v.id + ": " + v.nodes.map(n => n.html + " (" + n.failureSummary + ")").join("; "))))`, "awaitPromise": true, "returnByValue": true}, &result)
		var violations []string
		if err := json.Unmarshal([]byte(result.Result.Value), &violations); err != nil {
			b.t.Fatalf("axe: %v: %s", err, result.ExceptionDetails)
		}
		for _, v := range violations {
			b.t.Errorf("axe, %s: %s", scheme, strings.Join(strings.Fields(v), " "))
		}
	}
}

// prefer makes the browser prefer a color scheme.
func (b *browser) prefer(scheme string) {
	b.t.Helper()
	b.devtools("Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.await(`Promise.allSettled(document.getAnimations().filter(a => a instanceof CSSTransition).map(a => a.finished))`)
}
