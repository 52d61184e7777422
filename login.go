package ganbauth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// begin starts a login: it sets the attempt's cookie and returns the bank's URL. The error says that
// the application does not know its user, or that the configuration is wrong.
//
// The login returns to returnTo. If it was begun at a LoginHandler, login is that handler's path.
func (k *Kit) begin(w http.ResponseWriter, r *http.Request, j *jar, returnTo, login string, scopes []string) (string, error) {
	owner, err := k.owner(r)
	if err != nil {
		return "", err
	}
	if k.atAnotherHost(r) && k.hostWarned.CompareAndSwap(false, true) {
		k.log.WarnContext(r.Context(), "ganbauth: a login was begun at another host than RedirectURI's: unless a proxy "+
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
	more := url.Values{}
	if a.openID {
		more.Set("nonce", a.nonce())
	}
	if a.pkce {
		sum := sha256.Sum256([]byte(a.verifier()))
		more.Set("code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]))
		more.Set("code_challenge_method", "S256")
	}
	sessionID := rand.Text()
	authURL, err := k.connector.authorizationURL(sessionID, a.scope, k.redirectURI, more)
	if err != nil {
		return "", err
	}
	j.put(w, j.cookieName(k.connector.state(sessionID)), a, len(authURL))
	k.event(r.Context(), EventLoginStarted, a.begun, nil)
	return authURL, nil
}

// callbackQuery is what the bank may say in a callback.
type callbackQuery struct {
	state, code, iss string
	failure          string
	description      string
	hasError, hasIss bool
}

const maxCallbackQuery = 16 << 10

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
		answer, err := k.connector.exchange(ctx, k.redirectURI, q.code, a.verifier(),
			assumed{scope: a.scope})
		t := answer.token
		if err == nil && a.openID {
			t, err = k.connector.identify(answer, a.nonce())
		}
		if err != nil {
			return "", err
		}
		return key, k.keeper.put(ctx, key, t)
	})
}
