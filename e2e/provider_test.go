package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// provider is a certified OpenID provider and an application that uses it, with a user's
// browser.
type provider struct {
	t       *testing.T
	kit     *ganbauth.Kit
	conn    *ganbauth.Connector
	app     string
	browser *http.Client

	mu     sync.Mutex
	grants map[string]int // token requests, by grant type
}

type providerSetup struct {
	method   ganbauth.AuthMethod
	scopes   string
	lifetime int // seconds
	pkce     bool
	secret   string // the application's, if it is not the client's
	options  ganbauth.Options
}

const providerSecret = "a-secret-of-at-least-32-characters-for-HS256"

// newProvider starts the certified provider, and an application that is its client.
func newProvider(t *testing.T, s providerSetup) *provider {
	t.Helper()
	node := nodeModules(t)
	server := httptest.NewUnstartedServer(nil)
	app := "http://" + server.Listener.Addr().String()
	method := map[ganbauth.AuthMethod]string{ganbauth.AuthBasic: "client_secret_basic", ganbauth.AuthPost: "client_secret_post"}[s.method]
	config, err := json.Marshal(map[string]any{
		"lifetime": s.lifetime, "pkce": s.pkce,
		"client": map[string]any{
			"client_id": "app", "client_secret": providerSecret, "redirect_uris": []string{app + "/callback"},
			"token_endpoint_auth_method": method,
		},
	})
	require.NoError(t, err)
	cmd := exec.Command(node, "provider.mjs", string(config))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	origin := strings.TrimSpace(line)

	p := &provider{t: t, app: app, grants: map[string]int{}}
	secret := providerSecret
	if s.secret != "" {
		secret = s.secret
	}
	p.conn, err = ganbauth.NewConnector("app", secret, s.method, ganbauth.Config{
		AuthBaseURL: origin + "/ganb/api/auth/v1", JWTIssuer: origin + "/", Salt: "salt",
		AuthPath:   "/authorization?prompt=consent", // without it the provider grants no offline_access
		HTTPClient: &http.Client{Transport: p},
	})
	require.NoError(t, err)
	opts := s.options
	opts.RedirectURI, opts.Scopes = app+"/callback", strings.Fields(s.scopes)
	opts.Logger = slog.New(slog.DiscardHandler)
	sessions := scs.New()
	p.kit, err = ganbauth.New(p.conn, sessions, opts)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/callback", p.kit.CallbackHandler())
	mux.Handle("/logout", p.kit.LogoutHandler())
	mux.Handle("/p", p.kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		fmt.Fprintf(w, "%s %s", token.Subject, token.AccessToken)
	})))
	server.Config.Handler = sessions.LoadAndSave(mux)
	server.Start()
	t.Cleanup(server.Close)

	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	p.browser = &http.Client{Jar: jar, Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}
	t.Cleanup(p.browser.CloseIdleConnections)
	return p
}

// RoundTrip counts what the kit asks of the token endpoint.
func (p *provider) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		form, err := url.ParseQuery(string(text))
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.grants[form.Get("grant_type")]++
		p.mu.Unlock()
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (p *provider) refreshes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.grants["refresh_token"]
}

// page is what the browser shows in the end.
type page struct {
	url    *url.URL
	status int
	text   string
}

func (p *provider) do(method, target string, form url.Values) page {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), method, target, strings.NewReader(form.Encode()))
	require.NoError(p.t, err)
	r.Header.Set("Accept", "text/html")
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := p.browser.Do(r)
	require.NoError(p.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	return page{resp.Request.URL, resp.StatusCode, string(text)}
}

var (
	submitURL = regexp.MustCompile(`action="([^"]+)"`)
	abortURL  = regexp.MustCompile(`href="([^"]+/abort)"`)
)

// submit fills in the provider's form, first the login and then the consent.
func (p *provider) submit(at page, form url.Values) page {
	p.t.Helper()
	m := submitURL.FindStringSubmatch(at.text)
	require.NotNil(p.t, m, at.text)
	target, err := at.url.Parse(m[1])
	require.NoError(p.t, err)
	return p.do("POST", target.String(), form)
}

// login goes through the provider's pages and comes back to /p.
func (p *provider) login() (subject, accessToken string) {
	p.t.Helper()
	at := p.do("GET", p.app+"/p", nil)
	if strings.Contains(at.text, `value="login"`) {
		at = p.submit(at, url.Values{"prompt": {"login"}, "login": {"alice"}, "password": {"x"}})
	}
	at = p.submit(at, url.Values{"prompt": {"consent"}})
	require.Equal(p.t, p.app+"/p", at.url.String(), at.text)
	return p.seen(at)
}

func (p *provider) seen(at page) (subject, accessToken string) {
	p.t.Helper()
	require.Equal(p.t, http.StatusOK, at.status, at.text)
	require.Equal(p.t, "/p", at.url.Path)
	subject, accessToken, _ = strings.Cut(at.text, " ")
	return subject, accessToken
}

// needsLogin reports whether the application sends the browser to the provider.
func (p *provider) needsLogin() bool {
	return !strings.HasPrefix(p.do("GET", p.app+"/p", nil).url.String(), p.app)
}

