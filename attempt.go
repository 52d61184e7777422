package ganbauth

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// A login can be finished for attemptLifetime. Its cookie outlives it, so that a late
	// callback is told that the login has expired.
	attemptLifetime  = 10 * time.Minute
	attemptCookieAge = 3 * attemptLifetime

	// justReturned is how soon after a callback another login for the same scopes would
	// be a loop.
	justReturned = 30 * time.Second

	// The bounds on what one browser holds of one kit, in bytes of the Cookie header,
	// names included. The newest attempt is always kept. When an answer has no room to
	// remove enough of the others, the next one does the rest; until then there are at
	// most maxCookiesEver bytes.
	maxOwnCookies  = 2 << 10 // of attempts that the user or a page of this site began
	maxCookies     = 3 << 10 // of all
	maxCookiesEver = maxCookies + 512

	// The bound on the header of an answer that begins or finishes a login, and the part
	// of it that is neither a Location nor an attempt's cookie: a session cookie, the
	// kit's headers, the server's.
	maxAnswerHeader = 3 << 10
	otherHeaders    = 700

	// maxOpened is how many attempt cookies of one request are opened, and spareOpened
	// how many more of the one name that a callback asks for.
	maxOpened   = 32
	spareOpened = 8

	// How long a path may be to be remembered, together with the login's own.
	maxOwnPath   = 1024 // if a page of this site led here
	maxOtherPath = 256

	attemptVersion = 2
)

// attempt is one login that this browser has begun. It travels in a sealed cookie of its
// own: the server keeps nothing, and tabs that begin logins at the same time do not
// overwrite each other's.
type attempt struct {
	begun time.Time
	done  time.Time // when its callback was answered; zero before
	// foreign says that another site may have sent the browser here.
	foreign bool
	// openID and pkce say whether the login has a nonce and a verifier. Both come from seed,
	// 32 random bytes, which is shorter than they are.
	openID, pkce bool
	seed         string
	owner        string // began it: a hash of the key or of the session's token; "" is anybody
	returnTo     string // where to go afterwards; "" is DefaultReturn
	login        string // the LoginHandler's path and query, without return_to; "" for RequireToken
	scope        string
	connection   string // which of the owner's connections it is for
}

func newSeed() string {
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails
	return string(seed)
}

// nonce returns the nonce of an OpenID Connect login, a hash of what only this browser has
// (OpenID Connect Core section 15.5.2).
func (a *attempt) nonce() string {
	sum := sha256.Sum256([]byte(a.seed))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
}

// verifier returns the code verifier (RFC 7636 section 4.1), "" for a login without PKCE.
func (a *attempt) verifier() string {
	if !a.pkce {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(a.seed))
}

// retry returns what to request to begin the login again, "" for DefaultReturn.
func (a *attempt) retry() string {
	if a.login == "" || a.returnTo == "" {
		return cmp.Or(a.login, a.returnTo)
	}
	separator := "?"
	if strings.Contains(a.login, "?") {
		separator = "&"
	}
	return a.login + separator + returnParam + "=" + escapeValue.Replace(a.returnTo)
}

// returnParam is the query parameter with the path to return to.
const returnParam = "return_to"

// escapeValue makes a query value of a path that localPath has passed, which has no "#".
var escapeValue = strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", ";", "%3B")

// withoutReturn removes the parameter return_to from a path's query.
func withoutReturn(path string) string {
	path, query, _ := strings.Cut(path, "?")
	separator := "?"
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if name, _ = url.QueryUnescape(name); name == returnParam || pair == "" {
			continue
		}
		path += separator + pair
		separator = "&"
	}
	return path
}

// shorten forgets paths that are longer together than limit.
func (a *attempt) shorten(limit int) {
	if len(a.returnTo)+len(a.login) > limit {
		a.login = ""
	}
	if len(a.returnTo) > limit {
		a.returnTo = ""
	}
}

func (a *attempt) expired() bool { return time.Since(a.begun) > attemptLifetime }

