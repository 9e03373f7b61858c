package refresh

import (
	"crypto/sha256"
	"math"
	"strings"
	"testing"
)

func TestParseReadsWhatFormatWrites(t *testing.T) {
	t.Parallel()
	k := Key("a key")
	longest := New(math.MaxInt64)
	longest.Generation = math.MaxInt64
	for _, token := range []Token{New(1), New(0), longest, k.Next(New(7)), {Session: 3}} {
		s := k.Format(&token)
		if got, ok := k.Parse(s); !ok || got != token {
			t.Errorf("%s: got %+v, %t", s, got, ok)
		}
		if _, ok := Key("another").Parse(s); ok {
			t.Errorf("another key accepts %s", s)
		}
	}
}

// Earlier builds wrote this token. It must stay valid.
func TestTheFormatStays(t *testing.T) {
	t.Parallel()
	k := Key(strings.Repeat("k", 32))
	token := Token{Session: 7, Generation: 2, Secret: sha256.Sum256(nil)}
	if got, want := k.Format(&token), "7.2.47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU.gEBWRX9zGW1PBJf5eliOfXVyXBbymc2Bskhu4_wxdeI"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	next := k.Next(token)
	if got, want := k.Format(&next), "7.3.9SELRpmFRAA2CpFaHlfvqrr_f6FVs5M_giX-KLqyfks.RpdWmI5BZDUM4kU4ZhZIt_rWeLPoIhelhtHgwGn4owk"; got != want {
		t.Errorf("the next is %s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	k := Key("a key")
	token := New(1)
	s := k.Format(&token)
	parts := strings.Split(s, ".")
	for claim, forged := range map[string]string{
		"nothing":            "",
		"no tag":             strings.Join(parts[:3], "."),
		"another session":    "2." + strings.Join(parts[1:], "."),
		"another generation": "1.1." + parts[2] + "." + parts[3],
		"another spelling":   "01." + strings.Join(parts[1:], "."),
		"a fifth part":       s + ".x",
		"a long text":        s + strings.Repeat("A", 1<<16),
	} {
		if _, ok := k.Parse(forged); ok {
			t.Errorf("%s: %s is accepted", claim, forged)
		}
	}
}

func TestEachTokenHasOneSuccessor(t *testing.T) {
	t.Parallel()
	k := Key("a key")
	first := New(1)
	second := k.Next(first)
	if second != k.Next(first) || second == k.Next(New(1)) || second == k.Next(second) {
		t.Error("a successor depends on something else, or two tokens share it")
	}
	if second.Session != 1 || second.Generation != 1 || second.Secret == first.Secret {
		t.Errorf("got %+v", second)
	}
	if string(first.Hash()) == string(second.Hash()) || string(first.Hash()) == string(first.Secret[:]) {
		t.Error("the hash is not that of the secret")
	}
}
