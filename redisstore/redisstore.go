// Package redisstore keeps ganbauth's tokens in Redis through any client that can send
// commands. The modules goredisstore and rueidisstore are made of it: use one of them if
// it has your client. Stores of all clients share records, locks and index, so that
// instances of an application with different clients work together.
//
//	store := redisstore.New(client, redisstore.Options{}) // client is yours, a [Client]
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Store: store, Key: userID, …})
//
// # How a record changes
//
// A record is a hash with the token's bytes and its fingerprint. A script compares the
// fingerprint and replaces the record in one step. A refresh takes four round trips:
// load, lock, swap, unlock.
//
// # How a lock is safe
//
// A lock is a random name in the same hash, with a count that its holder raises while it
// lives. A waiter takes the lock over only after it has seen the count stand still for a
// whole lease, by the waiter's own clock, while Redis was answering. SET NX PX, and the
// libraries built on it, would not do: such a lock expires during an outage of Redis,
// when its holder may still have a new token to save. Package lease has the details.
//
// # What Redis must be
//
// A refresh token exists in one copy in the world. Redis must neither evict it nor forget
// it: set maxmemory-policy to noeviction and appendonly to yes. [Store.Check] tells
// whether Redis evicts. The store runs on one primary; a failover that loses the last
// write loses what was in it.
package redisstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/lease"
)

// Options configure a [Store]. The zero value of each field is the right default.
type Options struct {
	// Prefix begins the name of everything that the Store keeps in Redis. Default:
	// "ganbauth:".
	Prefix string
	// TTL is how long a token is kept after it was last saved. Default: until it is
	// deleted. Set it to the sessions' Lifetime where tokens belong to sessions (without
	// ganbauth's Options.Key). KeepAlive does not see tokens with a TTL.
	TTL time.Duration
	// Lease is how long a lock outlives a process that has died; a living one extends it.
	// One to 20 seconds. Default: 10 seconds.
	Lease time.Duration
	// Logger gets a warning if tokens are not safe in Redis: see [Store.Check]. Default:
	// [slog.Default].
	Logger *slog.Logger
	// Cluster says that Redis is a Cluster, where no script may touch keys of several
	// slots. Default: the Store finds out by the error CROSSSLOT, if the client returns
	// it.
	Cluster bool
}

// Store keeps tokens in Redis and locks them there. It is safe for concurrent use.
//
// Every call ends with its context, and after three seconds at most. A lock that somebody
// holds is waited for until the context ends. A list of tokens takes as many calls as it has
// pages.
type Store struct {
	client Client
	prefix string
	ttl    time.Duration
	locker *lease.Locker
	log    *slog.Logger

	// Whether a script may not touch a record and the index together, as in Cluster,
	// where they are in different slots.
	split atomic.Bool

	checked atomic.Bool
}

var (
	_ ganbauth.TokenStore   = (*Store)(nil)
	_ ganbauth.Swapper      = (*Store)(nil)
	_ ganbauth.Locker       = (*Store)(nil)
	_ ganbauth.RecordLocker = (*Store)(nil)
	_ ganbauth.ExpiryLister = (*Store)(nil)
	_ ganbauth.ExpiryPager  = (*Store)(nil)
)

// New returns a Store that uses client, which its owner closes.
func New(client Client, opts Options) *Store {
	if opts.Prefix == "" {
		opts.Prefix = "ganbauth:"
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	s := &Store{client: client, prefix: opts.Prefix, ttl: opts.TTL, log: opts.Logger}
	s.split.Store(opts.Cluster)
	s.locker = lease.New(engine{s}, opts.Lease)
	return s
}

// name returns the name of the hash of key. The braces are Redis Cluster's hash tag;
// hashing the key keeps braces in it from changing the tag.
func (s *Store) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return s.prefix + "{" + base64.RawURLEncoding.EncodeToString(sum[:]) + "}:token"
}

// The fields of a hash:
//
//   - token is the record, and print its fingerprint;
//   - end is the second in which the token expires, if it can be refreshed;
//   - holder and beats are the lock.
//
// A hash without a record is a lock. It goes when the lock does, or after lockSeconds
// without a beat.
const lockSeconds = "600"

