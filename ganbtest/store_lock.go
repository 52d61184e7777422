package ganbtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth"
)

// patience is how long a call may take that has nothing to wait for.
var patience = 10 * time.Second

// lock wants the lock, and gives it back at the end of the test at the latest.
func lock(t *testing.T, l ganbauth.Locker, key string) (unlock func()) {
	t.Helper()
	unlock, err := l.Lock(soon(t), key)
	if err != nil {
		t.Fatalf("Lock: %v", err)
	}
	unlock = sync.OnceFunc(unlock)
	t.Cleanup(unlock)
	return unlock
}

// wantHeld wants that the lock cannot be had, and that waiting for it ends.
func wantHeld(t *testing.T, l ganbauth.Locker, key, otherwise string) {
	t.Helper()
	ctx := within(t, 50*time.Millisecond)
	ended := make(chan error, 1)
	go func() {
		unlock, err := l.Lock(ctx, key)
		if err == nil {
			unlock()
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error(otherwise)
		}
	case <-time.After(patience):
		t.Fatal("Lock does not end with its context")
	}
}

// testLocker tests locks through two values of the store, which stand for two processes.
func testLocker(t *testing.T, newStore func() ganbauth.TokenStore) {
	one, two := newStore().(ganbauth.Locker), newStore().(ganbauth.Locker)
	t.Run("one at a time", func(t *testing.T) { testExclusion(t, one, two) })
	t.Run("one process waits for another", func(t *testing.T) {
		key := uniqueKey()
		unlock := lock(t, one, key)
		wantHeld(t, two, key, "two values of the store hold the lock on one key: is it in this process only?")
		unlock()
		unlock = lock(t, two, key)
		wantHeld(t, one, key, "two values of the store hold the lock on one key: is it in this process only?")
		unlock()
	})
	t.Run("keys do not wait for each other", func(t *testing.T) {
		first, second := lock(t, one, uniqueKey()), lock(t, one, uniqueKey())
		second()
		first()
	})
	t.Run("waiting ends with the context", func(t *testing.T) {
		key := uniqueKey()
		unlock := lock(t, one, key)
		wantHeld(t, one, key, "got a lock that somebody holds")
		unlock()
		lock(t, one, key)()
	})
	t.Run("a lock outlives the context that it was asked for with", func(t *testing.T) {
		key := uniqueKey()
		ctx, cancel := context.WithCancel(context.Background())
		unlock, err := one.Lock(ctx, key)
		if err != nil {
			t.Fatalf("Lock: %v", err)
		}
		cancel()
		wantHeld(t, two, key, "the lock ended with its context")
		unlock()
	})
	t.Run("a lock does not change the record", func(t *testing.T) {
		store, key := newStore(), uniqueKey()
		lock(t, one, key)()
		_, err := store.Load(context.Background(), key)
		wantNotFound(t, err)
		save(t, store, key, sampleToken())
		unlock := lock(t, one, key)
		wantToken(t, store, key, sampleToken())
		unlock()
		wantToken(t, store, key, sampleToken())
	})
	t.Run("a lock holds up no other call", func(t *testing.T) { // as a refresh makes them under its own lock
		store, key := newStore(), uniqueKey()
		lock(t, one, key)
		save(t, store, key, sampleToken())
		wantToken(t, store, key, sampleToken())
		if s, ok := store.(ganbauth.Swapper); ok {
			if err := s.Swap(soon(t), key, sampleToken(), sampleMark()); err != nil {
				t.Errorf("Swap under a lock: %v", err)
			}
		}
		if err := store.Delete(soon(t), key); err != nil {
			t.Errorf("Delete under a lock: %v", err)
		}
	})
	t.Run("keys of any content are told apart", func(t *testing.T) {
		for _, key := range oddKeys(uniqueKey()) {
			lock(t, one, key)
		}
	})
	t.Run("many locks at once", func(t *testing.T) { testManyLocks(t, newStore) })
}

// testExclusion has many goroutines lock one key.
func testExclusion(t *testing.T, one, two ganbauth.Locker) {
	key := uniqueKey()
	var inside, entered atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		locker := []ganbauth.Locker{one, two}[i%2]
		wg.Go(func() {
			for range 5 {
				unlock, err := locker.Lock(context.Background(), key)
				if err != nil {
					t.Errorf("Lock: %v", err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two hold the lock on one key")
				}
				entered.Add(1)
				inside.Add(-1)
				unlock()
			}
		})
	}
	wg.Wait()
	if entered.Load() != 40 {
		t.Errorf("got the lock %d times, want 40", entered.Load())
	}
}

