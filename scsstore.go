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
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
)

// NewSCSStore returns the default TokenStore: records of its own in sessions.Store, beside
// the sessions and never inside one, so that a session written back late cannot bring back
// an old token.
//
// A record ends with the session that holds its key, or else sessions.Lifetime after the
// login; a refresh does not prolong it. An application that renews a session's token
// prolongs the session, and the record with the next refresh.
//
// sessions.Iterate meets each record as a session with the one value "ganbauth", whose
// Deadline says nothing. Set sessions.Store and sessions.Codec before. All of scs's stores
// work, those with a context included. A codec that ignores what follows its own encoding,
// such as scs's GobCodec, makes records that are quick to read.
//
// No cookie can name a record. An application that takes session tokens from elsewhere, a
// header for instance, must refuse those that begin with a semicolon.
func NewSCSStore(sessions *scs.SessionManager) TokenStore {
	return newSCSStore(sessions, plainCodec{})
}

func newSCSStore(sessions *scs.SessionManager, codec tokenCodec) *scsStore {
	return &scsStore{sessions: sessions, codec: codec, format: formatFor(sessions.Codec)}
}

// scsStore keeps records in the engine of the sessions. It cannot compare and swap, as
// scs's stores cannot.
type scsStore struct {
	sessions *scs.SessionManager
	codec    tokenCodec
	format   scsFormat
}

const (
	scsMark       = "ganbauth"
	sessionPrefix = "ganbauth." // begins the names of the kits' handles in a session
	namesPrefix   = "ganbauth:" // and of the names of their connections
)

// recordName returns the record's name in the engine, at most 43 characters, the limit of
// some engines. It contains a semicolon, which a cookie's value cannot, so no cookie can
// make scs open or overwrite a record. The key of a session's token is such a name
// itself.
func recordName(key string) string {
	if _, handle, _ := strings.Cut(key, "/"); len(key) < 43 && isHandle(handle) {
		return key
	}
	sum := sha256.Sum256([]byte("ganbauth token\x00" + key))
	return (";" + base64.RawURLEncoding.EncodeToString(sum[:]))[:43]
}

// newHandle returns the random part of a session's store key.
func newHandle() string { return ";" + rand.Text() }

func isHandle(s string) bool {
	return strings.HasPrefix(s, ";") &&
		!strings.ContainsFunc(s[1:], func(c rune) bool { return (c < 'A' || c > 'Z') && (c < '2' || c > '7') })
}

// EndsWithContext: an engine in memory keeps nobody waiting.
func (s *scsStore) EndsWithContext() bool { return isInMemory(s.sessions.Store) }

// isInMemory reports whether sessions are in the memory of one process.
func isInMemory(engine scs.Store) bool {
	_, ok := engine.(*memstore.MemStore)
	return ok
}

func (s *scsStore) Load(ctx context.Context, key string) (*Token, error) {
	t, _, err := s.find(ctx, key)
	return t, err
}

// find returns the record under key and when it ends.
func (s *scsStore) find(ctx context.Context, key string) (*Token, time.Time, error) {
	data, found, err := findIn(ctx, s.sessions.Store, recordName(key))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("ganbauth: scs store: find: %w", err)
	}
	if !found {
		return nil, time.Time{}, ErrTokenNotFound
	}
	t, deadline, err := s.decode(key, data)
	if errors.Is(err, errCorrupt) {
		return nil, time.Time{}, fmt.Errorf("%w: %w", ErrTokenNotFound, err)
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("ganbauth: scs store: %w", err)
	}
	return t, deadline, nil
}

// findIn looks for a name in an engine. Some of scs's have a context, and panic on Find.
func findIn(ctx context.Context, engine scs.Store, name string) (data []byte, found bool, err error) {
	if store, ok := engine.(scs.CtxStore); ok {
		return store.FindCtx(ctx, name)
	}
	return engine.Find(name)
}

