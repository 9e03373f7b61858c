// Package tagged makes texts that only the holder of a key can make: TEXT.TAG. The tag is the
// HMAC-SHA-256 of a label and the text, in base64url without padding. Different labels have
// different tags, so that one key can have several uses.
//
// A holder of a tagged text can read the text, but cannot change it.
package tagged

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// Sum returns the HMAC-SHA-256 of a label and a text. No label should be the beginning of
// another one, unless their texts tell the uses apart.
func Sum(key []byte, label, text string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(label + text))
	h.Sum(sum[:0])
	return sum
}

// Append returns a text with its tag.
func Append(key []byte, label, text string) string {
	tag := Sum(key, label, text)
	return text + "." + base64.RawURLEncoding.EncodeToString(tag[:])
}

// Open returns the text to which [Append] has added its tag under this key and label. It
// reports whether the tag is right, in constant time.
func Open(key []byte, label, s string) (text string, ok bool) {
	text = s[:max(strings.LastIndexByte(s, '.'), 0)]
	if !hmac.Equal([]byte(s), []byte(Append(key, label, text))) {
		return "", false
	}
	return text, true
}

// DecodeBase64URL decodes the only form that RFC 7515 allows: without padding, with zero
// trailing bits, and without the line breaks that Go's decoder skips. If it accepted two
// forms, one signature would be valid for two tokens.
func DecodeBase64URL(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return data, err == nil
}
