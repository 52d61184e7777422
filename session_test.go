package ganbauth_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
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
	for n := 1; ; n++ {
		a, arm, met := newForgetfulApp(t, n, fault)
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		arm()
		resp := b.get(callback)
		failed := met()
		if resp.StatusCode != 303 {
			require.True(t, failed, "call %d", n)
			require.GreaterOrEqual(t, resp.StatusCode, 500, "call %d", n)
			require.NotContains(t, body(resp), "database")
			require.Equal(t, 303, b.get(callback).StatusCode, "call %d", n)
		}
		require.True(t, b.connected(), "call %d", n)
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint), "call %d", n)
		if !failed {
			require.Greater(t, n, 2)
			return
		}
	}
}

// newForgetfulApp makes an app of the user "u" with the connection "c", whose Key and
// Connection fail at their n-th call from arm on. After met, which says whether there was
// one, they are well.
func newForgetfulApp(t *testing.T, n int, fault error) (a *app, arm func(), met func() bool) {
	t.Helper()
	var calls atomic.Int32
	var armed atomic.Bool
	fails := func() error {
		if armed.Load() && int(calls.Add(1)) == n {
			return fault
		}
		return nil
	}
	a = newApp(t, setup{options: ganbauth.Options{
		Store:      ganbauth.NewMemoryStore(),
		Key:        func(*http.Request) (string, error) { return "u", fails() },
		Connection: func(*http.Request) (string, error) { return "c", fails() },
	}})
	return a, func() { armed.Store(true) }, func() bool {
		armed.Store(false)
		return int(calls.Load()) >= n
	}
}

// A session that connects the same account again keeps its token, also where it may have
// several connections under one handle.
func TestSessionConnectsAgain(t *testing.T) {
	for name, connection := range map[string]func(*http.Request) (string, error){
		"one connection":         nil,
		"the unnamed of several": keyIs(""),
		"a named one":            keyIs("c"),
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
			token := storeSession(t, a.sessions, "cart", "full")
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
		require.False(t, a.sessions.Exists(ctx, "ganbauth:bank"), "%s: no connection has a name", name)
		if before != "" {
			_, found, err := a.sessions.Store.Find(before)
			require.NoError(t, err)
			require.False(t, found, "%s: the session before is worthless", name)
		}

		resp := b.post("/bank/logout")
		require.Equal(t, 303, resp.StatusCode)
		for _, c := range resp.Cookies() {
			if c.Name == "session" {
				require.Equal(t, want == "", c.Value == "", name)
			}
		}
		require.Equal(t, want, cart(), name)
		require.Equal(t, want == "", b.cookie("session") == "", name)
		require.NotEqual(t, connected, b.cookie("session"), name)
		_, found, err := a.sessions.Store.Find(connected)
		require.NoError(t, err)
		require.False(t, found, name)
	}
}

// A session connects and leaves whatever its engine needs of the request's context, under
// whichever name it is stored, and also where the browser has an empty cookie.
func TestSessionOfEachEngine(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*scs.SessionManager)
		user   bool
		cookie string
	}{
		"in memory":                     {change: func(*scs.SessionManager) {}, user: true},
		"hashed tokens":                 {change: func(m *scs.SessionManager) { m.HashTokenInStore = true }, user: true},
		"a value of the context":        {change: func(m *scs.SessionManager) { m.Store = tenantEngine{m.Store.(*memstore.MemStore)} }, user: true},
		"an empty cookie":               {change: func(*scs.SessionManager) {}, cookie: "session="},
		"a cookie of no session at all": {change: func(*scs.SessionManager) {}, cookie: "session=x"},
	} {
		for _, bare := range []bool{false, true} {
			a := newApp(t, setup{bare: bare, sessions: c.change})
			inner := a.handler
			a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				inner.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), tenant{}, "t")))
			})
			b := a.browser()
			if c.user {
				ctx := context.WithValue(t.Context(), tenant{}, "t")
				session, err := a.sessions.Load(ctx, "")
				require.NoError(t, err)
				a.sessions.Put(session, "cart", "full")
				token, _, err := a.sessions.Commit(session)
				require.NoError(t, err)
				b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{{Name: "session", Value: token, Secure: true}})
			}
			r := mustRequest("GET", b.callbackURL("/bank/login"))
			r.Header = with(navigate, "Cookie", strings.Trim(b.cookieHeader()+"; "+c.cookie, "; "))
			resp, err := b.client.Transport.RoundTrip(r)
			require.NoError(t, err)
			require.Equal(t, 303, resp.StatusCode, "%s, bare %t", name, bare)
			b.client.Jar.SetCookies(mustParse(appURL), resp.Cookies())
			require.True(t, b.connected(), "%s, bare %t", name, bare)
			require.Equal(t, 303, b.post("/bank/logout").StatusCode, "%s, bare %t", name, bare)
			require.False(t, b.connected(), "%s, bare %t", name, bare)
		}
	}
}

