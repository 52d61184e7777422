package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
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

func TestRefreshExpiring(t *testing.T) {
	prepare := func(t *testing.T, test func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore)) {
		synctest.Test(t, func(t *testing.T) {
			bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true}), ganbauth.NewMemoryStore()
			for u := range 10 { // one a minute
				connect(t, bank, store, fmt.Sprint(u))
				time.Sleep(time.Minute)
			}
			test(t, bank, store)
		})
	}
	t.Run("what is due, one a second, soonest first", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			n, err := kit.RefreshExpiring(t.Context(), 5*time.Minute)
			require.NoError(t, err)
			require.Zero(t, n)
			time.Sleep(50 * time.Minute) // the first ends now
			start := time.Now()
			n, err = kit.RefreshExpiring(t.Context(), 5*time.Minute)
			require.NoError(t, err)
			require.Equal(t, 5, n)
			require.Equal(t, 5, bank.Refreshes())
			require.Equal(t, 5*time.Second, time.Since(start))
			n, err = kit.RefreshExpiring(t.Context(), 4*time.Minute)
			require.NoError(t, err)
			require.Zero(t, n, "begun again, there is nothing to do")
			_, err = kit.Token(t.Context(), "0")
			require.NoError(t, err)
			require.Equal(t, 5, bank.Refreshes())
		})
	})
	t.Run("users who log out as their turn comes hold up nobody", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), &secondLook{TokenStore: ganbauth.NewMemoryStore(), looks: map[string]int{}}
			for u := range 20 {
				connect(t, bank, store, fmt.Sprint(u))
			}
			clear(store.looks)
			store.leaves = true
			n, err := backgroundKit(t, bank, store, nil).RefreshExpiring(t.Context(), 2*time.Hour)
			require.NoError(t, err)
			require.Zero(t, n)
			require.Zero(t, bank.Refreshes())
		})
	})
	t.Run("users who have to connect again hold up nobody", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 4)
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 6, n)
		})
	})
	t.Run("a bank that is away is left alone", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 2)
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 8, n)
			bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
			time.Sleep(45 * time.Minute)
			before, begun := bank.Refreshes(), time.Now()
			n, err = kit.RefreshExpiring(t.Context(), time.Hour)
			require.Equal(t, 503, ganbauth.StatusCode(err))
			require.Zero(t, n)
			require.Equal(t, 3, bank.Refreshes()-before)
			require.Equal(t, 2*time.Second, time.Since(begun), "and the error is told at once")
		})
	})
	t.Run("a bank that fails now and then is not away", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			for range 3 {
				bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 2)
				bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{}, 1)
			}
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 4, n)
		})
	})
	t.Run("what is listed needlessly takes no time", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, listingAll{store.(listingStore)}, nil)
			start := time.Now()
			n, err := kit.RefreshExpiring(t.Context(), time.Minute)
			require.NoError(t, err)
			require.Zero(t, n)
			require.Zero(t, time.Since(start))
		})
	})
	t.Run("it stops with its context", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, store, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
			defer cancel()
			n, err := kit.RefreshExpiring(ctx, time.Hour)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 3, n)
		})
	})
	t.Run("one process at a time", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			locker := &keyLocker{held: map[string]bool{}}
			var wg sync.WaitGroup
			total := make([]int, 2)
			for i := range total {
				kit := backgroundKit(t, bank, store, locker)
				wg.Go(func() {
					n, err := kit.RefreshExpiring(t.Context(), time.Hour)
					if err != nil {
						t.Error(err)
					}
					total[i] = n
				})
			}
			wg.Wait()
			require.ElementsMatch(t, []int{0, 10}, total)
			locker.err = errors.New("no connection")
			_, err := backgroundKit(t, bank, store, locker).RefreshExpiring(t.Context(), time.Hour)
			require.ErrorIs(t, err, locker.err)
		})
	})
	t.Run("kits that share a store leave each other's tokens alone", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			require.NoError(t, store.Save(t.Context(), "corp/7", bank.Token()))
			kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.Name = "corp" })
			n, err := kit.RefreshExpiring(t.Context(), 2*time.Hour)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	})
	t.Run("a store that cannot list, and one that is away", func(t *testing.T) {
		prepare(t, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore) {
			kit := backgroundKit(t, bank, &brokenStore{TokenStore: store}, nil)
			n, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.ErrorContains(t, err, "RefreshExpiring needs a Store that is an ExpiryPager or an ExpiryLister")
			require.Zero(t, n)
			require.ErrorContains(t, kit.KeepAlive(t.Context()), "KeepAlive needs a Store that is an ExpiryPager or an ExpiryLister")
			_, err = backgroundKit(t, bank, unlistable{store}, nil).RefreshExpiring(t.Context(), time.Hour)
			require.ErrorIs(t, err, errUnlistable)
			_, err = (*ganbauth.Kit)(nil).RefreshExpiring(t.Context(), time.Hour)
			require.Error(t, err)
		})
	})
	t.Run("sealed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
			connect(t, bank, ganbauth.Seal(store, key(1)), "u")
			kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.EncryptionKeys = [][]byte{key(1)} })
			n, err := kit.RefreshExpiring(t.Context(), 2*time.Hour)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	})
}

