package ganbauth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// A function that returns *APIError where its caller wants an error makes an error of nil. The
// page is then that of a slip, and the server does not panic.
func TestNilPointersThatAreErrors(t *testing.T) {
	a := newApp(t, setup{})
	for name, err := range map[string]interface{ Error() string }{
		"TokenError":         (*ganbauth.TokenError)(nil),
		"APIError":           (*ganbauth.APIError)(nil),
		"AuthorizationError": (*ganbauth.AuthorizationError)(nil),
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, "ganbauth: a nil pointer is no error", err.Error())
			require.Nil(t, errors.Unwrap(err))
			if e, ok := err.(interface{ Temporary() bool }); ok {
				require.False(t, e.Temporary())
			}
			for _, err := range []error{err, fmt.Errorf("x: %w", err)} {
				class, topic, _ := ganbauth.ErrorKind(err)
				require.Equal(t, []any{500, "internal", "internal"}, []any{ganbauth.StatusCode(err), class, topic})
				require.Zero(t, ganbauth.RetryAfter(err))
				for _, h := range []http.Header{navigate, program} {
					r := mustRequest("GET", appURL+"/p")
					r.Header = h
					w := httptest.NewRecorder()
					a.kit.Refuse(w, r, err)
					require.Equal(t, 500, w.Code)
				}
			}
			later := fmt.Errorf("%w: %w", ganbauth.ErrUnavailable, err)
			require.Equal(t, 503, ganbauth.StatusCode(later))
			require.Equal(t, time.Second, ganbauth.RetryAfter(later))
			_, refreshErr := a.connector(nil).RefreshSession(t.Context(), a.bank.Token(), err)
			require.ErrorIs(t, refreshErr, ganbauth.ErrTokenNotExpired)
		})
	}
	require.False(t, (*ganbauth.APIError)(nil).Expired())
}

