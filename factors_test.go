package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/groupcommit/groupcommittest"
	"userd/internal/otp"
	"userd/internal/passhash"
	"userd/internal/qr"
	"userd/internal/seal"
)

// code returns the code of a secret at the time of the service.
func (s *service) code(secret []byte) string { return otp.Code(secret, otp.Step(s.wall())) }

// nextCode lets 30 seconds pass and returns an unused code.
func (s *service) nextCode(secret []byte) string {
	s.clock.add(30 * time.Second)
	return s.code(secret)
}

// wrongCode returns a code that is wrong at any time near that of the service.
func (s *service) wrongCode(secret []byte) string {
	for n := range 100 {
		code, right := fmt.Sprintf("%06d", n), false
		for i := int64(-40); i < 40; i++ {
			right = right || otp.Code(secret, otp.Step(s.wall())+i) == code
		}
		if !right {
			return code
		}
	}
	panic("unreachable")
}

// enrol adds a second factor to the user of a token, which must be proof.
func (s *service) enrol(token string) (secret []byte, codes []string) {
	s.t.Helper()
	r := s.do(token, "POST", "/api/users/me/totp", "").want(s.t, 201, "")
	secret, err := otp.ParseSecret(r.field("secret"))
	if err != nil {
		s.t.Fatal(err)
	}
	r = s.do(token, "POST", "/api/users/me/totp/confirm", fmt.Sprintf(`{"otp":%q}`, s.code(secret))).want(s.t, 200, "")
	return secret, recoveryCodesOf(s.t, r)
}

func recoveryCodesOf(t testing.TB, r reply) []string {
	t.Helper()
	var answer codesAnswer
	if err := json.Unmarshal([]byte(r.body), &answer); err != nil || len(answer.RecoveryCodes) != recoveryCodes {
		t.Fatalf("%v: %s", err, r.body)
	}
	return answer.RecoveryCodes
}

// loginWith logs in with goodPassword and a code, or without one if it is empty.
func (s *service) loginWith(name, code string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":%q,"password":%q,"otp":%q}`, name, goodPassword, code))
}

// factorWith completes a login with a token of its first step.
func (s *service) factorWith(token, code string) reply {
	s.t.Helper()
	return s.do("", "POST", "/api/login/factor", fmt.Sprintf(`{"mfa_token":%q,"otp":%q}`, token, code))
}

// traces returns what a login leaves in the database of a service.
func (s *service) traces() string {
	s.t.Helper()
	var sessions, events, last int64
	if err := s.store.read(`SELECT (SELECT coalesce(sum(id), 0) FROM session), (SELECT count(*) FROM event), (SELECT sum(last_login_at) FROM user)`,
		errStorage, []any{&sessions, &events, &last}); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprint(sessions, events, last)
}

func (s *service) failures(id int64) int64 {
	s.t.Helper()
	c, err := s.store.credentials(id)
	if err != nil {
		s.t.Fatal(err)
	}
	return c.factor.failures
}

// claimsOf returns the payload of an access token.
func claimsOf(t testing.TB, token string) string {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAddingASecondFactor(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, first := s.member("ann")
	if r := s.do(first, "GET", path+"/totp", ""); r.body != `{"on":false,"since":null,"recovery_codes_left":0,"locked":false}`+"\n" {
		t.Errorf("before: %s", r.body)
	}
	confirm := func(code string) reply {
		return s.do(first, "POST", path+"/totp/confirm", fmt.Sprintf(`{"otp":%q}`, code))
	}
	confirm("123456").want(t, 404, "factor_not_pending")
	confirm("").want(t, 400, "missing_fields")
	s.do(first, "POST", path+"/recovery-codes", "").want(t, 404, "factor_not_found")
	s.do(first, "DELETE", path+"/totp", "").want(t, 404, "factor_not_found")

	begin := func() []byte {
		t.Helper()
		r := s.do(first, "POST", path+"/totp", "").want(t, 201, "")
		secret, err := otp.ParseSecret(r.field("secret"))
		if err != nil || len(secret) != 20 || r.field("uri") != otp.URI("userd", "ann", secret) {
			t.Fatalf("%v: %s", err, r.body)
		}
		if drawn, err := qr.Encode(r.field("uri")); err != nil || r.field("qr") != drawn.String() {
			t.Errorf("%v: the QR code is %s", err, r.field("qr"))
		}
		return secret
	}
	old := begin()
	secret := begin() // replaces the first
	confirm(s.code(old)).want(t, 401, "wrong_otp")
	confirm(s.wrongCode(secret)).want(t, 401, "wrong_otp")
	s.loginWith("ann", "").want(t, 200, "") // it is not confirmed
	s.clock.add(10*time.Minute + time.Second)
	confirm(s.code(secret)).want(t, 404, "factor_not_pending")
	first = s.login("ann")
	second := s.login("ann")
	s.clock.add(61 * time.Second)
	secret = begin()
	s.clock.set(s.wall().Add(-61 * time.Second))
	confirm(s.code(secret)).want(t, 404, "factor_not_pending") // it begins in the future
	secret = begin()
	began := s.wall()
	s.clock.set(began.Add(-61 * time.Second))
	first = s.login("ann")
	confirm(s.code(secret)).want(t, 404, "factor_not_pending") // otherwise the secret could be confirmed for longer
	s.clock.set(began)
	err := s.store.addFactor(t.Context(), console, &confirmation{userID: 1, pending: []byte("another"), sealed: []byte("x")}, 1)
	wantError(t, "a confirmation of a secret that was replaced meanwhile", err, errNoPendingFactor)
	s.clock.add(10 * time.Minute)
	before := s.traces()
	codes := recoveryCodesOf(t, confirm(s.code(secret)).want(t, 200, ""))
	confirm(s.code(secret)).want(t, 404, "factor_not_pending")
	if s.traces() == before {
		t.Error("no event, and no session ended")
	}
	s.do(second, "GET", path, "").want(t, 401, "session_ended")
	r := s.do(first, "GET", path+"/totp", "").want(t, 200, "")
	if want := fmt.Sprintf(`{"on":true,"since":%q,"recovery_codes_left":10,"locked":false}`+"\n", s.wall().Format(time.RFC3339)); r.body != want {
		t.Errorf("after: %s, want %s", r.body, want)
	}
	s.loginWith("ann", s.code(secret)).want(t, 401, "otp_used") // the code that confirmed it counts
	s.loginWith("ann", otp.Code(secret, otp.Step(s.wall())-1)).want(t, 401, "otp_used")
	s.loginWith("ann", s.nextCode(secret)).want(t, 200, "")

	// A new factor changes nothing for another user, whose factor is not confirmed.
	_, bob := s.member("bob")
	s.do(bob, "POST", "/api/users/me/totp", "").want(t, 201, "")
	bobs, err := s.store.credentials(2)
	_, carl := s.member("carl")
	s.enrol(carl)
	if now, nowErr := s.store.credentials(2); err != nil || nowErr != nil || now != bobs {
		t.Errorf("another user has %+v, want %+v", now, bobs)
	}
	if n := count(t, s, "user_totp_pending"); n != 1 {
		t.Errorf("%d factors are not confirmed, want 1", n)
	}

	// Nothing in the database is the secret or a code.
	data := dumpFile(t, s)
	for _, plain := range append([]string{string(secret), otp.EncodeSecret(secret)}, codes...) {
		if strings.Contains(data, plain) || strings.Contains(data, strings.ReplaceAll(plain, "-", "")) {
			t.Errorf("the database contains %q", plain)
		}
	}
	for name, r := range map[string]reply{"the user": s.do(first, "GET", path, ""), "the session": s.do(first, "GET", path+"/sessions", "")} {
		if strings.Contains(r.body, "totp") || strings.Contains(r.body, "secret") {
			t.Errorf("%s shows %s", name, r.body)
		}
	}
}

// dumpFile returns the contents of the database file and its WAL.
func dumpFile(t *testing.T, s *service) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy.db")
	sh := &shell{t, s.path}
	sh.run(0, "", "backup", copied)
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestALoginWithASecondFactor(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, token := s.member("ann")
	plain := claimsOf(t, token)
	secret, codes := s.enrol(token)
	s.clock.add(time.Minute)

	before := s.traces()
	r := s.loginWith("ann", "").want(t, 401, "second_factor_required")
	if r.field("expires_in") != "300" || r.field("methods") != "[totp recovery_code]" || r.field("mfa_token") == "" || r.header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("the first step: %s, %v", r.body, r.header)
	}
	mfa := r.field("mfa_token")
	s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":"wrong","otp":%q}`, s.code(secret))).want(t, 401, "invalid_credentials")
	s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":"wrong","otp":%q}`, codes[0])).want(t, 401, "invalid_credentials")
	s.loginWith("ann", s.wrongCode(secret)).want(t, 401, "wrong_otp")
	s.factorWith(mfa, s.wrongCode(secret)).want(t, 401, "wrong_otp")
	s.factorWith(mfa, "").want(t, 400, "missing_fields")
	s.factorWith("", s.code(secret)).want(t, 400, "missing_fields")
	if got := s.traces(); got != before {
		t.Errorf("a login that is not complete left %s, not %s", got, before)
	}
	// The wrong password used up neither code.
	r = s.factorWith(mfa, s.code(secret)).want(t, 200, "")
	if got := claimsOf(t, r.field("access_token")); !strings.Contains(got, `"amr":["pwd","otp"]`) {
		t.Errorf("claims %s", got)
	}
	if strings.Contains(plain, "amr") {
		t.Errorf("claims without a factor: %s", plain)
	}
	s.factorWith(mfa, s.code(secret)).want(t, 401, "otp_used")
	s.loginWith("ann", s.code(secret)).want(t, 401, "otp_used")
	refreshed := s.do("", "POST", "/api/refresh", fmt.Sprintf(`{"refresh_token":%q}`, r.field("refresh_token"))).want(t, 200, "")
	if got := claimsOf(t, refreshed.field("access_token")); !strings.Contains(got, `"amr":["pwd","otp"]`) {
		t.Errorf("claims after a refresh: %s", got)
	}
	s.do(refreshed.field("access_token"), "GET", "/api/verify?factor=required", "").want(t, 200, "")

	// Recovery codes, also as a person types them.
	for i, code := range codes {
		if i == 1 {
			code = strings.ToLower(strings.ReplaceAll(code, "-", " "))
		}
		r := s.loginWith("ann", code).want(t, 200, "")
		left, want := r.field("recovery_codes_left"), ""
		if n := recoveryCodes - 1 - i; n < 3 {
			want = fmt.Sprint(n)
		}
		if left != want {
			t.Errorf("after %d codes: %q are left, want %q", i+1, left, want)
		}
		s.loginWith("ann", code).want(t, 401, "wrong_otp")
	}
	if got := scanStore[int](t, s, `SELECT count(*) FROM event WHERE type = 'recovery_code_used'`); got != recoveryCodes {
		t.Errorf("%d events", got)
	}

	// Another user's code, and a user without a factor.
	bobPath, bob := s.member("bob")
	_, bobs := s.enrol(bob)
	s.loginWith("ann", bobs[0]).want(t, 401, "wrong_otp")
	bob = s.loginWith("bob", bobs[0]).want(t, 200, "").field("access_token")
	_, carl := s.member("carl")
	s.loginWith("carl", "123456").want(t, 200, "")
	if r := s.do(carl, "GET", "/api/verify?factor=required", "").want(t, 403, "factor_required"); !strings.Contains(r.body, "requires a login with a second factor") {
		t.Errorf("a session without the factor is told %s", r.body) // not that the service requires one
	}
	s.do(carl, "GET", "/api/verify?factor=optional", "").want(t, 400, "bad_parameter")
	for _, other := range []struct{ method, path string }{{"GET", "/totp"}, {"POST", "/totp"}, {"POST", "/totp/confirm"}, {"POST", "/recovery-codes"}, {"DELETE", "/totp"}} {
		s.do(carl, other.method, path+other.path, "").want(t, 403, "forbidden")
	}
	_, root := s.admin("root")
	for _, own := range []struct{ method, path string }{{"GET", "/totp"}, {"POST", "/totp"}, {"POST", "/totp/confirm"}, {"POST", "/recovery-codes"}} {
		s.do(root, own.method, path+own.path, "").want(t, 403, "forbidden")
	}
	s.do(root, "GET", "/api/users/999/totp", "").want(t, 403, "forbidden")
	if left := s.do(token, "GET", path+"/totp", "").want(t, 200, "").field("recovery_codes_left"); left != "0" {
		t.Errorf("after ten codes, %s are left", left)
	}
	s.do(root, "DELETE", path+"/totp", "").want(t, 204, "")
	s.do(root, "DELETE", path+"/totp", "").want(t, 404, "factor_not_found")
	s.do(bob, "GET", "/api/verify?factor=required", "").want(t, 200, "")
	s.loginWith("ann", "").want(t, 200, "")
	s.do(root, "DELETE", bobPath, "").want(t, 200, "")
	if n := scanStore[int](t, s, `SELECT (SELECT count(*) FROM user_totp) + (SELECT count(*) FROM user_recovery_code) + (SELECT count(*) FROM user_totp_pending)`); n != 0 {
		t.Errorf("%d rows of deleted users and factors", n)
	}
}

