package ganbauth_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
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
	r := httptest.NewRequest("GET", "/p", nil)
	r.Header = header("Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "document", "Accept", "text/html")
	require.Equal(t, "subrequest", ganbauth.KindOfRequest(r), "no browser sends this")
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

// The path of a callback that is loaded again is written as in RedirectURI.
func TestReloadKeepsThePathAsItIs(t *testing.T) {
	a := newApp(t, setup{sessions: strict, options: ganbauth.Options{RedirectURI: appURL + "/a%2Fb/callback"}})
	a.handler = a.sessions.LoadAndSave(a.kit.RequireToken(a.mux))
	b := a.browser()
	resp := b.arrive(b.callbackURL("/bank/login"), with(navigate, "Sec-Fetch-Site", "cross-site"))
	require.Contains(t, resp.Header.Get("Refresh"), "; url=/a%2Fb/callback?")
	require.Equal(t, "/home", b.follow(resp).Header.Get("Location"))
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
	// Such an address fits into no header, or is not sure to lead back here.
	t.Run("by an address that is not loaded again", func(t *testing.T) {
		a := newApp(t, setup{sessions: strict, options: corp})
		a.handler = a.sessions.LoadAndSave(a.kit.RequireToken(a.next)) // without a mux, which would clean the path
		b := a.browser()
		for target, again := range map[string]bool{
			"/p?" + strings.Repeat("x", 2045): true,
			"/p?" + strings.Repeat("x", 2046): false,
			"/p//x":                           false,
		} {
			resp := b.arrive(target, with(navigate, "Sec-Fetch-Site", "cross-site"))
			require.Equal(t, again, resp.Header.Get("Refresh") != "", "%d characters", len(target))
			require.Equal(t, !again, strings.HasPrefix(resp.Header.Get("Location"), a.bank.URL))
		}
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
		require.Equal(t, "/p?a=1", b.loginAt("/p?a=1").Header.Get("Location"))
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
		require.Regexp(t, `^[123]; url=/p\?tab=1&ganb\.corp\.reloaded=1x$`, resp.Header.Get("Refresh"))
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
		require.Regexp(t, `^[123]; url=/late\?ganb\.corp\.reloaded=1x$`, resp.Header.Get("Refresh"))
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
		require.Regexp(t, `^[123]; url=/bank/callback\?`, resp.Header.Get("Refresh"))
		require.Equal(t, "/home", b.follow(resp).Header.Get("Location"))
	})
	t.Run("a callback", func(t *testing.T) {
		a, b, callbacks := begin(t)
		before := b.cookie("session")
		b.get(callbacks[0])
		resp := a.browser().do("GET", callbacks[1], withCookie(b, before))
		require.Regexp(t, `^[123]; url=/bank/callback\?`, resp.Header.Get("Refresh"))
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
		require.Equal(t, want, b.loginAt(target).Header.Get("Location"), target)
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

// What the headers of a request say about where it comes from.
func TestWhatRequestsSay(t *testing.T) {
	strict := func(m *scs.SessionManager) { m.Cookie.SameSite = http.SameSiteStrictMode }
	kit := newApp(t, setup{sessions: strict}).kit
	plain := newApp(t, setup{options: ganbauth.Options{RedirectURI: "http://localhost:8080/bank/callback"}}).kit
	keyed := backgroundKit(t, ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore(), nil)
	request := func(target string, pairs ...string) *http.Request {
		r := httptest.NewRequest("POST", target, nil)
		r.Host, r.Header = "app.test", header(pairs...)
		return r
	}
	reloaded := func(n int) string { return ganbauth.Marked(kit, "/p", n) }

	t.Run("another origin", func(t *testing.T) {
		for _, c := range []struct {
			kit   *ganbauth.Kit
			pairs []string
			ok    bool
		}{
			{kit, nil, true},
			{kit, []string{"Origin", "https://app.test"}, true},
			{kit, []string{"Origin", "http://app.test"}, false},
			{kit, []string{"Origin", "http://app.test", "Sec-Fetch-Site", "same-origin"}, true},
			{kit, []string{"Origin", "https://app.test", "Sec-Fetch-Site", "cross-site"}, false},
			{kit, []string{"Sec-Fetch-Site", "same-site"}, false},
			{kit, []string{"Origin", "https://evil.test"}, false},
			{kit, []string{"Origin", "https://app.example"}, true}, // a proxy has changed Host
			{kit, []string{"Origin", "https://APP.example:443"}, true},
			{kit, []string{"Origin", "https://app.example", "Sec-Fetch-Site", "cross-site"}, true},
			{kit, []string{"Origin", "http://app.example"}, false},
			{kit, []string{"Origin", "https://app.example:8443"}, false},
			{kit, []string{"Origin", "https://www.app.example"}, false},
			{kit, []string{"Origin", "https://app.example%"}, false},
			{plain, []string{"Origin", "http://localhost:8080"}, true},
			{plain, []string{"Origin", "http://localhost"}, false},
			{plain, []string{"Origin", "http://app.test"}, true},
			{plain, []string{"Origin", "http://evil.test"}, false},
		} {
			err := ganbauth.CheckOrigin(c.kit, request("/p", c.pairs...))
			require.Equal(t, c.ok, err == nil, "%v: %v", c.pairs, err)
			if err != nil {
				require.Equal(t, 403, ganbauth.StatusCode(err))
			}
		}
	})
	t.Run("a cookie that stayed behind", func(t *testing.T) {
		for _, c := range []struct {
			kit          *ganbauth.Kit
			reloads      int
			site, cookie string
			want         bool
		}{
			{kit, 0, "", "", true},
			{kit, 0, "same-origin", "", true},
			{kit, 0, "", "session=x", false},
			{kit, 1, "", "", false},
			{kit, 1, "same-origin", "", false},
			{kit, 1, "cross-site", "", true},
			{kit, 2, "none", "", true},
			{kit, 3, "cross-site", "", false},
			{plain, 0, "", "", false},
			{keyed, 0, "", "", false},
		} {
			target := "/p"
			if c.reloads > 0 {
				target = reloaded(c.reloads)
			}
			var pairs []string
			if c.site != "" {
				pairs = append(pairs, "Sec-Fetch-Site", c.site)
			}
			if c.cookie != "" {
				pairs = append(pairs, "Cookie", c.cookie)
			}
			require.Equal(t, c.want, ganbauth.CookieStayedBehind(c.kit, request(target, pairs...)), c)
		}
	})
	t.Run("a session that is gone", func(t *testing.T) {
		e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
		a := newApp(t, setup{sessions: func(m *scs.SessionManager) { m.Store = e }})
		token := storeSession(t, a.sessions, "cart", "full")
		require.False(t, ganbauth.SessionIsGone(a.kit, request("/p", "Cookie", "session="+token)))
		require.True(t, ganbauth.SessionIsGone(a.kit, request("/p", "Cookie", "session=gone")))
		require.False(t, ganbauth.SessionIsGone(a.kit, request("/p")))
		require.False(t, ganbauth.SessionIsGone(keyed, request("/p", "Cookie", "session=gone")))
		e.failNext(1, false)
		require.False(t, ganbauth.SessionIsGone(a.kit, request("/p", "Cookie", "session=gone")), "nobody knows")
	})
	t.Run("who led here", func(t *testing.T) {
		for _, c := range []struct {
			target string
			pairs  []string
			want   string
		}{
			{"/p", nil, ""},
			{"/p", []string{"Sec-Fetch-Site", "none"}, "none"},
			{"/p", []string{"Referer", "https://app.test/x"}, "same-origin"},
			{"/p", []string{"Referer", "https://evil.test/x"}, ""},
			{"/p", []string{"Referer", "https://app.test/x", "Sec-Fetch-Site", "cross-site"}, "cross-site"},
			{reloaded(1), []string{"Sec-Fetch-Site", "same-origin"}, "same-origin"},
			{reloaded(1) + "x", []string{"Sec-Fetch-Site", "same-origin"}, "cross-site"},
		} {
			require.Equal(t, c.want, ganbauth.SentBy(kit, request(c.target, c.pairs...)), c)
		}
	})
	t.Run("another host", func(t *testing.T) {
		own := mustParse(appURL).Host
		for host, want := range map[string]bool{own: false, own + ":443": false, own + ":8443": true, "www." + own: true} {
			r := request("/p")
			r.Host = host
			require.Equal(t, want, ganbauth.AtAnotherHost(kit, r), host)
			r.Header.Set("X-Forwarded-Host", own)
			require.False(t, ganbauth.AtAnotherHost(kit, r), host)
		}
	})
	t.Run("a callback", func(t *testing.T) {
		for target, want := range map[string]bool{
			"/bank/callback?state=s&code=c": true, "/bank/callback": false, "/bank/callback?code=c": false, "/p?state=s": false,
			"https://app.test/bank/callback?state=s": true,
		} {
			require.Equal(t, want, ganbauth.IsCallback(kit, request(target)), target)
		}
		stripped := request("/bank/callback?state=s")
		stripped.URL.Path = "/callback"
		require.True(t, ganbauth.IsCallback(kit, stripped))
		mounted := request("/app/bank/callback?state=s")
		mounted.URL.Path = "/bank/callback"
		require.True(t, ganbauth.IsCallback(kit, mounted))
	})
	t.Run("where to return to", func(t *testing.T) {
		for query, want := range map[string]string{
			"": "/home", "return_to=/x": "/x", "return_to=/x%3Fa=1": "/x?a=1", "return_to=/x&return_to=/y": "/home", "return_to=": "/home",
			"return_to=https://evil.test": "/home", "return_to=/bank/callback": "/home", "return_to=/bank/callback%3Fx": "/home",
			"return_to=/bank/login": "/home", "return_to=/bank/login%3Fx": "/home", "return_to=/%25zz": "/home",
		} {
			require.Equal(t, want, ganbauth.ReturnPath(kit, request("/bank/login?"+query)), query)
		}
	})
}

// The pages that a refusal links to, and that a login returns to.
func TestPagesOfRequests(t *testing.T) {
	kit := newApp(t, setup{}).kit
	for _, c := range []struct {
		method, target string
		pairs          []string
		again, back    string
	}{
		{"GET", "/p?a=1", nil, "/p?a=1", "/p?a=1"},
		{"POST", "/p", nil, "", "/home"},
		{"POST", "/p", []string{"Referer", appURL + "/form"}, "/form", "/form"},
		{"POST", "/p", []string{"Referer", "https://evil.test/form"}, "", "/home"},
		{"POST", "/p", []string{"Referer", "http://app.test/form"}, "", "/home"},
		{"POST", "/p", []string{"Referer", appURL + "/bank/callback?code=c"}, "", "/home"},
		{"POST", "/p", []string{"Referer", "https://%zz/"}, "", "/home"},
		{"POST", "/p", []string{"Referer", "https://other.test/form", "X-Host", "other.test"}, "/form", "/form"},
		{"GET", "/bank/callback?state=s", nil, "", "/home"},
		{"GET", "/p", []string{"Hx-Request", "true", "Hx-Current-Url", appURL + "/page"}, "/page", "/page"},
		{"GET", "/p", []string{"Hx-Request", "true", "Hx-Current-Url", "https://evil.test/", "Referer", appURL + "/page"}, "/page", "/page"},
		{"GET", "/p", []string{"Hx-Request", "true"}, "", "/home"},
		{"GET", "/p", []string{"Hx-Request", "true", "Hx-Boosted", "true", "Hx-Current-Url", appURL + "/page"}, "/p", "/p"},
		{"POST", "/p", []string{"Hx-Request", "true", "Hx-Boosted", "true", "Hx-Current-Url", appURL + "/page"}, "/page", "/page"},
	} {
		r := httptest.NewRequest(c.method, c.target, nil)
		r.Header = header(c.pairs...)
		if host := r.Header.Get("X-Host"); host != "" {
			r.Host = host
		}
		again, back := ganbauth.PagesOf(kit, r)
		require.Equal(t, []string{c.again, c.back}, []string{again, back}, c)
	}
	mark := "ganb.bank.return_to=%2Fx"
	again, back := ganbauth.PagesOf(kit, httptest.NewRequest("GET", "/p?"+mark, nil))
	require.Equal(t, []string{"/p?" + mark, "/x"}, []string{again, back})
	again, back = ganbauth.PagesOf(kit, httptest.NewRequest("POST", "/p?"+mark, nil))
	require.Equal(t, []string{"", "/home"}, []string{again, back}, "there is nowhere to try again")

	for _, target := range []string{"http://[::1", "*"} { // nothing that net/http serves
		r := httptest.NewRequest("GET", "/p", nil)
		r.RequestURI = target
		again, back = ganbauth.PagesOf(kit, r)
		require.Equal(t, []string{"", "/home"}, []string{again, back})
	}
}

// What the kit's marks say, in whatever order they come.
func TestMarksThatComeTwice(t *testing.T) {
	kit := newApp(t, setup{}).kit
	for query, foreign := range map[string]bool{"ganb.bank.reloaded=1x&ganb.bank.reloaded=2": true, "ganb.bank.reloaded=1&ganb.bank.reloaded=2x": true, "ganb.bank.reloaded=1": false} {
		require.Equal(t, foreign, ganbauth.SentBy(kit, httptest.NewRequest("GET", "/p?"+query, nil)) == "cross-site", query)
	}
	for count, want := range map[string]int{"1": 1, "2": 2, "0": 3, "-1": 3, "x": 3, "": 3, "1&ganb.bank.reloaded=2": 2, "2&ganb.bank.reloaded=1": 2} {
		_, reloads, _ := ganbauth.CutMarks("bank", "ganb.bank.reloaded="+count)
		require.Equal(t, want, reloads, count)
	}
	longest := "ganb.bank.reloaded=2&x="
	longest += strings.Repeat("x", 16<<10-len(longest))
	for query, want := range map[string]int{longest: 2, longest + "x": 0} {
		_, reloads, _ := ganbauth.CutMarks("bank", query)
		require.Equal(t, want, reloads, len(query))
	}
}

// Of Japanese and English the one that is preferred, the first one of equals, and English if
// neither is.
func TestPrefersJapanese(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "ja": true, "JA": true, "ja-JP": true, "ja_JP": true, "en": false, "fr": false, "jav": false,
		"ja,en": true, "en,ja": false, "ja;q=0.9,en;q=0.9,ja-JP;q=0.9": true, "en;q=0.9,ja;q=0.9,en-US;q=0.9": false,
		"ja;q=0.5,en;q=0.9": false, "en;q=0.5,ja;q=0.9": true, "en;q=0.5, ja;x=0.1": true, "ja ; q = 0.4 , en ; q=0.5": false,
		"ja;q=0": false, "ja;q=0,en;q=0": false, "ja;q=x,en;q=0.1": false, "ja;q=2,en;q=0.1": false, "ja;q=-1": false, "ja;q=NaN": false,
		"*": false, "*,en;q=0.5": true, "*;q=0.5,ja": true, "en,*;q=0.5": false, "fr,*;q=0.1,ja;q=0": false,
	} {
		require.Equal(t, want, ganbauth.PrefersJapanese(header("Accept-Language", accept)), accept)
	}
	require.True(t, ganbauth.PrefersJapanese(http.Header{"Accept-Language": {"fr", "ja"}}))
	require.True(t, ganbauth.PrefersJapanese(http.Header{"Accept-Language": {"ja", "en"}}))
}

// net/http takes a megabyte of headers from anybody. Reading them costs no more than that of a
// request which somebody really sends.
func TestLongRequests(t *testing.T) {
	long := "/p?" + strings.Repeat(`"`, 1<<20)
	require.Zero(t, testing.AllocsPerRun(1, func() { _, _ = ganbauth.LocalPath(long) }), "nothing is parsed or encoded")

	a := newApp(t, setup{})
	for name, h := range map[string]http.Header{
		"members":    {"Accept": {strings.Repeat(",", 1<<20)}, "Accept-Language": {strings.Repeat(",", 1<<20)}},
		"parameters": {"Accept": {strings.Repeat("a;q=1,", 1<<18)}, "Accept-Language": {strings.Repeat("a;q=1,", 1<<18)}},
	} {
		r := mustRequest("GET", appURL+"/p")
		r.Header = h
		n := testing.AllocsPerRun(1, func() { a.handler.ServeHTTP(httptest.NewRecorder(), r) })
		require.Less(t, n, 20_000., name)
	}
	marked := mustRequest("GET", appURL+"/p?ganb."+strings.Repeat("&", 1<<20))
	marked.Header = navigate
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a.handler.ServeHTTP(httptest.NewRecorder(), marked)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16<<20), "of a query that the kit cannot have marked")
	require.True(t, ganbauth.PrefersJapanese(header("Accept-Language", strings.Repeat("fr,", 1364)+"ja")), "4,094 bytes")
	require.False(t, ganbauth.PrefersJapanese(header("Accept-Language", strings.Repeat("fr,", 1365)+"ja")), "4,097 bytes")
}
