package ganbauth_test

import (
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func TestNewRefuses(t *testing.T) {
	connector := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: issuer, Salt: "s"})
	withoutIssuer := newConnector(t, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s"})
	good := ganbauth.Options{RedirectURI: "https://app.example/cb", Scopes: []string{"openid"}, Logger: discard}
	for name, test := range map[string]struct {
		change func(*ganbauth.Options)
		want   string
	}{
		"no RedirectURI":            {func(o *ganbauth.Options) { o.RedirectURI = "" }, "RedirectURI must be an absolute URL"},
		"http on a private address": {func(o *ganbauth.Options) { o.RedirectURI = "http://192.168.0.1/cb" }, "must be https"},
		"http":                      {func(o *ganbauth.Options) { o.RedirectURI = "http://app.example/cb" }, "must be https"},
		"fragment":                  {func(o *ganbauth.Options) { o.RedirectURI += "#f" }, "fragment"},
		"empty fragment":            {func(o *ganbauth.Options) { o.RedirectURI += "#" }, "fragment"},
		"relative":                  {func(o *ganbauth.Options) { o.RedirectURI = "/cb" }, "absolute"},
		"257 characters":            {func(o *ganbauth.Options) { o.RedirectURI = "https://app.example/" + strings.Repeat("x", 237) }, "longer than 256"},
		"no URL":                    {func(o *ganbauth.Options) { o.RedirectURI = "https://app.example/%zz" }, "RedirectURI must be an absolute URL"},
		"userinfo":                  {func(o *ganbauth.Options) { o.RedirectURI = "https://a:b@app.example/" }, "userinfo"},
		"a query with a state":      {func(o *ganbauth.Options) { o.RedirectURI += "?tenant=a&state=b" }, "has the parameter state"},
		"a query with a code":       {func(o *ganbauth.Options) { o.RedirectURI += "?code" }, "has the parameter code"},
		"a query with an error":     {func(o *ganbauth.Options) { o.RedirectURI += "?error=" }, "has the parameter error,"},
		"a query with a reason":     {func(o *ganbauth.Options) { o.RedirectURI += "?error_description=" }, "has the parameter error_description"},
		"a query with an iss":       {func(o *ganbauth.Options) { o.RedirectURI += "?%69ss=b" }, "has the parameter iss"},
		"a malformed query":         {func(o *ganbauth.Options) { o.RedirectURI += "?a;b" }, "query of RedirectURI is malformed"},
		"no path for the callback":  {func(o *ganbauth.Options) { o.RedirectURI = "https://app.example" }, "needs a path of its own: / is DefaultReturn's"},
		"the callback's path":       {func(o *ganbauth.Options) { o.DefaultReturn = "/%63b?x" }, "needs a path of its own: /cb is DefaultReturn's"},
		"no scopes":                 {func(o *ganbauth.Options) { o.Scopes = nil }, "Scopes must have 1 to 256"},
		"scopes of 257":             {func(o *ganbauth.Options) { o.Scopes = []string{strings.Repeat("s", 257)} }, "1 to 256"},
		"a scope with a space":      {func(o *ganbauth.Options) { o.Scopes = []string{"a b"} }, "is not a scope"},
		"a scope with a quote":      {func(o *ganbauth.Options) { o.Scopes = []string{`a"`} }, "is not a scope"},
		"Name":                      {func(o *ganbauth.Options) { o.Name = "a/b" }, "Name may have"},
		"DefaultReturn elsewhere":   {func(o *ganbauth.Options) { o.DefaultReturn = "//evil.example" }, "DefaultReturn"},
		"DefaultReturn not encoded": {func(o *ganbauth.Options) { o.DefaultReturn = "/日本" }, "DefaultReturn"},
		"negative leeway":           {func(o *ganbauth.Options) { o.RefreshLeeway = -1 }, "negative"},
		"negative rate":             {func(o *ganbauth.Options) { o.TokenRate = -0.1 }, "TokenRate"},
		"a rate without bound":      {func(o *ganbauth.Options) { o.TokenRate = math.Inf(1) }, "TokenRate"},
		"a rate that overflows":     {func(o *ganbauth.Options) { o.TokenRate = 5e-324 }, "less than one a day"},
		"less than one a day":       {func(o *ganbauth.Options) { o.TokenRate = 1.0 / 86401 }, "less than one a day"},
		"no rate":                   {func(o *ganbauth.Options) { o.TokenRate = math.NaN() }, "TokenRate"},
		"APIHosts: no host":         {func(o *ganbauth.Options) { o.APIHosts = []string{"[::1"} }, "is not a host"},
		"APIHosts with a port only": {func(o *ganbauth.Options) { o.APIHosts = []string{":443"} }, "is not a host"},
		"APIHosts with a path":      {func(o *ganbauth.Options) { o.APIHosts = []string{"a/b"} }, "is not a host"},
		"APIHosts with a scheme":    {func(o *ganbauth.Options) { o.APIHosts = []string{"https://a"} }, "is not a host"},
		"APIHosts with a bad port":  {func(o *ganbauth.Options) { o.APIHosts = []string{"api.example:65536"} }, "is not a host"},
		"APIHosts with userinfo":    {func(o *ganbauth.Options) { o.APIHosts = []string{"a@b"} }, "is not a host"},
		"a short key":               {func(o *ganbauth.Options) { o.EncryptionKeys = [][]byte{make([]byte, 16)} }, "has 16 bytes, not 32"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			test.change(&o)
			kit, err := ganbauth.New(connector, scs.New(), o)
			require.Nil(t, kit)
			require.ErrorContains(t, err, test.want)
		})
	}
	t.Run("256 characters", func(t *testing.T) {
		o := good
		o.RedirectURI = "https://app.example/" + strings.Repeat("x", 236)
		_, err := ganbauth.New(connector, scs.New(), o)
		require.NoError(t, err)
	})
	t.Run("a RedirectURI that browsers write otherwise", func(t *testing.T) {
		const path, host = "the path of RedirectURI must be as browsers write it", "RedirectURI must have a host, and a port"
		for uri, want := range map[string]string{
			"https://app.example//cb":        path, // as a path alone it is a host's name
			"https://app.example/a//cb":      path,
			"https://app.example/cb//":       path,
			"https://app.example/a/../cb":    path,
			"https://app.example/./cb":       path,
			"https://app.example/cb/..":      path,
			"https://app.example/%2e%2e/cb":  path,
			"https://app.example/.%2E/cb":    path,
			"https://app.example/%2Fcb":      path,
			"https://app.example/a\\cb":      path,
			"https://app.example/%5Ccb":      path,
			"https://app.example/a cb":       path,
			"https://app.example/cb%0A":      path,
			"https://app.example/cb%7F":      path,
			"https://app.example/a\"cb":      path,
			"https://app.example/a^cb":       path,
			"https://app.example/銀行/cb":      path,
			"https://app.example//cb?a=/cb":  path,
			"https://:443/cb":                host,
			"https://app.example:/cb":        host,
			"https://app.example:0/cb":       host,
			"https://app.example:65536/cb":   host,
			"https://app.example/cb":         "",
			"https://app.example/cb/":        "",
			"https://app.example/a%2Fb/cb":   "",
			"https://app.example/a.b/..c/cb": "",
			"https://app.example/%20/cb":     "",
			"https://app.example/cb?a=//b":   "",
			"https://app.example:65535/cb":   "",
			"https://[2001:db8::1]:8443/cb":  "",
			"https://[2001:db8::1]/cb":       "",
			"http://localhost:8080/cb":       "",
		} {
			o := good
			o.RedirectURI = uri
			_, err := ganbauth.New(connector, scs.New(), o)
			if want == "" {
				require.NoError(t, err, uri)
			} else {
				require.ErrorContains(t, err, want, uri)
			}
		}
	})
	t.Run("one request a day", func(t *testing.T) {
		o := good
		o.TokenRate = 1.0 / 86400
		_, err := ganbauth.New(connector, scs.New(), o)
		require.NoError(t, err)
	})
	t.Run("the callback's own query", func(t *testing.T) {
		o := good
		o.RedirectURI += "?tenant=a"
		_, err := ganbauth.New(connector, scs.New(), o)
		require.NoError(t, err)
	})
	t.Run("all at once", func(t *testing.T) {
		_, err := ganbauth.New(connector, nil, ganbauth.Options{Name: "/", DefaultReturn: "x", EncryptionKeys: [][]byte{{1}}})
		for _, want := range []string{"RedirectURI", "Scopes", "Name", "DefaultReturn", "encryption key", "Store and Key"} {
			require.ErrorContains(t, err, want)
		}
	})
	t.Run("what else is missing", func(t *testing.T) {
		for _, c := range []*ganbauth.Connector{nil, {}} {
			_, err := ganbauth.New(c, scs.New(), good)
			require.ErrorContains(t, err, "NewConnector")
		}
		_, err := ganbauth.New(withoutIssuer, scs.New(), good)
		require.ErrorContains(t, err, "JWTIssuer")
		for _, sessions := range []*scs.SessionManager{{}, {Store: scs.New().Store}, {Codec: scs.GobCodec{}}} {
			_, err = ganbauth.New(connector, sessions, good)
			require.ErrorContains(t, err, "scs.New")
		}
		o := good
		o.Key = keyIs("")
		_, err = ganbauth.New(connector, nil, o)
		require.ErrorContains(t, err, "Store and Key")
		o = good
		o.Store = ganbauth.NewMemoryStore()
		_, err = ganbauth.New(connector, nil, o)
		require.ErrorContains(t, err, "Store and Key")
		o.Key = keyIs("")
		_, err = ganbauth.New(connector, nil, o)
		require.NoError(t, err)
	})
	t.Run("scopes twice are asked for once", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Scopes: []string{"openid", "a", "openid"}}})
		require.Equal(t, "openid a", mustParse(a.browser().authorizationURL("/bank/login")).Query().Get("scope"))
	})
	t.Run("options are copied", func(t *testing.T) {
		o := good
		o.Scopes = []string{"openid", "a", "openid"}
		kit, err := ganbauth.New(connector, scs.New(), o)
		require.NoError(t, err)
		o.Scopes[0] = "x"
		r := httptest.NewRequest("GET", "/bank/login", nil)
		r.Header = navigate.Clone()
		w := httptest.NewRecorder()
		kit.LoginHandler().ServeHTTP(w, r)
		require.Equal(t, "openid a", mustParse(w.Header().Get("Location")).Query().Get("scope"))
	})
}

