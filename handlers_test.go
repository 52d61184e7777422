package ganbauth_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func TestRoundTrip(t *testing.T) {
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
		require.True(t, b.connected())
		require.Equal(t, 1, a.bank.Refreshes())
		require.Equal(t, http.StatusSeeOther, b.post("/bank/logout").StatusCode)
		require.False(t, b.connected())
		require.Equal(t, []ganbauth.EventType{
			ganbauth.EventLoginStarted, ganbauth.EventLoginSucceeded, ganbauth.EventTokenRefreshed, ganbauth.EventLogout,
		}, a.eventTypes())
	})
}

func TestLoginRequest(t *testing.T) {
	t.Run("the redirect", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		resp := b.get("/bank/login")
		require.Equal(t, 303, resp.StatusCode)
		require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
		require.Equal(t, "no-referrer", resp.Header.Get("Referrer-Policy"))
		require.Empty(t, body(resp))
		q := mustParse(resp.Header.Get("Location")).Query()
		require.Equal(t, "code", q.Get("response_type"))
		require.Equal(t, a.bank.ClientID, q.Get("client_id"))
		require.Equal(t, appURL+"/bank/callback", q.Get("redirect_uri"))
		require.Equal(t, "openid offline_access private:account", q.Get("scope"))
		for name := range q {
			require.Len(t, q[name], 1)
		}
		require.Len(t, q, 6)
		require.NotContains(t, resp.Header.Get("Location"), a.bank.ClientSecret)
		require.Empty(t, b.cookie("session"), "no session is made")
	})
	t.Run("E3 none that would come back to a login", func(t *testing.T) {
		a := newApp(t, setup{})
		a.mux.Handle("/home/{$}", http.StripPrefix("/home", a.kit.LoginHandler()))
		a.mux.Handle("GET /home", a.kit.LoginHandler())
		b := a.browser()
		require.Equal(t, 500, b.get("/home?from=menu").StatusCode)
		require.Contains(t, a.log.String(), "DefaultReturn is the path of a LoginHandler")
		require.Equal(t, 303, b.get("/home?return_to=/p").StatusCode)
		require.Equal(t, 303, b.get("/home/").StatusCode)
	})
	t.Run("state and nonce are new each time, and long", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		seen := map[string]bool{}
		for range 1000 {
			q := mustParse(b.authorizationURL("/bank/login")).Query()
			for _, v := range []string{q.Get("state"), q.Get("nonce")} {
				require.False(t, seen[v])
				seen[v] = true
				require.GreaterOrEqual(t, len(v), 26)
				require.LessOrEqual(t, len(v), 128)
				require.Regexp(t, `^([0-9a-f]{64}|[A-Z2-7]{26,})$`, v, "nothing to read in it")
			}
		}
		require.LessOrEqual(t, len(b.cookieHeader()), 3<<10)
	})
	t.Run("L3 what the request says is ignored", func(t *testing.T) {
		a := newApp(t, setup{})
		got := a.browser().authorizationURL("/bank/login?state=ATTACKER&nonce=ATTACKER&scope=ATTACKER&redirect_uri=https://evil.example" +
			"&client_id=ATTACKER&response_type=token&prompt=none&iss=ATTACKER&login_hint=ATTACKER&target_link_uri=https://evil.example")
		require.NotContains(t, got, "ATTACKER")
		require.NotContains(t, got, "evil")
		require.NotContains(t, got, "prompt")
	})
	t.Run("headers are ignored", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		resp := b.do("GET", "/bank/login", with(navigate, "X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "http",
			"X-Forwarded-Prefix", "//evil.example", "X-Original-URL", "//evil.example", "Referer", "https://evil.example/x", "Origin", "https://evil.example"))
		require.Equal(t, appURL+"/bank/callback", mustParse(resp.Header.Get("Location")).Query().Get("redirect_uri"))
		resp = b.get(a.bank.Approve(resp.Header.Get("Location")))
		require.Equal(t, "/home", resp.Header.Get("Location"))
	})
	t.Run("no cookie tells state, nonce, verifier or path", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{PKCE: true}})
		b := a.browser()
		q := mustParse(b.authorizationURL("/p/secret-path")).Query()
		require.Len(t, b.cookies(), 1)
		c := b.cookies()[0]
		for _, secret := range []string{q.Get("state"), q.Get("nonce"), "secret-path"} {
			require.NotContains(t, c.String(), secret)
			require.NotContains(t, c.String(), base64.RawURLEncoding.EncodeToString([]byte(secret)))
		}
		require.NotContains(t, q.Encode(), "secret-path")
	})
	t.Run("the cookie's attributes: a callback over http finds no attempt", func(t *testing.T) {
		resp := newApp(t, setup{options: ganbauth.Options{Name: "corp"}}).browser().get("/bank/login")
		c, err := http.ParseSetCookie(resp.Header.Get("Set-Cookie"))
		require.NoError(t, err)
		require.Regexp(t, `^__Host-ganb\.[\w-]{8}\.[\w-]{16}$`, c.Name)
		require.Equal(t, "/", c.Path)
		require.True(t, c.Secure && c.HttpOnly)
		require.Equal(t, http.SameSiteLaxMode, c.SameSite)
		require.Empty(t, c.Domain)
		require.Equal(t, 3*ganbauth.AttemptLifetime, time.Duration(c.MaxAge)*time.Second, "a late callback is told that it is late")
	})
	t.Run("PKCE", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{PKCE: true}})
		b := a.browser()
		first, second := b.authorizationURL("/p?a=1"), b.authorizationURL("/p?a=2")
		q := mustParse(first).Query()
		require.Equal(t, "S256", q.Get("code_challenge_method"))
		require.Len(t, q.Get("code_challenge"), base64.RawURLEncoding.EncodedLen(sha256.Size))
		require.NotEqual(t, q.Get("code_challenge"), mustParse(second).Query().Get("code_challenge"))
		require.Empty(t, q.Get("code_verifier"))
		// The bank checks the verifier, so each tab must send its own.
		require.Equal(t, "/p?a=1", b.get(a.bank.Approve(first)).Header.Get("Location"))
		require.Equal(t, "/p?a=2", b.get(a.bank.Approve(second)).Header.Get("Location"))
	})
	t.Run("without PKCE there is no verifier", func(t *testing.T) {
		var exchange url.Values
		a := newApp(t, setup{config: func(c *ganbauth.Config) {
			next := c.HTTPClient.Transport
			c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				sent, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(sent))
				exchange, _ = url.ParseQuery(string(sent))
				return next.RoundTrip(r)
			})}
		}})
		a.browser().login()
		require.Contains(t, exchange, "code")
		require.NotContains(t, exchange, "code_verifier")
	})
	t.Run("who may not begin a login", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		for name, h := range map[string]http.Header{
			"image":           with(navigate, "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"),
			"iframe":          with(navigate, "Sec-Fetch-Dest", "iframe"),
			"fetch":           with(program, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"),
			"prefetch":        with(navigate, "Sec-Purpose", "prefetch"),
			"prerender":       with(navigate, "Sec-Purpose", "prefetch;prerender"),
			"Purpose":         with(navigate, "Purpose", "prefetch"),
			"X-Moz":           with(navigate, "X-Moz", "prefetch"),
			"X-Purpose":       with(navigate, "X-Purpose", "preview"),
			"prerender alone": with(navigate, "Purpose", "Prerender"),
		} {
			resp := b.do("GET", "/bank/login", h)
			require.Equal(t, 403, resp.StatusCode, name)
			require.Empty(t, resp.Header["Set-Cookie"])
			require.Empty(t, resp.Header.Get("Location"))
		}
		for _, path := range []string{"/bank/login", "/bank/callback?code=a&state=b", "/bank/logout", "/bank/status"} {
			for _, method := range []string{"OPTIONS", "PUT", "DELETE", "TRACE", "PROPFIND", "FOO"} {
				resp := b.do(method, path, navigate)
				require.Equal(t, 405, resp.StatusCode, method)
				require.NotEmpty(t, resp.Header.Get("Allow"))
			}
		}
		require.Empty(t, b.cookies())
	})
	t.Run("a client that says nothing may", func(t *testing.T) {
		require.Equal(t, 303, newApp(t, setup{}).browser().do("GET", "/bank/login", http.Header{}).StatusCode)
	})
	t.Run("HTMX", func(t *testing.T) {
		a := newApp(t, setup{})
		resp := a.browser().do("GET", "/bank/login", with(program, "HX-Request", "true", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"))
		require.Equal(t, 200, resp.StatusCode)
		require.Contains(t, resp.Header.Get("HX-Redirect"), a.bank.URL)
	})
}

// refused checks R-CB: a callback that leads nowhere and tells nothing.
func refused(t *testing.T, resp *http.Response) {
	t.Helper()
	require.GreaterOrEqual(t, resp.StatusCode, 400)
	require.Less(t, resp.StatusCode, 500)
	require.Empty(t, resp.Header.Get("Location"))
	require.Contains(t, resp.Header.Get("Cache-Control"), "no-store")
	require.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
	require.Contains(t, resp.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
	require.NotContains(t, body(resp), "MARK")
	require.NotContains(t, fmt.Sprint(resp.Header), "MARK")
}

// Callbacks that belong to no attempt of this browser: nothing is sent, nothing changes,
// and the pending attempt still succeeds afterwards.
func TestForeignCallbacks(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for name, query := range map[string]string{
		"nothing":                  "",
		"code only":                "code=MARK",
		"state unknown, no code":   "state=MARK",
		"state empty":              "code=MARK&state=",
		"state unknown":            "code=MARK&state=MARK",
		"state twice":              "code=MARK&state={state}&state=MARK",
		"state twice, reversed":    "code=MARK&state=MARK&state={state}",
		"the right state twice":    "code=MARK&state={state}&state={state}",
		"code twice":               "code=MARK&code=MARK2&state={state}",
		"iss twice":                "code=MARK&state={state}&iss={iss}&iss={iss}",
		"error twice":              "error=a&error=b&state={state}",
		"error without a state":    "error=access_denied&error_description=MARK",
		"error with another state": "error=access_denied&state=MARK",
		"upper case":               "CODE=MARK&STATE={state}",
		"brackets":                 "code[]=MARK&state[]={state}",
		"bad escape in code":       "code=%zz&state={state}",
		"bad escape elsewhere":     "code=MARK&state={state}&x=%zz",
		"semicolon":                "code=MARK;state={state}",
		"state of 100,000":         "code=MARK&state=" + long[:100_000],
		"code of 200,000":          "state={state}&code=" + long,
		"20,000 parameters":        "state={state}&code=MARK&" + strings.Repeat("a=1&", 20_000),
		"a prefix of the state":    "code=MARK&state={prefix}",
		"the state in upper case":  "code=MARK&state={STATE}",
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			authURL := b.authorizationURL("/bank/login")
			state := mustParse(authURL).Query().Get("state")
			query = strings.NewReplacer("{state}", state, "{prefix}", state[:32], "{STATE}", strings.ToUpper(state),
				"{iss}", url.QueryEscape(a.bank.URL+"/")).Replace(query)
			resp := b.get("/bank/callback?" + query)
			refused(t, resp)
			require.Empty(t, resp.Header["Set-Cookie"], "no new session, the attempt untouched")
			require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint), "NOEX")
			require.Equal(t, 303, b.get(a.bank.Approve(authURL)).StatusCode, "the real callback succeeds")
			require.True(t, b.connected())
		})
	}
	t.Run("another browser's callback does not touch who is logged in", func(t *testing.T) {
		a := newApp(t, setup{})
		victim, attacker := a.browser(), a.browser()
		victim.login()
		who := body(victim.get("/p"))
		planted := attacker.callbackURL("/bank/login")
		exchanges := a.bank.Count(ganbtest.TokenEndpoint)
		refused(t, victim.get(planted))
		require.Equal(t, exchanges, a.bank.Count(ganbtest.TokenEndpoint))
		require.Equal(t, who, body(victim.get("/p")))
		require.Equal(t, 303, attacker.get(planted).StatusCode, "the attacker's own attempt still works")
	})
	t.Run("cookies that are garbage", func(t *testing.T) {
		a := newApp(t, setup{})
		for _, cookie := range []string{"session=attacker-chosen", "session=" + long[:100_000], "session=a; session=b", "session=\"", ""} {
			resp := a.browser().do("GET", "/bank/callback?code=MARK&state=MARK", with(navigate, "Cookie", cookie))
			refused(t, resp)
		}
		b := a.browser()
		resp := b.do("GET", "/p", with(program, "Cookie", "session=attacker-chosen"))
		require.Equal(t, 401, resp.StatusCode)
	})
	t.Run("a session that cannot be read", func(t *testing.T) {
		a := newApp(t, setup{})
		require.NoError(t, a.sessions.Store.Commit("broken", []byte("x"), time.Now().Add(time.Hour)))
		a.sessions.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(500) }
		for _, path := range []string{"/bank/callback?code=a&state=b", "/p"} {
			require.Equal(t, 500, a.browser().do("GET", path, with(navigate, "Cookie", "session=broken")).StatusCode)
		}
		require.Zero(t, a.next.calls())
	})
	t.Run("a visit to the login alone is no login", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.authorizationURL("/bank/login")
		require.False(t, b.connected())
	})
	t.Run("attempt cookies that were altered or swapped", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		one, two := b.callbackURL("/p?a=1"), b.callbackURL("/p?a=2")
		cookies := b.cookies()
		require.Len(t, cookies, 2)
		swapped := cookies[0].Name + "=" + cookies[1].Value + "; " + cookies[1].Name + "=" + cookies[0].Value
		altered := cookies[0].Name + "=A" + cookies[0].Value[1:] + "A; " + cookies[1].Name + "=" + cookies[1].Value[:20]
		for _, h := range []string{swapped, altered} {
			for _, callback := range []string{one, two} {
				refused(t, a.browser().do("GET", callback, with(navigate, "Cookie", h)))
			}
		}
		require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
	})
}

