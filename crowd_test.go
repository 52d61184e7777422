package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// crowdSize is how many users come at once: that many, or USERS.
func crowdSize(otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv("USERS")); err == nil {
		return n
	}
	return otherwise
}

// crowd is many users whose tokens have expired, at one kit and a bank.
type crowd struct {
	t     *testing.T
	bank  *ganbtest.Server
	kit   *ganbauth.Kit
	locks *countingLocker
	log   lockedBuffer
	users int
	begun time.Time
	way   atomic.Pointer[http.RoundTripper] // to the bank, in place of the straight one
	asked int                               // token requests that went there

	mu      sync.Mutex
	answers []answerSeen
}

// answerSeen is what a user was told, when, and how long it took.
type answerSeen struct {
	at, took time.Duration
	err      error
}

// inCrowd runs test in a bubble, with users whose tokens have all expired.
func inCrowd(t *testing.T, users int, bank ganbtest.Options, test func(t *testing.T, c *crowd), change ...func(*ganbauth.Options)) {
	synctest.Test(t, func(t *testing.T) {
		bank.InProcess = true
		c := &crowd{t: t, users: users, locks: &countingLocker{}}
		limit := bank.RateLimit
		bank.RateLimit, bank.KeepRequests = ganbtest.RateLimit{}, 1000
		c.bank = ganbtest.NewServer(bank)
		store := ganbauth.NewMemoryStore()

		c.kit = c.kitBy(store, change...)
		for u := range users {
			connect(t, c.bank, store, fmt.Sprint(u))
		}
		time.Sleep(61 * time.Minute)
		c.bank.SetRateLimit(limit)
		c.begun = time.Now()
		test(t, c)
	})
}

// kitBy is a backgroundKit whose requests to the bank can be led astray.
func (c *crowd) kitBy(store ganbauth.TokenStore, change ...func(*ganbauth.Options)) *ganbauth.Kit {
	cfg := c.bank.Config()
	straight := cfg.HTTPClient.Transport
	cfg.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if way := c.way.Load(); way != nil {
			return (*way).RoundTrip(r)
		}
		return straight.RoundTrip(r)
	})}
	connector, err := ganbauth.NewConnector(c.bank.ClientID, c.bank.ClientSecret, c.bank.AuthMethod, cfg)
	require.NoError(c.t, err)
	opts := ganbauth.Options{
		RedirectURI: appURL + "/bank/callback", Scopes: []string{"openid", "offline_access"},
		Store: store, Locker: c.locks, Logger: textLogger(&c.log),
		Key: func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil },
	}
	for _, f := range change {
		f(&opts)
	}
	kit, err := ganbauth.New(connector, nil, opts)
	require.NoError(c.t, err)
	return kit
}

