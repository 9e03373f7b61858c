package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"userd/internal/safefile"
)

// A resolution says what becomes of users whose names differ only in case,
// which the tutorial allowed and userd does not. The oldest, the one with the
// lowest id, always stays as it is.
type resolution string

const (
	refuse       resolution = ""       // nothing is changed, and they are listed
	resolveByID  resolution = "suffix" // the others' usernames end in -ID, their addresses' local parts in +ID
	removeOthers resolution = "oldest" // the others are deleted
)

// adopt makes a database of the tutorial into userd's, in one transaction, after
// a copy of it. No table is rebuilt: columns are added with constant defaults,
// so that the Flask app can still use the file, and what other tables hold
// stays. say is told what happens.
func adopt(ctx context.Context, path string, resolve resolution, say func(text string)) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("adopting %s: %w", path, err)
		}
	}()
	db, err := sql.Open("sqlite", dsn(path, "mode=rw", fmt.Sprintf("_busy_timeout=%d", busyTimeout.Milliseconds()), "_synchronous=FULL", "_txlock=immediate"))
	if err != nil {
		return err
	}
	defer db.Close()
	// From here on nobody else writes, so that the copy is the last of the old.
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var owner, users int
	if err := tx.QueryRowContext(ctx, `SELECT application_id, (SELECT count(*) FROM user) FROM pragma_application_id`).Scan(&owner, &users); err != nil {
		return err
	}
	if owner == applicationID {
		return nil // another userd was a moment faster
	}
	// For the search alone: the indexes of the same names are made below.
	if err := execTx(ctx, tx, `
		CREATE TEMP TABLE twin AS
			SELECT user.id, 'username' AS field, user.username AS value, first.id AS first FROM user JOIN (
				SELECT min(id) AS id, username FROM user GROUP BY username COLLATE NOCASE HAVING count(*) > 1
			) AS first ON user.username = first.username COLLATE NOCASE
			UNION ALL
			SELECT user.id, 'email', user.email, first.id FROM user JOIN (
				SELECT min(id) AS id, email FROM user GROUP BY email COLLATE NOCASE HAVING count(*) > 1
			) AS first ON user.email = first.email COLLATE NOCASE`); err != nil {
		return err
	}
	var twins int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM temp.twin`).Scan(&twins); err != nil {
		return err
	}
	if twins > 0 && resolve == refuse {
		return listTwins(ctx, tx)
	}

	backup, err := copyBefore(ctx, db, path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && backup != "" {
			os.Remove(backup) // or each start that fails would leave one
		}
	}()
	say(fmt.Sprintf("copied the database of the Flask app to %s", backup))
	say(fmt.Sprintf("upgrading the database, %d users", users))
	switch resolve {
	case resolveByID:
		err = execTx(ctx, tx, `
			UPDATE user SET username = username || '-' || id
			WHERE id IN (SELECT id FROM temp.twin WHERE field = 'username' AND id <> first);
			UPDATE user SET email = substr(email, 1, instr(email, '@') - 1) || '+' || id || substr(email, instr(email, '@'))
			WHERE id IN (SELECT id FROM temp.twin WHERE field = 'email' AND id <> first) AND instr(email, '@') > 0;
			UPDATE user SET email = email || '+' || id
			WHERE id IN (SELECT id FROM temp.twin WHERE field = 'email' AND id <> first) AND instr(email, '@') = 0`)
	case removeOthers:
		err = execTx(ctx, tx, `DELETE FROM user WHERE id IN (SELECT id FROM temp.twin WHERE id <> first)`)
	}
	if isDuplicate(err) {
		return errors.New("somebody has the name that a suffix would give already: rename one of them in the Flask app")
	}
	if err != nil {
		return err
	}
	script := addColumns + restOfSchema + fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = 1", applicationID)
	if err := execTx(ctx, tx, script); err != nil {
		return err
	}
	// It holds the signing key from now on. Flask's process, of the same user,
	// still reads it.
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	backup = "" // kept from here on: after a commit that fails the file may be the new one
	if err := tx.Commit(); err != nil {
		return err
	}
	say("the database is upgraded")
	return nil
}

func execTx(ctx context.Context, tx *sql.Tx, query string) error {
	_, err := tx.ExecContext(ctx, query)
	return err
}

// listTwins returns an error that names the users whose names differ only in
// case, and says what to do.
func listTwins(ctx context.Context, tx *sql.Tx) error {
	const most = 100
	rows, err := tx.QueryContext(ctx, `SELECT field, value, id FROM temp.twin ORDER BY field DESC, value COLLATE NOCASE, id LIMIT ?`, most+1)
	if err != nil {
		return err
	}
	defer rows.Close()
	var text strings.Builder
	text.WriteString("some users differ only in the case of a name, which userd takes for the same:")
	n := 0
	for rows.Next() {
		var field, value string
		var id int64
		if err := rows.Scan(&field, &value, &id); err != nil {
			return err
		}
		if n++; n > most {
			text.WriteString("\n\t…")
			break
		}
		fmt.Fprintf(&text, "\n\t%s %q, id %d", field, value, id)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	text.WriteString("\nNothing was changed. Rename them in the Flask app, or let userd do it: userd adopt -resolve suffix renames all but the oldest " +
		"to NAME-ID and LOCAL+ID@HOST; userd adopt -resolve oldest deletes all but the oldest.")
	return errors.New(text.String())
}

// copyBefore writes a consistent copy of the database beside it, over no other
// file, and returns its path.
func copyBefore(ctx context.Context, db *sql.DB, path string) (string, error) {
	backup := safefile.TimestampedName(path, "before-userd", time.Now())
	part, err := copyToTemp(ctx, db, path)
	if err == nil {
		defer part.file.Discard()
		err = part.file.Publish(backup)
	}
	if err != nil {
		return "", fmt.Errorf("copying it to %s: %w", backup, err)
	}
	return backup, nil
}
