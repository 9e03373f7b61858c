package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"userd/internal/safefile"
	"userd/internal/terminal"
)

// A fileKind is what inspect finds at a path.
type fileKind int

const (
	kindNone     fileKind = iota // no file, or an empty one
	kindUserd                    // a database of userd
	kindTutorial                 // a database of the Flask tutorial, which adopt upgrades
)

// inspect returns the kind of the file at a path, or an error if userd must not open
// it. It changes the file only to roll back the transaction of a killed process.
func inspect(ctx context.Context, path string) (fileKind, error) {
	empty, err := inspectFile(path)
	if empty || err != nil {
		return kindNone, err
	}
	if err := checkLogOwners(path); err != nil {
		return kindNone, err
	}
	db, _, err := openToRead(path)
	if err != nil {
		return kindNone, err
	}
	defer func() { db.Close() }()

	const about = `
		SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id AS a, pragma_user_version AS v`
	var owner, version, tables int
	err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	if isUnfinished(err) {
		// A killed process left a rollback journal: SQLite must first undo its transaction.
		db.Close()
		if db, err = sql.Open("sqlite", dsn(path, "mode=rw", "_busy_timeout=5000")); err != nil {
			return kindNone, err
		}
		err = db.QueryRowContext(ctx, about).Scan(&owner, &version, &tables)
	}
	if err != nil {
		return kindNone, fmt.Errorf("reading %s: %w", path, err)
	}
	switch {
	case owner == 0 && version == 0 && tables == 0:
		return kindNone, nil
	case owner == 0 && version == 0:
		if err := checkTutorial(ctx, db, path); err != nil {
			return kindNone, fmt.Errorf("%s: %w", path, err)
		}
		return kindTutorial, nil
	case owner != applicationID:
		return kindNone, fmt.Errorf("%s: %w", path, errOtherProgram)
	case version > len(migrations):
		return kindNone, fmt.Errorf("%s has schema %d, but this userd supports schemas up to %d: use a newer userd", path, version, len(migrations))
	}
	if err := readFirstPages(ctx, db, version); err != nil {
		return kindNone, fmt.Errorf("reading %s: %w", path, err)
	}
	return kindUserd, nil
}

var errOtherProgram = errors.New("this is another program's database")

// inspectFile reports whether the file at a path is empty or does not exist. It
// returns an error if the file cannot be a database.
func inspectFile(path string) (empty bool, err error) {
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing || err == nil && info.Size() == 0 {
		// Flask-SQLAlchemy 3 puts what DATABASE_URL calls app.db under instance/. An
		// empty database next to it would look as if all users were gone.
		instance := filepath.Join(filepath.Dir(path), "instance", filepath.Base(path))
		if _, err := os.Stat(instance); err == nil {
			return false, fmt.Errorf("the database %s does not exist, but %s does: set DATABASE_URL=sqlite:///%s", path, instance, instance)
		}
		// SQLite deletes the log of a database that it creates. This one can hold the
		// latest writes of a database that was moved or deleted.
		if log, err := os.Stat(path + "-wal"); err == nil && log.Size() > 0 {
			return false, fmt.Errorf("the database %s does not exist or is empty, but %[1]s-wal has writes of one: bring the database back next to it, or move %[1]s-wal away", path)
		}
	}
	switch {
	case missing:
		_, err := os.Stat(filepath.Dir(path))
		return true, err
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file", path)
	case info.Size() == 0:
		return true, nil
	case info.Size() < 100: // the size of SQLite's header; SQLite treats one byte as an empty file
		return false, fmt.Errorf("%s is not a database", path)
	}
	return false, nil
}

// checkLogOwners returns an error if the -wal or -journal of a database belongs to a user
// other than the owner of the database, the user of this process, or root. SQLite would
// write its contents into the database, so a user who can only make files in the directory
// could change the database.
func checkLogOwners(path string) error {
	path, err := filepath.EvalSymlinks(path) // SQLite puts the -wal next to a link's target
	if err != nil {
		return err
	}
	file, err := os.Stat(path)
	for _, suffix := range []string{"-wal", "-journal"} {
		if log, missing := os.Lstat(path + suffix); err == nil && missing == nil && !safefile.OwnedBy(log, file) {
			err = fmt.Errorf("%s%s belongs to another user than %[1]s: find out who put it there, and move it away", path, suffix)
		}
	}
	return err
}

