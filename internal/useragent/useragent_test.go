package useragent

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	t.Parallel()
	for agent, want := range map[string]string{
		"Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0":                                                          "Firefox on Linux",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36 Edg/130.0.0.0":   "Edge on Windows",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/130.0 Mobile Safari/604.1": "Chrome on iOS",
		"Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile Safari/537.36":                    "Chrome on Android",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/605.1.15":           "Safari on macOS",
		"curl/8.5.0":            "curl",
		"Something/1 (Windows)": "an unknown program on Windows",
		"":                      "an unknown program",
	} {
		if got := Name(agent); got != want {
			t.Errorf("%q is %q, want %q", agent, got, want)
		}
	}
}

func TestOfBoundsTheText(t *testing.T) {
	t.Parallel()
	for agent, want := range map[string]string{
		"":                              "",
		"curl/8.5.0":                    "curl/8.5.0",
		"a\xffb":                        "a\uFFFDb",
		strings.Repeat("a", 300):        strings.Repeat("a", 256),
		strings.Repeat("a", 255) + "ää": strings.Repeat("a", 255),
	} {
		if got := Of(&http.Request{Header: http.Header{"User-Agent": {agent}}}); got != want {
			t.Errorf("%q: got %q, want %q", agent, got, want)
		}
	}
}

func ExampleName() {
	fmt.Println(Name("Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"))
	// Output: Firefox on Linux
}
