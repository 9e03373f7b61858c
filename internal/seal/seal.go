// Package seal encrypts small secrets for a database, with AES-256-GCM.
//
// A sealed text begins with the name of its key, so that a program can open texts of several
// keys, and can report that it lacks a key. A text is also bound to a name, such as a user and a
// column: it cannot be opened under another name. [Ring.Seal] makes a random nonce of 96 bits
// for each text, so one key must not seal more than 2^32 texts (NIST SP 800-38D section 8.3).
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	// KeySize is the length of a key in bytes.
	KeySize = 32
	// IDSize is the length in bytes of the name of the key with which each sealed text begins.
	IDSize = 8
)

var (
	// ErrUnknownKey is the error of [Ring.Open] for a text that another key has sealed.
	ErrUnknownKey = errors.New("another key sealed this text")
	// ErrDamaged is the error of [Ring.Open] for a text that was changed or has another name.
	ErrDamaged = errors.New("this sealed text was changed, or has another name")
)

// ParseKey decodes a key from base64, with or without padding, in the usual alphabet or in
// that of URLs. Its error does not repeat the text.
func ParseKey(text string) ([]byte, error) {
	text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimSpace(text)), "=")
	key, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(key) != KeySize {
		return nil, fmt.Errorf("must be the base64 of %d bytes, as \"openssl rand -base64 %[1]d\" prints them", KeySize)
	}
	return key, nil
}

// A Ring holds the keys that open texts. Its first key seals.
type Ring struct{ keys []ringKey }

type ringKey struct {
	id   []byte
	aead cipher.AEAD
}

// NewRing returns a ring of these keys. It returns an error if the length of a key is not
// [KeySize]. A ring without keys opens nothing.
func NewRing(keys ...[]byte) (*Ring, error) {
	r := new(Ring)
	for _, key := range keys {
		block, err := aes.NewCipher(key)
		if err == nil && len(key) != KeySize {
			err = aes.KeySizeError(len(key))
		}
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, ringKey{ID(key), aead})
	}
	return r, nil
}

// ID returns the name of a key, which does not reveal the key.
func ID(key []byte) []byte {
	sum := sha256.Sum256(append([]byte("name of a key: "), key...))
	return sum[:IDSize]
}

// Has reports whether the ring has the key with this name.
func (r *Ring) Has(id []byte) bool { return r.find(id) != nil }

func (r *Ring) find(id []byte) *ringKey {
	for i := range r.keys {
		if bytes.Equal(r.keys[i].id, id) {
			return &r.keys[i]
		}
	}
	return nil
}

// Current reports whether the ring's first key has sealed the text.
func (r *Ring) Current(sealed []byte) bool {
	return len(r.keys) > 0 && bytes.HasPrefix(sealed, r.keys[0].id)
}

// Seal returns the sealed form of a text, which [Ring.Open] opens only under the same name.
// Seal panics if the ring has no key.
func (r *Ring) Seal(text []byte, name string) []byte {
	k := &r.keys[0]
	return k.aead.Seal(bytes.Clone(k.id), nil, text, []byte(name))
}

// Open returns the text that was sealed under a name. It returns [ErrUnknownKey] or
// [ErrDamaged].
func (r *Ring) Open(sealed []byte, name string) ([]byte, error) {
	k := r.find(sealed[:min(IDSize, len(sealed))])
	if k == nil {
		return nil, ErrUnknownKey
	}
	text, err := k.aead.Open(nil, nil, sealed[IDSize:], []byte(name))
	if err != nil {
		return nil, ErrDamaged
	}
	return text, nil
}
