package main

import (
	"bytes"
	"context"
	"database/sql"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"userd/internal/passhash"
	"userd/internal/sqlitefile"
)

// applicationID marks a database as userd's in its header ("user" in ASCII).
const applicationID = 0x75736572

// markOwner writes applicationID.
var markOwner = fmt.Sprintf("PRAGMA application_id = %d", applicationID)

// migrations upgrade an empty database to the current schema, one transaction each; PRAGMA
// user_version counts them. They add tables, indexes, and columns with constant defaults. They never
// rebuild a table: that would empty tables that cascade from it. The fourth drops a table to which
// no other table refers.
var migrations = sqlitefile.Migrations{
	tutorialTable + addColumns + restOfSchema,
	eventTables,
	addAuthStamp,
	linkTable,
	addRekeying,
	addGraceUses,
	signerTable,
	codeTables,
	mailTables,
	keyTables,
	factorTables,
	mailStateIndex,
}

// The scripts of the migrations. The first migration has three parts, because a database of the
// tutorial already has the first of them (adopt.go).
var (
	//go:embed assets/schema/01a_tutorial.sql
	tutorialTable string
	//go:embed assets/schema/01b_columns.sql
	addColumns string
	//go:embed assets/schema/01c_rest.sql
	restOfSchema string
	//go:embed assets/schema/02_events.sql
	eventTables string
	//go:embed assets/schema/03_auth_stamp.sql
	addAuthStamp string
	//go:embed assets/schema/04_links.sql
	linkTable string
	//go:embed assets/schema/05_rekeying.sql
	addRekeying string
	//go:embed assets/schema/06_grace_uses.sql
	addGraceUses string
	//go:embed assets/schema/07_signer.sql
	signerTable string
	//go:embed assets/schema/08_codes.sql
	codeTables string
	//go:embed assets/schema/09_mail.sql
	mailTables string
	//go:embed assets/schema/10_keys.sql
	keyTables string
	//go:embed assets/schema/11_factors.sql
	factorTables string
	//go:embed assets/schema/12_mail_state.sql
	mailStateIndex string
)

// maxID is the highest id that an imported or adopted user may have. JavaScript rounds
// integers from 2^53 on, and the ids of later users, which are higher, must stay below.
const maxID = 1<<52 - 1

// findHooks returns the triggers and views whose SQL mentions a table of userd, in any version.
func findHooks(ctx context.Context, db sqlitefile.Querier) (hooks []string, err error) {
	return sqlitefile.Hooks(ctx, db, migrations.AllTables())
}

// refuseHooks returns an error that names what findHooks finds, if anything. A trigger
// could make any user an admin, within a write of userd.
func refuseHooks(ctx context.Context, db sqlitefile.Querier) error {
	hooks, err := findHooks(ctx, db)
	if err == nil && len(hooks) > 0 {
		err = fmt.Errorf("userd refuses triggers and views that use its tables, and found %s: find out what they do, then drop them with sqlite3", strings.Join(hooks, ", "))
	}
	return err
}

// eachHash calls f with the id of each user, and whether the password hash is text of a
// format that passhash knows, or that of a service user. It reads the whole table.
func eachHash(ctx context.Context, db *sql.DB, f func(id int64, known bool)) error {
	var id int64
	var hash string
	return sqlitefile.Scan(ctx, db, `SELECT id, iif(typeof(password_hash) = 'text', password_hash, '') FROM user ORDER BY id`, []any{&id, &hash}, func() {
		f(id, passhash.Known(hash) || hash == serviceHash)
	})
}

// userTables are the tables whose rows a deletion of their user deletes: see deleteUser. The
// column user_id is 0 in a code without a user. The outbox is not among them: userd may look up
// the user of a mail just before the deletion.
var userTables = []string{"session", "user_code", "user_key", "user_totp", "user_totp_pending", "user_recovery_code"}

// rulesOf returns the rules for a database of a schema version.
func rulesOf(version int) []string {
	all := slices.Clone(rules)
	for _, table := range migrations[:version].Tables() {
		if slices.Contains(userTables, table) {
			all = append(all, `SELECT DISTINCT 'table `+table+` has rows of user ' || user_id || ', which does not exist'
				FROM `+table+` WHERE user_id <> 0 AND user_id NOT IN (SELECT id FROM user)`)
		}
	}
	return all
}

