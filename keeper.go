package ganbauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// patience is how long a request waits for a refresh while its token still serves.
	patience = 3 * time.Second

	// fresh is how long a token that replaced one that the API had refused is not replaced
	// for the same reason: the next one would be refused, too. A token without a refresh
	// token, which such a refusal ends, must be older than that.
	fresh = time.Minute
)

// keeper keeps tokens live. It runs at most one refresh per key, however many requests ask,
// and every change that it makes says what it replaces. docs/architecture.md has the
// protocol.
//
// This file decides who gets which token; protocol.go has the steps that change a record.
type keeper struct {
	connector *Connector
	records   *records
	leeway    time.Duration
	guard     *guard
	observer

	refreshes   flights[*Token]
	coolDowns   coolDowns
	refusals    coolDowns // of access tokens by the API
	unsaved     unsaved
	raceWarning sync.Once
}

// live returns key's token, refreshed if it is about to expire.
func (k *keeper) live(ctx context.Context, key string) (*Token, error) {
	t, err := k.load(ctx, key)
	if err != nil || !k.due(t) {
		return t, err
	}
	return k.refresh(ctx, key, t, "", k.due)
}

// replace returns another token than the one whose access token the bank's API has refused,
// or that same one if a refresh would not help.
func (k *keeper) replace(ctx context.Context, key, refused string) (*Token, error) {
	t, err := k.load(ctx, key)
	if err != nil {
		return nil, err
	}
	if t.AccessToken != refused && !k.due(t) {
		return t, nil // it has been replaced already
	}
	if t.AccessToken == refused && k.refusals.check(key) != nil {
		return t, nil // it is the one that was to help
	}
	if t.AccessToken == refused && t.RefreshToken == "" {
		if age := time.Since(t.IssuedAt); age < fresh && age > -fresh {
			return t, nil
		}
		return k.end(ctx, key, t)
	}
	next, err := k.refresh(ctx, key, t, refused, func(t *Token) bool { return k.due(t) || t.AccessToken == refused })
	if err == nil {
		_ = k.refusals.begin(key, errRefused, fresh)
	}
	return next, err
}

var errRefused = errors.New("ganbauth: the bank's API refuses the token")

// ahead refreshes t, for which it has a turn at the bank, if another flight does not.
func (k *keeper) ahead(ctx context.Context, key string, t *Token, needed func(*Token) bool, turn *turn) (*Token, error) {
	used := false
	next, err := k.refreshes.do(ctx, key, func(context.Context) (leave func(), err error) {
		used = true
		return turn.leave, nil
	}, k.refreshing(key, t, needed, turn))
	if !used {
		turn.leave()
	}
	return next, err
}

// load returns key's token: the one that the store has, or a newer one that the store has
// not taken yet.
func (k *keeper) load(ctx context.Context, key string) (*Token, error) {
	t, err := k.look(ctx, key)
	if errors.Is(err, errSealed) {
		k.say(ctx, slog.LevelError, "ganbauth: a stored token cannot be read", "error", err)
	}
	return t, err
}

// look is load, and its errors are not logged.
func (k *keeper) look(ctx context.Context, key string) (*Token, error) {
	if t := k.unsaved.get(key); t != nil {
		return t, nil
	}
	t, err := k.records.load(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case !isToken(t):
		return nil, fmt.Errorf("%w: %w", ErrLoginRequired, ErrTokenNotFound)
	}
	return t, nil
}

func isToken(t *Token) bool { return t != nil && t.AccessToken != "" }

// leewayShare is the share of a token's life that the leeway takes at most, a quarter.
const leewayShare = 4

// due reports whether t expires within the leeway. A share of the token's life bounds it, so
// that a token of five seconds is not refreshed on every request.
func (k *keeper) due(t *Token) bool {
	leeway := min(k.leeway, t.ExpiresAt.Sub(t.IssuedAt)/leewayShare)
	return time.Until(t.ExpiresAt) <= max(leeway, 0)
}

// refresh joins or begins the refresh of key. The caller has t. If refused is not empty, it
// is the access token that the bank's API has refused. While t serves, the caller gets t
// when the refresh fails or takes long. The function needed is asked about the record that
// the refresh finds.
func (k *keeper) refresh(ctx context.Context, key string, t *Token, refused string, needed func(*Token) bool) (*Token, error) {
	serves := func() bool { return t.Valid() && t.AccessToken != refused }
	if t.RefreshToken == "" {
		if serves() {
			return t, nil
		}
		return nil, fmt.Errorf("%w: the token has expired and there is no refresh token", ErrLoginRequired)
	}
	if k.unsaved.get(key) != nil {
		if t.Valid() {
			return t, nil // not to be spent before it is stored
		}
		return nil, unavailable("ganbauth: the new token is not stored yet")
	}
	wait := maxWait
	if serves() {
		wait = patience
	}
	wait -= k.refreshes.age(key) // of a flight that hangs, not every request waits as long
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	next, err := k.refreshOrJoin(ctx, key, t, refused, needed)
	if err != nil && serves() && !errors.Is(err, ErrLoginRequired) {
		return t, nil
	}
	return next, err
}

