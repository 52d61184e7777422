package ganbauth_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"html/template"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// problemOf reads problem details, with every member that there may be.
func problemOf(t *testing.T, resp *http.Response) (p struct {
	Type, Title, Detail, Code string
	Status                    int
	LoginURL                  string `json:"login_url"`
}) {
	t.Helper()
	require.Equal(t, "application/problem+json; charset=utf-8", resp.Header.Get("Content-Type"))
	d := json.NewDecoder(strings.NewReader(body(resp)))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&p))
	return p
}

// links lists where a page leads, by label.
func links(resp *http.Response) map[string]string {
	found := map[string]string{}
	for _, m := range regexp.MustCompile(`<a href="([^"]*)">([^<]*)</a>`).FindAllStringSubmatch(body(resp), -1) {
		found[html.UnescapeString(m[2])] = html.UnescapeString(m[1])
	}
	return found
}

func text(resp *http.Response) string { return html.UnescapeString(body(resp)) }

// RequireToken around everything lets the kit's own handlers through, and nothing else.
func TestE3RequireTokenAroundEverything(t *testing.T) {
	around := func(t *testing.T, wrap func(*app) http.Handler) (*app, *browser) {
		a := newApp(t, setup{})
		a.handler = a.sessions.LoadAndSave(wrap(a))
		return a, a.browser()
	}
	wraps := map[string]func(*app) http.Handler{
		"a ServeMux": func(a *app) http.Handler { return a.kit.RequireToken(a.mux) },
		"another router": func(a *app) http.Handler {
			return a.kit.RequireToken(http.HandlerFunc(a.mux.ServeHTTP))
		},
		"scopes": func(a *app) http.Handler { return a.kit.RequireScopes("private:account")(a.mux) },
		"outside of the sessions": func(a *app) http.Handler {
			return a.kit.RequireToken(a.sessions.LoadAndSave(a.mux))
		},
	}
	for name, wrap := range wraps {
		t.Run(name, func(t *testing.T) {
			a, b := around(t, wrap)
			resp := b.get(b.callbackURL("/p?a=1"))
			require.Equal(t, "/p?a=1", resp.Header.Get("Location"))
			require.Equal(t, 200, b.get("/p?a=1").StatusCode)
			resp = b.get(a.bank.Deny(b.authorizationURL("/bank/login")))
			require.Equal(t, 403, resp.StatusCode, "the callback's own answers, too")
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
		})
	}
	t.Run("login, log-out and status below a ServeMux need no token", func(t *testing.T) {
		_, b := around(t, wraps["a ServeMux"])
		require.Equal(t, "/p?b=2", b.get(b.callbackURL("/bank/login?return_to=/p?b=2")).Header.Get("Location"))
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.JSONEq(t, `{"connected":false,"scopes":[]}`, body(b.do("GET", "/bank/status", program)))
		require.Equal(t, 401, b.do("GET", "/home", program).StatusCode)
	})
	t.Run("the handler itself", func(t *testing.T) {
		a, b := around(t, func(a *app) http.Handler { return a.kit.RequireToken(a.kit.LoginHandler()) })
		require.Contains(t, b.get("/anywhere").Header.Get("Location"), a.bank.URL)
		require.Zero(t, len(a.next.tokens))
	})
	t.Run("another kit's handler is none of this kit's", func(t *testing.T) {
		other := newApp(t, setup{})
		_, b := around(t, func(a *app) http.Handler { return a.kit.RequireToken(other.kit.StatusHandler()) })
		require.Equal(t, 401, b.do("GET", "/bank/status", program).StatusCode)
	})
	t.Run("what the application has at the callback's path is never called without a token", func(t *testing.T) {
		a, b := around(t, func(a *app) http.Handler { return a.kit.RequireToken(a.next) })
		for _, target := range []string{"/bank/callback?state=x", "/bank/callback?state=x&code=y", "/bank/callback"} {
			require.NotEqual(t, 200, b.get(target).StatusCode)
			require.NotEqual(t, 200, b.do("POST", target, program).StatusCode)
		}
		resp := b.get(b.callbackURL("/bank/callback"))
		require.Equal(t, "/home", resp.Header.Get("Location"), "without a state it is no callback, and nothing to return to")
		require.Zero(t, a.next.calls())
	})
	t.Run("below StripPrefix", func(t *testing.T) {
		a, b := around(t, func(a *app) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/callback", a.kit.CallbackHandler())
			mux.Handle("/p", a.next)
			return http.StripPrefix("/bank", a.kit.RequireToken(mux))
		})
		require.Equal(t, "/bank/p", b.get(b.callbackURL("/bank/p")).Header.Get("Location"))
		require.Equal(t, 200, b.get("/bank/p").StatusCode)
		require.Equal(t, 1, a.next.calls())
	})
	t.Run("below StripPrefix, by a request line in absolute form, to a path with escapes", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{RedirectURI: appURL + "/%E9%8A%80%E8%A1%8C/callback"}})
		inner := http.StripPrefix("/銀行", a.kit.RequireToken(a.next))
		a.handler = a.sessions.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.RequestURI = r.URL.String()
			inner.ServeHTTP(w, r)
		}))
		b := a.browser()
		require.Equal(t, "/%E9%8A%80%E8%A1%8C/p", b.get(b.callbackURL("/%E9%8A%80%E8%A1%8C/p")).Header.Get("Location"))
	})
}

