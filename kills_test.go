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
	name     string
	flow     *mailFlow
	asked    bool // the first request was acknowledged
	followed bool // the link was followed, with success
	inDoubt  bool // the link was followed, and the answer is missing
}

// A mailFlow is a request that causes a mail, and one that uses its code.
type mailFlow struct {
	prefix string // of the users' names
	ask    func(p *process, name string) (reply, error)
	asked  int // the status of success
	follow func(p *process, name, code string) (reply, error)
	landed func(p *process, name string) bool // reports whether a link was followed
}

const mailedPassword = "another long one"

func tryLogin(p *process, name, password string) bool {
	return p.must("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q}`, name, password)).status == 200
}

var mailFlows = []*mailFlow{
	{
		prefix: "forgot",
		ask: func(p *process, name string) (reply, error) {
			return p.ask("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, name))
		},
		asked: 202,
		follow: func(p *process, _, code string) (reply, error) {
			return p.ask("", "POST", "/api/password/reset", resetBody(code, mailedPassword))
		},
		landed: func(p *process, name string) bool { return tryLogin(p, name, mailedPassword) },
	},
}

// run takes a user through its flow, until the process is killed. told gets the steps.
func (u *mailedUser) run(l *mailLoad, p *process, told func(step string)) {
	r, err := u.flow.ask(p, u.name)
	if err != nil {
		return
	}
	u.asked = true
	if r.status != u.flow.asked {
		l.t.Errorf("%s: the request was answered %d %s", u.name, r.status, r.body)
	}
	told("asked")
	for len(l.links(u)) == 0 {
		select {
		case <-p.exited:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
	told("mailed")
	u.inDoubt = true
	for {
		r, err = u.flow.follow(p, u.name, l.links(u)[0])
		if err != nil {
			return
		}
		if r.field("code") != "busy" {
			break
		}
	}
	u.inDoubt, u.followed = false, r.status == 200
	if r.status != 200 {
		l.t.Errorf("%s: the link was answered %d %s", u.name, r.status, r.body)
	}
	told("followed")
}

// links returns the codes of the links that a user got.
func (l *mailLoad) links(u *mailedUser) (codes []string) {
	for _, mail := range l.mails.mailsTo(u.name + "@example.com") {
		if mail.code != "" { // not a notice
			codes = append(codes, mail.code)
		}
	}
	return codes
}

// killAt runs some users and kills the process after a delay from a step.
func (l *mailLoad) killAt(step string, delay time.Duration, users []*mailedUser) {
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
	p = startUserd(l.t, l.dir, l.mails.environ())
	close(started)
	defer time.AfterFunc(patience, func() {
		l.t.Errorf("waited in vain for the step %s", step)
		p.cmd.Process.Kill()
	}).Stop()
	told("start")
	var all sync.WaitGroup
	for _, u := range users {
		all.Go(func() { u.run(l, p, func(s string) { told(s) }) })
	}
	all.Wait()
	receive(l.t, "userd is killed", p.exited)
	l.mails.stop()
	l.checkSent()
}

// checkSent fails the test if a mail arrived again after its sending was recorded.
func (l *mailLoad) checkSent() {
	l.t.Helper()
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
	db := another(l.t, filepath.Join(l.dir, "app.db"))
	for id := range strings.FieldsSeq(scan[string](l.t, db, `SELECT coalesce(group_concat(id, ' '), '') FROM user_mail WHERE state = 'sent'`)) {
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
	for _, u := range l.users {
		codes := l.links(u)
		if u.asked && len(codes) == 0 {
			l.t.Errorf("%s got no mail, and its request was acknowledged", u.name)
		}
		before := 0
		if u.followed || u.inDoubt && u.flow.landed(p, u.name) {
			before = 1
		}
		after := 0
		for range 2 {
			for _, code := range codes {
				r, err := u.flow.follow(p, u.name, code)
				if err == nil && r.status == 200 {
					after++
				} else if err != nil || r.status != 400 {
					l.t.Errorf("%s: the link was answered %d %s, %v", u.name, r.status, r.body, err)
				}
			}
		}
		if len(codes) > 0 && (before+after != 1 || !u.flow.landed(p, u.name)) {
			l.t.Errorf("%s: of its %d links, %d worked before the last start and %d after it, want one in all", u.name, len(codes), before, after)
		}
	}
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
			l.users, names = append(l.users, u), append(names, u.name)
		}
	}
	l.dir = withUsers(t, names...)
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
		l.killAt(step, delay, l.users[round*usersOfRound:][:usersOfRound])
		if t.Failed() {
			t.Fatalf("round %d was killed %v after the step %s", round, delay, step)
		}
	}
	l.finish()
}
