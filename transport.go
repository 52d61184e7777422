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

const (
	apiTimeout = 60 * time.Second

	// lookAgain is the age from which a handler's client does not trust its token any more
	// without asking the store: the user may have logged out in another tab.
	lookAgain = 5 * time.Second
)

// bankAPI is the way to the bank's API: where the token may go, and who has it.
type bankAPI struct {
	keeper *keeper
	base   http.RoundTripper
	hosts  []string // as hostPort spells them
	about  func(context.Context, owner) context.Context
}

// transport is the RoundTripper of one client.
type transport struct {
	api   *bankAPI
	ctx   context.Context
	who   owner // without a storeKey: nobody
	job   bool  // asks the store for each request
	fault error // of every request, if there is one

	mu     sync.Mutex
	token  *Token // the last one that served, if any
	looked time.Time
}

// Format implements [fmt.Formatter] and shows no token, whatever the verb.
func (t *transport) Format(f fmt.State, _ rune) { fmt.Fprint(f, "ganbauth.Transport") }

// client returns a client that follows redirects within the bank's hosts only.
func (t *transport) client() *http.Client {
	return &http.Client{
		Transport: t,
		Timeout:   apiTimeout,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= 10 || t.fault != nil || !t.api.owns(req.URL) {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
}

// CloseIdleConnections closes the idle connections to the bank: a client's method of that
// name calls it.
func (t *transport) CloseIdleConnections() {
	if t.api != nil {
		t.api.keeper.connector.http.CloseIdleConnections()
		t.api.keeper.connector.api.CloseIdleConnections()
	}
}

// RoundTrip implements [http.RoundTripper]. Only requests to the bank's API get the token.
// All end with the Client's context, too.
func (t *transport) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if t.fault != nil {
		return refuseRequest(req, t.fault)
	}
	if req.URL == nil || req.Header == nil {
		return refuseRequest(req, &applicationError{errors.New("ganbauth: a request to the bank's API has no URL or no Header")})
	}
	ours := t.api.owns(req.URL) && !t.api.cameFromElsewhere(req)
	if t.api.wantsHTTPS(req.URL) {
		return refuseRequest(req, &applicationError{errors.New("ganbauth: the bank's API is https only")})
	}
	ctx, release := t.join(req.Context())
	defer func() {
		if resp == nil { // an error, or a panic
			release()
		}
	}()
	if ours {
		resp, err = t.send(ctx, req)
	} else {
		resp, err = t.api.roundTrip(req.WithContext(ctx))
	}
	if err != nil {
		return nil, err
	}
	resp.Request = req // the clone has the token, and cameFromElsewhere needs one
	if _, err := resp.Location(); err != nil && resp.StatusCode/100 == 3 {
		resp.Header.Del("Location") // net/http's Client would quote it in an error
	}
	body := &releasingBody{resp.Body, release}
	resp.Body = body
	if w, ok := body.ReadCloser.(io.Writer); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = struct {
			*releasingBody
			io.Writer
		}{body, w}
	}
	return resp, nil
}

// join returns a request's context that ends with the Client's, too: at a deadline of it as
// at the request's own.
func (t *transport) join(ctx context.Context) (joined context.Context, release func()) {
	ctx = joinedContext{ctx, t.ctx}
	var end context.CancelFunc
	deadline, hasDeadline := t.ctx.Deadline()
	if hasDeadline {
		joined, end = context.WithDeadline(ctx, deadline)
	} else {
		joined, end = context.WithCancel(ctx)
	}
	stop := context.AfterFunc(t.ctx, func() {
		if !hasDeadline || !errors.Is(t.ctx.Err(), context.DeadlineExceeded) {
			end()
		}
	})
	return joined, func() { stop(); end() }
}

func refuseRequest(req *http.Request, err error) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	return nil, err
}

// send sends req with the token, and once more if the API refuses the token.
func (t *transport) send(ctx context.Context, req *http.Request) (*http.Response, error) {
	token, err := t.current(ctx)
	if err != nil {
		return refuseRequest(req, err)
	}
	resp, err := t.api.roundTrip(withToken(req.WithContext(ctx), token, t.api.base))
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		return t.again(ctx, req, resp, token)
	}
	return resp, err
}

