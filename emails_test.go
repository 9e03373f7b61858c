package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sendCode sends a code to one of the routes of addresses: verify, change or undo.
func (s *service) sendCode(token, route, code string) reply {
	s.t.Helper()
	return s.do(token, "POST", "/api/email/"+route, fmt.Sprintf(`{"code":%q}`, code))
}

// sendPassword sends a verify code and a password.
func (s *service) sendPassword(code, password string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/email/verify", fmt.Sprintf(`{"code":%q,"password":%q}`, code, password))
}

// verified registers a member that verifies its address, and returns its path and token.
func (s *service) verified(p *postbox, name string) (path, token string) {
	s.t.Helper()
	path, token = s.member(name)
	s.sendCode(token, "verify", p.only(name+"@example.com", "Confirm").code).want(s.t, 200, "")
	return path, token
}

// setEmail lets a user set its address to one that it must confirm, and returns the code.
func (s *service) setEmail(p *postbox, token, path, email string) (code string) {
	s.t.Helper()
	s.do(token, "PUT", path, fmt.Sprintf(`{"email":%q}`, email)).want(s.t, 200, "")
	return p.only(email, "new e-mail address").code
}

// moved registers a verified member that then changes its address, and returns its path, its
// token and the code that undoes the change.
func (s *service) moved(p *postbox, name, email string) (path, token, undo string) {
	s.t.Helper()
	path, token = s.verified(p, name)
	s.sendCode("", "change", s.setEmail(p, token, path, email)).want(s.t, 200, "")
	return path, token, p.only(name+"@example.com", "has changed").code
}

// undone returns the reset code of an undo that restored the address to, and fails the test
// unless the address from, which it replaced, got a notice and nothing else.
func (p *postbox) undone(to, from string) (code string) {
	p.t.Helper()
	for _, m := range p.deliver() {
		switch {
		case m.to == to && m.code != "" && code == "":
			code = m.code
		case m.to == from && strings.Contains(m.text, "the e-mail address and the password.") && m.code == "":
			from = ""
		default:
			p.t.Errorf("sent a mail to %s about %q", m.to, m.subject)
		}
	}
	if code == "" || from != "" {
		p.t.Fatal("the reset link or the notice is missing")
	}
	return code
}

// eventsOf returns the types of a user's events, the oldest first.
func (s *service) eventsOf(t *testing.T, path string) string {
	t.Helper()
	return scanStore[string](t, s, `SELECT coalesce(group_concat(type, ' ' ORDER BY id), '') FROM event WHERE user_id = `+path[strings.LastIndexByte(path, '/')+1:])
}

// queued returns the kinds of all mails, the oldest first.
func (s *service) queued(t *testing.T) string {
	t.Helper()
	return scanStore[string](t, s, `SELECT coalesce(group_concat(kind, ' ' ORDER BY id), '') FROM user_mail`)
}

func TestAMemberVerifiesItsAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.member("ann")
	before := s.do(ann, "GET", path, "").want(t, 200, "")
	if before.field("email_verified_at") != "" {
		t.Fatalf("a registration verified the address: %s", before.body)
	}
	first := p.only("ann@example.com", "Confirm").code
	s.clock.add(2 * time.Minute)
	s.do(ann, "POST", path+"/email/verify", "").want(t, 202, "")
	second := p.only("ann@example.com", "Confirm").code

	r := s.sendCode(ann, "verify", second).want(t, 200, "")
	if r.field("email_verified_at") != "2026-05-04T03:04:01Z" || r.field("last_login_at") == "" || r.header.Get("ETag") == before.header.Get("ETag") {
		t.Errorf("got %s %s", r.header.Get("ETag"), r.body)
	}
	for _, code := range []string{first, second} {
		s.sendCode(ann, "verify", code).want(t, 400, "invalid_code")
	}
	s.do(ann, "POST", path+"/email/verify", "").want(t, 409, "already_verified")
	if got := s.eventsOf(t, path); got != "user_created login email_verified" {
		t.Errorf("the events are %s", got)
	}
	p.none("after the verification")
}

func TestAVerificationEndsOnlyVerifyCodes(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	_, root := s.admin("root")
	path, ann, _ := s.moved(p, "ann", "next@example.net") // which leaves an undo code
	s.do(root, "PUT", path, `{"email_verified":false}`).want(t, 200, "")
	s.resetLink(root, path)
	s.forgot("ann")
	p.only("next@example.net", "password")
	s.setEmail(p, ann, path, "third@example.net")
	s.do(ann, "POST", path+"/email/verify", "").want(t, 202, "")
	s.sendCode(ann, "verify", p.only("next@example.net", "Confirm").code).want(t, 200, "")
	if got := scanStore[string](t, s, `SELECT group_concat(kind, ' ' ORDER BY kind) FROM user_code`); got != "uc ul ur uu" {
		t.Errorf("the codes that are left are %s", got)
	}
}