const ownSalt = "a salt of our own, of 34 characters"

func TestNewWarns(t *testing.T) {
	for name, test := range map[string]struct {
		secret, salt string
		change       func(*scs.SessionManager)
		want         string
	}{
		"not Secure":                     {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.Secure = false }, "not Secure"},
		"SameSite=None":                  {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteNoneMode }, "SameSite"},
		"Domain":                         {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.Domain = "app.example" }, "Domain"},
		"not HttpOnly":                   {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.HttpOnly = false }, "HttpOnly"},
		"a secret of 31 bytes":           {clientSecret[:31], ownSalt, nil, "shorter than the 32 bytes"},
		"a secret of 32 bytes":           {clientSecret[:32], ownSalt, nil, ""},
		"the SDKs' placeholder":          {clientSecret, "PleaseDefineYourself", nil, "placeholder"},
		"H8 a salt of one character":     {clientSecret, "s", nil, "Salt is shorter than 16 bytes"},
		"H8 a salt of 15 bytes":          {clientSecret, ownSalt[:15], nil, "Salt is shorter than 16 bytes"},
		"H8 a salt of 16 bytes":          {clientSecret, ownSalt[:16], nil, ""},
		"a production set-up: nothing":   {clientSecret, ownSalt, nil, ""},
		"SameSite=Strict: nothing":       {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteStrictMode }, ""},
		"E7 a Path without the callback": {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.Path = "/app" }, "does not reach"},
		"E7 half a Path":                 {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.Path = "/c" }, "does not reach"},
		"E7 no Path":                     {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.Path = "" }, "does not reach"},
		"the callback's Path: nothing":   {clientSecret, ownSalt, func(s *scs.SessionManager) { s.Cookie.Path = "/cb" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sessions, log := scs.New(), &lockedBuffer{}
			sessions.Cookie.Secure = true
			if test.change != nil {
				test.change(sessions)
			}
			c, err := ganbauth.NewConnector(clientID, test.secret, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: "i", Salt: test.salt})
			require.NoError(t, err)
			_, err = ganbauth.New(c, sessions, ganbauth.Options{RedirectURI: "https://app.example/cb", Scopes: []string{"openid"}, Logger: textLogger(log)})
			require.NoError(t, err)
			if test.want == "" {
				require.Empty(t, log.String())
			} else {
				require.Contains(t, log.String(), test.want)
			}
			require.NotContains(t, log.String(), "secret=")
		})
	}
}

