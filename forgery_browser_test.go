package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// A page of another origin sends what it can to a userd that the browser is logged in to:
// each route, with each method, content type and mode of fetch, forms and frames. The cookie
// is neither used nor set, and nothing changes, even if CORS_ORIGINS lists the origin.
func TestForgedRequestsInABrowser(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	blank := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!doctype html><title>another page</title>")
	})
	stranger, listed := httptest.NewServer(blank), httptest.NewServer(blank)
	defer stranger.Close()
	defer listed.Close()
	byName := func(url string) string { return strings.Replace(url, "127.0.0.1", "localhost", 1) } // another site
	dir := t.TempDir()
	environ := []string{
		"DATABASE_URL=" + filepath.Join(dir, "app.db"), "RATE_LIMIT=off", "REGISTRATION=closed",
		"CORS_ORIGINS=" + listed.URL + "," + byName(listed.URL),
	}
	userdHere(t, goodPassword, environ, "user", "add", "-admin", "ann", "ann@example.com")
	userdHere(t, goodPassword, environ, "user", "add", "mallory", "mallory@example.com")
	p := startUserd(t, dir, environ)
	b := startBrowser(t)
	b.open(p.url + "/console")
	const logIn = `fetch("api/login", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({username: "ann", password: "` + goodPassword + `", cookie: true})})`
	const refresh = `fetch("api/refresh", {method: "POST"})`
	status := func(promise string) string { return b.await(promise + `.then(answer => answer.status)`) }
	if got := status(logIn); got != "200" {
		t.Fatalf("the login: %s", got)
	}
	if got := status(refresh); got != "200" {
		t.Fatalf("a refresh from the console: %s", got)
	}
	state := func() string { // all of the database but the links of the event chain, which userd adds by itself
		conn := another(t, filepath.Join(dir, "app.db"))
		tables := scan[string](t, conn, `SELECT group_concat(name) FROM sqlite_schema WHERE type = 'table' AND name <> 'event_link'`)
		rows := ""
		for table := range strings.SplitSeq(tables, ",") {
			columns := scan[string](t, conn, `SELECT group_concat('quote('||name||')', '||" "||') FROM pragma_table_info('`+table+`')`)
			rows += fmt.Sprintln(table, scan[string](t, conn, `SELECT coalesce(group_concat(`+columns+`, char(10)), '') FROM `+table))
		}
		return rows
	}
	before, cookies := state(), b.cookies()
	if len(cookies) != 1 {
		t.Fatalf("the cookies are %q", cookies)
	}

	bodies := func(pattern string) string {
		switch pattern {
		case "POST /api/login":
			return `{"username":"mallory","password":"` + goodPassword + `","cookie":true}`
		case "POST /api/refresh", "POST /api/logout":
			return ""
		}
		return `{"disabled":true,"current_password":"` + goodPassword + `","cookie":true}`
	}
	var requests []object
	for _, rt := range (&server{}).routes() {
		method, path, hasMethod := strings.Cut(rt.pattern, " ")
		if !hasMethod {
			method, path = "GET", rt.pattern
		}
		path = strings.NewReplacer("{id}", "me", "{sid}", "1", "{key}", "1", "{invitation}", "1", "{mail}", "1", "{$}", "").Replace(path)
		if strings.Contains(path, "{") {
			t.Fatalf("the test does not know %s", path)
		}
		requests = append(requests, object{"method": method, "url": p.url + path, "body": bodies(rt.pattern)})
	}
	for _, origin := range []string{stranger.URL, byName(stranger.URL), listed.URL, byName(listed.URL)} {
		b.within(t, origin, func(t *testing.T) {
			b.open(origin)
			reached := b.await(`Promise.all(` + string(must(json.Marshal(requests))) + `.map(async ({method, url, body}) => {
				let answers = 0;
				for (const mode of ["cors", "no-cors"])
					for (const type of ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"])
						for (const m of new Set([method, "GET", "POST"]))
							try {
								await fetch(url, {
									method: m, mode, credentials: "include", headers: type ? {"Content-Type": type} : {},
									body: ["GET", "HEAD"].includes(m) ? undefined : body, signal: AbortSignal.timeout(5000),
								});
								answers++;
							} catch {}
				return answers;
			})).then(answers => Math.min(...answers))`)
			if reached == "0" {
				t.Error("a route was not reached")
			}
			for _, path := range []string{"/api/refresh", "/api/logout?all=true", "/api/login"} {
				for _, enctype := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"} {
					b.open(origin)
					// With text/plain, the body is the JSON object of a login.
					b.eval(fmt.Sprintf(`(() => {
						const form = Object.assign(document.createElement("form"), {method: "post", action: %q, enctype: %q});
						form.append(Object.assign(document.createElement("input"), {name: '{"username":"mallory","password":%q,"cookie":true,"otp":"', value: '"}'}));
						document.body.append(form);
						form.submit();
					})()`, p.url+path, enctype, goodPassword))
					await(t, "an answer to the form", func() bool {
						return strings.HasPrefix(b.eval(`document.readyState + " " + location.href`), "complete "+p.url+path)
					})
				}
			}
			b.open(origin)
			b.await(`new Promise(done => {
				const frame = Object.assign(document.createElement("iframe"), {src: "` + p.url + `/console"});
				frame.addEventListener("load", done);
				document.body.append(frame);
				navigator.sendBeacon("` + p.url + `/api/refresh");
			})`)
			if got := b.eval(`document.querySelector("iframe").contentDocument === null`); got != "true" {
				t.Error("the frame has a document")
			}
			if after := state(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if got := b.cookies(); fmt.Sprint(got) != fmt.Sprint(cookies) {
				t.Errorf("the cookies were %q, and are %q", cookies, got)
				cookies = got
			}
		})
	}
	b.open(p.url + "/console")
	if got := status(refresh); got != "200" {
		t.Errorf("a refresh from the console after all this: %s", got)
	}
}

// await returns the value of a promise in the page, as text.
func (b *browser) await(promise string) string {
	b.t.Helper()
	var v any
	b.call("POST", "/execute/sync", object{"script": "return Promise.resolve(" + promise + ")", "args": []any{}}, &v)
	return fmt.Sprint(v)
}

// cookies returns all cookies of the browser, those that scripts cannot read too.
func (b *browser) cookies() (cookies []string) {
	b.t.Helper()
	var list struct {
		Cookies []struct{ Name, Value, Domain, Path string }
	}
	b.devtools("Storage.getCookies", object{}, &list)
	for _, c := range list.Cookies {
		cookies = append(cookies, fmt.Sprint(c))
	}
	return cookies
}
