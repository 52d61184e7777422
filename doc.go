// Package ganbauth connects the users of a net/http server to their GMO Aozora Net Bank
// accounts, and gives its handlers a live access token.
//
// # Quick start
//
//	sessions := scs.New() // in memory; set sessions.Store to keep users connected across deploys
//	sessions.Cookie.Secure = true
//	connector, err := ganbauth.NewConnector(id, secret, ganbauth.AuthBasic, ganbauth.Production(salt))
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
//		RedirectURI: "https://app.example/bank/callback",
//		Scopes:      []string{"openid", "offline_access", "private:account"},
//	})
//
//	mux.Handle("/bank/login", bank.LoginHandler())
//	mux.Handle("/bank/callback", bank.CallbackHandler())
//	mux.Handle("/bank/logout", bank.LogoutHandler())
//	// The handler calls bank.Client(r.Context()).Get(…).
//	mux.Handle("/balance", bank.RequireToken(http.HandlerFunc(balance)))
//	http.ListenAndServe(addr, sessions.LoadAndSave(mux))
//
// A browser that opens /balance without a token is sent to the bank. After the user has
// consented, it comes back to /balance. From then on the user stays connected: a token
// that is about to expire is refreshed once, however many requests need it, and the new
// token is stored before it is used. If the store does not take it, the process keeps it,
// serves it, and stores it as soon as it can.
//
// A connection ends when the user disconnects, when the bank rejects the token, when the
// bank answers a refresh with the verified ID token of another user, or with the session
// that it belongs to; with Options.Key it belongs to the user. An outage of the bank or of
// the store does not end it: without a live token, requests are answered 503. Only a new
// token that is lost on its way from the bank can cost a connection.
//
// # Parts
//
// A [Connector] speaks the bank's protocol. It is a port of the GanbConnector of the
// bank's SDKs, and knows nothing of sessions. A [Kit] is what a server mounts. A
// [TokenStore] keeps the tokens, by default as records of their own in the engine of the
// alexedwards/scs sessions. A [Locker] makes refreshes exclusive across processes;
// package [github.com/ganbauth/ganbauth/lease] makes one for an engine of your own.
// Package [github.com/ganbauth/ganbauth/ganbtest] is a fake bank for tests. Modules
// beside this one are stores, and Lockers, in Redis, PostgreSQL and MySQL.
//
// # What an application has to do
//
//   - Serve over https, and set the session cookie's Secure attribute.
//   - Set the Store of the sessions. scs.New() keeps them in memory, and with them, unless
//     Options.Store is set, the tokens: each restart disconnects everybody.
//   - Keep the client secret and the salt out of the repository, and give all instances the
//     same salt.
//   - Wrap the mux in sessions.LoadAndSave.
//   - With several instances, use a store that they share, and a Locker.
//   - If tokens belong to sessions, call [Kit.Forget] in a logout of its own, before
//     sessions.Destroy.
package ganbauth
