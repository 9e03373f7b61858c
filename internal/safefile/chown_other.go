//go:build !unix

package safefile

import "os"

// ChownLike does nothing: files have no Unix owners here.
func ChownLike(*os.File, string) error { return nil }
