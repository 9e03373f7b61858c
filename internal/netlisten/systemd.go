package netlisten

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// ErrSocket is the error of a socket that systemd should not hand over.
var ErrSocket = errors.New("the socket of systemd")

// Listen opens addr, or takes the socket that systemd has opened instead
// (sd_listen_fds(3)): it stays open while userd is started again, and nobody is
// turned away.
func Listen(addr string) (net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name) // they are not for a child
	}
	if pid != strconv.Itoa(os.Getpid()) { // they were not for us
		return net.Listen("tcp", addr)
	}
	if count != "1" {
		return nil, fmt.Errorf("%w: systemd hands over %s sockets, and userd takes one", ErrSocket, count)
	}
	file := os.NewFile(3, "the socket of systemd")
	defer file.Close() // the listener has a copy
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSocket, err)
	}
	if _, ok := l.(*net.TCPListener); !ok {
		l.Close()
		return nil, fmt.Errorf("%w: it is of %s, not of TCP", ErrSocket, l.Addr().Network())
	}
	return l, nil
}

// Notify tells systemd, where that has started userd, how it is (sd_notify(3)).
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", name) // an @ begins an abstract name
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(time.Second)) // for one that does not read
	_, err = conn.Write([]byte(state))
	return err
}
