package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// someHash is a published vector: bcrypt of "U*U", cost 5.
const someHash = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"

const annsLine = `{"username":"ann","email":"ann@example.com","password_hash":"` + someHash + `"}`

func TestImport(t *testing.T) {
	t.Parallel()
	fails := map[string]string{ // what the last line says
		"an empty file":                           "userd: the file is empty\n",
		"an unknown column":                       `userd: unknown column "shoe": see userd help user import`,
		"a CSV without a header":                  "userd: the first row must be a header with at least the columns username and email: see userd help user import\n",
		"a column twice":                          `userd: column "username" appears twice`,
		"an unclosed quote":                       "userd: row 2: ",
		"an unclosed quote after a good row":      "userd: row 3: ",
		"a line without an end":                   "userd: row 1: is longer than 64 KiB, the maximum of a row\n",
		"a CSV field without an end":              "userd: row 3: is longer than 64 KiB, the maximum of a row\n",
		"a CSV header without an end":             "userd: the header: is longer than 64 KiB, the maximum of a row\n",
		"an element of an array without an end":   "userd: row 2: is longer than 64 KiB, the maximum of a row\n",
		"an array that is cut off":                "userd: row 2: unexpected EOF\n",
		"an array that is cut off in a row":       "userd: row 1: unexpected EOF\n",
		"text after an array":                     "userd: row 2: text follows the JSON array\n",
		"a column of another table than Django's": `userd: unknown column "shoe": see userd help user import`,
		"empty lines of NDJSON":                   "userd: 1 bad row; nothing was imported\n",
		"bad rows: nothing":                       "userd: 2 bad rows; nothing was imported\n",
		"a hash in no known form":                 "userd: 1 bad row; nothing was imported\n",
		"bad rows: how many good ones":            "userd: would leave out 2 bad rows\n",
		"bad rows: the good ones":                 "userd: left out 2 bad rows\n",
		"a clash with a row that is left out":     "userd: left out 3 bad rows\n",
	}
	for _, test := range []struct {
		claim  string
		flags  string
		file   string
		status int
		out    string   // on standard output
		rows   []string // told on standard error, by their beginnings
		users  string   // afterwards, except root
	}{
		{"CSV with passwords and hashes", "", "username,email,password,password_hash,role\n" +
			"ann,ann@example.com,correct horse battery,,admin\nbob,bob@example.com,," + someHash + ",\n",
			0, "imported 2 users\n", nil, "ann:admin bob:member"},
		{"NDJSON", "", `{"username":"ann","email":"ann@example.com","password":"correct horse battery","role":"admin"}` + "\n" +
			`{"username":"bob","email":"bob@example.com","password_hash":"` + someHash + `","disabled":true,"last_login_at":null}` + "\n",
			0, "imported 2 users\n", nil, "ann:admin bob:member"},
		{"spaces around names", "", "username,email,password_hash\nann , ann@example.com," + someHash + "\nroot ,eve@example.com," + someHash + "\n",
			1, "", []string{"row 3: username already exists"}, ""},
		{"spaces around a name", "", "username,email,password_hash\n\" ann\",ann@example.com ," + someHash + "\n",
			0, "imported 1 user\n", nil, "ann:member"},
		{"only checking", "-dry-run", "username,email,password\nann,ann@example.com,correct horse battery\n",
			0, "would import 1 user\n", nil, ""},
		{"bad rows: nothing", "", "username,email,password\nann,ann@example.com,correct horse battery\n?,bob@example.com,short\nroot,eve@example.com,correct horse battery\n",
			1, "", []string{"row 3: Not valid: password must", "row 4: username already exists"}, ""},
		{"bad rows: how many good ones", "-partial -dry-run", "username,email,password\nann,ann@example.com,correct horse battery\n?,bob@example.com,short\neve,ROOT@example.com,correct horse battery\n",
			1, "would import 1 user\n", []string{"row 3: Not valid: password must", "row 4: email already exists"}, ""},
		{"bad rows: the good ones", "-partial", "username,email,password\nann,ann@example.com,correct horse battery\n?,bob@example.com,short\neve,ROOT@example.com,correct horse battery\n",
			1, "imported 1 user\n", []string{"row 3: Not valid: password must", "row 4: email already exists"}, "ann:member"},
		{"rows that clash", "", "username,email,password_hash\nann,a1@example.com," + someHash + "\nbob,b@example.com," + someHash + "\nANN,a2@example.com," + someHash + "\neve,B@example.com," + someHash + "\n",
			1, "", []string{"row 4: username already appears in row 2", "row 5: email already appears in row 3"}, ""},
		{"a clash with a row that is left out", "-partial", "username,email,password_hash\n" +
			"ann,a@example.com," + someHash + "\nANN,b@example.com," + someHash + "\nbob,B@example.com," + someHash + "\n" +
			"bob,c@example.com," + someHash + "\neve,c@example.com," + someHash + "\nkim,C@example.com," + someHash + "\n",
			1, "imported 3 users\n", []string{"row 3: username already appears in row 2", "row 5: username already appears in row 4", "row 7: email already appears in row 6"}, "ann:member bob:member eve:member"},
		{"a row that clashes only with one whose id is taken", "-partial", "id,username,email,password_hash\n1,ann,a@example.com," + someHash + "\n,ann,b@example.com," + someHash + "\n",
			1, "imported 1 user\n", []string{"row 2: id was already given to a user"}, "ann:member"},
		{"ids that are free", "", "id,username,email,password_hash\n70,ann,a@example.com," + someHash + "\n,bob,b@example.com," + someHash + "\n",
			0, "imported 2 users\n", nil, "ann:member bob:member"},
		{"ids that are not", "", "id,username,email,password_hash\n1,ann,a@example.com," + someHash + "\n9,bob,b@example.com," + someHash + "\n9,eve,e@example.com," + someHash + "\n0,kim,k@example.com," + someHash + "\n4503599627370496,max,m@example.com," + someHash + "\n",
			1, "", []string{"row 2: id was already given to a user", "row 4: id already appears in row 3", "row 5: Not valid: id must", "row 6: Not valid: id must"}, ""},
		{"a hash in no known form", "", "username,email,password_hash\nann,a@example.com,5f4dcc3b5aa765d61d8327deb882cf99\n",
			1, "", []string{"row 2: Not valid: password_hash has an unknown format"}, ""},
		{"a password and a hash", "", "username,email,password,password_hash\nann,a@example.com,correct horse battery," + someHash + "\n",
			1, "", []string{"row 2: Not valid: password and password_hash are both given"}, ""},
		{"neither", "", "username,email,password\nann,a@example.com,\n",
			1, "", []string{"row 2: Not valid: password and password_hash are both empty"}, ""},
		{"bad values", "", "username,email,password_hash,role,disabled,created_at\nann,a@example.com," + someHash + ",king,perhaps,yesterday\n",
			1, "", []string{"row 2: Not valid: created_at must be a time such as 2026-01-31T12:00:00Z; disabled must be true or false; role must be member or admin"}, ""},
		{"a row with a field too few", "", "username,email,password_hash\nann,a@example.com\n",
			1, "", []string{"row 2: has 2 fields instead of 3"}, ""},
		{"addresses that begin with a sign", "", "username,email,password_hash\nann,=a@example.com," + someHash + "\nbob,-b@example.com," + someHash + "\n",
			1, "", []string{"row 2: Not valid: email must not begin with '-'", "row 3: Not valid: email must not begin with '-'"}, ""},
		{"an unknown column", "", "username,email,password_hash,shoe\n", 1, "", nil, ""},
		{"a CSV without a header", "", "kim@example.com,kim," + someHash + "\n", 1, "", nil, ""},
		{"a CSV of hashes with a header of another program", "", "name,password_hash\nann," + someHash + "\n", 1, "", nil, ""},
		{"an object of addresses and hashes", "", `{"kim@example.com":"` + someHash + `"}` + "\n" + `{"kim@example.com":1,"kim@example.com":2}` + "\n",
			1, "", []string{"row 1: has neither username nor email", "row 2: has neither username nor email"}, ""},
		{"a column twice", "", "username,email,username,password_hash\n", 1, "", nil, ""},
		{"an unclosed quote", "", "username,email,password_hash\n\"ann,a@example.com,x\n", 1, "", nil, ""},
		{"a password that is a number", "", `{"username":"ann","email":"a@example.com","password":12345678901234567890}` + "\n",
			1, "", []string{`row 1: password must be a string`}, ""},
		{"a name that is true", "", `{"username":true,"email":"a@example.com","password":"correct horse battery"}` + "\n",
			1, "", []string{`row 1: username must be a string`}, ""},
		{"an unknown member", "", `{"username":"ann","email":"a@example.com","password":"correct horse battery","shoe":44}` + "\n",
			1, "", []string{`row 1: unknown member "shoe"`}, ""},
		{"a member twice", "", `{"username":"ann","username":"bob"}` + "\n", 1, "", []string{`row 1: the member "username" appears twice`}, ""},
		{"a line that is not JSON", "", "{\n", 1, "", []string{"row 1: the text is not valid JSON"}, ""},
		{"an empty file", "", "", 1, "", nil, ""},
		{"a spreadsheet's CSV", "", "\ufeffusername,email,password_hash\r\nann,a@example.com," + someHash + "\r\n",
			0, "imported 1 user\n", nil, "ann:member"},
		{"a byte-order mark before a quoted header", "", "\ufeff\"username\",\"email\",\"password_hash\"\r\n\"ann\",\"ann@example.com\",\"" + someHash + "\"\r\n",
			0, "imported 1 user\n", nil, "ann:member"},
		{"a byte-order mark before NDJSON", "", "\ufeff" + annsLine + "\r\n", 0, "imported 1 user\n", nil, "ann:member"},
		{"a byte-order mark before a JSON array", "", "\ufeff[" + annsLine + "]", 0, "imported 1 user\n", nil, "ann:member"},
		{"empty lines of NDJSON", "", "\n" + annsLine + "\n \t\r\n{}\n\n\n", 1, "", []string{"row 4: Not valid: email"}, ""},
		{"empty lines and rows of only commas", "", "username,email,password_hash\n\nann,ann@example.com," + someHash + "\n,,\n\" \",\t,\n,,,,\n,\n?,b@example.com," + someHash + "\n",
			1, "", []string{"row 7: Not valid: username"}, ""},
		{"only rows of commas", "", "username,email,password_hash\n,,\n,,\n", 0, "imported 0 users\n", nil, ""},
		{"a JSON array", "", "\n[\n" + annsLine + ",\n{\"username\":\"bob\",\n\"email\":\"bob@example.com\",\"password_hash\":\"" + someHash + "\"}\n]\n",
			0, "imported 2 users\n", nil, "ann:member bob:member"},
		{"an empty JSON array", "", "[]", 0, "imported 0 users\n", nil, ""},
		{"a JSON array with bad rows", "", "[" + annsLine + ", 7, {\"shoe\":44}]", 1, "", []string{"row 2: the text must be one JSON object", `row 3: has neither username nor email`}, ""},
		{"an array that is cut off", "", "[" + annsLine, 1, "", nil, ""},
		{"an array that is cut off in a row", "", "[" + annsLine[:40], 1, "", nil, ""},
		{"text after an array", "", "[" + annsLine + "]\n[]", 1, "", nil, ""},
		{"Django's auth_user", "", "id,password,last_login,is_superuser,username,first_name,last_name,email,is_staff,is_active,date_joined\n" +
			"5,pbkdf2_sha256$1000$salt$YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=,2026-01-02 03:04:05.678+00:00,t,ann,Ann,A,a@example.com,t,t,2025-01-02 03:04:05+00\n" +
			"6,bcrypt_is_not_in_django$x,,0,bob,,,b@example.com,0,1,2025-01-02T03:04:05Z\n",
			1, "", []string{"row 3: Not valid: password_hash has an unknown format"}, ""},
		{"a column of another table than Django's", "", "username,email,date_joined,shoe\n", 1, "", nil, ""},
		{"a line without an end", "", `{"username":"` + strings.Repeat("a", maxBody), 1, "", nil, ""},
		{"a CSV field without an end", "", "username,email,password_hash\nann,ann@example.com," + someHash + "\n\"" + strings.Repeat("a\n", maxBody), 1, "", nil, ""},
		{"a CSV header without an end", "", strings.Repeat("username", maxBody), 1, "", nil, ""},
		{"an element of an array without an end", "", "[" + annsLine + `,{"username":"` + strings.Repeat("a", maxBody), 1, "", nil, ""},
		{"an unclosed quote after a good row", "-partial", "username,email,password_hash\nann,a@example.com," + someHash + "\n\"bob,b@example.com,x\n", 1, "", nil, ""},
		{"NDJSON with a number", "", `{"id":70,"username":"ann","email":"ann@example.com","password_hash":"` + someHash + `"}` + "\n", 0, "imported 1 user\n", nil, "ann:member"},
		{"only a header", "", "username,email,password_hash\n", 0, "imported 0 users\n", nil, ""},
	} {
		t.Run(test.claim, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			sh := &shell{t, s.path}
			s.admin("root")
			out, errOut := sh.run(test.status, test.file, append([]string{"user", "import", "-"}, strings.Fields(test.flags)...)...)
			if out != test.out {
				t.Errorf("printed %q", out)
			}
			lines := strings.Split(strings.TrimSpace(errOut), "\n")
			if test.status == 0 {
				lines = append(lines[1:], "")
			}
			if len(lines) != len(test.rows)+1 {
				t.Errorf("told %q", errOut)
			}
			for i, want := range test.rows {
				if i < len(lines) && !strings.HasPrefix(lines[i], want) {
					t.Errorf("told %q, want %q", lines[i], want)
				}
			}
			for _, secret := range []string{"kim@", someHash, "correct horse"} {
				if strings.Contains(errOut, secret) {
					t.Errorf("told %s of the file: %q", secret, errOut)
				}
			}
			if want := fails[test.claim]; !strings.Contains(errOut, want) {
				t.Errorf("told %q, want %q", errOut, want)
			}
			var users []string
			s.store.users(t.Context(), 1, -1, filter{}, func(u *user) { users = append(users, u.username+":"+string(u.role)) })
			if got := strings.Join(users, " "); got != test.users {
				t.Errorf("there are %q", got)
			}
		})
	}
}

