package ganbtest_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// Testing an application with the bank in a box: a login, a bank that expires the token,
// and one that is under maintenance.
func Example() {
	box := ganbtest.NewServer(ganbtest.Options{Subject: "user-1"})
	defer box.Close()

	// The application under test.
	mux, sessions := http.NewServeMux(), scs.New()
	app := httptest.NewServer(sessions.LoadAndSave(mux))
	defer app.Close()
	connector, err := ganbauth.NewConnector(box.ClientID, box.ClientSecret, box.AuthMethod, box.Config())
	if err != nil {
		panic(err)
	}
	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: app.URL + "/bank/callback",
		Scopes:      []string{"openid", "offline_access"},
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.HandleFunc("/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/accounts", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := bank.Client(r.Context()).Get(box.APIBase() + "/accounts")
		if err != nil {
			http.Error(w, "unavailable", http.StatusBadGateway)
			return
		}
		resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
	})))

	// The test.
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar}
	get := func(path string) {
		resp, err := browser.Get(app.URL + path)
		if err != nil {
			panic(err)
		}
		resp.Body.Close()
		fmt.Println(path, resp.StatusCode)
	}
	get("/bank/login") // through the bank and back
	get("/accounts")

	box.ExpireAccessTokens()
	get("/accounts")
	fmt.Println("refreshes:", box.Refreshes())

	box.Fail(ganbtest.API, ganbtest.Maintenance, 1)
	get("/accounts")

	// Output:
	// /bank/login 200
	// /accounts 200
	// /accounts 200
	// refreshes: 1
	// /accounts 503
}
