package ganbauth_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// site is an application's own login and logout, with a page that says who is logged in.
func site(a *app) {
	a.mux.HandleFunc("/app/login", func(_ http.ResponseWriter, r *http.Request) {
		_ = a.sessions.RenewToken(r.Context())
		a.sessions.Put(r.Context(), "user", r.URL.Query().Get("u"))
	})
	a.mux.HandleFunc("/app/logout", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("forget") {
			if err := a.kit.Forget(w, r); err != nil {
				a.t.Error(err)
			}
		}
		_ = a.sessions.Destroy(r.Context())
	})
	a.mux.HandleFunc("/app/who", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, a.sessions.GetString(r.Context(), "user"))
	})
}

// leave requests a callback, at a bank that takes two seconds, and leaves after one. It
// returns the answer that nobody reads.
func (b *browser) leave(callback string) *http.Response {
	b.t.Helper()
	r := mustRequest("GET", callback)
	r.Header = with(navigate, "Cookie", b.cookieHeader())
	ctx, leave := context.WithCancel(b.t.Context())
	b.app.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(2*time.Second), 1)
	time.AfterFunc(time.Second, leave)
	resp, err := b.client.Transport.RoundTrip(r.WithContext(ctx))
	require.NoError(b.t, err)
	return resp
}

// during requests a callback, at a bank that takes that long, and returns after a second. The
// function that it returns waits for the end.
func (b *browser) during(callback string, slow time.Duration) (wait func()) {
	b.app.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(slow), 1)
	var wg sync.WaitGroup
	wg.Go(func() { b.follow(b.get(callback)) })
	time.Sleep(time.Second)
	return wg.Wait
}

// A logout that has been answered while a callback was at the bank stays, whichever of the
// application and the kit has ended the session, and so does the next user's login.
func TestB5LogoutDuringACallbackOfASession(t *testing.T) {
	var sessions *scs.SessionManager
	byUser := ganbauth.Options{Key: func(r *http.Request) (string, error) { return sessions.GetString(r.Context(), "user"), nil }}
	for name, c := range map[string]struct {
		options         ganbauth.Options
		bare            bool
		user, connected bool // before
		meanwhile       []string
		who             string
	}{
		"of a stranger":                       {meanwhile: []string{"POST /bank/logout"}},
		"of a stranger who is connected":      {connected: true, meanwhile: []string{"POST /bank/logout"}},
		"without LoadAndSave":                 {bare: true, meanwhile: []string{"POST /bank/logout"}},
		"without LoadAndSave, connected":      {bare: true, connected: true, meanwhile: []string{"POST /bank/logout"}},
		"of a user":                           {user: true, who: "alice", meanwhile: []string{"POST /bank/logout"}},
		"of a user who is connected":          {user: true, connected: true, who: "alice", meanwhile: []string{"POST /bank/logout"}},
		"the application's":                   {user: true, meanwhile: []string{"GET /app/logout"}},
		"the application's, with Forget":      {user: true, meanwhile: []string{"GET /app/logout?forget"}},
		"the application's, by Key":           {options: byUser, user: true, meanwhile: []string{"GET /app/logout"}},
		"and another user has logged in":      {user: true, who: "bob", meanwhile: []string{"GET /app/logout?forget", "GET /app/login?u=bob"}},
		"and another user has, without":       {user: true, who: "bob", meanwhile: []string{"GET /app/logout", "GET /app/login?u=bob"}},
		"and another user has logged in, Key": {options: byUser, user: true, who: "bob", meanwhile: []string{"GET /app/logout", "GET /app/login?u=bob"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, setup{options: c.options, bare: c.bare, sessions: func(m *scs.SessionManager) { sessions = m }}, func(t *testing.T, a *app) {
				site(a)
				b := a.browser()
				if c.user {
					b.get("/app/login?u=alice")
				}
				if c.connected {
					b.login()
				}
				callback := b.callbackURL("/bank/login")
				wait := b.during(callback, 5*time.Second)
				for _, request := range c.meanwhile {
					method, target, _ := strings.Cut(request, " ")
					b.do(method, target, with(navigate, "Sec-Fetch-Site", "same-origin"))
				}
				require.False(t, b.connected())
				wait()
				require.False(t, b.connected())
				if !c.bare {
					require.Equal(t, c.who, body(b.get("/app/who")))
				}
				if c.options.Key == nil {
					time.Sleep(15 * time.Minute)
					require.Zero(t, tokens(t, a), "nobody can reach it")
				}
			})
		})
	}
}