// tenantEngine is an engine that reads the context of each call.
type tenantEngine struct{ *memstore.MemStore }

type tenant struct{}

func of(ctx context.Context, name string) string { return ctx.Value(tenant{}).(string) + name }

func (tenantEngine) Find(string) ([]byte, bool, error)      { panic("use FindCtx") }
func (tenantEngine) Commit(string, []byte, time.Time) error { panic("use CommitCtx") }
func (tenantEngine) Delete(string) error                    { panic("use DeleteCtx") }

func (e tenantEngine) FindCtx(ctx context.Context, name string) ([]byte, bool, error) {
	return e.MemStore.Find(of(ctx, name))
}

func (e tenantEngine) CommitCtx(ctx context.Context, name string, b []byte, expiry time.Time) error {
	return e.MemStore.Commit(of(ctx, name), b, expiry)
}

func (e tenantEngine) DeleteCtx(ctx context.Context, name string) error {
	return e.MemStore.Delete(of(ctx, name))
}

// A store key has at most 1,024 bytes, with the kit's name, and two owners never share one.
func TestI12StoreKeys(t *testing.T) {
	memory := ganbauth.NewMemoryStore()
	a := newApp(t, setup{options: ganbauth.Options{Store: memory, Key: keyIs("u")}})
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

// sessionUser is a user with a session.
type sessionUser struct {
	ganbauth.Owners
	sessions *scs.SessionManager
	engine   *faultyEngine
	cookie   *http.Cookie
}

// newSessionUser connects the user, under the handle ";A", or connects nobody if that is empty.
func newSessionUser(t *testing.T, handle string, keyOf, connectionOf func(*http.Request) (string, error)) *sessionUser {
	engine := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
	sessions := scs.New()
	sessions.Store = engine
	values := []string{"cart", "full"}
	if handle != "" {
		values = append(values, "ganbauth.bank", "bank/"+handle)
	}
	cookie := &http.Cookie{Name: "session", Value: storeSession(t, sessions, values...)}
	return &sessionUser{ganbauth.NewOwners(sessions, keyOf, connectionOf), sessions, engine, cookie}
}

// storeSession stores a new session with names and values in turn, and returns its token.
func storeSession(t *testing.T, sessions *scs.SessionManager, pairs ...string) (token string) {
	t.Helper()
	ctx, err := sessions.Load(t.Context(), "")
	require.NoError(t, err)
	for pair := range slices.Chunk(pairs, 2) {
		sessions.Put(ctx, pair[0], pair[1])
	}
	token, _, err = sessions.Commit(ctx)
	require.NoError(t, err)
	return token
}

func (u *sessionUser) request() *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.AddCookie(u.cookie)
	return r
}

