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
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Kit is what an application mounts: handlers for login, callback and logout, a middleware that hands live tokens
// to routes, and an HTTP client for the bank's API. Make one with [New]. It is immutable and safe for concurrent
// use. A nil or zero Kit lets nobody through.
type Kit struct {
	connector *Connector
	sessions  *scs.SessionManager
	keeper    *keeper
	attempts  attempts
	exchanges *flights[string]
	apiHosts  []string
	callback  string // the path of RedirectURI
	https     bool   // the scheme of RedirectURI

	sessionKey string // what the handle in the session is called
	hostWarned atomic.Bool

	// Of Options.
	name, redirectURI, defaultReturn string
	scopes                           []string
	key                              func(*http.Request) (string, error)
	pkce                             bool
	onError                          func(http.ResponseWriter, *http.Request, error)
	errorPage                        *template.Template
	observer
}

// Format implements [fmt.Formatter] and shows the name only, whatever the verb.
func (k *Kit) Format(f fmt.State, _ rune) {
	if k == nil {
		fmt.Fprint(f, "ganbauth.Kit(nil)")
		return
	}
	fmt.Fprintf(f, "ganbauth.Kit(%q)", k.name)
}

// New makes a Kit. It reports every mistake that can be seen now at once, and warns in the log of session cookie
// settings that do not fit an https RedirectURI. The sessions may be nil when opts has both Store and Key.
//
// Two kits of one application need different Names; with the same one they would take each other's sessions and
// callbacks.
func New(c *Connector, sessions *scs.SessionManager, opts Options) (*Kit, error) {
	var errs []error
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("ganbauth: options: "+format, args...))
	}
	if c == nil || c.http == nil {
		return nil, errors.New("ganbauth: New needs a Connector from NewConnector")
	}
	k := &Kit{
		connector:     c,
		sessions:      sessions,
		exchanges:     &flights[string]{keep: attemptLifetime},
		sessionKey:    "ganbauth." + opts.Name,
		name:          opts.Name,
		redirectURI:   opts.RedirectURI,
		defaultReturn: opts.DefaultReturn,
		key:           opts.Key,
		pkce:          opts.PKCE,
		onError:       opts.OnError,
		errorPage:     opts.ErrorPage,
		observer:      observer{kit: opts.Name, log: opts.Logger, hook: opts.Observe},
	}
	if k.observer.log == nil {
		k.observer.log = slog.Default()
	}
	if !kitName.MatchString(opts.Name) {
		fault("Name may have up to 32 letters, digits, hyphens and underscores")
	}

	u, err := url.Parse(opts.RedirectURI)
	switch {
	case err != nil || u.Host == "" || u.Fragment != "" || strings.Contains(opts.RedirectURI, "#"):
		fault("RedirectURI must be an absolute URL without a fragment")
	case u.User != nil:
		fault("RedirectURI must not contain userinfo")
	case !secureURL(u):
		fault("RedirectURI must be https (http only on a loopback address)")
	case len(opts.RedirectURI) > maxRedirectURI:
		fault("RedirectURI is longer than %d characters", maxRedirectURI)
	default:
		k.callback, k.https = u.Path, u.Scheme == "https"
	}

	k.scopes = union(opts.Scopes)
	errs = append(errs, checkScopes("options: Scopes", k.scopes, c)...)

	if k.defaultReturn == "" {
		k.defaultReturn = "/"
	}
	if p, ok := localPath(k.defaultReturn); !ok || p != k.defaultReturn {
		fault("DefaultReturn must be a path of this site, percent-encoded")
	}
	if opts.RefreshLeeway < 0 {
		fault("RefreshLeeway must not be negative")
	}

	k.apiHosts = []string{hostPort(c.authURL)}
	for _, host := range opts.APIHosts {
		u, err := url.Parse("https://" + host)
		if err != nil || u.Host != host || u.Hostname() == "" {
			fault("APIHosts: %q is not a host", host)
			continue
		}
		k.apiHosts = append(k.apiHosts, hostPort(u))
		if isLoopback(u.Hostname()) {
			u.Scheme = "http"
			k.apiHosts = append(k.apiHosts, hostPort(u))
		}
	}

	store := opts.Store
	switch {
	case sessions == nil && (opts.Store == nil || opts.Key == nil):
		fault("without sessions, Store and Key are needed")
	case store == nil && (sessions.Store == nil || sessions.Codec == nil):
		fault("the session manager has no Store or no Codec: make it with scs.New")
	case store == nil:
		store = NewSCSStore(sessions)
	}
	locker := opts.Locker
	if locker == nil {
		locker, _ = store.(Locker)
	}
	lister, _ := store.(ExpiryLister)
	if len(opts.EncryptionKeys) > 0 {
		if store, err = newSealedStore(store, opts.EncryptionKeys); err != nil {
			errs = append(errs, err)
		}
	}
	if k.attempts, err = newAttempts(c, opts.Name, opts.RedirectURI, strings.Join(k.scopes, " ")); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}

	k.keeper = &keeper{
		connector: c,
		store:     store,
		locker:    locker,
		lister:    lister,
		leeway:    orDefault(opts.RefreshLeeway, time.Minute),
		observer:  k.observer,
	}
	k.warn(opts)
	return k, nil
}