// finished returns what stays of an attempt after its callback: enough to recognize a
// second delivery and, if the login succeeded, the scopes, by which one that comes
// straight back is recognized.
func (a *attempt) finished(err error) *attempt {
	f := &attempt{begun: a.begun, done: time.Now(), returnTo: a.returnTo, login: a.login, connection: a.connection}
	f.shorten(maxOtherPath)
	if err == nil {
		f.scope = a.scope
	}
	return f
}

// The bits of the second byte of an attempt's record.
const (
	flagForeign = 1 << iota
	flagOpenID
	flagPKCE
	flagKitScope // scope begins with the kit's own scopes, for which a fingerprint stands
)

func (a *attempt) strings() []*string {
	return []*string{&a.seed, &a.owner, &a.returnTo, &a.login, &a.scope, &a.connection}
}

// attempts reads and writes the cookies of one kit.
type attempts struct {
	prefix     string // of the cookies' names
	kept       string // the attributes in Set-Cookie, from the first semicolon on
	removed    string // those that remove a cookie
	scope      string // the kit's own scopes
	scopePrint string // a fingerprint of scope
	sealer     sealer
}

// newAttempts makes the attempts of the kit with this name. Cookies know neither ports
// nor paths, so their names differ between applications, by client and redirect URI.
func newAttempts(c *Connector, name, redirectURI, scope string) (attempts, error) {
	key, err := c.deriveKey("ganbauth attempt cookie")
	if err != nil {
		return attempts{}, fmt.Errorf("ganbauth: attempt cookie: %w", err)
	}
	s, err := newSealer("attempt", key)
	prefix := "ganb." + hash(c.clientID + "\x00" + redirectURI + "\x00" + name)[:8] + "."
	secure := strings.HasPrefix(redirectURI, "https:")
	if secure {
		prefix = "__Host-" + prefix
	}
	attributes := func(maxAge int) string {
		c := http.Cookie{Name: "c", Path: "/", MaxAge: maxAge, Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode}
		return strings.TrimPrefix(c.String(), "c=")
	}
	kept, removed := attributes(int(attemptCookieAge/time.Second)), attributes(-1)
	sum := sha256.Sum256([]byte(scope))
	return attempts{prefix, kept, removed, scope, string(sum[:4]), s}, err
}

// cookieName derives an attempt's cookie name from its state without revealing the state.
func (as attempts) cookieName(state string) string { return as.prefix + hash(state)[:16] }

// marshal makes a's record: the version, the flags, two times in milliseconds, and the
// strings.
func (as attempts) marshal(a *attempt) []byte {
	short := *a
	var flags byte
	if a.foreign {
		flags |= flagForeign
	}
	if a.openID {
		flags |= flagOpenID
	}
	if a.pkce {
		flags |= flagPKCE
	}
	if rest, ok := strings.CutPrefix(a.scope+" ", as.scope+" "); ok {
		flags |= flagKitScope
		short.scope = as.scopePrint + strings.TrimSuffix(rest, " ")
	}
	b := append(make([]byte, 0, 256), attemptVersion, flags)
	b = binary.AppendUvarint(b, uint64(a.begun.UnixMilli()))
	done := uint64(0)
	if !a.done.IsZero() {
		done = uint64(a.done.UnixMilli())
	}
	b = binary.AppendUvarint(b, done)
	for _, s := range short.strings() {
		b = appendString(b, *s)
	}
	return b
}

// unmarshal reads what marshal made. If the kit's scopes are others by now, the scope is
// "": unknown.
func (as attempts) unmarshal(data string) (*attempt, error) {
	r := recordReader{rest: data}
	if v := r.uvarint(); v != attemptVersion && r.err == nil {
		return nil, fmt.Errorf("%w: version %d", errCorrupt, v)
	}
	flags := r.uvarint()
	a := &attempt{
		foreign: flags&flagForeign != 0,
		openID:  flags&flagOpenID != 0,
		pkce:    flags&flagPKCE != 0,
		begun:   time.UnixMilli(int64(r.uvarint())),
	}
	if done := r.uvarint(); done != 0 {
		a.done = time.UnixMilli(int64(done))
	}
	for _, s := range a.strings() {
		*s = r.string()
	}
	if flags&flagKitScope != 0 {
		rest, ok := strings.CutPrefix(a.scope, as.scopePrint)
		a.scope = ""
		if ok {
			a.scope = strings.TrimSpace(as.scope + " " + rest)
		}
	}
	return a, r.end()
}

