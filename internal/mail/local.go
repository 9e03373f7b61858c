package mail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"userd/internal/safefile"
)

// Log writes messages to a writer, for development: the recipient, the subject and the
// text, not encoded, so that a link can be clicked.
type Log struct {
	mu sync.Mutex
	w  io.Writer
}

// String returns "log:".
func (l *Log) String() string { return "log:" }

// Send writes a message.
func (l *Log) Send(_ context.Context, m *Message) error {
	if _, err := m.Bytes(); err != nil {
		return invalid(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := fmt.Fprintf(l.w, "To: %s\nSubject: %s\n\n%s\n", m.To, m.Subject, printable(m.Text)); err != nil {
		return &DeliveryError{text: "log: " + describe(err)}
	}
	return nil
}

// Dir writes each message to a file of its own.
type Dir struct{ path string }

// String returns "dir:" and the path.
func (d *Dir) String() string { return "dir:" + d.path }

// Send writes a message to a new file, whose name is the message's date and ID and ends
// with .eml. The file has mode 0600 and gets its name when it is complete. Send makes
// the directory with mode 0700 if it does not exist.
func (d *Dir) Send(_ context.Context, m *Message) error {
	data, err := m.Bytes()
	if err != nil {
		return invalid(err)
	}
	name := m.Date.UTC().Format("20060102T150405.000Z") + "-" + m.ID + ".eml"
	if err := d.write(name, data); err != nil {
		return &DeliveryError{text: "dir: " + describe(err)}
	}
	return nil
}

func (d *Dir) write(name string, data []byte) error {
	if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	t, err := safefile.CreateTemp(filepath.Join(d.path, name))
	if err != nil {
		return err
	}
	defer t.Discard()
	if _, err := t.Write(data); err != nil {
		return err
	}
	return t.Publish(name)
}
