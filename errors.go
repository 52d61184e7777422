package ganbauth

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Errors to tell apart with [errors.Is].
var (
	// ErrLoginRequired means that no token can serve: the user has not connected, has
	// logged out, or the bank has ended the connection.
	ErrLoginRequired = errors.New("ganbauth: login required")
	// ErrNoUser means that the application does not know the user: Options.Key returned
	// "", or Key or Connection an ErrLoginRequired. It wraps ErrLoginRequired, but
	// connecting at the bank would not help.
	ErrNoUser = fmt.Errorf("%w: the application knows no user to connect", ErrLoginRequired)
	// ErrUnavailable means "try again later": the bank, the store, the sessions or a lock
	// did not answer. The connection is kept. Its [StatusCode] is 503. Options.Key and
	// Connection may return it.
	ErrUnavailable = errors.New("ganbauth: unavailable")
	// ErrInsufficientScope means that the user is connected but has not granted a scope
	// that the route needs.
	ErrInsufficientScope = errors.New("ganbauth: insufficient scope")
	// ErrTokenNotFound is what a [TokenStore] returns for a key without a record.
	ErrTokenNotFound = errors.New("ganbauth: token not found")
	// ErrSuperseded is what a [Swapper] returns when the stored record is not the one
	// that it was to replace.
	ErrSuperseded = errors.New("ganbauth: superseded: the stored record has changed")
	// ErrTokenFormat means that the token endpoint's JSON is not a token response (RFC
	// 6749 section 5.1).
	ErrTokenFormat = errors.New("ganbauth: token format error")
	// ErrTokenValue means that the token endpoint's answer is not a JSON object.
	ErrTokenValue = errors.New("ganbauth: token value error")
	// ErrInvalidIDToken means that an ID token failed OpenID Connect Core section 3.1.3.7
	// or 12.2, or that userinfo described another user (section 5.3.2). Nothing of the
	// answer was used.
	ErrInvalidIDToken = errors.New("ganbauth: invalid ID token")
	// ErrTokenNotExpired is what [Connector.RefreshSession] returns for an error that a
	// refresh would not mend.
	ErrTokenNotExpired = errors.New("ganbauth: the token is not expired")
	// ErrInvalidState means that a callback belongs to no login that this browser began,
	// or to one that is over.
	ErrInvalidState = errors.New("ganbauth: invalid state")

	// errAttemptExpired is the ErrInvalidState of a login that took too long.
	errAttemptExpired = fmt.Errorf("%w: the login was begun too long ago", ErrInvalidState)
	// errBusy means that more token requests wait than the bank takes.
	errBusy = errors.New("ganbauth: too many token requests at once")
	// errOtherSubject means that the bank answered a refresh with the verified ID token
	// of another user. It ends the connection.
	errOtherSubject = fmt.Errorf("%w: sub is not the login's", ErrInvalidIDToken)
)

// The methods of the bank's errors work on nil pointers, which Go makes errors of easily: a
// slip of the application's is answered 500, and does not panic.

// TokenError is a refusal of the token endpoint (RFC 6749 section 5.2), or the lack of an
// answer.
type TokenError struct {
	// StatusCode is the HTTP status, or 0 if no answer arrived, or not to its end.
	StatusCode int
	// Code is the answer's error, such as invalid_grant, or else the gateway's errorCode,
	// such as WG_ERR_300. It is empty if there is none, or if it is not an error code of
	// at most 64 characters (RFC 6749 appendix A.7). It is the bank's: for metrics use
	// Event.ErrorClass.
	Code string
	// Description and URI are the answer's error_description and error_uri, or the
	// gateway's errorMessage, made printable and cut to 256 characters. The bank has
	// written them: do not show them as HTML or as a link.
	Description, URI string
	// RetryAfter is the answer's Retry-After, between a second and an hour, or 0.
	RetryAfter time.Duration

	err error
}

