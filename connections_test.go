package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// byClient is the Connection of an application whose routes name the client.
func byClient(r *http.Request) (string, error) { return r.URL.Query().Get("client"), nil }

// office is an application whose users connect several accounts each: of the user that a
// header names, or of the session.
func office(keyed bool) setup {
	s := setup{options: ganbauth.Options{Connection: byClient}}
	if keyed {
		s.options.Key = func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }
	}
	return s
}

func TestConnections(t *testing.T) {
	for name, keyed := range map[string]bool{"of a session": false, "of a user": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, office(keyed), func(t *testing.T, a *app) {
				b := a.browser()
				as := func(user string, h http.Header) http.Header { return with(h, "X-User", user) }
				open := func(user, path string) *http.Response { return b.do("GET", path, as(user, navigate)) }
				subject := func(user, client string) string {
					resp := b.do("GET", "/p?client="+client, as(user, program))
					if resp.StatusCode != 200 {
						return resp.Status
					}
					return strings.TrimPrefix(body(resp), "served ")
				}

				// Two tabs connect two accounts at once, each to its own.
				one, two := open("u", "/p?client=a"), open("u", "/p?client=b%2F%25")
				require.Equal(t, 303, one.StatusCode)
				require.Equal(t, 303, two.StatusCode)
				second := open("u", a.bank.Approve(two.Header.Get("Location")))
				require.Equal(t, "/p?client=b%2F%25", second.Header.Get("Location"))
				first := open("u", a.bank.Approve(one.Header.Get("Location")))
				require.Equal(t, "/p?client=a", first.Header.Get("Location"))
				subjects := []string{subject("u", "a"), subject("u", "b%2F%25")}
				require.NotEqual(t, subjects[0], subjects[1])
				require.NotContains(t, subjects[0]+subjects[1], "401")
				require.Equal(t, "401 Unauthorized", subject("u", "c"))
				require.Equal(t, 2, tokens(t, a))

				// The guard against loops knows connections apart: a third is begun at
				// once.
				require.Equal(t, 303, open("u", "/p?client=c").StatusCode)

				// The status is the connection's.
				require.Contains(t, body(b.do("GET", "/bank/status?client=a", as("u", program))), `"connected":true`)
				require.Contains(t, body(b.do("GET", "/bank/status?client=c", as("u", program))), `"connected":false`)

				// A logout ends one of them.
				post := with(navigate, "Sec-Fetch-Site", "same-origin", "X-User", "u")
				begun := open("u", "/p?client=e")
				require.Equal(t, 303, b.do("POST", "/bank/logout?client=a", post).StatusCode)
				other := open("u", a.bank.Approve(begun.Header.Get("Location")))
				require.Equal(t, "/p?client=e", other.Header.Get("Location"), "another's login under way goes on")
				require.Equal(t, "401 Unauthorized", subject("u", "a"))
				require.Equal(t, subjects[1], subject("u", "b%2F%25"))

				if !keyed {
					// A logout that names no connection leaves none to the session's next
					// user.
					require.Equal(t, 303, b.do("POST", "/bank/logout", post).StatusCode)
					require.Equal(t, "401 Unauthorized", subject("u", "b%2F%25"))
					return
				}
				// Another user's callback is refused, whatever it is for.
				third := open("u", "/p?client=d")
				stranger := open("v", a.bank.Approve(third.Header.Get("Location")))
				for range 3 { // it is asked for again first
					if next := stranger.Header.Get("Refresh"); next != "" {
						_, target, _ := strings.Cut(next, "url=")
						stranger = open("v", target)
					}
				}
				require.Equal(t, 400, stranger.StatusCode)
				require.Equal(t, "401 Unauthorized", subject("v", "d"))
				require.Equal(t, "401 Unauthorized", subject("u", "d"))
				require.Equal(t, "401 Unauthorized", subject("v", "b%2F%25"), "another user's connection of the same name")

				// Jobs name the same parts.
				token, err := a.kit.Token(t.Context(), "u", "b/%")
				require.NoError(t, err)
				require.Equal(t, subjects[1], token.Subject)
				resp, err := a.kit.ClientFor("u", "b/%").Get(a.bank.APIBase() + "/accounts")
				require.NoError(t, err)
				require.Equal(t, 200, resp.StatusCode)
				resp.Body.Close()
				_, err = a.kit.Token(t.Context(), "u/b", "%")
				require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
				_, err = a.kit.Token(t.Context(), "u", "a", "b")
				require.ErrorContains(t, err, "more than one connection")
				require.NoError(t, a.kit.Disconnect(t.Context(), "u", "b/%"))
				require.Equal(t, "401 Unauthorized", subject("u", "b%2F%25"))
			})
		})
	}
}

