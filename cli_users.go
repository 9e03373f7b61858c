package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"userd/internal/otp"
	"userd/internal/param"
	"userd/internal/qr"
	"userd/internal/setting"
	"userd/internal/terminal"
	"userd/internal/validate"
)

func userAdd(f *flag.FlagSet) action {
	makeAdmin := f.Bool("admin", false, "Make the user an admin, who may read, change and delete every user.")
	service := f.Bool("service", false, "Add a service user, which has no EMAIL and no password, only API keys: see userd token add.")
	return func(ctx context.Context, c *cli) error {
		u := user{username: validate.TrimName(c.args[0]), role: member, service: *service}
		switch {
		case *service && len(c.args) > 1:
			return usagef("user add: a service user has no EMAIL; usage: userd user add -service NAME")
		case !*service && len(c.args) == 1:
			return usagef("user add: missing EMAIL; usage: userd user add [flags] NAME EMAIL")
		case !*service:
			u.email = validate.TrimName(c.args[1])
		}
		if _, err := inspectDatabase(ctx, c.database); err != nil { // before it asks for the password
			return err
		}
		password := ""
		if !*service {
			err := c.checkChange(&change{username: &u.username, email: &u.email}, &u, nil)
			if err != nil {
				return err
			}
			if password, err = c.readPassword(ctx); err != nil {
				return err
			}
		}
		if *makeAdmin {
			u.role = admin
		}
		c.policy = c.passwords
		if err := c.checkNew(&u, password); err != nil {
			return err
		}
		return c.withDatabase(ctx, true, refuse, func(ctx context.Context, c *cli) error {
			if err := c.addUser(ctx, console, &u, password); err != nil {
				return err
			}
			kind := ""
			if u.service {
				kind = ", a service user"
			}
			_, err := fmt.Fprintf(c.stdout, "added %s %s%s, id %d\n", u.role, u.username, kind, u.id)
			return err
		})
	}
}

func userList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		return c.writeUsers(*asJSON, func(row func(u *user)) error {
			return c.store.users(ctx, 0, -1, filter{}, row)
		})
	}
}

func userShow(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		return c.writeUser(*asJSON, &u)
	}
}

// writeUser prints a user, one field a line or as one JSON object.
func (c *cli) writeUser(asJSON bool, u *user) error {
	if asJSON {
		_, err := c.stdout.Write(append(appendUser(nil, u, viewAll), '\n'))
		return err
	}
	table := terminal.NewTable(c.stdout, "ID", u.id)
	table.Row("USERNAME", u.username)
	table.Row("EMAIL", u.email)
	table.Row("ROLE", u.role)
	table.Row("DISABLED", u.disabled)
	table.Row("CREATED", when(u.createdAt))
	table.Row("UPDATED", when(u.updatedAt))
	table.Row("LAST LOGIN", when(u.lastLoginAt))
	table.Row("EMAIL VERIFIED", when(u.emailVerifiedAt))
	table.Row("PENDING EMAIL", cmp.Or(u.pendingEmail, "-"))
	table.Row("PENDING", u.pending)
	table.Row("SERVICE", u.service)
	return table.Flush()
}

// writeUsers prints the users that each passes to row, as a table or as one JSON
// object a line.
func (c *cli) writeUsers(asJSON bool, each func(row func(*user)) error) error {
	out := bufio.NewWriter(c.stdout)
	if asJSON {
		var line []byte
		err := each(func(u *user) {
			line = append(appendUser(line[:0], u, viewAll), '\n')
			out.Write(line)
		})
		return errors.Join(err, out.Flush())
	}
	table := terminal.NewTable(out, "ID", "USERNAME", "EMAIL", "ROLE", "DISABLED", "PENDING", "LAST LOGIN")
	err := each(func(u *user) {
		table.Row(u.id, u.username, u.email, u.role, u.disabled, u.pending, when(u.lastLoginAt))
	})
	return errors.Join(err, table.Flush(), out.Flush())
}

