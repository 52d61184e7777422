package ganbauth

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits on what the bank sends. RFC 6749 asks clients not to assume a size.
const (
	maxReceived = 4 << 10 // bytes of a code, an access token, a refresh token or a scope
	maxBody     = 1 << 20 // bytes of any answer, after decompression
	maxDetails  = 100     // of an error, and of an error's list

	maxLifetime     = 365 * 24 * time.Hour // of an access token
	defaultLifetime = time.Hour            // where the bank does not say
)

// tokenError reads a refusal of the token endpoint.
func tokenError(resp *http.Response) *TokenError {
	e := &TokenError{StatusCode: resp.StatusCode, RetryAfter: parseRetryAfter(resp.Header)}
	e.read(parseErrorBody(peekBody(resp)))
	return e
}

// read takes the code and the texts from an error of RFC 6749, or else of the gateway.
func (e *TokenError) read(o object) {
	e.Code = errorCode(o, "error")
	e.Description = errorText(o, "error_description")
	e.URI = errorText(o, "error_uri")
	if e.Code == "" {
		e.Code = errorCode(o, "errorCode")
		e.Description = errorText(o, "errorMessage")
	}
}

// readBody reads a body. With an error it also returns what it has read. A body of more
// than maxBody bytes is [ErrTokenValue].
func readBody(resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return body, &cutError{err}
	case len(body) > maxBody:
		return body, fmt.Errorf("%w: the answer is longer than %d bytes", ErrTokenValue, maxBody)
	}
	return body, nil
}

// tokenResponse is an answer of 2xx, as the token endpoint sent it. The request was sent
// at the time asked.
type tokenResponse struct {
	status      int
	contentType string
	body        []byte
	asked       time.Time
}

// tokenAnswer is a tokenResponse that can be used. Its ID token is not verified yet.
type tokenAnswer struct {
	token   *Token
	idToken string
}

// assumed has the values of members that a token response may leave out.
type assumed struct {
	scope, refreshToken string
}

// salvage adds the next refresh token to err, which says why the answer to a refresh
// cannot be used. It reads the answer leniently, so that a fault elsewhere does not lose
// the refresh token.
func (r tokenResponse) salvage(err error) error {
	o, twice := readLeniently(r.body)
	next, _, _ := member[string](o, "refresh_token")
	if next == "" || slices.Contains(twice, "refresh_token") || checkMember("refresh_token", next, maxReceived) != nil {
		return err
	}
	return &salvagedError{newSecret(next), err}
}

// salvage adds the next refresh token to err, which says why the answer to a refresh
// cannot be used. If the answer does not replace the refresh token that was sent, it
// returns err.
func (a tokenAnswer) salvage(sent string, err error) error {
	if a.token.RefreshToken == sent {
		return err
	}
	return &salvagedError{newSecret(a.token.RefreshToken), err}
}

// parseToken reads a token response strictly (RFC 6749 section 5.1). What it accepts can
// stand in a header and in a store.
func parseToken(r tokenResponse, a assumed) (tokenAnswer, error) {
	// A missing type is accepted. A page of HTML or text is not.
	if mt, _, _ := mime.ParseMediaType(r.contentType); r.contentType != "" && mt != "application/json" {
		return tokenAnswer{}, fmt.Errorf("%w: the answer is not application/json", ErrTokenValue)
	}
	o, err := parseObject(r.body)
	if err != nil {
		return tokenAnswer{}, fmt.Errorf("%w: %w", ErrTokenValue, err)
	}
	for _, name := range []string{"error", "errorCode"} {
		if raw, ok := o[name]; ok && string(raw) != "null" {
			e := &TokenError{StatusCode: r.status}
			e.read(o)
			return tokenAnswer{}, e
		}
	}
	issued := r.asked.UTC().Truncate(time.Second)
	t := &Token{TokenType: "Bearer", IssuedAt: issued, ExpiresAt: issued.Add(lifetime(o))}
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
			return tokenAnswer{}, fmt.Errorf("%w: %w", ErrTokenFormat, err)
		}
		if err := checkMember(m.name, s, m.limit); err != nil {
			return tokenAnswer{}, err
		}
		*m.value = s
	}
	switch {
	case t.AccessToken == "":
		return tokenAnswer{}, errNoAccessToken
	case !strings.EqualFold(tokenType, "Bearer"):
		return tokenAnswer{}, fmt.Errorf("%w: token_type is not Bearer", ErrTokenFormat)
	}
	if t.RefreshToken == "" {
		t.RefreshToken = a.refreshToken
	}
	if _, ok, _ := member[string](o, "scope"); !ok { // an empty scope grants nothing
		t.Scope = a.scope
	}
	t.Scope = strings.Join(strings.Fields(t.Scope), " ")
	return tokenAnswer{t, idToken}, nil
}

var errNoAccessToken = fmt.Errorf("%w: access_token is missing", ErrTokenFormat)

