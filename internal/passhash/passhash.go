// Package passhash hashes and verifies passwords.
package passhash

import (
	"context"
	"crypto/rand"
	"errors"
	"runtime"
	"sync/atomic"

	"golang.org/x/crypto/argon2"
)

// ErrBusy says that too many wait for their password to be hashed, or that one
// waited too long.
var ErrBusy = errors.New("too many passwords at once")

// A Cost is what one argon2id hash takes.
type Cost struct {
	Memory  uint32 // KiB
	Passes  uint32
	Threads uint8
}

// Default is the second of OWASP's equivalent settings for argon2id
// (Password Storage Cheat Sheet): 19 MiB, 2 passes, 1 thread; about 25 ms on
// one core. One thread, because more would escape the gate below.
func Default() Cost { return Cost{Memory: 19456, Passes: 2, Threads: 1} }

const (
	saltSize = 16 // bytes, RFC 9106 section 3.1
	keySize  = 32
)

// A Hasher hashes and verifies passwords behind a gate: one hash per core at a
// time, since more would only make all of them slower and hold 19 MiB each.
type Hasher struct {
	cost    Cost
	gate    gate
	hashed  atomic.Int64
	refused atomic.Int64 // ErrBusy
}

func New(c Cost) *Hasher {
	return &Hasher{cost: c, gate: gate{slots: runtime.GOMAXPROCS(0)}}
}

// enter waits for a place, in the line of the network that asks for the hash,
// and returns what gives it back. It returns ErrBusy, or the context's error
// when the client has gone: its place goes to the next.
func (h *Hasher) enter(ctx context.Context, from string) (leave func(), err error) {
	if err := h.gate.enter(ctx, from); err != nil {
		if err == ErrBusy {
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

// Hash returns the PHC string of a password under a new salt, for a network.
func (h *Hasher) Hash(ctx context.Context, from, password string) (string, error) {
	leave, err := h.enter(ctx, from)
	if err != nil {
		return "", err
	}
	defer leave()
	salt := make([]byte, saltSize)
	rand.Read(salt)
	key := argon2.IDKey([]byte(password), salt, h.cost.Passes, h.cost.Memory, h.cost.Threads, keySize)
	return phc{argon2id, h.cost, salt, key}.String(), nil
}

// Verify reports, to a network, whether the password is the one that was hashed.
// An empty hash, that of a user who does not exist, takes the work of one of ours
// and is never right: time must not tell which names exist. A hash in a form it
// does not know is never right either.
func (h *Hasher) Verify(ctx context.Context, from, hash, password string) (bool, error) {
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

// Turn waits at the gate as Hash and Verify do, and returns what gives the place
// back.
func (h *Hasher) Turn(ctx context.Context, from string) (leave func(), err error) {
	if err := h.gate.enter(ctx, from); err != nil {
		return nil, err
	}
	return h.gate.leave, nil
}

// Known reports whether a hash is in a form that Verify knows.
func Known(hash string) bool {
	_, known := parseHash(hash)
	return known
}

// Stats are what a Hasher does now, and has done.
type Stats struct {
	Running, Waiting int
	Hashed, Refused  int64 // since New
}

// Stats returns what the Hasher does now, and has done.
func (h *Hasher) Stats() Stats {
	inside, waiting := h.gate.count()
	return Stats{Running: inside, Waiting: waiting, Hashed: h.hashed.Load(), Refused: h.refused.Load()}
}

// Stale reports whether a hash is not what Hash would make today.
func (h *Hasher) Stale(hash string) bool {
	p, ok := parsePHC(hash)
	return !ok || p.variant != argon2id || p.Cost != h.cost || len(p.salt) != saltSize || len(p.key) != keySize
}
