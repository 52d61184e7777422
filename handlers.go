package ganbauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// LoginHandler sends the browser to the bank's consent page (303). The query parameter return_to (ReturnParam) names
// the path to come back to; whatever else the request says is ignored. GET only. A prefetch is refused, and what the
// browser says is no top-level navigation; HTMX gets HX-Redirect.
func (k *Kit) LoginHandler() http.Handler {
	return k.handler(http.MethodGet, func(w http.ResponseWriter, r *http.Request) error {
		if err := checkNavigation(r); err != nil {
			return err
		}
		target, err := k.begin(w, r, k.returnPath(r), ownPath(r), k.scopes)
		if err != nil {
			return err
		}
		redirect(w, r, target)
		return nil
	})
}

// CallbackHandler finishes a login: mount it at RedirectURI. It exchanges the code, saves the token, renews the
// session's token, and redirects (303) to where the login was to return to.
//
// A callback that this browser did not begin changes nothing. One that it did is consumed, whatever the outcome; a
// second delivery (reload, back button) goes to DefaultReturn if the user is connected by then. Delivered twice to
// one process, even at once, a code is exchanged once. Refusals are [ErrInvalidState], an [*AuthorizationError],
// and what [Connector.OpenIDToken] returns.
func (k *Kit) CallbackHandler() http.Handler {
	return k.handler(http.MethodGet, func(w http.ResponseWriter, r *http.Request) error {
		if err := checkNavigation(r); err != nil {
			return err
		}
		start := time.Now()
		err := k.serveCallback(w, r, start)
		if err != nil {
			k.event(r.Context(), EventLoginFailed, start, err)
		}
		return err
	})
}

func (k *Kit) serveCallback(w http.ResponseWriter, r *http.Request, start time.Time) error {
	q, err := parseCallback(r.URL.RawQuery)
	if err != nil {
		return err
	}
	name := k.attempts.cookieName(q.state)
	a := k.attempts.find(r, name)
	switch {
	case a == nil:
		return fmt.Errorf("%w: this browser did not begin this login, or too long ago", ErrInvalidState)
	case !a.done.IsZero():
		t, err := k.peek(r)
		if err == nil && t == nil {
			err = &retryError{fmt.Errorf("%w: this login is over", ErrInvalidState), a.retry}
		}
		if err == nil {
			redirect(w, r, k.defaultReturn)
		}
		return err
	case a.expired():
		k.attempts.remove(w, name)
		return &retryError{errAttemptExpired, a.retry}
	}
	mine, err := k.owns(r, a)
	if err != nil {
		return err
	}
	if !q.reloaded && (!mine || k.strictSession()) && r.Header.Get("Sec-Fetch-Site") != "same-origin" {
		// The session cookie may have stayed behind because the bank's site led here.
		here := url.URL{Path: k.callback, RawQuery: escapeRest(r.URL.RawQuery) + "&" + reloadedParam + "=1"}
		reload(w, here.String())
		return nil
	}
	key, err := k.connect(r, a, q, mine, name)
	if r.Context().Err() != nil {
		return err // nobody reads the answer; a reload gets the outcome
	}
	if err == nil {
		err = k.attach(w, r, key, a)
	}
	k.attempts.write(w, name, a.finished(err))
	if err != nil {
		return &retryError{err, a.retry}
	}
	k.event(r.Context(), EventLoginSucceeded, start, nil)
	redirect(w, r, a.returnTo)
	return nil
}

// callbackQuery is what the bank may say in a callback.
type callbackQuery struct {
	state, code, iss string
	failure          string
	description      string
	hasError, hasIss bool
	reloaded         bool
}

const (
	maxCallbackQuery = 16 << 10
	reloadedParam    = "ganbauth_reloaded"
)

// parseCallback reads a callback's query (RFC 6749 section 4.1.2). No parameter may occur twice (section 3.1).
func parseCallback(raw string) (callbackQuery, error) {
	invalid := func(why string) (callbackQuery, error) {
		return callbackQuery{}, fmt.Errorf("%w: %s", ErrInvalidState, why)
	}
	if len(raw) > maxCallbackQuery {
		return invalid("the query is too long")
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return invalid("the query is malformed")
	}
	for _, name := range []string{"state", "code", "error", "error_description", "iss"} {
		if len(values[name]) > 1 {
			return invalid(name + " occurs twice")
		}
	}
	q := callbackQuery{
		state:       values.Get("state"),
		code:        values.Get("code"),
		iss:         values.Get("iss"),
		failure:     cleanCode(values.Get("error")),
		description: printable(values.Get("error_description")),
		hasError:    values.Has("error"),
		hasIss:      values.Has("iss"),
		reloaded:    values.Has(reloadedParam),
	}
	if q.state == "" || len(q.state) > maxState {
		return invalid("state is missing or too long")
	}
	return q, nil
}

