package ganbtest_test

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/lease"
)

// Each of them is a fault that TestStore finds, and a part of what it says then.
var storeFaults = map[string]string{
	"nil for nothing":             "want ErrTokenNotFound",
	"ended context is nothing":    "the user would be logged out",
	"ended context saves nothing": "Load: ",
	"shares memory":               "differs from the one that was saved",
	"drops the scope":             "differs from the one that was saved in Scope\n",
	"drops the epoch":             "differs from the one that was saved in Epoch\n",
	"drops expired tokens":        "Load: ",
	"drops marks":                 "/a_mark",
	"cuts long tokens":            "differs from the one that was saved in AccessToken\n",
	"cuts long ID tokens":         "differs from the one that was saved in IDToken\n",
	"keeps the old refresh token": "differs from the one that was saved",
	"delete of nothing fails":     "Delete: ",
	"does not delete":             "want ErrTokenNotFound",
	"folds case":                  "differs from the one that was saved",
	"trims keys":                  "differs from the one that was saved",
	"cuts keys":                   "differs from the one that was saved",
	"cuts the longest keys":       "differs from the one that was saved",

	"swap compares nothing":          "want ErrSuperseded",
	"swap compares the access token": "want ErrSuperseded",
	"swap forgets the epoch":         "want ErrSuperseded",
	"swap puts nothing in nothing":   "want ErrSuperseded",
	"swap by two steps":              "swap the same record at once",
	"swap deletes what is another":   "want ErrSuperseded",
	"swap refuses its own":           "Swap of what is there",
	"swap fails otherwise":           "want ErrSuperseded",
	"swap shares memory":             "differs from the one that was saved",

	"locks nothing":                  "two values of the store hold the lock",
	"locks each value for itself":    "two values of the store hold the lock", // G6
	"locks all keys at once":         "Lock: ",
	"cuts the names of locks":        "Lock: ",
	"a lock holds a connection":      "does a lock hold a connection?", // G6
	"a lock ends with its context":   "the lock ended with its context",
	"a lock waits forever":           "does not end with its context",
	"a lock deletes the record":      "Load: ",
	"save takes the lock":            "Save: ",
	"swap takes the lock":            "Swap under a lock: ",
	"delete takes the lock":          "Delete under a lock: ",
	"an earlier fingerprint":         "LockRecord returns the fingerprint",
	"no fingerprint":                 "LockRecord returns the fingerprint",
	"another lock for records":       "do not exclude each other",
	"lists tokens without a refresh": "got keys",
	"lists late tokens":              "got keys",
	"lists in any order":             "got keys",
	"lists the old expiry":           "got keys",

	"pages repeat an entry":             "pages of",
	"pages skip what ties":              "pages of",
	"pages are too large":               "want at most",
	"pages need the entry to be there":  "the page behind an entry",
	"pages begin with what is expiring": "pages of",
	"pages need a key":                  "a time and no key",
	"pages lack what has no expiry":     "without an expiry",
}

// TestStore fails for each of them, in a process of its own.
func TestStoreFindsFaults(t *testing.T) {
	const variable = "STORE_FAULT"
	if fault, child := os.LookupEnv(variable); child {
		if fault != "" {
			ganbtest.SetPatience(time.Second)
		}
		e := newEngine(fault)
		ganbtest.TestStore(t, e.store)
		return
	}
	run := func(fault string) (output string, err error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestStoreFindsFaults$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), variable+"="+fault)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, fault := range []string{"", "pages are short, which is none", "records of a BLOB, which is none"} {
		t.Run("none "+fault, func(t *testing.T) {
			t.Parallel()
			out, err := run(fault)
			require.NoError(t, err, out)
		})
	}
	for fault, says := range storeFaults {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			out, err := run(fault)
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, out)
			require.Contains(t, out, "--- FAIL")
			require.Contains(t, out, says)
			require.NotContains(t, out, "panic:")
			require.NotContains(t, out, "DATA RACE")
		})
	}
}

// engine is a store's engine in memory, with one fault or none.
type engine struct {
	fault string
	base  ganbauth.TokenStore
	locks *locks
	conns chan struct{} // of an engine with four connections

	mu     sync.Mutex
	shared map[string]*ganbauth.Token // what the callers hold
	first  map[string]time.Time       // the first expiry under a key
}

func newEngine(fault string) *engine {
	return &engine{
		fault: fault, base: ganbauth.NewMemoryStore(), locks: &locks{}, conns: make(chan struct{}, 4),
		shared: map[string]*ganbauth.Token{}, first: map[string]time.Time{},
	}
}

