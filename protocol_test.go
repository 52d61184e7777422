package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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

// callStore calls a hook before each call of a store of three methods.
type callStore struct {
	ganbauth.TokenStore
	before func(method, key string)
}

func (s callStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	s.before("Load", key)
	return s.TokenStore.Load(ctx, key)
}

func (s callStore) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	s.before("Save", key)
	return s.TokenStore.Save(ctx, key, t)
}

func (s callStore) Delete(ctx context.Context, key string) error {
	s.before("Delete", key)
	return s.TokenStore.Delete(ctx, key)
}

// pairs runs a test on two processes that share a store, in a bubble in which the token of
// user u has expired.
func pairs(t *testing.T, locker ganbauth.Locker, test func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore, one, two *ganbauth.Kit)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		store := ganbauth.NewMemoryStore()
		connect(t, bank, store, "u")
		time.Sleep(61 * time.Minute)
		test(t, bank, store, backgroundKit(t, bank, store, locker), backgroundKit(t, bank, store, locker))
	})
}

// B3: the token that was judged dead is deleted, and no other.
func TestB3VerdictMeetsAnotherToken(t *testing.T) {
	pairs(t, &keyLocker{held: map[string]bool{}}, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore, one, _ *ganbauth.Kit) {
		newer := bank.Token()
		invalid := ganbtest.InvalidGrant
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Status: invalid.Status, Header: invalid.Header, Body: invalid.Body, Delay: time.Second}, 1)
		time.AfterFunc(500*time.Millisecond, func() { _ = store.Save(context.Background(), "bank/u", newer) })
		token, err := one.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Equal(t, newer.AccessToken, token.AccessToken)
	})
}

// B3: a dead token is a mark, so that a winner whose save is late finds its place.
func TestB3LateWinnerFindsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		memory := ganbauth.NewMemoryStore()
		connect(t, bank, memory, "u")
		time.Sleep(61 * time.Minute)
		var stopped atomic.Bool
		winner := backgroundKit(t, bank, swapStore{memory, func() error {
			if stopped.Load() {
				return errors.New("the store takes no writes from here")
			}
			return nil
		}}, nil)
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) { stopped.Store(true) }}, 1)
		won, err := winner.Token(t.Context(), "u")
		require.NoError(t, err)

		loser := backgroundKit(t, bank, memory, nil)
		_, err = loser.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired, "all that this process can know")
		mark, err := memory.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		require.Empty(t, mark.AccessToken)
		require.NotEmpty(t, mark.Judged)

		stopped.Store(false)
		time.Sleep(10 * time.Second)
		for _, kit := range []*ganbauth.Kit{winner, loser} {
			token, err := kit.Token(t.Context(), "u")
			require.NoError(t, err)
			require.Equal(t, won.AccessToken, token.AccessToken)
		}
	})
}

// swapStore is a store that compares, and whose swaps may fail before their effect.
type swapStore struct {
	ganbauth.TokenStore
	fails func() error
}

func (s swapStore) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	if err := s.fails(); err != nil {
		return err
	}
	return s.TokenStore.(ganbauth.Swapper).Swap(ctx, key, old, new)
}

// B5: a logout that has answered wins over a login whose code is still at the bank.
func TestB5LogoutDuringACallback(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{
		Store: ganbauth.NewMemoryStore(), Key: keyIs("u"),
	}}, func(t *testing.T, a *app) {
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(5*time.Second), 1)
		var answer *http.Response
		var wg sync.WaitGroup
		wg.Go(func() { answer = b.get(callback) })
		time.Sleep(time.Second)
		start := time.Now()
		require.Equal(t, 303, a.browser().post("/bank/logout").StatusCode)
		require.Zero(t, time.Since(start), "it does not wait for the bank")
		wg.Wait()
		require.Equal(t, 401, answer.StatusCode)
		require.False(t, b.connected())
	})
}

