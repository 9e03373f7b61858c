package main

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

	"userd/internal/passhash"
	"userd/internal/strictjson"
)

// An importRow is one user of an import file.
type importRow struct {
	number   int   // of the line in NDJSON, the element in a JSON array, or the record in CSV, whose header is 1
	end      int64 // how many bytes of the file have been parsed, for the progress
	user     user
	password string // to be hashed; empty if hash is given
	hash     string
}

// djangoColumns maps the columns of Django's table auth_user to the fields of a
// row. Those that map to "" are ignored.
var djangoColumns = map[string]string{
	"id": "id", "username": "username", "email": "email", "password": "password_hash", "date_joined": "created_at", "last_login": "last_login_at",
	"is_superuser": "is_superuser", "is_active": "is_active", "first_name": "", "last_name": "", "is_staff": "",
}

// importFields returns the field that each column of a CSV file fills. If the file has no
// header, the error repeats nothing of the first row, which has a user's address and hash.
func importFields(header []string) ([]string, error) {
	if !slices.Contains(header, "username") || !slices.Contains(header, "email") {
		return nil, errors.New("the first row must be a header with at least the columns username and email: see userd help user import")
	}
	django := slices.Contains(header, "date_joined")
	fields := make([]string, len(header))
	for i, column := range header {
		known := slices.Contains(importColumns, column)
		if fields[i] = column; django {
			fields[i], known = djangoColumns[column]
		}
		if !known {
			return nil, fmt.Errorf("unknown column %q: see userd help user import", column)
		}
		if slices.Contains(header[:i], column) {
			return nil, fmt.Errorf("column %q appears twice", column)
		}
	}
	return fields, nil
}

// maxRow is the largest size of one row in bytes, in every format. It equals that of a
// request's body, which also holds one user.
const maxRow = maxBody

var errLongRow = fmt.Errorf("is longer than %d KiB, the maximum of a row", maxRow>>10)

// A boundedReader reads a file whose rows have at most maxRow bytes. The parsers of
// CSV and JSON would hold a row of any length in memory.
type boundedReader struct {
	in     io.Reader
	read   int64 // bytes
	rowEnd int64 // the offset of the end of the last row that the parser returned
}

// Read returns errLongRow after maxRow bytes that are not the end of a row.
func (r *boundedReader) Read(p []byte) (int, error) {
	room := r.rowEnd + maxRow - r.read
	if room <= 0 {
		return 0, errLongRow
	}
	n, err := r.in.Read(p[:min(int64(len(p)), room)])
	r.read += int64(n)
	return n, err
}

// rows are the rows of a file in any of the formats.
type rows struct {
	next   nextRow
	number int            // of the first row
	file   *boundedReader // its rowEnd is the progress of next
}

// A nextRow returns the fields of the next row by name, or the problem of a bad row, or
// neither if the row is empty. It returns io.EOF after the last row, and any other error if
// it cannot continue.
type nextRow func() (fields map[string]string, problem string, err error)

// newRows returns the rows of a file. A file that begins with a brace is NDJSON, and one
// that begins with a bracket is a JSON array; any other is CSV.
func newRows(in io.Reader) (*rows, error) {
	buffered := bufio.NewReaderSize(in, 1<<16)
	if mark, _ := buffered.Peek(len(byteOrderMark)); string(mark) == byteOrderMark {
		buffered.Discard(len(byteOrderMark))
	}
	bounded := &boundedReader{in: buffered}
	switch firstByte(buffered) {
	case '{':
		return &rows{ndjsonRows(bounded), 1, bounded}, nil
	case '[':
		return &rows{arrayRows(bounded), 1, bounded}, nil
	}
	next, err := csvRows(bounded)
	return &rows{next, 2, bounded}, err
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
func csvRows(in *boundedReader) (nextRow, error) {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	header, err := r.Read()
	if err == io.EOF {
		return nil, errors.New("the file is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	names, err := importFields(header)
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
			return nil, fmt.Sprintf("has %s instead of %d", plural(len(record), "field"), len(names)), nil
		}
		fields := make(map[string]string, len(names))
		for i, value := range record {
			fields[names[i]] = value
		}
		return fields, "", nil
	}, err
}

// ndjsonRows reads a file with one JSON object a line.
func ndjsonRows(in *boundedReader) nextRow {
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
		return jsonFields(line)
	}
}

