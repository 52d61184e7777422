package ganbauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Errors to tell apart with [errors.Is].
var (
	// ErrLoginRequired means that there is no token that could serve: the user has not connected, has logged out,
	// or the bank has ended the connection.
	ErrLoginRequired = errors.New("ganbauth: login required")
	// ErrInsufficientScope means that the user is connected, and has not granted what the route needs.
	ErrInsufficientScope = errors.New("ganbauth: insufficient scope")
	// ErrTokenNotFound is what a [TokenStore] answers for a key without a token.
	ErrTokenNotFound = errors.New("ganbauth: token not found")
	// ErrSuperseded is a [Swapper]'s answer when what it was to replace is not what is stored.
	ErrSuperseded = errors.New("ganbauth: the record is another one by now")
	// ErrTokenFormat means that the token endpoint answered JSON that is no token response (RFC 6749 section 5.1).
	ErrTokenFormat = errors.New("ganbauth: token format error")
	// ErrTokenValue means that the token endpoint answered something that is not a JSON object.
	ErrTokenValue = errors.New("ganbauth: token value error")
	// ErrInvalidIDToken means that an ID token did not pass OpenID Connect Core section 3.1.3.7 or 12.2, or that
	// userinfo spoke of somebody else (section 5.3.2). Nothing of the answer was used.
	ErrInvalidIDToken = errors.New("ganbauth: invalid ID token")
	// ErrTokenNotExpired is [Connector.RefreshSession]'s answer to an error that no refresh would mend.
	ErrTokenNotExpired = errors.New("ganbauth: the token is not expired")
	// ErrInvalidState means that a callback belongs to no login that this browser began, or to one that is over.
	ErrInvalidState = errors.New("ganbauth: invalid state")
)

// TokenError is a failure of the token endpoint (RFC 6749 section 5.2), or of the way to it.
type TokenError struct {
	// StatusCode is the HTTP status, or 0 when no answer arrived.
	StatusCode int
	// Code is the answer's error, such as invalid_grant, or else the gateway's errorCode, such as WG_ERR_300.
	// It is empty when there is none, or none that could be printed.
	Code string
	// Description and URI are the answer's error_description and error_uri (or the gateway's errorMessage),
	// made printable and cut to 256 characters. They are the bank's words: do not show them as HTML or as a link.
	Description, URI string
	// RetryAfter is the answer's Retry-After, between a second and an hour, or 0.
	RetryAfter time.Duration

	err error
}

// Error names the status and the code, and nothing of the request or of the bank's free text.
func (e *TokenError) Error() string {
	s := "ganbauth: token endpoint: " + statusText(e.StatusCode, e.Code)
	if e.err != nil {
		s += ": " + printable(e.err.Error())
	}
	return s
}

// Unwrap returns the cause when no answer arrived, or nil.
func (e *TokenError) Unwrap() error { return e.err }

// Temporary reports whether the same request might succeed later: the bank did not answer, is overloaded, under
// maintenance or broken.
func (e *TokenError) Temporary() bool {
	switch e.Code {
	case "server_error", "temporarily_unavailable", codeMaintenance:
		return true
	}
	return e.StatusCode == 0 || temporaryStatus(e.StatusCode)
}

// grantLost reports whether the bank said that the grant itself is dead. WG_ERR_105 is the gateway's way to say so.
func (e *TokenError) grantLost() bool {
	return e.StatusCode < 500 && (e.Code == "invalid_grant" || e.Code == codeExpired)
}

// AuthorizationError is the bank's refusal by redirect (RFC 6749 section 4.1.2.1), access_denied for example.
// Both fields are made printable; Code is at most 64 characters long, Description at most 256.
type AuthorizationError struct {
	Code, Description string
}

// Error names the code only.
func (e *AuthorizationError) Error() string { return "ganbauth: authorization refused: " + e.Code }

// Codes of the bank's gateway.
const (
	codeExpired     = "WG_ERR_105"
	codeMaintenance = "WG_ERR_300"
)

