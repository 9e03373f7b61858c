package safefile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"userd/internal/safefile"
)

// report writes a file that is either complete or does not exist.
func report(path, text string) error {
	t, err := safefile.CreateTemp(path)
	if err != nil {
		return err
	}
	defer t.Discard()
	if _, err := t.WriteString(text); err != nil {
		return err
	}
	return t.Publish(filepath.Base(path))
}

func Example() {
	dir, err := os.MkdirTemp("", "safefile")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "report.txt")
	fmt.Println(report(path, "first"))
	fmt.Println(errors.Is(report(path, "second"), fs.ErrExist))
	text, err := os.ReadFile(path)
	fmt.Printf("%s %v\n", text, err)
	// Output:
	// <nil>
	// true
	// first <nil>
}