// Callbacks of this browser's attempt that do not lead to a login. The attempt is
// consumed: the real callback comes too late.
func TestOwnCallbacksThatFail(t *testing.T) {
	for name, test := range map[string]struct {
		query  string
		status int
		class  string
	}{
		"no code":               {"", 400, "invalid_state"},
		"code empty":            {"code=", 400, "invalid_state"},
		"code with CR LF":       {"code=a%0d%0ab", 400, "invalid_state"},
		"code with NUL":         {"code=a%00", 400, "invalid_state"},
		"code with a space":     {"code=a+b", 400, "invalid_state"},
		"code not ASCII":        {"code=%e3%81%82", 400, "invalid_state"},
		"code not UTF-8":        {"code=%ff", 400, "invalid_state"},
		"code of 8,193":         {"code=" + strings.Repeat("x", 8193), 400, "invalid_state"},
		"denied":                {"error=access_denied", 403, "access_denied"},
		"error wins over code":  {"error=access_denied&code=MARK", 403, "access_denied"},
		"scripts":               {"error=%3Cscript%3Ealert(1)%3C/script%3E&error_description=%22%3E%3Cimg%20src=x%20onerror=MARK%3E&error_uri=javascript:MARK", 400, "authorization_error"},
		"an empty error":        {"error=", 400, "authorization_error"},
		"iss of another":        {"code=MARK&iss=https%3A%2F%2Fevil.example%2F", 400, "invalid_state"},
		"iss without its slash": {"code=MARK&iss={iss-no-slash}", 400, "invalid_state"},
		"iss in upper case":     {"code=MARK&iss={ISS}", 400, "invalid_state"},
		"iss with a port":       {"code=MARK&iss=https%3A%2F%2Fbank.test:443%2F", 400, "invalid_state"},
		"iss wrong on an error": {"error=access_denied&iss=x", 400, "invalid_state"},
		"tokens in the query":   {"access_token=MARK&id_token=MARK&token_type=Bearer&expires_in=3600", 400, "invalid_state"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			authURL := b.authorizationURL("/bank/login")
			state := mustParse(authURL).Query().Get("state")
			query := strings.NewReplacer("{iss-no-slash}", url.QueryEscape(a.bank.URL), "{ISS}", url.QueryEscape(strings.ToUpper(a.bank.URL+"/"))).Replace(test.query)
			resp := b.get("/bank/callback?state=" + state + "&" + query)
			refused(t, resp)
			require.Equal(t, test.status, resp.StatusCode)
			require.NotContains(t, body(resp), "<script>alert")
			require.Contains(t, body(resp), `href="/bank/login"`, "it offers to start again")
			require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint), "NOEX")
			require.Equal(t, test.class, a.lastEvent().ErrorClass)
			refused(t, b.get(a.bank.Approve(authURL)))
			require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint), "the attempt was consumed")
			require.False(t, b.connected())
		})
	}
	t.Run("a failed login as somebody else leaves who is logged in", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.login()
		who, cookie := body(b.get("/p")), b.cookie("session")
		for _, fault := range []ganbtest.Fault{ganbtest.InvalidGrant, ganbtest.WrongIDToken, ganbtest.ServerError, ganbtest.NotJSON} {
			a.bank.Fail(ganbtest.TokenEndpoint, fault, 1)
			resp := b.get(b.callbackURL("/bank/login"))
			require.Contains(t, []int{502, 503}, resp.StatusCode)
			require.Equal(t, who, body(b.get("/p")))
			require.Equal(t, cookie, b.cookie("session"))
		}
		require.Equal(t, 403, b.get(a.bank.Deny(b.authorizationURL("/bank/login"))).StatusCode)
		require.Equal(t, who, body(b.get("/p")))
	})
	t.Run("a bank under maintenance says when it will be back, and the log has it once", func(t *testing.T) {
		a := newApp(t, setup{})
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, 1)
		b := a.browser()
		resp := b.get(b.callbackURL("/bank/login"))
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "120", resp.Header.Get("Retry-After"))
		require.Equal(t, 1, strings.Count(a.log.String(), "error="), a.log.String())
	})
	t.Run("an ID token of another attempt", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		first := b.authorizationURL("/bank/login")
		other := mustParse(b.callbackURL("/bank/login")).Query().Get("code")
		resp := b.get("/bank/callback?state=" + mustParse(first).Query().Get("state") + "&code=" + other)
		require.Equal(t, 502, resp.StatusCode)
		require.False(t, b.connected())
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
	})
}

