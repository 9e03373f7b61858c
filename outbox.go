package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/mail"
	"userd/internal/param"
	"userd/internal/prom"
	"userd/internal/useragent"
)

// An outbox sends the mails that requests have queued in the database. No request waits for
// it. The outboxes of several processes can share one database.
type outbox struct {
	store     *store
	transport mail.Transport
	from      mail.Sender
	texts     map[mailKind]*mail.Template
	pages     pageURLs
	service   string // the name of the service in the texts: the host of its pages
	name      string // random; part of the IDs of mails, so that no two databases use the same ID
	wall      func() time.Time
	log       *slog.Logger
	outcomes  *prom.Counters
	failing   atomic.Bool // a try failed since the last mail that was sent
}

const (
	// Requests do not wake the outbox. Otherwise the work for a mail would slow down the
	// next request, which would show whether the user of a request exists.
	mailTick = time.Second
	// mailBatch bounds the mails of a tick, and mailSenders those that are sent concurrently.
	mailBatch, mailSenders = 32, 4
	// mailDrain is how long a try goes on after the server was told to stop.
	mailDrain = 4 * time.Second
)

//go:embed assets/mail
var mailTexts embed.FS

// placeholders are the names that a text can contain in braces. A kind with a code requires
// {link}.
var placeholders = []string{"username", "service", "link", "expires", "email", "changed", "network", "browser", "time"}

// readMailTexts returns the text of each kind of mail: the file KIND.txt in dir if it exists,
// otherwise the built-in text. It returns an error of mail.ReadTemplates.
func readMailTexts(dir string) (map[mailKind]*mail.Template, error) {
	required := make(map[mailKind][]string)
	for kind, rule := range mailRules {
		required[kind] = nil
		if rule.code != "" {
			required[kind] = []string{"link"}
		}
	}
	return mail.ReadTemplates(mailTexts, "assets/mail", dir, placeholders, required)
}

// mailTransport returns the transport of MAIL_URL and the sender of mails. The transport of
// log: writes to w. mailTransport returns a usageError that names the setting.
func (c *config) mailTransport(w io.Writer) (t mail.Transport, from mail.Sender, err error) {
	if t, err = mail.Parse(c.mailURL, mail.Options{Log: w, WebhookSecret: c.webhookSecret}); errors.Is(err, mail.ErrWebhookSecret) {
		return nil, from, usagef("MAIL_WEBHOOK_SECRET: %v", err)
	} else if err != nil {
		return nil, from, usagef("MAIL_URL: %v", err)
	}
	if from = c.sender; from != (mail.Sender{}) {
		return t, from, nil
	}
	if strings.HasPrefix(c.mailURL, "smtp") {
		return nil, from, usagef("MAIL_URL is set and MAIL_FROM is not; set it to the sender of mails, such as no-reply@example.com")
	}
	from, err = mail.ParseSender("userd@localhost")
	return t, from, err
}

// newOutbox returns the outbox of a configuration and sets c.mailOn, or returns nil if
// MAIL_URL is not set. The transport of log: writes to w. newOutbox returns a usageError that
// names the setting.
func newOutbox(c *config, development bool, w io.Writer) (o *outbox, err error) {
	switch {
	case c.mailURL == "" && c.registration == registrationVerified:
		return nil, usagef("REGISTRATION=verified requires MAIL_URL, because it mails links; set MAIL_URL and MAIL_FROM")
	case c.mailURL == "":
		return nil, nil
	case c.mailURL == "log:" && !development:
		return nil, usagef("MAIL_URL: log: is only for development, because the log would contain links; use dir:PATH or a mail server")
	case c.appURL == "" && !development:
		return nil, usagef("MAIL_URL is set and APP_URL is not; set it to the address that clients use, such as https://id.example.com")
	}
	o = &outbox{pages: c.pages}
	if o.transport, o.from, err = c.mailTransport(w); err != nil {
		return nil, err
	}
	if o.texts, err = readMailTexts(c.mailTemplates); err != nil {
		return nil, usagef("MAIL_TEMPLATES: %v", err)
	}
	u, err := url.Parse(c.pages.reset)
	if err != nil {
		return nil, err
	}
	o.service, c.mailOn = u.Host, true
	return o, nil
}

