package ganbauth_test

import (
	"context"
	"errors"
	"regexp"
	"runtime"
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

// oneEngine is a store that is its own Locker, and whose lock brings the record.
type oneEngine struct {
	*stepping
	lockFails error
	meanwhile func() // while it waits for the lock
	locked    atomic.Int32
	taken     atomic.Int32
}

func (e *oneEngine) Lock(context.Context, string) (func(), error) {
	if e.lockFails != nil {
		return nil, e.lockFails
	}
	e.taken.Add(1)
	e.locked.Add(1)
	return func() { e.locked.Add(-1) }, nil
}

func (e *oneEngine) LockRecord(ctx context.Context, key string) (string, func(), error) {
	unlock, err := e.Lock(ctx, key)
	if err != nil {
		return "", nil, err
	}
	if e.meanwhile != nil {
		e.meanwhile()
	}
	t, err := e.Load(ctx, key)
	if errors.Is(err, ganbauth.ErrTokenNotFound) {
		return "", unlock, nil
	}
	return t.Fingerprint(), unlock, err
}

// Where the lock brings the record, it is the second look and the proof, in one round trip.
func TestLockThatBringsTheRecord(t *testing.T) {
	run := func(name string, test func(t *testing.T, bank *ganbtest.Server, e *oneEngine, kit *ganbauth.Kit)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
				e := &oneEngine{stepping: &stepping{TokenStore: ganbauth.NewMemoryStore()}}
				connect(t, bank, e, "u")
				time.Sleep(expired)
				test(t, bank, e, backgroundKit(t, bank, e, nil))
				synctest.Wait()
				require.Zero(t, e.locked.Load(), "unlocked")
			})
		})
	}
	run("it is the same", func(t *testing.T, bank *ganbtest.Server, e *oneEngine, kit *ganbauth.Kit) {
		_, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Equal(t, 1, bank.Refreshes())
		require.EqualValues(t, 1, e.taken.Load())
		require.EqualValues(t, 1, e.swaps.Load(), "that of the successor")
	})
	run("the store is given as the Locker, too", func(t *testing.T, bank *ganbtest.Server, e *oneEngine, _ *ganbauth.Kit) {
		_, err := backgroundKit(t, bank, e, e).Token(t.Context(), "u")
		require.NoError(t, err)
		require.EqualValues(t, 1, e.taken.Load())
		require.EqualValues(t, 1, e.swaps.Load(), "that of the successor")
	})
	run("it is another", func(t *testing.T, bank *ganbtest.Server, e *oneEngine, kit *ganbauth.Kit) {
		newer := bank.Token()
		e.meanwhile = func() { e.put(t, newer) }
		token, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Equal(t, newer.AccessToken, token.AccessToken)
		require.Zero(t, bank.Refreshes())
	})
	run("it is gone", func(t *testing.T, bank *ganbtest.Server, e *oneEngine, kit *ganbauth.Kit) {
		e.meanwhile = func() { _ = e.Delete(context.Background(), "bank/u") }
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Zero(t, bank.Refreshes())
	})
	run("it fails", func(t *testing.T, bank *ganbtest.Server, e *oneEngine, kit *ganbauth.Kit) {
		e.lockFails = errStep
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, errStep)
		require.Equal(t, 503, ganbauth.StatusCode(err))
		require.Zero(t, bank.Refreshes())
	})
}

// A Locker beside a store that compares: the proof is a swap below the lock.
func TestLockBesideAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		s, locker := &stepping{TokenStore: ganbauth.NewMemoryStore()}, &chanLocker{held: make(chan bool, 1)}
		connect(t, bank, s, "u")
		time.Sleep(expired)
		kit := backgroundKit(t, bank, s, locker)
		s.before.set(func(int) error {
			require.Len(t, locker.held, 1)
			return errStep
		})
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, errStep)
		require.Zero(t, bank.Refreshes())
		synctest.Wait()
		require.Empty(t, locker.held)
		require.EqualValues(t, 1, s.swaps.Load())
	})
}

// A store of three methods is compared below a short lock of its own, across processes,
// too.
func TestWriteLockIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		var mu sync.Mutex
		var names []string
		kit := backgroundKit(t, bank, callStore{ganbauth.NewMemoryStore(), func(string, string) {}},
			lockerFunc(func(_ context.Context, name string) (func(), error) {
				mu.Lock()
				defer mu.Unlock()
				names = append(names, name)
				return func() {}, nil
			}))
		require.NoError(t, kit.SetToken(t.Context(), "u", bank.Token()))
		require.NoError(t, kit.Disconnect(t.Context(), "u"))
		require.Equal(t, []string{"bank/u//write"}, slices.Compact(names))
		require.Len(t, names, 3)
	})
}

