package ganbauth_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

func TestGuardDecisions(t *testing.T) {
	enter := func(t *testing.T, g ganbauth.Guard, key string) (turn ganbauth.Turn, waited time.Duration) {
		t.Helper()
		begun := time.Now()
		turn, err := g.Enter(t.Context(), key, 'u', true)
		require.NoError(t, err)
		return turn, time.Since(begun)
	}
	failure := &ganbauth.TokenError{StatusCode: 500}
	tooMany := &ganbauth.TokenError{StatusCode: 429}
	for name, test := range map[string]func(t *testing.T, g ganbauth.Guard){
		"a turn that is not used is not lost": func(t *testing.T, _ ganbauth.Guard) {
			g := ganbauth.NewGuard(1)
			for range 5 {
				turn, waited := enter(t, g, "a")
				require.Zero(t, waited)
				turn.Leave()
			}
		},
		"users who failed while others were answered say nothing": func(t *testing.T, g ganbauth.Guard) {
			since := time.Now()
			time.Sleep(time.Minute)
			g.Send("well", nil, time.Time{})
			for i := range 100 {
				time.Sleep(time.Second)
				g.Send(fmt.Sprint(i), failure, since)
			}
			require.NoError(t, g.Away())
			for i := range 16 {
				g.Send(fmt.Sprint(i), failure, time.Now())
				time.Sleep(time.Second)
			}
			require.Error(t, g.Away(), "those who begin to fail do")
		},
		"a rate that nobody waits for is forgotten": func(t *testing.T, g ganbauth.Guard) {
			for i := range 10 {
				g.Send(fmt.Sprint(i), nil, time.Time{})
			}
			g.Send("refused", tooMany, time.Time{})
			turn, waited := enter(t, g, "a")
			require.Equal(t, time.Second, waited, "the bank is left alone for a moment")
			turn.Leave()
			time.Sleep(61 * time.Second)
			for range 50 {
				turn, waited := enter(t, g, "a")
				require.Zero(t, waited)
				turn.Finish(nil, time.Time{})
			}
		},
		"the bank refuses three times in a row": func(t *testing.T, g ganbauth.Guard) {
			for i := range 3 {
				require.NoError(t, g.Away())
				g.Send(fmt.Sprint(i), tooMany, time.Time{})
				time.Sleep(2 * time.Second)
			}
			g.Send("probe", nil, time.Time{})
			require.NoError(t, g.Away())
		},
	} {
		withGuard(t, name, 0, test)
	}
}

// What the outcome of a request says about the bank: how many users it takes to believe
// that the bank is away.
func TestGuardSigns(t *testing.T) {
	const never = 0
	refusal := func(status int, code string) error { return &ganbauth.TokenError{StatusCode: status, Code: code} }
	for name, c := range map[string]struct {
		err   error
		users int
	}{
		"an answer":                     {nil, never},
		"a refresh token alone":         {ganbauth.Salvaged(ganbauth.ErrTokenFormat), never},
		"another user":                  {ganbauth.ErrOtherSubject, never},
		"a dead grant":                  {refusal(400, "invalid_grant"), never},
		"the gateway's refusal":         {refusal(401, "WG_ERR_105"), never},
		"no answer in time":             {ganbauth.NoAnswer(context.DeadlineExceeded), 3},
		"nobody there":                  {ganbauth.NoAnswer(errRefused), 3},
		"no proxy there":                {ganbauth.NoAnswer(&net.OpError{Op: "proxyconnect", Err: errRefused}), 3},
		"maintenance":                   {refusal(400, "WG_ERR_300"), 3},
		"temporarily_unavailable":       {refusal(400, "temporarily_unavailable"), 3},
		"501":                           {refusal(501, ""), 3},
		"503":                           {refusal(503, ""), 3},
		"500":                           {refusal(500, ""), 16},
		"a dead grant, with 503":        {refusal(503, "invalid_grant"), 3},
		"a wrong secret":                {refusal(401, "invalid_client"), 16},
		"an answer that stops":          {ganbauth.CutAnswer(500, context.DeadlineExceeded), 16},
		"a cut connection":              {ganbauth.NoAnswer(io.EOF), 16},
		"a connection that breaks":      {ganbauth.NoAnswer(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), 16},
		"no answer of the bank's":       {context.DeadlineExceeded, 16},
		"an answer that cannot be used": {ganbauth.ErrTokenFormat, 16},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := ganbauth.NewGuard(0)
				for range 50 {
					g.Send("the same user", c.err, time.Time{})
				}
				for u := 1; u < 50 && (c.users == never || u < c.users); u++ {
					require.NoError(t, g.Away(), "after %d users", u)
					g.Send(fmt.Sprint(u), c.err, time.Time{})
				}
				err := g.Away()
				require.Equal(t, c.users != never, err != nil)
				if err != nil {
					require.ErrorIs(t, err, ganbauth.ErrUnavailable)
					require.ErrorIs(t, err, c.err)
				}
			})
		})
	}
}

