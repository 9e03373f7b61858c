package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"userd/internal/mail"
)

// verified makes registrations wait for the confirmation of their address.
func verified(c *settings) { c.registration, c.mailOn = registrationVerified, true }

// apply registers name@example.com, which an answer must accept whether it is free or not.
func (s *service) apply(name string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/register", registerBody(name, goodPassword)).want(s.t, 202, "")
}

// confirm sends the code of a registration with its password. The members are added to the
// body, each with a comma before it.
func (s *service) confirm(code, members string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/email/verify", fmt.Sprintf(`{"code":%q,"password":%q%s}`, code, goodPassword, members))
}

// wantRows fails the test unless the tables of registrations and their codes have n rows.
func (s *service) wantRows(t *testing.T, n int) {
	t.Helper()
	for _, query := range []string{`SELECT count(*) FROM user_registration`, `SELECT count(DISTINCT registration_id) FROM user_code WHERE registration_id <> 0`} {
		if got := scanStore[int](t, s, query); got != n {
			t.Errorf("%s: %d, want %d", query, got, n)
		}
	}
}

func TestARegistrationIsCompletedByItsMail(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	_, root := s.admin("root")
	s.apply("ann")
	s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).want(t, 401, "invalid_credentials")
	m := p.only("ann@example.com", "registration")
	if !strings.HasPrefix(m.code, "uv_") || !strings.Contains(m.text, "https://id.example.com/verify#"+m.code) || !strings.Contains(m.text, "Hello ann,") || strings.Contains(m.text, goodPassword) {
		t.Fatalf("the mail is\n%s", m.text)
	}
	if got := usernames(t, s.store); !slices.Equal(got, []string{"root"}) {
		t.Errorf("before the link is used, the users are %s", got)
	}
	s.do("", "GET", "/verify?code="+m.code, "") // as the scanner of a mail server does
	if r := s.do("", "POST", "/api/email/verify", `{"code":"`+m.code+`"}`).want(t, 401, "invalid_credentials"); !strings.Contains(r.field("error"), "that you chose") {
		t.Errorf("without a password, it says %s", r.body)
	}
	s.do("", "POST", "/api/email/verify", `{"password":"`+goodPassword+`"}`).want(t, 400, "missing_fields")
	s.do("", "POST", "/api/email/verify", `{"code":"`+m.code+`","password":"another long one"}`).want(t, 401, "invalid_credentials")
	r := s.confirm(" "+m.code+"\n", "").want(t, 200, "")
	if r.field("username") != "ann" || r.field("role") != "member" || r.field("email_verified_at") != "2026-05-04T03:02:01Z" || r.field("pending") != "" {
		t.Errorf("the user is %s", r.body)
	}
	s.confirm(m.code, "").want(t, 400, "invalid_code")
	s.wantRows(t, 0)
	if me := s.do(s.login("ann"), "GET", "/api/users/me", "").want(t, 200, ""); me.field("id") != r.field("id") {
		t.Errorf("the user is %s, and the answer was %s", me.body, r.body)
	}
	events := s.do(root, "GET", "/api/events?user="+r.field("id"), "")
	if got := fmt.Sprint(events.list(t, "type")); got != "[user_created login]" {
		t.Errorf("the events are %s", events.body)
	}
	p.none("after the registration")
}

