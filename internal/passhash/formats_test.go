package passhash

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// A foreignHash is a hash that another program made.
type foreignHash struct{ format, password, hash string }

// foreignHashes reads testdata/foreign.tsv.
func foreignHashes(t testing.TB) (list []foreignHash) {
	t.Helper()
	data, err := os.ReadFile("testdata/foreign.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != 3 {
			t.Fatalf("testdata/foreign.tsv: the line %q has %d fields", line, len(fields))
		}
		list = append(list, foreignHash{fields[0], fields[1], fields[2]})
	}
	return list
}

func TestForeignHashes(t *testing.T) {
	t.Parallel()
	h := New(cheap)
	for _, foreign := range foreignHashes(t) {
		t.Run(foreign.format, func(t *testing.T) {
			t.Parallel()
			if !Known(foreign.hash) {
				t.Error("unknown")
			}
			mustVerify(t, h, foreign.hash, foreign.password, true)
			for _, wrong := range []string{"", foreign.password + "x", foreign.password[1:], strings.ToUpper(foreign.password)} {
				mustVerify(t, h, foreign.hash, wrong, false)
			}
		})
	}
}

// bcrypt ignores all but 72 bytes, so a longer password must not match.
func TestBcryptRefusesLongPasswords(t *testing.T) {
	t.Parallel()
	// crypt(3) of 72 times "a".
	const hash = "$2b$05$abcdefghijklmnopqrstuuGUnCqbfgs3htOkLrFduUjAyLBw1Rq/u"
	h := New(cheap)
	mustVerify(t, h, hash, strings.Repeat("a", 72), true)
	mustVerify(t, h, hash, strings.Repeat("a", 73), false)
}