// A route that takes POST only: the page and the login lead to where the form stood.
func TestE4PostOnlyRoutes(t *testing.T) {
	form := with(navigate, "Sec-Fetch-Site", "same-origin", "Origin", appURL)
	for name, c := range map[string]struct {
		h    http.Header
		want map[string]string
	}{
		"a form of this site":     {with(form, "Referer", appURL+"/p/form?to=1"), map[string]string{"Back to the previous page": "/p/form?to=1", "Back to the site": "/home"}},
		"the spelled-out port":    {with(form, "Referer", appURL+":443/p/form"), map[string]string{"Back to the previous page": "/p/form", "Back to the site": "/home"}},
		"the default page's form": {with(form, "Referer", appURL+"/home"), map[string]string{"Back to the previous page": "/home"}},
		"no Referer":              {form, map[string]string{"Back to the site": "/home"}},
		"another site's":          {with(form, "Referer", "https://evil.example/p/form"), map[string]string{"Back to the site": "/home"}},
		"another port's":          {with(form, "Referer", appURL+":8443/p/form"), map[string]string{"Back to the site": "/home"}},
		"by http":                 {with(form, "Referer", "http://app.example/p/form"), map[string]string{"Back to the site": "/home"}},
		"no path":                 {with(form, "Referer", appURL+"//evil.example/x"), map[string]string{"Back to the site": "/home"}},
		"the callback":            {with(form, "Referer", appURL+"/bank/callback?code=x"), map[string]string{"Back to the site": "/home"}},
		"garbage":                 {with(form, "Referer", "https://app.example:x/%zz"), map[string]string{"Back to the site": "/home"}},
	} {
		t.Run(name, func(t *testing.T) {
			resp := newApp(t, setup{}).browser().do("POST", "/p/submit", c.h)
			require.Equal(t, 401, resp.StatusCode)
			require.Equal(t, c.want, links(resp))
		})
	}
	t.Run("scopes", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.login()
		resp := b.do("POST", "/transfer", with(form, "Referer", appURL+"/p/form"))
		require.Equal(t, 403, resp.StatusCode)
		require.Equal(t, map[string]string{"Back to the previous page": "/p/form", "Back to the site": "/home"}, links(resp))
	})
	t.Run("behind a proxy that sends a Host of its own", func(t *testing.T) {
		a := newApp(t, setup{})
		r := httptest.NewRequest("POST", "http://127.0.0.1:8080/p/submit", nil)
		r.Header = with(form, "Referer", appURL+"/p/form")
		w := httptest.NewRecorder()
		a.handler.ServeHTTP(w, r)
		require.Contains(t, w.Body.String(), `href="/p/form"`)
	})
	for name, c := range map[string]struct {
		method string
		h      http.Header
		want   string
	}{
		"HTMX, a form":                        {"POST", header("HX-Current-URL", appURL+"/p/page?x=1#y"), "/p/page?x=1"},
		"HTMX, a part":                        {"GET", header("HX-Current-URL", appURL+"/p/page"), "/p/page"},
		"HTMX, a boosted link":                {"GET", header("HX-Current-URL", appURL+"/p/page", "HX-Boosted", "true"), "/p/asked?b=1"},
		"HTMX, a boosted form":                {"POST", header("HX-Current-URL", appURL+"/p/page", "HX-Boosted", "true"), "/p/page"},
		"HTMX, a Referer":                     {"POST", header("Referer", appURL+"/p/page"), "/p/page"},
		"HTMX, another site's page":           {"POST", header("HX-Current-URL", "https://evil.example/p/page"), "/home"},
		"HTMX, a part of nobody knows what":   {"GET", header(), "/home"},
		"HTMX, a part of the callback's page": {"GET", header("HX-Current-URL", appURL+"/bank/callback?code=x"), "/home"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			resp := b.do(c.method, "/p/asked?b=1", with(c.h, "HX-Request", "true"))
			require.Equal(t, 401, resp.StatusCode)
			require.Equal(t, c.want, b.get(a.bank.Approve(resp.Header.Get("HX-Redirect"))).Header.Get("Location"))
		})
	}
}

