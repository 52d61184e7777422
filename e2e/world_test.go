package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
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

// world is three sites on https: an application, its bank, and another one that has links to the application. Their
// names are new in each, so that the browser knows nothing of them, and a name below .localhost is a site of its own.
type world struct {
	*testing.T
	mode             mode
	browser          browser
	app, bank, other string // origins
	box              *ganbtest.Server
	sessions         *scs.SessionManager
	mux              *http.ServeMux // of the application, for more pages

	mu  sync.Mutex
	log []string // one line a request
}

var worlds atomic.Int32

// newWorld serves the three sites.
func newWorld(t *testing.T, b browser, m mode) *world {
	t.Helper()
	w := &world{
		T: t, mode: m, browser: b, mux: http.NewServeMux(), sessions: scs.New(),
		box: ganbtest.NewServer(ganbtest.Options{Consent: true}),
	}
	t.Cleanup(w.box.Close)
	w.sessions.Cookie.SameSite, w.sessions.Cookie.Secure = m.sameSite, true

	server := httptest.NewUnstartedServer(nil)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	handlers := map[string]http.Handler{}
	site := func(name string, h http.Handler) (origin string) {
		host := fmt.Sprintf("%s%d.localhost:%s", name, worlds.Add(1), port)
		handlers[host] = h
		return "https://" + host
	}
	box, err := url.Parse(w.box.URL)
	require.NoError(t, err)
	w.app = site("app", w.sessions.LoadAndSave(w.mux))
	w.bank = site("bank", &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(box) }})
	w.other = site("other", http.HandlerFunc(w.serveOther))
	server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := handlers[r.Host]
		if h == nil {
			h = http.NotFoundHandler()
		}
		w.record(h, rw, r)
	})
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // aborted handshakes
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(func() {
		if t.Failed() {
			w.mu.Lock()
			defer w.mu.Unlock()
			t.Log("\n" + strings.Join(w.log, "\n"))
		}
	})
	w.serveApp(server)
	return w
}

// serveApp is an application with a cart in its session, protected pages below /p/ and a form.
func (w *world) serveApp(server *httptest.Server) {
	config := w.box.Config()
	config.AuthBaseURL = strings.Replace(config.AuthBaseURL, w.box.URL, w.bank, 1)
	config.HTTPClient = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{
			RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com",
		},
	}}
	connector, err := ganbauth.NewConnector(w.box.ClientID, w.box.ClientSecret, w.box.AuthMethod, config)
	require.NoError(w, err)
	opts := ganbauth.Options{
		RedirectURI:   w.app + "/bank/callback",
		Scopes:        []string{"openid", "offline_access"},
		DefaultReturn: "/p/home",
		Logger:        slog.New(slog.DiscardHandler),
	}
	if w.mode.key {
		opts.Store = ganbauth.NewMemoryStore()
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
	w.mux.HandleFunc("GET /form", func(rw http.ResponseWriter, _ *http.Request) {
		w.page(rw, `<form method="post" action="/pay"><button>Pay</button></form>`)
	})
	w.mux.Handle("POST /pay", kit.RequireToken(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.page(rw, "paid")
	})))
	w.mux.HandleFunc("/{$}", func(rw http.ResponseWriter, r *http.Request) {
		w.sessions.Put(r.Context(), "cart", "full")
		w.sessions.Put(r.Context(), "user", "the user")
		w.page(rw, `shop <form method="post" action="/bank/logout?return_to=/"><button>Log out</button></form>`)
	})
}

func (w *world) page(rw http.ResponseWriter, body string) {
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(rw, "<!doctype html><title>Shop</title>"+body)
}

// serveOther has a link to the application's first page, and an address that redirects to it.
func (w *world) serveOther(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/short" {
		http.Redirect(rw, r, w.app+"/p/1", http.StatusFound)
		return
	}
	w.page(rw, `elsewhere <a href="`+w.app+`/p/1">Link</a>`)
}

// record serves a request and notes what it was, for a test that fails.
func (w *world) record(h http.Handler, rw http.ResponseWriter, r *http.Request) {
	start, status := time.Now(), &statusWriter{rw, http.StatusOK}
	h.ServeHTTP(status, r)
	names := []string{}
	for _, c := range r.Cookies() {
		names = append(names, c.Name)
	}
	host, _, _ := strings.Cut(r.Host, ".")
	uri := r.URL.RequestURI()
	line := fmt.Sprintf("%s %s %s%.80s %d site=%s mode=%s dest=%s cookies=%.80v -> %.60s %s", start.Format("05.000"), r.Method,
		host, uri, status.status, r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Sec-Fetch-Dest"),
		names, rw.Header().Get("Location"), rw.Header().Get("Refresh"))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// visit opens a tab at the application's own page, where the user logs in to the application.
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
