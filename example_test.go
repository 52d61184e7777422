package ganbauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// newBrowser returns a client with cookies that follows redirects, as a user's browser
// does. The fake bank approves at once.
func newBrowser() *http.Client {
	jar, _ := cookiejar.New(nil)
	return &http.Client{Jar: jar}
}

// visit opens a page as a browser does, and returns the page's text.
func visit(browser *http.Client, url string) string {
	req, _ := http.NewRequest(http.MethodGet, url, nil)
	req.Header.Set("Accept", "text/html")
	resp, err := browser.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	page, _ := io.ReadAll(resp.Body)
	return string(page)
}

// Mount three handlers, and protect the routes that need the bank.
func Example() {
	bankServer := ganbtest.NewServer(ganbtest.Options{}) // in production: the bank
	defer bankServer.Close()
	mux := http.NewServeMux()
	sessions := scs.New()
	app := httptest.NewServer(sessions.LoadAndSave(mux))
	defer app.Close()

	connector, err := ganbauth.NewConnector(bankServer.ClientID, bankServer.ClientSecret, ganbauth.AuthBasic, bankServer.Config())
	if err != nil {
		panic(err)
	}
	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: app.URL + "/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/bank/logout", bank.LogoutHandler())
	mux.Handle("/balance", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer struct{ Balances []any }
		resp, err := bank.Client(r.Context()).Get(bankServer.APIBase() + "/accounts/balances")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&answer)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		fmt.Fprintf(w, "%d balances", len(answer.Balances))
	})))

	// Opening /balance leads to the bank, back through the callback, and to /balance.
	fmt.Println(visit(newBrowser(), app.URL+"/balance"))
	// Output: 2 balances
}

// exampleKit returns an application with a kit at a fake bank, for the examples below.
func exampleKit(opts ganbauth.Options) (bank *ganbauth.Kit, mux *http.ServeMux, app *httptest.Server, box *ganbtest.Server) {
	box = ganbtest.NewServer(ganbtest.Options{Subject: "user-1"})
	mux = http.NewServeMux()
	sessions := scs.New()
	app = httptest.NewServer(sessions.LoadAndSave(mux))
	connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, box.Config())
	if err != nil {
		panic(err)
	}
	opts.RedirectURI = app.URL + "/bank/callback"
	opts.Scopes = []string{"openid", "offline_access"}
	opts.Logger = slog.New(slog.DiscardHandler)
	if bank, err = ganbauth.New(connector, sessions, opts); err != nil {
		panic(err)
	}
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/bank/logout", bank.LogoutHandler())
	return bank, mux, app, box
}

// The handler is called with a live token or not at all. A browser is sent to the bank, and
// a program gets a status.
func ExampleKit_RequireToken() {
	bank, mux, app, box := exampleKit(ganbauth.Options{})
	defer box.Close()
	defer app.Close()
	mux.Handle("/me", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		fmt.Fprint(w, token.Subject)
	})))

	fmt.Println("a browser:", visit(newBrowser(), app.URL+"/me"))

	resp, err := http.Get(app.URL + "/me") // a program
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	fmt.Println("a program:", resp.Status, resp.Header.Get("Content-Type"))
	// Output:
	// a browser: user-1
	// a program: 401 Unauthorized application/problem+json; charset=utf-8
}

// Ask for permission to transfer money when the user wants to transfer, and not before.
func ExampleKit_RequireScopes() {
	bank, mux, app, box := exampleKit(ganbauth.Options{})
	defer box.Close()
	defer app.Close()
	scopes := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		fmt.Fprint(w, token.Scope)
	})
	mux.Handle("/balance", bank.RequireToken(scopes))
	mux.Handle("/transfer", bank.RequireScopes("private:transfer")(scopes))

	browser := newBrowser()
	fmt.Println(visit(browser, app.URL+"/balance"))
	fmt.Println(visit(browser, app.URL+"/transfer"))
	// Output:
	// openid offline_access
	// openid offline_access private:transfer
}

// userStore is a TokenStore of the application's own. Yours would store the fields in
// columns, or the bytes of Token.MarshalBinary.
type userStore struct {
	mu     sync.Mutex
	tokens map[string]ganbauth.Token
}

func (s *userStore) Load(_ context.Context, key string) (*ganbauth.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, ok := s.tokens[key]
	if !ok {
		return nil, ganbauth.ErrTokenNotFound
	}
	return &token, nil
}

func (s *userStore) Save(_ context.Context, key string, token *ganbauth.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[key] = *token
	return nil
}

func (s *userStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, key)
	return nil
}

// Tokens belong to the application's users instead of to sessions, in a store of the
// application's own. With an encryption key the store gets no secret in clear.
func ExampleTokenStore() {
	store := &userStore{tokens: map[string]ganbauth.Token{}}
	bank, mux, app, box := exampleKit(ganbauth.Options{
		Store:          store,
		Key:            func(*http.Request) (string, error) { return "alice", nil }, // who is logged in to the application
		EncryptionKeys: [][]byte{[]byte("32 bytes from a secret manager..")},
	})
	defer box.Close()
	defer app.Close()
	mux.Handle("/me", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "connected")
	})))

	fmt.Println(visit(newBrowser(), app.URL+"/me"))
	sealed, err := store.Load(context.Background(), "bank/alice")
	fmt.Println(sealed.Scope, sealed.Subject == "user-1", err)
	// Output:
	// connected
	// openid offline_access false <nil>
}