// Error returns the status, the code and the cause. It contains nothing of the request
// and none of the bank's free text. Of a cause that may quote what the bank sent, it has
// the type only.
func (e *TokenError) Error() string {
	if e == nil {
		return nilError
	}
	s := "ganbauth: token endpoint: " + statusText(e.StatusCode, e.Code)
	if e.err != nil {
		s += ": " + causeText(e.err)
	}
	return s
}

// Unwrap returns the cause if no answer arrived, or nil.
func (e *TokenError) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.err
}

// Temporary reports whether the same request might succeed later: the bank did not
// answer, is under maintenance, limits the rate, or has an error of its own.
func (e *TokenError) Temporary() bool {
	if e == nil {
		return false
	}
	switch e.Code {
	case "server_error", "temporarily_unavailable", codeMaintenance:
		return true
	}
	return e.StatusCode == 0 || temporaryStatus(e.StatusCode)
}

func (e *TokenError) wait() time.Duration {
	if e == nil {
		return 0
	}
	return e.RetryAfter
}

// grantDead reports whether the authorization server said that the grant has ended.
func (e *TokenError) grantDead() bool { return e.StatusCode < 500 && e.Code == "invalid_grant" }

// gatewayRefused reports whether the gateway in front of the authorization server refused
// the token. The grant may have ended, or the gateway may be in trouble.
func (e *TokenError) gatewayRefused() bool { return e.StatusCode < 500 && e.Code == codeExpired }

// AuthorizationError is a refusal that the consent page sends back by way of the browser
// (RFC 6749 section 4.1.2.1), access_denied for example. A browser may have made it up.
type AuthorizationError struct {
	// Code is the error, made printable, of at most 64 characters. For metrics use
	// Event.ErrorClass.
	Code string
	// Description is the error_description, made printable and cut to 256 characters. Do
	// not show it as HTML.
	Description string
}

// Error returns the code. It contains none of the free text.
func (e *AuthorizationError) Error() string {
	if e == nil {
		return nilError
	}
	return "ganbauth: authorization refused: " + e.Code
}

const nilError = "ganbauth: a nil pointer is no error"

// Codes of the bank's gateway.
const (
	codeExpired     = "WG_ERR_105"
	codeMaintenance = "WG_ERR_300"
)

// APIError is a refusal of the bank's API. [CheckResponse] and [ParseAPIError] make it.
type APIError struct {
	// StatusCode is the HTTP status.
	StatusCode int
	// Code is the errorCode. It is empty if the answer is not the bank's error JSON.
	Code string
	// Message is the errorMessage, made printable and cut to 256 characters.
	Message string
	// Details are the errorDetails, and those of the transferErrorDetails, in one list:
	// the first hundred.
	Details []APIErrorDetail
	// RetryAfter is the answer's Retry-After, between a second and an hour, or 0.
	RetryAfter time.Duration
}

// APIErrorDetail is one fault in a request to the bank's API.
type APIErrorDetail struct {
	// ItemID is the item of a bulk transfer that has the fault. It is empty for other
	// requests.
	ItemID string
	// Code and Message are the errorDetailsCode and the errorDetailsMessage, made
	// printable and cut to 256 characters.
	Code, Message string
}

// Error returns the status, the code, and what they mean if that is known. It contains
// none of the bank's free text.
func (e *APIError) Error() string {
	if e == nil {
		return nilError
	}
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

// Expired reports whether the bank refused the access token (401 with WG_ERR_105). A
// refresh may help.
func (e *APIError) Expired() bool {
	return e != nil && e.StatusCode == http.StatusUnauthorized && e.Code == codeExpired
}

// Temporary reports whether the same request might succeed later: the bank is under
// maintenance, limits the rate, or has an error of its own.
func (e *APIError) Temporary() bool {
	return e != nil && (e.Code == codeMaintenance || temporaryStatus(e.StatusCode))
}

func (e *APIError) wait() time.Duration {
	if e == nil {
		return 0
	}
	return e.RetryAfter
}

// cleanCode returns s if it can be an error code (RFC 6749 appendix A.7) of at most 64
// characters, or "".
func cleanCode(s string) string {
	bad := func(c rune) bool { return c < 0x20 || c > 0x7e || c == '"' || c == '\\' }
	if len(s) > 64 || strings.ContainsFunc(s, bad) {
		return ""
	}
	return s
}

// isVisible reports whether s has only visible ASCII, and spaces where they are allowed.
func isVisible(s string, spaces bool) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return (c < '!' || c > '~') && !(spaces && c == ' ') })
}

