package ganbtest

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/template"
	"time"
)

// authorize is the authorization endpoint. Nothing is sent to a redirect URI that could
// not be the client's.
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

// Approve answers an authorization URL as if the user had approved it all, and returns
// the callback URL with code and state. It does not follow it.
func (s *Server) Approve(authorizationURL string) string {
	return s.callbackURL(authorizationURL, func(q url.Values) url.Values {
		return s.approve(q, strings.Fields(q.Get("scope")))
	})
}

// ApproveOnly is Approve for a user who grants these scopes alone.
func (s *Server) ApproveOnly(authorizationURL string, scopes ...string) string {
	return s.callbackURL(authorizationURL, func(q url.Values) url.Values { return s.approve(q, scopes) })
}

// Deny answers an authorization URL as if the user had denied it, and returns the
// callback URL.
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
		subject: s.opts.Subject, scope: strings.Join(scopes, " "), nonce: q.Get("nonce"), approved: s.opts.Now(),
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
