package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// app is an application whose users connect several bank accounts each. The session knows
// the names that the user has given them, and ganbauth knows their tokens.
type app struct {
	kit      *ganbauth.Kit
	bank     bank
	sessions *scs.SessionManager

	mu        sync.Mutex
	refreshes map[string]int // by connection
}

// newApp makes the application of one bank.
func newApp(b bank, redirectURI string, scopes []string) (a *app, err error) {
	a = &app{bank: b, sessions: scs.New(), refreshes: map[string]int{}}
	a.sessions.Cookie.Secure = strings.HasPrefix(redirectURI, "https:")
	a.kit, err = ganbauth.New(b.connector, a.sessions, ganbauth.Options{
		RedirectURI: redirectURI,
		Scopes:      scopes,
		Connection:  func(r *http.Request) (string, error) { return r.PathValue("connection"), nil },
		ErrorPage:   pages.Lookup("error"),
		Observe:     a.observe,
	})
	return a, err
}

// routes has the kit inside the mux, which knows the path's {connection}.
func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.home)
	mux.HandleFunc("POST /connections", a.add)
	mux.HandleFunc("POST /connections/{connection}/disconnect", a.disconnect)
	mux.Handle("GET /connections/{connection}/transfers", a.known(a.kit.LoginHandler("private:transfer")))
	mux.Handle("GET /connections/{connection}", a.known(a.kit.RequireToken(http.HandlerFunc(a.accounts))))
	mux.Handle("GET /bank/callback", a.kit.CallbackHandler())
	if a.bank.box != nil {
		mux.HandleFunc("POST /connections/{connection}/demo", a.demo)
	}
	return a.sessions.LoadAndSave(http.NewCrossOriginProtection().Handler(mux))
}

// connection is one of the user's connections.
type connection struct {
	ID, Name string
	ganbauth.Status
}

// Path is where its accounts are shown.
func (c connection) Path() string { return "/connections/" + c.ID }

func init() { gob.Register(map[string]string{}) } // what a session holds

// names returns the names of the user's connections by ID. The caller may change the map.
func (a *app) names(r *http.Request) map[string]string {
	names := map[string]string{}
	stored, _ := a.sessions.Get(r.Context(), "connections").(map[string]string)
	maps.Copy(names, stored)
	return names
}

