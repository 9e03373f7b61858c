package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"time"

	"userd/internal/mail"
	"userd/internal/terminal"
)

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
		out := bufio.NewWriter(c.stdout)
		table := terminal.NewTable(out, "ID", "KIND", "USER", "TO", "QUEUED", "STATE", "TRIES", "NEXT TRY", "ERROR")
		lines := json.NewEncoder(out)
		err := c.store.mails(ctx, func(m *queuedMail) {
			next := m.nextTryAt
			if m.state != "queued" {
				next = 0
			}
			if !*asJSON {
				table.Row(m.id, m.kind, idOrDash(m.userID), m.email, when(m.createdAt), m.state, m.tries, when(next), m.lastError)
				return
			}
			lines.Encode(struct {
				ID        int64     `json:"id"`
				Kind      mailKind  `json:"kind"`
				UserID    int64     `json:"user_id,omitempty"`
				Email     string    `json:"email,omitempty"`
				State     string    `json:"state"`
				Tries     int64     `json:"tries"`
				CreatedAt time.Time `json:"created_at"`
				NextTryAt time.Time `json:"next_try_at,omitzero"`
				ClosedAt  time.Time `json:"closed_at,omitzero"`
				LastError string    `json:"last_error,omitempty"`
			}{m.id, m.kind, m.userID, m.email, m.state, m.tries, utc(m.createdAt), utc(next), utc(m.closedAt), m.lastError})
		})
		if !*asJSON {
			err = errors.Join(err, table.Flush())
		}
		return errors.Join(err, out.Flush())
	}
}

func mailRetry(ctx context.Context, c *cli) error {
	var id int64
	if len(c.args) > 0 {
		var err error
		if id, err = parseID(c.args[0]); err != nil {
			return usagef("mail retry: %q: the id of a mail is a positive integer", c.args[0])
		}
	}
	n, err := c.store.retryMail(ctx, id, c.wall().Unix())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s due now\n", plural(n, "mail"))
	return err
}
