package netlisten_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"userd/internal/netlisten"
)

// handle is a handler that tells its connection what it is doing.
func handle(w http.ResponseWriter, r *http.Request) {
	conn := netlisten.FromContext(r.Context())
	if !conn.BeginRequest() {
		http.Error(w, "too many requests", http.StatusServiceUnavailable)
		return
	}
	defer conn.EndRequest()
	if conn.ShouldClose() {
		w.Header().Set("Connection", "close")
	}
	conn.AwaitClient(0)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1000))
	conn.Resume(0)
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	fmt.Fprintf(w, "hello %s", body)
}

func Example() {
	listener, _, err := netlisten.Listen("127.0.0.1:0") // or systemd's socket
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{
		Handler:     http.HandlerFunc(handle),
		ConnContext: netlisten.ConnContext,
	}
	defer server.Close()
	go server.Serve(netlisten.Limit(listener, 100))
	if err := netlisten.Notify("READY=1"); err != nil {
		fmt.Println(err)
	}

	resp, err := http.Post("http://"+listener.Addr().String(), "text/plain", strings.NewReader("world"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	fmt.Println(string(answer), err)

	// Output: hello world <nil>
}
