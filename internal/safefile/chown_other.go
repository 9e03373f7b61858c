//go:build !unix

package safefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// A User is a user of the system. Systems without Unix users have none.
type User struct{}

// ActAs returns nil: this system has no root.
func ActAs(path string) (*User, error) { return nil, nil }

func ownerOf(fs.FileInfo) *User { return nil }

// Run returns an error.
func (*User) Run([]string, io.Reader, io.Writer, io.Writer) error { return errors.ErrUnsupported }

// Equal reports whether both are nil.
func (u *User) Equal(other *User) bool { return u == other }

// ChownLike does nothing: files have no Unix owners on this system.
func ChownLike(*os.File, string) error { return nil }

const noFollow = 0

// CheckWritable returns nil: on this system, the mode of a file does not hold its rights.
func CheckWritable(path string) error { return nil }

// OwnedBy returns true: files have no Unix owners on this system.
func OwnedBy(fs.FileInfo, ...fs.FileInfo) bool { return true }
