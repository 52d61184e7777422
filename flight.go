package ganbauth

import (
	"cmp"
	"context"
	"runtime/debug"
	"sync"
	"time"
)

// grace is how long an answer waits for what belongs to it but must not hold it up: the
// application's hooks, and an unlock.
const grace = 100 * time.Millisecond

// flights is a singleflight with four differences: a call outlives the request that began
// it, each waiter leaves with its own context, an outcome can be remembered for a while,
// and what is left to do after an outcome is known does not hold up those who wait for it.
type flights[V any] struct {
	// keep returns how long an outcome is remembered. Nil means not at all.
	keep func(V, error) time.Duration
	// most is how many flights there may be for one that has failed to be remembered.
	most int
	// forgotten is told of a value that is not remembered any more, or that was refused
	// before anybody had it. It may be nil.
	forgotten func(value V, refused bool)

	mu     sync.Mutex
	m      map[string]*flight[V]   // to join
	active map[*flight[V]]struct{} // until nothing is left to do
}

type flight[V any] struct {
	begun   time.Time     // zero while its first request waits to be admitted
	over    bool          // that request was not admitted, or has left: another may begin it
	done    chan struct{} // closed when value and err are there, or over
	rested  chan struct{} // closed when the rest has been done, too
	value   V
	err     error
	refusal error // what those who wait are told in place of the outcome
}

// call is one run of a flight. It returns the outcome, and the rest: what is left to do
// once those who wait have their answer. The rest may be nil.
type call[V any] func(ctx context.Context) (value V, rest func(), err error)

// do joins the flight of key or begins one with run, and waits for its outcome or for ctx.
// A new flight is begun only when admit lets it; the leave that admit returns is called
// when the flight has landed. While a request waits to be admitted, others of the same key
// wait with it. A nil admit admits everybody.
func (f *flights[V]) do(ctx context.Context, key string, admit func(context.Context) (leave func(), err error), run call[V]) (V, error) {
	var zero V
	for {
		c, mine := f.join(key)
		if mine {
			leave := func() {}
			if admit != nil {
				var err error
				if leave, err = admit(ctx); err != nil {
					f.cancel(key, c)
					return zero, err
				}
			}
			f.begin(ctx, key, c, leave, run)
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return zero, unavailable("ganbauth: not finished yet: %w", ctx.Err())
		}
		if !c.over {
			c.awaitRest(ctx)
			return c.value, cmp.Or(f.refusal(c), c.err)
		}
		if err := f.refusal(c); err != nil {
			return zero, err // the next flight would know nothing of it
		}
	}
}

// refuse has the flight of key end with err for all who wait for it and all who join it,
// whatever its outcome is. One that has not begun does not begin. If it has ended well, some
// have its value already, which is returned; if it ends well after this, nobody has it, and
// it is forgotten.
func (f *flights[V]) refuse(key string, err error) (value V, known bool) {
	c, mine := f.join(key)
	if mine {
		c.err = err
		f.land(key, c, func() {}, nil)
		return value, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c.refusal = err
	if c.landed() {
		return c.value, true
	}
	return value, false
}

// refused returns the error by which the flight of key, which is under way, is refused, or
// nil.
func (f *flights[V]) refused(key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[key].refusal
}

func (f *flights[V]) refusal(c *flight[V]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.refusal
}

// awaitRest waits for what belongs to the answer, for a moment.
func (c *flight[V]) awaitRest(ctx context.Context) {
	select {
	case <-c.rested:
		return // most flights leave nothing to do, and then there is no timer
	default:
	}
	pause := time.NewTimer(grace)
	defer pause.Stop()
	select {
	case <-c.rested:
	case <-pause.C:
	case <-ctx.Done():
	}
}

// join returns the flight of key. If there is none, it makes one, and it is the caller's to
// begin or to cancel.
func (f *flights[V]) join(key string) (c *flight[V], mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.m[key]; c != nil {
		return c, false
	}
	if f.m == nil {
		f.m = map[string]*flight[V]{}
	}
	c = &flight[V]{done: make(chan struct{}), rested: make(chan struct{})}
	f.m[key] = c
	return c, true
}

// age returns for how long the flight of key has been under way, or 0 if there is none.
func (f *flights[V]) age(key string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.m[key]; c != nil && !c.begun.IsZero() {
		return time.Since(c.begun)
	}
	return 0
}

func (f *flights[V]) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.m)
}