// arrayRows reads a file that is one JSON array of objects.
func arrayRows(in *boundedReader) nextRow {
	d := json.NewDecoder(in)
	d.Token() // the bracket, which newRows has seen
	return func() (map[string]string, string, error) {
		in.rowEnd = d.InputOffset()
		if !d.More() {
			return nil, "", endOfArray(d)
		}
		var row json.RawMessage
		if err := d.Decode(&row); err != nil {
			return nil, "", err
		}
		return jsonFields(row)
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

// jsonFields returns the fields of one JSON object, or its problem. The problem names an
// unknown member only if the object has a username or an email: the names of the members of
// other objects can be addresses.
func jsonFields(object []byte) (fields map[string]string, problem string, err error) {
	fields = make(map[string]string)
	unknown := ""
	err = strictjson.Members(object, func(name string, value []byte) error {
		if !slices.Contains(importColumns, name) {
			unknown = cmp.Or(unknown, fmt.Sprintf("unknown member %q", shorten(name)))
			return nil
		}
		var text string // stays empty for null
		if json.Unmarshal(value, &text) != nil {
			if slices.Contains([]string{"username", "email", "password", "password_hash", "role"}, name) {
				return fmt.Errorf("%s must be a string", name)
			}
			text = string(value) // of an id, a time or a boolean
		}
		fields[name] = text
		return nil
	})
	_, named := fields["username"]
	_, addressed := fields["email"]
	switch {
	case !named && !addressed && unknown != "":
		return nil, "has neither username nor email", nil
	case err != nil:
		return nil, err.Error(), nil
	case unknown != "":
		return nil, unknown, nil
	}
	return fields, "", nil
}

// set fills the row from its fields, by name, and returns its problem, or "".
func (r *importRow) set(fields map[string]string, policy passwordPolicy) (problem string) {
	wrong := make(fieldErrors)
	truth := func(name string) bool {
		switch strings.ToLower(fields[name]) {
		case "", "false", "f", "0":
			return false
		case "true", "t", "1":
			return true
		}
		wrong.add(name, "must be true or false")
		return false
	}
	seconds := func(name string) int64 {
		n, ok := parseTime(fields[name])
		if !ok {
			wrong.add(name, "must be a time such as 2026-01-31T12:00:00Z")
		}
		return n
	}
	u := &r.user
	u.username, u.email, u.role = trimName(fields["username"]), trimName(fields["email"]), role(cmp.Or(fields["role"], string(member)))
	wrong.add("username", checkUsername(u.username))
	wrong.add("email", checkEmail(u.email))
	r.password, r.hash = fields["password"], fields["password_hash"]
	switch {
	case r.password == "" && r.hash == "":
		wrong.add("password", "and password_hash are both empty")
	case r.password != "" && r.hash != "":
		wrong.add("password", "and password_hash are both given")
	case r.password != "":
		wrong.add("password", policy.check(r.password, u.username, u.email))
	case !passhash.Known(r.hash):
		wrong.add("password_hash", "has an unknown format")
	}
	if v := fields["id"]; v != "" {
		var err error
		if u.id, err = parseID(v); err != nil || u.id > maxID {
			wrong.add("id", "must be an integer from 1 to 2^52-1")
		}
	}
	wrong.add("role", checkRole(u.role))
	if truth("is_superuser") {
		u.role = admin
	}
	u.disabled = truth("disabled") || fields["is_active"] != "" && !truth("is_active")
	u.createdAt, u.updatedAt, u.lastLoginAt = seconds("created_at"), seconds("updated_at"), seconds("last_login_at")
	u.emailVerifiedAt, u.pending = seconds("email_verified_at"), truth("pending")
	if err := wrong.err(); err != nil {
		return err.Error()
	}
	return ""
}
