package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/smtp"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// SMTP delivers to a mail server, with a connection of its own for each message.
type SMTP struct {
	scheme     string // smtps, smtp or smtp+plain
	host, addr string // addr has the port
	user, pass string // empty: no login
	tls        *tls.Config
	dialer     *net.Dialer
	timeout    time.Duration // of a message
	probeAfter time.Duration // without a greeting: see greet
}

func parseSMTP(u *url.URL) (Transport, error) {
	port := map[string]string{"smtps": "465", "smtp": "587", "smtp+plain": "25"}[u.Scheme]
	if u.Port() != "" {
		port = u.Port()
	}
	plain := u.Scheme == "smtp+plain"
	s := &SMTP{
		scheme:  u.Scheme,
		host:    u.Hostname(),
		addr:    net.JoinHostPort(u.Hostname(), port),
		tls:     &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()},
		dialer:  dialer(plain),
		timeout: sendTimeout,

		probeAfter: 3 * time.Second,
	}
	if u.User != nil {
		s.user = u.User.Username()
		s.pass, _ = u.User.Password()
		if s.user == "" || s.pass == "" {
			return nil, errors.New("requires both a user and a password, or neither")
		}
	}
	switch {
	case plain && !isLoopback(s.host):
		return nil, errPlain
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery:
		return nil, errors.New("nothing may follow the host and port")
	}
	return s, nil
}

// String returns the URL without user and password.
func (s *SMTP) String() string { return s.scheme + "://" + s.addr }

// Send delivers a message. A reply of 5xx is a permanent failure if it concerns the
// message: from MAIL on, except 530, which requires a login. Others concern the connection,
// for example a wrong password, and the message can be delivered when that is repaired.
func (s *SMTP) Send(ctx context.Context, m *Message) error {
	data, err := m.Bytes()
	if err != nil {
		return invalid(err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	conn, err := s.dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return failed(ctx, "connect", err)
	}
	tcp := conn
	defer tcp.Close()
	defer context.AfterFunc(ctx, func() { tcp.Close() })() // ends all that waits
	conn = &boundedConn{conn, maxReplies}
	if s.scheme == "smtps" {
		conn = tls.Client(conn, s.tls)
	}
	return s.converse(ctx, conn, m, data)
}

// converse runs the steps of a delivery.
func (s *SMTP) converse(ctx context.Context, conn net.Conn, m *Message, data []byte) error {
	var c *smtp.Client
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"greeting", func() (err error) { c, err = s.greet(ctx, conn); return err }},
		{"EHLO", func() error { return c.Hello(m.From.Domain()) }},
		{"STARTTLS", func() error { return s.startTLS(c) }},
		{"AUTH", func() error { return s.authenticate(c) }},
		{"MAIL", func() error { return mailFrom(c, m.From.address) }},
		{"RCPT", func() error { return c.Rcpt(m.To) }},
		{"DATA", func() error { return sendData(c, data) }},
	} {
		if err := step.run(); err != nil {
			return s.failed(ctx, step.name, err)
		}
	}
	// The server is now responsible for the message, whatever it answers.
	conn.SetDeadline(time.Now().Add(time.Second))
	c.Quit()
	return nil
}

var (
	errTLSPort   = errors.New("the server expects TLS from the first byte; begin MAIL_URL with smtps://, or use the port for STARTTLS, such as 587")
	errPlainPort = errors.New("the server does not expect TLS from the first byte; begin MAIL_URL with smtp://, or use the port for TLS, such as 465")
)

// greet waits for the server's greeting. It returns errTLSPort or errPlainPort if the scheme
// does not fit the port. A server that expects TLS from the first byte sends no greeting, like
// one that is slow; so greet tries a handshake on another connection if it waits for long.
func (s *SMTP) greet(ctx context.Context, conn net.Conn) (*smtp.Client, error) {
	var expectsTLS atomic.Bool
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the other connection
	if s.scheme != "smtps" {
		defer time.AfterFunc(s.probeAfter, func() {
			if s.expectsTLS(ctx) {
				expectsTLS.Store(true)
				conn.Close()
			}
		}).Stop()
	}
	c, err := smtp.NewClient(conn, s.host)
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
		err = errPlainPort
	}
	if err != nil && expectsTLS.Load() {
		err = errTLSPort
	}
	return c, err
}

