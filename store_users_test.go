package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"userd/internal/groupcommit/groupcommittest"
)

// aUser adds a user with the name and the role and the hash "hash".
func aUser(t *testing.T, st *store, name string, r role) user {
	t.Helper()
	u := user{username: name, email: name + "@example.com", role: r}
	if err := st.addUser(context.Background(), console, &u, "hash", 1); err != nil {
		t.Fatal(err)
	}
	return u
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

// walSize returns the size of the WAL after f.
func walSize(t *testing.T, st *store, f func()) int64 {
	t.Helper()
	f()
	_, size, err := st.size()
	if err != nil {
		t.Fatal(err)
	}
	return size
}

func TestAChangeWritesOnlyTheIndexesOfItsColumns(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
	u := aUser(t, st, "ann", member)
	update := func(c change) func() {
		return func() {
			if _, err := st.updateUser(context.Background(), console, u.id, c, 0, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := walSize(t, st, func() {})
	both := walSize(t, st, update(change{username: new("ann2"), email: new("ann2@example.com")}))
	one := walSize(t, st, update(change{email: new("ann3@example.com")}))
	if one-both >= both-before {
		t.Errorf("a new address wrote %d bytes, and a new username with it %d", one-both, both-before)
	}
}

func TestUserIDsAreNeverReused(t *testing.T) {
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
	isNew("after the first", "bob")
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

func TestNamesAreUniqueInAnyCase(t *testing.T) {
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
	t.Run("a user can change the case of its own name", func(t *testing.T) {
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

// Names that the rules of today would refuse come from adopted databases.
func TestEveryUserIsReadAsItIsStored(t *testing.T) {
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

func TestARowThatIsNotAUserIsAnError(t *testing.T) {
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

func TestListsUseTheirIndexes(t *testing.T) {
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
		{"pending users are found in the index of the pending",
			func(st *store, f func(*user)) error { return st.users(ctx, 0, 9, filter{pending: &yes}, f) },
			[]string{"SEARCH user USING INDEX user_pending (id>?)"}},
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
			if len(st.reads.Queries()) != 1 {
				t.Fatalf("it took %d statements, want 1", len(st.reads.Queries()))
			}
			conn := another(t, path)
			for _, query := range st.reads.Queries() {
				steps := plan(t, conn, query)
				for _, step := range c.steps {
					if !slices.Contains(strings.Split(steps, "\n"), step) {
						t.Errorf("the plan is\n%s\nwithout the step %s", steps, step)
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
		{"only by address", "king@", true, 9, "ALBERT"},
		{"not by address, where that is not asked for", "king@", false, 9, ""},
		{"a user that both find is listed once", "xzy", true, 9, "xzy"},
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

func TestAListHoldsTheUsersThatMatchItsFilter(t *testing.T) {
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
		t.Run(act+" the last one is refused to every caller", func(t *testing.T) {
			st := openTestStore(t, filepath.Join(t.TempDir(), "app.db"))
			ann := aUser(t, st, "ann", admin)
			aUser(t, st, "bob", member)
			out := user{username: "cas", email: "cas@example.com", role: admin, disabled: true}
			if err := st.addUser(ctx, console, &out, "hash", 1); err != nil {
				t.Fatal(err)
			}
			waits := user{username: "zoe", email: "zoe@example.com", role: admin, pending: true}
			if err := st.addUser(ctx, console, &waits, "hash", 1); err != nil {
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
					runSQL(t, st.conn.Conn, `PRAGMA synchronous = OFF`) // syncs take the time and have no part in this
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
			first func(st *store, root user, sid caller) error // runs before it
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
			{"after another program disabled the caller is refused", func(st *store, root user, _ caller) error {
				return st.write(ctx, statement{Query: `UPDATE user SET disabled = 1 WHERE id = @id`, Args: args{{"id", root.id}}})
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
				release := groupcommittest.Busy(t, st.writer)
				first := groupcommittest.Enqueue(t, st.writer, func() error { return c.first(st, root, sid) })
				second := groupcommittest.Enqueue(t, st.writer, func() error { return do(st, sid, ann.id) })
				release()
				errs := groupcommittest.Answers(t, first, second)
				wantError(t, "what comes first", errs[0], nil)
				wantError(t, act, errs[1], c.want)
				u, err := st.user(ann.id)
				if c.want != nil && (err != nil || u != ann) {
					t.Errorf("ann is %+v, %v, want her as she was", u, err)
				}
			})
		}
		t.Run(act+" by an unknown caller is refused", func(t *testing.T) {
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
			wantError(t, "by a member, of a user that does not exist", do(st, aSession(t, st, ann), 99), errForbidden)
			wantError(t, "by an admin, of a user that does not exist", do(st, aSession(t, st, root), 99), errUserNotFound)
			wantError(t, "by itself", do(st, aSession(t, st, ann), ann.id), nil)
			wantError(t, "by an admin", do(st, aSession(t, st, root), bob.id), cmp.Or(map[string]error{"an update": errUsernameTaken}[act]))
		})
	}
}

// Each write that depends on the rights of its caller checks them itself: those of the request
// may have ended.
func TestEachWriteChecksItsCaller(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newService(t)
	root := aUser(t, s.store, "root", admin)
	bobs := aSession(t, s.store, aUser(t, s.store, "bob", member))
	roots := aSession(t, s.store, root).session
	waiting := aUser(t, s.store, "waiting", member).id
	_, key := s.keyOf(root.id, writeScope, 0)
	invitationID, err := strconv.ParseInt(s.anInvitation(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	mail, err := strconv.ParseInt(s.aMail(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	values := args{{"root", root.id}, {"waiting", waiting}, {"kind", string(verifyCode)}}
	for _, query := range []string{
		`UPDATE user SET pending = 1 WHERE id = @waiting`,
		`INSERT INTO user_totp (user_id, secret, confirmed_at, last_step) VALUES (@root, x'01', 1, 1)`,
		`INSERT INTO user_totp_pending (user_id, secret, created_at) VALUES (@root, x'02', 1)`,
		insertCode + `SELECT x'03', @kind, id, email, 0, 0, 1, 9 FROM user WHERE id = @root`,
	} {
		s.change(query, values...)
	}
	name := "changed"
	acts := map[string]func(by caller) error{
		"addUser": func(by caller) error {
			return s.store.addUser(ctx, by, &user{username: "eve", role: member}, "hash", 1)
		},
		"updateUser": func(by caller) error {
			_, err := s.store.updateUser(ctx, by, root.id, change{username: &name}, 0, 1)
			return err
		},
		"deleteUser":   func(by caller) error { return s.store.deleteUser(ctx, by, waiting, 0, 1) },
		"approve":      func(by caller) error { _, err := s.store.approve(ctx, by, waiting, 1); return err },
		"addResetLink": func(by caller) error { return s.store.addResetLink(ctx, by, root.id, []byte("x"), 1, 2) },
		"addInvitation": func(by caller) error {
			return s.store.addInvitation(ctx, by, &invitation{role: member, usesLeft: 1, expiresAt: 1 << 40}, []byte("y"))
		},
		"deleteInvitation": func(by caller) error { return s.store.deleteInvitation(ctx, by, invitationID, 1) },
		"sendInvitation": func(by caller) error {
			return s.store.sendInvitation(ctx, by, &queuedMail{kind: inviteMail, subjectID: invitationID})
		},
		"retryMail": func(by caller) error { _, err := s.store.retryMail(ctx, by, mail, 1); return err },
		"queueVerification": func(by caller) error {
			return s.store.queueVerification(ctx, by, &queuedMail{kind: verifyMail, userID: root.id})
		},
		"verifyEmail": func(by caller) error {
			_, err := s.store.verifyEmail(ctx, by, &emailCode{user: root, hash: []byte{3}, kind: verifyCode}, 1)
			return err
		},
		"addPendingFactor": func(by caller) error { return s.store.addPendingFactor(ctx, by, root.id, []byte{2}, 1) },
		"addFactor": func(by caller) error {
			return s.store.addFactor(ctx, by, &confirmation{userID: root.id, pending: []byte{2}}, 1)
		},
		"renewCodes":   func(by caller) error { return s.store.renewCodes(ctx, by, root.id, nil, 1) },
		"removeFactor": func(by caller) error { return s.store.removeFactor(ctx, by, root.id, 1) },
		"addKey": func(by caller) error {
			return s.store.addKey(ctx, by, &apiKey{userID: root.id, scope: readScope}, []byte("x"))
		},
		"revokeKey":   func(by caller) error { return s.store.revokeKey(ctx, by, root.id, key, 1) },
		"endSession":  func(by caller) error { return s.store.endSession(ctx, by, root.id, roots, 1) },
		"endSessions": func(by caller) error { return s.store.endSessions(ctx, by, root.id, 1) },
	}
	for act, do := range acts {
		for who, c := range map[string]struct {
			by   caller
			want error
		}{
			"a member":                     {bobs, errForbidden},
			"a session that has ended":     {caller{kind: sessionCaller, session: 999}, errSessionEnded},
			"an API key that was revoked":  {caller{kind: keyCaller, key: 999}, errBadToken},
			"a caller of an unknown kind":  {caller{kind: "other", session: roots, key: key}, errForbidden},
			"a caller that has no session": {caller{kind: sessionCaller, user: root.id, key: key}, errSessionEnded},
		} {
			want := c.want
			if act == "verifyEmail" && c.by.kind != sessionCaller {
				want = errInvalidCode // it admits sessions and strangers only
			}
			wantError(t, act+" by "+who, do(c.by), want)
		}
	}
	files, err := filepath.Glob("store*.go")
	if err != nil {
		t.Fatal(err)
	}
	method := regexp.MustCompile(`(?ms)^func \(s \*store\) (\w+)\(.*?^}`)
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range method.FindAllSubmatch(source, -1) {
			if bytes.Contains(m[0], []byte("` + mayChange")) && acts[string(m[1])] == nil {
				t.Errorf("%s: acts has no %s", file, m[1])
			}
		}
	}
}

// What ends with a change or the deletion of a user belongs to this user only.
func TestAnActOnAUserChangesNothingOfAnother(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	hash, yes, no, other := "new hash", true, false, member
	for act, do := range map[string]func(st *store) error{
		"a deletion":     func(st *store) error { return st.deleteUser(ctx, console, 1, 0, 5) },
		"a new password": func(st *store) error { _, err := st.updateUser(ctx, console, 1, change{hash: &hash}, 0, 5); return err },
		"disabling": func(st *store) error {
			_, err := st.updateUser(ctx, console, 1, change{disabled: &yes}, 0, 5)
			return err
		},
		"enabling": func(st *store) error {
			_, err := st.updateUser(ctx, console, 1, change{disabled: &no}, 0, 5)
			return err
		},
		"a new role": func(st *store) error {
			_, err := st.updateUser(ctx, console, 1, change{role: &other}, 0, 5)
			return err
		},
		"a reset": func(st *store) error {
			return st.resetPassword(ctx, 1, resetMailCode, []byte("ur1"), hash, provenFactor{recovery: []byte("code1")}, "", 5)
		},
		"the end of its sessions": func(st *store) error { return st.endSessions(ctx, console, 1, 5) },
		"new recovery codes":      func(st *store) error { return st.renewCodes(ctx, console, 1, nil, 5) },
		"the end of its factor":   func(st *store) error { return st.removeFactor(ctx, console, 1, 5) },
		"a new factor": func(st *store) error {
			return st.addFactor(ctx, console, &confirmation{userID: 1, pending: []byte("pending1"), sealed: []byte("x")}, 5)
		},
		"a verified address": func(st *store) error {
			_, err := st.verifyEmail(ctx, console, &emailCode{kind: verifyCode, hash: []byte("uv1"), user: user{id: 1}}, 5)
			return err
		},
		"a new address": func(st *store) error {
			_, err := st.confirmEmail(ctx, &emailCode{kind: changeCode, hash: []byte("uc1"), user: user{id: 1}}, &queuedMail{kind: undoMail, userID: 1}, 5)
			return err
		},
		"a restored address": func(st *store) error {
			return st.restoreEmail(ctx, &emailCode{kind: undoCode, hash: []byte("uu1"), user: user{id: 1}}, hash, &queuedMail{kind: resetMail, userID: 1}, 5)
		},
	} {
		t.Run(act, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			for _, name := range []string{"ann", "bob", "root"} {
				u := aUser(t, s.store, name, admin)
				aSession(t, s.store, u)
				s.keyOf(u.id, adminScope, 0)
				s.anInvitation()
			}
			for _, query := range []string{
				`UPDATE session SET factor = 1`,
				`UPDATE user SET pending_email = 'next' || id || '@example.com'`,
				`UPDATE user_invitation SET created_by = id`,
				`INSERT INTO user_totp (user_id, secret, confirmed_at, last_step) SELECT id, cast('secret' || id AS BLOB), 1, 1 FROM user`,
				`INSERT INTO user_totp_pending (user_id, secret, created_at) SELECT id, cast('pending' || id AS BLOB), 1 FROM user`,
				`INSERT INTO user_recovery_code (hash, user_id) SELECT cast('code' || id AS BLOB), id FROM user`,
				`INSERT INTO user_code (hash, kind, user_id, email, old_email, invitation_id, created_by, created_at, expires_at)
					SELECT cast(kind || id AS BLOB), kind, id, iif(kind = 'uc', pending_email, email), 'old' || id || '@example.com', 0, id, 1, 9
					FROM user, (SELECT 'ur' AS kind UNION SELECT 'ul' UNION SELECT 'uv' UNION SELECT 'uc' UNION SELECT 'uu')`,
			} {
				s.change(query)
			}
			rows := `SELECT json_array((SELECT json_group_array(json_array(email, pending_email, password_hash, role, disabled, auth_stamp, email_verified_at, version)) FROM user WHERE id > 1),
				(SELECT count(*) FROM user_invitation WHERE created_by > 1), (SELECT count(*) FROM event WHERE user_id > 1),
				(SELECT sum(factor) || max(kept_jti) || max(rekeyed_at) FROM session WHERE user_id > 1)`
			for _, table := range userTables {
				rows += fmt.Sprintf(", (SELECT count(*) FROM %s WHERE user_id > 1)", table)
			}
			before := scanStore[string](t, s, rows+")")
			wantError(t, act, do(s.store), nil)
			if after := scanStore[string](t, s, rows+")"); after != before {
				t.Errorf("other users had %s and have %s", before, after)
			}
		})
	}
}

func TestAChangeOfAnOldVersionIsRefused(t *testing.T) {
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
		release := groupcommittest.Busy(t, st.writer)
		var writes []<-chan error
		for _, name := range []string{"one", "two"} {
			writes = append(writes, groupcommittest.Enqueue(t, st.writer, func() error {
				_, err := st.updateUser(ctx, console, bob.id, change{username: &name}, bob.version, 8)
				return err
			}))
		}
		release()
		errs := groupcommittest.Answers(t, writes...)
		wantError(t, "the first", errs[0], nil)
		wantError(t, "the second", errs[1], errVersion)
	})
}

// An admin that was demoted before its write runs adds no user. A stranger adds only
// members.
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
		{"a demoted admin adds no user", func(st *store, root user, sid caller) error {
			_, err := st.updateUser(ctx, console, root.id, change{role: &demoted}, 0, 2)
			return err
		}, func(sid caller) caller { return sid }, member, errForbidden},
		{"an admin who has logged out adds no user", func(st *store, root user, sid caller) error {
			return st.endSessions(ctx, console, root.id, 1)
		}, func(sid caller) caller { return sid }, member, errSessionEnded},
		{"a stranger adds a member", nil, func(caller) caller { return caller{kind: strangerCaller} }, member, nil},
		{"a stranger adds no admin", nil, func(caller) caller { return caller{kind: strangerCaller} }, admin, errForbidden},
		{"the zero caller adds no user", nil, func(caller) caller { return caller{} }, member, errForbidden},
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

func TestNothingOfDeletedUsersStaysInTheFile(t *testing.T) {
	t.Parallel()
	const users = 2040 // of which 40 stay, with a new password
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "app.db")
	st := openTestStore(t, path)
	var gone []string // hashes and addresses
	var writes sync.WaitGroup
	each := func(f func(id int64) error) {
		for id := range int64(users) {
			writes.Go(func() {
				if err := f(id + 1); err != nil {
					t.Error(err)
				}
			})
		}
		writes.Wait()
	}
	var mu sync.Mutex
	names := make(map[int64]string)
	each(func(int64) error {
		name := strings.ToLower(rand.Text())
		u := user{username: name, email: name + "@gone.example", role: member}
		hash := "$argon2id$v=19$m=19456,t=2,p=1$" + rand.Text() + "$" + rand.Text()
		err := st.addUser(ctx, console, &u, hash, 1)
		mu.Lock()
		defer mu.Unlock()
		gone = append(gone, hash)
		names[u.id] = u.email
		return err
	})
	each(func(id int64) error {
		if id%51 == 0 {
			_, err := st.updateUser(ctx, console, id, change{hash: new("a new one"), email: new(fmt.Sprintf("%d@new.example", id))}, 0, 2)
			return err
		}
		return st.deleteUser(ctx, console, id, 0, 2)
	})
	gone = slices.AppendSeq(gone, maps.Values(names))
	if err := st.eraseRemnants(ctx); err != nil {
		t.Fatal(err)
	}
	runSQL(t, st.conn.Conn, `PRAGMA wal_checkpoint(TRUNCATE)`)
	copied := path + ".copy"
	copyFile(t, path, copied) // by another process: closing a descriptor here would drop SQLite's locks
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, text := range gone {
		if bytes.Contains(data, []byte(text)) {
			left++
		}
	}
	if left > 0 || len(gone) != 2*users {
		t.Errorf("%d of %d hashes and addresses are still in the file of %d bytes", left, len(gone), len(data))
	}
}
