package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

type role string

// A user has a field of each type that Unmarshal supports.
type user struct {
	Username string          `json:"username"`
	Email    *string         `json:"email"`
	Password *string         `json:"password"`
	Role     *role           `json:"role"`
	Disabled *bool           `json:"disabled"`
	Admin    bool            `json:"admin"`
	Uses     *int64          `json:"uses"`
	ID       json.RawMessage `json:"id"`
	Created  json.RawMessage `json:"created_at"`
	Updated  json.RawMessage `json:"updated_at"`
	Login    json.RawMessage `json:"last_login_at"`
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	no, admin := false, role("admin")
	for _, row := range []struct {
		name string
		text string
		want user
	}{
		{"an empty object", `{}`, user{}},
		{"an empty object between spaces", " \t\r\n{ \t\r\n} \t\r\n", user{}},
		{"one member", `{"username":"ann"}`, user{Username: "ann"}},
		{"an empty string, which is not the same as none", `{"email":""}`, user{Email: new("")}},
		{"spaces everywhere", " {\n\t\"username\" : \"ann\" ,\r\n \"admin\" :\ttrue } ", user{Username: "ann", Admin: true}},
		{"an integer", `{"uses":-9007199254740993}`, user{Uses: new(int64(-9007199254740993))}},
		{"another order", `{"disabled":false,"role":"admin","username":"ann"}`, user{Username: "ann", Role: &admin, Disabled: &no}},
		{"a name with an escape", `{"\u0075sername":"ann"}`, user{Username: "ann"}},
		{"what looks like the end of a string", `{"username":"\\","email":"\"}","password":"\\\",{"}`, user{Username: `\`, Email: new(`"}`), Password: new(`\",{`)}},
		{"every short escape", `{"username":"\b\f\n\r\t\"\\\/"}`, user{Username: "\b\f\n\r\t\"\\/"}},
		{"an escaped letter", `{"username":"\u00e9"}`, user{Username: "é"}},
		{"a surrogate pair", `{"username":"\ud83d\ude00"}`, user{Username: "😀"}},
		{"text after a surrogate pair", `{"username":"\ud83d\ude00u0000"}`, user{Username: "😀u0000"}},
		{"a backslash before u0000", `{"username":"\\u0000"}`, user{Username: `\u0000`}},
		{"a backslash before ud800", `{"username":"\\ud800"}`, user{Username: `\ud800`}},
		{"u0000 without a backslash", `{"username":"u0000"}`, user{Username: "u0000"}},
		{"the digits of a NUL after an escape", `{"username":"\nu0000"}`, user{Username: "\nu0000"}},
		{"the replacement character", "{\"username\":\"\ufffd\"}", user{Username: "\ufffd"}},
		{"the replacement character as an escape", `{"username":"\ufffd"}`, user{Username: "\ufffd"}},
		{"the replacement character next to an escape", "{\"username\":\"\ufffd\\u00e9\"}", user{Username: "\ufffdé"}},
		{"the last code point", `{"username":"\udbff\udfff"}`, user{Username: "\U0010ffff"}},
		{"raw members of any type", `{"id":[1,{"a":"]}"}],"created_at":null,"updated_at":"x","last_login_at":1.5e3}`, user{
			ID: json.RawMessage(`[1,{"a":"]}"}]`), Created: json.RawMessage(`null`), Updated: json.RawMessage(`"x"`), Login: json.RawMessage(`1.5e3`),
		}},
		{"a raw member with a NUL as an escape", `{"id":"\u0000"}`, user{ID: json.RawMessage(`"\u0000"`)}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var got user
			if err := Unmarshal([]byte(row.text), &got); err != nil || !reflect.DeepEqual(got, row.want) {
				gotText, _ := json.Marshal(got)
				wantText, _ := json.Marshal(row.want)
				t.Errorf("got %s, %v\nwant %s", gotText, err, wantText)
			}
		})
	}
}

var (
	empty    = Error{Malformed, "", "is empty"}
	noJSON   = Error{Malformed, "", "is not valid JSON"}
	noUTF8   = Error{Malformed, "", "is not valid UTF-8"}
	noObject = Error{Malformed, "", "must be one JSON object"}
)

func badEscape(name string) Error {
	return Error{Malformed, name, "contains an escape that is not a character"}
}
func duplicate(name string) Error { return Error{Duplicate, name, "appears twice"} }
func unknown(name string) Error   { return Error{Unknown, name, "is not known"} }
func notString(name string) Error { return Error{WrongType, name, "must be a string"} }
func notBool(name string) Error   { return Error{WrongType, name, "must be true or false"} }

var notInteger = Error{WrongType, "uses", "must be an integer"}

var refused = []struct {
	name string
	text string
	want Error
}{
	{"nothing", ``, empty},
	{"spaces", "  \r\n\t ", noJSON},
	{"a word", `username`, noJSON},
	{"a form", `username=ann&password=x`, noJSON},
	{"a string", `"username"`, noObject},
	{"a number", `1`, noObject},
	{"null", `null`, noObject},
	{"true", `true`, noObject},
	{"an array", `[]`, noObject},
	{"an array with the right object", `[{"username":"ann"}]`, noObject},
	{"an object that does not end", `{"username":"ann"`, noJSON},
	{"a string that does not end", `{"username":"ann`, noJSON},
	{"a member without a value", `{"username"}`, noJSON},
	{"a member without quotes", `{username:"ann"}`, noJSON},
	{"single quotes", `{'username':'ann'}`, noJSON},
	{"a comma after the last member", `{"username":"ann",}`, noJSON},
	{"a comma before the first member", `{,"username":"ann"}`, noJSON},
	{"no comma between members", `{"username":"ann" "email":"e"}`, noJSON},
	{"a comment", `{"username":"ann"/**/}`, noJSON},
	{"two objects", `{"username":"ann"}{"username":"bob"}`, noJSON},
	{"two objects on two lines", "{\"username\":\"ann\"}\n{\"username\":\"bob\"}\n", noJSON},
	{"a brace after the object", `{"username":"ann"}}`, noJSON},
	{"a word after the object", `{"username":"ann"} x`, noJSON},
	{"a NUL after the object", "{\"username\":\"ann\"}\x00", noJSON},
	{"a byte order mark", "\ufeff{}", noJSON},
	{"UTF-16", "\xff\xfe{\x00}\x00", noUTF8},
	{"a control character in a string", "{\"username\":\"a\x01b\"}", noJSON},
	{"a line break in a string", "{\"username\":\"a\nb\"}", noJSON},
	{"an escape that JSON does not have", `{"username":"\x41"}`, noJSON},
	{"an escape that is cut short", `{"username":"\u004"}`, noJSON},
	{"invalid UTF-8 in a value", "{\"username\":\"a\xffb\"}", noUTF8},
	{"invalid UTF-8 in a name", "{\"a\xffb\":1}", noUTF8},
	{"a surrogate in UTF-8", "{\"username\":\"\xed\xa0\x80\"}", noUTF8},
	{"an overlong letter", "{\"username\":\"\xc1\x81\"}", noUTF8},
	{"10,001 levels", `{"username":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`, noJSON},
	{"1,000 levels", `{"username":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, notString("username")},

	{"a NUL as an escape", `{"username":"a\u0000b"}`, badEscape("username")},
	{"a NUL as an escape, after another escape", `{"username":"\n\u0000"}`, badEscape("username")},
	{"a NUL as an escape, after an escaped letter", `{"username":"\u0041\u0000"}`, badEscape("username")},
	{"a NUL as an escape, after a surrogate pair", `{"username":"\ud83d\ude00\u0000"}`, badEscape("username")},
	{"a NUL as an escape at the start of the second member", `{"username":"ann","password":"\u0000 correct horse"}`, badEscape("password")},
	{"the first half of a surrogate pair", `{"username":"\ud83d"}`, badEscape("username")},
	{"the first half of a surrogate pair before a letter", `{"username":"\ud83dx"}`, badEscape("username")},
	{"the first half of a surrogate pair before an escaped letter", `{"username":"\ud83d\u0041"}`, badEscape("username")},
	{"the first half of a surrogate pair before a short escape", `{"username":"\ud83d\nude00"}`, badEscape("username")},
	{"the second half of a surrogate pair", `{"username":"\ude00"}`, badEscape("username")},
	{"a surrogate pair in the wrong order", `{"username":"\ude00\ud83d"}`, badEscape("username")},
	{"half a surrogate pair after a whole one", `{"username":"\ud83d\ude00\uD83D"}`, badEscape("username")},

	{"a member twice", `{"username":"ann","username":"bob"}`, duplicate("username")},
	{"a member twice with the same value", `{"username":"ann","email":"e","username":"ann"}`, duplicate("username")},
	{"a member twice, once with an escape", `{"username":"ann","\u0075sername":"bob"}`, duplicate("username")},
	{"a member twice, first with an escape", `{"user\u006eame":"ann","username":"bob"}`, duplicate("username")},
	{"a member twice, in two ways with escapes", `{"\u0075sername":"ann","u\u0073ername":"bob"}`, duplicate("username")},

	{"an unknown member", `{"username":"ann","age":3}`, unknown("age")},
	{"an unknown member before one of the wrong type", `{"username":1,"age":3}`, unknown("age")},
	{"a member without a name", `{"":1}`, unknown("")},
	{"a member in another case", `{"Username":"ann"}`, unknown("Username")},
	{"a member in upper case", `{"USERNAME":"ann"}`, unknown("USERNAME")},
	{"a member whose s is a long one", `{"u\u017fername":"ann"}`, unknown("u\u017fername")},
	{"a member with a space", `{"username ":"ann"}`, unknown("username ")},
	{"a member with a NUL", `{"username\u0000":"ann"}`, unknown("username\x00")},
	{"the name of the struct's field", `{"Password":"x"}`, unknown("Password")},
	{"a long unknown member", `{"` + strings.Repeat("a", 1000) + `":1}`, unknown(strings.Repeat("a", 1000))},

	{"a number for a string", `{"username":1}`, notString("username")},
	{"a number for a named type of string", `{"role":1}`, notString("role")},
	{"a large number for a string", `{"username":1e999}`, notString("username")},
	{"true for a string", `{"email":true}`, notString("email")},
	{"false for a string", `{"email":false}`, notString("email")},
	{"null for a string", `{"username":null}`, notString("username")},
	{"null for a pointer to a string", `{"password":null}`, notString("password")},
	{"null between other members", `{"username":"ann","email" : null ,"password":"x"}`, notString("email")},
	{"an array for a string", `{"username":["ann"]}`, notString("username")},
	{"an empty array for a string", `{"username":[]}`, notString("username")},
	{"an object for a string", `{"password":{"$ne":""}}`, notString("password")},
	{"an array with a bad escape", `{"username":["\u0000"]}`, notString("username")},
	{"a string for an integer", `{"uses":"1"}`, notInteger},
	{"a fraction for an integer", `{"uses":1.5}`, notInteger},
	{"an exponent for an integer", `{"uses":1e2}`, notInteger},
	{"an integer of more than 64 bits", `{"uses":9223372036854775808}`, notInteger},
	{"null for an integer", `{"uses":null}`, notInteger},
	{"a string for a boolean", `{"admin":"true"}`, notBool("admin")},
	{"a number for a boolean", `{"disabled":0}`, notBool("disabled")},
	{"null for a boolean", `{"admin":null}`, notBool("admin")},
	{"null for a pointer to a boolean", `{"disabled":null}`, notBool("disabled")},
}

func TestUnmarshalRefuses(t *testing.T) {
	t.Parallel()
	for _, row := range refused {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			err := Unmarshal([]byte(row.text), new(user))
			if got, ok := errors.AsType[*Error](err); !ok || *got != row.want {
				t.Errorf("got %v, want %v", err, &row.want)
			}
		})
	}
}

// encoding/json would decide about the members of such a field: in any case,
// and the last of two.
func TestUnmarshalPanicsForTypesItCannotCheck(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		&struct {
			V struct{} `json:"v"`
		}{},
		&struct {
			V []string `json:"v"`
		}{},
		&struct {
			V map[string]string `json:"v"`
		}{},
		&struct {
			V any `json:"v"`
		}{},
		&struct {
			V *int `json:"v"`
		}{},
	} {
		panicked := func() (p any) {
			defer func() { p = recover() }()
			Unmarshal([]byte(`{"v":null}`), v)
			return nil
		}()
		if text, _ := panicked.(string); !strings.HasPrefix(text, "strictjson: unsupported field type ") {
			t.Errorf("%T: panicked with %v", v, panicked)
		}
	}
}

func TestAFieldWithoutATagHasNoMember(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "V", "v"} {
		var got struct{ V string }
		err := Unmarshal(fmt.Appendf(nil, `{%q:"x"}`, name), &got)
		if e, ok := errors.AsType[*Error](err); !ok || *e != unknown(name) || got.V != "" {
			t.Errorf("%q: got %v, %q", name, err, got.V)
		}
	}
}

type embedded struct {
	Text *string `json:"text"`
}

func TestTheFieldsOfAnEmbeddedStructAreMembers(t *testing.T) {
	t.Parallel()
	var got struct {
		Name string `json:"name"`
		embedded
	}
	if err := Unmarshal([]byte(`{"text":"x","name":"ann"}`), &got); err != nil || got.Name != "ann" || got.Text == nil || *got.Text != "x" {
		t.Errorf("got %v, %v, %+v", err, got.Text, got)
	}
	for text, want := range map[string]Error{
		`{"text":1}`:            {WrongType, "text", "must be a string"},
		`{"text":null}`:         {WrongType, "text", "must be a string"},
		`{"text":"\u0000"}`:     badEscape("text"),
		`{"embedded":"x"}`:      unknown("embedded"),
		`{"embedded.text":"x"}`: unknown("embedded.text"),
	} {
		err := Unmarshal([]byte(text), &got)
		if e, ok := errors.AsType[*Error](err); !ok || *e != want {
			t.Errorf("%s: got %v, want %v", text, err, &want)
		}
	}
}

func TestAnErrorSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		err  Error
		want string
	}{
		{noJSON, "the text is not valid JSON"},
		{badEscape("username"), `the member "username" contains an escape that is not a character`},
		{duplicate("\n"), `the member "\n" appears twice`},
		{unknown(""), `the member "" is not known`},
		{unknown(strings.Repeat("é", 1000)), `the member "` + strings.Repeat("é", 64) + `" is not known`},
		{notBool("disabled"), `the member "disabled" must be true or false`},
	} {
		if got := row.err.Error(); got != row.want {
			t.Errorf("got %s, want %s", got, row.want)
		}
	}
}

// members returns the text of an object with n members, m0 to the last.
func members(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"m%d":0`, i))
	}
	return "{" + strings.Join(list, ",") + "}"
}