// The token of the first step proves only the password, to one route, for five minutes.
func TestAnMFATokenOnlyCompletesALogin(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, token := s.member("ann")
	secret, codes := s.enrol(token)
	mfa := s.loginWith("ann", "").want(t, 401, "second_factor_required").field("mfa_token")
	s.do(mfa, "GET", path, "").want(t, 401, "invalid_token")
	s.do(mfa, "POST", "/api/refresh", "").want(t, 401, "invalid_token")
	_, refresh := s.member("bob")
	for _, bad := range []string{"x", ".", mfa + "x", mfa[:len(mfa)-1], "9" + mfa, token, refresh, strings.Replace(mfa, "1.", "2.", 1)} {
		s.factorWith(bad, s.nextCode(secret)).want(t, 401, "invalid_mfa_token")
	}
	mfa = s.loginWith("ann", "").field("mfa_token")
	s.clock.add(5*time.Minute + time.Second)
	s.factorWith(mfa, s.code(secret)).want(t, 401, "invalid_mfa_token")
	s.clock.add(-1 * time.Second)
	s.factorWith(mfa, s.code(secret)).want(t, 200, "")
	s.clock.set(s.wall().Add(-5*time.Minute - 61*time.Second))
	s.factorWith(mfa, codes[1]).want(t, 401, "invalid_mfa_token")
	s.clock.add(time.Second)
	s.factorWith(mfa, codes[1]).want(t, 200, "")

	sh := &shell{t, s.path}
	mfa = s.loginWith("ann", "").field("mfa_token")
	sh.run(0, goodPassword+"\n", "user", "passwd", "ann")
	s.factorWith(mfa, codes[2]).want(t, 401, "invalid_mfa_token")
	mfa = s.loginWith("ann", "").field("mfa_token")
	sh.run(0, "", "user", "set", "-disabled", "true", "ann")
	s.factorWith(mfa, codes[2]).want(t, 401, "invalid_mfa_token")
	s.loginWith("ann", codes[2]).want(t, 403, "user_disabled")
	sh.run(0, "", "user", "set", "-disabled", "false", "ann")
	mfa = s.loginWith("ann", "").field("mfa_token")
	sh.run(0, "", "user", "totp", "-off", "ann")
	s.factorWith(mfa, codes[2]).want(t, 401, "invalid_mfa_token")
	sh.run(0, "", "user", "delete", "ann")
	s.factorWith(mfa, codes[2]).want(t, 401, "invalid_mfa_token")
}