// How many requests may be at the bank at once, of each kind.
func TestGuardRoom(t *testing.T) {
	room := func(g ganbauth.Guard, class rune) (n int) {
		for ; ; n++ {
			ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
			_, err := g.Enter(ctx, fmt.Sprint(class, n), class, true)
			cancel()
			if err != nil {
				return n
			}
			if class == 'j' {
				time.Sleep(time.Second) // jobs go one a second
			}
		}
	}
	run := func(name string, test func(t *testing.T, g ganbauth.Guard)) { withGuard(t, name, 0, test) }
	run("nothing is known of the bank", func(t *testing.T, g ganbauth.Guard) {
		require.Equal(t, 64, room(g, 'u'))
		require.Equal(t, 64, room(g, 'l'), "logins have their own")
		require.Zero(t, room(g, 'j'), "jobs share the users'")
	})
	run("jobs", func(t *testing.T, g ganbauth.Guard) {
		require.Equal(t, 16, room(g, 'j'))
		require.Equal(t, 48, room(g, 'u'))
	})
	run("each answer of the last second allows one more", func(t *testing.T, g ganbauth.Guard) {
		for i := range 10 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
			time.Sleep(50 * time.Millisecond)
		}
		require.Equal(t, 74, room(g, 'u'))
	})
	run("an answer is forgotten after a second", func(t *testing.T, g ganbauth.Guard) {
		for i := range 10 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
		}
		time.Sleep(950 * time.Millisecond)
		require.Equal(t, 74, room(g, 'u'))
		time.Sleep(200 * time.Millisecond)
		require.Zero(t, room(g, 'u'), "ten too many are out")
	})
	run("an answer counts for one second, not more", func(t *testing.T, g ganbauth.Guard) {
		for i := range 10 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
		}
		time.Sleep(time.Second)
		require.Equal(t, 64, room(g, 'u'))
	})
	run("not more than there are connections", func(t *testing.T, g ganbauth.Guard) {
		for i := range 2000 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
		}
		require.Equal(t, 960, room(g, 'u'))
	})
}

// Jobs go one a second where Options.TokenRate says nothing, and give back what they have
// not used.
func TestGuardJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := ganbauth.NewGuard(0)
		require.LessOrEqual(t, g.UntilJob(), time.Duration(0))
		for i := range 3 {
			turn, err := g.Enter(t.Context(), fmt.Sprint(i), 'j', true)
			require.NoError(t, err)
			require.Equal(t, time.Duration(i)*time.Second, time.Since(g.Begun))
			require.Equal(t, time.Second, g.UntilJob())
			turn.Finish(nil, time.Time{})
		}
		unused, err := g.Enter(t.Context(), "unused", 'j', true)
		require.NoError(t, err)
		unused.Leave()
		require.LessOrEqual(t, g.UntilJob(), time.Duration(0))
		_, err = g.Enter(t.Context(), "user", 'u', true)
		require.NoError(t, err)
		require.Equal(t, 3*time.Second, time.Since(g.Begun), "users wait for no job")

		g = ganbauth.NewGuard(4)
		for i := range 3 {
			turn, err := g.Enter(t.Context(), fmt.Sprint(i), 'j', true)
			require.NoError(t, err)
			require.Equal(t, time.Duration(i)*time.Second/4, time.Since(g.Begun))
			turn.Finish(nil, time.Time{})
		}
	})
}

// While the bank is away one request at a time looks for it, after pauses that grow with the
// outage, from a second to a minute, by up to a fifth less; or when the bank has said.
func TestGuardProbes(t *testing.T) {
	away := func(hint time.Duration) ganbauth.Guard {
		g := ganbauth.NewGuard(0)
		for i := range 3 {
			g.Send(fmt.Sprint(i), &ganbauth.TokenError{StatusCode: 503, RetryAfter: hint}, time.Time{})
		}
		return g
	}
	// next waits for the next probe, in steps, and lets it fail.
	next := func(t *testing.T, g ganbauth.Guard, step time.Duration) (pause time.Duration) {
		begun := time.Now()
		for g.Away() != nil {
			wait := ganbauth.RetryAfter(g.Away())
			require.GreaterOrEqual(t, wait, time.Second)
			require.LessOrEqual(t, wait, 75*time.Second)
			time.Sleep(step)
		}
		pause = time.Since(begun)
		turn, err := g.Enter(t.Context(), "probe", 'u', true)
		require.NoError(t, err)
		require.Error(t, g.Away(), "one at a time")
		_, err = g.Enter(t.Context(), "another", 'u', true)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		turn.Finish(&ganbauth.TokenError{StatusCode: 503}, time.Time{})
		return pause
	}
	synctest.Test(t, func(t *testing.T) {
		g := away(0)
		for i := range 40 {
			want := min(max(time.Since(g.Begun)/4, time.Second), time.Minute)
			got := next(t, g, want/100)
			require.GreaterOrEqual(t, got, want*4/5-want/100, "probe %d", i)
			require.LessOrEqual(t, got, want+want/100, "probe %d", i)
		}
		require.Greater(t, time.Since(g.Begun), 10*time.Minute, "the longest pauses have been seen")

		time.Sleep(time.Minute)
		turn, err := g.Enter(t.Context(), "probe", 'u', true)
		require.NoError(t, err)
		turn.Finish(nil, time.Time{})
		require.NoError(t, g.Away(), "it is back")

		g = away(50 * time.Second)
		got := next(t, g, time.Second/2)
		require.GreaterOrEqual(t, got, 50*time.Second)
		require.LessOrEqual(t, got, 51*time.Second)
	})
}

