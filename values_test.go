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
