package ganbauth_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// What ganbauth costs in an application, without a network:
//
//	go test -run '^$' -bench . .
//
// docs/performance.md compares that with what others cost.

// answering is a bank that answers every token request at once.
type answering struct{}

func (answering) RoundTrip(r *http.Request) (*http.Response, error) {
	const body = `{"access_token":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","refresh_token":"abcdefghijklmnopqrstuvwxyz",` +
		`"token_type":"Bearer","expires_in":86400,"scope":"private:account offline_access"}`
	return &http.Response{
		StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), Request: r,
		Header: http.Header{"Content-Type": {"application/json"}},
	}, nil
}

// newServer returns an application of one page, on sessions in memory.
func newServer(tb testing.TB) http.Handler {
	config := ganbauth.Production("salt")
	config.HTTPClient = &http.Client{Transport: answering{}}
	connector, err := ganbauth.NewConnector("id", "secret", ganbauth.AuthBasic, config)
	require.NoError(tb, err)
	sessions := scs.New()
	sessions.Store = memstore.NewWithCleanupInterval(0)
	kit, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: "https://app.test/callback", Scopes: []string{"private:account", "offline_access"},
		Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(tb, err)
	page := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	mux := http.NewServeMux()
	mux.Handle("/login", kit.LoginHandler())
	mux.Handle("/callback", kit.CallbackHandler())
	mux.Handle("/open", page)
	mux.Handle("/protected", kit.RequireToken(page))
	return sessions.LoadAndSave(mux)
}

// visitOf is a browser's request with cookies, as net/http's server has it.
func visitOf(path, cookies string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "https://app.test"+path, nil)
	r.RequestURI = path
	r.Header.Set("Accept", "text/html")
	if cookies != "" {
		r.Header.Set("Cookie", cookies)
	}
	return r
}

// login is a whole login. It returns the cookies of the user, who is connected.
func login(tb testing.TB, server http.Handler) (cookies string) {
	visit := func(path string) *http.Response {
		w := httptest.NewRecorder()
		server.ServeHTTP(w, visitOf(path, cookies))
		if w.Code != http.StatusSeeOther {
			tb.Fatal(path, w.Code)
		}
		return w.Result()
	}
	begun := visit("/login")
	cookies = jar(begun)
	bank, err := url.Parse(begun.Header.Get("Location"))
	if err != nil {
		tb.Fatal(err)
	}
	return jar(visit("/callback?code=c0de&state=" + url.QueryEscape(bank.Query().Get("state"))))
}

func jar(resp *http.Response) string {
	var pairs []string
	for _, c := range resp.Cookies() {
		if c.MaxAge >= 0 {
			pairs = append(pairs, c.Name+"="+c.Value)
		}
	}
	return strings.Join(pairs, "; ")
}

// repeat measures requests that are answered alike.
func repeat(b *testing.B, server http.Handler, r *http.Request, status int) {
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		if server.ServeHTTP(w, r); w.Code != status {
			b.Fatal(w.Code)
		}
	}
}

// A request of a user who is connected, beside one of the same user to a page that needs
// no token: the difference is what RequireToken costs.
func BenchmarkLiveToken(b *testing.B) {
	server := newServer(b)
	cookies := login(b, server)
	for _, path := range []string{"/open", "/protected"} {
		b.Run(path[1:], func(b *testing.B) { repeat(b, server, visitOf(path, cookies), http.StatusOK) })
	}
}

// A request of somebody who is not connected: a program is told so, a browser is sent to
// the bank.
func BenchmarkRefused(b *testing.B) {
	server := newServer(b)
	program := visitOf("/protected", "")
	program.Header.Set("Accept", "application/json")
	b.Run("401", func(b *testing.B) { repeat(b, server, program, http.StatusUnauthorized) })
	b.Run("303", func(b *testing.B) { repeat(b, server, visitOf("/protected", ""), http.StatusSeeOther) })
}

// To the bank, and back with a code.
func BenchmarkLogin(b *testing.B) {
	server := newServer(b)
	b.ReportAllocs()
	for b.Loop() {
		login(b, server)
	}
}

// Allocations do not depend on the machine, so they have a budget. The race detector adds
// a few.
func TestAllocations(t *testing.T) {
	server := newServer(t)
	cookies := login(t, server)
	count := func(r *http.Request) float64 {
		w := httptest.NewRecorder()
		return testing.AllocsPerRun(500, func() {
			clear(w.Header())
			server.ServeHTTP(w, r)
		})
	}
	program := visitOf("/protected", "")
	program.Header.Set("Accept", "application/json")
	open := count(visitOf("/open", ""))
	for _, c := range []struct {
		what   string
		of     float64
		budget float64
	}{
		{"a request with a live token, beside the session", count(visitOf("/protected", cookies)) - count(visitOf("/open", cookies)), 7},
		{"a refused program's request", count(program) - open, 18},
		{"a refused browser's request", count(visitOf("/protected", "")) - open, 40},
		{"a login", testing.AllocsPerRun(100, func() { login(t, server) }), 515},
	} {
		require.LessOrEqual(t, c.of, c.budget, "%s makes %.0f allocations, and has a budget of %.0f. "+
			"Each costs some 30 ns, and the garbage collector's time later. If it buys something, raise the budget here.",
			c.what, c.of, c.budget)
	}
}
