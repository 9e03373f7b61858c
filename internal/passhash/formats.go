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

// Whoever can write a hash into the database, an import among them, must not
// choose what verifying it costs. The caps let in the defaults of the systems
// that write these forms, and about twice as much; the dearest takes some two
// seconds of one core.
const (
	maxMemory     = 128 << 10 // KiB; Django's argon2 takes 100 MiB
	maxPasses     = 10
	maxThreads    = 16
	maxIterations = 2_000_000 // of PBKDF2; Django 6 takes 1,200,000
	maxBcryptCost = 14

	maxHashLength = 512 // bytes of the text
	minKey        = 16  // bytes of what a hash is compared with
	maxKey        = 64
	maxSalt       = 64
)

// parseHash reads a password hash in any of the forms known here and returns
// what checks a password against it:
//
//	$argon2id$v=19$m=…,t=…,p=…$SALT$KEY and $argon2i$…  PHC string format
//	$scrypt$ln=…,r=…,p=…$SALT$KEY                       PHC string format, passlib
//	$2a$…, $2b$… and $2y$…                              bcrypt
//	scrypt:N:r:p$SALT$HEX                               Werkzeug
//	pbkdf2:sha1|sha256|sha512:N$SALT$HEX                Werkzeug
//	pbkdf2_sha256$N$SALT$BASE64                         Django
func parseHash(s string) (check func(password string) bool, ok bool) {
	if len(s) > maxHashLength {
		return nil, false
	}
	switch {
	case strings.HasPrefix(s, "$argon2"):
		p, ok := parsePHC(s)
		return p.check, ok
	case strings.HasPrefix(s, "$scrypt$"):
		return parsePHCScrypt(s)
	case strings.HasPrefix(s, "$2"):
		return parseBcrypt(s)
	case strings.HasPrefix(s, "scrypt:"):
		return parseWerkzeugScrypt(s)
	case strings.HasPrefix(s, "pbkdf2:"):
		return parseWerkzeugPBKDF2(s)
	case strings.HasPrefix(s, "pbkdf2_sha256$"):
		return parseDjango(s)
	}
	return nil, false
}

// equal compares in constant time.
func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// A phc is an argon2 hash in the PHC string format,
// $argon2id$v=19$m=19456,t=2,p=1$SALT$KEY.
type phc struct {
	variant string
	Cost
	salt, key []byte
}

const (
	argon2id = "argon2id"
	argon2i  = "argon2i"
)

func (p phc) String() string {
	return fmt.Sprintf("$%s$v=%d$m=%d,t=%d,p=%d$", p.variant, argon2.Version, p.Memory, p.Passes, p.Threads) +
		base64.RawStdEncoding.EncodeToString(p.salt) + "$" +
		base64.RawStdEncoding.EncodeToString(p.key)
}

func (p phc) check(password string) bool {
	derive := argon2.IDKey
	if p.variant == argon2i {
		derive = argon2.Key
	}
	return equal(p.key, derive([]byte(password), p.salt, p.Passes, p.Memory, p.Threads, uint32(len(p.key))))
}

// parsePHC reads what String writes, with any cost up to the caps. It accepts
// one spelling of each hash only.
func parsePHC(s string) (p phc, ok bool) {
	fields := strings.Split(s, "$") // "", variant, version, cost, salt, key
	if len(fields) != 6 {
		return p, false
	}
	p.variant = fields[1]
	if n, err := fmt.Sscanf(fields[3], "m=%d,t=%d,p=%d", &p.Memory, &p.Passes, &p.Threads); n != 3 || err != nil {
		return p, false
	}
	var err1, err2 error
	p.salt, err1 = base64.RawStdEncoding.DecodeString(fields[4])
	p.key, err2 = base64.RawStdEncoding.DecodeString(fields[5])
	ok = err1 == nil && err2 == nil &&
		(p.variant == argon2id || p.variant == argon2i) &&
		p.Passes >= 1 && p.Passes <= maxPasses &&
		p.Threads >= 1 && p.Threads <= maxThreads &&
		p.Memory >= 8*uint32(p.Threads) && p.Memory <= maxMemory &&
		len(p.salt) >= 8 && // as the specification asks
		goodSizes(p.salt, p.key) &&
		p.String() == s
	return p, ok
}

