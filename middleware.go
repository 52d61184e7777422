package ganbauth

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// RequireToken calls next with a live token in the request's context, or does not call it.
//
// A top-level GET navigation without a token is sent to the bank (303) and comes back to the same path; HTMX gets
// 401 with HX-Redirect; everything else gets 401 as problem details (RFC 9457) with WWW-Authenticate. When the bank
// or the store is away and no live token is at hand, the answer is 503 with Retry-After. A login that has just come
// back without a usable token is not begun again.
//
// It neither makes a session nor wraps the ResponseWriter.
func (k *Kit) RequireToken(next http.Handler) http.Handler { return k.require(nil, next) }

// RequireScopes is [Kit.RequireToken], and the user must have granted the scopes. Where they are missing, a browser
// is sent to consent to them as well as to those granted before; a program gets 403 with insufficient_scope (RFC 6750
// section 3.1).
func (k *Kit) RequireScopes(scopes ...string) func(next http.Handler) http.Handler {
	return func(next http.Handler) http.Handler { return k.require(scopes, next) }
}

func (k *Kit) require(scopes []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, err := k.authorize(r, scopes)
		if err != nil {
			k.deny(w, r, err, scopes)
			return
		}
		next.ServeHTTP(w, r.WithContext(g))
	})
}

// Check is the decision behind [Kit.RequireToken], for frameworks that are not net/http: it returns the live token
// of the request's user, refreshed if need be, without the refresh token. It writes nothing. The errors are
// [ErrLoginRequired] and those with a [StatusCode] of 500 and more.
func (k *Kit) Check(r *http.Request) (*Token, error) {
	g, err := k.authorize(r, nil)
	if err != nil {
		return nil, err
	}
	return &g.token, nil
}

func (k *Kit) authorize(r *http.Request, scopes []string) (*grant, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	key, err := k.storeKey(r)
	if err != nil {
		return nil, err
	}
	if key == "" {
		return nil, ErrLoginRequired
	}
	t, err := k.keeper.live(r.Context(), key)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, s := range scopes {
		if !t.HasScope(s) {
			missing = append(missing, s)
		}
	}
	if len(missing) > 0 {
		return nil, &scopeError{granted: strings.Fields(t.Scope), missing: missing}
	}
	t.RefreshToken = ""
	return &grant{r.Context(), k, key, t}, nil
}

// scopeError is ErrInsufficientScope with what is granted and what is not.
type scopeError struct{ granted, missing []string }

func (e *scopeError) Error() string {
	return fmt.Sprintf("%s: missing %s", ErrInsufficientScope, strings.Join(e.missing, " "))
}

func (e *scopeError) Unwrap() error { return ErrInsufficientScope }

// deny sends a browser to the bank where that may help, and refuses everybody else.
func (k *Kit) deny(w http.ResponseWriter, r *http.Request, err error, scopes []string) {
	setHeaders(w)
	if k.usable() != nil {
		k.refuse(w, r, err, "")
		return
	}
	back := k.wantedPath(r)
	var lacks *scopeError
	loginHelps := errors.As(err, &lacks) || errors.Is(err, ErrLoginRequired) && !errors.Is(err, ErrNoUser)
	if !loginHelps || isPrefetch(r) || !isNavigation(r) && !isHTMX(r) {
		k.refuse(w, r, err, back)
		return
	}
	if k.strictSession() && isNavigation(r) && r.Header.Get("Sec-Fetch-Site") == "cross-site" {
		// The session cookie stayed behind because another site led here.
		reload(w, back)
		return
	}
	wanted := union(k.scopes, scopes)
	if lacks != nil {
		wanted = union(k.scopes, lacks.granted, scopes)
	}
	j := k.attempts.read(r, "")
	if j.cameBack(w, "", wanted) {
		k.refuse(w, r, err, back)
		return
	}
	target, beginErr := k.begin(w, r, j, back, "", wanted)
	switch {
	case beginErr != nil:
		k.refuse(w, r, beginErr, back)
	case isHTMX(r):
		w.Header().Set("HX-Redirect", target)
		k.refuse(w, r, err, back)
	default:
		redirect(w, r, target)
	}
}

// wantedPath is the page that the user wanted: the one requested, or the one that HTMX requested a part for.
func (k *Kit) wantedPath(r *http.Request) string {
	path := ownPath(r)
	if isHTMX(r) {
		path = ""
		if u, err := url.Parse(r.Header.Get("HX-Current-URL")); err == nil {
			path, _ = localPath(u.RequestURI())
		}
	}
	if path == "" {
		return k.defaultReturn
	}
	return path
}
