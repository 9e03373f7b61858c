package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"userd/internal/safefile"
	"userd/internal/sqlitefile"
	"userd/internal/terminal"
)

// A resolution says what adopt does with users whose names differ only in case,
// which the tutorial allowed and userd does not.
type resolution string

const (
	refuse      resolution = ""       // change nothing, and list them
	resolveByID resolution = "suffix" // rename all but the oldest, which has the lowest id: see renameDuplicates
)

// adopt upgrades a database of the tutorial to one of userd, in one transaction, after
// writing a copy of it. It rebuilds no table. It adds columns with constant defaults, so
// that the Flask app can still use the file and loses no rows of its other tables. It
// reports its steps to say, and the progress of the copy to p.
func adopt(ctx context.Context, path string, resolve resolution, say func(text string), p *terminal.Progress) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("adopting %s: %w", path, err)
		}
	}()
	target, err := checkWritable(path)
	if err != nil {
		return err
	}
	// Before SQLite opens the file, and closed after it: closing a descriptor drops locks.
	file, err := safefile.Open(target)
	if err != nil {
		return err
	}
	defer file.Close()
	db, err := sql.Open("sqlite", sqlitefile.DSN(path, "mode=rw", fmt.Sprintf("_busy_timeout=%d", busyTimeout.Milliseconds()), "_synchronous=FULL", "_txlock=immediate"))
	if err != nil {
		return err
	}
	defer db.Close()
	// This takes the write lock, so that the copy holds everything that others wrote.
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
		return nil // another process has adopted it meanwhile
	}
	if err := refuseHooks(ctx, tx); err != nil { // made since inspect
		return err
	}
	duplicates, err := findDuplicates(ctx, tx)
	if err == nil && duplicates > 0 {
		err = refuseDuplicates(ctx, tx, resolve)
	}
	if err != nil {
		return err
	}
	backup, err := copyBefore(ctx, db, path, p)
	if err != nil {
		return err
	}
	say(fmt.Sprintf("copied the database of the Flask app to %s", backup))
	say("upgrading the database, " + plural(users, "user"))
	if err := upgradeTutorial(ctx, tx, file, say); err != nil {
		os.Remove(backup) // otherwise each start that fails would leave one
		return err
	}
	// After a commit that fails, the file may still be the new one: the copy stays.
	if err = tx.Commit(); err == nil {
		say("the database is upgraded")
	}
	return err
}

// textColumns converts numbers and bytes to text. An app that does not decode a hash stores
// it as bytes. userd compares text, and SQLite never considers a BLOB equal to text.
const textColumns = `
	UPDATE user SET username = CAST(username AS TEXT), email = CAST(email AS TEXT), password_hash = CAST(password_hash AS TEXT)
	WHERE typeof(username) <> 'text' OR typeof(email) <> 'text' OR typeof(password_hash) <> 'text';`

// upgradeTutorial renames duplicates and records that as events, converts BLOBs to text,
// adds userd's columns and tables, and makes the file private.
func upgradeTutorial(ctx context.Context, tx *sql.Tx, file *os.File, say func(text string)) error {
	columns, err := sqlitefile.Columns(ctx, tx, "user")
	if err != nil {
		return err
	}
	before, after, taken := takeTimes(columns)
	if len(taken) > 0 {
		say("the Flask app can no longer use these columns, which userd takes over: " + strings.Join(taken, ", "))
	}
	if err = renameDuplicates(ctx, tx, say); err == nil {
		err = execTx(ctx, tx, textColumns+before+addColumns+after+restOfSchema+strings.Join(migrations[1:], "")+
			fmt.Sprintf("%s; PRAGMA user_version = %d", markOwner, len(migrations)))
	}
	if err == nil { // only now the table of events exists
		_, err = tx.ExecContext(ctx, renameEvents, userChanged, console.address, time.Now().Unix())
	}
	if sqlitefile.IsDuplicate(err) { // by the tutorial's constraints, or by userd's indexes if the case differs
		return errors.New("a user already has the name that -resolve suffix would give to another; rename one of them in the Flask app")
	}
	if err != nil {
		return err
	}
	// From now on the file holds the signing key. The Flask app can still read it as the same
	// user. By descriptor, because another file could have its name by now.
	return file.Chmod(0o600)
}

func execTx(ctx context.Context, tx *sql.Tx, query string) error {
	_, err := tx.ExecContext(ctx, query)
	return err
}

