package tagged

import (
	"encoding/hex"
	"strings"
	"testing"
)

// The second case of RFC 4231 section 4.3.
func TestSumIsHMACSHA256(t *testing.T) {
	t.Parallel()
	sum := Sum([]byte("Jefe"), "what do ya ", "want for nothing?")
	if got, want := hex.EncodeToString(sum[:]), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestOpenAcceptsOnlyWhatAppendMade(t *testing.T) {
	t.Parallel()
	key := []byte("key")
	for _, text := range []string{"", "a", "a.b", ".", "a."} {
		s := Append(key, "x:", text)
		if got, ok := Open(key, "x:", s); !ok || got != text {
			t.Errorf("%q: got %q, %t", s, got, ok)
		}
		tag := s[len(text):]
		for claim, forged := range map[string]string{
			"without its tag":      text,
			"with half of its tag": s[:len(s)-20],
			"with more":            s + "A",
			"with a second tag":    s + tag,
			"with another text":    text + "x" + tag,
			"with other bits":      s[:len(s)-1] + string(s[len(s)-1]+1),
			"with padding":         s + "=",
			"of another label":     Append(key, "y:", text),
			"of another key":       Append([]byte("kez"), "x:", text),
			"in upper case":        strings.ToUpper(s),
		} {
			if got, ok := Open(key, "x:", forged); ok || got != "" {
				t.Errorf("%q %s is accepted: %q", text, claim, got)
			}
		}
	}
}

func TestDecodeBase64URLAcceptsOneForm(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"": true, "YQ": true, "_-8": true, "YQ==": false, "YR": false, "Y\nQ": false, "YQ\r\n": false, "/+8": false, "Y": false} {
		if _, ok := DecodeBase64URL(text); ok != want {
			t.Errorf("%q: got %t", text, ok)
		}
	}
}