// B4: a store that cannot compare, several processes and no Locker lose tokens.
func TestNewWarnsOfAStoreThatCannotCompare(t *testing.T) {
	c, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: "i", Salt: ownSalt})
	require.NoError(t, err)
	for name, test := range map[string]struct {
		change func(*scs.SessionManager, *ganbauth.Options)
		warns  bool
	}{
		"sessions in memory":          {func(*scs.SessionManager, *ganbauth.Options) {}, false},
		"sessions on a shared engine": {func(s *scs.SessionManager, _ *ganbauth.Options) { s.Store = failingEngine{} }, true},
		"a shared engine, a Locker": {func(s *scs.SessionManager, o *ganbauth.Options) {
			s.Store, o.Locker = failingEngine{}, &keyLocker{}
		}, false},
		"a store of three methods": {func(_ *scs.SessionManager, o *ganbauth.Options) {
			o.Store = &brokenStore{TokenStore: ganbauth.NewMemoryStore()}
		}, true},
		"a store that compares": {func(_ *scs.SessionManager, o *ganbauth.Options) { o.Store = ganbauth.NewMemoryStore() }, false},
		"a sealed store that compares": {func(_ *scs.SessionManager, o *ganbauth.Options) {
			o.Store, o.EncryptionKeys = ganbauth.NewMemoryStore(), [][]byte{key(1)}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			sessions, log := scs.New(), &lockedBuffer{}
			sessions.Cookie.Secure = true
			options := ganbauth.Options{RedirectURI: "https://app.example/cb", Scopes: []string{"openid"}, Logger: textLogger(log)}
			test.change(sessions, &options)
			_, err := ganbauth.New(c, sessions, options)
			require.NoError(t, err)
			require.Equal(t, test.warns, strings.Contains(log.String(), "cannot compare and swap"), log.String())
		})
	}
}

