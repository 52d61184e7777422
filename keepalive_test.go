package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func TestRefreshExpiring(t *testing.T) {
	prepare := func(t *testing.T, test func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore)) {
		synctest.Test(t, func(t *testing.T) {
			bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true}), ganbauth.NewMemoryStore()
			for u := range 10 { // one a minute
				connect(t, bank, store, fmt.Sprint(u))
				time.Sleep(time.Minute)
			}
			test(t, bank, store)
		})
	}
	t.Run("what is due, one a second, soonest first", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			n, err := kit.RefreshExpiring(t.Context(), 5*time.Minute)
			require.NoError(t, err)
			require.Zero(t, n)
			time.Sleep(50 * time.Minute) // the first ends now
			start := time.Now()
			n, err = kit.RefreshExpiring(t.Context(), 5*time.Minute)
			require.NoError(t, err)
			require.Equal(t, 5, n)
			require.Equal(t, 5, bank.Refreshes())
			require.Equal(t, 5*time.Second, time.Since(start))
			n, err = kit.RefreshExpiring(t.Context(), 4*time.Minute)
			require.NoError(t, err)
			require.Zero(t, n, "begun again, there is nothing to do")
			_, err = kit.Token(t.Context(), "0")
			require.NoError(t, err)
			require.Equal(t, 5, bank.Refreshes())
		})
	})
	t.Run("users who have to connect again hold up nobody", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 4)
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 6, n)
		})
	})
	t.Run("a bank that is away is left alone", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 2)
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 8, n)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
			time.Sleep(45 * time.Minute)
			before := bank.Refreshes()
			n, err = kit.RefreshExpiring(t.Context(), time.Hour)
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Zero(t, n)
			require.Equal(t, 3, bank.Refreshes()-before)
		})
	})
	t.Run("a bank that fails now and then is not away", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			for range 3 {
				bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 2)
				bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{}, 1)
			}
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 4, n)
		})
	})
	t.Run("what is listed needlessly takes no time", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, listingAll{store.(listingStore)}, nil)
			start := time.Now()
			n, err := kit.RefreshExpiring(t.Context(), time.Minute)
			require.NoError(t, err)
			require.Zero(t, n)
			require.Zero(t, time.Since(start))
		})
	})
	t.Run("it stops with its context", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
			defer cancel()
			n, err := kit.RefreshExpiring(ctx, time.Hour)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 3, n)
		})
	})
	t.Run("one process at a time", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			locker := &keyLocker{held: map[string]bool{}}
			var wg sync.WaitGroup
			total := make([]int, 2)
			for i := range total {
				kit := backgroundKit(t, bank, store, locker)
				wg.Go(func() {
					n, err := kit.RefreshExpiring(t.Context(), time.Hour)
					if err != nil {
						t.Error(err)
					}
					total[i] = n
				})
			}
			wg.Wait()
			require.ElementsMatch(t, []int{0, 10}, total)
			locker.err = errors.New("no connection")
			_, err := backgroundKit(t, bank, store, locker).RefreshExpiring(t.Context(), time.Hour)
			require.ErrorIs(t, err, locker.err)
		})
	})
	t.Run("kits that share a store leave each other's tokens alone", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			require.NoError(t, store.Save(t.Context(), "corp/7", bank.Token()))
			kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.Name = "corp" })
			n, err := kit.RefreshExpiring(t.Context(), 2*time.Hour)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	})
	t.Run("a store that cannot list, and one that is away", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			_, err := backgroundKit(t, bank, &brokenStore{TokenStore: store}, nil).RefreshExpiring(t.Context(), time.Hour)
			require.ErrorContains(t, err, "ExpiryLister")
			_, err = backgroundKit(t, bank, unlistable{store}, nil).RefreshExpiring(t.Context(), time.Hour)
			require.ErrorIs(t, err, errUnlistable)
			_, err = (*ganbauth.Kit)(nil).RefreshExpiring(t.Context(), time.Hour)
			require.Error(t, err)
		})
	})
	t.Run("sealed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
			connect(t, bank, ganbauth.Seal(store, key(1)), "u")
			kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.EncryptionKeys = [][]byte{key(1)} })
			n, err := kit.RefreshExpiring(t.Context(), 2*time.Hour)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	})
}

var errUnlistable = errors.New("the store is away")

type unlistable struct{ ganbauth.TokenStore }

func (unlistable) Expiring(context.Context, time.Time) ([]string, error) { return nil, errUnlistable }

type listingStore interface {
	ganbauth.TokenStore
	ganbauth.ExpiryLister
}

// listingAll lists all keys, as an index that is behind may.
type listingAll struct{ listingStore }

func (s listingAll) Expiring(ctx context.Context, _ time.Time) ([]string, error) {
	return s.listingStore.Expiring(ctx, time.Now().Add(24*time.Hour))
}

// keyLocker is a Locker for one process that looks again every 10 ms.
type keyLocker struct {
	mu   sync.Mutex
	held map[string]bool
	err  error
}

// fail has Lock return err from now on.
func (l *keyLocker) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *keyLocker) Lock(ctx context.Context, key string) (func(), error) {
	for {
		l.mu.Lock()
		free, err := !l.held[key], l.err
		if free && err == nil {
			l.held[key] = true
		}
		l.mu.Unlock()
		switch {
		case err != nil:
			time.Sleep(10 * time.Millisecond) // a caller that tries without a pause gets somewhere
			return nil, err
		case free:
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, key)
			}, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