func TestCallbackSucceeds(t *testing.T) {
	t.Run("headers", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		resp := b.get(b.callbackURL("/bank/login"))
		require.Equal(t, 303, resp.StatusCode)
		require.Equal(t, "/home", resp.Header.Get("Location"))
		require.Contains(t, resp.Header["Cache-Control"], "no-store")
		require.Equal(t, "no-referrer", resp.Header.Get("Referrer-Policy"))
		require.Empty(t, body(resp))
		require.Less(t, len(b.cookie("session")), 100)
	})
	t.Run("iss of the bank, unknown parameters", func(t *testing.T) {
		a := newApp(t, setup{bank: ganbtest.Options{SendIssuer: true}})
		b := a.browser()
		require.Equal(t, 303, b.get(b.callbackURL("/bank/login")+"&response=x&session_state=y&hd=z&access_token=MARK&scope=admin").StatusCode)
		require.True(t, b.connected())
		require.NotEqual(t, "MARK", a.next.last().AccessToken)
		require.False(t, new(ganbauth.Token).HasScope("admin"))
	})
	t.Run("iss absent is accepted: the bank does not document it", func(t *testing.T) { newApp(t, setup{}).browser().login() })
	t.Run("codes of 128, 512 and 2,048", func(t *testing.T) {
		for _, n := range []int{128, 512, 2048} {
			a := newApp(t, setup{})
			b := a.browser()
			q := mustParse(b.authorizationURL("/bank/login")).Query()
			b.get("/bank/callback?state=" + q.Get("state") + "&code=" + strings.Repeat("x", n))
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint), "it was sent")
		}
	})
	t.Run("the session's token is renewed, at a login and at the next", func(t *testing.T) {
		a := newApp(t, setup{})
		a.mux.HandleFunc("/cart", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "cart", "x") })
		a.mux.HandleFunc("/show", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, a.sessions.GetString(r.Context(), "cart"))
		})
		b := a.browser()
		b.get("/cart")
		before := b.cookie("session")
		b.login()
		first := b.cookie("session")
		require.NotEqual(t, before, first)
		require.Equal(t, "x", body(b.get("/show")), "the application's values stay")
		b.login()
		require.NotEqual(t, first, b.cookie("session"))
		for _, old := range []string{before, first} {
			_, found, err := a.sessions.Store.Find(old)
			require.NoError(t, err)
			require.False(t, found)
			require.Equal(t, 401, a.browser().do("GET", "/p", with(program, "Cookie", "session="+old)).StatusCode)
		}
	})
	t.Run("a login as B replaces all of A's", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			b.connected()
			first := a.next.last()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(r map[string]any) { delete(r, "refresh_token") }}, 1)
			b.login()
			b.connected()
			second := a.next.last()
			require.NotEqual(t, first.Subject, second.Subject)
			require.NotEqual(t, first.AccessToken, second.AccessToken)
			time.Sleep(61 * time.Minute)
			require.False(t, b.connected(), "B has no refresh token, and A's is not used")
			require.Zero(t, a.bank.Refreshes())
			require.Equal(t, 1, records(t, a), "A's record is gone")
			require.NotContains(t, a.log.String(), "level=ERROR")
		})
	})
	t.Run("a refresh token without offline_access is used", func(t *testing.T) {
		inBubble(t, setup{options: ganbauth.Options{Scopes: []string{"openid"}}}, func(t *testing.T, a *app) {
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(r map[string]any) { r["refresh_token"] = "RT" }}, 1)
			b := a.browser()
			b.login()
			time.Sleep(61 * time.Minute)
			b.connected()
			require.Equal(t, 1, a.bank.Refreshes())
		})
	})
	t.Run("the granted scopes are what counts", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.get(a.bank.ApproveOnly(b.authorizationURL("/bank/login"), "openid"))
		require.True(t, b.connected())
		require.Equal(t, "openid", a.next.last().Scope)
	})
	t.Run("an answer with an empty scope, and one without", func(t *testing.T) {
		for want, change := range map[string]func(map[string]any){
			"":                                      func(r map[string]any) { r["scope"] = "" },
			"openid offline_access private:account": func(r map[string]any) { delete(r, "scope") },
		} {
			a := newApp(t, setup{})
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: change}, 1)
			b := a.browser()
			b.login()
			require.True(t, b.connected())
			require.Equal(t, want, a.next.last().Scope)
		}
	})
	t.Run("without scs", func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		kit := backgroundKit(t, bank, ganbauth.NewMemoryStore(), nil)
		a := &app{t: t, bank: bank, mux: http.NewServeMux(), next: &spy{}}
		a.mux.Handle("/bank/login", kit.LoginHandler())
		a.mux.Handle("/bank/callback", kit.CallbackHandler())
		a.mux.Handle("/bank/logout", kit.LogoutHandler())
		a.mux.Handle("/p", kit.RequireToken(a.next))
		a.handler = a.mux
		b, alice := a.browser(), with(navigate, "X-User", "alice")
		resp := b.do("GET", "/p", alice)
		require.Equal(t, 303, resp.StatusCode)
		require.Equal(t, "/p", b.do("GET", bank.Approve(resp.Header.Get("Location")), alice).Header.Get("Location"))
		require.Equal(t, 200, b.do("GET", "/p", alice).StatusCode)
		require.Equal(t, 303, b.do("POST", "/bank/logout", header("X-User", "alice")).StatusCode)
		require.Equal(t, 401, b.do("GET", "/p", with(program, "X-User", "alice")).StatusCode)
	})
	t.Run("plain OAuth", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Scopes: []string{"private:account"}}})
		b := a.browser()
		require.Empty(t, mustParse(b.authorizationURL("/bank/login")).Query().Get("nonce"))
		b.login()
		require.Equal(t, "served ", body(b.get("/p")))
	})
	t.Run("client_secret_post", func(t *testing.T) {
		a := newApp(t, setup{bank: ganbtest.Options{AuthMethod: ganbauth.AuthPost}})
		a.browser().login()
	})
	t.Run("without LoadAndSave", func(t *testing.T) {
		a := newApp(t, setup{bare: true})
		b := a.browser()
		require.False(t, b.connected())
		b.login()
		require.True(t, b.connected())
		require.Equal(t, "no-store", b.get("/bank/login").Header["Cache-Control"][0])
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.False(t, b.connected())
		require.Empty(t, b.cookie("session"))
	})
	t.Run("LoadAndSave twice", func(t *testing.T) {
		a := newApp(t, setup{})
		a.handler = a.sessions.LoadAndSave(a.handler)
		b := a.browser()
		b.login()
		require.True(t, b.connected())
	})
}