// After a 429 the bank is left alone, for as long as it asks and a second at least. Then
// the requests are spaced a little wider than what it took in the second before.
func TestGuardPace(t *testing.T) {
	tooMany := func(hint time.Duration) error { return &ganbauth.TokenError{StatusCode: 429, RetryAfter: hint} }
	for hint, pause := range map[time.Duration]time.Duration{0: time.Second, 7 * time.Second: 7 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			g := ganbauth.NewGuard(0)
			for i := range 20 {
				g.Send(fmt.Sprint(i), nil, time.Time{})
			}
			g.Send("refused", tooMany(hint), time.Time{})
			begun := time.Now()
			for i := range 5 {
				_, err := g.Enter(t.Context(), fmt.Sprint(i), 'u', true)
				require.NoError(t, err)
				want := pause + time.Duration(i)*time.Second/19 // 95 % of 20 a second
				require.InDelta(t, want.Seconds(), time.Since(begun).Seconds(), 0.001)
			}
		})
	}
}

// withGuard runs test in a bubble with a new guard.
func withGuard(t *testing.T, name string, rate float64, test func(t *testing.T, g ganbauth.Guard)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { test(t, ganbauth.NewGuard(rate)) }) })
}

// takeAll takes the 64 turns that there are while nothing is known of the bank.
func takeAll(t *testing.T, g ganbauth.Guard) (turns []ganbauth.Turn) {
	t.Helper()
	for i := range ganbauth.MaxRefreshes {
		turn, err := g.Enter(t.Context(), fmt.Sprint("early", i), 'u', false)
		require.NoError(t, err)
		turns = append(turns, turn)
	}
	return turns
}

// waits enters the queue, and sends the outcome when it is known.
func waits(ctx context.Context, g ganbauth.Guard, key string, class rune) <-chan error {
	outcome := make(chan error, 1)
	go func() {
		_, err := g.Enter(ctx, key, class, true)
		outcome <- err
	}()
	synctest.Wait()
	return outcome
}

// still reports whether no outcome is known.
func still(outcome <-chan error) bool {
	synctest.Wait()
	return len(outcome) == 0
}

func TestGuardQueue(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	withGuard(t, "a turn that comes as its request ends is its request's", 0, func(t *testing.T, g ganbauth.Guard) {
		for i := range 100 {
			turn, err := g.Enter(gone, fmt.Sprint(i), 'u', true)
			require.NoError(t, err)
			turn.Leave()
		}
		require.Zero(t, g.Held())
	})
	withGuard(t, "a request that ends leaves the queue", 1, func(t *testing.T, g ganbauth.Guard) {
		turn, err := g.Enter(t.Context(), "first", 'u', true)
		require.NoError(t, err)
		turn.Finish(nil, time.Time{})
		_, err = g.Enter(gone, "second", 'u', true)
		require.ErrorIs(t, err, ganbauth.ErrBusy)
		require.Zero(t, g.Held(), "nothing is to be done for it in a second")
	})
	withGuard(t, "without patience a turn comes at once", 0, func(t *testing.T, g ganbauth.Guard) {
		takeAll(t, g)
		begun := time.Now()
		_, err := g.Enter(t.Context(), "late", 'u', false)
		require.ErrorIs(t, err, ganbauth.ErrBusy)
		require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		require.Zero(t, time.Since(begun))
		require.Equal(t, ganbauth.MaxRefreshes, g.Held(), "it does not wait")
	})
	withGuard(t, "who has no patience leaves no timer", 1, func(t *testing.T, g ganbauth.Guard) {
		turn, err := g.Enter(t.Context(), "first", 'u', true)
		require.NoError(t, err)
		turn.Finish(nil, time.Time{})
		_, err = g.Enter(t.Context(), "second", 'u', false)
		require.ErrorIs(t, err, ganbauth.ErrBusy)
		require.Zero(t, g.Held())
	})
	withGuard(t, "one that leaves makes room", 0, func(t *testing.T, g ganbauth.Guard) {
		turns := takeAll(t, g)
		first, second := waits(t.Context(), g, "first", 'u'), waits(t.Context(), g, "second", 'u')
		require.True(t, still(first))
		turns[0].Leave()
		turns[0].Leave() // again: it has no more to give
		require.False(t, still(first))
		require.NoError(t, <-first)
		require.True(t, still(second))
		turns[1].Leave()
		require.NoError(t, <-second)
	})
	withGuard(t, "an answer makes room for one more", 0, func(t *testing.T, g ganbauth.Guard) {
		turns := takeAll(t, g)
		first, second := waits(t.Context(), g, "first", 'u'), waits(t.Context(), g, "second", 'u')
		turns[0].Sent()
		turns[0].Answered(nil, time.Time{})
		require.False(t, still(first))
		require.True(t, still(second))
		turns[0].Leave()
		require.NoError(t, <-second)
	})
	withGuard(t, "those whose turn would come after eight seconds are told at once", 1, func(t *testing.T, g ganbauth.Guard) {
		_, err := g.Enter(t.Context(), "first", 'u', true)
		require.NoError(t, err)
		var queue []<-chan error
		for i := range 8 {
			queue = append(queue, waits(t.Context(), g, fmt.Sprint(i), 'u'))
		}
		_, err = g.Enter(t.Context(), "late", 'u', true)
		require.ErrorIs(t, err, ganbauth.ErrBusy)
		require.Equal(t, 9, g.Held()-1, "beside the timer")
		for i, outcome := range queue {
			require.NoError(t, <-outcome)
			require.Equal(t, time.Duration(i+1)*time.Second, time.Since(g.Begun))
		}
	})
	withGuard(t, "nobody waits for longer because others wait, too", 1, func(t *testing.T, g ganbauth.Guard) {
		outcomes := make(chan error, 40)
		for i := range cap(outcomes) {
			go func() {
				begun := time.Now()
				_, err := g.Enter(t.Context(), fmt.Sprint(i), rune("ul"[i%2]), true)
				if waited := time.Since(begun); waited > ganbauth.MaxQueue {
					t.Errorf("waited for %s", waited)
				}
				outcomes <- err
			}()
			synctest.Wait()
		}
		served := 0
		for range cap(outcomes) {
			if <-outcomes == nil {
				served++
			}
		}
		require.Equal(t, 9, served, "one at once, and one a second")
	})
	withGuard(t, "a bank that asks for a longer pause keeps nobody waiting", 0, func(t *testing.T, g ganbauth.Guard) {
		g.Send("refused", &ganbauth.TokenError{StatusCode: 429, RetryAfter: 20 * time.Second}, time.Time{})
		job := waits(t.Context(), g, "job", 'j')
		require.True(t, still(job))
		for _, class := range "ul" {
			_, err := g.Enter(t.Context(), "alone", class, true)
			require.ErrorIs(t, err, ganbauth.ErrBusy)
			require.Zero(t, time.Since(g.Begun), "a refresh and a login")
		}
		require.NoError(t, <-job)
		require.Equal(t, 20*time.Second, time.Since(g.Begun), "jobs have time, but go no sooner")
	})
	withGuard(t, "users and jobs do not take each other's time", 0, func(t *testing.T, g ganbauth.Guard) {
		g.Send("user", nil, time.Time{})
		require.LessOrEqual(t, g.UntilJob(), time.Duration(0), "a user is no job")
		turn, err := g.Enter(t.Context(), "job", 'j', true)
		require.NoError(t, err)
		turn.Finish(nil, time.Time{})
		turn, err = g.Enter(t.Context(), "user", 'u', false)
		require.NoError(t, err)
		require.Equal(t, time.Second, g.UntilJob())
		turn.Leave()
		require.Equal(t, time.Second, g.UntilJob(), "a user's turn, given back, is no job's")
	})
	withGuard(t, "it knows whether a request was sent", 0, func(t *testing.T, g ganbauth.Guard) {
		turn, err := g.Enter(t.Context(), "a", 'u', false)
		require.NoError(t, err)
		require.False(t, turn.WasSent())
		turn.Sent()
		require.True(t, turn.WasSent())
	})
}

