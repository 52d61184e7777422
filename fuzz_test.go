package ganbauth_test

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// Whatever the judge lets through stays on this site, before and after http.Redirect, and
// is judged the same again.
func FuzzReturnPath(f *testing.F) {
	for _, test := range returnPaths {
		f.Add(test.payload)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, ok := ganbauth.LocalPath(s)
		if !ok {
			require.Empty(t, path)
			return
		}
		requireSameOrigin(t, path)
		require.NotContains(t, path, "#")
		require.LessOrEqual(t, len(path), 2048)
		again, ok := ganbauth.LocalPath(path)
		require.True(t, ok)
		require.Equal(t, path, again)
		base := mustParse(appURL + "/bank/callback")
		resolved, err := base.Parse(path)
		require.NoError(t, err)
		require.Equal(t, base.Host, resolved.Host)
		w := &headerWriter{http.Header{}}
		http.Redirect(w, mustRequest("GET", base.String()), path, http.StatusSeeOther)
		require.Equal(t, path, w.Header().Get("Location"))
	})
}

type headerWriter struct{ h http.Header }

func (w *headerWriter) Header() http.Header         { return w.h }
func (w *headerWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *headerWriter) WriteHeader(int)             {}

func FuzzTokenResponse(f *testing.F) {
	for _, body := range []string{goodToken, `null`, `{}`, `[]`, `{"error":"invalid_grant"}`, `{"errorCode":"WG_ERR_105"}`,
		strings.Replace(goodToken, "300", `"9223372037"`, 1), strings.Replace(goodToken, "AT-1", `a\r\n`, 1),
		strings.Replace(goodToken, `"scope"`, `"ACCESS_TOKEN":"x","scope"`, 1), goodToken + goodToken} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		token, _, err := ganbauth.ParseToken(body, judged)
		if err != nil {
			require.Nil(t, token)
			return
		}
		require.True(t, utf8.Valid(body))
		require.NotEmpty(t, token.AccessToken)
		lifetime := token.ExpiresAt.Sub(token.IssuedAt)
		require.Positive(t, lifetime)
		require.LessOrEqual(t, lifetime, 365*24*time.Hour)
		for _, s := range []string{token.AccessToken, token.RefreshToken} {
			require.LessOrEqual(t, len(s), 4096)
			for i := range len(s) {
				require.True(t, s[i] > ' ' && s[i] < 0x7f)
			}
		}
		var m map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(body, &m))
		require.Contains(t, m, "access_token", "the exact name")
		data, err := token.MarshalBinary()
		require.NoError(t, err)
		var again ganbauth.Token
		require.NoError(t, again.UnmarshalBinary(data))
		require.Equal(t, *token, again)
	})
}

// A token that the key has not signed as it stands is never accepted: the seeds are the
// one good token and its neighbours.
func FuzzIDToken(f *testing.F) {
	ok := signed(good(nil).json())
	f.Add(ok)
	f.Add(ok + "\n")
	f.Add(ok[:len(ok)-1])
	f.Add(jws(sha256.New, `{"alg":"none"}`, good(nil).json(), ""))
	f.Add(jws(sha256.New, `{"alg":"HS256","crit":["x"]}`, good(nil).json(), clientSecret))
	f.Add(strings.Repeat(".", 1000))
	f.Add(b64(`{"alg":"none"}`) + "." + b64(good(nil).json()) + ".")
	c, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic,
		ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "s"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if err := ganbauth.VerifyIDToken(c, raw, "AT-1", "n-1", judged); err == nil {
			require.Equal(t, ok, raw)
		}
	})
}

// I14: the claims inside a signature that is right.
func FuzzIDTokenClaims(f *testing.F) {
	f.Add(good(nil).json())
	f.Add(good(claims{"aud": []string{clientID, "x"}}).json())
	f.Add(good(claims{"exp": raw("1e300")}).json())
	f.Add(good(claims{"azp": clientID, "nbf": judged.Unix(), "at_hash": atHash("AT-1")}).json())
	f.Add(strings.Replace(good(nil).json(), "{", `{"sub":"x",`, 1))
	f.Add(`null`)
	c, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic,
		ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "s"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		if ganbauth.VerifyIDToken(c, signed(payload), "AT-1", "n-1", judged) != nil {
			return
		}
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(payload), &m))
		require.Equal(t, issuer, m["iss"])
		require.Equal(t, "n-1", m["nonce"])
		require.NotEmpty(t, m["sub"])
		require.Greater(t, m["exp"], float64(judged.Unix()))
		require.LessOrEqual(t, m["iat"], float64(judged.Add(ganbauth.MaxClockSkew).Unix()))
		require.GreaterOrEqual(t, m["iat"], float64(judged.Add(-ganbauth.MaxIDTokenAge).Unix()))
		sub, ok := m["sub"].(string)
		require.True(t, ok && len(sub) > 0 && len(sub) <= 255)
		if nbf := m["nbf"]; nbf != nil {
			require.LessOrEqual(t, nbf, float64(judged.Add(ganbauth.MaxClockSkew).Unix()))
		}
		if azp, ok := m["azp"]; ok {
			require.Equal(t, clientID, azp)
		}
		if hash := m["at_hash"]; hash != nil {
			require.Equal(t, atHash("AT-1"), hash)
		}
		if all, ok := m["aud"].([]any); ok {
			require.Equal(t, []any{clientID}, slices.Compact(all), "of no other client")
		} else {
			require.Equal(t, clientID, m["aud"])
		}
	})
}

