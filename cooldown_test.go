package ganbauth_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

var errSick = errors.New("sick")

// Each failure doubles the wait, up to a minute. Up to a quarter is added by chance, so that
// machines that failed together do not come back together.
func TestCoolDownGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for failures, base := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			base *= time.Second
			shortest, longest := time.Hour, time.Duration(0)
			for i := range 1000 {
				var c ganbauth.CoolDowns
				for range failures {
					_ = c.Begin("u", errSick, 0)
				}
				wait := ganbauth.RetryAfter(c.Begin("u", errSick, 0))
				require.Equal(t, wait, ganbauth.RetryAfter(c.Check("u")), i)
				shortest, longest = min(shortest, wait), max(longest, wait)
				c.Clear("u")
			}
			require.GreaterOrEqual(t, shortest, base)
			require.Less(t, shortest, base*21/20)
			require.Greater(t, longest, base*6/5)
			require.Less(t, longest, base*5/4)
		}
	})
	t.Run("after any number of failures", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var c ganbauth.CoolDowns
			for range 100 {
				wait := ganbauth.RetryAfter(c.Begin("u", errSick, 0))
				require.GreaterOrEqual(t, wait, time.Second)
				require.Less(t, wait, 75*time.Second)
			}
			c.Clear("u")
		})
	})
	t.Run("it is as long as the bank asks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var c ganbauth.CoolDowns
			require.Equal(t, time.Hour, ganbauth.RetryAfter(c.Begin("u", errSick, time.Hour)))
			require.Less(t, ganbauth.RetryAfter(c.Begin("u", errSick, time.Millisecond)), 3*time.Second)
			c.Clear("u")
		})
	})
}

func TestCoolDownEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c ganbauth.CoolDowns
		require.NoError(t, c.Check("u"))
		require.Zero(t, c.Since("u"))
		wait := ganbauth.RetryAfter(c.Begin("u", errSick, 0))
		time.Sleep(wait - 1)
		require.ErrorIs(t, c.Check("u"), errSick)
		require.EqualValues(t, 1, ganbauth.RetryAfter(c.Check("u")))
		require.NoError(t, c.Check("v"), "another key")
		time.Sleep(time.Nanosecond)
		require.NoError(t, c.Check("u"))
		_ = c.Begin("u", errSick, 0)
		c.Clear("u")
		require.NoError(t, c.Check("u"))
		require.Zero(t, c.Held())
	})
}

// Failures are one row as long as the next one comes within a minute of the cool-down's end.
func TestRowOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c ganbauth.CoolDowns
		begun := time.Now()
		wait := ganbauth.RetryAfter(c.Begin("u", errSick, 0))
		for range 5 {
			time.Sleep(wait + time.Minute - time.Millisecond)
			require.Equal(t, begun, c.Since("u"))
			wait = ganbauth.RetryAfter(c.Begin("u", errSick, 0))
		}
		require.Equal(t, begun, c.Since("u"))
		time.Sleep(wait + time.Minute)
		synctest.Wait()
		require.Zero(t, c.Since("u"))
		require.Zero(t, c.Held())
		require.Less(t, ganbauth.RetryAfter(c.Begin("u", errSick, 0)), 2*time.Second, "a new row")
		c.Clear("u")
	})
	t.Run("the last cool-down counts, not the first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var c ganbauth.CoolDowns
			begun := time.Now()
			_ = c.Begin("u", errSick, 0) // alone, it would be forgotten after 61.25 s at the most
			time.Sleep(50 * time.Second)
			_ = c.Begin("u", errSick, 0)
			time.Sleep(30 * time.Second)
			require.Equal(t, begun, c.Since("u"))
			c.Clear("u")
		})
	})
}

// A timer that fires while its entry is prolonged or replaced forgets nothing.
func TestCoolDownMeetsItsTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c ganbauth.CoolDowns
		_ = c.Begin("u", errSick, 0)
		expire := c.Timer("u")
		expire()
		require.Error(t, c.Check("u"), "prolonged")
		time.Sleep(2 * time.Second)
		c.Clear("u")
		_ = c.Begin("u", errSick, 0)
		expire()
		require.Error(t, c.Check("u"), "replaced")
		time.Sleep(2 * time.Second)
		expire()
		require.NotZero(t, c.Since("u"), "replaced, and over")
		c.Timer("u")()
		require.Zero(t, c.Since("u"))
	})
}

// The gateway's first refusal is remembered for a day, whatever fails meanwhile.
func TestSuspicion(t *testing.T) {
	for name, test := range map[string]struct {
		after time.Duration
		token string
		again bool
	}{
		"a day":            {24*time.Hour - time.Millisecond, "x", true},
		"longer":           {24 * time.Hour, "x", false},
		"of another token": {time.Second, "y", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var c ganbauth.CoolDowns
				require.False(t, c.Suspect("u", "x"))
				_ = c.Begin("u", errSick, 0)
				time.Sleep(test.after)
				synctest.Wait()
				require.Equal(t, test.again, c.Suspect("u", test.token))
				c.Clear("u")
				require.False(t, c.Suspect("u", "x"), "after a success")
				c.Clear("u")
			})
		})
	}
	t.Run("without end while the bank asks for longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var c ganbauth.CoolDowns
			c.Suspect("u", "x")
			_ = c.Begin("u", errSick, 48*time.Hour)
			time.Sleep(48 * time.Hour)
			require.True(t, c.Suspect("u", "x"))
			c.Clear("u")
		})
	})
	t.Run("of many", func(t *testing.T) {
		var c ganbauth.CoolDowns
		for i := range 100 {
			require.False(t, c.Suspect(fmt.Sprint(i), "x"))
		}
		require.Equal(t, 100, c.Held())
		c.Clear("0")
		require.True(t, c.Suspect("1", "x"), "another's success")
		for i := range 100 {
			c.Clear(fmt.Sprint(i))
		}
		require.Zero(t, c.Held())
	})
}
