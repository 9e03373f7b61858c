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

// A foreignHash is one that another program made.
type foreignHash struct{ claim, password, hash string }

// foreignHashes reads testdata/foreign.tsv.
func foreignHashes(t testing.TB) (list []foreignHash) {
	t.Helper()
	data, err := os.ReadFile("testdata/foreign.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(strings.TrimSpace(line), "\t"); len(fields) == 3 {
			list = append(list, foreignHash{fields[0], fields[1], fields[2]})
		}
	}
	if len(list) < 11 {
		t.Fatalf("testdata/foreign.tsv has only %d hashes", len(list))
	}
	return list
}

func TestForeignHashes(t *testing.T) {
	t.Parallel()
	h := New(cheap)
	for _, test := range foreignHashes(t) {
		if ok, err := h.Verify(t.Context(), "", test.hash, test.password); !ok || err != nil {
			t.Errorf("%s: %v, %v", test.claim, ok, err)
		}
		for _, wrong := range []string{"", test.password + "x", test.password[1:], strings.ToUpper(test.password)} {
			if ok, err := h.Verify(t.Context(), "", test.hash, wrong); ok || err != nil {
				t.Errorf("%s: %q is right", test.claim, wrong)
			}
		}
		if !h.Stale(test.hash) {
			t.Errorf("%s: stays as it is", test.claim)
		}
	}
}

// bcrypt looks at 72 bytes; whatever follows must not be accepted unseen.
func TestBcryptRefusesWhatItWouldIgnore(t *testing.T) {
	// crypt(3) of 72 times "a".
	const hash = "$2b$05$abcdefghijklmnopqrstuuGUnCqbfgs3htOkLrFduUjAyLBw1Rq/u"
	h := New(cheap)
	if ok, err := h.Verify(t.Context(), "", hash, strings.Repeat("a", 72)); !ok || err != nil {
		t.Errorf("72 bytes: %v, %v", ok, err)
	}
	if ok, _ := h.Verify(t.Context(), "", hash, strings.Repeat("a", 73)); ok {
		t.Error("a 73rd byte is ignored")
	}
}

// Whoever writes a hash must not choose what verifying it costs, nor crash the
// verifier.
func TestHashesRefused(t *testing.T) {
	salt, hex64 := "aBcD1234eFgH5678", strings.Repeat("ab", 64)
	for claim, hash := range map[string]string{
		"nothing":                               "",
		"plain text":                            "password",
		"MD5":                                   "5f4dcc3b5aa765d61d8327deb882cf99",
		"argon2d":                               "$argon2d$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
		"another version of argon2":             "$argon2id$v=16$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
		"scrypt, 256 MiB":                       "scrypt:262144:8:1$" + salt + "$" + hex64,
		"scrypt, N not a power of two":          "scrypt:32767:8:1$" + salt + "$" + hex64,
		"scrypt, N of 0":                        "scrypt:0:8:1$" + salt + "$" + hex64,
		"scrypt, r of 0":                        "scrypt:32768:0:1$" + salt + "$" + hex64,
		"scrypt, p of 0":                        "scrypt:32768:8:0$" + salt + "$" + hex64,
		"scrypt, p of 17":                       "scrypt:1024:8:17$" + salt + "$" + hex64,
		"scrypt, much in all":                   "scrypt:131072:8:16$" + salt + "$" + hex64,
		"scrypt, a negative N":                  "scrypt:-2:8:1$" + salt + "$" + hex64,
		"scrypt, another spelling of N":         "scrypt:032768:8:1$" + salt + "$" + hex64,
		"scrypt without a salt":                 "scrypt:1024:8:1$$" + hex64,
		"scrypt without a key":                  "scrypt:1024:8:1$" + salt + "$",
		"scrypt, a long key":                    "scrypt:1024:8:1$" + salt + "$" + hex64 + "ab",
		"scrypt, no hex":                        "scrypt:1024:8:1$" + salt + "$" + strings.Repeat("xy", 64),
		"scrypt, a field more":                  "scrypt:1024:8:1$" + salt + "$" + hex64 + "$",
		"PHC scrypt, 2^20":                      "$scrypt$ln=20,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk",
		"PHC scrypt, 2^64":                      "$scrypt$ln=64,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk",
		"PHC scrypt, another spelling":          "$scrypt$ln=+9,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk",
		"PHC scrypt, bad base64":                "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOW=",
		"PBKDF2, a long work":                   "pbkdf2:sha256:2000001$" + salt + "$" + hex64[:64],
		"PBKDF2, no work":                       "pbkdf2:sha256:0$" + salt + "$" + hex64[:64],
		"PBKDF2, no count":                      "pbkdf2:sha256$" + salt + "$" + hex64[:64],
		"PBKDF2 with MD5":                       "pbkdf2:md5:1000$" + salt + "$" + hex64[:32],
		"PBKDF2, a key of another hash":         "pbkdf2:sha256:1000$" + salt + "$" + hex64[:40],
		"Django, a long work":                   "pbkdf2_sha256$2000001$" + salt + "$Y4lYkhydJc8QouyoCrenGSLT749fOKuITYRJIxqlmNo=",
		"Django, a short key":                   "pbkdf2_sha256$1000$" + salt + "$Y4lYkhydJc8QouyoCrenGSLT749fOKuITYRJIxql",
		"Django, a field less":                  "pbkdf2_sha256$1000$" + salt,
		"bcrypt of a work of minutes":           "$2b$15$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.",
		"bcrypt of too little work":             "$2b$03$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.",
		"bcrypt 2x, which was a bug":            "$2x$05$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.",
		"bcrypt, cut short":                     "$2b$05$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo",
		"bcrypt without its second dollar sign": "$2b.05$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.",
		"bcrypt without its third dollar sign":  "$2b$05.abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.",
		"a very long text":                      "scrypt:1024:8:1$" + strings.Repeat("x", maxHashLength) + "$" + hex64,
	} {
		if _, ok := parseHash(hash); ok {
			t.Errorf("%s is accepted: %s", claim, hash)
		}
	}
}

