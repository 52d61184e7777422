package ganbauth

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
)

// maxReturnPath is the length of the longest path that localPath accepts, before and after
// it is encoded.
const maxReturnPath = 2048

// localPath judges a path to return to by what a browser would do with it. It returns a
// path of this site in percent-encoded ASCII, at most 2,048 characters long, without its
// fragment. Neither the path as given nor the decoded path may contain what one parser
// reads as a path and another as a host: backslashes, control characters, empty segments
// and dot segments.
func localPath(s string) (string, bool) {
	if len(s) > maxReturnPath {
		return "", false // before it costs anything: it comes from the request
	}
	if isPlain(s) {
		return s, true
	}
	ambiguous := func(c rune) bool { return c == '\\' || unicode.IsControl(c) }
	u, err := url.Parse(s)
	if err != nil || u.Host != "" || !strings.HasPrefix(s, "/") || !strings.HasPrefix(u.Path, "/") ||
		strings.ContainsFunc(s, ambiguous) || strings.ContainsFunc(u.Path, ambiguous) {
		return "", false
	}
	if strings.Contains(u.Path, "//") {
		return "", false
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if segment == "." || segment == ".." {
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

// pathOf returns the decoded path of what localPath has passed, without the query.
func pathOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Path
}

// isPlain reports whether s is a path in which there is nothing to judge. Most are, and this
// is the quicker way.
func isPlain(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.Contains(s, "//") && !strings.ContainsFunc(s, needsJudging)
}

func needsJudging(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '/' || c > '9') && c != '-' && c != '_'
}

// escapeRest percent-encodes what may not stand in a header or a URL.
func escapeRest(s string) string {
	forbidden := func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\"<>`{}|^", c) }
	if !strings.ContainsFunc(s, forbidden) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; forbidden(rune(c)) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
