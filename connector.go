package ganbauth

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

// AuthMethod is how the client authenticates at the token endpoint. The bank registers a
// client for one method. A Connector uses that one and never tries the other.
type AuthMethod int

const (
	// AuthBasic is client_secret_basic: the id and the secret are in the Authorization
	// header. They are not form-encoded first, because the bank's SDKs do not do it. That
	// is why the id must not contain a colon (RFC 7617 section 2).
	AuthBasic AuthMethod = iota + 1
	// AuthPost is client_secret_post: the id and the secret are in the body of the
	// request.
	AuthPost
)

// The lengths that the bank documents for what it is sent, in bytes.
const (
	maxCredential  = 128
	maxState       = 128
	maxScope       = 256
	maxRedirectURI = 256
)

// requestTimeout bounds a request, from dialing to the last byte of the answer.
const requestTimeout = 30 * time.Second

// Connector speaks the bank's authorization protocol. It is a port of the GanbConnector
// of the bank's SDKs, and knows nothing of sessions or cookies. Make one with
// [NewConnector]: a nil or zero Connector fails. It is immutable and safe for concurrent
// use, and may be copied.
//
// Every request ends after 30 seconds, or after the Timeout of Config.HTTPClient if that
// is shorter. It follows no redirect and sends no cookie. It is sent once, because the
// bank may have processed a request whose answer is lost.
type Connector struct {
	clientID              string
	clientSecret, salt    secret
	method                AuthMethod
	issuer                string
	authURL               *url.URL
	authorize             string // authURL with the parameters that are always the same
	tokenURL, userInfoURL string
	http, api             *http.Client // for the token endpoint, and for everything else
	timeout               time.Duration
}

// NewConnector makes a Connector from the client id and the secret that the bank issued,
// 1 to 128 bytes each, the method that they are registered for, and the bank's
// environment. The error lists everything that is wrong, and contains no secret.
func NewConnector(clientID, clientSecret string, method AuthMethod, cfg Config) (*Connector, error) {
	cfg = cfg.withDefaults()
	errs := []error{
		checkCredential("client id", clientID),
		checkCredential("client secret", clientSecret),
	}
	switch {
	case method != AuthBasic && method != AuthPost:
		errs = append(errs, errors.New("ganbauth: the method must be AuthBasic or AuthPost"))
	case method == AuthBasic && strings.Contains(clientID, ":"):
		errs = append(errs, errors.New("ganbauth: a client id with a colon cannot be sent by AuthBasic"))
	}
	if cfg.Salt == "" {
		errs = append(errs, errors.New("ganbauth: config: Salt is missing"))
	}
	authURL, tokenURL, userInfoURL, err := cfg.endpoints()
	if errs = append(errs, err); errors.Join(errs...) != nil {
		return nil, errors.Join(errs...)
	}
	c := &Connector{
		clientID:     clientID,
		clientSecret: newSecret(clientSecret),
		salt:         newSecret(cfg.Salt),
		method:       method,
		issuer:       cfg.JWTIssuer,
		authURL:      authURL,
		authorize:    withQuery(*authURL, url.Values{"response_type": {"code"}, "client_id": {clientID}}),
		tokenURL:     tokenURL.String(),
		userInfoURL:  userInfoURL.String(),
		timeout:      requestTimeout,
	}
	// Following a redirect would send the code and the secret to another place (307,
	// 308), or take that place's JSON for the bank's answer (301 to 303).
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if lent := cfg.HTTPClient; lent != nil {
		client.Transport = lent.Transport
		if lent.Timeout > 0 {
			c.timeout = min(c.timeout, lent.Timeout)
		}
	}
	forTokens, forAPI := client, client
	if client.Transport == nil {
		// Slow calls of the API must not take the connections that token requests need: the
		// bank would seem to be away.
		forTokens.Transport, forAPI.Transport = defaultTransport(), defaultTransport()
	}
	c.http, c.api = &forTokens, &forAPI
	return c, nil
}

