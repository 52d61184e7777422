package ganbauth

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	minCoolDown = time.Second
	maxCoolDown = time.Minute

	// suspicion is how long a gateway's refusal of a refresh counts as the first of two.
	suspicion = 24 * time.Hour
)

// coolDowns keep a sick bank or store from being hammered: after a failed refresh of a
// key the next one waits, longer each time.
type coolDowns struct {
	mu sync.Mutex
	m  map[string]*coolDown
}

type coolDown struct {
	failures int
	since    time.Time // when the first of the failures was
	suspect  string    // what the bank's gateway has refused once: see spendable
	until    time.Time
	err      error
	end      *time.Timer
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

// begin starts or prolongs key's cool-down, to at least hint, and returns what check
// will.
func (c *coolDowns) begin(key string, err error, hint time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.entry(key)
	wait := min(minCoolDown<<min(d.failures, 10), maxCoolDown)
	wait += jitter(wait / 4) // machines that failed together come back apart
	wait = max(wait, hint)
	now := time.Now()
	if d.failures++; d.failures == 1 {
		d.since = now
	}
	d.until = now.Add(wait)
	d.err = err
	keep := wait + maxCoolDown
	if d.suspect != "" {
		keep = max(keep, suspicion)
	}
	if d.end == nil {
		d.end = time.AfterFunc(keep, func() { c.forget(key, d) })
	} else {
		d.end.Reset(keep)
	}
	return &unavailableError{err: err, retryAfter: wait}
}

// forget ends a row of failures that is over.
func (c *coolDowns) forget(key string, d *coolDown) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[key] == d && time.Now().After(d.until) {
		c.remove(key)
	}
}

// since returns when the first failure of key in a row was, or zero if there is none.
func (c *coolDowns) since(key string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.m[key]; d != nil {
		return d.since
	}
	return time.Time{}
}

// suspect remembers that the bank's gateway has refused key's refresh token, and reports
// whether it has refused that same one before: another process may have refreshed it since.
// It is followed by begin or clear.
func (c *coolDowns) suspect(key, token string) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.entry(key)
	again, d.suspect = d.suspect == token, token
	return again
}

// clear forgets key's failures.
func (c *coolDowns) clear(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(key)
}

func (c *coolDowns) entry(key string) *coolDown {
	if c.m == nil {
		c.m = map[string]*coolDown{}
	}
	d := c.m[key]
	if d == nil {
		d = &coolDown{}
		c.m[key] = d
	}
	return d
}

func (c *coolDowns) remove(key string) {
	if d := c.m[key]; d != nil && d.end != nil {
		d.end.Stop()
	}
	delete(c.m, key)
	if len(c.m) == 0 {
		c.m = nil // a map does not shrink
	}
}

// jitter returns a random time of less than d.
func jitter(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(max(d, 1)))) }
