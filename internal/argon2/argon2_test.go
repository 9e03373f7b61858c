package argon2

import (
	"bytes"
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/argon2"
)

var (
	long   = flag.Bool("long", false, "compare with x/crypto for a minute")
	kernel = flag.String("kernel", "", "yes or no: fail if NewMemory finds something else")
)

func TestNewMemoryFindsWhatTheFlagSays(t *testing.T) {
	t.Parallel()
	found := "no"
	if NewMemory() != nil {
		found = "yes"
	}
	if *kernel != "" && found != *kernel {
		t.Errorf("kernel: %s, want %s", found, *kernel)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	if err := Check(); err != nil {
		t.Error(err)
	}
}

// The vectors of RFC 9106 have four lanes. Those with the salts somesalt and diffsalt
// are from the reference implementation's test.c; libargon2 20171227 computed the others.
func TestVectors(t *testing.T) {
	t.Parallel()
	mem := NewMemory()
	defer mem.Release()
	for _, row := range []struct {
		time, memory         uint32
		password, salt, want string
	}{
		{2, 256, "password", "somesalt", "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"},
		{1, 65536, "password", "somesalt", "f6a5adc1ba723dddef9b5ac1d464e180fcd9dffc9d1cbf76cca2fed795d9ca98"},
		{2, 65536, "password", "somesalt", "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"},
		{4, 65536, "password", "somesalt", "9025d48e68ef7395cca9079da4c4ec3affb3c8911fe4f86d1a2520856f63172c"},
		{2, 65536, "differentpassword", "somesalt", "0b84d652cf6b0c4beaef0dfe278ba6a80df6696281d7e0d2891b817d8c458fde"},
		{2, 65536, "password", "diffsalt", "bdf32b05ccc42eb15d58fd19b1f856b113da1e9a5874fdcc544308565aa8141c"},
		{1, 8, "", "saltsalt", "477bbdbc"},
		{3, 9, "p", "0123456789abcdef", "51da8cc61165cfd61632362ce0c64fd46ed307fab2c7f51f"},
		{4, 1027, "correct horse battery", "0123456789abcdef", "a9f57fad93d42ee1c810a49bec875428184d85a143c2c214054cbca630f2f56e16ab0ad5b831314f52946fef4161a002b6093a6b2c4901bbacc28e47393018f0"},
		{1, 4095, "correct horse battery", "0123456789abcdef", "089f369eefb88de79d93628c789481722a9e4f14304348a0c07f1bb207f282286f4eb466ddfeb910c0cd2c17316df35378fac2e97c31116a073e0ba1c124372404"},
		{2, 2049, strings.Repeat("x", 1024), "0123456789abcdef", "6a3f21a734a49b6ce73402835ae732a78bae7a4595b0902dc2881e0615981922a77dbdcda8dd8bc4ad2577ba6f3a301978b8f58e18315ecca93368c8b29f646b77c01bb4613c5c653e737a4e3cd49181c0fd5dc55c01453ec843b4af153b0e10548ccd5b80bb2bafd6ac8f19416047fa9fefad40bb7f6e2b6d7c942ad8cba069"},
	} {
		got := hex.EncodeToString(Key(mem, []byte(row.password), []byte(row.salt), row.time, row.memory, uint32(len(row.want)/2)))
		if got != row.want {
			t.Errorf("t=%d, m=%d, %.20q, %q: %s, want %s", row.time, row.memory, row.password, row.salt, got, row.want)
		}
	}
}

// mustEqual compares Key in mem with x/crypto.
func mustEqual(t *testing.T, mem *Memory, password, salt []byte, time, memory, keyLen uint32) {
	t.Helper()
	got, want := Key(mem, password, salt, time, memory, keyLen), argon2.IDKey(password, salt, time, memory, 1, keyLen)
	if !bytes.Equal(got, want) {
		t.Errorf("t=%d, m=%d, password %x, salt %x: %x, want %x", time, memory, password, salt, got, want)
	}
}

// Most of the memory sizes are small, which is cheap; the logarithm is uniform.
func TestKeyIsThatOfXCrypto(t *testing.T) {
	t.Parallel()
	count := 150
	if *long {
		count = 20_000
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	randomBytes := func(most int) []byte {
		b := make([]byte, random.IntN(most+1))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	mem := NewMemory()
	defer mem.Release()
	for range count {
		memory := min(8<<random.IntN(10)+random.Uint32N(8<<random.IntN(10)), 4096)
		mustEqual(t, mem, randomBytes(300), randomBytes(64), 1+random.Uint32N(4), memory, 4+random.Uint32N(125))
	}
	if t.Failed() {
		t.Logf("the seed was %d", seed)
	}
}

// Each size rounds down to a multiple of 4, and what is less than 8 rounds up.
func TestEachSmallMemory(t *testing.T) {
	t.Parallel()
	mem := NewMemory()
	defer mem.Release()
	for memory := range uint32(64) {
		mustEqual(t, mem, []byte("correct horse battery"), []byte("saltsalt"), 2, memory, 32)
	}
}

func TestEachKeyLength(t *testing.T) {
	t.Parallel()
	mem := NewMemory()
	defer mem.Release()
	for keyLen := uint32(1); keyLen <= 200; keyLen++ {
		mustEqual(t, mem, []byte("correct horse battery"), []byte("saltsalt"), 1, 8, keyLen)
	}
}

// A caller cannot tell whether the kernel runs, also not by what it refuses.
func TestKeyPanicsAsXCryptoDoes(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(mem *Memory){
		"no passes": func(mem *Memory) { Key(mem, nil, nil, 0, 8, 32) },
		"no key":    func(mem *Memory) { Key(mem, nil, nil, 1, 8, 0) },
	} {
		for _, mem := range []*Memory{nil, NewMemory()} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: no panic", name)
					}
				}()
				call(mem)
			}()
		}
	}
}

