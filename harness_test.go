package ganbauth_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

const appURL = "https://app.example"

// app is an application with a kit, and its bank, in process: https without a network,
// fit for a synctest bubble.
type app struct {
	options  ganbauth.Options
	t        *testing.T
	bank     *ganbtest.Server
	sessions *scs.SessionManager
	kit      *ganbauth.Kit
	mux      *http.ServeMux
	handler  http.Handler
	log      *lockedBuffer
	next     *spy

	mu     sync.Mutex
	events []ganbauth.Event
}

// setup is what a test may change before the app is made.
type setup struct {
	bank     ganbtest.Options
	config   func(*ganbauth.Config)
	options  ganbauth.Options
	sessions func(*scs.SessionManager)
	logger   func(slog.Handler) slog.Handler
	bare     bool // no LoadAndSave
	manager  *scs.SessionManager
}

// inBubble runs a test on an app in a synctest bubble. The manager is made outside:
// scs.New starts a goroutine that never ends.
func inBubble(t *testing.T, s setup, test func(t *testing.T, a *app)) {
	t.Helper()
	s.manager = scs.New()
	synctest.Test(t, func(t *testing.T) { test(t, newApp(t, s)) })
}

// newApp makes the application and its bank. Every route that tests use is mounted.
func newApp(t *testing.T, s setup) *app {
	t.Helper()
	a := &app{t: t, mux: http.NewServeMux(), log: &lockedBuffer{}, next: &spy{}}
	s.bank.InProcess = true
	a.bank = ganbtest.NewServer(s.bank)
	if a.sessions = s.manager; a.sessions == nil {
		a.sessions = scs.New()
	}
	a.sessions.Store = memstore.NewWithCleanupInterval(0)
	a.sessions.Cookie.Secure = true
	if s.sessions != nil {
		s.sessions(a.sessions)
	}
	if s.options.Scopes == nil {
		s.options.Scopes = []string{"openid", "offline_access", "private:account"}
	}
	if s.options.RedirectURI == "" {
		s.options.RedirectURI = appURL + "/bank/callback"
	}
	s.options.DefaultReturn = "/home"
	var log slog.Handler = slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug})
	if s.logger != nil {
		log = s.logger(log)
	}
	s.options.Logger = slog.New(log)
	if s.options.Observe == nil {
		s.options.Observe = func(_ context.Context, e ganbauth.Event) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.events = append(a.events, e)
		}
	}
	var err error
	a.kit, err = ganbauth.New(a.connector(s.config), a.sessions, s.options)
	require.NoError(t, err)
	a.options = s.options
	a.mux.Handle("/bank/login", a.kit.LoginHandler())
	a.mux.Handle("/bank/callback", a.kit.CallbackHandler())
	a.mux.Handle("/bank/logout", a.kit.LogoutHandler())
	a.mux.Handle("/bank/status", a.kit.StatusHandler())
	a.mux.Handle("/p", a.kit.RequireToken(a.next))
	a.mux.Handle("/p/{rest...}", a.kit.RequireToken(a.next))
	a.mux.Handle("/transfer", a.kit.RequireScopes("private:transfer")(a.next))
	a.mux.HandleFunc("/home", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
	a.handler = a.mux
	if !s.bare {
		a.handler = a.sessions.LoadAndSave(a.mux)
	}
	return a
}

// mountCorp mounts a second kit on the same sessions, at /corp/.
func (a *app) mountCorp() {
	o := a.options
	o.Name, o.RedirectURI = "corp", appURL+"/corp/callback"
	corp, err := ganbauth.New(a.connector(nil), a.sessions, o)
	require.NoError(a.t, err)
	a.mux.Handle("/corp/login", corp.LoginHandler())
	a.mux.Handle("/corp/callback", corp.CallbackHandler())
	a.mux.Handle("/corp/logout", corp.LogoutHandler())
	a.mux.Handle("/corp/p", corp.RequireToken(a.next))
}

func (a *app) connector(change func(*ganbauth.Config)) *ganbauth.Connector {
	cfg := a.bank.Config()
	if change != nil {
		change(&cfg)
	}
	c, err := ganbauth.NewConnector(a.bank.ClientID, a.bank.ClientSecret, a.bank.AuthMethod, cfg)
	require.NoError(a.t, err)
	return c
}

// keyIs is an Options.Key of an application with one user.
func keyIs(user string) func(*http.Request) (string, error) {
	return func(*http.Request) (string, error) { return user, nil }
}

func (a *app) eventTypes() (types []ganbauth.EventType) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		types = append(types, e.Type)
	}
	return types
}

// store is the Store in the Options.
func (a *app) store() ganbauth.TokenStore { return a.options.Store }

func (a *app) lastEvent() ganbauth.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.events[len(a.events)-1]
}

// spy is the handler behind RequireToken: it says that it was called, and with whose token.
type spy struct {
	mu     sync.Mutex
	tokens []ganbauth.Token
	serve  http.HandlerFunc
}

func (s *spy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, _ := ganbauth.TokenFromContext(r.Context())
	s.mu.Lock()
	s.tokens = append(s.tokens, *token)
	s.mu.Unlock()
	if s.serve != nil {
		s.serve(w, r)
		return
	}
	io.WriteString(w, "served "+token.Subject)
}

func (s *spy) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tokens)
}

