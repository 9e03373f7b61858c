package groupcommit_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"userd/internal/groupcommit"
	"userd/internal/groupcommit/groupcommittest"
	"userd/internal/sqlitefile"
)

type (
	statement = groupcommit.Statement
	args      = groupcommit.Args
)

// A file is a database and its writer.
type file struct {
	path string
	conn *sqlitefile.OnlyConn // of the writer
	*groupcommit.Writer
	close     func() error // closes the writer, at most once
	committed func()       // called after each commit, by the writer
}

// open makes a database. SQLite checks the references of notes at once, those of bills at the
// commit.
func open(t *testing.T) *file {
	t.Helper()
	f := &file{path: filepath.Join(t.TempDir(), "app.db"), committed: func() {}}
	err := os.WriteFile(f.path, nil, 0o600)
	if err == nil {
		f.conn, err = sqlitefile.OpenToWrite(f.path, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	runSQL(t, f.conn.Conn, `
		CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, n INTEGER NOT NULL DEFAULT 0);
		CREATE TABLE note (item INTEGER NOT NULL REFERENCES item (id));
		CREATE TABLE bill (item INTEGER NOT NULL REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED);
		CREATE TABLE counter (n INTEGER NOT NULL);
		INSERT INTO counter VALUES (0)`)
	f.Writer = groupcommit.Start(f.conn.Conn, `PRAGMA application_id = 0`, func(time.Duration, int) { f.committed() })
	f.close = sync.OnceValue(f.Writer.Close)
	t.Cleanup(func() {
		if err := errors.Join(f.close(), f.conn.Close()); err != nil {
			t.Error(err)
		}
	})
	return f
}

// another opens the database as another program does.
func (f *file) another(t *testing.T) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", sqlitefile.DSN(f.path, "_busy_timeout=10000"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(conn.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func insert(name string) statement {
	return statement{Query: `INSERT INTO item (name) VALUES (@name)`, Args: args{{"name", name}}}
}

// add returns a write that adds an item, for Enqueue.
func (f *file) add(name string) func() error {
	return func() error {
		return f.Write(context.Background(), insert(name), statement{Query: `UPDATE counter SET n = (SELECT max(id) FROM item)`})
	}
}

func (f *file) mustAdd(t *testing.T, name string) {
	t.Helper()
	wantError(t, "adding "+name, f.add(name)(), nil)
}

// names lists the items, in id order.
func (f *file) names(t *testing.T) (names []string) {
	t.Helper()
	var name string
	err := sqlitefile.Scan(context.Background(), f.another(t), `SELECT name FROM item ORDER BY id`, []any{&name}, func() { names = append(names, name) })
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// block makes the writer wait for the lock, which the other program takes by a BEGIN among
// the queries. The group that waits is full, so later writes are behind it. block returns the
// answer of one of its writes.
func (f *file) block(t *testing.T, other *sql.Conn, queries ...string) (answer <-chan error) {
	t.Helper()
	release := groupcommittest.Busy(t, f.Writer)
	tick := statement{Query: `UPDATE counter SET n = n`}
	answer = groupcommittest.Enqueue(t, f.Writer, func() error { return f.Write(context.Background(), tick) })
	for range groupcommit.MaxGroup - 1 {
		f.WriteLater(tick)
	}
	f.committed = func() { // before the writer takes the group
		f.committed = func() {}
		for _, query := range queries {
			if _, err := other.ExecContext(context.Background(), query); err != nil {
				t.Errorf("%s: %v", query, err)
			}
		}
	}
	release()
	for f.Waiting() > 0 {
		time.Sleep(time.Millisecond)
	}
	return answer
}

func runSQL(t *testing.T, conn *sql.Conn, queries ...string) {
	t.Helper()
	for _, query := range queries {
		if _, err := conn.ExecContext(context.Background(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

// scan returns the one value of a query.
func scan[T any](t *testing.T, conn *sql.Conn, query string) (v T) {
	t.Helper()
	if err := conn.QueryRowContext(context.Background(), query).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// errFailure stands for a *groupcommit.Failure.
var errFailure = errors.New("a *groupcommit.Failure")

func isFailure(err error) bool {
	_, ok := errors.AsType[*groupcommit.Failure](err)
	return ok
}

// wantError fails the test unless err is want. No error is nil.
func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) && !(want == errFailure && isFailure(err)) {
		t.Errorf("%s: got the error %v, want %v", what, err, want)
	}
}

func TestWritesThatWaitShareOneCommit(t *testing.T) {
	t.Parallel()
	f := open(t)
	commits := groupcommittest.CountCommits(t, f.conn.Conn)
	release := groupcommittest.Busy(t, f.Writer)
	const n = 100
	var writes []<-chan error
	for i := range n {
		writes = append(writes, groupcommittest.Enqueue(t, f.Writer, f.add(fmt.Sprint("u", i))))
	}
	release()
	for i, err := range groupcommittest.Answers(t, writes...) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if got := commits.Load(); got != 2 {
		t.Errorf("the write that held the writer and %d that waited took %d commits, want 2", n, got)
	}
	if got := len(f.names(t)); got != n {
		t.Errorf("%d of %d took effect", got, n)
	}
}

func TestAFullQueueIsWrittenInGroupsOfBoundedSize(t *testing.T) {
	t.Parallel()
	f := open(t)
	commits := groupcommittest.CountCommits(t, f.conn.Conn)
	release := groupcommittest.Busy(t, f.Writer)
	var writes []<-chan error
	for i := range groupcommit.MaxGroup {
		writes = append(writes, groupcommittest.Enqueue(t, f.Writer, f.add(fmt.Sprint("u", i))))
	}
	// The queue is full: the context of one more counts while it waits for a place.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantError(t, "a cancelled write before a full queue", f.Write(ctx, statement{Query: `DELETE FROM item`}), context.Canceled)
	late := make(chan error, 1)
	go func() { late <- f.add("late")() }()
	release()
	for i, err := range groupcommittest.Answers(t, append(writes, late)...) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	// The late write enters the queue before or after the writer empties it.
	if got := commits.Load(); got > 3 {
		t.Errorf("%d writes took %d commits, want at most 3", groupcommit.MaxGroup+2, got)
	}
	if got := len(f.names(t)); got != groupcommit.MaxGroup+1 {
		t.Errorf("%d of %d took effect", got, groupcommit.MaxGroup+1)
	}
}

func TestConcurrentWritesAllTakeEffect(t *testing.T) {
	t.Parallel()
	f := open(t)
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := f.add(fmt.Sprintf("u%d-%d", w, i))(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	names := f.names(t)
	slices.Sort(names)
	if got := len(slices.Compact(names)); got != writers*each {
		t.Errorf("%d of %d took effect", got, writers*each)
	}
}

func TestARejectedWriteLeavesItsGroupUnaffected(t *testing.T) {
	t.Parallel()
	errNothing := errors.New("nothing to do")
	tick := statement{Query: `UPDATE counter SET n = n + 1`} // the first statement, which must be undone
	insert := func(id int64, name string) statement {
		return statement{
			Query: `INSERT INTO item (id, name) VALUES (@id, @name)`,
			Args:  args{{"id", id}, {"name", name}},
		}
	}
	for _, c := range []struct {
		claim string
		write []statement
		want  error
	}{
		{"a name that is taken after another statement", []statement{tick, insert(50, "ANN")}, groupcommit.ErrDuplicate},
		{"an id that is taken after another statement", []statement{tick, insert(1, "fresh")}, groupcommit.ErrDuplicate},
		{"a name that is taken in a write of one statement", []statement{insert(50, "ANN")}, groupcommit.ErrDuplicate},
		{"a name that is taken before another statement", []statement{insert(50, "ANN"), tick}, groupcommit.ErrDuplicate},
		{"a condition that does not hold, after another statement",
			[]statement{tick, {Query: `DELETE FROM item WHERE id = 99`, IfNone: errNothing}}, errNothing},
		{"a condition that does not hold, of a statement that returns a row",
			[]statement{tick, {Query: `DELETE FROM item WHERE id = 99 RETURNING id`, Scan: []any{new(int64)}, IfNone: errNothing}}, errNothing},
		{"a value that must not be NULL, after another statement",
			[]statement{tick, {Query: `UPDATE item SET name = NULL`}}, errFailure},
		{"a value that must not be NULL, in a write of one statement",
			[]statement{{Query: `UPDATE item SET name = NULL`}}, errFailure},
		{"a reference to an item that does not exist", []statement{tick, {Query: `INSERT INTO note VALUES (99)`}}, groupcommit.ErrForeignKey},
		{"a reference to an item that does not exist, checked at the commit", []statement{tick, {Query: `INSERT INTO bill VALUES (99)`}}, groupcommit.ErrForeignKey},
		{"a row that fails after rows of the same statement were written",
			[]statement{{Query: `INSERT INTO item (id, name) SELECT id + 60, name || '2' FROM item UNION ALL SELECT 59, 'ANN'`}}, groupcommit.ErrDuplicate},
	} {
		t.Run(c.claim, func(t *testing.T) {
			f := open(t)
			f.mustAdd(t, "ann")
			commits := groupcommittest.CountCommits(t, f.conn.Conn)
			release := groupcommittest.Busy(t, f.Writer)
			before := groupcommittest.Enqueue(t, f.Writer, f.add("before"))
			failing := groupcommittest.Enqueue(t, f.Writer, func() error { return f.Write(context.Background(), c.write...) })
			after := groupcommittest.Enqueue(t, f.Writer, f.add("after"))
			release()
			errs := groupcommittest.Answers(t, before, failing, after)
			wantError(t, "the write before it", errs[0], nil)
			wantError(t, "the write that fails", errs[1], c.want)
			wantError(t, "the write after it", errs[2], nil)
			want := int64(2)
			if c.write[0].Query == tick.Query { // it fails after its first statement, and the three run again one by one
				want = 3
			}
			if got := commits.Load(); got != want {
				t.Errorf("the write that held the writer and the three took %d commits, want %d: they were not one group", got, want)
			}
			if got := f.names(t); !slices.Equal(got, []string{"ann", "before", "after"}) {
				t.Errorf("the names are %v, want ann and the write's neighbours", got)
			}
			if got := scan[int64](t, f.another(t), `SELECT n FROM counter`); got != 3 {
				t.Errorf("the counter is at %d, want 3: the first statement of the write was not undone", got)
			}
		})
	}
}

func TestAnyOtherErrorFailsTheWholeGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		query string
	}{
		{"a statement that does not parse", `SELEKT`},
		{"a function that fails in the middle of an update", `UPDATE item SET name = name || test_hold(0)`},
		{"an overflow in the middle of an update", `UPDATE item SET n = abs(-9223372036854775807 - id)`},
	} {
		t.Run(c.claim, func(t *testing.T) {
			f := open(t)
			f.mustAdd(t, "ann")
			release := groupcommittest.Busy(t, f.Writer)
			before := groupcommittest.Enqueue(t, f.Writer, f.add("before"))
			failing := groupcommittest.Enqueue(t, f.Writer, func() error { return f.Write(context.Background(), statement{Query: c.query}) })
			after := groupcommittest.Enqueue(t, f.Writer, f.add("after"))
			release()
			for i, err := range groupcommittest.Answers(t, before, failing, after) {
				wantError(t, fmt.Sprintf("write %d of the group", i), err, errFailure)
			}
			if got := f.names(t); !slices.Equal(got, []string{"ann"}) {
				t.Errorf("the names are %v, want only ann", got)
			}
			wantError(t, "a write after the group", f.add("later")(), nil)
		})
	}
}

func TestAFailedCommitFailsTheWholeGroup(t *testing.T) {
	t.Parallel()
	f := open(t)
	var refuse atomic.Bool
	groupcommittest.OnCommit(t, f.conn.Conn, refuse.Load) // SQLite makes a ROLLBACK of the COMMIT
	refuse.Store(true)
	wantError(t, "a write whose commit fails", f.add("ann")(), errFailure)
	if got := f.names(t); len(got) != 0 {
		t.Errorf("the names are %v, want none", got)
	}
	refuse.Store(false)
	wantError(t, "a write whose commit succeeds", f.add("bob")(), nil)
	if got := f.names(t); !slices.Equal(got, []string{"bob"}) {
		t.Errorf("the names are %v, want only bob", got)
	}
}

func TestAWriteThatIsCancelledWhileItWaitsIsNotRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim  string
		cancel func(context.Context) (context.Context, context.CancelFunc)
		want   error
	}{
		{"cancelled", context.WithCancel, context.Canceled},
		{"past its deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			return expired{ctx}, func() { cancel(nil) }
		}, context.DeadlineExceeded},
	} {
		t.Run(c.claim, func(t *testing.T) {
			f := open(t)
			ctx, cancel := c.cancel(context.Background())
			defer cancel()
			release := groupcommittest.Busy(t, f.Writer)
			before := groupcommittest.Enqueue(t, f.Writer, f.add("before"))
			cancelled := groupcommittest.Enqueue(t, f.Writer, func() error {
				return f.Write(ctx, insert("cancelled"))
			})
			after := groupcommittest.Enqueue(t, f.Writer, f.add("after"))
			cancel()
			release()
			errs := groupcommittest.Answers(t, before, cancelled, after)
			wantError(t, "the write before it", errs[0], nil)
			wantError(t, "the cancelled write", errs[1], c.want)
			if isFailure(errs[1]) {
				t.Errorf("the cancelled write: %v is a failure of the database", errs[1])
			}
			wantError(t, "the write after it", errs[2], nil)
			if got := f.names(t); !slices.Equal(got, []string{"before", "after"}) {
				t.Errorf("the names are %v, want the write's neighbours", got)
			}
		})
	}
}

// expired is a cancelled context as one past its deadline.
type expired struct{ context.Context }

func (c expired) Err() error {
	if c.Context.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

func TestAWriteThatIsCancelledWhileItRunsTakesEffect(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	release := groupcommittest.Busy(t, f.Writer)
	before := groupcommittest.Enqueue(t, f.Writer, f.add("before"))
	h := groupcommittest.NewHold()
	cancelled := groupcommittest.Enqueue(t, f.Writer, func() error {
		return f.Write(ctx,
			h.Statement(),
			insert("cancelled"))
	})
	after := groupcommittest.Enqueue(t, f.Writer, f.add("after"))
	release()
	<-h.Entered // the write runs
	cancel()
	close(h.Release)
	for i, err := range groupcommittest.Answers(t, before, cancelled, after) {
		wantError(t, fmt.Sprintf("write %d of the group", i), err, nil)
	}
	if got := f.names(t); !slices.Equal(got, []string{"before", "cancelled", "after"}) { // in id order
		t.Errorf("the names are %v, want all three", got)
	}
}

func TestAFullDiskFailsTheWholeGroup(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.mustAdd(t, "ann")
	addBig := f.add("big" + strings.Repeat("x", 1<<20))
	tick := func() error { return f.Write(t.Context(), statement{Query: `UPDATE item SET n = n + 1`}) }
	full := scan[int64](t, f.conn.Conn, `PRAGMA page_count`) + 10
	scan[int64](t, f.conn.Conn, fmt.Sprintf(`PRAGMA max_page_count = %d`, full))

	for round := range 3 {
		release := groupcommittest.Busy(t, f.Writer)
		var writes []<-chan error
		for _, write := range []func() error{f.add("before"), tick, addBig, f.add("after"), tick} {
			writes = append(writes, groupcommittest.Enqueue(t, f.Writer, write))
		}
		release()
		for i, err := range groupcommittest.Answers(t, writes...) {
			wantError(t, fmt.Sprintf("round %d, write %d of the group", round, i), err, errFailure)
		}
		if got := scan[string](t, f.another(t), `SELECT group_concat(name || n, ',' ORDER BY id) FROM item`); got != "ann0" {
			t.Fatalf("round %d: the rows are %s, want only ann0", round, got)
		}
	}
	wantError(t, "a small write on a disk that a large one filled", f.add("small")(), nil)

	scan[int64](t, f.conn.Conn, `PRAGMA max_page_count = 1000000`)
	wantError(t, "the large write after room was made", addBig(), nil)
	if got := scan[string](t, f.another(t), `SELECT group_concat(id || substr(name, 1, 5), ',' ORDER BY id) FROM item`); got != "1ann,2small,3bigxx" {
		t.Errorf("the rows are %s: additions that failed took ids", got)
	}
	if got := scan[string](t, f.another(t), `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
}

func TestAWriteWaitsForAnotherProcess(t *testing.T) {
	t.Parallel()
	f := open(t)
	other := f.another(t)
	f.block(t, other, `BEGIN IMMEDIATE`, `INSERT INTO item (name) VALUES ('theirs')`)
	// Ours applies only to what the other has committed by then.
	ours := groupcommittest.Enqueue(t, f.Writer, func() error {
		return f.Write(context.Background(), statement{
			Query:  `UPDATE item SET name = 'ours' WHERE name = 'theirs'`,
			IfNone: errors.New("no row of the other program"),
		})
	})
	if got := f.names(t); len(got) != 0 {
		t.Errorf("a reader during the other's open transaction got %v", got)
	}
	runSQL(t, other, `COMMIT`)
	wantError(t, "our write", groupcommittest.Answers(t, ours)[0], nil)
	if got := f.names(t); !slices.Equal(got, []string{"ours"}) {
		t.Errorf("the names are %v", got)
	}
}

// A write waits once for a lock that another process holds. The writes behind it in
// the queue fail together with it and do not wait again.
func TestAWriteThatWaitedInVainForTheLockFailsTheQueue(t *testing.T) {
	t.Parallel()
	f := open(t)
	other := f.another(t)
	runSQL(t, f.conn.Conn, `PRAGMA busy_timeout = 2000`) // enough for the writes behind it to come
	waits := f.block(t, other, `BEGIN IMMEDIATE`)
	var behind []<-chan error
	for range 3 {
		behind = append(behind, groupcommittest.Enqueue(t, f.Writer, f.add("behind")))
	}
	wantError(t, "the write that waited", groupcommittest.Answers(t, waits)[0], errFailure)
	runSQL(t, other, `ROLLBACK`) // one that waited again would now get the lock
	for _, err := range groupcommittest.Answers(t, behind...) {
		wantError(t, "a write behind it", err, errFailure)
	}
	wantError(t, "a write when the lock is gone", f.add("after")(), nil)
}

func TestCloseWaitsForTheWritesInTheQueue(t *testing.T) {
	t.Parallel()
	f := open(t)
	release := groupcommittest.Busy(t, f.Writer)
	var writes []<-chan error
	for i := range groupcommit.MaxGroup {
		writes = append(writes, groupcommittest.Enqueue(t, f.Writer, f.add(fmt.Sprint("u", i))))
	}
	late, closed := make(chan error, 1), make(chan error, 1)
	go func() { late <- f.add("late")() }() // it waits for a place in the queue, which is full
	go func() { closed <- f.close() }()
	wantError(t, "the write that waits for a place when close begins", groupcommittest.Answers(t, late)[0], errFailure)
	release()
	for i, err := range groupcommittest.Answers(t, writes...) {
		wantError(t, fmt.Sprintf("write %d", i), err, nil)
	}
	wantError(t, "close", groupcommittest.Answers(t, closed)[0], nil)
	if got := len(f.names(t)); got != groupcommit.MaxGroup {
		t.Errorf("%d of %d took effect", got, groupcommit.MaxGroup)
	}
}

// A write while the writer closes either takes effect or fails. An acknowledged write
// is in the database afterwards, and no caller waits forever.
func TestAWriteDuringCloseTakesEffectOrFails(t *testing.T) {
	t.Parallel()
	for round := range 10 {
		f := open(t)
		var wg sync.WaitGroup
		var acknowledged atomic.Int64
		first := make(chan error, 16)
		for w := range 16 {
			wg.Go(func() {
				for i := 0; ; i++ {
					err := f.add(fmt.Sprintf("u%d-%d", w, i))()
					if i == 0 {
						first <- err
					}
					if err != nil {
						wantError(t, "a write that is not done", err, errFailure)
						return
					}
					acknowledged.Add(1)
				}
			})
		}
		wantError(t, "the first write", groupcommittest.Answers(t, first)[0], nil)
		wantError(t, "close", f.close(), nil)
		wg.Wait()
		if got := len(f.names(t)); got != int(acknowledged.Load()) {
			t.Fatalf("round %d: %d writes were acknowledged, but %d took effect", round, acknowledged.Load(), got)
		}
	}
}

func TestTheWriteAheadLogStaysSmallUnderManySmallWrites(t *testing.T) {
	t.Parallel()
	const writes, most = 20000, 8 << 20
	f := open(t)
	runSQL(t, f.conn.Conn, `PRAGMA synchronous = OFF`) // syncs take the time and have no part in this
	commits := groupcommittest.CountCommits(t, f.conn.Conn)
	var largest int64
	for i := range writes {
		// A RETURNING, since a statement that ends before its last row leaves the
		// log as it is.
		err := f.Write(context.Background(), statement{
			Query: `UPDATE counter SET n = n + 1 RETURNING n`,
			Scan:  []any{new(int64)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			info, err := os.Stat(f.path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			largest = max(largest, info.Size())
		}
	}
	if largest > most {
		t.Errorf("the write-ahead log grew to %d bytes, want at most %d", largest, most)
	}
	// Each commit writes a page of 4 KiB at least.
	if wrote := commits.Load() * 4096; wrote < 2*most {
		t.Errorf("%d commits would not have made it grow beyond %d: this test shows nothing", commits.Load(), most)
	}
}

func TestAWritePassesItsNamedArguments(t *testing.T) {
	t.Parallel()
	f := open(t)
	var first, second, again string
	query := `SELECT @b, @a, @b || '@a'`
	destinations := []any{&first, &second, &again}
	err := f.Write(t.Context(), statement{Query: query, Args: args{{"a", "A"}, {"b", "B"}, {"unused", 1}}, Scan: destinations})
	if err != nil || first != "B" || second != "A" || again != "B@a" {
		t.Errorf("got %q, %q, %q and the error %v, want B, A and B@a", first, second, again, err)
	}
	err = f.Write(t.Context(), statement{Query: query, Args: args{{"a", "A"}}, Scan: destinations})
	wantError(t, "without the argument b", err, errFailure)
}