// No route, refresh, reset, invitation or command gives a session or a token of a user with a
// second factor to a client that does not prove it.
func TestNoSessionWithoutTheSecondFactor(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail, func(c *settings) { c.accessTTL = 24 * time.Hour })
	sh := &shell{t, s.path}
	path, old := s.member("ann")
	_, oldRefresh := s.pair("ann")
	sh.run(0, "", "user", "list")
	s.change(`UPDATE user SET email_verified_at = 1`)
	_, root := s.admin("root")
	secret, codes := s.enrol(old)
	s.clock.add(time.Minute)
	sessions := func() int { return scanStore[int](t, s, `SELECT count(*) FROM session WHERE user_id = 1`) }
	before := sessions()
	if before != 1 {
		t.Fatalf("%d sessions after enrolment, want that of the request", before)
	}

	replies := map[string]reply{
		"a login":                s.loginWith("ann", ""),
		"a login by address":     s.loginWith("ann@example.com", ""),
		"a login with a space":   s.loginWith("ann ", " "),
		"a wrong code":           s.loginWith("ann", s.wrongCode(secret)),
		"an old refresh token":   s.do(oldRefresh, "POST", "/api/refresh", ""),
		"the token of a login":   s.factorWith(s.loginWith("ann", "").field("mfa_token"), "-"),
		"the password as a code": s.loginWith("ann", goodPassword),
		"a changed password":     s.do(s.login("root"), "PUT", path, `{"password":"another long one"}`),
	}
	s.do(root, "PUT", path, fmt.Sprintf(`{"password":%q}`, goodPassword)).want(t, 200, "")
	p := s.postbox()
	p.deliver()
	s.do("", "POST", "/api/password/forgot", `{"login":"ann"}`).want(t, 202, "")
	mailed := p.only("ann@example.com", "password").code
	for name, code := range map[string]string{"a mailed code": mailed, "a link": s.resetLink(s.login("root"), path)} {
		replies[name] = s.reset(code, "another long one")
		replies[name].want(t, 401, "second_factor_required")
		replies[name+" and a wrong code"] = s.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":"another long one","otp":%q}`, code, s.wrongCode(secret)))
	}
	invitation, _ := s.invitation(s.login("root"), "")
	replies["an invitation"] = s.joinAs("ann", "ann@example.com", invitation)
	sh.run(0, goodPassword+"\n", "user", "passwd", "ann")
	sh.run(0, "", "user", "set", "-disabled", "true", "ann")
	sh.run(0, "", "user", "set", "-disabled", "false", "ann")
	sh.run(0, "", "user", "approve", "ann")
	sh.run(0, "", "key", "rotate")
	sh.run(0, "", "key", "rotate", "-data")
	replies["a login after the commands"] = s.loginWith("ann", "")
	for name, r := range replies {
		if strings.Contains(r.body, `"access_token"`) || strings.Contains(r.body, `"refresh_token"`) {
			t.Errorf("%s gives a token: %s", name, r.body)
		}
	}
	if n := sessions(); n > before {
		t.Errorf("%d sessions", n)
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM session JOIN user_totp USING (user_id) WHERE factor = 0`); n != 0 {
		t.Errorf("%d sessions without the factor", n)
	}
	// The store itself refuses, too.
	c, err := s.store.credentials(1)
	if err != nil {
		t.Fatal(err)
	}
	x := session{userID: 1, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("x")}
	_, err = s.store.startSession(t.Context(), &x, c.stamp, "", provenFactor{})
	wantError(t, "a session without a factor", err, errCredentials)
	_, err = s.store.startSession(t.Context(), &x, c.stamp, "", provenFactor{recovery: []byte("x")})
	wantError(t, "a session with a code that does not exist", err, errOTPUsed)
	x.userID = 2
	root2, err := s.store.credentials(2)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.store.startSession(t.Context(), &x, root2.stamp, "", provenFactor{recovery: otp.Hash(codes[0])})
	wantError(t, "a session with another user's code", err, errOTPUsed)
	s.loginWith("ann", codes[0]).want(t, 200, "")
	s.loginWith("ann", s.nextCode(secret)).want(t, 200, "")
}

// A client has everything of a user but its second factor: the password, an old access and refresh
// token, an mfa_token, keys of all scopes, and links of all kinds. It sends all of it to every
// route, and gets neither a session nor a token nor a key.
func TestNoRouteGivesASessionWithoutTheSecondFactor(t *testing.T) {
	t.Parallel()
	bodies := map[string][]string{ // of the routes that anyone may call; scopeCases has the others
		"POST /api/login":           {`{"username":"ann","password":"PASSWORD"}`, `{"username":"ann","password":"PASSWORD","otp":"WRONG"}`},
		"POST /api/login/factor":    {`{"mfa_token":"MFA","otp":"WRONG"}`, `{"mfa_token":"MFA","otp":"PASSWORD"}`},
		"POST /api/refresh":         {`{"refresh_token":"REFRESH"}`, `{"refresh_token":"MFA"}`, ""},
		"POST /api/register":        {`{"username":"ann","email":"ann@example.com","password":"PASSWORD","invitation":"INVITATION"}`},
		"POST /api/password/forgot": {`{"login":"ann"}`},
		"POST /api/password/reset":  {`{"code":"LINK","password":"another long one"}`, `{"code":"MAILED","password":"another long one","otp":"WRONG"}`},
		"POST /api/email/verify":    {`{"code":"VERIFY","password":"PASSWORD"}`},
		"POST /api/email/change":    {`{"code":"CHANGE"}`},
		"POST /api/email/undo":      {`{"code":"UNDO"}`},
	}
	for _, rt := range new(server).routes() {
		t.Run(rt.pattern, func(t *testing.T) {
			t.Parallel()
			s := newService(t, unlimited)
			path, old := s.member("ann")
			access, refresh := s.pair("ann")
			secret, _ := s.enrol(old)
			s.clock.add(time.Minute)
			_, root := s.admin("root")
			s.do(root, "PATCH", path, `{"role":"admin"}`).want(t, 200, "")
			invitation, _ := s.invitation(root, "")
			s.change(`UPDATE user SET pending_email = 'next@example.com' WHERE id = 1`)
			replace := []string{
				"PASSWORD", goodPassword, "WRONG", s.wrongCode(secret), "REFRESH", refresh, "INVITATION", invitation,
				"MFA", s.loginWith("ann", "").want(t, 401, "second_factor_required").field("mfa_token"), "LINK", s.resetLink(root, path),
				"NEW", "new", "OTHER", "member", "{id}", "1", "{sid}", "1", "{key}", "1", "{invitation}", "1",
			}
			for name, kind := range map[string]codeKind{"MAILED": resetMailCode, "VERIFY": verifyCode, "CHANGE": changeCode, "UNDO": undoCode} {
				code := newCode(kind)
				hash, err := hashCode(kind, code)
				if err != nil {
					t.Fatal(err)
				}
				s.change(`INSERT INTO user_code (hash, kind, user_id, email, old_email, invitation_id, created_by, created_at, expires_at)
					SELECT @hash, @kind, id, iif(@kind = 'uc', pending_email, email), 'old@example.com', 0, 0, @now, @now + 3600 FROM user WHERE id = 1`,
					arg{"hash", hash}, arg{"kind", string(kind)}, arg{"now", s.wall().Unix()})
				replace = append(replace, name, code)
			}
			credentials := []string{"", access, refresh, replace[slices.Index(replace, "MFA")+1], replace[slices.Index(replace, "MAILED")+1]}
			for _, scope := range []keyScope{verifyScope, readScope, writeScope, adminScope} {
				key, err := s.addKey(t.Context(), console, &apiKey{userID: 1, name: "job", scope: scope}, time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				credentials = append(credentials, key)
			}
			asks := bodies[rt.pattern]
			if rt.access == anyone && asks == nil && !strings.HasPrefix(rt.pattern, "GET ") {
				t.Fatal("no body here")
			}
			for _, c := range scopeCases {
				if c.pattern == rt.pattern {
					asks = append(asks, c.body)
				}
			}
			method, path, _ := strings.Cut(strings.NewReplacer(replace...).Replace(rt.pattern), " ")
			for _, ask := range asks {
				for _, token := range credentials {
					r := s.do(token, method, path, strings.NewReplacer(replace...).Replace(ask))
					if rt.pattern != "GET /openapi.json" && regexp.MustCompile(`"(access_token|refresh_token|key)":"|#ul_`).MatchString(r.body) { // it has examples
						t.Errorf("%s with %.5s…: %d %s", ask, token, r.status, r.body)
					}
				}
			}
			// Session 1 is the one that added the factor.
			if n := scanStore[int](t, s, `SELECT count(*) FROM session WHERE user_id = 1 AND (id > 1 OR factor = 0)`); n != 0 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// change runs a statement on the database of a service.
func (s *service) change(query string, values ...arg) {
	s.t.Helper()
	if err := s.store.write(s.t.Context(), statement{Query: query, Args: values}); err != nil {
		s.t.Fatal(err)
	}
}

