package sqlitefile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// CheckIntegrity runs SQLite's check, which reads the whole file, and returns its
// findings, none if the file is sound. It stops after about most findings. If SQLite
// fails because the file is damaged, that error is also a finding.
func CheckIntegrity(ctx context.Context, db *sql.DB, most int) (findings []string, err error) {
	findings, err = Findings(ctx, db, fmt.Sprintf(`PRAGMA integrity_check(%d)`, most))
	findings = slices.DeleteFunc(findings, func(line string) bool { // not a finding
		return line == "ok" || strings.HasPrefix(line, "*** in database")
	})
	if IsDamaged(err) {
		findings, err = append(findings, err.Error()), nil
	}
	return findings, err
}

const (
	// MostFindings is the largest number of rows of one rule that a check reports.
	MostFindings = 100
	// MoreFindings is the line after MostFindings rows if there are more.
	MoreFindings = "… and more like this"
)

// Findings returns the lines of a query's first MostFindings rows, and MoreFindings if
// there are more rows. With an error, it returns the lines before the error.
func Findings(ctx context.Context, db *sql.DB, query string) (findings []string, err error) {
	var text string
	n := 0
	err = Scan(ctx, db, query, []any{&text}, func() {
		if n++; n <= MostFindings {
			findings = append(findings, strings.Split(text, "\n")...)
		}
	})
	if n > MostFindings {
		findings = append(findings, MoreFindings)
	}
	return findings, err
}

// Check returns the findings of CheckIntegrity and CompareSchema, the triggers and views that
// use a table of the migrations, and the findings of the rules for the version of the
// database, which are queries. It compares the database with as many of the migrations as have
// run; the version must not be higher than their number. The text says that the database and
// its tables belong to owner. With an error, Check returns the findings before it.
func Check(ctx context.Context, db *sql.DB, migrations Migrations, owner string, rules func(version int) []string) (findings []string, err error) {
	findings, err = CheckIntegrity(ctx, db, MostFindings)
	var version int
	if err == nil {
		err = db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version)
	}
	if err == nil {
		var found []string
		found, err = CompareSchema(ctx, db, migrations[:version], owner)
		findings = append(findings, found...)
	}
	if err == nil {
		var hooks []string
		hooks, err = Hooks(ctx, db, migrations.AllTables())
		for _, hook := range hooks {
			findings = append(findings, hook+" uses a table of "+owner)
		}
	}
	if err != nil {
		return findings, err
	}
	for _, rule := range rules(version) {
		found, err := Findings(ctx, db, rule)
		findings = append(findings, found...)
		if err != nil {
			return findings, err
		}
	}
	return findings, nil
}

// ReadFirstPages reads the first page of each table of a database that has some of the
// migrations, to find gross damage fast. It does so in one transaction, because another process
// may be upgrading the database.
func ReadFirstPages(ctx context.Context, db *sql.DB, migrations Migrations) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	for _, table := range migrations[:min(version, len(migrations))].Tables() {
		rows, err := tx.QueryContext(ctx, "SELECT * FROM "+table+" LIMIT 1")
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

// Hooks returns the triggers and views whose SQL mentions one of the tables. A trigger of
// another table counts too, because a deletion can cascade to that table.
func Hooks(ctx context.Context, db Querier, tables []string) (hooks []string, err error) {
	mention := regexp.MustCompile(`(?i)\b(` + strings.Join(tables, "|") + `)\b`)
	var kind, name, table, text string
	err = Scan(ctx, db, `SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE type IN ('trigger', 'view') ORDER BY name`,
		[]any{&kind, &name, &table, &text}, func() {
			switch {
			case !mention.MatchString(text):
			case kind == "trigger":
				hooks = append(hooks, fmt.Sprintf("trigger %q on table %q", name, table))
			default:
				hooks = append(hooks, fmt.Sprintf("view %q", name))
			}
		})
	return hooks, err
}

// CompareSchema compares a database with the one that scripts make, the model. It returns
// findings for the tables, columns and indexes that the database lacks, for indexes that
// differ from those of the model, which belong to owner in the text, and for values of another
// type than the column has in the model. With an error, it returns the findings before it.
func CompareSchema(ctx context.Context, db *sql.DB, scripts []string, owner string) (findings []string, err error) {
	model, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	defer model.Close()
	model.SetMaxOpenConns(1) // each connection has its own :memory: database
	for _, script := range scripts {
		if _, err := model.ExecContext(ctx, script); err != nil {
			return nil, err
		}
	}
	want, err := schemaOf(ctx, model)
	if err != nil {
		return nil, err
	}
	got, err := schemaOf(ctx, db)
	if err != nil {
		return nil, err
	}
	complete := true
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch text, ok := got[name]; {
		case !ok:
			complete = false
			findings = append(findings, name+" is missing")
		case text != want[name]:
			findings = append(findings, fmt.Sprintf("%s differs from %s's: %s", name, owner, text))
		}
	}
	if !complete { // a query of what is missing would fail
		return findings, nil
	}
	wrong, err := checkTypes(ctx, model, db)
	return append(findings, wrong...), err
}

// checkTypes returns a finding for each row that has a value of another type than the column
// has in model, because SQLite stores values of any type in a column. It reads each table
// once.
func checkTypes(ctx context.Context, model, db *sql.DB) (findings []string, err error) {
	queries, err := Findings(ctx, model, `
		SELECT format('SELECT ''%s '' || %s || '' has '' || concat_ws('' and '', %s) FROM %s WHERE %s',
			"table", key,
			group_concat(format('iif(%s, typeof(%s) || '' instead of %s in %s'', NULL)', wrong, name, type, name), ', '),
			"table", group_concat(wrong, ' OR '))
		FROM (
			SELECT *, format('typeof(%s) NOT IN (''%s'', ''%s'')', name, type, iif(nullable, 'null', type)) AS wrong
			FROM (
				SELECT t.name AS "table", c.name, c."notnull" = 0 AS nullable,
					iif(c.type LIKE 'VARCHAR%', 'text', lower(c.type)) AS type,
					first_value(c.name) OVER (PARTITION BY t.name ORDER BY c.pk = 0, c.pk) AS key
				FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
				WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'))
		GROUP BY "table" ORDER BY "table"`)
	for _, query := range queries {
		var found []string
		if err == nil {
			found, err = Findings(ctx, db, query)
			findings = append(findings, found...)
		}
	}
	return findings, err
}

// schemaOf returns the tables, columns and indexes of a database. The value of an
// index is its SQL. Other values are empty, because tables with the same columns can have
// been made by different statements.
func schemaOf(ctx context.Context, db *sql.DB) (found map[string]string, err error) {
	found = make(map[string]string)
	var name, text string
	err = Scan(ctx, db, `
		SELECT type || ' ' || name, iif(type = 'index', coalesce(sql, ''), '') FROM sqlite_schema
		UNION ALL
		SELECT 'column ' || c.name || ' of table ' || t.name, '' FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'`,
		[]any{&name, &text}, func() { found[name] = text })
	return found, err
}
