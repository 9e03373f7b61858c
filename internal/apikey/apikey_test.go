package apikey

import (
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
	"math/big"
	"regexp"
	"strings"
	"testing"
)

// Python computed these checksums and hashes, with zlib.crc32 and hashlib.sha256.
const python = "ud_0123456789ABCDEFGHIJKLMNOPQRST2UDHS0"

var vectors = map[string]string{
	python: "55c00b263496d2ae18192533d4248f37b28c6b08a227f29889a0d76befb0ad40",
	"ud_userdUSERDuserdUSERDuserd012343PhIn0": "25824e0e5953c7a589e3222660825ed2ad9353173c0a18effdcf974050dad392",
	"ud_0000000000000000000000000000000157cn": "51919e66e4f4c279ea7bb595c74051b777177454a62d271e9b143f8219dd730a",
	"ud_00000000000000000000000000212300097N": "", // the checksum begins with zeros
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for key, hash := range vectors {
		if !Valid(key) {
			t.Errorf("%s is not valid", key)
		}
		if got := hex.EncodeToString(Hash(key)); hash != "" && got != hash {
			t.Errorf("the hash of %s is %s, want %s", key, got, hash)
		}
		if got := Prefix(key); got != key[:8] {
			t.Errorf("the prefix of %s is %s", key, got)
		}
	}
}

var pattern = regexp.MustCompile(`^ud_[0-9A-Za-z]{36}$`)

func TestNewKeysAreValidAndDiffer(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 1000 {
		key := New()
		if !pattern.MatchString(key) || !Valid(key) || len(key) != Len || seen[key] {
			t.Fatalf("New returned %q", key)
		}
		seen[key] = true
	}
}

// Without the rejection, each of the first 8 digits is 25 % more frequent than the
// others, which is 11 standard deviations here. Chance exceeds 6.5 in one run of 10^8.
func TestAllDigitsAreEquallyFrequent(t *testing.T) {
	t.Parallel()
	const keys = 6000
	count := make(map[rune]int)
	for range keys {
		for _, r := range New()[len(start) : len(start)+randomLen] {
			count[r]++
		}
	}
	mean := float64(keys*randomLen) / 62
	for _, r := range digits {
		if off := math.Abs(float64(count[r])-mean) / math.Sqrt(mean*61/62); off > 6.5 {
			t.Errorf("%c appears %d times, which is %.1f standard deviations from %.0f", r, count[r], off, mean)
		}
	}
}

func TestValidRefusesMistypedKeys(t *testing.T) {
	t.Parallel()
	for i := range len(python) {
		for c := range 256 {
			b := []byte(python)
			if b[i] == byte(c) {
				continue
			}
			b[i] = byte(c)
			if Valid(string(b)) {
				t.Errorf("%q is valid", b)
			}
		}
		for _, wrong := range []string{python[:i], python[:i] + python[i+1:], python[:i] + "0" + python[i:]} {
			if wrong != python && Valid(wrong) {
				t.Errorf("%q is valid", wrong)
			}
		}
		if i > 0 && python[i] != python[i-1] {
			if swapped := python[:i-1] + python[i:i+1] + python[i-1:i] + python[i+1:]; Valid(swapped) {
				t.Errorf("%q is valid", swapped)
			}
		}
	}
	for _, body := range []string{"ux" + python[2:33], "UD" + python[2:33], python[:32] + "-", python[:31] + "é"} {
		sum := checksum([]byte(body))
		if wrong := body + string(sum[:]); Valid(wrong) {
			t.Errorf("%q is valid", wrong)
		}
	}
	for _, wrong := range []string{"", " " + python, python + "\n", "Bearer " + python, strings.ToUpper(python), strings.ToLower(python)} {
		if Valid(wrong) {
			t.Errorf("%q is valid", wrong)
		}
	}
}

func TestBegins(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{New(): true, "ud_": true, "": false, "ud": false, "UD_": false, " ud_": false, "eyJhbGciOiJIUzI1NiJ9.e30.": false} {
		if Begins(s) != want {
			t.Errorf("Begins(%q) = %t", s, !want)
		}
	}
}

func TestValidAllocatesLittle(t *testing.T) {
	for _, s := range []string{python, strings.Repeat("x", Len), strings.Repeat(python, 10_000)} {
		if n := testing.AllocsPerRun(100, func() { Valid(s) }); n > 1 || len(s) > Len && n > 0 {
			t.Errorf("a text of %d bytes makes %v allocations", len(s), n)
		}
	}
}

// FuzzValid compares Valid with the pattern and with math/big, which counts in base62
// with the lower-case letters first.
func FuzzValid(f *testing.F) {
	for key := range vectors {
		f.Add(key)
		f.Add(key[:len(key)-1] + "!")
	}
	f.Add(New())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		want := false
		if pattern.MatchString(s) {
			sum := big.NewInt(int64(crc32.ChecksumIEEE([]byte(s[:33])))).Text(62)
			want = fmt.Sprintf("%06s", swapCase(sum)) == s[33:]
		}
		if Valid(s) != want {
			t.Errorf("Valid(%q) = %v", s, !want)
		}
	})
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, s)
}
