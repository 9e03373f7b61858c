package validate

import (
	"net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// goodPassword is one that every policy accepts.
const goodPassword = "correct horse battery"

func TestFoldNameFoldsOnlyASCIILetters(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"": "", "Ann.Z@A-z_0": "ann.z@a-z_0", "\u212aate": "\u212aate", "ÄÉ": "ÄÉ", "[@`{": "[@`{"} {
		if got := FoldName(name); got != want {
			t.Errorf("%q is folded to %q, want %q", name, got, want)
		}
	}
}

func TestCheckPassword(t *testing.T) {
	t.Parallel()
	const (
		short     = "must have at least 8 characters"
		long      = "must have at most 1024 bytes"
		nul       = "must not contain NUL"
		name      = "must not be the username, the email or the name of the service, also with digits or punctuation added"
		tooCommon = "is one of the most common passwords"
	)
	for _, row := range []struct {
		name     string
		password string
		want     string
	}{
		{"a sentence", goodPassword, ""},
		{"the tutorial's password", "testpass", ""},
		{"the tutorial's password in another case", "TestPass", tooCommon},
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
		{"the e-mail address", "annika@example.com", name},
		{"the e-mail address in another case", "ANNIKA@Example.com", name},
		{"the username and digits", "ann-smith1984", name},
		{"the username without its punctuation", "annsmith", name},
		{"the username with other punctuation", "$A_N_N smith!", name},
		{"the username and more letters", "ann-smith-x", ""},
		{"the username inside", "my-ann-smith", ""},
		{"the local part of the address and digits", "Annika.2024", name},
		{"the address without punctuation", "annikaexamplecom", name},
		{"userd and digits", "userd-2026", name},
		{"userd and more letters", "userd-service", ""},
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
			if got := (Policy{Minimum: MinPassword}).Check(row.password, "ann-smith", "annika@example.com"); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// Without letters, only the plain texts are compared.
func TestAContextWordWithoutLetters(t *testing.T) {
	t.Parallel()
	for password, refused := range map[string]bool{"1984-2024": true, "2024-1984": false} {
		if got := (Policy{Minimum: MinPassword}).Check(password, "1984-2024", "7@example.com"); (got != "") != refused {
			t.Errorf("%s: %q, want refused: %t", password, got, refused)
		}
	}
}

func TestCommonPasswords(t *testing.T) {
	t.Parallel()
	list := strings.Split(strings.Trim(commonPasswords(), "\n"), "\n")
	if len(list) != 10_000 || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
		t.Errorf("%d passwords, want 10,000, sorted and distinct", len(list))
	}
	if len(commonPasswordsGzip) >= 150_000 {
		t.Errorf("the file has %d bytes", len(commonPasswordsGzip))
	}
	for _, p := range list {
		spelling := strings.ToUpper(p[:1]) + p[1:]
		want := "is one of the most common passwords"
		if got := (Policy{Minimum: MinPassword}).Check(spelling, "ann", "ann@example.com"); got != want {
			t.Errorf("%q: %q", spelling, got)
		}
	}
	// From the top of several published lists.
	for _, p := range strings.Fields("password 123456789 iloveyou1 football qwertyuiop trustno1 whatever testtest") {
		if !isCommon(p) {
			t.Errorf("%q is not in the list", p)
		}
	}
	for _, p := range []string{"", "\n", "pass", "ssword", "pass\nword", goodPassword} {
		if isCommon(p) {
			t.Errorf("%q is in the list", p)
		}
	}
}

// Programs take such an address for an option or a formula.
func TestAnAddressDoesNotBeginWithASign(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{
		"-ann@example.com": false, "=ann@example.com": false, "+ann@example.com": false, "@ann@example.com": false,
		"-@example.com": false, "ann+tag@example.com": true, "a-@example.com": true, "_ann@example.com": true,
	} {
		if got := Email(address); (got == "") != ok {
			t.Errorf("%s: %q", address, got)
		}
	}
}

// FuzzNames checks the purposes of the rules for names: a username is not an address and
// requires no escape, and net/mail parses an address to the same address.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"ann", "a.b_c-1", "", ".ann", "ann@example.com", "Ann <ann@example.com>", `"a b"@example.com`, "a..b@example.com", "ann@[127.0.0.1]", "ann@example.com.",
		"ann@-example.com", "ann@exa_mple.com", "ann+tag@example.com", "-ann@example.com", "=ann@example.com", "+ann@example.com", "@ann@example.com", "ann@example.com\n", "аnn", "ann\u200b", "a@b", "(c)ann@example.com", strings.Repeat("a", 81), strings.Repeat("a", 65) + "@example.com"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if Username(s) == "" {
			if len(s) > 80 || strings.Contains(s, "@") || url.PathEscape(s) != s || strconv.Quote(s) != `"`+s+`"` {
				t.Errorf("the username %q is accepted", s)
			}
		}
		if Email(s) == "" {
			a, err := mail.ParseAddress(s)
			if err != nil || strings.ContainsAny(s[:1], "-=+@") || a.Address != s || a.Name != "" || len(s) > 254 {
				t.Errorf("the address %q is accepted, and net/mail reads %v, %v", s, a, err)
			}
		}
	})
}