// lead has requests to the bank go that way. Nil is the straight one.
func (c *crowd) lead(way func(*http.Request) (*http.Response, error)) {
	if way == nil {
		c.way.Store(nil)
		return
	}
	rt := http.RoundTripper(roundTripper(way))
	c.way.Store(&rt)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// ask is one request of the user's.
func (c *crowd) ask(user int) error {
	asked := time.Now()
	_, err := c.kit.Token(c.t.Context(), fmt.Sprint(user))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = append(c.answers, answerSeen{asked.Sub(c.begun), time.Since(asked), err})
	return err
}

// come has every user ask until the user is served, again after that pause, or as told if
// it is 0. It returns when each was served.
func (c *crowd) come(pause time.Duration, until time.Duration) (served []time.Duration) {
	var wg sync.WaitGroup
	for user := range c.users {
		wg.Go(func() {
			time.Sleep(pause * time.Duration(user) / time.Duration(c.users)) // one after another, as users come
			for time.Since(c.begun) < until {
				err := c.ask(user)
				if err == nil {
					c.mu.Lock()
					defer c.mu.Unlock()
					served = append(served, time.Since(c.begun))
					return
				}
				if pause > 0 {
					time.Sleep(pause)
				} else {
					time.Sleep(ganbauth.RetryAfter(err))
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(served)
	return served
}

// longest returns the longest time that a request has waited for, of those that came
// then.
func (c *crowd) longest(from, to time.Duration) (longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.answers {
		if from <= a.at && a.at < to {
			longest = max(longest, a.took)
		}
	}
	return longest
}

// refusedLate counts those who were kept waiting for more than a second and then not
// served, but for the second in which the limit is found out.
func (c *crowd) refusedLate() (n int) {
	for _, a := range c.answers {
		if a.err != nil && a.took > 1200*time.Millisecond {
			n++
		}
	}
	return n
}

func (c *crowd) requireNobodyLoggedOut() {
	c.t.Helper()
	for _, a := range c.answers {
		if a.err != nil {
			require.ErrorIs(c.t, a.err, ganbauth.ErrUnavailable)
		}
	}
}

// requireNothingLeft holds that the guard has given everything back.
func (c *crowd) requireNothingLeft() {
	c.t.Helper()
	time.Sleep(3 * time.Minute)
	require.Zero(c.t, ganbauth.KeysHeld(c.kit))
}

// countingLocker is a Locker for one process that counts.
type countingLocker struct {
	mu           sync.Mutex
	locked, most int
}

func (l *countingLocker) Lock(ctx context.Context, key string) (func(), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked++
	l.most = max(l.most, l.locked)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.locked--
	}, nil
}

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

func count(calls *atomic.Int32, way func(*http.Request) (*http.Response, error)) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		calls.Add(1)
		return way(r)
	}
}

// fails is a way to a bank whose answer is always err, after that time.
func fails(err error, after time.Duration) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		time.Sleep(after)
		return nil, err
	}
}

// hangs is a way to a bank that takes a request and says nothing.
func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// The bank limits the rate, and everybody comes at once.
func TestGuardRateLimit(t *testing.T) {
	limits := map[string]ganbtest.RateLimit{
		"refused requests are free": {PerSecond: 20},
		"refused requests count":    {PerSecond: 20, CountRefused: true},
	}
	for name, limit := range limits {
		for again, pause := range map[string]time.Duration{"every 10 s": 10 * time.Second, "every 60 s": time.Minute, "when told": 0} {
			t.Run(name+"/"+again, func(t *testing.T) {
				users := crowdSize(500 + 20*int(pause.Seconds())) // more come in a second than the bank takes
				inCrowd(t, users, ganbtest.Options{Latency: 50 * time.Millisecond, RateLimit: limit}, func(t *testing.T, c *crowd) {
					served := c.come(pause, time.Hour)
					refused := c.bank.CountStatus(ganbtest.TokenEndpoint, http.StatusTooManyRequests)
					require.Len(t, served, c.users)
					last := served[len(served)-1]
					t.Attr("measured", fmt.Sprintf("the last of %d served after %.0f s, %d requests refused", c.users, last.Seconds(), refused))
					require.Less(t, last, time.Duration(c.users)*54*time.Millisecond+max(pause, 20*time.Second), "50 ms a user is the limit")
					require.Less(t, refused, 50+c.users/20)
					require.LessOrEqual(t, c.longest(0, time.Hour), 10*time.Second)
					require.LessOrEqual(t, c.refusedLate(), refused+c.users/100, "those who have to come again are told at once")
					if pause == 0 {
						require.Less(t, len(c.answers), 8*c.users, "and not too often")
					}
					require.NotContains(t, c.log.String(), "is away")
					c.requireNobodyLoggedOut()
					c.requireNothingLeft()
				})
			})
		}
	}
	t.Run("the limit is raised", func(t *testing.T) {
		limit := ganbtest.RateLimit{PerSecond: 5}
		inCrowd(t, 1500, ganbtest.Options{RateLimit: limit}, func(t *testing.T, c *crowd) {
			time.AfterFunc(time.Minute, func() { c.bank.SetRateLimit(ganbtest.RateLimit{PerSecond: 40}) })
			served := c.come(10*time.Second, time.Hour)
			require.Less(t, served[len(served)-1], 4*time.Minute)
		})
	})
}

// The bank is away for an hour, and then takes 20 requests a second.
func TestGuardBankAway(t *testing.T) {
	for name, away := range map[string]func(c *crowd) (end func()){
		"refused": func(c *crowd) func() {
			var calls atomic.Int32
			c.lead(count(&calls, fails(errRefused, time.Millisecond)))
			return func() { c.lead(nil); c.asked = int(calls.Load()) }
		},
		"503": func(c *crowd) func() {
			return c.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Status: http.StatusServiceUnavailable}, -1)
		},
		"500": func(c *crowd) func() {
			return c.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, -1)
		},
		"maintenance": func(c *crowd) func() {
			c.bank.SetMaintenance(ganbtest.Window{Start: time.Now(), End: time.Now().Add(time.Hour)})
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCrowd(t, crowdSize(100), ganbtest.Options{}, func(t *testing.T, c *crowd) {
				end := away(c)
				before := c.bank.Refreshes()
				var asked int
				time.AfterFunc(time.Hour, func() {
					end()
					asked = c.asked + c.bank.Refreshes() - before
					c.bank.SetRateLimit(ganbtest.RateLimit{PerSecond: 20})
				})
				served := c.come(10*time.Second, 2*time.Hour)
				require.Len(t, served, c.users)
				last := served[len(served)-1] - time.Hour
				t.Attr("measured", fmt.Sprintf("%d token requests in the hour, the longest answer took %s, the last of %d served %.0f s after its end",
					asked, c.longest(0, time.Hour-10*time.Second), c.users, last.Seconds()))
				if name == "maintenance" { // the bank has said when it ends
					require.Less(t, asked, 10)
				}
				require.Less(t, asked, 150)
				require.Less(t, c.longest(0, time.Hour-10*time.Second), 10*time.Millisecond)
				require.Less(t, last, time.Duration(c.users)*54*time.Millisecond+70*time.Second)
				c.requireNobodyLoggedOut()
				c.requireNothingLeft()
			})
		})
	}
}

