package ganbtest_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// get calls the API and returns the answer without its body.
func get(t *testing.T, s *ganbtest.Server, token *ganbauth.Token, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequest("GET", s.APIBase()+path, nil)
	require.NoError(t, err)
	req.Header.Set("x-access-token", token.AccessToken)
	resp, err := s.Client().Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	return resp
}

func TestRateLimit(t *testing.T) {
	type step struct {
		after   time.Duration
		granted bool
		retry   string
	}
	second := time.Second
	for name, c := range map[string]struct {
		limit ganbtest.RateLimit
		steps []step
	}{
		"two in any second": {ganbtest.RateLimit{PerSecond: 2}, []step{
			{granted: true}, {after: second / 2, granted: true}, {after: second / 4, retry: "1"}, {after: second / 4, granted: true},
			{after: second / 4, retry: "1"}, {after: second / 4, granted: true}, {after: 10 * second, granted: true}, {granted: true}, {retry: "1"},
		}},
		"refused requests count": {ganbtest.RateLimit{PerSecond: 2, CountRefused: true}, []step{
			{granted: true}, {granted: true}, {after: second / 2, retry: "1"}, {after: second / 2, granted: true},
			{after: second / 4, retry: "1"}, {after: second / 2, retry: "1"}, {after: second / 4, retry: "1"}, {after: second, granted: true},
		}},
		"one in four seconds": {ganbtest.RateLimit{PerSecond: 0.25}, []step{
			{granted: true}, {retry: "4"}, {after: second / 2, retry: "4"}, {after: 3 * second, retry: "1"}, {after: second / 2, granted: true},
		}},
		"one in four seconds, refused requests count": {ganbtest.RateLimit{PerSecond: 0.25, CountRefused: true}, []step{
			{granted: true}, {after: 3 * second, retry: "4"}, {after: 3 * second, retry: "4"}, {after: 4 * second, granted: true},
		}},
		"another endpoint's": {ganbtest.RateLimit{PerSecond: 1, Endpoints: []ganbtest.Endpoint{ganbtest.TokenEndpoint}}, []step{
			{granted: true}, {granted: true},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
				token := s.Token()
				s.SetRateLimit(c.limit)
				refused := 0
				for i, step := range c.steps {
					time.Sleep(step.after)
					resp := get(t, s, token, "/accounts")
					require.Equal(t, step.retry, resp.Header.Get("Retry-After"), "step %d", i)
					if step.granted {
						require.Equal(t, 200, resp.StatusCode, "step %d", i)
						continue
					}
					refused++
					require.Equal(t, 429, resp.StatusCode, "step %d", i)
				}
				require.Equal(t, refused, s.CountStatus(ganbtest.API, 429))
				require.Equal(t, len(c.steps)-refused, s.CountStatus(ganbtest.API, 200))
				s.SetRateLimit(ganbtest.RateLimit{})
				require.Equal(t, 200, get(t, s, token, "/accounts").StatusCode)
			})
		})
	}
	t.Run("the client's endpoints share it, and a refusal spends nothing", func(t *testing.T) {
		s := ganbtest.NewServer(ganbtest.Options{InProcess: true, RateLimit: ganbtest.RateLimit{PerSecond: 0.001}})
		token := s.Token()
		s.Fail(ganbtest.TokenEndpoint, ganbtest.ServerError, 1)
		require.Equal(t, 429, get(t, s, token, "/accounts").StatusCode)
		_, err := connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
		var e *ganbauth.TokenError
		require.ErrorAs(t, err, &e)
		require.Equal(t, 429, e.StatusCode)
		require.Zero(t, recordOf(t, s, token.RefreshToken).Processed)
		s.SetRateLimit(ganbtest.RateLimit{})
		_, err = connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
		require.ErrorAs(t, err, &e)
		require.Equal(t, 500, e.StatusCode, "the fault is still to come")
		for range 3 {
			s.Approve(authURL(t, s, "a"))
		}
	})
}

// authURL is where a login begins.
func authURL(t *testing.T, s *ganbtest.Server, scope string) string {
	t.Helper()
	u, err := connector(t, s).OAuthAuthorization("session", scope, callback)
	require.NoError(t, err)
	return u
}

func TestMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Maintenance: []ganbtest.Window{
			{Start: start.Add(time.Hour), End: start.Add(2 * time.Hour)},
			{Start: start.Add(24 * time.Hour), End: start.Add(25 * time.Hour), Every: 7 * 24 * time.Hour},
		}, Lifetime: 1000 * time.Hour})
		token := s.Token()
		at := func(d time.Duration) *http.Response {
			time.Sleep(time.Until(start.Add(d)))
			return get(t, s, token, "/accounts")
		}
		require.Equal(t, 200, at(time.Hour-1).StatusCode)
		resp := at(time.Hour)
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "3600", resp.Header.Get("Retry-After"))
		require.Equal(t, "1", at(2*time.Hour-1).Header.Get("Retry-After"))
		require.Equal(t, 200, at(2*time.Hour).StatusCode)
		require.Equal(t, 200, at(24*time.Hour-1).StatusCode)
		require.Equal(t, 503, at(24*time.Hour+time.Minute).StatusCode)
		require.Equal(t, 200, at(25*time.Hour).StatusCode)
		require.Equal(t, 200, at(8*24*time.Hour-1).StatusCode)
		resp = at(8*24*time.Hour + time.Minute)
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "3540", resp.Header.Get("Retry-After"))

		_, err := connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
		var e *ganbauth.TokenError
		require.ErrorAs(t, err, &e)
		require.Equal(t, 503, e.StatusCode)
		resp, err = s.Client().Get(authURL(t, s, "a"))
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
		require.NotEmpty(t, resp.Header.Get("Retry-After"))

		s.SetMaintenance()
		require.Equal(t, 200, get(t, s, token, "/accounts").StatusCode)
		s.SetMaintenance(ganbtest.Window{Start: time.Now(), End: time.Now().Add(time.Minute)})
		require.Equal(t, 503, get(t, s, token, "/accounts").StatusCode)
		time.Sleep(time.Minute)
		require.Equal(t, 200, get(t, s, token, "/accounts").StatusCode)
	})
}

// The end of a maintenance is known while it lasts, by the bank's clock.
func TestMaintenanceEnd(t *testing.T) {
	now := time.Date(2026, 11, 29, 2, 0, 0, 0, time.UTC)
	bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, Now: func() time.Time { return now }, Maintenance: []ganbtest.Window{
		{Start: now.Add(time.Hour), End: now.Add(3 * time.Hour), Every: 24 * time.Hour},
		{Start: now.Add(2 * time.Hour), End: now.Add(4 * time.Hour)},
	}})
	began := now
	for after, want := range map[time.Duration]time.Duration{
		0: 0, time.Hour: 3 * time.Hour, 2 * time.Hour: 4 * time.Hour, 3 * time.Hour: 4 * time.Hour, 4 * time.Hour: 0, 25 * time.Hour: 27 * time.Hour,
	} {
		now = began.Add(after)
		if want == 0 {
			require.Zero(t, bank.MaintenanceEnd(), after)
		} else {
			require.True(t, bank.MaintenanceEnd().Equal(began.Add(want)), "%s: %s", after, bank.MaintenanceEnd())
		}
	}
	bank.SetMaintenance()
	require.Zero(t, bank.MaintenanceEnd())
}
