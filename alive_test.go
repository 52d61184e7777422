package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// indexedStore is a store in memory with an index, as the stores on engines have one.
type indexedStore struct {
	mu     sync.Mutex
	tokens map[string]ganbauth.Token
	index  []ganbauth.Expiry
	pages  int
	fails  func(key string) error // of Load
}

func newIndexedStore() *indexedStore { return &indexedStore{tokens: map[string]ganbauth.Token{}} }

func (s *indexedStore) Load(_ context.Context, key string) (*ganbauth.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		if err := s.fails(key); err != nil {
			return nil, err
		}
	}
	t, ok := s.tokens[key]
	if !ok {
		return nil, ganbauth.ErrTokenNotFound
	}
	return &t, nil
}

func (s *indexedStore) Save(_ context.Context, key string, t *ganbauth.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(key, t)
	return nil
}

func (s *indexedStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(key, nil)
	return nil
}

func (s *indexedStore) Swap(_ context.Context, key string, old, new *ganbauth.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var stored *ganbauth.Token
	if t, ok := s.tokens[key]; ok {
		stored = &t
	}
	if stored.Fingerprint() != old.Fingerprint() {
		return ganbauth.ErrSuperseded
	}
	s.put(key, new)
	return nil
}

// put stores t, or deletes what is there if it is nil.
func (s *indexedStore) put(key string, t *ganbauth.Token) {
	if old, ok := s.tokens[key]; ok {
		if i, found := s.find(ganbauth.Expiry{At: old.ExpiresAt, Key: key}); found {
			s.index = slices.Delete(s.index, i, i+1)
		}
		delete(s.tokens, key)
	}
	if t == nil {
		return
	}
	s.tokens[key] = *t
	if t.RefreshToken != "" {
		e := ganbauth.Expiry{At: t.ExpiresAt, Key: key}
		i, _ := s.find(e)
		s.index = slices.Insert(s.index, i, e)
	}
}

func (s *indexedStore) find(e ganbauth.Expiry) (int, bool) {
	return slices.BinarySearchFunc(s.index, e, func(a, b ganbauth.Expiry) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
}

func (s *indexedStore) ExpiringAfter(_ context.Context, after ganbauth.Expiry, before time.Time, limit int) (page []ganbauth.Expiry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages++
	i, found := s.find(after)
	if found {
		i++
	}
	for ; i < len(s.index) && len(page) < limit && s.index[i].At.Before(before); i++ {
		page = append(page, s.index[i])
	}
	return page, nil
}

// has reports whether a record is there. The caller holds s.mu.
func (s *indexedStore) has(key string) bool {
	_, ok := s.tokens[key]
	return ok
}

// lapsed counts the tokens that have expired.
func (s *indexedStore) lapsed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := s.find(ganbauth.Expiry{At: time.Now()})
	return i
}

// keptOffice is an application whose tokens are kept alive.
type keptOffice struct {
	t      *testing.T
	bank   *ganbtest.Server
	store  *indexedStore
	locker *keyLocker
	log    lockedBuffer

	most int // of the tokens that had lapsed at once, by the minute
	sum  int // of the minutes for which tokens had lapsed
}

// inKeptOffice runs test in a bubble.
func inKeptOffice(t *testing.T, bank ganbtest.Options, test func(t *testing.T, o *keptOffice)) {
	synctest.Test(t, func(t *testing.T) {
		bank.InProcess, bank.KeepRequests = true, 1000
		test(t, &keptOffice{
			t: t, bank: ganbtest.NewServer(bank), store: newIndexedStore(),
			locker: &keyLocker{held: map[string]bool{}},
		})
	})
}

// kit is one process.
func (o *keptOffice) kit(change ...func(*ganbauth.Options)) *ganbauth.Kit {
	logged := func(opts *ganbauth.Options) { opts.Logger = textLogger(&o.log) }
	return backgroundKit(o.t, o.bank, o.store, nil, append([]func(*ganbauth.Options){logged}, change...)...)
}

func (o *keptOffice) locked(opts *ganbauth.Options) { opts.Locker = o.locker }

func tokenRate(rate float64) func(*ganbauth.Options) {
	return func(opts *ganbauth.Options) { opts.TokenRate = rate }
}

