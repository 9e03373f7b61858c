package setting_test

import (
	"fmt"
	"net/netip"
	"time"

	"userd/internal/setting"
)

func Example() {
	var addr string
	var lifetime time.Duration
	var proxies []netip.Prefix
	for _, s := range []struct {
		name, value string
		err         error
	}{
		{"ADDR", "127.0.0.1:5000", setting.HostPort(&addr, "127.0.0.1:5000")},
		{"LIFETIME", "1500h", setting.TTL(&lifetime, "1500h", time.Second, 720*time.Hour)},
		{"PROXIES", "10.0.0.1, 10.0.0.0/33", setting.Networks(&proxies, "10.0.0.1, 10.0.0.0/33")},
		{"DATABASE", "postgres://app:hunter2@db/users", fmt.Errorf("must be a path")},
	} {
		if s.err != nil {
			fmt.Printf("%s=%q: %v\n", s.name, setting.WithoutSecrets(s.value), s.err)
			continue
		}
		fmt.Println(s.name, "is", s.value)
	}
	// Output:
	// ADDR is 127.0.0.1:5000
	// LIFETIME="1500h": must be a duration such as 90m, or seconds; from 1s to 720h
	// PROXIES="10.0.0.1, 10.0.0.0/33": element 2 is neither an address nor a CIDR such as 10.0.0.0/8
	// DATABASE="postgres://db/users": must be a path
}
