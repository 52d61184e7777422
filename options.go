package ganbauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Options configure a [Kit]. RedirectURI and Scopes are required; the zero value of every
// other field is the right default. [New] copies them.
type Options struct {
	// Required.

	// RedirectURI is where CallbackHandler is mounted, as registered with the bank, which
	// compares it exactly: https (http only on a loopback address), at most 256 characters,
	// without a fragment, and without the parameters that the bank adds, such as state. Its
	// path is as browsers write it, percent-encoded and without empty and dot segments, and
	// is not DefaultReturn's.
	RedirectURI string
	// Scopes are the permissions that every login asks for, at most 256 characters
	// together. With openid the login is OpenID Connect, and the bank must send an ID
	// token. Only with offline_access does the bank issue a refresh token: without one,
	// users connect again whenever the access token has expired.
	Scopes []string

	// Whose token a request uses.

	// Key returns the user whose token a request uses, by the application's user ID for
	// example; it need not be secret. Set it so that a connection outlives the session,
	// and is there on all of the user's devices and for jobs. Default: tokens belong to
	// sessions. If Key returns "" or an error that wraps [ErrLoginRequired], the
	// application knows no user: the request is answered 401 and no login is begun. To
	// send such a user to the application's own login instead, check for one in front of
	// RequireToken. An error that wraps [ErrUnavailable] is answered 503, and any other
	// 500. Key is called by RequireToken and the handlers, several times at a callback.
	// It may read the session.
	Key func(*http.Request) (string, error)
	// Connection names one of several connections of a user, by a path value for example:
	// at most 255 bytes of any content. Set it where a user connects the accounts of
	// several clients or companies. A login carries the name to its callback, so two tabs
	// can connect two accounts at once. Without Key, if the callbacks of a session's first
	// two connections meet, the second has to be begun again. The kit keeps no list of the
	// names. Errors are answered as Key's are. Default: a user has one connection, whose
	// name is "".
	//
	// A mux sets path values. If Connection reads them, RequireToken has to stand around
	// the routes, behind the mux: in front of it Connection returns "". A handler whose
	// request names another connection than RequireToken has seen gets no token, and an
	// error from its Client. But do not rely on that: what stands between RequireToken and
	// the mux may copy the request (r.WithContext), and RequireToken does not see the path
	// values of the copy.
	Connection func(*http.Request) (string, error)
	// Name tells several kits of one application apart: up to 32 letters, digits, hyphens
	// and underscores. Give each its own RedirectURI, too. It begins every key that the
	// Store sees: Name/Key, or Name/Key/Connection, with % and / in Key and Connection
	// escaped as %25 and %2F, at most 1,024 bytes in all. Default: "bank".
	Name string

	// Where tokens are kept.

	// Store keeps the tokens. Set it where tokens outlive sessions (with Key), where
	// [Kit.KeepAlive] is to find them, or where there are no sessions. Without Key, the token
	// of a session that has ended stays in a Store, unless the Store has a TTL.
	// Default: [NewSCSStore], which keeps them in the sessions' engine.
	Store TokenStore
	// Locker makes a refresh exclusive across processes. Set it where several processes
	// share a Store that is no Locker, or the default store. Default: Store, if it is a
	// Locker; else none, which is right for a single process.
	Locker Locker
	// EncryptionKeys, 32 bytes each, seal the tokens before Store sees them
	// (AES-256-GCM): the first seals, all open. To rotate them, first add the new key at
	// the end everywhere, then move it to the front. A token that no key opens is
	// answered 503 and logged as an error; it is not deleted, except by a logout. A token
	// that was stored in clear, which anybody who writes to the Store can make, counts as
	// none: its user connects again, unless [Kit.SetToken] stores it anew. A Store of
	// your own gets the whole token as AccessToken, at most 40 KiB: "sealed.", its
	// fingerprint, a dot and base64url. Beside it are TokenType, Scope, Epoch and the
	// times in clear, and RefreshToken "sealed" if there is one.
	EncryptionKeys [][]byte

	// The bank.

	// RefreshLeeway is how long before its expiry a request refreshes a token: at most a
	// quarter of the token's life. Default: 60 seconds. Set it longer where handlers give
	// the token to something that uses it for longer.
	RefreshLeeway time.Duration
	// TokenRate is how many token requests a second, refreshes and logins together, this
	// Kit may send. Set it to its share of what the bank allows you, as each Kit in each
	// process counts by itself; users go before [Kit.KeepAlive]. At least one a day.
	// Default: no limit for users, and one request a second for KeepAlive. A bank that
	// answers 429 gets only as many as it takes in any case.
	TokenRate float64
	// APIHosts are the hosts, with a port if it is not the scheme's own, to which
	// [Kit.Client] sends the token besides the connector's. Set them where the bank has
	// you call its API at another host, or through a gateway of your own. Default: none.
	APIHosts []string
	// PKCE makes logins send a code challenge (RFC 7636, S256). Set it once the bank
	// supports it: the bank does not document it today. Default: no challenge. A code is
	// bound to the browser in any case, by the state.
	PKCE bool

	// What users see.

	// DefaultReturn is the path that a login or a logout leads to when its request names
	// none, and the link of error pages. Set it where "/" is not the user's start page.
	// Default: "/".
	DefaultReturn string
	// ErrorPage is the application's own page for a person whose request is not served.
	// It is executed with an [*ErrorPage], which has the words and the links. Programs
	// and HTMX still get problem details. If the template fails, the error is logged and
	// the kit's own page is shown. Default: the kit's own page.
	ErrorPage *template.Template
	// OnError answers every refusal, to persons and programs, in place of pages and problem
	// details; [StatusCode] has the status for the error, and [KeyFromContext] says whose
	// connection it is about. What a refusal needs is set already: Cache-Control: no-store,
	// Referrer-Policy, X-Content-Type-Options, WWW-Authenticate, Retry-After, Allow and
	// HX-Redirect. What is 500 or more is in the log. A redirect to the bank is no refusal. To
	// answer some errors and leave the rest to the kit, call [Kit.Refuse] with the request and
	// the error as they are: within OnError it writes the kit's own answer.
	OnError func(http.ResponseWriter, *http.Request, error)

	// What operators see.

	// Logger gets one record for each [Event], and what else an operator must see. Default:
	// [slog.Default].
	Logger *slog.Logger
	// Observe is told what happens: for metrics, and to tell the user of a lost
	// connection. It is called concurrently, in a goroutine of its own, with the values
	// of the request's context where there is one; [KeyFromContext] says whose connection
	// it is about. An answer waits for it for a tenth of a second at most. Default:
	// nobody is told.
	Observe func(context.Context, Event)
}