// connect connects users one after another, over that time.
func (o *keptOffice) connect(users int, over time.Duration) {
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() {
			time.Sleep(over * time.Duration(u) / time.Duration(users))
			if err := o.store.Save(o.t.Context(), fmt.Sprint("bank/", u), o.bank.Token("offline_access")); err != nil {
				o.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// keepAlive has a kit keep tokens alive, until the function that it returns is called.
func (o *keptOffice) keepAlive(kit *ganbauth.Kit) (end func() error) {
	ctx, cancel := context.WithCancel(o.t.Context())
	done := make(chan error, 1)
	go func() { done <- kit.KeepAlive(ctx) }()
	return func() error {
		cancel()
		err := <-done
		time.Sleep(time.Minute) // for what is under way
		return err
	}
}

// watch looks at the tokens every minute for that time.
func (o *keptOffice) watch(d time.Duration) {
	for range d / time.Minute {
		time.Sleep(time.Minute)
		n := o.store.lapsed()
		o.most = max(o.most, n)
		o.sum += n
	}
}

// Tokens of an hour stay live at one refresh a second.
func TestC4KeepAliveHourlyTokens(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		users, kit := 1000, o.kit()
		if n := crowdSize(100); n != users { // the same load at another size
			users, kit = n, o.kit(tokenRate(float64(n)/1000))
		}
		o.connect(users, 30*time.Minute)
		end := o.keepAlive(kit)
		before := o.bank.Refreshes()
		o.watch(24 * time.Hour)
		require.ErrorIs(t, end(), context.Canceled)
		t.Attr("measured", fmt.Sprintf("%d users, 24 hours: %d minutes lapsed, %d token requests", users, o.sum, o.bank.Refreshes()-before))
		require.Zero(t, o.sum)
		require.NotContains(t, o.log.String(), "level=WARN")
	})
}

// Ten times as many tokens of an hour stay live at a rate of their own.
func TestKeepAliveAtTokenRate(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{Latency: 300 * time.Millisecond}, func(t *testing.T, o *keptOffice) {
		users := crowdSize(500)
		o.connect(users, 20*time.Minute)
		end := o.keepAlive(o.kit(tokenRate(float64(users) / 500)))
		o.watch(6 * time.Hour)
		require.ErrorIs(t, end(), context.Canceled)
		t.Attr("measured", fmt.Sprintf("%d users, 6 hours: %d minutes lapsed", users, o.sum))
		require.Zero(t, o.sum)
	})
}

// More tokens than the rate can keep share what there is, and the log says so.
func TestKeepAliveTooManyForTheRate(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		users, kit := 5000, o.kit()
		if n := crowdSize(500); n != users { // the same load at another size
			users, kit = n, o.kit(tokenRate(float64(n)/5000))
		}
		o.connect(users, 50*time.Minute)
		end := o.keepAlive(kit)
		time.Sleep(3 * time.Hour)
		before := o.bank.Refreshes()
		lapsed := map[string]time.Duration{}
		const watched = 2 * 5000 * time.Second // twice around
		for range watched / time.Minute {
			o.store.mu.Lock()
			i, _ := o.store.find(ganbauth.Expiry{At: time.Now()})
			for _, e := range o.store.index[:i] {
				lapsed[e.Key] += time.Minute
			}
			o.store.mu.Unlock()
			time.Sleep(time.Minute)
		}
		require.ErrorIs(t, end(), context.Canceled)
		least, most := watched, time.Duration(0)
		for u := range users {
			d := lapsed[fmt.Sprint("bank/", u)]
			least, most = min(least, d), max(most, d)
		}
		warning := regexp.MustCompile(`level=WARN.*tokens=(\S+) expire_within=(\S+) needed_per_second=(\S+) reached_per_second=(\S+)`).FindStringSubmatch(o.log.String())
		require.NotNil(t, warning, o.log.String())
		t.Attr("measured", fmt.Sprintf("%d users: each user's token has lapsed for %.0f %% to %.0f %% of the time; %.2f requests a second; the log says that %s tokens need %s a second and get %s",
			users, 100*least.Seconds()/watched.Seconds(), 100*most.Seconds()/watched.Seconds(), float64(o.bank.Refreshes()-before)/watched.Seconds(), warning[1], warning[3], warning[4]))
		require.Less(t, most-least, watched/20)
		require.LessOrEqual(t, strings.Count(o.log.String(), "level=WARN"), 12, "once an hour")
	})
}

