package goredisstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth/redisstore"
)

// commands sends commands with a client of go-redis.
type commands struct{ redis.UniversalClient }

// Do implements [redisstore.Client]. It sends one command by itself, and several in one
// round trip. What the Store leaves ends by the client's own timeouts, and does not begin a
// retry.
func (c commands) Do(ctx context.Context, list []redisstore.Command) []redisstore.Answer {
	if len(list) == 1 {
		return []redisstore.Answer{answer(c.UniversalClient.Do(ctx, words(list[0])...))}
	}
	pipeline := c.Pipeline()
	done := make([]*redis.Cmd, len(list))
	for i, command := range list {
		done[i] = pipeline.Do(ctx, words(command)...)
	}
	_, _ = pipeline.Exec(ctx) // each command has its own error
	answers := make([]redisstore.Answer, len(list))
	for i := range answers {
		answers[i] = answer(done[i])
	}
	return answers
}

func answer(cmd *redis.Cmd) redisstore.Answer {
	value, err := cmd.Result()
	if errors.Is(err, redis.Nil) {
		return redisstore.Answer{}
	}
	return redisstore.Answer{Value: value, Err: err}
}

func words(c redisstore.Command) (all []any) {
	for _, part := range [][]string{c.Words, c.Keys, c.Args} {
		for _, word := range part {
			all = append(all, word)
		}
	}
	return all
}

// Memory implements [redisstore.Client].
func (c commands) Memory(ctx context.Context) (infos []string, err error) {
	cluster, ok := c.UniversalClient.(*redis.ClusterClient)
	if !ok {
		info, err := c.Info(ctx, "memory").Result()
		return []string{info}, err
	}
	if o := cluster.Options(); o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
		return nil, fmt.Errorf("%w: the client reads from replicas; leave ReadOnly, RouteByLatency and RouteRandomly off",
			redisstore.ErrUnfit)
	}
	var mu sync.Mutex
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		info, err := node.Info(ctx, "memory").Result()
		mu.Lock()
		defer mu.Unlock()
		infos = append(infos, info)
		return err
	})
	return infos, err
}

const (
	maxBeatConns = 2
	beatTimeout  = 3 * time.Second
)

// spareClient sends commands with the application's client, and beats with one of its
// own: the application's may have no connection to spare just when its refreshes take
// long.
type spareClient struct {
	client commands

	mu    sync.Mutex
	beats redis.UniversalClient // while this process holds locks for long; or nil
}

// Do implements [redisstore.Client].
func (s *spareClient) Do(ctx context.Context, list []redisstore.Command) []redisstore.Answer {
	return s.client.Do(ctx, list)
}

// Memory implements [redisstore.Client].
func (s *spareClient) Memory(ctx context.Context) (infos []string, err error) {
	return s.client.Memory(ctx)
}

// Beats implements [redisstore.Spare]. Of a kind of client whose options are not known
// there is no other, and the application's serves.
func (s *spareClient) Beats() redisstore.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.beats == nil {
		switch client := s.client.UniversalClient.(type) {
		case *redis.Client:
			opts := *client.Options()
			opts.MaxRetries, opts.PoolSize, opts.MinIdleConns, opts.MaxIdleConns, opts.MaxActiveConns = -1, maxBeatConns, 0, 0, 0
			opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = beatTimeout, beatTimeout, beatTimeout
			opts.ContextTimeoutEnabled = true
			s.beats = redis.NewClient(&opts)
		case *redis.ClusterClient:
			opts := *client.Options()
			opts.MaxRetries, opts.PoolSize, opts.MinIdleConns, opts.MaxIdleConns, opts.MaxActiveConns = -1, maxBeatConns, 0, 0, 0
			opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = beatTimeout, beatTimeout, beatTimeout
			opts.ContextTimeoutEnabled = true
			s.beats = redis.NewClusterClient(&opts)
		default:
			return s.client
		}
	}
	return commands{s.beats}
}

// Rest implements [redisstore.Spare]: it closes the client for beats.
func (s *spareClient) Rest() {
	s.mu.Lock()
	beats := s.beats
	s.beats = nil
	s.mu.Unlock()
	if beats != nil {
		_ = beats.Close()
	}
}
