package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, KeySize) }

func testRing(t *testing.T, keys ...[]byte) *Ring {
	t.Helper()
	r, err := NewRing(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestATextOpensOnlyUnderItsKeyAndName(t *testing.T) {
	t.Parallel()
	r := testRing(t, testKey(1))
	sealed := r.Seal([]byte("a secret"), "7:secret")
	if bytes.Contains(sealed, []byte("a secret")) || bytes.Equal(sealed, r.Seal([]byte("a secret"), "7:secret")) {
		t.Fatal("the text is visible, or the nonce is not random")
	}
	if text, err := r.Open(sealed, "7:secret"); err != nil || string(text) != "a secret" {
		t.Errorf("Open: %q, %v", text, err)
	}
	for _, name := range []string{"", "8:secret", "7:secret "} {
		if text, err := r.Open(sealed, name); err != ErrDamaged || text != nil {
			t.Errorf("Open as %q: %q, %v", name, text, err)
		}
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		want := ErrDamaged
		if i < IDSize {
			want = ErrUnknownKey
		}
		if text, err := r.Open(changed, "7:secret"); !errors.Is(err, want) || text != nil {
			t.Errorf("with another byte %d: %q, %v", i, text, err)
		}
		if text, err := r.Open(sealed[:i], "7:secret"); err == nil {
			t.Errorf("the first %d bytes open as %q", i, text)
		}
	}
	if _, err := testRing(t, testKey(2)).Open(sealed, "7:secret"); err != ErrUnknownKey {
		t.Errorf("with another key: %v", err)
	}
}

// The form is that of AES-256-GCM with a nonce of 96 bits before the text.
func TestTheFormIsThatOfGCM(t *testing.T) {
	t.Parallel()
	sealed := testRing(t, testKey(1)).Seal([]byte("a secret"), "name")
	block, err := aes.NewCipher(testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := bytes.CutPrefix(sealed, ID(testKey(1)))
	text, err := aead.Open(nil, rest[:12], rest[12:], []byte("name"))
	if !ok || err != nil || string(text) != "a secret" {
		t.Errorf("%x opens as %q, %v", sealed, text, err)
	}
}

func TestARingOpensTextsOfItsOtherKeys(t *testing.T) {
	t.Parallel()
	old := testRing(t, testKey(1)).Seal([]byte("old"), "n")
	r := testRing(t, testKey(2), testKey(1))
	if text, err := r.Open(old, "n"); err != nil || string(text) != "old" {
		t.Errorf("Open: %q, %v", text, err)
	}
	if r.Current(old) || !r.Current(r.Seal(nil, "n")) || !r.Has(ID(testKey(1))) || r.Has(ID(testKey(3))) {
		t.Error("the ring confuses its keys")
	}
	if new(Ring).Current(old) {
		t.Error("an empty ring has a current key")
	}
}

func TestNewRingRefusesKeysOfOtherLengths(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 16, 24, 31, 33} {
		if _, err := NewRing(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes", n)
		}
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	want := bytes.Repeat([]byte{0xfb, 0xff}, KeySize/2)
	for _, text := range []string{
		base64.StdEncoding.EncodeToString(want), base64.RawStdEncoding.EncodeToString(want),
		base64.URLEncoding.EncodeToString(want), " " + base64.StdEncoding.EncodeToString(want) + "\n",
	} {
		if key, err := ParseKey(text); err != nil || !bytes.Equal(key, want) {
			t.Errorf("ParseKey(%q) = %x, %v", text, key, err)
		}
	}
	for _, text := range []string{"", "hunter2", base64.StdEncoding.EncodeToString(want[:31]), base64.StdEncoding.EncodeToString(append(want, 0)), strings.Repeat("!", 43)} {
		if _, err := ParseKey(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("ParseKey(%q): %v", text, err)
		}
	}
}