// Tokens of 30 days outlive the bank's maintenance.
func TestC4KeepAliveMonth(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{Lifetime: 30 * 24 * time.Hour}, func(t *testing.T, o *keptOffice) {
		users := crowdSize(2000)
		o.connect(users, 29*24*time.Hour)
		end := o.keepAlive(o.kit())
		o.bank.SetMaintenance(ganbtest.Window{Start: time.Now().Add(24 * time.Hour), End: time.Now().Add(30 * time.Hour), Every: 7 * 24 * time.Hour})
		before, away := o.bank.Refreshes(), 0
		o.watch(31 * 24 * time.Hour)
		away = o.bank.CountStatus(ganbtest.TokenEndpoint, http.StatusServiceUnavailable)
		require.ErrorIs(t, end(), context.Canceled)
		t.Attr("measured", fmt.Sprintf("%d users, 30 days: %d minutes lapsed, %d token requests, %d of them in the maintenances of 6 hours",
			users, o.sum, o.bank.Refreshes()-before, away))
		require.Zero(t, o.sum)
		require.Less(t, away, 5*6*60, "less than one a minute")
	})
}

// Three users whose refreshes fail for good do not hold up the others.
func TestC2KeepAliveUsersFail(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		const hours = 3
		subjects := map[string]bool{}
		for u := range 3 {
			token := o.bank.Token()
			subjects[token.Subject] = true
			require.NoError(t, o.store.Save(t.Context(), fmt.Sprint("bank/sick", u), token))
		}
		fault := ganbtest.ServerError
		fault.For = func(r ganbtest.Request) bool { return subjects[r.Subject] }
		o.bank.Fail(ganbtest.TokenEndpoint, fault, -1)
		o.connect(1000, 30*time.Minute)
		end := o.keepAlive(o.kit())
		time.Sleep(31 * time.Minute)
		o.watch(hours * time.Hour)
		require.ErrorIs(t, end(), context.Canceled)
		failed := o.bank.CountStatus(ganbtest.TokenEndpoint, http.StatusInternalServerError)
		t.Attr("measured", fmt.Sprintf("3 users fail %d times in %d hours; 1000 others: %d minutes lapsed", failed, hours, o.sum-3*hours*60))
		require.Equal(t, 3*hours*60, o.sum, "the three have lapsed all the time")
		require.LessOrEqual(t, failed, 3*8*(hours+1))
		require.GreaterOrEqual(t, failed, 3*hours, "they are not given up")
	})
}

// A deploy every 55 minutes loses no token.
func TestKeepAliveDeploys(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(500, 30*time.Minute)
		for range 8 {
			kit := o.kit(o.locked)
			end := o.keepAlive(kit)
			o.watch(55 * time.Minute)
			require.NoError(t, kit.Shutdown(t.Context()))
			require.ErrorIs(t, end(), context.Canceled)
		}
		t.Attr("measured", fmt.Sprintf("500 users, 8 deploys: %d minutes lapsed", o.sum))
		require.Zero(t, o.sum)
	})
}

