package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A mailLoad is a userd that is killed again and again while users follow mailed links.
type mailLoad struct {
	t     *testing.T
	dir   string
	mails *mailServer
	users []*mailedUser
	sent  map[string]int // by the ids of the mails whose sending was recorded: how often each arrived
}

// A mailedUser goes through one flow, as far as the kills let it.
type mailedUser struct {
	name    string
	flow    *mailFlow
	done    int  // steps that were acknowledged
	inDoubt bool // the next step was sent, and its answer is missing
}

// A mailFlow is a request that causes a mail, and those that use the codes of its mails.
type mailFlow struct {
	prefix string // of the users' names
	steps  []mailStep
}

// A mailStep is a request of a user.
type mailStep struct {
	kind   codeKind // of the code that it uses; the first step of a flow uses none
	to     string   // the part of the code's address after the name
	do     func(p *process, name, code string) (reply, error)
	landed func(p *process, name string) bool // reports whether the step has taken effect
}

// post returns a step's request.
func post(path, body string) func(p *process, name, code string) (reply, error) {
	return func(p *process, name, code string) (reply, error) {
		return p.insist("POST", path, strings.NewReplacer("NAME", name, "CODE", code).Replace(body))
	}
}

// insist sends a request until it gets another answer than that the server is busy.
func (p *process) insist(method, path, body string) (reply, error) {
	for {
		if r, err := p.ask("", method, path, body); r.field("code") != "busy" {
			return r, err
		}
	}
}

// me returns the user with this name and its access token.
func me(p *process, name string) (r reply, token string) {
	r, err := post("/api/login", `{"username":"NAME","password":"`+goodPassword+`"}`)(p, name, "")
	if err != nil || r.status != 200 {
		return reply{}, ""
	}
	token = r.field("access_token")
	r, _ = p.ask(token, "GET", "/api/users/me", "")
	return r, token
}

// has returns a function that reports whether a user has a field with a value, which begins
// with the user's name, or with any value if it is empty.
func has(field, value string) func(p *process, name string) bool {
	return func(p *process, name string) bool {
		r, _ := me(p, name)
		return r.field(field) != "" && (value == "" || r.field(field) == name+value)
	}
}

const mailedPassword = "another long one"

var resetStep = mailStep{resetMailCode, "@example.com", post("/api/password/reset", resetBody("CODE", mailedPassword)),
	func(p *process, name string) bool {
		r, _ := post("/api/login", `{"username":"NAME","password":"`+mailedPassword+`"}`)(p, name, "")
		return r.status == 200
	}}

var mailFlows = []*mailFlow{
	{"forgot", []mailStep{
		{"", "", post("/api/password/forgot", `{"login":"NAME"}`), func(*process, string) bool { return false }},
		resetStep,
	}},
	{"new", []mailStep{
		{"", "", post("/api/register", registerBody("NAME", goodPassword)), has("username", "")},
		{verifyCode, "@example.com", post("/api/email/verify", resetBody("CODE", goodPassword)), has("email_verified_at", "")},
	}},
	{"change", []mailStep{
		{"", "", func(p *process, name, _ string) (reply, error) {
			_, token := me(p, name)
			return p.ask(token, "PUT", "/api/users/me", fmt.Sprintf(`{"email":"%s-new@example.com"}`, name))
		}, has("pending_email", "-new@example.com")},
		{changeCode, "-new@example.com", post("/api/email/change", `{"code":"CODE"}`), has("email", "-new@example.com")},
		{undoCode, "@example.com", post("/api/email/undo", `{"code":"CODE"}`), has("email", "@example.com")},
		resetStep,
	}},
}

// codes returns the codes that a user got for a step.
func (l *mailLoad) codes(u *mailedUser, step int) (codes []string) {
	for _, mail := range l.mails.mailsTo(u.name + u.flow.steps[step].to) {
		if isCode(mail.code, u.flow.steps[step].kind) {
			codes = append(codes, mail.code)
		}
	}
	return codes
}

