// Package groupcommittest stops a [groupcommit.Writer] in the middle of a write, so that a
// test can put writes into its queue, and counts its commits.
package groupcommittest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"modernc.org/sqlite"

	"userd/internal/groupcommit"
)

// patience is how long a test waits for what must come. Only a test that fails takes so
// long.
const patience = 30 * time.Second

// A Hold stops its statement in the middle of its work, with its transaction open, until
// the test closes Release.
type Hold struct {
	id      int64
	Entered chan struct{} // closed when the statement runs
	Release chan struct{}
}

var holds sync.Map // id → *Hold

func init() {
	sqlite.MustRegisterScalarFunction("test_hold", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		h, ok := holds.LoadAndDelete(args[0])
		if !ok {
			return nil, errors.New("no such hold")
		}
		close(h.(*Hold).Entered)
		<-h.(*Hold).Release
		return int64(0), nil
	})
}

// NewHold returns a hold for one run of its statement.
func NewHold() *Hold {
	h := &Hold{time.Now().UnixNano(), make(chan struct{}), make(chan struct{})}
	for {
		if _, taken := holds.LoadOrStore(h.id, h); !taken {
			return h
		}
		h.id++
	}
}

// Statement returns the statement that the hold stops. Without a hold, the SQL function
// test_hold fails.
func (h *Hold) Statement() groupcommit.Statement {
	return groupcommit.Statement{Query: `SELECT test_hold(@id)`, Args: groupcommit.Args{{"id", h.id}}, Scan: []any{new(int64)}}
}

// Busy keeps the writer busy, so that further writes wait in the queue. The returned function
// lets the writer continue.
func Busy(t *testing.T, w *groupcommit.Writer) (release func()) {
	t.Helper()
	h := NewHold()
	answer := make(chan error, 1)
	go func() { answer <- w.Write(context.Background(), h.Statement()) }()
	receive(t, "the writer stops at the hold", h.Entered)
	once := sync.OnceFunc(func() { close(h.Release) })
	t.Cleanup(once) // a test that failed must not keep the writer from closing
	return func() {
		t.Helper()
		once()
		if err := receive(t, "the answer of the write that held the writer", answer); err != nil {
			t.Errorf("the write that held the writer: %v", err)
		}
	}
}

// Enqueue starts f, which writes once, and returns when its write is in the queue. The
// writer must be busy.
func Enqueue(t *testing.T, w *groupcommit.Writer, f func() error) (answer <-chan error) {
	t.Helper()
	before := w.Waiting()
	c := make(chan error, 1)
	go func() { c <- f() }()
	for start := time.Now(); w.Waiting() != before+1; time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("waited in vain: the write is in the queue")
		}
	}
	return c
}

// Answers returns the answer of each write.
func Answers(t *testing.T, writes ...<-chan error) (errs []error) {
	t.Helper()
	for _, c := range writes {
		errs = append(errs, receive(t, "the answer of a write", c))
	}
	return errs
}

func receive[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// CountCommits counts the transactions that the connection commits from now on.
func CountCommits(t *testing.T, conn *sql.Conn) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	OnCommit(t, conn, func() (refuse bool) {
		n.Add(1)
		return false
	})
	return &n
}

// OnCommit calls f before each commit of the connection. If f returns true, SQLite rolls
// the transaction back instead.
func OnCommit(t *testing.T, conn *sql.Conn, f func() (refuse bool)) {
	t.Helper()
	err := conn.Raw(func(c any) error {
		c.(sqlite.HookRegisterer).RegisterCommitHook(func() int32 {
			if f() {
				return 1
			}
			return 0
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