// defaultTransport is net/http's default, with enough connections for a crowd and a limit
// on response headers.
func defaultTransport() http.RoundTripper {
	std, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport // the application has put its own there
	}
	t := std.Clone()
	// net/http keeps 2 idle connections for a host. A crowd that opens more has to dial
	// again and again.
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = 1024, 1024, 1024
	t.MaxResponseHeaderBytes = 64 << 10
	return t
}

// checkCredential checks a client id or a secret, which it does not quote.
func checkCredential(what, s string) error {
	switch {
	case strings.TrimSpace(s) == "":
		return fmt.Errorf("ganbauth: the %s is empty", what)
	case len(s) > maxCredential:
		return fmt.Errorf("ganbauth: the %s is longer than %d characters", what, maxCredential)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("ganbauth: the %s contains a control character", what)
	}
	return nil
}

// Format implements [fmt.Formatter]. It shows the URL of the consent page and no secret,
// whatever the verb.
func (c Connector) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "ganbauth.Connector(%s)", c.authURL) }

// usable fails for a Connector that NewConnector did not make.
func (c *Connector) usable() error {
	if c == nil || c.http == nil {
		return errNoConnector
	}
	return nil
}

// deriveKey derives a 32-byte key for one purpose from the client secret and the salt, so
// that all instances of an application have the same one.
func (c *Connector) deriveKey(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, []byte(c.clientSecret.reveal()), []byte(c.salt.reveal()), purpose, 32)
}

// OAuthAuthorization returns the URL of the page that asks the user for consent (RFC 6749
// section 4.1.1). Its state is the lowercase hex SHA-256 of sessionID and the salt, as in
// the bank's SDKs. Use a new sessionID for every attempt, or its state can be replayed.
//
// It fails if sessionID is empty, or if scope or redirectURI does not have 1 to 256
// bytes.
func (c *Connector) OAuthAuthorization(sessionID, scope, redirectURI string) (string, error) {
	return c.authorization(sessionID, scope, redirectURI)
}

// OpenIDAuthorization is [Connector.OAuthAuthorization] for OpenID Connect (Core section
// 3.1.2.1). The scope should contain openid. The URL has a random nonce of 128 bits,
// which is returned as well: keep it for [Connector.OpenIDToken]. Without a JWTIssuer in
// its Config it fails.
func (c *Connector) OpenIDAuthorization(sessionID, scope, redirectURI string) (authURL, nonce string, err error) {
	if err := c.usable(); err != nil {
		return "", "", err
	}
	if c.issuer == "" {
		return "", "", errNoIssuer
	}
	nonce = rand.Text()
	authURL, err = c.authorization(sessionID, scope, redirectURI, "nonce", nonce)
	if err != nil {
		return "", "", err
	}
	return authURL, nonce, nil
}

var errNoIssuer = errors.New("ganbauth: config: OpenID Connect needs JWTIssuer")

// authorization is authorizationURL with the state of sessionID.
func (c *Connector) authorization(sessionID, scope, redirectURI string, more ...string) (string, error) {
	if err := c.usable(); err != nil {
		return "", err
	}
	if sessionID == "" {
		return "", errors.New("ganbauth: authorization: the session id is empty")
	}
	return c.authorizationURL(c.state(sessionID), scope, redirectURI, more...)
}

// state returns the state that the bank's SDKs send for sessionID.
func (c *Connector) state(sessionID string) string {
	sum := sha256.Sum256([]byte(sessionID + c.salt.reveal()))
	return hex.EncodeToString(sum[:])
}

// authorizationURL returns the URL of the consent page, with more parameters, given as
// names and values in turn. A query in AuthPath is kept.
func (c *Connector) authorizationURL(state, scope, redirectURI string, more ...string) (string, error) {
	err := errors.Join(checkLength("scope", scope, maxScope), checkLength("redirect_uri", redirectURI, maxRedirectURI))
	if err != nil {
		return "", err
	}
	u := make([]byte, 0, 1<<10)
	u = append(u, c.authorize...)
	params := append([]string{"scope", scope, "state", state, "redirect_uri", redirectURI}, more...)
	for i := 0; i < len(params); i += 2 { // url.Values takes several times as long
		u = append(u, '&')
		u = append(u, params[i]...)
		u = append(u, '=')
		u = append(u, url.QueryEscape(params[i+1])...)
	}
	return string(u), nil
}