// store returns another value of the store, as another process has it.
func (e *engine) store() ganbauth.TokenStore {
	s := &store{engine: e, own: &locks{}}
	s.locker = lease.New(e.locks, 0)
	return s
}

// store is a store of everything that a store can be.
type store struct {
	*engine
	own    *locks
	locker *lease.Locker
}

// connection waits for one of the engine's.
func (s *store) connection(ctx context.Context) (release func(), err error) {
	if s.fault != "a lock holds a connection" {
		return func() {}, nil
	}
	select {
	case s.conns <- struct{}{}:
		return func() { <-s.conns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *store) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	release, err := s.connection(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	s.mu.Lock()
	held := s.shared[key]
	s.mu.Unlock()
	switch t, err := s.base.Load(ctx, s.key(key)); {
	case s.fault == "ended context is nothing" && ctx.Err() != nil:
		return nil, ganbauth.ErrTokenNotFound
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.fault == "nil for nothing" && errors.Is(err, ganbauth.ErrTokenNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case s.fault == "shares memory" && held != nil, s.fault == "swap shares memory" && held != nil:
		return held, nil
	case s.fault == "drops expired tokens" && !t.Valid(), s.fault == "drops marks" && t.AccessToken == "":
		return nil, ganbauth.ErrTokenNotFound
	default:
		switch s.fault {
		case "drops the scope":
			t.Scope = ""
		case "drops the epoch":
			t.Epoch = ""
		case "cuts long tokens":
			t.AccessToken = t.AccessToken[:min(len(t.AccessToken), 4096)]
		case "cuts long ID tokens":
			t.IDToken = t.IDToken[:min(len(t.IDToken), 4096)]
		}
		return t, nil
	}
}

func (s *store) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	release, err := s.connection(ctx)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case s.fault == "ended context saves nothing" && ctx.Err() != nil:
		_ = s.base.Delete(ctx, key)
		return nil
	case s.fault == "records of a BLOB, which is none":
		if record, _ := t.MarshalBinary(); len(record) >= 64<<10 {
			return errors.New("Data too long for column")
		}
	case s.fault == "keeps the old refresh token" && t.RefreshToken == "":
		if old, err := s.base.Load(ctx, key); err == nil {
			c := *t
			c.RefreshToken = old.RefreshToken
			t = &c
		}
	}
	unlock, err := s.takesLock(ctx, key, "save")
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == "shares memory" {
		s.shared[key] = t
	}
	if _, ok := s.first[key]; !ok {
		s.first[key] = t.ExpiresAt
	}
	return s.base.Save(ctx, s.key(key), t)
}

func (s *store) Delete(ctx context.Context, key string) error {
	_, err := s.base.Load(ctx, s.key(key))
	switch {
	case s.fault == "delete of nothing fails" && err != nil:
		return err
	case s.fault == "does not delete":
		return nil
	}
	unlock, err := s.takesLock(ctx, key, "delete")
	if err != nil {
		return err
	}
	defer unlock()
	return s.base.Delete(ctx, s.key(key))
}

func (s *store) key(key string) string {
	switch s.fault {
	case "folds case":
		return strings.ToLower(key)
	case "trims keys":
		return strings.TrimSpace(key)
	case "cuts keys":
		return key[:min(len(key), 43)]
	case "cuts the longest keys":
		return key[:min(len(key), 1023)]
	}
	return key
}

func (s *store) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	there, err := s.base.Load(ctx, key)
	if err != nil {
		there = nil
	}
	blind := false
	switch s.fault {
	case "swap compares nothing":
		blind = true
	case "swap compares the access token":
		blind = there != nil && old != nil && there.AccessToken == old.AccessToken
	case "swap forgets the epoch":
		if there != nil && old != nil {
			c := *old
			c.Epoch = there.Epoch
			old = &c
		}
	case "swap puts nothing in nothing":
		blind = there == nil
	case "swap deletes what is another":
		blind = new == nil
	case "swap refuses its own":
		if new != nil && old.Fingerprint() == new.Fingerprint() {
			return ganbauth.ErrSuperseded
		}
	case "swap by two steps":
		if there.Fingerprint() == old.Fingerprint() {
			time.Sleep(time.Millisecond)
			blind = true
		}
	case "swap shares memory":
		s.mu.Lock()
		s.shared[key] = new
		s.mu.Unlock()
	}
	if blind {
		old = there
		if s.fault == "swap by two steps" {
			old, _ = s.base.Load(ctx, key)
		}
	}
	unlock, err := s.takesLock(ctx, key, "swap")
	if err != nil {
		return err
	}
	defer unlock()
	err = s.base.(ganbauth.Swapper).Swap(ctx, key, old, new)
	if s.fault == "swap fails otherwise" && err != nil {
		return errors.New("conflict")
	}
	return err
}

