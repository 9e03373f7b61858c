package passhash

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"regexp"
	"strconv"
	"strings"

	xargon2 "golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"

	"userd/internal/argon2"
)

// The caps on the cost of a stored hash; the package comment gives the reason.
const (
	maxMemory     = 128 << 10 // KiB; Django's argon2 uses 100 MiB
	maxPasses     = 10
	maxThreads    = 16 // also scrypt's p
	maxScryptLogN = 20 // N is 2^20
	maxScryptR    = 64
	maxIterations = 2_000_000 // of PBKDF2; Django 6 uses 1,200,000
	maxBcryptCost = 14        // the default is 10 to 12

	maxHashLength = 512 // bytes of the entire text
	minKeySize    = 16  // bytes
	maxKeySize    = 64
	maxSaltSize   = 64
)

// A matcher reports whether a password is the one that was hashed. mem is for argon2.
type matcher func(mem *argon2.Memory, password string) bool

// parse returns the matcher of a hash, or nil if the hash has none of the formats of
// the package comment or is above the caps. This is the only list of formats.
func parse(s string) matcher {
	r := &reader{rest: s}
	switch {
	case len(s) > maxHashLength:
	case strings.HasPrefix(s, "$argon2"):
		if a, ok := parseArgon2(s); ok {
			return a.matches
		}
	case strings.HasPrefix(s, "$2"):
		return parseBcrypt(s)
	case r.begins("$scrypt$"):
		n, blockSize, p := 1<<r.number("ln=", maxScryptLogN), r.number(",r=", maxScryptR), r.number(",p=", maxThreads)
		return r.scrypt(n, blockSize, p, r.decode(phcBase64), r.decode(phcBase64))
	case r.begins("scrypt:"):
		n, blockSize, p := r.number("", 1<<maxScryptLogN), r.number(":", maxScryptR), r.number(":", maxThreads)
		return r.scrypt(n, blockSize, p, []byte(r.field()), r.decode(hex.DecodeString))
	case r.begins("pbkdf2:sha1:"):
		return r.pbkdf2(sha1.New, hex.DecodeString)
	case r.begins("pbkdf2:sha256:"):
		return r.pbkdf2(sha256.New, hex.DecodeString)
	case r.begins("pbkdf2:sha512:"):
		return r.pbkdf2(sha512.New, hex.DecodeString)
	case r.begins("sha1"):
		return r.hmac(sha1.New)
	case r.begins("sha256"):
		return r.hmac(sha256.New)
	case r.begins("pbkdf2_sha256$"):
		return r.pbkdf2(sha256.New, base64.StdEncoding.Strict().DecodeString)
	}
	return nil
}

// A reader reads a hash from left to right, as Go evaluates the calls of a statement.
// After the first mistake failed is true, and the results are meaningless.
type reader struct {
	rest   string
	failed bool
}

// begins reports whether prefix comes next, and reads it if so.
func (r *reader) begins(prefix string) (ok bool) {
	r.rest, ok = strings.CutPrefix(r.rest, prefix)
	return ok
}

// expect reads text, which must come next.
func (r *reader) expect(text string) { r.failed = !r.begins(text) || r.failed }

// number reads prefix and a decimal number from 1 to max, without a sign or a
// leading zero.
func (r *reader) number(prefix string, max int) int {
	r.expect(prefix)
	rest := strings.TrimLeft(r.rest, "0123456789")
	digits := strings.TrimSuffix(r.rest, rest)
	n, err := strconv.Atoi(digits)
	r.rest, r.failed = rest, r.failed || err != nil || n > max || digits[0] == '0'
	return n
}

// field reads a $ and the text up to the next one or the end.
func (r *reader) field() string {
	r.expect("$")
	text, _, _ := strings.Cut(r.rest, "$")
	r.rest = r.rest[len(text):]
	return text
}

// decode reads a field and decodes it.
func (r *reader) decode(decode func(string) ([]byte, error)) []byte {
	data, err := decode(r.field())
	r.failed = r.failed || err != nil
	return data
}

// ok reports whether the entire hash was read without a mistake, and its salt and
// key have allowed sizes.
func (r *reader) ok(salt, key []byte) bool {
	return !r.failed && r.rest == "" &&
		len(salt) >= 1 && len(salt) <= maxSaltSize && len(key) >= minKeySize && len(key) <= maxKeySize
}

// equal compares keys in constant time.
func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

const (
	argon2id = "argon2id"
	argon2i  = "argon2i"
)

// An argon2Hash is a hash in the PHC string format.
type argon2Hash struct {
	variant string // argon2id or argon2i
	Cost
	salt, key []byte
}

// String returns $argon2id$v=19$m=19456,t=2,p=1$SALT$KEY.
func (a argon2Hash) String() string {
	return fmt.Sprintf("$%s$v=%d$m=%d,t=%d,p=%d$%s$%s", a.variant, xargon2.Version, a.Memory, a.Passes, a.Threads,
		base64.RawStdEncoding.EncodeToString(a.salt), base64.RawStdEncoding.EncodeToString(a.key))
}

