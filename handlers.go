package ganbauth

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// LoginHandler sends the browser to the bank's consent page (303). It asks for
// Options.Scopes and for scopes, so a second one can serve a link such as "Allow
// transfers, too". The token that the login brings has these scopes and no others,
// whatever was granted before.
//
// The query parameter return_to names the path to come back to; the default is
// DefaultReturn. The path is remembered up to 1,024 characters if a page of this site led
// here, and up to 256 if the user or another site did. If RedirectURI, the scopes and
// Connection are all about as long as they may be, there is less room than 1,024. Nothing
// else in the request changes what is asked for.
//
// It allows GET only. HTMX gets HX-Redirect. What is no navigation of a window is refused
// with 403: fetch(), a frame, a prefetch. If a scope is malformed, or all of them are
// longer than 256 characters together, LoginHandler logs an error, once, and the handler
// answers every request with 500.
func (k *Kit) LoginHandler(scopes ...string) http.Handler {
	wanted, fault := k.wanted("LoginHandler", scopes)
	return k.handler(http.MethodGet, func(w http.ResponseWriter, r *http.Request) error {
		if fault != nil {
			return fault
		}
		kind := kindOfRequest(r)
		if err := checkNavigation(kind); err != nil {
			return err
		}
		again := k.ownPath(r)
		returnTo := k.returnPath(r, again)
		if pathOf(returnTo) == pathOf(again) {
			return errReturnsToLogin // each login would begin another
		}
		if again != "" && k.cookieStayedBehind(r) { // Connection may read the session, and the login is the session's
			k.reload(w, r, again, 0)
			return nil
		}
		target, err := k.begin(w, r, k.attempts.read(r, ""), returnTo, withoutReturn(again), wanted)
		if err != nil {
			return &loginError{err: err, again: again}
		}
		redirect(w, target, kind == htmxRequest)
		return nil
	})
}

var errReturnsToLogin = fault("DefaultReturn is the path of a LoginHandler")

// wanted returns the scopes of a login that asks for these besides Options.Scopes. If no
// login can ask for them, the fault says why, and is logged.
func (k *Kit) wanted(by string, scopes []string) (all []string, fault error) {
	if k.usable() != nil {
		return nil, nil
	}
	all = union(k.scopes, scopes)
	if fault = checkScopes(by+": scopes", all, k.connector); fault != nil {
		k.log.Error("ganbauth: this "+by+" can begin no login", "error", fault)
	}
	return all, fault
}

// CallbackHandler finishes a login. Mount it at RedirectURI. It exchanges the code, saves
// the token, renews the session's token, and redirects (303) to the path that the login
// was begun for.
//
// A callback of a login that this browser did not begin changes nothing. Otherwise the
// login is over, whatever the outcome, except where something was away: then the same
// callback may succeed later. A second delivery, by reload or the back button, goes to
// DefaultReturn if the user is connected by then. One process exchanges a code once, even
// if callbacks arrive at once.
//
// If the session's cookie may have stayed behind because the bank's site led here, the
// answer is a page that loads the callback again from this site.
//
// It allows GET only. A login that fails is told to Options.OnError: as
// [ErrInvalidState], an [*AuthorizationError] or what [Connector.OpenIDToken] returns, as
// [ErrUnavailable] where something was away, and as [ErrLoginRequired] if the user has
// logged out meanwhile.
func (k *Kit) CallbackHandler() http.Handler {
	return k.handler(http.MethodGet, func(w http.ResponseWriter, r *http.Request) error {
		if err := checkNavigation(kindOfRequest(r)); err != nil {
			return err
		}
		start := time.Now()
		err := k.serveCallback(w, r, start)
		if err != nil {
			k.event(k.aboutError(r, err), EventLoginFailed, time.Since(start), err)
		}
		return err
	})
}

// callback is a callback of an attempt that this browser has.
type callback struct {
	start   time.Time
	query   callbackQuery
	name    string // of the attempt's cookie
	jar     *jar
	attempt *attempt
}

// callbackCase says what has become of the login that a callback belongs to.
type callbackCase int

