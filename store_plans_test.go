package main

import (
	"bytes"
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

	"userd/internal/apikey"
	"userd/internal/seal"
)

// returns returns a function that accepts the results of a call, and ends the test unless the last
// result is the error want.
func returns(t *testing.T, want error) func(results ...any) {
	return func(results ...any) {
		t.Helper()
		err, _ := results[len(results)-1].(error)
		if !errors.Is(err, want) {
			t.Fatalf("got the error %v, want %v", err, want)
		}
	}
}

// exercise makes the store prepare each of its statements.
func exercise(t *testing.T, st *store) {
	t.Helper()
	root := aUser(t, st, "root", admin)
	ann := aUser(t, st, "ann", member)
	sid := aSession(t, st, root)
	for range 2 {
		aSession(t, st, ann)
	}
	exerciseSessions(t, st, sid, ann)
	exerciseAPIKeys(t, st, root, ann)
	exerciseLists(t, st)
	exerciseFactors(t, st, ann)
	exerciseEmails(t, st, ann)
	exerciseInvitations(t, st)
	exerciseRegistrations(t, st)
	exerciseOutbox(t, st, ann)
	exerciseChanges(t, st, sid, ann)
	exerciseSigningKeys(t, st)
	ok := returns(t, nil)
	ok(st.endSession(t.Context(), sid, root.id, sid.session, 1))
	ok(st.endSessions(t.Context(), aSession(t, st, root), root.id, 1))
	ok(st.probe(t.Context()))
	aSession(t, st, root)
	ok(st.sweep(t.Context(), 0, 1<<41))
	exerciseEvents(t, st)
}

func exerciseSessions(t *testing.T, st *store, sid caller, ann user) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	returns(t, errBadToken)(st.principal(sid.session, tokenID{}, "kid", 0))
	ok(st.session(sid.session))
	x := session{id: sid.session, generation: 1, expiresAt: 1 << 40, refreshHash: []byte("next")}
	returns(t, errNotApplied)(st.rotate(ctx, &x, []byte{}, 2))
	returns(t, errNotApplied)(st.repeatRotation(ctx, &session{id: sid.session, generation: 9}, maxGraceUses))
	ok(st.sessionsOf(ctx, ann.id, 0, func(*session) {}))
	ok(st.loginsFrom(ctx, ann.id, func(string) bool { return false }))
	st.touch(sid.session, 2)
	ok(st.endReused(ctx, ann.id, 99, "", 2))
	ok(st.authorizationError(sid, ann.id))
}

func exerciseAPIKeys(t *testing.T, st *store, root, ann user) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	k := apiKey{userID: root.id, name: "job", scope: adminScope, createdAt: 1, expiresAt: 2}
	key := apikey.New()
	ok(st.addKey(ctx, console, &k, apikey.Hash(key)))
	st.touchKey(k.id, "192.0.2.1", touchKeyEvery)
	ok(st.userOfKey(key, 1))
	ok(st.authorizationError(caller{kind: keyCaller, key: k.id, requiresProof: true}, ann.id))
	ok(st.keysOf(ctx, root.id, func(*apiKey) {}))
	ok(st.sweepKeys(ctx, 2+keepExpiredKeys))
	returns(t, errKeyNotFound)(st.revokeKey(ctx, console, root.id, k.id, 1))
}

func exerciseLists(t *testing.T, st *store) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	yes, no, none := true, false, func(*user) {}
	ok(st.user(1))
	ok(st.credentials(1))
	ok(st.userByLogin("ann"))
	ok(st.checkFree("nobody", "nobody@example.com", 0))
	for _, only := range []filter{{}, {role: member}, {role: admin}, {role: admin, disabled: &yes}, {disabled: &yes}, {disabled: &no}, {pending: &yes}, {pending: &no}} {
		ok(st.users(ctx, 0, 1, only, none))
	}
	ok(st.search(ctx, "a", false, 1, none))
	ok(st.search(ctx, "a", true, 1, none))
	ok(st.hasAdmin())
}

