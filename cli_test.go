package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"userd/internal/setting"
)

// A shell runs userd's commands on one database, as a shell would.
type shell struct {
	t        *testing.T
	database string
}

// run runs a command and fails the test unless it ends with the status. It
// returns what the command printed.
func (sh *shell) run(status int, stdin string, args ...string) (stdout, stderr string) {
	sh.t.Helper()
	var out, errOut bytes.Buffer
	env := func(name string) string {
		if name == "DATABASE_URL" {
			return sh.database
		}
		return ""
	}
	got := 0
	err := run(sh.t.Context(), args, env, strings.NewReader(stdin), &out, &errOut)
	if err != nil {
		got = exitStatus(err)
		fmt.Fprintln(&errOut, "userd:", err)
	}
	if got != status {
		sh.t.Fatalf("userd %s ended with %d, not %d: %s%s", strings.Join(args, " "), got, status, out.String(), errOut.String())
	}
	return out.String(), errOut.String()
}

// A running server sees the changes of commands immediately.
func TestCommandsOnARunningServer(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.clock.t = time.Now() // the command line has no other clock
	sh := &shell{t, s.path}

	if out, _ := sh.run(0, goodPassword+"\n", "user", "add", "-admin", "root", "root@example.com"); out != "added admin root, id 1\n" {
		t.Errorf("user add: %q", out)
	}
	root := s.login("root")
	sh.run(0, setting.ByteOrderMark+goodPassword+"\r\n", "user", "add", "ann", "ann@example.com")
	ann := s.login("ann")
	s.do(root, "GET", "/api/users/2", "").want(t, 200, "")

	sh.run(0, "", "user", "set", "ann", "-role", "admin", "-username", "Anna", "-email", "anna@example.com")
	if r := s.do(ann, "GET", "/api/users/me", "").want(t, 200, ""); r.field("role") != "admin" || r.field("username") != "Anna" || r.field("email") != "anna@example.com" {
		t.Errorf("user set: %s", r.body)
	}
	sh.run(0, "", "user", "set", "-disabled", "true", "anna@EXAMPLE.com")
	s.do(ann, "GET", "/api/users/me", "").want(t, 401, "session_ended")
	sh.run(0, "", "user", "set", "id=2", "-disabled=false")
	ann = s.login("Anna")

	sh.run(0, "another long one\n", "user", "passwd", "anna")
	s.do(ann, "GET", "/api/users/me", "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/login", `{"username":"anna","password":"another long one"}`).want(t, 200, "")

	sh.run(0, "", "user", "delete", "anna")
	s.do("", "POST", "/api/login", `{"username":"anna","password":"another long one"}`).want(t, 401, "")

	second := s.login("root")
	if out, _ := sh.run(0, "", "session", "list", "root"); strings.Count(out, "127.0.0.1") != 2 {
		t.Errorf("session list: %s", out)
	}
	if out, _ := sh.run(0, "", "session", "list", "-json", "root"); strings.Count(out, `"address":"127.0.0.1"`) != 2 || strings.Count(out, "\n") != 2 {
		t.Errorf("session list -json: %s", out)
	}
	sh.run(0, "", "session", "end", "root", "1")
	s.do(root, "GET", "/api/users/me", "").want(t, 401, "session_ended")
	s.do(second, "GET", "/api/users/me", "").want(t, 200, "")
	sh.run(0, "", "session", "end", "root")
	s.do(second, "GET", "/api/users/me", "").want(t, 401, "session_ended")

	old := s.login("root")
	sh.run(0, "", "key", "rotate")
	s.do(old, "GET", "/api/users/me", "").want(t, 200, "")
	renewed := s.login("root")
	s.do(renewed, "GET", "/api/users/me", "").want(t, 200, "")
	if header(old) == header(renewed) {
		t.Error("the server still signs with the old key")
	}
	if out, _ := sh.run(0, "", "key", "list"); strings.Count(out, "\n") != 3 || strings.Count(out, " -") != 2 {
		t.Errorf("key list: %s", out)
	}
	if out, _ := sh.run(0, "", "key", "list", "-json"); strings.Count(out, `"kid"`) != 2 || strings.Count(out, `"good_until"`) != 1 || strings.Contains(out, "secret") {
		t.Errorf("key list -json: %s", out)
	}
}