// A stored hash chooses neither the cost of verifying it nor whether Verify panics.
// Each row has only the fault that its name says.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const (
		salt    = "$aBcD1234eFgH5678$"
		saltKey = "$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk" // of PHC scrypt
		django  = "$Y4lYkhydJc8QouyoCrenGSLT749fOKuITYRJIxqlmNo="
		bcrypt  = "abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo."
	)
	hex20, hex32, hex64 := strings.Repeat("ab", 20), strings.Repeat("ab", 32), strings.Repeat("ab", 64)
	for _, row := range []struct{ name, hash string }{
		{"empty", ""},
		{"plain text", "password"},
		{"MD5", "5f4dcc3b5aa765d61d8327deb882cf99"},
		{"more than 512 bytes", "pbkdf2_sha256$1000$aBcD1234eFgH5678" + django + strings.Repeat("\n", maxHashLength)}, // base64 ignores line breaks

		{"argon2d", "$argon2d$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"},
		{"another version of argon2", "$argon2id$v=16$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"},

		{"scrypt with 256 MiB", "scrypt:262144:8:1" + salt + hex64},
		{"scrypt with N of 3", "scrypt:3:8:1" + salt + hex64},
		{"scrypt with N of 0", "scrypt:0:8:1" + salt + hex64},
		{"scrypt with N of 1", "scrypt:1:8:1" + salt + hex64},
		{"scrypt with a negative N", "scrypt:-2:8:1" + salt + hex64},
		{"scrypt with memory that wraps around to 0", "scrypt:4611686018427387904:8:1" + salt + hex64},
		{"scrypt with r of 0", "scrypt:32768:0:1" + salt + hex64},
		{"scrypt with r of 65", "scrypt:2:65:1" + salt + hex64},
		{"scrypt with p of 0", "scrypt:32768:8:0" + salt + hex64},
		{"scrypt with p of 17", "scrypt:1024:8:17" + salt + hex64},
		{"scrypt with more work than the cap", "scrypt:131072:8:16" + salt + hex64},
		{"scrypt with a leading zero", "scrypt:032768:8:1" + salt + hex64},
		{"scrypt without a $ before the salt", "scrypt:1024:8:1" + salt[1:] + hex64},
		{"scrypt without p", "scrypt:32768:8" + salt + hex64},
		{"scrypt without a salt", "scrypt:1024:8:1$$" + hex64},
		{"scrypt with a salt of 65 bytes", "scrypt:1024:8:1$" + strings.Repeat("s", 65) + "$" + hex64},
		{"scrypt with an empty key", "scrypt:1024:8:1" + salt},
		{"scrypt with a key of 15 bytes", "scrypt:1024:8:1" + salt + hex64[:30]},
		{"scrypt with a key of 65 bytes", "scrypt:1024:8:1" + salt + hex64 + "ab"},
		{"scrypt with a key that is not hexadecimal", "scrypt:1024:8:1" + salt + hex64 + "xy"},
		{"scrypt with an additional field", "scrypt:1024:8:1" + salt + hex64 + "$"},
		{"scrypt without a key", "scrypt:1024:8:1$aBcD1234eFgH5678"},

		{"PHC scrypt with 1 GiB", "$scrypt$ln=20,r=8,p=1" + saltKey},
		{"PHC scrypt with N of 2^65", "$scrypt$ln=65,r=8,p=1" + saltKey},
		{"PHC scrypt with N of 2^-1", "$scrypt$ln=-1,r=8,p=1" + saltKey},
		{"PHC scrypt with a plus sign", "$scrypt$ln=+9,r=8,p=1" + saltKey},
		{"PHC scrypt without ln=", "$scrypt$9,r=8,p=1" + saltKey},
		{"PHC scrypt without p", "$scrypt$ln=9,r=8" + saltKey},
		{"PHC scrypt with padding", "$scrypt$ln=10,r=8,p=1" + saltKey + "="},
		{"PHC scrypt with padding of the salt", "$scrypt$ln=10,r=8,p=1" + strings.Replace(saltKey, "Dw$", "Dw==$", 1)},
		{"PHC scrypt with an additional field", "$scrypt$ln=10,r=8,p=1" + saltKey + "$"},
		{"PHC scrypt without a key", "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw"},

		{"HMAC with MD5", "md5" + salt + hex20[:32]},
		{"HMAC without a salt", "sha256$$" + hex32},
		{"HMAC with sha1 and a sum of 32 bytes", "sha1" + salt + hex32},
		{"HMAC with sha256 and a sum of 20 bytes", "sha256" + salt + hex20},
		{"HMAC with an additional field", "sha256" + salt + hex32 + "$"},
		{"HMAC without a sum", "sha256$aBcD1234eFgH5678"},
		{"HMAC with a sum that is not hexadecimal", "sha1" + salt + hex20[:38] + "xy"},

		{"PBKDF2 with too many iterations", "pbkdf2:sha256:2000001" + salt + hex32},
		{"PBKDF2 with no iterations", "pbkdf2:sha256:0" + salt + hex32},
		{"PBKDF2 with negative iterations", "pbkdf2:sha256:-1" + salt + hex32},
		{"PBKDF2 with a leading zero", "pbkdf2:sha256:01000" + salt + hex32},
		{"PBKDF2 with iterations that are not a number", "pbkdf2:sha256:many" + salt + hex32},
		{"PBKDF2 without iterations", "pbkdf2:sha256" + salt + hex32},
		{"PBKDF2 with MD5", "pbkdf2:md5:1000" + salt + hex32[:32]},
		{"PBKDF2 with a shorter key", "pbkdf2:sha256:1000" + salt + hex20},
		{"PBKDF2 with a longer key", "pbkdf2:sha1:1000" + salt + hex32},
		{"PBKDF2 with a key that is not hexadecimal", "pbkdf2:sha256:1000" + salt + hex32 + "xy"},
		{"PBKDF2 with a salt of 65 bytes", "pbkdf2:sha256:1000$" + strings.Repeat("s", 65) + "$" + hex32},
		{"PBKDF2 without a salt", "pbkdf2:sha256:1000$$" + hex32},
		{"PBKDF2 with an additional field", "pbkdf2:sha256:1000" + salt + hex32 + "$"},
		{"PBKDF2 without a key", "pbkdf2:sha256:1000$aBcD1234eFgH5678"},

		{"Django with too many iterations", "pbkdf2_sha256$2000001$aBcD1234eFgH5678" + django},
		{"Django with a shorter key", "pbkdf2_sha256$1000$aBcD1234eFgH5678" + django[:41]},
		{"Django without padding", "pbkdf2_sha256$1000$aBcD1234eFgH5678" + django[:44]},
		{"Django with a character after the key", "pbkdf2_sha256$1000$aBcD1234eFgH5678" + django + "x"},
		{"Django with an additional field", "pbkdf2_sha256$1000$aBcD1234eFgH5678" + django + "$"},
		{"Django without its prefix", "1000$aBcD1234eFgH5678" + django},
		{"Django without a key", "pbkdf2_sha256$1000$aBcD1234eFgH5678"},

		{"bcrypt that needs minutes", "$2b$15$" + bcrypt},
		{"bcrypt below its least cost", "$2b$03$" + bcrypt},
		{"bcrypt with a cost that is not a number", "$2b$xx$" + bcrypt},
		{"bcrypt 2x, which had a bug", "$2x$05$" + bcrypt},
		{"bcrypt, one byte shorter", "$2b$05$" + bcrypt[1:]},
		{"bcrypt, one byte longer", "$2b$05$" + bcrypt + "."},
		{"bcrypt without its second dollar sign", "$2b.05$" + bcrypt},
		{"bcrypt without its third dollar sign", "$2b$05." + bcrypt},
		{"bcrypt with a salt outside its alphabet", "$2b$05$!" + bcrypt[1:]},
		{"bcrypt with a key outside its alphabet", "$2b$05$" + bcrypt[:52] + "="},
		{"bcrypt's prefix", "$2"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if Known(row.hash) {
				t.Errorf("%q is accepted", row.hash)
			}
		})
	}
}

