package cors

import (
	"fmt"
	"net/http"
	"testing"
)

func TestAllow(t *testing.T) {
	t.Parallel()
	const page, ask = "https://app.example.com", "Access-Control-Request-Method"
	for _, row := range []struct {
		name    string
		method  string
		headers map[string]string
		want    string
	}{
		{"no origin", "GET", nil, "map[Vary:[Origin]] false"},
		{"another origin", "OPTIONS", map[string]string{"Origin": page + ".evil.example", ask: "GET"}, "map[Vary:[Origin]] false"},
		{"another scheme", "GET", map[string]string{"Origin": "http://app.example.com"}, "map[Vary:[Origin]] false"},
		{"null", "GET", map[string]string{"Origin": "null"}, "map[Vary:[Origin]] false"},
		{"a request", "GET", map[string]string{"Origin": page}, "map[Access-Control-Allow-Origin:[" + page + "] Access-Control-Expose-Headers:[E] Vary:[Origin]] false"},
		{"OPTIONS", "OPTIONS", map[string]string{"Origin": page}, "map[Access-Control-Allow-Origin:[" + page + "] Access-Control-Expose-Headers:[E] Vary:[Origin]] false"},
		{"a preflight request", "OPTIONS", map[string]string{"Origin": page, ask: "PUT"}, "map[Access-Control-Allow-Headers:[A] Access-Control-Allow-Methods:[M] Access-Control-Allow-Origin:[" + page + "] Access-Control-Max-Age:[600] Vary:[Origin]] true"},
	} {
		r := &http.Request{Method: row.method, Header: make(http.Header)}
		for name, value := range row.headers {
			r.Header.Set(name, value)
		}
		header := make(http.Header)
		preflight := (&API{"M", "A", "E"}).Allow(header, r, []string{"http://localhost:3000", page})
		if got := fmt.Sprint(header, " ", preflight); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}