// One code starts one session, however many clients send it to however many processes.
func TestACodeStartsOneSession(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	a, b := newServiceOn(t, path, unlimited), newServiceOn(t, path, unlimited)
	b.clock = a.clock
	b.server.wall, b.server.mono = a.clock.wall, a.clock.mono
	_, token := a.member("ann")
	secret, codes := a.enrol(token)
	for name, code := range map[string]string{"TOTP": a.nextCode(secret), "recovery": codes[0]} {
		mfa := a.loginWith("ann", "").field("mfa_token")
		var group sync.WaitGroup
		var mu sync.Mutex
		counts := make(map[string]int)
		for i := range 64 {
			s := []*service{a, b}[i%2]
			group.Go(func() {
				r := insist(func() reply {
					if i%4 < 2 {
						return s.factorWith(mfa, code)
					}
					return s.loginWith("ann", code)
				})
				mu.Lock()
				defer mu.Unlock()
				counts[fmt.Sprint(r.status, r.field("code"))]++
			})
		}
		group.Wait()
		ok, used, wrong := counts["200"], counts["401otp_used"], counts["401wrong_otp"]
		if ok != 1 || ok+used+wrong != 64 {
			t.Errorf("%s: %v", name, counts)
		}
		if name == "TOTP" && wrong != 0 {
			t.Errorf("a used code is called wrong: %v", counts)
		}
	}
	if n := scanStore[int](t, a, `SELECT count(*) FROM event WHERE type = 'recovery_code_used'`); n != 1 {
		t.Errorf("%d events of the recovery code", n)
	}
	// The write itself refuses what was compared before another client used the code.
	c, err := a.store.credentials(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []provenFactor{{step: c.factor.lastStep}, {step: c.factor.lastStep - 1}, {recovery: otp.Hash(codes[0])}} {
		x := session{userID: 1, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("x")}
		_, err = b.store.startSession(t.Context(), &x, c.stamp, "", p)
		wantError(t, "a used code in a login", err, errOTPUsed)
		wantError(t, "a used code in a proof", b.store.useFactor(t.Context(), 1, p, "", 1), errOTPUsed)
	}
}

// A login that checked the password before the user added a factor fails, and concurrent
// confirmations add one factor.
func TestEnrolmentAndLoginsConcurrently(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	_, token := s.member("ann")
	for range 5 {
		r := s.do(token, "POST", "/api/users/me/totp", "").want(t, 201, "")
		secret, _ := otp.ParseSecret(r.field("secret"))
		body := fmt.Sprintf(`{"otp":%q}`, s.code(secret))
		var group sync.WaitGroup
		confirmed := make(chan reply, 16)
		for range cap(confirmed) {
			group.Go(func() { s.loginWith("ann", "") })
			group.Go(func() { confirmed <- s.do(token, "POST", "/api/users/me/totp/confirm", body) })
		}
		group.Wait()
		n := 0
		for range cap(confirmed) {
			if r := <-confirmed; r.status == 200 {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d confirmations", n)
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM session WHERE factor = 0`); n != 0 {
			t.Errorf("%d sessions without the factor", n)
		}
		if n := scanStore[int](t, s, `SELECT count(*) FROM user_recovery_code`); n != recoveryCodes {
			t.Errorf("%d recovery codes", n)
		}
		token = s.loginWith("ann", s.nextCode(secret)).want(t, 200, "").field("access_token")
		s.do(token, "DELETE", "/api/users/me/totp", "").want(t, 204, "")
	}
	// The same, step by step.
	c, err := s.store.credentials(1)
	if err != nil {
		t.Fatal(err)
	}
	s.enrol(token)
	x := session{userID: 1, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("x")}
	_, err = s.store.startSession(t.Context(), &x, c.stamp, "", provenFactor{})
	wantError(t, "a login that began before", err, errCredentials)
}

// A client with the password that sends 10,000 codes succeeds no more often than one that
// sends 100: from then on, not even the right code is accepted.
func TestAFactorLocksAfterWrongCodes(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail)
	_, token := s.member("ann")
	s.change(`UPDATE user SET email_verified_at = 1`)
	secret, codes := s.enrol(token)
	s.clock.add(time.Minute)
	p := s.postbox()
	p.deliver()
	mfa := s.loginWith("ann", "").field("mfa_token")
	wrong := s.wrongCode(secret)
	for i := range 10_000 {
		code, want := wrong, "wrong_otp"
		if i >= maxWrongCodes {
			code, want = s.code(secret), "recovery_code_required"
		}
		s.factorWith(mfa, code).want(t, 401, want)
	}
	if n := s.failures(1); n != maxWrongCodes {
		t.Errorf("%d failures", n)
	}
	for range 2 {
		s.factorWith(mfa, strings.Repeat("A", 24)).want(t, 401, "wrong_otp") // a recovery code is still compared
	}
	if m := p.only("ann@example.com", "was not proven"); !strings.Contains(m.text, "it sent your password and a wrong code, the last of 100 in a row") {
		t.Errorf("the mail says %s", m.text)
	}
	if n := scanStore[int](t, s, `SELECT count(*) FROM event WHERE type = 'factor_locked'`); n != 1 {
		t.Errorf("%d events", n)
	}
	r := s.loginWith("ann", "").want(t, 401, "second_factor_required")
	if r.field("methods") != "[recovery_code]" {
		t.Errorf("methods %s", r.field("methods"))
	}
	if out, _ := (&shell{t, s.path}).run(0, "", "user", "totp", "ann"); !regexp.MustCompile(`LOCKED +true`).MatchString(out) {
		t.Errorf("user totp prints %s", out)
	}
	s.loginWith("ann", codes[0]).want(t, 200, "")
	if n := s.failures(1); n != 0 {
		t.Errorf("%d failures after a login", n)
	}
	s.loginWith("ann", wrong).want(t, 401, "wrong_otp")
	s.loginWith("ann", s.code(secret)).want(t, 200, "")
	if n := s.failures(1); n != 0 {
		t.Errorf("%d failures after a login with a code", n)
	}
	// The write that starts the session checks the count again: a guess that was compared
	// while others were counted does not succeed after them.
	s.change(`UPDATE user_totp SET failures = 100`)
	c, err := s.store.credentials(1)
	if err != nil {
		t.Fatal(err)
	}
	x := session{userID: 1, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("x")}
	_, err = s.store.startSession(t.Context(), &x, c.stamp, "", provenFactor{step: 1 << 40})
	wantError(t, "a right code after 100 wrong ones", err, errOTPUsed)
}

// A client with a reset link may not know the password, so the mail must not say that it does.
func TestTheMailAboutALockedFactorSaysWhatTheClientProved(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail)
	path, token := s.member("ann")
	_, root := s.admin("root")
	s.change(`UPDATE user SET email_verified_at = 1`)
	secret, _ := s.enrol(token)
	link := s.resetLink(root, path)
	s.change(`UPDATE user_totp SET failures = @n`, arg{"n", maxWrongCodes - 1})
	p := s.postbox()
	p.deliver()
	s.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":"another long one","otp":%q}`, link, s.wrongCode(secret))).want(t, 401, "wrong_otp")
	if m := p.only("ann@example.com", "was not proven"); !strings.Contains(m.text, "it sent a link that sets a new password and a wrong code") || strings.Contains(m.text, "sent your password") {
		t.Errorf("the mail says %s", m.text)
	}
}

// A client with the password tries 10,000 codes, and waits as long as the limits say. Only 100 of
// them are compared, three of a million are right: that is the documented probability. The secret
// is fixed, so that no guess is right by chance.
func TestTenThousandCodesAreOneHundredGuesses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	_, codes := s.enrol(token)
	secret := bytes.Repeat([]byte("k"), 20)
	ring, err := s.ring(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.change(`UPDATE user_totp SET secret = @secret, last_step = 0`, arg{"secret", ring.Seal(secret, sealName(1))})
	begin := s.mono()
	compared, right := 0, 0
	for guess := range 10_000 {
		code := fmt.Sprintf("%06d", guess*37)
		r := s.loginWith("ann", code)
		for r.status == 429 {
			seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
			if err != nil {
				t.Fatal(err)
			}
			s.clock.add(time.Duration(seconds) * time.Second)
			r = s.loginWith("ann", code)
		}
		switch r.field("code") {
		case "wrong_otp":
			compared++
		case "recovery_code_required":
			if guess%1000 == 999 { // not even the right code is accepted
				s.loginWith("ann", s.code(secret)).want(t, 401, "recovery_code_required")
			}
		default:
			right++
		}
	}
	if compared != maxWrongCodes || right != 0 {
		t.Errorf("%d codes were compared and wrong, and %d had another answer", compared, right)
	}
	if took := s.mono() - begin; took < 20*time.Hour {
		t.Errorf("the guesses took %v", took) // after 14 failures, one in 15 minutes
	}
	s.clock.add(time.Hour)
	s.loginWith("ann", codes[0]).want(t, 200, "")
}

// Wrong codes count like wrong passwords, and the right password between them resets nothing.
func TestWrongCodesCountLikeWrongPasswords(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	secret, codes := s.enrol(token)
	_, bob := s.member("bob")
	s.enrol(bob)
	mfa := ""
	for i := range freeFailures {
		if i%2 == 0 {
			s.loginWith("ann", s.wrongCode(secret)).want(t, 401, "wrong_otp")
			continue
		}
		mfa = s.loginWith("ann", "").want(t, 401, "second_factor_required").field("mfa_token")
		s.factorWith(mfa, s.wrongCode(secret)).want(t, 401, "wrong_otp")
	}
	s.loginWith("ann", codes[0]).want(t, 429, "too_many_requests")
	s.loginWith("ann", "").want(t, 429, "too_many_requests")
	s.factorWith(mfa, codes[0]).want(t, 429, "too_many_requests")
	s.factorWith(mfa, s.code(secret)).want(t, 429, "too_many_requests") // although the enrolment used it
	s.clock.add(firstDelay)
	s.loginWith("ann", codes[0]).want(t, 200, "")
	s.loginWith("ann", s.wrongCode(secret)).want(t, 401, "wrong_otp") // the login reset the count
	if n := s.failures(2); n != 0 {
		t.Errorf("%d failures of another user", n)
	}
	if s.stats.wrongCodes.Load() != freeFailures+1 {
		t.Errorf("the metric is %d", s.stats.wrongCodes.Load())
	}

	// A client that does not wait for the answer is counted.
	s.loginWith("ann", s.nextCode(secret)).want(t, 200, "")
	mfa = s.loginWith("ann", "").field("mfa_token")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(gone, "POST", "/api/login/factor", strings.NewReader(fmt.Sprintf(`{"mfa_token":%q,"otp":%q}`, mfa, s.wrongCode(secret))))
	r.Header.Set("Content-Type", "application/json")
	s.ServeHTTP(httptest.NewRecorder(), r)
	if n := s.failures(1); n != 1 {
		t.Errorf("%d failures after a client that has gone", n)
	}
}

// interject runs act once, when the server next reads the wall clock after skip other readings.
func (s *service) interject(skip int, act func()) {
	wall := s.userService.wall
	var readings atomic.Int64
	s.userService.wall = func() time.Time {
		if readings.Add(1) == int64(skip)+1 {
			act()
		}
		return wall()
	}
}

// A right code is refused if concurrent guesses have reached the limit since its check began.
func TestConcurrentCodesAreLimitedTogether(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	secret, codes := s.enrol(token)
	code := s.nextCode(secret)
	s.interject(0, func() {
		for range freeFailures {
			s.loginWith("ann", s.wrongCode(secret)).want(t, 401, "wrong_otp")
		}
	})
	s.loginWith("ann", code).want(t, 429, "too_many_requests")
	s.clock.add(firstDelay)
	s.loginWith("ann", codes[0]).want(t, 200, "")
}

// A password is no longer proof after a change of the password or a factor of its user, even if the
// change comes between the check of the password and the write.
func TestAProofEndsWithAChangeBeforeItsWrite(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.interject(1, func() { s.change(`UPDATE user SET auth_stamp = auth_stamp + 1`) }) // the first reading checks the token
	body := fmt.Sprintf(`{"current_password":%q}`, goodPassword)
	s.do(token, "DELETE", path, body).want(t, 401, "wrong_password")
	s.do(token, "DELETE", path, body).want(t, 200, "")
}

// The login of a user with a factor does not make the network known, or reset delays, before
// both factors are proven.
func TestAPasswordWithoutItsCodeMakesNoNetworkKnown(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	secret, _ := s.enrol(token)
	s.limiter = newLimiter()
	s.server.limiter = s.limiter
	s.loginWith("ann", "").want(t, 401, "second_factor_required")
	known := func() bool {
		l := s.limiter
		return l.known.Has(l.seed.Key("1", clientaddr.Network("127.0.0.1")), s.mono()) || l.knownNames.Has(l.nameKey("ann", clientaddr.Network("127.0.0.1")), s.mono())
	}
	if known() {
		t.Error("the first step makes the network known")
	}
	s.loginWith("ann", s.nextCode(secret)).want(t, 200, "")
	if !known() {
		t.Error("the login does not make the network known")
	}
}

// A user with a factor proves an act by a login with it, or by the password and a code.
func TestProofWithASecondFactor(t *testing.T) {
	t.Parallel()
	for _, rt := range new(server).routes() {
		if rt.proof == noProof {
			continue
		}
		t.Run(rt.pattern, func(t *testing.T) {
			t.Parallel()
			s := newService(t, unlimited, withMail, func(c *settings) { c.accessTTL = 24 * time.Hour })
			_, before := s.admin("root")
			s.change(`UPDATE user SET email_verified_at = 1`)
			secret, codes := s.enrol(before)
			s.register("bob")
			method, path, _ := strings.Cut(rt.pattern, " ")
			fields := ""
			switch rt.pattern {
			case "POST /api/users":
				fields = `"username":"eve","email":"eve@example.com","password":"another long one","role":"admin",`
			case "PUT /api/users/{id}", "PATCH /api/users/{id}":
				fields = `"username":"robert",`
			case "POST /api/users/{id}/keys":
				fields = `"name":"job","scope":"read","expires_in":3600,`
			case "POST /api/logout":
				path += "?all=true"
			}
			id := "2"
			if rt.access == selfOnly || strings.HasSuffix(path, "/totp") {
				id = "me"
			}
			path = strings.NewReplacer("{id}", id, "{sid}", "999", "{invitation}", s.anInvitation()).Replace(path)
			ask := func(token, proof string) reply {
				return s.do(token, method, path, strings.TrimSuffix("{"+fields+proof, ",")+"}")
			}
			password := fmt.Sprintf(`"current_password":%q`, goodPassword)
			with := func(code string) string { return password + fmt.Sprintf(`,"otp":%q`, code) }

			ask(before, "").want(t, 401, "fresh_login_required") // a login without the factor
			login := s.loginWith("root", codes[0]).want(t, 200, "")
			stale := s.do("", "POST", "/api/refresh", fmt.Sprintf(`{"refresh_token":%q}`, login.field("refresh_token"))).want(t, 200, "").field("access_token")
			ask(stale, "").want(t, 401, "fresh_login_required")
			ask(stale, fmt.Sprintf(`"otp":%q`, codes[1])).want(t, 401, "fresh_login_required")
			ask(stale, password).want(t, 401, "second_factor_required")
			ask(stale, with(s.wrongCode(secret))).want(t, 401, "wrong_otp")
			ask(stale, with(s.code(secret))).want(t, 401, "otp_used")
			ask(stale, fmt.Sprintf(`"current_password":"wrong","otp":%q`, codes[1])).want(t, 401, "wrong_password")
			old := s.loginWith("root", codes[2]).want(t, 200, "").field("access_token")
			s.clock.add(15*time.Minute + time.Second)
			ask(old, "").want(t, 401, "fresh_login_required")
			if r := ask(stale, with(codes[1])); r.status >= 300 && r.status != 404 {
				t.Errorf("with a recovery code: %d %s", r.status, r.body)
			}
			if has, err := s.store.hasRecoveryCode(1, otp.Hash(codes[1])); err != nil || has {
				t.Errorf("the proof did not use up its code: %v", err)
			}
		})
	}
	t.Run("a code proves once", func(t *testing.T) {
		s := newService(t, unlimited)
		_, token := s.member("ann")
		secret, _ := s.enrol(token)
		code := s.nextCode(secret)
		rename := func(name, code string) reply {
			return s.do(token, "PUT", "/api/users/me", fmt.Sprintf(`{"username":%q,"current_password":%q,"otp":%q}`, name, goodPassword, code))
		}
		rename("anna", code).want(t, 200, "")
		rename("anne", code).want(t, 401, "otp_used")
		s.loginWith("anna", code).want(t, 401, "otp_used")
		fresh := s.loginWith("anna", s.nextCode(secret)).want(t, 200, "").field("access_token")
		codes := recoveryCodesOf(t, s.do(fresh, "POST", "/api/users/me/recovery-codes", "").want(t, 200, ""))
		s.loginWith("anna", codes[9]).want(t, 200, "")
		s.do(fresh, "DELETE", "/api/users/me/totp", "").want(t, 204, "")
		s.do(fresh, "PUT", "/api/users/me", `{"username":"ann"}`).want(t, 200, "")
		s.do(fresh, "GET", "/api/verify?factor=required", "").want(t, 403, "factor_required")
	})
	t.Run("an act that requires no proof requires no code", func(t *testing.T) {
		s := newService(t)
		_, token := s.member("ann")
		s.enrol(token)
		s.do(token, "POST", "/api/logout", fmt.Sprintf(`{"current_password":%q}`, goodPassword)).want(t, 204, "")
	})
	t.Run("a new password keeps the factor of the session", func(t *testing.T) {
		s := newService(t, unlimited)
		_, token := s.member("ann")
		secret, _ := s.enrol(token)
		fresh := s.loginWith("ann", s.nextCode(secret)).want(t, 200, "").field("access_token")
		r := s.do(fresh, "PUT", "/api/users/me", `{"password":"another long one"}`).want(t, 200, "")
		if got := claimsOf(t, r.field("access_token")); !strings.Contains(got, `"amr":["pwd","otp"]`) {
			t.Errorf("claims %s", got)
		}
	})
}

// A link sets the password of a user with a factor only together with a code, which is used.
func TestAResetKeepsTheSecondFactor(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	path, token := s.member("ann")
	_, root := s.admin("root")
	secret, codes := s.enrol(token)
	reset := func(link, code string) reply {
		return s.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":"another long one","otp":%q}`, link, code))
	}
	link := s.resetLink(root, path)
	reset(link, "").want(t, 401, "second_factor_required")
	reset(link, s.wrongCode(secret)).want(t, 401, "wrong_otp")
	reset(link, s.code(secret)).want(t, 401, "otp_used")
	if n := s.failures(1); n != 1 {
		t.Errorf("%d failures", n)
	}
	code := s.nextCode(secret)
	reset(link, code).want(t, 200, "")
	if s.loginWith("ann", code).field("code") != "invalid_credentials" {
		t.Error("the old password still works")
	}
	login := func(code string) reply {
		return s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":"another long one","otp":%q}`, code))
	}
	login("").want(t, 401, "second_factor_required")
	login(code).want(t, 401, "otp_used")
	login(codes[0]).want(t, 200, "")
	link = s.resetLink(root, path)
	reset(link, codes[1]).want(t, 200, "")
	login(codes[1]).want(t, 401, "wrong_otp")
	// The store itself refuses, too.
	hash, err := hashCode(resetLinkCode, s.resetLink(root, path))
	if err != nil {
		t.Fatal(err)
	}
	err = s.store.resetPassword(t.Context(), 1, resetLinkCode, hash, "x", provenFactor{}, "", s.wall().Unix())
	wantError(t, "a reset without the factor", err, errInvalidCode)
}

// A change of the address and its undoing, with the reset that follows, keep the factor.
func TestMailsKeepTheSecondFactor(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail)
	p := s.postbox()
	path, token := s.verified(p, "ann")
	secret, codes := s.enrol(token)
	p.deliver()
	fresh := s.loginWith("ann", s.nextCode(secret)).want(t, 200, "").field("access_token")
	s.sendCode("", "change", s.setEmail(p, fresh, path, "ann@example.org")).want(t, 200, "")
	s.loginWith("ann@example.org", "").want(t, 401, "second_factor_required")
	var undo string
	for _, m := range p.deliver() {
		if m.to == "ann@example.com" && m.code != "" {
			undo = m.code
		}
	}
	s.sendCode("", "undo", undo).want(t, 200, "")
	s.loginWith("ann@example.com", "").want(t, 401, "invalid_credentials") // an undo ends the password
	for _, m := range p.deliver() {
		if strings.HasPrefix(m.code, string(resetMailCode)) {
			s.reset(m.code, "another long one").want(t, 401, "second_factor_required")
			s.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":"another long one","otp":%q}`, m.code, codes[0])).want(t, 200, "")
		}
	}
	s.do("", "POST", "/api/login", `{"username":"ann","password":"another long one"}`).want(t, 401, "second_factor_required")
}

// Otherwise a person who reads the mails to the old address of a user could remove the factor.
func TestAnUndoKeepsAFactorThatWasAddedAfterTheChange(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail)
	p := s.postbox()
	path, token, undo := s.moved(p, "ann", "ann@example.org")
	_, codes := s.enrol(token)
	p.deliver()
	s.sendCode("", "undo", undo).want(t, 200, "")
	code := p.undone("ann@example.com", "ann@example.org")
	s.reset(code, newPassword).want(t, 401, "second_factor_required")
	s.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":%q,"otp":%q}`, code, newPassword, codes[0])).want(t, 200, "")
	if got := s.eventsOf(t, path); strings.Contains(got, "factor_removed") {
		t.Errorf("the events are %s", got)
	}
}