// A command that fails prints one line, and ends with a status for scripts.
func TestCommandsThatFail(t *testing.T) {
	t.Parallel()
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	for _, args := range []string{"user list", "user show ann", "user passwd ann", "user export", "session list ann", "key list", "key rotate"} {
		if _, text := sh.run(1, goodPassword, strings.Fields(args)...); !strings.Contains(text, "database "+sh.database+" does not exist or is empty; select another one with -database") {
			t.Errorf("%s without a database: %s", args, text)
		}
		if _, err := os.Stat(sh.database); err == nil {
			t.Fatalf("%s made a database", args)
		}
	}
	sh.run(0, goodPassword, "user", "add", "-admin", "root", "root@example.com")
	for _, test := range []struct {
		status int
		args   string
		stdin  string
		says   string
	}{
		{1, "user add root new@example.com", goodPassword, "Username already exists"},
		{1, "user add new ROOT@example.com", goodPassword, "Email already exists"},
		{1, "user add new new@example.com", "short", "password must have at least 8"},
		{1, "user add new new@example.com", "", "userd: no password on standard input"},
		{1, "user passwd root", "\n", "userd: no password on standard input"},
		{1, "user passwd root", setting.ByteOrderMark + "\n", "userd: no password on standard input"},
		{1, "user add new new", goodPassword, "email must be"},
		{1, "user show nobody", "", "user \"nobody\" does not exist\n"},
		{1, "user show 7", "", `user "7" does not exist; write an id as id=7`},
		{1, "user show id=7", "", `user "id=7" does not exist`},
		{1, "user set nobody -role member", "", `user "nobody" does not exist`},
		{1, "user passwd nobody", goodPassword, `user "nobody" does not exist`},
		{1, "user delete nobody", "", `user "nobody" does not exist`},
		{1, "session list nobody", "", `user "nobody" does not exist`},
		{1, "session end nobody", "", `user "nobody" does not exist`},
		{1, "events -user nobody", "", `user "nobody" does not exist`},
		{1, "user set root -role member", "", "last active admin"},
		{1, "user set root -disabled true", "", "last active admin"},
		{1, "user set root -username ?", "", "username must be"},
		{1, "user delete root", "", "last active admin"},
		{1, "user passwd root", "root@example.com", "must not be the username"},
		{1, "session end root 99", "", "Session not found"},
		{2, "user show id=0", "", `"id=0": an id is a positive integer`},
		{2, "user set root", "", "user set: missing a flag: -username, -email, -email-verified, -role or -disabled"},
		{2, "user set root -role king", "", `user set: invalid value "king" for flag -role: must be member or admin`},
		{2, "user set root -disabled maybe", "", `user set: invalid value "maybe" for flag -disabled: must be true or false`},
		{2, "session end root x", "", `session end: "x": the id of a session is a positive integer`},
		{2, "events -type nothing", "", `events: invalid value "nothing" for flag -type: must be user_created, `},
		{2, "events -after x", "", `events: invalid value "x" for flag -after`},
	} {
		_, text := sh.run(test.status, test.stdin, strings.Fields(test.args)...)
		if strings.Count(text, "\n") != 1 || !strings.Contains(text, test.says) {
			t.Errorf("userd %s says %q", test.args, text)
		}
	}
}

// A command checks its data before it creates a database.
func TestACommandThatFailsCreatesNoDatabase(t *testing.T) {
	t.Parallel()
	const header = "username,email,password_hash\n"
	cases := []struct{ args, stdin string }{
		{"user add ann ann@example.com", ""},
		{"user add ann ann@example.com", "short"},
		{"user add ann ann@example.com", "ann@example.com"},
		{"user add an?n ann@example.com", goodPassword},
		{"user add ann ann", goodPassword},
		{"user import none.csv", ""},
		{"user import -", ""},
		{"user import -", "[" + annsLine},
		{"user import -", header + "ann,ann@example.com,x\n"},
		{"user import -", header + "ann,ann@example.com," + someHash + "\nANN,b@example.com," + someHash + "\n"},
		{"user import - -partial", header + "ann,ann@example.com," + someHash + "\n\"x"},
		{"user import - -partial", header + "ann,ann@example.com,x\n"},
	}
	for _, cmd := range allCommands() {
		if !slices.Contains([]string{"user add", "user import", "help", "version"}, cmd.Words) {
			cases = append(cases, struct{ args, stdin string }{cmd.Words + strings.Repeat(" 1", len(strings.Fields(cmd.Args))), goodPassword})
		}
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			got := userdHere(t, c.stdin, []string{"DATABASE_URL=" + filepath.Join(dir, "app.db"), "ADDR=127.0.0.1:1"}, strings.Fields(c.args)...)
			if got.status == 0 {
				t.Errorf("got %+v", got)
			}
			wantFiles(t, dir)
		})
	}
}