// Imported users can log in, and the ids of later users are higher than theirs.
func TestImportedUsersLogIn(t *testing.T) {
	t.Parallel()
	s := newService(t)
	sh := &shell{t, s.path}
	file := filepath.Join(t.TempDir(), "users.csv")
	text := "id,username,email,password,disabled,created_at\n" +
		"40,ann,ann@example.com,correct horse battery,false,2020-01-02T03:04:05Z\n" +
		",bob,bob@example.com,correct horse battery,true,\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sh.run(0, "", "user", "import", file)
	r := s.do(s.login("ann"), "GET", "/api/users/me", "").want(t, 200, "")
	if r.field("id") != "40" || r.field("created_at") != "2020-01-02T03:04:05Z" {
		t.Errorf("ann is %s", r.body)
	}
	s.do("", "POST", "/api/login", `{"username":"bob","password":"correct horse battery"}`).want(t, 403, "user_disabled")
	if bob, err := s.store.user(41); err != nil || bob.createdAt < time.Now().Unix()-3600 || bob.updatedAt != bob.createdAt {
		t.Errorf("bob is %+v, %v", bob, err)
	}
	if _, id := s.register("eve"); id != "42" {
		t.Errorf("the next id is %s", id)
	}
	sh.run(1, "", "user", "import", filepath.Join(t.TempDir(), "none.csv"))
}

