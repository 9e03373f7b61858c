package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
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

const (
	minPassword = 8    // code points, NIST SP 800-63B section 5.1.1.2
	maxPassword = 1024 // bytes: hashing must not be fed without end
)

// checkPassword says what is wrong with a new password, or nothing.
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

// common holds the passwords of eight and more characters that lead the
// published lists of leaked ones: what a guesser tries first.
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