// The answer must not show which names and addresses exist.
func TestARegistrationAnswersTheSameForFreeAndTakenNames(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.admin("root")
	path, _ := s.admin("gone")
	runSQL(t, another(t, s.path), `UPDATE user SET disabled = 1 WHERE id = `+strings.TrimPrefix(path, "/api/users/"))
	s.apply("waits")
	before := usernames(t, s.store)
	var first reply
	for i, row := range []struct{ claim, username, email string }{
		{"free", "free", "free@example.com"},
		{"the username is taken", "ROOT", "root2@example.com"},
		{"the address is taken", "root2", "Root@example.com"},
		{"both are taken", "root", "root@example.com"},
		{"the owner is disabled", "gone2", "gone@example.com"},
		{"another registration has both", "waits", "waits@example.com"},
	} {
		registrations, mails := scanStore[int](t, s, `SELECT count(*) FROM user_registration`), scanStore[int](t, s, `SELECT count(*) FROM user_mail`)
		r := s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":%q,"email":%q,"password":%q}`, row.username, row.email, goodPassword)).want(t, 202, "")
		r.header.Del("Date")
		r.header.Del("X-Request-Id")
		if i == 0 {
			first = r
		}
		if r.body != first.body || !maps.EqualFunc(r.header, first.header, slices.Equal) {
			t.Errorf("%s: got %v %s, want %v %s", row.claim, r.header, r.body, first.header, first.body)
		}
		// One write of the same rows each time: it takes as long.
		if n, m := scanStore[int](t, s, `SELECT count(*) FROM user_registration`), scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != registrations+1 || m != mails+1 {
			t.Errorf("%s: %d registrations and %d mails were added", row.claim, n-registrations, m-mails)
		}
	}
	if got := usernames(t, s.store); !slices.Equal(got, before) {
		t.Errorf("the users are %s, want %s", got, before)
	}
	p.deliver()
	s.apply("late")
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail WHERE state = 'queued'`); n != 1 {
		t.Errorf("the next registration queues %d mails", n)
	}
}

// An error about the body itself reveals nothing about other users.
func TestARegistrationThatIsNotValidIsRefusedImmediately(t *testing.T) {
	t.Parallel()
	s := newService(t, verified, func(c *settings) { c.emailDomains = []string{"example.com"} })
	for body, code := range map[string]string{
		`{"username":"ann","email":"ann@example.com"}`:                                         "missing_fields",
		registerBody("a b", goodPassword):                                                      "invalid_fields",
		registerBody("ann", "ann"):                                                             "invalid_fields",
		registerBody("ann", "ann-1984@example.com"[:8]):                                        "invalid_fields",
		strings.Replace(registerBody("ann", goodPassword), "@example.com", "@evil.example", 1): "invalid_fields",
	} {
		s.do("", "POST", "/api/register", body).want(t, 400, code)
	}
	s.wantRows(t, 0)
}

func TestTheOwnerOfATakenAddressIsTold(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.admin("root")
	s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"eve","email":"ROOT@example.com","password":%q}`, goodPassword)).want(t, 202, "")
	m := p.only("root@example.com", "already")
	if m.code != "" || !strings.Contains(m.text, "Hello root,") || strings.Contains(m.text, "eve") {
		t.Errorf("the mail is\n%s", m.text)
	}
	s.wantRows(t, 0)

	s.clock.add(time.Hour)
	s.apply("root")
	runSQL(t, another(t, s.path), `UPDATE user SET disabled = 1`)
	p.none("the owner is disabled")
}

// The outbox decides when it sends, so a try that failed decides nothing.
func TestAnAddressThatIsTakenBetweenTwoTries(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.apply("ann")
	works := p.transport
	p.transport = brokenTransport(t)
	p.none("the mail server is down")
	s.wantRows(t, 1)
	s.admin("ann")
	p.transport = works
	s.clock.add(time.Minute)
	p.only("ann@example.com", "already")
	s.wantRows(t, 0)

	s.clock.add(time.Hour)
	s.apply("ann")
	p.transport = brokenTransport(t)
	p.none("the mail server is down again")
	runSQL(t, another(t, s.path), `UPDATE user SET email = 'other@example.com'`)
	p.transport = works
	s.clock.add(time.Minute)
	p.none("the user has another address when the next try begins")
}

// brokenTransport returns a transport to a port on which no program listens, and none can
// until the test ends: a client has it.
func brokenTransport(t *testing.T) mail.Transport {
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
	transport, err := mail.Parse("smtp+plain://"+client.LocalAddr().String(), mail.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return transport
}

// A mail server that is down must not stop registrations.
func TestRegistrationGoesOnWhileTheMailServerIsDown(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	works := p.transport
	p.transport = brokenTransport(t)
	s.apply("ann")
	p.none("the mail server is down")
	s.apply("bob")
	p.transport = works
	s.clock.add(time.Minute)
	for _, m := range p.deliver() {
		s.confirm(m.code, "").want(t, 200, "")
	}
	s.login("ann")
	s.login("bob")
}

// A registration reserves neither its username nor its address.
func TestANameThatIsTakenMeanwhile(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.apply("ann")
	s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"ANN","email":"zoe@example.com","password":%q}`, goodPassword)).want(t, 202, "")
	mails := p.deliver()
	if len(mails) != 2 {
		t.Fatalf("%d mails", len(mails))
	}
	ann, zoe := mails[0].code, mails[1].code
	s.confirm(ann, "").want(t, 200, "")
	for range 2 {
		s.confirm(zoe, "").want(t, 400, "username_taken")
		s.confirm(zoe, `,"username":"ann"`).want(t, 400, "username_taken")
		s.confirm(zoe, `,"username":"a b"`).want(t, 400, "invalid_fields")
	}
	s.do("", "POST", "/api/email/verify", fmt.Sprintf(`{"code":%q,"password":"another long one","username":"zoe"}`, zoe)).want(t, 401, "")
	if r := s.confirm(zoe, `,"username":" zoe "`).want(t, 200, ""); r.field("username") != "zoe" || r.field("email") != "zoe@example.com" {
		t.Errorf("the user is %s", r.body)
	}

	s.apply("bob")
	code := p.only("bob@example.com", "registration").code
	s.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"bob2","email":"bob2@example.com","password":%q}`, goodPassword)).want(t, 202, "")
	second := p.only("bob2@example.com", "registration").code
	s.confirm(second, "").want(t, 200, "")
	runSQL(t, another(t, s.path), `UPDATE user SET email = 'bob@example.com' WHERE username = 'bob2'`)
	s.confirm(code, "").want(t, 400, "email_taken")
	s.confirm(code, `,"username":"bob3"`).want(t, 400, "email_taken")
}

