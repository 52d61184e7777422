package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/lease"
)

var _ ganbauth.Locker = (*lease.Locker)(nil)

// engine keeps locks in memory. It can be away: statements fail then, or hang.
type engine struct {
	mu      sync.Mutex
	held    map[string]lease.Hold
	away    time.Time // until then
	hangs   bool
	before  func(statement string) error // runs first; its error means that nothing has happened
	after   func(statement string) error // its error is an answer that was lost
	calls   map[string]int
	pending atomic.Int32
}

func newEngine() *engine {
	return &engine{held: map[string]lease.Hold{}, calls: map[string]int{}}
}

var errAway = errors.New("connection refused")

// do runs a statement, which is atomic.
func (e *engine) do(ctx context.Context, statement string, fn func()) error {
	e.pending.Add(1)
	defer e.pending.Add(-1)
	e.mu.Lock()
	wait, hangs, before, after := time.Until(e.away), e.hangs, e.before, e.after
	e.calls[statement]++
	e.mu.Unlock()
	if wait > 0 && !hangs {
		return errAway
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if before != nil {
		if err := before(statement); err != nil {
			return err
		}
	}
	e.mu.Lock()
	fn()
	e.mu.Unlock()
	if after != nil {
		return after(statement)
	}
	return nil
}

func (e *engine) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (held lease.Hold, err error) {
	err = e.do(ctx, "lock", func() {
		if h := e.held[key]; h == (lease.Hold{}) || h.Holder == holder || h == dead {
			e.held[key] = lease.Hold{Holder: holder}
		}
		held = e.held[key]
	})
	return held, err
}

func (e *engine) Extend(ctx context.Context, key, holder string) error {
	return e.do(ctx, "extend", func() {
		if h := e.held[key]; h.Holder == holder {
			h.Beats++
			e.held[key] = h
		}
	})
}

func (e *engine) Unlock(ctx context.Context, key, holder string) error {
	return e.do(ctx, "unlock", func() {
		if e.held[key].Holder == holder {
			delete(e.held, key)
		}
	})
}

func (e *engine) Rest() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls["rest"]++
}

func (e *engine) set(fn func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	fn()
}

// hold returns the lock on k.
func (e *engine) hold() lease.Hold {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held["k"]
}

func (e *engine) count(statement string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.calls[statement]
}

const aLease = 10 * time.Second

// held is a lock that a living process holds.
func held(t *testing.T, e *engine) (unlock func()) {
	t.Helper()
	unlock, err := lease.New(e, aLease).Lock(t.Context(), "k")
	require.NoError(t, err)
	return unlock
}

// try has another process ask for the lock, for that time, and returns its error.
func try(t *testing.T, e *engine, within time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	unlock, err := lease.New(e, aLease).Lock(ctx, "k")
	if err == nil {
		unlock()
	}
	return err
}

// bubble runs a test on a clock of its own. A lease later nothing is left behind.
func bubble(t *testing.T, test func(t *testing.T, e *engine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, newEngine())
		time.Sleep(2 * aLease)
		synctest.Wait()
		require.Zero(t, leaseGoroutines())
	})
}

func TestALivingHolderKeepsItsLock(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock := held(t, e)
		err := try(t, e, 10*aLease)
		require.ErrorIs(t, err, lease.ErrHeld)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		unlock()
		unlock() // once more does no harm
		require.NoError(t, try(t, e, time.Millisecond))
	})
}

// C1: a process that was killed.
func TestC1TheLockOfADeadHolderIsFreeAfterALease(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		e.held["k"] = lease.Hold{Holder: "dead", Beats: 3}
		require.ErrorIs(t, try(t, e, aLease-time.Second), lease.ErrHeld)
		require.NoError(t, try(t, e, aLease+time.Second))
	})
}

func TestLeaseHasBounds(t *testing.T) {
	for given, used := range map[time.Duration]time.Duration{
		0: 10 * time.Second, time.Millisecond: time.Second, time.Second: time.Second, 20 * time.Second: 20 * time.Second, time.Hour: 20 * time.Second,
	} {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: "dead"}
			began := time.Now()
			unlock, err := lease.New(e, given).Lock(t.Context(), "k")
			require.NoError(t, err)
			unlock()
			require.InDelta(t, used, time.Since(began), float64(300*time.Millisecond))
		})
	}
}

