package ganbtest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Fault is one way for the bank to fail. The zero value of each field leaves that part as
// it is. So Fault{} changes nothing: in a queue it lets requests succeed before others
// fail. A Fault must not change after it has been passed on.
type Fault struct {
	// For limits the fault to the requests for which it returns true: those of one
	// Subject, one GrantType, or a share of all. It may be called concurrently. Nil
	// stands for every request.
	For func(Request) bool
	// Delay passes before the request is processed, or, with Processed, before it is
	// answered. If the client leaves in that time, nothing else happens to the request.
	Delay time.Duration
	// Status, Header and Body replace the answer. The request is not processed unless
	// Processed is set. Without a Status it is: Header and Body then replace those headers
	// of the bank's answer, and its body.
	Status int
	Header http.Header
	Body   string
	// Cut closes the connection instead of answering: before the request is processed,
	// or, with Processed, after.
	Cut bool
	// Processed has the bank do its work first. What it would have answered is lost with
	// Cut, with a Status, with a Body, and with a Delay that the client does not wait for.
	Processed bool
	// Change edits the members of a token response before it is sent.
	Change func(response map[string]any)
}

// Faults to rehearse.
var (
	// Maintenance is the gateway's 503 with WG_ERR_300 and Retry-After.
	Maintenance = Fault{
		Status: http.StatusServiceUnavailable,
		Header: http.Header{"Content-Type": {"application/json;charset=UTF-8"}, "Retry-After": {"120"}},
		Body:   `{"errorCode":"WG_ERR_300","errorMessage":"The bank is under maintenance."}`,
	}
	// RateLimited is 429 with Retry-After.
	RateLimited = Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}}
	// ServerError is 500 with an HTML page.
	ServerError = Fault{
		Status: http.StatusInternalServerError,
		Header: http.Header{"Content-Type": {"text/html"}},
		Body:   "<html><h1>Internal Server Error</h1></html>",
	}
	// InvalidGrant is the token endpoint's answer to a dead code or refresh token.
	InvalidGrant = OAuthError("invalid_grant")
	// InvalidClient is the token endpoint's answer to a wrong secret.
	InvalidClient = Fault{
		Status: http.StatusUnauthorized,
		Header: http.Header{"Content-Type": {"application/json"}, "Www-Authenticate": {"Basic"}},
		Body:   `{"error":"invalid_client"}`,
	}
	// ConnectionCut closes the connection before the request is processed.
	ConnectionCut = Fault{Cut: true}
	// AnswerLost closes the connection after the request was processed: a refresh token
	// is spent, and nobody has the new one.
	AnswerLost = Fault{Cut: true, Processed: true}
	// NotJSON is 200 with an HTML page. The request is not processed.
	NotJSON = Fault{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/html"}}, Body: "<html></html>"}
	// Truncated is 200 with half a token response: a refresh token is spent for it.
	Truncated = Fault{
		Status: http.StatusOK, Processed: true,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   `{"access_token":"half`,
	}
	// WrongIDToken has the token endpoint send an ID token with a wrong signature, where
	// it sends one.
	WrongIDToken = Fault{Change: func(response map[string]any) {
		if t, ok := response["id_token"].(string); ok {
			response["id_token"] = t[:len(t)-8] + "AAAAAAAA"
		}
	}}
)

// OAuthError is the token endpoint's 400 with that error code (RFC 6749 section 5.2).
func OAuthError(code string) Fault {
	return Fault{
		Status: http.StatusBadRequest,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   fmt.Sprintf(`{"error":%q}`, code),
	}
}

// Redirect is 307 to another place. The request is not processed.
func Redirect(location string) Fault {
	return Fault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {location}}}
}

// Slow is an answer that takes its time: the request is processed after d, if the client
// is still there.
func Slow(d time.Duration) Fault { return Fault{Delay: d} }

var errConnectionCut = errors.New("ganbtest: the connection was cut")

// Fail makes the next times requests to the endpoint fail in that way, of those that
// Fault.For is for. Several calls queue up. With times < 0 the fault stays. The function
// that is returned takes the fault back, and does nothing if it is over; Heal takes all
// back.
func (s *Server) Fail(e Endpoint, f Fault, times int) (end func()) {
	q := &queuedFault{f, times}
	if times == 0 {
		return func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[e] = append(s.faults[e], q)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(e, q)
	}
}

// Heal drops all faults that are still to come.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

type queuedFault struct {
	Fault
	left int
}

// nextFault takes the first fault that is for the request. Fault.For is called without
// the lock, so that it may ask the Server.
func (s *Server) nextFault(r Request) Fault {
	s.mu.Lock()
	queue := slices.Clone(s.faults[r.Endpoint])
	s.mu.Unlock()
	for _, q := range queue {
		if (q.For == nil || q.For(r)) && s.take(r.Endpoint, q) {
			return q.Fault
		}
	}
	return Fault{}
}

// take uses the fault once, if it is still in the queue.
func (s *Server) take(e Endpoint, q *queuedFault) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.faults[e], q) {
		return false
	}
	if q.left--; q.left == 0 {
		s.drop(e, q)
	}
	return true
}

func (s *Server) drop(e Endpoint, q *queuedFault) {
	s.faults[e] = slices.DeleteFunc(s.faults[e], func(other *queuedFault) bool { return other == q })
}
