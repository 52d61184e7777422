package ganbauth_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/stretchr/testify/require"
)

func TestRefreshSession(t *testing.T) {
	o := newOP(t, answersJSON(goodToken))
	c := o.connector(t)
	token := &ganbauth.Token{RefreshToken: "RT-1"}
	other := errors.New("other")
	for _, err := range []error{other, (*ganbauth.APIError)(nil), &ganbauth.APIError{StatusCode: 403, Code: "WG_ERR_105"}} {
		_, got := c.RefreshSession(t.Context(), token, err)
		require.ErrorIs(t, got, ganbauth.ErrTokenNotExpired)
	}
	require.Zero(t, o.hits.Load())
	_, err := c.RefreshSession(t.Context(), nil, nil)
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	wrapped := fmt.Errorf("accounts: %w", &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105"})
	got, err := c.RefreshSession(t.Context(), token, wrapped)
	require.NoError(t, err)
	require.Equal(t, "RT-2", got.RefreshToken)
}

// An answer to a refresh that cannot be used still has the next refresh token, and the
// one that was sent is spent.
func TestA3RefreshTokenIsSalvaged(t *testing.T) {
	answer := func(replace, with string) string { return strings.Replace(goodToken, replace, with, 1) }
	long := strings.Repeat("a", 5<<10)
	badID := signed(good(claims{"iat": time.Now().Unix(), "exp": time.Now().Add(-time.Second).Unix()}).json())
	for name, test := range map[string]struct {
		contentType, body string
		want              error
	}{
		"a scope with a foreign letter":         {"", answer("private:account", "口座"), ganbauth.ErrTokenFormat},
		"a scope of another type":               {"", answer(`"private:account offline_access"`, `["private:account"]`), ganbauth.ErrTokenFormat},
		"a scope that is too long":              {"", answer("private:account", long), ganbauth.ErrTokenFormat},
		"no token_type":                         {"", answer(`"token_type":"Bearer",`, ``), ganbauth.ErrTokenFormat},
		"another token_type":                    {"", answer("Bearer", "mac"), ganbauth.ErrTokenFormat},
		"no access_token":                       {"", answer(`"access_token":"AT-1",`, ``), ganbauth.ErrTokenFormat},
		"access_token null":                     {"", answer(`"AT-1"`, `null`), ganbauth.ErrTokenFormat},
		"access_token too long":                 {"", answer("AT-1", long), ganbauth.ErrTokenFormat},
		"access_token that looks sealed":        {"", answer("AT-1", `sealed.AT-1`), ganbauth.ErrTokenFormat},
		"access_token with a line break":        {"", answer("AT-1", `AT\n1`), ganbauth.ErrTokenFormat},
		"an ID token that is too long":          {"", answer("{", `{"id_token":"`+strings.Repeat("a", 17<<10)+`",`), ganbauth.ErrTokenFormat},
		"an ID token of another type":           {"", answer("{", `{"id_token":{},`), ganbauth.ErrTokenFormat},
		"an ID token that has expired":          {"", answer("{", `{"id_token":"`+badID+`",`), ganbauth.ErrInvalidIDToken},
		"an ID token that is none":              {"", answer("{", `{"id_token":"AT-1",`), ganbauth.ErrInvalidIDToken},
		"a name twice":                          {"", answer("{", `{"scope":"x",`), ganbauth.ErrTokenValue},
		"names twice, before it and behind":     {"", strings.TrimSuffix(answer("{", `{"x":1,"x":2,`), "}") + `,"x":3}`, ganbauth.ErrTokenValue},
		"not UTF-8":                             {"", answer("private:account", "\x8c\xfb"), ganbauth.ErrTokenValue},
		"a byte order mark":                     {"", "\uFEFF" + goodToken, ganbauth.ErrTokenValue},
		"text after it":                         {"", goodToken + "x", ganbauth.ErrTokenValue},
		"more than 1 MiB":                       {"", answer("}", `,"x":"`+strings.Repeat("a", 1<<20)+`"}`), ganbauth.ErrTokenValue},
		"a later member without a name":         {"", strings.TrimSuffix(goodToken, "}") + `,5:1}`, ganbauth.ErrTokenValue},
		"a later name without a value":          {"", strings.TrimSuffix(goodToken, "}") + `,"x"}`, ganbauth.ErrTokenValue},
		"a later value that is none":            {"", strings.TrimSuffix(goodToken, "}") + `,"x":tru}`, ganbauth.ErrTokenValue},
		"no end":                                {"", strings.TrimSuffix(goodToken, "}"), ganbauth.ErrTokenValue},
		"a wrong end":                           {"", strings.TrimSuffix(goodToken, "}") + "]", ganbauth.ErrTokenValue},
		"cut in a later member":                 {"", strings.TrimSuffix(goodToken, `300}`), ganbauth.ErrTokenValue},
		"text/plain":                            {"text/plain", goodToken, ganbauth.ErrTokenValue},
		"an error beside the token":             {"", answer("{", `{"error":"invalid_grant",`), &ganbauth.TokenError{}},
		"an errorCode of the gateway beside it": {"", answer("{", `{"errorCode":"WG_ERR_105",`), &ganbauth.TokenError{}},
	} {
		if test.contentType == "" {
			test.contentType = "application/json"
		}
		t.Run(name, func(t *testing.T) { requireSalvaged(t, answers(200, test.contentType, test.body), test.want) })
	}
	t.Run("with another status", func(t *testing.T) {
		for _, status := range []int{201, 202, 203, 299} {
			requireSalvaged(t, answers(status, "application/json", answer("AT-1", "")), ganbauth.ErrTokenFormat)
			requireSalvaged(t, answers(status, "application/json", answer("{", `{"error":"x",`)), &ganbauth.TokenError{})
			token, err := newOP(t, answers(status, "application/json", goodToken)).connector(t).RefreshTokens(t.Context(), "RT-1")
			require.NoError(t, err, "it is whole")
			require.Equal(t, "RT-2", token.RefreshToken)
		}
	})
	t.Run("the connection is cut behind it", func(t *testing.T) {
		requireSalvaged(t, hijack(func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n"+goodToken[:60])
		}), &ganbauth.TokenError{})
	})
}