// readFirstPages reads the first page of each table of a schema version, to find
// gross damage before any request is served.
func readFirstPages(ctx context.Context, db *sql.DB, version int) error {
	tables := []string{"user", "counter", "session", "signing_key", "secret"}
	if version > 1 {
		tables = append(tables, "event")
	}
	if version > 3 {
		tables = append(tables, "event_link")
	}
	if version > 6 {
		tables = append(tables, "signer")
	}
	if version > 7 {
		tables = append(tables, "user_code", "user_invitation", "page_url")
	}
	for _, table := range tables {
		rows, err := db.QueryContext(ctx, "SELECT * FROM "+table+" LIMIT 1")
		if err == nil {
			for rows.Next() {
			}
			err = errors.Join(rows.Err(), rows.Close())
		}
		if err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
	}
	return nil
}

// openToRead opens a database without changing it. If quiet is true, the results of
// queries are valid only if the database is still quiet after them.
func openToRead(path string) (db *sql.DB, quiet bool, err error) {
	params := []string{"mode=ro", "_busy_timeout=5000"}
	quiet, err = isQuiet(path)
	if err != nil {
		return nil, false, err
	}
	if quiet {
		params = append(params, "immutable=1")
	}
	db, err = sql.Open("sqlite", dsn(path, params...))
	return db, quiet, err
}

// isQuiet reports whether the database is in WAL mode and no process has it open.
// An ordinary reader would leave a -wal and a -shm file next to such a database. A
// reader with immutable=1, which assumes that the file does not change, leaves none.
func isQuiet(path string) (bool, error) {
	path, err := filepath.EvalSymlinks(path) // SQLite puts the -wal next to a link's target
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close() // drops the process's locks on the file: without a -wal it has none
	versions := make([]byte, 2)
	if _, err := f.ReadAt(versions, 18); err != nil && err != io.EOF { // https://www.sqlite.org/fileformat.html#file_format_version_numbers
		return false, err
	}
	return versions[0] == 2 && versions[1] == 2, nil
}

// checkTutorial returns an error unless the Flask tutorial's app wrote the database at
// path and userd can adopt it. The database may have more columns and tables than the
// tutorial's. The error says what checkTutorial found, and what to do.
func checkTutorial(ctx context.Context, db *sql.DB, path string) error {
	columns, err := foreignColumns(ctx, db)
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
	err = scanQuery(ctx, db, `SELECT name FROM sqlite_schema`, []any{&name}, func() {
		if ours[strings.ToLower(name)] { // SQLite ignores the case of names
			taken = append(taken, name)
		}
	})
	if err == nil && len(taken) > 0 {
		err = fmt.Errorf("userd needs the names %s, which existing tables or indexes have: rename them", strings.Join(taken, ", "))
	}
	return err
}

// A foreignColumn is a column of a table that another program made.
type foreignColumn struct {
	table, name, declared string
	required              bool // NOT NULL without a default
	rowID                 bool // SQLite uses it as the row's id
}

// foreignColumns returns the columns of every table, by table and in their order.
func foreignColumns(ctx context.Context, db querier) (all []foreignColumn, err error) {
	var c foreignColumn
	err = scanQuery(ctx, db, `
		SELECT t.name, c.name, c.type, c."notnull" AND c.dflt_value IS NULL,
			c.pk = 1 AND upper(c.type) = 'INTEGER' AND 1 = (SELECT count(*) FROM pragma_table_info(t.name) WHERE pk > 0)
		FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
		WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite!_%' ESCAPE '!'
		ORDER BY lower(t.name) <> 'user', t.name, c.cid`,
		[]any{&c.table, &c.name, &c.declared, &c.required, &c.rowID}, func() { all = append(all, c) })
	return all, err
}

// find returns the first of the names that a column of the table has, or "".
func find(columns []foreignColumn, table string, names ...string) string {
	for _, name := range names {
		if slices.ContainsFunc(columns, func(c foreignColumn) bool {
			return strings.EqualFold(c.table, table) && strings.EqualFold(c.name, name)
		}) {
			return name
		}
	}
	return ""
}