// takesLock takes the lock that a call with a fault takes.
func (s *store) takesLock(ctx context.Context, key, call string) (unlock func(), err error) {
	if s.fault != call+" takes the lock" {
		return func() {}, nil
	}
	return s.Lock(ctx, key)
}

func (s *store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	_, unlock, err = s.lock(ctx, key, key)
	return unlock, err
}

func (s *store) LockRecord(ctx context.Context, key string) (fingerprint string, unlock func(), err error) {
	name := key
	if s.fault == "another lock for records" {
		name += ";record"
	}
	return s.lock(ctx, key, name)
}

func (s *store) lock(ctx context.Context, key, name string) (fingerprint string, unlock func(), err error) {
	read := func() string {
		t, err := s.base.Load(ctx, key)
		if err != nil {
			return ""
		}
		return t.Fingerprint()
	}
	before := read()
	release, err := s.connection(ctx)
	if err != nil {
		return "", nil, err
	}
	waiting := ctx
	locker := s.locker
	switch s.fault {
	case "locks nothing":
		return before, func() {}, nil
	case "locks each value for itself":
		locker = lease.New(s.own, 0)
	case "locks all keys at once":
		name = "all"
	case "cuts the names of locks":
		name = name[:min(len(name), 64)]
	case "a lock waits forever":
		waiting = context.WithoutCancel(ctx)
	case "a lock deletes the record":
		_ = s.base.Delete(ctx, key)
	}
	free, err := locker.Lock(waiting, name)
	if err != nil {
		release()
		return "", nil, err
	}
	unlock = sync.OnceFunc(func() { free(); release() })
	if s.fault == "a lock ends with its context" {
		context.AfterFunc(ctx, unlock)
	}
	switch s.fault {
	case "an earlier fingerprint":
		return before, unlock, nil
	case "no fingerprint":
		return "", unlock, nil
	}
	return read(), unlock, nil
}

func (s *store) Expiring(ctx context.Context, before time.Time) (keys []string, err error) {
	if s.fault == "lists late tokens" {
		before = before.Add(100 * time.Hour)
	}
	keys, err = s.base.(ganbauth.ExpiryLister).Expiring(ctx, before)
	switch s.fault {
	case "lists tokens without a refresh":
		s.mu.Lock()
		for key := range s.first {
			if !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
		s.mu.Unlock()
	case "lists in any order":
		slices.Reverse(keys)
	case "lists the old expiry":
		s.mu.Lock()
		for key, first := range s.first {
			if first.Before(before) && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
		s.mu.Unlock()
	}
	return keys, err
}

func (s *store) ExpiringAfter(ctx context.Context, after ganbauth.Expiry, before time.Time, limit int) ([]ganbauth.Expiry, error) {
	pager := s.base.(ganbauth.ExpiryPager)
	switch s.fault {
	case "pages repeat an entry":
		after.Key = cmp.Or(after.Key, "x")[:max(len(after.Key)-1, 0)]
	case "pages skip what ties":
		after.Key += "\xff\xff"
		after.At = after.At.Add(time.Second - 1)
	case "pages need a key":
		if after.Key == "" {
			after = ganbauth.Expiry{}
		}
	case "pages are too large":
		limit++
	case "pages lack what has no expiry":
		if after.At.IsZero() {
			after = ganbauth.Expiry{At: time.Time{}.Add(time.Second)}
		}
	case "pages are short, which is none":
		limit = min(limit, 3)
	case "pages begin with what is expiring":
		after = ganbauth.Expiry{At: after.At.Add(-time.Second)}
	case "pages need the entry to be there":
		if _, err := s.base.Load(ctx, after.Key); err != nil && after.Key != "" && len(after.Key) > 2 {
			return nil, nil
		}
	}
	return pager.ExpiringAfter(ctx, after, before, limit)
}

// locks is an engine for package lease.
type locks struct {
	mu   sync.Mutex
	held map[string]lease.Hold
}

func (l *locks) TryLock(_ context.Context, key, holder string, dead lease.Hold) (lease.Hold, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]lease.Hold{}
	}
	if held, ok := l.held[key]; !ok || held == dead {
		l.held[key] = lease.Hold{Holder: holder}
	}
	return l.held[key], nil
}

func (l *locks) Extend(context.Context, string, string) error { return nil }

func (l *locks) Unlock(_ context.Context, key, holder string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[key].Holder == holder {
		delete(l.held, key)
	}
	return nil
}