// withQuery returns u with more parameters.
func withQuery(u url.URL, more url.Values) string {
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += more.Encode()
	return u.String()
}

func checkLength(what, s string, limit int) error {
	if s == "" || len(s) > limit {
		return fmt.Errorf("ganbauth: authorization: %s must have 1 to %d characters, not %d", what, limit, len(s))
	}
	return nil
}

// OAuthToken exchanges the code of a callback for a token (RFC 6749 section 4.1.3). An ID
// token in the answer is ignored. Without expires_in the token lives for an hour. It
// fails with a [*TokenError], [ErrTokenFormat] or [ErrTokenValue]. A code works once: do
// not call it again with the same one.
func (c *Connector) OAuthToken(ctx context.Context, redirectURI, code string) (*Token, error) {
	answer, err := c.exchange(ctx, redirectURI, code, "", assumed{})
	return answer.token, err
}

// OpenIDToken is [Connector.OAuthToken] for OpenID Connect. The answer must have an ID
// token that passes Core section 3.1.3.7 with the nonce that
// [Connector.OpenIDAuthorization] returned. Otherwise nothing of the answer is returned,
// and the error is [ErrTokenFormat] or [ErrInvalidIDToken]. Without a nonce or a
// JWTIssuer it fails before the code is sent.
func (c *Connector) OpenIDToken(ctx context.Context, redirectURI, code, nonce string) (*Token, error) {
	switch {
	case c.usable() != nil:
		return nil, errNoConnector
	case c.issuer == "":
		return nil, errNoIssuer
	case nonce == "":
		return nil, invalidIDToken("the login had no nonce")
	}
	answer, err := c.exchange(ctx, redirectURI, code, "", assumed{})
	if err != nil {
		return nil, err
	}
	return c.identify(answer, nonce)
}

func (c *Connector) idTokens() idTokenVerifier {
	return idTokenVerifier{c.issuer, c.clientID, c.clientSecret}
}

// identify completes a login's token with its ID token.
func (c *Connector) identify(answer tokenAnswer, nonce string) (*Token, error) {
	claims, err := c.idTokens().verify(answer.idToken, answer.token.AccessToken, time.Now())
	if err == nil {
		err = claims.checkLogin(nonce)
	}
	if err != nil {
		return nil, err
	}
	t := answer.token
	t.IDToken, t.Subject = answer.idToken, claims.Subject
	return t, nil
}

// exchange sends the code of a login, with its PKCE verifier if there is one.
func (c *Connector) exchange(ctx context.Context, redirectURI, code, verifier string, a assumed) (tokenAnswer, error) {
	form := url.Values{
		"grant_type":   {"authorization_code"},
		"code":         {code},
		"redirect_uri": {redirectURI},
	}
	if verifier != "" {
		form.Set("code_verifier", verifier)
	}
	r, err := c.requestToken(ctx, form)
	if err != nil {
		return tokenAnswer{}, err
	}
	return parseToken(r, a)
}

// RefreshTokens spends a refresh token (RFC 6749 section 6). If the answer has no
// refresh_token, the returned Token has refreshToken again. An ID token in the answer is
// verified as far as that can be done without the login's ID token, for which see
// [Connector.RefreshSession]. Without a JWTIssuer it is ignored.
//
// The bank may have spent the refresh token even if RefreshTokens fails:
//
//   - If [SalvagedRefreshToken] returns the next one, store it in place of the old one.
//   - Otherwise, if the error is a [*TokenError] that is Temporary, try again later.
//   - Otherwise the user has to connect again.
func (c *Connector) RefreshTokens(ctx context.Context, refreshToken string) (*Token, error) {
	answer, err := c.refresh(ctx, assumed{refreshToken: refreshToken})
	if err != nil {
		return nil, err
	}
	t := answer.token
	if answer.idToken == "" || c.issuer == "" {
		return t, nil
	}
	claims, err := c.idTokens().verify(answer.idToken, t.AccessToken, time.Now())
	if err != nil {
		return nil, answer.salvage(refreshToken, err)
	}
	t.IDToken, t.Subject = answer.idToken, claims.Subject
	return t, nil
}

