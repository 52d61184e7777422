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
	store   TokenStore
	swapper Swapper      // nil: the kit compares for itself
	locker  Locker       // nil: there is none
	both    RecordLocker // the store, if its lock brings the record; else nil
	sealed  bool         // there are encryption keys
	observer

	writing keyedMutex // in place of a swapper, in this process
}

// comparer is the default store: it compares and writes with one look, not atomically, and
// its marks end by themselves.
type comparer interface {
	compareAndWrite(ctx context.Context, key string, old, new *Token) error
}

var errNotLocked = errors.New("ganbauth: the Locker failed")

// load returns the record under key, or nil if there is none.
func (r *records) load(ctx context.Context, key string) (t *Token, err error) {
	err = r.safely(ctx, func() (err error) {
		t, err = r.store.Load(ctx, key)
		return err
	})
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
	ctx = context.WithoutCancel(ctx)
	if r.swapper != nil {
		return r.bounded(ctx, "change token", func(ctx context.Context) error {
			return r.swapper.Swap(ctx, key, old, new)
		})
	}
	unlock, err := r.lockWrites(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	return r.compareAndWrite(ctx, key, old, new)
}

// compareAndWrite is swap for a store of three methods, below the write lock.
func (r *records) compareAndWrite(ctx context.Context, key string, old, new *Token) error {
	return r.bounded(ctx, "change token", func(ctx context.Context) error {
		if own, ok := r.store.(comparer); ok {
			return own.compareAndWrite(ctx, key, old, new)
		}
		cur, err := r.load(ctx, key)
		switch {
		case err != nil:
			return err
		case cur.Fingerprint() != old.Fingerprint():
			return ErrSuperseded
		case new == nil:
			return r.store.Delete(ctx, key)
		}
		copied := *new // the store keeps what it is given
		return r.store.Save(ctx, key, &copied)
	})
}

// probe proves that a store of three methods takes writes, and looks whether t is still there.
// Without a Locker it must not write t itself: another process may have replaced t between the
// look and the write, and t would be back. So it writes a mark beside it.
func (r *records) probe(ctx context.Context, key string, t *Token) error {
	beside := key + "//probe"
	mark := &Token{Epoch: t.Epoch, IssuedAt: seconds(time.Now()), ExpiresAt: seconds(time.Now().Add(time.Minute))}
	err := r.bounded(ctx, "probe the store", func(ctx context.Context) error { return r.store.Save(ctx, beside, mark) })
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

// lockWrites takes the lock that is held for one look and one write: in this process, then
// across processes. A store key has no two slashes in a row, so the name is no key's.
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
	unlock, err := r.lock(ctx, key+"//write")
	if err != nil {
		leave()
		return nil, err
	}
	return func() { unlock(); leave() }, nil
}

// delete removes whatever is under key. It is for a record that cannot be read, and so not
// be compared, and for a logout while the Locker is away.
func (r *records) delete(ctx context.Context, key string) error {
	return r.bounded(context.WithoutCancel(ctx), "delete token", func(ctx context.Context) error {
		return r.store.Delete(ctx, key)
	})
}

// claim takes the lock on key for a refresh of t. It is the second look and the proof that
// the store takes writes of this record: ErrSuperseded means that another one is there.
func (r *records) claim(ctx context.Context, key string, t *Token) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockTimeout)
	defer cancel()
	switch {
	case r.both != nil:
		var found string
		unlock, err = r.hold(ctx, func() (unlock func(), err error) {
			found, unlock, err = r.both.LockRecord(ctx, key)
			return unlock, err
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
		unlock()
	}
	return unlock, err
}

// lock takes the Locker's lock on name.
func (r *records) lock(ctx context.Context, name string) (unlock func(), err error) {
	return r.hold(ctx, func() (func(), error) { return r.locker.Lock(ctx, name) })
}

// hold returns an unlock that cannot panic.
func (r *records) hold(ctx context.Context, take func() (func(), error)) (func(), error) {
	var unlock func()
	err := r.safely(ctx, func() (err error) {
		unlock, err = take()
		return err
	})
	if err != nil {
		return nil, unavailable("%w: %w", errNotLocked, err)
	}
	return func() {
		_ = r.safely(ctx, func() error { unlock(); return nil })
	}, nil
}

// bounded calls a store, for callTimeout at most.
func (r *records) bounded(ctx context.Context, what string, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := r.safely(ctx, func() error { return call(ctx) })
	if err == nil || errors.Is(err, ErrSuperseded) {
		return err
	}
	return unavailable("ganbauth: %s: %w", what, err)
}

// safely calls the application's Store or Locker, whose panic becomes an error and a line
// in the log.
func (r *records) safely(ctx context.Context, call func() error) error {
	err := safely(call)
	if p, ok := err.(*panicError); ok {
		r.say(ctx, slog.LevelError, "ganbauth: the Store or the Locker panicked", "panic", p.value, "stack", string(p.stack))
	}
	return err
}