// A logout while a callback waits for its turn at the bank stays, too.
func TestB5LogoutBeforeACallbacksTurn(t *testing.T) {
	for name, end := range map[string]func(a *app, b *browser){
		"LogoutHandler": func(a *app, b *browser) {
			require.Equal(a.t, 303, b.do("POST", "/bank/logout", with(navigate, "Sec-Fetch-Site", "same-origin", "X-User", "u")).StatusCode)
		},
		"Disconnect": func(a *app, _ *browser) { require.NoError(a.t, a.kit.Disconnect(a.t.Context(), "u")) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, setup{options: ganbauth.Options{
				Key:       func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil },
				TokenRate: 0.2,
			}}, func(t *testing.T, a *app) {
				callback := func(b *browser, user string) *http.Request {
					h := with(navigate, "Sec-Fetch-Site", "same-origin", "X-User", user)
					r := mustRequest("GET", a.bank.Approve(b.do("GET", "/bank/login", h).Header.Get("Location")))
					r.Header = with(h, "Cookie", b.cookieHeader())
					return r
				}
				first, b := a.browser(), a.browser()
				_, err := first.client.Transport.RoundTrip(callback(first, "first"))
				require.NoError(t, err)
				r := callback(b, "u")
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = b.client.Transport.RoundTrip(r) })
				time.Sleep(time.Second)
				require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint), "it waits for its turn")
				end(a, b)
				wg.Wait()
				_, err = a.kit.Token(t.Context(), "u")
				require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
			})
		})
	}
}

// A logout stays, too, where a callback has come and its exchange has not begun.
func TestB5LogoutBeforeACallbackBegins(t *testing.T) {
	var stands atomic.Bool
	inBubble(t, setup{options: ganbauth.Options{Key: func(*http.Request) (string, error) {
		if stands.CompareAndSwap(true, false) {
			time.Sleep(2 * time.Second)
		}
		return "u", nil
	}}}, func(t *testing.T, a *app) {
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		stands.Store(true)
		var wg sync.WaitGroup
		var status int
		wg.Go(func() { status = b.get(callback).StatusCode })
		time.Sleep(time.Second)
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		wg.Wait()
		require.Equal(t, 401, status)
		require.False(t, b.connected())
		require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
		time.Sleep(11 * time.Minute)
		require.Zero(t, ganbauth.LoginsHeld(a.kit))
	})
}

// A logout at another process stays, too, also of a login that is the session's first, or
// that of another connection.
func TestB5LogoutAtAnotherProcessDuringACallback(t *testing.T) {
	for name, c := range map[string]struct {
		connection func(*http.Request) (string, error)
		bare       bool
		before     string // a login that is over
		login      string
	}{
		"the first":                      {login: "/bank/login"},
		"the first, without LoadAndSave": {bare: true, login: "/bank/login"},
		"another one":                    {before: "/bank/login", login: "/bank/login"},
		"the first of several":           {connection: byClient, login: "/bank/login?client=a"},
		"another one of several":         {connection: byClient, before: "/bank/login?client=a", login: "/bank/login?client=b"},
	} {
		inBubble(t, setup{bare: c.bare, options: ganbauth.Options{Connection: c.connection}}, func(t *testing.T, a *app) {
			other, err := ganbauth.New(a.connector(nil), a.sessions, a.options)
			require.NoError(t, err)
			a.mux.Handle("/other/logout", other.LogoutHandler())
			b := a.browser()
			cookie := &http.Cookie{Name: "session", Value: storeSession(t, a.sessions, "cart", "full"), Secure: true}
			b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{cookie})
			if c.before != "" {
				b.loginAt(c.before)
			}
			callback := b.callbackURL(c.login)
			wait := b.during(callback, 2*time.Second)
			require.Equal(t, 303, b.post("/other/logout").StatusCode)
			wait()
			time.Sleep(15 * time.Minute)
			require.Zero(t, tokens(t, a), name)
			session, err := a.sessions.Load(t.Context(), b.cookie("session"))
			require.NoError(t, err)
			require.Equal(t, "full", a.sessions.GetString(session, "cart"), name)
			b.login()
			require.True(t, b.connected(), name)
		})
	}
}

// A logout stays, too, where the callback has its token already and is about to attach it.
func TestB5LogoutBeforeACallbackAttaches(t *testing.T) {
	for _, user := range []string{"", "alice"} {
		for _, connected := range []bool{false, true} {
			for _, call := range []string{"Find", "Delete", "Commit"} {
				e := &standingEngine{MemStore: memstore.NewWithCleanupInterval(0)}
				inBubble(t, setup{sessions: func(m *scs.SessionManager) { m.Store = e }}, func(t *testing.T, a *app) {
					site(a)
					b := a.browser()
					if user != "" {
						b.get("/app/login?u=" + user)
					}
					if connected {
						b.login()
					}
					callback := b.callbackURL("/bank/login")
					wait := b.during(callback, 2*time.Second)
					e.at.Store(&call)
					time.Sleep(1500 * time.Millisecond)
					e.at.Store(nil)
					require.Equal(t, 303, b.post("/bank/logout").StatusCode)
					wait()
					require.False(t, b.connected(), "%q %t %s", user, connected, call)
					require.Equal(t, user, body(b.get("/app/who")), "%q %t %s", user, connected, call)
					time.Sleep(15 * time.Minute)
					require.Zero(t, tokens(t, a), "%q %t %s", user, connected, call)
				})
			}
		}
	}
}

