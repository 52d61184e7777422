package ganbauth_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func TestLoginConnects(t *testing.T) {
	inBubble(t, setup{bank: ganbtest.Options{Subject: "u-1"}}, func(t *testing.T, a *app) {
		b := a.browser()
		require.False(t, b.connected())
		b.login()
		resp := b.get("/p")
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Equal(t, "served u-1", body(resp))
		require.Empty(t, a.next.last().RefreshToken)
		time.Sleep(2 * time.Hour)
		require.True(t, b.connected())
		require.Equal(t, 1, a.bank.Refreshes())
		require.True(t, b.connected())
		require.Equal(t, 1, a.bank.Refreshes())
		require.Equal(t, http.StatusSeeOther, b.post("/bank/logout").StatusCode)
		require.False(t, b.connected())
		require.Equal(t, []ganbauth.EventType{
			ganbauth.EventLoginStarted, ganbauth.EventLoginSucceeded, ganbauth.EventTokenRefreshed, ganbauth.EventLogout,
		}, a.eventTypes())
	})
}
