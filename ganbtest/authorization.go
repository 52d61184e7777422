package ganbtest

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// authorize is the authorization endpoint. Nothing is sent to a redirect URI that is not
// the client's.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	q, text := r.URL.Query(), wordsFor(r)
	if !s.registered(q) {
		page{words: text, Title: text.refused, Text: text.unregistered}.write(w, http.StatusBadRequest)
		return
	}
	for name, limit := range map[string]int{"scope": 256, "state": 128, "redirect_uri": 256, "response_type": 4} {
		if n := len(q.Get(name)); n == 0 || n > limit || len(q[name]) > 1 {
			s.redirectBack(w, q, url.Values{"error": {"invalid_request"}})
			return
		}
	}
	scopes := strings.Fields(q.Get("scope"))
	if s.opts.Consent {
		consentPage(text, s.opts.Application, scopes, r.URL.RawQuery).write(w, http.StatusOK)
		return
	}
	s.redirectBack(w, q, s.approve(q, scopes))
}

// registered reports whether the client and its redirect URI are known to the bank.
func (s *Server) registered(q url.Values) bool {
	redirectURI := q.Get("redirect_uri")
	u, err := url.Parse(redirectURI)
	if q.Get("client_id") != s.ClientID || err != nil || u.Host == "" {
		return false
	}
	allowed := strings.Fields(s.opts.RedirectURI)
	return len(allowed) == 0 || slices.Contains(allowed, redirectURI)
}

// decide takes the consent page's form.
func (s *Server) decide(w http.ResponseWriter, r *http.Request) {
	q, err := url.ParseQuery(r.PostFormValue("query"))
	if err != nil || !s.registered(q) {
		text := wordsFor(r)
		page{words: text, Title: text.refused, Text: text.malformed}.write(w, http.StatusBadRequest)
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
// the callback URL with code and state. It does not follow it, and asks no endpoint. It
// panics if authorizationURL, or its redirect_uri, is not a URL.
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

// approve grants the scopes, to a new user unless the options name one, and returns a
// code for them that is valid for five minutes.
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

// backTo returns the URL that leads the browser back to the client with result.
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
