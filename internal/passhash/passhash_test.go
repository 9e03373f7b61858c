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
)

// cheap is a cost that lets a test hash often.
var cheap = Cost{Memory: 8, Passes: 1, Threads: 1}

const goodPassword = "correct horse battery"

// Vectors of the reference implementation (phc-winner-argon2, src/test.c,
// Argon2id, version 0x13): those that take little memory.
var argon2Vectors = []struct{ password, hash string }{
	{"password", "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"},
	{"password", "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc"},
}

func mustVerify(t *testing.T, h *Hasher, hash, password string, want bool) {
	t.Helper()
	ok, err := h.Verify(t.Context(), "", hash, password)
	if err != nil || ok != want {
		t.Errorf("verify(%q, %q) = %t, %v; want %t", hash, password, ok, err, want)
	}
}

func TestHashVectors(t *testing.T) {
	h := New(cheap)
	for _, v := range argon2Vectors {
		mustVerify(t, h, v.hash, v.password, true)
		mustVerify(t, h, v.hash, v.password+" ", false)
	}
}

func TestHash(t *testing.T) {
	hash := func(t *testing.T, h *Hasher, password string) string {
		t.Helper()
		text, err := h.Hash(t.Context(), "", password)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	t.Run("costs what OWASP asks", func(t *testing.T) {
		h := New(Default())
		text := hash(t, h, goodPassword)
		if !strings.HasPrefix(text, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Error(text)
		}
		mustVerify(t, h, text, goodPassword, true)
	})
	t.Run("has a salt of 16 bytes and a key of 32", func(t *testing.T) {
		p, ok := parsePHC(hash(t, New(cheap), goodPassword))
		if !ok || p.Cost != cheap || len(p.salt) != 16 || len(p.key) != 32 {
			t.Errorf("%+v, %t", p, ok)
		}
	})
	t.Run("has another salt each time", func(t *testing.T) {
		h := New(cheap)
		a, b := hash(t, h, goodPassword), hash(t, h, goodPassword)
		pa, _ := parsePHC(a)
		pb, _ := parsePHC(b)
		if string(pa.salt) == string(pb.salt) || string(pa.key) == string(pb.key) {
			t.Errorf("%s and %s", a, b)
		}
		mustVerify(t, h, a, goodPassword, true)
		mustVerify(t, h, b, goodPassword, true)
	})
	t.Run("is of the whole password", func(t *testing.T) {
		h := New(cheap)
		long := strings.Repeat("p", 1024)
		text := hash(t, h, long)
		mustVerify(t, h, text, long, true)
		mustVerify(t, h, text, long[1:], false)
		mustVerify(t, h, text, long[:len(long)-1]+"q", false)
		mustVerify(t, h, text, long+"p", false)
	})
	t.Run("is of the password as it was typed", func(t *testing.T) {
		h := New(cheap)
		text := hash(t, h, "Pässword £5 ")
		mustVerify(t, h, text, "Pässword £5 ", true)
		for _, other := range []string{"pässword £5 ", "Pässword £5", "Pa\u0308ssword £5 ", "Password £5 ", ""} {
			mustVerify(t, h, text, other, false)
		}
	})
	t.Run("verifies at the cost it was made with", func(t *testing.T) {
		for _, c := range []Cost{{8, 1, 1}, {64, 3, 1}, {64, 1, 4}} {
			mustVerify(t, New(Cost{16, 2, 1}), hash(t, New(c), goodPassword), goodPassword, true)
		}
	})
}

// unknownHashes returns hashes in no form that verify knows: of other programs,
// and what becomes of a right one on its way through them.
func unknownHashes(right string) map[string]string {
	zeroKey := phc{argon2id, cheap, make([]byte, saltSize), make([]byte, keySize)}.String()
	return map[string]string{
		"no hash":                         "",
		"a word":                          "password",
		"the password itself":             goodPassword,
		"PBKDF2 without its count":        "pbkdf2:sha256$salt$0000000000000000000000000000000000000000000000000000000000000000",
		"bcrypt of another minor version": "$2x$12$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy",
		"argon2d":                         strings.Replace(right, "argon2id", "argon2d", 1),
		"an unsalted key":                 strings.Replace(right, "argon2id", "argon2id$", 1),
		"a line break after it":           right + "\n",
		"a space before it":               " " + right,
		"a key cut to nothing":            right[:strings.LastIndexByte(right, '$')+1],
		"no key":                          right[:strings.LastIndexByte(right, '$')],
		"a cost above the cap":            strings.Replace(right, "m=8,", fmt.Sprintf("m=%d,", maxMemory+1), 1),
		"no passes":                       strings.Replace(right, "t=1,", "t=0,", 1),
		"a key of zeros and a field more": zeroKey + "$",
	}
}

func TestUnknownHashIsNeverRight(t *testing.T) {
	h := New(cheap)
	right, err := h.Hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, h, right, goodPassword, true)
	for name, hash := range unknownHashes(right) {
		t.Run(name, func(t *testing.T) {
			if _, ok := parsePHC(hash); ok {
				t.Fatalf("%q is known", hash)
			}
			for _, password := range []string{goodPassword, "", hash, strings.Repeat("\x00", keySize)} {
				mustVerify(t, h, hash, password, false)
			}
		})
	}
}