const (
	callbackDue      callbackCase = iota // its code can be exchanged
	callbackForeign                      // another user or another session began it
	callbackRepeated                     // it is over, and the user is connected
	callbackOver                         // it is over, and the user is not connected
	callbackLate                         // it was begun too long ago
)

// judgeCallback finds the case of a callback of attempt a. It changes nothing.
func (k *Kit) judgeCallback(r *http.Request, a *attempt) (callbackCase, error) {
	switch {
	case !a.done.IsZero():
		t, err := k.peek(r, a.connection)
		if t == nil {
			return callbackOver, err
		}
		return callbackRepeated, nil
	case a.expired():
		return callbackLate, nil
	}
	mine, err := k.began(r, a.owner)
	if !mine {
		return callbackForeign, err
	}
	return callbackDue, nil
}

// serveCallback answers one callback. A callback that would be refused for lack of a
// session is reloaded first, because the session's cookie may come with the next request.
func (k *Kit) serveCallback(w http.ResponseWriter, r *http.Request, start time.Time) error {
	q, err := parseCallback(r.URL.RawQuery)
	if err != nil {
		return err
	}
	name := k.attempts.cookieName(q.state)
	c := callback{start: start, query: q, name: name, jar: k.attempts.read(r, name)}
	if c.attempt = c.jar.find(name); c.attempt == nil {
		return fmt.Errorf("%w: this browser did not begin this login, or too long ago", ErrInvalidState)
	}
	if k.cookieStayedBehind(r) && k.marksOf(r).reloads == 0 {
		k.reloadCallback(w, r, 0)
		return nil
	}
	found, err := k.judgeCallback(r, c.attempt)
	if err != nil {
		return k.loginFailed(r, c, err)
	}
	if found == callbackForeign || found == callbackOver {
		if pause, ok := k.sessionMayCome(r); ok {
			k.reloadCallback(w, r, pause)
			return nil
		}
	}
	switch found {
	case callbackRepeated:
		redirect(w, k.defaultReturn, false)
		return nil
	case callbackOver:
		return k.loginFailed(r, c, fmt.Errorf("%w: this login is over", ErrInvalidState))
	case callbackLate:
		c.jar.forget(w, name)
		return k.loginFailed(r, c, errAttemptExpired)
	}
	return k.finishLogin(w, r, c, found == callbackDue)
}

// finishLogin exchanges the code and gives the session its token. The attempt is
// consumed, unless the callback may be delivered again: because nobody waits for the
// answer, or because something was away. Then a reload gets the outcome.
func (k *Kit) finishLogin(w http.ResponseWriter, r *http.Request, c callback, mine bool) error {
	k.attaching.Add(1)
	defer k.attaching.Add(-1)
	err := k.judge(c.query, mine)
	var connected *connection
	if err == nil {
		connected, err = k.connect(r, c.attempt, c.query, c.name)
	}
	switch {
	case errors.Is(r.Context().Err(), context.Canceled): // a new session cookie would be lost
		err = &resumableError{cmp.Or(err, errNotFinished)}
	case err == nil:
		err = k.attach(w, r, connected, c.attempt)
	}
	if errors.Is(err, errRenewedSince) && k.marksOf(r).reloads < maxReloads {
		k.reloadCallback(w, r, soon()) // the new cookie is on its way
		return nil
	}
	if errors.As(err, new(*resumableError)) {
		return k.loginFailed(r, c, err)
	}
	returnTo := cmp.Or(c.attempt.returnTo, k.defaultReturn)
	c.jar.put(w, c.name, c.attempt.finished(err), len(returnTo))
	if err != nil {
		return k.loginFailed(r, c, err)
	}
	if !connected.told.Swap(true) { // by another delivery
		k.event(k.about(r.Context(), connected.owner), EventLoginSucceeded, time.Since(c.start), nil)
	}
	redirect(w, returnTo, false)
	return nil
}

