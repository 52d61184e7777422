package ganbauth_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// The first functions of this file are snippets of docs/recipes.md. What runs them follows.

func severalConnections(connector *ganbauth.Connector, opts ganbauth.Options, apiBase string) (http.Handler, error) {
	opts.Key = func(r *http.Request) (string, error) { return userID(r.Context()) }
	opts.Connection = func(r *http.Request) (string, error) { return r.PathValue("client"), nil }
	bank, err := ganbauth.New(connector, nil, opts)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/clients/{client}/connect", bank.LoginHandler())
	mux.Handle("/clients/{client}/disconnect", bank.LogoutHandler())
	mux.Handle("GET /clients/{client}/accounts", bank.RequireToken(accounts(bank, apiBase)))
	return mux, nil
}

func accounts(bank *ganbauth.Kit, apiBase string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := bank.Client(r.Context()).Get(apiBase + "/accounts")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		_, _ = io.Copy(w, resp.Body)
	})
}

func mailAboutLostConnections(opts *ganbauth.Options, send func(ctx context.Context, userID, text string) error) {
	opts.Observe = func(ctx context.Context, e ganbauth.Event) {
		if e.Type != ganbauth.EventTokenLost {
			return
		}
		if userID, _, ok := ganbauth.KeyFromContext(ctx); ok {
			if err := send(ctx, userID, "Please connect your bank account again."); err != nil {
				opts.Logger.ErrorContext(ctx, "mail about a lost connection", "error", err)
			}
		}
	}
}

func onConnecting(c *ganbauth.Connector, opts ganbauth.Options, connected func(ctx context.Context, userID, subject string) error) (*ganbauth.Kit, error) {
	var bank *ganbauth.Kit
	opts.Observe = func(ctx context.Context, e ganbauth.Event) {
		userID, connection, ok := ganbauth.KeyFromContext(ctx)
		if e.Type != ganbauth.EventLoginSucceeded || !ok {
			return
		}
		token, err := bank.Token(ctx, userID, connection)
		if err == nil {
			err = connected(ctx, userID, token.Subject)
		}
		if err != nil {
			opts.Logger.ErrorContext(ctx, "on connecting", "error", err)
		}
	}
	var err error
	bank, err = ganbauth.New(c, nil, opts)
	return bank, err
}

var errorPage = template.Must(template.New("error").Parse(`<!doctype html>
<html lang="{{.Language}}">
<link rel="stylesheet" href="/site.css">
<title>{{.Title}}</title>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
{{range .Links}}<p><a href="{{.URL}}">{{.Label}}</a></p>
{{end}}`))

func logOut(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := bank.Forget(w, r); err != nil { // first: the session knows whose token it is
			bank.Refuse(w, r, err)
			return
		}
		if err := sessions.Destroy(r.Context()); err != nil {
			http.Error(w, "Please try again.", http.StatusServiceUnavailable)
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
}

func takeOver(ctx context.Context, bank *ganbauth.Kit, rows []oldToken) error {
	for _, row := range rows {
		_, err := bank.Token(ctx, row.UserID)
		if errors.Is(err, ganbauth.ErrLoginRequired) { // not taken over yet
			err = bank.SetToken(ctx, row.UserID, &ganbauth.Token{
				AccessToken:  row.AccessToken,
				RefreshToken: row.RefreshToken,
				Scope:        row.Scope,
			})
		}
		if err == nil {
			err = row.TakenOver(ctx)
		}
		if err != nil {
			return fmt.Errorf("user %s: %w", row.UserID, err) // run it again later
		}
	}
	return nil
}

func encryptionKeys(deployment int, oldKey, newKey []byte) [][]byte {
	switch deployment {
	case 1:
		return [][]byte{oldKey, newKey} // every instance can decrypt both
	case 2:
		return [][]byte{newKey, oldKey} // every instance encrypts with the new key
	default:
		return [][]byte{newKey} // once every token has been refreshed
	}
}

// newApplication is the application under test.
func newApplication(connector *ganbauth.Connector, apiBase string) (http.Handler, error) {
	sessions := scs.New()
	sessions.Cookie.Secure = true
	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: "https://app.test/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/accounts", bank.RequireToken(accounts(bank, apiBase)))
	return sessions.LoadAndSave(mux), nil
}