// The table of errors: what an error is to a browser, to a metric and to an operator.
func TestErrorTable(t *testing.T) {
	tokenError := func(status int, code string) error {
		return &ganbauth.TokenError{StatusCode: status, Code: code}
	}
	apiError := func(status int, code string) error { return &ganbauth.APIError{StatusCode: status, Code: code} }
	consent := func(code string) error { return &ganbauth.AuthorizationError{Code: code} }
	refusedDial := &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	silence := &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
	get := func(err error) error { return &url.Error{Op: "Get", URL: "https://bank.test/", Err: err} }
	for _, test := range []struct {
		err          error
		status       int
		class, topic string
	}{
		{nil, 500, "", "internal"},
		{errors.New("x"), 500, "internal", "internal"},
		{ganbauth.ErrUnavailable, 503, "unavailable", "unavailable"},
		{ganbauth.ErrLoginRequired, 401, "login_required", "login_required"},
		{fmt.Errorf("%w: %w", ganbauth.ErrLoginRequired, tokenError(400, "invalid_grant")), 401, "login_required", "login_required"},
		{ganbauth.ErrNoUser, 401, "no_user", "no_user"},
		{ganbauth.ErrInsufficientScope, 403, "insufficient_scope", "insufficient_scope"},
		{ganbauth.ErrInvalidState, 400, "invalid_state", "invalid_state"},
		{ganbauth.ErrAttemptExpired, 400, "invalid_state", "login_expired"},
		{ganbauth.Refusal(405), 405, "refused", "refused"},
		{ganbauth.Refusal(403), 403, "refused", "refused"},

		{consent("access_denied"), 403, "access_denied", "access_denied"},
		{consent("server_error"), 503, "server_error", "bank_unavailable"},
		{consent("temporarily_unavailable"), 503, "temporarily_unavailable", "bank_unavailable"},
		{consent("invalid_scope"), 400, "invalid_scope", "bank_error"},
		{consent("invalid_request"), 400, "invalid_request", "bank_error"},
		{consent("unauthorized_client"), 400, "unauthorized_client", "bank_error"},
		{consent("unsupported_response_type"), 400, "unsupported_response_type", "bank_error"},
		{consent("invalid_client"), 400, "authorization_error", "bank_error"},
		{consent("made up"), 400, "authorization_error", "bank_error"},
		{consent(""), 400, "authorization_error", "bank_error"},

		{ganbauth.ErrOtherSubject, 502, "other_subject", "bank_error"},
		{ganbauth.ErrInvalidIDToken, 502, "invalid_id_token", "bank_error"},
		{ganbauth.ErrTokenFormat, 502, "token_format", "bank_error"},
		{ganbauth.ErrTokenValue, 502, "token_format", "bank_error"},

		{tokenError(400, "invalid_grant"), 502, "invalid_grant", "bank_error"},
		{tokenError(200, "invalid_grant"), 502, "invalid_grant", "bank_error"},
		{tokenError(500, "invalid_grant"), 503, "status_5xx", "bank_unavailable"},
		{tokenError(400, "invalid_request"), 502, "invalid_request", "bank_error"},
		{tokenError(400, "invalid_scope"), 502, "invalid_scope", "bank_error"},
		{tokenError(401, "invalid_client"), 502, "invalid_client", "misconfigured"},
		{tokenError(400, "unauthorized_client"), 502, "unauthorized_client", "misconfigured"},
		{tokenError(400, "unsupported_grant_type"), 502, "unsupported_grant_type", "misconfigured"},
		{tokenError(401, ""), 502, "status_4xx", "misconfigured"},
		{tokenError(404, ""), 502, "status_4xx", "misconfigured"},
		{tokenError(405, "WG_ERR_019"), 502, "status_4xx", "misconfigured"},
		{tokenError(400, ""), 502, "status_4xx", "bank_error"},
		{tokenError(403, "made up"), 502, "status_4xx", "bank_error"},
		{tokenError(428, ""), 502, "status_4xx", "bank_error"},
		{tokenError(430, ""), 502, "status_4xx", "bank_error"},
		{tokenError(499, ""), 502, "status_4xx", "bank_error"},
		{tokenError(399, ""), 502, "bank_error", "bank_error"},
		{tokenError(307, ""), 502, "bank_error", "bank_error"},
		{tokenError(1, ""), 502, "bank_error", "bank_error"},
		{tokenError(200, "made up"), 502, "bank_error", "bank_error"},
		{tokenError(200, "server_error"), 503, "server_error", "bank_unavailable"},
		{tokenError(400, "temporarily_unavailable"), 503, "temporarily_unavailable", "bank_unavailable"},
		{tokenError(429, ""), 503, "rate_limited", "bank_unavailable"},
		{ganbauth.ErrBusy, 503, "rate_limited", "bank_unavailable"},
		{ganbauth.Unavailable(ganbauth.ErrBusy), 503, "rate_limited", "bank_unavailable"},
		{tokenError(500, ""), 503, "status_5xx", "bank_unavailable"},
		{tokenError(999, ""), 503, "status_5xx", "bank_unavailable"},
		{tokenError(503, "made up"), 503, "status_5xx", "bank_unavailable"},
		{tokenError(503, "WG_ERR_300"), 503, "WG_ERR_300", "bank_unavailable"},
		{tokenError(401, "WG_ERR_105"), 502, "WG_ERR_105", "bank_error"},
		{tokenError(0, ""), 503, "network", "bank_unavailable"},

		{apiError(401, "WG_ERR_105"), 401, "WG_ERR_105", "login_required"},
		{apiError(403, "WG_ERR_105"), 502, "status_4xx", "bank_error"},
		{apiError(400, "WG_ERR_300"), 503, "WG_ERR_300", "bank_unavailable"},
		{apiError(429, ""), 503, "rate_limited", "bank_unavailable"},
		{apiError(500, ""), 503, "status_5xx", "bank_unavailable"},
		{apiError(400, "server_error"), 502, "status_4xx", "bank_error"},
		{apiError(401, ""), 502, "status_4xx", "bank_error"},
		{apiError(404, "WG_ERR_019"), 502, "status_4xx", "bank_error"},
		{apiError(302, ""), 502, "bank_error", "bank_error"},
		{apiError(0, ""), 502, "bank_error", "bank_error"},
		{fmt.Errorf("%w: %w", ganbauth.ErrTokenNotExpired, apiError(400, "")), 502, "status_4xx", "bank_error"},

		{get(refusedDial), 503, "network", "bank_unavailable"},
		{get(io.EOF), 503, "network", "bank_unavailable"},
		{get(io.ErrUnexpectedEOF), 503, "network", "bank_unavailable"},
		{get(errors.New("http: server closed idle connection")), 503, "network", "bank_unavailable"},
		{get(context.DeadlineExceeded), 503, "timeout", "bank_unavailable"},
		{get(fmt.Errorf("proxy: %w", context.DeadlineExceeded)), 503, "timeout", "bank_unavailable"},
		{get(silence), 503, "timeout", "bank_unavailable"},
		{get(context.Canceled), 503, "canceled", "bank_unavailable"},
		{get(ganbauth.ErrLoginRequired), 401, "login_required", "login_required"},
		{get(ganbauth.Unavailable(errors.New("down"))), 503, "unavailable", "unavailable"},
		{&url.Error{Op: "parse", URL: ":", Err: errors.New("missing scheme")}, 500, "internal", "internal"},
		{refusedDial, 503, "network", "unavailable"},
		{silence, 503, "timeout", "unavailable"},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, 503, "network", "unavailable"},
		{io.ErrUnexpectedEOF, 503, "network", "unavailable"},
		{io.EOF, 500, "internal", "internal"},
		{context.DeadlineExceeded, 503, "timeout", "unavailable"},
		{context.Canceled, 503, "canceled", "unavailable"},

		{ganbauth.Unavailable(errors.New("disk full")), 503, "unavailable", "unavailable"},
		{ganbauth.Unavailable(refusedDial), 503, "network", "unavailable"},
		{ganbauth.Unavailable(context.DeadlineExceeded), 503, "timeout", "unavailable"},
		{ganbauth.Unavailable(ganbauth.Unavailable(tokenError(503, ""))), 503, "status_5xx", "bank_unavailable"},
		{ganbauth.Unavailable(tokenError(400, "invalid_scope")), 503, "invalid_scope", "bank_unavailable"},
		{ganbauth.Unavailable(tokenError(401, "invalid_client")), 503, "invalid_client", "misconfigured"},
		{ganbauth.Unavailable(ganbauth.ErrTokenFormat), 503, "token_format", "bank_unavailable"},
		{ganbauth.Unavailable(apiError(401, "WG_ERR_105")), 503, "WG_ERR_105", "bank_unavailable"},
	} {
		for _, err := range []error{test.err, fmt.Errorf("accounts: %w", test.err)} {
			if test.err == nil {
				err = nil
			}
			class, topic, operatorFault := ganbauth.ErrorKind(err)
			require.Equal(t, test.status, ganbauth.StatusCode(err), "status of %v", err)
			require.Equal(t, test.class, class, "class of %v", err)
			require.Equal(t, test.topic, topic, "topic of %v", err)
			require.Equal(t, test.topic == "misconfigured", operatorFault, "%v", err)
		}
	}
}

