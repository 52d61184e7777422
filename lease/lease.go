// Package lease makes a [ganbauth.Locker] out of any engine that has three statements:
// one that takes a lock, one that extends it, and one that gives it back.
//
//	locker := lease.New(engine, 0) // engine is yours, an [Engine]
//	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{Locker: locker, …})
//
// All stores of this repository lock with it.
//
// # How a lock is safe
//
// A lock is a random name, the holder, and a count of beats. While the process of the
// holder lives, it raises the count four times a lease. A waiter takes the lock over only
// after it has seen the same count for a whole lease, by its own clock, while the engine
// answered all along.
//
// The engine's clock never ends a lock. Locks that the engine ends by itself (SET NX PX
// in Redis, advisory locks of a session) end in an outage of the engine, when their
// holder may have a new token that it could not save yet. A process that took such a lock
// over would send the old refresh token once more, and a bank that detects reuse ends the
// connection.
//
// A lock does not end when an answer of the engine is lost. The next try of the same
// holder finds its own name and has the lock; a Lock that gives up releases its name.
//
// [ganbauth.Locker]: https://pkg.go.dev/github.com/ganbauth/ganbauth#Locker
package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync"
	"time"
)

// Hold is a lock as the engine keeps it. The zero Hold is a lock that nobody holds.
type Hold struct {
	// Holder is the name of the holder: 26 letters and digits. The last two are its lease in
	// seconds, and the others are random.
	Holder string
	// Beats counts how often the holder has extended the lock.
	Beats int64
}

// Engine keeps locks, each under a key of any content. Every change is one statement, or
// one step that cannot be interrupted; TryLock may read the hold in a statement that
// follows. Methods are called concurrently. They return an error when ctx ends; the
// Locker gives them three seconds at most, and Extend no more than a quarter of the
// lease.
//
// An error means that nobody knows whether the change has happened. The same statement
// may be sent again, by the Locker or by the engine's own client.
type Engine interface {
	// TryLock gives the lock on key to holder, with 0 beats, if nobody holds it, if holder
	// holds it already, or if what holds it equals dead. It returns the hold that is there
	// afterwards: its Holder is holder exactly if the lock was taken. It must fail where
	// Extend would, also if somebody else holds the lock: an engine that answers reads and
	// refuses writes would show a holder that stands still, and lives.
	TryLock(ctx context.Context, key, holder string, dead Hold) (Hold, error)
	// Extend adds one to the beats of the lock on key, if holder holds it.
	Extend(ctx context.Context, key, holder string) error
	// Unlock ends the lock on key, if holder holds it.
	Unlock(ctx context.Context, key, holder string) error
}

// Rester is an optional interface of an [Engine] that keeps connections for Extend alone.
// Such connections make a lock independent of a pool that the application may use up.
type Rester interface {
	// Rest is called when this process holds no lock any more. Extend may be called again
	// later, also before Rest returns.
	Rest()
}

// ErrHeld is what [Locker.Lock] returns, beside the error of its context, if somebody else
// held the lock until the context ended, and the engine was heard to say so.
var ErrHeld = errors.New("lease: somebody else holds the lock")

var errNoAnswer = errors.New("the engine does not answer")

const (
	minLease     = time.Second
	defaultLease = 10 * time.Second
	maxLease     = 20 * time.Second // ganbauth waits for a lock for 30

	beatsPerLease = 4

	// How long one statement may take. A beat also ends with the interval of beats, so that
	// one that hangs loses no lock.
	callTimeout = 3 * time.Second

	// How often a waiter asks: soon at first, then regularly.
	minPause = 5 * time.Millisecond
	maxPause = 100 * time.Millisecond

	// How many statements of a kind are under way at the same time. A beat that is not
	// answered in a thousandth of a lease gives up its place: a thousand that hang, which is
	// about as many as ganbauth makes, hold up the others for an eighth of a lease.
	maxBusy          = 8
	patiencePerLease = 1000
)

// Locker takes locks in one engine on behalf of this process. It is a ganbauth.Locker and
// safe for concurrent use. While it holds a lock, one goroutine extends all of its locks.
type Locker struct {
	engine Engine
	lease  time.Duration

	// Places for statements that are under way: beats, and releases of names.
	beats, releases chan struct{}

	mu      sync.Mutex
	holds   map[*hold]struct{}
	changed chan struct{} // of capacity 1, while the loop runs; else nil
}

// hold is a lock of this process, or a name that may have a lock and must not.
type hold struct {
	key, holder string
	due         time.Time // when it is extended or released next
	busy        bool      // it is being extended or released, or waits for that

	// If the name is to be released: until when that is tried, and whether it has been done
	// once.
	end      time.Time
	released bool
}

