package clientaddr

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestClientAddress(t *testing.T) {
	t.Parallel()
	const proxy = "10.0.0.1:1234"
	private := []string{"10.0.0.0/8", "fd00::/8"}
	for _, row := range []struct {
		name    string
		trusted []string
		peer    string
		headers []string
		want    string
	}{
		{"no proxy is trusted, no header", nil, "192.0.2.1:1234", nil, "192.0.2.1"},
		{"no proxy is trusted, a header", nil, "192.0.2.1:1234", []string{"198.51.100.7"}, "192.0.2.1"},
		{"no proxy is trusted, a header by a private peer", nil, proxy, []string{"198.51.100.7"}, "10.0.0.1"},
		{"no proxy is trusted, IPv6", nil, "[2001:db8::1]:1234", []string{"198.51.100.7"}, "2001:db8::1"},
		{"a peer that is no proxy", private, "192.0.2.1:1234", []string{"198.51.100.7"}, "192.0.2.1"},
		{"a peer that is no proxy claims to be one", private, "192.0.2.1:1234", []string{"10.0.0.9"}, "192.0.2.1"},
		{"a proxy and no header", private, proxy, nil, "10.0.0.1"},
		{"a proxy and an empty header", private, proxy, []string{""}, "10.0.0.1"},
		{"a proxy names its client", private, proxy, []string{"198.51.100.7"}, "198.51.100.7"},
		{"addresses to the left are the client's invention", private, proxy, []string{"203.0.113.5, 198.51.100.7"}, "198.51.100.7"},
		{"even where it is a trusted address", private, proxy, []string{"10.0.0.8, 198.51.100.7"}, "198.51.100.7"},
		{"even where it is garbage", private, proxy, []string{"'; DROP TABLE user; --, 198.51.100.7"}, "198.51.100.7"},
		{"two proxies", private, proxy, []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7"},
		{"three proxies and an invention", private, proxy, []string{"1.1.1.1, 198.51.100.7, 10.0.0.3, 10.0.0.2"}, "198.51.100.7"},
		{"several headers are one list", private, proxy, []string{"203.0.113.5", "198.51.100.7, 10.0.0.3", "10.0.0.2"}, "198.51.100.7"},
		{"only proxies", private, proxy, []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"garbage", private, proxy, []string{"unknown"}, "10.0.0.1"},
		{"garbage to the left of a proxy", private, proxy, []string{"unknown, 10.0.0.2"}, "10.0.0.2"},
		{"garbage to the right of an address", private, proxy, []string{"198.51.100.7, unknown"}, "10.0.0.1"},
		{"an empty element at the end", private, proxy, []string{"198.51.100.7,"}, "198.51.100.7"},
		{"empty elements everywhere", private, proxy, []string{",203.0.113.5,, 198.51.100.7, ,\t", "", "10.0.0.2,,"}, "198.51.100.7"},
		{"only empty elements", private, proxy, []string{" ,,", ","}, "10.0.0.1"},
		{"brackets without a port", private, proxy, []string{"[2001:db8::1]"}, "2001:db8::1"},
		{"brackets and a port", private, proxy, []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		{"brackets around a proxy", private, proxy, []string{"198.51.100.7, [fd00::2]"}, "198.51.100.7"},
		{"an IPv4 address in IPv6 in brackets", private, proxy, []string{"[::ffff:198.51.100.7]"}, "198.51.100.7"},
		{"brackets around an IPv4 address", private, proxy, []string{"[198.51.100.7]"}, "10.0.0.1"},
		{"a bracket that is not closed", private, proxy, []string{"[2001:db8::1"}, "10.0.0.1"},
		{"brackets around nothing", private, proxy, []string{"[]"}, "10.0.0.1"},
		{"a port without a number", private, proxy, []string{"[2001:db8::1]:"}, "10.0.0.1"},
		{"an empty element at the beginning", private, proxy, []string{",198.51.100.7"}, "198.51.100.7"},
		{"a port after the address", private, proxy, []string{"203.0.113.5, 198.51.100.7:5555, [fd00::2]:80"}, "198.51.100.7"},
		{"a network for an address", private, proxy, []string{"198.51.100.0/24"}, "10.0.0.1"},
		{"no spaces", private, proxy, []string{"203.0.113.5,198.51.100.7,10.0.0.2"}, "198.51.100.7"},
		{"many spaces", private, proxy, []string{"  198.51.100.7  ,\t10.0.0.2  "}, "198.51.100.7"},
		{"an IPv6 client", private, proxy, []string{"2001:db8::7"}, "2001:db8::7"},
		{"an IPv6 client with a zone", private, proxy, []string{"fe80::1%" + strings.Repeat("z", 9000)}, "fe80::1"},
		{"an IPv6 client in another spelling", private, proxy, []string{"2001:DB8:0:0::7"}, "2001:db8::7"},
		{"an IPv6 proxy", private, "[fd00::1]:1234", []string{"198.51.100.7, fd00::2"}, "198.51.100.7"},
		{"an IPv4 proxy in IPv6", private, "[::ffff:10.0.0.1]:1234", []string{"198.51.100.7"}, "198.51.100.7"},
		{"an IPv4 client in IPv6", private, proxy, []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		{"one address is trusted, and not its neighbour", []string{"10.0.0.1/32"}, proxy, []string{"198.51.100.7, 10.0.0.2"}, "10.0.0.2"},
		{"everybody is trusted", []string{"0.0.0.0/0"}, proxy, []string{"203.0.113.5, 198.51.100.7"}, "203.0.113.5"},
		{"a proxy with a zone", []string{"fe80::/10"}, "[fe80::1%eth0]:1234", []string{"198.51.100.7"}, "198.51.100.7"},
		{"a peer without an address", private, "@", []string{"198.51.100.7"}, "@"},
		{"a peer with a name", private, "pipe:1", []string{"198.51.100.7"}, "pipe"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var proxies Proxies
			for _, p := range row.trusted {
				proxies = append(proxies, netip.MustParsePrefix(p))
			}
			r := &http.Request{RemoteAddr: row.peer, Header: http.Header{}}
			for _, h := range row.headers {
				r.Header.Add("X-Forwarded-For", h)
			}
			if got, _ := proxies.Origin(r); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// Otherwise an operator could not match the lines of the proxy's log with those of the service's.
func TestOnlyATrustedProxyGivesARequestItsID(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", maxRequestID)
	for _, row := range []struct {
		name string
		peer string
		ids  []string
		want string
	}{
		{"nginx", "127.0.0.1:1", []string{"0af7651916cd43dd8448eb211c80319c"}, "0af7651916cd43dd8448eb211c80319c"},
		{"a UUID", "127.0.0.1:1", []string{"7B1F0A4C-8d2e-4c6b-9d7d-2f4f5a1b3c9e"}, "7B1F0A4C-8d2e-4c6b-9d7d-2f4f5a1b3c9e"},
		{"base64 and an address", "127.0.0.1:1", []string{"a+/~_=.@10.0.0.1:80"}, "a+/~_=.@10.0.0.1:80"},
		{"the longest", "127.0.0.1:1", []string{long}, long},
		{"a longer one", "127.0.0.1:1", []string{long + "a"}, ""},
		{"a space", "127.0.0.1:1", []string{"a b"}, ""},
		{"a line break", "127.0.0.1:1", []string{"a\nb"}, ""},
		{"a quote", "127.0.0.1:1", []string{`a"b`}, ""},
		{"a list", "127.0.0.1:1", []string{"a,b"}, ""},
		{"a letter that is not ASCII", "127.0.0.1:1", []string{"\u017f"}, ""},
		{"two headers", "127.0.0.1:1", []string{"a", "b"}, ""},
		{"an empty header", "127.0.0.1:1", []string{""}, ""},
		{"no header", "127.0.0.1:1", nil, ""},
		{"a stranger", "192.0.2.1:1", []string{"a"}, ""},
		{"a peer without an address", "@", []string{"a"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			proxies := Proxies{netip.MustParsePrefix("127.0.0.1/32")}
			if _, got := proxies.Origin(&http.Request{RemoteAddr: row.peer, Header: http.Header{"X-Request-Id": row.ids}}); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

func FuzzClientAddress(f *testing.F) {
	for _, peer := range []string{"10.0.0.1:1", "192.0.2.1:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:80", "@", ""} {
		for _, header := range []string{"", "198.51.100.7", "203.0.113.5, 198.51.100.7 ,10.0.0.2", "::ffff:10.0.0.1", "fe80::1%eth0", ",,", "10.0.0.1\r\n", "[::1]:5", "[2001:db8::1]", "[", "[]", " , ,", strings.Repeat("10.0.0.1,", 500)} {
			f.Add(peer, header)
		}
	}
	f.Add("[fe80::1%eth0]:1", "")
	trusted := netip.MustParsePrefix("10.0.0.0/8")
	var closed Proxies
	open := Proxies{trusted, netip.MustParsePrefix("fd00::/8")}
	f.Fuzz(func(t *testing.T, peer, header string) {
		r := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {header}}}
		direct, _ := closed.Origin(r)
		if host, _, err := net.SplitHostPort(peer); err == nil && direct != host {
			t.Errorf("without a trusted proxy the client of %q is %q", peer, direct)
		}
		got, _ := open.Origin(r)
		address, err := netip.ParseAddr(got)
		if err != nil && got != direct {
			t.Errorf("%q behind %q is %q, no address", header, peer, got)
		}
		if peerAddr, err := netip.ParseAddr(direct); err == nil && !open.contain(peerAddr) && address != peerAddr.Unmap() {
			t.Errorf("the peer %q is not trusted, and its %q made it %q", peer, header, got)
		}
	})
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.7", "192.0.2.255", true},
		{"192.0.2.7", "192.0.3.7", false},
		{"::ffff:192.0.2.7", "192.0.2.8", true},
		{"2001:db8:1:2::7", "2001:db8:1:2:ffff::", true},
		{"2001:db8:1:2::7", "2001:db8:1:3::7", false},
		{"fe80::1%eth0", "fe80::2", true},
		{"::1", "127.0.0.1", false},
		{"a name", "another", false},
	} {
		if same := Network(row.a) == Network(row.b); same != row.same {
			t.Errorf("%s and %s: one network: %t, want %t", row.a, row.b, same, row.same)
		}
		if same := SameNetwork(row.a)(row.b); same != row.same {
			t.Errorf("%s and %s: SameNetwork reports %t", row.a, row.b, same)
		}
	}
}

func FuzzNetwork(f *testing.F) {
	for _, address := range []string{"192.0.2.1", "::ffff:10.0.0.1", "2001:db8::7", "fe80::1%eth0", "@", ""} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, err := netip.ParseAddr(text)
		whole, wrong := netip.ParsePrefix(Network(text))
		if err == nil && (wrong != nil || !whole.Contains(address.Unmap().WithZone(""))) {
			t.Errorf("the network of %s is %s, %v", text, Network(text), wrong)
		}
	})
}
