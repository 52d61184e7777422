package ganbauth_test

import (
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

func TestAuthorizationURL(t *testing.T) {
	c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", AuthPath: "/a?p=1", Salt: "s"})
	t.Run("the endpoint's own query is kept", func(t *testing.T) {
		got, err := c.OAuthAuthorization("session", "a b", callbackURI)
		require.NoError(t, err)
		require.Equal(t, "1", mustParse(got).Query().Get("p"))
		require.Equal(t, "code", mustParse(got).Query().Get("response_type"))
		require.Equal(t, 1, strings.Count(got, "?"))
	})
	t.Run("without one", func(t *testing.T) {
		for _, base := range []string{"https://bank.test/auth", "https://bank.test/auth/"} {
			c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: base, Salt: "s"})
			got, err := c.OAuthAuthorization("session", "a b", "https://app.test/cb?x=1")
			require.NoError(t, err)
			require.Equal(t, "https://bank.test/auth/authorization?client_id="+clientID+"&response_type=code&scope=a+b&state="+
				"1225ae6c1ae69dcb4ee4781b703e12206f3b549cd3ca151070a8d8d8f371dd71&redirect_uri=https%3A%2F%2Fapp.test%2Fcb%3Fx%3D1", got)
		}
	})
	t.Run("lengths", func(t *testing.T) {
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: "i", Salt: "s"})
		for _, test := range []struct{ session, scope, uri, says string }{
			{"", "a", callbackURI, "the session id is empty"},
			{"s", "", callbackURI, "scope must have 1 to 256 characters, not 0"},
			{"s", strings.Repeat("a", 257), callbackURI, "scope must have 1 to 256 characters, not 257"},
			{"s", "a", "", "redirect_uri must have 1 to 256 characters, not 0"},
			{"s", "a", strings.Repeat("a", 257), "redirect_uri must have 1 to 256 characters, not 257"},
		} {
			got, err := c.OAuthAuthorization(test.session, test.scope, test.uri)
			require.ErrorContains(t, err, test.says)
			require.Empty(t, got)
			got, nonce, err := c.OpenIDAuthorization(test.session, test.scope, test.uri)
			require.ErrorContains(t, err, test.says)
			require.Empty(t, got+nonce)
		}
		_, err := c.OAuthAuthorization("s", strings.Repeat("a", 256), strings.Repeat("b", 256))
		require.NoError(t, err)
	})
	t.Run("OpenID Connect needs an issuer", func(t *testing.T) {
		got, nonce, err := c.OpenIDAuthorization("s", "openid", callbackURI)
		require.ErrorContains(t, err, "JWTIssuer")
		require.Empty(t, got+nonce)
	})
	t.Run("nonces are fresh and long", func(t *testing.T) {
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: "i", Salt: "s"})
		seen := map[string]bool{}
		for range 1000 {
			_, nonce, err := c.OpenIDAuthorization("s", "openid", callbackURI)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(nonce), 26) // base32: 130 bits
			require.False(t, seen[nonce])
			seen[nonce] = true
		}
	})
}

// A Connector that NewConnector did not make says so.
func TestZeroConnector(t *testing.T) {
	token := &ganbauth.Token{AccessToken: "AT-1", RefreshToken: "RT-1", Subject: "u-1"}
	for name, c := range map[string]*ganbauth.Connector{"zero": {}, "nil": nil} {
		for method, call := range map[string]func() error{
			"OAuthAuthorization":  func() error { _, err := c.OAuthAuthorization("s", "a", callbackURI); return err },
			"OpenIDAuthorization": func() error { _, _, err := c.OpenIDAuthorization("s", "a", callbackURI); return err },
			"OAuthToken":          func() error { _, err := c.OAuthToken(t.Context(), callbackURI, "c"); return err },
			"OpenIDToken":         func() error { _, err := c.OpenIDToken(t.Context(), callbackURI, "c", "n"); return err },
			"RefreshTokens":       func() error { _, err := c.RefreshTokens(t.Context(), "RT-1"); return err },
			"RefreshSession":      func() error { _, err := c.RefreshSession(t.Context(), token, nil); return err },
			"UserInfo":            func() error { _, err := c.UserInfo(t.Context(), token); return err },
		} {
			err := call()
			require.ErrorContains(t, err, "not made by NewConnector", "%s %s", name, method)
			require.Equal(t, 500, ganbauth.StatusCode(err))
		}
	}
}