// The content security policy is the kit's page's alone.
func TestF4PolicyOfTheApplication(t *testing.T) {
	const own = "default-src 'self'"
	requests := func(a *app) []*http.Response {
		return []*http.Response{
			a.browser().get("/p"),
			a.browser().do("GET", "/p", program),
			a.browser().do("POST", "/p", navigate),
			a.browser().get("/bank/callback?code=a&state=b"),
			a.browser().do("GET", "/bank/login", with(navigate, "Sec-Purpose", "prefetch")),
			a.browser().get("/bank/logout"),
			a.browser().do("GET", "/bank/status", program),
		}
	}
	for name, options := range map[string]ganbauth.Options{
		"OnError":   {OnError: func(w http.ResponseWriter, _ *http.Request, err error) { w.WriteHeader(ganbauth.StatusCode(err)) }},
		"ErrorPage": {ErrorPage: template.Must(template.New("").Parse(`own`))},
		"neither":   {},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{options: options})
			inner := a.handler
			a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Security-Policy", own)
				inner.ServeHTTP(w, r)
			})
			for _, resp := range requests(a) {
				require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
				policy := resp.Header.Values("Content-Security-Policy")
				if name == "neither" && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
					require.Len(t, policy, 1)
					require.Contains(t, policy[0], "style-src 'sha256-")
				} else {
					require.Equal(t, []string{own}, policy)
				}
			}
		})
	}
}

