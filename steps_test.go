package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
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

// stepping is a store in memory. Something happens before or after the swaps of a kit, by
// number.
type stepping struct {
	ganbauth.TokenStore
	swaps  atomic.Int32
	load   hook // its error is that of a load
	before hook // its error is the swap's, which does not happen
	after  hook // its error is an answer that was lost
}

// hook is called with the number of a swap.
type hook struct {
	fn atomic.Pointer[func(n int) error]
}

func (h *hook) set(fn func(n int) error) { h.fn.Store(&fn) }

func (h *hook) call(n int) error {
	if fn := h.fn.Load(); fn != nil && *fn != nil {
		return (*fn)(n)
	}
	return nil
}

func (s *stepping) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if err := s.load.call(0); err != nil {
		return nil, err
	}
	return s.TokenStore.Load(ctx, key)
}

// down has the store fail altogether, until up.
func (s *stepping) down() {
	fails := func(int) error { return errStep }
	s.before.set(fails)
	s.load.set(fails)
}

func (s *stepping) up() {
	s.before.set(nil)
	s.load.set(nil)
}

func (s *stepping) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	n := int(s.swaps.Add(1))
	if err := s.before.call(n); err != nil {
		return err
	}
	err := s.TokenStore.(ganbauth.Swapper).Swap(ctx, key, old, new)
	return cmpErr(s.after.call(n), err)
}

// put is what another process does, whose token may be of the same login.
func (s *stepping) put(t *testing.T, token *ganbauth.Token) {
	t.Helper()
	require.NoError(t, s.Save(context.Background(), "bank/u", token))
}

type stepTest struct {
	*stepping
	t    *testing.T
	bank *ganbtest.Server
	kit  *ganbauth.Kit
	log  *lockedBuffer
}

// inSteps runs a test on a user whose token is about to expire, or has expired.
func inSteps(t *testing.T, bank ganbtest.Options, age time.Duration, test func(t *testing.T, s *stepTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bank.InProcess = true
		s := &stepTest{&stepping{TokenStore: ganbauth.NewMemoryStore()}, t, ganbtest.NewServer(bank), nil, &lockedBuffer{}}
		connect(t, s.bank, s.stepping, "u")
		s.kit = backgroundKit(t, s.bank, s.stepping, nil, func(o *ganbauth.Options) { o.Logger = textLogger(s.log) })
		time.Sleep(age)
		test(t, s)
		time.Sleep(time.Hour)
		require.Zero(t, ganbauth.KeysHeld(s.kit))
	})
}

const (
	aboutToExpire = 59*time.Minute + 10*time.Second
	expired       = 61 * time.Minute
)

// odd has the bank's next answer lack its token_type.
func (s *stepTest) odd(then func()) {
	s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(response map[string]any) {
		delete(response, "token_type")
		if then != nil {
			then()
		}
	}}, 1)
}

func (s *stepTest) token() (*ganbauth.Token, error) { return s.kit.Token(s.t.Context(), "u") }

var errStep = errors.New("connection reset")

// A3: of an answer that cannot be used the refresh token is kept, with the old access
// token.
func TestA3KitKeepsTheRefreshToken(t *testing.T) {
	strict := ganbtest.Options{RevokeOnReuse: true}
	next := func(s *stepTest) {
		s.t.Helper()
		time.Sleep(2 * time.Minute)
		_, err := s.token()
		require.NoError(s.t, err)
		require.Equal(s.t, 2, s.bank.Refreshes(), "with the refresh token of the odd answer")
		require.NotContains(s.t, s.log.String(), "token_lost")
	}
	t.Run("while the old access token serves", func(t *testing.T) {
		inSteps(t, strict, aboutToExpire, func(t *testing.T, s *stepTest) {
			old, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			s.odd(nil)
			token, err := s.token()
			require.NoError(t, err)
			require.Equal(t, old.AccessToken, token.AccessToken)
			kept, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.NotEqual(t, old.RefreshToken, kept.RefreshToken)
			require.Contains(t, s.log.String(), "refresh_failed")
			next(s)
		})
	})
	t.Run("when it has expired", func(t *testing.T) {
		inSteps(t, strict, expired, func(t *testing.T, s *stepTest) {
			s.odd(nil)
			_, err := s.token()
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			require.ErrorIs(t, err, ganbauth.ErrTokenFormat)
			next(s)
		})
	})
	t.Run("while the store takes no writes", func(t *testing.T) {
		inSteps(t, strict, expired, func(t *testing.T, s *stepTest) {
			s.odd(func() { s.before.set(func(int) error { return errStep }) })
			_, err := s.token()
			require.ErrorIs(t, err, ganbauth.ErrTokenFormat)
			require.Contains(t, s.log.String(), "token_unsaved")
			require.Contains(t, s.log.String(), "connection reset")
			require.Contains(t, s.log.String(), "refresh_failed", "it is told when it happens")
			_, err = s.token()
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			require.Equal(t, 1, s.bank.Refreshes())
			s.before.set(nil)
			next(s)
		})
	})
	t.Run("another login has taken the place", func(t *testing.T) {
		inSteps(t, strict, expired, func(t *testing.T, s *stepTest) {
			newer := s.bank.Token()
			newer.Epoch = "newer"
			s.odd(func() { s.put(t, newer) })
			token, err := s.token()
			require.NoError(t, err)
			require.Equal(t, newer.AccessToken, token.AccessToken)
			time.Sleep(time.Minute)
			kept, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.Equal(t, newer.RefreshToken, kept.RefreshToken)
		})
	})
	t.Run("the user has logged out", func(t *testing.T) {
		inSteps(t, strict, expired, func(t *testing.T, s *stepTest) {
			s.odd(func() {
				require.NoError(t, s.kit.Disconnect(context.Background(), "u"))
				s.down()
			})
			_, err := s.token()
			require.ErrorIs(t, err, errStep, "nobody can know")
			s.up()
			_, err = s.token()
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		})
	})
}

