package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	refreshPace     = time.Second // the bank asks for about one request a second per client
	maxFailuresAway = 3           // in a row: the bank is away, not the user
	expiringLock    = "keepalive"
)

// RefreshExpiring refreshes the tokens that end within that time, with no user around, and returns how many it has:
// the bank stops its webhooks for a user whose token lapses. Run it from time to time, hourly for instance with a
// within of two hours; the Store must be an [ExpiryLister].
//
// It makes one token request a second at most, goes on after users who have to connect again, and gives up after
// three failures of the bank in a row, with the last error. With a Locker one process does it at a time: the others
// return 0 and no error. It ends with ctx, and may be begun again at any time.
func (k *Kit) RefreshExpiring(ctx context.Context, within time.Duration) (n int, err error) {
	if err := k.usable(); err != nil {
		return 0, err
	}
	if k.lister == nil {
		return 0, errors.New("ganbauth: RefreshExpiring needs a Store that is an ExpiryLister")
	}
	if k.keeper.records.locker != nil {
		soon, cancel := context.WithTimeout(ctx, refreshPace)
		defer cancel()
		unlock, err := k.keeper.records.lock(soon, k.owners.kit+"//"+expiringLock)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("ganbauth: lock: %w", err)
		}
		defer unlock()
	}
	before := time.Now().Add(within)
	var keys []string
	err = k.keeper.records.safely(ctx, func() (err error) {
		keys, err = k.lister.Expiring(ctx, before)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ganbauth: list tokens: %w", err)
	}
	failures := 0
	for _, key := range keys {
		if !strings.HasPrefix(key, k.owners.kit+"/") {
			continue // another kit's
		}
		start := time.Now()
		refreshed, err := k.keeper.ahead(ctx, key, before)
		switch {
		case ctx.Err() != nil:
			return n, ctx.Err()
		case refreshed:
			n++
			failures = 0
		case err != nil && !errors.Is(err, ErrLoginRequired):
			if failures++; failures == maxFailuresAway {
				return n, err
			}
		}
		if !refreshed && err == nil {
			continue // nothing was asked of the bank
		}
		select {
		case <-time.After(time.Until(start.Add(refreshPace))):
		case <-ctx.Done():
			return n, ctx.Err()
		}
	}
	return n, nil
}
