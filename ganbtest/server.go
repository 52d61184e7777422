// Package ganbtest is the bank in a box: an authorization server and a little of the
// bank's API, for tests of applications that use ganbauth. It speaks the bank's protocol,
// rotates refresh tokens and refuses their reuse, and fails in the ways a bank can fail.
//
//	bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
//	app := newApp(bank.Connector(), bank.APIBase())           // as your main function does
//	browser := bank.Login(app, "https://app.test/bank/login") // of a connected user
//	resp, err := browser.Get("https://app.test/balance")
//
// To test a single handler without a login, put [Server.Token] into the kit with
// SetToken. [Server.Fail], [Server.SetRateLimit] and [Server.SetMaintenance] simulate
// failures; [Server.Requests], [Server.RefreshTokens] and [Server.Grants] tell what the
// bank has received. Without InProcess the bank listens on a loopback port; the command
// ganbank is that bank as a program. [TestStore] tests implementations of
// [ganbauth.TokenStore].
package ganbtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ganbauth/ganbauth"
)

// Options configure a [Server]. The zero value is a bank that works. Formatting Options
// shows no secret.
type Options struct {
	// ClientID and ClientSecret are the one registered client's. Default: random.
	ClientID, ClientSecret string
	// AuthMethod is the one that the client is registered for. Default:
	// [ganbauth.AuthBasic].
	AuthMethod ganbauth.AuthMethod
	// RedirectURI is the registered one, or several, separated by spaces. Default: any.
	RedirectURI string
	// Subject is the user at the bank. Default: a new one for each login.
	Subject string

	// Lifetime is how long an access token serves. Default: one hour. The answer tells it
	// in whole seconds.
	Lifetime time.Duration
	// ExpiresInString sends expires_in as a JSON string, as the bank documents it;
	// OmitExpiresIn sends none. Default: a number, as the bank has been seen to send it.
	ExpiresInString, OmitExpiresIn bool
	// KeepRefreshToken turns rotation off: a refresh answers without a refresh_token, and
	// the old one stays.
	KeepRefreshToken bool
	// RevokeOnReuse makes a second use of a rotated refresh token end the whole grant, as
	// RFC 9700 section 4.14.2 recommends. Without it the second use only fails.
	RevokeOnReuse bool
	// RefreshIDToken sends an ID token with a refresh, too (OpenID Connect Core section
	// 12.2).
	RefreshIDToken bool
	// SendIssuer adds iss to callbacks (RFC 9207).
	SendIssuer bool

	// Consent shows the consent page instead of approving at once. It is in Japanese or
	// English, by Accept-Language.
	Consent bool
	// Application is the application's name on the consent page. Default: none.
	Application string
	// Latency delays every answer of the token endpoint and the API. Default: none.
	Latency time.Duration
	// RateLimit is how many requests the bank takes. Default: any number. See
	// [Server.SetRateLimit].
	RateLimit RateLimit
	// Maintenance is when the bank is closed. Default: never. See
	// [Server.SetMaintenance].
	Maintenance []Window
	// API is the application's own part of the bank's API, for instance an endpoint that
	// the box does not have. It gets the requests whose access token is good, with the
	// path that follows [Server.APIBase] ("/accounts/visa-transactions"), and is told by
	// [GrantFromContext] whose they are. The box answers the others itself, 401 with
	// WG_ERR_105, and also what API answers 404. An answer is sent when API returns.
	// Default: none.
	API http.Handler
	// Now is the bank's clock. It may be called concurrently. ID tokens are stamped with
	// it, which a client on another clock refuses. Default: [time.Now].
	Now func() time.Time
	// KeepRequests is how many of the latest requests [Server.Requests] remembers.
	// Default: all. Counts are not affected.
	KeepRequests int
	// URL is the bank's root as its clients see it, without a trailing slash. With it the
	// Server does not listen: it is an [http.Handler], to be served at that URL. Default:
	// a free loopback port.
	URL string
	// InProcess serves without a network: Config lends a transport that calls the bank
	// directly. With it the bank can be used in a bubble of testing/synctest. The URL is
	// then reachable through Client only.
	InProcess bool
}

// Format implements [fmt.Formatter] and leaves the options out, whatever the verb: they
// hold a secret.
func (o Options) Format(f fmt.State, _ rune) { fmt.Fprint(f, "ganbtest.Options{[redacted]}") }

// Server is a bank in a box. Its methods are safe for concurrent use. Formatting a Server
// with fmt or log/slog shows its URL and nothing secret, and encoding/json refuses it.
type Server struct {
	// URL is the bank's root, without a trailing slash.
	URL string
	// ClientID, ClientSecret and AuthMethod are what [ganbauth.NewConnector] needs
	// besides Config.
	ClientID, ClientSecret string
	AuthMethod             ganbauth.AuthMethod

	*state
}

// state is what a Server holds behind a pointer, so that formatting a copy of it is safe
// as well.
type state struct {
	opts    Options
	handler http.Handler
	http    *httptest.Server // nil where the Server does not listen
	client  *http.Client

	mu          sync.Mutex
	many        int // codes and access tokens: time to forget those that are over
	codes       map[string]*code
	access      map[string]*accessToken
	refresh     map[string]*refreshToken
	sent        []*refreshToken // those of refresh, in the order in which the bank came to know them
	reuses      int
	grants      []*grant
	faults      map[Endpoint][]*queuedFault
	requests    requestLog
	rate        rate
	maintenance []Window
	transfers   int
	byKey       map[idempotencyKey]transfer
}

