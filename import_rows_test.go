package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestARowOfAnImportIsBounded(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]struct{ header, row, filler string }{
		"CSV":          {"username,email\n", "\"%s\",\n", "a\n"}, // one field can have many lines
		"NDJSON":       {"", `{"username":"%s"}` + "\n", "a"},
		"a JSON array": {"[", `{"username":"%s"},` + "\n", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			long := strings.Repeat("a", maxRow-100)
			row := fmt.Sprintf(format.row, long)
			file, err := newRows(strings.NewReader(format.header + strings.Repeat(row, 5)))
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if fields, problem, err := file.next(); err != nil || problem != "" || fields["username"] != long {
					t.Errorf("%q, %v", problem, err)
				}
			}

			endless := &countingReader{in: readerFunc(func(p []byte) (int, error) {
				return copy(p, strings.Repeat(format.filler, len(p))), nil
			})}
			start, _, _ := strings.Cut(row, "aaa")
			file, err = newRows(io.MultiReader(strings.NewReader(format.header+row+start), endless))
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, _, err = file.next()
			}
			if !errors.Is(err, errLongRow) || endless.n > 4*maxRow {
				t.Errorf("%d bytes of an endless row were read: %v", endless.n, err)
			}
		})
	}
}

// A countingReader counts the bytes that were read.
type countingReader struct {
	in io.Reader
	n  int
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.n += n
	return n, err
}
