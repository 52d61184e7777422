package ganbauth

import (
	"cmp"
	"errors"
	"net/http"
	"strings"
	"time"
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

// require is RequireToken with scopes. The Kit's own handlers need no token, wherever they are: a
// login whose callback needs a token would never end.
func (k *Kit) require(scopes []string, next http.Handler) http.Handler {
	callback := k.CallbackHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if k.usable() == nil && k.isCallback(r) {
			callback.ServeHTTP(w, r)
			return
		}
		g, err := k.authorize(r, scopes)
		switch {
		case err == nil:
			k.serve(w, r.WithContext(withGrant(r.Context(), g)), next)
		case k.leadsToOwnHandler(next, r):
			next.ServeHTTP(w, r)
		default:
			k.deny(w, r, err, scopes)
		}
	})
}

// serve calls next without the kit's marks in the URL. Who followed a login_url, and is
// connected by now, goes to the page that it leads back to.
func (k *Kit) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if strings.Contains(r.URL.RawQuery, markPrefix) {
		u, m := *r.URL, marks{}
		u.RawQuery, m = k.cutMarks(u.RawQuery)
		if m.returnTo != "" && kindOfRequest(r) == navigation {
			setHeaders(w)
			redirect(w, m.returnTo, false)
			return
		}
		r.URL = &u // r is RequireToken's own copy
	}
	next.ServeHTTP(w, r)
}

// leadsToOwnHandler reports whether next is one of k's own handlers, or an [http.ServeMux] that
// gives r to one.
func (k *Kit) leadsToOwnHandler(next http.Handler, r *http.Request) bool {
	if mux, ok := next.(*http.ServeMux); ok {
		next, _ = mux.Handler(r)
	}
	own, ok := next.(*endpoint)
	return ok && own.kit == k
}

// Check is the decision behind [Kit.RequireToken], for frameworks that are not net/http: it returns the live token
// of the request's user, refreshed if need be, without the refresh token. It writes nothing. The errors are
// [ErrLoginRequired] and those with a [StatusCode] of 500 and more.
func (k *Kit) Check(r *http.Request) (*Token, error) {
	g, err := k.authorize(r, nil)
	if err != nil {
		return nil, err
	}
	return g.token, nil
}

func (k *Kit) authorize(r *http.Request, scopes []string) (*grant, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	who, err := k.whose(r)
	if err != nil {
		return nil, err
	}
	if who.storeKey == "" {
		return nil, ErrLoginRequired
	}
	t, err := k.keeper.live(r.Context(), who.storeKey)
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
	t.RefreshToken = "" // only the keeper may spend it
	return &grant{kit: k, owner: who, token: t}, nil
}

// Refuse answers err, which a handler met, as [Kit.RequireToken] answers a request that it does
// not let through. Call it before anything is written, and return:
//
//	resp, err := bank.Client(r.Context()).Get(url)
//	if err == nil {
//		defer resp.Body.Close()
//		err = ganbauth.CheckResponse(resp)
//	}
//	if err != nil {
//		bank.Refuse(w, r, err)
//		return
//	}
//
// A browser that needs to connect, or to connect again, is sent to the bank. Otherwise the status
// is [StatusCode], with Retry-After where waiting helps, and the answer is Options.OnError's or:
//
//   - for a person, a page in Japanese or English, of Options.ErrorPage or of the kit's own;
//   - for everything else, problem details (RFC 9457), in which detail is in Japanese or English.
//
// Problem details have a stable code: login_required, insufficient_scope, no_user,
// access_denied, login_expired, invalid_state, refused, bank_unavailable, unavailable (the
// application's store, sessions or lock), bank_error, misconfigured or internal. Where a login
// at the bank helps and the request was a GET, login_url is a path of this site: a navigation
// there begins a login for what the route needs, and comes back to the page that sent the
// request (its Referer, else DefaultReturn).
func (k *Kit) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	k.deny(w, r, err, nil)
}

// remedy is what may still get a denied request served.
type remedy int