func TestConnectionIsRefused(t *testing.T) {
	a := newApp(t, office(true))
	b := a.browser()
	h := with(program, "X-User", "u")
	require.Equal(t, 500, b.do("GET", "/p?client="+strings.Repeat("c", 256), h).StatusCode)
	require.Equal(t, 401, b.do("GET", "/p?client="+strings.Repeat("c", 255), h).StatusCode)
	require.Contains(t, a.log.String(), "ganbauth: refused\" method=GET path=/p status=500")
	require.Contains(t, a.log.String(), "Connection: longer than 255 bytes")
}

// H3: Observe and OnError hear whose connection it is about.
func TestKeyFromContext(t *testing.T) {
	var mu sync.Mutex
	var heard []string
	hear := func(what string, ctx context.Context) {
		mu.Lock()
		defer mu.Unlock()
		key, connection, ok := ganbauth.KeyFromContext(ctx)
		if _, token := ganbauth.TokenFromContext(ctx); token {
			what += " with a token"
		}
		if !ok {
			key = "nobody"
		}
		heard = append(heard, what+" "+key+" "+connection)
	}
	s := office(true)
	s.options.Observe = func(ctx context.Context, e ganbauth.Event) { hear(string(e.Type), ctx) }
	s.options.OnError = func(w http.ResponseWriter, r *http.Request, err error) {
		hear("error", r.Context())
		w.WriteHeader(ganbauth.StatusCode(err))
	}
	a := newApp(t, s)
	a.next.serve = func(_ http.ResponseWriter, r *http.Request) { hear("handler", r.Context()) }
	b := a.browser()
	h := with(navigate, "X-User", "u")
	begun := b.do("GET", "/p?client=a", h)
	require.Equal(t, 303, b.do("GET", a.bank.Approve(begun.Header.Get("Location")), h).StatusCode)
	require.Equal(t, 200, b.do("GET", "/p?client=a", h).StatusCode)
	b.do("GET", "/p?client=b", with(program, "X-User", "u"))
	b.do("GET", "/p?client=b", program)
	a.bank.RevokeGrants()
	a.bank.ExpireAccessTokens()
	expire(t, a, "u", "a")
	_, err := a.kit.Token(t.Context(), "u", "a")
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	require.Equal(t, []string{
		"login_started u a", "login_succeeded u a", "handler with a token u a", "error u b", "error nobody ", "token_lost u a",
	}, heard)
	key, connection, ok := ganbauth.KeyFromContext(t.Context())
	require.False(t, ok)
	require.Empty(t, key+connection)
}

