// Package terminal prints tables and the progress of long work, and reads secrets
// without showing them.
//
// A [Table] aligns its columns in constant memory. A [Progress] shows a count, a
// percentage and a rate once a second; a nil *Progress shows nothing, so that a caller
// whose output is not a terminal ([Is]) needs no case of its own. [Printable] makes a
// text safe: control characters could move the cursor or change colors. A [List] prints the
// same rows as a table or as JSON. [ReadNewSecret] reads a password.
package terminal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode/utf8"

	"userd/internal/setting"
)

// Printable replaces control characters, which could change what a terminal shows.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// A Table prints rows with aligned columns. It holds at most tableBlock rows, so
// that a list of any length needs little memory. Columns never get narrower.
type Table struct {
	w      io.Writer
	widths []int
	rows   [][]string // not printed yet
}

const tableBlock = 500

// NewTable returns a table with these column titles, printed to w.
func NewTable(w io.Writer, titles ...any) *Table {
	t := &Table{w: w, widths: make([]int, len(titles))}
	t.Row(titles...)
	return t
}

// Row adds a row. It makes texts safe for a terminal.
func (t *Table) Row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = Printable(fmt.Sprint(cell))
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(row[i]))
	}
	if t.rows = append(t.rows, row); len(t.rows) == tableBlock {
		t.Flush()
	}
}

// Widen makes the columns at least so wide, in characters.
func (t *Table) Widen(widths ...int) {
	for i, width := range widths {
		t.widths[i] = max(t.widths[i], width)
	}
}

// Flush prints the rows that were added since the last flush. A nil *Table has none.
func (t *Table) Flush() error {
	if t == nil {
		return nil
	}
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

// A List prints rows as a table, or as one JSON object a line.
type List struct {
	out   *bufio.Writer
	table *Table // nil: JSON
	lines *json.Encoder
}

// NewList returns a list, printed to w, as JSON or as a table with these column titles.
func NewList(w io.Writer, asJSON bool, titles ...any) *List {
	out := bufio.NewWriter(w)
	l := &List{out: out, lines: json.NewEncoder(out)}
	if !asJSON {
		l.table = NewTable(out, titles...)
	}
	return l
}

// Row adds a row: the object for JSON, and the cells for a table.
func (l *List) Row(object any, cells ...any) {
	if l.table == nil {
		l.lines.Encode(object) // an error of out stays for Flush
		return
	}
	l.table.Row(cells...)
}

// Flush prints the rows that are not printed yet. It returns the first error of the writer.
func (l *List) Flush() error { return errors.Join(l.table.Flush(), l.out.Flush()) }

// Is reports whether a file is a character device other than the null device.
func Is(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// A Progress shows the progress of a long command on a terminal. A nil *Progress shows
// nothing.
type Progress struct {
	terminal    io.Writer
	what        string // the things that are counted, such as "rows read"
	total       int64  // of the work, in any unit; 0: unknown
	began, last time.Time
	shown       bool
}

// NewProgress returns a Progress of work that begins now. total is 0 if it is unknown.
func NewProgress(terminal io.Writer, what string, total int64) *Progress {
	now := time.Now()
	return &Progress{terminal: terminal, what: what, total: total, began: now, last: now}
}

// Show shows the number of things, how many of them were done a second, and the percentage
// of the total that done is. It does nothing if it has shown them less than a second ago.
func (p *Progress) Show(n int, done int64) {
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

// Next begins and shows the next step of a command.
func (p *Progress) Next(what string, total int64) {
	if p != nil {
		terminal := p.terminal
		*p = *NewProgress(terminal, what, total)
		p.Note(what)
	}
}

// Watch shows in MB how many bytes are done, until the caller calls stop.
func (p *Progress) Watch(bytes func() int64) (stop func()) {
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
				p.Show(int(n/1e6), n)
			}
		}
	}()
	return func() { close(stopped); <-ended }
}

// Note shows a step whose progress is unknown.
func (p *Progress) Note(text string) {
	if p != nil {
		p.shown = true
		fmt.Fprint(p.terminal, "\r\x1b[K"+text)
	}
}

