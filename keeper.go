package ganbauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	begun := time.Now()
	t, err := k.load(ctx, key)
	if err != nil || !k.due(t) {
		return t, err
	}
	return k.refresh(ctx, key, t, begun, "", k.due)
}

// replace returns another token than the one whose access token the bank's API has refused,
// or that same one if a refresh would not help.
func (k *keeper) replace(ctx context.Context, key, refused string) (*Token, error) {
	begun := time.Now()
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
	next, err := k.refresh(ctx, key, t, begun, refused, func(t *Token) bool { return k.due(t) || t.AccessToken == refused })
	if err == nil || errors.Is(err, errRefused) { // the bank may issue the refused one again
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
	if isUnreadable(err) {
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

// due reports whether t expires within the leeway. A share of the token's life bounds it,
// so that a token of five seconds is not refreshed on every request.
func (k *keeper) due(t *Token) bool {
	leeway := min(k.leeway, t.ExpiresAt.Sub(t.IssuedAt)/leewayShare)
	return time.Until(t.ExpiresAt) <= max(leeway, 0)
}

// refresh joins or begins the refresh of key. The caller has t, and has waited since
// begun. If refused is not empty, it is the access token that the bank's API has refused.
// While t serves, the caller gets t when the refresh fails or takes long. The function
// needed is asked about the record that the refresh finds.
func (k *keeper) refresh(ctx context.Context, key string, t *Token, begun time.Time, refused string, needed func(*Token) bool) (*Token, error) {
	serves := func() bool { return t.Valid() && t.AccessToken != refused }
	if t.RefreshToken == "" {
		if serves() {
			return t, nil
		}
		return nil, fmt.Errorf("%w: the token has expired and there is no refresh token", ErrLoginRequired)
	}
	if k.unsaved.get(key) != nil {
		return unstored(t)
	}
	wait := maxWait - time.Since(begun)
	if serves() {
		wait = min(wait, patience)
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

// unstored returns t, which is not to be spent before it is stored, while it is valid.
func unstored(t *Token) (*Token, error) {
	if t.Valid() {
		return t, nil
	}
	return nil, unavailable("ganbauth: the new token is not stored yet")
}

// refreshOrJoin is refresh without the fallback. An outcome that was decided before what
// the caller knows is not believed.
func (k *keeper) refreshOrJoin(ctx context.Context, key string, t *Token, refused string, needed func(*Token) bool) (*Token, error) {
	for range 3 {
		if err := cmp.Or(k.coolDowns.check(key), k.guard.check()); err != nil {
			return nil, err
		}
		next, err := k.fly(ctx, key, t, needed, !t.Valid() || t.AccessToken == refused)
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

// fly joins or begins the flight that refreshes t. Unless it is patient it does not wait
// for its turn at the bank. No user waits for a probe.
func (k *keeper) fly(ctx context.Context, key string, t *Token, needed func(*Token) bool, patient bool) (*Token, error) {
	var turn *turn
	spent := *t // the caller goes on with t, and may change it
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	next, err := k.refreshes.do(ctx, key, func(ctx context.Context) (leave func(), err error) {
		if turn, err = k.guard.enter(ctx, key, forUser, patient); err != nil {
			return nil, err
		}
		if turn.probe {
			stop()
		}
		return turn.leave, nil
	}, func(ctx context.Context) (*Token, func(), error) {
		return k.refreshing(key, &spent, needed, turn)(ctx)
	})
	switch {
	case err != nil && turn != nil && turn.probe:
		return nil, cmp.Or(k.guard.check(), err)
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, k.guard.notYet(key, err)
	}
	return next, err
}

// end ends a connection that has no refresh token and whose access token the bank's API has
// refused.
func (k *keeper) end(ctx context.Context, key string, t *Token) (*Token, error) {
	return k.refreshes.do(ctx, key, nil, func(ctx context.Context) (*Token, func(), error) {
		next, rest, err := refresh{keeper: k, key: key, old: t, begun: time.Now()}.lose(ctx, errRefused, nil)
		if errors.Is(err, ErrSuperseded) {
			next, err = k.load(ctx, key)
		}
		return next, rest, err
	})
}

// unsaved are the places of tokens that are on their way from the bank to the store. A
// token that the store has not taken yet is served from here.
type unsaved struct {
	mu sync.RWMutex
	m  map[string][]*place // by key, in the order in which they began
}

// place is kept for the token of a refresh or a login that is under way.
type place struct {
	in   *unsaved
	key  string
	done chan struct{} // closed when nobody holds the place any more

	// Guarded by in.mu.
	holds int
	token *Token // to serve; nil while there is none
	taken bool   // the user has logged out since, or in
}

// begin keeps a place for a token. Its holder leaves at the end.
func (u *unsaved) begin(key string) *place {
	p := &place{in: u, key: key, done: make(chan struct{}), holds: 1}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m == nil {
		u.m = map[string][]*place{}
	}
	u.m[key] = append(u.m[key], p)
	return p
}

// serve has the token served until drop. Its caller then holds the place once more. It
// returns false if the place is taken.
func (p *place) serve(t *Token) bool {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.taken {
		return false
	}
	p.token = t
	p.holds++
	return true
}

func (p *place) isTaken() bool {
	p.in.mu.RLock()
	defer p.in.mu.RUnlock()
	return p.taken
}

// drop ends serve: the token is stored, or another record is there.
func (p *place) drop() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.token = nil
}

// leave gives the place up. It is gone when nobody holds it.
func (p *place) leave() {
	u := p.in
	u.mu.Lock()
	defer u.mu.Unlock()
	if p.holds--; p.holds > 0 {
		return
	}
	close(p.done)
	u.m[p.key] = slices.DeleteFunc(u.m[p.key], func(other *place) bool { return other == p })
	if len(u.m[p.key]) == 0 {
		delete(u.m, p.key)
	}
	if len(u.m) == 0 {
		u.m = nil // a map does not shrink
	}
}

// get returns the token to serve, or nil.
func (u *unsaved) get(key string) *Token {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for _, p := range slices.Backward(u.m[key]) {
		if p.token != nil {
			t := *p.token
			return &t
		}
	}
	return nil
}

// take is called when the user has logged out, or in: what was under way before is not
// served any more. The exception is the place of that login, nil for a logout.
func (u *unsaved) take(key string, except *place) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.m[key] {
		if p != except {
			p.taken, p.token = true, nil
		}
	}
}

// wait returns when the tokens that are unsaved now are stored or dropped.
func (u *unsaved) wait(ctx context.Context) error {
	u.mu.RLock()
	var left []chan struct{}
	for _, places := range u.m {
		for _, p := range places {
			if p.token != nil {
				left = append(left, p.done)
			}
		}
	}
	u.mu.RUnlock()
	return waitForAll(ctx, left)
}
