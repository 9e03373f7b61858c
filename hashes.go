package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
)

// A cost is what one argon2id hash takes.
type cost struct {
	memory  uint32 // KiB
	passes  uint32
	threads uint8
}

// defaultCost is the second of OWASP's equivalent settings for argon2id
// (Password Storage Cheat Sheet): 19 MiB, 2 passes, 1 thread; about 25 ms on
// one core. One thread, because more would escape the gate below.
var defaultCost = cost{memory: 19456, passes: 2, threads: 1}

const (
	saltSize = 16 // bytes, RFC 9106 section 3.1
	keySize  = 32
)

// A hasher hashes and verifies passwords behind a gate: one hash per core at a
// time, since more would only make all of them slower and hold 19 MiB each.
type hasher struct {
	cost    cost
	gate    gate
	hashed  atomic.Int64
	refused atomic.Int64 // errBusy
}

func newHasher(c cost) *hasher {
	return &hasher{cost: c, gate: gate{slots: runtime.GOMAXPROCS(0)}}
}

// enter waits for a place, in the line of the network that asks for the hash,
// and returns what gives it back. It returns errBusy, or the context's error
// when the client has gone: its place goes to the next.
func (h *hasher) enter(ctx context.Context, from string) (leave func(), err error) {
	if err := h.gate.enter(ctx, from); err != nil {
		if err == errBusy {
			h.refused.Add(1)
		}
		return nil, err
	}
	return func() {
		// Each hash leaves 19 MiB of garbage, of which the collector, made to run
		// rarely (collectAt), would let many pile up: once for all cores it is
		// collected at once, and when the last of them is done.
		inside, _ := h.gate.count()
		if h.hashed.Add(1)%int64(h.gate.slots) == 0 || inside == 1 {
			runtime.GC()
		}
		h.gate.leave()
	}, nil
}

// hash returns the PHC string of a password under a new salt, for a network.
func (h *hasher) hash(ctx context.Context, from, password string) (string, error) {
	leave, err := h.enter(ctx, from)
	if err != nil {
		return "", err
	}
	defer leave()
	salt := make([]byte, saltSize)
	rand.Read(salt)
	key := argon2.IDKey([]byte(password), salt, h.cost.passes, h.cost.memory, h.cost.threads, keySize)
	return phc{argon2id, h.cost, salt, key}.String(), nil
}

// verify reports, to a network, whether the password is the one that was hashed.
// An empty hash, that of a user who does not exist, takes the work of one of ours
// and is never right: time must not tell which names exist. A hash in a form it
// does not know is never right either.
func (h *hasher) verify(ctx context.Context, from, hash, password string) (bool, error) {
	check, known := parseHash(hash)
	if !known {
		check = phc{argon2id, h.cost, make([]byte, saltSize), make([]byte, keySize)}.check
	}
	leave, err := h.enter(ctx, from)
	if err != nil {
		return false, err
	}
	defer leave()
	return check(password) && known, nil
}

// stale reports whether a hash is not what hash would make today.
func (h *hasher) stale(hash string) bool {
	p, ok := parsePHC(hash)
	return !ok || p.variant != argon2id || p.cost != h.cost || len(p.salt) != saltSize || len(p.key) != keySize
}

// A gate lets in as many at once as it has slots. A bounded number waits, for at
// most maxWait. They stand in a line for each network, and the lines take turns;
// where too many wait, the last of the longest line is refused. So a network that
// sends many passwords, right ones too, costs each other one turn.
type gate struct {
	slots int

	mu      sync.Mutex
	inside  int
	waiting int
	lines   []line // none is empty; the first has the next turn
}

type line struct {
	from    string
	waiters []chan error // each is told one thing: nil is to go in
}

const (
	// maxWait is below what a client waits before it asks again, which would
	// only add to the load.
	maxWait = 2 * time.Second
	// waitersPerSlot at 25 ms a hash are served within maxWait; letting in more
	// would keep connections open only to refuse them later.
	waitersPerSlot = 80
)

