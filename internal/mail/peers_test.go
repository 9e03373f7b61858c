package mail

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"userd/internal/certs/certstest"
	"userd/internal/mail/eximtest"
)

// peers says that the programs userd sends mail to are installed, and to be tested with.
var peers = flag.Bool("peers", false, "test as root with aiosmtpd and Exim of Debian, node and npm, which must be installed, and with standardwebhooks of npm")

const wrongUserInfo = "mailer%40example.com:wrong@"

// peerMessage returns a message that is hard to transport.
func peerMessage(t *testing.T) *Message {
	m := testMessage(t)
	m.Date = time.Unix(time.Now().Unix(), 0)
	m.Subject = "Ein neues Passwort für Zoë, 佐藤 und alle, die schon lange darauf warten 🔑"
	m.Text = "Grüße an Zoë!\n\n" + testLink + "\n\n.\n..\n.dot\nFrom the beginning\n=3D =\nspace \t\n" + strings.Repeat("ä ö ", 1000) + "\n"
	return m
}

// peerCertificate writes a certificate for 127.0.0.1 to cert.pem and key.pem in dir, and
// returns the roots that trust it.
func peerCertificate(t *testing.T, dir string) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	pair := certstest.New(certstest.Day)
	certFile, keyFile, err := pair.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	return certFile, keyFile, roots
}

// A peer is a program that prints its port, and then a line for each delivery. It ends
// with the test, or after a minute.
type peer struct {
	addr   string
	output *bufio.Reader
}

func startPeer(t *testing.T, environ []string, name string, args ...string) *peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s", &stderr)
		}
	})
	p := &peer{output: bufio.NewReader(out)}
	p.addr = "127.0.0.1:" + p.line(t)
	return p
}

func (p *peer) line(t *testing.T) string {
	t.Helper()
	line, err := p.output.ReadString('\n')
	if err != nil {
		t.Fatalf("the program ended: %v", err)
	}
	return strings.TrimSpace(line)
}

func TestAiosmtpdReceivesMessages(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	certFile, keyFile, roots := peerCertificate(t, t.TempDir())
	for scheme, mode := range map[string]string{"smtp": "starttls", "smtps": "tls"} {
		for _, mechanism := range []string{"PLAIN", "LOGIN"} {
			t.Run(scheme+" and "+mechanism, func(t *testing.T) {
				t.Parallel()
				p := startPeer(t, nil, "/usr/bin/python3", "testdata/smtpd.py", mode, mechanism, testUser, testPass, certFile, keyFile)
				m := peerMessage(t)
				if err := newSMTP(t, scheme, testUserInfo, p.addr, roots).Send(t.Context(), m); err != nil {
					t.Fatal(err)
				}
				p.wantMessage(t, m, mechanism)

				checkError(t, newSMTP(t, scheme, wrongUserInfo, p.addr, roots).Send(t.Context(), m), false, "AUTH: 535 5.7.8 wrong user or password")
				checkError(t, newSMTP(t, scheme, "", p.addr, roots).Send(t.Context(), m), false, "MAIL: 530 5.7.0 Authentication required")
				step := map[string]string{"smtp": "STARTTLS", "smtps": "greeting"}[scheme]
				checkError(t, newSMTP(t, scheme, testUserInfo, p.addr, x509.NewCertPool()).Send(t.Context(), m), false,
					step+": tls: failed to verify certificate: x509: certificate signed by unknown authority")
				if scheme == "smtp" {
					checkError(t, newSMTP(t, "smtp+plain", "", p.addr, nil).Send(t.Context(), m), false, "MAIL: 530 Must issue a STARTTLS command first")
				}
				// A message after the failures is the next one that arrives.
				m.ID = "17.3@example.com"
				if err := newSMTP(t, scheme, testUserInfo, p.addr, roots).Send(t.Context(), m); err != nil {
					t.Fatal(err)
				}
				p.wantMessage(t, m, mechanism)
			})
		}
	}
}

// A receivedMessage is a message as Python reads it.
type receivedMessage struct {
	Login    string
	MailFrom string
	RcptTos  []string
	Headers  [][2]string
	Sender   [2]string // name and address
	Date     float64   // Unix seconds
	Text     string
	Defects  []string
}

