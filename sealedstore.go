package ganbauth

import (
	"context"
	"encoding/base64"
	"fmt"
)

// newSealedStore encrypts the tokens in store. A token is bound to its key, so that one user's cannot stand in for
// another's.
func newSealedStore(store TokenStore, keys [][]byte) (TokenStore, error) {
	s, err := newSealer("token", keys...)
	if own, ok := store.(*scsStore); ok {
		return &scsStore{own.sessions, own.trailing, &s}, err
	}
	return sealedStore{store, s}, err
}

// sealedStore has the whole token sealed in place of its access token, and in clear what a store with columns needs.
type sealedStore struct {
	TokenStore
	sealer sealer
}

func (s sealedStore) Load(ctx context.Context, key string) (*Token, error) {
	sealed, err := load(ctx, s.TokenStore, key)
	if err != nil {
		return nil, err
	}
	var t Token
	data, err := decodeSegment(sealed.AccessToken)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokenNotFound, errUnreadable)
	}
	record, err := s.sealer.open(data, key)
	if err == nil {
		err = t.unmarshal(record)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokenNotFound, err)
	}
	return &t, nil
}

func (s sealedStore) Save(ctx context.Context, key string, token *Token) error {
	sealed := &Token{
		AccessToken: base64.RawURLEncoding.EncodeToString(s.sealer.seal(token.marshal(), key)),
		TokenType:   token.TokenType,
		Scope:       token.Scope,
		ExpiresAt:   token.ExpiresAt,
		IssuedAt:    token.IssuedAt,
		Epoch:       token.Epoch,
		sealed:      token.Fingerprint(),
	}
	if token.RefreshToken != "" {
		sealed.RefreshToken = "sealed" // stores list the tokens that have one
	}
	return s.TokenStore.Save(ctx, key, sealed)
}