// B5: a logout that comes before the answer to a login's first write wins, as it is later than
// that write. One that comes before the write does not.
func TestB5LogoutBesideALoginsFirstWrite(t *testing.T) {
	for _, connected := range []bool{false, true} {
		for _, after := range []bool{false, true} {
			store := &stepping{TokenStore: ganbauth.NewMemoryStore()}
			inBubble(t, setup{options: ganbauth.Options{
				Store: store, Key: keyIs("u"),
			}}, func(t *testing.T, a *app) {
				beside := func(do func()) {
					require.NoError(t, a.kit.Disconnect(t.Context(), "u"))
					if connected {
						require.NoError(t, a.kit.SetToken(t.Context(), "u", a.bank.Token()))
					}
					first := int(store.swaps.Load()) + 1
					hook := &store.before
					if after {
						hook = &store.after
					}
					hook.set(func(n int) error {
						if n == first {
							return a.kit.Disconnect(t.Context(), "u")
						}
						return nil
					})
					do()
					hook.set(nil)
				}
				b := a.browser()
				callback := b.callbackURL("/bank/login")
				beside(func() { require.Equal(t, !after, b.get(callback).StatusCode == 303) })
				require.Equal(t, !after, b.connected())
				beside(func() {
					err := a.kit.SetToken(t.Context(), "u", a.bank.Token())
					require.Equal(t, after, errors.Is(err, ganbauth.ErrUnavailable), err)
				})
				require.Equal(t, !after, b.connected())
			})
		}
	}
}

// B5: a session's token that nobody can reach does not stay in the store.
func TestB5TokenThatNoSessionHas(t *testing.T) {
	for path, s := range map[string]setup{"/bank/login": {}, "/p?client=a": office(false)} {
		t.Run(path, func(t *testing.T) {
			inBubble(t, s, func(t *testing.T, a *app) {
				b := a.browser()
				callback := b.callbackURL(path)
				a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(5*time.Second), 1)
				ctx, leave := context.WithTimeout(t.Context(), time.Second)
				defer leave()
				r := mustRequest("GET", callback).WithContext(ctx)
				r.Header = navigate.Clone()
				for _, c := range b.cookies() {
					r.AddCookie(c)
				}
				_, _ = b.client.Transport.RoundTrip(r)
				time.Sleep(10 * time.Second)
				require.Equal(t, 1, tokens(t, a), "a reload would get it")
				time.Sleep(10 * time.Minute)
				require.Zero(t, tokens(t, a))
				time.Sleep(time.Hour)
				require.Zero(t, records(t, a), "marks end, too")
			})
		})
	}
}

// The mark of a login that has failed is about to end when the next one begins: it lasts
// for as long as that one takes.
func TestMarkNearItsEnd(t *testing.T) {
	user := keyIs("u")
	inBubble(t, setup{options: ganbauth.Options{Key: user}}, func(t *testing.T, a *app) {
		b := a.browser()
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
		b.get(b.callbackURL("/bank/login"))
		time.Sleep(20*time.Minute - time.Second)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(3*time.Second), 1)
		b.login()
		require.True(t, b.connected())
	})
}

// B7: every key of a store begins with the kit's name, and says whose it is whatever it
// contains.
func TestB7StoreKeys(t *testing.T) {
	var mu sync.Mutex
	keys := map[string]bool{}
	for _, name := range []string{"", "corp"} {
		for _, keyed := range []bool{false, true} {
			store := callStore{ganbauth.NewMemoryStore(), func(_, key string) {
				mu.Lock()
				defer mu.Unlock()
				keys[key] = true
			}}
			s := setup{options: ganbauth.Options{Name: name, Store: store}}
			if keyed {
				s.options.Key = func(*http.Request) (string, error) { return "a/b%", nil }
			}
			newApp(t, s).browser().login()
			for key := range keys {
				require.True(t, strings.HasPrefix(key, cmpOr(name, "bank")+"/"), key)
			}
			require.Equal(t, keyed, keys[cmpOr(name, "bank")+"/a%2Fb%25"])
			clear(keys)
		}
	}
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// B8: an outcome that was decided before a login is not told to who asks after it.
func TestB8OutcomeIsCheckedAgainstTheRecord(t *testing.T) {
	pairs(t, nil, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore, one, two *ganbauth.Kit) {
		newer, invalid := bank.Token(), ganbtest.InvalidGrant
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Status: invalid.Status, Header: invalid.Header, Body: invalid.Body, Delay: time.Second}, 1)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				token, err := one.Token(t.Context(), "u")
				if i >= 10 && (err != nil || token.AccessToken != newer.AccessToken) {
					t.Errorf("request %d, after the login: %v", i, err)
				}
			})
		}
		time.Sleep(950 * time.Millisecond)
		if err := two.SetToken(t.Context(), "u", newer); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// C5: a token without a refresh token that the bank's API refuses is over.
func TestC5RefusedWithoutRefreshToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, log := ganbtest.NewServer(ganbtest.Options{InProcess: true, Lifetime: 30 * 24 * time.Hour}), &lockedBuffer{}
		kit := backgroundKit(t, bank, ganbauth.NewMemoryStore(), nil, func(o *ganbauth.Options) { o.Logger = textLogger(log) })
		get := func() (int, error) {
			resp, err := kit.ClientFor("u").Get(bank.APIBase() + "/accounts")
			if err != nil {
				return 0, err
			}
			resp.Body.Close()
			return resp.StatusCode, nil
		}
		set := func() {
			token := bank.Token()
			token.RefreshToken = ""
			require.NoError(t, kit.SetToken(t.Context(), "u", token))
		}
		set()
		bank.RevokeGrants()
		status, err := get()
		require.NoError(t, err)
		require.Equal(t, 401, status)
		_, err = kit.Token(t.Context(), "u")
		require.NoError(t, err, "a token less than a minute old is not given up for one refusal")
		time.Sleep(5 * time.Minute)
		status, err = get()
		require.NoError(t, err)
		require.Equal(t, 401, status, "the bank's own answer")
		_, err = kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Equal(t, 1, strings.Count(log.String(), "token_lost"))
		set()
		status, err = get()
		require.NoError(t, err)
		require.Equal(t, 200, status)
	})
}

// C6: a sealed token that no key opens is an operator's fault, and nobody's logout.
func TestC6NoKeyOpens(t *testing.T) {
	for name, other := range map[string][][]byte{"another key": {key(2)}, "no key": nil} {
		t.Run(name, func(t *testing.T) {
			store := ganbauth.NewMemoryStore()
			before := newApp(t, setup{options: ganbauth.Options{
				Store: store, EncryptionKeys: [][]byte{key(1)}, Key: keyIs("u"),
			}})
			before.browser().login()
			a := newApp(t, setup{options: ganbauth.Options{
				Store: store, EncryptionKeys: other, Key: keyIs("u"),
			}})
			require.Equal(t, 503, a.browser().get("/p").StatusCode, "no redirect to the bank")
			require.Contains(t, a.log.String(), "level=ERROR")
			require.Contains(t, a.log.String(), "no encryption key opens the record")
			require.NotContains(t, a.eventTypes(), ganbauth.EventTokenLost)
			require.True(t, before.browser().connected())
			require.Equal(t, 303, a.browser().post("/bank/logout").StatusCode, "a logout works all the same")
			require.False(t, before.browser().connected())
		})
	}
}

// versionStore has records that this version of the kit cannot read.
type versionStore struct{ ganbauth.TokenStore }

func (s versionStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if _, err := s.TokenStore.Load(ctx, key); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("a store: load: %w", new(ganbauth.Token).UnmarshalBinary([]byte{99}))
}

// C6: a logout deletes a record of another version, too, after a release was taken back for
// example.
func TestC6AnotherVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store, log := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore(), &lockedBuffer{}
		kit := backgroundKit(t, bank, versionStore{store}, nil, func(o *ganbauth.Options) { o.Logger = textLogger(log) })
		connect(t, bank, store, "u")
		_, err := kit.Token(t.Context(), "u")
		require.Equal(t, 503, ganbauth.StatusCode(err))
		require.Contains(t, log.String(), "level=ERROR")
		begun := time.Now()
		require.NoError(t, kit.Disconnect(t.Context(), "u"))
		require.Zero(t, time.Since(begun))
		_, err = kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	})
}

// C7: the kit sees that another process refreshes the same tokens, and warns, once.
func TestC7WarnsOfARace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store, log := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore(), &lockedBuffer{}
		var kits [2]*ganbauth.Kit
		for i := range kits {
			kits[i] = backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.Logger = textLogger(log) })
		}
		for i := range 5 {
			require.NoError(t, kits[0].SetToken(t.Context(), fmt.Sprint(i), bank.Token()))
		}
		time.Sleep(61 * time.Minute)
		bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(100*time.Millisecond), -1)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() { _, _ = kits[i%2].Token(t.Context(), fmt.Sprint(i/2)) })
		}
		wg.Wait()
		bank.Heal()
		n := strings.Count(log.String(), "set Options.Locker")
		require.True(t, n == 1 || n == 2, "once a process, not %d times", n)
		for i := range 5 {
			_, err := kits[0].Token(t.Context(), fmt.Sprint(i))
			require.NoError(t, err)
		}
	})
}

