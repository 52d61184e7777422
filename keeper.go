package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	minCoolDown = time.Second
	maxCoolDown = time.Minute

	lockTimeout   = 30 * time.Second
	saveTimeout   = 30 * time.Second
	saveAttempt   = 5 * time.Second                             // of a store that hangs
	changeTimeout = lockTimeout + exchangeTimeout + saveTimeout // shorter than Locker's two minutes

	// How long a request waits for a refresh while its token still serves.
	patience = 3 * time.Second

	// Without a Locker, the process that won a refresh may not have saved it yet when the loser looks again.
	secondLook = time.Second
)

// keeper keeps the tokens live: one refresh per key, whoever asks, and every change of a key's record through one
// gate.
type keeper struct {
	connector *Connector
	store     TokenStore
	locker    Locker
	lister    ExpiryLister // nil if the store is none
	leeway    time.Duration
	observer  observer

	refreshes flights[Token]
	gate      keyedMutex
	coolDowns coolDowns
}

// live returns key's token, refreshed if it is about to end.
func (k *keeper) live(ctx context.Context, key string) (Token, error) {
	t, err := k.load(ctx, key)
	if err != nil || !k.due(t) {
		return t, err
	}
	return k.refresh(ctx, key, t, "")
}

// replace returns another token than the one whose access token the bank's API has refused.
func (k *keeper) replace(ctx context.Context, key, refused string) (Token, error) {
	t, err := k.load(ctx, key)
	if err != nil {
		return Token{}, err
	}
	if t.AccessToken != refused && !k.due(t) {
		return t, nil // somebody else has rotated it
	}
	return k.refresh(ctx, key, t, refused)
}

// load tells a token that is not there from a store that does not work.
func (k *keeper) load(ctx context.Context, key string) (Token, error) {
	t, err := load(ctx, k.store, key)
	switch {
	case errors.Is(err, ErrTokenNotFound):
		if errors.Is(err, errUnreadable) {
			k.observer.log.WarnContext(ctx, "ganbauth: a stored token cannot be read and counts as none", "error", err)
		}
		return Token{}, fmt.Errorf("%w: %w", ErrLoginRequired, err)
	case err != nil:
		return Token{}, unavailable("ganbauth: load token: %w", err)
	case t.AccessToken == "":
		return Token{}, fmt.Errorf("%w: the stored token is empty", ErrLoginRequired)
	}
	return t, nil
}

// due reports whether t ends within the leeway, which is at most a quarter of its life: a token of five seconds
// is not refreshed on every request.
func (k *keeper) due(t Token) bool {
	leeway := min(k.leeway, t.ExpiresAt.Sub(t.IssuedAt)/4)
	return time.Until(t.ExpiresAt) <= max(leeway, 0)
}

// refresh joins or begins the refresh of key. The token t is what the caller has; refused is its access token if
// the bank's API has refused it, and t serves on while nothing better is to be had if not.
func (k *keeper) refresh(ctx context.Context, key string, t Token, refused string) (Token, error) {
	usable := func() bool { return t.Valid() && t.AccessToken != refused }
	if t.RefreshToken == "" {
		if usable() {
			return t, nil
		}
		return Token{}, fmt.Errorf("%w: the token is past its expiry and there is no refresh token", ErrLoginRequired)
	}
	if usable() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for range 2 {
		if err := k.coolDowns.check(key); err != nil {
			if usable() {
				return t, nil
			}
			return Token{}, err
		}
		next, err := k.refreshes.do(ctx, key, func(ctx context.Context) (Token, error) {
			return k.refreshOnce(ctx, key, func(t Token) bool { return k.due(t) || t.AccessToken == refused })
		})
		switch {
		case err == nil && next.AccessToken == refused:
			continue // a refresh that began before the refusal and found nothing due
		case err == nil:
			return next, nil
		case errors.Is(err, ErrLoginRequired) || !usable():
			return Token{}, err
		}
		return t, nil
	}
	return Token{}, unavailable("ganbauth: the bank's API refuses the token")
}

// ahead refreshes key's token if it ends before that time, and reports whether it has.
func (k *keeper) ahead(ctx context.Context, key string, before time.Time) (refreshed bool, err error) {
	t, err := k.load(ctx, key)
	if err != nil || t.RefreshToken == "" || !t.ExpiresAt.Before(before) {
		return false, err
	}
	if err := k.coolDowns.check(key); err != nil {
		return false, err
	}
	next, err := k.refreshes.do(ctx, key, func(ctx context.Context) (Token, error) {
		return k.refreshOnce(ctx, key, func(t Token) bool { return t.ExpiresAt.Before(before) })
	})
	return err == nil && next.AccessToken != t.AccessToken, err
}

