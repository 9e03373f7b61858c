package mail

import (
	"bytes"
	"io"
	"mime"
	"mime/quotedprintable"
	netmail "net/mail"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestMessageBytes(t *testing.T) {
	t.Parallel()
	m := testMessage(t)
	m.Subject, m.Text = "Grüße", "Hé = "+strings.Repeat("x", 80)+"\r\nFrom here\x1b[31m\rto \u202ethere\x00\xff\n\n\n"
	const want = "Date: Thu, 25 Feb 2021 15:02:10 +0000\r\n" +
		"From: =?utf-8?q?Beispiel_f=C3=BCr_alle?= <no-reply@example.com>\r\n" +
		"To: ann@example.org\r\n" +
		"Message-ID: <17.2@example.com>\r\n" +
		"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n" +
		"Auto-Submitted: auto-generated\r\n" +
		"MIME-Version: 1.0\r\n" +
		"Content-Type: text/plain; charset=utf-8\r\n" +
		"Content-Transfer-Encoding: quoted-printable\r\n" +
		"\r\n" +
		"H=C3=A9 =3D xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx=\r\n" +
		"xxxxxxxxxxxxxxxxx\r\n" +
		"From here[31m\r\n" +
		"to =E2=80=AEthere=EF=BF=BD\r\n"
	if got, err := m.Bytes(); err != nil || string(got) != want {
		t.Errorf("got\n%s\n%v, want\n%s", got, err, want)
	}
}

func TestMessageRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(m *Message){
		"no ID":                          func(m *Message) { m.ID = "" },
		"an ID with a line break":        func(m *Message) { m.ID = "17@example.com\r\nBcc: eve@example.com" },
		"an ID with brackets":            func(m *Message) { m.ID = "<17@example.com>" },
		"an ID that is a path":           func(m *Message) { m.ID = "../17@example.com" },
		"an ID without a domain":         func(m *Message) { m.ID = "17" },
		"a long ID":                      func(m *Message) { m.ID = strings.Repeat("1", 200) + "@example.com" },
		"no date":                        func(m *Message) { m.Date = time.Time{} },
		"no sender":                      func(m *Message) { m.From = Sender{} },
		"no recipient":                   func(m *Message) { m.To = "" },
		"two recipients":                 func(m *Message) { m.To = "ann@example.org,eve@example.com" },
		"two recipients, by semicolon":   func(m *Message) { m.To = "ann@example.org;eve@example.com" },
		"two recipients, by space":       func(m *Message) { m.To = "ann@example.org eve@example.com" },
		"two recipients, by NUL":         func(m *Message) { m.To = "ann@example.org\x00eve@example.com" },
		"a recipient with a line break":  func(m *Message) { m.To = "ann@example.org\r\nRCPT TO:<eve@example.com>" },
		"a line break at the end":        func(m *Message) { m.To = "ann@example.org\n" },
		"a recipient with a name":        func(m *Message) { m.To = "Ann <ann@example.org>" },
		"a recipient in brackets":        func(m *Message) { m.To = "<ann@example.org>" },
		"a quoted recipient":             func(m *Message) { m.To = `"ann@example.org,eve"@example.com` },
		"a comment":                      func(m *Message) { m.To = "ann@example.org(eve@example.com)" },
		"a group":                        func(m *Message) { m.To = "all:ann@example.org;" },
		"a route":                        func(m *Message) { m.To = "@example.com:ann@example.org" },
		"another script":                 func(m *Message) { m.To = "ann@exаmple.org" },
		"a long recipient":               func(m *Message) { m.To = "ann@" + strings.Repeat("a.", 125) + "org" },
		"a long local part":              func(m *Message) { m.To = strings.Repeat("a", 65) + "@example.org" },
		"no subject":                     func(m *Message) { m.Subject = "" },
		"a subject with a line break":    func(m *Message) { m.Subject = "Hello\r\nBcc: eve@example.com" },
		"a subject with CR":              func(m *Message) { m.Subject = "Hello\rBcc: eve@example.com" },
		"a subject with NEL":             func(m *Message) { m.Subject = "Hello\u0085" },
		"a subject that is not UTF-8":    func(m *Message) { m.Subject = "Hello\xff" },
		"a subject that is encoded":      func(m *Message) { m.Subject = "=?utf-8?q?Hello=0ABcc:?=" },
		"a long subject":                 func(m *Message) { m.Subject = strings.Repeat("a", 501) },
		"a long text":                    func(m *Message) { m.Text = strings.Repeat("a", maxBody+1) },
		"an address with a leading dot":  func(m *Message) { m.To = ".ann@example.org" },
		"a domain with a leading hyphen": func(m *Message) { m.To = "ann@-example.org" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := testMessage(t)
			change(m)
			got, err := m.Bytes()
			if err == nil {
				t.Fatalf("no error; the message is\n%s", got)
			}
			if strings.Contains(err.Error(), "eve@") || strings.Contains(err.Error(), "ann@") {
				t.Errorf("the error %q contains an address", err)
			}
		})
	}
}