// G2: an Observe that takes long, or calls the kit, holds up nobody.
func TestG2SlowObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		store := ganbauth.NewMemoryStore()
		var kit *ganbauth.Kit
		kit = backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) {
			o.Observe = func(ctx context.Context, _ ganbauth.Event) {
				_, _ = kit.Token(ctx, "u")
				time.Sleep(time.Minute)
				_ = kit.Disconnect(ctx, "other")
			}
		})
		connect(t, bank, store, "u")
		time.Sleep(61 * time.Minute)
		start := time.Now()
		_, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.LessOrEqual(t, time.Since(start), 100*time.Millisecond)
		time.Sleep(2 * time.Minute)
	})
}

// G2: neither does a slow unlock of the lock that a store of three methods needs for each
// write.
func TestG2SlowUnlockOfAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		kit := backgroundKit(t, bank, callStore{ganbauth.NewMemoryStore(), func(string, string) {}}, lockerFunc(func(context.Context, string) (func(), error) {
			return func() { time.Sleep(time.Hour) }, nil
		}))
		start := time.Now()
		require.NoError(t, kit.SetToken(t.Context(), "u", bank.Token()))
		require.NoError(t, kit.Disconnect(t.Context(), "u"))
		require.LessOrEqual(t, time.Since(start), time.Second)
		time.Sleep(time.Hour)
	})
}

// G2: a slow unlock does not stand between a saved token and those who wait for it.
func TestG2SlowUnlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		store := ganbauth.NewMemoryStore()
		kit := backgroundKit(t, bank, store, lockerFunc(func(context.Context, string) (func(), error) {
			return func() { time.Sleep(time.Minute) }, nil
		}))
		connect(t, bank, store, "u")
		time.Sleep(61 * time.Minute)
		start := time.Now()
		_, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.LessOrEqual(t, time.Since(start), 100*time.Millisecond)
		require.NoError(t, kit.Shutdown(t.Context()))
		require.GreaterOrEqual(t, time.Since(start), time.Minute, "Shutdown waits for it")
	})
}

type lockerFunc func(context.Context, string) (func(), error)

func (f lockerFunc) Lock(ctx context.Context, key string) (func(), error) { return f(ctx, key) }

// G3: a logout waits neither for a bank that hangs nor for a Locker that is away.
func TestG3LogoutWaitsForNobody(t *testing.T) {
	for name, locker := range map[string]ganbauth.Locker{
		"the bank hangs": &keyLocker{held: map[string]bool{}},
		"the Locker is away": lockerFunc(func(context.Context, string) (func(), error) {
			return nil, errors.New("connection refused")
		}),
		"the Locker hangs": lockerFunc(func(ctx context.Context, _ string) (func(), error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
				store := callStore{ganbauth.NewMemoryStore(), func(string, string) {}}
				connect(t, bank, store, "u")
				time.Sleep(61 * time.Minute)
				kit := backgroundKit(t, bank, store, locker)
				bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Hour), -1)
				go func() { _, _ = kit.Token(t.Context(), "u") }()
				synctest.Wait()
				start := time.Now()
				require.NoError(t, kit.Disconnect(t.Context(), "u"))
				require.Less(t, time.Since(start), 10*time.Second)
				if name == "the Locker is away" {
					require.GreaterOrEqual(t, time.Since(start), 3*time.Second, "it might come back")
					require.Less(t, time.Since(start), 4*time.Second)
				}
				time.Sleep(2 * time.Minute)
				_, err := kit.Token(t.Context(), "u")
				require.ErrorIs(t, err, ganbauth.ErrLoginRequired, "and it stays")
			})
		})
	}
}

