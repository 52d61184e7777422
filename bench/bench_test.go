package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// TestMain lets the test's program be the processes that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
		return
	}
	os.Exit(m.Run())
}

// requireServed is for contenders that panic where they do not serve.
func requireServed(t *testing.T, samples []sample, contenders int) {
	t.Helper()
	require.Len(t, samples, contenders)
	for _, s := range samples {
		require.Positive(t, s.Ratio, s.Name)
	}
}

func TestLive(t *testing.T) {
	for name, group := range liveGroups {
		contenders := group()
		requireServed(t, compare(contenders, 1, batchTime, false), len(contenders))
		requireServed(t, compare(contenders, 1, batchTime, true), len(contenders))
		require.Contains(t, contenders[0].name, "scs alone", name)
	}
}

func TestEngines(t *testing.T) {
	for _, engine := range []struct {
		name    string
		compare func(testing.TB, int) []engineSample
		trips   []int // of sessions alone, the default store, the nested stores, peers
	}{
		{"Redis", onRedis, []int{1, 2, 2, 1, 1}},
		{"PostgreSQL", onPostgres, []int{1, 2, 2}},
		{"MariaDB", onMariaDB, []int{2, 4, 3}}, // scs prepares its statement each time
	} {
		t.Run(engine.name, func(t *testing.T) {
			samples := engine.compare(t, 1)
			require.Len(t, samples, len(engine.trips))
			for i, n := range engine.trips {
				require.EqualValues(t, n, samples[i].RoundTrips, samples[i].Sample.Name)
			}
		})
	}
}

// TestRefused asks neither the store nor for a session: refused panics otherwise.
func TestRefused(t *testing.T) {
	program, browser := refused(1)
	requireServed(t, program, 2)
	requireServed(t, browser, 2)
}

func TestLogins(t *testing.T) { requireServed(t, compare(logins(), 1, batchTime, false), 4) }

func TestStorm(t *testing.T) {
	for _, r := range refreshers {
		s := storm(r, 100, 20*time.Millisecond)
		require.Positive(t, s.TokenRequests, r.name)
		if r.name == "**ganbauth**" {
			require.Equal(t, stormSample{Name: r.name, TokenRequests: 1, Last: s.Last}, s)
		}
	}
}

func TestHerds(t *testing.T) {
	const users = 3000
	samples := herds(herders(), ganbauth.NewMemoryStore(), users, 1)
	require.EqualValues(t, 1, samples[0].Ratio)
	for _, s := range samples {
		require.Zero(t, s.Failed, s.Name)
		require.Positive(t, s.Ratio, s.Name)
		require.LessOrEqual(t, s.Goroutines, users, "no more than requests: %s", s.Name)
	}
}

func TestMemory(t *testing.T) {
	const n = 10_000
	alone, connected := sessionMemory(n, false), sessionMemory(n, true)
	require.Positive(t, alone)
	require.Greater(t, connected, alone)
	refreshed, begun := leftovers(n)
	require.InDelta(t, 0, refreshed, 8, "bytes of a user who ever refreshed")
	require.InDelta(t, 0, begun, 8, "bytes of a login that was begun")
}

func TestLatencies(t *testing.T) {
	l := load{users: 200, rate: 200, lead: 2 * time.Second, long: 2 * time.Second}
	live, refreshing := l.latencies(true)
	require.Equal(t, l.rate*2, live.Requests+refreshing.Requests)
	require.Zero(t, live.Failed+refreshing.Failed)
	require.LessOrEqual(t, refreshing.TokenRequests, 4, "1 % of 200 users, twice")
}

// TestPage finds the words of the template in the page that is in the repository: it was
// made with them.
func TestPage(t *testing.T) {
	written, err := os.ReadFile("../docs/performance.md")
	require.NoError(t, err)
	for line := range strings.Lines(page) {
		if !strings.Contains(line, "{{") {
			require.Contains(t, string(written), line)
		}
	}
}

func TestWrite(t *testing.T) {
	out := t.TempDir()
	testenv.Redis(t) // the processes start their own, and cannot skip
	testenv.Postgres(t)
	testenv.MariaDB(t)
	require.NoError(t, measure(effort{processes: 1, rounds: 1, sessions: []int{1000}, tokens: []int{200}, users: 100, herds: 1, pairs: 1, long: time.Second}).write(out))
	for _, name := range []string{"performance.md", "performance/benchstat.txt", "performance/overhead.svg", "performance/storm.svg", "performance/memory.svg"} {
		info, err := os.Stat(out + "/" + name)
		require.NoError(t, err)
		require.NotZero(t, info.Size(), name)
	}
}
