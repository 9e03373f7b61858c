package terminal

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"
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
