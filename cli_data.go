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
		case <-time.After(newFeed().poll):
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
	if len(c.names) == 1 {
		id, mac, _ := strings.Cut(c.names[0], ":")
		var err error
		if noted.eventID, err = parseID(id); err != nil || len(mac) != 2*sha256.Size {
			return usagef("%q: a head is what events verify has printed, ID:SEAL", c.names[0])
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
	f.Func("resolve", "", func(v string) error { return setWord(&c.resolve, v, resolveByID, removeOthers) })
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
