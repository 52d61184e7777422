package ganbauth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// gateway stands before the bank in process and before the hosts that are not the bank.
type gateway struct {
	bank  http.RoundTripper
	hosts map[string]roundTripFunc

	mu   sync.Mutex
	seen []*http.Request
}

func (g *gateway) RoundTrip(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	g.seen = append(g.seen, r)
	g.mu.Unlock()
	if h := g.hosts[r.URL.Host]; h != nil {
		return h(r)
	}
	return g.bank.RoundTrip(r)
}

func (g *gateway) last() *http.Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[len(g.seen)-1]
}

func response(r *http.Request, status int, body string, pairs ...string) *http.Response {
	return &http.Response{StatusCode: status, Header: header(pairs...), Body: io.NopCloser(strings.NewReader(body)), Request: r, ProtoMajor: 1, ProtoMinor: 1}
}

// connectedClient returns the client of a user who is logged in, on a network with other
// hosts.
func connectedClient(t *testing.T, opts ganbtest.Options, change ...func(*ganbauth.Options)) (*http.Client, *ganbtest.Server, *gateway) {
	t.Helper()
	opts.InProcess = true
	bank := ganbtest.NewServer(opts)
	g := &gateway{bank: bank.Client().Transport, hosts: map[string]roundTripFunc{}}
	cfg := bank.Config()
	cfg.HTTPClient = &http.Client{Transport: g}
	c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, cfg)
	require.NoError(t, err)
	o := ganbauth.Options{
		RedirectURI: appURL + "/bank/callback", Scopes: []string{"openid", "offline_access"}, Store: ganbauth.NewMemoryStore(),
		Key: keyIs("u"), Logger: discard,
	}
	for _, f := range change {
		f(&o)
	}
	kit, err := ganbauth.New(c, nil, o)
	require.NoError(t, err)
	connect(t, bank, o.Store, "u")
	var client *http.Client
	kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		client = kit.Client(context.WithoutCancel(r.Context()))
	})).ServeHTTP(nil, mustRequest("GET", "/"))
	require.NotNil(t, client)
	return client, bank, g
}

func mustRequest(method, target string) *http.Request {
	r, err := http.NewRequest(method, target, nil)
	if err != nil {
		panic(err)
	}
	return r
}

func TestClientSendsTheTokenToTheBankOnly(t *testing.T) {
	t.Run("where it goes", func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{})
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		sent := g.last()
		require.Len(t, sent.Header.Values("x-access-token"), 1)
		require.Empty(t, sent.Header.Get("Authorization"))
		require.Empty(t, sent.URL.RawQuery)
		require.Empty(t, resp.Request.Header.Get("x-access-token"), "the answer's Request does not show it")
	})
	for name, target := range map[string]string{
		"another host":                "https://evil.example/accounts",
		"another port":                "https://bank.test:8443/accounts",
		"a longer name":               "https://bank.test.evil.example/",
		"a shorter name":              "https://test/",
		"userinfo that looks like it": "https://bank.test@evil.example/",
	} {
		t.Run(name, func(t *testing.T) {
			client, _, g := connectedClient(t, ganbtest.Options{})
			g.hosts[mustParse(target).Host] = func(r *http.Request) (*http.Response, error) { return response(r, 200, ""), nil }
			_, err := client.Get(target)
			require.NoError(t, err)
			require.Empty(t, g.last().Header.Get("x-access-token"))
		})
	}
	t.Run("the bank by http is refused", func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{})
		before := len(g.seen)
		_, err := client.Post(strings.Replace(bank.APIBase(), "https", "http", 1), "", strings.NewReader("x"))
		require.ErrorContains(t, err, "https only")
		require.Len(t, g.seen, before)
	})
	t.Run("I3 with the port of https, or with a port of its own, http is refused as well", func(t *testing.T) {
		client, _, g := connectedClient(t, ganbtest.Options{}, func(o *ganbauth.Options) {
			o.APIHosts = []string{"api3.bank.test:8443", "api4.bank.test", "api5.bank.test:80"}
		})
		before := len(g.seen)
		for _, target := range []string{
			"http://bank.test:443/accounts", "http://bank.test:80/accounts", "http://api3.bank.test:8443/",
			"http://api4.bank.test/", "http://api4.bank.test:443/", "http://api5.bank.test:80/",
		} {
			_, err := client.Get(target)
			require.ErrorContains(t, err, "https only", target)
		}
		require.Len(t, g.seen, before)
		g.hosts["bank.test:80"] = func(r *http.Request) (*http.Response, error) { return response(r, 200, ""), nil }
		_, err := client.Get("https://bank.test:80/")
		require.NoError(t, err)
		require.Empty(t, g.last().Header.Get("x-access-token"), "another port is another host")
	})
	t.Run("upper case and the explicit port are the bank", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		resp, err := client.Get(strings.Replace(bank.APIBase(), "bank.test", "BANK.test:443", 1) + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
	})
	t.Run("APIHosts", func(t *testing.T) {
		client, _, g := connectedClient(t, ganbtest.Options{}, func(o *ganbauth.Options) {
			o.APIHosts = []string{"api2.bank.test", "api3.bank.test:8443", "127.0.0.1:9999", "localhost"}
		})
		for target, want := range map[string]bool{
			"https://api2.bank.test/x": true, "https://api3.bank.test:8443/": true, "http://127.0.0.1:9999/": true,
			"http://localhost/": true, "http://localhost:80/": true, "https://api2.bank.test:80/": false,
			"https://api3.bank.test/": false, "https://api4.bank.test/": false, "http://127.0.0.1:9998/": false,
		} {
			g.hosts[mustParse(target).Host] = func(r *http.Request) (*http.Response, error) { return response(r, 200, ""), nil }
			_, err := client.Get(target)
			require.NoError(t, err)
			require.Equal(t, want, g.last().Header.Get("x-access-token") != "", target)
		}
	})
	t.Run("a redirect elsewhere", func(t *testing.T) {
		for _, status := range []int{301, 302, 303, 307, 308} {
			client, bank, g := connectedClient(t, ganbtest.Options{})
			evil := 0
			g.hosts["evil.example"] = func(r *http.Request) (*http.Response, error) {
				evil++
				return response(r, 302, "", "Location", bank.APIBase()+"/accounts"), nil
			}
			bank.Fail(ganbtest.API, ganbtest.Fault{Status: status, Header: header("Location", "https://evil.example/x")}, 1)
			resp, err := client.Post(bank.APIBase()+"/transfer/request", "application/json", strings.NewReader(`{}`))
			require.NoError(t, err)
			require.Equal(t, status, resp.StatusCode, "handed on")
			require.Zero(t, evil)

			// Used in a client of the caller's that follows, the token still stays at the
			// bank, and away after a detour.
			bank.Fail(ganbtest.API, ganbtest.Fault{Status: status, Header: header("Location", "https://evil.example/x")}, 1)
			resp, err = (&http.Client{Transport: client.Transport}).Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.Equal(t, 1, evil)
			require.Equal(t, 401, resp.StatusCode)
			for _, r := range g.seen[len(g.seen)-2:] {
				require.Empty(t, r.Header.Get("x-access-token"))
			}
		}
	})
	t.Run("a redirect within the bank is followed", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.Fail(ganbtest.API, ganbtest.Fault{Status: 307, Header: header("Location", bank.APIBase()+"/accounts/balances")}, 1)
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Contains(t, body(resp), "balances")
	})
	t.Run("it never comes back, however many redirects later", func(t *testing.T) {
		client, _, g := connectedClient(t, ganbtest.Options{})
		to := func(target string) roundTripFunc {
			return func(r *http.Request) (*http.Response, error) { return response(r, 302, "", "Location", target), nil }
		}
		g.hosts["evil.example"] = to("https://bank.test/2")
		g.hosts["bank.test"] = func(r *http.Request) (*http.Response, error) {
			if target := map[string]string{"/1": "https://evil.example/", "/2": "/3", "/3": "/4"}[r.URL.Path]; target != "" {
				return to(target)(r)
			}
			return response(r, 200, ""), nil
		}
		follow := func(path string) (withToken []string) {
			before := len(g.seen)
			resp, err := (&http.Client{Transport: client.Transport}).Get("https://bank.test" + path)
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			for _, r := range g.seen[before:] {
				if r.Header.Get("X-Access-Token") != "" {
					withToken = append(withToken, r.URL.Path)
				}
			}
			return withToken
		}
		require.Equal(t, []string{"/1"}, follow("/1"))
		require.Equal(t, []string{"/2", "/3", "/4"}, follow("/2"))

		req := mustRequest("GET", "https://bank.test/4")
		req.Response = &http.Response{}
		_, err := client.Transport.RoundTrip(req)
		require.NoError(t, err)
		require.Empty(t, g.last().Header.Get("X-Access-Token"), "what led here is not known")
		req.Response.Request = &http.Request{}
		_, err = client.Transport.RoundTrip(req)
		require.NoError(t, err)
		require.Empty(t, g.last().Header.Get("X-Access-Token"), "a request without an address")
	})
	t.Run("nor from a RoundTripper that does not say what it has answered", func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{})
		to := bank.APIBase() + "/accounts"
		for _, host := range []string{"evil.example", "bank.test"} {
			g.hosts[host] = func(r *http.Request) (*http.Response, error) {
				delete(g.hosts, host)
				resp := response(r, 302, "", "Location", to)
				resp.Request = nil
				return resp, nil
			}
			resp, err := client.Get("https://" + host + "/")
			require.NoError(t, err)
			require.Equal(t, host == "evil.example", resp.StatusCode == 401, host)
			require.Equal(t, host == "evil.example", g.last().Header.Get("X-Access-Token") == "", host)
		}
	})
	t.Run("a redirect to nowhere is handed on", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		for _, status := range []int{301, 307} {
			bank.Fail(ganbtest.API, ganbtest.Fault{Status: status, Header: header("Location", "https://bank.test/%zz?secret")}, 1)
			resp, err := client.Get(bank.APIBase() + "/accounts")
			require.NoError(t, err, "net/http's would quote it")
			require.Equal(t, status, resp.StatusCode)
		}
		bank.Fail(ganbtest.API, ganbtest.Fault{Status: 201, Header: header("Location", "/%zz")}, 1)
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, "/%zz", resp.Header.Get("Location"), "of no redirect")
	})
	t.Run("a redirect without end is handed on after ten", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.Fail(ganbtest.API, ganbtest.Fault{Status: 307, Header: header("Location", bank.APIBase()+"/accounts")}, -1)
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 307, resp.StatusCode)
		require.Equal(t, 10, bank.Count(ganbtest.API))
		require.ErrorIs(t, (*ganbauth.Kit)(nil).ClientFor("u").CheckRedirect(mustRequest("GET", bank.APIBase()), nil), http.ErrUseLastResponse)
	})
	t.Run("what came in is not forwarded", func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{})
		req := mustRequest("GET", bank.APIBase()+"/accounts")
		req.Header["X-Access-Token"] = []string{"planted", "planted too"}
		_, err := client.Do(req)
		require.NoError(t, err)
		require.Len(t, g.last().Header["X-Access-Token"], 1)
		require.NotContains(t, g.last().Header.Get("X-Access-Token"), "planted")
		require.Equal(t, []string{"planted", "planted too"}, req.Header["X-Access-Token"], "the request is not changed")
		req.Header = http.Header{"x-access-token": {"planted"}, "X-ACCESS-TOKEN": {"planted"}, "X_access_token": {"planted"}}
		_, err = client.Do(req)
		require.NoError(t, err)
		require.NotContains(t, fmt.Sprint(g.last().Header), "planted")
		require.Len(t, req.Header, 3)
	})
	t.Run("outside RequireToken", func(t *testing.T) {
		a := newApp(t, setup{})
		_, err := a.kit.Client(t.Context()).Get(a.bank.APIBase() + "/accounts")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Zero(t, a.bank.Count(ganbtest.API))
	})
}

