package e2e

import (
	"context"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// site is an application on localhost, with its bank on 127.0.0.1: to a browser these are two sites.
type site struct {
	url        string
	bank       *ganbtest.Server
	store      ganbauth.TokenStore
	mux        *http.ServeMux // for more pages
	prefetched atomic.Int32   // the status of the answer to what the browser said to be a prefetch
}

// newSite serves protected pages below /p/ that show their number and the cart, and a page / that puts a thing into
// the cart and holds body.
func newSite(t *testing.T, sameSite http.SameSite, body string) *site {
	t.Helper()
	s := &site{bank: ganbtest.NewServer(ganbtest.Options{Consent: true}), store: ganbauth.NewMemoryStore(), mux: http.NewServeMux()}
	t.Cleanup(s.bank.Close)
	sessions := scs.New()
	sessions.Cookie.SameSite = sameSite
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Sec-Purpose"), "prefetch") && strings.HasPrefix(r.URL.Path, "/bank/") {
			answer := httptest.NewRecorder()
			sessions.LoadAndSave(s.mux).ServeHTTP(answer, r)
			s.prefetched.Store(int32(answer.Code))
			w.WriteHeader(answer.Code)
			return
		}
		sessions.LoadAndSave(s.mux).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	connector, err := ganbauth.NewConnector(s.bank.ClientID, s.bank.ClientSecret, s.bank.AuthMethod, s.bank.Config())
	require.NoError(t, err)
	kit, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI:   s.url + "/bank/callback",
		Scopes:        []string{"openid", "offline_access"},
		Key:           func(*http.Request) (string, error) { return "the user", nil },
		Store:         s.store,
		DefaultReturn: "/p/home",
		Logger:        slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	s.mux.Handle("/bank/login", kit.LoginHandler())
	s.mux.Handle("/bank/callback", kit.CallbackHandler())
	s.mux.Handle("/p/{page}", kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "page %s, cart %s", html.EscapeString(r.PathValue("page")), sessions.GetString(r.Context(), "cart"))
	})))
	s.mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		sessions.Put(r.Context(), "cart", "full")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!doctype html><title>Shop</title>"+body)
	})
	return s
}

// connected leaves the user with a token whose life is over.
func (s *site) connected(t *testing.T) {
	t.Helper()
	token := s.bank.Token()
	token.ExpiresAt = time.Now().Add(-time.Hour)
	require.NoError(t, s.store.Save(t.Context(), "the user", token))
}

// tab opens another tab of the browser.
func tab(t *testing.T, browser context.Context) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	return ctx
}

func location(t *testing.T, ctx context.Context) string {
	t.Helper()
	url, err := chromedp.Run(ctx, chromedp.Evaluate[string]("location.href"))
	require.NoError(t, err)
	return url
}

func evaluate[T any](t *testing.T, ctx context.Context, script string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	require.NoError(t, err)
	return v
}

// press finds the link or button by Tab, sees that its focus shows, and presses Enter.
func press(t *testing.T, ctx context.Context, label string) {
	t.Helper()
	for range 20 {
		require.NoError(t, chromedp.Do(ctx, chromedp.KeyEvent(kb.Tab)))
		focus := evaluate[[]string](t, ctx, `[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]`)
		if strings.TrimSpace(focus[0]) == label {
			require.NotEqual(t, "none", focus[1], label)
			require.NoError(t, chromedp.Do(ctx, chromedp.KeyEvent(kb.Enter)))
			return
		}
	}
	require.Fail(t, "the keyboard does not reach "+label)
}

const consent = "Choose what it may do"

// Each of two logins at once ends on the page that began it, whichever is approved first.
func TestTwoTabs(t *testing.T) {
	first := newBrowser(t)
	s := newSite(t, http.SameSiteLaxMode, "")
	open(t, first, s.url+"/p/1")
	see(t, first, consent, "")
	second := tab(t, first)
	open(t, second, s.url+"/p/2")
	see(t, second, consent, "")
	click(t, second, "Approve")
	see(t, second, "page 2", "")
	click(t, first, "Approve")
	see(t, first, "page 1", "")
}

// A browser that starts again loads all its tabs at once.
func TestRestoredTabs(t *testing.T) {
	browser := newBrowser(t)
	s := newSite(t, http.SameSiteLaxMode, "")
	tabs := []context.Context{browser}
	for len(tabs) < 5 {
		tabs = append(tabs, tab(t, browser))
	}
	restore := func() {
		t.Helper()
		for i, ctx := range tabs {
			// Not Navigate, which waits for the page.
			open(t, ctx, "about:blank")
			evaluate[any](t, ctx, fmt.Sprintf("setTimeout(() => location.href = %q)", fmt.Sprintf("%s/p/%d", s.url, i)))
		}
	}

	s.connected(t)
	restore()
	for i, ctx := range tabs {
		see(t, ctx, fmt.Sprintf("page %d", i), "")
	}
	require.Equal(t, 1, s.bank.Refreshes())

	s.connected(t)
	s.bank.RevokeGrants()
	restore()
	for _, ctx := range tabs {
		see(t, ctx, consent, "")
	}
	for i, ctx := range tabs {
		click(t, ctx, "Approve")
		see(t, ctx, fmt.Sprintf("page %d", i), "")
	}
}

