package netlisten

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the tests run Listen in a process of its own: it reads file
// descriptor 3 and compares process ids.
func TestMain(m *testing.M) {
	if addr := os.Getenv("NETLISTEN_TEST_ADDR"); addr != "" {
		listenAndReport(addr)
		return
	}
	os.Exit(m.Run())
}

// listenAndReport prints the outcome of Listen, how many sockets are open then,
// and systemd's variables that are still set.
func listenAndReport(addr string) {
	l, activated, err := Listen(addr)
	switch {
	case errors.Is(err, ErrSocket):
		fmt.Println("ErrSocket:", err)
	case err != nil:
		fmt.Println("error:", err)
	default:
		fmt.Println("address:", l.Addr())
		fmt.Println("activated:", activated)
	}
	fmt.Println("sockets:", openSockets())
	for _, variable := range os.Environ() {
		if strings.HasPrefix(variable, "LISTEN_") {
			fmt.Println("variable:", variable)
		}
	}
}

// openSockets returns how many sockets the process has open.
func openSockets() (n int) {
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, name := range names {
		if target, err := os.Readlink(name); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// listenWith runs Listen in a process that has the files as systemd passes them:
// from descriptor 3 on. Only the shell knows the process id for LISTEN_PID.
func listenWith(t *testing.T, addr, pid string, files ...*os.File) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "LISTEN_PID="+pid+` exec "$0"`, self)
	cmd.Env = []string{"NETLISTEN_TEST_ADDR=" + addr, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES=x"}
	cmd.ExtraFiles = files
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return string(out)
}

func fileOf(t *testing.T, socket interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func tcpSocket(t *testing.T) (file *os.File, address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return fileOf(t, l.(*net.TCPListener)), l.Addr().String()
}

func TestListenTakesTheSocketOfSystemd(t *testing.T) {
	t.Parallel()
	socket, address := tcpSocket(t)
	// It could not listen on this address.
	if got, want := listenWith(t, "127.0.0.1:1", "$$", socket), "address: "+address+"\nactivated: true\nsockets: 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestListenLeavesTheSocketOfAnotherProcess(t *testing.T) {
	t.Parallel()
	socket, address := tcpSocket(t)
	got := listenWith(t, "127.0.0.1:0", "1", socket)
	if !strings.HasPrefix(got, "address: 127.0.0.1:") || strings.Contains(got, address) || !strings.HasSuffix(got, "\nactivated: false\nsockets: 2\n") {
		t.Errorf("got %q", got)
	}
}

func TestListenRefusesOtherSockets(t *testing.T) {
	t.Parallel()
	tcp, _ := tcpSocket(t)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	local, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	for _, c := range []struct {
		claim, says string
		open        int
		files       []*os.File
	}{
		{"none", "it passed 0 sockets instead of 1; change the socket unit", 0, nil},
		{"two", "it passed 2 sockets instead of 1", 2, []*os.File{tcp, tcp}},
		{"datagrams", "file+net", 0, []*os.File{fileOf(t, udp.(*net.UDPConn))}},
		{"the file system", "its network is unix instead of tcp", 0, []*os.File{fileOf(t, local.(*net.UnixListener))}},
	} {
		got := listenWith(t, "127.0.0.1:0", "$$", c.files...)
		if !strings.HasPrefix(got, "ErrSocket: unusable socket from systemd: ") || !strings.Contains(got, c.says) || !strings.HasSuffix(got, fmt.Sprintf("\nsockets: %d\n", c.open)) {
			t.Errorf("%s: got %q", c.claim, got)
		}
	}
}

func TestListenReturnsTheSystemsError(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, activated, err := Listen(l.Addr().String()); err == nil || activated || errors.Is(err, ErrSocket) {
		t.Errorf("the address is in use, and Listen returned %v", err)
	}
}

func TestNotifySendsTheState(t *testing.T) {
	t.Parallel()
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@netlisten-test-%d", os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := notify(name, "READY=1", 10*time.Second); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		buf := make([]byte, 100)
		if n, err := l.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
			t.Errorf("%s: got %q, %v", name, buf[:n], err)
		}
	}
}

func TestNotifyReadsItsSocketFromTheEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "missing"))
	if err := Notify("READY=1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the socket: %v", err)
	}
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	before := openSockets()
	if err := Notify("READY=1"); err != nil {
		t.Error(err)
	}
	if after := openSockets(); after > before {
		t.Errorf("Notify left %d sockets open", after-before)
	}
}

func TestNotifyDoesNotWaitForASystemdThatHangs(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Its queue is full when a new socket cannot send anything: before that, the buffer of a
	// socket can be full.
	for sent := 1; sent > 0; {
		conn, err := net.Dial("unixgram", name)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		sent = -1
		raw.Write(func(fd uintptr) bool {
			for err == nil {
				_, err = syscall.Write(int(fd), []byte("STATUS=busy"))
				sent++
			}
			return true
		})
		if err != syscall.EAGAIN {
			t.Fatal(err)
		}
	}
	if err := notify(name, "READY=1", 10*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