// A new username must not equal the password, as in a registration.
func TestANewUsernameMeetsThePasswordPolicy(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.do("", "POST", "/api/register", `{"username":"ann","email":"ann@example.com","password":"correcthorsebattery"}`).want(t, 202, "")
	code := p.only("ann@example.com", "registration").code
	s.do("", "POST", "/api/email/verify", `{"code":"`+code+`","password":"correcthorsebattery","username":"CorrectHorseBattery"}`).want(t, 400, "invalid_fields")
	s.do("", "POST", "/api/email/verify", `{"code":"`+code+`","password":"correcthorsebattery"}`).want(t, 200, "")
}

// Pocket ID accepted such a code as a proof of the address in other places (GHSA-hp74-gm6m-2qm5).
func TestTheCodeOfARegistrationIsAcceptedNowhereElse(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	_, root := s.admin("root")
	s.apply("ann")
	code := p.only("ann@example.com", "registration").code
	random := code[3:]
	for _, other := range []string{code, "ur_" + random, "ul_" + random, "uc_" + random, "uu_" + random} {
		s.reset(other, newPassword).want(t, 400, "invalid_code")
	}
	s.join("eve", code).want(t, 400, "invalid_code")
	s.join("eve", "ui_"+random).want(t, 400, "invalid_code")
	s.do(code, "GET", "/api/users/me", "").want(t, 401, "invalid_token")
	s.do("", "POST", "/api/refresh", `{"refresh_token":"`+code+`"}`).want(t, 401, "invalid_token")
	// A session, even that of the user with the number of the registration, is not its password.
	s.do(root, "POST", "/api/email/verify", `{"code":"`+code+`"}`).want(t, 401, "invalid_credentials")
	s.do(root, "POST", "/api/email/verify", `{"code":"`+code+`","password":"`+newPassword+`"}`).want(t, 401, "")
	if got := s.do(root, "GET", "/api/users/me", "").field("email_verified_at"); got != "" {
		t.Errorf("it verified the address of another user: %s", got)
	}
	// Nor is a code of another kind one of a registration, even if its row says so.
	path, _ := s.admin("bob")
	link := s.resetLink(root, path)
	runSQL(t, another(t, s.path), `UPDATE user_code SET registration_id = 1 WHERE kind = 'ul'`)
	s.confirm(link, "").want(t, 400, "invalid_code")
	s.confirm("uv_"+link[3:], "").want(t, 400, "invalid_code")
	s.confirm(code, "").want(t, 200, "")
}

// Two servers on one file, and 64 clients: one code makes one user.
// The code stays valid if a name is taken, so it could be used to ask which names exist.
func TestTheNamesThatARegistrationAsksForAreLimited(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.added("ann")
	s.apply("bob")
	code := p.only("bob@example.com", "").code
	for range 60 {
		s.confirm(code, `,"username":"ann"`).want(t, 400, "username_taken")
	}
	s.confirm(code, `,"username":"ann"`).wantWait(t, 60)
	s.confirm(code, "").wantWait(t, 60)
	s.clock.add(time.Minute)
	s.confirm(code, "").want(t, 200, "")
}

func TestACodeMakesOneUser(t *testing.T) {
	t.Parallel()
	first := newService(t, verified, unlimited)
	p := first.postbox()
	second := newServiceOn(t, first.path, verified, unlimited)
	first.apply("ann")
	code := p.only("ann@example.com", "registration").code
	statuses := race(64, func(i int) int {
		return []*service{first, second}[i%2].confirm(code, fmt.Sprintf(`,"username":"ann%d"`, i)).status
	})
	// A client that waits too long for its turn to hash gets 503.
	if howMany(statuses, 200) != 1 || howMany(statuses, 400)+howMany(statuses, 503) != len(statuses)-1 {
		t.Errorf("the answers are %v", statuses)
	}
	if n := scanStore[int](t, first, `SELECT count(*) FROM event WHERE type = 'user_created'`); n != 1 || len(usernames(t, first.store)) != 1 {
		t.Errorf("%d events, and the users %s", n, usernames(t, first.store))
	}
	first.wantRows(t, 0)
}

