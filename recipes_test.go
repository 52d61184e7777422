package ganbauth_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
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

func connectedClients(ctx context.Context, bank *ganbauth.Kit, userID string, clients []string) (connected []string, err error) {
	for _, client := range clients {
		_, err := bank.Token(ctx, userID, client)
		switch {
		case err == nil:
			connected = append(connected, client)
		case !errors.Is(err, ganbauth.ErrLoginRequired):
			return nil, err
		}
	}
	return connected, nil
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

func mailAboutLostConnections(opts *ganbauth.Options, send func(ctx context.Context, userID, connection string) error) {
	opts.Observe = func(ctx context.Context, e ganbauth.Event) {
		if e.Type != ganbauth.EventTokenLost {
			return
		}
		if userID, connection, ok := ganbauth.KeyFromContext(ctx); ok {
			if err := send(ctx, userID, connection); err != nil {
				slog.ErrorContext(ctx, "mail about a lost connection", "error", err)
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
			slog.ErrorContext(ctx, "on connecting", "error", err)
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

func nightlyJob(ctx context.Context, bank *ganbauth.Kit, userIDs []string, fetch func(ctx context.Context, userID string, client *http.Client) error) (later []string) {
	pace := time.NewTicker(time.Second) // the bank allows about one request a second
	defer pace.Stop()
	for i, userID := range userIDs {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return append(later, userIDs[i:]...)
		}
		err := fetch(ctx, userID, bank.ClientFor(userID))
		if err != nil && ganbauth.StatusCode(err) != http.StatusUnauthorized { // 401: the user has to connect again
			slog.WarnContext(ctx, "nightly job", "user", userID, "error", err)
			later = append(later, userID)
		}
	}
	return later
}

func serve(ctx context.Context, server *http.Server, bank *ganbauth.Kit) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		if err := bank.KeepAlive(ctx); ctx.Err() == nil {
			slog.Error("tokens are not kept alive", "error", err)
		}
	}()
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	all, cancel := context.WithTimeout(context.WithoutCancel(ctx), 9*time.Second) // a container is killed after ten
	defer cancel()
	requests, cancel := context.WithTimeout(all, 5*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(requests), bank.Shutdown(all))
}

func goingOut(proxy *url.URL, roots *x509.CertPool, certificate tls.Certificate) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = http.ProxyURL(proxy)
	transport.TLSClientConfig = &tls.Config{
		RootCAs:      roots,                          // a private CA; nil: the system's
		Certificates: []tls.Certificate{certificate}, // mutual TLS
	}
	transport.MaxIdleConnsPerHost = 100 // net/http keeps two
	return &http.Client{Transport: transport}
}

func withoutClient(ctx context.Context, config ganbauth.Config, accessToken string) (*ganbauth.Kit, error) {
	connector, err := ganbauth.NewConnector("none", "none", ganbauth.AuthBasic, config)
	if err != nil {
		return nil, err
	}
	bank, err := ganbauth.New(connector, nil, ganbauth.Options{
		RedirectURI: "http://localhost:8080/bank/callback", // required; nobody goes there
		Scopes:      []string{"private:account"},
		Store:       ganbauth.NewMemoryStore(),
		Key:         func(*http.Request) (string, error) { return "me", nil },
	})
	if err != nil {
		return nil, err
	}
	return bank, bank.SetToken(ctx, "me", &ganbauth.Token{
		AccessToken: accessToken,
		Scope:       "private:account",
		ExpiresAt:   time.Now().AddDate(0, 0, 30), // or whatever the portal says
	})
}

// tokenStore keeps tokens in a database of yours.
type tokenStore struct{ db database }

func (s tokenStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	record, found, err := s.db.Get(ctx, key)
	if err != nil {
		return nil, err // requests are answered 503
	}
	if !found {
		return nil, ganbauth.ErrTokenNotFound
	}
	token := new(ganbauth.Token)
	return token, token.UnmarshalBinary(record)
}

func (s tokenStore) Save(ctx context.Context, key string, token *ganbauth.Token) error {
	record, err := token.MarshalBinary()
	if err != nil {
		return err
	}
	return s.db.Put(ctx, key, record)
}

func (s tokenStore) Delete(ctx context.Context, key string) error {
	return s.db.Delete(ctx, key)
}

// database is what tokenStore needs of an engine, here a map.
type database struct{ records *sync.Map }

func newDatabase(*testing.T) database { return database{new(sync.Map)} }

func (d database) Get(ctx context.Context, key string) (record []byte, found bool, err error) {
	value, found := d.records.Load(key)
	record, _ = value.([]byte)
	return record, found, ctx.Err()
}

func (d database) Put(ctx context.Context, key string, record []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.records.Store(key, record)
	return nil
}

func (d database) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.records.Delete(key)
	return nil
}