// connect judges the callback of a and exchanges its code, once per attempt, and returns the key that the token was
// saved under.
func (k *Kit) connect(r *http.Request, a *attempt, q callbackQuery, mine bool, name string) (string, error) {
	switch {
	case !mine:
		return "", fmt.Errorf("%w: another user began this login", ErrInvalidState)
	case q.hasIss && k.connector.issuer != "" && q.iss != k.connector.issuer: // RFC 9207 section 2.4
		return "", fmt.Errorf("%w: iss is not the bank's", ErrInvalidState)
	case q.hasError && q.failure == "":
		return "", &AuthorizationError{Code: "unknown_error"}
	case q.hasError:
		return "", &AuthorizationError{q.failure, q.description}
	case q.code == "" || len(q.code) > maxReceived || !isVisible(q.code, false):
		return "", fmt.Errorf("%w: code is missing, too long or malformed", ErrInvalidState)
	}
	key, err := k.newKey(r)
	if err != nil {
		return "", err
	}
	return k.exchanges.do(r.Context(), name, func(ctx context.Context) (string, error) {
		t, idToken, err := k.connector.exchange(ctx, k.redirectURI, q.code, a.verifier,
			assumed{scope: a.scope, lifetime: k.keeper.lifetime})
		if err == nil && a.nonce != "" {
			t, err = k.connector.identify(t, idToken, a.nonce, k.maxAge)
		}
		if err != nil {
			return "", err
		}
		return key, k.keeper.put(ctx, key, t)
	})
}

// LogoutHandler forgets the user's token and the logins that this browser has begun, and redirects (303) to the path
// in the query parameter return_to (ReturnParam), or to DefaultReturn. A session with nothing else in it is
// destroyed; another keeps the application's values and gets a new token. POST only, and not from another origin
// ([http.CrossOriginProtection]). The bank documents no way to revoke a token.
func (k *Kit) LogoutHandler() http.Handler {
	return k.handler(http.MethodPost, func(w http.ResponseWriter, r *http.Request) error {
		if err := k.checkOrigin(r); err != nil {
			return err
		}
		start := time.Now()
		for name := range k.attempts.all(r) {
			k.attempts.remove(w, name)
		}
		key, err := k.storeKey(r)
		if err != nil && !errors.Is(err, errNobody) {
			return err
		}
		if key != "" {
			if err := k.keeper.drop(r.Context(), key); err != nil {
				return err
			}
			k.event(r.Context(), EventLogout, start, nil)
		}
		if err := k.detach(w, r); err != nil {
			return err
		}
		redirect(w, r, k.returnPath(r))
		return nil
	})
}

// checkOrigin refuses what another origin sends. CrossOriginProtection does not see the scheme, for browsers
// without Sec-Fetch-Site.
func (k *Kit) checkOrigin(r *http.Request) error {
	refused := &refusal{http.StatusForbidden, "the request comes from another origin"}
	if new(http.CrossOriginProtection).Check(r) != nil {
		return refused
	}
	if k.https && r.Header.Get("Sec-Fetch-Site") == "" && strings.HasPrefix(r.Header.Get("Origin"), "http:") {
		return refused
	}
	return nil
}