// records counts what the kit has in the sessions' engine, and tokens those that are no
// marks.
func records(t *testing.T, a *app) int { t.Helper(); n, _ := stored(t, a); return n }
func tokens(t *testing.T, a *app) int  { t.Helper(); _, n := stored(t, a); return n }

func stored(t *testing.T, a *app) (records, tokens int) {
	t.Helper()
	return storedIn(t, a.sessions.Store.(scs.IterableStore))
}

// storedIn is stored for an engine.
func storedIn(t *testing.T, engine scs.IterableStore) (records, tokens int) {
	t.Helper()
	all, err := engine.All()
	require.NoError(t, err)
	for name, data := range all {
		if strings.Contains(name, ";") {
			records++
			if bytes.Contains(data, []byte("Bearer")) {
				tokens++
			}
		}
	}
	return records, tokens
}

func TestCallbackTwice(t *testing.T) {
	t.Run("the same callback at once exchanges the code once", func(t *testing.T) {
		for _, n := range []int{2, 50} {
			inBubble(t, setup{bank: ganbtest.Options{Latency: time.Second}}, func(t *testing.T, a *app) {
				b := a.browser()
				callback := b.callbackURL("/bank/login")
				var wg sync.WaitGroup
				for range n {
					wg.Go(func() {
						if resp := b.get(callback); resp.StatusCode != 303 || resp.Header.Get("Location") != "/home" {
							t.Errorf("got %d", resp.StatusCode)
						}
					})
				}
				wg.Wait()
				require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
				require.True(t, b.connected())
			})
		}
	})
	t.Run("reload and back button: to the default page", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		callback := b.callbackURL("/p?a=1")
		require.Equal(t, "/p?a=1", b.get(callback).Header.Get("Location"))
		session := b.cookie("session")
		resp := b.get(callback)
		require.Equal(t, "/home", resp.Header.Get("Location"))
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
		require.Equal(t, session, b.cookie("session"))
		b.post("/bank/logout")
		refused(t, b.get(callback))
	})
	t.Run("a failed exchange is not tried again by a reload", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		callback := b.callbackURL("/bank/login")
		require.Equal(t, 503, b.get(callback).StatusCode)
		refused(t, b.get(callback))
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
	})
	t.Run("a client that keeps its cookies gets the outcome again, not another exchange", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		cookie := b.cookies()[0].String()
		for _, fresh := range []*browser{a.browser(), a.browser()} {
			require.Equal(t, 303, fresh.do("GET", callback, with(navigate, "Cookie", cookie)).StatusCode)
		}
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
	})
	t.Run("a browser that leaves during the exchange, and comes back", func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{Latency: time.Second}}, func(t *testing.T, a *app) {
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "GET", callback, nil)
			req.Header = navigate.Clone()
			_, _ = b.client.Do(req)
			require.Equal(t, 303, b.get(callback).StatusCode)
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
			require.True(t, b.connected())
		})
	})
}

func TestTabs(t *testing.T) {
	t.Run("five tabs restored at once", func(t *testing.T) {
		for name, app := range map[string]bool{"anonymous": false, "with a session of the application": true} {
			t.Run(name, func(t *testing.T) {
				a := newApp(t, setup{})
				a.mux.HandleFunc("/cart", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "cart", "x") })
				b := a.browser()
				if app {
					b.get("/cart")
				}
				var callbacks []string
				for i := range 5 {
					callbacks = append(callbacks, b.callbackURL(fmt.Sprint("/p?tab=", i)))
				}
				slices.Reverse(callbacks)
				for i, callback := range callbacks {
					require.Equal(t, fmt.Sprint("/p?tab=", 4-i), b.get(callback).Header.Get("Location"))
				}
				require.True(t, b.connected())
				require.Equal(t, 1, records(t, a), "one token, not five")
			})
		}
	})
	t.Run("of many attempts the newest five work", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			var callbacks []string
			for range 50 {
				callbacks = append(callbacks, b.callbackURL("/bank/login"))
				time.Sleep(time.Second)
			}
			require.LessOrEqual(t, len(b.cookieHeader()), 3<<10)
			refused(t, b.get(callbacks[0]))
			for _, callback := range callbacks[45:] {
				require.Equal(t, 303, b.get(callback).StatusCode)
			}
		})
	})
	t.Run("an attempt lives ten minutes, and then says so", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			late, exact := b.authorizationURL("/bank/login?return_to=/x"), b.authorizationURL("/bank/login")
			time.Sleep(10 * time.Minute)
			require.Equal(t, 303, b.get(a.bank.Approve(exact)).StatusCode)
			time.Sleep(time.Second)
			resp := b.get(a.bank.Approve(late))
			refused(t, resp)
			require.Contains(t, body(resp), "expired")
			require.Contains(t, body(resp), `href="/bank/login?return_to=/x"`)
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
			require.Contains(t, resp.Header.Get("Set-Cookie"), "Max-Age=0", "it is over")
		})
	})
	t.Run("the session that began it has ended", func(t *testing.T) {
		inBubble(t, setup{sessions: func(s *scs.SessionManager) { s.IdleTimeout = 5 * time.Minute }}, func(t *testing.T, a *app) {
			a.mux.HandleFunc("/cart", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "cart", "x") })
			b := a.browser()
			b.get("/cart")
			callback := b.callbackURL("/bank/login")
			time.Sleep(6 * time.Minute)
			refused(t, b.do("GET", callback, with(navigate, "Sec-Fetch-Site", "same-origin")))
			require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
		})
	})
	t.Run("a logout ends the attempts", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.Empty(t, b.cookies())
		refused(t, b.get(callback))
		require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
	})
	t.Run("another user of the application in the same browser", func(t *testing.T) {
		user := "alice"
		a := newApp(t, setup{options: ganbauth.Options{Key: func(*http.Request) (string, error) { return user, nil }}})
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		user = "bob"
		resp := b.do("GET", callback, with(navigate, "Sec-Fetch-Site", "cross-site"))
		require.Equal(t, 200, resp.StatusCode, "once, the session cookie may have stayed behind")
		_, again, _ := strings.Cut(resp.Header.Get("Refresh"), "url=")
		refused(t, b.do("GET", again, with(navigate, "Sec-Fetch-Site", "same-origin")))
		require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
		require.False(t, b.connected())
		user = "alice"
		require.False(t, b.connected())
	})
}

func TestCallbackMethodsAndPrefetch(t *testing.T) {
	a := newApp(t, setup{})
	b := a.browser()
	callback := b.callbackURL("/bank/login")
	for name, test := range map[string]struct {
		method string
		h      http.Header
		status int
	}{
		"POST":      {"POST", navigate, 405},
		"HEAD":      {"HEAD", navigate, 405},
		"prefetch":  {"GET", with(navigate, "Sec-Purpose", "prefetch"), 403},
		"prerender": {"GET", with(navigate, "Sec-Purpose", "prefetch;prerender"), 403},
		"Purpose":   {"GET", with(navigate, "Purpose", "prefetch"), 403},
		"X-Moz":     {"GET", with(navigate, "X-Moz", "prefetch"), 403},
		"OPTIONS":   {"OPTIONS", navigate, 405},
		"iframe":    {"GET", with(navigate, "Sec-Fetch-Dest", "iframe"), 403},
		"image":     {"GET", with(navigate, "Sec-Fetch-Dest", "image", "Sec-Fetch-Mode", "no-cors"), 403},
	} {
		t.Run(name, func(t *testing.T) {
			resp := b.do(test.method, callback, test.h)
			require.Equal(t, test.status, resp.StatusCode)
			require.Empty(t, resp.Header["Set-Cookie"])
			require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
		})
	}
	require.Equal(t, 303, b.get(callback).StatusCode, "after all that, the real one succeeds")
	t.Run("logout_token by POST", func(t *testing.T) {
		for _, path := range []string{"/bank/login", "/bank/callback", "/bank/status"} {
			require.Equal(t, 405, b.do("POST", path+"?logout_token=x", navigate).StatusCode)
		}
		require.True(t, b.connected())
	})
	t.Run("other paths are not the callback", func(t *testing.T) {
		for _, path := range []string{"/bank/callback/", "/BANK/CALLBACK", "/bank/callback;x=1"} {
			require.Equal(t, 404, b.get(path+"?code=a&state=b").StatusCode)
		}
	})
}

