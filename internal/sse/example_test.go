package sse_test

import (
	"fmt"
	"net/http/httptest"
	"time"

	"userd/internal/sse"
)

func Example() {
	feed := sse.New(64)
	feed.PollEvery, feed.RecheckEvery, feed.PingEvery = time.Second, time.Second, 15*time.Second
	feed.Stop() // so that the stream ends after its first read
	w := httptest.NewRecorder()
	err := feed.Serve(deadlines{w}, httptest.NewRequest("GET", "/", nil), 6, sse.Source{
		Read: func(after int64, add func(int64, string, any)) (int64, bool, error) {
			add(7, "login", map[string]string{"user": "ann"})
			return 7, false, nil
		},
		Allowed: func() bool { return true },
	})
	fmt.Println(err)
	fmt.Print(w.Body)
	// Output:
	// <nil>
	// id: 6
	//
	// id: 7
	// event: login
	// data: {"user":"ann"}
}

// The recorder of a test has no deadlines.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetWriteDeadline(time.Time) error { return nil }
