package main

import (
	"bufio"
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
	number   int // of its line in an NDJSON file, of its record in a CSV file; the header is 1
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

// importFields returns the field that each column of a CSV file fills.
func importFields(header []string) ([]string, error) {
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

// csvRows returns a function that returns the fields of the next row by name, or
// what is wrong with the row. Its error is io.EOF after the last row.
func csvRows(in io.Reader) (next func() (map[string]string, string, error), err error) {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	header, err := r.Read()
	if err == io.EOF {
		return nil, errors.New("the file is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	header[0] = strings.TrimPrefix(header[0], "\ufeff") // which spreadsheets write first
	names, err := importFields(header)
	return func() (map[string]string, string, error) {
		record, err := r.Read()
		if errors.Is(err, csv.ErrFieldCount) {
			return nil, fmt.Sprintf("has %s instead of %d", plural(len(record), "field"), len(names)), nil
		}
		fields := make(map[string]string, len(names))
		for i, value := range record {
			fields[names[i]] = value
		}
		return fields, "", err
	}, err
}

// ndjsonRows is csvRows for a file with one JSON object a line.
func ndjsonRows(in io.Reader) (next func() (map[string]string, string, error)) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxBody)
	return func() (map[string]string, string, error) {
		if !lines.Scan() {
			return nil, "", cmp.Or(lines.Err(), io.EOF)
		}
		fields := make(map[string]string)
		err := strictjson.Members(lines.Bytes(), func(name string, value []byte) error {
			if !slices.Contains(importColumns, name) {
				return fmt.Errorf("unknown member %q", shorten(name))
			}
			var text string // stays empty for null
			if json.Unmarshal(value, &text) != nil {
				text = string(value) // a number, say
			}
			fields[name] = text
			return nil
		})
		if err != nil {
			return nil, err.Error(), nil
		}
		return fields, "", nil
	}
}

// set fills the row from its fields, by name, and returns what is wrong with it.
func (r *importRow) set(fields map[string]string) (problem string) {
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
		wrong.add("password", checkPassword(r.password, u.username, u.email))
	case !passhash.Known(r.hash):
		wrong.add("password_hash", "has an unknown format")
	}
	if v := fields["id"]; v != "" {
		var err error
		if u.id, err = parseID(v); err != nil || u.id > maxID {
			wrong.add("id", "must be an integer from 1 to 2^53-1")
		}
	}
	wrong.add("role", checkRole(u.role))
	if truth("is_superuser") {
		u.role = admin
	}
	u.disabled = truth("disabled") || fields["is_active"] != "" && !truth("is_active")
	u.createdAt, u.updatedAt, u.lastLoginAt = seconds("created_at"), seconds("updated_at"), seconds("last_login_at")
	if err := wrong.err(); err != nil {
		return err.Error()
	}
	return ""
}
