package e2e

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/coder/websocket"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/klauspost/compress/gzhttp"
	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// The functions of this file are snippets of docs/recipes.md. The other snippets are in
// recipes_test.go of the root, whose TestRecipesPage compares the page with both.

func serveMux(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/bank/login", bank.LoginHandler())
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/bank/logout", bank.LogoutHandler())
	mux.Handle("GET /accounts", bank.RequireToken(accounts(bank, apiBase)))
	return sessions.LoadAndSave(mux)
}

func chiRouter(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
	r := chi.NewRouter()
	r.Use(sessions.LoadAndSave)
	r.Handle("/bank/login", bank.LoginHandler())
	r.Handle("/bank/callback", bank.CallbackHandler())
	r.Handle("/bank/logout", bank.LogoutHandler())
	r.Group(func(r chi.Router) {
		r.Use(bank.RequireToken)
		r.Method("GET", "/accounts", accounts(bank, apiBase))
	})
	return r
}

func gorillaMux(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
	r := mux.NewRouter()
	r.Use(sessions.LoadAndSave)
	r.Handle("/bank/login", bank.LoginHandler())
	r.Handle("/bank/callback", bank.CallbackHandler())
	r.Handle("/bank/logout", bank.LogoutHandler())
	protected := r.NewRoute().Subrouter()
	protected.Use(bank.RequireToken)
	protected.Handle("/accounts", accounts(bank, apiBase)).Methods("GET")
	return r
}

func echoServer(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
	e := echo.New()
	e.Use(echo.WrapMiddleware(sessions.LoadAndSave))
	e.Any("/bank/login", echo.WrapHandler(bank.LoginHandler()))
	e.Any("/bank/callback", echo.WrapHandler(bank.CallbackHandler()))
	e.Any("/bank/logout", echo.WrapHandler(bank.LogoutHandler()))
	e.GET("/accounts", echo.WrapHandler(accounts(bank, apiBase)), echo.WrapMiddleware(bank.RequireToken))
	return e
}

func ginEngine(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
	r := gin.New()
	r.Any("/bank/login", gin.WrapH(bank.LoginHandler()))
	r.Any("/bank/callback", gin.WrapH(bank.CallbackHandler()))
	r.Any("/bank/logout", gin.WrapH(bank.LogoutHandler()))
	protected := r.Group("/", ginRequireToken(bank))
	protected.GET("/accounts", gin.WrapH(accounts(bank, apiBase)))
	return sessions.LoadAndSave(r)
}

// gin has no adapter for net/http middleware.
func ginRequireToken(bank *ganbauth.Kit) gin.HandlerFunc {
	return func(c *gin.Context) {
		passed := false
		bank.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			passed = true
			c.Request = r
			c.Next()
		})).ServeHTTP(c.Writer, c.Request)
		if !passed {
			c.Abort()
		}
	}
}

func outerHandlers(handler http.Handler) http.Handler {
	handler = http.MaxBytesHandler(handler, 1<<20)
	handler = http.TimeoutHandler(handler, 10*time.Second, "")
	return gzhttp.GzipHandler(handler)
}

func h2cServer(handler http.Handler) *http.Server {
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}

func accounts(bank *ganbauth.Kit, apiBase string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := bank.Client(r.Context()).Get(apiBase + "/accounts")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		_, _ = io.Copy(w, resp.Body)
	})
}

func serverSentEvents(bank *ganbauth.Kit, apiBase string, every time.Duration) http.Handler {
	return bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client := bank.Client(r.Context()) // its token is refreshed for as long as the stream lasts
		w.Header().Set("Content-Type", "text/event-stream")
		flusher := http.NewResponseController(w)
		for {
			resp, err := client.Get(apiBase + "/accounts")
			if err != nil {
				return
			}
			resp.Body.Close()
			fmt.Fprintf(w, "data: %d\n\n", resp.StatusCode)
			if err := flusher.Flush(); err != nil {
				return
			}
			select {
			case <-time.After(every):
			case <-r.Context().Done():
				return
			}
		}
	}))
}

func webSocket(bank *ganbauth.Kit) http.Handler {
	return bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		token, _ := ganbauth.TokenFromContext(r.Context())
		_ = conn.Write(r.Context(), websocket.MessageText, []byte(token.Subject))
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}))
}

