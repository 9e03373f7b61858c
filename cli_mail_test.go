package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

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
