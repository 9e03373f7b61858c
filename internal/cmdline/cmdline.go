// Package cmdline parses command lines of a program with many commands, and prints their
// help. Both come from one [Table].
//
// A command has one or two words, such as "user add". Flags can be anywhere on the command
// line, also before the words of the command, so a flag must have a value for all commands
// or for none. What follows -- is not a flag. An error has one line, and repeats no argument
// that may be a secret.
package cmdline

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"userd/internal/terminal"
)

// A Command is one row of a command table. A is the type of what a command does.
type Command[A any] struct {
	Words   string // "user add"; empty for what the program does without a command
	Args    string // its arguments, in the notation of a usage line: "USER [SESSION]"
	Summary string // one line
	Help    string // paragraphs with an empty line between them
	// Declare registers the command's own flags, and returns what the command does.
	Declare func(*flag.FlagSet) A
}

// A Setting is a setting of the program that has a flag, which several commands accept.
type Setting struct {
	Env, Flag string
	Value     string // the placeholder of its value
	Standard  string // the default
	Help      string // sentences
}

// A Table holds the commands of a program, one of which has no words, and its settings.
type Table[A any] struct {
	Program  string // its name
	Commands []Command[A]
	Settings []Setting
	Accepts  func(words, flag string) bool // reports whether a command accepts the flag of a setting
}

// A HelpRequest is an error that Parse or a command returns. The program then prints the help.
type HelpRequest struct {
	Topic []string // the words of a command or group, and what follows them
	All   bool     // of all commands
	Env   bool     // an example of an environment file
}

func (h *HelpRequest) Error() string { return "help was requested" }

// A Call is the result of a command line.
type Call[A any] struct {
	*Command[A]
	Args     []string
	Action   A
	Settings map[string]string // the values of the settings that were given, by flag
}

// Parse parses the arguments of the program. It returns a HelpRequest if they ask for help,
// and otherwise an error that names the command or the flag.
func (t *Table[A]) Parse(args []string) (call Call[A], err error) {
	line, err := t.split(args)
	if err != nil {
		return call, err
	}
	if line.help {
		return call, &HelpRequest{Topic: line.words}
	}
	cmd, args, err := t.Find(line.words)
	if err != nil {
		return call, err
	}
	call = Call[A]{Command: cmd, Args: args, Settings: make(map[string]string)}
	flags, action := t.FlagSet(cmd, call.Settings)
	call.Action = action
	for _, name := range line.names {
		if flags.Lookup(name) == nil {
			return call, cmd.errorf("does not accept -%s, a flag of %s; see %s", name, t.flagOwners(name), strings.TrimSpace(t.Program+" help "+cmd.Words))
		}
	}
	if err := flags.Parse(line.flags); err != nil {
		return call, cmd.errorf("%v", err)
	}
	names := strings.Fields(cmd.Args)
	if n := len(args); n < len(names) && !strings.HasPrefix(names[n], "[") {
		return call, cmd.errorf("missing %s; usage: %s", names[n], t.Usage(cmd))
	} else if n > len(names) && !strings.HasSuffix(cmd.Args, "...]") {
		return call, cmd.errorf("too many arguments; usage: %s", t.Usage(cmd)) // not repeated: one may be a password
	}
	return call, nil
}

// errorf returns an error that names the command.
func (cmd *Command[A]) errorf(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if cmd.Words != "" {
		text = cmd.Words + ": " + text
	}
	return errors.New(text)
}

// FlagSet returns the flags and the action of a command. Parsing the flags stores the
// values of settings in given, by flag.
func (t *Table[A]) FlagSet(cmd *Command[A], given map[string]string) (*flag.FlagSet, A) {
	flags := flag.NewFlagSet(cmd.Words, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, s := range t.Settings {
		if t.Accepts(cmd.Words, s.Flag) {
			flags.Func(s.Flag, "", func(v string) error { given[s.Flag] = v; return nil })
		}
	}
	return flags, cmd.Declare(flags)
}

// A commandLine holds the arguments of the program by kind.
type commandLine struct {
	words []string // of the command, and its arguments
	names []string // of the flags, without dashes
	flags []string // as they were given, each followed by its value
	help  bool     // -h or -help was given
}

// split separates the flags from the other arguments. Flags can be before the words of
// the command, so it knows those of all commands.
func (t *Table[A]) split(args []string) (line commandLine, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			line.words = append(line.words, args...)
			break
		}
		if arg == "-" || !strings.HasPrefix(arg, "-") {
			line.words = append(line.words, arg)
			continue
		}
		dashed, _, hasValue := strings.Cut(arg, "=")
		name := strings.TrimPrefix(dashed[1:], "-")
		if name == "h" || name == "help" {
			line.help = true
			continue
		}
		known, isBool := t.findFlag(name)
		if !known {
			topic := "-all"
			if cmd, _, err := t.Find(line.words); err == nil && cmd.Words != "" {
				topic = cmd.Words
			}
			return line, fmt.Errorf("unknown flag %s: see %s help %s", dashed, t.Program, topic)
		}
		line.names, line.flags = append(line.names, name), append(line.flags, arg)
		if !isBool && !hasValue {
			if len(args) == 0 {
				return line, fmt.Errorf("%s requires a value", dashed)
			}
			line.flags, args = append(line.flags, args[0]), args[1:]
		}
	}
	return line, nil
}

