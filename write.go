package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"userd/internal/groupcommit"
	"userd/internal/prom"
	"userd/internal/sqlitefile"
)

// Short names for the parts of each write.
type (
	statement = groupcommit.Statement
	args      = groupcommit.Args
	arg       = groupcommit.Arg
)

var (
	errDuplicate  = errors.New("not unique")
	errNotApplied = errors.New("a condition of the write did not hold")
	errClosing    = &storageError{"writing", errors.New("the database is closing")}
	errFilesLost  = &storageError{"writing", errors.New("a file of the database was deleted, moved or replaced; restart userd")}
)

// A writer runs every write of the process on one connection. A commit costs an
// fsync, and SQLite allows only one writer at a time. So the writer commits all
// waiting writes, up to maxGroup, in one transaction.
type writer struct {
	db    *sql.DB // with one connection, conn
	conn  *sql.Conn
	stmts *groupcommit.Cache
	queue chan *pendingWrite
	quit  chan struct{} // closed by stop
	done  chan struct{} // closed when run has returned

	commitDurations *prom.Histogram
	commitSizes     *prom.Histogram // successful writes per commit
	failedWrites    atomic.Uint64   // writes that returned errStorage
	wrote           atomic.Bool     // at least one write took effect
	filesLost       atomic.Bool     // set by checkFiles: refuse every write
}

type pendingWrite struct {
	ctx        context.Context
	statements []statement
	err        error
	answer     chan error // with room for the answer, so that the writer never waits
}

func newPendingWrite(ctx context.Context, statements []statement) *pendingWrite {
	return &pendingWrite{ctx: ctx, statements: statements, answer: make(chan error, 1)}
}

// maxGroup bounds the writes in a transaction, and so how long the first one waits.
const maxGroup = 256

// busyTimeout is how long a write waits for the lock of another process, such as a
// command: long enough for a large import, and less than the time that a server may
// take to stop.
const busyTimeout = 7 * time.Second

