package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"modernc.org/sqlite"
)

// patience is how long a test waits for what must come. Only a test that fails
// takes so long.
const patience = 30 * time.Second

// await returns when the condition holds. It is for what cannot be waited for
// in a better way: a channel's length, a file's size.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for start := time.Now(); !condition(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// receive returns what comes from a channel.
func receive[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// A hold stops the statement SELECT test_hold(ID) in the middle of its work,
// with its transaction open, until the test lets it go.
type hold struct {
	id      int64
	entered chan struct{}
	release chan struct{}
}

var holds sync.Map // id → *hold

func init() {
	sqlite.MustRegisterScalarFunction("test_hold", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		h, ok := holds.LoadAndDelete(args[0])
		if !ok {
			return nil, errors.New("no such hold")
		}
		close(h.(*hold).entered)
		<-h.(*hold).release
		return int64(0), nil
	})
}

func newHold() *hold {
	h := &hold{time.Now().UnixNano(), make(chan struct{}), make(chan struct{})}
	for {
		if _, taken := holds.LoadOrStore(h.id, h); !taken {
			return h
		}
		h.id++
	}
}

func (h *hold) statement() statement {
	return statement{query: `SELECT test_hold(@id)`, args: args{"id": h.id}, scan: []any{new(int64)}}
}

// holdWriter keeps the store's writer busy, so that what is written next waits
// in the queue. The function returned lets it go on.
func holdWriter(t *testing.T, st *store) (release func()) {
	t.Helper()
	h := newHold()
	answer := make(chan error, 1)
	go func() { answer <- st.write(context.Background(), h.statement()) }()
	receive(t, "the writer stops at the hold", h.entered)
	once := sync.OnceFunc(func() { close(h.release) })
	t.Cleanup(once) // a test that failed must not keep the store from closing
	return func() {
		t.Helper()
		once()
		if err := receive(t, "the answer of the write that held the writer", answer); err != nil {
			t.Errorf("the write that held the writer: %v", err)
		}
	}
}

// enqueue starts f, which writes once, and returns when its write stands in the
// queue of the store, whose writer the test holds.
func enqueue(t *testing.T, st *store, f func() error) (answer <-chan error) {
	t.Helper()
	before := len(st.queue)
	c := make(chan error, 1)
	go func() { c <- f() }()
	await(t, "the write stands in the queue", func() bool { return len(st.queue) == before+1 })
	return c
}

// answers receives what each of the writes was answered.
func answersOf(t *testing.T, writes ...<-chan error) (errs []error) {
	t.Helper()
	for i, c := range writes {
		errs = append(errs, receive(t, fmt.Sprintf("the answer of write %d", i), c))
	}
	return errs
}

// wantError fails the test unless err is want. No error is nil.
func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		t.Errorf("%s: got the error %v, want %v", what, err, want)
	}
}

// aUser adds a user with the name and the role and the hash "hash".
func aUser(t *testing.T, st *store, name string, r role) user {
	t.Helper()
	u := user{username: name, email: name + "@example.com", role: r}
	if err := st.addUser(context.Background(), console, &u, "hash", 1); err != nil {
		t.Fatal(err)
	}
	return u
}

// aSession starts a session of a user of aUser.
func aSession(t *testing.T, st *store, u user) caller {
	t.Helper()
	x := session{userID: u.id, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("hash")}
	if _, err := st.startSession(context.Background(), &x, 0, ""); err != nil {
		t.Fatal(err)
	}
	return caller{kind: sessionCaller, session: x.id, user: u.id}
}

// add returns a write that adds a user, for enqueue.
func add(st *store, name string) func() error {
	return func() error {
		u := user{username: name, email: name + "@example.com", role: member}
		return st.addUser(context.Background(), console, &u, "hash", 1)
	}
}