// watchedStore is an indexedStore that notes what it is asked, and takes its time.
type watchedStore struct {
	*indexedStore
	slow  time.Duration // for each Load
	wrong func(key string) error
	list  func(after ganbauth.Expiry) ([]ganbauth.Expiry, error) // in place of the index

	mu    sync.Mutex
	loads []string
	after []ganbauth.Expiry
}

func (s *watchedStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	time.Sleep(s.slow)
	s.mu.Lock()
	s.loads = append(s.loads, key)
	s.mu.Unlock()
	if s.wrong != nil {
		if err := s.wrong(key); err != nil {
			return nil, err
		}
	}
	return s.indexedStore.Load(ctx, key)
}

func (s *watchedStore) ExpiringAfter(ctx context.Context, after ganbauth.Expiry, before time.Time, limit int) ([]ganbauth.Expiry, error) {
	s.mu.Lock()
	s.after = append(s.after, after)
	s.mu.Unlock()
	if s.list != nil {
		return s.list(after)
	}
	return s.indexedStore.ExpiringAfter(ctx, after, before, limit)
}

// seen returns what the store was asked since it was last asked for that.
func (s *watchedStore) seen() (loads []string, after []ganbauth.Expiry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	loads, after = s.loads, s.after
	s.loads, s.after = nil, nil
	return loads, after
}

// inWatchedOffice is inKeptOffice with a store that is watched.
func inWatchedOffice(t *testing.T, name string, bank ganbtest.Options, test func(t *testing.T, o *keptOffice, s *watchedStore)) {
	t.Run(name, func(t *testing.T) {
		inKeptOffice(t, bank, func(t *testing.T, o *keptOffice) { test(t, o, &watchedStore{indexedStore: o.store}) })
	})
}

func (o *keptOffice) kitOn(s ganbauth.TokenStore, change ...func(*ganbauth.Options)) *ganbauth.Kit {
	return o.kit(append(change, func(opts *ganbauth.Options) { opts.Store = s })...)
}

// shortPages has pages of seven, whatever it is asked for.
type shortPages struct{ *watchedStore }

func (s shortPages) ExpiringAfter(ctx context.Context, after ganbauth.Expiry, before time.Time, limit int) ([]ganbauth.Expiry, error) {
	return s.watchedStore.ExpiringAfter(ctx, after, before, min(limit, 7))
}