// Processes have different leases while an application is deployed with another one.
func TestALivingHolderWithALongerLeaseKeepsItsLock(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock, err := lease.New(e, 20*time.Second).Lock(t.Context(), "k")
		require.NoError(t, err)
		defer unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = lease.New(e, time.Second).Lock(ctx, "k")
		require.ErrorIs(t, err, lease.ErrHeld)
	})
}

// A name says how long its lease is, in seconds that are rounded up. What says none, or too
// much, keeps nobody waiting for long.
func TestTheLeaseOfADeadHolder(t *testing.T) {
	for name, lasts := range map[string]time.Duration{
		"03": 3 * time.Second, "dead20": 20 * time.Second, "dead99": 20 * time.Second, "dead10": 10 * time.Second, "7": 7 * time.Second,
		"dead00": time.Second, "dead-9": time.Second, "dead": time.Second, "x": time.Second,
	} {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: name}
			began := time.Now()
			unlock, err := lease.New(e, time.Second).Lock(t.Context(), "k")
			require.NoError(t, err)
			unlock()
			require.InDelta(t, lasts, time.Since(began), float64(300*time.Millisecond), name)
		})
	}
	bubble(t, func(t *testing.T, e *engine) {
		unlock, err := lease.New(e, 1500*time.Millisecond).Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Regexp(t, "^[A-Z2-7]{24}02$", e.hold().Holder)
		unlock()
	})
}

// The process was paused before it read that it has the lock. Another has taken it over
// since, has done its work, and has unlocked.
func TestALockThatIsAnsweredTooLateIsAskedForAgain(t *testing.T) {
	for name, late := range map[string]time.Duration{"in time": aLease / 2, "too late": aLease * 3 / 4} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, e *engine) {
				e.after = func(string) error {
					e.set(func() {
						e.after = nil
						if late > aLease/2 {
							e.held["k"] = lease.Hold{Holder: "another"}
						}
					})
					time.Sleep(late)
					return nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), late+aLease/2)
				defer cancel()
				unlock, err := lease.New(e, aLease).Lock(ctx, "k")
				if late == aLease/2 {
					require.NoError(t, err)
					unlock()
					return
				}
				require.ErrorIs(t, err, lease.ErrHeld)
			})
		})
	}
}

// Its caller has left meanwhile. Nothing keeps the lock.
func TestALockThatIsAnsweredTooLateIsGivenBack(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		e.after = func(string) error {
			e.set(func() { e.after = nil })
			time.Sleep(aLease * 3 / 4)
			return nil
		}
		_ = try(t, e, aLease/2)
		synctest.Wait()
		require.Zero(t, e.hold())
	})
}

// What was not answered in its time is sent again at once, and not with the next beat.
func TestABeatThatHangsIsSentAgain(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock, err := lease.New(e, 20*time.Second).Lock(t.Context(), "k")
		require.NoError(t, err)
		e.set(func() { e.away, e.hangs = time.Now().Add(9*time.Second), true }) // beats are due after 5 s and 10 s
		time.Sleep(9500 * time.Millisecond)
		require.EqualValues(t, 1, e.hold().Beats)
		unlock()
	})
}

// I4: after an outage the holder is heard first, however long it was.
func TestALivingHolderKeepsItsLockOverAnOutage(t *testing.T) {
	for name, hangs := range map[string]bool{"it hangs": true, "it is down": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, e *engine) {
				unlock := held(t, e)
				defer unlock()
				waits := make(chan error)
				go func() { waits <- try(t, e, 4*aLease) }()
				time.Sleep(aLease)
				back := time.Now().Add(2*aLease + time.Second) // before the holder tries again
				e.set(func() { e.away, e.hangs = back, hangs })
				require.Error(t, <-waits)
				time.Sleep(time.Until(back))
				require.ErrorIs(t, try(t, e, 4*aLease), lease.ErrHeld)
			})
		})
	}
}

