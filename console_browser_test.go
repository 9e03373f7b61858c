package main

import (
	"bytes"
	"flag"
	"fmt"
	"image/png"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"userd/internal/otp"
)

// readmePicture is where the test of the picture of README.md writes it.
var readmePicture = flag.String("picture", "", "write the picture of README.md to this file, such as docs/console.png")

// openConsole starts userd and a browser, and opens the console.
func openConsole(t *testing.T, dir string, environ ...string) (*process, *person) {
	t.Helper()
	p := startUserd(t, dir, append([]string{"DATABASE_URL=" + filepath.Join(dir, "app.db"), "RATE_LIMIT=off"}, environ...))
	c := &person{browser: startBrowser(t)}
	c.resize(1200, 750)
	c.open(p.url)
	return p, c
}

// resize sets the size of the window.
func (b *browser) resize(width, height int) {
	b.t.Helper()
	b.devtools("Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
}

// section returns the same person, who looks only at the part of the page with this heading.
func (p *person) section(heading string) *person {
	p.t.Helper()
	return &person{p.browser, p.keyboard, p.closest(p.find("heading", heading), "section")}
}

// row returns the same person, who looks only at the row of a table with such a cell.
func (p *person) row(cell string) *person {
	p.t.Helper()
	return &person{p.browser, p.keyboard, p.closest(p.find("cell", cell), "tr")}
}

// dialog returns the same person, who looks only at the open dialog with this title.
func (p *person) dialog(title string) *person {
	p.t.Helper()
	return (&person{p.browser, p.keyboard, 0}).in("dialog", title)
}

// logIn logs in, with a code if that is not empty.
func (p *person) logIn(name, password, code string) {
	p.t.Helper()
	p.fill("Username or e-mail address", name)
	p.fill("Password", password)
	p.click("button", "Log in")
	if code != "" {
		p.fill("Code of your authenticator app, or a recovery code", code)
		p.click("button", "Log in")
	}
	p.find("button", "Log out")
}

// prove confirms with the password, and a code if that is not empty.
func (p *person) prove(password, code string) {
	p.t.Helper()
	d := p.dialog("Confirm that it is you")
	d.fill("Your password", password)
	d.click("button", "Confirm")
	if code != "" {
		d.fill("Code of .*", code)
		d.click("button", "Confirm")
	}
	p.awaitGone("dialog", "Confirm that it is you")
}

// screen checks and pictures a screen: axe finds no violation, light and dark, it fits a
// window of 320 pixels, and the page has no fault.
func (p *person) screen(name string) {
	p.t.Helper()
	if p.keyboard {
		return // the run by mouse has done so
	}
	p.awaitDone()
	for _, width := range []int{320, 1200} {
		p.resize(width, 750)
		p.wantNoScrolling()
		p.wantAccessible()
		p.keep(fmt.Sprint(name, " ", width))
	}
	p.prefer("dark")
	p.keep(name + " dark")
	p.prefer("light")
	p.wantNoFaults()
}

// wantKeptOpen fails the test if Escape closes a dialog that shows a secret only once, also while
// the dialog does not have the focus.
func (p *person) wantKeptOpen(title string) {
	p.t.Helper()
	p.dialog(title)
	for range 2 {
		p.press(escapeKey + escapeKey + escapeKey)
		if !p.sees("dialog", title) {
			p.t.Fatalf("Escape closes the dialog %q", title)
		}
		p.eval(`document.activeElement.blur()`)
	}
}

// Every screen and every act of the console, once by mouse, and once with the keyboard only.
func TestTheConsoleInABrowser(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	for _, keyboard := range []bool{false, true} {
		name := "by mouse"
		if keyboard {
			name = "by keyboard"
		}
		t.Run(name, func(t *testing.T) { testConsole(t, keyboard) })
	}
}

func testConsole(t *testing.T, keyboard bool) {
	p, c := openConsole(t, t.TempDir(), "MAIL_URL=log:", "REGISTRATION=approval")
	c.keyboard = keyboard
	for _, step := range []struct {
		claim string
		test  func(t *testing.T, p *process, c *person)
	}{
		{"the first admin follows the page", testFirstAdmin},
		{"an admin adds, searches, filters and pages users", testUserList},
		{"an admin changes a user", testUser},
		{"an admin reads the events live", testEvents},
		{"an admin invites", testInvitations},
		{"an admin reads the queue of mails", testMails},
		{"an admin reads the state", testState},
		{"a member changes its account", testAccount},
		{"a member uses a second factor", testFactor},
		{"a member makes and revokes API keys", testKeys},
		{"a member deletes itself", testDeleteMe},
		{"a stranger registers, and an admin approves", testRegistration},
	} {
		outer := c.t
		if !t.Run(step.claim, func(t *testing.T) {
			c.t = t
			defer func() { c.t = outer }()
			step.test(t, p, c)
			c.wantNoFaults()
		}) {
			return // the next steps need it
		}
	}
}

func testFirstAdmin(t *testing.T, p *process, c *person) {
	c.find("heading", "Welcome to userd")
	if lines := c.log("browser"); len(lines) > 0 { // for example, of a refresh without a cookie
		t.Errorf("at the first visit, the console says %v", lines)
	}
	c.screen("first admin")
	command := c.textOf("code", "Command")
	line, isOne := strings.CutSuffix(command, " NAME EMAIL")
	if !isOne {
		t.Fatalf("the page shows the command %q", command)
	}
	// "go run ." runs the tests' userd here.
	self := must(os.Executable())
	sh := exec.Command("sh", "-c", strings.Replace(line, "go run .", self, 1)+" root root@example.com")
	sh.Env, sh.Dir = []string{"USERD_TEST_RUN_MAIN=1", "PATH=" + os.Getenv("PATH")}, p.cmd.Dir
	sh.Stdin = strings.NewReader(goodPassword)
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	c.wantText("The first admin exists now") // by itself
	c.screen("login")
	c.fill("Username or e-mail address", "root")
	c.fill("Password", "wrong "+goodPassword)
	c.click("button", "Log in")
	c.wantSpoken("The username or the password is wrong")
	c.screen("login refused")
	c.logIn("root", goodPassword, "")
	c.find("heading", "Users")
	if got := c.eval(`document.activeElement.tagName`); got != "H1" {
		t.Errorf("the focus is on %s", got)
	}
	if got := c.eval(`document.title`); !strings.HasPrefix(got, "Users") {
		t.Errorf("the title is %q", got)
	}
}

func testUserList(t *testing.T, p *process, c *person) {
	c.click("button", "Add a user")
	d := c.dialog("Add a user")
	d.fill("Username", "ann")
	d.fill("E-mail address", "ann@example.com")
	d.fill("Password", "short")
	d.click("button", "Add")
	d.wantText("at least 8 characters")
	c.screen("add a user")
	d.fill("Password", goodPassword)
	d.click("button", "Add")
	c.wantSpoken("User added")
	c.find("heading", "ann")
	root := p.login("root", goodPassword)
	for n := range 120 {
		p.must(root, "POST", "/api/users", fmt.Sprintf(`{"username":"user%03d","email":"user%03d@example.net","password":%q}`, n, n, goodPassword)).want(t, 201, "")
	}
	p.must(root, "PATCH", "/api/users/5", `{"disabled":true}`).want(t, 200, "")

	c.goTo("Users")
	c.find("link", "ann")
	c.find("link", "user000")
	c.screen("users")
	c.goTo("Next page")
	c.awaitGone("link", "ann")
	c.find("link", "user060")
	c.goTo("Next page")
	c.find("link", "user119")
	c.awaitGone("link|button", "Next page")
	c.goTo("First page")
	c.find("link", "ann")

	c.fill("Search", "user11")
	c.find("link", "user119")
	c.awaitGone("link", "ann")
	if found, _ := c.findAll("link", "user.*"); len(found) != 10 {
		t.Errorf("the search finds %d users", len(found))
	}
	c.wantSpoken("10 users")
	c.fill("Search", "ann@ex")
	c.find("link", "ann")
	c.fill("Search", "no such name")
	c.wantText("No username and no address begins")
	c.screen("users none found")
	c.fill("Search", "")
	c.find("link", "user000")

	c.choose("Role", "Admins")
	c.find("link", "root")
	c.awaitGone("link", "ann")
	c.choose("Role", "Any role")
	c.find("link", "ann")
	c.choose("State", "Disabled")
	c.awaitGone("link", "ann")
	c.find("link", "user002")
	c.choose("State", "Any state")
	c.find("link", "ann")
}

func testUser(t *testing.T, p *process, c *person) {
	ann := p.login("ann", goodPassword)
	p.must(ann, "POST", "/api/users/me/keys", `{"name":"nightly report","scope":"read","expires_in":86400}`).want(t, 201, "")
	c.fill("Search", "ann")
	c.wantSpoken("1 user found")
	c.click("link", "ann")
	c.find("heading", "ann")
	c.find("heading", "API keys")
	c.screen("user")

	details := c.section("Details")
	details.fill("Username", "anna")
	details.check("checkbox", "The address is verified")
	details.choose("Role", "admin")
	details.click("button", "Save")
	c.wantSpoken("User saved")
	c.find("heading", "anna")
	root := p.login("root", goodPassword)
	if r := p.must(root, "GET", "/api/users/2", ""); r.field("username") != "anna" || r.field("role") != "admin" || r.field("email_verified_at") == "" {
		t.Errorf("the user is %s", r.body)
	}
	// A page that was refreshed holds no proof any more.
	c.call("POST", "/refresh", object{}, nil)
	details = c.section("Details")
	details.fill("Username", "ann")
	details.choose("Role", "member")
	details.click("button", "Save")
	d := c.dialog("Confirm that it is you")
	d.fill("Your password", "wrong "+goodPassword)
	d.click("button", "Confirm")
	d.wantText("password is wrong")
	c.screen("proof")
	c.press(escapeKey)
	c.awaitGone("dialog", ".*")
	if save := details.find("button", "Save"); c.focused() != save {
		t.Errorf("after the dialog the focus is on %s", c.property(c.focused(), "outerHTML"))
	}
	details.click("button", "Save")
	c.prove(goodPassword, "")
	c.wantSpoken("User saved")
	c.find("heading", "ann")

	c.click("button", "Make a reset link…")
	c.dialog("Reset link").click("button", "Make the link")
	link := c.textOf("code", "Reset link")
	if !strings.HasPrefix(link, p.url+"/reset#ul_") {
		t.Errorf("the reset link is %q", link)
	}
	c.screen("reset link")
	c.wantKeptOpen("Reset link")
	c.dialog("Reset link").click("button", "Done")
	c.awaitGone("dialog", ".*")

	c.section("API keys").click("button", "Revoke…: nightly report")
	c.dialog("Revoke .*nightly report.*").click("button", "Revoke")
	c.wantSpoken("revoked")
	c.section("API keys").wantText("No API keys")

	p.login("ann", goodPassword)
	c.call("POST", "/refresh", object{}, nil)
	rows, _ := c.section("Sessions").findAll("button", "End session: Go, .*20.*")
	if len(rows) != 2 {
		t.Fatalf("the user has %d sessions", len(rows))
	}
	c.use(rows[0], enterKey)
	c.prove(goodPassword, "")
	c.wantSpoken("session has ended")
	c.section("Sessions").click("button", "End all sessions")
	c.section("Sessions").wantText("not logged in anywhere")

	c.click("button", "Turn off the second factor…")
	d = c.dialog("Turn off the second factor.*")
	d.click("button", "Turn off")
	d.wantText("This user has no second factor.")
	d.click("button", "Cancel")
	c.awaitGone("dialog", ".*")
	p.enrol(p.login("ann", goodPassword))
	c.call("POST", "/refresh", object{}, nil)
	c.click("button", "Turn off the second factor…")
	c.dialog("Turn off the second factor.*").click("button", "Turn off")
	c.prove(goodPassword, "")
	c.wantSpoken("second factor is off")
	p.login("ann", goodPassword)

	c.click("button", "Disable…")
	c.screen("disable a user")
	c.dialog("Disable .*").click("button", "Disable")
	c.wantSpoken("User disabled")
	p.must("", "POST", "/api/login", loginBody("ann")).want(t, 403, "user_disabled")
	c.click("button", "Enable")
	c.wantSpoken("User enabled")
	p.login("ann", goodPassword)

	c.goTo("Users")
	c.fill("Search", "user118")
	c.wantSpoken("1 user found")
	c.click("link", "user118")
	c.find("heading", "user118")
	c.click("button", "Delete…")
	c.dialog("Delete this user.*").click("button", "Cancel")
	c.awaitGone("dialog", ".*")
	c.click("button", "Delete…")
	c.dialog("Delete this user.*").click("button", "Delete")
	c.wantSpoken("User deleted")
	c.find("heading", "Users")
	p.must(root, "GET", "/api/users?q=user118", "").want(t, 200, "")
	if r := p.must(root, "GET", "/api/users?q=user118", ""); strings.TrimSpace(r.body) != "[]" {
		t.Errorf("the user is still there: %s", r.body)
	}
}

func loginBody(name string) string {
	return fmt.Sprintf(`{"username":%q,"password":%q}`, name, goodPassword)
}

func testEvents(t *testing.T, p *process, c *person) {
	root := p.login("root", goodPassword)
	c.goTo("Events")
	c.find("heading", "Events")
	c.wantText("Live")
	c.in("table", "Events.*").wantText("login")
	c.in("table", "Events.*").wantText(`root\s+command line\s+role: admin`)
	c.screen("events")
	p.must(root, "PATCH", "/api/users/2", `{"username":"annabel"}`).want(t, 200, "")
	c.in("table", "Events.*").wantText("annabel")
	p.must(root, "PATCH", "/api/users/2", `{"username":"ann"}`).want(t, 200, "")
	await(t, "no row with the old name", func() bool { return !strings.Contains(c.pageText(), "annabel") })

	c.click("button", "Pause")
	c.wantText("Paused")
	p.must(root, "POST", "/api/users/3/reset-link", "").want(t, 201, "")
	c.find("button", "Show 1 new event")
	c.click("button", "Show 1 new event")
	c.in("table", "Events.*").wantText("reset link created")

	c.choose("Type", "user deleted")
	c.in("table", "Events.*").wantText("user deleted")
	if text := c.in("table", "Events.*").pageText(); strings.Contains(text, "reset link created") {
		t.Errorf("the filtered events are %q", text)
	}
	c.choose("Type", "All types")
	c.in("table", "Events.*").wantText("reset link created")
	c.fill("User", "a name of no user")
	c.press(enterKey + tabKey)
	c.wantSpoken("No user has this name")
	c.fill("User", "3")
	c.press(enterKey + tabKey)
	c.in("table", "Events.*").wantText("reset link created")
	await(t, "only events of user 3", func() bool { return !strings.Contains(c.pageText(), "user deleted\t") })
}

func testInvitations(t *testing.T, p *process, c *person) {
	c.goTo("Invitations")
	c.find("heading", "Invitations")
	c.screen("invitations none")
	c.click("button", "Invite")
	d := c.dialog("Invite.*")
	d.fill("E-mail address.*", "not an address")
	d.click("button", "Make the invitation")
	d.wantText("(?i)address")
	d.fill("E-mail address.*", "guest@example.com")
	c.screen("invite")
	d.click("button", "Make the invitation")
	link := c.textOf("code", "Invitation")
	if !strings.HasPrefix(link, p.url+"/invite#ui_") {
		t.Errorf("the invitation is %q", link)
	}
	c.wantSpoken("Invitation made")
	c.screen("invitation made")
	c.wantKeptOpen("Invite")
	c.dialog("Invite.*").click("button", "Done")
	c.awaitGone("dialog", ".*")
	c.find("cell", "guest@example.com")
	c.mailedLink(p, "guest@example.com", inviteCode)
	c.row("guest@example.com").click("button", "Send again: guest@example.com, .*20.*")
	c.wantSpoken("on its way")
	c.mailedLink(p, "guest@example.com", inviteCode)
	root := p.login("root", goodPassword)
	used := p.must(root, "POST", "/api/invitations", `{"username":"invited"}`).want(t, 201, "").field("url")
	c.call("POST", "/refresh", object{}, nil)
	c.find("cell", "invited")
	c.row("guest@example.com").wantText(" by root")
	_, code, _ := strings.Cut(used, "#")
	p.must("", "POST", "/api/register", `{"username":"invited","email":"invited@example.com","password":"`+goodPassword+`","invitation":"`+code+`"}`).want(t, 201, "")
	await(t, "no mail waits", func() bool { return strings.TrimSpace(p.must(root, "GET", "/api/mail?state=queued", "").body) == "[]" })
	c.call("POST", "/refresh", object{}, nil)
	c.find("cell", "guest@example.com")
	if c.sees("cell", "invited") {
		t.Error("an invitation that is used up is still open")
	}
	c.screen("invitations")
	c.row("guest@example.com").click("button", "Delete…: guest@example.com, .*20.*")
	c.dialog("Delete this invitation.*").click("button", "Delete")
	c.wantSpoken("Invitation deleted")
	c.awaitGone("cell", "guest@example.com")
}

func testMails(t *testing.T, p *process, c *person) {
	c.goTo("Mail")
	c.find("heading", "Mail")
	c.wantText("No mail waits to be sent")
	c.screen("mail none")
	c.goTo("Sent")
	c.wantText("guest@example.com")
	c.find("link", "invited") // the user of a mail, by name
	c.screen("mail sent")
}

func testState(t *testing.T, p *process, c *person) {
	c.goTo("State")
	c.find("heading", "State")
	c.wantText(`userd \S+, go1\.`)
	for _, chart := range []string{"Logins.*", "Requests.*", ".*(?:[Ll]atency|[Dd]uration|long).*", ".*[Hh]ash.*", "Database.*", "Users.*"} {
		c.find("heading", chart)
	}
	c.screen("state")
}

func testAccount(t *testing.T, p *process, c *person) {
	c.goTo("Log out")
	c.wantText("You have logged out")
	if got := c.cookies(); len(got) != 0 {
		t.Errorf("after the logout the cookies are %q", got)
	}
	other := p.login("ann", goodPassword)
	c.logIn("ann@example.com", goodPassword, "")
	c.find("heading", "Account")
	c.find("heading", "API keys")
	if c.sees("link", "Users|Events|State|Invitations|Mail") {
		t.Error("a member sees what is for admins")
	}
	c.open(p.url + "/console#/users")
	c.find("heading", "Account")
	c.screen("account")
	c.eval(`addEventListener("hashchange", () => document.querySelector("#top button").focus(), {once: true})`)
	c.eval(`location.hash = "#/account?again"`)
	await(t, "the focus moves to the top", func() bool { return c.eval(`document.activeElement.innerText`) == "Log out" })
	c.awaitDone()
	if got := c.eval(`document.activeElement.innerText`); got != "Log out" {
		t.Errorf("after the account has loaded, the focus is on %s", got)
	}

	c.section("Username").fill("Username", "root")
	c.section("Username").click("button", "Save")
	c.prove(goodPassword, "") // the page was loaded anew
	c.section("Username").wantText("already exists")
	c.section("Username").fill("Username", "Ann.B")
	c.section("Username").click("button", "Save")
	c.wantSpoken("Username saved")

	c.section("E-mail address").fill("Address", "ann@example.net")
	c.section("E-mail address").click("button", "Change the address")
	c.wantSpoken("(?i)open the link")
	c.section("E-mail address").wantText("Waiting for ann@example.net")
	c.screen("account address waits")
	c.section("E-mail address").click("button", "Cancel the change")
	await(t, "the change is cancelled", func() bool { return !strings.Contains(c.pageText(), "Waiting for ann@example.net") })

	c.section("Sessions").wantText("this session")
	c.section("Sessions").click("button", "Sign out everywhere else")
	c.wantSpoken("other sessions have ended")
	p.must(other, "GET", "/api/users/me", "").want(t, 401, "session_ended")

	other = p.login("Ann.B", goodPassword)
	c.call("POST", "/refresh", object{}, nil)
	c.section("Sessions").click("button", "End session.*")
	c.prove(goodPassword, "")
	c.wantSpoken("session has ended")
	p.must(other, "GET", "/api/users/me", "").want(t, 401, "session_ended")

	c.section("Password").fill("New password", "short")
	c.section("Password").click("button", "Change the password")
	c.section("Password").wantText("at least 8 characters")
	c.section("Password").fill("New password", newPassword)
	c.section("Password").click("button", "Change the password")
	c.wantSpoken("Password changed")
	p.login("Ann.B", newPassword)
	c.call("POST", "/refresh", object{}, nil) // with the new cookie
	c.find("heading", "Account")
	c.section("Username").fill("Username", "ann")
	c.section("Username").click("button", "Save")
	c.prove(newPassword, "")
	c.wantSpoken("Username saved")
}

// textOf returns the text of the one such element.
func (p *person) textOf(roles, pattern string) string {
	p.t.Helper()
	return strings.TrimSpace(p.property(p.find(roles, pattern), "textContent"))
}

func testFactor(t *testing.T, p *process, c *person) {
	factor := func() *person { return c.section("Second factor") }
	root := p.login("root", goodPassword)
	p.must(root, "PATCH", "/api/users/2", `{"email":"ann@example.com","email_verified":true}`).want(t, 200, "")
	c.call("POST", "/refresh", object{}, nil)
	factor().click("button", "Add a second factor")
	c.prove(newPassword, "")
	d := c.dialog("Add a second factor")
	d.find("image|img", "QR code.*")
	c.screen("second factor")
	uri, err := url.Parse(c.readQR())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := otp.ParseSecret(uri.Query().Get("secret"))
	if err != nil {
		t.Fatalf("the QR code says %s: %v", uri, err)
	}
	var last int64
	code := func() string { // one that was not used
		last = max(last+1, otp.Step(time.Now()))
		await(t, "a new code", func() bool { return otp.Step(time.Now()) >= last-1 })
		return otp.Code(secret, last)
	}
	d.fill("Code.*", "000000")
	d.click("button", "Turn on")
	d.wantText("(?i)wrong")
	last = otp.Step(time.Now())
	d.fill("Code.*", otp.Code(secret, last))
	d.click("button", "Turn on")
	codes := regexp.MustCompile(`[A-Z2-7]{6}(?:-[A-Z2-7]{6}){3}`).FindAllString(c.textOf("code", "Recovery codes"), -1)
	if len(codes) != 10 {
		t.Fatalf("the page shows the recovery codes %q", codes)
	}
	c.screen("recovery codes")
	c.wantKeptOpen("Add a second factor")
	c.click("button", "I have kept them")
	c.awaitGone("dialog", ".*")
	factor().wantText("10 recovery codes left")
	c.screen("account second factor on")

	c.click("button", "Log out")
	c.fill("Username or e-mail address", "ann")
	c.fill("Password", newPassword)
	c.click("button", "Log in")
	c.find("heading", "Enter a code")
	c.screen("login code")
	c.fill("Code.*", "000000")
	c.click("button", "Log in")
	c.wantText("(?i)wrong")
	c.fill("Code.*", codes[0])
	c.click("button", "Log in")
	c.find("heading", "Account")
	factor().wantText("9 recovery codes left")

	factor().click("button", "New recovery codes")
	c.wantKeptOpen("Your new recovery codes")
	c.dialog("Your new recovery codes").click("button", "I have kept them")
	c.awaitGone("dialog", ".*")
	factor().wantText("10 recovery codes left")

	c.call("POST", "/refresh", object{}, nil)
	factor().click("button", "Turn off…")
	c.dialog("Turn off.*").click("button", "Turn off")
	c.prove(newPassword, code())
	c.wantSpoken("second factor is off")
	factor().find("button", "Add a second factor")
}

func testKeys(t *testing.T, p *process, c *person) {
	c.section("API keys").wantText("No API keys")
	c.section("API keys").click("button", "New API key…")
	d := c.dialog("New API key")
	d.fill("Name", "nightly report")
	d.choose("Valid for", "30 days")
	c.screen("new key")
	d.click("button", "Make the key")
	key := c.textOf("code", "API key")
	if got := p.must(key, "GET", "/api/users/me", "").want(t, 200, "").field("username"); got != "ann" {
		t.Errorf("the key belongs to %s", got)
	}
	c.screen("key made")
	c.wantKeptOpen("New API key")
	c.dialog("New API key").click("button", "Done")
	c.awaitGone("dialog", ".*")
	await(t, "the focus is on the title of the section", func() bool { return c.focused() == c.find("heading", "API keys") }) // its opener is gone
	c.section("API keys").find("button", "Revoke…: nightly report")
	if strings.Contains(c.eval(`document.documentElement.outerHTML`), key) {
		t.Error("the page still has the key")
	}
	c.screen("account with a key")
	c.section("API keys").click("button", "Revoke.*")
	c.dialog("Revoke .*").click("button", "Revoke")
	c.wantSpoken("revoked")
	p.must(key, "GET", "/api/users/me", "").want(t, 401, "")
}

func testDeleteMe(t *testing.T, p *process, c *person) {
	c.call("POST", "/refresh", object{}, nil)
	c.click("button", "Delete my account…")
	c.screen("delete my account")
	c.dialog("Delete your account.*").click("button", "Delete my account")
	c.prove(newPassword, "")
	c.wantText("Your account is deleted")
	if got := c.cookies(); len(got) != 0 {
		t.Errorf("the cookies are %q", got)
	}
	p.must("", "POST", "/api/login", `{"username":"ann","password":"`+newPassword+`"}`).want(t, 401, "invalid_credentials")
	c.call("POST", "/refresh", object{}, nil)
	c.find("heading", "Log in")
}

func testRegistration(t *testing.T, p *process, c *person) {
	c.click("button", "Ask for an account")
	c.find("heading", "Create your account")
	c.screen("registration")
	c.fill("Username", "newcomer")
	c.fill("E-mail address", "newcomer@example.com")
	c.fill("Password", goodPassword)
	c.click("button", "Create account")
	c.wantText("An admin must approve you")
	c.fill("Username or e-mail address", "newcomer")
	c.fill("Password", goodPassword)
	c.click("button", "Log in")
	c.wantSpoken("An admin must approve you")
	c.logIn("root", goodPassword, "")
	c.goTo("Users")
	c.choose("State", "Waiting for approval")
	c.wantSpoken("1 user on this page")
	c.click("link", "newcomer")
	c.find("heading", "newcomer")
	c.screen("user waits")
	c.click("button", "Approve")
	c.wantSpoken("User approved")
	p.login("newcomer", goodPassword)
	c.click("button", "Log out")
	c.wantText("You have logged out")
	c.click("button", "Forgot your password.")
	c.screen("forgotten password")
	c.fill("Username or e-mail address", "newcomer")
	c.click("button", "Send the link")
	c.wantText("a message is on its way")
	c.mailedLink(p, "newcomer@example.com", resetMailCode)
}

// The picture of README.md: the same data and times give nearly the same picture.
func TestThePictureOfTheConsole(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	dir := t.TempDir()
	database := filepath.Join(dir, "app.db")
	environ := []string{"DATABASE_URL=" + database}
	for n, name := range []string{"maria", "ben", "chidi", "daniela", "elif", "farid", "grace", "hiroshi"} {
		command := []string{"user", "add"}
		if n == 0 || n == 4 {
			command = append(command, "-admin")
		}
		userdHere(t, goodPassword, environ, append(command, name, name+"@example.com")...)
	}
	p, c := openConsole(t, dir, "REGISTRATION=approval", "MAIL_URL=log:")
	c.resize(1200, 660)
	c.devtools("Emulation.setScrollbarsHidden", object{"hidden": true}, nil)
	c.devtools("Emulation.setTimezoneOverride", object{"timezoneId": "UTC"}, nil)
	c.logIn("maria", goodPassword, "")
	runSQL(t, another(t, database),
		`UPDATE user SET created_at = 1793000000 + id * 131071, last_login_at = 1795700000 - id * 7 % 11 * 90001`,
		`UPDATE user SET email_verified_at = created_at + 600 WHERE id NOT IN (6, 8)`,
		`UPDATE user SET disabled = 1 WHERE id = 7`,
		`UPDATE user SET pending = 1, last_login_at = 0 WHERE id = 8`)
	c.open(p.url + "/console#/users")
	c.find("link", "hiroshi")
	c.eval(`document.activeElement.blur()`)
	var picture bytes.Buffer // smaller than Chromium's
	small := png.Encoder{CompressionLevel: png.BestCompression}
	if err := small.Encode(&picture, must(png.Decode(bytes.NewReader(c.picture())))); err != nil {
		t.Fatal(err)
	}
	if picture.Len() > 150<<10 {
		t.Errorf("the picture has %d bytes", picture.Len())
	}
	if *readmePicture != "" {
		writeFile(t, *readmePicture, picture.Bytes())
	}
	c.wantNoFaults()
}
