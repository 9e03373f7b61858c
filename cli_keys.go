package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"userd/internal/otp"
	"userd/internal/qr"
	"userd/internal/setting"
	"userd/internal/terminal"
)

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
			return fmt.Errorf("%s is a member: only an admin can have a key with the scope admin.", terminal.Printable(u.username))
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
	id, err := parseID(c.args[1])
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
	enrol := f.Bool("enrol", false, "Add a second factor, or replace it: print a QR code, read a code of the app from standard input, then print the recovery codes. All sessions of the user end.")
	return func(ctx context.Context, c *cli) error {
		if *off && *enrol {
			return usagef("user totp: -off and -enrol cannot be combined")
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
		case *enrol:
			return c.enrol(ctx, &u)
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

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// enrol adds a factor to a user. It prints the QR code and the prompt to standard error, and
// only the recovery codes to standard output, one a line.
func (c *cli) enrol(ctx context.Context, u *user) error {
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
	line, err := terminal.ReadLine(c.stdin, "code", 256)
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