// An error met inside a handler is answered as RequireToken answers one outside.
func TestRefuse(t *testing.T) {
	meant := map[string]string{ // of the file that the handler meant to send
		"Content-Length": "1000", "Content-Disposition": `attachment; filename="x.pdf"`, "Content-Range": "bytes 0-999/2000",
		"Etag": `"x"`, "Last-Modified": "Wed, 25 Nov 2026 00:00:00 GMT",
		"Expires": "Fri, 25 Dec 2026 00:00:00 GMT", "Pragma": "x", "Age": "60",
		"Cdn-Cache-Control": "max-age=600", "Surrogate-Control": "max-age=600",
	}
	refusing := func(t *testing.T, options ganbauth.Options, err error) (*app, *browser) {
		a := newApp(t, setup{options: options})
		a.next.serve = func(w http.ResponseWriter, r *http.Request) {
			for name, value := range meant {
				w.Header().Set(name, value)
			}
			w.Header().Set("Content-Type", "application/pdf")
			a.kit.Refuse(w, r, err)
		}
		b := a.browser()
		b.login()
		return a, b
	}
	for name, c := range map[string]struct {
		err    error
		status int
		code   string
		wait   string
	}{
		"no token any more":        {fmt.Errorf("x: %w", ganbauth.ErrLoginRequired), 401, "login_required", ""},
		"the API refuses it":       {&ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105"}, 401, "login_required", ""},
		"nobody logged in":         {ganbauth.ErrNoUser, 401, "no_user", ""},
		"a scope":                  {ganbauth.ErrInsufficientScope, 403, "insufficient_scope", ""},
		"maintenance":              {&ganbauth.APIError{StatusCode: 503, Code: "WG_ERR_300", RetryAfter: 2 * time.Minute}, 503, "bank_unavailable", "120"},
		"too many requests":        {&ganbauth.APIError{StatusCode: 429, RetryAfter: 7 * time.Second}, 503, "bank_unavailable", "7"},
		"the API's own refusal":    {&ganbauth.APIError{StatusCode: 400, Code: "WG_ERR_001"}, 502, "bank_error", ""},
		"the network":              {&ganbauth.TokenError{}, 503, "bank_unavailable", "1"},
		"the application's store":  {ganbauth.ErrUnavailable, 503, "unavailable", "1"},
		"the application":          {errors.New("x"), 500, "internal", ""},
		"nothing, which is a slip": {nil, 500, "internal", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := refusing(t, ganbauth.Options{}, c.err)
			resp := b.do("GET", "/p", program)
			problem := problemOf(t, resp)
			require.Equal(t, c.status, resp.StatusCode)
			require.Equal(t, c.status, problem.Status)
			require.Equal(t, "about:blank", problem.Type)
			require.Equal(t, http.StatusText(c.status), problem.Title)
			require.Equal(t, c.code, problem.Code)
			require.Equal(t, c.wait, resp.Header.Get("Retry-After"))
			require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
			require.Equal(t, "no-referrer", resp.Header.Get("Referrer-Policy"))
			require.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
			require.Equal(t, map[int]string{401: `Bearer realm="bank"`}[c.status], resp.Header.Get("WWW-Authenticate"))
			for name := range meant {
				require.Empty(t, resp.Header.Get(name), name)
			}

			helps := c.code == "login_required" || c.code == "insufficient_scope"
			require.Equal(t, helps, problem.LoginURL != "")
			resp = b.get("/p")
			require.Equal(t, c.status, resp.StatusCode, "the login has only just ended: a page, not a loop")
			require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
			if helps {
				require.Contains(t, b.get("/p").Header.Get("Location"), a.bank.URL)
			}
		})
	}
	t.Run("HTMX", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			a.next.serve = func(w http.ResponseWriter, r *http.Request) { a.kit.Refuse(w, r, ganbauth.ErrLoginRequired) }
			b := a.browser()
			b.login()
			time.Sleep(time.Minute)
			resp := b.do("GET", "/p", header("HX-Request", "true", "HX-Current-URL", appURL+"/p/page"))
			require.Equal(t, 401, resp.StatusCode)
			require.Contains(t, resp.Header.Get("HX-Redirect"), a.bank.URL)
		})
	})
	t.Run("OnError", func(t *testing.T) {
		var got error
		_, b := refusing(t, ganbauth.Options{OnError: func(w http.ResponseWriter, _ *http.Request, err error) {
			got = err
			w.WriteHeader(418)
		}}, ganbauth.ErrUnavailable)
		resp := b.do("GET", "/p", program)
		require.Equal(t, 418, resp.StatusCode)
		require.Equal(t, "1", resp.Header.Get("Retry-After"))
		require.ErrorIs(t, got, ganbauth.ErrUnavailable)
	})
	t.Run("a handler that no RequireToken stands before", func(t *testing.T) {
		a := newApp(t, setup{})
		a.mux.HandleFunc("/free", func(w http.ResponseWriter, r *http.Request) {
			if _, err := a.kit.Check(r); err != nil {
				a.kit.Refuse(w, r, err)
				return
			}
			io.WriteString(w, "in")
		})
		b := a.browser()
		require.Equal(t, "/free?x=1", b.get(b.callbackURL("/free?x=1")).Header.Get("Location"))
		require.Equal(t, "in", body(b.get("/free?x=1")))
	})
}