// How the index is read: from the front, page after page, and only as far as is needed.
func TestKeepAliveReads(t *testing.T) {
	inWatchedOffice(t, "an index that fails is an error", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		broken := errors.New("no index")
		o.connect(1, 0)
		s.list = func(ganbauth.Expiry) ([]ganbauth.Expiry, error) { return s.index, broken }
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Hour)
		require.ErrorIs(t, err, broken)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.ErrorContains(t, err, "list tokens")
	})
	inWatchedOffice(t, "a page that begins before its time is an error", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(200, time.Minute)
		s.list = func(after ganbauth.Expiry) ([]ganbauth.Expiry, error) {
			i, _ := o.store.find(after)
			i = max(i-50, 0)
			return o.store.index[i:min(i+100, 200)], nil
		}
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Minute)
		require.ErrorContains(t, err, "page")
	})
	inWatchedOffice(t, "a key that comes again, later, is not", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(200, time.Minute)
		for i := range 3 {
			s.index = append(s.index, ganbauth.Expiry{At: time.Now().Add(time.Hour), Key: fmt.Sprint("z", i)})
		}
		s.index[99].Key, s.index[199].Key = "bank/again", "bank/again"
		s.list = func(after ganbauth.Expiry) ([]ganbauth.Expiry, error) {
			return o.store.ExpiringAfter(t.Context(), after, time.Now().Add(2*time.Hour), 100)
		}
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Minute)
		require.NoError(t, err)
		_, after := s.seen()
		require.Len(t, after, 4, "the last page is empty")
	})
	inWatchedOffice(t, "short pages are read to the end", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(250, 0)
		time.Sleep(61 * time.Minute)
		n, err := o.kitOn(shortPages{s}).RefreshExpiring(t.Context(), 2*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 250, n)
	})
	for pages := 1; pages <= 5; pages++ {
		inWatchedOffice(t, fmt.Sprint("pages that go in a circle of ", pages, " are an error"), ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
			o.connect(pages, 0)
			at := time.Now().Add(time.Hour)
			s.list = func(after ganbauth.Expiry) ([]ganbauth.Expiry, error) {
				var last int
				_, _ = fmt.Sscanf(after.Key, "bank/%d", &last)
				return []ganbauth.Expiry{{At: at, Key: fmt.Sprint("bank/", (last+1)%pages)}}, nil
			}
			_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Minute)
			require.ErrorContains(t, err, "page")
			_, after := s.seen()
			require.LessOrEqual(t, len(after), 3*pages)
		})
	}
	inWatchedOffice(t, "a page of one", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(101, 0)
		n, err := o.kitOn(s, tokenRate(10)).RefreshExpiring(t.Context(), 2*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 101, n)
	})
	inWatchedOffice(t, "what is not due for long is read once", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(10, 0)
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(59 * time.Second)
		loads, _ := s.seen()
		require.Len(t, loads, 10)
		time.Sleep(27 * time.Minute)
		loads, after := s.seen()
		require.Empty(t, loads)
		require.Len(t, after, 2*27, "a look a minute, at what may be due and at what has come within a day")
		time.Sleep(5 * time.Minute)
		require.Equal(t, 10, o.bank.Refreshes())
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "tokens of a minute are looked for every three seconds", ganbtest.Options{Lifetime: time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(29*time.Second + 500*time.Millisecond)
		_, after := s.seen()
		require.Len(t, after, 2*10, "the first time at a page and what follows, then at what may be due and what has come within a day")
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "where there is nothing, once a minute", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(10*time.Minute + time.Second)
		_, after := s.seen()
		require.Len(t, after, 11)
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "a pass goes on while it is quick", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(250, 0)
		time.Sleep(45 * time.Minute)
		end := o.keepAlive(o.kitOn(s, tokenRate(20)))
		time.Sleep(13 * time.Second)
		_, after := s.seen()
		require.Equal(t, 250, o.bank.Refreshes())
		require.NotContains(t, after[1:], ganbauth.Expiry{})
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "and begins at the front after 30 seconds", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(250, 0)
		time.Sleep(45 * time.Minute)
		end := o.keepAlive(o.kitOn(s, tokenRate(3.28))) // 100 in 30.2 s
		time.Sleep(70 * time.Second)
		_, after := s.seen()
		require.Equal(t, make([]ganbauth.Expiry, 3), after)
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "where the last of a page is being refreshed, too", ganbtest.Options{Latency: 3 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(150, 0)
		time.Sleep(45 * time.Minute)
		s.slow = 400 * time.Millisecond
		last := s.index[99].Key
		s.wrong = func(key string) error {
			if key == last {
				return nil
			}
			return new(ganbauth.Token).UnmarshalBinary([]byte{99})
		}
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(45 * time.Second)
		_, after := s.seen()
		require.Equal(t, make([]ganbauth.Expiry, 2), after)
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "a store that is slow is read to its end", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(150, 0)
		time.Sleep(45 * time.Minute)
		s.slow = 400 * time.Millisecond
		first := map[string]bool{}
		for _, e := range s.index[:100] {
			first[e.Key] = true
		}
		s.wrong = func(key string) error {
			if first[key] {
				return new(ganbauth.Token).UnmarshalBinary([]byte{99})
			}
			return nil
		}
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(100 * time.Second)
		require.Equal(t, 50, o.bank.Refreshes())
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "it stops where its context ends", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(50, 0)
		s.slow = time.Second
		s.wrong = func(string) error { return new(ganbauth.Token).UnmarshalBinary([]byte{99}) }
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(4500*time.Millisecond, cancel)
		_, err := o.kitOn(s).RefreshExpiring(ctx, 2*time.Hour)
		require.ErrorIs(t, err, context.Canceled)
		time.Sleep(time.Minute)
		loads, _ := s.seen()
		require.Len(t, loads, 5)
	})
}

// A run that has asked the bank for something ends when the next may.
func TestRefreshExpiringKeepsThePace(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(1, 0)
		kit := o.kit(tokenRate(0.1))
		begun := time.Now()
		n, err := kit.RefreshExpiring(t.Context(), 2*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, 10*time.Second, time.Since(begun))

		time.Sleep(61 * time.Minute)
		_, err = kit.Token(t.Context(), "0")
		require.NoError(t, err)
		begun = time.Now()
		n, err = kit.RefreshExpiring(t.Context(), time.Second)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Zero(t, time.Since(begun), "one that has asked nothing does not wait")
	})
}