// findDuplicates fills the temporary table duplicate, and returns the number of
// its rows: one for each username or e-mail address that differs from another
// user's only in case, with the oldest of these users.
func findDuplicates(ctx context.Context, tx *sql.Tx) (n int, err error) {
	// A join, because the unique indexes on these columns do not exist yet. As text,
	// because textColumns comes later.
	err = execTx(ctx, tx, `
		CREATE TEMP TABLE duplicate AS
			WITH names AS MATERIALIZED (SELECT id, CAST(username AS TEXT) AS username, CAST(email AS TEXT) AS email FROM main.user)
			SELECT names.id, 'username' AS field, names.username AS value, oldest.id AS oldest FROM names JOIN (
				SELECT min(id) AS id, username FROM names GROUP BY username COLLATE NOCASE HAVING count(*) > 1
			) AS oldest ON names.username = oldest.username COLLATE NOCASE
			UNION ALL
			SELECT names.id, 'email', names.email, oldest.id FROM names JOIN (
				SELECT min(id) AS id, email FROM names GROUP BY email COLLATE NOCASE HAVING count(*) > 1
			) AS oldest ON names.email = oldest.email COLLATE NOCASE`)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `SELECT count(*) FROM temp.duplicate`).Scan(&n)
	return n, err
}

// renameDuplicates renames all but the oldest of the users that findDuplicates found: their
// usernames become NAME-ID and their addresses LOCAL+ID@HOST. It reports each change to say.
func renameDuplicates(ctx context.Context, tx *sql.Tx, say func(text string)) error {
	err := execTx(ctx, tx, `
		UPDATE user SET username = username || '-' || id
		WHERE id IN (SELECT id FROM temp.duplicate WHERE field = 'username' AND id <> oldest);
		UPDATE user SET email = substr(email, 1, instr(email, '@') - 1) || '+' || id || substr(email, instr(email, '@'))
		WHERE id IN (SELECT id FROM temp.duplicate WHERE field = 'email' AND id <> oldest) AND instr(email, '@') > 0;
		UPDATE user SET email = email || '+' || id
		WHERE id IN (SELECT id FROM temp.duplicate WHERE field = 'email' AND id <> oldest) AND instr(email, '@') = 0`)
	if err != nil {
		return err
	}
	var field, before, after string
	var id int64
	return sqlitefile.Scan(ctx, tx, `
		SELECT field, value, user.id, iif(field = 'email', email, username)
		FROM temp.duplicate JOIN user ON user.id = duplicate.id
		WHERE user.id <> oldest ORDER BY user.id, field DESC`,
		[]any{&field, &before, &id, &after}, func() {
			say(fmt.Sprintf("changed the %s of user %d from %q to %q", field, id, before, after))
		})
}

// renameEvents records an event for each user that renameDuplicates renamed.
const renameEvents = intoEvent + `
	SELECT ?3, ?1, 0, id, 0, ?2, group_concat(field, ',' ORDER BY field DESC)
	FROM temp.duplicate WHERE id <> oldest GROUP BY id ORDER BY id`

// refuseDuplicates returns an error unless resolve is resolveByID and no duplicate is empty:
// a rename would make a name or an address of an empty one.
func refuseDuplicates(ctx context.Context, tx *sql.Tx, resolve resolution) error {
	if resolve == refuse {
		return listDuplicates(ctx, tx)
	}
	var empty string
	err := tx.QueryRowContext(ctx, `
		SELECT coalesce(group_concat(field || ' of user ' || id, ', '), '')
		FROM (SELECT field, id FROM temp.duplicate WHERE trim(value) = '' ORDER BY field DESC, id LIMIT 100)`).Scan(&empty)
	if err == nil && empty != "" {
		err = fmt.Errorf("only one user can have an empty username or email; give the others one in the Flask app: %s", empty)
	}
	return err
}

// listDuplicates returns an error that lists what findDuplicates found, 100 at
// most, and says what to do.
func listDuplicates(ctx context.Context, tx *sql.Tx) error {
	const most = 100
	rows, err := tx.QueryContext(ctx, `SELECT field, value, id FROM temp.duplicate ORDER BY field DESC, value COLLATE NOCASE, id LIMIT ?`, most+1)
	if err != nil {
		return err
	}
	defer rows.Close()
	var text strings.Builder
	text.WriteString("some usernames or e-mail addresses differ only in case, and userd ignores case:")
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
	text.WriteString("\nNothing was changed. Rename them in the Flask app, or run userd adopt -resolve suffix, " +
		"which renames all but the oldest to NAME-ID and LOCAL+ID@HOST.")
	return errors.New(text.String())
}

// copyBefore writes a consistent copy of the database to a new file next to it,
// and returns the path of the copy.
func copyBefore(ctx context.Context, db *sql.DB, path string, p *terminal.Progress) (string, error) {
	backup := safefile.TimestampedName(path, "before-userd", time.Now())
	copied, err := copyToTemp(ctx, db, path, p)
	if err == nil {
		defer copied.file.Discard()
		err = safefile.ChownLike(copied.file.File, path) // root adopts for the server's user
	}
	if err == nil {
		err = copied.file.Publish(filepath.Base(backup))
	}
	if err != nil {
		return "", fmt.Errorf("copying it to %s: %w", backup, err)
	}
	return backup, nil
}

