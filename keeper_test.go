package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// rotating is a bank that ends the whole grant when a refresh token is used twice.
var rotating = ganbtest.Options{RevokeOnReuse: true, Latency: 50 * time.Millisecond}

// Requests of one session that meet the expiry together cause one token request, whether
// they arrive at once or while the refresh is under way and after it. A flight without a
// second load fails the latter.
func TestOneRefreshForAll(t *testing.T) {
	for name, spread := range map[string]time.Duration{"at once": 0, "over 200 ms": 200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			s := setup{bank: rotating, options: ganbauth.Options{Store: slowStore{ganbauth.NewMemoryStore()}}}
			inBubble(t, s, func(t *testing.T, a *app) {
				b := a.browser()
				b.login()
				time.Sleep(61 * time.Minute)
				const n = 1000
				var wg sync.WaitGroup
				statuses := make([]int, n)
				for i := range n {
					wg.Go(func() {
						time.Sleep(time.Duration(i) * spread / n)
						statuses[i] = b.do("GET", "/p", program).StatusCode
					})
				}
				wg.Wait()
				for _, status := range statuses {
					require.Equal(t, 200, status)
				}
				require.Equal(t, 1, a.bank.Refreshes())
				require.Equal(t, n, a.next.calls())
				first := a.next.last()
				for _, token := range a.next.tokens {
					require.Equal(t, first, token)
				}
				require.WithinDuration(t, time.Now().Add(time.Hour), first.ExpiresAt, 2*time.Second, "the new token")
				time.Sleep(61 * time.Minute)
				require.True(t, b.connected(), "the next refresh works, too")
				require.Equal(t, 2, a.bank.Refreshes(), "with the newest refresh token")
			})
		})
	}
}

// slowStore answers a little later, so that a request may hold an old token when the
// refresh is over.
type slowStore struct{ ganbauth.TokenStore }

func (s slowStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	t, err := s.TokenStore.Load(ctx, key)
	time.Sleep(3 * time.Millisecond)
	return t, err
}

// Many users at once, and nobody gets another's token.
func TestUsersAreNeverMixed(t *testing.T) {
	inBubble(t, setup{bank: rotating}, func(t *testing.T, a *app) {
		const users = 100
		browsers := make([]*browser, users)
		subjects := make([]string, users)
		for i := range browsers {
			browsers[i] = a.browser()
			browsers[i].login()
			subjects[i] = body(browsers[i].get("/p"))
		}
		time.Sleep(61 * time.Minute)
		var wg sync.WaitGroup
		for range 5 {
			for i, b := range browsers {
				wg.Go(func() {
					if got := body(b.get("/p")); got != subjects[i] {
						t.Errorf("got %q, want %q", got, subjects[i])
					}
				})
			}
		}
		wg.Wait()
		require.Equal(t, users, a.bank.Refreshes())
	})
}

// A slow request that began before a refresh or a logout writes its session back
// when it ends. Kept in the session, the token would be the old one again, or alive again.
func TestSlowRequests(t *testing.T) {
	for name, idle := range map[string]time.Duration{"IdleTimeout 0": 0, "IdleTimeout 10h": 10 * time.Hour} {
		for _, puts := range []bool{false, true} {
			s := setup{bank: rotating, sessions: func(s *scs.SessionManager) { s.IdleTimeout = idle }}
			slow := func(a *app) (b *browser, finish func()) {
				release := make(chan bool)
				a.mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
					a.sessions.GetString(r.Context(), "x")
					<-release
					if puts {
						a.sessions.Put(r.Context(), "x", "y")
					}
					io.WriteString(w, "done")
				})
				b = a.browser()
				b.login()
				var wg sync.WaitGroup
				wg.Go(func() { b.get("/slow") })
				synctest.Wait()
				return b, func() { close(release); wg.Wait() }
			}
			t.Run(fmt.Sprint("refresh meanwhile, ", name, ", puts ", puts), func(t *testing.T) {
				inBubble(t, s, func(t *testing.T, a *app) {
					b, finish := slow(a)
					time.Sleep(61 * time.Minute)
					require.True(t, b.connected())
					finish()
					require.True(t, b.connected())
					time.Sleep(61 * time.Minute)
					require.True(t, b.connected(), "the new refresh token is still there")
					require.Equal(t, 2, a.bank.Refreshes())
				})
			})
			t.Run(fmt.Sprint("logout meanwhile, ", name, ", puts ", puts), func(t *testing.T) {
				inBubble(t, s, func(t *testing.T, a *app) {
					b, finish := slow(a)
					cookie := b.cookie("session")
					require.Equal(t, 303, b.post("/bank/logout").StatusCode)
					finish()
					thief := a.browser()
					resp := thief.do("GET", "/p", with(program, "Cookie", "session="+cookie))
					require.Equal(t, 401, resp.StatusCode, "a session that comes back is empty-handed")
					require.False(t, b.connected())
				})
			})
		}
	}
	t.Run("a handler that panics after a refresh loses nothing", func(t *testing.T) {
		inBubble(t, setup{bank: rotating}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(61 * time.Minute)
			a.next.serve = func(http.ResponseWriter, *http.Request) { panic("handler") }
			require.Panics(t, func() { b.do("GET", "/p", program) })
			a.next.serve = nil
			require.True(t, b.connected())
			require.Equal(t, 1, a.bank.Refreshes())
		})
	})
}

// Two processes with one store and no Locker. The loser's invalid_grant is no logout.
func TestTwoProcessesWithoutLocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := ganbauth.NewMemoryStore()
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, Latency: 20 * time.Millisecond})
		one, two := backgroundKit(t, bank, store, nil), backgroundKit(t, bank, store, nil)
		connect(t, bank, store, "u")
		for range 3 {
			time.Sleep(61 * time.Minute)
			var wg sync.WaitGroup
			for _, kit := range []*ganbauth.Kit{one, two, one, two} {
				wg.Go(func() {
					token, err := kit.Token(t.Context(), "u")
					if err != nil || !token.Valid() {
						t.Errorf("got %v, want a live token", err)
					}
				})
			}
			wg.Wait()
		}
		require.Equal(t, 6, bank.Refreshes(), "each process tried once an hour")
	})
}