// Entries without a token, and tokens that no key opens, hold up nobody.
func TestC3I9KeepAliveEntries(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		sealed := ganbauth.Seal(o.store, key(1))
		soon := func(token *ganbauth.Token, d time.Duration) *ganbauth.Token {
			token.IssuedAt, token.ExpiresAt = time.Now().Add(-time.Hour), time.Now().Add(d)
			return token
		}
		for i := range 1000 {
			require.NoError(t, sealed.Save(t.Context(), fmt.Sprint("bank/sealed", i), soon(o.bank.Token(), time.Minute)))
			require.NoError(t, o.store.Save(t.Context(), fmt.Sprint("corp/", i), soon(o.bank.Token(), time.Minute)))
		}
		require.NoError(t, ganbauth.Seal(o.store, key(2)).Save(t.Context(), "bank/u", soon(o.bank.Token(), 5*time.Minute)))
		o.store.index = append(slices.Repeat([]ganbauth.Expiry{{Key: "bank/nobody"}}, 1000), o.store.index...)
		for i := range 1000 {
			o.store.index[i].Key += fmt.Sprintf("%03d", i)
		}
		begun := time.Now()
		end := o.keepAlive(o.kit(func(opts *ganbauth.Options) { opts.EncryptionKeys = [][]byte{key(2)} }))
		synctest.Wait()
		t.Attr("measured", fmt.Sprintf("1000 entries without a token, 1000 that no key opens, 1000 of another kit: the token behind them is refreshed after %s",
			time.Since(begun)))
		require.Equal(t, 1, o.bank.Refreshes())
		time.Sleep(50 * time.Minute)
		require.Equal(t, 1, strings.Count(o.log.String(), "level=ERROR"), o.log.String())
		require.Contains(t, o.log.String(), "without_token=1000 unreadable=1000")
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// Who connects while a run is under way is not forgotten.
func TestKeepAliveNewConnections(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(3000, 0)
		time.Sleep(45 * time.Minute)
		end := o.keepAlive(o.kit())
		time.Sleep(5 * time.Minute)
		token := o.bank.Token()
		token.ExpiresAt = time.Now().Add(2 * time.Minute)
		require.NoError(t, o.store.Save(t.Context(), "bank/late", token))
		time.Sleep(2 * time.Minute)
		got, err := o.store.Load(t.Context(), "bank/late")
		require.NoError(t, err)
		require.True(t, got.Valid())
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// Nor is who connects while tokens that have time are refreshed at a low rate: their page takes
// a quarter of an hour.
func TestKeepAliveNewConnectionAtALowRate(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{Lifetime: 24 * time.Hour}, func(t *testing.T, o *keptOffice) {
		o.connect(100, 0)
		time.Sleep(13 * time.Hour)
		end := o.keepAlive(o.kit(tokenRate(0.1)))
		time.Sleep(time.Second)
		token := o.bank.Token()
		token.ExpiresAt = time.Now().Add(5 * time.Minute)
		require.NoError(t, o.store.Save(t.Context(), "bank/late", token))
		o.watch(20 * time.Minute)
		require.Zero(t, o.most)
		require.Equal(t, 101, o.bank.Refreshes(), "and the others")
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// Of many processes one keeps the tokens alive.
func TestKeepAliveOneProcess(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(3000, 0)
		time.Sleep(45 * time.Minute)
		first, second := o.kit(o.locked), o.kit(o.locked)
		endFirst := o.keepAlive(first)
		time.Sleep(time.Second)
		endSecond := o.keepAlive(second)
		n, err := o.kit(o.locked).RefreshExpiring(t.Context(), time.Hour)
		require.Zero(t, n)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.ErrorContains(t, err, "another process")
		before := o.bank.Refreshes()
		time.Sleep(1000 * time.Second)
		require.InDelta(t, 1000, o.bank.Refreshes()-before, 5, "one of them, one a second")
		require.ErrorIs(t, endFirst(), context.Canceled)
		before = o.bank.Refreshes()
		time.Sleep(100 * time.Second)
		require.InDelta(t, 100, o.bank.Refreshes()-before, 3, "the other takes over")
		require.ErrorIs(t, endSecond(), context.Canceled)
	})
}

// Two processes that share a lock keep all tokens for hours, also those that come meanwhile.
func TestKeepAliveRunOfHours(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{Lifetime: 20 * time.Minute}, func(t *testing.T, o *keptOffice) {
		o.connect(1000, 1000*time.Second) // it has no pause
		for range 2 {
			defer func(end func() error) { require.ErrorIs(t, end(), context.Canceled) }(o.keepAlive(o.kit(o.locked)))
		}
		least, most := 60, 0
		const hours = 2
		for minute := range hours * 60 {
			if minute%30 == 20 { // somebody connects
				token := o.bank.Token("offline_access")
				token.IssuedAt, token.ExpiresAt = time.Now().Add(-15*time.Minute), time.Now().Add(150*time.Second)
				require.NoError(t, o.store.Save(t.Context(), fmt.Sprint("bank/late", minute), token))
			}
			before := o.bank.Refreshes()
			time.Sleep(time.Minute)
			n := o.bank.Refreshes() - before
			least, most = min(least, n), max(most, n)
			if minute%30 == 22 {
				got, err := o.store.Load(t.Context(), fmt.Sprint("bank/late", minute-2))
				require.NoError(t, err)
				require.True(t, got.Valid())
			}
		}
		t.Attr("measured", fmt.Sprintf("%d hours, 2 processes: %d to %d token requests a minute; who connects meanwhile is refreshed in time", hours, least, most))
		require.LessOrEqual(t, most, 61)
		require.GreaterOrEqual(t, least, 58)
	})
}

// While users need refreshes, KeepAlive sends none.
func TestKeepAliveUsersGoFirst(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(3000, 0)
		time.Sleep(61 * time.Minute)
		kit := o.kit(tokenRate(5))
		end := o.keepAlive(kit)
		time.Sleep(time.Second)
		before := o.bank.Refreshes()
		var wg sync.WaitGroup
		for u := range 300 {
			wg.Go(func() {
				for {
					if _, err := kit.Token(t.Context(), fmt.Sprint(2999-u)); err == nil {
						return
					}
					time.Sleep(5 * time.Second)
				}
			})
		}
		wg.Wait()
		jobs := o.bank.Refreshes() - before - 300
		t.Attr("measured", fmt.Sprintf("300 users at 5 requests a second: %d token requests of KeepAlive's meanwhile", jobs))
		require.LessOrEqual(t, jobs, 20)
		before = o.bank.Refreshes()
		time.Sleep(time.Minute)
		require.InDelta(t, 300, o.bank.Refreshes()-before, 5, "and then all of them")
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// Shutdown ends KeepAlive before it waits.
func TestG4ShutdownEndsKeepAlive(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{Latency: 3 * time.Second}, func(t *testing.T, o *keptOffice) {
		o.connect(100, 0)
		time.Sleep(45 * time.Minute)
		kit := o.kit()
		end := o.keepAlive(kit)
		time.Sleep(10 * time.Second)
		require.NoError(t, kit.Shutdown(t.Context()))
		refreshes := o.bank.Refreshes()
		for _, token := range o.store.tokens { // each that was spent has been stored
			_, err := o.bank.Connector().RefreshTokens(t.Context(), token.RefreshToken)
			require.NoError(t, err)
		}
		require.ErrorIs(t, end(), context.Canceled)
		time.Sleep(time.Minute)
		require.Equal(t, refreshes+100, o.bank.Refreshes())
		require.ErrorIs(t, kit.KeepAlive(t.Context()), context.Canceled)
		_, err := kit.RefreshExpiring(t.Context(), time.Hour)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// A store that fails is reported.
func TestKeepAliveStoreFails(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(50, 0)
		time.Sleep(45 * time.Minute)
		broken := errors.New("connection refused")
		o.store.fails = func(string) error { return broken }
		_, err := o.kit().RefreshExpiring(t.Context(), time.Hour)
		require.ErrorIs(t, err, broken)
		end := o.keepAlive(o.kit())
		time.Sleep(5 * time.Minute)
		require.Contains(t, o.log.String(), "tokens are not kept alive")
		require.LessOrEqual(t, strings.Count(o.log.String(), "level=ERROR"), 12)
		o.store.mu.Lock()
		o.store.fails = nil
		o.store.mu.Unlock()
		time.Sleep(3 * time.Minute)
		require.GreaterOrEqual(t, o.bank.Refreshes(), 50)
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// An outage that begins after hours without one is logged, once a minute.
func TestKeepAliveOutage(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		end := o.keepAlive(o.kit(o.locked))
		time.Sleep(90 * time.Minute) // the process has given the lock back once
		o.locker.fail(errors.New("connection refused"))
		time.Sleep(time.Hour)
		require.Contains(t, o.log.String(), "tokens are not kept alive")
		require.LessOrEqual(t, strings.Count(o.log.String(), "level=ERROR"), 60+10, "once a minute")
		o.locker.fail(nil)
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// A refresh that waits for its turn ends with KeepAlive, at once.
func TestG4KeepAliveWaits(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		store := engineStore{o.store, o.locker}
		var kits [2]*ganbauth.Kit
		var ends [2]func() error
		for i := range kits {
			kits[i] = backgroundKit(t, o.bank, store, nil)
			ends[i] = o.keepAlive(kits[i])
			time.Sleep(time.Second)
		}
		begun := time.Now()
		require.NoError(t, kits[1].Shutdown(t.Context()))
		require.LessOrEqual(t, time.Since(begun), time.Second)
		require.ErrorIs(t, ends[1](), context.Canceled)
		require.ErrorIs(t, ends[0](), context.Canceled)
	})
}

// A Locker that gives up by itself is not taken for another process.
func TestC1KeepAliveLockerGivesUp(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		kit := o.kit(o.locked)
		o.locker.fail(fmt.Errorf("dial: %w", context.DeadlineExceeded))
		_, err := kit.RefreshExpiring(t.Context(), time.Hour)
		require.ErrorContains(t, err, "dial", "it is not taken for another process")
		end := o.keepAlive(kit)
		time.Sleep(time.Hour)
		require.Contains(t, o.log.String(), "tokens are not kept alive")
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// A store whose pages do not advance is read to an end.
func TestKeepAlivePagesDoNotGoOn(t *testing.T) {
	for name, page := range map[string]func(o *keptOffice, after ganbauth.Expiry, limit int) []ganbauth.Expiry{
		"the first one again": func(o *keptOffice, _ ganbauth.Expiry, limit int) []ganbauth.Expiry { return o.store.index[:limit] },
		"its last entry again": func(o *keptOffice, after ganbauth.Expiry, limit int) []ganbauth.Expiry {
			i, _ := o.store.find(after)
			return slices.Repeat(o.store.index[i:i+1], limit)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
				o.connect(150, 0)
				store := &pagingStore{indexedStore: o.store, page: func(after ganbauth.Expiry, limit int) []ganbauth.Expiry { return page(o, after, limit) }}
				kit := o.kitOn(store)
				_, err := kit.RefreshExpiring(t.Context(), time.Minute)
				require.ErrorContains(t, err, "page")
				end := o.keepAlive(kit)
				time.Sleep(time.Hour)
				require.ErrorIs(t, end(), context.Canceled)
				require.LessOrEqual(t, store.asked(), 1000, "it does not ask again and again")
				require.Contains(t, o.log.String(), "tokens are not kept alive")
			})
		})
	}
}

// Many rows in a row that cannot be read hold up nobody.
func TestC3KeepAliveUnreadableRows(t *testing.T) {
	for name, fault := range map[string]error{
		"of another version":                     new(ganbauth.Token).UnmarshalBinary([]byte{99}),
		"with a fault that only the store knows": errors.New("invalid character"),
	} {
		t.Run(name, func(t *testing.T) {
			inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
				o.connect(30, 0)
				time.Sleep(time.Minute)
				require.NoError(t, o.store.Save(t.Context(), "bank/well", o.bank.Token("offline_access")))
				time.Sleep(45 * time.Minute)
				o.store.fails = func(key string) error {
					if key != "bank/well" && o.store.has(key) {
						return fault
					}
					return nil
				}
				n, err := o.kit().RefreshExpiring(t.Context(), time.Hour)
				require.Equal(t, 1, n)
				require.ErrorIs(t, err, fault)
			})
		})
	}
}