func TestParseAcceptsHashesAtTheCaps(t *testing.T) {
	t.Parallel()
	const salt, bcrypt = "$aBcD1234eFgH5678$", "abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo."
	hex32, hex64 := strings.Repeat("ab", 32), strings.Repeat("ab", 64)
	longest := "pbkdf2_sha256$1000$aBcD1234eFgH5678$Y4lYkhydJc8QouyoCrenGSLT749fOKuITYRJIxqlmNo="
	for _, row := range []struct{ name, hash string }{
		{"the longest text", longest + strings.Repeat("\n", maxHashLength-len(longest))},
		{"the shortest salt", "scrypt:1024:8:1$s$" + hex64},
		{"the longest salt", "scrypt:1024:8:1$" + strings.Repeat("s", 64) + "$" + hex64},
		{"the shortest key", "scrypt:1024:8:1" + salt + hex32[:32]},
		{"the least N of scrypt", "scrypt:2:8:1" + salt + hex64},
		{"the most memory of scrypt", "scrypt:131072:8:1" + salt + hex64},
		{"the largest r of scrypt", "scrypt:2:64:1" + salt + hex64},
		{"the largest p of scrypt", "scrypt:1024:8:16" + salt + hex64},
		{"the most work of scrypt", "scrypt:65536:8:10" + salt + hex64},
		{"the most iterations of PBKDF2", "pbkdf2:sha256:2000000" + salt + hex32},
		{"one iteration of PBKDF2", "pbkdf2:sha256:1" + salt + hex32},
		{"the least cost of bcrypt", "$2b$04$" + bcrypt},
		{"the highest cost of bcrypt", "$2b$14$" + bcrypt},
	} {
		if !Known(row.hash) {
			t.Errorf("%s: %q is refused", row.name, row.hash)
		}
	}
}

