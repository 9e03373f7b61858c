package mail

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Webhook posts the events of messages to a URL, as described in
// https://www.standardwebhooks.com.
type Webhook struct {
	url     *url.URL
	key     []byte
	client  *http.Client
	timeout time.Duration
}

// ErrWebhookSecret is the error of Parse for a webhook without a valid secret.
var ErrWebhookSecret = errors.New("the secret of a webhook must be whsec_ and the base64 of 24 to 64 random bytes")

func parseWebhook(u *url.URL, secret string) (Transport, error) {
	encoded, ok := strings.CutPrefix(secret, "whsec_")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 || strings.ContainsAny(encoded, "\r\n") {
		return nil, ErrWebhookSecret
	}
	plain := u.Scheme == "http"
	if plain && !isLoopback(u.Hostname()) {
		return nil, errPlain
	}
	transport := &http.Transport{
		DialContext:            dialer(plain).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true, // messages are rare
		MaxResponseHeaderBytes: 16 << 10,
	}
	if !plain {
		transport.Proxy = http.ProxyFromEnvironment
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return &Webhook{url: u, key: key, client: client, timeout: sendTimeout}, nil
}

// String returns the scheme and the host: the path of a webhook is often a secret.
func (w *Webhook) String() string { return w.url.Scheme + "://" + w.url.Host }

// Send posts m.Event. A status of 2xx is success, and 410 is a permanent failure. All
// others are temporary: the receiver can be repaired. Redirects are not followed, and
// the answer's body is not read.
func (w *Webhook) Send(ctx context.Context, m *Message) error {
	switch {
	case !eventIDPattern.MatchString(m.EventID):
		return invalid(errors.New("the event ID must be 1 to 64 letters, digits, '_' and '-'"))
	case m.Date.IsZero():
		return invalid(errors.New("no date"))
	case len(m.Event) > maxBody:
		return invalid(fmt.Errorf("the event is longer than %d bytes", maxBody))
	case !json.Valid(m.Event):
		return invalid(errors.New("the event is not valid JSON"))
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.String(), bytes.NewReader(m.Event))
	if err != nil {
		return failed(ctx, "webhook", err)
	}
	timestamp := strconv.FormatInt(m.Date.Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Webhook-Id", m.EventID)
	req.Header.Set("Webhook-Timestamp", timestamp)
	req.Header.Set("Webhook-Signature", "v1,"+w.sign(m.EventID+"."+timestamp+".", m.Event))
	resp, err := w.client.Do(req)
	if err != nil {
		return failed(ctx, "webhook", err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return &DeliveryError{
		Permanent:  resp.StatusCode == http.StatusGone,
		RetryAfter: retryAfter(resp.Header.Get("Retry-After"), m.Date),
		text:       "webhook: status " + strconv.Itoa(resp.StatusCode),
	}
}

// sign returns the signature of a body after its ID and timestamp, in base64.
func (w *Webhook) sign(prefix string, body []byte) string {
	mac := hmac.New(sha256.New, w.key)
	mac.Write([]byte(prefix))
	mac.Write(body)
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// maxRetryAfter bounds how long a receiver can delay a message.
const maxRetryAfter = time.Hour

// retryAfter parses a Retry-After header: seconds, or a date. It returns 0 for others.
func retryAfter(value string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