// FuzzParseHash holds that whatever stands in the column of hashes is refused or
// can be checked without a panic, and is not right for a
// password drawn at random.
func FuzzParseHash(f *testing.F) {
	for _, v := range foreignHashes(f) {
		f.Add(v.hash)
	}
	for _, v := range argon2Vectors {
		f.Add(v.hash)
	}
	for _, seed := range []string{"", "$", "$2", "$2b$", "scrypt:", "scrypt:2:1:1$a$", "pbkdf2:", "pbkdf2:sha256:1$a$", "pbkdf2_sha256$1$a$", "$scrypt$ln=1,r=1,p=1$$", "$argon2id$v=19$m=8,t=1,p=1$$"} {
		f.Add(seed)
	}
	// Within the caps, but fuzzing should not wait for it.
	costly := regexp.MustCompile(`[0-9]{4}|ln=[0-9]{2}|[$]1[0-9][$]`)
	f.Fuzz(func(t *testing.T, s string) {
		check, ok := parseHash(s)
		if ok && !costly.MatchString(s) && check(rand.Text()) {
			t.Errorf("%q is the hash of anything", s)
		}
	})
}

func TestParsePHC(t *testing.T) {
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
	f.Add(phc{argon2id, Default(), make([]byte, saltSize), make([]byte, keySize)}.String())
	f.Add(phc{argon2id, Cost{maxMemory, maxPasses, maxThreads}, make([]byte, 64), make([]byte, 64)}.String())
	f.Add(phc{argon2id, Cost{maxMemory + 1, maxPasses + 1, maxThreads + 1}, make([]byte, 65), make([]byte, 65)}.String())
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
		if p.Memory > maxMemory || p.Passes > maxPasses || p.Threads > maxThreads || len(p.salt) > 64 || len(p.key) > 64 {
			t.Errorf("%q is above the caps", s)
		}
		// What argon2 would panic at, or an attacker would find by trying.
		if p.Memory < 8 || p.Passes < 1 || p.Threads < 1 || len(p.salt) < 8 || len(p.key) < 16 {
			t.Errorf("%q is below the least", s)
		}
	})
}