// APIError is the error JSON of the bank's API.
type APIError struct {
	// StatusCode is the HTTP status.
	StatusCode int
	// Code is errorCode, empty when the answer was not the bank's error JSON.
	Code string
	// Message is errorMessage, made printable and cut to 256 characters.
	Message string
	// Details are errorDetails and transferErrorDetails, flattened.
	Details []APIErrorDetail
	// RetryAfter is the answer's Retry-After, between a second and an hour, or 0.
	RetryAfter time.Duration
}

// APIErrorDetail is one fault in a request to the bank's API.
type APIErrorDetail struct {
	// ItemID names the item of a bulk transfer that the fault belongs to; empty otherwise.
	ItemID string
	// Code and Message are errorDetailsCode and errorDetailsMessage, made printable.
	Code, Message string
}

// Error names the status and the code, and says so when the bank is under maintenance or limits the rate.
func (e *APIError) Error() string {
	s := "ganbauth: bank API: " + statusText(e.StatusCode, e.Code)
	switch {
	case e.Code == codeMaintenance:
		s += ": the bank is under maintenance"
	case e.StatusCode == http.StatusTooManyRequests:
		s += ": too many requests"
	case e.Expired():
		s += ": the access token is expired or revoked"
	}
	return s
}

// Expired reports whether the bank refused the access token (401 and WG_ERR_105): a refresh may help.
func (e *APIError) Expired() bool {
	return e.StatusCode == http.StatusUnauthorized && e.Code == codeExpired
}

// Temporary reports whether the same request might succeed later: maintenance, rate limit, a broken server.
func (e *APIError) Temporary() bool {
	return e.Code == codeMaintenance || temporaryStatus(e.StatusCode)
}

// CheckResponse returns nil for a status of 2xx and an [*APIError] for any other. The body stays readable from its
// beginning; at most 1 MiB of it is looked at.
func CheckResponse(resp *http.Response) error {
	if resp == nil {
		return errors.New("ganbauth: CheckResponse: no response")
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	e := &APIError{StatusCode: resp.StatusCode, RetryAfter: retryAfter(resp.Header)}
	o, err := errorObject(resp)
	if err != nil {
		return e
	}
	e.Code = errorCode(o, "errorCode")
	e.Message = errorText(o, "errorMessage")
	e.Details = errorDetails(o["errorDetails"], "")
	items, _, _ := member[[]json.RawMessage](o, "transferErrorDetails")
	for _, item := range items {
		if i, err := parseObject(item); err == nil {
			e.Details = append(e.Details, errorDetails(i["errorDetails"], errorText(i, "itemId"))...)
		}
	}
	return e
}

func errorDetails(raw json.RawMessage, itemID string) (details []APIErrorDetail) {
	list, _, _ := member[[]json.RawMessage](object{"": raw}, "")
	for _, item := range list {
		if d, err := parseObject(item); err == nil {
			details = append(details, APIErrorDetail{
				ItemID:  itemID,
				Code:    errorText(d, "errorDetailsCode"),
				Message: errorText(d, "errorDetailsMessage"),
			})
		}
	}
	return details
}

// errorObject reads the JSON of an error, up to the limit, and puts the body back. The gateway may speak another
// charset than it says: what is not UTF-8 is replaced, as the code matters, not the text.
func errorObject(resp *http.Response) (object, error) {
	if resp.Body == nil {
		return nil, io.EOF
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = failingReader{err}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), rest), resp.Body}
	return parseObject(bytes.ToValidUTF8(head, []byte("\uFFFD")))
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// errorCode returns o[name] if it could be an error code: RFC 6749 appendix A.7, and short.
func errorCode(o object, name string) string {
	s, _, _ := member[string](o, name)
	return cleanCode(s)
}

func cleanCode(s string) string {
	bad := func(c rune) bool { return c < 0x20 || c > 0x7e || c == '"' || c == '\\' }
	if len(s) > 64 || strings.ContainsFunc(s, bad) {
		return ""
	}
	return s
}