// An error's text has the status, the code and the cause, and nothing else of the bank's.
func TestErrorTexts(t *testing.T) {
	const expired = ": the access token is expired or revoked"
	for want, err := range map[string]error{
		"ganbauth: token endpoint: status 400: invalid_grant": &ganbauth.TokenError{StatusCode: 400, Code: "invalid_grant", Description: "d", URI: "u"},
		"ganbauth: token endpoint: status 502":                &ganbauth.TokenError{StatusCode: 502},
		"ganbauth: token endpoint: no answer":                 &ganbauth.TokenError{},

		"ganbauth: bank API: status 401: WG_ERR_105" + expired:                      &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_105", Message: "m"},
		"ganbauth: bank API: status 401: WG_ERR_104":                                &ganbauth.APIError{StatusCode: 401, Code: "WG_ERR_104"},
		"ganbauth: bank API: status 403: WG_ERR_105":                                &ganbauth.APIError{StatusCode: 403, Code: "WG_ERR_105"},
		"ganbauth: bank API: status 429: too many requests":                         &ganbauth.APIError{StatusCode: 429},
		"ganbauth: bank API: status 503: WG_ERR_300: the bank is under maintenance": &ganbauth.APIError{StatusCode: 503, Code: "WG_ERR_300"},
		"ganbauth: bank API: status 404":                                            &ganbauth.APIError{StatusCode: 404},
		"ganbauth: authorization refused: access_denied":                            &ganbauth.AuthorizationError{Code: "access_denied", Description: "d"},
		"ganbauth: load token: disk full":                                           ganbauth.Unavailable(errors.New("disk full")),
		"ganbauth: login required: the application knows no user to connect":        ganbauth.ErrNoUser,
		"ganbauth: invalid ID token: sub is not the login's":                        ganbauth.ErrOtherSubject,
	} {
		require.EqualError(t, err, want)
	}
	_, err := newOP(t, hijack(func(conn net.Conn) { conn.Close() })).connector(t).RefreshTokens(t.Context(), "RT-1")
	require.ErrorContains(t, err, "ganbauth: token endpoint: no answer: ")
	require.ErrorIs(t, err, io.EOF)
	require.ErrorContains(t, err, "EOF")
	_, err = newOP(t, hijack(func(conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	})).connector(t).RefreshTokens(t.Context(), "RT-1")
	require.EqualError(t, err, "ganbauth: token endpoint: no answer: unexpected EOF")

	t.Run("those that OnError gets", func(t *testing.T) {
		var got error
		store := &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		a := newApp(t, setup{options: ganbauth.Options{
			Store:   store,
			OnError: func(_ http.ResponseWriter, _ *http.Request, err error) { got = err },
		}})
		b := a.browser()
		b.get("/bank/logout")
		require.EqualError(t, got, "ganbauth: the method is not allowed")
		b.login()
		b.do("GET", "/transfer", program)
		require.EqualError(t, got, "ganbauth: insufficient scope: missing private:transfer")
		store.set(nil, errors.New("disk full"), nil)
		b.get(b.callbackURL("/bank/login"))
		require.EqualError(t, got, "ganbauth: change token: disk full")
	})
}