func exerciseFactors(t *testing.T, st *store, ann user) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	ring, err := seal.NewRing(make([]byte, seal.KeySize))
	ok(err)
	previous, err := seal.NewRing(bytes.Repeat([]byte{1}, seal.KeySize))
	ok(err)
	both, err := seal.NewRing(make([]byte, seal.KeySize), bytes.Repeat([]byte{1}, seal.KeySize))
	ok(err)
	sealed := previous.Seal([]byte("secret"), sealName(ann.id))
	ok(st.addPendingFactor(ctx, console, ann.id, sealed, 1))
	ok(st.pendingSecret(ann.id))
	ok(st.addFactor(ctx, console, &confirmation{ann.id, sealed, sealed, 1, [][]byte{[]byte("r1"), []byte("r2")}}, 1))
	ok(st.countWrongCode(ctx, ann.id))
	ok(st.hasRecoveryCode(ann.id, []byte("r1")))
	ok(st.countRecoveryCodes(ann.id))
	ok(st.useFactor(ctx, ann.id, provenFactor{step: 2}, "", 1))
	ok(st.useFactor(ctx, ann.id, provenFactor{recovery: []byte("r1")}, "", 1))
	c, err := st.credentials(ann.id)
	ok(err)
	ok(st.upgradeHash(ctx, ann.id, c.stamp, "hash"))
	x := session{userID: ann.id, createdAt: 1, expiresAt: 1 << 40, refreshHash: []byte("hash")}
	ok(st.startSession(ctx, &x, c.stamp, "", provenFactor{step: 3}, endWarning(ann.id, "192.0.2.1", 1)))
	ok(st.renewCodes(ctx, console, ann.id, [][]byte{[]byte("r3")}, 1))
	ok(st.recordLock(ctx, ann.id, "", 1))
	ok(st.dataKey())
	ok(st.sealKeys(ctx, func([]byte, int64, int64) {}))
	ok(st.reseal(ctx, ring, 1)) // it cannot open the secret
	ok(st.reseal(ctx, both, 1))
	ok(st.removeFactor(ctx, console, ann.id, 1))
}

// exerciseMail queues a mail and takes it, which stores a code with the hash kind + mail.
func exerciseMail(t *testing.T, st *store, m queuedMail, queue func(m *queuedMail) error) {
	t.Helper()
	ok := returns(t, nil)
	m.createdAt = 1000
	ok(queue(&m))
	ok(st.mails(t.Context(), 0, -1, mailQueued, func(queued *queuedMail) { m = *queued }))
	ok(st.takeMail(t.Context(), &m, mailRules[m.kind].budget, []byte(m.kind), 1000))
	ok(st.closeMail(t.Context(), &m, string(mailSent), "", 1000))
}

func exerciseEmails(t *testing.T, st *store, ann user) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	code := func(kind codeKind, mail mailKind) *emailCode {
		t.Helper()
		c, err := st.emailCode(kind, []byte(mail), 1000)
		ok(err)
		return &c
	}
	queue := func(m *queuedMail) error { return st.write(ctx, m.statement()) }

	exerciseMail(t, st, queuedMail{kind: verifyMail, userID: ann.id}, func(m *queuedMail) error { return st.queueVerification(ctx, console, m) })
	ok(st.verifyEmail(ctx, console, code(verifyCode, verifyMail), 1000))

	next := "next@example.com"
	exerciseMail(t, st, queuedMail{kind: changeMail, userID: ann.id, email: next}, func(m *queuedMail) error {
		_, err := st.updateUser(ctx, console, ann.id, change{pendingEmail: &next}, 0, 1000, m.toPending()...)
		return err
	})
	exerciseMail(t, st, queuedMail{kind: undoMail, userID: ann.id, detail: next}, func(m *queuedMail) error {
		_, err := st.confirmEmail(ctx, code(changeCode, changeMail), m, 1000)
		return err
	})
	exerciseMail(t, st, queuedMail{kind: resetMail, userID: ann.id, email: ann.email, detail: restored}, func(m *queuedMail) error {
		return st.restoreEmail(ctx, code(undoCode, undoMail), "hash", m, 1000)
	})
	ok(st.userOfCode(resetMailCode, []byte(resetMail), 1000))
	ok(st.resetPassword(ctx, ann.id, resetMailCode, []byte(resetMail), "hash", provenFactor{}, "", 1000))
	ok(st.addResetLink(ctx, console, ann.id, []byte("link"), 1000, 2000))
	ok(st.userByEmail(ann.email))
	ok(queue(&queuedMail{kind: changedMail, userID: ann.id, email: ann.email, createdAt: 1000}))
}