// nameInStore returns the name under which scs has the session of that token.
func nameInStore(sessions *scs.SessionManager, token string) string {
	if !sessions.HashTokenInStore {
		return token
	}
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (s *scsStore) Save(ctx context.Context, key string, token *Token) error {
	stored, deadline, err := s.find(ctx, key)
	if err != nil && !errors.Is(err, ErrTokenNotFound) {
		return err
	}
	return s.write(ctx, key, token, stored, deadline)
}

// compareAndWrite replaces old by new with one look. It is not atomic: the kit calls it
// below its write lock.
func (s *scsStore) compareAndWrite(ctx context.Context, key string, old, new *Token) error {
	stored, deadline, err := s.find(ctx, key)
	switch {
	case err != nil && !errors.Is(err, ErrTokenNotFound):
		return err
	case stored.Fingerprint() != old.Fingerprint():
		return ErrSuperseded
	case new == nil:
		return s.Delete(ctx, key)
	}
	return s.write(ctx, key, new, stored, deadline)
}

// write puts token in the place of stored, which ends at that deadline. A nil stored is
// none.
func (s *scsStore) write(ctx context.Context, key string, token, stored *Token, deadline time.Time) error {
	deadline, err := s.deadline(ctx, key, token, stored, deadline)
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

// Delete deletes the record. Some of scs's stores have a context, and panic without it.
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

// deadline returns when key's record will end: with the session in ctx if that is the one
// that holds key, else before, if the record that is stored comes from the same login, else
// after the sessions' lifetime. The mark of a login under way ends by itself.
func (s *scsStore) deadline(ctx context.Context, key string, token, stored *Token, before time.Time) (time.Time, error) {
	if token.AccessToken == "" && token.Judged == "" && token.ExpiresAt.After(time.Now()) {
		return token.ExpiresAt.UTC(), nil
	}
	session, err := s.sessions.Load(ctx, "") // the session that ctx has, or a new one
	if err != nil {
		return time.Time{}, fmt.Errorf("ganbauth: scs store: %w", err)
	}
	for kit, h := range handles(session, s.sessions) {
		if strings.HasPrefix(h.held, kit+"/") && (key == h.held || strings.HasPrefix(key, h.held+"/")) {
			return s.sessions.Deadline(session), nil
		}
	}
	if stored == nil || stored.Epoch != token.Epoch {
		return time.Now().Add(s.sessions.Lifetime).UTC(), nil
	}
	return before, nil
}

// encode makes a record that sessions.Codec can read, because sessions.Iterate hands it
// every record: the codec's kind, the deadline, and the token.
func (s *scsStore) encode(key string, t *Token, deadline time.Time) ([]byte, error) {
	record := binary.BigEndian.AppendUint64([]byte{s.codec.version()}, uint64(deadline.Unix()))
	return s.format.wrap(deadline, append(record, s.codec.encode(key, t)...))
}

// decode reads what encode has made.
func (s *scsStore) decode(key string, data []byte) (t *Token, deadline time.Time, err error) {
	record := s.format.unwrap(data)
	if len(record) < 9 {
		return nil, time.Time{}, errRecordTruncated
	}
	if t, err = s.codec.decode(key, record[0], record[9:]); err != nil {
		return nil, time.Time{}, err
	}
	return t, time.Unix(int64(binary.BigEndian.Uint64(record[1:])), 0).UTC(), nil
}

// scsFormat hides a record in what a session codec can read.
type scsFormat interface {
	wrap(deadline time.Time, record []byte) ([]byte, error)
	unwrap(data []byte) (record []byte) // nil if there is none
}

// formatFor returns the format for a codec: behind the codec's bytes if the codec ignores
// what follows its own encoding, because decoding a session costs most of a request's time.
func formatFor(codec scs.Codec) scsFormat {
	empty, err := codec.Encode(never, map[string]any{scsMark: ""})
	if err == nil {
		_, values, err := codec.Decode(append(bytes.Clone(empty), "\x01trailer"...))
		if err == nil && len(values) == 1 {
			return behindCodec{empty}
		}
	}
	return amongValues{codec}
}

// never is the deadline of a record that has its own elsewhere.
var never = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// behindCodec puts the record, and its length, behind an empty session's bytes, which it
// has encoded once: that takes longer than all else that a write to an engine in memory
// does.
type behindCodec struct{ empty []byte }

func (f behindCodec) wrap(_ time.Time, record []byte) ([]byte, error) {
	data := slices.Concat(f.empty, record)
	return binary.BigEndian.AppendUint32(data, uint32(len(record))), nil
}

func (f behindCodec) unwrap(data []byte) (record []byte) {
	if len(data) < 4 {
		return nil
	}
	end := len(data) - 4
	n := binary.BigEndian.Uint32(data[end:])
	if uint64(n) > uint64(end) {
		return nil
	}
	return data[end-int(n) : end]
}

// amongValues makes the record a value of a session.
type amongValues struct{ codec scs.Codec }

func (f amongValues) wrap(deadline time.Time, record []byte) ([]byte, error) {
	return f.codec.Encode(deadline, map[string]any{scsMark: base64.StdEncoding.EncodeToString(record)})
}

func (f amongValues) unwrap(data []byte) (record []byte) {
	_, values, err := f.codec.Decode(data)
	if err != nil {
		return nil
	}
	text, _ := values[scsMark].(string)
	if record, err = base64.StdEncoding.DecodeString(text); err != nil {
		return nil
	}
	return record
}

// handle is what a login leaves in a session. It is one value there, because scs decodes
// every value on every request. Connections that have names leave these in a second one.
type handle struct {
	held      string // the store key of the session's token, without a connection
	ancestors string // hashes of tokens that the session had, the newest first, with spaces between them
}

// maxAncestors is how many renewals ago another tab may have begun a login.
const maxAncestors = 8

func parseHandle(value string) (h handle) {
	h.held, h.ancestors, _ = strings.Cut(value, " ")
	return h
}

func (h handle) String() string { return strings.TrimSuffix(h.held+" "+h.ancestors, " ") }

// descends reports whether the session had a token of that hash.
func (h handle) descends(ancestor string) bool {
	return slices.Contains(strings.Fields(h.ancestors), ancestor)
}

// after returns h with more ancestors.
func (h handle) after(ancestors ...string) handle {
	all := union(ancestors, strings.Fields(h.ancestors))
	h.ancestors = strings.Join(all[:min(len(all), maxAncestors)], " ")
	return h
}

// handles are what the kits have left in a session, by the kits' names.
func handles(ctx context.Context, sessions *scs.SessionManager) iter.Seq2[string, handle] {
	return func(yield func(string, handle) bool) {
		for _, name := range sessions.Keys(ctx) {
			kit, ok := strings.CutPrefix(name, sessionPrefix)
			if ok && !yield(kit, parseHandle(sessions.GetString(ctx, name))) {
				return
			}
		}
	}
}