// With SameSite=Strict the session cookie stays behind on the way back from the bank; a
// reload from the same site brings it.
func TestStrictSessions(t *testing.T) {
	strict := func(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteStrictMode }
	a := newApp(t, setup{sessions: strict})
	b := a.browser()
	callback := b.callbackURL("/p?a=1")
	resp := b.do("GET", callback, with(navigate, "Sec-Fetch-Site", "cross-site"))
	require.Equal(t, 200, resp.StatusCode)
	require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint), "nothing is consumed yet")
	_, again, ok := strings.Cut(resp.Header.Get("Refresh"), "url=")
	require.True(t, ok)
	require.True(t, strings.HasPrefix(again, "/bank/callback?"))
	resp = b.do("GET", again, with(navigate, "Sec-Fetch-Site", "cross-site"))
	require.Equal(t, 303, resp.StatusCode, "once only, whatever the browser says")
	require.Equal(t, "/p?a=1", resp.Header.Get("Location"))
	require.True(t, b.connected())

	t.Run("below StripPrefix, and asked for with another host in the path", func(t *testing.T) {
		a := newApp(t, setup{sessions: strict})
		for _, h := range []http.Handler{http.StripPrefix("/bank", a.kit.CallbackHandler()), a.kit.CallbackHandler()} {
			b := a.browser()
			callback := strings.TrimPrefix(b.callbackURL("/p"), appURL)
			for _, target := range []string{callback, "//evil.example" + callback} {
				r := httptest.NewRequest("GET", "/bank/callback", nil)
				r.URL.Path, r.URL.RawQuery = cutQuery(target)
				for _, c := range b.cookies() {
					r.AddCookie(c)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code == 404 {
					continue // StripPrefix
				}
				require.True(t, strings.HasPrefix(w.Header().Get("Refresh"), "0; url=/bank/callback?"), w.Header().Get("Refresh"))
			}
		}
	})
}

func cutQuery(target string) (path, query string) {
	path, query, _ = strings.Cut(target, "?")
	return path, query
}

func TestLogout(t *testing.T) {
	for name, h := range map[string]http.Header{
		"another origin":            header("Origin", "https://evil.example"),
		"origin null":               header("Origin", "null"),
		"Sec-Fetch-Site cross-site": header("Sec-Fetch-Site", "cross-site"),
		"Sec-Fetch-Site same-site":  header("Sec-Fetch-Site", "same-site"),
		"the origin by http":        header("Origin", "http://app.example"),
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			b.login()
			require.Equal(t, 403, b.do("POST", "/bank/logout", h).StatusCode)
			require.True(t, b.connected())
		})
	}
	t.Run("behind a proxy that changes Host", func(t *testing.T) {
		a := newApp(t, setup{})
		inner := a.handler
		a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Host = "127.0.0.1:8080"
			inner.ServeHTTP(w, r)
		})
		b := a.browser()
		b.login()
		require.Equal(t, 403, b.do("POST", "/bank/logout", header("Origin", "https://evil.example")).StatusCode)
		require.Equal(t, 303, b.do("POST", "/bank/logout", header("Origin", appURL)).StatusCode, "an old browser")
		require.False(t, b.connected())
	})
	for name, h := range map[string]http.Header{
		"the same origin":            header("Sec-Fetch-Site", "same-origin", "Origin", appURL),
		"an old browser":             {},
		"an old browser with Origin": header("Origin", appURL),
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			b.login()
			cookie := b.cookie("session")
			resp := b.do("POST", "/bank/logout", h)
			require.Equal(t, 303, resp.StatusCode)
			require.Equal(t, "/home", resp.Header.Get("Location"))
			require.Contains(t, resp.Header["Cache-Control"], "no-store")
			require.Len(t, resp.Cookies(), 2, "the session's and the login's")
			require.Empty(t, b.cookies(), "expired with its own attributes")
			require.Zero(t, records(t, a), "the record is gone")
			require.Equal(t, 303, b.get("/p").StatusCode, "the page asks for a login again")
			require.Equal(t, 303, b.post("/bank/logout").StatusCode)
			_, found, _ := a.sessions.Store.Find(cookie)
			require.False(t, found)
		})
	}
	t.Run("the application's values survive, under a new token", func(t *testing.T) {
		a := newApp(t, setup{})
		a.mux.HandleFunc("/cart", func(_ http.ResponseWriter, r *http.Request) { a.sessions.Put(r.Context(), "cart", "x") })
		a.mux.HandleFunc("/show", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, a.sessions.GetString(r.Context(), "cart"))
		})
		b := a.browser()
		b.login()
		b.get("/cart")
		before := b.cookie("session")
		b.post("/bank/logout")
		require.Equal(t, "x", body(b.get("/show")))
		require.NotEqual(t, before, b.cookie("session"))
		require.False(t, b.connected())
	})
	t.Run("GET, HEAD and a prefetch do nothing", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.login()
		for _, method := range []string{"GET", "HEAD"} {
			resp := b.do(method, "/bank/logout", with(navigate, "Sec-Purpose", "prefetch"))
			require.Equal(t, 405, resp.StatusCode)
			require.Equal(t, "POST", resp.Header.Get("Allow"))
		}
		require.True(t, b.connected())
	})
	t.Run("without a session, twice, with garbage", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		for range 2 {
			resp := b.post("/bank/logout")
			require.Equal(t, 303, resp.StatusCode)
			require.Empty(t, resp.Header["Set-Cookie"])
		}
		require.Equal(t, 303, b.do("POST", "/bank/logout", header("Cookie", "session=x; __Host-ganb..x=y")).StatusCode)
	})
	t.Run("where to", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		for target, want := range map[string]string{
			"/bank/logout?return_to=/bye":                         "/bye",
			"/bank/logout?return_to=//evil.example":               "/home",
			"/bank/logout?return_to=https://evil.example&state=x": "/home",
			"/bank/logout?return_to=/bank/logout":                 "/home",
		} {
			require.Equal(t, want, b.post(target).Header.Get("Location"))
		}
	})
	t.Run("a store that is away: the user hears it, and may try again", func(t *testing.T) {
		store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		a := newApp(t, setup{options: ganbauth.Options{Store: store}})
		b := a.browser()
		b.login()
		store.set(nil, nil, io.ErrUnexpectedEOF)
		require.Equal(t, 503, b.post("/bank/logout").StatusCode)
		require.True(t, b.connected())
		store.set(nil, nil, nil)
		require.Equal(t, 303, b.post("/bank/logout").StatusCode)
		require.False(t, b.connected())
	})
	t.Run("HTMX", func(t *testing.T) {
		a := newApp(t, setup{})
		resp := a.browser().do("POST", "/bank/logout", header("HX-Request", "true"))
		require.Equal(t, "/home", resp.Header.Get("HX-Redirect"))
	})
}

func TestStatus(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		resp := b.do("GET", "/bank/status", program)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
		require.JSONEq(t, `{"connected":false,"scopes":[]}`, body(resp))
		b.login()
		resp = b.do("GET", "/bank/status", program)
		require.JSONEq(t, `{"connected":true,"scopes":["openid","offline_access","private:account"],"expires_at":"2000-01-01T01:00:00Z"}`, body(resp))
		time.Sleep(2 * time.Hour)
		require.Contains(t, body(b.do("GET", "/bank/status", program)), `"connected":true`, "it can be refreshed")
		require.Zero(t, a.bank.Refreshes(), "and was not")
		require.Equal(t, 200, b.do("HEAD", "/bank/status", program).StatusCode)
	})
	t.Run("a store that is away", func(t *testing.T) {
		store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		a := newApp(t, setup{options: ganbauth.Options{Store: store}})
		b := a.browser()
		b.login()
		store.set(io.ErrUnexpectedEOF, nil, nil)
		require.Equal(t, 503, b.do("GET", "/bank/status", program).StatusCode)
	})
}