// A verify code proves only that its holder reads the mails.
func TestAVerifyCodeRequiresTheUserToo(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.member("ann")
	code := p.only("ann@example.com", "Confirm").code
	_, bob := s.member("bob")
	_, root := s.admin("root")
	ended := s.login("ann")
	s.do(ended, "POST", "/api/logout", "").want(t, 204, "")

	s.sendCode("", "verify", code).want(t, 401, "missing_token")
	s.sendCode(bob, "verify", code).want(t, 401, "invalid_credentials")
	s.sendCode(root, "verify", code).want(t, 401, "invalid_credentials")
	s.sendCode(ended, "verify", code).want(t, 401, "session_ended")
	s.sendCode("x", "verify", code).want(t, 401, "invalid_token")
	s.sendPassword(code, "wrong").want(t, 401, "invalid_credentials")
	if r := s.do(ann, "GET", path, ""); r.field("email_verified_at") != "" || strings.Contains(s.eventsOf(t, path), "verified") {
		t.Fatalf("it is verified: %s", r.body)
	}
	s.sendPassword(code, goodPassword).want(t, 200, "") // so none of these used it up
}

// The password counts like one of a login.
func TestThePasswordsOfAVerificationAreLimited(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.register("ann")
	code := p.only("ann@example.com", "Confirm").code
	for range freeFailures {
		s.sendPassword(code, "wrong").want(t, 401, "invalid_credentials")
	}
	s.sendPassword(code, goodPassword).wantWait(t, 2)
	s.tryLogin("", "ann", goodPassword).wantWait(t, 2)
	s.clock.add(2 * time.Second)
	s.sendPassword(code, goodPassword).want(t, 200, "")
}

// Another person registered with ann's address before ann did.
func TestARegistrationWithTheAddressOfAnotherPerson(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	s.do("", "POST", "/api/register", `{"username":"mallory","email":"ann@example.com","password":"`+goodPassword+`"}`).want(t, 201, "")
	mallory, refresh := s.pair("mallory")
	code := p.only("ann@example.com", "Confirm").code // ann opens the link
	s.sendCode("", "verify", code).want(t, 401, "missing_token")
	s.sendPassword(code, "the password of ann").want(t, 401, "invalid_credentials")
	if r := s.do(mallory, "GET", "/api/users/me", ""); r.field("email_verified_at") != "" {
		t.Fatalf("ann verified the user of another person: %s", r.body)
	}
	next := s.setEmail(p, mallory, "/api/users/me", "mallory@example.net") // to come back later
	s.clock.add(2 * time.Minute)
	s.forgot("ann@example.com")
	s.reset(p.only("ann@example.com", "password").code, newPassword).want(t, 200, "")

	s.do(mallory, "GET", "/api/users/me", "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/refresh", `{"refresh_token":"`+refresh+`"}`).want(t, 401, "session_ended")
	s.tryLogin("", "mallory", goodPassword).want(t, 401, "invalid_credentials")
	s.sendCode("", "change", next).want(t, 400, "invalid_code")
	s.sendPassword(code, goodPassword).want(t, 400, "invalid_code")
	r := s.do("", "POST", "/api/login", `{"username":"ann@example.com","password":"`+newPassword+`"}`).want(t, 200, "")
	me := s.do(r.field("access_token"), "GET", "/api/users/me", "")
	if me.field("email_verified_at") == "" || me.field("pending_email") != "" {
		t.Errorf("got %s", me.body)
	}
}

func TestWhichNewUsersGetAVerifyMail(t *testing.T) {
	t.Parallel()
	body := `{"username":"bob","email":"bob@example.com","password":"` + goodPassword + `"}`
	with := func(code string) string { return body[:len(body)-1] + `,"invitation":"` + code + `"}` }
	for _, row := range []struct {
		claim        string
		registration registrationMode
		add          func(s *service) reply
		mail         string
	}{
		{"an open registration", registrationOpen, func(s *service) reply { return s.do("", "POST", "/api/register", body) }, "verify"},
		{"one that waits for approval", registrationApproval, func(s *service) reply { return s.do("", "POST", "/api/register", body) }, "verify"},
		{"an invited user", registrationInvite, func(s *service) reply {
			_, root := s.admin("root")
			link := s.do(root, "POST", "/api/invitations", "{}").want(t, 201, "").field("url")
			return s.do("", "POST", "/api/register", with(linkCode(link)))
		}, "verify"},
		{"but not one whose address the invitation verified", registrationInvite, func(s *service) reply {
			_, root := s.admin("root")
			link := s.do(root, "POST", "/api/invitations", `{"email":"bob@example.com"}`).want(t, 201, "").field("url")
			return s.do("", "POST", "/api/register", with(linkCode(link)))
		}, "invite"},
		{"nor one that an admin added", registrationOpen, func(s *service) reply {
			_, root := s.admin("root")
			return s.do(root, "POST", "/api/users", body)
		}, ""},
		{"nor one if mail is off", registrationOpen, func(s *service) reply {
			s.mailOn = false
			return s.do("", "POST", "/api/register", body)
		}, ""},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail, func(c *settings) { c.registration = row.registration })
			row.add(s).want(t, 201, "")
			if got := s.queued(t); got != row.mail {
				t.Errorf("queued %q, want %q", got, row.mail)
			}
			if row.mail != "verify" {
				return
			}
			code := s.postbox().only("bob@example.com", "Confirm").code
			s.sendPassword(code, goodPassword).want(t, 200, "")
		})
	}
	t.Run("a registration that fails sends none", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail)
		s.admin("bob")
		s.do("", "POST", "/api/register", body).want(t, 400, "username_taken")
		if got := s.queued(t); got != "" {
			t.Errorf("queued %q", got)
		}
	})
	t.Run("a network can cause only some", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail)
		burst := s.limiter.allowances[mails].Burst
		for i := range burst + 3 {
			s.register(fmt.Sprintf("user%d", i))
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != burst {
			t.Errorf("queued %d mails, want %d", n, burst)
		}
	})
}

func TestAVerifyMailIsSentAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.member("ann")
	p.only("ann@example.com", "Confirm")
	_, bob := s.member("bob")
	_, root := s.admin("root")
	p.only("bob@example.com", "Confirm")
	s.do("", "POST", path+"/email/verify", "").want(t, 401, "missing_token")
	s.do(bob, "POST", path+"/email/verify", "").want(t, 403, "forbidden")
	s.do(root, "POST", "/api/users/999/email/verify", "").want(t, 404, "user_not_found")
	s.do(ann, "POST", "/api/users/me/email/verify", "").want(t, 202, "")
	p.none("within a minute of the first")
	s.clock.add(time.Minute)
	s.do(root, "POST", path+"/email/verify", "").want(t, 202, "")
	s.sendCode(ann, "verify", p.only("ann@example.com", "Confirm").code).want(t, 200, "")
	s.do(root, "POST", path+"/email/verify", "").want(t, 409, "already_verified")

	s.do(root, "PUT", "/api/users/2", `{"disabled":true}`).want(t, 200, "")
	s.do(root, "POST", "/api/users/2/email/verify", "").want(t, 403, "user_disabled")
	s.mailOn = false
	s.do(ann, "POST", path+"/email/verify", "").want(t, 403, "mail_off")
	p.none("nor later")
}

func TestAMemberChangesItsAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.verified(p, "ann")
	other := s.login("ann")
	tag := s.do(ann, "GET", path, "").header.Get("ETag")
	r := s.do(ann, "PUT", path, `{"email":" Next@example.net ","username":"annette"}`).want(t, 200, "")
	if r.field("email") != "ann@example.com" || r.field("pending_email") != "Next@example.net" || r.field("username") != "annette" ||
		r.field("email_verified_at") == "" || r.header.Get("ETag") == tag {
		t.Fatalf("got %s %s", r.header.Get("ETag"), r.body)
	}
	m := p.only("Next@example.net", "new e-mail address")
	if !strings.HasPrefix(m.code, "uc_") || !strings.Contains(m.text, "/change#") {
		t.Errorf("the mail has the code %q:\n%s", m.code, m.text)
	}
	s.tryLogin("", "next@example.net", goodPassword).want(t, 401, "invalid_credentials")
	s.clock.add(time.Minute)
	s.notices = switchOff // does not stop the mail that undoes the change
	done := s.sendCode("", "change", m.code).want(t, 200, "")
	if done.body != `{"id":1,"username":"annette","email":"Next@example.net"}`+"\n" {
		t.Errorf("got %s", done.body)
	}
	s.sendCode("", "change", m.code).want(t, 400, "invalid_code")
	for _, token := range []string{ann, other} {
		me := s.do(token, "GET", path, "").want(t, 200, "")
		if me.field("email") != "Next@example.net" || strings.Contains(me.body, "pending_email") || me.field("email_verified_at") != "2026-05-04T03:03:01Z" {
			t.Errorf("got %s", me.body)
		}
	}
	undo := p.only("ann@example.com", "has changed")
	if !strings.HasPrefix(undo.code, "uu_") || !strings.Contains(undo.text, "is now Next@example.net") {
		t.Errorf("the mail has the code %q:\n%s", undo.code, undo.text)
	}
	if got := s.eventsOf(t, path); !strings.HasSuffix(got, " user_changed email_changed") {
		t.Errorf("the events are %s", got)
	}
	if got := scanStore[string](t, s, `SELECT changes FROM event WHERE type = 'user_changed'`); got != "username,pending_email" {
		t.Errorf("the event has the changes %s", got)
	}
}

// A new password ends an earlier change that waits, but not the one of the same request.
func TestANewAddressAndANewPasswordInOneRequest(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.verified(p, "ann")
	earlier := s.setEmail(p, ann, path, "next@example.net")
	r := s.do(ann, "PUT", path, `{"email":"third@example.net","password":"`+newPassword+`"}`).want(t, 200, "")
	if r.field("pending_email") != "third@example.net" || r.field("access_token") == "" {
		t.Errorf("got %s", r.body)
	}
	list := p.deliver() // to ann@example.com, about the password, and to third@example.net
	if len(list) != 2 || list[0].code != "" || list[1].to != "third@example.net" {
		t.Fatalf("sent %+v", list)
	}
	s.sendCode("", "change", earlier).want(t, 400, "invalid_code")
	s.sendCode("", "change", list[1].code).want(t, 200, "")
	s.do(r.field("access_token"), "GET", path, "").want(t, 200, "")
}

// An address that was only a claim gets no mail about its end.
func TestAnAddressThatIsNotVerifiedGetsNoNotice(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.member("ann")
	_, root := s.admin("root")
	p.only("ann@example.com", "Confirm")
	s.do(ann, "PUT", path, `{"password":"`+newPassword+`"}`).want(t, 200, "")
	r := s.do("", "POST", "/api/login", `{"username":"ann","password":"`+newPassword+`"}`)
	s.sendCode("", "change", s.setEmail(p, r.field("access_token"), path, "next@example.net")).want(t, 200, "")
	s.do(root, "PUT", path, `{"email":"third@example.net"}`).want(t, 200, "") // next was verified by its code
	p.only("next@example.net", "has changed")
	s.do(root, "PUT", path, `{"email":"fourth@example.net","password":"another long one"}`).want(t, 200, "")
	p.none("to third@example.net")
}

