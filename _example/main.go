// The example connects a bank account: on the bank in a box, with no set-up,
//
//	go run ./_example
//
// or at the real bank, with the conf.json of the bank's SDKs and the client from the environment:
//
//	GANB_CLIENT_ID=… GANB_CLIENT_SECRET=… go run ./_example -conf conf.json -redirect-uri https://…/bank/callback
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "example:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to listen on")
	conf := flags.String("conf", "", "the bank SDKs' conf.json; without it the bank in a box is used")
	redirectURI := flags.String("redirect-uri", "", "as registered with the bank (default http://ADDR/bank/callback)")
	method := flags.String("auth-method", "basic", "what the client is registered for: basic or post")
	kind := flags.String("accounts", "personal", "whose API to call: personal or corporation")
	scopes := flags.String("scopes", "openid offline_access private:account", "scopes to ask for")
	lifetime := flags.Duration("lifetime", 2*time.Minute, "how long the box's access tokens live")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("%w (choose another address with -addr)", err)
	}
	defer listener.Close()
	app := &app{
		kind:      *kind,
		sessions:  scs.New(),
		refreshes: map[string]int{},
	}
	origin := "http://" + listener.Addr().String()
	opts := ganbauth.Options{
		RedirectURI: cmp.Or(*redirectURI, origin+"/bank/callback"),
		Scopes:      strings.Fields(*scopes),
		Observe:     app.observe,
	}
	app.sessions.Cookie.Secure = strings.HasPrefix(opts.RedirectURI, "https:")

	connector, err := app.connect(*conf, *method, ganbtest.Options{
		Consent: true, Application: "The example", RevokeOnReuse: true, Lifetime: *lifetime, RedirectURI: opts.RedirectURI,
	})
	if err != nil {
		return err
	}
	if app.box != nil {
		defer app.box.Close()
	}
	if app.bank, err = ganbauth.New(connector, app.sessions, opts); err != nil {
		return err
	}
	server := &http.Server{Handler: app.routes(), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	fmt.Fprintf(out, "Open %s/ in a browser. Ctrl-C ends it.\n", origin)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type app struct {
	bank     *ganbauth.Kit
	box      *ganbtest.Server // nil at the real bank
	api      string
	kind     string
	sessions *scs.SessionManager

	mu        sync.Mutex
	refreshes map[string]int // by visitor
}

// connect makes the connector to the real bank, or to a box.
func (a *app) connect(conf, method string, box ganbtest.Options) (*ganbauth.Connector, error) {
	authMethod, ok := map[string]ganbauth.AuthMethod{"basic": ganbauth.AuthBasic, "post": ganbauth.AuthPost}[method]
	if !ok {
		return nil, fmt.Errorf("-auth-method must be basic or post, not %q", method)
	}
	if conf == "" {
		box.AuthMethod = authMethod
		a.box = ganbtest.NewServer(box)
		a.api = a.box.APIBase()
		return ganbauth.NewConnector(a.box.ClientID, a.box.ClientSecret, authMethod, a.box.Config())
	}
	cfg, err := ganbauth.LoadConfig(conf)
	if err != nil {
		return nil, err
	}
	id, secret := os.Getenv("GANB_CLIENT_ID"), os.Getenv("GANB_CLIENT_SECRET")
	if id == "" || secret == "" {
		return nil, errors.New("GANB_CLIENT_ID and GANB_CLIENT_SECRET must be set in the environment")
	}
	a.api = strings.TrimSuffix(cfg.AuthBaseURL, "/auth/v1") + "/" + a.kind + "/v1"
	return ganbauth.NewConnector(id, secret, authMethod, cfg)
}

func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/bank/login", a.bank.LoginHandler())
	mux.Handle("/bank/callback", a.bank.CallbackHandler())
	mux.Handle("/bank/logout", a.bank.LogoutHandler())
	mux.Handle("/bank/status", a.bank.StatusHandler())
	mux.Handle("GET /accounts", a.bank.RequireToken(http.HandlerFunc(a.accounts)))
	mux.Handle("GET /transfer", a.bank.RequireScopes("private:transfer")(http.RedirectHandler("/accounts", http.StatusSeeOther)))
	mux.HandleFunc("GET /{$}", a.home)
	if a.box != nil {
		mux.HandleFunc("POST /demo/expire", a.demo(a.box.ExpireAccessTokens))
		mux.HandleFunc("POST /demo/revoke", a.demo(a.box.RevokeGrants))
	}
	return a.sessions.LoadAndSave(a.withVisitor(http.NewCrossOriginProtection().Handler(mux)))
}

