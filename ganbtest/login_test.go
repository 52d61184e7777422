package ganbtest_test

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
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

// application is one with sessions and a bank, as main mounts it.
func application(t *testing.T, s *ganbtest.Server, sessions *scs.SessionManager, base string) http.Handler {
	t.Helper()
	sessions.Store = memstore.NewWithCleanupInterval(0)
	mux := http.NewServeMux()
	kit, err := ganbauth.New(s.Connector(), sessions, ganbauth.Options{
		RedirectURI: base + "/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Logger:      slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	mux.Handle("/bank/login", kit.LoginHandler())
	mux.Handle("/bank/callback", kit.CallbackHandler())
	mux.Handle("/me", kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		fmt.Fprint(w, r.Method, " ", token.Subject, " ", r.TLS != nil)
	})))
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Accept", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Origin"} {
			fmt.Fprintln(w, name, r.Header.Get(name))
		}
	})
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusSeeOther))
	return sessions.LoadAndSave(mux)
}

func read(t *testing.T, resp *http.Response, err error) string {
	t.Helper()
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

func TestLogin(t *testing.T) {
	for _, base := range []string{"https://app.test", "http://localhost:8080"} {
		for _, consent := range []bool{false, true} {
			both(t, ganbtest.Options{Subject: "u", Consent: consent}, func(t *testing.T, s *ganbtest.Server) {
				sessions := scs.New()
				sessions.Cookie.Secure = base == "https://app.test"
				sessions.Cookie.SameSite = http.SameSiteStrictMode
				app := application(t, s, sessions, base)
				one, other := s.Login(app, base+"/bank/login"), s.Browser(app)
				resp, err := one.Get(base + "/me")
				require.Equal(t, fmt.Sprint("GET u ", sessions.Cookie.Secure), read(t, resp, err))
				resp, err = one.PostForm(base+"/me", nil)
				require.Equal(t, fmt.Sprint("POST u ", sessions.Cookie.Secure), read(t, resp, err))
				resp, err = other.Get(base + "/me")
				if text := read(t, resp, err); consent {
					require.Contains(t, text, "Choose what it may do", "at the bank")
				} else {
					require.Equal(t, fmt.Sprint("GET u ", sessions.Cookie.Secure), text, "through the bank and back")
				}
			})
		}
	}
}

func TestLoginInABubble(t *testing.T) {
	sessions := scs.New()
	synctest.Test(t, func(t *testing.T) {
		s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		app := application(t, s, sessions, "https://app.test")
		resp, err := s.Login(app, "https://app.test/bank/login").Get("https://app.test/me")
		require.Contains(t, read(t, resp, err), "GET user-")
	})
}

// A user whose grant has ended connects again, but not at once after connecting.
func TestRevokedInABubble(t *testing.T) {
	for after, want := range map[time.Duration]int{11 * time.Second: 401, 31 * time.Second: 200} {
		sessions := scs.New()
		synctest.Test(t, func(t *testing.T) {
			s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Lifetime: 10 * time.Second})
			browser := s.Login(application(t, s, sessions, "https://app.test"), "https://app.test/bank/login")
			time.Sleep(after)
			s.RevokeGrants()
			resp, err := browser.Get("https://app.test/me")
			read(t, resp, err)
			require.Equal(t, want, resp.StatusCode)
		})
	}
}

func TestLoginThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		path, want string
		registered string
		at         ganbtest.Endpoint
		fault      ganbtest.Fault
	}{
		"no such page":      {path: "/nowhere", want: "GET https://app.test/nowhere answered 404 Not Found"},
		"not a login":       {path: "/headers", want: "GET https://app.test/headers answered 200 OK"},
		"a loop":            {path: "/loop", want: "ten redirects"},
		"the bank's page":   {path: "/bank/login", at: ganbtest.Authorization, fault: ganbtest.ServerError, want: "/authorization answered 500"},
		"not registered":    {path: "/bank/login", registered: "https://app.test/elsewhere", want: "400 Bad Request: The client or its redirect_uri is not registered."},
		"the bank is cut":   {path: "/bank/login", at: ganbtest.Authorization, fault: ganbtest.ConnectionCut, want: "/authorization: ganbtest: the connection was cut"},
		"the code is dead":  {path: "/bank/login", at: ganbtest.TokenEndpoint, fault: ganbtest.InvalidGrant, want: "GET https://app.test/bank/callback answered 502"},
		"the bank is down":  {path: "/bank/login", at: ganbtest.TokenEndpoint, fault: ganbtest.ServerError, want: "GET https://app.test/bank/callback answered 503 Service Unavailable: We couldn't connect your account."},
		"the user declines": {path: "/bank/login", at: ganbtest.Authorization, fault: ganbtest.Fault{Status: 302, Header: http.Header{"Location": {"https://app.test/bank/callback?error=access_denied"}}}, want: "GET https://app.test/bank/callback answered 4"},
	} {
		t.Run(name, func(t *testing.T) {
			s := ganbtest.NewServer(ganbtest.Options{InProcess: true, RedirectURI: c.registered})
			app := application(t, s, scs.New(), "https://app.test")
			s.Fail(c.at, c.fault, -1)
			defer func() {
				message, ok := recover().(string)
				require.True(t, ok)
				require.True(t, strings.HasPrefix(message, "ganbtest: login: "), message)
				require.Contains(t, message, c.want)
				require.NotContains(t, message, "?", "no code and no state")
			}()
			s.Login(app, "https://app.test"+c.path)
		})
	}
}