// Two registrations for one address, and several for one name: at most one of each succeeds.
func TestRegistrationsThatCompete(t *testing.T) {
	t.Parallel()
	first := newService(t, verified, unlimited)
	p := first.postbox()
	second := newServiceOn(t, first.path, verified, unlimited)
	var codes []string
	for i := range 16 {
		first.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"ann","email":"ann%d@example.com","password":%q}`, i, goodPassword)).want(t, 202, "")
		codes = append(codes, p.only(fmt.Sprintf("ann%d@example.com", i), "registration").code)
	}
	replies := make([]reply, len(codes))
	statuses := race(len(codes), func(i int) int {
		replies[i] = []*service{first, second}[i%2].confirm(codes[i], "")
		return replies[i].status
	})
	if howMany(statuses, 200) != 1 || howMany(statuses, 400)+howMany(statuses, 503) != len(codes)-1 {
		t.Errorf("the answers are %v", statuses)
	}
	for i, r := range replies {
		if r.status == 400 {
			r.want(t, 400, "username_taken")
			first.confirm(codes[i], fmt.Sprintf(`,"username":"ann%d"`, i)).want(t, 200, "")
		}
	}
}

// The code of a registration is checked again by the write that uses it.
func TestARegistrationIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.apply("ann")
	hash, err := hashCode(verifyCode, p.only("ann@example.com", "registration").code)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.store.registrationOfCode(hash, s.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	now := s.wall().Unix()
	add := func(r *registration, hash []byte, now int64) error {
		return s.store.addRegistered(t.Context(), &user{username: "ann"}, r, hash, "", now)
	}
	s.apply("bob")
	other, err := hashCode(verifyCode, p.only("bob@example.com", "registration").code)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(claim string, r *registration, hash []byte, now int64) {
		t.Helper()
		wantError(t, claim, add(r, hash, now), errInvalidCode)
	}
	change := func(query string) { t.Helper(); runSQL(t, another(t, s.path), query) }
	refused("an expired code", &r, hash, now+registrationLife)
	refused("another registration", &registration{id: r.id + 1}, hash, now)
	refused("no code", &r, []byte("x"), now)
	refused("the code of another registration", &r, other, now)
	change(`UPDATE user_registration SET expires_at = 1`)
	refused("an expired registration", &r, hash, now)
	change(`UPDATE user_registration SET expires_at = 1 << 40`)
	change(`UPDATE user_code SET expires_at = 1`)
	refused("an expired code of a registration", &r, hash, now)
	change(`UPDATE user_code SET expires_at = 1 << 40, kind = 'ui'`)
	refused("a code of another kind", &r, hash, now)
	if _, err := s.store.registrationOfCode(hash, now); !errors.Is(err, errInvalidCode) {
		t.Errorf("a code of another kind names a registration: %v", err)
	}
	change(`UPDATE user_code SET expires_at = 1, kind = 'uv'`)
	if _, err := s.store.registrationOfCode(hash, now); !errors.Is(err, errInvalidCode) {
		t.Errorf("an expired code names a registration: %v", err)
	}
	change(`UPDATE user_code SET expires_at = 1 << 40`)
	change(`UPDATE user_registration SET expires_at = 1`)
	if _, err := s.store.registrationOfCode(hash, now); !errors.Is(err, errInvalidCode) {
		t.Errorf("a code names an expired registration: %v", err)
	}
	change(`UPDATE user_registration SET expires_at = 1 << 40`)
	wantError(t, "the code", add(&r, hash, now), nil)
	wantError(t, "the code again", add(&r, hash, now), errInvalidCode)
}

func TestRegistrationsExpire(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.apply("ann")
	s.apply("bob")
	codes := p.deliver()
	sweep := func() {
		t.Helper()
		if err := s.store.sweepCodes(t.Context(), s.wall().Unix()); err != nil {
			t.Fatal(err)
		}
	}
	s.clock.add(24*time.Hour - time.Second)
	sweep()
	s.confirm(codes[0].code, "").want(t, 200, "")
	s.wantRows(t, 1)
	s.clock.add(time.Second)
	s.confirm(codes[1].code, "").want(t, 400, "invalid_code")
	sweep()
	s.wantRows(t, 0)
	s.apply("cas") // its mail cannot leave for a day
	s.clock.add(25 * time.Hour)
	p.none("the registration has expired")
	sweep() // although no code has expired
	s.wantRows(t, 0)
}

// The outbox keeps a sent mail for a week, and an unsent one until it ends.
func TestClosedMailsAreDeletedAfterAWeek(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.apply("ann")
	p.only("ann@example.com", "registration")
	s.apply("bob")
	for _, step := range []struct {
		after time.Duration
		left  int
	}{{5 * time.Hour, 2}, {7*24*time.Hour - 5*time.Hour - time.Second, 2}, {time.Second, 1}, {30 * 24 * time.Hour, 1}} {
		s.clock.add(step.after)
		if err := s.store.sweepCodes(t.Context(), s.wall().Unix()); err != nil {
			t.Fatal(err)
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != step.left {
			t.Errorf("after %s more, %d mails are left, want %d", step.after, n, step.left)
		}
	}
}

// An operator who closes the registration expects that no more users are added.
func TestTheSettingsApplyWhenARegistrationIsCompleted(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim  string
		change func(c *settings)
		status int
		code   string
	}{
		{"closed", func(c *settings) { c.registration = registrationClosed }, 403, "registration_closed"},
		{"by invitation", func(c *settings) { c.registration = registrationInvite }, 403, "invitation_required"},
		{"by approval", func(c *settings) { c.registration = registrationApproval }, 200, ""},
		{"open", func(c *settings) { c.registration = registrationOpen }, 200, ""},
		{"for other domains", func(c *settings) { c.emailDomains = []string{"example.org"} }, 400, "invalid_fields"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t, verified)
			p := s.postbox()
			s.apply("ann")
			code := p.only("ann@example.com", "registration").code
			later := newServiceOn(t, s.path, verified, row.change)
			r := later.confirm(code, "").want(t, row.status, row.code)
			if waits := r.field("pending") == "true"; waits != (later.registration == registrationApproval) {
				t.Errorf("got %s", r.body)
			}
		})
	}
}

// Closed registration must not shut out the invited, nor one that is verified.
func TestAnInvitedUserNeedsNoConfirmation(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	_, root := s.admin("root")
	code, _ := s.invitation(root, "")
	s.join("root", code).want(t, 400, "username_taken")
	s.join("ann", code).want(t, 201, "")
	s.login("ann")
}

// Over the limits, the answer stays the same and no mail is queued.
func TestTheMailsOfRegistrationsAreLimited(t *testing.T) {
	t.Parallel()
	t.Run("by all strangers", func(t *testing.T) {
		t.Parallel()
		s := newService(t, verified, unlimited, func(c *settings) { c.mailsPerHour = 2 })
		p := s.postbox()
		for i := range 4 {
			s.apply(fmt.Sprintf("user%d", i))
		}
		if n := len(p.deliver()); n != 2 {
			t.Errorf("%d mails", n)
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM user_registration`); n != 2 {
			t.Errorf("%d registrations", n)
		}
	})
	t.Run("by network", func(t *testing.T) {
		t.Parallel()
		s := newService(t, verified)
		burst := s.limiter.allowances[mails].Burst
		for i := range burst + 3 {
			s.apply(fmt.Sprintf("user%d", i))
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != burst {
			t.Errorf("%d mails, want %d", n, burst)
		}
	})
	t.Run("by address, apart from its reset links", func(t *testing.T) {
		t.Parallel()
		s := newService(t, verified, unlimited)
		p := s.postbox()
		s.admin("root")
		s.apply("ann")
		p.only("ann@example.com", "registration")
		s.apply("ann")
		p.none("a second one in a minute")
		s.clock.add(time.Minute)
		s.apply("ann")
		p.only("ann@example.com", "registration")

		s.apply("root")
		p.only("root@example.com", "already")
		s.apply("root")
		p.none("a second one in a minute")
		runSQL(t, another(t, s.path), `DELETE FROM session`, `DELETE FROM event`) // so that the network is not a known one
		s.forgot("root")
		p.only("root@example.com", "password")
	})
}