// The bank takes connections and says nothing.
func TestGuardBankHangs(t *testing.T) {
	inCrowd(t, crowdSize(300), ganbtest.Options{}, func(t *testing.T, c *crowd) {
		const live = 100
		for u := range live {
			token := c.bank.Token()
			token.IssuedAt, token.ExpiresAt = token.IssuedAt.Add(-59*time.Minute-30*time.Second), token.ExpiresAt.Add(-59*time.Minute-30*time.Second)
			require.NoError(t, c.kit.SetToken(t.Context(), fmt.Sprint("live", u), token))
		}
		c.lead(hangs)
		goroutines, most := runtime.NumGoroutine(), 0
		var waited time.Duration
		time.AfterFunc(2*time.Second, func() { // no slot is free by now
			for u := range live {
				asked := time.Now()
				_, err := c.kit.Token(t.Context(), fmt.Sprint("live", u))
				require.NoError(t, err)
				c.mu.Lock()
				waited = max(waited, time.Since(asked))
				c.mu.Unlock()
			}
		})
		for s := range 130 {
			time.AfterFunc(time.Duration(s)*time.Second+time.Millisecond, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				most = max(most, runtime.NumGoroutine()-goroutines-1)
			})
		}
		require.Empty(t, c.come(5*time.Second, 130*time.Second))
		c.mu.Lock()
		most, locks := most, c.locks.most
		c.mu.Unlock()
		t.Attr("measured", fmt.Sprintf("%d goroutines besides one for each request, %d locks held; live tokens served after %s; nobody waits over %s, after the first minute %s",
			most-c.users, locks, waited, c.longest(0, time.Hour), c.longest(time.Minute, time.Hour)))
		require.Less(t, most-c.users, 200)
		require.Less(t, locks, 100)
		require.Zero(t, waited)
		require.LessOrEqual(t, c.longest(0, time.Hour), 10*time.Second)
		require.Zero(t, c.longest(11*time.Second, time.Hour))
		require.Less(t, c.longest(4*time.Second, 5*time.Second), 7*time.Second, "who waits is told, too")
		c.requireNobodyLoggedOut()
		c.requireNothingLeft()
	})
}

// Users whose refresh is answered 500 for ever are nobody else's trouble.
func TestGuardSickUsers(t *testing.T) {
	const hours = 2
	for name, n := range map[string]int{"one user": 1, "ten users": 10, "thirty users": 30} {
		t.Run(name, func(t *testing.T) {
			inCrowd(t, 100, ganbtest.Options{}, func(t *testing.T, c *crowd) {
				sick, subjects := map[int]bool{}, map[string]bool{}
				for i := range n {
					token := c.bank.Token()
					sick[3*i], subjects[token.Subject] = true, true
					token.ExpiresAt = time.Now()
					require.NoError(t, c.kit.SetToken(t.Context(), fmt.Sprint(3*i), token))
				}
				fault := ganbtest.ServerError
				fault.For = func(r ganbtest.Request) bool { return subjects[r.Subject] }
				c.bank.Fail(ganbtest.TokenEndpoint, fault, -1)
				var noticed atomic.Int32
				var wg sync.WaitGroup
				for u := range c.users {
					wg.Go(func() {
						pause := 7 * time.Minute
						if sick[u] {
							pause = time.Second // a page that asks all the time
						}
						time.Sleep(time.Duration(u) * time.Minute / 7) // one after another
						for time.Since(c.begun) < hours*time.Hour {
							if err := c.ask(u); err != nil && !sick[u] {
								noticed.Add(1)
							}
							time.Sleep(pause)
						}
					})
				}
				wg.Wait()
				t.Attr("measured", fmt.Sprintf("%d hours: %d refreshes fail, and %d requests of the %d others",
					hours, c.bank.CountStatus(ganbtest.TokenEndpoint, http.StatusInternalServerError), noticed.Load(), c.users-n))
				require.Zero(t, noticed.Load())
			})
		})
	}
}

