package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Kit is what an application mounts: handlers for login, callback and logout, a
// middleware that hands live tokens to routes, and an HTTP client for the bank's API.
// Make one with [New]. It is immutable and safe for concurrent use. A nil or zero Kit
// lets nobody through.
type Kit struct {
	connector *Connector
	keeper    *keeper
	attempts  attempts
	exchanges *flights[*connection]
	attaching atomic.Int32 // callbacks that have a token, or wait for one
	api       *bankAPI
	redirect  *url.URL // RedirectURI

	hostWarned atomic.Bool

	// Of Options.
	redirectURI, defaultReturn string
	scopes                     []string
	pkce                       bool
	onError                    func(http.ResponseWriter, *http.Request, error)
	errorPage                  *template.Template
	engine                     *engine // nil if the store cannot list
	owners
	observer
}

// Format implements [fmt.Formatter] and shows the name only, whatever the verb.
func (k *Kit) Format(f fmt.State, _ rune) {
	if k == nil {
		fmt.Fprint(f, "ganbauth.Kit(nil)")
		return
	}
	fmt.Fprintf(f, "ganbauth.Kit(%q)", k.owners.kit)
}

// New makes a Kit. It reports every mistake that can be seen now at once, and warns in
// the log of what works and should not go to production.
//
// The sessions may be nil when opts has both Store and Key. Pass them all the same if Key
// or Connection reads them. The kit then renews the session's token at a login, loads a
// page again if its Strict session cookie stayed behind, and works without LoadAndSave.
//
// Two kits of one application need different Names; with the same one they would take
// each other's sessions and callbacks.
func New(c *Connector, sessions *scs.SessionManager, opts Options) (*Kit, error) {
	if c.usable() != nil {
		return nil, errors.New("ganbauth: New needs a Connector from NewConnector")
	}
	s, err := opts.check(c, sessions)
	if err != nil {
		return nil, err
	}
	o := observer{kit: s.Name, log: s.Logger, hook: s.Observe}
	k := &Kit{
		connector:     c,
		redirectURI:   s.RedirectURI,
		redirect:      s.redirect,
		defaultReturn: s.DefaultReturn,
		scopes:        s.Scopes,
		pkce:          s.PKCE,
		onError:       s.OnError,
		errorPage:     s.ErrorPage,
		attempts:      s.attempts,
		observer:      o,
		owners: owners{
			kit: s.Name, handleName: sessionPrefix + s.Name, namesName: namesPrefix + s.Name, sessions: sessions,
			keyOf: s.Key, connectionOf: s.Connection,
		},
	}
	k.keeper = &keeper{connector: c, records: s.records, leeway: s.RefreshLeeway, guard: newGuard(s.TokenRate, o), observer: o}
	k.keeper.records.observer = o
	if pagesOf(s.Store, s.records) != nil {
		k.engine = &engine{keeper: k.keeper, lock: s.Name + keepAliveLock, store: s.Store, owned: k.owned, about: k.about}
	}
	k.exchanges = &flights[*connection]{keep: rememberLogin, most: maxRemembered, forgotten: k.forgetLogin}
	k.api = &bankAPI{k.keeper, c.api.Transport, s.hosts, k.about}
	s.warn(c, sessions)
	return k, nil
}

// usable fails for a Kit that New did not make.
func (k *Kit) usable() error {
	if k == nil || k.keeper == nil {
		return errNotMade
	}
	return nil
}

