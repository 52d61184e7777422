package ganbauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// setHeaders keeps the kit's answer out of caches and Referer headers. It deletes what a
// handler may have set for the answer that it meant to give: a page with the disposition of
// a file would be downloaded. Content-Encoding stays: middleware that compresses sets it
// before.
func setHeaders(w http.ResponseWriter) {
	h := w.Header()
	for _, name := range [...]string{
		"Content-Length", "Content-Disposition", "Content-Range", "Etag", "Last-Modified",
		"Expires", "Pragma", "Age", "Cdn-Cache-Control", "Surrogate-Control",
	} {
		delete(h, name)
	}
	set(h, "Cache-Control", "no-store", "Referrer-Policy", "no-referrer", "X-Content-Type-Options", "nosniff")
}

// set sets headers, given as names in canonical form and values in turn. One slice has
// all the values, where Header.Set makes one for each.
func set(h http.Header, pairs ...string) {
	values := make([]string, len(pairs)/2)
	for i := range values {
		values[i] = pairs[2*i+1]
		h[pairs[2*i]] = values[i : i+1 : i+1]
	}
}

// redirect sends the browser to target, with HTMX's own header if htmx is set. It does
// not use http.Redirect, which rewrites paths and writes a body that contains the URL.
func redirect(w http.ResponseWriter, target string, htmx bool) {
	if htmx {
		set(w.Header(), "Hx-Redirect", target)
		return
	}
	set(w.Header(), "Location", target)
	w.WriteHeader(http.StatusSeeOther)
}

// reload makes the browser request path from this site after a pause. Meanwhile it shows
// a page with a link to path.
func reload(w http.ResponseWriter, path string, pause time.Duration, japanese bool) {
	w.Header().Set("Refresh", fmt.Sprintf("%d; url=%s", int(pause.Seconds()), path))
	writeOwnPage(w, reloadPage(path, japanese))
}

// setErrorHeaders sets the headers that the answer to err needs, in any format.
func setErrorHeaders(w http.ResponseWriter, err error) {
	h := w.Header()
	status := StatusCode(err)
	var lacks *scopeError
	switch {
	case status == http.StatusUnauthorized:
		set(h, "Www-Authenticate", `Bearer realm="bank"`)
	case errors.As(err, &lacks):
		set(h, "Www-Authenticate",
			fmt.Sprintf(`Bearer realm="bank", error="insufficient_scope", scope=%q`, strings.Join(lacks.missing, " ")))
	}
	if wait := retryAfter(err); wait > 0 {
		set(h, "Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
}

// problem is the answer to a program (RFC 9457), but for login_url. [Kit.Refuse] documents
// its members.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
}

// problems has the JSON of each problem that has been met, a []byte. There are as many as
// there are messages.
var problems sync.Map

// json returns p as JSON. Nobody may change it.
func (p problem) json() []byte {
	if ready, ok := problems.Load(p); ok {
		return ready.([]byte)
	}
	made, _ := json.Marshal(p) // never fails
	problems.Store(p, made)
	return made
}

// writeProblem tells a program what page would tell a person. loginURL may be empty.
func writeProblem(w http.ResponseWriter, page *ErrorPage, loginURL string) {
	body := problem{"about:blank", http.StatusText(page.Status), page.Status, page.Text, page.Code}.json()
	if loginURL != "" {
		// A loginURL is visible ASCII without quotes and backslashes.
		body = slices.Concat(body[:len(body)-len("}")], []byte(`,"login_url":"`+loginURL+`"}`))
	}
	set(w.Header(), "Content-Type", "application/problem+json; charset=utf-8", "Content-Language", page.Language)
	w.WriteHeader(page.Status)
	_, _ = w.Write(body)
}
