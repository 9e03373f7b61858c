//go:build unix

package safefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestActAs(t *testing.T) {
	t.Parallel()
	const ann, bob = 65533, 65532
	top := t.TempDir()
	dir := func(name string, uid, gid int, mode fs.FileMode) {
		path := filepath.Join(top, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	link := func(from, to string) {
		if err := os.Symlink(filepath.Join(top, to), filepath.Join(top, from)); err != nil {
			t.Fatal(err)
		}
	}
	dir("root", 0, 0, 0o755)
	dir("root/root", 0, 0, 0o755)
	link("root/to root", "root/root")
	dir("group of root", 0, 0, 0o775)
	dir("sticky", 0, 0, 0o777|fs.ModeSticky)
	dir("sticky/root", 0, 0, 0o700)
	dir("sticky/ann", ann, 0, 0o700)
	dir("ann", ann, bob, 0o755)
	dir("ann/root", 0, 0, 0o755)
	dir("ann/root/root", 0, 0, 0o755)
	dir("ann/bob", bob, ann, 0o777)
	dir("all", 0, 0, 0o777)
	dir("all/root", 0, 0, 0o755)
	dir("group", 0, ann, 0o775)
	link("root/to ann", "ann")
	link("ann/to root", "root")
	link("root/root/file", "ann/file")
	dir("linked", 0, 0, 0o755)
	link("linked/file", "root/root/file")
	dir("loop", 0, 0, 0o755)
	link("loop/file", "loop/file")
	link("root/to the link", "sticky/link of ann")
	link("sticky/link of ann", "root")
	if os.Geteuid() == 0 {
		if err := os.Lchown(filepath.Join(top, "sticky/link of ann"), ann, ann); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		want    *User
		refused string // the directory that the error names
	}{
		{"root", nil, ""},
		{"root/to root", &User{ann, bob}, ""}, // the file there is a link
		{"root/root", &User{ann, bob}, ""},
		{"linked", &User{ann, bob}, ""},
		{"group of root", nil, ""},
		{"sticky", nil, ""},
		{"sticky/root", nil, ""},
		{"sticky/ann", &User{ann, nogroup}, ""},
		{"ann", &User{ann, bob}, ""},
		{"ann/bob", &User{bob, ann}, ""},
		{"root/to ann", &User{ann, bob}, ""},
		{"ann/root", nil, "ann"},
		{"ann/root/root", nil, "ann"},
		{"ann/to root", nil, "ann"},
		{"sticky/link of ann", nil, "sticky/link of ann"},
		{"root/to the link", nil, "sticky/link of ann"},
		{"all", nil, "all"},
		{"all/root", nil, "all"},
		{"group", nil, "group"},
	} {
		got, err := ActAs(filepath.Join(top, c.name, "file"))
		if os.Geteuid() != 0 {
			if got != nil || err != nil {
				t.Errorf("%s, without root: %v, %v", c.name, got, err)
			}
			continue
		}
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: the user is %v, want %v", c.name, got, c.want)
		}
		if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), " "+filepath.Join(top, c.refused)+",") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := ActAs(filepath.Join(top, "loop/file")); os.Geteuid() == 0 && !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := ActAs(filepath.Join(top, "missing", "file")); os.Geteuid() == 0 && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}

func TestUsersAreEqual(t *testing.T) {
	t.Parallel()
	ann, bob := &User{1, 2}, &User{2, 2}
	var root *User
	if !ann.Equal(&User{1, 3}) || !root.Equal(nil) || ann.Equal(bob) || ann.Equal(nil) || root.Equal(ann) {
		t.Error("users are not compared by their ids")
	}
}

// The owner of a directory puts a link in its place after root has looked.
func TestCreateTempOfChecksTheOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := CreateTempOf(ownerOf(info), path)
	if err != nil {
		t.Fatal(err)
	}
	f.Discard()
	if _, err := CreateTempOf(&User{65533, 65533}, path); err == nil {
		t.Error("a directory of another user was used")
	}
	wantNames(t, dir)
}

func TestATempWorksWhereItsDirectoryWasMovedTo(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir, moved, victim := filepath.Join(top, "dir"), filepath.Join(top, "moved"), filepath.Join(top, "victim")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(victim, 0o700)); err != nil {
		t.Fatal(err)
	}
	f := newTemp(t, dir, "new")
	if err := errors.Join(os.Rename(dir, moved), os.Symlink(victim, dir)); err != nil {
		t.Fatal(err)
	}
	log, err := f.Create("-wal")
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	if err := f.Publish("file"); err != nil {
		t.Fatal(err)
	}
	f.Discard()
	wantNames(t, victim)
	wantNames(t, moved, "file")
}
