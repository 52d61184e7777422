package ganbauth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// begin starts a login: it sets the attempt's cookie and returns the bank's URL. It fails
// if the application does not know its user, or if its configuration is wrong.
//
// The login comes back to returnTo. If it was begun at a LoginHandler, login is that
// handler's path, without return_to.
func (k *Kit) begin(w http.ResponseWriter, r *http.Request, j *jar, returnTo, login string, scopes []string) (string, error) {
	owner, err := k.beginner(r)
	if err != nil {
		return "", err
	}
	connection, err := k.connection(r)
	if err != nil {
		return "", err
	}
	if k.atAnotherHost(r) && k.hostWarned.CompareAndSwap(false, true) {
		k.say(r.Context(), slog.LevelWarn, "ganbauth: a login was begun at another host than RedirectURI's: unless a proxy "+
			"changes Host, the browser will not send its cookie to the callback", "host", r.Host, "redirect_uri", k.redirectURI)
	}
	if returnTo == k.defaultReturn {
		returnTo = ""
	}
	a := &attempt{
		begun:    time.Now(),
		openID:   slices.Contains(scopes, "openid"),
		pkce:     k.pkce,
		seed:     newSeed(),
		owner:    owner,
		returnTo: returnTo,
		login:    login,
		scope:    strings.Join(scopes, " "),

		connection: connection,
	}
	switch k.sentBy(r) {
	case "same-origin":
		a.shorten(maxOwnPath)
	case "none":
		a.shorten(maxOtherPath)
	default:
		a.foreign = true
		a.shorten(maxOtherPath)
	}
	var more []string
	if a.openID {
		more = append(more, "nonce", a.nonce())
	}
	if a.pkce {
		sum := sha256.Sum256([]byte(a.verifier()))
		more = append(more, "code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method", "S256")
	}
	state := k.connector.state(rand.Text())
	authURL, err := k.connector.authorizationURL(state, a.scope, k.redirectURI, more...)
	if err != nil {
		return "", err
	}
	j.put(w, j.cookieName(state), a, len(authURL))
	if k.hasListener() {
		k.event(k.aboutRequest(r, connection), EventLoginStarted, time.Since(a.begun), nil)
	}
	return authURL, nil
}

// callbackQuery is what the bank may say in a callback.
type callbackQuery struct {
	state, code, iss string
	failure          string
	description      string
	hasError, hasIss bool
}

// parseCallback reads a callback's query (RFC 6749 section 4.1.2). No parameter may occur
// twice (section 3.1).
func parseCallback(raw string) (callbackQuery, error) {
	invalid := func(why string) (callbackQuery, error) {
		return callbackQuery{}, fmt.Errorf("%w: %s", ErrInvalidState, why)
	}
	if len(raw) > maxQuery {
		return invalid("the query is too long")
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return invalid("the query is malformed")
	}
	for _, name := range callbackParams {
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
	}
	if q.state == "" || len(q.state) > maxState {
		return invalid("state is missing or too long")
	}
	return q, nil
}

// judge returns an error if the callback q cannot finish its login, which is mine if this
// user began it.
func (k *Kit) judge(q callbackQuery, mine bool) error {
	switch {
	case !mine:
		return fmt.Errorf("%w: another user began this login", ErrInvalidState)
	case q.hasIss && k.connector.issuer != "" && q.iss != k.connector.issuer: // RFC 9207 section 2.4
		return fmt.Errorf("%w: iss is not the bank's", ErrInvalidState)
	case q.hasError && q.failure == "":
		return &AuthorizationError{Code: "unknown_error"}
	case q.hasError:
		return &AuthorizationError{q.failure, q.description}
	case q.code == "" || len(q.code) > maxReceived || !isVisible(q.code, false):
		return fmt.Errorf("%w: code is missing, too long or malformed", ErrInvalidState)
	}
	return nil
}

