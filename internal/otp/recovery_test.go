package otp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"testing"
)

func TestNewRecoveryCodes(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^[A-Z2-7]{6}(-[A-Z2-7]{6}){3}$`)
	codes := NewRecoveryCodes(500)
	if len(codes) != 500 || len(NewRecoveryCodes(0)) != 0 {
		t.Fatalf("%d codes", len(codes))
	}
	seen, letters := make(map[string]bool), make(map[rune]int)
	for _, code := range codes {
		if !form.MatchString(code) || seen[code] {
			t.Fatalf("NewRecoveryCodes returned %q", code)
		}
		seen[code] = true
		for _, r := range code {
			letters[r]++
		}
		if kind, _ := Parse(code); kind != Recovery {
			t.Errorf("Parse(%q) = %v", code, kind)
		}
	}
	for r, n := range letters { // 375 are expected, with a standard deviation of 19
		if r != '-' && (n < 240 || n > 510) {
			t.Errorf("%c appears %d times", r, n)
		}
	}
	if len(letters) != 33 {
		t.Errorf("%d different characters", len(letters))
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	const normal = "ABCDEFGHIJKIMNOPQRSTUVWX"
	for _, c := range []struct {
		typed string
		kind  Kind
		code  string
	}{
		{"000000", TOTP, "000000"},
		{" 123 456\n", TOTP, "123456"},
		{"123-456", TOTP, "123456"},
		{"12345", Neither, ""},
		{"1234567", Neither, ""},
		{"12345O", Neither, ""}, // a code of six digits has no letters to mistake
		{"１２３　４５６", TOTP, "123456"},
		{"123\u00a0456", TOTP, "123456"},
		{"123\u202f456", TOTP, "123456"},
		{"٢٨٧٠٨٢", Neither, ""},
		{"１２３４５", Neither, ""},
		{"１２３４５Ｏ", Neither, ""},
		{"ＡＢＣＤＥＦ－ｇｈｉｊｋｌ－ＭＮＯＰＱＲ－ＳＴＵＶＷＸ", Recovery, normal},
		{"ABCDEF-GHIJKL-MNOPQR-STUVWX", Recovery, normal},
		{"abcdefghijklmnopqrstuvwx", Recovery, normal},
		{"  abcdef ghijkl\tmnopqr stuvwx\r\n", Recovery, normal},
		{"ABCDEF\u2010GHIJKL\u2013MNOPQR\u2014STUVWX", Recovery, normal},
		{"ABCDEF-GH1JK1-MN0PQR-STUVWX", Recovery, normal},
		{"abcdef-ghljkl-mn0pqr-stuvwx", Recovery, normal},
		{"010101010101010101010101", Recovery, "OIOIOIOIOIOIOIOIOIOIOIOI"},
		{"ABCDEF-GHIJKL-MNOPQR-STUVW", Neither, ""},
		{"ABCDEF-GHIJKL-MNOPQR-STUVWXY", Neither, ""},
		{"ABCDEF-GHIJKL-MNOPQR-STUVW8", Neither, ""},
		{"ABCDEF_GHIJKL_MNOPQR_STUVWX", Neither, ""},
		{"ABCDEF-GHIJKL-MNOPQR-STUVWÄ", Neither, ""},
		{"ABCDEFGHIJKLMNOPQRSTUVWſ", Neither, ""},
		{"", Neither, ""},
		{"- -", Neither, ""},
	} {
		if kind, code := Parse(c.typed); kind != c.kind || code != c.code {
			t.Errorf("Parse(%q) = %v, %q, want %v, %q", c.typed, kind, code, c.kind, c.code)
		}
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	// printf ABCDEFGHIJKIMNOPQRSTUVWX | sha256sum
	const want = "fb284a6394ec51548a1f281615aec7910188d93d15d1adc862ae835e20b21338"
	for _, code := range []string{"ABCDEF-GHIJKL-MNOPQR-STUVWX", "abcdef gh1jkl mn0pqr stuvwx", "ABCDEFGHIJKIMNOPQRSTUVWX"} {
		if got := hex.EncodeToString(Hash(code)); got != want {
			t.Errorf("Hash(%q) = %s", code, got)
		}
	}
	for _, other := range []string{"", "123456", "ABCDEF-GHIJKL-MNOPQR-STUVW8"} {
		if got := Hash(other); got != nil {
			t.Errorf("Hash(%q) = %x", other, got)
		}
	}
}

// FuzzParse checks that each normal form is its own, and the properties of each kind.
func FuzzParse(f *testing.F) {
	f.Add("123 456")
	f.Add("ABCDEF-GHIJKL-MNOPQR-STUVWX")
	f.Add("abcdef gh1jkl mn0pqr stuvwx\xff")
	forms := map[Kind]*regexp.Regexp{
		Neither:  regexp.MustCompile(`^$`),
		TOTP:     regexp.MustCompile(`^[0-9]{6}$`),
		Recovery: regexp.MustCompile(`^[A-KM-Z2-7]{24}$`),
	}
	f.Fuzz(func(t *testing.T, typed string) {
		kind, code := Parse(typed)
		if !forms[kind].MatchString(code) {
			t.Errorf("Parse(%q) = %v, %q", typed, kind, code)
		}
		if k, c := Parse(code); k != kind || c != code {
			t.Errorf("Parse(%q) = %v, %q", code, k, c)
		}
		if k, c := Parse(strings.ToLower(code)); k != kind || c != code {
			t.Errorf("Parse of %q in lower case = %v, %q", code, k, c)
		}
		sum := sha256.Sum256([]byte(code))
		if got := Hash(typed); (got != nil) != (kind == Recovery) || got != nil && !bytes.Equal(got, sum[:]) {
			t.Errorf("Hash(%q) = %x", typed, got)
		}
	})
}
