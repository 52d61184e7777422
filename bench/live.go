package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	jwtmiddleware "github.com/auth0/go-jwt-middleware/v3"
	"github.com/auth0/go-jwt-middleware/v3/validator"
	dghubble "github.com/dghubble/sessions"
	"github.com/fxamacker/cbor/v2"
	"github.com/go-chi/jwtauth/v5"
	gorilla "github.com/gorilla/sessions"
	"github.com/markbates/goth/gothic"
	"github.com/markbates/goth/providers/openidConnect"
	proxyoptions "github.com/oauth2-proxy/oauth2-proxy/v7/pkg/apis/options"
	proxysessions "github.com/oauth2-proxy/oauth2-proxy/v7/pkg/apis/sessions"
	proxycookie "github.com/oauth2-proxy/oauth2-proxy/v7/pkg/sessions/cookie"
	"golang.org/x/oauth2"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// contender serves a request of a user who is connected, in one way of keeping the token.
type contender struct {
	name    string
	handler http.Handler
	request *http.Request
	status  int // of the answer; 0 is 200
}

// serve is one request.
func (c *contender) serve(w *discard) {
	clear(w.header)
	w.status = 0
	c.handler.ServeHTTP(w, c.request.WithContext(context.Background())) // gorilla/sessions keeps what it has read with a request
	if cmp.Or(w.status, http.StatusOK) != cmp.Or(c.status, http.StatusOK) {
		panic(fmt.Sprintf("%s answered %d", c.name, w.status))
	}
}

// discard is a ResponseWriter that keeps nothing but the status.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

const app = "https://app.example"

var discardLog = slog.New(slog.DiscardHandler)

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func secret(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// kept is the token as everybody but ganbauth keeps it.
type kept struct {
	AccessToken, RefreshToken, TokenType, Scope, IDToken, Subject string
	ExpiresAt, IssuedAt                                           time.Time
}

func (k kept) live() bool { return k.AccessToken != "" && time.Until(k.ExpiresAt) > time.Minute }

// bank is one bank in process for all, and token is what it issues, of the size that the
// bank's have.
var (
	bank  = ganbtest.NewServer(ganbtest.Options{InProcess: true})
	token = kept{
		AccessToken: rand.Text() + rand.Text(), RefreshToken: rand.Text() + rand.Text(), TokenType: "Bearer",
		Scope: "openid offline_access private:account", IDToken: idToken(), Subject: "0123456789",
		ExpiresAt: time.Now().Add(24 * time.Hour).UTC().Truncate(time.Second), IssuedAt: time.Now().UTC().Truncate(time.Second),
	}
)

func connector() *ganbauth.Connector {
	return must(ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, bank.Config()))
}

func idToken() string {
	_, signed, err := jwtauth.New("HS256", []byte(bank.ClientSecret), nil).Encode(map[string]any{
		"iss": bank.URL + "/", "aud": bank.ClientID, "sub": "0123456789", "nonce": rand.Text(),
		"iat": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix(),
	})
	check(err)
	return signed
}

// browse calls the handler as a browser does that has the cookies of the answers before.
func browse(h http.Handler, cookies map[string]string, target string) *http.Response {
	r := request(cookies, target)
	r.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	resp := w.Result()
	for _, c := range resp.Cookies() {
		cookies[c.Name] = c.Value
		if c.MaxAge < 0 {
			delete(cookies, c.Name)
		}
	}
	return resp
}

// request is a browser's request with cookies.
func request(cookies map[string]string, target string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, app+target, nil)
	r.RequestURI = target // as net/http's server has it
	var pairs []string
	for name, value := range cookies {
		pairs = append(pairs, name+"="+value)
	}
	if pairs != nil {
		r.Header.Set("Cookie", strings.Join(pairs, "; "))
	}
	return r
}

// onSCS is an application with scs sessions, whose user is logged in to it.
type onSCS struct {
	sessions *scs.SessionManager
	cookies  map[string]string
}