func belowBasePath(connector *ganbauth.Connector, sessions *scs.SessionManager, opts ganbauth.Options) (http.Handler, error) {
	sessions.Cookie.Path = "/app/"
	opts.RedirectURI = "https://www.example.com/app/bank/callback"
	opts.DefaultReturn = "/app/"
	bank, err := ganbauth.New(connector, sessions, opts)
	if err != nil {
		return nil, err
	}
	return http.StripPrefix("/app", serveMux(bank, sessions)), nil // the mux above
}

const nginxBasePath = `
location /app/ {
    proxy_pass http://127.0.0.1:8080; # without a path, not even a slash
    proxy_set_header Host $host;
}
`

func singlePageAPI(bank *ganbauth.Kit, sessions *scs.SessionManager, apiBase, spa string) (http.Handler, error) {
	protection := http.NewCrossOriginProtection()
	if err := protection.AddTrustedOrigin(spa); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("GET /connected", http.RedirectHandler(spa, http.StatusSeeOther)) // opts.DefaultReturn
	mux.Handle("GET /accounts", bank.RequireToken(accounts(bank, apiBase)))
	mux.HandleFunc("POST /disconnect", func(w http.ResponseWriter, r *http.Request) {
		if err := bank.Forget(w, r); err != nil {
			bank.Refuse(w, r, err)
		}
	})
	handler := protection.Handler(sessions.LoadAndSave(mux))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Origin")
		if r.Header.Get("Origin") == spa {
			w.Header().Set("Access-Control-Allow-Origin", spa)
			w.Header().Set("Access-Control-Allow-Credentials", "true")
		}
		handler.ServeHTTP(w, r)
	}), nil
}

const singlePageScript = `
async function accounts() {
  const response = await fetch(api + "/accounts", {credentials: "include"});
  const answer = await response.json();
  if (answer.login_url) {
    location.href = new URL(answer.login_url, api);
  }
  return answer.accounts;
}

async function disconnect() {
  await fetch(api + "/disconnect", {method: "POST", credentials: "include"});
}
`

// What the snippets need around them.

var apiBase string

type recipeApp struct {
	*httptest.Server
	bank   *ganbtest.Server
	client *http.Client
}

// newRecipe serves what the recipe makes of a kit.
func newRecipe(t *testing.T, server *http.Server, recipe func(*ganbauth.Kit, *scs.SessionManager) http.Handler) *recipeApp {
	t.Helper()
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true})
	t.Cleanup(bank.Close)
	apiBase = bank.APIBase()
	app := httptest.NewUnstartedServer(nil)
	sessions := scs.New()
	connector, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	kit, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: "http://" + app.Listener.Addr().String() + "/bank/callback",
		Scopes:      []string{"openid", "offline_access"}, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	if server != nil {
		app.Config = server
	}
	app.Config.Handler = recipe(kit, sessions)
	app.Start()
	t.Cleanup(app.Close)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	return &recipeApp{app, bank, &http.Client{Jar: jar}}
}

func (a *recipeApp) do(t *testing.T, method, path, accept string) (resp *http.Response, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, a.URL+path, nil)
	require.NoError(t, err)
	r.Header.Set("Accept", accept)
	resp, err = a.client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(data)
}

// worksAsEverywhere is a login, a refresh and a logout.
func (a *recipeApp) worksAsEverywhere(t *testing.T) {
	t.Helper()
	resp, body := a.do(t, "GET", "/accounts", "application/json")
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode, body)
	require.NotContains(t, body, "accountId")
	resp, body = a.do(t, "GET", "/accounts", "text/html")
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	require.Contains(t, body, "accountId")
	a.bank.ExpireAccessTokens()
	resp, body = a.do(t, "GET", "/accounts", "application/json")
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	require.Equal(t, 1, a.bank.Refreshes())
	a.do(t, "POST", "/bank/logout", "text/html")
	resp, _ = a.do(t, "GET", "/accounts", "application/json")
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
}

