package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"userd/internal/appendjson"
	"userd/internal/otp"
	"userd/internal/param"
	"userd/internal/passhash"
	"userd/internal/rows"
	"userd/internal/setting"
	"userd/internal/strictjson"
	"userd/internal/terminal"
	"userd/internal/validate"
)

// eventList prints events, and with -follow also each new one until ctx ends.
func eventList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	follow := f.Bool("follow", false, "Print new events until interrupted; with -after, first those after that id.")
	name := f.String("user", "", "Print only events about this `USER`.")
	var only eventFilter
	f.Func("type", "Print only events of this `TYPE`: "+setting.OrList(eventTypes)+".", func(v string) error {
		return setting.Word(&only.kind, v, eventTypes...)
	})
	after := int64(-1) // not given
	f.Func("after", "Print only events after the one with this `ID`.", func(v string) (err error) {
		if after = 0; v != "0" {
			after, err = param.ID(v)
		}
		return err
	})
	return func(ctx context.Context, c *cli) (err error) {
		if *name != "" {
			if only.userID, err = c.eventUser(*name); err != nil {
				return err
			}
		}
		if *follow && after < 0 {
			if after, err = c.store.lastEvent(); err != nil {
				return err
			}
		}
		return c.printEvents(ctx, max(after, 0), only, *follow, *asJSON)
	}
}

// eventUser returns the id of the user that an argument names. It accepts the id of a
// deleted user.
func (c *cli) eventUser(name string) (id int64, err error) {
	u, err := c.user(name)
	if digits, ok := strings.CutPrefix(name, "id="); ok && errors.Is(err, errUserNotFound) {
		return param.ID(digits)
	}
	return u.id, err
}

