package mail

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	netmail "net/mail"
	"strings"
	"testing"
	"time"

	"userd/internal/certs/certstest"
)

// patience is how long a test waits for what must come. Only a test that fails takes so
// long.
const patience = time.Minute

// A responder is a mail server for one connection.
type responder struct {
	implicit bool              // TLS from the first byte
	offers   []string          // in the answer to EHLO
	replies  map[string]string // by step, instead of success; "drop" and "stall" are not sent
	stalled  func()            // called when a step stalls; can be nil
	tls      *tls.Config

	addr string

	done    chan struct{} // closed when the session has ended
	heard   []string      // commands, with the prefix "tls " after the handshake
	message string
}

// start serves one connection.
func (r *responder) start(t *testing.T) *responder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr, r.done = l.Addr().String(), make(chan struct{})
	go func() {
		defer close(r.done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if r.implicit {
			conn = tls.Server(conn, r.tls)
		}
		r.serve(conn)
	}()
	t.Cleanup(func() { l.Close(); <-r.done })
	return r
}

// answer sends the reply of a step. It reports whether the session goes on.
func (r *responder) answer(conn net.Conn, step, success string) bool {
	reply, ok := r.replies[step]
	if !ok {
		reply = success
	}
	switch reply {
	case "drop":
		return false
	case "stall":
		if r.stalled != nil {
			r.stalled()
		}
		io.Copy(io.Discard, conn) // until the client gives up
		return false
	case "flood":
		line := []byte("250-" + strings.Repeat("x", 1000) + "\r\n")
		for {
			if _, err := conn.Write(line); err != nil {
				return false
			}
		}
	}
	_, err := io.WriteString(conn, reply+"\r\n")
	return err == nil
}

func (r *responder) serve(conn net.Conn) {
	if !r.answer(conn, "greeting", "220 mail.example.com ESMTP") {
		return
	}
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		_, isTLS := conn.(*tls.Conn)
		r.hear(isTLS, line)
		verb, rest, _ := strings.Cut(line, " ")
		success := "250 2.0.0 OK"
		switch verb {
		case "EHLO":
			success = "250-mail.example.com"
			for _, o := range r.offers {
				success += "\r\n250-" + o
			}
			success += "\r\n250 SMTPUTF8"
		case "STARTTLS":
			success = "220 2.0.0 go ahead"
		case "AUTH":
			success = "235 2.7.0 welcome"
			if _, overridden := r.replies["AUTH"]; rest == "LOGIN" && !overridden && !r.login(conn, in) {
				return
			}
		case "DATA":
			success = "354 go ahead"
		case "QUIT":
			success = "221 2.0.0 bye"
		}
		if !r.answer(conn, verb, success) || verb == "QUIT" {
			return
		}
		switch _, overridden := r.replies[verb]; {
		case verb == "STARTTLS" && !overridden:
			conn = tls.Server(conn, r.tls)
			in = bufio.NewReader(conn)
		case verb == "DATA" && !overridden:
			if !r.readMessage(in) || !r.answer(conn, "message", "250 2.0.0 queued") {
				return
			}
		}
	}
}

// login asks the two questions of AUTH LOGIN.
func (r *responder) login(conn net.Conn, in *bufio.Reader) bool {
	for _, question := range []string{"Username:", "Password:"} {
		fmt.Fprintf(conn, "334 %s\r\n", base64.StdEncoding.EncodeToString([]byte(question)))
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		r.hear(true, strings.TrimRight(line, "\r\n"))
	}
	return true
}

func (r *responder) readMessage(in *bufio.Reader) bool {
	var b strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
	r.message = b.String()
	return true
}

func (r *responder) hear(isTLS bool, line string) {
	if isTLS {
		line = "tls " + line
	}
	r.heard = append(r.heard, line)
}

// session returns the commands and the message of a session that has ended.
func (r *responder) session(t *testing.T) (heard, message string) {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("the client did not end the session")
	}
	return strings.Join(r.heard, "\n"), r.message
}

// certificate returns a server's configuration, and the roots that trust it.
func certificate(t *testing.T, names ...string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	return certificateFor(t, certstest.Day, names...)
}

// certificateFor is certificate with a lifetime that began an hour ago.
func certificateFor(t *testing.T, lifetime time.Duration, names ...string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	pair := certstest.New(lifetime, names...)
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	return &tls.Config{Certificates: []tls.Certificate{cert}}, roots
}