// H6: an application's own logout calls Forget, and the session's next user has no bank
// account.
func TestH6Forget(t *testing.T) {
	a := newApp(t, setup{})
	a.mux.HandleFunc("/own-logout", func(w http.ResponseWriter, r *http.Request) {
		if err := a.kit.Forget(w, r); err != nil {
			t.Error(err)
		}
		if err := a.sessions.RenewToken(r.Context()); err != nil {
			t.Error(err)
		}
	})
	b := a.browser()
	require.Equal(t, 200, b.post("/own-logout").StatusCode, "nobody is connected")
	b.login()
	begun := b.callbackURL("/bank/login")
	require.Equal(t, 200, b.post("/own-logout").StatusCode)
	require.False(t, b.connected())
	require.Zero(t, tokens(t, a))
	require.Equal(t, 400, b.get(begun).StatusCode, "a login that was under way is over, too")
	require.ErrorContains(t, (*ganbauth.Kit)(nil).Forget(nil, nil), "New")
	status, err := (*ganbauth.Kit)(nil).Status(nil)
	require.ErrorContains(t, err, "New")
	require.NotNil(t, status.Scopes, "JSON says [], not null")
}

// A record in clear below a sealed store that compares does not stand in the way of a
// login or a logout, also if a login that began on it has failed.
func TestSealedStoreMeetsARecordInClear(t *testing.T) {
	inBubble(t, setup{options: ganbauth.Options{
		Store: ganbauth.NewMemoryStore(), EncryptionKeys: [][]byte{key(1)}, Key: keyIs("u"),
	}}, func(t *testing.T, a *app) {
		inClear := backgroundKit(t, a.bank, a.store(), nil)
		for range 2 {
			require.NoError(t, inClear.SetToken(t.Context(), "u", a.bank.Token()))
			b := a.browser()
			require.False(t, b.connected())
			callback := b.callbackURL("/bank/login")
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
			require.Equal(t, 502, b.get(callback).StatusCode)
			b.login()
			require.Equal(t, 303, b.post("/bank/logout").StatusCode)
			require.False(t, b.connected())
		}
	})
}

// A4: a login needs no Locker, so none that is away or hangs costs a code.
func TestA4LoginNeedsNoLocker(t *testing.T) {
	for name, locker := range map[string]ganbauth.Locker{
		"away": lockerFunc(func(context.Context, string) (func(), error) { return nil, errors.New("connection refused") }),
		"hangs": lockerFunc(func(ctx context.Context, _ string) (func(), error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}),
		"panics": lockerFunc(func(context.Context, string) (func(), error) { panic("locker") }),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, setup{options: ganbauth.Options{Store: ganbauth.NewMemoryStore(), Locker: locker}}, func(t *testing.T, a *app) {
				start, b := time.Now(), a.browser()
				b.login()
				require.True(t, b.connected())
				require.Equal(t, 303, b.post("/bank/logout").StatusCode)
				require.Zero(t, time.Since(start))
			})
		})
	}
}

// B2: a logout that stands still, between its look and its write, is a logout all the
// same when it answers, whoever has refreshed or connected meanwhile.
func TestB2LogoutThatStoodStill(t *testing.T) {
	for name, locker := range map[string]ganbauth.Locker{"with a Locker": &keyLocker{held: map[string]bool{}}, "without": nil} {
		t.Run(name, func(t *testing.T) {
			pairs(t, locker, func(t *testing.T, bank *ganbtest.Server, store ganbauth.TokenStore, other, _ *ganbauth.Kit) {
				still := make(chan bool)
				var once sync.Once
				slow := backgroundKit(t, bank, swapStore{store, func() error {
					once.Do(func() { <-still })
					return nil
				}}, locker)
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := slow.Disconnect(t.Context(), "u"); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
				token, err := other.Token(t.Context(), "u")
				require.NoError(t, err)
				require.True(t, token.Valid(), "refreshed meanwhile")
				close(still)
				wg.Wait()
				for _, kit := range []*ganbauth.Kit{slow, other} {
					_, err := kit.Token(t.Context(), "u")
					require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
				}
			})
		})
	}
}