func TestASessionWithoutARequiredFactorOnlyAddsOne(t *testing.T) {
	t.Parallel()
	for _, required := range []requireFactor{requireFactorOff, requireFactorAdmins, requireFactorAll} {
		t.Run(string(required), func(t *testing.T) {
			t.Parallel()
			s := newService(t, unlimited, func(c *settings) { c.requireFactor = required })
			s.register("ann")
			s.admin("root")
			for name, refused := range map[string]bool{"ann": required == requireFactorAll, "root": required != requireFactorOff} {
				token := s.login(name)
				for _, rt := range s.routes() {
					if rt.access == anyone || rt.pattern == "POST /api/logout" {
						continue
					}
					method, path, _ := strings.Cut(rt.pattern, " ")
					if strings.HasPrefix(method, "DELETE") && !refused || strings.HasSuffix(path, "/confirm") {
						continue
					}
					r := s.do(token, method, strings.NewReplacer("{id}", "me", "{sid}", "999", "{invitation}", "999").Replace(path), "")
					if opens := rt.access == selfOnly || rt.access == ownOrAdmin; refused && (r.field("code") == "factor_required") == opens || !refused && r.field("code") == "factor_required" {
						t.Errorf("%s by %s: %d %s", rt.pattern, name, r.status, r.body)
					}
				}
				secret, _ := s.enrol(token)
				s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
				fresh := s.loginWith(name, s.nextCode(secret)).want(t, 200, "").field("access_token")
				s.do(fresh, "DELETE", "/api/users/me/totp", "").want(t, 204, "")
				r := s.do(fresh, "GET", "/api/users/me", "")
				if (r.field("code") == "factor_required") != refused {
					t.Errorf("after the removal, by %s: %d %s", name, r.status, r.body)
				}
				s.do(s.login(name), "POST", "/api/logout", "").want(t, 204, "")
			}
		})
	}
}

