// Package lease is what the stores' locks have in common: holds that are extended while their process lives, that end
// when others have seen no extension for a lease, and the fencing numbers by which a holder that comes too late is
// known.
//
// A lease does not end by a clock at the engine: after an outage of the engine, whoever holds a new token that he could
// not save would have lost his lock to somebody who refreshes with the old one, which ends the connection. Instead, who
// waits looks on for a lease while the engine answers; a living holder is seen to extend his hold in that time.
package lease

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"
)

// Hold is who holds a lock, a random name, and how often he has extended it.
type Hold struct {
	Holder string
	Beats  int64
}

// Engine is what a store does for a lock.
type Engine interface {
	// TryLock takes the lock on key if nobody holds it, or if what holds it is still dead, and returns the next number
	// of key. If somebody holds it, fence is 0.
	TryLock(ctx context.Context, key, holder string, dead Hold) (fence int64, held Hold, err error)
	// Extend and Unlock do nothing if holder does not hold the lock any more.
	Extend(ctx context.Context, key, holder string) error
	Unlock(ctx context.Context, key, holder string) error
}

// Locks are the locks that this process takes at an engine.
type Locks struct {
	engine Engine
	lease  time.Duration

	mu    sync.Mutex
	fence map[string]int64
}

const (
	minLease     = time.Second
	defaultLease = 10 * time.Second
	maxLease     = 20 * time.Second // ganbauth waits for a lock for 30
)

// New returns Locks with leases of one to twenty seconds, ten by default.
func New(engine Engine, lease time.Duration) *Locks {
	if lease == 0 {
		lease = defaultLease
	}
	return &Locks{engine: engine, lease: min(max(lease, minLease), maxLease), fence: map[string]int64{}}
}

// Fence returns the number of the lock on key that this process holds, or held until it was taken for dead,
// and 0 without one.
func (l *Locks) Fence(key string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fence[key]
}

// Lock waits for the lock on key, or for ctx.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	var (
		holder   = rand.Text()
		dead     Hold
		seen     Hold
		since    time.Time // when seen was seen first
		answered time.Time
	)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		fence, held, err := l.engine.TryLock(ctx, key, holder, dead)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if fence > 0 {
			return l.hold(key, holder, fence), nil
		}
		now := time.Now()
		// While the engine, or this process, stood still, so may have the holder.
		stoodStill := now.Sub(answered) > l.interval()
		answered = now
		if held != seen || stoodStill {
			seen, since = held, now
		} else if now.Sub(since) > l.lease {
			dead = seen
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("lock: %w", ctx.Err())
		}
	}
}

// interval is how often a hold is extended.
func (l *Locks) interval() time.Duration { return l.lease / 4 }

// hold extends the hold until unlock.
func (l *Locks) hold(key, holder string, fence int64) (unlock func()) {
	l.mu.Lock()
	l.fence[key] = fence
	l.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	extended := make(chan struct{})
	go func() {
		defer close(extended)
		for tick := time.Tick(l.interval()); ; {
			select {
			case <-tick:
				// A failure is not the end: the next tick may find the engine again, and a lost lock is what the numbers
				// are for.
				_ = l.engine.Extend(ctx, key, holder)
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
		_ = l.engine.Unlock(ctx, key, holder) // if this fails, it is not extended any more
	})
}
