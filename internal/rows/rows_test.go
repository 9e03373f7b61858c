package rows

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

// names is a format whose fields are the columns, and the JSON objects as they are.
var names = Format{
	MaxRow:  64 << 10,
	Columns: func(header []string) ([]string, error) { return header, nil },
	Object: func(text []byte) (map[string]string, string) {
		return map[string]string{"name": strings.TrimSuffix(strings.TrimPrefix(string(text), `{"name":"`), `"}`)}, ""
	},
}

// An endlessReader repeats a text, and counts the bytes that were read.
type endlessReader struct {
	text string
	n    int64
}

func (r *endlessReader) Read(p []byte) (int, error) {
	n := copy(p, strings.Repeat(r.text, len(p)))
	r.n += int64(n)
	return n, nil
}

func TestARowIsBounded(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]struct{ header, row, filler string }{
		"CSV":          {"name,other\n", "\"%s\",\n", "a\n"}, // one field can have many lines
		"NDJSON":       {"", `{"name":"%s"}` + "\n", "a"},
		"a JSON array": {"[", `{"name":"%s"},` + "\n", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			long := strings.Repeat("a", int(names.MaxRow)-100)
			text := fmt.Sprintf(format.row, long)
			file, err := NewReader(strings.NewReader(format.header+strings.Repeat(text, 5)), names)
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if row, err := file.Next(); err != nil || row.Problem != "" || row.Fields["name"] != long {
					t.Errorf("%q, %v", row.Problem, err)
				}
			}

			endless := &endlessReader{text: format.filler}
			start, _, _ := strings.Cut(text, "aaa")
			file, err = NewReader(io.MultiReader(strings.NewReader(format.header+text+start), endless), names)
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = file.Next()
			}
			if err.Error() != "is longer than 64 KiB, the maximum of a row" || endless.n > 4*names.MaxRow {
				t.Errorf("%d bytes of an endless row were read: %v", endless.n, err)
			}
		})
	}
}

func TestRowsOfEachFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text string
		want       []string // number: fields or problem
		err        error    // nil: any other than io.EOF
	}{
		{"CSV", "name,other\na,b\n\n,\n,,,\nc\nd,e,f\ng,h", []string{"2: map[name:a other:b]", "3: empty", "4: empty", "5: has 1 field instead of 2", "6: has 3 fields instead of 2", "7: map[name:g other:h]"}, io.EOF},
		{"CSV with a bad quote", "name\na\n\"b\"c\n", []string{"2: map[name:a]"}, nil},
		{"NDJSON", " \n" + `{"name":"a"}` + "\n\n" + `{"name":"b"}`, []string{"1: empty", "2: map[name:a]", "3: empty", "4: map[name:b]"}, io.EOF},
		{"a JSON array", "\t[ " + `{"name":"a"}` + "\n,\n" + `{"name":"b"} ]` + "\n", []string{"1: map[name:a]", "2: map[name:b]"}, io.EOF},
		{"an empty array", "[]", nil, io.EOF},
		{"an array without an end", `[{"name":"a"}`, []string{"1: map[name:a]"}, io.ErrUnexpectedEOF},
		{"text after an array", `[{"name":"a"}] x`, []string{"1: map[name:a]"}, nil},
	} {
		file, err := NewReader(strings.NewReader(c.text), names)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var got []string
		var row Row
		for row, err = file.Next(); err == nil; row, err = file.Next() {
			text := row.Problem
			switch {
			case row.Fields != nil:
				text = fmt.Sprint(row.Fields)
			case text == "":
				text = "empty"
			}
			got = append(got, fmt.Sprintf("%d: %s", row.Number, text))
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		if c.err == nil && err == io.EOF || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
	}
}

func TestAColumnWithoutAFieldIsIgnored(t *testing.T) {
	t.Parallel()
	format := names
	format.Columns = func([]string) ([]string, error) { return []string{"", "name", ""}, nil }
	file, err := NewReader(strings.NewReader("x,y,z\n1,a,2\n"), format)
	if err != nil {
		t.Fatal(err)
	}
	row, err := file.Next()
	if want := map[string]string{"name": "a"}; err != nil || !reflect.DeepEqual(row.Fields, want) {
		t.Errorf("%v, %v, want %v", row.Fields, err, want)
	}
}

func TestAFileWithoutAValidHeaderIsRefused(t *testing.T) {
	t.Parallel()
	refused := errors.New("no such column")
	format := names
	format.Columns = func([]string) ([]string, error) { return nil, refused }
	for text, want := range map[string]string{"": "the file is empty", "\"a\"b\n": "the header: ", "x\n": refused.Error()} {
		if _, err := NewReader(strings.NewReader(text), format); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestAByteOrderMarkIsSkipped(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"name\nann\n", `{"name":"ann"}`, `[{"name":"ann"}]`} {
		file, err := NewReader(strings.NewReader("\ufeff"+text), names)
		if err != nil {
			t.Fatal(err)
		}
		if row, err := file.Next(); err != nil || row.Fields["name"] != "ann" {
			t.Errorf("%s: %+v, %v", text, row, err)
		}
	}
}

func TestAColumnThatAppearsTwiceIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := NewReader(strings.NewReader("a,b,a\n1,2,3\n"), names); err == nil || err.Error() != `column "a" appears twice` {
		t.Errorf("got %v", err)
	}
}

func TestTimesAndBooleansOfOtherPrograms(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"":                          0,
		"2026-05-04T03:02:01Z":      1777863721,
		"2026-05-04T05:02:01+02:00": 1777863721,
		"2026-05-04 03:02:01.5Z":    1777863721,
		"2026-05-04 05:02:01+02":    1777863721,
		"2026-05-04 03:02:01":       1777863721,
		"1969-12-31T23:59:59Z":      -1,
		"yesterday":                 -1,
		"1777863721":                -1,
	} {
		got, problem := Time(text)
		if problem != "" {
			got = -1
		}
		if got != want {
			t.Errorf("%q is %d, want %d", text, got, want)
		}
	}
	for text, want := range map[string]string{"": "false", "F": "false", "0": "false", "False": "false", "t": "true", "1": "true", "TRUE": "true", "yes": "must be true or false"} {
		value, problem := Bool(text)
		if got := cmp.Or(problem, fmt.Sprint(value)); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}
