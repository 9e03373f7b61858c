// Package strictjson reads JSON that strangers send, and accepts only a text
// that every parser reads in the same way. If two programs read one text
// differently, one checks what the other does not use.
//
// It requires exactly one object (RFC 8259), in valid UTF-8 (section 8.1), in
// which no name appears twice (section 4). [Unmarshal] also refuses names that
// the target does not have, letter for letter, null for a value, and strings
// with a NUL or half of a surrogate pair (section 8.2). This is stricter than
// I-JSON (RFC 7493), and much stricter than encoding/json: there the last
// duplicate wins, names match in any case, and invalid UTF-8 and half pairs
// become U+FFFD.
//
// The caller bounds the length of a text. The package bounds the number of its
// members, [MaxMembers], and encoding/json bounds its nesting, to 10,000.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxMembers is the largest number of members that an object can have. It
// bounds the search for duplicate names, which compares each name with all
// names before it.
const MaxMembers = 64

// A Kind says what is wrong with a text.
type Kind int

const (
	// Malformed is a text that is not one object by the package's rules.
	Malformed Kind = iota + 1
	// Duplicate is a name that appears twice.
	Duplicate
	// Unknown is a name that the target does not have.
	Unknown
	// WrongType is a value whose type is not the one of its field.
	WrongType
)

// An Error says why a text was refused. It contains no text of another error
// and no value, so a client may see it.
type Error struct {
	Kind Kind
	// Member is the name of the member that is wrong, as long as it was sent.
	// It is empty if a malformed text is wrong as a whole.
	Member string
	// Text says what is wrong, as the predicate of a sentence about the member
	// or the text: "appears twice".
	Text string
}

func (e *Error) Error() string {
	if e.Kind == Malformed && e.Member == "" {
		return "the text " + e.Text
	}
	return fmt.Sprintf("the member %.64q %s", e.Member, e.Text)
}

// Unmarshal reads the object in data into v, a pointer to a struct. Each field
// has a json tag that is the name of its member and nothing more. Its type is a
// kind of string or bool, a pointer to one, or json.RawMessage. Other types have
// members that encoding/json would read by its own rules, so Unmarshal panics if
// it meets one.
//
// A member can be left out, and its field then stays as it is. It cannot be
// null, unless its field is a json.RawMessage: that accepts any value and keeps
// its text.
//
// If the text is refused, the error is an *Error, and v may be set in part.
func Unmarshal(data []byte, v any) error {
	t := reflect.TypeOf(v).Elem()
	err := Members(data, func(name string, value []byte) error {
		field, ok := fieldOf(t, name)
		if !ok {
			return &Error{Unknown, name, "is not known"}
		}
		if field == reflect.TypeFor[json.RawMessage]() {
			return nil
		}
		want := wanted(field)
		if string(value) == "null" {
			return &Error{WrongType, name, want}
		}
		if value[0] == '"' && hasBadEscape(value) {
			return &Error{Malformed, name, "contains an escape that is not a character"}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, v)
	if mistyped, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return &Error{WrongType, mistyped.Field, wanted(mistyped.Type)}
	}
	return err
}

// fieldOf returns the type of the field of struct t whose json tag is name. A
// field without a tag has no name, not the empty one.
func fieldOf(t reflect.Type, name string) (reflect.Type, bool) {
	for i := range t.NumField() { // unlike t.Fields(), this allocates nothing
		f := t.Field(i)
		if tag, ok := f.Tag.Lookup("json"); ok && tag == name {
			return f.Type, true
		}
	}
	return nil, false
}

// wanted says what a value for a field of type t must be.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.String:
		return "must be a string"
	case reflect.Bool:
		return "must be true or false"
	}
	panic("strictjson: unsupported field type " + t.String())
}

// hasBadEscape reports whether a valid JSON string escapes a NUL or half of a
// surrogate pair. encoding/json makes U+FFFD of the half, so that many
// passwords become one.
func hasBadEscape(value []byte) bool {
	for i := 0; i < len(value); i++ {
		if value[i] != '\\' {
			continue
		}
		if i++; value[i] != 'u' {
			continue
		}
		r := hexRune(value[i+1:])
		i += 4
		if utf16.IsSurrogate(r) {
			if !bytes.HasPrefix(value[i+1:], []byte(`\u`)) || utf16.DecodeRune(r, hexRune(value[i+3:])) == utf8.RuneError {
				return true
			}
			i += 6
		}
		if r == 0 {
			return true
		}
	}
	return false
}

// hexRune returns the code unit that the four hexadecimal digits of an escape name.
func hexRune(digits []byte) rune {
	n, _ := strconv.ParseUint(string(digits[:4]), 16, 16) // valid JSON has four
	return rune(n)
}

// Members calls f with the name and the JSON text of each member of the object
// in data, in order. A name has its escapes decoded; a value is a part of data,
// as it is written. Strings in it may hold the escapes that Unmarshal refuses.
//
// If the text is refused, the error is an *Error. An error of f ends the walk
// and is returned as it is. f may be called before a duplicate is found, but
// never for a text that is not valid JSON in valid UTF-8.
func Members(data []byte, f func(name string, value []byte) error) error {
	if len(data) == 0 {
		return &Error{Malformed, "", "is empty"}
	}
	if !utf8.Valid(data) {
		return &Error{Malformed, "", "is not valid UTF-8"}
	}
	if !json.Valid(data) {
		return &Error{Malformed, "", "is not valid JSON"}
	}
	// From here on the syntax is known to be valid; only the ends of names and
	// values have to be found.
	rest := bytes.TrimLeft(data, " \t\r\n")
	if rest[0] != '{' {
		return &Error{Malformed, "", "must be one JSON object"}
	}
	var seen [MaxMembers]string
	for n := 0; ; n++ {
		rest = bytes.TrimLeft(rest[1:], " \t\r\n") // after { or ,
		if rest[0] == '}' {
			return nil
		}
		end := valueEnd(rest)
		name := unquoteName(rest[:end])
		if n == MaxMembers {
			return &Error{Malformed, "", "has too many members"}
		}
		for _, s := range seen[:n] {
			if s == name {
				return &Error{Duplicate, name, "appears twice"}
			}
		}
		seen[n] = name
		rest = bytes.TrimLeft(rest[end:], " \t\r\n")
		rest = bytes.TrimLeft(rest[1:], " \t\r\n") // after :
		end = valueEnd(rest)
		if err := f(name, rest[:end]); err != nil {
			return err
		}
		rest = bytes.TrimLeft(rest[end:], " \t\r\n")
		if rest[0] == '}' {
			return nil
		}
	}
}

// unquoteName returns the string that a valid JSON string stands for.
func unquoteName(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var name string
	json.Unmarshal(quoted, &name) // a valid string of a valid text
	return name
}

// valueEnd returns the length of the name or value that data begins with. In
// valid JSON a delimiter follows each of them.
func valueEnd(data []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch data[i] {
		case '"':
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
}
