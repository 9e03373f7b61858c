package main

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"userd/internal/apikey"
	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/strictjson"
	"userd/internal/tagged"
)

// claims are the claims of an access token (RFC 7519): those of
// Flask-JWT-Extended, in its order, and the session. Times are in Unix seconds.
type claims struct {
	fresh     bool // a login made the token, not a refresh: it is a proof for proofAge
	issued    int64
	id        string
	subject   int64 // the user
	notBefore int64
	expires   int64
	session   int64
	tokenNames
	otp bool   // the claim amr names a second factor
	kid string // of the key that signed it; not a claim
}

// amr is the claim of a token whose session has proven a second factor (RFC 8176). Other
// tokens do not have the claim.
const amr = `"amr":["pwd","otp"],`

// tokenType is the claim "type" of an access token. It differs from that of other
// kinds of token, which another service may sign with the same key.
const tokenType = "access"

// clockLeeway is how many seconds in the future a token may have been issued: the clocks
// of two machines, or one clock before and after a step, can differ by this much.
const clockLeeway = 60

// maxToken is the largest length of a token, in bytes. userd's tokens have about 330, and
// at most about 1,300 with the longest names (setting.MaxNames).
const maxToken = 2048

// A signingKey signs access tokens with HMAC-SHA-256, "HS256" of RFC 7518
// section 3.2. It supports no other algorithm.
type signingKey struct {
	kid    string // empty: the key is from the configuration
	secret []byte
	header string    // the encoded JOSE header of every token that it signs
	macs   sync.Pool // of hash.Hash: a new one costs half as much time as a token
}

// newSigningKey returns a key. A key of the database has a kid. A key of the configuration
// has none: its tokens have the header that PyJWT writes.
func newSigningKey(kid string, secret []byte) *signingKey {
	header := `{"alg":"HS256","typ":"JWT"}`
	if kid != "" {
		header = `{"alg":"HS256","kid":"` + kid + `","typ":"JWT"}`
	}
	return &signingKey{kid: kid, secret: secret, header: base64.RawURLEncoding.EncodeToString([]byte(header))}
}

// headerWithKid matches the headers that newSigningKey makes of the kids of randomKey.
var headerWithKid = regexp.MustCompile(`^\{"alg":"HS256","kid":"([a-z2-7]{8})","typ":"JWT"\}$`)

// mac returns the signature of a JWS signing input (RFC 7515 section 5.1).
func (k *signingKey) mac(input string) []byte {
	h, ok := k.macs.Get().(hash.Hash)
	if !ok {
		h = hmac.New(sha256.New, k.secret)
	}
	h.Write([]byte(input))
	sum := h.Sum(nil)
	h.Reset()
	k.macs.Put(h)
	return sum
}

