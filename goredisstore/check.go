package goredisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

var errUnfit = errors.New("goredisstore: tokens are not safe in this Redis")

// Check returns an error if Redis does not answer, or if tokens are not safe there:
//
//   - It may evict them: it has a maxmemory and a maxmemory-policy of allkeys-…, or of volatile-…
//     with Options.TTL. Users have to connect again then.
//   - The client of a Cluster reads from replicas, which may lag behind.
//
// Call it when the application starts. The Store also checks by itself before its first lock, and
// logs a warning.
func (s *Store) Check(ctx context.Context) error {
	_, err := call(ctx, func(ctx context.Context) (any, error) {
		cluster, ok := s.client.(*redis.ClusterClient)
		if !ok {
			return nil, s.checkNode(ctx, s.client)
		}
		if o := cluster.Options(); o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			return nil, fmt.Errorf("%w: the client reads from replicas; leave ReadOnly, RouteByLatency and RouteRandomly off", errUnfit)
		}
		return nil, cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			return s.checkNode(ctx, node)
		})
	})
	if err != nil && !errors.Is(err, errUnfit) {
		return fmt.Errorf("goredisstore: check: %w", err)
	}
	return err
}

// warn checks once. What cannot be checked is not worth a warning.
func (s *Store) warn(ctx context.Context) {
	s.checked.Do(func() {
		if err := s.Check(ctx); errors.Is(err, errUnfit) {
			s.log.WarnContext(ctx, err.Error())
		}
	})
}

// checkNode looks at what a node says about its memory. One that says nothing, as some services
// do, is taken as it is.
func (s *Store) checkNode(ctx context.Context, node redis.UniversalClient) error {
	info, err := node.Info(ctx, "memory").Result()
	if err != nil {
		return err
	}
	field := func(name string) string {
		_, value, _ := strings.Cut(info, "\n"+name+":")
		value, _, _ = strings.Cut(value, "\r")
		return value
	}
	policy := field("maxmemory_policy")
	evicts := strings.HasPrefix(policy, "allkeys-") || s.ttl > 0 && strings.HasPrefix(policy, "volatile-")
	if evicts && field("maxmemory") != "0" {
		return fmt.Errorf("%w: it evicts them when its memory is full; set maxmemory-policy to noeviction, not %s", errUnfit, policy)
	}
	return nil
}