// Rows that cannot be read are an error, and the others are refreshed.
func TestKeepAliveUnreadableRow(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(20, 0)
		time.Sleep(45 * time.Minute)
		broken := errors.New("a bad disk")
		o.store.fails = func(key string) error {
			if key == "bank/0" || key == "bank/1" || key == "bank/10" {
				return broken
			}
			return nil
		}
		n, err := o.kit().RefreshExpiring(t.Context(), time.Hour)
		require.Equal(t, 17, n)
		require.ErrorIs(t, err, broken)
		require.Equal(t, 503, ganbauth.StatusCode(err))
	})
}

// A store that cannot list is an error at once.
func TestKeepAliveCannotList(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		kit := backgroundKit(t, o.bank, &brokenStore{TokenStore: o.store}, nil, func(opts *ganbauth.Options) { opts.Logger = textLogger(&o.log) })
		require.ErrorContains(t, kit.KeepAlive(t.Context()), "ExpiryPager")
		require.Contains(t, o.log.String(), "level=ERROR")
		require.Error(t, (*ganbauth.Kit)(nil).KeepAlive(t.Context()))
		require.NoError(t, kit.Shutdown(t.Context()))
	})
}

// Each token is refreshed once, whatever the store lists.
func TestKeepAliveEachTokenOnce(t *testing.T) {
	for name, store := range map[string]func(ganbauth.TokenStore) ganbauth.TokenStore{
		"pages": func(s ganbauth.TokenStore) ganbauth.TokenStore { return s },
		"a list": func(s ganbauth.TokenStore) ganbauth.TokenStore {
			return onlyLister{s, s.(ganbauth.ExpiryLister)}
		},
		"more than was asked for": func(s ganbauth.TokenStore) ganbauth.TokenStore { return listingAll{s.(listingStore)} },
	} {
		t.Run(name, func(t *testing.T) {
			inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
				memory := ganbauth.NewMemoryStore()
				for u := range 250 {
					connect(t, o.bank, memory, fmt.Sprint(u))
				}
				kit := backgroundKit(t, o.bank, store(memory), nil, tokenRate(5))
				time.Sleep(45 * time.Minute)
				n, err := kit.RefreshExpiring(t.Context(), 10*time.Minute)
				require.NoError(t, err)
				require.Zero(t, n)
				n, err = kit.RefreshExpiring(t.Context(), 3*time.Hour)
				require.NoError(t, err)
				require.Equal(t, 250, n)
				require.Equal(t, 250, o.bank.Refreshes())
			})
		})
	}
}

