package ganbauth_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// Answers that are no token response: nothing of them is used, and the request is not
// sent again.
func TestTokenResponseRefused(t *testing.T) {
	token := func(replace, with string) string { return strings.Replace(goodToken, replace, with, 1) }
	for name, body := range map[string]string{
		"truncated":                           `{"access_token":"a"`,
		"a byte order mark":                   "\ufeff" + goodToken,
		"empty":                               ``,
		"null":                                `null`,
		"empty object":                        `{}`,
		"array":                               `[]`,
		"string":                              `""`,
		"true":                                `true`,
		"array of one":                        `[` + goodToken + `]`,
		"duplicate access_token":              token(`"scope"`, `"access_token":"AT-9","scope"`),
		"the same twice":                      token(`"scope"`, `"access_token":"AT-1","scope"`),
		"duplicate by escape":                 token(`"scope"`, `"access\u005ftoken":"AT-9","scope"`),
		"duplicate expires_in":                token(`"scope"`, `"expires_in":9,"scope"`),
		"upper-case name only":                token("access_token", "ACCESS_TOKEN"),
		"folded name only":                    token("access_token", "acceſſ_token"),
		"trailing garbage":                    goodToken + `{"x":1}`,
		"invalid UTF-8 in another member":     token("{", `{"x":"`+"\xff"+`",`),
		"invalid UTF-8":                       token("AT-1", "AT-\xff"),
		"deep":                                `{"x":` + strings.Repeat("[", 100_000),
		"access_token null":                   token(`"AT-1"`, `null`),
		"access_token empty":                  token("AT-1", ""),
		"access_token blank":                  token("AT-1", " "),
		"access_token number":                 token(`"AT-1"`, `5`),
		"access_token bool":                   token(`"AT-1"`, `true`),
		"access_token array":                  token(`"AT-1"`, `[]`),
		"access_token object":                 token(`"AT-1"`, `{}`),
		"CR LF":                               token("AT-1", `a\r\nX-Evil: 1`),
		"NUL":                                 token("AT-1", `a\u0000`),
		"TAB":                                 token("AT-1", `a\tb`),
		"DEL":                                 token("AT-1", `a\u007f`),
		"ESC":                                 token("AT-1", `a\u001b[2J`),
		"trailing space, which would be lost": token("AT-1", "AT-1 "),
		"non-ASCII":                           token("AT-1", "AT-é"),
		"access_token of 16 KiB":              token("AT-1", strings.Repeat("a", 16<<10)),
		"access_token of 512 KiB":             token("AT-1", strings.Repeat("a", 512<<10)),
		"refresh_token number":                token(`"RT-2"`, `5`),
		"refresh_token array":                 token(`"RT-2"`, `[]`),
		"refresh_token CR LF":                 token("RT-2", `a\r\nb`),
		"refresh_token of 1 MB":               token("RT-2", strings.Repeat("a", 1<<20)),
		"scope number":                        token(`"private:account offline_access"`, `5`),
		"scope array":                         token(`"private:account offline_access"`, `[]`),
		"scope with a line break":             token("private:account offline", `a\nb`),
		"scope of 1 MB":                       token("private:account", strings.Repeat("a", 1<<20)),
		"token_type mac":                      token("Bearer", "mac"),
		"token_type DPoP":                     token("Bearer", "DPoP"),
		"token_type N_A":                      token("Bearer", "N_A"),
		"token_type empty":                    token("Bearer", ""),
		"token_type number":                   token(`"Bearer"`, `5`),
		"token_type absent":                   token(`"token_type":"Bearer",`, ``),
		"200 with an error":                   `{"error":"invalid_grant"}`,
		"200 with error and token":            token(`{`, `{"error":"invalid_grant",`),
		"200 with the gateway's body":         `{"errorCode":"WG_ERR_105","errorMessage":"expired"}`,
		"more than 1 MiB":                     strings.Repeat(" ", 1<<20) + goodToken,
	} {
		t.Run(name, func(t *testing.T) {
			o := newOP(t, answersJSON(body))
			bothGrants(t, o.connector(t), func(t *testing.T, token *ganbauth.Token, err error) {
				require.Error(t, err)
				require.Nil(t, token)
			})
			require.EqualValues(t, 2, o.hits.Load(), "each is sent once")
		})
	}
	for name, ct := range map[string]string{"text/plain": "text/plain", "text/html": "text/html; charset=utf-8"} {
		t.Run(name, func(t *testing.T) {
			o := newOP(t, answers(200, ct, goodToken))
			bothGrants(t, o.connector(t), func(t *testing.T, token *ganbauth.Token, err error) {
				require.ErrorIs(t, err, ganbauth.ErrTokenValue)
			})
		})
	}
}

