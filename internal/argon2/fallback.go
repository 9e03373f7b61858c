//go:build !amd64 || purego

package argon2

// A Memory is the memory of the kernel, which this build does not have.
type Memory struct{}

// NewMemory returns nil: this build does not have the kernel.
func NewMemory() *Memory { return nil }

// Check returns nil: this build does not have the kernel.
func Check() error { return nil }

// Size returns 0.
func (m *Memory) Size() int { return 0 }

// Release does nothing.
func (m *Memory) Release() {}

func (m *Memory) key([]byte, []byte, uint32, uint32, uint32) []byte {
	panic("argon2: a Memory that NewMemory did not return")
}
