// Package ganbauth connects the users of a net/http server to their GMO Aozora Net Bank accounts, and sees to it that
// its handlers always hold a live access token.
//
// # Quick start
//
//	sessions := scs.New()
//	connector, err := ganbauth.NewConnector(id, secret, ganbauth.AuthBasic, ganbauth.Production(salt))
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
//		RedirectURI: "https://app.example/bank/callback",
//		Scopes:      []string{"openid", "offline_access", "private:account"},
//	})
//
//	mux.Handle("/bank/login", bank.LoginHandler())
//	mux.Handle("/bank/callback", bank.CallbackHandler())
//	mux.Handle("/bank/logout", bank.LogoutHandler())
//	mux.Handle("/balance", bank.RequireToken(http.HandlerFunc(balance))) // bank.Client(r.Context()).Get(…)
//	http.ListenAndServe(addr, sessions.LoadAndSave(mux))
//
// A user who opens /balance in a browser is sent to the bank to consent, comes back to /balance, and stays connected:
// the token is refreshed when it is about to end, once for all requests that need it, and saved before anybody uses
// it. Only the bank's word that the grant is dead ends a connection; a bank or a store that is away does not.
//
// # Parts
//
// A [Connector] speaks the bank's protocol and knows nothing of sessions: it is a port of the bank's GanbConnector. A
// [Kit] is what a server mounts. A [TokenStore] keeps the tokens, by default as records of their own in the engine
// of the alexedwards/scs sessions; a [Locker] makes refreshes exclusive across processes. The package
// [github.com/ganbauth/ganbauth/ganbtest] is the bank in a box for tests.
//
// # What an application has to do
//
// Serve over https, set the session cookie's Secure attribute, keep the client's secret and the salt out of the
// repository, give all instances the same salt, and wrap the mux in sessions.LoadAndSave. With several instances,
// use a store that they share, and a Locker.
package ganbauth