// newSMTP returns the transport of a URL for an address.
func newSMTP(t *testing.T, scheme, userInfo, addr string, roots *x509.CertPool) *SMTP {
	t.Helper()
	transport, err := Parse(scheme+"://"+userInfo+addr, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := transport.(*SMTP)
	s.tls.RootCAs = roots
	return s
}

const testUserInfo = "mailer%40example.com:p%40ss%2Fw%25rd%3A%201@"

func TestSMTPDelivers(t *testing.T) {
	t.Parallel()
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	transaction := func(prefix string) []string {
		return []string{prefix + "MAIL FROM:<no-reply@example.com>", prefix + "RCPT TO:<ann@example.org>", prefix + "DATA", prefix + "QUIT"}
	}
	plain, login := "tls AUTH PLAIN "+encode("\x00"+testUser+"\x00"+testPass), []string{"tls AUTH LOGIN", "tls " + encode(testUser), "tls " + encode(testPass)}
	for _, c := range []struct {
		name, scheme, userInfo string
		offers                 []string
		before                 []string // commands before MAIL
	}{
		{"without TLS to loopback", "smtp+plain", "", []string{"AUTH PLAIN"}, []string{"EHLO example.com"}},
		{"with TLS and PLAIN", "smtps", testUserInfo, []string{"AUTH LOGIN PLAIN"}, []string{"tls EHLO example.com", plain}},
		{"with TLS and LOGIN", "smtps", testUserInfo, []string{"AUTH LOGIN"}, append([]string{"tls EHLO example.com"}, login...)},
		{"with TLS and no login", "smtps", "", nil, []string{"tls EHLO example.com"}},
		{"with STARTTLS and PLAIN", "smtp", testUserInfo, []string{"STARTTLS", "AUTH PLAIN"}, []string{"EHLO example.com", "STARTTLS", "tls EHLO example.com", plain}},
		{"with STARTTLS and LOGIN", "smtp", testUserInfo, []string{"STARTTLS", "AUTH LOGIN"}, append([]string{"EHLO example.com", "STARTTLS", "tls EHLO example.com"}, login...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			config, roots := certificate(t)
			r := (&responder{implicit: c.scheme == "smtps", offers: c.offers, tls: config}).start(t)
			s := newSMTP(t, c.scheme, c.userInfo, r.addr, roots)
			m := testMessage(t)
			if err := s.Send(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			prefix := "tls "
			if c.scheme == "smtp+plain" {
				prefix = ""
			}
			heard, message := r.session(t)
			if want := strings.Join(append(c.before, transaction(prefix)...), "\n"); heard != want {
				t.Errorf("the server heard\n%s\nwant\n%s", heard, want)
			}
			if want, err := m.Bytes(); err != nil || message != string(want) {
				t.Errorf("the server got %q, want %q, %v", message, want, err)
			}
		})
	}
}

func TestSMTPFailures(t *testing.T) {
	t.Parallel()
	startTLS := []string{"STARTTLS", "AUTH PLAIN"}
	secrets := "ann@example.org " + testPass + " " + testLink
	for _, c := range []struct {
		name      string
		r         responder
		permanent bool
		text      string // of the error
		notHeard  string
	}{
		{"a server that refuses all connections", responder{replies: map[string]string{"greeting": "554 5.7.1 go away"}}, false, "greeting: 554 5.7.1 go away", "EHLO"},
		{"a busy server", responder{replies: map[string]string{"greeting": "421 busy"}}, false, "greeting: 421 busy", "EHLO"},
		{"no SMTP", responder{replies: map[string]string{"greeting": "+OK POP3 " + secrets}}, false, "greeting: malformed reply", "EHLO"},
		{"no EHLO", responder{replies: map[string]string{"EHLO": "502 5.5.1 no", "HELO": "502 5.5.1 no"}}, false, "EHLO: 502 5.5.1 no", "AUTH"},
		{"a server that closes", responder{replies: map[string]string{"EHLO": "421 4.3.2 closing", "HELO": "421 4.3.2 closing"}}, false, "EHLO: 421 4.3.2 closing", "AUTH"},
		{"an endless reply", responder{replies: map[string]string{"EHLO": "flood"}}, false, "EHLO: *", "AUTH"},
		{"no STARTTLS", responder{offers: []string{"AUTH PLAIN"}}, false, "STARTTLS: the server does not offer STARTTLS", "AUTH"},
		{"STARTTLS refused", responder{offers: startTLS, replies: map[string]string{"STARTTLS": "454 4.7.0 not now"}}, false, "STARTTLS: 454 4.7.0 not now", "AUTH"},
		{"STARTTLS not implemented", responder{offers: startTLS, replies: map[string]string{"STARTTLS": "502 5.5.1 no"}}, false, "STARTTLS: 502 5.5.1 no", "AUTH"},
		{"no TLS after STARTTLS", responder{offers: startTLS, replies: map[string]string{"STARTTLS": "220 ready\r\nhello in plain text"}}, false, "STARTTLS: *", "AUTH"},
		{"no login", responder{offers: []string{"STARTTLS"}}, false, "AUTH: the server offers neither AUTH PLAIN nor AUTH LOGIN", "AUTH"},
		{"other logins only", responder{offers: []string{"STARTTLS", "AUTH CRAM-MD5 XPLAIN"}}, false, "AUTH: the server offers neither AUTH PLAIN nor AUTH LOGIN", "AUTH"},
		{"a wrong password", responder{offers: startTLS, replies: map[string]string{"AUTH": "535 5.7.8 wrong: " + secrets}}, false, "AUTH: 535 5.7.8 wrong user or password", "MAIL"},
		{"a login that cannot be checked", responder{offers: startTLS, replies: map[string]string{"AUTH": "454 4.7.0 later: " + secrets}}, false, "AUTH: 454 4.7.0", "MAIL"},
		{"a missing login", responder{offers: startTLS, replies: map[string]string{"MAIL": "530 5.7.0 log in"}}, false, "MAIL: 530 5.7.0 log in", "RCPT"},
		{"a sender refused", responder{offers: startTLS, replies: map[string]string{"MAIL": "553 5.7.1 not yours: <" + testUser + "> " + testPass}}, true, "MAIL: 553 5.7.1 not yours: <address> …", "RCPT"},
		{"a sender deferred", responder{offers: startTLS, replies: map[string]string{"MAIL": "452 4.3.1 disk full"}}, false, "MAIL: 452 4.3.1 disk full", "RCPT"},
		{"a recipient refused", responder{offers: startTLS, replies: map[string]string{"RCPT": "550-5.1.1 <ANN@Example.org>: no such\r\n550 5.1.1 mailbox \x1b[31m"}}, true, "RCPT: 550 5.1.1 <address> no such 5.1.1 mailbox [31m", "DATA"},
		{"a recipient greylisted", responder{offers: startTLS, replies: map[string]string{"RCPT": "450 4.2.0 try again"}}, false, "RCPT: 450 4.2.0 try again", "DATA"},
		{"a long reply", responder{offers: startTLS, replies: map[string]string{"RCPT": "450 " + strings.Repeat("é", 1000)}}, false, "RCPT: 450 éé*", "DATA"},
		{"DATA refused", responder{offers: startTLS, replies: map[string]string{"DATA": "554 5.5.1 " + secrets}}, true, "DATA: 554 5.5.1", "QUIT"},
		{"DATA deferred", responder{offers: startTLS, replies: map[string]string{"DATA": "451 4.3.0 " + secrets}}, false, "DATA: 451 4.3.0", "QUIT"},
		{"a message refused", responder{offers: startTLS, replies: map[string]string{"message": "554 5.7.1 spam: " + secrets}}, true, "DATA: 554 5.7.1", "QUIT"},
		{"a message refused without an enhanced code", responder{offers: startTLS, replies: map[string]string{"message": "554 " + secrets}}, true, "DATA: 554", "QUIT"},
		{"a message deferred", responder{offers: startTLS, replies: map[string]string{"message": "451 4.3.0 disk full"}}, false, "DATA: 451 4.3.0", "QUIT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			config, roots := certificate(t)
			r := &c.r
			r.tls = config
			r.start(t)
			err := newSMTP(t, "smtp", testUserInfo, r.addr, roots).Send(t.Context(), testMessage(t))
			checkError(t, err, c.permanent, c.text)
			if heard, message := r.session(t); strings.Contains(heard, c.notHeard+" ") || message != "" && r.replies["message"] == "" {
				t.Errorf("after the failure the server heard\n%s\n%s", heard, message)
			}
		})
	}
}

var smtpSteps = []string{"greeting", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "message"}

// stepName is the step in the error.
func stepName(step string) string {
	if step == "message" {
		return "DATA"
	}
	return step
}

func TestSMTPServerThatHangsUp(t *testing.T) {
	t.Parallel()
	for _, step := range smtpSteps {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			config, roots := certificate(t)
			r := (&responder{offers: []string{"STARTTLS", "AUTH PLAIN"}, replies: map[string]string{step: "drop"}, tls: config}).start(t)
			err := newSMTP(t, "smtp", testUserInfo, r.addr, roots).Send(t.Context(), testMessage(t))
			checkError(t, err, false, stepName(step)+": *")
		})
	}
}

