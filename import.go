package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"

	"userd/internal/passhash"
	"userd/internal/strictjson"
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

// An importRow is one user of an import file.
type importRow struct {
	number   int // of its line in an NDJSON file, of its record in a CSV file; the header is 1
	user     user
	password string // to be hashed; empty if hash is given
	hash     string
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
// have a password. A file that begins with a brace is NDJSON; any other is CSV.
func (m *importer) readRows(ctx context.Context, in io.Reader, hash func(importRow)) (err error) {
	buffered := bufio.NewReaderSize(in, 1<<16)
	number, next := 1, ndjsonRows(buffered)
	if first, _ := buffered.Peek(1); string(first) != "{" {
		number = 2
		if next, err = csvRows(buffered); err != nil {
			return err
		}
	}
	for ; ; number++ {
		r := importRow{number: number}
		fields, problem, err := next()
		if err == nil && problem == "" {
			problem = r.set(fields)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("row %d: %w", number, err) // where the next row begins is uncertain
		case problem != "":
			m.report(number, problem)
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

// djangoColumns maps the columns of Django's table auth_user to the fields of a
// row. Those that map to "" are ignored.
var djangoColumns = map[string]string{
	"id": "id", "username": "username", "email": "email", "password": "password_hash", "date_joined": "created_at", "last_login": "last_login_at",
	"is_superuser": "is_superuser", "is_active": "is_active", "first_name": "", "last_name": "", "is_staff": "",
}

// importFields returns the field that each column of a CSV file fills.
func importFields(header []string) ([]string, error) {
	django := slices.Contains(header, "date_joined")
	fields := make([]string, len(header))
	for i, column := range header {
		known := slices.Contains(importColumns, column)
		if fields[i] = column; django {
			fields[i], known = djangoColumns[column]
		}
		if !known {
			return nil, fmt.Errorf("unknown column %q: see userd help user import", column)
		}
		if slices.Contains(header[:i], column) {
			return nil, fmt.Errorf("column %q appears twice", column)
		}
	}
	return fields, nil
}

// csvRows returns a function that returns the fields of the next row by name, or
// what is wrong with the row. Its error is io.EOF after the last row.
func csvRows(in io.Reader) (next func() (map[string]string, string, error), err error) {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	header, err := r.Read()
	if err == io.EOF {
		return nil, errors.New("the file is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	header[0] = strings.TrimPrefix(header[0], "\ufeff") // which spreadsheets write first
	names, err := importFields(header)
	return func() (map[string]string, string, error) {
		record, err := r.Read()
		if errors.Is(err, csv.ErrFieldCount) {
			return nil, fmt.Sprintf("has %s instead of %d", plural(len(record), "field"), len(names)), nil
		}
		fields := make(map[string]string, len(names))
		for i, value := range record {
			fields[names[i]] = value
		}
		return fields, "", err
	}, err
}

// ndjsonRows is csvRows for a file with one JSON object a line.
func ndjsonRows(in io.Reader) (next func() (map[string]string, string, error)) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxBody)
	return func() (map[string]string, string, error) {
		if !lines.Scan() {
			return nil, "", cmp.Or(lines.Err(), io.EOF)
		}
		fields := make(map[string]string)
		err := strictjson.Members(lines.Bytes(), func(name string, value []byte) error {
			if !slices.Contains(importColumns, name) {
				return fmt.Errorf("unknown member %q", shorten(name))
			}
			var text string // stays empty for null
			if json.Unmarshal(value, &text) != nil {
				text = string(value) // a number, say
			}
			fields[name] = text
			return nil
		})
		if err != nil {
			return nil, err.Error(), nil
		}
		return fields, "", nil
	}
}

// set fills the row from its fields, by name, and returns what is wrong with it.
func (r *importRow) set(fields map[string]string) (problem string) {
	wrong := make(fieldErrors)
	truth := func(name string) bool {
		switch strings.ToLower(fields[name]) {
		case "", "false", "f", "0":
			return false
		case "true", "t", "1":
			return true
		}
		wrong.add(name, "must be true or false")
		return false
	}
	seconds := func(name string) int64 {
		n, ok := parseTime(fields[name])
		if !ok {
			wrong.add(name, "must be a time such as 2026-01-31T12:00:00Z")
		}
		return n
	}
	u := &r.user
	u.username, u.email, u.role = trimName(fields["username"]), trimName(fields["email"]), role(cmp.Or(fields["role"], string(member)))
	wrong.add("username", checkUsername(u.username))
	wrong.add("email", checkEmail(u.email))
	r.password, r.hash = fields["password"], fields["password_hash"]
	switch {
	case r.password == "" && r.hash == "":
		wrong.add("password", "and password_hash are both empty")
	case r.password != "" && r.hash != "":
		wrong.add("password", "and password_hash are both given")
	case r.password != "":
		wrong.add("password", checkPassword(r.password, u.username, u.email))
	case !passhash.Known(r.hash):
		wrong.add("password_hash", "has an unknown format")
	}
	if v := fields["id"]; v != "" {
		var err error
		if u.id, err = parseID(v); err != nil || u.id > maxID {
			wrong.add("id", "must be an integer from 1 to 2^53-1")
		}
	}
	wrong.add("role", checkRole(u.role))
	if truth("is_superuser") {
		u.role = admin
	}
	u.disabled = truth("disabled") || fields["is_active"] != "" && !truth("is_active")
	u.createdAt, u.updatedAt, u.lastLoginAt = seconds("created_at"), seconds("updated_at"), seconds("last_login_at")
	if err := wrong.err(); err != nil {
		return err.Error()
	}
	return ""
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