// requireSalvaged refreshes at a bank that answers so, in both ways.
func requireSalvaged(t *testing.T, answer http.HandlerFunc, want error) {
	t.Helper()
	c := newOP(t, answer).connector(t)
	old := &ganbauth.Token{AccessToken: "AT-0", RefreshToken: "RT-1", Scope: "private:account", IDToken: signed(good(nil).json()), Subject: "u-1"}
	for name, refresh := range map[string]func() (*ganbauth.Token, error){
		"RefreshTokens":  func() (*ganbauth.Token, error) { return c.RefreshTokens(t.Context(), "RT-1") },
		"RefreshSession": func() (*ganbauth.Token, error) { return c.RefreshSession(t.Context(), old, nil) },
	} {
		token, err := refresh()
		require.Nil(t, token, "%s: nothing else is handed out", name)
		require.Equal(t, "RT-2", ganbauth.SalvagedRefreshToken(err), "%s: %v", name, err)
		require.Equal(t, "RT-2", ganbauth.SalvagedRefreshToken(fmt.Errorf("x: %w", err)))
		if _, ok := want.(*ganbauth.TokenError); ok {
			require.ErrorAs(t, err, new(*ganbauth.TokenError), name)
		} else {
			require.ErrorIs(t, err, want, name)
		}
		require.NotErrorIs(t, err, ganbauth.ErrOtherSubject)
		for _, v := range []any{err, fmt.Errorf("x: %w", err), struct{ err error }{err}, &struct{ Err error }{err}} {
			requirePrintsNoSecret(t, v, "RT-2", "RT-1", "AT-1", clientSecret)
		}
	}
	require.Equal(t, "RT-1", old.RefreshToken, "the caller's Token is left alone")
	_, err := c.OAuthToken(t.Context(), callbackURI, "c")
	require.Empty(t, ganbauth.SalvagedRefreshToken(err), "a login has nothing to save")
}

// Without a refresh token that could be sent, there is nothing to salvage.
func TestA3NothingToSalvage(t *testing.T) {
	answer := func(replace, with string) string {
		return strings.Replace(strings.Replace(goodToken, `"token_type":"Bearer",`, ``, 1), replace, with, 1)
	}
	for name, body := range map[string]string{
		"none":                    answer(`"refresh_token":"RT-2",`, ``),
		"null":                    answer(`"RT-2"`, `null`),
		"empty":                   answer("RT-2", ""),
		"a number":                answer(`"RT-2"`, `5`),
		"too long":                answer("RT-2", strings.Repeat("a", 4097)),
		"with a line break":       answer("RT-2", `RT\n2`),
		"not UTF-8":               answer("RT-2", "RT-\xff"),
		"twice":                   answer("{", `{"refresh_token":"RT-3",`),
		"twice, and another name": strings.TrimSuffix(answer("{", `{"refresh_token":"RT-3","x":1,`), "}") + `,"x":2}`,
		"in upper case":           answer("refresh_token", "REFRESH_TOKEN"),
		"inside another member":   answer(`"refresh_token":"RT-2"`, `"x":{"refresh_token":"RT-2"}`),
		"in an array":             `[` + goodToken + `]`,
		"cut in itself":           goodToken[:strings.Index(goodToken, "T-2")],
		"HTML":                    `<html>`,
		"nothing":                 ``,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newOP(t, answersJSON(body)).connector(t).RefreshTokens(t.Context(), "RT-1")
			require.Error(t, err)
			require.Empty(t, ganbauth.SalvagedRefreshToken(err))
		})
	}
	for _, status := range []int{301, 400, 401, 500, 503} {
		_, err := newOP(t, answers(status, "application/json", goodToken)).connector(t).RefreshTokens(t.Context(), "RT-1")
		require.ErrorAs(t, err, new(*ganbauth.TokenError))
		require.Empty(t, ganbauth.SalvagedRefreshToken(err), status)
	}
	t.Run("the old one goes on", func(t *testing.T) {
		body := strings.Replace(strings.Replace(goodToken, "{", `{"id_token":"a.b.c",`, 1), `"refresh_token":"RT-2",`, ``, 1)
		_, err := newOP(t, answersJSON(body)).connector(t).RefreshTokens(t.Context(), "RT-1")
		require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
		require.Empty(t, ganbauth.SalvagedRefreshToken(err))
	})
	require.Empty(t, ganbauth.SalvagedRefreshToken(nil))
	require.Empty(t, ganbauth.SalvagedRefreshToken(ganbauth.ErrLoginRequired))
}

