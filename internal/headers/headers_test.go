package headers

import (
	"net/http"
	"testing"
)

func TestMatchETagAcceptsTheTagsThatProxiesMake(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		tag  string
		want bool
	}{
		{`"12"`, true},
		{`W/"12"`, true},
		{`"12-gzip"`, true},
		{`"12--gzip"`, true},
		{`W/"12-gzip"`, true},
		{`"12-br"`, true},
		{`"12-zstd"`, true},
		{`"12-deflate"`, true},
		{`"1", W/"12"`, true},
		{`*`, true},
		{`"1"`, false},
		{`W/"1"`, false},
		{`"1-gzip"`, false},
		{`"122"`, false},
		{`"12-"`, false},
		{`"12---gzip"`, false},
		{`"12-13"`, false},
		{`"-gzip"`, false},
		{`12`, false},
		{`"12`, false},
		{`12"`, false},
		{`"`, false},
		{`w/"12"`, false},
		{`W/*`, false},
		{``, false},
	} {
		if got := MatchETag([]string{row.tag}, 12); got != row.want {
			t.Errorf("%s: %t, want %t", row.tag, got, row.want)
		}
	}
	if !MatchETag([]string{ETag(11), ETag(12)}, 12) {
		t.Error("the second of two headers does not match")
	}
}

func TestBearer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		headers []string
		token   string
		err     error
	}{
		{[]string{"Bearer x"}, "x", nil},
		{[]string{"bearer x"}, "x", nil},
		{[]string{"BEARER   x"}, "x", nil},
		{[]string{"Bearer x y"}, "x y", nil},
		{[]string{"Bearer"}, "", nil},
		{nil, "", ErrNoBearer},
		{[]string{""}, "", ErrNoBearer},
		{[]string{"x"}, "", ErrNoBearer},
		{[]string{"Bearers x"}, "", ErrNoBearer},
		{[]string{"Basic x"}, "", ErrNoBearer},
		{[]string{"Bearer x", "Bearer x"}, "", ErrTwoHeaders},
		{[]string{"Basic x", "Bearer x"}, "", ErrTwoHeaders},
	} {
		r := &http.Request{Header: http.Header{"Authorization": row.headers}}
		if token, err := Bearer(r); token != row.token || err != row.err {
			t.Errorf("%q: got %q, %v; want %q, %v", row.headers, token, err, row.token, row.err)
		}
	}
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		headers []string
		want    bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"*/*"}, false},
		{[]string{"text/*"}, false},
		{[]string{"application/json"}, false},
		{[]string{"text/event-stream"}, true},
		{[]string{"Text/Event-Stream"}, true},
		{[]string{"application/json, text/event-stream"}, true},
		{[]string{"application/json", "text/event-stream"}, true},
		{[]string{"a b, text/event-stream"}, true},
		{[]string{"text/event-stream;q=0.1"}, true},
		{[]string{"text/event-stream;q=x"}, true},
		{[]string{"text/event-stream;q=0"}, false},
		{[]string{"text/event-stream; q=0.000"}, false},
	} {
		r := &http.Request{Header: http.Header{"Accept": row.headers}}
		if got := Accepts(r, "Accept", "text/event-stream"); got != row.want {
			t.Errorf("%q: got %t", row.headers, got)
		}
		if Accepts(r, "Accept-Encoding", "text/event-stream") {
			t.Errorf("%q: Accept counts as Accept-Encoding", row.headers)
		}
	}
}