// Two kits in one application with one session manager.
func TestTwoKits(t *testing.T) {
	newSecond := func(a *app) *ganbtest.Server {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
		require.NoError(t, err)
		kit, err := ganbauth.New(c, a.sessions, ganbauth.Options{
			Name: "corp", RedirectURI: appURL + "/corp/callback", Scopes: []string{"openid"}, DefaultReturn: "/home", Logger: discard,
		})
		require.NoError(t, err)
		a.mux.Handle("/corp/login", kit.LoginHandler())
		a.mux.Handle("/corp/callback", kit.CallbackHandler())
		a.mux.Handle("/corp/logout", kit.LogoutHandler())
		a.mux.Handle("/both", a.kit.RequireToken(kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outer, err := a.kit.Check(r)
			require.NoError(t, err)
			inner, _ := ganbauth.TokenFromContext(r.Context())
			fmt.Fprint(w, outer.Subject != inner.Subject)
			resp, err := a.kit.Client(r.Context()).Get(a.bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode, "the outer kit's client finds its own token")
		}))))
		return bank
	}
	a := newApp(t, setup{})
	second := newSecond(a)
	b := a.browser()
	resp := b.get("/corp/login")
	theirs := second.Approve(resp.Header.Get("Location"))
	refused(t, b.get(strings.Replace(theirs, "/corp/callback", "/bank/callback", 1)))
	require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint)+second.Count(ganbtest.TokenEndpoint))
	b.login()
	require.Equal(t, 303, b.get(theirs).StatusCode)
	require.Equal(t, "true", body(b.get("/both")), "each has its own")
	require.Equal(t, 303, b.post("/corp/logout").StatusCode)
	require.True(t, b.connected(), "the other stays")
	require.Equal(t, 401, b.do("GET", "/both", program).StatusCode)
}

// Over a whole round trip no answer and no log line has a secret in it.
func TestI2NothingSecretLeaves(t *testing.T) {
	var mu sync.Mutex
	secrets := map[string][]string{}
	add := func(name, secret string) {
		mu.Lock()
		defer mu.Unlock()
		secrets[name] = append(secrets[name], secret)
	}
	s := setup{bank: ganbtest.Options{SendIssuer: true}, options: ganbauth.Options{PKCE: true}}
	s.config = func(c *ganbauth.Config) {
		add("salt", c.Salt)
		next := c.HTTPClient.Transport
		c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(sent))
			q, err := url.ParseQuery(string(sent))
			for _, name := range []string{"code", "code_verifier", "refresh_token"} {
				if err == nil && q.Has(name) {
					add(name, q.Get(name))
				}
			}
			return next.RoundTrip(r)
		})}
	}
	inBubble(t, s, func(t *testing.T, a *app) {
		b := a.browser()
		var seen strings.Builder
		add("client_secret", a.bank.ClientSecret)
		note := func(resp *http.Response) {
			for name, values := range resp.Header {
				if name == "Location" && strings.HasPrefix(values[0], a.bank.URL) {
					continue // the authorization URL has the state and the nonce
				}
				fmt.Fprintln(&seen, name, values)
			}
			seen.WriteString(body(resp))
		}
		a.next.serve = func(_ http.ResponseWriter, r *http.Request) {
			token, _ := ganbauth.TokenFromContext(r.Context())
			add("access_token", token.AccessToken)
			add("id_token", token.IDToken)
		}
		for range 2 {
			resp := b.get("/bank/login")
			q := mustParse(resp.Header.Get("Location")).Query()
			add("state", q.Get("state"))
			add("nonce", q.Get("nonce"))
			note(resp)
			callback := a.bank.Approve(resp.Header.Get("Location"))
			note(b.get(callback))
			note(b.get(callback))
			note(b.get("/p"))
			time.Sleep(61 * time.Minute)
			note(b.get("/p"))
			note(b.do("GET", "/bank/status", program))
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
			note(b.get(b.callbackURL("/bank/login")))
			note(b.get(a.bank.Deny(b.authorizationURL("/bank/login"))))
			note(b.post("/bank/logout"))
			note(b.do("GET", "/p", program))
		}
		require.Greater(t, len(a.log.String()), 1000, "it has looked at something")
		require.Greater(t, seen.Len(), 10_000)
		require.Len(t, secrets, 9)
		for name, all := range secrets {
			for _, secret := range all {
				require.Greater(t, len(secret), 10, name)
				require.NotContains(t, seen.String(), secret, name)
				require.NotContains(t, a.log.String(), secret, name)
			}
		}
	})
}

// The longest state and code that a callback may have.
func TestI12LimitsOfCallbacks(t *testing.T) {
	_, err := ganbauth.ParseCallback("code=c&state=" + strings.Repeat("s", 128))
	require.NoError(t, err)
	_, err = ganbauth.ParseCallback("code=c&state=" + strings.Repeat("s", 129))
	require.ErrorIs(t, err, ganbauth.ErrInvalidState)
	for length, sent := range map[int]int{1: 1, 4096: 1, 4097: 0} {
		a := newApp(t, setup{})
		b := a.browser()
		state := mustParse(b.authorizationURL("/bank/login")).Query().Get("state")
		resp := b.get("/bank/callback?state=" + state + "&code=" + strings.Repeat("x", length))
		require.Equal(t, sent, a.bank.Count(ganbtest.TokenEndpoint), "a code of %d bytes: %d", length, resp.StatusCode)
	}
}

// What the bank may say in a callback.
func TestCallbackQueries(t *testing.T) {
	most := 16<<10 - len("state=s&code=c&x=")
	issuer := ganbtest.NewServer(ganbtest.Options{InProcess: true}).Config().JWTIssuer
	with := newApp(t, setup{}).kit
	without := newApp(t, setup{config: func(c *ganbauth.Config) { c.JWTIssuer = "" }, options: ganbauth.Options{Scopes: []string{"private:account"}}}).kit
	denied := func(code, description string) error {
		return &ganbauth.AuthorizationError{Code: code, Description: description}
	}
	for _, c := range []struct {
		raw           string
		with, without error // of a bank with an issuer, and of one without
	}{
		{"state=s&code=c", nil, nil},
		{"state=s&code=c&iss=" + url.QueryEscape(issuer), nil, nil},
		{"state=s&code=c&iss=another", ganbauth.ErrInvalidState, nil},
		{"state=s&code=c&x=" + strings.Repeat("x", most), nil, nil},
		{"state=s&code=c&x=" + strings.Repeat("x", most+1), ganbauth.ErrInvalidState, ganbauth.ErrInvalidState},
		{"state=s&error=x&error_description=a&error_description=b", ganbauth.ErrInvalidState, ganbauth.ErrInvalidState},
		{"state=s&error=access_denied&error_description=no", denied("access_denied", "no"), denied("access_denied", "no")},
		{"state=s&error=%00", denied("unknown_error", ""), denied("unknown_error", "")},
		{"state=s&error", denied("unknown_error", ""), denied("unknown_error", "")},
		{"state=s", ganbauth.ErrInvalidState, ganbauth.ErrInvalidState},
	} {
		for kit, want := range map[*ganbauth.Kit]error{with: c.with, without: c.without} {
			err := ganbauth.JudgeCallback(kit, c.raw)
			var refusal *ganbauth.AuthorizationError
			if errors.As(want, &refusal) {
				require.Equal(t, want, err, c.raw)
			} else {
				require.ErrorIs(t, err, want, c.raw)
			}
		}
	}
}

// The application's Key and Connection fail at each of their calls when a login begins: that
// is an answer of the 500s, and no login has begun.
func TestLoginCannotBegin(t *testing.T) {
	for n := 1; ; n++ {
		a, arm, met := newForgetfulApp(t, n, errStep)
		arm()
		resp := a.browser().get("/bank/login")
		if !met() {
			require.Greater(t, n, 2)
			require.Equal(t, 303, resp.StatusCode)
			return
		}
		if resp.StatusCode == 303 {
			require.Greater(t, n, 2, "what follows is for the event only")
			continue
		}
		require.GreaterOrEqual(t, resp.StatusCode, 500, "call %d", n)
		require.Empty(t, resp.Header["Set-Cookie"], "call %d", n)
		require.Empty(t, a.eventTypes(), "call %d", n)
	}
}