// A waiter that was itself suspended has seen nothing meanwhile.
func TestAWaiterThatWasPausedWatchesAgain(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		e.held["k"] = lease.Hold{Holder: "dead"}
		paused := false
		e.before = func(string) error {
			if !paused && time.Since(start) > aLease/2 {
				paused = true
				time.Sleep(callTimeout - time.Millisecond)
			}
			return nil
		}
		start = time.Now()
		require.NoError(t, try(t, e, 4*aLease))
		require.Greater(t, time.Since(start), aLease+aLease/2)
	})
}

var start time.Time

const callTimeout = 3 * time.Second

// F6: the statement took the lock, and nobody heard of it. The client sends it again.
func TestF6ALockWhoseAnswerWasLostIsItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock, err := lease.New(repeating{e}, aLease).Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, 2, e.count("lock"))
		require.ErrorIs(t, try(t, e, time.Second), lease.ErrHeld)
		unlock()
		require.NoError(t, try(t, e, time.Millisecond))
	})
}

// repeating is a client that repeats a statement, as go-redis does.
type repeating struct{ *engine }

func (r repeating) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	if _, err := r.engine.TryLock(ctx, key, holder, dead); err != nil {
		return lease.Hold{}, err
	}
	return r.engine.TryLock(ctx, key, holder, dead)
}

// F6: the client does not repeat it. Lock fails, and what it may have taken is given back.
func TestF6ALockThatFailedIsReleased(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		lost := errors.New("EOF")
		e.after = func(statement string) error {
			if statement == "lock" {
				e.set(func() { e.after = nil })
				return lost
			}
			return nil
		}
		l := lease.New(e, aLease)
		_, err := l.Lock(t.Context(), "k")
		require.ErrorIs(t, err, lost)
		synctest.Wait()
		require.Zero(t, e.hold())
		require.NoError(t, try(t, e, time.Millisecond))
	})
}

// F6: the caller leaves while the statement is on its way, which takes the lock later.
func TestF6ALockThatWasTakenTooLateIsReleased(t *testing.T) {
	for name, away := range map[string]bool{"the engine is well": false, "the engine is away for a while": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, e *engine) {
				e.before = func(statement string) error {
					if statement == "lock" {
						time.Sleep(time.Second)
						e.set(func() { e.before = nil })
						if away {
							e.set(func() { e.away = time.Now().Add(aLease / 2) })
						}
					}
					return nil
				}
				l := lease.New(late{e}, aLease)
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				_, err := l.Lock(ctx, "k")
				require.Error(t, err)
				time.Sleep(2 * time.Second)
				require.NotZero(t, e.hold(), "it has been taken after all")
				time.Sleep(aLease - 2*time.Second)
				require.Zero(t, e.hold())
			})
		})
	}
}

// late is an engine to which a statement is still on its way when its caller has left.
type late struct{ *engine }

func (l late) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	go func() { _, _ = l.engine.TryLock(context.WithoutCancel(ctx), key, holder, dead) }()
	<-ctx.Done()
	return lease.Hold{}, ctx.Err()
}

// An unlock that fails is tried again, and the lock is free before a lease is over.
func TestAnUnlockThatFailedIsRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock := held(t, e)
		e.set(func() { e.away = time.Now().Add(time.Second) })
		unlock()
		require.NotZero(t, e.hold())
		time.Sleep(aLease / 2)
		require.Zero(t, e.hold())
	})
}

// What cannot be released is given up after a lease.
func TestReleasingEnds(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		e.away = time.Now().Add(time.Hour)
		require.ErrorIs(t, try(t, e, time.Minute), errAway)
		time.Sleep(2 * aLease)
		n := e.count("unlock")
		require.Greater(t, n, 1)
		time.Sleep(time.Minute)
		require.Equal(t, n, e.count("unlock"))
	})
}