// usable fails for a Kit that New did not make.
func (k *Kit) usable() error {
	if k == nil || k.keeper == nil {
		return &applicationError{errors.New("ganbauth: this Kit was not made by New")}
	}
	return nil
}

// Client returns an HTTP client for the bank's API that acts for the user of ctx, the context of a request behind
// [Kit.RequireToken]; elsewhere its requests fail with [ErrLoginRequired]. It adds the header x-access-token, to the
// hosts of the connector and APIHosts only, over https (http on a loopback address), and never after a redirect that
// led elsewhere; redirects to other hosts are not followed.
//
// When the API answers 401 with WG_ERR_105, the token is refreshed, once for all who meet that together, and the
// request sent again once if its body can be rewound (GetBody); if not, the 401 is handed on. Every other answer is
// the caller's: [CheckResponse] makes an [*APIError] of one. Requests end with ctx, and after 60 seconds in all (the
// client's Timeout, which may be changed). Idempotency-Key is the caller's to set.
func (k *Kit) Client(ctx context.Context) *http.Client {
	t := &transport{kit: k, ctx: ctx}
	if g := k.grantOf(ctx); g != nil {
		t.key, t.token = g.key, g.token.withoutRefresh()
	}
	return t.client()
}

// ClientFor is [Kit.Client] for the user whose token is stored under key, outside a request. See [Kit.Token].
func (k *Kit) ClientFor(key string) *http.Client {
	return (&transport{kit: k, ctx: context.Background(), key: k.named(key)}).client()
}

// Token returns the live token stored under key, refreshed if need be, without its refresh token: for nightly jobs
// and queues. The key is what Options.Key returns for the user. The error is [ErrLoginRequired] when the user has to
// connect again, and else has the [StatusCode] 503.
func (k *Kit) Token(ctx context.Context, key string) (*Token, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	t, err := k.keeper.live(ctx, k.named(key))
	if err != nil {
		return nil, err
	}
	return t.withoutRefresh(), nil
}

// SetToken stores under key a token that came from elsewhere, another SDK's for instance: its user need not connect
// again. One with a zero ExpiresAt is refreshed at its first use. Whoever else has its refresh token must not use it any
// more. An IDToken and a Subject are taken as verified. A token that the bank cannot have issued is [ErrTokenFormat]; else
// the error has the [StatusCode] 503.
func (k *Kit) SetToken(ctx context.Context, key string, token *Token) error {
	if err := k.usable(); err != nil {
		return err
	}
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("ganbauth: SetToken: the key is empty or longer than %d bytes", maxKey)
	}
	if token == nil || token.AccessToken == "" {
		return errNoAccessToken
	}
	if err := errors.Join(
		checkMember("access_token", token.AccessToken, maxReceived),
		checkMember("refresh_token", token.RefreshToken, maxReceived),
		checkMember("scope", token.Scope, maxReceived),
		checkMember("id_token", token.IDToken, maxIDToken),
	); err != nil {
		return err
	}
	if len(token.Subject) > maxSubject {
		return fmt.Errorf("%w: the subject is longer than %d bytes", ErrTokenFormat, maxSubject)
	}
	if token.IDToken != "" {
		if _, err := readLogin(token.IDToken); err != nil { // the next refresh would end the connection for it
			return fmt.Errorf("%w: id_token: %w", ErrTokenFormat, err)
		}
	}
	t := *token
	t.TokenType = "Bearer"
	t.Scope = strings.Join(strings.Fields(t.Scope), " ")
	t.ExpiresAt, t.IssuedAt = t.ExpiresAt.UTC().Truncate(time.Second), t.IssuedAt.UTC().Truncate(time.Second)
	return k.keeper.put(ctx, k.named(key), &t)
}

// Disconnect forgets the token stored under key. There being none is no error.
func (k *Kit) Disconnect(ctx context.Context, key string) error {
	if err := k.usable(); err != nil {
		return err
	}
	return k.keeper.drop(ctx, k.named(key))
}

// Shutdown waits until no token is on its way from the bank to the store, at most as long as ctx lets it, and returns
// ctx's error then. A refresh goes on when its request has gone, for two minutes at the very worst: call Shutdown after
// [http.Server.Shutdown] and before the process ends. The Kit can be used during and after it.
func (k *Kit) Shutdown(ctx context.Context) error {
	if err := k.usable(); err != nil {
		return err
	}
	err := errors.Join(k.keeper.refreshes.wait(ctx), k.exchanges.wait(ctx))
	if err != nil {
		return fmt.Errorf("ganbauth: a token is on its way still: %w", err)
	}
	return nil
}