// The proof of a store of three methods without a Locker: a look that fails spends nothing.
func TestProbeLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, memory := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		connect(t, bank, memory, "u")
		time.Sleep(expired)
		broken := &brokenStore{TokenStore: memory}
		kit := backgroundKit(t, bank, callStore{broken, func(method, _ string) {
			if method == "Save" { // the probe has been written
				broken.set(errStep, nil, nil)
				time.AfterFunc(time.Millisecond, func() { broken.set(nil, nil, nil) })
			}
		}}, nil)
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, errStep)
		require.Zero(t, bank.Refreshes())
		_, err = memory.Load(t.Context(), "bank/u//probe")
		require.ErrorIs(t, err, ganbauth.ErrTokenNotFound, "it is cleared away")
		time.Sleep(time.Minute)
	})
}

// No name that the kit gives to a Store or a Locker is longer than 1,024 bytes, whether or
// not there is a Locker.
func TestLongestNames(t *testing.T) {
	for name, locks := range map[string]bool{"a Locker": true, "none": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bank, names := ganbtest.NewServer(ganbtest.Options{InProcess: true}), map[string]bool{}
				var locker ganbauth.Locker
				if locks {
					locker = lockerFunc(func(_ context.Context, name string) (func(), error) { names[name] = true; return func() {}, nil })
				}
				store := callStore{ganbauth.NewMemoryStore(), func(_, key string) { names[key] = true }}
				kit := backgroundKit(t, bank, store, locker)
				for _, last := range []string{"a", "b"} {
					key := strings.Repeat("k", 1024-len("bank/")-1) + last
					require.NoError(t, kit.SetToken(t.Context(), key, bank.Token()))
					time.Sleep(expired)
					_, err := kit.Token(t.Context(), key)
					require.NoError(t, err)
				}
				require.Len(t, names, 4, "two of each key's")
				beside := 0
				for name := range names {
					if regexp.MustCompile(`^bank//(write|probe)/[\w-]+$`).MatchString(name) {
						beside++
					}
				}
				require.Equal(t, 2, beside)
				for name := range names {
					require.LessOrEqual(t, len(name), 1024)
					require.True(t, strings.HasPrefix(name, "bank/"), name)
				}
			})
		})
	}
}

// A name of just 1,024 bytes is not shortened.
func TestNameOfTheGreatestLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, names := ganbtest.NewServer(ganbtest.Options{InProcess: true}), map[string]bool{}
		locker := lockerFunc(func(_ context.Context, name string) (func(), error) { names[name] = true; return func() {}, nil })
		kit := backgroundKit(t, bank, callStore{ganbauth.NewMemoryStore(), func(string, string) {}}, locker)
		key := strings.Repeat("k", 1024-len("bank///write"))
		require.NoError(t, kit.SetToken(t.Context(), key, bank.Token()))
		require.Equal(t, map[string]bool{"bank/" + key + "//write": true}, names)
	})
}

// The look of a store of three methods that fails below the write lock is no other record.
func TestCompareFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, memory := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		broken := &brokenStore{TokenStore: memory}
		var loads atomic.Int32
		kit := backgroundKit(t, bank, callStore{broken, func(method, _ string) {
			if method == "Load" {
				broken.set(map[bool]error{true: errStep}[loads.Add(1) == 2], nil, nil)
			}
		}}, nil)
		err := kit.SetToken(t.Context(), "u", bank.Token())
		require.ErrorIs(t, err, errStep)
		require.EqualValues(t, 2, loads.Load())
		_, err = memory.Load(t.Context(), "bank/u")
		require.ErrorIs(t, err, ganbauth.ErrTokenNotFound)
	})
}

// A store that hangs, and does not heed its context, is an error after five seconds, and
// not a user who is not connected.
func TestStoreThatHeedsNoContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		kit := backgroundKit(t, bank, callStore{ganbauth.NewMemoryStore(), func(string, string) { time.Sleep(time.Minute) }}, nil)
		begun := time.Now()
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.NotErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Equal(t, 5*time.Second, time.Since(begun))

		gone, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		begun = time.Now()
		_, err = kit.Token(gone, "u")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begun))
		time.Sleep(time.Minute)
	})
}

