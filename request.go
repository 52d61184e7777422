package ganbauth

import (
	"cmp"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// requestKind is what a request appears to be, judged by its headers. It decides how the
// kit answers: only a person in front of a browser window can be sent to the bank. It is
// no protection, because a client can send any header.
type requestKind int

const (
	// program is a client that does not claim to be a browser: curl, a health check, a
	// service.
	program requestKind = iota
	// navigation is a GET that loads a page into a browser's window or tab.
	navigation
	// formPost is a POST that loads a page into a browser's window or tab.
	formPost
	// htmxRequest is sent by HTMX, which follows the header HX-Redirect.
	htmxRequest
	// subrequest is sent by a page for something other than itself: fetch,
	// XMLHttpRequest, EventSource, a WebSocket, an image, a download.
	subrequest
	// embedded loads a page into a frame, an object or an embed element.
	embedded
	// prefetch is sent before the user asks for the page.
	prefetch
)

// kindOfRequest judges r by its method and headers. No other function does. Libraries
// that announce themselves come first, then Sec-Fetch-*, which scripts cannot set, then
// Accept. testdata/headers.json lists what clients really send.
func kindOfRequest(r *http.Request) requestKind {
	h := r.Header
	kind := kindByHeaders(h)
	switch {
	case isPrefetch(h):
		return prefetch
	case first(h, "Hx-Request") == "true" && first(h, "Hx-History-Restore-Request") != "true":
		// HTMX ignores HX-Redirect when it restores a page of its history from the
		// server.
		return htmxRequest
	case first(h, "X-Turbo-Request-Id") != "":
		// Turbo fetches the pages that the user navigates to. If the answer to a link is
		// not HTML, Turbo lets the browser load the link. If the answer to a form is not
		// HTML, it shows nothing.
		if r.Method == http.MethodPost {
			return formPost
		}
		return subrequest
	case kind != navigation || r.Method == http.MethodGet:
		return kind
	case r.Method == http.MethodPost:
		return formPost
	}
	return program // browsers navigate by GET and POST only
}

// kindByHeaders judges a request by its headers alone, as if its method were GET.
func kindByHeaders(h http.Header) requestKind {
	mode, dest := first(h, "Sec-Fetch-Mode"), first(h, "Sec-Fetch-Dest")
	switch {
	case first(h, "Upgrade") != "":
		return subrequest
	case mode == "" && dest == "":
		return kindWithoutMetadata(h)
	case dest == "document" && (mode == "navigate" || mode == ""):
		return navigation
	case mode == "navigate" && (dest == "" || dest == "empty"):
		// A service worker passed a navigation on, or the browser is too old to send
		// dest. A download looks the same but does not ask for HTML.
		if acceptsHTML(h) {
			return navigation
		}
		return subrequest
	case mode == "same-origin" && first(h, "Upgrade-Insecure-Requests") == "1":
		// A service worker in Firefox passed a navigation on. A fetch by a script does
		// not send Upgrade-Insecure-Requests.
		return navigation
	case mode == "navigate":
		return embedded
	}
	return subrequest
}

// kindWithoutMetadata judges a request without Sec-Fetch-*, from a browser older than
// 2023 or from a program. Android's WebView sends the name of its application as
// X-Requested-With in every request, so only the exact value XMLHttpRequest marks a
// script.
func kindWithoutMetadata(h http.Header) requestKind {
	switch {
	case first(h, "X-Requested-With") == "XMLHttpRequest":
		return subrequest
	case acceptsHTML(h):
		return navigation
	}
	return program
}

// isPrefetch knows the headers of browsers, of Turbo (X-Sec-Purpose) and of HTMX's
// preload extension.
func isPrefetch(h http.Header) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Sec-Purpose", "X-Moz"} {
		v := strings.ToLower(first(h, name))
		if v == "" {
			continue
		}
		if strings.Contains(v, "prefetch") || strings.Contains(v, "preview") || strings.Contains(v, "prerender") {
			return true
		}
	}
	return first(h, "Hx-Preloaded") == "true"
}

