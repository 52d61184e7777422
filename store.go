package ganbauth

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
)

// TokenStore keeps tokens, each under a key that says whose it is.
//
// Errors are for a store that does not work: the requests at hand get 503, and nobody is logged out. Methods are
// called concurrently. A Token that was loaded belongs to the caller, one that is saved to the store: neither may
// change the other later. Keys are at most 1,024 bytes of any content. [ganbtest.TestStore] tests an implementation.
//
// [ganbtest.TestStore]: https://pkg.go.dev/github.com/ganbauth/ganbauth/ganbtest#TestStore
type TokenStore interface {
	// Load returns the token under key, or [ErrTokenNotFound] when there is none or none that can be read.
	Load(ctx context.Context, key string) (*Token, error)
	// Save puts the token under key, replacing what was there. When it returns nil the token is safe.
	Save(ctx context.Context, key string, token *Token) error
	// Delete removes the token under key. There being none is no error.
	Delete(ctx context.Context, key string) error
}

// Locker makes a refresh exclusive across processes.
//
// A lock must outlive the longest refresh, which is two minutes, or be extended; and end by itself soon after its
// process has died.
type Locker interface {
	// Lock waits for the lock on key, or for ctx. The caller calls unlock once; it must not fail.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// ExpiryLister is what [Kit.RefreshExpiring] needs of a TokenStore besides.
type ExpiryLister interface {
	// Expiring returns the keys of the tokens that can be refreshed and end before that time, soonest first. A key that
	// is listed needlessly does no harm.
	Expiring(ctx context.Context, before time.Time) (keys []string, err error)
}

// NewMemoryStore returns a TokenStore in the process's memory, for tests and for a single process: tokens end with
// it, and those that nobody deletes stay.
func NewMemoryStore() TokenStore { return &memoryStore{tokens: map[string]Token{}} }

type memoryStore struct {
	mu     sync.RWMutex
	tokens map[string]Token
}

func (s *memoryStore) Load(_ context.Context, key string) (*Token, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.tokens[key]
	if !ok {
		return nil, ErrTokenNotFound
	}
	return &t, nil
}

func (s *memoryStore) Save(_ context.Context, key string, token *Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[key] = *token
	return nil
}

func (s *memoryStore) Expiring(_ context.Context, before time.Time) ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var keys []string
	for key, t := range s.tokens {
		if t.RefreshToken != "" && t.ExpiresAt.Before(before) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return s.tokens[a].ExpiresAt.Compare(s.tokens[b].ExpiresAt) })
	return keys, nil
}

func (s *memoryStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, key)
	return nil
}

// NewSCSStore returns the default TokenStore: records of its own in sessions.Store, beside the sessions and never
// inside one, so that a session written back late cannot bring back an old token.
//
// A record ends with the session that holds its key, or else sessions.Lifetime after the login; a refresh does not
// prolong it. sessions.Iterate meets each record as a session with the one value "ganbauth". Set sessions.Codec
// before: a codec that ignores what follows its own encoding, such as scs's GobCodec, makes records that are quick
// to read. All of scs's stores work, those with a context included.
func NewSCSStore(sessions *scs.SessionManager) TokenStore {
	s := &scsStore{sessions: sessions}
	empty, err := sessions.Codec.Encode(time.Unix(0, 0), map[string]any{scsMark: ""})
	if err == nil {
		_, values, err := sessions.Codec.Decode(append(bytes.Clone(empty), "\x01trailer"...))
		s.trailing = err == nil && len(values) == 1
	}
	return s
}

type scsStore struct {
	sessions *scs.SessionManager
	trailing bool // the codec ignores bytes after its own
}

const (
	scsMark    = "ganbauth"
	scsVersion = 1
)

// recordName is what key's record is called in the engine: 43 characters, which is all that some engines take. Its
// semicolon cannot come in a cookie's value, so that no cookie can name a record and have scs open or overwrite it.
func recordName(key string) string {
	sum := sha256.Sum256([]byte("ganbauth token\x00" + key))
	name := base64.RawURLEncoding.AppendEncode([]byte{';'}, sum[:])
	return string(name[:43])
}

func (s *scsStore) Load(ctx context.Context, key string) (*Token, error) {
	t, _, err := s.find(ctx, key)
	return t, err
}

func (s *scsStore) find(ctx context.Context, key string) (*Token, time.Time, error) {
	var data []byte
	var found bool
	var err error
	// Some of scs's stores have a context, and panic on Find.
	if store, ok := s.sessions.Store.(scs.CtxStore); ok {
		data, found, err = store.FindCtx(ctx, recordName(key))
	} else {
		data, found, err = s.sessions.Store.Find(recordName(key))
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("ganbauth: scs store: find: %w", err)
	}
	if !found {
		return nil, time.Time{}, ErrTokenNotFound
	}
	t, deadline, err := s.decode(data)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", ErrTokenNotFound, err)
	}
	return t, deadline, nil
}

func (s *scsStore) Save(ctx context.Context, key string, token *Token) error {
	deadline, err := s.deadline(ctx, key)
	if err != nil {
		return err
	}
	data, err := s.encode(token, deadline)
	if err != nil {
		return fmt.Errorf("ganbauth: scs store: encode: %w", err)
	}
	if store, ok := s.sessions.Store.(scs.CtxStore); ok {
		err = store.CommitCtx(ctx, recordName(key), data, deadline)
	} else {
		err = s.sessions.Store.Commit(recordName(key), data, deadline)
	}
	if err != nil {
		return fmt.Errorf("ganbauth: scs store: commit: %w", err)
	}
	return nil
}