func TestTokenRequest(t *testing.T) {
	t.Run("form and headers", func(t *testing.T) {
		o := newOP(t, answersJSON(goodToken))
		_, err := o.connector(t).OAuthToken(t.Context(), callbackURI+"?a=b&c=%20d", "a+b/c=&d%20")
		require.NoError(t, err)
		r := o.seen.Load()
		require.Equal(t, "POST", r.Method)
		require.Contains(t, r.Header.Get("Accept"), "application/json")
		form, err := url.ParseQuery(*o.body.Load())
		require.NoError(t, err)
		require.Equal(t, url.Values{
			"grant_type":   {"authorization_code"},
			"code":         {"a+b/c=&d%20"},
			"redirect_uri": {callbackURI + "?a=b&c=%20d"},
		}, form)
	})
	for name, method := range map[string]ganbauth.AuthMethod{"basic": ganbauth.AuthBasic, "post": ganbauth.AuthPost} {
		t.Run("only by "+name, func(t *testing.T) {
			o := newOP(t, answersJSON(goodToken))
			c := newConnector(t, method, o.config())
			for _, call := range []func() error{
				func() error { _, err := c.OAuthToken(t.Context(), callbackURI, "code"); return err },
				func() error { _, err := c.RefreshTokens(t.Context(), "RT-1"); return err },
			} {
				require.NoError(t, call())
				_, _, basic := o.seen.Load().BasicAuth()
				require.Equal(t, method == ganbauth.AuthBasic, basic)
				require.Equal(t, method == ganbauth.AuthPost, strings.Contains(*o.body.Load(), "client_secret"))
			}
		})
		t.Run("no other method is tried after "+name, func(t *testing.T) {
			o := newOP(t, answers(401, "application/json", `{"error":"invalid_client"}`))
			c := newConnector(t, method, o.config())
			_, err := c.OAuthToken(t.Context(), callbackURI, "code")
			var e *ganbauth.TokenError
			require.ErrorAs(t, err, &e)
			require.Equal(t, "invalid_client", e.Code)
			require.EqualValues(t, 1, o.hits.Load())
		})
	}
	t.Run("refresh", func(t *testing.T) {
		o := newOP(t, answersJSON(goodToken))
		_, err := o.connector(t).RefreshTokens(t.Context(), "RT-1")
		require.NoError(t, err)
		require.Equal(t, "grant_type=refresh_token&refresh_token=RT-1", *o.body.Load())
	})
	t.Run("no cookie goes along, and the caller's client stays as it was", func(t *testing.T) {
		o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: "1", Path: "/"})
			answersJSON(goodToken)(w, r)
		})
		jar, _ := cookiejar.New(nil)
		lent := &http.Client{Jar: jar}
		cfg := o.config()
		cfg.HTTPClient = lent
		c := newConnector(t, ganbauth.AuthBasic, cfg)
		for range 2 {
			_, err := c.OAuthToken(t.Context(), callbackURI, "code")
			require.NoError(t, err)
			require.Empty(t, o.seen.Load().Header["Cookie"])
		}
		require.Equal(t, &http.Client{Jar: jar}, lent)
	})
}

