package passhash

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"userd/internal/argon2"
)

// cheap is a cost that lets a test hash often.
var cheap = Cost{Memory: 8, Passes: 1, Threads: 1}

const goodPassword = "correct horse battery"

func mustHash(t *testing.T, h *Hasher, password string) string {
	t.Helper()
	hash, err := h.Hash(t.Context(), "", password)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

func mustVerify(t *testing.T, h *Hasher, hash, password string, want bool) {
	t.Helper()
	ok, err := h.Verify(t.Context(), "", hash, password)
	if err != nil || ok != want {
		t.Errorf("Verify(%q, %q) = %t, %v; want %t", hash, password, ok, err, want)
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	t.Run("has the default cost", func(t *testing.T) {
		t.Parallel()
		h := New(Default())
		hash := mustHash(t, h, goodPassword)
		if !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Error(hash)
		}
		mustVerify(t, h, hash, goodPassword, true)
	})
	t.Run("has a salt of 16 bytes and a key of 32", func(t *testing.T) {
		t.Parallel()
		a, ok := parseArgon2(mustHash(t, New(cheap), goodPassword))
		if !ok || a.Cost != cheap || len(a.salt) != 16 || len(a.key) != 32 {
			t.Errorf("%+v, %t", a, ok)
		}
	})
	t.Run("has a new salt each time", func(t *testing.T) {
		t.Parallel()
		h := New(cheap)
		one, two := mustHash(t, h, goodPassword), mustHash(t, h, goodPassword)
		a, _ := parseArgon2(one)
		b, _ := parseArgon2(two)
		if string(a.salt) == string(b.salt) || string(a.key) == string(b.key) {
			t.Errorf("%s and %s", one, two)
		}
		mustVerify(t, h, one, goodPassword, true)
		mustVerify(t, h, two, goodPassword, true)
	})
	t.Run("depends on every byte of the password", func(t *testing.T) {
		t.Parallel()
		h := New(cheap)
		long := strings.Repeat("p", 1024)
		hash := mustHash(t, h, long)
		mustVerify(t, h, hash, long, true)
		mustVerify(t, h, hash, long[1:], false)
		mustVerify(t, h, hash, long[:len(long)-1]+"q", false)
		mustVerify(t, h, hash, long+"p", false)
	})
	t.Run("does not normalize the password", func(t *testing.T) {
		t.Parallel()
		h := New(cheap)
		hash := mustHash(t, h, "Pässword £5 ")
		mustVerify(t, h, hash, "Pässword £5 ", true)
		for _, other := range []string{"pässword £5 ", "Pässword £5", "Pa\u0308ssword £5 ", "Password £5 ", ""} {
			mustVerify(t, h, hash, other, false)
		}
	})
	t.Run("verifies at the cost it was made with", func(t *testing.T) {
		t.Parallel()
		for _, c := range []Cost{{8, 1, 1}, {64, 3, 1}, {64, 1, 4}} {
			mustVerify(t, New(Cost{16, 2, 1}), mustHash(t, New(c), goodPassword), goodPassword, true)
		}
	})
}

func TestNewRefusesACostOutsideTheCaps(t *testing.T) {
	t.Parallel()
	for _, c := range []Cost{{}, {7, 1, 1}, {maxMemory + 1, 1, 1}, {64, 0, 1}, {64, maxPasses + 1, 1}, {64, 1, 0}, {1 << 10, 1, maxThreads + 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("New(%+v) did not panic", c)
				}
			}()
			New(c)
		}()
	}
}

// unknownHashes returns hashes that Verify does not know: of other programs, and
// damaged copies of a right one.
func unknownHashes(right string) map[string]string {
	zeroKey := argon2Hash{argon2id, cheap, make([]byte, saltSize), make([]byte, keySize)}.String()
	return map[string]string{
		"empty":                            "",
		"a word":                           "password",
		"the password itself":              goodPassword,
		"PBKDF2 without its count":         "pbkdf2:sha256$salt$0000000000000000000000000000000000000000000000000000000000000000",
		"bcrypt of another minor version":  "$2x$12$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy",
		"argon2d":                          strings.Replace(right, "argon2id", "argon2d", 1),
		"an empty field before the cost":   strings.Replace(right, "argon2id", "argon2id$", 1),
		"a line break after it":            right + "\n",
		"a space before it":                " " + right,
		"an empty key":                     right[:strings.LastIndexByte(right, '$')+1],
		"no key":                           right[:strings.LastIndexByte(right, '$')],
		"memory above the cap":             strings.Replace(right, "m=8,", fmt.Sprintf("m=%d,", maxMemory+1), 1),
		"no passes":                        strings.Replace(right, "t=1,", "t=0,", 1),
		"a key of zeros and a field after": zeroKey + "$",
	}
}

func TestUnknownHashNeverMatches(t *testing.T) {
	t.Parallel()
	h := New(cheap)
	right := mustHash(t, h, goodPassword)
	mustVerify(t, h, right, goodPassword, true)
	for name, hash := range unknownHashes(right) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if Known(hash) {
				t.Fatalf("%q is known", hash)
			}
			for _, password := range []string{goodPassword, "", hash, strings.Repeat("\x00", keySize)} {
				mustVerify(t, h, hash, password, false)
			}
		})
	}
}