func newSCS(configure func(*scs.SessionManager)) *onSCS {
	a := &onSCS{sessions: scs.New(), cookies: map[string]string{}}
	a.sessions.Store = memstore.NewWithCleanupInterval(0)
	if configure != nil {
		configure(a.sessions)
	}
	return a
}

// keep puts value into the user's session.
func (a *onSCS) keep(value any) *onSCS {
	browse(a.sessions.LoadAndSave(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		a.sessions.Put(r.Context(), "user", "alice")
		if value != nil {
			a.sessions.Put(r.Context(), "token", value)
		}
	})), a.cookies, "/")
	return a
}

func (a *onSCS) contender(name string, handle http.HandlerFunc) *contender {
	return &contender{name: name, handler: a.sessions.LoadAndSave(handle), request: request(a.cookies, "/balance")}
}

// floor is what the application pays anyway.
func floor(configure func(*scs.SessionManager)) *contender {
	return newSCS(configure).keep(nil).contender("scs alone", func(http.ResponseWriter, *http.Request) {})
}

// oneMore is the floor where the session has one more value, of the size that ganbauth
// puts there.
func oneMore() *contender {
	a := newSCS(nil).keep(";" + rand.Text())
	return a.contender("scs alone, one more string in the session", func(http.ResponseWriter, *http.Request) {})
}

// connected is a user who is connected. The token is written by writer, or by the Kit's
// own store.
func connected(configure func(*scs.SessionManager), name string, opts ganbauth.Options, writer ganbauth.TokenStore) *contender {
	a := newSCS(configure).keep(nil)
	opts.RedirectURI, opts.Scopes, opts.Logger = app+"/callback", strings.Fields(token.Scope), discardLog
	store := &settingStore{TokenStore: cmp.Or(writer, opts.Store, ganbauth.NewSCSStore(a.sessions))}
	login := opts
	login.Store = store
	kit := must(ganbauth.New(connector(), a.sessions, login))
	mux := http.NewServeMux()
	mux.Handle("/login", kit.LoginHandler())
	mux.Handle("/callback", kit.CallbackHandler())
	h := a.sessions.LoadAndSave(mux)
	back := bank.Approve(browse(h, a.cookies, "/login").Header.Get("Location"))
	if resp := browse(h, a.cookies, strings.TrimPrefix(back, app)); resp.StatusCode != http.StatusSeeOther {
		panic(resp.Status)
	}
	// From here on the Kit has the store itself, as an application would, and the token
	// that all have.
	kit = must(ganbauth.New(connector(), a.sessions, opts))
	last := opts
	last.Store = cmp.Or(writer, opts.Store)
	check(must(ganbauth.New(connector(), a.sessions, last)).SetToken(context.Background(), strings.TrimPrefix(store.key, kitKey), &ganbauth.Token{
		AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, Scope: token.Scope,
		IDToken: token.IDToken, Subject: token.Subject, ExpiresAt: token.ExpiresAt, IssuedAt: token.IssuedAt,
	}))
	maps.DeleteFunc(a.cookies, func(name, _ string) bool { return name != a.sessions.Cookie.Name }) // the login's is gone in half an hour
	return &contender{name: name, handler: a.sessions.LoadAndSave(kit.RequireToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if t, ok := ganbauth.TokenFromContext(r.Context()); !ok || t.AccessToken != token.AccessToken {
			panic("no token")
		}
	}))), request: request(a.cookies, "/balance")}
}

// kitKey begins the key of every record of a Kit without a Name.
const kitKey = "bank/"

// settingStore learns the key that a login has saved its token under.
type settingStore struct {
	ganbauth.TokenStore
	key string
}

func (s *settingStore) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	s.key = key
	return s.TokenStore.Save(ctx, key, t)
}

func sealed() ganbauth.Options { return ganbauth.Options{EncryptionKeys: [][]byte{secret(32)}} }

