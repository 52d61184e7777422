package goredisstore

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long one call may take, whatever the client's timeouts and retries are.
const callTimeout = 3 * time.Second

// call gives fn the time that one call may take.
func call[T any](ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return await(ctx, fn)
}

// await runs fn, and leaves it when ctx ends: go-redis heeds no cancellation while it waits for
// an answer, and by default no deadline. What is left ends by the client's own timeouts, and
// does not begin a retry.
func await[T any](ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			answered <- a
		}()
		a.value, a.err = fn(ctx)
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		return *new(T), fmt.Errorf("no answer from Redis: %w", ctx.Err())
	}
}

// pipeline runs commands in one round trip.
func (s *Store) pipeline(ctx context.Context, fn func(context.Context, redis.Pipeliner)) ([]redis.Cmder, error) {
	return call(ctx, func(ctx context.Context) ([]redis.Cmder, error) {
		return s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			fn(ctx, p)
			return nil
		})
	})
}