// What KeepAlive says, and when.
func TestKeepAliveLog(t *testing.T) {
	inWatchedOffice(t, "nothing, where all is well", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		first := o.keepAlive(o.kitOn(s, o.locked))
		time.Sleep(5 * time.Hour) // a few turns
		second := o.keepAlive(o.kitOn(s, o.locked))
		time.Sleep(2 * time.Minute)
		require.ErrorIs(t, first(), context.Canceled)
		require.ErrorIs(t, second(), context.Canceled)
		require.NotContains(t, o.log.String(), "level=ERROR")
		require.NotContains(t, o.log.String(), "level=WARN")
		require.NotContains(t, o.log.String(), "not every entry")
	})
	inWatchedOffice(t, "while a Locker fails, after pauses from a second to a minute", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		broken := errors.New("connection refused")
		end := o.keepAlive(o.kitOn(s, o.locked))
		for range 2 {
			time.Sleep(90 * time.Minute) // it was well, and its turn has ended
			o.locker.fail(broken)
			time.Sleep(90 * time.Minute)
			o.locker.fail(nil)
		}
		require.ErrorIs(t, end(), context.Canceled)
		pauses := regexp.MustCompile(`level=ERROR msg="ganbauth: tokens are not kept alive" .*error="?.*connection refused"? again_in=(\S+)`).FindAllStringSubmatch(o.log.String(), -1)
		var first []string
		for _, p := range pauses {
			first = append(first, p[1])
		}
		require.Equal(t, []string{"1s", "2s", "4s", "8s", "16s", "32s", "1m0s", "1m0s"}, first[:8])
		require.Equal(t, 2, strings.Count(strings.Join(first, " "), "1m0s 1s 2s")+1, "after it was well it begins anew")
	})
	inWatchedOffice(t, "while a store fails that was well for longer than a minute", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		var broken atomic.Bool
		s.list = func(ganbauth.Expiry) ([]ganbauth.Expiry, error) {
			if broken.Load() {
				return nil, errUnlistable
			}
			return nil, nil
		}
		end := o.keepAlive(o.kitOn(s))
		for range 3 {
			time.Sleep(10 * time.Minute)
			broken.Store(true)
			time.Sleep(100 * time.Second)
			broken.Store(false)
		}
		require.ErrorIs(t, end(), context.Canceled)
		require.Equal(t, 3, strings.Count(o.log.String(), "again_in=1s"), o.log.String())
		require.Equal(t, 3, strings.Count(o.log.String(), "again_in=2s"))
	})
	inWatchedOffice(t, "while only what is new cannot be listed", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		var broken atomic.Bool
		s.list = func(after ganbauth.Expiry) ([]ganbauth.Expiry, error) {
			switch {
			case broken.Load() && !after.At.IsZero():
				return nil, errUnlistable
			case broken.Load():
				return nil, nil
			}
			return o.store.ExpiringAfter(t.Context(), after, time.Now().Add(24*time.Hour), 100)
		}
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(10 * time.Minute) // it has seen what there is
		broken.Store(true)
		time.Sleep(10 * time.Minute)
		require.ErrorIs(t, end(), context.Canceled)
		require.Contains(t, o.log.String(), `msg="ganbauth: tokens are not kept alive"`)
	})
	inWatchedOffice(t, "while the bank is away, nothing of its own", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(20, 0)
		time.Sleep(45 * time.Minute)
		heal := o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(10 * time.Minute)
		require.NotContains(t, o.log.String(), "level=ERROR")
		require.LessOrEqual(t, o.bank.Refreshes(), 30)
		heal()
		before := o.bank.Refreshes()
		time.Sleep(5 * time.Minute)
		require.GreaterOrEqual(t, o.bank.Refreshes()-before, 18, "but for those that have just failed")
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "what cannot be kept alive, once an hour", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(150, 0)
		time.Sleep(45 * time.Minute)
		s.index = slices.Insert(s.index, 0, ganbauth.Expiry{Key: "bank/nobody"}, ganbauth.Expiry{Key: "bank/sealed"}, ganbauth.Expiry{Key: "bank/wrong"})
		s.wrong = func(key string) error {
			switch key {
			case "bank/sealed":
				return new(ganbauth.Token).UnmarshalBinary([]byte{99})
			case "bank/wrong":
				return errors.New("a bad disk")
			}
			return nil
		}
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(50 * time.Minute)
		var lines []string
		for line := range strings.Lines(o.log.String()) {
			if strings.Contains(line, "level=ERROR") {
				lines = append(lines, line)
			}
		}
		require.Len(t, lines, 1)
		require.Regexp(t, ` msg="ganbauth: not every entry of the store can be kept alive" without_token=1 unreadable=1 error=`, lines[0])
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "one row that cannot be read", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		corrupt := new(ganbauth.Token).UnmarshalBinary([]byte{99})
		s.wrong = func(string) error { return corrupt }
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), 2*time.Hour)
		require.ErrorIs(t, err, corrupt)
		require.ErrorContains(t, err, "not all tokens can be kept alive")
		require.Contains(t, o.log.String(), "without_token=0 unreadable=1")
	})
	inWatchedOffice(t, "entries without a token are not wrong", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		s.index = append(s.index, ganbauth.Expiry{Key: "bank/nobody"})
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Regexp(t, `level=INFO msg="ganbauth: not every entry of the store can be kept alive" without_token=1\n`, o.log.String())
	})
	inWatchedOffice(t, "RefreshExpiring warns of a rate that is too low", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(300, 0)
		time.Sleep(61 * time.Minute)
		_, err := o.kitOn(s, tokenRate(0.01)).RefreshExpiring(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Regexp(t, `level=WARN .* tokens=299 expire_within=1h0m0s needed_per_second=0.08 reached_per_second=0.01\n`, o.log.String())
	})
}