// New returns a Locker that uses engine. The lease is how long a lock outlives a process
// that has died: one to twenty seconds, ten if it is 0. It must be longer than the
// engine's client takes to connect again, and than four answers of the engine take. If
// processes have different leases, a lock outlives its process for the longer one of the
// process that has died and the one that waits.
func New(engine Engine, lease time.Duration) *Locker {
	if lease == 0 {
		lease = defaultLease
	}
	return &Locker{
		engine:   engine,
		lease:    min(max(lease, minLease), maxLease),
		beats:    make(chan struct{}, maxBusy),
		releases: make(chan struct{}, maxBusy),
		holds:    map[*hold]struct{}{},
	}
}

// Lock waits for the lock on key, or for ctx. It takes over the lock of a process that
// has died, if it may wait for longer than a lease. The caller calls unlock once; further
// calls do nothing.
//
// The error matches [ErrHeld] and the error of ctx if somebody held the lock until ctx
// ended. If the engine fails, Lock returns its error at once. If the engine hangs, the
// error matches neither ErrHeld nor context.DeadlineExceeded, so that it cannot be taken
// for a lock that somebody holds.
func (l *Locker) Lock(ctx context.Context, key string) (unlock func(), err error) {
	return l.LockWith(ctx, key, func(ctx context.Context, holder string, dead Hold) (Hold, error) {
		return l.engine.TryLock(ctx, key, holder, dead)
	})
}

// Try is [Engine.TryLock] on one key.
type Try func(ctx context.Context, holder string, dead Hold) (Hold, error)

// LockWith is Lock with try in place of the engine's TryLock. It is for stores whose
// statement returns more than the hold: the record under the same key, for example. What
// the last call of try has returned is what was there when the lock was taken.
func (l *Locker) LockWith(ctx context.Context, key string, try Try) (unlock func(), err error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("lease: lock: %w", ctx.Err())
	}
	var (
		holder = newHolder(l.lease)
		watch  = watch{lease: l.lease}
	)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		asked := time.Now()
		held, err := try.bounded(ctx, holder, watch.dead)
		if err != nil {
			l.release(key, holder)
			return nil, failure(ctx, err, watch.answered)
		}
		if held.Holder == holder {
			firstBeat := l.interval() / 2 * 3 // at the latest
			if time.Since(asked)+firstBeat < l.lease {
				return l.hold(key, holder), nil
			}
			continue // this process was paused, and the lock is or will be somebody else's
		}
		watch.see(held, asked, time.Now())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrHeld, ctx.Err())
		}
	}
}

// newHolder returns the name of a new holder, whose waiters have to know its lease.
func newHolder(lease time.Duration) string {
	return fmt.Sprintf("%s%02d", rand.Text()[:24], (lease+time.Second-1)/time.Second)
}

// leaseOf returns the lease of a holder, or 0 if its name does not say.
func leaseOf(holder string) time.Duration {
	seconds, _ := strconv.ParseUint(holder[max(0, len(holder)-2):], 10, 8)
	return min(time.Duration(seconds)*time.Second, maxLease)
}

// bounded calls try, for as long as one statement may take.
func (try Try) bounded(ctx context.Context, holder string, dead Hold) (Hold, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return try(ctx, holder, dead)
}

// failure is what Lock returns when a statement has failed with err. An engine that
// answered until ctx ended is well: the lock is held.
func failure(ctx context.Context, err error, answered time.Time) error {
	switch {
	case ctx.Err() != nil && time.Since(answered) < callTimeout:
		return fmt.Errorf("%w: %w", ErrHeld, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("lease: lock: %w: %v", errNoAnswer, err)
	}
	return fmt.Errorf("lease: lock: %w", err)
}

// watch is what a waiter has seen of the lock of somebody else.
type watch struct {
	lease    time.Duration
	seen     Hold
	since    time.Time     // when seen was seen first
	answered time.Time     // when the engine answered last
	quickest time.Duration // how long it takes to answer
	dead     Hold          // what has not changed for a lease
}

// see is told what the engine answered now, and when it was asked.
func (w *watch) see(held Hold, asked, now time.Time) {
	if took := now.Sub(asked); w.answered.IsZero() || took < w.quickest {
		w.quickest = took
	}
	// If the engine or this process was paused, the holder may have been paused too: watch
	// again from the start. That the engine is far is no pause, unless no beat would be
	// answered in its time.
	beat := w.lease / beatsPerLease
	paused := now.Sub(w.answered)-min(w.quickest, beat) > beat
	w.answered = now
	if held != w.seen || paused {
		w.seen, w.since = held, now
	} else if asked.Sub(w.since) > max(w.lease, leaseOf(held.Holder)) {
		w.dead = held
	}
}

// hold extends the lock on key until unlock. A lock that lives for a fraction of a lease,
// as that of an ordinary refresh does, is never extended.
func (l *Locker) hold(key, holder string) (unlock func()) {
	h := &hold{key: key, holder: holder, due: time.Now().Add(l.interval() / 2)}
	l.add(h)
	return sync.OnceFunc(func() {
		l.remove(h)
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		if err := l.engine.Unlock(ctx, key, holder); err != nil {
			l.release(key, holder)
		}
	})
}

// release ends the lock that holder may have, in the background: whether the statement that
// failed has happened is not known. After a lease others take the lock over anyway.
func (l *Locker) release(key, holder string) {
	now := time.Now()
	l.add(&hold{key: key, holder: holder, due: now, end: now.Add(l.lease)})
}

// interval is how often a lock is extended.
func (l *Locker) interval() time.Duration { return l.lease / beatsPerLease }

// add has the loop extend h, and starts the loop if there is none.
func (l *Locker) add(h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds[h] = struct{}{}
	if l.changed == nil {
		l.changed = make(chan struct{}, 1)
		go l.loop(l.changed)
	}
	if !h.end.IsZero() {
		l.wake()
	}
}

func (l *Locker) remove(h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(h)
}

// wake has the loop look at the holds before its time. The caller holds l.mu.
func (l *Locker) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// loop extends the locks of this process and releases names, until there are none. It waits
// for no statement: one that hangs must not keep others from being sent.
func (l *Locker) loop(changed <-chan struct{}) {
	var busy sync.WaitGroup
	ticker := time.NewTicker(l.interval())
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-changed:
		}
		due, done := l.due(time.Now())
		if done {
			break
		}
		for _, h := range due {
			busy.Go(func() { l.queue(h) })
		}
	}
	busy.Wait()
	if r, ok := l.engine.(Rester); ok && l.idle() {
		_ = guarded(func() error { r.Rest(); return nil })
	}
}