// OnError hears of an error also where it is not known whose connection the request is
// about. A request without a token has no client.
func TestKeyFromContextOfNobody(t *testing.T) {
	fails := errors.New("the tenant is not known")
	user := keyIs("u")
	for name, c := range map[string]struct {
		options ganbauth.Options
		key     string
		status  int
	}{
		"no session": {ganbauth.Options{}, "", 401},
		"no user":    {ganbauth.Options{Key: keyIs("")}, "", 401},
		"Key fails":  {ganbauth.Options{Key: func(*http.Request) (string, error) { return "u", fails }}, "", 500},
		"Connection fails": {
			ganbauth.Options{Key: user, Connection: func(*http.Request) (string, error) { return "c", fails }}, "", 500,
		},
		"a user who has not granted enough": {ganbauth.Options{Key: user}, "u", 403},
	} {
		t.Run(name, func(t *testing.T) {
			heard := 0
			var a *app
			c.options.OnError = func(w http.ResponseWriter, r *http.Request, err error) {
				heard++
				require.Equal(t, "/transfer", r.URL.Path)
				key, _, ok := ganbauth.KeyFromContext(r.Context())
				require.Equal(t, c.key, key)
				require.Equal(t, c.key != "", ok)
				_, served := ganbauth.TokenFromContext(r.Context())
				require.False(t, served)
				_, clientErr := a.kit.Client(r.Context()).Get(a.bank.APIBase() + "/accounts")
				require.ErrorIs(t, clientErr, ganbauth.ErrLoginRequired)
				w.WriteHeader(ganbauth.StatusCode(err))
			}
			a = newApp(t, setup{options: c.options})
			require.NoError(t, a.kit.SetToken(t.Context(), "u", &ganbauth.Token{AccessToken: "a", ExpiresAt: time.Now().Add(time.Hour)}))
			require.Equal(t, c.status, a.browser().do("GET", "/transfer", program).StatusCode)
			require.Equal(t, 1, heard)
		})
	}
}

// A kit that does not know whose connection a request is about does not name the user of the
// kit around it.
func TestKeyFromContextOfAnotherKit(t *testing.T) {
	bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
	outer := backgroundKit(t, bank, store, nil)
	connect(t, bank, store, "u")
	fails := errors.New("the tenant is not known")
	for name, change := range map[string]func(*ganbauth.Options){
		"no user":          func(o *ganbauth.Options) { o.Key = keyIs("") },
		"Connection fails": func(o *ganbauth.Options) { o.Connection = func(*http.Request) (string, error) { return "", fails } },
	} {
		heard := 0
		inner := backgroundKit(t, bank, store, nil, change, func(o *ganbauth.Options) {
			o.Name = "inner"
			o.OnError = func(_ http.ResponseWriter, r *http.Request, _ error) {
				heard++
				key, _, ok := ganbauth.KeyFromContext(r.Context())
				require.False(t, ok, name)
				require.Empty(t, key, name)
				_, ok = ganbauth.TokenFromContext(r.Context())
				require.False(t, ok, name)
			}
		})
		r := mustRequest("GET", "/")
		r.Header.Set("X-User", "u")
		outer.RequireToken(inner.RequireToken(nil)).ServeHTTP(httptest.NewRecorder(), r)
		require.Equal(t, 1, heard, name)
	}
}

// An application may learn only in Connection that it does not know the user. That is answered
// as if Key had said it: connecting at the bank would not help.
func TestConnectionOfNobody(t *testing.T) {
	for name, keyed := range map[string]bool{"of a session": false, "of a user": true} {
		t.Run(name, func(t *testing.T) {
			s := office(keyed)
			s.options.Connection = func(r *http.Request) (string, error) {
				if r.Header.Get("X-Client") == "" {
					return "", fmt.Errorf("no client: %w", ganbauth.ErrLoginRequired)
				}
				return r.Header.Get("X-Client"), nil
			}
			a := newApp(t, s)
			b := a.browser()
			known := with(navigate, "X-User", "u", "X-Client", "a")
			begun := b.do("GET", "/p", known)
			require.Equal(t, "/p", b.do("GET", a.bank.Approve(begun.Header.Get("Location")), known).Header.Get("Location"))
			require.Equal(t, 200, b.do("GET", "/p", known).StatusCode)

			nobody := with(navigate, "X-User", "u")
			for _, path := range []string{"/p", "/transfer", "/bank/login"} {
				resp := b.do("GET", path, nobody)
				require.Equal(t, 401, resp.StatusCode, path)
				require.Contains(t, body(resp), "Please log in first")
				require.Empty(t, resp.Cookies(), "no login is begun")
			}
			problem := problemOf(t, b.do("GET", "/p", with(program, "X-User", "u")))
			require.Equal(t, "no_user", problem.Code)
			require.Empty(t, problem.LoginURL)
			require.JSONEq(t, `{"connected":false,"scopes":[]}`, body(b.do("GET", "/bank/status", nobody)))
			require.Equal(t, 200, b.do("GET", "/p", known).StatusCode)

			require.Equal(t, 303, b.do("POST", "/bank/logout", nobody).StatusCode)
			left := b.do("GET", "/p", with(known, "Accept", "application/json")).StatusCode == 200
			require.Equal(t, keyed, left, "a session gives up all it has, and a user's connection is not the one that was meant")
			require.NotContains(t, a.log.String(), "internal")
		})
	}
}

