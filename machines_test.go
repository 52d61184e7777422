package ganbauth_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// skewed is the store as a machine sees it whose clock is ahead by that much: on a
// bubble's one clock, the times that it reads and writes are off instead.
type skewed struct {
	ganbauth.TokenStore
	ahead time.Duration
}

func (s skewed) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	t, err := s.TokenStore.Load(ctx, key)
	if err == nil {
		t.IssuedAt, t.ExpiresAt = t.IssuedAt.Add(-s.ahead), t.ExpiresAt.Add(-s.ahead)
	}
	return t, err
}

func (s skewed) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	c := *t
	c.IssuedAt, c.ExpiresAt = c.IssuedAt.Add(s.ahead), c.ExpiresAt.Add(s.ahead)
	return s.TokenStore.Save(ctx, key, &c)
}

// The clock of one machine is 30 s off: no loop of refreshes, no early logout, no token
// past its expiry.
func TestClockOfOneMachineIsOff(t *testing.T) {
	for _, ahead := range []time.Duration{30 * time.Second, -30 * time.Second} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
				store, locker := ganbauth.NewMemoryStore(), &keyLocker{held: map[string]bool{}}
				kits := []*ganbauth.Kit{
					backgroundKit(t, bank, store, locker), backgroundKit(t, bank, skewed{store, ahead}, locker),
				}
				connect(t, bank, store, "u")
				const hours = 12
				for i := range hours * 360 {
					client := kits[i/200%2].ClientFor("u") // half an hour each, and a little
					resp, err := client.Get(bank.APIBase() + "/accounts")
					require.NoError(t, err)
					require.NoError(t, resp.Body.Close())
					require.Equal(t, http.StatusOK, resp.StatusCode)
					time.Sleep(10 * time.Second)
				}
				t.Attr("measured", fmt.Sprintf("%d hours: %d token requests, %d of %d requests served, %d tokens refused by the bank",
					hours, bank.Refreshes(), hours*360, hours*360, bank.Count(ganbtest.API)-hours*360))
				require.Equal(t, bank.Count(ganbtest.API), hours*360, "the bank has refused no token")
				require.LessOrEqual(t, bank.Refreshes(), hours+1)
			})
		})
	}
}

// steppedStore is skewed with a clock that steps.
type steppedStore struct {
	ganbauth.TokenStore
	ahead *time.Duration
}

func (s steppedStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	return skewed{s.TokenStore, *s.ahead}.Load(ctx, key)
}

func (s steppedStore) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	return skewed{s.TokenStore, *s.ahead}.Save(ctx, key, t)
}

// The clock of the machine steps by an hour and back, also while a refresh is at the
// bank: every request is served, there is no loop of refreshes, and nobody is logged out.
func TestClockStepsByAnHour(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
				memory, ahead := ganbauth.NewMemoryStore(), time.Duration(0)
				connect(t, bank, memory, "u")
				kit := backgroundKit(t, bank, steppedStore{memory, &ahead}, nil)
				client := kit.ClientFor("u")
				for minute := range 12 * 60 {
					switch minute {
					case 90: // at the next refresh
						bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) { ahead = step }}, 1)
					case 250, 500:
						ahead = 0
					case 400:
						ahead = step
					}
					resp, err := client.Get(bank.APIBase() + "/accounts")
					require.NoError(t, err, "minute %d", minute)
					require.NoError(t, resp.Body.Close())
					require.Equal(t, http.StatusOK, resp.StatusCode, "minute %d", minute)
					time.Sleep(time.Minute)
				}
				require.LessOrEqual(t, bank.Refreshes(), 12+4)
				require.LessOrEqual(t, bank.Count(ganbtest.API), 12*60+4, "tokens that the bank has refused")
			})
		})
	}
}

// A logout on one machine while another refreshes is a logout on every machine.
func TestLogoutOnOneMachineWhileAnotherRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, Latency: time.Second})
		store, locker := ganbauth.NewMemoryStore(), &keyLocker{held: map[string]bool{}}
		one, two := backgroundKit(t, bank, store, locker), backgroundKit(t, bank, store, locker)
		connect(t, bank, store, "u")
		time.Sleep(61 * time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = one.Token(t.Context(), "u") })
		time.Sleep(500 * time.Millisecond) // the refresh is at the bank
		require.NoError(t, two.Disconnect(t.Context(), "u"))
		wg.Wait()
		require.Equal(t, 1, bank.Refreshes())
		for _, kit := range []*ganbauth.Kit{one, two} {
			_, err := kit.Token(t.Context(), "u")
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		}
		t.Attr("measured", "logged out on both")
	})
}

// The bank is down for a minute under 250 requests a second: the token at hand serves
// while it lives, then it is 503 with Retry-After, and the bank sees no more than the
// cool-down allows.
func TestBankIsDownUnderLoad(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, -1)
		time.Sleep(59*time.Minute + 30*time.Second)
		statuses := map[int]int{}
		for range 15_000 {
			resp := b.do("GET", "/p", program)
			statuses[resp.StatusCode]++
			if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
				t.Fatal("503 without Retry-After")
			}
			time.Sleep(4 * time.Millisecond)
		}
		t.Attr("measured", fmt.Sprintf("%d served, %d answered 503 with Retry-After, %d token requests",
			statuses[200], statuses[503], a.bank.Refreshes()))
		require.Equal(t, map[int]int{200: 7_500, 503: 7_500}, statuses)
		require.LessOrEqual(t, a.bank.Refreshes(), 7)
		a.bank.Heal()
		time.Sleep(76 * time.Second)
		require.True(t, b.connected())
	})
}

// Answers that are lost after the bank has processed the refresh: those users connect
// again, nobody else notices.
func TestAnswersLost(t *testing.T) {
	inBubble(t, setup{bank: rotating}, func(t *testing.T, a *app) {
		const users, unlucky = 100, 10
		browsers := make([]*browser, users)
		for i := range browsers {
			browsers[i] = a.browser()
			browsers[i].login()
		}
		time.Sleep(61 * time.Minute)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.AnswerLost, unlucky)
		for _, b := range browsers {
			b.do("GET", "/p", program)
		}
		time.Sleep(2 * time.Minute)
		statuses := map[int]int{}
		for _, b := range browsers {
			statuses[b.do("GET", "/p", program).StatusCode]++
		}
		t.Attr("measured", fmt.Sprintf("%d answers lost: %d users have to connect again, %d served", unlucky, statuses[401], statuses[200]))
		require.Equal(t, map[int]int{200: users - unlucky, 401: unlucky}, statuses)
	})
}