// writeRecord replaces or deletes a record, if the record that is there is the expected
// one: "*" for whatever is there, "" for nothing. A record without a fingerprint, of an
// earlier version, is any. The index, where it is given, follows the record.
var writeRecord = newScript(`
local there, print = redis.call('HEXISTS', KEYS[1], 'token') == 1, redis.call('HGET', KEYS[1], 'print')
local expected, record, newprint, ending, ttl, lock, key = unpack(ARGV)
if expected == '' and there then return 0 end
if expected ~= '' and expected ~= '*' and (not there or print and print ~= expected) then return 0 end
if record == '' then
	redis.call('HDEL', KEYS[1], 'token', 'print', 'end')
	redis.call('EXPIRE', KEYS[1], lock)
else
	redis.call('HSET', KEYS[1], 'token', record, 'print', newprint)
	if ending == '' then redis.call('HDEL', KEYS[1], 'end') else redis.call('HSET', KEYS[1], 'end', ending) end
	if tonumber(ttl) > 0 then redis.call('PEXPIRE', KEYS[1], ttl) else redis.call('PERSIST', KEYS[1]) end
end
if KEYS[2] then
	if ending == '' then redis.call('ZREM', KEYS[2], key) else redis.call('ZADD', KEYS[2], ending, key) end
end
return 1`)

const anything = "*"

var errNoToken = errors.New("redisstore: save: there is no token to save")

// Load implements [ganbauth.TokenStore].
func (s *Store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	answer := s.one(ctx, Command{Words: []string{"HGET"}, Keys: []string{s.name(key)}, Args: []string{"token"}})
	switch record, ok := answer.Value.(string); {
	case answer.Err != nil:
		return nil, fmt.Errorf("redisstore: load: %w", answer.Err)
	case !ok:
		return nil, ganbauth.ErrTokenNotFound
	default:
		t := new(ganbauth.Token)
		if err := t.UnmarshalBinary([]byte(record)); err != nil {
			return nil, fmt.Errorf("redisstore: load: %w", err)
		}
		return t, nil
	}
}

// EndsWithContext says that all methods end as soon as their context does: see
// [ganbauth.TokenStore].
func (*Store) EndsWithContext() bool { return true }

// Save implements [ganbauth.TokenStore].
func (s *Store) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	if token == nil {
		return errNoToken
	}
	if _, err := s.write(ctx, key, anything, token); err != nil {
		return fmt.Errorf("redisstore: save: %w", err)
	}
	return nil
}

// Delete implements [ganbauth.TokenStore].
func (s *Store) Delete(ctx context.Context, key string) error {
	if _, err := s.write(ctx, key, anything, nil); err != nil {
		return fmt.Errorf("redisstore: delete: %w", err)
	}
	return nil
}

// Swap implements [ganbauth.Swapper].
func (s *Store) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	done, err := s.write(ctx, key, old.Fingerprint(), new)
	if err != nil {
		return fmt.Errorf("redisstore: swap: %w", err)
	}
	if !done {
		return ganbauth.ErrSuperseded
	}
	return nil
}

// write puts t under key, or deletes what is there if t is nil, and reports whether the
// expected record was there.
func (s *Store) write(ctx context.Context, key, expected string, t *ganbauth.Token) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var record []byte
	if t != nil {
		if record, err = t.MarshalBinary(); err != nil {
			return false, err
		}
	}
	end := s.end(t)
	run := func(keys ...string) (bool, error) {
		answer := s.run(ctx, s.client, writeRecord, keys,
			expected, string(record), t.Fingerprint(), end, strconv.FormatInt(s.ttl.Milliseconds(), 10), lockSeconds, key)
		return answer.Value == int64(1), answer.Err
	}
	if s.ttl > 0 {
		return run(s.name(key))
	}
	if !s.split.Load() {
		done, err := run(s.name(key), s.index(key))
		if !isError(err, "CROSSSLOT") {
			return done, err
		}
		s.split.Store(true) // the client is a single server's, and a Cluster answers
	}
	return s.writeApart(ctx, key, end, run)
}

// listSooner lists a key by an end, unless it is listed by a sooner one.
var listSooner = newScript(`
local listed = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not listed or tonumber(listed) > tonumber(ARGV[1]) then redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2]) end`)

// writeApart writes where the record and the index are in different slots. First the key is
// listed by the token's end, if it is not listed sooner: a token that is missing in the
// index, or listed too late, would lapse, while one that is listed needlessly does no harm.
// When the record is written, the index follows.
func (s *Store) writeApart(ctx context.Context, key, end string, run func(keys ...string) (bool, error)) (done bool, err error) {
	if end != "" {
		if err := s.run(ctx, s.client, listSooner, []string{s.index(key)}, end, key).Err; err != nil {
			return false, err
		}
	}
	done, err = run(s.name(key))
	if done && err == nil {
		_ = s.follow(ctx, map[string]string{key: end})
	}
	return done, err
}

// String shows where the Store keeps its tokens.
func (s *Store) String() string { return "redisstore.Store(" + strconv.Quote(s.prefix) + ")" }