func (a argon2Hash) matches(mem *argon2.Memory, password string) bool {
	size := uint32(len(a.key))
	if a.variant == argon2i {
		return equal(a.key, xargon2.Key([]byte(password), a.salt, a.Passes, a.Memory, a.Threads, size))
	}
	return equal(a.key, a.derive(mem, password, a.salt, size))
}

// derive returns an argon2id key of size bytes.
func (c Cost) derive(mem *argon2.Memory, password string, salt []byte, size uint32) []byte {
	if c.Threads > 1 {
		return xargon2.IDKey([]byte(password), salt, c.Passes, c.Memory, c.Threads, size)
	}
	return argon2.Key(mem, []byte(password), salt, c.Passes, c.Memory, size)
}

// phcBase64 decodes base64 without padding. It refuses superfluous bits, but skips
// line breaks.
func phcBase64(s string) ([]byte, error) { return base64.RawStdEncoding.Strict().DecodeString(s) }

// parseArgon2 reads the text that String writes and accepts no other spelling of it.
func parseArgon2(s string) (a argon2Hash, ok bool) {
	r := &reader{rest: s}
	a.variant = r.field()
	r.expect("$v=19$") // xargon2.Version
	a.Memory = uint32(r.number("m=", maxMemory))
	a.Passes = uint32(r.number(",t=", maxPasses))
	a.Threads = uint8(r.number(",p=", maxThreads))
	a.salt, a.key = r.decode(phcBase64), r.decode(phcBase64)
	ok = r.ok(a.salt, a.key) &&
		(a.variant == argon2id || a.variant == argon2i) &&
		a.Cost.valid() &&
		len(a.salt) >= 8 && // the reference implementation's minimum
		!strings.ContainsAny(s, "\r\n")
	return a, ok
}

// scrypt returns the matcher of a scrypt hash (RFC 7914), which needs n*r/8 KiB.
func (r *reader) scrypt(n, blockSize, p int, salt, key []byte) matcher {
	if !r.ok(salt, key) || n < 2 || n&(n-1) != 0 || n*blockSize/8 > maxMemory || n*blockSize*p/8 > maxPasses*maxMemory/2 {
		return nil
	}
	return func(_ *argon2.Memory, password string) bool {
		got, err := scrypt.Key([]byte(password), salt, n, blockSize, p, len(key))
		return err == nil && equal(got, key)
	}
}

// pbkdf2 reads the iterations, the salt and the key of a PBKDF2 hash (RFC 8018
// section 5.2). Like Werkzeug and Django, it uses the text of the salt as the salt.
// The key has the size of h: each further block would cost all iterations again.
func (r *reader) pbkdf2(h func() hash.Hash, decodeKey func(string) ([]byte, error)) matcher {
	iterations, salt, key := r.number("", maxIterations), []byte(r.field()), r.decode(decodeKey)
	if !r.ok(salt, key) || len(key) != h().Size() {
		return nil
	}
	return func(_ *argon2.Memory, password string) bool {
		got, err := pbkdf2.Key(h, password, salt, iterations, len(key))
		return err == nil && equal(got, key)
	}
}

// hmac reads the salt and the sum of an HMAC, whose key is the text of the salt. Werkzeug
// up to 2 made these hashes if it was told to. They cost almost nothing.
func (r *reader) hmac(h func() hash.Hash) matcher {
	salt, sum := []byte(r.field()), r.decode(hex.DecodeString)
	if !r.ok(salt, sum) || len(sum) != h().Size() {
		return nil
	}
	return func(_ *argon2.Memory, password string) bool {
		mac := hmac.New(h, salt)
		mac.Write([]byte(password))
		return hmac.Equal(mac.Sum(nil), sum)
	}
}

// maxBcryptPassword is the number of bytes that bcrypt looks at. It ignores the
// rest, so a longer password would match whatever its end.
const maxBcryptPassword = 72

// bcryptAlphabet is that of bcrypt's base64. With another character, the comparison
// would fail without the work, and so show that the user exists.
var bcryptAlphabet = regexp.MustCompile(`^[./A-Za-z0-9]{53}$`)

func parseBcrypt(s string) matcher {
	if len(s) != 60 || !strings.Contains("aby", s[2:3]) || s[3] != '$' || s[6] != '$' || !bcryptAlphabet.MatchString(s[7:]) {
		return nil
	}
	cost, err := strconv.Atoi(s[4:6])
	if err != nil || cost < bcrypt.MinCost || cost > maxBcryptCost {
		return nil
	}
	return func(_ *argon2.Memory, password string) bool {
		matches := bcrypt.CompareHashAndPassword([]byte(s), []byte(password)) == nil // first, so that each password costs the same
		return matches && len(password) <= maxBcryptPassword
	}
}
