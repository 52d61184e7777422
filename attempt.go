package ganbauth

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	attemptLifetime = 10 * time.Minute
	// The cookie outlives the attempt, so that a late callback hears "expired" and not "unknown".
	attemptCookieAge = 3 * attemptLifetime
	maxAttempts      = 5
	maxReturnPath    = 2048
	maxRetryPath     = 256

	attemptVersion = 1
)

// attempt is one login that this browser has begun. It travels in a sealed cookie of its own, named after its
// state: nothing is kept on the server, and tabs do not overwrite each other's.
type attempt struct {
	begun time.Time
	done  time.Time // of the callback; zero before
	// nonce and verifier are empty where the login is not OpenID Connect or has no PKCE.
	nonce, verifier string
	returnTo        string
	retry           string // what to request to begin the login again
	scope           string
	owner           string // whose attempt it is: a hash of the session's token or of the key, empty for anybody
}

func (a *attempt) strings() []*string {
	return []*string{&a.nonce, &a.verifier, &a.returnTo, &a.retry, &a.scope, &a.owner}
}

func (a *attempt) marshal() []byte {
	return appendRecord(attemptVersion, a.begun, a.done, a.strings())
}

func unmarshalAttempt(data string) (*attempt, error) {
	a := &attempt{}
	if err := readRecord(data, attemptVersion, &a.begun, &a.done, a.strings()); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *attempt) expired() bool { return time.Since(a.begun) > attemptLifetime }

// finished is what stays of an attempt after its callback: enough to know a second delivery, and, of a login that
// succeeded, the scopes, to know one that came straight back.
func (a *attempt) finished(err error) *attempt {
	f := &attempt{begun: a.begun, done: time.Now(), retry: a.retry}
	if err == nil {
		f.scope = a.scope
	}
	return f
}

// attempts reads and writes the cookies.
type attempts struct {
	prefix string // of the cookies' names
	secure bool
	sealer sealer
}

func newAttempts(c *Connector, name string, secure bool) (attempts, error) {
	key, err := c.deriveKey("ganbauth attempt cookie")
	if err != nil {
		return attempts{}, fmt.Errorf("ganbauth: attempt cookie: %w", err)
	}
	s, err := newSealer("attempt", key)
	prefix := "ganb." + name + "."
	if secure {
		prefix = "__Host-" + prefix
	}
	return attempts{prefix, secure, s}, err
}

// cookieName names an attempt after its state without telling it.
func (as attempts) cookieName(state string) string {
	return as.prefix + hash(state)
}

func (as attempts) write(w http.ResponseWriter, cookieName string, a *attempt) {
	sealed := as.sealer.seal(a.marshal(), cookieName)
	as.setCookie(w, cookieName, base64.RawURLEncoding.EncodeToString(sealed), int(attemptCookieAge/time.Second))
}

func (as attempts) remove(w http.ResponseWriter, cookieName string) {
	as.setCookie(w, cookieName, "", -1)
}

func (as attempts) setCookie(w http.ResponseWriter, name, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name:     name,
		Value:    value,
		Path:     "/",
		MaxAge:   maxAge,
		Secure:   as.secure,
		HttpOnly: true,
		SameSite: http.SameSiteLaxMode,
	})
}

// find returns this browser's attempt of that name, or nil. Of several cookies with the name, one that somebody
// planted does not open.
func (as attempts) find(r *http.Request, cookieName string) *attempt {
	for _, c := range r.CookiesNamed(cookieName) {
		sealed, err := decodeSegment(c.Value)
		if err != nil {
			continue
		}
		plain, err := as.sealer.open(sealed, cookieName)
		if err != nil {
			continue
		}
		if a, err := unmarshalAttempt(plain); err == nil {
			return a
		}
	}
	return nil
}

// all returns this browser's attempts by cookie name; nil stands for one that cannot be read.
func (as attempts) all(r *http.Request) map[string]*attempt {
	found := map[string]*attempt{}
	for _, c := range r.Cookies() {
		if strings.HasPrefix(c.Name, as.prefix) && len(found) < 4*maxAttempts {
			found[c.Name] = as.find(r, c.Name)
		}
	}
	return found
}

// makeRoom removes what is over, and the oldest attempts while there are too many for one more.
func (as attempts) makeRoom(w http.ResponseWriter, r *http.Request) {
	all := as.all(r)
	var names []string
	for name, a := range all {
		if a == nil || a.expired() {
			as.remove(w, name)
		} else {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return all[b].begun.Compare(all[a].begun) })
	for _, name := range names[min(len(names), maxAttempts-1):] {
		as.remove(w, name)
	}
}