func TestAccounts(t *testing.T) {
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	defer box.Close()
	application, err := newApplication(box.Connector(), box.APIBase())
	if err != nil {
		t.Fatal(err)
	}
	browser := box.Login(application, "https://app.test/bank/login") // of a connected user

	box.ExpireAccessTokens() // the kit refreshes it
	resp, err := browser.Get("https://app.test/accounts")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "accountId") {
		t.Errorf("%s: %s", resp.Status, body)
	}

	box.Fail(ganbtest.API, ganbtest.Maintenance, 1)
	resp, err = browser.Get("https://app.test/accounts")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("under maintenance: %s", resp.Status)
	}
}

// What the snippets need around them.

type whoIsLoggedIn struct{}

// userID is the application's own: who is logged in.
func userID(ctx context.Context) (string, error) {
	id, _ := ctx.Value(whoIsLoggedIn{}).(string)
	return id, nil
}

// as has every request be that user's.
func as(id string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), whoIsLoggedIn{}, id)))
	})
}

type oldToken struct {
	UserID, AccessToken, RefreshToken, Scope string
	taken                                    *bool
}

func (o oldToken) TakenOver(context.Context) error {
	*o.taken = true
	return nil
}

// recipeOptions are those of an application that has no sessions.
func recipeOptions() ganbauth.Options {
	return ganbauth.Options{
		RedirectURI: "https://app.test/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Store:       ganbauth.NewMemoryStore(),
		Key:         func(r *http.Request) (string, error) { return userID(r.Context()) },
		Logger:      discard,
	}
}

func recipeBank(t *testing.T) *ganbtest.Server {
	t.Helper()
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
	t.Cleanup(box.Close)
	return box
}

func get(t *testing.T, browser *http.Client, url, accept string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	require.NoError(t, err)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := browser.Do(req)
	require.NoError(t, err)
	text := body(resp)
	return resp, text
}

func TestRecipeConnections(t *testing.T) {
	box := recipeBank(t)
	application, err := severalConnections(box.Connector(), recipeOptions(), box.APIBase())
	require.NoError(t, err)
	browser := box.Browser(as("alice", application))
	for _, client := range []string{"sato", "suzuki"} {
		resp, text := get(t, browser, "https://app.test/clients/"+client+"/accounts", "")
		require.Equal(t, 200, resp.StatusCode, text)
		require.Equal(t, "/clients/"+client+"/accounts", resp.Request.URL.Path)
	}
	require.Len(t, box.Grants(), 2)
	req, err := http.NewRequest(http.MethodPost, "https://app.test/clients/sato/disconnect", nil)
	require.NoError(t, err)
	browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := browser.Do(req)
	require.NoError(t, err)
	require.Equal(t, 303, resp.StatusCode)
	resp, _ = get(t, browser, "https://app.test/clients/sato/accounts", "application/json")
	require.Equal(t, 401, resp.StatusCode)
	resp, _ = get(t, browser, "https://app.test/clients/suzuki/accounts", "application/json")
	require.Equal(t, 200, resp.StatusCode)
}

func TestRecipeLostConnection(t *testing.T) {
	box := recipeBank(t)
	mails := make(chan string, 1)
	opts := recipeOptions()
	mailAboutLostConnections(&opts, func(_ context.Context, userID, text string) error {
		mails <- userID + ": " + text
		return nil
	})
	bank, err := ganbauth.New(box.Connector(), nil, opts)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/accounts", bank.RequireToken(accounts(bank, box.APIBase())))
	browser := box.Browser(as("alice", mux))
	get(t, browser, "https://app.test/accounts", "")
	box.RevokeGrants()
	get(t, browser, "https://app.test/accounts", "application/json")
	require.Equal(t, "alice: Please connect your bank account again.", <-mails)
}

func TestRecipeOnConnecting(t *testing.T) {
	box := recipeBank(t)
	connected := make(chan string, 1)
	bank, err := onConnecting(box.Connector(), recipeOptions(), func(_ context.Context, userID, subject string) error {
		connected <- userID + " " + subject
		return nil
	})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	box.Login(as("alice", mux), "https://app.test/bank/login")
	require.Equal(t, "alice "+box.Grants()[0].Subject, <-connected)
}