func TestTokenResponseAccepted(t *testing.T) {
	token := func(replace, with string) string { return strings.Replace(goodToken, replace, with, 1) }
	for name, test := range map[string]struct {
		contentType, body string
		check             func(*testing.T, *ganbauth.Token)
	}{
		"token_type bEARER": {"", token("Bearer", "bEARER"), func(t *testing.T, tok *ganbauth.Token) {
			require.Equal(t, "Bearer", tok.TokenType)
		}},
		"unknown members": {"", token(`{`, `{"x":{"y":[1,{}]},"z":null,`), nil},
		"empty scope is an empty grant": {"", token("private:account offline_access", ""), func(t *testing.T, tok *ganbauth.Token) {
			require.Empty(t, tok.Scope)
			require.False(t, tok.HasScope(""))
		}},
		"odd spacing": {"", token("private:account offline_access", " a  b "), func(t *testing.T, tok *ganbauth.Token) {
			require.Equal(t, "a b", tok.Scope)
			require.True(t, tok.HasScope("b"))
			require.False(t, tok.HasScope("a b"))
		}},
		"an error that is null": {"", token(`{`, `{"error":null,"errorCode":null,`), nil},
		"the exact name wins":   {"", token(`{`, `{"ACCESS_TOKEN":"AT-9",`), nil},
		"the bank's type":       {"application/json;charset=UTF-8", goodToken, nil},
		"upper case":            {"Application/JSON", goodToken, nil},
		"quoted charset":        {`application/json; charset="utf-8"`, goodToken, nil},
		"no type":               {"-", goodToken, nil},
		"4 KiB": {"", token("RT-2", strings.Repeat("r", 2048)), func(t *testing.T, tok *ganbauth.Token) {
			require.Len(t, tok.RefreshToken, 2048)
		}},
		"visible characters": {"", token("RT-2", "!~"), func(t *testing.T, tok *ganbauth.Token) {
			require.Equal(t, "!~", tok.RefreshToken)
		}},
		"state member is ignored": {"", token(`{`, `{"state":"other",`), nil},
		"id_token without openid is not exposed": {"", token(`{`, `{"id_token":"",`), func(t *testing.T, tok *ganbauth.Token) {
			require.Empty(t, tok.IDToken)
			require.Empty(t, tok.Subject)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.contentType == "" {
				test.contentType = "application/json"
			}
			o := newOP(t, answers(200, test.contentType, test.body))
			bothGrants(t, o.connector(t), func(t *testing.T, tok *ganbauth.Token, err error) {
				require.NoError(t, err)
				require.Equal(t, "AT-1", tok.AccessToken)
				if test.check != nil {
					test.check(t, tok)
				}
			})
		})
	}
	t.Run("a refresh without a new refresh token keeps the old one", func(t *testing.T) {
		for _, body := range []string{token(`"refresh_token":"RT-2",`, ``), token("RT-2", ""), token(`"RT-2"`, `null`), token(`{`, `{"id_token":null,`)} {
			tok, err := newOP(t, answersJSON(body)).connector(t).RefreshTokens(t.Context(), "RT-1")
			require.NoError(t, err)
			require.Contains(t, []string{"RT-1", "RT-2"}, tok.RefreshToken)
			require.Equal(t, strings.Contains(body, "RT-2"), tok.RefreshToken == "RT-2")
		}
	})
	t.Run("a refresh that answers the same tokens", func(t *testing.T) {
		tok, err := newOP(t, answersJSON(token("RT-2", "RT-1"))).connector(t).RefreshSession(t.Context(), &ganbauth.Token{AccessToken: "AT-1", RefreshToken: "RT-1"}, nil)
		require.NoError(t, err)
		require.Equal(t, "AT-1 RT-1", tok.AccessToken+" "+tok.RefreshToken)
	})
	t.Run("a login without a refresh token", func(t *testing.T) {
		tok, err := newOP(t, answersJSON(token(`"refresh_token":"RT-2",`, ``))).connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err)
		require.Empty(t, tok.RefreshToken)
	})
	t.Run("a refresh does not widen the scope", func(t *testing.T) {
		o := newOP(t, answersJSON(token("offline_access", "offline_access admin")))
		tok, err := o.connector(t).RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1", Scope: "private:account x"}, nil)
		require.NoError(t, err)
		require.Equal(t, "private:account", tok.Scope)
	})
	t.Run("scope absent", func(t *testing.T) {
		o := newOP(t, answersJSON(token(`"scope":"private:account offline_access",`, ``)))
		tok, err := o.connector(t).RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1", Scope: "a b"}, nil)
		require.NoError(t, err)
		require.Equal(t, "a b", tok.Scope)
	})
}

