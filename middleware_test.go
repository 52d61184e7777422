package ganbauth_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func TestWithoutToken(t *testing.T) {
	for name, test := range map[string]struct {
		method string
		h      http.Header
		status int
	}{
		"a navigation":                   {"GET", navigate, 303},
		"a navigation of an old browser": {"GET", header("Accept", "text/html,*/*"), 303},
		"Accept: application/json":       {"GET", program, 401},
		"nothing said":                   {"GET", http.Header{}, 401},
		"fetch()":                        {"GET", header("Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Accept", "text/html"), 401},
		"X-Requested-With":               {"GET", header("Accept", "text/html", "X-Requested-With", "XMLHttpRequest"), 401},
		"WebSocket":                      {"GET", header("Accept", "text/html", "Upgrade", "websocket"), 401},
		"an iframe":                      {"GET", with(navigate, "Sec-Fetch-Dest", "iframe"), 401},
		"POST":                           {"POST", navigate, 401},
		"DELETE":                         {"DELETE", navigate, 401},
		"OPTIONS":                        {"OPTIONS", header("Origin", "https://evil.example", "Access-Control-Request-Method", "GET"), 401},
		"HEAD":                           {"HEAD", navigate, 401},
		"Range":                          {"GET", with(program, "Range", "bytes=0-9"), 401},
		"a prefetch":                     {"GET", with(navigate, "Sec-Purpose", "prefetch"), 401},
		"a Bearer token":                 {"GET", with(program, "Authorization", "Bearer x", "X-Access-Token", "x", "X-User", "alice", "User-Agent", "healthcheck"), 401},
		"a malformed Bearer token":       {"GET", with(program, "Authorization", "Bearer %E0%A4%A"), 401},
		"cookies":                        {"GET", with(program, "Cookie", "access_token=x; user=alice; auth=1"), 401},
		"proxies' headers":               {"GET", with(program, "X-Forwarded-Uri", "/home", "X-Original-URL", "/home", "X-Rewrite-URL", "/home"), 401},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			resp := b.do(test.method, "/p?access_token=x&auth=1", test.h)
			require.Equal(t, test.status, resp.StatusCode)
			require.Zero(t, a.next.calls(), "next is not called")
			require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
			require.Empty(t, b.cookie("session"), "no session is made")
			require.NotContains(t, body(resp), "served")
			if test.status == 303 {
				require.Contains(t, resp.Header.Get("Location"), a.bank.URL)
				require.Empty(t, body(resp))
				return
			}
			require.Empty(t, resp.Header.Get("Location"))
			require.Empty(t, resp.Header["Set-Cookie"])
			require.Equal(t, `Bearer realm="bank"`, resp.Header.Get("WWW-Authenticate"))
		})
	}
	t.Run("problem details", func(t *testing.T) {
		resp := newApp(t, setup{}).browser().do("GET", "/p", program)
		require.Equal(t, "application/problem+json; charset=utf-8", resp.Header.Get("Content-Type"))
		var problem struct {
			Type, Title, Detail string
			Status              int
		}
		require.NoError(t, json.Unmarshal([]byte(body(resp)), &problem))
		require.Equal(t, "about:blank", problem.Type)
		require.Equal(t, "Unauthorized", problem.Title)
		require.Equal(t, 401, problem.Status)
		require.NotEmpty(t, problem.Detail)
	})
	t.Run("HTMX", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		resp := b.do("GET", "/p/part", header("HX-Request", "true", "HX-Current-URL", appURL+"/p/page?x=1", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"))
		require.Equal(t, 401, resp.StatusCode)
		require.Equal(t, "/p/page?x=1", b.get(a.bank.Approve(resp.Header.Get("HX-Redirect"))).Header.Get("Location"))
		resp = b.do("GET", "/transfer", header("HX-Request", "true", "HX-Current-URL", "https://evil.example//evil.example"))
		require.Equal(t, "/home", b.get(a.bank.Approve(resp.Header.Get("HX-Redirect"))).Header.Get("Location"))
	})
	t.Run("100,000 anonymous requests leave nothing", func(t *testing.T) {
		a := newApp(t, setup{})
		for range 100_000 {
			w := httptest.NewRecorder()
			a.handler.ServeHTTP(w, httptest.NewRequest("GET", "/p", nil))
			if w.Code != 401 || len(w.Header()["Set-Cookie"]) != 0 {
				t.Fatalf("got %d %v", w.Code, w.Header())
			}
		}
		require.Empty(t, sessionsOf(a))
	})
	t.Run("a session of another manager", func(t *testing.T) {
		a, other := newApp(t, setup{}), newApp(t, setup{})
		b := other.browser()
		b.login()
		require.Equal(t, 401, a.browser().do("GET", "/p", with(program, "Cookie", "session="+b.cookie("session"))).StatusCode)
	})
}

func sessionsOf(a *app) map[string][]byte {
	all, err := a.sessions.Store.(scs.IterableStore).All()
	require.NoError(a.t, err)
	return all
}

func TestReturnsToWhereTheUserWanted(t *testing.T) {
	a := newApp(t, setup{})
	for _, path := range []string{"/p?a=1&b=%2F%2Fevil", "/p/%E6%97%A5%E6%9C%AC", "/p/x;y=1", "/p"} {
		b := a.browser()
		require.Equal(t, path, b.get(b.callbackURL(path)).Header.Get("Location"))
	}
	t.Run("behind StripPrefix", func(t *testing.T) {
		a := newApp(t, setup{})
		a.mux.Handle("/sub/", http.StripPrefix("/sub", a.kit.RequireToken(a.next)))
		b := a.browser()
		require.Equal(t, "/sub/x?y=1", b.get(b.callbackURL("/sub/x?y=1")).Header.Get("Location"))

		a.mux.Handle("/sub/login", http.StripPrefix("/sub", a.kit.LoginHandler()))
		b = a.browser()
		require.Equal(t, "/home", b.get(b.callbackURL("/sub/login?return_to=/sub/login")).Header.Get("Location"))
	})
}

