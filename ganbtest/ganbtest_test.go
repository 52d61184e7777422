package ganbtest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

const callback = "https://app.example/cb"

func connector(t *testing.T, s *ganbtest.Server) *ganbauth.Connector {
	t.Helper()
	c, err := ganbauth.NewConnector(s.ClientID, s.ClientSecret, s.AuthMethod, s.Config())
	require.NoError(t, err)
	return c
}

func codeFor(t *testing.T, s *ganbtest.Server, scope string) string {
	t.Helper()
	authURL, err := connector(t, s).OAuthAuthorization("session", scope, callback)
	require.NoError(t, err)
	u, err := url.Parse(s.Approve(authURL))
	require.NoError(t, err)
	return u.Query().Get("code")
}

func login(t *testing.T, s *ganbtest.Server) *ganbauth.Token {
	t.Helper()
	token, err := connector(t, s).OAuthToken(t.Context(), callback, codeFor(t, s, "offline_access private:account"))
	require.NoError(t, err)
	return token
}

func requireCode(t *testing.T, code string, err error) {
	t.Helper()
	var e *ganbauth.TokenError
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code)
}

func both(t *testing.T, opts ganbtest.Options, test func(*testing.T, *ganbtest.Server)) {
	t.Helper()
	for name, inProcess := range map[string]bool{"on loopback": false, "in process": true} {
		t.Run(name, func(t *testing.T) {
			opts.InProcess = inProcess
			s := ganbtest.NewServer(opts)
			t.Cleanup(s.Close)
			test(t, s)
		})
	}
}

func TestRotation(t *testing.T) {
	for _, revoke := range []bool{false, true} {
		both(t, ganbtest.Options{RevokeOnReuse: revoke}, func(t *testing.T, s *ganbtest.Server) {
			c := connector(t, s)
			first := login(t, s)
			second, err := c.RefreshTokens(t.Context(), first.RefreshToken)
			require.NoError(t, err)
			require.NotEqual(t, first.RefreshToken, second.RefreshToken)
			_, err = c.RefreshTokens(t.Context(), first.RefreshToken)
			requireCode(t, "invalid_grant", err)
			_, err = c.RefreshTokens(t.Context(), second.RefreshToken)
			if revoke {
				requireCode(t, "invalid_grant", err)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, 3, s.Refreshes())
		})
	}
	both(t, ganbtest.Options{KeepRefreshToken: true}, func(t *testing.T, s *ganbtest.Server) {
		first := login(t, s)
		for range 2 {
			next, err := connector(t, s).RefreshTokens(t.Context(), first.RefreshToken)
			require.NoError(t, err)
			require.Equal(t, first.RefreshToken, next.RefreshToken)
		}
	})
}

func TestToken(t *testing.T) {
	both(t, ganbtest.Options{Subject: "u-1"}, func(t *testing.T, s *ganbtest.Server) {
		token := s.Token()
		require.Equal(t, "u-1", token.Subject)
		require.NotEmpty(t, token.RefreshToken)
		require.Equal(t, 200, callAPI(t, s, token))
		require.Equal(t, "private:account", s.Token("private:account").Scope)
		s.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		require.Panics(t, func() { s.Token() })
	})
}

func TestCodes(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	c := connector(t, s)
	code := codeFor(t, s, "offline_access")
	token, err := c.OAuthToken(t.Context(), callback, code)
	require.NoError(t, err)
	_, err = c.OAuthToken(t.Context(), callback, code)
	requireCode(t, "invalid_grant", err)
	_, err = c.RefreshTokens(t.Context(), token.RefreshToken)
	requireCode(t, "invalid_grant", err) // a code used twice ends the grant
	_, err = c.OAuthToken(t.Context(), callback+"x", codeFor(t, s, "a"))
	requireCode(t, "invalid_grant", err)
	_, err = c.OAuthToken(t.Context(), callback, "unknown")
	requireCode(t, "invalid_grant", err)
	token, err = c.OAuthToken(t.Context(), callback, codeFor(t, s, "a"))
	require.NoError(t, err)
	require.Empty(t, token.RefreshToken, "without offline_access")
}