// A callback that comes again when the user has logged out connects nobody, and the first one
// does not look for the token that it has just stored.
func TestCallbackAgainAfterLogout(t *testing.T) {
	for name, c := range map[string]struct {
		key func(*http.Request) (string, error)
		end func(a *app, b *browser)
	}{
		"LogoutHandler": {nil, func(_ *app, b *browser) { require.Equal(t, 303, b.post("/bank/logout").StatusCode) }},
		"Disconnect": {
			keyIs("u"),
			func(a *app, _ *browser) { require.NoError(t, a.kit.Disconnect(t.Context(), "u")) },
		},
	} {
		loads := 0
		store := callStore{ganbauth.NewMemoryStore(), func(method, _ string) {
			if method == "Load" {
				loads++
			}
		}}
		a := newApp(t, setup{options: ganbauth.Options{Store: store, Key: c.key}})
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		cookie := b.cookies()[0].String()
		loads = 0
		require.Equal(t, 303, b.get(callback).StatusCode, name)
		require.Equal(t, 3, loads, "%s: to begin, and to compare twice", name)
		c.end(a, b)
		again := a.browser()
		resp := again.do("GET", callback, with(navigate, "Cookie", cookie))
		require.Equal(t, 401, resp.StatusCode, name)
		require.Empty(t, again.cookie("session"), name)
		require.Len(t, resp.Cookies(), 1, "%s: the login is over", name)
	}
}

// A first login that fails leaves nothing in the store.
func TestFailedLoginLeavesNothing(t *testing.T) {
	store := newIndexedStore()
	a := newApp(t, setup{options: ganbauth.Options{Store: store}})
	a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
	b := a.browser()
	require.GreaterOrEqual(t, b.get(b.callbackURL("/bank/login")).StatusCode, 400)
	store.mu.Lock()
	defer store.mu.Unlock()
	require.Empty(t, store.tokens)
}

// A login that gets no turn at the bank leaves everything as it was, and its callback may come
// again.
func TestLoginThatGetsNoTurn(t *testing.T) {
	for name, key := range map[string]func(*http.Request) (string, error){
		"of a session": nil,
		"by Key":       keyIs("u"),
	} {
		inBubble(t, setup{options: ganbauth.Options{Key: key, TokenRate: 0.1}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			callback := b.callbackURL("/bank/login")
			require.Equal(t, 503, b.get(callback).StatusCode, "%s: the next turn comes in ten seconds", name)
			time.Sleep(5 * time.Second)
			require.True(t, b.connected(), name)
			require.Equal(t, 1, records(t, a), name)
			require.Zero(t, ganbauth.KeysHeld(a.kit), name)
			require.Equal(t, 303, b.get(callback).StatusCode, "%s: it waits for five seconds", name)
			require.True(t, b.connected(), name)
		})
	}
}

// A token of the login before that cannot be deleted is an operator's business, not the user's.
func TestFormerTokenStays(t *testing.T) {
	store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
	inBubble(t, setup{options: ganbauth.Options{Store: store}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		store.set(nil, nil, errStep)
		b.login()
		require.True(t, b.connected())
		time.Sleep(time.Minute)
		require.Contains(t, a.log.String(), `level=ERROR msg="ganbauth: the token of the login before could not be deleted"`)
	})
}

// Where a Strict cookie may have stayed behind, a login that knows no user is asked again. Any
// other error is told.
func TestLoginWithoutItsCookie(t *testing.T) {
	var keyErr error
	a := newApp(t, setup{
		sessions: func(m *scs.SessionManager) { m.Cookie.SameSite = http.SameSiteStrictMode },
		options:  ganbauth.Options{Store: ganbauth.NewMemoryStore(), Key: func(*http.Request) (string, error) { return "", keyErr }},
	})
	resp := a.browser().get("/bank/login")
	require.Equal(t, 200, resp.StatusCode)
	require.NotEmpty(t, resp.Header.Get("Refresh"))
	resp = a.browser().get("/bank/login?" + strings.Repeat("x", 10_000))
	require.Empty(t, resp.Header.Get("Refresh"), "there is no path to ask again for")
	require.GreaterOrEqual(t, resp.StatusCode, 400)
	keyErr = errStep
	b := a.browser()
	resp = b.follow(b.get("/bank/login"))
	require.Equal(t, 500, resp.StatusCode)
	require.Empty(t, resp.Header.Get("Refresh"))
}

// What Connection reads from the session decides what is connected: a link from another
// site, which brings no Strict cookie, is asked again first.
func TestStrictSessionNamesTheConnection(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		var a *app
		read := func(name string) func(*http.Request) (string, error) {
			return func(r *http.Request) (string, error) { return a.sessions.GetString(r.Context(), name), nil }
		}
		s := setup{
			sessions: func(m *scs.SessionManager) { m.Cookie.SameSite = http.SameSiteStrictMode },
			options:  ganbauth.Options{Connection: read("client")},
		}
		if keyed {
			s.options.Store, s.options.Key = ganbauth.NewMemoryStore(), read("user")
		}
		a = newApp(t, s)
		a.mux.HandleFunc("/app", func(_ http.ResponseWriter, r *http.Request) {
			a.sessions.Put(r.Context(), "user", "u")
			a.sessions.Put(r.Context(), "client", "acme")
		})
		b, elsewhere := a.browser(), with(navigate, "Sec-Fetch-Site", "cross-site")
		b.get("/app")
		begun := b.follow(b.arrive("/bank/login", elsewhere))
		require.Equal(t, 303, begun.StatusCode)
		require.Equal(t, 303, b.follow(b.arrive(a.bank.Approve(begun.Header.Get("Location")), elsewhere)).StatusCode)
		require.Equal(t, 200, b.do("GET", "/p", program).StatusCode, "acme is connected")
	}
}

// A callback whose session is gone is asked again, three times at most: another tab's login
// may have renewed the session.
func TestCallbackWhoseSessionIsGone(t *testing.T) {
	a := newApp(t, setup{})
	token := storeSession(t, a.sessions, "cart", "full")
	b := a.browser()
	b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{{Name: "session", Value: token, Secure: true}})
	callback := b.callbackURL("/bank/login")
	cookies := without(b.cookies(), "session") + "; session=gone"
	pauses := map[string]bool{}
	for range 100 {
		pause, _, _ := strings.Cut(a.browser().do("GET", callback, with(navigate, "Cookie", cookies)).Header.Get("Refresh"), ";")
		pauses[pause] = true
	}
	require.Equal(t, map[string]bool{"1": true, "2": true, "3": true}, pauses, "tabs that ask together do not ask together again")
	for reloads, again := range map[int]bool{0: true, 2: true, 3: false} {
		target := callback
		if reloads > 0 {
			target += fmt.Sprint("&ganb.bank.reloaded=", reloads)
		}
		resp := a.browser().do("GET", target, with(navigate, "Cookie", cookies))
		require.Equal(t, again, resp.Header.Get("Refresh") != "", reloads)
		require.Equal(t, again, resp.StatusCode == 200, reloads)
	}
}

// A session that is gone when its login ends may have been renewed by another tab. The callback
// is asked again, three times at most.
func TestCallbackWhoseSessionGoes(t *testing.T) {
	for reloads, again := range map[int]bool{2: true, 3: false} {
		var a *app
		var session string
		a = newApp(t, setup{config: func(c *ganbauth.Config) {
			next := c.HTTPClient.Transport
			c.HTTPClient = &http.Client{Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
				require.NoError(t, a.sessions.Store.Delete(session))
				return next.RoundTrip(r)
			})}
		}})
		session = storeSession(t, a.sessions, "cart", "full")
		b := a.browser()
		b.client.Jar.SetCookies(mustParse(appURL), []*http.Cookie{{Name: "session", Value: session, Secure: true}})
		resp := b.get(fmt.Sprint(b.callbackURL("/bank/login"), "&ganb.bank.reloaded=", reloads))
		require.Equal(t, again, resp.Header.Get("Refresh") != "", reloads)
		require.Equal(t, again, resp.StatusCode == 200, reloads)
		require.Equal(t, again, resp.StatusCode != 503, reloads)
	}
}

