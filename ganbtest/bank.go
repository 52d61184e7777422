package ganbtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ganbauth/ganbauth"
)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, e Endpoint, h http.HandlerFunc) {
		mux.Handle(pattern, s.endpoint(e, h))
	}
	handle("GET "+basePath+"/auth/v1/authorization", Authorization, s.authorize)
	handle("POST "+basePath+"/auth/v1/authorization", Authorization, s.decide)
	handle("POST "+basePath+"/auth/v1/token", TokenEndpoint, s.token)
	handle("GET "+basePath+"/auth/v1/userinfo", UserInfo, s.userInfo)
	for _, api := range []string{"/personal/v1", "/corporation/v1"} {
		handle("GET "+basePath+api+"/accounts", API, s.withAccess(s.accounts))
		handle("GET "+basePath+api+"/accounts/balances", API, s.withAccess(s.balances))
		handle("POST "+basePath+api+"/transfer/request", API, s.withAccess(s.transferRequest))
	}
	mux.Handle("/", s.endpoint(API, func(w http.ResponseWriter, _ *http.Request) {
		writeAPIError(w, http.StatusMethodNotAllowed, "WG_ERR_019", "The operation is not found.")
	}))
	return mux
}

// endpoint records the request, delays it, and fails if it is its turn to.
func (s *Server) endpoint(e Endpoint, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		entry := Request{Endpoint: e, Method: r.Method, Path: r.URL.Path, Time: s.opts.Now()}
		if e == TokenEndpoint {
			_ = r.ParseForm()
			entry.GrantType = r.PostForm.Get("grant_type")
			entry.AuthMethod = authMethod(r)
		}
		s.mu.Lock()
		at := len(s.requests)
		s.requests = append(s.requests, entry)
		s.mu.Unlock()

		fault := s.nextFault(e)
		delay := fault.Delay
		if e == TokenEndpoint || e == API {
			delay += s.opts.Latency
		}
		if delay > 0 {
			select {
			case <-time.After(delay):
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}
		rec := &answer{header: http.Header{}, status: http.StatusOK}
		if fault.Processed || fault.Status == 0 && !fault.Cut {
			h(rec, r)
		}
		if fault.Cut {
			panic(http.ErrAbortHandler)
		}
		if fault.Status != 0 {
			rec = &answer{fault.Header.Clone(), fault.Status, []byte(fault.Body)}
		}
		if fault.Change != nil {
			var response map[string]any
			if json.Unmarshal(rec.body, &response) == nil {
				fault.Change(response)
				rec.body, _ = json.Marshal(response)
			}
		}
		s.mu.Lock()
		s.requests[at].Status = rec.status
		s.mu.Unlock()
		for name, values := range rec.header {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.status)
		_, _ = w.Write(rec.body)
	})
}

// answer is a response that can still be changed.
type answer struct {
	header http.Header
	status int
	body   []byte
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }
func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}

func authMethod(r *http.Request) ganbauth.AuthMethod {
	_, _, basic := r.BasicAuth()
	post := r.PostForm.Has("client_secret")
	switch {
	case basic && !post:
		return ganbauth.AuthBasic
	case post && !basic:
		return ganbauth.AuthPost
	}
	return 0
}

// authorize is the authorization endpoint. Nothing is sent to a redirect URI that could not be the client's.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	redirectURI, err := url.Parse(q.Get("redirect_uri"))
	if q.Get("client_id") != s.ClientID || err != nil || redirectURI.Host == "" ||
		s.opts.RedirectURI != "" && q.Get("redirect_uri") != s.opts.RedirectURI {
		writePage(w, http.StatusBadRequest, errorPage, "The client or its redirect_uri is not registered.")
		return
	}
	for name, limit := range map[string]int{"scope": 256, "state": 128, "redirect_uri": 256, "response_type": 4} {
		if n := len(q.Get(name)); n == 0 || n > limit || len(q[name]) > 1 {
			s.redirectBack(w, q, url.Values{"error": {"invalid_request"}})
			return
		}
	}
	if !s.opts.Consent {
		s.redirectBack(w, q, s.approve(q, strings.Fields(q.Get("scope"))))
		return
	}
	writePage(w, http.StatusOK, consentPage, map[string]any{"Scopes": strings.Fields(q.Get("scope")), "Query": r.URL.RawQuery})
}

