package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"userd/internal/prom"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A statement is one step of a write. The first statement carries the write's
// conditions: if they do not hold, it changes nothing, and the others do not
// run. A later statement may fail in the same way, but then the whole group runs
// again.
type statement struct {
	query  string // a constant
	args   args
	scan   []any // destinations for the row that the query returns; nil: it returns none
	ifNone error // the error if the query touches no row; nil: that is fine
}

// args are the values of a query's named parameters, without their @. A query
// need not use all of them.
type args map[string]any

// list returns the arguments as database/sql takes them.
func (a args) list() []any {
	list := make([]any, 0, len(a))
	for name, value := range a {
		list = append(list, sql.Named(name, value))
	}
	return list
}

var (
	errDuplicate  = errors.New("not unique")
	errNotApplied = errors.New("a condition of the write did not hold")
)

// A writer runs every write of the process on one connection. A commit costs an
// fsync, and SQLite has one writer at a time in any case; so the writes that
// wait are gathered into one transaction and share its commit.
type writer struct {
	db    *sql.DB // of one connection
	conn  *sql.Conn
	stmts prepared
	queue chan *pendingWrite
	quit  chan struct{}
	done  chan struct{} // closed when run has returned

	commitDurations *prom.Histogram
	commitSizes     *prom.Histogram // successful writes per commit
	failedWrites    atomic.Uint64   // writes that returned errStorage
	wrote           atomic.Bool     // at least one write took effect
}

type pendingWrite struct {
	ctx        context.Context
	statements []statement
	err        error
	answer     chan error
}

// maxGroup bounds a transaction, and so how long its first write waits.
const maxGroup = 256

// busyTimeout is how long a write of another process, the command line, is
// waited for: what a large import takes, and less than a server has to stop in.
const busyTimeout = 7 * time.Second

var errClosing = &storageError{"writing", errors.New("the database is closing")}

func openWriter(path string) (*writer, error) {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw", fmt.Sprintf("_busy_timeout=%d", busyTimeout.Milliseconds()), "_journal_mode=WAL", "_synchronous=FULL", "_foreign_keys=1", "_txlock=immediate"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(context.Background())
	// SQLite waits for no lock when it changes the journal's mode: another
	// process may be making the same file.
	for end := time.Now().Add(busyTimeout); err != nil && isBusy(err) && time.Now().Before(end); {
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
		stmts: prepared{by: conn},
		queue: make(chan *pendingWrite, maxGroup),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),

		commitDurations: prom.NewDurationHistogram(),
		commitSizes:     prom.NewHistogram(1, 1, 2, 4, 8, 16, 32, 64, 128, maxGroup),
	}, nil
}

// write runs the statements as one: all of them take effect, durably, before
// it returns nil, or none. The context counts only while the write waits its
// turn; a cancelled statement would roll back its whole group.
// It returns the ifNone of a statement that touched no row, errDuplicate for a
// UNIQUE constraint, the context's error, or errStorage.
func (w *writer) write(ctx context.Context, statements ...statement) (err error) {
	defer func() {
		if errors.Is(err, errStorage) {
			w.failedWrites.Add(1)
		}
	}()
	p := &pendingWrite{ctx: ctx, statements: statements, answer: make(chan error, 1)}
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
	case <-w.done: // it stood in the queue when the writer left
		select {
		case err := <-p.answer:
			return err
		default:
			return errClosing
		}
	}
}

// close closes the connection. An open statement would keep SQLite from closing
// the file, and so from folding the write-ahead log into it.
func (w *writer) close() error {
	return errors.Join(w.stmts.close(), w.conn.Close(), w.db.Close())
}

// writeLater queues a statement whose loss would not matter, and does not wait:
// where the queue is full, it is dropped.
func (w *writer) writeLater(st statement) {
	p := &pendingWrite{ctx: context.Background(), statements: []statement{st}, answer: make(chan error, 1)}
	select {
	case w.queue <- p:
	default:
	}
}

// stop ends run once the writes in the queue are done.
func (w *writer) stop() {
	close(w.quit)
	<-w.done
}

// run is the writer's goroutine.
func (w *writer) run() {
	defer close(w.done)
	group := make([]*pendingWrite, 0, maxGroup)
	for {
		select {
		case p := <-w.queue:
			group = append(group[:0], p)
		case <-w.quit:
			select {
			case p := <-w.queue:
				group = append(group[:0], p)
			default:
				return
			}
		}
	gather:
		for len(group) < maxGroup {
			select {
			case p := <-w.queue:
				group = append(group, p)
			default:
				break gather
			}
		}
		err := w.commit(group)
		var refused *refusal
		if errors.As(err, &refused) && len(group) > 1 {
			// One of the group is at fault, and must fail alone: by a statement after
			// its first or, at the commit, by a foreign key of another program's
			// table. Savepoints would spare the others this, but cost each write two
			// statements more.
			for i := range group {
				w.commit(group[i : i+1])
			}
		}
		if isBusy(err) {
			// They would wait as long again, one group after the other. Before the
			// group is answered: what comes after that may find the lock free.
			w.refuseQueue(err)
		}
		for _, p := range group {
			p.answer <- p.err
		}
		clear(group)
	}
}

// refuseQueue fails the writes that stand in the queue.
func (w *writer) refuseQueue(err error) {
	for {
		select {
		case p := <-w.queue:
			p.answer <- &storageError{"writing", err}
		default:
			return
		}
	}
}

