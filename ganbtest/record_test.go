package ganbtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// recordOf is what the bank knows of one refresh token.
func recordOf(t *testing.T, s *ganbtest.Server, refreshToken string) ganbtest.RefreshToken {
	t.Helper()
	for _, r := range s.RefreshTokens() {
		if r.Fingerprint == ganbtest.Fingerprint(refreshToken) {
			return r
		}
	}
	t.Fatal("no such refresh token")
	return ganbtest.RefreshToken{}
}

func TestRefreshTokensAreCounted(t *testing.T) {
	for _, revoke := range []bool{false, true} {
		both(t, ganbtest.Options{Subject: "u", RevokeOnReuse: revoke}, func(t *testing.T, s *ganbtest.Server) {
			c := connector(t, s)
			refresh := func(token string) error {
				_, err := c.RefreshTokens(t.Context(), token)
				return err
			}
			first := login(t, s)
			want := func(sent, processed int) {
				t.Helper()
				r := recordOf(t, s, first.RefreshToken)
				require.Equal(t, "u", r.Subject)
				require.Equal(t, [2]int{sent, processed}, [2]int{r.Sent, r.Processed})
			}
			want(0, 0)
			for _, f := range []ganbtest.Fault{ganbtest.Maintenance, ganbtest.RateLimited, ganbtest.ConnectionCut} {
				s.Fail(ganbtest.TokenEndpoint, f, 1)
				require.Error(t, refresh(first.RefreshToken))
			}
			want(3, 0)
			s.Fail(ganbtest.TokenEndpoint, ganbtest.AnswerLost, 1)
			require.Error(t, refresh(first.RefreshToken))
			want(4, 1)
			require.Zero(t, s.Reuses())
			requireCode(t, "invalid_grant", refresh(first.RefreshToken))
			want(5, 2)
			require.Equal(t, 1, s.Reuses())
			requireCode(t, "invalid_grant", refresh(first.RefreshToken))
			require.Equal(t, 2, s.Reuses())

			requireCode(t, "invalid_grant", refresh("made up"))
			require.Equal(t, ganbtest.RefreshToken{Fingerprint: ganbtest.Fingerprint("made up"), Sent: 1, Processed: 1}, recordOf(t, s, "made up"))
			require.Len(t, s.RefreshTokens(), 3, "the lost one, too")
			require.Equal(t, 7, s.Refreshes())

			grant := s.Grants()[0]
			require.Equal(t, "u", grant.Subject)
			require.Equal(t, []string{"offline_access", "private:account"}, grant.Scopes)
			require.Equal(t, 2, grant.AccessTokens)
			if revoke {
				require.Equal(t, "refresh token reused", grant.Ended)
			} else {
				require.Empty(t, grant.Ended)
			}
		})
	}
	t.Run("a token that the bank keeps", func(t *testing.T) {
		s := ganbtest.NewServer(ganbtest.Options{InProcess: true, KeepRefreshToken: true})
		token := login(t, s)
		for range 3 {
			_, err := connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
			require.NoError(t, err)
		}
		require.Equal(t, 3, recordOf(t, s, token.RefreshToken).Processed)
		require.Zero(t, s.Reuses())
	})
}

func TestOneUser(t *testing.T) {
	both(t, ganbtest.Options{}, func(t *testing.T, s *ganbtest.Server) {
		c := connector(t, s)
		one, other := s.Token(), s.Token()
		s.ExpireAccessTokensOf(one.Subject)
		require.Equal(t, 401, callAPI(t, s, one))
		require.Equal(t, 200, callAPI(t, s, other))
		require.Equal(t, one.Subject, s.Requests()[2].Subject, "of a token that is over, too")

		end := s.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{
			Status: 500, For: func(r ganbtest.Request) bool { return r.Subject == one.Subject && s.Count(r.Endpoint) > 0 },
		}, -1)
		var e *ganbauth.TokenError
		for range 2 {
			_, err := c.RefreshTokens(t.Context(), one.RefreshToken)
			require.ErrorAs(t, err, &e)
			require.Equal(t, 500, e.StatusCode)
			var err2 error
			other, err2 = c.RefreshSession(t.Context(), other, nil)
			require.NoError(t, err2)
		}
		end()
		end()
		one, err := c.RefreshSession(t.Context(), one, nil)
		require.NoError(t, err)

		s.RevokeGrantsOf(one.Subject)
		require.Equal(t, 401, callAPI(t, s, one))
		require.Equal(t, 200, callAPI(t, s, other))
		_, err = c.RefreshTokens(t.Context(), one.RefreshToken)
		requireCode(t, "invalid_grant", err)
		require.Equal(t, "revoked", s.Grants()[0].Ended)
		require.Empty(t, s.Grants()[1].Ended)
	})
}

