package ganbtest

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ganbauth/ganbauth"
)

// Endpoint is one part of the bank. What is nowhere else belongs to API.
type Endpoint string

// The bank's endpoints.
const (
	Authorization Endpoint = "authorization"
	TokenEndpoint Endpoint = "token"
	UserInfo      Endpoint = "userinfo"
	API           Endpoint = "api"
)

// Request is one request that the bank has seen, without any secret. As JSON it has no
// AuthMethod.
type Request struct {
	Endpoint Endpoint `json:"endpoint"`
	Method   string   `json:"method"`
	// Path is the URL's path, without the query.
	Path string `json:"path"`
	// GrantType is the token request's.
	GrantType string `json:"grantType,omitempty"`
	// RefreshToken is the [Fingerprint] of the refresh token in a token request.
	RefreshToken string `json:"refreshToken,omitempty"`
	// Subject is the user at the bank whose code, refresh token or access token came with
	// the request. It is empty where the bank does not know what came.
	Subject string `json:"subject,omitempty"`
	// AuthMethod is how the client authenticated: AuthBasic, AuthPost, or 0 for neither
	// or both.
	AuthMethod ganbauth.AuthMethod `json:"-"`
	// Status is the answer's, 0 while there is none or when the connection was cut.
	Status int `json:"status"`
	// Time is when the request came, by the bank's clock.
	Time time.Time `json:"time"`
}

// requestLog holds what the bank has seen.
type requestLog struct {
	keep      int // 0 for all
	entries   []*Request
	counts    map[Endpoint]int
	statuses  map[answered]int
	refreshes int
}

// answered is a kind of answer.
type answered struct {
	endpoint Endpoint
	status   int
}

// record logs the request and returns its entry, which belongs to the log, and a copy of
// it. A refresh token counts as sent here, whatever becomes of the request.
func (s *Server) record(e Endpoint, r *http.Request) (entry *Request, seen Request) {
	entry = &Request{Endpoint: e, Method: r.Method, Path: r.URL.Path, Time: s.opts.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	var g *grant
	switch e {
	case TokenEndpoint:
		entry.GrantType, entry.AuthMethod = r.PostForm.Get("grant_type"), authMethod(r)
		if entry.GrantType == "refresh_token" {
			t := s.refreshToken(r.PostForm.Get("refresh_token"))
			t.sent++
			g, entry.RefreshToken = t.grant, t.fingerprint
			s.requests.refreshes++
		} else if c := s.codes[r.PostForm.Get("code")]; c != nil {
			g = c.grant
		}
	case UserInfo:
		g = s.access[bearer(r)].owner()
	case API:
		g = s.access[r.Header.Get("X-Access-Token")].owner()
	}
	if g != nil {
		entry.Subject = g.subject
	}
	s.requests.add(entry)
	return entry, *entry
}

func (l *requestLog) add(entry *Request) {
	l.counts[entry.Endpoint]++
	l.entries = append(l.entries, entry)
	if l.keep > 0 && len(l.entries) >= 2*l.keep {
		l.entries = slices.Clone(l.latest())
	}
}

// latest returns the entries that the log is to keep.
func (l *requestLog) latest() []*Request {
	if l.keep <= 0 {
		return l.entries
	}
	return l.entries[max(0, len(l.entries)-l.keep):]
}

func (s *Server) answered(entry *Request, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entry.Status = status
	s.requests.statuses[answered{entry.Endpoint, status}]++
}

func bearer(r *http.Request) string {
	access, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return access
}

// Requests returns the requests so far, in the order in which they came: all of them, or
// the latest Options.KeepRequests.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	latest := s.requests.latest()
	requests := make([]Request, len(latest))
	for i, entry := range latest {
		requests[i] = *entry
	}
	return requests
}

// Count returns how many requests the endpoint has seen.
func (s *Server) Count(e Endpoint) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests.counts[e]
}

// CountStatus returns how many requests the endpoint has answered with that status. Cut
// connections have none.
func (s *Server) CountStatus(e Endpoint, status int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests.statuses[answered{e, status}]
}

// Refreshes returns how many token requests with a refresh token the bank has seen.
func (s *Server) Refreshes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests.refreshes
}
