package appendjson

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func FuzzString(f *testing.F) {
	for _, seed := range []string{"", "ann", `a"b\c`, "a\nb\x00\x1f\x7f", "ä\u2028😀", "<script>&", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := String([]byte("x"), s)
		var got string
		if err := json.Unmarshal(b[1:], &got); err != nil || b[0] != 'x' || got != strings.ToValidUTF8(s, "\uFFFD") && got != string([]rune(s)) {
			t.Errorf("%q: got %s, %v", s, b, err)
		}
	})
}

func TestTime(t *testing.T) {
	t.Parallel()
	for unix, want := range map[int64]string{0: "null", 1: `"1970-01-01T00:00:01Z"`, -1: `"1969-12-31T23:59:59Z"`, 1777777777: `"2026-05-03T03:09:37Z"`} {
		if got := string(Time(nil, unix)); got != want {
			t.Errorf("%d: got %s, want %s", unix, got, want)
		}
		if unix != 0 {
			if text, _ := json.Marshal(time.Unix(unix, 0).UTC()); string(text) != want {
				t.Errorf("encoding/json writes %s", text)
			}
		}
	}
}

func Example() {
	b := append([]byte(nil), `{"name":`...)
	b = String(b, "Zoë")
	b = append(b, `,"at":`...)
	b = Time(b, 1777777777)
	fmt.Println(string(append(b, '}')))
	// Output: {"name":"Zoë","at":"2026-05-03T03:09:37Z"}
}
