package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
)

const maxKey = 1024

// session is the scs session of one request.
type session struct {
	*scs.SessionManager // nil in a Kit without sessions
	ctx                 context.Context
	ours                bool // no LoadAndSave stands above the kit, so that committing is the kit's
}

// session returns the session that LoadAndSave has loaded, or loads it. It never makes one in the store.
func (k *Kit) session(r *http.Request) (session, error) {
	if k.sessions == nil {
		return session{}, nil
	}
	ctx, err := k.sessions.Load(r.Context(), "") // returns the context as it is if a session is in it
	ours := ctx != r.Context()
	if err == nil && ours {
		if c, cookieErr := r.Cookie(k.sessions.Cookie.Name); cookieErr == nil {
			ctx, err = k.sessions.Load(r.Context(), c.Value)
		}
	}
	if err != nil {
		return session{}, unavailable("ganbauth: load session: %w", err)
	}
	return session{k.sessions, ctx, ours}, nil
}

// handle returns what a login has left in the session: the key of the token's record, never the token; and the hash of
// the session's own token before the login, by which the attempts of other tabs know it again. They are one value, as
// each costs every request.
func (s session) handle(k *Kit) (key, ancestor string) {
	return splitHandle(s.GetString(s.ctx, k.sessionKey))
}

func splitHandle(value string) (key, ancestor string) {
	key, ancestor, _ = strings.Cut(value, " ")
	return key, ancestor
}

// storeKey says under which key the store has the token of r, "" if r's session has none.
func (k *Kit) storeKey(r *http.Request) (string, error) {
	if k.key == nil {
		s, err := k.session(r)
		if err != nil {
			return "", err
		}
		key, _ := s.handle(k)
		return key, nil
	}
	key, err := k.key(r)
	switch {
	case errors.Is(err, ErrLoginRequired), err == nil && key == "":
		return "", ErrNoUser
	case err != nil:
		return "", &applicationError{fmt.Errorf("ganbauth: Key: %w", err)}
	case len(key) > maxKey:
		return "", fmt.Errorf("ganbauth: Key: longer than %d bytes", maxKey)
	}
	return k.named(key), nil
}

// named keeps the users of several kits apart in one store.
func (k *Kit) named(key string) string {
	if k == nil || k.name == "" {
		return key
	}
	return k.name + "/" + key
}

// owner says whose attempt a login will be: the key's, the session's, or anybody's in this browser who has none.
func (k *Kit) owner(r *http.Request) (string, error) {
	if k.key != nil {
		key, err := k.storeKey(r)
		return hash(key), err
	}
	s, err := k.session(r)
	if err != nil {
		return "", err
	}
	return hash(s.Token(s.ctx)), nil
}

// owns reports whether the user of r is who began a.
func (k *Kit) owns(r *http.Request, a *attempt) (bool, error) {
	if a.owner == "" {
		return true, nil
	}
	owner, err := k.owner(r)
	if errors.Is(err, ErrNoUser) {
		return false, nil
	}
	if err != nil || owner == a.owner || k.key != nil {
		return owner == a.owner, err
	}
	s, err := k.session(r)
	_, ancestor := s.handle(k)
	return err == nil && ancestor == a.owner, err
}

// newKey makes the key for a login: the user's own, or a fresh one for the session.
func (k *Kit) newKey(r *http.Request) (string, error) {
	if k.key != nil {
		return k.storeKey(r)
	}
	return newRecordKey(), nil
}

// attach gives the session the key of a login and renews its token, so that one that was planted before is
// worthless. What the session had before is deleted.
func (k *Kit) attach(w http.ResponseWriter, r *http.Request, key string, a *attempt) error {
	s, err := k.session(r)
	if err != nil || s.SessionManager == nil || k.key != nil && s.Token(s.ctx) == "" {
		return err
	}
	if err := s.RenewToken(s.ctx); err != nil {
		return unavailable("ganbauth: renew session: %w", err)
	}
	old := ""
	if k.key == nil {
		old, _ = s.handle(k)
		s.Put(s.ctx, k.sessionKey, strings.TrimSuffix(key+" "+a.owner, " "))
	}
	if err := s.commit(w); err != nil {
		return err
	}
	if old != "" && old != key {
		if err := k.keeper.drop(r.Context(), old); err != nil {
			k.log.ErrorContext(r.Context(), "ganbauth: the token of the login before could not be deleted", "error", err)
		}
	}
	return nil
}

// detach takes the key out of the session. A session with nothing else in it ends; another gets a new token.
func (k *Kit) detach(w http.ResponseWriter, r *http.Request) error {
	s, err := k.session(r)
	if err != nil || s.SessionManager == nil || !s.Exists(s.ctx, k.sessionKey) {
		return err
	}
	s.Remove(s.ctx, k.sessionKey)
	if len(s.Keys(s.ctx)) == 0 {
		err = s.Destroy(s.ctx)
	} else {
		err = s.RenewToken(s.ctx)
	}
	if err != nil {
		return unavailable("ganbauth: end session: %w", err)
	}
	return s.commit(w)
}

// commit does what LoadAndSave would, where there is none.
func (s session) commit(w http.ResponseWriter) error {
	if !s.ours {
		return nil
	}
	switch s.Status(s.ctx) {
	case scs.Modified:
		token, expiry, err := s.Commit(s.ctx)
		if err != nil {
			return unavailable("ganbauth: commit session: %w", err)
		}
		s.WriteSessionCookie(s.ctx, w, token, expiry)
	case scs.Destroyed:
		s.WriteSessionCookie(s.ctx, w, "", time.Time{})
	}
	return nil
}
