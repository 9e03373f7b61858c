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
	"strings"
	"time"

	"userd/internal/cmdline"
	"userd/internal/mail"
	"userd/internal/param"
	"userd/internal/passhash"
	"userd/internal/safefile"
	"userd/internal/setting"
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
	return errors.Join(err, st.close())
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

// user returns the user that an argument names: by username, by e-mail address,
// or as id=7.
func (c *cli) user(name string) (user, error) {
	var u user
	var err error
	if digits, ok := strings.CutPrefix(name, "id="); ok {
		id, perr := param.ID(digits)
		if perr != nil {
			return u, usagef("%q: an id is a positive integer", name)
		}
		u, err = c.store.user(id)
	} else {
		u, _, err = c.store.userByLogin(name)
	}
	switch _, digits := param.ID(name); {
	case !errors.Is(err, errUserNotFound):
		return u, err
	case digits == nil:
		return u, errUserNotFound.with("user %q does not exist; write an id as id=%s", name, name)
	}
	return u, errUserNotFound.with("user %q does not exist", name)
}

// progress returns a progress of work on standard error, or nil if that is not a terminal.
func (c *cli) progress(what string, total int64) *terminal.Progress {
	if f, ok := c.stderr.(*os.File); ok && terminal.Is(f) {
		return terminal.NewProgress(f, what, total)
	}
	return nil
}

// openInput opens a file, or standard input if the name is -. Reads of standard input end with ctx.
func (c *cli) openInput(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(terminal.Interruptible(ctx, c.stdin)), nil
	}
	return os.Open(name)
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
		err := c.store.mails(ctx, 0, -1, "", func(m *queuedMail) {
			next := m.nextTryAt
			if m.state != mailQueued {
				next = 0
			}
			list.Row(newMailAnswer(m), m.id, m.kind, idOrDash(m.userID), m.email, when(m.createdAt), m.state, m.tries, when(next), m.lastError)
		})
		return errors.Join(err, list.Flush())
	}
}

func mailRetry(ctx context.Context, c *cli) error {
	var id int64
	if len(c.args) > 0 {
		var err error
		if id, err = param.ID(c.args[0]); err != nil {
			return usagef("mail retry: %q: the id of a mail is a positive integer", c.args[0])
		}
	}
	n, err := c.store.retryMail(ctx, console, id, c.wall().Unix())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s due now\n", plural(n, "mail"))
	return err
}

// lifeFlag adds the flag -ttl, and returns how long a link is valid, within the bounds of l.
func lifeFlag(f *flag.FlagSet, l lifetime) *time.Duration {
	life := l.standard
	usage := fmt.Sprintf("How long the link is valid: a `TIME` from %s to %s. Default: %s", setting.FormatTTL(l.shortest), setting.FormatTTL(l.longest), setting.FormatTTL(l.standard))
	f.Func("ttl", usage, func(v string) error { return setting.TTL(&life, v, l.shortest, l.longest) })
	return &life
}

func userResetLink(f *flag.FlagSet) action {
	life := lifeFlag(f, resetLinkLife)
	return func(ctx context.Context, c *cli) error {
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		pages, err := c.store.pages()
		if err != nil {
			return err
		}
		link, expires, err := c.makeResetLink(ctx, console, pages, u.id, *life)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.stderr, "a link for %s, for one use until %s:\n", terminal.Printable(u.username), when(expires))
		_, err = fmt.Fprintln(c.stdout, link)
		return err
	}
}

func userInvite(f *flag.FlagSet) action {
	v := invitation{role: member, usesLeft: 1}
	f.Func("email", "Invite only the owner of this `ADDRESS`, and verify it.", func(s string) error {
		if v.email = validate.TrimName(s); v.email == "" {
			return errors.New("must not be empty")
		}
		return nil
	})
	f.Func("uses", fmt.Sprintf("How many users can register with the link: a number `N` from 1 to %d. Default: 1", maxUses), func(s string) (err error) {
		if v.usesLeft, err = strconv.ParseInt(s, 10, 64); err != nil || v.usesLeft < 1 || v.usesLeft > maxUses {
			return fmt.Errorf("must be from 1 to %d", maxUses)
		}
		return nil
	})
	makeAdmin := f.Bool("admin", false, "Make the users admins, who may read, change and delete every user.")
	life := lifeFlag(f, invitationLife)
	return func(ctx context.Context, c *cli) error {
		if *makeAdmin {
			v.role = admin
		}
		if err := checkInvitation(&v, ""); err != nil {
			return err
		}
		pages, err := c.store.pages()
		if err != nil {
			return err
		}
		link, err := c.makeInvitation(ctx, console, pages, &v, *life)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.stderr, "invitation %d, for %s, valid until %s:\n", v.id, plural(v.usesLeft, "new "+string(v.role)), when(v.expiresAt))
		_, err = fmt.Fprintln(c.stdout, link)
		return err
	}
}

