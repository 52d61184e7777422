package ganbauth

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"
)

const (
	// callTimeout bounds one call of a store that hangs.
	callTimeout = 5 * time.Second
	// lockTimeout is longer than the longest lease, after which a dead holder's lock is
	// taken over.
	lockTimeout = 30 * time.Second
	// writeLockTimeout bounds the wait for a lock that is held for one look and one write.
	writeLockTimeout = 5 * time.Second
)

// records are the Store and the Locker as the keeper sees them. Every change is a compare
// and swap, every write is bounded and goes on when its request has gone, and no panic
// gets out.
type records struct {
	store        TokenStore
	prompt       prompt       // the store, if its calls may end with their context; else nil
	swapper      Swapper      // nil: the kit compares for itself
	locker       Locker       // nil: there is none
	recordLocker RecordLocker // the store, if its lock brings the record; else nil
	lockerApart  bool         // the locker is not the store
	sealed       bool         // there are encryption keys
	observer

	writing keyedMutex // in place of a swapper, in this process
}

// comparer is the default store: it compares and writes with one look, not atomically, and
// its marks end by themselves.
type comparer interface {
	compareAndWrite(ctx context.Context, key string, old, new *Token) error
}

// isPrompt reports whether the store's calls end with their context. It asks each time: an
// application may set sessions.Store late.
func (r *records) isPrompt(ctx context.Context) (yes bool) {
	if r.prompt == nil {
		return false
	}
	_ = r.safely(ctx, func() error { yes = r.prompt.EndsWithContext(); return nil })
	return yes
}

var errNotLocked = errors.New("ganbauth: the Locker failed")

// isUnreadable reports whether err means that a record is there, and that neither time nor
// another try makes it readable: no key opens it, or it is of another version.
func isUnreadable(err error) bool { return errors.Is(err, errSealed) || errors.Is(err, errCorrupt) }

// load returns the record under key, or nil if there is none.
func (r *records) load(ctx context.Context, key string) (t *Token, err error) {
	if r.isPrompt(ctx) {
		err = r.safely(ctx, func() (err error) {
			t, err = r.store.Load(ctx, key)
			return err
		})
	} else {
		t, err = await(ctx, r, false, callTimeout, func(ctx context.Context) (*Token, error) {
			return r.store.Load(ctx, key)
		}, nil)
	}
	switch {
	case errors.Is(err, ErrTokenNotFound):
		return nil, nil
	case err != nil:
		return nil, unavailable("ganbauth: load token: %w", err)
	case t != nil && !r.sealed && strings.HasPrefix(t.AccessToken, sealedPrefix):
		return nil, unavailable("ganbauth: load token: %w", errSealed)
	}
	return t, nil
}

// swap replaces old by new under key, where nil is no record. Its errors are ErrSuperseded
// and those after which nobody knows whether it happened.
func (r *records) swap(ctx context.Context, key string, old, new *Token) error {
	if r.swapper != nil {
		return r.change(ctx, "change token", func(ctx context.Context) error {
			return r.swapper.Swap(ctx, key, old, new)
		})
	}
	_, err := await(ctx, r, r.isPrompt(ctx), writeLockTimeout+callTimeout, func(ctx context.Context) (struct{}, error) {
		unlock, err := r.lockWrites(ctx, key)
		if err != nil {
			return struct{}{}, err
		}
		defer unlock()
		return struct{}{}, r.compareAndWrite(ctx, key, old, new)
	}, nil)
	return notDone("change token", err)
}

// compareAndWrite is swap for a store of three methods, below the write lock.
func (r *records) compareAndWrite(ctx context.Context, key string, old, new *Token) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if own, ok := r.store.(comparer); ok {
		return own.compareAndWrite(ctx, key, old, new)
	}
	cur, err := r.store.Load(ctx, key)
	switch {
	case errors.Is(err, ErrTokenNotFound):
		cur = nil
	case err != nil:
		return err
	}
	switch {
	case cur.Fingerprint() != old.Fingerprint():
		return ErrSuperseded
	case new == nil:
		return r.store.Delete(ctx, key)
	}
	copied := *new // the store keeps what it is given
	return r.store.Save(ctx, key, &copied)
}

// probe proves that a store of three methods takes writes, and looks whether t is still
// there. Without a Locker it must not write t itself: another process may have replaced t
// between the look and the write, and t would be back. So it writes a mark beside it.
func (r *records) probe(ctx context.Context, key string, t *Token) error {
	beside := nameBeside(key, "probe")
	mark := &Token{Epoch: t.Epoch, IssuedAt: seconds(time.Now()), ExpiresAt: seconds(time.Now().Add(time.Minute))}
	err := r.change(ctx, "probe the store", func(ctx context.Context) error { return r.store.Save(ctx, beside, mark) })
	if err != nil {
		return err
	}
	if _, ends := r.store.(comparer); !ends {
		_ = r.delete(ctx, beside) // it was not needed for the proof
	}
	cur, err := r.load(ctx, key)
	if err == nil && cur.Fingerprint() != t.Fingerprint() {
		return ErrSuperseded
	}
	return err
}

// nameBeside returns a name that goes with a store key, and is no longer than one. A store
// key has no two slashes in a row, so the name is no key's.
func nameBeside(key, what string) string {
	if name := key + "//" + what; len(name) <= maxKey {
		return name
	}
	kit, _, _ := strings.Cut(key, "/")
	return kit + "//" + what + "/" + hash(key)
}