// What a front end gets to go on with.
func TestProblemDetails(t *testing.T) {
	t.Run("login_url begins the login that the route needs, and comes back to the page", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Name: "corp"}})
		b := a.browser()
		api := with(program, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Referer", appURL+"/home?tab=1")
		problem := problemOf(t, b.do("GET", "/transfer?x=1", api))
		require.Equal(t, "/transfer?x=1&ganb.corp.return_to=%2Fhome%3Ftab%3D1", problem.LoginURL)
		authURL := b.authorizationURL(problem.LoginURL)
		require.Contains(t, mustParse(authURL).Query().Get("scope"), "private:transfer")
		require.Equal(t, "/home?tab=1", b.get(a.bank.Approve(authURL)).Header.Get("Location"))

		before := a.next.calls()
		require.Equal(t, "/home?tab=1", b.get(problem.LoginURL).Header.Get("Location"), "connected by now: to the page, too")
		require.Equal(t, before, a.next.calls())
		require.Equal(t, 200, b.do("GET", problem.LoginURL, api).StatusCode)
		a.next.serve = func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.RequestURI()) }
		require.Equal(t, "/transfer?x=1", body(b.do("GET", problem.LoginURL, api)))
	})
	for name, c := range map[string]struct {
		method, target string
		h              http.Header
		want           string
	}{
		"no Referer":        {"GET", "/p", program, "/p?ganb.corp.return_to=%2Fhome"},
		"another site's":    {"GET", "/p", with(program, "Referer", "https://evil.example/x"), "/p?ganb.corp.return_to=%2Fhome"},
		"a POST":            {"POST", "/p", program, ""},
		"the login of none": {"GET", "/bank/callback?state=x", program, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{options: ganbauth.Options{Name: "corp"}})
			require.Equal(t, c.want, problemOf(t, a.browser().do(c.method, c.target, c.h)).LoginURL)
		})
	}
	t.Run("detail is in the user's language", func(t *testing.T) {
		a := newApp(t, setup{})
		for _, c := range []struct{ accept, language, detail string }{
			{"ja;q=0.9, en;q=0.1", "ja", "このページを使うには、銀行口座を連携してください。"},
			{"en, ja;q=0.9", "en", "This page needs a connection to your bank account."},
		} {
			resp := a.browser().do("GET", "/p", with(program, "Accept-Language", c.accept))
			require.Equal(t, c.detail, problemOf(t, resp).Detail)
			require.Equal(t, c.language, resp.Header.Get("Content-Language"))
		}
	})
	t.Run("codes of the handlers", func(t *testing.T) {
		a := newApp(t, setup{})
		for target, want := range map[string]string{"/bank/callback?state=x": "invalid_state", "/bank/logout": "refused"} {
			require.Equal(t, want, problemOf(t, a.browser().do("GET", target, program)).Code)
		}
	})
}

// Refuse documents each code, in the order of the table of errors.
func TestCodesAreDocumented(t *testing.T) {
	find := func(file, pattern string) (found []string) {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(data), -1) {
			found = append(found, m[1])
		}
		return found
	}
	codes := find("errors.go", `(?m)^\ttopic\w+ +topic = "(\w+)"`)
	require.NotEmpty(t, codes)
	require.Equal(t, codes, find("middleware.go", `(?m)^//   - ([a-z_]+): `))
}