// run takes a user through its flow, until the process is killed. told gets the steps.
func (u *mailedUser) run(l *mailLoad, p *process, told func(step string) string) {
	for step := range u.flow.steps {
		code := ""
		if step > 0 {
			for len(l.codes(u, step)) == 0 {
				select {
				case <-p.exited:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			code = l.codes(u, step)[0]
			told("mailed")
		}
		u.inDoubt = true
		r, err := u.flow.steps[step].do(p, u.name, code)
		if err != nil {
			return
		}
		if u.inDoubt = false; r.status/100 != 2 {
			select {
			case <-p.exited: // before the step: it began with a login
			default:
				l.t.Errorf("%s, step %d: %d %s", u.name, step, r.status, r.body)
			}
			return
		}
		u.done++
		if step == 0 {
			told("asked")
		} else {
			told("followed")
		}
	}
}

// finish takes a user to the end of its flow. Each link must work once in all.
func (u *mailedUser) finish(l *mailLoad, p *process) {
	if u.inDoubt && u.flow.steps[u.done].landed(p, u.name) {
		u.done++
	}
	if u.done == 0 {
		return
	}
	for step := 1; step < len(u.flow.steps); step++ {
		for start := time.Now(); len(l.codes(u, step)) == 0; time.Sleep(5 * time.Millisecond) {
			if time.Since(start) > patience {
				l.t.Errorf("%s got no mail for step %d, and the step before was acknowledged", u.name, step)
				return
			}
		}
		worked, want := 0, 1
		if step < u.done {
			want = 0
		}
		codes := l.codes(u, step)
		for range 2 {
			for _, code := range codes {
				r, err := u.flow.steps[step].do(p, u.name, code)
				if err == nil && r.status == 200 {
					worked++
				} else if err != nil || r.status != 400 {
					l.t.Errorf("%s, step %d: %d %s, %v", u.name, step, r.status, r.body, err)
				}
			}
		}
		if worked != want {
			l.t.Errorf("%s, step %d: the %d links worked %d times after the last start, want %d", u.name, step, len(codes), worked, want)
		}
	}
}

// killAt runs some users and kills the process after a delay from a step.
func (l *mailLoad) killAt(step string, delay time.Duration, users []*mailedUser, environ ...string) {
	l.t.Helper()
	var p *process
	var once sync.Once
	started := make(chan bool)
	told := func(s string) string {
		if s == step {
			once.Do(func() {
				<-started
				time.AfterFunc(delay, func() { p.cmd.Process.Kill() })
				if delay == 0 {
					<-p.exited
				}
			})
		}
		return ""
	}
	l.mails.restart(told)
	p = startUserd(l.t, l.dir, append(l.mails.environ(), environ...))
	close(started)
	defer time.AfterFunc(patience, func() {
		l.t.Errorf("waited in vain for the step %s", step)
		p.cmd.Process.Kill()
	}).Stop()
	told("start")
	var all sync.WaitGroup
	for _, u := range users {
		all.Go(func() { u.run(l, p, told) })
	}
	all.Wait()
	receive(l.t, "userd is killed", p.exited)
	l.mails.stop()
	l.checkSent()
}

// checkSent fails the test if a mail arrived again after its sending was recorded.
func (l *mailLoad) checkSent() {
	l.t.Helper()
	db := another(l.t, filepath.Join(l.dir, "app.db"))
	recorded := scan[string](l.t, db, `SELECT coalesce(group_concat(id, ' '), '') FROM user_mail WHERE state = 'sent'`) // first: more can arrive
	arrived := make(map[string]int)
	for _, mail := range l.mails.mailsTo("") {
		id, _, _ := strings.Cut(strings.TrimPrefix(mail.header.Get("Message-Id"), "<"), ".")
		arrived[id]++
	}
	for id, n := range l.sent {
		if arrived[id] != n {
			l.t.Errorf("mail %s arrived %d times, and %d times when its sending was recorded", id, arrived[id], n)
		}
	}
	for id := range strings.FieldsSeq(recorded) {
		if arrived[id] == 0 {
			l.t.Errorf("mail %s was recorded as sent, and did not arrive", id)
		}
		l.sent[id] = arrived[id]
	}
}

// finish lets the outbox send what it holds and the users follow all their links.
func (l *mailLoad) finish() {
	l.t.Helper()
	l.mails.restart(nil)
	p := startUserd(l.t, l.dir, l.mails.environ())
	retryMails(l.t, l.dir)
	db := another(l.t, filepath.Join(l.dir, "app.db"))
	await(l.t, "the outbox is empty", func() bool { return scan[int](l.t, db, `SELECT count(*) FROM user_mail WHERE state = 'queued'`) == 0 })
	var all sync.WaitGroup
	for _, u := range l.users {
		all.Go(func() { u.finish(l, p) })
	}
	all.Wait()
	l.checkSent()
	if status := p.end(syscall.SIGTERM); status != 0 {
		l.t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	l.checkSent()
	for _, command := range [][]string{{"check"}, {"events", "verify"}} {
		if r := userdProcess(l.t, l.dir, "", nil, command...); r.status != 0 {
			l.t.Errorf("%q: %+v", command, r)
		}
	}
}

// The steps at which the process is killed are those of the mail server's sessions and of
// the users' flows. Each flow causes a mail in the write that acknowledges its request.
func TestKilledWhileUsersFollowMailsItLosesNoMailAndNoCodeWorksTwice(t *testing.T) {
	t.Parallel()
	steps := []string{
		"start", "asked", "greeting", "EHLO", "MAIL", "RCPT", "DATA", "message", "QUIT",
		"mailed", "followed",
	}
	rounds := 4
	if *faults {
		rounds = 4 * len(steps)
	}
	plan := rand.Perm(rounds)
	const usersOfRound = 3
	l := &mailLoad{t: t, mails: startMailServer(t), sent: make(map[string]int)}
	var names []string
	for round := range rounds {
		for i := range usersOfRound {
			flow := mailFlows[(round+i)%len(mailFlows)]
			u := &mailedUser{name: fmt.Sprintf("%s%d-%d", flow.prefix, round, i), flow: flow}
			l.users = append(l.users, u)
			if flow.prefix != "new" {
				names = append(names, u.name)
			}
		}
	}
	l.dir = withUsers(t, names...)
	runSQL(t, another(t, filepath.Join(l.dir, "app.db")), `UPDATE user SET email_verified_at = 1 WHERE username LIKE 'change%'`)
	for round, i := range plan {
		if !*faults {
			i = rand.IntN(2 * len(steps))
		}
		step, delay := steps[i%len(steps)], time.Duration(0)
		if i/len(steps)%2 == 1 {
			delay = time.Duration(rand.Int64N(int64(50 * time.Millisecond)))
			if step == "start" {
				delay *= 40
			}
		}
		// With verified, a registration waits for its link, and without it, its user does.
		registration := []string{"open", "verified"}[round%2]
		l.killAt(step, delay, l.users[round*usersOfRound:][:usersOfRound], "REGISTRATION="+registration)
		if t.Failed() {
			t.Fatalf("round %d was killed %v after the step %s", round, delay, step)
		}
	}
	l.finish()
}
