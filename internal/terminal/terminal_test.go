package terminal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// A User-Agent, which the client chooses, must not control the terminal.
func TestTablesArePrintable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	table := NewTable(&out, "A", "B")
	table.Row("x\x1b[2J\u009b\r\ny\tz", 7)
	table.Flush()
	if want := "A            B\nx?[2J???y?z  7\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestTablesOfAnyLengthAlign(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	table := NewTable(&out, "ID", "NAME", "LAST")
	table.Row("1", "a long näme", "x")
	for range 3 * tableBlock {
		table.Row("2", "b", "y")
		if len(table.rows) >= tableBlock {
			t.Fatalf("it holds %d rows", len(table.rows))
		}
	}
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 3*tableBlock+2 || lines[0] != "ID  NAME         LAST" || lines[1] != "1   a long näme  x" {
		t.Fatalf("%d lines: %q, %q", len(lines), lines[0], lines[1])
	}
	for _, line := range lines[2:] {
		if line != "2   b            y" {
			t.Fatalf("got %q", line)
		}
	}
}

func TestProgressIsShownOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var screen bytes.Buffer
		shown, hidden := NewProgress(&screen, "rows read", 1000), (*Progress)(nil)
		for n := range 5 {
			shown.Show(n, int64(100*n))
			hidden.Show(n, int64(100*n))
			time.Sleep(600 * time.Millisecond)
		}
		shown.Show(3000, 2000) // the file got longer
		shown.Note("importing 5 users")
		shown.End()
		hidden.Note("importing 5 users")
		hidden.End()
		want := "\r\x1b[Krows read: 2 (20 %), 2 a second\r\x1b[Krows read: 4 (40 %), 2 a second\r\x1b[Kimporting 5 users\r\x1b[K"
		if screen.String() != want {
			t.Errorf("it prints %q, want %q", screen.String(), want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var screen bytes.Buffer
		quick, unknown := NewProgress(&screen, "rows read", 0), NewProgress(&screen, "rows read", 0)
		quick.End()
		time.Sleep(2 * time.Second)
		unknown.Show(7, 0)
		if want := "\r\x1b[Krows read: 7, 4 a second"; screen.String() != want {
			t.Errorf("it prints %q", screen.String())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var screen bytes.Buffer
		var done atomic.Int64
		for _, p := range []*Progress{NewProgress(&screen, "", 0), nil} {
			p.Next("checking", 0)
			p.Next("copying, in MB", 10e6)
			stop := p.Watch(done.Load)
			time.Sleep(time.Second / 2)
			done.Store(4e6)
			time.Sleep(time.Second)
			stop()
			p.End()
			p.End()
		}
		want := "\r\x1b[Kchecking\r\x1b[Kcopying, in MB\r\x1b[Kcopying, in MB: 4 (40 %), 4 a second\r\x1b[K"
		if screen.String() != want {
			t.Errorf("it prints %q, want %q", screen.String(), want)
		}
	})
}

func TestALineIsReadWithoutItsEnd(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"one\ntwo\n":         "one",
		"\ufeffone\r\n":      "one",
		" one ":              " one ",
		"":                   "no code on standard input",
		"\ufeff\r\n":         "no code on standard input",
		"\n123456\n":         "no code on standard input",
		"0123456789abcdef\n": "0123456789abcdef",
	} {
		got, err := ReadLine(t.Context(), strings.NewReader(text), "code", 16)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if line, err := ReadLine(t.Context(), strings.NewReader(strings.Repeat("a", 1000)), "code", 16); err != nil || len(line) > 32 {
		t.Errorf("it reads %d bytes, %v", len(line), err)
	}
	if _, err := ReadLine(t.Context(), iotest.ErrReader(io.ErrClosedPipe), "code", 16); !errors.Is(err, io.ErrClosedPipe) || !strings.HasPrefix(err.Error(), "reading the code") {
		t.Errorf("a broken input: %v", err)
	}
	if secret, err := ReadNewSecret(t.Context(), strings.NewReader("a b\n"), io.Discard, "password", 16); secret != "a b" || err != nil {
		t.Errorf("without a terminal: %q, %v", secret, err)
	}
}

func TestAnInterruptEndsARead(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	blocked, typed := io.Pipe()
	defer typed.Close()
	in := Interruptible(ctx, blocked)
	go io.WriteString(typed, "ab")
	p := []byte("....")
	if n, err := io.ReadFull(in, p[:2]); n != 2 || err != nil || string(p) != "ab.." {
		t.Errorf("it reads %q, %v", p[:n], err)
	}
	time.AfterFunc(time.Millisecond, cancel)
	n, err := in.Read(p)
	io.WriteString(typed, "cd") // for the read that was interrupted
	if n != 0 || err != context.Canceled || string(p) != "ab.." {
		t.Errorf("after the interrupt it reads %q, %v", p[:n], err)
	}
	if _, err := ReadLine(ctx, blocked, "code", 16); !errors.Is(err, context.Canceled) {
		t.Errorf("a line: %v", err)
	}
	if n, err := Interruptible(t.Context(), strings.NewReader("")).Read(p); n != 0 || err != io.EOF {
		t.Errorf("at the end it reads %q, %v", p[:n], err)
	}
}

func TestAListIsATableOrJSON(t *testing.T) {
	t.Parallel()
	for asJSON, want := range map[bool]string{false: "ID  NAME\n1   ann\n2   bob\n", true: "{\"id\":1}\n{\"id\":2}\n"} {
		var out bytes.Buffer
		list := NewList(&out, asJSON, "ID", "NAME")
		for i, name := range []string{"ann", "bob"} {
			list.Row(map[string]int{"id": i + 1}, i+1, name)
		}
		if err := list.Flush(); err != nil || out.String() != want {
			t.Errorf("got %q, %v, want %q", out.String(), err, want)
		}
		broken := NewList(failingWriter{}, asJSON, "ID")
		broken.Row(1, 1)
		if err := broken.Flush(); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("with a broken output: %v", err)
		}
	}
}

// A failingWriter accepts nothing.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
