package otp

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"
)

const (
	recoveryLen   = 24 // characters of base32, 5 bits each
	recoveryGroup = 6
)

// NewRecoveryCodes returns n recovery codes, such as ABCDEF-GHIJKL-MNOPQR-STUVWX: 120
// random bits each, in four groups of six characters of base32.
func NewRecoveryCodes(n int) []string {
	codes := make([]string, n)
	for i := range codes {
		var random [recoveryLen * 5 / 8]byte
		rand.Read(random[:])
		text := EncodeSecret(random[:])
		for len(text) > recoveryGroup {
			codes[i] += text[:recoveryGroup] + "-"
			text = text[recoveryGroup:]
		}
		codes[i] += text
	}
	return codes
}

// A Kind says what a typed text can be.
type Kind int

const (
	Neither  Kind = iota
	TOTP          // 6 digits
	Recovery      // 24 characters of base32
)

// Parse tells from the form of a typed text what it can be, and returns its normal form,
// which [Match] and [Hash] accept. White space, hyphens, case and the
// width of characters do not matter.
//
// Base32 does not have the digits 0 and 1, so the normal form of a recovery code has the
// letters that they look like (RFC 4648 section 3.4): O for 0, and I for 1. It also has I
// for L, because a person may write I as l and read l as 1. A random code is then still
// at least 96 bits hard to guess, and 118 on average.
func Parse(typed string) (Kind, string) {
	text := compact(typed)
	if len(text) == digits && strings.Trim(text, "0123456789") == "" {
		return TOTP, text
	}
	text = strings.NewReplacer("0", "O", "1", "I", "L", "I").Replace(text)
	if len(text) == recoveryLen && strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == "" {
		return Recovery, text
	}
	return Neither, ""
}

// Hash returns the SHA-256 of the normal form of a recovery code, which a database can
// hold instead of the code. The code has too many bits to guess, so a slow hash would
// not protect it better. A text that is not a recovery code has no hash: nil.
func Hash(code string) []byte {
	kind, text := Parse(code)
	if kind != Recovery {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}
