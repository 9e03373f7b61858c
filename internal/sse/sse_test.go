package sse

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// A source has events 1 to last.
type source struct {
	last    atomic.Int64
	batch   int64
	allowed atomic.Bool
}

func newSource(last int64) *source {
	s := &source{batch: 2}
	s.last.Store(last)
	s.allowed.Store(true)
	return s
}

func (s *source) source() Source {
	return Source{
		Read: func(after int64, add func(int64, string, any)) (int64, bool, error) {
			last := s.last.Load()
			for n := int64(0); n < s.batch && after < last; n++ {
				after++
				add(after, "tick", map[string]int64{"n": after})
			}
			return after, after < last, nil
		},
		Allowed: s.allowed.Load,
	}
}

// quick returns a Feed that polls often.
func quick(most int) *Feed {
	f := New(most)
	f.PollEvery, f.RecheckEvery, f.PingEvery, f.WriteTimeout = time.Millisecond, time.Millisecond, time.Hour, time.Minute
	return f
}

// follow opens a stream after an id. next returns the next block, "" at the end.
func follow(t *testing.T, f *Feed, s *source, after int64) (next func() string, leave func()) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := f.Serve(w, r, after, s.source()); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type: %s", got)
	}
	lines := bufio.NewScanner(resp.Body)
	return func() (block string) {
		for lines.Scan() && lines.Text() != "" {
			block += lines.Text() + "\n"
		}
		return block
	}, func() { resp.Body.Close() }
}

// await waits until no stream is open.
func (f *Feed) await(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); f.Open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are open", f.Open())
		}
	}
}

func TestAStreamBeginsWithItsStartAndFollowsTheSource(t *testing.T) {
	t.Parallel()
	f, s := quick(1), newSource(4)
	next, leave := follow(t, f, s, 1)
	for _, want := range []string{
		"id: 1\n",
		"id: 2\nevent: tick\ndata: {\"n\":2}\n",
		"id: 3\nevent: tick\ndata: {\"n\":3}\n",
		"id: 4\nevent: tick\ndata: {\"n\":4}\n",
	} {
		if got := next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	s.last.Store(5)
	if got, want := next(), "id: 5\nevent: tick\ndata: {\"n\":5}\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if f.Open() != 1 {
		t.Errorf("%d streams are open, want 1", f.Open())
	}
	leave()
	f.await(t)
}

func TestASilentStreamSendsTheLastIDThatItSearched(t *testing.T) {
	t.Parallel()
	f := quick(1)
	f.PingEvery = 5 * time.Millisecond
	next, _ := follow(t, f, newSource(0), 7)
	next()
	if got, want := next(), ":\nid: 7\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	f.Stop()
}

func TestAStreamEnds(t *testing.T) {
	t.Parallel()
	for claim, end := range map[string]func(*Feed, *source){
		"when the server stops":            func(f *Feed, _ *source) { f.Stop(); f.Stop() },
		"when the client may not read any": func(_ *Feed, s *source) { s.allowed.Store(false) },
	} {
		t.Run(claim, func(t *testing.T) {
			t.Parallel()
			f, s := quick(1), newSource(0)
			next, _ := follow(t, f, s, 0)
			next()
			end(f, s)
			if got := next(); got != "" {
				t.Errorf("got %q", got)
			}
			f.await(t)
		})
	}
}

func TestServeReturnsAnErrorOfTheSource(t *testing.T) {
	t.Parallel()
	f, broken := quick(1), errors.New("broken")
	src := Source{Read: func(int64, func(int64, string, any)) (int64, bool, error) { return 0, false, broken }}
	if err := f.Serve(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), 0, src); err != broken {
		t.Errorf("got %v", err)
	}
}

func TestTooManyStreamsAreRefused(t *testing.T) {
	t.Parallel()
	f, s := quick(1), newSource(0)
	next, _ := follow(t, f, s, 0)
	next()
	serve := func(method string) error {
		return f.Serve(httptest.NewRecorder(), httptest.NewRequest(method, "/", nil), 0, s.source())
	}
	if err := serve("GET"); err != ErrBusy {
		t.Errorf("got %v, want ErrBusy", err)
	}
	f.Stop()
	f.await(t)
	for range 2 { // HEAD opens no stream
		if err := serve("HEAD"); err != nil {
			t.Error(err)
		}
	}
}
