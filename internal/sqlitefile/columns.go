package sqlitefile

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"userd/internal/terminal"
)

// A Column is a column of a table that another program may have made.
type Column struct {
	Table, Name string
	Declared    string // its type, as it is written in the table's SQL
	Required    bool   // NOT NULL without a default
	RowID       bool   // SQLite uses it as the row's id
}

// Columns returns the columns of every table in their order: first those of the table with
// the name first, in any case, then those of the other tables by their names.
func Columns(ctx context.Context, db Querier, first string) (all []Column, err error) {
	var c Column
	rows, err := db.QueryContext(ctx, `
		SELECT t.name, c.name, c.type, c."notnull" AND c.dflt_value IS NULL,
			c.pk = 1 AND upper(c.type) = 'INTEGER' AND 1 = (SELECT count(*) FROM pragma_table_info(t.name) WHERE pk > 0)
		FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
		WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite!_%' ESCAPE '!'
		ORDER BY t.name <> ? COLLATE NOCASE, t.name, c.cid`, first)
	if err != nil {
		return nil, err
	}
	err = ScanRows(rows, []any{&c.Table, &c.Name, &c.Declared, &c.Required, &c.RowID}, func() { all = append(all, c) })
	return all, err
}

// Find returns the first of the names that a column of the table has, or "".
func Find(columns []Column, table string, names ...string) string {
	for _, name := range names {
		if slices.ContainsFunc(columns, func(c Column) bool {
			return strings.EqualFold(c.Table, table) && strings.EqualFold(c.Name, name)
		}) {
			return name
		}
	}
	return ""
}

// KeepsText reports whether a column of a declared type stores every text as it is.
// https://www.sqlite.org/datatype3.html#determination_of_column_affinity
func KeepsText(declared string) bool {
	declared = strings.ToUpper(declared)
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(declared, word) })
	}
	return !has("INT") && (declared == "" || has("CHAR", "CLOB", "TEXT", "BLOB"))
}

// Describe lists tables with their columns, in about 500 bytes at most.
func Describe(columns []Column) string {
	var text strings.Builder
	for i, c := range columns {
		if text.Len() > 400 {
			text.WriteString(", …")
			break
		}
		switch {
		case i == 0:
			fmt.Fprintf(&text, "%q (", c.Table)
		case columns[i-1].Table != c.Table:
			fmt.Fprintf(&text, "), %q (", c.Table)
		default:
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%.60s", strings.TrimSpace(c.Name+" "+c.Declared))
	}
	if len(columns) == 0 {
		return "no table"
	}
	return terminal.Printable(text.String()) + ")"
}
