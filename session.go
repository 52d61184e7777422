package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

// owners says whose token a request is about: the user's, by Options.Key, or the session's.
type owners struct {
	kit          string // its name, which begins every store key
	handleName   string // of the kit's value in a session
	namesName    string // of another, with the names of the session's connections
	sessions     *scs.SessionManager
	keyOf        func(*http.Request) (string, error) // nil: tokens belong to sessions
	connectionOf func(*http.Request) (string, error) // nil: there is one connection

	renewing keyedMutex // by the session's token: of two logins at once the second sees the first
}

// session is the scs session of one request.
type session struct {
	*scs.SessionManager // nil in a Kit without sessions
	ctx                 context.Context
	ours                bool // no LoadAndSave stands above the kit, so that committing is the kit's
}

// session returns the session that LoadAndSave has loaded, or loads it. It never makes one
// in the store.
func (o *owners) session(r *http.Request) (session, error) {
	if o.sessions == nil {
		return session{}, nil
	}
	given := r.Context()
	if reflect.TypeOf(given).Kind() != reflect.Pointer && !reflect.ValueOf(given).Comparable() {
		given = &struct{ context.Context }{given} // the next comparison would panic
	}
	ctx, err := o.sessions.Load(given, "") // returns the context as it is if a session is in it
	ours := ctx != given
	if ours {
		if c, cookieErr := r.Cookie(o.sessions.Cookie.Name); cookieErr == nil {
			ctx, err = o.sessions.Load(r.Context(), c.Value)
		}
	}
	if err != nil {
		return session{}, unavailable("ganbauth: load session: %w", err)
	}
	return session{o.sessions, ctx, ours}, nil
}

// withSession returns r for Key and Connection, which may read the session: with the
// session in its context even where no LoadAndSave stands above the kit.
func (o *owners) withSession(r *http.Request) (*http.Request, error) {
	s, err := o.session(r)
	if !s.ours {
		return r, err
	}
	return r.WithContext(s.ctx), nil
}

// whose returns the owner of the token that r is about. Its storeKey is "" if r's session
// has none.
func (o *owners) whose(r *http.Request) (owner, error) {
	connection, err := o.connection(r)
	if err != nil {
		return owner{}, err
	}
	return o.whoseConnection(r, connection)
}

// whoseConnection is whose for a connection that r need not name.
func (o *owners) whoseConnection(r *http.Request, connection string) (owner, error) {
	if o.keyOf == nil {
		s, err := o.session(r)
		if err != nil {
			return owner{}, err
		}
		return o.inSession(o.handle(s).held, connection)
	}
	r, err := o.withSession(r)
	if err != nil {
		return owner{}, err
	}
	key, err := o.keyOf(r)
	switch {
	case errors.Is(err, ErrLoginRequired), err == nil && key == "":
		return owner{}, ErrNoUser
	case err != nil:
		return owner{}, &applicationError{fmt.Errorf("ganbauth: Key: %w", err)}
	}
	return o.named(key, connection)
}

// connection returns which of the user's connections r is about.
func (o *owners) connection(r *http.Request) (string, error) {
	if o.connectionOf == nil {
		return "", nil
	}
	r, err := o.withSession(r)
	if err != nil {
		return "", err
	}
	connection, err := o.connectionOf(r)
	switch {
	case errors.Is(err, ErrLoginRequired):
		return "", ErrNoUser
	case err != nil:
		return "", &applicationError{fmt.Errorf("ganbauth: Connection: %w", err)}
	}
	if len(connection) > maxConnection {
		return "", &applicationError{fmt.Errorf("ganbauth: Connection: longer than %d bytes", maxConnection)}
	}
	return connection, nil
}

// maxConnection is the length of the longest Connection, in bytes: it travels in a cookie.
const maxConnection = 255

var keyEscaper = strings.NewReplacer("%", "%25", "/", "%2F")

// named returns the owner by that key and connection. The store key begins with the kit's
// name, so that several kits can share a store, and different owners have different keys
// whatever their keys contain.
func (o *owners) named(key, connection string) (owner, error) {
	storeKey := o.kit + "/" + keyEscaper.Replace(key)
	if connection != "" {
		storeKey += "/" + keyEscaper.Replace(connection)
	}
	if len(storeKey) > maxKey {
		return owner{}, &applicationError{fmt.Errorf("ganbauth: Name, Key and Connection are longer than %d bytes together", maxKey)}
	}
	return owner{key, connection, storeKey}, nil
}

// inSession returns the owner of a session's connection. A session holds a store key
// without the connection. If held is not one of this kit's, the owner's storeKey is "".
func (o *owners) inSession(held, connection string) (owner, error) {
	handle, ok := strings.CutPrefix(held, o.kit+"/")
	switch {
	case !ok:
		return owner{}, nil
	case connection == "":
		return owner{handle, "", held}, nil
	}
	return o.named(handle, connection)
}