// Client returns an HTTP client for the bank's API that acts for the user of ctx, the
// context of a request behind [Kit.RequireToken]; elsewhere its requests to the bank fail
// with [ErrLoginRequired]. It adds the header x-access-token, to the hosts of the
// connector and APIHosts only, over https (http on a loopback address), and never after a
// redirect that led elsewhere; it does not follow redirects to other hosts.
//
// When the API answers 401 with WG_ERR_105, the token is refreshed, once for all requests
// that meet this together, and the request is sent once more if its body can be rewound
// (GetBody). If it cannot, or if the bank has ended the connection, the caller gets the
// 401. If the refresh fails otherwise, the request fails with an [ErrUnavailable]: the
// connection is kept. A token that has replaced a refused one less than a minute ago is
// not replaced again: the caller gets its 401, too. The caller also gets every other
// answer: [CheckResponse] makes an [*APIError] of one. The client sets no
// Idempotency-Key.
//
// The client trusts the request's token for five seconds and asks the store after that,
// so a stream ends with the connection: it does not go on with another account, which the
// user may connect meanwhile. Requests end with ctx, and after 60 seconds in all (the
// client's Timeout, which may be changed). Its CloseIdleConnections closes what the
// connector keeps open, too.
func (k *Kit) Client(ctx context.Context) *http.Client {
	if k.usable() != nil {
		return (&transport{ctx: ctx, fault: errNotMade}).client()
	}
	t := &transport{api: k.api, ctx: ctx}
	switch g := grantOf(ctx, k); {
	case g == nil || !g.served():
	case g.movedOn():
		t.fault = errMovedOn
	default:
		t.who, t.token, t.looked = g.owner, &g.token, g.found
	}
	return t.client()
}

// ClientFor is [Kit.Client] outside a request, for the user whose token is stored under
// key. It asks the store for each request, so it may be kept: it follows a new
// connection, and fails with [ErrLoginRequired] while there is none. A request that finds
// out that the bank has ended the connection gets the API's 401. See [Kit.Token].
func (k *Kit) ClientFor(key string, connection ...string) *http.Client {
	who, err := k.job(key, connection)
	if err != nil {
		return (&transport{ctx: context.Background(), fault: err}).client()
	}
	return (&transport{api: k.api, ctx: context.Background(), who: who, job: true}).client()
}

// job returns the owner that a job names.
func (k *Kit) job(key string, connection []string) (owner, error) {
	switch {
	case k.usable() != nil:
		return owner{}, errNotMade
	case key == "":
		return owner{}, errNoKey
	case len(connection) > 1:
		return owner{}, errTwoConnections
	}
	return k.named(key, strings.Join(connection, ""))
}

// Token returns the live token stored under key, refreshed if need be, without its refresh
// token: for nightly jobs and queues. The key is what Options.Key returns for the user, and
// connection, at most one, what Options.Connection returns. If the user has to connect
// again, the error is [ErrLoginRequired]. If waiting helps, it has the [StatusCode] 503.
// With an empty key, or two connections, it has 500.
func (k *Kit) Token(ctx context.Context, key string, connection ...string) (*Token, error) {
	who, err := k.job(key, connection)
	if err != nil {
		return nil, err
	}
	t, err := k.live(ctx, who)
	if err != nil {
		return nil, err
	}
	return t.withoutRefresh(), nil
}

// live returns the token of who, refreshed if it is about to expire. Only then does the
// context say whose it is, which Observe asks for: a request with a live token should not
// pay for that.
func (k *Kit) live(ctx context.Context, who owner) (*Token, error) {
	begun := time.Now()
	t, err := k.keeper.load(ctx, who.storeKey)
	if err != nil || !k.keeper.due(t) {
		return t, err
	}
	return k.keeper.refresh(k.about(ctx, who), who.storeKey, t, begun, "", k.keeper.due)
}

// about adds to ctx whose connection it is about.
func (k *Kit) about(ctx context.Context, who owner) context.Context {
	return withGrant(ctx, &grant{kit: k, owner: who})
}

// aboutRequest adds to the context of r whose connection it is about, or that this is not
// known: behind another kit's RequireToken it has that kit's user.
func (k *Kit) aboutRequest(r *http.Request, connection string) context.Context {
	who, _ := k.whoseConnection(r, connection)
	return k.about(r.Context(), who)
}

