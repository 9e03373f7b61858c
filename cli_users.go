package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strings"
)

func (c *cli) addFlags(f *flag.FlagSet) { f.BoolVar(&c.admin, "admin", false, "") }

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

func (c *cli) exportFlags(f *flag.FlagSet) { f.BoolVar(&c.ndjson, "ndjson", false, "") }

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
		u, err = c.store.user(id)
	} else {
		u, _, err = c.store.userByLogin(name)
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
	if err := c.addUser(ctx, console, &u, password); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "added %s %s, id %d\n", u.role, u.username, u.id)
	return err
}

func userList(ctx context.Context, c *cli) error {
	return c.print(func(row func(u *user)) error {
		return c.store.users(ctx, 0, -1, filter{}, row)
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
	u, err = c.changeUser(ctx, console, u.id, c.change, nil, 0)
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
	if _, err := c.changeUser(ctx, console, u.id, set, &password, 0); err != nil {
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
	if err := c.store.deleteUser(ctx, console, u.id, 0, c.now().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "deleted %s, id %d\n", u.username, u.id)
	return err
}

// userExport writes every user as it stands at one moment.
func userExport(ctx context.Context, c *cli) error {
	out := bufio.NewWriterSize(c.stdout, 1<<16)
	progress := c.progress()
	n := 0
	if c.ndjson {
		var line []byte
		err := c.store.export(ctx, func(u *user, hash string) {
			n++
			progress("%d users written", n)
			line = appendUser(line[:0], u, viewAll)
			line = append(line[:len(line)-1], `,"password_hash":`...)
			line = append(appendString(line, hash), "}\n"...)
			out.Write(line)
		})
		return errors.Join(err, out.Flush())
	}
	rows := csv.NewWriter(out)
	rows.Write(exportColumns)
	err := c.store.export(ctx, func(u *user, hash string) {
		n++
		progress("%d users written", n)
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
		})
	})
	rows.Flush()
	return errors.Join(err, rows.Error(), out.Flush())
}

func exportTime(unix int64) string {
	if unix == 0 {
		return ""
	}
	return when(unix)
}

func sessionList(ctx context.Context, c *cli) error {
	u, err := c.user()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(c.stdout)
	table := newTable(out, "ID", "CREATED", "LAST USED", "EXPIRES", "ADDRESS", "USER AGENT")
	lines := json.NewEncoder(out)
	err = c.store.sessionsOf(ctx, u.id, c.now().Unix(), func(x *session) {
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
		if err := c.store.endSessions(ctx, console, u.id, c.now().Unix()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "all sessions of %s are ended\n", u.username)
		return err
	}
	sid, err := parseID(c.names[1])
	if err != nil {
		return usagef("%q: a session is a positive integer", c.names[1])
	}
	if err := c.store.endSession(ctx, console, u.id, sid, c.now().Unix()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "session %d of %s has ended\n", sid, u.username)
	return err
}