// sessionMayCome reports whether to reload a callback that lacks its session, and after
// which pause. The URL counts reloads, so they come to an end.
func (k *Kit) sessionMayCome(r *http.Request) (pause time.Duration, ok bool) {
	switch reloads := k.marksOf(r).reloads; {
	case reloads == 0 && k.keyOf != nil: // the application's own cookie may be a Strict one
		return 0, true
	case reloads < maxReloads && k.sessionIsGone(r):
		return soon(), true
	}
	return 0, false
}

// reloadCallback makes the browser request this callback again, from this site.
func (k *Kit) reloadCallback(w http.ResponseWriter, r *http.Request, pause time.Duration) {
	query, _ := k.cutMarks(r.URL.RawQuery)
	here := url.URL{Path: k.redirect.Path, RawPath: k.redirect.RawPath, RawQuery: escapeRest(query)}
	k.reload(w, r, here.String(), pause)
}

// loginFailed adds to err where to begin again, and whether the user is connected.
func (k *Kit) loginFailed(r *http.Request, c callback, err error) error {
	t, _ := k.peek(r, c.attempt.connection)
	return &loginError{err, c.attempt.retry(), c.attempt.connection, t != nil}
}

// LogoutHandler forgets the user's token and the logins that this browser has begun, and
// redirects (303) to the path in the query parameter return_to, or to DefaultReturn. A
// session with nothing else in it is destroyed; another keeps the application's values
// and gets a new token. POST only, and not from another origin
// ([http.CrossOriginProtection]) than this site's or RedirectURI's. The bank documents no
// way to revoke a token.
//
// It waits neither for the bank nor for a refresh. When it has answered, the user is
// disconnected and stays so; if the store does not answer for ten seconds, it answers
// 503.
func (k *Kit) LogoutHandler() http.Handler {
	return k.handler(http.MethodPost, func(w http.ResponseWriter, r *http.Request) error {
		if err := k.checkOrigin(r); err != nil {
			return err
		}
		returnTo := k.returnPath(r, k.ownPath(r))
		if err := k.Forget(w, r); err != nil {
			return err
		}
		redirect(w, returnTo, kindOfRequest(r) == htmxRequest)
		return nil
	})
}

// Forget is what the application's own logout calls, before it writes an answer and before
// sessions.Destroy, after which nothing says whose token it was: it forgets the request's
// token, the logins that this browser has begun, and what the kit has in the session. It is
// LogoutHandler without the checks and the redirect. It is no error if nobody is
// connected. The error has the [StatusCode] 503 if the store does not answer, and 500 if
// Key or Connection fails.
//
// With Options.Key the token is the user's and not the session's: it serves jobs and
// KeepAlive while the user is logged out. Call Forget only if the logout is to disconnect
// the bank account, too.
//
// If the request names a connection (Options.Connection), the token and the logins of that
// one are forgotten, and those of the others stay.
//
// Without Options.Key, an application that ends a login of its own by RenewToken and Remove
// must call Forget: otherwise the next user of that session has the former user's bank
// account. If the session has several connections, a request that names none forgets all of
// them, up to the sixteen newest.
func (k *Kit) Forget(w http.ResponseWriter, r *http.Request) error {
	if err := k.usable(); err != nil {
		return err
	}
	start := time.Now()
	connection, err := k.connection(r)
	var who owner
	if err == nil {
		who, err = k.whoseConnection(r, connection)
	}
	if err != nil && !errors.Is(err, ErrNoUser) {
		return err
	}
	logins := k.attempts.read(r, "").removeOf(w, connection)
	gone := k.refuseLogins(logins)
	if who.storeKey != "" {
		gone[who] = true
	}
	if connection == "" {
		all, err := k.all(r, logins)
		if err != nil {
			return err
		}
		for _, who := range all {
			gone[who] = true
		}
	}
	if err := k.dropAll(r.Context(), gone, start); err != nil {
		return err
	}
	return k.detach(w, r, connection, logins)
}