// B4: without a Locker a refresh at one process neither overwrites a newer login at
// another, nor brings back what a logout there has deleted.
func TestB4RefreshMeetsAnotherProcess(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, bank *ganbtest.Server, other *ganbauth.Kit) (want string){
		"a login": func(t *testing.T, bank *ganbtest.Server, other *ganbauth.Kit) string {
			newer := bank.Token()
			require.NoError(t, other.SetToken(t.Context(), "u", newer))
			return newer.AccessToken
		},
		"a logout": func(t *testing.T, _ *ganbtest.Server, other *ganbauth.Kit) string {
			require.NoError(t, other.Disconnect(t.Context(), "u"))
			return ""
		},
		"a logout and a login": func(t *testing.T, bank *ganbtest.Server, other *ganbauth.Kit) string {
			require.NoError(t, other.Disconnect(t.Context(), "u"))
			newer := bank.Token()
			require.NoError(t, other.SetToken(t.Context(), "u", newer))
			return newer.AccessToken
		},
	} {
		t.Run(name, func(t *testing.T) {
			pairs(t, nil, func(t *testing.T, bank *ganbtest.Server, _ ganbauth.TokenStore, one, two *ganbauth.Kit) {
				bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Second), 1)
				var wg sync.WaitGroup
				var served *ganbauth.Token
				wg.Go(func() { served, _ = one.Token(t.Context(), "u") })
				time.Sleep(500 * time.Millisecond) // the refresh is at the bank
				want := change(t, bank, two)
				wg.Wait()
				require.Equal(t, 1, bank.Refreshes())
				if want == "" {
					require.Nil(t, served)
				} else {
					require.Equal(t, want, served.AccessToken)
				}
				for _, kit := range []*ganbauth.Kit{one, two} {
					token, err := kit.Token(t.Context(), "u")
					if want == "" {
						require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
						continue
					}
					require.NoError(t, err)
					require.Equal(t, want, token.AccessToken)
				}
			})
		})
	}
}

// I5: what a browser or a job has begun goes on when it leaves: a logout logs out, and a
// token that is being written is stored, at a store that ends with its context.
func TestI5CallersThatLeave(t *testing.T) {
	leaving := func(t *testing.T, method string, skip int, call func(ctx context.Context, a *app, b *browser)) (connected bool) {
		ctx, leave := context.WithCancel(t.Context())
		var armed atomic.Bool
		s := setup{options: ganbauth.Options{Key: keyIs("u")}}
		s.options.Store = obedientStore{callStore{ganbauth.NewMemoryStore(), func(called, _ string) {
			if called == method && armed.Load() {
				if skip--; skip < 0 {
					leave()
				}
			}
		}}}
		inBubble(t, s, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			armed.Store(true)
			call(ctx, a, b)
			require.Error(t, ctx.Err(), "it has left")
			time.Sleep(time.Second)
			connected = b.connected()
		})
		return connected
	}
	for _, method := range []string{"Load", "Delete"} {
		require.False(t, leaving(t, method, 0, func(ctx context.Context, _ *app, b *browser) {
			r := mustRequest("POST", appURL+"/bank/logout").WithContext(ctx)
			r.Header = with(navigate, "Sec-Fetch-Site", "same-origin", "Cookie", b.cookieHeader())
			_, _ = b.client.Transport.RoundTrip(r)
		}), "a logout, in %s", method)
		require.False(t, leaving(t, method, 0, func(ctx context.Context, a *app, _ *browser) {
			require.NoError(t, a.kit.Disconnect(ctx, "u"))
		}), "Disconnect, in %s", method)
	}
	require.True(t, leaving(t, "Save", 1, func(ctx context.Context, a *app, _ *browser) {
		require.NoError(t, a.kit.Disconnect(t.Context(), "u"))
		require.ErrorIs(t, a.kit.SetToken(ctx, "u", a.bank.Token()), context.Canceled, "nobody knows yet")
	}), "SetToken, in the write of the token, behind that of the mark")
}

// obedientStore does nothing once its context has ended.
type obedientStore struct{ callStore }

func (s obedientStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	t, err := s.callStore.Load(ctx, key)
	return t, cmpErr(ctx.Err(), err)
}

func (s obedientStore) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	if s.before("Save", key); ctx.Err() != nil {
		return ctx.Err()
	}
	return s.TokenStore.Save(ctx, key, t)
}

func (s obedientStore) Delete(ctx context.Context, key string) error {
	if s.before("Delete", key); ctx.Err() != nil {
		return ctx.Err()
	}
	return s.TokenStore.Delete(ctx, key)
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