func errorText(o object, name string) string {
	s, _, _ := member[string](o, name)
	return printable(s)
}

// printable makes foreign text fit for a log line: no control or format characters, at most 256 characters.
func printable(s string) string {
	n := 0
	return strings.Map(func(c rune) rune {
		if n++; n > 256 {
			return -1
		}
		if !unicode.IsPrint(c) {
			return '\uFFFD'
		}
		return c
	}, s)
}

func statusText(status int, code string) string {
	s := "no answer"
	if status != 0 {
		s = "status " + strconv.Itoa(status)
	}
	if code != "" {
		s += ": " + code
	}
	return s
}

func temporaryStatus(status int) bool {
	return status >= 500 || status == http.StatusTooManyRequests
}

// retryAfter reads Retry-After in seconds; a date, garbage and anything beyond an hour count as none.
func retryAfter(h http.Header) time.Duration {
	s, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || s < 1 || s > 3600 {
		return 0
	}
	return time.Duration(s) * time.Second
}

// unavailableError is trouble that passes: the bank or the store does not answer, and nobody is logged out for it.
type unavailableError struct {
	err        error
	retryAfter time.Duration
}

// unavailable is an unavailableError that may be tried again soon.
func unavailable(format string, args ...any) error {
	return &unavailableError{fmt.Errorf(format, args...), minCoolDown}
}

func (e *unavailableError) Error() string { return e.err.Error() }
func (e *unavailableError) Unwrap() error { return e.err }

// refusal is a request that a handler does not serve, whoever is logged in.
type refusal struct {
	status int
	reason string
}

func (e *refusal) Error() string { return "ganbauth: " + e.reason }

// StatusCode returns the HTTP status for an error that an [Options] OnError hook was given: 401 for
// [ErrLoginRequired], 403 for [ErrInsufficientScope] and a denied consent, 400 for [ErrInvalidState], 502 for an
// answer of the bank that makes no sense, 503 when the bank or the store is away, 500 for anything else.
func StatusCode(err error) int {
	var (
		unavailable *unavailableError
		refused     *refusal
		token       *TokenError
		auth        *AuthorizationError
	)
	switch {
	case errors.As(err, &unavailable):
		return http.StatusServiceUnavailable
	case errors.As(err, &refused):
		return refused.status
	case errors.Is(err, ErrLoginRequired):
		return http.StatusUnauthorized
	case errors.Is(err, ErrInsufficientScope):
		return http.StatusForbidden
	case errors.Is(err, ErrInvalidState):
		return http.StatusBadRequest
	case errors.As(err, &auth):
		switch auth.Code {
		case "access_denied":
			return http.StatusForbidden
		case "temporarily_unavailable", "server_error":
			return http.StatusServiceUnavailable
		}
		return http.StatusBadRequest
	case errors.As(err, &token) && token.Temporary(),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	case token != nil, errors.Is(err, ErrTokenFormat), errors.Is(err, ErrTokenValue), errors.Is(err, ErrInvalidIDToken):
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}

// errorClass is a short name for metrics, from a fixed set but for the bank's own codes.
func errorClass(err error) string {
	var (
		token   *TokenError
		auth    *AuthorizationError
		refused *refusal
	)
	switch {
	case err == nil:
		return ""
	case errors.As(err, &auth):
		return auth.Code
	case errors.As(err, &refused):
		return "refused"
	case errors.Is(err, ErrInvalidIDToken):
		return "invalid_id_token"
	case errors.Is(err, ErrTokenFormat), errors.Is(err, ErrTokenValue):
		return "token_format"
	case errors.Is(err, ErrInvalidState):
		return "invalid_state"
	case errors.Is(err, ErrInsufficientScope):
		return "insufficient_scope"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &token) && token.Code != "":
		return token.Code
	case token != nil && token.StatusCode != 0:
		return fmt.Sprintf("status_%d", token.StatusCode)
	case token != nil:
		return "network"
	case errors.Is(err, ErrLoginRequired):
		return "login_required"
	}
	return "internal"
}