func TestWhoMustConfirmANewAddress(t *testing.T) {
	t.Parallel()
	only := func(c *settings) { c.emailDomains = []string{"example.com"} }
	t.Run("an admin changes its own and others immediately", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, only)
		p := s.postbox()
		path, ann := s.verified(p, "ann")
		_, root := s.admin("root")
		s.do(root, "PUT", "/api/users/me", `{"email_verified":true}`).want(t, 200, "")
		s.setEmail(p, ann, path, "next@example.com")
		for _, row := range []struct{ path, old string }{{path, "ann@example.com"}, {"/api/users/me", "root@example.com"}} {
			r := s.do(root, "PUT", row.path, `{"email":"`+row.old[:3]+`@example.net"}`).want(t, 200, "")
			if r.field("email") != row.old[:3]+"@example.net" || r.field("email_verified_at") != "" || r.field("pending_email") != "" {
				t.Errorf("got %s", r.body)
			}
			m := p.only(row.old, "has changed")
			if m.code != "" || !strings.Contains(m.text, "the e-mail address") {
				t.Errorf("the notice has the code %q:\n%s", m.code, m.text)
			}
		}
	})
	t.Run("a member without mail changes it immediately", func(t *testing.T) {
		t.Parallel()
		s := newService(t, only)
		path, ann := s.member("ann")
		r := s.do(ann, "PUT", path, `{"email":"next@example.net"}`).want(t, 200, "")
		if r.field("email") != "next@example.net" || r.field("pending_email") != "" || s.queued(t) != "" {
			t.Errorf("got %s, and queued %q", r.body, s.queued(t))
		}
	})
	t.Run("a new address must be at one of the domains", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, only)
		p := s.postbox()
		path, ann := s.verified(p, "ann")
		r := s.do(ann, "PUT", path, `{"email":"next@example.net"}`).want(t, 400, "invalid_fields")
		if !strings.Contains(r.body, `"email":"must be an address at example.com"`) {
			t.Errorf("got %s", r.body)
		}
		s.do(ann, "PUT", path, `{"email":"not an address"}`).want(t, 400, "invalid_fields")
		p.none("a refused change")
		s.setEmail(p, ann, path, "next@example.com")
	})
	t.Run("a change requires proof", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail)
		p := s.postbox()
		path, ann := s.verified(p, "ann")
		stale := refreshed(s, "ann")
		s.do(stale, "PUT", path, `{"email":"next@example.net"}`).want(t, 401, "fresh_login_required")
		p.none("a change without proof")
		s.setEmail(p, ann, path, "next@example.net")
		s.do(stale, "PUT", path, `{"email":"ann@example.com"}`).want(t, 200, "") // to cancel it requires none
	})
	t.Run("a taken address is refused", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail)
		p := s.postbox()
		path, ann := s.verified(p, "ann")
		s.admin("bob")
		s.do(ann, "PUT", path, `{"email":"BOB@example.com"}`).want(t, 400, "email_taken")
		code := s.setEmail(p, ann, path, "next@example.com")
		s.admin("next")
		s.sendCode("", "change", code).want(t, 400, "email_taken")
		p.none("after the refusal")
		if r := s.do(ann, "GET", path, ""); r.field("email") != "ann@example.com" || r.field("pending_email") != "next@example.com" {
			t.Errorf("got %s", r.body)
		}
		s.do(s.login("next"), "DELETE", "/api/users/me", "").want(t, 200, "")
		s.sendCode("", "change", code).want(t, 200, "") // so the refusal did not use it up
	})
}

