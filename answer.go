package ganbauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// setHeaders keeps the kit's answer out of caches and Referer headers. It deletes what a
// handler may have set for the answer that it meant to give. Content-Encoding stays:
// middleware that compresses sets it before.
func setHeaders(w http.ResponseWriter) {
	h := w.Header()
	for _, name := range []string{"Content-Length", "Etag", "Last-Modified"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

// redirect sends the browser to target, with HTMX's own header if htmx is set. It does
// not use http.Redirect, which rewrites paths and writes a body that contains the URL.
func redirect(w http.ResponseWriter, target string, htmx bool) {
	if htmx {
		w.Header().Set("HX-Redirect", target)
		return
	}
	w.Header().Set("Location", target)
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
	case status == http.StatusUnauthorized: // in canonical form, which spares an allocation
		h.Set("Www-Authenticate", `Bearer realm="bank"`)
	case errors.As(err, &lacks):
		h.Set("Www-Authenticate",
			fmt.Sprintf(`Bearer realm="bank", error="insufficient_scope", scope=%q`, strings.Join(lacks.missing, " ")))
	}
	if wait := retryAfter(err); wait > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
}

// problem is the answer to a program (RFC 9457). [Kit.Refuse] documents its members.
type problem struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail"`
	Code     string `json:"code"`
	LoginURL string `json:"login_url,omitempty"`
}

// writeProblem tells a program what page would tell a person. loginURL may be empty.
func writeProblem(w http.ResponseWriter, page *ErrorPage, loginURL string) {
	w.Header().Set("Content-Type", "application/problem+json; charset=utf-8")
	w.Header().Set("Content-Language", page.Language)
	w.WriteHeader(page.Status)
	_ = json.NewEncoder(w).Encode(problem{
		Type:     "about:blank",
		Title:    http.StatusText(page.Status),
		Status:   page.Status,
		Detail:   page.Text,
		Code:     page.Code,
		LoginURL: loginURL,
	})
}
