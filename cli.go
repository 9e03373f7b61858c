package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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

func adopted(_ context.Context, c *cli) error {
	_, err := fmt.Fprintf(c.stdout, "%s is userd's\n", c.database)
	return err
}

// A cli is one run of a command.
type cli struct {
	config
	names  []string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	server *server // for its store, hasher and clock

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

func (c *cli) addFlags(f *flag.FlagSet) { f.BoolVar(&c.admin, "admin", false, "") }
func (c *cli) jsonFlag(f *flag.FlagSet) { f.BoolVar(&c.json, "json", false, "") }

func (c *cli) exportFlags(f *flag.FlagSet) { f.BoolVar(&c.ndjson, "ndjson", false, "") }

func (c *cli) resolveFlag(f *flag.FlagSet) {
	f.Func("resolve", "", func(v string) error { return setWord(&c.resolve, v, resolveByID, removeOthers) })
}

func (c *cli) importFlags(f *flag.FlagSet) {
	f.BoolVar(&c.dryRun, "dry-run", false, "")
	f.BoolVar(&c.partial, "partial", false, "")
}

func (c *cli) setFlags(f *flag.FlagSet) {
	f.Func("username", "", func(v string) error { c.change.username = &v; return nil })
	f.Func("email", "", func(v string) error { c.change.email = &v; return nil })
	f.Func("role", "", func(v string) error { c.change.role = new(role); return setWord(c.change.role, v, member, admin) })
	f.Func("disabled", "", func(v string) error {
		disabled := v == "true"
		c.change.disabled = &disabled
		if !disabled && v != "false" {
			return errors.New("must be true or false")
		}
		return nil
	})
}

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
	c.server = &server{store: st, hasher: newHasher(defaultCost), now: time.Now}
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

// user returns the user that a name on the command line means: a username, an
// e-mail address, or id=7.
func (c *cli) user() (user, error) { return c.userNamed(c.names[0]) }

func (c *cli) userNamed(name string) (user, error) {
	var u user
	var err error
	if digits, ok := strings.CutPrefix(name, "id="); ok {
		id, perr := parseID(digits)
		if perr != nil {
			return u, usagef("%q: an id is a positive integer", name)
		}
		u, err = c.server.store.user(id)
	} else {
		u, _, err = c.server.store.userByLogin(name)
	}
	if errors.Is(err, errUserNotFound) {
		return u, &fault{kind: errUserNotFound, text: fmt.Sprintf("there is no user %q; an id is written id=7", name)}
	}
	return u, err
}

func userAdd(ctx context.Context, c *cli) error {
	password, err := c.readPassword(ctx)
	if err != nil {
		return err
	}
	u := user{username: c.names[0], email: c.names[1], role: member}
	if c.admin {
		u.role = admin
	}
	if err := c.server.addUser(ctx, console, &u, password); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "added %s %s, id %d\n", u.role, u.username, u.id)
	return err
}

func userList(ctx context.Context, c *cli) error {
	return c.print(func(row func(u *user)) error {
		return c.server.store.users(ctx, 0, -1, filter{}, row)
	})
}

func userShow(ctx context.Context, c *cli) error {
	u, err := c.user()
	if err != nil {
		return err
	}
	return c.print(func(row func(u *user)) error {
		row(&u)
		return nil
	})
}

// print writes the users that each gives to row: as a table, or with -json as
// one object a line.
func (c *cli) print(each func(row func(*user)) error) error {
	out := bufio.NewWriter(c.stdout)
	if c.json {
		var line []byte
		err := each(func(u *user) {
			line = append(appendUser(line[:0], u, viewAll), '\n')
			out.Write(line)
		})
		return errors.Join(err, out.Flush())
	}
	table := newTable(out, "ID", "USERNAME", "EMAIL", "ROLE", "DISABLED", "LAST LOGIN")
	err := each(func(u *user) {
		table.row(u.id, u.username, u.email, u.role, u.disabled, when(u.lastLoginAt))
	})
	return errors.Join(err, table.flush(), out.Flush())
}