// A2: a token whose user has logged out while it was at the bank is not served, also if
// the store has been away since.
func TestA2LogoutBeforeTheStoreIsAway(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) {
			require.NoError(t, s.kit.Disconnect(context.Background(), "u"))
			s.down()
		}}, 1)
		_, err := s.token()
		require.ErrorIs(t, err, errStep)
		require.NotContains(t, s.log.String(), "token_unsaved")
		s.up()
		_, err = s.token()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	})
}

// A store that always says that another record is there, and has the same one, ends no
// connection and is not asked without end.
func TestStoreThatContradictsItself(t *testing.T) {
	inSteps(t, ganbtest.Options{RevokeOnReuse: true}, expired, func(t *testing.T, s *stepTest) {
		s.before.set(func(n int) error {
			if n >= 2 {
				return ganbauth.ErrSuperseded
			}
			return nil
		})
		token, err := s.token()
		require.NoError(t, err)
		require.EqualValues(t, 1+10, s.swaps.Load())
		s.before.set(nil)
		time.Sleep(10 * time.Second)
		stored, err := s.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		require.Equal(t, token.AccessToken, stored.AccessToken)
	})
}

// A3: only an ID token that verifies, and is another user's, ends a connection.
func TestA3KitMeetsAnotherSubject(t *testing.T) {
	inBubble(t, setup{bank: ganbtest.Options{RefreshIDToken: true}}, func(t *testing.T, a *app) {
		b := a.browser()
		b.login()
		time.Sleep(61 * time.Minute)
		a.sends(func(id idToken) string { id.claims["sub"] = "another"; return id.sign() })
		require.Equal(t, 401, b.do("GET", "/p", program).StatusCode)
		require.Contains(t, a.eventTypes(), ganbauth.EventTokenLost)
		require.Equal(t, "other_subject", a.lastEvent().ErrorClass)
	})
}

// What is found at the second look: another process' refresh is the answer, if it serves.
func TestSecondLookFindsAnotherRecord(t *testing.T) {
	shift := func(token *ganbauth.Token, by time.Duration) *ganbauth.Token {
		token.IssuedAt, token.ExpiresAt = token.IssuedAt.Add(by), token.ExpiresAt.Add(by)
		return token
	}
	t.Run("one that serves", func(t *testing.T) {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			newer := s.bank.Token()
			s.before.set(func(n int) error {
				if n == 1 {
					s.put(t, newer)
				}
				return nil
			})
			token, err := s.token()
			require.NoError(t, err)
			require.Equal(t, newer.AccessToken, token.AccessToken)
			require.Zero(t, s.bank.Refreshes())
			require.Equal(t, 1, strings.Count(s.log.String(), "set Options.Locker"), "C7")
		})
	})
	t.Run("one that has expired, too, is refreshed", func(t *testing.T) {
		inSteps(t, ganbtest.Options{RevokeOnReuse: true}, expired, func(t *testing.T, s *stepTest) {
			s.before.set(func(n int) error {
				if n == 1 {
					s.put(t, shift(s.bank.Token(), -2*time.Hour))
				}
				return nil
			})
			_, err := s.token()
			require.NoError(t, err)
			require.Equal(t, 1, s.bank.Refreshes())
		})
	})
	t.Run("one that cannot be refreshed", func(t *testing.T) {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			other := shift(s.bank.Token(), -2*time.Hour)
			other.RefreshToken = ""
			asked := s.bank.Count(ganbtest.TokenEndpoint)
			s.before.set(func(n int) error {
				if n == 1 {
					s.put(t, other)
				}
				return nil
			})
			_, err := s.token()
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
			require.Equal(t, asked, s.bank.Count(ganbtest.TokenEndpoint))
			require.Zero(t, ganbauth.FailingSince(s.kit, "bank/u"), "nothing has failed")
		})
	})
	t.Run("another one each time", func(t *testing.T) {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			s.before.set(func(int) error { s.put(t, shift(s.bank.Token(), -2*time.Hour)); return nil })
			_, err := s.token()
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			require.EqualValues(t, 3, s.swaps.Load(), "it gives up")
			require.Zero(t, s.bank.Refreshes())
		})
	})
	t.Run("a load that fails", func(t *testing.T) {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			memory := s.TokenStore
			s.before.set(func(n int) error {
				s.put(t, s.bank.Token())
				s.TokenStore = struct{ ganbauth.TokenStore }{loadFails{memory}}
				return ganbauth.ErrSuperseded
			})
			_, err := s.token()
			require.ErrorIs(t, err, errStep)
			require.Equal(t, 503, ganbauth.StatusCode(err))
			s.TokenStore = memory
		})
	})
}