func TestServers(t *testing.T) {
	gin.SetMode(gin.TestMode)
	for name, recipe := range map[string]func(*ganbauth.Kit, *scs.SessionManager) http.Handler{
		"net/http": serveMux, "chi": chiRouter, "gorilla mux": gorillaMux, "echo": echoServer, "gin": ginEngine,
	} {
		t.Run(name, func(t *testing.T) { newRecipe(t, nil, recipe).worksAsEverywhere(t) })
	}
	t.Run("h2c", func(t *testing.T) {
		a := newRecipe(t, h2cServer(nil), serveMux)
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetUnencryptedHTTP2(true)
		t.Cleanup(transport.CloseIdleConnections)
		a.client.Transport = onlyFor{a.URL, transport}
		a.worksAsEverywhere(t)
		resp, _ := a.do(t, "GET", "/accounts", "application/json")
		require.Equal(t, 2, resp.ProtoMajor)
	})
}

// onlyFor uses the transport for one origin: the bank speaks HTTP/1.1.
type onlyFor struct {
	origin    string
	transport http.RoundTripper
}

func (o onlyFor) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), o.origin) {
		return o.transport.RoundTrip(r)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func TestOuterHandlers(t *testing.T) {
	recipe := func(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/", serveMux(bank, sessions))
		mux.Handle("/upload", sessions.LoadAndSave(bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			_, _ = io.WriteString(w, strings.Repeat("well compressed ", 1000))
		}))))
		return outerHandlers(mux)
	}
	newRecipe(t, nil, recipe).worksAsEverywhere(t)

	a := newRecipe(t, nil, recipe)
	a.do(t, "GET", "/accounts", "text/html")
	post := func(size int) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), "POST", a.URL+"/upload", strings.NewReader(strings.Repeat("x", size)))
		require.NoError(t, err)
		r.Header.Set("Accept-Encoding", "gzip")
		resp, err := a.client.Do(r)
		require.NoError(t, err)
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	require.Equal(t, http.StatusRequestEntityTooLarge, post(2<<20).StatusCode)
	resp := post(1000)
	require.Equal(t, "gzip", resp.Header.Get("Content-Encoding"))
	unzipped, err := gzip.NewReader(resp.Body)
	require.NoError(t, err)
	text, err := io.ReadAll(unzipped)
	require.NoError(t, err)
	require.Len(t, text, 16_000)
}

// A request that http.TimeoutHandler gives up does not burn the refresh token: the
// refresh goes on without it.
func TestTimeoutHandler(t *testing.T) {
	a := newRecipe(t, nil, func(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
		return http.TimeoutHandler(serveMux(bank, sessions), 500*time.Millisecond, "")
	})
	a.do(t, "GET", "/accounts", "text/html")
	a.bank.ExpireAccessTokens()
	a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Second), 1)
	resp, _ := a.do(t, "GET", "/accounts", "application/json")
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Eventually(t, func() bool {
		resp, _ := a.do(t, "GET", "/accounts", "application/json")
		return resp.StatusCode == http.StatusOK
	}, 10*time.Second, 50*time.Millisecond)
	require.Equal(t, 1, a.bank.Refreshes())
}

func TestServerSentEvents(t *testing.T) {
	a := newRecipe(t, nil, func(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/bank/callback", bank.CallbackHandler())
		mux.Handle("/accounts", bank.RequireToken(accounts(bank, apiBase)))
		mux.Handle("/events", serverSentEvents(bank, apiBase, 100*time.Millisecond))
		return sessions.LoadAndSave(mux)
	})
	a.do(t, "GET", "/accounts", "text/html")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", a.URL+"/events", nil)
	require.NoError(t, err)
	resp, err := a.client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	lines, expire := bufio.NewScanner(resp.Body), sync.OnceFunc(a.bank.ExpireAccessTokens)
	for range 3 {
		require.True(t, lines.Scan())
		require.Equal(t, "data: 200", lines.Text())
		require.True(t, lines.Scan())
		expire() // the stream goes on
	}
	require.Equal(t, 1, a.bank.Refreshes())
}

