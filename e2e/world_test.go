package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// mode is how an application keeps its users.
type mode struct {
	name     string
	key      bool // Options.Key reads the user from the session, as an application with a login of its own does
	sameSite http.SameSite
}

var modes = []mode{
	{"session, Lax", false, http.SameSiteLaxMode},
	{"session, Strict", false, http.SameSiteStrictMode},
	{"key, Lax", true, http.SameSiteLaxMode},
	{"key, Strict", true, http.SameSiteStrictMode},
}

// strict is enough for what has little to do with the session.
var strict = modes[3:]

// world is three sites on https: an application, its bank, and another one that has links
// to the application. Their names are new in each, so that the browser knows nothing of
// them, and a name below .localhost is a site of its own.
type world struct {
	*testing.T
	mode             mode
	browser          browser
	app, bank, other string // origins
	box              *ganbtest.Server
	sessions         *scs.SessionManager
	store            ganbauth.TokenStore // of an application that has a key
	mux              *http.ServeMux      // of the application, for more pages

	sites map[string]http.Handler // by the first label of their name
	mu    sync.Mutex
	log   []served
}

var worlds atomic.Int32

// newWorld serves the three sites, through an nginx if there is to be one.
func newWorld(t *testing.T, b browser, m mode, nginx bool) *world {
	t.Helper()
	w := &world{
		T: t, mode: m, browser: b, mux: http.NewServeMux(), sessions: scs.New(), sites: map[string]http.Handler{},
		box: ganbtest.NewServer(ganbtest.Options{Consent: true}),
	}
	t.Cleanup(w.box.Close)
	w.sessions.Cookie.SameSite, w.sessions.Cookie.Secure = m.sameSite, true
	cert, err := certificate()
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(w)
	addr := server.Listener.Addr().String()
	if nginx {
		addr = startNginx(t, addr)
	}
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	site := func(name string, h http.Handler) (origin string) {
		label := fmt.Sprint(name, worlds.Add(1))
		w.sites[label] = h
		return "https://" + label + ".localhost:" + port
	}
	box, err := url.Parse(w.box.URL)
	require.NoError(t, err)
	w.app = site("app", w.sessions.LoadAndSave(w.mux))
	w.bank = site("bank", &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(box) }})
	w.other = site("other", http.HandlerFunc(w.serveOther))
	trusted := x509.NewCertPool()
	trusted.AddCert(cert.Leaf)
	w.serveApp(&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: trusted},
	}})
	if nginx {
		server.Start()
	} else {
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // handshakes that a browser gives up
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		server.StartTLS()
	}
	t.Cleanup(server.Close)
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range w.requests() {
				t.Log(s)
			}
		}
	})
	return w
}

// serveApp is an application with a cart in its session, protected pages below /p/ and a
// form. Its kit reaches the bank with client.
func (w *world) serveApp(client *http.Client) {
	config := w.box.Config()
	config.AuthBaseURL = strings.Replace(config.AuthBaseURL, w.box.URL, w.bank, 1)
	config.HTTPClient = client
	connector, err := ganbauth.NewConnector(w.box.ClientID, w.box.ClientSecret, w.box.AuthMethod, config)
	require.NoError(w, err)
	opts := ganbauth.Options{
		RedirectURI:   w.app + "/bank/callback",
		Scopes:        []string{"openid", "offline_access"},
		DefaultReturn: "/p/home",
		Logger:        slog.New(slog.DiscardHandler),
	}
	if w.mode.key {
		w.store = ganbauth.NewMemoryStore()
		opts.Store = w.store
		opts.Key = func(r *http.Request) (string, error) { return w.sessions.GetString(r.Context(), "user"), nil }
	}
	kit, err := ganbauth.New(connector, w.sessions, opts)
	require.NoError(w, err)

	w.mux.Handle("/bank/login", kit.LoginHandler())
	w.mux.Handle("/bank/callback", kit.CallbackHandler())
	w.mux.Handle("/bank/logout", kit.LogoutHandler())
	page := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.page(rw, fmt.Sprintf("page %s, cart %s", html.EscapeString(r.PathValue("page")),
			w.sessions.GetString(r.Context(), "cart")))
	})
	w.mux.Handle("GET /p/{page...}", kit.RequireToken(page))
	w.mux.Handle("GET /transfer/{page}", kit.RequireScopes("private:transfer")(page))
	w.mux.Handle("GET /form", kit.RequireToken(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.page(rw, `<form method="post" action="/pay"><button>Pay</button></form>`)
	})))
	w.mux.Handle("POST /pay", kit.RequireToken(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.page(rw, "paid")
	})))
	w.mux.HandleFunc("GET /bye", func(rw http.ResponseWriter, _ *http.Request) { w.page(rw, "bye") })
	w.mux.HandleFunc("/{$}", func(rw http.ResponseWriter, r *http.Request) {
		w.sessions.Put(r.Context(), "cart", "full")
		w.sessions.Put(r.Context(), "user", user)
		w.page(rw, `shop <form method="post" action="/bank/logout?return_to=/bye"><button>Log out</button></form>`)
	})
}

