package passhash

import (
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"userd/internal/argon2"
)

// keepMemory is how long a memory stays allocated after a hash: the next hash saves a tenth
// of its time, and a server that becomes idle still returns the memory.
const keepMemory = 30 * time.Second

// memories are the memories of the argon2 kernel. Each hash that runs has one, so there
// are at most as many as turns.
type memories struct {
	freeHeap bool // release also frees the heap; for cheap hashes, that would cost more than a hash

	mu       sync.Mutex
	disabled bool         // take returns nil
	idle     []idleMemory // in the order of their last uses
}

type idleMemory struct {
	memory  *argon2.Memory
	release *time.Timer
}

// take returns the memory that was used last or a new one, or nil without the kernel.
func (m *memories) take() *argon2.Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disabled {
		return nil
	}
	last := len(m.idle) - 1
	if last < 0 {
		return argon2.NewMemory()
	}
	used := m.idle[last]
	m.idle = m.idle[:last]
	used.release.Stop()
	return used.memory
}

// give makes the result of take idle again.
func (m *memories) give(memory *argon2.Memory) {
	if memory == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.idle = append(m.idle, idleMemory{memory, time.AfterFunc(keepMemory, func() { m.release(memory) })})
}

// release releases a memory, unless a hash has just taken it. With freeHeap it also
// returns the free part of the heap to the system: a burst of requests or of hashes by
// x/crypto can have made it large, and without requests Go would keep it for minutes.
func (m *memories) release(memory *argon2.Memory) {
	m.mu.Lock()
	idle := slices.ContainsFunc(m.idle, func(i idleMemory) bool { return i.memory == memory })
	if idle {
		memory.Release()
	}
	m.mu.Unlock()
	if idle && m.freeHeap {
		debug.FreeOSMemory()
	}
}