func TestTheMemoryIsReused(t *testing.T) {
	mem := NewMemory()
	defer mem.Release()
	key := func() { Key(mem, []byte("correct horse battery"), []byte("saltsalt"), 1, 2048, 32) }
	key()
	size := mem.Size()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	key()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; mem != nil && n > 16<<10 {
		t.Errorf("a hash allocates %d bytes", n)
	}
	if mem.Size() != size || mem != nil && size < 2048<<10 {
		t.Errorf("it held %d bytes and holds %d", size, mem.Size())
	}
	mem.Release()
	if mem.Size() != 0 {
		t.Errorf("released, it holds %d bytes", mem.Size())
	}
	mem.Release() // has nothing to do
	mustEqual(t, mem, []byte("p"), []byte("saltsalt"), 1, 2048, 32)
}

// A short request must not wait until a hash ends. With one core, another goroutine runs
// before Key returns only if Key lets it, or if Go interrupts Key after 10 ms, as it does
// with x/crypto.
func TestKeyLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	mem := NewMemory()
	defer mem.Release()
	memory := uint32(512) // far less than 10 ms
	if mem == nil {
		memory = 65536 // far more
	}
	var ran atomic.Bool
	go ran.Store(true)
	Key(mem, nil, []byte("saltsalt"), 1, memory, 32)
	if !ran.Load() {
		t.Error("no other goroutine ran")
	}
}

func TestMemoriesWorkConcurrently(t *testing.T) {
	t.Parallel()
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			mem := NewMemory()
			defer mem.Release()
			for j := range 10 {
				mustEqual(t, mem, []byte{byte(i), byte(j)}, []byte("saltsalt"), 2, uint32(8+300*j), 32)
			}
		})
	}
	group.Wait()
}

func FuzzKey(f *testing.F) {
	mem := NewMemory()
	f.Add([]byte("password"), []byte("somesalt"), uint32(2), uint32(256), uint32(32))
	f.Add([]byte{}, []byte{}, uint32(1), uint32(8), uint32(4))
	f.Fuzz(func(t *testing.T, password, salt []byte, time, memory, keyLen uint32) {
		mustEqual(t, mem, password, salt, 1+time%4, 8+memory%1000, 4+keyLen%125)
	})
}