// lockWrites takes the lock that is held for one look and one write: in this process, then
// across processes. A Locker that is slow to unlock holds up the next writer only.
func (r *records) lockWrites(ctx context.Context, key string) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, writeLockTimeout)
	defer cancel()
	leave, err := r.writing.lock(ctx, key)
	if err != nil {
		return nil, unavailable("ganbauth: lock: %w", err)
	}
	if r.locker == nil {
		return leave, nil
	}
	unlock, err := r.lock(ctx, nameBeside(key, "write"))
	if err != nil {
		leave()
		return nil, err
	}
	return func() { shortly(unlock); leave() }, nil
}

// delete removes whatever is under key. It is for a record that cannot be read, and so not
// be compared, and for a logout while the Locker is away.
func (r *records) delete(ctx context.Context, key string) error {
	return r.change(ctx, "delete token", func(ctx context.Context) error {
		return r.store.Delete(ctx, key)
	})
}

// claim takes the lock on key for a refresh of t. It is the second look and the proof that
// the store takes writes of this record: ErrSuperseded means that another one is there.
func (r *records) claim(ctx context.Context, key string, t *Token) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockTimeout)
	defer cancel()
	switch {
	case r.recordLocker != nil:
		var found string
		found, unlock, err = r.hold(ctx, func(ctx context.Context) (string, func(), error) {
			return r.recordLocker.LockRecord(ctx, key)
		})
		if err == nil && found != t.Fingerprint() {
			err = ErrSuperseded
		}
	case r.locker != nil:
		if unlock, err = r.lock(ctx, key); err == nil {
			err = r.swap(ctx, key, t, t)
		}
	case r.swapper != nil:
		err = r.swap(ctx, key, t, t)
	default:
		err = r.probe(ctx, key, t)
	}
	if err != nil && unlock != nil {
		shortly(unlock)
	}
	return unlock, err
}

// lock takes the Locker's lock on name.
func (r *records) lock(ctx context.Context, name string) (unlock func(), err error) {
	_, unlock, err = r.hold(ctx, func(ctx context.Context) (string, func(), error) {
		unlock, err := r.locker.Lock(ctx, name)
		return "", unlock, err
	})
	return unlock, err
}

// hold takes a lock, and returns what came with it. The unlock that it returns cannot
// panic.
func (r *records) hold(ctx context.Context, take func(context.Context) (string, func(), error)) (found string, unlock func(), err error) {
	type lock struct {
		found  string
		unlock func()
	}
	release := func(l lock) {
		if l.unlock != nil {
			_ = r.safely(ctx, func() error { l.unlock(); return nil })
		}
	}
	l, err := await(ctx, r, !r.lockerApart && r.isPrompt(ctx), lockTimeout, func(ctx context.Context) (l lock, err error) {
		l.found, l.unlock, err = take(ctx)
		return l, err
	}, release)
	if err != nil {
		return "", nil, unavailable("%w: %w", errNotLocked, err)
	}
	return l.found, func() { release(l) }, nil
}

// change makes a call of the Store that writes.
func (r *records) change(ctx context.Context, what string, call func(context.Context) error) error {
	_, err := await(ctx, r, r.isPrompt(ctx), callTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, call(ctx)
	}, nil)
	return notDone(what, err)
}

// notDone names the call whose error it is. Nobody knows whether the call had its effect, but
// for an ErrSuperseded.
func notDone(what string, err error) error {
	if err == nil {
		return nil
	}
	return unavailable("ganbauth: %s: %w", what, err)
}

// await makes a call of the Store or the Locker and waits for it: until ctx ends, and for
// limit at most, whatever the call does. The call itself is not cut off when a request
// leaves, which would cost some drivers their connection. Its context ends after limit,
// or with the deadline of ctx. What it returns when nobody waits any more goes to late,
// unless that is nil. A prompt call ends with its context, and needs no goroutine to be
// left in.
func await[V any](ctx context.Context, r *records, prompt bool, limit time.Duration, call func(context.Context) (V, error), late func(V)) (V, error) {
	type outcome struct {
		value V
		err   error
	}
	run := func(ctx context.Context) (o outcome) {
		o.err = r.safely(ctx, func() (err error) {
			o.value, err = call(ctx)
			return err
		})
		return o
	}
	if prompt {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		o := run(ctx)
		return o.value, o.err
	}
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	inner, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	done, left := make(chan outcome), make(chan struct{})
	go func() {
		defer cancel()
		o := run(inner)
		select {
		case done <- o:
		case <-left:
			if late != nil {
				late(o.value)
			}
		}
	}()
	var zero V
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		close(left)
		return zero, ctx.Err()
	case <-inner.Done():
		close(left)
		return zero, inner.Err()
	}
}

// safely calls the application's Store or Locker, whose panic becomes an error and a line
// in the log.
func (r *records) safely(ctx context.Context, call func() error) error {
	err := safely(call)
	if p, ok := err.(*panicError); ok {
		r.say(ctx, slog.LevelError, "ganbauth: the Store or the Locker panicked", "panic", p.text(), "stack", string(p.stack))
	}
	return err
}