// open returns the attempt in a cookie, nil if it cannot be read.
func (as attempts) open(name, value string) *attempt {
	sealed, err := decodeSegment(value)
	if err != nil {
		return nil
	}
	plain, err := as.sealer.open(sealed, name)
	if err != nil {
		return nil
	}
	a, err := as.unmarshal(plain)
	if err != nil {
		return nil
	}
	return a
}

func (as attempts) seal(name string, a *attempt) string {
	return base64.RawURLEncoding.EncodeToString(as.sealer.seal(as.marshal(a), name))
}

// setCookie returns the value of a Set-Cookie header, which http.Cookie takes a microsecond
// to make. An empty value removes the cookie.
func (as attempts) setCookie(name, value string) string {
	if value == "" {
		return name + "=" + as.removed
	}
	return name + "=" + value + as.kept
}

// jar is what the Cookie header of one request has of a kit's attempts. Each handler
// reads it once.
type jar struct {
	attempts
	cookies []attemptCookie // in the header's order, which is oldest first in browsers
	others  int             // bytes of the cookies with the kit's prefix that were not or could not be opened
}

type attemptCookie struct {
	name string
	size int // in the Cookie header
	*attempt
}

// cookieSize is what a cookie takes of the Cookie header.
func cookieSize(name, value string) int { return len(name) + len("=") + len(value) + len("; ") }

// read makes one pass over the Cookie header and opens a bounded number of cookies, among
// them the one named want, "" for none. What cannot be opened belongs to somebody else:
// it counts, and it stays. If several cookies have one name, planted ones are skipped
// because they do not decrypt.
func (as attempts) read(r *http.Request, want string) *jar {
	j := &jar{attempts: as}
	opened := 0
	for _, line := range r.Header["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			name, value, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
			if !strings.HasPrefix(name, as.prefix) {
				continue
			}
			size := cookieSize(name, value)
			if opened < maxOpened || name == want && opened < maxOpened+spareOpened {
				opened++
				if a := as.open(name, value); a != nil && j.find(name) == nil {
					j.cookies = append(j.cookies, attemptCookie{name, size, a})
					continue
				}
			}
			j.others += size
		}
	}
	return j
}

// find returns the attempt of that name, or nil.
func (j *jar) find(name string) *attempt {
	for _, c := range j.cookies {
		if c.name == name {
			return c.attempt
		}
	}
	return nil
}

// size is what all cookies with the kit's prefix take of the Cookie header.
func (j *jar) size() int {
	size := j.others
	for _, c := range j.cookies {
		size += c.size
	}
	return size
}

// put sets a's cookie and removes others, so that the bounds hold for what the browser has
// then. The answer's Location has the given length. If a does not fit, it forgets its
// paths.
func (j *jar) put(w http.ResponseWriter, name string, a *attempt, location int) {
	room := answerRoom(location)
	lines, fits := j.plan(name, a, room)
	if !fits {
		a.returnTo, a.login = "", ""
		lines, _ = j.plan(name, a, room)
	}
	for _, line := range lines {
		w.Header().Add("Set-Cookie", line)
	}
}

