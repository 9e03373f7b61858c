//go:build !linux

package main

const memoryDir = ""

func hasMemoryDir() bool { return false }