func TestMembers(t *testing.T) {
	t.Parallel()
	t.Run("gives each member in order, its value as it is written", func(t *testing.T) {
		t.Parallel()
		const text = ` { "a" : 1 , "" : [ { "x" : "}" } , "]" ] ,"b\"\u0041":"\"}",` + "\n" + `"c":{},"d":[],"e":-1.5E+3,"f":null} `
		var got []string
		err := Members([]byte(text), func(name string, value []byte) error {
			got = append(got, name+"="+string(value))
			return nil
		})
		want := []string{`a=1`, `=[ { "x" : "}" } , "]" ]`, `b"A="\"}"`, `c={}`, `d=[]`, `e=-1.5E+3`, `f=null`}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v\nwant %q", got, err, want)
		}
	})
	t.Run("stops at the first error of its function", func(t *testing.T) {
		t.Parallel()
		errStop := errors.New("stop")
		n := 0
		err := Members([]byte(`{"a":1,"b":2,"c":3}`), func(name string, value []byte) error {
			if n++; name == "b" {
				return errStop
			}
			return nil
		})
		if err != errStop || n != 2 {
			t.Errorf("got %v after %d", err, n)
		}
	})
	for _, row := range []struct {
		name string
		text string
		want *Error
		n    int // calls
	}{
		{"accepts 64 members", members(64), nil, 64},
		{"refuses 65 members", members(65), &Error{Malformed, "", "has too many members"}, 64},
		{"refuses thousands of members", members(5000), &Error{Malformed, "", "has too many members"}, 64},
		{"finds a duplicate up to the last member", strings.TrimSuffix(members(63), "}") + `,"m0":1}`, &Error{Duplicate, "m0", "appears twice"}, 63},
		{"calls nothing for a text that does not end", strings.TrimSuffix(members(3), "}"), &noJSON, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			n := 0
			err := Members([]byte(row.text), func(string, []byte) error { n++; return nil })
			got, _ := errors.AsType[*Error](err)
			if !reflect.DeepEqual(got, row.want) || (err == nil) != (row.want == nil) || n != row.n {
				t.Errorf("got %v after %d members, want %v after %d", err, n, row.want, row.n)
			}
		})
	}
}

