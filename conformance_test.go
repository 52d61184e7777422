package ganbauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// The modules of the OpenID Foundation's conformance suite that apply to the code flow
// with HS256, by their names, each as a login at the bank in a box with the module's
// fault. docs/conformance.md is their table.
var conformance = map[string]func(t *testing.T){
	"oidcc-client-test":                     accepts(ganbtest.Options{}, nil),
	"oidcc-client-test-client-secret-basic": authenticates(ganbauth.AuthBasic),
	"oidcc-client-test-client-secret-post":  authenticates(ganbauth.AuthPost),

	"oidcc-client-test-invalid-iss":            refuses(claimIs("iss", appended)),
	"oidcc-client-test-missing-sub":            refuses(claimIs("sub", removed)),
	"oidcc-client-test-invalid-aud":            refuses(claimIs("aud", appended)),
	"oidcc-client-test-missing-aud":            refuses(claimIs("aud", removed)),
	"oidcc-client-test-missing-iat":            refuses(claimIs("iat", removed)),
	"oidcc-client-test-nonce-invalid":          refuses(claimIs("nonce", appended)),
	"oidcc-client-test-idtoken-sig-none":       refuses(unsigned),
	"oidcc-client-test-invalid-sig-hs256":      refuses(badlySigned),
	"oidcc-client-test-invalid-sig-rs256":      refuses(func(t idToken) string { return t.header(`{"alg":"RS256","kid":"k"}`) + b64(strings.Repeat("x", 256)) }),
	"oidcc-client-test-invalid-sig-es256":      refuses(func(t idToken) string { return t.header(`{"alg":"ES256","kid":"k"}`) + b64(strings.Repeat("x", 64)) }),
	"oidcc-client-test-idtoken-sig-rs256":      refuses(func(t idToken) string { return t.by(jwt.SigningMethodRS256, rsaKey) }),
	"oidcc-client-test-idtoken-sig-es256":      refuses(func(t idToken) string { return t.by(jwt.SigningMethodES256, ecKey) }),
	"oidcc-client-test-invalid-athash":         refuses(claimIs("at_hash", func(any) any { return atHash("another") })),
	"oidcc-client-test-missing-athash":         accepts(ganbtest.Options{}, claimIs("at_hash", removed)),
	"oidcc-client-test-userinfo-bearer-header": sendsBearer,
	"oidcc-client-test-userinfo-invalid-sub":   refusesUserInfo,
	"oidcc-client-test-scope-userinfo-claims":  asksForScopes,
	"oidcc-client-test-kid-absent-single-jwks": accepts(ganbtest.Options{}, func(t idToken) string {
		return jws(sha256.New, `{"alg":"HS256"}`, t.claims.json(), t.secret)
	}),
	"oidcc-client-test-kid-absent-multiple-jwks": accepts(ganbtest.Options{}, func(t idToken) string {
		return jws(sha256.New, `{"alg":"HS256","kid":"unknown"}`, t.claims.json(), t.secret)
	}),

	"oidcc-client-test-refresh-token":                refreshesTwice,
	"oidcc-client-test-refresh-token-invalid-issuer": refusesRefreshed(claimIs("iss", appended)),
	"oidcc-client-test-refresh-token-invalid-sub":    refusesRefreshed(claimIs("sub", appended)),

	"oidcc-client-test-3rd-party-init-login": ignoresThirdParties,
	"oidcc-client-test-form-post-error":      refusesFormPost("error=access_denied"),
	"oidcc-client-test-aggregated-claims": accepts(ganbtest.Options{}, func(t idToken) string {
		t.claims["_claim_names"] = claims{"credit_score": "src1"}
		t.claims["_claim_sources"] = claims{"src1": claims{"endpoint": "https://evil.example"}}
		return t.sign()
	}),
	"oidcc-client-test-rp-backchannel-rpinitlogout": refusesFormPost("logout_token=a.b.c"),

	"fapi2-security-profile-final-client-test-invalid-missing-iss":   refuses(claimIs("iss", removed)),
	"fapi2-security-profile-final-client-test-invalid-missing-exp":   refuses(claimIs("exp", removed)),
	"fapi2-security-profile-final-client-test-invalid-expired-exp":   refuses(claimIs("exp", func(any) any { return time.Now().Unix() - 301 })),
	"fapi2-security-profile-final-client-test-invalid-missing-nonce": refuses(claimIs("nonce", removed)),
	"fapi2-security-profile-final-client-test-invalid-secondary-aud": refuses(func(t idToken) string {
		t.claims["aud"] = []any{t.claims["aud"], "another client"}
		delete(t.claims, "azp")
		return t.sign()
	}),
	"fapi2-security-profile-final-client-test-valid-aud-as-array": accepts(ganbtest.Options{}, claimIs("aud", func(aud any) any { return []any{aud} })),
	"fapi2-security-profile-final-client-test-invalid-alternate-alg": refuses(func(t idToken) string {
		return jws(sha512.New, `{"alg":"HS512"}`, t.claims.json(), t.secret)
	}),
	"fapi2-security-profile-final-client-test-invalid-null-alg": refuses(unsigned),
	"fapi1-advanced-final-client-test-iat-is-week-in-past":      refuses(claimIs("iat", func(any) any { return time.Now().Add(-7 * 24 * time.Hour).Unix() })),
	"fapi2-security-profile-final-client-refresh-token-test":    refreshesTwice,
	"fapi2-security-profile-final-client-test-happy-path":       accepts(ganbtest.Options{SendIssuer: true}, nil),

	"fapi2-security-profile-final-client-test-token-type-case-insensitivity": acceptsResponse(func(r map[string]any) { r["token_type"] = "bEARER" }),
	"fapi1-advanced-final-client-test-no-scope-in-token-endpoint-response":   acceptsResponse(func(r map[string]any) { delete(r, "scope") }),

	"fapi2-security-profile-final-client-test-token-endpoint-response-without-expires_in": accepts(ganbtest.Options{OmitExpiresIn: true}, nil),
	"fapi2-security-profile-final-client-test-ensure-authorization-response-with-invalid-state-fails": refusesCallback(func(q url.Values) {
		q.Set("state", q.Get("state")+"1")
	}),
	"fapi2-security-profile-final-client-test-ensure-authorization-response-with-invalid-missing-state-fails": refusesCallback(func(q url.Values) {
		q.Del("state")
	}),
	"fapi2-security-profile-final-client-test-invalid-authorization-response-iss": refusesCallback(func(q url.Values) { q.Set("iss", issuer+"1") }),
	"fapi2-security-profile-final-client-test-remove-authorization-response-iss":  accepts(ganbtest.Options{}, nil),
}

