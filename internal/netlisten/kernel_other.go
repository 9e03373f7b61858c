//go:build !linux

package netlisten

import "net"

// kernelBytes returns false: it cannot ask this system.
func kernelBytes(net.Conn) (n int64, ok bool) { return 0, false }