// Format implements [fmt.Formatter] and hides the encryption keys, whatever the verb. fmt
// does not call it for Options in an unexported field of a struct.
func (o Options) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "ganbauth.Options{Name:%q RedirectURI:%q Scopes:%q}", o.Name, o.RedirectURI, o.Scopes)
}

var (
	kitName   = regexp.MustCompile(`^[A-Za-z0-9_-]{0,32}$`)
	scopeName = regexp.MustCompile(`^[!#-\[\]-~]+$`) // RFC 6749 section 3.3
)

// checkScopes returns every reason why a login for these scopes would fail. The error calls
// them what.
func checkScopes(what string, scopes []string, c *Connector) error {
	var errs []error
	for _, s := range scopes {
		if !scopeName.MatchString(s) {
			errs = append(errs, fmt.Errorf("ganbauth: %s: %q is not a scope", what, s))
		}
	}
	if n := len(strings.Join(scopes, " ")); n == 0 || n > maxScope {
		errs = append(errs, fmt.Errorf("ganbauth: %s must have 1 to %d characters together, not %d", what, maxScope, n))
	}
	if slices.Contains(scopes, "openid") && c.issuer == "" {
		errs = append(errs, errNoIssuer)
	}
	return errors.Join(errs...)
}

// settings are Options that have been checked, with their defaults, and what was found on
// the way.
type settings struct {
	Options
	redirect *url.URL // RedirectURI
	hosts    []string
	attempts attempts
	records  *records
}

const (
	// defaultLeeway is Options.RefreshLeeway if it is not set.
	defaultLeeway = time.Minute
	// leastTokenRate is one request a day. The time between two requests has to fit into a
	// time.Duration.
	leastTokenRate = 1.0 / (24 * 60 * 60)
)

// check returns the settings, or all that is wrong with o.
func (o Options) check(c *Connector, sessions *scs.SessionManager) (*settings, error) {
	s := &settings{Options: o, records: &records{}}
	s.Name = cmp.Or(o.Name, defaultName)
	s.DefaultReturn = cmp.Or(o.DefaultReturn, "/")
	s.RefreshLeeway = cmp.Or(o.RefreshLeeway, defaultLeeway)
	s.Scopes = union(o.Scopes)
	s.Logger = cmp.Or(o.Logger, slog.Default())
	err := errors.Join(
		s.checkName(),
		s.checkRedirectURI(),
		checkScopes("options: Scopes", s.Scopes, c),
		s.checkDefaultReturn(),
		s.checkRefreshLeeway(),
		s.checkTokenRate(),
		s.checkAPIHosts(c),
		s.checkStore(sessions),
		s.makeAttempts(c),
	)
	return s, err
}

