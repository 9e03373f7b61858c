// Package groupcommit runs all writes of a process on one SQLite connection, and commits
// the writes that wait together.
//
// A commit costs an fsync, and SQLite allows only one writer at a time. [Writer.Write]
// returns after the commit and its sync. A write is a list of [Statement] values that is
// known before it starts. The conditions of a write are part of its SQL, so they hold when
// it runs, and a write whose condition does not hold leaves the rest of its group
// unaffected. The driver is modernc.org/sqlite.
package groupcommit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"userd/internal/sqlitefile"
)

// Errors of a write that did not take effect. [Writer.Write] wraps them.
var (
	ErrDuplicate  = errors.New("not unique")                                   // a UNIQUE constraint
	ErrForeignKey = errors.New("a row would refer to one that does not exist") // a FOREIGN KEY constraint
	errClosing    = &Failure{errors.New("the database is closing")}            // Close was called
)

// A Failure is an error of the database: it failed, or it is locked or closing, or a
// statement is wrong. The write did not take effect, with one exception: if the disk refused
// to sync its commit, and the power fails before a later write succeeds, it can still appear.
type Failure struct{ Cause error }

func (f *Failure) Error() string { return f.Cause.Error() }
func (f *Failure) Unwrap() error { return f.Cause }

// A Writer runs writes one after another. It commits all waiting writes, up to MaxGroup, in
// one transaction.
type Writer struct {
	conn      *sql.Conn
	cache     *Cache
	noEffect  string
	committed func(took time.Duration, writes int)
	queue     chan *pendingWrite
	quit      chan struct{} // closed by Close
	done      chan struct{} // closed when run has returned
}

type pendingWrite struct {
	ctx        context.Context
	statements []Statement
	err        error
	answer     chan error // with room for the answer, so that the writer never waits
}

func newPendingWrite(ctx context.Context, statements []Statement) *pendingWrite {
	return &pendingWrite{ctx: ctx, statements: statements, answer: make(chan error, 1)}
}

// MaxGroup bounds the writes in a transaction, and so how long the first one waits. It also
// bounds the queue.
const MaxGroup = 256

// Start returns a writer that uses the connection, which must have a busy timeout. Other
// code may use the connection between the writes. noEffect is SQL whose commit writes a page
// and changes nothing; the writer runs it if it could not sync a commit. committed is called
// after each commit with its duration and the number of writes that took effect, before
// they return.
func Start(conn *sql.Conn, noEffect string, committed func(took time.Duration, writes int)) *Writer {
	w := &Writer{
		conn:      conn,
		cache:     NewCache(conn),
		noEffect:  noEffect,
		committed: committed,
		queue:     make(chan *pendingWrite, MaxGroup),
		quit:      make(chan struct{}),
		done:      make(chan struct{}),
	}
	go w.run()
	return w
}

// Write runs the statements as one: either all of them take effect and are synced
// before it returns nil, or none takes effect. The context only counts while the
// write waits for its turn, because cancelling a statement rolls back its group.
// It returns the IfNone of a statement, ErrDuplicate, ErrForeignKey, the context's
// error, or a *Failure.
func (w *Writer) Write(ctx context.Context, statements ...Statement) error {
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

// WriteLater queues a statement that may be lost, and does not wait: if the queue
// is full, it drops the statement.
func (w *Writer) WriteLater(st Statement) {
	select {
	case w.queue <- newPendingWrite(context.Background(), []Statement{st}):
	default:
	}
}

// Waiting returns the number of writes in the queue, without those that are running.
func (w *Writer) Waiting() int { return len(w.queue) }

// Queries returns the queries of all statements that the writer has prepared.
func (w *Writer) Queries() []string { return w.cache.Queries() }

// Close waits for the writes in the queue, and closes the writer's statements but not its
// connection. An open statement would keep SQLite from closing the file and checkpointing
// the WAL.
func (w *Writer) Close() error {
	close(w.quit)
	<-w.done
	return w.cache.Close()
}

// run commits the writes in the queue, in groups, until Close is called and the
// queue is empty.
func (w *Writer) run() {
	defer close(w.done)
	group := make([]*pendingWrite, 0, MaxGroup)
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
		for len(group) < MaxGroup {
			if p = w.poll(); p == nil {
				break
			}
			group = append(group, p)
		}
		err := w.commit(group)
		if _, ok := errors.AsType[rejected](err); ok && len(group) > 1 {
			// At least one write is at fault: by a later statement or, at the commit, by a
			// deferred foreign key. Savepoints would isolate it without this second run, but
			// they cost each write two more statements.
			for i := range group {
				w.commit(group[i : i+1])
			}
		}
		if sqlitefile.IsBusy(err) {
			// Each later group would wait for the busy timeout again. This must happen before
			// the group is answered: a write that comes after that may find the lock free.
			for p := w.poll(); p != nil; p = w.poll() {
				p.answer <- &Failure{err}
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
func (w *Writer) poll() *pendingWrite {
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
func (w *Writer) commit(group []*pendingWrite) error {
	start := time.Now()
	err := w.transact(group)
	if err == nil {
		succeeded := 0
		for _, p := range group {
			if p.err == nil {
				succeeded++
			}
		}
		w.committed(time.Since(start), succeeded)
		return nil
	}
	w.exec("ROLLBACK") // fails if SQLite has already rolled back
	if sqlitefile.IsIOError(err) {
		// SQLite could not sync this commit, but its frames are already in the WAL: if
		// the process died now, recovery would replay it. A commit without effect
		// overwrites the frames before any client learns of the failure. Its sync may
		// fail too: until a later write succeeds, a power cut can still bring them back.
		w.exec(w.noEffect)
	}
	var failed error = &Failure{err}
	if r, ok := errors.AsType[rejected](err); ok {
		failed = r.error
	}
	for _, p := range group {
		p.err = failed
	}
	return err
}

// transact runs a group between BEGIN and COMMIT. It skips cancelled writes.
func (w *Writer) transact(group []*pendingWrite) error {
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
// constraint or returned its IfNone.
func (w *Writer) step(st Statement) error {
	err := w.perform(st)
	switch {
	case err == nil:
		return nil
	case sqlitefile.IsDuplicate(err):
		return rejected{fmt.Errorf("%w: %w", ErrDuplicate, err)}
	case sqlitefile.IsForeignKey(err):
		return rejected{fmt.Errorf("%w: %w", ErrForeignKey, err)}
	case sqlitefile.IsConstraint(err): // a bug of the program
		return rejected{&Failure{err}}
	case err == st.IfNone:
		return rejected{err}
	}
	return err
}

func (w *Writer) perform(st Statement) error {
	stmt, err := w.cache.Get(st.Query)
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

func (w *Writer) exec(query string) error { return w.step(Statement{Query: query}) }