func TestRecipeErrorPage(t *testing.T) {
	box := recipeBank(t)
	opts := recipeOptions()
	opts.ErrorPage = errorPage
	bank, err := ganbauth.New(box.Connector(), nil, opts)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/bank/callback", bank.CallbackHandler())
	resp, text := get(t, box.Browser(as("alice", mux)), "https://app.test/bank/callback?error=access_denied&state=x", "")
	require.Equal(t, 400, resp.StatusCode)
	require.Contains(t, text, `href="/site.css"`)
	require.Contains(t, text, `<p><a href="/">Back to the site</a></p>`)
}

func TestRecipeLogOut(t *testing.T) {
	box := recipeBank(t)
	sessions := scs.New()
	sessions.Cookie.Secure = true
	opts := recipeOptions()
	opts.Store, opts.Key = nil, nil
	bank, err := ganbauth.New(box.Connector(), sessions, opts)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/bank/status", bank.StatusHandler())
	mux.Handle("POST /logout", logOut(bank, sessions))
	mux.HandleFunc("/{$}", func(_ http.ResponseWriter, r *http.Request) { sessions.Put(r.Context(), "cart", "full") })
	browser := box.Login(sessions.LoadAndSave(mux), "https://app.test/bank/login")
	get(t, browser, "https://app.test/", "")
	_, text := get(t, browser, "https://app.test/bank/status", "")
	require.Contains(t, text, `"connected":true`)
	require.Len(t, inEngine(t, sessions), 2, "a session and a token")

	browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := browser.Post("https://app.test/logout", "", nil)
	require.NoError(t, err)
	require.Equal(t, 303, resp.StatusCode)
	require.Empty(t, inEngine(t, sessions))
	_, text = get(t, browser, "https://app.test/bank/status", "")
	require.Contains(t, text, `"connected":false`)
}

func inEngine(t *testing.T, sessions *scs.SessionManager) map[string][]byte {
	t.Helper()
	all, err := sessions.Store.(*memstore.MemStore).All()
	require.NoError(t, err)
	return all
}

// C8: a migration that was interrupted is run again.
func TestC8RecipeTakeOver(t *testing.T) {
	box := recipeBank(t)
	bank, err := ganbauth.New(box.Connector(), nil, recipeOptions())
	require.NoError(t, err)
	var rows []oldToken
	for _, id := range []string{"alice", "bob"} {
		issued := box.Token("offline_access", "private:account")
		rows = append(rows, oldToken{id, issued.AccessToken, issued.RefreshToken, issued.Scope, new(bool)})
	}
	require.NoError(t, takeOver(t.Context(), bank, rows[:1]))
	_, err = bank.Token(t.Context(), "alice") // spends the row's refresh token
	require.NoError(t, err)
	require.NoError(t, takeOver(t.Context(), bank, rows))
	for _, row := range rows {
		require.True(t, *row.taken)
		box.ExpireAccessTokens()
		resp, err := bank.ClientFor(row.UserID).Get(box.APIBase() + "/accounts")
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, 200, resp.StatusCode)
	}
	require.Zero(t, box.Reuses())
}

func TestRecipeKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := recipeBank(t)
		oldKey, newKey := make([]byte, 32), make([]byte, 32)
		_, _ = rand.Read(oldKey)
		_, _ = rand.Read(newKey)
		opts := recipeOptions()
		with := func(keys [][]byte) *ganbauth.Kit {
			opts.EncryptionKeys = keys
			bank, err := ganbauth.New(box.Connector(), nil, opts)
			require.NoError(t, err)
			return bank
		}
		served := func(bank *ganbauth.Kit) error {
			_, err := bank.Token(t.Context(), "alice")
			return err
		}
		before := with([][]byte{oldKey})
		require.NoError(t, before.SetToken(t.Context(), "alice", box.Token("offline_access")))

		first, second := with(encryptionKeys(1, oldKey, newKey)), with(encryptionKeys(2, oldKey, newKey))
		require.NoError(t, served(first))
		n, err := second.RefreshExpiring(t.Context(), 24*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.NoError(t, served(first), "an instance of the first step")
		require.ErrorIs(t, served(before), ganbauth.ErrUnavailable)
		require.NoError(t, served(with(encryptionKeys(3, oldKey, newKey))))
	})
}
