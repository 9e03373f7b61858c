package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"userd/internal/param"
	"userd/internal/passhash"
	"userd/internal/validate"
)

// userdCommand returns the command that runs userd in dir, with this
// environment and no other, on a free port of the loopback address if it is not
// told another.
func userdCommand(t *testing.T, dir string, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{
		"USERD_TEST_RUN_MAIN=1",
		"GORACE=atexit_sleep_ms=0 halt_on_error=1",
		"ADDR=127.0.0.1:0",
	}, environ...)
	return cmd
}

// A process is a userd that serves.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	client *http.Client
	stdout bytes.Buffer // to be read when it has exited
	exited chan struct{}

	mu    sync.Mutex
	lines []string // of standard error
	more  chan struct{}
}

// startUserd starts userd and returns when it serves.
func startUserd(t *testing.T, dir string, environ []string, args ...string) *process {
	t.Helper()
	p := spawnUserd(t, dir, environ, args...)
	p.awaitServing()
	return p
}

// spawnUserd starts userd. It ends with the test at the latest.
func spawnUserd(t *testing.T, dir string, environ []string, args ...string) *process {
	t.Helper()
	return spawn(t, userdCommand(t, dir, environ, args...))
}

// spawn is spawnUserd of a command that userdCommand has made.
func spawn(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{
		t:      t,
		cmd:    cmd,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
		exited: make(chan struct{}),
		more:   make(chan struct{}, 1),
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = &p.stdout
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for in := bufio.NewScanner(stderr); in.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, in.Text())
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
		p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.exited
		p.client.CloseIdleConnections()
	})
	return p
}

func (p *process) awaitServing() {
	p.t.Helper()
	p.url, _ = p.awaitLog("serving")["url"].(string)
}

// log returns the lines that the process has written to standard error.
func (p *process) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

// awaitLog returns the first record of the log with this message.
func (p *process) awaitLog(msg string) map[string]any {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		for _, line := range p.log() {
			var record map[string]any
			if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == msg {
				return record
			}
		}
		select {
		case <-p.more:
		case <-p.exited:
			p.t.Fatalf("userd has exited and never logged %q:\n%s", msg, strings.Join(p.log(), "\n"))
		case <-timeout:
			p.t.Fatalf("userd did not log %q:\n%s", msg, strings.Join(p.log(), "\n"))
		}
	}
}

// end sends a signal and returns the exit status, which for a killed process is -1.
func (p *process) end(s os.Signal) int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	receive(p.t, "userd exits", p.exited)
	return p.cmd.ProcessState.ExitCode()
}

// ask sends a request with a token and a JSON body, either of which may be empty.
func (p *process) ask(token, method, path, body string) (reply, error) {
	r, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(data)}, err
}