// refresh spends a refresh token. If only the next refresh token of the answer can be
// used, the error is a salvagedError.
func (c *Connector) refresh(ctx context.Context, a assumed) (tokenAnswer, error) {
	if a.refreshToken == "" {
		return tokenAnswer{}, fmt.Errorf("%w: there is no refresh token", ErrLoginRequired)
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.refreshToken}}
	r, err := c.requestToken(ctx, form)
	if err != nil {
		return tokenAnswer{}, r.salvage(err)
	}
	answer, err := parseToken(r, a)
	if err != nil {
		return tokenAnswer{}, r.salvage(err)
	}
	return answer, nil
}

// RefreshSession refreshes token if apiErr is nil or an [*APIError] that is Expired. For
// any other apiErr it returns [ErrTokenNotExpired], which wraps apiErr, and sends
// nothing.
//
// The returned Token keeps the IDToken and the Subject of token. Scopes beyond those of
// token, if it has any, are dropped (RFC 6749 section 6). An ID token in the answer must
// verify and agree with the login (OpenID Connect Core section 12.2). If it does not, the
// error is [ErrInvalidIDToken]. It is ignored if token has neither IDToken nor Subject,
// and if the Config has no JWTIssuer.
//
// RefreshSession does not change token. After an error do as [Connector.RefreshTokens]
// says. If the bank has answered for another user, there is no salvaged refresh token.
func (c *Connector) RefreshSession(ctx context.Context, token *Token, apiErr error) (*Token, error) {
	var e *APIError
	if apiErr != nil && !(errors.As(apiErr, &e) && e != nil && e.Expired()) {
		return nil, fmt.Errorf("%w: %w", ErrTokenNotExpired, apiErr)
	}
	return c.renew(ctx, token)
}

// renew refreshes old. The error is errOtherSubject if the bank answered for another
// user, and a salvagedError if only the next refresh token can be used.
func (c *Connector) renew(ctx context.Context, old *Token) (*Token, error) {
	if old == nil {
		return nil, ErrLoginRequired
	}
	answer, err := c.refresh(ctx, assumed{old.Scope, old.RefreshToken})
	if err != nil {
		return nil, err
	}
	switch err := c.checkUser(old, answer); {
	case errors.Is(err, errOtherSubject):
		return nil, err
	case err != nil:
		return nil, answer.salvage(old.RefreshToken, err)
	}
	t := answer.token
	if old.Scope != "" {
		beyond := func(s string) bool { return !old.HasScope(s) }
		t.Scope = strings.Join(slices.DeleteFunc(strings.Fields(t.Scope), beyond), " ")
	}
	t.IDToken, t.Subject, t.Epoch = old.IDToken, old.Subject, old.Epoch
	return t, nil
}

// checkUser compares the user of a refresh's ID token with the user of old, if both are
// known.
func (c *Connector) checkUser(old *Token, answer tokenAnswer) error {
	unknown := old.IDToken == "" && old.Subject == ""
	if answer.idToken == "" || unknown || c.issuer == "" {
		return nil
	}
	claims, err := c.idTokens().verify(answer.idToken, answer.token.AccessToken, time.Now())
	switch {
	case err != nil:
		return err
	case old.IDToken != "":
		return claims.checkRefresh(old.IDToken)
	case claims.Subject != old.Subject:
		return errOtherSubject
	}
	return nil
}

