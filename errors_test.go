package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/reqbody"
	"userd/internal/strictjson"
)

// declaredErrors returns each apiError that errors.go declares, by name.
func declaredErrors(t *testing.T) map[string]*apiError {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := func(e ast.Expr) string {
		s, err := strconv.Unquote(e.(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	declared := make(map[string]*apiError)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		pointer, ok := spec.Values[0].(*ast.UnaryExpr)
		if !ok {
			return true
		}
		fields := pointer.X.(*ast.CompositeLit).Elts
		status, err := strconv.Atoi(fields[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		declared[spec.Names[0].Name] = &apiError{status, text(fields[1]), text(fields[2])}
		return true
	})
	if len(declared) < 30 {
		t.Fatalf("errors.go declares only %d errors", len(declared))
	}
	return declared
}

func TestDeclaredErrors(t *testing.T) {
	t.Parallel()
	word := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	texts, statuses := make(map[string]string), make(map[string]int)
	for name, e := range declaredErrors(t) {
		if http.StatusText(e.status) == "" || e.status < 400 {
			t.Errorf("%s has the status %d", name, e.status)
		}
		if !word.MatchString(e.code) || e.text == "" {
			t.Errorf("%s has the code %q and the text %q", name, e.code, e.text)
		}
		if other := texts[e.text]; other != "" {
			t.Errorf("%s and %s have the same text", name, other)
		}
		if status, ok := statuses[e.code]; ok && status != e.status {
			t.Errorf("%s: the code %s has two statuses, %d and %d", name, e.code, e.status, status)
		}
		texts[e.text], statuses[e.code] = name, e.status
	}
}

func TestAnErrorIsAnsweredByTheAPIErrorThatItWraps(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		claim string
		err   error
		want  *apiError
	}{
		{"the error itself", errLastAdmin, errLastAdmin},
		{"an error that wraps it", fmt.Errorf("updating: %w", errLastAdmin), errLastAdmin},
		{"one with details", errForbidden.with("user %d", 7), errForbidden},
		{"invalid fields", fieldErrors{"email": "is empty"}.err(), errInvalid},
		{"a failure of the database", &storageError{"writing", io.ErrUnexpectedEOF}, errStorage},
		{"a client that has gone", fmt.Errorf("waiting: %w", context.Canceled), errGivenUp},
		{"a query that was cancelled", &storageError{"reading", context.Canceled}, errGivenUp},
		{"any other error", errors.New("x"), errInternal},
	} {
		if got := answerFor(row.err); got != row.want {
			t.Errorf("%s: answered as %s, want %s", row.claim, got.code, row.want.code)
		}
	}
	if err := (fieldErrors{}).err(); err != nil {
		t.Errorf("no invalid field is the error %v", err)
	}
}

func TestPlural(t *testing.T) {
	t.Parallel()
	for n, want := range []string{"0 users", "1 user", "2 users"} {
		if got := plural(n, "user"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A leaf package's error that clientError does not know would be answered with 500.
func TestEachErrorOfALeafIsAnErrorOfTheAPI(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		err  error
		want *apiError
		text string
	}{
		{headers.ErrNoBearer, errNoToken, errNoToken.text},
		{headers.ErrTwoHeaders, errBadToken, errBadToken.text},
		{reqbody.ErrTooLarge, errTooLarge, errTooLarge.text},
		{reqbody.ErrBusy, errBusy, errBusy.text},
		{reqbody.ErrIncomplete, errMalformedBody, "The body is incomplete"},
		{param.ErrMalformed, errBadParameter, "The query is malformed"},
		{&param.Error{Name: strings.Repeat("a", 70), Text: "is unknown"}, errBadParameter, `The query parameter "` + strings.Repeat("a", 64) + `…" is unknown`},
		{&strictjson.Error{Kind: strictjson.WrongType, Member: "a", Text: "must be a string"}, errWrongType, `The member "a" must be a string`},
		{errStorage, errStorage, errStorage.text},
	} {
		if err := clientError(row.err); answerFor(err) != row.want || err.Error() != row.text {
			t.Errorf("%v: got %v, want %q", row.err, err, row.text)
		}
	}
}
