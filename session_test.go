package ganbauth_test

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/alexedwards/scs/v2/memstore"
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

// A session that connects the same account again keeps its token, also where it may have
// several connections under one handle.
func TestSessionConnectsAgain(t *testing.T) {
	for name, connection := range map[string]func(*http.Request) (string, error){
		"one connection":         nil,
		"the unnamed of several": func(*http.Request) (string, error) { return "", nil },
		"a named one":            func(*http.Request) (string, error) { return "c", nil },
	} {
		for _, bare := range []bool{false, true} {
			a := newApp(t, setup{bare: bare, options: ganbauth.Options{Connection: connection}})
			b := a.browser()
			for range 3 {
				b.login()
				require.True(t, b.connected(), "%s, bare %t", name, bare)
			}
			_, tokens := storedIn(t, a.sessions.Store.(*memstore.MemStore))
			require.Equal(t, 1, tokens, "%s, bare %t: those before are deleted", name, bare)
		}
	}
}

// Without LoadAndSave the kit writes the session and its cookie itself: it renews both at a
// login, ends a session that holds nothing else at a logout, and keeps the rest of another.
func TestSessionThatTheKitWrites(t *testing.T) {
	for _, name := range []string{"nothing else in it", "something else in it"} {
		a := newApp(t, setup{bare: true})
		b := a.browser()
		if name == "something else in it" {
			ctx, err := a.sessions.Load(t.Context(), "")
			require.NoError(t, err)
			a.sessions.Put(ctx, "cart", "full")
			token, _, err := a.sessions.Commit(ctx)
			require.NoError(t, err)
			b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{{Name: "session", Value: token, Secure: true}})
		}
		cart := func() string {
			ctx, err := a.sessions.Load(t.Context(), b.cookie("session"))
			require.NoError(t, err)
			return a.sessions.GetString(ctx, "cart")
		}
		before, want := b.cookie("session"), cart()
		b.login()
		connected := b.cookie("session")
		require.NotEmpty(t, connected, name)
		require.NotEqual(t, before, connected, name)
		require.Equal(t, want, cart(), name)
		ctx, err := a.sessions.Load(t.Context(), connected)
		require.NoError(t, err)
		require.True(t, a.sessions.Exists(ctx, "ganbauth.bank"), "%s: the kit's value is named after it", name)
		if before != "" {
			_, found, err := a.sessions.Store.Find(before)
			require.NoError(t, err)
			require.False(t, found, "%s: the session before is worthless", name)
		}

		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.Equal(t, want, cart(), name)
		require.Equal(t, want == "", b.cookie("session") == "", name)
		require.NotEqual(t, connected, b.cookie("session"), name)
		_, found, err := a.sessions.Store.Find(connected)
		require.NoError(t, err)
		require.False(t, found, name)
	}
}

// A store key has at most 1,024 bytes, with the kit's name, and two owners never share one.
func TestI12StoreKeys(t *testing.T) {
	memory := ganbauth.NewMemoryStore()
	a := newApp(t, setup{options: ganbauth.Options{Store: memory, Key: func(*http.Request) (string, error) { return "u", nil }}})
	token := a.bank.Token()
	for _, c := range []struct {
		key        string
		connection []string
		want       string // "": refused
	}{
		{"u", nil, "bank/u"},
		{"u", []string{""}, "bank/u"},
		{"u", []string{"c"}, "bank/u/c"},
		{"u/c", nil, "bank/u%2Fc"},
		{"u%2Fc", nil, "bank/u%252Fc"},
		{"u", []string{"a/b"}, "bank/u/a%2Fb"},
		{strings.Repeat("k", 1019), nil, "bank/" + strings.Repeat("k", 1019)},
		{strings.Repeat("k", 1020), nil, ""},
		{strings.Repeat("k", 1017), []string{"c"}, "bank/" + strings.Repeat("k", 1017) + "/c"},
		{strings.Repeat("k", 1018), []string{"c"}, ""},
		{"", nil, ""},
		{"u", []string{"c", "d"}, ""},
	} {
		err := a.kit.SetToken(t.Context(), c.key, token, c.connection...)
		require.Equal(t, c.want != "", err == nil, "%v: %v", c, err)
		if err == nil {
			_, err = memory.Load(t.Context(), c.want)
			require.NoError(t, err, c.want)
			require.NoError(t, a.kit.Disconnect(t.Context(), c.key, c.connection...))
			_, err = memory.Load(t.Context(), c.want)
			require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
		}
	}
}