// commit runs a group in one transaction and sets the err of each write. A write
// whose first statement is refused fails alone. Any other error, which may have
// rolled back the whole transaction inside SQLite, fails the group, and is
// returned.
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
	w.exec("ROLLBACK") // fails where SQLite has rolled back by itself
	if isIOError(err) {
		// A commit that was written, and could not be synced, stands whole in the log
		// behind the last one that counts: were userd killed now, the next start would
		// find it there. So it is written over, by a change to what is so already,
		// before anybody hears that it failed. That this is synced is not sure either:
		// a power cut now can still bring it back, until a later write has succeeded.
		w.exec(fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	}
	var failed error = &storageError{"writing", err}
	var refused *refusal
	if errors.As(err, &refused) {
		failed = refused.error
	}
	for _, p := range group {
		p.err = failed
	}
	return err
}

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
		if err := w.apply(p); err != nil {
			return err
		}
	}
	return w.exec("COMMIT")
}

// apply runs one write of a group.
func (w *writer) apply(p *pendingWrite) error {
	for i, st := range p.statements {
		err := w.step(st)
		var refused *refusal
		if i == 0 && errors.As(err, &refused) { // a statement that fails undoes itself
			p.err = refused.error
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A refusal is the error of a write that fails by its own fault, and takes
// nobody's along.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// step runs one statement. It returns a *refusal where the statement broke a
// constraint or touched no row that it had to.
func (w *writer) step(st statement) error {
	err := w.perform(st)
	switch {
	case err == nil:
		return nil
	case isDuplicate(err):
		return &refusal{fmt.Errorf("%w: %w", errDuplicate, err)}
	case isReferenced(err):
		return &refusal{errReferenced}
	case isConstraint(err): // which only a mistake in this program can break
		return &refusal{&storageError{"writing", err}}
	case err == st.ifNone:
		return &refusal{err}
	}
	return err
}

func (w *writer) perform(st statement) error {
	stmt, err := w.stmts.get(st.query)
	if err != nil {
		return err
	}
	if st.scan == nil {
		result, err := stmt.Exec(st.args.list()...)
		if err != nil {
			return err
		}
		if st.ifNone != nil {
			if n, err := result.RowsAffected(); err != nil {
				return err
			} else if n == 0 {
				return st.ifNone
			}
		}
		return nil
	}
	// Every row is taken: a statement that is closed before its end has not
	// done all of its work.
	rows, err := stmt.Query(st.args.list()...)
	if err != nil {
		return err
	}
	defer rows.Close()
	found := false
	for rows.Next() {
		found = true
		if err := rows.Scan(st.scan...); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if !found && st.ifNone != nil {
		return st.ifNone
	}
	return nil
}

func (w *writer) exec(query string) error {
	return w.step(statement{query: query})
}

// applicationID marks a database as userd's in its header ("user" in ASCII).
const applicationID = 0x75736572

// dsn names the database file to the driver. Pragmas stand in it because one
// run by Exec would reach one connection of the pool.
func dsn(path string, params ...string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") { // C:/…
		path = "/" + path
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: strings.Join(params, "&")}
	return u.String()
}

// prepared keeps a prepared statement for each query text, made at first use.
// The texts are constants of this package, so it stays small.
type prepared struct {
	by interface {
		PrepareContext(context.Context, string) (*sql.Stmt, error)
	}
	mu    sync.RWMutex
	stmts map[string]*sql.Stmt
}

func (p *prepared) get(query string) (*sql.Stmt, error) {
	p.mu.RLock()
	stmt := p.stmts[query]
	p.mu.RUnlock()
	if stmt != nil {
		return stmt, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if stmt := p.stmts[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := p.by.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	if p.stmts == nil {
		p.stmts = make(map[string]*sql.Stmt)
	}
	p.stmts[query] = stmt
	return stmt, nil
}

func (p *prepared) close() error {
	var errs []error
	for _, stmt := range p.stmts {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(errs...)
}

// codeOf returns SQLite's extended result code of an error
// (https://www.sqlite.org/rescode.html), 0 where it is none of SQLite's.
func codeOf(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// isDamaged reports whether err says that a file is no database, or no longer one.
func isDamaged(err error) bool {
	code := codeOf(err) & 0xff
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

// isUnfinished reports whether err says that a database opened to be read alone
// has a transaction to be taken back.
func isUnfinished(err error) bool { return codeOf(err) == sqlite3.SQLITE_READONLY_ROLLBACK }

// isBusy reports whether err says that another process holds the lock.
func isBusy(err error) bool { return codeOf(err)&0xff == sqlite3.SQLITE_BUSY }

// isIOError reports whether err says that the system refused to read, write or sync.
func isIOError(err error) bool { return codeOf(err)&0xff == sqlite3.SQLITE_IOERR }

// isConstraint reports whether err says that a statement broke a constraint or
// had a value of the wrong type: SQLite has then undone that statement and nothing else.
func isConstraint(err error) bool {
	code := codeOf(err) & 0xff
	return code == sqlite3.SQLITE_CONSTRAINT || code == sqlite3.SQLITE_MISMATCH
}

// isReferenced reports whether err is a failed FOREIGN KEY constraint: of
// another program's table, as userd has none.
func isReferenced(err error) bool { return codeOf(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY }

// isDuplicate reports whether err is a failed UNIQUE constraint.
func isDuplicate(err error) bool {
	return codeOf(err) == sqlite3.SQLITE_CONSTRAINT_UNIQUE || codeOf(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}