// A RedirectURI without a path leads to the root.
func TestRedirectURIWithoutAPath(t *testing.T) {
	a := newApp(t, setup{options: ganbauth.Options{RedirectURI: appURL}})
	require.NotContains(t, a.log.String(), "level=WARN")
	a.handler = a.sessions.LoadAndSave(a.kit.RequireToken(a.next))
	b := a.browser()
	resp := b.get(strings.Replace(b.callbackURL("/p"), "?", "/?", 1)) // as browsers ask for it
	require.Equal(t, "/p", resp.Header.Get("Location"))
	require.Equal(t, 200, b.get("/p").StatusCode)
}

func TestScopes(t *testing.T) {
	transferScopes := []string{"openid", "offline_access", "private:account", "private:transfer"}
	t.Run("a browser is sent to consent to the missing ones, too", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.login()
		authURL := b.authorizationURL("/transfer")
		require.Equal(t, strings.Join(transferScopes, " "), mustParse(authURL).Query().Get("scope"))
		require.Equal(t, "/transfer", b.get(a.bank.Approve(authURL)).Header.Get("Location"))
		require.Equal(t, 200, b.get("/transfer").StatusCode)
		require.True(t, b.connected())
	})
	t.Run("and to those that another route has asked for before", func(t *testing.T) {
		a := newApp(t, setup{})
		a.mux.Handle("/bulk", a.kit.RequireScopes("private:bulk-transfer")(a.next))
		b := a.browser()
		require.Equal(t, 303, b.get(b.callbackURL("/transfer")).StatusCode)
		require.Equal(t, strings.Join(transferScopes, " ")+" private:bulk-transfer",
			mustParse(b.authorizationURL("/bulk")).Query().Get("scope"))
	})
	t.Run("a program gets 403", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.login()
		resp := b.do("POST", "/transfer", program)
		require.Equal(t, 403, resp.StatusCode)
		require.Equal(t, `Bearer realm="bank", error="insufficient_scope", scope="private:transfer"`, resp.Header.Get("WWW-Authenticate"))
		require.Zero(t, a.next.calls())
	})
	t.Run("without any token all are asked for at once", func(t *testing.T) {
		a := newApp(t, setup{})
		require.Equal(t, strings.Join(transferScopes, " "), mustParse(a.browser().authorizationURL("/transfer")).Query().Get("scope"))
	})
	t.Run("E3 scopes that no login can ask for are an error, not a round trip without end", func(t *testing.T) {
		for name, scopes := range map[string][]string{
			"two in one":     {"private:transfer private:x"},
			"an empty one":   strings.Split("", ","),
			"with the quote": {`private:"transfer"`},
			"too long":       {strings.Repeat("x", 250)},
		} {
			t.Run(name, func(t *testing.T) {
				a := newApp(t, setup{})
				a.mux.Handle("/impossible", a.kit.RequireScopes(scopes...)(a.next))
				require.Equal(t, 1, strings.Count(a.log.String(), "level=ERROR"), "said at once")
				b := a.browser()
				require.Equal(t, 500, b.get("/impossible").StatusCode)
				b.login()
				require.Equal(t, 500, b.get("/impossible").StatusCode)
				require.Equal(t, 500, b.do("GET", "/impossible", program).StatusCode)
				require.Zero(t, a.next.calls())
			})
		}
	})
	t.Run("E3 what is asked for is not too long because of what was granted", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			long := strings.Repeat("x", 120)
			a.mux.Handle("/one", a.kit.RequireScopes(long+"1")(a.next))
			a.mux.Handle("/two", a.kit.RequireScopes(long+"2")(a.next))
			b := a.browser()
			for _, path := range []string{"/one", "/two", "/one"} {
				require.Equal(t, path, b.get(b.callbackURL(path)).Header.Get("Location"))
				require.Equal(t, 200, b.get(path).StatusCode)
				time.Sleep(time.Minute)
			}
		})
	})
	t.Run("what another SDK was granted is asked for if this kit can", func(t *testing.T) {
		a := newApp(t, setup{
			config: func(c *ganbauth.Config) { c.JWTIssuer = "" }, // so openid cannot be asked for
			options: ganbauth.Options{
				Scopes: []string{"offline_access", "private:account"},
				Store:  ganbauth.NewMemoryStore(),
				Key:    keyIs("u"),
			},
		})
		require.NoError(t, a.kit.SetToken(t.Context(), "u", &ganbauth.Token{
			AccessToken: "AT", Scope: `openid offline_access private:"account" private:x`, ExpiresAt: time.Now().Add(time.Hour),
		}))
		b := a.browser()
		authURL := b.authorizationURL("/transfer")
		require.Equal(t, "offline_access private:account private:x private:transfer", mustParse(authURL).Query().Get("scope"))
		require.Equal(t, "/transfer", b.get(a.bank.Approve(authURL)).Header.Get("Location"))
		require.Equal(t, 200, b.get("/transfer").StatusCode)
	})
	t.Run("a user who does not grant them is told, not sent round", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.login()
		require.Equal(t, 303, b.get(a.bank.ApproveOnly(b.authorizationURL("/transfer"), transferScopes[:3]...)).StatusCode)
		resp := b.get("/transfer")
		require.Equal(t, 403, resp.StatusCode)
		require.Contains(t, body(resp), `href="/transfer"`)
		require.Equal(t, 303, b.get("/transfer").StatusCode, "trying again asks the bank")
		require.True(t, b.connected(), "what was granted stays")
	})
	t.Run("RequireToken looks at none, those of Options included", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		require.Equal(t, 303, b.get(a.bank.ApproveOnly(b.authorizationURL("/p"), "openid")).StatusCode)
		require.Equal(t, 200, b.get("/p").StatusCode)
	})
}