// Those who are turned away are told when those who wait have been served, and then one
// after another.
func TestGuardSpreadsThoseWhoComeAgain(t *testing.T) {
	const times = 200
	// told returns the shortest and the longest time that somebody is told.
	told := func(g ganbauth.Guard) (shortest, longest time.Duration) {
		shortest = time.Hour
		for i := range times {
			_, err := g.Enter(context.Background(), fmt.Sprint("late", i), 'u', false)
			shortest, longest = min(shortest, ganbauth.RetryAfter(err)), max(longest, ganbauth.RetryAfter(err))
		}
		return shortest, longest
	}
	withGuard(t, "at a limit", 2, func(t *testing.T, g ganbauth.Guard) {
		_, err := g.Enter(t.Context(), "first", 'u', true)
		require.NoError(t, err)
		for i := range 8 {
			waits(t.Context(), g, fmt.Sprint(i), 'u')
		}
		_, err = g.Enter(t.Context(), "late", 'u', false)
		require.GreaterOrEqual(t, ganbauth.RetryAfter(err), 4*time.Second, "eight wait, and two go a second")
		require.Less(t, ganbauth.RetryAfter(err), 4500*time.Millisecond, "one was turned away")
		shortest, longest := told(g)
		require.GreaterOrEqual(t, shortest, 4*time.Second)
		require.Less(t, longest, 64*time.Second, "a minute at most")
		require.Greater(t, longest, 30*time.Second, "100 seconds' worth have come")
		for range 8 {
			time.Sleep(time.Second)
		}
	})
	withGuard(t, "with no limit, by the answers of the last second", 0, func(t *testing.T, g ganbauth.Guard) {
		for i := range 20 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
		}
		takeAll(t, g)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 100 {
			waits(ctx, g, fmt.Sprint("waits", i), 'u')
		}
		_, err := g.Enter(t.Context(), "late", 'u', false)
		require.GreaterOrEqual(t, ganbauth.RetryAfter(err), 4*time.Second, "80 wait, and 20 were answered")
		require.Less(t, ganbauth.RetryAfter(err), 4050*time.Millisecond)
		time.Sleep(2 * time.Second)
		_, err = g.Enter(t.Context(), "late", 'u', false)
		require.GreaterOrEqual(t, ganbauth.RetryAfter(err), time.Minute, "nobody was answered")
		cancel()
	})
	withGuard(t, "after the pause that the bank has asked for", 0, func(t *testing.T, g ganbauth.Guard) {
		g.Send("refused", &ganbauth.TokenError{StatusCode: 429, RetryAfter: time.Hour}, time.Time{})
		shortest, longest := told(g)
		require.GreaterOrEqual(t, shortest, time.Hour)
		require.Less(t, longest, time.Hour+time.Minute)
		require.Greater(t, longest, time.Hour+30*time.Second)
	})
	withGuard(t, "a second at least", 0, func(t *testing.T, g ganbauth.Guard) {
		takeAll(t, g)
		_, err := g.Enter(t.Context(), "late", 'u', false)
		require.Equal(t, time.Second, ganbauth.RetryAfter(err))
	})
	withGuard(t, "one a second where nobody is answered", 0, func(t *testing.T, g ganbauth.Guard) {
		takeAll(t, g)
		for i := range 5 {
			waits(t.Context(), g, fmt.Sprint(i), 'u')
		}
		_, err := g.Enter(t.Context(), "late", 'u', false)
		require.GreaterOrEqual(t, ganbauth.RetryAfter(err), 5*time.Second)
		require.Less(t, ganbauth.RetryAfter(err), 6*time.Second)
	})
}

