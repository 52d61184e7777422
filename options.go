package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Options configure a [Kit]. RedirectURI and Scopes are required; the zero value of every other field is the right
// default. [New] copies them.
type Options struct {
	// RedirectURI is where CallbackHandler is mounted, as registered with the bank, which compares it exactly: https
	// (http only on a loopback address), at most 256 characters, without a fragment.
	RedirectURI string
	// Scopes to ask for, at most 256 characters together. With openid among them the login is OpenID Connect, and
	// the ID token is required. The bank grants a refresh token for offline_access only.
	Scopes []string

	// Store keeps the tokens. Default: [NewSCSStore].
	Store TokenStore
	// Key says whose token a request uses, the application's user id for example: at most 1,024 bytes, not secret.
	// Default: a random value in the session. Where Key fails, or returns "", the request is refused with 401 if the
	// error wraps [ErrLoginRequired] or is nil, else with 500; no login is begun, as there is nobody to connect.
	// The Store sees the key as it is, after "Name/" if Name is set.
	Key func(*http.Request) (string, error)
	// Connection says which of the user's several connections a request is about, a path value
	// for example: at most 255 bytes of any content. A login carries it to its callback, so
	// that two tabs can connect two accounts at once. Default: a user has one connection.
	Connection func(*http.Request) (string, error)
	// Locker makes a refresh exclusive across processes. Default: Store, if it is a Locker, else none.
	Locker Locker
	// Name tells several kits in one application apart: up to 32 letters, digits, hyphens and underscores. Give each
	// its own RedirectURI too. Kits that share a Store all need one.
	Name string
	// DefaultReturn is the path to go to when a login or a logout does not say. Default: "/".
	DefaultReturn string
	// RefreshLeeway is how long before its expiry a token is refreshed, at most a quarter of the token's life.
	// Default: 60 seconds.
	RefreshLeeway time.Duration
	// APIHosts are hosts, with a port if it is not the scheme's own, that [Kit.Client] sends the token to besides
	// the connector's.
	APIHosts []string
	// PKCE sends a code challenge (RFC 7636, S256). The bank does not document it.
	PKCE bool
	// EncryptionKeys, 32 bytes each, seal the tokens before Store sees them (AES-256-GCM): the first seals, all
	// open. A token that none opens counts as none. What a Store of your own gets as AccessToken is then the whole token
	// in base64url, at most 40 KiB, with TokenType, Scope and the times beside it in clear, and RefreshToken "sealed" if
	// there is one.
	EncryptionKeys [][]byte
	// ErrorPage is the application's own page for a person whose request is not served. It is
	// executed with an [*ErrorPage]. Programs and HTMX get problem details as before. If it
	// fails, the error is logged and the kit's own page is shown. Default: the kit's own page.
	ErrorPage *template.Template
	// OnError answers every refusal, to persons and programs, in place of pages and problem
	// details; [StatusCode] has the status for the error. What a refusal needs is set already:
	// Cache-Control: no-store, Referrer-Policy, X-Content-Type-Options, WWW-Authenticate,
	// Retry-After, Allow and HX-Redirect. A redirect to the bank is no refusal.
	OnError func(http.ResponseWriter, *http.Request, error)
	// Logger gets one record for each [Event] and for what an operator must see. Default: [slog.Default].
	Logger *slog.Logger
	// Observe is told what happens, for metrics. It is called concurrently, with the values of the request's
	// context where there is one, and should return soon.
	Observe func(context.Context, Event)
}

// Format implements [fmt.Formatter] and hides the encryption keys, whatever the verb.
func (o Options) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "ganbauth.Options{Name:%q RedirectURI:%q Scopes:%q}", o.Name, o.RedirectURI, o.Scopes)
}

// LogValue implements [slog.LogValuer] and hides the encryption keys.
func (o Options) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(o)) }

var (
	kitName   = regexp.MustCompile(`^[A-Za-z0-9_-]{0,32}$`)
	scopeName = regexp.MustCompile(`^[!#-\[\]-~]+$`) // RFC 6749 section 3.3
)

