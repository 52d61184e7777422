package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const apiTimeout = 60 * time.Second

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

// transport is the RoundTripper of one Client.
type transport struct {
	kit *Kit
	ctx context.Context
	key string

	mu    sync.Mutex
	token *Token // the last one that served, if any
}

func (t *transport) client() *http.Client {
	return &http.Client{
		Transport: t,
		Timeout:   apiTimeout,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= 10 || !t.kit.isBank(req.URL) {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	fail := func(err error) (*http.Response, error) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	if err := t.kit.usable(); err != nil {
		return fail(err)
	}
	base := t.kit.connector.http.Transport
	if !t.kit.isBank(req.URL) || cameFromElsewhere(req, t.kit) {
		if slices.Contains(t.kit.apiHosts, hostPort(&url.URL{Scheme: "https", Host: req.URL.Host})) && !secureURL(req.URL) {
			return fail(errors.New("ganbauth: the bank's API is https only"))
		}
		return base.RoundTrip(req)
	}
	ctx, cancel := context.WithCancel(joinedContext{req.Context(), t.ctx})
	stop := context.AfterFunc(t.ctx, cancel)
	release := func() { stop(); cancel() }

	token, err := t.current(ctx)
	if err != nil {
		release()
		return fail(err)
	}
	resp, err := base.RoundTrip(withToken(req.WithContext(ctx), token))
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		resp, err = t.again(ctx, req, resp, token)
	}
	if err != nil {
		release()
		return nil, err
	}
	resp.Request = req // the clone has the token
	resp.Body = &releasingBody{resp.Body, release}
	return resp, nil
}

// again answers a 401 of the API: if it means an expired token, the token is replaced, and the request sent once
// more if that can be done.
func (t *transport) again(ctx context.Context, req *http.Request, resp *http.Response, refused *Token) (*http.Response, error) {
	var e *APIError
	if !errors.As(CheckResponse(resp), &e) || !e.Expired() {
		return resp, nil
	}
	token, err := t.kit.keeper.replace(ctx, t.key, refused.AccessToken)
	if err != nil {
		return resp, nil // the caller sees the bank's own answer
	}
	next := withToken(req.WithContext(ctx), t.remember(token))
	if req.Body != nil && req.Body != http.NoBody {
		if req.GetBody == nil {
			return resp, nil
		}
		body, err := req.GetBody()
		if err != nil {
			return resp, nil
		}
		next.Body = body
	}
	resp.Body.Close()
	return t.kit.connector.http.Transport.RoundTrip(next)
}

// current returns the last token while it is not due, and else asks the store.
func (t *transport) current(ctx context.Context) (*Token, error) {
	if t.key == "" {
		return nil, fmt.Errorf("%w: Client needs the context of a request behind RequireToken", ErrLoginRequired)
	}
	t.mu.Lock()
	token := t.token
	t.mu.Unlock()
	if token.Valid() && !t.kit.keeper.due(*token) {
		return token, nil
	}
	next, err := t.kit.keeper.live(ctx, t.key)
	if err != nil {
		return nil, err
	}
	return t.remember(next), nil
}

func (t *transport) remember(token Token) *Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token = token.withoutRefresh()
	return t.token
}

// withToken clones req, as a RoundTripper must not change it. Set, not Add: what the browser sent is not forwarded.
func withToken(req *http.Request, token *Token) *http.Request {
	next := req.Clone(req.Context())
	next.Header.Set("X-Access-Token", token.AccessToken)
	return next
}

// isBank reports whether the token may go to u.
func (k *Kit) isBank(u *url.URL) bool {
	return k.usable() == nil && u != nil && secureURL(u) && slices.Contains(k.apiHosts, hostPort(u))
}

// cameFromElsewhere reports whether a redirect of a host that is not the bank's led to req.
func cameFromElsewhere(req *http.Request, k *Kit) bool {
	for resp := req.Response; resp != nil && resp.Request != nil; resp = resp.Request.Response {
		if !k.isBank(resp.Request.URL) {
			return true
		}
	}
	return false
}

// joinedContext is a request's context with the values of the Client's, too: those that Observe and the Logger know.
type joinedContext struct {
	context.Context
	more context.Context
}

func (c joinedContext) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.more.Value(key)
}

// releasingBody ends the request's context when the caller is done with the body.
type releasingBody struct {
	io.ReadCloser
	release func()
}

func (b *releasingBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
