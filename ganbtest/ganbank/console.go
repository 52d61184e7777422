package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// console is the bank with its state and its switches.
type console struct {
	bank *ganbtest.Server
	opts ganbtest.Options

	mu sync.Mutex
	on map[string]func() // what ends the faults that are on
}

func newConsole(opts ganbtest.Options) *console {
	return &console{bank: ganbtest.NewServer(opts), opts: opts, on: map[string]func(){}}
}

// fault is a bad day that can be switched on. It has either a fault at an endpoint or a
// switch of its own.
type fault struct {
	ID, Words string
	endpoint  ganbtest.Endpoint
	fault     ganbtest.Fault
	begin     func(*console) (end func())
}

var faults = []fault{
	{ID: "maintenance", Words: "The bank is under maintenance", begin: func(c *console) func() {
		// One window follows the other, so that Retry-After says two minutes at most.
		now, length := time.Now(), 2*time.Minute
		c.bank.SetMaintenance(ganbtest.Window{Start: now, End: now.Add(length), Every: length})
		return func() { c.bank.SetMaintenance(c.opts.Maintenance...) }
	}},
	{ID: "rate", Words: "One request a second, and 429 for the others", begin: func(c *console) func() {
		c.bank.SetRateLimit(ganbtest.RateLimit{PerSecond: 1})
		return func() { c.bank.SetRateLimit(c.opts.RateLimit) }
	}},
	{ID: "token-500", Words: "Token endpoint: 500 with an HTML page", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.ServerError},
	{ID: "token-cut", Words: "Token endpoint: the connection is cut", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.ConnectionCut},
	{ID: "token-lost", Words: "Token endpoint: the answer is lost, the refresh token spent", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.AnswerLost},
	{ID: "token-slow", Words: "Token endpoint: 15 seconds for an answer", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.Slow(15 * time.Second)},
	{ID: "token-invalid-client", Words: "Token endpoint: invalid_client", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.InvalidClient},
	{ID: "token-invalid-grant", Words: "Token endpoint: invalid_grant", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.InvalidGrant},
	{ID: "token-id-token", Words: "Token endpoint: an ID token that does not verify", endpoint: ganbtest.TokenEndpoint, fault: ganbtest.WrongIDToken},
	{ID: "api-500", Words: "API: 500 with an HTML page", endpoint: ganbtest.API, fault: ganbtest.ServerError},
	{ID: "api-cut", Words: "API: the connection is cut", endpoint: ganbtest.API, fault: ganbtest.ConnectionCut},
	{ID: "api-slow", Words: "API: 15 seconds for an answer", endpoint: ganbtest.API, fault: ganbtest.Slow(15 * time.Second)},
}

// handler serves the console, and the bank at every other path.
func (c *console) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", c.page)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, map[string]string{"status": "ok"}) })
	mux.HandleFunc("GET /conf.json", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.conf()) })
	mux.HandleFunc("GET /state.json", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.state()) })
	forms := http.NewCrossOriginProtection()
	mux.Handle("POST /faults", forms.Handler(http.HandlerFunc(c.switchFault)))
	mux.Handle("POST /actions", forms.Handler(http.HandlerFunc(c.act)))
	mux.Handle("/", c.bank)
	return mux
}

// conf is the file that the bank's SDKs read. Its salt is no secret.
func (c *console) conf() map[string]string {
	cfg := c.bank.Config()
	return map[string]string{
		"SALT": cfg.Salt, "AUTH_BASE_URL": cfg.AuthBaseURL, "AUTH_PATH": cfg.AuthPath, "TOKEN_PATH": cfg.TokenPath,
		"JWT_ISSUER": cfg.JWTIssuer,
	}
}

