package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Vectors of the reference implementation (phc-winner-argon2, src/test.c,
// Argon2id, version 0x13): those that take little memory.
var argon2Vectors = []struct{ password, hash string }{
	{"password", "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"},
	{"password", "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc"},
}

func mustVerify(t *testing.T, h *hasher, hash, password string, want bool) {
	t.Helper()
	ok, err := h.verify(t.Context(), "", hash, password)
	if err != nil || ok != want {
		t.Errorf("verify(%q, %q) = %t, %v; want %t", hash, password, ok, err, want)
	}
}

func TestHashVectors(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	for _, v := range argon2Vectors {
		mustVerify(t, h, v.hash, v.password, true)
		mustVerify(t, h, v.hash, v.password+" ", false)
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	hash := func(t *testing.T, h *hasher, password string) string {
		t.Helper()
		text, err := h.hash(t.Context(), "", password)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	t.Run("costs what OWASP asks", func(t *testing.T) {
		h := newHasher(defaultCost)
		text := hash(t, h, goodPassword)
		if !strings.HasPrefix(text, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Error(text)
		}
		mustVerify(t, h, text, goodPassword, true)
	})
	t.Run("has a salt of 16 bytes and a key of 32", func(t *testing.T) {
		p, ok := parsePHC(hash(t, newHasher(cheap), goodPassword))
		if !ok || p.cost != cheap || len(p.salt) != 16 || len(p.key) != 32 {
			t.Errorf("%+v, %t", p, ok)
		}
	})
	t.Run("has another salt each time", func(t *testing.T) {
		h := newHasher(cheap)
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
		h := newHasher(cheap)
		long := strings.Repeat("p", maxPassword)
		text := hash(t, h, long)
		mustVerify(t, h, text, long, true)
		mustVerify(t, h, text, long[1:], false)
		mustVerify(t, h, text, long[:len(long)-1]+"q", false)
		mustVerify(t, h, text, long+"p", false)
	})
	t.Run("is of the password as it was typed", func(t *testing.T) {
		h := newHasher(cheap)
		text := hash(t, h, "Pässword £5 ")
		mustVerify(t, h, text, "Pässword £5 ", true)
		for _, other := range []string{"pässword £5 ", "Pässword £5", "Pa\u0308ssword £5 ", "Password £5 ", ""} {
			mustVerify(t, h, text, other, false)
		}
	})
	t.Run("verifies at the cost it was made with", func(t *testing.T) {
		for _, c := range []cost{{8, 1, 1}, {64, 3, 1}, {64, 1, 4}} {
			mustVerify(t, newHasher(cost{16, 2, 1}), hash(t, newHasher(c), goodPassword), goodPassword, true)
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
	t.Parallel()
	h := newHasher(cheap)
	right, err := h.hash(t.Context(), "", goodPassword)
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
	h := newHasher(cost{memory: 1 << 10, passes: 1, threads: 1})
	taken := func(hash string) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		mustVerify(t, h, hash, goodPassword, false)
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) >> 10
	}
	right, err := h.hash(t.Context(), "", goodPassword)
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

func TestParsePHC(t *testing.T) {
	t.Parallel()
	text := func(m, t, p, salt, key int) string {
		return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", m, t, p,
			base64.RawStdEncoding.EncodeToString(make([]byte, salt)), base64.RawStdEncoding.EncodeToString(make([]byte, key)))
	}
	const salt, key = "AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, row := range []struct {
		name string
		text string
		ok   bool
	}{
		{"ours", text(19456, 2, 1, 16, 32), true},
		{"ours, letter by letter", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key, true},
		{"Django's", text(102400, 2, 8, 22, 32), true},

		{"the most memory", text(131072, 2, 1, 16, 32), true},
		{"one KiB more than the most memory", text(131073, 2, 1, 16, 32), false},
		{"memory that is 2^32", text(1<<32, 2, 1, 16, 32), false},
		{"memory that wraps round to ours", text(1<<32+19456, 2, 1, 16, 32), false},
		{"the least memory for a thread", text(8, 2, 1, 16, 32), true},
		{"less memory than a thread takes", text(7, 2, 1, 16, 32), false},
		{"the least memory for four threads", text(32, 2, 4, 16, 32), true},
		{"less memory than four threads take", text(31, 2, 4, 16, 32), false},
		{"no memory", text(0, 2, 1, 16, 32), false},
		{"the most passes", text(19456, 10, 1, 16, 32), true},
		{"one pass more than the most", text(19456, 11, 1, 16, 32), false},
		{"passes that wrap round to two", text(19456, 1<<32+2, 1, 16, 32), false},
		{"one pass", text(19456, 1, 1, 16, 32), true},
		{"no pass", text(19456, 0, 1, 16, 32), false},
		{"the most threads", text(19456, 2, 16, 16, 32), true},
		{"one thread more than the most", text(19456, 2, 17, 16, 32), false},
		{"threads that wrap round to one", text(19456, 2, 257, 16, 32), false},
		{"no thread", text(19456, 2, 0, 16, 32), false},
		{"the longest salt", text(19456, 2, 1, 64, 32), true},
		{"a salt longer by one", text(19456, 2, 1, 65, 32), false},
		{"the shortest salt", text(19456, 2, 1, 8, 32), true},
		{"a salt shorter by one", text(19456, 2, 1, 7, 32), false},
		{"no salt", text(19456, 2, 1, 0, 32), false},
		{"the longest key", text(19456, 2, 1, 16, 64), true},
		{"a key longer by one", text(19456, 2, 1, 16, 65), false},
		{"the shortest key", text(19456, 2, 1, 16, 16), true},
		{"a key shorter by one", text(19456, 2, 1, 16, 15), false},
		{"no key", text(19456, 2, 1, 16, 0), false},

		{"nothing", "", false},
		{"another scheme", "$argon2d$v=19$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"the scheme in another case", "$Argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"an older version", "$argon2id$v=16$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"no version", "$argon2id$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"the figures in another order", "$argon2id$v=19$t=2,m=19456,p=1$" + salt + "$" + key, false},
		{"a figure more", "$argon2id$v=19$m=19456,t=2,p=1,data=AA$" + salt + "$" + key, false},
		{"a figure left out", "$argon2id$v=19$m=19456,t=2$" + salt + "$" + key, false},
		{"a leading zero", "$argon2id$v=19$m=019456,t=2,p=1$" + salt + "$" + key, false},
		{"a plus sign", "$argon2id$v=19$m=19456,t=+2,p=1$" + salt + "$" + key, false},
		{"a minus sign", "$argon2id$v=19$m=-19456,t=2,p=1$" + salt + "$" + key, false},
		{"an underscore", "$argon2id$v=19$m=19_456,t=2,p=1$" + salt + "$" + key, false},
		{"hexadecimal", "$argon2id$v=19$m=0x4c00,t=2,p=1$" + salt + "$" + key, false},
		{"a space before a figure", "$argon2id$v=19$m= 19456,t=2,p=1$" + salt + "$" + key, false},
		{"a space before all", " $argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"a line break after all", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key + "\n", false},
		{"a line break in the salt", "$argon2id$v=19$m=19456,t=2,p=1$" + salt[:4] + "\n" + salt[4:] + "$" + key, false},
		{"a line break in the key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key[:4] + "\r\n" + key[4:], false},
		{"trailing bits in the salt", "$argon2id$v=19$m=19456,t=2,p=1$" + salt[:21] + "B$" + key, false},
		{"trailing bits in the key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key[:42] + "B", false},
		{"padding after the salt", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "==$" + key, false},
		{"padding after the key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key + "=", false},
		{"the URL alphabet", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$_" + key[1:], false},
		{"the standard alphabet", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$/" + key[1:], true},
		{"a field left out", "$argon2id$v=19$m=19456,t=2,p=1$" + salt, false},
		{"two fields left out", "$argon2id$v=19$m=19456,t=2,p=1$", false},
		{"a field more", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key + "$", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, ok := parsePHC(row.text)
			if ok != row.ok {
				t.Fatalf("parsePHC(%q) = %+v, %t", row.text, p, ok)
			}
			if ok && p.String() != row.text {
				t.Errorf("%q is written %q", row.text, p)
			}
		})
	}
}

func FuzzParsePHC(f *testing.F) {
	for _, v := range argon2Vectors {
		f.Add(v.hash)
	}
	f.Add("")
	f.Add(phc{argon2id, defaultCost, make([]byte, saltSize), make([]byte, keySize)}.String())
	f.Add(phc{argon2id, cost{maxMemory, maxPasses, maxThreads}, make([]byte, 64), make([]byte, 64)}.String())
	f.Add(phc{argon2id, cost{maxMemory + 1, maxPasses + 1, maxThreads + 1}, make([]byte, 65), make([]byte, 65)}.String())
	f.Add("$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=8,t=01,p=+1$AAAAAAAAAAB$AAAAAAAAAAAAAAAAAAAAAB")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePHC(s)
		if !ok {
			return
		}
		if p.String() != s {
			t.Errorf("%q is written %q", s, p)
		}
		if p.memory > maxMemory || p.passes > maxPasses || p.threads > maxThreads || len(p.salt) > 64 || len(p.key) > 64 {
			t.Errorf("%q is above the caps", s)
		}
		// What argon2 would panic at, or an attacker would find by trying.
		if p.memory < 8 || p.passes < 1 || p.threads < 1 || len(p.salt) < 8 || len(p.key) < 16 {
			t.Errorf("%q is below the least", s)
		}
	})
}

func TestStale(t *testing.T) {
	t.Parallel()
	h := newHasher(cost{memory: 64, passes: 2, threads: 1})
	text := func(c cost, salt, key int) string {
		return phc{argon2id, c, make([]byte, salt), make([]byte, key)}.String()
	}
	made, err := h.hash(t.Context(), "", goodPassword)
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
		{"less memory", text(cost{63, 2, 1}, 16, 32), true},
		{"more memory", text(cost{65, 2, 1}, 16, 32), true},
		{"fewer passes", text(cost{64, 1, 1}, 16, 32), true},
		{"more threads", text(cost{64, 2, 2}, 16, 32), true},
		{"a shorter salt", text(h.cost, 8, 32), true},
		{"a longer salt", text(h.cost, 17, 32), true},
		{"a shorter key", text(h.cost, 16, 16), true},
		{"a longer key", text(h.cost, 16, 33), true},
		{"no hash", "", true},
		{"an unknown form", "pbkdf2:sha256:600000$salt$00", true},
		{"argon2i", phc{argon2i, h.cost, make([]byte, saltSize), make([]byte, keySize)}.String(), true},
		{"another spelling", text(h.cost, 16, 32) + "\n", true},
	} {
		if got := h.stale(row.hash); got != row.want {
			t.Errorf("%s: stale = %t", row.name, got)
		}
	}
}

func slotted(slots int) *hasher {
	h := newHasher(cheap)
	h.gate.slots = slots
	return h
}

// fill takes every slot, until leave gives them back.
func (g *gate) fill() (leave func()) {
	for range g.slots {
		if g.join("a filler") != nil {
			panic("somebody is inside")
		}
	}
	return func() {
		for range g.slots {
			g.leave()
		}
	}
}

// crowd also has as many wait as may, all of one network.
func (g *gate) crowd(from string) {
	for _, waiting := g.count(); waiting < waitersPerSlot*g.slots; _, waiting = g.count() {
		g.join(from)
	}
}

// clear lets everybody go.
func (g *gate) clear() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside, g.waiting, g.lines = 0, 0, nil
}

// mustBeEmpty asks that nobody is inside and nobody waits.
func (g *gate) mustBeEmpty(t *testing.T) {
	t.Helper()
	if inside, waiting := g.count(); inside != 0 || waiting != 0 || len(g.lines) != 0 {
		t.Errorf("%d are inside and %d wait in %d lines", inside, waiting, len(g.lines))
	}
}

func mustEnter(t *testing.T, h *hasher) (leave func()) {
	t.Helper()
	leave, err := h.enter(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestGateHasASlotForEachCore(t *testing.T) {
	if got, want := newHasher(defaultCost).gate.slots, runtime.GOMAXPROCS(0); got != want {
		t.Errorf("%d slots on %d cores", got, want)
	}
}

func TestGateLetsInAsManyAsItHasSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, callers = 3, 20
		h := slotted(slots)
		inside, most, done := make(chan struct{}, callers), 0, 0
		release := make(chan struct{})
		for range callers {
			go func() {
				leave, err := h.enter(context.Background(), "")
				if err != nil {
					t.Error(err)
					return
				}
				inside <- struct{}{}
				<-release
				<-inside
				leave()
				done++ // one at a time: release is given one by one
			}()
		}
		for range callers {
			synctest.Wait()
			most = max(most, len(inside))
			release <- struct{}{}
		}
		synctest.Wait()
		if most != slots || done != callers {
			t.Errorf("%d at a time, %d in all; want %d and %d", most, done, slots, callers)
		}
		h.gate.mustBeEmpty(t)
	})
}

func TestGateBoundsItsQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 2
		h := slotted(slots)
		leave := mustEnter(t, h)
		mustEnter(t, h)
		results := make(chan error, slots*waitersPerSlot)
		for range slots * waitersPerSlot {
			go func() {
				_, err := h.enter(context.Background(), "")
				results <- err
			}()
		}
		synctest.Wait()
		if len(results) != 0 {
			t.Fatalf("%d did not wait: %v", len(results), <-results)
		}

		start := time.Now()
		if _, err := h.enter(t.Context(), ""); err != errBusy || !time.Now().Equal(start) {
			t.Errorf("one more than the queue holds got %v after %v, want errBusy at once", err, time.Since(start))
		}
		leave()
		synctest.Wait()
		if len(results) != 1 || <-results != nil {
			t.Error("a place given back did not go to one of the queue")
		}
		go func() {
			_, err := h.enter(context.Background(), "")
			results <- err
		}()
		synctest.Wait()
		if len(results) != 0 {
			t.Errorf("the place in the queue that was left is still taken: %v", <-results)
		}

		for range slots * waitersPerSlot {
			if err := <-results; err != errBusy {
				t.Errorf("one that waited in vain got %v, want errBusy", err)
			}
		}
		if waited := time.Since(start); waited != maxWait {
			t.Errorf("they waited %v, want %v", waited, maxWait)
		}
		if _, waiting := h.gate.count(); waiting != 0 {
			t.Errorf("%d wait when all have gone", waiting)
		}
	})
}

func TestGateLetsGoOfWhoHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := slotted(1)
		leave := mustEnter(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, waitersPerSlot)
		for range waitersPerSlot {
			go func() {
				_, err := h.enter(ctx, "")
				results <- err
			}()
		}
		synctest.Wait()
		start := time.Now()
		cancel()
		for range waitersPerSlot {
			if err := <-results; !errors.Is(err, context.Canceled) || errors.Is(err, errBusy) {
				t.Errorf("got %v, want the context's error", err)
			}
		}
		if !time.Now().Equal(start) {
			t.Errorf("they left after %v, want at once", time.Since(start))
		}
		entered := make(chan error, 1)
		go func() {
			leave, err := h.enter(context.Background(), "")
			if err == nil {
				leave()
			}
			entered <- err
		}()
		synctest.Wait()
		leave()
		if err := <-entered; err != nil {
			t.Errorf("the next one got %v: their places are still taken", err)
		}
		h.gate.mustBeEmpty(t)
	})
}

// Whoever sends many passwords, though they be right, waits behind himself.
func TestGateIsSharedByNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 2
		h := slotted(slots)
		leave := h.gate.fill()
		ends := make(chan string)
		ask := func(from string) {
			go func() {
				leave, err := h.enter(context.Background(), from)
				if err != nil {
					ends <- from + " refused"
					return
				}
				ends <- from
				leave()
			}()
			synctest.Wait()
		}
		receive := func(want string) {
			t.Helper()
			synctest.Wait()
			select {
			case got := <-ends:
				if got != want {
					t.Errorf("%s, want %s", got, want)
				}
			default:
				t.Errorf("nothing, want %s", want)
			}
		}
		for range waitersPerSlot * slots {
			ask("many")
		}
		ask("few")
		receive("many refused") // to make room
		ask("many")
		receive("many refused") // itself: its line is the longest
		ask("few")
		receive("many refused")
		ask("one")
		receive("many refused")
		leave()
		synctest.Wait()
		got := make(map[string]int)
		for range 2*3 - 1 { // in two turns
			got[<-ends]++
			synctest.Wait()
		}
		if got["few"] != 2 || got["one"] != 1 || got["many"] != 2 {
			t.Errorf("let in: %v", got)
		}
		for range waitersPerSlot*slots - 5 {
			<-ends
		}
		synctest.Wait()
		h.gate.mustBeEmpty(t)
	})
}

