package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"userd/internal/passhash"
)

// A mailServer accepts all mails, unless a test makes it fail, and keeps them.
type mailServer struct {
	t    *testing.T
	addr string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	tries    int // connections
	reply    func(step string) string
	mails    [][]byte
	sessions sync.WaitGroup

	accepting sync.WaitGroup
}

func startMailServer(t *testing.T) *mailServer {
	t.Helper()
	m := &mailServer{t: t, addr: "127.0.0.1:0", conns: make(map[net.Conn]bool)}
	m.start(nil)
	t.Cleanup(m.stop)
	return m
}

// start starts the server, at the same address as before. The steps of a session are
// greeting, the commands, and message, whose reply accepts the message. reply returns the
// line that answers a step; an empty one means success, "drop" and "stall" what they say. It
// can be nil.
func (m *mailServer) start(reply func(step string) string) {
	m.t.Helper()
	var l net.Listener
	await(m.t, "the port of the mail server is free", func() (ok bool) { // another test may have it for a while
		var err error
		l, err = net.Listen("tcp", m.addr)
		return err == nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addr, m.listener, m.reply, m.tries = l.Addr().String(), l, reply, 0
	m.accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			m.mu.Lock()
			m.conns[conn] = true
			m.tries++
			reply := m.reply
			m.sessions.Go(func() {
				m.serve(conn, reply)
				m.mu.Lock()
				delete(m.conns, conn)
				m.mu.Unlock()
			})
			m.mu.Unlock()
		}
	})
}

// stop ends the server and its sessions.
func (m *mailServer) stop() {
	m.mu.Lock()
	if m.listener != nil {
		m.listener.Close()
		m.listener = nil
	}
	m.mu.Unlock()
	m.accepting.Wait()
	m.endSessions(nil)
}

// restart starts the server if it was stopped. Otherwise it ends all sessions, and answers
// the next ones with reply: it keeps the port, which another test could get meanwhile.
func (m *mailServer) restart(reply func(step string) string) {
	m.t.Helper()
	if m.listener == nil {
		m.start(reply)
		return
	}
	m.endSessions(reply)
}

func (m *mailServer) endSessions(reply func(step string) string) {
	m.mu.Lock()
	m.reply, m.tries = reply, 0
	for conn := range m.conns {
		conn.Close()
	}
	m.mu.Unlock()
	m.sessions.Wait()
}

// failsAt returns a reply to one step, for start.
func failsAt(step, reply string) func(string) string {
	return func(s string) string {
		if s == step {
			return reply
		}
		return ""
	}
}

func (m *mailServer) serve(conn net.Conn, reply func(step string) string) {
	defer conn.Close()
	answer := func(step, success string) (accepted, more bool) {
		line := ""
		if reply != nil {
			line = reply(step)
		}
		switch line {
		case "drop":
			return false, false
		case "stall":
			io.Copy(io.Discard, conn)
			return false, false
		case "":
			if step == "message" {
				return true, true
			}
		}
		_, err := io.WriteString(conn, cmp.Or(line, success)+"\r\n")
		return line == "", err == nil
	}
	if _, more := answer("greeting", "220 mail.example.com ESMTP"); !more {
		return
	}
	success := map[string]string{"DATA": "354 go ahead", "QUIT": "221 bye"}
	in := textproto.NewReader(bufio.NewReader(conn))
	for {
		line, err := in.ReadLine()
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(line, " ")
		accepted, more := answer(verb, cmp.Or(success[verb], "250 OK"))
		if !more || verb == "QUIT" {
			return
		}
		if verb != "DATA" || !accepted {
			continue
		}
		data, err := in.ReadDotBytes()
		if err != nil {
			return
		}
		if accepted, more = answer("message", ""); accepted {
			m.mu.Lock()
			m.mails = append(m.mails, data) // before the reply: the client may have gone
			m.mu.Unlock()
			_, err = io.WriteString(conn, "250 queued\r\n")
		}
		if !more || err != nil {
			return
		}
	}
}

// tried returns how many connections there were since the start.
func (m *mailServer) tried() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tries
}

// mailsTo returns the mails to an address, or all if it is empty, in the order of their arrival.
func (m *mailServer) mailsTo(address string) (list []sentMail) {
	m.mu.Lock()
	mails := m.mails
	m.mu.Unlock()
	for _, data := range mails {
		if address == "" || bytes.Contains(data, []byte("\nTo: "+address+"\n")) {
			list = append(list, readMail(m.t, bytes.NewReader(data)))
		}
	}
	return list
}

// await returns the code of the first mailed reset link to an address.
func (m *mailServer) await(address string) (code string) {
	m.t.Helper()
	await(m.t, "a mail to "+address, func() bool {
		for _, mail := range m.mailsTo(address) {
			if isCode(mail.code, resetMailCode) {
				code = mail.code
			}
		}
		return code != ""
	})
	return code
}

// environ are the settings of a userd that sends mails to the server.
func (m *mailServer) environ() []string {
	return []string{
		"APP_URL=https://id.example.com", "MAIL_URL=smtp+plain://" + m.addr, "MAIL_FROM=no-reply@example.com",
		"MAIL_LIMIT=100000", "RATE_LIMIT=off",
	}
}