func TestSMTPServerThatStalls(t *testing.T) {
	t.Parallel()
	for _, step := range smtpSteps {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			config, roots := certificate(t)
			// On a busy machine, the time can end before the step begins.
			for timeout := 100 * time.Millisecond; ; timeout *= 2 {
				r := (&responder{offers: []string{"STARTTLS", "AUTH PLAIN"}, replies: map[string]string{step: "stall"}, tls: config}).start(t)
				s := newSMTP(t, "smtp", testUserInfo, r.addr, roots)
				s.timeout = timeout
				err := s.Send(t.Context(), testMessage(t))
				if err != nil && !strings.HasPrefix(err.Error(), stepName(step)+":") && timeout < patience {
					continue
				}
				want := stepName(step) + ": no answer in time; check the host and the port"
				if step == "greeting" {
					want += ", and whether the port expects TLS from the first byte (smtps://)"
				}
				checkError(t, err, false, want)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v is not context.DeadlineExceeded", err)
				}
				r.session(t) // the connection is closed
				return
			}
		})
	}
}

func TestSMTPCanBeCancelled(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"smtp+plain", "smtps"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			config, roots := certificate(t)
			ctx, cancel := context.WithCancel(t.Context())
			r := (&responder{implicit: scheme == "smtps", replies: map[string]string{"EHLO": "stall"}, stalled: cancel, tls: config}).start(t)
			err := newSMTP(t, scheme, "", r.addr, roots).Send(ctx, testMessage(t))
			checkError(t, err, false, "EHLO: context canceled")
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v is not context.Canceled", err)
			}
			r.session(t)
		})
	}
}