// findFlag reports whether any command has the flag, and whether the flag is boolean.
func (t *Table[A]) findFlag(name string) (known, isBool bool) {
	for i := range t.Commands {
		flags, _ := t.FlagSet(&t.Commands[i], nil)
		if f := flags.Lookup(name); f != nil {
			return true, isBoolFlag(f)
		}
	}
	return false, false
}

func isBoolFlag(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// flagOwners lists the commands that have a flag.
func (t *Table[A]) flagOwners(name string) string {
	var owners []string
	for i := range t.Commands {
		if flags, _ := t.FlagSet(&t.Commands[i], nil); flags.Lookup(name) != nil {
			owners = append(owners, strings.TrimSpace(t.Program+" "+t.Commands[i].Words))
		}
	}
	return strings.Join(owners, ", ")
}

// Find returns the command with which the words begin, and its arguments. For the name of a
// group, such as user, it returns a HelpRequest; otherwise another error.
func (t *Table[A]) Find(words []string) (cmd *Command[A], args []string, err error) {
	group := false
	for i := range t.Commands {
		name := strings.Fields(t.Commands[i].Words)
		if len(words) >= len(name) && slices.Equal(words[:len(name)], name) && (cmd == nil || len(t.Commands[i].Words) > len(cmd.Words)) {
			cmd, args = &t.Commands[i], words[len(name):]
		}
		group = group || len(words) > 0 && len(name) > 1 && name[0] == words[0]
	}
	switch {
	case cmd.Words != "" || len(words) == 0:
		return cmd, args, nil
	case !group:
		return nil, nil, fmt.Errorf("unknown command %q: see %s help", words[0], t.Program)
	case len(words) > 1:
		return nil, nil, fmt.Errorf("unknown command %q: see %s help %s", words[0]+" "+words[1], t.Program, words[0])
	}
	return nil, nil, &HelpRequest{Topic: words}
}

// Usage returns the usage line of a command.
func (t *Table[A]) Usage(cmd *Command[A]) string {
	text := t.Program + " " + cmd.Words
	flags, _ := t.FlagSet(cmd, nil)
	flags.VisitAll(func(*flag.Flag) { text = t.Program + " " + cmd.Words + " [flags]" })
	return strings.Join(strings.Fields(text+" "+cmd.Args), " ")
}

// List returns one line for each command of a group, or for every command if group is empty.
func (t *Table[A]) List(group string) string {
	text := ""
	for _, cmd := range t.Commands {
		if cmd.Words != "" && (group == "" || strings.HasPrefix(cmd.Words, group+" ")) {
			text += fmt.Sprintf("  %-27s  %s\n", strings.TrimSpace(cmd.Words+" "+cmd.Args), cmd.Summary)
		}
	}
	return text
}

// Help returns the help of the command or the group with which the words begin. It returns
// an error if they begin with neither.
func (t *Table[A]) Help(words []string) (string, error) {
	cmd, _, err := t.Find(words)
	if _, group := errors.AsType[*HelpRequest](err); group {
		return "Usage: " + t.Program + " " + words[0] + " COMMAND [flags] [arguments]\n\nCommands:\n" + t.List(words[0]) +
			"\n\"" + t.Program + " help " + words[0] + " COMMAND\" explains a command.\n", nil
	}
	if err != nil {
		return "", err
	}
	text := "Usage: " + t.Usage(cmd) + "\n\n" + terminal.Wrap("", cmd.Help)
	flags := cmd.FlagHelp("  ")
	for _, s := range t.Settings {
		if t.Accepts(cmd.Words, s.Flag) {
			flags += s.entry()
		}
	}
	if flags != "" {
		text += "\nFlags:\n" + flags
	}
	if more := t.List(cmd.Words); more != "" {
		text += "\nMore commands:\n" + more
	}
	return text, nil
}

// Manual returns the help of all commands, and then that of all settings.
func (t *Table[A]) Manual() string {
	text := ""
	for i := range t.Commands {
		cmd := &t.Commands[i]
		text += "\n" + t.Usage(cmd) + "\n" + terminal.Wrap("    ", cmd.Help) + cmd.FlagHelp("    ")
	}
	text += "\nSettings, as flags and environment variables:\n"
	for _, s := range t.Settings {
		text += s.entry()
	}
	return text
}

// FlagHelp returns the help of the flags that only this command has.
func (cmd *Command[A]) FlagHelp(indent string) string {
	own := flag.NewFlagSet("", flag.ContinueOnError)
	cmd.Declare(own)
	text := ""
	own.VisitAll(func(f *flag.Flag) {
		value, usage := flag.UnquoteUsage(f)
		text += indent + strings.TrimSpace("-"+f.Name+" "+value) + "\n" + terminal.Wrap(indent+"    ", usage)
	})
	return text
}

// entry returns the help of a setting, with its default.
func (s *Setting) entry() string {
	text := s.Help
	if s.Standard != "" {
		text += " Default: " + s.Standard
	}
	return fmt.Sprintf("  -%s %s (%s)\n", s.Flag, s.Value, s.Env) + terminal.Wrap("      ", text)
}