// A handler that cannot tell any more which connection its request names gets no token.
func TestConnectionThatFailsBehindTheMiddleware(t *testing.T) {
	var fails error
	a := newApp(t, setup{options: ganbauth.Options{
		Key:        keyIs("u"),
		Connection: func(*http.Request) (string, error) { return "", fails },
	}})
	require.NoError(t, a.kit.SetToken(t.Context(), "u", &ganbauth.Token{AccessToken: "a", ExpiresAt: time.Now().Add(time.Hour)}))
	a.next.serve = func(_ http.ResponseWriter, r *http.Request) {
		_, ok := ganbauth.TokenFromContext(r.Context())
		require.True(t, ok)
		fails = errors.New("the tenant is not known")
		_, ok = ganbauth.TokenFromContext(r.Context())
		require.False(t, ok)
	}
	require.Equal(t, 200, a.browser().do("GET", "/p", program).StatusCode)
}

// H3: Observe hears whose connection is lost, whatever has found that out.
func TestKeyFromContextOfALoss(t *testing.T) {
	for name, use := range map[string]func(a *app, b *browser){
		"a request": func(_ *app, b *browser) { b.do("GET", "/p?client=a", with(program, "X-User", "u")) },
		"a job":     func(a *app, _ *browser) { _, _ = a.kit.Token(a.t.Context(), "u", "a") },
		"a client of a job": func(a *app, _ *browser) {
			if resp, err := a.kit.ClientFor("u", "a").Get(a.bank.APIBase() + "/accounts"); err == nil {
				resp.Body.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := office(true)
			whose := make(chan string, 1)
			s.options.Observe = func(ctx context.Context, e ganbauth.Event) {
				if e.Type == ganbauth.EventTokenLost {
					key, connection, _ := ganbauth.KeyFromContext(ctx)
					whose <- key + " " + connection
				}
			}
			inBubble(t, s, func(t *testing.T, a *app) {
				expire(t, a, "u", "a")
				use(a, a.browser())
				require.Equal(t, "u a", <-whose)
			})
		})
	}
}

// H3: whose request it is that a client is used in says nothing about whose token the client
// has, and neither does the kit that stands between.
func TestKeyFromContextOfAClient(t *testing.T) {
	var heard []string
	bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
	kitOf := func(name string) *ganbauth.Kit {
		require.NoError(t, store.Save(t.Context(), name+"/user of "+name, bank.Token()))
		return backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) {
			o.Name = name
			o.Key = func(*http.Request) (string, error) { return "user of " + name, nil }
			o.Observe = func(ctx context.Context, _ ganbauth.Event) {
				key, _, _ := ganbauth.KeyFromContext(ctx)
				heard = append(heard, key)
			}
		})
	}
	outer, inner := kitOf("outer"), kitOf("inner")
	require.NoError(t, store.Save(t.Context(), "inner/client", bank.Token()))
	bank.ExpireAccessTokens()
	outer.RequireToken(inner.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		for _, client := range []*http.Client{inner.ClientFor("client"), outer.Client(r.Context()), inner.Client(r.Context())} {
			resp, err := client.Do(mustRequest("GET", bank.APIBase()+"/accounts").WithContext(r.Context()))
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			require.NoError(t, resp.Body.Close())
		}
	}))).ServeHTTP(nil, mustRequest("GET", "/"))
	require.Equal(t, []string{"client", "user of outer", "user of inner"}, heard)
}