func TestClientAuthentication(t *testing.T) {
	for _, registered := range []ganbauth.AuthMethod{ganbauth.AuthBasic, ganbauth.AuthPost} {
		for _, used := range []ganbauth.AuthMethod{ganbauth.AuthBasic, ganbauth.AuthPost} {
			s := ganbtest.NewServer(ganbtest.Options{InProcess: true, AuthMethod: registered})
			c, err := ganbauth.NewConnector(s.ClientID, s.ClientSecret, used, s.Config())
			require.NoError(t, err)
			_, err = c.OAuthToken(t.Context(), callback, codeFor(t, s, "a"))
			if used == registered {
				require.NoError(t, err)
			} else {
				requireCode(t, "invalid_client", err)
			}
			require.Equal(t, used, s.Requests()[0].AuthMethod)
		}
	}
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	c, err := ganbauth.NewConnector(s.ClientID, "wrong", s.AuthMethod, s.Config())
	require.NoError(t, err)
	_, err = c.OAuthToken(t.Context(), callback, "c")
	requireCode(t, "invalid_client", err)
}

func TestLifetimes(t *testing.T) {
	now := time.Now()
	for name, opts := range map[string]ganbtest.Options{"number": {}, "string": {ExpiresInString: true}} {
		t.Run(name, func(t *testing.T) {
			opts.InProcess, opts.Lifetime, opts.Now = true, 10*time.Minute, func() time.Time { return now }
			s := ganbtest.NewServer(opts)
			token := login(t, s)
			require.Equal(t, 10*time.Minute, token.ExpiresAt.Sub(token.IssuedAt))
			require.Equal(t, 200, callAPI(t, s, token))
			now = now.Add(10 * time.Minute)
			require.Equal(t, 401, callAPI(t, s, token), "the bank's own clock")
		})
	}
	t.Run("none", func(t *testing.T) {
		token := login(t, ganbtest.NewServer(ganbtest.Options{InProcess: true, Lifetime: time.Minute, OmitExpiresIn: true}))
		require.Equal(t, time.Hour, token.ExpiresAt.Sub(token.IssuedAt))
	})
}

