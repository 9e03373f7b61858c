package main

import (
	"bufio"
	"context"
	"database/sql"
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
	"time"
)

func userImport(f *flag.FlagSet) action {
	dryRun := f.Bool("dry-run", false, "Only check the file, and import nothing.")
	partial := f.Bool("partial", false, "Import the good rows although others are bad. The exit status is still 1.")
	return func(ctx context.Context, c *cli) error { return c.importUsers(ctx, *dryRun, *partial) }
}

// An importRow is one user of an import file.
type importRow struct {
	number   int // of its line in an NDJSON file, of its record in a CSV file; the header is 1
	user     user
	password string // to be hashed; empty: hash is given
	hash     string
}

// djangoIgnored are the columns of Django's auth_user that have no place here.
var djangoIgnored = []string{"first_name", "last_name", "is_staff"}

// importUsers adds the users of a file. Everything is read, checked and hashed
// before the database is locked: a server on it goes on meanwhile.
func (c *cli) importUsers(ctx context.Context, dryRun, partial bool) error {
	in, err := c.openInput(c.args[0])
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := openStaging(ctx, c.database)
	if err != nil {
		return err
	}
	defer st.close()

	bad, staged := 0, 0
	report := func(row int, why string) {
		bad++
		fmt.Fprintf(c.stderr, "row %d: %s\n", row, why)
	}
	progress := c.progress()
	now := c.now().Unix()
	stage := func(r importRow) error {
		staged++
		if r.user.createdAt == 0 {
			r.user.createdAt = now
		}
		if r.user.updatedAt == 0 {
			r.user.updatedAt = now
		}
		progress("%d rows read", staged)
		return st.add(ctx, r)
	}
	if err := c.hashing(ctx, in, stage, report); err != nil {
		return err
	}
	progress("checking %d rows", staged)
	clash := func(row int, why string) { staged--; report(row, why) }
	if err := st.check(ctx, clash); err != nil {
		return err
	}
	if dryRun && (bad == 0 || partial) {
		if _, err := fmt.Fprintf(c.stdout, "users that could be imported: %d\n", staged); err != nil || bad == 0 {
			return err
		}
		return fmt.Errorf("bad rows that would be left out: %d", bad)
	}
	var n int64
	for try := 1; bad == 0 || partial; try++ {
		progress("importing %d users", staged)
		n, err = st.commit(ctx, now)
		if errors.Is(err, errDuplicate) && try < 5 { // somebody registers meanwhile
			err = st.takeOut(ctx, clash)
		} else if err == nil {
			break
		}
		if err != nil {
			return err
		}
	}
	if bad > 0 && !partial {
		return fmt.Errorf("bad rows: %d; nothing was imported", bad)
	}
	if _, err := fmt.Fprintf(c.stdout, "imported users: %d\n", n); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("bad rows that were left out: %d", bad)
	}
	return nil
}