func TestExpiresIn(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for value, want := range map[string]time.Duration{
		`3600`: time.Hour, `"3600"`: time.Hour, `"2592000"`: 720 * time.Hour,
		`3600.0`: time.Hour, `3.6e3`: time.Hour, `300.5`: 300 * time.Second,
		`null`: time.Hour, `""`: time.Hour, `"soon"`: time.Hour, `[]`: time.Hour, `true`: time.Hour,
		`0`: time.Hour, `"0"`: time.Hour, `-1`: time.Hour, `-4294963696`: time.Hour, `"NaN"`: time.Hour, `"Infinity"`: time.Hour, `"-Infinity"`: time.Hour, `"0x7000"`: time.Hour,
		`9223372036`: year, `9223372037`: year, `9223372036854775808`: year, `1e18`: year, `1e400`: year,
		`30`: 30 * time.Second,
	} {
		t.Run(value, func(t *testing.T) {
			o := newOP(t, answersJSON(strings.Replace(goodToken, "300", value, 1)))
			before := time.Now()
			tok, err := o.connector(t).OAuthToken(t.Context(), callbackURI, "c")
			require.NoError(t, err)
			require.Equal(t, want, tok.ExpiresAt.Sub(tok.IssuedAt))
			require.False(t, tok.ExpiresAt.After(time.Now().Add(want)), "never later than the answer says")
			require.WithinDuration(t, before, tok.IssuedAt, 2*time.Second)
		})
	}
	t.Run("absent", func(t *testing.T) {
		tok, err := newOP(t, answersJSON(strings.Replace(goodToken, `,"expires_in":300`, "", 1))).connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err)
		require.Equal(t, time.Hour, tok.ExpiresAt.Sub(tok.IssuedAt))
	})
	t.Run("the server's Date has no effect", func(t *testing.T) {
		o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(24*time.Hour).UTC().Format(http.TimeFormat))
			answersJSON(goodToken)(w, r)
		})
		tok, err := o.connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(300*time.Second), tok.ExpiresAt, 5*time.Second)
	})
}