// What else New, or the first login, can see.
func TestE7Warns(t *testing.T) {
	c, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: "i", Salt: ownSalt})
	require.NoError(t, err)
	newKit := func(change func(*scs.SessionManager, *ganbauth.Options)) (*ganbauth.Kit, *lockedBuffer) {
		sessions, log := scs.New(), &lockedBuffer{}
		sessions.Cookie.Secure = true
		options := ganbauth.Options{RedirectURI: appURL + "/bank/callback", Scopes: []string{"openid"}, Logger: textLogger(log)}
		change(sessions, &options)
		kit, err := ganbauth.New(c, sessions, options)
		require.NoError(t, err)
		return kit, log
	}
	t.Run("Key without Store", func(t *testing.T) {
		_, log := newKit(func(_ *scs.SessionManager, o *ganbauth.Options) {
			o.Key = keyIs("u")
		})
		require.Contains(t, log.String(), "no longer than a session lives")
		require.Contains(t, log.String(), "lifetime=24h0m0s")
	})
	t.Run("a Path", func(t *testing.T) {
		for path, want := range map[string]int{"/bank": 0, "/bank/": 0, "/ban": 1, "/bank/callback/": 1} {
			_, log := newKit(func(s *scs.SessionManager, _ *ganbauth.Options) { s.Cookie.Path = path })
			require.Equal(t, want, strings.Count(log.String(), "does not reach"), path)
		}
	})
	// Browsers drop such a cookie without a word, and then nobody stays connected.
	t.Run("a name with a prefix", func(t *testing.T) {
		for _, test := range []struct {
			name, path, domain string
			secure, fits       bool
		}{
			{"__Host-session", "/", "", true, true},
			{"__Host-session", "/bank/", "", true, false},
			{"__Host-session", "", "", true, false},
			{"__Host-session", "/", "app.example", true, false},
			{"__Host-session", "/", "", false, false},
			{"__host-session", "/", "", false, false},
			{"__Secure-session", "/bank/", "app.example", true, true},
			{"__Secure-session", "/", "", false, false},
			{"session__Host-", "/bank/", "", false, true},
		} {
			for _, uri := range []string{appURL + "/bank/callback", "http://localhost:8080/bank/callback"} {
				_, log := newKit(func(s *scs.SessionManager, o *ganbauth.Options) {
					o.RedirectURI = uri
					s.Cookie.Name, s.Cookie.Path, s.Cookie.Domain, s.Cookie.Secure = test.name, test.path, test.domain, test.secure
				})
				require.Equal(t, !test.fits, strings.Contains(log.String(), "browsers drop the session cookie"), "%+v", test)
			}
		}
	})
	t.Run("a short secret without ID tokens", func(t *testing.T) {
		c, err := ganbauth.NewConnector(clientID, "short", ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", JWTIssuer: "i", Salt: ownSalt})
		require.NoError(t, err)
		sessions, log := scs.New(), &lockedBuffer{}
		sessions.Cookie.Secure = true
		_, err = ganbauth.New(c, sessions, ganbauth.Options{RedirectURI: appURL + "/bank/callback", Scopes: []string{"a"}, Logger: textLogger(log)})
		require.NoError(t, err)
		require.Empty(t, log.String(), "nothing is signed with it")
	})
	t.Run("a Secure cookie and http", func(t *testing.T) {
		for secure, want := range map[bool]int{true: 1, false: 0} {
			_, log := newKit(func(s *scs.SessionManager, o *ganbauth.Options) {
				s.Cookie.Secure, o.RedirectURI = secure, "http://localhost:8080/bank/callback"
			})
			require.Equal(t, want, strings.Count(log.String(), "Safari drops the cookie"))
		}
	})
	for host, c := range map[string]struct {
		forwarded string
		warnings  int
	}{
		"app.example":     {"", 0},
		"APP.example:443": {"", 0},
		"127.0.0.1:8080":  {"app.example", 0},
		"127.0.0.1:8081":  {"", 1},
		"www.app.example": {"", 1},
		"app.example:80":  {"www.app.example", 1},
	} {
		t.Run("a login at "+host, func(t *testing.T) {
			kit, log := newKit(func(*scs.SessionManager, *ganbauth.Options) {})
			for range 3 {
				r := httptest.NewRequest("GET", "/bank/login", nil)
				r.Host, r.Header = host, with(navigate, "X-Forwarded-Host", c.forwarded)
				w := httptest.NewRecorder()
				kit.LoginHandler().ServeHTTP(w, r)
				require.Equal(t, 303, w.Code)
			}
			require.Equal(t, c.warnings, strings.Count(log.String(), "another host than RedirectURI's"), "once")
		})
	}
}

