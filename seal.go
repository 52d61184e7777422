package ganbauth

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"slices"
	"sync"
)

// sealer encrypts with AES-256-GCM, for one purpose. The first key seals, all keys open.
type sealer struct {
	purpose string
	keys    []cipher.AEAD
}

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

func (s sealer) seal(plain []byte, owner string) []byte {
	return s.keys[0].Seal(nil, nil, plain, []byte(s.purpose+"\x00"+owner))
}

// open works in memory that is used again, and wiped: it stands in the way of every request.
func (s sealer) open(sealed []byte, owner string) (string, error) {
	room := scratch.Get().(*[]byte)
	defer func() {
		clear(*room)
		scratch.Put(room)
	}()
	bound := append(append(append((*room)[:0], s.purpose...), 0), owner...)
	bound = slices.Grow(bound, len(sealed))
	*room = bound[:len(bound)+len(sealed)]
	for _, aead := range s.keys {
		if plain, err := aead.Open(bound[len(bound):], nil, sealed, bound); err == nil {
			return string(plain), nil
		}
	}
	return "", fmt.Errorf("%w: no key opens it", errUnreadable)
}

var scratch = sync.Pool{New: func() any { return new([]byte) }}
