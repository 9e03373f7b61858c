package groupcommit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"sync"
)

// A Statement is one step of a write. The first statement has the write's conditions: if
// they do not hold, it changes nothing and the others do not run. If a later statement
// fails, the writer runs all writes of the group again, one by one.
type Statement struct {
	Query  string // a constant
	Args   Args
	Scan   []any // destinations for the row that the query returns; nil: it returns none
	IfNone error // the error if the query affects or returns no row; nil: not an error
}

// Exec runs the statement on a connection or transaction other than the writer's.
func (st Statement) Exec(ctx context.Context, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}) error {
	query, list, err := st.Args.Positional(st.Query)
	if err == nil {
		_, err = db.ExecContext(ctx, query, list...)
	}
	return err
}

// Args are the values of a query's named parameters. A query need not use all of them.
type Args []Arg

// An Arg is the value of one parameter. The type has no name of its own, so that vet
// accepts literals without field names in other packages.
type Arg = struct {
	Name  string // without the @
	Value any
}

// List returns the values of the names, in their order.
func (a Args) List(names []string) ([]any, error) {
	list := make([]any, len(names))
	for i, name := range names {
		j := slices.IndexFunc(a, func(x Arg) bool { return x.Name == name })
		if j < 0 {
			return nil, fmt.Errorf("the statement lacks the argument %s", name)
		}
		list[i] = a[j].Value
	}
	return list, nil
}

// Positional returns a query with numbered parameters, and their values in that order.
func (a Args) Positional(query string) (string, []any, error) {
	query, names := numbered(query)
	list, err := a.List(names)
	return query, list, err
}

// textOrParameter matches a string literal of a query, or a named parameter.
var textOrParameter = regexp.MustCompile(`'[^']*'|@\w+`)

// numbered returns the query with ?1, ?2, … in place of its named parameters, and the
// names in that order, because matching arguments by name costs the driver a map for
// each run.
func numbered(query string) (string, []string) {
	var names []string
	query = textOrParameter.ReplaceAllStringFunc(query, func(name string) string {
		if name[0] != '@' {
			return name
		}
		i := slices.Index(names, name[1:])
		if i < 0 {
			i = len(names)
			names = append(names, name[1:])
		}
		return "?" + strconv.Itoa(i+1)
	})
	return query, names
}

// A Cache keeps a prepared statement for each query. It stays small because queries are
// constants. Several goroutines may use it.
type Cache struct {
	by    preparer
	mu    sync.RWMutex
	stmts map[string]*Prepared
}

// A preparer is a connection or a pool.
type preparer interface {
	PrepareContext(context.Context, string) (*sql.Stmt, error)
}

// A Prepared is a statement of a [Cache].
type Prepared struct {
	*sql.Stmt
	Parameters []string // the names, in the order of the arguments
}

// NewCache returns an empty cache of statements of by, a connection or a pool.
func NewCache(by preparer) *Cache { return &Cache{by: by, stmts: make(map[string]*Prepared)} }

// Get returns the prepared statement of a query. Only the cache closes it.
func (c *Cache) Get(query string) (*Prepared, error) {
	c.mu.RLock()
	stmt := c.stmts[query]
	c.mu.RUnlock()
	if stmt != nil {
		return stmt, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if stmt := c.stmts[query]; stmt != nil {
		return stmt, nil
	}
	text, names := numbered(query)
	made, err := c.by.PrepareContext(context.Background(), text)
	if err != nil {
		return nil, err
	}
	stmt = &Prepared{made, names}
	c.stmts[query] = stmt
	return stmt, nil
}

// Queries returns the queries of the statements in the cache.
func (c *Cache) Queries() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Keys(c.stmts))
}

// Close closes the statements. No other method may run meanwhile or later.
func (c *Cache) Close() error {
	var errs []error
	for _, stmt := range c.stmts {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(errs...)
}
