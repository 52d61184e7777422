package ganbauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

func tokenError(resp *http.Response) *TokenError {
	e := &TokenError{StatusCode: resp.StatusCode, RetryAfter: retryAfter(resp.Header)}
	if o, err := errorObject(resp); err == nil {
		e.read(o)
	}
	return e
}

func (e *TokenError) read(o object) {
	e.Code = errorCode(o, "error")
	e.Description = errorText(o, "error_description")
	e.URI = errorText(o, "error_uri")
	if e.Code == "" {
		e.Code = errorCode(o, "errorCode")
		e.Description = errorText(o, "errorMessage")
	}
}

// readBody reads a body of at most maxBody bytes, counted after decompression.
func readBody(resp *http.Response) ([]byte, error) {
	errTooLong := fmt.Errorf("the answer is longer than %d bytes", maxBody)
	if resp.ContentLength > maxBody {
		return nil, errTooLong
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, errTooLong
	}
	return body, nil
}

// parseToken reads a token response (RFC 6749 section 5.1) that was asked for at that time.
func parseToken(body []byte, asked time.Time, a assumed) (*Token, string, error) {
	o, err := parseObject(body)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrTokenValue, err)
	}
	for _, name := range []string{"error", "errorCode"} {
		if _, ok := o[name]; ok {
			e := &TokenError{StatusCode: http.StatusOK}
			e.read(o)
			return nil, "", e
		}
	}
	issued := asked.UTC().Truncate(time.Second)
	t := &Token{TokenType: "Bearer", IssuedAt: issued, ExpiresAt: issued.Add(lifetime(o["expires_in"], a.lifetime))}
	var tokenType, idToken string
	for _, m := range []struct {
		name  string
		limit int
		value *string
	}{
		{"access_token", maxReceived, &t.AccessToken},
		{"refresh_token", maxReceived, &t.RefreshToken},
		{"scope", maxReceived, &t.Scope},
		{"token_type", maxReceived, &tokenType},
		{"id_token", maxIDToken, &idToken},
	} {
		s, _, err := member[string](o, m.name)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrTokenFormat, err)
		}
		if err := checkMember(m.name, s, m.limit); err != nil {
			return nil, "", err
		}
		*m.value = s
	}
	switch {
	case t.AccessToken == "":
		return nil, "", errNoAccessToken
	case !strings.EqualFold(tokenType, "Bearer"):
		return nil, "", fmt.Errorf("%w: token_type is not Bearer", ErrTokenFormat)
	}
	if t.RefreshToken == "" {
		t.RefreshToken = a.refreshToken
	}
	if _, ok, _ := member[string](o, "scope"); !ok { // while an empty scope is an empty grant
		t.Scope = a.scope
	}
	t.Scope = strings.Join(strings.Fields(t.Scope), " ")
	return t, idToken, nil
}

var errNoAccessToken = fmt.Errorf("%w: access_token is missing", ErrTokenFormat)

// checkMember refuses what could not stand in a header, and would fail every request until logout.
func checkMember(name, value string, limit int) error {
	switch {
	case len(value) > limit:
		return fmt.Errorf("%w: %s is longer than %d bytes", ErrTokenFormat, name, limit)
	case !isVisible(value, name == "scope"):
		return fmt.Errorf("%w: %s has a character that is not visible ASCII", ErrTokenFormat, name)
	}
	return nil
}

func isVisible(s string, spaces bool) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return (c < '!' || c > '~') && !(spaces && c == ' ') })
}

// lifetime reads expires_in: a number of seconds, or a string of one, as the bank's SDKs disagree. A value that
// is missing, unusable or not positive counts as assumed, never as for ever; more than a year counts as a year.
func lifetime(raw json.RawMessage, assumed time.Duration) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || math.IsNaN(seconds) || seconds < 1 {
		return assumed
	}
	return time.Duration(min(seconds, maxLifetime.Seconds())) * time.Second
}

// gotWant shows two values that should have been the same.
func gotWant(what, got, want string) string {
	return fmt.Sprintf("%s is %q, want %q", what, printable(got), want)
}
