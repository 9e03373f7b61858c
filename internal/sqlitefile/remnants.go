package sqlitefile

import (
	"context"
	"encoding/binary"
	"slices"
)

// PagesWithRemnants returns the numbers of the pages for which [EraseRemnants] changes something.
// It reads the whole file.
//
// When SQLite moves rows to other pages, it leaves copies of some in the unused part of a page,
// also with secure_delete. When it deletes the rows, these copies stay.
func PagesWithRemnants(ctx context.Context, db Querier) (pages []int64, err error) {
	// dbstat names the pages of tables and indexes: others can look the same.
	const query = `
		SELECT stat.pageno, page.data FROM dbstat AS stat
		JOIN sqlite_dbpage AS page ON page.pgno = stat.pageno
		WHERE stat.pagetype <> 'overflow'`
	var number int64
	var data []byte
	err = Scan(ctx, db, query, []any{&number, &data}, func() {
		if EraseRemnants(number, data) {
			pages = append(pages, number)
		}
	})
	return pages, err
}

// EraseRemnants overwrites the unused part of a page of a table or index with zeros, and reports
// whether it was different. The page is the one with this number.
// See https://www.sqlite.org/fileformat.html#b_tree_pages.
func EraseRemnants(number int64, page []byte) bool {
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