// Events say whose token it was.
func TestKeepAliveEvents(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		token := o.bank.Token()
		require.NoError(t, o.store.Save(t.Context(), "bank/a%2Fb%25/c%2F", token))
		time.Sleep(45 * time.Minute)
		var mu sync.Mutex
		var seen []string
		kit := o.kit(func(opts *ganbauth.Options) {
			opts.Observe = func(ctx context.Context, e ganbauth.Event) {
				key, connection, _ := ganbauth.KeyFromContext(ctx)
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, fmt.Sprint(e.Type, " ", key, " ", connection))
			}
		})
		n, err := kit.RefreshExpiring(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		synctest.Wait()
		require.Equal(t, []string{"token_refreshed a/b% c/"}, seen)
	})
}

// A million entries are read page by page.
func TestKeepAliveMillion(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		const tokens = 1_000_000
		million := &endlessIndex{TokenStore: ganbauth.NewMemoryStore(), n: tokens}
		kit := backgroundKit(t, o.bank, million, nil)
		before := heap()
		_, err := kit.RefreshExpiring(t.Context(), 24*time.Hour)
		require.NoError(t, err)
		grown := max(million.most-before, 0)
		t.Attr("measured", fmt.Sprintf("%d entries: %d pages of %d, the heap grows by %d kB at most", tokens, million.pages, million.limit, grown>>10))
		require.Equal(t, 100, million.limit)
		require.Less(t, grown, 1<<20)
	})
}

