package main

import (
	"context"
	"database/sql"
	"errors"
	"go/ast"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// exercise makes the store prepare each of its statements.
func exercise(t *testing.T, st *store) {
	t.Helper()
	ctx := context.Background()
	root := aUser(t, st, "root", admin)
	ann := aUser(t, st, "ann", member)
	sid := aSession(t, st, root)
	for range 2 {
		aSession(t, st, ann)
	}
	yes, no, hash, name, none := true, false, "hash", "bob", func(*user) {}
	for i, err := range []error{
		func() error { _, err := st.user(ann.id); return err }(),
		func() error { _, err := st.credentials(ann.id); return err }(),
		func() error { _, _, err := st.userByLogin("ann"); return err }(),
		func() error {
			_, _, _, err := st.principal(sid.session, tokenID{}, "kid", 0)
			return notNamed(err, errBadToken)
		}(),
		func() error { _, err := st.session(sid.session); return err }(),
		func() error { _, err := st.keySecret("kid", 0); return notNamed(err, errNoKey) }(),
		func() error { _, err := st.secret(ctx, "refresh", []byte("fresh")); return err }(),
		func() error {
			x := session{id: sid.session, generation: 1, expiresAt: 1 << 40, refreshHash: []byte("next")}
			_, err := st.rotate(ctx, &x, []byte{}, 2)
			return notNamed(err, errNotApplied)
		}(),
		func() error {
			_, err := st.repeatRotation(ctx, &session{id: sid.session, generation: 9}, maxGraceUses)
			return notNamed(err, errNotApplied)
		}(),
		st.sessionsOf(ctx, ann.id, 0, func(*session) {}),
		func() error {
			_, _, err := st.loginsFrom(ctx, ann.id, func(string) bool { return false })
			return err
		}(),
		func() error { st.touch(sid.session, 2); return st.endReused(ctx, ann.id, 99, "", 2) }(),
		st.authorizationError(sid, ann.id),
		func() error {
			k := apiKey{userID: root.id, name: "job", scope: adminScope, createdAt: 1, expiresAt: 2}
			if err := st.addKey(ctx, console, &k, []byte("hash")); err != nil {
				return err
			}
			st.touchKey(k.id, "192.0.2.1", touchKeyEvery)
			if _, _, err := st.userOfKey([]byte("hash"), 1); err != nil {
				return err
			}
			if err := st.authorizationError(caller{kind: keyCaller, key: k.id, requiresProof: true}, ann.id); err != nil {
				return err
			}
			if err := st.keysOf(ctx, root.id, func(*apiKey) {}); err != nil {
				return err
			}
			if err := st.sweepKeys(ctx, 2+keepExpiredKeys); err != nil {
				return err
			}
			return notNamed(st.revokeKey(ctx, console, root.id, k.id, 1), errKeyNotFound)
		}(),
		st.checkFree("nobody", "nobody@example.com", 0),
		st.users(ctx, 0, 1, filter{}, none),
		st.users(ctx, 0, 1, filter{role: member}, none),
		st.users(ctx, 0, 1, filter{role: admin}, none),
		st.users(ctx, 0, 1, filter{role: admin, disabled: &yes}, none),
		st.users(ctx, 0, 1, filter{disabled: &yes}, none),
		st.users(ctx, 0, 1, filter{disabled: &no}, none),
		st.search(ctx, "a", false, 1, none),
		st.search(ctx, "a", true, 1, none),
		func() error { _, err := st.updateUser(ctx, sid, ann.id, change{username: &name}, 0, 2); return err }(),
		func() error { _, err := st.updateUser(ctx, sid, ann.id, change{hash: &hash}, 0, 2); return err }(),
		func() error {
			r := rekeying{session: session{id: sid.session, expiresAt: 1 << 40, refreshHash: []byte("next")}}
			_, err := st.updateUser(ctx, sid, ann.id, change{hash: &hash}, 0, 2, r.statements()...)
			return err
		}(),
		func() error { _, err := st.updateUser(ctx, sid, ann.id, change{disabled: &yes}, 0, 2); return err }(),
		st.deleteUser(ctx, sid, ann.id, 0, 1),
		st.endSession(ctx, sid, root.id, sid.session, 1),
		st.endSessions(ctx, aSession(t, st, root), root.id, 1),
		func() error { _, err := st.newestKey(); return err }(),
		func() error { _, err := st.hasAdmin(); return err }(),
		st.ensureKey(ctx, keyRow{"kid", []byte("secret")}, 1, 1),
		st.rotateKey(ctx, keyRow{"next", []byte("secret")}, false, 2),
		func() error { _, err := st.signingKeys(ctx); return err }(),
		st.rotateKey(ctx, keyRow{"last", []byte("secret")}, true, 2),
		st.rotateSecret(ctx, "refresh", []byte("fresh"), 2),
		st.recordSigner(ctx, true, 2),
		st.retireKeys(ctx, 3),
		st.probe(ctx),
		func() error { aSession(t, st, root); _, err := st.sweep(ctx, 0, 1<<41); return err }(),
		st.events(ctx, 0, 1, eventFilter{}, func(*event) {}),
		st.events(ctx, 0, 1, eventFilter{userID: 1}, func(*event) {}),
		st.events(ctx, 0, 1, eventFilter{kind: loggedIn}, func(*event) {}),
		st.events(ctx, 0, 1, eventFilter{userID: 1, kind: loggedIn}, func(*event) {}),
		func() error { _, _, err := st.eventsSince(ctx, 0, eventFilter{}, func(*event) {}); return err }(),
		(&chain{st: st}).extend(ctx),
		func() error { _, err := (&chain{st: st}).trim(ctx, 1<<41, 2); return err }(),
	} {
		if err != nil {
			t.Fatalf("exercise %d: %v", i, err)
		}
	}
}

// plan returns the steps in which SQLite runs a query, one a line.
func plan(t *testing.T, conn *sql.Conn, query string) string {
	t.Helper()
	n := 0 // of the query's positional parameters
	for _, match := range regexp.MustCompile(`\?(\d*)`).FindAllStringSubmatch(query, -1) {
		i := n + 1
		if match[1] != "" {
			i, _ = strconv.Atoi(match[1])
		}
		n = max(n, i)
	}
	values := make([]any, n)
	for _, match := range regexp.MustCompile(`@(\w+)`).FindAllStringSubmatch(query, -1) {
		values = append(values, sql.Named(match[1], nil))
	}
	rows, err := conn.QueryContext(context.Background(), "EXPLAIN QUERY PLAN "+query, values...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var steps []string
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(steps, "\n")
}

func TestNoStatementReadsAWholeTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	exercise(t, st)
	queries := st.reads.Queries()
	for _, query := range st.writer.Queries() {
		if !slices.Contains([]string{"BEGIN IMMEDIATE", "COMMIT"}, query) {
			queries = append(queries, query)
		}
	}

	// What may be read from its beginning, and why.
	allowed := map[string]string{
		"SCAN counter":     "it has one row",
		"SCAN signing_key": "its last row ends it",
		"SCAN signing_key USING COVERING INDEX sqlite_autoindex_signing_key_1": "its first row ends it",
		"SCAN user USING INDEX user_admin":                                     "it holds only the admins, and the first active one ends it",
		"SCAN other USING INDEX user_admin":                                    "it holds only the admins, and the first other active one ends it",
		"SCAN CONSTANT ROW":                                                    "a SELECT without a table",
		"SCAN (subquery-2)":                                                    "the sessions of one sweep",
		"SCAN (subquery-1)":                                                    "what the search found by name, at most its limit",
		"SCAN (subquery-3)":                                                    "what the search found by address, at most its limit",
		"SCAN event_link":                                                      "its last row ends it",
		"SCAN event":                                                           "the events that one trimming looks at, at most its limit",
	}
	conn := another(t, path)
	for _, query := range queries {
		steps := plan(t, conn, query)
		for step := range strings.Lines(steps) {
			step = strings.TrimSpace(step)
			if strings.HasPrefix(step, "SCAN ") && allowed[step] == "" {
				t.Errorf("%s\nfor %s", step, query)
			}
		}
	}

	t.Run("and every statement of the store was looked at", func(t *testing.T) {
		_, files := programFiles(t)
		keyword := regexp.MustCompile(`\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|FROM|WHERE|ORDER BY)\b`)
		for _, decl := range slices.Concat(files["store.go"].Decls, files["store_users.go"].Decls, files["store_sessions.go"].Decls, files["store_keys.go"].Decls, files["store_events.go"].Decls) {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv == nil || slices.Contains([]string{"export", "count", "countKeys"}, f.Name.Name) {
				continue // what is not a method runs before there are requests, and these must read the whole table
			}
			ast.Inspect(f, func(n ast.Node) bool {
				literal, ok := n.(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING || !keyword.MatchString(literal.Value) {
					return true
				}
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(queries, func(query string) bool { return strings.Contains(query, text) }) {
					t.Errorf("%s has a statement that exercise does not run: %s", f.Name.Name, text)
				}
				return true
			})
		}
	})
}

// notNamed returns nil if err is the sentinel, because the statement has then run, otherwise err.
func notNamed(err, sentinel error) error {
	if errors.Is(err, sentinel) {
		return nil
	}
	return err
}
