package rueidisstore

import (
	"sync"
	"time"
)

// fresh are the keys whose record is read from Redis alone: those that this process is
// writing or has locked, and those that it has until keep ago, or up to twice as long.
// What was in memory before such a write has ended by then.
type fresh struct {
	keep time.Duration

	mu    sync.RWMutex
	busy  map[string]int
	young map[string]struct{} // since turned
	old   map[string]struct{} // before that
	// When the young became the old.
	turned time.Time
}

// has reports whether key must be read from Redis.
func (f *fresh) has(key string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.busy[key] > 0 {
		return true
	}
	age := time.Since(f.turned)
	_, young := f.young[key]
	_, old := f.old[key]
	return young && age <= 2*f.keep || old && age <= f.keep
}

// begin has key read from Redis, and also for a while after the end that it returns.
// Calling that again does nothing.
func (f *fresh) begin(key string) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy == nil {
		f.busy = map[string]int{}
	}
	f.busy[key]++
	return sync.OnceFunc(func() { f.end(key) })
}

func (f *fresh) end(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy[key]--; f.busy[key] == 0 {
		delete(f.busy, key)
	}
	if time.Since(f.turned) > f.keep {
		f.old, f.young, f.turned = f.young, map[string]struct{}{}, time.Now()
	}
	f.young[key] = struct{}{}
}