// oneShot is a body that cannot be rewound.
type oneShot struct{ io.Reader }

func TestClientRefreshes(t *testing.T) {
	t.Run("401 WG_ERR_105: refreshed, and sent again once", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{RevokeOnReuse: true})
		bank.ExpireAccessTokens()
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, 1, bank.Refreshes())
		require.Equal(t, 2, bank.Count(ganbtest.API))
		resp, err = client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, 3, bank.Count(ganbtest.API), "the client has learned the new token")
	})
	t.Run("a second 401 is handed on", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.Fail(ganbtest.API, ganbtest.Fault{Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`}, -1)
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 401, resp.StatusCode)
		require.Equal(t, 2, bank.Count(ganbtest.API))
		require.Equal(t, 1, bank.Refreshes())
		var e *ganbauth.APIError
		require.ErrorAs(t, ganbauth.CheckResponse(resp), &e)
		require.True(t, e.Expired())
		require.Equal(t, `{"errorCode":"WG_ERR_105"}`, body(resp), "and its body can be read")
	})
	t.Run("I8 without another token nothing is sent a second time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{})
			bank.ExpireAccessTokens()
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
			_, err := client.Get(bank.APIBase() + "/accounts")
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Equal(t, 1, bank.Count(ganbtest.API))
			require.Equal(t, 1, bank.Refreshes())
			time.Sleep(2 * time.Second)
			resp, err := client.Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, 200, resp.StatusCode, "once the bank is well")
		})
	})
	t.Run("the resource answers 401 until the refresh token has been used twice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{RevokeOnReuse: true})
			for range 2 {
				bank.ExpireAccessTokens()
				resp, err := client.Get(bank.APIBase() + "/accounts")
				require.NoError(t, err)
				require.Equal(t, 200, resp.StatusCode)
				resp.Body.Close()
				time.Sleep(2 * time.Minute)
			}
			require.Equal(t, 2, bank.Refreshes())
		})
	})
	t.Run("D4 an API that refuses fresh tokens: one refresh a minute, and the 401 is handed on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{RevokeOnReuse: true})
			bank.Fail(ganbtest.API, ganbtest.Fault{Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`}, -1)
			for range 100 {
				resp, err := client.Get(bank.APIBase() + "/accounts")
				require.NoError(t, err)
				require.Equal(t, 401, resp.StatusCode)
				resp.Body.Close()
				time.Sleep(time.Second)
			}
			require.Equal(t, 2, bank.Refreshes())
			require.Equal(t, 102, bank.Count(ganbtest.API), "a request is sent twice with two tokens only")
			bank.Heal()
			time.Sleep(2 * time.Minute)
			resp, err := client.Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			resp.Body.Close()
		})
	})
	t.Run("D4 a bank that issues the refused access token again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, g := connectedClient(t, ganbtest.Options{RevokeOnReuse: true})
			straight, issued := g.bank, ""
			g.bank = roundTripFunc(func(r *http.Request) (*http.Response, error) {
				issued = cmpOr(issued, r.Header.Get("x-access-token"))
				resp, err := straight.RoundTrip(r)
				if err == nil && strings.HasSuffix(r.URL.Path, "/token") {
					answer := map[string]any{}
					require.NoError(t, json.Unmarshal([]byte(body(resp)), &answer))
					answer["access_token"] = issued
					delete(answer, "id_token")
					again, _ := json.Marshal(answer)
					return response(r, 200, string(again), "Content-Type", "application/json"), nil
				}
				return resp, err
			})
			bank.Fail(ganbtest.API, ganbtest.Fault{Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`}, -1)
			for range 50 {
				resp, err := client.Get(bank.APIBase() + "/accounts")
				require.NoError(t, err)
				require.Equal(t, 401, resp.StatusCode)
				resp.Body.Close()
				time.Sleep(time.Second)
			}
			require.LessOrEqual(t, bank.Refreshes(), 3)
			time.Sleep(2 * time.Minute)
		})
	})
	t.Run("a transport whose answers have no Body", func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{})
		for _, status := range []int{200, 401} {
			g.hosts[mustParse(bank.APIBase()).Host] = func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: status}, nil
			}
			resp, err := client.Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.Empty(t, body(resp))
			require.NoError(t, resp.Body.Close())
		}
	})
	t.Run("a refusal that net/http has not decompressed, as the caller has set Accept-Encoding", func(t *testing.T) {
		for name, c := range map[string]struct {
			encoding, body string
			refreshes      int
		}{
			"gzip":              {"gzip", string(gzipped(`{"errorCode":"WG_ERR_105"}`)), 1},
			"in capitals":       {"GZIP", string(gzipped(`{"errorCode":"WG_ERR_105"}`)), 1},
			"cut":               {"gzip", string(gzipped(`{"errorCode":"WG_ERR_105"}` + strings.Repeat(" ", 9)))[:40], 1},
			"gzip of a bomb":    {"gzip", string(gzipped(strings.Repeat(" ", 16<<20) + `{"errorCode":"WG_ERR_105"}`)), 0},
			"gzip that is none": {"gzip", `{"errorCode":"WG_ERR_105"}`, 0},
		} {
			client, bank, _ := connectedClient(t, ganbtest.Options{})
			refusal := ganbtest.Fault{Status: 401, Header: header("Content-Encoding", c.encoding), Body: c.body}
			bank.Fail(ganbtest.API, refusal, 2)
			req := mustRequest("GET", bank.APIBase()+"/accounts")
			req.Header.Set("Accept-Encoding", "gzip")
			resp, err := client.Do(req)
			require.NoError(t, err)
			require.Equal(t, 401, resp.StatusCode)
			require.Equal(t, c.body, body(resp), "%s: it is handed on as it came", name)
			require.Equal(t, c.refreshes, bank.Refreshes(), name)
		}
	})
	for name, fault := range map[string]ganbtest.Fault{
		"another errorCode": {Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_104"}`},
		"403":               {Status: 403, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`},
		"maintenance":       ganbtest.Maintenance,
		"WG_ERR_110":        {Status: 400, Header: jsonType, Body: `{"errorCode":"WG_ERR_110"}`},
		"401 HTML":          {Status: 401, Body: "<html>"},
		"429":               ganbtest.RateLimited,
	} {
		t.Run(name+" refreshes nothing", func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{})
			bank.Fail(ganbtest.API, fault, 1)
			resp, err := client.Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.Equal(t, fault.Status, resp.StatusCode)
			require.Equal(t, fault.Body, body(resp))
			require.Zero(t, bank.Refreshes())
		})
	}
	t.Run("a body that can be rewound is sent again", func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{})
		bank.ExpireAccessTokens()
		req, err := http.NewRequest("POST", bank.APIBase()+"/transfer/request", bytes.NewReader([]byte(`{"amount":"1"}`)))
		require.NoError(t, err)
		req.Header.Set("Idempotency-Key", "k-1")
		resp, err := client.Do(req)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Equal(t, "k-1", g.last().Header.Get("Idempotency-Key"))
	})
	t.Run("a body that cannot is not: the 401 is handed on, and the next request has the new token", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.ExpireAccessTokens()
		send := func() *http.Response {
			resp, err := client.Post(bank.APIBase()+"/transfer/request", "application/json", oneShot{strings.NewReader(`{"amount":"1"}`)})
			require.NoError(t, err)
			return resp
		}
		require.Equal(t, 401, send().StatusCode)
		require.Equal(t, 1, bank.Count(ganbtest.API))
		require.Equal(t, 201, send().StatusCode)
		require.Equal(t, 1, bank.Refreshes())
	})
	t.Run("several calls that meet it together cause one refresh", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{RevokeOnReuse: true, Latency: 50 * time.Millisecond})
			bank.ExpireAccessTokens()
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					resp, err := client.Get(bank.APIBase() + "/accounts")
					if err != nil || resp.StatusCode != 200 {
						t.Errorf("got %v, %v", resp, err)
						return
					}
					resp.Body.Close()
				})
			}
			wg.Wait()
			require.Equal(t, 1, bank.Refreshes())
		})
	})
	t.Run("a token that somebody else has rotated is used, not refreshed again", func(t *testing.T) {
		store := ganbauth.NewMemoryStore()
		client, bank, _ := connectedClient(t, ganbtest.Options{RevokeOnReuse: true}, func(o *ganbauth.Options) { o.Store = store })
		bank.ExpireAccessTokens()
		c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
		require.NoError(t, err)
		old, err := store.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		next, err := c.RefreshSession(t.Context(), old, nil)
		require.NoError(t, err)
		require.NoError(t, store.Save(t.Context(), "bank/u", next))
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, 1, bank.Refreshes(), "somebody else's alone")
	})
	t.Run("a bank that fails the refresh: nobody is told to connect again", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.ExpireAccessTokens()
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, -1)
		for range 10 {
			_, err := client.Get(bank.APIBase() + "/accounts")
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			require.Positive(t, ganbauth.RetryAfter(err))
		}
		require.Equal(t, 1, bank.Refreshes(), "the cool-down holds here, too")
	})
	t.Run("a bank that has ended the connection: its 401 is handed on", func(t *testing.T) {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.RevokeGrants()
		resp, err := client.Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 401, resp.StatusCode)
		require.Equal(t, 1, bank.Refreshes())
	})
	t.Run("a request that ends during the refresh", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{})
			bank.ExpireAccessTokens()
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(5*time.Second), 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := client.Do(mustRequest("GET", bank.APIBase()+"/accounts").WithContext(ctx))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			time.Sleep(5 * time.Second)
		})
	})
	t.Run("a token that lapses during a long handler", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, bank, _ := connectedClient(t, ganbtest.Options{})
			time.Sleep(61 * time.Minute)
			resp, err := client.Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			resp.Body.Close()
			require.Equal(t, 1, bank.Count(ganbtest.API), "refreshed before it was sent")
		})
	})
}

// What the API has refused is sent once more only if it can be sent whole.
func TestClientSendsAgain(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   int
	}{
		"a body that says that it is none": {func(r *http.Request) { r.Body, r.GetBody = http.NoBody, nil }, 200},
		"no body":                          {func(r *http.Request) { r.Body, r.GetBody = nil, nil }, 200},
		"a body that cannot be had again": {func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("x"))
			r.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
		}, 401},
	} {
		client, bank, _ := connectedClient(t, ganbtest.Options{})
		bank.ExpireAccessTokens()
		req := mustRequest("GET", bank.APIBase()+"/accounts")
		c.change(req)
		resp, err := client.Do(req)
		require.NoError(t, err, name)
		require.Equal(t, c.want, resp.StatusCode, name)
		require.NotEmpty(t, body(resp), name)
		require.Equal(t, map[int]int{200: 2, 401: 1}[c.want], bank.Count(ganbtest.API), name)
	}
}

// closeSpy is a request's body that knows whether it was closed.
type closeSpy struct {
	io.Reader
	closed int
}

func (c *closeSpy) Close() error { c.closed++; return errors.New("closed") }

// The body of a request that is not sent is closed, as [http.RoundTripper] demands.
func TestClientClosesWhatItDoesNotSend(t *testing.T) {
	store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
	a := newApp(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}})
	store.set(errors.New("away"), nil, nil)
	for name, c := range map[string]struct {
		client *http.Client
		target string
	}{
		"a kit that New did not make": {(*ganbauth.Kit)(nil).Client(t.Context()), "https://bank.test/"},
		"nobody's":                    {a.kit.Client(t.Context()), "https://bank.test/"},
		"the store is away":           {a.kit.ClientFor("u"), "https://bank.test/"},
		"not https":                   {a.kit.ClientFor("u"), "http://bank.test/"},
	} {
		c.client.CloseIdleConnections()
		sent := &closeSpy{Reader: strings.NewReader("x")}
		req, err := http.NewRequest("POST", c.target, sent)
		require.NoError(t, err)
		_, err = c.client.Transport.RoundTrip(req)
		require.Error(t, err, name)
		require.Equal(t, 1, sent.closed, name)
		_, err = c.client.Transport.RoundTrip(mustRequest("GET", c.target))
		require.Error(t, err, "%s: without a body", name)
	}
	require.Zero(t, a.bank.Count(ganbtest.API))
}

// The answer's body is the bank's: its end, its faults and what Close says.
func TestClientHandsTheBodyOn(t *testing.T) {
	client, _, g := connectedClient(t, ganbtest.Options{})
	spy := &closeSpy{Reader: strings.NewReader("whole")}
	g.hosts["bank.test"] = func(r *http.Request) (*http.Response, error) {
		resp := response(r, 200, "")
		resp.Body = spy
		return resp, nil
	}
	resp, err := client.Get("https://bank.test/x")
	require.NoError(t, err)
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "whole", string(data))
	require.EqualError(t, resp.Body.Close(), "closed")
	require.Equal(t, 1, spy.closed)
}

// I11: nothing watches the contexts of a request, and of the handler that made the client,
// once its answer is closed or has failed. A bubble fails if a goroutine is left.
func TestI11ContextsAreReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, bank, g := connectedClient(t, ganbtest.Options{}, func(*ganbauth.Options) {})
		send := func() (*http.Response, error) {
			ctx := foreignContext{t.Context(), make(chan struct{})}
			return client.Transport.RoundTrip(mustRequest("GET", bank.APIBase()+"/accounts").WithContext(ctx))
		}
		resp, err := send()
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.ErrorIs(t, resp.Request.Context().Err(), nil, "the caller's own context lives on")
		require.Error(t, g.last().Context().Err(), "the one that was sent has ended")
		resp, err = send()
		require.NoError(t, err)
		require.NoError(t, g.last().Context().Err())
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Error(t, g.last().Context().Err(), "net/http keeps nothing of a body that was read to its end, either")
		g.hosts["bank.test"] = func(*http.Request) (*http.Response, error) { return nil, io.EOF }
		_, err = send()
		require.ErrorIs(t, err, io.EOF)
		require.Error(t, g.last().Context().Err())
		g.hosts["bank.test"] = func(*http.Request) (*http.Response, error) { panic("hook") }
		require.Panics(t, func() { _, _ = send() })
		require.Error(t, g.last().Context().Err())
	})
}

// What net/http refuses is refused, and does not panic.
func TestClientRefusesWhatIsNoRequest(t *testing.T) {
	client, bank, g := connectedClient(t, ganbtest.Options{})
	for name, req := range map[string]*http.Request{
		"no URL":    {Header: http.Header{}},
		"no Header": {URL: mustParse(bank.APIBase())},
	} {
		_, err := client.Transport.RoundTrip(req)
		require.ErrorContains(t, err, "no URL or no Header", name)
	}
	for _, host := range []string{"bank.test", "other.test"} {
		g.hosts[host] = func(*http.Request) (*http.Response, error) { return nil, nil }
		_, err := client.Get("https://" + host + "/")
		require.ErrorContains(t, err, "neither a response nor an error", host)
		require.Equal(t, 500, ganbauth.StatusCode(err), host)
	}
}

// What the API sends instead of an answer is in no error.
func TestClientQuotesNoAnswer(t *testing.T) {
	o := newOP(t, hijack(func(c net.Conn) { _, _ = io.WriteString(c, `{"balance":"S3CRET"}`+"\r\n\r\n") }))
	_, err := clientOfAPI(t, o.URL, nil).Get(o.URL + "/accounts")
	require.Equal(t, 503, ganbauth.StatusCode(err))
	require.NotContains(t, err.Error(), "S3CRET")
}

// A connection that has changed its protocol can be written to, if its body can.
func TestClientUpgrades(t *testing.T) {
	client, _, g := connectedClient(t, ganbtest.Options{})
	conn, _ := net.Pipe()
	for _, c := range []struct {
		status   int
		body     io.ReadCloser
		writable bool
	}{{101, conn, true}, {200, conn, false}, {101, http.NoBody, false}} {
		g.hosts["bank.test"] = func(r *http.Request) (*http.Response, error) {
			resp := response(r, c.status, "")
			resp.Body = c.body
			return resp, nil
		}
		resp, err := client.Transport.RoundTrip(mustRequest("GET", "https://bank.test/stream"))
		require.NoError(t, err)
		_, ok := resp.Body.(io.Writer)
		require.Equal(t, c.writable, ok, c)
		require.NoError(t, resp.Body.Close())
		require.Error(t, g.last().Context().Err())
	}
}

// An application can close what the kit keeps open, to the token endpoint as to the API.
func TestClientClosesIdleConnections(t *testing.T) {
	closed := 0
	cfg := ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s", HTTPClient: &http.Client{Transport: closingTransport{&closed}}}
	kit, err := ganbauth.New(newConnector(t, ganbauth.AuthBasic, cfg), nil, ganbauth.Options{
		RedirectURI: appURL + "/cb", Scopes: []string{"a"}, Logger: discard, Store: ganbauth.NewMemoryStore(),
		Key: keyIs("u"),
	})
	require.NoError(t, err)
	kit.ClientFor("u").CloseIdleConnections()
	require.Equal(t, 2, closed)
}

type closingTransport struct{ closed *int }

func (closingTransport) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.EOF }
func (c closingTransport) CloseIdleConnections()                         { *c.closed++ }

// foreignContext is a context that package context does not know: whoever derives from it
// has a goroutine watch it.
type foreignContext struct {
	context.Context
	done chan struct{}
}

func (c foreignContext) Done() <-chan struct{} { return c.done }

// A handler's token that is about to expire is refreshed before it is sent, however
// recently the store was asked.
func TestClientRefreshesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		connect(t, bank, store, "u")
		kit := backgroundKit(t, bank, store, nil)
		time.Sleep(time.Hour - time.Minute - 2*time.Second)
		r := mustRequest("GET", "/")
		r.Header.Set("X-User", "u")
		kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for _, refreshes := range []int{0, 1} {
				resp, err := kit.Client(r.Context()).Get(bank.APIBase() + "/accounts")
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, refreshes, bank.Refreshes())
				time.Sleep(3 * time.Second)
			}
		})).ServeHTTP(nil, r)
	})
}

// A job that names nobody is told so, and not that a user has to connect.
func TestClientForNobody(t *testing.T) {
	a := newApp(t, setup{options: ganbauth.Options{Key: keyIs("u")}})
	for says, client := range map[string]*http.Client{
		"the key is empty":                  a.kit.ClientFor(""),
		"more than one connection is named": a.kit.ClientFor("u", "a", "b"),
		"longer than 1024 bytes together":   a.kit.ClientFor(strings.Repeat("k", 1024)),
	} {
		_, err := client.Get(a.bank.APIBase() + "/accounts")
		require.ErrorContains(t, err, says)
		require.Equal(t, 500, ganbauth.StatusCode(err), "to wait does not help")
	}
	require.Zero(t, a.bank.Count(ganbtest.API))
}

// H2: a job's client follows what becomes of its user.
func TestClientForAsksTheStoreEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		connect(t, bank, store, "u")
		kit := backgroundKit(t, bank, store, nil)
		client := kit.ClientFor("u")
		get := func() error {
			resp, err := client.Get(bank.APIBase() + "/accounts")
			if err == nil {
				require.Equal(t, 200, resp.StatusCode)
				resp.Body.Close()
			}
			return err
		}
		require.NoError(t, get())
		store.set(errors.New("away"), nil, nil)
		require.Equal(t, 503, ganbauth.StatusCode(get()))
		store.set(nil, nil, nil)
		require.NoError(t, kit.Disconnect(t.Context(), "u"))
		require.ErrorIs(t, get(), ganbauth.ErrLoginRequired)
		connect(t, bank, store, "u")
		require.NoError(t, get())
	})
}

// H2: a handler's client trusts its token for a few seconds, and then asks the store.
func TestClientAsksTheStoreAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		connect(t, bank, store, "u")
		kit := backgroundKit(t, bank, store, nil)
		r := mustRequest("GET", "/")
		r.Header.Set("X-User", "u")
		kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			client := kit.Client(r.Context())
			store.set(errors.New("away"), nil, nil)
			for range 5 {
				resp, err := client.Get(bank.APIBase() + "/accounts")
				require.NoError(t, err)
				resp.Body.Close()
				time.Sleep(999 * time.Millisecond)
			}
			time.Sleep(5 * time.Millisecond)
			_, err := client.Get(bank.APIBase() + "/accounts")
			require.Equal(t, 503, ganbauth.StatusCode(err))
			store.set(nil, nil, nil)
			require.NoError(t, kit.Disconnect(t.Context(), "u"))
			_, err = client.Get(bank.APIBase() + "/accounts")
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		})).ServeHTTP(nil, r)
	})
}

// A handler that makes a client for each request of a stream has no newer token by that.
func TestH2StreamOfClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		connect(t, bank, store, "u")
		kit := backgroundKit(t, bank, store, nil)
		r := mustRequest("GET", "/")
		r.Header.Set("X-User", "u")
		kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			time.Sleep(4 * time.Second)
			require.NoError(t, kit.Disconnect(t.Context(), "u"))
			resp, err := kit.Client(r.Context()).Get(bank.APIBase() + "/accounts")
			require.NoError(t, err)
			resp.Body.Close()
			time.Sleep(time.Second)
			_, err = kit.Client(r.Context()).Get(bank.APIBase() + "/accounts")
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		})).ServeHTTP(nil, r)
	})
}

// H2: what a request has begun with one account does not go on with another, which its user
// has connected meanwhile. A login of the same bank user, for more scopes, ends nothing.
func TestH2AnotherAccountIsConnected(t *testing.T) {
	for name, same := range map[string]bool{"of another bank user": false, "of the same one": true} {
		for when, learns := range map[string]func(*ganbtest.Server){
			"the client asks the store": func(*ganbtest.Server) { time.Sleep(5 * time.Second) },
			"the API refuses the token": (*ganbtest.Server).ExpireAccessTokens,
		} {
			t.Run(name+", "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					subject := ""
					if same {
						subject = "s"
					}
					bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true, Subject: subject}), ganbauth.NewMemoryStore()
					kit := backgroundKit(t, bank, store, nil)
					require.NoError(t, kit.SetToken(t.Context(), "u", bank.Token()))
					r := mustRequest("GET", "/")
					r.Header.Set("X-User", "u")
					kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						client := kit.Client(r.Context())
						learns(bank)
						require.NoError(t, kit.SetToken(t.Context(), "u", bank.Token()))
						resp, err := client.Get(bank.APIBase() + "/accounts")
						if err == nil {
							err = ganbauth.CheckResponse(resp)
							require.NoError(t, resp.Body.Close())
						}
						require.Equal(t, same, err == nil, err)
						if err != nil {
							require.Equal(t, 401, ganbauth.StatusCode(err))
						}
					})).ServeHTTP(nil, r)
				})
			})
		}
	}
}

// Whose account a token without a Subject is of, only its login says: a client goes on with
// what a refresh brings, and not with another login's.
func TestH2TokensWithoutASubject(t *testing.T) {
	for name, same := range map[string]bool{"a refresh": true, "another login": false} {
		synctest.Test(t, func(t *testing.T) {
			bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
			kit := backgroundKit(t, bank, store, nil)
			set := func() {
				token := bank.Token()
				token.Subject = ""
				require.NoError(t, kit.SetToken(t.Context(), "u", token))
			}
			set()
			r := mustRequest("GET", "/")
			r.Header.Set("X-User", "u")
			kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				client := kit.Client(r.Context())
				if time.Sleep(61 * time.Minute); !same {
					set()
				}
				resp, err := client.Get(bank.APIBase() + "/accounts")
				require.Equal(t, same, err == nil, name)
				if err == nil {
					require.Equal(t, 200, resp.StatusCode, name)
					require.NoError(t, resp.Body.Close())
				}
			})).ServeHTTP(nil, r)
		})
	}
}

// Observe knows the values of the request's context, though the call to the API has a
// context of its own.
func TestClientKeepsTheContextsValues(t *testing.T) {
	type visitor struct{}
	var seen []any
	bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
	kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) {
		o.Observe = func(ctx context.Context, _ ganbauth.Event) { seen = append(seen, ctx.Value(visitor{})) }
	})
	connect(t, bank, store, "u")
	bank.ExpireAccessTokens()
	r := mustRequest("GET", "/").WithContext(context.WithValue(t.Context(), visitor{}, "v-1"))
	r.Header.Set("X-User", "u")
	kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		resp, err := kit.Client(r.Context()).Get(bank.APIBase() + "/accounts")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
	})).ServeHTTP(nil, r)
	require.Equal(t, []any{"v-1"}, seen)

	client, bank, g := connectedClient(t, ganbtest.Options{})
	ctx := context.WithValue(t.Context(), visitor{}, "v-2")
	_, err := client.Do(mustRequest("GET", bank.APIBase()+"/accounts").WithContext(ctx))
	require.NoError(t, err)
	require.Equal(t, "v-2", g.last().Context().Value(visitor{}), "what the request's own context has comes first")
}

func TestClientEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		store := ganbauth.NewMemoryStore()
		kit := backgroundKit(t, bank, store, nil)
		connect(t, bank, store, "u")
		ctx, cancel := context.WithCancel(t.Context())
		var client *http.Client
		r := mustRequest("GET", "/").WithContext(ctx)
		r.Header.Set("X-User", "u")
		kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { client = kit.Client(r.Context()) })).ServeHTTP(nil, r)
		bank.Fail(ganbtest.API, ganbtest.Slow(time.Hour), 2)
		start := time.Now()
		time.AfterFunc(time.Second, cancel)
		_, err := client.Get(bank.APIBase() + "/accounts")
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, time.Second, time.Since(start))

		_, err = kit.ClientFor("u").Get(bank.APIBase() + "/accounts")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 61*time.Second, time.Since(start))
	})
	for _, target := range []string{"https://bank.test/hangs", "https://other.test/hangs"} {
		t.Run("a context with a deadline, to "+target, func(t *testing.T) {
			s := setup{config: func(c *ganbauth.Config) {
				next := c.HTTPClient.Transport
				c.HTTPClient = &http.Client{Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
					if r.URL.Path == "/hangs" {
						return hangs(r)
					}
					return next.RoundTrip(r)
				})}
			}}
			inBubble(t, s, func(t *testing.T, a *app) {
				a.next.serve = func(_ http.ResponseWriter, r *http.Request) {
					ctx, cancel := context.WithTimeout(r.Context(), time.Second)
					defer cancel()
					start := time.Now()
					_, err := a.kit.Client(ctx).Get(target)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.Equal(t, time.Second, time.Since(start))

					ctx, cancel = context.WithTimeout(r.Context(), time.Hour)
					time.AfterFunc(time.Second, cancel)
					_, err = a.kit.Client(ctx).Get(target)
					require.ErrorIs(t, err, context.Canceled)
					require.Equal(t, 2*time.Second, time.Since(start))

					ctx, cancel = context.WithTimeout(r.Context(), time.Second)
					defer cancel()
					_, err = a.kit.Client(undated{ctx}).Get(target)
					require.Error(t, err)
					require.Equal(t, 3*time.Second, time.Since(start))
				}
				b := a.browser()
				b.login()
				require.True(t, b.connected())
			})
		})
	}
}

// A token from elsewhere is stored as the kit's own are: sealed, under the kit's name,
// and judged first.
func TestSetToken(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	inBubble(t, setup{options: ganbauth.Options{
		Name: "personal", Store: store, EncryptionKeys: [][]byte{bytes.Repeat([]byte{1}, 32)},
	}}, func(t *testing.T, a *app) {
		ctx := t.Context()
		imported := a.bank.Token("private:account", "offline_access")
		*imported = ganbauth.Token{AccessToken: imported.AccessToken, RefreshToken: imported.RefreshToken, Scope: " private:account  offline_access"}
		require.NoError(t, a.kit.SetToken(ctx, "alice", imported))
		sealed, err := store.Load(ctx, "personal/alice")
		require.NoError(t, err)
		require.NotContains(t, sealed.AccessToken, imported.AccessToken)
		require.Equal(t, "private:account offline_access", sealed.Scope)
		require.Empty(t, imported.TokenType, "the caller's token is the caller's")
		token, err := a.kit.Token(ctx, "alice")
		require.NoError(t, err)
		require.True(t, token.Valid())
		require.Equal(t, "private:account offline_access", token.Scope)
		require.Equal(t, 1, a.bank.Refreshes(), "as its expiry is not known")

		live := a.bank.Token("private:account", "offline_access")
		require.NoError(t, a.kit.SetToken(ctx, "alice", live))
		token, err = a.kit.Token(ctx, "alice")
		require.NoError(t, err)
		require.Equal(t, live.AccessToken, token.AccessToken)
		require.Equal(t, 1, a.bank.Refreshes())

		for _, c := range []struct {
			token *ganbauth.Token
			says  string
		}{
			{nil, "access_token is missing"},
			{&ganbauth.Token{RefreshToken: "r"}, "access_token is missing"},
			{&ganbauth.Token{AccessToken: "a\n", RefreshToken: "r"}, "access_token"},
			{&ganbauth.Token{AccessToken: "sealed.a", RefreshToken: "r"}, "access_token begins"}, // it could not be loaded
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r r"}, "refresh_token"},
			{&ganbauth.Token{AccessToken: strings.Repeat("a", 4097), RefreshToken: "r"}, "access_token"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", Scope: "\x00"}, "scope"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", Subject: strings.Repeat("s", 256)}, "subject"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", Subject: "s\n"}, "subject"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", ExpiresAt: time.Unix(time.Now().UnixMilli(), 0)}, "ExpiresAt is more than a year ahead"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", IDToken: "a.b.c"}, "id_token"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", IDToken: "abc"}, "id_token: not a compact JWS"},
			{&ganbauth.Token{AccessToken: "a", RefreshToken: "r", IDToken: strings.Repeat("a", 16384) + ".e30.a"}, "id_token is longer"},
			{&ganbauth.Token{AccessToken: "a"}, "RefreshToken or an ExpiresAt"}, // C9
		} {
			err := a.kit.SetToken(ctx, "alice", c.token)
			require.ErrorIs(t, err, ganbauth.ErrTokenFormat)
			require.ErrorContains(t, err, c.says)
		}
		require.Equal(t, 500, ganbauth.StatusCode(a.kit.SetToken(ctx, "", live)))
		require.Equal(t, 500, ganbauth.StatusCode(a.kit.SetToken(ctx, strings.Repeat("k", 1025), live)))
		token, err = a.kit.Token(ctx, "alice")
		require.NoError(t, err)
		require.Equal(t, live.AccessToken, token.AccessToken, "what is refused changes nothing")

		unscoped := a.bank.Token("private:account", "offline_access")
		unscoped.Scope = ""
		require.NoError(t, a.kit.SetToken(ctx, "alice", unscoped))
		token, err = a.kit.Token(ctx, "alice")
		require.NoError(t, err)
		require.Empty(t, token.Scope)
		unscoped.ExpiresAt = time.Now()
		require.NoError(t, a.kit.SetToken(ctx, "alice", unscoped))
		token, err = a.kit.Token(ctx, "alice")
		require.NoError(t, err)
		require.Equal(t, "private:account offline_access", token.Scope, "a refresh tells the scopes")
	})
}

// A token that was stored before there were keys counts as none, until SetToken encrypts it.
func TestEncryptionBeginsLater(t *testing.T) {
	bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	store, ctx := ganbauth.NewMemoryStore(), t.Context()
	require.NoError(t, backgroundKit(t, bank, store, nil).SetToken(ctx, "alice", bank.Token()))
	kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.EncryptionKeys = [][]byte{bytes.Repeat([]byte{1}, 32)} })
	_, err := kit.Token(ctx, "alice")
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired)

	stored, err := store.Load(ctx, "bank/alice")
	require.NoError(t, err)
	require.NoError(t, kit.SetToken(ctx, "alice", stored))
	token, err := kit.Token(ctx, "alice")
	require.NoError(t, err)
	require.Equal(t, stored.AccessToken, token.AccessToken)
	sealed, err := store.Load(ctx, "bank/alice")
	require.NoError(t, err)
	require.NotEqual(t, stored.AccessToken, sealed.AccessToken)
}

// The stores compare tokens, so one from elsewhere is brought into the form of a login's.
func TestSetTokenIsStoredLikeALogins(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	inBubble(t, setup{options: ganbauth.Options{Store: store}}, func(t *testing.T, a *app) {
		now := time.Now().In(time.FixedZone("JST", 9*60*60))
		subject := strings.Repeat("s", 255)
		require.NoError(t, a.kit.SetToken(t.Context(), "u", &ganbauth.Token{AccessToken: "a", TokenType: "bearer", Subject: subject,
			IssuedAt: now.Add(time.Millisecond), ExpiresAt: now.Add(time.Hour + time.Nanosecond), Judged: "elsewhere"}))
		got, err := store.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		got.Epoch = ""
		require.Equal(t, &ganbauth.Token{AccessToken: "a", TokenType: "Bearer", Subject: subject,
			IssuedAt: now.UTC(), ExpiresAt: now.UTC().Add(time.Hour)}, got)
	})
}

// A request that moves money is sent once, also where net/http would repeat it: with an
// Idempotency-Key, on a kept connection that dies before the answer.
func TestF2SentOnce(t *testing.T) {
	own := func(t *testing.T) http.RoundTripper { return nil }
	lent := func(t *testing.T) http.RoundTripper {
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		return transport
	}
	wrapped := func(t *testing.T) http.RoundTripper { return roundTripFunc(lent(t).RoundTrip) }
	for name, transport := range map[string]func(*testing.T) http.RoundTripper{"own": own, "lent": lent, "wrapped": wrapped} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			for _, header := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
				for _, body := range []string{"", `{"amount":"1"}`} {
					t.Run(strings.Join([]string{name, method, header, body}, " "), func(t *testing.T) {
						t.Parallel()
						requireSentOnce(t, transport(t), method, header, body)
					})
				}
			}
		}
	}
}

// requireSentOnce warms a connection up and sends a request over it, to which it dies.
func requireSentOnce(t *testing.T, transport http.RoundTripper, method, header, body string) {
	o := newOP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" {
			hijack(func(net.Conn) {})(w, r)
		}
	})
	client := clientOfAPI(t, o.URL, &http.Client{Transport: transport})
	for range 5 { // until it goes over the kept connection
		resp, err := client.Get(o.URL)
		require.NoError(t, err)
		resp.Body.Close()
		first := o.seen.Load().RemoteAddr
		o.hits.Store(0)
		var reader io.Reader
		if body != "" {
			reader = strings.NewReader(body)
		}
		req, err := http.NewRequest(method, o.URL, reader)
		require.NoError(t, err)
		req.Header.Set(header, "k-1")
		_, err = client.Do(req)
		require.Equal(t, 503, ganbauth.StatusCode(err), "%v", err)
		require.Equal(t, "k-1", req.Header.Get(header), "the caller's request is not changed")
		require.EqualValues(t, 1, o.hits.Load(), "requests that the bank has seen")
		seen := o.seen.Load()
		require.Equal(t, method, seen.Method)
		require.Equal(t, "k-1", seen.Header.Get(header))
		require.Equal(t, body, *o.body.Load())
		require.EqualValues(t, len(body), seen.ContentLength)
		require.Empty(t, seen.TransferEncoding)
		if seen.RemoteAddr == first {
			return
		}
	}
	t.Fatal("never over a kept connection")
}

// An answer that breaks off is the network's fault in both versions of HTTP.
func TestH1AnswerThatBreaksOff(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(version, func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}))
			server.EnableHTTP2 = version == "HTTP/2.0"
			server.StartTLS()
			defer server.Close()
			resp, err := clientOfAPI(t, server.URL, server.Client()).Get(server.URL)
			require.NoError(t, err)
			require.Equal(t, version, resp.Proto)
			data, err := io.ReadAll(resp.Body)
			require.Equal(t, "half", string(data))
			require.Error(t, err)
			class, topic, _ := ganbauth.ErrorKind(err)
			require.Equal(t, "503 network bank_unavailable", fmt.Sprint(ganbauth.StatusCode(err), " ", class, " ", topic), "%v", err)
		})
	}
}

// clientOfAPI is a connected user's client for an API at another place than the bank in a
// box.
func clientOfAPI(t *testing.T, api string, lent *http.Client) *http.Client {
	t.Helper()
	bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	cfg := bank.Config()
	cfg.HTTPClient = lent
	c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, cfg)
	require.NoError(t, err)
	kit, err := ganbauth.New(c, nil, ganbauth.Options{
		RedirectURI: appURL + "/cb", Scopes: []string{"offline_access"}, Logger: discard, APIHosts: []string{mustParse(api).Host},
		Store: ganbauth.NewMemoryStore(), Key: keyIs("u"),
	})
	require.NoError(t, err)
	require.NoError(t, kit.SetToken(t.Context(), "u", bank.Token("offline_access")))
	return kit.ClientFor("u")
}

// What the bank has said that it has not processed is still repeated: a stream of HTTP/2
// that it refuses.
func TestF2RefusedStreamIsRepeated(t *testing.T) {
	server := httptest.NewUnstartedServer(nil) // for its certificate
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server.TLS)
	require.NoError(t, err)
	defer l.Close()
	served := make(chan int)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- -1
			return
		}
		defer conn.Close()
		served <- refuseFirstStream(conn)
	}()
	req, err := http.NewRequest("POST", "https://"+l.Addr().String(), strings.NewReader(`{"amount":"1"}`))
	require.NoError(t, err)
	req.Header.Set("Idempotency-Key", "k-1")
	resp, err := clientOfAPI(t, req.URL.String(), server.Client()).Do(req)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, 2, <-served, "streams")
}

// refuseFirstStream serves HTTP/2 frames (RFC 9113 section 4.1). It refuses the first
// stream and answers the second one, and returns how many there were.
func refuseFirstStream(conn net.Conn) (streams int) {
	const data, headers, reset, settings, endStream, endHeaders, refused = 0, 1, 3, 4, 1, 4, 7
	write := func(kind, flags byte, stream uint32, payload ...byte) {
		frame := append([]byte{0, 0, byte(len(payload)), kind, flags}, 0, 0, 0, byte(stream))
		_, _ = conn.Write(append(frame, payload...))
	}
	_, _ = io.CopyN(io.Discard, conn, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
	write(settings, 0, 0)
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(conn, head); err != nil {
			return streams
		}
		_, _ = io.CopyN(io.Discard, conn, int64(head[0])<<16|int64(head[1])<<8|int64(head[2]))
		stream := binary.BigEndian.Uint32(head[5:])
		switch kind, ended := head[3], head[4]&endStream != 0; {
		case kind == headers:
			streams++
		case kind != data || !ended: // the body, to its end
		case streams == 1:
			write(reset, 0, stream, 0, 0, 0, refused)
		default:
			write(headers, endStream|endHeaders, stream, 0x88) // :status: 200
			return streams
		}
	}
}

// bodies counts the answers whose bodies have not been closed.
type bodies struct {
	next http.RoundTripper
	all  atomic.Int32
	open atomic.Int32
}

func (b *bodies) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		b.all.Add(1)
		b.open.Add(1)
		resp.Body = &countedBody{resp.Body, sync.OnceFunc(func() { b.open.Add(-1) })}
	}
	return resp, err
}

type countedBody struct {
	io.ReadCloser
	closed func()
}

func (b *countedBody) Close() error {
	b.closed()
	return b.ReadCloser.Close()
}

// I11: every answer of the bank is closed, whatever it says, and a request's context is
// released with the body that the caller closes.
func TestI11AnswersAreClosed(t *testing.T) {
	counted := &bodies{}
	s := setup{config: func(c *ganbauth.Config) {
		counted.next = c.HTTPClient.Transport
		c.HTTPClient = &http.Client{Transport: counted}
	}}
	inBubble(t, s, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		a.next.serve = func(_ http.ResponseWriter, r *http.Request) {
			resp, err := a.kit.Client(r.Context()).Get(a.bank.APIBase() + "/accounts")
			if err == nil {
				resp.Body.Close()
			}
		}
		faults := []ganbtest.Fault{
			{}, ganbtest.ServerError, ganbtest.InvalidClient, ganbtest.Maintenance, ganbtest.NotJSON, ganbtest.Redirect("https://evil.example/"),
			{Status: 200, Header: jsonType, Body: `{"access_token":"a"`},
			{Status: 200, Header: jsonType, Body: strings.Repeat(" ", 2<<20)},
			{Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`},
		}
		for _, fault := range faults {
			for _, endpoint := range []ganbtest.Endpoint{ganbtest.TokenEndpoint, ganbtest.API} {
				a.bank.Fail(endpoint, fault, 1)
				a.bank.ExpireAccessTokens()
				b.do("GET", "/p", program)
				time.Sleep(5 * time.Minute)
				b.do("GET", "/p", program)
				time.Sleep(61 * time.Minute)
				if a.bank.Heal(); !b.connected() {
					b.login()
				}
			}
		}
		require.Greater(t, counted.all.Load(), int32(4*len(faults)))
		require.Zero(t, counted.open.Load())
		time.Sleep(2 * time.Minute)
		require.Zero(t, ganbauth.KeysHeld(a.kit))
	})
}