func TestGuardBreaker(t *testing.T) {
	away := &ganbauth.TokenError{StatusCode: 503}
	// fail has three users fail, which means that the bank is away.
	fail := func(g ganbauth.Guard) {
		for i := range ganbauth.FewAway {
			g.Send(fmt.Sprint("fails", i), away, time.Time{})
		}
	}
	turn := func(t *testing.T, g ganbauth.Guard, key string, class rune) ganbauth.Turn {
		t.Helper()
		turn, err := g.Enter(t.Context(), key, class, false)
		require.NoError(t, err)
		return turn
	}
	// probing has the bank be away, and gives the turn of its first probe.
	probing := func(t *testing.T, g ganbauth.Guard, key string, class rune) ganbauth.Turn {
		t.Helper()
		fail(g)
		time.Sleep(time.Second)
		probe := turn(t, g, key, class)
		require.True(t, probe.IsProbe())
		return probe
	}
	withGuard(t, "a bank that says nothing for ten seconds is away", 0, func(t *testing.T, g ganbauth.Guard) {
		for i := range ganbauth.FewAway {
			turn(t, g, fmt.Sprint(i), 'u').Sent()
		}
		time.Sleep(ganbauth.MaxWait - 1)
		require.NoError(t, g.Away())
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.ErrorIs(t, g.Away(), context.DeadlineExceeded)
	})
	withGuard(t, "an answer that comes late is one", 0, func(t *testing.T, g ganbauth.Guard) {
		var turns []ganbauth.Turn
		for i := range ganbauth.FewAway {
			turns = append(turns, turn(t, g, fmt.Sprint(i), 'u'))
			turns[i].Sent()
		}
		time.Sleep(ganbauth.MaxWait)
		synctest.Wait()
		require.Error(t, g.Away())
		turns[0].Leave()
		turns[0].Answered(nil, time.Time{})
		require.Error(t, g.Away(), "not when the turn has ended")
		time.Sleep(3 * time.Second)
		probe := turn(t, g, "probe", 'u')
		probe.Sent()
		time.Sleep(ganbauth.MaxWait)
		synctest.Wait()
		probe.Answered(&ganbauth.TokenError{StatusCode: 503, RetryAfter: time.Hour}, time.Time{})
		require.Less(t, ganbauth.RetryAfter(g.Away()), time.Minute, "a failure that comes late is not")
		probe.Answered(nil, time.Time{})
		require.NoError(t, g.Away())
	})
	withGuard(t, "a request that is sent again has its own ten seconds", 0, func(t *testing.T, g ganbauth.Guard) {
		for i := range ganbauth.FewAway {
			again := turn(t, g, fmt.Sprint(i), 'u')
			again.Sent()
			again.Answered(nil, time.Time{})
			time.AfterFunc(6*time.Second, again.Sent)
		}
		time.Sleep(15 * time.Second)
		require.NoError(t, g.Away())
		time.Sleep(time.Second)
		synctest.Wait()
		require.Error(t, g.Away())
	})
	withGuard(t, "all who wait are told that it is away", 0, func(t *testing.T, g ganbauth.Guard) {
		turns := takeAll(t, g)
		user, job := waits(t.Context(), g, "user", 'u'), waits(t.Context(), g, "job", 'j')
		for i, early := range turns[:ganbauth.FewAway] {
			require.True(t, still(user), "after %d failures", i)
			early.Sent()
			early.Answered(away, time.Time{})
		}
		for _, outcome := range []<-chan error{user, job} {
			require.False(t, still(outcome))
			err := <-outcome
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
			require.ErrorIs(t, err, away)
		}
		require.Equal(t, ganbauth.MaxRefreshes, g.Held())
	})
	withGuard(t, "one probe at a time, whoever leaves", 0, func(t *testing.T, g ganbauth.Guard) {
		early := turn(t, g, "early", 'u')
		require.False(t, early.IsProbe())
		probe := probing(t, g, "probe", 'u')
		early.Leave()
		require.Error(t, g.Away())
		probe.Leave()
		require.NoError(t, g.Away(), "the next one may go")
		turn(t, g, "probe", 'u').Leave()
	})
	withGuard(t, "a login is a probe, too", 0, func(t *testing.T, g ganbauth.Guard) {
		login := probing(t, g, "login", 'l')
		login.Sent()
		login.Answered(nil, time.Time{})
		login.Leave()
		require.NoError(t, g.Away())
	})
	withGuard(t, "logins that fail say nothing", 0, func(t *testing.T, g ganbauth.Guard) {
		for i := range ganbauth.FewAway {
			turn(t, g, fmt.Sprint(i), 'l').Finish(away, time.Time{})
		}
		require.NoError(t, g.Away())
	})
	withGuard(t, "another login says nothing", 0, func(t *testing.T, g ganbauth.Guard) {
		login := turn(t, g, "login", 'l')
		login.Sent()
		fail(g)
		login.Answered(nil, time.Time{})
		require.Error(t, g.Away())
	})
	withGuard(t, "what was sent before it was away does not change the pause", 0, func(t *testing.T, g ganbauth.Guard) {
		early := turn(t, g, "early", 'u')
		early.Sent()
		fail(g)
		early.Answered(&ganbauth.TokenError{StatusCode: 503, RetryAfter: time.Hour}, time.Time{})
		time.Sleep(time.Second)
		require.NoError(t, g.Away())
	})
	withGuard(t, "users who begin to fail after an answer count", 0, func(t *testing.T, g ganbauth.Guard) {
		g.Send("well", nil, time.Time{})
		fail(g)
		require.Error(t, g.Away())
	})
	for _, hints := range [][]time.Duration{{50 * time.Second, 0, 20 * time.Second}, {20 * time.Second, 50 * time.Second, 0}} {
		withGuard(t, "the longest pause that the bank asks for holds", 0, func(t *testing.T, g ganbauth.Guard) {
			for i, hint := range hints {
				g.Send(fmt.Sprint(i), &ganbauth.TokenError{StatusCode: 503, RetryAfter: hint}, time.Time{})
			}
			time.Sleep(50*time.Second - 1)
			require.Error(t, g.Away())
			time.Sleep(time.Nanosecond)
			require.NoError(t, g.Away())
		})
	}
	withGuard(t, "a Retry-After of before the outage does not change the pause", 0, func(t *testing.T, g ganbauth.Guard) {
		g.Send("a", &ganbauth.TokenError{StatusCode: 503, RetryAfter: time.Hour}, time.Time{})
		time.Sleep(2 * time.Minute)
		g.Send("b", ganbauth.NoAnswer(context.DeadlineExceeded), time.Time{})
		g.Send("c", ganbauth.NoAnswer(context.DeadlineExceeded), time.Time{})
		require.Error(t, g.Away())
		time.Sleep(time.Minute)
		require.NoError(t, g.Away())
	})
	withGuard(t, "a probe that hangs for ever holds up the next one for a moment", 0, func(t *testing.T, g ganbauth.Guard) {
		hanging := probing(t, g, "hanging", 'u')
		hanging.Sent()
		time.Sleep(10*time.Second - 1)
		require.Error(t, g.Away())
		time.Sleep(5 * time.Second)
		require.NoError(t, g.Away())
		next := turn(t, g, "next", 'u')
		require.True(t, next.IsProbe())
		hanging.Leave()
		require.Error(t, g.Away(), "the next one is under way")
		next.Finish(nil, time.Time{})
		require.NoError(t, g.Away())
	})
	withGuard(t, "a request that has hung, and then fails, counts once", 0, func(t *testing.T, g ganbauth.Guard) {
		slow := turn(t, g, "slow", 'u')
		slow.Sent()
		time.Sleep(time.Minute)
		g.Send("well", nil, time.Time{})
		slow.Answered(away, time.Time{})
		slow.Leave()
		for i := range ganbauth.FewAway - 1 {
			g.Send(fmt.Sprint(i), away, time.Time{})
		}
		require.NoError(t, g.Away())
		g.Send("one more", away, time.Time{})
		require.Error(t, g.Away())
	})
	withGuard(t, "probes keep to TokenRate", 0.1, func(t *testing.T, g ganbauth.Guard) {
		var sent time.Time
		for i := range 20 {
			next, err := g.Enter(t.Context(), fmt.Sprint(i), 'u', false)
			for err != nil {
				time.Sleep(100 * time.Millisecond)
				next, err = g.Enter(t.Context(), fmt.Sprint(i), 'u', false)
			}
			require.Equal(t, i >= ganbauth.FewAway, next.IsProbe())
			require.GreaterOrEqual(t, time.Since(sent), 10*time.Second)
			sent = time.Now()
			next.Finish(away, time.Time{})
		}
	})
	withGuard(t, "probes keep to the pause that a 429 asks for", 0, func(t *testing.T, g ganbauth.Guard) {
		early := turn(t, g, "early", 'u')
		early.Sent()
		fail(g)
		early.Answered(&ganbauth.TokenError{StatusCode: 429, RetryAfter: time.Hour}, time.Time{})
		require.GreaterOrEqual(t, ganbauth.RetryAfter(g.Away()), time.Hour)
		time.Sleep(time.Hour)
		turn(t, g, "probe", 'u').Finish(nil, time.Time{})
		require.NoError(t, g.Away())
		turn(t, g, "next", 'u').Leave()
	})
	withGuard(t, "a probe that waits for a lock holds up nobody", 0, func(t *testing.T, g ganbauth.Guard) {
		waiting := probing(t, g, "waiting", 'u')
		require.Error(t, g.Away())
		waiting.StepAside()
		next := turn(t, g, "next", 'u')
		require.True(t, next.IsProbe())
		waiting.Sent()
		waiting.Answered(away, time.Time{})
		waiting.Leave()
		require.Error(t, g.Away(), "the next one is under way")
		next.Finish(nil, time.Time{})
		require.NoError(t, g.Away())
	})
	withGuard(t, "requests that are refused together are one refusal", 0, func(t *testing.T, g ganbauth.Guard) {
		var turns []ganbauth.Turn
		for i := range 10 {
			turns = append(turns, turn(t, g, fmt.Sprint(i), 'u'))
			turns[i].Sent()
		}
		for _, refused := range turns {
			refused.Answered(&ganbauth.TokenError{StatusCode: 429}, time.Time{})
			refused.Leave()
		}
		require.NoError(t, g.Away())
	})
	withGuard(t, "everybody comes back slowly, and then quicker", 0, func(t *testing.T, g ganbauth.Guard) {
		fail(g)
		time.Sleep(time.Second)
		turn, err := g.Enter(t.Context(), "probe", 'u', true)
		require.NoError(t, err)
		turn.Finish(nil, time.Time{})
		back := time.Now()
		for i := range 4 {
			turn, err := g.Enter(t.Context(), fmt.Sprint(i), 'u', true)
			require.NoError(t, err)
			turn.Sent()
			if i == 1 {
				turn.Answered(nil, time.Time{})
			}
		}
		require.InDelta(t, 0.2+1./11, time.Since(back).Seconds(), 0.001, "0.1 s apart at first, and less after an answer")
	})
}

