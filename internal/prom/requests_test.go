package prom

import (
	"strings"
	"testing"
	"time"
)

func TestRequestsAreCountedByRouteMethodAndStatus(t *testing.T) {
	t.Parallel()
	var r Requests
	r.Route("").Observe("GET", 404, time.Second)
	r.Route("GET /users/{id}").Observe("GET", 200, time.Second)
	r.Route("GET /users/{id}").Observe("GET", 200, time.Second)
	r.Route("GET /users/{id}").Observe("HEAD", 200, time.Second)
	r.Route("").Observe("BREW", 405, time.Second)
	r.Route("").Observe("get", 405, time.Second)
	r.Route("GET /unused")
	var p Page
	p.Requests("req", "Help.", &r)
	var got []string
	for line := range strings.Lines(string(p.Bytes())) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "req_count") {
			got = append(got, line)
		}
	}
	want := `# HELP req Help.
# TYPE req histogram
req_count{route="none",method="GET",status="404"} 1
req_count{route="none",method="other",status="405"} 2
req_count{route="/users/{id}",method="GET",status="200"} 2
req_count{route="/users/{id}",method="HEAD",status="200"} 1
`
	if text := strings.Join(got, ""); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestObservingARequestAllocatesNothing(t *testing.T) {
	r := new(Requests).Route("")
	r.Observe("GET", 404, time.Millisecond)
	if n := testing.AllocsPerRun(100, func() { r.Observe("GET", 404, time.Millisecond) }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}
