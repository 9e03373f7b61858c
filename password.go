package main

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// A role says which users a user may change. Any other role, also an empty one,
// permits nothing.
type role string

const (
	member role = "member" // only itself
	admin  role = "admin"  // all users
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

// trimName drops the spaces around a username or an e-mail address, which a
// keyboard or a copy adds unseen. No valid one has spaces.
func trimName(s string) string { return strings.TrimSpace(s) }

// checkUsername returns what is wrong with a new username, or "". A username has no
// @, so that a login name is either a username or an address.
func checkUsername(s string) string {
	if !usernamePattern.MatchString(s) {
		return "must be 1 to 80 of the letters A to Z, digits, '.', '_' and '-', beginning with a letter or digit"
	}
	return ""
}

// checkEmail returns what is wrong with a new e-mail address, or "".
func checkEmail(s string) string {
	if len(s) > maxEmail || strings.IndexByte(s, '@') > maxLocalPart || !emailPattern.MatchString(s) {
		return "must be an address such as ann@example.com, in ASCII"
	}
	return ""
}

// checkRole returns what is wrong with a role, or "".
func checkRole(r role) string {
	if r != member && r != admin {
		return "must be member or admin"
	}
	return ""
}

const (
	minPassword = 8    // code points, NIST SP 800-63B section 5.1.1.2
	maxPassword = 1024 // bytes, because a long password costs time to hash
)

// checkPassword returns what is wrong with a new password, or "".
func checkPassword(password, username, email string) string {
	switch {
	case utf8.RuneCountInString(password) < minPassword:
		return fmt.Sprintf("must have at least %d characters", minPassword)
	case len(password) > maxPassword:
		return fmt.Sprintf("must have at most %d bytes", maxPassword)
	case !utf8.ValidString(password):
		return "must be valid UTF-8"
	case strings.ContainsRune(password, 0):
		return "must not contain NUL"
	case strings.EqualFold(password, username), strings.EqualFold(password, email):
		return "must not be the username or the email"
	case common[strings.ToLower(password)]:
		return "is one of the most common passwords"
	}
	return ""
}

// common are the passwords of at least eight characters at the top of the published
// lists of leaked passwords, which attackers try first.
var common = func() map[string]bool {
	m := make(map[string]bool)
	for _, p := range strings.Fields(`
		password password1 password12 password123 password1234 passw0rd p@ssw0rd p@ssword
		12345678 123456789 1234567890 0123456789 87654321 987654321 0987654321 123123123
		11111111 111111111 1111111111 00000000 000000000 0000000000 22222222 55555555
		66666666 77777777 88888888 888888888 99999999 999999999 12341234 123412345
		12344321 11223344 1122334455 112233445566 147258369 123654789 789456123 741852963
		147852369 159753456 963852741 1234567891 12345678910 123456789a a123456789 123456789q
		1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc qazwsxedc zaq12wsx zaq1zaq1
		qwertyui qwertyuiop qwerty12 qwerty123 qwerty1234 qwerty12345 qwertyuiop123 1qazxsw2
		asdfghjk asdfghjkl asdfasdf asdf1234 zxcvbnm1 zxcvbnm123 q1w2e3r4 q1w2e3r4t5
		abcd1234 abc12345 abcdefgh abcdefg1 abc123456 a1b2c3d4 aa123456 aaaaaaaa abcabcabc
		iloveyou iloveyou1 iloveyou2 iloveyou! iloveyou123 ilovegod princess princess1
		sunshine sunshine1 football football1 baseball baseball1 basketball superman superman1
		welcome1 welcome123 admin123 admin1234 administrator changeme changeme1 letmein1
		letmein123 trustno1 starwars whatever internet computer michelle jennifer jonathan
		charlie1 dragon123 monkey123 master123 shadow123 michael1 jordan23 liverpool liverpool1
		blink182 pokemon1 samsung1 letmein! secret123 default1 guest123 passport
		killer123 cocacola snoopy123 matrix123 hello123 hellohello tinkerbell chocolate
		butterfly barcelona elizabeth alexander christian danielle garfield test1234 testtest
		user1234 root1234 mustang1 corvette mercedes maverick midnight spiderman batman123`) {
		m[p] = true
	}
	return m
}()
