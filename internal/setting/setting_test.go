package setting

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A token holds the names without escapes.
func TestANameIsWhatJSONHoldsWithoutEscapes(t *testing.T) {
	t.Parallel()
	for c := range 0x180 {
		name := string(rune(c))
		quoted, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		wanted := c > ' ' && c <= '~' && (string(quoted) == `"`+name+`"` || strings.Contains("<>&", name)) // Go escapes these three for HTML
		if err := Name(&got, name); (err == nil) != wanted || err == nil && got != name {
			t.Errorf("%q: %q, %v; want accepted: %t", name, got, err, wanted)
		}
	}
}

func TestWhichAddressesLinksCanHave(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"":                                 "",
		"https://id.example.com":           "https://id.example.com",
		"https://id.example.com/":          "https://id.example.com",
		"https://id.example.com:8443/a/b/": "https://id.example.com:8443/a/b",
		"http://127.0.0.1:5000":            "http://127.0.0.1:5000",
		"http://[::1]:5000":                "http://[::1]:5000",
		"http://localhost":                 "http://localhost",
		"https://id.example.com?x=y":       "refused",
		"https://id.example.com/?":         "refused",
		"https://id.example.com/#x":        "refused",
		"https://ann:x@id.example.com":     "refused",
		"https://id.example.com/ x":        "refused",
		"http://127.0.0.1.example.com":     "refused",
		"http://0.0.0.0:5000":              "refused",
		"https://[fe80::1%25eth0]":         "refused", // browsers do not know zones
		"javascript://id.example.com":      "refused",
	} {
		var got string
		if PublicURL(&got, value) != nil {
			got = "refused"
		}
		if got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
	for value, accepted := range map[string]bool{
		"": true, "https://app.example.com/reset#{code}": true, "https://app.example.com/?code={code}": true, "http://localhost:3000/#/{code}": true,
		"https://app.example.com": false, "https://{code}.example.com": false, "https://app.example.com/{CODE}": false, "/reset#{code}": false,
	} {
		var got string
		if err := PageURL(&got, value); (err == nil) != accepted || err == nil && got != value {
			t.Errorf("%q becomes %q, %v", value, got, err)
		}
	}
}

// The domain is what follows the last @, as a whole, in any case.
func TestWhichDomainsRegister(t *testing.T) {
	t.Parallel()
	var domains []string
	if err := EmailDomains(&domains, "Example.com, .example.org"); err != nil {
		t.Fatal(err)
	}
	for email, accepted := range map[string]bool{
		"ann@example.com":          true,
		"ann@EXAMPLE.COM":          true,
		"ann@a.example.org":        true,
		"ann@a.b.example.org":      true,
		"ann@example.org":          false,
		"ann@a.example.com":        false,
		"ann@notexample.com":       false,
		"ann@notexample.org":       false,
		"ann@example.com.evil.io":  false,
		"ann@example.org.evil.io":  false,
		"example.com@evil.io":      false,
		"ann@example.com@evil.io":  false,
		"ann@evil.io@example.com":  true, // which is not an address
		"ann@.example.org.evil.io": false,
		"ann":                      false,
		"":                         false,
	} {
		if why := CheckEmailDomain(email, domains); (why == "") != accepted {
			t.Errorf("%q: %q", email, why)
		}
		if why := CheckEmailDomain(email, nil); why != "" {
			t.Errorf("%q without EMAIL_DOMAINS: %q", email, why)
		}
	}
}

// parsed returns what a function makes of a text, or "refused".
func parsed[T any](set func(to *T, v string) error, v string) string {
	var got T
	if err := set(&got, v); err != nil {
		return "refused"
	}
	return fmt.Sprint(got)
}