// The winner of a race may not have saved its token when the loser hears of it. Where a
// Locker forbids races there is nobody to wait for.
func TestSecondLook(t *testing.T) {
	for name, test := range map[string]struct {
		locker ganbauth.Locker
		saved  time.Duration // after the loser's request
		want   error
		took   time.Duration // at most
	}{
		"saved at once": {nil, 0, nil, 50 * time.Millisecond},
		"saved in time": {nil, 300 * time.Millisecond, nil, 350 * time.Millisecond},
		"never saved":   {nil, time.Hour, ganbauth.ErrLoginRequired, time.Second},
		"with a Locker": {&chanLocker{held: make(chan bool, 1)}, 300 * time.Millisecond, ganbauth.ErrLoginRequired, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := ganbauth.NewMemoryStore()
				bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
				connect(t, bank, store, "u")
				time.Sleep(61 * time.Minute)
				old, err := store.Load(t.Context(), "bank/u")
				require.NoError(t, err)
				winner, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
				require.NoError(t, err)
				won, err := winner.RefreshTokens(t.Context(), old.RefreshToken)
				require.NoError(t, err)
				start := time.Now()
				time.AfterFunc(test.saved, func() { _ = store.Save(context.Background(), "bank/u", won) })
				token, err := backgroundKit(t, bank, store, test.locker).Token(t.Context(), "u")
				require.ErrorIs(t, err, test.want)
				require.LessOrEqual(t, time.Since(start), test.took)
				if test.want == nil {
					require.Equal(t, won.AccessToken, token.AccessToken)
				}
			})
		})
	}
}

// With a Locker the second process finds the first one's token after the lock, and asks
// nobody.
func TestTwoProcessesWithLocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, locker := ganbauth.NewMemoryStore(), &chanLocker{held: make(chan bool, 1)}
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, Latency: 20 * time.Millisecond, RevokeOnReuse: true})
		one, two := backgroundKit(t, bank, store, locker), backgroundKit(t, bank, store, locker)
		connect(t, bank, store, "u")
		time.Sleep(61 * time.Minute)
		var wg sync.WaitGroup
		for _, kit := range []*ganbauth.Kit{one, two} {
			wg.Go(func() {
				_, err := kit.Token(t.Context(), "u")
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, bank.Refreshes())
		require.Zero(t, len(locker.held), "unlocked")

		// A Locker that is away is no logout.
		locker.err = errors.New("no connection")
		_, err := two.Token(t.Context(), "u")
		require.NoError(t, err, "nothing is due")
		time.Sleep(59*time.Minute + 30*time.Second)
		_, err = two.Token(t.Context(), "u")
		require.NoError(t, err, "inside the leeway the old token serves on")
		time.Sleep(time.Minute)
		_, err = two.Token(t.Context(), "u")
		require.Equal(t, 503, ganbauth.StatusCode(err))
		require.ErrorIs(t, err, locker.err)
		locker.err = nil
		time.Sleep(3 * time.Second)
		_, err = two.Token(t.Context(), "u")
		require.NoError(t, err)
	})
}

// chanLocker is one lock for all keys.
type chanLocker struct {
	held chan bool
	err  error
}