func TestUserListAndShow(t *testing.T) {
	t.Parallel()
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	sh.run(0, goodPassword, "user", "add", "-admin", "root", "root@example.com")
	sh.run(0, goodPassword, "user", "add", "ann", "ann@example.com")
	table := "ID  USERNAME  EMAIL             ROLE    DISABLED  PENDING  LAST LOGIN\n" +
		"1   root      root@example.com  admin   false     false    -\n" +
		"2   ann       ann@example.com   member  false     false    -\n"
	if out, _ := sh.run(0, "", "user", "list"); out != table {
		t.Errorf("user list:\n%s", out)
	}
	if out, _ := sh.run(0, "", "user", "set", "-json", "ann", "-role", "member"); !strings.HasPrefix(out, `{"id":2,"username":"ann"`) {
		t.Errorf("user set -json: %s", out)
	}
	ann := regexp.MustCompile(`^ID              2
USERNAME        ann
EMAIL           ann@example.com
ROLE            member
DISABLED        false
CREATED         20\S+Z
UPDATED         20\S+Z
LAST LOGIN      -
EMAIL VERIFIED  -
PENDING EMAIL   -
PENDING         false
SERVICE         false
$`)
	for _, args := range []string{"user show ann", "user set ann -role member"} {
		if out, _ := sh.run(0, "", strings.Fields(args)...); !ann.MatchString(out) {
			t.Errorf("%s:\n%s", args, out)
		}
	}
	if out, _ := sh.run(0, "", "user", "list", "-json"); strings.Count(out, "\n") != 2 || !strings.HasPrefix(out, `{"id":1,"username":"root"`) {
		t.Errorf("user list -json: %s", out)
	}
	for _, name := range []string{"ann", "ANN@example.com", "id=2"} {
		if out, _ := sh.run(0, "", "user", "show", name, "-json"); !strings.HasPrefix(out, `{"id":2,`) {
			t.Errorf("user show %s: %s", name, out)
		}
	}
}

// Adopted names can hold anything.
func TestAcknowledgementsPrintNoControlCharacters(t *testing.T) {
	t.Parallel()
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	sh.run(0, goodPassword, "user", "add", "ann", "ann@example.com")
	runSQL(t, another(t, sh.database), "UPDATE user SET username = 'a\x1b[2J\nb'")
	for _, c := range []struct{ args, says string }{
		{"user passwd id=1", "changed the password of a?[2J?b, and ended all sessions\n"},
		{"session end id=1", "ended all sessions of a?[2J?b\n"},
		{"user delete id=1", "deleted a?[2J?b, id 1\n"},
	} {
		if out, _ := sh.run(0, goodPassword, strings.Fields(c.args)...); out != c.says {
			t.Errorf("%s says %q, want %q", c.args, out, c.says)
		}
	}
}

