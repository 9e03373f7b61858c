package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// userImport adds the users of a file. It reads, checks and hashes everything
// before it locks the database, so that a server keeps working meanwhile.
func userImport(f *flag.FlagSet) action {
	dryRun := f.Bool("dry-run", false, "Only check the file, and import nothing.")
	partial := f.Bool("partial", false, "Import the good rows although others are bad. The exit status is still 1.")
	return func(ctx context.Context, c *cli) error {
		in, err := c.openInput(c.args[0])
		if err != nil {
			return err
		}
		defer in.Close()
		m, err := newImporter(ctx, c)
		if err != nil {
			return err
		}
		defer m.db.close()
		if err := m.read(ctx, in); err != nil {
			return err
		}
		if err := m.removeConflicts(ctx); err != nil {
			return err
		}
		if *dryRun && (m.bad == 0 || *partial) {
			return m.conclude("would import "+plural(m.good, "user"), "would leave out ")
		}
		return m.insert(ctx, *partial)
	}
}

// An importer is one run of user import. It holds the good rows in a temporary
// table, outside the database and its locks, until insert moves all of them.
type importer struct {
	*cli
	db        *writer // its connection and statements are used; its goroutine does not run
	progress  func(format string, n int)
	mu        sync.Mutex // held by add and report
	good, bad int        // rows
}

func newImporter(ctx context.Context, c *cli) (*importer, error) {
	db, err := openWriter(c.database)
	if err != nil {
		return nil, err
	}
	m := &importer{cli: c, db: db, progress: c.progress()}
	// The rowid is the row's number. A null id becomes the next free one; place counts
	// these rows. One transaction for all rows locks only the temporary table.
	err = m.exec(ctx, `
		PRAGMA cache_size = -400000; -- at most 400 MB, so that SQLite builds an index of a million rows in memory
		PRAGMA wal_autocheckpoint = 0;
		CREATE TEMP TABLE import AS
			SELECT id, 0 AS place, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at
			FROM user WHERE false; BEGIN`)
	if err != nil {
		db.close()
		return nil, fmt.Errorf("preparing the import: %w", err)
	}
	return m, nil
}

func (m *importer) exec(ctx context.Context, query string, args ...any) error {
	_, err := m.db.conn.ExecContext(ctx, query, args...)
	return err
}

// read reads the rows of in, hashes their passwords on every core, and adds the
// good rows, in no particular order. It ends the transaction of newImporter.
func (m *importer) read(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var hashing sync.WaitGroup
	turns := make(chan struct{}, runtime.GOMAXPROCS(0))
	err := m.readRows(ctx, in, func(r importRow) {
		turns <- struct{}{}
		hashing.Go(func() {
			defer func() { <-turns }()
			var err error
			if r.hash, err = m.hasher.Hash(ctx, "", r.password); err == nil {
				err = m.add(ctx, r)
			}
			if err != nil {
				cancel(err)
			}
		})
	})
	hashing.Wait()
	if err := cmp.Or(context.Cause(ctx), err); err != nil {
		return err
	}
	return m.exec(ctx, `COMMIT`)
}

// readRows adds the rows of in that have a hash, and calls hash with those that
// have a password.
func (m *importer) readRows(ctx context.Context, in io.Reader, hash func(importRow)) error {
	next, number, err := newRows(in)
	if err != nil {
		return err
	}
	for ; ; number++ {
		r := importRow{number: number}
		fields, problem, err := next()
		if err == nil && problem == "" && fields != nil {
			problem = r.set(fields)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("row %d: %w", number, err) // where the next row begins is uncertain
		case problem != "":
			m.report(number, problem)
		case fields == nil: // an empty row
		case r.password == "":
			err = m.add(ctx, r)
		default:
			hash(r)
		}
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
	}
}

// add adds a row whose own values are good.
func (m *importer) add(ctx context.Context, r importRow) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.good++
	m.progress("rows read: %d", m.good)
	insert, err := m.db.stmts.get(`
		INSERT INTO import (rowid, id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at)
		VALUES (?1, nullif(?2, 0), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)`)
	if err != nil {
		return err
	}
	u := &r.user
	// The driver starts a goroutine for each statement whose context can be cancelled.
	_, err = insert.ExecContext(context.WithoutCancel(ctx),
		r.number, u.id, u.username, u.email, r.hash, u.role, u.disabled, u.createdAt, u.updatedAt, u.lastLoginAt)
	return err
}

// report prints what is wrong with a row.
func (m *importer) report(row int, problem string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bad++
	fmt.Fprintf(m.stderr, "row %d: %s\n", row, problem)
}