// owned returns the owner by that store key: it undoes named. It is not ok if the key is
// another kit's.
func (o *owners) owned(storeKey string) (_ owner, ok bool) {
	rest, ok := strings.CutPrefix(storeKey, o.kit+"/")
	if !ok {
		return owner{}, false
	}
	key, connection, _ := strings.Cut(rest, "/")
	return owner{keyUnescaper.Replace(key), keyUnescaper.Replace(connection), storeKey}, true
}

var keyUnescaper = strings.NewReplacer("%25", "%", "%2F", "/")

// loginOwner returns whose the token of a login will be. A session gets a new handle,
// unless it may have other connections under the one that it has. Until the session has
// a new handle, nobody can reach what is under it.
func (o *owners) loginOwner(r *http.Request, connection string) (who owner, isNew bool, err error) {
	if o.keyOf != nil {
		who, err = o.whoseConnection(r, connection)
		return who, false, err
	}
	s, err := o.session(r)
	if err != nil {
		return owner{}, false, err
	}
	held := o.handle(s).held
	if isNew = held == "" || o.connectionOf == nil; isNew {
		held = o.kit + "/" + newHandle()
	}
	who, err = o.inSession(held, connection)
	return who, isNew, err
}

// handle returns what a login stored in the session.
func (o *owners) handle(s session) handle {
	return parseHandle(s.GetString(s.ctx, o.handleName))
}

// beginner identifies who begins a login: the user (by Key), else the session, else "",
// which stands for anyone in this browser.
func (o *owners) beginner(r *http.Request) (string, error) {
	if o.keyOf != nil {
		who, err := o.whoseConnection(r, "")
		return hash(who.key), err
	}
	s, err := o.session(r)
	if err != nil {
		return "", err
	}
	return hash(s.Token(s.ctx)), nil
}

// began reports whether the user of r began the login of that beginner.
func (o *owners) began(r *http.Request, beginner string) (bool, error) {
	if beginner == "" {
		return true, nil
	}
	now, err := o.beginner(r)
	if errors.Is(err, ErrNoUser) {
		return false, nil
	}
	if err != nil || now == beginner || o.keyOf != nil {
		return now == beginner, err
	}
	s, err := o.session(r)
	if err != nil {
		return false, err
	}
	if own := o.handle(s); own.held == "" && own.descends(beginner) {
		return false, nil // a logout has ended the logins that were begun before it
	}
	for _, h := range handles(s.ctx, s.SessionManager) {
		if h.descends(beginner) {
			return true, nil // begun in another tab, before another login, which may be another kit's
		}
	}
	return false, nil
}

// attach gives the session the handle of a login and renews its token, so that one that was
// planted before is worthless. It returns the store key of the token that the session had
// before, if that is another one.
func (o *owners) attach(w http.ResponseWriter, r *http.Request, who owner, beginner string) (former string, err error) {
	s, err := o.session(r)
	if s.SessionManager == nil || o.keyOf != nil && s.Token(s.ctx) == "" {
		return "", err
	}
	before, deadline := hash(s.Token(s.ctx)), s.Deadline(s.ctx)
	if err := o.renew(r, s, beginner != ""); err != nil {
		return "", err
	}
	if o.hasOthers(s) {
		s.SetDeadline(s.ctx, deadline) // their records end then
	}
	if o.keyOf != nil {
		return "", s.commit(w)
	}
	next := o.handle(s).after(before, beginner)
	former, next.held = next.held, o.kit+"/"+who.key
	if former == next.held {
		former = ""
	}
	s.Put(s.ctx, o.handleName, next.String())
	if who.connection != "" {
		names := union([]string{url.QueryEscape(who.connection)}, strings.Fields(s.GetString(s.ctx, o.namesName)))
		s.Put(s.ctx, o.namesName, strings.Join(names[:min(len(names), maxNames)], " "))
	}
	if err = s.commit(w); err != nil && former != "" {
		next.held = former // LoadAndSave may write the session yet, and the callback come again
		s.Put(s.ctx, o.handleName, next.String())
	}
	return former, err
}

// renew gives the session a new token, unless checkStays fails.
func (o *owners) renew(r *http.Request, s session, hadSession bool) error {
	unlock, err := o.renewing.lock(r.Context(), s.Token(s.ctx))
	if err != nil {
		return unavailable("ganbauth: renew session: %w", err)
	}
	defer unlock()
	if err := o.checkStays(r, s, hadSession); err != nil {
		return err
	}
	if err := s.again(s.RenewToken); err != nil {
		return unavailable("ganbauth: renew session: %w", err)
	}
	return nil
}

// maxNames is how many connections of a session are remembered for a logout that ends all.
const maxNames = 16

