package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"userd/internal/groupcommit"
	"userd/internal/safefile"
	"userd/internal/sqlitefile"
	"userd/internal/terminal"
)

// userImport adds the users of a file. It reads, checks and hashes everything
// before it locks the database, so that a server keeps working meanwhile.
func userImport(f *flag.FlagSet) action {
	dryRun := f.Bool("dry-run", false, "Only check the file: import nothing, and neither create nor adopt a database.")
	partial := f.Bool("partial", false, "Import the good rows although others are bad. The exit status is still 1.")
	return func(ctx context.Context, c *cli) error {
		in, err := c.openInput(ctx, c.args[0])
		if err != nil {
			return err
		}
		defer in.Close()
		kind, err := inspectDatabase(ctx, c.database)
		switch {
		case err != nil:
			return err
		case kind == kindTutorial && *dryRun:
			return fmt.Errorf("%s is a database of the Flask tutorial, which -dry-run does not upgrade: run userd adopt first", c.database)
		case kind == kindNone:
			return c.importNew(ctx, in, *dryRun, *partial)
		}
		return c.withDatabase(ctx, false, refuse, func(ctx context.Context, c *cli) error {
			return c.importUsers(ctx, in, *dryRun, *partial, func(m *importer) error { return m.insert(ctx, *partial) })
		})
	}
}

// importNew imports into a database that does not exist. It first reads and checks the file
// with an empty database in a temporary directory. If that fails, it creates no database.
func (c *cli) importNew(ctx context.Context, in io.Reader, dryRun, partial bool) error {
	dir, err := os.MkdirTemp("", "userd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	temporary := *c
	temporary.database = filepath.Join(dir, "app.db")
	st, err := openStore(ctx, temporary.database)
	if err != nil {
		return err
	}
	defer st.close()
	temporary.userService = temporary.newUserService(st)
	return temporary.importUsers(ctx, in, dryRun, partial, func(read *importer) error {
		return c.withDatabase(ctx, true, refuse, func(ctx context.Context, c *cli) error {
			m, err := newImporter(ctx, c)
			if err != nil {
				return err
			}
			defer m.close()
			if err := read.moveTo(ctx, m); err != nil {
				return err
			}
			return m.insert(ctx, partial)
		})
	})
}

// importUsers reads and checks the file, prints what is wrong with its rows, and calls
// insert. With dryRun it instead prints what an import would do.
func (c *cli) importUsers(ctx context.Context, in io.Reader, dryRun, partial bool, insert func(*importer) error) error {
	size := int64(0)
	if f, ok := in.(*os.File); ok {
		size = safefile.Size(f)
	}
	m, err := newImporter(ctx, c)
	if err != nil {
		return err
	}
	defer m.close()
	m.progress = c.progress("rows read", size)
	err = m.read(ctx, in)
	m.progress.End()
	if err == nil {
		err = m.removeConflicts(ctx)
	}
	switch err := errors.Join(err, m.printProblems(ctx)); {
	case err != nil:
		return err
	case m.bad > 0 && !partial:
		return m.refusal()
	case dryRun:
		if err := m.checkKeys(ctx); err != nil {
			return fmt.Errorf("an import would fail: %w", err)
		}
		return m.conclude("would import "+plural(m.good, "user"), "would leave out ")
	case m.good == 0: // insert would create the database
		return m.conclude("imported 0 users", "left out ")
	}
	return insert(m)
}

// An importer is one run of user import. It holds the good rows in a temporary
// table, outside the database and its locks, until insert moves all of them.
type importer struct {
	*cli
	db        *sqlitefile.OnlyConn
	stmts     *groupcommit.Cache // of db
	progress  *terminal.Progress
	mu        sync.Mutex // held by add and report
	good, bad int        // rows
	factors   bool       // some rows have a TOTP secret
}

func newImporter(ctx context.Context, c *cli) (*importer, error) {
	db, err := sqlitefile.OpenToWrite(c.database, busyTimeout)
	if err != nil {
		return nil, err
	}
	m := &importer{cli: c, db: db, stmts: groupcommit.NewCache(db)}
	// The rowid is the row's number. insertImport replaces a null id by a free one; place
	// counts the rows without an id. One transaction for all rows is fast, and it locks only
	// temporary tables.
	err = m.exec(ctx, `
		PRAGMA cache_size = -400000; -- at most 400 MB, so that SQLite builds an index of a million rows in memory
		PRAGMA wal_autocheckpoint = 0;
		CREATE TEMP TABLE import AS
			SELECT id, 0 AS place, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at,
				email_verified_at, pending, service, '' AS totp
			FROM user WHERE false;
		CREATE TEMP TABLE problem (row INTEGER NOT NULL PRIMARY KEY, text TEXT NOT NULL);
		BEGIN`)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("preparing the import: %w", err)
	}
	return m, nil
}

// close closes the statements first: an open one would keep the connection open.
func (m *importer) close() error { return errors.Join(m.stmts.Close(), m.db.Close()) }

