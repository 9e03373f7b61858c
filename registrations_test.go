package main

import (
	"slices"
	"strings"
	"testing"
)

func TestTheCommandLineListsAndDeletesInvitations(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	s.invitation(root, `{"email":"ann@example.com"}`)
	code, _ := s.invitation(root, `{"uses":3}`)
	runSQL(t, another(t, s.path), `UPDATE user_invitation SET expires_at = 4102444800`) // the command's clock is not the test's
	sh := &shell{t, s.path}
	table, _ := sh.run(0, "", "invitation", "list")
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "ID EMAIL USERNAME ROLE USES LEFT CREATED EXPIRES" ||
		!strings.Contains(lines[1], "ann@example.com") || !strings.Contains(lines[2], "member") || strings.Contains(table, code[3:]) {
		t.Errorf("the list is\n%s", table)
	}
	answer := s.do(root, "GET", "/api/invitations", "").want(t, 200, "").body
	out, _ := sh.run(0, "", "invitation", "list", "-json")
	if got := "[" + strings.ReplaceAll(strings.TrimSpace(out), "\n", ",") + "]\n"; got != answer {
		t.Errorf("got %s, want %s", got, answer)
	}
	if out, _ := sh.run(0, "", "invitation", "delete", "2"); out != "deleted invitation 2\n" {
		t.Errorf("it says %q", out)
	}
	s.join("bob", code).want(t, 400, "invalid_code")
	if _, text := sh.run(1, "", "invitation", "delete", "2"); !strings.Contains(text, "Invitation not found") {
		t.Errorf("it says %q", text)
	}
	sh.run(2, "", "invitation", "delete", "x")
	if got := s.do(root, "GET", "/api/invitations", "").list(t, "id"); !slices.Equal(got, []string{"1"}) {
		t.Errorf("the invitations are %s", got)
	}
}
