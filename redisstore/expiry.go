package redisstore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"time"

	"github.com/ganbauth/ganbauth"
)

// The index has the keys of the tokens that can be refreshed, by the second in which they
// expire. It is 64 sorted sets, so that a Cluster spreads it and no command is long. With
// Options.TTL there is none: such tokens are not kept alive.
const shards = 64

// index returns the name of the sorted set that key belongs to.
func (s *Store) index(key string) string {
	sum := sha256.Sum256([]byte(key))
	return s.shard(int(sum[0]) % shards)
}

func (s *Store) shard(i int) string { return s.prefix + "expiries:{" + strconv.Itoa(i) + "}" }

// end is what a hash says about the end of t: "" if t is not to be listed.
func (s *Store) end(t *ganbauth.Token) string {
	if t == nil || t.RefreshToken == "" || s.ttl > 0 {
		return ""
	}
	return strconv.FormatInt(t.ExpiresAt.Unix(), 10)
}

// follow makes the index say what the hashes do. It is given what they said a moment ago,
// and looks again after each change until they say the same: of several that change the
// index at once, one looks last.
func (s *Store) follow(ctx context.Context, ends map[string]string) error {
	for len(ends) > 0 {
		var keys []string
		var commands []Command
		for key, end := range ends {
			keys = append(keys, key)
			if end == "" {
				commands = append(commands, Command{[]string{"ZREM"}, []string{s.index(key)}, []string{key}})
			} else {
				commands = append(commands, Command{[]string{"ZADD"}, []string{s.index(key)}, []string{end, key}})
			}
		}
		for _, a := range s.do(ctx, s.client, commands...) {
			if a.Err != nil {
				return a.Err
			}
		}
		now, err := s.ends(ctx, keys)
		if err != nil {
			return err
		}
		for _, key := range keys {
			if now[key] == ends[key] {
				delete(ends, key)
			} else {
				ends[key] = now[key]
			}
		}
	}
	return nil
}

// ends returns what the hashes of keys say.
func (s *Store) ends(ctx context.Context, keys []string) (map[string]string, error) {
	commands := make([]Command, len(keys))
	for i, key := range keys {
		commands[i] = Command{[]string{"HGET"}, []string{s.name(key)}, []string{"end"}}
	}
	ends := map[string]string{}
	for i, a := range s.do(ctx, s.client, commands...) {
		if a.Err != nil {
			return nil, a.Err
		}
		ends[keys[i]], _ = a.Value.(string)
	}
	return ends, nil
}

// Expiring implements [ganbauth.ExpiryLister]. With Options.TTL it lists nothing. It
// reads page after page, and has all keys in memory at the end: prefer
// [Store.ExpiringAfter].
func (s *Store) Expiring(ctx context.Context, before time.Time) (keys []string, err error) {
	const page = 1000
	for after := (ganbauth.Expiry{}); ; {
		entries, err := s.ExpiringAfter(ctx, after, before, page)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			keys = append(keys, e.Key)
		}
		if len(entries) < page {
			return keys, nil
		}
		after = entries[len(entries)-1]
	}
}

// ExpiringAfter implements [ganbauth.ExpiryPager]. An entry whose token is gone, or
// expires at another time, is put right and not returned.
func (s *Store) ExpiringAfter(ctx context.Context, after ganbauth.Expiry, before time.Time, limit int) ([]ganbauth.Expiry, error) {
	if s.ttl > 0 {
		return nil, nil
	}
	var page []ganbauth.Expiry
	for m := s.merge(after, before, limit); ; {
		entries, err := m.next(ctx, limit-len(page))
		if err == nil {
			if len(entries) == 0 {
				return page, nil
			}
			entries, err = s.right(ctx, entries)
		}
		if err != nil {
			return nil, fmt.Errorf("redisstore: list: %w", err)
		}
		page = append(page, entries...)
	}
}

// right returns those of the entries that are right, and puts the others right.
func (s *Store) right(ctx context.Context, entries []ganbauth.Expiry) ([]ganbauth.Expiry, error) {
	const most = 200 // in one round trip
	var right []ganbauth.Expiry
	for len(entries) > 0 {
		chunk := entries[:min(most, len(entries))]
		entries = entries[len(chunk):]
		keys := make([]string, len(chunk))
		for i, e := range chunk {
			keys[i] = e.Key
		}
		ends, err := s.ends(ctx, keys)
		if err != nil {
			return nil, err
		}
		for _, e := range chunk {
			if ends[e.Key] == strconv.FormatInt(e.At.Unix(), 10) {
				right = append(right, e)
				delete(ends, e.Key)
			}
		}
		if err := s.follow(ctx, ends); err != nil {
			return nil, err
		}
	}
	return right, nil
}
