package ganbauth

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// requestKind is what a request is, as far as its headers say. It decides how the kit answers:
// only a person at a browser's window can be sent to the bank. It protects nothing: any client
// can send any header.
type requestKind int

const (
	// program is a client that says nothing of a browser: curl, a health check, a service.
	program requestKind = iota
	// navigation is a page that a browser loads into a window or a tab, by GET.
	navigation
	// formPost is a page that a browser loads by another method: what a form submits.
	formPost
	// htmxRequest is HTMX's own request, which follows HX-Redirect where fetch follows nothing.
	htmxRequest
	// subrequest is what a page asks for beside itself: fetch, XMLHttpRequest, EventSource, a
	// WebSocket, an image, a download.
	subrequest
	// embedded is a page that is loaded into a frame, an object or an embed element.
	embedded
	// prefetch is loaded before anybody has asked to see it.
	prefetch
)

// kindOfRequest judges r by its method and headers. It is the only place that does: Sec-Fetch-*
// where the browser sends them, since pages cannot forge those; else what libraries say of
// themselves; else Accept.
func kindOfRequest(r *http.Request) requestKind {
	h := r.Header
	kind := kindByHeaders(h)
	switch {
	case isPrefetch(h):
		return prefetch
	case h.Get("Hx-Request") == "true" && h.Get("Hx-History-Restore-Request") != "true":
		// HTMX ignores HX-Redirect when it restores a page of its history.
		return htmxRequest
	case h.Get("X-Turbo-Request-Id") != "":
		// Turbo fetches what the user navigates to. If the answer is not a page, it has the
		// browser load a link as usual, and shows nothing for a form.
		if r.Method == http.MethodPost {
			return formPost
		}
		return subrequest
	case kind != navigation || r.Method == http.MethodGet:
		return kind
	case r.Method == http.MethodPost:
		return formPost
	}
	return program // no browser's window does this
}

// kindByHeaders judges a request as if its method were GET.
func kindByHeaders(h http.Header) requestKind {
	mode, dest := h.Get("Sec-Fetch-Mode"), h.Get("Sec-Fetch-Dest")
	switch {
	case h.Get("Upgrade") != "":
		return subrequest
	case mode == "" && dest == "":
		return kindWithoutMetadata(h)
	case dest == "document" && (mode == "navigate" || mode == ""):
		return navigation
	case mode == "navigate" && (dest == "" || dest == "empty"):
		// A service worker has passed a navigation on, or the browser is too old to send dest.
		// A download says the same, and does not ask for HTML.
		if acceptsHTML(h) {
			return navigation
		}
		return subrequest
	case mode == "same-origin" && h.Get("Upgrade-Insecure-Requests") == "1":
		// So does Firefox pass a navigation on. No fetch by a script sends this header.
		return navigation
	case mode == "navigate":
		return embedded
	}
	return subrequest
}

// kindWithoutMetadata judges a client that sends no Sec-Fetch-*: a browser older than 2023, or
// none. Android's WebView sends the name of its application as X-Requested-With, with every
// request; only XMLHttpRequest's own value says how the request came about.
func kindWithoutMetadata(h http.Header) requestKind {
	switch {
	case h.Get("X-Requested-With") == "XMLHttpRequest":
		return subrequest
	case acceptsHTML(h):
		return navigation
	}
	return program
}

// isPrefetch knows the browsers' headers, Turbo's (X-Sec-Purpose) and that of HTMX's preload.
func isPrefetch(h http.Header) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Sec-Purpose", "X-Moz"} {
		v := strings.ToLower(h.Get(name))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "preview") || strings.Contains(v, "prerender") {
			return true
		}
	}
	return h.Get("Hx-Preloaded") == "true"
}