// printable makes foreign text fit for a log line: at most 256 characters, without
// control or format characters.
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

// retrySoon is the Retry-After of a 503 for which neither the bank nor the kit has a
// better one.
const retrySoon = time.Second

// unavailableError makes its cause an [ErrUnavailable]. If the cause is not an error of
// the bank, then the application's own store, sessions or lock did not answer.
type unavailableError struct {
	err        error
	retryAfter time.Duration
}

// unavailable makes an unavailableError that may be tried again soon.
func unavailable(format string, args ...any) error {
	return &unavailableError{fmt.Errorf(format, args...), retrySoon}
}

func (e *unavailableError) Error() string        { return e.err.Error() }
func (e *unavailableError) Unwrap() error        { return e.err }
func (e *unavailableError) Is(target error) bool { return target == ErrUnavailable }
func (e *unavailableError) wait() time.Duration  { return e.retryAfter }

// salvagedError is an answer to a refresh of which only the refresh token can be used.
// Losing it would end the connection, because the bank has spent its predecessor.
type salvagedError struct {
	refreshToken secret
	err          error
}

func (e *salvagedError) Error() string { return e.err.Error() }
func (e *salvagedError) Unwrap() error { return e.err }

// SalvagedRefreshToken returns the refresh token that must replace the old one after
// [Connector.RefreshSession] or [Connector.RefreshTokens] failed with err, or "" if there
// is none. The bank has spent the old one, but the rest of its answer cannot be used: it
// is incomplete, has a malformed member, or an ID token that does not verify. The old
// access token serves until it expires. A [Kit] does all of this by itself.
func SalvagedRefreshToken(err error) string {
	var e *salvagedError
	if errors.As(err, &e) {
		return e.refreshToken.reveal()
	}
	return ""
}

// scopeError is ErrInsufficientScope with what is granted and what is not.
type scopeError struct{ granted, missing []string }

func (e *scopeError) Error() string {
	return fmt.Sprintf("%s: missing %s", ErrInsufficientScope, strings.Join(e.missing, " "))
}

func (e *scopeError) Unwrap() error { return ErrInsufficientScope }

// refusal is a request that a handler does not serve for anyone.
type refusal struct {
	status int
	reason string
}

func (e *refusal) Error() string { return "ganbauth: " + e.reason }

// applicationError is an error of the application's own code or settings. A network error
// inside it does not come from the bank.
type applicationError struct{ err error }

func (e *applicationError) Error() string { return e.err.Error() }
func (e *applicationError) Unwrap() error { return e.err }

// cutError is an answer of the bank that did not arrive, or not to its end.
type cutError struct{ err error }

func (e *cutError) Error() string { return causeText(e.err) }
func (e *cutError) Unwrap() error { return e.err }

// Timeout is for [url.Error], which asks only the error that it has.
func (e *cutError) Timeout() bool { return isTimeout(e.err) }

// causeText says why an answer did not arrive. Only errors that are known to be in Go's own
// words are shown: net/http quotes an answer that it cannot read, tokens included.
func causeText(err error) string {
	last := err
	for e := err; e != nil; e = errors.Unwrap(e) {
		switch e := e.(type) {
		case *net.OpError:
			return printable(opText(e))
		case *panicError, *net.DNSError, *os.SyscallError, *tls.CertificateVerificationError, tls.RecordHeaderError:
			return printable(e.Error())
		}
		if slices.Contains(plainCauses, e) || fmt.Sprintf("%T", e) == "tls.alert" {
			return e.Error()
		}
		last = e
	}
	if isTimeout(err) {
		return "timeout"
	}
	return fmt.Sprintf("an error that may quote the answer (%T)", last)
}

// plainCauses quote nothing.
var plainCauses = []error{
	context.Canceled, context.DeadlineExceeded, os.ErrDeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed,
	http.ErrSchemeMismatch, gzip.ErrHeader, gzip.ErrChecksum,
}