func exerciseInvitations(t *testing.T, st *store) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	v := invitation{email: "eve@example.com", role: member, usesLeft: 1, createdAt: 1000, expiresAt: 2000}
	exerciseMail(t, st, queuedMail{kind: inviteMail, email: v.email}, func(m *queuedMail) error {
		return st.addInvitation(ctx, console, &v, []byte("invitation"), m.ofNewInvitation())
	})
	ok(st.sendInvitation(ctx, console, &queuedMail{kind: inviteMail, subjectID: v.id, createdAt: 1000}))
	returns(t, errInvitationNotFound)(st.sendInvitation(ctx, console, &queuedMail{kind: inviteMail, subjectID: 99, createdAt: 1000}))
	ok(st.invitations(ctx, 0, 1, 1000, func(*invitation) {}))
	ok(st.invitationOfCode([]byte("invitation"), 1000))
	ok(st.addInvited(ctx, &user{username: "eve", email: v.email}, "hash", []byte("invitation"), &v, "", 1000))
	ok(st.deleteInvitation(ctx, console, v.id, 1000))
}

func exerciseRegistrations(t *testing.T, st *store) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	ok(st.recordPages(ctx, pageURLs{reset: "https://example.com/"}))
	register := func(m *queuedMail) error { return st.addRegistration(ctx, "tom", "hash", m, 1000) }
	exerciseMail(t, st, queuedMail{kind: registerMail, email: "tom@example.com"}, register)
	r, err := st.registrationOfCode([]byte(registerMail), 1000)
	ok(err)
	ok(st.registration(r.id))
	tom := user{username: "tom", pending: true}
	ok(st.addRegistered(ctx, &tom, &r, []byte(registerMail), "", 1000, approvalMails(1000)))
	ok(st.waitsForApproval())
	ok(st.approve(ctx, console, tom.id, 1000))
	m := queuedMail{kind: verifyMail, createdAt: 1000}
	ok(st.addUser(ctx, console, &user{username: "ted", email: "ted@example.com", role: member, pending: true}, "hash", 1000, m.toNewUser()))
	ok(st.dropPending(ctx, 0, 1<<40))
	exerciseMail(t, st, queuedMail{kind: takenMail, email: "tim@example.com"}, register)
}

func exerciseOutbox(t *testing.T, st *store, ann user) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	m := queuedMail{kind: factorMail, userID: ann.id, createdAt: 1000}
	ok(st.write(ctx, m.warn(60)))
	ok(st.dueMails(ctx, 1, 2000, func(*queuedMail) {}))
	ok(st.mails(ctx, 0, 1, "", func(queued *queuedMail) { m = *queued }))
	ok(st.mails(ctx, 0, 1, mailSent, func(*queuedMail) {}))
	ok(st.delayMail(ctx, &m, "error", 3000))
	ok(st.retryMail(ctx, console, m.id, 2000))
	ok(st.retryMail(ctx, console, 0, 2000))
	ok(st.mailQueue())
	ok(st.sweepCodes(ctx, 1<<41))
}

func exerciseChanges(t *testing.T, st *store, sid caller, ann user) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	yes, hash, name := true, "hash", "bob"
	ok(st.updateUser(ctx, sid, ann.id, change{username: &name}, 0, 2))
	ok(st.updateUser(ctx, sid, ann.id, change{hash: &hash}, 0, 2))
	r := rekeying{session: session{id: sid.session, expiresAt: 1 << 40, refreshHash: []byte("next")}}
	ok(st.updateUser(ctx, sid, ann.id, change{hash: &hash}, 0, 2, r.statements()...))
	ok(st.updateUser(ctx, sid, ann.id, change{disabled: &yes}, 0, 2))
	ok(st.deleteUser(ctx, sid, ann.id, 0, 1))
}

func exerciseSigningKeys(t *testing.T, st *store) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	returns(t, errNoKey)(st.keySecret("kid", 0))
	ok(st.secret(ctx, "refresh", []byte("fresh")))
	ok(st.newestKey())
	ok(st.ensureKey(ctx, keyRow{"kid", []byte("secret")}, 1, 1))
	ok(st.rotateKey(ctx, keyRow{"next", []byte("secret")}, false, 2))
	ok(st.signingKeys(ctx))
	ok(st.rotateKey(ctx, keyRow{"last", []byte("secret")}, true, 2))
	ok(st.rotateSecret(ctx, "refresh", []byte("fresh"), 2))
	ok(st.recordSigner(ctx, true, 2))
	ok(st.retireKeys(ctx, 3))
}