// standingEngine stands still for a second, or for that long, at one call, of that name, for a
// session.
type standingEngine struct {
	*memstore.MemStore
	at    atomic.Pointer[string]
	still time.Duration
}

func (e *standingEngine) call(call, name string) {
	if at := e.at.Load(); at != nil && *at == call && isSession(name) && e.at.CompareAndSwap(at, nil) {
		time.Sleep(cmp.Or(e.still, time.Second))
	}
}

func (e *standingEngine) Find(name string) ([]byte, bool, error) {
	e.call("Find", name)
	return e.MemStore.Find(name)
}

func (e *standingEngine) Commit(name string, b []byte, expiry time.Time) error {
	e.call("Commit", name)
	return e.MemStore.Commit(name, b, expiry)
}

func (e *standingEngine) Delete(name string) error {
	e.call("Delete", name)
	return e.MemStore.Delete(name)
}

// isSession reports whether a name in an engine is a session's and not a record's.
func isSession(name string) bool { return !strings.Contains(name, ";") }

// A logout ends all deliveries of a callback that wait for its turn, also where the first of
// them leaves then.
func TestB5LogoutOfTwoDeliveriesThatWait(t *testing.T) {
	for _, user := range []string{"", "alice"} {
		inBubble(t, setup{options: ganbauth.Options{TokenRate: 0.2}}, func(t *testing.T, a *app) {
			site(a)
			a.browser().login() // the next one waits for five seconds
			b := a.browser()
			if user != "" {
				b.get("/app/login?u=" + user)
			}
			r := mustRequest("GET", b.callbackURL("/bank/login"))
			r.Header = with(navigate, "Cookie", b.cookieHeader())
			first, leave := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for _, ctx := range []context.Context{first, t.Context()} {
				wg.Go(func() {
					resp, err := b.client.Transport.RoundTrip(r.WithContext(ctx))
					if err != nil {
						t.Error(err)
						return
					}
					b.client.Jar.SetCookies(mustParse(appURL), resp.Cookies())
				})
				time.Sleep(time.Second)
			}
			require.Equal(t, 303, b.post("/bank/logout").StatusCode)
			leave()
			wg.Wait()
			require.False(t, b.connected())
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
		})
	}
}

// A logout that waits for a sick store does not bring back a session that the application
// has ended meanwhile.
func TestLogoutBringsNoSessionBack(t *testing.T) {
	var sick atomic.Bool
	inBubble(t, setup{options: ganbauth.Options{Store: &sickStore{TokenStore: ganbauth.NewMemoryStore(), sick: &sick}}}, func(t *testing.T, a *app) {
		site(a)
		b := a.browser()
		b.get("/app/login?u=alice")
		b.login()
		sick.Store(true)
		var wg sync.WaitGroup
		var status int
		wg.Go(func() { status = b.post("/bank/logout").StatusCode })
		time.Sleep(time.Second)
		b.get("/app/logout")
		time.Sleep(time.Second)
		sick.Store(false)
		wg.Wait()
		require.Equal(t, 303, status)
		require.Empty(t, body(b.get("/app/who")))
	})
}

// sickStore is a store that refuses writes.
type sickStore struct {
	ganbauth.TokenStore
	sick *atomic.Bool
}

func (s *sickStore) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	if s.sick.Load() {
		return errors.New("it is read-only")
	}
	return s.TokenStore.(ganbauth.Swapper).Swap(ctx, key, old, new)
}

// Two tabs of one user come back at once: one session and one token are left.
func TestTwoCallbacksOfASessionAtOnce(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		site(a)
		b := a.browser()
		b.get("/app/login?u=alice")
		callbacks := []string{b.callbackURL("/bank/login"), b.callbackURL("/bank/login")}
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(2*time.Second), 2)
		var wg sync.WaitGroup
		for _, callback := range callbacks {
			wg.Go(func() {
				if status := b.follow(b.get(callback)).StatusCode; status != 303 {
					t.Error(status)
				}
			})
		}
		wg.Wait()
		time.Sleep(15 * time.Minute)
		require.True(t, b.connected())
		require.Equal(t, 1, tokens(t, a))
		sessions := 0
		require.NoError(t, a.sessions.Iterate(t.Context(), func(ctx context.Context) error {
			if a.sessions.GetString(ctx, "user") != "" {
				sessions++
			}
			return nil
		}))
		require.Equal(t, 1, sessions)
	})
}