// rules are queries for faults that no write of userd causes. Each row of a result
// is a finding. They use only tables of the first migration.
var rules = []string{
	`SELECT 'the counter of user ids is missing' WHERE NOT EXISTS (SELECT 1 FROM counter)`,
	`SELECT 'the counter of user ids is at ' || user_id || ', but user ' || (SELECT max(id) FROM user) || ' exists'
	FROM counter WHERE user_id < (SELECT max(id) FROM user)`,
	`SELECT 'user ' || id || ' has the unknown role ' || quote(role) FROM user WHERE role NOT IN ('member', 'admin')`,
	`SELECT 'user ' || id || ' has ' || quote(disabled) || ' instead of 0 or 1 in disabled' FROM user WHERE disabled NOT IN (0, 1)`,
	`SELECT 'signing key ' || kid || ' has ' || length(secret) || ' bytes instead of at least 32' FROM signing_key WHERE length(secret) < 32`,
}

// selectTotals counts the admins that can log in. In a database that is older than the column
// pending, the name means the 0 of the outer query.
const selectTotals = `
	SELECT
		(SELECT count(*) FROM user),
		(SELECT count(*) FROM session),
		(SELECT count(*) FROM user WHERE role = 'admin' AND disabled = 0 AND pending = 0),
		(SELECT count(*) FROM signing_key WHERE retired_at = 0)
	FROM (SELECT 0 AS pending)`

// An examination is the result of one check. It counts only active admins and keys.
type examination struct {
	findings                      []string
	users, sessions, admins, keys int
	dataKey                       []byte           // of the database; nil: none
	sealed                        map[string]int64 // the number of TOTP secrets by the name of the key that sealed them
}

// examine checks a database by SQLite's rules and by userd's. If the file is
// quiet (see sqlitefile.IsQuiet), the result is valid only if it is still quiet afterwards.
// examine calls step before each step, with the number of users that it will check (0:
// unknown), and show with the number of users checked so far.
func examine(ctx context.Context, path string, step func(what string, users int64), show func(n int, done int64)) (x examination, quiet bool, err error) {
	db, quiet, err := sqlitefile.OpenToRead(path)
	if err != nil {
		return x, quiet, err
	}
	defer db.Close()
	if err = x.run(ctx, db, step, show); sqlitefile.IsDamaged(err) {
		if !slices.Contains(x.findings, err.Error()) { // checkIntegrity may have found it
			x.findings = append(x.findings, err.Error())
		}
		err = nil
	}
	return x, quiet, err
}

func (x *examination) run(ctx context.Context, db *sql.DB, step func(what string, users int64), show func(n int, done int64)) (err error) {
	step("checking the pages", 0)
	if x.findings, err = sqlitefile.Check(ctx, db, migrations, "userd", rulesOf); err != nil {
		return err
	}
	var users int64
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM user`).Scan(&users); err != nil {
		return err
	}
	step("checking users", users)
	n, done := 0, 0
	err = eachHash(ctx, db, func(id int64, known bool) {
		done++
		show(done, int64(done))
		if known {
			return
		}
		if n++; n <= sqlitefile.MostFindings {
			x.findings = append(x.findings, fmt.Sprintf("user %d cannot log in: the format of the password hash is unknown", id))
		}
	})
	if n > sqlitefile.MostFindings {
		x.findings = append(x.findings, sqlitefile.MoreFindings)
	}
	if err != nil {
		return err
	}
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	if slices.Contains(migrations[:version].Tables(), "user_totp") {
		if err := x.readSealKeys(ctx, db); err != nil {
			return err
		}
	}
	return db.QueryRowContext(ctx, selectTotals).Scan(&x.users, &x.sessions, &x.admins, &x.keys)
}

// readSealKeys sets dataKey and sealed.
func (x *examination) readSealKeys(ctx context.Context, db *sql.DB) error {
	var id, key []byte
	var users, first int64
	x.sealed = make(map[string]int64)
	return errors.Join(
		sqlitefile.Scan(ctx, db, selectSealKeys, []any{&id, &users, &first}, func() { x.sealed[string(id)] += users }),
		sqlitefile.Scan(ctx, db, `SELECT value FROM secret WHERE name = '`+dataSecret+`'`, []any{&key}, func() { x.dataKey = key }))
}

// unreadable returns the number of users whose TOTP secret neither these keys nor that of the
// database can open.
func (x *examination) unreadable(keys *dataKeys) (users int64, err error) {
	ring, err := keys.ring(x.dataKey)
	if err != nil {
		return 0, err
	}
	for id, n := range x.sealed {
		if !ring.Has([]byte(id)) {
			users += n
		}
	}
	return users, nil
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
	for _, name := range append(sqlitefile.Migrations{restOfSchema}, migrations[1:]...).Names() {
		ours[name] = true
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
