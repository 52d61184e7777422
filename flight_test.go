package ganbauth_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// A keyed mutex excludes by key, whatever happens to other keys, and waiting for it ends.
func TestKeyedMutex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m ganbauth.KeyedMutex
		unlock, err := m.Lock(t.Context(), "a")
		require.NoError(t, err)
		other, err := m.Lock(t.Context(), "b")
		require.NoError(t, err)
		other()

		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		_, err = m.Lock(soon, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begun))

		time.AfterFunc(time.Second, unlock)
		again, err := m.Lock(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, time.Since(begun))
		again()
		require.Zero(t, m.Held())
	})
}

// Whoever waits with a request that leaves before its turn at the bank has come gets the
// turn.
func TestFlightThatIsNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bank, store := ganbtest.NewServer(ganbtest.Options{InProcess: true}), ganbauth.NewMemoryStore()
		connect(t, bank, store, "first")
		connect(t, bank, store, "u")
		time.Sleep(expired)
		kit := backgroundKit(t, bank, store, nil, func(o *ganbauth.Options) { o.TokenRate = 0.5 })
		_, err := kit.Token(t.Context(), "first")
		require.NoError(t, err)

		begun := time.Now()
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := kit.Token(soon, "u"); ganbauth.StatusCode(err) != 503 {
				t.Error(err)
			}
		})
		synctest.Wait()
		token, err := kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.True(t, token.Valid())
		require.Equal(t, 2*time.Second, time.Since(begun))
		wg.Wait()
		require.Equal(t, 2, bank.Refreshes())
	})
}

// landing makes a flight's run: it takes that long, and so does what is left to do.
func landing(value string, takes, rest time.Duration) func(context.Context) (string, func(), error) {
	return func(context.Context) (string, func(), error) {
		time.Sleep(takes)
		if rest == 0 {
			return value, nil, nil
		}
		return value, func() { time.Sleep(rest) }, nil
	}
}

// What is left to do after an outcome holds an answer up for a moment at the most.
func TestFlightWithARest(t *testing.T) {
	for name, test := range map[string]struct{ rest, deadline, took time.Duration }{
		"nothing": {0, time.Hour, time.Second},
		"short":   {ganbauth.Grace - 1, time.Hour, time.Second + ganbauth.Grace - 1},
		"long":    {time.Hour, time.Hour, time.Second + ganbauth.Grace},
		"whose request leaves": {time.Hour, time.Second + time.Millisecond,
			time.Second + time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f ganbauth.Flights
				ctx, cancel := context.WithTimeout(t.Context(), test.deadline)
				defer cancel()
				begun := time.Now()
				value, err := f.Do(ctx, "a", nil, landing("x", time.Second, test.rest))
				require.NoError(t, err)
				require.Equal(t, "x", value)
				require.Equal(t, test.took, time.Since(begun))
				value, err = f.Do(t.Context(), "a", nil, landing("y", 0, 0))
				require.NoError(t, err)
				require.Equal(t, "y", value, "the rest of the last flight keeps nobody from a new one")
				require.NoError(t, f.Wait(t.Context()))
				require.Equal(t, max(test.took, time.Second+test.rest), time.Since(begun))
				synctest.Wait()
				require.Zero(t, f.Held())
			})
		})
	}
}

// A flight lands also if its goroutine is ended.
func TestFlightThatIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f ganbauth.Flights
		left := 0
		admit := func(context.Context) (func(), error) { return func() { left++ }, nil }
		_, err := f.Do(t.Context(), "a", admit, func(context.Context) (string, func(), error) {
			runtime.Goexit()
			return "", nil, nil
		})
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.ErrorContains(t, err, "Goexit")
		require.Equal(t, 1, left)
		value, err := f.Do(t.Context(), "a", nil, landing("x", 0, 0))
		require.NoError(t, err)
		require.Equal(t, "x", value)
		require.NoError(t, f.Wait(t.Context()))
		require.Zero(t, f.Held())
	})
}

func TestFlightsByKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f ganbauth.Flights
		var wg sync.WaitGroup
		runs := map[string]int{}
		for range 3 {
			for _, key := range []string{"a", "b"} {
				wg.Go(func() {
					value, err := f.Do(t.Context(), key, nil, func(ctx context.Context) (string, func(), error) {
						runs[key]++
						return landing("of "+key, time.Second, time.Second)(ctx)
					})
					if err != nil || value != "of "+key {
						t.Error(key, value, err)
					}
				})
				synctest.Wait()
			}
		}
		require.Equal(t, 4, f.Held(), "two to join, and two to wait for")
		require.Zero(t, f.Age("a"))
		time.Sleep(time.Millisecond)
		require.Equal(t, time.Millisecond, f.Age("a"))
		require.Zero(t, f.Age("c"))
		wg.Wait()
		require.Equal(t, map[string]int{"a": 1, "b": 1}, runs)
		require.Zero(t, f.Age("a"))
		require.Equal(t, 2, f.Held(), "their rest")
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, f.Wait(short), context.DeadlineExceeded)
		require.NoError(t, f.Wait(t.Context()))
		synctest.Wait()
		require.Zero(t, f.Held())
	})
}

// A flight that lands takes no other with it.
func TestFlightLandsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f ganbauth.Flights
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = f.Do(t.Context(), "b", nil, landing("x", time.Minute, 0)) })
		synctest.Wait()
		_, err := f.Do(t.Context(), "a", nil, landing("y", time.Second, 0))
		require.NoError(t, err)
		value, err := f.Do(t.Context(), "b", nil, landing("another", 0, 0))
		require.NoError(t, err)
		require.Equal(t, "x", value)
		wg.Wait()
	})
}

// A flight goes on when its request leaves, and a new one does not begin before it is over.
func TestFlightOutlivesItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f ganbauth.Flights
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := f.Do(ctx, "a", nil, func(ctx context.Context) (string, func(), error) {
			time.Sleep(2 * time.Second)
			return "x", nil, ctx.Err()
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 503, ganbauth.StatusCode(err))
		require.Equal(t, time.Second, time.Since(begun))
		value, err := f.Do(t.Context(), "a", nil, nil)
		require.NoError(t, err, "the flight's context has not ended")
		require.Equal(t, "x", value)
		require.Equal(t, 2*time.Second, time.Since(begun))
	})
}

// A flight that is refused at the last moment has a value that nobody gets. It is forgotten,
// or what the flight has left to do is done.
func TestFlightIsRefusedAsItLands(t *testing.T) {
	refused := errors.New("refused")
	for name, c := range map[string]struct {
		err  error
		rest bool
		want string
	}{
		"it ends well":                    {nil, false, "forgotten"},
		"it ends well, with things to do": {nil, true, "rest"},
		"it fails":                        {errSick, false, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			for _, tells := range []bool{true, false} {
				var f *ganbauth.Flights
				got := ""
				forgotten := func(value string, refused bool) {
					require.Equal(t, "x", value)
					if refused {
						got += "forgotten"
					}
				}
				if !tells {
					forgotten = nil
				}
				f = ganbauth.NewFlights(func(string, error) time.Duration {
					_, known := f.Refuse("a", refused)
					require.False(t, known, name)
					return time.Hour
				}, 1, forgotten)
				var rest func()
				if c.rest {
					rest = func() { got += "rest" }
				}
				_, err := f.Do(t.Context(), "a", nil, func(context.Context) (string, func(), error) { return "x", rest, c.err })
				require.ErrorIs(t, err, refused, name)
				synctest.Wait()
				if tells || c.rest {
					require.Equal(t, c.want, got, name)
				}
				_, err = f.Do(t.Context(), "a", nil, nil)
				require.ErrorIs(t, err, refused, name)
				time.Sleep(time.Hour)
			}
		})
	}
}

// Who has waited for a flight finds its value. There is none before, or if the flight fails.
func TestFlightIsRememberedWhenItHasEnded(t *testing.T) {
	f := ganbauth.NewFlights(func(string, error) time.Duration { return time.Hour }, 1, nil)
	_, _ = f.Do(t.Context(), "a", nil, func(context.Context) (string, func(), error) {
		require.Empty(t, f.Remembered())
		return "x", nil, errSick
	})
	require.Empty(t, f.Remembered())
	for range 2000 {
		f := ganbauth.NewFlights(func(string, error) time.Duration { return time.Hour }, 1, nil)
		begun := make(chan struct{})
		go func() {
			_, _ = f.Do(t.Context(), "a", nil, func(context.Context) (string, func(), error) {
				close(begun)
				return "x", nil, nil
			})
		}()
		<-begun
		require.NoError(t, f.Wait(t.Context()))
		require.Equal(t, []string{"x"}, f.Remembered())
	}
}

func TestFlightIsAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f ganbauth.Flights
		var seen []string
		admit := func(context.Context) (func(), error) {
			require.Zero(t, f.Age("a"), "it has not begun")
			seen = append(seen, "enter")
			return func() { seen = append(seen, "leave") }, nil
		}
		value, err := f.Do(t.Context(), "a", admit, func(context.Context) (string, func(), error) {
			seen = append(seen, "run")
			return "x", func() { seen = append(seen, "rest") }, nil
		})
		require.NoError(t, err)
		require.Equal(t, "x", value)
		require.Equal(t, []string{"enter", "run", "leave", "rest"}, seen)
		full := errors.New("full")
		_, err = f.Do(t.Context(), "a", func(context.Context) (func(), error) { return nil, full }, nil)
		require.ErrorIs(t, err, full)
		synctest.Wait()
		require.Zero(t, f.Held())
	})
}

func TestFlightThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f ganbauth.Flights
		left := false
		_, err := f.Do(t.Context(), "a", func(context.Context) (func(), error) { return func() { left = true }, nil },
			func(context.Context) (string, func(), error) { panic("boom") })
		require.EqualError(t, err, "ganbauth: panic: boom")
		require.True(t, left)
		synctest.Wait()
		require.Zero(t, f.Held())
	})
	require.EqualError(t, ganbauth.Safely(func() error { panic("boom") }), "ganbauth: panic: boom")
	require.NoError(t, ganbauth.Safely(func() error { return nil }))
}

// An outcome is remembered for as long as keep says. One that has failed is remembered only
// while there are few, so that failures cannot fill the memory.
func TestFlightIsRemembered(t *testing.T) {
	for name, test := range map[string]struct {
		keep   time.Duration
		others int
		err    error
		kept   time.Duration
	}{
		"not":                         {0, 0, nil, 0},
		"a while":                     {time.Minute, 0, nil, time.Minute},
		"among many":                  {time.Minute, 5, nil, time.Minute},
		"one that failed":             {time.Minute, 2, errSick, time.Minute},
		"one that failed, among many": {time.Minute, 3, errSick, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runs := 0
				var forgotten []string
				f := ganbauth.NewFlights(func(value string, err error) time.Duration {
					if value == "of another" {
						return 0
					}
					require.Equal(t, test.err, err)
					return test.keep
				}, 3, func(value string, refused bool) {
					require.False(t, refused)
					if value != "of another" {
						forgotten = append(forgotten, value)
					}
				})
				run := func(context.Context) (string, func(), error) { runs++; return "x", nil, test.err }
				var others sync.WaitGroup
				for i := range test.others {
					others.Go(func() { _, _ = f.Do(t.Context(), string(rune('b'+i)), nil, landing("of another", time.Hour, 0)) })
				}
				synctest.Wait()
				do := func() {
					value, err := f.Do(t.Context(), "a", nil, run)
					require.Equal(t, test.err, err)
					require.Equal(t, "x", value)
				}
				do()
				if test.kept > 0 {
					require.Empty(t, forgotten)
					time.Sleep(test.kept - 1)
					do()
					require.Equal(t, 1, runs)
					time.Sleep(time.Nanosecond)
					synctest.Wait()
				}
				require.Equal(t, test.err == nil, slices.Equal(forgotten, []string{"x"}))
				do()
				require.Equal(t, 2, runs)
				others.Wait()
			})
		})
	}
}

func TestShortly(t *testing.T) {
	for name, test := range map[string]struct{ takes, took time.Duration }{
		"at once": {0, 0},
		"quick":   {ganbauth.Grace - 1, ganbauth.Grace - 1},
		"slow":    {time.Hour, ganbauth.Grace},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, done := time.Now(), false
				ganbauth.Shortly(func() { time.Sleep(test.takes); done = true })
				require.Equal(t, test.took, time.Since(begun))
				time.Sleep(time.Hour)
				synctest.Wait()
				require.True(t, done)
			})
		})
	}
}