func TestSMTPMessageIsDeliveredWhateverQUITAnswers(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{"drop", "stall", "554 no"} {
		t.Run(reply, func(t *testing.T) {
			t.Parallel()
			r := (&responder{replies: map[string]string{"QUIT": reply}}).start(t)
			start := time.Now()
			if err := newSMTP(t, "smtp+plain", "", r.addr, nil).Send(t.Context(), testMessage(t)); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d >= sendTimeout {
				t.Errorf("it took %v", d)
			}
		})
	}
}

func TestSMTPRequiresAValidCertificate(t *testing.T) {
	t.Parallel()
	unknown, _ := certificate(t, "localhost")
	other, otherRoots := certificate(t, "other.example")
	expired, expiredRoots := certificateFor(t, time.Minute, "localhost")
	old, oldRoots := certificate(t, "localhost")
	old.MinVersion, old.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
	for _, c := range []struct {
		name   string
		config *tls.Config
		roots  *x509.CertPool
		text   string
	}{
		{"of a known issuer", unknown, x509.NewCertPool(), "x509: certificate signed by unknown authority"},
		{"for the host", other, otherRoots, "x509: certificate is valid for other.example, not localhost"},
		{"that is still valid", expired, expiredRoots, "x509: certificate has expired or is not yet valid"},
		{"and TLS 1.2", old, oldRoots, "protocol version not supported"},
	} {
		for scheme, step := range map[string]string{"smtp": "STARTTLS", "smtps": "greeting"} {
			t.Run(c.name+" with "+scheme, func(t *testing.T) {
				t.Parallel()
				r := (&responder{implicit: scheme == "smtps", offers: []string{"STARTTLS", "AUTH PLAIN"}, tls: c.config}).start(t)
				_, port, _ := net.SplitHostPort(r.addr)
				err := newSMTP(t, scheme, testUserInfo, "localhost:"+port, c.roots).Send(t.Context(), testMessage(t))
				checkError(t, err, false, step+": *")
				if !strings.Contains(err.Error(), c.text) {
					t.Errorf("error %q, want %q", err, c.text)
				}
				if heard, message := r.session(t); strings.Contains(heard, "AUTH") || message != "" {
					t.Errorf("the server heard %s %s", heard, message)
				}
			})
		}
	}
}

