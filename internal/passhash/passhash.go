// Package passhash hashes passwords with argon2id and verifies hashes that other
// programs made.
//
// Hash writes argon2id in the PHC string format. Verify accepts these formats:
//
//	$argon2id$v=19$m=…,t=…,p=…$SALT$KEY and $argon2i$…  PHC string format
//	$scrypt$ln=…,r=…,p=…$SALT$KEY                       PHC string format, passlib
//	$2a$…, $2b$… and $2y$…                              bcrypt
//	scrypt:N:r:p$SALT$HEX                               Werkzeug
//	pbkdf2:sha1|sha256|sha512:N$SALT$HEX                Werkzeug
//	sha1$SALT$HEX and sha256$SALT$HEX                   Werkzeug before 3, HMAC
//	pbkdf2_sha256$N$SALT$BASE64                         Django
//
// A hash that Hash would not write today is Stale. Replace it at the next login: only
// then is the password known.
//
// A stored hash names its own cost, so anyone who can write hashes, for example with
// an import, could make Verify slow. Verify therefore refuses hashes above fixed caps.
// They admit the defaults of the programs above and about twice as much: 128 MiB of
// memory and about two seconds of one core.
//
// # The queue
//
// A Hasher hashes one password per core at a time. More would slow all of them down
// and need Cost.Memory each. Every call names the network of its client. The networks
// take turns, and if too many calls wait, the network with the most waiting calls is
// the first to be refused. So a network that sends many passwords, even correct ones,
// delays any other by one turn only.
package passhash

import (
	"context"
	"crypto/rand"
	"errors"
	"runtime"
	"sync/atomic"

	"userd/internal/argon2"
)

// ErrBusy means that the queue was full, or that the call waited for MaxWait.
var ErrBusy = errors.New("too many passwords to hash")

// A Cost is the cost of one argon2 hash.
type Cost struct {
	Memory  uint32 // KiB; at least 8 for each thread
	Passes  uint32
	Threads uint8
}

// Default returns 19 MiB, 2 passes and 1 thread: the second of OWASP's equivalent
// settings for argon2id (Password Storage Cheat Sheet), about 10 ms of one core, or 30 ms
// without the kernel of internal/argon2. More threads would use cores that the queue gives to others.
func Default() Cost { return Cost{Memory: 19456, Passes: 2, Threads: 1} }

// valid reports whether argon2 accepts the cost and Verify's caps admit it.
func (c Cost) valid() bool {
	return c.Passes >= 1 && c.Passes <= maxPasses &&
		c.Threads >= 1 && c.Threads <= maxThreads &&
		c.Memory >= 8*uint32(c.Threads) && c.Memory <= maxMemory
}

const (
	saltSize = 16 // bytes; RFC 9106 section 3.1
	keySize  = 32 // bytes

	minGarbage = 1 << 10 // KiB; to collect less would cost more than the hash
)

// A Hasher hashes and verifies passwords. Its methods may be called concurrently.
type Hasher struct {
	cost     Cost
	queue    queue
	memories memories
	hashed   atomic.Int64 // for Stats
	refused  atomic.Int64
}

// New returns a Hasher that makes hashes of a cost, with a turn for each core that
// Go may use now. It panics if Verify would refuse such hashes.
func New(c Cost) *Hasher {
	if !c.valid() {
		panic("passhash: the cost is outside the caps")
	}
	return &Hasher{
		cost:     c,
		queue:    queue{cores: runtime.GOMAXPROCS(0)},
		memories: memories{freeHeap: c.Memory >= minGarbage},
	}
}

// NewChecked returns a hasher with the parameters of [Default]. If the argon2 kernel computes
// a wrong key, the hasher does not use it, and warn gets the error.
func NewChecked(warn func(err error)) *Hasher {
	h := New(Default())
	if err := h.checkKernel(); err != nil {
		warn(err)
	}
	return h
}

// checkKernel returns an error if the argon2 kernel computes a wrong key. The Hasher
// then does without the kernel. Call it before the first hash, and log the error.
func (h *Hasher) checkKernel() error {
	err := argon2.Check()
	h.memories.disabled = err != nil
	return err
}

// Hash returns the argon2id hash of a password with a new salt. from names the client's
// network. The error is ErrBusy, or wraps that of ctx, which ends the waiting but not
// the hashing. The caller limits the length of the password.
func (h *Hasher) Hash(ctx context.Context, from, password string) (string, error) {
	salt := make([]byte, saltSize)
	rand.Read(salt)
	var key []byte
	if err := h.run(ctx, from, func(mem *argon2.Memory) { key = h.cost.derive(mem, password, salt, keySize) }); err != nil {
		return "", err
	}
	return argon2Hash{argon2id, h.cost, salt, key}.String(), nil
}

// Verify reports whether hash is a hash of the password; from and the error are as for
// Hash. An unknown hash, such as the empty one of a user who does not exist, never
// matches. Verify takes as long for it as for a hash that Hash wrote: the time must
// not tell which users exist.
func (h *Hasher) Verify(ctx context.Context, from, hash, password string) (bool, error) {
	matches := parse(hash)
	if matches == nil {
		matches = func(mem *argon2.Memory, password string) bool {
			h.cost.derive(mem, password, make([]byte, saltSize), keySize)
			return false
		}
	}
	ok := false
	err := h.run(ctx, from, func(mem *argon2.Memory) { ok = matches(mem, password) })
	return ok, err
}

// Known reports whether Verify accepts the format and the cost of a hash.
func Known(hash string) bool { return parse(hash) != nil }

// Stale reports whether a hash differs in format, cost or size from those of Hash.
func (h *Hasher) Stale(hash string) bool {
	a, known := parseArgon2(hash)
	return !known || a.variant != argon2id || a.Cost != h.cost || len(a.salt) != saltSize || len(a.key) != keySize
}

// Turn waits in the queue as Hash and Verify do, for other work that keeps a core busy.
// The caller calls done when that work ends. The error is that of Hash.
func (h *Hasher) Turn(ctx context.Context, from string) (done func(), err error) {
	if err := h.queue.wait(ctx, from); err != nil {
		return nil, err
	}
	return h.queue.done, nil
}

// run waits for a turn and then calls work, which hashes one password and may use mem.
func (h *Hasher) run(ctx context.Context, from string, work func(mem *argon2.Memory)) error {
	done, err := h.Turn(ctx, from)
	if errors.Is(err, ErrBusy) {
		h.refused.Add(1)
	}
	if err != nil {
		return err
	}
	defer done()
	mem := h.memories.take()
	defer h.memories.give(mem)
	work(mem)
	hashed := h.hashed.Add(1)
	if mem == nil {
		h.collect(hashed)
	}
	return nil
}

// collect runs the garbage collector if the Hasher does not use the kernel: after every
// hash that completes a round of all cores, and after a hash while no other is running.
// x/crypto leaves Cost.Memory of garbage, and a server may collect rarely (GOGC).
func (h *Hasher) collect(hashed int64) {
	running, _ := h.queue.count()
	if h.cost.Memory >= minGarbage && (running == 1 || hashed%int64(h.queue.cores) == 0) {
		runtime.GC()
	}
}

// Stats describe the work of a Hasher.
type Stats struct {
	Running int   // turns that go on
	Waiting int   // calls that wait for a turn
	Hashed  int64 // passwords hashed by Hash and Verify since New
	Refused int64 // calls of Hash and Verify that returned ErrBusy since New
}

// Stats returns the current numbers.
func (h *Hasher) Stats() Stats {
	running, waiting := h.queue.count()
	return Stats{running, waiting, h.hashed.Load(), h.refused.Load()}
}
