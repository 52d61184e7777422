package ganbtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"strings"
	"time"
)

// grant is one consent of one user.
type grant struct {
	subject, scope, nonce string
	approved              time.Time
	tokens                int    // access tokens issued
	ended                 string // why, empty while it lives
}

func (g *grant) end(why string) {
	if g.ended == "" {
		g.ended = why
	}
}

type code struct {
	grant                          *grant
	redirectURI, challenge, method string
	used                           bool
	expires                        time.Time
}

type accessToken struct {
	grant   *grant
	expires time.Time
}

// owner is t's grant, or nil for no token.
func (t *accessToken) owner() *grant {
	if t == nil {
		return nil
	}
	return t.grant
}

type refreshToken struct {
	fingerprint     string
	grant           *grant // nil for a token that the bank has not issued
	used            bool
	sent, processed int
}

// Grant is a user's consent, without its tokens.
type Grant struct {
	// Subject is the user at the bank.
	Subject string `json:"subject"`
	// Scopes are what the user granted.
	Scopes []string `json:"scopes"`
	// Approved is when, by the bank's clock.
	Approved time.Time `json:"approved"`
	// AccessTokens is how many access tokens the bank has issued for it. It is 0 until
	// the code is exchanged.
	AccessTokens int `json:"accessTokens"`
	// Ended says what ended the grant, and is empty while it lives: "revoked"
	// ([Server.RevokeGrants]), "code reused", or "refresh token reused"
	// (Options.RevokeOnReuse).
	Ended string `json:"ended,omitempty"`
}

func (g *grant) public() Grant {
	return Grant{g.subject, strings.Fields(g.scope), g.approved, g.tokens, g.ended}
}

// Grants returns every consent so far, in the order in which they were given.
func (s *Server) Grants() []Grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	grants := make([]Grant, len(s.grants))
	for i, g := range s.grants {
		grants[i] = g.public()
	}
	return grants
}

// RefreshToken is the record of one refresh token.
type RefreshToken struct {
	// Fingerprint identifies it, see [Fingerprint].
	Fingerprint string `json:"fingerprint"`
	// Subject is the user at the bank whose it is, or "" if the bank has not issued this
	// token.
	Subject string `json:"subject"`
	// Sent is how many requests presented it, whatever they were answered.
	Sent int `json:"sent"`
	// Processed is how many of them the bank acted upon. A request that a fault, a rate
	// limit or a maintenance turned away is not among them; one whose answer was lost is.
	// The first one spends a token unless Options.KeepRefreshToken is set, and each
	// further one is a reuse.
	Processed int `json:"processed"`
}

// Fingerprint identifies a refresh token without revealing it: 22 characters of its
// SHA-256.
func Fingerprint(refreshToken string) string {
	sum := sha256.Sum256([]byte(refreshToken))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// RefreshTokens returns the record of every refresh token that the bank has issued or
// been sent, in that order.
func (s *Server) RefreshTokens() []RefreshToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens := make([]RefreshToken, len(s.sent))
	for i, t := range s.sent {
		tokens[i] = RefreshToken{Fingerprint: t.fingerprint, Sent: t.sent, Processed: t.processed}
		if t.grant != nil {
			tokens[i].Subject = t.grant.subject
		}
	}
	return tokens
}

// Reuses returns how many requests presented a refresh token that the bank had already
// replaced, whether or not Options.RevokeOnReuse is set. A client that never sends a
// spent token leaves it at 0.
func (s *Server) Reuses() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reuses
}

// ExpireAccessTokens makes the bank refuse every access token issued so far with 401 and
// WG_ERR_105. Refresh tokens stay good.
func (s *Server) ExpireAccessTokens() { s.expire(func(*grant) bool { return true }) }

// ExpireAccessTokensOf is ExpireAccessTokens for one user at the bank, see
// [ganbauth.Token].Subject.
func (s *Server) ExpireAccessTokensOf(subject string) {
	s.expire(func(g *grant) bool { return g.subject == subject })
}

func (s *Server) expire(match func(*grant) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.access {
		if match(t.grant) {
			t.expires = time.Time{}
		}
	}
}

// RevokeGrants ends every grant: access tokens are refused, and refresh tokens answered
// with invalid_grant. A browser that has connected less than 30 seconds before gets a page
// then, and is not sent to the bank: see RequireToken of [ganbauth.Kit]. Let that time pass
// in a bubble of testing/synctest, or connect the user with SetToken.
func (s *Server) RevokeGrants() { s.revoke(func(*grant) bool { return true }) }

// RevokeGrantsOf is RevokeGrants for one user at the bank, see [ganbauth.Token].Subject.
func (s *Server) RevokeGrantsOf(subject string) {
	s.revoke(func(g *grant) bool { return g.subject == subject })
}

func (s *Server) revoke(match func(*grant) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.grants {
		if match(g) {
			g.end("revoked")
		}
	}
}

// forget drops codes and access tokens that are over when there are many of them, so that
// a bank that runs for long does not grow with each refresh.
func (s *Server) forget() {
	if len(s.access)+len(s.codes) < s.many {
		return
	}
	now := s.opts.Now()
	maps.DeleteFunc(s.access, func(_ string, t *accessToken) bool { return !now.Before(t.expires) })
	maps.DeleteFunc(s.codes, func(_ string, c *code) bool { return now.After(c.expires) })
	s.many = 2*(len(s.access)+len(s.codes)) + 1000
}

// refreshToken returns the record of a refresh token, and makes one for a token that is
// not the bank's.
func (s *Server) refreshToken(token string) *refreshToken {
	t := s.refresh[token]
	if t == nil {
		t = &refreshToken{fingerprint: Fingerprint(token)}
		s.refresh[token] = t
		s.sent = append(s.sent, t)
	}
	return t
}

func (s *Server) newRefreshToken(g *grant) string {
	token := rand.Text()
	s.refreshToken(token).grant = g
	return token
}

// granted returns the grant of a live access token.
func (s *Server) granted(access string) (Grant, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.access[access]
	if t == nil || t.grant.ended != "" || !s.opts.Now().Before(t.expires) {
		return Grant{}, false
	}
	return t.grant.public(), true
}