// dropAll is a logout of several owners, which began at start. Each may take ten seconds, so
// they do not wait for each other.
func (k *Kit) dropAll(ctx context.Context, gone map[owner]bool, start time.Time) (err error) {
	var mu sync.Mutex
	var under sync.WaitGroup
	for who := range gone {
		under.Go(func() {
			was, dropErr := k.keeper.drop(ctx, who.storeKey)
			if was {
				k.event(k.about(ctx, who), EventLogout, time.Since(start), nil)
			}
			mu.Lock()
			defer mu.Unlock()
			err = cmp.Or(err, dropErr)
		})
	}
	under.Wait()
	return err
}

// Status says whether the user of a request is connected.
type Status struct {
	// Connected is true if there is a token that is live or can be refreshed.
	Connected bool `json:"connected"`
	// Scopes are those that the user has granted. They are empty without a connection.
	Scopes []string `json:"scopes"`
	// ExpiresAt is when the access token expires, in UTC and whole seconds. It is zero
	// without a connection. The connection lasts for longer if the token can be
	// refreshed.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// Status tells whether the user of r is connected. It goes by what the store has: it
// refreshes nothing and sends the bank no request. It is no error if nobody is connected,
// or nobody is logged in to the application. The error has the [StatusCode] 503 if the
// store or the session cannot be read, and 500 if Key or Connection fails.
func (k *Kit) Status(r *http.Request) (Status, error) {
	none := Status{Scopes: []string{}}
	if err := k.usable(); err != nil {
		return none, err
	}
	connection, err := k.connection(r)
	if errors.Is(err, ErrNoUser) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	t, err := k.peek(r, connection)
	if t == nil {
		return none, err
	}
	return Status{true, strings.Fields(t.Scope), t.ExpiresAt}, nil
}

// StatusHandler answers with the [Status] of the request's user as JSON:
//
//	{"connected": true, "scopes": ["openid"], "expires_at": "2026-01-02T15:04:05Z"}
//
// It is for a front end, and never shows or refreshes a token. GET and HEAD only.
func (k *Kit) StatusHandler() http.Handler {
	return k.handler(http.MethodGet+", "+http.MethodHead, func(w http.ResponseWriter, r *http.Request) error {
		status, err := k.Status(r)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		return json.NewEncoder(w).Encode(status)
	})
}

// peek returns the token of the user of r for that connection, if it is live or can be
// refreshed, and nil if there is none. It refreshes nothing.
func (k *Kit) peek(r *http.Request, connection string) (*Token, error) {
	who, err := k.whoseConnection(r, connection)
	if errors.Is(err, ErrNoUser) || err == nil && who.storeKey == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return k.usableToken(r.Context(), who.storeKey)
}

// usableToken returns the token under a key of the store, if it is live or can be refreshed,
// and nil if there is none.
func (k *Kit) usableToken(ctx context.Context, storeKey string) (*Token, error) {
	t, err := k.keeper.load(ctx, storeKey)
	if errors.Is(err, ErrLoginRequired) || err == nil && !t.Valid() && t.RefreshToken == "" {
		return nil, nil
	}
	return t, err
}

// endpoint is one of a Kit's own handlers. It does what they have in common: methods,
// headers and refusals. RequireToken recognizes them by this type.
type endpoint struct {
	kit     *Kit
	methods string
	serve   func(http.ResponseWriter, *http.Request) error
}

func (k *Kit) handler(methods string, serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return &endpoint{k, methods, serve}
}

// errTooLong ends the context of a request that has waited for maxWait.
var errTooLong = unavailable("ganbauth: the request has waited for too long: %w", context.DeadlineExceeded)

// ServeHTTP checks the method, and answers the error that the handler returns. Whatever the
// handler waits for has maxWait, all of it together.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeaders(w)
	err := e.kit.usable()
	if err != nil {
		e.kit.refuse(w, r, kindOfRequest(r), err, setting{}, "")
		return
	}
	if slices.Contains(strings.Split(e.methods, ", "), r.Method) {
		ctx, cancel := context.WithTimeoutCause(r.Context(), maxWait, errTooLong)
		defer cancel()
		err = e.serve(w, r.WithContext(ctx))
	} else {
		w.Header().Set("Allow", e.methods)
		err = &refusal{http.StatusMethodNotAllowed, "the method is not allowed"}
	}
	if err != nil {
		e.kit.refuse(w, r, kindOfRequest(r), err, e.settingOf(err), "")
	}
}