// cancel gives up a flight that has not begun. Those who have joined it try for themselves.
func (f *flights[V]) cancel(key string, c *flight[V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(key, c)
	c.over = true
	close(c.done)
}

// begin starts the flight.
func (f *flights[V]) begin(ctx context.Context, key string, c *flight[V], leave func(), run call[V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.begun = time.Now()
	if f.active == nil {
		f.active = map[*flight[V]]struct{}{}
	}
	f.active[c] = struct{}{}
	go f.fly(context.WithoutCancel(ctx), key, c, leave, run)
}

// fly runs a flight in its own goroutine. It lands also if code of the application's ends
// the goroutine, by runtime.Goexit.
func (f *flights[V]) fly(ctx context.Context, key string, c *flight[V], leave func(), run call[V]) {
	var rest func()
	defer func() { f.land(key, c, leave, rest) }()
	c.err = unavailable("ganbauth: runtime.Goexit was called")
	c.value, rest, c.err = guarded(ctx, run)
}

// land tells those who wait the outcome, and does the rest.
func (f *flights[V]) land(key string, c *flight[V], leave, rest func()) {
	leave()
	// A request that comes after the answer must not be told an old outcome.
	var keep time.Duration
	if f.keep != nil && (c.err == nil || f.size() <= f.most) {
		keep = f.keep(c.value, c.err)
	}
	if keep > 0 {
		time.AfterFunc(keep, func() { f.forget(key, c) })
	} else {
		f.forget(key, c)
	}
	if rest = f.tell(c, rest); rest != nil {
		defer f.end(c)
		rest()
	}
}

// tell gives those who wait the outcome, and returns what is left to do. A value that has
// been refused nobody gets, so it is forgotten.
func (f *flights[V]) tell(c *flight[V], rest func()) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rest == nil && c.err == nil && c.refusal != nil && f.forgotten != nil {
		rest = func() { f.forgotten(c.value, true) }
	}
	if rest == nil {
		f.retire(c) // first, so that those who wait are woken once
	}
	close(c.done)
	return rest
}

// end is the last that is heard of a flight.
func (f *flights[V]) end(c *flight[V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.retire(c)
}

// retire ends a flight that leaves nothing to do. The caller holds f.mu.
func (f *flights[V]) retire(c *flight[V]) {
	close(c.rested)
	delete(f.active, c)
	if len(f.active) == 0 {
		f.active = nil // a map does not shrink
	}
}

// guarded turns a panic into an error: no request stands above this goroutine, so the
// panic would end the process.
func guarded[V any](ctx context.Context, run call[V]) (value V, rest func(), err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return run(ctx)
}

func (f *flights[V]) forget(key string, c *flight[V]) {
	f.mu.Lock()
	f.remove(key, c)
	f.mu.Unlock()
	if f.forgotten != nil && c.err == nil {
		f.forgotten(c.value, false)
	}
}

// remembered returns the outcomes that are remembered and no failures.
func (f *flights[V]) remembered() (values []V) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.m {
		if c.landed() {
			values = append(values, c.value)
		}
	}
	return values
}

// landed reports whether the flight has ended, and well.
func (c *flight[V]) landed() bool {
	select {
	case <-c.done:
		return c.err == nil
	default:
		return false
	}
}

// remove takes c out of the flights to join. The caller holds f.mu.
func (f *flights[V]) remove(key string, c *flight[V]) {
	if f.m[key] == c {
		delete(f.m, key)
	}
	if len(f.m) == 0 {
		f.m = nil
	}
}

// wait returns when nothing is left to do of the flights that are under way now.
func (f *flights[V]) wait(ctx context.Context) error {
	f.mu.Lock()
	var rested []chan struct{}
	for c := range f.active {
		rested = append(rested, c.rested)
	}
	f.mu.Unlock()
	return waitForAll(ctx, rested)
}

// waitForAll returns when all the channels are closed, or when ctx ends, whose error it then
// returns.
func waitForAll(ctx context.Context, ends []chan struct{}) error {
	for _, end := range ends {
		select {
		case <-end:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// safely calls fn and turns its panic into an error.
func safely(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return fn()
}

// shortly calls fn in a goroutine of its own and waits for it, for a moment only. A panic of
// fn would end the process.
func shortly(fn func()) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	until(ctx, fn)
}

// until calls fn in a goroutine of its own and waits for it until ctx ends. Then fn goes on
// by itself.
func until(ctx context.Context, fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// keyedMutex is a mutex for each key. Waiting for it ends with a context, and it takes no
// room while nobody holds it.
type keyedMutex struct {
	mu sync.Mutex
	m  map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // full while held
	users int
}

// lock waits for the lock on key, or for ctx. The caller calls unlock once.
func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyedLock{}
	}
	l, ok := k.m[key]
	if !ok {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; k.leave(key, l) }, nil
	case <-ctx.Done():
		k.leave(key, l)
		return nil, ctx.Err()
	}
}

func (k *keyedMutex) leave(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.m, key)
	}
	if len(k.m) == 0 {
		k.m = nil
	}
}