// A logout comes when a login begins: before its mark is there it ends nothing, and afterwards it
// ends the login.
func TestLogoutAsALoginBegins(t *testing.T) {
	for _, since := range []bool{false, true} {
		store := &stepping{TokenStore: ganbauth.NewMemoryStore()}
		inBubble(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}}, func(t *testing.T, a *app) {
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			store.before.set(func(n int) error {
				switch {
				case a.bank.Count(ganbtest.TokenEndpoint) > 0:
					return errStep // a token that is not stored needs its place
				case n == 1:
					return a.kit.Disconnect(t.Context(), "u")
				case since:
					return store.Delete(t.Context(), "bank/u")
				}
				return nil
			})
			require.Equal(t, since, b.get(callback).StatusCode == 401)
			require.Equal(t, !since, b.connected())
			store.before.set(nil)
			time.Sleep(time.Minute)
			require.Equal(t, !since, b.connected())
		})
	}
}

// A bank that has not been asked, or has answered, is not said to be silent when a request has
// waited for something else.
func TestWhatARefreshWaitsFor(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.kit = backgroundKit(t, s.bank, s.stepping, lockerFunc(func(ctx context.Context, _ string) (func(), error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		_, err := s.token()
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.NotErrorAs(t, err, new(*ganbauth.TokenError))
		time.Sleep(time.Minute)
	})
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		hangs := func(int) error { time.Sleep(6 * time.Second); return errStep }
		s.before.set(func(n int) error {
			if n > 1 {
				s.load.set(hangs)
				return hangs(n)
			}
			time.Sleep(time.Second) // or the request would not wait for the second hanging call
			return nil
		})
		_, err := s.token()
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.NotErrorAs(t, err, new(*ganbauth.TokenError))
		require.Equal(t, 1, s.bank.Refreshes())
		s.up()
		time.Sleep(time.Minute)
	})
}

// A bank that answers as those who wait give up has answered, or has not.
func TestAnswerAtTheLastMoment(t *testing.T) {
	for range 30 {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(10*time.Second), 1)
			token, err := s.token()
			if err != nil {
				require.ErrorIs(t, err, ganbauth.ErrUnavailable)
				synctest.Wait()
				token, err = s.token()
			}
			require.NoError(t, err)
			require.True(t, token.Valid())
		})
	}
}

// The mark of a login outlives it.
func TestMarkOfALogin(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	inBubble(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}}, func(t *testing.T, a *app) {
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(map[string]any) {
			mark, err := store.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.Equal(t, 2*ganbauth.AttemptLifetime, mark.ExpiresAt.Sub(mark.IssuedAt))
		}}, 1)
		a.browser().login()
	})
}

// A store that fails is tried again after 50 ms, and then ever later: every five seconds with a
// token that it does not take, and every second for a logout.
func TestPausesBetweenTries(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(s *stepTest) error
		fails bool
		want  []int // in milliseconds
	}{
		"a token": {
			do:   func(s *stepTest) error { _, err := s.token(); return err },
			want: []int{50, 100, 200, 400, 800, 1600, 3200, 5000, 5000},
		},
		"a logout": {
			do:    func(s *stepTest) error { return s.kit.Disconnect(s.t.Context(), "u") },
			fails: true,
			want:  []int{50, 100, 200, 400, 800, 1000, 1000},
		},
	} {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			var last time.Time
			var pauses []int
			s.before.set(func(n int) error {
				if n == 1 && !c.fails {
					return nil // the refresh may be sent
				}
				if !last.IsZero() {
					pauses = append(pauses, int(time.Since(last).Milliseconds()))
				}
				last = time.Now()
				return errStep
			})
			require.Equal(t, c.fails, c.do(s) != nil, name)
			time.Sleep(time.Minute)
			s.before.set(nil)
			synctest.Wait()
			require.Equal(t, c.want, pauses[:len(c.want)], name)
		})
	}
}

// A refresh finds the token of a login that the store has not taken yet. Such a token serves,
// but only until it expires.
func TestRefreshMeetsALoginThatIsNotStored(t *testing.T) {
	for _, serves := range []bool{true, false} {
		store := &stepping{TokenStore: ganbauth.NewMemoryStore()}
		inBubble(t, setup{options: ganbauth.Options{Store: store, Key: keyIs("u")}}, func(t *testing.T, a *app) {
			b := a.browser()
			b.login()
			time.Sleep(expired)
			callback, before := b.callbackURL("/bank/login"), int(store.swaps.Load())
			store.before.set(func(n int) error {
				switch n - before {
				case 1: // the refresh
					a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Change: func(response map[string]any) {
						if !serves {
							response["expires_in"] = 1
						}
					}}, 1)
					require.Equal(t, 303, b.get(callback).StatusCode)
					time.Sleep(time.Second)
					store.put(t, a.bank.Token())
					return nil
				case 2: // the login begins
					return nil
				}
				return errStep
			})
			token, err := a.kit.Token(t.Context(), "u")
			if serves {
				require.NoError(t, err)
				require.True(t, token.Valid())
			} else {
				require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			}
			require.Zero(t, a.bank.Refreshes())
			store.before.set(nil)
			time.Sleep(time.Minute)
			_, err = a.kit.Token(t.Context(), "u")
			require.NoError(t, err)
		})
	}
}