// Registrations and users have separate ids. A network that completes a registration must not
// become known for the user with the same id, nor for names that do not exist.
func TestAGuessAtARegistrationCountsForNoUser(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	u := user{username: "root", email: "root@example.com", role: admin}
	if err := s.addUser(t.Context(), console, &u, goodPassword); err != nil {
		t.Fatal(err)
	}
	s.apply("ann")
	if id := scanStore[int64](t, s, `SELECT id FROM user_registration`); id != u.id {
		t.Fatalf("the registration has the id %d, and the user %d", id, u.id)
	}
	code := p.only("ann@example.com", "registration").code
	s.confirm(code, "").want(t, 200, "")
	login := func(name string) reply {
		return s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":"not the password"}`, name))
	}
	for i := range s.limiter.allowances[networkFailures].Burst {
		login(fmt.Sprintf("nobody%d", i)).want(t, 401, "")
	}
	login("root").want(t, 429, "too_many_requests")
	login("nobody").want(t, 429, "too_many_requests")
}

func TestGuessesAtThePasswordOfARegistrationAreLimited(t *testing.T) {
	t.Parallel()
	s := newService(t, verified)
	p := s.postbox()
	s.apply("ann")
	code := p.only("ann@example.com", "registration").code
	guess := func() reply {
		return s.do("", "POST", "/api/email/verify", `{"code":"`+code+`","password":"not the password"}`)
	}
	for range freeFailures {
		guess().want(t, 401, "")
	}
	guess().want(t, 429, "too_many_requests")
	s.confirm(code, "").want(t, 429, "too_many_requests")
	s.clock.add(maxDelay)
	s.confirm(code, "").want(t, 200, "")
}