// C1: an engine that hangs is an error, and not a lock that somebody holds.
func TestC1AnEngineThatHangsIsAnError(t *testing.T) {
	for _, within := range []time.Duration{time.Second, callTimeout + time.Second, time.Hour} {
		bubble(t, func(t *testing.T, e *engine) {
			e.set(func() { e.away, e.hangs = time.Now().Add(time.Hour), true })
			began := time.Now()
			err := try(t, e, within)
			require.ErrorContains(t, err, "does not answer")
			require.NotErrorIs(t, err, lease.ErrHeld)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, min(within, callTimeout), time.Since(began))
		})
	}
}

// It hung in the end, and said before that the lock is held.
func TestAnEngineThatHangsLater(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock := held(t, e)
		defer unlock()
		time.AfterFunc(time.Second, func() { e.set(func() { e.away, e.hangs = time.Now().Add(time.Minute), true }) })
		require.ErrorContains(t, try(t, e, aLease), "does not answer")
	})
}

func TestLockEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := lease.New(e, aLease).Lock(ended, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.Zero(t, e.count("lock"))

		unlock := held(t, e)
		defer unlock()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = lease.New(e, aLease).Lock(ctx, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, lease.ErrHeld)
	})
}

// An ordinary refresh takes the lock for a moment.
func TestALockThatIsShortIsNotExtended(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		l := lease.New(e, aLease)
		for range 100 {
			unlock, err := l.Lock(t.Context(), "k")
			require.NoError(t, err)
			time.Sleep(time.Second)
			unlock()
		}
		require.Zero(t, e.count("extend"))
	})
}

// The locks of a process are extended for hours by one goroutine, which ends with them.
func TestOneGoroutineExtendsAllLocks(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		l := lease.New(e, aLease)
		var unlocks []func()
		for i := range 200 {
			unlock, err := l.Lock(t.Context(), string(rune('a'+i)))
			require.NoError(t, err)
			unlocks = append(unlocks, unlock)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, 1, leaseGoroutines())
		require.InDelta(t, 200*600/2.5, e.count("extend"), 400)
		require.Zero(t, e.count("rest"))
		for _, unlock := range unlocks {
			unlock()
		}
		synctest.Wait()
		require.Zero(t, leaseGoroutines())
		require.Equal(t, 1, e.count("rest"))
		require.Zero(t, e.hold())
		unlock, err := l.Lock(t.Context(), "k") // and it works again
		require.NoError(t, err)
		time.Sleep(aLease)
		require.NotZero(t, e.hold().Beats)
		unlock()
		synctest.Wait()
		require.Equal(t, 2, e.count("rest"))
	})
}

func leaseGoroutines() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), "lease.(*Locker).loop(")
}

// A beat that hangs does not pile up, and does not keep others from being extended.
func TestABeatThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		stalled := stalling{e}
		l := lease.New(stalled, aLease)
		slow, err := l.Lock(t.Context(), "slow")
		require.NoError(t, err)
		unlock, err := l.Lock(t.Context(), "k")
		require.NoError(t, err)
		for range 100 {
			time.Sleep(time.Second)
			synctest.Wait()
			require.LessOrEqual(t, e.pending.Load(), int32(1))
		}
		require.InDelta(t, 100/2.5, e.hold().Beats, 2)
		slow()
		unlock()
	})
}

type stalling struct{ *engine }

func (s stalling) Extend(ctx context.Context, key, holder string) error {
	if key == "slow" {
		s.pending.Add(1)
		defer s.pending.Add(-1)
		<-ctx.Done()
		return ctx.Err()
	}
	return s.engine.Extend(ctx, key, holder)
}

// One beat that hangs, as on a connection that is dead, loses no lock, however short its
// lease is. Nor do two.
func TestABeatThatHangsIsRepeated(t *testing.T) {
	for _, aLease := range []time.Duration{time.Second, 3 * time.Second, aLease} {
		for hang := range 3 {
			bubble(t, func(t *testing.T, e *engine) {
				unlock, err := lease.New(&flaky{engine: e, hang: hang}, aLease).Lock(t.Context(), "k")
				require.NoError(t, err)
				defer unlock()
				ctx, cancel := context.WithTimeout(t.Context(), 4*aLease)
				defer cancel()
				_, err = lease.New(e, aLease).Lock(ctx, "k")
				require.ErrorIs(t, err, lease.ErrHeld)
			})
		}
	}
}