// A login that comes straight back without a usable token ends in a page, not in a loop.
func TestNoLoop(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		b.get(b.callbackURL("/p"))
		forgetful := a.browser().do("GET", "/p", with(navigate, "Cookie", without(b.cookies(), "session")))
		require.Equal(t, 401, forgetful.StatusCode)
		require.Contains(t, forgetful.Header.Get("Content-Type"), "text/html")
		require.Contains(t, body(forgetful), `href="/p"`)
		require.Contains(t, forgetful.Header.Get("Set-Cookie"), "Max-Age=0", "the next try is free")
		time.Sleep(31 * time.Second)
		again := a.browser().do("GET", "/p", with(navigate, "Cookie", without(b.cookies(), "session")))
		require.Equal(t, 303, again.StatusCode)
	})
}

func without(cookies []*http.Cookie, name string) string {
	var kept []string
	for _, c := range cookies {
		if c.Name != name {
			kept = append(kept, c.String())
		}
	}
	return strings.Join(kept, "; ")
}

func TestKey(t *testing.T) {
	newKeyed := func(t *testing.T, key func(*http.Request) (string, error)) (*app, *brokenStore) {
		store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		return newApp(t, setup{options: ganbauth.Options{Key: key, Store: store, Name: "bank"}}), store
	}
	byHeader := func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }
	t.Run("tokens belong to the application's user, in every browser", func(t *testing.T) {
		a, store := newKeyed(t, byHeader)
		b := a.browser()
		alice := with(navigate, "X-User", "alice")
		resp := b.do("GET", "/bank/login", alice)
		require.Equal(t, 303, b.do("GET", a.bank.Approve(resp.Header.Get("Location")), alice).StatusCode)
		require.Equal(t, 200, a.browser().do("GET", "/p", with(program, "X-User", "alice")).StatusCode)
		require.Equal(t, 401, a.browser().do("GET", "/p", with(program, "X-User", "bob")).StatusCode)
		_, err := store.Load(t.Context(), "bank/alice")
		require.NoError(t, err)

		token, err := a.kit.Token(t.Context(), "alice")
		require.NoError(t, err)
		require.Empty(t, token.RefreshToken)
		got, err := a.kit.ClientFor("alice").Get(a.bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, got.StatusCode)
		require.NoError(t, a.kit.Disconnect(t.Context(), "alice"))
		require.NoError(t, a.kit.Disconnect(t.Context(), "alice"))
		_, err = a.kit.Token(t.Context(), "alice")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		_, err = a.kit.ClientFor("alice").Get(a.bank.APIBase() + "/accounts")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	})
	t.Run("nobody to connect: 401, and no way to the bank", func(t *testing.T) {
		for _, key := range []func(*http.Request) (string, error){
			byHeader,
			func(*http.Request) (string, error) { return "", fmt.Errorf("anonymous: %w", ganbauth.ErrLoginRequired) },
		} {
			a, _ := newKeyed(t, key)
			b := a.browser()
			for _, path := range []string{"/p", "/bank/login"} {
				resp := b.get(path)
				require.Equal(t, 401, resp.StatusCode)
				require.Empty(t, b.cookies())
			}
			require.JSONEq(t, `{"connected":false,"scopes":[]}`, body(b.do("GET", "/bank/status", program)))
			require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		}
	})
	t.Run("a Key that fails fails closed", func(t *testing.T) {
		a, _ := newKeyed(t, func(*http.Request) (string, error) { return "alice", errors.New("the database is down") })
		b := a.browser()
		for _, path := range []string{"/p", "/bank/login", "/bank/status"} {
			require.Equal(t, 500, b.get(path).StatusCode)
		}
		require.Equal(t, 500, b.post("/bank/logout").StatusCode)
		require.Zero(t, a.next.calls())
	})
	t.Run("a key that is too long", func(t *testing.T) {
		a, _ := newKeyed(t, func(*http.Request) (string, error) { return strings.Repeat("k", 1025), nil })
		require.Equal(t, 500, a.browser().get("/p").StatusCode)
	})
	t.Run("an application that has no session gets none", func(t *testing.T) {
		a, _ := newKeyed(t, keyIs("alice"))
		b := a.browser()
		b.login()
		require.True(t, b.connected())
		require.Empty(t, b.cookie("session"))
	})
	t.Run("the default store with the application's keys", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Key: keyIs("alice")}})
		a.browser().login()
		require.True(t, a.browser().connected())
	})
}

func TestCheck(t *testing.T) {
	a := newApp(t, setup{})
	a.mux.HandleFunc("/check", func(w http.ResponseWriter, r *http.Request) {
		token, err := a.kit.Check(r)
		if err != nil {
			w.WriteHeader(ganbauth.StatusCode(err))
			return
		}
		require.Empty(t, token.RefreshToken)
		io.WriteString(w, token.Subject)
	})
	b := a.browser()
	require.Equal(t, 401, b.get("/check").StatusCode)
	require.Empty(t, b.cookies(), "it writes nothing")
	b.login()
	require.NotEmpty(t, body(b.get("/check")))
}

