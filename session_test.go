package ganbauth_test

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// The application's Key and Connection fail at each of their calls during a callback:
// that is an answer of the 500s, and the same callback connects afterwards, with the code
// sent once.
func TestKeyFailsAtEachCallOfACallback(t *testing.T) {
	fault := errors.New("the users' database is away")
	for n := int32(1); ; n++ {
		var calls atomic.Int32
		var armed atomic.Bool
		fails := func() error {
			if armed.Load() && calls.Add(1) == n {
				return fault
			}
			return nil
		}
		s := setup{options: ganbauth.Options{
			Store:      ganbauth.NewMemoryStore(),
			Key:        func(*http.Request) (string, error) { return "u", fails() },
			Connection: func(*http.Request) (string, error) { return "c", fails() },
		}}
		a := newApp(t, s)
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		armed.Store(true)
		resp := b.get(callback)
		met := calls.Load() >= n
		armed.Store(false)
		if resp.StatusCode != 303 {
			require.True(t, met, "call %d", n)
			require.GreaterOrEqual(t, resp.StatusCode, 500, "call %d", n)
			require.NotContains(t, body(resp), "database")
			require.Equal(t, 303, b.get(callback).StatusCode, "call %d", n)
		}
		require.True(t, b.connected(), "call %d", n)
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint), "call %d", n)
		if !met {
			require.Greater(t, n, int32(2))
			return
		}
	}
}