// flaky is an engine at which that many beats hang at first.
type flaky struct {
	*engine
	hang int
}

func (f *flaky) Extend(ctx context.Context, key, holder string) error {
	if f.hang--; f.hang >= 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.engine.Extend(ctx, key, holder)
}

// Beats that hang for many locks, from their first one on, do not keep others from being
// extended.
func TestBeatsThatHang(t *testing.T) {
	for _, n := range []int{8, 200, 960} {
		bubble(t, func(t *testing.T, e *engine) {
			l := lease.New(partly{e}, aLease)
			var unlocks []func()
			for i := range n {
				unlock, err := l.Lock(t.Context(), fmt.Sprint("slow", i))
				require.NoError(t, err)
				unlocks = append(unlocks, unlock)
			}
			unlock, err := l.Lock(t.Context(), "k")
			require.NoError(t, err)
			require.ErrorIs(t, try(t, e, 6*aLease), lease.ErrHeld)
			require.LessOrEqual(t, int(e.pending.Load()), n, "one for each lock at most")
			for _, unlock := range append(unlocks, unlock) {
				unlock()
			}
		})
	}
}

// partly is an engine one part of which hangs.
type partly struct{ *engine }

func (p partly) Extend(ctx context.Context, key, holder string) error {
	if strings.HasPrefix(key, "slow") {
		key = "slow"
	}
	return stalling(p).Extend(ctx, key, holder)
}

// Releases that hang keep no lock from being extended: the application has used up its pool,
// and beats have connections of their own. Names are let go after a lease.
func TestReleasesThatHang(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		pool := &starved{engine: e}
		l := lease.New(pool, aLease)
		unlock, err := l.Lock(t.Context(), "k")
		require.NoError(t, err)
		pool.hangs.Store(true)
		for i := range 100 {
			go func() { _, _ = l.Lock(t.Context(), fmt.Sprint("other", i)) }()
		}
		require.ErrorIs(t, try(t, e, 3*aLease), lease.ErrHeld)
		require.LessOrEqual(t, pool.releases.Load(), int32(8*aLease/callTimeout+8))
		pool.hangs.Store(false)
		unlock()
		require.NoError(t, try(t, e, time.Millisecond))
	})
}

// starved is an engine all of whose connections are in use, but those for beats.
type starved struct {
	*engine
	hangs    atomic.Bool
	releases atomic.Int32
}

func (s *starved) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	if s.hangs.Load() {
		<-ctx.Done()
		return lease.Hold{}, ctx.Err()
	}
	return s.engine.TryLock(ctx, key, holder, dead)
}

func (s *starved) Unlock(ctx context.Context, key, holder string) error {
	if s.hangs.Load() {
		s.releases.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}
	return s.engine.Unlock(ctx, key, holder)
}

// A process that was taken for dead does not end the lock of the next holder.
func TestALostLock(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock := held(t, e)
		e.set(func() { e.held["k"] = lease.Hold{Holder: "next"} })
		time.Sleep(time.Minute)
		unlock()
		require.Equal(t, lease.Hold{Holder: "next"}, e.hold())
	})
}

func TestAFaultOfTheEngineEndsNeitherTheProcessNorTheLock(t *testing.T) {
	for name, fault := range map[string]func(){"panic": func() { panic("a fault of the engine's") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, e *engine) {
				logger := slog.Default()
				slog.SetDefault(slog.New(slog.DiscardHandler))
				defer slog.SetDefault(logger)
				e.before = func(statement string) error {
					if statement == "extend" && e.count("extend") == 1 {
						fault()
					}
					return nil
				}
				unlock := held(t, e)
				time.Sleep(time.Minute)
				require.Greater(t, e.hold().Beats, int64(20), "and the lock is extended on")
				unlock()
			})
		})
	}
}

