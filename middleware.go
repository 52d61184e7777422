package ganbauth

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
)

// RequireToken calls next with a live token in the request's context, refreshed if need
// be. Without one it does not call next, and answers by what the request is:
//
//   - A GET that loads a page into a browser's window is sent to the bank (303), and comes back
//     to the same path.
//   - HTMX gets 401 with HX-Redirect, and comes back to the page that it is on.
//   - A form gets 401 and a page with a link back to where the form stood.
//   - Everything else gets 401 as problem details (RFC 9457), with WWW-Authenticate.
//
// If the bank or the store is away and there is no live token, the answer is 503 with
// Retry-After. [Kit.Refuse] documents pages and problem details.
//
// A login that has returned without a usable token is not begun again for 30 seconds: the
// user gets a page. Where the session's cookie may come with the next request, the answer is
// a page that loads the request again, three times at most: a cookie with SameSite=Strict
// stays behind when another site leads here, and another tab's login may just have renewed
// the session. An address is not loaded again if it is longer than 2,048 characters, or if
// a browser and a server may read it differently, because of an empty segment for example.
// Then a connected user may be sent to the bank.
//
// The kit's own handlers need no token, so RequireToken may stand around all routes,
// unless Options.Connection reads path values, which the mux sets. It answers callbacks
// itself. It lets logins, logouts and the status through if next is an [http.ServeMux].
//
// It looks at no scopes, not even those of Options: [Kit.RequireScopes] does. It neither
// creates a session nor wraps the ResponseWriter.
func (k *Kit) RequireToken(next http.Handler) http.Handler { return k.require(nil, next) }

// RequireScopes is [Kit.RequireToken] for routes that need scopes. If the user has not
// granted all of them, a browser is sent to the bank to consent to them, and again to
// those granted before, unless all are longer than 256 characters together. A program
// gets 403 with insufficient_scope (RFC 6750 section 3.1). So does a form: put
// RequireScopes on the page with the form as well. Scopes that no login can ask for are
// an error, as with LoginHandler.
func (k *Kit) RequireScopes(scopes ...string) func(next http.Handler) http.Handler {
	return func(next http.Handler) http.Handler { return k.require(scopes, next) }
}

// require is RequireToken with scopes. It lets callbacks pass without a token: if they
// needed one, no login would ever end.
func (k *Kit) require(scopes []string, next http.Handler) http.Handler {
	callback := k.CallbackHandler()
	_, fault := k.wanted("RequireScopes", scopes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if k.usable() == nil && k.isCallback(r) {
			callback.ServeHTTP(w, r)
			return
		}
		g, err := k.authorize(r, scopes)
		switch {
		case err == nil:
			r = r.WithContext(withGrant(r.Context(), g))
			if k.connectionOf != nil {
				g.connectionNow = func() (string, error) { return k.connection(r) }
			}
			k.serve(w, r, next, g, scopes)
		case k.leadsToOwnHandler(next, r):
			next.ServeHTTP(w, r)
		case fault != nil && (errors.Is(err, ErrLoginRequired) || errors.Is(err, ErrInsufficientScope)):
			k.deny(w, r, fault, nil)
		default:
			k.deny(w, r, err, scopes)
		}
	})
}

// serve calls next with a URL that is free of the kit's marks. If the user follows a
// login_url but is connected by now, serve redirects to the page that the login would
// return to, unless another site has made that URL up. If the connection is still the one
// that the bank's API has refused, serve begins the login all the same.
func (k *Kit) serve(w http.ResponseWriter, r *http.Request, next http.Handler, g *grant, scopes []string) {
	if strings.Contains(r.URL.RawQuery, markPrefix) {
		u, m := *r.URL, marks{}
		u.RawQuery, m = k.cutMarks(u.RawQuery)
		switch follows := kindOfRequest(r) == navigation && k.sentBy(r) != "cross-site"; {
		case follows && m.refused != "" && m.refused == hash(g.token.Epoch):
			k.deny(w, r, ErrLoginRequired, scopes)
			return
		case follows && m.returnTo != "":
			setHeaders(w)
			redirect(w, m.returnTo, false)
			return
		}
		r.URL = &u // r is RequireToken's own copy
	}
	next.ServeHTTP(w, r)
}