func invitationList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		list := terminal.NewList(c.stdout, *asJSON, "ID", "EMAIL", "USERNAME", "ROLE", "USES LEFT", "CREATED", "EXPIRES")
		err := c.store.invitations(ctx, 0, -1, c.wall().Unix(), func(v *invitation) {
			list.Row(newInvitationAnswer(v), v.id, v.email, v.username, v.role, v.usesLeft, when(v.createdAt), when(v.expiresAt))
		})
		return errors.Join(err, list.Flush())
	}
}

func invitationDelete(ctx context.Context, c *cli) error {
	id, err := param.ID(c.args[0])
	if err != nil {
		return usagef("invitation delete: %q: the id of an invitation is a positive integer", c.args[0])
	}
	if err := c.store.deleteInvitation(ctx, console, id, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "deleted invitation %d\n", id)
	return err
}

func keyList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		keys, err := c.store.signingKeys(ctx)
		if err != nil {
			return err
		}
		last, err := c.store.signer()
		if err != nil {
			return err
		}
		if last.configured {
			fmt.Fprintf(c.stderr, "since %s the servers of this database sign with JWT_SECRET_KEY instead of these keys\n", when(last.since))
		}
		list := terminal.NewList(c.stdout, *asJSON, "KID", "CREATED", "RETIRED", "GOOD UNTIL")
		for _, k := range keys {
			list.Row(struct {
				KID       string    `json:"kid"`
				CreatedAt time.Time `json:"created_at"`
				RetiredAt time.Time `json:"retired_at,omitzero"`
				GoodUntil time.Time `json:"good_until,omitzero"`
			}{k.kid, utc(k.createdAt), utc(k.retiredAt), utc(k.goodUntil)},
				k.kid, when(k.createdAt), when(k.retiredAt), when(k.goodUntil))
		}
		return list.Flush()
	}
}

func keyRotate(f *flag.FlagSet) action {
	end := f.Bool("now", false, "Delete the earlier keys now: the access tokens that they signed are no longer valid. Use it if a key may have leaked.")
	refresh := f.Bool("refresh", false, "Replace the key of refresh tokens instead: every session must log in again when its access token expires.")
	data := f.Bool("data", false, "Instead encrypt the TOTP secrets in the database again, under DATA_KEY, or under the key in the database if it is not set.")
	return func(ctx context.Context, c *cli) error {
		now := c.wall().Unix()
		if *data && (*refresh || *end) {
			return usagef("key rotate: -data cannot be combined with -now or -refresh; run the command once with each")
		}
		if *data {
			done, err := c.rotateDataKey(ctx)
			if done != "" {
				fmt.Fprintln(c.stdout, done)
			}
			return err
		}
		if *refresh && *end {
			return usagef("key rotate: -now and -refresh replace different keys; run the command once with each")
		}
		if *refresh {
			if err := c.store.rotateSecret(ctx, "refresh", randomKey().secret, now); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.stdout, "replaced the key of refresh tokens; earlier refresh tokens are no longer valid")
			return err
		}
		last, err := c.store.signer()
		if err != nil {
			return err
		}
		if last.since > 0 && last.configured {
			return fmt.Errorf("since %s the servers of this database sign with JWT_SECRET_KEY; move it to JWT_SECRET_KEY_PREVIOUS and set a new one, or start a server without it", when(last.since))
		}
		if last.since == 0 && len(c.secret) > 0 {
			return fmt.Errorf("%s is set and signs; move it to JWT_SECRET_KEY_PREVIOUS and set a new one", c.secretFrom)
		}
		key := randomKey()
		if err := c.store.rotateKey(ctx, key, *end, now); err != nil {
			return err
		}
		text := ""
		if *end {
			text = "; the earlier keys are no longer valid"
		}
		_, err = fmt.Fprintf(c.stdout, "key %s signs from now on%s\n", key.kid, text)
		return err
	}
}
