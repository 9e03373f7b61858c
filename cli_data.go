package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

func keyList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	return func(ctx context.Context, c *cli) error {
		keys, err := c.store.signingKeys(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
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
}

func keyRotate(ctx context.Context, c *cli) error {
	if len(c.secret) > 0 {
		return fmt.Errorf("%s is set and signs; move it to JWT_SECRET_KEY_PREVIOUS and set a new one", c.secretFrom)
	}
	key := randomKey()
	if err := c.store.rotateKey(ctx, key, c.now().Unix()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stdout, "key %s signs from now on\n", key.kid)
	return err
}

// followEvery is how long events -follow waits before it looks for new events.
const followEvery = 200 * time.Millisecond

// eventList prints events, and with -follow also those to come.
func eventList(f *flag.FlagSet) action {
	asJSON := jsonFlag(f)
	follow := f.Bool("follow", false, "Print what happens from now on, until interrupted; with -after, what happened since too.")
	name := f.String("user", "", "Print only events about this `USER`.")
	var only eventFilter
	f.Func("type", "Print only events of this `TYPE`: "+orList(eventTypes)+".", func(v string) error {
		return setWord(&only.kind, v, eventTypes...)
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

// eventUser returns the id of the user that an argument names. A deleted user is
// known only by its id.
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
	table := newTable(out, "ID", "AT", "TYPE", "ACTOR", "USER", "SESSION", "ADDRESS", "CHANGES")
	// So that later rows align too: ids to 8 digits, all types, and IPv4 addresses.
	table.widths = []int{8, 20, 14, 8, 8, 8, 15, 0}
	if asJSON {
		table.rows = nil
	}
	for {
		next, more, err := c.store.eventsSince(ctx, after, only, func(e *event) {
			if asJSON {
				lines.Encode(newEventAnswer(e))
				return
			}
			table.row(e.id, when(e.at), e.kind, idOrDash(e.actorID), idOrDash(e.userID), idOrDash(e.sessionID), e.address, e.changes)
		})
		if err := errors.Join(table.flush(), out.Flush()); err != nil {
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

func idOrDash(id int64) string {
	if id == 0 {
		return "-"
	}
	return strconv.FormatInt(id, 10)
}

// eventsVerify says whether the events are as they were sealed.
func eventsVerify(ctx context.Context, c *cli) error {
	var noted head
	if len(c.args) == 1 {
		id, mac, _ := strings.Cut(c.args[0], ":")
		var err error
		if noted.eventID, err = parseID(id); err != nil || len(mac) != 2*sha256.Size {
			return usagef("%q: a head is what events verify has printed, ID:SEAL", c.args[0])
		}
		noted.mac = strings.ToLower(mac)
	}
	keys, err := loadSealKeys(ctx, c.store, c.sealSecret)
	if err != nil {
		return err
	}
	v, err := verifyEvents(ctx, c.store, keys, noted)
	if v.seals > 0 {
		fmt.Fprintf(c.stdout, "events that hold: %d, in %d seals\nhead: %s\n", v.events, v.seals, v.head)
	}
	if err == nil {
		_, err = fmt.Fprintf(c.stdout, "newest events not sealed yet: %d\n", v.unsealed)
	}
	return err
}

// check prints what is wrong with the database, one finding a line. It writes
// nothing and blocks no writer.
func check(ctx context.Context, c *cli) error {
	// SQLite's own check describes damage better than this error does.
	if err := mustBeUserds(ctx, c.database); err != nil && !isDamaged(err) {
		return err
	}
	for {
		x, quiet, err := examine(ctx, c.database)
		if err != nil {
			return fmt.Errorf("checking %s: %w", c.database, err)
		}
		if still, err := isQuiet(c.database); quiet && (err != nil || !still) {
			continue // a server began to write while the file was read as if it did not change
		}
		for _, line := range x.findings {
			fmt.Fprintln(c.stdout, printable(line))
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
	f.Func("resolve", "What to do with all such users but the oldest, `suffix|oldest`: rename them to NAME-ID and "+
		"LOCAL+ID@HOST, or delete them.", func(v string) error { return setWord(&resolve, v, resolveByID, removeOthers) })
	return func(ctx context.Context, c *cli) error {
		st, err := c.openDatabase(ctx, false, resolve)
		if err != nil {
			return err
		}
		if err := st.close(); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "%s is ready for userd\n", c.database)
		return err
	}
}

// healthcheckTimeout is longer than a server needs to answer that it is not ready.
const healthcheckTimeout = 4 * time.Second

// healthcheck asks the server with this configuration whether it is ready, for
// containers without curl. It does not use the database.
func healthcheck(ctx context.Context, c *cli) error {
	url, client := readyURL(&c.config)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	_, err = fmt.Fprintf(c.stdout, "%s: ready\n", url)
	return err
}

// readyURL returns the URL of the readiness check of the server with a
// configuration, and a client for it. The client uses no proxy and follows no
// redirect. It accepts any certificate: it sends no secret, and the certificate
// of a name is not valid for an address.
func readyURL(c *config) (string, *http.Client) {
	scheme, trust := "http://", &tls.Config{InsecureSkipVerify: true}
	if c.tlsCert != "" || len(c.domains) > 0 {
		scheme = "https://"
	}
	if len(c.domains) > 0 {
		trust.ServerName = c.domains[0]
	}
	host, port, _ := net.SplitHostPort(c.addr) // which setHostPort has checked
	ip, _ := netip.ParseAddr(host)
	switch ip.Unmap() {
	case netip.IPv4Unspecified():
		host = "127.0.0.1"
	case netip.IPv6Unspecified():
		host = "::1"
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return scheme + net.JoinHostPort(host, port) + "/readyz", &http.Client{
		Timeout:       healthcheckTimeout,
		Transport:     &http.Transport{TLSClientConfig: trust},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
