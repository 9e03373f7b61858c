//go:build unix

package safefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// ownerAt returns the owner and group of the file at path.
func ownerAt(t *testing.T, path string) [2]int {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return [2]int{int(stat.Uid), int(stat.Gid)}
}

func TestChownLike(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	like := filepath.Join(dir, "like")
	writeFile(t, like, "")
	f := newTemp(t, dir, "")
	if os.Geteuid() != 0 {
		before := ownerAt(t, f.Name())
		if err := ChownLike(f.File, filepath.Join(dir, "missing")); err != nil || ownerAt(t, f.Name()) != before {
			t.Errorf("without root it does not do nothing: %v", err)
		}
		t.Skip("the rest needs root")
	}
	want := [2]int{65533, 65534}
	if err := os.Chown(like, want[0], want[1]); err != nil {
		t.Fatal(err)
	}
	// Another process puts a link in the place of the file.
	victim, moved := filepath.Join(dir, "victim"), filepath.Join(dir, "moved")
	writeFile(t, victim, "")
	if err := errors.Join(os.Rename(f.Name(), moved), os.Symlink(victim, f.Name())); err != nil {
		t.Fatal(err)
	}
	if err := ChownLike(f.File, like); err != nil {
		t.Fatal(err)
	}
	if got := ownerAt(t, moved); got != want {
		t.Errorf("the file belongs to %v, want %v", got, want)
	}
	if got := ownerAt(t, victim); got != [2]int{} {
		t.Errorf("the link was followed: the other file belongs to %v", got)
	}
	if err := ChownLike(f.File, filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("like a file that does not exist: %v", err)
	}
}

func TestRootGivesANewFileToTheOwnerOfItsDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 65533, 65534); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "file")
	if err := CreateIfMissing(path); err != nil {
		t.Fatal(err)
	}
	if got, want := ownerAt(t, path), ownerAt(t, dir); got != want {
		t.Errorf("the file belongs to %v, want %v", got, want)
	}
}

func TestOwnedBy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	info := func(name string, uid int) fs.FileInfo {
		path := filepath.Join(dir, name)
		writeFile(t, path, "")
		if os.Geteuid() == 0 {
			if err := os.Chown(path, uid, 0); err != nil {
				t.Fatal(err)
			}
		}
		found, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	ours, ann, bob := info("ours", os.Geteuid()), info("ann", 65533), info("bob", 65534)
	if !OwnedBy(ours) || !OwnedBy(ann, bob, ann) {
		t.Error("our own file, or one of ann's, is not trusted")
	}
	if os.Geteuid() == 0 && (OwnedBy(ann) || OwnedBy(ann, ours, bob)) {
		t.Error("ann's file is trusted")
	}
}
