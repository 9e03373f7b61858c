package safefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// newTemp makes a temporary file with some contents, which ends with the test.
func newTemp(t *testing.T, dir, contents string) *Temp {
	t.Helper()
	f, err := CreateTemp(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Discard)
	if _, err := f.WriteString(contents); err != nil {
		t.Fatal(err)
	}
	return f
}

func writeFile(t *testing.T, path, contents string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(contents), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wantFile fails the test unless path is a private file with these contents.
func wantFile(t *testing.T, path, contents string) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("%s has the mode %v", path, info.Mode())
	}
	if data, err := os.ReadFile(path); string(data) != contents || err != nil {
		t.Errorf("%s contains %q, %v", path, data, err)
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Errorf("the directory contains %v, want %v", names, want)
	}
}

func TestAFileIsPrivateFromTheStart(t *testing.T) {
	t.Parallel()
	f := newTemp(t, t.TempDir(), "")
	wantFile(t, f.Name(), "")
	if info, err := os.Lstat(filepath.Dir(f.Name())); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("its directory has the mode %v, %v", info.Mode(), err)
	}
	if _, err := CreateTemp(filepath.Join(t.TempDir(), "missing", "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that does not exist: %v", err)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	t.Run("gives a name that stays", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		f := newTemp(t, dir, "new")
		if err := f.Publish("file"); err != nil {
			t.Fatal(err)
		}
		f.Discard()
		wantNames(t, dir, "file")
		wantFile(t, path, "new")
	})
	t.Run("overwrites neither a file nor a link", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
		writeFile(t, file, "old")
		if err := os.Symlink("nowhere", link); err != nil {
			t.Fatal(err)
		}
		f := newTemp(t, dir, "new")
		for _, name := range []string{"file", "link"} {
			if err := f.Publish(name); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s: %v", name, err)
			}
		}
		f.Discard()
		wantNames(t, dir, "file", "link")
		if data, err := os.ReadFile(file); string(data) != "old" || err != nil {
			t.Errorf("the file contains %q, %v", data, err)
		}
	})
}

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	writeFile(t, path, "old")
	f := newTemp(t, dir, "new")
	if err := f.Replace("file"); err != nil {
		t.Fatal(err)
	}
	wantNames(t, dir, "file")
	wantFile(t, path, "new")
	f.Discard()
	wantNames(t, dir, "file")
}

// In a directory that all may change, another user puts a directory in the place.
func TestAFileThatWasReplacedGetsNoNameUnnoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i, name := range []func(*Temp, string) error{(*Temp).Publish, (*Temp).Replace} {
		f := newTemp(t, dir, "new")
		private := filepath.Dir(f.Name())
		if err := errors.Join(os.Rename(private, private+".mine"), os.Mkdir(private, 0o777)); err != nil {
			t.Fatal(err)
		}
		writeFile(t, f.Name(), "forged")
		if err := name(f, []string{"a", "b"}[i]); err == nil {
			t.Error("it was not noticed")
		}
	}
}

func TestReplaceOfADirectoryFailsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "directory")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	f := newTemp(t, dir, "new")
	if err := f.Replace("directory"); err == nil {
		t.Error("a directory was replaced")
	}
	f.Discard()
	wantNames(t, dir, "directory")
	if _, err := f.WriteString("more"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a discarded file is open: %v", err)
	}
}

func TestAClosedFileGetsNoName(t *testing.T) { // it cannot be synced
	t.Parallel()
	dir := t.TempDir()
	f := newTemp(t, dir, "new")
	f.Close()
	for _, name := range []func(string) error{f.Publish, f.Replace} {
		if err := name("file"); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	f.Discard()
	wantNames(t, dir)
}

func TestCreateIfMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := CreateIfMissing(path); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "")
	writeFile(t, path, "old")
	if err := CreateIfMissing(path); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "old")
	if err := CreateIfMissing(filepath.Join(dir, "missing", "file")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that does not exist: %v", err)
	}
}

func TestMakePrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	writeFile(t, path, "text")
	if err := errors.Join(os.Chmod(path, 0o664), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	for _, refused := range []string{link, dir} {
		if err := errors.Join(os.Chmod(dir, 0o755), MakePrivate(refused)); err == nil {
			t.Errorf("%s: no error", refused)
		}
	}
	if err := MakePrivate(path); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "text")
	if err := MakePrivate(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

func TestSyncDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := SyncDir(dir); err != nil {
		t.Error(err)
	}
	if err := SyncDir(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}

func TestOnlyTheErrorOfASystemThatCannotSyncDirectoriesIsDropped(t *testing.T) {
	t.Parallel()
	failure := &fs.PathError{Op: "sync", Path: "dir", Err: errors.New("input/output error")}
	for _, c := range []struct{ err, want error }{
		{nil, nil},
		{&fs.PathError{Op: "sync", Path: "dir", Err: errors.ErrUnsupported}, nil},
		{&fs.PathError{Op: "sync", Path: "dir", Err: fs.ErrPermission}, nil},
		{failure, failure},
	} {
		if got := syncError(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}

func TestTimestampedName(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 5, 4, 5, 2, 1, 9e6, time.FixedZone("east", 2*60*60))
	if got, want := TimestampedName("dir/app.db", "before-restore", at), "dir/app.db.before-restore-20260504T030201.009Z"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSizeIsOfRegularFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{path: 4, dir: 0} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := Size(f); got != want {
			t.Errorf("%s has %d bytes, want %d", name, got, want)
		}
		f.Close()
	}
}

func TestAFileThatChangesWhileItIsCopiedIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil { // more than a pipe holds
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	failed := make(chan error, 1)
	go func() {
		failed <- CopyUnchanged(map[string]*os.File{"": f}, &Temp{File: w})
		w.Close()
	}()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, r)
	if err := <-failed; !errors.Is(err, ErrChanged) || !strings.HasPrefix(err.Error(), path+" changed while it was read") {
		t.Errorf("got %v", err)
	}
}

func TestFilesAreCopiedWithTheirSuffixes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := make(map[string]*os.File)
	for suffix, text := range map[string]string{"": "one", "-log": "two"} {
		path := filepath.Join(dir, "from"+suffix)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[suffix] = f
	}
	to, err := CreateTemp(filepath.Join(dir, "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Discard()
	if err := CopyUnchanged(files, to); err != nil {
		t.Fatal(err)
	}
	for suffix, want := range map[string]string{"": "one", "-log": "two"} {
		if got, err := os.ReadFile(to.Name() + suffix); err != nil || string(got) != want {
			t.Errorf("the copy with %q holds %q, %v", suffix, got, err)
		}
	}
}