func TestVerifiedRegistrationRequiresMail(t *testing.T) {
	t.Parallel()
	c := &config{settings: settings{registration: registrationVerified}}
	if _, err := newOutbox(c, true, io.Discard); err == nil || !strings.Contains(err.Error(), "MAIL_URL") {
		t.Errorf("got the error %v", err)
	}
	environ := []string{"DATABASE_URL=" + filepath.Join(t.TempDir(), "app.db"), "ADDR=127.0.0.1:0", "REGISTRATION=verified"}
	userdHere(t, "", environ).wantFailure(t, 2, "REGISTRATION=verified", "MAIL_URL")
}

func TestAnInvitationForAnAddressIsMailed(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, func(c *settings) { c.registration = registrationClosed })
	p := s.postbox()
	_, root := s.admin("root")
	link, _ := s.invitation(root, `{"email":"ann@example.com","expires_in":7200}`)
	s.invitation(root, `{"username":"bob"}`)
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != 1 {
		t.Errorf("%d mails are queued, want only that for the address", n)
	}
	m := p.only("ann@example.com", "invitation")
	if m.code == link || !strings.HasPrefix(m.code, "ui_") || !strings.Contains(m.text, "4 May 2026, 05:02 UTC") {
		t.Fatalf("the mail is\n%s", m.text)
	}
	s.join("eve", m.code).want(t, 400, "invalid_fields")
	s.join("ann", m.code).want(t, 201, "")
	s.join("ann", link).want(t, 400, "invalid_code") // one use, whatever the link
	if s.do(s.login("ann"), "GET", "/api/users/me", "").field("email_verified_at") == "" {
		t.Error("the address is not verified")
	}
	events := s.do(root, "GET", "/api/events?type=invitation_used", "")
	if got := fmt.Sprint(events.list(t, "user_id"), events.list(t, "changes")); got != "[2] [[invitation=1]]" {
		t.Errorf("the events are %s", events.body)
	}
	p.none("after the registration")
}

// An invitation can be sent again, also while the mail server is down.
func TestAnInvitationIsSentAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	_, root := s.admin("root")
	_, ann := s.member("ann")
	p.deliver()
	link, id := s.invitation(root, `{"email":"bob@example.com"}`)
	path := "/api/invitations/" + id + "/send"
	first := p.only("bob@example.com", "invitation").code
	s.do(root, "POST", path, "").want(t, 202, "")
	second := p.only("bob@example.com", "invitation").code
	if link == first || first == second {
		t.Error("a code was sent twice")
	}
	works := p.transport
	p.transport = brokenTransport(t)
	s.do(root, "POST", path, `{"current_password":"`+goodPassword+`"}`).want(t, 202, "")
	p.none("the mail server is down")
	p.transport = works
	s.clock.add(time.Minute)
	p.only("bob@example.com", "invitation")

	s.do("", "POST", path, "").want(t, 401, "missing_token")
	s.do(ann, "POST", path, "").want(t, 403, "forbidden")
	s.do(refreshed(s, "root"), "POST", path, "").want(t, 401, "fresh_login_required")
	s.do(root, "POST", path, `{"current_password":"x"}`).want(t, 401, "wrong_password")
	s.do(root, "POST", "/api/invitations/99/send", "").want(t, 404, "invitation_not_found")
	s.do(root, "POST", "/api/invitations/x/send", "").want(t, 404, "invitation_not_found")
	_, anyone := s.invitation(root, "")
	s.do(root, "POST", "/api/invitations/"+anyone+"/send", "").want(t, 409, "invitation_not_sendable")
	s.join("bob", first).want(t, 201, "") // an older link is as good
	s.join("bob", second).want(t, 400, "invalid_code")
	s.do(root, "POST", path, "").want(t, 409, "invitation_not_sendable")
	p.none("refused requests")
	_, late := s.invitation(root, `{"email":"cas@example.com","expires_in":3600}`)
	s.clock.add(time.Hour)
	s.do(s.login("root"), "POST", "/api/invitations/"+late+"/send", "").want(t, 404, "invitation_not_found")

	off := newService(t)
	_, root = off.admin("root")
	_, id = off.invitation(root, `{"email":"bob@example.com"}`)
	off.do(root, "POST", "/api/invitations/"+id+"/send", "").want(t, 403, "mail_off")
	if n := scanStore[int](t, off, `SELECT count(*) FROM user_mail`); n != 0 {
		t.Errorf("without mail, %d mails are queued", n)
	}
}

