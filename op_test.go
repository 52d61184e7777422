package ganbauth_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

const (
	clientID     = "cid-1"
	clientSecret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	callbackURI  = "https://app.example.jp/callback"
	goodToken    = `{"access_token":"AT-1","refresh_token":"RT-2","scope":"private:account offline_access","token_type":"Bearer","expires_in":300}`
)

// op is a scripted authorization server on a real port that counts what it is asked.
type op struct {
	*httptest.Server
	hits atomic.Int32
	seen atomic.Pointer[http.Request]
	body atomic.Pointer[string]
}

func newOP(t *testing.T, h http.HandlerFunc) *op {
	t.Helper()
	o := &op{}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.hits.Add(1)
		data, _ := io.ReadAll(r.Body)
		text := string(data)
		o.seen.Store(r)
		o.body.Store(&text)
		h(w, r)
	}))
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.Start()
	t.Cleanup(o.Close)
	return o
}

func (o *op) config() ganbauth.Config {
	return ganbauth.Config{AuthBaseURL: o.URL, JWTIssuer: issuer, Salt: "salt", HTTPClient: &http.Client{}}
}

func (o *op) connector(t *testing.T) *ganbauth.Connector {
	t.Helper()
	return newConnector(t, ganbauth.AuthBasic, o.config())
}

func newConnector(t *testing.T, method ganbauth.AuthMethod, cfg ganbauth.Config) *ganbauth.Connector {
	t.Helper()
	c, err := ganbauth.NewConnector(clientID, clientSecret, method, cfg)
	require.NoError(t, err)
	return c
}

func answers(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		if contentType == "-" {
			w.Header()["Content-Type"] = nil // none, and none is guessed
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func answersJSON(body string) http.HandlerFunc { return answers(200, "application/json", body) }

// bothGrants runs a test of one answer for the code exchange and for the refresh.
func bothGrants(t *testing.T, c *ganbauth.Connector, check func(t *testing.T, token *ganbauth.Token, err error)) {
	t.Helper()
	t.Run("exchange", func(t *testing.T) {
		token, err := c.OAuthToken(t.Context(), callbackURI, "the-code")
		check(t, token, err)
		requireNoSecret(t, err)
	})
	t.Run("refresh", func(t *testing.T) {
		token, err := c.RefreshTokens(t.Context(), "RT-1")
		check(t, token, err)
		requireNoSecret(t, err)
	})
}

func requireNoSecret(t *testing.T, err error) {
	t.Helper()
	for _, secret := range []string{clientSecret, "the-code", "RT-1", "RT-2", "AT-1"} {
		require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), secret)
	}
}

// requirePrintsNoSecret prints v in every way that a program might, and looks for the
// secrets as text, in hex, as Go bytes and in base64.
func requirePrintsNoSecret(t *testing.T, v any, secrets ...string) {
	t.Helper()
	text := printed(v)
	for _, secret := range secrets {
		for form, s := range map[string]string{
			"text": secret, "hex": fmt.Sprintf("%x", secret), "HEX": fmt.Sprintf("%X", secret),
			"bytes": strings.Trim(fmt.Sprint([]byte(secret)), "[]"), "base64": base64.StdEncoding.EncodeToString([]byte(secret)),
		} {
			require.NotContains(t, text, s, "as %s", form)
		}
	}
}

// printed is v in every verb of fmt, in both handlers of slog, in JSON and in gob.
func printed(v any) string {
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%t"} {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "v", v)
	}
	data, _ := json.Marshal(v)
	out.Write(data)
	return out.String()
}
