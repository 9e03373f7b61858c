package netlisten

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestASystemdThatHangsHoldsNobody(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unixgram", name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for err == nil { // until its queue is full
		_, err = conn.Write([]byte("STATUS=busy"))
	}
	t.Setenv("NOTIFY_SOCKET", name)
	told := make(chan error, 1)
	go func() { told <- Notify("READY=1") }()
	if err := <-told; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