// acceptsHTML reports whether Accept names HTML, and not JSON: no browser that shows a page asks
// for JSON.
func acceptsHTML(h http.Header) bool {
	html, json := false, false
	eachWeighted(h.Values("Accept"), func(media string, q float64) {
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

// prefersJapanese reads Accept-Language (RFC 9110 section 12.5.4) for the two languages there
// are. English is the default.
func prefersJapanese(h http.Header) bool {
	const unnamed = -1
	ja, en, others := float64(unnamed), float64(unnamed), float64(0)
	eachWeighted(h.Values("Accept-Language"), func(tag string, q float64) {
		lang, _, _ := strings.Cut(strings.ReplaceAll(tag, "_", "-"), "-")
		switch lang {
		case "ja":
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
	return ja > en
}

// eachWeighted calls each with the members of a header such as Accept, in lower case, and their
// weights (RFC 9110 section 12.4.2). A weight that cannot be read counts as 0.
func eachWeighted(lines []string, each func(value string, q float64)) {
	for _, line := range lines {
		for member := range strings.SplitSeq(line, ",") {
			params := strings.Split(strings.ToLower(member), ";")
			q := 1.0
			for _, param := range params[1:] {
				name, value, _ := strings.Cut(param, "=")
				if strings.TrimSpace(name) != "q" {
					continue
				}
				var err error
				if q, err = strconv.ParseFloat(strings.TrimSpace(value), 64); err != nil || !(q >= 0 && q <= 1) {
					q = 0
				}
			}
			each(strings.TrimSpace(params[0]), q)
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

// checkOrigin refuses what another origin sends. CrossOriginProtection does not see the scheme,
// for browsers without Sec-Fetch-Site.
func (k *Kit) checkOrigin(r *http.Request) error {
	refused := &refusal{http.StatusForbidden, "the request comes from another origin"}
	if new(http.CrossOriginProtection).Check(r) != nil {
		return refused
	}
	if k.https && r.Header.Get("Sec-Fetch-Site") == "" && strings.HasPrefix(r.Header.Get("Origin"), "http:") {
		return refused
	}
	return nil
}

// strictSession reports whether the session's cookie stays behind when another site leads here.
func (k *Kit) strictSession() bool {
	return k.sessions != nil && k.sessions.Cookie.SameSite == http.SameSiteStrictMode
}

// cookieStayedBehind reports whether r lacks a Strict session cookie that the next request from
// this site may bring. Only the missing cookie tells: Sec-Fetch-Site is "none" or "same-origin"
// for arrivals from other sites that went through a redirect, the back button or a service
// worker.
//
// The kit's own reload says "same-origin", and is not repeated. With another answer the mark of a
// reload is part of an address that the user has copied or gone back to.
func (k *Kit) cookieStayedBehind(r *http.Request) bool {
	if !k.strictSession() || k.sendsSession(r) {
		return false
	}
	reloads, site := k.marksOf(r).reloads, r.Header.Get("Sec-Fetch-Site")
	return reloads == 0 || reloads < maxReloads && site != "" && site != "same-origin"
}

// sessionIsGone reports whether r has the cookie of a session that is not in the store. Another
// tab's login may have renewed it, and the new cookie is on its way.
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

// sentBy returns who led the browser here, as Sec-Fetch-Site says it: "same-origin" for a page
// of this site, "none" for the user, or another site. The kit's own reload keeps the answer.
// Without the header a Referer of this site proves the former, and the answer is "" if there is
// none.
func (k *Kit) sentBy(r *http.Request) string {
	site := r.Header.Get("Sec-Fetch-Site")
	switch {
	case k.marksOf(r).foreign:
		return "cross-site"
	case site == "" && k.ownPage(r, "Referer") != "":
		return "same-origin"
	}
	return site
}

// atAnotherHost reports whether the browser asks at another host than RedirectURI's, as far as
// that can be seen: a proxy may change Host.
func (k *Kit) atAnotherHost(r *http.Request) bool {
	redirect, err := url.Parse(k.redirectURI)
	if err != nil {
		return false
	}
	for _, host := range []string{r.Host, r.Header.Get("X-Forwarded-Host")} {
		if hostPort(&url.URL{Scheme: redirect.Scheme, Host: host}) == hostPort(redirect) {
			return false
		}
	}
	return true
}

// atCallback reports whether r asks for the path of RedirectURI: in r.URL, or in what the browser
// sent, which differs below [http.StripPrefix].
func (k *Kit) atCallback(r *http.Request) bool {
	if r.URL.Path == k.callback {
		return true
	}
	requested, _, _ := strings.Cut(r.RequestURI, "?")
	return requested == k.callback
}

// isCallback reports whether r is a callback of the bank's: each has a state.
func (k *Kit) isCallback(r *http.Request) bool {
	return strings.Contains(r.URL.RawQuery, "state=") && k.atCallback(r)
}

// returnPath is where the request asks to return to, or DefaultReturn. The login and the
// callback are no place to return to.
func (k *Kit) returnPath(r *http.Request) string {
	asked := r.URL.Query()[returnParam]
	if len(asked) != 1 {
		return k.defaultReturn
	}
	path, ok := localPath(asked[0])
	if !ok {
		return k.defaultReturn
	}
	target, err := url.Parse(path)
	own, ownErr := url.Parse(k.ownPath(r))
	if err != nil || ownErr != nil || target.Path == k.callback || target.Path == own.Path {
		return k.defaultReturn
	}
	return path
}

// pagesOf returns the page where r may succeed another time, "" if there is none, and the page to
// come back to from a login for r. Both are the page that r asks for or, where r asks for none,
// the page that sent it.
func (k *Kit) pagesOf(r *http.Request, kind requestKind) (again, back string) {
	part := kind == htmxRequest && r.Header.Get("Hx-Boosted") != "true"
	switch isGet := r.Method == http.MethodGet; {
	case k.atCallback(r):
	case isGet && !part:
		again = k.ownPath(r)
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

// ownPage returns the path of the page that a header such as Referer names, or "" if that is
// not a page of this site to come back to. The site is where r was sent to or, behind a proxy
// that changes Host, where RedirectURI is.
func (k *Kit) ownPage(r *http.Request, header string) string {
	page, err := url.Parse(r.Header.Get(header))
	redirect, redirectErr := url.Parse(k.redirectURI)
	if err != nil || redirectErr != nil || page.Scheme != redirect.Scheme || page.Path == k.callback {
		return ""
	}
	host := hostPort(page)
	if host != hostPort(redirect) && host != hostPort(&url.URL{Scheme: page.Scheme, Host: r.Host}) {
		return ""
	}
	path, _ := localPath(page.RequestURI())
	return path
}

// ownPath is the path that the browser requested, without the kit's own marks, or "" if it could
// not be a path to return to.
func (k *Kit) ownPath(r *http.Request) string {
	path, query, _ := strings.Cut(requestTarget(r), "?")
	if query, _ = k.cutMarks(query); query != "" {
		path += "?" + query
	}
	path, _ = localPath(path)
	return path
}

// requestTarget returns the path and the query that the browser sent. Handlers may see others in
// r.URL, below [http.StripPrefix] for example.
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

// The kit marks requests that it has caused by parameters in their query, "ganb.NAME.reloaded"
// for example, as nothing else comes back from a browser that keeps no cookies.
const (
	markPrefix = "ganb."
	// reloadedMark counts how often the kit has had the browser ask again. The suffix stands for
	// a first request that another site may have caused: the next one no longer says so.
	reloadedMark  = "reloaded"
	foreignSuffix = "x"
	// returnMark is the page to come back to from a login that problem details have offered.
	returnMark = "return_to"

	maxReloads = 3
)

// marks are what the kit's parameters in a query say.
type marks struct {
	reloads  int
	foreign  bool   // another site may have caused the first request
	returnTo string // a path of this site, or ""
}

// marksOf reads the marks of r from what the browser sent: r.URL may have lost them by now.
func (k *Kit) marksOf(r *http.Request) marks {
	_, query, _ := strings.Cut(requestTarget(r), "?")
	_, m := k.cutMarks(query)
	return m
}

// cutMarks takes this kit's parameters out of a raw query. A count that cannot be read is the
// highest, so that nothing is asked for without end.
func (k *Kit) cutMarks(rawQuery string) (rest string, m marks) {
	if !strings.Contains(rawQuery, markPrefix) {
		return rawQuery, marks{}
	}
	var kept []string
	for part := range strings.SplitSeq(rawQuery, "&") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case k.markName(reloadedMark):
			value, m.foreign = strings.CutSuffix(value, foreignSuffix)
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				n = maxReloads
			}
			m.reloads = max(m.reloads, n)
		case k.markName(returnMark):
			if value, err := url.QueryUnescape(value); err == nil {
				m.returnTo, _ = localPath(value)
			}
		default:
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, "&"), m
}

func (k *Kit) markName(mark string) string { return markPrefix + k.owners.kit + "." + mark }

// reload has the browser ask for path again, from this site, and counts that in the URL.
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

const maxReturnPath = 2048

// localPath judges a path to return to by what a browser would do with it: only a path of this site survives, in
// percent-encoded ASCII, at most 2,048 characters, without its fragment. As it is and decoded, it must be free of what
// one parser reads as a path and another as a host: backslashes, control characters, empty and dot segments.
func localPath(s string) (string, bool) {
	ambiguous := func(c rune) bool { return c == '\\' || unicode.IsControl(c) }
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(s, "/") || !strings.HasPrefix(u.Path, "/") ||
		strings.ContainsFunc(s, ambiguous) || strings.ContainsFunc(u.Path, ambiguous) {
		return "", false
	}
	segments := strings.Split(u.Path[1:], "/")
	for i, segment := range segments {
		if segment == "." || segment == ".." || segment == "" && i < len(segments)-1 {
			return "", false
		}
	}
	path := escapeRest(u.EscapedPath())
	if u.RawQuery != "" {
		path += "?" + escapeRest(u.RawQuery)
	}
	if len(path) > maxReturnPath {
		return "", false
	}
	return path, true
}

// escapeRest percent-encodes what may not stand in a header or a URL.
func escapeRest(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte("\"<>`{}|^", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