// refreshOrJoin is refresh without the fallback. An outcome that was decided before what
// the caller knows is not believed.
func (k *keeper) refreshOrJoin(ctx context.Context, key string, t *Token, refused string, needed func(*Token) bool) (*Token, error) {
	for range 3 {
		if err := cmp.Or(k.coolDowns.check(key), k.guard.check()); err != nil {
			return nil, err
		}
		next, err := k.fly(ctx, key, t, needed, forUser, !t.Valid() || t.AccessToken == refused)
		switch {
		case err == nil && next.AccessToken != refused:
			own := *next // the flight's is everybody's
			return &own, nil
		case err != nil && !errors.Is(err, ErrLoginRequired):
			return nil, err
		}
		// The flight may have begun before the refusal, or before a login.
		cur, loadErr := k.load(ctx, key)
		if loadErr != nil {
			return nil, loadErr
		}
		if !needed(cur) {
			return cur, nil
		}
		if err != nil && cur.Fingerprint() == t.Fingerprint() {
			return nil, err
		}
		t = cur
	}
	return nil, unavailable("%w", errRefused)
}

// fly joins or begins the flight that refreshes t. Unless it is patient it does not wait for
// its turn at the bank. No user waits for a probe.
func (k *keeper) fly(ctx context.Context, key string, t *Token, needed func(*Token) bool, c class, patient bool) (*Token, error) {
	var turn *turn
	spent := *t // the caller goes on with t, and may change it
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	next, err := k.refreshes.do(ctx, key, func(ctx context.Context) (leave func(), err error) {
		if turn, err = k.guard.enter(ctx, key, c, patient); err != nil {
			return nil, err
		}
		if turn.probe && c == forUser {
			stop()
		}
		return turn.leave, nil
	}, func(ctx context.Context) (*Token, func(), error) {
		return k.refreshing(key, &spent, needed, turn)(ctx)
	})
	if err != nil && turn != nil && turn.probe {
		return nil, cmp.Or(k.guard.check(), err)
	}
	return next, err
}

// end ends a connection that has no refresh token and whose access token the bank's API has
// refused.
func (k *keeper) end(ctx context.Context, key string, t *Token) (*Token, error) {
	return k.refreshes.do(ctx, key, nil, func(ctx context.Context) (*Token, func(), error) {
		next, rest, err := refresh{k, key, t, nil, time.Now()}.lose(ctx, errRefused, nil)
		if errors.Is(err, ErrSuperseded) {
			next, err = k.load(ctx, key)
		}
		return next, rest, err
	})
}

// unsaved are the tokens that the bank has issued and the store has not taken yet. They are
// served from here meanwhile.
type unsaved struct {
	mu sync.RWMutex
	m  map[string]*unsavedToken
}

type unsavedToken struct {
	token *Token
	done  chan struct{} // closed when it is stored, or its place is taken
}

func (u *unsaved) get(key string) *Token {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if e := u.m[key]; e != nil {
		t := *e.token
		return &t
	}
	return nil
}

// add returns a function to call when the token is stored or its place is taken.
func (u *unsaved) add(key string, t *Token) (done func()) {
	e := &unsavedToken{t, make(chan struct{})}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m == nil {
		u.m = map[string]*unsavedToken{}
	}
	u.m[key] = e
	return func() {
		close(e.done)
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.m[key] == e {
			u.remove(key)
		}
	}
}

// drop has key's token not be served any more.
func (u *unsaved) drop(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remove(key)
}

func (u *unsaved) remove(key string) {
	delete(u.m, key)
	if len(u.m) == 0 {
		u.m = nil
	}
}

// wait returns when the tokens that are unsaved now are stored or dropped.
func (u *unsaved) wait(ctx context.Context) error {
	u.mu.RLock()
	waiting := make([]*unsavedToken, 0, len(u.m))
	for _, e := range u.m {
		waiting = append(waiting, e)
	}
	u.mu.RUnlock()
	for _, e := range waiting {
		select {
		case <-e.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