func TestAPanicOfRestDoesNotEndTheProcess(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		logger, log := slog.Default(), &strings.Builder{}
		slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
		defer slog.SetDefault(logger)
		for _, e := range []lease.Engine{restless{e}, struct{ lease.Engine }{e}} { // the second one has no Rest
			l := lease.New(e, aLease)
			for range 2 {
				unlock, err := l.Lock(t.Context(), "k")
				require.NoError(t, err)
				unlock()
				synctest.Wait()
			}
		}
		require.Equal(t, 2, strings.Count(log.String(), "a fault of Rest"))
		require.Equal(t, 2, strings.Count(log.String(), "level=ERROR"))
	})
}

// restless is an engine that cannot rest.
type restless struct{ *engine }

func (restless) Rest() { panic("a fault of Rest") }

// LockWith brings along what its function has seen when the lock was taken.
func TestLockWith(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock := held(t, e)
		time.AfterFunc(time.Second, unlock)
		calls := 0
		unlock, err := lease.New(e, aLease).LockWith(t.Context(), "k", func(ctx context.Context, holder string, dead lease.Hold) (lease.Hold, error) {
			calls++
			return e.TryLock(ctx, "k", holder, dead)
		})
		require.NoError(t, err)
		require.Equal(t, e.count("lock")-1, calls)
		unlock()
		require.Zero(t, e.hold())
	})
}

// A waiter asks soon at first, then ten times a second.
func TestHowOftenAWaiterAsks(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		e.held["k"] = lease.Hold{Holder: "other"}
		began := time.Now()
		var asked []time.Duration
		e.before = func(string) error {
			asked = append(asked, time.Since(began)/time.Millisecond)
			return nil
		}
		require.ErrorIs(t, try(t, e, 400*time.Millisecond), lease.ErrHeld)
		require.Equal(t, []time.Duration{0, 5, 15, 35, 75, 155, 255, 355}, asked)
	})
}

// The lock of a dead holder is taken over once it has stood still for longer than a
// lease, by a waiter that has heard the engine at least every quarter of one.
func TestWhenADeadLockIsTakenOver(t *testing.T) {
	t.Run("not when it is a lease, but when it is over", func(t *testing.T) {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: "dead"}
			began := time.Now()
			unlock, err := lease.New(e, 1155*time.Millisecond).Lock(t.Context(), "k") // as above
			require.NoError(t, err)
			require.Equal(t, 1355*time.Millisecond, time.Since(began))
			unlock()
		})
	})
	t.Run("not a lease after a pause, however slow the first answer was", func(t *testing.T) {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: "dead"}
			began := time.Now()
			slow := map[int]time.Duration{1: 2 * time.Second, 50: 2900 * time.Millisecond}
			paused := time.Duration(0)
			e.before = func(string) error {
				n := e.count("lock")
				time.Sleep(slow[n])
				if n == 50 {
					paused = time.Since(began)
				}
				return nil
			}
			unlock, err := lease.New(e, aLease).Lock(t.Context(), "k")
			require.NoError(t, err)
			require.Greater(t, paused, 2*time.Second)
			require.Greater(t, time.Since(began), paused+aLease)
			unlock()
		})
	})
	t.Run("a quarter of a lease is no pause", func(t *testing.T) {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: "dead"}
			e.before = func(string) error {
				time.Sleep(150 * time.Millisecond) // and 100 between two statements
				return nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			unlock, err := lease.New(e, time.Second).Lock(ctx, "k")
			require.NoError(t, err)
			unlock()
		})
	})
}

// An engine that is far is not one that pauses.
func TestADeadLockAtAFarEngineIsTakenOver(t *testing.T) {
	for aLease, far := range map[time.Duration]time.Duration{
		time.Second: 240 * time.Millisecond, 2 * time.Second: 410 * time.Millisecond, 3 * time.Second: 700 * time.Millisecond,
	} {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: "dead"}
			e.before = func(string) error {
				time.Sleep(far)
				return nil
			}
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 3*aLease)
			defer cancel()
			unlock, err := lease.New(e, aLease).Lock(ctx, "k")
			require.NoError(t, err)
			require.Greater(t, time.Since(began), aLease+2*far)
			unlock()
		})
	}
}

