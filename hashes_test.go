package main

import (
	"crypto/rand"
	"regexp"
	"strings"
	"testing"
)

// Hashes that other programs made: each in its form, of the password beside it.
var foreignHashes = []struct{ claim, hash, password string }{
	// hashlib.scrypt and hashlib.pbkdf2_hmac of Python, in the forms that Werkzeug 3 and Django 5 write.
	{"Werkzeug scrypt, its default", "scrypt:32768:8:1$aBcD1234eFgH5678$ef4fa3292a5d93ba276c203a0cd734dd39ef450f57b1905d5a0feccadccbc2a3ba2175453b82a00081ac29199e8cec4fdf85f8debcc6a80fc31ba515c7dce309", goodPassword},
	{"Werkzeug PBKDF2 with sha1", "pbkdf2:sha1:1000$aBcD1234eFgH5678$b025202cf121d2f7ecda7d37b916f16590291194", goodPassword},
	{"Werkzeug PBKDF2 with sha256", "pbkdf2:sha256:600$aBcD1234eFgH5678$ca99df6a89ea15eb5d048dba162a3a8b3248e55ea92bf4dc3a9a10cf9c11e5da", goodPassword},
	{"Werkzeug PBKDF2 with sha512", "pbkdf2:sha512:1000$aBcD1234eFgH5678$6383e196032c78191bf246761da309fab2e81e58616afe399b15383569c46219e9db5eeec93fc5f963a403381ee91725702fa807d071b6c68b3265b604aa0920", goodPassword},
	{"Django's PBKDF2", "pbkdf2_sha256$1000$aBcD1234eFgH5678$Y4lYkhydJc8QouyoCrenGSLT749fOKuITYRJIxqlmNo=", goodPassword},
	{"PHC scrypt", "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk", goodPassword},
	// crypt(3) of glibc.
	{"bcrypt 2a", "$2a$05$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.", goodPassword},
	{"bcrypt 2b", "$2b$05$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.", goodPassword},
	{"bcrypt 2y", "$2y$05$abcdefghijklmnopqrstuuD3mHdCr44zlIZ.VZCaYRpfQhXMYnEo.", goodPassword},
	// The reference implementation's own vectors.
	{"argon2i", "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8", "password"},
	{"argon2id of another cost", "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4", "password"},
}

func TestForeignHashes(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	for _, test := range foreignHashes {
		if ok, err := h.verify(t.Context(), "", test.hash, test.password); !ok || err != nil {
			t.Errorf("%s: %v, %v", test.claim, ok, err)
		}
		for _, wrong := range []string{"", test.password + "x", test.password[1:], strings.ToUpper(test.password)} {
			if ok, err := h.verify(t.Context(), "", test.hash, wrong); ok || err != nil {
				t.Errorf("%s: %q is right", test.claim, wrong)
			}
		}
		if !h.stale(test.hash) {
			t.Errorf("%s: stays as it is", test.claim)
		}
	}
}

// A login replaces each with a hash of ours, and the next login still works.
func TestForeignHashesAreReplaced(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("ann")
	for _, test := range foreignHashes {
		if err := s.store.write(t.Context(), statement{query: `UPDATE user SET password_hash = @hash`, args: args{"hash": test.hash}}); err != nil {
			t.Fatal(err)
		}
		body := `{"username":"ann","password":"` + test.password + `"}`
		s.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(t, 401, "invalid_credentials")
		s.do("", "POST", "/api/login", body).want(t, 200, "")
		if c, _ := s.store.credentials(1); s.hasher.stale(c.hash) {
			t.Errorf("%s: still %s", test.claim, c.hash)
		}
		s.do("", "POST", "/api/login", body).want(t, 200, "")
	}
}

// bcrypt looks at 72 bytes; whatever follows must not be accepted unseen.
func TestBcryptRefusesWhatItWouldIgnore(t *testing.T) {
	t.Parallel()
	// crypt(3) of 72 times "a".
	const hash = "$2b$05$abcdefghijklmnopqrstuuGUnCqbfgs3htOkLrFduUjAyLBw1Rq/u"
	h := newHasher(cheap)
	if ok, err := h.verify(t.Context(), "", hash, strings.Repeat("a", 72)); !ok || err != nil {
		t.Errorf("72 bytes: %v, %v", ok, err)
	}
	if ok, _ := h.verify(t.Context(), "", hash, strings.Repeat("a", 73)); ok {
		t.Error("a 73rd byte is ignored")
	}
}

// Whoever writes a hash must not choose what verifying it costs, nor crash the
// verifier.
func TestHashesRefused(t *testing.T) {
	t.Parallel()
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
	for _, v := range foreignHashes {
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
