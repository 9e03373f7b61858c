package mail

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// newWebhook returns the transport for a server and a path.
func newWebhook(t *testing.T, server *httptest.Server, path string) *Webhook {
	t.Helper()
	transport, err := Parse(server.URL+path, Options{WebhookSecret: testSecret})
	if err != nil {
		t.Fatal(err)
	}
	return transport.(*Webhook)
}

// verifySignature checks a request as a receiver does.
func verifySignature(r *http.Request, body []byte) error {
	key, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", r.Header["Webhook-Id"][0], r.Header["Webhook-Timestamp"][0], body)
	for _, signature := range strings.Split(r.Header["Webhook-Signature"][0], " ") {
		version, encoded, _ := strings.Cut(signature, ",")
		got, err := base64.StdEncoding.DecodeString(encoded)
		if version == "v1" && err == nil && hmac.Equal(got, mac.Sum(nil)) {
			return nil
		}
	}
	return errors.New("no valid signature")
}

func TestWebhookDelivers(t *testing.T) {
	t.Parallel()
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err := errors.Join(err, verifySignature(r, body)); err != nil {
			t.Error(err)
		}
		// The signature is the one that the project's own libraries are tested with.
		got = []string{fmt.Sprint(r.Close), r.Method, r.RequestURI, r.Header.Get("Content-Type"), r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp"), r.Header.Get("Webhook-Signature"), string(body)}
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	if err := newWebhook(t, server, "/hooks/T0?key=1").Send(t.Context(), testMessage(t)); err != nil {
		t.Fatal(err)
	}
	want := []string{"true", "POST", "/hooks/T0?key=1", "application/json", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", `{"test": 2432232314}`}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the server got\n%q, want\n%q", got, want)
	}
}

func TestWebhookFailures(t *testing.T) {
	t.Parallel()
	date := testMessage(t).Date.Add(90 * time.Second).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		status     int
		retryAfter string
		permanent  bool
		wait       time.Duration
	}{
		{status: 301},
		{status: 307},
		{status: 400},
		{status: 401},
		{status: 404},
		{status: 410, permanent: true},
		{status: 429, retryAfter: "120", wait: 2 * time.Minute},
		{status: 500},
		{status: 503, retryAfter: date, wait: 90 * time.Second},
		{status: 503, retryAfter: "3601", wait: time.Hour},
		{status: 503, retryAfter: strings.Repeat("9", 30), wait: time.Hour},
		{status: 503, retryAfter: "Fri, 31 Dec 9999 23:59:59 GMT", wait: time.Hour},
		{status: 503, retryAfter: "Thu, 01 Jan 1970 00:00:00 GMT"},
		{status: 503, retryAfter: "-5"},
		{status: 503, retryAfter: "soon"},
	} {
		t.Run(fmt.Sprint(c.status, c.retryAfter), func(t *testing.T) {
			t.Parallel()
			requests := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				if c.retryAfter != "" {
					w.Header().Set("Retry-After", c.retryAfter)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				io.Copy(w, r.Body)
			}))
			defer server.Close()
			err := newWebhook(t, server, "").Send(t.Context(), testMessage(t))
			checkError(t, err, c.permanent, fmt.Sprint("webhook: status ", c.status))
			if e, ok := errors.AsType[*DeliveryError](err); ok && e.RetryAfter != c.wait {
				t.Errorf("RetryAfter is %v, want %v", e.RetryAfter, c.wait)
			}
			if requests != 1 {
				t.Errorf("%d requests, want 1", requests)
			}
		})
	}
}

// hijacked answers a request with bytes that the handler chooses.
func hijacked(t *testing.T, answer func(w io.Writer)) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		answer(conn)
	}))
	t.Cleanup(server.Close)
	return server
}

func TestWebhookAnswersAreBounded(t *testing.T) {
	t.Parallel()
	t.Run("a body", func(t *testing.T) {
		t.Parallel()
		server := hijacked(t, func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 1000))
			}
		})
		if err := newWebhook(t, server, "").Send(t.Context(), testMessage(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a header", func(t *testing.T) {
		t.Parallel()
		server := hijacked(t, func(w io.Writer) {
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nX-A: %s\r\n\r\n", strings.Repeat("b", 20<<10))
		})
		checkError(t, newWebhook(t, server, "").Send(t.Context(), testMessage(t)), false, "webhook: *")
	})
}

func TestWebhookErrorsRepeatNothing(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"of a malformed status":   testLink + "\r\n\r\n",
		"of a malformed header":   "HTTP/1.1 200 OK\r\nabcdefgh\r\n\r\n",
		"of a malformed encoding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: \"abcdefgh\"\r\n\r\n",
		"of an empty answer":      "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := hijacked(t, func(w io.Writer) { io.WriteString(w, answer) })
			checkError(t, newWebhook(t, server, "/abcdefgh").Send(t.Context(), testMessage(t)), false, "webhook: *")
		})
	}
	t.Run("of a server that does not listen", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		w := newWebhook(t, server, "/abcdefgh")
		w.url.Host = unusedAddress(t)
		checkError(t, w.Send(t.Context(), testMessage(t)), false, "webhook: dial tcp 127.0.0.1*")
	})
}

func TestWebhookServerThatStalls(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer server.Close()
	w := newWebhook(t, server, "")
	w.timeout = 100 * time.Millisecond
	err := w.Send(t.Context(), testMessage(t))
	checkError(t, err, false, "webhook: no answer in time; check the host and the port")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Send(ctx, testMessage(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestWebhookRequiresAValidCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the server got a request") }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.StartTLS()
	defer server.Close()
	checkError(t, newWebhook(t, server, "").Send(t.Context(), testMessage(t)), false, "webhook: tls: failed to verify certificate: x509: certificate signed by unknown authority")
}

func TestWebhookRefusesAnInvalidEvent(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the server got a request") }))
	defer server.Close()
	w := newWebhook(t, server, "")
	for name, change := range map[string]func(m *Message){
		"without an ID":      func(m *Message) { m.EventID = "" },
		"with a dot in it":   func(m *Message) { m.EventID = "17.2" },
		"with a line break":  func(m *Message) { m.EventID = "17\n" },
		"without a date":     func(m *Message) { m.Date = time.Time{} },
		"that is very large": func(m *Message) { m.Event = []byte(`"` + strings.Repeat("x", maxBody) + `"`) },
		"that is not JSON":   func(m *Message) { m.Event = nil },
	} {
		m := testMessage(t)
		change(m)
		t.Run(name, func(t *testing.T) { checkError(t, w.Send(t.Context(), m), true, "invalid message: *") })
	}
}

func TestWebhookWithoutTLSLeadsToLoopbackOnly(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	w := newWebhook(t, server, "")
	w.url.Host = "192.0.2.1" // Parse refuses this; a name could resolve to it
	checkError(t, w.Send(t.Context(), testMessage(t)), false, "webhook: dial tcp 192.0.2.1:80: "+errPlain.Error())
}