// hashing reads the rows of in and calls f with the good ones, their passwords
// hashed on every core, in no certain order; and report with the bad ones.
func (c *cli) hashing(ctx context.Context, in io.Reader, f func(importRow) error, report func(int, string)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // f and report are called from one goroutine at a time
	rows := make(chan importRow)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for r := range rows {
				hash, err := c.hasher.hash(ctx, "", r.password)
				if err == nil {
					r.hash = hash
					mu.Lock()
					err = f(r)
					mu.Unlock()
				}
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	err := readRows(in, func(r importRow, why string) error {
		if why == "" && r.password != "" {
			select {
			case rows <- r:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if why != "" {
			report(r.number, why)
			return ctx.Err()
		}
		return f(r)
	})
	close(rows)
	workers.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// readRows calls f with each row of an import file, and with what is wrong with
// it, if anything. A file whose first byte is a brace is NDJSON, another CSV.
func readRows(in io.Reader, f func(r importRow, why string) error) error {
	buffered := bufio.NewReaderSize(in, 1<<16)
	first, err := buffered.Peek(1)
	if err == io.EOF {
		return errors.New("the file is empty")
	}
	if err != nil {
		return err
	}
	if first[0] == '{' {
		return readNDJSON(buffered, f)
	}
	return readCSV(buffered, f)
}

func readCSV(in io.Reader, f func(importRow, string) error) error {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	header, err := r.Read()
	if err != nil {
		return fmt.Errorf("the header: %w", err)
	}
	header = slices.Clone(header)
	header[0] = strings.TrimPrefix(header[0], "\ufeff") // as spreadsheets begin a file
	django := slices.Contains(header, "date_joined")
	for i, name := range header {
		if slices.Contains(header[:i], name) {
			return fmt.Errorf("the column %q stands twice", name)
		}
		if django {
			header[i], err = fromDjango(name)
		} else if name != "password" && !slices.Contains(exportColumns, name) {
			err = fmt.Errorf("the column %q is not known; known are password, %s", name, strings.Join(exportColumns, ", "))
		}
		if err != nil {
			return err
		}
	}
	for number := 2; ; number++ {
		record, err := r.Read()
		if err == io.EOF {
			return nil
		}
		row := importRow{number: number}
		why := ""
		if errors.Is(err, csv.ErrFieldCount) {
			why = fmt.Sprintf("has %d fields instead of %d", len(record), len(header))
		} else if err != nil {
			return fmt.Errorf("row %d: %w", number, err) // where the next row begins is not certain
		} else {
			fields := make(map[string]string, len(header))
			for i, name := range header {
				fields[name] = record[i]
			}
			why = row.fill(fields)
		}
		if err := f(row, why); err != nil {
			return err
		}
	}
}

// fromDjango gives a column of auth_user the name it has here; the ignored have none.
func fromDjango(name string) (string, error) {
	known := map[string]string{
		"id": "id", "username": "username", "email": "email", "password": "password_hash", "is_superuser": "is_superuser",
		"is_active": "is_active", "date_joined": "created_at", "last_login": "last_login_at",
	}
	if to, ok := known[name]; ok {
		return to, nil
	}
	if slices.Contains(djangoIgnored, name) {
		return "", nil
	}
	return "", fmt.Errorf("the column %q is not one of Django's auth_user", name)
}

func readNDJSON(in io.Reader, f func(importRow, string) error) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxBody)
	for number := 1; lines.Scan(); number++ {
		row := importRow{number: number}
		fields := make(map[string]string)
		why := ""
		err := eachMember(lines.Bytes(), func(name string, value []byte) error {
			var v any
			if err := json.Unmarshal(value, &v); err != nil {
				return err
			}
			switch v := v.(type) {
			case string:
				fields[name] = v
			case nil:
			case bool:
				fields[name] = fmt.Sprint(v)
			default:
				fields[name] = string(value)
			}
			if name != "password" && !slices.Contains(exportColumns, name) {
				return fmt.Errorf("the member %q is not known", shorten(name))
			}
			return nil
		})
		var fault *fault
		if errors.As(err, &fault) && fault.text != "" {
			why = fault.text
		} else if err != nil {
			why = err.Error()
		} else {
			why = row.fill(fields)
		}
		if err := f(row, why); err != nil {
			return err
		}
	}
	return lines.Err()
}

// fill sets the row from its fields by name, and returns what is wrong with it.
func (r *importRow) fill(fields map[string]string) string {
	u := &r.user
	u.username, u.email, u.role = fields["username"], fields["email"], member
	r.password, r.hash = fields["password"], fields["password_hash"]
	wrong := make(fieldErrors)
	wrong.add("username", checkUsername(u.username))
	wrong.add("email", checkEmail(u.email))
	switch {
	case r.password == "" && r.hash == "":
		wrong.add("password", "and password_hash are both empty")
	case r.password != "" && r.hash != "":
		wrong.add("password", "and password_hash are both given")
	case r.password != "":
		wrong.add("password", checkPassword(r.password, u.username, u.email))
	default:
		if _, ok := parseHash(r.hash); !ok {
			wrong.add("password_hash", "is in no known form")
		}
	}
	if v := fields["id"]; v != "" {
		var err error
		if u.id, err = parseID(v); err != nil || u.id > maxID {
			wrong.add("id", "must be an integer from 1 to 2^53-1")
		}
	}
	if v := fields["role"]; v != "" {
		u.role = role(v)
		wrong.add("role", checkRole(u.role))
	}
	var super, active bool
	for _, b := range []struct {
		name string
		to   *bool
	}{{"disabled", &u.disabled}, {"is_superuser", &super}, {"is_active", &active}} {
		switch strings.ToLower(fields[b.name]) {
		case "", "false", "f", "0":
		case "true", "t", "1":
			*b.to = true
		default:
			wrong.add(b.name, "must be true or false")
		}
	}
	if super {
		u.role = admin
	}
	if fields["is_active"] != "" && !active {
		u.disabled = true
	}
	for _, t := range []struct {
		name string
		to   *int64
	}{{"created_at", &u.createdAt}, {"updated_at", &u.updatedAt}, {"last_login_at", &u.lastLoginAt}} {
		var err error
		if *t.to, err = parseTime(fields[t.name]); err != nil {
			wrong.add(t.name, "must be a time such as 2026-01-31T12:00:00Z")
		}
	}
	if err := wrong.err(); err != nil {
		return err.(*fault).text
	}
	return ""
}

// parseTime reads a time as userd, and as Django and PostgreSQL, write it; ""
// is 0. One without a zone is in UTC.
func parseTime(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05-07", "2006-01-02 15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil && t.Unix() > 0 {
			return t.Unix(), nil
		}
	}
	return 0, errors.New("no time")
}

// A staging holds the rows of an import in a temporary table, outside of the
// database and of its locks, until they go in as one.
type staging struct {
	*writer // for its connection alone: its goroutine does not run
	insert  *sql.Stmt
}

func openStaging(ctx context.Context, path string) (*staging, error) {
	w, err := openWriter(path)
	if err != nil {
		return nil, err
	}
	st := &staging{writer: w}
	// One transaction for all rows; on the temporary table, it locks nothing else.
	err = st.exec(ctx, `
		PRAGMA cache_size = -400000; -- 400 MB at most, so that an index of a million rows is built in memory
		PRAGMA wal_autocheckpoint = 0;
		CREATE TEMP TABLE staged (
			row           INTEGER NOT NULL PRIMARY KEY,
			id            INTEGER, -- null: the next that is free
			place         INTEGER, -- among those whose id is null
			username      TEXT NOT NULL,
			email         TEXT NOT NULL,
			password_hash TEXT NOT NULL,
			role          TEXT NOT NULL,
			disabled      INTEGER NOT NULL,
			created_at    INTEGER NOT NULL,
			updated_at    INTEGER NOT NULL,
			last_login_at INTEGER NOT NULL
		);
		BEGIN`)
	if err == nil {
		st.insert, err = w.conn.PrepareContext(ctx, `
			INSERT INTO staged (row, id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at)
			VALUES (?1, nullif(?2, 0), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)`)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("staging: %w", err)
	}
	return st, nil
}

func (st *staging) close() error {
	return errors.Join(st.insert.Close(), st.writer.close())
}

func (st *staging) exec(ctx context.Context, query string, args ...any) error {
	_, err := st.conn.ExecContext(ctx, query, args...)
	return err
}

// add stages a row whose own values are good.
func (st *staging) add(ctx context.Context, r importRow) error {
	u := &r.user
	// Like every statement of one row, under no context that could be cancelled:
	// the driver would start a goroutine for each.
	_, err := st.insert.ExecContext(context.WithoutCancel(ctx),
		r.number, u.id, u.username, u.email, r.hash, u.role, u.disabled, u.createdAt, u.updatedAt, u.lastLoginAt)
	if err != nil {
		return fmt.Errorf("staging row %d: %w", r.number, err)
	}
	return ctx.Err()
}

// clashes finds the rows that cannot go in beside each other or beside the
// users there are, and why.
const clashes = `
	SELECT row, 'username already stands in row ' || earlier FROM (
		SELECT row, (SELECT min(row) FROM staged AS s WHERE s.username = staged.username COLLATE NOCASE) AS earlier FROM staged)
	WHERE earlier < row
	UNION ALL
	SELECT row, 'email already stands in row ' || earlier FROM (
		SELECT row, (SELECT min(row) FROM staged AS s WHERE s.email = staged.email COLLATE NOCASE) AS earlier FROM staged)
	WHERE earlier < row
	UNION ALL
	SELECT row, 'id already stands in row ' || earlier FROM (
		SELECT row, (SELECT min(row) FROM staged AS s WHERE s.id = staged.id) AS earlier FROM staged WHERE id IS NOT NULL)
	WHERE earlier < row
	UNION ALL
	SELECT row, 'username already exists' FROM staged WHERE EXISTS (SELECT 1 FROM main.user AS u WHERE u.username = staged.username COLLATE NOCASE)
	UNION ALL
	SELECT row, 'email already exists' FROM staged WHERE EXISTS (SELECT 1 FROM main.user AS u WHERE u.email = staged.email COLLATE NOCASE)
	UNION ALL
	SELECT row, 'id was given to a user before' FROM staged WHERE id <= (SELECT user_id FROM counter)
	ORDER BY row`

// check ends the staging, reports each row that clashes, and takes it out.
func (st *staging) check(ctx context.Context, report func(row int, why string)) error {
	err := st.exec(ctx, `
		COMMIT;
		CREATE INDEX temp.staged_username ON staged (username COLLATE NOCASE);
		CREATE INDEX temp.staged_email ON staged (email COLLATE NOCASE);
		CREATE INDEX temp.staged_id ON staged (id) WHERE id IS NOT NULL;`)
	if err == nil {
		err = st.takeOut(ctx, report)
	}
	if err != nil {
		return fmt.Errorf("checking: %w", err)
	}
	return nil
}

func (st *staging) takeOut(ctx context.Context, report func(row int, why string)) error {
	rows, err := st.conn.QueryContext(ctx, clashes)
	if err != nil {
		return err
	}
	defer rows.Close()
	var out []int
	for rows.Next() {
		var row int
		var why string
		if err := rows.Scan(&row, &why); err != nil {
			return err
		}
		if len(out) > 0 && out[len(out)-1] == row {
			continue // one line a row
		}
		out = append(out, row)
		report(row, why)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, row := range out {
		if err := st.exec(ctx, `DELETE FROM staged WHERE row = ?`, row); err != nil {
			return err
		}
	}
	// Numbered now, so that the lock need not be held for it.
	return st.exec(ctx, `
		UPDATE staged SET place = numbered.place
		FROM (SELECT row, row_number() OVER (ORDER BY row) AS place FROM staged WHERE id IS NULL) AS numbered
		WHERE staged.row = numbered.row`)
}

// commit moves the staged rows into the table user, in one transaction, and
// returns how many there were. Where somebody has taken a name or an id since
// the check it is errDuplicate, and nothing has changed.
func (st *staging) commit(ctx context.Context, now int64) (n int64, err error) {
	defer func() {
		if isDuplicate(err) {
			err = errDuplicate
		} else if err != nil {
			err = fmt.Errorf("importing: %w", err)
		}
	}()
	tx, err := st.conn.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	var users, staged, gone int64
	err = tx.QueryRowContext(ctx, `
		SELECT (SELECT count(*) FROM user), (SELECT count(*) FROM staged),
			(SELECT count(*) FROM staged WHERE id <= (SELECT user_id FROM counter))`).Scan(&users, &staged, &gone)
	if err != nil {
		return 0, err
	}
	if gone > 0 {
		return 0, errDuplicate
	}
	// A million names go into an index in their own order, one page after the
	// other, in a quarter of the time that they take one by one.
	rebuild := staged > 1000 && staged > users/2
	var indexes string
	if rebuild {
		err = tx.QueryRowContext(ctx, `
			SELECT group_concat(sql, ';') FROM sqlite_schema WHERE name IN ('user_username', 'user_email')`).Scan(&indexes)
		if err == nil {
			_, err = tx.ExecContext(ctx, `DROP INDEX user_username; DROP INDEX user_email`)
		}
		if err != nil {
			return 0, err
		}
	}
	result, err := tx.ExecContext(ctx, `
		INSERT INTO user (id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at)
		SELECT
			coalesce(id, place + max(
				(SELECT user_id FROM counter),
				(SELECT coalesce(max(id), 0) FROM staged))),
			username,
			email,
			password_hash,
			role,
			disabled,
			created_at,
			updated_at,
			last_login_at
		FROM staged ORDER BY row`)
	if err == nil {
		n, err = result.RowsAffected()
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, `UPDATE counter SET user_id = max(user_id, (SELECT coalesce(max(id), 0) FROM user))`)
	}
	if err == nil && rebuild {
		_, err = tx.ExecContext(ctx, indexes)
	}
	if err == nil {
		e := event{at: now, kind: usersImported, changes: fmt.Sprintf("users=%d", n)}.by(console)
		_, err = tx.ExecContext(ctx, e.query, e.args...)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err == nil {
		// Now, when the lock is free: the server would do it within somebody's request.
		err = st.exec(ctx, `PRAGMA wal_checkpoint(PASSIVE)`)
	}
	return n, err
}