func (l *chanLocker) Lock(ctx context.Context, _ string) (func(), error) {
	if l.err != nil {
		return nil, l.err
	}
	select {
	case l.held <- true:
		return func() { <-l.held }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// backgroundKit is a kit without sessions: a process of its own, as far as the kit knows.
func backgroundKit(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore, locker ganbauth.Locker, change ...func(*ganbauth.Options)) *ganbauth.Kit {
	t.Helper()
	c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	opts := ganbauth.Options{
		RedirectURI: appURL + "/bank/callback", Scopes: []string{"openid", "offline_access"},
		Store: store, Locker: locker, Logger: discard,
		Key: func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil },
	}
	for _, f := range change {
		f(&opts)
	}
	kit, err := ganbauth.New(c, nil, opts)
	require.NoError(t, err)
	return kit
}

// connect puts a token that the bank has issued into the store.
func connect(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore, key string) {
	t.Helper()
	require.NoError(t, store.Save(t.Context(), "bank/"+key, bank.Token()))
}

// What a failing token endpoint means for a refresh: only a dead grant ends the
// connection (RELOGIN), everything else keeps it (KEEP): the old token serves until its
// expiry, then it is 503.
func TestRefreshFailures(t *testing.T) {
	keep := map[string]ganbtest.Fault{
		"connection cut":                ganbtest.ConnectionCut,
		"server_error":                  ganbtest.OAuthError("server_error"),
		"invalid_client":                ganbtest.InvalidClient,
		"unauthorized_client":           ganbtest.OAuthError("unauthorized_client"),
		"unsupported_grant_type":        ganbtest.OAuthError("unsupported_grant_type"),
		"invalid_scope":                 ganbtest.OAuthError("invalid_scope"),
		"invalid_request":               ganbtest.OAuthError("invalid_request"),
		"WG_ERR_110":                    {Status: 422, Header: jsonType, Body: `{"errorCode":"WG_ERR_110"}`},
		"maintenance":                   ganbtest.Maintenance,
		"rate limited":                  ganbtest.RateLimited,
		"WAF":                           {Status: 403, Body: "<script>alert(1)</script>"},
		"500":                           ganbtest.ServerError,
		"truncated":                     {Status: 200, Header: jsonType, Body: `{"access_token":"a"`},
		"null":                          {Status: 200, Header: jsonType, Body: `null`},
		"not JSON":                      ganbtest.NotJSON,
		"redirect":                      ganbtest.Redirect("https://evil.example/token"),
		"a 500 that says invalid_grant": {Status: 500, Header: jsonType, Body: `{"error":"invalid_grant"}`},
		"silence":                       ganbtest.Slow(time.Hour),
	}
	for name, fault := range keep {
		t.Run(name+" keeps the connection", func(t *testing.T) {
			inBubble(t, setup{}, func(t *testing.T, a *app) {
				b := a.browser()
				b.login()
				a.bank.Fail(ganbtest.TokenEndpoint, fault, -1)
				time.Sleep(59*time.Minute + 10*time.Second)
				require.True(t, b.connected(), "inside the leeway the old token serves")
				require.Equal(t, 1, a.bank.Refreshes())
				time.Sleep(time.Minute)
				served := a.next.calls()

				resp := b.do("GET", "/p", program)
				require.Equal(t, 503, resp.StatusCode, "past the expiry, a program")
				require.Contains(t, resp.Header.Get("Content-Type"), "application/problem+json")
				require.NotEmpty(t, resp.Header.Get("Retry-After"))
				resp = b.get("/p")
				require.Equal(t, 503, resp.StatusCode, "a browser, no redirect to login")
				require.Contains(t, resp.Header.Get("Content-Type"), "text/html")
				require.NotContains(t, body(resp), "alert")
				require.Equal(t, served, a.next.calls())

				a.bank.Heal()
				time.Sleep(2 * time.Minute)
				require.True(t, b.connected(), "the connection was kept")
				require.NotContains(t, a.eventTypes(), ganbauth.EventTokenLost)
				require.Contains(t, a.eventTypes(), ganbauth.EventRefreshFailed)
			})
		})
	}
	lose := map[string]ganbtest.Fault{
		"invalid_grant":     ganbtest.InvalidGrant,
		"200 invalid_grant": {Status: 200, Header: jsonType, Body: `{"error":"invalid_grant"}`},
	}
	for name, fault := range lose {
		t.Run(name+" ends it", func(t *testing.T) {
			inBubble(t, setup{}, func(t *testing.T, a *app) {
				b := a.browser()
				b.login()
				a.bank.Fail(ganbtest.TokenEndpoint, fault, 1)
				time.Sleep(59*time.Minute + 10*time.Second)
				resp := b.do("GET", "/p", program)
				require.Equal(t, 401, resp.StatusCode, "this very request is blocked")
				require.NotEmpty(t, resp.Header.Get("WWW-Authenticate"))
				require.Zero(t, a.next.calls())
				require.Equal(t, 303, b.get("/p").StatusCode, "a browser goes to the bank")
				require.False(t, b.connected())
				require.Equal(t, 1, a.bank.Refreshes(), "nothing more is sent")
				require.Zero(t, tokens(t, a), "the token is gone, not hidden")
				require.Contains(t, a.eventTypes(), ganbauth.EventTokenLost)
			})
		})
	}
	t.Run("the gateway ends it when it refuses the same token again", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Status: 401, Header: jsonType, Body: `{"errorCode":"WG_ERR_105"}`}, 2)
			time.Sleep(61 * time.Minute)
			require.Equal(t, 503, b.do("GET", "/p", program).StatusCode)
			require.Equal(t, 1, tokens(t, a))
			time.Sleep(time.Minute)
			require.Equal(t, 401, b.do("GET", "/p", program).StatusCode)
			require.Zero(t, tokens(t, a))
			require.Equal(t, 2, a.bank.Refreshes())
			require.Contains(t, a.eventTypes(), ganbauth.EventTokenLost)
			require.Zero(t, ganbauth.KeysHeld(a.kit))
		})
	})
	t.Run("the answer was lost after the bank had processed the refresh", func(t *testing.T) {
		inBubble(t, setup{bank: rotating}, func(t *testing.T, a *app) {
			b, other := a.browser(), a.browser()
			b.login()
			other.login()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.AnswerLost, 1)
			time.Sleep(61 * time.Minute)
			require.Equal(t, 503, b.do("GET", "/p", program).StatusCode)
			require.Equal(t, 1, a.bank.Refreshes(), "it is not sent again at once")
			time.Sleep(time.Minute)
			require.False(t, b.connected(), "the grant died with the answer")
			require.True(t, other.connected(), "nobody else notices")
		})
	})
	t.Run("the operator's fault is loud", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidClient, -1)
			time.Sleep(61 * time.Minute)
			b.connected()
			require.Contains(t, a.log.String(), "level=ERROR")
			require.Contains(t, a.log.String(), "invalid_client")
		})
	})
	t.Run("no refresh token: login again at the expiry, and no token request", func(t *testing.T) {
		inBubble(t, setup{options: ganbauth.Options{Scopes: []string{"openid"}}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(59*time.Minute + 59*time.Second)
			require.True(t, b.connected())
			time.Sleep(time.Second)
			require.False(t, b.connected())
			require.Zero(t, a.bank.Refreshes())
		})
	})
}

// What went wrong has a short name for a metric, and a level that says whether an
// operator has to mend it.
func TestTroubleIsNamed(t *testing.T) {
	for name, test := range map[string]struct {
		fault        ganbtest.Fault
		class, level string
	}{
		"network":     {ganbtest.ConnectionCut, "network", "WARN"},
		"500":         {ganbtest.ServerError, "status_5xx", "WARN"},
		"maintenance": {ganbtest.Maintenance, "WG_ERR_300", "WARN"},
		"dead grant":  {ganbtest.InvalidGrant, "invalid_grant", "WARN"},
		"the client":  {ganbtest.InvalidClient, "invalid_client", "ERROR"},
		"no answer":   {ganbtest.Slow(time.Minute), "timeout", "WARN"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, setup{}, func(t *testing.T, a *app) {
				b := a.browser()
				b.login()
				a.bank.Fail(ganbtest.TokenEndpoint, test.fault, 1)
				time.Sleep(61 * time.Minute)
				b.connected()
				time.Sleep(time.Minute) // the bank is given 30 s, the request 10
				require.Equal(t, test.class, a.lastEvent().ErrorClass)
				require.Regexp(t, `level=`+test.level+` msg="ganbauth: \w+" duration=\S+ class=`+test.class+` `, a.log.String())
			})
		})
	}
}

var jsonType = http.Header{"Content-Type": {"application/json"}}

