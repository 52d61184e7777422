package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// ErrUnfit is what [Store.Check] returns, with the reason, if tokens are not safe in this
// Redis.
var ErrUnfit = errors.New("redisstore: tokens are not safe in this Redis")

// Check returns an error if Redis does not answer, or if tokens are not safe there; that
// error is an [ErrUnfit]:
//
//   - Redis may evict them: it has a maxmemory and a maxmemory-policy of allkeys-…, or of volatile-…
//     with Options.TTL. Users have to connect again then.
//   - The client reads from replicas, which may lag behind. Not every client can tell.
//
// Call it when the application starts. The Store also checks by itself at its first lock,
// and logs a warning.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	infos, err := await(ctx, func() ([]string, error) { return s.client.Memory(ctx) })
	switch {
	case errors.Is(err, ErrUnfit):
		return err
	case err != nil:
		return fmt.Errorf("redisstore: check: %w", err)
	}
	for _, info := range infos {
		if err := s.checkNode(info); err != nil {
			return err
		}
	}
	return nil
}

// warn checks once, and others do not wait for that. What cannot be checked is not worth a
// warning.
func (s *Store) warn(ctx context.Context) {
	if s.checked.Swap(true) {
		return
	}
	if err := s.Check(ctx); errors.Is(err, ErrUnfit) {
		s.log.WarnContext(ctx, err.Error())
	}
}

// checkNode looks at what a node says about its memory. One that says nothing, as some
// services do, is taken as it is.
func (s *Store) checkNode(info string) error {
	field := func(name string) string {
		_, value, _ := strings.Cut(info, "\n"+name+":")
		value, _, _ = strings.Cut(value, "\r")
		return value
	}
	policy := field("maxmemory_policy")
	evicts := strings.HasPrefix(policy, "allkeys-") || s.ttl > 0 && strings.HasPrefix(policy, "volatile-")
	if evicts && field("maxmemory") != "0" {
		return fmt.Errorf("%w: it evicts them when its memory is full; set maxmemory-policy to noeviction, not %s", ErrUnfit, policy)
	}
	return nil
}