// checkTutorialColumns returns an error unless the table user has the tutorial's four
// columns. It also returns an error for any other column whose name userd needs, whose
// times it cannot convert, or for which it has no value.
func checkTutorialColumns(ctx context.Context, db querier, columns []foreignColumn) error {
	missing := []string{"id", "username", "email", "password_hash"}
	var faults []string
	for _, c := range columns {
		if !strings.EqualFold(c.table, "user") {
			continue
		}
		name := strings.ToLower(c.name)
		i := slices.Index(missing, name)
		switch {
		case name == "id" && !c.rowID: // the column can hold values that are not integers
		case i >= 0 && name != "id" && !keepsText(c.declared):
			faults = append(faults, fmt.Sprintf("the column %s is declared as %s, so SQLite stores digits as numbers: declare it as TEXT", c.name, c.declared))
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
			faults = append(faults, fmt.Sprintf("userd needs the name of the column %s of the table user: rename the column", c.name))
		case c.required:
			faults = append(faults, fmt.Sprintf("userd cannot fill the column %s of the table user, which must not be NULL: give it a default", c.name))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: userd adopts a table user with the columns id (INTEGER PRIMARY KEY), username, email and password_hash, and found %s", errOtherProgram, describe(columns))
	}
	if len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

// keepsText reports whether a column of a declared type stores every text as it is.
// https://www.sqlite.org/datatype3.html#determination_of_column_affinity
func keepsText(declared string) bool {
	declared = strings.ToUpper(declared)
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(declared, word) })
	}
	return !has("INT") && (declared == "" || has("CHAR", "CLOB", "TEXT", "BLOB"))
}

// describe lists tables with their columns, in about 500 bytes at most.
func describe(columns []foreignColumn) string {
	var text strings.Builder
	for i, c := range columns {
		if text.Len() > 400 {
			text.WriteString(", …")
			break
		}
		switch {
		case i == 0:
			fmt.Fprintf(&text, "%q (", c.table)
		case columns[i-1].table != c.table:
			fmt.Fprintf(&text, "), %q (", c.table)
		default:
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%.60s", strings.TrimSpace(c.name+" "+c.declared))
	}
	if len(columns) == 0 {
		return "no table"
	}
	return terminal.Printable(text.String()) + ")"
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
func checkTimes(ctx context.Context, db querier, column string) (fault string, err error) {
	var id int64
	var value string
	err = scanQuery(ctx, db, `SELECT id, substr(quote(`+column+`), 1, 40) FROM user WHERE `+unixSeconds(column)+` IS NULL ORDER BY id DESC`,
		[]any{&id, &value}, func() {
			fault = fmt.Sprintf("the column %s holds %s for user %d, which is not a date since 1970: rename the column", column, value, id)
		})
	var index string
	if err == nil && fault == "" {
		err = scanQuery(ctx, db, `SELECT i.name FROM pragma_index_list('user') AS i JOIN pragma_index_info(i.name) AS c WHERE lower(c.name) = '`+column+`'`,
			[]any{&index}, func() {
				fault = fmt.Sprintf("userd takes over the column %s, but the index %q uses it: drop the index", column, index)
			})
	}
	return fault, err
}

// takeTimes returns the statements that replace takenTimes by userd's columns, before and
// after userd's columns are added, and the names of the replaced columns. The app can no
// longer read these.
func takeTimes(columns []foreignColumn) (before, after string, taken []string) {
	for _, column := range takenTimes {
		if find(columns, "user", column) != "" {
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
func checkTutorialUsers(ctx context.Context, db querier) error {
	const most = 10
	var faults []string
	n := 0
	var id int64
	columns := []string{"username", "email", "password_hash"}
	isNull, texts := make([]bool, 3), make([][]byte, 3)
	err := scanQuery(ctx, db, `
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
func exportAdvice(columns []foreignColumn, path string) string {
	for i, c := range columns {
		if i > 0 && columns[i-1].table == c.table || !regexp.MustCompile(`^\w+$`).MatchString(c.table) {
			continue
		}
		column := func(names ...string) string { return find(columns, c.table, names...) }
		username := column("username", "user_name", "login", "name")
		email := column("email", "email_address", "mail")
		hash := column("password_hash", "hashed_password", "pw_hash", "password")
		if username == "" || email == "" || hash == "" {
			continue
		}
		fields := []string{username + " AS username", email + " AS email", "CAST(" + hash + " AS TEXT) AS password_hash"}
		if slices.ContainsFunc(columns, func(o foreignColumn) bool { return o.table == c.table && o.rowID && strings.EqualFold(o.name, "id") }) {
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
			strings.ReplaceAll(path, "'", `'\''`), strings.Join(fields, ", "), c.table)
	}
	return ""
}