func TestParseSender(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"no-reply@example.com":                        "<no-reply@example.com>",
		"Example <no-reply@example.com>":              `"Example" <no-reply@example.com>`,
		"Ann, Bob & Co <no-reply@example.com>":        "",
		`"Ann, Bob" <no-reply@example.com>`:           `"Ann, Bob" <no-reply@example.com>`,
		"Grüße <no-reply@example.com>":                "=?utf-8?q?Gr=C3=BC=C3=9Fe?= <no-reply@example.com>",
		"=?utf-8?q?a=0Ab?= <a@example.com>":           "",
		"a@example.com, b@example.com":                "",
		"a@example.com\r\nBcc: b@example.com":         "",
		`"a b"@example.com`:                           "",
		"a@bücher.example":                            "",
		strings.Repeat("a", 101) + " <a@example.com>": "",
		"": "",
	} {
		s, err := ParseSender(in)
		if s.header != want || (err == nil) != (want != "") {
			t.Errorf("ParseSender(%q) = %q, %v, want %q", in, s.header, err, want)
		}
		if err == nil && s.Domain() != "example.com" {
			t.Errorf("the domain of %q is %q", in, s.Domain())
		}
	}
}

func TestMessageFoldsLongHeaders(t *testing.T) {
	t.Parallel()
	var err error
	m := testMessage(t)
	if m.From, err = ParseSender(strings.Repeat("ü", 50) + " <no-reply@example.com>"); err != nil {
		t.Fatal(err)
	}
	for _, m.Subject = range []string{strings.Repeat("Grüße ", 60), strings.Repeat("Hello ", 80), strings.Repeat(strings.Repeat("ü", 40)+" ", 6)} {
		data, err := m.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(data), "\r\n\r\n")
		for _, line := range strings.Split(head, "\r\n") {
			if len(line) > 76 {
				t.Errorf("a line has %d bytes: %q", len(line), line)
			}
			if line == "Subject:" {
				t.Errorf("the subject %q begins on a second line", m.Subject)
			}
		}
	}
}

// FuzzMessage parses each message back: it has the fields that were set, and no others.
func FuzzMessage(f *testing.F) {
	f.Add("17.2@example.com", "Example <a@example.com>", "ann@example.org", "Hello", "Text\n.\nFrom me\r\n")
	f.Add("1@a", "a@a", "b@b", strings.Repeat("é ü", 80), strings.Repeat("é", 100)+" \n\t\n")
	f.Add("1@a", strings.Repeat("ü", 40)+" <a@a>", "b@b\r\nBcc: c@c", "a\r\nBcc: c@c", "\r\n\r\nBcc: c@c")
	f.Add("1@a", "a@a", "b@b", " a"+strings.Repeat(" ", 100)+strings.Repeat("b", 100)+"\u00a0", "")
	f.Fuzz(func(t *testing.T, id, from, to, subject, text string) {
		sender, _ := ParseSender(from)
		m := &Message{ID: id, Date: time.Unix(1614265330, 0), From: sender, To: to, Subject: subject, Text: text}
		data, err := m.Bytes()
		if err != nil {
			return
		}
		lines := strings.Split(string(data), "\r\n")
		for i, line := range lines {
			if len(line) > 998 || strings.ContainsAny(line, "\r\n\x00") || strings.ContainsFunc(line, func(r rune) bool { return r > unicode.MaxASCII }) {
				t.Errorf("line %d is %q", i, line)
			}
			if i > 0 && i < 10 && line != "" && strings.TrimSpace(line) == "" {
				t.Errorf("line %d consists of spaces", i)
			}
		}
		parsed, err := netmail.ReadMessage(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%v:\n%s", err, data)
		}
		if len(parsed.Header) != 9 {
			t.Errorf("%d headers, want 9: %v", len(parsed.Header), parsed.Header)
		}
		for name, values := range parsed.Header {
			if len(values) != 1 {
				t.Errorf("%s: %q", name, values)
			}
		}
		if list, err := parsed.Header.AddressList("To"); err != nil || len(list) != 1 || list[0].Address != to {
			t.Errorf("the recipients are %v, %v, want %q", list, err, to)
		}
		if list, err := parsed.Header.AddressList("From"); err != nil || len(list) != 1 || list[0].Address != sender.address {
			t.Errorf("the senders are %v, %v, want %q", list, err, sender.address)
		}
		decoded, err := new(mime.WordDecoder).DecodeHeader(parsed.Header.Get("Subject"))
		if want := strings.Join(strings.Fields(subject), " "); err != nil || decoded != want {
			t.Errorf("the subject is %q, %v, want %q", decoded, err, want)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(parsed.Body))
		got := strings.ReplaceAll(string(body), "\r\n", "\n")
		if err != nil || got != printable(text) || !utf8.ValidString(got) {
			t.Errorf("the text is %q, %v, want %q", got, err, printable(text))
		}
	})
}
