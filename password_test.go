package main

import (
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"userd/internal/passhash"
)

// A foreignHash is a hash that another program made.
type foreignHash struct{ format, password, hash string }

// foreignHashes reads the hashes that passhash's own tests verify.
func foreignHashes(t *testing.T) (list []foreignHash) {
	t.Helper()
	data, err := os.ReadFile("internal/passhash/testdata/foreign.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(strings.TrimSpace(line), "\t"); len(fields) == 3 {
			list = append(list, foreignHash{fields[0], fields[1], fields[2]})
		}
	}
	return list
}

func TestAClientThatHangsUpLeavesTheQueue(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	defer s.occupyHasher()()
	for _, row := range []struct{ name, token, method, path, body string }{
		{"login", "", "POST", "/api/login", `{"username":"ann","password":"` + goodPassword + `"}`},
		{"registration", "", "POST", "/api/register", registerBody("bob", goodPassword)},
		{"a new password", token, "PUT", "/api/users/me", `{"password":"another good password"}`},
		{"the current password", token, "DELETE", "/api/users/me", `{"current_password":"` + goodPassword + `"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			wait := func(n int) (waited time.Duration) {
				start := time.Now()
				await(t, fmt.Sprintf("%d calls wait", n), func() bool { return s.hasher.Stats().Waiting == n })
				return time.Since(start)
			}
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: userd\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				row.method, row.path, row.token, len(row.body), row.body)
			wait(1)
			conn.Close()
			if waited := wait(0); waited > passhash.MaxWait/2 {
				t.Errorf("it stayed for %v", waited)
			}
		})
	}
}

// With a full queue, any answer but 503 would show that nothing was hashed.
func TestFullQueueIs503(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	defer s.occupyHasher()()
	for _, row := range []struct{ name, token, method, path, body string }{
		{"login with the right password", "", "POST", "/api/login", `{"username":"ann","password":"` + goodPassword + `"}`},
		{"login with a wrong password", "", "POST", "/api/login", `{"username":"ann","password":"wrong"}`},
		{"login with an unknown name", "", "POST", "/api/login", `{"username":"nobody","password":"wrong"}`},
		{"registration", "", "POST", "/api/register", `{"username":"bob","email":"bob@example.com","password":"` + goodPassword + `"}`},
		{"a new password", token, "PUT", path, `{"password":"another good password"}`},
		{"the current password", token, "DELETE", path, `{"current_password":"` + goodPassword + `"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			defer s.crowdHasher("127.0.0.0/24")()
			start := time.Now()
			r := s.do(row.token, row.method, row.path, row.body).want(t, 503, "busy")
			if waited := time.Since(start); waited >= passhash.MaxWait { // it does not count as of the crowd's network
				t.Errorf("refused after %v, want immediately", waited)
			}
			if got := r.header.Get("Retry-After"); got != "1" {
				t.Errorf("Retry-After: %q", got)
			}
		})
	}
	s.do(token, "GET", path, "").want(t, 200, "")
}

// A login replaces a foreign hash, and the next login still works.
func TestForeignHashesAreReplaced(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	for _, foreign := range foreignHashes(t) {
		if err := s.store.write(t.Context(), statement{query: `UPDATE user SET password_hash = @hash`, args: args{"hash": foreign.hash}}); err != nil {
			t.Fatal(err)
		}
		body := `{"username":"ann","password":"` + foreign.password + `"}`
		s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "invalid_credentials")
		s.do("", "POST", "/api/login", body).want(t, 200, "")
		if c, _ := s.store.credentials(1); s.hasher.Stale(c.hash) {
			t.Errorf("%s: still %s", foreign.format, c.hash)
		}
		s.do("", "POST", "/api/login", body).want(t, 200, "")
	}
}

