package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"modernc.org/sqlite"
)

// A hold stops the statement SELECT test_hold(ID) in the middle of its work,
// with its transaction open, until the test lets it go.
type hold struct {
	id      int64
	entered chan struct{}
	release chan struct{}
}

var holds sync.Map // id → *hold

func init() {
	sqlite.MustRegisterScalarFunction("test_hold", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		h, ok := holds.LoadAndDelete(args[0])
		if !ok {
			return nil, errors.New("no such hold")
		}
		close(h.(*hold).entered)
		<-h.(*hold).release
		return int64(0), nil
	})
}

func newHold() *hold {
	h := &hold{time.Now().UnixNano(), make(chan struct{}), make(chan struct{})}
	for {
		if _, taken := holds.LoadOrStore(h.id, h); !taken {
			return h
		}
		h.id++
	}
}

func (h *hold) statement() statement {
	return statement{Query: `SELECT test_hold(@id)`, Args: args{{"id", h.id}}, Scan: []any{new(int64)}}
}

// holdWriter keeps the store's writer busy, so that further writes wait in the queue. The
// returned function lets the writer continue.
func holdWriter(t *testing.T, st *store) (release func()) {
	t.Helper()
	h := newHold()
	answer := make(chan error, 1)
	go func() { answer <- st.write(context.Background(), h.statement()) }()
	receive(t, "the writer stops at the hold", h.entered)
	once := sync.OnceFunc(func() { close(h.release) })
	t.Cleanup(once) // a test that failed must not keep the store from closing
	return func() {
		t.Helper()
		once()
		if err := receive(t, "the answer of the write that held the writer", answer); err != nil {
			t.Errorf("the write that held the writer: %v", err)
		}
	}
}

// enqueue starts f, which writes once, and returns when its write is in the queue of
// the store. The test must hold the writer.
func enqueue(t *testing.T, st *store, f func() error) (answer <-chan error) {
	t.Helper()
	before := len(st.queue)
	c := make(chan error, 1)
	go func() { c <- f() }()
	await(t, "the write is in the queue", func() bool { return len(st.queue) == before+1 })
	return c
}

// answersOf returns the answer of each write.
func answersOf(t *testing.T, writes ...<-chan error) (errs []error) {
	t.Helper()
	for i, c := range writes {
		errs = append(errs, receive(t, fmt.Sprintf("the answer of write %d", i), c))
	}
	return errs
}