// An export, imported into an empty database, gives the same users.
func TestExportImportRoundTrip(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.admin("root")
	bob, _ := s.register("bob")
	s.register("carol")
	s.do(s.login("root"), "PUT", bob, `{"disabled":true}`).want(t, 200, "")
	s.do(token, "DELETE", path, "").want(t, 200, "")
	sh := &shell{t, s.path}
	for _, format := range [][]string{nil, {"-ndjson"}} {
		export, _ := sh.run(0, "", append([]string{"user", "export"}, format...)...)
		if (format != nil) != strings.HasPrefix(export, "{") {
			t.Errorf("export %v begins with %.20q", format, export)
		}
		other := &shell{t, filepath.Join(t.TempDir(), "other.db")}
		other.run(0, export, "user", "import", "-")
		if again, _ := other.run(0, "", append([]string{"user", "export"}, format...)...); again != export {
			t.Errorf("exported %s\nthen %s", export, again)
		}
	}
}

// JavaScript rounds integers from 2^53 on, and later users have higher ids than imported
// ones.
func TestUsersAfterTheHighestImportedIDHaveExactIDs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	rows := fmt.Sprintf("id,username,email,password_hash\n%d,ann,ann@example.com,%s\n,bob,bob@example.com,%[2]s\n", maxID, someHash)
	(&shell{t, s.path}).run(0, rows, "user", "import", "-")
	if path, _ := s.register("eve"); path != "/api/users/4503599627370497" {
		t.Errorf("the next user is at %s", path)
	}
}