// The memory that argon2 takes is what tells, without a clock, that it ran.
func TestUnknownHashTakesTheWorkOfOneOfOurs(t *testing.T) {
	h := New(Cost{Memory: 1 << 10, Passes: 1, Threads: 1})
	taken := func(hash string) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		mustVerify(t, h, hash, goodPassword, false)
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) >> 10
	}
	right, err := h.Hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	for name, hash := range unknownHashes(strings.Replace(right, "m=1024,", "m=8,", 1)) {
		t.Run(name, func(t *testing.T) {
			if kib := taken(hash); kib < 1<<10 || kib >= 2<<10 {
				t.Errorf("took %d KiB, one of ours takes %d", kib, 1<<10)
			}
		})
	}
}

func TestStale(t *testing.T) {
	h := New(Cost{Memory: 64, Passes: 2, Threads: 1})
	text := func(c Cost, salt, key int) string {
		return phc{argon2id, c, make([]byte, salt), make([]byte, key)}.String()
	}
	made, err := h.Hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		hash string
		want bool
	}{
		{"one that hash made", made, false},
		{"one of the same cost", text(h.cost, 16, 32), false},
		{"less memory", text(Cost{63, 2, 1}, 16, 32), true},
		{"more memory", text(Cost{65, 2, 1}, 16, 32), true},
		{"fewer passes", text(Cost{64, 1, 1}, 16, 32), true},
		{"more threads", text(Cost{64, 2, 2}, 16, 32), true},
		{"a shorter salt", text(h.cost, 8, 32), true},
		{"a longer salt", text(h.cost, 17, 32), true},
		{"a shorter key", text(h.cost, 16, 16), true},
		{"a longer key", text(h.cost, 16, 33), true},
		{"no hash", "", true},
		{"an unknown form", "pbkdf2:sha256:600000$salt$00", true},
		{"argon2i", phc{argon2i, h.cost, make([]byte, saltSize), make([]byte, keySize)}.String(), true},
		{"another spelling", text(h.cost, 16, 32) + "\n", true},
	} {
		if got := h.Stale(row.hash); got != row.want {
			t.Errorf("%s: stale = %t", row.name, got)
		}
	}
}

// Else the garbage of many hashes piles up: the collector runs rarely by itself.
func TestTheGarbageOfHashesIsCollected(t *testing.T) {
	h := slotted(2)
	collected := func() uint32 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := h.Hash(t.Context(), "", goodPassword); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.NumForcedGC - before.NumForcedGC
	}
	if n := collected(); n != 1 {
		t.Errorf("%d times after the last hash that ran", n)
	}
	leave := mustEnter(t, h)
	defer leave()
	if n := collected() + collected(); n != 1 {
		t.Errorf("%d times after two hashes beside another", n)
	}
}

func TestEveryHashGoesThroughTheGate(t *testing.T) {
	right, err := New(cheap).Hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	for name, work := range map[string]func(h *Hasher, ctx context.Context) error{
		"a new hash": func(h *Hasher, ctx context.Context) error {
			text, err := h.Hash(ctx, "", goodPassword)
			if err != nil && text != "" {
				t.Errorf("%v, and yet %q", err, text)
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
		"a hash of an unknown form": func(h *Hasher, ctx context.Context) error {
			_, err := h.Verify(ctx, "", "pbkdf2:sha256:600000$salt$00", goodPassword)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := slotted(1)
				leave := mustEnter(t, h)
				start := time.Now()
				if err := work(h, t.Context()); err != ErrBusy || time.Since(start) != MaxWait {
					t.Errorf("at a full gate: %v after %v, want ErrBusy after %v", err, time.Since(start), MaxWait)
				}
				gone, cancel := context.WithCancel(t.Context())
				cancel()
				if err := work(h, gone); !errors.Is(err, context.Canceled) {
					t.Errorf("at a full gate, the client gone: %v", err)
				}
				leave()
				if err := work(h, t.Context()); err != nil {
					t.Errorf("at an open gate: %v", err)
				}
				h.gate.mustBeEmpty(t)
			})
		})
	}
}