// A scope that is null is missing: RFC 6749 section 6 then means the old one.
func TestRefreshWithoutAScope(t *testing.T) {
	for with, want := range map[string]string{`"scope":null`: "a b", `"scope":""`: "", `"x":1`: "a b"} {
		c := newOP(t, answersJSON(strings.Replace(goodToken, `"scope":"private:account offline_access"`, with, 1))).connector(t)
		token, err := c.RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1", Scope: "a b"}, nil)
		require.NoError(t, err)
		require.Equal(t, want, token.Scope, with)
	}
	token, err := newOP(t, answersJSON(goodToken)).connector(t).RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1"}, nil)
	require.NoError(t, err)
	require.Equal(t, "private:account offline_access", token.Scope, "what the old one was granted is not known")
}

// The ID token of a refresh is compared with the login's.
func TestRefreshComparesIDTokens(t *testing.T) {
	now := time.Now().Unix()
	next := good(claims{"iat": now, "exp": now + 60, "nonce": nil})
	c := newOP(t, openIDAnswer(`"`+signed(next.json())+`"`)).connector(t)
	refresh := func(login string) error {
		_, err := c.RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1", IDToken: login}, nil)
		return err
	}
	require.NoError(t, refresh(signed(good(claims{"iat": now}).json())), "issued in the same second")
	for login, want := range map[string]string{
		"a.b": "the login's cannot be read",
		"abc": "the login's cannot be read",
		signed(good(claims{"iat": now + 1}).json()):         "iat is before the login's",
		signed(good(claims{"iat": now, "azp": "x"}).json()): "azp is not the login's",
	} {
		err := refresh(login)
		require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
		require.ErrorContains(t, err, want)
	}
}