var errOptions = errors.New("ganbauth: options")

func fault(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errOptions}, args...)...)
}

func (s *settings) checkName() error {
	if !kitName.MatchString(s.Name) {
		return fault("Name may have up to 32 letters, digits, hyphens and underscores")
	}
	return nil
}

// callbackParams are the parameters that the bank adds to RedirectURI (RFC 6749 section
// 4.1.2, RFC 9207 section 2).
var callbackParams = []string{"state", "code", "error", "error_description", "iss"}

// checkRedirectURI also keeps RedirectURI, parsed.
func (s *settings) checkRedirectURI() error {
	u, err := url.Parse(s.RedirectURI)
	switch {
	case err != nil || u.Host == "" || strings.Contains(s.RedirectURI, "#"):
		return fault("RedirectURI must be an absolute URL without a fragment")
	case u.User != nil:
		return fault("RedirectURI must not contain userinfo")
	case !hasHost(u):
		return fault("RedirectURI must have a host, and a port from 1 to 65535 if it has one")
	case !secureURL(u):
		return fault("RedirectURI must be https (http only on a loopback address)")
	case len(s.RedirectURI) > maxRedirectURI:
		return fault("RedirectURI is longer than %d characters", maxRedirectURI)
	}
	// Browsers ask for another path than an unclean one, and may take it for a host.
	given, _, _ := strings.Cut(s.RedirectURI, "?")
	if path, _ := localPath(u.EscapedPath()); path != u.EscapedPath() || !strings.HasSuffix(given, path) {
		return fault("the path of RedirectURI must be as browsers write it: percent-encoded, without empty and dot segments")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fault("the query of RedirectURI is malformed")
	}
	for _, name := range callbackParams {
		if query.Has(name) {
			return fault("RedirectURI has the parameter %s, which the bank adds to it", name)
		}
	}
	s.redirect = u
	u.Path = cmp.Or(u.Path, "/") // as browsers ask for it
	return nil
}

// checkDefaultReturn follows checkRedirectURI.
func (s *settings) checkDefaultReturn() error {
	if p, _ := localPath(s.DefaultReturn); p != s.DefaultReturn {
		return fault("DefaultReturn must be a path of this site, percent-encoded")
	}
	if s.redirect != nil && s.redirect.Path == pathOf(s.DefaultReturn) {
		return fault("RedirectURI needs a path of its own: %s is DefaultReturn's", s.redirect.Path)
	}
	return nil
}

func (s *settings) checkRefreshLeeway() error {
	if s.RefreshLeeway < 0 {
		return fault("RefreshLeeway must not be negative")
	}
	return nil
}

func (s *settings) checkTokenRate() error {
	switch {
	case !(s.TokenRate >= 0) || math.IsInf(s.TokenRate, 1):
		return fault("TokenRate must be a number of requests a second, or 0")
	case s.TokenRate > 0 && s.TokenRate < leastTokenRate:
		return fault("TokenRate is a number of requests a second, and %g is less than one a day", s.TokenRate)
	}
	return nil
}

// checkAPIHosts lists the hosts that get the token: the connector's, and APIHosts over
// https, or http on a loopback address.
func (s *settings) checkAPIHosts(c *Connector) error {
	var errs []error
	s.hosts = []string{hostPort(c.authURL)}
	for _, host := range s.APIHosts {
		u, err := url.Parse("https://" + host)
		if err != nil || u.Host != host || !hasHost(u) {
			errs = append(errs, fault("APIHosts: %q is not a host", host))
			continue
		}
		s.hosts = append(s.hosts, hostPort(u))
		if isLoopback(u.Hostname()) {
			u.Scheme = "http"
			s.hosts = append(s.hosts, hostPort(u))
		}
	}
	return errors.Join(errs...)
}

// isSame compares two Lockers. Two of one type that Go cannot compare differ.
func isSame(a, b Locker) bool { return reflect.ValueOf(a).Comparable() && a == b }