// sign returns a token with these claims.
func (k *signingKey) sign(c claims) string {
	members := c.members()
	if c.otp {
		members += amr
	}
	payload := fmt.Appendf(nil, `{"fresh":%t,"iat":%d,"jti":"%s","type":"%s","sub":"%d","nbf":%d,%s"exp":%d,"sid":"%d"}`,
		c.fresh, c.issued, c.id, tokenType, c.subject, c.notBefore, members, c.expires, c.session)
	input := k.header + "." + base64.RawURLEncoding.EncodeToString(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(k.mac(input))
}

// A keyring holds the keys whose tokens are valid: those of the configuration, and
// those of the database, which it looks up when a token first names them.
type keyring struct {
	configured []*signingKey // the first one signs; if empty, the database's newest key signs
	lookup     func(kid string, now int64) (secret []byte, err error)
	required   tokenNames // of every valid token; those of the configuration

	mu       sync.RWMutex
	byHeader map[string]*signingKey // of the database; store.principal checks that they are still valid
}

// newKeyring returns a keyring of the configured keys and of the database's keys, which
// lookup finds. lookup returns errNoKey for an unknown kid.
func newKeyring(lookup func(kid string, now int64) ([]byte, error), configured ...*signingKey) *keyring {
	return &keyring{configured: configured, lookup: lookup, byHeader: make(map[string]*signingKey)}
}

// signer returns the key that signs: the configuration's first key or, if the configuration
// has none, the database's newest key, which is row.
func (k *keyring) signer(row keyRow) *signingKey {
	if len(k.configured) > 0 {
		return k.configured[0]
	}
	return newSigningKey(row.kid, row.secret)
}

// keyByHeader returns the database's key that the header of a token names. It
// returns errBadToken if the header names none, or errStorage.
func (k *keyring) keyByHeader(header string, now int64) (*signingKey, error) {
	k.mu.RLock()
	key := k.byHeader[header]
	k.mu.RUnlock()
	if key != nil {
		return key, nil
	}
	text, ok := tagged.DecodeBase64URL(header)
	match := headerWithKid.FindStringSubmatch(string(text))
	if !ok || match == nil {
		return nil, errBadToken
	}
	secret, err := k.lookup(match[1], now)
	switch {
	case errors.Is(err, errNoKey):
		return nil, errBadToken
	case err != nil:
		return nil, err
	}
	key = newSigningKey(match[1], secret)
	k.mu.Lock()
	k.byHeader[header] = key // only keys of the table get here, so clients cannot make the map grow
	k.mu.Unlock()
	return key, nil
}

// verify returns the claims of a token that one of the keys signed and that is valid at now, in
// Unix seconds. It returns errBadToken, errExpiredToken if the token is valid except for its age,
// or errStorage if it could not look up a key. Before the signature is checked, only the header is
// read. It must equal the header of a key byte for byte and is never parsed: a token cannot choose
// alg, jwk, jku or crit, and as kid only one of our keys.
func (k *keyring) verify(token string, now int64) (claims, error) {
	if len(token) > maxToken {
		return claims{}, errBadToken
	}
	dot := max(strings.LastIndexByte(token, '.'), 0)
	input, signature := token[:dot], strings.TrimPrefix(token[dot:], ".")
	mac, ok := tagged.DecodeBase64URL(signature)
	if !ok {
		return claims{}, errBadToken
	}
	header, payload, _ := strings.Cut(input, ".")
	var signer *signingKey
	for _, key := range k.configured {
		if header == key.header && hmac.Equal(mac, key.mac(input)) {
			signer = key
			break
		}
	}
	if signer == nil {
		key, err := k.keyByHeader(header, now)
		if err != nil {
			return claims{}, err
		}
		if !hmac.Equal(mac, key.mac(input)) {
			return claims{}, errBadToken
		}
		signer = key
	}
	data, ok := tagged.DecodeBase64URL(payload)
	if !ok {
		return claims{}, errBadToken
	}
	c, err := parseClaims(data)
	if err != nil {
		return claims{}, errBadToken // without err, whose text is about a request's body
	}
	// A clock that was set back makes good tokens look as if they came from the future. The
	// client must refresh such a token, not log in again. Earlier builds made tokens that live for
	// years. A token without the required names may be from before the operator set them.
	if !k.required.accept(&c.tokenNames) || c.expires <= now || now-c.issued >= int64(maxAccessTTL/time.Second) || max(c.issued, c.notBefore) > now+clockLeeway {
		return claims{}, errExpiredToken
	}
	c.kid = signer.kid
	return c, nil
}

var errClaims = errors.New("claims missing or malformed")

// parseClaims reads the claims of a token whose signature is valid. Another holder
// of the key may have written the token. So each claim that userd relies on must
// exist, in its only valid form. Other claims are ignored (RFC 7519 section 4).
func parseClaims(data []byte) (c claims, err error) {
	var kind string
	seen := 0
	err = strictjson.Members(data, func(name string, value []byte) error {
		seen++
		switch name {
		case "fresh":
			c.fresh = string(value) == "true"
			if !c.fresh && string(value) != "false" {
				return errClaims
			}
		case "iat":
			c.issued, err = param.ID(string(value))
		case "nbf":
			c.notBefore, err = param.ID(string(value))
		case "exp":
			c.expires, err = param.ID(string(value))
		case "sub":
			c.subject, err = param.ID(strictjson.Unquote(value))
		case "sid":
			c.session, err = param.ID(strictjson.Unquote(value))
		case "jti":
			c.id = strictjson.Unquote(value)
		case "type":
			kind = strictjson.Unquote(value)
		case "iss":
			c.issuer = strictjson.Unquote(value)
			seen--
		case "aud":
			c.audience = strictjson.Strings(value)
			seen--
		case "amr":
			c.otp = slices.Contains(strictjson.Strings(value), "otp")
			seen--
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

// An access says who may call a route. The zero access rejects every request. Those from
// selfOnly on also admit a session to the data of its user without the second factor that
// REQUIRE_FACTOR requires: otherwise the user could neither add one nor log out.
type access int

const (
	noAccess access = iota
	anyone
	signedIn
	adminOnly
	selfOrAdmin    // the user that {id} names, and admins
	byDirectory    // the same, and all users unless DIRECTORY=self
	resourceServer // API keys with verifyScope, and admins
	selfOnly       // the user that {id} names
	anySession     // like signedIn, but without a required factor too
	ownOrAdmin     // like selfOrAdmin, but for oneself without a required factor too
)

// admit returns nil if x may call a route with this access. Unless the access is anyone,
// admit sets x.who and, if the path has an {id}, x.target: "me" is the principal's id.
// It returns an error of authenticate, errUserNotFound, errFactorRequired or errForbidden.
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
		if x.target, err = param.ID(id); err != nil {
			return errUserNotFound.with("User not found: an id is a positive integer, or me")
		}
	}
	if (a < selfOnly || a == ownOrAdmin && x.target != x.who.id || x.who.key != 0) &&
		!x.who.factor && !x.who.factorExempt && s.requireFactor.concerns(x.who.role == admin) {
		return errFactorRequired
	}
	switch {
	case a == signedIn, a == anySession,
		a == selfOnly && x.target == x.who.id,
		a == adminOnly && x.who.role == admin,
		(a == selfOrAdmin || a == ownOrAdmin) && (x.target == x.who.id || x.who.role == admin),
		a == byDirectory && (x.target == x.who.id || x.who.role == admin || s.directory != directorySelf),
		a == resourceServer && (x.who.scope == verifyScope || x.who.role == admin):
		return nil
	case a == adminOnly, a == resourceServer:
		return errForbidden.with("Only an admin may do this")
	case a == selfOnly:
		return errForbidden.with("Only the user itself may do this")
	}
	return errForbidden
}

// authenticate sets x.who from the request's token or API key. It reads the rows of the user
// and of the session each time: a logout, a deletion, and a change of role or
// disabled take effect on the next request. It returns errNoToken, errBadToken,
// errExpiredToken, or an error of store.principal or of authenticateKey.
func (s *server) authenticate(x *exchange) error {
	token, err := headers.Bearer(x.r)
	if err != nil {
		return clientError(err)
	}
	if apikey.Begins(token) {
		return s.authenticateKey(x, token)
	}
	now := s.wall().Unix()
	c, err := s.keys.verify(token, now)
	if err != nil {
		return err
	}
	id := newTokenID(c.id)
	u, lastUsedAt, factor, err := s.store.principal(c.session, id, c.kid, now)
	if err != nil {
		return err
	}
	if u.id != c.subject {
		return errBadToken
	}
	if lastUsedAt <= now-touchEvery {
		s.store.touch(c.session, now)
	}
	x.who = principal{user: u, session: c.session, token: id, fresh: c.fresh, issued: c.issued, factor: factor, otp: c.otp}
	x.logUser = u.id
	return nil
}

// authenticateKey sets x.who from an API key. It reads the rows of the key and of its user
// for each request. It returns errBadToken, errExpiredKey, errStorage, errKeyScope if the route
// does not permit the scope, or errLimited if the network has sent too many keys that are not valid.
// Such keys count only toward the limit badKeys: a key cannot be guessed, so they must not use up
// the limits of logins.
func (s *server) authenticateKey(x *exchange, key string) error {
	now := s.wall().Unix()
	u, k, err := s.store.userOfKey(key, now)
	switch {
	case errors.Is(err, errStorage):
		return err
	case err != nil:
		x.counted = true
		s.stats.badKeys.Add(1)
		return cmp.Or(s.allow(x, badKeys), err)
	}
	if k.lastUsedAt <= now-touchKeyEvery {
		s.store.touchKey(k.id, x.address, now)
	}
	x.who.user, x.who.key, x.who.scope, x.who.keyReadAt, x.who.factorExempt = u, k.id, k.scope, now, k.factorExempt
	x.logUser = u.id
	if !slices.Contains(x.scopes, k.scope) { // here, because not only admit calls authenticate
		return errKeyScope
	}
	return nil
}

// A proof is a set of acts with which a thief could take over an account or keep it. Each
// row of the route table has the acts of its route for which a caller must prove its
// identity again. A field with its current value is not an act.
type proof uint16

const (
	changeUsername proof = 1 << iota // these acts concern the caller or, for admins, other users
	changeEmail
	changePassword
	changeRole
	changeDisabled
	deleteUser
	createAdmin
	endOtherSessions // any session except that of the request
	makeLink         // that sets the password of a user
	invite
	makeKey
	changeFactor

	changeUser       = changeUsername | changeEmail | changePassword | changeRole | changeDisabled
	noProof    proof = 0

	// The acts for which the token with which the user changed the password is no longer
	// proof, because a thief may hold it too. Their writes check this.
	renewedOnly = changeEmail | changePassword | changeRole | createAdmin | makeLink | invite | makeKey | changeFactor

	// The acts that an API key with adminScope may do to members. The other acts could make an
	// admin or take over an account.
	keyActs = changeUsername | changeDisabled | deleteUser | endOtherSessions
)

// actsOf returns the acts of a change of a user, with changePassword unless password is nil.
func actsOf(c *change, password *string) (acts proof) {
	add := func(act proof, does bool) {
		if does {
			acts |= act
		}
	}
	add(changeUsername, c.username != nil)
	add(changeEmail, c.email != nil || c.verified != nil || c.pendingEmail != nil && *c.pendingEmail != "")
	add(changePassword, password != nil)
	add(changeRole, c.role != nil)
	add(changeDisabled, c.disabled != nil)
	return acts
}

// proofAge is how many seconds a login is proof, however long its token lives: a token
// that is stolen later must not be enough to take over the account. A reader of the
// tutorial logs in once, and needs some minutes for all of its commands.
const proofAge = 15 * 60

// requireProof returns nil if the caller proves its identity: by p.CurrentPassword or, if that
// is nil, by a token that a login made at most proofAge seconds ago. It always checks a
// password. Without one, it returns nil if the route requires no proof for these acts. If the
// caller has a second factor, a token is proof only if its login proved the factor, and a
// password only together with p.OTP, a code of the factor, which requireProof uses up. The write
// that follows checks that the proof is still valid (see mayChange). For an API key, requireProof
// is requireKey. It returns errNotFresh, errWrongPassword, errSecondFactor, errOTPUsed,
// errUserNotFound, or an error of matchesPassword, checkCode or requireKey.
func (s *server) requireProof(x *exchange, acts proof, p proofRequest) error {
	acts &= x.proof
	if x.who.key != 0 {
		return x.requireKey(acts, p)
	}
	if p.CurrentPassword == nil {
		age := s.wall().Unix() - x.who.issued
		x.renewed = acts&renewedOnly != 0
		if acts == 0 || x.who.fresh && (x.who.otp || !x.who.factor) && -clockLeeway <= age && age <= proofAge {
			return nil
		}
		return errNotFresh
	}
	c, err := s.store.credentials(x.who.id)
	if err != nil {
		return err
	}
	ok, err := s.matchesPassword(x, x.who.id, &c, "", *p.CurrentPassword)
	if err == nil && !ok {
		err = errWrongPassword
	}
	x.stamp = &c.stamp
	if err != nil || acts == 0 || !c.factor.exists() {
		return err
	}
	if p.OTP == nil || *p.OTP == "" {
		return errSecondFactor
	}
	proven, err := s.checkCode(x, x.who.id, &c, *p.OTP, withPassword)
	if err != nil {
		return err
	}
	return s.store.useFactor(x.r.Context(), x.who.id, proven, x.address, s.wall().Unix())
}

// requireKey is requireProof for an API key. A key may do acts that require no proof and, with
// adminScope, keyActs to members. The write that follows checks that the changed user is a
// member. requireKey returns errKeyScope.
func (x *exchange) requireKey(acts proof, p proofRequest) error {
	switch {
	case p.CurrentPassword != nil:
		return errKeyScope.with("An API key cannot use a password: leave out current_password")
	case acts == noProof:
		return nil
	case acts&^keyActs != 0 || x.who.scope != adminScope || x.target == x.who.id:
		return errKeyScope.with("An API key may not do this: it requires a login")
	}
	x.requiresProof = true
	return nil
}

// A proofRequest is the proof in the body of a request. Some bodies have no other members.
type proofRequest struct {
	CurrentPassword *string `json:"current_password"`
	OTP             *string `json:"otp"`
}

// targetUser returns the user that the path names, or errUserNotFound. It does not
// read the principal again.
func (s *server) targetUser(x *exchange) (*user, error) {
	if x.target == x.who.id {
		return &x.who.user, nil
	}
	u, err := s.store.user(x.target)
	return &u, err
}
