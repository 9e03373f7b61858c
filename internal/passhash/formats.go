package passhash

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
)

// The caps on what a stored hash may ask for; the package comment gives the reason.
const (
	maxMemory     = 128 << 10 // KiB; Django's argon2 uses 100 MiB
	maxPasses     = 10
	maxThreads    = 16 // also scrypt's p
	maxScryptLogN = 20 // N is 2^20
	maxScryptR    = 64
	maxIterations = 2_000_000 // of PBKDF2; Django 6 uses 1,200,000
	maxBcryptCost = 14        // the default is 10 to 12

	maxHashLength = 512 // bytes of the whole text
	minKeySize    = 16  // bytes
	maxKeySize    = 64
	maxSaltSize   = 64
)

// A matcher reports whether a password is the one that was hashed.
type matcher func(password string) bool

// parse reads a hash in any of the formats of the package comment. This is the only
// list of them: every other package asks Known.
func parse(s string) (m matcher, known bool) {
	if len(s) > maxHashLength {
		return nil, false
	}
	switch {
	case strings.HasPrefix(s, "$argon2"):
		a, ok := parseArgon2(s)
		return a.matches, ok
	case strings.HasPrefix(s, "$scrypt$"):
		return parsePHCScrypt(s)
	case strings.HasPrefix(s, "$2"):
		return parseBcrypt(s)
	case strings.HasPrefix(s, "scrypt:"):
		return parseWerkzeugScrypt(s)
	case strings.HasPrefix(s, "pbkdf2:"):
		return parseWerkzeugPBKDF2(s)
	case strings.HasPrefix(s, "pbkdf2_sha256$"):
		return parseDjangoPBKDF2(s)
	}
	return nil, false
}

// equal compares keys in constant time.
func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

func validSizes(salt, key []byte) bool {
	return len(salt) >= 1 && len(salt) <= maxSaltSize && len(key) >= minKeySize && len(key) <= maxKeySize
}

// parseNumber reads a decimal number from 1 to max, without a sign or a leading zero.
func parseNumber(s string, max int) (n int, ok bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 1 && n <= max && s[0] != '+' && s[0] != '0'
}

// A parameter is a number after a prefix.
type parameter struct {
	prefix string
	max    int
}

// parseParameters reads parameters between separators, such as m=19456,t=2,p=1.
func parseParameters(s, separator string, parameters ...parameter) (values []int, ok bool) {
	fields := strings.Split(s, separator)
	if len(fields) != len(parameters) {
		return nil, false
	}
	for i, p := range parameters {
		text, found := strings.CutPrefix(fields[i], p.prefix)
		n, ok := parseNumber(text, p.max)
		if !found || !ok {
			return nil, false
		}
		values = append(values, n)
	}
	return values, true
}

// decodeBase64 decodes the only spelling of some bytes in base64 without padding.
// Strict refuses superfluous bits, but no line breaks.
func decodeBase64(s string) (data []byte, ok bool) {
	data, err := base64.RawStdEncoding.Strict().DecodeString(s)
	return data, err == nil && len(s) == base64.RawStdEncoding.EncodedLen(len(data))
}

const (
	argon2id = "argon2id"
	argon2i  = "argon2i"

	argon2Version = "v=19" // argon2.Version
)

// An argon2Hash is a hash in the PHC string format.
type argon2Hash struct {
	variant string // argon2id or argon2i
	Cost
	salt, key []byte
}

// String returns $argon2id$v=19$m=19456,t=2,p=1$SALT$KEY.
func (a argon2Hash) String() string {
	return fmt.Sprintf("$%s$%s$m=%d,t=%d,p=%d$%s$%s", a.variant, argon2Version, a.Memory, a.Passes, a.Threads,
		base64.RawStdEncoding.EncodeToString(a.salt), base64.RawStdEncoding.EncodeToString(a.key))
}

func (a argon2Hash) matches(password string) bool {
	derive := argon2.IDKey
	if a.variant == argon2i {
		derive = argon2.Key
	}
	return equal(a.key, derive([]byte(password), a.salt, a.Passes, a.Memory, a.Threads, uint32(len(a.key))))
}

// parseArgon2 reads the text that String writes and accepts no other spelling of it.
func parseArgon2(s string) (a argon2Hash, ok bool) {
	fields := strings.Split(s, "$") // "", variant, version, cost, salt, key
	if len(fields) != 6 || fields[0] != "" || fields[2] != argon2Version {
		return a, false
	}
	cost, ok := parseParameters(fields[3], ",", parameter{"m=", maxMemory}, parameter{"t=", maxPasses}, parameter{"p=", maxThreads})
	if !ok {
		return a, false
	}
	salt, ok1 := decodeBase64(fields[4])
	key, ok2 := decodeBase64(fields[5])
	a = argon2Hash{fields[1], Cost{uint32(cost[0]), uint32(cost[1]), uint8(cost[2])}, salt, key}
	ok = ok1 && ok2 &&
		(a.variant == argon2id || a.variant == argon2i) &&
		a.Cost.valid() &&
		len(salt) >= 8 && // the specification's minimum
		validSizes(salt, key)
	return a, ok
}