// StatusHandler tells a front end whether the user is connected, as JSON:
//
//	{"connected": true, "scopes": ["openid"], "expires_at": "2026-01-02T15:04:05Z"}
//
// where expires_at is the access token's end and absent without a connection. It never shows or refreshes a token.
// GET and HEAD only.
func (k *Kit) StatusHandler() http.Handler {
	return k.handler(http.MethodGet+", "+http.MethodHead, func(w http.ResponseWriter, r *http.Request) error {
		status := struct {
			Connected bool       `json:"connected"`
			Scopes    []string   `json:"scopes"`
			ExpiresAt *time.Time `json:"expires_at,omitempty"`
		}{Scopes: []string{}}
		t, err := k.peek(r)
		if err != nil {
			return err
		}
		if t != nil {
			status.Connected, status.Scopes, status.ExpiresAt = true, strings.Fields(t.Scope), &t.ExpiresAt
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		return json.NewEncoder(w).Encode(status)
	})
}

// peek returns the user's token if it is live or can be refreshed, nil if there is none, and refreshes nothing.
func (k *Kit) peek(r *http.Request) (*Token, error) {
	key, err := k.storeKey(r)
	if errors.Is(err, errNobody) || err == nil && key == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := k.keeper.load(r.Context(), key)
	switch {
	case errors.Is(err, ErrLoginRequired), err == nil && !t.Valid() && t.RefreshToken == "":
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &t, nil
}

// handler frames what all handlers have in common: methods, headers, refusals.
func (k *Kit) handler(methods string, serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setHeaders(w)
		if err := k.usable(); err != nil {
			k.refuse(w, r, err, "")
			return
		}
		if !slices.Contains(strings.Split(methods, ", "), r.Method) {
			w.Header().Set("Allow", methods)
			k.refuse(w, r, &refusal{http.StatusMethodNotAllowed, "the method is not allowed"}, k.defaultReturn)
			return
		}
		if err := serve(w, r); err != nil {
			retry := k.defaultReturn
			var again *retryError
			if errors.As(err, &again) && again.path != "" {
				retry = again.path
			}
			k.refuse(w, r, err, retry)
		}
	})
}

// usable fails for a Kit that New did not make.
func (k *Kit) usable() error {
	if k == nil || k.keeper == nil {
		return errors.New("ganbauth: this Kit was not made by New")
	}
	return nil
}

// retryError knows where a login can be begun again.
type retryError struct {
	err  error
	path string
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

var errAttemptExpired = fmt.Errorf("%w: the login was begun more than %s ago", ErrInvalidState, attemptLifetime)

// returnPath is where the request asks to return to, or DefaultReturn. The login and the callback are no place to
// return to.
func (k *Kit) returnPath(r *http.Request) string {
	asked := r.URL.Query()[k.returnParam]
	if len(asked) != 1 {
		return k.defaultReturn
	}
	path, ok := localPath(asked[0])
	if !ok {
		return k.defaultReturn
	}
	target, err := url.Parse(path)
	own, ownErr := url.Parse(ownPath(r))
	if err != nil || ownErr != nil || target.Path == k.callback || target.Path == own.Path {
		return k.defaultReturn
	}
	return path
}

// ownPath is the path that the browser requested, "" if it could not be a path to return to. A handler below
// [http.StripPrefix] sees another one in r.URL.
func ownPath(r *http.Request) string {
	target := r.RequestURI
	if target == "" {
		target = r.URL.RequestURI()
	}
	path, _ := localPath(target)
	return path
}

// checkNavigation refuses what would begin or finish a login without the user seeing it.
func checkNavigation(r *http.Request) error {
	if isPrefetch(r) {
		return &refusal{http.StatusForbidden, "a prefetch does not log in"}
	}
	if dest := r.Header.Get("Sec-Fetch-Dest"); dest != "" && dest != "document" && !isHTMX(r) {
		return &refusal{http.StatusForbidden, "a login must be a top-level navigation"}
	}
	return nil
}

func isPrefetch(r *http.Request) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		v := strings.ToLower(r.Header.Get(name))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "preview") || strings.Contains(v, "prerender") {
			return true
		}
	}
	return false
}

// The name is spelled as net/http keeps it, which spares every request without it an allocation.
func isHTMX(r *http.Request) bool { return r.Header.Get("Hx-Request") == "true" }

// isNavigation tells a browser's top-level page load from everything else.
func isNavigation(r *http.Request) bool {
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") != "" || r.Header.Get("X-Requested-With") != "" {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		dest := r.Header.Get("Sec-Fetch-Dest")
		return mode == "navigate" && (dest == "document" || dest == "")
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

// strictSession reports whether the session cookie stays behind on the way back from the bank.
func (k *Kit) strictSession() bool {
	return k.sessions != nil && k.sessions.Cookie.SameSite == http.SameSiteStrictMode
}