func goodSizes(salt, key []byte) bool {
	return len(salt) >= 1 && len(salt) <= maxSalt && len(key) >= minKey && len(key) <= maxKey
}

// scryptCheck returns the check of a scrypt hash, RFC 7914.
func scryptCheck(n, r, p int, salt, key []byte) (func(string) bool, bool) {
	if n < 2 || n > 1<<20 || r < 1 || r > 64 || p < 1 || p > maxThreads ||
		n&(n-1) != 0 || n*r/8 > maxMemory || n*r*p/8 > maxPasses*maxMemory/2 || !goodSizes(salt, key) {
		return nil, false
	}
	return func(password string) bool {
		got, err := scrypt.Key([]byte(password), salt, n, r, p, len(key))
		return err == nil && equal(got, key)
	}, true
}

func parsePHCScrypt(s string) (func(string) bool, bool) {
	fields := strings.Split(s, "$") // "", "scrypt", cost, salt, key
	if len(fields) != 5 {
		return nil, false
	}
	var ln, r, p int
	if _, err := fmt.Sscanf(fields[2], "ln=%d,r=%d,p=%d", &ln, &r, &p); err != nil || ln < 1 || ln > 20 ||
		fields[2] != fmt.Sprintf("ln=%d,r=%d,p=%d", ln, r, p) {
		return nil, false
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(fields[3])
	key, err2 := base64.RawStdEncoding.Strict().DecodeString(fields[4])
	if err1 != nil || err2 != nil {
		return nil, false
	}
	return scryptCheck(1<<ln, r, p, salt, key)
}

// parseWerkzeugScrypt reads method$salt$hex; the salt is its text.
func parseWerkzeugScrypt(s string) (func(string) bool, bool) {
	fields := strings.Split(s, "$")
	if len(fields) != 3 {
		return nil, false
	}
	var n, r, p int
	if _, err := fmt.Sscanf(fields[0], "scrypt:%d:%d:%d", &n, &r, &p); err != nil ||
		fields[0] != fmt.Sprintf("scrypt:%d:%d:%d", n, r, p) {
		return nil, false
	}
	key, err := hex.DecodeString(fields[2])
	if err != nil {
		return nil, false
	}
	return scryptCheck(n, r, p, []byte(fields[1]), key)
}

// pbkdf2Check returns the check of a PBKDF2 hash, RFC 8018 section 5.2.
func pbkdf2Check(h func() hash.Hash, iterations string, salt, key []byte) (func(string) bool, bool) {
	n, err := parseCount(iterations)
	if err != nil || n > maxIterations || !goodSizes(salt, key) {
		return nil, false
	}
	return func(password string) bool {
		got, err := pbkdf2.Key(h, password, salt, int(n), len(key))
		return err == nil && equal(got, key)
	}, true
}

// parseCount reads a positive integer written as strconv writes it: no sign, no
// leading zero.
func parseCount(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, strconv.ErrSyntax
	}
	return n, nil
}

func parseWerkzeugPBKDF2(s string) (func(string) bool, bool) {
	fields := strings.Split(s, "$")
	if len(fields) != 3 {
		return nil, false
	}
	method := strings.Split(fields[0], ":") // "pbkdf2", hash, iterations
	if len(method) != 3 {
		return nil, false
	}
	h := map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}[method[1]]
	key, err := hex.DecodeString(fields[2])
	if h == nil || err != nil || len(key) != h().Size() {
		return nil, false // a longer key would cost its several blocks each
	}
	return pbkdf2Check(h, method[2], []byte(fields[1]), key)
}

func parseDjango(s string) (func(string) bool, bool) {
	fields := strings.Split(s, "$") // "pbkdf2_sha256", iterations, salt, key
	if len(fields) != 4 {
		return nil, false
	}
	key, err := base64.StdEncoding.Strict().DecodeString(fields[3])
	if err != nil || len(key) != sha256.Size {
		return nil, false
	}
	return pbkdf2Check(sha256.New, fields[1], []byte(fields[2]), key)
}

// maxBcryptPassword is what bcrypt looks at; the rest it would ignore, so that
// a longer password would be right whatever it ends in.
const maxBcryptPassword = 72

func parseBcrypt(s string) (func(string) bool, bool) {
	const length = 60
	if len(s) != length || !strings.Contains("aby", s[2:3]) || s[3] != '$' || s[6] != '$' {
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