func TestUserSetWithoutAChangeWritesNothing(t *testing.T) {
	t.Parallel()
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	sh.run(0, goodPassword, "user", "add", "-admin", "root", "root@example.com")
	before, _ := sh.run(0, "", "user", "show", "-json", "root")
	for _, args := range []string{
		"user set root -username root",
		"user set root -email root@example.com",
		"user set root -role admin",
		"user set root -disabled false",
		"user set root -username root -email root@example.com -role admin -disabled=false",
	} {
		if out, _ := sh.run(0, "", append(strings.Fields(args), "-json")...); out != before {
			t.Errorf("%s prints %s, want %s", args, out, before)
		}
	}
	if out, _ := sh.run(0, "", "events", "-json"); strings.Count(out, "\n") != 1 {
		t.Errorf("the events are\n%s", out)
	}
	sh.run(0, "", "user", "set", "root", "-username", "root", "-email", "new@example.com")
	if out, _ := sh.run(0, "", "events", "-json", "-after", "1"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"email"`) || strings.Contains(out, `"username"`) {
		t.Errorf("the events are\n%s", out)
	}
}

func TestUserSetMarksAnAddressAsVerified(t *testing.T) {
	t.Parallel()
	sh := &shell{t, makeStore(t, "root", "ann")}
	set := func(want string, args ...string) {
		t.Helper()
		out, _ := sh.run(0, "", append([]string{"user", "set", "-json", "ann"}, args...)...)
		if !strings.Contains(out, want) {
			t.Errorf("user set %v prints %s", args, out)
		}
	}
	set(`"email_verified_at":"2`, "-email-verified", "true")
	set(`"email_verified_at":"2`, "-email-verified", "true") // no event
	set(`"email_verified_at":null`, "-email", "ann@example.org")
	set(`"email_verified_at":"2`, "-email", "ann@example.net", "-email-verified", "true")
	set(`"email_verified_at":"2`, "-email", "new@example.net", "-email-verified=true")
	set(`"email_verified_at":null`, "-email-verified", "false")
	out, _ := sh.run(0, "", "events", "-type", "user_changed", "-json")
	var changes []string
	for line := range strings.Lines(out) {
		changes = append(changes, regexp.MustCompile(`"changes":\[(.*?)\]`).FindString(line))
	}
	want := []string{`["email_verified=true"]`, `["email"]`, `["email","email_verified=true"]`, `["email","email_verified=true"]`, `["email_verified=false"]`}
	for i := range want {
		want[i] = `"changes":` + want[i]
	}
	if !slices.Equal(changes, want) {
		t.Errorf("the events are %v, want %v", changes, want)
	}
	sh.run(2, "", "user", "set", "ann", "-email-verified", "yes")
	sh.run(0, "", "user", "add", "-service", "robot")
	sh.run(1, "", "user", "set", "robot", "-email-verified", "true")
}

func TestLongCommandsShowNoStepsInAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	copied := filepath.Join(dir, "copy.db")
	app, flask := makeStore(t, "ann"), flaskDatabase(t)
	for _, args := range [][]string{
		{"backup", copied, "-database", app},
		{"check", "-database", makeStore(t)},
		{"restore", copied, "-database", app},
		{"backup", "-", "-database", app},
		{"adopt", "-database", flask},
	} {
		log, err := os.Create(filepath.Join(dir, "log"))
		if err == nil {
			err = run(t.Context(), args, getenvOf(nil), strings.NewReader(""), io.Discard, log)
		}
		if err != nil {
			t.Fatal(err)
		}
		log.Close()
		if text, err := os.ReadFile(log.Name()); err != nil || strings.ContainsAny(string(text), "\r\x1b") {
			t.Errorf("userd %s prints %q, %v", args, text, err)
		}
	}
}

func TestACheckReportsHowManyUsersAreDone(t *testing.T) {
	t.Parallel()
	var steps []string
	_, _, err := examine(t.Context(), makeStore(t, "ann", "bob"), func(what string, users int64) {
		steps = append(steps, fmt.Sprint(what, " ", users))
	}, func(n int, done int64) { steps = append(steps, fmt.Sprint(n, " ", done)) })
	if want := []string{"checking the pages 0", "checking users 2", "1 1", "2 2"}; err != nil || !slices.Equal(steps, want) {
		t.Errorf("the steps are %q, %v, want %q", steps, err, want)
	}
}

// brokenInput is a standard input that cannot be read.
type brokenInput struct{ err error }

func (r brokenInput) Read([]byte) (int, error) { return 0, r.err }

func TestBrokenInputIsAFailureThatSaysWhy(t *testing.T) {
	t.Parallel()
	environ := getenvOf([]string{"DATABASE_URL=" + makeStore(t, "root")})
	for _, args := range []string{"user add ann ann@example.com", "user passwd root", "user import -"} {
		err := run(t.Context(), strings.Fields(args), environ, brokenInput{errors.New("unplugged")}, io.Discard, io.Discard)
		if err == nil || exitStatus(err) != 1 || !strings.Contains(err.Error(), "unplugged") {
			t.Errorf("userd %s: %v", args, err)
		}
	}
}

func TestAnInterruptedCommandSaysSo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	environ := getenvOf([]string{"DATABASE_URL=" + makeStore(t, "root")})
	rows := io.MultiReader(strings.NewReader("username,email,password\nann,ann@example.com,"+goodPassword+"\n"), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, io.EOF
	}))
	err := run(ctx, []string{"user", "import", "-"}, environ, rows, io.Discard, io.Discard)
	if err == nil || exitStatus(err) != 1 || err.Error() != "interrupted" {
		t.Errorf("got %v", err)
	}
}

