package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode/utf8"
)

// A table prints rows with aligned columns. It holds at most tableBlock rows, so
// that a list of any length needs little memory. Columns never get narrower.
type table struct {
	w      io.Writer
	widths []int
	rows   [][]string // not printed yet
}

const tableBlock = 500

func newTable(w io.Writer, titles ...any) *table {
	t := &table{w: w, widths: make([]int, len(titles))}
	t.row(titles...)
	return t
}

// row adds a row. It makes texts safe for a terminal.
func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = printable(fmt.Sprint(cell))
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(row[i]))
	}
	if t.rows = append(t.rows, row); len(t.rows) == tableBlock {
		t.flush()
	}
}

// flush prints the rows that were added since the last flush.
func (t *table) flush() error {
	var text strings.Builder
	for _, row := range t.rows {
		last := len(row) - 1
		for i, cell := range row[:last] {
			fmt.Fprintf(&text, "%-*s  ", t.widths[i], cell)
		}
		text.WriteString(row[last] + "\n")
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.w, text.String())
	return err
}

// when returns a time in Unix seconds for a table, or - for 0.
func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return utc(unix).Format(time.RFC3339)
}

// isTerminal reports whether a file is a character device other than the null device.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// sizeOf returns the bytes of a regular file, or 0 if they are unknown.
func sizeOf(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}

// openInput opens a file, or standard input if the name is -.
func (c *cli) openInput(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.stdin), nil
	}
	return os.Open(name)
}

// A progress shows the progress of a long command on a terminal. A nil *progress shows
// nothing.
type progress struct {
	terminal    io.Writer
	what        string // the things that are counted, such as "rows read"
	total       int64  // of the work, in any unit; 0: unknown
	began, last time.Time
	shown       bool
}

// progress returns a progress of work on standard error, or nil if that is not a terminal.
func (c *cli) progress(what string, total int64) *progress {
	if f, ok := c.stderr.(*os.File); ok && isTerminal(f) {
		return progressOn(f, what, total)
	}
	return nil
}

func progressOn(terminal io.Writer, what string, total int64) *progress {
	now := time.Now()
	return &progress{terminal: terminal, what: what, total: total, began: now, last: now}
}

// show shows the number of things, how many of them were done a second, and the percentage
// of the total that done is. It does nothing if it has shown them less than a second ago.
func (p *progress) show(n int, done int64) {
	if p == nil {
		return
	}
	now := time.Now()
	if now.Sub(p.last) < time.Second {
		return
	}
	p.last, p.shown = now, true
	part := ""
	if p.total > 0 {
		part = fmt.Sprintf(" (%d %%)", 100*min(done, p.total)/p.total)
	}
	fmt.Fprintf(p.terminal, "\r\x1b[K%s: %d%s, %.0f a second", p.what, n, part, float64(n)/now.Sub(p.began).Seconds())
}

// next begins and shows the next step of a command.
func (p *progress) next(what string, total int64) {
	if p != nil {
		terminal := p.terminal
		*p = *progressOn(terminal, what, total)
		p.note(what)
	}
}

// watch shows in MB how many bytes are done, until the caller calls stop.
func (p *progress) watch(bytes func() int64) (stop func()) {
	if p == nil {
		return func() {}
	}
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second / 4)
		defer tick.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-tick.C:
				n := bytes()
				p.show(int(n/1e6), n)
			}
		}
	}()
	return func() { close(stopped); <-ended }
}

// note shows a step whose progress is unknown.
func (p *progress) note(text string) {
	if p != nil {
		p.shown = true
		fmt.Fprint(p.terminal, "\r\x1b[K"+text)
	}
}

// end removes what was shown.
func (p *progress) end() {
	if p != nil && p.shown {
		p.shown = false
		fmt.Fprint(p.terminal, "\r\x1b[K")
	}
}

// readPassword reads a new password. On a terminal it asks for the password twice, and
// returns an error if the two differ. Otherwise it reads the first line of standard input.
func (c *cli) readPassword(ctx context.Context) (string, error) {
	in := bufio.NewReaderSize(c.stdin, len(byteOrderMark)+maxPassword+len("\r\n")+1)
	f, ok := c.stdin.(*os.File)
	if !ok || !isTerminal(f) {
		return readPasswordLine(in)
	}
	visible := ""
	if restore, err := hideInput(f); err != nil {
		visible = " (it is visible)"
	} else {
		// ctx cannot end the reads below, so exit when it ends, but turn the echo on first.
		stop := context.AfterFunc(ctx, func() { restore(); os.Exit(1) })
		defer func() { stop(); restore() }()
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(c.stderr, prompt+visible+": ")
		line, err := readPasswordLine(in)
		if visible == "" {
			fmt.Fprintln(c.stderr)
		}
		return line, err
	}
	password, err := ask("Password")
	if err != nil {
		return "", err
	}
	repeated, err := ask("The same password again")
	if err == nil && repeated != password {
		err = errors.New("the two passwords differ")
	}
	return password, err
}

// readPasswordLine returns a line without its end. It cuts a line that is longer than any
// password.
func readPasswordLine(in *bufio.Reader) (string, error) {
	text, err := in.ReadSlice('\n')
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return "", fmt.Errorf("reading the password from standard input: %w", err)
	}
	line := strings.TrimPrefix(string(text), byteOrderMark)
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if line == "" {
		return "", errors.New("no password on standard input")
	}
	return line, nil
}

// hideInput turns off the echo of a terminal, and returns a function that turns it on. It
// runs stty because the system calls differ between systems, and no dependency of userd
// covers them.
func hideInput(f *os.File) (restore func(), err error) {
	stty := func(arg string) error {
		cmd := exec.Command("stty", arg)
		cmd.Stdin = f
		return cmd.Run()
	}
	return func() { stty("echo") }, stty("-echo")
}