// With mail, an address that is not verified is not enough to add a factor: its owner may be
// another person.
func TestAFactorRequiresAVerifiedAddressIfThereIsMail(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail)
	_, token := s.member("ann")
	s.do(token, "POST", "/api/users/me/totp", "").want(t, 403, "email_not_verified")
	s.change(`UPDATE user SET email_verified_at = 1`)
	p := s.postbox()
	s.enrol(token)
	if m := p.only("ann@example.com", "has changed"); !strings.Contains(m.text, "a second factor was added") {
		t.Errorf("the notice says %s", m.text)
	}
}

// The owner learns that a client in a network that it never used has its password, unless
// that client then completes the login.
func TestTheOwnerLearnsOfARightPassword(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail, proxied)
	_, token := s.member("ann")
	s.change(`UPDATE user SET email_verified_at = 1`)
	secret, codes := s.enrol(token)
	p := s.postbox()
	p.deliver()
	from := func(address, code string) reply {
		return s.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":%q,"otp":%q}`, goodPassword, code), "X-Forwarded-For: "+address)
	}
	later := func() { s.clock.add((mfaLife + clockLeeway) * time.Second) }
	from("127.0.0.1", "").want(t, 401, "second_factor_required")
	later()
	p.none("a known network")
	from("192.0.2.1", "").want(t, 401, "second_factor_required")
	p.none("the login may still be completed")
	from("192.0.2.1", codes[0]).want(t, 200, "")
	if m := p.deliver(); len(m) != 1 || !strings.Contains(m[0].subject, "New login") {
		t.Errorf("after the login: %+v", m)
	}
	later()
	p.none("a login that was completed")
	from("198.51.100.1", s.wrongCode(secret)).want(t, 401, "wrong_otp")
	from("198.51.100.1", "").want(t, 401, "second_factor_required")
	later()
	if m := p.only("ann@example.com", "was not proven"); !strings.Contains(m.text, "it sent your password and a wrong code") || !strings.Contains(m.text, "198.51.100.0/24") {
		t.Errorf("the mail says %s", m.text)
	}
	from("198.51.100.1", "")
	later()
	p.none("the same client")
	for i := range 10 {
		from(fmt.Sprintf("203.0.%d.1", i), "")
	}
	later()
	if n := len(p.deliver()); n != 4 {
		t.Errorf("%d mails to one owner in a day, want 5 with the first", n+1)
	}
	s.server.notices = switchOff
	s.clock.add(24 * time.Hour)
	from("203.0.113.1", "")
	later()
	p.none("without notices")
	s.server.notices, s.server.mailOn = switchOn, false
	from("203.0.114.1", "")
	later()
	p.none("without mail")
}

// A thief who changes the second factor or the API keys of a user cannot do so unnoticed.
func TestTheOwnerLearnsOfChangesOfFactorsAndKeys(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited, withMail)
	path, first := s.member("ann")
	s.change(`UPDATE user SET email_verified_at = 1`)
	_, codes := s.enrol(first)
	token := s.loginWith("ann", codes[0]).want(t, 200, "").field("access_token")
	s.do(token, "POST", path+"/recovery-codes", "").want(t, 200, "")
	id := s.makeKeyOver(token, path, readScope).want(t, 201, "").field("id")
	s.do(token, "DELETE", path+"/keys/"+id, "").want(t, 204, "")
	s.do(token, "DELETE", path+"/keys/"+id, "").want(t, 404, "key_not_found")
	s.do(token, "DELETE", path+"/totp", "").want(t, 204, "")
	const want = "a second factor was added, the recovery codes were replaced, an API key was created, an API key was revoked, the second factor was removed"
	if got := scanStore[string](t, s, `SELECT group_concat(detail, ', ' ORDER BY id) FROM user_mail WHERE kind = 'changed'`); got != want {
		t.Errorf("the mails say %s\nwant %s", got, want)
	}
}

// A login in two steps replaces an outdated hash, as one in one step does.
func TestALoginInTwoStepsUpgradesTheHash(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	secret, _ := s.enrol(token)
	old, err := passhash.New(passhash.Cost{Memory: 16, Passes: 1, Threads: 1}).Hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	s.register("bob")
	s.change(`UPDATE user SET password_hash = @hash, auth_stamp = 7`, arg{"hash", old})
	mfa := s.loginWith("ann", "").want(t, 401, "second_factor_required").field("mfa_token")
	c, err := s.store.credentials(1)
	if err != nil || s.hasher.Stale(c.hash) {
		t.Errorf("the hash is %s, %v", c.hash, err)
	}
	if bobs, err := s.store.credentials(2); err != nil || bobs.hash != old {
		t.Errorf("the hash of another user is %s, %v", bobs.hash, err)
	}
	if err := s.store.upgradeHash(t.Context(), 1, c.stamp-1, old); err != nil { // the password has changed meanwhile
		t.Error(err)
	}
	if now, err := s.store.credentials(1); err != nil || now != c {
		t.Errorf("the hash of an earlier password came back: %+v, %v", now, err)
	}
	s.factorWith(mfa, s.nextCode(secret)).want(t, 200, "")
}

// A code works at most once, even if the clock is set. If it is set back, only recovery codes
// work until it has passed the time of the last code.
func TestACodeWorksOnceIfTheClockIsSet(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, step := range []time.Duration{-31 * day, -4 * time.Hour, -5 * time.Second, 5 * time.Second, 4 * time.Hour, 31 * day} {
		t.Run(step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t, unlimited)
			_, token := s.member("ann")
			secret, codes := s.enrol(token)
			code := s.nextCode(secret)
			s.loginWith("ann", code).want(t, 200, "")
			s.clock.set(s.wall().Add(step))
			if r := s.loginWith("ann", code); r.status == 200 {
				t.Error("the code works twice")
			}
			s.clock.add(30 * time.Second)
			next := s.nextCode(secret)
			if step <= -time.Minute {
				s.loginWith("ann", next).want(t, 401, "otp_used")
				s.loginWith("ann", codes[0]).want(t, 200, "")
				s.clock.set(s.wall().Add(-step))
				next = s.nextCode(secret)
			}
			s.loginWith("ann", next).want(t, 200, "")
		})
	}
}

// keyed gives a service a DATA_KEY and its predecessor.
func keyed(current, previous []byte) func(*settings) {
	return func(c *settings) { c.dataKeys = dataKeys{current, previous} }
}

func TestARotationWithoutDataKeyEncryptsUnderTheKeyInTheDatabase(t *testing.T) {
	t.Parallel()
	first := bytes.Repeat([]byte{1}, seal.KeySize)
	path := filepath.Join(t.TempDir(), "app.db")
	s := newServiceOn(t, path, keyed(first, nil))
	_, token := s.member("ann")
	s.enrol(token)
	done, err := newServiceOn(t, path, keyed(nil, first)).rotateDataKey(t.Context())
	if err != nil || !strings.Contains(done, "encrypted 1 TOTP secret again, under the key in the database") {
		t.Errorf("the rotation: %q, %v", done, err)
	}
	wantError(t, "a server without the old key", newServiceOn(t, path).checkDataKeys(t.Context()), nil)
}

