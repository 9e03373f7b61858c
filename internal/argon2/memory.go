//go:build amd64 && !purego

package argon2

import "unsafe"

// A Memory is the memory of the kernel. It keeps what one hash needed for the next
// one, until Release. It must not be used concurrently.
type Memory struct {
	held   []block
	mapped []byte // contains held if it is mapped from the system
}

// NewMemory returns a Memory that holds nothing yet, or nil if this build or CPU cannot
// use the kernel.
func NewMemory() *Memory {
	if !hasAVX2() {
		return nil
	}
	return new(Memory)
}

// Size returns the number of bytes that m holds.
func (m *Memory) Size() int {
	if m == nil {
		return 0
	}
	return len(m.held) * blockSize
}

// Release clears what m holds and gives it back to the system. m can be used again.
func (m *Memory) Release() {
	if m == nil {
		return
	}
	clear(m.held)
	unmap(m.mapped)
	*m = Memory{}
}

const (
	hugePage = 2 << 20 // bytes
	minMap   = 1 << 20 // bytes; less than this is allocated, which costs less than a call of the system
)

// hold returns n blocks with any content.
func (m *Memory) hold(n int) []block {
	if n == len(m.held) {
		return m.held
	}
	m.Release()
	if n*blockSize >= minMap {
		m.mapped = mapMemory(n*blockSize + hugePage)
	}
	if m.mapped == nil {
		m.held = make([]block, n)
		return m.held
	}
	skip := -uintptr(unsafe.Pointer(&m.mapped[0])) % hugePage
	aligned := m.mapped[skip:][:n*blockSize]
	useHugePages(aligned)
	m.held = unsafe.Slice((*block)(unsafe.Pointer(&aligned[0])), n)
	return m.held
}