// Pauses between probes are up to a fifth shorter than the table says, and what users are
// told up to a quarter longer, so that nobody comes together.
func TestGuardSpreadsProbes(t *testing.T) {
	shortest, longest := time.Hour, time.Duration(0)
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			g := ganbauth.NewGuard(0)
			for i := range ganbauth.FewAway {
				g.Send(fmt.Sprint(i), &ganbauth.TokenError{StatusCode: 503}, time.Time{})
			}
			for g.Away() != nil {
				time.Sleep(time.Millisecond)
			}
			pause := time.Since(g.Begun)
			shortest, longest = min(shortest, pause), max(longest, pause)
		})
	}
	require.GreaterOrEqual(t, shortest, 800*time.Millisecond)
	require.Less(t, shortest, 830*time.Millisecond)
	require.LessOrEqual(t, longest, time.Second)

	longest = 0
	withGuard(t, "told", 0, func(t *testing.T, g ganbauth.Guard) {
		for i := range ganbauth.FewAway {
			g.Send(fmt.Sprint(i), &ganbauth.TokenError{StatusCode: 503, RetryAfter: 100 * time.Second}, time.Time{})
		}
		for range 500 {
			wait := ganbauth.RetryAfter(g.Away())
			require.GreaterOrEqual(t, wait, 100*time.Second)
			longest = max(longest, wait)
		}
	})
	require.Less(t, longest, 125*time.Second)
	require.Greater(t, longest, 121*time.Second)
}

