package cmdline

import (
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"
)

// newTable returns a table whose actions return the value of -admin.
func newTable() *Table[func() string] {
	none := func(*flag.FlagSet) func() string { return func() string { return "" } }
	return &Table[func() string]{
		Program: "userd",
		Commands: []Command[func() string]{
			{"", "", "run the server", "Serves.", none},
			{"user add", "NAME [EMAIL]", "add a user", "Adds a user.\n\nPrints its id.", func(f *flag.FlagSet) func() string {
				admin := f.Bool("admin", false, "Make the user an admin.")
				return func() string { return map[bool]string{true: "true", false: "false"}[*admin] }
			}},
			{"user list", "", "list all users", "Lists.", none},
			{"backup", "FILE", "write a copy", "Copies.", none},
			{"events", "", "list events", "Lists.", func(f *flag.FlagSet) func() string {
				f.String("type", "", "Only of this `TYPE`.")
				return none(f)
			}},
			{"events verify", "[HEAD]", "check the events", "Checks.", none},
			{"help", "[COMMAND...]", "explain a command", "Explains.", none},
		},
		Settings: []Setting{
			{"DATABASE_URL", "database", "URL", "app.db", "The database."},
			{"ADDR", "addr", "HOST:PORT", "", "The address."},
		},
		Accepts: func(words, setting string) bool { return words == "" || setting == "database" && words != "help" },
	}
}

func TestFlagsCanBeAnywhere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args     string
		words    string // of the command
		rest     string
		admin    string
		database string
	}{
		{"user add ann ann@example.com", "user add", "ann ann@example.com", "false", ""},
		{"-admin user add ann ann@example.com", "user add", "ann ann@example.com", "true", ""},
		{"user -admin add ann ann@example.com", "user add", "ann ann@example.com", "true", ""},
		{"user add -admin ann ann@example.com", "user add", "ann ann@example.com", "true", ""},
		{"user add ann -admin ann@example.com", "user add", "ann ann@example.com", "true", ""},
		{"user add ann ann@example.com -admin", "user add", "ann ann@example.com", "true", ""},
		{"user add ann ann@example.com -admin -database x", "user add", "ann ann@example.com", "true", "x"},
		{"-database x user add ann ann@example.com -admin=false", "user add", "ann ann@example.com", "false", "x"},
		{"--database=x user add ann ann@example.com", "user add", "ann ann@example.com", "false", "x"},
		{"-database user user add ann ann@example.com", "user add", "ann ann@example.com", "false", "user"},
		{"-database -admin user add ann ann@example.com", "user add", "ann ann@example.com", "false", "-admin"},
		{"-database x user -database y add ann ann@example.com", "user add", "ann ann@example.com", "false", "y"},
		{"user add -- ann -admin", "user add", "ann -admin", "false", ""},
		{"user add ann -- -admin", "user add", "ann -admin", "false", ""},
		{"user add -admin -- -ann ann@example.com", "user add", "-ann ann@example.com", "true", ""},
		{"user add ann ann@example.com -admin --", "user add", "ann ann@example.com", "true", ""},
		{"user add -- -- ann", "user add", "-- ann", "false", ""},
		{"backup -", "backup", "-", "", ""},
		{"-database x events verify", "events verify", "", "", "x"},
		{"events -database x", "events", "", "", "x"},
		{"-database x", "", "", "", "x"},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			call, err := newTable().Parse(strings.Fields(c.args))
			if err != nil {
				t.Fatal(err)
			}
			if call.Words != c.words || strings.Join(call.Args, " ") != c.rest || call.Settings["database"] != c.database || call.Action() != c.admin {
				t.Errorf("got %q with %q on %q, -admin is %q", call.Words, call.Args, call.Settings["database"], call.Action())
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"user ad ann":             `unknown command "user ad": see userd help user`,
		"usr":                     `unknown command "usr": see userd help`,
		"-verbose":                "unknown flag -verbose: see userd help -all",
		"user add -amdin x":       "unknown flag -amdin: see userd help user add",
		"-amdin user add x":       "unknown flag -amdin: see userd help -all",
		"user ad -admin -x":       "unknown flag -x: see userd help -all",
		"user add -addr":          "-addr requires a value",
		"user add -addr :80 ann":  "user add: does not accept -addr, a flag of userd; see userd help user add",
		"user list -admin":        "user list: does not accept -admin, a flag of userd user add; see userd help user list",
		"-type x":                 "does not accept -type, a flag of userd events; see userd help",
		"user add":                "user add: missing NAME; usage: userd user add [flags] NAME [EMAIL]",
		"user add a b s3cret":     "user add: too many arguments; usage: userd user add [flags] NAME [EMAIL]",
		"user add -admin=maybe x": `user add: invalid boolean value "maybe" for -admin: parse error`,
	} {
		_, err := newTable().Parse(strings.Fields(args))
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}

func TestHelpIsRequested(t *testing.T) {
	t.Parallel()
	for args, topic := range map[string]string{"-h": "", "user": "user", "user add ann -help": "user add ann", "--help backup": "backup"} {
		_, err := newTable().Parse(strings.Fields(args))
		request, ok := errors.AsType[*HelpRequest](err)
		if !ok || !slices.Equal(request.Topic, strings.Fields(topic)) {
			t.Errorf("%s: %#v", args, err)
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for words, want := range map[string]string{
		"user add ann": `Usage: userd user add [flags] NAME [EMAIL]

Adds a user.

Prints its id.

Flags:
  -admin
      Make the user an admin.
  -database URL (DATABASE_URL)
      The database. Default: app.db
`,
		"user": `Usage: userd user COMMAND [flags] [arguments]

Commands:
  user add NAME [EMAIL]        add a user
  user list                    list all users

"userd help user COMMAND" explains a command.
`,
		"events": `Usage: userd events [flags]

Lists.

Flags:
  -type TYPE
      Only of this TYPE.
  -database URL (DATABASE_URL)
      The database. Default: app.db

More commands:
  events verify [HEAD]         check the events
`,
		"help": "Usage: userd help [COMMAND...]\n\nExplains.\n",
	} {
		if got, err := newTable().Help(strings.Fields(words)); got != want || err != nil {
			t.Errorf("help %s: %v\n%s", words, err, got)
		}
	}
	if _, err := newTable().Help([]string{"usr"}); err == nil {
		t.Error("help usr is not an error")
	}
	manual := newTable().Manual()
	for _, says := range []string{"\nuserd user add [flags] NAME [EMAIL]\n    Adds a user.\n\n    Prints its id.\n    -admin\n        Make", "  -addr HOST:PORT (ADDR)\n      The address.\n"} {
		if !strings.Contains(manual, says) {
			t.Errorf("the manual does not say %q:\n%s", says, manual)
		}
	}
}
