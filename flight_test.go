package ganbauth_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// A keyed mutex excludes by key, whatever happens to other keys, and waiting for it ends.
func TestKeyedMutex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m ganbauth.KeyedMutex
		unlock, err := m.Lock(t.Context(), "a")
		require.NoError(t, err)
		other, err := m.Lock(t.Context(), "b")
		require.NoError(t, err)
		other()

		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		_, err = m.Lock(soon, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begun))

		time.AfterFunc(time.Second, unlock)
		again, err := m.Lock(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, time.Since(begun))
		again()
		require.Zero(t, m.Held())
	})
}

// Whoever waits with a request that leaves before its turn at the bank has come gets the
// turn.
func TestFlightThatIsNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		connect(t, bank, store, "first")
		connect(t, bank, store, "u")
		time.Sleep(expired)
		kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.TokenRate = 0.5 })
		_, err := kit.Token(t.Context(), "first")
		require.NoError(t, err)

		begun := time.Now()
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := kit.Token(soon, "u"); ganbauth.StatusCode(err) != 503 {
				t.Error(err)
			}
		})
		synctest.Wait()
		token, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.True(t, token.Valid())
		require.Equal(t, 2*time.Second, time.Since(begun))
		wg.Wait()
		require.Equal(t, 2, bank.Refreshes())
	})
}