// Where the sessions fail, nothing is known: each question that needs them has their error
// for an answer.
func TestSessionsFail(t *testing.T) {
	text := func(s string, err error) (any, error) { return s, err }
	key := keyIs("u")
	for name, c := range map[string]struct {
		handle              string
		keyOf, connectionOf func(*http.Request) (string, error)
		calls               int // of the engine
		ask                 func(u *sessionUser) (any, error)
	}{
		"whose":                        {";A", nil, nil, 1, func(u *sessionUser) (any, error) { return text(u.StoreKey(u.request())) }},
		"whose, by Key":                {"", key, nil, 1, func(u *sessionUser) (any, error) { return text(u.StoreKey(u.request())) }},
		"whose, by Key and Connection": {"", key, key, 2, func(u *sessionUser) (any, error) { return text(u.StoreKey(u.request())) }},
		"which connection":             {";A", nil, key, 1, func(u *sessionUser) (any, error) { return text(u.Connection(u.request())) }},
		"whose a login will be": {";A", nil, nil, 1, func(u *sessionUser) (any, error) {
			storeKey, isNew, err := u.LoginKey(u.request(), "")
			return isNew || storeKey != "", err
		}},
		"who begins":         {";A", nil, nil, 1, func(u *sessionUser) (any, error) { return text(u.Beginner(u.request())) }},
		"who begins, by Key": {"", key, nil, 1, func(u *sessionUser) (any, error) { return text(u.Beginner(u.request())) }},
		"who has begun":      {";A", nil, nil, 2, func(u *sessionUser) (any, error) { return u.Began(u.request(), "another") }},
		"connect": {";A", nil, nil, 4, func(u *sessionUser) (any, error) {
			_, err := u.Attach(httptest.NewRecorder(), u.request(), ";B", "")
			return false, err
		}},
		"connect, with several connections": {";A", nil, key, 4, func(u *sessionUser) (any, error) {
			return text(u.Attach(httptest.NewRecorder(), u.request(), ";A", ""))
		}},
		"disconnect": {";A", nil, nil, 4, func(u *sessionUser) (any, error) {
			return false, u.Detach(httptest.NewRecorder(), u.request(), "")
		}},
		"disconnect, with nothing else in the session": {";A", nil, nil, 3, func(u *sessionUser) (any, error) {
			r, err := u.WithSession(u.request())
			if err != nil {
				return false, err
			}
			u.sessions.Remove(r.Context(), "cart")
			return false, u.Detach(httptest.NewRecorder(), r, "")
		}},
	} {
		for n := 1; n <= c.calls+1; n++ {
			u := newSessionUser(t, c.handle, c.keyOf, c.connectionOf)
			met := u.engine.failNext(n, false)
			got, err := c.ask(u)
			call := met()
			require.Equal(t, n <= c.calls, call != "", "%s: call %d", name, n)
			if call != "Find" { // the others are repeated
				require.NoError(t, err, name)
				continue
			}
			require.ErrorIs(t, err, errEngine, "%s: %s is call %d", name, call, n)
			require.ErrorIs(t, err, ganbauth.ErrUnavailable, "%s: %s", name, call)
			require.Zero(t, got, "%s: %s", name, call)
		}
	}
}

// A session that fails is asked again, unless its request has ended.
func TestSessionFailsWhenTheRequestHasEnded(t *testing.T) {
	gone, leave := context.WithCancel(t.Context())
	leave()
	for n := 1; ; n++ {
		u := newSessionUser(t, ";A", nil, nil)
		met := u.engine.failNext(n, false)
		err := u.Detach(httptest.NewRecorder(), u.request().WithContext(gone), "")
		if met() == "" {
			require.NoError(t, err)
			require.Greater(t, n, 3)
			break
		}
		require.ErrorIs(t, err, errEngine, "call %d", n)
	}
}

// What the application's functions say of a request.
func TestKeyAndConnectionAnswer(t *testing.T) {
	fault := errors.New("the users' database is away")
	says := func(s string, err error) func(*http.Request) (string, error) {
		return func(*http.Request) (string, error) { return s, err }
	}
	u := newSessionUser(t, "", says("u", nil), says("c", fault))
	_, err := u.StoreKey(u.request())
	require.ErrorIs(t, err, fault)
	require.ErrorContains(t, err, "Connection")
	connection, err := u.Connection(u.request())
	require.ErrorIs(t, err, fault)
	require.Empty(t, connection)

	for length, ok := range map[int]bool{255: true, 256: false} {
		u = newSessionUser(t, "", says("u", nil), says(strings.Repeat("c", length), nil))
		connection, err = u.Connection(u.request())
		require.Equal(t, ok, err == nil)
		require.Equal(t, ok, connection != "")
	}
	u = newSessionUser(t, "", says("u", fault), nil)
	storeKey, err := u.StoreKey(u.request())
	require.ErrorIs(t, err, fault)
	require.ErrorContains(t, err, "Key")
	require.Empty(t, storeKey)
	began, err := u.Began(u.request(), "another")
	require.ErrorIs(t, err, fault)
	require.False(t, began)
	for _, nobody := range []func(*http.Request) (string, error){says("", nil), says("", ganbauth.ErrLoginRequired), says("u", ganbauth.ErrLoginRequired)} {
		u = newSessionUser(t, "", nobody, nil)
		_, err = u.StoreKey(u.request())
		require.ErrorIs(t, err, ganbauth.ErrNoUser)
		began, err = u.Began(u.request(), "another")
		require.NoError(t, err)
		require.False(t, began)
	}
}