// inSession keeps the token among the values of the scs session.
func inSession(configure func(*scs.SessionManager)) []*contender {
	inGob := newSCS(configure).keep(token)
	inJSON := newSCS(configure).keep(string(must(json.Marshal(token))))
	record := must(ganbauth.Token{
		AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, TokenType: "Bearer", Scope: token.Scope,
		IDToken: token.IDToken, Subject: token.Subject, ExpiresAt: token.ExpiresAt, IssuedAt: token.IssuedAt,
	}.MarshalBinary())
	inBytes := newSCS(configure).keep(record)
	needs := func(live bool) {
		if !live {
			panic("no token")
		}
	}
	return []*contender{
		inGob.contender("a struct in the session", func(_ http.ResponseWriter, r *http.Request) {
			t, _ := inGob.sessions.Get(r.Context(), "token").(kept)
			needs(t.live())
		}),
		inJSON.contender("JSON in the session", func(_ http.ResponseWriter, r *http.Request) {
			var t kept
			check(json.Unmarshal([]byte(inJSON.sessions.GetString(r.Context(), "token")), &t))
			needs(t.live())
		}),
		inBytes.contender("bytes in the session", func(_ http.ResponseWriter, r *http.Request) {
			var t ganbauth.Token
			check(t.UnmarshalBinary(inBytes.sessions.GetBytes(r.Context(), "token")))
			needs(t.Valid())
		}),
	}
}

// set returns a request with the cookies that h sets.
func set(h http.HandlerFunc) *http.Request {
	cookies := map[string]string{}
	browse(h, cookies, "/")
	return request(cookies, "/balance")
}

func fail(err error, ok bool) {
	if check(err); !ok {
		panic("no token")
	}
}

func proxyCookie() *proxyoptions.Cookie {
	return &proxyoptions.Cookie{Name: "_oauth2_proxy", Secret: string(secret(32)), Path: "/", Expire: 168 * time.Hour}
}

// proxied is oauth2-proxy's way of keeping the token, in one of its stores.
func proxied(name string, store proxysessions.SessionStore) *contender {
	return &contender{
		name: name,
		handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			s, err := store.Load(r)
			check(err)
			fail(nil, !s.IsExpired())
		}),
		request: set(func(w http.ResponseWriter, r *http.Request) {
			s := &proxysessions.SessionState{AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, IDToken: token.IDToken, User: token.Subject}
			s.CreatedAtNow()
			s.ExpiresIn(24 * time.Hour)
			check(store.Save(w, r, s))
		}),
	}
}