// A Kit that New did not make lets nobody through, and does not panic.
func TestZeroKit(t *testing.T) {
	next := &spy{}
	for name, kit := range map[string]*ganbauth.Kit{"nil": nil, "zero": {}} {
		t.Run(name, func(t *testing.T) {
			for _, h := range []http.Handler{
				kit.RequireToken(next), kit.RequireScopes("x")(next), kit.LoginHandler(), kit.CallbackHandler(), kit.LogoutHandler(), kit.StatusHandler(),
			} {
				for _, hdr := range []http.Header{navigate, program} {
					for _, target := range []string{"/", "/bank/callback?state=x"} {
						w, r := httptest.NewRecorder(), httptest.NewRequest("GET", target, nil)
						r.Header = hdr
						h.ServeHTTP(w, r)
						require.Equal(t, 500, w.Code, target)
						require.NotContains(t, w.Body.String(), "login_url")
					}
				}
			}
			_, err := kit.Check(httptest.NewRequest("GET", "/", nil))
			require.Error(t, err)
			_, err = kit.Token(t.Context(), "k")
			require.Error(t, err)
			require.Error(t, kit.Disconnect(t.Context(), "k"))
			require.Error(t, kit.SetToken(t.Context(), "k", &ganbauth.Token{AccessToken: "a"}))
			require.Error(t, kit.Shutdown(t.Context()))
			for _, client := range []*http.Client{kit.Client(t.Context()), kit.ClientFor("k")} {
				_, err = client.Get("https://api.gmo-aozora.com/")
				require.Error(t, err)
			}
			require.NotEmpty(t, fmt.Sprint(kit))
		})
	}
	require.Zero(t, next.calls())
	_, ok := ganbauth.TokenFromContext(context.Background())
	require.False(t, ok)
}

// OnError is not called again for what a handler of the kit refuses while OnError runs.
func TestOnErrorCallsAHandler(t *testing.T) {
	var logout http.Handler
	calls := 0
	a := newApp(t, setup{options: ganbauth.Options{OnError: func(w http.ResponseWriter, r *http.Request, _ error) {
		if calls++; calls < 5 {
			logout.ServeHTTP(w, r)
		}
	}}})
	logout = a.kit.LogoutHandler()
	resp := a.browser().do("GET", "/p", program)
	require.Equal(t, 405, resp.StatusCode)
	require.Contains(t, body(resp), `"code":"refused"`, "not by OnError")
	require.Equal(t, 1, calls)
}

func TestOnError(t *testing.T) {
	var got []error
	a := newApp(t, setup{options: ganbauth.Options{OnError: func(w http.ResponseWriter, r *http.Request, err error) {
		got = append(got, err)
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		w.WriteHeader(ganbauth.StatusCode(err))
		io.WriteString(w, "my page")
	}}})
	b := a.browser()
	for target, want := range map[string]error{
		"/bank/callback":       ganbauth.ErrInvalidState,
		"/bank/callback?x=%zz": ganbauth.ErrInvalidState,
	} {
		resp := b.get(target)
		require.Equal(t, 400, resp.StatusCode)
		require.Equal(t, "my page", body(resp))
		require.ErrorIs(t, got[len(got)-1], want)
	}
	b.get(a.bank.Deny(b.authorizationURL("/bank/login")))
	var denied *ganbauth.AuthorizationError
	require.ErrorAs(t, got[len(got)-1], &denied)
	require.Equal(t, "access_denied", denied.Code)
	require.Equal(t, 401, b.do("GET", "/p", program).StatusCode)
	require.ErrorIs(t, got[len(got)-1], ganbauth.ErrLoginRequired)
	require.Equal(t, 405, b.get("/bank/logout").StatusCode)
	before := len(got)
	require.Equal(t, 303, b.get("/p").StatusCode)
	require.Len(t, got, before, "a redirect is no refusal")
	require.NotContains(t, a.log.String(), "ganbauth: refused")

	a.mux.HandleFunc("/refused", func(w http.ResponseWriter, r *http.Request) { a.kit.Refuse(w, r, ganbauth.ErrUnavailable) })
	require.Equal(t, 503, b.get("/refused").StatusCode)
	require.Equal(t, 1, strings.Count(a.log.String(), `msg="ganbauth: refused" method=GET path=/refused status=503 `))
}

// What OnError leaves to the kit is answered as without OnError, once: it does not come back
// to OnError, and begins no second login.
func TestOnErrorLeavesTheRest(t *testing.T) {
	left := 0
	answers := func(leaves bool) (all []string) {
		var a *app
		var options ganbauth.Options
		if leaves {
			options.OnError = func(w http.ResponseWriter, r *http.Request, err error) {
				left++
				a.kit.Refuse(w, r, err)
			}
		}
		a = newApp(t, setup{options: options})
		a.mux.HandleFunc("/refused", func(w http.ResponseWriter, r *http.Request) { a.kit.Refuse(w, r, ganbauth.ErrUnavailable) })
		for _, resp := range []*http.Response{
			a.browser().do("GET", "/p", with(program, "Referer", appURL+"/home")),
			a.browser().do("POST", "/p", with(navigate, "Sec-Fetch-Site", "same-origin", "Referer", appURL+"/form")),
			a.browser().do("GET", "/p", header("HX-Request", "true", "HX-Boosted", "true")),
			a.browser().get("/refused"),
			a.browser().do("GET", "/refused", program),
			a.browser().get("/bank/callback?code=a&state=b"),
			a.browser().do("GET", "/bank/login", with(navigate, "Sec-Purpose", "prefetch")),
			a.browser().get("/bank/logout"),
		} {
			cookies := len(resp.Cookies())
			resp.Header.Del("Set-Cookie")
			if to := resp.Header.Get("HX-Redirect"); to != "" {
				resp.Header.Set("HX-Redirect", mustParse(to).Path)
			}
			all = append(all, fmt.Sprint(resp.StatusCode, cookies, resp.Header, body(resp)))
		}
		require.Equal(t, 2, strings.Count(a.log.String(), "ganbauth: refused"))
		b := a.browser()
		return append(all, body(b.get(a.bank.Deny(b.authorizationURL("/bank/login?return_to=/p")))))
	}
	want := answers(false)
	require.Equal(t, want, answers(true))
	require.Equal(t, len(want), left)
}

