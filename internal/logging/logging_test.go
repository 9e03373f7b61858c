package logging

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A log whose reader does not read delays each record for Timeout at most, and drops it.
func TestAReaderThatDoesNotReadDelaysOnlyOneRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		log := slog.New(NewHandler(slog.NewTextHandler(writer, nil)))
		go log.Info("first") // waits for the reader
		synctest.Wait()
		start := time.Now()
		log.Info("second")
		if waited := time.Since(start); waited != Timeout {
			t.Errorf("the second record waited for %v, want %v", waited, Timeout)
		}
		start = time.Now()
		log.Info("third")
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the third record waited for %v", waited)
		}
		var read bytes.Buffer
		done := make(chan struct{})
		go func() { io.Copy(&read, reader); close(done) }()
		synctest.Wait()
		log.Info("fourth")
		writer.Close()
		<-done
		text := read.String()
		if !strings.Contains(text, "first") || !strings.Contains(text, "fourth lost_before=2") || strings.Contains(text, "third") {
			t.Errorf("logged %q", text)
		}
	})
}