// KeepAlive warns of a rate that is too low when tokens have expired before their turn, and
// more expire than it refreshes.
func TestKeepAliveWarnsOfTheRate(t *testing.T) {
	refresh := func(t *testing.T, o *keptOffice, s *watchedStore, users int) string {
		o.connect(users, 0)
		time.Sleep(time.Until(o.bank.Token().ExpiresAt) + time.Second)
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Second)
		require.NoError(t, err)
		return o.log.String()
	}
	inWatchedOffice(t, "not in the first minute", ganbtest.Options{Lifetime: 10 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		require.NotContains(t, refresh(t, o, s, 60), "level=WARN")
	})
	inWatchedOffice(t, "then", ganbtest.Options{Lifetime: 10 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		require.Regexp(t, `level=WARN .* tokens=60 expire_within=10s needed_per_second=6 reached_per_second=1.02\n`, refresh(t, o, s, 61))
	})
	inWatchedOffice(t, "of all that it has in short pages", ganbtest.Options{Lifetime: 10 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(61, 0)
		time.Sleep(11 * time.Second)
		_, err := o.kitOn(shortPages{s}).RefreshExpiring(t.Context(), time.Second)
		require.NoError(t, err)
		require.Regexp(t, `level=WARN .* tokens=60 `, o.log.String())
	})
	inWatchedOffice(t, "not where it is just enough", ganbtest.Options{Lifetime: 1000 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		require.NotContains(t, refresh(t, o, s, 1001), "level=WARN")
	})
	inWatchedOffice(t, "not where they cannot be counted", ganbtest.Options{Lifetime: 10 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		pages := 0
		o.connect(150, 0)
		time.Sleep(11 * time.Second)
		before := time.Now()
		s.list = func(after ganbauth.Expiry) ([]ganbauth.Expiry, error) {
			switch pages++; pages {
			case 4:
				before = time.Now().Add(10 * time.Second)
			case 5:
				return nil, errUnlistable
			}
			return o.store.ExpiringAfter(t.Context(), after, before, 100)
		}
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Second)
		require.NoError(t, err)
		require.Equal(t, 5, pages, "three of the run, and two of the count")
		require.NotContains(t, o.log.String(), "level=WARN")
	})
	inWatchedOffice(t, "not of a token whose expiry is not known", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		kit := o.kitOn(s)
		for u := range 100 {
			token := o.bank.Token()
			token.ExpiresAt, token.IssuedAt = time.Time{}, time.Time{} // another SDK's
			require.NoError(t, kit.SetToken(t.Context(), fmt.Sprint(u), token))
		}
		end := o.keepAlive(kit)
		time.Sleep(4 * time.Minute)
		require.Equal(t, 100, o.bank.Refreshes())
		require.NotContains(t, o.log.String(), "level=WARN")
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "not after an outage of the bank, however late it is in a turn", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1000, 50*time.Minute)
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(3 * time.Hour)
		for outage := range 4 {
			heal := o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
			time.Sleep(100*time.Minute + time.Duration(outage)*15*time.Minute)
			require.Greater(t, s.lapsed(), 500)
			heal()
			time.Sleep(2 * time.Hour)
			require.Zero(t, s.lapsed())
		}
		require.NotContains(t, o.log.String(), "too few token requests")
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "not of another kit's tokens", ganbtest.Options{Lifetime: 10 * time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(61, 0)
		time.Sleep(11 * time.Minute)
		for u := range 1000 {
			require.NoError(t, s.Save(t.Context(), fmt.Sprint("other/", u), o.bank.Token("offline_access")))
		}
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(5 * time.Minute)
		require.NotContains(t, o.log.String(), "level=WARN")
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "once an hour", ganbtest.Options{Lifetime: 10 * time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(300, 0)
		time.Sleep(11 * time.Minute)
		end := o.keepAlive(o.kitOn(s, tokenRate(0.1)))
		time.Sleep(59 * time.Minute) // three pages
		require.Equal(t, 1, strings.Count(o.log.String(), "level=WARN"))
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "tokens that live long, by the day", ganbtest.Options{Lifetime: 30 * 24 * time.Hour}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(2000, 0)
		time.Sleep(31 * 24 * time.Hour)
		end := o.keepAlive(o.kitOn(s, tokenRate(0.01)))
		time.Sleep(3 * time.Hour)
		require.Regexp(t, `level=WARN .* tokens=1961 expire_within=24h0m0s needed_per_second=0.02 reached_per_second=0.01\n`, o.log.String())
		require.Equal(t, 2, strings.Count(o.log.String(), "level=WARN"))
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// Tokens that live for longer than the others, or shorter, are refreshed in time.
func TestKeepAliveMixedLifetimes(t *testing.T) {
	// save stores a token of that life, of which that much is left, and returns how long it
	// takes until it is refreshed.
	save := func(t *testing.T, o *keptOffice, s *watchedStore, life, left time.Duration) func() time.Duration {
		token := o.bank.Token()
		token.ExpiresAt = time.Now().Add(left).UTC()
		token.IssuedAt = token.ExpiresAt.Add(-life)
		require.NoError(t, s.Save(t.Context(), "bank/other", token))
		begun := time.Now()
		return func() time.Duration {
			for time.Since(begun) < left {
				time.Sleep(time.Second)
				now, err := s.indexedStore.Load(t.Context(), "bank/other")
				require.NoError(t, err)
				if now.AccessToken != token.AccessToken {
					break
				}
			}
			return time.Since(begun)
		}
	}
	const day = 24 * time.Hour
	for name, test := range map[string]struct{ others, life, left, due time.Duration }{
		"30 days beside hours":    {time.Hour, 30 * day, day + 5*time.Minute, 5 * time.Minute},
		"30 days, a while later":  {time.Hour, 30 * day, day + 80*time.Minute, 80 * time.Minute},
		"36 hours beside hours":   {time.Hour, 36 * time.Hour, 18*time.Hour + 5*time.Minute, 5 * time.Minute},
		"36 hours, since a day":   {time.Hour, 36 * time.Hour, day + 5*time.Minute, 6*time.Hour + 5*time.Minute},
		"hours beside minutes":    {time.Minute, time.Hour, time.Hour, 30 * time.Minute},
		"a minute beside 30 days": {30 * day, time.Minute, time.Minute, 30 * time.Second},
	} {
		inWatchedOffice(t, name, ganbtest.Options{Lifetime: test.others}, func(t *testing.T, o *keptOffice, s *watchedStore) {
			o.connect(20, 0)
			refreshed := save(t, o, s, test.life, test.left)
			end := o.keepAlive(o.kitOn(s))
			require.InDelta(t, test.due.Seconds(), refreshed().Seconds(), 65)
			require.ErrorIs(t, end(), context.Canceled)
		})
	}
	inWatchedOffice(t, "and the others are not read for it", ganbtest.Options{Lifetime: 30 * day}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		hour := o.bank.Token()
		hour.ExpiresAt = time.Now().Add(time.Hour).UTC()
		for u := range 20 {
			require.NoError(t, s.Save(t.Context(), fmt.Sprint("bank/", u), hour))
		}
		refreshed := save(t, o, s, 30*day, day+5*time.Minute)
		end := o.keepAlive(o.kitOn(s))
		refreshed()
		time.Sleep(20 * time.Minute)
		loads, _ := s.seen()
		require.Len(t, slices.DeleteFunc(loads, func(key string) bool { return key == "bank/other" }), 20)
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "one that fails is tried again", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		refreshed := save(t, o, s, 30*day, day+5*time.Minute)
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 2)
		end := o.keepAlive(o.kitOn(s))
		require.InDelta(t, 8*60, refreshed().Seconds(), 2*60)
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// A row that fails to load does not say that the store is away. After ten in a row, KeepAlive
// asks the store for its own record, which is not there.
func TestKeepAliveAsksWhetherTheStoreIsAway(t *testing.T) {
	for failing, asked := range map[int]int{9: 0, 10: 1, 19: 1, 20: 2, 25: 2} {
		inWatchedOffice(t, fmt.Sprint(failing), ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
			o.connect(failing, 0)
			broken := errors.New("a bad disk")
			s.wrong = func(key string) error {
				if key == "bank//keepalive" {
					return nil
				}
				return broken
			}
			_, err := o.kitOn(s).RefreshExpiring(t.Context(), 2*time.Hour)
			require.ErrorIs(t, err, broken)
			loads, _ := s.seen()
			require.Len(t, loads, failing+asked)
		})
	}
	inWatchedOffice(t, "not in a row", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(25, time.Minute)
		well := map[string]bool{s.index[9].Key: true, s.index[19].Key: true}
		broken := errors.New("a bad disk")
		s.wrong = func(key string) error {
			if well[key] {
				return nil
			}
			return broken
		}
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), 2*time.Hour)
		require.ErrorIs(t, err, broken)
		loads, _ := s.seen()
		require.NotContains(t, loads, "bank//keepalive")
	})
	inWatchedOffice(t, "a key that fails is left alone for a while", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		s.wrong = func(string) error { return errors.New("a bad disk") }
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(59 * time.Minute)
		loads, after := s.seen()
		require.GreaterOrEqual(t, len(loads), 5, "after 1, 2, 4, 8, 16 and 32 minutes, or up to a quarter less")
		require.LessOrEqual(t, len(loads), 7)
		require.GreaterOrEqual(t, len(after), 59)
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// A store that can be read and takes no writes is away. Not every key finds that out, and the
// bank is not asked.
func TestKeepAliveStoreTakesNoWrites(t *testing.T) {
	// readOnly is an office whose store has not taken the write of a record since all of the
	// tokens are due.
	readOnly := func(t *testing.T, users int, test func(t *testing.T, o *keptOffice, s *unwritable)) {
		inWatchedOffice(t, fmt.Sprint(users), ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
			o.connect(users, 0)
			time.Sleep(45 * time.Minute)
			test(t, o, &unwritable{watchedStore: s, all: true})
		})
	}
	for _, users := range []int{1, 9, 10, 1000} {
		readOnly(t, users, func(t *testing.T, o *keptOffice, s *unwritable) {
			n, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Hour)
			require.ErrorIs(t, err, errDiskFull)
			require.Zero(t, n)
			require.Zero(t, o.bank.Refreshes())
			require.LessOrEqual(t, strings.Count(o.log.String(), "refresh_failed"), 25)
			if users < 10 {
				require.ErrorContains(t, err, "not all tokens can be kept alive")
			}
		})
	}
	readOnly(t, 1000, func(t *testing.T, o *keptOffice, s *unwritable) {
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(time.Minute)
		require.LessOrEqual(t, strings.Count(o.log.String(), "refresh_failed"), 150)
		require.Contains(t, o.log.String(), `msg="ganbauth: tokens are not kept alive" error="ganbauth: change token: the disk is full"`)
		s.heal.Store(true)
		time.Sleep(2 * time.Minute)
		require.Greater(t, o.bank.Refreshes(), 50)
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// Which tokens KeepAlive refreshes.
func TestKeepAliveRefreshes(t *testing.T) {
	// due connects one user whose token is half over.
	due := func(o *keptOffice) {
		o.connect(1, 0)
		time.Sleep(31 * time.Minute)
	}
	inWatchedOffice(t, "none without a refresh token, whatever the bank does", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(3, 0)
		token := o.bank.Token()
		token.RefreshToken = ""
		require.NoError(t, s.Save(t.Context(), "bank/late", token))
		s.index = append(s.index, ganbauth.Expiry{At: token.ExpiresAt, Key: "bank/late"})
		kit := o.kitOn(s)
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, 3)
		_, err := kit.RefreshExpiring(t.Context(), 2*time.Hour)
		require.NoError(t, err, "three have failed, and the fourth needs no turn")
	})
	inWatchedOffice(t, "what ends a run goes before what one entry has", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(5, 0)
		time.Sleep(45 * time.Minute)
		corrupt := new(ganbauth.Token).UnmarshalBinary([]byte{99})
		first := s.index[0].Key
		s.wrong = func(key string) error {
			if key == first {
				return corrupt
			}
			return nil
		}
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Maintenance, -1)
		_, err := o.kitOn(s).RefreshExpiring(t.Context(), time.Hour)
		var refusal *ganbauth.TokenError
		require.ErrorAs(t, err, &refusal)
		require.NotErrorIs(t, err, corrupt)
	})
	inWatchedOffice(t, "none that cools down", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		time.Sleep(61 * time.Minute)
		kit := o.kitOn(s)
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		_, err := kit.Token(t.Context(), "0")
		require.Error(t, err)
		before := o.bank.Refreshes()
		_, err = kit.RefreshExpiring(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Equal(t, before, o.bank.Refreshes())
	})
	inWatchedOffice(t, "none that the store has not taken yet", ganbtest.Options{Lifetime: time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		stuck := &unwritable{watchedStore: s}
		kit := o.kitOn(stuck)
		end := o.keepAlive(kit)
		time.Sleep(80 * time.Second)
		require.Equal(t, 1, o.bank.Refreshes())
		require.NotContains(t, o.log.String(), "Locker", "it is nobody else's record that is there")
		stuck.heal.Store(true)
		time.Sleep(time.Minute)
		require.Greater(t, o.bank.Refreshes(), 1)
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "none that another process has refreshed", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		due(o)
		begun := time.Now()
		n, err := backgroundKit(t, o.bank, &changingStore{watchedStore: s, newer: o.bank.Token()}, nil).RefreshExpiring(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Zero(t, o.bank.Refreshes())
		require.Zero(t, time.Since(begun), "nothing was asked")
	})
	inWatchedOffice(t, "who connects again after a refusal", ganbtest.Options{Lifetime: time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(31 * time.Second)
		o.connect(1, 0)
		time.Sleep(34 * time.Second)
		require.Equal(t, 2, o.bank.Refreshes())
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "who fails, after pauses that grow", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		due(o)
		heal := o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, -1)
		end := o.keepAlive(o.kitOn(s))
		time.Sleep(59 * time.Minute)
		require.GreaterOrEqual(t, o.bank.Refreshes(), 5)
		require.LessOrEqual(t, o.bank.Refreshes(), 7)
		heal()
		time.Sleep(time.Hour)
		require.Zero(t, s.lapsed())
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "who was served fails for the first time again", ganbtest.Options{Lifetime: 4 * time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1, 0)
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 3) // after 2, 3, 5 minutes
		end := o.keepAlive(o.kitOn(s))
		for o.bank.Refreshes() < 4 {
			time.Sleep(time.Second)
		}
		o.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		o.watch(10 * time.Minute)
		require.Zero(t, o.sum)
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "tokens whose life is shorter from now on", ganbtest.Options{Lifetime: 30 * time.Second}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		token := o.bank.Token()
		token.ExpiresAt = token.IssuedAt.Add(time.Hour)
		require.NoError(t, s.Save(t.Context(), "bank/u", token))
		end := o.keepAlive(o.kitOn(s))
		for range 60 * 60 {
			time.Sleep(time.Second)
			require.Zero(t, s.lapsed())
		}
		require.ErrorIs(t, end(), context.Canceled)
	})
	inWatchedOffice(t, "each once, though they expire while it runs", ganbtest.Options{Lifetime: time.Minute}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(150, 0)
		n, err := o.kitOn(s).RefreshExpiring(t.Context(), 366*24*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 150, n)
	})
	inWatchedOffice(t, "many at once, in time and without a warning", ganbtest.Options{}, func(t *testing.T, o *keptOffice, s *watchedStore) {
		o.connect(1000, 0)
		end := o.keepAlive(o.kitOn(s))
		o.watch(50 * time.Minute)
		require.Zero(t, o.sum)
		require.NotContains(t, o.log.String(), "level=WARN")
		require.ErrorIs(t, end(), context.Canceled)
	})
}

