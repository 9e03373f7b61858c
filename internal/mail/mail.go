// Package mail delivers one message at a time to an SMTP server, to a webhook, to a
// log or to a directory, and says whether to try again after a failure.
//
// [Parse] makes a [Transport] from a URL:
//
//	smtps://USER:PASS@HOST:465  SMTP over TLS
//	smtp://USER:PASS@HOST:587   SMTP with STARTTLS, which the server must offer
//	smtp+plain://HOST:25        SMTP without TLS, only to a loopback address
//	https://HOST/PATH           a webhook, signed as in standardwebhooks.com
//	http://HOST/PATH            the same without TLS, only to a loopback address
//	log:                        readable text, to a writer
//	dir:PATH                    one .eml file per message
//
// USER:PASS is the login, if the server requires one; for https, the login of HTTP Basic. The
// package never sends it without TLS. The certificate of the server must be valid for HOST.
//
// A [Message] has one recipient and a text. A webhook receives its Event instead, and
// sends what it wants. A [Template] makes the text.
//
// Send makes one attempt of at most 30 seconds. It fails with a *[DeliveryError],
// which says whether the failure is permanent. If it is not, the caller tries again
// after [RetryDelay] or after the error's RetryAfter, if that is longer. A message whose
// acknowledgment was lost is delivered twice: neither SMTP nor a webhook can prevent it.
//
// No error or String method contains a password, a signing secret, an e-mail address
// or the path of a webhook. The caller passes the time: the package
// reads no wall clock.
package mail

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// A Transport delivers messages. Its methods can be called concurrently.
type Transport interface {
	// Send delivers a message, or returns a *DeliveryError.
	Send(ctx context.Context, m *Message) error

	// String returns the transport's address without secrets, for a log.
	String() string
}

// Options are the settings of transports that the URL does not contain.
type Options struct {
	Log           io.Writer // for log:
	WebhookSecret string    // signs webhooks: whsec_ and the base64 of 24 to 64 bytes
}

// Parse returns the transport of a URL. Its errors repeat neither the URL nor the
// secret. It does not connect.
func Parse(rawURL string, o Options) (Transport, error) {
	if rawURL == "log:" {
		return &Log{w: o.Log}, nil
	}
	if path, ok := strings.CutPrefix(rawURL, "dir:"); ok {
		if path == "" {
			return nil, errors.New("dir: requires a path, such as dir:./mail")
		}
		return &Dir{path: path}, nil
	}
	// The error of url.Parse can contain the password.
	u, err := url.Parse(rawURL)
	if err != nil || u.Hostname() == "" || u.Fragment != "" {
		return nil, errors.New("not a valid URL such as smtp://USER:PASS@mail.example.com:587; in USER and PASS, write each special character as % and two hexadecimal digits")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, errors.New("the port must be 1 to 65535")
		}
	}
	if u.User != nil && (u.Scheme == "smtp+plain" || u.Scheme == "http") {
		return nil, errors.New("refusing to send a password without TLS")
	}
	switch u.Scheme {
	case "smtps", "smtp", "smtp+plain":
		return parseSMTP(u)
	case "https", "http":
		return parseWebhook(u, o.WebhookSecret)
	}
	return nil, errors.New("unknown scheme; use smtps, smtp, smtp+plain, https, log: or dir:PATH")
}

// A DeliveryError says why a message was not delivered. It contains neither secrets nor
// e-mail addresses, and is one line of at most 300 bytes.
type DeliveryError struct {
	Permanent  bool          // another attempt would fail too
	RetryAfter time.Duration // the server asks not to try earlier; 0 to 1 hour

	text  string
	cause error // if the context ended
}

func (e *DeliveryError) Error() string { return e.text }

// Unwrap returns the context's error, if the context ended, and otherwise nil.
func (e *DeliveryError) Unwrap() error { return e.cause }

// failed returns the error of an attempt that failed during a step, such as RCPT.
func failed(ctx context.Context, step string, err error) *DeliveryError {
	e := &DeliveryError{cause: ctx.Err()}
	switch {
	case errors.Is(e.cause, context.DeadlineExceeded):
		err = errNoAnswer
	case e.cause != nil: // err is then a consequence
		err = e.cause
	}
	e.text = step + ": " + describe(err)
	return e
}

var errNoAnswer = errors.New("no answer in time; check the host and the port")

// invalid returns the error of a message that cannot be sent.
func invalid(err error) *DeliveryError {
	return &DeliveryError{Permanent: true, text: "invalid message: " + err.Error()}
}

// maxText is the length of a server's text in an error, in bytes.
const maxText = 200

var quoted = regexp.MustCompile(`"(?:\\.|[^"\\])*"`)

// describe returns the text of an error of net, crypto/tls, net/http or net/textproto,
// but nothing of what they quote: a server can repeat what it was sent, and a URL can
// contain secrets.
func describe(err error) string {
	if ofURL, ok := errors.AsType[*url.Error](err); ok {
		err = ofURL.Err
	}
	if _, malformed := errors.AsType[textproto.ProtocolError](err); malformed { // its text is the server's
		return "malformed reply"
	}
	return oneLine(quoted.ReplaceAllString(err.Error(), "…"))
}

// oneLine returns a text on one line of at most maxText bytes, without e-mail addresses.
func oneLine(s string) string {
	words := strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
	for i, w := range words {
		if strings.Contains(w, "@") {
			words[i] = "<address>"
		}
	}
	s = strings.Join(words, " ")
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

// RetryDelay returns how long to wait after a number of failed attempts, which is 1 or
// more: 5 seconds, 30 seconds, 2, 10 and 30 minutes, and then an hour each time. random,
// from 0 to 1, spreads the delay from 80 to 120 percent of that, so that messages which
// failed together are not all sent again together.
func RetryDelay(failures int, random float64) time.Duration {
	delays := [...]time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour}
	delay := delays[min(max(failures, 1), len(delays))-1]
	return time.Duration(float64(delay) * (0.8 + 0.4*random))
}

const (
	connectTimeout = 10 * time.Second
	sendTimeout    = 30 * time.Second // includes the time to connect
)

// dialer returns a dialer for a host. If the connection will have no TLS, it only
// connects to loopback addresses, whatever the name resolves to.
func dialer(plain bool) *net.Dialer {
	d := &net.Dialer{Timeout: connectTimeout}
	if plain {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().Unmap().IsLoopback() {
				return errPlain
			}
			return nil
		}
	}
	return d
}

var errPlain = errors.New("without TLS, the host must be localhost or a loopback address")

// isLoopback reports whether a host of a URL is this machine.
func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