func (c *cli) printEvents(ctx context.Context, after int64, only eventFilter, follow, asJSON bool) error {
	out := bufio.NewWriter(c.stdout)
	lines := json.NewEncoder(out)
	var table *terminal.Table
	if !asJSON {
		table = terminal.NewTable(out, "ID", "AT", "TYPE", "ACTOR", "USER", "SESSION", "ADDRESS", "CHANGES")
		// So that later rows align too: ids of up to 8 digits, ids with names of up to 16
		// characters, all types, and IPv4 addresses.
		table.Widen(8, 20, 14, 16, 16, 8, 15, 0)
	}
	for {
		names := make(map[int64]string) // only for this read: users can be renamed later
		next, more, err := c.store.eventsSince(ctx, after, only, func(e *event) {
			if asJSON {
				lines.Encode(newEventAnswer(e))
				return
			}
			table.Row(e.id, when(e.at), e.kind, c.idAndName(e.actorID, names), c.idAndName(e.userID, names), idOrDash(e.sessionID), e.address, e.changes)
		})
		if err := errors.Join(table.Flush(), out.Flush()); err != nil {
			return err
		}
		if follow && ctx.Err() != nil {
			return nil
		}
		if err != nil || !more && !follow {
			return err
		}
		if after = next; more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// idAndName returns the id of a user and its current name, if the user still exists: an
// event has only the id. It caches its results in names.
func (c *cli) idAndName(id int64, names map[int64]string) string {
	text, ok := names[id]
	if !ok {
		text = idOrDash(id)
		if u, err := c.store.user(id); err == nil {
			text += " " + u.username
		}
		names[id] = text
	}
	return text
}

// eventsVerify recomputes the chain of events and prints its head. It returns an error if
// the chain is broken, lacks the head that was noted elsewhere, or begins too late.
func eventsVerify(ctx context.Context, c *cli) error {
	var noted head
	if len(c.args) == 1 {
		id, hash, _ := strings.Cut(c.args[0], ":")
		hash = strings.ToLower(hash)
		eventID, err := param.ID(id)
		if sum, notHex := hex.DecodeString(hash); err != nil || notHex != nil || len(sum) != sha256.Size {
			return usagef("events verify: %q is not a head: this command prints it as ID:HEX, with %d digits", c.args[0], 2*sha256.Size)
		}
		noted = head{eventID, hash}
	}
	v, err := c.store.verifyEvents(ctx, math.MaxInt64, noted)
	if v.links > 0 {
		fmt.Fprintf(c.stdout, "verified events: %d, in links: %d\n", v.events, v.links)
	}
	if err != nil {
		return err
	}
	if v.base.eventID > 0 {
		fmt.Fprintf(c.stdout, "deleted events: up to %d, the last from %s\n", v.base.eventID, when(v.base.at))
	}
	switch {
	case v.links > 0:
		fmt.Fprintf(c.stdout, "head: %s\n", v.head.name())
	case v.unlinked.events > 0:
		fmt.Fprintln(c.stdout, "no head yet: no event has a link")
	default:
		fmt.Fprintln(c.stdout, "no head yet: the database has no events")
	}
	_, err = fmt.Fprintf(c.stdout, "events without a link yet: %d\n", v.unlinked.events)
	return errors.Join(err, checkBase(&v, c.eventRetention, c.wall()), checkNoted(&v))
}

// checkBase returns an error if the last deleted event is younger than the retention (0:
// events are never deleted).
func checkBase(v *verification, retention time.Duration, now time.Time) error {
	kept := fmt.Sprintf("keeps events for %v", retention)
	switch {
	case v.base.eventID == 0, retention > 0 && v.base.at < now.Add(-retention).Unix():
		return nil
	case retention == 0:
		kept = "keeps all events"
	}
	return fmt.Errorf("events up to %d, the last from %s, were deleted too early: EVENT_RETENTION %s; this also happens after EVENT_RETENTION was made longer",
		v.base.eventID, when(v.base.at), kept)
}

// checkNoted returns an error unless the head that was noted, if any, is in the chain.
func checkNoted(v *verification) error {
	noted := v.noted
	why := "its events were changed, removed or inserted"
	switch {
	case v.found || noted == (head{}):
		return nil
	case noted.eventID < v.base.eventID:
		why = fmt.Sprintf("events up to %d were deleted since; note a newer head", v.base.eventID)
	case noted.eventID > v.head.eventID:
		why = fmt.Sprintf("the newest link is at event %d, so newer events or links were removed, or an older database was restored", v.head.eventID)
	}
	return fmt.Errorf("the head %s is not in the chain: %s", noted, why)
}

// exportColumns are the columns of an export, in order.
var exportColumns = []string{"id", "username", "email", "password_hash", "role", "disabled", "created_at", "updated_at", "last_login_at", "email_verified_at", "pending", "service", "totp_secret"}

func userExport(f *flag.FlagSet) action {
	ndjson := f.Bool("ndjson", false, "Write one JSON object a line instead of CSV.")
	return func(ctx context.Context, c *cli) error {
		if f, ok := c.stdout.(*os.File); ok && terminal.Is(f) {
			return usagef("user export: refusing to print password hashes to a terminal; redirect or pipe the output")
		}
		if err := c.checkDataKeys(ctx); err != nil { // before the first row is written
			return err
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
			line = appendjson.String(line, hash)
			if totp != "" {
				line = appendjson.String(append(line, `,"totp_secret":`...), totp)
			}
			line = append(line, '}')
		}
		line = append(line, '\n')
		out.Write(line)
	}
	return write, func() error { return nil }
}

func exportTime(unix int64) string {
	if unix == 0 {
		return ""
	}
	return when(unix)
}

// importColumns are the columns that an import knows.
var importColumns = append([]string{"password"}, exportColumns...)

// djangoColumns maps the columns of Django's table auth_user to the fields of a
// row. Those that map to "" are ignored.
var djangoColumns = map[string]string{
	"id": "id", "username": "username", "email": "email", "password": "password_hash", "date_joined": "created_at", "last_login": "last_login_at",
	"is_superuser": "is_superuser", "is_active": "is_active", "first_name": "", "last_name": "", "is_staff": "",
}

// importedRows returns the rows of a file for user import. A row has at most the size of a
// request's body, which also holds one user.
func importedRows(in io.Reader) (*rows.Reader, error) {
	return rows.NewReader(in, rows.Format{MaxRow: maxBody, Columns: importFields, Object: importObject})
}

// importFields returns the field that each column of a CSV file fills. If the file has no
// header, the error repeats nothing of the first row, which has a user's address and hash.
func importFields(header []string) ([]string, error) {
	if !slices.Contains(header, "username") || !slices.Contains(header, "email") {
		return nil, errors.New("the first row must be a header with at least the columns username and email: see userd help user import")
	}
	django := slices.Contains(header, "date_joined")
	fields := make([]string, len(header))
	for i, column := range header {
		known := slices.Contains(importColumns, column)
		if fields[i] = column; django {
			fields[i], known = djangoColumns[column]
		}
		if !known {
			return nil, fmt.Errorf("unknown column %q: see userd help user import", column)
		}
	}
	return fields, nil
}

// importObject returns the fields of one JSON object, or its problem. The problem names an
// unknown member only if the object has a username or an email: the names of the members of
// other objects can be addresses.
func importObject(object []byte) (fields map[string]string, problem string) {
	fields = make(map[string]string)
	unknown := ""
	err := strictjson.Members(object, func(name string, value []byte) error {
		if !slices.Contains(importColumns, name) {
			unknown = cmp.Or(unknown, fmt.Sprintf("unknown member %q", shorten(name)))
			return nil
		}
		var text string // stays empty for null
		if json.Unmarshal(value, &text) != nil {
			if slices.Contains([]string{"username", "email", "password", "password_hash", "role", "totp_secret"}, name) {
				return fmt.Errorf("%s must be a string", name)
			}
			text = string(value) // of an id, a time or a boolean
		}
		fields[name] = text
		return nil
	})
	_, named := fields["username"]
	_, addressed := fields["email"]
	switch {
	case !named && !addressed && unknown != "":
		return nil, "has neither username nor email"
	case err != nil:
		return nil, err.Error()
	case unknown != "":
		return nil, unknown
	}
	return fields, ""
}

// An importRow is one user of an import file. number and end are those of its rows.Row.
type importRow struct {
	number   int
	end      int64 // bytes
	user     user
	password string // to be hashed; empty if hash is given
	hash     string
	totp     string // a secret in base32; empty: no second factor
}

// set fills the row from its fields, by name, and returns its problem, or "".
func (r *importRow) set(fields map[string]string, policy validate.Policy) (problem string) {
	wrong := make(fieldErrors)
	truth := func(name string) bool {
		value, why := rows.Bool(fields[name])
		wrong.add(name, why)
		return value
	}
	seconds := func(name string) int64 {
		n, why := rows.Time(fields[name])
		wrong.add(name, why)
		return n
	}
	u := &r.user
	u.username, u.email, u.role = validate.TrimName(fields["username"]), validate.TrimName(fields["email"]), role(cmp.Or(fields["role"], string(member)))
	wrong.add("username", validate.Username(u.username))
	u.service = truth("service")
	r.setPassword(fields, policy, wrong)
	if v := fields["id"]; v != "" {
		var err error
		if u.id, err = param.ID(v); err != nil || u.id > maxID {
			wrong.add("id", "must be an integer from 1 to 2^52-1")
		}
	}
	if !u.service {
		wrong.add("email", validate.Email(u.email))
	}
	wrong.add("role", checkRole(u.role))
	if truth("is_superuser") {
		u.role = admin
	}
	u.disabled = truth("disabled") || fields["is_active"] != "" && !truth("is_active")
	u.createdAt, u.updatedAt, u.lastLoginAt = seconds("created_at"), seconds("updated_at"), seconds("last_login_at")
	u.emailVerifiedAt, u.pending = seconds("email_verified_at"), truth("pending")
	if r.totp = fields["totp_secret"]; r.totp != "" {
		_, err := otp.ParseSecret(r.totp)
		if err != nil {
			wrong.add("totp_secret", "must be 16 to 64 bytes in base32")
		}
	}
	if err := wrong.err(); err != nil {
		return err.Error()
	}
	return ""
}

// setPassword sets the password or its hash. For a service user, which has neither, it sets the
// values that the columns of such a user hold.
func (r *importRow) setPassword(fields map[string]string, policy validate.Policy, wrong fieldErrors) {
	u := &r.user
	r.password, r.hash = fields["password"], fields["password_hash"]
	switch {
	case u.service:
		if u.email+r.password+r.hash+fields["email_verified_at"]+fields["totp_secret"] != "" {
			wrong.add("service", "is true, so email, email_verified_at, password, password_hash and totp_secret must be empty")
		}
		u.email, r.hash = serviceEmail+rand.Text(), serviceHash
	case r.password == "" && r.hash == "":
		wrong.add("password", "and password_hash are both empty")
	case r.password != "" && r.hash != "":
		wrong.add("password", "and password_hash are both given")
	case r.password != "":
		wrong.add("password", policy.Check(r.password, u.username, u.email))
	case !passhash.Known(r.hash):
		wrong.add("password_hash", "has an unknown format")
	}
}
