// Package refresh makes and recognizes refresh tokens that rotate: each use of a token makes
// its successor.
//
// A token is SESSION.GENERATION.SECRET.TAG: the id of a session, the number of earlier tokens,
// 256 random bits in base64url, and a MAC of the three (package tagged). The rotation reveals
// a theft: sooner or later, the thief and the owner use the same token (OAuth 2.0 Security
// BCP, RFC 9700 section 4.14.2). The service decides what to do then.
package refresh

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"

	"userd/internal/tagged"
)

// A Token is what a refresh token says. Neither number is negative.
type Token struct {
	Session    int64
	Generation int64
	Secret     [sha256.Size]byte
}

// New returns the first token of a session, with a random secret.
func New(session int64) Token {
	t := Token{Session: session}
	rand.Read(t.Secret[:])
	return t
}

// Hash returns the SHA-256 of the secret: a database stores only this. A fast hash is enough
// for 256 random bits.
func (t *Token) Hash() []byte {
	sum := sha256.Sum256(t.Secret[:])
	return sum[:]
}

func (t *Token) untagged() string {
	return strconv.FormatInt(t.Session, 10) + "." + strconv.FormatInt(t.Generation, 10) + "." +
		base64.RawURLEncoding.EncodeToString(t.Secret[:])
}

// A Key makes and recognizes tokens. It must have no other use, and should have 32 random
// bytes.
type Key []byte

// The labels of the two uses of a key.
const (
	tagLabel  = "tag:"
	nextLabel = "next:"
)

// Format returns the text of a token.
func (k Key) Format(t *Token) string { return tagged.Append(k, tagLabel, t.untagged()) }

// Parse returns the token that Format wrote as s, or false. It checks the tag first: a guessed
// token costs no look-up. It hashes all of s, so the caller limits its length.
func (k Key) Parse(s string) (t Token, ok bool) {
	text, ok := tagged.Open(k, tagLabel, s)
	if !ok {
		return t, false
	}
	parts := strings.Split(text, ".") // Format wrote them, so these cannot fail
	t.Session, _ = strconv.ParseInt(parts[0], 10, 64)
	t.Generation, _ = strconv.ParseInt(parts[1], 10, 64)
	secret, _ := tagged.DecodeBase64URL(parts[2])
	copy(t.Secret[:], secret)
	return t, true
}

// Next returns the successor of t, which is always the same.
func (k Key) Next(t Token) Token {
	return Token{t.Session, t.Generation + 1, tagged.Sum(k, nextLabel, t.untagged())}
}