func (s *spy) last() ganbauth.Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[len(s.tokens)-1]
}

// browser is a client with cookies that follows no redirect by itself and navigates as
// Chromium does.
type browser struct {
	t      *testing.T
	app    *app
	client *http.Client
}

func (a *app) browser() *browser {
	jar, err := cookiejar.New(nil)
	require.NoError(a.t, err)
	return &browser{a.t, a, &http.Client{
		Jar:           jar,
		Transport:     serveDirectly(func() http.Handler { return a.handler }),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// serveDirectly is a transport that calls the handler.
type serveDirectly func() http.Handler

func (s serveDirectly) RoundTrip(req *http.Request) (*http.Response, error) {
	in := req.Clone(req.Context())
	in.RequestURI, in.Host = req.URL.RequestURI(), req.URL.Host
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	s().ServeHTTP(w, in)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

var (
	navigate = header("Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none", "Accept", "text/html")
	program  = header("Accept", "application/json")
)

func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

// with returns h and more, of which the latter wins.
func with(h http.Header, pairs ...string) http.Header {
	h = h.Clone()
	for name, values := range header(pairs...) {
		h[name] = values
	}
	return h
}

func (b *browser) do(method, target string, h http.Header) *http.Response {
	b.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = appURL + target
	}
	req, err := http.NewRequest(method, target, nil)
	require.NoError(b.t, err)
	req.Header = h.Clone()
	resp, err := b.client.Do(req)
	require.NoError(b.t, err)
	return resp
}

func (b *browser) get(target string) *http.Response {
	b.t.Helper()
	return b.do(http.MethodGet, target, navigate)
}

func (b *browser) post(target string) *http.Response {
	b.t.Helper()
	return b.do(http.MethodPost, target, with(navigate, "Sec-Fetch-Site", "same-origin"))
}

// follow does what a browser does with a Refresh header: it asks again, from this site.
func (b *browser) follow(resp *http.Response) *http.Response {
	b.t.Helper()
	for range 5 {
		pause, target, ok := strings.Cut(resp.Header.Get("Refresh"), "; url=")
		if !ok {
			return resp
		}
		seconds, err := strconv.Atoi(pause)
		require.NoError(b.t, err)
		time.Sleep(time.Duration(seconds) * time.Second)
		require.Equal(b.t, http.StatusOK, resp.StatusCode)
		require.Contains(b.t, html.UnescapeString(body(resp)), `href="`+target+`"`, "the page has a link as well")
		resp = b.do(http.MethodGet, target, with(navigate, "Sec-Fetch-Site", "same-origin"))
	}
	require.Empty(b.t, resp.Header.Get("Refresh"), "it is reloaded without end")
	return resp
}

// arrive navigates as a browser does that another site has led here: a Strict cookie stays
// behind.
func (b *browser) arrive(target string, h http.Header) *http.Response {
	b.t.Helper()
	all := b.client.Jar
	u := mustParse(appURL)
	sent, _ := cookiejar.New(nil)
	for _, c := range all.Cookies(u) {
		if c.Name != b.app.sessions.Cookie.Name {
			sent.SetCookies(u, []*http.Cookie{c})
		}
	}
	b.client.Jar = sent
	resp := b.do(http.MethodGet, target, h)
	b.client.Jar = all
	all.SetCookies(u, resp.Cookies())
	return resp
}

// authorizationURL begins a login at path and returns where it leads.
func (b *browser) authorizationURL(path string) string {
	b.t.Helper()
	resp := b.follow(b.get(path))
	require.Equal(b.t, http.StatusSeeOther, resp.StatusCode, body(resp))
	target := resp.Header.Get("Location")
	require.Contains(b.t, target, b.app.bank.URL)
	return target
}

// callbackURL begins a login and has the user approve it.
func (b *browser) callbackURL(path string) string {
	b.t.Helper()
	return b.app.bank.Approve(b.authorizationURL(path))
}

func (b *browser) login() {
	b.t.Helper()
	require.Equal(b.t, "/home", b.loginAt("/bank/login").Header.Get("Location"))
}

// loginAt connects by a login that begins at path.
func (b *browser) loginAt(path string) *http.Response {
	b.t.Helper()
	resp := b.follow(b.get(b.callbackURL(path)))
	require.Equal(b.t, http.StatusSeeOther, resp.StatusCode, body(resp))
	return resp
}

func (b *browser) cookies() []*http.Cookie {
	u, _ := url.Parse(appURL)
	return b.client.Jar.Cookies(u)
}

func (b *browser) cookie(name string) string {
	for _, c := range b.cookies() {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

// cookieHeader is what the browser sends as Cookie.
func (b *browser) cookieHeader() string { return cookieHeader(b.cookies()) }

func cookieHeader(cookies []*http.Cookie) string {
	var pairs []string
	for _, c := range cookies {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return strings.Join(pairs, "; ")
}

// connected asks as a program does, so that no login is begun.
func (b *browser) connected() bool {
	b.t.Helper()
	return b.do(http.MethodGet, "/p", program).StatusCode == http.StatusOK
}

func body(resp *http.Response) string {
	data, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return string(data)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func mustParse(rawURL string) *url.URL {
	u, err := url.Parse(rawURL)
	if err != nil {
		panic(err)
	}
	return u
}

func gzipped(s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	return b.Bytes()
}

var discard = slog.New(slog.DiscardHandler)

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