// A bank that is down is asked less and less, and at most once a minute.
func TestCoolDown(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, -1)
		time.Sleep(59*time.Minute + time.Second)
		for range 1000 {
			require.True(t, b.connected())
		}
		require.Equal(t, 1, a.bank.Refreshes(), "1,000 requests inside the leeway")
		for range 600 { // ten minutes at one request a second
			b.connected()
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, a.bank.Refreshes(), 16)
		require.GreaterOrEqual(t, a.bank.Refreshes(), 8, "and it is not given up")
		resp := b.do("GET", "/p", program)
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		require.NoError(t, err)
		require.LessOrEqual(t, seconds, 76)

		a.bank.Heal()
		time.Sleep(76 * time.Second)
		require.True(t, b.connected())
		time.Sleep(61 * time.Minute)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		require.False(t, b.connected())
		time.Sleep(1300 * time.Millisecond)
		require.True(t, b.connected(), "one failure costs a moment")
	})
	t.Run("a success starts it afresh", func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{Lifetime: time.Minute}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 3)
			time.Sleep(46 * time.Second)
			for a.bank.Refreshes() < 4 {
				require.True(t, b.connected())
				time.Sleep(100 * time.Millisecond)
			}
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
			time.Sleep(45 * time.Second)
			require.True(t, b.connected())
			require.Equal(t, 5, a.bank.Refreshes())
			time.Sleep(1300 * time.Millisecond)
			require.True(t, b.connected())
			require.Equal(t, 6, a.bank.Refreshes())
		})
	})
	t.Run("Retry-After is obeyed and passed on", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
			time.Sleep(61 * time.Minute)
			require.Equal(t, "120", b.do("GET", "/p", program).Header.Get("Retry-After"))
			time.Sleep(119 * time.Second)
			b.connected()
			require.Equal(t, 1, a.bank.Refreshes())
			time.Sleep(2 * time.Second)
			b.connected()
			require.Equal(t, 2, a.bank.Refreshes())
		})
	})
}

func TestLeeway(t *testing.T) {
	t.Run("exactly from the leeway on", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(59*time.Minute - time.Second)
			require.True(t, b.connected())
			require.Zero(t, a.bank.Refreshes())
			time.Sleep(time.Second)
			require.True(t, b.connected())
			require.Equal(t, 1, a.bank.Refreshes())
		})
	})
	t.Run("a short token is not refreshed on every request", func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{Lifetime: 8 * time.Second}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			for range 80 { // 40 seconds
				require.True(t, b.connected())
				time.Sleep(500 * time.Millisecond)
			}
			require.LessOrEqual(t, a.bank.Refreshes(), 7)
		})
	})
	t.Run("without expires_in a token lives for an hour", func(t *testing.T) {
		inBubble(t, setup{bank: ganbtest.Options{OmitExpiresIn: true}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			require.True(t, b.connected())
			require.Equal(t, time.Hour, a.next.last().ExpiresAt.Sub(a.next.last().IssuedAt))
			time.Sleep(59*time.Minute + time.Second)
			require.True(t, b.connected())
			require.Equal(t, 1, a.bank.Refreshes())
			require.Equal(t, time.Hour, a.next.last().ExpiresAt.Sub(a.next.last().IssuedAt))
		})
	})
	t.Run("a refresh moves neither the session's end nor its cookie", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			cookie := b.cookie("session")
			for range 23 {
				time.Sleep(time.Hour)
				require.True(t, b.connected())
			}
			require.Equal(t, cookie, b.cookie("session"))
			time.Sleep(61 * time.Minute)
			require.False(t, b.connected(), "24 hours are over")
		})
	})
	t.Run("the record follows a session that the application prolongs", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			a.mux.HandleFunc("/prolong", func(_ http.ResponseWriter, r *http.Request) {
				require.NoError(t, a.sessions.RenewToken(r.Context()))
			})
			b := a.browser()
			b.login()
			time.Sleep(12 * time.Hour)
			b.get("/prolong")
			require.True(t, b.connected())
			time.Sleep(23 * time.Hour)
			require.True(t, b.connected(), "35 hours after the login")
			time.Sleep(2 * time.Hour)
			require.False(t, b.connected())
		})
	})
	t.Run("a token from the future and one from long ago", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
			store := ganbauth.NewMemoryStore()
			kit := backgroundKit(t, bank, store, nil)
			for _, shift := range []time.Duration{time.Hour, -time.Hour} {
				connect(t, bank, store, "u")
				token, err := store.Load(t.Context(), "bank/u")
				require.NoError(t, err)
				token.IssuedAt, token.ExpiresAt = token.IssuedAt.Add(shift), token.ExpiresAt.Add(shift)
				require.NoError(t, store.Save(t.Context(), "bank/u", token))
				before := bank.Refreshes()
				_, err = kit.Token(t.Context(), "u")
				require.NoError(t, err)
				require.LessOrEqual(t, bank.Refreshes()-before, 1)
			}
		})
	})
}

// The refresh belongs to nobody's request.
func TestRefreshOutlivesItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, Latency: 5 * time.Second, RevokeOnReuse: true})
		store := ganbauth.NewMemoryStore()
		kit := backgroundKit(t, bank, store, nil)
		connect(t, bank, store, "u")
		time.Sleep(61 * time.Minute)

		leader, cancel := context.WithCancel(t.Context())
		results := make(chan error, 12)
		go func() { _, err := kit.Token(leader, "u"); results <- err }()
		synctest.Wait()
		for range 10 {
			go func() { _, err := kit.Token(t.Context(), "u"); results <- err }()
		}
		hurried, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, err := kit.Token(hurried, "u")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 503, ganbauth.StatusCode(err))
		cancel()
		require.ErrorIs(t, <-results, context.Canceled, "the leader leaves at once")
		for range 10 {
			require.NoError(t, <-results)
		}
		require.Equal(t, 1, bank.Refreshes())
	})
}

// A bank that is slow keeps nobody waiting for long whose token still serves.
func TestPatience(t *testing.T) {
	inBubble(t, setup{bank: ganbtest.Options{RevokeOnReuse: true}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		time.Sleep(59*time.Minute + 10*time.Second)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(20*time.Second), 1)
		start := time.Now()
		require.True(t, b.connected())
		require.Equal(t, 3*time.Second, time.Since(start))
		old := a.next.last().AccessToken
		time.Sleep(20 * time.Second)
		require.True(t, b.connected())
		require.NotEqual(t, old, a.next.last().AccessToken, "the refresh went on, and its token is used")
		require.Equal(t, 1, a.bank.Refreshes())
	})
}