// The client adds the token. If the bank's API says that the token has expired, the client
// refreshes it and sends the request again.
func ExampleKit_Client() {
	bank, mux, app, box := exampleKit(ganbauth.Options{})
	defer box.Close()
	defer app.Close()
	mux.Handle("/accounts", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		box.ExpireAccessTokens() // the worst moment
		resp, err := bank.Client(r.Context()).Get(box.APIBase() + "/accounts")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		fmt.Fprint(w, resp.Status)
	})))

	fmt.Println(visit(newBrowser(), app.URL+"/accounts"))
	fmt.Println(box.Refreshes(), "refresh")
	// Output:
	// 200 OK
	// 1 refresh
}

// A nightly job calls the API for a user who is not present.
func ExampleKit_Token() {
	bank, _, app, box := exampleKit(ganbauth.Options{
		Store: ganbauth.NewMemoryStore(), // in production: one that outlives the process
		Key:   func(*http.Request) (string, error) { return "alice", nil },
	})
	defer box.Close()
	defer app.Close()
	visit(newBrowser(), app.URL+"/bank/login")

	ctx := context.Background()
	token, err := bank.Token(ctx, "alice")
	fmt.Println(token.Valid(), err)
	resp, err := bank.ClientFor("alice").Get(box.APIBase() + "/accounts")
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)

	_, err = bank.Token(ctx, "bob")
	fmt.Println(errors.Is(err, ganbauth.ErrLoginRequired)) // ask Bob to connect
	// Output:
	// true <nil>
	// 200 OK
	// true
}

// One user connects the accounts of several clients. The route names the client, and a
// job names the same one.
func Example_severalConnections() {
	bank, mux, app, box := exampleKit(ganbauth.Options{
		Store:      ganbauth.NewMemoryStore(), // in production: one that outlives the process
		Key:        func(*http.Request) (string, error) { return "alice", nil },
		Connection: func(r *http.Request) (string, error) { return r.PathValue("client"), nil },
	})
	defer box.Close()
	defer app.Close()
	mux.Handle("/clients/{client}/connect", bank.LoginHandler())
	mux.Handle("/clients/{client}/disconnect", bank.LogoutHandler())
	mux.Handle("/clients/{client}", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, connection, _ := ganbauth.KeyFromContext(r.Context())
		fmt.Fprint(w, connection, " is connected")
	})))
	browser := newBrowser()
	fmt.Println(visit(browser, app.URL+"/clients/sato"))
	fmt.Println(visit(browser, app.URL+"/clients/suzuki"))

	for _, client := range []string{"sato", "suzuki", "tanaka"} { // the application's own list
		_, err := bank.Token(context.Background(), "alice", client)
		fmt.Println(client, err == nil, errors.Is(err, ganbauth.ErrLoginRequired))
	}
	// Output:
	// sato is connected
	// suzuki is connected
	// sato true false
	// suzuki true false
	// tanaka false true
}

// Every token of the store is kept alive while the process runs: here one that is about
// to expire.
func ExampleKit_KeepAlive() {
	refreshed := make(chan string)
	bank, _, app, box := exampleKit(ganbauth.Options{
		Store: ganbauth.NewMemoryStore(), // in production: one that outlives the process
		Key:   func(*http.Request) (string, error) { return "alice", nil },
		Observe: func(ctx context.Context, e ganbauth.Event) {
			if e.Type == ganbauth.EventTokenRefreshed {
				key, _, _ := ganbauth.KeyFromContext(ctx)
				refreshed <- key
			}
		},
	})
	defer box.Close()
	defer app.Close()
	token := box.Token("offline_access")
	token.ExpiresAt = time.Now()
	if err := bank.SetToken(context.Background(), "alice", token); err != nil {
		panic(err)
	}

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- bank.KeepAlive(ctx) }()
	fmt.Println("refreshed:", <-refreshed)

	stop() // the process ends
	fmt.Println(<-ended)
	fmt.Println(bank.Shutdown(context.Background())) // all that the bank has issued is stored
	// Output:
	// refreshed: alice
	// context canceled
	// <nil>
}

// Take over the tokens of another SDK. Their users need not connect again.
func ExampleKit_SetToken() {
	bank, _, app, box := exampleKit(ganbauth.Options{
		Store: ganbauth.NewMemoryStore(), // in production: one that outlives the process
		Key:   func(*http.Request) (string, error) { return "alice", nil },
	})
	defer box.Close()
	defer app.Close()
	issued := box.Token("private:account", "offline_access") // from the old application's table
	row := struct{ UserID, AccessToken, RefreshToken, Scope string }{"alice", issued.AccessToken, issued.RefreshToken, issued.Scope}

	ctx := context.Background()
	if err := bank.SetToken(ctx, row.UserID, &ganbauth.Token{
		AccessToken:  row.AccessToken,
		RefreshToken: row.RefreshToken,
		Scope:        row.Scope,
		// Without ExpiresAt the token is refreshed at its first use.
	}); err != nil {
		panic(err)
	}
	token, err := bank.Token(ctx, "alice")
	fmt.Println(token.Valid(), token.Scope, err)
	fmt.Println(box.Refreshes(), "refresh")
	// Output:
	// true private:account offline_access <nil>
	// 1 refresh
}