// known calls next for connections that the user has added, and leads home from others.
func (a *app) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.names(r)[r.PathValue("connection")] == "" {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// home lists the user's connections, and has a form to add one.
func (a *app) home(w http.ResponseWriter, r *http.Request) {
	var connections []connection
	for id, name := range a.names(r) {
		r.SetPathValue("connection", id) // whose status it is
		status, err := a.kit.Status(r)
		if err != nil {
			a.kit.Refuse(w, r, err)
			return
		}
		connections = append(connections, connection{id, name, status})
	}
	slices.SortFunc(connections, func(a, b connection) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	a.render(w, r, "home", connections)
}

const maxConnections = 20 // of a user

// add names a new connection and opens its page, which leads to the bank.
func (a *app) add(w http.ResponseWriter, r *http.Request) {
	names, name := a.names(r), strings.TrimSpace(r.PostFormValue("name"))
	if name == "" || len(name) > 100 || len(names) >= maxConnections {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	c := connection{ID: strings.ToLower(rand.Text()[:10]), Name: name}
	names[c.ID] = c.Name
	a.sessions.Put(r.Context(), "connections", names)
	http.Redirect(w, r, c.Path(), http.StatusSeeOther)
}

// disconnect forgets a connection: its token and its name.
func (a *app) disconnect(w http.ResponseWriter, r *http.Request) {
	if err := a.kit.Forget(w, r); err != nil {
		a.kit.Refuse(w, r, err)
		return
	}
	names := a.names(r)
	delete(names, r.PathValue("connection"))
	a.sessions.Put(r.Context(), "connections", names)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// account is an account with its balance, as the bank's API answers them.
type account struct {
	AccountID, BranchName, AccountTypeName, AccountNumber, AccountName string
	Balance                                                            string `json:"-"`
}

// accounts shows the accounts of a connection.
func (a *app) accounts(w http.ResponseWriter, r *http.Request) {
	c := connection{ID: r.PathValue("connection"), Name: a.names(r)[r.PathValue("connection")]}
	accounts, err := a.fetchAccounts(r)
	if err == nil {
		c.Status, err = a.kit.Status(r)
	}
	if err != nil {
		a.kit.Refuse(w, r, err) // to the bank, or to a page that says what happened
		return
	}
	a.mu.Lock()
	refreshes := a.refreshes[c.ID]
	a.mu.Unlock()
	a.render(w, r, "accounts", map[string]any{
		"Connection": c, "Accounts": accounts, "Seconds": int(time.Until(c.ExpiresAt).Seconds()), "Refreshes": refreshes,
		"Box": a.bank.box != nil, "CanTransfer": slices.Contains(c.Scopes, "private:transfer"),
	})
}

// fetchAccounts asks the bank for the accounts and for the balance of each.
func (a *app) fetchAccounts(r *http.Request) ([]account, error) {
	var list struct{ Accounts []account }
	if err := a.get(r, "/accounts", &list); err != nil {
		return nil, err
	}
	for i := range list.Accounts {
		acct := &list.Accounts[i]
		var answer struct {
			Balances []struct{ AccountID, Balance string }
		}
		if err := a.get(r, "/accounts/balances?accountId="+url.QueryEscape(acct.AccountID), &answer); err != nil {
			return nil, err
		}
		for _, b := range answer.Balances {
			if b.AccountID == acct.AccountID {
				acct.Balance = b.Balance
			}
		}
	}
	return list.Accounts, nil
}

// get calls the bank's API with the token of the request's connection.
func (a *app) get(r *http.Request, path string, answer any) error {
	resp, err := a.kit.Client(r.Context()).Get(a.bank.api + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := ganbauth.CheckResponse(resp); err != nil {
		return err
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// observe counts the refreshes of each connection.
func (a *app) observe(ctx context.Context, e ganbauth.Event) {
	_, id, _ := ganbauth.KeyFromContext(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch e.Type {
	case ganbauth.EventTokenRefreshed:
		a.refreshes[id]++
	case ganbauth.EventLoginSucceeded, ganbauth.EventLogout:
		delete(a.refreshes, id)
	}
}

// demo gives the bank in a box a bad moment, and shows how the application takes it.
func (a *app) demo(w http.ResponseWriter, r *http.Request) {
	box := a.bank.box
	switch r.PostFormValue("do") {
	case "expire":
		box.ExpireAccessTokens()
	case "revoke":
		box.RevokeGrants()
	case "error":
		box.Fail(ganbtest.API, ganbtest.ServerError, 1)
	case "maintenance":
		box.SetMaintenance(ganbtest.Window{Start: time.Now(), End: time.Now().Add(20 * time.Second)})
	}
	http.Redirect(w, r, connection{ID: r.PathValue("connection")}.Path(), http.StatusSeeOther)
}

var (
	//go:embed pages.html
	pagesText string
	pages     = template.Must(template.New("").Funcs(template.FuncMap{"yen": yen}).Parse(pagesText))
)

// page is what a template is executed with.
type page struct {
	Language string // "ja" or "en"
	Data     any
}

// Say returns the text in the page's language.
func (p page) Say(ja, en string) string {
	if p.Language == "ja" {
		return ja
	}
	return en
}

// render answers with a page in the language that the browser lists first.
func (a *app) render(w http.ResponseWriter, r *http.Request, name string, data any) {
	p := page{Language: "en", Data: data}
	if strings.HasPrefix(strings.ToLower(r.Header.Get("Accept-Language")), "ja") {
		p.Language = "ja"
	}
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, p); err != nil {
		a.kit.Refuse(w, r, fmt.Errorf("page %s: %w", name, err))
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept-Language")
	_, _ = b.WriteTo(w)
}

// yen is an amount with its sign of currency, and commas: ¥1,234,567.
func yen(amount string) string {
	digits, negative := strings.CutPrefix(amount, "-")
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if negative {
		return "-¥" + digits
	}
	return "¥" + digits
}