// wantMessage checks the next message that smtpd.py has received.
func (p *peer) wantMessage(t *testing.T, m *Message, mechanism string) {
	t.Helper()
	var got receivedMessage
	if err := json.Unmarshal([]byte(p.line(t)), &got); err != nil {
		t.Fatal(err)
	}
	got.Text = strings.ReplaceAll(got.Text, "\r\n", "\n")
	want := receivedMessage{
		Login:    mechanism + " " + testUser,
		MailFrom: "no-reply@example.com",
		RcptTos:  []string{"ann@example.org"},
		Headers: [][2]string{
			{"Date", m.Date.UTC().Format(time.RFC1123Z)},
			{"From", "Beispiel für alle <no-reply@example.com>"},
			{"To", "ann@example.org"},
			{"Message-ID", "<" + m.ID + ">"},
			{"Subject", m.Subject},
			{"Auto-Submitted", "auto-generated"},
			{"MIME-Version", "1.0"},
			{"Content-Type", `text/plain; charset="utf-8"`},
			{"Content-Transfer-Encoding", "quoted-printable"},
		},
		Sender:  [2]string{"Beispiel für alle", "no-reply@example.com"},
		Date:    float64(m.Date.Unix()),
		Text:    m.Text,
		Defects: []string{},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the server got\n%+v\nwant\n%+v", got, want)
	}
}

// An exim is a mail server with the certificate that roots trusts.
type exim struct {
	*eximtest.Server
	roots *x509.CertPool
}

func startExim(t *testing.T) *exim {
	t.Helper()
	e := &exim{eximtest.Start(t, testUser, testPass), x509.NewCertPool()}
	e.roots.AddCert(e.Certificate.Leaf)
	return e
}

// send sends a message, and returns when Exim has delivered it.
func (e *exim) send(t *testing.T, scheme, userInfo string, m *Message) error {
	t.Helper()
	addr := e.StartTLSAddr
	if scheme == "smtps" {
		addr = e.TLSAddr
	}
	err := newSMTP(t, scheme, userInfo, addr, e.roots).Send(t.Context(), m)
	select {
	case ended := <-e.Ended:
		// The status is 1 if no message was accepted.
		if ended != nil && !errors.As(ended, new(*exec.ExitError)) {
			t.Error(ended)
		}
	case <-time.After(patience):
		t.Fatalf("%v, and Exim still runs: %s", err, e.Log())
	}
	return err
}

// eximReceived is the header that Exim adds to a message that it got with TLS and after
// a login (esmtpsa, RFC 3848).
var eximReceived = regexp.MustCompile(`^Received: .*\n\tby mail\.example\.com with esmtpsa .*\n(?:\t.*\n)*$`)

func TestEximDeliversMessages(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	e := startExim(t)
	for _, c := range []struct {
		name, scheme, userInfo string
		change                 func(m *Message)
		permanent              bool
		text                   string
	}{
		{"an unknown recipient", "smtp", testUserInfo, func(m *Message) { m.To = "bob@example.org" }, true, "RCPT: 550 Unrouteable address"},
		{"an unknown domain", "smtps", testUserInfo, func(m *Message) { m.To = "ann@other.example" }, true, "RCPT: 550 Unrouteable address"},
		{"a busy recipient", "smtp", testUserInfo, func(m *Message) { m.To = "busy@example.org" }, false, "RCPT: 451 Temporary local problem - please try later"},
		{"a message refused", "smtps", testUserInfo, func(m *Message) { m.Subject = "spam" }, true, "DATA: 550"},
		{"a wrong password with PLAIN", "smtp", wrongUserInfo, func(*Message) {}, false, "AUTH: 535 wrong user or password"},
		{"a wrong password with LOGIN", "smtps", wrongUserInfo, func(*Message) {}, false, "AUTH: 535 wrong user or password"},
		{"a missing login", "smtps", "", func(*Message) {}, false, "MAIL: 530 5.7.0 Authentication required"},
		{"no TLS", "smtp+plain", "", func(*Message) {}, false, "MAIL: 530 5.7.0 Authentication required"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := peerMessage(t)
			c.change(m)
			checkError(t, e.send(t, c.scheme, c.userInfo, m), c.permanent, c.text)
		})
	}
	for scheme, login := range map[string]string{"smtp": " A=plain ", "smtps": " A=login "} {
		t.Run("a message with "+scheme, func(t *testing.T) {
			m := peerMessage(t)
			if err := e.send(t, scheme, testUserInfo, m); err != nil {
				t.Fatalf("%v: %s", err, e.Log())
			}
			files, err := e.Mails()
			if err != nil || len(files) != 1 {
				t.Fatalf("the mailbox contains %q, %v: %s", files, err, e.Log())
			}
			defer os.Remove(files[0])
			got, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			want, err := m.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			want = bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n"))
			if added, same := bytes.CutSuffix(got, want); !same || !eximReceived.Match(added) {
				t.Errorf("the mailbox contains\n%s\nwant a Received header and\n%s", got, want)
			}
			if log := e.Log(); !regexp.MustCompile(" <= no-reply@example.com .*" + login).Match(log) {
				t.Errorf("the log has no message with %q: %s", login, log)
			}
		})
	}
}