var errOtherProgram = errors.New("this is another program's database")

// checkTutorial returns an error unless the Flask tutorial's app wrote the database at
// path and userd can adopt it. The database may have more columns and tables than the
// tutorial's. The error says what checkTutorial found, and what to do.
func checkTutorial(ctx context.Context, db *sql.DB, path string) error {
	columns, err := sqlitefile.Columns(ctx, db, "user")
	if err != nil {
		return err
	}
	if err = checkTutorialColumns(ctx, db, columns); err == nil {
		err = checkTutorialUsers(ctx, db)
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, exportAdvice(columns, path))
	}
	if err := refuseHooks(ctx, db); err != nil {
		return err
	}
	ours := make(map[string]bool)
	for _, match := range createAny.FindAllStringSubmatch(strings.Join(migrations[1:], "")+restOfSchema, -1) {
		ours[match[1]] = true
	}
	var taken []string
	var name string
	err = sqlitefile.Scan(ctx, db, `SELECT name FROM sqlite_schema`, []any{&name}, func() {
		if ours[strings.ToLower(name)] { // SQLite ignores the case of names
			taken = append(taken, name)
		}
	})
	if err == nil && len(taken) > 0 {
		err = fmt.Errorf("userd needs the names %s, which existing tables or indexes have: rename them", strings.Join(taken, ", "))
	}
	return err
}