// all returns the owners of the connections that the session of r has by name, and of those
// that logins may bring it: none can be reached without its handle.
func (o *owners) all(r *http.Request, logins []attemptCookie) (all []owner, err error) {
	if o.keyOf != nil {
		return nil, nil
	}
	s, err := o.session(r)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range strings.Fields(s.GetString(s.ctx, o.namesName)) {
		name, _ = url.QueryUnescape(name)
		names = append(names, name)
	}
	for _, a := range logins {
		names = append(names, a.connection)
	}
	for _, name := range names {
		if who, _ := o.inSession(o.handle(s).held, name); who.storeKey != "" {
			all = append(all, who)
		}
	}
	return all, nil
}

// hasOthers reports whether a session has connections that a login does not replace: of
// another kit, or by other names.
func (o *owners) hasOthers(s session) bool {
	for kit, h := range handles(s.ctx, s.SessionManager) {
		if h.held != "" && (kit != o.kit || o.connectionOf != nil) {
			return true
		}
	}
	return false
}

// errRenewedSince means that the session has been renewed or ended since this request began.
// What the request knows of it must not be written back: its user may have logged out, or be
// another one.
var errRenewedSince = unavailable("ganbauth: the session has been renewed or ended meanwhile")

// checkStays fails if the session that the browser names is gone by now, unless r itself has
// renewed it. If s has found none to begin with, it fails only where there must have been
// one: the login was begun in a session.
func (o *owners) checkStays(r *http.Request, s session, hadSession bool) error {
	c, err := r.Cookie(o.sessions.Cookie.Name)
	switch known := s.Token(s.ctx); {
	case err != nil:
		return nil
	case known == "" && hadSession:
		return errRenewedSince
	case known == "", known != c.Value:
		return nil
	}
	// Load would return the session as it was.
	_, found, err := findIn(s.ctx, o.sessions.Store, nameInStore(o.sessions, c.Value))
	switch {
	case err != nil:
		return unavailable("ganbauth: load session: %w", err)
	case !found:
		return errRenewedSince
	}
	return nil
}

// detach takes the handle out of the session, unless only that connection is forgotten. A
// session with nothing else in it ends. Another one gets a new token, and remembers the one
// that it had, by which other kits know their logins again. A session without a handle is
// treated alike if logins have been forgotten whose callbacks may be at another process.
func (o *owners) detach(w http.ResponseWriter, r *http.Request, connection string, logins []attemptCookie) error {
	s, err := o.session(r)
	if s.SessionManager == nil || connection != "" {
		return err // the session's other connections are under the same handle
	}
	underWay := slices.ContainsFunc(logins, func(a attemptCookie) bool { return a.done.IsZero() })
	if o.handle(s).held == "" && (!underWay || o.keyOf != nil || s.Token(s.ctx) == "") {
		return nil
	}
	switch err := o.checkStays(r, s, false); {
	case errors.Is(err, errRenewedSince):
		return nil // whoever did that has the last word
	case err != nil:
		return err
	}
	left := o.handle(s).after(hash(s.Token(s.ctx)))
	left.held = ""
	s.Remove(s.ctx, o.namesName)
	s.Put(s.ctx, o.handleName, left.String())
	if isLeft(s) {
		err = s.again(s.Destroy)
	} else {
		err = s.again(s.RenewToken)
	}
	if err != nil {
		return unavailable("ganbauth: end session: %w", err)
	}
	return s.commit(w)
}

// isLeft reports whether a session has nothing in it but what logouts have left.
func isLeft(s session) bool {
	left := 0
	for _, h := range handles(s.ctx, s.SessionManager) {
		if h.held == "" {
			left++
		}
	}
	return left == len(s.Keys(s.ctx))
}

// again makes a call of the engine, and repeats it for a moment while it fails. A session that
// is renewed is deleted under its old name and then written under another: it is lost if
// either fails, and a deletion that has failed may have had its effect.
func (s session) again(call func(context.Context) error) error {
	err := call(s.ctx)
	for pause := minPause; err != nil && pause < time.Second && s.ctx.Err() == nil; pause *= 2 {
		time.Sleep(pause)
		err = call(s.ctx)
	}
	return err
}

// commit writes the session and its cookie. LoadAndSave, which does the same again at the
// end, may fail then.
func (s session) commit(w http.ResponseWriter) error {
	switch s.Status(s.ctx) {
	case scs.Modified:
		if !s.ours && isInMemory(s.Store) {
			return nil // it does not fail
		}
		var token string
		var expiry time.Time
		err := s.again(func(ctx context.Context) (err error) {
			token, expiry, err = s.Commit(ctx)
			return err
		})
		if err != nil {
			return unavailable("ganbauth: commit session: %w", err)
		}
		s.WriteSessionCookie(s.ctx, w, token, expiry)
	case scs.Destroyed:
		if s.ours {
			s.WriteSessionCookie(s.ctx, w, "", time.Time{})
		}
	}
	return nil
}