func (w *world) page(rw http.ResponseWriter, body string) {
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(rw, "<!doctype html><title>Shop</title><script>document.title = 'scripted'</script>"+body)
}

// serveOther has a link to the application's first page, or to the path in the query, and
// an address that redirects.
func (w *world) serveOther(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/short" {
		http.Redirect(rw, r, w.app+"/p/1", http.StatusFound)
		return
	}
	path, err := url.QueryUnescape(r.URL.RawQuery)
	if err != nil || path == "" {
		path = "/p/1"
	}
	w.page(rw, `elsewhere <a href="`+w.app+html.EscapeString(path)+`">Link</a>`)
}

// ServeHTTP serves the site that is asked for, and notes the request.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start, status := time.Now(), &statusWriter{rw, http.StatusOK}
	label, _, _ := strings.Cut(r.Host, ".")
	site := w.sites[label]
	if site == nil {
		site = http.NotFoundHandler()
	}
	site.ServeHTTP(status, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, served{start, label, r, status.status, rw.Header()})
}

// requests are those that were served so far.
func (w *world) requests() []served {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

// served is a request to one of the sites, and the answer.
type served struct {
	start time.Time
	site  string
	*http.Request
	status int
	answer http.Header
}

func (s served) String() string {
	var names []string
	for _, c := range s.Cookies() {
		names = append(names, fmt.Sprintf("%.12s", c.Name))
	}
	return fmt.Sprintf("%s %s %s%.70s %s/%s/%s %s: %d %.60s%.60s", s.start.Format("05.000"), s.Method, s.site, s.URL.RequestURI(),
		s.Header.Get("Sec-Fetch-Site"), s.Header.Get("Sec-Fetch-Mode"), s.Header.Get("Sec-Fetch-Dest"), names,
		s.status, s.answer.Get("Location"), s.answer.Get("Refresh"))
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// visit opens a tab at the application's own page, where the user logs in to the
// application.
func (w *world) visit() *view {
	w.Helper()
	v := newView(w.T, w.browser)
	v.open(w.app + "/")
	v.see("shop")
	return v
}

// connected is a tab on the application's page of a user who has just connected.
func (w *world) connected() *view {
	w.Helper()
	v := w.visit()
	v.open(w.app + "/p/1")
	v.see(consent)
	v.click("Approve")
	v.see("page 1, cart full")
	return v
}

// user is who is logged in to an application that has a key.
const user = "the user"

// expire ends the life of the user's access token.
func (w *world) expire() {
	w.Helper()
	token, err := w.store.Load(w.Context(), "bank/"+user)
	require.NoError(w, err)
	token.ExpiresAt = time.Now()
	require.NoError(w, w.store.Save(w.Context(), "bank/"+user, token))
}
