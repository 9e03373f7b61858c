package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"userd/internal/otp"
	"userd/internal/setting"
	"userd/internal/terminal"
	"userd/internal/validate"
)

// user returns the user that an argument names: by username, by e-mail address,
// or as id=7.
func (c *cli) user(name string) (user, error) {
	var u user
	var err error
	if digits, ok := strings.CutPrefix(name, "id="); ok {
		id, perr := parseID(digits)
		if perr != nil {
			return u, usagef("%q: an id is a positive integer", name)
		}
		u, err = c.store.user(id)
	} else {
		u, _, err = c.store.userByLogin(name)
	}
	switch _, digits := parseID(name); {
	case !errors.Is(err, errUserNotFound):
		return u, err
	case digits == nil:
		return u, errUserNotFound.with("user %q does not exist; write an id as id=%s", name, name)
	}
	return u, errUserNotFound.with("user %q does not exist", name)
}

func userAdd(f *flag.FlagSet) action {
	makeAdmin := f.Bool("admin", false, "Make the user an admin, who may read, change and delete every user.")
	service := f.Bool("service", false, "Add a service user, which has no EMAIL and no password, only API keys: see userd token add.")
	return func(ctx context.Context, c *cli) error {
		u := user{username: c.args[0], role: member, service: *service}
		switch {
		case *service && len(c.args) > 1:
			return usagef("user add: a service user has no EMAIL; usage: userd user add -service NAME")
		case !*service && len(c.args) == 1:
			return usagef("user add: missing EMAIL; usage: userd user add [flags] NAME EMAIL")
		case !*service:
			u.email = c.args[1]
		}
		if _, err := inspectDatabase(ctx, c.database); err != nil { // before it asks for the password
			return err
		}
		password := ""
		if !*service {
			var err error
			if password, err = c.readPassword(ctx); err != nil {
				return err
			}
		}
		if *makeAdmin {
			u.role = admin
		}
		c.policy = c.passwords
		if err := c.checkNew(&u, password); err != nil {
			return plainError(err)
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
	f.Func("disabled", "Disable the user, or enable it again: `true|false`.", func(v string) error {
		var word string
		disabled := v == "true"
		set.disabled = &disabled
		return setting.Word(&word, v, "true", "false")
	})
	return func(ctx context.Context, c *cli) error {
		if set == (change{}) {
			return usagef("user set: missing a flag: -username, -email, -role or -disabled")
		}
		u, err := c.user(c.args[0])
		if err != nil {
			return err
		}
		set.username, set.email = unlessSame(set.username, u.username), unlessSame(set.email, u.email)
		set.role, set.disabled = unlessSame(set.role, u.role), unlessSame(set.disabled, u.disabled)
		if err := c.checkChange(&set, &u, nil); err != nil {
			return err
		}
		if set != (change{}) { // an empty change would be recorded as an event too
			if u, err = c.changeUser(ctx, console, u.id, set, nil, 0); err != nil {
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
	id, err := parseID(c.args[0])
	if err != nil {
		return usagef("invitation delete: %q: the id of an invitation is a positive integer", c.args[0])
	}
	if err := c.store.deleteInvitation(ctx, console, id, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "deleted invitation %d\n", id)
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

func userExport(f *flag.FlagSet) action {
	ndjson := f.Bool("ndjson", false, "Write one JSON object a line instead of CSV.")
	return func(ctx context.Context, c *cli) error {
		if f, ok := c.stdout.(*os.File); ok && terminal.Is(f) {
			return usagef("user export: refusing to print password hashes to a terminal; redirect or pipe the output")
		}
		export := exportCSV
		if *ndjson {
			export = exportNDJSON
		}
		out := bufio.NewWriterSize(c.stdout, 1<<16)
		write, flush := export(out)
		users, _, err := c.store.count(ctx)
		if err != nil {
			return err
		}
		progress := c.progress("users written", users)
		defer progress.End()
		n := 0
		var unreadable error
		err = c.store.export(ctx, func(u *user, hash string, sealed []byte) {
			n++
			progress.Show(n, int64(n))
			totp := ""
			if len(sealed) > 0 {
				secret, err := c.unseal(ctx, sealed, sealName(u.id))
				if err != nil { // without its secret, the user would lose its second factor
					unreadable = err
					return
				}
				totp = otp.EncodeSecret(secret)
			}
			write(u, hash, totp)
		})
		return errors.Join(err, unreadable, flush(), out.Flush())
	}
}

func exportCSV(out io.Writer) (write func(u *user, hash, totp string), flush func() error) {
	rows := csv.NewWriter(out)
	rows.Write(exportColumns)
	write = func(u *user, hash, totp string) {
		if u.service {
			hash = ""
		}
		rows.Write([]string{
			fmt.Sprint(u.id),
			u.username,
			u.email,
			hash,
			string(u.role),
			fmt.Sprint(u.disabled),
			exportTime(u.createdAt),
			exportTime(u.updatedAt),
			exportTime(u.lastLoginAt),
			exportTime(u.emailVerifiedAt),
			fmt.Sprint(u.pending),
			fmt.Sprint(u.service),
			totp,
		})
	}
	return write, func() error { rows.Flush(); return rows.Error() }
}

func exportNDJSON(out io.Writer) (write func(u *user, hash, totp string), flush func() error) {
	var line []byte
	write = func(u *user, hash, totp string) {
		u.pendingEmail = "" // no code of a copy could confirm it
		line = appendUser(line[:0], u, viewAll)
		if !u.service {
			line = append(line[:len(line)-1], `,"password_hash":`...)
			line = appendString(line, hash)
			if totp != "" {
				line = appendString(append(line, `,"totp_secret":`...), totp)
			}
			line = append(line, '}')
		}
		line = append(line, '\n')
		out.Write(line)
	}
	return write, func() error { return nil }
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
	sid, err := parseID(c.args[1])
	if err != nil {
		return usagef("session end: %q: the id of a session is a positive integer", c.args[1])
	}
	if err := c.store.endSession(ctx, console, u.id, sid, c.wall().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "ended session %d of %s\n", sid, terminal.Printable(u.username))
	return err
}