func TestTokenErrors(t *testing.T) {
	for name, test := range map[string]struct {
		status     int
		ct, body   string
		code       string
		temporary  bool
		retryAfter time.Duration
		header     string
	}{
		"invalid_request":              {400, "application/json", `{"error":"invalid_request","error_description":"d","error_uri":"u","state":"s"}`, "invalid_request", false, 0, ""},
		"invalid_client":               {400, "application/json", `{"error":"invalid_client"}`, "invalid_client", false, 0, ""},
		"invalid_grant":                {400, "application/json", `{"error":"invalid_grant"}`, "invalid_grant", false, 0, ""},
		"unauthorized_client":          {400, "application/json", `{"error":"unauthorized_client"}`, "unauthorized_client", false, 0, ""},
		"unsupported_grant_type":       {400, "application/json", `{"error":"unsupported_grant_type"}`, "unsupported_grant_type", false, 0, ""},
		"invalid_scope":                {400, "application/json", `{"error":"invalid_scope"}`, "invalid_scope", false, 0, ""},
		"server_error":                 {400, "application/json", `{"error":"server_error"}`, "server_error", true, 0, ""},
		"temporarily_unavailable":      {400, "application/json", `{"error":"temporarily_unavailable"}`, "temporarily_unavailable", true, 0, ""},
		"unknown code":                 {400, "application/json", `{"error":"consent_required_x"}`, "consent_required_x", false, 0, ""},
		"code with a quote":            {400, "application/json", `{"error":"a\"b"}`, "", false, 0, ""},
		"code with a line break":       {400, "application/json", `{"error":"a\nINFO login ok"}`, "", false, 0, ""},
		"code of 10 kB":                {400, "application/json", `{"error":"` + strings.Repeat("a", 10_000) + `"}`, "", false, 0, ""},
		"gateway":                      {401, "application/json", `{"errorCode":"WG_ERR_105","errorMessage":"m"}`, "WG_ERR_105", false, 0, ""},
		"gateway, another code":        {422, "application/json", `{"errorCode":"WG_ERR_110"}`, "WG_ERR_110", false, 0, ""},
		"maintenance":                  {503, "application/json", `{"errorCode":"WG_ERR_300"}`, "WG_ERR_300", true, 2 * time.Minute, "120"},
		"429":                          {429, "text/plain", `slow down`, "", true, 5 * time.Second, "5"},
		"Retry-After -1":               {429, "", ``, "", true, 0, "-1"},
		"Retry-After far":              {429, "", ``, "", true, 0, "99999999999"},
		"Retry-After garbage":          {429, "", ``, "", true, 0, "soon"},
		"WAF page":                     {403, "text/html", `<script>alert(1)</script>`, "", false, 0, ""},
		"500 HTML":                     {500, "text/html", `<html>`, "", true, 0, ""},
		"502 empty":                    {502, "", ``, "", true, 0, ""},
		"999":                          {999, "", ``, "", true, 0, ""},
		"302 with a token in its body": {302, "application/json", goodToken, "", false, 0, ""},
		"Shift_JIS message":            {503, "application/json", "{\"errorCode\":\"WG_ERR_300\",\"errorMessage\":\"\x83\x81\x93\xfa\"}", "WG_ERR_300", true, 0, ""},
		"Shift_JIS with a backslash":   {401, "application/json", "{\"errorCode\":\"WG_ERR_105\",\"errorMessage\":\"\x8b\x40\x94\x5c\x82\xcd\"}", "WG_ERR_105", false, 0, ""},
		"ISO-2022-JP":                  {401, "application/json", "{\"errorCode\":\"WG_ERR_105\",\"errorMessage\":\"\x1b$B5!G=\x1b(B\"}", "WG_ERR_105", false, 0, ""},
		"cut behind the code":          {400, "application/json", `{"error":"invalid_grant","error_description":"The gr`, "invalid_grant", false, 0, ""},
		"cut in the code":              {400, "application/json", `{"error":"invalid_gr`, "", false, 0, ""},
		"text behind it":               {400, "application/json", `{"error":"invalid_grant"}<!-- gw3 -->`, "invalid_grant", false, 0, ""},
		"the text twice":               {400, "application/json", `{"error":"invalid_grant","x":1,"x":2}`, "invalid_grant", false, 0, ""},
		"the code twice":               {400, "application/json", `{"error":"invalid_grant","error":"invalid_grant"}`, "", false, 0, ""},
		"the gateway's code twice":     {401, "application/json", `{"errorCode":"WG_ERR_105","errorCode":"WG_ERR_105"}`, "", false, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
				if test.header != "" {
					w.Header().Set("Retry-After", test.header)
				}
				answers(test.status, test.ct, test.body)(w, r)
			})
			bothGrants(t, o.connector(t), func(t *testing.T, _ *ganbauth.Token, err error) {
				var e *ganbauth.TokenError
				require.ErrorAs(t, err, &e)
				require.Equal(t, test.status, e.StatusCode)
				require.Equal(t, test.code, e.Code)
				require.Equal(t, test.temporary, e.Temporary())
				require.Equal(t, test.retryAfter, e.RetryAfter)
				require.NotContains(t, err.Error(), "<", "the body is not in the error")
			})
			require.EqualValues(t, 2, o.hits.Load())
		})
	}
	t.Run("the texts", func(t *testing.T) {
		for body, want := range map[string]ganbauth.TokenError{
			`{"error":"invalid_grant","error_description":"d","error_uri":"u"}`: {StatusCode: 400, Code: "invalid_grant", Description: "d", URI: "u"},
			`{"errorCode":"WG_ERR_110","errorMessage":"m"}`:                     {StatusCode: 400, Code: "WG_ERR_110", Description: "m"},
		} {
			_, err := newOP(t, answers(400, "application/json", body)).connector(t).RefreshTokens(t.Context(), "RT-1")
			var e *ganbauth.TokenError
			require.ErrorAs(t, err, &e)
			require.Equal(t, want, *e)
		}
	})
	t.Run("foreign text is made printable and cut", func(t *testing.T) {
		text, _ := json.Marshal("\x1b[31m\r\n2026 INFO login ok \u202e" + strings.Repeat("x", 1000))
		o := newOP(t, answers(400, "application/json", `{"error":"invalid_grant","error_description":`+string(text)+`,"error_uri":"javascript:alert(1)"}`))
		_, err := o.connector(t).RefreshTokens(t.Context(), "RT-1")
		var e *ganbauth.TokenError
		require.ErrorAs(t, err, &e)
		require.Len(t, []rune(e.Description), 256)
		require.NotContains(t, e.Description, "\x1b")
		require.NotContains(t, e.Description, "\n")
		require.NotContains(t, e.Description, "\u202e")
		require.NotContains(t, e.Error(), "login ok", "the text is not in the error")
		require.NotContains(t, e.Error(), "javascript")
	})
}