// again answers a 401 of the API: if it means an expired token, the token is replaced, and
// the request sent once more if its body can be had again. If it is not known yet whether
// the token can be replaced, that is an error. Otherwise the caller sees the bank's own
// answer.
func (t *transport) again(ctx context.Context, req *http.Request, resp *http.Response, refused *Token) (*http.Response, error) {
	var e *APIError
	if !errors.As(CheckResponse(resp), &e) || !e.Expired() {
		return resp, nil
	}
	token, err := t.api.keeper.replace(t.api.about(ctx, t.who), t.who.storeKey, refused.AccessToken)
	if err != nil && !errors.Is(err, ErrLoginRequired) && !errors.Is(err, errRefused) {
		resp.Body.Close()
		return nil, err // a 401 would send a user to the bank whose connection is kept
	}
	if err != nil || token.AccessToken == refused.AccessToken || t.isAnother(token) {
		return resp, nil
	}
	next := withToken(req.WithContext(ctx), t.remember(token), t.api.base)
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
	return t.api.roundTrip(next)
}

// current returns the last token while it may be trusted, and else asks the store.
func (t *transport) current(ctx context.Context) (*Token, error) {
	if t.who.storeKey == "" {
		return nil, fmt.Errorf("%w: Client needs the context of a request behind RequireToken", ErrLoginRequired)
	}
	t.mu.Lock()
	token, age := t.token, time.Since(t.looked)
	t.mu.Unlock()
	if !t.job && age < lookAgain && !t.api.keeper.due(token) {
		return token, nil
	}
	next, err := t.api.keeper.live(t.api.about(ctx, t.who), t.who.storeKey)
	switch {
	case err != nil:
		return nil, err
	case t.isAnother(next):
		return nil, fmt.Errorf("%w: another account has been connected meanwhile", ErrLoginRequired)
	}
	return t.remember(next), nil
}

// isAnother reports whether token is of another account than the one that a request has
// begun with. A job's client follows a new connection.
func (t *transport) isAnother(token *Token) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.job && t.token.Epoch != token.Epoch && (token.Subject == "" || t.token.Subject != token.Subject)
}

func (t *transport) remember(token *Token) *Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token, t.looked = token.withoutRefresh(), time.Now()
	return t.token
}

// withToken clones req for base, because a RoundTripper must not change it. What the
// browser sent is not forwarded, in no spelling.
func withToken(req *http.Request, token *Token, base http.RoundTripper) *http.Request {
	next := req.Clone(req.Context())
	for name := range next.Header {
		if strings.EqualFold(strings.ReplaceAll(name, "_", "-"), "X-Access-Token") { // some servers take either
			delete(next.Header, name)
		}
	}
	next.Header.Set("X-Access-Token", token.AccessToken)
	sendOnce(next, base)
	return next
}

// sendOnce keeps base from repeating a request that the bank may have processed. net/http
// takes any request with an Idempotency-Key for idempotent, and repeats it by itself when
// a kept connection dies before the answer.
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

// roundTrip sends req. As net/http's Client does, it forgives an answer without a Body,
// which an application's own RoundTripper may return, and refuses no answer at all.
func (a *bankAPI) roundTrip(req *http.Request) (*http.Response, error) {
	resp, err := a.base.RoundTrip(req)
	switch {
	case err != nil:
		return nil, &cutError{err}
	case resp == nil:
		return nil, &applicationError{fmt.Errorf("ganbauth: %T returned neither a response nor an error", a.base)}
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	return resp, nil
}

// owns reports whether the token may go to u.
func (a *bankAPI) owns(u *url.URL) bool {
	return u != nil && secureURL(u) && slices.Contains(a.hosts, hostPort(u))
}

// wantsHTTPS reports whether u leads to a host of the bank without encryption.
func (a *bankAPI) wantsHTTPS(u *url.URL) bool {
	isBank := func(host string) bool {
		return slices.Contains(a.hosts, hostPort(&url.URL{Host: host}))
	}
	return !secureURL(u) && (isBank(u.Host) || isBank(strings.TrimSuffix(u.Host, ":80"))) // the port of http
}

// cameFromElsewhere reports whether a redirect of a host that is not known to be the bank's
// led to req.
func (a *bankAPI) cameFromElsewhere(req *http.Request) bool {
	for resp := req.Response; resp != nil; resp = resp.Request.Response {
		if resp.Request == nil || !a.owns(resp.Request.URL) {
			return true
		}
	}
	return false
}

// joinedContext is a request's context with the values of the Client's, too: those that
// Observe and the Logger know.
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

// releasingBody ends the request's context when there is nothing more to read, or when the
// caller is done with the body.
type releasingBody struct {
	io.ReadCloser
	release func()
}

// Read implements [io.Reader]. An error is marked as the bank's: with HTTP/2 it has a
// type that nobody else could recognize.
func (b *releasingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	b.release()
	if err != io.EOF {
		err = &cutError{err}
	}
	return n, err
}

// Close implements [io.Closer].
func (b *releasingBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
