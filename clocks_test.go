package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"userd/internal/clientaddr"
	"userd/internal/throttle"
)

// clockReaders are the functions that compare two times, or that read a clock for a
// function or a statement in SQL that compares it. Each has the reason why a step of
// the wall clock does no harm:
//
//   - mono: it measures a duration on the monotonic clock, which cannot be set.
//   - stored: it writes a time into a row or a file name. Nothing compares it there.
//   - a subtest of TestAStepOfTheWallClock, or another test, that shows it.
var clockReaders = map[string]string{
	"adopt.go copyBefore":                  "stored",
	"adopt.go upgradeTutorial":             "stored",
	"auth.go keyring.verify":               "access tokens",
	"auth.go server.authenticate":          "access tokens",
	"backup.go restore":                    "stored",
	"cli.go cli.newUserService":            "stored",
	"cli.go mailTest":                      "stored",
	"cli.go mailRetry":                     "the outbox",
	"cli_data.go cli.printEvents":          "mono",
	"cli_data.go eventsVerify":             "trimming",
	"cli.go keyRotate":                     "signing keys",
	"cli_users.go sessionEnd":              "stored",
	"cli_users.go sessionList":             "sessions",
	"cli_users.go userDelete":              "stored",
	"outbox.go server.retryMail":           "the outbox",
	"http.go server.ServeHTTP":             "mono",
	"http.go server.logRequest":            "mono",
	"import.go importer.tryInsert":         "stored",
	"limits.go guess.finish":               "limits",
	"limits.go server.allow":               "limits",
	"limits.go server.allowLookup":         "limits",
	"limits.go server.newGuess":            "limits", // and sessions, for known networks
	"limits.go server.noteLogin":           "limits",
	"serve.go keepChain":                   "trimming", // and mono, for its interval
	"serve.go monotonic":                   "mono",
	"serve.go serve":                       "mono",
	"serve.go serveStore":                  "signing keys",
	"sessions.go server.endSession":        "stored",
	"sessions.go server.endSessions":       "stored",
	"sessions.go server.listSessions":      "sessions",
	"sessions.go server.logout":            "stored",
	"sessions.go server.refresh":           "TestTheGraceIsForTheSameClient",
	"sessions.go server.rekey":             "stored",
	"serve.go watchFiles":                  "mono",
	"store_keys.go store.keySecret":        "signing keys",
	"store.go keepErasing":                 "mono",
	"store_sessions.go store.principal":    "sessions",
	"store_sessions.go store.rotate":       "sessions",
	"store_keys.go store.rotateKey":        "signing keys",
	"store_sessions.go store.sessionsOf":   "sessions",
	"store_sessions.go store.sweep":        "sessions",
	"store_sessions.go store.touch":        "sessions",
	"users.go server.deleteUser":           "stored",
	"users.go server.streamUsers":          "mono",
	"registrations.go userService.addUser": "stored",
	"users.go userService.changeUser":      "stored",
	"cli_users.go userTOTP":                "stored",
	"factors.go server.checkCode":          "TestACodeWorksOnceIfTheClockIsSet",
	"factors.go server.countWrongCode":     "stored",
	"factors.go server.removeTOTP":         "stored",
	"factors.go server.renewRecoveryCodes": "stored",
	"auth.go server.requireProof":          "TestProofTable",
	"factors.go userService.beginFactor":   "stored",
	"factors.go userService.confirmFactor": "TestAddingASecondFactor",
	"factors.go userService.rotateDataKey": "stored",
	"limits.go guess.finishFirstFactor":    "limits",
	"factors.go server.newMFAToken":        "stored",
	"factors.go server.parseMFAToken":      "TestAnMFATokenOnlyCompletesALogin",
	"sessions.go server.startSession":      "sessions",
	"codes.go server.warnOwner":            "stored",
	"store_mail.go endWarning":             "the outbox",
	"store_mail.go queuedMail.warn":        "the outbox",
	"limits.go server.allowOwner":          "limits",

	"codes.go server.forgotPassword":      "stored",
	"codes.go server.notice":              "stored",
	"limits.go server.countMail":          "limits",
	"limits.go server.mayMail":            "limits",
	"handlers.go server.databaseFamilies": "stored", // the age of a mail, for a metric
	"outbox.go outbox.attach":             "stored",
	"store_mail.go queuedMail.toVerified": "stored",
	"outbox.go outbox.drop":               "stored",
	"outbox.go outbox.finish":             "the outbox",
	"outbox.go outbox.run":                "mono",
	"outbox.go outbox.sendDue":            "the outbox",
	"outbox.go outbox.sendOnce":           "the outbox",
	"store_mail.go store.takeMail":        "the outbox",

	"cli_users.go userApprove":                    "stored",
	"registrations.go server.approveUser":         "stored",
	"registrations.go server.deleteInvitation":    "stored",
	"registrations.go server.listInvitations":     "codes",
	"registrations.go server.register":            "codes",
	"codes.go server.resetPassword":               "codes",
	"registrations.go userService.addInvited":     "codes",
	"registrations.go userService.makeInvitation": "codes",
	"codes.go userService.makeResetLink":          "codes",
	"store_codes.go deleteExpired":                "sessions", // and codes
	"store_codes.go store.dropPending":            "TestUsersWhoWaitForAMonthAreDropped",
	"store_codes.go store.invitationOfCode":       "codes",
	"store_codes.go store.invitations":            "codes",
	"store_codes.go store.sweepCodes":             "codes",

	"cli.go invitationDelete":                      "stored",
	"cli.go invitationList":                        "codes",
	"registrations.go server.askForApproval":       "stored",
	"registrations.go server.completeRegistration": "codes",
	"registrations.go server.createInvitation":     "stored",
	"registrations.go server.startRegistration":    "stored",
	"registrations.go server.sendInvitation":       "codes",
	"store_codes.go store.addRegistered":           "codes",
	"store_codes.go store.registrationOfCode":      "codes",
	"store_mail.go approvalMails":                  "TestAdminsAreMailedAtMostHourly",
	"store_mail.go store.sendInvitation":           "codes",
	"codes.go server.confirmEmail":                 "codes",
	"codes.go server.emailCode":                    "codes",
	"codes.go server.prepareMails":                 "stored",
	"codes.go server.restoreEmail":                 "codes",
	"codes.go server.sendVerification":             "stored",
	"registrations.go server.verifyEmail":          "codes",
	"store_mail.go endUndo":                        "stored",

	"cli_users.go tokenRevoke":       "stored",
	"auth.go server.authenticateKey": "API keys",
	"keys.go server.introspect":      "API keys", // and access tokens
	"keys.go server.revokeKey":       "stored",
	"keys.go userService.addKey":     "API keys",
	"store_keys.go store.addKey":     "API keys",
	"store_keys.go store.sweepKeys":  "API keys",
	"store_keys.go store.touchKey":   "API keys",
	"store_keys.go store.userOfKey":  "API keys",
}

