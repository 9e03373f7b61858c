//go:build unix

package safefile

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A User is a user of the system other than root.
type User struct{ uid, gid uint32 }

// ActAs returns the user as whom a process of root must work with the file at path: the
// owner of its directory, who can rename the files there at any time and so make root write
// elsewhere. If root owns the directory and the file is a link, ActAs returns the owner of
// the directory to which the link leads. It returns nil if the process does not run as
// root, or if root owns all these directories. In the latter case it returns an error if
// another user can rename the directories or the files in them.
func ActAs(path string) (*User, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for range maxLinks {
		dir := filepath.Dir(path)
		info, err := os.Stat(dir)
		if err != nil {
			return nil, err
		}
		if user := ownerOf(info); user != nil {
			return user, nil
		}
		if err := checkPath(dir); err != nil {
			return nil, err
		}
		target, err := linkTarget(path)
		if err != nil {
			return nil, nil // not a link
		}
		path = target
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
}

// maxLinks is how many links Linux follows from one path (path_resolution(7)).
const maxLinks = 40

// linkTarget returns the absolute path to which a symbolic link leads.
func linkTarget(path string) (string, error) {
	target, err := os.Readlink(path)
	if err != nil || filepath.IsAbs(target) {
		return target, err
	}
	above, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(above, target), err
}

// checkPath returns an error if a user other than root can change where an absolute path
// leads. It checks all directories and symbolic links of the path, and those of the links'
// targets.
func checkPath(path string) error {
	checked := make(map[string]bool)
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		path := queue[0]
		if checked[path] {
			continue
		}
		checked[path] = true
		link, err := os.Lstat(path)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		byGroup := info.Sys().(*syscall.Stat_t).Gid != 0 && info.Mode()&0o020 != 0
		byAll := info.Mode()&0o002 != 0
		if ownerOf(link) != nil || ownerOf(info) != nil || (byGroup || byAll) && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("a user other than root can change %s, and so make root write elsewhere: run userd as that user, or remove that user's permission", path)
		}
		if link.Mode()&fs.ModeSymlink != 0 {
			target, err := linkTarget(path)
			if err != nil {
				return err
			}
			queue = append(queue, target)
		}
		queue = append(queue, filepath.Dir(path))
	}
	return nil
}

// ownerOf returns the owner of a directory, or nil if it is root.
func ownerOf(info fs.FileInfo) *User {
	stat := info.Sys().(*syscall.Stat_t)
	switch {
	case stat.Uid == 0:
		return nil
	case stat.Gid == 0:
		return &User{stat.Uid, nogroup}
	}
	return &User{stat.Uid, stat.Gid}
}

// nogroup replaces the group of root, which could give the user rights elsewhere. The files
// that userd makes give no rights to groups.
const nogroup = 65534

// Run runs this program as the user, without other groups and with the system's
// directory for temporary files; if u is nil, as the user of this process. On Linux, it
// can read what this process can, if the system allows that: a database in a directory
// that the user cannot reach, and a file of root to import. Run passes SIGTERM and SIGHUP
// on; a terminal sends its interrupt to both processes. If the program fails, the error is
// an *exec.ExitError.
func (u *User) Run(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	self, err := executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	if u != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid}}
		keepReading(cmd.SysProcAttr)
		cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
			return strings.HasPrefix(variable, "TMPDIR=") // pam_tmpdir makes one that only root can enter
		})
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup makes the process ignore it
		signal.Notify(signals, syscall.SIGHUP)
	}
	defer close(signals)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running userd as %s: %w", u, err)
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	return cmd.Wait()
}

// String returns a text such as "user 1000".
func (u *User) String() string {
	if u == nil {
		return "the same user"
	}
	return fmt.Sprintf("user %d", u.uid)
}

// Equal reports whether both are the same user. A nil *User is this process.
func (u *User) Equal(other *User) bool {
	return u == other || u != nil && other != nil && u.uid == other.uid
}