func TestCheckResponse(t *testing.T) {
	check := func(status int, body string, pairs ...string) (*ganbauth.APIError, *http.Response) {
		resp := response(nil, status, body, pairs...)
		err := ganbauth.CheckResponse(resp)
		var e *ganbauth.APIError
		errors.As(err, &e)
		return e, resp
	}
	for _, status := range []int{200, 201, 204} {
		e, _ := check(status, "x")
		require.Nil(t, e)
	}
	require.Error(t, ganbauth.CheckResponse(nil))
	require.Error(t, ganbauth.CheckResponse(&http.Response{StatusCode: 500, Header: http.Header{}}))

	e, resp := check(400, `{"errorCode":"WG_ERR_110","errorMessage":"bad","errorDetails":[{"errorDetailsCode":"1","errorDetailsMessage":"a"}],`+
		`"transferErrorDetails":[{"itemId":"7","errorDetails":[{"errorDetailsCode":"2","errorDetailsMessage":"b"}]}]}`)
	require.Equal(t, &ganbauth.APIError{StatusCode: 400, Code: "WG_ERR_110", Message: "bad", Details: []ganbauth.APIErrorDetail{
		{Code: "1", Message: "a"}, {ItemID: "7", Code: "2", Message: "b"},
	}}, e)
	require.Contains(t, body(resp), `"itemId":"7"`)

	e, _ = check(503, `{"errorCode":"WG_ERR_300"}`, "Retry-After", "60")
	require.ErrorContains(t, e, "maintenance")
	require.True(t, e.Temporary())
	require.Equal(t, time.Minute, e.RetryAfter)
	e, _ = check(429, ``)
	require.ErrorContains(t, e, "too many requests")
	require.True(t, e.Temporary())
	e, _ = check(401, `{"errorCode":"WG_ERR_105"}`)
	require.ErrorContains(t, e, "expired or revoked")
	require.False(t, e.Temporary())
	e, _ = check(500, `<html>`)
	require.Equal(t, &ganbauth.APIError{StatusCode: 500}, e)
	e, _ = check(302, ``)
	require.NotNil(t, e)
	e, _ = check(400, `{"errorCode":5,"errorMessage":[],"errorDetails":{},"transferErrorDetails":[5,{}]}`)
	require.Equal(t, &ganbauth.APIError{StatusCode: 400}, e)
	e, _ = check(400, `{"errorCode":"220011","errorMessage":"\u001b[31m\n`+strings.Repeat("x", 300)+`"}`)
	require.NotContains(t, e.Message, "\x1b")
	require.Len(t, []rune(e.Message), 256)

	long := strings.Repeat("x", 3<<20)
	e, resp = check(400, long)
	require.NotNil(t, e)
	require.Equal(t, long, body(resp), "beyond the limit the body is still all there")
	resp = response(nil, 400, "")
	resp.Body = io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{}))
	require.Error(t, ganbauth.CheckResponse(resp))
	data, err := io.ReadAll(resp.Body)
	require.Equal(t, "half", string(data))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	resp = response(nil, 400, "")
	resp.Body = io.NopCloser(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("half"))))
	require.Error(t, ganbauth.CheckResponse(resp))
	data, err = io.ReadAll(resp.Body)
	require.Equal(t, "h", string(data))
	require.ErrorIs(t, err, iotest.ErrTimeout, "a fault that comes once is not lost")
	resp = response(nil, 200, "")
	before := resp.Body
	require.NoError(t, ganbauth.CheckResponse(resp))
	require.True(t, before == resp.Body, "of a success nothing is read")

	kept := &endless{}
	resp = &http.Response{StatusCode: 500, Body: kept}
	require.Error(t, ganbauth.CheckResponse(resp))
	require.NoError(t, resp.Body.Close())
	require.True(t, kept.closed, "the caller closes the body itself")
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A client that was generated from the bank's specification has read the body.
func TestH9ParseAPIError(t *testing.T) {
	const expired = `{"errorCode":"WG_ERR_105","errorMessage":"m"}`
	for name, test := range map[string]struct {
		status int
		header http.Header
		body   string
		want   *ganbauth.APIError
	}{
		"200":                  {200, nil, expired, nil},
		"299":                  {299, nil, "", nil},
		"300":                  {300, nil, "", &ganbauth.APIError{StatusCode: 300}},
		"199":                  {199, nil, "", &ganbauth.APIError{StatusCode: 199}},
		"0":                    {0, nil, "", &ganbauth.APIError{}},
		"expired":              {401, nil, expired, &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105", Message: "m"}},
		"Retry-After":          {503, header("Retry-After", "60"), "", &ganbauth.APIError{StatusCode: 503, RetryAfter: time.Minute}},
		"a byte order mark":    {401, nil, "\uFEFF" + expired, &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105", Message: "m"}},
		"no body":              {500, nil, "", &ganbauth.APIError{StatusCode: 500}},
		"HTML":                 {502, nil, "<html>", &ganbauth.APIError{StatusCode: 502}},
		"1 MiB is looked at":   {401, nil, expired + strings.Repeat(" ", 1<<20-len(expired)), &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105", Message: "m"}},
		"what follows is not":  {401, nil, expired + strings.Repeat(" ", 1<<20-len(expired)) + "x", &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105", Message: "m"}},
		"64 characters":        {400, nil, `{"errorCode":"` + strings.Repeat("a", 64) + `"}`, &ganbauth.APIError{StatusCode: 400, Code: strings.Repeat("a", 64)}},
		"65 characters":        {400, nil, `{"errorCode":"` + strings.Repeat("a", 65) + `"}`, &ganbauth.APIError{StatusCode: 400}},
		"a code with a quote":  {400, nil, `{"errorCode":"a\"b"}`, &ganbauth.APIError{StatusCode: 400}},
		"a message of 256":     {400, nil, `{"errorMessage":"` + strings.Repeat("あ", 256) + `"}`, &ganbauth.APIError{StatusCode: 400, Message: strings.Repeat("あ", 256)}},
		"the code of a detail": {400, nil, `{"errorDetails":[{"errorDetailsCode":"1"},5,{}]}`, &ganbauth.APIError{StatusCode: 400, Details: []ganbauth.APIErrorDetail{{Code: "1"}, {}}}},
	} {
		t.Run(name, func(t *testing.T) {
			resp := response(nil, test.status, test.body)
			resp.Header = test.header
			for by, err := range map[string]error{
				"ParseAPIError": ganbauth.ParseAPIError(test.status, test.header, []byte(test.body)),
				"CheckResponse": ganbauth.CheckResponse(resp),
			} {
				if test.want == nil {
					require.NoError(t, err, by)
					continue
				}
				require.Equal(t, test.want, err, by)
			}
			require.Equal(t, test.body, body(resp))
		})
	}
}

// Of a mountain of details a hundred are kept, wherever they stand.
func TestErrorDetailsAreBounded(t *testing.T) {
	list := func(item string, n int) string { return "[" + strings.Repeat(item+",", n) + item + "]" }
	for name, body := range map[string]string{
		"errorDetails":         `{"errorDetails":` + list("{}", 349_000) + `}`,
		"transferErrorDetails": `{"transferErrorDetails":` + list(`{"errorDetails":`+list("{}", 9)+`}`, 20_000) + `}`,
		"both":                 `{"errorDetails":` + list("{}", 59) + `,"transferErrorDetails":` + list(`{"errorDetails":[{}]}`, 59) + `}`,
	} {
		var e *ganbauth.APIError
		require.ErrorAs(t, ganbauth.ParseAPIError(400, nil, []byte(body)), &e, name)
		require.Len(t, e.Details, 100, name)
	}
	allocs := testing.AllocsPerRun(1, func() { _ = ganbauth.ParseAPIError(400, nil, []byte(`{"errorDetails":`+list("{}", 349_000)+`}`)) })
	require.Less(t, allocs, 3000.0)
}

// endless is a body without an end that counts what is read of it.
type endless struct {
	read   int
	closed bool
}

func (e *endless) Read(p []byte) (int, error) {
	e.read += len(p)
	return len(p), nil
}

func (e *endless) Close() error { e.closed = true; return nil }

// A body without an end is cut, whatever its status: nothing waits for it, and it is
// closed.
func TestI7EndlessBodies(t *testing.T) {
	for _, status := range []int{200, 201, 202, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 413, 429, 500, 502, 503, 599} {
		var bodies []*endless
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s",
			HTTPClient: &http.Client{Transport: roundTripFunc(func(*http.Request) (*http.Response, error) {
				bodies = append(bodies, &endless{})
				return &http.Response{StatusCode: status, Header: jsonType, ContentLength: -1, Body: bodies[len(bodies)-1]}, nil
			})}})
		_, err := c.OAuthToken(t.Context(), callbackURI, "c")
		require.Error(t, err, status)
		_, err = c.RefreshTokens(t.Context(), "RT-1")
		require.Error(t, err, status)
		_, err = c.UserInfo(t.Context(), &ganbauth.Token{AccessToken: "AT-1", Subject: "u-1"})
		require.Error(t, err, status)
		require.Len(t, bodies, 3)
		for i, b := range bodies {
			require.LessOrEqual(t, b.read, 1<<20+1, "call %d, status %d", i, status)
			require.True(t, b.closed, "call %d, status %d", i, status)
		}
		api := &endless{}
		_ = ganbauth.CheckResponse(&http.Response{StatusCode: status, Body: api})
		require.LessOrEqual(t, api.read, 1<<20, status)
	}
}

// A3: of an answer to a refresh that is too long the refresh token is kept, whether the
// bank says how long it is or not.
func TestA3AnswerThatIsTooLong(t *testing.T) {
	for name, flush := range map[string]bool{"with its length": false, "in chunks": true} {
		o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if text := goodToken + strings.Repeat(" ", 1<<20); flush {
				_, _ = io.WriteString(w, text)
				_ = http.NewResponseController(w).Flush()
			} else {
				w.Header().Set("Content-Length", strconv.Itoa(len(text)))
				_, _ = io.WriteString(w, text)
			}
		})
		_, err := o.connector(t).RefreshTokens(t.Context(), "RT-1")
		require.ErrorIs(t, err, ganbauth.ErrTokenValue, name)
		require.ErrorContains(t, err, "longer than 1048576 bytes", name)
		require.Equal(t, "RT-2", ganbauth.SalvagedRefreshToken(err), name)
	}
}

