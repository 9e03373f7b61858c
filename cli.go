package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A command is one that the command line has beside serving.
type command struct {
	words  string // "user add"
	names  string // what follows its flags, for people
	least  int    // how many names there are
	most   int
	opens  opening
	flags  func(*cli, *flag.FlagSet)
	action func(context.Context, *cli) error
}

// An opening is what happens to the database before a command's action.
type opening int

const (
	opened opening = iota // what is there is opened, and a database of Flask's adopted
	made                  // likewise; where there is none, it is made
	closed                // nothing: the action has its own way
)

var commands = []command{
	{"user add", "NAME EMAIL", 2, 2, made, (*cli).addFlags, userAdd},
	{"user list", "", 0, 0, opened, (*cli).jsonFlag, userList},
	{"user show", "USER", 1, 1, opened, (*cli).jsonFlag, userShow},
	{"user set", "USER", 1, 1, opened, (*cli).setFlags, userSet},
	{"user passwd", "USER", 1, 1, opened, nil, userPasswd},
	{"user delete", "USER", 1, 1, opened, nil, userDelete},
	{"user import", "FILE", 1, 1, made, (*cli).importFlags, userImport},
	{"user export", "", 0, 0, opened, (*cli).exportFlags, userExport},
	{"session list", "USER", 1, 1, opened, (*cli).jsonFlag, sessionList},
	{"session end", "USER [SESSION]", 1, 2, opened, nil, sessionEnd},
	{"key list", "", 0, 0, opened, (*cli).jsonFlag, keyList},
	{"key rotate", "", 0, 0, opened, nil, keyRotate},
	{"events verify", "[HEAD]", 0, 1, opened, nil, eventsVerify},
	{"events", "", 0, 0, opened, (*cli).eventFlags, eventList},
	{"backup", "FILE", 1, 1, closed, nil, backup},
	{"restore", "FILE", 1, 1, closed, nil, restore},
	{"check", "", 0, 0, closed, nil, check},
	{"adopt", "", 0, 0, opened, (*cli).resolveFlag, adopted}, // done before any command runs
	{"healthcheck", "", 0, 0, closed, nil, healthcheck},
}

// A cli is one run of a command.
type cli struct {
	config
	names  []string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	userService

	admin   bool
	json    bool
	ndjson  bool
	dryRun  bool
	partial bool
	change  change
	resolve resolution

	follow    bool
	after     int64 // -1: not given
	eventUser string
	eventType eventType
}

func (c *cli) jsonFlag(f *flag.FlagSet) { f.BoolVar(&c.json, "json", false, "") }

// findCommand takes the words of a command off the arguments. No words, or a
// flag first, is serving: nil.
func findCommand(args []string) (*command, []string, error) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return nil, args, nil
	}
	for i := range commands {
		words := strings.Fields(commands[i].words)
		if len(args) >= len(words) && slices.Equal(args[:len(words)], words) {
			return &commands[i], args[len(words):], nil
		}
	}
	return nil, nil, usagef("unknown command %q: see userd help", strings.Join(args[:min(2, len(args))], " "))
}

// configure reads the flags of a command, or of serving where cmd is nil,
// wherever they stand among its names; they go over the environment, and that
// over the defaults. Every error is flag.ErrHelp or a usageError of one line
// that names the setting.
func (c *cli) configure(cmd *command, args []string, getenv func(string) string) error {
	flags := flag.NewFlagSet("userd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	given := make(map[string]string) // by flag
	for _, o := range options {
		if cmd == nil || cmd.has(o.flag) { // the rest is about serving
			flags.Func(o.flag, "", func(v string) error { given[o.flag] = v; return nil })
		}
	}
	if cmd != nil && cmd.flags != nil {
		cmd.flags(c, flags)
	}
	// flag stops at the first name; what follows may be flags again, but for what follows --.
	for len(args) > 0 {
		if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			return err
		} else if err != nil {
			return usagef("%v", err)
		}
		parsed, rest := len(args)-flags.NArg(), flags.Args()
		if parsed > 0 && args[parsed-1] == "--" {
			c.names = append(c.names, rest...)
			break
		}
		if args = rest; len(rest) > 0 {
			c.names, args = append(c.names, rest[0]), rest[1:]
		}
	}
	if cmd == nil && len(c.names) > 0 {
		return usagef("unknown command %q: see userd help", c.names[0])
	}
	for _, o := range options {
		value, from := o.standard, o.env
		if o.env == "ADDR" && len(c.domains) > 0 {
			value = ":443"
		}
		if v, ok := given[o.flag]; ok {
			value, from = v, "-"+o.flag
		} else if v := getenv(o.env); v != "" {
			value = v
		} else if v := getenv("PORT"); v != "" && o.env == "ADDR" {
			value, from = net.JoinHostPort("127.0.0.1", v), "PORT"
		}
		if cmd != nil && !cmd.has(o.flag) {
			continue // about serving
		}
		if err := o.set(&c.config, value); err != nil {
			if from == "PORT" {
				value = getenv("PORT")
			}
			return usagef("%s=%q: %v", from, value, err)
		}
	}
	switch {
	case cmd == nil && (c.tlsCert == "") != (c.tlsKey == ""):
		return usagef("TLS_CERT and TLS_KEY (-tls-cert and -tls-key) go together: one is not set")
	case c.tlsCert != "" && len(c.domains) > 0:
		return usagef("HTTPS_DOMAIN and TLS_CERT are both set: which certificate is meant?")
	}
	return c.readSecrets(getenv)
}