// expire has the access token of a connection be past its end.
func expire(t *testing.T, a *app, key, connection string) {
	t.Helper()
	token := *a.bank.Token()
	token.IssuedAt, token.ExpiresAt = token.IssuedAt.Add(-2*time.Hour), token.ExpiresAt.Add(-2*time.Hour)
	require.NoError(t, a.kit.SetToken(t.Context(), key, &token, connection))
	a.bank.RevokeGrants()
}

// A mux sets path values. RequireToken in front of it cannot see them, and must not hand
// out the token of another connection.
func TestConnectionByPathBehindTheMux(t *testing.T) {
	var served, errs []string
	a := newApp(t, setup{options: ganbauth.Options{
		Key:        keyIs("u"),
		Connection: func(r *http.Request) (string, error) { return r.PathValue("client"), nil },
	}})
	for _, client := range []string{"", "acme"} {
		require.NoError(t, a.kit.SetToken(t.Context(), "u", &ganbauth.Token{AccessToken: "of-" + client, ExpiresAt: time.Now().Add(time.Hour)}, client))
	}
	balance := func(_ http.ResponseWriter, r *http.Request) {
		if token, ok := ganbauth.TokenFromContext(r.Context()); ok {
			served = append(served, token.AccessToken)
		}
		_, err := a.kit.Client(r.Context()).Get(a.bank.APIBase() + "/accounts")
		if err != nil {
			errs = append(errs, err.Error())
			require.Equal(t, 500, ganbauth.StatusCode(err))
		}
	}
	a.mux.Handle("/routes/{client}", a.kit.RequireToken(http.HandlerFunc(balance)))
	inner := http.NewServeMux()
	inner.HandleFunc("/all/{client}", balance)
	a.mux.Handle("/all/", a.kit.RequireToken(inner))

	a.browser().do("GET", "/routes/acme", program)
	require.Equal(t, []string{"of-acme"}, served)
	require.Empty(t, errs)
	a.browser().do("GET", "/all/acme", program)
	require.Len(t, served, 1)
	require.Len(t, errs, 1)
	require.Contains(t, errs[0], "around the routes")
}

// Personal and corporate accounts have scopes of their own. Where the routes name them, a
// login for one kind does not ask for the other's.
func TestScopesOfEachConnection(t *testing.T) {
	a := newApp(t, setup{options: ganbauth.Options{
		Scopes:     []string{"openid", "offline_access"},
		Key:        keyIs("u"),
		Connection: func(r *http.Request) (string, error) { return strings.Trim(r.URL.Path, "/"), nil },
	}})
	scopes := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		fmt.Fprint(w, token.Scope)
	})
	b := a.browser()
	for path, scope := range map[string]string{"/personal": "private:account", "/corporate": "corp:account"} {
		a.mux.Handle(path, a.kit.RequireScopes(scope)(scopes))
		b.get(b.callbackURL(path))
		require.Equal(t, "openid offline_access "+scope, body(b.get(path)))
	}
}