type loadFails struct{ ganbauth.TokenStore }

func (loadFails) Load(context.Context, string) (*ganbauth.Token, error) { return nil, errStep }

// C7: a race is a refresh of the same login, wherever it shows. A logout or a login is
// none.
func TestC7WhatIsARace(t *testing.T) {
	at := func(what string, n int, put func(s *stepTest), want int) {
		t.Run(what, func(t *testing.T) {
			inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
				if what == "at the verdict" {
					s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
				}
				s.before.set(func(i int) error {
					if i == n {
						put(s)
					}
					return nil
				})
				_, _ = s.token()
				require.Equal(t, want, strings.Count(s.log.String(), "set Options.Locker"))
			})
		})
	}
	same := func(s *stepTest) { s.put(s.t, s.bank.Token()) }
	at("at the second look", 1, same, 1)
	at("at the successor", 2, same, 1)
	at("at the verdict", 2, same, 1)
	at("a login", 2, func(s *stepTest) {
		newer := s.bank.Token()
		newer.Epoch = "newer"
		s.put(s.t, newer)
	}, 0)
	at("a logout", 2, func(s *stepTest) { require.NoError(s.t, s.Delete(context.Background(), "bank/u")) }, 0)
}

// With a Locker the second look may find another process's refresh, as it should.
func TestC7NoRaceWithALocker(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.kit = backgroundKit(t, s.bank, s.stepping, &keyLocker{held: map[string]bool{}}, func(o *ganbauth.Options) { o.Logger = textLogger(s.log) })
		s.before.set(func(n int) error {
			if n == 1 {
				s.put(t, s.bank.Token())
			}
			return nil
		})
		_, err := s.token()
		require.NoError(t, err)
		require.Zero(t, s.bank.Refreshes())
		require.NotContains(t, s.log.String(), "set Options.Locker")
	})
}

// A verdict that was written down, and whose answer was lost, is one.
func TestVerdictWhoseAnswerIsLost(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
		s.after.set(func(n int) error {
			if n == 2 {
				return errStep
			}
			return nil
		})
		_, err := s.token()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Equal(t, 1, strings.Count(s.log.String(), "token_lost"))
		require.Zero(t, ganbauth.KeysHeld(s.kit))
	})
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) { // nor is a store that cannot be read waited for
		s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
		s.before.set(func(n int) error {
			if n == 1 {
				s.load.set(func(int) error { return errStep })
			}
			return nil
		})
		begun := time.Now()
		_, err := s.token()
		require.Error(t, err)
		require.Zero(t, time.Since(begun))
		s.up()
		_, err = s.token()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	})
}

// A successor that was stored, and whose answer was lost, is one. It is no race, either.
func TestSuccessorWhoseAnswerIsLost(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.after.set(func(n int) error {
			if n == 2 {
				return errStep
			}
			return nil
		})
		_, err := s.token()
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(s.log.String(), "token_refreshed"))
		require.NotContains(t, s.log.String(), "set Options.Locker")
	})
}

// The lock is given back, whatever is in the successor's place.
func TestLockIsGivenBack(t *testing.T) {
	for answer, prepare := range map[string]func(s *stepTest){
		"a token":   func(*stepTest) {},
		"no use":    func(s *stepTest) { s.odd(nil) },
		"a verdict": func(s *stepTest) { s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1) },
	} {
		for name, meets := range map[string]func(s *stepTest) error{
			"another login": func(s *stepTest) error {
				newer := s.bank.Token()
				newer.Epoch = "newer"
				s.put(s.t, newer)
				return nil
			},
			"a logout, and the store fails": func(s *stepTest) error {
				s.before.set(nil)
				require.NoError(s.t, s.kit.Disconnect(s.t.Context(), "u"))
				s.down()
				return errStep
			},
		} {
			inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
				locker := &keyLocker{held: map[string]bool{}}
				s.kit = backgroundKit(t, s.bank, s.stepping, locker)
				prepare(s)
				s.before.set(func(n int) error {
					if n == 2 {
						return meets(s)
					}
					return nil
				})
				_, _ = s.token()
				s.up()
				time.Sleep(10 * time.Second)
				locker.mu.Lock()
				require.Empty(t, locker.held, "the answer is %s, and it meets %s", answer, name)
				locker.mu.Unlock()
			})
		}
	}
}

// Only the mark of this very token gives way to its successor.
func TestMarkOfAnotherToken(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.before.set(func(n int) error {
			if n == 2 {
				cur, err := s.Load(t.Context(), "bank/u")
				require.NoError(t, err)
				s.put(t, &ganbauth.Token{Epoch: cur.Epoch, Judged: "another", ExpiresAt: time.Now().Add(time.Hour)})
			}
			return nil
		})
		_, err := s.token()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		mark, err := s.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		require.Equal(t, "another", mark.Judged)
	})
}

