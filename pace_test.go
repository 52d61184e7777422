package ganbauth_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// start is any time; what these tests are about takes it from its caller.
var start = time.Unix(1e9, 0)

func after(d time.Duration) time.Time { return start.Add(d) }

func TestPaceWithoutARate(t *testing.T) {
	p := ganbauth.NewPace(0, 0, 0, start)
	for range 10 {
		p.Take(start)
		p.Answered()
	}
	require.Zero(t, p.PerSecond())
	require.Zero(t, p.Interval())
	require.Zero(t, p.TimeFor(start, 100))
}

// Requests are spaced evenly, and time in which none is sent is not saved up.
func TestPaceWithALimit(t *testing.T) {
	p := ganbauth.NewPace(4, 0, 0, start)
	require.Equal(t, 250*time.Millisecond, p.Interval())
	require.Zero(t, p.TimeFor(start, 1))
	require.Equal(t, 500*time.Millisecond, p.TimeFor(start, 3))
	p.Take(start)
	require.Equal(t, 250*time.Millisecond, p.TimeFor(start, 1))
	require.Equal(t, 150*time.Millisecond, p.TimeFor(after(100*time.Millisecond), 1))
	require.Zero(t, p.TimeFor(after(time.Second), 1))
	p.Take(start)
	require.Equal(t, 500*time.Millisecond, p.TimeFor(start, 1))
	p.GiveBack()
	require.Equal(t, 250*time.Millisecond, p.TimeFor(start, 1))
	p.Take(after(10 * time.Second))
	require.Equal(t, 250*time.Millisecond, p.TimeFor(after(10*time.Second), 1))
}

// The lower of the limit and the rate that was learnt holds.
func TestPaceTakesTheLowerRate(t *testing.T) {
	for rate, want := range map[float64]float64{0: 4, 3: 3, 5: 4} {
		require.Equal(t, want, ganbauth.NewPace(4, rate, rate, start).PerSecond(), rate)
	}
	require.Equal(t, 5., ganbauth.NewPace(0, 5, 5, start).PerSecond())
	require.Equal(t, 0.5, ganbauth.NewPace(0.5, 5, 5, start).PerSecond())
}

// After a 429 nothing is sent for as long as the bank asks, a second at least.
func TestPaceHoldsBack(t *testing.T) {
	p := ganbauth.NewPace(0, 0, 0, start)
	require.True(t, p.TooMany(start, after(-1), 0, 50))
	require.Equal(t, time.Second, p.TimeFor(start, 1))
	require.Equal(t, time.Second, p.TimeFor(start, 9), "the rate is not known yet")
	require.False(t, p.TooMany(start, after(-2), 3*time.Second, 60), "sent before that refusal")
	require.Equal(t, 3*time.Second, p.TimeFor(start, 1))
	require.False(t, p.TooMany(start, start, time.Second, 60), "sent at that moment")
	require.Equal(t, 3*time.Second, p.TimeFor(start, 1), "the longest holds")
	p.GiveBack()
	require.Equal(t, 3*time.Second, p.TimeFor(start, 1))
	require.False(t, p.Learn(after(3*time.Second-1)))
	require.Zero(t, p.PerSecond())
	require.True(t, p.Learn(after(3*time.Second)), "the first rate")
	require.Equal(t, 0.95*50, p.PerSecond())
	require.False(t, p.Learn(after(4*time.Second)), "it is known")
	require.Equal(t, 0.95*50, p.PerSecond())
	require.True(t, p.TooMany(after(5*time.Second), after(4*time.Second), 0, 0), "sent after the last refusal")
	require.Equal(t, time.Second, p.TimeFor(after(5*time.Second), 9), "the rate of before does not count")
	p.GiveBack()
	require.Equal(t, time.Second, p.TimeFor(after(5*time.Second), 9))
}

// The rate is a little less than what the bank took in the second before it refused, or
// than the rate at which it refused.
func TestPaceLearns(t *testing.T) {
	for name, test := range map[string]struct {
		rate       float64
		took, more int // before the refusal, and while it holds
		want       float64
	}{
		"nothing":              {0, 0, 0, 0.95},
		"one":                  {0, 1, 0, 0.95},
		"what was under way":   {0, 10, 5, 0.95 * 15},
		"at the rate":          {40, 40, 0, 0.95 * 40},
		"at nearly the rate":   {40, 32, 0, 0.95 * 40},
		"below the rate":       {40, 31, 0, 0.95 * 31},
		"far below the rate":   {40, 3, 0, 0.95 * 3},
		"by more than it took": {40, 300, 0, 0.95 * 40},
	} {
		t.Run(name, func(t *testing.T) {
			p := ganbauth.NewPace(0, test.rate, test.rate, start)
			p.TooMany(start, start, 0, test.took)
			for range test.more {
				p.Answered()
			}
			require.Equal(t, test.rate == 0, p.Learn(after(time.Second)))
			require.InDelta(t, test.want, p.PerSecond(), 1e-9)
			require.Equal(t, time.Duration(float64(time.Second)/p.PerSecond()), p.TimeFor(after(time.Second), 2))
		})
	}
	t.Run("one a minute at the least", func(t *testing.T) {
		p, now := ganbauth.NewPace(0, 0, 0, start), start
		for range 200 {
			p.TooMany(now, now, 0, 0)
			now = now.Add(time.Second)
			p.Learn(now)
		}
		require.Equal(t, ganbauth.MinRate, p.PerSecond())
		require.Equal(t, time.Minute, p.Interval().Round(time.Second))
	})
}