func callAPI(t *testing.T, s *ganbtest.Server, token *ganbauth.Token) int {
	t.Helper()
	req, err := http.NewRequest("GET", s.APIBase()+"/accounts/balances", nil)
	require.NoError(t, err)
	req.Header.Set("x-access-token", token.AccessToken)
	resp, err := s.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestExpireAndRevoke(t *testing.T) {
	both(t, ganbtest.Options{}, func(t *testing.T, s *ganbtest.Server) {
		token := login(t, s)
		require.Equal(t, 200, callAPI(t, s, token))
		s.ExpireAccessTokens()
		require.Equal(t, 401, callAPI(t, s, token))
		next, err := connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
		require.NoError(t, err)
		require.Equal(t, 200, callAPI(t, s, next))
		s.RevokeGrants()
		require.Equal(t, 401, callAPI(t, s, next))
		_, err = connector(t, s).RefreshTokens(t.Context(), next.RefreshToken)
		requireCode(t, "invalid_grant", err)
	})
}

func TestFaults(t *testing.T) {
	refresh := func(t *testing.T, s *ganbtest.Server, rt string) error {
		_, err := connector(t, s).RefreshTokens(t.Context(), rt)
		return err
	}
	for name, test := range map[string]struct {
		fault  ganbtest.Fault
		status int
	}{
		"Maintenance":   {ganbtest.Maintenance, 503},
		"RateLimited":   {ganbtest.RateLimited, 429},
		"ServerError":   {ganbtest.ServerError, 500},
		"InvalidGrant":  {ganbtest.InvalidGrant, 400},
		"InvalidClient": {ganbtest.InvalidClient, 401},
		"Redirect":      {ganbtest.Redirect("https://evil.example"), 307},
		"ConnectionCut": {ganbtest.ConnectionCut, 0},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, ganbtest.Options{}, func(t *testing.T, s *ganbtest.Server) {
				token := login(t, s)
				s.Fail(ganbtest.TokenEndpoint, test.fault, 2)
				for range 2 {
					var e *ganbauth.TokenError
					require.ErrorAs(t, refresh(t, s, token.RefreshToken), &e)
					require.Equal(t, test.status, e.StatusCode)
				}
				require.NoError(t, refresh(t, s, token.RefreshToken), "nothing was processed, and it heals")
			})
		})
	}
	for name, fault := range map[string]ganbtest.Fault{"AnswerLost": ganbtest.AnswerLost, "Truncated": ganbtest.Truncated} {
		t.Run(name, func(t *testing.T) {
			both(t, ganbtest.Options{}, func(t *testing.T, s *ganbtest.Server) {
				token := login(t, s)
				s.Fail(ganbtest.TokenEndpoint, fault, -1)
				require.Error(t, refresh(t, s, token.RefreshToken))
				s.Heal()
				requireCode(t, "invalid_grant", refresh(t, s, token.RefreshToken))
			})
		})
	}
	t.Run("a body or a header without a status", func(t *testing.T) {
		now := time.Now()
		both(t, ganbtest.Options{Now: func() time.Time { return now }}, func(t *testing.T, s *ganbtest.Server) {
			token := login(t, s)
			ask := func(fault ganbtest.Fault) (*http.Response, string) {
				s.Fail(ganbtest.API, fault, 1)
				req, err := http.NewRequest("GET", s.APIBase()+"/accounts", nil)
				require.NoError(t, err)
				req.Header.Set("X-Access-Token", token.AccessToken)
				resp, err := s.Client().Do(req)
				require.NoError(t, err)
				return resp, read(t, resp, err)
			}
			well, whole := ask(ganbtest.Fault{})
			half, body := ask(ganbtest.Fault{Body: whole[:20]})
			require.Equal(t, whole[:20], body)
			require.Equal(t, 200, half.StatusCode)
			require.Equal(t, well.Header["Content-Type"], half.Header["Content-Type"])
			odd, body := ask(ganbtest.Fault{Header: http.Header{"content-type": {"text/plain"}, "X-A": {"a", "b"}}})
			require.Equal(t, whole, body)
			require.Equal(t, 200, odd.StatusCode)
			require.Equal(t, []string{"text/plain"}, odd.Header["Content-Type"])
			require.Equal(t, []string{"a", "b"}, odd.Header["X-A"])

			s.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Body: `{"access_token":"half`}, 1)
			require.Error(t, refresh(t, s, token.RefreshToken))
			requireCode(t, "invalid_grant", refresh(t, s, token.RefreshToken))
		})
	})
	t.Run("WrongIDToken", func(t *testing.T) {
		s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		authURL, nonce, err := connector(t, s).OpenIDAuthorization("s", "openid", callback)
		require.NoError(t, err)
		u, _ := url.Parse(s.Approve(authURL))
		s.Fail(ganbtest.TokenEndpoint, ganbtest.WrongIDToken, 1)
		_, err = connector(t, s).OpenIDToken(t.Context(), callback, u.Query().Get("code"), nonce)
		require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
	})
	t.Run("Slow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
			token := login(t, s)
			s.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(5*time.Second), 1)
			start := time.Now()
			require.NoError(t, refresh(t, s, token.RefreshToken))
			require.Equal(t, 5*time.Second, time.Since(start))
		})
	})
}