func TestPages(t *testing.T) {
	a := newApp(t, setup{})
	for accept, lang := range map[string]string{
		"":                             "en",
		"ja":                           "ja",
		"ja-JP,ja;q=0.9,en;q=0.8":      "ja",
		"en-US,en;q=0.9,ja;q=0.8":      "en",
		"fr,ja;q=0.5":                  "ja",
		"fr":                           "en",
		"en;q=0.2, JA ; q=0.7":         "ja",
		"ja;q=0":                       "en",
		"ja;q=x":                       "en",
		"ja;q=2":                       "en",
		"ja;q=-1":                      "en",
		"ja;q=NaN":                     "en",
		"ja;level=1;q=0.9, en;q=0.8":   "ja",
		"ja;Q=0.9, en;q=0.8":           "ja",
		"ja_JP":                        "ja",
		"ja,en":                        "ja",
		"ja-JP,en-US":                  "ja",
		"en-US,ja":                     "en",
		"ja,*":                         "ja",
		"ja;q=0,en;q=0":                "en",
		"jav, ja-":                     "ja",
		"jav":                          "en",
		"*":                            "en",
		"en;q=0.1, *;q=0.5":            "ja",
		"ja;q=0, *":                    "en",
		"fr\nja":                       "ja",
		", ;;q=,=,":                    "en",
		strings.Repeat("ja;q=0,", 100): "en",
	} {
		h := navigate.Clone()
		h["Accept-Language"] = strings.Split(accept, "\n")
		resp := a.browser().do("GET", "/bank/callback", h)
		require.Contains(t, body(resp), `<html lang="`+lang+`">`, accept)
	}
	resp := a.browser().get("/bank/callback")
	require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
	require.Regexp(t, `^default-src 'none'; style-src 'sha256-[^']+'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$`,
		resp.Header.Get("Content-Security-Policy"))
	require.NotContains(t, body(resp), "http", "no external resources")
	require.Contains(t, body(resp), `href="/home"`)
}

// A page says what is whose fault.
func TestPageTexts(t *testing.T) {
	broken := newApp(t, setup{options: ganbauth.Options{Key: func(*http.Request) (string, error) { return "", errors.New("x") }}})
	require.Contains(t, body(broken.browser().get("/p")), "Something went wrong on our side")
	a := newApp(t, setup{})
	method := body(a.browser().get("/bank/logout"))
	require.Contains(t, method, "Something went wrong with this request")
	require.Contains(t, method, `href="/home"`)
	require.Contains(t, body(a.browser().get("/bank/callback")), "The link has expired, or it was opened in a different browser")
}

// RequireToken does not wrap the ResponseWriter.
func TestResponseWriterIsNotWrapped(t *testing.T) {
	a := newApp(t, setup{})
	b := a.browser()
	b.login()
	var got http.ResponseWriter
	a.next.serve = func(w http.ResponseWriter, _ *http.Request) { got = w }
	var given http.ResponseWriter
	h := a.handler
	a.handler = a.sessions.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given = w
		a.mux.ServeHTTP(w, r)
	}))
	require.True(t, b.connected())
	require.Same(t, given, got)
	a.handler = h

	t.Run("hijacking and flushing on a real server", func(t *testing.T) {
		a.next.serve = func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, http.NewResponseController(w).Flush())
			conn, _, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
			defer conn.Close()
			io.WriteString(conn, "hijacked")
		}
		server := httptest.NewServer(a.handler)
		defer server.Close()
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		fmt.Fprintf(conn, "GET /p HTTP/1.1\r\nHost: app.example\r\nCookie: session=%s\r\n\r\n", b.cookie("session"))
		data, err := io.ReadAll(bufio.NewReader(conn))
		require.NoError(t, err)
		require.Contains(t, string(data), "hijacked")
	})
	t.Run("the handler's own Cache-Control stays", func(t *testing.T) {
		a.next.serve = func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Cache-Control", "max-age=5") }
		resp := b.get("/p")
		require.Equal(t, []string{"max-age=5"}, resp.Header["Cache-Control"])
		require.Empty(t, resp.Header["Set-Cookie"], "nothing is written for a live token")
	})
}

// A context that outlives its request keeps its own user's token.
func TestContextOutlivesRequest(t *testing.T) {
	a := newApp(t, setup{})
	var contexts []context.Context
	a.next.serve = func(_ http.ResponseWriter, r *http.Request) { contexts = append(contexts, r.Context()) }
	for range 2 {
		b := a.browser()
		b.login()
		b.connected()
	}
	first, ok := ganbauth.TokenFromContext(contexts[0])
	require.True(t, ok)
	second, _ := ganbauth.TokenFromContext(contexts[1])
	require.NotEqual(t, first.Subject, second.Subject)
	first.AccessToken = "changed"
	again, _ := ganbauth.TokenFromContext(contexts[1])
	require.NotEqual(t, "changed", again.AccessToken)
}

