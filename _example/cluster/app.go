package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
)

// settings are what an instance of the application reads from its environment.
type settings struct {
	addr         string // ADDR: where it listens; port 0 chooses a free one
	store        string // STORE: the URL of the engine that the instances share
	redirectURI  string // REDIRECT_URI: as registered with the bank
	conf         string // GANB_CONF: the bank SDKs' conf.json
	clientID     string // GANB_CLIENT_ID
	clientSecret string // GANB_CLIENT_SECRET
	instance     string // INSTANCE: its name, if there are several
}

// readSettings reads the environment, and names every variable that is missing.
func readSettings(getenv func(string) string) (settings, error) {
	var missing []error
	required := func(name string) string {
		value := getenv(name)
		if value == "" {
			missing = append(missing, fmt.Errorf("%s is not set", name))
		}
		return value
	}
	s := settings{
		addr:         cmp.Or(getenv("ADDR"), "127.0.0.1:8080"),
		store:        required("STORE"),
		redirectURI:  required("REDIRECT_URI"),
		conf:         required("GANB_CONF"),
		clientID:     required("GANB_CLIENT_ID"),
		clientSecret: required("GANB_CLIENT_SECRET"),
		instance:     getenv("INSTANCE"),
	}
	return s, errors.Join(missing...)
}

// app is one instance of the application.
type app struct {
	instance string
	started  time.Time
	sessions *scs.SessionManager
	kit      *ganbauth.Kit
	api      string

	mu       sync.Mutex
	received map[string]time.Time // when this instance last got a token from the bank, by user
}

// newApp makes an instance, whose stores serve until ctx ends.
func newApp(ctx context.Context, s settings) (*app, error) {
	a := &app{instance: s.instance, started: time.Now(), sessions: scs.New(), received: map[string]time.Time{}}
	store, sessionStore, err := openStores(ctx, s.store, a.sessions.Lifetime)
	if err != nil {
		return nil, err
	}
	a.sessions.Store = sessionStore
	a.sessions.Cookie.Secure = strings.HasPrefix(s.redirectURI, "https:")
	config, err := ganbauth.LoadConfig(s.conf)
	if err != nil {
		return nil, err
	}
	a.api = strings.TrimSuffix(config.AuthBaseURL, "/auth/v1") + "/personal/v1"
	connector, err := ganbauth.NewConnector(s.clientID, s.clientSecret, ganbauth.AuthBasic, config)
	if err != nil {
		return nil, err
	}
	a.kit, err = ganbauth.New(connector, a.sessions, ganbauth.Options{
		RedirectURI: s.redirectURI,
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Store:       store, // a Locker, too: one instance refreshes for all
		ErrorPage:   pages.Lookup("error"),
		Observe:     a.observe,
	})
	return a, err
}

// serve runs an instance until ctx ends, and lets it finish what it has begun. The first
// line of its output is its address.
func serve(ctx context.Context, s settings, out io.Writer) error {
	a, err := newApp(ctx, s)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, listener.Addr())
	server := &http.Server{Handler: a.sessions.LoadAndSave(a.routes()), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(ending), a.kit.Shutdown(ending))
}

func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/bank/callback", a.kit.CallbackHandler())
	mux.Handle("/bank/logout", a.kit.LogoutHandler())
	mux.Handle("GET /{$}", a.kit.RequireToken(http.HandlerFunc(a.accounts)))
	return mux
}

// observe remembers whose tokens this instance has got from the bank.
func (a *app) observe(ctx context.Context, e ganbauth.Event) {
	key, _, _ := ganbauth.KeyFromContext(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch e.Type {
	case ganbauth.EventLoginSucceeded, ganbauth.EventTokenRefreshed:
		a.received[key] = time.Now()
	case ganbauth.EventLogout:
		delete(a.received, key)
	}
}

type account struct {
	AccountTypeName, BranchName, AccountNumber string
}

// accounts shows the user's accounts, and what has just happened.
func (a *app) accounts(w http.ResponseWriter, r *http.Request) {
	var answer struct{ Accounts []account }
	resp, err := a.kit.Client(r.Context()).Get(a.api + "/accounts")
	if err == nil {
		defer resp.Body.Close()
		err = ganbauth.CheckResponse(resp)
	}
	if err == nil {
		err = json.NewDecoder(resp.Body).Decode(&answer)
	}
	if err != nil {
		a.kit.Refuse(w, r, err)
		return
	}
	p := a.newPage(r)
	p.Accounts = answer.Accounts
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, "accounts", p); err != nil {
		a.kit.Refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept-Language")
	_, _ = b.WriteTo(w)
}

//go:embed pages.html
var pagesText string
var pages = template.Must(template.New("").Parse(pagesText))

// page is what the template is executed with.
type page struct {
	Language string // "ja" or "en"
	Instance string // "" if there is only one
	PID      int
	Subject  string
	Accounts []account
	Seconds  int // until the access token expires

	// What has just happened.
	Killed  string // the instance that the user has killed, or ""
	Started int    // seconds since this process began
	Issued  int    // seconds since the bank issued the access token
	Here    bool   // to this instance
}

// newPage says what has happened to the request's user, in the language that the browser
// lists first.
func (a *app) newPage(r *http.Request) *page {
	token, _ := ganbauth.TokenFromContext(r.Context())
	key, _, _ := ganbauth.KeyFromContext(r.Context())
	a.mu.Lock()
	received := a.received[key]
	a.mu.Unlock()
	p := &page{
		Language: "en", Instance: a.instance, PID: os.Getpid(), Subject: token.Subject,
		Seconds: int(time.Until(token.ExpiresAt).Seconds()), Killed: r.URL.Query().Get("killed"),
		Started: int(time.Since(a.started).Seconds()), Issued: int(time.Since(token.IssuedAt).Seconds()),
		Here: received.Sub(token.IssuedAt).Abs() < 2*time.Second, // IssuedAt has whole seconds
	}
	if strings.HasPrefix(strings.ToLower(r.Header.Get("Accept-Language")), "ja") {
		p.Language = "ja"
	}
	return p
}

// Say returns the text in the page's language.
func (p *page) Say(ja, en string) string {
	if p.Language == "ja" {
		return ja
	}
	return en
}