// Processes of two versions know each other's marks.
func TestMarksStay(t *testing.T) {
	inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
		s.put(t, &ganbauth.Token{AccessToken: "access", RefreshToken: "refresh", IssuedAt: time.Now().Add(-time.Hour), ExpiresAt: time.Now()})
		_, err := s.token()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		mark, err := s.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		require.Equal(t, "MjlT-g033b9b1_LSOFHs_A", mark.Judged)
	})
	inSteps(t, ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		s.put(t, &ganbauth.Token{AccessToken: "access", IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)})
		time.Sleep(5 * time.Minute)
		resp, err := s.kit.ClientFor("u").Get(s.bank.APIBase() + "/accounts")
		require.NoError(t, err)
		resp.Body.Close()
		mark, err := s.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		require.Equal(t, "3nhUcvAw2QEKJjNUBDCnOg", mark.Judged)
	})
}

// An HTTPClient that panics, or ends its goroutine, is as good as no answer. The lock is
// given back, and the next request is served.
func TestTokenRequestThatPanics(t *testing.T) {
	test := func(name string, locks bool, end func(*http.Request)) {
		t.Run(fmt.Sprint(name, ", with a Locker ", locks), func(t *testing.T) {
			inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
				config := s.bank.Config()
				straight, ended := config.HTTPClient.Transport, false
				config.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					if !ended {
						ended = true
						end(r)
					}
					return straight.RoundTrip(r)
				})}
				connector, err := ganbauth.NewConnector(s.bank.ClientID, s.bank.ClientSecret, s.bank.AuthMethod, config)
				require.NoError(t, err)
				held := 0
				var locker ganbauth.Locker
				if locks {
					locker = lockerFunc(func(context.Context, string) (func(), error) {
						held++
						return func() { held-- }, nil
					})
				}
				kit, err := ganbauth.New(connector, nil, ganbauth.Options{
					RedirectURI: appURL + "/bank/callback", Scopes: []string{"openid"}, Store: s.stepping, Logger: textLogger(s.log),
					Key: keyIs("u"), Locker: locker,
				})
				require.NoError(t, err)
				_, err = kit.Token(t.Context(), "u")
				require.Equal(t, 503, ganbauth.StatusCode(err))
				require.Contains(t, s.log.String()+err.Error(), name)
				require.NotContains(t, s.log.String()+err.Error(), "Basic ", "what it panicked with is the request")
				require.Zero(t, held)
				time.Sleep(2 * time.Second)
				_, err = kit.Token(t.Context(), "u")
				require.NoError(t, err)
			})
		})
	}
	for _, locks := range []bool{true, false} {
		test("panicked", locks, func(r *http.Request) { panic(r) })
		test("runtime.Goexit was called", locks, func(*http.Request) { runtime.Goexit() })
	}
}

// A code that the bank refuses connects nobody, whatever mark is there by then.
func TestRefusedCodeMeetsAMark(t *testing.T) {
	for name, meets := range map[string]func(t *testing.T, s *stepping){
		"of another login": func(t *testing.T, s *stepping) {
			s.put(t, &ganbauth.Token{Epoch: "another", ExpiresAt: time.Now().Add(time.Hour)})
		},
		"no more": func(t *testing.T, s *stepping) { require.NoError(t, s.Delete(t.Context(), "bank/u")) },
	} {
		loginSteps(t, func(t *testing.T, a *app, s *stepping) {
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			s.after.set(func(int) error { meets(t, s); return nil })
			require.NotEqual(t, 303, b.get(callback).StatusCode, name)
			require.Contains(t, a.log.String(), "invalid_grant", name)
			require.False(t, b.connected(), name)
			s.after.set(nil)
		})
	}
}

// Each login has an epoch of its own, wherever its token comes from.
func TestEpochs(t *testing.T) {
	loginSteps(t, func(t *testing.T, a *app, s *stepping) {
		seen := map[string]bool{"": true}
		for range 2 {
			a.browser().login()
			stored, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.False(t, seen[stored.Epoch])
			seen[stored.Epoch] = true
			require.NoError(t, a.kit.SetToken(t.Context(), "u", stored))
			stored, err = s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.False(t, seen[stored.Epoch])
			seen[stored.Epoch] = true
		}
	})
}

// A login ends what the key's failures have begun.
func TestLoginEndsTheCoolDown(t *testing.T) {
	loginSteps(t, func(t *testing.T, a *app, _ *stepping) {
		b := a.browser()
		b.login()
		time.Sleep(expired)
		a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		require.False(t, b.connected())
		require.NotZero(t, ganbauth.FailingSince(a.kit, "bank/u"))
		b.login()
		require.Zero(t, ganbauth.FailingSince(a.kit, "bank/u"))
	})
	for name, change := range map[string]func(s *stepTest) error{
		"SetToken": func(s *stepTest) error { return s.kit.SetToken(s.t.Context(), "u", s.bank.Token()) },
		"a logout": func(s *stepTest) error { return s.kit.Disconnect(s.t.Context(), "u") },
	} {
		inSteps(t, ganbtest.Options{}, expired, func(t *testing.T, s *stepTest) {
			s.bank.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
			_, err := s.token()
			require.ErrorIs(t, err, ganbauth.ErrUnavailable, name)
			require.NotZero(t, ganbauth.FailingSince(s.kit, "bank/u"), name)
			require.NoError(t, change(s), name)
			require.Zero(t, ganbauth.FailingSince(s.kit, "bank/u"), name)
		})
	}
}