// peers keep the token in a cookie, or let a cookie be the token.
func peers() []*contender {
	oauthToken := &oauth2.Token{AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, TokenType: "Bearer", Expiry: token.ExpiresAt}

	cookieStore := gorilla.NewCookieStore(secret(64), secret(32))
	onGorilla := &contender{
		name: "gorilla/sessions (cookie) + x/oauth2",
		handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			s, err := cookieStore.Get(r, "session")
			check(err)
			t, _ := s.Values["token"].(*oauth2.Token)
			_, hasID := s.Values["id_token"].(string)
			fail(nil, t.Valid() && hasID)
		}),
		request: set(func(w http.ResponseWriter, r *http.Request) {
			s, _ := cookieStore.New(r, "session")
			s.Values["token"], s.Values["id_token"] = oauthToken, token.IDToken
			check(s.Save(r, w))
		}),
	}

	gothic.Store = cookieStore
	provider := &openidConnect.Provider{}
	onGothic := &contender{
		name: "goth (gothic, cookie)",
		handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			value, err := gothic.GetFromSession("bank", r)
			check(err)
			s, err := provider.UnmarshalSession(value)
			check(err)
			fail(nil, time.Until(s.(*openidConnect.Session).ExpiresAt) > time.Minute)
		}),
		request: set(func(w http.ResponseWriter, r *http.Request) {
			s := &openidConnect.Session{AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, IDToken: token.IDToken, ExpiresAt: token.ExpiresAt}
			check(gothic.StoreInSession("bank", s.Marshal(), r, w))
		}),
	}

	proxy := must(proxycookie.NewCookieSessionStore(&proxyoptions.SessionOptions{}, proxyCookie()))
	onProxy := proxied("oauth2-proxy (cookie)", proxy)

	jwtAuth := jwtauth.New("HS256", []byte(bank.ClientSecret), nil)
	asBearer := httptest.NewRequest(http.MethodGet, app+"/balance", nil)
	asBearer.Header.Set("Authorization", "Bearer "+token.IDToken)
	onChi := &contender{
		name: "chi/jwtauth (verifies a JWT)",
		handler: jwtauth.Verifier(jwtAuth)(jwtauth.Authenticator(jwtAuth)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, claims, err := jwtauth.FromContext(r.Context())
			fail(err, claims["sub"] == token.Subject)
		}))),
		request: asBearer,
	}

	v := must(validator.New(
		validator.WithKeyFunc(func(context.Context) (any, error) { return []byte(bank.ClientSecret), nil }),
		validator.WithAlgorithm(validator.HS256), validator.WithIssuer(bank.URL+"/"), validator.WithAudience(bank.ClientID),
	))
	onAuth0 := &contender{
		name: "auth0/go-jwt-middleware (verifies a JWT)",
		handler: must(jwtmiddleware.New(jwtmiddleware.WithValidator(v))).CheckJWT(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			claims, err := jwtmiddleware.GetClaims[*validator.ValidatedClaims](r.Context())
			fail(err, claims.RegisteredClaims.Subject == token.Subject)
		})),
		request: asBearer,
	}

	hubble := dghubble.NewCookieStore[string](dghubble.DefaultCookieConfig, secret(64), secret(32))
	onHubble := &contender{
		name: "dghubble/sessions (cookie)",
		handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			s, err := hubble.Get(r, "session")
			check(err)
			var t kept
			check(json.Unmarshal([]byte(s.Get("token")), &t))
			fail(nil, t.live())
		}),
		request: set(func(w http.ResponseWriter, _ *http.Request) {
			s := hubble.New("session")
			s.Set("token", string(must(json.Marshal(token))))
			check(s.Save(w))
		}),
	}
	return []*contender{onGorilla, onGothic, onProxy, onChi, onAuth0, onHubble}
}

// cborCodec is a scs.Codec that is quick, and ignores what follows its own encoding, as
// scs's GobCodec does.
type cborCodec struct{}

type cborSession struct {
	Deadline int64
	Values   map[string]any
}

func (cborCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	return cbor.Marshal(cborSession{deadline.Unix(), values})
}

func (cborCodec) Decode(data []byte) (time.Time, map[string]any, error) {
	var s cborSession
	if _, err := cbor.UnmarshalFirst(data, &s); err != nil {
		return time.Time{}, nil, err
	}
	return time.Unix(s.Deadline, 0).UTC(), s.Values, nil
}

func onCBOR(s *scs.SessionManager)   { s.Codec = cborCodec{} }
func withIdle(s *scs.SessionManager) { s.IdleTimeout = 20 * time.Minute }
func ours(configure func(*scs.SessionManager)) []*contender {
	return []*contender{
		floor(configure),
		connected(configure, "**ganbauth**", ganbauth.Options{}, nil),
		connected(configure, "**ganbauth**, sealed", sealed(), nil),
	}
}

func init() {
	gob.Register(kept{})
	gob.Register(&oauth2.Token{})
}

// liveGroups are the tables of a request with a live token. The first contender of each
// is its floor.
var liveGroups = map[string]func() []*contender{
	"default": func() []*contender {
		return slices.Concat(ours(nil), []*contender{oneMore()}, inSession(nil), peers())
	},
	"cbor": func() []*contender { return append(ours(onCBOR), named(peers(), "oauth2-proxy (cookie)")...) },
	"idle": func() []*contender { return append(ours(withIdle), inSession(withIdle)...) },
}

func named(all []*contender, name string) []*contender {
	for _, c := range all {
		if c.name == name {
			return []*contender{c}
		}
	}
	panic(name)
}