// What Go says in words of its own is shown. What may quote an answer is shown by its type.
func TestCauseText(t *testing.T) {
	quoting := errors.New("malformed HTTP response \"RT-2\"")
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443}
	for want, err := range map[string]error{
		"context canceled":          &url.Error{Op: "Post", URL: "https://bank.test/token", Err: context.Canceled},
		"context deadline exceeded": fmt.Errorf("x: %w", context.DeadlineExceeded),
		"unexpected EOF":            io.ErrUnexpectedEOF,
		"timeout":                   fmt.Errorf("x: %w", timeout{}),
		"dial tcp 127.0.0.1:443: connect: connection refused": &url.Error{Err: &net.OpError{
			Op: "dial", Net: "tcp", Addr: addr, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
		}},
		"dial tcp: lookup bank.test: no such host": &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "bank.test"}},
		"tls: failed to verify certificate: x509: certificate signed by unknown authority": &tls.CertificateVerificationError{
			Err: x509.UnknownAuthorityError{},
		},
		"proxyconnect tcp: an error that may quote the answer (*errors.errorString)": &net.OpError{Op: "proxyconnect", Net: "tcp", Err: quoting},
		"an error that may quote the answer (*errors.errorString)":                   &url.Error{Op: "Post", Err: fmt.Errorf("x: %w", quoting)},
	} {
		require.Equal(t, want, ganbauth.CauseText(err))
		require.Equal(t, "ganbauth: token endpoint: no answer: "+want, ganbauth.NoAnswer(err).Error())
		require.ErrorIs(t, ganbauth.NoAnswer(err), err)
	}
	requirePrintsNoSecret(t, ganbauth.NoAnswer(&url.Error{Op: "Post", Err: quoting}), "RT-2")
}

type timeout struct{}