// The required options are enough for a login, at the bank's own address.
func TestRequiredOptionsAreEnough(t *testing.T) {
	sessions := scs.New()
	connector, err := ganbauth.NewConnector(clientID, clientSecret, ganbauth.AuthBasic, ganbauth.Production("salt"))
	require.NoError(t, err)
	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: "https://app.example/bank/callback",
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Logger:      discard,
	})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/bank/login", bank.LoginHandler())
	resp, err := serveDirectly(func() http.Handler { return sessions.LoadAndSave(mux) }).RoundTrip(mustRequest("GET", appURL+"/bank/login"))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(resp.Header.Get("Location"), "https://api.gmo-aozora.com/ganb/api/auth/v1/authorization?"))
}

// A kit whose Key reads the session gets more from the sessions than from nil.
func TestSessionsBesideKey(t *testing.T) {
	for name, with := range map[string]bool{"with the sessions": true, "with nil": false} {
		t.Run(name, func(t *testing.T) {
			bank := ganbtest.NewServer(ganbtest.Options{InProcess: true})
			defer bank.Close()
			sessions := scs.New()
			sessions.Cookie.Secure, sessions.Cookie.SameSite = true, http.SameSiteStrictMode
			opts := recipeOptions()
			opts.Key = func(r *http.Request) (string, error) { return sessions.GetString(r.Context(), "user"), nil }
			given := sessions
			if !with {
				given = nil
			}
			kit, err := ganbauth.New(bank.Connector(), given, opts)
			require.NoError(t, err)
			mux := http.NewServeMux()
			mux.HandleFunc("/in", func(_ http.ResponseWriter, r *http.Request) { sessions.Put(r.Context(), "user", "alice") })
			mux.Handle("/bank/login", kit.LoginHandler())
			mux.Handle("/bank/callback", kit.CallbackHandler())
			mux.Handle("/page", kit.RequireToken(http.NotFoundHandler()))
			app := sessions.LoadAndSave(mux)

			r := httptest.NewRequest("GET", "https://app.test/page", nil)
			r.Header.Set("Accept", "text/html")
			w := httptest.NewRecorder()
			app.ServeHTTP(w, r)
			require.Equal(t, with, w.Header().Get("Refresh") != "", "a Strict cookie stayed behind")
			require.Equal(t, with, w.Code == 200)

			browser := bank.Browser(app)
			token := func() string {
				u, err := url.Parse("https://app.test/")
				require.NoError(t, err)
				for _, c := range browser.Jar.Cookies(u) {
					if c.Name == sessions.Cookie.Name {
						return c.Value
					}
				}
				return ""
			}
			open := func(path string) int {
				resp, err := browser.Get("https://app.test" + path)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				return resp.StatusCode
			}
			require.Equal(t, 200, open("/in"))
			before := token()
			require.NotEmpty(t, before)
			require.Equal(t, 404, open("/bank/login?return_to=/page"), "connected")
			require.Equal(t, with, token() != before, "the session's token is renewed")
		})
	}
}
