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
			return fail(&applicationError{errors.New("ganbauth: the bank's API is https only")})
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
	resp, err := base.RoundTrip(withToken(req.WithContext(ctx), token, base))
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
	base := t.kit.connector.http.Transport
	next := withToken(req.WithContext(ctx), t.remember(token), base)
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
	return base.RoundTrip(next)
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

// withToken clones req for base, because a RoundTripper must not change it. Set, not Add: what
// the browser sent is not forwarded.
func withToken(req *http.Request, token *Token, base http.RoundTripper) *http.Request {
	next := req.Clone(req.Context())
	next.Header.Set("X-Access-Token", token.AccessToken)
	sendOnce(next, base)
	return next
}

// sendOnce keeps base from repeating a request that the bank may have processed. net/http takes
// any request with an Idempotency-Key for idempotent, and repeats it by itself when a kept
// connection dies before the answer.
func sendOnce(req *http.Request, base http.RoundTripper) {
	_, isNetHTTP := base.(*http.Transport)
	hasBody := req.Body != nil && req.Body != http.NoBody
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		values, ok := req.Header[name]
		switch {
		case !ok:
		case hasBody && !isNetHTTP:
			req.GetBody = nil // net/http, if it is behind base, cannot repeat the body
		default:
			// net/http looks for the canonical spelling only. Servers accept any. What has
			// not been written at all is still repeated.
			delete(req.Header, name)
			other := strings.ToLower(name)
			req.Header[other] = append(req.Header[other], values...)
		}
	}
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

// Read implements [io.Reader]. An error is marked as the bank's: with HTTP/2 it has a type that
// nobody else could recognize.
func (b *releasingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = &cutError{err}
	}
	return n, err
}

// Close implements [io.Closer].
func (b *releasingBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