func TestEveryReaderOfAClockIsListed(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	listed := maps.Clone(clockReaders)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, name := range readersOf(t, file) {
			if reader := file + " " + name; listed[reader] == "" {
				t.Errorf("%s reads a clock or compares times: say in clockReaders why a step of the wall clock does no harm", reader)
			} else {
				delete(listed, reader)
			}
		}
	}
	for reader := range listed {
		t.Errorf("%s does not exist, or reads no clock", reader)
	}
}

// An operator, NTP or a virtual machine that was resumed sets the wall clock.
func TestAStepOfTheWallClock(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, step := range []time.Duration{-31 * day, -4 * time.Hour, -5 * time.Second, 5 * time.Second, 4 * time.Hour, 31 * day} {
		t.Run("access tokens "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			_, token := s.member("ann")
			s.clock.set(s.wall().Add(step))
			r := s.do(token, "GET", "/api/users/me", "")
			if step.Abs() < time.Minute {
				r.want(t, 200, "")
			} else {
				r.want(t, 401, "expired_token") // so the client refreshes
			}
			token = s.login("ann")
			s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
		})
		t.Run("sessions "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t) // sessions of 30 days
			s.register("ann")
			refresh := s.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).field("refresh_token")
			s.clock.set(s.wall().Add(step))
			now := s.wall().Unix()
			s.store.touch(1, now)
			if _, err := s.store.sweep(t.Context(), 0, now); err != nil {
				t.Fatal(err)
			}
			r := s.do("", "POST", "/api/refresh", `{"refresh_token":"`+refresh+`"}`)
			if step > 30*day {
				r.want(t, 401, "session_ended")
				return
			}
			token := r.want(t, 200, "").field("access_token")
			if got := s.do(token, "GET", "/api/users/me/sessions", "").want(t, 200, "").list(t, "current"); len(got) != 1 {
				t.Errorf("%d sessions, want 1", len(got))
			}
		})
		t.Run("codes "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			path, _ := s.register("ann")
			_, root := s.admin("root")
			verify := s.postbox().only("ann@example.com", "Confirm").code // for a day
			code := s.resetLink(root, path)                               // for a day
			s.clock.set(s.wall().Add(step))
			if err := s.store.sweepCodes(t.Context(), s.wall().Unix()); err != nil {
				t.Fatal(err)
			}
			for _, use := range []func() reply{
				func() reply { return s.sendPassword(verify, goodPassword) },
				func() reply { return s.reset(code, "another long one") },
			} {
				if step > day {
					use().want(t, 400, "invalid_code")
				} else {
					use().want(t, 200, "")
				}
			}
		})
		t.Run("API keys "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			id := s.addNamed("ann", member, false)
			key, _ := s.keyOf(id, readScope, 7*day)
			s.do(key, "GET", "/api/verify", "").want(t, 200, "")
			before := s.wall()
			s.clock.set(before.Add(step))
			if err := s.store.sweepKeys(t.Context(), s.wall().Unix()); err != nil {
				t.Fatal(err)
			}
			s.keyOf(id, readScope, time.Hour)
			r := s.do(key, "GET", "/api/verify", "")
			if step > 7*day {
				r.want(t, 401, "expired_key")
			} else {
				r.want(t, 200, "")
			}
			s.clock.set(before)
			s.do(key, "GET", "/api/verify", "").want(t, 200, "")
		})
		t.Run("the limits of recipients "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t, withMail)
			p := s.postbox()
			s.added("ann")
			s.forgot("ann")
			p.only("ann@example.com", "password")
			s.clock.set(s.wall().Add(step))
			s.forgot("ann")
			if step.Abs() < time.Minute {
				p.none("the second in a minute")
			} else {
				p.only("ann@example.com", "password")
			}
		})
		t.Run("signing keys "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			_, token := s.member("ann")
			next := randomKey()
			if err := s.store.rotateKey(t.Context(), next, false, s.wall().Unix()); err != nil {
				t.Fatal(err)
			}
			s.clock.set(s.wall().Add(step))
			if _, err := s.store.sweep(t.Context(), 0, s.wall().Unix()); err != nil {
				t.Fatal(err)
			}
			if r := s.do(token, "GET", "/api/users/me", ""); r.status != 200 && step.Abs() < time.Minute || r.status != 401 && step.Abs() > time.Minute {
				t.Errorf("a token of the retired key: %d", r.status)
			}
			if key := s.signer(); key.kid != next.kid {
				t.Errorf("key %s signs, want %s", key.kid, next.kid)
			}
			s.do(s.login("ann"), "GET", "/api/users/me", "").want(t, 200, "")
		})
		t.Run("limits "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t, proxied)
			s.register("ann")
			for range freeFailures {
				s.tryLogin(homeNet, "ann", wrongPassword).want(t, 401, "")
			}
			x := &exchange{address: homeNet, who: principal{user: user{id: 1}}}
			waits := func() (all []string) {
				for limit := noLimit + 1; limit < limitCount; limit++ {
					keys := []throttle.Key{s.limiter.seed.Key(clientaddr.Network(homeNet))}
					if limit < networkFailures {
						keys[0] = s.limiter.seed.Key("1")
					}
					all = append(all, fmt.Sprint(s.limiter.allowances[limit].CheckAll(keys, s.mono())))
				}
				return all
			}
			for limit := noLimit + 1; limit < limitCount; limit++ {
				a := &s.limiter.allowances[limit]
				for range a.Burst {
					a.Take(s.limiter.seed.Key("1"), s.mono())
					a.Take(s.limiter.seed.Key(clientaddr.Network(x.address)), s.mono())
				}
			}
			before := waits()
			s.clock.set(s.wall().Add(step))
			if after := waits(); !slices.Equal(before, after) {
				t.Errorf("before the step %q, after it %q", before, after)
			}
			s.limiter.allowances = newLimiter().allowances
			s.tryLogin(homeNet, "ann", goodPassword).wantWait(t, 2)
			s.clock.add(2 * time.Second)
			s.tryLogin(homeNet, "ann", goodPassword).want(t, 200, "")
		})
		t.Run("trimming "+step.String(), func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			s.register("ann")
			events := chain{st: s.store}
			if err := events.extend(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.clock.set(s.wall().Add(step))
			const retention = 400 * day // the default
			if more, err := events.trim(t.Context(), s.wall().Add(-retention).Unix(), s.wall().Unix()); err != nil || more {
				t.Errorf("it trimmed events: %t, %v", more, err)
			}
			s.register("bob")
			if err := events.extend(t.Context()); err != nil {
				t.Fatal(err)
			}
			v, err := s.store.verifyEvents(t.Context(), 0, head{})
			if err != nil {
				t.Fatal(err)
			}
			if err := checkBase(&v, retention, s.wall()); err != nil {
				t.Error(err)
			}
		})
	}
}