// unwritable is a store that takes no change of a record until it heals.
type unwritable struct {
	*watchedStore
	all  bool // nor a record for itself
	heal atomic.Bool
}

var errDiskFull = errors.New("the disk is full")

func (s *unwritable) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	if !s.heal.Load() && (s.all || old.Fingerprint() != new.Fingerprint()) {
		return errDiskFull
	}
	return s.watchedStore.Swap(ctx, key, old, new)
}

// changingStore is a store where another process puts a newer token once one has been read.
type changingStore struct {
	*watchedStore
	newer *ganbauth.Token
	once  sync.Once
}

func (s *changingStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	t, err := s.watchedStore.Load(ctx, key)
	s.once.Do(func() { err = errors.Join(err, s.Save(ctx, key, s.newer)) })
	return t, err
}

// Shutdown ends every run and waits for its end, and none is remembered.
func TestShutdownEndsRuns(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		kit := o.kit()
		for range 3 {
			_, err := kit.RefreshExpiring(t.Context(), time.Hour)
			require.NoError(t, err)
		}
		require.Zero(t, ganbauth.RunsHeld(kit))
		var ended atomic.Int32
		for range 2 { // the second waits for the first
			go func() { _ = kit.KeepAlive(t.Context()); ended.Add(1) }()
		}
		synctest.Wait()
		require.Equal(t, 2, ganbauth.RunsHeld(kit))
		require.NoError(t, kit.Shutdown(t.Context()))
		synctest.Wait()
		require.EqualValues(t, 2, ended.Load())
		require.Zero(t, ganbauth.RunsHeld(kit))
	})
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(1, 0)
		slow := stubbornStore{engineStore{o.store, o.locker}}
		begun := time.Now()
		kit := backgroundKit(t, o.bank, slow, nil)
		go func() { _ = kit.KeepAlive(t.Context()) }()
		time.Sleep(time.Second)
		cut, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, kit.Shutdown(cut), context.DeadlineExceeded)
		require.NoError(t, kit.Shutdown(t.Context()))
		require.Equal(t, 10*time.Second, time.Since(begun))
	})
}