// A session is read once, whatever kind of context carries it, and not at all without a
// cookie.
func TestSessionIsReadOnce(t *testing.T) {
	u := newSessionUser(t, ";A", nil, nil)
	u.engine.said()
	storeKey, err := u.StoreKey(httptest.NewRequest("GET", "/", nil))
	require.NoError(t, err)
	require.Empty(t, storeKey)
	require.Empty(t, u.engine.said())

	r := u.request()
	storeKey, err = u.StoreKey(r)
	require.NoError(t, err)
	require.Equal(t, "bank/;A", storeKey)
	require.Equal(t, []string{"Find"}, u.engine.said())

	ctx, err := u.sessions.Load(r.Context(), u.cookie.Value)
	require.NoError(t, err)
	u.engine.said()
	for _, ctx := range []context.Context{ctx, odd{ctx, nil}, &odd{ctx, nil}} {
		storeKey, err = u.StoreKey(r.WithContext(ctx))
		require.NoError(t, err)
		require.Equal(t, "bank/;A", storeKey)
		require.Empty(t, u.engine.said())
		same, err := u.WithSession(r.WithContext(ctx))
		require.NoError(t, err)
		require.Equal(t, ctx, same.Context())
	}
	u.sessions.Put(ctx, "ganbauth.bank", "corp/;A")
	storeKey, err = u.StoreKey(r.WithContext(ctx))
	require.NoError(t, err)
	require.Empty(t, storeKey, "what another kit has written is nobody's")

	r, err = u.WithSession(u.request())
	require.NoError(t, err)
	require.Equal(t, "full", u.sessions.GetString(r.Context(), "cart"))
}

// Who has begun a login: the session of now, or the one that a login in another tab has
// renewed since. By Key it is the user, whatever the session says.
func TestWhoHasBegun(t *testing.T) {
	ask := func(keyOf func(*http.Request) (string, error), beginner string) bool {
		u := newSessionUser(t, ";A ancestor", keyOf, nil)
		if beginner == "now" {
			var err error
			beginner, err = u.Beginner(u.request())
			require.NoError(t, err)
			require.NotEmpty(t, beginner)
		}
		began, err := u.Began(u.request(), beginner)
		require.NoError(t, err)
		return began
	}
	key := keyIs("u")
	for beginner, want := range map[string][2]bool{"now": {true, true}, "ancestor": {true, false}, "another": {false, false}} {
		require.Equal(t, want[0], ask(nil, beginner), beginner)
		require.Equal(t, want[1], ask(key, beginner), "%s, by Key", beginner)
	}
	u := newSessionUser(t, ";A", nil, nil)
	u.engine.failNext(1, false)
	began, err := u.Began(u.request(), "")
	require.NoError(t, err, "anybody in this browser")
	require.True(t, began)
}

// A session remembers eight renewals, in which other tabs may have begun a login.
func TestAncestorsOfASession(t *testing.T) {
	u := newSessionUser(t, ";A 1 2 3 4 5 6 7 8 9", nil, nil)
	ctx, err := u.sessions.Load(t.Context(), u.cookie.Value)
	require.NoError(t, err)
	_, err = u.Attach(httptest.NewRecorder(), u.request().WithContext(ctx), ";B", "0")
	require.NoError(t, err)
	handle := strings.Fields(u.sessions.GetString(ctx, "ganbauth.bank"))
	require.Len(t, handle, 1+8)
	require.Equal(t, "bank/;B", handle[0])
	require.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6"}, handle[2:])
}

// A session knows its connections by name.
func TestNamesOfASession(t *testing.T) {
	a := newApp(t, setup{options: ganbauth.Options{Connection: byClient}})
	b := a.browser()
	for _, client := range []string{"a", "b%20c"} {
		b.loginAt("/bank/login?client=" + client)
	}
	ctx, err := a.sessions.Load(t.Context(), b.cookie("session"))
	require.NoError(t, err)
	require.Equal(t, "b+c a", a.sessions.GetString(ctx, "ganbauth:bank"))
}

