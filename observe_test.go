package ganbauth_test

import (
	"context"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// The log of a kit that has a name says it in every line, of events and of all else.
func TestLogNamesTheKit(t *testing.T) {
	for name, line := range map[string]string{
		"":         `level=INFO msg="ganbauth: login_started" duration=`,
		"personal": `level=INFO msg="ganbauth: login_started" kit=personal duration=`,
	} {
		a := newApp(t, setup{options: ganbauth.Options{Name: name}})
		r := httptest.NewRequest("GET", "/bank/login", nil)
		r.Host, r.Header = "elsewhere.example", navigate.Clone()
		a.kit.LoginHandler().ServeHTTP(httptest.NewRecorder(), r)
		require.Contains(t, a.log.String(), line)
		warning := `unless a proxy changes Host, the browser will not send its cookie to the callback"`
		if name != "" {
			warning += " kit=" + name
		}
		require.Contains(t, a.log.String(), warning+" host=elsewhere.example")
	}
}

// Observe may use its context for longer than the request lasts.
func TestObserveOutlivesTheRequest(t *testing.T) {
	var heard []error
	a := newApp(t, setup{options: ganbauth.Options{Observe: func(ctx context.Context, _ ganbauth.Event) { heard = append(heard, ctx.Err()) }}})
	gone, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(gone, "GET", "/bank/login", nil)
	r.Header = navigate.Clone()
	a.kit.LoginHandler().ServeHTTP(httptest.NewRecorder(), r)
	require.Equal(t, []error{nil}, heard)
}
