package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"userd/internal/netlisten"
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

func TestASocketForAnotherProcessIsNotUsed(t *testing.T) {
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

func TestSystemdIsNotifiedOfStartAndStop(t *testing.T) {
	t.Parallel()
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
			if _, err := l.WriteTo([]byte("no more from userd"), l.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			hear("no more from userd")
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

// pipe returns both ends of a pipe, which end with the test.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// servesOn fails the test unless userd answers and ends as if it had a log.
func (p *process) servesOn() {
	p.t.Helper()
	p.register("ann")
	p.login("ann", goodPassword)
	p.must("", "GET", "/api/test", "").want(p.t, 200, "")
	if status := p.end(syscall.SIGTERM); status != 0 {
		p.t.Errorf("exit status %d, want 0", status)
	}
}

// Go ends a process that writes to a standard error without a reader, as a
// command in a pipeline should.
func TestALogWhoseReaderHasGoneDoesNotEndIt(t *testing.T) {
	t.Parallel()
	r, w := pipe(t)
	p := spawnLoggingTo(t, w)
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	p.servesOn()
}

// A full pipe stops only the request whose line has no room in it. The others and
// the end continue without their lines, and the log says how many were lost.
func TestALogWithoutAReaderStopsAtMostOneRequest(t *testing.T) {
	t.Parallel()
	r, w := pipe(t)
	p := spawnLoggingTo(t, w)
	p.register("ann")
	token := p.login("ann", goodPassword)
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	conn.Control(func(fd uintptr) { // it is userd's too
		for _, size := range []int{4096, 1} { // to the last byte
			for err = syscall.SetNonblock(int(fd), true); err == nil; {
				_, err = syscall.Write(int(fd), bytes.Repeat([]byte("\n"), size))
			}
		}
		syscall.SetNonblock(int(fd), false)
	})
	if err != syscall.EAGAIN {
		t.Fatal(err)
	}

	answers := make(chan error, 8)
	for range cap(answers) {
		go func() {
			_, err := p.ask(token, "GET", "/api/users/me", "")
			answers <- err
		}()
	}
	answered := func(n int) {
		t.Helper()
		for range n {
			if err := receive(t, "a request is answered", answers); err != nil {
				t.Error(err)
			}
		}
	}
	answered(cap(answers) - 1)
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")

	lines := bufio.NewScanner(r)
	next := func() (record map[string]any) {
		for lines.Scan() {
			if json.Unmarshal(lines.Bytes(), &record) == nil {
				return record
			}
		}
		t.Fatal("the log has ended")
		return nil
	}
	r.SetReadDeadline(time.Now().Add(patience))
	for next()["route"] != "GET /api/users/{id}" {
	}
	answered(1)
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	if record := next(); record["lost_before"] != float64(cap(answers)) {
		t.Errorf("after %d lost lines the log says %v", cap(answers), record)
	}
	p.must(token, "GET", "/api/users/me", "").want(t, 200, "")
	if record := next(); record["lost_before"] != nil {
		t.Errorf("and again %v", record)
	}
	go io.Copy(io.Discard, r)
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// With descriptor 2 closed, the next file that is opened, such as the database,
// could take its place; Go opens another there first.
func TestWithoutAStandardErrorTheLogGoesNowhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket, address := tcpSocket(t)
	cmd := handed(userdCommand(t, dir, nil), socket)
	cmd.Args[2] += " 2>&-"
	p := spawn(t, cmd)
	p.url = "http://" + address
	p.servesOn()
	if names := usernames(t, openTestStore(t, filepath.Join(dir, "app.db"))); len(names) != 1 || len(p.log()) > 0 {
		t.Errorf("the users are %v, want ann; the log is %q", names, p.log())
	}
}

func TestACommandWhoseReaderHasGoneEndsQuietly(t *testing.T) {
	t.Parallel()
	cmd := userdCommand(t, t.TempDir(), []string{"DATABASE_URL=" + makeStore(t, "ann")}, "user", "list")
	r, w := pipe(t)
	r.Close()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	err, _ := cmd.Run().(*exec.ExitError)
	if err == nil || err.Sys().(syscall.WaitStatus).Signal() != syscall.SIGPIPE || stderr.Len() > 0 {
		t.Errorf("it came to %v and said %q; in a pipeline, SIGPIPE is how a command ends", err, stderr.String())
	}
}

func TestALogOnAFullDiskDoesNotEndIt(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	spawnLoggingTo(t, full).servesOn()
}

// Log collectors read each write as a line, and the lines of several processes in one file
// must not mix.
func TestEachLineOfTheLogIsOneWrite(t *testing.T) {
	t.Parallel()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0) // keeps writes apart
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), "log"), os.NewFile(uintptr(pair[1]), "log")
	defer theirs.Close()
	defer ours.Close()
	p := spawnLoggingTo(t, theirs)
	theirs.Close()
	p.servesOn()
	lines := 0
	for buf := make([]byte, 64<<10); ; lines++ {
		n, err := ours.Read(buf)
		if err != nil || n == 0 { // it has exited
			break
		}
		line, whole := bytes.CutSuffix(buf[:n], []byte("\n"))
		if !whole || !json.Valid(line) {
			t.Errorf("one write of %q", buf[:n])
		}
	}
	if lines < 6 {
		t.Errorf("%d lines", lines)
	}
}