// A login gives the session its handle, unless another tab's login has renewed the session
// since the request came: the connections of that one are worth more.
func TestAttachMeetsAnotherTab(t *testing.T) {
	key := keyIs("u")
	for name, c := range map[string]struct {
		handle              string
		keyOf, connectionOf func(*http.Request) (string, error)
		stays, noCookie     bool // the session that the browser sent
		fails               int  // a call of the engine
		without             bool // a session when the login was begun
		renewed             bool
	}{
		"several connections, in the session":    {connectionOf: key, renewed: true},
		"there was no session to renew":          {connectionOf: key, without: true, renewed: true},
		"it is still there":                      {connectionOf: key, stays: true},
		"there is one connection":                {renewed: true},
		"it has a handle":                        {connectionOf: key, handle: ";A", renewed: true},
		"it has a handle, and stays":             {connectionOf: key, handle: ";A", stays: true},
		"by Key":                                 {connectionOf: key, keyOf: key, renewed: true},
		"by Key, and it stays":                   {keyOf: key, stays: true},
		"nobody knows, as the engine has failed": {connectionOf: key, fails: 1},
		"the request has no cookie":              {connectionOf: key, noCookie: true},
	} {
		u := newSessionUser(t, c.handle, c.keyOf, c.connectionOf)
		ctx, err := u.sessions.Load(t.Context(), u.cookie.Value)
		require.NoError(t, err)
		r := u.request()
		if c.noCookie {
			r.Header.Del("Cookie")
		}
		if !c.stays {
			require.NoError(t, u.engine.MemStore.Delete(u.cookie.Value))
		}
		u.engine.failNext(c.fails, false)
		beginner := "beginner"
		if c.without {
			beginner = ""
		}
		former, err := u.Attach(httptest.NewRecorder(), r.WithContext(ctx), ";B", beginner)
		require.Equal(t, c.renewed, errors.Is(err, ganbauth.ErrRenewedSince), name)
		require.Equal(t, c.handle != "" && c.stays, former != "", name)
		if c.renewed || c.fails > 0 {
			require.ErrorIs(t, err, ganbauth.ErrUnavailable, name)
			continue
		}
		require.NoError(t, err, name)
		want := "bank/;B"
		if c.keyOf != nil {
			want = ""
		}
		held, _, _ := strings.Cut(u.sessions.GetString(ctx, "ganbauth.bank"), " ")
		require.Equal(t, want, held, name)
		require.Equal(t, "full", u.sessions.GetString(ctx, "cart"), name)
	}
}

// The look for another tab's login ends with the request's deadline.
func TestAttachIsBounded(t *testing.T) {
	u := newSessionUser(t, "", nil, keyIs(""))
	session, err := u.sessions.Load(t.Context(), u.cookie.Value)
	require.NoError(t, err)
	var deadlines []any
	u.sessions.Store = notingEngine{faultyContext{u.engine}, &deadlines}
	ask := func(ctx context.Context) (deadline any) {
		deadlines = nil
		_, err = u.Attach(httptest.NewRecorder(), u.request().WithContext(ctx), ";B", "beginner")
		require.NoError(t, err)
		require.NotEmpty(t, deadlines)
		return deadlines[0]
	}
	bounded, cancel := context.WithTimeout(session, time.Hour)
	defer cancel()
	deadline, _ := bounded.Deadline()
	require.Equal(t, deadline, ask(bounded))
	u = newSessionUser(t, "", nil, keyIs(""))
	session, err = u.sessions.Load(t.Context(), u.cookie.Value)
	require.NoError(t, err)
	u.sessions.Store = notingEngine{faultyContext{u.engine}, &deadlines}
	require.Nil(t, ask(session))
}

// notingEngine notes until when it may look for a session.
type notingEngine struct {
	faultyContext
	deadlines *[]any // a time.Time, or nil
}

func (e notingEngine) FindCtx(ctx context.Context, name string) ([]byte, bool, error) {
	if deadline, ok := ctx.Deadline(); ok {
		*e.deadlines = append(*e.deadlines, deadline)
	} else {
		*e.deadlines = append(*e.deadlines, nil)
	}
	return e.faultyContext.FindCtx(ctx, name)
}

// A connection whose store key would be too long is refused.
func TestLoginKeyIsTooLong(t *testing.T) {
	for _, several := range []func(*http.Request) (string, error){nil, keyIs("")} {
		u := newSessionUser(t, ";A", nil, several)
		storeKey, _, err := u.LoginKey(u.request(), strings.Repeat("c", 1024))
		require.ErrorContains(t, err, "1024")
		require.Empty(t, storeKey)
	}
}

// odd is a context that cannot be compared.
type odd struct {
	context.Context
	_ []int
}

// With EncryptionKeys and without a Store, the tokens are sealed on the sessions' engine.
func TestTokensOnTheSessionsEngineAreSealed(t *testing.T) {
	for sealed, keys := range map[bool][][]byte{true: {key(1)}, false: nil} {
		a := newApp(t, setup{options: ganbauth.Options{EncryptionKeys: keys}})
		b := a.browser()
		b.login()
		var token string
		a.next.serve = func(_ http.ResponseWriter, r *http.Request) {
			found, _ := ganbauth.TokenFromContext(r.Context())
			token = found.AccessToken
		}
		require.Equal(t, 200, b.get("/p").StatusCode)
		all, err := a.sessions.Store.(scs.IterableStore).All()
		require.NoError(t, err)
		seen := false
		for _, data := range all {
			seen = seen || strings.Contains(string(data), token)
		}
		require.Equal(t, !sealed, seen)
	}
}