// If a name is registered between the check and the insertion, its row is bad, and
// the insertion is tried again without it.
func TestImportRace(t *testing.T) {
	t.Parallel()
	for _, partial := range []bool{true, false} {
		s := newService(t)
		var out, errOut bytes.Buffer
		m, err := newImporter(t.Context(), &cli{
			config:      config{database: s.path},
			userService: s.userService,
			stdin:       strings.NewReader(""),
			stdout:      &out,
			stderr:      &errOut,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer m.close()
		rows := "username,email,password_hash\nann,ann@example.com," + someHash + "\nbob,bob@example.com," + someHash + "\n"
		if err := m.read(t.Context(), strings.NewReader(rows)); err != nil {
			t.Fatal(err)
		}
		if err := m.removeConflicts(t.Context()); err != nil || m.bad > 0 {
			t.Fatal(err, errOut.String())
		}
		s.register("BOB")
		err = m.insert(t.Context(), partial)
		if got := errOut.String(); got != "row 3: username already exists\n" {
			t.Errorf("it reports %q", got)
		}
		if !partial {
			if err == nil || err.Error() != "1 bad row; nothing was imported" || out.Len() > 0 || count(t, s, "user") != 1 {
				t.Errorf("it says %v and prints %q", err, out.String())
			}
			continue
		}
		if err == nil || err.Error() != "left out 1 bad row" || out.String() != "imported 1 user\n" || count(t, s, "user") != 2 {
			t.Errorf("it says %v and prints %q", err, out.String())
		}
		s.do("", "POST", "/api/login", `{"username":"ann","password":"U*U"}`).want(t, 200, "")
	}
}

// importer returns an importer for the database of s.
func (s *service) importer(t *testing.T, stdout, stderr io.Writer) *importer {
	t.Helper()
	m, err := newImporter(t.Context(), &cli{config: config{database: s.path}, userService: s.userService, stdout: stdout, stderr: stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.close() })
	return m
}

func TestAnImportThatFailsIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var out, errOut bytes.Buffer
	m := s.importer(t, &out, &errOut)
	if err := m.read(t.Context(), strings.NewReader("username,email,password_hash\nann,ann@example.com,"+someHash+"\n")); err != nil {
		t.Fatal(err)
	}
	if err := m.exec(t.Context(), `CREATE TEMP TRIGGER broken BEFORE INSERT ON main.user BEGIN SELECT raise(ABORT, 'broken'); END`); err != nil {
		t.Fatal(err)
	}
	if err := m.insert(t.Context(), true); err == nil || !strings.HasPrefix(err.Error(), "importing: ") || !strings.Contains(err.Error(), "broken") || out.Len() > 0 {
		t.Errorf("it says %v and prints %q", err, out.String())
	}
}

// An id can be taken after the check too.
func TestImportRaceForAnID(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var out, errOut bytes.Buffer
	m := s.importer(t, &out, &errOut)
	rows := "id,username,email,password_hash\n1,ann,ann@example.com," + someHash + "\n,bob,bob@example.com," + someHash + "\n"
	if err := m.read(t.Context(), strings.NewReader(rows)); err != nil {
		t.Fatal(err)
	}
	s.register("eve")
	s.do(s.login("eve"), "DELETE", "/api/users/me", "").want(t, 200, "")
	if err := m.insert(t.Context(), true); err == nil || err.Error() != "left out 1 bad row" || errOut.String() != "row 2: id was already given to a user\n" {
		t.Errorf("it says %v and reports %q", err, errOut.String())
	}
	if u, _, err := s.store.userByLogin("bob"); err != nil || u.id != 2 {
		t.Errorf("bob is %+v, %v", u, err)
	}
}

// A large import builds its indexes anew; they must hold the same rules.
func TestLargeImportKeepsTheIndexes(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.register("zoe")
	var file strings.Builder
	file.WriteString("username,email,password_hash\n")
	for i := range 1500 {
		fmt.Fprintf(&file, "user%d,user%d@example.com,%s\n", i, i, someHash)
	}
	sh := &shell{t, s.path}
	sh.run(0, file.String(), "user", "import", "-")
	s.do("", "POST", "/api/register", `{"username":"USER7","email":"new@example.com","password":"testpass"}`).want(t, 400, "username_taken")
	s.do("", "POST", "/api/register", `{"username":"new","email":"USER7@example.com","password":"testpass"}`).want(t, 400, "email_taken")
	s.do("", "POST", "/api/register", `{"username":"ZOE","email":"new@example.com","password":"testpass"}`).want(t, 400, "username_taken")
	if found, err := s.store.checkIntegrity(t.Context()); len(found) > 0 || err != nil {
		t.Errorf("%s, %v", found, err)
	}
}

// Users of Django, and of programs that store bcrypt hashes, log in after an import.
func TestImportedHashesLogIn(t *testing.T) {
	t.Parallel()
	hashes := make(map[string]string)
	for _, f := range foreignHashes(t) {
		hashes[f.format] = f.hash
	}
	for claim, file := range map[string]string{
		"Django's auth_user": "id,password,last_login,is_superuser,username,first_name,last_name,email,is_staff,is_active,date_joined\n" +
			"5," + hashes["Django's PBKDF2"] + ",2026-01-02 03:04:05.678+00:00,t,ann,Ann,A,ann@example.com,t,t,2025-01-02 03:04:05+00\n" +
			"6," + hashes["Django's PBKDF2"] + ",,False,bob,,,bob@example.com,False,False,2025-01-02T03:04:05Z\n",
		"a CSV of bcrypt": "username,email,password_hash,role,disabled\n" +
			"ann,ann@example.com," + hashes["bcrypt 2b"] + ",admin,\nbob,bob@example.com," + hashes["bcrypt 2y"] + ",,true\n",
	} {
		t.Run(claim, func(t *testing.T) {
			s := newService(t)
			(&shell{t, s.path}).run(0, file, "user", "import", "-")
			r := s.do(s.login("ann"), "GET", "/api/users/me", "").want(t, 200, "")
			if r.field("role") != "admin" {
				t.Errorf("ann is %s", r.body)
			}
			s.do("", "POST", "/api/login", `{"username":"bob","password":"correct horse battery"}`).want(t, 403, "user_disabled")
		})
	}
}

// A new database is created after the file was read next to another one.
func TestAnImportIntoANewDatabase(t *testing.T) {
	t.Parallel()
	file := "id,username,email,password,password_hash\n,ann,a@example.com," + goodPassword + ",\n70,bob,b@example.com,," + someHash + "\n,ANN,c@example.com,," + someHash + "\n"
	sh := &shell{t, filepath.Join(t.TempDir(), "app.db")}
	out, errOut := sh.run(1, file, "user", "import", "-", "-partial")
	if out != "imported 2 users\n" || errOut != "row 4: username already appears in row 2\ncreated the database "+sh.database+"\nuserd: left out 1 bad row\n" {
		t.Errorf("it prints %q and %q", out, errOut)
	}
	s := newServiceOn(t, sh.database)
	s.clock.t = time.Now()
	if r := s.do(s.login("ann"), "GET", "/api/users/me", "").want(t, 200, ""); r.field("id") != "71" {
		t.Errorf("ann is %s", r.body)
	}
	if out, _ := sh.run(0, "", "events", "-json", "-type", "users_imported"); strings.Count(out, `"users=2"`) != 1 {
		t.Errorf("the events are %s", out)
	}
}

func TestADryRunOfAnImportCreatesAndUpgradesNoDatabase(t *testing.T) {
	t.Parallel()
	rows := "username,email,password_hash\nann,ann@example.com," + someHash + "\nANN,b@example.com," + someHash + "\n"
	dir := t.TempDir()
	sh := &shell{t, filepath.Join(dir, "app.db")}
	if out, errOut := sh.run(1, rows, "user", "import", "-dry-run", "-partial", "-"); out != "would import 1 user\n" || !strings.HasPrefix(errOut, "row 3: username already appears in row 2\n") {
		t.Errorf("it prints %q and %q", out, errOut)
	}
	wantFiles(t, dir)

	tutorial := flaskDatabase(t)
	before, err := os.ReadFile(tutorial)
	if err != nil {
		t.Fatal(err)
	}
	if _, errOut := (&shell{t, tutorial}).run(1, rows, "user", "import", "-dry-run", "-"); !strings.Contains(errOut, "run userd adopt first") {
		t.Errorf("it prints %q", errOut)
	}
	if after, err := os.ReadFile(tutorial); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the database of the tutorial was changed, %v", err)
	}
}