// C5: the end of a connection without a refresh token waits for no other process, and
// goes by what is there.
func TestC5EndIsCompared(t *testing.T) {
	inSteps(t, ganbtest.Options{Lifetime: 24 * time.Hour}, 0, func(t *testing.T, s *stepTest) {
		token, err := s.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		token.RefreshToken = ""
		s.put(t, token)
		time.Sleep(time.Minute - time.Nanosecond)
		got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", token.AccessToken)
		require.NoError(t, err)
		require.Equal(t, token.AccessToken, got.AccessToken, "it is too young")
		time.Sleep(time.Nanosecond)

		newer := s.bank.Token()
		s.before.set(func(n int) error {
			if n == 1 {
				s.put(t, newer)
			}
			return nil
		})
		begun := time.Now()
		got, err = ganbauth.Replace(s.kit, t.Context(), "bank/u", token.AccessToken)
		require.NoError(t, err)
		require.Equal(t, newer.AccessToken, got.AccessToken)
		s.put(t, token)
		_, err = ganbauth.Replace(s.kit, t.Context(), "bank/u", token.AccessToken)
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
		require.Zero(t, time.Since(begun))
	})
}

// What the process serves of a token that is not stored yet: to nobody after a logout,
// and to everybody whatever else fails meanwhile.
func TestA2UnsavedTokenMeetsOthers(t *testing.T) {
	unsaved := func(t *testing.T, test func(t *testing.T, s *stepTest, token *ganbauth.Token)) {
		inSteps(t, ganbtest.Options{RevokeOnReuse: true}, expired, func(t *testing.T, s *stepTest) {
			s.before.set(func(n int) error {
				if n >= 2 {
					return errStep
				}
				return nil
			})
			token, err := s.token()
			require.NoError(t, err)
			test(t, s, token)
			s.before.set(nil)
		})
	}
	t.Run("a login that fails", func(t *testing.T) {
		unsaved(t, func(t *testing.T, s *stepTest, token *ganbauth.Token) {
			require.ErrorIs(t, s.kit.SetToken(t.Context(), "u", s.bank.Token()), errStep)
			got, err := s.token()
			require.NoError(t, err)
			require.Equal(t, token.AccessToken, got.AccessToken)
			time.Sleep(aboutToExpire)
			got, err = s.token()
			require.NoError(t, err)
			require.Equal(t, token.AccessToken, got.AccessToken, "it is not spent before it is stored")
			require.Equal(t, 1, s.bank.Refreshes())
		})
	})
	t.Run("a logout", func(t *testing.T) {
		unsaved(t, func(t *testing.T, s *stepTest, _ *ganbauth.Token) {
			s.before.set(nil)
			require.NoError(t, s.kit.Disconnect(t.Context(), "u"))
			s.before.set(func(int) error { return errStep })
			_, err := s.token()
			require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
			require.NoError(t, s.kit.Shutdown(t.Context()))
			s.up()
			time.Sleep(time.Minute)
			require.NotContains(t, s.log.String(), "token_refreshed", "nobody ever has it")
		})
	})
	t.Run("a login", func(t *testing.T) {
		unsaved(t, func(t *testing.T, s *stepTest, _ *ganbauth.Token) {
			s.before.set(nil)
			newer := s.bank.Token()
			require.NoError(t, s.kit.SetToken(t.Context(), "u", newer))
			s.before.set(func(int) error { return errStep })
			token, err := s.token()
			require.NoError(t, err)
			require.Equal(t, newer.AccessToken, token.AccessToken)
		})
	})
}

const bankUser = "user-1"

// loginSteps runs a test on an application whose user u, at the bank bankUser, may begin a
// login.
func loginSteps(t *testing.T, test func(t *testing.T, a *app, s *stepping)) {
	s := &stepping{TokenStore: ganbauth.NewMemoryStore()}
	inBubble(t, setup{bank: ganbtest.Options{Subject: bankUser}, options: ganbauth.Options{
		Store: s, Key: keyIs("u"),
	}}, func(t *testing.T, a *app) {
		test(t, a, s)
		time.Sleep(time.Hour)
		require.Zero(t, ganbauth.KeysHeld(a.kit))
	})
}

