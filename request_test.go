package ganbauth_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// sentRequest is a row of testdata/headers.json: the headers that decide, as clients
// really send them, and what the request is.
type sentRequest struct {
	From, Method, Kind string
	Requests           []string
	Headers            map[string]string // a line break stands between two lines of one name
}

func (s sentRequest) name() string { return s.From + ", " + strings.Join(s.Requests, ", ") }

func (s sentRequest) header() http.Header {
	h := http.Header{}
	for name, lines := range s.Headers {
		for line := range strings.SplitSeq(lines, "\n") {
			h.Add(name, line)
		}
	}
	return h
}

func sentRequests(t *testing.T) (rows []sentRequest) {
	t.Helper()
	data, err := os.ReadFile("testdata/headers.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &rows))
	require.Greater(t, len(rows), 150)
	return rows
}

func TestKindOfRequest(t *testing.T) {
	for _, row := range sentRequests(t) {
		r := httptest.NewRequest(row.Method, "/p", nil)
		r.Header = row.header()
		require.Equal(t, row.Kind, ganbauth.KindOfRequest(r), "%s: %v", row.name(), row.Headers)
	}
}

// What each kind is answered: by a protected page, by the login and by the callback.
func TestE1E2EveryKindOfRequest(t *testing.T) {
	answers := map[string]struct {
		page, login, callback int
		form                  string // of the page's answer
	}{
		"navigation": {303, 303, 303, ""},
		"form":       {401, 405, 405, "text/html; charset=utf-8"},
		"HTMX":       {401, 200, 303, "application/problem+json; charset=utf-8"},
		"program":    {401, 303, 303, "application/problem+json; charset=utf-8"},
		"subrequest": {401, 403, 403, "application/problem+json; charset=utf-8"},
		"embedded":   {401, 403, 403, "application/problem+json; charset=utf-8"},
		"prefetch":   {401, 403, 403, "application/problem+json; charset=utf-8"},
	}
	for _, row := range sentRequests(t) {
		t.Run(row.name(), func(t *testing.T) {
			a, want, h := newApp(t, setup{}), answers[row.Kind], row.header()
			if row.Method != http.MethodGet {
				want.login, want.callback = 405, 405
			}
			b := a.browser()
			resp := b.do(row.Method, "/p", h)
			require.Equal(t, want.page, resp.StatusCode)
			require.Equal(t, want.form, resp.Header.Get("Content-Type"))
			toBank := resp.Header.Get("Location") + resp.Header.Get("HX-Redirect")
			if row.Kind == "navigation" || row.Kind == "HTMX" {
				require.Contains(t, toBank, a.bank.URL)
				require.Len(t, b.cookies(), 1)
			} else {
				require.Empty(t, toBank)
				require.Empty(t, b.cookies())
			}

			resp = a.browser().do(row.Method, "/bank/login", h)
			require.Equal(t, want.login, resp.StatusCode)
			require.Equal(t, want.login < 400, len(resp.Cookies()) > 0)

			b = a.browser()
			callback := b.callbackURL("/bank/login")
			require.Equal(t, want.callback, b.do(row.Method, callback, h).StatusCode)
			require.Equal(t, want.callback < 400, b.connected())
		})
	}
}

func strict(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteStrictMode }

var corp = ganbauth.Options{Name: "corp"}

// What browsers say of a navigation that another site has caused, when a Strict cookie
// stays behind.
var arrivals = map[string]http.Header{
	"a link":                             with(navigate, "Sec-Fetch-Site", "cross-site"),
	"a typed or mailed link, redirected": navigate,
	"no fetch metadata":                  header("Accept", "text/html"),
	"Firefox, a service worker": header("Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "same-origin", "Sec-Fetch-Dest", "empty",
		"Accept", "text/html", "Upgrade-Insecure-Requests", "1"),
	"Chromium, a service worker": with(navigate, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "empty"),
	"navigation preload":         with(navigate, "Sec-Fetch-Site", "same-origin"),
}

// A user who is connected goes back to the bank's consent page and approves once more.
func TestE9BackToTheConsentPage(t *testing.T) {
	for name, h := range arrivals {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{sessions: strict, options: corp})
			b := a.browser()
			authURL := b.authorizationURL("/p?a=1")
			resp := b.follow(b.arrive(a.bank.Approve(authURL), h))
			require.Equal(t, "/p?a=1", resp.Header.Get("Location"), "E11: connecting succeeds")
			require.True(t, b.connected())
			resp = b.follow(b.arrive(a.bank.Approve(authURL), h))
			require.Equal(t, 303, resp.StatusCode)
			require.Equal(t, "/home", resp.Header.Get("Location"))
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
		})
	}
}