// leadsToOwnHandler reports whether next is one of k's own handlers, or an
// [http.ServeMux] that passes r to one.
func (k *Kit) leadsToOwnHandler(next http.Handler, r *http.Request) bool {
	if mux, ok := next.(*http.ServeMux); ok {
		next, _ = mux.Handler(r)
	}
	own, ok := next.(*endpoint)
	return ok && own.kit == k
}

// Check is the decision of [Kit.RequireToken] without its answer, for frameworks other
// than net/http. It returns the live token of the request's user, refreshed if need be,
// without the refresh token. The error is [ErrLoginRequired], or has a [StatusCode] of
// 500 or more.
func (k *Kit) Check(r *http.Request) (*Token, error) {
	g, err := k.authorize(r, nil)
	if err != nil {
		return nil, err
	}
	return &g.token, nil
}

// authorize returns what RequireToken puts into the context of r: the user's live token,
// which has all the scopes, and whose it is.
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
	t, err := k.live(r.Context(), who)
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
	g := &grant{kit: k, owner: who, token: *t, found: time.Now(), needs: scopes}
	g.token.RefreshToken = "" // only the keeper may spend it
	return g, nil
}

// Refuse answers an error that a handler met, exactly as [Kit.RequireToken] answers one.
// Call it before anything is written, and return:
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
// If connecting helps, a browser is sent to the bank. Otherwise the answer has the status
// [StatusCode] of err, and Retry-After if waiting helps. Options.OnError writes it, if
// set. If not, it is one of these, in Japanese or English by Accept-Language:
//
//   - For a person it is a page: that of Options.ErrorPage, or the kit's own.
//   - For everything else it is problem details (RFC 9457).
//
// The code in problem details, and in [ErrorPage], is stable. It is one of:
//
//   - login_required: the user has to connect.
//   - insufficient_scope: the user has to grant more.
//   - no_user: the user has to log in to the application first.
//   - access_denied: the user did not approve the connection at the bank.
//   - login_expired: connecting took more than ten minutes.
//   - invalid_state: the callback belongs to no login of this browser.
//   - refused: the request has the wrong method, comes from another origin, or is a login
//     by fetch() or in a frame.
//   - bank_unavailable: the bank does not answer. The connection is kept.
//   - unavailable: the application's store, sessions or lock do not answer.
//   - bank_error: the bank's answer cannot be used.
//   - misconfigured: the bank refuses this application.
//   - internal: anything else.
//
// A request that the bank's API refuses for what it asks, with 400 for example, is a
// bank_error here. Answer it yourself where the user can mend it, by the Code of the
// [*APIError].
//
// With login_required and insufficient_scope, the answer to a GET has a login_url, a path
// of this site. A navigation to it begins a login for what the route needs. The login
// returns to the page that sent the request (its Referer), or to DefaultReturn.
func (k *Kit) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	if own := k.ownAnswer(r); own != nil { // OnError leaves it to the kit
		own(w, err)
		return
	}
	var scopes []string
	if g := grantOf(r.Context(), k); g != nil {
		scopes = g.needs
	}
	k.deny(w, r, err, scopes)
}

// remedy is what deny does for a request instead of refusing it.
type remedy int

const (
	noRemedy     remedy = iota // nothing helps
	askAgain                   // reload: the next request brings the session's cookie
	askAgainSoon               // reload after a pause: another tab is receiving the cookie
	connectFirst               // begin a login at the bank
	stopLoop                   // a login would help, but one has just returned without a token
)