func TestProvider(t *testing.T) {
	for name, s := range map[string]providerSetup{
		"OpenID Connect, client_secret_basic": {method: ganbauth.AuthBasic, scopes: "openid offline_access private:account"},
		"OpenID Connect, client_secret_post":  {method: ganbauth.AuthPost, scopes: "openid offline_access private:account"},
		"OAuth 2.0, client_secret_basic":      {method: ganbauth.AuthBasic, scopes: "offline_access private:account"},
		"OAuth 2.0, client_secret_post":       {method: ganbauth.AuthPost, scopes: "offline_access private:account"},
		"PKCE": {
			method: ganbauth.AuthBasic, scopes: "openid offline_access", pkce: true, options: ganbauth.Options{PKCE: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.lifetime = 2
			p := newProvider(t, s)
			subject, first := p.login()
			if strings.Contains(s.scopes, "openid") {
				require.Equal(t, "alice", subject)
			} else {
				require.Empty(t, subject)
			}
			// It is refreshed at its end, and again.
			for refreshes := range 2 {
				last := ""
				require.Eventually(t, func() bool {
					_, last = p.seen(p.do("GET", p.app+"/p", nil))
					return last != first
				}, 20*time.Second, 50*time.Millisecond)
				require.Equal(t, refreshes+1, p.refreshes())
				first = last
			}
			require.Equal(t, http.StatusNotFound, p.do("POST", p.app+"/logout", nil).status, "it goes to /, which is not there")
			require.True(t, p.needsLogin())
			p.login()
		})
	}
}

// oneUser keeps the token where the test can see it.
func oneUser(store ganbauth.TokenStore) ganbauth.Options {
	return ganbauth.Options{Store: store, Key: func(*http.Request) (string, error) { return "alice", nil }}
}

// expire has the application think that the token is at its end.
func expire(t *testing.T, store ganbauth.TokenStore) (refreshToken string) {
	token, err := store.Load(t.Context(), "bank/alice")
	require.NoError(t, err)
	token.ExpiresAt = time.Now()
	require.NoError(t, store.Save(t.Context(), "bank/alice", token))
	return token.RefreshToken
}

func TestProviderUserInfo(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	p := newProvider(t, providerSetup{
		method: ganbauth.AuthBasic, scopes: "openid offline_access", lifetime: 60, options: oneUser(store),
	})
	p.login()
	token, err := p.kit.Token(t.Context(), "alice")
	require.NoError(t, err)
	require.Equal(t, []string{"openid", "offline_access"}, strings.Fields(token.Scope))
	info, err := p.conn.UserInfo(t.Context(), token)
	require.NoError(t, err)
	require.Equal(t, "alice", info["sub"])
	token.Subject = "bob"
	_, err = p.conn.UserInfo(t.Context(), token)
	require.Error(t, err)
}

func TestProviderStorm(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	p := newProvider(t, providerSetup{
		method: ganbauth.AuthBasic, scopes: "openid offline_access", lifetime: 60, options: oneUser(store),
	})
	p.login()
	for round := range 3 {
		expire(t, store)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				resp, err := p.browser.Get(p.app + "/p")
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Error(resp.Status)
				}
			})
		}
		wg.Wait()
		require.Equal(t, round+1, p.refreshes())
	}
}

// A refresh token that somebody uses twice ends the whole grant, and the user connects
// again.
func TestProviderReuse(t *testing.T) {
	store := ganbauth.NewMemoryStore()
	p := newProvider(t, providerSetup{
		method: ganbauth.AuthBasic, scopes: "openid offline_access", lifetime: 60, options: oneUser(store),
	})
	p.login()
	used := expire(t, store)
	require.False(t, p.needsLogin())
	_, err := p.conn.RefreshTokens(t.Context(), used)
	var refused *ganbauth.TokenError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "invalid_grant", refused.Code)
	expire(t, store)
	_, err = p.kit.Token(t.Context(), "alice")
	require.ErrorIs(t, err, ganbauth.ErrLoginRequired, "the new token ended with the old one")
	p.browser.Jar, err = cookiejar.New(nil)
	require.NoError(t, err)
	p.login()
	require.False(t, p.needsLogin())
}

func TestProviderDenial(t *testing.T) {
	p := newProvider(t, providerSetup{method: ganbauth.AuthBasic, scopes: "openid", lifetime: 60})
	at := p.do("GET", p.app+"/p", nil)
	m := abortURL.FindStringSubmatch(at.text)
	require.NotNil(t, m, at.text)
	target, err := at.url.Parse(m[1])
	require.NoError(t, err)
	at = p.do("GET", target.String(), nil)
	require.Equal(t, "/callback", at.url.Path)
	require.Equal(t, http.StatusForbidden, at.status)
	require.Contains(t, at.text, "Not connected")
	require.True(t, p.needsLogin())
}

// What the operator has set up wrongly is refused by the provider, and told as such.
func TestProviderRefuses(t *testing.T) {
	t.Run("another secret", func(t *testing.T) {
		p := newProvider(t, providerSetup{
			method: ganbauth.AuthBasic, scopes: "openid", lifetime: 60, secret: strings.Repeat("another secret ", 3),
		})
		at := p.do("GET", p.app+"/p", nil)
		at = p.submit(at, url.Values{"prompt": {"login"}, "login": {"alice"}, "password": {"x"}})
		at = p.submit(at, url.Values{"prompt": {"consent"}})
		require.Equal(t, "/callback", at.url.Path)
		require.Equal(t, http.StatusBadGateway, at.status)
		require.Equal(t, 1, p.grants["authorization_code"], "a code is sent once")
	})
	t.Run("no PKCE", func(t *testing.T) {
		p := newProvider(t, providerSetup{method: ganbauth.AuthBasic, scopes: "openid", lifetime: 60, pkce: true})
		at := p.do("GET", p.app+"/p", nil)
		require.Equal(t, "/callback", at.url.Path)
		require.GreaterOrEqual(t, at.status, 400)
		require.Zero(t, p.grants["authorization_code"])
	})
}
