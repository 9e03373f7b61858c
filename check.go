package main

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// mostFindings is how many lines each rule of a check may fill.
const mostFindings = 100

// rules find what no write of this program leaves behind, a line each.
var rules = []string{
	`SELECT 'the counter of user ids is gone' WHERE NOT EXISTS (SELECT 1 FROM counter)`,
	`SELECT 'the last user id given out is ' || user_id || ', and there is a user ' || (SELECT max(id) FROM user)
	FROM counter WHERE user_id < (SELECT max(id) FROM user)`,
	`SELECT 'user ' || id || ' has the role ' || quote(role) FROM user WHERE role NOT IN ('member', 'admin')`,
	`SELECT 'user ' || id || ' has ' || quote(disabled) || ' as disabled' FROM user WHERE disabled NOT IN (0, 1)`,
	`SELECT 'user ' || id || ' has a password hash in no known form, and cannot log in' FROM user WHERE ` + hashIsUnknown,
	`SELECT 'session ' || id || ' is one of user ' || user_id || ', whom there is not' FROM session WHERE user_id NOT IN (SELECT id FROM user)`,
	`SELECT 'signing key ' || kid || ' has only ' || length(secret) || ' bytes' FROM signing_key WHERE length(secret) < 32`,
}

// check prints what is wrong with the database, one line each. It writes
// nothing, and keeps nobody from writing.
func check(ctx context.Context, c *cli) error {
	// What is damaged, SQLite's own check tells in full.
	if err := mustBeUserds(ctx, c.database); err != nil && !isDamaged(err) {
		return err
	}
	for {
		x, quiet, err := examine(ctx, c.database)
		if err != nil {
			return fmt.Errorf("checking %s: %w", c.database, err)
		}
		if still, err := isQuiet(c.database); quiet && (err != nil || !still) {
			continue // a server has begun to write to what was read as if nobody did
		}
		for _, line := range x.findings {
			fmt.Fprintln(c.stdout, printable(line))
		}
		if len(x.findings) > 0 {
			return fmt.Errorf("%s: findings: %d", c.database, len(x.findings))
		}
		if x.admins == 0 {
			fmt.Fprintln(c.stderr, "warning: there is no active admin: userd user add -admin NAME EMAIL adds one")
		}
		if x.keys == 0 && len(c.secret) == 0 {
			fmt.Fprintln(c.stderr, "warning: there is no signing key: the next start makes one")
		}
		_, err = fmt.Fprintf(c.stdout, "%s: nothing found; %d users, %d sessions\n", c.database, x.users, x.sessions)
		return err
	}
}

// An examination is what one check saw.
type examination struct {
	findings                      []string
	users, sessions, admins, keys int
}

// examine reads the whole file. Its result holds only while a quiet one stays so.
func examine(ctx context.Context, path string) (x examination, quiet bool, err error) {
	db, quiet, err := openToRead(path)
	if err != nil {
		return x, quiet, err
	}
	defer db.Close()
	err = x.collect(ctx, db, `PRAGMA integrity_check`)
	if err == nil {
		err = x.missing(ctx, db)
	}
	for _, rule := range rules {
		if err == nil {
			err = x.collect(ctx, db, rule)
		}
	}
	if err == nil {
		err = db.QueryRowContext(ctx, `
			SELECT
				(SELECT count(*) FROM user),
				(SELECT count(*) FROM session),
				(SELECT count(*) FROM user WHERE role = 'admin' AND disabled = 0),
				(SELECT count(*) FROM signing_key WHERE retired_at = 0)`).Scan(&x.users, &x.sessions, &x.admins, &x.keys)
	}
	if isDamaged(err) {
		x.findings, err = append(x.findings, err.Error()), nil
	}
	return x, quiet, err
}

// collect adds the lines that a rule finds, or that SQLite's check does.
func (x *examination) collect(ctx context.Context, db *sql.DB, query string) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for n := 0; rows.Next(); n++ {
		var text string
		if err := rows.Scan(&text); err != nil {
			return err
		}
		if n == mostFindings {
			x.findings = append(x.findings, "… and more like this")
			break
		}
		for line := range strings.SplitSeq(text, "\n") {
			if line != "ok" {
				x.findings = append(x.findings, line)
			}
		}
	}
	return rows.Err()
}

// missing adds what the migrations make and the database does not have.
func (x *examination) missing(ctx context.Context, db *sql.DB) error {
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	model, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return err
	}
	defer model.Close()
	model.SetMaxOpenConns(1) // a second would be another database
	for _, script := range migrations[:version] {
		if _, err := model.ExecContext(ctx, script); err != nil {
			return err
		}
	}
	want, err := parts(ctx, model)
	if err != nil {
		return err
	}
	got, err := parts(ctx, db)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch text, ok := got[name]; {
		case !ok:
			x.findings = append(x.findings, "there is no "+name)
		case text != want[name]:
			x.findings = append(x.findings, "another "+name+": "+text)
		}
	}
	return nil
}

// parts returns the tables, columns and indexes of a database; an index with its
// text, since a table's text may be that of the Flask app.
func parts(ctx context.Context, db *sql.DB) (map[string]string, error) {
	rows, err := db.QueryContext(ctx, `
		SELECT type || ' ' || name, iif(type = 'index', coalesce(sql, ''), '') FROM sqlite_schema
		UNION ALL
		SELECT 'column ' || c.name || ' of the table ' || t.name, '' FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make(map[string]string)
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return nil, err
		}
		found[name] = text
	}
	return found, rows.Err()
}