// has reports whether the command has a setting, by its flag: where the database
// is or, for one that asks a running server, where and how that listens.
func (cmd *command) has(setting string) bool {
	if cmd.words == "healthcheck" {
		return setting == "addr" || setting == "https-domain" || setting == "tls-cert"
	}
	return setting == "database"
}

// run runs the command on the database, which a server may have open.
func (cmd *command) run(ctx context.Context, c *cli) (err error) {
	if len(c.names) < cmd.least || len(c.names) > cmd.most {
		return usagef("usage: userd %s", strings.TrimSpace(cmd.words+" [flags] "+cmd.names))
	}
	if cmd.opens == closed {
		return cmd.action(ctx, c)
	}
	kind, err := inspect(ctx, c.database)
	if err != nil {
		return err
	}
	if kind == kindNone && cmd.opens != made {
		return fmt.Errorf("there is no database %s, or it is empty: see -database", c.database)
	}
	if kind == kindTutorial {
		if err := adopt(ctx, c.database, c.resolve, func(text string) { fmt.Fprintln(c.stderr, text) }); err != nil {
			return err
		}
	}
	st, err := openStore(ctx, c.database)
	if err != nil {
		return fmt.Errorf("database %s: %w", c.database, err)
	}
	c.userService = userService{st, newHasher(defaultCost), time.Now}
	return explain(errors.Join(cmd.action(ctx, c), st.close()))
}

// A told error says what a client would be told of the error it holds.
type told struct {
	text  string
	cause error
}

func (t *told) Error() string { return t.text }

func (t *told) Unwrap() error { return t.cause }

// explain puts what a client would be told in the place of the errors that
// have such a text.
func explain(err error) error {
	if err == nil || errors.Is(err, errStorage) {
		return err
	}
	var f *fault
	if errors.As(err, &f) && f.text != "" {
		return &told{f.text, err}
	}
	if a := answerFor(err); a.err != nil {
		return &told{a.text, err}
	}
	return err
}

// A table lines its columns up, in blocks: a list of any length takes little memory.
type table struct {
	w    *tabwriter.Writer
	rows int
}

func newTable(w io.Writer, titles ...any) *table {
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(titles...)
	return t
}

func (t *table) row(cells ...any) {
	for i, cell := range cells {
		text := fmt.Sprint(cell)
		if s, ok := cell.(string); ok {
			text = printable(s)
		}
		if i > 0 {
			text = "\t" + text
		}
		io.WriteString(t.w, text)
	}
	io.WriteString(t.w, "\n")
	if t.rows++; t.rows%500 == 0 {
		t.w.Flush()
	}
}

func (t *table) flush() error { return t.w.Flush() }

// printable makes a text that a stranger chose safe for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return utc(unix).Format(time.RFC3339)
}

// readPassword reads the first line of standard input. At a terminal it asks,
// and what is typed is not shown where stty can see to that.
func (c *cli) readPassword(ctx context.Context) (string, error) {
	if f, ok := c.stdin.(*os.File); ok && isTerminal(f) {
		if restore, err := hideInput(f); err == nil {
			fmt.Fprint(c.stderr, "Password: ")
			stop := context.AfterFunc(ctx, func() { restore(); os.Exit(1) }) // an interrupt must not leave the terminal mute
			defer func() { stop(); restore(); fmt.Fprintln(c.stderr) }()
		}
	}
	line, err := bufio.NewReader(io.LimitReader(c.stdin, maxPassword+3)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("reading the password from standard input: %w", err)
	}
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if line == "" {
		return "", errors.New("the password comes from standard input, and that is empty")
	}
	return line, nil
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// hideInput turns the echo of a terminal off. By stty, since the system calls
// differ on every system and the library that knows them is not ours to use.
func hideInput(f *os.File) (restore func(), err error) {
	stty := func(arg string) error {
		cmd := exec.Command("stty", arg)
		cmd.Stdin = f
		return cmd.Run()
	}
	return func() { stty("echo") }, stty("-echo")
}

// open opens a file, or standard input for -.
func (c *cli) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.stdin), nil
	}
	return os.Open(name)
}

// progress returns what tells, on a terminal and once a second, how far a long
// work is.
func (c *cli) progress() func(format string, n int) {
	f, ok := c.stderr.(*os.File)
	if !ok || !isTerminal(f) {
		return func(string, int) {}
	}
	last := time.Now()
	return func(format string, n int) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			fmt.Fprintf(c.stderr, "\r\x1b[K"+format+"\r", n)
		}
	}
}