func userSet(ctx context.Context, c *cli) error {
	if c.change == (change{}) {
		return usagef("user set takes -username, -email, -role or -disabled")
	}
	u, err := c.user()
	if err != nil {
		return err
	}
	if err := c.change.check(&u, nil); err != nil {
		return err
	}
	u, err = c.server.store.updateUser(ctx, console, u.id, c.change, 0, c.server.now().Unix())
	if err != nil {
		return err
	}
	return c.print(func(row func(u *user)) error {
		row(&u)
		return nil
	})
}

func userPasswd(ctx context.Context, c *cli) error {
	u, err := c.user()
	if err != nil {
		return err
	}
	password, err := c.readPassword(ctx)
	if err != nil {
		return err
	}
	var set change
	if err := set.check(&u, &password); err != nil {
		return err
	}
	hash, err := c.server.hasher.hash(ctx, "", password)
	if err != nil {
		return err
	}
	set.hash = &hash
	if _, err := c.server.store.updateUser(ctx, console, u.id, set, 0, c.server.now().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "the password of %s is changed, and all sessions are ended\n", u.username)
	return err
}

func userDelete(ctx context.Context, c *cli) error {
	u, err := c.user()
	if err != nil {
		return err
	}
	if err := c.server.store.deleteUser(ctx, console, u.id, 0, c.server.now().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "deleted %s, id %d\n", u.username, u.id)
	return err
}

func sessionList(ctx context.Context, c *cli) error {
	u, err := c.user()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(c.stdout)
	table := newTable(out, "ID", "CREATED", "LAST USED", "EXPIRES", "ADDRESS", "USER AGENT")
	lines := json.NewEncoder(out)
	err = c.server.store.sessionsOf(ctx, u.id, c.server.now().Unix(), func(x *session) {
		if c.json {
			lines.Encode(newSessionAnswer(x, 0))
			return
		}
		table.row(x.id, when(x.createdAt), when(x.lastUsedAt), when(x.expiresAt), x.address, x.userAgent)
	})
	if !c.json {
		err = errors.Join(err, table.flush())
	}
	return errors.Join(err, out.Flush())
}

func sessionEnd(ctx context.Context, c *cli) error {
	u, err := c.user()
	if err != nil {
		return err
	}
	if len(c.names) == 1 {
		if err := c.server.store.endSessions(ctx, console, u.id, c.server.now().Unix()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "all sessions of %s are ended\n", u.username)
		return err
	}
	sid, err := parseID(c.names[1])
	if err != nil {
		return usagef("%q: a session is a positive integer", c.names[1])
	}
	if err := c.server.store.endSession(ctx, console, u.id, sid, c.server.now().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "session %d of %s has ended\n", sid, u.username)
	return err
}

func keyList(ctx context.Context, c *cli) error {
	keys, err := c.server.store.signingKeys(ctx)
	if err != nil {
		return err
	}
	if c.json {
		lines := json.NewEncoder(c.stdout)
		for _, k := range keys {
			err = errors.Join(err, lines.Encode(struct {
				KID       string    `json:"kid"`
				CreatedAt time.Time `json:"created_at"`
				RetiredAt time.Time `json:"retired_at,omitzero"`
				GoodUntil time.Time `json:"good_until,omitzero"`
			}{k.kid, utc(k.createdAt), utc(k.retiredAt), utc(k.goodUntil)}))
		}
		return err
	}
	table := newTable(c.stdout, "KID", "CREATED", "RETIRED", "GOOD UNTIL")
	for _, k := range keys {
		table.row(k.kid, when(k.createdAt), when(k.retiredAt), when(k.goodUntil))
	}
	return table.flush()
}

func keyRotate(ctx context.Context, c *cli) error {
	if len(c.secret) > 0 {
		return fmt.Errorf("%s is set, and signs: put it in JWT_SECRET_KEY_PREVIOUS and set a new one", c.secretFrom)
	}
	key := randomKey()
	if err := c.server.store.rotateKey(ctx, key, c.server.now().Unix()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stdout, "%s signs from now on\n", key.kid)
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

func utc(unix int64) (t time.Time) {
	if unix != 0 {
		t = time.Unix(unix, 0).UTC()
	}
	return t
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