func (timeout) Error() string   { return "RT-2" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// A panic's value is shown if it is made to be read. A request is not: it has the secret.
func TestPanicText(t *testing.T) {
	r := mustRequest("POST", "https://bank.test/token")
	r.SetBasicAuth("id", clientSecret)
	for want, value := range map[string]any{
		"ganbauth: panic: broken":                            "broken",
		"ganbauth: panic: EOF":                               io.EOF,
		"ganbauth: panic: 1s":                                time.Second,
		"ganbauth: panic: a value of the type *http.Request": r,
		"ganbauth: panic: a value of the type http.Header":   r.Header,
		"ganbauth: panic: a value of the type int":           5,
	} {
		require.Equal(t, want, ganbauth.PanicText(value))
	}
}

// The grant has ended by the authorization server's word; the gateway's needs a second one.
// Neither counts in an answer that says that the server itself is in trouble.
func TestRefreshVerdict(t *testing.T) {
	for _, status := range []int{200, 400, 401, 499, 500, 503} {
		for code, want := range map[string][2]bool{"invalid_grant": {true, false}, "WG_ERR_105": {false, true}, "invalid_client": {}, "": {}} {
			dead, refused := ganbauth.RefreshVerdict(&ganbauth.TokenError{StatusCode: status, Code: code})
			require.Equal(t, want[0] && status < 500, dead, "%d %s", status, code)
			require.Equal(t, want[1] && status < 500, refused, "%d %s", status, code)
		}
	}
}

// A code is of 64 visible characters at most, and foreign text of 256.
func TestForeignText(t *testing.T) {
	parse := func(code, message string) *ganbauth.APIError {
		body, err := json.Marshal(map[string]string{"errorCode": code, "errorMessage": message})
		require.NoError(t, err)
		var e *ganbauth.APIError
		require.ErrorAs(t, ganbauth.ParseAPIError(400, nil, body), &e)
		return e
	}
	for _, good := range []string{"a b", " ", "~", "[]^#!", strings.Repeat("c", 64)} {
		require.Equal(t, good, parse(good, "").Code)
	}
	for _, bad := range []string{"a\x1f", "a\x7f", `a"`, `a\b`, "aé", strings.Repeat("c", 65)} {
		require.Empty(t, parse(bad, "").Code, "%q", bad)
	}
	for message, want := range map[string]string{
		"日本 x":                         "日本 x",
		"a\tb\u202ec":                  "a\uFFFDb\uFFFDc",
		strings.Repeat("日", 256):       strings.Repeat("日", 256),
		strings.Repeat("日", 256) + "x": strings.Repeat("日", 256),
	} {
		require.Equal(t, want, parse("", message).Message)
	}
}

// What says that it is temporary is answered with 503, and nothing else of the bank's is.
func TestTemporaryIs503(t *testing.T) {
	codes := []string{"", "invalid_grant", "invalid_client", "server_error", "temporarily_unavailable", "WG_ERR_105", "WG_ERR_300", "x"}
	for _, status := range []int{0, 200, 302, 400, 401, 403, 404, 429, 500, 503, 599, 999} {
		for _, code := range codes {
			token := &ganbauth.TokenError{StatusCode: status, Code: code}
			require.Equal(t, token.Temporary(), ganbauth.StatusCode(token) == 503, "%v", token)
			api := &ganbauth.APIError{StatusCode: status, Code: code}
			require.Equal(t, api.Temporary(), ganbauth.StatusCode(api) == 503, "%v", api)
			require.Equal(t, api.Expired(), ganbauth.StatusCode(api) == 401, "%v", api)
		}
	}
}

// An http.Client's errors, as the network makes them.
func TestH1StatusCodeOfTheNetwork(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	cut := newOP(t, hijack(func(conn net.Conn) { conn.Close() }))
	half := newOP(t, hijack(func(conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	}))
	garbage := newOP(t, hijack(func(conn net.Conn) { _, _ = io.WriteString(conn, "SSH-2.0-x\r\n\r\n") }))
	silent := newOP(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	unknown := httptest.NewTLSServer(nil)
	defer unknown.Close()
	unknown.Config.ErrorLog = log.New(io.Discard, "", 0)
	get := func(target string, timeout time.Duration) error {
		client := &http.Client{Timeout: timeout, Transport: &http.Transport{}}
		resp, err := client.Get(target)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		return err
	}
	for name, err := range map[string]error{
		"connection refused":   get(closed.URL, time.Minute),
		"cut before an answer": get(cut.URL, time.Minute),
		"cut in the body":      get(half.URL, time.Minute),
		"not HTTP":             get(garbage.URL, time.Minute),
		"unknown authority":    get(unknown.URL, time.Minute),
		"no such host":         get("https://bank.invalid/", time.Minute),
		"timeout":              get(silent.URL, 20*time.Millisecond),
	} {
		require.Error(t, err, name)
		require.Equal(t, 503, ganbauth.StatusCode(err), "%s: %v", name, err)
		require.Equal(t, 503, ganbauth.StatusCode(fmt.Errorf("accounts: %w", err)), name)
	}
	_, err := http.NewRequest("GET", "https://bank.test/%zz", nil)
	require.Error(t, err)
	require.Equal(t, 500, ganbauth.StatusCode(err), "a request that cannot be made: %v", err)
}

// The application's own failures are its own, also where they are a network's.
func TestKeyThatFails(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		topic  string
	}{
		{errors.New("x"), 500, "internal"},
		{&url.Error{Op: "Get", URL: "https://users.internal/", Err: io.EOF}, 500, "internal"},
		{context.DeadlineExceeded, 500, "internal"},
		{&ganbauth.APIError{StatusCode: 429, RetryAfter: time.Minute}, 500, "internal"},
		{ganbauth.ErrInsufficientScope, 500, "internal"}, // of another kit, for example
		{ganbauth.ErrInvalidState, 500, "internal"},
		{ganbauth.ErrUnavailable, 503, "unavailable"},
		{ganbauth.ErrLoginRequired, 401, "no_user"},
		{nil, 401, "no_user"},
	} {
		var got error
		a := newApp(t, setup{options: ganbauth.Options{
			Key:     func(*http.Request) (string, error) { return "", test.err },
			OnError: func(w http.ResponseWriter, _ *http.Request, err error) { got = err },
		}})
		resp := a.browser().get("/p")
		if test.topic == "internal" {
			require.EqualError(t, got, "ganbauth: Key: "+test.err.Error())
		}
		if errors.As(test.err, new(*ganbauth.APIError)) {
			require.Equal(t, "60", resp.Header.Get("Retry-After"), "it knows when to try again")
		}
		_, topic, _ := ganbauth.ErrorKind(got)
		require.Equal(t, test.status, ganbauth.StatusCode(got), "%v", got)
		require.Equal(t, test.topic, topic, "%v", got)
		require.Equal(t, topic == "no_user", errors.Is(got, ganbauth.ErrNoUser))
	}
}

// A client that may not send is the application's fault, not the network's.
func TestClientThatMayNotSend(t *testing.T) {
	client, bank, _ := connectedClient(t, ganbtest.Options{})
	_, err := client.Get(strings.Replace(bank.APIBase(), "https:", "http:", 1) + "/accounts")
	require.ErrorContains(t, err, "https only")
	require.Equal(t, 500, ganbauth.StatusCode(err))
	_, err = (*ganbauth.Kit)(nil).ClientFor("u").Get(bank.APIBase() + "/accounts")
	require.ErrorContains(t, err, "not made by New")
	require.Equal(t, 500, ganbauth.StatusCode(err))
}

func TestErrUnavailable(t *testing.T) {
	down := errors.New("down")
	err := fmt.Errorf("x: %w", ganbauth.Unavailable(down))
	require.ErrorIs(t, err, ganbauth.ErrUnavailable)
	require.ErrorIs(t, err, down)
	require.NotErrorIs(t, err, ganbauth.ErrLoginRequired)
	require.NotErrorIs(t, down, ganbauth.ErrUnavailable)
	require.ErrorIs(t, ganbauth.ErrNoUser, ganbauth.ErrLoginRequired)
	require.NotErrorIs(t, ganbauth.ErrLoginRequired, ganbauth.ErrNoUser)
}

func TestRetryAfter(t *testing.T) {
	minute := &ganbauth.TokenError{StatusCode: 503, RetryAfter: time.Minute}
	for _, test := range []struct {
		err  error
		want time.Duration
	}{
		{minute, time.Minute},
		{fmt.Errorf("x: %w", &ganbauth.APIError{StatusCode: 429, RetryAfter: time.Hour}), time.Hour},
		{&ganbauth.APIError{StatusCode: 503}, time.Second},
		{ganbauth.Unavailable(minute), time.Second}, // the outermost knows best
		{ganbauth.ErrUnavailable, time.Second},
		{context.Canceled, time.Second},
		{&ganbauth.TokenError{StatusCode: 400}, 0},
		{ganbauth.ErrLoginRequired, 0},
		{fmt.Errorf("%w: %w", ganbauth.ErrLoginRequired, minute), 0},
		{errors.New("x"), 0},
		{nil, 0},
	} {
		require.Equal(t, test.want, ganbauth.RetryAfter(test.err), "%v", test.err)
	}
}

// ErrorClass is fit for a metric's label: Event documents every word of it.
func TestD5ErrorClassesAreDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "observe.go", nil, parser.ParseComments)
	require.NoError(t, err)
	doc := ""
	ast.Inspect(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.Field); ok && len(f.Names) > 0 && f.Names[0].Name == "ErrorClass" {
			doc = f.Doc.Text()
		}
		return true
	})
	var documented []string
	for _, item := range strings.Split(doc, "  - ")[1:] {
		_, words, ok := strings.Cut(item, ": ")
		require.True(t, ok, item)
		for word := range strings.SplitSeq(words, ",") {
			documented = append(documented, strings.TrimSpace(word))
		}
	}
	unique := func(words []string) []string {
		slices.Sort(words)
		return slices.Compact(words)
	}
	require.Equal(t, unique(documented), unique(ganbauth.ErrorClasses()))
}