// A page of the application's own design.
func TestErrorPage(t *testing.T) {
	own := template.Must(template.New("").Parse(
		`own {{.Status}} {{.Code}} {{.Language}} {{.RetryAfter}}: {{.Title}} {{range .Links}}[{{.Label}}={{.URL}}]{{end}}`))
	t.Run("for a person", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{ErrorPage: own}})
		resp := a.browser().do("POST", "/p", with(navigate, "Referer", appURL+"/p/form", "Accept-Language", "ja"))
		require.Equal(t, "own 401 login_required ja 0s: 銀行口座との連携が必要です [前のページに戻る=/p/form][サイトに戻る=/home]", text(resp))
		require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
		require.Equal(t, "application/problem+json; charset=utf-8", a.browser().do("POST", "/p", program).Header.Get("Content-Type"))
	})
	t.Run("with a time to wait", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{ErrorPage: own}})
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, 1)
		b := a.browser()
		require.Contains(t, text(b.get(b.callbackURL("/bank/login"))), "own 503 bank_unavailable en 2m0s: The bank is not available right now")
	})
	t.Run("one that fails", func(t *testing.T) {
		failing := template.Must(template.New("").Parse(`half of it {{.NoSuchField}}`))
		a := newApp(t, setup{options: ganbauth.Options{ErrorPage: failing}})
		resp := a.browser().do("POST", "/p", navigate)
		require.Equal(t, 401, resp.StatusCode)
		require.Contains(t, body(resp), "Connect your bank account")
		require.NotContains(t, body(resp), "half of it")
		require.Contains(t, resp.Header.Get("Content-Security-Policy"), "default-src 'none'")
		require.Contains(t, a.log.String(), "Options.ErrorPage failed")
		require.Contains(t, a.log.String(), "level=ERROR")
	})
}

