package ganbauth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// LoginHandler sends the browser to the bank's consent page (303). It asks for Options.Scopes and for
// scopes: mount one for a link such as "Allow transfers, too".
//
// The query parameter return_to names the path to come back to, otherwise it is DefaultReturn. The path
// is remembered up to 1,024 characters if a page of this site led here, and up to 256 if anybody else
// did; the browser's cookie holds it. The request has no other influence on the login.
//
// GET only. HTMX gets HX-Redirect. A prefetch, and what the browser says is no top-level navigation, is
// refused with 403. If the scopes are not well formed or, together with Options.Scopes, longer than 256
// characters, that is logged as an error when the handler is made, and every request is answered 500.
func (k *Kit) LoginHandler(scopes ...string) http.Handler {
	var wanted []string
	var fault error
	if k.usable() == nil {
		wanted = union(k.scopes, scopes)
		fault = errors.Join(checkScopes("LoginHandler: scopes", wanted, k.connector)...)
	}
	if fault != nil {
		k.log.Error("ganbauth: this LoginHandler can begin no login", "error", fault)
	}
	return k.handler(http.MethodGet, func(w http.ResponseWriter, r *http.Request) error {
		if fault != nil {
			return fault
		}
		if err := checkNavigation(r); err != nil {
			return err
		}
		j := k.attempts.read(r, "")
		target, err := k.begin(w, r, j, k.returnPath(r), withoutReturn(ownPath(r)), wanted)
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
	j := k.attempts.read(r, name)
	a := j.find(name)
	switch {
	case a == nil:
		return fmt.Errorf("%w: this browser did not begin this login, or too long ago", ErrInvalidState)
	case !a.done.IsZero():
		t, err := k.peek(r)
		if err == nil && t == nil {
			err = &retryError{fmt.Errorf("%w: this login is over", ErrInvalidState), a.retry()}
		}
		if err == nil {
			redirect(w, r, k.defaultReturn)
		}
		return err
	case a.expired():
		j.forget(w, name)
		return &retryError{errAttemptExpired, a.retry()}
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
	returnTo := cmp.Or(a.returnTo, k.defaultReturn)
	j.put(w, name, a.finished(err), len(returnTo))
	if err != nil {
		return &retryError{err, a.retry()}
	}
	k.event(r.Context(), EventLoginSucceeded, start, nil)
	redirect(w, r, returnTo)
	return nil
}

// LogoutHandler forgets the user's token and the logins that this browser has begun, and redirects (303) to the path
// in the query parameter return_to, or to DefaultReturn. A session with nothing else in it is
// destroyed; another keeps the application's values and gets a new token. POST only, and not from another origin
// ([http.CrossOriginProtection]). The bank documents no way to revoke a token.
func (k *Kit) LogoutHandler() http.Handler {
	return k.handler(http.MethodPost, func(w http.ResponseWriter, r *http.Request) error {
		if err := k.checkOrigin(r); err != nil {
			return err
		}
		start := time.Now()
		returnTo := k.returnPath(r)
		k.attempts.read(r, "").removeAll(w, len(returnTo))
		key, err := k.storeKey(r)
		if err != nil && !errors.Is(err, ErrNoUser) {
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
		redirect(w, r, returnTo)
		return nil
	})
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
	if errors.Is(err, ErrNoUser) || err == nil && key == "" {
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

// retryError knows where a login can be begun again.
type retryError struct {
	err  error
	path string
}

func (e *retryError) Error() string { return e.err.Error() }

func (e *retryError) Unwrap() error { return e.err }
