package netlisten

import (
	"net"
	"syscall"
)

// soMemInfo is SO_MEMINFO, and the constants are positions in its answer
// (linux/sock_diag.h).
const (
	soMemInfo  = 55
	rmemAlloc  = 0 // received, and not yet read by the process
	wmemQueued = 5 // written, and not yet received by the client
)

// kernelBytes returns how much memory the kernel holds for the data of a TCP
// connection, sent and received. It returns false if conn is not an open TCP connection.
func kernelBytes(conn net.Conn) (n int64, ok bool) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	ok = false
	raw.Control(func(fd uintptr) {
		// Package syscall has no function for this option. This one reads eight
		// words too, and SO_MEMINFO writes as many as it is asked for.
		info, err := syscall.GetsockoptICMPv6Filter(int(fd), syscall.SOL_SOCKET, soMemInfo)
		if err == nil {
			n, ok = int64(info.Data[rmemAlloc])+int64(info.Data[wmemQueued]), true
		}
	})
	return n, ok
}