// expectsTLS reports whether the server completes a TLS handshake on a new connection before ctx
// ends. It sends no secret, so the certificate does not matter.
func (s *SMTP) expectsTLS(ctx context.Context) bool {
	conn, err := s.dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	return tls.Client(&boundedConn{conn, maxReplies}, &tls.Config{ServerName: s.host, InsecureSkipVerify: true}).HandshakeContext(ctx) == nil
}

// startTLS starts TLS if the connection requires it and does not have it.
func (s *SMTP) startTLS(c *smtp.Client) error {
	if s.scheme != "smtp" {
		return nil
	}
	if ok, _ := c.Extension("STARTTLS"); !ok {
		return errors.New("the server does not offer STARTTLS")
	}
	return c.StartTLS(s.tls)
}

// authenticate logs in, if there is a password.
func (s *SMTP) authenticate(c *smtp.Client) error {
	if s.user == "" {
		return nil
	}
	if _, ok := c.TLSConnectionState(); !ok {
		return errors.New("refusing to send a password without TLS")
	}
	_, offered := c.Extension("AUTH")
	mechanisms := strings.Fields(offered)
	switch {
	case slices.Contains(mechanisms, "PLAIN"):
		return c.Auth(smtp.PlainAuth("", s.user, s.pass, s.host))
	case slices.Contains(mechanisms, "LOGIN"):
		return c.Auth(&loginAuth{answers: []string{s.user, s.pass}})
	}
	return errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN")
}

// loginAuth is the mechanism LOGIN: the server asks for the user, and then for the
// password. The texts of its questions vary.
type loginAuth struct{ answers []string }

func (a *loginAuth) Start(*smtp.ServerInfo) (string, []byte, error) { return "LOGIN", nil, nil }

func (a *loginAuth) Next(_ []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	if len(a.answers) == 0 {
		return nil, errors.New("the server asks for more than a user and a password")
	}
	answer := a.answers[0]
	a.answers = a.answers[1:]
	return []byte(answer), nil
}

// mailFrom names the sender. The Mail method of net/smtp would declare that the message
// requires SMTPUTF8 (RFC 6531), and a server could not relay it to one without that.
func mailFrom(c *smtp.Client, address string) error {
	id, err := c.Text.Cmd("MAIL FROM:<%s>", address)
	if err != nil {
		return err
	}
	c.Text.StartResponse(id)
	defer c.Text.EndResponse(id)
	_, _, err = c.Text.ReadResponse(250)
	return err
}

// sendData sends the message and waits until the server has accepted it.
func sendData(c *smtp.Client, data []byte) error {
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Close()
}

// enhanced finds the code of RFC 3463 at the beginning of a reply.
var enhanced = regexp.MustCompile(`^[245]\.\d{1,3}\.\d{1,3}\b`)

// failed returns the error of a step. A reply to the password or to the message could
// repeat them, so only its codes are in the error.
func (s *SMTP) failed(ctx context.Context, step string, err error) error {
	reply, ok := errors.AsType[*textproto.Error](err)
	if !ok {
		e := failed(ctx, step, err)
		if step == "greeting" && s.scheme != "smtps" && errors.Is(e.cause, context.DeadlineExceeded) {
			e.text += ", and whether the port expects TLS from the first byte (smtps://)"
		}
		return e
	}
	text := reply.Msg
	if step == "AUTH" || step == "DATA" {
		text = enhanced.FindString(text)
		if reply.Code == 535 {
			text += " wrong user or password"
		}
	} else if s.pass != "" {
		text = strings.ReplaceAll(text, s.pass, "…")
	}
	return &DeliveryError{
		Permanent: reply.Code/100 == 5 && reply.Code != 530 && slices.Contains([]string{"MAIL", "RCPT", "DATA"}, step),
		text:      strings.TrimSpace(step + ": " + strconv.Itoa(reply.Code) + " " + oneLine(text)),
	}
}

// maxReplies is how many bytes a server may send for one message. A certificate chain is
// the largest part of them.
const maxReplies = 256 << 10

// A boundedConn fails when the other side has sent too much.
type boundedConn struct {
	net.Conn
	left int
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the server sent too much")
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
