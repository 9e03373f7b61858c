// Package param parses what clients write into the path and the query of a URL: ids, flags
// and the cursors of lists.
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

// Page returns the parameters limit, from 1 to most, and after of a list, or 0 for an absent
// one. It returns an *Error for another value.
func Page(q url.Values, most int64) (limit, after int64, err error) {
	if q.Has("limit") {
		if limit, err = ID(q.Get("limit")); err != nil || limit > most {
			return 0, 0, &Error{"limit", fmt.Sprintf("must be from 1 to %d", most)}
		}
	}
	if q.Has("after") && q.Get("after") != "0" {
		if after, err = ID(q.Get("after")); err != nil {
			return 0, 0, &Error{"after", "must be an id"}
		}
	}
	return limit, after, nil
}

// LinkNext returns the header Link to the next page of a list (RFC 8288), which starts after
// the id last. It sets after in q.
func LinkNext(path string, q url.Values, last int64) string {
	q.Set("after", strconv.FormatInt(last, 10))
	return "<" + path + "?" + q.Encode() + `>; rel="next"`
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