// openWriter opens the write connection. The caller starts run.
func openWriter(path string) (*writer, error) {
	db, err := sql.Open("sqlite", sqlitefile.DSN(path,
		"mode=rw", fmt.Sprintf("_busy_timeout=%d", busyTimeout.Milliseconds()),
		"_journal_mode=WAL", "_synchronous=FULL", "_foreign_keys=1", "_txlock=immediate"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(context.Background())
	// SQLite ignores the busy timeout when it changes the journal mode, and another
	// process may be creating the same file.
	for end := time.Now().Add(busyTimeout); sqlitefile.IsBusy(err) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		conn, err = db.Conn(context.Background())
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return &writer{
		db:    db,
		conn:  conn,
		stmts: groupcommit.NewCache(conn),
		queue: make(chan *pendingWrite, maxGroup),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),

		commitDurations: prom.NewDurationHistogram(),
		commitSizes:     prom.NewHistogram(1, 1, 2, 4, 8, 16, 32, 64, 128, maxGroup),
	}, nil
}

// write runs the statements as one: either all of them take effect and are synced
// before it returns nil, or none takes effect. The context only counts while the
// write waits for its turn, because cancelling a statement rolls back its group.
// It returns the ifNone of a statement, errDuplicate, errReferenced, the context's
// error, or errStorage.
func (w *writer) write(ctx context.Context, statements ...statement) (err error) {
	defer func() {
		if errors.Is(err, errStorage) {
			w.failedWrites.Add(1)
		}
	}()
	if w.filesLost.Load() {
		return errFilesLost
	}
	p := newPendingWrite(ctx, statements)
	select {
	case w.queue <- p:
	case <-ctx.Done():
		return fmt.Errorf("waiting to write: %w", ctx.Err())
	case <-w.quit:
		return errClosing
	}
	select {
	case err := <-p.answer:
		return err
	case <-w.done:
		select {
		case err := <-p.answer:
			return err
		default: // p entered the queue after run had returned
			return errClosing
		}
	}
}

// writeLater queues a statement that may be lost, and does not wait: if the queue
// is full, it drops the statement.
func (w *writer) writeLater(st statement) {
	select {
	case w.queue <- newPendingWrite(context.Background(), []statement{st}):
	default:
	}
}

// stop ends run after the writes in the queue.
func (w *writer) stop() {
	close(w.quit)
	<-w.done
}

// close closes the connection. It closes the prepared statements first: an open
// one would keep SQLite from closing the file and checkpointing the WAL.
func (w *writer) close() error {
	return errors.Join(w.stmts.Close(), w.conn.Close(), w.db.Close())
}

// run commits the writes in the queue, in groups, until stop is called and the
// queue is empty.
func (w *writer) run() {
	defer close(w.done)
	group := make([]*pendingWrite, 0, maxGroup)
	for {
		var p *pendingWrite
		select {
		case p = <-w.queue:
		case <-w.quit:
			if p = w.poll(); p == nil {
				return
			}
		}
		group = append(group[:0], p)
		for len(group) < maxGroup {
			if p = w.poll(); p == nil {
				break
			}
			group = append(group, p)
		}
		err := w.commit(group)
		if _, ok := errors.AsType[rejected](err); ok && len(group) > 1 {
			// At least one write is at fault: by a later statement or, at the commit, by a
			// deferred foreign key of another program's table. Savepoints would isolate
			// it without this second run, but they cost each write two more statements.
			for i := range group {
				w.commit(group[i : i+1])
			}
		}
		if sqlitefile.IsBusy(err) {
			// Each later group would wait for busyTimeout again. This must happen before
			// the group is answered: a write that comes after that may find the lock free.
			for p := w.poll(); p != nil; p = w.poll() {
				p.answer <- &storageError{"writing", err}
			}
		}
		for _, p := range group {
			p.answer <- p.err
		}
		clear(group)
	}
}

// poll removes and returns the first write in the queue, or returns nil if the
// queue is empty.
func (w *writer) poll() *pendingWrite {
	select {
	case p := <-w.queue:
		return p
	default:
		return nil
	}
}

// commit runs a group in one transaction and sets the err of each write. If the
// first statement of a write is rejected, only that write fails. Any other error
// fails the group, because SQLite may have rolled back the transaction, and commit
// returns it.
func (w *writer) commit(group []*pendingWrite) error {
	start := time.Now()
	err := w.transact(group)
	if err == nil {
		succeeded := int64(0)
		for _, p := range group {
			if p.err == nil {
				succeeded++
			}
		}
		w.commitDurations.Observe(int64(time.Since(start)))
		w.commitSizes.Observe(succeeded)
		if succeeded > 0 {
			w.wrote.Store(true)
		}
		return nil
	}
	w.exec("ROLLBACK") // fails if SQLite has already rolled back
	if sqlitefile.IsIOError(err) {
		// SQLite could not sync this commit, but its frames are already in the WAL: if
		// the process died now, recovery would replay it. A commit without effect
		// overwrites the frames before any client learns of the failure. Its sync may
		// fail too: until a later write succeeds, a power cut can still bring them back.
		w.exec(fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	}
	var failed error = &storageError{"writing", err}
	if r, ok := errors.AsType[rejected](err); ok {
		failed = r.error
	}
	for _, p := range group {
		p.err = failed
	}
	return err
}

// transact runs a group between BEGIN and COMMIT. It skips cancelled writes.
func (w *writer) transact(group []*pendingWrite) error {
	if err := w.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, p := range group {
		p.err = nil
		if err := p.ctx.Err(); err != nil {
			p.err = fmt.Errorf("waiting to write: %w", err)
			continue
		}
		for i, st := range p.statements {
			err := w.step(st)
			if r, ok := errors.AsType[rejected](err); ok && i == 0 {
				p.err = r.error // SQLite has undone the statement, and nothing came before it
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return w.exec("COMMIT")
}

// A rejected error fails one write and leaves the rest of its group unaffected.
type rejected struct{ error }

// step runs one statement. It returns a rejected error if the statement broke a
// constraint or returned its ifNone.
func (w *writer) step(st statement) error {
	err := w.perform(st)
	switch {
	case err == nil:
		return nil
	case sqlitefile.IsDuplicate(err):
		return rejected{fmt.Errorf("%w: %w", errDuplicate, err)}
	case sqlitefile.IsForeignKey(err): // of another program's table: userd has none
		return rejected{errReferenced}
	case sqlitefile.IsConstraint(err): // a bug in userd
		return rejected{&storageError{"writing", err}}
	case err == st.IfNone:
		return rejected{err}
	}
	return err
}

func (w *writer) perform(st statement) error {
	stmt, err := w.stmts.Get(st.Query)
	if err != nil {
		return err
	}
	list, err := st.Args.List(stmt.Parameters)
	if err != nil {
		return err
	}
	found := false
	if st.Scan == nil {
		result, err := stmt.Exec(list...)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		found = n > 0
	} else {
		rows, err := stmt.Query(list...)
		if err != nil {
			return err
		}
		// SQLite only finishes the statement when the last row is read.
		if err := sqlitefile.ScanRows(rows, st.Scan, func() { found = true }); err != nil {
			return err
		}
	}
	if !found {
		return st.IfNone
	}
	return nil
}

func (w *writer) exec(query string) error { return w.step(statement{Query: query}) }
