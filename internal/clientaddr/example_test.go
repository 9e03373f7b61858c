package clientaddr_test

import (
	"fmt"
	"net/http"
	"net/netip"

	"userd/internal/clientaddr"
)

func Example() {
	proxies := clientaddr.Proxies{netip.MustParsePrefix("10.0.0.0/8")}
	header := http.Header{"X-Forwarded-For": {"1.1.1.1, 198.51.100.7, 10.0.0.2"}, "X-Request-Id": {"7f3a"}}
	for _, peer := range []string{"10.0.0.1:1234", "192.0.2.1:1234"} {
		client, id := proxies.Origin(&http.Request{RemoteAddr: peer, Header: header})
		fmt.Printf("%s %q\n", client, id)
	}
	// Output:
	// 198.51.100.7 "7f3a"
	// 192.0.2.1 ""
}