// plan returns the lines with which an answer sets a's cookie and removes others, as many
// as it has room for. fits reports whether that keeps the bounds. Tabs that open at the
// same moment do not see each other's cookies and can exceed them together: then a page to
// return to is worth more than the bounds, which the next answers restore.
func (j *jar) plan(name string, a *attempt, room int) (lines []string, fits bool) {
	value := j.seal(name, a)
	size := cookieSize(name, value)
	set := j.setCookie(name, value)
	room -= headerLine(set)
	gone := j.surplus(name, a, size)
	lines = j.removals(gone, room)
	switch exceeded := j.size() > maxCookiesEver; {
	case room < 0, a.foreign && size > maxCookies-maxOwnCookies:
	case len(lines) == len(gone), exceeded && len(a.returnTo)+len(a.login) <= maxOtherPath:
		fits = true
	}
	return append(lines, set), fits
}

// surplus returns the cookies that have to go when a takes size bytes, the least needed
// one first.
func (j *jar) surplus(name string, a *attempt, size int) (gone []attemptCookie) {
	all, own := j.others+size, size
	if a.foreign {
		own = 0
	}
	for _, c := range j.ranked() {
		switch {
		case c.name == name:
		case c.expired(), all+c.size > maxCookies, !c.foreign && own+c.size > maxOwnCookies:
			gone = append(gone, c)
		default:
			all += c.size
			if !c.foreign {
				own += c.size
			}
		}
	}
	slices.Reverse(gone)
	return gone
}

// ranked returns the cookies by how likely they are to be needed, the likeliest first:
// those of unfinished logins, of this site before others. Of this site's logins the
// newest is the likeliest. Of the others it is the oldest: another site can begin many,
// but not before the one that the user is looking at.
func (j *jar) ranked() []attemptCookie {
	oldest := slices.Clone(j.cookies)
	slices.SortStableFunc(oldest, func(a, b attemptCookie) int { return a.begun.Compare(b.begun) })
	newest := slices.Clone(oldest)
	slices.Reverse(newest)
	var ranked []attemptCookie
	add := func(list []attemptCookie, done, foreign bool) {
		for _, c := range list {
			if c.done.IsZero() != done && (done || c.foreign == foreign) {
				ranked = append(ranked, c)
			}
		}
	}
	add(newest, false, false)
	add(oldest, false, true)
	add(newest, true, false)
	return ranked
}

// forget removes the cookie of that name.
func (j *jar) forget(w http.ResponseWriter, name string) {
	w.Header().Add("Set-Cookie", j.setCookie(name, ""))
}

// removeOf removes the attempts of that connection, or all if none is named, and returns
// them.
func (j *jar) removeOf(w http.ResponseWriter, connection string) (gone []attemptCookie) {
	gone = slices.DeleteFunc(j.ranked(), func(c attemptCookie) bool {
		return connection != "" && c.connection != connection
	})
	j.remove(w, gone)
	return gone
}

// remove removes cookies, as many as an answer has room for.
func (j *jar) remove(w http.ResponseWriter, gone []attemptCookie) {
	for _, line := range j.removals(gone, answerRoom(0)) {
		w.Header().Add("Set-Cookie", line)
	}
}

// removals returns the lines that remove cookies, as many as fit into room bytes.
func (j *jar) removals(gone []attemptCookie, room int) (lines []string) {
	for _, c := range gone {
		line := j.setCookie(c.name, "")
		if room -= headerLine(line); room < 0 {
			break
		}
		lines = append(lines, line)
	}
	return lines
}

// justReturned returns the logins for all these scopes of this connection that have only
// just succeeded: another one would be a loop.
func (j *jar) justReturned(connection string, scopes []string) (back []attemptCookie) {
	for _, c := range j.cookies {
		asked := strings.Fields(c.scope)
		missing := func(scope string) bool { return !slices.Contains(asked, scope) }
		if time.Since(c.done) <= justReturned && c.connection == connection && !slices.ContainsFunc(scopes, missing) {
			back = append(back, c)
		}
	}
	return back
}

// answerRoom is what an answer's header has for cookies of attempts.
func answerRoom(location int) int { return maxAnswerHeader - otherHeaders - location }

func headerLine(setCookie string) int { return len("Set-Cookie: ") + len(setCookie) + len("\r\n") }

// hash identifies a value without revealing it: 128 bits of SHA-256. It is "" for "".
func hash(s string) string {
	if s == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}