// A process that is about to end waits for what the bank has issued.
func TestShutdown(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		require.NoError(t, a.kit.Shutdown(t.Context()), "nothing is on its way")
		b := a.browser()
		b.login()
		time.Sleep(59*time.Minute + 10*time.Second)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(20*time.Second), 1)
		require.True(t, b.connected(), "with the old token, after 3 s")

		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.ErrorIs(t, a.kit.Shutdown(soon), context.DeadlineExceeded)
		start := time.Now()
		require.NoError(t, a.kit.Shutdown(t.Context()))
		require.Equal(t, 12*time.Second, time.Since(start))
		require.Contains(t, a.eventTypes(), ganbauth.EventTokenRefreshed)

		gone, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		other := a.browser()
		req, err := http.NewRequestWithContext(gone, http.MethodGet, other.callbackURL("/bank/login"), nil)
		require.NoError(t, err)
		req.Header = navigate.Clone()
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(20*time.Second), 1)
		_, _ = other.client.Do(req)
		start = time.Now()
		require.NoError(t, a.kit.Shutdown(t.Context()))
		require.Equal(t, 19*time.Second, time.Since(start), "a login counts too")
	})
}

// A token that ended while its request waited does not serve any more.
func TestPatienceOutlivesTheToken(t *testing.T) {
	inBubble(t, setup{bank: ganbtest.Options{Lifetime: 8 * time.Second}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(10*time.Second), 1)
		time.Sleep(7 * time.Second)
		served := a.next.calls()
		require.Equal(t, 503, b.do("GET", "/p", program).StatusCode)
		require.Equal(t, served, a.next.calls())
		time.Sleep(10 * time.Second)
		require.True(t, b.connected())
	})
}

// A bank that hangs keeps only those waiting who need it.
func TestHangingBankConcernsNobodyElse(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		waiting := a.browser()
		waiting.login()
		time.Sleep(61 * time.Minute)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{}, 200)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Hour), -1)
		others := make([]*browser, 200)
		for i := range others {
			others[i] = a.browser()
			others[i].login()
		}
		var wg sync.WaitGroup
		wg.Go(func() { waiting.connected() })
		synctest.Wait()
		start := time.Now()
		for _, b := range others {
			require.True(t, b.connected())
		}
		require.Zero(t, time.Since(start))
		wg.Wait()
		require.LessOrEqual(t, time.Since(start), 11*time.Second)
		time.Sleep(time.Minute) // the bank is given 30 s
	})
}

// A refresh in flight does not bring back what a logout removes, nor overwrite a newer
// login.
func TestRefreshMeetsLogoutAndLogin(t *testing.T) {
	t.Run("logout", func(t *testing.T) {
		inBubble(t, setup{bank: rotating}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			cookie := b.cookie("session")
			time.Sleep(61 * time.Minute)
			var wg sync.WaitGroup
			wg.Go(func() { b.do("GET", "/p", program) })
			synctest.Wait()
			require.Equal(t, 303, b.post("/bank/logout").StatusCode)
			wg.Wait()
			require.Zero(t, tokens(t, a), "the new token is discarded")
			require.False(t, b.connected())
			require.Equal(t, 401, a.browser().do("GET", "/p", with(program, "Cookie", "session="+cookie)).StatusCode)
		})
	})
	t.Run("login", func(t *testing.T) {
		inBubble(t, setup{bank: rotating, options: ganbauth.Options{
			Key: func(*http.Request) (string, error) { return "user-7", nil },
		}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(61 * time.Minute)
			callback := b.callbackURL("/bank/login")
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Second), 1)
			var wg sync.WaitGroup
			wg.Go(func() { b.do("GET", "/p", program) })
			synctest.Wait()
			require.Equal(t, 303, b.get(callback).StatusCode)
			wg.Wait()
			require.True(t, b.connected())
			newest := a.next.last().Subject
			time.Sleep(61 * time.Minute)
			require.True(t, b.connected())
			require.Equal(t, newest, a.next.last().Subject)
			require.Equal(t, 2, a.bank.Refreshes())
		})
	})
}