// decide takes the consent page's form.
func (s *Server) decide(w http.ResponseWriter, r *http.Request) {
	q, err := url.ParseQuery(r.PostFormValue("query"))
	if err != nil || q.Get("client_id") != s.ClientID {
		writePage(w, http.StatusBadRequest, errorPage, "The request is malformed.")
		return
	}
	granted := slices.DeleteFunc(strings.Fields(q.Get("scope")), func(scope string) bool {
		return !slices.Contains(r.PostForm["scope"], scope)
	})
	if r.PostFormValue("decision") != "approve" || len(granted) == 0 {
		s.redirectBack(w, q, url.Values{"error": {"access_denied"}, "error_description": {"The user denied the request."}})
		return
	}
	s.redirectBack(w, q, s.approve(q, granted))
}

// Approve answers an authorization URL as if the user had approved it all, and returns the callback URL with code
// and state. It does not follow it.
func (s *Server) Approve(authorizationURL string) string {
	return s.callbackURL(authorizationURL, func(q url.Values) url.Values {
		return s.approve(q, strings.Fields(q.Get("scope")))
	})
}

// ApproveOnly is Approve for a user who grants these scopes alone.
func (s *Server) ApproveOnly(authorizationURL string, scopes ...string) string {
	return s.callbackURL(authorizationURL, func(q url.Values) url.Values { return s.approve(q, scopes) })
}

// Deny answers an authorization URL as if the user had denied it, and returns the callback URL.
func (s *Server) Deny(authorizationURL string) string {
	return s.callbackURL(authorizationURL, func(url.Values) url.Values {
		return url.Values{"error": {"access_denied"}}
	})
}

func (s *Server) callbackURL(authorizationURL string, result func(url.Values) url.Values) string {
	u, err := url.Parse(authorizationURL)
	if err != nil {
		panic("ganbtest: not a URL: " + err.Error())
	}
	return s.backTo(u.Query(), result(u.Query()))
}

func (s *Server) approve(q url.Values, scopes []string) url.Values {
	g := &grant{
		subject: s.opts.Subject, scope: strings.Join(scopes, " "), nonce: q.Get("nonce"), authTime: s.opts.Now(),
	}
	if g.subject == "" {
		g.subject = "user-" + rand.Text()[:8]
	}
	c := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants = append(s.grants, g)
	s.codes[c] = &code{
		grant: g, redirectURI: q.Get("redirect_uri"), expires: s.opts.Now().Add(5 * time.Minute),
		challenge: q.Get("code_challenge"), method: q.Get("code_challenge_method"),
	}
	return url.Values{"code": {c}}
}

func (s *Server) redirectBack(w http.ResponseWriter, q, result url.Values) {
	w.Header().Set("Location", s.backTo(q, result))
	w.WriteHeader(http.StatusFound)
}