func TestBrowserHeaders(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	browser := s.Browser(application(t, s, scs.New(), "https://app.test"))
	resp, err := browser.Get("https://app.test/headers")
	require.Regexp(t, `^Accept text/html.*\nSec-Fetch-Site none\nSec-Fetch-Mode navigate\nOrigin \n$`, read(t, resp, err))
	resp, err = browser.PostForm("https://app.test/headers", nil)
	require.Regexp(t, `^Accept text/html.*\nSec-Fetch-Site same-origin\nSec-Fetch-Mode navigate\nOrigin https://app.test\n$`, read(t, resp, err))
	for referer, site := range map[string]string{"https://app.test/a": "same-origin", "https://elsewhere.example/": "cross-site"} {
		req, err := http.NewRequest("GET", "https://app.test/headers", nil)
		require.NoError(t, err)
		req.Header.Set("Referer", referer)
		resp, err = browser.Do(req)
		require.Contains(t, read(t, resp, err), "Sec-Fetch-Site "+site+"\n")
		require.Empty(t, req.Header.Get("Accept"), "the caller's request is left alone")
	}
	req, err := http.NewRequest("GET", "https://app.test/headers", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "application/json")
	resp, err = browser.Do(req)
	require.Equal(t, "Accept application/json\nSec-Fetch-Site \nSec-Fetch-Mode \nOrigin \n", read(t, resp, err))
}

// lockedLog is what has been logged.
type lockedLog struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, line...)
	return len(line), nil
}

// take returns what has been logged since it was last called.
func (l *lockedLog) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := string(l.b)
	l.b = nil
	return s
}

// clients is the key of a value in a client's context.
type clients struct{}

// A handler in process meets what net/http does on both sides of a network.
func TestInProcessIsLikeANetwork(t *testing.T) {
	log := &lockedLog{}
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) {
		w.Header()["x-names"] = []string{strings.Join(slices.Sorted(maps.Keys(r.Header)), " ")}
		fmt.Fprint(w, "page")
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, "page")
	})
	var handlers sync.WaitGroup
	mux.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		handlers.Go(func() { <-r.Context().Done() })
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintln(w, r.URL, r.ContentLength, string(body), r.GetBody == nil, r.Response == nil, r.Context().Value(clients{}))
	})
	mux.HandleFunc("/nothing", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		fmt.Fprint(w, "page")
	})
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic("the application's") })
	mux.HandleFunc("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = stdlog.New(log, "", 0)
	server.Start()
	defer server.Close()
	defer stdlog.SetOutput(stdlog.Writer())
	stdlog.SetOutput(log)
	for base, client := range map[string]*http.Client{
		server.URL:         server.Client(),
		"https://app.test": ganbtest.NewServer(ganbtest.Options{InProcess: true}).Browser(mux),
	} {
		do := func(method, path string) (*http.Response, error) {
			req, err := http.NewRequest(method, base+path, nil)
			require.NoError(t, err)
			req.Header = http.Header{"Accept": {"text/html"}, "idempotency-key": {"a"}, "X-Nothing": nil, "User-Agent": {"x"}, "Accept-Encoding": {"x"}}
			return client.Do(req)
		}
		resp, err := do(http.MethodGet, "/page")
		require.Equal(t, "page", read(t, resp, err))
		require.Equal(t, "Accept Accept-Encoding Idempotency-Key User-Agent", resp.Header.Get("X-Names"), base)
		resp, err = do(http.MethodHead, "/page")
		require.Empty(t, read(t, resp, err), base)
		require.Equal(t, 200, resp.StatusCode)
		resp, err = do(http.MethodGet, "/hints")
		require.Equal(t, "page", read(t, resp, err))
		require.Equal(t, http.StatusAccepted, resp.StatusCode, base)
		for body, length := range map[io.Reader]int{strings.NewReader("body"): 4, io.MultiReader(strings.NewReader("body")): -1} {
			req, err := http.NewRequestWithContext(context.WithValue(t.Context(), clients{}, "v"), http.MethodPost, base+"/request?q#f", body)
			require.NoError(t, err)
			resp, err := client.Do(req)
			require.Equal(t, fmt.Sprintln("/request?q", length, "body", true, true, nil), read(t, resp, err), base)
			handlers.Wait() // their contexts have ended
		}
		resp, err = do(http.MethodGet, "/nothing")
		require.Empty(t, read(t, resp, err), base)
		_, err = do(http.MethodGet, "/abort")
		require.Error(t, err)
		require.Empty(t, log.take(), base)
		_, err = do(http.MethodGet, "/panic")
		require.Error(t, err)
		require.Regexp(t, `(?s)the application's.*login_test\.go:`, log.take(), "with its stack")
	}
}

// A browser loads a page again after the pause that the page asks for, unless the user
// leaves.
func TestBrowserRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loads := 0
		browser := ganbtest.NewServer(ganbtest.Options{InProcess: true}).Browser(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if loads++; loads < 3 {
				w.Header().Set("Refresh", fmt.Sprintf("%d; url=/page?n=%d", loads, loads))
			}
			fmt.Fprint(w, r.URL)
		}))
		begun := time.Now()
		resp, err := browser.Get("https://app.test/page")
		require.Equal(t, "/page?n=2", read(t, resp, err))
		require.Equal(t, 3*time.Second, time.Since(begun))

		loads = 0
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://app.test/page", nil)
		require.NoError(t, err)
		_, err = browser.Do(r)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 2, loads)
	})
}