// matchScrypt returns the matcher of a scrypt hash (RFC 7914), which needs n*r/8 KiB.
// The caller has checked that each number is below its cap, so none overflows.
func matchScrypt(n, r, p int, salt, key []byte) (matcher, bool) {
	if n < 2 || n&(n-1) != 0 || n*r/8 > maxMemory || n*r*p/8 > maxPasses*maxMemory/2 || !validSizes(salt, key) {
		return nil, false
	}
	return func(password string) bool {
		got, err := scrypt.Key([]byte(password), salt, n, r, p, len(key))
		return err == nil && equal(got, key)
	}, true
}

func parsePHCScrypt(s string) (matcher, bool) {
	fields := strings.Split(s, "$") // "", "scrypt", cost, salt, key
	if len(fields) != 5 {
		return nil, false
	}
	cost, ok := parseParameters(fields[2], ",", parameter{"ln=", maxScryptLogN}, parameter{"r=", maxScryptR}, parameter{"p=", maxThreads})
	if !ok {
		return nil, false
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(fields[3])
	key, err2 := base64.RawStdEncoding.Strict().DecodeString(fields[4])
	if err1 != nil || err2 != nil {
		return nil, false
	}
	return matchScrypt(1<<cost[0], cost[1], cost[2], salt, key)
}

// parseWerkzeugScrypt uses the text of the salt as the salt, as Werkzeug does.
func parseWerkzeugScrypt(s string) (matcher, bool) {
	fields := strings.Split(s, "$") // scrypt:N:r:p, salt, key
	if len(fields) != 3 {
		return nil, false
	}
	numbers := strings.TrimPrefix(fields[0], "scrypt:")
	cost, ok := parseParameters(numbers, ":", parameter{"", 1 << maxScryptLogN}, parameter{"", maxScryptR}, parameter{"", maxThreads})
	key, err := hex.DecodeString(fields[2])
	if !ok || err != nil {
		return nil, false
	}
	return matchScrypt(cost[0], cost[1], cost[2], []byte(fields[1]), key)
}

// matchPBKDF2 returns the matcher of a PBKDF2 hash (RFC 8018 section 5.2). The key
// has the size of h, because each further block would cost all iterations again.
func matchPBKDF2(h func() hash.Hash, iterations string, salt, key []byte) (matcher, bool) {
	n, ok := parseNumber(iterations, maxIterations)
	if !ok || len(key) != h().Size() || !validSizes(salt, key) {
		return nil, false
	}
	return func(password string) bool {
		got, err := pbkdf2.Key(h, password, salt, n, len(key))
		return err == nil && equal(got, key)
	}, true
}

// parseWerkzeugPBKDF2 uses the text of the salt as the salt, as Werkzeug does.
func parseWerkzeugPBKDF2(s string) (matcher, bool) {
	fields := strings.Split(s, "$") // pbkdf2:HASH:N, salt, key
	if len(fields) != 3 {
		return nil, false
	}
	method := strings.Split(fields[0], ":") // "pbkdf2", hash, iterations
	if len(method) != 3 {
		return nil, false
	}
	h := map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}[method[1]]
	key, err := hex.DecodeString(fields[2])
	if h == nil || err != nil {
		return nil, false
	}
	return matchPBKDF2(h, method[2], []byte(fields[1]), key)
}

// parseDjangoPBKDF2 uses the text of the salt as the salt, as Django does.
func parseDjangoPBKDF2(s string) (matcher, bool) {
	fields := strings.Split(s, "$") // "pbkdf2_sha256", iterations, salt, key
	if len(fields) != 4 {
		return nil, false
	}
	key, err := base64.StdEncoding.Strict().DecodeString(fields[3])
	if err != nil {
		return nil, false
	}
	return matchPBKDF2(sha256.New, fields[1], []byte(fields[2]), key)
}

// maxBcryptPassword is the number of bytes that bcrypt looks at. It ignores the
// rest, so a longer password would match whatever its end.
const maxBcryptPassword = 72

func parseBcrypt(s string) (matcher, bool) {
	if len(s) != 60 || !strings.Contains("aby", s[2:3]) || s[3] != '$' || s[6] != '$' {
		return nil, false
	}
	cost, err := strconv.Atoi(s[4:6])
	if err != nil || cost < bcrypt.MinCost || cost > maxBcryptCost {
		return nil, false
	}
	return func(password string) bool {
		return len(password) <= maxBcryptPassword && bcrypt.CompareHashAndPassword([]byte(s), []byte(password)) == nil
	}, true
}