// Only a request with a key of its own is changed beyond its token, so that it is sent once.
func TestClientChangesNoMore(t *testing.T) {
	client, bank, g := connectedClient(t, ganbtest.Options{})
	send := func(body io.Reader, pairs ...string) *http.Request {
		req, err := http.NewRequest("POST", bank.APIBase()+"/accounts", body)
		require.NoError(t, err)
		req.Header = header(pairs...)
		resp, err := client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		return g.last()
	}
	lower := strings.ToLower("Idempotency-Key")
	sent := send(strings.NewReader("x"))
	require.NotNil(t, sent.GetBody)
	require.NotContains(t, sent.Header, lower)
	sent = send(http.NoBody, "Idempotency-Key", "k")
	require.NotContains(t, sent.Header, "Idempotency-Key")
	require.Equal(t, []string{"k"}, sent.Header[lower])
}

// A body is sent whole each time.
func TestClientSendsTheBodyAgain(t *testing.T) {
	client, bank, g := connectedClient(t, ganbtest.Options{})
	var bodies []string
	g.hosts["bank.test"] = func(r *http.Request) (*http.Response, error) {
		if r.Method != "PUT" {
			return g.bank.RoundTrip(r)
		}
		data, err := io.ReadAll(r.Body)
		bodies = append(bodies, string(data))
		if len(bodies) == 1 {
			return response(r, 401, `{"errorCode":"WG_ERR_105"}`, "Content-Type", "application/json"), err
		}
		return response(r, 200, "{}"), err
	}
	req, err := http.NewRequest("PUT", bank.APIBase()+"/accounts", strings.NewReader("whole"))
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, []string{"whole", "whole"}, bodies)
}