func TestTokenStore(t *testing.T) {
	db := newDatabase(t)
	ganbtest.TestStore(t, func() ganbauth.TokenStore { return tokenStore{db} })
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

// connectedBrowser logs a user in to the application and connects a bank account.
func connectedBrowser(box *ganbtest.Server, application http.Handler) (*http.Client, error) {
	browser := box.Browser(application)
	for _, page := range []string{
		"https://app.test/login?user=alice",     // the application's own login
		"https://app.test/clients/sato/connect", // to the bank, which approves, and back
	} {
		resp, err := browser.Get(page)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
	}
	return browser, nil
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
	opts := recipeOptions()
	application, err := severalConnections(box.Connector(), opts, box.APIBase())
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

	bank, err := ganbauth.New(box.Connector(), nil, opts)
	require.NoError(t, err)
	connected, err := connectedClients(t.Context(), bank, "alice", []string{"sato", "suzuki", "tanaka"})
	require.NoError(t, err)
	require.Equal(t, []string{"suzuki"}, connected)
}

func TestRecipeConnectedBrowser(t *testing.T) {
	box := recipeBank(t)
	opts := recipeOptions()
	routes, err := severalConnections(box.Connector(), opts, box.APIBase())
	require.NoError(t, err)
	sessions := scs.New()
	sessions.Cookie.Secure = true
	application := sessions.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			sessions.Put(r.Context(), "user", r.FormValue("user"))
			return
		}
		as(sessions.GetString(r.Context(), "user"), routes).ServeHTTP(w, r)
	}))
	browser, err := connectedBrowser(box, application)
	require.NoError(t, err)
	resp, text := get(t, browser, "https://app.test/clients/sato/accounts", "application/json")
	require.Equal(t, 200, resp.StatusCode, text)
	resp, _ = get(t, browser, "https://app.test/clients/suzuki/accounts", "application/json")
	require.Equal(t, 401, resp.StatusCode)

	bank, err := ganbauth.New(box.Connector(), nil, opts)
	require.NoError(t, err)
	require.NoError(t, bank.SetToken(t.Context(), "alice", box.Token(), "suzuki"))
	resp, text = get(t, browser, "https://app.test/clients/suzuki/accounts", "application/json")
	require.Equal(t, 200, resp.StatusCode, text)
}

func TestRecipeLostConnection(t *testing.T) {
	box := recipeBank(t)
	mails := make(chan string, 1)
	opts := recipeOptions()
	opts.Connection = func(r *http.Request) (string, error) { return r.URL.Query().Get("client"), nil }
	mailAboutLostConnections(&opts, func(_ context.Context, userID, connection string) error {
		mails <- userID + " " + connection
		return nil
	})
	bank, err := ganbauth.New(box.Connector(), nil, opts)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/accounts", bank.RequireToken(accounts(bank, box.APIBase())))
	browser := box.Browser(as("alice", mux))
	get(t, browser, "https://app.test/accounts?client=acme", "")
	box.RevokeGrants()
	get(t, browser, "https://app.test/accounts?client=acme", "application/json")
	require.Equal(t, "alice acme", <-mails)
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

// The recipes work as they are copied into an application that sets no Logger.
func TestRecipesNeedNoLogger(t *testing.T) {
	log := &lockedBuffer{}
	before := slog.Default()
	slog.SetDefault(textLogger(log))
	defer slog.SetDefault(before)
	synctest.Test(t, func(t *testing.T) {
		fails := errors.New("the queue is full")
		opts := recipeOptions()
		opts.Logger = nil
		mailAboutLostConnections(&opts, func(context.Context, string, string) error { return fails })
		box := recipeBank(t)
		bank, err := ganbauth.New(box.Connector(), nil, opts)
		require.NoError(t, err)
		require.NoError(t, bank.SetToken(t.Context(), "alice", box.Token()))
		box.RevokeGrants()
		time.Sleep(time.Hour)
		_, err = bank.Token(t.Context(), "alice")
		require.ErrorIs(t, err, ganbauth.ErrLoginRequired)

		opts.Store = ganbauth.NewMemoryStore()
		bank, err = onConnecting(box.Connector(), opts, func(context.Context, string, string) error { return fails })
		require.NoError(t, err)
		mux := http.NewServeMux()
		mux.Handle("/bank/login", bank.LoginHandler())
		mux.Handle("/bank/callback", bank.CallbackHandler())
		box.Login(as("alice", mux), "https://app.test/bank/login")
		synctest.Wait()
		require.Contains(t, log.String(), `msg="mail about a lost connection" error="the queue is full"`)
		require.Contains(t, log.String(), `msg="on connecting" error="the queue is full"`)
	})
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
		longest := box.Token("offline_access")
		longest.ExpiresAt = time.Now().Add(365 * 24 * time.Hour)
		require.NoError(t, before.SetToken(t.Context(), "alice", longest))

		first, second := with(encryptionKeys(1, oldKey, newKey)), with(encryptionKeys(2, oldKey, newKey))
		require.NoError(t, served(first))
		n, err := second.RefreshExpiring(t.Context(), 366*24*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.NoError(t, served(first), "an instance of the first step")
		require.ErrorIs(t, served(before), ganbauth.ErrUnavailable)
		require.NoError(t, served(with(encryptionKeys(3, oldKey, newKey))))
	})
}

