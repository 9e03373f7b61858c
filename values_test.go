package main

import (
	"encoding/json"
	"strings"
	"testing"
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
		if err := setName(&got, name); (err == nil) != wanted || err == nil && got != name {
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
		"javascript://id.example.com":      "refused",
	} {
		var got string
		if setPublicURL(&got, value) != nil {
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
		if err := setPageURL(&got, value); (err == nil) != accepted || err == nil && got != value {
			t.Errorf("%q becomes %q, %v", value, got, err)
		}
	}
}

// The domain is what follows the last @, as a whole, in any case.
func TestWhichDomainsRegister(t *testing.T) {
	t.Parallel()
	var domains []string
	if err := setEmailDomains(&domains, "Example.com, .example.org"); err != nil {
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
		if why := checkEmailDomain(email, domains); (why == "") != accepted {
			t.Errorf("%q: %q", email, why)
		}
		if why := checkEmailDomain(email, nil); why != "" {
			t.Errorf("%q without EMAIL_DOMAINS: %q", email, why)
		}
	}
}