func TestConformance(t *testing.T) {
	for module, test := range conformance {
		t.Run(module, test)
	}
}

// Each module has its row on the page, and each row its test.
func TestConformancePage(t *testing.T) {
	page, err := os.ReadFile("docs/conformance.md")
	require.NoError(t, err)
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` .*`TestConformance/([^`]+)`").FindAllStringSubmatch(string(page), -1) {
		require.Equal(t, m[1], m[2])
		require.Contains(t, conformance, m[1])
		rows[m[1]] = true
	}
	for module := range conformance {
		require.True(t, rows[module], "%s is not on the page", module)
	}
}

// idToken is the bank's, before it is changed.
type idToken struct {
	claims claims
	secret string
}

func (t idToken) sign() string { return jws(sha256.New, hs256, t.claims.json(), t.secret) }

// header is the part of a token that is signed, with another header.
func (t idToken) header(h string) string { return b64(h) + "." + b64(t.claims.json()) + "." }

func (t idToken) by(method jwt.SigningMethod, key any) string {
	signed, err := jwt.NewWithClaims(method, jwt.MapClaims(t.claims)).SignedString(key)
	if err != nil {
		panic(err)
	}
	return signed
}

var (
	rsaKey, _ = rsa.GenerateKey(rand.Reader, 2048)
	ecKey, _  = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
)

func unsigned(t idToken) string { return t.header(`{"alg":"none"}`) }

func badlySigned(t idToken) string {
	signed := t.sign()
	return signed[:len(signed)-4] + "AAAA"
}

func claimIs(name string, change func(any) any) func(idToken) string {
	return func(t idToken) string {
		t.claims[name] = change(t.claims[name])
		if t.claims[name] == nil {
			delete(t.claims, name)
		}
		return t.sign()
	}
}

func appended(v any) any { return v.(string) + "1" }

func removed(any) any { return nil }

// sends has the bank's next token response carry another ID token.
func (a *app) sends(change func(idToken) string) {
	a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(response map[string]any) {
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(response["id_token"].(string), ".")[1])
		require.NoError(a.t, err)
		response["id_token"] = change(idToken{parseClaims(payload), a.bank.ClientSecret})
	}}, 1)
}

func accepts(bank ganbtest.Options, change func(idToken) string) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{bank: bank}, func(t *testing.T, a *app) {
			if change != nil {
				a.sends(change)
			}
			b := a.browser()
			b.login()
			require.True(t, b.connected())
			require.NotEmpty(t, a.next.last().Subject)
		})
	}
}