// stubbornStore takes its time, whatever becomes of the context.
type stubbornStore struct{ engineStore }

func (s stubbornStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	time.Sleep(10 * time.Second)
	return s.engineStore.Load(ctx, key)
}

// A Locker that fails just as its time ends is not another process.
func TestKeepAliveLockerFailsLate(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		broken := errors.New("connection refused")
		store := engineStore{o.store, lockerFunc(func(ctx context.Context, _ string) (func(), error) {
			<-ctx.Done()
			return nil, broken
		})}
		_, err := backgroundKit(t, o.bank, store, nil).RefreshExpiring(t.Context(), time.Hour)
		require.ErrorIs(t, err, broken)
	})
}

// KeepAlive goes on, and ends with its context, whatever becomes of an unlock: the lock of
// a turn ends by itself.
func TestKeepAliveUnlockHangs(t *testing.T) {
	inKeptOffice(t, ganbtest.Options{}, func(t *testing.T, o *keptOffice) {
		o.connect(1, 0)
		var turns atomic.Int32
		hang := make(chan struct{})
		kit := o.kit(func(opts *ganbauth.Options) {
			opts.Locker = lockerFunc(func(_ context.Context, name string) (func(), error) {
				if name != "bank//keepalive" || turns.Add(1) != 1 {
					return func() {}, nil
				}
				return func() { <-hang }, nil
			})
		})
		end := o.keepAlive(kit)
		o.watch(5 * time.Hour)
		require.Zero(t, o.sum)
		require.GreaterOrEqual(t, turns.Load(), int32(4))
		require.NoError(t, kit.Shutdown(t.Context()))
		require.ErrorIs(t, end(), context.Canceled)
		close(hang)
	})
}

