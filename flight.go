package ganbauth

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// flights runs at most one call per key at a time and hands its outcome to everybody who asks meanwhile, or until
// keep after its end.
type flights[V any] struct {
	keep time.Duration
	mu   sync.Mutex
	m    map[string]*flight[V]
}

type flight[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// do runs fn detached: it ends with a timeout of its own, while every caller leaves when its own ctx ends.
func (f *flights[V]) do(ctx context.Context, key string, fn func(context.Context) (V, error)) (V, error) {
	f.mu.Lock()
	c, ok := f.m[key]
	if !ok {
		if f.m == nil {
			f.m = map[string]*flight[V]{}
		}
		c = &flight[V]{done: make(chan struct{})}
		f.m[key] = c
		go f.run(context.WithoutCancel(ctx), key, c, fn)
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var zero V
		return zero, unavailable("ganbauth: %w", ctx.Err())
	}
}

func (f *flights[V]) run(ctx context.Context, key string, c *flight[V], fn func(context.Context) (V, error)) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	defer func() {
		// No request stands above this goroutine: a panic in a store would end the process.
		if p := recover(); p != nil {
			c.err = fmt.Errorf("ganbauth: panic: %v", p)
		}
		// Before the answer: who asks after it is not told an old outcome.
		if f.keep > 0 {
			time.AfterFunc(f.keep, func() { f.forget(key) })
		} else {
			f.forget(key)
		}
		close(c.done)
	}()
	c.value, c.err = fn(ctx)
}

// wait returns when the calls that run now have ended.
func (f *flights[V]) wait(ctx context.Context) error {
	f.mu.Lock()
	running := slices.Collect(maps.Values(f.m))
	f.mu.Unlock()
	for _, c := range running {
		select {
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *flights[V]) forget(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.m, key)
}

// keyedMutex is a mutex per key that can be waited for with a context, and takes no room when nobody holds it.
type keyedMutex struct {
	mu sync.Mutex
	m  map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // full while held
	users int
}

func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyedLock{}
	}
	l, ok := k.m[key]
	if !ok {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.m, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
