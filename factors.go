package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/otp"
	"userd/internal/qr"
	"userd/internal/seal"
	"userd/internal/tagged"
)

const (
	recoveryCodes = 10      // the number of recovery codes that a user gets
	confirmWithin = 10 * 60 // seconds after which a new factor can no longer be confirmed
)

// beginFactor makes the secret of a new factor for a caller, stores it, and returns it. The
// factor is valid after confirmFactor. beginFactor returns an error of store.addPendingFactor.
func (s *userService) beginFactor(ctx context.Context, by caller, userID int64) (secret []byte, err error) {
	ring, err := s.ring(ctx)
	if err != nil {
		return nil, err
	}
	secret = otp.NewSecret()
	return secret, s.store.addPendingFactor(ctx, by, userID, ring.Seal(secret, pendingSealName(userID)), s.wall().Unix())
}

// confirmFactor makes the secret of beginFactor the factor of a user, for a caller, if typed is
// a code of this secret that is valid now. It returns the new recovery codes. A login then needs
// a later code, because a code works only once. The statements in before belong to the same
// write. It returns errNoPendingFactor, errWrongOTP, errStorage or an error of store.addFactor.
func (s *userService) confirmFactor(ctx context.Context, by caller, userID int64, typed string, before ...statement) (codes []string, err error) {
	now := s.wall()
	pending, began, err := s.store.pendingSecret(userID)
	if age := now.Unix() - began; err == nil && (age < -clockLeeway || age > confirmWithin) {
		err = errNoPendingFactor
	}
	if err != nil {
		return nil, err
	}
	secret, err := s.unseal(ctx, pending, pendingSealName(userID))
	if err != nil {
		return nil, err
	}
	_, code := otp.Parse(typed)
	step, ok, _ := otp.Match(secret, code, now, 0)
	if !ok {
		return nil, errWrongOTP
	}
	ring, err := s.ring(ctx)
	if err != nil {
		return nil, err
	}
	codes, hashes := newRecoveryCodes()
	c := confirmation{userID, pending, ring.Seal(secret, sealName(userID)), step, hashes}
	return codes, s.store.addFactor(ctx, by, &c, now.Unix(), before...)
}

// newRecoveryCodes returns new recovery codes and their hashes.
func newRecoveryCodes() (codes []string, hashes [][]byte) {
	codes = otp.NewRecoveryCodes(recoveryCodes)
	for _, code := range codes {
		hashes = append(hashes, otp.Hash(code))
	}
	return codes, hashes
}

// factorURI returns the address that authenticator apps read to add a factor.
func (c *settings) factorURI(u *user, secret []byte) string {
	return otp.URI(cmp.Or(c.issuer, "userd"), cmp.Or(u.username, u.email, strconv.FormatInt(u.id, 10)), secret)
}

// matchesPassword reports whether a password is that of the user with this id and these
// credentials. For an unknown name, id is 0 and the hash is empty, and it takes as long. Each
// verified password counts toward the limits. It returns errLimited, errStorage,
// passhash.ErrBusy or the context's error.
func (s *server) matchesPassword(x *exchange, id int64, c *credentials, name, password string) (bool, error) {
	g, err := s.newGuess(x, id, c.hash, name)
	if err != nil {
		return false, err
	}
	// After newGuess: a guess that newGuess refuses costs no hash, so it must not use up
	// the passwords of its network.
	if err := s.allow(x, passwords); err != nil {
		return false, err
	}
	ok, err := s.hasher.Verify(x.r.Context(), clientaddr.Network(x.address), c.hash, password)
	if err != nil {
		return false, err
	}
	if ok && c.factor.exists() {
		return ok, g.finishFirstFactor()
	}
	return ok, g.finish(ok)
}

// What a client proves before the second factor, for the mail to the owner.
const (
	withPassword = "your password"
	withLink     = "a link that sets a new password"
)