// An application that stores tokens by itself, with a Connector alone, keeps the refresh
// token of an answer that cannot be used.
func ExampleSalvagedRefreshToken() {
	ctx := context.Background()
	bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true})
	defer bank.Close()
	connector, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	if err != nil {
		panic(err)
	}
	token := bank.Token("offline_access", "private:account")

	incomplete := ganbtest.Fault{Change: func(answer map[string]any) { delete(answer, "token_type") }}
	bank.Fail(ganbtest.TokenEndpoint, incomplete, 1)
	_, err = connector.RefreshSession(ctx, token, nil)
	fmt.Println(err)
	if next := ganbauth.SalvagedRefreshToken(err); next != "" {
		token.RefreshToken = next // save it before anything else
	}

	token, err = connector.RefreshSession(ctx, token, nil)
	fmt.Println(token.Valid(), err)
	// Output:
	// ganbauth: token format error: token_type is not Bearer
	// true <nil>
}

// A handler that meets an error answers as RequireToken does: here the bank is under
// maintenance, and a program is told when to come back.
func ExampleKit_Refuse() {
	bank, mux, app, box := exampleKit(ganbauth.Options{})
	defer box.Close()
	defer app.Close()
	mux.Handle("/accounts", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := bank.Client(r.Context()).Get(box.APIBase() + "/accounts")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		fmt.Fprint(w, resp.Status)
	})))
	browser := newBrowser()
	fmt.Println(visit(browser, app.URL+"/accounts"))

	box.Fail(ganbtest.API, ganbtest.Maintenance, 1)
	req, err := http.NewRequest(http.MethodGet, app.URL+"/accounts", nil)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := browser.Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	var problem struct{ Code string }
	_ = json.NewDecoder(resp.Body).Decode(&problem)
	fmt.Println(resp.StatusCode, problem.Code, resp.Header.Get("Retry-After"))
	// Output:
	// 200 OK
	// 503 bank_unavailable 120
}

// An error page in the application's own design, with the kit's words and links.
func ExampleErrorPage() {
	_, _, app, box := exampleKit(ganbauth.Options{
		ErrorPage: template.Must(template.New("error").Parse(`<!doctype html>
<html lang="{{.Language}}">
<title>{{.Title}}</title>
<h1>{{.Title}}</h1>
<p>{{.Text}}
{{range .Links}}<p><a href="{{.URL}}">{{.Label}}</a>
{{end}}`)),
	})
	defer box.Close()
	defer app.Close()
	fmt.Println(visit(newBrowser(), app.URL+"/bank/logout"))
	// Output:
	// <!doctype html>
	// <html lang="en">
	// <title>Something went wrong with this request</title>
	// <h1>Something went wrong with this request</h1>
	// <p>Please go back and try again.
	// <p><a href="/">Back to the site</a>
}

// The application answers every refusal itself, to persons and to programs.
func ExampleOptions_onError() {
	_, _, app, box := exampleKit(ganbauth.Options{
		OnError: func(w http.ResponseWriter, r *http.Request, err error) {
			w.WriteHeader(ganbauth.StatusCode(err))
			var denied *ganbauth.AuthorizationError
			switch {
			case errors.As(err, &denied):
				fmt.Fprintf(w, "You did not connect (%s).", html.EscapeString(denied.Code))
			case errors.Is(err, ganbauth.ErrInvalidState):
				fmt.Fprint(w, "Please start again.")
			default:
				fmt.Fprint(w, "Please try later.")
			}
		},
	})
	defer box.Close()
	defer app.Close()
	fmt.Println(visit(newBrowser(), app.URL+"/bank/callback?code=c&state=s"))
	// Output: Please start again.
}

// One application can have several kits, for personal and corporate accounts for example.
// Give each its own Name and RedirectURI.
func ExampleNew_several() {
	box := ganbtest.NewServer(ganbtest.Options{})
	defer box.Close()
	mux, sessions := http.NewServeMux(), scs.New()
	app := httptest.NewServer(sessions.LoadAndSave(mux))
	defer app.Close()
	connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, box.Config())
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"personal", "corporate"} {
		bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
			Name:        name,
			RedirectURI: app.URL + "/" + name + "/callback",
			Scopes:      []string{"openid"},
			Logger:      slog.New(slog.DiscardHandler),
		})
		if err != nil {
			panic(err)
		}
		mux.Handle("/"+name+"/callback", bank.CallbackHandler())
		mux.Handle("/"+name, bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, name, " connected")
		})))
	}
	browser := newBrowser()
	fmt.Println(visit(browser, app.URL+"/personal"))
	fmt.Println(visit(browser, app.URL+"/corporate"))
	// Output:
	// personal connected
	// corporate connected
}
