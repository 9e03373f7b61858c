package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// handed makes a command of userdCommand find files as systemd hands sockets
// over: from file descriptor 3 on, and with its own process id in LISTEN_PID,
// which only a shell in between knows.
func handed(cmd *exec.Cmd, files ...*os.File) *exec.Cmd {
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)))
	cmd.ExtraFiles = files
	return cmd
}

// tcpSocket returns a listening socket, as systemd would open it.
func tcpSocket(t *testing.T) (*os.File, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fileOf(t, l.(*net.TCPListener)), l.Addr().String()
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

// spawnLoggingTo is spawn with a standard error of its own, on a socket that is
// handed over, since no line of the log can say where it serves.
func spawnLoggingTo(t *testing.T, stderr *os.File) *process {
	t.Helper()
	socket, address := tcpSocket(t)
	cmd := handed(userdCommand(t, t.TempDir(), []string{"LOG_LEVEL=debug"}), socket)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, url: "http://" + address, client: new(http.Client), exited: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.exited
	})
	return p
}

func TestASocketOfSystemdIsServedAcrossARestart(t *testing.T) {
	t.Parallel()
	socket, address := tcpSocket(t)
	dir := t.TempDir()
	p := spawn(t, handed(userdCommand(t, dir, []string{"ADDR=127.0.0.1:1"}), socket)) // which it could not open
	p.awaitServing()
	if p.url != "http://"+address {
		t.Fatalf("it serves on %s, want %s", p.url, address)
	}
	p.register("ann")
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Fatalf("exit status %d:\n%s", status, strings.Join(p.log(), "\n"))
	}

	conn, err := net.Dial("tcp", address) // while no userd runs
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /api/test HTTP/1.0\r\n\r\n")
	again := spawn(t, handed(userdCommand(t, dir, nil), socket))
	again.awaitServing()
	conn.SetDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 200 ") {
		t.Errorf("who came meanwhile got %q, %v", answer, err)
	}
}

func TestAWrongSocketFromSystemdIsAWrongSetting(t *testing.T) {
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
		files       []*os.File
	}{
		{"two sockets", "it passed 2 sockets", []*os.File{tcp, tcp}},
		{"one of datagrams", "unusable socket from systemd", []*os.File{fileOf(t, udp.(*net.UDPConn))}},
		{"one of the file system", "its network is unix", []*os.File{fileOf(t, local.(*net.UnixListener))}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			p := spawn(t, handed(userdCommand(t, t.TempDir(), nil), c.files...))
			receive(t, "userd exits", p.exited)
			r := result{p.cmd.ProcessState.ExitCode(), "", strings.Join(p.log(), "\n") + "\n"}
			r.wantFailure(t, 2, c.says)
		})
	}
}

func TestASocketForAnotherProcessIsLeftAlone(t *testing.T) {
	t.Parallel()
	socket, address := tcpSocket(t)
	cmd := userdCommand(t, t.TempDir(), []string{"LISTEN_FDS=1", "LISTEN_PID=1"})
	cmd.ExtraFiles = []*os.File{socket}
	p := spawn(t, cmd)
	p.awaitServing()
	if p.url == "http://"+address {
		t.Error("it serves on the socket")
	}
	p.must("", "GET", "/api/test", "").want(t, 200, "")
}

func TestSystemdIsToldWhenItServesAndWhenItStops(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@userd-test-%d", os.Getpid())} {
		t.Run(name[:1], func(t *testing.T) {
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			l.SetReadDeadline(time.Now().Add(patience))
			hear := func(want string) {
				t.Helper()
				buf := make([]byte, 100)
				if n, err := l.Read(buf); err != nil || string(buf[:n]) != want {
					t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
				}
			}
			socket, address := tcpSocket(t)
			p := spawn(t, handed(userdCommand(t, t.TempDir(), []string{"NOTIFY_SOCKET=" + name}), socket))
			hear("READY=1")
			p.url = "http://" + address
			p.must("", "GET", "/api/test", "").want(t, 200, "")
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			hear("STOPPING=1")
			receive(t, "userd exits", p.exited)
			if status := p.cmd.ProcessState.ExitCode(); status != 0 {
				t.Errorf("exit status %d", status)
			}
			l.SetReadDeadline(time.Now())
			if n, err := l.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes more, %v", n, err)
			}
		})
	}
}

func TestASystemdThatDoesNotListenCausesOnlyWarnings(t *testing.T) {
	t.Parallel()
	p := startUserd(t, t.TempDir(), []string{"NOTIFY_SOCKET=/nowhere/notify"})
	warned := func(state string) {
		t.Helper()
		await(t, "a warning about "+state, func() bool {
			log := strings.Join(p.log(), "\n")
			return strings.Contains(log, `"msg":"could not notify systemd","state":"`+state+`"`)
		})
	}
	warned("READY=1")
	p.must("", "GET", "/api/test", "").want(t, 200, "")
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d", status)
	}
	warned("STOPPING=1")
}