// checkCode checks a code of the second factor of the user with these credentials. The client
// must have proven the password before, or sent the code of a reset link: with says which of
// the two. A wrong code, or a recovery code that was used before, counts like a wrong password,
// and toward maxWrongCodes. The code stays valid until the write that it allows, which runs
// p.statements. checkCode returns
// errWrongOTP, errOTPUsed, errFactorLocked, errLimited or errStorage.
func (s *server) checkCode(x *exchange, id int64, c *credentials, typed, with string) (p provenFactor, err error) {
	g, err := s.newGuess(x, id, c.hash, "")
	if err != nil {
		return p, err
	}
	kind, code := otp.Parse(typed)
	var right, used bool
	switch {
	case kind == otp.Recovery:
		p.recovery = otp.Hash(code)
		right, err = s.store.hasRecoveryCode(id, p.recovery)
	case c.factor.locked(): // without a comparison: the answer must not depend on the code
		return p, errFactorLocked
	default:
		var secret []byte
		if secret, err = s.unseal(x.r.Context(), []byte(c.factor.sealed), sealName(id)); err == nil {
			p.step, right, used = otp.Match(secret, code, s.wall(), c.factor.lastStep)
		}
	}
	switch {
	case err != nil:
		return p, err
	case used: // not a guess: the user sent the code twice
		return p, errOTPUsed
	}
	if err := g.finish(right); err != nil {
		return p, err
	}
	if !right {
		s.stats.wrongCodes.Add(1)
		return p, cmp.Or[error](s.countWrongCode(x, id, with), errWrongOTP)
	}
	return p, nil
}

// countWrongCode counts a wrong code of a user, even if the client has closed the connection:
// otherwise it could guess without a limit. When the factor locks, countWrongCode records an
// event and queues a notice to the user, which says what the client proved with the code.
func (s *server) countWrongCode(x *exchange, id int64, with string) error {
	ctx := context.WithoutCancel(x.r.Context())
	failures, err := s.store.countWrongCode(ctx, id)
	if err != nil || failures != maxWrongCodes {
		return err
	}
	detail := fmt.Sprintf("it sent %s and a wrong code, the last of %d in a row, so only a recovery code works now", with, maxWrongCodes)
	return s.store.recordLock(ctx, id, x.address, s.wall().Unix(), s.notice(x, factorMail, id, detail)...)
}

// proveForReset checks the code of the second factor of a user whose password a link is about
// to set. It returns the zero provenFactor if the user has no second factor, errSecondFactor if
// typed is empty, errInvalidCode if the user does not exist, or an error of checkCode.
func (s *server) proveForReset(x *exchange, id int64, typed string) (p provenFactor, err error) {
	c, err := s.store.credentials(id)
	switch {
	case errors.Is(err, errUserNotFound):
		return p, errInvalidCode
	case err != nil || !c.factor.exists():
		return p, err
	case typed == "":
		return p, errSecondFactor
	}
	return s.checkCode(x, id, &c, typed, withLink)
}

// methodsOf returns the kinds of code that the factor accepts now.
func methodsOf(f *factor) []string {
	if f.locked() {
		return []string{"recovery_code"}
	}
	return []string{"totp", "recovery_code"}
}

// mfaLife is how many seconds the token of the first step of a login is valid.
const mfaLife = 300

// mfaKey returns the key of the tokens of newMFAToken. It has no other use.
func (s *server) mfaKey(ctx context.Context) ([]byte, error) {
	return s.store.secret(ctx, "mfa", newSecret())
}

// newMFAToken returns a token that proves only that the user has sent its password. The token
// is valid for mfaLife, and until the password or a factor of the user changes.
func (s *server) newMFAToken(ctx context.Context, id, stamp int64) (string, error) {
	key, err := s.mfaKey(ctx)
	if err != nil {
		return "", err
	}
	return tagged.Append(key, "", fmt.Sprintf("%d.%d.%d", id, stamp, s.wall().Unix())), nil
}

// parseMFAToken returns the user and the stamp of a token of newMFAToken, or errMFAToken.
func (s *server) parseMFAToken(ctx context.Context, token string) (id, stamp int64, err error) {
	key, err := s.mfaKey(ctx)
	if err != nil {
		return 0, 0, err
	}
	text, ok := tagged.Open(key, "", token)
	if !ok {
		return 0, 0, errMFAToken
	}
	var made int64
	fmt.Sscanf(text, "%d.%d.%d", &id, &stamp, &made) // newMFAToken wrote it, so this cannot fail
	if age := s.wall().Unix() - made; age < -clockLeeway || age > mfaLife {
		return 0, 0, errMFAToken
	}
	return id, stamp, nil
}