// readersOf returns the functions of a file that read a clock or compare two times.
func readersOf(t *testing.T, file string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		name := f.Name.Name
		if f.Recv != nil {
			kind := f.Recv.List[0].Type
			if star, ok := kind.(*ast.StarExpr); ok {
				kind = star.X
			}
			name = fmt.Sprint(kind, ".", name)
		}
		reads := false
		ast.Inspect(f.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				reads = reads || slices.Contains([]string{"wall", "mono", "Now", "Since", "Until", "Before", "After", "Sub", "AfterFunc", "NewTicker"}, n.Sel.Name) && fmt.Sprint(n.X) != "context"
			case *ast.BinaryExpr:
				compares := slices.Contains([]token.Token{token.LSS, token.LEQ, token.GTR, token.GEQ, token.SUB}, n.Op)
				for _, side := range []ast.Expr{n.X, n.Y} {
					id, ok := side.(*ast.Ident)
					reads = reads || compares && ok && id.Name == "now"
				}
			case *ast.BasicLit: // SQL
				reads = reads || strings.Contains(n.Value, "@now") && strings.ContainsAny(n.Value, "<>") || strings.Contains(n.Value, "expires_at >") || strings.Contains(n.Value, "expires_at <")
			case *ast.Ident:
				reads = reads || n.Name == "keyIsValid"
			}
			return true
		})
		if reads {
			names = append(names, name)
		}
	}
	return names
}