// The store fails around a refresh.
func TestStoreFails(t *testing.T) {
	prepare := func(t *testing.T, test func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, log *lockedBuffer)) {
		synctest.Test(t, func(t *testing.T) {
			bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
			store, log := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}, &lockedBuffer{}
			kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.Logger = textLogger(log) })
			connect(t, bank, store, "u")
			time.Sleep(61 * time.Minute)
			test(t, bank, store, kit, log)
		})
	}
	down := errors.New("connection refused")
	// fails has writes fail from the moment on that the bank answers a refresh.
	fails := func(bank *ganbtest.Server, store *brokenStore) {
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) { store.set(nil, down, nil) }}, 1)
	}
	t.Run("A1 while writes fail nothing is spent", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, _ *lockedBuffer) {
			store.set(nil, down, nil)
			_, err := kit.Token(t.Context(), "u")
			require.ErrorIs(t, err, down)
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Zero(t, bank.Refreshes())
			store.set(nil, nil, nil)
			time.Sleep(2 * time.Second)
			_, err = kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Equal(t, 1, bank.Refreshes())
		})
	})
	t.Run("A2 a new token that cannot be saved is served by the process until it is", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, log *lockedBuffer) {
			fails(bank, store)
			start := time.Now()
			first, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Zero(t, time.Since(start), "nobody waits for the store")
			time.Sleep(50 * time.Minute)
			again, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Equal(t, first.AccessToken, again.AccessToken)
			require.Contains(t, log.String(), `level=ERROR msg="ganbauth: token_unsaved"`)
			require.Contains(t, log.String(), "connection refused")
			require.NotContains(t, log.String(), "token_refreshed")
			soon, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.ErrorIs(t, kit.Shutdown(soon), context.DeadlineExceeded)

			time.AfterFunc(time.Minute, func() { store.set(nil, nil, nil) })
			require.NoError(t, kit.Shutdown(t.Context()), "it waits for the token")
			saved, err := store.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.Equal(t, first.AccessToken, saved.AccessToken)
			require.Equal(t, 1, bank.Refreshes())
			require.Contains(t, log.String(), "token_refreshed")
			require.Zero(t, ganbauth.KeysHeld(kit))
		})
	})
	t.Run("A2 past its own expiry an unsaved token is 503, and not spent", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, _ *lockedBuffer) {
			fails(bank, store)
			_, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			time.Sleep(2 * time.Hour)
			_, err = kit.Token(t.Context(), "u")
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Equal(t, 1, bank.Refreshes())
			store.set(nil, nil, nil)
			time.Sleep(10 * time.Second)
			_, err = kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Equal(t, 2, bank.Refreshes())
		})
	})
	for name, change := range map[string]func(*ganbauth.Kit) error{
		"a logout": func(k *ganbauth.Kit) error { return k.Disconnect(context.Background(), "u") },
		"a login": func(k *ganbauth.Kit) error {
			newer := fullToken
			newer.IDToken = ""
			newer.ExpiresAt = time.Now().Add(time.Hour)
			return k.SetToken(context.Background(), "u", &newer)
		},
	} {
		t.Run("A2 an unsaved token gives way to "+name+" at another process", func(t *testing.T) {
			prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, _ *lockedBuffer) {
				fails(bank, store)
				unsaved, err := kit.Token(t.Context(), "u")
				require.NoError(t, err)
				require.NoError(t, change(backgroundKit(t, bank, store.TokenStore, nil)))
				time.Sleep(10 * time.Second)
				token, err := kit.Token(t.Context(), "u")
				if name == "a logout" {
					require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
				} else {
					require.NoError(t, err)
					require.NotEqual(t, unsaved.AccessToken, token.AccessToken)
				}
				require.Zero(t, ganbauth.KeysHeld(kit))
			})
		})
	}
	t.Run("a save that hangs is tried again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
			store := &hangingStore{TokenStore: ganbauth.NewMemoryStore()}
			connect(t, bank, store.TokenStore, "u")
			time.Sleep(61 * time.Minute)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) { store.hangs.Store(true) }}, 1)
			time.AfterFunc(8*time.Second, func() { store.hangs.Store(false) })
			kit := backgroundKit(t, bank, store, nil)
			served, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.NoError(t, kit.Shutdown(t.Context()))
			saved, err := store.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.Equal(t, served.AccessToken, saved.AccessToken)
		})
	})
	t.Run("a token that another has replaced meanwhile is dropped", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, _ *lockedBuffer) {
			newer := fullToken
			newer.ExpiresAt = time.Now().Add(time.Hour)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) {
				require.NoError(t, store.TokenStore.Save(t.Context(), "bank/u", &newer))
			}}, 1)
			start := time.Now()
			token, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Equal(t, newer.AccessToken, token.AccessToken)
			require.Zero(t, time.Since(start), "it is not tried again")
		})
	})
	t.Run("a load that fails is 503, not a login", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, _ *lockedBuffer) {
			store.set(down, nil, nil)
			_, err := kit.Token(t.Context(), "u")
			require.ErrorIs(t, err, down)
			require.NotErrorIs(t, err, ganbauth.ErrLoginRequired)
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Zero(t, bank.Refreshes())
			require.ErrorIs(t, kit.Disconnect(t.Context(), "u"), down)
			store.set(nil, nil, down)
			start := time.Now()
			require.ErrorIs(t, kit.Disconnect(t.Context(), "u"), down)
			require.Equal(t, 10*time.Second, time.Since(start))
			store.set(nil, nil, nil)
			require.NoError(t, kit.Disconnect(t.Context(), "u"))
		})
	})
	t.Run("a verdict that cannot be written down is heard again", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, log *lockedBuffer) {
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 2)
			time.AfterFunc(time.Millisecond, func() { store.set(nil, down, nil) })
			_, err := kit.Token(t.Context(), "u")
			require.Equal(t, 503, ganbauth.StatusCode(err))
			store.set(nil, nil, nil)
			time.Sleep(2 * time.Second)
			_, err = kit.Token(t.Context(), "u")
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
			require.Equal(t, 2, bank.Refreshes())
			require.Equal(t, 1, strings.Count(log.String(), "token_lost"))
		})
	})
	t.Run("G1 a store that panics ends nothing but its request", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, log *lockedBuffer) {
			store.panics = true
			_, err := kit.Token(t.Context(), "u")
			require.ErrorContains(t, err, "panic")
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Contains(t, log.String(), "brokenStore).Save", "the stack")
			store.panics = false
			time.Sleep(2 * time.Second)
			_, err = kit.Token(t.Context(), "u")
			require.NoError(t, err, "nothing was spent")
		})
	})
	t.Run("an Observe that panics is logged", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
			store, log := ganbauth.NewMemoryStore(), &lockedBuffer{}
			kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) {
				o.Logger = textLogger(log)
				o.Observe = func(context.Context, ganbauth.Event) { panic("hook") }
			})
			connect(t, bank, store, "u")
			time.Sleep(61 * time.Minute)
			_, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Regexp(t, `"ganbauth: Observe or the Logger panicked" panic=hook stack=".*keeper_test.go`, log.String())
		})
	})
	for name, token := range map[string]*ganbauth.Token{
		"an empty access token":          {RefreshToken: "r"},
		"no expiry and no refresh token": {AccessToken: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			prepare(t, func(t *testing.T, bank *ganbtest.Server, store *brokenStore, kit *ganbauth.Kit, _ *lockedBuffer) {
				require.NoError(t, store.Save(t.Context(), "bank/u", token))
				_, err := kit.Token(t.Context(), "u")
				require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
				require.Zero(t, bank.Refreshes())
			})
		})
	}
	t.Run("a session store that is away is 503", func(t *testing.T) {
		a := newApp(t, setup{bare: true, sessions: func(s *scs.SessionManager) { s.Store = failingEngine{down} }})
		resp := a.browser().do("GET", "/p", with(program, "Cookie", "session=x"))
		require.Equal(t, 503, resp.StatusCode)
		require.NotContains(t, body(resp), "refused")
	})
}

// hangingStore does not answer a Save while it hangs.
type hangingStore struct {
	ganbauth.TokenStore
	hangs atomic.Bool
}

func (s *hangingStore) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	if s.hangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.TokenStore.Save(ctx, key, token)
}

type failingEngine struct{ err error }