// A call of the sessions' engine that fails, before or after its effect, disconnects nobody
// and ends no session: the answer says that something is away, and the callback succeeds later.
func TestSessionsFailAtACallback(t *testing.T) {
	for _, bare := range []bool{false, true} {
		for _, connected := range []bool{false, true} {
			for _, after := range []bool{false, true} {
				for n, met := 1, "?"; met != ""; n++ {
					e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
					s := setup{bare: bare, sessions: func(m *scs.SessionManager) {
						m.Store, m.ErrorFunc = e, func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(500) }
					}}
					inBubble(t, s, func(t *testing.T, a *app) {
						b := a.browser()
						cookie := &http.Cookie{Name: "session", Value: storeSession(t, a.sessions, "cart", "full"), Secure: true}
						b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{cookie})
						if connected {
							b.login()
						}
						callback := b.callbackURL("/bank/login")
						name := e.failNext(n, after)
						status := b.follow(b.get(callback)).StatusCode
						met = name()
						if status != 303 {
							require.Contains(t, []int{500, 503}, status, "call %d %s", n, met)
							require.Equal(t, 303, b.follow(b.get(callback)).StatusCode, "call %d %s", n, met)
						}
						require.True(t, b.connected(), "call %d %s", n, met)
						session, err := a.sessions.Load(t.Context(), b.cookie("session"))
						require.NoError(t, err)
						require.Equal(t, "full", a.sessions.GetString(session, "cart"), "call %d %s", n, met)
						time.Sleep(15 * time.Minute)
						require.Equal(t, 1, tokens(t, a), "call %d %s", n, met)
					})
				}
			}
		}
	}
}

// The session is written by LoadAndSave in the end, though the kit could not: the callback
// comes again, and finds the token of the login before, or its own.
func TestSessionIsWrittenLate(t *testing.T) {
	always := func(s string) func(*http.Request) (string, error) {
		return func(*http.Request) (string, error) { return s, nil }
	}
	for name, options := range map[string]ganbauth.Options{
		"of a session":                 {},
		"of a session, one of several": {Connection: always("c")},
		"by Key":                       {Key: always("u")},
	} {
		for _, connected := range []bool{false, true} {
			e := &refusingEngine{MemStore: memstore.NewWithCleanupInterval(0), call: "Commit"}
			inBubble(t, setup{options: options, sessions: func(m *scs.SessionManager) { m.Store = e }}, func(t *testing.T, a *app) {
				site(a)
				b := a.browser()
				b.get("/app/login?u=alice")
				if connected {
					b.login()
				}
				callback := b.callbackURL("/bank/login")
				e.refuse.Store(6)
				require.Equal(t, 503, b.get(callback).StatusCode, "%s %t", name, connected)
				require.Zero(t, e.refuse.Load())
				require.True(t, b.connected(), "%s %t", name, connected)
				require.Equal(t, 303, b.get(callback).StatusCode, "%s %t", name, connected)
				require.True(t, b.connected(), "%s %t", name, connected)
				time.Sleep(15 * time.Minute)
				require.Equal(t, 1, tokens(t, a), "%s %t", name, connected)
			})
		}
	}
}

// An engine that fails for more than a second is no reason to keep the session's token: the
// login and the logout are answered an error, and come again.
func TestSessionIsNotRenewed(t *testing.T) {
	e := &refusingEngine{MemStore: memstore.NewWithCleanupInterval(0), call: "Delete"}
	inBubble(t, setup{sessions: func(m *scs.SessionManager) { m.Store = e }}, func(t *testing.T, a *app) {
		site(a)
		for _, user := range []string{"", "alice"} {
			b := a.browser()
			if user != "" {
				b.get("/app/login?u=alice")
			}
			b.login()
			callback := b.callbackURL("/bank/login")
			for _, ask := range []func() *http.Response{
				func() *http.Response { return b.get(callback) },
				func() *http.Response { return b.post("/bank/logout") },
			} {
				begun := time.Now()
				e.refuse.Store(6)
				require.Equal(t, 503, ask().StatusCode, user)
				require.Zero(t, e.refuse.Load())
				require.Equal(t, 1550*time.Millisecond, time.Since(begun))
				require.Equal(t, 303, ask().StatusCode, user)
			}
			require.False(t, b.connected())
			require.Equal(t, user, body(b.get("/app/who")))
		}
	})
}

// refusingEngine refuses that call for sessions, so many times.
type refusingEngine struct {
	*memstore.MemStore
	call   string
	refuse atomic.Int32
}

func (e *refusingEngine) refuses(call, name string) bool {
	return call == e.call && isSession(name) && e.refuse.Load() > 0 && e.refuse.Add(-1) >= 0
}

func (e *refusingEngine) Commit(name string, b []byte, expiry time.Time) error {
	if e.refuses("Commit", name) {
		return errEngine
	}
	return e.MemStore.Commit(name, b, expiry)
}

func (e *refusingEngine) Delete(name string) error {
	if e.refuses("Delete", name) {
		return errEngine
	}
	return e.MemStore.Delete(name)
}