// What makes a change code invalid, before it was used.
func TestAChangeThatCannotBeConfirmedAnyMore(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim string
		spoil func(t *testing.T, s *service, p *postbox, path, ann, root string)
		gone  bool // pending_email too
	}{
		{"it has expired", func(t *testing.T, s *service, _ *postbox, _, _, _ string) { s.clock.add(time.Hour) }, false},
		{"the user cancelled it", func(t *testing.T, s *service, _ *postbox, path, ann, _ string) {
			s.do(ann, "PUT", path, `{"email":"ann@example.com"}`).want(t, 200, "")
		}, true},
		{"the user cancelled it and set it again", func(t *testing.T, s *service, _ *postbox, path, ann, _ string) {
			s.do(ann, "PUT", path, `{"email":"ann@example.com"}`).want(t, 200, "")
			s.do(ann, "PUT", path, `{"email":"next@example.net"}`).want(t, 200, "")
		}, false},
		{"the user set another one", func(t *testing.T, s *service, p *postbox, path, ann, _ string) {
			s.setEmail(p, ann, path, "other@example.net")
		}, false},
		{"a new mail has a new code", func(t *testing.T, s *service, p *postbox, path, ann, _ string) {
			s.clock.add(time.Minute)
			s.setEmail(p, ann, path, "next@example.net")
		}, false},
		{"the user changed the password", func(t *testing.T, s *service, _ *postbox, path, ann, _ string) {
			s.do(ann, "PUT", path, `{"password":"`+newPassword+`"}`).want(t, 200, "")
		}, true},
		{"an admin changed the password", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "PUT", path, `{"password":"`+newPassword+`"}`).want(t, 200, "")
		}, true},
		{"the password was reset", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.reset(s.resetLink(root, path), newPassword).want(t, 200, "")
		}, true},
		{"an admin set another address", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "PUT", path, `{"email":"other@example.net"}`).want(t, 200, "")
		}, true},
		{"the user is disabled", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "PUT", path, `{"disabled":true}`).want(t, 200, "")
		}, true},
		{"an older userd disabled the user", func(t *testing.T, s *service, _ *postbox, _, _, _ string) {
			runSQL(t, another(t, s.path), `UPDATE user SET disabled = 1 WHERE username = 'ann'`)
		}, false},
		{"the user is deleted", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "DELETE", path, "").want(t, 200, "")
		}, false},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail, func(c *settings) { c.accessTTL = 24 * time.Hour })
			p := s.postbox()
			path, ann := s.verified(p, "ann")
			_, root := s.admin("root")
			code := s.setEmail(p, ann, path, "next@example.net")
			row.spoil(t, s, p, path, ann, root)
			s.sendCode("", "change", code).want(t, 400, "invalid_code")
			if row.gone {
				if r := s.do(root, "GET", path, "").want(t, 200, ""); r.field("pending_email") != "" {
					t.Errorf("it waits for an address: %s", r.body)
				}
			}
		})
	}
	t.Run("other changes leave it valid", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail)
		p := s.postbox()
		path, ann := s.verified(p, "ann")
		_, root := s.admin("root")
		code := s.setEmail(p, ann, path, "next@example.net")
		s.do(ann, "PUT", path, `{"username":"annette","pending_email":"other@example.net"}`).want(t, 200, "") // which is ignored
		s.do(root, "PUT", path, `{"role":"admin"}`).want(t, 200, "")
		s.clock.add(time.Hour - time.Second)
		s.sendCode("", "change", code).want(t, 200, "")
	})
}

func TestAChangeOfTheAddressEndsTheOtherCodes(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann := s.member("ann")
	_, root := s.admin("root")
	verify := p.only("ann@example.com", "Confirm").code
	link := s.resetLink(root, path)
	s.forgot("ann")
	mailed := p.only("ann@example.com", "password").code
	s.sendCode("", "change", s.setEmail(p, ann, path, "next@example.net")).want(t, 200, "")
	s.sendCode(ann, "verify", verify).want(t, 400, "invalid_code")
	s.reset(link, newPassword).want(t, 400, "invalid_code")
	s.reset(mailed, newPassword).want(t, 400, "invalid_code")
	p.none("to an old address that was not verified")
}

// A thief who knows the password has changed the address.
func TestAnUndoRestoresTheAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, thief, undo := s.moved(p, "ann", "thief@example.net")
	_, refresh := s.pair("ann")
	s.setEmail(p, thief, path, "third@example.net")
	s.forgot("ann")
	stolen := p.only("thief@example.net", "password").code
	s.do(thief, "PUT", path, `{"password":"the thief's password"}`).want(t, 200, "")
	p.only("thief@example.net", "has changed") // the password
	thief = s.do("", "POST", "/api/login", `{"username":"ann","password":"the thief's password"}`).field("access_token")
	next := s.setEmail(p, thief, path, "fourth@example.net")

	_, root := s.admin("root")
	link := s.resetLink(root, path)
	s.clock.add(10 * time.Minute)
	if r := s.sendCode("", "undo", undo).want(t, 200, ""); r.body != `{"message":"Address restored"}`+"\n" {
		t.Errorf("got %s", r.body)
	}
	s.do(thief, "GET", path, "").want(t, 401, "session_ended")
	s.do("", "POST", "/api/refresh", `{"refresh_token":"`+refresh+`"}`).want(t, 401, "session_ended")
	s.sendCode("", "undo", undo).want(t, 400, "invalid_code")
	s.sendCode("", "change", next).want(t, 400, "invalid_code")
	s.reset(stolen, newPassword).want(t, 400, "invalid_code")
	s.reset(link, newPassword).want(t, 400, "invalid_code")
	r := s.do(root, "GET", path, "")
	if r.field("email") != "ann@example.com" || r.field("email_verified_at") != "2026-05-04T03:12:01Z" || r.field("pending_email") != "" {
		t.Errorf("got %s", r.body)
	}
	// Otherwise the thief would log in and change the address again, before ann opens the mail.
	s.tryLogin("", "ann", "the thief's password").want(t, 401, "invalid_credentials")
	s.reset(p.undone("ann@example.com", "thief@example.net"), newPassword).want(t, 200, "")
	p.only("ann@example.com", "has changed")
	s.tryLogin("", "ann", newPassword).want(t, 200, "")
	if got := s.eventsOf(t, path); !strings.Contains(got, " email_restored password_reset") {
		t.Errorf("the events are %s", got)
	}
}

