package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// openTerminal returns the two ends of a pseudo-terminal: keyboard is what a person types
// and sees, and device is what a program opens.
func openTerminal(t *testing.T) (keyboard, device *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	var number, locked int32
	for request, value := range map[uintptr]*int32{syscall.TIOCGPTN: &number, syscall.TIOCSPTLCK: &locked} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, keyboard.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	device, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { device.Close() })
	return keyboard, device
}

func TestOnATerminalANewPasswordIsAskedForTwice(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "root")
	environ := getenvOf([]string{"DATABASE_URL=" + path})
	for _, c := range []struct{ args, typed, fault string }{
		{"user add ann ann@example.com", goodPassword + "\n" + goodPassword + "\n", ""},
		{"user add bob bob@example.com", goodPassword + "\n" + goodPassword + "x\n", "the two passwords differ"},
		{"user add bob bob@example.com", goodPassword + "\n\n", "no password on standard input"},
		{"user passwd root", goodPassword + "\n" + goodPassword + "x\n", "the two passwords differ"},
		{"user passwd root", goodPassword + "\n" + goodPassword + "\n", ""},
	} {
		keyboard, device := openTerminal(t)
		if _, err := io.WriteString(keyboard, c.typed); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		err := run(t.Context(), strings.Fields(c.args), environ, device, io.Discard, &stderr)
		if (err == nil) != (c.fault == "") || err != nil && err.Error() != c.fault {
			t.Errorf("userd %s: %v", c.args, err)
		}
		if want := "Password: \nThe same password again: \n"; stderr.String() != want {
			t.Errorf("userd %s prints %q", c.args, stderr.String())
		}
	}
	if names := usernames(t, openTestStore(t, path)); strings.Join(names, " ") != "root ann" {
		t.Errorf("the users are %v", names)
	}
}

// A prompter is the output of a command. It calls interrupt when the command asks for input.
type prompter struct {
	bytes.Buffer
	interrupt func()
}

func (p *prompter) Write(text []byte) (int, error) {
	if strings.HasSuffix(string(text), ": ") {
		p.interrupt()
	}
	return p.Buffer.Write(text)
}

func TestAnInterruptEndsACommandThatWaitsForInput(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "root")
	environ := getenvOf([]string{"DATABASE_URL=" + path})
	for _, args := range []string{"user add ann ann@example.com", "user passwd root", "user totp -on root"} {
		_, device := openTerminal(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := run(ctx, strings.Fields(args), environ, device, io.Discard, &prompter{interrupt: cancel})
		if err == nil || err.Error() != "interrupted" || exitStatus(err) != 1 {
			t.Errorf("userd %s ends with %v", args, err)
		}
		var settings syscall.Termios
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, device.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&settings))); errno != 0 {
			t.Fatal(errno)
		}
		if settings.Lflag&syscall.ECHO == 0 {
			t.Errorf("after userd %s the terminal does not show what is typed", args)
		}
	}
	for _, args := range []string{"user passwd root", "user import -"} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		in := readerFunc(func([]byte) (int, error) { // of another program, which sends nothing
			cancel()
			<-t.Context().Done()
			return 0, io.EOF
		})
		if err := run(ctx, strings.Fields(args), environ, in, io.Discard, io.Discard); err == nil || err.Error() != "interrupted" {
			t.Errorf("userd %s ends with %v", args, err)
		}
	}
}

func TestUserAddChecksTheNameAndTheAddressBeforeItAsksForThePassword(t *testing.T) {
	t.Parallel()
	environ := getenvOf([]string{"DATABASE_URL=" + makeStore(t, "root")})
	for args, fault := range map[string]string{
		"user add NAME EMAIL":               "email must be an address",
		"user add ann! ann@example.com":     "username must be",
		"user add -admin ann ann@example..": "email must be an address",
	} {
		keyboard, device := openTerminal(t)
		if _, err := io.WriteString(keyboard, goodPassword+"\n"+goodPassword+"\n"); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		err := run(t.Context(), strings.Fields(args), environ, device, io.Discard, &stderr)
		if err == nil || !strings.Contains(err.Error(), fault) || stderr.Len() > 0 {
			t.Errorf("userd %s prints %q, and ends with %v", args, stderr.String(), err)
		}
	}
}

func TestAnExportIsNotPrintedToATerminal(t *testing.T) {
	t.Parallel()
	environ := getenvOf([]string{"DATABASE_URL=" + makeStore(t, "root")})
	_, device := openTerminal(t)
	for _, args := range []string{"user export", "user export -ndjson", "backup -"} {
		err := run(t.Context(), strings.Fields(args), environ, strings.NewReader(""), device, io.Discard)
		if err == nil || exitStatus(err) != 2 || !strings.Contains(err.Error(), "to a terminal") {
			t.Errorf("userd %s: %v", args, err)
		}
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		if err := run(t.Context(), strings.Fields(args), environ, strings.NewReader(""), null, io.Discard); err != nil {
			t.Errorf("userd %s >%s: %v", args, os.DevNull, err)
		}
	}
}

func TestLongCommandsShowTheirStepsOnATerminal(t *testing.T) {
	t.Parallel()
	users := filepath.Join(t.TempDir(), "users.csv")
	writeFile(t, users, []byte("username,email,password\nbob,bob@example.com,"+goodPassword+"\n"))
	app, other := makeStore(t, "ann"), makeStore(t, "ann")
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, c := range []struct {
		database string
		args     []string
		steps    []string
	}{
		{app, []string{"backup", copied}, []string{"copying the database, in MB", "checking the copy"}},
		{app, []string{"backup", "-"}, []string{"copying the database, in MB", "checking the copy", "writing the copy, in MB"}},
		{makeStore(t), []string{"check"}, []string{"checking the pages", "checking users"}},
		{other, []string{"restore", copied}, []string{"reading the backup, in MB", "checking the backup", "copying the database, in MB", "checking the copy"}},
		{flaskDatabase(t), []string{"adopt"}, []string{"copying the database, in MB", "checking the copy"}},
		{app, []string{"user", "import", users}, []string{"importing 1 users"}},
	} {
		environ := getenvOf([]string{"DATABASE_URL=" + c.database})
		keyboard, device := openTerminal(t)
		err := run(t.Context(), c.args, environ, strings.NewReader(""), io.Discard, device)
		device.Close()
		shown, _ := io.ReadAll(keyboard) // which ends with EIO
		rest := string(shown)
		for _, step := range c.steps {
			_, after, found := strings.Cut(rest, "\r\x1b[K"+step)
			if err != nil || !found {
				t.Errorf("userd %s: %v, prints %q, want %q", c.args, err, shown, step)
			}
			rest = after
		}
		lines, last := strings.Split(rest, "\r\x1b[K"), c.steps[len(c.steps)-1]
		for i, line := range lines {
			// A step that takes seconds is shown again.
			if i > 0 && i < len(lines)-1 && !strings.HasPrefix(line, last) || strings.Contains(line, "\x1b") {
				t.Errorf("userd %s prints %q after its last step", c.args, line)
			}
		}
	}
}