// idle reports whether no other loop has begun, which sees to Rest itself.
func (l *Locker) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed == nil
}

// due returns the holds whose time has come. What is still under way since the last time is
// left alone: a statement that hangs does not pile up. If there are no holds, the loop is
// done, and the next hold begins another.
func (l *Locker) due(now time.Time) (due []*hold, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.holds {
		if !h.busy && !now.Before(h.due) {
			h.busy = true
			due = append(due, h)
		}
	}
	if len(l.holds) == 0 {
		l.changed = nil
	}
	return due, len(l.holds) == 0
}

// queue serves h when there is a place. A healthy lock does not wait for releases, which
// hang when the application has used up its pool, and not for long for beats that hang, as
// those of one node of a Cluster may.
func (l *Locker) queue(h *hold) {
	places := l.beats
	if !h.end.IsZero() {
		places = l.releases
	}
	places <- struct{}{}
	leave := sync.OnceFunc(func() { <-places })
	defer leave()
	if h.end.IsZero() {
		defer time.AfterFunc(l.lease/patiencePerLease, leave).Stop()
	}
	if l.wants(h) {
		l.serve(h)
	}
}

// wants reports whether h is still to be extended or released: it may have waited for long.
func (l *Locker) wants(h *hold) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !h.end.IsZero() && time.Now().After(h.end) {
		l.drop(h)
	}
	_, ok := l.holds[h]
	return ok
}

// drop forgets h. The caller holds l.mu.
func (l *Locker) drop(h *hold) {
	delete(l.holds, h)
	if len(l.holds) == 0 {
		l.wake()
	}
}

// serve extends a lock or releases a name. A failure is not the end: the next tick may find
// the engine well again, and what was not answered is sent again at once. A name is released
// twice, as the engine may get the statement that took the lock after the one that released
// it.
func (l *Locker) serve(h *hold) {
	statement, timeout := l.engine.Extend, min(callTimeout, l.interval())
	if !h.end.IsZero() {
		statement, timeout = l.engine.Unlock, callTimeout
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := errNoAnswer // where the engine ends this goroutine
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !h.end.IsZero() && err == nil && h.released {
			l.drop(h)
			return
		}
		h.released = h.released || err == nil
		h.busy, h.due = false, begun.Add(l.interval()/2)
		if ctx.Err() != nil {
			l.wake()
		}
	}()
	err = guarded(func() error { return statement(ctx, h.key, h.holder) })
}

// maxApart is how long a beat waits for a connection of its own, and for its answer.
const maxApart = time.Second

// Extend is for an [Engine] whose Extend has connections of its own, because the application
// may use up its pool just when its refreshes take long. It calls apart, which has half of
// the time that ctx has left, and a second at most. If that fails, as where no other
// connection is to be had, or one has to be waited for, it calls shared, over the
// application's pool. It returns the error of the last call.
func Extend(ctx context.Context, apart, shared func(context.Context) error) error {
	wait := maxApart
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)/2)
	}
	short, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := apart(short); err == nil || ctx.Err() != nil {
		return err
	}
	return shared(ctx)
}

// guarded turns a panic of the engine into an error: here it would end the process.
func guarded(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			slog.Error("ganbauth: a lock's engine panicked", "error", err, "stack", string(debug.Stack()))
		}
	}()
	return fn()
}
