package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/quotedprintable"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/mail"
)

// withMail turns mail on.
func withMail(c *settings) { c.mailOn = true }

// aMail queues a mail and returns its id.
func (s *service) aMail() string {
	s.t.Helper()
	m := queuedMail{kind: resetMail, login: "ann"}
	s.change(m.statement().Query, m.args()...)
	return fmt.Sprint(scanStore[int64](s.t.(*testing.T), s, "SELECT max(id) FROM user_mail"))
}

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
		err = o.attach(s.t.Context(), s.store, s.stats.mails, s.wall, s.log)
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

// readMail reads a message.
func readMail(t testing.TB, r io.Reader) sentMail {
	t.Helper()
	m, err := netmail.ReadMessage(r)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	sent := sentMail{header: m.Header, to: m.Header.Get("To"), subject: m.Header.Get("Subject"), text: text}
	if link := linkPattern.FindStringSubmatch(text); link != nil {
		sent.code = link[1]
	}
	return sent
}

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
		list = append(list, readMail(p.t, f))
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

// added adds a member as an admin does, which causes no mail, and returns its path.
func (s *service) added(name string) (path string) {
	s.t.Helper()
	u := user{username: name, email: name + "@example.com", role: member}
	if err := s.addUser(context.Background(), console, &u, goodPassword); err != nil {
		s.t.Fatal(err)
	}
	return userPath(u.id)
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
	path := s.added("ann")
	old := s.login("ann")
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

// rows returns the states of the outbox's rows and how often each was tried, in id order.
func (s *service) mailRows() (list []string) {
	s.t.Helper()
	err := s.store.mails(s.t.Context(), 0, -1, "", func(m *queuedMail) {
		list = append(list, fmt.Sprintf("%s %s %d", m.kind, m.state, m.tries))
		if m.state != "queued" && m.login != "" {
			s.t.Errorf("the closed mail %d keeps the login %q", m.id, m.login)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

func (s *service) wantMailRows(want ...string) {
	s.t.Helper()
	if got := s.mailRows(); !slices.Equal(got, want) {
		s.t.Errorf("the outbox holds %q, want %q", got, want)
	}
}

func TestWhoGetsAResetLink(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		login string
		set   string // SQL, after the registration
		to    string // empty: no mail
	}{
		"a username":               {"ann", "", "ann@example.com"},
		"an address":               {"ANN@example.com", "", "ann@example.com"},
		"with spaces":              {" ann ", "", "ann@example.com"},
		"an unknown name":          {"eve", "", ""},
		"an unknown address":       {"eve@example.com", "", ""},
		"two addresses":            {"ann@example.com,eve@example.com", "", ""},
		"two addresses, by space":  {"ann@example.com eve@example.com", "", ""},
		"an address with a header": {"ann@example.com\r\nBcc: eve@example.com", "", ""},
		"a disabled user":          {"ann", `UPDATE user SET disabled = 1`, ""},
		"a user without address":   {"ann", `UPDATE user SET email = ''`, ""},
		"an invalid address":       {"ann", `UPDATE user SET email = 'ann@example.com,eve@example.com'`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			s.added("ann")
			if c.set != "" {
				runSQL(t, another(t, s.path), c.set)
			}
			s.forgot(c.login)
			if c.to == "" {
				p.none(name)
				for _, row := range s.mailRows() {
					if strings.Contains(row, "queued") {
						t.Errorf("the outbox holds %q", row)
					}
				}
			} else {
				p.only(c.to, "password")
			}
		})
	}
}

// An array of addresses was mailed to each of them (GitLab, CVE-2023-7028).
func TestALoginIsOneText(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	s.added("ann")
	for _, login := range []string{`["ann@example.com","eve@example.com"]`, `{"0":"ann@example.com"}`, `7`, `null`} {
		if r := s.do("", "POST", "/api/password/forgot", `{"login":`+login+`}`); r.status != 400 {
			t.Errorf("%s: %d %s", login, r.status, r.body)
		}
	}
	s.do("", "POST", "/api/password/forgot", `{"login":"ann@example.com","login":"eve@example.com"}`).want(t, 400, "duplicate_member")
	s.do("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, strings.Repeat("a", maxLogin+1))).want(t, 400, "invalid_fields")
	s.wantMailRows()
}

// A link with the host of a request's header leads to the attacker (Zitadel, CVE-2025-64101).
func TestALinkIgnoresTheHostOfTheRequest(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.added("ann")
	r, err := http.NewRequest("POST", s.url+"/api/password/forgot", strings.NewReader(`{"login":"ann"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "evil.example"
	for _, name := range []string{"X-Forwarded-Host", "X-Original-Host", "Origin", "Referer"} {
		r.Header.Set(name, "https://evil.example")
	}
	r.Header.Set("Forwarded", "host=evil.example")
	r.Header.Set("User-Agent", "https://evil.example Firefox/1 Linux\tclick here")
	r.Header.Set("Content-Type", "application/json")
	s.ask(r).want(t, 202, "")
	m := p.only("ann@example.com", "id.example.com")
	if strings.Contains(m.text, "evil") || strings.Contains(m.text, "click") || !strings.Contains(m.text, "Firefox on Linux") {
		t.Errorf("the mail is\n%s", m.text)
	}
}

// The address of the reset is the one that the link was mailed to (Mattermost, CVE-2016-11074).
func TestAMailedLinkIsOnlyForItsAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path := s.added("ann")
	_, root := s.admin("root")
	s.forgot("ann")
	code := p.only("ann@example.com", "password").code
	s.do(root, "PUT", path, `{"email":"new@example.com"}`).want(t, 200, "")
	s.reset(code, "another long one").want(t, 400, "invalid_code")
	p.deliver()
	s.clock.add(time.Hour)
	root = s.login("root")

	// Also if the address changes before the mail leaves.
	s.forgot("ann")
	runSQL(t, another(t, s.path), `UPDATE user_mail SET user_id = 1, email = 'new@example.com' WHERE login = 'ann'`)
	s.do(root, "PUT", path, `{"email":"newer@example.com"}`).want(t, 200, "")
	for _, m := range p.deliver() {
		if strings.Contains(m.subject, "password") {
			t.Errorf("a reset link went to %s", m.to)
		}
	}
}

func TestAForgottenPasswordHasLimits(t *testing.T) {
	t.Parallel()
	stranger := func(s *service, from, login string) {
		s.do("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, login), "X-Forwarded-For: "+from).want(s.t, 202, "")
	}
	queued := func(s *service) (n int) {
		for _, row := range s.mailRows() {
			if strings.Contains(row, "queued") {
				n++
			}
		}
		return n
	}
	t.Run("of a network", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, proxied)
		for i := range 30 {
			stranger(s, "192.0.2."+fmt.Sprint(i), "eve")
		}
		if n := queued(s); n != 20 {
			t.Errorf("%d mails are queued, want 20", n)
		}
		stranger(s, "198.51.100.1", "eve")
		if n := queued(s); n != 21 {
			t.Errorf("%d mails are queued after one from another network, want 21", n)
		}
	})
	for _, limited := range []switchSetting{switchOn, switchOff} {
		t.Run("of all strangers, with RATE_LIMIT="+string(limited), func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail, proxied, func(c *settings) { c.mailsPerHour, c.rateLimit = 5, limited })
			for i := range 8 {
				stranger(s, fmt.Sprintf("192.0.%d.1", i), "eve")
			}
			if n := queued(s); n != 5 {
				t.Errorf("%d mails are queued, want 5", n)
			}
			s.clock.add(12 * time.Minute)
			stranger(s, "192.0.99.1", "eve")
			if n := queued(s); n != 6 {
				t.Errorf("%d mails are queued after 12 minutes, want 6", n)
			}
		})
	}
	t.Run("of an address", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, proxied)
		p := s.postbox()
		s.added("ann")
		sent := 0
		ask := func(want int, what string) {
			t.Helper()
			stranger(s, fmt.Sprintf("192.0.%d.1", sent%250), "ann")
			got := len(p.deliver())
			sent += got
			if got != want {
				t.Errorf("%s: sent %d mails, want %d", what, got, want)
			}
			runSQL(t, another(t, s.path), `DELETE FROM user_code`) // see TestThreeLiveLinksAreEnough
		}
		ask(1, "the first")
		ask(0, "at the same time")
		for i := range 4 {
			s.clock.add(time.Minute)
			ask(1, fmt.Sprint("after a minute, mail ", i+2))
		}
		s.clock.add(time.Minute)
		ask(0, "the sixth in an hour")
		for i := range 5 {
			s.clock.add(time.Hour)
			ask(1, fmt.Sprint("after an hour, mail ", i+6))
		}
		s.clock.add(time.Hour)
		ask(0, "the eleventh in a day")
		s.clock.add(24 * time.Hour)
		ask(1, "the next day")
	})
	t.Run("a known network does not count", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, proxied)
		p := s.postbox()
		s.verified(p, "ann")
		s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
		p.only("ann@example.com", "login")
		stranger(s, "198.51.100.1", "ann")
		p.only("ann@example.com", "password")
		stranger(s, "203.0.113.1", "ann")
		p.none("a second stranger in a minute")
		stranger(s, homeNet, "ann")
		p.only("ann@example.com", "password")
	})
}

// A stranger who registers with the address of another person is at home in its own network.
func TestAnAddressThatIsOnlyAClaimIsLimited(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, proxied)
	p := s.postbox()
	s.register("mallory")
	p.only("mallory@example.com", "Confirm")
	password, sent := goodPassword, 0
	for i := range 30 {
		from := fmt.Sprintf("192.0.%d.1", i)
		token := s.tryLogin(from, "mallory", password).want(t, 200, "").field("access_token")
		s.do("", "POST", "/api/password/forgot", `{"login":"mallory"}`, "X-Forwarded-For: "+from).want(t, 202, "")
		sent += len(p.deliver())
		password = fmt.Sprint("the long password ", i) // which ends the live links
		s.do(token, "PUT", "/api/users/me", fmt.Sprintf(`{"password":%q}`, password), "X-Forwarded-For: "+from).want(t, 200, "")
		s.clock.add(10 * time.Minute)
	}
	if sent != 10 { // in five hours
		t.Errorf("sent %d mails, want 10", sent)
	}
	s.forgot("mallory")
	p.only("mallory@example.com", "password") // others have a limit of their own
}

func TestThreeLiveLinksAreEnough(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.verified(p, "ann") // in a network that is known then, so the limits of the address do not apply
	var codes []string
	for range 3 {
		s.forgot("ann")
		codes = append(codes, p.only("ann@example.com", "password").code)
	}
	s.forgot("ann")
	p.none("while three links are live")
	s.clock.add(30 * time.Minute)
	s.forgot("ann")
	codes = append(codes, p.only("ann@example.com", "password").code)
	s.reset(codes[0], "another long one").want(t, 400, "invalid_code") // expired
	s.reset(codes[3], "another long one").want(t, 200, "")
}

func TestEachOfThreeLiveLinksWorks(t *testing.T) {
	t.Parallel()
	for chosen := range 3 {
		s := newService(t, withMail)
		p := s.postbox()
		s.verified(p, "ann")
		var codes []string
		for range 3 {
			s.forgot("ann")
			codes = append(codes, p.only("ann@example.com", "password").code)
		}
		s.reset(codes[chosen], "another long one").want(t, 200, "")
		for _, code := range codes {
			s.reset(code, "yet another long one").want(t, 400, "invalid_code")
		}
	}
}

// A webhook is a receiver of mails that a test controls.
type webhook struct {
	*postbox
	mu     sync.Mutex
	status int // of the next answers
	header http.Header
	events []map[string]any
	ids    []string
}

// webhook returns the outbox of a service, with a transport to a receiver.
func (s *service) webhook() *webhook {
	s.t.Helper()
	w := &webhook{postbox: s.postbox(), status: 200}
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		var event map[string]any
		if err := json.Unmarshal(data, &event); err != nil {
			s.t.Errorf("%v: %s", err, data)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events, w.ids = append(w.events, event), append(w.ids, r.Header.Get("Webhook-Id"))
		maps.Copy(rw.Header(), w.header)
		rw.WriteHeader(w.status)
	}))
	s.t.Cleanup(receiver.Close)
	var err error
	w.transport, err = mail.Parse(receiver.URL, mail.Options{WebhookSecret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

// send sends what is due, with the given status of the receiver, and returns how often
// the receiver was called.
func (w *webhook) send(status int, header http.Header) int {
	w.t.Helper()
	w.mu.Lock()
	w.status, w.header = status, header
	before := len(w.events)
	w.mu.Unlock()
	w.sendDue(context.Background(), context.Background())
	return len(w.events) - before
}

// wantTries sends what is due and fails the test unless the receiver was called so often.
func (w *webhook) wantTries(want, status int, header http.Header, when string) {
	w.t.Helper()
	if n := w.send(status, header); n != want {
		w.t.Fatalf("%d tries %s, want %d", n, when, want)
	}
}

func TestAMailIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	w := s.webhook()
	s.added("ann")
	s.login("ann")
	s.forgot("ann")
	for _, delay := range []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, time.Hour} {
		if n := w.send(500, nil); n != 1 {
			t.Fatalf("before a delay of %v: %d tries, want 1", delay, n)
		}
		s.clock.add(delay * 79 / 100)
		if n := w.send(500, nil); n != 0 {
			t.Errorf("%d tries before a delay of %v was over", n, delay)
		}
		s.clock.add(delay * 42 / 100)
	}
	w.wantTries(1, 200, nil, "at the end")
	s.clock.add(24 * time.Hour)
	w.wantTries(0, 200, nil, "after it was sent")
	s.wantMailRows("reset sent 8")
	seen := make(map[any]bool)
	for i, event := range w.events {
		if seen[event["code"]] {
			t.Errorf("the try %d has the code of an earlier one", i+1)
		}
		seen[event["code"]] = true
		if w.ids[i] != w.ids[0] {
			t.Errorf("the webhook-id changed from %s to %s", w.ids[0], w.ids[i])
		}
	}
}

// A receiver may have handled a mail although it did not answer.
func TestATryEndsNoEarlierCode(t *testing.T) {
	t.Parallel()
	for chosen := range 2 {
		s := newService(t, withMail)
		w := s.webhook()
		s.added("ann")
		s.login("ann")
		s.forgot("ann")
		w.send(500, nil)
		s.clock.add(time.Minute)
		w.send(200, nil)
		s.reset(fmt.Sprint(w.events[chosen]["code"]), "another long one").want(t, 200, "")
	}
}

func TestTheReceiverDecidesHowLongToWait(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	w := s.webhook()
	s.added("ann")
	s.login("ann")
	s.forgot("ann")
	w.send(503, http.Header{"Retry-After": {"600"}})
	s.clock.add(599 * time.Second)
	w.wantTries(0, 200, nil, "before Retry-After")
	s.clock.add(time.Second)
	w.wantTries(1, 200, nil, "after Retry-After")
}

func TestAPermanentFailureIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	w := s.webhook()
	s.added("ann")
	s.login("ann")
	s.forgot("ann")
	w.send(410, nil)
	s.clock.add(2 * time.Hour)
	w.wantTries(0, 200, nil, "after a permanent failure")
	s.wantMailRows("reset failed 1")
	if n, err := s.store.retryMail(t.Context(), console, 0, s.wall().Unix()); n != 1 || err != nil {
		t.Fatalf("made %d mails due, %v, want 1", n, err)
	}
	w.wantTries(1, 200, nil, "after mail retry")
	s.wantMailRows("reset sent 2")
	if _, err := s.store.retryMail(t.Context(), console, 1, s.wall().Unix()); !errors.Is(err, errMailNotFound) {
		t.Errorf("a sent mail can be tried again: %v", err)
	}
}

// A mail that can never be sent must not hold up the others (ory/kratos #402).
func TestABadMailDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.added("ann")
	s.login("ann")
	for range 3 * mailBatch {
		bad := queuedMail{kind: changedMail, userID: 1, email: "not an address", createdAt: s.wall().Unix()}
		unknown := queuedMail{kind: "unknown", userID: 1, email: "ann@example.com", createdAt: s.wall().Unix()}
		orphan := queuedMail{kind: verifyMail, userID: 99, email: "ann@example.com", createdAt: s.wall().Unix()}
		if err := s.store.write(t.Context(), bad.statement(), unknown.statement(), orphan.statement()); err != nil {
			t.Fatal(err)
		}
	}
	s.forgot("ann")
	sent := 0
	for range 3*3 + 1 { // batches
		sent += len(p.deliver())
	}
	if sent != 1 {
		t.Errorf("sent %d mails, want 1", sent)
	}
	if n, _, err := s.store.mailQueue(); n != 0 || err != nil {
		t.Errorf("%d mails are queued, %v", n, err)
	}
}

// Several processes can share a database.
func TestTwoOutboxesSendEachMailOnce(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, proxied)
	for i := range 40 {
		s.added(fmt.Sprint("user", i))
		s.do("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":"user%d"}`, i), fmt.Sprintf("X-Forwarded-For: 192.0.%d.1", i)).want(t, 202, "")
	}
	a := s.postbox()
	other := newServiceOn(t, s.path, withMail)
	other.clock.set(s.wall())
	b := other.postbox()
	b.name, b.transport = a.name, a.transport
	var both sync.WaitGroup
	for _, o := range []*outbox{a.outbox, b.outbox} {
		both.Go(func() {
			for range 4 {
				o.sendDue(context.Background(), context.Background())
			}
		})
	}
	both.Wait()
	recipients := make(map[string]int)
	for _, m := range a.deliver() {
		recipients[m.to]++
	}
	if len(recipients) != 40 {
		t.Errorf("%d users got a mail, want 40", len(recipients))
	}
	for to, n := range recipients {
		if n != 1 {
			t.Errorf("%s got %d mails", to, n)
		}
	}
}

// A process that ends between two steps loses no mail.
func TestAMailSurvivesTheEndOfItsProcess(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.added("ann")
	s.login("ann")
	s.forgot("ann")
	var row queuedMail
	if err := s.store.dueMails(t.Context(), 1, s.wall().Unix(), func(m *queuedMail) { row = *m }); err != nil {
		t.Fatal(err)
	}
	row.userID, row.email = 1, "ann@example.com"
	code := newCode(resetMailCode)
	hash, err := hashCode(resetMailCode, code)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.store.takeMail(t.Context(), &row, strangerBudget, hash, s.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	// The process has ended, before or after it sent the mail.
	if _, err := s.store.takeMail(t.Context(), &row, strangerBudget, hash, s.wall().Unix()); !errors.Is(err, errMailTaken) {
		t.Errorf("a second process takes the mail: %v", err)
	}
	p.none("during the lease")
	s.clock.add(mailLease * time.Second)
	m := p.only("ann@example.com", "password")
	late := row // the first process was only slow
	late.tries = 1
	if err := s.store.delayMail(t.Context(), &late, "too late", s.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	s.wantMailRows("reset sent 2")
	s.reset(code, "another long one").want(t, 200, "")
	s.reset(m.code, "yet another long one").want(t, 400, "invalid_code")
}

// The clock of another process, or this one before a step, may be wrong.
func TestAMailLeavesAfterAStepOfTheClock(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{-31 * 24 * time.Hour, -4 * time.Hour, -5 * time.Second, 5 * time.Second, 4 * time.Hour} {
		s := newService(t, withMail)
		w := s.webhook()
		s.added("ann")
		s.login("ann")
		s.forgot("ann")
		if w.send(500, nil) != 1 {
			t.Fatal("the mail was not tried")
		}
		s.clock.set(s.wall().Add(step))
		s.clock.add(2 * time.Minute)
		if n := w.send(200, nil); n != 1 {
			t.Errorf("a step of %v: %d tries, want 1", step, n)
		}
	}
}

func TestAMailIsAbandonedWithItsPurpose(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]string{
		"the user is deleted":  `DELETE FROM user WHERE username = 'ann'`,
		"the user is disabled": `UPDATE user SET disabled = 1 WHERE username = 'ann'`,
		"the address changed":  `UPDATE user SET email = 'new@example.com' WHERE username = 'ann'`,
		"it is old":            `UPDATE user_mail SET created_at = created_at - 86401`,
	} {
		s := newService(t, withMail)
		w := s.webhook()
		s.added("ann")
		s.login("ann")
		s.forgot("ann")
		if w.send(500, nil) != 1 {
			t.Fatal("the mail was not tried")
		}
		runSQL(t, another(t, s.path), end)
		s.clock.add(time.Minute)
		if n := w.send(200, nil); n != 0 {
			t.Errorf("%s: the mail was sent", name)
		}
		s.wantMailRows("reset dropped 1")
		if reason := scan[string](t, another(t, s.path), `SELECT last_error FROM user_mail`); reason == "" {
			t.Errorf("%s: the mail has no reason", name)
		}
	}
}

func TestAWebhookGetsTheEventOfAMail(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	w := s.webhook()
	s.added("ann")
	s.login("ann")
	s.forgot("ann")
	w.send(200, nil)
	event := w.events[0]
	user, _ := event["user"].(map[string]any)
	if event["type"] != "reset" || event["email"] != "ann@example.com" || user["username"] != "ann" || user["id"] != 1.0 || event["expires_at"] != "2026-05-04T03:32:01Z" ||
		event["url"] != "https://id.example.com/reset#"+fmt.Sprint(event["code"]) {
		t.Errorf("the event is %v", event)
	}
	s.reset(fmt.Sprint(event["code"]), "another long one").want(t, 200, "")
}

func TestALoginFromANewNetworkIsNoticed(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, proxied)
	p := s.postbox()
	s.added("ann")
	s.added("bob")
	s.tryLogin("203.0.113.1", "bob", goodPassword).want(t, 200, "") // makes the network known for bob
	s.tryLogin("192.0.2.1", "ann", goodPassword).want(t, 200, "")
	s.tryLogin("198.51.100.1", "ann", goodPassword).want(t, 200, "")
	p.none("an address that is not verified")
	runSQL(t, another(t, s.path), `UPDATE user SET email_verified_at = 1`)
	s.tryLogin("192.0.2.99", "ann", goodPassword).want(t, 200, "")
	p.none("a login from a network of before")
	s.tryLogin("203.0.113.1", "ann", goodPassword).want(t, 200, "")
	if m := p.only("ann@example.com", "New login"); !strings.Contains(m.text, "203.0.113.0/24") {
		t.Errorf("the notice is\n%s", m.text)
	}
	s.tryLogin("203.0.114.1", "ann", wrongPassword).want(t, 401, "")
	p.none("a wrong password")
	s.notices = switchOff
	s.tryLogin("203.0.115.1", "ann", goodPassword).want(t, 200, "")
	p.none("with NOTICES=off")
}

// A thief can add events of the user, and end all of its sessions.
func TestManyEventsDoNotHideTheLoginsBeforeThem(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, proxied, unlimited)
	p := s.postbox()
	path, ann := s.verified(p, "ann")
	for i := range 200 {
		s.do(ann, "PUT", path, fmt.Sprintf(`{"username":"ann%d"}`, i)).want(t, 200, "")
	}
	s.do(ann, "POST", "/api/logout", "").want(t, 204, "")
	s.tryLogin(otherNet, "ann199", goodPassword).want(t, 200, "")
	p.only("ann@example.com", "New login")
	s.change(`INSERT INTO event (at, type, actor_id, user_id, session_id, address, changes) SELECT at, 'user_changed', 1, 1, 0, '', '' FROM event`)
	s.tryLogin(otherNet, "ann199", goodPassword).want(t, 200, "")
	p.none("a login from the network of a session")
}

func TestAFirstLoginIsNotNoticed(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.added("ann")
	runSQL(t, another(t, s.path), `UPDATE user SET email_verified_at = 1`)
	s.login("ann")
	p.none("the first login")
}

func TestAResetIsNoticedAtAVerifiedAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.added("ann")
	s.login("ann")
	runSQL(t, another(t, s.path), `UPDATE user SET email_verified_at = 1`)
	s.forgot("ann")
	s.reset(p.only("ann@example.com", "new password").code, "another long one").want(t, 200, "")
	if m := p.only("ann@example.com", "has changed"); !strings.Contains(m.text, "the password") {
		t.Errorf("the notice is\n%s", m.text)
	}
}

func TestMailSettingsThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	database := "DATABASE_URL=" + filepath.Join(t.TempDir(), "app.db")
	for name, c := range map[string]struct {
		env  []string
		want string
	}{
		"no address of the links":      {[]string{"ADDR=0.0.0.0:0", "MAIL_URL=dir:mail"}, "APP_URL"},
		"log: on a server":             {[]string{"APP_URL=https://id.example.com", "MAIL_URL=log:"}, "only for development"},
		"SMTP without a sender":        {[]string{"MAIL_URL=smtp://mail.example.com"}, "MAIL_FROM"},
		"a password without TLS":       {[]string{"MAIL_URL=smtp+plain://ann:s3cret@localhost", "MAIL_FROM=a@example.com"}, "without TLS"},
		"a webhook without a secret":   {[]string{"MAIL_URL=https://hooks.example.com"}, "MAIL_WEBHOOK_SECRET: the secret of a webhook must be whsec_"},
		"links that no mail carries":   {[]string{"REGISTRATION=verified"}, "MAIL_URL"},
		"an unknown placeholder":       {[]string{"MAIL_URL=log:", "MAIL_TEMPLATES=" + templates(t, "reset.txt", "Subject: Hi\n\n{lnk}\n")}, "reset.txt: unknown placeholder {lnk}"},
		"a text without the link":      {[]string{"MAIL_URL=log:", "MAIL_TEMPLATES=" + templates(t, "reset.txt", "Subject: Hi\n\nHello\n")}, "reset.txt: the text must contain {link}"},
		"a text of an unknown kind":    {[]string{"MAIL_URL=log:", "MAIL_TEMPLATES=" + templates(t, "rest.txt", "Subject: Hi\n\n{link}\n")}, `MAIL_TEMPLATES: "rest.txt" is not the text of a kind of mail`},
		"a text that cannot be parsed": {[]string{"MAIL_URL=log:", "MAIL_TEMPLATES=" + templates(t, "changed.txt", "Hello\n")}, "changed.txt: must begin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			userdHere(t, "", append([]string{"ADDR=127.0.0.1:0", database}, c.env...)).wantFailure(t, 2, c.want)
		})
	}
}

