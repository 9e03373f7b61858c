package reqbody

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
)

// chunked hides the length of a body: net/http then sends it in chunks.
func chunked(body string) io.Reader { return iotest.DataErrReader(strings.NewReader(body)) }

func TestRead(t *testing.T) {
	t.Parallel()
	b := NewReader(100, 10, 1)
	broken := func(body string) io.Reader {
		return io.MultiReader(strings.NewReader(body), iotest.ErrReader(io.ErrUnexpectedEOF))
	}
	for _, row := range []struct {
		name string
		body io.Reader
		want int // bytes
		err  error
	}{
		{"an empty body", strings.NewReader(""), 0, nil},
		{"a small body", strings.NewReader(strings.Repeat("x", 10)), 10, nil},
		{"a large body", strings.NewReader(strings.Repeat("x", 11)), 11, nil},
		{"the largest body", strings.NewReader(strings.Repeat("x", 100)), 100, nil},
		{"the largest body in chunks", chunked(strings.Repeat("x", 100)), 100, nil},
		{"a byte more", strings.NewReader(strings.Repeat("x", 101)), 0, ErrTooLarge},
		{"a byte more in chunks", chunked(strings.Repeat("x", 101)), 0, ErrTooLarge},
		{"a small body that breaks off", broken("x"), 0, ErrIncomplete},
		{"a large body that breaks off", broken(strings.Repeat("x", 11)), 0, ErrIncomplete},
	} {
		got, err := b.Read(httptest.NewRecorder(), httptest.NewRequest("POST", "/", row.body))
		if err != row.err || len(got) != row.want || strings.Trim(string(got), "x") != "" {
			t.Errorf("%s: got %q, %v; want %d bytes, %v", row.name, got, err, row.want, row.err)
		}
		if len(b.large) != 0 {
			t.Fatalf("%s: the Reader still counts a large body", row.name)
		}
	}
}

func TestOnlyAFewLargeBodiesAreReadConcurrently(t *testing.T) {
	t.Parallel()
	b := NewReader(100, 10, 2)
	done := make(chan error)
	var clients []io.Closer
	for range 2 {
		in, out := io.Pipe()
		clients = append(clients, out)
		go func() {
			_, err := b.Read(httptest.NewRecorder(), httptest.NewRequest("POST", "/", in))
			done <- err
		}()
		out.Write([]byte(strings.Repeat("x", 11)))
		out.Write([]byte("x")) // read only after the body has counted as large
	}
	read := func(size int) error {
		_, err := b.Read(httptest.NewRecorder(), httptest.NewRequest("POST", "/", chunked(strings.Repeat("x", size))))
		return err
	}
	if err := read(10); err != nil {
		t.Errorf("a small body: %v", err)
	}
	if err := read(11); err != ErrBusy {
		t.Errorf("the third large body: %v, want ErrBusy", err)
	}
	for _, client := range clients {
		client.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		if err := read(11); err != nil {
			t.Errorf("a large body after the others: %v", err)
		}
	}
}

// An unreadBody fails the test that reads it.
type unreadBody struct{ t *testing.T }

func (b unreadBody) Read([]byte) (int, error) {
	b.t.Error("the body was read")
	return 0, io.EOF
}

func TestABodyThatIsAnnouncedTooLargeIsNotRead(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("POST", "/", unreadBody{t})
	r.ContentLength = 101
	if _, err := NewReader(100, 10, 1).Read(httptest.NewRecorder(), r); err != ErrTooLarge {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
}

func TestExists(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		body   string
		length int64
		want   bool
	}{
		{"", 0, false},
		{"{}", 2, true},
		{"", -1, false},
		{"{}", -1, true},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(row.body))
		r.ContentLength = row.length
		if got := Exists(r); got != row.want {
			t.Errorf("%+v: got %t", row, got)
		}
		if data, err := io.ReadAll(r.Body); string(data) != row.body || err != nil {
			t.Errorf("%+v: the body is then %q, %v", row, data, err)
		}
	}
}

func TestHasType(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		contentType, encoding string
		want                  bool
	}{
		{"application/json", "", true},
		{"Application/JSON", "", true},
		{"application/json; charset=utf-8", "", true},
		{`application/json;charset="UTF-8"`, "", true},
		{"application/json; v=1", "", true},
		{"", "", false},
		{"text/json", "", false},
		{"application/json-patch+json", "", false},
		{"text/plain, application/json", "", false},
		{"application/json; charset", "", false},
		{"application/json; charset=latin1", "", false},
		{`application/json; charset=""`, "", false},
		{"application/json", "gzip", false},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Content-Type", row.contentType)
		r.Header.Set("Content-Encoding", row.encoding)
		if got := HasType(r, "application/json"); got != row.want {
			t.Errorf("%+v: got %t", row, got)
		}
	}
}
