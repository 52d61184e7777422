package redisstore

import (
	"context"
	"sync"
	"time"
)

// WithTimeout is [context.WithTimeout] for a [Client] that can answer from memory: the timer
// starts when somebody first waits for the context's end. An answer from memory waits for
// nothing, and a timer, which can wake a thread, would cost more than all of it.
func WithTimeout(parent context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	c := &timeoutContext{Context: parent, deadline: time.Now().Add(timeout)}
	return c, c.cancel
}

type timeoutContext struct {
	context.Context // the parent
	deadline        time.Time

	mu       sync.Mutex
	timed    context.Context // with the timer; nil: nobody has waited
	stop     context.CancelFunc
	canceled bool
}

// Deadline implements [context.Context].
func (c *timeoutContext) Deadline() (time.Time, bool) {
	if deadline, ok := c.Context.Deadline(); ok && deadline.Before(c.deadline) {
		return deadline, true
	}
	return c.deadline, true
}

// Done implements [context.Context].
func (c *timeoutContext) Done() <-chan struct{} { return c.start().Done() }

// Err implements [context.Context].
func (c *timeoutContext) Err() error {
	if c.idle() {
		return c.Context.Err()
	}
	return c.start().Err()
}

// Value implements [context.Context]. With the timer there is a context of package
// context's own, which children find by it.
func (c *timeoutContext) Value(key any) any {
	if c.idle() {
		return c.Context.Value(key)
	}
	return c.start().Value(key)
}

// idle reports whether only the parent can have ended c.
func (c *timeoutContext) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.timed == nil && !c.canceled && time.Now().Before(c.deadline)
}

// start returns the context with the timer.
func (c *timeoutContext) start() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.stop = context.WithDeadline(c.Context, c.deadline)
		if c.canceled {
			c.stop()
		}
	}
	return c.timed
}

func (c *timeoutContext) cancel() {
	c.mu.Lock()
	c.canceled = true
	stop := c.stop
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}