// opText is the text of e. A proxy has written what some of its causes say.
func opText(e *net.OpError) string {
	s := e.Op + " " + e.Net
	if e.Addr != nil {
		s += " " + e.Addr.String()
	}
	return s + ": " + causeText(e.Err)
}

// panicError is a panic of the application's code that did not end the process.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return "ganbauth: panic: " + e.text() }

// text shows the value if it is made to be read, and else its type: of a request, for
// example, fmt would print the headers.
func (e *panicError) text() string {
	switch e.value.(type) {
	case string, error, fmt.Stringer:
		return printable(fmt.Sprint(e.value))
	}
	return fmt.Sprintf("a value of the type %T", e.value)
}

// StatusCode returns the HTTP status that answers err:
//
//   - 400 for [ErrInvalidState] and for an [*AuthorizationError]
//   - 401 for [ErrLoginRequired] and for an [*APIError] that is Expired
//   - 403 for [ErrInsufficientScope] and for an AuthorizationError access_denied
//   - 502 for [ErrTokenFormat], [ErrTokenValue], [ErrInvalidIDToken], and for any other
//     [*TokenError] or APIError
//   - 503 for [ErrUnavailable], for a TokenError or an APIError that is Temporary, for an
//     AuthorizationError server_error or temporarily_unavailable, and if there was no
//     answer, because of the network, a timeout or a context that ended
//   - 500 for any other error, for nil and for a nil pointer
//
// A request that a handler refuses, because of its method or its origin for example, has
// a status between 400 and 499.
func StatusCode(err error) int { return kindOf(err).status }

// errorClass returns err's [Event] ErrorClass, "" for nil.
func errorClass(err error) string { return kindOf(err).class }

// retryAfter returns how long to wait before trying again, or 0 if that would not help.
func retryAfter(err error) time.Duration {
	about := kindOf(err)
	if about.status < 500 {
		return 0
	}
	var e interface{ wait() time.Duration }
	switch {
	case errors.As(err, &e) && e.wait() > 0:
		return e.wait()
	case about.status == http.StatusServiceUnavailable:
		return retrySoon
	}
	return 0
}

// topic is what an error means to a user. The kit's pages have words for each. Its value
// is fit for a program.
type topic string

const (
	topicConnect     topic = "login_required"     // the user has to connect
	topicScope       topic = "insufficient_scope" // the user has to grant more
	topicNoUser      topic = "no_user"            // the user has to log in to the application
	topicDenied      topic = "access_denied"      // the user said no at the bank
	topicExpired     topic = "login_expired"      // connecting took too long
	topicState       topic = "invalid_state"      // this browser is not connecting
	topicRequest     topic = "refused"            // the request is wrong
	topicBankAway    topic = "bank_unavailable"   // the bank does not answer
	topicUnavailable topic = "unavailable"        // the store, the sessions or a lock do not answer
	topicBankError   topic = "bank_error"         // the bank's answer cannot be used
	topicSetup       topic = "misconfigured"      // the bank refuses this client
	topicInternal    topic = "internal"           // anything else
)

// kind is a row of the table of errors.
type kind struct {
	class  string // Event.ErrorClass, which documents all of them
	status int    // StatusCode; 0 where the error has its own
	topic  topic
	match  func(error) bool
}

// loginRequired is the kind of nearly every refusal.
var loginRequired = kind{"login_required", 401, topicConnect, is(ErrLoginRequired)}