// What the guard finds out about the bank is one line, each time that it changes.
func TestGuardLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		g := ganbauth.NewGuardWithLog(0, textLogger(&log))
		// said returns what is new in the log.
		read := 0
		said := func() (lines string) {
			synctest.Wait()
			defer func() { read = len(log.String()) }()
			return log.String()[read:]
		}
		for i := range 20 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
		}
		g.Send("a", &ganbauth.TokenError{StatusCode: 500}, time.Time{})
		g.Send("a", &ganbauth.TokenError{StatusCode: 429}, time.Time{})
		require.Empty(t, said())
		g.Send("b", nil, time.Time{})
		require.Regexp(t, `^\S+ level=WARN msg="ganbauth: the bank limits the rate of token requests" kit="" per_second=19\n$`, said())
		g.Send("c", &ganbauth.TokenError{StatusCode: 429}, time.Time{})
		g.Send("d", nil, time.Time{})
		require.Empty(t, said(), "the rate is not the first")

		var turns []ganbauth.Turn
		for i := range 2 * ganbauth.FewAway {
			turn, err := g.Enter(t.Context(), fmt.Sprint(i), 'u', true)
			require.NoError(t, err)
			turns = append(turns, turn)
		}
		for _, turn := range turns {
			turn.Finish(&ganbauth.TokenError{StatusCode: 503}, time.Time{})
		}
		require.Regexp(t, `^\S+ level=WARN msg="ganbauth: the bank is away; one token request at a time looks for it" kit="" error=".*503.*"\n$`, said())
		time.Sleep(2 * time.Second)
		g.Send("probe", &ganbauth.TokenError{StatusCode: 503}, time.Time{})
		require.Empty(t, said(), "it is still away")
		for g.Away() != nil {
			time.Sleep(time.Millisecond)
		}
		g.Send("probe", nil, time.Time{})
		require.Regexp(t, `^\S+ level=INFO msg="ganbauth: the bank is back" kit="" away=[\d.]+s\n$`, said())
		g.Send("e", nil, time.Time{})
		require.Empty(t, said())
	})
}