func TestAnErrorIsPrintedWithItsTextForClientsIfItHasOne(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		err   error
		want  string
	}{
		{"an API error", fmt.Errorf("updating: %w", errLastAdmin), errLastAdmin.text},
		{"an error with details", fmt.Errorf("adding: %w", errInvalid.with("Not valid: x")), "Not valid: x"},
		{"a failure of the database, with its cause", &storageError{"writing", errors.New("disk full")}, "database: writing: disk full"},
		{"a statement that was cancelled", &storageError{"reading", context.Canceled}, "interrupted"},
		{"any other error", errors.New("x"), "x"},
	} {
		if got := plainError(c.err); got.Error() != c.want {
			t.Errorf("%s: got %q, want %q", c.claim, got, c.want)
		}
	}
	if err := plainError(nil); err != nil {
		t.Errorf("no error is the error %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAKeyOfTheEnvironmentIsNotRotated(t *testing.T) {
	t.Parallel()
	environ := []string{"DATABASE_URL=" + makeStore(t), "JWT_SECRET_KEY=" + strings.Repeat("k", 32)}
	userdHere(t, "", environ, "key", "rotate").wantFailure(t, 1, "JWT_SECRET_KEY is set and signs")
	if out, _ := (&shell{t, strings.TrimPrefix(environ[0], "DATABASE_URL=")}).run(0, "", "key", "list"); strings.Count(out, "\n") != 1 {
		t.Errorf("key list prints\n%s", out)
	}
}

// With -now, a leaked key is invalid immediately. Without it, the key is valid until the
// last token that it signed has expired.
func TestALeakedKeyEndsNow(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	leaked := s.signer()
	c, err := s.keys.verify(token, s.clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	sh := &shell{t, s.path}
	sh.run(0, "", "key", "rotate")
	s.do(leaked.sign(c), "GET", path, "").want(t, 200, "")
	if out, _ := sh.run(0, "", "key", "rotate", "-now"); !strings.HasSuffix(out, " signs from now on; the earlier keys are no longer valid\n") {
		t.Errorf("key rotate -now prints %s", out)
	}
	s.do(leaked.sign(c), "GET", path, "").want(t, 401, "invalid_token")
	s.do(leaked.sign(c), "PUT", path, `{"password":"forged by a thief"}`).want(t, 401, "invalid_token")
	s.do(s.login("ann"), "GET", path, "").want(t, 200, "")
	if n := count(t, s, "signing_key"); n != 1 {
		t.Errorf("%d keys are left", n)
	}
}

// A running server uses the new key of refresh tokens from the next request on.
func TestTheRefreshKeyIsRotated(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	access, old := s.pair("ann")
	sh := &shell{t, s.path}
	sh.run(0, "", "key", "rotate", "-refresh")
	s.do(old, "POST", "/api/refresh", "").want(t, 401, "invalid_token")
	s.do(access, "GET", "/api/users/me", "").want(t, 200, "")
	_, renewed := s.pair("ann")
	s.do(renewed, "POST", "/api/refresh", "").want(t, 200, "")
	if _, stderr := sh.run(2, "", "key", "rotate", "-refresh", "-now"); !strings.Contains(stderr, "once with each") {
		t.Errorf("with -now too: %s", stderr)
	}
	if out, _ := sh.run(0, "", "events"); !strings.Contains(out, "secret=refresh") {
		t.Errorf("the events are\n%s", out)
	}
}

// Commands say which kind of key the servers sign with, whatever the environment
// of the command's shell is.
func TestCommandsKnowTheServersKey(t *testing.T) {
	t.Parallel()
	path := makeStore(t)
	st := openTestStore(t, path)
	configured := "JWT_SECRET_KEY=" + strings.Repeat("k", 32)
	database := "DATABASE_URL=" + path
	if _, err := loadKeys(t.Context(), st, testConfig(strings.Repeat("k", 32)), testNow); err != nil {
		t.Fatal(err)
	}
	for _, environ := range [][]string{{database}, {database, configured}} {
		userdHere(t, "", environ, "key", "rotate").wantFailure(t, 1, "the servers of this database sign with JWT_SECRET_KEY")
		if r := userdHere(t, "", environ, "key", "list"); r.status != 0 || !strings.Contains(r.stderr, "since 2026-05-04T03:02:01Z the servers of this database sign with JWT_SECRET_KEY") {
			t.Errorf("key list: %+v", r)
		}
	}
	if _, err := loadKeys(t.Context(), st, testConfig(""), testNow); err != nil {
		t.Fatal(err)
	}
	for _, environ := range [][]string{{database}, {database, configured}} {
		if r := userdHere(t, "", environ, "key", "rotate"); r.status != 0 {
			t.Errorf("key rotate: %+v", r)
		}
		if r := userdHere(t, "", environ, "key", "list"); r.status != 0 || r.stderr != "" {
			t.Errorf("key list: %+v", r)
		}
	}
}

func TestEventsAreFollowedFromTheNewest(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.admin("root")
	newest := s.newest()
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"events", "-follow", "-json"}, getenvOf([]string{"DATABASE_URL=" + s.path}), strings.NewReader(""), out, out)
	}()
	first := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(in)
		lines.Scan()
		first <- lines.Text()
		io.Copy(io.Discard, in)
	}()
	for line := ""; line == ""; {
		s.login("root")
		select {
		case line = <-first:
			var e struct{ ID int64 }
			if err := json.Unmarshal([]byte(line), &e); err != nil || e.ID <= newest {
				t.Errorf("the first line is %s, %v; want an event after %d", line, err, newest)
			}
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	cancel()
	if err := receive(t, "it ends", ended); err != nil {
		t.Error(err)
	}
}

func TestAnInterruptEndsFollowingWithoutAnError(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.admin("root")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &cli{userService: s.userService, stdout: io.Discard}
	if err := c.printEvents(ctx, 0, eventFilter{}, true, false); err != nil {
		t.Errorf("following ends with %v", err)
	}
	if err := c.printEvents(ctx, 0, eventFilter{}, false, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a list that was interrupted ends with %v", err)
	}
}

func TestAnAbsentValueIsADash(t *testing.T) {
	t.Parallel()
	if got := []string{idOrDash(0), idOrDash(7), when(0), when(7)}; !slices.Equal(got, []string{"-", "7", "-", "1970-01-01T00:00:07Z"}) {
		t.Errorf("got %q", got)
	}
}

func TestMailCommands(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	s.clock.set(time.Now())
	w := s.webhook()
	s.added("ann")
	s.login("ann")
	s.forgot("ann")
	w.send(410, nil)
	s.forgot("nobody@example.com")
	sh := &shell{t, s.path}
	table, _ := sh.run(0, "", "mail", "list")
	if lines := strings.Split(strings.TrimSpace(table), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "ID") ||
		!strings.Contains(lines[1], "ann@example.com") || !strings.Contains(lines[1], "failed") || !strings.Contains(lines[2], "queued") || strings.Fields(lines[2])[2] != "-" {
		t.Errorf("mail list printed\n%s", table)
	}
	if strings.Contains(table, "nobody@") || strings.Contains(table, "ur_") {
		t.Errorf("mail list shows what a stranger typed, or a code:\n%s", table)
	}
	if text, _ := sh.run(0, "", "mail", "list", "-json"); !strings.Contains(text, `"kind":"reset","user_id":1,"email":"ann@example.com","state":"failed","tries":1`) {
		t.Errorf("mail list -json printed %s", text)
	}
	if text, _ := sh.run(0, "", "mail", "retry", "1"); text != "1 mail due now\n" {
		t.Errorf("mail retry printed %q", text)
	}
	s.clock.add(time.Minute) // the command has another clock
	w.wantTries(1, 200, nil, "after mail retry")
	if _, text := sh.run(1, "", "mail", "retry", "1"); !strings.Contains(text, "No mail with this id") {
		t.Errorf("mail retry of a sent mail says %q", text)
	}
	sh.run(2, "", "mail", "retry", "x")
	if text, _ := sh.run(0, "", "mail", "retry"); text != "0 mails due now\n" {
		t.Errorf("mail retry printed %q", text)
	}
}

func TestMailTestSendsOneMessage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		url, to string
		status  int
		want    string
	}{
		"it arrives":        {"log:", "ann@example.com", 0, "To: ann@example.com\nSubject: Test message from userd\n"},
		"it does not":       {"smtp+plain://127.0.0.1:1", "ann@example.com", 1, "smtp+plain://127.0.0.1:1 did not accept the message: connect: "},
		"no address":        {"log:", "ann", 1, "one address"},
		"MAIL_URL not set":  {"", "ann@example.com", 2, "MAIL_URL is not set"},
		"MAIL_URL is wrong": {"smtp://", "ann@example.com", 2, "MAIL_URL: not a valid URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"MAIL_URL": c.url, "MAIL_FROM": "userd@example.com"}
			var out bytes.Buffer
			err := run(t.Context(), []string{"mail", "test", c.to}, func(name string) string { return env[name] }, strings.NewReader(""), &out, &out)
			status := 0
			if err != nil {
				status = exitStatus(err)
				out.WriteString(err.Error())
			}
			if status != c.status || !strings.Contains(out.String(), c.want) {
				t.Errorf("status %d, %q, want %d, %q", status, out.String(), c.status, c.want)
			}
		})
	}
}
