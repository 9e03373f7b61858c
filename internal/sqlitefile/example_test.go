package sqlitefile_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"

	"userd/internal/sqlitefile"
)

func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "pets.db")
	db, err := sql.Open("sqlite", sqlitefile.DSN(path))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = db.ExecContext(ctx, `CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT UNIQUE); INSERT INTO pet VALUES (1, x'00')`)
	fmt.Println(err, db.Close())

	db, _, err = sqlitefile.OpenToRead(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	fmt.Println(sqlitefile.CheckIntegrity(ctx, db, sqlitefile.MostFindings))
	fmt.Println(sqlitefile.CompareSchema(ctx, db, []string{`CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT UNIQUE)`}, "the shelter"))
	// Output:
	// <nil> <nil>
	// [] <nil>
	// [pet 1 has blob instead of text in name] <nil>
}