// Faults queue up, each for its own requests.
func TestFaultQueue(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	token := s.Token()
	path := func(suffix string) func(ganbtest.Request) bool {
		return func(r ganbtest.Request) bool { return strings.HasSuffix(r.Path, suffix) }
	}
	s.Fail(ganbtest.API, ganbtest.Fault{Status: 500, For: path("/nowhere")}, 1)
	s.Fail(ganbtest.API, ganbtest.Fault{Status: 501, For: path("/balances")}, 1)
	end := s.Fail(ganbtest.API, ganbtest.Fault{Status: 502}, -1)
	s.Fail(ganbtest.API, ganbtest.Fault{Status: 503}, 1)
	require.Equal(t, 501, callAPI(t, s, token))
	require.Equal(t, 502, callAPI(t, s, token))
	require.Equal(t, 502, callAPI(t, s, token))
	end()
	require.Equal(t, 503, callAPI(t, s, token))
	require.Equal(t, 200, callAPI(t, s, token))
	s.Fail(ganbtest.API, ganbtest.Fault{Status: 500}, 0)()
	require.Equal(t, 200, callAPI(t, s, token))
}

// A client that leaves while the bank works has spent its refresh token; one that leaves
// before has not.
func TestClientThatLeaves(t *testing.T) {
	for _, processed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
			token := login(t, s)
			s.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{Delay: time.Minute, Processed: processed}, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := connector(t, s).RefreshTokens(ctx, token.RefreshToken)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			synctest.Wait()
			_, err = connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
			if processed {
				requireCode(t, "invalid_grant", err)
				require.Equal(t, 1, s.Reuses())
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// Whatever prints a bank, or what it hands out, shows no secret.
func TestNothingSecretIsPrinted(t *testing.T) {
	opts := ganbtest.Options{InProcess: true, ClientID: "client", ClientSecret: "the secret of the client"}
	s := ganbtest.NewServer(opts)
	token := s.Token()
	callAPI(t, s, token)
	_, err := connector(t, s).RefreshTokens(t.Context(), token.RefreshToken)
	require.NoError(t, err)
	secrets := []string{opts.ClientSecret, token.AccessToken, token.RefreshToken, token.IDToken}

	var printed strings.Builder
	for _, v := range []any{s, *s, []any{s, *s}, map[string]any{"s": *s}, struct{ S *ganbtest.Server }{s}, opts, &opts, s.Requests(), s.Grants(), s.RefreshTokens()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&printed, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&printed, nil)).Info("text", "v", v)
		slog.New(slog.NewJSONHandler(&printed, nil)).Info("json", "v", v)
		if data, err := json.Marshal(v); err == nil {
			printed.Write(data)
		}
	}
	require.Contains(t, printed.String(), s.URL)
	for _, secret := range secrets {
		require.NotEmpty(t, secret)
		require.False(t, strings.Contains(printed.String(), secret), "in clear")
		require.False(t, strings.Contains(printed.String(), fmt.Sprintf("%x", secret)), "in hexadecimal")
	}
	_, err = json.Marshal(s)
	require.Error(t, err)
}

// What is over is forgotten, and the log has a bound, so that a bank that runs for long
// does not grow with each request. Counts go on.
func TestLongRun(t *testing.T) {
	now := time.Now()
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, KeepRequests: 10, Now: func() time.Time { return now }})
	c, token := connector(t, s), s.Token("offline_access")
	for range 5000 {
		now = now.Add(time.Minute)
		next, err := c.RefreshTokens(t.Context(), token.RefreshToken)
		require.NoError(t, err)
		token.RefreshToken = next.RefreshToken
		token.AccessToken = next.AccessToken
	}
	require.Equal(t, 200, callAPI(t, s, token))
	require.Less(t, s.Held(), 1500)
	requests := s.Requests()
	require.Len(t, requests, 10)
	require.Equal(t, ganbtest.API, requests[9].Endpoint)
	require.Equal(t, 200, requests[9].Status)
	require.Equal(t, 5000, s.Refreshes())
	require.Equal(t, 5001, s.Count(ganbtest.TokenEndpoint))
	require.Equal(t, 5001, s.CountStatus(ganbtest.TokenEndpoint, 200))
}

// A bank that another server serves, at a URL of its own.
func TestServedElsewhere(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{URL: "https://bank.example:9999"})
	defer s.Close()
	require.Equal(t, "https://bank.example:9999", s.URL)
	require.Equal(t, "https://bank.example:9999/", s.Config().JWTIssuer)
	token := s.Token()
	require.Equal(t, 200, callAPI(t, s, token), "by its own client, in process")
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", s.APIBase()+"/accounts", nil)
	r.Header.Set("x-access-token", token.AccessToken)
	s.ServeHTTP(w, r)
	require.Equal(t, 200, w.Code)
}