func TestWhatEndsAnUndoCode(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim string
		act   func(t *testing.T, s *service, p *postbox, path, ann, root string)
		ends  bool
	}{
		{"its lifetime", func(t *testing.T, s *service, _ *postbox, _, _, _ string) { s.clock.add(72 * time.Hour) }, true},
		{"not the last second of it", func(t *testing.T, s *service, _ *postbox, _, _, _ string) { s.clock.add(72*time.Hour - time.Second) }, false},
		{"not a new password", func(t *testing.T, s *service, _ *postbox, path, ann, _ string) {
			s.do(ann, "PUT", path, `{"password":"`+newPassword+`"}`).want(t, 200, "")
		}, false},
		{"not a reset", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.reset(s.resetLink(root, path), newPassword).want(t, 200, "")
		}, false},
		{"not another new address", func(t *testing.T, s *service, p *postbox, path, ann, _ string) {
			s.sendCode("", "change", s.setEmail(p, ann, path, "third@example.net")).want(t, 200, "")
		}, false},
		{"an admin's change of the address", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "PUT", path, `{"email":"other@example.com"}`).want(t, 200, "")
		}, true},
		{"the command line's change of the address", func(t *testing.T, s *service, _ *postbox, path, _, _ string) {
			(&shell{t, s.path}).run(0, "", "user", "set", "-email", "other@example.com", "ann")
		}, true},
		{"an admin that disabled the user meanwhile", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "PUT", path, `{"disabled":true}`).want(t, 200, "")
			s.do(root, "PUT", path, `{"disabled":false}`).want(t, 200, "")
		}, true},
		{"an older userd that disabled the user", func(t *testing.T, s *service, _ *postbox, _, _, _ string) {
			runSQL(t, another(t, s.path), `UPDATE user SET disabled = 1 WHERE username = 'ann'`)
		}, true},
		{"the deletion of the user", func(t *testing.T, s *service, _ *postbox, path, _, root string) {
			s.do(root, "DELETE", path, "").want(t, 200, "")
		}, true},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			_, root := s.admin("root")
			path, ann, undo := s.moved(p, "ann", "next@example.net")
			row.act(t, s, p, path, ann, root)
			if row.ends {
				s.sendCode("", "undo", undo).want(t, 400, "invalid_code")
				return
			}
			s.sendCode("", "undo", undo).want(t, 200, "")
			if got := scanStore[string](t, s, `SELECT email FROM user WHERE username = 'ann'`); got != "ann@example.com" {
				t.Errorf("the address is %s", got)
			}
		})
	}
}

// A thief who changed the address twice has the undo code of the second change.
func TestAnUndoEndsThoseOfLaterChanges(t *testing.T) {
	t.Parallel()
	for _, sent := range []bool{true, false} {
		t.Run(fmt.Sprintf("sent %t", sent), func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			path, thief, first := s.moved(p, "ann", "second@example.net")
			s.sendCode("", "change", s.setEmail(p, thief, path, "third@example.net")).want(t, 200, "")
			second := newCode(undoCode)
			if sent {
				second = p.only("second@example.net", "has changed").code
			}
			s.sendCode("", "undo", first).want(t, 200, "")
			p.undone("ann@example.com", "third@example.net") // and no undo link to the thief
			s.sendCode("", "undo", second).want(t, 400, "invalid_code")
		})
	}
	t.Run("undo links of earlier changes stay", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail)
		p := s.postbox()
		path, ann, first := s.moved(p, "ann", "second@example.net")
		s.sendCode("", "change", s.setEmail(p, ann, path, "third@example.net")).want(t, 200, "")
		s.sendCode("", "undo", p.only("second@example.net", "has changed").code).want(t, 200, "")
		p.undone("second@example.net", "third@example.net")
		s.sendCode("", "undo", first).want(t, 200, "")
		p.undone("ann@example.com", "second@example.net")
	})
}

// A thief can register another user with the address that its owner must get back.
func TestAnUndoOfAnAddressThatIsTaken(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann, undo := s.moved(p, "ann", "next@example.net")
	s.clock.add(time.Minute)
	s.do("", "POST", "/api/register", `{"username":"bob","email":"ANN@example.com","password":"`+goodPassword+`"}`).want(t, 201, "")
	claim := p.only("ANN@example.com", "Confirm").code
	_, root := s.admin("root")
	verify := func(verified bool) {
		s.do(root, "PUT", "/api/users/2", fmt.Sprintf(`{"email_verified":%t}`, verified)).want(t, 200, "")
	}
	verify(true)
	s.sendCode("", "undo", undo).want(t, 400, "email_taken")
	if r := s.do(ann, "GET", path, "").want(t, 200, ""); r.field("email") != "next@example.net" {
		t.Errorf("got %s", r.body)
	}
	p.none("a refused undo")

	verify(false)
	s.sendCode("", "undo", undo).want(t, 200, "")
	p.undone("ann@example.com", "next@example.net")
	bob := s.login("bob")
	if r := s.do(bob, "GET", "/api/users/2", ""); !strings.HasPrefix(r.field("email"), "user-2-") || r.field("email_verified_at") != "" {
		t.Errorf("got %s", r.body)
	}
	s.sendCode(bob, "verify", claim).want(t, 400, "invalid_code")
	if got := s.eventsOf(t, "/2"); got != "user_created user_changed user_changed user_changed login" {
		t.Errorf("the events are %s", got)
	}
	for _, r := range s.do(root, "GET", "/api/users", "").want(t, 200, "").list(t, "email") {
		if r == "" {
			t.Error("a user has no address")
		}
	}
}

