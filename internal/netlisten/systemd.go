package netlisten

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// ErrSocket means that systemd passed something other than one listening TCP
// socket. Listen wraps it.
var ErrSocket = errors.New("unusable socket from systemd")

// Listen listens on the TCP address addr. If systemd passed this process a socket
// (sd_listen_fds(3)), Listen returns that socket, with activated true, and ignores
// addr. systemd keeps the socket open while the service restarts, so it refuses no
// client. Listen removes systemd's variables from the environment, so that child
// processes do not see them.
func Listen(addr string) (l net.Listener, activated bool, err error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) { // the socket, if any, is for another process
		l, err := net.Listen("tcp", addr)
		return l, false, err
	}
	if count != "1" {
		return nil, true, fmt.Errorf("%w: it passed %s sockets instead of 1; change the socket unit", ErrSocket, count)
	}
	file := os.NewFile(3, "socket") // SD_LISTEN_FDS_START
	defer file.Close()              // the listener has a copy
	l, err = net.FileListener(file)
	if err != nil {
		return nil, true, fmt.Errorf("%w: %w; change the socket unit", ErrSocket, err)
	}
	if _, ok := l.(*net.TCPListener); !ok {
		l.Close()
		return nil, true, fmt.Errorf("%w: its network is %s instead of tcp; change the socket unit", ErrSocket, l.Addr().Network())
	}
	return l, true, nil
}

// Notify tells systemd the state of the service, such as READY=1 (sd_notify(3)).
// Without systemd it does nothing. It waits at most a second if systemd does not
// read.
func Notify(state string) error {
	return notify(os.Getenv("NOTIFY_SOCKET"), state, time.Second)
}

func notify(socket, state string, timeout time.Duration) error {
	if socket == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", socket) // a leading @ means the abstract namespace
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(timeout))
	_, err = conn.Write([]byte(state))
	return err
}
