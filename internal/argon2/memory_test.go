//go:build amd64 && !purego

package argon2

import (
	"testing"
	"unsafe"
)

// These tests do not need AVX2.

// The test can still read a memory smaller than minMap after Release.
func TestReleaseClears(t *testing.T) {
	t.Parallel()
	mem := new(Memory)
	held := mem.hold(minMap/blockSize - 1)
	for i := range held {
		held[i][i%blockWords] = 1
	}
	mem.Release()
	for i := range held {
		if held[i] != (block{}) {
			t.Fatalf("block %d is not clear", i)
		}
	}
}

func TestHoldKeepsOnlyWhatIsNeeded(t *testing.T) {
	t.Parallel()
	mem := new(Memory)
	defer mem.Release()
	for _, n := range []int{12, 12, 3000, 3000, 20, 8000, 2000} {
		held := mem.hold(n)
		if len(held) != n || mem.Size() != n*blockSize {
			t.Errorf("%d blocks and %d bytes; want %d blocks", len(held), mem.Size(), n)
		}
		if address := uintptr(unsafe.Pointer(&held[0])); mem.mapped != nil && address%hugePage != 0 {
			t.Errorf("%d blocks begin at %#x", n, address)
		}
		held[0][0], held[n-1][blockWords-1] = 1, 1
	}
}