// countCommits counts the transactions that the store's writer commits from now on.
func countCommits(t *testing.T, st *store) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	err := st.conn.Raw(func(c any) error {
		c.(sqlite.HookRegisterer).RegisterCommitHook(func() int32 {
			n.Add(1)
			return 0
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return &n
}

func TestWritesThatWaitShareOneCommit(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	commits := countCommits(t, st)
	release := holdWriter(t, st)
	const n = 100
	var writes []<-chan error
	for i := range n {
		writes = append(writes, enqueue(t, st, add(st, fmt.Sprint("u", i))))
	}
	release()
	for i, err := range answersOf(t, writes...) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if got := commits.Load(); got != 2 {
		t.Errorf("the write that held the writer and %d that waited took %d commits, want 2", n, got)
	}
	if got := len(usernames(t, st)); got != n {
		t.Errorf("%d of %d took effect", got, n)
	}
}

func TestAFullQueueIsWrittenInGroupsOfBoundedSize(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	commits := countCommits(t, st)
	release := holdWriter(t, st)
	var writes []<-chan error
	for i := range maxGroup {
		writes = append(writes, enqueue(t, st, add(st, fmt.Sprint("u", i))))
	}
	// The queue is full: the context of one more counts while it waits for a place.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantError(t, "a cancelled write before a full queue", st.write(ctx, statement{Query: `DELETE FROM user`}), context.Canceled)
	late := make(chan error, 1)
	go func() { late <- add(st, "late")() }()
	release()
	for i, err := range answersOf(t, append(writes, late)...) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	// The late write enters the queue before or after the writer empties it.
	if got := commits.Load(); got > 3 {
		t.Errorf("%d writes took %d commits, want at most 3", maxGroup+2, got)
	}
	if got := len(usernames(t, st)); got != maxGroup+1 {
		t.Errorf("%d of %d took effect", got, maxGroup+1)
	}
}

func TestConcurrentWritesAllTakeEffect(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := add(st, fmt.Sprintf("u%d-%d", w, i))(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	names := usernames(t, st)
	slices.Sort(names)
	if got := len(slices.Compact(names)); got != writers*each {
		t.Errorf("%d of %d took effect", got, writers*each)
	}
}

func TestARejectedWriteLeavesItsGroupUnaffected(t *testing.T) {
	t.Parallel()
	errNothing := errors.New("nothing to do")
	tick := statement{Query: `UPDATE counter SET user_id = user_id + 1`} // the first statement, which must be undone
	insert := func(id int64, name string) statement {
		return statement{
			Query: `INSERT INTO user (id, username, email, password_hash) VALUES (@id, @name, @name, '')`,
			Args:  args{{"id", id}, {"name", name}},
		}
	}
	for _, c := range []struct {
		claim string
		write []statement
		want  error
	}{
		{"a name that is taken after another statement", []statement{tick, insert(50, "ANN")}, errDuplicate},
		{"an id that is taken after another statement", []statement{tick, insert(1, "fresh")}, errDuplicate},
		{"a name that is taken in a write of one statement", []statement{insert(50, "ANN")}, errDuplicate},
		{"a name that is taken before another statement", []statement{insert(50, "ANN"), tick}, errDuplicate},
		{"a condition that does not hold, after another statement",
			[]statement{tick, {Query: `DELETE FROM user WHERE id = 99`, IfNone: errNothing}}, errNothing},
		{"a condition that does not hold, of a statement that returns a row",
			[]statement{tick, {Query: `DELETE FROM user WHERE id = 99 RETURNING id`, Scan: []any{new(int64)}, IfNone: errNothing}}, errNothing},
		{"a value that must not be NULL, after another statement",
			[]statement{tick, {Query: `UPDATE user SET email = NULL`}}, errStorage},
		{"a value that must not be NULL, in a write of one statement",
			[]statement{{Query: `UPDATE user SET email = NULL`}}, errStorage},
		{"a row that fails after rows of the same statement were written",
			[]statement{{Query: `INSERT INTO user (id, username, email, password_hash)
				SELECT id + 60, username || '2', username || '@2.example', '' FROM user
				UNION ALL SELECT 59, 'ANN', 'fresh@example.com', ''`}}, errDuplicate},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			aUser(t, st, "ann", member)
			commits := countCommits(t, st)
			release := holdWriter(t, st)
			before := enqueue(t, st, add(st, "before"))
			failing := enqueue(t, st, func() error { return st.write(context.Background(), c.write...) })
			after := enqueue(t, st, add(st, "after"))
			release()
			errs := answersOf(t, before, failing, after)
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
			if got := usernames(t, st); !slices.Equal(got, []string{"ann", "before", "after"}) {
				t.Errorf("the users are %v, want ann and the write's neighbours", got)
			}
			if got := scan[int64](t, another(t, path), `SELECT user_id FROM counter`); got != 3 {
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
		{"a function that fails in the middle of an update", `UPDATE user SET email = username || test_hold(0)`},
		{"an overflow in the middle of an update", `UPDATE user SET version = abs(-9223372036854775807 - id)`},
	} {
		t.Run(c.claim, func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			aUser(t, st, "ann", member)
			release := holdWriter(t, st)
			before := enqueue(t, st, add(st, "before"))
			failing := enqueue(t, st, func() error { return st.write(context.Background(), statement{Query: c.query}) })
			after := enqueue(t, st, add(st, "after"))
			release()
			for i, err := range answersOf(t, before, failing, after) {
				wantError(t, fmt.Sprintf("write %d of the group", i), err, errStorage)
			}
			if got := usernames(t, st); !slices.Equal(got, []string{"ann"}) {
				t.Errorf("the users are %v, want only ann", got)
			}
			wantError(t, "a write after the group", add(st, "later")(), nil)
		})
	}
}

func TestAFailedCommitFailsTheWholeGroup(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	var refuse atomic.Bool
	err := st.conn.Raw(func(c any) error {
		c.(sqlite.HookRegisterer).RegisterCommitHook(func() int32 {
			if refuse.Load() {
				return 1 // SQLite makes a ROLLBACK of the COMMIT
			}
			return 0
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	refuse.Store(true)
	wantError(t, "a write whose commit fails", add(st, "ann")(), errStorage)
	if got := usernames(t, st); len(got) != 0 {
		t.Errorf("the users are %v, want none", got)
	}
	refuse.Store(false)
	wantError(t, "a write whose commit succeeds", add(st, "bob")(), nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"bob"}) {
		t.Errorf("the users are %v, want only bob", got)
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
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			ctx, cancel := c.cancel(context.Background())
			defer cancel()
			release := holdWriter(t, st)
			before := enqueue(t, st, add(st, "before"))
			cancelled := enqueue(t, st, func() error {
				u := user{username: "cancelled", email: "cancelled@example.com", role: member}
				return st.addUser(ctx, console, &u, "hash", 1)
			})
			after := enqueue(t, st, add(st, "after"))
			cancel()
			release()
			errs := answersOf(t, before, cancelled, after)
			wantError(t, "the write before it", errs[0], nil)
			wantError(t, "the cancelled write", errs[1], c.want)
			if errors.Is(errs[1], errStorage) {
				t.Errorf("the cancelled write: %v is a failure of the storage", errs[1])
			}
			wantError(t, "the write after it", errs[2], nil)
			if got := usernames(t, st); !slices.Equal(got, []string{"before", "after"}) {
				t.Errorf("the users are %v, want the write's neighbours", got)
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
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	release := holdWriter(t, st)
	before := enqueue(t, st, add(st, "before"))
	h := newHold()
	cancelled := enqueue(t, st, func() error {
		return st.write(ctx,
			h.statement(),
			statement{Query: `INSERT INTO user (id, username, email, password_hash) VALUES (50, 'cancelled', '', '')`})
	})
	after := enqueue(t, st, add(st, "after"))
	release()
	receive(t, "the write runs", h.entered)
	cancel()
	close(h.release)
	for i, err := range answersOf(t, before, cancelled, after) {
		wantError(t, fmt.Sprintf("write %d of the group", i), err, nil)
	}
	if got := usernames(t, st); !slices.Equal(got, []string{"before", "cancelled", "after"}) { // in id order
		t.Errorf("the users are %v, want all three", got)
	}
}

func TestAFullDiskFailsTheWholeGroup(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ctx := context.Background()
	aUser(t, st, "ann", member)
	big := user{username: "big", email: "big@example.com", role: member}
	addBig := func() error { return st.addUser(ctx, console, &big, strings.Repeat("x", 1<<20), 1) }
	full := scan[int64](t, st.conn, `PRAGMA page_count`) + 10
	scan[int64](t, st.conn, fmt.Sprintf(`PRAGMA max_page_count = %d`, full))

	for round := range 3 {
		release := holdWriter(t, st)
		writes := []<-chan error{
			enqueue(t, st, add(st, "before")),
			enqueue(t, st, func() error {
				return st.write(ctx, statement{Query: `UPDATE user SET version = version + 1`})
			}),
			enqueue(t, st, addBig),
			enqueue(t, st, add(st, "after")),
			enqueue(t, st, func() error {
				return st.write(ctx, statement{Query: `UPDATE user SET version = version + 1`})
			}),
		}
		release()
		for i, err := range answersOf(t, writes...) {
			wantError(t, fmt.Sprintf("round %d, write %d of the group", round, i), err, errStorage)
		}
		if got := usernames(t, st); !slices.Equal(got, []string{"ann"}) {
			t.Fatalf("round %d: the users are %v, want only ann", round, got)
		}
		if u, err := st.user(1); err != nil || u.version != 1 {
			t.Fatalf("round %d: ann is %+v, %v, want version 1", round, u, err)
		}
	}
	wantError(t, "a small write on a disk that a large one filled", add(st, "small")(), nil)

	scan[int64](t, st.conn, `PRAGMA max_page_count = 1000000`)
	wantError(t, "the large write after room was made", addBig(), nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ann", "small", "big"}) {
		t.Errorf("the users are %v", got)
	}
	if big.id != 3 {
		t.Errorf("big has the id %d, want 3: additions that failed took ids", big.id)
	}
	if got := scan[string](t, another(t, path), `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
}

func TestAWriteWaitsForAnotherProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	other := another(t, path)
	runSQL(t, other,
		`BEGIN IMMEDIATE`,
		`INSERT INTO user (id, username, email, password_hash) VALUES (50, 'theirs', '', '')`)
	// Ours applies only to what the other has committed by then. It is put into
	// the queue by hand, so that the writer is known to have it when the queue
	// is empty.
	ours := newPendingWrite(context.Background(), []statement{{
		Query:  `UPDATE user SET username = 'ours' WHERE username = 'theirs'`,
		IfNone: errNotApplied,
	}})
	st.queue <- ours
	await(t, "the writer takes the write", func() bool { return len(st.queue) == 0 })
	if u, err := st.user(50); err != errUserNotFound {
		t.Errorf("a reader during the other's open transaction got %+v, %v", u, err)
	}
	runSQL(t, other, `COMMIT`)
	wantError(t, "our write", receive(t, "our write's answer", ours.answer), nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ours"}) {
		t.Errorf("the users are %v", got)
	}
}

func TestCloseWaitsForTheWritesInTheQueue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	release := holdWriter(t, st)
	var writes []<-chan error
	for i := range 10 {
		writes = append(writes, enqueue(t, st, add(st, fmt.Sprint("u", i))))
	}
	closed := make(chan error, 1)
	go func() { closed <- st.close() }()
	receive(t, "close begins", st.quit)
	release()
	for i, err := range answersOf(t, writes...) {
		wantError(t, fmt.Sprintf("write %d", i), err, nil)
	}
	wantError(t, "close", receive(t, "close returns", closed), nil)
	if got := len(usernames(t, openTestStore(t, path))); got != 10 {
		t.Errorf("%d of 10 took effect", got)
	}
}

// A write while the store closes either takes effect or fails. An acknowledged write
// is in the database afterwards, and no caller waits forever.
func TestAWriteDuringCloseTakesEffectOrFails(t *testing.T) {
	t.Parallel()
	for round := range 10 {
		path := filepath.Join(t.TempDir(), "app.db")
		st, err := openStore(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var acknowledged atomic.Int64
		first := make(chan struct{})
		var once sync.Once
		for w := range 16 {
			wg.Go(func() {
				for i := 0; ; i++ {
					if err := add(st, fmt.Sprintf("u%d-%d", w, i))(); err != nil {
						wantError(t, "a write that is not done", err, errStorage)
						return
					}
					acknowledged.Add(1)
					once.Do(func() { close(first) })
				}
			})
		}
		receive(t, "a write is done", first)
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if got := len(usernames(t, openTestStore(t, path))); got != int(acknowledged.Load()) {
			t.Fatalf("round %d: %d writes were acknowledged, but %d took effect", round, acknowledged.Load(), got)
		}
	}
}

func TestTheWriteAheadLogStaysSmallUnderManySmallWrites(t *testing.T) {
	t.Parallel()
	const writes, most = 20000, 8 << 20
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	runSQL(t, st.conn, `PRAGMA synchronous = OFF`) // syncs take the time and have no part in this
	commits := countCommits(t, st)
	var largest int64
	for i := range writes {
		// A RETURNING, since a statement that ends before its last row leaves the
		// log as it is.
		err := st.write(context.Background(), statement{
			Query: `UPDATE counter SET user_id = user_id + 1 RETURNING user_id`,
			Scan:  []any{new(int64)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			info, err := os.Stat(path + "-wal")
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

// The lock that another process holds while it makes the same database. SQLite
// waits for no lock when it changes the journal's mode.
func TestOpenWaitsForAProcessThatCreatesTheDatabase(t *testing.T) {
	t.Parallel()
	path := makeDatabase(t, `VACUUM`)
	other := another(t, path)
	runSQL(t, other, `BEGIN IMMEDIATE`)
	type result struct {
		st  *store
		err error
	}
	opened := make(chan result, 1)
	go func() {
		st, err := openStore(context.Background(), path)
		opened <- result{st, err}
	}()
	var got result
	select {
	case got = <-opened:
		runSQL(t, other, `ROLLBACK`)
	case <-time.After(100 * time.Millisecond): // nothing tells that it waits
		runSQL(t, other, `ROLLBACK`)
		got = receive(t, "the database is opened", opened)
	}
	if got.err != nil {
		t.Fatal(got.err)
	}
	wantError(t, "a write", add(got.st, "ann")(), nil)
	wantError(t, "close", got.st.close(), nil)
}

// A foreign key that is deferred to the commit fails there. Only the write at fault
// must fail.
func TestADeferredForeignKeyFailsOnlyItsWrite(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ann := aUser(t, st, "ann", member)
	runSQL(t, another(t, path),
		`CREATE TABLE bill (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES user (id) DEFERRABLE INITIALLY DEFERRED)`,
		`INSERT INTO bill (user_id) VALUES (1)`)
	wantError(t, "the deletion by itself", st.deleteUser(ctx, console, ann.id, 0, 1), errReferenced)
	release := holdWriter(t, st)
	before := enqueue(t, st, add(st, "before"))
	deletion := enqueue(t, st, func() error { return st.deleteUser(ctx, console, ann.id, 0, 1) })
	after := enqueue(t, st, add(st, "after"))
	release()
	errs := answersOf(t, before, deletion, after)
	wantError(t, "the write before it", errs[0], nil)
	wantError(t, "the deletion", errs[1], errReferenced)
	wantError(t, "the write after it", errs[2], nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ann", "before", "after"}) {
		t.Errorf("the users are %v", got)
	}
}

// A write waits once for a lock that another process holds. The writes behind it in
// the queue fail together with it and do not wait again.
func TestAWriteThatWaitedInVainForTheLockFailsTheQueue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	other := another(t, path)
	runSQL(t, st.conn, `PRAGMA busy_timeout = 1000`)
	runSQL(t, other, `BEGIN IMMEDIATE`)
	// Put into the queue by hand: what has left it is the writer's, in a group
	// that the later ones cannot join any more.
	put := func() *pendingWrite {
		p := newPendingWrite(context.Background(), []statement{{Query: `UPDATE counter SET user_id = user_id`}})
		st.queue <- p
		return p
	}
	waits := put()
	for len(st.queue) > 0 {
		runtime.Gosched()
	}
	time.Sleep(10 * time.Millisecond) // it forms its group, and then waits for the lock for a second
	behind := []*pendingWrite{put(), put(), put()}
	wantError(t, "the write that waited", receive(t, "the write that waited", waits.answer), errStorage)
	runSQL(t, other, `ROLLBACK`) // one that waited again would now get the lock
	for _, p := range behind {
		wantError(t, "a write behind it", receive(t, "a write behind it", p.answer), errStorage)
	}
	wantError(t, "a write when the lock is gone", add(st, "after")(), nil)
}

func TestAWritePassesItsNamedArguments(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	var first, second, again string
	query := `SELECT @b, @a, @b || '@a'`
	destinations := []any{&first, &second, &again}
	err := s.write(t.Context(), statement{Query: query, Args: args{{"a", "A"}, {"b", "B"}, {"unused", 1}}, Scan: destinations})
	if err != nil || first != "B" || second != "A" || again != "B@a" {
		t.Errorf("got %q, %q, %q and the error %v, want B, A and B@a", first, second, again, err)
	}
	err = s.write(t.Context(), statement{Query: query, Args: args{{"a", "A"}}, Scan: destinations})
	if !errors.Is(err, errStorage) {
		t.Errorf("without the argument b: got the error %v, want %v", err, errStorage)
	}
}
