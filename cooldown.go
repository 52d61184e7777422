package ganbauth

import (
	"math/rand/v2"
	"sync"
	"time"
)

// coolDowns keep a sick bank from being hammered: after a failed refresh of a key the next one waits, longer each
// time.
type coolDowns struct {
	mu sync.Mutex
	m  map[string]*coolDown
}

type coolDown struct {
	failures int
	until    time.Time
	err      error
}

// check returns the last failure, with the time to wait, while key cools down.
func (c *coolDowns) check(key string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.m[key]
	if d == nil {
		return nil
	}
	wait := time.Until(d.until)
	if wait <= 0 {
		return nil
	}
	return &unavailableError{err: d.err, retryAfter: wait}
}

// begin starts or prolongs key's cool-down, to at least hint, and returns what check will.
func (c *coolDowns) begin(key string, err error, hint time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]*coolDown{}
	}
	d := c.m[key]
	if d == nil {
		d = &coolDown{}
		c.m[key] = d
	}
	wait := min(minCoolDown<<min(d.failures, 10), maxCoolDown)
	wait += time.Duration(rand.Int64N(int64(wait) / 4)) // machines that failed together come back apart
	wait = max(wait, hint)
	d.failures++
	d.until = time.Now().Add(wait)
	d.err = err
	failures := d.failures
	time.AfterFunc(wait+maxCoolDown, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.m[key] == d && d.failures == failures {
			delete(c.m, key)
		}
	})
	return &unavailableError{err: err, retryAfter: wait}
}

func (c *coolDowns) clear(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, key)
}