// A tab was closed during its callback, another tab has connected another account since,
// and the first one is opened again: the session keeps what it has, and nothing stays that
// nobody can reach.
func TestCallbackOpenedAgainKeepsOtherConnections(t *testing.T) {
	inBubble(t, office(false), func(t *testing.T, a *app) {
		b := a.browser()
		first, second := b.callbackURL("/p?client=a"), b.callbackURL("/p?client=b")
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(5*time.Second), 1)
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		closed := mustRequest("GET", first).WithContext(ctx)
		closed.Header = with(navigate, "Cookie", b.cookieHeader())
		_, _ = b.client.Transport.RoundTrip(closed)
		require.Equal(t, "/p?client=b", b.get(second).Header.Get("Location"))
		time.Sleep(5 * time.Second)
		resp := b.get(first)
		require.Equal(t, 400, resp.StatusCode)
		require.Contains(t, body(resp), `href="/p?client=a"`, "it can be begun again")
		require.Equal(t, 200, b.do("GET", "/p?client=b", program).StatusCode)
		require.Equal(t, 1, tokens(t, a))
	})
}

// Two callbacks of one session are at the bank at once: the first one answered stays, and
// the other is told to begin again.
func TestTwoFirstConnectionsAtOnce(t *testing.T) {
	for _, bare := range []bool{false, true} {
		s := office(false)
		s.bare = bare
		inBubble(t, s, func(t *testing.T, a *app) {
			a.mux.Handle("/app", a.sessions.LoadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				a.sessions.Put(r.Context(), "app", "its own")
			})))
			b := a.browser()
			b.get("/app")
			var answers [2]*http.Response
			var wg sync.WaitGroup
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(3*time.Second), 2)
			for i, callback := range []string{b.callbackURL("/p?client=a"), b.callbackURL("/p?client=b")} {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Second)
					answers[i] = b.follow(b.get(callback))
				})
			}
			wg.Wait()
			require.Equal(t, "/p?client=a", answers[0].Header.Get("Location"))
			require.Equal(t, 400, answers[1].StatusCode)
			require.Contains(t, body(answers[1]), `href="/p?client=b"`)
			require.Equal(t, 200, b.do("GET", "/p?client=a", program).StatusCode)
			require.Equal(t, 1, tokens(t, a))
			time.Sleep(time.Minute)
			require.Equal(t, 303, b.get(b.callbackURL("/p?client=b")).StatusCode)
			require.Equal(t, 200, b.do("GET", "/p?client=a", program).StatusCode)
			require.Equal(t, 200, b.do("GET", "/p?client=b", program).StatusCode)
		})
	}
}

// Key and Connection may read the session even where LoadAndSave is missing.
func TestKeyReadsTheSession(t *testing.T) {
	for _, bare := range []bool{false, true} {
		var a *app
		user := func(r *http.Request) (string, error) { return a.sessions.GetString(r.Context(), "user"), nil }
		a = newApp(t, setup{bare: bare, options: ganbauth.Options{Key: user, Connection: user}})
		require.Equal(t, 401, a.browser().do("GET", "/p", program).StatusCode)
	}
}

func TestKeyAndConnectionFail(t *testing.T) {
	for err, status := range map[error]int{
		ganbauth.ErrLoginRequired:                             401,
		fmt.Errorf("users: %w", ganbauth.ErrUnavailable):      503,
		errors.New("the users' database says nothing of use"): 500,
	} {
		fails := func(*http.Request) (string, error) { return "", err }
		user := keyIs("u")
		for _, opts := range []ganbauth.Options{{Key: fails}, {Key: user, Connection: fails}} {
			a := newApp(t, setup{options: opts})
			require.Equal(t, status, a.browser().do("GET", "/p", program).StatusCode, err)
		}
	}
}

// A browser still has the cookie of a session that has ended, or that a restart has lost. It
// connects at once, as no other tab can have renewed that session.
func TestStaleSessionCookie(t *testing.T) {
	for _, bare := range []bool{false, true} {
		a := newApp(t, setup{bare: bare, options: ganbauth.Options{Connection: byClient}})
		b := a.browser()
		b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{{Name: "session", Value: "stale", Secure: true}})
		require.Equal(t, "/p?client=a", b.get(b.callbackURL("/p?client=a")).Header.Get("Location"))
		require.Equal(t, 200, b.do("GET", "/p?client=a", program).StatusCode)
	}
}