const basePath = "/ganb/api"

// NewServer starts a bank on a free loopback port, unless opts say that it is served in
// process or elsewhere. It panics if there is no port. Close it after use.
func NewServer(opts Options) *Server {
	s := &Server{
		ClientID:     opts.ClientID,
		ClientSecret: opts.ClientSecret,
		AuthMethod:   opts.AuthMethod,
		state: &state{
			opts:        opts,
			codes:       map[string]*code{},
			access:      map[string]*accessToken{},
			refresh:     map[string]*refreshToken{},
			faults:      map[Endpoint][]*queuedFault{},
			requests:    requestLog{keep: opts.KeepRequests, counts: map[Endpoint]int{}, statuses: map[answered]int{}},
			rate:        rate{RateLimit: opts.RateLimit},
			maintenance: slices.Clone(opts.Maintenance),
			byKey:       map[idempotencyKey]transfer{},
		},
	}
	if s.ClientID == "" {
		s.ClientID = rand.Text()
	}
	if s.ClientSecret == "" {
		s.ClientSecret = rand.Text() + rand.Text()
	}
	if s.AuthMethod == 0 {
		s.AuthMethod = ganbauth.AuthBasic
	}
	if s.opts.Lifetime == 0 {
		s.opts.Lifetime = time.Hour
	}
	if s.opts.Now == nil {
		s.opts.Now = time.Now
	}
	s.handler = s.routes()
	if opts.InProcess || opts.URL != "" {
		s.URL = cmp.Or(opts.URL, "https://bank.test")
		s.client = &http.Client{Transport: inProcess{s}}
	} else {
		s.http = httptest.NewServer(s)
		s.URL, s.client = s.http.URL, s.http.Client()
	}
	return s
}

// ServeHTTP answers as the bank: see Options.URL.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Close cuts the connections to a bank that listens, and waits for its requests.
func (s *Server) Close() {
	if s.http != nil {
		s.http.CloseClientConnections()
		s.http.Close()
	}
}

func (s Server) redacted() string { return fmt.Sprintf("ganbtest.Server{URL:%q [redacted]}", s.URL) }

// Format implements [fmt.Formatter] and shows the URL only, whatever the verb.
func (s Server) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.redacted()) }

// LogValue implements [slog.LogValuer] and shows the URL only.
func (s Server) LogValue() slog.Value { return slog.StringValue(s.redacted()) }

// MarshalJSON always fails, because the client secret is one of the fields.
func (s Server) MarshalJSON() ([]byte, error) {
	return nil, errors.New("ganbtest: a Server is not for JSON")
}

var (
	_ fmt.Formatter  = Server{}
	_ slog.LogValuer = Server{}
	_ json.Marshaler = Server{}
	_ fmt.Formatter  = Options{}
)

// Client returns an HTTP client that reaches the bank, also in process. It follows
// redirects and has no cookie jar.
func (s *Server) Client() *http.Client { return s.client }

// Config says where the bank is. Its HTTPClient is [Server.Client], and its salt is no
// secret.
func (s *Server) Config() ganbauth.Config {
	return ganbauth.Config{
		AuthBaseURL: s.URL + basePath + "/auth/v1",
		AuthPath:    "/authorization",
		TokenPath:   "/token",
		JWTIssuer:   s.issuer(),
		Salt:        "the bank in a box",
		HTTPClient:  s.client,
	}
}

// APIBase is the root of the personal accounts' API. The box knows GET /accounts,
// /accounts/balances and /accounts/transactions, and POST /transfer/request, which moves
// no money. It does not look at scopes. See also Options.API.
//
// The corporate accounts' API is at the same URL with corporation in place of personal.
func (s *Server) APIBase() string { return s.URL + basePath + "/personal/v1" }

func (s *Server) issuer() string { return s.URL + "/" }

// Token returns a token as a user's who has just connected and granted these scopes
// (default: openid and offline_access). Put it into a store to test what comes after the
// login. It panics if the bank refuses, by a fault for instance.
func (s *Server) Token(scopes ...string) *ganbauth.Token {
	if len(scopes) == 0 {
		scopes = []string{"openid", "offline_access"}
	}
	redirectURI := "https://app.test/callback"
	if registered := strings.Fields(s.opts.RedirectURI); len(registered) > 0 {
		redirectURI = registered[0]
	}
	c := s.Connector()
	authURL, nonce, err := c.OpenIDAuthorization(rand.Text(), strings.Join(scopes, " "), redirectURI)
	must(err)
	callback, err := url.Parse(s.Approve(authURL))
	must(err)
	code := callback.Query().Get("code")
	if !slices.Contains(scopes, "openid") {
		t, err := c.OAuthToken(context.Background(), redirectURI, code)
		must(err)
		return t
	}
	t, err := c.OpenIDToken(context.Background(), redirectURI, code, nonce)
	must(err)
	return t
}

func must(err error) {
	if err != nil {
		panic("ganbtest: " + err.Error())
	}
}
