// Package appendjson appends JSON values to a slice. It is faster than encoding/json for long
// lists, because it needs neither reflection nor a copy.
package appendjson

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// String appends s as a JSON string. It is slower if s needs escapes or is not ASCII.
func String(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string cannot fail
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// Time appends a time in Unix seconds as RFC 3339 in UTC, or null for 0.
func Time(b []byte, unix int64) []byte {
	if unix == 0 {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = time.Unix(unix, 0).UTC().AppendFormat(b, time.RFC3339)
	return append(b, '"')
}
