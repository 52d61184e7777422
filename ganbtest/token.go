package ganbtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ganbauth/ganbauth"
)

// token is the token endpoint.
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

// exchange answers an authorization code with tokens, once. A second use ends the grant
// (RFC 6749 section 4.1.2).
func (s *Server) exchange(w http.ResponseWriter, form url.Values) {
	c := s.codes[form.Get("code")]
	switch {
	case c == nil:
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The code is unknown.")
		return
	case c.used:
		c.grant.end("code reused")
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

// rotate answers a refresh token with new tokens, and counts what the bank has processed.
func (s *Server) rotate(w http.ResponseWriter, form url.Values) {
	t := s.refreshToken(form.Get("refresh_token"))
	t.processed++
	if t.used {
		s.reuses++
	}
	switch {
	case t.grant == nil || t.grant.ended != "":
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The refresh token is unknown or revoked.")
		return
	case t.used:
		if s.opts.RevokeOnReuse {
			t.grant.end("refresh token reused")
		}
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

// issue writes the token response (RFC 6749 section 5.1).
func (s *Server) issue(w http.ResponseWriter, g *grant, refresh string, idToken bool) {
	s.forget()
	access := rand.Text()
	s.access[access] = &accessToken{g, s.opts.Now().Add(s.opts.Lifetime)}
	g.tokens++
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

// idToken signs an ID token for the grant (OpenID Connect Core section 2).
func (s *Server) idToken(g *grant, access string) string {
	sum := sha256.Sum256([]byte(access))
	claims := jwt.MapClaims{
		"iss":       s.issuer(),
		"aud":       s.ClientID,
		"azp":       s.ClientID,
		"sub":       g.subject,
		"iat":       s.opts.Now().Unix(),
		"exp":       s.opts.Now().Add(5 * time.Minute).Unix(),
		"auth_time": g.approved.Unix(),
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
