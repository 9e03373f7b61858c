// Package clientaddr finds the address of the client of an HTTP request, and the id of the
// request, behind reverse proxies, and the network of an address.
//
// A client can send any X-Forwarded-For and X-Request-Id. These headers count only if a proxy
// that the operator trusts has sent them, and X-Forwarded-For is read from the right, because
// each proxy appends the address of its peer.
package clientaddr

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Proxies are the networks of the trusted proxies, as unmapped prefixes.
type Proxies []netip.Prefix

// Origin returns the address of the client and the request's id. The peer sends
// both if it is a trusted proxy. Otherwise the address is the peer's, and the id is
// empty. If the peer has no IP address, the address is the text that net/http has.
func (p Proxies) Origin(r *http.Request) (client, id string) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr, ""
	}
	if len(p) == 0 {
		return host, ""
	}
	peer, err := netip.ParseAddr(host)
	if err != nil {
		return host, ""
	}
	if p.contain(peer) {
		id = requestID(r)
	}
	return p.forwardedFor(r, peer), id
}

// maxRequestID is the largest length of an id that a proxy may give to a request.
const maxRequestID = 128

// requestID returns the request's X-Request-Id, or "" if it is absent, too long,
// ambiguous, or has a character other than those of UUIDs, base64 and trace ids.
func requestID(r *http.Request) string {
	ids := r.Header["X-Request-Id"]
	if len(ids) != 1 || len(ids[0]) > maxRequestID {
		return ""
	}
	for _, c := range []byte(ids[0]) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && strings.IndexByte("-._~+/=:@", c) < 0 {
			return ""
		}
	}
	return ids[0]
}

// forwardedFor returns the address of the client: that of the peer or, if the
// peer is a trusted proxy, the last address in X-Forwarded-For that is not a
// trusted proxy. The client could have sent any addresses to the left of it. Empty
// elements do not count (RFC 9110 section 5.6.1.2).
func (p Proxies) forwardedFor(r *http.Request, address netip.Addr) string {
	forwarded := strings.Join(r.Header["X-Forwarded-For"], ",")
	for p.contain(address) && forwarded != "" {
		i := strings.LastIndexByte(forwarded, ',')
		hop := strings.TrimSpace(forwarded[i+1:])
		forwarded = forwarded[:max(i, 0)]
		if hop == "" {
			continue
		}
		next, ok := parseHop(hop)
		if !ok {
			break
		}
		address = next.WithZone("") // a zone has no limit
	}
	return address.Unmap().String()
}

// parseHop reads an address as proxies write it: with or without a port, and an
// IPv6 address with or without brackets.
func parseHop(hop string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(hop, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			address, err := netip.ParseAddr(inner)
			return address, err == nil && address.Is6()
		}
	}
	if address, err := netip.ParseAddr(hop); err == nil {
		return address, true
	}
	withPort, err := netip.ParseAddrPort(hop)
	return withPort.Addr(), err == nil
}

// contain reports whether the address is that of a trusted proxy.
func (p Proxies) contain(address netip.Addr) bool {
	address = address.Unmap().WithZone("") // a prefix has no zone
	return slices.ContainsFunc(p, func(proxy netip.Prefix) bool { return proxy.Contains(address) })
}

// Network returns the network of a client's address, a /24 of IPv4 or a /64 of IPv6, or the
// text itself if it is not an address. A client that has one address of such a network usually
// has all.
func Network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	a = a.Unmap()
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits) // no address has fewer bits
	return p.String()
}

// SameNetwork returns a function that reports whether another address has the same Network.
func SameNetwork(address string) func(other string) bool {
	from := Network(address)
	return func(other string) bool { return Network(other) == from }
}