// What a live token costs beside the session that is loaded anyway: the request, its
// context and what is in it; the token and its bytes; and twice the name of scs's value
// in a context. One allocation costs about 30 ns of some 2 µs.
func TestLivePathAllocations(t *testing.T) {
	for name, c := range map[string]struct {
		keys [][]byte
		more float64
	}{
		"in clear": {nil, 7},
		"sealed":   {[][]byte{key(1)}, 9}, // what the seal is bound to, and the opened bytes
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{options: ganbauth.Options{EncryptionKeys: c.keys}})
			b := a.browser()
			b.login()
			allocations := func(path string) float64 {
				r := httptest.NewRequest("GET", appURL+path, nil)
				for _, c := range b.cookies() {
					r.AddCookie(c)
				}
				w := httptest.NewRecorder()
				n := testing.AllocsPerRun(1000, func() { a.handler.ServeHTTP(w, r) })
				require.Equal(t, 200, w.Code)
				return n
			}
			a.mux.HandleFunc("/open", func(http.ResponseWriter, *http.Request) {})
			a.mux.Handle("/protected", a.kit.RequireToken(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
			require.LessOrEqual(t, allocations("/protected")-allocations("/open"), c.more)
		})
	}
}

// oddContext is a router's context that Go cannot compare.
type oddContext struct {
	context.Context
	_ []string
}

func TestContextsThatCannotBeCompared(t *testing.T) {
	for _, bare := range []bool{false, true} {
		a := newApp(t, setup{bare: bare})
		b := a.browser()
		b.login()
		inner := a.handler
		a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			inner.ServeHTTP(w, r.WithContext(oddContext{Context: r.Context()}))
		})
		require.True(t, b.connected())
		mux := a.mux
		a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			if !bare {
				ctx, _ = a.sessions.Load(ctx, b.cookie("session"))
			}
			mux.ServeHTTP(w, r.WithContext(oddContext{Context: ctx}))
		})
		require.True(t, b.connected())
	}
}

// What helps a request that is refused.
func TestRemedies(t *testing.T) {
	a := newApp(t, setup{sessions: func(m *scs.SessionManager) { m.Cookie.SameSite = http.SameSiteStrictMode }})
	b := a.browser()
	b.login()
	session := b.cookie("session")
	htmx := header("HX-Request", "true", "HX-Current-URL", appURL+"/p")
	form := with(navigate, "Sec-Fetch-Site", "same-origin")
	away := ganbauth.Unavailable(errors.New("the store"))
	lacks := fmt.Errorf("%w", ganbauth.ErrInsufficientScope)
	for _, c := range []struct {
		name                  string
		method                string
		header                http.Header
		cookie                string // of the session
		err                   error
		hasPath, straightBack bool
		want                  string
	}{
		{"a navigation", "GET", navigate, session, ganbauth.ErrLoginRequired, true, false, "connect"},
		{"HTMX", "GET", htmx, session, ganbauth.ErrLoginRequired, true, false, "connect"},
		{"scopes are missing", "GET", navigate, session, lacks, true, false, "connect"},
		{"a program", "GET", program, session, ganbauth.ErrLoginRequired, true, false, "none"},
		{"a form", "POST", form, session, ganbauth.ErrLoginRequired, true, false, "none"},
		{"the store is away", "GET", navigate, session, away, true, false, "none"},
		{"nobody is logged in to the application", "GET", navigate, session, ganbauth.ErrNoUser, true, false, "none"},
		{"after a login", "GET", navigate, session, ganbauth.ErrLoginRequired, true, true, "stop"},
		{"HTMX after a login", "GET", htmx, session, ganbauth.ErrLoginRequired, true, true, "stop"},
		{"a program after a login", "GET", program, session, ganbauth.ErrLoginRequired, true, true, "none"},

		{"the cookie stayed behind", "GET", navigate, "", ganbauth.ErrLoginRequired, true, false, "ask again"},
		{"the cookie stayed behind, and nobody is logged in", "GET", navigate, "", ganbauth.ErrNoUser, true, false, "ask again"},
		{"the cookie stayed behind, and scopes are missing", "GET", navigate, "", lacks, true, false, "connect"},
		{"the cookie stayed behind, and the store is away", "GET", navigate, "", away, true, false, "none"},
		{"the cookie stayed behind, and there is no path", "GET", navigate, "", ganbauth.ErrLoginRequired, false, false, "connect"},
		{"the cookie stayed behind, HTMX", "GET", htmx, "", ganbauth.ErrLoginRequired, true, false, "connect"},

		{"the session is gone after a login", "GET", navigate, "gone", ganbauth.ErrLoginRequired, true, true, "ask again soon"},
		{"the session is gone after a login, and there is no path", "GET", navigate, "gone", ganbauth.ErrLoginRequired, false, true, "stop"},
		{"the session is gone after a login, HTMX", "GET", htmx, "gone", ganbauth.ErrLoginRequired, true, true, "stop"},
		{"the session is gone after a login, and scopes are missing", "GET", navigate, "gone", lacks, true, true, "stop"},
		{"the session is gone", "GET", navigate, "gone", ganbauth.ErrLoginRequired, true, false, "connect"},
	} {
		r := httptest.NewRequest(c.method, "/p", nil)
		r.Header = c.header.Clone()
		if c.cookie != "" {
			r.AddCookie(&http.Cookie{Name: "session", Value: c.cookie})
		}
		require.Equal(t, c.want, ganbauth.RemedyFor(a.kit, r, c.err, c.hasPath, c.straightBack), c.name)
		if c.want == "ask again soon" {
			again := httptest.NewRequest(c.method, ganbauth.Marked(a.kit, "/p", 3), nil)
			again.Header = r.Header
			r = again
			require.Equal(t, "stop", ganbauth.RemedyFor(a.kit, r, c.err, c.hasPath, c.straightBack), "three times at most")
		}
	}
}

