package sqlitefile

import (
	"context"
	"database/sql"
)

// A Querier is a pool, a connection or a transaction.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Scan calls f after scanning each row of a query into dest.
func Scan(ctx context.Context, db Querier, query string, dest []any, f func()) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	return ScanRows(rows, dest, f)
}

// ScanRows calls f after scanning each row into dest, and closes the rows.
func ScanRows(rows *sql.Rows, dest []any, f func()) error {
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		f()
	}
	return rows.Err()
}
