package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

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
		_, err = tx.ExecContext(ctx, e.query, e.args.list()...)
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