// A token is gone if the session names one, and the store says that it is not there.
func TestTokenIsGone(t *testing.T) {
	some := keyIs("u")
	for name, c := range map[string]struct {
		key, connection       func(*http.Request) (string, error)
		handle, stored, fails bool
		want                  bool
	}{
		"gone":                {handle: true, want: true},
		"there":               {handle: true, stored: true},
		"the store fails":     {handle: true, fails: true},
		"none was there":      {},
		"by Key":              {key: some},
		"several connections": {handle: true, connection: some},
	} {
		memory := ganbauth.NewMemoryStore()
		broken := &brokenStore{TokenStore: memory}
		a := newApp(t, setup{options: ganbauth.Options{Store: broken, Key: c.key, Connection: c.connection}})
		ctx, err := a.sessions.Load(t.Context(), "")
		require.NoError(t, err)
		if c.handle {
			a.sessions.Put(ctx, "ganbauth.bank", "bank/;A")
		}
		if c.stored {
			require.NoError(t, memory.Save(t.Context(), "bank/;A", a.bank.Token()))
		}
		if c.fails {
			broken.set(errStep, nil, nil)
		}
		require.Equal(t, c.want, ganbauth.TokenIsGone(a.kit, httptest.NewRequest("GET", "/p", nil).WithContext(ctx)), name)
	}
	e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
	a := newApp(t, setup{sessions: func(m *scs.SessionManager) { m.Store = e }})
	r := httptest.NewRequest("GET", "/p", nil)
	r.AddCookie(&http.Cookie{Name: "session", Value: "x"})
	e.failNext(1, false)
	require.False(t, ganbauth.TokenIsGone(a.kit, r), "the sessions fail")
}

// A login asks for what was granted before, too, up to 256 characters.
func TestScopesToAsk(t *testing.T) {
	kit := newApp(t, setup{options: ganbauth.Options{Scopes: []string{"openid"}}}).kit
	most := 256 - len("openid  more")
	long := strings.Repeat("x", most)
	require.Equal(t, []string{"openid", long, "more"}, ganbauth.ScopesToAsk(kit, []string{long}, "more"))
	require.Equal(t, []string{"openid", "more"}, ganbauth.ScopesToAsk(kit, []string{long + "x"}, "more"))
}

// The login_url of a refusal is the request's own path, for a GET that a login helps.
func TestLoginURL(t *testing.T) {
	kit := newApp(t, setup{}).kit
	ask := func(method, own string, err error) string {
		return ganbauth.LoginURL(kit, httptest.NewRequest(method, "/p", nil), own, err)
	}
	require.True(t, strings.HasPrefix(ask("GET", "/p", ganbauth.ErrLoginRequired), "/p?"))
	require.True(t, strings.HasPrefix(ask("GET", "/p", fmt.Errorf("%w", ganbauth.ErrInsufficientScope)), "/p?"))
	require.Empty(t, ask("POST", "/p", ganbauth.ErrLoginRequired))
	require.Empty(t, ask("GET", "", ganbauth.ErrLoginRequired))
	require.Empty(t, ask("GET", "/p", ganbauth.ErrNoUser))
	require.Empty(t, ask("GET", "/p", errStep))
}

// Where a login cannot be begun, the request is told why that is.
func TestDenyCannotBegin(t *testing.T) {
	failed := 0
	defer func() { require.GreaterOrEqual(t, failed, 2) }()
	for n := 1; ; n++ {
		e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
		a := newApp(t, setup{bare: true, sessions: func(m *scs.SessionManager) { m.Store = e }})
		token := storeSession(t, a.sessions, "cart", "full")
		met := e.failNext(n, false)
		resp := a.browser().do("GET", "/p", with(navigate, "Cookie", "session="+token))
		if met() == "" {
			require.Greater(t, n, 2, "it looks for the user, and for who begins")
			require.Equal(t, 303, resp.StatusCode)
			return
		}
		require.Contains(t, []int{503, 303}, resp.StatusCode, "call %d", n)
		failed += map[int]int{503: 1}[resp.StatusCode]
	}
}

// A route whose scopes no login can ask for says so to those whom a login would help, and
// whatever else is wrong to the others.
func TestScopesThatNobodyCanGrant(t *testing.T) {
	var met []error
	broken := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
	a := newApp(t, setup{options: ganbauth.Options{
		Store: broken, Key: keyIs("u"),
		OnError: func(w http.ResponseWriter, _ *http.Request, err error) {
			met = append(met, err)
			w.WriteHeader(ganbauth.StatusCode(err))
		},
	}})
	a.mux.Handle("/wrong", a.kit.RequireScopes(strings.Repeat("x", 300))(a.next))
	require.Equal(t, 500, a.browser().get("/wrong").StatusCode)
	require.ErrorContains(t, met[0], "RequireScopes")
	broken.set(errStep, nil, nil)
	require.Equal(t, 503, a.browser().get("/wrong").StatusCode)
	require.ErrorIs(t, met[1], errStep)
}

// A request without a session asks the store for nothing.
func TestAnonymousAsksNoStore(t *testing.T) {
	var keys []string
	a := newApp(t, setup{options: ganbauth.Options{Store: callStore{ganbauth.NewMemoryStore(), func(_, key string) { keys = append(keys, key) }}}})
	require.Equal(t, 401, a.browser().do("GET", "/p", program).StatusCode)
	require.Empty(t, keys)
}

// A user who is connected and follows a login_url is led to the page, and the answer is kept
// nowhere.
func TestLoginURLOfAConnectedUser(t *testing.T) {
	a := newApp(t, setup{})
	b := a.browser()
	var problem struct {
		LoginURL string `json:"login_url"`
	}
	require.NoError(t, json.Unmarshal([]byte(body(b.do("GET", "/p", with(program, "Referer", appURL+"/p/page")))), &problem))
	b.login()
	resp := b.get(problem.LoginURL)
	require.Equal(t, 303, resp.StatusCode)
	require.Equal(t, "/p/page", resp.Header.Get("Location"))
	require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
}