// first is h.Get(name) for a name in canonical form, which need not be made canonical.
func first(h http.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// acceptsHTML reports whether Accept names HTML but not JSON. No browser asks for JSON
// when it loads a page.
func acceptsHTML(h http.Header) bool {
	html, json := false, false
	eachWeighted(h["Accept"], func(media string, q float64) {
		switch {
		case q == 0:
		case media == "text/html", media == "application/xhtml+xml":
			html = true
		case media == "application/json", strings.HasSuffix(media, "+json"):
			json = true
		}
	})
	return html && !json
}

// prefersJapanese chooses between the kit's two languages by Accept-Language (RFC 9110
// section 12.5.4). Of equals the first one wins. English is the default.
func prefersJapanese(h http.Header) bool {
	const unnamed = -1
	ja, en, others := float64(unnamed), float64(unnamed), float64(0)
	jaFirst := false
	eachWeighted(h["Accept-Language"], func(tag string, q float64) {
		lang, _, _ := strings.Cut(strings.ReplaceAll(tag, "_", "-"), "-")
		switch lang {
		case "ja":
			jaFirst = jaFirst || en == unnamed
			ja = max(ja, q)
		case "en":
			en = max(en, q)
		case "*":
			others = q
		}
	})
	if ja == unnamed {
		ja = others
	}
	if en == unnamed {
		en = others
	}
	return ja > en || ja == en && ja > 0 && jaFirst
}

// maxWeighted is how much eachWeighted reads of a line. What clients really send is shorter.
const maxWeighted = 4 << 10

// eachWeighted calls each for every member of a header such as Accept, in lower case,
// with its weight (RFC 9110 section 12.4.2). A weight that cannot be read is 0.
func eachWeighted(lines []string, each func(value string, q float64)) {
	for _, line := range lines {
		for member := range strings.SplitSeq(line[:min(len(line), maxWeighted)], ",") {
			value, params, _ := strings.Cut(strings.ToLower(member), ";")
			q := 1.0
			for param := range strings.SplitSeq(params, ";") {
				name, weight, _ := strings.Cut(param, "=")
				if strings.TrimSpace(name) != "q" {
					continue
				}
				var err error
				if q, err = strconv.ParseFloat(strings.TrimSpace(weight), 64); err != nil || !(q >= 0 && q <= 1) {
					q = 0
				}
			}
			each(strings.TrimSpace(value), q)
		}
	}
}

// checkNavigation refuses to begin or finish a login where no user would see it.
func checkNavigation(kind requestKind) error {
	switch kind {
	case prefetch:
		return &refusal{http.StatusForbidden, "a prefetch does not log in"}
	case embedded, subrequest:
		return &refusal{http.StatusForbidden, "a login must be a top-level navigation"}
	}
	return nil
}

// checkOrigin refuses what another origin sends. RedirectURI's is this site's, whatever Host
// a proxy sets. For browsers without Sec-Fetch-Site, CrossOriginProtection does not compare
// the scheme.
func (k *Kit) checkOrigin(r *http.Request) error {
	refused := &refusal{http.StatusForbidden, "the request comes from another origin"}
	if origin, err := url.Parse(first(r.Header, "Origin")); err == nil &&
		origin.Scheme == k.redirect.Scheme && hostPort(origin) == hostPort(k.redirect) {
		return nil
	}
	if new(http.CrossOriginProtection).Check(r) != nil {
		return refused
	}
	if k.redirect.Scheme == "https" && first(r.Header, "Sec-Fetch-Site") == "" && strings.HasPrefix(first(r.Header, "Origin"), "http:") {
		return refused
	}
	return nil
}

// strictSession reports whether the session's cookie stays behind when another site leads
// here.
func (k *Kit) strictSession() bool {
	return k.sessions != nil && k.sessions.Cookie.SameSite == http.SameSiteStrictMode
}

// cookieStayedBehind reports whether r lacks a Strict session cookie that the next
// request from this site may bring. Only the missing cookie tells: Sec-Fetch-Site is
// "none" or "same-origin" for arrivals from other sites that went through a redirect, the
// back button or a service worker.
//
// The kit's own reload says "same-origin", and is not repeated. With another answer the
// mark of a reload is part of an address that the user has copied or gone back to.
func (k *Kit) cookieStayedBehind(r *http.Request) bool {
	if !k.strictSession() || k.sendsSession(r) {
		return false
	}
	reloads, site := k.marksOf(r).reloads, first(r.Header, "Sec-Fetch-Site")
	return reloads == 0 || reloads < maxReloads && site != "" && site != "same-origin"
}

// sessionIsGone reports whether r has the cookie of a session that is not in the store.
// Another tab's login may have renewed it, and the new cookie is on its way.
func (k *Kit) sessionIsGone(r *http.Request) bool {
	if k.sessions == nil || !k.sendsSession(r) {
		return false
	}
	s, err := k.session(r)
	return err == nil && s.Token(s.ctx) == ""
}

func (k *Kit) sendsSession(r *http.Request) bool {
	_, err := r.Cookie(k.sessions.Cookie.Name)
	return err == nil
}

// sentBy returns what led the browser here, in the words of Sec-Fetch-Site: "same-origin"
// for a page of this site, "none" for the user, or another value for another site. After
// the kit's own reload, that is what led to the first request. Without the header, a
// Referer of this site counts as "same-origin", and the result is "" if there is none.
func (k *Kit) sentBy(r *http.Request) string {
	site := first(r.Header, "Sec-Fetch-Site")
	switch {
	case k.marksOf(r).foreign:
		return "cross-site"
	case site == "" && k.ownPage(r, "Referer") != "":
		return "same-origin"
	}
	return site
}

// atAnotherHost reports whether the browser seems to use a host other than RedirectURI's.
// A proxy that changes Host may look the same.
func (k *Kit) atAnotherHost(r *http.Request) bool {
	if r.Host == k.redirect.Host {
		return false
	}
	for _, host := range []string{r.Host, first(r.Header, "X-Forwarded-Host")} {
		if hostPort(&url.URL{Scheme: k.redirect.Scheme, Host: host}) == hostPort(k.redirect) {
			return false
		}
	}
	return true
}

// atCallback reports whether r asks for the path of RedirectURI, in r.URL or in the
// request line. They differ below [http.StripPrefix].
func (k *Kit) atCallback(r *http.Request) bool {
	if r.URL.Path == k.redirect.Path {
		return true
	}
	requested, _, _ := strings.Cut(requestTarget(r), "?")
	return requested == k.redirect.EscapedPath()
}

// isCallback reports whether r is a callback from the bank. Every callback has a state.
func (k *Kit) isCallback(r *http.Request) bool {
	return strings.Contains(r.URL.RawQuery, "state=") && k.atCallback(r)
}

// returnPath returns the path that the parameter return_to asks for, or DefaultReturn if
// that is no path of this site, own, which is r's, or the callback's.
func (k *Kit) returnPath(r *http.Request, own string) string {
	if asked := r.URL.Query()[returnParam]; len(asked) == 1 {
		path, ok := localPath(asked[0])
		if to := pathOf(path); ok && to != k.redirect.Path && to != pathOf(own) {
			return path
		}
	}
	return k.defaultReturn
}

// pagesOf returns two paths: again, where the user can try again, "" if there is none;
// and back, to return to from a login. Both are own, the path that r asks for. If that is
// no page, they are the page that sent r.
func (k *Kit) pagesOf(r *http.Request, kind requestKind, own string) (again, back string) {
	part := kind == htmxRequest && first(r.Header, "Hx-Boosted") != "true"
	switch isGet := r.Method == http.MethodGet; {
	case k.atCallback(r):
	case isGet && !part:
		again = own
	case kind == htmxRequest:
		again = cmp.Or(k.ownPage(r, "Hx-Current-Url"), k.ownPage(r, "Referer"))
	default:
		again = k.ownPage(r, "Referer")
	}
	if m := k.marksOf(r); again != "" && m.returnTo != "" {
		return k.marked(again, returnMark, m.returnTo), m.returnTo
	}
	return again, cmp.Or(again, k.defaultReturn)
}

// ownPage returns the path of the page that a header such as Referer names, or "" if it
// is not a page of this site. This site is at the host of r or, behind a proxy that
// changes Host, at the host of RedirectURI.
func (k *Kit) ownPage(r *http.Request, header string) string {
	value := first(r.Header, header)
	if value == "" {
		return ""
	}
	page, err := url.Parse(value)
	if err != nil || page.Scheme != k.redirect.Scheme || page.Path == k.redirect.Path {
		return ""
	}
	host := hostPort(page)
	if host != hostPort(k.redirect) && host != hostPort(&url.URL{Scheme: page.Scheme, Host: r.Host}) {
		return ""
	}
	path, _ := localPath(page.RequestURI())
	return path
}

// ownPath returns the path that the browser requested, without the kit's marks, or "" if
// localPath refuses it.
func (k *Kit) ownPath(r *http.Request) string {
	path, query, _ := strings.Cut(requestTarget(r), "?")
	if query, _ = k.cutMarks(query); query != "" {
		path += "?" + query
	}
	path, _ = localPath(path)
	return path
}

// requestTarget returns the path and the query that the browser sent. r.URL may differ,
// for example below [http.StripPrefix].
func requestTarget(r *http.Request) string {
	target := r.RequestURI
	if target == "" {
		return r.URL.RequestURI()
	}
	if !strings.HasPrefix(target, "/") { // in absolute form (RFC 9112 section 3.2.2)
		if u, err := url.Parse(target); err == nil {
			return u.RequestURI()
		}
	}
	return target
}

// The kit marks the requests that it causes with query parameters such as
// "ganb.NAME.reloaded". A browser that blocks cookies sends nothing else back.
const (
	markPrefix = "ganb."
	// reloadedMark counts the kit's reloads. The suffix says that another site may have
	// caused the first request, because Sec-Fetch-Site no longer says so.
	reloadedMark  = "reloaded"
	foreignSuffix = "x"
	// returnMark names the page to come back to after a login by the login_url of problem
	// details.
	returnMark = "return_to"
	// refusedMark names the connection that the bank's API has refused, though its token is
	// refreshed.
	refusedMark = "refused"

	maxReloads = 3

	// maxQuery is the length of the longest query of which the kit reads anything. A
	// callback's, with the kit's marks, is the longest that it causes.
	maxQuery = 16 << 10
)

// marks is what the kit's query parameters say.
type marks struct {
	reloads  int
	foreign  bool   // another site may have caused the first request
	returnTo string // a path of this site, or ""
	refused  string // a hash of a token's Epoch, or ""
}

// marksOf reads the marks from the request line, because RequireToken removes them from
// r.URL.
func (k *Kit) marksOf(r *http.Request) marks {
	_, query, _ := strings.Cut(requestTarget(r), "?")
	_, m := k.cutMarks(query)
	return m
}

// cutMarks removes this kit's parameters from a raw query. A count that cannot be read
// becomes maxReloads, so that no address is reloaded forever.
func (k *Kit) cutMarks(rawQuery string) (rest string, m marks) {
	if len(rawQuery) > maxQuery || !strings.Contains(rawQuery, markPrefix) {
		return rawQuery, marks{}
	}
	var kept []string
	for part := range strings.SplitSeq(rawQuery, "&") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case k.markName(reloadedMark):
			count, foreign := strings.CutSuffix(value, foreignSuffix)
			m.foreign = m.foreign || foreign
			n, _ := strconv.Atoi(count)
			if n < 1 {
				n = maxReloads
			}
			m.reloads = max(m.reloads, n)
		case k.markName(returnMark):
			path, _ := url.QueryUnescape(value) // "" is no path
			m.returnTo, _ = localPath(path)
		case k.markName(refusedMark):
			m.refused = value
		default:
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, "&"), m
}

func (k *Kit) markName(mark string) string { return markPrefix + k.owners.kit + "." + mark }

// soon returns the pause after which another tab's cookie will have come, of one to three
// seconds. Tabs that have asked together must not ask together again: each time the first
// of them renews the session, and the others have waited for nothing.
func soon() time.Duration { return time.Duration(1+rand.IntN(3)) * time.Second }

// reload makes the browser request path from this site, and counts that in the URL.
func (k *Kit) reload(w http.ResponseWriter, r *http.Request, path string, pause time.Duration) {
	count := strconv.Itoa(k.marksOf(r).reloads + 1)
	if by := k.sentBy(r); by != "same-origin" && by != "none" {
		count += foreignSuffix
	}
	reload(w, k.marked(path, reloadedMark, count), pause, prefersJapanese(r.Header))
}

// marked adds a mark to a path.
func (k *Kit) marked(path, mark, value string) string {
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	return path + separator + k.markName(mark) + "=" + url.QueryEscape(value)
}
