package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Claims are what an access token says (RFC 7519), by the names and in the
// order of Flask-JWT-Extended, and the session it belongs to.
type claims struct {
	fresh     bool // minted by a login, not by a refresh
	issued    int64
	id        string
	subject   int64 // the user
	notBefore int64
	expires   int64
	session   int64
}

// tokenType is the claim that keeps another kind of token, signed with the
// same key by another service, from being taken for an access token.
const tokenType = "access"

// maxToken is the longest token looked at, in bytes; userd's have about 330.
const maxToken = 1024

// A signingKey signs access tokens with HMAC-SHA-256, "HS256" of RFC 7518
// section 3.2, and knows no other algorithm.
type signingKey struct {
	secret []byte
	header string // the encoded JOSE header of every token it signs
}

// newKey returns a key. A key named by kid is one of several in the database;
// the key from the configuration has no kid, so that its tokens have the very
// header that PyJWT writes.
func newKey(kid string, secret []byte) *signingKey {
	header := `{"alg":"HS256","typ":"JWT"}`
	if kid != "" {
		header = `{"alg":"HS256","kid":"` + kid + `","typ":"JWT"}`
	}
	return &signingKey{secret, base64.RawURLEncoding.EncodeToString([]byte(header))}
}

// mac returns the signature of a JWS signing input (RFC 7515 section 5.1).
func (k *signingKey) mac(input string) []byte {
	h := hmac.New(sha256.New, k.secret)
	h.Write([]byte(input))
	return h.Sum(nil)
}