// Whatever a browser or the bank makes up, the class is one of the documented.
func TestD5ErrorClassIsFromAFixedSet(t *testing.T) {
	classes := ganbauth.ErrorClasses()
	require.NotContains(t, classes, "")
	for status := range 1000 {
		for _, code := range []string{"", "made_up", "invalid_grant", "WG_ERR_105", "access_denied"} {
			for _, err := range []error{
				&ganbauth.TokenError{StatusCode: status, Code: code}, &ganbauth.APIError{StatusCode: status, Code: code},
				&ganbauth.AuthorizationError{Code: fmt.Sprint(code, status)},
			} {
				class, _, _ := ganbauth.ErrorKind(err)
				require.Contains(t, classes, class)
			}
		}
	}
	a := newApp(t, setup{})
	b := a.browser()
	for i := range 20 {
		u := mustParse(b.authorizationURL("/bank/login"))
		b.get(fmt.Sprintf("/bank/callback?state=%s&error=made_up_%d", u.Query().Get("state"), i))
		require.Equal(t, "authorization_error", a.lastEvent().ErrorClass)
	}
	b.login()
	require.Contains(t, a.log.String(), "made_up_7", "the log has the bank's own code")
}

// A code that a browser has made up is not for an operator to mend, whatever the bank
// calls it.
func TestD6ForgedCodes(t *testing.T) {
	for name, fault := range map[string]ganbtest.Fault{
		"invalid_grant":        ganbtest.InvalidGrant,
		"invalid_request":      ganbtest.OAuthError("invalid_request"),
		"the gateway's":        {Status: 400, Header: jsonType, Body: `{"errorCode":"WG_ERR_110"}`},
		"a firewall's":         {Status: 403, Body: "<html>"},
		"a body of no use":     {Status: 400},
		"an error of its kind": ganbtest.OAuthError("made_up"),
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			a.bank.Fail(ganbtest.TokenEndpoint, fault, 1)
			state := mustParse(b.authorizationURL("/bank/login")).Query().Get("state")
			require.Equal(t, 502, b.get("/bank/callback?code=forged&state="+state).StatusCode)
			require.Contains(t, a.log.String(), "login_failed")
			require.NotContains(t, a.log.String(), "level=ERROR")
		})
	}
	t.Run("the client's own fault is", func(t *testing.T) {
		for _, fault := range []ganbtest.Fault{
			ganbtest.InvalidClient, ganbtest.OAuthError("unauthorized_client"), {Status: 401}, {Status: 404, Body: "<html>"},
		} {
			a := newApp(t, setup{})
			a.bank.Fail(ganbtest.TokenEndpoint, fault, 1)
			b := a.browser()
			b.get(b.callbackURL("/bank/login"))
			require.Contains(t, a.log.String(), "level=ERROR", "%+v", fault)
		}
	})
}