func userSet(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	var set change
	f.Func("username", "Set the username to `NAME`.", func(v string) error { set.username = new(validate.TrimName(v)); return nil })
	f.Func("email", "Set the e-mail address to `ADDRESS`.", func(v string) error { set.email = new(validate.TrimName(v)); return nil })
	f.Func("role", "Set the role to `ROLE`: member or admin.", func(v string) error {
		set.role = new(role)
		return setting.Word(set.role, v, member, admin)
	})
	boolean := func(to **bool) func(string) error {
		return func(v string) error {
			var word string
			*to = new(v == "true")
			return setting.Word(&word, v, "true", "false")
		}
	}
	f.Func("disabled", "Disable the user, or enable it again: `true|false`.", boolean(&set.disabled))
	f.Func("email-verified", "Mark the e-mail address as verified, or as not verified: `true|false`.", boolean(&set.verified))
	return func(ctx context.Context, c *cli) error {
		if set == (change{}) {
			return usagef("user set: missing a flag: -username, -email, -email-verified, -role or -disabled")
		}
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		set.username, set.email = unlessSame(set.username, u.username), unlessSame(set.email, u.email)
		set.role, set.disabled = unlessSame(set.role, u.role), unlessSame(set.disabled, u.disabled)
		if set.email == nil {
			set.verified = unlessSame(set.verified, u.emailVerifiedAt != 0)
		}
		version := int64(0)
		if set.verified != nil {
			version = u.version // another address would be verified if the user changed it now
		}
		if err := c.checkChange(&set, &u, nil); err != nil {
			return err
		}
		if set != (change{}) { // an empty change would be recorded as an event too
			if u, err = c.changeUser(ctx, console, u.id, set, nil, version); err != nil {
				return err
			}
		}
		return c.writeUser(*asJSON, &u)
	}
}

func userPasswd(ctx context.Context, c *cli) error {
	u, err := c.user(c.args[0])
	if err != nil {
		return err
	}
	if u.service {
		return errServiceUser
	}
	password, err := c.readPassword(ctx)
	if err != nil {
		return err
	}
	var set change
	if err := c.checkChange(&set, &u, &password); err != nil {
		return err
	}
	if _, err := c.changeUser(ctx, console, u.id, set, &password, 0); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "changed the password of %s, and ended all sessions\n", terminal.Printable(u.username))
	return err
}

func userApprove(ctx context.Context, c *cli) error {
	u, err := c.user(c.args[0])
	if err != nil {
		return err
	}
	outcome := "approved"
	if !u.pending {
		outcome = "nothing to do: no approval is pending for"
	}
	if u, err = c.store.approve(ctx, console, u.id, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s %s, id %d\n", outcome, terminal.Printable(u.username), u.id)
	return err
}

func userDelete(ctx context.Context, c *cli) error {
	u, err := c.user(c.args[0])
	if err != nil {
		return err
	}
	if err := c.store.deleteUser(ctx, console, u.id, 0, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "deleted %s, id %d\n", terminal.Printable(u.username), u.id)
	return err
}

func sessionList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		list := terminal.NewList(c.stdout, *asJSON, "ID", "CREATED", "LAST USED", "EXPIRES", "ADDRESS", "USER AGENT")
		err = c.store.sessionsOf(ctx, u.id, c.wall().Unix(), func(x *session) {
			list.Row(newSessionAnswer(x, 0), x.id, when(x.createdAt), when(x.lastUsedAt), when(x.expiresAt), x.address, x.userAgent)
		})
		return errors.Join(err, list.Flush())
	}
}

func sessionEnd(ctx context.Context, c *cli) error {
	u, err := c.user(c.args[0])
	if err != nil {
		return err
	}
	if len(c.args) == 1 {
		if err := c.store.endSessions(ctx, console, u.id, c.wall().Unix()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "ended all sessions of %s\n", terminal.Printable(u.username))
		return err
	}
	sid, err := param.ID(c.args[1])
	if err != nil {
		return usagef("session end: %q: the id of a session is a positive integer", c.args[1])
	}
	if err := c.store.endSession(ctx, console, u.id, sid, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "ended session %d of %s\n", sid, terminal.Printable(u.username))
	return err
}

