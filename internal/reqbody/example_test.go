package reqbody_test

import (
	"fmt"
	"net/http/httptest"
	"strings"

	"userd/internal/reqbody"
)

func Example() {
	bodies := reqbody.NewReader(64<<10, 8<<10, 256)
	r := httptest.NewRequest("POST", "/", strings.NewReader(`{"a":1}`))
	r.Header.Set("Content-Type", "application/json")
	if reqbody.HasType(r, "application/json") {
		data, err := bodies.Read(httptest.NewRecorder(), r)
		fmt.Println(string(data), err)
	}
	// Output: {"a":1} <nil>
}