// Whatever leads to a callback again gives a page that helps, and uses no code twice.
func TestCallbackAgain(t *testing.T) {
	for name, sameSite := range map[string]http.SameSite{"lax": http.SameSiteLaxMode, "strict": http.SameSiteStrictMode} {
		t.Run(name, func(t *testing.T) {
			ctx := newBrowser(t)
			s := newSite(t, sameSite, "")
			open(t, ctx, s.url+"/p/1")
			see(t, ctx, consent, "")
			click(t, ctx, "Deny")
			see(t, ctx, "Not connected", "")
			require.Contains(t, location(t, ctx), "/bank/callback?")
			require.NoError(t, chromedp.Do(ctx, chromedp.Reload()))
			see(t, ctx, "We couldn't finish connecting your account", "")
			click(t, ctx, "Start again")
			see(t, ctx, consent, "")

			click(t, ctx, "Approve")
			see(t, ctx, "page 1", "")
			exchanges := s.bank.Count(ganbtest.TokenEndpoint)
			require.NoError(t, chromedp.Do(ctx, chromedp.Reload()))
			see(t, ctx, "page 1", "")

			// Back at the consent page, which the bank answers once more.
			evaluate[any](t, ctx, "history.back()") // not NavigateBack, which waits for a page that may be there already
			see(t, ctx, consent, "")
			press(t, ctx, "Approve")
			see(t, ctx, "page home", "")
			require.Equal(t, exchanges, s.bank.Count(ganbtest.TokenEndpoint))
		})
	}
}

// With SameSite=Strict the browser leaves the session cookie behind on the way back from the bank.
func TestStrictSession(t *testing.T) {
	ctx := newBrowser(t)
	s := newSite(t, http.SameSiteStrictMode, "shop")
	open(t, ctx, s.url)
	see(t, ctx, "shop", "")
	open(t, ctx, s.url+"/p/1")
	see(t, ctx, consent, "")
	click(t, ctx, "Approve")
	see(t, ctx, "page 1, cart full", "")
}

// A browser that looks ahead begins no login, and the link works when it is clicked.
func TestPrefetch(t *testing.T) {
	for name, hint := range map[string]string{
		"link":      `<link rel="prefetch" href="/bank/login">`,
		"prefetch":  `<script type="speculationrules">{"prefetch":[{"urls":["/bank/login"],"eagerness":"immediate"}]}</script>`,
		"prerender": `<script type="speculationrules">{"prerender":[{"urls":["/bank/login"],"eagerness":"immediate"}]}</script>`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := newBrowser(t)
			s := newSite(t, http.SameSiteLaxMode, hint+`<a href="/bank/login">Connect</a>`)
			open(t, ctx, s.url)
			see(t, ctx, "Connect", "")
			require.Eventually(t, func() bool { return s.prefetched.Load() > 0 }, 20*time.Second, 10*time.Millisecond)
			require.EqualValues(t, http.StatusForbidden, s.prefetched.Load())
			require.Zero(t, s.bank.Count(ganbtest.Authorization))
			click(t, ctx, "Connect")
			see(t, ctx, consent, "")
			click(t, ctx, "Approve")
			see(t, ctx, "page home", "")
		})
	}
}

// A script is told, and not led to a page that it could not show.
func TestFetch(t *testing.T) {
	ctx := newBrowser(t)
	s := newSite(t, http.SameSiteLaxMode, "shop")
	open(t, ctx, s.url)
	for _, accept := range []string{"*/*", "application/json", "text/html"} {
		got := evaluate[string](t, ctx, fmt.Sprintf(`fetch("/p/1", {headers: {Accept: %q}}).then(async r =>
			[r.status, r.redirected, r.headers.get("Content-Type"), (await r.json()).title].join())`, accept))
		require.Equal(t, "401,false,application/problem+json; charset=utf-8,Unauthorized", got)
	}
	require.Zero(t, s.bank.Count(ganbtest.Authorization))
}

// A page that HTMX asks a part for is left for the bank, and come back to.
func TestHTMX(t *testing.T) {
	nodeModules(t)
	for _, version := range []string{"htmx2", "htmx4"} {
		t.Run(version, func(t *testing.T) {
			ctx := newBrowser(t)
			s := newSite(t, http.SameSiteLaxMode, `<script src="/htmx.js"></script>
				<button hx-get="/p/part" hx-target="#part">Balance</button><a href="/bank/login" hx-boost="true">Connect</a><p id="part">nothing yet`)
			s.mux.HandleFunc("/htmx.js", func(w http.ResponseWriter, r *http.Request) {
				http.ServeFile(w, r, "node_modules/"+version+"/dist/htmx.min.js")
			})
			open(t, ctx, s.url+"/?a=1&b=2")
			see(t, ctx, "nothing yet", "")
			click(t, ctx, "Balance")
			see(t, ctx, consent, "")
			click(t, ctx, "Approve")
			see(t, ctx, "nothing yet", "")
			require.Equal(t, s.url+"/?a=1&b=2", location(t, ctx))
			click(t, ctx, "Balance")
			see(t, ctx, "page part", "")

			click(t, ctx, "Connect") // boosted: HTMX asks for the login itself
			see(t, ctx, consent, "")
			click(t, ctx, "Approve")
			see(t, ctx, "page home", "")
		})
	}
}

func disableJavaScript(t *testing.T, ctx context.Context) {
	t.Helper()
	_, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	require.NoError(t, err)
}

// No page of the kit needs a script, not even the one that fetches a strict session's cookie.
func TestWithoutJavaScript(t *testing.T) {
	ctx := newBrowser(t)
	s := newSite(t, http.SameSiteStrictMode, `<script>document.title = "scripted"</script>shop`)
	disableJavaScript(t, ctx)
	open(t, ctx, s.url)
	see(t, ctx, "shop", "")
	require.Equal(t, "Shop", evaluate[string](t, ctx, "document.title"))
	open(t, ctx, s.url+"/p/1")
	see(t, ctx, consent, "")
	click(t, ctx, "Deny")
	see(t, ctx, "Not connected", "")
	click(t, ctx, "Connect again")
	see(t, ctx, consent, "")
	click(t, ctx, "Approve")
	see(t, ctx, "page 1, cart full", "")
}