func TestWebSocket(t *testing.T) {
	a := newRecipe(t, nil, func(bank *ganbauth.Kit, sessions *scs.SessionManager) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/bank/callback", bank.CallbackHandler())
		mux.Handle("/accounts", bank.RequireToken(accounts(bank, apiBase)))
		mux.Handle("/socket", webSocket(bank))
		return sessions.LoadAndSave(mux)
	})
	dial := func() (string, int) {
		conn, resp, err := websocket.Dial(t.Context(), a.URL+"/socket", &websocket.DialOptions{HTTPClient: a.client})
		if err != nil {
			return "", resp.StatusCode
		}
		defer conn.CloseNow()
		_, message, err := conn.Read(t.Context())
		require.NoError(t, err)
		return string(message), resp.StatusCode
	}
	_, status := dial()
	require.Equal(t, http.StatusUnauthorized, status)
	a.do(t, "GET", "/accounts", "text/html")
	subject, status := dial()
	require.Equal(t, http.StatusSwitchingProtocols, status)
	require.NotEmpty(t, subject)
}

// An application below /app/ works behind an nginx that keeps the path.
func TestRecipeBasePath(t *testing.T) {
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true})
	defer bank.Close()
	apiBase = bank.APIBase()
	sessions := scs.New()
	sessions.Cookie.Secure = true
	connector, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	handler, err := belowBasePath(connector, sessions, ganbauth.Options{
		Scopes: []string{"openid", "offline_access"}, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	backend := httptest.NewServer(handler)
	defer backend.Close()
	addr := serveNginx(t, strings.ReplaceAll(nginxBasePath, "127.0.0.1:8080", backend.Listener.Addr().String()))

	cert, err := certificate()
	require.NoError(t, err)
	trusted := x509.NewCertPool()
	trusted.AddCert(cert.Leaf)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			if to == "www.example.com:443" {
				to = addr
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
		TLSClientConfig: &tls.Config{RootCAs: trusted, ServerName: "www.localhost"},
	}
	defer transport.CloseIdleConnections()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	a := &recipeApp{&httptest.Server{URL: "https://www.example.com/app"}, bank, &http.Client{Jar: jar, Transport: transport}}
	a.worksAsEverywhere(t)
	resp, _ := a.do(t, "GET", "/accounts", "text/html")
	require.Equal(t, "/app/accounts", resp.Request.URL.Path, "where the login comes back")
}

// A page of another origin and its script connect an account, use it and disconnect, in
// Chromium.
func TestRecipeSinglePage(t *testing.T) {
	browser := newBrowser(t)
	page := ""
	spa := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) }))
	defer spa.Close()
	origin := strings.Replace(spa.URL, "127.0.0.1", "localhost", 1)

	bank := ganbtest.NewServer(ganbtest.Options{})
	defer bank.Close()
	apiBase = bank.APIBase()
	connector, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config())
	require.NoError(t, err)
	sessions, api := scs.New(), httptest.NewUnstartedServer(nil)
	_, port, err := net.SplitHostPort(api.Listener.Addr().String())
	require.NoError(t, err)
	apiOrigin := "http://localhost:" + port
	kit, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: apiOrigin + "/bank/callback", DefaultReturn: "/connected",
		Scopes: []string{"openid", "offline_access"}, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	api.Config.Handler, err = singlePageAPI(kit, sessions, apiBase, origin)
	require.NoError(t, err)
	api.Start()
	defer api.Close()
	page = fmt.Sprintf(`<!doctype html><button onclick="disconnect().then(() => text.value = 'gone')">Disconnect</button>
<output id="text"></output><script>const api = "%s", text = document.getElementById("text");%s
accounts().then(a => text.value = a.length + " accounts at " + location.origin)</script>`,
		apiOrigin, singlePageScript)

	open(t, browser, origin)
	see(t, browser, "accounts at "+origin, "")
	require.Len(t, bank.Grants(), 1)
	click(t, browser, "Disconnect")
	see(t, browser, "gone", "")
	open(t, browser, origin+"/again") // another login
	see(t, browser, "accounts at "+origin, "")
	require.Len(t, bank.Grants(), 2)
	resp, err := http.Post(apiOrigin+"/disconnect", "", nil)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode, "a program")
	req, err := http.NewRequest(http.MethodPost, apiOrigin+"/disconnect", nil)
	require.NoError(t, err)
	req.Header.Set("Origin", "https://other.example")
	resp, err = http.DefaultClient.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
}