// deny answers r, which met err: with a remedy if there is one, or else with a refusal.
// The route needs scopes.
func (k *Kit) deny(w http.ResponseWriter, r *http.Request, err error, scopes []string) {
	setHeaders(w)
	kind := kindOfRequest(r)
	if k.usable() != nil {
		k.refuse(w, r, kind, err, setting{}, "")
		return
	}
	own := k.ownPath(r)
	switch kind {
	case navigation, formPost, htmxRequest:
	default: // it gets no page, and cannot begin a login
		k.refuse(w, r, kind, err, setting{}, k.loginURL(r, own, err))
		return
	}
	again, back := k.pagesOf(r, kind, own)
	again = k.markRefused(r, again, err)
	in := setting{again: again, sentFrom: kind == formPost, home: k.defaultReturn}
	var asked []string
	var j *jar
	var returned []attemptCookie
	if kind == navigation || kind == htmxRequest {
		asked = k.scopesToAsk(err, scopes)
		connection, _ := k.connection(r) // an error has been met before, and is err
		j = k.attempts.read(r, "")
		returned = j.justReturned(connection, asked)
	}
	switch k.remedyFor(r, err, kind, own != "", len(returned) > 0) {
	case askAgain:
		k.reload(w, r, again, 0)
		return
	case askAgainSoon:
		k.reload(w, r, again, soon())
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
	k.refuse(w, r, kind, err, in, k.loginURL(r, own, err))
}

// remedyFor finds the remedy for err. hasPath says that ownPath has one to reload, and
// straightBack that a login for all the scopes has only just succeeded. The URL counts
// reloads, so they come to an end even without cookies.
func (k *Kit) remedyFor(r *http.Request, err error, kind requestKind, hasPath, straightBack bool) remedy {
	about, reloads := kindOf(err).topic, k.marksOf(r).reloads
	noSession := about == topicConnect || about == topicNoUser
	canReload := kind == navigation && noSession && hasPath
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

// tokenIsGone reports whether the session of r names a token that is not in the store.
// Another tab's login may have stored one under a new name after r's session was loaded.
func (k *Kit) tokenIsGone(r *http.Request) bool {
	if k.keyOf != nil || k.connectionOf != nil {
		return false // a login keeps the name
	}
	who, _ := k.whoseConnection(r, "") // an error names nobody
	if who.storeKey == "" {
		return false
	}
	t, err := k.usableToken(r.Context(), who.storeKey)
	return err == nil && t == nil
}

// scopesToAsk returns the scopes of a login that mends err. They include those granted
// before, because the new token replaces the old one, if the bank takes so many. A token that
// another SDK got may have some for which this kit cannot ask.
func (k *Kit) scopesToAsk(err error, scopes []string) []string {
	var lacks *scopeError
	if errors.As(err, &lacks) {
		granted := slices.DeleteFunc(slices.Clone(lacks.granted), func(scope string) bool {
			return checkScopes("", []string{scope}, k.connector) != nil
		})
		all := union(k.scopes, granted, scopes)
		if len(strings.Join(all, " ")) <= maxScope {
			return all
		}
	}
	return union(k.scopes, scopes)
}

// loginURL returns a path of this site that begins the login that r lacks, or "" if there
// is none. It is r's own path, since the kit does not know where a LoginHandler is
// mounted.
func (k *Kit) loginURL(r *http.Request, own string, err error) string {
	about := kindOf(err).topic
	if about != topicConnect && about != topicScope || r.Method != http.MethodGet || own == "" {
		return ""
	}
	return k.markRefused(r, k.marked(own, returnMark, cmp.Or(k.ownPage(r, "Referer"), k.defaultReturn)), err)
}

// markRefused marks a path, if there is one, when err says that the bank's API refuses the
// live token of r: the path then begins a login as long as this connection is there.
func (k *Kit) markRefused(r *http.Request, path string, err error) string {
	g := grantOf(r.Context(), k)
	if path == "" || g == nil || g.token.Epoch == "" || kindOf(err).topic != topicConnect {
		return path
	}
	return k.marked(path, refusedMark, hash(g.token.Epoch))
}