// Ten answers are cut in a row: the bank is not away.
func TestGuardAnswersCut(t *testing.T) {
	inCrowd(t, 100, ganbtest.Options{}, func(t *testing.T, c *crowd) {
		c.bank.Fail(ganbtest.TokenEndpoint, ganbtest.AnswerLost, 10)
		refused := 0
		for u := range c.users {
			if c.ask(u) != nil {
				refused++
			}
		}
		t.Attr("measured", fmt.Sprintf("%d of %d users are refused", refused, c.users))
		require.Equal(t, 10, refused)
	})
}

// A bank that is well is asked for everybody at once.
func TestGuardBankIsWell(t *testing.T) {
	inCrowd(t, crowdSize(3000), ganbtest.Options{Latency: 50 * time.Millisecond}, func(t *testing.T, c *crowd) {
		var wg sync.WaitGroup
		for u := range c.users {
			wg.Go(func() { require.NoError(t, c.ask(u)) })
		}
		wg.Wait()
		t.Attr("measured", fmt.Sprintf("%d users at once, a bank of 50 ms: the last one is served after %s", c.users, time.Since(c.begun).Round(10*time.Millisecond)))
		require.Less(t, time.Since(c.begun), time.Second)
		c.requireNothingLeft()
	})
}

// When the bank is back, there is no wave.
func TestGuardLetsInSlowly(t *testing.T) {
	inCrowd(t, 2000, ganbtest.Options{Latency: 50 * time.Millisecond}, func(t *testing.T, c *crowd) {
		end := c.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Status: http.StatusBadGateway}, -1)
		time.AfterFunc(10*time.Minute, end)
		served := c.come(10*time.Second, time.Hour)
		require.Len(t, served, 2000)
		within := func(d time.Duration) (n int) {
			for _, at := range served {
				if at < served[0]+d {
					n++
				}
			}
			return n
		}
		t.Attr("measured", fmt.Sprintf("served after 1 s: %d, after 2 s: %d, after 4 s: %d, after 8 s: %d of 2000", within(time.Second),
			within(2*time.Second), within(4*time.Second), within(8*time.Second)))
		require.Less(t, within(time.Second), 50)
		require.Less(t, served[1999]-served[0], 15*time.Second)
	})
}

// After a bank that fails, hangs and limits the rate, nothing is remembered of those who
// came, whether they were served or have given up.
func TestGuardLeavesNothing(t *testing.T) {
	inCrowd(t, crowdSize(1000), ganbtest.Options{}, func(t *testing.T, c *crowd) {
		c.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, -1)
		time.AfterFunc(10*time.Minute, func() { c.lead(hangs) })
		time.AfterFunc(20*time.Minute, func() {
			c.lead(nil)
			c.bank.Heal()
			c.bank.SetRateLimit(ganbtest.RateLimit{PerSecond: float64(c.users) / 600})
		})
		served := len(c.come(10*time.Second, 25*time.Minute))
		time.Sleep(3 * time.Minute)
		keys := ganbauth.KeysHeld(c.kit) // the bubble sees to it that no goroutine is left
		t.Attr("measured", fmt.Sprintf("%d users, %d of them served: %d keys, timers and turns", c.users, served, keys))
		require.NotZero(t, served)
		require.Less(t, served, c.users)
		require.Zero(t, keys)
	})
}

// A request whose flight hangs waits, and those who come later do not wait as long again.
func TestGuardFlightHangs(t *testing.T) {
	inCrowd(t, 1, ganbtest.Options{}, func(t *testing.T, c *crowd) {
		c.lead(hangs)
		for range 3 {
			require.ErrorIs(t, c.ask(0), ganbauth.ErrUnavailable)
		}
		require.Equal(t, 10*time.Second, time.Since(c.begun))
		time.Sleep(30 * time.Second)
	})
}

