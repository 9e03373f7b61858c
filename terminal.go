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

// printable replaces control characters, which a client may have chosen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return utc(unix).Format(time.RFC3339)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// openInput opens a file, or standard input if the name is -.
func (c *cli) openInput(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.stdin), nil
	}
	return os.Open(name)
}

// progress returns a function that shows, at most once a second and only on a
// terminal, how far a long command is.
func (c *cli) progress() func(format string, n int) {
	if f, ok := c.stderr.(*os.File); ok && isTerminal(f) {
		return progressOn(f)
	}
	return func(string, int) {}
}

func progressOn(terminal io.Writer) func(format string, n int) {
	last := time.Now()
	return func(format string, n int) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			fmt.Fprintf(terminal, "\r\x1b[K"+format+"\r", n)
		}
	}
}

// readPassword reads the first line of standard input. On a terminal it prompts,
// and hides what is typed if stty can do that.
func (c *cli) readPassword(ctx context.Context) (string, error) {
	if f, ok := c.stdin.(*os.File); ok && isTerminal(f) {
		if restore, err := hideInput(f); err == nil {
			fmt.Fprint(c.stderr, "Password: ")
			// The read below does not end with ctx. Exit, but with the echo turned on.
			stop := context.AfterFunc(ctx, func() { restore(); os.Exit(1) })
			defer func() { stop(); restore(); fmt.Fprintln(c.stderr) }()
		}
	}
	line, err := bufio.NewReader(io.LimitReader(c.stdin, int64(len(byteOrderMark)+maxPassword+3))).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("reading the password from standard input: %w", err)
	}
	line = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(line, byteOrderMark), "\n"), "\r")
	if line == "" {
		return "", errors.New("no password on standard input")
	}
	return line, nil
}

// hideInput turns the echo of a terminal off. It runs stty because the system
// calls differ between systems, and userd uses no library that knows them all.
func hideInput(f *os.File) (restore func(), err error) {
	stty := func(arg string) error {
		cmd := exec.Command("stty", arg)
		cmd.Stdin = f
		return cmd.Run()
	}
	return func() { stty("echo") }, stty("-echo")
}