// A turn that comes when the waiter has just gone is the next one's.
func TestGateLosesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := slotted(1)
		var group sync.WaitGroup
		for range 500 {
			leave := h.gate.fill()
			ctx, cancel := context.WithCancel(t.Context())
			for _, ctx := range []context.Context{ctx, t.Context()} { // the second stays
				group.Go(func() {
					if leave, err := h.enter(ctx, "a network"); err == nil {
						leave()
					}
				})
				synctest.Wait()
			}
			go cancel()
			go leave()
			synctest.Wait()
		}
		group.Wait()
		h.gate.mustBeEmpty(t)
	})
}

// Else the garbage of many hashes piles up: the collector runs rarely by itself.
func TestTheGarbageOfHashesIsCollected(t *testing.T) {
	h := slotted(2)
	collected := func() uint32 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := h.hash(t.Context(), "", goodPassword); err != nil {
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
	right, err := newHasher(cheap).hash(t.Context(), "", goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	for name, work := range map[string]func(h *hasher, ctx context.Context) error{
		"a new hash": func(h *hasher, ctx context.Context) error {
			text, err := h.hash(ctx, "", goodPassword)
			if err != nil && text != "" {
				t.Errorf("%v, and yet %q", err, text)
			}
			return err
		},
		"the right password": func(h *hasher, ctx context.Context) error {
			ok, err := h.verify(ctx, "", right, goodPassword)
			if ok != (err == nil) {
				t.Errorf("%t, %v", ok, err)
			}
			return err
		},
		"a wrong password": func(h *hasher, ctx context.Context) error {
			_, err := h.verify(ctx, "", right, "wrong")
			return err
		},
		"a user who does not exist": func(h *hasher, ctx context.Context) error {
			_, err := h.verify(ctx, "", "", goodPassword)
			return err
		},
		"a hash of an unknown form": func(h *hasher, ctx context.Context) error {
			_, err := h.verify(ctx, "", "pbkdf2:sha256:600000$salt$00", goodPassword)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := slotted(1)
				leave := mustEnter(t, h)
				start := time.Now()
				if err := work(h, t.Context()); err != errBusy || time.Since(start) != maxWait {
					t.Errorf("at a full gate: %v after %v, want errBusy after %v", err, time.Since(start), maxWait)
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

func TestAClientThatHangsUpGivesItsPlaceInTheQueueBack(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	defer s.hasher.gate.fill()()
	for _, row := range []struct{ name, token, method, path, body string }{
		{"login", "", "POST", "/api/login", `{"username":"ann","password":"` + goodPassword + `"}`},
		{"registration", "", "POST", "/api/register", registerBody("bob", goodPassword)},
		{"a new password", token, "PUT", "/api/users/me", `{"password":"another good password"}`},
		{"the current password", token, "DELETE", "/api/users/me", `{"current_password":"` + goodPassword + `"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			wait := func(n int) (waited time.Duration) {
				start := time.Now()
				await(t, "the queue", func() bool { _, waiting := s.hasher.gate.count(); return waiting == n })
				return time.Since(start)
			}
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: userd\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				row.method, row.path, row.token, len(row.body), row.body)
			wait(1)
			s.hasher.gate.mu.Lock()
			if from := s.hasher.gate.lines[0].from; from != "127.0.0.0/24" {
				t.Errorf("it waits in the line of %q", from)
			}
			s.hasher.gate.mu.Unlock()
			conn.Close()
			if waited := wait(0); waited > maxWait/2 {
				t.Errorf("it kept its place for %v", waited)
			}
		})
	}
}

// At a full gate an answer other than 503 would come from no hash at all.
func TestFullGateOverHTTP(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.hasher.gate.crowd("127.0.0.0/24")
	for _, row := range []struct{ name, token, method, path, body string }{
		{"login with the right password", "", "POST", "/api/login", `{"username":"ann","password":"` + goodPassword + `"}`},
		{"login with a wrong password", "", "POST", "/api/login", `{"username":"ann","password":"wrong"}`},
		{"login by a name nobody has", "", "POST", "/api/login", `{"username":"nobody","password":"wrong"}`},
		{"registration", "", "POST", "/api/register", `{"username":"bob","email":"bob@example.com","password":"` + goodPassword + `"}`},
		{"a new password", token, "PUT", path, `{"password":"another good password"}`},
		{"the current password", token, "DELETE", path, `{"current_password":"` + goodPassword + `"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := s.do(row.token, row.method, row.path, row.body).want(t, 503, "busy")
			if got := r.header.Get("Retry-After"); got != "1" {
				t.Errorf("Retry-After: %q", got)
			}
		})
	}
	s.do(token, "GET", path, "").want(t, 200, "")
}

func TestCheckPassword(t *testing.T) {
	t.Parallel()
	const (
		short     = "must have at least 8 characters"
		long      = "must have at most 1024 bytes"
		nul       = "must not contain NUL"
		name      = "must not be the username or the email"
		tooCommon = "is one of the most common passwords"
	)
	for _, row := range []struct {
		name     string
		password string
		want     string
	}{
		{"a sentence", goodPassword, ""},
		{"the tutorial's password", "testpass", ""},
		{"nothing", "", short},
		{"7 letters", "kwyjibo", short},
		{"8 letters", "kwyjibos", ""},
		{"7 letters of two bytes", "äöüßéèñ", short},
		{"8 letters of two bytes", "äöüßéèñç", ""},
		{"7 letters of four bytes", "😀😁😂😃😄😅😆", short},
		{"8 letters of four bytes", "😀😁😂😃😄😅😆😇", ""},
		{"1024 bytes", strings.Repeat("x", 1024), ""},
		{"1025 bytes", strings.Repeat("x", 1025), long},
		{"1024 bytes in 512 letters", strings.Repeat("ä", 512), ""},
		{"1025 bytes in 513 letters", strings.Repeat("ä", 512) + "x", long},
		{"spaces", "        ", ""},
		{"control characters", "\x01\x02\x03\x04\x05\x06\x07\x08", ""},
		{"a NUL inside", "correct\x00horse", nul},
		{"a NUL at the end", "correct horse\x00", nul},
		{"the username", "ann-smith", name},
		{"the username in another case", "Ann-SMITH", name},
		{"the e-mail address", "ann@example.com", name},
		{"the e-mail address in another case", "ANN@Example.com", name},
		{"the username and more", "ann-smith1", ""},
		{"a common one", "password", tooCommon},
		{"a common one in upper case", "PASSWORD", tooCommon},
		{"a common one in mixed case", "PassWord123", tooCommon},
		{"a common one with a sign", "P@ssw0rd", tooCommon},
		{"digits", "12345678", tooCommon},
		{"a row of the keyboard", "qwertyuiop", tooCommon},
		{"iloveyou1", "iloveyou1", tooCommon},
		{"password1", "password1", tooCommon},
		{"a common one and more", "password correct", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := checkPassword(row.password, "ann-smith", "ann@example.com"); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// An entry that another rule stops, or that has a capital letter, would be of
// no use.
func TestEachCommonPasswordIsFound(t *testing.T) {
	t.Parallel()
	if len(common) < 100 {
		t.Errorf("only %d passwords", len(common))
	}
	for p := range common {
		for _, spelling := range []string{p, strings.ToUpper(p), strings.ToUpper(p[:1]) + p[1:]} {
			if got := checkPassword(spelling, "ann", "ann@example.com"); got != "is one of the most common passwords" {
				t.Errorf("%q: %q", spelling, got)
			}
		}
	}
}
