//go:build !unix

package safefile

import (
	"io/fs"
	"os"
)

// ChownLike does nothing: files have no Unix owners here.
func ChownLike(*os.File, string) error { return nil }

const noFollow = 0

// CheckWritable does nothing: the rights to a file are not in its mode here.
func CheckWritable(path string) error { return nil }

// OwnedBy returns true: files have no Unix owners here.
func OwnedBy(fs.FileInfo, ...fs.FileInfo) bool { return true }