// The write checks the rights of the caller, and the outbox checks the invitation again.
func TestAMailedInvitationThatIsNotValidAnyMore(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	rootPath, root := s.admin("root")
	_, boss := s.admin("boss")
	_, id := s.invitation(root, `{"email":"ann@example.com"}`)
	s.do(root, "DELETE", "/api/invitations/"+id, "").want(t, 204, "")
	p.none("the invitation is deleted")
	s.invitation(root, `{"email":"bob@example.com"}`)
	sent := p.only("bob@example.com", "invitation").code
	s.invitation(root, `{"email":"cas@example.com"}`)
	s.do(boss, "PUT", rootPath, `{"role":"member"}`).want(t, 200, "")
	p.none("its maker is demoted")
	s.join("bob", sent).want(t, 400, "invalid_code")
	m := queuedMail{kind: inviteMail, subjectID: 2}
	wantError(t, "a stranger sends", s.store.sendInvitation(t.Context(), caller{kind: strangerCaller}, &m), errForbidden)
}

func TestTheCommandLineListsAndDeletesInvitations(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	s.invitation(root, `{"email":"ann@example.com"}`)
	code, _ := s.invitation(root, `{"uses":3}`)
	runSQL(t, another(t, s.path), `UPDATE user_invitation SET expires_at = 4102444800`) // the command's clock is not the test's
	sh := &shell{t, s.path}
	table, _ := sh.run(0, "", "invitation", "list")
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "ID EMAIL USERNAME ROLE USES LEFT CREATED EXPIRES" ||
		!strings.Contains(lines[1], "ann@example.com") || !strings.Contains(lines[2], "member") || strings.Contains(table, code[3:]) {
		t.Errorf("the list is\n%s", table)
	}
	answer := s.do(root, "GET", "/api/invitations", "").want(t, 200, "").body
	out, _ := sh.run(0, "", "invitation", "list", "-json")
	if got := "[" + strings.ReplaceAll(strings.TrimSpace(out), "\n", ",") + "]\n"; got != answer {
		t.Errorf("got %s, want %s", got, answer)
	}
	if out, _ := sh.run(0, "", "invitation", "delete", "2"); out != "deleted invitation 2\n" {
		t.Errorf("it says %q", out)
	}
	s.join("bob", code).want(t, 400, "invalid_code")
	if _, text := sh.run(1, "", "invitation", "delete", "2"); !strings.Contains(text, "Invitation not found") {
		t.Errorf("it says %q", text)
	}
	sh.run(2, "", "invitation", "delete", "x")
	if got := s.do(root, "GET", "/api/invitations", "").list(t, "id"); !slices.Equal(got, []string{"1"}) {
		t.Errorf("the invitations are %s", got)
	}
}

func TestWithoutMailNoAdminIsTold(t *testing.T) {
	t.Parallel()
	s := newService(t, byApproval)
	s.verifiedAdmin("root")
	s.register("ann")
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != 0 {
		t.Errorf("%d mails are queued", n)
	}
}

// approving is byApproval with mail.
func approving(c *settings) { c.registration, c.mailOn = registrationApproval, true }

// wait registers a user that waits for approval, without the mail to its own address, and
// returns its path.
func (s *service) wait(t *testing.T, name string) (path string) {
	t.Helper()
	path, _ = s.register(name)
	runSQL(t, another(t, s.path), `DELETE FROM user_mail WHERE kind = 'verify'`)
	return path
}