// checkMember refuses a value that could not stand in a header, which would fail every
// request with the token, or that a store would take for a sealed token.
func checkMember(name, value string, limit int) error {
	switch {
	case name == "access_token" && strings.HasPrefix(value, sealedPrefix):
		return fmt.Errorf("%w: access_token begins with %q", ErrTokenFormat, sealedPrefix)
	case len(value) > limit:
		return fmt.Errorf("%w: %s is longer than %d bytes", ErrTokenFormat, name, limit)
	case !isVisible(value, name == "scope" || name == "subject"):
		return fmt.Errorf("%w: %s has a character that is not visible ASCII", ErrTokenFormat, name)
	}
	return nil
}

// lifetime reads expires_in: a number of seconds, or a string of one, because the bank's
// SDKs disagree. A value that is missing, unusable or not positive counts as an hour,
// never as no expiry. More than a year counts as a year.
func lifetime(o object) time.Duration {
	number, _, err := member[json.Number](o, "expires_in") // which reads a string, too
	seconds, _ := number.Float64()                         // infinite if it is too large
	if err != nil || seconds < 1 {
		return defaultLifetime
	}
	return time.Duration(min(seconds, maxLifetime.Seconds())) * time.Second
}

// CheckResponse returns nil for a status of 2xx and an [*APIError] for any other. The
// body stays readable from its beginning. At most 1 MiB of it is looked at, after
// decompression: if the request has set Accept-Encoding, net/http leaves gzip as it is.
func CheckResponse(resp *http.Response) error {
	switch {
	case resp == nil:
		return errors.New("ganbauth: CheckResponse: no response")
	case isSuccess(resp.StatusCode):
		return nil
	}
	body := peekBody(resp)
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		body = inflate(body)
	}
	return ParseAPIError(resp.StatusCode, resp.Header, body)
}

// inflate returns the first maxBody bytes of what was compressed, as far as it can be read.
func inflate(compressed []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(r, maxBody))
	return body
}

// ParseAPIError is [CheckResponse] for a response that has been read, by a generated
// client for example. The header is for Retry-After and may be nil.
func ParseAPIError(status int, header http.Header, body []byte) error {
	if isSuccess(status) {
		return nil
	}
	e := &APIError{StatusCode: status, RetryAfter: parseRetryAfter(header)}
	o := parseErrorBody(body)
	e.Code = errorCode(o, "errorCode")
	e.Message = errorText(o, "errorMessage")
	e.Details = errorDetails(nil, o["errorDetails"], "")
	for _, item := range firstItems(o["transferErrorDetails"]) {
		i, _ := parseObject(item)
		e.Details = errorDetails(e.Details, i["errorDetails"], errorText(i, "itemId"))
	}
	return e
}

func isSuccess(status int) bool { return status >= 200 && status < 300 }

// errorDetails adds a list of errorDetails, up to maxDetails in all. What does not fit its
// form is left out.
func errorDetails(details []APIErrorDetail, raw json.RawMessage, itemID string) []APIErrorDetail {
	for _, item := range firstItems(raw) {
		if d, err := parseObject(item); err == nil && len(details) < maxDetails {
			details = append(details, APIErrorDetail{
				ItemID:  itemID,
				Code:    errorText(d, "errorDetailsCode"),
				Message: errorText(d, "errorDetailsMessage"),
			})
		}
	}
	return details
}

// firstItems returns the first maxDetails of a JSON array.
func firstItems(raw json.RawMessage) (items []json.RawMessage) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, _ := dec.Token(); t != json.Delim('[') { // nil if it fails
		return nil
	}
	for dec.More() && len(items) < maxDetails {
		var item json.RawMessage
		if dec.Decode(&item) != nil {
			return items
		}
		items = append(items, item)
	}
	return items
}

// parseErrorBody reads the JSON of an error, as far as that can be read: the code matters
// and the text does not. The gateway may use another charset than it says, Shift_JIS for
// example, where a backslash can be half a letter. What is not UTF-8 is replaced, and a
// name that occurs twice is left out.
func parseErrorBody(body []byte) object {
	o, twice := readLeniently(body[:min(len(body), maxBody)])
	for _, name := range twice {
		delete(o, name)
	}
	return o
}

// readLeniently returns the members of a JSON object before its first fault, and the names
// that occur more than once among them.
func readLeniently(body []byte) (o object, twice []string) {
	body = bytes.ToValidUTF8(bytes.TrimPrefix(body, []byte("\uFEFF")), []byte("\uFFFD"))
	o, _ = readObject(body, func(name string) bool {
		twice = append(twice, name)
		return true
	})
	return o, twice
}

// peekBody reads the first maxBody bytes of a body and puts them back, with the error
// that reading ended with.
func peekBody(resp *http.Response) []byte {
	if resp.Body == nil {
		return nil
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
	return head
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// errorCode returns o[name] if it can be an error code, or "".
func errorCode(o object, name string) string {
	s, _, _ := member[string](o, name)
	return cleanCode(s)
}

func errorText(o object, name string) string {
	s, _, _ := member[string](o, name)
	return printable(s)
}

// parseRetryAfter reads a Retry-After of 1 second to an hour. Anything else, a date
// included, is 0.
func parseRetryAfter(h http.Header) time.Duration {
	s, _ := strconv.Atoi(h.Get("Retry-After")) // 0 of what is no number
	if s < 1 || s > 3600 {
		return 0
	}
	return time.Duration(s) * time.Second
}