// While the bank is away no code is sent to it: the callback may come again.
func TestGuardLoginWhileTheBankIsAway(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		var users []*browser
		for range 3 {
			b := a.browser()
			b.login()
			users = append(users, b)
		}
		time.Sleep(61 * time.Minute)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
		for _, b := range users {
			require.False(t, b.connected())
		}
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		before := a.bank.Count(ganbtest.TokenEndpoint)
		require.Equal(t, http.StatusServiceUnavailable, b.get(callback).StatusCode)
		require.Equal(t, before, a.bank.Count(ganbtest.TokenEndpoint))
		a.bank.Heal()
		time.Sleep(151 * time.Second)
		require.Equal(t, http.StatusSeeOther, b.get(callback).StatusCode, "it finds out that the bank is back")
		require.True(t, b.connected())
		require.True(t, users[0].connected())
	})
}

// What a browser sends as a code says nothing about the bank.
func TestGuardForgedCodesSayNothing(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		user := a.browser()
		user.login()
		time.Sleep(61 * time.Minute)
		fault := ganbtest.ServerError
		fault.For = func(r ganbtest.Request) bool { return r.GrantType == "authorization_code" }
		a.bank.Fail(ganbtest.TokenEndpoint, fault, -1)
		for range 30 {
			b := a.browser()
			b.get(b.callbackURL("/bank/login"))
		}
		require.True(t, user.connected())
	})
}

// 1,200 callbacks with forged codes, at a bank that takes eight seconds for each, hold up
// no refresh. A code that does not get its turn is not spent: the callback may come
// again.
func TestD6ForgedCodesHoldUpNobody(t *testing.T) {
	inBubble(t, setup{bank: ganbtest.Options{Latency: 8 * time.Second}}, func(t *testing.T, a *app) {
		user := a.browser()
		user.login()
		time.Sleep(61 * time.Minute)
		honest := a.browser()
		callback := honest.callbackURL("/bank/login")
		var wg sync.WaitGroup
		for range 1200 {
			b := a.browser()
			forged := mustParse(b.callbackURL("/bank/login"))
			q := forged.Query()
			q.Set("code", "forged")
			forged.RawQuery = q.Encode()
			wg.Go(func() { b.get(forged.String()) })
		}
		synctest.Wait()
		begun, before := time.Now(), a.bank.Count(ganbtest.TokenEndpoint)
		require.True(t, user.connected())
		took := time.Since(begun)
		require.LessOrEqual(t, before, 70)

		resp := honest.get(callback)
		require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		require.NotEmpty(t, resp.Header.Get("Retry-After"))
		wg.Wait()
		time.Sleep(time.Minute)
		resp = honest.get(callback)
		require.Equal(t, http.StatusSeeOther, resp.StatusCode, body(resp))
		require.Equal(t, "/home", resp.Header.Get("Location"))
		t.Attr("measured", fmt.Sprintf("a refresh takes %s meanwhile; a login whose turn does not come is told to come again, and then succeeds", took))
		require.LessOrEqual(t, took, 8*time.Second)
	})
}

// Another process holds the locks of many users and hangs. Whoever waits for one of these
// holds up nobody else for long, and when they are free at last, all are refreshed.
func TestLocksOfAnotherProcessHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		locker := &keyLocker{held: map[string]bool{}}
		kit := backgroundKit(t, bank, store, locker)
		const sick = 150
		var locks []func()
		for i := range sick {
			connect(t, bank, store, fmt.Sprint("sick", i))
			unlock, err := locker.Lock(t.Context(), fmt.Sprint("bank/sick", i))
			require.NoError(t, err)
			locks = append(locks, unlock)
		}
		connect(t, bank, store, "well")
		time.Sleep(2 * time.Hour)
		var waiting sync.WaitGroup
		for i := range sick {
			waiting.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := kit.Token(ctx, fmt.Sprint("sick", i))
				if !errors.Is(err, ganbauth.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		time.Sleep(10 * time.Millisecond)
		begun := time.Now()
		_, err := kit.Token(t.Context(), "well")
		require.NoError(t, err)
		require.Less(t, time.Since(begun), 3*time.Second)
		waiting.Wait()
		for _, unlock := range locks {
			unlock()
		}
		for i := range sick {
			_, err := kit.Token(t.Context(), fmt.Sprint("sick", i))
			require.NoError(t, err)
		}
		require.Equal(t, sick+1, bank.Refreshes())
		synctest.Wait()
		require.Zero(t, ganbauth.KeysHeld(kit))
	})
}