// A text in the column of hashes is refused, or it can be checked without a panic
// and does not match a random password.
func FuzzParse(f *testing.F) {
	for _, foreign := range foreignHashes(f) {
		f.Add(foreign.hash)
	}
	for _, seed := range []string{"", "$", "$2", "$2b$", "scrypt:", "scrypt:2:1:1$a$", "pbkdf2:", "pbkdf2:sha256:1$a$", "pbkdf2_sha256$1$a$", "$scrypt$ln=1,r=1,p=1$$", "$argon2id$v=19$m=8,t=1,p=1$$"} {
		f.Add(seed)
	}
	// These are within the caps but too slow to fuzz.
	slow := regexp.MustCompile(`[0-9]{4}|ln=[0-9]{2}|[$]1[0-9][$]`)
	f.Fuzz(func(t *testing.T, s string) {
		if matches := parse(s); matches != nil && !slow.MatchString(s) && matches(nil, rand.Text()) {
			t.Errorf("%q matches a random password", s)
		}
	})
}

func TestParseArgon2(t *testing.T) {
	t.Parallel()
	text := func(m, t, p int64, salt, key int) string {
		return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", m, t, p,
			base64.RawStdEncoding.EncodeToString(make([]byte, salt)), base64.RawStdEncoding.EncodeToString(make([]byte, key)))
	}
	const salt, key = "AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, row := range []struct {
		name string
		text string
		ok   bool
	}{
		{"the default", text(19456, 2, 1, 16, 32), true},
		{"the default, spelled out", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key, true},
		{"Django's default", text(102400, 2, 8, 22, 32), true},

		{"the most memory", text(131072, 2, 1, 16, 32), true},
		{"one KiB more", text(131073, 2, 1, 16, 32), false},
		{"memory that is 2^32", text(1<<32, 2, 1, 16, 32), false},
		{"memory that wraps around to the default", text(1<<32+19456, 2, 1, 16, 32), false},
		{"the least memory for one thread", text(8, 2, 1, 16, 32), true},
		{"less memory than one thread needs", text(7, 2, 1, 16, 32), false},
		{"the least memory for four threads", text(32, 2, 4, 16, 32), true},
		{"less memory than four threads need", text(31, 2, 4, 16, 32), false},
		{"no memory", text(0, 2, 1, 16, 32), false},
		{"the most passes", text(19456, 10, 1, 16, 32), true},
		{"one pass more", text(19456, 11, 1, 16, 32), false},
		{"passes that wrap around to two", text(19456, 1<<32+2, 1, 16, 32), false},
		{"one pass", text(19456, 1, 1, 16, 32), true},
		{"no pass", text(19456, 0, 1, 16, 32), false},
		{"the most threads", text(19456, 2, 16, 16, 32), true},
		{"one thread more", text(19456, 2, 17, 16, 32), false},
		{"threads that wrap around to one", text(19456, 2, 257, 16, 32), false},
		{"no thread", text(19456, 2, 0, 16, 32), false},
		{"the longest salt", text(19456, 2, 1, 64, 32), true},
		{"a salt that is one byte longer", text(19456, 2, 1, 65, 32), false},
		{"the shortest salt", text(19456, 2, 1, 8, 32), true},
		{"a salt that is one byte shorter", text(19456, 2, 1, 7, 32), false},
		{"no salt", text(19456, 2, 1, 0, 32), false},
		{"the longest key", text(19456, 2, 1, 16, 64), true},
		{"a key that is one byte longer", text(19456, 2, 1, 16, 65), false},
		{"the shortest key", text(19456, 2, 1, 16, 16), true},
		{"a key that is one byte shorter", text(19456, 2, 1, 16, 15), false},
		{"no key", text(19456, 2, 1, 16, 0), false},

		{"empty", "", false},
		{"argon2d", "$argon2d$v=19$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"a capital letter in the variant", "$Argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"an older version", "$argon2id$v=16$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"no version", "$argon2id$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"the parameters in another order", "$argon2id$v=19$t=2,m=19456,p=1$" + salt + "$" + key, false},
		{"an additional parameter", "$argon2id$v=19$m=19456,t=2,p=1,data=AA$" + salt + "$" + key, false},
		{"a missing parameter", "$argon2id$v=19$m=19456,t=2$" + salt + "$" + key, false},
		{"a parameter without its name", "$argon2id$v=19$m=19456,2,p=1$" + salt + "$" + key, false},
		{"a leading zero", "$argon2id$v=19$m=019456,t=2,p=1$" + salt + "$" + key, false},
		{"a plus sign", "$argon2id$v=19$m=19456,t=+2,p=1$" + salt + "$" + key, false},
		{"a minus sign", "$argon2id$v=19$m=-19456,t=2,p=1$" + salt + "$" + key, false},
		{"an underscore", "$argon2id$v=19$m=19_456,t=2,p=1$" + salt + "$" + key, false},
		{"hexadecimal", "$argon2id$v=19$m=0x4c00,t=2,p=1$" + salt + "$" + key, false},
		{"a space before a number", "$argon2id$v=19$m= 19456,t=2,p=1$" + salt + "$" + key, false},
		{"a space at the start", " $argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key, false},
		{"a line break at the end", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key + "\n", false},
		{"a line break in the salt", "$argon2id$v=19$m=19456,t=2,p=1$" + salt[:4] + "\n" + salt[4:] + "$" + key, false},
		{"a line break in the key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key[:4] + "\r\n" + key[4:], false},
		{"trailing bits in the salt", "$argon2id$v=19$m=19456,t=2,p=1$" + salt[:21] + "B$" + key, false},
		{"trailing bits in the key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key[:42] + "B", false},
		{"padding after the salt", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "==$" + key, false},
		{"padding after the key", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key + "=", false},
		{"the URL alphabet", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$_" + key[1:], false},
		{"the other character of the standard alphabet", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$/" + key[1:], true},
		{"a missing field", "$argon2id$v=19$m=19456,t=2,p=1$" + salt, false},
		{"an empty salt and no key", "$argon2id$v=19$m=19456,t=2,p=1$", false},
		{"an additional field", "$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + key + "$", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p, ok := parseArgon2(row.text)
			if ok != row.ok {
				t.Fatalf("parseArgon2(%q) = %+v, %t", row.text, p, ok)
			}
			if ok && p.String() != row.text {
				t.Errorf("%q is written as %q", row.text, p)
			}
		})
	}
}

func FuzzParseArgon2(f *testing.F) {
	for _, foreign := range foreignHashes(f) {
		f.Add(foreign.hash)
	}
	f.Add("")
	f.Add(argon2Hash{argon2id, Default(), make([]byte, saltSize), make([]byte, keySize)}.String())
	f.Add(argon2Hash{argon2id, Cost{maxMemory, maxPasses, maxThreads}, make([]byte, 64), make([]byte, 64)}.String())
	f.Add(argon2Hash{argon2id, Cost{maxMemory + 1, maxPasses + 1, maxThreads + 1}, make([]byte, 65), make([]byte, 65)}.String())
	f.Add("$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=8,t=01,p=+1$AAAAAAAAAAB$AAAAAAAAAAAAAAAAAAAAAB")
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := parseArgon2(s)
		if !ok {
			return
		}
		if a.String() != s {
			t.Errorf("%q is written as %q", s, a)
		}
		if a.Memory > maxMemory || a.Passes > maxPasses || a.Threads > maxThreads || len(a.salt) > 64 || len(a.key) > 64 {
			t.Errorf("%q is above the caps", s)
		}
		// argon2 would panic, or an attacker could guess the key.
		if a.Memory < 8 || a.Passes < 1 || a.Threads < 1 || len(a.salt) < 8 || len(a.key) < 16 {
			t.Errorf("%q is below the minimum", s)
		}
	})
}