// A living holder keeps its lock there.
func TestALivingHolderAtAFarEngineKeepsItsLock(t *testing.T) {
	for _, far := range []time.Duration{100 * time.Millisecond, 240 * time.Millisecond, 600 * time.Millisecond} {
		bubble(t, func(t *testing.T, e *engine) {
			e.before = func(string) error {
				time.Sleep(far)
				return nil
			}
			unlock, err := lease.New(e, time.Second).Lock(t.Context(), "k")
			require.NoError(t, err)
			defer unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err = lease.New(e, time.Second).Lock(ctx, "k")
			require.ErrorIs(t, err, lease.ErrHeld)
		})
	}
}

// What the engine said before its statement was cut off, or failed.
func TestWhatAFailureMeans(t *testing.T) {
	t.Run("it answers slowly, and the caller leaves", func(t *testing.T) {
		bubble(t, func(t *testing.T, e *engine) {
			unlock := held(t, e)
			defer unlock()
			time.AfterFunc(955*time.Millisecond, func() { e.set(func() { e.away, e.hangs = time.Now().Add(time.Minute), true }) })
			err := try(t, e, 2*time.Second)
			require.ErrorIs(t, err, lease.ErrHeld)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	})
	for within, held := range map[time.Duration]bool{3954 * time.Millisecond: true, 3955 * time.Millisecond: false} {
		bubble(t, func(t *testing.T, e *engine) { // the last answer is that of 955 ms
			e.held["k"] = lease.Hold{Holder: "other"}
			time.AfterFunc(time.Second, func() { e.set(func() { e.away, e.hangs = time.Now().Add(time.Minute), true }) })
			require.Equal(t, held, errors.Is(try(t, e, within), lease.ErrHeld))
		})
	}
	t.Run("it fails while the caller waits", func(t *testing.T) {
		bubble(t, func(t *testing.T, e *engine) {
			e.held["k"] = lease.Hold{Holder: "other"}
			time.AfterFunc(time.Second, func() { e.set(func() { e.away = time.Now().Add(time.Second) }) })
			err := try(t, e, time.Minute)
			require.ErrorIs(t, err, errAway)
			require.NotErrorIs(t, err, lease.ErrHeld)
		})
	})
}

// The context of each statement is released when it is over.
func TestContextsAreReleased(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		kept := &contexts{engine: e}
		unlock, err := lease.New(kept, aLease).Lock(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(aLease/4 + time.Millisecond)
		require.EqualValues(t, 1, e.hold().Beats, "a quarter of a lease after it was taken")
		unlock()
		require.Len(t, kept.all, 3)
		for _, ctx := range kept.all {
			require.ErrorIs(t, ctx.Err(), context.Canceled)
		}
	})
}

// contexts keeps the contexts of the statements.
type contexts struct {
	*engine
	all []context.Context
}

func (c *contexts) TryLock(ctx context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	c.all = append(c.all, ctx)
	return c.engine.TryLock(ctx, key, holder, dead)
}

func (c *contexts) Extend(ctx context.Context, key, holder string) error {
	c.all = append(c.all, ctx)
	return c.engine.Extend(ctx, key, holder)
}

func (c *contexts) Unlock(ctx context.Context, key, holder string) error {
	c.all = append(c.all, ctx)
	return c.engine.Unlock(ctx, key, holder)
}

// A name is released until that has succeeded twice. Then the goroutine ends.
func TestANameIsReleasedTwice(t *testing.T) {
	for name, test := range map[string]struct {
		fails func(n int) error // of the unlock of that number
		want  int
	}{
		"both succeed":   {func(int) error { return nil }, 2},
		"one in between": {func(n int) error { return map[bool]error{true: errAway}[n == 2] }, 3},
		"it panics first": {func(n int) error {
			if n == 1 {
				panic("a fault of the engine's")
			}
			return nil
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, e *engine) {
				logger, log := slog.Default(), &strings.Builder{}
				slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
				defer slog.SetDefault(logger)
				e.before = func(statement string) error {
					if statement == "lock" {
						return errAway
					}
					return test.fails(e.count("unlock"))
				}
				require.ErrorIs(t, try(t, e, time.Second), errAway)
				time.Sleep(time.Duration(test.want-1) * aLease / 4)
				synctest.Wait()
				require.Equal(t, test.want, e.count("unlock"))
				require.Equal(t, 1, e.count("rest"), "at once")
				time.Sleep(aLease)
				require.Equal(t, test.want, e.count("unlock"))
				require.Equal(t, name == "it panics first", strings.Contains(log.String(), "a fault of the engine's"))
			})
		})
	}
}