// A2: a login whose token the store does not take is served by the process until it does.
func TestA2LoginThatIsNotStoredYet(t *testing.T) {
	fromSecond := func(n int) error {
		if n >= 2 { // the first proves that the store takes writes
			return errStep
		}
		return nil
	}
	t.Run("for a long time", func(t *testing.T) {
		loginSteps(t, func(t *testing.T, a *app, s *stepping) {
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			s.before.set(fromSecond)
			begun := time.Now()
			require.Equal(t, 303, b.get(callback).StatusCode)
			require.GreaterOrEqual(t, time.Since(begun), ganbauth.Patience)
			require.Less(t, time.Since(begun), 2*ganbauth.Patience)
			require.Less(t, int(s.swaps.Load()), 12, "it pauses between two tries")
			require.True(t, b.connected())
			require.Contains(t, a.eventTypes(), ganbauth.EventTokenUnsaved)
			mark, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.Empty(t, mark.AccessToken)
			s.before.set(nil)
			time.Sleep(10 * time.Second)
			stored, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			require.Equal(t, a.next.last().AccessToken, stored.AccessToken)
		})
	})
	t.Run("for a moment", func(t *testing.T) {
		loginSteps(t, func(t *testing.T, a *app, s *stepping) {
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			s.before.set(fromSecond)
			time.AfterFunc(time.Second, func() { s.before.set(nil) })
			require.Equal(t, 303, b.get(callback).StatusCode)
			require.NotContains(t, a.eventTypes(), ganbauth.EventTokenUnsaved)
			require.True(t, b.connected())
		})
	})
	t.Run("the user logs out meanwhile", func(t *testing.T) {
		loginSteps(t, func(t *testing.T, a *app, s *stepping) {
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			s.before.set(fromSecond)
			time.AfterFunc(2*time.Second, func() {
				s.before.set(nil)
				if err := a.kit.Disconnect(context.Background(), "u"); err != nil {
					t.Error(err)
				}
				s.down()
			})
			require.Equal(t, 401, b.get(callback).StatusCode)
			require.False(t, b.connected())
			s.up()
			time.Sleep(time.Minute)
			require.False(t, b.connected())
		})
	})
	for name, wellFor := range map[string]int{"stored at once": 1000, "stored later": 1} {
		t.Run("a token before it that is not stored yet, and it is "+name, func(t *testing.T) {
			loginSteps(t, func(t *testing.T, a *app, s *stepping) {
				b := a.browser()
				b.login()
				time.Sleep(expired)
				wellFrom := func(n, swaps int) {
					s.before.set(func(i int) error {
						if i > n && i <= n+swaps {
							return nil
						}
						return errStep
					})
				}
				wellFrom(int(s.swaps.Load()), 1)
				require.True(t, b.connected(), "served by the process")
				old := a.next.last().AccessToken
				callback := b.callbackURL("/bank/login")
				wellFrom(int(s.swaps.Load()), wellFor)
				require.Equal(t, 303, b.get(callback).StatusCode)
				s.before.set(func(int) error { return errStep })
				for range 100 {
					require.True(t, b.connected())
					require.NotEqual(t, old, a.next.last().AccessToken)
					time.Sleep(100 * time.Millisecond)
					s.before.set(nil)
				}
			})
		})
	}
}

// A login begins again where another record is, and spends no code where nothing can be
// written.
func TestLoginBegins(t *testing.T) {
	loginSteps(t, func(t *testing.T, a *app, s *stepping) {
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		s.before.set(func(int) error { return errStep })
		require.Equal(t, 503, b.get(callback).StatusCode)
		require.EqualValues(t, 1, s.swaps.Load())
		require.Zero(t, a.bank.Count(ganbtest.TokenEndpoint))
		s.before.set(nil)
		s.load.set(func(int) error { return errStep })
		require.Equal(t, 503, b.get(callback).StatusCode, "nobody knows what it would replace")
		require.EqualValues(t, 1, s.swaps.Load())
		s.load.set(nil)
		s.before.set(func(n int) error {
			if n == 2 {
				return ganbauth.ErrSuperseded
			}
			return nil
		})
		require.Equal(t, 303, b.get(callback).StatusCode)
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))

		callback = b.callbackURL("/bank/login")
		n := s.swaps.Load()
		s.before.set(func(int) error { return ganbauth.ErrSuperseded })
		require.Equal(t, 503, b.get(callback).StatusCode, "it gives up")
		require.EqualValues(t, 10, s.swaps.Load()-n)
		require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
		s.before.set(nil)
		require.Equal(t, 303, b.get(callback).StatusCode)
	})
	loginSteps(t, func(t *testing.T, a *app, s *stepping) { // where a token was judged
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		s.put(t, &ganbauth.Token{Epoch: "e", Judged: "j", ExpiresAt: time.Now().Add(time.Hour)})
		s.before.set(func(n int) error {
			if n == 2 {
				mark, err := s.Load(t.Context(), "bank/u")
				require.NoError(t, err)
				require.Equal(t, "j", mark.Judged, "its successor finds the place until then")
			}
			return nil
		})
		require.Equal(t, 303, b.get(callback).StatusCode)
		require.True(t, b.connected())
	})
}

// Two logins at once: the first that is stored stays, and both are answered at once. The
// log says if the other was another bank user's.
func TestTwoLoginsAtOnce(t *testing.T) {
	for subject, warnings := range map[string]int{"another": 1, bankUser: 0} {
		loginSteps(t, func(t *testing.T, a *app, s *stepping) {
			b := a.browser()
			callback := b.callbackURL("/bank/login")
			first := a.bank.Token()
			first.Epoch, first.Subject = "first", subject
			s.before.set(func(n int) error {
				if n == 2 {
					s.put(t, first)
				}
				return nil
			})
			begun := time.Now()
			require.Equal(t, 303, b.get(callback).StatusCode)
			require.Zero(t, time.Since(begun), "it is not tried again")
			require.True(t, b.connected())
			require.Equal(t, first.AccessToken, a.next.last().AccessToken)
			require.Equal(t, warnings, strings.Count(a.log.String(), "another bank user's"), subject)
		})
	}
}