// An undo takes the address from another user that claims it, but not from the user itself.
func TestAnUndoOfAnAddressThatTheUserHasAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann, undo := s.moved(p, "ann", "next@example.net")
	_, root := s.admin("root")
	s.sendCode("", "change", s.setEmail(p, ann, path, "ann@example.com")).want(t, 200, "")
	s.do(root, "PUT", path, `{"email_verified":false}`).want(t, 200, "")
	before := s.eventsOf(t, path)
	s.sendCode("", "undo", undo).want(t, 200, "")
	if got := s.eventsOf(t, path); got != before+" email_restored" {
		t.Errorf("the events are %s, before they were %s", got, before)
	}
	if r := s.do(root, "GET", path, ""); r.field("email") != "ann@example.com" || r.field("email_verified_at") == "" {
		t.Errorf("got %s", r.body)
	}
}

// A thief must not be able to use up the mails to the address, so that its owner gets none.
func TestTheResetMailOfAnUndoIsNotLimited(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, proxied)
	p := s.postbox()
	path, thief := s.verified(p, "ann")
	s.clock.add(time.Minute)
	from := "X-Forwarded-For: " + otherNet
	s.do("", "POST", "/api/password/forgot", `{"login":"ann"}`, from).want(t, 202, "")
	p.only("ann@example.com", "password")
	s.do("", "POST", "/api/password/forgot", `{"login":"ann"}`, from).want(t, 202, "")
	p.none("the second in a minute")
	s.sendCode("", "change", s.setEmail(p, thief, path, "thief@example.net")).want(t, 200, "")
	undo := p.only("ann@example.com", "has changed").code
	s.do("", "POST", "/api/email/undo", `{"code":"`+undo+`"}`, from).want(t, 200, "")
	p.undone("ann@example.com", "thief@example.net")
}

// Where anyone can register, the member is a stranger, and each address another person's.
func TestTheMailsThatMembersAskForAreLimited(t *testing.T) {
	t.Parallel()
	toOthers := func(s *service, path, token string, i int, from string) reply {
		body := fmt.Sprintf(`{"email":"person-%d@example.net"}`, i)
		return s.do(token, "PUT", path, body, "X-Forwarded-For: "+from)
	}
	again := func(s *service, token, from string) reply {
		return s.do(token, "POST", "/api/users/me/email/verify", "", "X-Forwarded-For: "+from)
	}
	t.Run("of a network", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, proxied)
		path, ann := s.member("ann")
		for i := range 20 {
			toOthers(s, path, ann, i, homeNet).want(t, 200, "")
		}
		toOthers(s, path, ann, 20, homeNet).wantWait(t, 180)
		again(s, ann, homeNet).wantWait(t, 180)
		if r := s.do(ann, "GET", path, ""); r.field("pending_email") != "person-19@example.net" {
			t.Errorf("a refused change was made: %s", r.body)
		}
		toOthers(s, path, ann, 20, otherNet).want(t, 200, "")
		_, root := s.admin("root")
		s.do(root, "POST", path+"/email/verify", "", "X-Forwarded-For: "+homeNet).want(t, 202, "")
	})
	t.Run("of all members, which strangers do not use up", func(t *testing.T) {
		t.Parallel()
		s := newService(t, withMail, proxied, func(c *settings) { c.mailsPerHour = 3 })
		path, ann := s.member("ann")
		for range 5 {
			s.forgot("ann")
		}
		toOthers(s, path, ann, 1, homeNet).want(t, 200, "")
		toOthers(s, path, ann, 2, otherNet).want(t, 200, "")
		again(s, ann, "192.0.2.1").want(t, 202, "")
		again(s, ann, "198.51.100.1").wantWait(t, 1200)
		s.clock.add(20 * time.Minute)
		again(s, s.login("ann"), "198.51.100.1").want(t, 202, "")
	})
}

func TestNoticesOfChanges(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim, by, body string
		status          int
		notice          string
	}{
		{"the user changes its password", "ann", `{"password":"` + newPassword + `"}`, 200, "the password."},
		{"an admin changes it", "root", `{"password":"` + newPassword + `"}`, 200, "the password, by an admin."},
		{"an admin changes it and the address", "root", `{"password":"` + newPassword + `","email":"next@example.net"}`, 200, "the e-mail address and the password, by an admin."},
		{"an admin changes the address and verifies it", "root", `{"email":"next@example.net","email_verified":true}`, 200, "the e-mail address, by an admin."},
		{"another field changes", "root", `{"username":"annette","role":"admin"}`, 200, ""},
		{"a change is refused", "root", `{"password":"` + newPassword + `","email":"root@example.com"}`, 400, ""},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			for _, on := range []switchSetting{switchOn, switchOff} {
				s := newService(t, withMail, func(c *settings) { c.notices = on })
				p := s.postbox()
				path, _ := s.verified(p, "ann")
				s.admin("root")
				s.do(s.login(row.by), "PUT", path, row.body).want(t, row.status, "")
				if row.notice == "" || on == switchOff {
					p.none(string(on))
					continue
				}
				if m := p.only("ann@example.com", "has changed"); m.code != "" || !strings.Contains(m.text, row.notice) {
					t.Errorf("the notice has the code %q:\n%s", m.code, m.text)
				}
			}
		})
	}
}