func exerciseEvents(t *testing.T, st *store) {
	t.Helper()
	ctx, ok := t.Context(), returns(t, nil)
	for _, only := range []eventFilter{{}, {userID: 1}, {kind: loggedIn}, {userID: 1, kind: loggedIn}} {
		ok(st.events(ctx, 0, 1, only, func(*event) {}))
	}
	ok(st.eventsSince(ctx, 0, eventFilter{}, func(*event) {}))
	ok((&chain{st: st}).extend(ctx))
	ok((&chain{st: st}).trim(ctx, 1<<41, 2))
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

// allowedScans are the steps that may read a table or an index from its beginning, and why.
var allowedScans = map[string]string{
	"SCAN CONSTANT ROW":                           "it is a SELECT without a table",
	"SCAN 2-ROW VALUES CLAUSE":                    "it inserts two rows",
	"SCAN counter":                                "it has one row",
	"SCAN signing_key":                            "its last row ends it",
	"SCAN user USING INDEX user_admin":            "it holds only the admins",
	"SCAN other USING INDEX user_admin":           "it holds only the admins, and the first other active one ends it",
	"SCAN user USING COVERING INDEX user_pending": "its first row ends it",
	"SCAN user_totp USING INDEX user_totp_key":    "starts and commands count, requests do not: 0.2 s for a million users",
	"SCAN again":                                  "the mails that a retry changes",
	"SCAN (subquery-1)":                           "what the search found by name, at most its limit",
	"SCAN (subquery-2)":                           "the sessions of one sweep",
	"SCAN (subquery-3)":                           "what the search found by address, at most its limit",
	"SCAN event":                                  "the events that one trimming looks at, at most its limit",
	"SCAN event_link":                             "its last row ends it",
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
	conn := another(t, path)
	found := make(map[string]bool)
	for _, query := range queries {
		for step := range strings.Lines(plan(t, conn, query)) {
			step = strings.TrimSpace(step)
			if found[step] = true; strings.HasPrefix(step, "SCAN ") && allowedScans[step] == "" {
				t.Errorf("%s\nfor %s", step, query)
			}
		}
	}
	for step := range allowedScans {
		if !found[step] {
			t.Errorf("%s is allowed, but no plan has it", step)
		}
	}

	t.Run("and every statement of the store was looked at", func(t *testing.T) {
		i := slices.IndexFunc(layers, func(l layer) bool { return l.name == "store" })
		_, files := programFiles(t)
		for _, name := range layers[i].files {
			if name == "schema.go" || name == "adopt.go" {
				continue // they run before there are requests
			}
			for _, decl := range files[name].Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && wholeTables[f.Name.Name] != "" {
					continue
				}
				for _, text := range sqlOf(t, decl) {
					if !slices.ContainsFunc(queries, func(query string) bool { return strings.Contains(unnamed(query), unnamed(text)) }) {
						t.Errorf("%s has a statement that exercise does not run: %s", name, text)
					}
				}
			}
		}
	})
}

// The mails in a state are few or most, and only most mails may be read one by one.
func TestMailsInAStateAreFoundInTheirIndex(t *testing.T) {
	t.Parallel()
	for _, state := range []mailState{mailQueued, mailFailed, mailDropped} {
		path := filepath.Join(t.TempDir(), "app.db")
		st := openTestStore(t, path)
		returns(t, nil)(st.mails(t.Context(), 7, 9, state, func(*queuedMail) {}))
		for _, query := range st.reads.Queries() {
			if got, want := plan(t, another(t, path), query), "SEARCH user_mail USING INDEX user_mail_state (state=? AND rowid>?)"; got != want {
				t.Errorf("the plan for %s mails is\n%s\nwant\n%s", state, got, want)
			}
		}
	}
}

// wholeTables are the functions of the store that read a whole table, and why they may.
var wholeTables = map[string]string{
	"export":        "the command line exports all users",
	"count":         "the metrics count, on a connection of their own",
	"countKeys":     "the metrics count, on a connection of their own",
	"insertFactors": "an import reads the rows that it has added",
}

// sqlOf returns the texts in a declaration that are SQL.
func sqlOf(t *testing.T, decl ast.Decl) (texts []string) {
	t.Helper()
	keyword := regexp.MustCompile(`\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|FROM|WHERE|ORDER BY)\b`)
	ast.Inspect(decl, func(n ast.Node) bool {
		literal, ok := n.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING || !keyword.MatchString(literal.Value) {
			return true
		}
		text, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
		return true
	})
	return texts
}

// unnamed returns SQL without the names and numbers of its parameters, which a read replaces.
func unnamed(query string) string { return regexp.MustCompile(`[@?]\w*`).ReplaceAllString(query, "?") }