// A request's body is small, so a name without an escape costs no decoder.
func TestMembersAllocatesOnlyTheNames(t *testing.T) {
	text := []byte(`{"username":"ann","password":"\u0041"}`)
	got := testing.AllocsPerRun(100, func() {
		if err := Members(text, func(string, []byte) error { return nil }); err != nil {
			t.Error(err)
		}
	})
	if got > 2 {
		t.Errorf("%v allocations, want one for each of 2 names", got)
	}
}

// FuzzUnmarshal checks that Unmarshal accepts nothing that encoding/json
// refuses or reads in another way, and no member twice.
func FuzzUnmarshal(f *testing.F) {
	for _, row := range refused {
		f.Add([]byte(row.text))
	}
	for _, seed := range []string{
		`{}`, `{"username":"ann","email":"ann@example.com","password":"correct horse battery"}`,
		`{"\u0075sername":"\\","email":"\"}","password":"\ud83d\ude00","role":"admin","disabled":true}`,
		` { "id" : [ { "a" : "}" } , 1.5e3 ] , "created_at" : null , "updated_at" : {} , "disabled" : false } `,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkUnmarshal[user](t, data)
		checkUnmarshal[struct{}](t, data)
	})
}

func checkUnmarshal[T any](t *testing.T, data []byte) {
	var got, want T
	if err := Unmarshal(data, &got); err != nil {
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Errorf("%q: %v is not an *Error", data, err)
		}
		return
	}
	strict := json.NewDecoder(bytes.NewReader(data))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&want); err != nil {
		t.Fatalf("%q is accepted: %v", data, err)
	}
	if _, err := strict.Token(); err != io.EOF {
		t.Errorf("%q is accepted, with more after the object", data)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q is read as %+v, want %+v", data, got, want)
	}

	tokens := json.NewDecoder(bytes.NewReader(data))
	if first, err := tokens.Token(); first != json.Delim('{') {
		t.Fatalf("%q is accepted: it begins with %v, %v", data, first, err)
	}
	seen := make(map[string]bool)
	for tokens.More() {
		name, err := tokens.Token()
		if err != nil {
			t.Fatal(err)
		}
		if seen[name.(string)] {
			t.Errorf("%q is accepted with %q twice", data, name)
		}
		seen[name.(string)] = true
		var value json.RawMessage
		if err := tokens.Decode(&value); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnquote(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{`"a"`: "a", `""`: "", `"ä b"`: "ä b", `"a\n"`: "", `1`: "", `null`: "", `["a"]`: "", ``: "", `"`: ""} {
		if got := Unquote([]byte(value)); got != want {
			t.Errorf("%s: got %q, want %q", value, got, want)
		}
	}
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for value, want := range map[string][]string{`"a"`: {"a"}, `["a","b\n"]`: {"a", "b\n"}, `[]`: {}, `""`: nil, `1`: nil, `{}`: nil, `["a",1]`: nil, `null`: nil} {
		if got := Strings([]byte(value)); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", value, got, want)
		}
	}
}
