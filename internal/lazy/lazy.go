// Package lazy has a timeout that costs no timer until somebody waits for it.
package lazy

import (
	"context"
	"sync"
	"time"
)

// WithTimeout is [context.WithTimeout], except that the timer is made by the first call
// of Done. A call that is answered from memory never makes it: a timer wakes the thread
// that waits for the network, which can cost more than the answer.
func WithTimeout(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	t := &timeout{parent: parent, end: time.Now().Add(d)}
	return t, t.cancel
}

type timeout struct {
	parent context.Context
	end    time.Time

	mu       sync.Mutex
	canceled bool
	timed    context.Context // once somebody waits; or nil
	stop     context.CancelFunc
}

func (t *timeout) cancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timed == nil && !time.Now().Before(t.end) {
		t.wait() // the time was over first
	}
	t.canceled = true
	if t.stop != nil {
		t.stop()
	}
}

// wait returns the context that has a timer. The caller holds t.mu.
func (t *timeout) wait() context.Context {
	switch {
	case t.timed != nil:
	case t.canceled:
		t.timed, t.stop = context.WithCancel(t.parent)
		t.stop()
	default:
		t.timed, t.stop = context.WithDeadline(t.parent, t.end)
	}
	return t.timed
}

// Deadline implements [context.Context].
func (t *timeout) Deadline() (end time.Time, ok bool) {
	if end, ok := t.parent.Deadline(); ok && end.Before(t.end) {
		return end, true
	}
	return t.end, true
}

// Done implements [context.Context].
func (t *timeout) Done() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wait().Done()
}

// Err implements [context.Context].
func (t *timeout) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timed == nil && !t.canceled && t.parent.Err() == nil && time.Now().Before(t.end) {
		return nil
	}
	return t.wait().Err()
}

// Value implements [context.Context].
func (t *timeout) Value(key any) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timed != nil {
		return t.timed.Value(key) // package context asks for its own
	}
	return t.parent.Value(key)
}