func (s *scsStore) Delete(ctx context.Context, key string) error {
	var err error
	if store, ok := s.sessions.Store.(scs.CtxStore); ok {
		err = store.DeleteCtx(ctx, recordName(key))
	} else {
		err = s.sessions.Store.Delete(recordName(key))
	}
	if err != nil {
		return fmt.Errorf("ganbauth: scs store: delete: %w", err)
	}
	return nil
}

// deadline is when key's record ends: with the session in ctx if that is the one that holds key, else when the
// record that is there ends.
func (s *scsStore) deadline(ctx context.Context, key string) (time.Time, error) {
	// Load returns the session that ctx has, or a new one.
	session, err := s.sessions.Load(ctx, "")
	if err != nil {
		return time.Time{}, fmt.Errorf("ganbauth: scs store: %w", err)
	}
	for _, name := range s.sessions.Keys(session) {
		if s.sessions.GetString(session, name) == key {
			return s.sessions.Deadline(session), nil
		}
	}
	_, deadline, err := s.find(ctx, key)
	if errors.Is(err, ErrTokenNotFound) {
		return time.Now().Add(s.sessions.Lifetime).UTC(), nil
	}
	return deadline, err
}

// encode makes a record that sessions.Codec can read, as sessions.Iterate hands it every record: an empty session,
// with the token behind it where the codec ignores that, and else among its values.
func (s *scsStore) encode(t *Token, deadline time.Time) ([]byte, error) {
	record := binary.BigEndian.AppendUint64([]byte{scsVersion}, uint64(deadline.Unix()))
	token, err := t.MarshalBinary()
	if err != nil {
		return nil, err
	}
	record = append(record, token...)
	if !s.trailing {
		return s.sessions.Codec.Encode(deadline, map[string]any{scsMark: base64.StdEncoding.EncodeToString(record)})
	}
	data, err := s.sessions.Codec.Encode(deadline, map[string]any{scsMark: ""})
	if err != nil {
		return nil, err
	}
	data = append(data, record...)
	return binary.BigEndian.AppendUint32(data, uint32(len(record))), nil
}

func (s *scsStore) decode(data []byte) (*Token, time.Time, error) {
	var record []byte
	if s.trailing {
		if len(data) < 4 {
			return nil, time.Time{}, errRecordTruncated
		}
		end := len(data) - 4
		n := binary.BigEndian.Uint32(data[end:])
		if uint64(n) > uint64(end) {
			return nil, time.Time{}, errRecordTruncated
		}
		record = data[end-int(n) : end]
	} else {
		_, values, err := s.sessions.Codec.Decode(data)
		if err != nil {
			return nil, time.Time{}, errUnreadable
		}
		text, _ := values[scsMark].(string)
		if record, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, time.Time{}, errUnreadable
		}
	}
	if len(record) < 9 || record[0] != scsVersion {
		return nil, time.Time{}, errUnreadable
	}
	t := new(Token)
	if err := t.UnmarshalBinary(record[9:]); err != nil {
		return nil, time.Time{}, err
	}
	return t, time.Unix(int64(binary.BigEndian.Uint64(record[1:])), 0).UTC(), nil
}

// sealedStore encrypts a token's secrets before the store beneath sees them: field by field, so that a store with
// columns works, and bound to the key, so that one user's record cannot stand in for another's.
type sealedStore struct {
	TokenStore
	sealer sealer
}

func (s sealedStore) Load(ctx context.Context, key string) (*Token, error) {
	t, err := s.TokenStore.Load(ctx, key)
	if err != nil {
		return nil, err
	}
	for field, value := range secrets(t) {
		if *value == "" {
			continue
		}
		if *value, err = s.sealer.open(*value, field+"\x00"+key); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTokenNotFound, err)
		}
	}
	return t, nil
}

func (s sealedStore) Save(ctx context.Context, key string, token *Token) error {
	t := *token
	for field, value := range secrets(&t) {
		if *value != "" {
			*value = s.sealer.seal(*value, field+"\x00"+key)
		}
	}
	return s.TokenStore.Save(ctx, key, &t)
}

func secrets(t *Token) map[string]*string {
	return map[string]*string{
		"access_token":  &t.AccessToken,
		"refresh_token": &t.RefreshToken,
		"id_token":      &t.IDToken,
		"sub":           &t.Subject,
	}
}

// sealer encrypts with AES-256-GCM into base64url. The first key seals, all keys open.
type sealer []cipher.AEAD

func newSealer(keys ...[]byte) (sealer, error) {
	var s sealer
	for i, key := range keys {
		if len(key) != 32 {
			return nil, fmt.Errorf("ganbauth: encryption key %d has %d bytes, not 32", i, len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		s = append(s, aead)
	}
	return s, nil
}

func (s sealer) seal(plain, owner string) string {
	return base64.RawURLEncoding.EncodeToString(s[0].Seal(nil, nil, []byte(plain), []byte(owner)))
}

func (s sealer) open(sealed, owner string) (string, error) {
	data, err := decodeSegment(sealed)
	if err != nil {
		return "", errUnreadable
	}
	for _, aead := range s {
		if plain, err := aead.Open(nil, nil, data, []byte(owner)); err == nil {
			return string(plain), nil
		}
	}
	return "", fmt.Errorf("%w: no key opens it", errUnreadable)
}
