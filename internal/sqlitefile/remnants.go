package sqlitefile

import (
	"context"
	"database/sql"
	"encoding/binary"
	"slices"
)

// Erasure replaces a page of a database file. The page must still be as it was: another process may
// have changed it.
const Erasure = `UPDATE sqlite_dbpage SET data = @erased WHERE pgno = @number AND data = @page`

// A Remnant is a page with copies of deleted rows in its unused part. Page and Erased are the page
// before and after these are overwritten.
type Remnant struct {
	Number       int64
	Page, Erased []byte
}

// EraseRemnants reads the whole file, and calls write for some remnants at a time, until all are
// written. write runs [Erasure] for each. EraseRemnants returns the first error of write.
//
// When SQLite moves rows to other pages, it leaves copies of some in the unused part of a page,
// also with secure_delete. When it deletes the rows, these copies stay.
func EraseRemnants(ctx context.Context, db *sql.DB, write func([]Remnant) error) error {
	pages, err := pagesWithRemnants(ctx, db)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(pages, 64) { // 256 KiB in one write
		var found []Remnant
		for _, number := range some {
			var page []byte
			if err := db.QueryRowContext(ctx, `SELECT data FROM sqlite_dbpage WHERE pgno = ?`, number).Scan(&page); err != nil {
				return err
			}
			erased := slices.Clone(page)
			if eraseUnused(number, erased) {
				found = append(found, Remnant{number, page, erased})
			}
		}
		if len(found) == 0 {
			continue
		}
		if err := write(found); err != nil {
			return err
		}
	}
	return nil
}

// pagesWithRemnants returns the numbers of the pages for which eraseUnused changes something.
func pagesWithRemnants(ctx context.Context, db Querier) (pages []int64, err error) {
	// dbstat names the pages of tables and indexes: others can look the same.
	const query = `
		SELECT stat.pageno, page.data FROM dbstat AS stat
		JOIN sqlite_dbpage AS page ON page.pgno = stat.pageno
		WHERE stat.pagetype <> 'overflow'`
	var number int64
	var data []byte
	err = Scan(ctx, db, query, []any{&number, &data}, func() {
		if eraseUnused(number, data) {
			pages = append(pages, number)
		}
	})
	return pages, err
}

// eraseUnused overwrites the unused part of a page of a table or index with zeros, and reports
// whether it was different. The page is the one with this number.
// See https://www.sqlite.org/fileformat.html#b_tree_pages.
func eraseUnused(number int64, page []byte) bool {
	header := 0
	if number == 1 { // it begins with the header of the file
		header = 100
	}
	if len(page) < header+12 {
		return false
	}
	size := 8
	switch page[header] {
	case 2, 5: // not a leaf
		size = 12
	case 10, 13:
	default:
		return false
	}
	cells := int(binary.BigEndian.Uint16(page[header+3:]))
	from, to := header+size+2*cells, int(binary.BigEndian.Uint16(page[header+5:]))
	if to == 0 {
		to = 1 << 16
	}
	if from > to || to > len(page) {
		return false
	}
	unused := page[from:to]
	rest := unused // without old pointers, which say nothing and are in most pages
	for len(rest) >= 2 && int(binary.BigEndian.Uint16(rest)) < len(page) {
		rest = rest[2:]
	}
	if !slices.ContainsFunc(rest, func(b byte) bool { return b != 0 }) {
		return false
	}
	clear(unused)
	return true
}