// testManyLocks holds as many locks as a bank that is slow causes. Meanwhile tokens have
// to be loaded and saved: a lock must not hold a connection that they need.
func testManyLocks(t *testing.T, newStore func() ganbauth.TokenStore) {
	const many = 32
	store, base := newStore(), uniqueKey()
	unlocks := make([]func(), many)
	var wg sync.WaitGroup
	defer func() {
		for _, unlock := range unlocks {
			if unlock != nil {
				wg.Go(unlock)
			}
		}
		wg.Wait()
		lock(t, store.(ganbauth.Locker), fmt.Sprint(base, many-1))()
	}()
	for i := range many {
		wg.Go(func() {
			unlock, err := store.(ganbauth.Locker).Lock(soon(t), fmt.Sprint(base, i))
			if err != nil {
				t.Errorf("Lock of key %d of %d: %v: does a lock hold a connection?", i+1, many, err)
				return
			}
			unlocks[i] = unlock
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i := range 4 {
		ctx, key := soon(t), fmt.Sprint(base, i)
		if err := store.Save(ctx, key, sampleToken()); err != nil {
			t.Fatalf("Save while %d locks are held: %v: does a lock hold a connection?", many, err)
		}
		if _, err := store.Load(ctx, key); err != nil {
			t.Fatalf("Load while %d locks are held: %v: does a lock hold a connection?", many, err)
		}
		wantToken(t, store, key, sampleToken())
	}
}

// testRecordLocker tests a lock that tells which record is there.
func testRecordLocker(t *testing.T, newStore func() ganbauth.TokenStore) {
	lockRecord := func(t *testing.T, store ganbauth.TokenStore, key string, want *ganbauth.Token) (unlock func()) {
		t.Helper()
		got, unlock, err := store.(ganbauth.RecordLocker).LockRecord(soon(t), key)
		if err != nil {
			t.Fatalf("LockRecord: %v", err)
		}
		if got != want.Fingerprint() {
			t.Errorf("LockRecord returns the fingerprint %q, want %q", got, want.Fingerprint())
		}
		unlock = sync.OnceFunc(unlock)
		t.Cleanup(unlock)
		return unlock
	}
	t.Run("the fingerprint of what is there", func(t *testing.T) {
		store, key := newStore(), uniqueKey()
		lockRecord(t, store, key, nil)()
		for _, record := range sampleRecords() {
			save(t, store, key, record)
			lockRecord(t, store, key, record)()
		}
		if err := store.Delete(context.Background(), key); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		lockRecord(t, store, key, nil)()
	})
	t.Run("the record of the moment in which the lock is taken", func(t *testing.T) {
		one, two, key := newStore(), newStore(), uniqueKey()
		next := other(sampleToken(), func(t *ganbauth.Token) { t.AccessToken = "next" })
		save(t, one, key, sampleToken())
		unlock := lockRecord(t, one, key, sampleToken())
		var got string
		var err error
		var wg sync.WaitGroup
		wg.Go(func() {
			var unlock func()
			if got, unlock, err = two.(ganbauth.RecordLocker).LockRecord(soon(t), key); err == nil {
				unlock()
			}
		})
		time.Sleep(20 * time.Millisecond) // it waits
		save(t, one, key, next)
		unlock()
		wg.Wait()
		if err != nil || got != next.Fingerprint() {
			t.Errorf("LockRecord returns the fingerprint %q (%v), want %q", got, err, next.Fingerprint())
		}
	})
	if _, ok := newStore().(ganbauth.Locker); !ok {
		t.Error("a RecordLocker must be a Locker, too")
		return
	}
	t.Run("it is the same lock as Locker's", func(t *testing.T) {
		one, two, key := newStore(), newStore(), uniqueKey()
		unlock := lockRecord(t, one, key, nil)
		wantHeld(t, two.(ganbauth.Locker), key, "Lock and LockRecord do not exclude each other")
		unlock()
		unlock = lock(t, two.(ganbauth.Locker), key)
		if _, unlock, err := one.(ganbauth.RecordLocker).LockRecord(within(t, 50*time.Millisecond), key); err == nil {
			unlock()
			t.Error("Lock and LockRecord do not exclude each other")
		}
		unlock()
	})
}
