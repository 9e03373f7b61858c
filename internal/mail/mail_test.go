package mail

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testUser = "mailer@example.com"
	testPass = "p@ss/w%rd: 1"
	testLink = "https://app.example.com/reset#ur_abcdefghijklmnopqrstuvwxyz"
)

// testMessage returns a valid message.
func testMessage(t testing.TB) *Message {
	t.Helper()
	from, err := ParseSender("Beispiel für alle <no-reply@example.com>")
	if err != nil {
		t.Fatal(err)
	}
	return &Message{
		ID:      "17.2@example.com",
		Date:    time.Unix(1614265330, 0).In(time.FixedZone("CET", 3600)),
		From:    from,
		To:      "ann@example.org",
		Subject: "Your new password",
		Text:    "Hello Ann,\n\n" + testLink + "\n.\n",
		Event:   []byte(`{"test": 2432232314}`),
		EventID: "msg_p5jXN8AQM9LWM0D4loKWxJek",
	}
}

// checkError checks a DeliveryError, and that it contains no secret. A text with * at the
// end is a prefix.
func checkError(t *testing.T, err error, permanent bool, text string) {
	t.Helper()
	var e *DeliveryError
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a *DeliveryError", err)
	}
	prefix, isPrefix := strings.CutSuffix(text, "*")
	if e.Permanent != permanent || e.Error() != text && !(isPrefix && strings.HasPrefix(e.Error(), prefix)) {
		t.Errorf("permanent %t: %q, want %t: %q", e.Permanent, e, permanent, text)
	}
	for _, secret := range []string{"ann@", "ANN@", testUser, testPass, "abcdefgh", "\n", "\x1b"} {
		if strings.Contains(e.Error(), secret) {
			t.Errorf("the error %q contains %q", e, secret)
		}
	}
	if len(e.Error()) > 300 {
		t.Errorf("the error has %d bytes", len(e.Error()))
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"smtps://ann:secret@mail.example.com:4650": "smtps://mail.example.com:4650",
		"smtps://ann:secret@mail.example.com":      "smtps://mail.example.com:465",
		"smtp://ann:secret@mail.example.com/":      "smtp://mail.example.com:587",
		"smtp://[2001:db8::1]":                     "smtp://[2001:db8::1]:587",
		"smtp+plain://localhost":                   "smtp+plain://localhost:25",
		"smtp+plain://127.0.0.1:2525":              "smtp+plain://127.0.0.1:2525",
		"smtp+plain://[::1]:2525":                  "smtp+plain://[::1]:2525",
		"https://ann:secret@hooks.example.com/T/k": "https://hooks.example.com",
		"http://localhost:8080/secret?secret":      "http://localhost:8080",
		"log:":                                     "log:",
		"dir:./mail box%20":                        "dir:./mail box%20",
		"dir:/var/mail":                            "dir:/var/mail",
	} {
		got, err := Parse(url, Options{WebhookSecret: testSecret})
		if err != nil || got.String() != want {
			t.Errorf("Parse(%q) = %v, %v, want %s", url, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"":                                     "not a valid URL",
		"mail.example.com":                     "not a valid URL",
		"mail.example.com:587":                 "not a valid URL",
		"ann:secret@mail.example.com":          "not a valid URL",
		"smtps://":                             "not a valid URL",
		"smtps://ann:secret@:465":              "not a valid URL",
		"smtps://ann:secret#1@example.com":     "not a valid URL",
		"smtps://ann:123#secret@example.com":   "not a valid URL",
		"smtps://ann:secret/1@example.com":     "not a valid URL",
		"smtps://ann:secret%zz@example.com":    "not a valid URL",
		"smtps://ann:secret@example.com:x":     "not a valid URL",
		"smtps://ann:secret@example.com:0":     "port",
		"smtps://ann:secret@example.com:70000": "port",
		"smtps://secret@example.com":           "both a user and a password",
		"smtps://:secret@example.com":          "both a user and a password",
		"smtps://example.com/secret":           "nothing may follow",
		"smtps://example.com?secret":           "nothing may follow",
		"smtps://ann:123?secret@example.com":   "nothing may follow",
		"smtp+plain://ann:secret@localhost":    "without TLS",
		"http://ann:secret@localhost":          "without TLS",
		"smtp+plain://mail.example.com":        "loopback",
		"smtp+plain://localhost.example.com":   "loopback",
		"smtp+plain://10.0.0.1":                "loopback",
		"http://hooks.example.com/secret":      "loopback",
		"ftp://ann:secret@example.com":         "unknown scheme",
		"dir:":                                 "requires a path",
		"log:secret":                           "not a valid URL",
	} {
		got, err := Parse(url, Options{WebhookSecret: testSecret})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse(%q) = %v, %v, want an error with %q", url, got, err, want)
		}
	}
}