// sign returns the token of c.
func (k *signingKey) sign(c claims) string {
	payload := fmt.Appendf(nil, `{"fresh":%t,"iat":%d,"jti":"%s","type":"%s","sub":"%d","nbf":%d,"exp":%d,"sid":"%d"}`,
		c.fresh, c.issued, c.id, tokenType, c.subject, c.notBefore, c.expires, c.session)
	input := k.header + "." + base64.RawURLEncoding.EncodeToString(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(k.mac(input))
}

// A keyring holds the keys whose tokens are good.
type keyring struct {
	signer   *signingKey
	byHeader map[string]*signingKey
}

func newKeyring(signer *signingKey) *keyring {
	return &keyring{signer, map[string]*signingKey{signer.header: signer}}
}

// verify returns the claims of a token that one of the keys signed and that is
// good at now, Unix seconds; otherwise errBadToken or, where time alone is
// against it, errExpiredToken. Nothing in a token is looked at before its
// signature holds, but its header, which must be a key's own byte for byte:
// with no header parsed, none of alg, kid, jwk, jku and crit is the token's to
// choose.
func (k *keyring) verify(token string, now int64) (claims, error) {
	if len(token) > maxToken {
		return claims{}, errBadToken
	}
	input, signature, ok := cutLast(token, '.')
	if !ok {
		return claims{}, errBadToken
	}
	header, payload, _ := strings.Cut(input, ".")
	key := k.byHeader[header]
	if key == nil {
		return claims{}, errBadToken
	}
	mac, ok := decodeBase64URL(signature)
	if !ok || !hmac.Equal(mac, key.mac(input)) {
		return claims{}, errBadToken
	}
	data, ok := decodeBase64URL(payload)
	if !ok {
		return claims{}, errBadToken
	}
	c, err := parseClaims(data)
	if err != nil {
		return claims{}, fmt.Errorf("%w: %w", errBadToken, err)
	}
	if c.issued > now || c.notBefore > now {
		return claims{}, errBadToken
	}
	if c.expires <= now {
		return claims{}, errExpiredToken
	}
	return c, nil
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// decodeBase64URL accepts the one spelling of each value that RFC 7515 allows:
// unpadded, the trailing bits zero, and none of the line breaks that Go's
// decoder skips. Two spellings would be two tokens for one signature.
func decodeBase64URL(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return data, err == nil
}

var errClaims = errors.New("claims missing or malformed")

// parseClaims reads the claims of a token whose signature holds. Another holder
// of the key may have written it: each claim that userd relies on must be there
// in its one form. Others are ignored, as RFC 7519 section 4 asks.
func parseClaims(data []byte) (c claims, err error) {
	var kind string
	seen := 0
	err = eachMember(data, func(name string, value []byte) error {
		seen++
		switch name {
		case "fresh":
			c.fresh = string(value) == "true"
			if !c.fresh && string(value) != "false" {
				return errClaims
			}
		case "iat":
			c.issued, err = parseID(string(value))
		case "nbf":
			c.notBefore, err = parseID(string(value))
		case "exp":
			c.expires, err = parseID(string(value))
		case "sub":
			c.subject, err = parseID(unquote(value))
		case "sid":
			c.session, err = parseID(unquote(value))
		case "jti":
			c.id = unquote(value)
		case "type":
			kind = unquote(value)
		default:
			seen--
		}
		return err
	})
	if err == nil && (seen != 8 || kind != tokenType || c.id == "") {
		err = errClaims
	}
	return c, err
}

// unquote returns what stands between the quotes of a JSON string that needs
// no escape, and "" for any other value.
func unquote(value []byte) string {
	if len(value) < 2 || value[0] != '"' || strings.IndexByte(string(value), '\\') >= 0 {
		return ""
	}
	return string(value[1 : len(value)-1])
}

var errID = errors.New("not a positive integer in its shortest form")

// parseID reads a positive integer written as strconv writes it: no sign, no
// leading zero, no fraction or exponent. One number has one name.
func parseID(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, errID
	}
	return n, nil
}

// randomKey returns a new secret of 256 bits, as long as the hash that HS256
// uses (RFC 7518 section 3.2), and a name for it.
func randomKey() (kid string, secret []byte) {
	secret = make([]byte, sha256.Size)
	rand.Read(secret)
	return strings.ToLower(rand.Text()[:8]), secret
}

// loadKeys returns the key that signs: the configured secret, or else the one
// kept in the database, which is made at the first start.
func loadKeys(ctx context.Context, st *store, secret []byte, now int64) (*keyring, error) {
	if len(secret) > 0 {
		return newKeyring(newKey("", secret)), nil
	}
	kid, secret, err := st.newestKey()
	if err == nil && kid == "" {
		kid, secret = randomKey()
		if err = st.addFirstKey(ctx, kid, secret, now); err == nil {
			kid, secret, err = st.newestKey() // another process may have been first
		}
	}
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	return newKeyring(newKey(kid, secret)), nil
}

// An access says who may call a route. The zero access is nobody.
type access int

const (
	nobody access = iota
	anyone
	signedIn
	adminOnly
	selfOrAdmin // of the user that {id} names
	byDirectory // self, admin, and others unless DIRECTORY=self
)

// A principal is who is calling: a user, by a session, known by an access token.
type principal struct {
	user
	session int64
	fresh   bool
}

// admit lets x through to a route of access a, or says why not. It sets x.who
// and, where the path has an {id}, x.target; "me" is the principal's own.
func (s *server) admit(x *exchange, a access) error {
	if a == anyone {
		return nil
	}
	if err := s.authenticate(x); err != nil {
		return err
	}
	switch id := x.r.PathValue("id"); id {
	case "":
	case "me":
		x.target = x.who.id
	default:
		var err error
		if x.target, err = parseID(id); err != nil {
			return &fault{kind: errUserNotFound, text: "There is no such user: an id is a positive integer, or me"}
		}
	}
	switch {
	case a == signedIn,
		a == adminOnly && x.who.role == admin,
		a == selfOrAdmin && (x.target == x.who.id || x.who.role == admin),
		a == byDirectory && (x.target == x.who.id || x.who.role == admin || s.directory != directorySelf):
		return nil
	}
	return errForbidden
}

// authenticate sets x.who from the request's token. The user's and the
// session's rows are read each time: a logout, a deletion, a disabled user or a
// changed role act on the very next request.
func (s *server) authenticate(x *exchange) error {
	token, err := bearer(x)
	if err != nil {
		return err
	}
	c, err := s.keys.verify(token, s.now().Unix())
	if err != nil {
		return err
	}
	u, err := s.store.sessionUser(c.session)
	if err != nil {
		return err
	}
	if u.id != c.subject {
		return errBadToken
	}
	x.who = principal{user: u, session: c.session, fresh: c.fresh}
	return nil
}

// bearer returns the token of the request (RFC 6750 section 2.1; the scheme's
// case does not matter, RFC 9110 section 11.1).
func bearer(x *exchange) (string, error) {
	header := x.r.Header["Authorization"]
	if len(header) > 1 {
		return "", errBadToken
	}
	if len(header) == 1 {
		scheme, token, _ := strings.Cut(header[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimLeft(token, " "), nil
		}
	}
	return "", errNoToken
}

// newClaims returns the claims of an access token for a session, minted now.
func newClaims(x *session, now time.Time, ttl time.Duration, fresh bool) claims {
	return claims{
		fresh:     fresh,
		issued:    now.Unix(),
		id:        rand.Text(),
		subject:   x.userID,
		notBefore: now.Unix(),
		expires:   now.Add(ttl).Unix(),
		session:   x.id,
	}
}
