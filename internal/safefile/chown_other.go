//go:build !unix

package safefile

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
)

// A User is a user of the system. There is none here.
type User struct{}

// ActAs returns nil: there is no root here.
func ActAs(path string) (*User, error) { return nil, nil }

func ownerOf(fs.FileInfo) *User { return nil }

// Command returns an error.
func (*User) Command(args ...string) (*exec.Cmd, error) { return nil, errors.ErrUnsupported }

// Equal reports whether both are nil.
func (u *User) Equal(other *User) bool { return u == other }

// ChownLike does nothing: files have no Unix owners here.
func ChownLike(*os.File, string) error { return nil }

const noFollow = 0

// CheckWritable does nothing: the rights to a file are not in its mode here.
func CheckWritable(path string) error { return nil }

// OwnedBy returns true: files have no Unix owners here.
func OwnedBy(fs.FileInfo, ...fs.FileInfo) bool { return true }