// A rate is kept while somebody waits because of it.
func TestGuardKeepsTheRate(t *testing.T) {
	learnt := func(t *testing.T, g ganbauth.Guard) {
		for i := range 20 {
			g.Send(fmt.Sprint(i), nil, time.Time{})
		}
		g.Send("refused", &ganbauth.TokenError{StatusCode: 429}, time.Time{})
		g.Send("a", nil, time.Time{})
	}
	// paced reports whether two who come together go one after the other.
	paced := func(g ganbauth.Guard) bool {
		begun := time.Now()
		g.Send("a", nil, time.Time{})
		g.Send("b", nil, time.Time{})
		return time.Since(begun) > 0
	}
	withGuard(t, "somebody has waited", 0, func(t *testing.T, g ganbauth.Guard) {
		learnt(t, g)
		for range 5 {
			time.Sleep(50 * time.Second)
			require.True(t, paced(g))
		}
		time.Sleep(61 * time.Second)
		require.False(t, paced(g))
	})
	withGuard(t, "jobs wait for one another", 0, func(t *testing.T, g ganbauth.Guard) {
		learnt(t, g)
		for i := range 62 {
			turn, err := g.Enter(t.Context(), fmt.Sprint(i), 'j', true)
			require.NoError(t, err)
			turn.Finish(nil, time.Time{})
		}
		require.False(t, paced(g))
	})
}

// What is waiting for the bank's limit goes in this order: refreshes, with one login in
// four turns, and then what KeepAlive refreshes.
func TestGuardOrder(t *testing.T) {
	for come, want := range map[string]string{ // the first comes when nobody else is there
		"jjllluuuuuuuu": "juuuluuulj", // the others would wait for more than eight seconds
		"uluuuuu":       "uuuuluu",
	} {
		synctest.Test(t, func(t *testing.T) {
			g := ganbauth.NewGuard(1)
			var order string
			var wg sync.WaitGroup
			for _, class := range come {
				wg.Go(func() {
					turn, err := g.Enter(t.Context(), fmt.Sprint(rand.Int()), class, true)
					if err == nil {
						order += string(class)
						turn.Finish(nil, time.Time{})
					}
				})
				synctest.Wait()
			}
			wg.Wait()
			require.Equal(t, want, order)
			require.Equal(t, time.Duration(len(want)-1)*time.Second, time.Since(g.Begun))
		})
	}
}

// What the page says of the guard and of KeepAlive has the code's numbers.
func TestReliabilityNumbers(t *testing.T) {
	page := pages(t)["docs/reliability.md"]
	for _, period := range []time.Duration{ganbauth.MinCoolDown, ganbauth.MinProbePause} {
		require.Equal(t, time.Second, period)
	}
	for _, period := range []time.Duration{ganbauth.MaxCoolDown, ganbauth.MaxProbePause, ganbauth.RateKept, ganbauth.MinBackOff} {
		require.Equal(t, time.Minute, period)
	}
	for _, period := range []time.Duration{ganbauth.MaxBackOff, ganbauth.TurnOfDuty} {
		require.Equal(t, time.Hour, period)
	}
	require.Equal(t, 3, ganbauth.FewAway)
	for _, sentence := range []string{
		fmt.Sprintf("%d refreshes may be under way, and one more for each answer of the last second, up to %d; besides %d logins",
			ganbauth.MaxRefreshes, ganbauth.MostRefreshes, ganbauth.MaxLogins),
		fmt.Sprintf("KeepAlive has %d of the refreshes", ganbauth.MaxJobs),
		fmt.Sprintf("at most %.0f s, in this order", ganbauth.MaxQueue.Seconds()),
		fmt.Sprintf("three different users in a row that say so (no connection, no answer within %.0f s,", ganbauth.MaxWait.Seconds()),
		fmt.Sprintf("or of %d users whatever they say", ganbauth.ManyUnclear),
		fmt.Sprintf("The rate begins at %d requests a second", ganbauth.FirstRate),
		fmt.Sprintf("No request waits longer than %.0f s, and one with a live token waits %.0f s at most", ganbauth.MaxWait.Seconds(), ganbauth.Patience.Seconds()),
		fmt.Sprintf("or %.0f hours before it expires", ganbauth.MaxLead.Hours()),
		fmt.Sprintf("reads the store in pages of %d", ganbauth.PageSize),
		"Nothing is sent for as long as the bank asks, a second at least",
		"The pauses between two attempts grow from one second to a minute",
		"The pauses between probes grow from one second to a minute",
		"nobody has had to wait for a minute",
		"waits for a minute, longer each time, up to an hour",
		"offered to the others once an hour",
	} {
		require.True(t, strings.Contains(page, sentence), "the page does not say %q", sentence)
	}
}

// A turn that waits for a lock steps aside, whatever else happens to it, and its place is
// counted once.
func TestGuardAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := ganbauth.NewGuard(0)
		now := func(key string) (ganbauth.Turn, error) { return g.Enter(t.Context(), key, 'u', false) }
		var turns []ganbauth.Turn
		enter := func(n int) {
			for range n {
				turn, err := now(fmt.Sprint("u", len(turns)))
				require.NoError(t, err)
				turns = append(turns, turn)
			}
			_, err := now("one more")
			require.ErrorIs(t, err, ganbauth.ErrUnavailable)
		}
		enter(64)
		for range 2 { // a second try of the same refresh waits for the lock, too
			for _, turn := range turns {
				turn.StepAside()
			}
		}
		enter(64)
		turns[0].Sent()
		turns[0].StepAside() // the timer was late
		require.Equal(t, 64+64, g.Held())
		for _, turn := range turns[64:] {
			turn.StepAside()
		}
		enter(63)
		for _, turn := range turns[128:] {
			turn.StepAside() // there is room for one more, as one has come back
		}
		enter(1)
		for _, turn := range turns {
			turn.Leave()
			turn.StepAside()
		}
		require.Zero(t, g.Held())
		turns = nil
		enter(64)
	})
}