// Pages say what is so.
func TestH4WhatPagesSay(t *testing.T) {
	kept := []string{"stays connected", "そのまま維持されています"}
	saysKept := func(t *testing.T, resp *http.Response, want bool) {
		t.Helper()
		require.Equal(t, want, strings.Contains(text(resp), kept[0]) || strings.Contains(text(resp), kept[1]), text(resp))
	}
	japanese := with(navigate, "Accept-Language", "ja")
	t.Run("a first login that fails keeps nothing", func(t *testing.T) {
		for name, fault := range map[string]ganbtest.Fault{
			"maintenance": ganbtest.Maintenance, "cut": ganbtest.ServerError, "no token": ganbtest.NotJSON,
			"wrong ID token": ganbtest.WrongIDToken, "refused": ganbtest.InvalidGrant,
		} {
			a := newApp(t, setup{})
			b := a.browser()
			for _, h := range []http.Header{navigate, japanese} {
				a.bank.Fail(ganbtest.TokenEndpoint, fault, 1)
				resp := b.do("GET", b.callbackURL("/bank/login?return_to=/p"), h)
				saysKept(t, resp, false)
				require.Contains(t, body(resp), `href="/bank/login?return_to=/p"`, name)
				require.Contains(t, body(resp), `href="/home"`)
			}
			b.login()
			a.bank.Fail(ganbtest.TokenEndpoint, fault, 1)
			saysKept(t, b.do("GET", b.callbackURL("/bank/login"), japanese), true)
			require.True(t, b.connected(), "and it is so")
		}
	})
	t.Run("a user who denies is connected as before, or not at all", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		resp := b.get(a.bank.Deny(b.authorizationURL("/p")))
		require.Contains(t, text(resp), "nothing was connected")
		require.Equal(t, map[string]string{"Connect again": "/p", "Back to the site": "/home"}, links(resp))
		b.login()
		resp = b.get(a.bank.Deny(b.authorizationURL("/transfer")))
		require.Equal(t, 403, resp.StatusCode)
		require.NotContains(t, text(resp), "nothing was connected")
		saysKept(t, resp, true)
		require.Equal(t, map[string]string{"Try again": "/transfer", "Back to the site": "/home"}, links(resp))
		require.True(t, b.connected())
	})
	t.Run("the application's own store is not the bank", func(t *testing.T) {
		store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		a := newApp(t, setup{options: ganbauth.Options{Store: store}})
		b := a.browser()
		b.login()
		store.set(io.ErrUnexpectedEOF, nil, nil)
		for h, want := range map[string]string{"en": "This site is temporarily unavailable", "ja": "ただいまサイト側で処理できません"} {
			resp := b.do("GET", "/p", with(navigate, "Accept-Language", h))
			require.Equal(t, 503, resp.StatusCode)
			require.Contains(t, text(resp), want)
			require.NotContains(t, text(resp), "bank is not available")
			require.NotContains(t, text(resp), "銀行")
		}
	})
	t.Run("the bank away, the user connected", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(2 * time.Hour)
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, 1)
			resp := b.get("/p")
			require.Equal(t, 503, resp.StatusCode)
			saysKept(t, resp, true)
			require.Equal(t, map[string]string{"Try again": "/p", "Back to the site": "/home"}, links(resp))
		})
	})
	t.Run("nobody logged in to the application", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Store: ganbauth.NewMemoryStore(),
			Key: keyIs("")}})
		for _, path := range []string{"/p", "/bank/login"} {
			resp := a.browser().get(path)
			require.Contains(t, text(resp), "Please log in first")
			require.Equal(t, map[string]string{"Back to the site": "/home"}, links(resp))
			require.Contains(t, text(a.browser().do("GET", path, japanese)), "ログインが必要です")
		}
	})
	t.Run("the default page itself", func(t *testing.T) {
		a := newApp(t, setup{bare: true})
		mux := http.NewServeMux()
		mux.Handle("/home", a.kit.RequireToken(a.next))
		mux.Handle("/", a.mux)
		a.handler = a.sessions.LoadAndSave(mux)
		b := a.browser()
		b.get(b.callbackURL("/home"))
		resp := a.browser().do("GET", "/home", with(navigate, "Cookie", without(b.cookies(), "session")))
		require.Equal(t, map[string]string{"Connect": "/home"}, links(resp), "one link, not two")
	})
	t.Run("every refusal has a way back, and no private words", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		for _, h := range []http.Header{navigate, japanese} {
			for _, resp := range []*http.Response{
				b.do("GET", "/bank/callback", h), b.do("GET", "/bank/logout", h), b.do("POST", "/p", h),
				b.do("POST", "/bank/logout", with(h, "Sec-Fetch-Site", "cross-site")),
				b.do("GET", a.bank.Deny(b.authorizationURL("/bank/login")), h),
			} {
				require.GreaterOrEqual(t, resp.StatusCode, 400)
				require.Contains(t, body(resp), `href="/home"`)
				require.NotContains(t, body(resp), "接続")
			}
		}
	})
}

