package ganbauth

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
)

// errSealed means that no key opens a record.
var errSealed = errors.New("no encryption key opens the record")

// sealer encrypts with AES-256-GCM, for one purpose. The first key seals, all keys open.
type sealer struct {
	purpose string
	keys    []cipher.AEAD
}

// tokenPurpose is the purpose of Options.EncryptionKeys. Records that are stored depend on it.
const tokenPurpose = "token"

// newSealer returns a sealer that encrypts with the first key and decrypts with any of
// them.
func newSealer(purpose string, keys ...[]byte) (sealer, error) {
	s := sealer{purpose: purpose}
	for i, key := range keys {
		if len(key) != 32 {
			return sealer{}, fmt.Errorf("ganbauth: encryption key %d has %d bytes, not 32", i, len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return sealer{}, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return sealer{}, err
		}
		s.keys = append(s.keys, aead)
	}
	return s, nil
}

// seal binds what it encrypts to owner.
func (s sealer) seal(plain []byte, owner string) []byte {
	return s.keys[0].Seal(nil, nil, plain, s.bound(owner))
}

// open returns what seal encrypted for owner, or fails with errSealed.
func (s sealer) open(sealed []byte, owner string) (string, error) {
	bound := s.bound(owner)
	for _, aead := range s.keys {
		if plain, err := aead.Open(nil, nil, sealed, bound); err == nil {
			return string(plain), nil
		}
	}
	return "", errSealed
}

// bound is the associated data of a seal.
func (s sealer) bound(owner string) []byte { return []byte(s.purpose + "\x00" + owner) }
