package sqlitefile

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Migrations are the scripts that upgrade an empty database to the current schema. PRAGMA
// user_version counts those that have run.
type Migrations []string

var (
	createTable = regexp.MustCompile(`CREATE TABLE (\w+)`)
	dropTable   = regexp.MustCompile(`DROP TABLE (\w+)`)
	createAny   = regexp.MustCompile(`CREATE (?:TABLE|INDEX|UNIQUE INDEX) (\w+)`)
)

// Names returns the tables and indexes that the scripts make, also those that a later one
// drops.
func (m Migrations) Names() []string { return m.find(createAny) }

// AllTables returns the tables that the scripts make, also those that a later one drops.
func (m Migrations) AllTables() []string { return m.find(createTable) }

func (m Migrations) find(pattern *regexp.Regexp) (names []string) {
	for _, match := range pattern.FindAllStringSubmatch(strings.Join(m, ""), -1) {
		names = append(names, match[1])
	}
	return names
}

// Tables returns the tables that the scripts make and do not drop, in their order.
func (m Migrations) Tables() []string {
	dropped := m.find(dropTable)
	return slices.DeleteFunc(m.AllTables(), func(table string) bool { return slices.Contains(dropped, table) })
}

// Run runs the scripts that the database still lacks, each in a transaction that also sets
// PRAGMA application_id to owner.
func (m Migrations) Run(ctx context.Context, conn *sql.Conn, owner int) error {
	for done := false; !done; {
		var err error
		if done, err = m.runOne(ctx, conn, owner); err != nil {
			return fmt.Errorf("upgrading the database: %w", err)
		}
	}
	return nil
}

// runOne runs one script, or returns true if there are none left. It reads the
// version under the write lock, because another process may be opening the same new
// file.
func (m Migrations) runOne(ctx context.Context, conn *sql.Conn, owner int) (done bool, err error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return false, err
	}
	if version >= len(m) {
		return true, nil
	}
	script := m[version] + fmt.Sprintf("; PRAGMA application_id = %d; PRAGMA user_version = %d", owner, version+1)
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return false, fmt.Errorf("migration %d: %w", version+1, err)
	}
	return false, tx.Commit()
}