const (
	noRemedy     remedy = iota // the refusal is the answer
	askAgain                   // the session's cookie comes with the next request
	askAgainSoon               // another tab's answer is about to bring it
	connectFirst               // a login at the bank
	stopLoop                   // a login at the bank, but one has just brought nothing
)

// deny does what may still get r served, or else refuses it. scopes are what its route needs.
func (k *Kit) deny(w http.ResponseWriter, r *http.Request, err error, scopes []string) {
	setHeaders(w)
	if k.usable() != nil {
		k.refuse(w, r, err, exits{}, "")
		return
	}
	kind := kindOfRequest(r)
	again, back := k.pagesOf(r, kind)
	to := exits{again: again, sentFrom: kind == formPost, home: k.defaultReturn}
	asked := k.scopesToAsk(err, scopes)
	var j *jar
	var returned []attemptCookie
	if kind == navigation || kind == htmxRequest {
		connection, _ := k.connection(r) // an error has been met before, and is err
		j = k.attempts.read(r, "")
		returned = j.justReturned(connection, asked)
	}
	switch k.remedyFor(r, err, kind, len(returned) > 0) {
	case askAgain:
		k.reload(w, r, again, 0)
		return
	case askAgainSoon:
		k.reload(w, r, again, time.Second)
		return
	case connectFirst:
		target, beginErr := k.begin(w, r, j, back, "", asked)
		switch {
		case beginErr != nil:
			err = beginErr
		case kind == navigation:
			redirect(w, target, false)
			return
		default:
			redirect(w, target, true) // with the status of the refusal
		}
	case stopLoop:
		j.remove(w, returned) // the next try is the user's own
	}
	k.refuse(w, r, err, to, k.loginURL(r, err))
}

// remedyFor decides what deny does about err. straightBack says that a login for all that is
// needed has only just ended.
//
// No request is reloaded without end: each reload is counted in the URL.
func (k *Kit) remedyFor(r *http.Request, err error, kind requestKind, straightBack bool) remedy {
	about, reloads := kindOf(err).topic, k.marksOf(r).reloads
	noSession := about == topicConnect || about == topicNoUser
	canReload := kind == navigation && noSession && k.ownPath(r) != ""
	switch {
	case canReload && k.cookieStayedBehind(r):
		return askAgain
	case canReload && reloads < maxReloads && straightBack && (k.sessionIsGone(r) || k.tokenIsGone(r)):
		return askAgainSoon
	case about != topicConnect && about != topicScope, kind != navigation && kind != htmxRequest:
		return noRemedy
	case straightBack:
		return stopLoop
	}
	return connectFirst
}

// tokenIsGone reports whether the session of r names a token that is not in the store. Another
// tab's login may have put one under a new name after r's session was loaded.
func (k *Kit) tokenIsGone(r *http.Request) bool {
	if k.keyOf != nil || k.connectionOf != nil {
		return false // a login keeps the name
	}
	who, err := k.whoseConnection(r, "")
	if err != nil || who.storeKey == "" {
		return false
	}
	t, err := k.peek(r, "")
	return err == nil && t == nil
}

// scopesToAsk returns the scopes of a login that err makes necessary: what is granted already is
// asked for again, as the new token replaces the old.
func (k *Kit) scopesToAsk(err error, scopes []string) []string {
	var lacks *scopeError
	if errors.As(err, &lacks) {
		return union(k.scopes, lacks.granted, scopes)
	}
	return union(k.scopes, scopes)
}

// loginURL returns a path of this site that begins the login that r lacks, or "". It is r's own
// path: RequireToken knows no other that begins one.
func (k *Kit) loginURL(r *http.Request, err error) string {
	about, path := kindOf(err).topic, k.ownPath(r)
	if about != topicConnect && about != topicScope || r.Method != http.MethodGet || path == "" {
		return ""
	}
	return k.marked(path, returnMark, cmp.Or(k.ownPage(r, "Referer"), k.defaultReturn))
}