func (s failingEngine) Find(string) ([]byte, bool, error)      { return nil, false, s.err }
func (s failingEngine) Commit(string, []byte, time.Time) error { return s.err }
func (s failingEngine) Delete(string) error                    { return s.err }

// A refusal by the API may meet a flight that began before it and finds nothing due: then
// another is needed.
func TestRefusalMeetsOlderFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		memory := ganbauth.NewMemoryStore()
		kit := backgroundKit(t, bank, slowStore{memory}, nil)
		connect(t, bank, memory, "u")
		time.Sleep(61 * time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { // looks at 0 ms, and again in flight from 3 ms to 6 ms
			if _, err := kit.Token(t.Context(), "u"); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(2 * time.Millisecond)
		connect(t, bank, memory, "u") // by another process
		rotated, err := memory.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		rotated.IssuedAt = rotated.IssuedAt.Add(-2 * time.Minute) // a newer one would not be replaced
		require.NoError(t, memory.Save(t.Context(), "bank/u", rotated))
		next, err := ganbauth.Replace(kit, t.Context(), "bank/u", rotated.AccessToken)
		require.NoError(t, err)
		require.NotEqual(t, rotated.AccessToken, next.AccessToken)
		require.Equal(t, 1, bank.Refreshes())
		wg.Wait()
	})
}

// After the storm nothing is left.
func TestNothingIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a bubble fails when a goroutine is left behind
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		store := ganbauth.NewMemoryStore()
		kit := backgroundKit(t, bank, store, nil)
		for i := range 50 {
			connect(t, bank, store, fmt.Sprint(i))
		}
		time.Sleep(61 * time.Minute)
		for i := range 25 {
			_, err := kit.Token(t.Context(), fmt.Sprint(i))
			require.NoError(t, err)
		}
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 10)
		for i := range 10 { // not so many that the bank counts as away
			_, err := kit.Token(t.Context(), fmt.Sprint(25+i))
			require.Error(t, err)
		}
		synctest.Wait()
		require.Equal(t, 10, ganbauth.KeysHeld(kit), "the cool-downs")
		time.Sleep(time.Hour)
		require.Zero(t, ganbauth.KeysHeld(kit))
	})
}

// What becomes of a token that the bank's API has refused.
func TestReplace(t *testing.T) {
	run := func(name string, bank ganbtest.Options, age time.Duration, test func(t *testing.T, s *stepTest)) {
		t.Run(name, func(t *testing.T) { inSteps(t, bank, age, test) })
	}
	stored := func(s *stepTest) *ganbauth.Token {
		token, err := s.Load(s.t.Context(), "bank/u")
		require.NoError(s.t, err)
		return token
	}
	run("the store fails", ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		s.load.set(func(int) error { return errStep })
		_, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", "refused")
		require.ErrorIs(t, err, errStep)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
	})
	run("it has been replaced, and the other one serves", ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", "refused")
		require.NoError(t, err)
		require.Equal(t, stored(s), got)
		require.Zero(t, s.bank.Refreshes())
	})
	run("it has been replaced, and the other one is about to expire", ganbtest.Options{}, aboutToExpire, func(t *testing.T, s *stepTest) {
		got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", "refused")
		require.NoError(t, err)
		require.Equal(t, 1, s.bank.Refreshes())
		require.Equal(t, stored(s), got)
	})
	run("the one that helped expires within the minute", ganbtest.Options{Lifetime: 30 * time.Second}, 0, func(t *testing.T, s *stepTest) {
		refused := stored(s).AccessToken
		second, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", refused)
		require.NoError(t, err)
		time.Sleep(25 * time.Second)
		third, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", refused)
		require.NoError(t, err)
		require.NotEqual(t, second.AccessToken, third.AccessToken)
		require.Equal(t, 2, s.bank.Refreshes())
	})
	run("another process has one that is about to expire", ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		refused, other := stored(s).AccessToken, s.bank.Token()
		other.IssuedAt, other.ExpiresAt = time.Now().Add(-time.Hour), time.Now().Add(5*time.Second)
		s.before.set(func(n int) error {
			if n == 1 {
				s.put(t, other)
			}
			return nil
		})
		got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", refused)
		require.NoError(t, err)
		require.NotEqual(t, other.AccessToken, got.AccessToken)
		require.Equal(t, 1, s.bank.Refreshes())
	})
	run("a new connection is not judged by the refusals of the one before", ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		for connect, again := range map[string]func() error{
			"SetToken": func() error { return s.kit.SetToken(t.Context(), "u", s.bank.Token()) },
			"Disconnect": func() error {
				require.NoError(t, s.kit.Disconnect(t.Context(), "u"))
				s.put(t, s.bank.Token())
				return nil
			},
		} {
			_, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", stored(s).AccessToken)
			require.NoError(t, err)
			require.NoError(t, again())
			refused := stored(s).AccessToken
			got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", refused)
			require.NoError(t, err)
			require.NotEqual(t, refused, got.AccessToken, connect)
			require.NoError(t, again())
		}
	})
	for age, ends := range map[time.Duration]bool{
		0: false, 59 * time.Second: false, time.Minute: true, -59 * time.Second: false, -time.Minute: true,
	} {
		run(fmt.Sprint("there is no refresh token, and it was issued before ", age), ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
			token := stored(s)
			token.RefreshToken, token.IssuedAt = "", time.Now().Add(-age)
			s.put(t, token)
			got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", token.AccessToken)
			if !ends {
				require.NoError(t, err)
				require.Equal(t, token.AccessToken, got.AccessToken)
				return
			}
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
			require.ErrorContains(t, err, "refuses")
			require.Empty(t, stored(s).AccessToken, "a mark is there")
		})
	}
	run("there is no refresh token, and the store fails when another record is there", ganbtest.Options{}, 10*time.Minute, func(t *testing.T, s *stepTest) {
		token := stored(s)
		token.RefreshToken = ""
		s.put(t, token)
		s.before.set(func(int) error {
			s.put(t, s.bank.Token())
			s.load.set(func(int) error { return errStep })
			return nil
		})
		_, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", token.AccessToken)
		require.ErrorIs(t, err, errStep)
		s.up()
	})
}

