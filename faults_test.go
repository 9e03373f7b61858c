package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// faults says that strace is installed, that the tests may mount file systems,
// and that they may take minutes.
var faults = flag.Bool("faults", false, "test with disks that fail and power cuts, as root, with strace, which must be installed; and longer")

// A damaged page affects only the rows on it: requests that need them get 503, and
// never the answer that a password is wrong or that a user does not exist.
func TestADamagedPageHarmsOnlyWhatIsOnIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "app.db")
	p := startUserd(t, dir, nil)
	p.register("ann")
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Fatal(status)
	}
	names := []string{"ann"}
	st, err := openStore(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 { // several pages of each index
		names = append(names, fmt.Sprintf("member-%050d", i))
		aUser(t, st, names[i+1], member)
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	p = startUserd(t, dir, nil)
	names = append(names, "zoe")
	zoe := userPath(p.register("zoe"))
	ofAnn, ofZoe := p.login("ann", goodPassword), p.login("zoe", goodPassword)
	if status := p.end(syscall.SIGTERM); status != 0 {
		t.Fatal(status)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const pageSize = 4096
	lastLeaf := func(btree string) int64 { // zoe is on it, and ann is not
		return pageSize * (scan[int64](t, another(t, path), `SELECT pageno - 1 FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path DESC LIMIT 1`, btree))
	}
	noise := make([]byte, pageSize)
	for i := range noise {
		noise[i] = byte(i*i>>3 ^ i*31)
	}
	for _, c := range []struct {
		claim  string
		offset int64
		page   []byte
		byID   int // the status of what needs zoe's row and no index
	}{
		{"noise in the table user", lastLeaf("user"), noise, 503},
		{"zeros in the table user", lastLeaf("user"), make([]byte, pageSize), 503},
		{"noise in the index of names", lastLeaf("user_username"), noise, 200},
		{"zeros in the index of names", lastLeaf("user_username"), make([]byte, pageSize), 200},
		{"noise in the index of addresses", lastLeaf("user_email"), noise, 200},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "app.db")
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			damage(t, path, c.offset, c.page)
			p := startUserd(t, dir, nil)
			for _, password := range []string{goodPassword, "a wrong password"} {
				p.must("", "POST", "/api/login", fmt.Sprintf(`{"username":"zoe","password":%q}`, password)).want(t, 503, "unavailable")
			}
			p.must("", "POST", "/api/register", registerBody("zzz", goodPassword)).want(t, 503, "unavailable")
			p.must(ofZoe, "GET", "/api/users/me", "").want(t, c.byID, "")
			p.must(ofAnn, "GET", zoe, "").want(t, c.byID, "")
			if r, err := p.ask(ofAnn, "GET", "/api/users", ""); err == nil && r.status != c.byID {
				t.Errorf("the list was answered %d", r.status)
			}

			p.login("ann", goodPassword)
			p.must(ofAnn, "PUT", "/api/users/me", `{"username":"ann","password":"another good one"}`).want(t, 200, "")
			p.must(ofAnn, "GET", "/api/users?limit=10", "").want(t, 200, "")
			p.awaitLog("the database is damaged: restore a copy")
			if status := p.end(syscall.SIGTERM); status != 0 {
				t.Errorf("exit status %d, want 0:\n%s", status, strings.Join(p.log(), "\n"))
			}

			damage(t, path, c.offset, whole[c.offset:][:pageSize])
			st := openTestStore(t, path)
			if found, err := st.checkIntegrity(context.Background()); err != nil || len(found) > 0 {
				t.Errorf("with the page as it was: %s, %v", found, err)
			}
			if got := usernames(t, st); !slices.Equal(got, names) {
				t.Errorf("the users are %v", got)
			}
		})
	}
}
