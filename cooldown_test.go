package ganbauth_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// cooling runs a test on users whose tokens have expired.
func cooling(t *testing.T, test func(t *testing.T, bank *ganbtest.Server, kit *ganbauth.Kit)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		connect(t, bank, store, "u")
		connect(t, bank, store, "v")
		time.Sleep(61 * time.Minute)
		test(t, bank, backgroundKit(t, bank, store, nil))
	})
}

// A key cools down for exactly as long as its error says, and says why. Other keys are not
// concerned, nor is it when they are well again.
func TestCoolDownOfOneKey(t *testing.T) {
	cooling(t, func(t *testing.T, bank *ganbtest.Server, kit *ganbauth.Kit) {
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 2)
		for _, key := range []string{"u", "v"} {
			_, err := kit.Token(t.Context(), key)
			require.Error(t, err)
		}
		first := time.Now()
		require.Equal(t, first, ganbauth.FailingSince(kit, "bank/u"))
		require.Zero(t, ganbauth.FailingSince(kit, "bank/w"))
		_, err := kit.Token(t.Context(), "u")
		require.ErrorAs(t, err, new(*ganbauth.TokenError), "the cause")
		require.Equal(t, "status_5xx", class(err))
		wait := ganbauth.RetryAfter(err)
		require.Greater(t, wait, time.Second-time.Millisecond)
		require.Less(t, wait, 1250*time.Millisecond)
		require.Equal(t, 2, bank.Refreshes())

		require.NoError(t, kit.SetToken(t.Context(), "v", bank.Token()), "which ends its cool-down")
		time.Sleep(wait - time.Nanosecond)
		_, err = kit.Token(t.Context(), "u")
		require.Error(t, err)
		require.Equal(t, 2, bank.Refreshes())
		time.Sleep(time.Nanosecond)
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		_, err = kit.Token(t.Context(), "u")
		require.Error(t, err)
		require.Equal(t, first, ganbauth.FailingSince(kit, "bank/u"), "of the row")
		time.Sleep(ganbauth.RetryAfter(err))
		_, err = kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Equal(t, 4, bank.Refreshes())
		require.Zero(t, ganbauth.FailingSince(kit, "bank/u"))
		time.Sleep(time.Hour)
	})
}

func class(err error) string {
	class, _, _ := ganbauth.ErrorKind(err)
	return class
}

// A6: a gateway's refusal ends a connection when the next try hears it again, within a
// day and of the same refresh token, and not before.
func TestA6GatewayRefusesTwice(t *testing.T) {
	refusal := ganbtest.Fault{Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`}
	for name, test := range map[string]struct {
		between time.Duration
		change  func(t *testing.T, bank *ganbtest.Server, kit *ganbauth.Kit)
		lost    bool
	}{
		"after a minute":        {time.Minute, nil, true},
		"after 23 hours":        {23 * time.Hour, nil, true},
		"after more than a day": {25 * time.Hour, nil, false},
		"of another token": {time.Minute, func(t *testing.T, bank *ganbtest.Server, kit *ganbauth.Kit) {
			_, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			time.Sleep(61 * time.Minute)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cooling(t, func(t *testing.T, bank *ganbtest.Server, kit *ganbauth.Kit) {
				bank.Fail(ganbtest.TokenEndpoint, refusal, 1)
				_, err := kit.Token(t.Context(), "u")
				require.ErrorIs(t, err, ganbauth.ErrUnavailable)
				require.NotErrorIs(t, err, ganbauth.ErrLoginRequired)
				time.Sleep(test.between)
				if test.change != nil {
					test.change(t, bank, kit)
				}
				bank.Fail(ganbtest.TokenEndpoint, refusal, 1)
				_, err = kit.Token(t.Context(), "u")
				if test.lost {
					require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
					require.Zero(t, ganbauth.KeysHeld(kit), "nothing cools down any more")
				} else {
					require.ErrorIs(t, err, ganbauth.ErrUnavailable)
				}
				time.Sleep(time.Minute)
				_, err = kit.Token(t.Context(), "u")
				require.Equal(t, test.lost, err != nil)
				time.Sleep(25 * time.Hour)
				require.Zero(t, ganbauth.KeysHeld(kit))
			})
		})
	}
}
