//go:build amd64 && !purego && !linux

package argon2

func useHugePages([]byte) {}