// Each answer raises the rate: by one where no ceiling is known, hardly near the ceiling,
// and quicker above it.
func TestPaceRises(t *testing.T) {
	for name, test := range map[string]struct{ rate, ceiling, want float64 }{
		"no rate":                {0, 0, 0},
		"no ceiling":             {10, 0, 11},
		"below the ceiling":      {95, 100, 95.001},
		"above, but near":        {104, 100, 104.001},
		"not near":               {105, 100, 105.1},
		"far above":              {190, 100, 190.1},
		"above a small ceiling":  {0.5, 0.25, 0.6},
		"at a ceiling below one": {0.5, 0.5, 0.501},
	} {
		t.Run(name, func(t *testing.T) {
			p := ganbauth.NewPace(0, test.rate, test.ceiling, start)
			p.Answered()
			require.InDelta(t, test.want, p.PerSecond(), 1e-9)
			require.Equal(t, test.ceiling, p.Ceiling())
		})
	}
}

// A rate that nobody has had to wait for is forgotten, but not while the bank holds back.
func TestPaceForgets(t *testing.T) {
	p := ganbauth.NewPace(0, 10, 10, start)
	p.Take(after(ganbauth.RateKept))
	require.Equal(t, 10., p.PerSecond())
	p.Take(after(ganbauth.RateKept + 1))
	require.Zero(t, p.PerSecond())
	require.Zero(t, p.Ceiling())

	p = ganbauth.NewPace(0, 10, 10, start)
	p.TooMany(after(2*ganbauth.RateKept), start, 0, 10)
	p.Take(after(2 * ganbauth.RateKept))
	require.Equal(t, 10., p.PerSecond())

	p = ganbauth.NewPace(0, 0, 0, start)
	p.TooMany(start, start, time.Hour, 10)
	p.Learn(after(time.Hour))
	p.Take(after(time.Hour + ganbauth.RateKept))
	require.Equal(t, 9.5, p.PerSecond(), "learnt a minute ago")
}

// When the bank is back, the rate is low, and no ceiling is believed.
func TestPaceRestarts(t *testing.T) {
	for name, test := range map[string]struct{ rate, ceiling, want, wantCeiling float64 }{
		"no rate":      {0, 0, ganbauth.FirstRate, 0},
		"a high rate":  {50, 50, ganbauth.FirstRate, 0},
		"the same":     {ganbauth.FirstRate, 12, ganbauth.FirstRate, 12},
		"a lower rate": {5, 6, 5, 6},
	} {
		t.Run(name, func(t *testing.T) {
			p := ganbauth.NewPace(0, test.rate, test.ceiling, start)
			p.TooMany(start, start, 0, 7)
			back := after(time.Hour)
			p.Restart(back)
			require.Equal(t, test.want, p.PerSecond())
			require.Equal(t, test.wantCeiling, p.Ceiling())
			require.False(t, p.Learn(back), "what the bank took before it was away does not count")
			require.Equal(t, p.Interval(), p.TimeFor(back, 2))
			p.Take(back.Add(ganbauth.RateKept))
			require.Equal(t, test.want, p.PerSecond(), "kept for a minute")
		})
	}
}

// A meter counts the last ten tenths, of which the newest is under way.
func TestMeter(t *testing.T) {
	const tenth = time.Second / 10
	m := ganbauth.NewMeter(tenth)
	require.Zero(t, m.Sum(start))
	m.Add(start)
	m.Add(start)
	m.Add(after(5 * tenth))
	m.Add(after(10*tenth - 1))
	require.Equal(t, 4, m.Sum(after(10*tenth-1)))
	require.Equal(t, 2, m.Sum(after(10*tenth)))
	require.Equal(t, 1, m.Sum(after(15*tenth)))
	require.Equal(t, 1, m.Sum(after(19*tenth-1)))
	require.Zero(t, m.Sum(after(19*tenth)))
	t.Run("without a pause", func(t *testing.T) {
		m := ganbauth.NewMeter(tenth)
		for i := range 35 {
			m.Add(after(time.Duration(i) * tenth))
			require.Equal(t, min(i+1, 10), m.Sum(after(time.Duration(i)*tenth)))
		}
	})
	t.Run("after a long pause", func(t *testing.T) {
		m := ganbauth.NewMeter(tenth)
		for i := range 10 {
			m.Add(after(time.Duration(i) * tenth))
		}
		m.Add(after(time.Hour))
		require.Equal(t, 1, m.Sum(after(time.Hour)))
	})
	t.Run("a clock that is set back", func(t *testing.T) {
		m := ganbauth.NewMeter(tenth)
		m.Add(start)
		m.Add(after(5 * tenth))
		m.Add(after(-time.Hour))
		require.Equal(t, 3, m.Sum(after(5*tenth)))
	})
}

func TestJitter(t *testing.T) {
	low, high := time.Hour, time.Duration(0)
	for range 1000 {
		require.Zero(t, ganbauth.Jitter(0))
		d := ganbauth.Jitter(time.Minute)
		low, high = min(low, d), max(high, d)
	}
	require.Less(t, low, 6*time.Second)
	require.GreaterOrEqual(t, low, time.Duration(0))
	require.Greater(t, high, 54*time.Second)
	require.Less(t, high, time.Minute)
}
