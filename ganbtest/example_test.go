package ganbtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// account is the handler under test. It shows the user's first account, and gets the
// address of the bank's API from the configuration.
func account(bank *ganbauth.Kit, api string) http.Handler {
	return bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := bank.Client(r.Context()).Get(api + "/accounts")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		var answer struct {
			Accounts []struct{ BranchCode, AccountNumber string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Accounts) == 0 {
			http.Error(w, "the bank answered nonsense", http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "account %s-%s\n", answer.Accounts[0].BranchCode, answer.Accounts[0].AccountNumber)
	}))
}

// newApp is the application, as its main function mounts it.
func newApp(connector *ganbauth.Connector, api string) http.Handler {
	sessions, mux := scs.New(), http.NewServeMux()
	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: "https://app.test/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/account", account(bank, api))
	return sessions.LoadAndSave(mux)
}

// show prints the status of an answer, and the handler's own text.
func show(resp *http.Response, err error) {
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	fmt.Print(resp.StatusCode, " ")
	if resp.StatusCode != http.StatusOK {
		fmt.Println(http.StatusText(resp.StatusCode))
		return
	}
	_, _ = io.Copy(os.Stdout, resp.Body)
}

// The test of an application: a user connects an account, the token ends, and the bank is
// under maintenance.
func Example() {
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true, Subject: "user-1"})
	app := newApp(box.Connector(), box.APIBase())

	browser := box.Login(app, "https://app.test/bank/login")
	show(browser.Get("https://app.test/account"))

	box.ExpireAccessTokens()
	show(browser.Get("https://app.test/account"))
	fmt.Println("refreshes:", box.Refreshes())

	now := time.Now()
	box.SetMaintenance(ganbtest.Window{Start: now, End: now.Add(time.Hour)})
	show(browser.Get("https://app.test/account"))

	box.SetMaintenance()
	show(browser.Get("https://app.test/account"))

	// Output:
	// 200 account 101-4360603
	// 200 account 101-4360603
	// refreshes: 1
	// 503 Service Unavailable
	// 200 account 101-4360603
}

// The unit test of one handler: a user who has connected an account, without a login and
// without sessions.
func ExampleServer_Token() {
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true, Subject: "user-1"})
	bank, err := ganbauth.New(box.Connector(), nil, ganbauth.Options{
		RedirectURI: "https://app.test/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Key:         func(*http.Request) (string, error) { return "the user's ID", nil },
		Store:       ganbauth.NewMemoryStore(),
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	if err := bank.SetToken(context.Background(), "the user's ID", box.Token("openid", "offline_access", "private:account")); err != nil {
		panic(err)
	}

	w := httptest.NewRecorder()
	account(bank, box.APIBase()).ServeHTTP(w, httptest.NewRequest("GET", "https://app.test/account", nil))
	fmt.Print(w.Code, " ", w.Body)

	// Output:
	// 200 account 101-4360603
}

// One answer of the bank's API is an error, and one user's refreshes fail.
func ExampleServer_Fail() {
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true, Subject: "user-1"})
	app := newApp(box.Connector(), box.APIBase())
	browser := box.Login(app, "https://app.test/bank/login")

	box.Fail(ganbtest.API, ganbtest.ServerError, 1)
	show(browser.Get("https://app.test/account"))

	end := box.Fail(ganbtest.TokenEndpoint, ganbtest.Fault{
		Status: http.StatusServiceUnavailable,
		For:    func(r ganbtest.Request) bool { return r.Subject == "user-1" && r.GrantType == "refresh_token" },
	}, -1)
	show(browser.Get("https://app.test/account")) // its token is good
	end()

	// Output:
	// 503 Service Unavailable
	// 200 account 101-4360603
}

// The application's own endpoint of the bank's API, behind the token check of the box.
func ExampleOptions_api() {
	api := http.NewServeMux()
	api.HandleFunc("GET /accounts/visa-transactions", func(w http.ResponseWriter, r *http.Request) {
		grant, _ := ganbtest.GrantFromContext(r.Context())
		fmt.Fprintf(w, "%s of %s\n", r.URL.Path, grant.Subject)
	})
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true, API: api, Subject: "user-1"})

	for _, accessToken := range []string{"no token", box.Token().AccessToken} {
		req, _ := http.NewRequest("GET", box.APIBase()+"/accounts/visa-transactions", nil)
		req.Header.Set("x-access-token", accessToken)
		show(box.Client().Do(req))
	}

	// Output:
	// 401 Unauthorized
	// 200 /accounts/visa-transactions of user-1
}