// Each limit on what the bank sends, from its accepted side.
func TestI12LimitsOfAnswers(t *testing.T) {
	long := strings.Repeat("a", 4096)
	o := newOP(t, answersJSON(strings.NewReplacer("AT-1", long, "RT-2", long, "private:account offline_access", long).Replace(goodToken)))
	bothGrants(t, o.connector(t), func(t *testing.T, token *ganbauth.Token, err error) {
		require.NoError(t, err)
		require.Equal(t, long, token.AccessToken)
		require.Equal(t, long, token.RefreshToken)
		require.Equal(t, long, token.Scope)
	})
	for name, body := range map[string]string{
		"an ID token of 16 KiB": strings.Replace(goodToken, "{", `{"id_token":"`+strings.Repeat("a", 16<<10)+`",`, 1),
		"an answer of 1 MiB":    goodToken + strings.Repeat(" ", 1<<20-len(goodToken)),
	} {
		_, err := newOP(t, answersJSON(body)).connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err, name)
	}
	for name, body := range map[string]string{
		"access_token of 4,097":       strings.Replace(goodToken, "AT-1", long+"a", 1),
		"refresh_token of 4,097":      strings.Replace(goodToken, "RT-2", long+"a", 1),
		"scope of 4,097":              strings.Replace(goodToken, "private:account offline_access", long+"a", 1),
		"an ID token of 16 KiB and 1": strings.Replace(goodToken, "{", `{"id_token":"`+strings.Repeat("a", 16<<10+1)+`",`, 1),
		"an answer of 1 MiB and 1":    goodToken + strings.Repeat(" ", 1<<20-len(goodToken)+1),
	} {
		_, err := newOP(t, answersJSON(body)).connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.Error(t, err, name)
	}
	for value, want := range map[string]time.Duration{
		"1": time.Second, "3600": time.Hour, "0": 0, "3601": 0, "-1": 0, "1.5": 0, "": 0, "Wed, 21 Oct 2026 07:28:00 GMT": 0,
	} {
		var e *ganbauth.APIError
		require.ErrorAs(t, ganbauth.ParseAPIError(503, header("Retry-After", value), nil), &e)
		require.Equal(t, want, e.RetryAfter, value)
	}
	const year = 365 * 24 * time.Hour
	for value, want := range map[string]time.Duration{`1`: time.Second, `0.9`: time.Hour, `31536000`: year, `31536001`: year} {
		token, err := newOP(t, answersJSON(strings.Replace(goodToken, "300", value, 1))).connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err)
		require.Equal(t, want, token.ExpiresAt.Sub(token.IssuedAt), value)
	}
}