// Only an ID token that verifies, and is another user's, ends a connection. Whatever else
// is wrong with one, the next refresh token is kept.
func TestA3OtherSubject(t *testing.T) {
	now := time.Now()
	fresh := good(claims{"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(), "nonce": nil})
	login := signed(good(claims{"iat": now.Unix() - 60}).json())
	for name, test := range map[string]struct {
		idToken string
		other   bool
	}{
		"another user's": {signed(fresh.with(claims{"sub": "u-2"}).json()), true},
		"another user's, from a login of its own": {signed(fresh.with(claims{"sub": "u-2", "nonce": "n-9", "auth_time": now.Unix()}).json()), true},
		"another user's, expired":                 {signed(fresh.with(claims{"sub": "u-2", "exp": now.Unix() - 1}).json()), false},
		"another user's, another bank's":          {signed(fresh.with(claims{"sub": "u-2", "iss": issuer + "x"}).json()), false},
		"another user's, another client's":        {signed(fresh.with(claims{"sub": "u-2", "aud": "x"}).json()), false},
		"another user's, another access token's":  {signed(fresh.with(claims{"sub": "u-2", "at_hash": atHash("AT-9")}).json()), false},
		"another user's, not signed":              {jws(sha256.New, hs256, fresh.with(claims{"sub": "u-2"}).json(), "x"), false},
		"no user's":                               {signed(fresh.with(claims{"sub": nil}).json()), false},
		"the clock is 31 s behind":                {signed(fresh.with(claims{"iat": now.Unix() + 60}).json()), false},
		"the clock is ahead":                      {signed(fresh.with(claims{"exp": now.Unix() - 1}).json()), false},
		"iss without its slash":                   {signed(fresh.with(claims{"iss": strings.TrimSuffix(issuer, "/")}).json()), false},
		"azp appears":                             {signed(fresh.with(claims{"azp": "x"}).json()), false},
		"another login's nonce":                   {signed(fresh.with(claims{"nonce": "n-9"}).json()), false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newOP(t, openIDAnswer(`"`+test.idToken+`"`)).connector(t)
			for _, old := range []*ganbauth.Token{
				{RefreshToken: "RT-1", IDToken: login, Subject: "u-1"}, {RefreshToken: "RT-1", IDToken: login}, {RefreshToken: "RT-1", Subject: "u-1"},
			} {
				token, err := c.RefreshSession(t.Context(), old, nil)
				if name == "another login's nonce" && old.IDToken == "" {
					require.NoError(t, err, "there is nothing to compare it with")
					continue
				}
				require.Nil(t, token)
				require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
				require.Equal(t, test.other, errors.Is(err, ganbauth.ErrOtherSubject), "%v", err)
				if test.other {
					require.Empty(t, ganbauth.SalvagedRefreshToken(err))
				} else {
					require.Equal(t, "RT-2", ganbauth.SalvagedRefreshToken(err))
				}
			}
		})
	}
	t.Run("an operator has followed the bank to another issuer", func(t *testing.T) {
		moved := signed(good(claims{"iat": now.Unix() - 60, "iss": "https://old.example"}).json())
		c := newOP(t, openIDAnswer(`"`+signed(fresh.json())+`"`)).connector(t)
		_, err := c.RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1", IDToken: moved, Subject: "u-1"}, nil)
		require.NoError(t, err)
	})
}

// A Subject that came with SetToken, without an ID token, is kept, and compared where it
// can be.
func TestC10SubjectIsKept(t *testing.T) {
	now := time.Now()
	fresh := good(claims{"iat": now.Unix(), "exp": now.Add(time.Minute).Unix()})
	old := &ganbauth.Token{RefreshToken: "RT-1", Subject: "u-1", Epoch: "e-1"}
	for _, answer := range []http.HandlerFunc{answersJSON(goodToken), openIDAnswer(`"` + signed(fresh.json()) + `"`)} {
		token, err := newOP(t, answer).connector(t).RefreshSession(t.Context(), old, nil)
		require.NoError(t, err)
		require.Equal(t, "u-1", token.Subject)
		require.Empty(t, token.IDToken)
		require.Equal(t, "e-1", token.Epoch)
	}
	t.Run("a connection without a user ignores ID tokens", func(t *testing.T) {
		token, err := newOP(t, openIDAnswer(`"a.b.c"`)).connector(t).RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1"}, nil)
		require.NoError(t, err)
		require.Empty(t, token.Subject+token.IDToken)
	})
}

// A Connector without a JWTIssuer cannot judge an ID token: nothing irreplaceable is
// spent first.
func TestA5WithoutIssuer(t *testing.T) {
	now := time.Now()
	o := newOP(t, openIDAnswer(`"`+signed(good(claims{"iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}).json())+`"`))
	cfg := o.config()
	cfg.JWTIssuer = ""
	c := newConnector(t, ganbauth.AuthBasic, cfg)
	token, err := c.RefreshTokens(t.Context(), "RT-1")
	require.NoError(t, err)
	require.Equal(t, "RT-2", token.RefreshToken)
	require.Empty(t, token.Subject+token.IDToken)
	token, err = c.RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1", IDToken: "a.b.c", Subject: "u-1"}, nil)
	require.NoError(t, err)
	require.Equal(t, "u-1", token.Subject)
	require.EqualValues(t, 2, o.hits.Load())

	_, err = c.OpenIDToken(t.Context(), callbackURI, "c", "n-1")
	require.ErrorContains(t, err, "JWTIssuer")
	_, err = o.connector(t).OpenIDToken(t.Context(), callbackURI, "c", "")
	require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
	require.EqualValues(t, 2, o.hits.Load(), "the code is not sent")
}

// Two ways in which a refresh is refused, of which one may be the gateway's bad minute.
func TestA6DeadOrRefused(t *testing.T) {
	for _, test := range []struct {
		status                int
		code                  string
		grantDead, gatewayRef bool
	}{
		{400, "invalid_grant", true, false}, {401, "invalid_grant", true, false}, {200, "invalid_grant", true, false},
		{401, "WG_ERR_105", false, true}, {400, "WG_ERR_105", false, true},
		{500, "invalid_grant", false, false}, {503, "WG_ERR_105", false, false},
		{401, "invalid_client", false, false}, {401, "", false, false}, {0, "", false, false}, {400, "Invalid_Grant", false, false},
	} {
		dead, refused := ganbauth.RefreshVerdict(&ganbauth.TokenError{StatusCode: test.status, Code: test.code})
		require.Equal(t, test.grantDead, dead, "%d %s", test.status, test.code)
		require.Equal(t, test.gatewayRef, refused, "%d %s", test.status, test.code)
	}
}