func (m *importer) exec(ctx context.Context, query string) error {
	_, err := m.db.ExecContext(ctx, query)
	return err
}

// read reads the rows of in, hashes their passwords on every core, and adds the
// good rows and the problems of the bad ones, in no particular order. It commits the
// transaction of newImporter.
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
	file, err := importedRows(in)
	if err != nil {
		return err
	}
	for {
		row, err := file.Next()
		r := importRow{number: row.Number, end: row.End}
		if err == nil && row.Problem == "" && row.Fields != nil {
			row.Problem = r.set(row.Fields, m.passwords)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("row %d: %w", row.Number, err) // the start of the next row is unknown
		case row.Problem != "":
			err = m.report(ctx, row.Number, row.Problem)
		case row.Fields == nil: // an empty row
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

// add adds a row whose values are valid. removeConflicts compares it with other rows.
func (m *importer) add(ctx context.Context, r importRow) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.good++
	m.factors = m.factors || r.totp != ""
	m.progress.Show(m.good+m.bad, r.end)
	insert, err := m.stmts.Get(`
		INSERT INTO import (rowid, id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at,
			email_verified_at, pending, service, totp)
		VALUES (?1, nullif(?2, 0), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)`)
	if err != nil {
		return err
	}
	u := &r.user
	// The driver starts a goroutine for each statement whose context can be cancelled.
	_, err = insert.ExecContext(context.WithoutCancel(ctx),
		r.number, u.id, u.username, u.email, r.hash, u.role, u.disabled, u.createdAt, u.updatedAt, u.lastLoginAt,
		u.emailVerifiedAt, u.pending, u.service, r.totp)
	return err
}

// moveTo adds the good rows to the importer of another database, removes those that conflict
// with its users, and prints their problems.
func (m *importer) moveTo(ctx context.Context, to *importer) error {
	var r importRow
	var failed error
	u := &r.user
	err := sqlitefile.Scan(ctx, m.db, `
		SELECT rowid, coalesce(id, 0), username, email, password_hash, role, disabled, created_at, updated_at, last_login_at,
			email_verified_at, pending, service, totp
		FROM import`,
		[]any{&r.number, &u.id, &u.username, &u.email, &r.hash, &u.role, &u.disabled, &u.createdAt, &u.updatedAt, &u.lastLoginAt,
			&u.emailVerifiedAt, &u.pending, &u.service, &r.totp},
		func() { failed = cmp.Or(failed, to.add(ctx, r)) })
	if err := cmp.Or(err, failed); err != nil {
		return err
	}
	to.bad, to.progress = m.bad, m.progress
	return errors.Join(to.exec(ctx, `COMMIT`), to.removeConflicts(ctx), to.printProblems(ctx))
}

// report counts a bad row and stores its problem for printProblems.
func (m *importer) report(ctx context.Context, row int, problem string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bad++
	insert, err := m.stmts.Get(`INSERT INTO problem (row, text) VALUES (?, ?)`)
	if err == nil {
		_, err = insert.ExecContext(context.WithoutCancel(ctx), row, problem)
	}
	return err
}

// printProblems prints the stored problems in the order of the rows, and deletes them.
func (m *importer) printProblems(ctx context.Context) error {
	rows, err := m.db.QueryContext(ctx, `SELECT row, text FROM problem ORDER BY row`)
	if err != nil {
		return err
	}
	defer rows.Close()
	out := bufio.NewWriter(m.stderr)
	for rows.Next() {
		var row int
		var text string
		if err := rows.Scan(&row, &text); err != nil {
			return err
		}
		fmt.Fprintf(out, "row %d: %s\n", row, text)
	}
	if err := errors.Join(rows.Err(), rows.Close(), out.Flush()); err != nil {
		return err
	}
	return m.exec(ctx, `DELETE FROM problem`)
}

// dropRepeated removes the rows that repeat a value of an earlier row, and stores their
// problems. A removed row does not conflict with later rows, so dropRepeated inserts rows
// with equal values into first in order: its unique columns accept a row only if no accepted
// row has one of its values.
const dropRepeated = `
	CREATE TEMP TABLE repeated AS
		SELECT row, id, username, email FROM (
			SELECT rowid AS row, id, username, email,
				count(*) OVER (PARTITION BY username COLLATE NOCASE) AS usernames,
				count(*) OVER (PARTITION BY email COLLATE NOCASE) AS emails,
				count(id) OVER (PARTITION BY id) AS ids
			FROM import
		) WHERE max(usernames, emails, ids) > 1;
	CREATE TEMP TABLE first (
		row      INTEGER NOT NULL PRIMARY KEY,
		id       INTEGER UNIQUE,
		username TEXT UNIQUE COLLATE NOCASE,
		email    TEXT UNIQUE COLLATE NOCASE
	);
	INSERT OR IGNORE INTO first (row, id, username, email) SELECT row, id, username, email FROM repeated ORDER BY row;
	INSERT INTO problem (row, text)
		SELECT row, coalesce(
			'username already appears in row ' || (SELECT row FROM first WHERE username = repeated.username),
			'email already appears in row ' || (SELECT row FROM first WHERE email = repeated.email),
			'id already appears in row ' || (SELECT row FROM first WHERE id = repeated.id))
		FROM repeated WHERE row NOT IN (SELECT row FROM first);
	DROP TABLE first;
	DROP TABLE repeated;
	DELETE FROM import WHERE rowid IN (SELECT row FROM problem)`

// removeConflicts removes the rows that conflict with users or with earlier rows, and stores
// their problems for printProblems. It also sets place, so that tryInsert holds the lock of
// the database for a shorter time.
func (m *importer) removeConflicts(ctx context.Context) error {
	err := m.exec(ctx, dropTaken+";"+dropRepeated+`;
		UPDATE import SET place = counted.place
		FROM (SELECT rowid AS row, row_number() OVER (ORDER BY rowid) AS place FROM import WHERE id IS NULL) AS counted
		WHERE import.rowid = counted.row`)
	if err != nil {
		return err
	}
	rows := m.good + m.bad
	err = m.db.QueryRowContext(ctx, `SELECT count(*) FROM import`).Scan(&m.good)
	m.bad = rows - m.good
	return err
}

// dropTaken removes the rows that conflict with an existing user, and stores their problems.
const dropTaken = `
	INSERT INTO problem (row, text)
		SELECT row, text FROM (
			SELECT rowid AS row, CASE
				WHEN EXISTS (SELECT 1 FROM user WHERE user.username = import.username COLLATE NOCASE) THEN 'username already exists'
				WHEN EXISTS (SELECT 1 FROM user WHERE user.email = import.email COLLATE NOCASE) THEN 'email already exists'
				WHEN id <= (SELECT user_id FROM counter) THEN 'id was already given to a user'
			END AS text
			FROM import
		) WHERE text IS NOT NULL;
	DELETE FROM import WHERE rowid IN (SELECT row FROM problem)`

// insert moves the rows into the database and prints the outcome, unless rows are bad and
// partial is false. It tries again, at most 4 times, if a server adds conflicting users.
func (m *importer) insert(ctx context.Context, partial bool) error {
	for attempt := 1; m.bad == 0 || partial; attempt++ {
		m.progress.Note(fmt.Sprintf("importing %d users", m.good))
		err := m.tryInsert(ctx)
		m.progress.End()
		if err == nil {
			m.store.wrote.Store(true) // the store has another connection
			return m.conclude("imported "+plural(m.good, "user"), "left out ")
		}
		if !sqlitefile.IsDuplicate(err) && !errors.Is(err, errDuplicate) || attempt == 5 {
			return fmt.Errorf("importing: %w", err)
		}
		// Meanwhile a server has added a user with one of these names.
		if err := errors.Join(m.removeConflicts(ctx), m.printProblems(ctx)); err != nil {
			return err
		}
	}
	return m.refusal()
}

// insertImport gives the rows without an id the next free ones.
const insertImport = `
	INSERT INTO user (id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at,
		email_verified_at, pending, service)
	SELECT
		coalesce(id, place + max((SELECT user_id FROM counter), (SELECT coalesce(max(id), 0) FROM import))),
		username, email, password_hash, role, disabled,
		coalesce(nullif(created_at, 0), ?1), coalesce(nullif(updated_at, 0), ?1), last_login_at,
		email_verified_at, pending, service
	FROM import ORDER BY rowid;
	UPDATE counter SET user_id = max(user_id, (SELECT coalesce(max(id), 0) FROM user));`

// refusal returns the error of an import that bad rows prevent.
func (m *importer) refusal() error {
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

// checkKeys returns an error of checkDataKeys if the import would encrypt TOTP secrets.
func (m *importer) checkKeys(ctx context.Context) error {
	if !m.factors {
		return nil
	}
	return m.checkDataKeys(ctx)
}

// tryInsert moves the rows into the table user in one transaction. If a name or an
// id was taken since the check, it changes nothing.
func (m *importer) tryInsert(ctx context.Context) error {
	if err := m.checkKeys(ctx); err != nil {
		return err
	}
	ring, err := m.ring(ctx)
	if err != nil {
		return err
	}
	tx, err := m.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var users, rows, admins, taken int64
	var indexes string
	err = tx.QueryRowContext(ctx, `
		SELECT
			(SELECT count(*) FROM user),
			(SELECT count(*) FROM import),
			(SELECT count(*) FROM import WHERE role = 'admin'),
			(SELECT count(*) FROM import WHERE id <= (SELECT user_id FROM counter)),
			(SELECT group_concat(sql, ';') FROM sqlite_schema WHERE name IN ('user_username', 'user_email'))`,
	).Scan(&users, &rows, &admins, &taken, &indexes)
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
	if err == nil && m.factors {
		err = insertFactors(ctx, tx, ring, m.wall().Unix())
	}
	if err == nil && rows > 0 {
		e := event{at: m.wall().Unix(), kind: usersImported, changes: fmt.Sprintf("users=%d,admins=%d", rows, admins)}.by(console)
		err = e.Exec(ctx, tx)
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
