package ganbauth_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

const issuer = "https://api.gmo-aozora.com/"

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// jws signs a header and a payload as they are.
func jws(h func() hash.Hash, headerJSON, payload, key string) string {
	signed := b64(headerJSON) + "." + b64(payload)
	mac := hmac.New(h, []byte(key))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

const hs256 = `{"alg":"HS256","typ":"JWT"}`

func signed(payload string) string { return jws(sha256.New, hs256, payload, clientSecret) }

type claims map[string]any

var judged = time.Date(2026, 4, 1, 9, 30, 0, 0, time.UTC)

// good returns the claims of a perfect ID token for the nonce "n-1" and the access token
// "AT-1", with changes. A nil value removes the claim.
func good(changes claims) claims {
	c := claims{
		"iss": issuer, "sub": "u-1", "aud": clientID, "azp": clientID, "nonce": "n-1",
		"iat": judged.Unix(), "exp": judged.Add(5 * time.Minute).Unix(),
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (c claims) json() string {
	data, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func parseClaims(payload []byte) (c claims) {
	if err := json.Unmarshal(payload, &c); err != nil {
		panic(err)
	}
	return c
}

func null() any { return json.RawMessage("null") }

func raw(s string) any { return json.RawMessage(s) }

func verify(t *testing.T, token string) error {
	t.Helper()
	c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "s"})
	return ganbauth.VerifyIDToken(c, token, "AT-1", "n-1", judged)
}

func atHash(accessToken string) string {
	sum := sha256.Sum256([]byte(accessToken))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

func TestIDTokenAccepted(t *testing.T) {
	for name, token := range map[string]string{
		"a good one":                     signed(good(nil).json()),
		"no kid":                         jws(sha256.New, `{"alg":"HS256"}`, good(nil).json(), clientSecret),
		"kid is ignored":                 jws(sha256.New, `{"alg":"HS256","kid":"../../etc/passwd"}`, good(nil).json(), clientSecret),
		"typ jwt":                        jws(sha256.New, `{"alg":"HS256","typ":"jwt"}`, good(nil).json(), clientSecret),
		"typ application/jwt":            jws(sha256.New, `{"alg":"HS256","typ":"application/jwt"}`, good(nil).json(), clientSecret),
		"aud as an array":                signed(good(claims{"aud": []string{clientID}}).json()),
		"aud twice the same":             signed(good(claims{"aud": []string{clientID, clientID}}).json()),
		"no azp":                         signed(good(claims{"azp": nil}).json()),
		"at_hash":                        signed(good(claims{"at_hash": atHash("AT-1")}).json()),
		"nonce right, NONCE wrong":       signed(good(claims{"NONCE": "x"}).json()),
		"_claim_sources is ignored":      signed(good(claims{"_claim_sources": claims{"src1": claims{"endpoint": "https://evil.example"}}}).json()),
		"iat 30 s ahead":                 signed(good(claims{"iat": judged.Unix() + 30}).json()),
		"nbf 30 s ahead":                 signed(good(claims{"nbf": judged.Unix() + 30}).json()),
		"iat 10 min ago":                 signed(good(claims{"iat": judged.Unix() - 600}).json()),
		"exp in 1 s":                     signed(good(claims{"exp": judged.Unix() + 1}).json()),
		"I12 sub of 255 characters":      signed(good(claims{"sub": strings.Repeat("u", 255)}).json()),
		"sub with a space":               signed(good(claims{"sub": "u 1"}).json()),
		"I12 sub of 1 character":         signed(good(claims{"sub": "u"}).json()),
		"I12 exp at the year's end 9999": signed(good(claims{"exp": 253402300799}).json()),
		"I12 16 KiB":                     sized(16 << 10),
		"a fractional NumericDate":       signed(good(claims{"iat": raw(fmt.Sprint(judged.Unix(), ".5"))}).json()),
		"unknown claims":                 signed(good(claims{"x": claims{"y": []int{1}}}).json()),
	} {
		t.Run(name, func(t *testing.T) { require.NoError(t, verify(t, token)) })
	}
	t.Run("the secret is raw UTF-8, whatever it looks like", func(t *testing.T) {
		for _, secret := range []string{"YWJj=", "秘密の鍵", "-----BEGIN PUBLIC KEY-----"} {
			c, err := ganbauth.NewConnector(clientID, secret, ganbauth.AuthPost, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "s"})
			require.NoError(t, err)
			require.NoError(t, ganbauth.VerifyIDToken(c, jws(sha256.New, hs256, good(nil).json(), secret), "AT-1", "n-1", judged))
		}
	})
}

// sized is a good ID token of that many bytes.
func sized(bytes int) string {
	header := hs256
	for n := range 4 { // of the lengths that base64 can have
		for pad := bytes/4*3 - 300; pad < bytes/4*3; pad++ {
			token := jws(sha256.New, header, good(claims{"x": strings.Repeat("x", pad)}).json(), clientSecret)
			if len(token) == bytes {
				return token
			}
			if len(token) > bytes {
				break
			}
		}
		header = `{"alg":"HS256","x":"` + strings.Repeat("x", n) + `"}`
	}
	panic("no ID token has that length")
}

func TestIDTokenRefused(t *testing.T) {
	ok := signed(good(nil).json())
	parts := strings.Split(ok, ".")
	head := func(h string) string { return jws(sha256.New, h, good(nil).json(), clientSecret) }
	claim := func(name string, value any) string { return signed(good(claims{name: value}).json()) }
	tests := map[string]string{
		"iss + 1":                 claim("iss", issuer+"1"),
		"no sub":                  claim("sub", nil),
		"aud + 1":                 claim("aud", clientID+"1"),
		"no aud":                  claim("aud", nil),
		"no iat":                  claim("iat", nil),
		"nonce + 1":               claim("nonce", "n-11"),
		"alg none, no signature":  b64(`{"alg":"none"}`) + "." + parts[1] + ".",
		"altered signature":       ok[:len(ok)-4] + "AAAA",
		"RS256, bad signature":    b64(`{"alg":"RS256"}`) + "." + parts[1] + "." + b64(strings.Repeat("x", 256)),
		"RS256":                   head(`{"alg":"RS256"}`),
		"at_hash + 1":             claim("at_hash", atHash("AT-1")+"1"),
		"JWE of five parts":       ok + ".x.y",
		"no iss":                  claim("iss", nil),
		"no exp":                  claim("exp", nil),
		"expired 5 min ago":       claim("exp", judged.Unix()-301),
		"no nonce":                claim("nonce", nil),
		"aud with a stranger":     signed(good(claims{"aud": []string{clientID, "x"}, "azp": nil}).json()),
		"HS384":                   jws(sha512.New384, `{"alg":"HS384"}`, good(nil).json(), clientSecret),
		"HS512":                   jws(sha512.New, `{"alg":"HS512"}`, good(nil).json(), clientSecret),
		"iat a week ago":          claim("iat", judged.Unix()-7*86400),
		"empty":                   "",
		"empty key":               jws(sha256.New, hs256, good(nil).json(), ""),
		"another secret":          jws(sha256.New, hs256, good(nil).json(), "the secret before"),
		"LF at the end":           ok + "\n",
		"LF inside":               ok[:len(ok)-5] + "\n" + ok[len(ok)-5:],
		"CR in the payload":       parts[0] + "." + parts[1][:4] + "\r" + parts[1][4:] + "." + parts[2],
		"space":                   " " + ok,
		"TAB":                     ok + "\t",
		"padding":                 ok + "=",
		"standard alphabet":       ok + "+/",
		"no dot":                  "abc",
		"two segments":            parts[0] + "." + parts[1],
		"a dot":                   ".",
		"a million dots":          strings.Repeat(".", 1_000_000),
		"900 kB":                  claim("x", strings.Repeat("x", 900_000)),
		"JSON serialization":      `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"header no JSON":          head(`x`),
		"header array":            head(`[]`),
		"header null":             head(`null`),
		"header empty":            head(`{}`),
		"header trailing":         head(hs256 + "x"),
		"payload array":           signed(`[]`),
		"payload null":            signed(`null`),
		"payload empty":           signed(`{}`),
		"payload trailing":        signed(good(nil).json() + "{}"),
		"payload invalid UTF-8":   signed(strings.Replace(good(nil).json(), "{", `{"x":"`+"\xff"+`",`, 1)),
		"payload deep":            signed(`{"x":` + strings.Repeat("[", 12_000)),
		"crit exp":                head(`{"alg":"HS256","crit":["exp"]}`),
		"crit unknown":            head(`{"alg":"HS256","crit":["x"],"x":1}`),
		"crit empty":              head(`{"alg":"HS256","crit":[]}`),
		"b64 false":               head(`{"alg":"HS256","b64":false}`),
		"at+jwt":                  head(`{"alg":"HS256","typ":"at+jwt"}`),
		"logout+jwt":              head(`{"alg":"HS256","typ":"logout+jwt"}`),
		"token-introspection+jwt": head(`{"alg":"HS256","typ":"token-introspection+jwt"}`),
		"typ a number":            head(`{"alg":"HS256","typ":5}`),
		"kid of 1 MB":             head(`{"alg":"HS256","kid":"` + strings.Repeat("k", 1<<20) + `"}`),
		"duplicate alg":           head(`{"alg":"none","alg":"HS256"}`),
		"azp another client":      claim("azp", "x"),
		"azp a number":            claim("azp", 5),
		"azp null":                claim("azp", null()),
		"exp now":                 claim("exp", judged.Unix()),
		"exp a string":            claim("exp", "4102444800"),
		"exp null":                claim("exp", null()),
		"exp 1e300":               claim("exp", raw("1e300")),
		"exp in the year 10000":   claim("exp", 253402300800),
		"I12 16 KiB and 1":        sized(16<<10 + 1),
		"exp -1":                  claim("exp", -1),
		"exp NaN":                 claim("exp", "NaN"),
		"iat a string":            claim("iat", "1"),
		"iat null":                claim("iat", null()),
		"iat 31 s ahead":          claim("iat", judged.Unix()+31),
		"iat 601 s ago":           claim("iat", judged.Unix()-601),
		"nbf 31 s ahead":          claim("nbf", judged.Unix()+31),
		"nbf a string":            claim("nbf", "1"),
		"another login's":         claim("nonce", "n-0"),
		"at_hash of another":      claim("at_hash", atHash("AT-2")),
		"at_hash a number":        claim("at_hash", 5),
		"auth_time a string":      claim("auth_time", "1"),
		"the access token":        "AT-1",
		"everything wrong":        jws(sha256.New, hs256, good(claims{"exp": 1, "nonce": "secret-claim", "iss": "secret-claim"}).json(), "x"),
	}
	for _, alg := range []string{`"none"`, `"None"`, `"nOnE"`, `"NONE"`, `""`, `["HS256"]`, `256`, `"hs256"`, `"HS256 "`, `null`} {
		tests["alg "+alg] = head(`{"alg":` + alg + `}`)
	}
	for _, alg := range []string{"RS256", "ES256", "PS256", "EdDSA"} {
		tests["jwk jku x5u with "+alg] = head(`{"alg":"` + alg + `","jku":"https://evil.example","x5u":"https://evil.example","jwk":{"kty":"oct","k":"AAAA"},"x5c":["AAAA"]}`)
	}
	for _, name := range []string{"sub", "aud", "nonce", "iss"} {
		tests["duplicate "+name] = signed(strings.Replace(good(nil).json(), "{", `{"`+name+`":"x",`, 1))
	}
	tests["duplicate exp"] = signed(strings.Replace(good(nil).json(), "{", `{"exp":1,`, 1))
	for name, folded := range map[string]string{"nonce": "Nonce", "sub": "SUB", "iss": "iſſ", "exp": "EXP"} {
		tests["only "+folded] = signed(strings.Replace(good(nil).json(), `"`+name+`"`, `"`+folded+`"`, 1))
	}
	tests["only ſub"] = signed(strings.Replace(good(nil).json(), `"sub"`, `"ſub"`, 1))
	tests["nonce wrong, NONCE right"] = signed(good(claims{"nonce": "x", "NONCE": "n-1"}).json())
	for _, iss := range []any{"https://evil.example/", 5, []string{issuer}, strings.TrimSuffix(issuer, "/"), issuer + "/", strings.ToUpper(issuer), issuer + " ", null()} {
		tests[fmt.Sprintf("iss %v", iss)] = claim("iss", iss)
	}
	for _, aud := range []any{[]string{clientID, "x"}, []string{}, []string{""}, null(), 5, raw("[5]"), raw(`["cid-1",null]`), []string{"CID-1"}, "cid-1 ", "cid-10", "x cid-1", claims{"cid-1": 1}} {
		tests[fmt.Sprintf("aud %v", aud)] = claim("aud", aud)
	}
	for _, sub := range []any{"", null(), 5, strings.Repeat("u", 256), "u\x00", "u\n", "ü"} {
		tests[fmt.Sprintf("sub %.10v", sub)] = claim("sub", sub)
	}
	for _, nonce := range []any{"", null(), 5, []string{"n-1"}, "n-", "N-1", "n-1 "} {
		tests[fmt.Sprintf("nonce %v", nonce)] = claim("nonce", nonce)
	}
	// Another spelling of the same bytes: the last character of 32 bytes has unused bits.
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", ok[len(ok)-1])
	tests["another spelling of the signature"] = ok[:len(ok)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last^1])

	for name, token := range tests {
		t.Run(name, func(t *testing.T) {
			err := verify(t, token)
			require.Error(t, err)
			if token != "" {
				require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
			}
			require.NotContains(t, err.Error(), "secret-claim", "nothing of an unverified token in the error")
		})
	}
	t.Run("the error names the fault", func(t *testing.T) {
		for token, want := range map[string]string{
			strings.Repeat("a", 16<<10+1):     "longer than 16384 bytes",
			"abc":                             "not a compact JWS",
			ok + "=":                          "not base64url",
			tests["CR in the payload"]:        "not base64url",
			tests["header no JSON"]:           "header: not a JSON object",
			tests["crit empty"]:               "header has crit",
			tests["typ a number"]:             "typ is not JWT",
			tests["payload array"]:            "claims: not a JSON object",
			claim("sub", 5):                   "sub has the wrong type",
			claim("aud", 5):                   "aud has the wrong type",
			claim("aud", raw("[5]")):          "aud has the wrong type",
			claim("aud", nil):                 "aud is missing",
			claim("exp", nil):                 "exp or iat is missing",
			claim("iat", nil):                 "exp or iat is missing",
			claim("exp", "4102444800"):        "exp has the wrong type",
			claim("exp", true):                "exp has the wrong type",
			claim("exp", -1):                  "exp is out of range",
			claim("exp", raw("1e999")):        "exp is out of range",
			claim("at_hash", atHash("AT-2")):  "at_hash is not the access token's",
			claim("iss", issuer+"1"):          "iss is \"" + issuer,
			claim("nbf", judged.Unix()+31):    "not valid yet",
			claim("iat", judged.Unix()-86400): "issued more than 10m0s ago",
		} {
			require.ErrorContains(t, verify(t, token), want)
		}
	})
	t.Run("no nonce is no login's", func(t *testing.T) {
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "s"})
		err := ganbauth.VerifyIDToken(c, claim("nonce", nil), "AT-1", "", judged)
		require.ErrorContains(t, err, "nonce is not this login's")
	})
	t.Run("the error shows both issuers", func(t *testing.T) {
		err := verify(t, claim("iss", "https://api.gmo-aozora.com"))
		require.ErrorContains(t, err, `iss is "https://api.gmo-aozora.com", want "https://api.gmo-aozora.com/"`)
	})
	t.Run("without a JWTIssuer no iss is right", func(t *testing.T) {
		c := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s"})
		for _, iss := range []any{"", nil, issuer} {
			require.ErrorIs(t, ganbauth.VerifyIDToken(c, claim("iss", iss), "AT-1", "n-1", judged), ganbauth.ErrInvalidIDToken)
		}
	})
	t.Run("subjects compare by bytes", func(t *testing.T) {
		o := newOP(t, answersJSON(`{"sub":"U-1"}`))
		_, err := o.connector(t).UserInfo(t.Context(), &ganbauth.Token{AccessToken: "a", Subject: "u-1"})
		require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
	})
	t.Run("hostile sizes cost little", func(t *testing.T) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.Error(t, verify(t, strings.Repeat(".", 1_000_000)))
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20))
	})
}

// openIDAnswer is a token response with that id_token member, as JSON.
func openIDAnswer(idToken string) http.HandlerFunc {
	return answersJSON(strings.Replace(goodToken, "{", `{"id_token":`+idToken+`,`, 1))
}

func TestOpenIDToken(t *testing.T) {
	now := func(c claims) claims {
		return good(claims{"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()}).with(c)
	}
	t.Run("the subject is the ID token's", func(t *testing.T) {
		token, err := newOP(t, openIDAnswer(`"`+signed(now(nil).json())+`"`)).connector(t).OpenIDToken(t.Context(), callbackURI, "c", "n-1")
		require.NoError(t, err)
		require.Equal(t, "u-1", token.Subject)
		require.NotEmpty(t, token.IDToken)
	})
	t.Run("plain OAuth has no identity", func(t *testing.T) {
		token, err := newOP(t, openIDAnswer(`"`+signed(now(nil).json())+`"`)).connector(t).OAuthToken(t.Context(), callbackURI, "c")
		require.NoError(t, err)
		require.Empty(t, token.Subject+token.IDToken)
	})
	for _, idToken := range []string{`null`, `""`, `5`, `[]`, `{}`, `"AT-1"`, `"` + signed(now(claims{"nonce": "n-2"}).json()) + `"`} {
		t.Run("nothing of the answer is used: "+idToken[:min(len(idToken), 6)], func(t *testing.T) {
			o := newOP(t, openIDAnswer(idToken))
			token, err := o.connector(t).OpenIDToken(t.Context(), callbackURI, "c", "n-1")
			require.Error(t, err)
			require.Nil(t, token)
			require.EqualValues(t, 1, o.hits.Load(), "no retry")
			requireNoSecret(t, err)
		})
	}
	t.Run("an empty nonce matches nothing", func(t *testing.T) {
		_, err := newOP(t, openIDAnswer(`"`+signed(now(claims{"nonce": ""}).json())+`"`)).connector(t).OpenIDToken(t.Context(), callbackURI, "c", "")
		require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
	})
}

func (c claims) with(more claims) claims {
	c = maps.Clone(c)
	maps.Copy(c, more)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// OpenID Connect Core section 12.2: an ID token that comes with a refresh must agree with
// the login's.
func TestRefreshIDToken(t *testing.T) {
	now := time.Now().Unix()
	login := good(claims{"iat": now - 30, "exp": now + 270, "auth_time": now - 60})
	fresh := login.with(claims{"iat": now, "exp": now + 300, "nonce": nil})
	const same = "the login's ID token stays"
	for name, test := range map[string]struct {
		login   claims
		idToken string
		want    string
	}{
		"none":                     {login, `null`, same},
		"without a nonce":          {login, `"` + signed(fresh.json()) + `"`, same},
		"with the login's nonce":   {login, `"` + signed(fresh.with(claims{"nonce": "n-1"}).json()) + `"`, same},
		"without auth_time":        {login, `"` + signed(fresh.with(claims{"auth_time": nil}).json()) + `"`, same},
		"auth_time appears":        {login.with(claims{"auth_time": nil}), `"` + signed(fresh.json()) + `"`, same},
		"an auth_time of 1970":     {login.with(claims{"auth_time": 0}), `"` + signed(fresh.json()) + `"`, "auth_time"},
		"empty":                    {login, `""`, same},
		"another nonce":            {login, `"` + signed(fresh.with(claims{"nonce": "n-2"}).json()) + `"`, "nonce"},
		"another iss":              {login, `"` + signed(fresh.with(claims{"iss": issuer + "1"}).json()) + `"`, "iss"},
		"another sub":              {login, `"` + signed(fresh.with(claims{"sub": "u-1invalid"}).json()) + `"`, "sub"},
		"another aud":              {login, `"` + signed(fresh.with(claims{"aud": "x"}).json()) + `"`, "aud"},
		"azp appears":              {login.with(claims{"azp": nil}), `"` + signed(fresh.json()) + `"`, "azp"},
		"azp differs":              {login, `"` + signed(fresh.with(claims{"azp": "x"}).json()) + `"`, "azp"},
		"azp vanishes":             {login, `"` + signed(fresh.with(claims{"azp": nil}).json()) + `"`, "azp"},
		"auth_time of the refresh": {login, `"` + signed(fresh.with(claims{"auth_time": now}).json()) + `"`, "auth_time"},
		"iat before the login's":   {login, `"` + signed(fresh.with(claims{"iat": now - 31}).json()) + `"`, "iat"},
		"bad signature":            {login, `"` + jws(sha256.New, hs256, fresh.json(), "x") + `"`, "signature"},
		"alg none":                 {login, `"` + b64(`{"alg":"none"}`) + "." + b64(fresh.json()) + `."`, "alg"},
		"expired":                  {login, `"` + signed(fresh.with(claims{"exp": now - 1}).json()) + `"`, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newOP(t, openIDAnswer(test.idToken)).connector(t)
			old := &ganbauth.Token{RefreshToken: "RT-1", IDToken: signed(test.login.json()), Subject: "u-1", Scope: "private:account"}
			token, err := c.RefreshSession(t.Context(), old, nil)
			if test.want == same {
				require.NoError(t, err)
				require.Equal(t, old.IDToken, token.IDToken)
				require.Equal(t, "u-1", token.Subject)
				return
			}
			require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
			require.ErrorContains(t, err, test.want)
			require.Nil(t, token)
		})
	}
	t.Run("a login without an ID token ignores a refresh's", func(t *testing.T) {
		c := newOP(t, openIDAnswer(`"`+signed(fresh.json())+`"`)).connector(t)
		token, err := c.RefreshSession(t.Context(), &ganbauth.Token{RefreshToken: "RT-1"}, nil)
		require.NoError(t, err)
		require.Empty(t, token.Subject+token.IDToken)
	})
	t.Run("RefreshTokens verifies what it can", func(t *testing.T) {
		c := newOP(t, openIDAnswer(`"`+signed(fresh.json())+`"`)).connector(t)
		token, err := c.RefreshTokens(t.Context(), "RT-1")
		require.NoError(t, err)
		require.Equal(t, "u-1", token.Subject)
		c = newOP(t, openIDAnswer(`"`+signed(fresh.with(claims{"aud": "x"}).json())+`"`)).connector(t)
		_, err = c.RefreshTokens(t.Context(), "RT-1")
		require.ErrorIs(t, err, ganbauth.ErrInvalidIDToken)
	})
}