// While the engine hangs, eight statements are sent at first, and nobody waits for the
// goroutine that sends them.
func TestAnEngineThatHangsHoldsUpNobody(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		l := lease.New(e, aLease)
		var unlocks []func()
		for i := range 20 {
			unlock, err := l.Lock(t.Context(), string(rune('a'+i)))
			require.NoError(t, err)
			unlocks = append(unlocks, unlock)
		}
		e.set(func() {
			e.before = func(statement string) error {
				if statement == "extend" {
					time.Sleep(callTimeout)
				}
				if statement == "unlock" {
					return errAway
				}
				return nil
			}
		})
		time.Sleep(aLease/4 + time.Millisecond)
		require.EqualValues(t, 8, e.pending.Load())
		began := time.Now()
		for _, unlock := range unlocks {
			unlock()
		}
		require.Zero(t, time.Since(began))
	})
}

// The engine's connections are given back when nothing uses them any more.
func TestRestWaitsForWhatIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T, e *engine) {
		unlock := held(t, e)
		e.set(func() {
			e.before = func(statement string) error {
				if statement == "extend" {
					time.Sleep(time.Second)
				}
				return nil
			}
		})
		time.Sleep(aLease/4 + time.Millisecond)
		unlock()
		synctest.Wait()
		require.Zero(t, e.count("rest"))
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 1, e.count("rest"))
	})
	bubble(t, func(t *testing.T, e *engine) { // the next lock is taken before a beat of the last one has ended
		l := lease.New(e, aLease)
		unlock, err := l.Lock(t.Context(), "k")
		require.NoError(t, err)
		e.set(func() { e.away, e.hangs = time.Now().Add(aLease/2), true })
		time.Sleep(aLease/4 + time.Millisecond) // it is on its way
		e.set(func() { e.away = time.Time{} })
		unlock()
		synctest.Wait()
		unlock, err = l.Lock(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(aLease)
		require.Zero(t, e.count("rest"))
		unlock()
		time.Sleep(aLease)
		require.Equal(t, 1, e.count("rest"))
	})
	bubble(t, func(t *testing.T, e *engine) { // one that has nothing to give back
		unlock, err := lease.New(struct{ lease.Engine }{e}, aLease).Lock(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(aLease)
		unlock()
	})
}

// A beat goes over the connection of its own, and over the application's where that one does
// not answer in half of the time, a second at most.
func TestExtend(t *testing.T) {
	refused := errors.New("refused")
	hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for name, test := range map[string]struct {
		apart  func(context.Context) error
		within time.Duration
		shared bool
		after  time.Duration
	}{
		"answered":              {func(context.Context) error { return nil }, time.Second, false, 0},
		"refused":               {func(context.Context) error { return refused }, time.Second, true, 0},
		"it hangs":              {hangs, time.Minute, true, time.Second},
		"it hangs, little time": {hangs, time.Second, true, time.Second / 2},
		"without a deadline":    {hangs, 0, true, time.Second},
		"the time is over":      {hangs, -time.Second, false, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if test.within != 0 {
				ctx, cancel = context.WithTimeout(ctx, test.within)
			}
			defer cancel()
			begun, called := time.Now(), false
			var short context.Context
			apart := func(ctx context.Context) error { short = ctx; return test.apart(ctx) }
			err := lease.Extend(ctx, apart, func(given context.Context) error {
				called = true
				require.Equal(t, ctx, given)
				return refused
			})
			require.Error(t, short.Err(), "it is released")
			require.Equal(t, test.after, time.Since(begun), name)
			require.Equal(t, test.shared, called, name)
			require.Equal(t, test.shared, errors.Is(err, refused), name)
			require.Equal(t, name == "answered", err == nil, name)
		})
	}
}