func TestSecretsRequireTheKeyThatEncryptedThem(t *testing.T) {
	t.Parallel()
	first, second := bytes.Repeat([]byte{1}, seal.KeySize), bytes.Repeat([]byte{2}, seal.KeySize)
	path := filepath.Join(t.TempDir(), "app.db")
	s := newServiceOn(t, path, unlimited, keyed(first, nil))
	_, token := s.member("ann")
	secret, codes := s.enrol(token)
	_, bob := s.member("bob")
	bobSecret, _ := s.enrol(bob)
	if key, err := s.store.dataKey(); err != nil || key != nil {
		t.Errorf("with DATA_KEY, the database has a key: %x, %v", key, err)
	}
	on := func(options ...func(*settings)) *service {
		other := newServiceOn(t, path, append(options, unlimited)...)
		other.clock = s.clock
		other.server.wall = s.clock.wall
		return other
	}
	// Without the key, a login fails, and nothing counts as a wrong code.
	for name, other := range map[string]*service{"another key": on(keyed(second, nil)), "no key": on()} {
		book := other.keepLog()
		other.loginWith("ann", s.nextCode(secret)).want(t, 503, "unavailable")
		if !strings.Contains(book.String(), "another key encrypted TOTP secrets") {
			t.Errorf("%s: the log says %s", name, book.String())
		}
		wantError(t, name, other.checkDataKeys(t.Context()), errDataKey)
	}
	other := on()
	other.loginWith("ann", codes[0]).want(t, 200, "") // the recovery codes are hashes
	if n := s.failures(1); n != 0 {
		t.Errorf("%d failures", n)
	}
	wantError(t, "the right key", s.checkDataKeys(t.Context()), nil)

	run := func(status int, previous []byte, args ...string) string {
		t.Helper()
		env := map[string]string{"DATABASE_URL": path, "DATA_KEY": base64.StdEncoding.EncodeToString(second)}
		if previous != nil {
			env["DATA_KEY_PREVIOUS"] = base64.StdEncoding.EncodeToString(previous)
		}
		var out, errOut bytes.Buffer
		err := run(t.Context(), args, func(name string) string { return env[name] }, strings.NewReader(""), &out, &errOut)
		if got := exitStatus(err); err != nil && got != status || err == nil && status != 0 {
			t.Fatalf("userd %v: %v, %s", args, err, errOut.String())
		}
		return out.String() + fmt.Sprint(err)
	}
	s.change(`INSERT INTO user_totp_pending (user_id, secret, created_at) VALUES (1, x'01', 1)`)
	rows := filepath.Join(t.TempDir(), "rows.csv")
	writeFile(t, rows, []byte("username,email,password,totp_secret\ncas,cas@example.com,correct horse,JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP\n"))
	events := func() int {
		return scan[int](t, another(t, path), `SELECT count(*) + (SELECT count(*) FROM secret) FROM event`)
	}
	before := events()
	for _, args := range [][]string{{"user", "export"}, {"user", "export", "-ndjson"}, {"user", "import", "-dry-run", rows}, {"user", "import", rows}} {
		if out := run(1, nil, args...); strings.Contains(out, "ann") || strings.Contains(out, "username") || strings.Contains(out, "import 1") || !strings.Contains(out, errDataKey.Error()) {
			t.Errorf("userd %v without the old key: %s", args, out)
		}
	}
	if out := run(1, nil, "key", "rotate", "-data"); !strings.Contains(out, "changed nothing\ncould not decrypt 2 TOTP secrets") {
		t.Errorf("key rotate -data without the old key: %s", out)
	}
	if out := run(0, first, "user", "import", "-dry-run", rows); !strings.Contains(out, "would import 1 user") {
		t.Errorf("a dry run with the key: %s", out)
	}
	pending := func() int { return scan[int](t, another(t, path), `SELECT count(*) FROM user_totp_pending`) }
	if events() != before || pending() != 1 {
		t.Errorf("commands that fail made events or keys: %d, want %d; %d factors are pending, want 1", events(), before, pending())
	}
	if out := run(0, first, "key", "rotate", "-data"); !strings.Contains(out, "encrypted 2 TOTP secrets again, under DATA_KEY") {
		t.Errorf("key rotate -data: %s", out)
	}
	if pending() != 0 {
		t.Error("a pending factor under the old key stays")
	}
	before = events()
	if out := run(0, first, "key", "rotate", "-data"); !strings.Contains(out, "changed nothing: no TOTP secret is encrypted under another key than DATA_KEY") || events() != before {
		t.Errorf("key rotate -data again: %s; %d events, want %d", out, events(), before)
	}
	renewed := on(keyed(second, nil))
	wantError(t, "the new key", renewed.checkDataKeys(t.Context()), nil)
	renewed.loginWith("ann", s.nextCode(secret)).want(t, 200, "")
	wantError(t, "the old key", s.checkDataKeys(t.Context()), errDataKey)

	// A sealed secret is bound to its user.
	renewed.keepLog()
	s.change(`UPDATE user_totp SET secret = (SELECT secret FROM user_totp WHERE user_id = 1) WHERE user_id = 2`)
	renewed.loginWith("bob", s.nextCode(secret)).want(t, 503, "unavailable")
	renewed.loginWith("bob", s.code(bobSecret)).want(t, 503, "unavailable")
	// The same is true of a factor that is not confirmed. The code of an empty secret, which anyone
	// can compute, is not right either.
	s.change(`INSERT INTO user_totp_pending (user_id, secret, created_at) SELECT 2, secret, @now FROM user_totp WHERE user_id = 1`, arg{"now", s.wall().Unix()})
	for _, code := range []string{s.code(secret), s.code(nil)} {
		renewed.do(bob, "POST", "/api/users/me/totp/confirm", fmt.Sprintf(`{"otp":%q}`, code)).want(t, 503, "unavailable")
	}
}

// A rotation reads all factors, however many it cannot decrypt, and keeps a factor that its user
// replaces meanwhile.
func TestARotationReadsAllFactorsAndReplacesNone(t *testing.T) {
	t.Parallel()
	s := newService(t, keyed(bytes.Repeat([]byte{1}, seal.KeySize), nil))
	_, token := s.member("ann")
	s.enrol(token)
	s.change(`UPDATE user_totp SET user_id = 10000`)
	s.change(`WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id <= @most)
		INSERT INTO user_totp (user_id, secret, confirmed_at, last_step) SELECT id, x'00', 1, 1 FROM n`, arg{"most", resealBatch})
	first, err := seal.NewRing(bytes.Repeat([]byte{1}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewRing(bytes.Repeat([]byte{2}, seal.KeySize), bytes.Repeat([]byte{1}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	s.change(`UPDATE user_totp SET secret = @secret WHERE user_id = 10000`, arg{"secret", first.Seal([]byte("old"), sealName(10000))})
	release := groupcommittest.Busy(t, s.store.writer)
	replaced := groupcommittest.Enqueue(t, s.store.writer, func() error {
		return s.store.write(t.Context(), statement{Query: `UPDATE user_totp SET secret = x'02' WHERE user_id = 10000`})
	})
	var sealed, unreadable int
	rotated := groupcommittest.Enqueue(t, s.store.writer, func() (err error) {
		sealed, unreadable, err = s.store.reseal(t.Context(), ring, 1)
		return err
	})
	release()
	for _, err := range groupcommittest.Answers(t, replaced, rotated) {
		wantError(t, "a write", err, nil)
	}
	if sealed != 1 || unreadable != resealBatch+1 {
		t.Errorf("sealed %d, could not decrypt %d", sealed, unreadable)
	}
	if got := scanStore[string](t, s, `SELECT hex(secret) FROM user_totp WHERE user_id = 10000`); got != "02" {
		t.Errorf("the rotation overwrote the new factor: %s", got)
	}
}

// A server that cannot open the secrets of all users does not start, and says what is wrong; so
// does userd check.
func TestAServerWithAnotherDataKeyDoesNotStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := func(b byte) string {
		return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, seal.KeySize))
	}
	const row = "username,email,password,totp_secret\nann,ann@example.com,correct horse battery,JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP\n"
	if got := userdProcess(t, dir, row, []string{"DATA_KEY=" + key(1)}, "user", "import", "-"); got.status != 0 {
		t.Fatalf("user import: %+v", got)
	}
	for name, environ := range map[string][]string{
		"no key":       nil,
		"another key":  {"DATA_KEY=" + key(2)},
		"two of these": {"DATA_KEY=" + key(2), "DATA_KEY_PREVIOUS=" + key(3)},
	} {
		got := userdProcess(t, dir, "", append(environ, "ADDR=127.0.0.1:0"))
		got.wantFailure(t, 1, "another key encrypted TOTP secrets in the database: set that key as DATA_KEY", "1 user, such as user 1", "userd user totp -off USER")
		if strings.Contains(got.stderr, "serving") || strings.Contains(got.stderr, key(2)) {
			t.Errorf("%s: the server says %s", name, got.stderr)
		}
		if got := userdProcess(t, dir, "", environ, "check"); got.status != 0 || !strings.Contains(got.stderr, "warning: another key encrypted TOTP secrets") || !strings.Contains(got.stderr, "(1 user)") {
			t.Errorf("%s: check: %+v", name, got)
		}
	}
	for _, environ := range [][]string{{"DATA_KEY=" + key(1)}, {"DATA_KEY=" + key(2), "DATA_KEY_PREVIOUS=" + key(1)}} {
		startUserd(t, dir, environ).end(os.Interrupt)
		if got := userdProcess(t, dir, "", environ, "check"); got.status != 0 || strings.Contains(got.stderr, "TOTP") {
			t.Errorf("check with the key: %+v", got)
		}
	}
	// Without the key, the way back is to remove the factors.
	if got := userdProcess(t, dir, "", nil, "user", "totp", "-off", "ann"); got.status != 0 {
		t.Errorf("user totp -off: %+v", got)
	}
	startUserd(t, dir, nil).end(os.Interrupt)
}

func TestABadDataKeyIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"DATA_KEY", "DATA_KEY_PREVIOUS"} {
		for _, bad := range []string{"s3cret", base64.StdEncoding.EncodeToString(make([]byte, 31)), strings.Repeat("k", 64)} {
			_, err := configured(nil, getenvOf([]string{name + "=" + bad}))
			if err == nil || exitStatus(err) != 2 || !strings.HasPrefix(err.Error(), name+": must be the base64 of 32 bytes") || strings.Contains(err.Error(), bad) {
				t.Errorf("%s=%s: %v", name, bad, err)
			}
		}
	}
}

func TestUserTOTPCommand(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	s.clock.t = time.Now() // the command line has no other clock
	_, token := s.member("ann")
	sh := &shell{t, s.path}
	if out, _ := sh.run(0, "", "user", "totp", "ann"); !regexp.MustCompile(`(?s)TOTP +off\nSINCE +-\nRECOVERY CODES LEFT +0\nLOCKED +false`).MatchString(out) {
		t.Errorf("user totp prints %s", out)
	}
	sh.run(1, "", "user", "totp", "-off", "ann")
	sh.run(2, "", "user", "totp", "-off", "-on", "ann")
	if _, stderr := sh.run(1, "\n", "user", "totp", "-on", "ann"); !strings.Contains(stderr, "no code on standard input") {
		t.Errorf("without a code: %s", stderr)
	}
	if _, stderr := sh.run(1, "000000\n", "user", "totp", "-on", "ann"); !strings.Contains(stderr, "the code is wrong, so the second factor was not added") {
		t.Errorf("with a wrong code: %s", stderr)
	}

	// The code depends on what the command prints.
	codes, err := enrolByCommand(t, s.path, &dialog{ready: make(chan struct{})})
	if err != nil {
		t.Fatal(err)
	}
	s.do(token, "GET", "/api/users/me", "").want(t, 401, "session_ended")
	s.loginWith("ann", "").want(t, 401, "second_factor_required")
	s.loginWith("ann", codes[0]).want(t, 200, "")
	stdout, _ := sh.run(0, "", "user", "totp", "-json", "ann")
	var state factorState
	if err := json.Unmarshal([]byte(stdout), &state); err != nil || !state.On || state.RecoveryCodesLeft != recoveryCodes-1 {
		t.Errorf("user totp -json prints %s", stdout)
	}
	if out, _ := sh.run(0, "", "user", "totp", "-off", "ann"); out != "removed the second factor of ann\n" {
		t.Errorf("user totp -off prints %s", out)
	}
	s.loginWith("ann", "").want(t, 200, "")
}