// A callback does not wait without end for another that is renewing the same session.
func TestCallbackWhileAnotherHangs(t *testing.T) {
	e := &standingEngine{MemStore: memstore.NewWithCleanupInterval(0), still: time.Minute}
	inBubble(t, setup{sessions: func(m *scs.SessionManager) { m.Store = e }}, func(t *testing.T, a *app) {
		site(a)
		b := a.browser()
		b.get("/app/login?u=alice")
		one, two := b.callbackURL("/bank/login"), b.callbackURL("/bank/login")
		at := "Delete"
		e.at.Store(&at)
		var wg sync.WaitGroup
		wg.Go(func() { b.get(one) })
		time.Sleep(time.Second)
		require.Equal(t, 503, b.get(two).StatusCode)
		wg.Wait()
		require.True(t, b.connected())
	})
}

// An application may renew the session's token itself in the request of a logout.
func TestApplicationRenewsTheSession(t *testing.T) {
	a := newApp(t, setup{})
	site(a)
	inner := a.mux
	a.handler = a.sessions.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			require.NoError(t, a.sessions.RenewToken(r.Context()))
		}
		inner.ServeHTTP(w, r)
	}))
	b := a.browser()
	b.get("/app/login?u=alice")
	b.login()
	require.Equal(t, 303, b.post("/bank/logout").StatusCode)
	session, err := a.sessions.Load(t.Context(), b.cookie("session"))
	require.NoError(t, err)
	require.Equal(t, "alice", a.sessions.GetString(session, "user"))
	require.NotContains(t, a.sessions.GetString(session, "ganbauth.bank"), "bank/")
}

// A call of the sessions' engine that fails leaves no connection behind: the logout is
// answered an error, and comes again.
func TestSessionsFailAtALogout(t *testing.T) {
	for n, met := 1, "?"; met != ""; n++ {
		e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
		s := setup{bare: true, options: ganbauth.Options{Connection: byClient}, sessions: func(m *scs.SessionManager) { m.Store = e }}
		inBubble(t, s, func(t *testing.T, a *app) {
			b := a.browser()
			b.loginAt("/bank/login?client=a")
			time.Sleep(time.Hour) // the login's cookie has gone
			name := e.failNext(n, false)
			status := b.post("/bank/logout").StatusCode
			met = name()
			if status != 303 {
				require.Equal(t, 503, status, "call %d %s", n, met)
				require.Equal(t, 303, b.post("/bank/logout").StatusCode, "call %d %s", n, met)
			}
			require.Zero(t, tokens(t, a), "call %d %s", n, met)
			require.Empty(t, b.cookies(), "call %d %s", n, met)
		})
	}
}

// A logout at one kit leaves another kit's login alone, in the same session.
func TestLogoutOfOneKitDuringALoginOfAnother(t *testing.T) {
	a := newApp(t, setup{})
	site(a)
	a.mountCorp()
	b := a.browser()
	b.get("/app/login?u=alice")
	b.login()
	corp, own := b.callbackURL("/corp/login"), b.callbackURL("/bank/login")
	cookies := b.cookieHeader()
	require.Equal(t, 303, b.post("/bank/logout").StatusCode)
	require.Equal(t, 303, b.follow(b.get(corp)).StatusCode)

	// A cookie that was on its way does not let the kit's own login go on, also not by what
	// the other kit remembers.
	r := mustRequest("GET", own)
	r.Header = with(navigate, "Cookie", cookies)
	for _, c := range b.client.Jar.Cookies(mustParse(appURL)) {
		if c.Name == a.sessions.Cookie.Name {
			r.Header.Set("Cookie", regexp.MustCompile(`session=[^;]+`).ReplaceAllString(cookies, c.String()))
		}
	}
	resp, err := b.client.Transport.RoundTrip(r)
	require.NoError(t, err)
	require.Equal(t, 400, resp.StatusCode)
	require.False(t, b.connected())

	require.Equal(t, 303, b.post("/bank/logout").StatusCode, "again")
	require.Equal(t, "alice", body(b.get("/app/who")))
	b.login()
	require.True(t, b.connected())
}

// A logout that names no connection ends all that the session has.
func TestLogoutOfSeveralConnections(t *testing.T) {
	for _, unnamed := range []error{nil, ganbauth.ErrLoginRequired} {
		inBubble(t, setup{options: ganbauth.Options{Connection: func(r *http.Request) (string, error) {
			if c := r.URL.Query().Get("c"); c != "" {
				return c, nil
			}
			return "", unnamed
		}}}, func(t *testing.T, a *app) {
			b := a.browser()
			for _, c := range []string{"a", "b/%20", "c"} {
				b.loginAt("/bank/login?c=" + c)
			}
			time.Sleep(time.Hour) // the logins' cookies have gone
			require.Equal(t, 303, b.post("/bank/logout?c=c").StatusCode)
			require.Equal(t, 2, tokens(t, a))
			require.Equal(t, 303, b.post("/bank/logout").StatusCode)
			require.Zero(t, tokens(t, a))
			require.Equal(t, 3, strings.Count(fmt.Sprint(a.eventTypes()), string(ganbauth.EventLogout)))
			records, _ := stored(t, a)
			require.Zero(t, records)
			require.Empty(t, b.cookies(), "there is nothing else in the session")
		})
	}
}

