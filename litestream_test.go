package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// lossWindow is how far behind Litestream's copy may be: ten times what it is on a
// machine that is not overloaded, where it is about a second.
const lossWindow = 10 * time.Second

// Litestream copies from a server under load, with the configuration in
// docs/operations.md. Both are killed. The copy must contain everything that was
// acknowledged before the window, and both must be able to continue from it.
func TestLitestream(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	bin := programDir(t)
	build := exec.Command("go", "install", "github.com/benbjohnson/litestream/cmd/litestream@v0.5.18")
	build.Env = append(os.Environ(), "GOBIN="+bin, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	dir := t.TempDir()
	path := filepath.Join(dir, "app.db")
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(page), "```yaml\ndbs:")
	block, _, found2 := strings.Cut(block, "```")
	if !found || !found2 {
		t.Fatal("docs/operations.md has no litestream.yml")
	}
	config := filepath.Join(t.TempDir(), "litestream.yml")
	block = strings.NewReplacer("/var/lib/userd/app.db", path, "/mnt/backup/userd", filepath.Join(t.TempDir(), "replica")).Replace("dbs:" + block)
	if err := os.WriteFile(config, []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	litestream := func(command string, args ...string) *exec.Cmd {
		return exec.Command(filepath.Join(bin, "litestream"), append([]string{command, "-config", config}, args...)...)
	}
	replicate := func() (end func()) {
		t.Helper()
		log, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := litestream("replicate")
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end = func() {
			cmd.Process.Kill()
			cmd.Wait()
			log.Close()
		}
		t.Cleanup(end)
		return end
	}
	restore := func() (file string, err error) {
		file = filepath.Join(t.TempDir(), "copy.db")
		out, err := litestream("restore", "-o", file, path).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return file, err
	}

	p := startUserd(t, dir, loadEnviron)
	renamers, kill := startRenamers(t, p, 4)
	end := replicate()
	time.Sleep(2 * lossWindow) // of load
	end()
	killed := time.Now()
	kill()
	file, err := restore()
	if err != nil {
		t.Fatal(err)
	}
	conn := another(t, file)
	if got := scan[string](t, conn, `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("the copy: %s", got)
	}
	for _, r := range renamers {
		times := r.times()
		n := r.in(t, conn)
		lost := time.Duration(0)
		if n+1 < len(times) {
			lost = killed.Sub(times[n+1])
		}
		t.Logf("%s: %d of %d are there, those of the last %v are lost", r.name, n, len(times)-1, lost)
		if lost > lossWindow {
			t.Errorf("more is lost than of the last %v", lossWindow)
		}
	}

	if got := userdProcess(t, dir, "", nil, "restore", file); got.status != 0 {
		t.Fatalf("userd restore: %+v", got)
	}
	if got := userdProcess(t, dir, "", nil, "check"); got.status != 0 {
		t.Errorf("userd check: %+v", got)
	}
	if out, err := litestream("reset", path).CombinedOutput(); err != nil {
		t.Fatalf("litestream reset: %v: %s", err, out)
	}
	p = startUserd(t, dir, loadEnviron)
	replicate()
	p.register("after")
	await(t, "Litestream copies from the restored database", func() bool {
		file, err := restore()
		return err == nil && scan[int](t, another(t, file), `SELECT count(*) FROM user WHERE username = 'after'`) == 1
	})
}