// pagingStore has pages of its own.
type pagingStore struct {
	*indexedStore
	page  func(after ganbauth.Expiry, limit int) []ganbauth.Expiry
	pages int
}

func (s *pagingStore) ExpiringAfter(_ context.Context, after ganbauth.Expiry, _ time.Time, limit int) ([]ganbauth.Expiry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages++; s.pages > 10_000 {
		panic("it asks for pages without end")
	}
	return slices.Clone(s.page(after, limit)), nil
}

// asked is how many pages the store has been asked for.
func (s *pagingStore) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pages
}

// engineStore is a store and a Locker in one that ends with its context, as those of the
// engines are.
type engineStore struct {
	*indexedStore
	ganbauth.Locker
}

func (engineStore) EndsWithContext() bool { return true }

// onlyLister is an ExpiryLister and no ExpiryPager.
type onlyLister struct {
	ganbauth.TokenStore
	ganbauth.ExpiryLister
}

// endlessIndex is a store whose index has many entries, of another kit's tokens.
type endlessIndex struct {
	ganbauth.TokenStore
	n, pages, limit int
	most            int
}

func (s *endlessIndex) ExpiringAfter(_ context.Context, after ganbauth.Expiry, _ time.Time, limit int) (page []ganbauth.Expiry, err error) {
	s.limit = limit
	if s.pages++; s.pages%1000 == 0 {
		s.most = max(s.most, heap())
	}
	first := 0
	if after.Key != "" {
		_, _ = fmt.Sscanf(after.Key, "corp/%d", &first)
		first++
	}
	for i := first; i < min(first+limit, s.n); i++ {
		page = append(page, ganbauth.Expiry{At: time.Now(), Key: fmt.Sprintf("corp/%07d", i)})
	}
	return page, nil
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