// A callback comes again when the user is not connected: it is reloaded once, because the
// application's cookie may come then, and after that it is said to be over. Nothing changes.
func TestCallbackThatIsOver(t *testing.T) {
	var failed error
	a := newApp(t, setup{options: ganbauth.Options{
		Key: keyIs("u"),
		OnError: func(w http.ResponseWriter, _ *http.Request, err error) {
			failed = err
			w.WriteHeader(ganbauth.StatusCode(err))
		},
	}})
	b := a.browser()
	callback := b.callbackURL("/bank/login")
	require.Equal(t, 303, b.get(callback).StatusCode)
	require.NoError(t, a.kit.Disconnect(t.Context(), "u"))
	require.NotEmpty(t, b.get(callback).Header.Get("Refresh"))
	resp := b.get(callback + "&ganb.bank.reloaded=1")
	require.Equal(t, 400, resp.StatusCode)
	require.Empty(t, resp.Cookies())
	require.ErrorIs(t, failed, ganbauth.ErrInvalidState)
	require.ErrorContains(t, failed, "this login is over")
}

// A callback that is over, at a store that fails, is not said to be over.
func TestCallbackAgainWhileTheStoreFails(t *testing.T) {
	store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
	a := newApp(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}})
	b := a.browser()
	callback := b.callbackURL("/bank/login")
	require.Equal(t, 303, b.get(callback).StatusCode)
	store.set(errStep, nil, nil)
	require.Equal(t, 503, b.get(callback).StatusCode)
	store.set(nil, nil, nil)
	require.Equal(t, 303, b.get(callback).StatusCode)
}

// The event of a login that fails says which connection it was for, if that is known.
func TestFailedLoginNamesItsConnection(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	a := newApp(t, setup{options: ganbauth.Options{
		Store:      ganbauth.NewMemoryStore(),
		Key:        keyIs("u"),
		Connection: byClient,
		Observe: func(ctx context.Context, e ganbauth.Event) {
			key, connection, _ := ganbauth.KeyFromContext(ctx)
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprint(e.Type, " ", key, " ", connection))
		},
	}})
	b := a.browser()
	b.get(a.bank.Deny(b.authorizationURL("/bank/login?client=firm")))
	b.get("/bank/callback?state=s&code=c")
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"login_started u firm", "login_failed u firm", "login_failed u "}, seen)
}

// The application's Key and Connection fail at each of their calls: nobody knows then whether
// the user is connected, and nobody is disconnected.
func TestStatusAndForgetCannotTell(t *testing.T) {
	for name, ask := range map[string]func(a *app) error{
		"Status": func(a *app) error {
			status, err := a.kit.Status(httptest.NewRequest("GET", "/", nil))
			require.Equal(t, err == nil, status.Connected)
			require.NotNil(t, status.Scopes)
			return err
		},
		"Forget": func(a *app) error { return a.kit.Forget(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil)) },
	} {
		for n := 1; ; n++ {
			a, arm, met := newForgetfulApp(t, n, errStep)
			require.NoError(t, a.kit.SetToken(t.Context(), "u", a.bank.Token(), "c"))
			arm()
			err := ask(a)
			if !met() {
				require.NoError(t, err)
				require.Greater(t, n, 2, name)
				break
			}
			require.ErrorIs(t, err, errStep, "%s: call %d", name, n)
			require.Equal(t, 500, ganbauth.StatusCode(err))
			_, err = a.kit.Token(t.Context(), "u", "c")
			require.NoError(t, err, "%s: call %d", name, n)
		}
	}
}

// Who is connected is whose token is live or can be refreshed. The store is not asked about a
// session that has no token.
func TestStatusOfTokens(t *testing.T) {
	memory, calls := ganbauth.NewMemoryStore(), 0
	a := newApp(t, setup{options: ganbauth.Options{Store: callStore{memory, func(string, string) { calls++ }}}})
	r := httptest.NewRequest("GET", "/", nil)
	status, err := a.kit.Status(r)
	require.NoError(t, err)
	require.False(t, status.Connected)
	require.NoError(t, a.kit.Forget(httptest.NewRecorder(), r))
	require.Zero(t, calls)
	require.Empty(t, a.eventTypes())

	ctx, err := a.sessions.Load(t.Context(), "")
	require.NoError(t, err)
	a.sessions.Put(ctx, "ganbauth.bank", "bank/;A")
	for _, c := range []struct{ live, refreshable, want bool }{{true, true, true}, {true, false, true}, {false, true, true}, {false, false, false}} {
		token := a.bank.Token()
		if !c.live {
			token.ExpiresAt = time.Now().Add(-time.Minute)
		}
		if !c.refreshable {
			token.RefreshToken = ""
		}
		require.NoError(t, memory.Save(t.Context(), "bank/;A", token))
		status, err := a.kit.Status(r.WithContext(ctx))
		require.NoError(t, err)
		require.Equal(t, c.want, status.Connected, c)
		w := httptest.NewRecorder()
		a.kit.StatusHandler().ServeHTTP(w, r.WithContext(ctx))
		require.Equal(t, "application/json; charset=utf-8", w.Header().Get("Content-Type"))
		require.Equal(t, c.want, strings.Contains(w.Body.String(), `"connected":true`))
	}
}

// The log tells of what an operator can mend, and of nobody who is not connected or has left.
func TestWhatRefusalsAreLogged(t *testing.T) {
	store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
	a := newApp(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}})
	require.Equal(t, 401, a.browser().do("GET", "/p", program).StatusCode)
	require.NotContains(t, a.log.String(), "refused")
	store.set(errStep, nil, nil)
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 2 {
		a.handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/p", nil).WithContext(gone))
	}
	require.NotContains(t, a.log.String(), "refused")
	require.Equal(t, 503, a.browser().do("GET", "/p", program).StatusCode)
	require.Regexp(t, `level=WARN msg="ganbauth: refused" method=GET path=/p status=503 error=`, a.log.String())
}

// Who waits for a bank that hangs is told so, and not that this site has a fault.
func TestBankThatHangsIsNamed(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		callback := b.callbackURL("/p")
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(25*time.Second), 1)
		resp := b.get(callback)
		require.Equal(t, 503, resp.StatusCode)
		require.Contains(t, body(resp), "The bank is not available")
		require.Equal(t, "timeout", a.lastEvent().ErrorClass)
		time.Sleep(time.Minute)
		require.Equal(t, "/p", b.get(callback).Header.Get("Location"), "the code was exchanged meanwhile")

		time.Sleep(2 * time.Hour)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(25*time.Second), 1)
		require.Equal(t, "bank_unavailable", problemOf(t, b.do("GET", "/p", program)).Code)
		time.Sleep(time.Minute)
	})
}

// An application ends every request after five seconds. The page says how to go on.
func TestLoginThatADeadlineCutsShort(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		inner := a.handler
		a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
			defer cancel()
			inner.ServeHTTP(w, r.WithContext(ctx))
		})
		b := a.browser()
		callback := b.callbackURL("/p")
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(8*time.Second), 1)
		require.Contains(t, body(b.get(callback)), `href="/p"`, "where to begin again")
		time.Sleep(time.Minute)
		require.Equal(t, "/p", b.get(callback).Header.Get("Location"))
	})
}

// A callback that is delivered twice at once is one login, of which both get the outcome.
func TestTwoDeliveriesAreOneLogin(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{TokenRate: 0.2}}, func(t *testing.T, a *app) {
		a.browser().login() // the next one waits for five seconds
		b := a.browser()
		r := mustRequest("GET", b.callbackURL("/bank/login"))
		r.Header = with(navigate, "Cookie", b.cookieHeader())
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				resp, err := b.client.Transport.RoundTrip(r.Clone(t.Context()))
				if err != nil || resp.Header.Get("Location") != "/home" {
					t.Error(resp, err)
				}
			})
		}
		both.Wait()
		require.Equal(t, []ganbauth.EventType{
			ganbauth.EventLoginStarted, ganbauth.EventLoginSucceeded, ganbauth.EventLoginStarted, ganbauth.EventLoginSucceeded,
		}, a.eventTypes())
	})
}

// A callback that comes too late says so, forgets its login and spends no code.
func TestCallbackThatIsLate(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		time.Sleep(ganbauth.AttemptLifetime + time.Second)
		resp := b.get(callback)
		require.Equal(t, 400, resp.StatusCode)
		require.Contains(t, body(resp), "more than ten minutes ago")
		require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
		require.Equal(t, 400, b.get(callback).StatusCode)
		require.NotContains(t, b.cookieHeader(), "ganb", "nothing is left of it")
	})
}