// templates returns a directory with one file.
func templates(t *testing.T, file, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAnOwnTextReplacesTheBuiltInOne(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.added("ann")
	s.login("ann")
	var err error
	if p.texts, err = readMailTexts(templates(t, "reset.txt", "Subject: Neues Passwort für {username}\n\nHallo {username},\n{link}\n")); err != nil {
		t.Fatal(err)
	}
	s.forgot("ann")
	if m := p.deliver(); len(m) != 1 || !strings.HasPrefix(m[0].text, "Hallo ann,\nhttps://id.example.com/reset#ur_") {
		t.Errorf("sent %+v", m)
	}
	if _, err := readMailTexts(""); err != nil {
		t.Error(err)
	}
}

// Each placeholder is replaced in each built-in text, and each link leads to the page of its code.
func TestEachTextIsComplete(t *testing.T) {
	t.Parallel()
	pages := map[codeKind]string{"": "", resetMailCode: "reset", verifyCode: "verify", inviteCode: "invite", changeCode: "change", undoCode: "undo"}
	s := newService(t, withMail)
	p := s.postbox()
	for kind, rule := range mailRules {
		m := queuedMail{id: 1, kind: kind, email: "ann@example.com", detail: "the password", address: "192.0.2.1", tries: 1}
		f := facts{user: user{id: 1, username: "ann"}, username: "ann", expires: 1}
		code := ""
		if rule.code != "" {
			code = newCode(rule.code)
		}
		sent := p.message(&m, &f, code, s.wall())
		if strings.ContainsAny(sent.Subject+sent.Text, "{}") || code != "" && !strings.Contains(sent.Text, "\nhttps://id.example.com/"+pages[rule.code]+"#"+code+"\n") {
			t.Errorf("%s: %s\n%s", kind, sent.Subject, sent.Text)
		}
		for _, line := range strings.Split(string(sent.Text), "\n") {
			if len(line) > 100 {
				t.Errorf("%s: a line has %d bytes: %s", kind, len(line), line)
			}
		}
		if _, err := sent.Bytes(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		var event map[string]any
		if err := json.Unmarshal(sent.Event, &event); err != nil || event["type"] != string(kind) {
			t.Errorf("%s: the event is %s, %v", kind, sent.Event, err)
		}
	}
}

func TestTheMetricsOfMail(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, proxied, func(c *settings) { c.mailsPerHour = 4 })
	w := s.webhook()
	s.added("ann")
	s.login("ann")
	before := s.scrape()
	s.forgot("ann")
	s.clock.add(90 * time.Second)
	if got := s.scrape(); got["userd_mails_queued"] != 1 || got["userd_mail_oldest_seconds"] != 90 {
		t.Errorf("%v mails are queued, the oldest for %v seconds; want 1 and 90", got["userd_mails_queued"], got["userd_mail_oldest_seconds"])
	}
	w.send(200, nil)
	s.forgot("ann")
	w.send(410, nil)
	s.forgot("eve")
	w.send(200, nil)
	for range 2 {
		s.forgot("ann")
	}
	s.scrape().moved(t, before, samples{
		`userd_mails_total{outcome="sent"}`:      1,
		`userd_mails_total{outcome="failed"}`:    1,
		`userd_mails_total{outcome="abandoned"}`: 1,
		`userd_mails_total{outcome="limited"}`:   1,
	})
}