// The logins of several tabs come back in any order, and each to its own page, whether the
// application had a session when they were begun or not.
func TestTabsInAnyOrder(t *testing.T) {
	for name, steps := range map[string]string{ // a letter begins its login, a capital letter ends it, "+" makes a session
		"one after the other":       "+aAbB",
		"two at once":               "+abAB",
		"the second first":          "+abBA",
		"a session between":         "a+bAB",
		"a third while others wait": "+abAcBC",
		"no session at first":       "abAcBC",
		"all in reverse":            "a+bcCBA",
		"one waits for eight":       "+abBcCdDeEfFgGhHA",
	} {
		for _, connection := range []func(*http.Request) (string, error){nil, byClient} {
			a := newApp(t, setup{options: ganbauth.Options{Connection: connection}})
			a.mux.HandleFunc("/app", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "app", "its own") })
			b, begun := a.browser(), map[rune]string{}
			for _, step := range steps {
				page := "/p?client=" + strings.ToLower(string(step))
				switch {
				case step == '+':
					b.get("/app")
				case unicode.IsLower(step):
					begun[step] = b.callbackURL("/bank/login?client=" + string(step) + "&return_to=" + url.QueryEscape(page))
				default:
					resp := b.follow(b.get(begun[unicode.ToLower(step)]))
					require.Equal(t, page, resp.Header.Get("Location"), "%s: %c", name, step)
				}
			}
		}
	}
}

// Two kits are on one session: the login of one does not end the login of the other that is
// at the bank, nor its connection.
func TestTabsOfTwoKits(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		a.mountCorp()
		a.mux.HandleFunc("/app", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "app", "its own") })
		b := a.browser()
		b.get("/app")
		one, two := b.callbackURL("/p"), b.callbackURL("/corp/p")
		require.Equal(t, "/p", b.follow(b.get(one)).Header.Get("Location"))
		require.Equal(t, "/corp/p", b.follow(b.get(two)).Header.Get("Location"))

		time.Sleep(20 * time.Hour)
		require.Equal(t, "/corp/p", b.loginAt("/corp/login?return_to=/corp/p").Header.Get("Location"))
		time.Sleep(4*time.Hour - time.Minute)
		require.True(t, b.connected(), "the first one's connection lasts as long as the session")
		time.Sleep(time.Hour)
		require.Empty(t, b.get("/app").Header.Get("Location"))
		require.False(t, b.connected())
	})
}

// A login that leaves no other connection in the session gives it its whole life, also where
// another kit's has been given up.
func TestLoginProlongsTheSession(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		site(a)
		a.mountCorp()
		b := a.browser()
		b.get("/app/login?u=alice")
		b.loginAt("/corp/login")
		require.Equal(t, 303, b.post("/corp/logout").StatusCode)
		for range 2 {
			time.Sleep(20 * time.Hour)
			b.login()
			ctx, err := a.sessions.Load(t.Context(), b.cookie("session"))
			require.NoError(t, err)
			require.Equal(t, 24*time.Hour, time.Until(a.sessions.Deadline(ctx)))
			require.Equal(t, "alice", a.sessions.GetString(ctx, "user"))
		}
	})
}

// A connection lasts as long as the session, though another one's login renews it.
func TestConnectionsEndWithTheSession(t *testing.T) {
	inBubble(t, office(false), func(t *testing.T, a *app) {
		b := a.browser()
		ends := func() time.Time {
			ctx, err := a.sessions.Load(t.Context(), b.cookie("session"))
			require.NoError(t, err)
			return a.sessions.Deadline(ctx)
		}
		b.loginAt("/p?client=a")
		end := ends()
		time.Sleep(20 * time.Hour)
		b.loginAt("/p?client=b")
		require.Equal(t, end, ends())
		time.Sleep(4*time.Hour - time.Minute)
		require.Equal(t, 200, b.do("GET", "/p?client=a", program).StatusCode)
		require.Equal(t, 200, b.do("GET", "/p?client=b", program).StatusCode)
	})
}