// conflicts finds the rows that contradict an earlier row or an existing user.
const conflicts = `
	SELECT row, CASE
		WHEN username_row < row THEN 'username already appears in row ' || username_row
		WHEN email_row < row THEN 'email already appears in row ' || email_row
		WHEN id_row < row THEN 'id already appears in row ' || id_row
		WHEN EXISTS (SELECT 1 FROM user WHERE user.username = import.username COLLATE NOCASE) THEN 'username already exists'
		WHEN EXISTS (SELECT 1 FROM user WHERE user.email = import.email COLLATE NOCASE) THEN 'email already exists'
		WHEN id <= (SELECT user_id FROM counter) THEN 'id was already given to a user'
	END AS problem
	FROM (
		SELECT rowid AS row, id, username, email,
			min(rowid) OVER (PARTITION BY username COLLATE NOCASE) AS username_row,
			min(rowid) OVER (PARTITION BY email COLLATE NOCASE) AS email_row,
			iif(id IS NULL, rowid, min(rowid) OVER (PARTITION BY id)) AS id_row
		FROM import
	) AS import
	WHERE problem IS NOT NULL ORDER BY row`

// removeConflicts removes and reports the rows that are in conflict.
func (m *importer) removeConflicts(ctx context.Context) error {
	rows, err := m.db.conn.QueryContext(ctx, conflicts)
	if err != nil {
		return err
	}
	defer rows.Close()
	var found []int
	for rows.Next() {
		var row int
		var problem string
		if err := rows.Scan(&row, &problem); err != nil {
			return err
		}
		found = append(found, row)
		m.good--
		m.report(row, problem)
	}
	err = errors.Join(rows.Err(), rows.Close())
	for _, row := range found {
		if err == nil {
			err = m.exec(ctx, `DELETE FROM import WHERE rowid = ?`, row)
		}
	}
	if err == nil {
		// Counted here, so that tryInsert holds the lock for a shorter time.
		err = m.exec(ctx, `
			UPDATE import SET place = counted.place
			FROM (SELECT rowid AS row, row_number() OVER (ORDER BY rowid) AS place FROM import WHERE id IS NULL) AS counted
			WHERE import.rowid = counted.row`)
	}
	return err
}

// insert moves the rows into the database, unless rows are bad and partial is false.
func (m *importer) insert(ctx context.Context, partial bool) error {
	for attempt := 1; m.bad == 0 || partial; attempt++ {
		m.progress("importing %d users", m.good)
		err := m.tryInsert(ctx)
		if err == nil {
			m.store.wrote.Store(true) // the store has another connection
			return m.conclude("imported "+plural(m.good, "user"), "left out ")
		}
		if !isDuplicate(err) && !errors.Is(err, errDuplicate) || attempt == 5 {
			return fmt.Errorf("importing: %w", err)
		}
		// Meanwhile a server has added a user with one of these names.
		if err := m.removeConflicts(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s; nothing was imported", plural(m.bad, "bad row"))
}

// conclude prints the outcome. It returns an error if rows were left out.
func (m *importer) conclude(outcome, leftOut string) error {
	_, err := fmt.Fprintln(m.stdout, outcome)
	if err == nil && m.bad > 0 {
		err = errors.New(leftOut + plural(m.bad, "bad row"))
	}
	return err
}

// insertImport gives the rows without an id the next free ones.
const insertImport = `
	INSERT INTO user (id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at)
	SELECT
		coalesce(id, place + max((SELECT user_id FROM counter), (SELECT coalesce(max(id), 0) FROM import))),
		username, email, password_hash, role, disabled,
		coalesce(nullif(created_at, 0), ?1), coalesce(nullif(updated_at, 0), ?1), last_login_at
	FROM import ORDER BY rowid;
	UPDATE counter SET user_id = max(user_id, (SELECT coalesce(max(id), 0) FROM user));`

// tryInsert moves the rows into the table user in one transaction. If a name or an
// id was taken since the check, it changes nothing.
func (m *importer) tryInsert(ctx context.Context) error {
	tx, err := m.db.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var users, rows, taken int64
	var indexes string
	err = tx.QueryRowContext(ctx, `
		SELECT
			(SELECT count(*) FROM user),
			(SELECT count(*) FROM import),
			(SELECT count(*) FROM import WHERE id <= (SELECT user_id FROM counter)),
			(SELECT group_concat(sql, ';') FROM sqlite_schema WHERE name IN ('user_username', 'user_email'))`,
	).Scan(&users, &rows, &taken, &indexes)
	if err == nil && taken > 0 {
		err = errDuplicate
	}
	script := insertImport
	if rows > 1000 && rows > users/2 {
		// Building the indexes of a million names anew takes a quarter of the time
		// that a million insertions into them take.
		script = `DROP INDEX user_username; DROP INDEX user_email;` + insertImport + indexes
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, script, m.wall().Unix())
	}
	if err == nil {
		e := event{at: m.wall().Unix(), kind: usersImported, changes: fmt.Sprintf("users=%d", rows)}.by(console)
		_, err = tx.ExecContext(ctx, e.query, e.args.list()...)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err == nil {
		// The lock is free now. Otherwise a server would do this during a request.
		err = m.exec(ctx, `PRAGMA wal_checkpoint(PASSIVE)`)
	}
	return err
}