// checkTutorialColumns returns an error unless the table user has the tutorial's four
// columns. It also returns an error for any other column whose name userd needs, whose
// times it cannot convert, or for which it has no value.
func checkTutorialColumns(ctx context.Context, db sqlitefile.Querier, columns []sqlitefile.Column) error {
	missing := []string{"id", "username", "email", "password_hash"}
	var faults []string
	for _, c := range columns {
		if !strings.EqualFold(c.Table, "user") {
			continue
		}
		name := strings.ToLower(c.Name)
		i := slices.Index(missing, name)
		switch {
		case name == "id" && !c.RowID: // the column can hold values that are not integers
		case i >= 0 && name != "id" && !sqlitefile.KeepsText(c.Declared):
			faults = append(faults, fmt.Sprintf("the column %s is declared as %s, so SQLite stores digits as numbers: declare it as TEXT", c.Name, c.Declared))
			missing = slices.Delete(missing, i, i+1)
		case i >= 0:
			missing = slices.Delete(missing, i, i+1)
		case slices.Contains(takenTimes, name):
			fault, err := checkTimes(ctx, db, name)
			if err != nil {
				return err
			}
			if fault != "" {
				faults = append(faults, fault)
			}
		case strings.Contains(strings.Join(migrations, ""), "ALTER TABLE user ADD COLUMN "+name+" "):
			faults = append(faults, fmt.Sprintf("userd needs the name of the column %s of the table user: rename the column", c.Name))
		case c.Required:
			faults = append(faults, fmt.Sprintf("userd cannot fill the column %s of the table user, which must not be NULL: give it a default", c.Name))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: userd adopts a table user with the columns id (INTEGER PRIMARY KEY), username, email and password_hash, and found %s", errOtherProgram, sqlitefile.Describe(columns))
	}
	if len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

// takenTimes are columns that many apps add to the tutorial's, and whose names userd needs.
// If they hold dates, userd replaces them by its own columns, with the same times in Unix
// seconds.
var takenTimes = []string{"created_at", "updated_at"}

// unixSeconds returns the SQL that converts a time of an app to Unix seconds: 0 for NULL,
// and NULL for a value that is not a date between 1970 and 9999. Only constants of userd
// may be column, because it becomes part of the SQL.
func unixSeconds(column string) string {
	return strings.ReplaceAll(`(SELECT iif(s BETWEEN 0 AND 253402300799, s, NULL) FROM (SELECT CASE typeof(@)
		WHEN 'null' THEN 0
		WHEN 'text' THEN iif(@ GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*', unixepoch(@), NULL)
		WHEN 'blob' THEN NULL
		ELSE CAST(@ AS INTEGER) END AS s))`, "@", column)
}

// checkTimes returns why userd cannot take over a column of times, or "".
func checkTimes(ctx context.Context, db sqlitefile.Querier, column string) (fault string, err error) {
	var id int64
	var value string
	err = sqlitefile.Scan(ctx, db, `SELECT id, substr(quote(`+column+`), 1, 40) FROM user WHERE `+unixSeconds(column)+` IS NULL ORDER BY id DESC`,
		[]any{&id, &value}, func() {
			fault = fmt.Sprintf("the column %s holds %s for user %d, which is not a date since 1970: rename the column", column, value, id)
		})
	var index string
	if err == nil && fault == "" {
		err = sqlitefile.Scan(ctx, db, `SELECT i.name FROM pragma_index_list('user') AS i JOIN pragma_index_info(i.name) AS c WHERE lower(c.name) = '`+column+`'`,
			[]any{&index}, func() {
				fault = fmt.Sprintf("userd takes over the column %s, but the index %q uses it: drop the index", column, index)
			})
	}
	return fault, err
}

// takeTimes returns the statements that replace takenTimes by userd's columns, before and
// after userd's columns are added, and the names of the replaced columns. The app can no
// longer read these.
func takeTimes(columns []sqlitefile.Column) (before, after string, taken []string) {
	for _, column := range takenTimes {
		if sqlitefile.Find(columns, "user", column) != "" {
			old := "taken_" + column
			before += `ALTER TABLE user RENAME COLUMN ` + column + ` TO ` + old + `;`
			after += `UPDATE user SET ` + column + ` = ` + unixSeconds(old) + `; ALTER TABLE user DROP COLUMN ` + old + `;`
			taken = append(taken, column)
		}
	}
	return before, after, taken
}

// checkTutorialUsers returns an error that names the users that userd cannot keep, ten at
// most. userd requires a valid id, and text in the three columns. It also accepts bytes
// that are valid UTF-8, because adopt converts them to text.
func checkTutorialUsers(ctx context.Context, db sqlitefile.Querier) error {
	const most = 10
	var faults []string
	n := 0
	var id int64
	columns := []string{"username", "email", "password_hash"}
	isNull, texts := make([]bool, 3), make([][]byte, 3)
	err := sqlitefile.Scan(ctx, db, `
		SELECT id,
			username IS NULL, email IS NULL, password_hash IS NULL,
			CAST(username AS BLOB), CAST(email AS BLOB), CAST(password_hash AS BLOB)
		FROM user ORDER BY id`,
		[]any{&id, &isNull[0], &isNull[1], &isNull[2], &texts[0], &texts[1], &texts[2]}, func() {
			var wrong []string
			if id < 1 || id > maxID {
				wrong = append(wrong, fmt.Sprintf("an id outside 1 to %d", int64(maxID)))
			}
			for i, column := range columns {
				switch {
				case isNull[i]:
					wrong = append(wrong, "no "+column)
				case !utf8.Valid(texts[i]) || bytes.IndexByte(texts[i], 0) >= 0:
					wrong = append(wrong, "bytes in "+column+" that are not UTF-8 text")
				}
			}
			if len(wrong) > 0 {
				if n++; n <= most {
					faults = append(faults, fmt.Sprintf("user %d has %s", id, strings.Join(wrong, " and ")))
				}
			}
		})
	if n > most {
		faults = append(faults, fmt.Sprintf("and %d more", n-most))
	}
	if err == nil && n > 0 {
		err = fmt.Errorf("correct or delete these users first: %s", strings.Join(faults, ", "))
	}
	return err
}

// exportAdvice returns how to export the first table that looks like a table of users to a
// CSV file for user import, or "" if there is none. Each name in the SQL consists only of
// word characters.
func exportAdvice(columns []sqlitefile.Column, path string) string {
	for i, c := range columns {
		if i > 0 && columns[i-1].Table == c.Table || !regexp.MustCompile(`^\w+$`).MatchString(c.Table) {
			continue
		}
		column := func(names ...string) string { return sqlitefile.Find(columns, c.Table, names...) }
		username := column("username", "user_name", "login", "name")
		email := column("email", "email_address", "mail")
		hash := column("password_hash", "hashed_password", "pw_hash", "password")
		if username == "" || email == "" || hash == "" {
			continue
		}
		fields := []string{username + " AS username", email + " AS email", "CAST(" + hash + " AS TEXT) AS password_hash"}
		if slices.ContainsFunc(columns, func(o sqlitefile.Column) bool {
			return o.Table == c.Table && o.RowID && strings.EqualFold(o.Name, "id")
		}) {
			fields = append(fields, "id")
		}
		for _, name := range takenTimes {
			if column(name) != "" {
				fields = append(fields, name)
			}
		}
		if name := column("is_admin", "role"); name != "" {
			fields = append(fields, "iif("+name+" IN (1, 'admin'), 'admin', 'member') AS role")
		}
		if name := column("disabled"); name != "" {
			fields = append(fields, "iif("+name+", 'true', 'false') AS disabled")
		} else if name := column("is_active", "active"); name != "" {
			fields = append(fields, "iif("+name+" = 0, 'true', 'false') AS disabled")
		}
		return fmt.Sprintf(`; to import its users into a new database instead: sqlite3 -csv -header '%s' "SELECT %s FROM %s" >users.csv, then userd user import -database new.db users.csv`,
			strings.ReplaceAll(path, "'", `'\''`), strings.Join(fields, ", "), c.Table)
	}
	return ""
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
