package ganbauth_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
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
