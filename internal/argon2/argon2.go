// Package argon2 computes argon2id version 1.3 (RFC 9106) with one lane, at less than
// half the CPU time of golang.org/x/crypto/argon2 if the CPU has AVX2.
//
// # The model
//
// argon2id fills memory with blocks of 1024 bytes. Each block is the compression of the
// block before it and of an earlier block. The first half of the first pass selects that
// block by position, and the rest selects it by content:
//
//	block[i] = G(block[i-1], block[j])                 in the first pass
//	block[i] = G(block[i-1], block[j]) XOR block[i]    in later passes
//
// Nearly all of the time goes into G and into waiting for block[j]. So only G is written
// in assembly, as in the other implementations. The rest is Go, and BLAKE2b comes from
// golang.org/x/crypto/blake2b.
//
// The memory is a [Memory], which its owner uses for one hash after the other. It is
// mapped from the system and not allocated: the garbage collector neither sees nor
// clears it, and huge pages make it faster on Linux.
//
// # What checks it
//
// The tests compare the kernel with golang.org/x/crypto/argon2 for random inputs, and with
// vectors of the reference implementation. [Check] compares one key with a known one, and
// the program should call it when it starts. [Key] calls golang.org/x/crypto/argon2 instead
// of the kernel on other architectures, on a CPU without AVX2, and in a build with the tag
// purego.
package argon2

import "golang.org/x/crypto/argon2"

// Key returns the argon2id key of a password: keyLen bytes, at least 4. It makes time
// passes, at least 1, over memory KiB, which it rounds down to a multiple of 4 and up to
// 8. The salt should have 16 bytes.
//
// The kernel computes the key in mem. If mem is nil, golang.org/x/crypto/argon2 computes
// it, in memory that it allocates. The key is the same.
func Key(mem *Memory, password, salt []byte, time, memory uint32, keyLen uint32) []byte {
	if mem == nil || time < 1 || keyLen < 1 { // x/crypto panics for these
		return argon2.IDKey(password, salt, time, memory, 1, keyLen)
	}
	return mem.key(password, salt, time, memory, keyLen)
}
