package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"userd/internal/cmdline"
	"userd/internal/mail"
	"userd/internal/passhash"
	"userd/internal/safefile"
	"userd/internal/terminal"
	"userd/internal/validate"
)

// A command is one row of the command table.
type command = cmdline.Command[action]

// An action runs a command whose flags have been parsed.
type action func(ctx context.Context, c *cli) error

// A cli is one run of a command.
type cli struct {
	config
	userService // for commands that open the database
	args        []string
	given       []string // the arguments with the words of the command and its flags
	stdin       io.Reader
	stdout      io.Writer
	stderr      io.Writer
}

// noFlags returns the declare function of a command without flags of its own.
func noFlags(run action) func(*flag.FlagSet) action {
	return func(*flag.FlagSet) action { return run }
}

// opens returns the declare function of a command whose action requires an open database.
// userd first adopts a database of the Flask tutorial.
func opens(declare func(*flag.FlagSet) action) func(*flag.FlagSet) action {
	return func(f *flag.FlagSet) action {
		run := declare(f)
		return func(ctx context.Context, c *cli) error { return c.withDatabase(ctx, false, refuse, run) }
	}
}

func jsonFlag(f *flag.FlagSet) *bool {
	return f.Bool("json", false, "Print one JSON object a line instead of a table.")
}

// runAs runs userd with these arguments as another user; nil is the user of this process.
// If that userd fails, the error is an *exec.ExitError, and that userd has printed why.
func (c *cli) runAs(user *safefile.User, args []string, stdout io.Writer) error {
	err := user.Run(args, c.stdin, stdout, c.stderr)
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Exited() && user != nil {
		fmt.Fprintf(c.stderr, "this command ran as %s, the owner of the directory of %s\n", user, terminal.Printable(c.database))
	}
	return err
}

// withDatabase opens the database, which a server may have open too, runs the action, links
// new events, and closes the database. If create is true, it creates a missing database.
func (c *cli) withDatabase(ctx context.Context, create bool, resolve resolution, run action) error {
	st, err := c.openDatabase(ctx, create, resolve)
	if err != nil {
		return err
	}
	c.userService = c.newUserService(st)
	err = run(ctx, c)
	if st.wrote.Load() {
		// An interrupt must not leave the events of a finished act without a link.
		if err := (&chain{st: st}).extend(context.WithoutCancel(ctx)); err != nil {
			fmt.Fprintf(c.stderr, "warning: could not link the new events; the server or the next command does it: %v\n", err)
		}
	}
	return plainError(errors.Join(err, st.close()))
}

func (c *cli) newUserService(st *store) userService {
	hasher := passhash.NewChecked(func(err error) {
		fmt.Fprintf(c.stderr, "warning: hashing passwords without the argon2 kernel, which is slower: %v\n", err)
	})
	return userService{st, hasher, c.passwords, c.settings.dataKeys, time.Now}
}

// openDatabase opens the database, or adopts or creates it first: see withDatabase.
func (c *cli) openDatabase(ctx context.Context, create bool, resolve resolution) (*store, error) {
	kind, err := inspectDatabase(ctx, c.database)
	if err == nil && kind == kindNone && !create {
		err = fmt.Errorf("database %s does not exist or is empty; select another one with -database", c.database)
	}
	if err == nil && kind == kindTutorial {
		err = adopt(ctx, c.database, resolve, func(text string) { fmt.Fprintln(c.stderr, text) }, c.progress("", 0))
	}
	if err != nil {
		return nil, err
	}
	st, err := openStore(ctx, c.database)
	if err != nil {
		return nil, openError(c.database, err)
	}
	if kind == kindTutorial {
		st.wrote.Store(true) // adopt may have recorded events
	}
	if kind == kindNone { // the operator may have meant another file
		fmt.Fprintln(c.stderr, "created the database", terminal.Printable(c.database))
	}
	return st, nil
}

// inspectDatabase is inspect. Its errors about the path name the setting.
func inspectDatabase(ctx context.Context, path string) (fileKind, error) {
	kind, err := inspect(ctx, path)
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathError(path, err)
	}
	return kind, err
}

// pathError names the setting in an error about the path of the database.
func pathError(path string, err error) error {
	dir := filepath.Dir(path)
	if _, dirErr := os.Stat(dir); errors.Is(dirErr, fs.ErrNotExist) {
		return fmt.Errorf("DATABASE_URL (-database) is %s, but the directory %s does not exist", path, dir)
	}
	return openError(path, err)
}

// openError names the setting in an error of openStore.
func openError(path string, err error) error {
	return fmt.Errorf("DATABASE_URL (-database) is %s: %w", path, err)
}

// readPassword reads a new password, on a terminal twice.
func (c *cli) readPassword(ctx context.Context) (string, error) {
	return terminal.ReadNewSecret(ctx, c.stdin, c.stderr, "password", validate.MaxPassword+1) // a longer one must not become a valid one
}

// mailTest sends a message to an address, as the server would.
func mailTest(ctx context.Context, c *cli) error {
	if c.mailURL == "" {
		return usagef("mail test: MAIL_URL is not set; set it and MAIL_FROM as for the server")
	}
	transport, from, err := c.mailTransport(c.stdout)
	if err != nil {
		return err
	}
	name := rand.Text()
	err = transport.Send(ctx, &mail.Message{
		ID: "test-" + name + "@" + from.Domain(), Date: time.Now(), From: from, To: c.args[0],
		Subject: "Test message from userd",
		Text:    "This message shows that userd can send mail.\n",
		Event:   []byte(`{"type":"test"}`), EventID: "test_" + name,
	})
	if err != nil {
		return fmt.Errorf("%s did not accept the message: %w", transport, err)
	}
	_, err = fmt.Fprintf(c.stdout, "%s accepted the message\n", transport)
	return err
}

func mailList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		list := terminal.NewList(c.stdout, *asJSON, "ID", "KIND", "USER", "TO", "QUEUED", "STATE", "TRIES", "NEXT TRY", "ERROR")
		err := c.store.mails(ctx, func(m *queuedMail) {
			next := m.nextTryAt
			if m.state != "queued" {
				next = 0
			}
			list.Row(struct {
				ID        int64     `json:"id"`
				Kind      mailKind  `json:"kind"`
				UserID    int64     `json:"user_id,omitempty"`
				Email     string    `json:"email,omitempty"`
				State     string    `json:"state"`
				Tries     int64     `json:"tries"`
				CreatedAt time.Time `json:"created_at"`
				NextTryAt time.Time `json:"next_try_at,omitzero"`
				ClosedAt  time.Time `json:"closed_at,omitzero"`
				LastError string    `json:"last_error,omitempty"`
			}{m.id, m.kind, m.userID, m.email, m.state, m.tries, utc(m.createdAt), utc(next), utc(m.closedAt), m.lastError},
				m.id, m.kind, idOrDash(m.userID), m.email, when(m.createdAt), m.state, m.tries, when(next), m.lastError)
		})
		return errors.Join(err, list.Flush())
	}
}

func mailRetry(ctx context.Context, c *cli) error {
	var id int64
	if len(c.args) > 0 {
		var err error
		if id, err = parseID(c.args[0]); err != nil {
			return usagef("mail retry: %q: the id of a mail is a positive integer", c.args[0])
		}
	}
	n, err := c.store.retryMail(ctx, id, c.wall().Unix())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s due now\n", plural(n, "mail"))
	return err
}

// when returns a time in Unix seconds for a table, or - for 0.
func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return utc(unix).Format(time.RFC3339)
}

func idOrDash(id int64) string {
	if id == 0 {
		return "-"
	}
	return strconv.FormatInt(id, 10)
}
