// Package otp computes and checks time-based one-time passwords (TOTP, RFC 6238), and
// makes recovery codes for people who lost the device that computes them.
//
// It has one set of parameters, HMAC-SHA-1, 6 digits and 30 seconds, because common
// authenticator apps ignore or refuse others. RFC 6238 builds on HOTP (RFC 4226). HMAC
// does not depend on the collision resistance of SHA-1, which is broken.
//
// A code has a million possible values, and [Match] accepts three of them at any time, so
// the caller has to limit the tries. The caller also stores the step that [Match] returns,
// in the same write that grants access, and only if the stored step is still lower.
// Otherwise a code works twice.
package otp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
)

const (
	digits      = 6
	period      = 30 // seconds
	window      = 1  // steps before and after the current one, RFC 6238 section 5.2
	newSecret   = 20 // bytes, as long as a SHA-1, RFC 4226 section 4 (R6)
	leastSecret = 16 // bytes, RFC 4226 section 4 (R6)
	mostSecret  = 64 // bytes, the block of SHA-1: HMAC replaces a longer key by its hash
)

// NewSecret returns a new secret of 20 random bytes.
func NewSecret() []byte {
	secret := make([]byte, newSecret)
	rand.Read(secret)
	return secret
}

// Step returns the number of periods of 30 seconds from 1970 to t. It is negative
// before 1970.
func Step(t time.Time) int64 {
	seconds := t.Unix()
	step := seconds / period
	if seconds%period < 0 {
		step-- // Go rounds towards zero
	}
	return step
}

// Code returns the 6 digits that a secret has in a step (RFC 4226 section 5.3). The
// step is the counter of HOTP.
func Code(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(step)))
	sum := mac.Sum(nil)
	offset := sum[len(sum)-1] & 15
	n := binary.BigEndian.Uint32(sum[offset:]) & (1<<31 - 1)
	return fmt.Sprintf("%0*d", digits, n%1e6)
}

// Match compares a code with those of the current step, the step before and the step
// after, so it allows for clocks that differ by up to 30 seconds and for slow typing.
// The code is 6 digits without spaces, as [Parse] returns it. lastStep is the last step
// that was accepted for this secret, or 0.
//
// If the code is right, Match returns its step and ok. If that step is not after lastStep,
// this code or a newer one was accepted before, and Match returns reused instead of ok.
// If a clock was set back, every right code is reused until the clock is after lastStep
// again, because others may have seen the codes of this time. A code of a step before
// 1970 is never right.
//
// It computes and compares all three codes, so its duration does not tell which digits
// are right.
func Match(secret []byte, code string, now time.Time, lastStep int64) (step int64, ok, reused bool) {
	current := Step(now)
	for s := current - window; s <= current+window; s++ {
		same := subtle.ConstantTimeCompare([]byte(Code(secret, s)), []byte(code)) == 1
		if !same || s < 0 {
			continue
		}
		// By chance, two of the steps can have the same code. It works only once, too: the
		// later step counts, and the code is reused if either step was used.
		step, ok, reused = s, true, reused || s <= lastStep
	}
	return step, ok && !reused, reused
}

// RFC 4648 section 6.
func base32NoPadding() *base32.Encoding { return base32.StdEncoding.WithPadding(base32.NoPadding) }

// EncodeSecret returns a secret in base32 (RFC 4648), in upper case and without padding.
// A person can type it into an app.
func EncodeSecret(secret []byte) string { return base32NoPadding().EncodeToString(secret) }

// ParseSecret decodes a secret in base32. It ignores case, width, white space, hyphens and
// padding, because programs show and export secrets in all these forms. Its error says
// what a secret is, and does not repeat the text.
func ParseSecret(text string) ([]byte, error) {
	text = strings.TrimRight(compact(text), "=")
	secret, err := base32NoPadding().DecodeString(text)
	// The decoder skips characters after the last whole byte, which a cut text can have.
	whole := len(text) == base32NoPadding().EncodedLen(len(secret))
	if err != nil || !whole || len(secret) < leastSecret || len(secret) > mostSecret {
		return nil, errors.New("a TOTP secret must be 16 to 64 bytes in base32, which are 26 to 103 letters and digits 2 to 7")
	}
	return secret, nil
}

// compact removes white space, hyphens, and the dashes that word processors make of
// hyphens. It makes ASCII letters upper case, and replaces the full-width letters and digits
// of East Asian keyboards by those of ASCII.
func compact(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.In(r, unicode.White_Space, unicode.Dash):
			return -1
		case '！' <= r && r <= '～': // U+FF01 to U+FF5E, in the order of ASCII
			r -= '！' - '!'
		}
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		}
		return r
	}, text)
}

// URI returns the address that apps read from a QR code to add an account, in the form
// of https://github.com/google/google-authenticator/wiki/Key-Uri-Format. The issuer names
// the service, and the account names the user. Apps show both, so neither may be empty.
func URI(issuer, account string, secret []byte) string {
	issuer, account = escape(issuer), escape(account)
	return "otpauth://totp/" + issuer + ":" + account + "?secret=" + EncodeSecret(secret) + "&issuer=" + issuer
}

// escape escapes all but the unreserved characters of RFC 3986, also a colon, because a
// colon separates the names. Apps show a plus sign as it is, so a space becomes %20.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
