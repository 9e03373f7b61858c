package healthcheck_test

import (
	"fmt"

	"userd/internal/healthcheck"
)

func ExampleServer_URL() {
	server := healthcheck.Server{Address: ":5000", Path: "/readyz"}
	fmt.Println(server.URL())
	// Output: http://127.0.0.1:5000/readyz
}
