package goredisstore

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth/lease"
)

// lockScript takes the lock if it is free, or the caller's own, or held as by the dead. It
// returns the hold and, if it was taken, the fingerprint of the record. Of a record without a
// fingerprint, of an earlier version, that is "?".
const lockScript = `
local held = redis.call('HMGET', KEYS[1], 'holder', 'beats')
local holder, deadholder, deadbeats, lock = unpack(ARGV)
if held[1] and held[1] ~= holder and not (held[1] == deadholder and held[2] == deadbeats) then
	return {held[1], tonumber(held[2]), ''}
end
redis.call('HSET', KEYS[1], 'holder', holder, 'beats', 0)
if redis.call('HEXISTS', KEYS[1], 'token') == 1 then
	return {holder, 0, redis.call('HGET', KEYS[1], 'print') or '?'}
end
redis.call('EXPIRE', KEYS[1], lock)
return {holder, 0, ''}`

const extendScript = `
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[1], 'token') == 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return redis.call('HINCRBY', KEYS[1], 'beats', 1)`

const unlockScript = `
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], 'holder', 'beats')`

var (
	takeLock    = redis.NewScript(lockScript)
	extendLock  = redis.NewScript(extendScript)
	releaseLock = redis.NewScript(unlockScript)
)

// Lock implements [ganbauth.Locker]. While the lock is held its lease is extended, so that it
// outlives any refresh. After the death of its process it lasts for Options.Lease.
func (s *Store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	_, unlock, err = s.LockRecord(ctx, key)
	return unlock, err
}

// LockRecord implements [ganbauth.RecordLocker]. It is [Store.Lock], and costs no more.
func (s *Store) LockRecord(ctx context.Context, key string) (fingerprint string, unlock func(), err error) {
	s.warn(ctx)
	unlock, err = s.locker.LockWith(ctx, key, func(ctx context.Context, holder string, dead lease.Hold) (lease.Hold, error) {
		held, found, err := s.tryLock(ctx, key, holder, dead)
		fingerprint = found
		return held, err
	})
	if err != nil {
		return "", nil, fmt.Errorf("goredisstore: %w", err)
	}
	if fingerprint == "?" {
		t, err := s.Load(ctx, key)
		if err != nil {
			unlock()
			return "", nil, err
		}
		fingerprint = t.Fingerprint()
	}
	return fingerprint, unlock, nil
}

func (s *Store) tryLock(ctx context.Context, key, holder string, dead lease.Hold) (held lease.Hold, fingerprint string, err error) {
	answer, err := await(ctx, func(ctx context.Context) ([]any, error) {
		return takeLock.Run(ctx, s.client, []string{s.name(key)}, holder, dead.Holder, dead.Beats, lockSeconds).Slice()
	})
	if err != nil {
		return lease.Hold{}, "", err
	}
	if len(answer) == 3 {
		held.Holder, _ = answer[0].(string)
		held.Beats, _ = answer[1].(int64)
		fingerprint, _ = answer[2].(string)
	}
	return held, fingerprint, nil
}

// engine is the Store's side of its locks.
type engine struct{ *Store }

func (e engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	held, _, err := e.tryLock(ctx, key, holder, dead)
	return held, err
}

// Extend has a client of its own: the application's may have no connection to spare just when
// its refreshes take long. It does with the application's where its own cannot connect.
func (e engine) Extend(ctx context.Context, key, holder string) error {
	extend := func(ctx context.Context, client redis.UniversalClient) error {
		_, err := await(ctx, func(ctx context.Context) (any, error) {
			return extendLock.Run(ctx, client, []string{e.name(key)}, holder, lockSeconds).Result()
		})
		return err
	}
	err := extend(ctx, e.beatClient())
	if err != nil && ctx.Err() == nil {
		err = extend(ctx, e.client)
	}
	return err
}

func (e engine) Unlock(ctx context.Context, key, holder string) error {
	_, err := await(ctx, func(ctx context.Context) (any, error) {
		return releaseLock.Run(ctx, e.client, []string{e.name(key)}, holder).Result()
	})
	return err
}

const maxBeatConns = 2

// beatClient returns the client for beats, and makes it if there is none. Of a kind of client
// whose options are not known there is none, and the application's serves.
func (s *Store) beatClient() redis.UniversalClient {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.beats != nil {
		return s.beats
	}
	switch client := s.client.(type) {
	case *redis.Client:
		opts := *client.Options()
		opts.MaxRetries, opts.PoolSize, opts.MinIdleConns, opts.MaxIdleConns, opts.MaxActiveConns = -1, maxBeatConns, 0, 0, 0
		opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = callTimeout, callTimeout, callTimeout
		opts.ContextTimeoutEnabled = true
		s.beats = redis.NewClient(&opts)
	case *redis.ClusterClient:
		opts := *client.Options()
		opts.MaxRetries, opts.PoolSize, opts.MinIdleConns, opts.MaxIdleConns, opts.MaxActiveConns = -1, maxBeatConns, 0, 0, 0
		opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = callTimeout, callTimeout, callTimeout
		opts.ContextTimeoutEnabled = true
		s.beats = redis.NewClusterClient(&opts)
	default:
		return s.client
	}
	return s.beats
}

// Rest implements [lease.Rester]: it closes the client for beats.
func (e engine) Rest() {
	e.mu.Lock()
	beats := e.beats
	e.beats = nil
	e.mu.Unlock()
	if beats != nil {
		_ = beats.Close()
	}
}