func TestAuthorizationEndpoint(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Consent: true, RedirectURI: callback, SendIssuer: true})
	client := &http.Client{Transport: s.Client().Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	authURL, err := connector(t, s).OAuthAuthorization("session", "a b", callback)
	require.NoError(t, err)

	resp, err := client.Get(authURL)
	require.NoError(t, err)
	page, _ := io.ReadAll(resp.Body)
	require.Contains(t, string(page), `value="a"`)

	u, _ := url.Parse(authURL)
	decide := func(form url.Values) url.Values {
		form.Set("query", u.RawQuery)
		resp, err := client.PostForm(authURL, form)
		require.NoError(t, err)
		require.Equal(t, 302, resp.StatusCode)
		back, err := url.Parse(resp.Header.Get("Location"))
		require.NoError(t, err)
		require.Equal(t, u.Query().Get("state"), back.Query().Get("state"))
		require.Equal(t, s.URL+"/", back.Query().Get("iss"))
		return back.Query()
	}
	require.Equal(t, "access_denied", decide(url.Values{"decision": {"deny"}, "scope": {"a"}}).Get("error"))
	require.Equal(t, "access_denied", decide(url.Values{"decision": {"approve"}}).Get("error"), "nothing chosen")
	code := decide(url.Values{"decision": {"approve"}, "scope": {"b", "not asked for"}}).Get("code")
	token, err := connector(t, s).OAuthToken(t.Context(), callback, code)
	require.NoError(t, err)
	require.Equal(t, "b", token.Scope)

	for name, change := range map[string]func(url.Values){
		"another client":       func(q url.Values) { q.Set("client_id", "x") },
		"another redirect_uri": func(q url.Values) { q.Set("redirect_uri", "https://evil.example/") },
	} {
		t.Run(name+" gets a page, no redirect", func(t *testing.T) {
			v := *u
			q := v.Query()
			change(q)
			v.RawQuery = q.Encode()
			resp, err := client.Get(v.String())
			require.NoError(t, err)
			require.Equal(t, 400, resp.StatusCode)
			require.Empty(t, resp.Header.Get("Location"))
		})
	}
	t.Run("a request that is not valid", func(t *testing.T) {
		v := *u
		q := v.Query()
		q.Set("scope", strings.Repeat("s", 257))
		v.RawQuery = q.Encode()
		resp, err := client.Get(v.String())
		require.NoError(t, err)
		require.Contains(t, resp.Header.Get("Location"), "error=invalid_request")
	})
	require.Contains(t, s.Deny(authURL), "error=access_denied")
}

func TestAPI(t *testing.T) {
	both(t, ganbtest.Options{}, func(t *testing.T, s *ganbtest.Server) {
		token := login(t, s)
		do := func(method, path, body, key string) (int, string) {
			req, err := http.NewRequest(method, s.APIBase()+path, strings.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("x-access-token", token.AccessToken)
			req.Header.Set("Idempotency-Key", key)
			resp, err := s.Client().Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			data, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(data)
		}
		status, body := do("GET", "/accounts", "", "")
		require.Equal(t, 200, status)
		require.Contains(t, body, "accountNumber")
		_, once := do("POST", "/transfer/request", `{"amount":"1"}`, "k")
		_, again := do("POST", "/transfer/request", `{"amount":"1"}`, "k")
		require.Equal(t, once, again)
		_, other := do("POST", "/transfer/request", `{"amount":"1"}`, "l")
		require.NotEqual(t, once, other)
		status, body = do("POST", "/transfer/request", `x`, "")
		require.Equal(t, 400, status)
		require.Contains(t, body, "WG_ERR_110")
		status, body = do("GET", "/nowhere", "", "")
		require.Equal(t, 405, status)
		require.Contains(t, body, "WG_ERR_019")
		token.AccessToken = ""
		status, body = do("GET", "/accounts", "", "")
		require.Equal(t, 401, status)
		require.Contains(t, body, "WG_ERR_105")
		require.Equal(t, 7, s.Count(ganbtest.API))
	})
}

func TestUserInfo(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, RefreshIDToken: true})
	c := connector(t, s)
	authURL, nonce, err := c.OpenIDAuthorization("s", "openid offline_access", callback)
	require.NoError(t, err)
	u, _ := url.Parse(s.Approve(authURL))
	token, err := c.OpenIDToken(t.Context(), callback, u.Query().Get("code"), nonce)
	require.NoError(t, err)
	info, err := c.UserInfo(t.Context(), token)
	require.NoError(t, err)
	require.Equal(t, token.Subject, info["sub"])
	next, err := c.RefreshSession(t.Context(), token, nil)
	require.NoError(t, err, "the ID token that comes with it passes")
	s.ExpireAccessTokens()
	_, err = c.UserInfo(t.Context(), next)
	require.Error(t, err)
}

func TestRequestsHoldNoSecret(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	token := login(t, s)
	callAPI(t, s, token)
	text := fmt.Sprintf("%+v", s.Requests())
	for _, secret := range []string{s.ClientSecret, token.AccessToken, token.RefreshToken} {
		require.NotContains(t, text, secret)
	}
	require.Equal(t, 200, s.Requests()[0].Status)
	require.Equal(t, "authorization_code", s.Requests()[0].GrantType)
}
