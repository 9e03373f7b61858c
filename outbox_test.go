package main

import (
	"context"
	"fmt"
	"io"
	"mime/quotedprintable"
	netmail "net/mail"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// withMail turns mail on.
func withMail(c *settings) { c.mailOn = true }

// A postbox is the outbox of a service, with a transport to a directory.
type postbox struct {
	*outbox
	t    testing.TB
	dir  string
	seen map[string]bool // the files that were returned
}

// postbox returns the outbox of a service. It sends only when a test calls deliver.
func (s *service) postbox() *postbox {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "mail")
	o, err := newOutbox(&config{settings: s.settings, mailURL: "dir:" + dir, appURL: "https://id.example.com"}, false, io.Discard)
	if err == nil {
		err = o.attach(s.t.Context(), s.server)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return &postbox{o, s.t, dir, make(map[string]bool)}
}

// A sentMail is a mail as its recipient sees it.
type sentMail struct {
	header  netmail.Header
	to      string
	subject string
	text    string
	code    string // of the link; empty: it has none
}

var linkPattern = regexp.MustCompile(`https://id\.example\.com/[a-z]+#(u[a-z]_[A-Z2-7]{26})\n`)

// deliver sends what is due and returns the mails that were sent since the last call,
// ordered by their recipients.
func (p *postbox) deliver() (list []sentMail) {
	p.t.Helper()
	p.sendDue(context.Background(), context.Background())
	files, err := filepath.Glob(filepath.Join(p.dir, "*.eml"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, file := range files {
		if p.seen[file] {
			continue
		}
		p.seen[file] = true
		f, err := os.Open(file)
		if err != nil {
			p.t.Fatal(err)
		}
		defer f.Close()
		m, err := netmail.ReadMessage(f)
		if err != nil {
			p.t.Fatal(err)
		}
		data, err := io.ReadAll(quotedprintable.NewReader(m.Body))
		if err != nil {
			p.t.Fatal(err)
		}
		text := strings.ReplaceAll(string(data), "\r\n", "\n")
		sent := sentMail{header: m.Header, to: m.Header.Get("To"), subject: m.Header.Get("Subject"), text: text}
		if link := linkPattern.FindStringSubmatch(text); link != nil {
			sent.code = link[1]
		}
		list = append(list, sent)
	}
	slices.SortFunc(list, func(a, b sentMail) int { return strings.Compare(a.to+a.subject, b.to+b.subject) })
	return list
}

// only returns the single mail that is due. Its recipient must be to, and its subject
// must contain a text.
func (p *postbox) only(to, subject string) sentMail {
	p.t.Helper()
	list := p.deliver()
	if len(list) != 1 || list[0].to != to || !strings.Contains(list[0].subject, subject) {
		p.t.Fatalf("sent %d mails, want one to %s about %q: %+v", len(list), to, subject, list)
	}
	return list[0]
}

// none fails the test if a mail is due that is sent.
func (p *postbox) none(what string) {
	p.t.Helper()
	for _, m := range p.deliver() {
		p.t.Errorf("%s: sent a mail to %s about %q", what, m.to, m.subject)
	}
}

// forgot asks for a reset link.
func (s *service) forgot(login string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, login)).want(s.t, 202, "")
}

func TestAForgottenPasswordIsSetByAMailedLink(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, old := s.member("ann")
	_, root := s.admin("root")
	s.forgot("ann")
	m := p.only("ann@example.com", "password")
	if !strings.HasPrefix(m.code, "ur_") {
		t.Fatalf("the mail has the code %q:\n%s", m.code, m.text)
	}
	for _, want := range []string{"Hello ann,", "127.0.0.0/24", "id.example.com", "4 May 2026, 03:32 UTC"} {
		if !strings.Contains(m.text, want) {
			t.Errorf("the mail lacks %q:\n%s", want, m.text)
		}
	}
	body := fmt.Sprintf(`{"code":%q,"password":"a brand new password"}`, m.code)
	s.do("", "POST", "/api/password/reset", body).want(t, 200, "")
	s.do("", "POST", "/api/password/reset", body).want(t, 400, "invalid_code")
	s.do(old, "GET", path, "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"a brand new password"}`).want(t, 200, "")
	if s.do(root, "GET", path, "").field("email_verified_at") == "" {
		t.Error("the address is not verified")
	}
	p.none("after the reset")
}