// fetchAccounts is what a nightly job does for each user.
func fetchAccounts(ctx context.Context, client *http.Client, apiBase string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiBase+"/accounts", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return ganbauth.CheckResponse(resp)
}

func TestRecipeNightlyJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := recipeBank(t)
		bank, err := ganbauth.New(box.Connector(), nil, recipeOptions())
		require.NoError(t, err)
		userIDs := []string{"alice", "bob", "carol", "dave"}
		subjects := map[string]string{}
		for _, id := range userIDs[:3] { // dave has never connected
			token := box.Token("openid", "offline_access")
			subjects[id] = token.Subject
			require.NoError(t, bank.SetToken(t.Context(), id, token))
		}
		box.RevokeGrantsOf(subjects["alice"])
		maintenance := ganbtest.Maintenance
		maintenance.For = func(r ganbtest.Request) bool { return r.Subject == subjects["bob"] }
		box.Fail(ganbtest.API, maintenance, 1)

		ctx, cancel := context.WithCancel(t.Context())
		var fetched []string
		fetch := func(ctx context.Context, userID string, client *http.Client) error {
			err := fetchAccounts(ctx, client, box.APIBase())
			if err == nil {
				fetched = append(fetched, userID)
			}
			return err
		}
		started := time.Now()
		require.Equal(t, []string{"bob"}, nightlyJob(ctx, bank, userIDs, fetch))
		require.Equal(t, 4*time.Second, time.Since(started))
		require.Equal(t, []string{"carol"}, fetched)
		require.Empty(t, nightlyJob(ctx, bank, []string{"bob"}, fetch))
		require.Equal(t, []string{"carol", "bob"}, fetched)
		cancel()
		require.Equal(t, userIDs, nightlyJob(ctx, bank, userIDs, fetch), "an interrupted run")
	})
}

func TestRecipeServe(t *testing.T) {
	box := recipeBank(t)
	opts := recipeOptions()
	refreshed := make(chan struct{}, 1)
	opts.Observe = func(_ context.Context, e ganbauth.Event) {
		if e.Type == ganbauth.EventTokenRefreshed {
			refreshed <- struct{}{}
		}
	}
	bank, err := ganbauth.New(box.Connector(), nil, opts)
	require.NoError(t, err)
	token := box.Token("offline_access")
	token.IssuedAt, token.ExpiresAt = time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute)
	require.NoError(t, bank.SetToken(t.Context(), "alice", token))

	arrived, ending := make(chan struct{}), make(chan struct{})
	server := &http.Server{
		Addr: fmt.Sprint("127.0.0.1:", testenv.FreePort(t)),
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(arrived)
				<-ending // it is still running when the signal comes
			}
		}),
	}
	server.RegisterOnShutdown(func() { close(ending) })
	ended := make(chan error, 1)
	go func() { ended <- serve(t.Context(), server, bank) }()
	<-refreshed // by KeepAlive
	require.Eventually(t, func() bool {
		resp, err := http.Get("http://" + server.Addr)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)

	answered := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + server.Addr + "/slow")
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	<-arrived
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	require.NoError(t, <-ended)
	require.NoError(t, <-answered)
	require.Zero(t, box.Reuses())
}

// selfSigned returns a certificate for 127.0.0.1 that is its own authority, for servers and
// clients.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// connectProxy serves CONNECT, and keeps what it sees.
func connectProxy(t *testing.T) (proxy *httptest.Server, requests func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	proxy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, fmt.Sprint(r.Method, " ", r.Host, " ", r.Header))
		mu.Unlock()
		there, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		here, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, err = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		}
		if err != nil {
			there.Close()
			return
		}
		go func() { _, _ = io.Copy(there, here); there.Close() }()
		go func() { _, _ = io.Copy(here, there); here.Close() }()
	}))
	t.Cleanup(proxy.Close)
	return proxy, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, seen...)
	}
}

