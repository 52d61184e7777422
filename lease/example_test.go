package lease_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/lease"
)

// locks is an engine in memory. A mutex makes each of its statements one step.
type locks struct {
	mu   sync.Mutex
	held map[string]lease.Hold
}

func (e *locks) TryLock(_ context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if held, ok := e.held[key]; !ok || held.Holder == holder || held == dead {
		e.held[key] = lease.Hold{Holder: holder}
	}
	return e.held[key], nil
}

func (e *locks) Extend(_ context.Context, key, holder string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if held := e.held[key]; held.Holder == holder {
		held.Beats++
		e.held[key] = held
	}
	return nil
}

func (e *locks) Unlock(_ context.Context, key, holder string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held[key].Holder == holder {
		delete(e.held, key)
	}
	return nil
}

// An engine of one's own, here a map.
func ExampleNew() {
	locker := lease.New(&locks{held: map[string]lease.Hold{}}, 0)

	unlock, err := locker.Lock(context.Background(), "bank/alice")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = locker.Lock(ctx, "bank/alice")
	fmt.Println(err)

	unlock()
	unlock, err = locker.Lock(context.Background(), "bank/alice")
	fmt.Println(err)
	unlock()

	_ = ganbauth.Options{Locker: locker}
	// Output:
	// lease: somebody else holds the lock: context deadline exceeded
	// <nil>
}