// startReceiver starts testdata/webhook.js with the library standardwebhooks from npm,
// and returns a transport to it.
func startReceiver(t *testing.T) (*peer, *Webhook) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("npm", "install", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "standardwebhooks@1.1.1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	certFile, keyFile, roots := peerCertificate(t, dir)
	p := startPeer(t, []string{"NODE_PATH=" + filepath.Join(dir, "node_modules")}, "node", "testdata/webhook.js", testSecret, certFile, keyFile)
	transport, err := Parse("https://"+p.addr+"/hooks", Options{WebhookSecret: testSecret})
	if err != nil {
		t.Fatal(err)
	}
	w := transport.(*Webhook)
	w.client.Transport.(*http.Transport).TLSClientConfig.RootCAs = roots
	return p, w
}

// A tamperer changes requests on their way.
type tamperer struct {
	http.RoundTripper
	change func(r *http.Request)
}

func (t tamperer) RoundTrip(r *http.Request) (*http.Response, error) {
	t.change(r)
	return t.RoundTripper.RoundTrip(r)
}

func TestStandardWebhooksVerifies(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	p, w := startReceiver(t)
	direct := w.client.Transport
	const event = `{"type":"reset","user":{"username":"Zoë 佐藤"},"url":"` + testLink + `"}`
	send := func(age time.Duration, change func(r *http.Request)) error {
		w.client.Transport = tamperer{direct, change}
		m := testMessage(t)
		m.Date = time.Now().Add(-age)
		m.Event = []byte(event)
		return w.Send(t.Context(), m)
	}
	unchanged := func(*http.Request) {}
	body := func(s string) func(r *http.Request) {
		return func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader(s)), int64(len(s)) }
	}
	header := func(name, value string) func(r *http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	const noMatch = "No matching signature found"
	for _, c := range []struct {
		name   string
		age    time.Duration
		change func(r *http.Request)
		answer string // empty: accepted
	}{
		{"a webhook", 0, unchanged, ""},
		{"a webhook of 4 minutes ago", 4 * time.Minute, unchanged, ""},
		{"a changed body", 0, body(strings.Replace(event, "Zoë", "Zoé", 1)), noMatch},
		{"an empty body", 0, body(""), noMatch},
		{"a changed ID", 0, header("Webhook-Id", "msg_2"), noMatch},
		{"a changed timestamp", 4 * time.Minute, header("Webhook-Timestamp", strconv.FormatInt(time.Now().Unix(), 10)), noMatch},
		{"an old timestamp", 6 * time.Minute, unchanged, "Message timestamp too old"},
		{"a timestamp in the future", -6 * time.Minute, unchanged, "Message timestamp too new"},
		{"a missing signature", 0, func(r *http.Request) { r.Header.Del("Webhook-Signature") }, "Missing required headers"},
		{"another secret", 0, func(r *http.Request) {
			other := Webhook{key: make([]byte, 24)}
			h := r.Header
			h.Set("Webhook-Signature", "v1,"+other.sign(h.Get("Webhook-Id")+"."+h.Get("Webhook-Timestamp")+".", []byte(event)))
		}, noMatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := send(c.age, c.change)
			answer := p.line(t)
			if c.answer == "" {
				if err != nil || answer != event {
					t.Errorf("%v, and the receiver says %s, want %s", err, answer, event)
				}
				return
			}
			checkError(t, err, false, "webhook: status 400")
			if answer != c.answer {
				t.Errorf("the receiver says %s, want %s", answer, c.answer)
			}
		})
	}
}