// usernames lists the users, in id order.
func usernames(t *testing.T, st *store) (names []string) {
	t.Helper()
	err := st.users(context.Background(), 0, 1<<30, filter{}, func(u *user) { names = append(names, u.username) })
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// hasSession reports whether the session is there and good.
func hasSession(t *testing.T, st *store, sid caller) bool {
	t.Helper()
	_, _, err := st.principal(sid.session, "", 0)
	if err != nil && err != errSessionEnded {
		t.Fatal(err)
	}
	return err == nil
}

// another opens the database file as another program does.
func another(t *testing.T, path string) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "_busy_timeout=10000"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(conn.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// runSQL runs statements on a connection.
func runSQL(t *testing.T, conn *sql.Conn, queries ...string) {
	t.Helper()
	for _, query := range queries {
		if _, err := conn.ExecContext(context.Background(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

// scan returns the one value of a query.
func scan[T any](t *testing.T, conn *sql.Conn, query string, args ...any) (v T) {
	t.Helper()
	if err := conn.QueryRowContext(context.Background(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// makeDatabase makes a database file by SQL, closes it, and returns its path.
func makeDatabase(t *testing.T, queries ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "app.db")
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range queries {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// makeStore makes a database of userd's with some users, closes it, and returns
// its path.
func makeStore(t *testing.T, names ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		aUser(t, st, name, member)
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// snapshot says all there is to know of the files in a directory: names, modes,
// times and contents. No database in it may be open.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s %s %s %d", entry.Name(), info.Mode(), info.ModTime(), info.Size())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&all, " %x", sha256.Sum256(data))
		}
		all.WriteByte('\n')
	}
	return all.String()
}

func TestEveryConnectionOfTheStoreHasItsPragmas(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	conns := map[string]*sql.Conn{"the writer": st.conn}
	for _, name := range []string{"one reader", "another reader"} {
		// Both are held at once, and so are two of the pool.
		conn, err := st.readers.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns[name] = conn
	}
	for name, want := range map[string]map[string]string{
		"the writer":     {"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "query_only": "0", "busy_timeout": "7000"},
		"one reader":     {"journal_mode": "wal", "query_only": "1", "busy_timeout": "5000"},
		"another reader": {"journal_mode": "wal", "query_only": "1", "busy_timeout": "5000"},
	} {
		for pragma, value := range want {
			if got := scan[string](t, conns[name], "PRAGMA "+pragma); got != value {
				t.Errorf("%s has %s=%s, want %s", name, pragma, got, value)
			}
		}
	}
	for _, name := range []string{"one reader", "another reader"} {
		if _, err := conns[name].ExecContext(context.Background(), `UPDATE counter SET user_id = 7`); err == nil {
			t.Errorf("%s could write", name)
		}
	}
}

func TestTheFilesOfTheDatabaseAreTheirOwnersAlone(t *testing.T) {
	t.Parallel()
	defer syscall.Umask(syscall.Umask(0)) // so that the mode is the program's and not the umask's
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	aUser(t, st, "ann", member)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode(); mode != 0o600 {
			t.Errorf("app.db%s has mode %v, want 0600", suffix, mode)
		}
	}
}

// The paths that a DSN could misread.
func TestADatabaseIsMadeAtThePathThatWasGiven(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"app.db",
		"with a space.db",
		"with?mode=ro.db",
		"with#hash.db",
		"with%20percent.db",
		"with%percent.db",
		"with+plus&and=is.db",
		"file:app.db",
		"größe-数据.db",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st, err := openStore(context.Background(), filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			aUser(t, st, "ann", member)
			if err := st.close(); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 || entries[0].Name() != name {
				t.Errorf("the directory holds %v, want %q alone", entries, name)
			}
			if _, err := inspect(context.Background(), filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
			if got := usernames(t, openTestStore(t, filepath.Join(dir, name))); !slices.Equal(got, []string{"ann"}) {
				t.Errorf("opened again it has the users %v", got)
			}
		})
	}
}

func TestAnIDIsNeverGivenTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	last := aUser(t, st, "ann", member)
	deleted := func() {
		t.Helper()
		if err := st.deleteUser(context.Background(), console, last.id, 0, 1); err != nil {
			t.Fatal(err)
		}
	}
	isNew := func(when, name string) {
		t.Helper()
		u := aUser(t, st, name, member)
		if u.id <= last.id {
			t.Errorf("%s: the new user has the id %d, which was given before (the last is %d)", when, u.id, last.id)
		}
		last = u
	}
	isNew("beside the first", "bob")
	deleted()
	isNew("the highest was deleted", "cas")
	deleted()
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	st = openTestStore(t, path)
	isNew("the highest was deleted and the database opened again", "dan")

	// A user that is not added takes no id.
	if err := add(st, "dan")(); !errors.Is(err, errUsernameTaken) {
		t.Fatal(err)
	}
	if u := aUser(t, st, "eve", member); u.id != last.id+1 {
		t.Errorf("after an addition that failed the next id is %d, want %d", u.id, last.id+1)
	}
}

func TestSessionIDsAreNeverGivenTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ann := aUser(t, st, "ann", member)
	first := aSession(t, st, ann)
	if err := st.endSession(context.Background(), first, ann.id, first.session, 1); err != nil {
		t.Fatal(err)
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	st = openTestStore(t, path)
	if next := aSession(t, st, ann); next.session <= first.session {
		t.Errorf("the session after %d has the id %d: an old token would speak for it", first.session, next.session)
	}
}

func TestNamesAreUniqueWithoutRegardToCase(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	ctx := context.Background()
	ann, bob := aUser(t, st, "Ann", member), aUser(t, st, "bob", member)
	for _, c := range []struct {
		claim           string
		username, email string
		want            error
	}{
		{"a username that is taken is refused", "Ann", "new@example.com", errUsernameTaken},
		{"a username that is taken in another case is refused", "aNN", "new@example.com", errUsernameTaken},
		{"an address that is taken is refused", "new", "Ann@example.com", errEmailTaken},
		{"an address that is taken in another case is refused", "new", "aNN@EXAMPLE.com", errEmailTaken},
		{"where both are taken the username is named", "ANN", "ann@example.com", errUsernameTaken},
		{"a username may be another's address", "Ann@example.com", "new@example.com", nil},
	} {
		t.Run(c.claim, func(t *testing.T) {
			u := user{username: c.username, email: c.email, role: member}
			err := st.addUser(ctx, console, &u, "hash", 1)
			wantError(t, "adding", err, c.want)
			if err == nil {
				if err := st.deleteUser(ctx, console, u.id, 0, 1); err != nil {
					t.Fatal(err)
				}
			}
			_, err = st.updateUser(ctx, console, bob.id, change{username: &c.username, email: &c.email}, 0, 2)
			wantError(t, "changing", err, c.want)
			back := change{username: &bob.username, email: &bob.email}
			if _, err := st.updateUser(ctx, console, bob.id, back, 0, 2); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("one's own name in another case is free", func(t *testing.T) {
		name, email := "ANN", "ANN@EXAMPLE.COM"
		u, err := st.updateUser(ctx, console, ann.id, change{username: &name, email: &email}, 0, 2)
		if err != nil || u.username != name || u.email != email {
			t.Errorf("got %+v, %v", u, err)
		}
	})
	t.Run("a user is found by either name in any case, as it was typed", func(t *testing.T) {
		for _, login := range []string{"bob", "BOB", "bob@example.com", "Bob@Example.Com"} {
			u, c, err := st.userByLogin(login)
			if err != nil || u.id != bob.id || u.username != "bob" || c.hash != "hash" {
				t.Errorf("%s: got %+v, %+v, %v", login, u, c, err)
			}
		}
		if _, _, err := st.userByLogin("nobody"); err != errUserNotFound {
			t.Errorf("nobody: got the error %v", err)
		}
	})
	t.Run("a login that is one's username and another's address is the username's", func(t *testing.T) {
		cas := user{username: "bob@example.com", email: "cas@example.com", role: member}
		if err := st.addUser(ctx, console, &cas, "hash", 1); err != nil {
			t.Fatal(err)
		}
		if u, _, err := st.userByLogin("BOB@example.com"); err != nil || u.id != cas.id {
			t.Errorf("got %+v, %v, want user %d", u, err, cas.id)
		}
	})
}

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
		func() error { _, _, err := st.principal(sid.session, "kid", 0); return notNamed(err, errBadToken) }(),
		func() error { _, err := st.session(sid.session); return err }(),
		func() error { _, err := st.keySecret("kid", 0); return notNamed(err, errNoKey) }(),
		func() error { _, err := st.secret(ctx, "refresh", []byte("fresh")); return err }(),
		func() error {
			x := session{id: sid.session, generation: 1, expiresAt: 1 << 40, refreshHash: []byte("next")}
			_, err := st.rotate(ctx, &x, []byte{}, 2)
			return notNamed(err, errNotApplied)
		}(),
		st.sessionsOf(ctx, ann.id, 0, func(*session) {}),
		func() error { st.touch(sid.session, 2); return st.endReused(ctx, ann.id, 99, "", 2) }(),
		st.authorizationError(sid, ann.id),
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
		func() error { _, err := st.updateUser(ctx, sid, ann.id, change{disabled: &yes}, 0, 2); return err }(),
		st.deleteUser(ctx, sid, ann.id, 0, 1),
		st.endSession(ctx, sid, root.id, sid.session, 1),
		st.endSessions(ctx, aSession(t, st, root), root.id, 1),
		func() error { _, err := st.newestKey(); return err }(),
		st.ensureKey(ctx, keyRow{"kid", []byte("secret")}, 1, 1),
		st.rotateKey(ctx, keyRow{"next", []byte("secret")}, 2),
		func() error { _, err := st.signingKeys(ctx); return err }(),
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

// Names that the rules of today would refuse come from adopted databases.
func TestEveryUserIsReadAsItStandsInTheDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	conn := another(t, path)
	for i, name := range []string{
		"ann", "", `"`, `\`, `a"b`, `a\"b\\`, `\"`, "],[", `{"a":[1,"b"]}`, "a,b", "\n\t\x01", "null", "1", " ", "é, 漢, 😀", "\u2028", "'; --",
	} {
		want := user{id: int64(i) + 1, username: name, email: name + "@x", role: role(name), disabled: i%2 == 1,
			createdAt: -1, updatedAt: 1 << 53, lastLoginAt: 0, version: 1<<63 - 1}
		_, err := conn.ExecContext(t.Context(), `INSERT INTO user (id, username, email, password_hash, role, disabled, created_at, updated_at, last_login_at, version)
			VALUES (?, ?, ?, '', ?, ?, ?, ?, ?, ?)`, want.id, want.username, want.email, want.role, want.disabled, want.createdAt, want.updatedAt, want.lastLoginAt, want.version)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := st.user(want.id); err != nil || got != want {
			t.Errorf("got %+v %v, want %+v", got, err, want)
		}
	}
}

func TestARowThatIsNoUserIsAnError(t *testing.T) {
	t.Parallel()
	for _, row := range []any{
		nil,
		int64(1),
		"",
		"[]",
		`[1,"a","b","member",0,1,2,3]`,
		`["a",1,"b","member",0,1,2,3,4]`,
		`[1,"a","b","member",0,1,2,3,4.5]`,
		`[1,"a","b","member","no",1,2,3,4]`,
		`[1,"a`,
		`[1,"a\`,
	} {
		var u user
		if err := u.Scan(row); err == nil {
			t.Errorf("%v was read as %+v", row, u)
		}
	}
}

func TestNoStatementReadsAWholeTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	exercise(t, st)
	queries := slices.Collect(maps.Keys(st.reads.stmts))
	for query := range st.stmts.stmts {
		if !slices.Contains([]string{"BEGIN IMMEDIATE", "COMMIT"}, query) {
			queries = append(queries, query)
		}
	}

	// What may be read from its beginning, and why.
	allowed := map[string]string{
		"SCAN counter":     "it has one row",
		"SCAN signing_key": "its last row ends it",
		"SCAN signing_key USING COVERING INDEX sqlite_autoindex_signing_key_1": "its first row ends it",
		"SCAN other USING INDEX user_admin":                                    "it holds the admins alone, and the first other active one ends it",
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
		for _, decl := range slices.Concat(files["store.go"].Decls, files["store_users.go"].Decls, files["store_sessions.go"].Decls, files["store_events.go"].Decls) {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv == nil || slices.Contains([]string{"export", "count"}, f.Name.Name) {
				continue // inspect and migrate run before there are requests, and these are to read the whole table
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

func TestListsUseTheIndexMadeForThem(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	yes := true
	for _, c := range []struct {
		claim string
		ask   func(st *store, f func(*user)) error
		steps []string // of the plan
	}{
		{"admins are found in the index of admins",
			func(st *store, f func(*user)) error { return st.users(ctx, 0, 9, filter{role: admin}, f) },
			[]string{"SEARCH user USING INDEX user_admin (id>?)"}},
		{"disabled admins are found in the index of admins",
			func(st *store, f func(*user)) error {
				return st.users(ctx, 0, 9, filter{role: admin, disabled: &yes}, f)
			},
			[]string{"SEARCH user USING INDEX user_admin (id>?)"}},
		{"disabled users are found in the index of the disabled",
			func(st *store, f func(*user)) error { return st.users(ctx, 0, 9, filter{disabled: &yes}, f) },
			[]string{"SEARCH user USING INDEX user_disabled (id>?)"}},
		{"a page of all users begins at its first id",
			func(st *store, f func(*user)) error { return st.users(ctx, 0, 9, filter{}, f) },
			[]string{"SEARCH user USING INTEGER PRIMARY KEY (rowid>?)"}},
		{"a search by name reads one range of one index",
			func(st *store, f func(*user)) error { return st.search(ctx, "a", false, 9, f) },
			[]string{"SEARCH user USING COVERING INDEX user_username (username>? AND username<?)"}},
		{"a search by name and address reads one range of each of two indexes",
			func(st *store, f func(*user)) error { return st.search(ctx, "a", true, 9, f) },
			[]string{
				"SEARCH user USING COVERING INDEX user_username (username>? AND username<?)",
				"SEARCH user USING COVERING INDEX user_email (email>? AND email<?)",
			}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			if err := c.ask(st, func(*user) {}); err != nil {
				t.Fatal(err)
			}
			if len(st.reads.stmts) != 1 {
				t.Fatalf("it took %d statements, want 1", len(st.reads.stmts))
			}
			conn := another(t, path)
			for query := range st.reads.stmts {
				steps := plan(t, conn, query)
				for _, step := range c.steps {
					if !slices.Contains(strings.Split(steps, "\n"), step) {
						t.Errorf("the plan is\n%s\nand has not the step %s", steps, step)
					}
				}
			}
		})
	}
}

func TestASearchFindsByTheBeginningOfANameInAnyCase(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	for _, u := range []user{
		{username: "Bob", email: "zed@example.com"},
		{username: "al", email: "al@one.example"},
		{username: "ALBERT", email: "king@example.com"},
		{username: "alice", email: "a1@two.example"},
		{username: "carol", email: "Alto@voice.example"},
		{username: "am", email: "am@example.com"},
		{username: "x_y", email: "x_y@example.com"},
		{username: "xzy", email: "xzy@example.com"},
		{username: "Straße", email: "s@example.com"}, // adopted
		{username: "10%", email: "ten@example.com"},
	} {
		u.role = member
		if err := st.addUser(context.Background(), console, &u, "hash", 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		claim   string
		prefix  string
		byEmail bool
		limit   int
		want    string
	}{
		{"those whose username begins so, in name order", "al", false, 9, "al ALBERT alice"},
		{"in whatever case it is asked for", "AL", false, 9, "al ALBERT alice"},
		{"a longer prefix finds fewer", "alb", false, 9, "ALBERT"},
		{"a whole name finds itself", "alice", false, 9, "alice"},
		{"more than a name does not find it", "alicee", false, 9, ""},
		{"the middle of a name does not find it", "lice", false, 9, ""},
		{"by address too, where that is asked for", "al", true, 9, "al ALBERT alice carol"},
		{"by address alone", "king@", true, 9, "ALBERT"},
		{"not by address, where that is not asked for", "king@", false, 9, ""},
		{"one that both find stands once", "xzy", true, 9, "xzy"},
		{"at most the limit", "al", false, 2, "al ALBERT"},
		{"at most the limit, of both ranges together", "al", true, 2, "al ALBERT"},
		{"an underscore is itself and no wildcard", "x_", true, 9, "x_y"},
		{"a percent sign is itself and no wildcard", "%", true, 9, ""},
		{"a percent sign is found", "10%", true, 9, "10%"},
		{"letters that are not ASCII are found", "straß", true, 9, "Straße"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			var names []string
			err := st.search(context.Background(), c.prefix, c.byEmail, c.limit, func(u *user) { names = append(names, u.username) })
			if got := strings.Join(names, " "); err != nil || got != c.want {
				t.Errorf("found %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestAListHoldsTheUsersThatItsFilterLetsThrough(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	ctx := context.Background()
	yes, no := true, false
	for _, c := range []struct {
		name     string
		role     role
		disabled bool
	}{
		{"ann", admin, false}, {"bob", member, false}, {"cas", admin, true}, {"dan", member, true}, {"eve", admin, false}, {"fay", member, false},
	} {
		u := user{username: c.name, email: c.name + "@example.com", role: c.role, disabled: c.disabled}
		if err := st.addUser(ctx, console, &u, "hash", 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		claim string
		after int64
		limit int
		only  filter
		want  string
	}{
		{"all, in id order", 0, 9, filter{}, "ann bob cas dan eve fay"},
		{"those after an id", 2, 9, filter{}, "cas dan eve fay"},
		{"at most the limit", 0, 2, filter{}, "ann bob"},
		{"admins", 0, 9, filter{role: admin}, "ann cas eve"},
		{"admins after an id", 1, 9, filter{role: admin}, "cas eve"},
		{"admins up to the limit", 0, 2, filter{role: admin}, "ann cas"},
		{"members", 0, 9, filter{role: member}, "bob dan fay"},
		{"the disabled", 0, 9, filter{disabled: &yes}, "cas dan"},
		{"the others", 0, 9, filter{disabled: &no}, "ann bob eve fay"},
		{"disabled admins", 0, 9, filter{role: admin, disabled: &yes}, "cas"},
		{"active admins", 0, 9, filter{role: admin, disabled: &no}, "ann eve"},
		{"disabled members", 0, 9, filter{role: member, disabled: &yes}, "dan"},
		{"active members after an id", 2, 9, filter{role: member, disabled: &no}, "fay"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			var names []string
			err := st.users(ctx, c.after, c.limit, c.only, func(u *user) { names = append(names, u.username) })
			if got := strings.Join(names, " "); err != nil || got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// countCommits counts the transactions that the store's writer commits from now on.
func countCommits(t *testing.T, st *store) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	err := st.conn.Raw(func(c any) error {
		c.(sqlite.HookRegisterer).RegisterCommitHook(func() int32 {
			n.Add(1)
			return 0
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return &n
}

func TestWritesThatWaitShareOneCommit(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	commits := countCommits(t, st)
	release := holdWriter(t, st)
	const n = 100
	var writes []<-chan error
	for i := range n {
		writes = append(writes, enqueue(t, st, add(st, fmt.Sprint("u", i))))
	}
	release()
	for i, err := range answersOf(t, writes...) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if got := commits.Load(); got != 2 {
		t.Errorf("the write that held the writer and %d that waited took %d commits, want 2", n, got)
	}
	if got := len(usernames(t, st)); got != n {
		t.Errorf("%d of %d landed", got, n)
	}
}

func TestAFullQueueIsWrittenInGroupsOfBoundedSize(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	commits := countCommits(t, st)
	release := holdWriter(t, st)
	var writes []<-chan error
	for i := range maxGroup {
		writes = append(writes, enqueue(t, st, add(st, fmt.Sprint("u", i))))
	}
	// The queue is full: the context of one more counts while it waits for a place.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantError(t, "a cancelled write before a full queue", st.write(ctx, statement{query: `DELETE FROM user`}), context.Canceled)
	late := make(chan error, 1)
	go func() { late <- add(st, "late")() }()
	release()
	for i, err := range answersOf(t, append(writes, late)...) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	// The late one stands in the queue before the writer comes back, or after.
	if got := commits.Load(); got > 3 {
		t.Errorf("%d writes took %d commits, want at most 3", maxGroup+2, got)
	}
	if got := len(usernames(t, st)); got != maxGroup+1 {
		t.Errorf("%d of %d landed", got, maxGroup+1)
	}
}

func TestManyWritersAtOnceAllLand(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := add(st, fmt.Sprintf("u%d-%d", w, i))(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	names := usernames(t, st)
	slices.Sort(names)
	if got := len(slices.Compact(names)); got != writers*each {
		t.Errorf("%d of %d landed", got, writers*each)
	}
}

func TestAWriteThatFailsInAGroupFailsAloneAndWhole(t *testing.T) {
	t.Parallel()
	errNothing := errors.New("nothing to do")
	tick := statement{query: `UPDATE counter SET user_id = user_id + 1`} // the first statement, which must be undone
	insert := func(id int64, name string) statement {
		return statement{
			query: `INSERT INTO user (id, username, email, password_hash) VALUES (@id, @name, @name, '')`,
			args:  args{"id": id, "name": name},
		}
	}
	for _, c := range []struct {
		claim string
		write []statement
		want  error
	}{
		{"a name that is taken after another statement", []statement{tick, insert(50, "ANN")}, errDuplicate},
		{"an id that is taken after another statement", []statement{tick, insert(1, "fresh")}, errDuplicate},
		{"a name that is taken in a write of one statement", []statement{insert(50, "ANN")}, errDuplicate},
		{"a name that is taken before another statement", []statement{insert(50, "ANN"), tick}, errDuplicate},
		{"a condition that does not hold, after another statement",
			[]statement{tick, {query: `DELETE FROM user WHERE id = 99`, ifNone: errNothing}}, errNothing},
		{"a condition that does not hold, of a statement that returns a row",
			[]statement{tick, {query: `DELETE FROM user WHERE id = 99 RETURNING id`, scan: []any{new(int64)}, ifNone: errNothing}}, errNothing},
		{"a value that must not be NULL, after another statement",
			[]statement{tick, {query: `UPDATE user SET email = NULL`}}, errStorage},
		{"a value that must not be NULL, in a write of one statement",
			[]statement{{query: `UPDATE user SET email = NULL`}}, errStorage},
		{"a row that fails after rows of the same statement were written",
			[]statement{{query: `INSERT INTO user (id, username, email, password_hash)
				SELECT id + 60, username || '2', username || '@2.example', '' FROM user
				UNION ALL SELECT 59, 'ANN', 'fresh@example.com', ''`}}, errDuplicate},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			aUser(t, st, "ann", member)
			commits := countCommits(t, st)
			release := holdWriter(t, st)
			before := enqueue(t, st, add(st, "before"))
			failing := enqueue(t, st, func() error { return st.write(context.Background(), c.write...) })
			after := enqueue(t, st, add(st, "after"))
			release()
			errs := answersOf(t, before, failing, after)
			wantError(t, "the write before it", errs[0], nil)
			wantError(t, "the write that fails", errs[1], c.want)
			wantError(t, "the write after it", errs[2], nil)
			want := int64(2)
			if c.write[0].query == tick.query { // it fails after its first statement, and the three run again one by one
				want = 3
			}
			if got := commits.Load(); got != want {
				t.Errorf("the write that held the writer and the three took %d commits, want %d: they were not one group", got, want)
			}
			if got := usernames(t, st); !slices.Equal(got, []string{"ann", "before", "after"}) {
				t.Errorf("the users are %v, want ann and the write's neighbours", got)
			}
			if got := scan[int64](t, another(t, path), `SELECT user_id FROM counter`); got != 3 {
				t.Errorf("the counter stands at %d, want 3: the first statement of the write was not undone", got)
			}
		})
	}
}

func TestAnErrorThatIsNoConstraintFailsItsWholeGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		query string
	}{
		{"a statement that does not parse", `SELEKT`},
		{"a function that fails in the middle of an update", `UPDATE user SET email = username || test_hold(0)`},
		{"an overflow in the middle of an update", `UPDATE user SET version = abs(-9223372036854775807 - id)`},
	} {
		t.Run(c.claim, func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			aUser(t, st, "ann", member)
			release := holdWriter(t, st)
			before := enqueue(t, st, add(st, "before"))
			failing := enqueue(t, st, func() error { return st.write(context.Background(), statement{query: c.query}) })
			after := enqueue(t, st, add(st, "after"))
			release()
			for i, err := range answersOf(t, before, failing, after) {
				wantError(t, fmt.Sprintf("write %d of the group", i), err, errStorage)
			}
			if got := usernames(t, st); !slices.Equal(got, []string{"ann"}) {
				t.Errorf("the users are %v, want ann alone", got)
			}
			wantError(t, "a write after the group", add(st, "later")(), nil)
		})
	}
}

func TestACommitThatFailsFailsItsWholeGroup(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	var refuse atomic.Bool
	err := st.conn.Raw(func(c any) error {
		c.(sqlite.HookRegisterer).RegisterCommitHook(func() int32 {
			if refuse.Load() {
				return 1 // SQLite makes a ROLLBACK of the COMMIT
			}
			return 0
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	refuse.Store(true)
	wantError(t, "a write whose commit fails", add(st, "ann")(), errStorage)
	if got := usernames(t, st); len(got) != 0 {
		t.Errorf("the users are %v, want none", got)
	}
	refuse.Store(false)
	wantError(t, "a write whose commit succeeds", add(st, "bob")(), nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"bob"}) {
		t.Errorf("the users are %v, want bob alone", got)
	}
}

func TestAWriteThatIsCancelledWhileItWaitsIsNotRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim  string
		cancel func(context.Context) (context.Context, context.CancelFunc)
		want   error
	}{
		{"cancelled", context.WithCancel, context.Canceled},
		{"past its deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			return expired{ctx}, func() { cancel(nil) }
		}, context.DeadlineExceeded},
	} {
		t.Run(c.claim, func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			ctx, cancel := c.cancel(context.Background())
			defer cancel()
			release := holdWriter(t, st)
			before := enqueue(t, st, add(st, "before"))
			cancelled := enqueue(t, st, func() error {
				u := user{username: "cancelled", email: "cancelled@example.com", role: member}
				return st.addUser(ctx, console, &u, "hash", 1)
			})
			after := enqueue(t, st, add(st, "after"))
			cancel()
			release()
			errs := answersOf(t, before, cancelled, after)
			wantError(t, "the write before it", errs[0], nil)
			wantError(t, "the cancelled write", errs[1], c.want)
			if errors.Is(errs[1], errStorage) {
				t.Errorf("the cancelled write: %v is a failure of the storage", errs[1])
			}
			wantError(t, "the write after it", errs[2], nil)
			if got := usernames(t, st); !slices.Equal(got, []string{"before", "after"}) {
				t.Errorf("the users are %v, want the write's neighbours", got)
			}
		})
	}
}

// expired is a cancelled context as one past its deadline.
type expired struct{ context.Context }

func (c expired) Err() error {
	if c.Context.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

func TestAWriteThatIsCancelledWhileItRunsLandsWithItsGroup(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	release := holdWriter(t, st)
	before := enqueue(t, st, add(st, "before"))
	h := newHold()
	cancelled := enqueue(t, st, func() error {
		return st.write(ctx,
			h.statement(),
			statement{query: `INSERT INTO user (id, username, email, password_hash) VALUES (50, 'cancelled', '', '')`})
	})
	after := enqueue(t, st, add(st, "after"))
	release()
	receive(t, "the write runs", h.entered)
	cancel()
	close(h.release)
	for i, err := range answersOf(t, before, cancelled, after) {
		wantError(t, fmt.Sprintf("write %d of the group", i), err, nil)
	}
	if got := usernames(t, st); !slices.Equal(got, []string{"before", "cancelled", "after"}) { // in id order
		t.Errorf("the users are %v, want all three", got)
	}
}

func TestAFullDiskFailsTheWholeGroupAndLeavesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ctx := context.Background()
	aUser(t, st, "ann", member)
	big := user{username: "big", email: "big@example.com", role: member}
	addBig := func() error { return st.addUser(ctx, console, &big, strings.Repeat("x", 1<<20), 1) }
	full := scan[int64](t, st.conn, `PRAGMA page_count`) + 10
	scan[int64](t, st.conn, fmt.Sprintf(`PRAGMA max_page_count = %d`, full))

	for round := range 3 {
		release := holdWriter(t, st)
		writes := []<-chan error{
			enqueue(t, st, add(st, "before")),
			enqueue(t, st, func() error {
				return st.write(ctx, statement{query: `UPDATE user SET version = version + 1`})
			}),
			enqueue(t, st, addBig),
			enqueue(t, st, add(st, "after")),
			enqueue(t, st, func() error {
				return st.write(ctx, statement{query: `UPDATE user SET version = version + 1`})
			}),
		}
		release()
		for i, err := range answersOf(t, writes...) {
			wantError(t, fmt.Sprintf("round %d, write %d of the group", round, i), err, errStorage)
		}
		if got := usernames(t, st); !slices.Equal(got, []string{"ann"}) {
			t.Fatalf("round %d: the users are %v, want ann alone", round, got)
		}
		if u, err := st.user(1); err != nil || u.version != 1 {
			t.Fatalf("round %d: ann is %+v, %v, want version 1", round, u, err)
		}
	}
	wantError(t, "a small write on a disk that a large one filled", add(st, "small")(), nil)

	scan[int64](t, st.conn, `PRAGMA max_page_count = 1000000`)
	wantError(t, "the large write after room was made", addBig(), nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ann", "small", "big"}) {
		t.Errorf("the users are %v", got)
	}
	if big.id != 3 {
		t.Errorf("big has the id %d, want 3: additions that failed took ids", big.id)
	}
	if got := scan[string](t, another(t, path), `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
}

func TestAnotherProgramsWriteIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	other := another(t, path)
	runSQL(t, other,
		`BEGIN IMMEDIATE`,
		`INSERT INTO user (id, username, email, password_hash) VALUES (50, 'theirs', '', '')`)
	// Ours applies only to what the other has committed by then. It is put into
	// the queue by hand, so that the writer is known to have it when the queue
	// is empty.
	ours := &pendingWrite{
		ctx: context.Background(),
		statements: []statement{{
			query:  `UPDATE user SET username = 'ours' WHERE username = 'theirs'`,
			ifNone: errNotApplied,
		}},
		answer: make(chan error, 1),
	}
	st.queue <- ours
	await(t, "the writer takes the write", func() bool { return len(st.queue) == 0 })
	if u, err := st.user(50); err != errUserNotFound {
		t.Errorf("a reader beside the other's open transaction got %+v, %v", u, err)
	}
	runSQL(t, other, `COMMIT`)
	wantError(t, "our write", receive(t, "our write's answer", ours.answer), nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ours"}) {
		t.Errorf("the users are %v", got)
	}
}

func TestAfterCloseTheStoreAnswersWithAnError(t *testing.T) {
	t.Parallel()
	st, err := openStore(context.Background(), filepath.Join(t.TempDir(), "app.db"))
	if err != nil {
		t.Fatal(err)
	}
	ann := aUser(t, st, "ann", member)
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the queue has room: which way a write takes is chance
		wantError(t, "a write", add(st, "bob")(), errStorage)
	}
	_, err = st.user(ann.id)
	wantError(t, "a read by a statement that was prepared", err, errStorage)
	_, err = st.credentials(ann.id)
	wantError(t, "a read by a new statement", err, errStorage)
	wantError(t, "a list", st.users(context.Background(), 0, 1, filter{}, func(*user) {}), errStorage)
}

func TestCloseWaitsForTheWritesInTheQueue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	release := holdWriter(t, st)
	var writes []<-chan error
	for i := range 10 {
		writes = append(writes, enqueue(t, st, add(st, fmt.Sprint("u", i))))
	}
	closed := make(chan error, 1)
	go func() { closed <- st.close() }()
	receive(t, "close begins", st.quit)
	release()
	for i, err := range answersOf(t, writes...) {
		wantError(t, fmt.Sprintf("write %d", i), err, nil)
	}
	wantError(t, "close", receive(t, "close returns", closed), nil)
	if got := len(usernames(t, openTestStore(t, path))); got != 10 {
		t.Errorf("%d of 10 landed", got)
	}
}

// A write that comes as the store closes is done or refused: an acknowledged
// one is there afterwards, and no caller waits for ever.
func TestAWriteBesideCloseIsDoneOrRefused(t *testing.T) {
	t.Parallel()
	for round := range 10 {
		path := filepath.Join(t.TempDir(), "app.db")
		st, err := openStore(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var landed atomic.Int64
		first := make(chan struct{})
		var once sync.Once
		for w := range 16 {
			wg.Go(func() {
				for i := 0; ; i++ {
					if err := add(st, fmt.Sprintf("u%d-%d", w, i))(); err != nil {
						wantError(t, "a write that is not done", err, errStorage)
						return
					}
					landed.Add(1)
					once.Do(func() { close(first) })
				}
			})
		}
		receive(t, "a write is done", first)
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if got := len(usernames(t, openTestStore(t, path))); got != int(landed.Load()) {
			t.Fatalf("round %d: %d writes were acknowledged and %d are there", round, landed.Load(), got)
		}
	}
}

func TestCloseLeavesTheDatabaseFileAlone(t *testing.T) {
	t.Parallel()
	path := makeStore(t, "ann", "bob")
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("the directory holds %v, want app.db alone", entries)
	}
}

func TestTheWriteAheadLogStaysSmallUnderManySmallWrites(t *testing.T) {
	t.Parallel()
	const writes, most = 20000, 8 << 20
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	runSQL(t, st.conn, `PRAGMA synchronous = OFF`) // syncs take the time and have no part in this
	commits := countCommits(t, st)
	var largest int64
	for i := range writes {
		// A RETURNING, since a statement that ends before its last row leaves the
		// log as it is.
		err := st.write(context.Background(), statement{
			query: `UPDATE counter SET user_id = user_id + 1 RETURNING user_id`,
			scan:  []any{new(int64)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			info, err := os.Stat(path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			largest = max(largest, info.Size())
		}
	}
	if largest > most {
		t.Errorf("the write-ahead log grew to %d bytes, want at most %d", largest, most)
	}
	// Each commit writes a page of 4 KiB at least.
	if wrote := commits.Load() * 4096; wrote < 2*most {
		t.Errorf("%d commits would not have made it grow beyond %d: this test shows nothing", commits.Load(), most)
	}
}

func TestANewDatabaseHasTheNewestSchema(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim string
		path  string
	}{
		{"where there was no file", filepath.Join(t.TempDir(), "app.db")},
		{"where there was an empty file", emptyFile(t)},
		{"where there was an empty database", makeDatabase(t, `CREATE TABLE x (y)`, `DROP TABLE x`)},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if _, err := inspect(context.Background(), c.path); err != nil {
				t.Fatal(err)
			}
			st := openTestStore(t, c.path)
			conn := another(t, c.path)
			if got := scan[int](t, conn, `PRAGMA user_version`); got != len(migrations) {
				t.Errorf("user_version is %d, want %d", got, len(migrations))
			}
			if got := scan[int](t, conn, `PRAGMA application_id`); got != applicationID {
				t.Errorf("application_id is %#x, want %#x", got, applicationID)
			}
			aUser(t, st, "ann", member)
			if _, err := inspect(context.Background(), c.path); err != nil {
				t.Errorf("inspecting it while it is open: %v", err)
			}
		})
	}
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestANewDatabaseCanBeOpenedByManyAtOnce(t *testing.T) {
	t.Parallel()
	const rounds, openers = 10, 4
	for round := range rounds {
		path := filepath.Join(t.TempDir(), "app.db")
		stores := make([]*store, openers)
		var wg sync.WaitGroup
		for i := range stores {
			wg.Go(func() {
				_, err := inspect(context.Background(), path)
				if err == nil {
					stores[i], err = openStore(context.Background(), path)
				}
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		var writes sync.WaitGroup
		opened := 0
		for i, st := range stores {
			if st == nil {
				continue
			}
			opened++
			writes.Go(func() { wantError(t, "a write", add(st, fmt.Sprint("u", i))(), nil) })
		}
		writes.Wait()
		for _, st := range stores {
			if st == nil {
				continue
			}
			if got := len(usernames(t, st)); got != opened {
				t.Errorf("round %d: a store sees %d of %d users", round, got, opened)
			}
			if err := st.close(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// The lock that another process holds while it makes the same database. SQLite
// waits for no lock when it changes the journal's mode.
func TestADatabaseThatAnotherProcessIsMakingIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := makeDatabase(t, `VACUUM`)
	other := another(t, path)
	runSQL(t, other, `BEGIN IMMEDIATE`)
	type result struct {
		st  *store
		err error
	}
	opened := make(chan result, 1)
	go func() {
		st, err := openStore(context.Background(), path)
		opened <- result{st, err}
	}()
	var got result
	select {
	case got = <-opened:
		runSQL(t, other, `ROLLBACK`)
	case <-time.After(100 * time.Millisecond): // nothing tells that it waits
		runSQL(t, other, `ROLLBACK`)
		got = receive(t, "the database is opened", opened)
	}
	if got.err != nil {
		t.Fatal(got.err)
	}
	wantError(t, "a write", add(got.st, "ann")(), nil)
	wantError(t, "close", got.st.close(), nil)
}

func TestAMigrationThatFailsLeavesTheDatabaseAsItWas(t *testing.T) { // not parallel: it replaces migrations
	known := migrations
	t.Cleanup(func() { migrations = known })
	failing := append(slices.Clone(known), `
		CREATE TABLE half (id INTEGER);
		UPDATE user SET username = 'changed';
		INSERT INTO half SELECT id FROM nowhere`)

	t.Run("one with users", func(t *testing.T) {
		path := makeStore(t, "ann")
		before := snapshot(t, filepath.Dir(path))
		migrations = failing
		st, err := openStore(context.Background(), path)
		if err == nil {
			st.close()
			t.Fatal("it was opened")
		}
		if got := snapshot(t, filepath.Dir(path)); got != before {
			t.Errorf("the files were\n%s\nand are\n%s", before, got)
		}
		migrations = known
		if got := usernames(t, openTestStore(t, path)); !slices.Equal(got, []string{"ann"}) {
			t.Errorf("the users are %v", got)
		}
	})
	t.Run("a new one, which stays at the last migration that succeeded", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.db")
		migrations = failing
		st, err := openStore(context.Background(), path)
		if err == nil {
			st.close()
			t.Fatal("it was opened")
		}
		migrations = known
		conn := another(t, path)
		if got := scan[int](t, conn, `PRAGMA user_version`); got != len(known) {
			t.Errorf("user_version is %d, want %d", got, len(known))
		}
		if got := scan[int](t, conn, `SELECT count(*) FROM sqlite_schema WHERE name = 'half'`); got != 0 {
			t.Error("half of the migration is there")
		}
		openTestStore(t, path)
	})
	t.Run("and the next start tries again", func(t *testing.T) {
		path := makeStore(t, "ann")
		migrations = append(slices.Clone(known), `ALTER TABLE user ADD COLUMN more INTEGER NOT NULL DEFAULT 7`)
		defer func() { migrations = known }()
		st := openTestStore(t, path)
		if got := scan[int](t, another(t, path), `SELECT more FROM user`); got != 7 {
			t.Errorf("the new column holds %d, want 7", got)
		}
		if got := usernames(t, st); !slices.Equal(got, []string{"ann"}) {
			t.Errorf("the users are %v", got)
		}
	})
}

// damage overwrites a part of a file, keeping all else.
func damage(t *testing.T, path string, offset int64, bytes []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes, offset)
	if err := cmp.Or(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// firstPage returns where in the database file the first page of a table is.
func firstPage(t *testing.T, path, table string) int64 {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "mode=ro", "immutable=1"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var offset int64
	err = db.QueryRow(`
		SELECT (rootpage - 1) * (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?`, table).Scan(&offset)
	if err != nil {
		t.Fatal(err)
	}
	return offset
}

func TestInspectRefusesWhatIsNoDatabaseOfUserdsAndLeavesItAsItIs(t *testing.T) {
	t.Parallel()
	aFile := func(content string) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := emptyFile(t)
			damage(t, path, 0, []byte(content))
			return path
		}
	}
	noise := make([]byte, 8192)
	for i := range noise {
		noise[i] = byte(i*i>>3 ^ i*31)
	}
	type row struct {
		claim string
		make  func(t *testing.T) (path string)
		want  string // in the error; empty: there is none
	}
	rows := []row{
		{"no file is fine", func(t *testing.T) string { return filepath.Join(t.TempDir(), "app.db") }, ""},
		{"an empty file is fine", emptyFile, ""},
		{"an empty database is fine", func(t *testing.T) string { return makeDatabase(t, `VACUUM`) }, ""},
		{"userd's own is fine", func(t *testing.T) string { return makeStore(t, "ann") }, ""},
		{"a directory that is not there", func(t *testing.T) string { return filepath.Join(t.TempDir(), "missing", "app.db") }, "missing"},
		{"a directory", func(t *testing.T) string { return t.TempDir() }, "not a file"},
		{"a file taken for a directory", func(t *testing.T) string { return filepath.Join(emptyFile(t), "app.db") }, "not a directory"},
		{"a named pipe, which would never answer", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "app.db")
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, "not a file"},
		{"a link to itself, which nobody can read", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "app.db")
			if err := os.Symlink(path, path); err != nil {
				t.Fatal(err)
			}
			return path
		}, "app.db"},
		{"a text file", aFile("These are my notes.\n" + strings.Repeat("More of them. ", 500)), "not a database"},
		{"a short text file", aFile("notes\n"), "not a database"},
		{"a file of two bytes", aFile("x\n"), "not a database"},
		{"random bytes", aFile(string(noise)), "not a database"},
		{"zeros", aFile(string(make([]byte, 8192))), "not a database"},
		{"the right header and then random bytes", aFile("SQLite format 3\x00" + string(noise)), "reading"},
		{"a database cut in half", func(t *testing.T) string {
			path := makeStore(t, "ann")
			info, err := os.Stat(path)
			if err == nil {
				err = os.Truncate(path, info.Size()/2)
			}
			if err != nil {
				t.Fatal(err)
			}
			return path
		}, "malformed"},
		{"a database of which only the header is left", func(t *testing.T) string {
			path := makeStore(t, "ann")
			if err := os.Truncate(path, 100); err != nil {
				t.Fatal(err)
			}
			return path
		}, "reading"},
		{"a database whose schema is damaged", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, 100, noise[:3000])
			return path
		}, "malformed"},
		{"another program's database, without an application_id", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`)
		}, "another program's"},
		{"another program's database, with its own user_version", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`, `PRAGMA user_version = 1`)
		}, "another program's"},
		{"another program's database, with its own application_id", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE song (title)`, `PRAGMA application_id = 123`)
		}, "another program's"},
		{"another program's database without tables, with its own application_id", func(t *testing.T) string {
			return makeDatabase(t, `PRAGMA application_id = 123`)
		}, "another program's"},
		{"another program's database that has a table user", func(t *testing.T) string {
			return makeDatabase(t, `CREATE TABLE user (id INTEGER PRIMARY KEY, name TEXT)`)
		}, "another program's"},
		{"another program's database in WAL mode", func(t *testing.T) string {
			return makeDatabase(t, `PRAGMA journal_mode = WAL`, `CREATE TABLE song (title)`)
		}, "another program's"},
		{"a newer userd's database", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, 60, []byte{0, 0, 0, byte(len(migrations) + 1)}) // user_version, in the header
			return path
		}, "newer userd"},
		{"userd's mark on a database without its tables", func(t *testing.T) string {
			return makeDatabase(t, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID), `PRAGMA user_version = 1`, `CREATE TABLE song (title)`)
		}, "no such table"},
	}
	for _, table := range []string{"user", "counter", "session", "signing_key"} {
		rows = append(rows, row{"a database whose first page of the table " + table + " is damaged", func(t *testing.T) string {
			path := makeStore(t, "ann")
			damage(t, path, firstPage(t, path, table), noise[:4096])
			return path
		}, "table " + table})
	}
	if os.Getuid() != 0 { // whom no mode keeps from reading
		rows = append(rows, row{"a file that may not be read", func(t *testing.T) string {
			path := makeStore(t, "ann")
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
			return path
		}, "app.db"})
	}
	for _, c := range rows {
		t.Run(c.claim, func(t *testing.T) {
			path := c.make(t)
			dir := filepath.Dir(path)
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				dir = filepath.Dir(dir)
			}
			before := snapshot(t, dir)
			_, err := inspect(context.Background(), path)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && err == nil:
				t.Error("let through")
			case c.want != "" && !strings.Contains(err.Error(), c.want):
				t.Errorf("the error %q does not say %q", err, c.want)
			case err != nil && strings.ContainsAny(err.Error(), "\r\n"):
				t.Errorf("the error has more than one line: %q", err)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("the files were\n%sand are\n%s", before, after)
			}
		})
	}
}

// What a killed server leaves stands in the write-ahead log and not in the
// database file.
func TestInspectReadsAWriteAheadLogThatWasLeftBehind(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	aUser(t, st, "ann", member)
	left := filepath.Join(t.TempDir(), "app.db")
	for _, suffix := range []string{"", "-wal"} {
		// By another process: closing a descriptor here would drop SQLite's locks.
		copyFile(t, path+suffix, left+suffix)
	}
	if _, err := inspect(context.Background(), left); err != nil {
		t.Fatal(err)
	}
	if got := usernames(t, openTestStore(t, left)); !slices.Equal(got, []string{"ann"}) {
		t.Errorf("the users are %v", got)
	}
}

func TestAnActiveAdminAlwaysStays(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	demoted, disabled := member, true
	acts := map[string]func(st *store, by caller, id int64) error{
		"demoting": func(st *store, by caller, id int64) error {
			_, err := st.updateUser(ctx, by, id, change{role: &demoted}, 0, 2)
			return err
		},
		"disabling": func(st *store, by caller, id int64) error {
			_, err := st.updateUser(ctx, by, id, change{disabled: &disabled}, 0, 2)
			return err
		},
		"deleting": func(st *store, by caller, id int64) error {
			return st.deleteUser(ctx, by, id, 0, 1)
		},
	}
	for act, do := range acts {
		t.Run(act+" the last one is refused to whoever asks", func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			ann := aUser(t, st, "ann", admin)
			aUser(t, st, "bob", member)
			out := user{username: "cas", email: "cas@example.com", role: admin, disabled: true}
			if err := st.addUser(ctx, console, &out, "hash", 1); err != nil {
				t.Fatal(err)
			}
			sid := aSession(t, st, ann)
			wantError(t, "by itself", do(st, sid, ann.id), errLastAdmin)
			wantError(t, "by the console", do(st, console, ann.id), errLastAdmin)
			if u, err := st.user(ann.id); err != nil || u != ann && (u.role != admin || u.disabled || u.version != ann.version) {
				t.Errorf("ann is %+v, %v", u, err)
			}
			if !hasSession(t, st, sid) {
				t.Error("the session has ended")
			}
			wantError(t, "one who is disabled", do(st, sid, out.id), nil)
			aUser(t, st, "dan", admin)
			wantError(t, "when there is another", do(st, sid, ann.id), nil)
		})
	}
	t.Run("other changes of the last one are free", func(t *testing.T) {
		st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
		ann := aUser(t, st, "ann", admin)
		sid := aSession(t, st, ann)
		name, same, no := "anna", admin, false
		_, err := st.updateUser(ctx, sid, ann.id, change{username: &name, role: &same, disabled: &no}, 0, 2)
		wantError(t, "a change of the name", err, nil)
	})
	t.Run("a member is demoted, disabled and deleted without an admin", func(t *testing.T) {
		st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
		bob := aUser(t, st, "bob", member)
		for _, act := range []string{"demoting", "disabling", "deleting"} {
			wantError(t, act, acts[act](st, console, bob.id), nil)
		}
	})

	// Two at the same moment, through two stores as two processes have them.
	const rounds = 20
	for act, do := range acts {
		for _, who := range []string{"each other", "themselves", "two by the console"} {
			t.Run(act+" at the same moment: "+who, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "app.db")
				stores := []*store{openTestStore(t, path), openTestStore(t, path)}
				for _, st := range stores {
					runSQL(t, st.conn, `PRAGMA synchronous = OFF`) // syncs take the time and have no part in this
				}
				outside := another(t, path)
				runSQL(t, outside, `PRAGMA synchronous = OFF`)
				for round := range rounds {
					runSQL(t, outside, `DELETE FROM user`, `DELETE FROM session`)
					pair := []user{aUser(t, stores[0], "ann", admin), aUser(t, stores[0], "bob", admin)}
					by := []caller{aSession(t, stores[0], pair[0]), aSession(t, stores[0], pair[1])}
					target := []int64{pair[1].id, pair[0].id}
					switch who {
					case "themselves":
						target = []int64{pair[0].id, pair[1].id}
					case "two by the console":
						by = []caller{console, console}
					}
					errs := make([]error, 2)
					var wg sync.WaitGroup
					for i := range 2 {
						wg.Go(func() { errs[i] = do(stores[i], by[i], target[i]) })
					}
					wg.Wait()
					if (errs[0] == nil) == (errs[1] == nil) {
						t.Fatalf("round %d: they were answered %v and %v, want one success", round, errs[0], errs[1])
					}
					if n := scan[int](t, outside, `SELECT count(*) FROM user WHERE role = 'admin' AND disabled = 0`); n != 1 {
						t.Fatalf("round %d: %d active admins are left", round, n)
					}
				}
			})
		}
	}
}

func TestTheCallerIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	demoted, disabled, name := member, true, "changed"
	acts := map[string]func(st *store, by caller, id int64) error{
		"an update": func(st *store, by caller, id int64) error {
			_, err := st.updateUser(ctx, by, id, change{username: &name}, 0, 2)
			return err
		},
		"a deletion": func(st *store, by caller, id int64) error {
			return st.deleteUser(ctx, by, id, 0, 1)
		},
	}
	for act, do := range acts {
		for _, c := range []struct {
			claim string
			first func(st *store, root user, sid caller) error // stands before it in the queue
			want  error
		}{
			{"after the caller's logout is refused", func(st *store, root user, sid caller) error {
				return st.endSession(ctx, sid, root.id, sid.session, 1)
			}, errSessionEnded},
			{"after the caller's logout everywhere is refused", func(st *store, root user, sid caller) error {
				return st.endSessions(ctx, sid, root.id, 1)
			}, errSessionEnded},
			{"after the caller was demoted is refused", func(st *store, root user, _ caller) error {
				_, err := st.updateUser(ctx, console, root.id, change{role: &demoted}, 0, 2)
				return err
			}, errForbidden},
			{"after the caller was disabled is refused", func(st *store, root user, _ caller) error {
				_, err := st.updateUser(ctx, console, root.id, change{disabled: &disabled}, 0, 2)
				return err
			}, errSessionEnded},
			{"after the caller's password was changed by another is refused", func(st *store, root user, _ caller) error {
				_, err := st.updateUser(ctx, console, root.id, change{hash: &name}, 0, 2)
				return err
			}, errSessionEnded},
			{"after the caller was deleted is refused", func(st *store, root user, _ caller) error {
				return st.deleteUser(ctx, console, root.id, 0, 1)
			}, errSessionEnded},
			{"after something else happened is done", func(st *store, _ user, _ caller) error {
				return add(st, "else")()
			}, nil},
		} {
			t.Run(act+" "+c.claim, func(t *testing.T) {
				st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
				aUser(t, st, "other", admin) // so that root is not the last
				root, ann := aUser(t, st, "root", admin), aUser(t, st, "ann", member)
				sid := aSession(t, st, root)
				release := holdWriter(t, st)
				first := enqueue(t, st, func() error { return c.first(st, root, sid) })
				second := enqueue(t, st, func() error { return do(st, sid, ann.id) })
				release()
				errs := answersOf(t, first, second)
				wantError(t, "what comes first", errs[0], nil)
				wantError(t, act, errs[1], c.want)
				u, err := st.user(ann.id)
				if c.want != nil && (err != nil || u != ann) {
					t.Errorf("ann is %+v, %v, want her as she was", u, err)
				}
			})
		}
		t.Run(act+" by nobody is refused", func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			ann := aUser(t, st, "ann", member)
			var nobody caller
			wantError(t, act, do(st, nobody, ann.id), errForbidden)
			wantError(t, act+" by a session that does not exist", do(st, caller{kind: sessionCaller, session: 99}, ann.id), errSessionEnded)
			wantError(t, act+" by a session without a number", do(st, caller{kind: sessionCaller, user: ann.id}, ann.id), errSessionEnded)
			wantError(t, act+" by a stranger", do(st, caller{kind: strangerCaller}, ann.id), errForbidden)
			wantError(t, act+" by an unknown kind of caller", do(st, caller{kind: "other", session: aSession(t, st, aUser(t, st, "root", admin)).session}, ann.id), errForbidden)
			if u, err := st.user(ann.id); err != nil || u != ann {
				t.Errorf("ann is %+v, %v, want her as she was", u, err)
			}
		})
		t.Run(act+" of another is an admin's", func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			root, ann, bob := aUser(t, st, "root", admin), aUser(t, st, "ann", member), aUser(t, st, "bob", member)
			wantError(t, "by a member", do(st, aSession(t, st, ann), bob.id), errForbidden)
			wantError(t, "by a member, of somebody who is not there", do(st, aSession(t, st, ann), 99), errForbidden)
			wantError(t, "by an admin, of somebody who is not there", do(st, aSession(t, st, root), 99), errUserNotFound)
			wantError(t, "by itself", do(st, aSession(t, st, ann), ann.id), nil)
			wantError(t, "by an admin", do(st, aSession(t, st, root), bob.id), cmp.Or(map[string]error{"an update": errUsernameTaken}[act]))
		})
	}
}

func TestAChangeOfAVersionThatHasPassedIsRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	ann := aUser(t, st, "ann", member)
	first, second := "first", "second"
	u, err := st.updateUser(ctx, console, ann.id, change{username: &first}, ann.version, 7)
	want := user{id: ann.id, username: "first", email: ann.email, role: member, createdAt: ann.createdAt, updatedAt: 7, version: ann.version + 1}
	if err != nil || u != want {
		t.Fatalf("a change of the version that is there: got %+v, %v, want %+v", u, err, want)
	}
	_, err = st.updateUser(ctx, console, ann.id, change{username: &second}, ann.version, 8)
	wantError(t, "a change of the version before", err, errVersion)
	wantError(t, "a deletion of the version before", st.deleteUser(ctx, console, ann.id, ann.version, 1), errVersion)
	if got, err := st.user(ann.id); err != nil || got != want {
		t.Errorf("the user is %+v, %v, want %+v", got, err, want)
	}
	wantError(t, "a deletion of the version that is there", st.deleteUser(ctx, console, ann.id, want.version, 1), nil)
	wantError(t, "a deletion of who is gone", st.deleteUser(ctx, console, ann.id, want.version, 1), errUserNotFound)

	t.Run("and of two changes of one version one is done", func(t *testing.T) {
		bob := aUser(t, st, "bob", member)
		release := holdWriter(t, st)
		var writes []<-chan error
		for _, name := range []string{"one", "two"} {
			writes = append(writes, enqueue(t, st, func() error {
				_, err := st.updateUser(ctx, console, bob.id, change{username: &name}, bob.version, 8)
				return err
			}))
		}
		release()
		errs := answersOf(t, writes...)
		wantError(t, "the first", errs[0], nil)
		wantError(t, "the second", errs[1], errVersion)
	})
}

func TestAUserHasAtMostAHundredSessionsAndTheOldestEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ann, bob := aUser(t, st, "ann", member), aUser(t, st, "bob", member)
	bobs := aSession(t, st, bob)
	var anns []caller
	for range 105 {
		anns = append(anns, aSession(t, st, ann))
	}
	for i, sid := range anns {
		if want := i >= 5; hasSession(t, st, sid) != want {
			t.Errorf("session %d of 105 is there: %t, want %t", i+1, !want, want)
		}
	}
	if !hasSession(t, st, bobs) {
		t.Error("a session of another has ended")
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			x := session{userID: ann.id, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("hash")}
			if _, err := st.startSession(context.Background(), &x, 0, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := scan[int](t, another(t, path), `SELECT count(*) FROM session WHERE user_id = ?`, ann.id); got != 100 {
		t.Errorf("after 50 more at the same moment there are %d sessions, want 100", got)
	}
}

func TestASessionBeginsOnlyForTheUserWhosePasswordWasVerified(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	yes, other := true, "other hash"
	for _, c := range []struct {
		claim string
		first func(st *store, id int64) error // happens while the password is verified
		want  error
	}{
		{"and not after the password was changed", func(st *store, id int64) error {
			_, err := st.updateUser(ctx, console, id, change{hash: &other}, 0, 2)
			return err
		}, errCredentials},
		{"and not after the user was disabled", func(st *store, id int64) error {
			_, err := st.updateUser(ctx, console, id, change{disabled: &yes}, 0, 2)
			return err
		}, errCredentials},
		{"and not after the user was disabled and enabled again", func(st *store, id int64) error {
			no := false
			_, err := st.updateUser(ctx, console, id, change{disabled: &yes}, 0, 2)
			if err == nil {
				_, err = st.updateUser(ctx, console, id, change{disabled: &no}, 0, 3)
			}
			return err
		}, errCredentials},
		{"and not after the same password was set again", func(st *store, id int64) error {
			same := "hash"
			_, err := st.updateUser(ctx, console, id, change{hash: &same}, 0, 2)
			return err
		}, errCredentials},
		{"and not after the user was deleted", func(st *store, id int64) error {
			return st.deleteUser(ctx, console, id, 0, 1)
		}, errCredentials},
		{"and after another change all the same", func(st *store, id int64) error {
			_, err := st.updateUser(ctx, console, id, change{email: &other}, 0, 2)
			return err
		}, nil},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			ann := aUser(t, st, "ann", member)
			if err := c.first(st, ann.id); err != nil {
				t.Fatal(err)
			}
			before, _ := st.user(ann.id)
			x := session{userID: ann.id, createdAt: 5, expiresAt: 9, address: "192.0.2.1", userAgent: "curl", refreshHash: []byte("hash")}
			_, err := st.startSession(ctx, &x, 0, "new hash")
			wantError(t, "the session", err, c.want)
			login, loginErr := st.credentials(ann.id)
			sessions := scan[int](t, another(t, path), `SELECT count(*) FROM session`)
			if c.want != nil {
				if login.hash == "new hash" {
					t.Error("the hash was replaced")
				}
				if sessions != 0 {
					t.Errorf("there are %d sessions", sessions)
				}
				return
			}
			if loginErr != nil || login.hash != "new hash" {
				t.Errorf("the hash is %q, %v, want the new one", login.hash, loginErr)
			}
			u, _, err := st.principal(x.id, "", 6)
			if err != nil || u.id != ann.id || u.lastLoginAt != 5 {
				t.Errorf("the session's user is %+v, %v", u, err)
			}
			if u.version != before.version || u.updatedAt != before.updatedAt {
				t.Errorf("a replaced hash moved the version from %d to %d", before.version, u.version)
			}
			row := scan[string](t, another(t, path), `
				SELECT user_id || ' ' || created_at || ' ' || last_used_at || ' ' || expires_at || ' ' || address || ' ' || user_agent
				FROM session WHERE id = ?`, x.id)
			if want := fmt.Sprintf("%d 5 5 9 192.0.2.1 curl", ann.id); row != want {
				t.Errorf("the session is %q, want %q", row, want)
			}
		})
	}
}

func TestWhichSessionsAChangeEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	yes, no, hash, name := true, false, "new hash", "anna"
	type sessions struct{ own, second, admins, others caller }
	for _, c := range []struct {
		claim string
		act   func(st *store, id int64, s sessions) error
		want  string // what is left
	}{
		{"a changed password ends one's other sessions", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.own, id, change{hash: &hash}, 0, 2)
			return err
		}, "own admin's other's"},
		{"a password changed by an admin ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{hash: &hash}, 0, 2)
			return err
		}, "admin's other's"},
		{"a password changed by the console ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, console, id, change{hash: &hash}, 0, 2)
			return err
		}, "admin's other's"},
		{"disabling ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{disabled: &yes}, 0, 2)
			return err
		}, "admin's other's"},
		{"disabling with a new password ends all of the user's", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{disabled: &yes, hash: &hash}, 0, 2)
			return err
		}, "admin's other's"},
		{"enabling and a new name end none", func(st *store, id int64, s sessions) error {
			_, err := st.updateUser(ctx, s.admins, id, change{disabled: &no, username: &name}, 0, 2)
			return err
		}, "own second admin's other's"},
		{"a deletion ends all of the user's", func(st *store, id int64, s sessions) error {
			return st.deleteUser(ctx, s.own, id, 0, 1)
		}, "admin's other's"},
		{"a logout ends one", func(st *store, id int64, s sessions) error {
			return st.endSession(ctx, s.own, id, s.own.session, 1)
		}, "second admin's other's"},
		{"a logout everywhere ends all of the user's", func(st *store, id int64, s sessions) error {
			return st.endSessions(ctx, s.own, id, 1)
		}, "admin's other's"},
		{"a new password that comes with a name that is taken ends none", func(st *store, id int64, s sessions) error {
			taken := "ROOT"
			_, err := st.updateUser(ctx, s.own, id, change{hash: &hash, username: &taken}, 0, 2)
			if !errors.Is(err, errUsernameTaken) {
				return fmt.Errorf("got the error %v, want %v", err, errUsernameTaken)
			}
			return nil
		}, "own second admin's other's"},
		{"a refused deletion ends none", func(st *store, id int64, s sessions) error {
			if err := st.deleteUser(ctx, s.others, id, 0, 1); !errors.Is(err, errForbidden) {
				return fmt.Errorf("got the error %v, want %v", err, errForbidden)
			}
			return nil
		}, "own second admin's other's"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			st := openTestStore(t, path)
			root, ann, bob := aUser(t, st, "root", admin), aUser(t, st, "ann", member), aUser(t, st, "bob", member)
			s := sessions{aSession(t, st, ann), aSession(t, st, ann), aSession(t, st, root), aSession(t, st, bob)}
			if err := c.act(st, ann.id, s); err != nil {
				t.Fatal(err)
			}
			var left []string
			rows := 0
			for _, x := range []struct {
				name string
				sid  caller
			}{{"own", s.own}, {"second", s.second}, {"admin's", s.admins}, {"other's", s.others}} {
				if hasSession(t, st, x.sid) {
					left = append(left, x.name)
				}
				rows += scan[int](t, another(t, path), `SELECT count(*) FROM session WHERE id = ?`, x.sid.session)
			}
			if got := strings.Join(left, " "); got != c.want {
				t.Errorf("left are %q, want %q", got, c.want)
			}
			if rows != len(left) {
				t.Errorf("%d sessions are good and %d rows are there", len(left), rows)
			}
		})
	}
	t.Run("a session that has ended cannot end again", func(t *testing.T) {
		st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
		ann := aUser(t, st, "ann", member)
		sid := aSession(t, st, ann)
		wantError(t, "the first time", st.endSession(ctx, sid, ann.id, sid.session, 1), nil)
		wantError(t, "the second time", st.endSession(ctx, sid, ann.id, sid.session, 1), errSessionEnded)
		wantError(t, "everywhere", st.endSessions(ctx, sid, ann.id, 1), errSessionEnded)
	})
}

// copyFile copies a file by another process: to close a descriptor of a
// database here would drop the locks that SQLite holds on it.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// notNamed returns err, but nil where it is the sentinel: the statement has run.
func notNamed(err, sentinel error) error {
	if errors.Is(err, sentinel) {
		return nil
	}
	return err
}

// An admin who is no admin any more when its turn comes adds nobody; whoever
// registers adds a member alone.
func TestWhoMayAddIsCheckedWhenTheWriteRuns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	demoted := member
	for _, c := range []struct {
		claim string
		first func(st *store, root user, sid caller) error
		by    func(sid caller) caller
		role  role
		want  error
	}{
		{"an admin adds an admin", nil, func(sid caller) caller { return sid }, admin, nil},
		{"a demoted admin adds nobody", func(st *store, root user, sid caller) error {
			_, err := st.updateUser(ctx, console, root.id, change{role: &demoted}, 0, 2)
			return err
		}, func(sid caller) caller { return sid }, member, errForbidden},
		{"an admin who has logged out adds nobody", func(st *store, root user, sid caller) error {
			return st.endSessions(ctx, console, root.id, 1)
		}, func(sid caller) caller { return sid }, member, errSessionEnded},
		{"a stranger adds a member", nil, func(caller) caller { return caller{kind: strangerCaller} }, member, nil},
		{"a stranger adds no admin", nil, func(caller) caller { return caller{kind: strangerCaller} }, admin, errForbidden},
		{"the zero caller adds nobody", nil, func(caller) caller { return caller{} }, member, errForbidden},
	} {
		t.Run(c.claim, func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			root := aUser(t, st, "root", admin)
			aUser(t, st, "second", admin)
			sid := aSession(t, st, root)
			if c.first != nil {
				if err := c.first(st, root, sid); err != nil {
					t.Fatal(err)
				}
			}
			u := user{username: "new", email: "new@example.com", role: c.role}
			wantError(t, "the addition", st.addUser(ctx, c.by(sid), &u, "hash", 3), c.want)
			if got := len(usernames(t, st)); got != 2 && c.want != nil || got != 3 && c.want == nil {
				t.Errorf("there are %d users", got)
			}
			next := aUser(t, st, "next", member)
			if c.want != nil && next.id != 3 {
				t.Errorf("a refused addition took an id: the next is %d", next.id)
			}
		})
	}
}

// A foreign key that is deferred to the commit fails there: the write at fault
// must not take its group along.
func TestADeferredForeignKeyFailsAlone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	ann := aUser(t, st, "ann", member)
	runSQL(t, another(t, path),
		`CREATE TABLE bill (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES user (id) DEFERRABLE INITIALLY DEFERRED)`,
		`INSERT INTO bill (user_id) VALUES (1)`)
	wantError(t, "alone", st.deleteUser(ctx, console, ann.id, 0, 1), errReferenced)
	release := holdWriter(t, st)
	before := enqueue(t, st, add(st, "before"))
	deletion := enqueue(t, st, func() error { return st.deleteUser(ctx, console, ann.id, 0, 1) })
	after := enqueue(t, st, add(st, "after"))
	release()
	errs := answersOf(t, before, deletion, after)
	wantError(t, "the write before it", errs[0], nil)
	wantError(t, "the deletion", errs[1], errReferenced)
	wantError(t, "the write after it", errs[2], nil)
	if got := usernames(t, st); !slices.Equal(got, []string{"ann", "before", "after"}) {
		t.Errorf("the users are %v", got)
	}
}

// A lock that another process holds is waited for once: what stands in the queue
// behind the write that waited is answered then, and does not wait as long again.
func TestWritesBehindOneThatWaitedForALockAreRefusedWithIt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	other := another(t, path)
	runSQL(t, st.conn, `PRAGMA busy_timeout = 1000`)
	runSQL(t, other, `BEGIN IMMEDIATE`)
	// Put into the queue by hand: what has left it is the writer's, in a group
	// that the later ones cannot join any more.
	put := func() *pendingWrite {
		p := &pendingWrite{ctx: context.Background(), answer: make(chan error, 1),
			statements: []statement{{query: `UPDATE counter SET user_id = user_id`}}}
		st.queue <- p
		return p
	}
	waits := put()
	for len(st.queue) > 0 {
		runtime.Gosched()
	}
	time.Sleep(10 * time.Millisecond) // it gathers its group, and then stands at the lock for a second
	behind := []*pendingWrite{put(), put(), put()}
	wantError(t, "the write that waited", receive(t, "the write that waited", waits.answer), errStorage)
	runSQL(t, other, `ROLLBACK`) // one that waited again would now get the lock
	for _, p := range behind {
		wantError(t, "a write behind it", receive(t, "a write behind it", p.answer), errStorage)
	}
	wantError(t, "a write when the lock is gone", add(st, "after")(), nil)
}