// A code of one kind is good for nothing else, and what cannot be one is not looked up.
func TestCodesOfAddressesAreNotInterchangeable(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	path, ann, undo := s.moved(p, "ann", "next@example.net")
	_, bob := s.member("bob")
	verify := p.only("bob@example.com", "Confirm").code
	change := s.setEmail(p, ann, path, "third@example.net")
	_, root := s.admin("root")
	link := s.resetLink(root, path)
	routes := []string{"verify", "change", "undo"}
	for i, code := range []string{verify, change, undo, link} {
		for j, route := range routes {
			if i == j {
				continue
			}
			s.sendCode(bob, route, code).want(t, 400, "invalid_code")
			if j < 3 && i < 3 { // nor with the right prefix
				s.sendCode(bob, route, []string{"uv", "uc", "uu"}[j]+code[2:]).want(t, 400, "invalid_code")
			}
		}
		if i < 3 {
			s.reset(code, newPassword).want(t, 400, "invalid_code")
		}
	}
	for _, route := range routes {
		s.do("", "POST", "/api/email/"+route, `{}`).want(t, 400, "missing_fields")
		s.do("", "POST", "/api/email/"+route, `{"code":"x"}`).want(t, 400, "invalid_code")
		s.do("", "GET", "/api/email/"+route, "").want(t, 405, "")
	}
	s.sendCode(bob, "verify", verify).want(t, 200, "")
	s.sendCode("", "change", change).want(t, 200, "")
	s.sendCode("", "undo", undo).want(t, 200, "")
}

// 64 clients of two servers on one file use one code.
func TestOneCodeHasOneUse(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"verify", "change", "undo"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "app.db")
			s := newServiceOn(t, path, withMail, unlimited)
			second := newServiceOn(t, path, withMail, unlimited)
			p := s.postbox()
			var code, token string
			switch route {
			case "verify":
				_, token = s.member("ann")
				code = p.only("ann@example.com", "Confirm").code
			case "change":
				var user string
				user, token = s.verified(p, "ann")
				code = s.setEmail(p, token, user, "next@example.net")
			case "undo":
				_, token, code = s.moved(p, "ann", "next@example.net")
			}
			before := len(s.queued(t))
			var succeeded atomic.Int64
			var clients sync.WaitGroup
			for i := range 64 {
				clients.Go(func() {
					to := s
					if i%2 == 1 {
						to = second
					}
					r := to.sendCode(token, route, code)
					if r.status == http.StatusOK {
						succeeded.Add(1)
					} else if r.field("code") != "invalid_code" && r.field("code") != "session_ended" {
						t.Errorf("got %d %s", r.status, r.body)
					}
				})
			}
			clients.Wait()
			if n := succeeded.Load(); n != 1 {
				t.Errorf("%d clients succeeded", n)
			}
			if n := scanStore[int](t, s, `SELECT count(*) FROM event WHERE type IN ('email_verified', 'email_changed', 'email_restored')`); route == "verify" && n != 1 || route == "change" && n != 2 || route == "undo" && n != 3 {
				t.Errorf("%d events", n)
			}
			want := map[string]string{"verify": "", "change": " undo", "undo": " changed reset"}[route]
			if got := s.queued(t)[before:]; got != want {
				t.Errorf("queued %q, want %q", got, want)
			}
		})
	}
}

// Otherwise a client could add and delete users to send a person any number of mails.
func TestADeletedUserLeavesTheLimitOfItsRecipient(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	p := s.postbox()
	for i := range 3 {
		path, token := s.member("mallory")
		s.do(token, "PUT", path, `{"email":"victim@example.net"}`).want(t, 200, "")
		if n := len(p.deliver()); i == 0 && n != 2 || i > 0 && n != 0 {
			t.Errorf("round %d sent %d mails", i, n)
		}
		s.do(token, "POST", path+"/email/verify", "").want(t, 202, "")
		s.do(token, "DELETE", path, "").want(t, 200, "")
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail WHERE user_id <> 0 OR address <> '' OR user_agent <> '' OR state = 'queued'`); n != 0 {
		t.Errorf("%d mails name the deleted users or their networks", n)
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM user_mail`); n != 2 {
		t.Errorf("%d mails are left, want those that were sent", n)
	}
}

func TestThePendingAddressIsShownToItsUserAndToAdmins(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, func(c *settings) { c.directory = directoryFull })
	p := s.postbox()
	path, ann := s.verified(p, "ann")
	_, bob := s.verified(p, "bob")
	_, root := s.admin("root")
	s.setEmail(p, ann, path, "next@example.net")
	for _, row := range []struct {
		token string
		shown bool
	}{{ann, true}, {root, true}, {bob, false}} {
		for _, path := range []string{path, "/api/users", "/api/users?limit=10", "/api/users?q=ann"} {
			r := s.do(row.token, "GET", path, "").want(t, 200, "")
			if shown := strings.Contains(r.body, `"pending_email":"next@example.net"`); shown != row.shown || !strings.Contains(r.body, `"email":"ann@example.com"`) {
				t.Errorf("GET %s: %s", path, r.body)
			}
		}
	}
	sh := shell{t, s.path}
	if out, _ := sh.run(0, "", "user", "show", "ann"); !strings.Contains(out, "PENDING EMAIL   next@example.net\n") || !strings.Contains(out, "EMAIL VERIFIED  2026-") {
		t.Errorf("user show prints\n%s", out)
	}
	for _, flags := range [][]string{{}, {"-ndjson"}} { // an import could not confirm it
		if out, _ := sh.run(0, "", append([]string{"user", "export"}, flags...)...); strings.Contains(out, "next@") {
			t.Errorf("the export has\n%s", out)
		}
	}
}
