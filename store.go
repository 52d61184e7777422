package ganbauth

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// load is store.Load, with no allocation for the Token where the store is the default one.
func load(ctx context.Context, store TokenStore, key string) (Token, error) {
	if s, ok := store.(*scsStore); ok {
		return s.load(ctx, key)
	}
	t, err := store.Load(ctx, key)
	if err != nil || t == nil {
		return Token{}, err
	}
	return *t, nil
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
//
// No cookie can name a record. An application that takes session tokens from elsewhere, a header for instance, must refuse
// those that begin with a semicolon.
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
	trailing bool    // the codec ignores bytes after its own
	sealer   *sealer // nil: tokens are in clear
}

const (
	scsMark    = "ganbauth"
	scsVersion = 1
	scsSealed  = 2
)

// newRecordKey returns a random key, which names its record itself.
func newRecordKey() string { return ";" + rand.Text() }

// recordName is what key's record is called in the engine: 43 characters, which is all that some engines take, or
// fewer if the key was made to be a name. Its semicolon cannot come in a cookie's value, so that no cookie can name a
// record and have scs open or overwrite it.
func recordName(key string) string {
	if len(key) < 43 && strings.HasPrefix(key, ";") {
		return key
	}
	var room [64]byte // for most keys, on the stack
	sum := sha256.Sum256(append(append(room[:0], "ganbauth token\x00"...), key...))
	var name [44]byte
	name[0] = ';'
	base64.RawURLEncoding.Encode(name[1:], sum[:])
	return string(name[:43])
}

func (s *scsStore) Load(ctx context.Context, key string) (*Token, error) {
	t, err := s.load(ctx, key)
	if err != nil {
		return nil, err
	}
	return &t, nil
}

func (s *scsStore) load(ctx context.Context, key string) (Token, error) {
	t, _, err := s.find(ctx, key)
	return t, err
}

func (s *scsStore) find(ctx context.Context, key string) (Token, time.Time, error) {
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
		return Token{}, time.Time{}, fmt.Errorf("ganbauth: scs store: find: %w", err)
	}
	if !found {
		return Token{}, time.Time{}, ErrTokenNotFound
	}
	t, deadline, err := s.decode(key, data)
	if err != nil {
		return Token{}, time.Time{}, fmt.Errorf("%w: %w", ErrTokenNotFound, err)
	}
	return t, deadline, nil
}

func (s *scsStore) Save(ctx context.Context, key string, token *Token) error {
	deadline, err := s.deadline(ctx, key)
	if err != nil {
		return err
	}
	data, err := s.encode(key, token, deadline)
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
		if held, _ := splitHandle(s.sessions.GetString(session, name)); held == key {
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
func (s *scsStore) encode(key string, t *Token, deadline time.Time) ([]byte, error) {
	version, token := byte(scsVersion), t.marshal()
	if s.sealer != nil {
		version, token = scsSealed, s.sealer.seal(token, key)
	}
	record := append(binary.BigEndian.AppendUint64([]byte{version}, uint64(deadline.Unix())), token...)
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

func (s *scsStore) decode(key string, data []byte) (t Token, deadline time.Time, err error) {
	var record []byte
	if s.trailing {
		if len(data) < 4 {
			return t, deadline, errRecordTruncated
		}
		end := len(data) - 4
		n := binary.BigEndian.Uint32(data[end:])
		if uint64(n) > uint64(end) {
			return t, deadline, errRecordTruncated
		}
		record = data[end-int(n) : end]
	} else {
		_, values, err := s.sessions.Codec.Decode(data)
		if err != nil {
			return t, deadline, errUnreadable
		}
		text, _ := values[scsMark].(string)
		if record, err = base64.StdEncoding.DecodeString(text); err != nil {
			return t, deadline, errUnreadable
		}
	}
	if len(record) < 9 {
		return t, deadline, errUnreadable
	}
	switch version, token := record[0], record[9:]; {
	case version == scsVersion && s.sealer == nil:
		err = t.UnmarshalBinary(token)
	case version == scsSealed && s.sealer != nil:
		var plain string
		if plain, err = s.sealer.open(token, key); err == nil {
			err = t.unmarshal(plain)
		}
	default:
		err = errUnreadable
	}
	if err != nil {
		return t, deadline, err
	}
	return t, time.Unix(int64(binary.BigEndian.Uint64(record[1:])), 0).UTC(), nil
}

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
	}
	if token.RefreshToken != "" {
		sealed.RefreshToken = "sealed" // stores list the tokens that have one
	}
	return s.TokenStore.Save(ctx, key, sealed)
}

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