// verifiedAdmin adds an admin whose address is verified, and returns its path.
func (s *service) verifiedAdmin(name string) (path, token string) {
	s.t.Helper()
	path, token = s.admin(name)
	s.do(token, "PUT", path, `{"email_verified":true}`).want(s.t, 200, "")
	return path, token
}

func TestAdminsAreToldOfWaitingUsers(t *testing.T) {
	t.Parallel()
	s := newService(t, approving)
	p := s.postbox()
	_, root := s.verifiedAdmin("root")
	s.admin("unverified")
	disabled, _ := s.verifiedAdmin("disabled")
	s.do(root, "PUT", disabled, `{"disabled":true}`).want(t, 200, "")
	ann := s.wait(t, "ann")
	s.wait(t, "bob")
	m := p.only("root@example.com", "wait")
	if m.code != "" || !strings.Contains(m.text, "Hello root,") {
		t.Errorf("the mail is\n%s", m.text)
	}
	s.wait(t, "cas")
	p.none("within the hour")
	s.clock.add(59 * time.Minute)
	s.wait(t, "dan")
	p.none("59 minutes later")
	s.clock.add(time.Minute)
	p.only("root@example.com", "wait")

	// The mail that was queued for later is sent an hour after the last one, not after its own start.
	s.wait(t, "eva")
	s.clock.add(30 * time.Minute)
	p.none("half an hour later")
	s.clock.add(30 * time.Minute)
	p.only("root@example.com", "wait")
	s.wait(t, "fay")
	p.none("right after it")

	// Nothing is sent if no user waits any more, and the next one that does is announced.
	root = s.login("root")
	s.do(root, "POST", ann+"/approve", "").want(t, 200, "")
	for _, id := range s.do(root, "GET", "/api/users?pending=true", "").list(t, "id") {
		s.do(root, "POST", "/api/users/"+id+"/approve", "").want(t, 200, "")
	}
	s.clock.add(2 * time.Hour)
	p.none("no user waits")
	s.wait(t, "gus")
	p.only("root@example.com", "wait")

	// An admin that has lost the rights, or whose address is not verified any more, gets none.
	for _, change := range []string{"role = 'member'", "disabled = 1", "email = 'x@example.com'"} {
		s.clock.add(2 * time.Hour)
		s.wait(t, fmt.Sprint("hal", len(change)))
		runSQL(t, another(t, s.path), `UPDATE user SET `+change+` WHERE username = 'root'`)
		p.none(change)
		runSQL(t, another(t, s.path), `UPDATE user SET role = 'admin', disabled = 0, email = 'root@example.com' WHERE username = 'root'`)
	}
	s.clock.add(2 * time.Hour)
	s.wait(t, "ida")
	runSQL(t, another(t, s.path), `UPDATE user SET email_verified_at = 0`)
	p.none("the address is not verified")
}

// If the mail server refuses a mail, or the clock is set back, an admin is still not
// mailed more than hourly.
func TestAdminsAreMailedAtMostHourly(t *testing.T) {
	t.Parallel()
	s := newService(t, approving)
	p := s.postbox()
	s.verifiedAdmin("root")
	s.wait(t, "ann")
	p.only("root@example.com", "wait")
	s.clock.set(s.wall().Add(-48 * time.Hour))
	for i := range 5 {
		s.wait(t, fmt.Sprintf("user%d", i))
		p.none("the clock was set back")
	}
	s.clock.add(time.Hour)
	p.only("root@example.com", "wait")
	s.wait(t, "bob")
	runSQL(t, another(t, s.path), `UPDATE user_mail SET state = 'failed', closed_at = next_try_at WHERE state = 'queued'`)
	s.wait(t, "cas")
	p.none("after a mail that failed")
}

// A stranger can register many users. That must not write many rows.
func TestOneMailWaitsForEachOfFiftyAdmins(t *testing.T) {
	t.Parallel()
	s := newService(t, approving)
	for i := range 52 {
		u := user{username: fmt.Sprintf("admin%d", i), email: fmt.Sprintf("admin%d@example.com", i), role: admin}
		if err := s.store.addUser(t.Context(), console, &u, "hash", 1); err != nil {
			t.Fatal(err)
		}
	}
	runSQL(t, another(t, s.path), `UPDATE user SET email_verified_at = 1`)
	s.wait(t, "ann")
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != 50 {
		t.Errorf("%d mails", n)
	}
	s.wait(t, "bob")
	if n := scanStore[int](t, s, `SELECT max(n) FROM (SELECT count(*) AS n FROM user_mail GROUP BY user_id)`); n != 1 {
		t.Errorf("%d mails wait for one admin", n)
	}
}
