package ganbauth

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// checkNavigation refuses what would begin or finish a login without the user seeing it.
func checkNavigation(r *http.Request) error {
	if isPrefetch(r) {
		return &refusal{http.StatusForbidden, "a prefetch does not log in"}
	}
	if dest := r.Header.Get("Sec-Fetch-Dest"); dest != "" && dest != "document" && !isHTMX(r) {
		return &refusal{http.StatusForbidden, "a login must be a top-level navigation"}
	}
	return nil
}

// isNavigation tells a browser's top-level page load from everything else.
func isNavigation(r *http.Request) bool {
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") != "" || r.Header.Get("X-Requested-With") != "" {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		dest := r.Header.Get("Sec-Fetch-Dest")
		return mode == "navigate" && (dest == "document" || dest == "")
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

func isPrefetch(r *http.Request) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		v := strings.ToLower(r.Header.Get(name))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "preview") || strings.Contains(v, "prerender") {
			return true
		}
	}
	return false
}

// The name is spelled as net/http keeps it, which spares every request without it an allocation.
func isHTMX(r *http.Request) bool { return r.Header.Get("Hx-Request") == "true" }

// checkOrigin refuses what another origin sends. CrossOriginProtection does not see the scheme, for browsers
// without Sec-Fetch-Site.
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

// strictSession reports whether the session cookie stays behind on the way back from the bank.
func (k *Kit) strictSession() bool {
	return k.sessions != nil && k.sessions.Cookie.SameSite == http.SameSiteStrictMode
}

// sentBy returns what Sec-Fetch-Site says of who led the browser here: "same-origin" for a page of this
// site, "none" for the user, or another site. Without it a Referer of this site proves the former, and
// the answer is "" if there is none.
func (k *Kit) sentBy(r *http.Request) string {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site
	}
	own, err := url.Parse(k.redirectURI)
	from, fromErr := url.Parse(r.Header.Get("Referer"))
	if err == nil && fromErr == nil && from.Scheme == own.Scheme && from.Host == own.Host {
		return "same-origin"
	}
	return ""
}

// returnPath is where the request asks to return to, or DefaultReturn. The login and the callback are no place to
// return to.
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
	own, ownErr := url.Parse(ownPath(r))
	if err != nil || ownErr != nil || target.Path == k.callback || target.Path == own.Path {
		return k.defaultReturn
	}
	return path
}

// ownPath is the path that the browser requested, "" if it could not be a path to return to. A handler below
// [http.StripPrefix] sees another one in r.URL.
func ownPath(r *http.Request) string {
	target := r.RequestURI
	if target == "" {
		target = r.URL.RequestURI()
	}
	path, _ := localPath(target)
	return path
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

// prefersJapanese reads Accept-Language (RFC 9110 section 12.5.4) for the two languages there are.
func prefersJapanese(r *http.Request) bool {
	quality := map[string]float64{}
	for _, part := range strings.Split(r.Header.Get("Accept-Language"), ",") {
		tag, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		lang, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		q := 1.0
		if value, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			q, _ = strconv.ParseFloat(value, 64)
		}
		quality[lang] = max(quality[lang], q)
	}
	return quality["ja"] > quality["en"]
}
