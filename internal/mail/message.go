package mail

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	netmail "net/mail"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Message is one message to one recipient.
type Message struct {
	// ID is the Message-ID without angle brackets, such as 17.2@example.com: letters,
	// digits, '.', '_' and '-', and a domain. Mail programs hide a message if they know
	// its ID, so no two messages in the world may share one.
	ID      string
	Date    time.Time // of this attempt
	From    Sender
	To      string // exactly one address, such as ann@example.com, in ASCII
	Subject string // 1 to 500 bytes without control characters
	Text    string // at most 64 KiB; LF or CRLF ends a line

	// Event is what a webhook receives instead: JSON, at most 64 KiB. EventID is 1 to
	// 64 letters, digits, '_' and '-'. It stays the same in each attempt, so that the
	// receiver can recognize an event that it already handled.
	Event   []byte
	EventID string
}

// A Sender is the address that a message comes from. Use [ParseSender].
type Sender struct{ header, address string }

const (
	maxAddress = 254 // bytes, RFC 5321 section 4.5.3.1.3, without the angle brackets
	maxLocal   = 64  // bytes, RFC 5321 section 4.5.3.1.1
	maxID      = 200 // bytes: a file name has room for it
	maxSubject = 500 // bytes
	maxBody    = 64 << 10
	maxLine    = 76 // bytes of a header line, RFC 2047 section 2
)

const (
	label  = `[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?` // RFC 1035 section 2.3.1
	domain = label + `(?:\.` + label + `)*$`
)

var (
	addressPattern = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@" + domain)
	idPattern      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*@` + domain)
	eventIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// isAddress reports whether s is one address and nothing more. Servers that accept
// less strict forms find several recipients in some of them.
func isAddress(s string) bool {
	return len(s) <= maxAddress && strings.IndexByte(s, '@') <= maxLocal && addressPattern.MatchString(s)
}

// ParseSender parses an address, such as no-reply@example.com, with or without a name,
// as in Example <no-reply@example.com>.
func ParseSender(s string) (Sender, error) {
	a, err := netmail.ParseAddress(s)
	if err != nil || !isAddress(a.Address) || len(a.Name) > 100 || strings.ContainsFunc(a.Name, unicode.IsControl) {
		return Sender{}, errors.New("must be an address such as no-reply@example.com or Example <no-reply@example.com>, in ASCII but for the name")
	}
	a.Name = strings.Join(strings.Fields(a.Name), " ")
	return Sender{header: a.String(), address: a.Address}, nil
}

// Domain returns what follows the @ of the address.
func (s Sender) Domain() string { return s.address[strings.LastIndexByte(s.address, '@')+1:] }

// check returns what is wrong with a message. It repeats nothing of it.
func (m *Message) check() error {
	switch {
	case len(m.ID) > maxID || !idPattern.MatchString(m.ID):
		return errors.New("the ID must be letters, digits, '.', '_' and '-', and a domain after '@'")
	case m.Date.IsZero():
		return errors.New("no date")
	case m.From.address == "":
		return errors.New("no sender")
	case !isAddress(m.To):
		return errors.New("the recipient must be one address, in ASCII")
	case m.Subject == "" || len(m.Subject) > maxSubject || !utf8.ValidString(m.Subject) || strings.ContainsFunc(m.Subject, unicode.IsControl):
		return fmt.Errorf("the subject must be 1 to %d bytes of UTF-8 without control characters", maxSubject)
	case strings.Contains(m.Subject, "=?"):
		return errors.New("the subject contains =?, which mail programs would decode") // RFC 2047
	case len(m.Text) > maxBody:
		return fmt.Errorf("the text is longer than %d bytes", maxBody)
	}
	return nil
}

// Bytes returns the message in the format of RFC 5322, with CRLF, as plain text in UTF-8
// and quoted-printable. It removes control characters from the text. It returns an
// error if a field is invalid.
func (m *Message) Bytes() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	// The padding leaves room for the header's name before the first encoded word. Without
	// it, the subject would begin on a second line, and Python would read a space before it.
	padding := strings.Repeat("x", len("Subject: "))
	subject := mime.QEncoding.Encode("utf-8", padding+strings.Join(strings.Fields(m.Subject), " "))
	subject = strings.Replace(subject, padding, "", 1)
	var b bytes.Buffer
	for _, line := range []string{
		"Date: " + m.Date.UTC().Format(time.RFC1123Z),
		fold("From: " + m.From.header),
		"To: " + m.To,
		"Message-ID: <" + m.ID + ">",
		fold("Subject: " + subject),
		"Auto-Submitted: auto-generated", // RFC 3834: vacation programs do not answer
		"MIME-Version: 1.0",
		"Content-Type: text/plain; charset=utf-8",
		"Content-Transfer-Encoding: quoted-printable",
		"",
	} {
		b.WriteString(line + "\r\n")
	}
	w := quotedprintable.NewWriter(&b) // ends lines with CRLF
	if _, err := w.Write([]byte(printable(m.Text))); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// fold breaks a header line at spaces. A longer line remains only if a word is longer.
func fold(line string) string {
	var b strings.Builder
	length := 0
	for i, word := range strings.Split(line, " ") {
		if i > 0 {
			if length+1+len(word) > maxLine {
				b.WriteString("\r\n")
				length = 0
			}
			b.WriteByte(' ')
			length++
		}
		b.WriteString(word)
		length += len(word)
	}
	return b.String()
}

// printable returns a text in UTF-8 whose lines end with LF, and that contains no other
// control characters but tabs: they could command a terminal.
func printable(text string) string {
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, text) // which replaces invalid UTF-8 by U+FFFD
	return strings.TrimRight(text, "\n") + "\n"
}
