package ganbauth_test

import (
	"context"
	"html/template"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// panicker panics in the calls of the application's code that are armed.
type panicker struct{ armed atomic.Pointer[string] }

func (p *panicker) arm(name string) { p.armed.Store(&name) }

func (p *panicker) at(name string) {
	if armed := p.armed.Load(); armed != nil && *armed == name {
		panic("of the application: " + name)
	}
}

type panickingHandler struct {
	slog.Handler
	*panicker
}

func (h panickingHandler) Handle(ctx context.Context, r slog.Record) error {
	h.at("Logger")
	return h.Handler.Handle(ctx, r)
}

// G1: whatever code of the application panics, and whenever: the request may fail, but no
// token is lost, no lock and no turn is kept, and the next request is served.
func TestG1EachCallbackPanics(t *testing.T) {
	for _, name := range []string{"Key", "Connection", "Observe", "OnError", "ErrorPage", "Logger", "Lock", "unlock", "HTTPClient",
		"Load", "Save", "Delete"} {
		t.Run(name, func(t *testing.T) {
			p := &panicker{}
			memory := ganbauth.NewMemoryStore()
			var held atomic.Int32
			s := setup{bank: ganbtest.Options{RevokeOnReuse: true}}
			s.options = ganbauth.Options{
				Store:      callStore{memory, func(method, _ string) { p.at(method) }},
				Key:        func(*http.Request) (string, error) { p.at("Key"); return "u", nil },
				Connection: func(*http.Request) (string, error) { p.at("Connection"); return "c", nil },
				Observe:    func(context.Context, ganbauth.Event) { p.at("Observe") },
				Locker: lockerFunc(func(context.Context, string) (func(), error) {
					p.at("Lock")
					held.Add(1)
					return func() { held.Add(-1); p.at("unlock") }, nil
				}),
			}
			switch name {
			case "OnError":
				s.options.OnError = func(w http.ResponseWriter, _ *http.Request, err error) {
					p.at("OnError")
					w.WriteHeader(ganbauth.StatusCode(err))
				}
			case "ErrorPage":
				s.options.ErrorPage = template.Must(template.New("").Funcs(template.FuncMap{
					"at": func() string { p.at("ErrorPage"); return "" },
				}).Parse("{{at}}page"))
			}
			s.logger = func(h slog.Handler) slog.Handler { return panickingHandler{h, p} }
			s.config = func(c *ganbauth.Config) {
				next := c.HTTPClient.Transport
				c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					p.at("HTTPClient")
					return next.RoundTrip(r)
				})}
			}
			inBubble(t, s, func(t *testing.T, a *app) {
				b := a.browser()
				try := func(request func() *http.Response) {
					p.arm(name)
					defer p.armed.Store(nil)
					defer func() { _ = recover() }() // net/http's
					request()
				}
				callback := b.callbackURL("/bank/login")
				try(func() *http.Response { return b.get(callback) })
				time.Sleep(time.Minute)
				if resp := b.get(callback); resp.StatusCode != 303 {
					require.Equal(t, "HTTPClient", name, "a code that may have been sent is not sent again: %d", resp.StatusCode)
					b.login()
				}
				for range 3 {
					try(func() *http.Response { return b.get("/p") })
					try(func() *http.Response { return b.do("GET", "/transfer", program) })
					require.True(t, b.connected())
					time.Sleep(61 * time.Minute)
					try(func() *http.Response { return b.get("/p") })
					try(func() *http.Response {
						_, _ = a.kit.ClientFor("u", "c").Get(a.bank.APIBase() + "/accounts")
						return nil
					})
					time.Sleep(time.Minute)
					require.True(t, b.connected(), "the connection is kept")
				}
				try(func() *http.Response { return b.post("/bank/logout") })
				time.Sleep(time.Minute)
				require.Equal(t, 303, b.post("/bank/logout").StatusCode)
				require.False(t, b.connected())
				time.Sleep(time.Hour)
				require.Zero(t, ganbauth.KeysHeld(a.kit))
				require.Zero(t, held.Load(), "locks")
				require.NoError(t, a.kit.Shutdown(t.Context()))
			})
		})
	}
}