// forgot asks for a reset link.
func (p *process) forgot(login string) {
	p.t.Helper()
	p.must("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, login)).want(p.t, 202, "")
}

func resetBody(code, password string) string {
	return fmt.Sprintf(`{"code":%q,"password":%q}`, code, password)
}

// retryMails makes all mails due that wait.
func retryMails(t *testing.T, dir string) {
	t.Helper()
	if r := userdProcess(t, dir, "", nil, "mail", "retry"); r.status != 0 {
		t.Fatalf("mail retry: %+v", r)
	}
}

// While the mail server fails, only mails wait for it (supabase/auth #2094).
func TestAFailingMailServerDelaysOnlyMails(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]func(string) string{
		"it is down":                   nil,
		"it does not greet":            failsAt("greeting", "stall"),
		"it does not answer a message": failsAt("message", "stall"),
		"it drops connections":         failsAt("EHLO", "drop"),
		"it is busy":                   failsAt("greeting", "421 4.3.2 come back later"),
		"it defers recipients":         failsAt("RCPT", "451 4.3.0 come back later"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startMailServer(t)
			m.stop()
			if reply != nil {
				m.start(reply)
			}
			dir := withUsers(t, "ann")
			p := startUserd(t, dir, m.environ())
			p.forgot("ann")
			if reply == nil {
				p.awaitLog("could not send a mail, and will try again")
			} else {
				await(t, "a try", func() bool { return m.tried() > 0 })
			}
			for _, act := range []struct {
				what string
				do   func()
			}{
				{"a registration", func() { p.register("bob") }},
				{"a login", func() { p.login("ann", goodPassword) }},
				{"forgot", func() { p.forgot("bob") }},
				{"/readyz", func() { p.must("", "GET", "/readyz", "").want(t, 200, "") }},
			} {
				start := time.Now()
				act.do()
				if took := time.Since(start); took > 15*time.Second { // a wait for the mail server takes 30 s
					t.Errorf("%s took %v", act.what, took)
				}
			}
			m.restart(nil)
			retryMails(t, dir)
			m.await("bob@example.com")
			code := m.await("ann@example.com")
			p.must("", "POST", "/api/password/reset", resetBody(code, "another long one")).want(t, 200, "")
			p.login("ann", "another long one")
			if status := p.end(syscall.SIGTERM); status != 0 {
				t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
			}
		})
	}
}

// A mail server that does not answer must not outlast the time that a supervisor grants.
func TestTerminatedWhileTheMailServerStallsItEndsAndKeepsTheMail(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"greeting", "message"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			m := startMailServer(t)
			m.restart(failsAt(step, "stall"))
			dir := withUsers(t, "ann")
			p := startUserd(t, dir, m.environ())
			p.forgot("ann")
			await(t, "a try", func() bool { return m.tried() > 0 })
			start := time.Now()
			if status := p.end(syscall.SIGTERM); status != 0 {
				t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %v to exit", took)
			}
			wantFiles(t, dir, "app.db")
			m.restart(nil)
			startUserd(t, dir, m.environ())
			retryMails(t, dir)
			m.await("ann@example.com")
		})
	}
}

func TestTerminatedWhileItSendsAMailItSendsItOnce(t *testing.T) {
	t.Parallel()
	m := startMailServer(t)
	begun, finish := make(chan bool, 1), make(chan bool)
	m.restart(func(step string) string {
		if step == "message" {
			begun <- true
			<-finish
		}
		return ""
	})
	dir := withUsers(t, "ann", "bob")
	p := startUserd(t, dir, m.environ())
	p.forgot("ann")
	receive(t, "a mail arrives", begun)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.awaitLog("stopping")
	close(finish)
	receive(t, "userd exits", p.exited)
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
	}
	m.restart(nil)
	p = startUserd(t, dir, m.environ())
	retryMails(t, dir)
	p.forgot("bob")
	m.await("bob@example.com") // which is due after each mail to ann
	if n := len(m.mailsTo("ann@example.com")); n != 1 {
		t.Errorf("the mail arrived %d times", n)
	}
}

// withUsers makes a database with users, in a new directory.
func withUsers(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	st, err := openStore(t.Context(), filepath.Join(dir, "app.db"))
	if err != nil {
		t.Fatal(err)
	}
	hash, err := passhash.New(cheap).Hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		u := user{username: name, email: name + "@example.com", role: member}
		if err := st.addUser(t.Context(), console, &u, hash, time.Now().Unix()); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func numberedNames(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s%04d", prefix, i))
	}
	return names
}

func TestTwoServersSendEachMailOnceAndACodeWorksOnce(t *testing.T) {
	t.Parallel()
	m := startMailServer(t)
	m.restart(func(string) string {
		time.Sleep(10 * time.Millisecond) // so that both servers send at the same time
		return ""
	})
	users := numberedNames("user", 200)
	dir := withUsers(t, users...)
	servers := []*process{startUserd(t, dir, m.environ()), startUserd(t, dir, m.environ())}
	for i, name := range users {
		servers[i%2].forgot(name)
	}
	db := another(t, filepath.Join(dir, "app.db"))
	await(t, "the outbox is empty", func() bool { return scan[int](t, db, `SELECT count(*) FROM user_mail WHERE state = 'queued'`) == 0 })
	codes := make(map[string]string)
	for _, mail := range m.mailsTo("") {
		if codes[mail.to] != "" {
			t.Errorf("%s got two mails", mail.to)
		}
		codes[mail.to] = mail.code
	}
	if len(codes) != len(users) {
		t.Errorf("%d users got a mail, want %d", len(codes), len(users))
	}

	var mu sync.Mutex
	var all sync.WaitGroup
	statuses := make(map[string]int)
	for i := range 64 {
		all.Go(func() {
			body := resetBody(codes["user0000@example.com"], fmt.Sprintf("the long password %d", i))
			r, err := servers[i%2].insist("POST", "/api/password/reset", body)
			mu.Lock()
			defer mu.Unlock()
			statuses[fmt.Sprint(r.status, r.field("code"), err)]++
		})
	}
	all.Wait()
	if statuses["200<nil>"] != 1 || statuses["400invalid_code<nil>"] != 63 {
		t.Errorf("64 clients with one code were answered %v, want one success", statuses)
	}
}
