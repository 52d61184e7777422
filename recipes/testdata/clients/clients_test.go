// Package clients runs the recipe of docs/recipes.md on generated clients. It is a module's
// only while TestGeneratedClients of the folder above runs.
package clients

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"clients/oapi"
	"clients/ogen"
	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func accountsByOapiCodegen(ctx context.Context, api *http.Client, apiBase string) (*oapi.Accounts, error) {
	client, err := oapi.NewClientWithResponses(apiBase, oapi.WithHTTPClient(api))
	if err != nil {
		return nil, err
	}
	resp, err := client.GetAccountsWithResponse(ctx, &oapi.GetAccountsParams{}) // the kit sets x-access-token
	if err != nil {
		return nil, err
	}
	err = ganbauth.ParseAPIError(resp.StatusCode(), resp.HTTPResponse.Header, resp.Body)
	if err == nil && resp.JSON200 == nil {
		err = errors.New("the bank's answer is not JSON")
	}
	return resp.JSON200, err
}

func accountsByOgen(ctx context.Context, api *http.Client, apiBase string) (*ogen.Accounts, error) {
	api.Transport = refusals{api.Transport}
	client, err := ogen.NewClient(apiBase, ogen.WithClient(api))
	if err != nil {
		return nil, err
	}
	return client.GetAccounts(ctx, ogen.GetAccountsParams{}) // the kit sets x-access-token
}

// refusals makes errors of the bank's refusals.
type refusals struct{ http.RoundTripper }

func (t refusals) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode < 400 {
		return resp, err
	}
	defer resp.Body.Close()
	return nil, ganbauth.CheckResponse(resp)
}

func TestGeneratedClients(t *testing.T) {
	box := ganbtest.NewServer(ganbtest.Options{})
	defer box.Close()
	connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, box.Config())
	require.NoError(t, err)
	scopes := []string{"openid", "offline_access", "private:account"}
	bank, err := ganbauth.New(connector, nil, ganbauth.Options{
		RedirectURI: "https://app.test/bank/callback",
		Scopes:      scopes,
		Store:       ganbauth.NewMemoryStore(),
		Key:         func(*http.Request) (string, error) { return "alice", nil },
		Logger:      slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	require.NoError(t, bank.SetToken(t.Context(), "alice", box.Token(scopes...)))
	for name, ids := range map[string]func() ([]string, error){
		"oapi-codegen": func() (ids []string, err error) {
			answer, err := accountsByOapiCodegen(t.Context(), bank.ClientFor("alice"), box.APIBase())
			if err == nil {
				for _, account := range answer.Accounts {
					ids = append(ids, account.AccountId)
				}
			}
			return ids, err
		},
		"ogen": func() (ids []string, err error) {
			answer, err := accountsByOgen(t.Context(), bank.ClientFor("alice"), box.APIBase())
			if err == nil {
				for _, account := range answer.Accounts {
					ids = append(ids, account.AccountId)
				}
			}
			return ids, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ids()
			require.NoError(t, err)
			require.NotEmpty(t, got)
			box.Fail(ganbtest.API, ganbtest.Maintenance, 1)
			_, err = ids()
			var refusal *ganbauth.APIError
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, "WG_ERR_300", refusal.Code)
			require.Equal(t, http.StatusServiceUnavailable, ganbauth.StatusCode(err))
			box.Fail(ganbtest.API, ganbtest.NotJSON, 1)
			_, err = ids()
			require.Error(t, err)
		})
	}
}
