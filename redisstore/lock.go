package redisstore

import (
	"context"
	"fmt"
	"strconv"

	"github.com/ganbauth/ganbauth/lease"
)

var (
	// takeLock takes the lock if it is free, or the caller's own, or held as by the dead.
	// It returns the hold and, if it was taken, the fingerprint of the record. Of a
	// record without a fingerprint, of an earlier version, that is "?". Where it is not taken,
	// HSETNX changes nothing, and fails if Redis takes no writes: then the holder's beats
	// fail, too.
	takeLock = newScript(`
local held = redis.call('HMGET', KEYS[1], 'holder', 'beats')
local holder, deadholder, deadbeats, lock = unpack(ARGV)
if held[1] and held[1] ~= holder and not (held[1] == deadholder and held[2] == deadbeats) then
	redis.call('HSETNX', KEYS[1], 'holder', '')
	return {held[1], tonumber(held[2]), ''}
end
redis.call('HSET', KEYS[1], 'holder', holder, 'beats', 0)
if redis.call('HEXISTS', KEYS[1], 'token') == 1 then
	return {holder, 0, redis.call('HGET', KEYS[1], 'print') or '?'}
end
redis.call('EXPIRE', KEYS[1], lock)
return {holder, 0, ''}`)

	extendLock = newScript(`
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[1], 'token') == 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return redis.call('HINCRBY', KEYS[1], 'beats', 1)`)

	releaseLock = newScript(`
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], 'holder', 'beats')`)
)

// Lock implements [ganbauth.Locker]. While the lock is held its lease is extended, so
// that it outlives any refresh. After the death of its process it lasts for
// Options.Lease.
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
		return "", nil, fmt.Errorf("redisstore: %w", err)
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

// tryLock takes the lock if it is free, or if dead holds it, and says which record is there.
func (s *Store) tryLock(ctx context.Context, key, holder string, dead lease.Hold) (held lease.Hold, fingerprint string, err error) {
	answer := s.run(ctx, s.client, takeLock, []string{s.name(key)},
		holder, dead.Holder, strconv.FormatInt(dead.Beats, 10), lockSeconds)
	if list, _ := answer.Value.([]any); len(list) == 3 {
		held.Holder, _ = list[0].(string)
		held.Beats, _ = list[1].(int64)
		fingerprint, _ = list[2].(string)
	}
	return held, fingerprint, answer.Err
}

// engine is the Store's side of its locks.
type engine struct{ *Store }

func (e engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	held, _, err := e.tryLock(ctx, key, holder, dead)
	return held, err
}

// Extend goes over the spare client, if there is one, or else over the application's.
func (e engine) Extend(ctx context.Context, key, holder string) error {
	over := func(client Client) func(context.Context) error {
		return func(ctx context.Context) error {
			return e.run(ctx, client, extendLock, []string{e.name(key)}, holder, lockSeconds).Err
		}
	}
	spare, ok := e.client.(Spare)
	if !ok {
		return over(e.client)(ctx)
	}
	return lease.Extend(ctx, over(spare.Beats()), over(e.client))
}

func (e engine) Unlock(ctx context.Context, key, holder string) error {
	return e.run(ctx, e.client, releaseLock, []string{e.name(key)}, holder).Err
}

// Rest implements [lease.Rester].
func (e engine) Rest() {
	if spare, ok := e.client.(Spare); ok {
		spare.Rest()
	}
}
