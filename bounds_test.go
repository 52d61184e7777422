package ganbauth_test

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// slowCalls is a store each of whose calls takes a while.
type slowCalls struct {
	ganbauth.TokenStore
	mu    sync.Mutex
	takes map[string]time.Duration
}

// take sets how long each method takes from now on.
func (s *slowCalls) take(takes map[string]time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takes = takes
}

func (s *slowCalls) time(method string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takes[method]
}

func (s *slowCalls) wait(ctx context.Context, method string) error {
	select {
	case <-time.After(s.time(method)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slowCalls) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if err := s.wait(ctx, "Load"); err != nil {
		return nil, err
	}
	return s.TokenStore.Load(ctx, key)
}

func (s *slowCalls) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	if err := s.wait(ctx, "Save"); err != nil {
		return err
	}
	return s.TokenStore.Save(ctx, key, token)
}

func (s *slowCalls) Delete(ctx context.Context, key string) error {
	if err := s.wait(ctx, "Delete"); err != nil {
		return err
	}
	return s.TokenStore.Delete(ctx, key)
}

// Nobody waits longer than ten seconds, whatever hangs: also where several things that are
// bounded one by one follow each other.
func TestD3NobodyWaitsLonger(t *testing.T) {
	const almost = 4900 * time.Millisecond // a call of the store may take 5 s
	slow := func(methods ...string) map[string]time.Duration {
		takes := map[string]time.Duration{}
		for _, m := range methods {
			takes[m] = almost
		}
		return takes
	}
	for name, takes := range map[string]map[string]time.Duration{
		"nothing":          {},
		"Load is slow":     slow("Load"),
		"Save is slow":     slow("Save"),
		"Delete is slow":   slow("Delete"),
		"the store slow":   slow("Load", "Save", "Delete"),
		"Load hangs":       {"Load": time.Hour},
		"the store hangs":  {"Load": time.Hour, "Save": time.Hour, "Delete": time.Hour},
		"the writes hang":  {"Save": time.Hour, "Delete": time.Hour},
		"half a second":    {"Load": time.Second / 2, "Save": time.Second / 2, "Delete": time.Second / 2},
		"two seconds each": {"Load": 2 * time.Second, "Save": 2 * time.Second, "Delete": 2 * time.Second},
	} {
		for _, keyed := range []bool{false, true} {
			for _, bankTakes := range []time.Duration{0, 9 * time.Second, time.Hour} {
				t.Run(name+", the bank takes "+bankTakes.String(), func(t *testing.T) {
					store := &slowCalls{TokenStore: ganbauth.NewMemoryStore()}
					s := setup{options: ganbauth.Options{Store: store}}
					if keyed {
						s.options.Key = keyIs("u")
					}
					inBubble(t, s, func(t *testing.T, a *app) {
						timed := func(what string, request func() *http.Response) {
							store.take(takes)
							if bankTakes > 0 {
								a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(bankTakes), -1)
							}
							begun := time.Now()
							resp := request()
							took := time.Since(begun)
							if took > ganbauth.MaxWait+3*ganbauth.Grace {
								t.Errorf("%s takes %v and is answered %d", what, took, resp.StatusCode)
							}
							time.Sleep(time.Minute)
							store.take(nil)
							a.bank.Heal()
							time.Sleep(2 * time.Minute)
						}
						b := a.browser()
						first := b.callbackURL("/bank/login")
						timed("a first callback", func() *http.Response { return b.get(first) })
						b.login()
						b.next(timed)
					})
				})
			}
		}
	}
}

// next does what a connected user may do, each with a token that lives, is due and has
// expired.
func (b *browser) next(timed func(string, func() *http.Response)) {
	again := b.callbackURL("/bank/login")
	timed("a second callback", func() *http.Response { return b.get(again) })
	timed("the same callback once more", func() *http.Response { return b.get(again) })
	for what, later := range map[string]time.Duration{"live": 0, "due": 59*time.Minute + 10*time.Second, "expired": time.Hour} {
		b.login()
		time.Sleep(later)
		timed("a page with a token that is "+what, func() *http.Response { return b.get("/p") })
		b.login()
		time.Sleep(later)
		timed("a program with a token that is "+what, func() *http.Response { return b.do("GET", "/p", program) })
	}
	timed("the status", func() *http.Response { return b.do("GET", "/bank/status", program) })
	timed("a logout", func() *http.Response { return b.post("/bank/logout") })
	require.Equal(b.t, 303, b.post("/bank/logout").StatusCode)
}

