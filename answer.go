package ganbauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// setHeaders keeps an answer of the kit out of caches, frames and Referer headers.
func setHeaders(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", pagePolicy)
}

// redirect sends a browser to target. http.Redirect is not used: it rewrites paths, and writes a body with the URL.
func redirect(w http.ResponseWriter, r *http.Request, target string) {
	if isHTMX(r) {
		w.Header().Set("HX-Redirect", target)
		return
	}
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusSeeOther)
}

// reload has the browser request path once more, from this site.
func reload(w http.ResponseWriter, path string) {
	w.Header().Set("Refresh", "0; url="+path)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(http.StatusOK)
}

// refuse answers err: by the application's hook, as a page for a navigation, else as problem details.
// A page links to retry.
func (k *Kit) refuse(w http.ResponseWriter, r *http.Request, err error, retry string) {
	status := StatusCode(err)
	var lacks *scopeError
	switch {
	case status == http.StatusUnauthorized: // the header's name is spelled as net/http keeps it, which spares an allocation
		w.Header().Set("Www-Authenticate", `Bearer realm="bank"`)
	case status == http.StatusForbidden && errors.As(err, &lacks):
		w.Header().Set("Www-Authenticate",
			fmt.Sprintf(`Bearer realm="bank", error="insufficient_scope", scope=%q`, strings.Join(lacks.missing, " ")))
	case status >= 500:
		setRetryAfter(w, err)
	}
	if k != nil && k.onError != nil {
		k.onError(w, r, err)
		return
	}
	// An event has told of the bank's trouble already, once and not for each request.
	if k.usable() == nil && status >= 500 && !errors.As(err, new(*TokenError)) {
		k.log.WarnContext(r.Context(), "ganbauth: refused", "status", status, "error", err)
	}
	text := messageFor(err, status)
	if isNavigation(r) || r.Method == http.MethodPost && strings.Contains(r.Header.Get("Accept"), "text/html") {
		text.write(w, status, retry, prefersJapanese(r))
		return
	}
	w.Header().Set("Content-Type", "application/problem+json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem{"about:blank", http.StatusText(status), status, text.en.Text})
}

// problem is RFC 9457's.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// setRetryAfter says when to try again, where that helps.
func setRetryAfter(w http.ResponseWriter, err error) {
	if wait := retryAfter(err); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
}