func refuses(change func(idToken) string) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			a.sends(change)
			b := a.browser()
			resp := b.get(b.callbackURL("/bank/login"))
			require.Equal(t, http.StatusBadGateway, resp.StatusCode)
			require.False(t, b.connected())
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint), "no retry")
			require.Zero(t, a.bank.Count(ganbtest.UserInfo)+a.bank.Count(ganbtest.API))
			b.login()
			require.True(t, b.connected(), "the next login is not in its way")
		})
	}
}

func acceptsResponse(change func(response map[string]any)) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: change}, 1)
			b := a.browser()
			b.login()
			require.True(t, b.connected())
			require.Equal(t, "openid offline_access private:account", a.next.last().Scope)
		})
	}
}

func authenticates(method ganbauth.AuthMethod) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{AuthMethod: method}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(61 * time.Minute)
			require.True(t, b.connected())
			for _, r := range a.bank.Requests() {
				if r.Endpoint == ganbtest.TokenEndpoint {
					require.Equal(t, method, r.AuthMethod, "by this method only")
				}
			}
			require.Equal(t, 2, a.bank.Count(ganbtest.TokenEndpoint))
		})
	}
}

func refusesCallback(change func(url.Values)) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{SendIssuer: true}}, func(t *testing.T, a *app) {
			b := a.browser()
			callback := mustParse(b.callbackURL("/bank/login"))
			q := callback.Query()
			change(q)
			callback.RawQuery = q.Encode()
			require.Equal(t, http.StatusBadRequest, b.get(callback.String()).StatusCode)
			require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint), "the code is not sent")
			require.False(t, b.connected())
		})
	}
}

// refreshesTwice uses the newest access token and the newest refresh token, each time.
func refreshesTwice(t *testing.T) {
	inBubble(t, setup{bank: ganbtest.Options{RevokeOnReuse: true, RefreshIDToken: true}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		require.True(t, b.connected())
		for range 2 {
			old := a.next.last().AccessToken
			a.next.serve = func(w http.ResponseWriter, r *http.Request) {
				resp, err := a.kit.Client(r.Context()).Get(a.bank.APIBase() + "/accounts")
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				w.WriteHeader(resp.StatusCode)
			}
			time.Sleep(2 * time.Minute) // a token that has just been issued is not replaced
			a.bank.ExpireAccessTokens()
			require.True(t, b.connected(), "the API is called with the new token")
			require.True(t, b.connected())
			require.NotEqual(t, old, a.next.last().AccessToken)
		}
		require.Equal(t, 2, a.bank.Refreshes())
	})
}

func refusesRefreshed(change func(idToken) string) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{RefreshIDToken: true}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(61 * time.Minute)
			served := a.next.calls()
			a.sends(change)
			require.False(t, b.connected())
			require.False(t, b.connected())
			require.Equal(t, served, a.next.calls(), "the new token is not used")
			require.Equal(t, 1, a.bank.Refreshes())
		})
	}
}

func asksForScopes(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		q := mustParse(a.browser().authorizationURL("/bank/login")).Query()
		require.Equal(t, []string{"openid offline_access private:account"}, q["scope"])
	})
}

func sendsBearer(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		require.True(t, b.connected())
		token := a.next.last()
		info, err := a.connector(nil).UserInfo(t.Context(), &token)
		require.NoError(t, err)
		require.Equal(t, token.Subject, info["sub"])
		for _, r := range a.bank.Requests() {
			require.NotContains(t, r.Path, token.AccessToken)
		}
	})
}

func refusesUserInfo(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		require.True(t, b.connected())
		token := a.next.last()
		token.Subject += "invalid"
		info, err := a.connector(nil).UserInfo(t.Context(), &token)
		require.Error(t, err)
		require.Nil(t, info)
	})
}

func ignoresThirdParties(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		target := "/bank/login?" + url.Values{
			"iss": {"https://evil.example"}, "login_hint": {"mallory"}, "target_link_uri": {"https://evil.example/"},
		}.Encode()
		require.NotContains(t, b.authorizationURL(target), "evil")
		require.Equal(t, "/home", b.get(b.callbackURL(target)).Header.Get("Location"))
	})
}

// refusesFormPost posts a body to all of the kit's endpoints; a login that was there
// before stays.
func refusesFormPost(form string) func(*testing.T) {
	return func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			for _, path := range []string{"/bank/callback", "/bank/login", "/bank/status"} {
				r, err := http.NewRequest(http.MethodPost, appURL+path, strings.NewReader(form))
				require.NoError(t, err)
				r.Header = with(navigate, "Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "cross-site")
				resp, err := b.client.Do(r)
				require.NoError(t, err)
				require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode, path)
			}
			require.True(t, b.connected())
		})
	}
}
