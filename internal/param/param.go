// Package param parses what clients write into the path and the query of a URL: ids, flags,
// words and the cursors of lists.
//
// It accepts each value in only one form, and no parameter that it does not know or that
// appears twice: a mistyped filter must not look like no filter.
package param

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"userd/internal/setting"
)

// ErrMalformed is the error of [Query] for a query that is not a list of parameters.
var ErrMalformed = errors.New("the query is malformed")

// An Error says what is wrong with one parameter. It does not contain the value, so a client
// may see it.
type Error struct {
	Name string // of the parameter; the client may have chosen it, at any length
	Text string // the predicate of a sentence about the parameter: "appears twice"
}

func (e *Error) Error() string { return fmt.Sprintf("the parameter %.64q %s", e.Name, e.Text) }

// Query returns the parameters of a query. It returns ErrMalformed, or an *Error for a
// parameter that is not among names or appears twice.
func Query(query string, names ...string) (url.Values, error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, ErrMalformed
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return nil, &Error{name, "is unknown"}
		}
		if len(values) > 1 {
			return nil, &Error{name, "appears twice"}
		}
	}
	return q, nil
}

// Bool returns the value of a parameter, or nil if it is absent. It returns an *Error for a
// value other than true and false.
func Bool(q url.Values, name string) (*bool, error) {
	if !q.Has(name) {
		return nil, nil
	}
	value := q.Get(name)
	if value != "true" && value != "false" {
		return nil, &Error{name, "must be true or false"}
	}
	return new(value == "true"), nil
}

// Word returns the value of a parameter, or "" if it is absent. It returns an *Error for a value
// that is not among words.
func Word[T ~string](q url.Values, name string, words ...T) (value T, err error) {
	if !q.Has(name) {
		return "", nil
	}
	if err := setting.Word(&value, q.Get(name), words...); err != nil {
		return "", &Error{name, err.Error()}
	}
	return value, nil
}

// A Page is the part of a list that a query asks for.
type Page struct {
	Query   url.Values // all parameters of the query
	Limit   int64      // of the number of elements; 0: the query has no limit
	AfterID int64      // the id that the page starts after; 0: it is the first page
}

// ParsePage returns the page of a query, which may have the parameters limit, from 1 to most,
// after, and names. It returns an error of Query, or an *Error for another limit or for an after
// that is not an id.
func ParsePage(query string, most int64, names ...string) (p Page, err error) {
	q, err := Query(query, append(names, "limit", "after")...)
	if err != nil {
		return Page{}, err
	}
	p.Query = q
	if q.Has("limit") {
		if p.Limit, err = ID(q.Get("limit")); err != nil || p.Limit > most {
			return Page{}, &Error{"limit", fmt.Sprintf("must be from 1 to %d", most)}
		}
	}
	if q.Has("after") && q.Get("after") != "0" {
		if p.AfterID, err = ID(q.Get("after")); err != nil {
			return Page{}, &Error{"after", "must be an id"}
		}
	}
	return p, nil
}

// LinkNext returns the header Link to the page after this one (RFC 8288): that of the same list,
// at path, which starts after the id last. It sets after in p.Query.
func (p *Page) LinkNext(path string, last int64) string {
	p.Query.Set("after", strconv.FormatInt(last, 10))
	return "<" + path + "?" + p.Query.Encode() + `>; rel="next"`
}

var errID = errors.New("not a positive integer in its shortest form")

// ID reads a positive integer in the form in which strconv writes it, without a sign or a
// leading zero: each number has only one form. Otherwise it returns an error.
func ID(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, errID
	}
	return n, nil
}