// refreshOnce runs in one goroutine per key, on a context that no request can cancel. The function needed is asked
// about the token again behind the gate.
func (k *keeper) refreshOnce(ctx context.Context, key string, needed func(Token) bool) (Token, error) {
	unlock, err := k.lock(ctx, key)
	if err != nil {
		return Token{}, err
	}
	defer unlock()
	// Between the caller's look and the lock, another flight or another process may have done it.
	old, err := k.load(ctx, key)
	if err != nil || !needed(old) {
		return old, err
	}
	if old.RefreshToken == "" {
		return Token{}, fmt.Errorf("%w: there is no refresh token", ErrLoginRequired)
	}
	start := time.Now()
	t, err := k.connector.renew(ctx, &old)
	if err != nil {
		return k.refreshFailed(ctx, key, old, err, start)
	}
	k.coolDowns.clear(key)
	switch err := k.save(ctx, key, t); {
	case errors.Is(err, ErrSuperseded):
		return k.load(ctx, key)
	case err != nil:
		k.observer.event(ctx, EventRefreshFailed, start, err)
		return *t, nil // the old one is dead: those who wait are served, and the log is loud
	}
	k.observer.event(ctx, EventTokenRefreshed, start, nil)
	return *t, nil
}

// refreshFailed decides what a failed refresh means: the end of the connection only when the bank says that the
// grant is dead and nobody else has rotated the token.
func (k *keeper) refreshFailed(ctx context.Context, key string, old Token, err error, start time.Time) (Token, error) {
	var e *TokenError
	isTokenError := errors.As(err, &e)
	if !(isTokenError && e.grantLost()) && !errors.Is(err, ErrInvalidIDToken) {
		var hint time.Duration
		if isTokenError {
			hint = e.RetryAfter
		}
		k.observer.event(ctx, EventRefreshFailed, start, err)
		return Token{}, k.coolDowns.begin(key, err, hint)
	}
	if isTokenError {
		t, ok, err := k.rotatedByOther(ctx, key, old)
		if ok || err != nil {
			return t, err
		}
	}
	k.observer.event(ctx, EventTokenLost, start, err)
	if err := k.store.Delete(ctx, key); err != nil {
		k.observer.log.ErrorContext(ctx, "ganbauth: a dead token could not be deleted", "error", err)
	}
	return Token{}, fmt.Errorf("%w: %w", ErrLoginRequired, err)
}

// rotatedByOther looks again for a token that another process has put in old's place.
func (k *keeper) rotatedByOther(ctx context.Context, key string, old Token) (t Token, ok bool, err error) {
	deadline := time.Now().Add(secondLook)
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		t, err := k.load(ctx, key)
		if err != nil || t.RefreshToken != old.RefreshToken {
			return t, err == nil, err
		}
		if k.locker != nil || time.Now().Add(wait).After(deadline) {
			return Token{}, false, nil
		}
		time.Sleep(wait)
	}
}

// lock takes the gate of key: in this process, then across processes. The unlock ends what lock's ctx has begun.
func (k *keeper) lock(ctx context.Context, key string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	leave, err := k.gate.lock(ctx, key)
	if err == nil && k.locker != nil {
		var unlockOthers func()
		if unlockOthers, err = k.locker.Lock(ctx, key); err != nil {
			leave()
		} else {
			return func() { unlockOthers(); leave() }, nil
		}
	}
	if err != nil {
		return nil, unavailable("ganbauth: lock: %w", err)
	}
	return leave, nil
}

// save tries for a bounded time: a token that the bank has issued must not be lost to a hiccup of the store.
func (k *keeper) save(ctx context.Context, key string, t *Token) error {
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		attempt, done := context.WithTimeout(ctx, saveAttempt)
		err := k.store.Save(attempt, key, t)
		done()
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrSuperseded) {
			return unavailable("%w", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			err = fmt.Errorf("ganbauth: save token: %w", err)
			k.observer.log.ErrorContext(ctx, "ganbauth: a token could not be saved and will be lost", "error", err)
			return unavailable("%w", err)
		}
	}
}

// put saves the token of a login.
func (k *keeper) put(ctx context.Context, key string, t *Token) error {
	return k.change(ctx, key, func(ctx context.Context) error {
		k.coolDowns.clear(key)
		return k.save(ctx, key, t)
	})
}

// drop deletes key's token.
func (k *keeper) drop(ctx context.Context, key string) error {
	return k.change(ctx, key, func(ctx context.Context) error {
		k.coolDowns.clear(key)
		if err := k.store.Delete(ctx, key); err != nil {
			return unavailable("ganbauth: delete token: %w", err)
		}
		return nil
	})
}

// change runs fn behind the gate of key, whether or not the request that asked for it goes away.
func (k *keeper) change(ctx context.Context, key string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	unlock, err := k.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	return fn(ctx)
}
