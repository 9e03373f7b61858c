// Package apikey makes and checks API keys, such as
//
//	ud_0123456789ABCDEFGHIJKLMNOPQRST2UDHS0
//
// A key is "ud_", 30 random characters of base62 (178 bits), and 6 characters of base62
// with the CRC-32 of all characters before. So every key matches ^ud_[0-9A-Za-z]{36}$.
// Scanners find such a key in source code and logs with few false alarms, and a service
// refuses a mistyped key without a look-up in its database. GitHub's tokens have the
// same structure: https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
//
// The checksum is not a secret: anyone can compute it. A service must only accept a key
// whose hash it has stored.
package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
	"strings"
)

// Len is the length of a key in bytes.
const Len = len(start) + randomLen + sumLen

const (
	start     = "ud_"
	randomLen = 30 // 30 * log2(62) = 178.6 bits
	sumLen    = 6  // 62^6 > 2^32
	prefixLen = 8

	// The digits of base62, in the order of ASCII.
	digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// New returns a new random key.
func New() string {
	key := append(make([]byte, 0, Len), start...)
	var random [randomLen]byte
	for len(key) < Len-sumLen {
		rand.Read(random[:])
		for _, b := range random {
			// The remainder of a larger byte would be one of the first 8 digits more often.
			if b < 4*62 && len(key) < Len-sumLen {
				key = append(key, digits[b%62])
			}
		}
	}
	sum := checksum(key)
	return string(append(key, sum[:]...))
}

// Begins reports whether s begins like a key. No JSON Web Token does.
func Begins(s string) bool { return strings.HasPrefix(s, start) }

// Valid reports whether s has the form of a key and the right checksum. It allocates at
// most [Len] bytes, however long s is.
func Valid(s string) bool {
	if len(s) != Len || !strings.HasPrefix(s, start) {
		return false
	}
	for i := len(start); i < Len; i++ {
		if strings.IndexByte(digits, s[i]) < 0 {
			return false
		}
	}
	sum := checksum([]byte(s[:Len-sumLen]))
	return s[Len-sumLen:] == string(sum[:])
}

// checksum returns the CRC-32 (IEEE 802.3) of b in base62, the highest digit first.
func checksum(b []byte) (sum [sumLen]byte) {
	n := crc32.ChecksumIEEE(b)
	for i := sumLen - 1; i >= 0; i-- {
		sum[i] = digits[n%62]
		n /= 62
	}
	return sum
}

// Hash returns the SHA-256 of a key, which a database can hold instead of the key. A
// key has too many bits to guess, so a slow hash would not protect it better.
func Hash(key string) []byte {
	sum := sha256.Sum256([]byte(key))
	return sum[:]
}

// Prefix returns the first 8 characters of a valid key. Lists show them, so that an
// owner recognizes a key. They reveal 5 of its random characters.
func Prefix(key string) string { return key[:prefixLen] }
