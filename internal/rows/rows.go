// Package rows reads the rows of a file that is CSV with a header, NDJSON (one JSON object a
// line) or a JSON array of objects. It needs memory for only one row, whose size is bounded.
//
// The caller says what the columns and the members mean ([Format]), and gets the fields of
// each row by name. A row that the caller does not accept has a problem; the rows after it
// can be read. After an error, the start of the next row is unknown.
package rows

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"userd/internal/setting"
)

// A Format says what the rows of a file may hold.
type Format struct {
	// MaxRow is the largest size of one row in bytes, in every format.
	MaxRow int64
	// Columns returns the name of the field that each column of a CSV file fills, or "" for a
	// column that is ignored. It returns an error if the header is not valid.
	Columns func(header []string) ([]string, error)
	// Object returns the fields of a JSON object, or its problem. The text of the object is
	// valid only until Object returns, and need not be valid JSON.
	Object func(text []byte) (fields map[string]string, problem string)
}

// A Row is one row of a file. An empty row has neither fields nor a problem.
type Row struct {
	Number  int   // of the line in NDJSON, the element in a JSON array, or the record in CSV, whose header is 1
	End     int64 // how many bytes of the file have been parsed, to show the progress
	Fields  map[string]string
	Problem string // a predicate of a sentence about the row
}

// A Reader reads the rows of one file.
type Reader struct {
	next   nextRow
	number int // of the next row
	file   *boundedReader
}

// A nextRow returns the fields of the next row, or its problem, or neither if the row is
// empty. It returns io.EOF after the last row, and any other error if it cannot continue.
type nextRow func() (fields map[string]string, problem string, err error)

// NewReader returns a reader of the rows of a file. A file that begins with a brace is NDJSON,
// and one that begins with a bracket is a JSON array; any other is CSV. NewReader returns an
// error if it cannot read the header of a CSV file, or if f.Columns refuses it. It skips a
// byte-order mark.
func NewReader(in io.Reader, f Format) (*Reader, error) {
	buffered := bufio.NewReaderSize(in, 1<<16)
	if mark, _ := buffered.Peek(len(setting.ByteOrderMark)); string(mark) == setting.ByteOrderMark {
		buffered.Discard(len(mark))
	}
	bounded := &boundedReader{in: buffered, maxRow: f.MaxRow}
	switch firstByte(buffered) {
	case '{':
		return &Reader{ndjsonRows(bounded, f), 1, bounded}, nil
	case '[':
		return &Reader{arrayRows(bounded, f), 1, bounded}, nil
	}
	next, err := csvRows(bounded, f)
	if err != nil {
		return nil, err
	}
	return &Reader{next, 2, bounded}, nil
}

// Next returns the next row. It returns io.EOF after the last row, and any other error if it
// cannot continue; the row then has only its number and its end.
func (r *Reader) Next() (Row, error) {
	fields, problem, err := r.next()
	row := Row{Number: r.number, End: r.file.rowEnd, Fields: fields, Problem: problem}
	r.number++
	return row, err
}

// A boundedReader reads a file whose rows have at most maxRow bytes. The parsers of
// CSV and JSON would hold a row of any length in memory.
type boundedReader struct {
	in     io.Reader
	maxRow int64
	read   int64 // bytes
	rowEnd int64 // the offset of the end of the last row that the parser returned
}

// Read returns an error after maxRow bytes that are not the end of a row.
func (r *boundedReader) Read(p []byte) (int, error) {
	room := r.rowEnd + r.maxRow - r.read
	if room <= 0 {
		return 0, fmt.Errorf("is longer than %d KiB, the maximum of a row", r.maxRow>>10)
	}
	n, err := r.in.Read(p[:min(int64(len(p)), room)])
	r.read += int64(n)
	return n, err
}

// firstByte returns the first byte that is not white space, without consuming any. It
// returns 0 if the buffer or the file has none.
func firstByte(in *bufio.Reader) byte {
	for n := 1; ; n++ {
		text, err := in.Peek(n)
		if err != nil {
			return 0
		}
		if c := text[n-1]; !strings.ContainsRune(" \t\r\n", rune(c)) {
			return c
		}
	}
}