// kinds is the table of errors. An error is of the first kind that matches. Whatever a
// browser, a program, a metric or a log is told about an error is looked up here.
var kinds = []kind{
	{"unavailable", 503, topicUnavailable, is(ErrUnavailable)},
	{"internal", 500, topicInternal, isA[*applicationError]}, // whatever it wraps
	{"refused", 0, topicRequest, isA[*refusal]},
	{"no_user", 401, topicNoUser, is(ErrNoUser)},
	loginRequired,
	{"insufficient_scope", 403, topicScope, is(ErrInsufficientScope)},
	{"invalid_state", 400, topicExpired, is(errAttemptExpired)},
	{"invalid_state", 400, topicState, is(ErrInvalidState)},

	// What the consent page sends back, by way of the browser (RFC 6749 section 4.1.2.1).
	{"access_denied", 403, topicDenied, consent("access_denied")},
	{"server_error", 503, topicBankAway, consent("server_error")},
	{"temporarily_unavailable", 503, topicBankAway, consent("temporarily_unavailable")},
	{"invalid_request", 400, topicBankError, consent("invalid_request")},
	{"invalid_scope", 400, topicBankError, consent("invalid_scope")},
	{"unauthorized_client", 400, topicBankError, consent("unauthorized_client")},
	{"unsupported_response_type", 400, topicBankError, consent("unsupported_response_type")},
	{"authorization_error", 400, topicBankError, isA[*AuthorizationError]},

	// Answers that cannot be used.
	{"other_subject", 502, topicBankError, is(errOtherSubject)},
	{"invalid_id_token", 502, topicBankError, is(ErrInvalidIDToken)},
	{"token_format", 502, topicBankError, is(ErrTokenFormat)},
	{"token_format", 502, topicBankError, is(ErrTokenValue)},

	// No answer of the bank.
	{"canceled", 503, topicBankAway, both(noAnswer, is(context.Canceled))},
	{"timeout", 503, topicBankAway, both(noAnswer, isTimeout)},
	{"network", 503, topicBankAway, noAnswer},

	// Refusals of the API, of the gateway and of the token endpoint (RFC 6749 section
	// 5.2).
	{codeExpired, 401, topicConnect, apiExpired},
	{codeMaintenance, 503, topicBankAway, maintenance},
	{"rate_limited", 503, topicBankAway, answered(429, 429)},
	{"rate_limited", 503, topicBankAway, is(errBusy)},
	{"status_5xx", 503, topicBankAway, answered(500, 999)},
	{"server_error", 503, topicBankAway, tokenCode("server_error")},
	{"temporarily_unavailable", 503, topicBankAway, tokenCode("temporarily_unavailable")},
	{codeExpired, 502, topicBankError, tokenCode(codeExpired)},
	{"invalid_grant", 502, topicBankError, tokenCode("invalid_grant")},
	{"invalid_request", 502, topicBankError, tokenCode("invalid_request")},
	{"invalid_scope", 502, topicBankError, tokenCode("invalid_scope")},
	{"invalid_client", 502, topicSetup, tokenCode("invalid_client")},
	{"unauthorized_client", 502, topicSetup, tokenCode("unauthorized_client")},
	{"unsupported_grant_type", 502, topicSetup, tokenCode("unsupported_grant_type")},
	{"status_4xx", 502, topicSetup, tokenStatus(401, 404, 405)}, // a wrong secret or path
	{"status_4xx", 502, topicBankError, answered(400, 499)},
	{"bank_error", 502, topicBankError, answered(1, 399)},
	{"bank_error", 502, topicBankError, isA[*APIError]},

	// No answer of anything else.
	{"canceled", 503, topicUnavailable, is(context.Canceled)},
	{"timeout", 503, topicUnavailable, isTimeout},
	{"network", 503, topicUnavailable, isNetwork},
	{"internal", 500, topicInternal, func(error) bool { return true }},
}

// operatorFault reports whether an operator has to act, because the registration at the
// bank and this client's settings do not agree. A browser cannot cause it with a forged
// code.
func (k kind) operatorFault() bool { return k.topic == topicSetup }

// kindOf looks err up in the table. An unavailableError has the class of its cause.
func kindOf(err error) kind {
	switch err {
	case nil:
		return kind{status: http.StatusInternalServerError, topic: topicInternal}
	case ErrLoginRequired: // as it is: nothing has to be looked up
		return loginRequired
	}
	var later *unavailableError
	for errors.As(err, &later) {
		err = later.err
	}
	k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.match(err) })]
	var refused *refusal
	switch {
	case later != nil:
		return k.later()
	case errors.As(err, &refused):
		k.status = refused.status
	}
	return k
}