func (s *Server) backTo(q, result url.Values) string {
	result.Set("state", q.Get("state"))
	if s.opts.SendIssuer {
		result.Set("iss", s.issuer())
	}
	u, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		panic("ganbtest: redirect_uri: " + err.Error())
	}
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += result.Encode()
	return u.String()
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	if s.AuthMethod == ganbauth.AuthPost {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	if authMethod(r) != s.AuthMethod || id != s.ClientID || secret != s.ClientSecret {
		writeOAuthError(w, http.StatusUnauthorized, "invalid_client", "The client could not be authenticated.")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.PostForm.Get("grant_type") {
	case "authorization_code":
		s.exchange(w, r.PostForm)
	case "refresh_token":
		s.rotate(w, r.PostForm)
	default:
		writeOAuthError(w, http.StatusBadRequest, "unsupported_grant_type", "")
	}
}

func (s *Server) exchange(w http.ResponseWriter, form url.Values) {
	c := s.codes[form.Get("code")]
	switch {
	case c == nil:
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The code is unknown.")
		return
	case c.used:
		c.grant.revoked = true // RFC 6749 section 4.1.2
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The code has been used.")
		return
	}
	c.used = true
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	switch {
	case s.opts.Now().After(c.expires), form.Get("redirect_uri") != c.redirectURI,
		c.challenge != "" && (c.method != "S256" || base64.RawURLEncoding.EncodeToString(sum[:]) != c.challenge):
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The code does not belong to this request.")
		return
	}
	refresh := ""
	if slices.ContainsFunc(strings.Fields(c.grant.scope), func(scope string) bool {
		return scope == "offline_access" || strings.HasSuffix(scope, ":offline_access")
	}) {
		refresh = s.newRefreshToken(c.grant)
	}
	s.issue(w, c.grant, refresh, true)
}

func (s *Server) rotate(w http.ResponseWriter, form url.Values) {
	t := s.refresh[form.Get("refresh_token")]
	switch {
	case t == nil || t.grant.revoked:
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The refresh token is unknown or revoked.")
		return
	case t.used:
		t.grant.revoked = s.opts.RevokeOnReuse
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The refresh token has been used.")
		return
	}
	next := ""
	if !s.opts.KeepRefreshToken {
		t.used = true
		next = s.newRefreshToken(t.grant)
	}
	s.issue(w, t.grant, next, s.opts.RefreshIDToken)
}

func (s *Server) newRefreshToken(g *grant) string {
	t := rand.Text()
	s.refresh[t] = &refreshToken{grant: g}
	return t
}

func (s *Server) issue(w http.ResponseWriter, g *grant, refresh string, idToken bool) {
	access := rand.Text()
	s.access[access] = &accessToken{g, s.opts.Now().Add(s.opts.Lifetime)}
	response := map[string]any{"access_token": access, "token_type": "Bearer", "scope": g.scope}
	seconds := int(s.opts.Lifetime / time.Second)
	switch {
	case s.opts.OmitExpiresIn:
	case s.opts.ExpiresInString:
		response["expires_in"] = strconv.Itoa(seconds)
	default:
		response["expires_in"] = seconds
	}
	if refresh != "" {
		response["refresh_token"] = refresh
	}
	if idToken && slices.Contains(strings.Fields(g.scope), "openid") {
		response["id_token"] = s.idToken(g, access)
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, response)
}

func (s *Server) idToken(g *grant, access string) string {
	sum := sha256.Sum256([]byte(access))
	claims := jwt.MapClaims{
		"iss":       s.issuer(),
		"aud":       s.ClientID,
		"azp":       s.ClientID,
		"sub":       g.subject,
		"iat":       s.opts.Now().Unix(),
		"exp":       s.opts.Now().Add(5 * time.Minute).Unix(),
		"auth_time": g.authTime.Unix(),
		"at_hash":   base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2]),
	}
	if g.nonce != "" {
		claims["nonce"] = g.nonce
	}
	t, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(s.ClientSecret))
	if err != nil {
		panic("ganbtest: sign: " + err.Error())
	}
	return t
}

// granted returns the grant of a live access token.
func (s *Server) granted(access string) *grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.access[access]
	if t == nil || t.grant.revoked || !s.opts.Now().Before(t.expires) {
		return nil
	}
	return t.grant
}

func (s *Server) userInfo(w http.ResponseWriter, r *http.Request) {
	access, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	g := s.granted(access)
	if g == nil {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		writeAPIError(w, http.StatusUnauthorized, "WG_ERR_105", "The access token is not valid.")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"sub": g.subject, "iss": s.issuer()})
}

func (s *Server) withAccess(next func(http.ResponseWriter, *http.Request, *grant)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		g := s.granted(r.Header.Get("X-Access-Token"))
		if g == nil {
			writeAPIError(w, http.StatusUnauthorized, "WG_ERR_105", "The access token is not valid.")
			return
		}
		next(w, r, g)
	}
}

type account struct {
	AccountID       string `json:"accountId"`
	BranchCode      string `json:"branchCode"`
	BranchName      string `json:"branchName"`
	AccountTypeName string `json:"accountTypeName"`
	AccountNumber   string `json:"accountNumber"`
	AccountName     string `json:"accountName"`
	CurrencyCode    string `json:"currencyCode"`
}