// A user who is connected arrives from another site.
func TestE10ArrivalsWithoutTheSessionCookie(t *testing.T) {
	for name, h := range arrivals {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{sessions: strict, options: corp})
			seen := ""
			a.next.serve = func(w http.ResponseWriter, r *http.Request) { seen = r.URL.RequestURI() }
			b := a.browser()
			b.login()
			resp := b.arrive("/p/1?a=%2F&b", h)
			require.Regexp(t, `^0; url=/p/1\?a=%2F&b&ganb\.corp\.reloaded=1x?$`, resp.Header.Get("Refresh"))
			require.Empty(t, resp.Header["Set-Cookie"])
			require.Equal(t, 200, b.follow(resp).StatusCode)
			require.Equal(t, "/p/1?a=%2F&b", seen, "the handler does not see the mark")
		})
	}
	t.Run("with cookies blocked there is one reload, and then the bank", func(t *testing.T) {
		a := newApp(t, setup{sessions: strict, options: corp})
		b := a.browser()
		b.client.Jar = nil
		resp := b.get("/p/1")
		require.Equal(t, "0; url=/p/1?ganb.corp.reloaded=1", resp.Header.Get("Refresh"))
		resp = b.follow(resp)
		require.Equal(t, 303, resp.StatusCode)
		refused(t, b.follow(b.get(a.bank.Approve(resp.Header.Get("Location")))))
	})
	t.Run("by an address that has the mark of a reload", func(t *testing.T) {
		a := newApp(t, setup{sessions: strict, options: corp})
		b := a.browser()
		b.login()
		for _, site := range []string{"none", "cross-site"} {
			h := with(navigate, "Sec-Fetch-Site", site)
			resp := b.follow(b.arrive("/p?ganb.corp.reloaded=1", h))
			require.Equal(t, 200, resp.StatusCode)
			resp = b.follow(b.arrive("/bank/login?ganb.corp.reloaded=1", h))
			require.Equal(t, 303, resp.StatusCode)
		}

		// A browser without cookies whose every request says that the user came by himself.
		b = a.browser()
		b.client.Jar = nil
		target, reloads := "/p", 0
		for reloads < 9 {
			_, next, ok := strings.Cut(b.get(target).Header.Get("Refresh"), "url=")
			if !ok {
				break
			}
			target, reloads = next, reloads+1
		}
		require.Equal(t, 3, reloads, "the reloads end")
	})
	t.Run("the login comes back to the page without the mark", func(t *testing.T) {
		a := newApp(t, setup{sessions: strict, options: corp})
		b := a.browser()
		require.Equal(t, "/p?a=1", b.follow(b.get(b.callbackURL("/p?a=1"))).Header.Get("Location"))
	})
	t.Run("D2 a reload does not make a login this site's that another site has caused", func(t *testing.T) {
		long := "/p/" + strings.Repeat("x", 300)
		for site, want := range map[string]string{"same-origin": long, "cross-site": "/home", "": "/home"} {
			a := newApp(t, setup{sessions: strict, options: corp})
			b := a.browser()
			resp := b.follow(b.arrive(long, with(navigate, "Sec-Fetch-Site", site)))
			resp = b.follow(b.get(a.bank.Approve(resp.Header.Get("Location"))))
			require.Equal(t, want, resp.Header.Get("Location"), site)
		}
	})
	t.Run("programs and parts of pages are not reloaded", func(t *testing.T) {
		a := newApp(t, setup{sessions: strict, options: corp})
		for _, h := range []http.Header{program, header("HX-Request", "true"), with(navigate, "Sec-Fetch-Dest", "iframe")} {
			require.Equal(t, 401, a.browser().do("GET", "/p", h).StatusCode)
		}
	})
	t.Run("with the application's users in the session", func(t *testing.T) {
		var sessions *scs.SessionManager
		a := newApp(t, setup{
			sessions: func(s *scs.SessionManager) { strict(s); sessions = s },
			options: ganbauth.Options{Name: "corp", Store: ganbauth.NewMemoryStore(), Key: func(r *http.Request) (string, error) {
				return sessions.GetString(r.Context(), "user"), nil
			}},
		})
		a.mux.HandleFunc("/signin", func(_ http.ResponseWriter, r *http.Request) { sessions.Put(r.Context(), "user", "alice") })
		b := a.browser()
		b.get("/signin")
		resp := b.follow(b.arrive("/bank/login?return_to=/p", navigate))
		require.Equal(t, 303, resp.StatusCode, "the login knows the user, too")
		resp = b.follow(b.arrive(a.bank.Approve(resp.Header.Get("Location")), navigate))
		require.Equal(t, "/p", resp.Header.Get("Location"))
		require.Equal(t, 200, b.follow(b.arrive("/p", navigate)).StatusCode)
		require.Equal(t, 401, a.browser().do("GET", "/bank/login?ganb.corp.reloaded=1", with(navigate, "Sec-Fetch-Site", "same-origin")).StatusCode)
	})
}

