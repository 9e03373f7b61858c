//go:build amd64 && !purego

package argon2

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// mappingFlags returns what the system says about the mapping that begins at a block: the
// flags of smaps(5), or nothing if none begins there.
func mappingFlags(t *testing.T, first *block) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut("\n"+string(data), fmt.Sprintf("\n%x-", uintptr(unsafe.Pointer(first))))
	if !found {
		return ""
	}
	_, rest, _ = strings.Cut(rest, "VmFlags:")
	flags, _, _ := strings.Cut(rest, "\n")
	return flags
}

func TestTheMemoryIsMappedWithHugePages(t *testing.T) {
	mem := new(Memory)
	first := &mem.hold(19456)[0]
	flags := mappingFlags(t, first)
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err == nil && !strings.Contains(flags, " hg") {
		t.Errorf("the flags of the mapping are %q", flags)
	}
	mem.Release()
	if flags := mappingFlags(t, first); flags != "" {
		t.Errorf("released, it is mapped with the flags %q", flags)
	}
}