// A logout that names no connection ends the login of a named one that is at the bank: in a
// session all of its connections, and by Key those that the user has stay.
func TestLogoutDuringALoginOfAnotherConnection(t *testing.T) {
	for name, c := range map[string]struct {
		key  func(*http.Request) (string, error)
		left int
	}{
		"of a session": {nil, 0},
		"by Key":       {keyIs("u"), 2},
	} {
		for _, again := range []bool{false, true} {
			inBubble(t, setup{options: ganbauth.Options{Key: c.key, Connection: byClient}}, func(t *testing.T, a *app) {
				b := a.browser()
				for _, connection := range []string{"a", "b"} {
					b.loginAt("/bank/login?client=" + connection)
				}
				connection := "c"
				if again {
					connection = "b"
				}
				b.leave(b.callbackURL("/bank/login?client=" + connection))
				require.Equal(t, 303, b.post("/bank/logout").StatusCode)
				time.Sleep(15 * time.Minute)
				require.Equal(t, c.left, tokens(t, a), "%s, again %t", name, again)
				require.Equal(t, c.left == 2 && again, b.do("GET", "/p?client="+connection, program).StatusCode == 200, "%s, again %t", name, again)
			})
		}
	}
}

// A logout ends a login whose token is being stored, also where its request comes with a
// session that has been renewed meanwhile, and so says nothing of the connections.
func TestLogoutWhileATokenIsStored(t *testing.T) {
	store := &stepping{TokenStore: ganbauth.NewMemoryStore()}
	inBubble(t, setup{options: ganbauth.Options{
		Store: store, Connection: byClient,
	}}, func(t *testing.T, a *app) {
		site(a)
		b := a.browser()
		b.loginAt("/bank/login?client=a")
		callback := b.callbackURL("/bank/login?client=b")
		logout := mustRequest("POST", appURL+"/bank/logout")
		logout.Header = with(navigate, "Sec-Fetch-Site", "same-origin", "Cookie", b.cookieHeader())
		wait := b.during(callback, 2*time.Second)
		store.before.set(func(int) error { time.Sleep(2 * time.Second); return nil })
		time.Sleep(2 * time.Second)
		b.get("/app/login?u=alice")
		resp, err := b.client.Transport.RoundTrip(logout)
		require.NoError(t, err)
		require.Equal(t, 303, resp.StatusCode)
		wait()
		store.before.set(nil)
		time.Sleep(time.Minute)
		require.Equal(t, 401, b.do("GET", "/p?client=b", program).StatusCode)
	})
}

// By Key, a logout that names no connection leaves a named one alone whose new token has just
// been stored.
func TestLogoutByKeyWhenAnotherTokenIsStored(t *testing.T) {
	store := &stepping{TokenStore: ganbauth.NewMemoryStore()}
	inBubble(t, setup{options: ganbauth.Options{
		Store: store, Key: keyIs("u"), Connection: byClient,
	}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.loginAt("/bank/login?client=a")
		wait := b.during(b.callbackURL("/bank/login?client=a"), 2*time.Second)
		store.after.set(func(int) error { time.Sleep(2 * time.Second); return nil })
		time.Sleep(2 * time.Second)
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		wait()
		store.after.set(nil)
		time.Sleep(time.Minute)
		require.Equal(t, 200, b.do("GET", "/p?client=a", program).StatusCode)
	})
}

// A login whose browser has gone leaves no token that nobody can reach. A session that has a
// handle reaches all its connections.
func TestLoginWhoseBrowserHasGone(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{Connection: byClient}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.leave(b.callbackURL("/bank/login?client=a"))
		time.Sleep(15 * time.Minute)
		require.Zero(t, tokens(t, a))
		b.loginAt("/bank/login?client=a")
		b.leave(b.callbackURL("/bank/login?client=b"))
		time.Sleep(15 * time.Minute)
		require.Equal(t, 200, b.do("GET", "/p?client=b", program).StatusCode)
	})
}

// A logout whose first try had its effect, and no answer, has ended a connection.
func TestLogoutWhoseAnswerIsLost(t *testing.T) {
	store := &stepping{TokenStore: ganbauth.NewMemoryStore()}
	inBubble(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		last := int(store.swaps.Load()) + 1
		store.after.set(func(n int) error {
			if n == last {
				return errStep
			}
			return nil
		})
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.Equal(t, ganbauth.EventLogout, a.lastEvent().Type)
		require.Zero(t, ganbauth.KeysHeld(a.kit))
	})
}