// End removes what was shown.
func (p *Progress) End() {
	if p != nil && p.shown {
		p.shown = false
		fmt.Fprint(p.terminal, "\r\x1b[K")
	}
}

// hideInput turns off the echo of a terminal, and returns a function that turns it on. It
// runs stty because the system calls differ between systems, and the standard library does
// not cover them.
func hideInput(f *os.File) (restore func(), err error) {
	stty := func(arg string) error {
		cmd := exec.Command("stty", arg)
		cmd.Stdin = f
		return cmd.Run()
	}
	return func() { stty("echo") }, stty("-echo")
}

// Interruptible returns a reader of in whose reads end with the error of ctx as soon as ctx ends.
// A read that is interrupted still waits for input until the process ends, and would lose what it
// reads, so nothing may read in afterwards.
func Interruptible(ctx context.Context, in io.Reader) io.Reader { return &interruptible{ctx, in} }

type interruptible struct {
	ctx context.Context
	in  io.Reader
}

func (r *interruptible) Read(p []byte) (n int, err error) {
	read := make([]byte, len(p)) // not p, which the caller may use again after an interrupt
	done := make(chan struct{})
	var length int
	var readErr error
	go func() {
		length, readErr = r.in.Read(read)
		close(done)
	}()
	select {
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	case <-done:
		return copy(p, read[:length]), readErr
	}
}

// ReadLine reads the first line of in, which holds what is named, such as a password. It
// returns the line without its end and without a byte-order mark. It cuts a line after max
// bytes, and returns an error if the line is empty or if ctx ends: see Interruptible.
func ReadLine(ctx context.Context, in io.Reader, what string, max int) (string, error) {
	return readLine(newLineReader(ctx, in, max), what)
}

// newLineReader returns a reader for readLine whose buffer holds a line of max bytes.
func newLineReader(ctx context.Context, in io.Reader, max int) *bufio.Reader {
	return bufio.NewReaderSize(Interruptible(ctx, in), len(setting.ByteOrderMark)+max+len("\r\n"))
}

func readLine(in *bufio.Reader, what string) (string, error) {
	text, err := in.ReadSlice('\n')
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return "", fmt.Errorf("reading the %s from standard input: %w", what, err)
	}
	line := strings.TrimPrefix(string(text), setting.ByteOrderMark)
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if line == "" {
		return "", fmt.Errorf("no %s on standard input", what)
	}
	return line, nil
}

// ReadNewSecret reads a new secret, such as a password, as ReadLine does. If in is a terminal,
// it asks for the secret twice on out, does not show what is typed, and returns an error if
// the two differ.
func ReadNewSecret(ctx context.Context, in io.Reader, out io.Writer, what string, max int) (string, error) {
	lines := newLineReader(ctx, in, max)
	f, ok := in.(*os.File)
	if !ok || !Is(f) {
		return readLine(lines, what)
	}
	visible := ""
	if restore, err := hideInput(f); err != nil {
		visible = " (it is visible)"
	} else {
		defer restore()
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(out, prompt+visible+": ")
		line, err := readLine(lines, what)
		if visible == "" {
			fmt.Fprintln(out)
		}
		return line, err
	}
	secret, err := ask(strings.ToUpper(what[:1]) + what[1:])
	if err != nil {
		return "", err
	}
	repeated, err := ask("The same " + what + " again")
	if err == nil && repeated != secret {
		err = fmt.Errorf("the two %ss differ", what)
	}
	return secret, err
}

// Wrap breaks paragraphs into indented lines of at most 79 columns.
func Wrap(indent, text string) string {
	const width = 79
	var lines []string
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			lines = append(lines, "")
		}
		line := indent
		for _, word := range strings.Fields(paragraph) {
			if line != indent && utf8.RuneCountInString(line+word) >= width {
				lines, line = append(lines, line), indent
			}
			if line != indent {
				line += " "
			}
			line += word
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n") + "\n"
}