// ring returns the keys that seal the secrets of factors: DATA_KEY or, without it, a key in
// the database, which ring makes if necessary. The ring also opens what DATA_KEY_PREVIOUS
// and the key in the database have sealed.
func (s *userService) ring(ctx context.Context) (*seal.Ring, error) {
	stored, err := s.store.dataKey()
	if err == nil && stored == nil && s.dataKeys.current == nil {
		fresh := make([]byte, seal.KeySize)
		rand.Read(fresh)
		stored, err = s.store.secret(ctx, dataSecret, fresh)
	}
	if err != nil {
		return nil, err
	}
	return s.dataKeys.ring(stored)
}

// knownRing is ring, but it makes no key: without any, the ring opens nothing.
func (s *userService) knownRing() (*seal.Ring, error) {
	stored, err := s.store.dataKey()
	if err != nil {
		return nil, err
	}
	return s.dataKeys.ring(stored)
}

// ring returns the ring of these keys and of the key in the database, which may be nil.
func (k *dataKeys) ring(stored []byte) (*seal.Ring, error) {
	var keys [][]byte
	for _, key := range [][]byte{k.current, stored, k.previous} {
		if key != nil {
			keys = append(keys, key)
		}
	}
	return seal.NewRing(keys...)
}

// checkDataKeys returns errDataKey, with the number of the users and the id of the first, if a
// key that is neither set nor in the database has sealed the secret of a factor. A server with
// this error does not start: two servers with different keys would refuse the codes of each
// other's users.
func (s *userService) checkDataKeys(ctx context.Context) error {
	ring, err := s.knownRing()
	if err != nil {
		return err
	}
	var users, first int64
	err = s.store.sealKeys(ctx, func(id []byte, n, user int64) {
		if !ring.Has(id) {
			users += n
			first = user
		}
	})
	if err == nil && users > 0 {
		err = fmt.Errorf("%w. It concerns %s, such as user %d. If that key is lost, userd user totp -off USER removes the factor of a user", errDataKey, plural(users, "user"), first)
	}
	return err
}

var errDataKey = errors.New("another key encrypted TOTP secrets in the database: set that key as DATA_KEY, or as DATA_KEY_PREVIOUS if DATA_KEY has changed")

// unseal returns the secret of a user's factor. If it cannot be opened, the error wraps
// errStorage: the client learns nothing, and the log and the command line show the reason.
func (s *userService) unseal(ctx context.Context, sealed []byte, name string) ([]byte, error) {
	ring, err := s.ring(ctx)
	if err != nil {
		return nil, err
	}
	secret, err := ring.Open(sealed, name)
	if errors.Is(err, seal.ErrUnknownKey) {
		err = errDataKey
	}
	if err != nil {
		return nil, &storageError{"decrypting a TOTP secret", err}
	}
	return secret, nil
}

// rotateDataKey encrypts the secrets of factors again, under the key that is set now. done says
// what it did, for a person. The error can be that it could not decrypt some of them. If it
// encrypts none, it changes nothing.
func (s *userService) rotateDataKey(ctx context.Context) (done string, err error) {
	ring, err := s.knownRing()
	if err == nil && s.dataKeys.previous != nil { // otherwise a new key could not open anything
		ring, err = s.ring(ctx)
	}
	if err != nil {
		return "", err
	}
	sealed, unreadable, err := s.store.reseal(ctx, ring, s.wall().Unix())
	if err != nil {
		return "", err
	}
	key := "the key in the database"
	if s.dataKeys.current != nil {
		key = "DATA_KEY"
	}
	switch {
	case sealed > 0:
		done = fmt.Sprintf("encrypted %s again, under %s", plural(sealed, "TOTP secret"), key)
	case unreadable > 0:
		done = "changed nothing"
	default:
		done = "changed nothing: no TOTP secret is encrypted under another key than " + key
	}
	if unreadable > 0 {
		err = fmt.Errorf("could not decrypt %s: set the key that encrypted them as DATA_KEY_PREVIOUS, and run the command again", plural(unreadable, "TOTP secret"))
	}
	return done, err
}