// A logout that has to do without its Locker is none while the store fails, too.
func TestLogoutWithoutLockerAndStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		connect(t, bank, store, "u")
		var away atomic.Bool
		away.Store(true)
		kit := backgroundKit(t, bank, store, awayLocker{&away})
		store.set(nil, nil, errStep)
		err := kit.Disconnect(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.ErrorIs(t, err, errStep)
		store.set(nil, nil, nil)
		require.NoError(t, kit.Disconnect(t.Context(), "u"))
	})
}

// A record that cannot be read is a connection to whoever logs out.
func TestLogoutOfARecordThatCannotBeRead(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	options := ganbauth.Options{Store: store, Key: keyIs("u"), EncryptionKeys: [][]byte{bytes.Repeat([]byte{1}, 32)}}
	a := newApp(t, setup{options: options})
	a.browser().login()
	options.EncryptionKeys = [][]byte{bytes.Repeat([]byte{2}, 32)}
	other := newApp(t, setup{options: options})
	require.Equal(t, 303, other.browser().post("/bank/logout").StatusCode)
	require.Equal(t, []ganbauth.EventType{ganbauth.EventLogout}, other.eventTypes())
	_, err := store.Load(t.Context(), "bank/u")
	require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
}

// A logout of many connections takes no longer than that of one while the Locker is away.
func TestLogoutOfManyConnectionsWithoutALocker(t *testing.T) {
	var away atomic.Bool
	inBubble(t, setup{options: ganbauth.Options{
		Locker:     awayLocker{&away},
		Connection: byClient,
	}}, func(t *testing.T, a *app) {
		b := a.browser()
		for c := range 16 {
			b.loginAt(fmt.Sprint("/bank/login?client=", c))
		}
		away.Store(true)
		begun := time.Now()
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.Less(t, time.Since(begun), 10*time.Second)
		require.Zero(t, tokens(t, a))
	})
}

// A logout ends the sixteen newest connections of a session.
func TestLogoutOfMoreConnectionsThanASessionHolds(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{Connection: byClient}}, func(t *testing.T, a *app) {
		b := a.browser()
		for c := range 18 {
			b.loginAt(fmt.Sprint("/bank/login?client=", c))
			time.Sleep(time.Minute)
		}
		time.Sleep(40 * time.Minute) // the browser forgets its logins
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.Equal(t, 2, tokens(t, a))
	})
}

// awayLocker is a Locker that fails while it is away.
type awayLocker struct{ away *atomic.Bool }

func (l awayLocker) Lock(context.Context, string) (func(), error) {
	if l.away.Load() {
		return nil, errEngine
	}
	return func() {}, nil
}

// A logout that does not know whose it is ends no login: it is answered an error, and may come
// again.
func TestLogoutThatFailsEndsNoLogin(t *testing.T) {
	var fails atomic.Bool
	fault := func(*http.Request) (string, error) {
		if fails.Load() {
			return "", errEngine
		}
		return "u", nil
	}
	for name, options := range map[string]ganbauth.Options{
		"Key":        {Key: fault},
		"Connection": {Connection: fault},
	} {
		a := newApp(t, setup{options: options})
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		fails.Store(true)
		resp := b.post("/bank/logout")
		fails.Store(false)
		require.Equal(t, 500, resp.StatusCode, name)
		require.Empty(t, resp.Cookies(), name)
		require.Equal(t, 303, b.get(callback).StatusCode, name)
		require.True(t, b.connected(), name)
	}
}

// A logout leaves a session alone that has nothing of the kit's, unless a login is under way
// in it.
func TestLogoutLeavesTheSessionAlone(t *testing.T) {
	key := keyIs("u")
	for name, c := range map[string]struct {
		key          func(*http.Request) (string, error)
		begun, stays bool
	}{
		"nobody is connected":          {stays: true},
		"a login is under way":         {begun: true},
		"by Key":                       {key: key, stays: true},
		"by Key, a login is under way": {key: key, begun: true, stays: true},
	} {
		store := callStore{ganbauth.NewMemoryStore(), func(_, key string) { require.Equal(t, "bank/u", key, name) }}
		a := newApp(t, setup{options: ganbauth.Options{Store: store, Key: c.key}})
		site(a)
		b := a.browser()
		b.get("/app/login?u=alice")
		if c.begun {
			b.authorizationURL("/bank/login")
		}
		before := b.cookie("session")
		require.Equal(t, 303, b.post("/bank/logout").StatusCode, name)
		require.Equal(t, c.stays, b.cookie("session") == before, name)
		require.Equal(t, "alice", body(b.get("/app/who")), name)
	}
}

// A logout of a user who is not connected is no event.
func TestLogoutOfNobodyIsNoEvent(t *testing.T) {
	a := newApp(t, setup{options: ganbauth.Options{Key: keyIs("u")}})
	require.Equal(t, 303, a.browser().post("/bank/logout").StatusCode)
	require.Empty(t, a.eventTypes())
}