func TestSMTPPasswordIsNeverSentWithoutTLS(t *testing.T) {
	t.Parallel()
	r := (&responder{offers: []string{"AUTH PLAIN LOGIN"}}).start(t)
	s := newSMTP(t, "smtp+plain", "", r.addr, nil)
	s.user, s.pass = testUser, testPass // Parse refuses this
	checkError(t, s.Send(t.Context(), testMessage(t)), false, "AUTH: refusing to send a password without TLS")
	if heard, _ := r.session(t); strings.Contains(heard, "AUTH") {
		t.Errorf("the server heard %s", heard)
	}
}

func TestSMTPLoginAnswersTwoQuestions(t *testing.T) {
	t.Parallel()
	a := &loginAuth{answers: []string{"ann", "secret"}}
	for _, want := range []string{"ann", "secret"} {
		if got, err := a.Next(nil, true); string(got) != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if got, err := a.Next(nil, true); err == nil {
		t.Errorf("a third question is answered with %q", got)
	}
}

// unusedAddress returns an address on which no program listens, and none can until the test
// ends: a client has its port.
func unusedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); l.Close() })
	return client.LocalAddr().String()
}

func TestSMTPServerThatDoesNotListen(t *testing.T) {
	t.Parallel()
	checkError(t, newSMTP(t, "smtps", testUserInfo, unusedAddress(t), nil).Send(t.Context(), testMessage(t)), false, "connect: dial tcp *")
}

func TestPlainConnectionsLeadToLoopbackOnly(t *testing.T) {
	t.Parallel()
	if _, err := dialer(true).DialContext(t.Context(), "tcp", "192.0.2.1:25"); !errors.Is(err, errPlain) {
		t.Errorf("error %v, want %v", err, errPlain)
	}
}

func TestSMTPRefusesAnInvalidMessage(t *testing.T) {
	t.Parallel()
	m := testMessage(t)
	m.To = "ann@example.org, bob@example.org"
	checkError(t, newSMTP(t, "smtps", "", "127.0.0.1:1", nil).Send(t.Context(), m), true, "invalid message: the recipient must be one address, in ASCII")
}

func TestSMTPMessageArrivesWithLeadingDots(t *testing.T) {
	t.Parallel()
	r := (&responder{}).start(t)
	m := testMessage(t)
	m.Text = ".\n..\n.a\n"
	if err := newSMTP(t, "smtp+plain", "", r.addr, nil).Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	_, message := r.session(t)
	parsed, err := netmail.ReadMessage(strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(parsed.Body); err != nil || !bytes.Equal(body, []byte(".\r\n..\r\n.a\r\n")) {
		t.Errorf("the server got %q, %v", body, err)
	}
}

// A server that expects TLS from the first byte sends no greeting.
func TestSMTPSaysThatTheSchemeDoesNotFitThePort(t *testing.T) {
	t.Parallel()
	config, _ := certificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.WriteString(conn, "220 mail.example.com ESMTP\r\n") // after the handshake
				io.Copy(io.Discard, conn)
			}()
		}
	}()
	starttls := (&responder{}).start(t)
	for _, c := range []struct{ scheme, addr, want string }{
		{"smtp", l.Addr().String(), "greeting: the server expects TLS from the first byte; begin MAIL_URL with smtps://"},
		{"smtp+plain", l.Addr().String(), "greeting: the server expects TLS from the first byte; begin MAIL_URL with smtps://"},
		{"smtps", starttls.addr, "greeting: the server does not expect TLS from the first byte; begin MAIL_URL with smtp://"},
	} {
		s := newSMTP(t, c.scheme, "", c.addr, nil)
		if s.probeAfter > 5*time.Second {
			t.Errorf("%s waits %s before it looks for TLS", c.scheme, s.probeAfter)
		}
		s.probeAfter = 200 * time.Millisecond
		if err := s.Send(t.Context(), testMessage(t)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v", c.scheme, err)
		}
	}
}

// A slow server gets all the time that it needs, although it is probed.
func TestSMTPWaitsForASlowGreeting(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &responder{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		probe, err := l.Accept() // only then it greets
		if err != nil {
			return
		}
		io.WriteString(probe, "220 mail.example.com ESMTP\r\n")
		defer probe.Close()
		r.serve(conn)
	}()
	s := newSMTP(t, "smtp+plain", "", l.Addr().String(), nil)
	s.probeAfter = 50 * time.Millisecond
	if err := s.Send(t.Context(), testMessage(t)); err != nil {
		t.Error(err)
	}
	r.session(t)
}