// One tab's callback renews the session while another tab's request is on its way.
func TestE12TabsAtOnce(t *testing.T) {
	withCookie := func(b *browser, session string) http.Header {
		return with(navigate, "Sec-Fetch-Site", "cross-site", "Cookie", without(b.cookies(), "session")+"; session="+session)
	}
	begin := func(t *testing.T) (a *app, b *browser, callbacks []string) {
		a = newApp(t, setup{options: corp})
		a.mux.HandleFunc("/cart", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "cart", "x") })
		b = a.browser()
		b.get("/cart")
		for _, path := range []string{"/p?tab=1", "/p?tab=2"} {
			callbacks = append(callbacks, b.callbackURL(path))
		}
		return a, b, callbacks
	}
	t.Run("a page", func(t *testing.T) {
		a, b, callbacks := begin(t)
		b.get(callbacks[0])
		renewed := b.cookie("session")
		b.get(callbacks[1])
		resp := a.browser().do("GET", "/p?tab=1", withCookie(b, renewed))
		require.Equal(t, "1; url=/p?tab=1&ganb.corp.reloaded=1x", resp.Header.Get("Refresh"))
		require.Equal(t, 200, b.follow(resp).StatusCode, "the other answer has arrived by now")

		target, reloads := "/p?tab=1", 0
		for reloads < 9 {
			resp = a.browser().do("GET", target, withCookie(b, renewed))
			var ok bool
			if _, target, ok = strings.Cut(resp.Header.Get("Refresh"), "url="); !ok {
				break
			}
			reloads++
		}
		require.Equal(t, 3, reloads, "the reloads end")
		require.Equal(t, 401, resp.StatusCode)
		require.Contains(t, body(resp), "Connect your bank account")
	})
	t.Run("a page whose session is loaded", func(t *testing.T) {
		a, b, callbacks := begin(t)
		b.get(callbacks[0])
		renewed := b.cookie("session")
		a.mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "" {
				b.get(callbacks[1]) // deletes the token that the loaded session names
			}
			a.kit.RequireToken(http.NotFoundHandler()).ServeHTTP(w, r)
		})
		resp := a.browser().do("GET", "/late", withCookie(b, renewed))
		require.Equal(t, "1; url=/late?ganb.corp.reloaded=1x", resp.Header.Get("Refresh"))
		require.Equal(t, 404, b.follow(resp).StatusCode, "the page itself")
	})
	t.Run("a session that is gone for another reason is not waited for", func(t *testing.T) {
		a := newApp(t, setup{options: corp})
		require.Equal(t, 303, a.browser().do("GET", "/p", with(navigate, "Cookie", "session=gone")).StatusCode)
	})
	t.Run("the second delivery of a callback", func(t *testing.T) {
		a, b, callbacks := begin(t)
		b.get(callbacks[0])
		renewed := b.cookie("session")
		b.get(callbacks[1])
		resp := a.browser().do("GET", callbacks[0], withCookie(b, renewed))
		require.Contains(t, resp.Header.Get("Refresh"), "1; url=/bank/callback?")
		require.Equal(t, "/home", b.follow(resp).Header.Get("Location"))
	})
	t.Run("a callback", func(t *testing.T) {
		a, b, callbacks := begin(t)
		before := b.cookie("session")
		b.get(callbacks[0])
		resp := a.browser().do("GET", callbacks[1], withCookie(b, before))
		require.Contains(t, resp.Header.Get("Refresh"), "1; url=/bank/callback?")
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint), "the code is not spent")
		resp = b.follow(resp)
		require.Equal(t, "/p?tab=2", resp.Header.Get("Location"))
		require.True(t, b.connected())
	})
}

// What the browser says in a mark moves nothing and lasts for nothing.
func TestMarks(t *testing.T) {
	a := newApp(t, setup{sessions: strict, options: corp})
	for _, value := range []string{"1", "3", "99", "-1", "0", "x", "", "99999999999999999999"} {
		resp := a.browser().do("GET", "/p?ganb.corp.reloaded="+value, with(navigate, "Sec-Fetch-Site", "same-origin"))
		require.Equal(t, 303, resp.StatusCode, value)
	}
	for target, want := range map[string]string{
		"/p?ganb.corp.return_to=%2Fhome%3Fx%3D1":                       "/home?x=1",
		"/p?ganb.corp.return_to=%2F%2Fevil.example":                    "/p",
		"/p?ganb.corp.return_to=https://evil.example":                  "/p",
		"/p?ganb.corp.return_to=%zz&a=1":                               "/p?a=1",
		"/p?ganb.other.return_to=%2Fhome":                              "/p?ganb.other.return_to=%2Fhome",
		"/p?a=1&ganb.corp.return_to=%2Fhome&ganb.corp.reloaded=1":      "/home",
		"/p?ganb.corp.return_to=" + strings.Repeat("%2Fx", 1500) + "x": "/p",
	} {
		b := a.browser()
		require.Equal(t, want, b.follow(b.get(b.callbackURL(target))).Header.Get("Location"), target)
	}
}

// A request that a program has made, and that no server has read from a connection.
func TestRequestWithoutRequestURI(t *testing.T) {
	a := newApp(t, setup{})
	r := httptest.NewRequest("GET", "/p?a=1", nil)
	r.RequestURI, r.Header = "", navigate.Clone()
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	require.Equal(t, 303, w.Code)
	cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	resp := a.browser().do("GET", a.bank.Approve(w.Header().Get("Location")), with(navigate, "Cookie", cookie))
	require.Equal(t, "/p?a=1", resp.Header.Get("Location"))
}
