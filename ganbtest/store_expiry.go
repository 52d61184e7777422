package ganbtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth"
)

// unusual is a time at which no other token of a store expires, but for one in a million.
func unusual() time.Time {
	return time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rand.IntN(500_000_000)) * time.Second)
}

// testExpiryLister tests which keys are listed, and in which order.
func testExpiryLister(t *testing.T, store ganbauth.TokenStore) {
	expiring := func(before time.Time, candidates ...string) (found []string) {
		t.Helper()
		keys, err := store.(ganbauth.ExpiryLister).Expiring(context.Background(), before)
		if err != nil {
			t.Fatalf("Expiring: %v", err)
		}
		for _, key := range keys {
			if slices.Contains(candidates, key) {
				found = append(found, key)
			}
		}
		return found
	}
	want := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got keys %q, want %q", got, want)
		}
	}
	base := uniqueKey()
	late, early, odd, spent, gone, mark := base+"late", base+"early", base+"\x00\xff日本", base+"spent", base+"gone", base+"mark"
	all := []string{late, early, odd, spent, gone, mark}
	end := sampleToken().ExpiresAt
	for key, expiry := range map[string]time.Time{
		late: end.Add(2 * time.Hour), early: end, odd: end.Add(time.Hour), spent: end, gone: end,
	} {
		token := sampleToken()
		token.ExpiresAt = expiry
		if key == spent {
			token.RefreshToken = ""
		}
		save(t, store, key, token)
	}
	save(t, store, mark, sampleToken())
	save(t, store, mark, other(sampleMark(), func(t *ganbauth.Token) { t.Judged, t.ExpiresAt = "judged", end }))
	if err := store.Delete(soon(t), gone); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	want(expiring(end, all...))
	want(expiring(end.Add(time.Hour), all...), early)
	want(expiring(end.Add(3*time.Hour), all...), early, odd, late)
	token := sampleToken()
	token.ExpiresAt = end.Add(4 * time.Hour)
	save(t, store, early, token)
	want(expiring(end.Add(3*time.Hour), all...), odd, late)
	if swapper, ok := store.(ganbauth.Swapper); ok {
		moved := other(token, func(t *ganbauth.Token) { t.AccessToken, t.ExpiresAt = "next", end })
		if err := swapper.Swap(context.Background(), early, token, moved); err != nil {
			t.Fatalf("Swap: %v", err)
		}
		want(expiring(end.Add(3*time.Hour), all...), early, odd, late)
		if err := swapper.Swap(context.Background(), early, token, nil); err == nil {
			t.Fatal("Swap of what is not there: no error")
		}
		want(expiring(end.Add(3*time.Hour), all...), early, odd, late)
		if err := swapper.Swap(context.Background(), early, moved, nil); err != nil {
			t.Fatalf("Swap: %v", err)
		}
		want(expiring(end.Add(3*time.Hour), all...), odd, late)
	}
}

// testExpiryPager tests that pages together are the whole, whatever the size of a page is.
func testExpiryPager(t *testing.T, store ganbauth.TokenStore) {
	start, base := unusual(), uniqueKey()
	page := func(after ganbauth.Expiry, before time.Time, limit int) []ganbauth.Expiry {
		t.Helper()
		entries, err := store.(ganbauth.ExpiryPager).ExpiringAfter(context.Background(), after, before, limit)
		if err != nil {
			t.Fatalf("ExpiringAfter: %v", err)
		}
		if len(entries) > limit {
			t.Errorf("a page of %d entries, want at most %d", len(entries), limit)
		}
		return entries
	}
	same := func(a, b ganbauth.Expiry) bool { return a.At.Equal(b.At) && a.Key == b.Key }
	var all []ganbauth.Expiry
	for i := range 60 { // most of them in the same second
		at := start.Add(time.Duration(max(i-40, 0)) * time.Second)
		all = append(all, ganbauth.Expiry{At: at, Key: fmt.Sprintf("%s\xff%02d", base, i)})
	}
	for i := range all {
		e := all[(i*37)%len(all)]
		save(t, store, e.Key, other(sampleToken(), func(t *ganbauth.Token) { t.ExpiresAt = e.At }))
	}
	save(t, store, base, other(sampleToken(), func(t *ganbauth.Token) { t.ExpiresAt, t.RefreshToken = start, "" }))
	save(t, store, base+"mark", other(sampleMark(), func(t *ganbauth.Token) { t.ExpiresAt = start }))
	begin, end := ganbauth.Expiry{At: start.Add(-time.Second), Key: "\xff"}, start.Add(time.Hour)
	// pages returns all pages up to an empty one. It stops where there are too many.
	pages := func(after ganbauth.Expiry, before time.Time, limit int) (got []ganbauth.Expiry) {
		t.Helper()
		for {
			entries := page(after, before, limit)
			got = append(got, entries...)
			if len(entries) == 0 || len(got) > len(all) {
				return got
			}
			after = entries[len(entries)-1]
		}
	}
	for _, limit := range []int{1, 7, 40, 60, 1000} {
		if got := pages(begin, end, limit); !slices.EqualFunc(got, all, same) {
			t.Errorf("pages of %d: got %d entries, or another order, want %d", limit, len(got), len(all))
		}
	}
	if got := pages(begin, start.Add(time.Second), 1000); !slices.EqualFunc(got, all[:41], same) {
		t.Errorf("got %d entries that expire before a time, want %d", len(got), 41)
	}
	if got := pages(ganbauth.Expiry{At: start.Add(time.Second)}, end, 1000); !slices.EqualFunc(got, all[41:], same) {
		t.Errorf("got %d entries behind one that has a time and no key, want %d", len(got), len(all)-41)
	}
	if first := page(ganbauth.Expiry{}, end, 1); len(first) != 1 || first[0].At.After(start) {
		t.Error("the zero Expiry is not before all others")
	}
	zero := base + "zero"
	save(t, store, zero, other(sampleToken(), func(t *ganbauth.Token) { t.ExpiresAt, t.IssuedAt = time.Time{}, time.Time{} }))
	if got := page(ganbauth.Expiry{Key: base}, start, 1000); !slices.ContainsFunc(got, func(e ganbauth.Expiry) bool { return e.Key == zero }) {
		t.Error("a token without an expiry is in no page: SetToken may store one")
	}
	if err := store.Delete(soon(t), all[10].Key); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	// begins reports whether a page is what follows all[10], or the beginning of it.
	begins := func(got []ganbauth.Expiry) bool {
		return len(got) > 0 && len(got) <= 3 && slices.EqualFunc(got, all[11:11+len(got)], same)
	}
	if got := page(all[10], end, 3); !begins(got) {
		t.Error("the page behind an entry that is gone is another one")
	}
	if got := page(ganbauth.Expiry{At: start, Key: all[10].Key + "x"}, end, 3); !begins(got) {
		t.Error("the page behind an entry that never was is another one")
	}
}