// checkStore finds out what the store can do, and seals it if there are keys.
func (s *settings) checkStore(sessions *scs.SessionManager) error {
	seal, err := newSealer(tokenPurpose, s.EncryptionKeys...)
	switch {
	case sessions == nil && (s.Store == nil || s.Key == nil):
		return errors.Join(err, fault("without sessions, Store and Key are needed"))
	case s.Store == nil && (sessions.Store == nil || sessions.Codec == nil):
		return errors.Join(err, fault("the session manager has no Store or no Codec: make it with scs.New"))
	case err != nil:
		return err
	}
	s.records.locker, s.records.lockerApart = s.Locker, true
	if own, ok := s.Store.(Locker); ok && (s.Locker == nil || isSame(own, s.Locker)) {
		s.records.locker, s.records.lockerApart = own, false
		s.records.recordLocker, _ = s.Store.(RecordLocker)
	}
	s.records.sealed = len(s.EncryptionKeys) > 0
	s.records.store = s.Store
	switch {
	case s.Store == nil && s.records.sealed:
		s.records.store = newSCSStore(sessions, sealedCodec{seal})
	case s.Store == nil:
		s.records.store = newSCSStore(sessions, plainCodec{})
	case s.records.sealed:
		s.records.store = newSealedStore(s.Store, sealedCodec{seal})
	}
	s.records.swapper, _ = s.records.store.(Swapper)
	s.records.prompt, _ = s.records.store.(prompt)
	return nil
}

func (s *settings) makeAttempts(c *Connector) (err error) {
	s.attempts, err = newAttempts(c, s.Name, s.RedirectURI, strings.Join(s.Scopes, " "))
	return err
}

// warn logs what works and should not go to production, as far as it can be seen now.
func (s *settings) warn(c *Connector, sessions *scs.SessionManager) {
	if len(c.clientSecret.reveal()) < 32 && slices.Contains(s.Scopes, "openid") {
		s.Logger.Warn("ganbauth: the client secret is shorter than the 32 bytes that HS256 asks for (RFC 7518 section 3.2)")
	}
	switch salt := c.salt.reveal(); {
	case salt == "PleaseDefineYourself":
		s.Logger.Warn("ganbauth: Salt is the placeholder of the bank's SDKs: define your own")
	case len(salt) < minSalt:
		s.Logger.Warn("ganbauth: Salt is shorter than 16 bytes: define one that cannot be guessed")
	}
	if s.Key != nil && s.Store == nil {
		s.Logger.Warn("ganbauth: Key is set and Store is not: the users' tokens are kept no longer than a session lives",
			"lifetime", sessions.Lifetime)
	}
	if s.records.swapper == nil && s.records.locker == nil && !inMemory(s.Store, sessions) {
		s.Logger.Warn("ganbauth: the store cannot compare and swap, and there is no Locker: several processes that share it " +
			"would lose tokens. Set Options.Locker, or use a Store that is a Swapper")
	}
	if sessions != nil {
		s.warnOfCookie(sessions.Cookie)
	}
}

// inMemory reports whether the default store is used in the memory of one process.
func inMemory(store TokenStore, sessions *scs.SessionManager) bool {
	return store == nil && isInMemory(sessions.Store)
}

// warnOfCookie logs what is wrong with the session's cookie.
func (s *settings) warnOfCookie(c scs.SessionCookie) {
	if !cookieReaches(c.Path, s.redirect.Path) {
		s.Logger.Warn("ganbauth: the session cookie does not reach the path of RedirectURI: set sessions.Cookie.Path to \"/\"",
			"path", c.Path)
	}
	switch name := strings.ToLower(c.Name); { // as browsers compare it
	case strings.HasPrefix(name, "__host-") && (!c.Secure || c.Path != "/" || c.Domain != ""):
		s.Logger.Warn("ganbauth: browsers drop the session cookie: a name with __Host- needs Secure, the Path \"/\" and no Domain",
			"name", c.Name)
	case strings.HasPrefix(name, "__secure-") && !c.Secure:
		s.Logger.Warn("ganbauth: browsers drop the session cookie: a name with __Secure- needs Secure", "name", c.Name)
	}
	if s.redirect.Scheme != "https" {
		if c.Secure {
			s.Logger.Warn("ganbauth: the session cookie is Secure and RedirectURI is http: Safari drops the cookie")
		}
		return
	}
	if !c.Secure {
		s.Logger.Warn("ganbauth: RedirectURI is https and the session cookie is not Secure: set sessions.Cookie.Secure")
	}
	if !c.HttpOnly || c.SameSite == http.SameSiteNoneMode || c.Domain != "" {
		s.Logger.Warn("ganbauth: the session cookie should be HttpOnly, SameSite=Lax or Strict, and without a Domain")
	}
}

// cookieReaches reports whether a browser sends a cookie of that Path to target (RFC 6265
// section 5.1.4). Without a Path it depends on the page that sets the cookie.
func cookieReaches(path, target string) bool {
	rest, ok := strings.CutPrefix(target, path)
	return ok && path != "" && (rest == "" || strings.HasSuffix(path, "/") || rest[0] == '/')
}