// A dialog answers the secret that a command prints with its code.
type dialog struct {
	mu       sync.Mutex
	text     string
	answer   string
	answered bool
	ready    chan struct{}
	code     func(secret string) string // nil: the code of now
}

func (d *dialog) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.text += string(p)
	if m := regexp.MustCompile(`\n([A-Z2-7]{32})\n`).FindStringSubmatch(d.text); m != nil && !d.answered {
		d.answered = true
		secret, err := otp.ParseSecret(m[1])
		if err != nil {
			return 0, err
		}
		d.answer = otp.Code(secret, otp.Step(time.Now())) + "\n"
		if d.code != nil {
			d.answer = d.code(m[1]) + "\n"
		}
		close(d.ready)
	}
	return len(p), nil
}

func (d *dialog) Read(p []byte) (int, error) {
	<-d.ready
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.answer)
	d.answer = d.answer[n:]
	return n, nil
}

func enrolByCommand(t *testing.T, database string, d *dialog) (codes []string, err error) {
	t.Helper()
	var out bytes.Buffer
	env := func(name string) string { return map[string]string{"DATABASE_URL": database}[name] }
	err = run(t.Context(), []string{"user", "totp", "-on", "-issuer", "Example", "ann"}, env, d, &out, d)
	if !strings.Contains(d.text, "otpauth://totp/Example:ann?secret=") || !strings.Contains(d.text, "█") {
		t.Errorf("the command prints %s", d.text)
	}
	codes = strings.Fields(out.String())
	if len(codes) != recoveryCodes {
		t.Errorf("the command prints the codes %q", out.String())
	}
	return codes, err
}

func TestImportAndExportOfSecondFactors(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	_, token := s.member("ann")
	s.register("bob")
	secret, _ := s.enrol(token)
	from := &shell{t, s.path}
	for _, format := range [][]string{nil, {"-ndjson"}} {
		out, _ := from.run(0, "", append([]string{"user", "export"}, format...)...)
		if strings.Count(out, otp.EncodeSecret(secret)) != 1 {
			t.Errorf("the export has no secret: %s", out)
		}
		to := newService(t, unlimited)
		to.clock.t = s.wall()
		(&shell{t, to.path}).run(0, out, "user", "import", "-")
		to.loginWith("bob", "").want(t, 200, "")
		to.loginWith("ann", "").want(t, 401, "second_factor_required")
		to.loginWith("ann", s.code(secret)).want(t, 200, "")
		if again, _ := (&shell{t, to.path}).run(0, "", append([]string{"user", "export"}, format...)...); strings.Count(again, otp.EncodeSecret(secret)) != 1 {
			t.Errorf("the second export is %s", again)
		}
	}
	// Also into a database that does not exist, and with free ids.
	sh := &shell{t, filepath.Join(t.TempDir(), "new.db")}
	row := "username,email,password,totp_secret\ncarl,carl@example.com,correct horse battery,"
	if _, stderr := sh.run(1, row+"SHORT\n", "user", "import", "-"); !strings.Contains(stderr, "totp_secret must be") || strings.Contains(stderr, "SHORT") {
		t.Errorf("a bad secret: %s", stderr)
	}
	sh.run(0, row+strings.ToLower(otp.EncodeSecret(secret))+"\n", "user", "import", "-")
	new := newServiceOn(t, sh.database, unlimited)
	new.loginWith("carl", "").want(t, 401, "second_factor_required")
	new.loginWith("carl", new.code(secret)).want(t, 200, "")

	// An import under a key that is not that of the database fails.
	env := func(name string) string {
		return map[string]string{"DATABASE_URL": sh.database, "DATA_KEY": base64.StdEncoding.EncodeToString(make([]byte, 32))}[name]
	}
	new.change(`UPDATE user_totp SET secret = x'00112233445566778899'`)
	err := run(t.Context(), []string{"user", "import", "-"}, env, strings.NewReader(strings.ReplaceAll(row, "carl", "dora")+otp.EncodeSecret(secret)+"\n"), new, new)
	if !errors.Is(err, errDataKey) && (err == nil || !strings.Contains(err.Error(), "DATA_KEY")) {
		t.Errorf("an import under another key: %v", err)
	}
	if _, stderr := sh.run(1, "", "user", "export"); !strings.Contains(stderr, "DATA_KEY") {
		t.Errorf("an export without the key: %s", stderr)
	}
}

// Write lets a test discard what a command prints.
func (s *service) Write(p []byte) (int, error) { return len(p), nil }

// People paste codes with spaces, and keyboards of East Asia type digits of full width.
func TestCodesAsPeopleTypeThem(t *testing.T) {
	t.Parallel()
	s := newService(t, unlimited)
	_, token := s.member("ann")
	secret, codes := s.enrol(token)
	wide := func(text string) string {
		return strings.Map(func(r rune) rune {
			if r == ' ' {
				return '\u3000'
			}
			return r - '!' + '！'
		}, text)
	}
	spaced := func(code, space string) string { return code[:3] + space + code[3:] }
	for _, form := range []func(code string) string{
		func(code string) string { return spaced(code, " ") },
		func(code string) string { return spaced(code, "\u00a0") },
		func(code string) string { return " " + spaced(code, "-") + "\r\n" },
		wide,
		func(code string) string { return wide(spaced(code, " ")) },
	} {
		typed := form(s.nextCode(secret))
		if r := s.loginWith("ann", typed); r.status != 200 {
			t.Errorf("the code %q: %s", typed, r.body)
		}
	}
	s.loginWith("ann", wide(codes[0])).want(t, 200, "")
	s.loginWith("ann", wide(codes[0])).want(t, 401, "wrong_otp")
	s.loginWith("ann", strings.ToLower(strings.ReplaceAll(codes[1], "-", "\u00a0"))).want(t, 200, "")
	// Other digits are a wrong code, which counts.
	for i, typed := range []string{"١٢٣٤٥٦", "१२३४५६", "12345", "1234567", "x"} {
		s.loginWith("ann", typed).want(t, 401, "wrong_otp")
		if n := s.failures(1); n != int64(i+1) {
			t.Errorf("%q: %d failures", typed, n)
		}
	}
}

func TestMethodsOfAFactor(t *testing.T) {
	t.Parallel()
	if got := methodsOf(&factor{failures: maxWrongCodes - 1}); !slices.Equal(got, []string{"totp", "recovery_code"}) {
		t.Errorf("methods %v", got)
	}
}

// Who begins to add a factor knows its secret. A new password ends that: otherwise a thief
// could confirm its own factor with the token with which the owner changed the password.
func TestANewPasswordEndsAFactorThatIsNotConfirmed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	secret, err := otp.ParseSecret(s.do(token, "POST", "/api/users/me/totp", "").want(t, 201, "").field("secret"))
	if err != nil {
		t.Fatal(err)
	}
	r := s.do(token, "PATCH", "/api/users/me", fmt.Sprintf(`{"password":"another good password","current_password":%q}`, goodPassword)).want(t, 200, "")
	for _, token := range []string{token, r.field("access_token")} {
		s.do(token, "POST", "/api/users/me/totp/confirm", fmt.Sprintf(`{"otp":%q}`, s.code(secret))).want(t, 404, "factor_not_pending")
	}
}

// Until an admin has added the factor that it must have, it may only ask for a link for its
// own address.
func TestAnAdminWithoutARequiredFactorCausesNoMailToOthers(t *testing.T) {
	t.Parallel()
	s := newService(t, withMail, func(c *settings) { c.requireFactor = requireFactorAdmins })
	path, _ := s.register("ann")
	_, root := s.admin("root")
	s.do(root, "POST", path+"/email/verify", "").want(t, 403, "factor_required")
	s.do(root, "POST", "/api/users/me/email/verify", "").want(t, 202, "")
}

func TestAServiceUserHasNoSecondFactor(t *testing.T) {
	t.Parallel()
	s := newService(t)
	id := s.addNamed("bot", member, true)
	_, err := s.beginFactor(t.Context(), console, id)
	wantError(t, "a factor of a service user", err, errServiceUser)
}

// Forms send an empty field, which is no guess.
func TestAnEmptyCodeDoesNotCountAsWrong(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.enrol(token)
	body := fmt.Sprintf(`{"current_password":%q,"otp":""}`, goodPassword)
	s.do(token, "DELETE", path, body).want(t, 401, "second_factor_required")
	if n := s.failures(1); n != 0 {
		t.Errorf("%d failures", n)
	}
}

// A thief may hold another access token of the session that confirms a factor.
func TestConfirmingAFactorEndsTheOtherTokensOfItsSession(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	login := s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).want(t, 200, "")
	first := login.field("access_token")
	next := s.do("", "POST", "/api/refresh", `{"refresh_token":"`+login.field("refresh_token")+`"}`).want(t, 200, "")
	s.do(next.field("access_token"), "GET", "/api/users/me", "").want(t, 200, "")
	s.enrol(first)
	s.do(first, "GET", "/api/verify?factor=required", "").want(t, 200, "")
	s.do(next.field("access_token"), "GET", "/api/users/me", "").want(t, 401, "session_ended")
	later := s.do("", "POST", "/api/refresh", `{"refresh_token":"`+next.field("refresh_token")+`"}`).want(t, 200, "")
	s.do(later.field("access_token"), "GET", "/api/verify?factor=required", "").want(t, 200, "")
}