// proveActs reads the body of a request that has no members but a proof, and counts the
// request. It returns nil if the user of the path exists and the caller may do these acts, and
// otherwise an error of decode, count, targetUser or requireProof.
func (s *server) proveActs(x *exchange, acts proof) error {
	in, err := decode[proofRequest](x.optionalBody())
	if err != nil {
		return err
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	if _, err := s.targetUser(x); err != nil {
		return err
	}
	return s.requireProof(x, acts, in)
}

type totpAnswer struct {
	Secret string `json:"secret"`
	URI    string `json:"uri"`
	QR     string `json:"qr,omitempty"` // of the URI; empty: a long issuer does not fit
}

// addTOTP makes the secret of a new factor of the caller. The factor is valid after confirmTOTP.
func (s *server) addTOTP(x *exchange) error {
	if err := s.proveActs(x, changeFactor); err != nil {
		return err
	}
	if s.mailOn && x.who.emailVerifiedAt == 0 {
		return errUnverified
	}
	secret, err := s.beginFactor(x.r.Context(), x.caller(), x.target)
	if err != nil {
		return err
	}
	answer := totpAnswer{Secret: otp.EncodeSecret(secret), URI: s.factorURI(&x.who.user, secret)}
	if code, err := qr.Encode(answer.URI); err == nil {
		answer.QR = code.String()
	}
	return x.sendJSON(http.StatusCreated, answer)
}

type confirmRequest struct {
	OTP string `json:"otp"`
}

type codesAnswer struct {
	RecoveryCodes []string `json:"recovery_codes"`
}

// confirmTOTP makes the secret of addTOTP the factor of the caller, and answers with recovery codes.
func (s *server) confirmTOTP(x *exchange) error {
	in, err := decode[confirmRequest](x.body())
	if err != nil {
		return err
	}
	if in.OTP == "" {
		return errOTPFields
	}
	if err := s.count(x, x.who.id); err != nil {
		return err
	}
	codes, err := s.confirmFactor(x.r.Context(), x.caller(), x.target, in.OTP, s.notice(x, changedMail, x.target, "a second factor was added")...)
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusOK, codesAnswer{codes})
}

// removeTOTP removes the factor of a user.
func (s *server) removeTOTP(x *exchange) error {
	if err := s.proveActs(x, changeFactor); err != nil {
		return err
	}
	if err := s.store.removeFactor(x.r.Context(), x.caller(), x.target, s.wall().Unix(), s.notice(x, changedMail, x.target, "the second factor was removed")...); err != nil {
		return err
	}
	return x.sendNothing()
}

// renewRecoveryCodes replaces the recovery codes of the caller.
func (s *server) renewRecoveryCodes(x *exchange) error {
	if err := s.proveActs(x, changeFactor); err != nil {
		return err
	}
	codes, hashes := newRecoveryCodes()
	if err := s.store.renewCodes(x.r.Context(), x.caller(), x.target, hashes, s.wall().Unix(), s.notice(x, changedMail, x.target, "the recovery codes were replaced")...); err != nil {
		return err
	}
	return x.sendJSON(http.StatusOK, codesAnswer{codes})
}

// A factorState is the second factor of a user as the API and the command line show it.
type factorState struct {
	On                bool       `json:"on"`
	Since             *time.Time `json:"since"` // null: off
	RecoveryCodesLeft int64      `json:"recovery_codes_left"`
	Locked            bool       `json:"locked"` // only a recovery code works
}

// factorState returns the state of a user's factor, or errUserNotFound.
func (s *userService) factorState(id int64) (state factorState, err error) {
	c, err := s.store.credentials(id)
	if err != nil || !c.factor.exists() {
		return state, err
	}
	since := utc(c.factor.confirmedAt)
	state = factorState{On: true, Since: &since, Locked: c.factor.locked()}
	state.RecoveryCodesLeft, err = s.store.countRecoveryCodes(id)
	return state, err
}

// getTOTP answers with the state of the caller's second factor.
func (s *server) getTOTP(x *exchange) error {
	state, err := s.factorState(x.target)
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusOK, state)
}