func (a *app) home(w http.ResponseWriter, r *http.Request) {
	_, err := a.bank.Check(r)
	a.render(w, "home", http.StatusOK, map[string]any{"Connected": err == nil, "Box": a.box != nil})
}

type account struct {
	AccountID, BranchName, AccountTypeName, AccountNumber, AccountName string
}

func (a *app) accounts(w http.ResponseWriter, r *http.Request) {
	client := a.bank.Client(r.Context())
	var accounts struct{ Accounts []account }
	if !a.fetch(w, client, "/accounts", nil, &accounts) {
		return
	}
	type row struct {
		account
		Balance string
	}
	var rows []row
	for _, acct := range accounts.Accounts {
		var balances struct {
			Balances []struct{ AccountID, Balance string }
		}
		if !a.fetch(w, client, "/accounts/balances", url.Values{"accountId": {acct.AccountID}}, &balances) {
			return
		}
		for _, b := range balances.Balances {
			if b.AccountID == acct.AccountID {
				rows = append(rows, row{acct, thousands(b.Balance)})
			}
		}
	}
	// Check and not TokenFromContext: the calls above may have replaced the token that the request came in with.
	token, err := a.bank.Check(r)
	if err != nil {
		http.Redirect(w, r, "/accounts", http.StatusSeeOther)
		return
	}
	a.mu.Lock()
	refreshes := a.refreshes[visitorOf(r.Context())]
	a.mu.Unlock()
	a.render(w, "accounts", http.StatusOK, map[string]any{
		"Rows": rows, "Token": token, "Scopes": strings.Fields(token.Scope), "Seconds": int(time.Until(token.ExpiresAt).Seconds()),
		"Refreshes": refreshes, "Box": a.box != nil, "CanTransfer": token.HasScope("private:transfer"),
	})
}

// fetch calls the bank's API, or tells the user why it could not.
func (a *app) fetch(w http.ResponseWriter, client *http.Client, path string, q url.Values, answer any) bool {
	target := a.api + path
	if q != nil {
		target += "?" + q.Encode()
	}
	resp, err := client.Get(target)
	if err == nil {
		defer resp.Body.Close()
		if err = ganbauth.CheckResponse(resp); err == nil {
			err = json.NewDecoder(resp.Body).Decode(answer)
		}
	}
	var apiErr *ganbauth.APIError
	switch {
	case err == nil:
		return true
	case errors.As(err, &apiErr) && apiErr.Expired(), errors.Is(err, ganbauth.ErrLoginRequired):
		// The refresh did not help: RequireToken decides what comes next.
		a.render(w, "trouble", http.StatusBadGateway, "The bank has ended the connection. Please connect again.")
	default:
		a.render(w, "trouble", http.StatusBadGateway, err.Error())
	}
	return false
}

// demo does something to the box and shows the accounts again.
func (a *app) demo(do func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		do()
		http.Redirect(w, r, "/accounts", http.StatusSeeOther)
	}
}

type visitorKey struct{}

// withVisitor names the visitor, for the count of refreshes.
func (a *app) withVisitor(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := a.sessions.GetString(r.Context(), "visitor")
		if id == "" {
			id = rand.Text()
			a.sessions.Put(r.Context(), "visitor", id)
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitorKey{}, id)))
	})
}

func visitorOf(ctx context.Context) string {
	id, _ := ctx.Value(visitorKey{}).(string)
	return id
}

// observe counts the refreshes of each visitor: the context is that of the request that caused one.
func (a *app) observe(ctx context.Context, e ganbauth.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch e.Type {
	case ganbauth.EventTokenRefreshed:
		a.refreshes[visitorOf(ctx)]++
	case ganbauth.EventLoginSucceeded, ganbauth.EventLogout:
		delete(a.refreshes, visitorOf(ctx))
	}
}

var (
	//go:embed pages.html
	pagesText string
	pages     = template.Must(template.New("").Parse(pagesText))
)

func (a *app) render(w http.ResponseWriter, page string, status int, data any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if err := pages.ExecuteTemplate(w, page, data); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
	}
}

func thousands(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