// Rows are hashed on every core, and conflicts are found after all rows are read.
func TestBadRowsAreReportedInOrderAlsoBeforeAFatalOne(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var file strings.Builder
	file.WriteString("username,email,password_hash\nann,ann@example.com," + someHash + "\n")
	for row := 3; row < 40; row++ {
		if row%2 == 0 {
			fmt.Fprintf(&file, "ANN,b%d@example.com,%s\n", row, someHash)
		} else {
			fmt.Fprintf(&file, "bob%d,,%s\n", row, someHash)
		}
	}
	sh := &shell{t, s.path}
	_, errOut := sh.run(1, file.String(), "user", "import", "-")
	last := 0
	for line := range strings.Lines(errOut) {
		var row int
		if n, _ := fmt.Sscanf(line, "row %d:", &row); n == 1 {
			if row != last+1 && last > 0 {
				t.Errorf("row %d follows row %d", row, last)
			}
			last = row
		}
	}
	if last != 39 {
		t.Errorf("it reports\n%s", errOut)
	}
	_, errOut = sh.run(1, file.String()+"\"", "user", "import", "-")
	if lines := strings.Split(errOut, "\n"); !strings.HasPrefix(lines[0], "row 3: Not valid: ") || !strings.HasPrefix(lines[len(lines)-2], "userd: row 40: ") {
		t.Errorf("it reports\n%s", errOut)
	}
}