// SetToken stores a token that came from elsewhere, another SDK's for instance: its user
// need not connect again. It replaces what is there, as a login would; key and connection
// are as in [Kit.Token].
//
// The token needs an AccessToken, and a RefreshToken or an ExpiresAt. One with a zero
// ExpiresAt is refreshed at its first use; one without a Scope has no scopes until it is
// refreshed. Nothing else may use its refresh token afterwards. An IDToken and a Subject
// are taken as verified. A token that the bank cannot have issued is [ErrTokenFormat].
// Other errors are as in Kit.Token.
func (k *Kit) SetToken(ctx context.Context, key string, token *Token, connection ...string) error {
	who, err := k.job(key, connection)
	if err != nil {
		return err
	}
	if err := checkToken(token); err != nil {
		return err
	}
	t := *token
	t.TokenType = "Bearer"
	t.Scope = strings.Join(strings.Fields(t.Scope), " ")
	t.ExpiresAt, t.IssuedAt = seconds(t.ExpiresAt), seconds(t.IssuedAt)
	t.Judged = ""
	return k.keeper.set(ctx, who.storeKey, &t)
}

// checkToken refuses a token that the bank cannot have issued.
func checkToken(t *Token) error {
	if t == nil || t.AccessToken == "" {
		return errNoAccessToken
	}
	if t.RefreshToken == "" && t.ExpiresAt.IsZero() {
		return fmt.Errorf("%w: SetToken needs a RefreshToken or an ExpiresAt", ErrTokenFormat)
	}
	if time.Until(t.ExpiresAt) > maxLifetime { // as when milliseconds are taken for seconds
		return fmt.Errorf("%w: ExpiresAt is more than a year ahead", ErrTokenFormat)
	}
	if t.IDToken != "" {
		if _, err := readLogin(t.IDToken); err != nil { // the next refresh could not compare with it
			return fmt.Errorf("%w: id_token: %w", ErrTokenFormat, err)
		}
	}
	return errors.Join(
		checkMember("access_token", t.AccessToken, maxReceived),
		checkMember("refresh_token", t.RefreshToken, maxReceived),
		checkMember("scope", t.Scope, maxReceived),
		checkMember("subject", t.Subject, maxSubject),
		checkMember("id_token", t.IDToken, maxIDToken),
	)
}

// Disconnect forgets the token stored under key and connection, as in [Kit.Token]. It is no
// error if there is none. When it has returned nil, nothing that was under way brings the
// token back. It tries for ten seconds at most. If the store fails for as long, the error has
// the [StatusCode] 503.
func (k *Kit) Disconnect(ctx context.Context, key string, connection ...string) error {
	who, err := k.job(key, connection)
	if err != nil {
		return err
	}
	_, err = k.keeper.drop(ctx, who.storeKey)
	return err
}

// KeepAlive keeps every token of the Store alive: the bank stops its webhooks for a user
// whose token lapses. It returns the cause of ctx when that ends, or one that wraps
// [context.Canceled] when [Kit.Shutdown] is called. Run it in every process, in a
// goroutine of its own:
//
//	go bank.KeepAlive(ctx)
//
// A token is refreshed when half of its life is over, or 24 hours before it expires if
// that is later. What expires soonest goes first; a key whose refresh fails waits, longer
// each time, while others go on. KeepAlive makes as many token requests a second as
// Options.TokenRate says, by default one, and lets users go first. The log warns if that
// is too few for the number of tokens.
//
// It is for tokens that belong to users. Without Options.Key the tokens of sessions that
// have ended are kept alive, too, for as long as the Store has them.
//
// With a Locker one process does it, and another takes over when that process ends:
// within two leases if it has died. While the bank is away one request at a time looks
// for it. While the Store or the Locker fails, KeepAlive logs so and tries again.
//
// It fails at once if the Store is neither an [ExpiryPager] nor an [ExpiryLister]. It
// needs memory for a hundred tokens, and for the keys whose refreshes fail.
func (k *Kit) KeepAlive(ctx context.Context) error {
	ctx, end, err := k.startEngine(ctx, "KeepAlive")
	if err != nil {
		return err
	}
	defer end()
	return k.engine.keepAlive(ctx)
}

