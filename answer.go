package ganbauth

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setHeaders keeps the kit's answer out of caches and Referer headers. It deletes what a
// handler may have set for the answer that it meant to give: a page with the disposition of
// a file would be downloaded. Content-Encoding stays: middleware that compresses sets it
// before.
func setHeaders(w http.ResponseWriter) {
	h := w.Header()
	maps.DeleteFunc(h, func(name string, _ []string) bool { return slices.Contains(handlersHeaders, name) })
	set(h, "Cache-Control", "no-store", "Referrer-Policy", "no-referrer", "X-Content-Type-Options", "nosniff")
}

// handlersHeaders describe the answer that a handler meant to give.
var handlersHeaders = []string{
	"Content-Length", "Content-Disposition", "Content-Range", "Etag", "Last-Modified",
	"Expires", "Pragma", "Age", "Cdn-Cache-Control", "Surrogate-Control",
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
	if kindOf(err).status == http.StatusUnauthorized {
		set(h, "Www-Authenticate", `Bearer realm="bank"`)
	} else if lacks, ok := find[*scopeError](err); ok {
		set(h, "Www-Authenticate",
			fmt.Sprintf(`Bearer realm="bank", error="insufficient_scope", scope=%q`, strings.Join(lacks.missing, " ")))
	}
	if wait := retryAfter(err); wait > 0 {
		set(h, "Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
}

// writeProblem tells a program what page would tell a person, as problem details (RFC 9457).
// [Kit.Refuse] documents the members. Nothing in them needs to be escaped: the words are the
// kit's own, and a loginURL, which may be empty, is visible ASCII without quotes and
// backslashes.
func writeProblem(w http.ResponseWriter, page ErrorPage, loginURL string) {
	set(w.Header(), "Content-Type", "application/problem+json; charset=utf-8", "Content-Language", page.Language)
	w.WriteHeader(page.Status)
	login := ""
	if loginURL != "" {
		login = `","login_url":"`
	}
	_, _ = w.Write([]byte(`{"type":"about:blank","title":"` + http.StatusText(page.Status) +
		`","status":` + strconv.Itoa(page.Status) + `,"detail":"` + page.Text + `","code":"` + page.Code + login + loginURL + `"}`))
}