func TestRecipeGoingOut(t *testing.T) {
	ours, theirs := selfSigned(t), selfSigned(t)
	var box *ganbtest.Server
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { box.ServeHTTP(w, r) }))
	box = ganbtest.NewServer(ganbtest.Options{URL: "https://" + server.Listener.Addr().String()})
	defer box.Close()
	clients, roots := x509.NewCertPool(), x509.NewCertPool()
	clients.AddCert(ours.Leaf)
	roots.AddCert(theirs.Leaf)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{theirs}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.StartTLS()
	defer server.Close()
	proxy, requests := connectProxy(t)
	proxyURL, err := url.Parse(proxy.URL)
	require.NoError(t, err)

	config := box.Config()
	config.HTTPClient = goingOut(proxyURL, roots, ours)
	defer config.HTTPClient.CloseIdleConnections()
	connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, config)
	require.NoError(t, err)
	bank, err := ganbauth.New(connector, nil, recipeOptions())
	require.NoError(t, err)
	token := box.Token("offline_access")
	require.NoError(t, bank.SetToken(t.Context(), "alice", token))
	box.ExpireAccessTokens()
	require.NoError(t, fetchAccounts(t.Context(), bank.ClientFor("alice"), box.APIBase()))
	require.Equal(t, 1, box.Refreshes())
	seen := requests()
	require.NotEmpty(t, seen)
	for _, request := range seen {
		require.Contains(t, request, "CONNECT "+server.Listener.Addr().String())
		require.NotContains(t, request, token.AccessToken)
		require.NotContains(t, request, "Authorization")
	}
}

func TestRecipeWithoutClient(t *testing.T) {
	box := recipeBank(t)
	bank, err := withoutClient(t.Context(), box.Config(), box.Token("private:account").AccessToken)
	require.NoError(t, err)
	browser := box.Browser(bank.RequireToken(accounts(bank, box.APIBase())))
	resp, text := get(t, browser, "http://localhost:8080/accounts", "application/json")
	require.Equal(t, 200, resp.StatusCode, text)
	box.RevokeGrants() // the portal shows another token by now
	resp, _ = get(t, browser, "http://localhost:8080/accounts", "application/json")
	require.Equal(t, 401, resp.StatusCode)
}

// Tokens outlive a new client secret and a new salt. Only who is at the bank's consent
// page has to begin again.
func TestRecipeSecretRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := recipeBank(t)
		opts := recipeOptions()
		classes := make(chan string, 10)
		opts.Observe = func(_ context.Context, e ganbauth.Event) { classes <- string(e.Type) + " " + e.ErrorClass }
		deploy := func(salt string) (*ganbauth.Kit, http.Handler) {
			config := box.Config()
			config.Salt = salt
			connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, config)
			require.NoError(t, err)
			bank, err := ganbauth.New(connector, nil, opts)
			require.NoError(t, err)
			mux := http.NewServeMux()
			mux.Handle("/bank/login", bank.LoginHandler())
			mux.Handle("/bank/callback", bank.CallbackHandler())
			return bank, as("bob", mux)
		}
		oldSalt, newSalt := strings.Repeat("old", 10), strings.Repeat("new", 10)
		before, application := deploy(oldSalt)
		require.NoError(t, before.SetToken(t.Context(), "alice", box.Token("offline_access")))
		var current http.Handler
		browser := box.Browser(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { current.ServeHTTP(w, r) }))
		browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, change := range []func() (*ganbauth.Kit, http.Handler){
			func() (*ganbauth.Kit, http.Handler) {
				box.ClientSecret = "issued by the bank in place of the former one"
				_, err := before.Token(t.Context(), "alice")
				require.NoError(t, err, "a live token")
				time.Sleep(time.Hour)
				_, err = before.Token(t.Context(), "alice")
				require.ErrorIs(t, err, ganbauth.ErrUnavailable)
				require.Equal(t, "login_started ", <-classes)
				require.Equal(t, "refresh_failed invalid_client", <-classes)
				return deploy(oldSalt)
			},
			func() (*ganbauth.Kit, http.Handler) { return deploy(newSalt) },
		} {
			current = application
			started, _ := get(t, browser, "https://app.test/bank/login", "")
			callback := box.Approve(started.Header.Get("Location"))
			var bank *ganbauth.Kit
			bank, application = change()
			current = application
			_, err := bank.Token(t.Context(), "alice")
			require.NoError(t, err)
			resp, _ := get(t, browser, callback, "")
			require.Equal(t, 400, resp.StatusCode)
			box.Login(application, "https://app.test/bank/login")
		}
		require.Zero(t, box.Reuses())
	})
}