// UserInfo fetches the claims about the user (OpenID Connect Core section 5.3). Numbers
// are float64. The sub of the answer must be the token's Subject, and its iss, if there
// is one, the JWTIssuer. Otherwise, and for a token without a Subject, the error is
// [ErrInvalidIDToken]. A refusal is an [*APIError], and an answer that is not a JSON
// object is [ErrTokenValue].
func (c *Connector) UserInfo(ctx context.Context, token *Token) (map[string]any, error) {
	if token == nil || token.Subject == "" {
		return nil, fmt.Errorf("%w: userinfo: the token has no subject to compare with", ErrInvalidIDToken)
	}
	body, err := c.fetchUserInfo(ctx, token.AccessToken)
	if err != nil {
		return nil, err
	}
	o, err := parseObject(body)
	if err != nil {
		return nil, fmt.Errorf("%w: userinfo: %w", ErrTokenValue, err)
	}
	sub, _, err1 := member[string](o, "sub")
	iss, hasIssuer, err2 := member[string](o, "iss")
	switch {
	case errors.Join(err1, err2) != nil:
		return nil, fmt.Errorf("%w: userinfo: %w", ErrInvalidIDToken, errors.Join(err1, err2))
	case sub != token.Subject:
		return nil, fmt.Errorf("%w: userinfo: sub is not the token's", ErrInvalidIDToken)
	case hasIssuer && iss != c.issuer:
		return nil, fmt.Errorf("%w: userinfo: %s", ErrInvalidIDToken, gotWant("iss", iss, c.issuer))
	}
	claims := map[string]any{}
	for name, raw := range o {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("%w: userinfo", ErrTokenValue)
		}
		claims[name] = v
	}
	return claims, nil
}

// fetchUserInfo sends a userinfo request and returns the body of its answer.
func (c *Connector) fetchUserInfo(ctx context.Context, accessToken string) ([]byte, error) {
	if err := c.usable(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.userInfoURL, nil)
	if err != nil {
		return nil, fmt.Errorf("ganbauth: userinfo: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+accessToken)
	req.Header.Set("Accept", "application/json")
	resp, err := c.api.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ganbauth: userinfo: %w", &cutError{err})
	}
	defer resp.Body.Close()
	if err := CheckResponse(resp); err != nil {
		return nil, err
	}
	body, err := readBody(resp)
	if err != nil {
		return nil, fmt.Errorf("ganbauth: userinfo: %w", err)
	}
	return body, nil
}

// requestToken sends one token request. With an error, what has arrived of an answer of
// 2xx is returned as well: it may have the next refresh token.
func (c *Connector) requestToken(ctx context.Context, form url.Values) (r tokenResponse, err error) {
	if err := c.usable(); err != nil {
		return tokenResponse{}, err
	}
	ctx, cancel := context.WithTimeout(untraced{ctx}, c.timeout)
	defer cancel()
	if c.method == AuthPost {
		form.Set("client_id", c.clientID)
		form.Set("client_secret", c.clientSecret.reveal())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.tokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return tokenResponse{}, &TokenError{err: err}
	}
	if c.method == AuthBasic {
		req.SetBasicAuth(c.clientID, c.clientSecret.reveal())
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")

	r.asked = time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return tokenResponse{}, &TokenError{err: err}
	}
	defer resp.Body.Close()
	if !isSuccess(resp.StatusCode) {
		return tokenResponse{}, tokenError(resp)
	}
	r.status, r.contentType = resp.StatusCode, resp.Header.Get("Content-Type")
	r.body, err = readBody(resp)
	if err != nil && !errors.Is(err, ErrTokenValue) {
		err = &TokenError{err: err}
	}
	return r, err
}

// untraced is a context without the trace of package httptrace that the application may
// have put there: it would be told the client secret, header by header. A trace that the
// lent Transport makes is its own affair.
type untraced struct{ context.Context }

func (c untraced) Value(key any) any {
	if key == traceKey {
		return nil
	}
	return c.Context.Value(key)
}

// traceKey is the key of a trace, which package httptrace does not export.
var traceKey = func() any {
	var asked keyCatcher
	httptrace.ContextClientTrace(&asked)
	return asked.key
}()

// keyCatcher remembers what it was asked for last.
type keyCatcher struct {
	context.Context
	key any
}

func (c *keyCatcher) Value(key any) any {
	c.key = key
	return nil
}