// Every page has words in its language, a link to try again where that helps, and one home.
func TestErrorPageIsWhole(t *testing.T) {
	faults := map[string]error{
		"login_required": ganbauth.ErrLoginRequired, "insufficient_scope": ganbauth.ErrInsufficientScope, "no_user": ganbauth.ErrNoUser,
		"access_denied": &ganbauth.AuthorizationError{Code: "access_denied"}, "login_expired": ganbauth.ErrAttemptExpired,
		"invalid_state": ganbauth.ErrInvalidState, "refused": ganbauth.Refusal(405), "bank_unavailable": &ganbauth.TokenError{StatusCode: 503},
		"unavailable": ganbauth.Unavailable(errStep), "bank_error": ganbauth.ErrTokenFormat, "misconfigured": &ganbauth.TokenError{StatusCode: 401, Code: "invalid_client"},
		"internal": errStep,
	}
	for code, err := range faults {
		texts := map[string]bool{}
		for _, doing := range []string{"using", "connecting", "reconnecting"} {
			for language, japanese := range map[string]bool{"ja": true, "en": false} {
				page := ganbauth.NewErrorPage(err, doing, "/again", false, "/home", japanese)
				about := fmt.Sprint(code, ", ", doing, ", ", language)
				require.Equal(t, code, page.Code)
				require.Equal(t, ganbauth.StatusCode(err), page.Status, about)
				require.Equal(t, language, page.Language)
				require.Equal(t, ganbauth.RetryAfter(err), page.RetryAfter, about)
				for _, words := range []string{page.Title, page.Text} {
					require.NotEmpty(t, words, about)
					require.Equal(t, japanese, regexp.MustCompile(`[ぁ-ん]`).MatchString(words), "%s: %s", about, words)
				}
				inJSON, _ := json.Marshal(page.Text)
				require.Equal(t, `"`+page.Text+`"`, string(inJSON), "problem details have it as it is")
				texts[page.Text] = true
				home := page.Links[len(page.Links)-1]
				require.Equal(t, "/home", home.URL, about)
				require.Equal(t, map[bool]string{true: "サイトに戻る", false: "Back to the site"}[japanese], home.Label)
				if code == "no_user" {
					require.Len(t, page.Links, 1)
					continue
				}
				require.Len(t, page.Links, 2, about)
				require.Equal(t, "/again", page.Links[0].URL)
				require.NotEmpty(t, page.Links[0].Label, about)
				require.NotEqual(t, home.Label, page.Links[0].Label)
				require.Equal(t, japanese, regexp.MustCompile(`[ぁ-ん]`).MatchString(page.Links[0].Label), about)

				sent := ganbauth.NewErrorPage(err, doing, "/again", true, "/home", japanese)
				require.Equal(t, map[bool]string{true: "前のページに戻る", false: "Back to the previous page"}[japanese], sent.Links[0].Label)
				require.Len(t, ganbauth.NewErrorPage(err, doing, "/home", false, "/home", japanese).Links, 1, "one link, not two")
				require.Len(t, ganbauth.NewErrorPage(err, doing, "", false, "/home", japanese).Links, 1)
				require.Empty(t, ganbauth.NewErrorPage(err, doing, "", false, "", japanese).Links)
			}
		}
		own := map[string]int{"bank_unavailable": 6, "bank_error": 6, "misconfigured": 6, "access_denied": 4, "login_expired": 4, "unavailable": 4, "internal": 4}
		require.Len(t, texts, max(own[code], 2), "%s has words of its own for those who connect, or connect again", code)
	}
	for _, again := range []string{"/again", "/home"} {
		page := ganbauth.NewErrorPage(ganbauth.ErrNoUser, "using", again, true, "/home", false)
		require.Len(t, page.Links, 1, "nothing helps but a login to the site")
	}
}

// The page that reloads has a link and the user's colors.
func TestE13TheReloadPage(t *testing.T) {
	english := newApp(t, setup{sessions: func(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteStrictMode }}).browser().get("/p")
	require.Equal(t, 200, english.StatusCode)
	require.Equal(t, "en", english.Header.Get("Content-Language"))
	require.Contains(t, body(english), `<main class="soon">`)
	require.Regexp(t, `(?s)<title>One moment, please</title>.*<h1>One moment, please</h1>\n<p>The page is loading.</p>\n<nav><a href="/p[^"]+">Continue</a></nav>`, body(english))
	a := newApp(t, setup{sessions: func(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteStrictMode }})
	resp := a.browser().do("GET", "/p?a=1&b=2", with(navigate, "Accept-Language", "ja"))
	require.Equal(t, 200, resp.StatusCode)
	require.Contains(t, body(resp), `<meta name="color-scheme" content="light dark">`)
	require.Contains(t, body(resp), `prefers-color-scheme:dark`)
	require.Contains(t, body(resp), `<html lang="ja">`)
	require.Contains(t, body(resp), `少々お待ちください`)
	require.Contains(t, body(resp), `ページを読み込んでいます。`)
	require.Equal(t, "ja", resp.Header.Get("Content-Language"))
	_, target, _ := strings.Cut(resp.Header.Get("Refresh"), "url=")
	require.Equal(t, map[string]string{"続ける": target}, links(resp))
	require.Contains(t, resp.Header.Get("Content-Security-Policy"), "default-src 'none'")
	require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
}