// tokenAdd makes an API key. It also accepts the scope admin and a key that never expires,
// which HTTP refuses.
func tokenAdd(f *flag.FlagSet) action {
	k := apiKey{scope: readScope}
	f.Func("scope", "What the key may do: `SCOPE` is verify, read, write or, only for an admin, admin. Default: read", func(v string) error {
		return setting.Word(&k.scope, v, verifyScope, readScope, writeScope, adminScope)
	})
	life := keyLife.standard
	f.Func("expires", "How long the key is valid: `TIME` is from 1h to 366d, such as 90d or 12h. With never, the key does not expire. Default: 90d", func(v string) error {
		if v == "never" {
			life = 0
			return nil
		}
		if setting.DaysTTL(&life, v, keyLife.shortest, keyLife.longest) != nil {
			return errors.New("must be from 1h to 366d, such as 90d or 12h, or never")
		}
		return nil
	})
	return func(ctx context.Context, c *cli) error {
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		k.userID, k.name = u.id, c.args[1]
		key, err := c.addKey(ctx, console, &k, life)
		if errors.Is(err, errKeyScope) {
			return fmt.Errorf("%s is a member: only an admin can have a key with the scope admin", terminal.Printable(u.username))
		}
		if err != nil {
			return err
		}
		until := "valid until it is revoked"
		if k.expiresAt != 0 {
			until = "valid until " + when(k.expiresAt)
		}
		fmt.Fprintf(c.stderr, "key %d of %s, with the scope %s, %s; userd does not show it again:\n", k.id, terminal.Printable(u.username), k.scope, until)
		_, err = fmt.Fprintln(c.stdout, key)
		return err
	}
}

func tokenList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		list := terminal.NewList(c.stdout, *asJSON, "ID", "NAME", "PREFIX", "SCOPE", "CREATED", "EXPIRES", "LAST USED", "ADDRESS")
		err = c.store.keysOf(ctx, u.id, func(k *apiKey) {
			list.Row(newKeyAnswer(k), k.id, k.name, k.prefix, k.scope, when(k.createdAt), when(k.expiresAt), when(k.lastUsedAt), k.lastAddress)
		})
		return errors.Join(err, list.Flush())
	}
}

func tokenRevoke(ctx context.Context, c *cli) error {
	u, err := c.user(c.args[0])
	if err != nil {
		return err
	}
	id, err := param.ID(c.args[1])
	if err != nil {
		return usagef("token revoke: %q: the id of a key is a positive integer, as userd token list prints it", shorten(c.args[1]))
	}
	if err := c.store.revokeKey(ctx, console, u.id, id, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "revoked key %d of %s\n", id, terminal.Printable(u.username))
	return err
}

func userTOTP(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	off := f.Bool("off", false, "Remove the second factor and the recovery codes.")
	on := f.Bool("on", false, "Add a second factor, or replace it: print a QR code, read a code of the app from standard input, then print the recovery codes. All sessions of the user end.")
	return func(ctx context.Context, c *cli) error {
		if *off && *on {
			return usagef("user totp: -on and -off cannot be combined")
		}
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		switch {
		case *off:
			if err := c.store.removeFactor(ctx, console, u.id, c.wall().Unix()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.stdout, "removed the second factor of %s\n", terminal.Printable(u.username))
			return err
		case *on:
			return c.addFactor(ctx, &u)
		}
		state, err := c.factorState(u.id)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(c.stdout).Encode(state)
		}
		since := int64(0)
		if state.On {
			since = state.Since.Unix()
		}
		table := terminal.NewTable(c.stdout, "TOTP", onOff(state.On))
		table.Row("SINCE", when(since))
		table.Row("RECOVERY CODES LEFT", state.RecoveryCodesLeft)
		table.Row("LOCKED", state.Locked)
		return table.Flush()
	}
}

// addFactor adds a factor to a user. It prints the QR code and the prompt to standard error, and
// only the recovery codes to standard output, one a line.
func (c *cli) addFactor(ctx context.Context, u *user) error {
	if u.service {
		return errServiceUser
	}
	if err := c.checkDataKeys(ctx); err != nil {
		return err
	}
	secret, err := c.beginFactor(ctx, console, u.id)
	if err != nil {
		return err
	}
	uri := c.factorURI(u, secret)
	if code, err := qr.Encode(uri); err == nil { // a long issuer may not fit
		f, ok := c.stderr.(*os.File)
		if err := code.Print(c.stderr, ok && terminal.Is(f)); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.stderr, "Scan the code with an authenticator app, or type this secret into it:\n%s\n%s\nThe code that the app shows now: ", otp.EncodeSecret(secret), uri)
	line, err := terminal.ReadLine(ctx, c.stdin, "code", 256)
	if err != nil {
		return fmt.Errorf("%w; the second factor was not added", err)
	}
	codes, err := c.confirmFactor(ctx, console, u.id, line)
	if errors.Is(err, errWrongOTP) {
		return errors.New("the code is wrong, so the second factor was not added: check the clocks of the app and of this machine, and run the command again")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "added the second factor of %s, and ended its sessions; each of these recovery codes works once:\n", terminal.Printable(u.username))
	_, err = fmt.Fprintln(c.stdout, strings.Join(codes, "\n"))
	return err
}