// attach connects the outbox to the database of a server and to its counters, which count the
// outcomes. If mail is off, the outbox is nil, and attach and run do nothing.
func (o *outbox) attach(ctx context.Context, st *store, outcomes *prom.Counters, wall func() time.Time, log *slog.Logger) error {
	if o == nil {
		return nil
	}
	fresh := make([]byte, 8)
	rand.Read(fresh)
	name, err := st.secret(ctx, "outbox", fresh)
	if err != nil {
		return err
	}
	o.store, o.name, o.wall, o.log, o.outcomes = st, hex.EncodeToString(name), wall, log, outcomes
	o.log.Info("sending mail", "transport", o.transport.String())
	return nil
}

// forCode returns the page that a link with a code of this kind opens, or "".
func (p *pageURLs) forCode(kind codeKind) string {
	switch kind {
	case resetMailCode, resetLinkCode:
		return p.reset
	case inviteCode:
		return p.invite
	case verifyCode:
		return p.verify
	case changeCode:
		return p.change
	case undoCode:
		return p.undo
	}
	return ""
}

// run sends mails until ctx ends, and then waits for the running tries.
func (o *outbox) run(ctx context.Context) {
	if o == nil {
		return
	}
	// A try that is cut off would send the mail twice: its outcome is not known.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(mailDrain, cancel) })()
	tick := time.NewTicker(mailTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			o.sendDue(ctx, sending)
		}
	}
}

// sendDue sends the mails that are due. After ctx has ended, it begins no other mail; those
// that it has begun continue until sending ends.
func (o *outbox) sendDue(ctx, sending context.Context) {
	var due []queuedMail
	err := o.store.dueMails(ctx, mailBatch, o.wall().Unix(), func(m *queuedMail) { due = append(due, *m) })
	var group sync.WaitGroup
	slots := make(chan struct{}, mailSenders)
	for i := range due {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		group.Go(func() {
			defer func() { <-slots }()
			if err := o.sendOnce(sending, &due[i]); err != nil && sending.Err() == nil {
				o.log.Warn("could not process a mail", "mail", due[i].id, "err", err)
			}
		})
	}
	group.Wait()
	if err != nil && ctx.Err() == nil {
		o.log.Warn("could not read the outbox", "err", err)
	}
}

// sendOnce tries to send a mail, and records the outcome. It returns only errors of the
// database.
func (o *outbox) sendOnce(ctx context.Context, m *queuedMail) error {
	now := o.wall()
	var noUser error
	f, budget, err := o.facts(ctx, m, mailRules[m.kind].budget)
	rule, known := mailRules[m.kind] // facts may have changed m.kind
	switch {
	case errors.Is(err, errStorage):
		return err
	case !known || now.Unix() > m.createdAt+int64(rule.expiry/time.Second) || err != nil && m.kind != resetMail:
		return o.drop(ctx, m, "abandoned", cmp.Or(err, errMailExpired))
	case err != nil:
		// takeMail refuses a mail without a user, after as much work as for a mail above a
		// limit. Otherwise a client could request many mails for one login, and the time of
		// other requests meanwhile would show whether the login exists.
		m.userID, m.email, noUser = 0, "", errMailNoUser
	}
	var code string
	var hash []byte
	if rule.code != "" {
		code = newCode(rule.code)
		if hash, err = hashCode(rule.code, code); err != nil {
			return err
		}
	}
	f.expires, err = o.store.takeMail(ctx, m, budget, hash, now.Unix())
	switch {
	case errors.Is(err, errMailTaken):
		return nil
	case errors.Is(err, errMailLimited):
		return o.drop(ctx, m, "limited", err)
	case errors.Is(err, errMailEnded):
		return o.drop(ctx, m, "abandoned", cmp.Or(noUser, err))
	case err != nil:
		return err
	}
	m.tries++
	return o.finish(ctx, m, o.transport.Send(ctx, o.message(m, &f, code, now)))
}

// facts are the values that the text of a mail needs, besides those of the mail itself.
type facts struct {
	user     user   // the recipient; id is 0 if the recipient is not a user yet
	username string // of the recipient; empty: not known
	expires  int64  // of the code, in Unix seconds
}