// enter returns nil when the caller is inside, errBusy, or the context's error.
func (g *gate) enter(ctx context.Context, from string) error {
	w := g.join(from)
	if w == nil {
		return nil
	}
	timeout := time.NewTimer(maxWait)
	defer timeout.Stop()
	var err error
	select {
	case err = <-w:
		return err
	case <-timeout.C:
		err = errBusy
	case <-ctx.Done():
		err = fmt.Errorf("waiting to hash: %w", ctx.Err())
	}
	if !g.quit(from, w) && <-w == nil { // its turn has come just now
		g.leave()
	}
	return err
}

// join goes in, and returns nil, or stands in line and returns what will tell
// the outcome.
func (g *gate) join(from string) chan error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside < g.slots { // then nobody waits
		g.inside++
		return nil
	}
	i := g.lineOf(from)
	if i < 0 {
		i = len(g.lines)
		g.lines = append(g.lines, line{from: from})
	}
	w := make(chan error, 1)
	g.lines[i].waiters = append(g.lines[i].waiters, w)
	if g.waiting++; g.waiting > waitersPerSlot*g.slots {
		for j, l := range g.lines {
			if len(l.waiters) > len(g.lines[i].waiters) {
				i = j
			}
		}
		g.take(i, len(g.lines[i].waiters)-1) <- errBusy
	}
	return w
}

// quit takes a waiter out of the line, or returns false where it is out already.
func (g *gate) quit(from string, w chan error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := g.lineOf(from)
	if i < 0 {
		return false
	}
	n := slices.Index(g.lines[i].waiters, w)
	if n < 0 {
		return false
	}
	g.take(i, n)
	return true
}

// leave lets in the first of the line whose turn it is, which is then the last.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting == 0 {
		g.inside--
		return
	}
	g.lines = append(g.lines[1:], g.lines[0])
	g.take(len(g.lines)-1, 0) <- nil
}

func (g *gate) lineOf(from string) int {
	return slices.IndexFunc(g.lines, func(l line) bool { return l.from == from })
}

// take takes the nth waiter out of a line, and the line away where that was all.
func (g *gate) take(i, n int) chan error {
	l := &g.lines[i]
	w := l.waiters[n]
	g.waiting--
	if l.waiters = slices.Delete(l.waiters, n, n+1); len(l.waiters) == 0 {
		g.lines = slices.Delete(g.lines, i, i+1)
	}
	return w
}

// count returns how many are inside and how many wait.
func (g *gate) count() (inside, waiting int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside, g.waiting
}

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
	cost
	salt, key []byte
}

const (
	argon2id = "argon2id"
	argon2i  = "argon2i"
)

func (p phc) String() string {
	return fmt.Sprintf("$%s$v=%d$m=%d,t=%d,p=%d$", p.variant, argon2.Version, p.memory, p.passes, p.threads) +
		base64.RawStdEncoding.EncodeToString(p.salt) + "$" +
		base64.RawStdEncoding.EncodeToString(p.key)
}

func (p phc) check(password string) bool {
	derive := argon2.IDKey
	if p.variant == argon2i {
		derive = argon2.Key
	}
	return equal(p.key, derive([]byte(password), p.salt, p.passes, p.memory, p.threads, uint32(len(p.key))))
}

// parsePHC reads what String writes, with any cost up to the caps. It accepts
// one spelling of each hash only.
func parsePHC(s string) (p phc, ok bool) {
	fields := strings.Split(s, "$") // "", variant, version, cost, salt, key
	if len(fields) != 6 {
		return p, false
	}
	p.variant = fields[1]
	if n, err := fmt.Sscanf(fields[3], "m=%d,t=%d,p=%d", &p.memory, &p.passes, &p.threads); n != 3 || err != nil {
		return p, false
	}
	var err1, err2 error
	p.salt, err1 = base64.RawStdEncoding.DecodeString(fields[4])
	p.key, err2 = base64.RawStdEncoding.DecodeString(fields[5])
	ok = err1 == nil && err2 == nil &&
		(p.variant == argon2id || p.variant == argon2i) &&
		p.passes >= 1 && p.passes <= maxPasses &&
		p.threads >= 1 && p.threads <= maxThreads &&
		p.memory >= 8*uint32(p.threads) && p.memory <= maxMemory &&
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
	n, err := parseID(iterations)
	if err != nil || n > maxIterations || !goodSizes(salt, key) {
		return nil, false
	}
	return func(password string) bool {
		got, err := pbkdf2.Key(h, password, salt, int(n), len(key))
		return err == nil && equal(got, key)
	}, true
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
