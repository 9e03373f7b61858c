package param

import (
	"math"
	"net/url"
	"reflect"
	"strconv"
	"testing"
)

func TestID(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		text string
		want int64 // 0: refused
	}{
		{"1", 1},
		{"10", 10},
		{"9223372036854775807", math.MaxInt64},
		{"9223372036854775808", 0},
		{"", 0},
		{"0", 0},
		{"-0", 0},
		{"+0", 0},
		{"-1", 0},
		{"+1", 0},
		{"01", 0},
		{"00", 0},
		{"1.0", 0},
		{"1e1", 0},
		{"0x1", 0},
		{"1_000", 0},
		{" 1", 0},
		{"1 ", 0},
		{"1\n", 0},
		{"１", 0},
		{"me", 0},
	} {
		got, err := ID(row.text)
		if got != row.want || (err == nil) != (row.want > 0) {
			t.Errorf("ID(%q) = %d, %v; want %d", row.text, got, err, row.want)
		}
	}
}

func FuzzID(f *testing.F) {
	for _, seed := range []string{"1", "0", "-1", "+1", "01", "1.0", "", "9223372036854775807", "9223372036854775808"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ID(s)
		n, convErr := strconv.ParseInt(s, 10, 64)
		canonical := convErr == nil && n > 0 && strconv.FormatInt(n, 10) == s
		if (err == nil) != canonical || canonical && got != n {
			t.Errorf("ID(%q) = %d, %v", s, got, err)
		}
	})
}

func TestQuery(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		query string
		want  url.Values
		err   error
	}{
		{"", url.Values{}, nil},
		{"a=1&b=%20", url.Values{"a": {"1"}, "b": {" "}}, nil},
		{"a", url.Values{"a": {""}}, nil},
		{"A=1", nil, &Error{"A", "is unknown"}},
		{"=1", nil, &Error{"", "is unknown"}},
		{"a=1&a=1", nil, &Error{"a", "appears twice"}},
		{"%zz", nil, ErrMalformed},
		{"a=1;b=2", nil, ErrMalformed},
	} {
		got, err := Query(row.query, "a", "b")
		if !reflect.DeepEqual(got, row.want) || !reflect.DeepEqual(err, row.err) {
			t.Errorf("%q: got %v, %v; want %v, %v", row.query, got, err, row.want, row.err)
		}
	}
}

func TestBool(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		query string
		want  *bool
		err   bool
	}{
		{"", nil, false},
		{"a=true", new(true), false},
		{"a=false", new(false), false},
		{"a", nil, true},
		{"a=1", nil, true},
		{"a=True", nil, true},
	} {
		q, _ := url.ParseQuery(row.query)
		got, err := Bool(q, "a")
		if !reflect.DeepEqual(got, row.want) || row.err != (err != nil) {
			t.Errorf("%q: got %v, %v", row.query, got, err)
		}
	}
}

func TestWord(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{"": "", "a=red": "red", "a=blue": "blue", "a": "!", "a=Red": "!", "a=green": "!"} {
		q, _ := url.ParseQuery(query)
		got, err := Word(q, "a", "red", "blue")
		if err != nil {
			got = "!"
			if want := (&Error{"a", "must be red or blue"}); !reflect.DeepEqual(err, error(want)) {
				t.Errorf("%q: got %v, want %v", query, err, want)
			}
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		query        string
		limit, after int64
		err          string
	}{
		{"", 0, 0, ""},
		{"limit=1&after=7", 1, 7, ""},
		{"limit=100&after=0", 100, 0, ""},
		{"limit=101", 0, 0, `the parameter "limit" must be from 1 to 100`},
		{"limit=0", 0, 0, `the parameter "limit" must be from 1 to 100`},
		{"limit=", 0, 0, `the parameter "limit" must be from 1 to 100`},
		{"after=", 0, 0, `the parameter "after" must be an id`},
		{"after=-1", 0, 0, `the parameter "after" must be an id`},
		{"limit=5&after=00", 0, 0, `the parameter "after" must be an id`},
		{"a=1&limit=5", 5, 0, ""},
		{"b=1", 0, 0, `the parameter "b" is unknown`},
	} {
		text := ""
		p, err := ParsePage(row.query, 100, "a")
		if err != nil {
			text = err.Error()
		}
		if p.Limit != row.limit || p.AfterID != row.after || text != row.err {
			t.Errorf("%q: got %d, %d, %q", row.query, p.Limit, p.AfterID, text)
		}
	}
}