// checkScopes returns every reason why a login for these scopes would fail. The errors call them what.
func checkScopes(what string, scopes []string, c *Connector) (errs []error) {
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
	return errs
}

// warn logs what works and should not go to production, as far as it can be seen now.
func (k *Kit) warn(opts Options) {
	if len(k.connector.clientSecret.reveal()) < 32 && slices.Contains(k.scopes, "openid") {
		k.log.Warn("ganbauth: the client secret is shorter than the 32 bytes that HS256 asks for (RFC 7518 section 3.2)")
	}
	switch salt := k.connector.salt.reveal(); {
	case salt == "PleaseDefineYourself":
		k.log.Warn("ganbauth: Salt is the placeholder of the bank's SDKs: define your own")
	case len(salt) < minSalt:
		k.log.Warn("ganbauth: Salt is shorter than 16 bytes: define one that cannot be guessed")
	}
	if opts.Key != nil && opts.Store == nil {
		k.log.Warn("ganbauth: Key is set and Store is not: the users' tokens are kept no longer than a session lives",
			"lifetime", k.sessions.Lifetime)
	}
	if k.sessions != nil {
		k.warnOfCookie(k.sessions.Cookie)
	}
}

// warnOfCookie logs what is wrong with the session's cookie.
func (k *Kit) warnOfCookie(c scs.SessionCookie) {
	if !cookieReaches(c.Path, k.callback) {
		k.log.Warn("ganbauth: the session cookie does not reach the path of RedirectURI: set sessions.Cookie.Path to \"/\"",
			"path", c.Path)
	}
	if !k.https {
		if c.Secure {
			k.log.Warn("ganbauth: the session cookie is Secure and RedirectURI is http: Safari drops the cookie")
		}
		return
	}
	if !c.Secure {
		k.log.Warn("ganbauth: RedirectURI is https and the session cookie is not Secure: set sessions.Cookie.Secure")
	}
	if !c.HttpOnly || c.SameSite == http.SameSiteNoneMode || c.Domain != "" {
		k.log.Warn("ganbauth: the session cookie should be HttpOnly, SameSite=Lax or Strict, and without a Domain")
	}
}

// cookieReaches reports whether a browser sends a cookie of that Path to target (RFC 6265 section
// 5.1.4). Without a Path it depends on the page that sets the cookie.
func cookieReaches(path, target string) bool {
	rest, ok := strings.CutPrefix(target, path)
	return ok && path != "" && (rest == "" || strings.HasSuffix(path, "/") || rest[0] == '/')
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// union lists the scopes of all lists once, in their order.
func union(lists ...[]string) []string {
	var all []string
	for _, list := range lists {
		for _, s := range list {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// hostPort spells out the port, so that equal hosts compare equal.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

const defaultName = "bank"

// stores returns the store of all kits' records, sealed if there are keys, and the Locker. If
// the store's lock brings the record, it is returned once more as both.
func (o Options) stores(sessions *scs.SessionManager) (store TokenStore, locker Locker, both RecordLocker, err error) {
	locker = o.Locker
	if own, ok := o.Store.(Locker); ok && locker == nil {
		locker = own
		both, _ = o.Store.(RecordLocker)
	}
	seal, sealErr := newSealer("token", o.EncryptionKeys...)
	sealed := len(o.EncryptionKeys) > 0
	switch {
	case sessions == nil && (o.Store == nil || o.Key == nil):
		err = errors.New("ganbauth: options: without sessions, Store and Key are needed")
	case o.Store == nil && (sessions.Store == nil || sessions.Codec == nil):
		err = errors.New("ganbauth: options: the session manager has no Store or no Codec: make it with scs.New")
	case o.Store == nil && sealed:
		store = newSCSStore(sessions, sealedCodec{seal})
	case o.Store == nil:
		store = NewSCSStore(sessions)
	case sealed:
		store = newSealedStore(o.Store, sealedCodec{seal})
	default:
		store = o.Store
	}
	return store, locker, both, errors.Join(err, sealErr)
}