type balance struct {
	AccountID          string `json:"accountId"`
	AccountTypeName    string `json:"accountTypeName"`
	Balance            string `json:"balance"`
	WithdrawableAmount string `json:"withdrawableAmount"`
	BaseDate           string `json:"baseDate"`
	BaseTime           string `json:"baseTime"`
	PreviousDayBalance string `json:"previousDayBalance"`
}

// accountsOf makes up two accounts that are always the same for one subject.
func accountsOf(subject string) (accounts []account, balances []balance) {
	sum := sha256.Sum256([]byte(subject))
	for i, kind := range []string{"普通預金（有利息）", "定期預金"} {
		number := new(big.Int).SetBytes(sum[i*8:i*8+4]).Int64()%9_000_000 + 1_000_000
		id := fmt.Sprintf("30101%d%07d", i, number)
		accounts = append(accounts, account{
			id, "301", "ビジネス営業部", kind, fmt.Sprintf("%07d", number), "サンドボックス　タロウ", "JPY",
		})
		amount := strconv.FormatInt(new(big.Int).SetBytes(sum[16+i*4:20+i*4]).Int64()%5_000_000+10_000, 10)
		balances = append(balances, balance{AccountID: id, AccountTypeName: kind,
			Balance: amount, WithdrawableAmount: amount, PreviousDayBalance: amount})
	}
	return accounts, balances
}

func (s *Server) accounts(w http.ResponseWriter, _ *http.Request, g *grant) {
	accounts, _ := accountsOf(g.subject)
	now := s.opts.Now()
	writeJSON(w, http.StatusOK, map[string]any{
		"baseDate": now.Format(time.DateOnly), "baseTime": now.Format("15:04:05-07:00"), "accounts": accounts,
	})
}

func (s *Server) balances(w http.ResponseWriter, _ *http.Request, g *grant) {
	_, balances := accountsOf(g.subject)
	now := s.opts.Now()
	for i := range balances {
		balances[i].BaseDate, balances[i].BaseTime = now.Format(time.DateOnly), now.Format("15:04:05-07:00")
	}
	writeJSON(w, http.StatusOK, map[string]any{"balances": balances})
}

func (s *Server) transferRequest(w http.ResponseWriter, r *http.Request, g *grant) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		writeAPIError(w, http.StatusBadRequest, "WG_ERR_110", "A parameter is not valid.")
		return
	}
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	number, again := s.transfer[key]
	if !again || key == "" {
		number = strconv.Itoa(2018_0000_0000_0000 + len(s.transfer) + 1)
		s.transfer[key] = number
	}
	s.mu.Unlock()
	accounts, _ := accountsOf(g.subject)
	writeJSON(w, http.StatusCreated, map[string]any{
		"accountId": accounts[0].AccountID, "resultCode": "2", "applyNo": number,
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func writeOAuthError(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

func writeAPIError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]string{"errorCode": code, "errorMessage": message})
}

func writePage(w http.ResponseWriter, status int, page *template.Template, data any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = page.Execute(w, data)
}

const pageHead = `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>body{font:1rem/1.6 system-ui,sans-serif;max-width:30rem;margin:10vh auto;padding:0 1.5rem;color:#14301f;background:#f3f8f4}
h1{font-size:1.3rem}label{display:block;padding:.3rem 0}button{font:inherit;padding:.6rem 1.4rem;border:0;border-radius:.4rem;
margin:1rem .6rem 0 0;background:#14713d;color:#fff}button[value=deny]{background:#dfe8e2;color:#14301f}</style>`

var (
	consentPage = template.Must(template.New("consent").Parse(pageHead + `<title>Sandbox bank</title>
<h1>Sandbox bank</h1>
<p>An application asks for access to your account. Choose what it may do.</p>
<form method="post">
{{range .Scopes}}<label><input type="checkbox" name="scope" value="{{.}}" checked> {{.}}</label>
{{end}}<input type="hidden" name="query" value="{{.Query}}">
<button name="decision" value="approve">Approve</button><button name="decision" value="deny">Deny</button>
</form>
<p><small>This is the bank in a box: no real account, no real money.</small></p></html>`))
	errorPage = template.Must(template.New("error").Parse(pageHead + `<title>Sandbox bank</title>
<h1>Sandbox bank</h1><p>{{.}}</p></html>`))
)