// held returns the number of bytes that the idle memories hold.
func (m *memories) held() (bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.idle {
		bytes += i.memory.Size()
	}
	return bytes
}

// The memory that argon2 needs shows, without a clock, that it ran: the kernel holds
// it, and x/crypto allocates it. This test must not run in parallel with others, which
// allocate too.
func TestVerifyingAnUnknownHashCostsOneHash(t *testing.T) {
	h := New(Cost{Memory: 1 << 10, Passes: 1, Threads: 1})
	needed := func(hash string) (kib int) {
		for _, i := range h.memories.idle {
			i.memory.Release()
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		mustVerify(t, h, hash, goodPassword, false)
		runtime.ReadMemStats(&after)
		return max(h.memories.held(), int(after.TotalAlloc-before.TotalAlloc)) >> 10
	}
	right := mustHash(t, h, goodPassword)
	for name, hash := range unknownHashes(strings.Replace(right, "m=1024,", "m=8,", 1)) {
		t.Run(name, func(t *testing.T) {
			if kib := needed(hash); kib < 1<<10 || kib >= 2<<10 {
				t.Errorf("needed %d KiB; a hash needs %d", kib, 1<<10)
			}
		})
	}
}

// Hashes that run concurrently have a memory each, and the next ones use them again.
func TestMemoriesAreReusedAndReleased(t *testing.T) {
	t.Parallel()
	kernel := argon2.NewMemory() != nil
	synctest.Test(t, func(t *testing.T) {
		h := New(Cost{Memory: 1 << 10, Passes: 1, Threads: 1})
		want := func(memories int) {
			t.Helper()
			if !kernel {
				memories = 0
			}
			synctest.Wait()
			if kib := h.memories.held() >> 10; kib < memories<<10 || kib >= memories<<10+memories<<5+1 {
				t.Errorf("the memories hold %d KiB, want about %d", kib, memories<<10)
			}
		}
		one, two := h.memories.take(), h.memories.take()
		for _, mem := range []*argon2.Memory{one, two} {
			h.cost.derive(mem, goodPassword, make([]byte, saltSize), keySize)
			h.memories.give(mem)
		}
		want(2)
		time.Sleep(keepMemory - 1)
		for range 3 {
			mustHash(t, h, goodPassword)
		}
		want(2)
		time.Sleep(time.Nanosecond)
		want(1) // the other was not used again
		time.Sleep(keepMemory - 1)
		want(0)
		mustVerify(t, h, mustHash(t, h, goodPassword), goodPassword, true)
		want(1)
	})
}

func TestAMemoryThatIsInUseIsNotReleased(t *testing.T) {
	t.Parallel()
	h := New(cheap)
	mustHash(t, h, goodPassword)
	mem := h.memories.take()
	size := mem.Size()
	h.memories.release(mem) // as by a timer that take was too late to stop
	if mem.Size() != size {
		t.Error("it was released")
	}
}

// checkKernel disables a kernel that computes wrong keys; .ci/run builds one.
func TestWithoutTheKernelTheKeysAreTheSame(t *testing.T) {
	t.Parallel()
	with, without := New(cheap), New(cheap)
	if err := with.checkKernel(); err != nil {
		t.Error(err)
	}
	without.memories.disabled = true
	mustVerify(t, with, mustHash(t, without, goodPassword), goodPassword, true)
	mustVerify(t, without, mustHash(t, with, goodPassword), goodPassword, true)
	if n := without.memories.held(); n != 0 || len(without.memories.idle) != 0 {
		t.Errorf("the disabled kernel holds %d bytes", n)
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	h := New(Cost{Memory: 64, Passes: 2, Threads: 1})
	text := func(c Cost, salt, key int) string {
		return argon2Hash{argon2id, c, make([]byte, salt), make([]byte, key)}.String()
	}
	for _, row := range []struct {
		name string
		hash string
		want bool
	}{
		{"made by Hash", mustHash(t, h, goodPassword), false},
		{"the same cost", text(h.cost, 16, 32), false},
		{"less memory", text(Cost{63, 2, 1}, 16, 32), true},
		{"more memory", text(Cost{65, 2, 1}, 16, 32), true},
		{"fewer passes", text(Cost{64, 1, 1}, 16, 32), true},
		{"more threads", text(Cost{64, 2, 2}, 16, 32), true},
		{"a shorter salt", text(h.cost, 8, 32), true},
		{"a longer salt", text(h.cost, 17, 32), true},
		{"a shorter key", text(h.cost, 16, 16), true},
		{"a longer key", text(h.cost, 16, 33), true},
		{"empty", "", true},
		{"an unknown format", "pbkdf2:sha256:600000$salt$00", true},
		{"argon2i", argon2Hash{argon2i, h.cost, make([]byte, saltSize), make([]byte, keySize)}.String(), true},
		{"another spelling", text(h.cost, 16, 32) + "\n", true},
	} {
		if got := h.Stale(row.hash); got != row.want {
			t.Errorf("%s: Stale = %t", row.name, got)
		}
	}
	for _, foreign := range foreignHashes(t) {
		if !h.Stale(foreign.hash) {
			t.Errorf("%s: not stale", foreign.format)
		}
	}
}

// forcedCollections returns how many collections of garbage work forces. Tests that
// use it must not run in parallel with others.
func forcedCollections(work func()) uint32 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	work()
	runtime.ReadMemStats(&after)
	return after.NumForcedGC - before.NumForcedGC
}

// Without the kernel, the hash itself forces the collection.
func TestAnIdleServerReturnsItsHeap(t *testing.T) {
	for kib, want := range map[uint32]uint32{minGarbage - 1: 0, minGarbage: 1} {
		synctest.Test(t, func(t *testing.T) {
			h := New(Cost{Memory: kib, Passes: 1, Threads: 1})
			n := forcedCollections(func() {
				mustHash(t, h, goodPassword)
				time.Sleep(keepMemory)
				synctest.Wait()
			})
			if n != want {
				t.Errorf("%d KiB: %d collections, want %d", kib, n, want)
			}
		})
	}
}

// Without forced collections, the garbage of x/crypto would pile up. The kernel leaves
// none, and after cheap hashes a collection would cost more than the hash.
func TestGarbageIsCollectedAfterExpensiveHashes(t *testing.T) {
	collections := func(h *Hasher) uint32 {
		return forcedCollections(func() { mustHash(t, h, goodPassword) })
	}
	expensive := New(Cost{Memory: 1 << 10, Passes: 1, Threads: 1})
	if n := collections(expensive); argon2.NewMemory() != nil && n != 0 {
		t.Errorf("%d collections after a hash with the kernel", n)
	}
	expensive = New(expensive.cost)
	expensive.queue.cores = 2
	expensive.memories.disabled = true
	if n := collections(expensive); n != 1 {
		t.Errorf("%d collections after a hash while no other was running", n)
	}
	done := mustTurn(t, expensive)
	defer done()
	if n := collections(expensive) + collections(expensive); n != 1 {
		t.Errorf("%d collections after two hashes while another was running", n)
	}
	cheap := New(Cost{Memory: 1<<10 - 1, Passes: 1, Threads: 1})
	cheap.memories.disabled = true
	if n := collections(cheap); n != 0 {
		t.Errorf("%d collections after a cheap hash", n)
	}
}

func TestEveryHashWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	right := mustHash(t, New(cheap), goodPassword)
	for name, work := range map[string]func(h *Hasher, ctx context.Context) error{
		"a new hash": func(h *Hasher, ctx context.Context) error {
			hash, err := h.Hash(ctx, "", goodPassword)
			if err != nil && hash != "" {
				t.Errorf("error %v with the hash %q", err, hash)
			}
			return err
		},
		"the right password": func(h *Hasher, ctx context.Context) error {
			ok, err := h.Verify(ctx, "", right, goodPassword)
			if ok != (err == nil) {
				t.Errorf("%t, %v", ok, err)
			}
			return err
		},
		"a wrong password": func(h *Hasher, ctx context.Context) error {
			_, err := h.Verify(ctx, "", right, "wrong")
			return err
		},
		"a user who does not exist": func(h *Hasher, ctx context.Context) error {
			_, err := h.Verify(ctx, "", "", goodPassword)
			return err
		},
		"an unknown hash": func(h *Hasher, ctx context.Context) error {
			_, err := h.Verify(ctx, "", "pbkdf2:sha256:600000$salt$00", goodPassword)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newWithCores(1)
				done := mustTurn(t, h)
				start := time.Now()
				if err := work(h, t.Context()); err != ErrBusy || time.Since(start) != MaxWait {
					t.Errorf("without a turn: %v after %v, want ErrBusy after %v", err, time.Since(start), MaxWait)
				}
				canceled, cancel := context.WithCancel(t.Context())
				cancel()
				if err := work(h, canceled); !errors.Is(err, context.Canceled) {
					t.Errorf("without a turn and with its context canceled: %v", err)
				}
				if got, want := h.Stats(), (Stats{Running: 1, Refused: 1}); got != want {
					t.Errorf("the stats are %+v, want %+v", got, want)
				}
				done()
				if err := work(h, t.Context()); err != nil {
					t.Errorf("with a turn: %v", err)
				}
				if got, want := h.Stats(), (Stats{Hashed: 1, Refused: 1}); got != want {
					t.Errorf("the stats are %+v, want %+v", got, want)
				}
				h.queue.mustBeEmpty(t)
			})
		})
	}
}

func TestACheckedHasherWarnsOnlyOfAWrongKernel(t *testing.T) {
	t.Parallel()
	h := NewChecked(func(err error) { t.Error(err) })
	hash, err := h.Hash(t.Context(), "", "correct horse battery")
	if err != nil || !Known(hash) {
		t.Errorf("%q, %v", hash, err)
	}
}