// A login that was stored, and refreshed before its process looked again, is one.
func TestLoginThatIsRefreshedAlready(t *testing.T) {
	loginSteps(t, func(t *testing.T, a *app, s *stepping) {
		b := a.browser()
		callback := b.callbackURL("/bank/login")
		s.after.set(func(n int) error {
			if n != 2 {
				return nil
			}
			stored, err := s.Load(t.Context(), "bank/u")
			require.NoError(t, err)
			next := a.bank.Token()
			next.Epoch, next.Subject = stored.Epoch, "another"
			s.put(t, next)
			return errStep
		})
		require.Equal(t, 303, b.get(callback).StatusCode)
		require.True(t, b.connected())
		require.NotContains(t, a.log.String(), "another bank user's")
	})
}

// A callback is delivered to two processes at once. The bank refuses the code of the
// second, and both answer that the user is connected. Another failure is one, and so is a
// code that is refused to a user who was connected before.
func TestCallbackAtTwoProcesses(t *testing.T) {
	for name, test := range map[string]struct {
		fault ganbtest.Fault
		want  int
	}{
		"the code was used":   {ganbtest.Fault{}, 303},
		"the bank has failed": {ganbtest.ServerError, 503},
	} {
		t.Run(name, func(t *testing.T) {
			loginSteps(t, func(t *testing.T, a *app, _ *stepping) {
				other, err := ganbauth.New(a.connector(nil), a.sessions, a.options)
				require.NoError(t, err)
				b := a.browser()
				r := mustRequest("GET", b.callbackURL("/bank/login"))
				r.Header = with(navigate, "Cookie", b.cookieHeader())
				a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Second), 1)
				second := test.fault
				second.Delay = 2 * time.Second
				a.bank.Fail(ganbtest.TokenEndpoint, second, 1)
				var wg sync.WaitGroup
				var statuses [2]int
				for i, h := range []http.Handler{a.handler, a.sessions.LoadAndSave(other.CallbackHandler())} {
					wg.Go(func() {
						time.Sleep(time.Duration(i) * 100 * time.Millisecond)
						resp, _ := serveDirectly(func() http.Handler { return h }).RoundTrip(r)
						statuses[i] = resp.StatusCode
					})
				}
				wg.Wait()
				require.Equal(t, [2]int{303, test.want}, statuses)
				require.Equal(t, 2, a.bank.Count(ganbtest.TokenEndpoint))
			})
		})
	}
	t.Run("who was connected before", func(t *testing.T) {
		loginSteps(t, func(t *testing.T, a *app, _ *stepping) {
			b := a.browser()
			b.login()
			callback := b.callbackURL("/bank/login")
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.InvalidGrant, 1)
			require.Equal(t, 502, b.get(callback).StatusCode)
			require.True(t, b.connected())
		})
	})
}

// SetToken says what has become of the token.
func TestSetTokenIsCompared(t *testing.T) {
	inSteps(t, ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		s.before.set(func(n int) error {
			if n == 2 {
				return s.Delete(t.Context(), "bank/u")
			}
			return nil
		})
		err := s.kit.SetToken(t.Context(), "u", s.bank.Token())
		require.ErrorIs(t, err, ganbauth.ErrSuperseded)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		s.before.set(func(n int) error {
			if n == 4 {
				return errStep
			}
			return nil
		})
		err = s.kit.SetToken(t.Context(), "u", s.bank.Token())
		require.ErrorIs(t, err, errStep)
		require.NotContains(t, err.Error(), "logged in or out")
		s.after.set(func(n int) error {
			if n == 6 {
				return errStep
			}
			return nil
		})
		require.NoError(t, s.kit.SetToken(t.Context(), "u", s.bank.Token()), "it had its effect")
	})
}

// A logout meets other writes, one after the other, and does not lose time over them.
func TestLogoutIsCompared(t *testing.T) {
	inSteps(t, ganbtest.Options{}, 0, func(t *testing.T, s *stepTest) {
		s.before.set(func(n int) error {
			if n <= 5 {
				s.put(t, s.bank.Token())
			}
			return nil
		})
		begun := time.Now()
		require.NoError(t, s.kit.Disconnect(t.Context(), "u"))
		require.Equal(t, 5*50*time.Millisecond, time.Since(begun))
		_, err := s.token()
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)
	})
}

// What a request with a token that is about to expire gets: the new one, also where the
// API has refused another.
func TestTokenThatIsAboutToExpire(t *testing.T) {
	inSteps(t, ganbtest.Options{}, aboutToExpire, func(t *testing.T, s *stepTest) {
		token, err := s.token()
		require.NoError(t, err)
		require.Greater(t, time.Until(token.ExpiresAt), 59*time.Minute)
		require.Equal(t, 1, s.bank.Refreshes())

		token, err = s.Load(t.Context(), "bank/u")
		require.NoError(t, err)
		token.RefreshToken = ""
		s.put(t, token)
		time.Sleep(aboutToExpire)
		got, err := ganbauth.Replace(s.kit, t.Context(), "bank/u", "another")
		require.NoError(t, err)
		require.Equal(t, token.AccessToken, got.AccessToken, "it serves to its end")
	})
}
