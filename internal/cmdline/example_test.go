package cmdline_test

import (
	"flag"
	"fmt"

	"userd/internal/cmdline"
)

func Example() {
	table := &cmdline.Table[func(args []string)]{
		Program: "greet",
		Commands: []cmdline.Command[func(args []string)]{
			{Summary: "do nothing", Declare: func(*flag.FlagSet) func([]string) { return func([]string) {} }},
			{Words: "hello", Args: "NAME", Summary: "greet a person", Help: "Greets.", Declare: func(f *flag.FlagSet) func([]string) {
				loud := f.Bool("loud", false, "Add an exclamation mark.")
				return func(args []string) { fmt.Println("hello", args[0], *loud) }
			}},
		},
	}
	call, err := table.Parse([]string{"hello", "-loud", "Ann"})
	if err != nil {
		panic(err)
	}
	call.Action(call.Args)
	_, err = table.Parse([]string{"hello"})
	fmt.Println(err)
	// Output:
	// hello Ann true
	// hello: missing NAME; usage: greet hello [flags] NAME
}