func TestCheckPassword(t *testing.T) {
	t.Parallel()
	const (
		short     = "must have at least 8 characters"
		long      = "must have at most 1024 bytes"
		nul       = "must not contain NUL"
		name      = "must not be the username or the email"
		tooCommon = "is one of the most common passwords"
	)
	for _, row := range []struct {
		name     string
		password string
		want     string
	}{
		{"a sentence", goodPassword, ""},
		{"the tutorial's password", "testpass", ""},
		{"nothing", "", short},
		{"7 letters", "kwyjibo", short},
		{"8 letters", "kwyjibos", ""},
		{"7 letters of two bytes", "äöüßéèñ", short},
		{"8 letters of two bytes", "äöüßéèñç", ""},
		{"7 letters of four bytes", "😀😁😂😃😄😅😆", short},
		{"8 letters of four bytes", "😀😁😂😃😄😅😆😇", ""},
		{"1024 bytes", strings.Repeat("x", 1024), ""},
		{"1025 bytes", strings.Repeat("x", 1025), long},
		{"1024 bytes in 512 letters", strings.Repeat("ä", 512), ""},
		{"1025 bytes in 513 letters", strings.Repeat("ä", 512) + "x", long},
		{"spaces", "        ", ""},
		{"control characters", "\x01\x02\x03\x04\x05\x06\x07\x08", ""},
		{"a NUL inside", "correct\x00horse", nul},
		{"a NUL at the end", "correct horse\x00", nul},
		{"the username", "ann-smith", name},
		{"the username in another case", "Ann-SMITH", name},
		{"the e-mail address", "ann@example.com", name},
		{"the e-mail address in another case", "ANN@Example.com", name},
		{"the username and more", "ann-smith1", ""},
		{"a common one", "password", tooCommon},
		{"a common one in upper case", "PASSWORD", tooCommon},
		{"a common one in mixed case", "PassWord123", tooCommon},
		{"a common one with a sign", "P@ssw0rd", tooCommon},
		{"digits", "12345678", tooCommon},
		{"a row of the keyboard", "qwertyuiop", tooCommon},
		{"iloveyou1", "iloveyou1", tooCommon},
		{"password1", "password1", tooCommon},
		{"a common one and more", "password correct", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := checkPassword(row.password, "ann-smith", "ann@example.com"); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// An entry that another rule stops, or that has a capital letter, would be of
// no use.
func TestEachCommonPasswordIsFound(t *testing.T) {
	t.Parallel()
	if len(common) < 100 {
		t.Errorf("only %d passwords", len(common))
	}
	for p := range common {
		for _, spelling := range []string{p, strings.ToUpper(p), strings.ToUpper(p[:1]) + p[1:]} {
			if got := checkPassword(spelling, "ann", "ann@example.com"); got != "is one of the most common passwords" {
				t.Errorf("%q: %q", spelling, got)
			}
		}
	}
}

// FuzzNames holds the rules for names against what they are for: a username is
// no address and needs no escape anywhere, and an address is one that net/mail
// reads as nothing else.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"ann", "a.b_c-1", "", ".ann", "ann@example.com", "Ann <ann@example.com>", `"a b"@example.com`, "a..b@example.com", "ann@[127.0.0.1]", "ann@example.com.",
		"ann@-example.com", "ann@exa_mple.com", "ann+tag@example.com", "ann@example.com\n", "аnn", "ann\u200b", "a@b", "(c)ann@example.com", strings.Repeat("a", 81), strings.Repeat("a", 65) + "@example.com"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkUsername(s) == "" {
			if len(s) > 80 || strings.Contains(s, "@") || url.PathEscape(s) != s || strconv.Quote(s) != `"`+s+`"` {
				t.Errorf("the username %q is accepted", s)
			}
		}
		if checkEmail(s) == "" {
			a, err := mail.ParseAddress(s)
			if err != nil || a.Address != s || a.Name != "" || len(s) > 254 {
				t.Errorf("the address %q is accepted, and net/mail reads %v, %v", s, a, err)
			}
		}
	})
}