var errUnlistable = errors.New("the store is away")

type unlistable struct{ ganbauth.TokenStore }

func (unlistable) Expiring(context.Context, time.Time) ([]string, error) { return nil, errUnlistable }

type listingStore interface {
	ganbauth.TokenStore
	ganbauth.ExpiryLister
}

// listingAll lists all keys, as an index that is behind may.
type listingAll struct{ listingStore }

func (s listingAll) Expiring(ctx context.Context, _ time.Time) ([]string, error) {
	return s.listingStore.Expiring(ctx, time.Now().Add(24*time.Hour))
}

// keyLocker is a Locker for one process that looks again every 10 ms.
type keyLocker struct {
	mu   sync.Mutex
	held map[string]bool
	err  error
}

// fail has Lock return err from now on.
func (l *keyLocker) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *keyLocker) Lock(ctx context.Context, key string) (func(), error) {
	for {
		l.mu.Lock()
		free, err := !l.held[key], l.err
		if free && err == nil {
			l.held[key] = true
		}
		l.mu.Unlock()
		switch {
		case err != nil:
			time.Sleep(10 * time.Millisecond) // a caller that tries without a pause gets somewhere
			return nil, err
		case free:
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, key)
			}, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// secondLook is a store whose tokens are gone when they are loaded for the second time.
type secondLook struct {
	ganbauth.TokenStore
	mu     sync.Mutex
	looks  map[string]int
	leaves bool
}

func (s *secondLook) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looks[key]++; s.leaves && s.looks[key] == 2 {
		if err := s.Delete(ctx, key); err != nil {
			return nil, err
		}
	}
	return s.TokenStore.Load(ctx, key)
}

func (s *secondLook) Expiring(ctx context.Context, before time.Time) ([]string, error) {
	return s.TokenStore.(ganbauth.ExpiryLister).Expiring(ctx, before)
}