// A store of three methods that answers oddly.
func TestOddStores(t *testing.T) {
	run := func(name string, test func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test(t, ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore())
			})
		})
	}
	run("no token and no error: nobody is connected", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		kit := backgroundKit(t, bank, loadStore{memory, func() (*ganbauth.Token, error) { return nil, nil }}, nil)
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	})
	run("a token and ErrTokenNotFound: there is none", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		kit := backgroundKit(t, bank, loadStore{memory, func() (*ganbauth.Token, error) { return bank.Token(), ganbauth.ErrTokenNotFound }}, nil)
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		err = kit.SetToken(t.Context(), "u", bank.Token())
		require.ErrorIs(t, err, ganbauth.ErrUnavailable, "what it has saved is not there")
		stored, err := memory.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		require.Empty(t, stored.AccessToken, "a mark, after a look that found nothing")
	})
	run("a look that fails once, after the proof", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		connect(t, bank, memory, "u")
		time.Sleep(expired)
		loads := 0
		var names []string
		kit := backgroundKit(t, bank, loadStore{callStore{memory, func(method, key string) { names = append(names, method+" "+key) }}, func() (*ganbauth.Token, error) {
			if loads++; loads == 2 {
				return nil, errStep
			}
			return memory.Load(t.Context(), "bank/u")
		}}, nil)
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, errStep)
		require.Zero(t, bank.Refreshes())
		require.Equal(t, []string{"Save bank/u//probe", "Delete bank/u//probe"}, names)
	})
	run("one that hangs holds up the next write for five seconds", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		var hangs atomic.Bool
		kit := backgroundKit(t, bank, callStore{memory, func(method, _ string) {
			if method == "Save" && hangs.Load() {
				time.Sleep(time.Minute)
			}
		}}, nil)
		hangs.Store(true)
		go func() { _ = kit.SetToken(t.Context(), "u", bank.Token()) }()
		synctest.Wait()
		begun := time.Now()
		err := kit.SetToken(t.Context(), "u", bank.Token())
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.ErrorContains(t, err, "lock")
		require.Equal(t, 5*time.Second, time.Since(begun))
		hangs.Store(false)
		time.Sleep(2 * time.Minute)
	})
	run("a Locker without an unlock", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		connect(t, bank, memory, "u")
		time.Sleep(expired)
		var log lockedBuffer
		kit := backgroundKit(t, bank, memory, lockerFunc(func(context.Context, string) (func(), error) { return nil, nil }),
			func(o *ganbauth.Options) { o.Logger = textLogger(&log) })
		_, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.NotContains(t, log.String(), "panic")
	})
	run("a token that looks like a sealed one, and was sealed before such were refused", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		kit := backgroundKit(t, bank, memory, nil, func(o *ganbauth.Options) { o.EncryptionKeys = [][]byte{key(1)} })
		token := bank.Token()
		token.AccessToken = "sealed." + token.AccessToken
		require.NoError(t, ganbauth.Seal(memory, key(1)).Save(t.Context(), "bank/u", token))
		got, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Equal(t, token.AccessToken, got.AccessToken)
	})
	run("its calls end with their request's deadline", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		store := &deadlineStore{TokenStore: memory}
		kit := backgroundKit(t, bank, store, nil)
		for request, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Hour: 5 * time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), request)
			_, err := kit.Token(ctx, "u")
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
			require.Equal(t, want, store.left)
			cancel()
		}
	})
	run("a goroutine that it ends keeps no lock", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		ended := false
		kit := backgroundKit(t, bank, callStore{memory, func(method, _ string) {
			if method == "Save" && !ended {
				ended = true
				runtime.Goexit()
			}
		}}, nil)
		require.ErrorIs(t, kit.SetToken(t.Context(), "u", bank.Token()), ganbauth.ErrUnavailable)
		require.NoError(t, kit.SetToken(t.Context(), "u", bank.Token()))
	})
	run("it takes no other process's record for a failure", func(t *testing.T, bank *ganbtest.Server, memory ganbauth.TokenStore) {
		s := &stepping{TokenStore: memory}
		s.before.set(func(n int) error {
			if n == 2 { // the first has put a mark
				s.put(t, bank.Token())
			}
			return nil
		})
		err := backgroundKit(t, bank, s, nil).SetToken(t.Context(), "u", bank.Token())
		require.ErrorContains(t, err, "the user has logged in or out meanwhile")
		require.NotContains(t, err.Error(), "change token")
	})
}

// loadStore is a store whose Load is a function.
type loadStore struct {
	ganbauth.TokenStore
	load func() (*ganbauth.Token, error)
}

func (s loadStore) Load(context.Context, string) (*ganbauth.Token, error) { return s.load() }

// deadlineStore notes how long its calls have.
type deadlineStore struct {
	ganbauth.TokenStore
	left time.Duration
}

func (s *deadlineStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	deadline, _ := ctx.Deadline()
	s.left = time.Until(deadline)
	return s.TokenStore.Load(ctx, key)
}

// hangingEngine is a store that is its own Locker, and heeds no context.
type hangingEngine struct{ *oneEngine }

func (e hangingEngine) LockRecord(context.Context, string) (string, func(), error) {
	time.Sleep(time.Hour)
	return "", nil, errStep
}

// A lock that hangs, and does not heed its context, is an error when the request has waited
// for ten seconds.
func TestLockThatHeedsNoContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		e := hangingEngine{&oneEngine{stepping: &stepping{TokenStore: ganbauth.NewMemoryStore()}}}
		connect(t, bank, e, "u")
		time.Sleep(expired)
		kit := backgroundKit(t, bank, e, nil)
		begun := time.Now()
		_, err := kit.Token(t.Context(), "u")
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.Equal(t, 10*time.Second, time.Since(begun))
		time.Sleep(19 * time.Second)
		require.Equal(t, 1, ganbauth.TurnsOut(kit))
		time.Sleep(1500 * time.Millisecond)
		require.Zero(t, ganbauth.TurnsOut(kit), "the lock is given up after half a minute")
		time.Sleep(time.Hour)
	})
}