// later returns the kind of an unavailableError whose cause is of kind k.
func (k kind) later() kind {
	k.status = http.StatusServiceUnavailable
	switch k.topic {
	case topicBankError, topicConnect:
		k.topic = topicBankAway
	case topicInternal:
		k.class, k.topic = "unavailable", topicUnavailable
	}
	return k
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

// pointer is an error that is a pointer, as all types here are.
type pointer interface {
	error
	comparable
}

// find returns the T in err's chain. A nil pointer is none.
func find[T pointer](err error) (e T, ok bool) {
	var none T
	ok = errors.As(err, &e) && e != none
	return e, ok
}

func isA[T pointer](err error) bool {
	_, ok := find[T](err)
	return ok
}

func both(a, b func(error) bool) func(error) bool {
	return func(err error) bool { return a(err) && b(err) }
}

// consent matches an AuthorizationError with that code.
func consent(code string) func(error) bool {
	return func(err error) bool {
		e, ok := find[*AuthorizationError](err)
		return ok && e.Code == code
	}
}

// tokenCode matches a refusal of the token endpoint with that code.
func tokenCode(code string) func(error) bool {
	return func(err error) bool {
		e, ok := find[*TokenError](err)
		return ok && e.Code == code
	}
}

// tokenStatus matches a refusal of the token endpoint with one of these statuses.
func tokenStatus(statuses ...int) func(error) bool {
	return func(err error) bool {
		e, ok := find[*TokenError](err)
		return ok && slices.Contains(statuses, e.StatusCode)
	}
}

// answered matches an answer of the token endpoint or of the API with a status from least
// to most.
func answered(least, most int) func(error) bool {
	return func(err error) bool {
		status, _ := answer(err)
		return least <= status && status <= most
	}
}

func maintenance(err error) bool {
	_, code := answer(err)
	return code == codeMaintenance
}

// answer returns the status and the code that the bank answered, or 0 and "".
func answer(err error) (status int, code string) {
	if e, ok := find[*TokenError](err); ok {
		return e.StatusCode, e.Code
	}
	if e, ok := find[*APIError](err); ok {
		return e.StatusCode, e.Code
	}
	return 0, ""
}

func apiExpired(err error) bool {
	var e *APIError
	return errors.As(err, &e) && e.Expired()
}

// noAnswer reports whether the bank did not answer a request, or not to the end: one to
// the token endpoint, or one that an [http.Client] sent.
func noAnswer(err error) bool {
	if e, ok := find[*TokenError](err); ok {
		return e.StatusCode == 0
	}
	var sent *url.Error
	return isA[*cutError](err) || errors.As(err, &sent) && sent.Op != "parse"
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) && e.Timeout()
}

// isNetwork reports whether a connection failed or was cut. A url.Error is a net.Error by
// its methods, whatever it wraps, so it is opened first.
func isNetwork(err error) bool {
	var (
		parse *url.Error
		e     net.Error
	)
	if errors.As(err, &parse) {
		err = parse.Err
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &e)
}

// resumableError ends a callback that may be delivered again: its code has not been sent,
// or what came of it is not known yet.
type resumableError struct{ err error }

func (e *resumableError) Error() string { return e.err.Error() }
func (e *resumableError) Unwrap() error { return e.err }

// errMovedOn is the error of a request whose token is of the wrong connection.
var errMovedOn error = &applicationError{errors.New("ganbauth: Options.Connection names another connection now than at " +
	"RequireToken: where it reads path values, RequireToken must stand around the routes and not around the mux")}

// errNotMade is the error of a nil or zero Kit.
var errNotMade error = &applicationError{errors.New("ganbauth: this Kit was not made by New")}

// errNoConnector is the error of a nil or zero Connector.
var errNoConnector error = &applicationError{errors.New("ganbauth: this Connector was not made by NewConnector")}

// What a job cannot name.
var (
	errNoKey          error = &applicationError{errors.New("ganbauth: the key is empty")}
	errTwoConnections error = &applicationError{errors.New("ganbauth: more than one connection is named")}
)
