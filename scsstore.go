package ganbauth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

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