// What is not the bank's goes where it was sent, without the token, https or not.
func TestClientForOtherHosts(t *testing.T) {
	client, _, g := connectedClient(t, ganbtest.Options{})
	g.hosts["other.test"] = func(r *http.Request) (*http.Response, error) { return response(r, 200, "well"), nil }
	for _, target := range []string{"http://other.test/", "https://other.test/"} {
		resp, err := client.Get(target)
		require.NoError(t, err)
		require.Equal(t, "well", body(resp))
		require.Empty(t, g.last().Header.Get("X-Access-Token"))
	}
}

// A client that no request's context has made asks no store, and says what is missing.
func TestClientOfNobody(t *testing.T) {
	calls := 0
	bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	kit := backgroundKit(t, bank, callStore{ganbauth.NewMemoryStore(), func(string, string) { calls++ }}, nil)
	_, err := kit.Client(t.Context()).Get(bank.APIBase() + "/accounts")
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	require.ErrorContains(t, err, "RequireToken")
	require.Zero(t, calls)
}

// countedContext counts who waits for its end.
type countedContext struct {
	foreignContext
	waiting *atomic.Int32
}

func (c countedContext) AfterFunc(f func()) (stop func() bool) {
	c.waiting.Add(1)
	end := context.AfterFunc(c.Context, f)
	return func() bool { c.waiting.Add(-1); return end() }
}

// A client that is used again and again leaves nothing with the context that it was made for.
func TestClientLeavesNothingWithItsContext(t *testing.T) {
	a := newApp(t, setup{})
	var waiting atomic.Int32
	a.mux.Handle("/many", a.kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		client := a.kit.Client(countedContext{foreignContext{ctx, make(chan struct{})}, &waiting})
		for range 10 {
			resp, err := client.Get(a.bank.APIBase() + "/accounts")
			require.NoError(t, err)
			require.NotZero(t, waiting.Load())
			resp.Body.Close()
			require.Zero(t, waiting.Load())
		}
	})))
	b := a.browser()
	b.login()
	require.Equal(t, 200, b.get("/many").StatusCode)
}

// undated is a context that does not tell its deadline.
type undated struct{ context.Context }

func (undated) Deadline() (time.Time, bool) { return time.Time{}, false }