// settingOf returns the setting of a page about err, which may be that of a login.
func (e *endpoint) settingOf(err error) setting {
	in := setting{home: e.kit.defaultReturn}
	var login *loginError
	if errors.As(err, &login) {
		in.doing, in.again = connecting, login.again
		if login.connected {
			in.doing = reconnecting
		}
	}
	return in
}

// loginError is the error of a login, with what its page says in addition.
type loginError struct {
	err        error
	again      string // where the login can be begun again, or ""
	connection string // which of the user's it was for
	connected  bool   // the user has that connection, which goes on as it was
}

func (e *loginError) Error() string { return e.err.Error() }

func (e *loginError) Unwrap() error { return e.err }

// refuse logs err, and answers it by OnError or, without one, by itself.
func (k *Kit) refuse(w http.ResponseWriter, r *http.Request, kind requestKind, err error, in setting, loginURL string) {
	setErrorHeaders(w, err)
	if k.usable() == nil {
		k.logRefusal(r, err)
	}
	if k.usable() != nil || k.onError == nil || k.ownAnswer(r) != nil {
		k.answer(w, r, kind, err, in, loginURL)
		return
	}
	own := ownAnswer(func(w http.ResponseWriter, err error) { k.answer(w, r, kind, err, in, loginURL) })
	ctx := context.WithValue(r.Context(), ownAnswerKey{k}, own)
	k.onError(w, r.WithContext(k.aboutError(r.WithContext(ctx), err)), err)
}

// aboutError is aboutRequest for an error of r: a callback does not name the connection, and
// the error of its login does.
func (k *Kit) aboutError(r *http.Request, err error) context.Context {
	connection := ""
	if login := (*loginError)(nil); errors.As(err, &login) {
		connection = login.connection
	}
	if connection == "" {
		if connection, err = k.connection(r); err != nil {
			return k.about(r.Context(), owner{})
		}
	}
	return k.aboutRequest(r, connection)
}

// ownAnswer is what the kit would answer without OnError, which may leave an error to it.
type ownAnswer func(http.ResponseWriter, error)

type ownAnswerKey struct{ kit *Kit }

// ownAnswer returns the kit's own answer to r, if OnError is answering it, or nil.
func (k *Kit) ownAnswer(r *http.Request) ownAnswer {
	own, _ := r.Context().Value(ownAnswerKey{k}).(ownAnswer)
	return own
}

// answer answers err with a page for a person and with problem details for every other kind
// of request. It finds the words and leaves the writing to others.
func (k *Kit) answer(w http.ResponseWriter, r *http.Request, kind requestKind, err error, in setting, loginURL string) {
	page := newErrorPage(err, in, prefersJapanese(r.Header))
	switch kind {
	case navigation, formPost:
		k.writeErrorPage(w, r, page)
	default:
		writeProblem(w, page, loginURL)
	}
}

// writeErrorPage writes page with the application's template or, if there is none or it
// fails, with the kit's own.
func (k *Kit) writeErrorPage(w http.ResponseWriter, r *http.Request, page ErrorPage) {
	if k.usable() == nil && k.errorPage != nil {
		err := writePage(w, k.errorPage, page)
		if err == nil {
			return
		}
		k.say(r.Context(), slog.LevelError, "ganbauth: Options.ErrorPage failed", "error", err)
	}
	writeOwnPage(w, page)
}

// logRefusal logs an answer that an operator should see. It is silent about the token
// endpoint, because an event told of that once, and not for each request.
func (k *Kit) logRefusal(r *http.Request, err error) {
	status := StatusCode(err)
	if status < 500 || errors.As(err, new(*TokenError)) || r.Context().Err() != nil {
		return
	}
	k.say(r.Context(), slog.LevelWarn, "ganbauth: refused", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
}