func FuzzCallbackQuery(f *testing.F) {
	for _, q := range []string{"", "code=a&state=b", "code=a&code=b&state=c", "error=access_denied&state=b", "state=%zz", "a;b", "state=b&iss=x&iss=y",
		"state=" + strings.Repeat("x", 200), "error=%3Cscript%3E&error_description=%1b&state=s"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := ganbauth.ParseCallback(raw)
		if err != nil {
			require.ErrorIs(t, err, ganbauth.ErrInvalidState)
			return
		}
		values, err := url.ParseQuery(raw)
		require.NoError(t, err)
		require.Equal(t, []string{q.State}, values["state"])
		require.LessOrEqual(t, len(values["code"]), 1)
		require.LessOrEqual(t, len(values["iss"]), 1)
		require.LessOrEqual(t, len(q.State), 128)
		for _, c := range q.Failure {
			require.True(t, c >= ' ' && c <= '~' && c != '"' && c != '\\')
		}
	})
}

// The kit's marks in a query: nothing else is cut, nothing of them is left, and none
// leads away.
func FuzzMarks(f *testing.F) {
	for _, q := range []string{"", "a=1&b=2", "ganb.bank.reloaded=1", "a&ganb.bank.reloaded=x&ganb.bank.return_to=%2Fx&b=%zz", "ganb.bank.return_to=//evil.example",
		"ganb.other.reloaded=1", "ganb.bank.reloaded=99999999999999999999", "&&ganb.bank.reloaded&="} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		rest, reloads, returnTo := ganbauth.CutMarks("bank", raw)
		require.GreaterOrEqual(t, reloads, 0)
		if returnTo != "" {
			requireSameOrigin(t, returnTo)
		}
		again, n, to := ganbauth.CutMarks("bank", rest)
		require.Equal(t, []any{rest, 0, ""}, []any{again, n, to})
		kept := slices.DeleteFunc(strings.Split(raw, "&"), func(part string) bool {
			name, _, _ := strings.Cut(part, "=")
			return name == "ganb.bank.reloaded" || name == "ganb.bank.return_to"
		})
		require.Equal(t, strings.Join(kept, "&"), rest)
	})
}

// An attempt cookie that ganbauth.AttemptCookies sealed: the workers of the fuzzer share
// it.
const sealedAttempt = "n73nl064CHZwGBklMW2i8HGh62bFxBQ-fKTdNXxuzJRHEqROMQ4wcMAjnmO2Xj0lzA"

// Nobody without the key makes an attempt cookie; the seed is a real one.
func FuzzAttemptCookie(f *testing.F) {
	name, seal, open := ganbauth.AttemptCookies()
	if !open(name, seal()) || !open(name, sealedAttempt) {
		f.Fatal("a real cookie does not open")
	}
	f.Add(name, sealedAttempt)
	f.Add(name, sealedAttempt+"A")
	f.Add(name+"x", sealedAttempt)
	f.Add(name, "")
	f.Fuzz(func(t *testing.T, n, v string) {
		if open(n, v) {
			r := &http.Request{Header: http.Header{"Cookie": {n + "=" + v}}} // which n and v may split otherwise than at the "="
			require.True(t, slices.ContainsFunc(r.CookiesNamed(name), func(c *http.Cookie) bool { return c.Value == sealedAttempt }))
		}
	})
}

// I14: the attempt inside the seal, and both kinds of token records. What can be read is
// the same when it is written and read again.
func FuzzRecords(f *testing.F) {
	data, err := fullToken.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(ganbauth.AttemptRecord())
	store := ganbauth.NewSCSStore(scs.New())
	f.Add(ganbauth.SCSRecord(store, &fullToken))
	f.Fuzz(func(t *testing.T, data []byte) {
		if first, err := ganbauth.AttemptAgain(data); err == nil {
			second, err := ganbauth.AttemptAgain(first)
			require.NoError(t, err)
			require.Equal(t, first, second)
		}
		if first, err := ganbauth.SCSAgain(store, data); err == nil {
			second, err := ganbauth.SCSAgain(store, first)
			require.NoError(t, err)
			require.Equal(t, first, second)
		}
		before := fullToken
		got := before
		if err := got.UnmarshalBinary(data); err != nil {
			require.Equal(t, before, got)
			return
		}
		again, err := got.MarshalBinary()
		require.NoError(t, err)
		var twice ganbauth.Token
		require.NoError(t, twice.UnmarshalBinary(again))
		require.Equal(t, got, twice)
	})
}
