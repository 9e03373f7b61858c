package headers_test

import (
	"fmt"
	"net/http"

	"userd/internal/headers"
)

func Example() {
	r := &http.Request{Header: http.Header{
		"Authorization": {"Bearer abc"},
		"Accept":        {"text/html, text/event-stream;q=0.5"},
		"If-Match":      {`W/"7"`},
	}}
	token, err := headers.Bearer(r)
	fmt.Println(token, err)
	fmt.Println(headers.Accepts(r, "Accept", "text/event-stream"))
	fmt.Println(headers.ETag(7), headers.MatchETag(r.Header["If-Match"], 7))
	// Output:
	// abc <nil>
	// true
	// "7" true
}