// switchFault switches the fault of the form on or off.
func (c *console) switchFault(w http.ResponseWriter, r *http.Request) {
	at := slices.IndexFunc(faults, func(f fault) bool { return f.ID == r.PostFormValue("fault") })
	on, err := strconv.ParseBool(r.PostFormValue("on"))
	if at < 0 || err != nil {
		http.Error(w, "want on=true or on=false, and a fault=ID of /state.json", http.StatusBadRequest)
		return
	}
	c.set(faults[at], on)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// set switches a fault on or off.
func (c *console) set(f fault, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end, isOn := c.on[f.ID]
	switch {
	case isOn == on:
	case !on:
		end()
		delete(c.on, f.ID)
	case f.begin != nil:
		c.on[f.ID] = f.begin(c)
	default:
		c.on[f.ID] = c.bank.Fail(f.endpoint, f.fault, -1)
	}
}

// act does the action of the form: "expire" or "revoke".
func (c *console) act(w http.ResponseWriter, r *http.Request) {
	switch r.PostFormValue("action") {
	case "expire":
		c.bank.ExpireAccessTokens()
	case "revoke":
		c.bank.RevokeGrants()
	default:
		http.Error(w, "want action=expire or action=revoke", http.StatusBadRequest)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// state is what the page shows and what /state.json answers. It holds no token and no
// secret.
type state struct {
	ClosedUntil   time.Time               `json:"closedUntil,omitzero"` // the end of the maintenance, if there is one
	Faults        []faultState            `json:"faults"`
	Grants        []ganbtest.Grant        `json:"grants"`
	RefreshTokens []ganbtest.RefreshToken `json:"refreshTokens"`
	Reuses        int                     `json:"reuses"`
	Counts        []count                 `json:"counts"`
	Requests      []ganbtest.Request      `json:"requests"` // the latest first
}

type faultState struct {
	ID    string `json:"id"`
	Words string `json:"words"`
	On    bool   `json:"on"`
}

type count struct {
	Endpoint ganbtest.Endpoint `json:"endpoint"`
	Requests int               `json:"requests"`
}

// state returns a picture of the bank.
func (c *console) state() state {
	s := state{
		Grants: c.bank.Grants(), RefreshTokens: c.bank.RefreshTokens(), Reuses: c.bank.Reuses(), Requests: c.bank.Requests(),
	}
	s.ClosedUntil = c.bank.MaintenanceEnd()
	slices.Reverse(s.Requests)
	for _, e := range []ganbtest.Endpoint{ganbtest.Authorization, ganbtest.TokenEndpoint, ganbtest.UserInfo, ganbtest.API} {
		s.Counts = append(s.Counts, count{e, c.bank.Count(e)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range faults {
		_, on := c.on[f.ID]
		s.Faults = append(s.Faults, faultState{f.ID, f.Words, on})
	}
	return s
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v)
}

var (
	//go:embed console.css
	style string
	//go:embed console.html
	pageText     string
	pageTemplate = template.Must(template.New("console").Funcs(template.FuncMap{
		"short": func(path string) string { return strings.TrimPrefix(path, "/ganb/api") },
	}).Parse(pageText))
	pagePolicy = func() string {
		sum := sha256.Sum256([]byte(style))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
	}()
)

// page shows the state. Of long lists it shows the end.
func (c *console) page(w http.ResponseWriter, _ *http.Request) {
	s := c.state()
	s.Requests = s.Requests[:min(len(s.Requests), 50)]
	slices.Reverse(s.Grants)
	s.Grants = s.Grants[:min(len(s.Grants), 50)]
	conf, err := json.MarshalIndent(c.conf(), "", "  ")
	var b bytes.Buffer
	if err == nil {
		err = pageTemplate.Execute(&b, map[string]any{
			"State": s, "Style": template.CSS(style), "Conf": string(conf), "API": c.bank.APIBase(), "ClientID": c.bank.ClientID,
			"Basic": c.bank.AuthMethod == ganbauth.AuthBasic, "Now": time.Now(),
		})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	_, _ = b.WriteTo(w)
}