// A callback does not name its connection, but the login does: OnError and Observe are told
// that one.
func TestH5ErrorsOfACallbackNameTheConnection(t *testing.T) {
	var mu sync.Mutex
	var told []string
	tell := func(ctx context.Context, what string) {
		key, connection, _ := ganbauth.KeyFromContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		told = append(told, what+" "+key+" "+connection)
	}
	all := func() (all []string) {
		mu.Lock()
		defer mu.Unlock()
		all, told = told, nil
		return all
	}
	var sick atomic.Bool
	inBubble(t, setup{options: ganbauth.Options{
		Store:      &unreadableStore{ganbauth.NewMemoryStore(), &sick},
		Key:        keyIs("u"),
		Connection: byClient,
		Observe:    func(ctx context.Context, e ganbauth.Event) { tell(ctx, string(e.Type)) },
		OnError: func(w http.ResponseWriter, r *http.Request, err error) {
			tell(r.Context(), "OnError")
			w.WriteHeader(ganbauth.StatusCode(err))
		},
	}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.get(a.bank.Deny(b.authorizationURL("/bank/login?client=firm")))
		require.Equal(t, []string{"login_started u firm", "login_failed u firm", "OnError u firm"}, all())

		callback := b.callbackURL("/bank/login?client=firm")
		b.leave(callback)
		time.Sleep(5 * time.Second)
		require.Equal(t, []string{"login_started u firm", "login_failed u firm", "OnError u firm"}, all())

		require.Equal(t, 303, b.get(callback).StatusCode)
		require.Equal(t, []string{"login_succeeded u firm"}, all())
		sick.Store(true)
		require.Equal(t, 503, b.get(callback).StatusCode)
		require.Equal(t, []string{"login_failed u firm", "OnError u firm"}, all())
	})
}

// unreadableStore is a store that cannot be read.
type unreadableStore struct {
	ganbauth.TokenStore
	sick *atomic.Bool
}

func (s *unreadableStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if s.sick.Load() {
		return nil, errors.New("it is away")
	}
	return s.TokenStore.Load(ctx, key)
}

// Shutdown deletes the token of a login whose browser has gone, which no session has. What
// a browser has, stays.
func TestShutdownLeavesNoTokenBehind(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		stays := a.browser()
		stays.login()
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		b.leave(callback)
		begun := time.Now()
		require.NoError(t, a.kit.Shutdown(t.Context()))
		require.Less(t, time.Since(begun), 2*time.Second, "of the bank's two seconds one is over, and there is nothing else to wait for")
		require.Equal(t, 1, tokens(t, a))
		require.True(t, stays.connected())
		require.Equal(t, 401, b.get(callback).StatusCode, "the code is not sent again")
		require.Equal(t, 2, a.bank.Count(ganbtest.TokenEndpoint))
	})
}

// Shutdown lets a callback attach the token that it waits for.
func TestShutdownDuringACallback(t *testing.T) {
	e := &standingEngine{MemStore: memstore.NewWithCleanupInterval(0)}
	inBubble(t, setup{sessions: func(m *scs.SessionManager) { m.Store = e }}, func(t *testing.T, a *app) {
		a.browser().login()
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(2*time.Second), 1)
		at := "Commit"
		e.at.Store(&at)
		var wg sync.WaitGroup
		wg.Go(func() { b.get(callback) })
		time.Sleep(time.Second)
		require.NoError(t, a.kit.Shutdown(t.Context()))
		wg.Wait()
		require.True(t, b.connected())
		require.Equal(t, 2, tokens(t, a))
	})
}

// A callback whose answer nobody reads leaves its login as it is. So does one that the bank
// has refused: the outcome is the reload's.
func TestDenialWhoseBrowserHasGone(t *testing.T) {
	a := newApp(t, setup{})
	b := a.browser()
	denial := a.bank.Deny(b.authorizationURL("/bank/login"))
	r := mustRequest("GET", denial)
	r.Header = with(navigate, "Cookie", b.cookieHeader())
	ctx, leave := context.WithCancel(t.Context())
	leave()
	resp, err := b.client.Transport.RoundTrip(r.WithContext(ctx))
	require.NoError(t, err)
	require.Empty(t, resp.Cookies())
	resp = b.get(denial)
	require.Equal(t, 403, resp.StatusCode)
	require.NotEmpty(t, resp.Cookies(), "the login is over")
}

// The context of a callback may end with its server's, and the browser read the answer: it
// says nothing of a connection that the user does not have, and where to begin again.
func TestCallbackWhoseContextEnds(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		resp := b.leave(callback)
		require.Equal(t, 503, resp.StatusCode)
		page := body(resp)
		require.NotContains(t, page, "stays connected")
		require.Contains(t, page, `href="/bank/login"`)
		time.Sleep(2 * time.Second)
		require.Equal(t, 303, b.get(callback).StatusCode)
		require.True(t, b.connected())
	})
}
