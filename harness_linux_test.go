package main

import "syscall"

// memoryDir is where Linux keeps files in memory.
const memoryDir = "/dev/shm"

// hasMemoryDir reports whether memoryDir has room for the test databases.
// Containers often allow it only 64 MiB.
func hasMemoryDir() bool {
	var fs syscall.Statfs_t
	return syscall.Statfs(memoryDir, &fs) == nil && fs.Bavail*uint64(fs.Bsize) >= 1<<30 && syscall.Access(memoryDir, 2) == nil
}
