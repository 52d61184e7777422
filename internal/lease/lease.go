// Package lease is what the stores' locks have in common: leases that are extended while they are held, and the
// fencing numbers by which a holder that comes too late is known.
package lease

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"
)

// Engine is what a store does for a lock. A holder is a random name for one hold.
type Engine interface {
	// TryLock takes the lock on key for the lease and returns the next number of key, or 0 if somebody holds it.
	TryLock(ctx context.Context, key, holder string, lease time.Duration) (fence int64, err error)
	// Extend and Unlock do nothing if holder does not hold the lock any more.
	Extend(ctx context.Context, key, holder string, lease time.Duration) error
	Unlock(ctx context.Context, key, holder string) error
}

// Locks are the locks that this process takes at an engine.
type Locks struct {
	engine Engine
	lease  time.Duration

	mu    sync.Mutex
	fence map[string]int64
}

// New returns Locks with leases of at least a second, ten seconds by default.
func New(engine Engine, lease time.Duration) *Locks {
	if lease == 0 {
		lease = 10 * time.Second
	}
	return &Locks{engine: engine, lease: max(lease, time.Second), fence: map[string]int64{}}
}

// Fence returns the number of the lock on key that this process holds, or held when its lease was lost, and 0
// without one.
func (l *Locks) Fence(key string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fence[key]
}

// Lock waits for the lock on key, or for ctx.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	holder := rand.Text()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		fence, err := l.engine.TryLock(ctx, key, holder, l.lease)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if fence > 0 {
			return l.hold(key, holder, fence), nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("lock: %w", ctx.Err())
		}
	}
}

// hold keeps the lease until unlock.
func (l *Locks) hold(key, holder string, fence int64) (unlock func()) {
	l.mu.Lock()
	l.fence[key] = fence
	l.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	extended := make(chan struct{})
	go func() {
		defer close(extended)
		for tick := time.Tick(l.lease / 3); ; {
			select {
			case <-tick:
				// A failure is not the end: the next tick may find the engine again, and a lost lease is what the numbers
				// are for.
				_ = l.engine.Extend(ctx, key, holder, l.lease)
			case <-ctx.Done():
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		stop()
		<-extended
		l.mu.Lock()
		if l.fence[key] == fence {
			delete(l.fence, key)
		}
		l.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), l.lease)
		defer cancel()
		_ = l.engine.Unlock(ctx, key, holder) // if this fails, the lease runs out
	})
}