// A token that serves does not wait for the bank's limit; one that the API has refused does.
func TestPatienceAtALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		for _, u := range []string{"u", "v"} {
			connect(t, bank, store, u)
		}
		time.Sleep(aboutToExpire)
		kit := backgroundKit(t, bank, store, nil, tokenRate(1))
		_, err := kit.Token(t.Context(), "v")
		require.NoError(t, err)
		begun := time.Now()
		token, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Zero(t, time.Since(begun))
		require.Equal(t, 1, bank.Refreshes())

		next, err := ganbauth.Replace(kit, t.Context(), "bank/u", token.AccessToken)
		require.NoError(t, err)
		require.NotEqual(t, token.AccessToken, next.AccessToken)
		require.Equal(t, time.Second, time.Since(begun))
	})
}

// A refresh reads the record once, and its successor not at all.
func TestRefreshReadsOnce(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		var loads atomic.Int32
		s.load.set(func(int) error { loads.Add(1); return nil })
		_, err := s.token()
		require.NoError(t, err)
		require.EqualValues(t, 1, loads.Load())
	})
}

// A token that the store has not taken is not spent. It serves until it expires.
func TestUnsavedIsNotSpent(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{Lifetime: time.Minute}, func(t *testing.T, o *keptOffice) {
		o.connect(1, 0)
		store := &unwritable{watchedStore: &watchedStore{indexedStore: o.store}}
		kit := o.kitOn(store)
		time.Sleep(61 * time.Second)
		token, err := kit.Token(t.Context(), "0")
		require.NoError(t, err)
		time.Sleep(50 * time.Second)
		again, err := kit.Token(t.Context(), "0")
		require.NoError(t, err)
		require.Equal(t, token.AccessToken, again.AccessToken)
		time.Sleep(20 * time.Second)
		_, err = kit.Token(t.Context(), "0")
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.ErrorContains(t, err, "not stored yet")
		require.Equal(t, 1, o.bank.Refreshes())
		require.NotContains(t, o.log.String(), "another process")
		store.heal.Store(true)
		time.Sleep(time.Minute)
		_, err = kit.Token(t.Context(), "0")
		require.NoError(t, err)
	})
}

// A token that the store has taken at last is read from there, however long its lock takes to
// be given back.
func TestStoredIsRead(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(1, 0)
		store := &unwritable{watchedStore: &watchedStore{indexedStore: o.store}}
		time.Sleep(expired)
		kit := backgroundKit(t, o.bank, store, lockerFunc(func(context.Context, string) (func(), error) {
			return func() { time.Sleep(10 * time.Second) }, nil
		}))
		served, err := kit.Token(t.Context(), "0")
		require.NoError(t, err)
		store.heal.Store(true)
		time.Sleep(6 * time.Second)
		stored, err := store.Load(t.Context(), "bank/0")
		require.NoError(t, err)
		require.Equal(t, served.AccessToken, stored.AccessToken)
		other := o.bank.Token()
		require.NoError(t, store.Save(t.Context(), "bank/0", other))
		got, err := kit.Token(t.Context(), "0")
		require.NoError(t, err)
		require.Equal(t, other.AccessToken, got.AccessToken)
		time.Sleep(time.Minute)
	})
}

// A refresh whose refusal is out of date is not believed: another process has connected the
// user since.
func TestRefusalIsOutOfDate(t *testing.T) {
	for name, left := range map[string]time.Duration{"with a token that serves": time.Hour, "with one that is about to expire": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
				other := s.bank.Token()
				s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
				other.IssuedAt, other.ExpiresAt = time.Now().Add(-time.Hour), time.Now().Add(left)
				s.after.set(func(n int) error {
					if n == 2 { // the mark is there
						s.put(t, other)
					}
					return nil
				})
				got, err := s.token()
				require.NoError(t, err)
				require.Equal(t, left == time.Hour, got.AccessToken == other.AccessToken)
				require.True(t, got.Valid())
			})
		})
	}
}

// A user whose request finds out whether the bank is back does not wait for it, and is told
// what everybody is told.
func TestProbeHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true, Latency: 3 * time.Second}), ganbauth.NewMemoryStore()
		for u := range 4 {
			connect(t, bank, store, fmt.Sprint(u))
		}
		time.Sleep(expired)
		kit := backgroundKit(t, bank, store, nil)
		hints := []string{"40", "5", "5"}
		for u, hint := range hints {
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {hint}}}, 1)
			_, err := kit.Token(t.Context(), fmt.Sprint(u))
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			if u == len(hints)-1 {
				require.Less(t, ganbauth.RetryAfter(err), 10*time.Second, "what the bank has told this user")
			}
		}
		_, err := kit.Token(t.Context(), "3")
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.Greater(t, ganbauth.RetryAfter(err), 30*time.Second)
		time.Sleep(40 * time.Second)
		begun := time.Now()
		_, err = kit.Token(t.Context(), "3")
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		var refusal *ganbauth.TokenError
		require.ErrorAs(t, err, &refusal, "what has put the bank away")
		require.Zero(t, time.Since(begun))
		time.Sleep(4 * time.Second)
		begun = time.Now()
		_, err = kit.Token(t.Context(), "3")
		require.NoError(t, err)
		require.Zero(t, time.Since(begun))
		time.Sleep(time.Minute)
		require.Zero(t, ganbauth.TurnsOut(kit))
	})
}

// A refresh ahead that meets a user's gives its turn back. One whose caller leaves keeps it
// until it is over.
func TestAheadMeetsAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true, Latency: 5 * time.Second}), ganbauth.NewMemoryStore()
		connect(t, bank, store, "u")
		time.Sleep(expired)
		kit := backgroundKit(t, bank, store, nil)
		go func() { _, _ = kit.Token(t.Context(), "u") }()
		synctest.Wait()
		n, err := kit.RefreshExpiring(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Zero(t, n, "the user's request has refreshed it")
		require.Equal(t, 1, bank.Refreshes())
		synctest.Wait()
		require.Zero(t, ganbauth.TurnsOut(kit))

		time.Sleep(expired)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = kit.RefreshExpiring(ctx, time.Hour)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, ganbauth.TurnsOut(kit))
		time.Sleep(time.Minute)
		require.Zero(t, ganbauth.TurnsOut(kit))
	})
}
