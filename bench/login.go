package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/dghubble/gologin/v2"
	gologinoauth2 "github.com/dghubble/gologin/v2/oauth2"
	gorilla "github.com/gorilla/sessions"
	"github.com/markbates/goth"
	"github.com/markbates/goth/gothic"
	"github.com/markbates/goth/providers/gitlab"
	"github.com/zitadel/oidc/v3/pkg/client/rp"
	httphelper "github.com/zitadel/oidc/v3/pkg/http"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"golang.org/x/oauth2"

	"github.com/ganbauth/ganbauth"
)

// answering is a bank without a network: it answers every token request at once, and the
// rest with a user.
type answering struct{}

func (answering) RoundTrip(r *http.Request) (*http.Response, error) {
	body := `{"id":1,"name":"alice"}`
	if strings.HasSuffix(r.URL.Path, "/token") {
		body = fmt.Sprintf(`{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","expires_in":3600,"scope":"private:account offline_access"}`,
			token.AccessToken, token.RefreshToken)
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}}, nil
}

// login is an application's login and callback, and what a browser has of it.
type login struct{ handler http.Handler }

// ServeHTTP is a whole login: to the bank, and back with a code.
func (l login) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	cookies := map[string]string{}
	there := browse(l.handler, cookies, "/login")
	target := must(url.Parse(there.Header.Get("Location")))
	state := target.Query().Get("state")
	if state == "" {
		panic(fmt.Sprint("no login was begun: ", there.Status))
	}
	back := browse(l.handler, cookies, "/callback?code=c0de&state="+url.QueryEscape(state))
	w.WriteHeader(back.StatusCode)
}

// logins compares whole logins, plain OAuth 2.0 without PKCE, each with the session of
// its own kind.
func logins() []*contender {
	client := &http.Client{Transport: answering{}}
	config := &oauth2.Config{
		ClientID: bank.ClientID, ClientSecret: bank.ClientSecret, RedirectURL: app + "/callback",
		Scopes:   []string{"private:account", "offline_access"},
		Endpoint: oauth2.Endpoint{AuthURL: bank.Config().AuthBaseURL + "/authorization", TokenURL: bank.Config().AuthBaseURL + "/token", AuthStyle: oauth2.AuthStyleInHeader},
	}
	withClient := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), oauth2.HTTPClient, client)))
		})
	}
	routes := func(login, callback http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/login", login)
		mux.Handle("/callback", callback)
		return mux
	}
	cookieStore := gorilla.NewCookieStore(secret(64), secret(32))

	sessions := scs.New()
	sessions.Store = memstore.NewWithCleanupInterval(0)
	bankConfig := bank.Config()
	bankConfig.HTTPClient = client
	kit := must(ganbauth.New(must(ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, ganbauth.AuthBasic, bankConfig)), sessions,
		ganbauth.Options{RedirectURI: app + "/callback", Scopes: config.Scopes, Logger: discardLog}))

	saved := func(w http.ResponseWriter, r *http.Request, t *oauth2.Token) {
		s, _ := cookieStore.New(r, "session")
		s.Values["token"] = t
		check(s.Save(r, w))
		http.Redirect(w, r, "/", http.StatusFound)
	}
	failed := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("the login failed") })

	gothic.Store = cookieStore
	provider := gitlab.NewCustomisedURL(bank.ClientID, bank.ClientSecret, app+"/callback", config.Endpoint.AuthURL, config.Endpoint.TokenURL,
		bank.URL+"/user", config.Scopes...)
	provider.HTTPClient = client
	goth.UseProviders(provider)
	asGitLab := func(h http.HandlerFunc) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, gothic.GetContextWithProvider(r, "gitlab")) })
	}

	cookieHandler := httphelper.NewCookieHandler(secret(32), secret(32), httphelper.WithUnsecure())
	party := must(rp.NewRelyingPartyOAuth(config, rp.WithHTTPClient(client), rp.WithCookieHandler(cookieHandler)))

	contenders := []*contender{
		{name: "**ganbauth**, its token saved", handler: login{sessions.LoadAndSave(routes(kit.LoginHandler(), kit.CallbackHandler()))}, status: http.StatusSeeOther},
		{name: "dghubble/gologin, x/oauth2's token in a gorilla cookie", handler: login{withClient(routes(
			gologinoauth2.StateHandler(gologin.DebugOnlyCookieConfig, gologinoauth2.LoginHandler(config, failed)),
			gologinoauth2.StateHandler(gologin.DebugOnlyCookieConfig, gologinoauth2.CallbackHandler(config, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				saved(w, r, must(gologinoauth2.TokenFromContext(r.Context())))
			}), failed)),
		))}, status: http.StatusFound},
		{name: "markbates/goth, the user in a gorilla cookie", handler: login{routes(
			asGitLab(gothic.BeginAuthHandler),
			asGitLab(func(w http.ResponseWriter, r *http.Request) {
				user := must(gothic.CompleteUserAuth(w, r))
				saved(w, r, &oauth2.Token{AccessToken: user.AccessToken, RefreshToken: user.RefreshToken, Expiry: user.ExpiresAt})
			}),
		)}, status: http.StatusFound},
		{name: "zitadel/oidc's rp, x/oauth2's token in a gorilla cookie", handler: login{routes(
			rp.AuthURLHandler(rand.Text, party),
			rp.CodeExchangeHandler(func(w http.ResponseWriter, r *http.Request, tokens *oidc.Tokens[*oidc.IDTokenClaims], _ string, _ rp.RelyingParty) {
				saved(w, r, tokens.Token)
			}, party),
		)}, status: http.StatusFound},
	}
	for _, c := range contenders {
		c.request = httptest.NewRequest(http.MethodGet, app+"/", nil)
	}
	return contenders
}
