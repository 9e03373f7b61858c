package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

func keyList(ctx context.Context, c *cli) error {
	keys, err := c.store.signingKeys(ctx)
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
	if err := c.store.rotateKey(ctx, key, c.now().Unix()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.stdout, "%s signs from now on\n", key.kid)
	return err
}

func (c *cli) eventFlags(f *flag.FlagSet) {
	c.jsonFlag(f)
	f.BoolVar(&c.follow, "follow", false, "")
	f.StringVar(&c.eventUser, "user", "", "")
	f.Func("type", "", func(v string) error { return setWord(&c.eventType, v, eventTypes...) })
	c.after = -1
	f.Func("after", "", func(v string) (err error) {
		if c.after = 0; v != "0" {
			c.after, err = parseID(v)
		}
		return err
	})
}

// eventList prints events, and with -follow those to come.
func eventList(ctx context.Context, c *cli) error {
	only := eventFilter{kind: c.eventType}
	if c.eventUser != "" {
		u, err := c.userNamed(c.eventUser)
		// A user who is deleted is known by the id alone.
		if errors.Is(err, errUserNotFound) && strings.HasPrefix(c.eventUser, "id=") {
			u.id, err = parseID(strings.TrimPrefix(c.eventUser, "id="))
		}
		if err != nil {
			return err
		}
		only.userID = u.id
	}
	after := max(c.after, 0)
	if c.follow && c.after < 0 {
		var err error
		if after, err = c.store.lastEvent(); err != nil {
			return err
		}
	}
	const row = "%-8v  %-20v  %-14v  %-8v  %-8v  %-8v  %-15v  %v\n"
	out := bufio.NewWriter(c.stdout)
	lines := json.NewEncoder(out)
	if !c.json {
		fmt.Fprintf(out, row, "ID", "AT", "TYPE", "ACTOR", "USER", "SESSION", "ADDRESS", "CHANGES")
	}
	for {
		next, more, err := c.store.eventsSince(ctx, after, only, func(e *event) {
			if c.json {
				lines.Encode(newEventAnswer(e))
				return
			}
			fmt.Fprintf(out, row, e.id, when(e.at), printable(string(e.kind)), idOrDash(e.actorID), idOrDash(e.userID), idOrDash(e.sessionID), printable(e.address), printable(e.changes))
		})
		if err := out.Flush(); err != nil {
			return err
		}
		if c.follow && ctx.Err() != nil {
			return nil
		}
		if err != nil || !more && !c.follow {
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

// eventsVerify recomputes the chain of events and prints its head. It fails if the
// chain does not hold, does not contain a head that was noted elsewhere, or begins too late.
func eventsVerify(ctx context.Context, c *cli) error {
	var noted head
	if len(c.names) == 1 {
		id, hash, _ := strings.Cut(c.names[0], ":")
		hash = strings.ToLower(hash)
		eventID, err := parseID(id)
		if sum, notHex := hex.DecodeString(hash); err != nil || notHex != nil || len(sum) != sha256.Size {
			return usagef("%q is not a head: events verify prints it as ID:HEX, with %d digits", c.names[0], 2*sha256.Size)
		}
		noted = head{eventID, hash}
	}
	v, err := c.store.verifyEvents(ctx, math.MaxInt64, noted)
	if v.links > 0 {
		fmt.Fprintf(c.stdout, "events that hold: %d, in links: %d\n", v.events, v.links)
	}
	if err != nil {
		return err
	}
	if v.base.eventID > 0 {
		fmt.Fprintf(c.stdout, "deleted events: up to %d, the last from %s\n", v.base.eventID, when(v.base.at))
	}
	if v.links > 0 {
		fmt.Fprintf(c.stdout, "head: %s\n", v.head.name())
	}
	_, err = fmt.Fprintf(c.stdout, "events without a link yet: %d\n", v.unlinked.events)
	return errors.Join(err, checkBase(&v, c.eventRetention, c.now()), checkNoted(&v))
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

// check prints what is wrong with the database, one line each. It writes
// nothing, and keeps nobody from writing.
func check(ctx context.Context, c *cli) error {
	// What is damaged, SQLite's own check tells in full.
	if err := mustBeUserds(ctx, c.database); err != nil && !isDamaged(err) {
		return err
	}
	for {
		x, quiet, err := examine(ctx, c.database)
		if err != nil {
			return fmt.Errorf("checking %s: %w", c.database, err)
		}
		if still, err := isQuiet(c.database); quiet && (err != nil || !still) {
			continue // a server has begun to write to what was read as if nobody did
		}
		for _, line := range x.findings {
			fmt.Fprintln(c.stdout, printable(line))
		}
		if len(x.findings) > 0 {
			return fmt.Errorf("%s: findings: %d", c.database, len(x.findings))
		}
		if x.admins == 0 {
			fmt.Fprintln(c.stderr, "warning: there is no active admin: userd user add -admin NAME EMAIL adds one")
		}
		if x.keys == 0 && len(c.secret) == 0 {
			fmt.Fprintln(c.stderr, "warning: there is no signing key: the next start makes one")
		}
		_, err = fmt.Fprintf(c.stdout, "%s: nothing found; %d users, %d sessions\n", c.database, x.users, x.sessions)
		return err
	}
}

func (c *cli) resolveFlag(f *flag.FlagSet) {
	f.Func("resolve", "", func(v string) error { return setWord(&c.resolve, v, resolveByID) })
}

func adopted(_ context.Context, c *cli) error {
	_, err := fmt.Fprintf(c.stdout, "%s is userd's\n", c.database)
	return err
}

// healthcheckTimeout is more than a server takes to say that it is not ready.
const healthcheckTimeout = 4 * time.Second

// healthcheck asks the server of this configuration whether it is ready, for
// containers that have no curl. It leaves the database alone.
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
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	_, err = fmt.Fprintf(c.stdout, "%s: ready\n", url)
	return err
}

// readyURL returns where the server of a configuration is asked whether it is
// ready, and what asks it: no proxy that the environment names, and no server
// that the answer does. It believes any certificate: it tells no secret, and
// that of a name is not good for an address.
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
