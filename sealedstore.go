package ganbauth

import (
	"context"
	"encoding/base64"
)

// tokenCodec turns a token into the bytes of its record and back.
type tokenCodec interface {
	version() byte
	encode(key string, t *Token) []byte
	// decode fails with errSealed if the record is sealed and does not open, which is for
	// an operator to mend, and with errCorrupt if it is no record of this codec at all,
	// which counts as none.
	decode(key string, version byte, data []byte) (*Token, error)
}

const (
	plainVersion  = 1
	sealedVersion = 2
)

// plainCodec writes tokens in clear.
type plainCodec struct{}

func (plainCodec) version() byte { return plainVersion }

func (plainCodec) encode(_ string, t *Token) []byte { return t.marshal() }

func (plainCodec) decode(_ string, version byte, data []byte) (*Token, error) {
	switch version {
	case plainVersion:
		t := new(Token)
		return t, t.UnmarshalBinary(data)
	case sealedVersion:
		return nil, errSealed
	}
	return nil, errCorrupt
}

// sealedCodec encrypts tokens. A token is bound to its key, so one user's cannot stand in
// for another's.
type sealedCodec struct{ sealer sealer }

func (sealedCodec) version() byte { return sealedVersion }

func (c sealedCodec) encode(key string, t *Token) []byte { return c.sealer.seal(t.marshal(), key) }

func (c sealedCodec) decode(key string, version byte, data []byte) (*Token, error) {
	if version != sealedVersion {
		return nil, errCorrupt // anybody who can write to the store could have planted it
	}
	plain, err := c.sealer.open(data, key)
	if err != nil {
		return nil, err
	}
	t := new(Token)
	return t, t.unmarshal(plain)
}

// newSealedStore encrypts the tokens in store.
func newSealedStore(store TokenStore, codec sealedCodec) TokenStore {
	s := sealedStore{store, codec}
	if swapper, ok := store.(Swapper); ok {
		return sealedSwapper{s, swapper}
	}
	return s
}

// sealedStore has the whole token sealed in place of its access token, and in clear what a
// store with columns needs.
type sealedStore struct {
	TokenStore
	codec sealedCodec
}

// EndsWithContext is that of the store below.
func (s sealedStore) EndsWithContext() bool {
	inner, ok := s.TokenStore.(prompt)
	return ok && inner.EndsWithContext()
}

// Load returns a mark in place of a record that is not sealed: nobody is connected, and the
// next login replaces it.
func (s sealedStore) Load(ctx context.Context, key string) (*Token, error) {
	stored, err := s.TokenStore.Load(ctx, key)
	if err != nil || stored == nil {
		return nil, err
	}
	_, text, ok := cutSealed(stored.AccessToken)
	if !ok {
		return &Token{sealed: stored.Fingerprint()}, nil
	}
	data, _ := decodeSegment(text) // what is not base64 does not open, either
	return s.codec.decode(key, sealedVersion, data)
}

func (s sealedStore) Save(ctx context.Context, key string, token *Token) error {
	return s.TokenStore.Save(ctx, key, s.seal(key, token.opened()))
}

// seal returns the record that the store gets. Nil, which is no record, stays nil.
func (s sealedStore) seal(key string, token *Token) *Token {
	if token == nil {
		return nil
	}
	sealed := &Token{
		AccessToken: sealedPrefix + token.Fingerprint() + "." + base64.RawURLEncoding.EncodeToString(s.codec.encode(key, token)),
		TokenType:   token.TokenType,
		Scope:       token.Scope,
		ExpiresAt:   token.ExpiresAt,
		IssuedAt:    token.IssuedAt,
		Epoch:       token.Epoch,
	}
	if token.RefreshToken != "" {
		sealed.RefreshToken = "sealed" // stores list the tokens that have one
	}
	return sealed
}

// sealedSwapper is a sealedStore on a store that compares and swaps.
type sealedSwapper struct {
	sealedStore
	swapper Swapper
}

func (s sealedSwapper) Swap(ctx context.Context, key string, old, new *Token) error {
	return s.swapper.Swap(ctx, key, s.seal(key, old), s.seal(key, new.opened()))
}

// opened returns t as it is loaded after it has been sealed. It differs if t stands for a
// record that is not sealed, whose fingerprint t has.
func (t *Token) opened() *Token {
	if t == nil {
		return nil
	}
	own := *t
	own.sealed = ""
	return &own
}