func TestWhatEachKindAccepts(t *testing.T) {
	t.Parallel()
	ttl := func(to *time.Duration, v string) error { return TTL(to, v, time.Minute, time.Hour) }
	number := func(to *int, v string) error { return Number(to, v, 8, 64) }
	word := func(to *string, v string) error { return Word(to, v, "", "text", "json") }
	for _, c := range []struct{ got, want string }{
		{parsed(HostPort, ":443"), ":443"},
		{parsed(HostPort, "[::1]:0"), "[::1]:0"},
		{parsed(HostPort, "localhost"), "refused"},
		{parsed(HostPort, "localhost:http"), "refused"},
		{parsed(HostPort, "localhost:00"), "refused"},
		{parsed(HostPort, "localhost:65536"), "refused"},
		{parsed(ttl, "90"), "1m30s"},
		{parsed(ttl, "1h"), "1h0m0s"},
		{parsed(ttl, "59s"), "refused"},
		{parsed(ttl, "61m"), "refused"},
		{parsed(ttl, ""), "refused"},
		{parsed(TTLOrZero, "0"), "0s"},
		{parsed(TTLOrZero, "0s"), "refused"},
		{parsed(TTLOrZero, "87601h"), "refused"},
		{parsed(number, "8"), "8"},
		{parsed(number, "64"), "64"},
		{parsed(number, "7"), "refused"},
		{parsed(number, "65"), "refused"},
		{parsed(word, ""), ""},
		{parsed(word, "json"), "json"},
		{parsed(word, "JSON"), "refused"},
		{parsed(Level, "warn"), "WARN"},
		{parsed(Level, "WARN"), "refused"},
		{parsed(Names, " a, ,b "), "[a b]"},
		{parsed(Names, strings.Repeat("a,", MaxNames/2)+"a"), "refused"},
		{parsed(Networks, "10.1.2.3/8, ::1, ::ffff:10.0.0.1, ::ffff:10.0.0.0/104"), "[10.0.0.0/8 ::1/128 10.0.0.1/32 10.0.0.0/8]"},
		{parsed(Networks, "10.0.0"), "refused"},
		{parsed(Origins, "https://a.example.com, http://[::1]:3000"), "[https://a.example.com http://[::1]:3000]"},
		{parsed(Origins, "https://a.example.com/"), "refused"},
		{parsed(Origins, "https://a.example.com:443"), "refused"},
		{parsed(Origins, "https://A.example.com"), "refused"},
		{parsed(Origins, "https://*.example.com"), "refused"},
		{parsed(Origins, "https://ann@example.com"), "refused"},
		{parsed(Origins, "null"), "refused"},
		{parsed(Domains, "A.example.com, a.example.com, b.example.com"), "[a.example.com b.example.com]"},
		{parsed(Domains, "*.example.com"), "refused"},
		{parsed(Domains, ".example.com"), "refused"},
		{parsed(Domains, "localhost"), "refused"},
		{parsed(Domains, "127.0.0.1"), "refused"},
		{parsed(HTTPS, "https://ca.example.com/dir"), "https://ca.example.com/dir"},
		{parsed(HTTPS, "http://ca.example.com/dir"), "refused"},
		{parsed(HTTPS, "https://ann@ca.example.com/dir"), "refused"},
		{parsed(File, ""), ""},
		{parsed(File, t.TempDir()), "refused"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func TestNoSecretIsRepeated(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"app.db":                             "app.db",
		"https://ann:secret@example.com/a?b": "https://example.com/a",
		"sqlite:///app.db?key=secret":        "sqlite:///app.db",
		"host=db password=secret":            "…",
		"postgres://ann:se/cret@db/app":      "postgres:…",
		"mailto:secret@example.com":          "mailto:…",
	} {
		if got := WithoutSecrets(value); got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
	var name string
	if err := File(&name, filepath.Join(t.TempDir(), "secret")); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error about a missing file: %v", err)
	}
}

func TestWhatIsAURL(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{
		"app.db": false, "/srv/app.db": false, `C:\app.db`: false, "./a:b": false,
		"sqlite:///app.db": true, "file:app.db": true, "://app.db": true, `"sqlite:///app.db`: true,
		"host=db password=secret": true, "//ann:secret@db": true,
	} {
		if got := isURL(value); got != want {
			t.Errorf("%q: %t", value, got)
		}
	}
}

func TestASecretComesFromTheVariableOrFromAFile(t *testing.T) {
	t.Parallel()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ value, file, want string }{
		{"", "", ", from "},
		{"s3cret", "", "s3cret, from KEY"},
		{"", file(ByteOrderMark + " s3cret \r\n\n"), " s3cret , from KEY_FILE"},
		{"s3cret", file("s3cret"), "KEY and KEY_FILE are both set; set only one"},
		{"", file(ByteOrderMark + "\n"), "KEY_FILE: the file is empty"},
		{"", "/none/s3cret", "KEY_FILE: must name a readable file: no such file or directory"},
	} {
		environment := map[string]string{"KEY": c.value, "KEY_FILE": c.file}
		secret, from, err := Secret(func(name string) string { return environment[name] }, "KEY")
		got := fmt.Sprintf("%s, from %s", secret, from)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("KEY=%q KEY_FILE=%q: %q, want %q", c.value, c.file, got, c.want)
		}
	}
}

func TestASQLitePathBecomesAbsolute(t *testing.T) {
	t.Parallel()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		"app.db":               here + "/app.db",
		"sqlite:///app.db":     here + "/app.db",
		"sqlite:////var/a.db":  "/var/a.db",
		"./file:app.db":        here + "/file:app.db",
		"file:app.db":          "refused",
		"sqlite://app.db":      "refused",
		"sqlite:///a.db?x=y":   "refused",
		"sqlite:///:memory:":   "refused",
		"":                     "refused",
		"mysql://localhost/db": "refused",
	} {
		got := "refused"
		if err := SQLitePath(&got, value); err != nil {
			got = "refused"
		}
		if got != want {
			t.Errorf("%q is %s, want %s", value, got, want)
		}
	}
}

func TestADurationInDays(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{"1d": 24 * time.Hour, "30d": 720 * time.Hour, "12h": 12 * time.Hour, "31d": 0, "-1d": 0, "d": 0, "0d": 0, "99999999999d": 0, "1.5d": 0} {
		var got time.Duration
		if err := DaysTTL(&got, value, time.Hour, 30*24*time.Hour); err != nil {
			got = 0
		}
		if got != want {
			t.Errorf("%s is %s, want %s", value, got, want)
		}
	}
}