func TestUserInfo(t *testing.T) {
	token := &ganbauth.Token{AccessToken: "AT-1", Subject: "u-1"}
	for name, test := range map[string]struct {
		body string
		want error
		says string
	}{
		"the token's user": {`{"sub":"u-1","iss":"` + issuer + `","n":5}`, nil, ""},
		"no issuer":        {`{"sub":"u-1","n":5}`, nil, ""},
		"another sub":      {`{"sub":"u-1invalid"}`, ganbauth.ErrInvalidIDToken, "sub is not the token's"},
		"another case":     {`{"sub":"U-1"}`, ganbauth.ErrInvalidIDToken, "sub is not the token's"},
		"no sub":           {`{"SUB":"u-1"}`, ganbauth.ErrInvalidIDToken, "sub is not the token's"},
		"sub twice":        {`{"sub":"u-2","sub":"u-1"}`, ganbauth.ErrTokenValue, "twice"},
		"sub is a number":  {`{"sub":1}`, ganbauth.ErrInvalidIDToken, "sub has the wrong type"},
		"iss is a number":  {`{"sub":"u-1","iss":1}`, ganbauth.ErrInvalidIDToken, "iss has the wrong type"},
		"another issuer":   {`{"sub":"u-1","iss":"https://evil.example/"}`, ganbauth.ErrInvalidIDToken, "iss is"},
		"a huge number":    {`{"sub":"u-1","n":1e999}`, ganbauth.ErrTokenValue, "userinfo"},
		"null":             {`null`, ganbauth.ErrTokenValue, "not a JSON object"},
		"not JSON":         {`<html>`, ganbauth.ErrTokenValue, "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOP(t, answersJSON(test.body))
			claims, err := o.connector(t).UserInfo(t.Context(), token)
			require.Equal(t, "Bearer AT-1", o.seen.Load().Header.Get("Authorization"))
			require.Equal(t, "application/json", o.seen.Load().Header.Get("Accept"))
			require.Equal(t, "/userinfo", o.seen.Load().URL.String(), "not in the URL")
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
				require.ErrorContains(t, err, test.says)
				require.Nil(t, claims)
				return
			}
			require.NoError(t, err)
			require.Equal(t, 5.0, claims["n"])
		})
	}
	t.Run("no answer, or not all of it", func(t *testing.T) {
		for name, answer := range map[string]http.HandlerFunc{
			"none": hijack(func(net.Conn) {}),
			"cut": hijack(func(conn net.Conn) {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{\"sub\":\"u-1\"}")
			}),
			"no HTTP":  hijack(func(conn net.Conn) { _, _ = io.WriteString(conn, strings.ReplaceAll(goodToken, " ", "+")+"\r\n\r\n") }),
			"too long": answersJSON(`{"sub":"u-1","x":"` + strings.Repeat("x", 1<<20) + `"}`),
		} {
			claims, err := newOP(t, answer).connector(t).UserInfo(t.Context(), token)
			require.ErrorContains(t, err, "userinfo: ", name)
			requireNoSecret(t, err)
			require.Nil(t, claims)
		}
	})
	t.Run("refused", func(t *testing.T) {
		_, err := newOP(t, answers(401, "application/json", `{"errorCode":"WG_ERR_105"}`)).connector(t).UserInfo(t.Context(), token)
		var e *ganbauth.APIError
		require.ErrorAs(t, err, &e)
		require.True(t, e.Expired())
	})
	t.Run("a token without a subject", func(t *testing.T) {
		o := newOP(t, answersJSON(`{"sub":""}`))
		for _, token := range []*ganbauth.Token{nil, {AccessToken: "AT-1"}} {
			_, err := o.connector(t).UserInfo(t.Context(), token)
			require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
		}
		require.Zero(t, o.hits.Load())
	})
}

func TestBasicIsRawAsInTheSDKs(t *testing.T) { // the bank's SDKs do not form-encode the two parts
	o := newOP(t, answersJSON(goodToken))
	c, err := ganbauth.NewConnector("a b", "p+q%/=é&:c", ganbauth.AuthBasic, o.config())
	require.NoError(t, err)
	_, err = c.RefreshTokens(t.Context(), "RT-1")
	require.NoError(t, err)
	require.Equal(t, "Basic "+base64.StdEncoding.EncodeToString([]byte("a b:p+q%/=é&:c")), o.seen.Load().Header.Get("Authorization"))
}
