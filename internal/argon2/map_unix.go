//go:build amd64 && !purego && (darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package argon2

import "syscall"

// mapMemory returns size bytes of new memory from the system, or nil if it has none.
func mapMemory(size int) []byte {
	mapped, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	return mapped
}

// unmap gives the result of mapMemory back.
func unmap(mapped []byte) {
	if mapped == nil {
		return
	}
	if err := syscall.Munmap(mapped); err != nil {
		panic(err) // mapMemory did not return it
	}
}