// facts sets the recipient of a mail, and returns the facts of the mail and the budget that
// it counts toward. It returns errMailEnded if the mail is not needed any more, or errStorage.
func (o *outbox) facts(ctx context.Context, m *queuedMail, budget budget) (f facts, _ budget, err error) {
	switch {
	case m.kind == registerMail:
		f, err = o.registerFacts(m)
		return f, budget, err
	case m.kind == inviteMail:
		return f, budget, nil
	case m.kind == resetMail && m.userID == 0:
		f.user, _, err = o.store.userByLogin(m.login)
		m.userID, m.email = f.user.id, f.user.email
	default:
		f.user, err = o.store.user(m.userID)
	}
	if errors.Is(err, errUserNotFound) {
		return f, budget, errMailEnded
	}
	if err != nil {
		return f, budget, err
	}
	if f.user.service { // it has no address
		return f, budget, errMailEnded
	}
	f.username = f.user.username
	if m.kind != resetMail {
		return f, budget, o.checkPurpose(m, &f.user)
	}
	if f.user.disabled || m.email == "" {
		return f, budget, errMailEnded
	}
	if m.detail == restored {
		return f, noBudget, nil // otherwise a thief could have used up the budget
	}
	// A request from a network where the user has logged in does not count: otherwise a
	// stranger could use up the mails of the user. But a stranger can register with the address
	// of another person.
	known, _, err := o.store.loginsFrom(ctx, f.user.id, clientaddr.SameNetwork(m.address))
	if known {
		budget = claimBudget
		if f.user.emailVerifiedAt != 0 {
			budget = noBudget
		}
	}
	return f, budget, err
}

// registerFacts returns the facts of the mail of a registration. If a user already has the
// address, registerFacts turns the mail into a takenMail to this user. The outbox decides
// this, not the request: otherwise the answer or its time could show that the user exists.
// registerFacts returns errMailEnded or errStorage.
func (o *outbox) registerFacts(m *queuedMail) (f facts, err error) {
	r, err := o.store.registration(m.subjectID)
	if err != nil {
		return f, err
	}
	f.user, err = o.store.userByEmail(r.email)
	if errors.Is(err, errUserNotFound) {
		return facts{username: r.username}, nil
	}
	f.username = f.user.username
	m.kind, m.userID, m.email = takenMail, f.user.id, f.user.email
	return f, cmp.Or(err, o.checkPurpose(m, &f.user))
}

// checkPurpose returns errMailEnded if a user does not need a mail any more, or errStorage.
func (o *outbox) checkPurpose(m *queuedMail, u *user) (err error) {
	needed := true
	switch m.kind {
	case takenMail:
		needed = !u.disabled && u.email == m.email
	case approvalMail:
		needed, err = o.store.waitsForApproval()
		needed = needed && u.role == admin && !u.disabled && u.emailVerifiedAt != 0 && u.email == m.email
	}
	if err == nil && !needed {
		err = errMailEnded
	}
	return err
}

// drop closes a mail without sending it, for a reason, and counts the outcome: abandoned or
// limited.
func (o *outbox) drop(ctx context.Context, m *queuedMail, outcome string, reason error) error {
	o.outcomes.Add(outcome)
	return o.store.closeMail(ctx, m, "dropped", reason.Error(), o.wall().Unix())
}

// finish records the outcome of a try.
func (o *outbox) finish(ctx context.Context, m *queuedMail, err error) error {
	ctx = context.WithoutCancel(ctx) // also of a try that was cut off
	now := o.wall()
	failure, _ := errors.AsType[*mail.DeliveryError](err)
	switch {
	case err == nil:
		o.outcomes.Add("sent")
		if o.failing.Swap(false) {
			o.log.Info("sending mail again")
		}
		return o.store.closeMail(ctx, m, "sent", "", now.Unix())
	case failure != nil && failure.Permanent:
		o.outcomes.Add("failed")
		o.log.Warn("could not send a mail, and will not try again", "mail", m.id, "kind", string(m.kind), "err", err)
		return o.store.closeMail(ctx, m, "failed", err.Error(), now.Unix())
	}
	delay := mail.RetryDelay(int(min(m.tries, math.MaxInt32)), mrand.Float64())
	if failure != nil {
		delay = max(delay, failure.RetryAfter)
	}
	if !o.failing.Swap(true) {
		o.log.Warn("could not send a mail, and will try again", "mail", m.id, "kind", string(m.kind), "err", err)
	}
	return o.store.delayMail(ctx, m, err.Error(), now.Add(delay).Unix())
}