// logrotate's copytruncate cuts the file off while userd has it open.
func TestALogFileThatIsTruncatedHasNoHole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "userd.log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := spawnLoggingTo(t, file)
	p.register("bob")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	p.servesOn()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var last struct{ Msg string }
	for line := range strings.Lines(string(log)) {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Errorf("%v: %q", err, line)
		}
	}
	if last.Msg != "stopped" {
		t.Errorf("the last line says %q, want stopped", last.Msg)
	}
}

// A recorder keeps the connections that a listener accepts.
type recorder struct {
	net.Listener
	mu    sync.Mutex
	conns []*net.TCPConn
}

func (r *recorder) Accept() (net.Conn, error) {
	conn, err := r.Listener.Accept()
	if err == nil {
		r.mu.Lock()
		r.conns = append(r.conns, conn.(*net.TCPConn))
		r.mu.Unlock()
	}
	return conn, err
}

// held returns how many bytes the kernel holds for the open connections: those that
// were received and not read, and those that were sent and not received.
func (r *recorder) held() (total int64) {
	const soMemInfo, rmemAlloc, wmemQueued = 55, 0, 5
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		if raw, err := conn.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { // fails if it is closed
				if info, err := syscall.GetsockoptICMPv6Filter(int(fd), syscall.SOL_SOCKET, soMemInfo); err == nil {
					total += int64(info.Data[rmemAlloc]) + int64(info.Data[wmemQueued])
				}
			})
		}
	}
	return total
}

// TestUnreadAnswersAreBoundedTogether lets clients of all connections but one send
// requests and read nothing. With -faults these are as many as the server allows,
// and nine of ten honest requests must then be answered within a second.
func TestUnreadAnswersAreBoundedTogether(t *testing.T) {
	most, duration := 256, 200*time.Millisecond
	if *faults {
		most, duration = maxConnections, 10*time.Second
	}
	s := newService(t)
	s.keepLog()
	_, token := s.member("ann")
	for i := range 2 * listPage {
		name := fmt.Sprint("user", i)
		u := user{username: name, email: name + "@example.com", role: member}
		if err := s.store.addUser(t.Context(), console, &u, "hash", 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name, path, token string
		times             int
		end               string
	}{
		{"small", "/api/users", "", 50, ""},
		{"medium", "/openapi.json", "", 16, ""},
		{"large", "/api/users", token, 16, ""},
		{"last", "/openapi.json", "", 1, "Connection: close\r\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			r := &recorder{Listener: inner}
			web := newHTTPServer(s.server)
			defer web.Close()
			go web.Serve(netlisten.Limit(r, most))
			request := "GET " + row.path + " HTTP/1.1\r\nHost: userd\r\n" + row.end
			if row.token != "" {
				request += "Authorization: Bearer " + row.token + "\r\n"
			}
			request = strings.Repeat(request+"\r\n", row.times)
			small := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
			}}
			var senders sync.WaitGroup
			defer senders.Wait()
			for range most - 1 {
				conn, err := small.Dial("tcp", inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				senders.Go(func() {
					conn.SetWriteDeadline(time.Now().Add(duration))
					io.WriteString(conn, request)
				})
			}
			honest := &http.Client{Timeout: patience}
			var peak int64
			var took []time.Duration
			for end := time.Now().Add(duration); len(took) == 0 || time.Now().Before(end); time.Sleep(time.Millisecond) {
				req, err := http.NewRequest("GET", "http://"+inner.Addr().String()+"/api/users/me", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+token)
				start := time.Now()
				resp, err := honest.Do(req)
				if err != nil {
					t.Fatalf("an honest client: %v", err)
				}
				resp.Body.Close()
				took = append(took, time.Since(start))
				peak = max(peak, r.held())
			}
			await(t, "the kernel holds something", func() bool {
				peak = max(peak, r.held())
				return peak > 0
			})
			slices.Sort(took)
			if slow := took[len(took)*9/10]; *faults && slow > time.Second {
				t.Errorf("one of ten honest requests took at least %v", slow)
			}
			if limit := int64(most) * (64 << 20) / maxConnections; peak > limit {
				t.Errorf("the kernel held %d bytes, want at most %d", peak, limit)
			}
		})
	}
}