// must is ask, but fails the test if there is no answer.
func (p *process) must(token, method, path, body string) reply {
	p.t.Helper()
	r, err := p.ask(token, method, path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func registerBody(name, password string) string {
	return fmt.Sprintf(`{"username":%q,"email":%q,"password":%q}`, name, name+"@example.com", password)
}

func (p *process) register(name string) (id int64) {
	p.t.Helper()
	r := p.must("", "POST", "/api/register", registerBody(name, goodPassword)).want(p.t, 201, "")
	id, err := param.ID(r.field("id"))
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

func (p *process) login(name, password string) (token string) {
	p.t.Helper()
	r := p.must("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, password))
	return r.want(p.t, 200, "").field("access_token")
}

// A result is what a command of userd came to.
type result struct {
	status         int
	stdout, stderr string
}

// userdProcess runs a command of userd to its end, as a process.
func userdProcess(t *testing.T, dir, stdin string, environ []string, args ...string) result {
	t.Helper()
	cmd := userdCommand(t, dir, environ, args...)
	defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop() // one that should fail and serves
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// userdHere runs a command of userd to its end within the test, in the
// working directory. A server is stopped as soon as it serves.
func userdHere(t *testing.T, stdin string, environ []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stdout bytes.Buffer
	stderr := &stopper{stop: cancel}
	if getenvOf(environ)("PORT")+getenvOf(environ)("HOST") == "" {
		environ = append([]string{"ADDR=127.0.0.1:0"}, environ...)
	}
	err := run(ctx, args, getenvOf(environ), strings.NewReader(stdin), &stdout, stderr)
	if err == nil {
		return result{0, stdout.String(), stderr.text.String()}
	}
	return result{exitStatus(err), stdout.String(), stderr.text.String() + "userd: " + err.Error() + "\n"}
}

// A stopper is a log that stops the server as soon as it serves.
type stopper struct {
	text bytes.Buffer
	stop func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"msg":"serving"`)) {
		s.stop()
	}
	return s.text.Write(p)
}

func getenvOf(environ []string) func(string) string {
	return func(name string) string {
		for _, e := range slices.Backward(environ) {
			if value, ok := strings.CutPrefix(e, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

// wantFailure fails the test unless the command has failed with the status and
// said why in one line with each of the words in it.
func (r result) wantFailure(t *testing.T, status int, words ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d", r.status, status)
	}
	line, isLine := strings.CutSuffix(r.stderr, "\n")
	if !isLine || !strings.HasPrefix(line, "userd: ") || strings.ContainsAny(line, "\r\n") {
		t.Errorf("standard error holds %q, want one line", r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("standard error %q does not say %q", line, word)
		}
	}
	if r.stdout != "" {
		t.Errorf("standard output holds %q", r.stdout)
	}
}

// wantFiles fails the test unless the directory holds these files and no other.
func wantFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("the directory holds %q, want %q", got, names)
	}
}

// allCommands are the rows of the command table that have words.
func allCommands() []command {
	return slices.DeleteFunc(table().Commands, func(cmd command) bool { return cmd.Words == "" })
}

// help returns what a command prints to standard output, and fails the test if
// its status is not 0 or it prints anything to standard error.
func help(t *testing.T, args ...string) string {
	t.Helper()
	got := userdHere(t, "", nil, args...)
	if got.status != 0 || got.stderr != "" {
		t.Fatalf("userd %s: %+v", strings.Join(args, " "), got)
	}
	return got.stdout
}

// wantWidth fails the test if a line is longer than 80 columns.
func wantWidth(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(line, "\n"); utf8.RuneCountInString(line) > 80 || strings.TrimRight(line, " ") != line {
			t.Errorf("a line is longer than 80 columns, or ends in a space: %q", line)
		}
	}
}

func TestHelpIsASummaryOfOneScreen(t *testing.T) {
	t.Parallel()
	if got := userdProcess(t, t.TempDir(), "", nil, "help"); got != (result{0, summary(), ""}) {
		t.Fatalf("userd help: %+v", got)
	}
	wantWidth(t, summary())
	if n := strings.Count(summary(), "\n"); n > 60 {
		t.Errorf("it has %d lines, more than 60", n)
	}
	for _, cmd := range allCommands() {
		if !regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(cmd.Words) + `( [A-Z\[].*)?  +` + regexp.QuoteMeta(cmd.Summary) + `$`).MatchString(summary()) {
			t.Errorf("it does not list %s", cmd.Words)
		}
	}
	for _, says := range []string{"DATABASE_URL", "sqlite:///app.db", "127.0.0.1:5000", "userd help -all", "userd help COMMAND", "-json prints one JSON object a line", "id=7"} {
		if !strings.Contains(summary(), says) {
			t.Errorf("it does not say %q", says)
		}
	}
	for _, args := range []string{"-h", "-help", "--help", "-log-level loud -h", "-h -addr :82", "-- help"} {
		if help(t, strings.Fields(args)...) != summary() {
			t.Errorf("userd %s prints something different", args)
		}
	}
}

func TestTheManualNamesEverything(t *testing.T) {
	t.Parallel()
	text := help(t, "help", "-all")
	wantWidth(t, text)
	for _, args := range []string{"help --all", "-all help", "help -all user"} {
		if help(t, strings.Fields(args)...) != text {
			t.Errorf("userd %s prints something different", args)
		}
	}
	words := strings.Join(strings.Fields(text), " ")
	for _, cmd := range table().Commands {
		if !strings.Contains(text, "\n"+table().Usage(&cmd)+"\n") || !strings.Contains(words, strings.Join(strings.Fields(cmd.Help), " ")) {
			t.Errorf("it does not explain %q", cmd.Words)
		}
		if !strings.Contains(text, cmd.FlagHelp("    ")) {
			t.Errorf("it does not explain the flags of %q", cmd.Words)
		}
	}
	for _, o := range options {
		entry := fmt.Sprintf("-%s %s (%s) %s", o.flag, o.value, o.env, o.help)
		if o.standard != "" {
			entry += " Default: " + o.standard
		}
		if !strings.Contains(words, entry) {
			t.Errorf("it does not say %q", entry)
		}
	}
	for _, x := range secrets {
		if !strings.Contains(words, x.env+", "+x.env+"_FILE "+x.help) {
			t.Errorf("it does not explain %s", x.env)
		}
	}
	for _, v := range variables {
		if !strings.Contains(words, v.env+" "+withDefault(v.help, v.standard)) {
			t.Errorf("it does not explain %s", v.env)
		}
	}
	for _, name := range []string{"HOST", "PORT", "JWT_SECRET_KEY", "JWT_SECRET_KEY_FILE", "JWT_SECRET_KEY_PREVIOUS", "JWT_SECRET_KEY_PREVIOUS_FILE", "NOTIFY_SOCKET"} {
		if !regexp.MustCompile(`(?m)\b` + name + `\b`).MatchString(text) {
			t.Errorf("it does not name %s", name)
		}
	}
	for _, says := range []string{"with -json it is one JSON object a line", "The exit status is 0 for success, 1 for failure, and 2", "127.0.0.1:5000"} {
		if !strings.Contains(words, says) {
			t.Errorf("it does not say %q", says)
		}
	}
}

func TestHelpForACommandIsAboutThisCommandOnly(t *testing.T) {
	t.Parallel()
	for _, cmd := range allCommands() {
		text := help(t, append([]string{"help"}, strings.Fields(cmd.Words)...)...)
		wantWidth(t, text)
		if !strings.HasPrefix(text, "Usage: "+table().Usage(&cmd)+"\n\n") || strings.Contains(text, "\nCommands:") {
			t.Errorf("userd help %s prints\n%s", cmd.Words, text)
		}
		for _, form := range []string{cmd.Words + " -h", cmd.Words + " --help", "-h " + cmd.Words, cmd.Words + " some -help", "help " + cmd.Words + " some"} {
			if help(t, strings.Fields(form)...) != text {
				t.Errorf("userd %s prints something different", form)
			}
		}
		flags, _ := table().FlagSet(&cmd, nil)
		n := 0
		flags.VisitAll(func(f *flag.Flag) {
			n++
			if !regexp.MustCompile(`(?m)^  -` + f.Name + `( .*)?\n      \S`).MatchString(text) {
				t.Errorf("userd help %s does not explain -%s", cmd.Words, f.Name)
			}
		})
		if got := len(regexp.MustCompile(`(?m)^  -`).FindAllString(text, -1)); got != n || (n > 0) != strings.Contains(text, "\nFlags:\n") {
			t.Errorf("userd help %s explains %d flags, and the command has %d", cmd.Words, got, n)
		}
	}
	if text := help(t, "help", "user", "import"); !strings.Contains(text, "\n\nEach user needs") {
		t.Errorf("userd help user import prints\n%s", text)
	}
	if text := help(t, "help", "events"); !strings.HasSuffix(text, "\n\nMore commands:\n  events verify [HEAD]         check that no event was changed or removed\n") {
		t.Errorf("userd help events prints\n%s", text)
	}
	want := `Usage: userd user add [flags] NAME [EMAIL]

Adds a user and prints its id. The password is the first line of standard
input; on a terminal userd asks for it twice and does not show it. A service
user, for a program, has no EMAIL and no password.

Flags:
  -admin
      Make the user an admin, who may read, change and delete every user.
  -service
      Add a service user, which has no EMAIL and no password, only API keys:
      see userd token add.
  -database URL (DATABASE_URL)
      The database: sqlite:///relative.db, sqlite:////absolute.db or a path.
      The server, user add and user import create it if it does not exist.
      Default: sqlite:///app.db
  -issuer NAME (JWT_ENCODE_ISSUER)
      The issuer (iss) that userd writes into access tokens and requires of
      them. A password must not equal it.
  -password-min-length N (PASSWORD_MIN_LENGTH)
      The fewest characters of a new password, from 8 to 64. NIST SP 800-63B-4
      requires 15 if the password is the only factor. Default: 8
`
	if got := help(t, "user", "add", "-h"); got != want {
		t.Errorf("userd user add -h prints\n%s", got)
	}
}

func TestHelpForAGroupListsItsCommands(t *testing.T) {
	t.Parallel()
	want := `Usage: userd session COMMAND [flags] [arguments]

Commands:
  session list USER            list a user's sessions
  session end USER [SESSION]   end one session of a user, or all

"userd help session COMMAND" explains a command.
`
	for _, args := range []string{"session", "help session", "session -h", "-h session", "session --help", "-database x.db session"} {
		if got := help(t, strings.Fields(args)...); got != want {
			t.Errorf("userd %s prints\n%s", args, got)
		}
	}
	text := help(t, "user")
	wantWidth(t, text)
	if strings.Count(text, "\n  user ") != 12 || strings.Contains(text, "session") {
		t.Errorf("userd user prints\n%s", text)
	}
}

// Before the words of a command, userd must know whether a flag has a value.
func TestAFlagHasAValueForAllCommandsOrForNone(t *testing.T) {
	t.Parallel()
	booleans := make(map[string]bool) // whether a flag is boolean
	for _, cmd := range table().Commands {
		flags, _ := table().FlagSet(&cmd, nil)
		flags.VisitAll(func(f *flag.Flag) {
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			isBool := ok && b.IsBoolFlag()
			if before, known := booleans[f.Name]; known && before != isBool {
				t.Errorf("-%s has a value only for some commands, of which %q is one", f.Name, cmd.Words)
			}
			booleans[f.Name] = isBool
			if f.Name == "h" || f.Name == "help" || f.Name == "version" {
				t.Errorf("%q has the flag -%s", cmd.Words, f.Name)
			}
		})
	}
}

func TestVersionIsOneLine(t *testing.T) {
	t.Parallel()
	got := userdProcess(t, t.TempDir(), "", nil, "version")
	if got.status != 0 || got.stderr != "" || !regexp.MustCompile(`^userd \S.* `+regexp.QuoteMeta(runtime.Version())+`\n$`).MatchString(got.stdout) {
		t.Errorf("got %+v", got)
	}
	broken := []string{"DATABASE_URL=mysql://localhost/users", "JWT_SECRET_KEY_FILE=/none"}
	for _, args := range []string{"version", "-version", "--version"} {
		if again := userdHere(t, "", broken, args); again != got {
			t.Errorf("userd %s: %+v", args, again)
		}
	}
}

func TestAWrongCommandIsRefusedInOneLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	environ := []string{"DATABASE_URL=" + filepath.Join(dir, "app.db")}
	for _, args := range []string{"serve", "-databse x.db", "user add ann"} {
		t.Run("as a process: "+args, func(t *testing.T) {
			userdProcess(t, dir, goodPassword+"\n", nil, strings.Fields(args)...).wantFailure(t, 2)
		})
	}
	for _, c := range []struct{ args, want string }{
		{"serve", `unknown command "serve": see userd help`},
		{"serve now", `unknown command "serve": see userd help`},
		{"Help", `unknown command "Help": see userd help`},
		{"help serve", `unknown command "serve": see userd help`},
		{"serve -h", `unknown command "serve": see userd help`},
		{"add", `unknown command "add": see userd help`},
		{"user remove ann", `unknown command "user remove": see userd help user`},
		{"help user remove", `unknown command "user remove": see userd help user`},
		{"-log-level warn serve", `unknown command "serve": see userd help`},
		{"-- serve", `unknown command "serve": see userd help`},
		{"-databse x.db", "unknown flag -databse: see userd help -all"},
		{"user list -databse x.db", "unknown flag -databse: see userd help user list"},
		{"-jwt-secret-key=x", "unknown flag -jwt-secret-key: see userd help -all"},
		{"---admin", "unknown flag ---admin: see userd help -all"},
		{"-=x", "unknown flag -: see userd help -all"},
		{"-admin", "does not accept -admin, a flag of userd user add, userd user invite; see userd help"},
		{"-version serve", "unknown flag -version: see userd help -all"},
		{"-addr", "-addr requires a value"},
		{"user add --database", "--database requires a value"},
		{"user add", "user add: missing NAME; usage: userd user add [flags] NAME [EMAIL]"},
		{"user add ann", "user add: missing EMAIL; usage: userd user add [flags] NAME EMAIL"},
		{"user passwd ann s3cret", "user passwd: too many arguments; usage: userd user passwd [flags] USER"},
		{"user add ann ann@example.com more", `user add: too many arguments; usage: userd user add [flags] NAME [EMAIL]`},
		{"user add ann ann@example.com -role admin", "user add: does not accept -role, a flag of userd user set; see userd help user add"},
		{"user add ann ann@example.com -addr :82", "user add: does not accept -addr, a flag of userd, userd healthcheck; see userd help user add"},
		{"user add ann ann@example.com -admin=maybe", `user add: invalid boolean value "maybe" for -admin`},
		{"session end", "session end: missing USER; usage: userd session end [flags] USER [SESSION]"},
		{"session end ann 1 2", `session end: too many arguments; usage: userd session end [flags] USER [SESSION]`},
		{"user list ann", `user list: too many arguments; usage: userd user list [flags]`},
		{"events verfy", `events: too many arguments; usage: userd events [flags]`},
		{"help -database x", "help: does not accept -database, a flag of userd, userd user add, "},
		{"version now", `version: too many arguments; usage: userd version`},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			got := userdHere(t, goodPassword+"\n", environ, strings.Fields(c.args)...)
			got.wantFailure(t, 2, "userd: "+c.want)
			if strings.Contains(got.stderr, "s3cret") {
				t.Errorf("it repeats what may be a password: %s", got.stderr)
			}
		})
	}
	t.Run("an empty word", func(t *testing.T) {
		userdHere(t, "", environ, "").wantFailure(t, 2, `unknown command ""`)
	})
	t.Cleanup(func() { wantFiles(t, dir) })
}

func TestAFileThatIsNotItsOwnIsRefusedAndLeftAsItIs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		make  func(t *testing.T) (path string)
		want  string
	}{
		{"a text file", func(t *testing.T) string {
			path := emptyFile(t)
			damage(t, path, 0, []byte("my notes\n"))
			return path
		}, "not a database"},
		{"another program's database", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`)
		}, "another program's database"},
		{"a damaged database", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, firstPage(t, path, "user"), make([]byte, 4096))
			return path
		}, "malformed"},
		{"a newer userd's database", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, 60, []byte{0, 0, 0, 99}) // user_version, in the header
			return path
		}, "newer userd"},
	} {
		for _, command := range [][]string{nil, {"user", "add", "bob", "bob@example.com"}} {
			t.Run(strings.Join(append(command, c.claim), " "), func(t *testing.T) {
				path := c.make(t)
				before, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				got := userdProcess(t, t.TempDir(), goodPassword+"\n", []string{"DATABASE_URL=" + path}, command...)
				got.wantFailure(t, 1, path, c.want)
				after, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(before, after) {
					t.Error("the file has changed")
				}
			})
		}
	}
	t.Run("a directory that is not there", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "missing", "app.db")
		userdProcess(t, t.TempDir(), "", []string{"DATABASE_URL=" + path}).wantFailure(t, 1, "DATABASE_URL (-database) is "+path+", but the directory "+filepath.Dir(path)+" does not exist")
		wantFiles(t, filepath.Dir(filepath.Dir(path)))
	})
}

func TestAnAdminAddedDuringServingCanLogIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startUserd(t, dir, nil)
	annID := p.register("ann")
	got := userdProcess(t, dir, goodPassword+"\n", nil, "user", "add", "root", "root@example.com", "-admin")
	if got.status != 0 || got.stdout != "added admin root, id 2\n" || got.stderr != "" {
		t.Fatalf("got %+v", got)
	}
	token := p.login("root", goodPassword)
	if r := p.must(token, "GET", "/api/users/me", "").want(t, 200, ""); r.field("role") != "admin" || r.field("id") != "2" {
		t.Errorf("root is %s", r.body)
	}
	p.must(token, "PUT", userPath(annID), `{"disabled":true}`).want(t, 200, "")
}

func TestAUserIsAddedFromTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for i, c := range []struct {
		claim, stdin, password string
	}{
		{"with the first line of standard input", "one password\n", "one password"},
		{"with a line that nothing ends", "two password", "two password"},
		{"with a line that Windows ends", "three password\r\n", "three password"},
		{"with the first line of several", "four password\nfour more\n", "four password"},
		{"with spaces around the password, which are of it", "  five password ", "  five password "},
		{"with the longest password", strings.Repeat("ä", validate.MaxPassword/2) + "\r\n", strings.Repeat("ä", validate.MaxPassword/2)},
	} {
		t.Run(c.claim, func(t *testing.T) {
			name := fmt.Sprint("u", i+1)
			got := userdHere(t, c.stdin, nil, "user", "add", name, name+"@example.com", "-database", "other.db")
			created := ""
			if i == 0 {
				created = "created the database " + filepath.Join(dir, "other.db") + "\n"
			}
			if want := (result{0, fmt.Sprintf("added member %s, id %d\n", name, i+1), created}); got != want {
				t.Fatalf("got %+v, want %+v", got, want)
			}
			st := openTestStore(t, filepath.Join(dir, "other.db"))
			u, login, err := st.userByLogin(name)
			if err != nil || u.role != member || u.disabled || u.createdAt == 0 {
				t.Errorf("the user is %+v, %v", u, err)
			}
			if ok, err := passhash.New(cheap).Verify(context.Background(), "", login.hash, c.password); err != nil || !ok {
				t.Errorf("the password is not %q: %v", c.password, err)
			}
		})
	}
	wantFiles(t, dir, "other.db")
}

