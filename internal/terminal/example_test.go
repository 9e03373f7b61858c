package terminal_test

import (
	"os"

	"userd/internal/terminal"
)

func Example() {
	table := terminal.NewTable(os.Stdout, "ID", "NAME")
	table.Row(1, "ann")
	table.Row(2, "a name\nof two lines")
	table.Flush()
	// Output:
	// ID  NAME
	// 1   ann
	// 2   a name?of two lines
}
