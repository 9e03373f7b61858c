// Package strictjson reads JSON that strangers send, and accepts only a text that
// every parser reads in the same way. If two programs read a text differently, one of
// them checks what the other one does not use.
//
// The text must be one object (RFC 8259), in valid UTF-8 (section 8.1), in which no
// name appears twice (section 4). [Unmarshal] also refuses names that the target does
// not have, letter for letter, null for a value, and strings with a NUL or half of a
// surrogate pair (section 8.2). This is stricter than I-JSON (RFC 7493), and much
// stricter than encoding/json: there the last duplicate wins, names match in any case,
// and invalid UTF-8 and half pairs become U+FFFD.
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
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxMembers is the largest number of members that an object can have. It bounds the
// search for duplicate names, which compares each name with all names before it.
const MaxMembers = 64

// A Kind says what is wrong with a text.
type Kind int

const (
	Malformed Kind = iota + 1 // the text is not one object by the package's rules
	Duplicate                 // a name appears twice
	Unknown                   // the target does not have a name
	WrongType                 // a value does not have the type of its field
)

// An Error says why a text was refused. It contains neither another error's text
// nor a value, so a client may see it.
type Error struct {
	Kind   Kind
	Member string // the name of the wrong member, at full length; empty if the text as a whole is wrong
	Text   string // the predicate of a sentence about the member or the text: "appears twice"
}

func (e *Error) Error() string {
	if e.Kind == Malformed && e.Member == "" { // another kind concerns the member with this name
		return "the text " + e.Text
	}
	return fmt.Sprintf("the member %.64q %s", e.Member, e.Text)
}

// Unmarshal reads the object in data into v, a pointer to a struct. Each field
// has a json tag that is only the name of its member. Its type is a kind of string,
// bool or int64, a pointer to one, or json.RawMessage. Unmarshal panics if it meets
// another type: encoding/json would read the members of its values by its own rules. The fields
// of an embedded struct are fields of the struct, which must not have two with one tag.
//
// The field of a missing member stays as it is. null is refused, unless the field
// is a json.RawMessage: that accepts any value and keeps its text.
//
// If the text is refused, the error is an *Error, and v may be set in part.
func Unmarshal(data []byte, v any) error {
	t := reflect.TypeOf(v).Elem()
	err := Members(data, func(name string, value []byte) error {
		field := fieldOf(t, name)
		switch field {
		case nil:
			return &Error{Unknown, name, "is not known"}
		case reflect.TypeFor[json.RawMessage]():
			return nil
		}
		want := wanted(field)
		switch {
		case string(value) == "null":
			return &Error{WrongType, name, want}
		case value[0] == '"' && hasBadEscape(value):
			return &Error{Malformed, name, "contains an escape that is not a character"}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, v)
	if mistyped, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		name := mistyped.Field[strings.LastIndexByte(mistyped.Field, '.')+1:] // without the name of an embedded struct
		return &Error{WrongType, name, wanted(mistyped.Type)}
	}
	return err
}

// fieldOf returns the type of the field of struct t whose json tag is name, or nil.
// A field without a tag has no name, not the empty one.
func fieldOf(t reflect.Type, name string) reflect.Type {
	for i := range t.NumField() { // unlike t.Fields(), this allocates nothing
		f := t.Field(i)
		if f.Anonymous {
			if field := fieldOf(f.Type, name); field != nil {
				return field
			}
		}
		if tag, ok := f.Tag.Lookup("json"); ok && tag == name {
			return f.Type
		}
	}
	return nil
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
	case reflect.Int64:
		return "must be an integer"
	}
	panic("strictjson: unsupported field type " + t.String())
}

// hasBadEscape reports whether a valid JSON string escapes a NUL or half of a
// surrogate pair. encoding/json would turn each half into U+FFFD, and so many
// passwords into one.
func hasBadEscape(value []byte) bool {
	for {
		i := bytes.IndexByte(value, '\\')
		if i < 0 {
			return false
		}
		value = value[i:]
		switch r := codeUnit(value); {
		case r < 0:
			value = value[2:] // \n and the like
		case r == 0, utf16.IsSurrogate(r) && utf16.DecodeRune(r, codeUnit(value[6:])) == utf8.RuneError:
			return true
		case utf16.IsSurrogate(r):
			value = value[12:]
		default:
			value = value[6:]
		}
	}
}

// codeUnit returns XXXX if the rest of a valid JSON string begins with \uXXXX, and
// otherwise -1.
func codeUnit(rest []byte) rune {
	if !bytes.HasPrefix(rest, []byte(`\u`)) {
		return -1
	}
	n, _ := strconv.ParseUint(string(rest[2:6]), 16, 16)
	return rune(n)
}

// Members calls f with the name and the JSON text of each member of the object
// in data, in order. Escapes in a name are decoded. A value is a part of data, so
// strings in it may hold the escapes that Unmarshal refuses.
//
// If the text is refused, the error is an *Error. Members may have called f before
// it finds a duplicate, but not for a text that is not valid JSON in valid UTF-8.
// An error of f ends the walk and is returned as it is.
func Members(data []byte, f func(name string, value []byte) error) error {
	switch {
	case len(data) == 0:
		return &Error{Malformed, "", "is empty"}
	case !utf8.Valid(data):
		return &Error{Malformed, "", "is not valid UTF-8"}
	case !json.Valid(data):
		return &Error{Malformed, "", "is not valid JSON"}
	}
	// The syntax is valid, so only the ends of names and values have to be found.
	const space = " \t\r\n"
	rest := bytes.TrimLeft(data, space)
	if rest[0] != '{' {
		return &Error{Malformed, "", "must be one JSON object"}
	}
	rest = bytes.TrimLeft(rest[1:], space)
	var seen [MaxMembers]string
	for n := 0; rest[0] != '}'; n++ {
		end := valueEnd(rest)
		name := unquoteName(rest[:end])
		switch {
		case n == MaxMembers:
			return &Error{Malformed, "", "has too many members"}
		case slices.Contains(seen[:n], name):
			return &Error{Duplicate, name, "appears twice"}
		}
		seen[n] = name
		rest = bytes.TrimLeft(rest[end:], space+":")
		end = valueEnd(rest)
		if err := f(name, rest[:end]); err != nil {
			return err
		}
		rest = bytes.TrimLeft(rest[end:], space+",")
	}
	return nil
}

// unquoteName decodes a valid JSON string.
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
			if depth--; depth < 0 {
				return i
			}
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
}

// Unquote returns the text of a JSON string that has no escapes, and "" for any other value.
func Unquote(value []byte) string {
	if len(value) < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
		return ""
	}
	return string(value[1 : len(value)-1])
}

// Strings returns the texts of a JSON string that has no escapes, or of an array of strings,
// and none for any other value.
func Strings(value []byte) (texts []string) {
	if text := Unquote(value); text != "" {
		return []string{text}
	}
	if json.Unmarshal(value, &texts) != nil {
		return nil
	}
	return texts
}
