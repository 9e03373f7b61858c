package passhash

import (
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"userd/internal/argon2"
)

// keepMemory is how long a memory keeps what it holds after a hash. The next hash saves
// a tenth of its time, and an idle server becomes small again.
const keepMemory = 30 * time.Second

// memories are the memories of the argon2 kernel. Each hash that runs has one, so there
// are at most as many as turns.
type memories struct {
	freeHeap bool // with the memory; after cheap hashes it would cost more than they do

	mu       sync.Mutex
	disabled bool
	idle     []idleMemory // the last was used last
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

// give returns the result of take.
func (m *memories) give(memory *argon2.Memory) {
	if memory == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.idle = append(m.idle, idleMemory{memory, time.AfterFunc(keepMemory, func() { m.release(memory) })})
}

// release empties a memory, unless a hash has just taken it. A server that has become
// idle then returns the free part of its heap too, which a burst of requests or hashes of
// x/crypto have made large: without requests, Go would keep it for minutes.
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