// csvRows reads a CSV file with a header. A row of only commas is empty, whatever their
// number: spreadsheets write such rows.
func csvRows(in *boundedReader, f Format) (nextRow, error) {
	r := csv.NewReader(in)
	header, err := r.Read()
	if err == io.EOF {
		return nil, errors.New("the file is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	r.ReuseRecord = true // from now on: f.Columns may keep the header
	names, err := f.Columns(header)
	if err != nil {
		return nil, err
	}
	for i, column := range header {
		if slices.Contains(header[:i], column) {
			return nil, fmt.Errorf("column %q appears twice", column)
		}
	}
	return func() (map[string]string, string, error) {
		in.rowEnd = r.InputOffset()
		record, err := r.Read()
		wrongCount := errors.Is(err, csv.ErrFieldCount)
		switch {
		case err != nil && !wrongCount:
			return nil, "", err
		case !slices.ContainsFunc(record, func(field string) bool { return strings.TrimSpace(field) != "" }):
			return nil, "", nil
		case wrongCount:
			unit := "fields"
			if len(record) == 1 {
				unit = "field"
			}
			return nil, fmt.Sprintf("has %d %s instead of %d", len(record), unit, len(names)), nil
		}
		fields := make(map[string]string, len(names))
		for i, value := range record {
			if names[i] != "" {
				fields[names[i]] = value
			}
		}
		return fields, "", nil
	}, nil
}

// ndjsonRows reads a file with one JSON object a line.
func ndjsonRows(in *boundedReader, f Format) nextRow {
	lines := bufio.NewReader(in)
	return func() (map[string]string, string, error) {
		line, err := lines.ReadBytes('\n')
		if err != nil && (err != io.EOF || len(line) == 0) {
			return nil, "", err
		}
		in.rowEnd += int64(len(line))
		if line = bytes.TrimSpace(line); len(line) == 0 {
			return nil, "", nil
		}
		fields, problem := f.Object(line)
		return fields, problem, nil
	}
}

// arrayRows reads a file that is one JSON array of objects.
func arrayRows(in *boundedReader, f Format) nextRow {
	d := json.NewDecoder(in)
	d.Token() // the bracket, which NewReader has seen
	return func() (map[string]string, string, error) {
		in.rowEnd = d.InputOffset()
		if !d.More() {
			return nil, "", endOfArray(d)
		}
		var row json.RawMessage
		if err := d.Decode(&row); err != nil {
			return nil, "", err
		}
		fields, problem := f.Object(row)
		return fields, problem, nil
	}
}

// endOfArray returns io.EOF if the array ends here and nothing follows it.
func endOfArray(d *json.Decoder) error {
	if _, err := d.Token(); err == io.EOF {
		return io.ErrUnexpectedEOF
	} else if err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return cmp.Or(err, errors.New("text follows the JSON array"))
	}
	return io.EOF
}

// Bool reads a boolean as programs and databases write it: true, t or 1, or false, f or 0, in
// any case. "" is false. problem says what is wrong with the text, or is "".
func Bool(text string) (value bool, problem string) {
	switch strings.ToLower(text) {
	case "", "false", "f", "0":
		return false, ""
	case "true", "t", "1":
		return true, ""
	}
	return false, "must be true or false"
}

// Time reads a time after 1970 in a format of RFC 3339, Django or PostgreSQL, in UTC if it
// names no zone, and returns it in Unix seconds. "" is 0. problem says what is wrong with the
// text, or is "".
func Time(text string) (unix int64, problem string) {
	if text == "" {
		return 0, ""
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05-07", "2006-01-02 15:04:05"} {
		if t, err := time.Parse(layout, text); err == nil && t.Unix() > 0 {
			return t.Unix(), ""
		}
	}
	return 0, "must be a time such as 2026-01-31T12:00:00Z"
}