// RefreshExpiring refreshes the tokens that expire within that time, and returns how many
// it has refreshed. It is for schedulers that come and go; [Kit.KeepAlive] does more,
// with less to get wrong. Its order, its pace, its lock and what it needs of the Store
// are KeepAlive's.
//
// It refreshes each token once, and leaves one whose refresh fails for the next call. If
// the bank is away for everybody, or the Store fails, it ends with that error. If the Store
// or the Locker fails for some tokens only, it refreshes the others and returns an error at
// the end. While another process or call keeps the tokens alive, it waits for 30 seconds,
// which is longer than the lease of a process that has died, and then returns an
// [ErrUnavailable]. It ends with ctx.
func (k *Kit) RefreshExpiring(ctx context.Context, within time.Duration) (n int, err error) {
	ctx, end, err := k.startEngine(ctx, "RefreshExpiring")
	if err != nil {
		return 0, err
	}
	defer end()
	return k.engine.refreshExpiring(ctx, within)
}

// startEngine returns a context for the engine that Shutdown ends. A mistake is logged,
// too: KeepAlive's error is easily lost.
func (k *Kit) startEngine(ctx context.Context, what string) (_ context.Context, end func(), err error) {
	if err := k.usable(); err != nil {
		return nil, nil, err
	}
	if k.engine == nil {
		err := &applicationError{fmt.Errorf("ganbauth: %s needs a Store that is an ExpiryPager or an ExpiryLister", what)}
		k.say(ctx, slog.LevelError, err.Error())
		return nil, nil, err
	}
	return k.engine.start(ctx)
}

// Shutdown ends [Kit.KeepAlive], and waits until every token that the bank has issued is
// stored, or until ctx ends, whose error it then returns. It deletes the tokens of logins
// whose browser has gone, as no session has them; for callbacks that are being answered it
// waits ten seconds at most. A refresh goes on when its request has gone: call Shutdown
// after [http.Server.Shutdown] and before the process ends. The Kit can be used during and
// after it, except for KeepAlive and [Kit.RefreshExpiring].
func (k *Kit) Shutdown(ctx context.Context) error {
	if err := k.usable(); err != nil {
		return err
	}
	var err error
	if k.engine != nil {
		err = k.engine.shutdown(ctx)
	}
	err = errors.Join(err, k.keeper.refreshes.wait(ctx), k.exchanges.wait(ctx), k.keeper.unsaved.wait(ctx))
	k.forgetUnattached(ctx)
	if err != nil {
		return fmt.Errorf("ganbauth: a token is not stored yet: %w", err)
	}
	return nil
}

// connection is the outcome of a login: whose token was stored.
type connection struct {
	owner
	attached atomic.Bool // the session has its handle, may have had it before, or needs none
	told     atomic.Bool // as login_succeeded
}

// maxRemembered is how many logins may be remembered for one that has failed to be:
// anybody can forge codes. The code of one that is not remembered is sent again, and
// refused again.
const maxRemembered = 1024

// rememberLogin returns how long the outcome of a login is remembered for a second delivery
// of its callback. A code that was not sent may be sent then.
func rememberLogin(_ *connection, err error) time.Duration {
	if errors.As(err, new(*resumableError)) {
		return 0
	}
	return attemptLifetime
}

// forgetLogin deletes a token that no session has asked for, or whose login a logout refused
// while the token was stored.
func (k *Kit) forgetLogin(c *connection, refused bool) {
	if refused && k.keyOf == nil || !c.attached.Load() {
		_, _ = k.keeper.drop(context.Background(), c.storeKey)
	}
}

// forgetUnattached is forgetLogin for all logins that are remembered, before the process
// ends or ctx does. A callback that is about to attach its token does so first.
func (k *Kit) forgetUnattached(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, maxWait) // those of now take no longer
	defer cancel()
	for k.attaching.Load() > 0 {
		if pause(within, minPause) != nil {
			break
		}
	}
	var gone sync.WaitGroup
	for _, c := range k.exchanges.remembered() {
		gone.Go(func() { k.forgetLogin(c, false) })
	}
	until(ctx, gone.Wait)
}
