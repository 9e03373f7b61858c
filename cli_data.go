package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	neturl "net/url"
	"os"
	"slices"
	"strings"
	"time"

	"userd/internal/healthcheck"
	"userd/internal/rows"
	"userd/internal/setting"
	"userd/internal/sqlitefile"
	"userd/internal/strictjson"
	"userd/internal/terminal"
)

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
			after, err = parseID(v)
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
		return parseID(digits)
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
		eventID, err := parseID(id)
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

// check prints what is wrong with the database, one finding a line. It writes
// nothing and blocks no writer.
func check(ctx context.Context, c *cli) error {
	// SQLite's own check describes damage better than this error does.
	if err := mustBeUserds(ctx, c.database); err != nil && !sqlitefile.IsDamaged(err) {
		return err
	}
	for {
		p := c.progress("", 0)
		x, quiet, err := examine(ctx, c.database, p.Next, p.Show)
		p.End()
		if err != nil {
			return fmt.Errorf("checking %s: %w", c.database, err)
		}
		if still, err := sqlitefile.IsQuiet(c.database); quiet && (err != nil || !still) {
			continue // a server began to write while the file was read as if it did not change
		}
		for _, line := range x.findings {
			fmt.Fprintln(c.stdout, terminal.Printable(line))
		}
		if len(x.findings) > 0 {
			return fmt.Errorf("%s: %s", c.database, plural(len(x.findings), "finding"))
		}
		if x.admins == 0 {
			fmt.Fprintln(c.stderr, "warning: no active admin; userd user add -admin NAME EMAIL adds one")
		}
		if x.keys == 0 && len(c.secret) == 0 {
			fmt.Fprintln(c.stderr, "warning: no signing key; the next start makes one")
		}
		_, err = fmt.Fprintf(c.stdout, "%s: nothing found; %s, %s\n", c.database, plural(x.users, "user"), plural(x.sessions, "session"))
		return err
	}
}

func adoptDatabase(f *flag.FlagSet) action {
	resolve := refuse
	f.Func("resolve", "Rename all such users but the oldest to NAME-ID and LOCAL+ID@HOST: `suffix`.", func(v string) error {
		return setting.Word(&resolve, v, resolveByID)
	})
	return func(ctx context.Context, c *cli) error {
		return c.withDatabase(ctx, false, resolve, func(context.Context, *cli) error {
			_, err := fmt.Fprintf(c.stdout, "%s is ready for userd\n", c.database)
			return err
		})
	}
}

// askReady asks the server with this configuration whether it is ready, for
// containers without curl. It does not use the database.
func askReady(ctx context.Context, c *cli) error {
	server := healthcheck.Server{Address: c.addr, Path: "/readyz", HTTPS: c.tlsCert != "" || len(c.domains) > 0}
	if len(c.domains) > 0 {
		server.Name = c.domains[0]
	}
	url, client := server.URL(), server.Client()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	const advice = "give this command the settings of the server: ADDR (-addr) or HOST and PORT, HTTPS_DOMAIN (-https-domain) and TLS_CERT (-tls-cert)"
	resp, err := client.Do(r)
	if failed, ok := errors.AsType[*neturl.Error](err); ok {
		return fmt.Errorf("no answer from %s: %w; start the server, or %s", url, failed.Err, advice)
	}
	if err != nil {
		return err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%s answered %s: the server is not ready, and its log says why", url, resp.Status)
	default:
		return fmt.Errorf("%s answered %s instead of 200; %s", url, resp.Status, advice)
	}
	_, err = fmt.Fprintf(c.stdout, "%s: ready\n", url)
	return err
}

// progress returns a progress of work on standard error, or nil if that is not a terminal.
func (c *cli) progress(what string, total int64) *terminal.Progress {
	if f, ok := c.stderr.(*os.File); ok && terminal.Is(f) {
		return terminal.NewProgress(f, what, total)
	}
	return nil
}

// openInput opens a file, or standard input if the name is -.
func (c *cli) openInput(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.stdin), nil
	}
	return os.Open(name)
}

// importedRows returns the rows of a file for user import. A row has at most the size of a
// request's body, which also holds one user.
func importedRows(in io.Reader) (*rows.Reader, error) {
	return rows.NewReader(in, rows.Format{MaxRow: maxBody, Columns: importFields, Object: importObject})
}

// exportColumns are the columns of an export, in order.
var exportColumns = []string{"id", "username", "email", "password_hash", "role", "disabled", "created_at", "updated_at", "last_login_at", "email_verified_at", "pending", "service", "totp_secret"}

// importColumns are the columns that an import knows.
var importColumns = append([]string{"password"}, exportColumns...)

// djangoColumns maps the columns of Django's table auth_user to the fields of a
// row. Those that map to "" are ignored.
var djangoColumns = map[string]string{
	"id": "id", "username": "username", "email": "email", "password": "password_hash", "date_joined": "created_at", "last_login": "last_login_at",
	"is_superuser": "is_superuser", "is_active": "is_active", "first_name": "", "last_name": "", "is_staff": "",
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

func exportTime(unix int64) string {
	if unix == 0 {
		return ""
	}
	return when(unix)
}