// The bank's API refuses the tokens of a connection that its token endpoint goes on
// refreshing. Only a login helps, and login_url and the form's link begin one; a connection
// made since is left alone.
func TestConnectionThatTheAPIRefuses(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		form := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.next.ServeHTTP(w, r) })
		a.mux.Handle("/form", a.kit.RequireToken(form))
		a.next.serve = func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/form" && r.Method == http.MethodGet {
				return // the form itself asks the bank for nothing
			}
			resp, err := a.kit.Client(r.Context()).Get(a.bank.APIBase() + "/accounts")
			if err == nil {
				defer resp.Body.Close()
				err = ganbauth.CheckResponse(resp)
			}
			if err != nil {
				a.kit.Refuse(w, r, err)
			}
		}
		b := a.browser()
		connect := func() {
			b.login()
			last := a.bank.Grants()[len(a.bank.Grants())-1].Subject
			a.bank.Fail(ganbtest.API, ganbtest.Fault{
				Status: 401, Header: header("Content-Type", "application/json"), Body: `{"errorCode":"WG_ERR_105"}`,
				For: func(r ganbtest.Request) bool { return r.Subject == last },
			}, -1)
			time.Sleep(time.Hour) // nobody takes it for a login that has just returned
		}
		connect()
		here := with(navigate, "Sec-Fetch-Site", "same-origin", "Referer", appURL+"/home")
		loginURL := func() string {
			resp := b.do("GET", "/p", with(program, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Referer", appURL+"/home"))
			require.Equal(t, 401, resp.StatusCode)
			return problemOf(t, resp).LoginURL
		}
		link := loginURL()
		token := a.next.last()
		require.NotContains(t, link, token.Epoch)
		begun := b.do("GET", link, here)
		require.Contains(t, begun.Header.Get("Location"), a.bank.URL)
		require.Equal(t, "/home", b.get(a.bank.Approve(begun.Header.Get("Location"))).Header.Get("Location"))
		require.Equal(t, "/home", b.do("GET", link, here).Header.Get("Location"), "it is connected anew")

		connect()
		resp := b.do("POST", "/form", with(navigate, "Sec-Fetch-Site", "same-origin", "Referer", appURL+"/form"))
		require.Equal(t, 401, resp.StatusCode)
		back := regexp.MustCompile(`href="(/form[^"]*)"`).FindStringSubmatch(body(resp))
		require.NotNil(t, back)
		begun = b.do("GET", html.UnescapeString(back[1]), here)
		require.Contains(t, begun.Header.Get("Location"), a.bank.URL)
		require.Equal(t, "/form", b.get(a.bank.Approve(begun.Header.Get("Location"))).Header.Get("Location"))
	})
}

// Only what the API refuses of a connection that has a name is marked, and only a navigation
// follows the mark.
func TestMarkOfARefusedConnection(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	a := newApp(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}})
	var refuse error
	a.next.serve = func(w http.ResponseWriter, r *http.Request) {
		if refuse != nil {
			a.kit.Refuse(w, r, refuse)
		}
	}
	expired, b := &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105"}, a.browser()
	token := &ganbauth.Token{AccessToken: "a", RefreshToken: "r", TokenType: "Bearer", ExpiresAt: time.Now().Add(time.Hour)}
	for _, epoch := range []string{"", "e"} { // records of the first version have none
		token.Epoch = epoch
		require.NoError(t, store.Save(t.Context(), "bank/u", token))
		for _, refuse = range []error{expired, ganbauth.ErrInsufficientScope} {
			link := problemOf(t, b.do("GET", "/p", program)).LoginURL
			require.Equal(t, epoch != "" && refuse == expired, strings.Contains(link, "ganb.bank.refused="), link)
			refuse = nil
			require.Equal(t, 200, b.do("GET", link, program).StatusCode)
			atBank := strings.HasPrefix(b.get(link).Header.Get("Location"), a.bank.URL)
			require.Equal(t, strings.Contains(link, "refused="), atBank)
		}
	}
	refuse = expired
	resp := b.do("POST", "/p", with(navigate, "Sec-Fetch-Site", "same-origin"))
	require.Equal(t, 401, resp.StatusCode)
	require.NotContains(t, body(resp), "refused=", "there is no page to mark")
}

// A login_url that another site has made up sends nobody anywhere: with a Strict session the
// kit's own reload would lend it the cookie.
func TestLoginURLOfAnotherSite(t *testing.T) {
	a := newApp(t, setup{sessions: func(m *scs.SessionManager) { m.Cookie.SameSite = http.SameSiteStrictMode }})
	b := a.browser()
	b.login()
	resp := b.arrive("/p?ganb.bank.return_to=%2Fitems%2Fdelete%3Fid%3D1", with(navigate, "Sec-Fetch-Site", "cross-site"))
	_, target, ok := strings.Cut(resp.Header.Get("Refresh"), "; url=")
	require.True(t, ok)
	resp = b.do("GET", target, with(navigate, "Sec-Fetch-Site", "same-origin"))
	require.Equal(t, 200, resp.StatusCode)
	require.Empty(t, resp.Header.Get("Location"))
}

// A handler behind RequireScopes refuses what the bank's API has refused. One consent is
// enough: the login asks for what the route needs.
func TestRefuseAsksForTheRoutesScopes(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		require.Equal(t, 303, b.get(b.callbackURL("/transfer")).StatusCode)
		time.Sleep(time.Minute)
		a.next.serve = func(w http.ResponseWriter, r *http.Request) {
			a.kit.Refuse(w, r, &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105"})
		}
		callback := b.callbackURL("/transfer")
		a.next.serve = nil
		require.Equal(t, "/transfer", b.get(callback).Header.Get("Location"))
		require.Equal(t, 200, b.get("/transfer").StatusCode)
	})
}
