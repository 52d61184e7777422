package lease_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/internal/lease"
)

// engine is one in memory that can be away: what extends a hold fails then, and so does what asks for one, or hangs.
type engine struct {
	mu    sync.Mutex
	held  lease.Hold
	fence int64
	away  time.Time // until then
	hangs bool
}

var errAway = errors.New("connection refused")

func (e *engine) do(mayHang bool, fn func()) error {
	e.mu.Lock()
	wait, hangs := time.Until(e.away), e.hangs && mayHang
	e.mu.Unlock()
	if wait > 0 && !hangs {
		return errAway
	}
	time.Sleep(wait)
	e.mu.Lock()
	defer e.mu.Unlock()
	fn()
	return nil
}

func (e *engine) TryLock(_ context.Context, _, holder string, dead lease.Hold) (fence int64, held lease.Hold, err error) {
	err = e.do(true, func() {
		if e.held != (lease.Hold{}) && e.held != dead {
			held = e.held
			return
		}
		e.fence++
		e.held, fence = lease.Hold{Holder: holder}, e.fence
	})
	return fence, held, err
}

func (e *engine) Extend(_ context.Context, _, holder string) error {
	return e.do(false, func() {
		if e.held.Holder == holder {
			e.held.Beats++
		}
	})
}

func (e *engine) Unlock(_ context.Context, _, holder string) error {
	return e.do(false, func() {
		if e.held.Holder == holder {
			e.held = lease.Hold{}
		}
	})
}

const aLease = 10 * time.Second

// held is a lock that a living process holds.
func held(t *testing.T, e *engine) (unlock func()) {
	unlock, err := lease.New(e, aLease).Lock(t.Context(), "k")
	require.NoError(t, err)
	return unlock
}

// try reports whether another process gets the lock within that time.
func try(t *testing.T, e *engine, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	unlock, err := lease.New(e, aLease).Lock(ctx, "k")
	if err != nil {
		return false
	}
	unlock()
	return true
}

func TestALivingHolderKeepsHisLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{}
		unlock := held(t, e)
		require.False(t, try(t, e, 10*aLease))
		unlock()
		unlock() // once more does no harm
		require.True(t, try(t, e, time.Millisecond))
	})
}

func TestTheLockOfADeadHolderIsFreeAfterALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{held: lease.Hold{Holder: "dead", Beats: 3}}
		require.False(t, try(t, e, aLease-time.Second))
		require.True(t, try(t, e, aLease+time.Second))
	})
}

// After an outage the holder is heard first, however long it was.
func TestALivingHolderKeepsHisLockOverAnOutage(t *testing.T) {
	for name, hangs := range map[string]bool{"it hangs": true, "it is down": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &engine{hangs: hangs}
				unlock := held(t, e)
				defer unlock()
				waits := make(chan bool)
				go func() { waits <- try(t, e, 4*aLease) }()
				time.Sleep(aLease)
				back := time.Now().Add(2*aLease + time.Second) // before the holder tries again
				e.mu.Lock()
				e.away = back
				e.mu.Unlock()
				require.False(t, <-waits)
				time.Sleep(time.Until(back))
				require.False(t, try(t, e, 4*aLease))
			})
		})
	}
}