func TestAUserWhoCannotBeAddedIsRefusedInOneHelpfulLine(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann")
	for _, c := range []struct {
		claim       string
		name, email string
		stdin       string
		words       []string
	}{
		{"a name that is taken", "ann", "new@example.com", goodPassword, []string{"sername", "exists"}},
		{"a name that is taken in another case", "ANN", "new@example.com", goodPassword, []string{"sername", "exists"}},
		{"an address that is taken", "new", "Ann@example.com", goodPassword, []string{"mail", "exists"}},
		{"a name that is none", "-", "new@example.com", goodPassword, []string{"username"}},
		{"an address that is none", "new", "example.com", goodPassword, []string{"email"}},
		{"no password", "new", "new@example.com", "", []string{"password"}},
		{"an empty line", "new", "new@example.com", "\n" + goodPassword + "\n", []string{"password"}},
		{"a password too short", "new", "new@example.com", "pass-wd\n", []string{"password", "8"}},
		{"a password too long", "new", "new@example.com", strings.Repeat("x", validate.MaxPassword+1) + "\n", []string{"password", "1024"}},
		{"a password much too long", "new", "new@example.com", strings.Repeat("x", 1<<20), []string{"password", "1024"}},
		{"a password that everybody has", "new", "new@example.com", "Password123\n", []string{"password", "common"}},
		{"a password that is the name", "new-name", "new@example.com", "NEW-name\n", []string{"password", "username"}},
		{"a password with NUL", "new", "new@example.com", "secret\x00secret\n", []string{"password", "NUL"}},
		{"a password that is not UTF-8, which no JSON body could hold", "new", "new@example.com", "secret \xe4\xf6\xfc\n", []string{"password", "UTF-8"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			got := userdHere(t, c.stdin, []string{"DATABASE_URL=" + path}, "user", "add", "--", c.name, c.email)
			got.wantFailure(t, 1, c.words...)
			if line := strings.TrimSpace(c.stdin); line != "" && strings.Contains(got.stderr, line) {
				t.Errorf("standard error holds the password: %s", got.stderr)
			}
			st := openTestStore(t, path)
			if names := usernames(t, st); !slices.Equal(names, []string{"ann"}) {
				t.Fatalf("the users are %v, want only ann", names)
			}
			if ann, err := st.user(1); err != nil || ann.version != 1 {
				t.Errorf("ann is %+v, %v", ann, err)
			}
		})
	}
}