// connect exchanges the code of a callback, once per attempt, and stores the token. The
// exchange goes on when r ends, and a second delivery of the callback gets its outcome.
func (k *Kit) connect(r *http.Request, a *attempt, q callbackQuery, name string) (*connection, error) {
	who, isNew, err := k.loginOwner(r, a.connection)
	if err != nil {
		return nil, &resumableError{err}
	}
	ctx := k.about(r.Context(), who)
	ran := false // the exchange is this request's, and not one that it has joined
	var begun login
	var turn *turn
	c, err := k.exchanges.do(ctx, name, func(ctx context.Context) (leave func(), err error) {
		if begun, err = k.keeper.beginLogin(ctx, who.storeKey); err == nil {
			if turn, err = k.keeper.guard.enter(ctx, name, forLogin, true); err == nil {
				return turn.leave, nil
			}
			begun.place.leave()
		}
		if isNew { // nobody else knows this key
			go func() { _, _ = k.keeper.drop(ctx, who.storeKey) }()
		}
		return nil, &resumableError{err}
	}, func(ctx context.Context) (*connection, func(), error) {
		ran = true
		c := &connection{owner: who}
		c.attached.Store(!isNew)
		rest, err := k.obtain(ctx, c, begun, name, func(ctx context.Context) (*Token, error) {
			return k.exchange(ctx, a, q.code, turn)
		})
		return c, rest, err
	})
	switch {
	case ctx.Err() != nil:
		return nil, &resumableError{k.keeper.guard.notYet(name, errNotFinished)}
	case err != nil:
		return nil, err
	case !isNew && c.storeKey != who.storeKey:
		// The session has another handle by now, and other connections under it, which it
		// would lose with that.
		k.dropFormer(r.Context(), c.storeKey)
		return nil, fmt.Errorf("%w: another account has been connected since", ErrInvalidState)
	case !ran: // the user may have logged out since
		_, err := k.keeper.load(ctx, c.storeKey)
		if err != nil && !errors.Is(err, ErrLoginRequired) {
			err = &resumableError{err}
		}
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// obtain makes the exchange of a login that has begun, and stores its token, unless a logout
// refuses the login by its name meanwhile. The rest deletes a token that no session will have.
func (k *Kit) obtain(ctx context.Context, c *connection, begun login, name string, exchange func(context.Context) (*Token, error)) (rest func(), err error) {
	err = k.keeper.connect(ctx, c.storeKey, begun, func(ctx context.Context) (*Token, error) {
		t, err := exchange(ctx)
		return t, cmp.Or(err, k.exchanges.refused(name))
	})
	if err == nil || c.attached.Load() {
		return nil, err
	}
	return func() { _, _ = k.keeper.drop(ctx, c.storeKey) }, err // nobody else knows this key
}

// refuseLogins ends logins that this browser has begun: it has their cookies for as long as
// their callbacks take. It returns the owners of the tokens that have come already, which a
// callback may be about to attach to the session. With Key there are none.
func (k *Kit) refuseLogins(logins []attemptCookie) map[owner]bool {
	come := map[owner]bool{}
	for _, a := range logins {
		if c, known := k.exchanges.refuse(a.name, errLoggedOut); known && k.keyOf == nil {
			come[c.owner] = true
		}
	}
	return come
}

var errNotFinished = unavailable("ganbauth: the login is not finished yet")

// exchange spends the code of a callback.
func (k *Kit) exchange(ctx context.Context, a *attempt, code string, turn *turn) (*Token, error) {
	turn.sent()
	answer, err := k.connector.exchange(ctx, k.redirectURI, code, a.verifier(), assumed{scope: a.scope})
	turn.answered(err, time.Time{})
	if err == nil && a.openID {
		return k.connector.identify(answer, a.nonce())
	}
	return answer.token, err
}

// attach gives the session the handle of its new token, and deletes the token of the login
// before.
func (k *Kit) attach(w http.ResponseWriter, r *http.Request, c *connection, a *attempt) error {
	former, err := k.owners.attach(w, r, c.owner, a.owner)
	if err != nil {
		return &resumableError{err}
	}
	c.attached.Store(true)
	if former != "" {
		k.dropFormer(r.Context(), former)
	}
	return nil
}

// dropFormer deletes the token of the login before, which no session has any more. It
// goes on when ctx ends.
func (k *Kit) dropFormer(ctx context.Context, former string) {
	until(ctx, func() {
		if _, err := k.keeper.drop(ctx, former); err != nil {
			k.say(ctx, slog.LevelError, "ganbauth: the token of the login before could not be deleted", "error", err)
		}
	})
}