// D6: thousands of callbacks at once while the bank hangs: few of them are at the bank,
// all are answered within ten seconds and can be delivered again, and none is remembered.
func TestD6CallbacksWhileTheBankHangs(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{Store: ganbauth.NewMemoryStore()}}, func(t *testing.T, a *app) {
		const n = 1000
		var callbacks [n]*http.Request
		for i := range callbacks {
			b := a.browser()
			callbacks[i] = mustRequest("GET", b.callbackURL("/bank/login"))
			callbacks[i].Header = with(navigate, "Cookie", b.cookieHeader())
		}
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Hour), -1)
		begun := time.Now()
		var wg sync.WaitGroup
		for _, r := range callbacks {
			wg.Go(func() {
				resp, _ := serveDirectly(func() http.Handler { return a.handler }).RoundTrip(r)
				if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
					t.Errorf("got %d", resp.StatusCode)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, time.Since(begun), ganbauth.MaxWait+3*ganbauth.Grace)
		require.Equal(t, 64, a.bank.Count(ganbtest.TokenEndpoint), "at the bank at once")
		time.Sleep(time.Minute)
		require.Equal(t, 64, ganbauth.LoginsHeld(a.kit), "those whose code was sent")
		a.bank.Heal()
		sent := 0
		for _, r := range callbacks {
			resp, _ := serveDirectly(func() http.Handler { return a.handler }).RoundTrip(r)
			if resp.StatusCode != 303 {
				sent++
			}
		}
		require.Equal(t, 64, sent, "the others connect with the same callback")
		time.Sleep(time.Hour)
		require.Zero(t, ganbauth.LoginsHeld(a.kit))
	})
}

// An attacker begins logins and forges their codes: neither this process nor the store
// keeps more than so many of them.
func TestD6ForgedCodesAreForgotten(t *testing.T) {
	for name, n := range map[string]int{"default store": 50, "memory": ganbauth.MaxRemembered + 100} {
		t.Run(name, func(t *testing.T) {
			kept := map[string]bool{}
			s := setup{}
			if name == "memory" {
				s.options.Store = callStore{ganbauth.NewMemoryStore(), func(method, key string) {
					switch method {
					case "Save":
						kept[key] = true
					case "Delete":
						delete(kept, key)
					}
				}}
			}
			inBubble(t, s, func(t *testing.T, a *app) {
				for range n {
					b := a.browser()
					state := mustParse(b.authorizationURL("/bank/login")).Query().Get("state")
					require.Equal(t, 502, b.get("/bank/callback?code=forged&state="+url.QueryEscape(state)).StatusCode)
				}
				require.Equal(t, min(n, ganbauth.MaxRemembered), ganbauth.LoginsHeld(a.kit))
				require.Empty(t, kept, "marks of logins that have failed")
				require.Zero(t, records(t, a))
				time.Sleep(time.Hour)
				require.Zero(t, ganbauth.LoginsHeld(a.kit))
			})
		})
	}
}

// I5: a browser leaves at any moment of a callback, and comes back with the same one: it
// connects, the code is sent once, and one token is stored.
func TestI5BrowserLeavesAtEachStepOfACallback(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		steps := 0
		for n, left := 1, true; left; n++ {
			var stepping sync.Mutex
			var leave context.CancelFunc
			calls := 0
			step := func() {
				stepping.Lock()
				defer stepping.Unlock()
				if leave != nil {
					if calls++; calls == n {
						leave()
					}
				}
			}
			var mu sync.Mutex
			kept := map[string]bool{}
			s := setup{bank: rotating, bare: true}
			s.options.Store = callStore{ganbauth.NewMemoryStore(), func(method, key string) {
				mu.Lock()
				defer mu.Unlock()
				switch step(); method {
				case "Save":
					kept[key] = true
				case "Delete":
					delete(kept, key)
				}
			}}
			if keyed {
				s.options.Key = keyIs("u")
			}
			s.config = func(c *ganbauth.Config) {
				next := c.HTTPClient.Transport
				c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					step()
					defer step()
					return next.RoundTrip(r)
				})}
			}
			inBubble(t, s, func(t *testing.T, a *app) {
				b, codes := a.browser(), 1
				if keyed { // a session that is renewed in an answer that is lost is lost as well
					b.login()
					codes++
				}
				r := mustRequest("GET", b.callbackURL("/bank/login"))
				r.Header = with(navigate, "Cookie", b.cookieHeader())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stepping.Lock()
				leave = cancel
				stepping.Unlock()
				_, _ = b.client.Transport.RoundTrip(r.WithContext(ctx))
				time.Sleep(20 * time.Second)
				stepping.Lock()
				left, leave = calls >= n, nil
				stepping.Unlock()
				steps = n
				if left {
					require.Equal(t, 303, b.get(r.URL.String()).StatusCode, "step %d", n)
				}
				require.True(t, b.connected() || !left && !keyed, "step %d", n) // else its cookie is in the answer
				require.Equal(t, codes, a.bank.Count(ganbtest.TokenEndpoint), "step %d", n)
				time.Sleep(time.Hour)
				require.Len(t, kept, 1, "step %d", n)
			})
		}
		require.Greater(t, steps, 5)
	}
}