func TestHealthcheckAsksTheRunningServer(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), []string{"ADDR=0.0.0.0:0"})
	_, port, err := net.SplitHostPort(strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(environ []string, args ...string) result {
		return userdProcess(t, dir, "", environ, append([]string{"healthcheck"}, args...)...)
	}
	for _, c := range []struct {
		claim, args string
		environ     []string
	}{
		{"by its address", "", []string{"ADDR=127.0.0.1:" + port}},
		{"by the address of all interfaces", "", []string{"ADDR=0.0.0.0:" + port}},
		{"by an address without a host", "", []string{"ADDR=:" + port}},
		{"by PORT", "", []string{"ADDR=", "PORT=" + port}},
		{"by HOST and PORT", "", []string{"ADDR=", "HOST=0.0.0.0", "PORT=" + port}},
		{"by the flag", "-addr 127.0.0.1:" + port, nil},
		{"with a database that it must not need", "", []string{"ADDR=127.0.0.1:" + port, "DATABASE_URL=" + filepath.Join(dir, "none", "app.db")}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			want := result{0, "http://127.0.0.1:" + port + "/readyz: ready\n", ""}
			if got := run(c.environ, strings.Fields(c.args)...); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if status := p.end(os.Interrupt); status != 0 {
		t.Fatal(status)
	}
	run([]string{"ADDR=127.0.0.1:" + port}).wantFailure(t, 1, "no answer from http://127.0.0.1:"+port+"/readyz: ", "refused", "start the server", "ADDR (-addr)")
	run(nil, "-database", "app.db").wantFailure(t, 2, "-database")
	run(nil, "now").wantFailure(t, 2, "usage: userd healthcheck")
	run([]string{"ADDR=5000"}).wantFailure(t, 2, "ADDR")
	wantFiles(t, dir)
}

func TestHealthcheckFailsIfTheServerIsNotReady(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		serve http.HandlerFunc
		want  string
	}{
		{"it says so", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "503 Service Unavailable: the server is not ready, and its log says why"},
		{"it sends elsewhere", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/readyz" {
				http.Redirect(w, r, "/ok", http.StatusFound)
			}
		}, "302 Found instead of 200; give this command the settings of the server: ADDR (-addr)"},
		{"it does not answer", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "ADDR (-addr)"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			web := httptest.NewServer(c.serve)
			defer web.Close()
			userdProcess(t, t.TempDir(), "", nil, "healthcheck", "-addr", web.Listener.Addr().String()).wantFailure(t, 1, c.want)
		})
	}
}