func TestOnlyHTTPSUsesAProxy(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{"https://hooks.example.com": true, "http://localhost": false} {
		w, err := Parse(url, Options{WebhookSecret: testSecret})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.(*Webhook).client.Transport.(*http.Transport).Proxy != nil; got != want {
			t.Errorf("%s uses a proxy: %t, want %t", url, got, want)
		}
	}
}

func TestParseRequiresAWebhookSecret(t *testing.T) {
	t.Parallel()
	secret := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for s, valid := range map[string]bool{
		testSecret: true, secret(24): true, secret(64): true, secret(25): true,
		"": false, secret(23): false, secret(65): false, strings.TrimPrefix(testSecret, "whsec_"): false,
		testSecret[:len(testSecret)-1]: false, testSecret + "\n": false, strings.ReplaceAll(secret(25), "=", ""): false,
		"whsec_" + strings.Repeat("_", 32): false,
	} {
		_, err := Parse("https://hooks.example.com", Options{WebhookSecret: s})
		if (err == nil) != valid || err != nil && len(s) > 10 && strings.Contains(err.Error(), s[6:]) {
			t.Errorf("with the secret %q the error is %v", s, err)
		}
	}
}

// FuzzParse checks that nothing repeats the user info of a URL.
func FuzzParse(f *testing.F) {
	f.Add("smtps", "ann", "example.com:465", testSecret)
	f.Add("smtp", "ann%40", "[::1%25lo]:587/?#", "whsec_")
	f.Add("smtp+plain", "", "localhost", "")
	f.Add("https", "/", "a@b/c", testSecret)
	f.Add("log", "", "", "")
	f.Fuzz(func(t *testing.T, scheme, user, host, secret string) {
		const password = "Zq9xTopSecret"
		if scheme == "dir" || strings.Contains(host, password) {
			return
		}
		got, err := Parse(scheme+"://"+user+":"+password+"@"+host, Options{WebhookSecret: secret})
		switch {
		case err != nil && (strings.Contains(err.Error(), password) || secret != "" && len(secret) > 20 && strings.Contains(err.Error(), secret)):
			t.Errorf("the error %q contains a secret", err)
		case err == nil && strings.Contains(got.String(), password):
			t.Errorf("the transport %q contains the password", got)
		}
		if s, ok := got.(*SMTP); ok && s.scheme == "smtp+plain" {
			t.Errorf("%q accepts a password", s)
		}
	})
}

func TestRetryDelay(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{0: 5 * time.Second, 1: 5 * time.Second, 2: 30 * time.Second, 3: 2 * time.Minute, 4: 10 * time.Minute, 5: 30 * time.Minute, 6: time.Hour, 7: time.Hour, 1 << 40: time.Hour} {
		for random, factor := range map[float64]float64{0: 0.8, 0.5: 1, 1: 1.2} {
			got := RetryDelay(failures, random)
			if diff := got - time.Duration(factor*float64(want)); diff.Abs() > time.Microsecond {
				t.Errorf("RetryDelay(%d, %v) = %v, want %v × %v", failures, random, got, factor, want)
			}
		}
	}
}

func TestLogWritesReadableText(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	l, err := Parse("log:", Options{Log: &b})
	if err != nil {
		t.Fatal(err)
	}
	m := testMessage(t)
	m.Text += "\x1b[31m"
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := l.Send(t.Context(), m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, want := b.String(), strings.Repeat("To: ann@example.org\nSubject: Your new password\n\nHello Ann,\n\n"+testLink+"\n.\n[31m\n\n", 2); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	m.Subject = "a\nb"
	checkError(t, l.Send(t.Context(), m), true, "invalid message: *")
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestLogThatFails(t *testing.T) {
	t.Parallel()
	checkError(t, (&Log{w: brokenWriter{}}).Send(t.Context(), testMessage(t)), false, "log: broken pipe")
}

func TestDirWritesPrivateFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "mail")
	d, err := Parse("dir:"+path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, id := range []string{"1.1@example.com", "2.1@example.com", "2.2@example.com"} {
		wg.Go(func() {
			m := testMessage(t)
			m.ID = id
			if err := d.Send(t.Context(), m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if want := []string{"20210225T150210.000Z-1.1@example.com.eml", "20210225T150210.000Z-2.1@example.com.eml", "20210225T150210.000Z-2.2@example.com.eml"}; !slices.Equal(names, want) {
		t.Errorf("the files are %q, want %q", names, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
	m := testMessage(t)
	m.ID = "2.2@example.com"
	want, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(path, names[2])); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file contains %q, %v, want %q", got, err, want)
	}
	checkError(t, d.Send(t.Context(), m), false, "dir: *") // it never overwrites a file
	m.To = "ann"
	checkError(t, d.Send(t.Context(), m), true, "invalid message: *")
}

func TestDirThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "x"), filepath.Join(t.TempDir(), "missing", "mail")} {
		checkError(t, (&Dir{path: path}).Send(t.Context(), testMessage(t)), false, "dir: *")
	}
	if _, err := os.Stat(filepath.Join(file, "x")); errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
}
