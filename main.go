// Userd is a user-management microservice: registration, login with JSON Web
// Tokens, and create, read, update and delete of users over a JSON API, on an
// embedded SQLite database.
//
// "userd help -all" prints its manual, which is made from the command table in
// cli.go and the settings in config.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr); err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || !e.Exited() && !brokenPipe(e) { // otherwise runAs's process has printed why
			fmt.Fprintln(os.Stderr, "userd:", err)
		}
		os.Exit(exitStatus(err))
	}
}

// brokenPipe reports whether a process ended because the reader of its output has exited.
func brokenPipe(e *exec.ExitError) bool {
	status, ok := e.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGPIPE
}

// exitStatus returns the status of the process, as a shell would report it, if a command
// ran as another user; 2 for a wrong command or configuration; and otherwise 1.
func exitStatus(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Exited() {
		return e.ExitCode()
	} else if ok && brokenPipe(e) {
		return 128 + int(syscall.SIGPIPE)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return 2
	}
	return 1
}

// run is the program: it serves until ctx ends, or runs one command.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr}
	cmd, act, err := c.parse(args, getenv)
	if err == nil && cmd.words == "" {
		return serve(ctx, c.config, stderr)
	}
	if err == nil {
		err = cmd.run(ctx, c, act)
	}
	if help, ok := errors.AsType[*helpRequest](err); ok {
		return printHelp(stdout, help)
	}
	return err
}

const about = `userd manages users: it registers them, logs them in with JSON Web Tokens, and
lets them and admins read, change and delete them over a JSON API. It keeps its
data in one SQLite file.

Usage:
  userd [flags]                      run the server
  userd COMMAND [flags] [arguments]  run a command on the database
`

// printHelp prints the requested help. It returns a usageError if the topic is not
// a command.
func printHelp(w io.Writer, help *helpRequest) error {
	text := ""
	if cmd, _, err := findCommand(help.topic); help.all {
		text = manual()
	} else if len(help.topic) == 0 {
		text = summary()
	} else if err == nil {
		text = commandHelp(cmd)
	} else if _, group := errors.AsType[*helpRequest](err); group {
		text = groupHelp(help.topic[0])
	} else {
		return err
	}
	_, err := io.WriteString(w, text)
	return err
}

// summary returns the short help: all commands, and the most used settings.
func summary() string {
	text := about + "\nCommands:\n" + commandList("")
	text += "\nThe most used settings, with their environment variables and defaults:\n"
	for _, name := range []string{"database", "addr", "registration", "https-domain", "trusted-proxies", "log-level"} {
		o := options[slices.IndexFunc(options, func(o option) bool { return o.flag == name })]
		text += strings.TrimRight(fmt.Sprintf("  %-27s  %-16s  %s", "-"+o.flag+" "+o.value, o.env, o.standard), " ") + "\n"
	}
	return text + `
Flags can be anywhere on the command line. USER is a username, an e-mail
address, or an id written as id=7. -json prints one JSON object a line.

More help:
  userd help COMMAND  explain a command, as "userd help user add"
  userd help -all     print the whole manual: all commands and all settings
`
}

// commandList returns one line for each command of a group, or for every command if
// group is empty.
func commandList(group string) string {
	text := ""
	for _, cmd := range commands {
		if cmd.words != "" && (group == "" || strings.HasPrefix(cmd.words, group+" ")) {
			text += fmt.Sprintf("  %-27s  %s\n", strings.TrimSpace(cmd.words+" "+cmd.args), cmd.summary)
		}
	}
	return text
}

func groupHelp(group string) string {
	return "Usage: userd " + group + " COMMAND [flags] [arguments]\n\nCommands:\n" + commandList(group) +
		"\n\"userd help " + group + " COMMAND\" explains a command.\n"
}

func commandHelp(cmd *command) string {
	text := "Usage: " + cmd.usage() + "\n\n" + wrap("", cmd.help)
	flags := cmd.flagHelp("  ")
	for _, o := range options {
		if cmd.accepts(o.flag) {
			flags += o.entry()
		}
	}
	if flags != "" {
		text += "\nFlags:\n" + flags
	}
	if more := commandList(cmd.words); more != "" {
		text += "\nMore commands:\n" + more
	}
	return text
}

// flagHelp returns the help of the flags that only this command has.
func (cmd *command) flagHelp(indent string) string {
	own := flag.NewFlagSet("", flag.ContinueOnError)
	cmd.declare(own)
	text := ""
	own.VisitAll(func(f *flag.Flag) {
		value, usage := flag.UnquoteUsage(f)
		text += indent + strings.TrimSpace("-"+f.Name+" "+value) + "\n" + wrap(indent+"    ", usage)
	})
	return text
}

// entry returns the help of a setting, with its default.
func (o *option) entry() string {
	text := o.help
	if o.standard != "" {
		text += " Default: " + o.standard
	}
	return fmt.Sprintf("  -%s %s (%s)\n", o.flag, o.value, o.env) + wrap("      ", text)
}

// manual returns the help of all commands and settings.
func manual() string {
	text := about + "\n" + wrap("", `Flags can be anywhere on the command line; what follows -- is not a flag. Flags override
		environment variables, and those override defaults.

		The commands work on the database whether a server is running or not; a running
		server sees their changes immediately. If root runs them and the directory of the
		database belongs to another user, they run as that user.

		The only setting that commands accept is -database, with four exceptions: events
		verify also accepts -event-retention; user add, user passwd and user import also
		accept -password-min-length and -issuer; mail test accepts only -mail-from;
		healthcheck accepts only -addr, -https-domain and -tls-cert.

		USER is a username, an e-mail address, or an id written as id=7. A list is a table;
		with -json it is one JSON object a line. In a table, - marks a time or an id that does
		not exist.

		The exit status is 0 for success, 1 for failure, and 2 for a wrong command or
		configuration.`)
	for _, cmd := range commands {
		text += "\n" + cmd.usage() + "\n" + wrap("    ", cmd.help) + cmd.flagHelp("    ")
	}
	text += "\nSettings, as flags and environment variables:\n"
	for _, o := range options {
		text += o.entry()
	}
	text += "\nSettings that only the environment can hold:\n"
	for _, x := range secrets {
		text += "  " + x.env + ", " + x.env + "_FILE\n" + wrap("      ", x.help+" "+x.env+"_FILE names a file that holds it instead.")
	}
	for _, v := range variables {
		text += "  " + v.env + "\n" + wrap("      ", v.help)
	}
	return text
}

// wrap breaks paragraphs into indented lines of at most 79 columns.
func wrap(indent, text string) string {
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