// message returns the message of one try of a mail, with a link that contains the code. If
// the code is empty, the message has no link.
func (o *outbox) message(m *queuedMail, f *facts, code string, now time.Time) *mail.Message {
	link := ""
	if code != "" {
		link = strings.Replace(o.pages.forCode(mailRules[m.kind].code), "{code}", code, 1)
	}
	values := map[string]string{
		"username": f.username, "service": o.service, "link": link, "email": m.email, "changed": m.detail,
		"expires": readableTime(f.expires), "time": readableTime(m.createdAt),
		"network": cmp.Or(clientaddr.Network(m.address), "unknown"), "browser": useragent.Name(m.userAgent),
	}
	if m.kind == undoMail {
		values["email"] = m.detail
	}
	subject, text := o.texts[m.kind].Render(values)
	event := map[string]any{"type": m.kind, "email": m.email}
	if f.user.id != 0 {
		event["user"] = json.RawMessage(appendUser(nil, &f.user, viewAll))
	} else if f.username != "" {
		event["username"] = f.username
	}
	if code != "" {
		event["url"], event["code"], event["expires_at"] = link, code, utc(f.expires)
	}
	if m.detail != "" {
		event["detail"] = m.detail
	}
	data, _ := json.Marshal(event) // nil after an error, which is a bug; a webhook refuses that
	return &mail.Message{
		ID:   fmt.Sprintf("%d.%d.%s@%s", m.id, m.tries, o.name, o.from.Domain()),
		Date: now, From: o.from, To: m.email, Subject: subject, Text: text,
		Event: data, EventID: fmt.Sprintf("msg_%s_%d", o.name, m.id),
	}
}

// readableTime returns a time in UTC, for a text.
func readableTime(unix int64) string {
	return time.Unix(unix, 0).UTC().Format("2 January 2006, 15:04 UTC")
}

// A mailAnswer is a mail as an admin and the command line see it.
type mailAnswer struct {
	ID        int64     `json:"id"`
	Kind      mailKind  `json:"kind"`
	UserID    int64     `json:"user_id,omitempty"`
	Email     string    `json:"email,omitempty"`
	State     mailState `json:"state"`
	Tries     int64     `json:"tries"`
	CreatedAt time.Time `json:"created_at"`
	NextTryAt time.Time `json:"next_try_at,omitzero"`
	ClosedAt  time.Time `json:"closed_at,omitzero"`
	LastError string    `json:"last_error,omitempty"`
}

func newMailAnswer(m *queuedMail) mailAnswer {
	a := mailAnswer{m.id, m.kind, m.userID, m.email, m.state, m.tries, utc(m.createdAt), time.Time{}, utc(m.closedAt), m.lastError}
	if m.state == mailQueued {
		a.NextTryAt = utc(m.nextTryAt)
	}
	return a
}

// listMails answers with the mails of the outbox, without their codes, which are not stored.
func (s *server) listMails(x *exchange) error {
	p, err := x.page("state")
	if err != nil {
		return err
	}
	state, err := param.Word(p.Query, "state", mailQueued, mailSent, mailFailed, mailDropped)
	if err != nil {
		return err
	}
	limit := cmp.Or(p.Limit, defaultLimit)
	list := []mailAnswer{}
	err = s.store.mails(x.r.Context(), p.AfterID, limit+1, state, func(m *queuedMail) { list = append(list, newMailAnswer(m)) })
	if err != nil {
		return err
	}
	return sendPage(x, &p, limit, list, func(m *mailAnswer) int64 { return m.ID })
}

// retryMail makes a mail due now.
func (s *server) retryMail(x *exchange) error {
	id, err := param.ID(x.r.PathValue("mail"))
	if err != nil {
		return errMailNotFound
	}
	if _, err := s.store.retryMail(x.r.Context(), x.caller(), id, s.wall().Unix()); err != nil {
		return err
	}
	return x.sendNothing()
}
