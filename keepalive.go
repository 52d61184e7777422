package ganbauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	// keepAliveLock is the name of the lock of the process that keeps tokens alive, behind
	// the kit's name. No store key has two slashes in a row.
	keepAliveLock = "//keepalive"

	// KeepAlive refreshes a token when half of its life is over, but not earlier than
	// maxLead before its expiry. A day outlasts every maintenance of the bank.
	maxLead = 24 * time.Hour

	// turnOfDuty is how long one process keeps tokens alive before it offers the lock to
	// the others. A process that lost the lock while it was suspended stops by then.
	turnOfDuty = time.Hour

	// After frontAfter, a pass ends at the end of its page, and the next one begins at the
	// front: somebody may have connected whose token expires first. At a low rate a page can
	// take hours, and so the pass ends after pageTime on one page.
	pageSize   = 100
	frontAfter = 30 * time.Second
	pageTime   = 2 * time.Minute

	// A complete pass is followed by a pause of a tenth of the shortest lead, within these
	// limits.
	minLook, maxLook = time.Second, time.Minute

	// A key whose refresh has failed waits, longer each time, within these limits.
	minBackOff, maxBackOff = time.Minute, time.Hour

	// After storeAway keys in a row have failed to load, the engine looks whether the store
	// is away or only these records cannot be read. After as many that could not be locked
	// or written, it ends: not every key need find out.
	storeAway = 10

	listTimeout = time.Minute
)

// pages reads the index of a store: the tokens that expire soonest, page after page.
type pages interface {
	next(ctx context.Context, after Expiry, before time.Time) ([]Expiry, error)
}

// pagesOf returns the pages of a store, or nil if it cannot list.
func pagesOf(store TokenStore, r *records) pages {
	if pager, ok := store.(ExpiryPager); ok {
		return &pagedStore{pager: pager, records: r}
	}
	if lister, ok := store.(ExpiryLister); ok {
		return &listedStore{lister: lister, records: r}
	}
	return nil
}

type pagedStore struct {
	pager   ExpiryPager
	records *records
	n       int    // pages since the first
	seen    Expiry // the last entry of one of them
}

// next fails for a page with an entry that has been seen: it would be read again and again.
// To remember one is enough: that of the first, second, fourth, eighth page and so on, which
// sooner or later is in the circle that the pages go in.
func (s *pagedStore) next(ctx context.Context, after Expiry, before time.Time) ([]Expiry, error) {
	page, err := listed(ctx, s.records, func(ctx context.Context) ([]Expiry, error) {
		return s.pager.ExpiringAfter(ctx, after, before, pageSize)
	})
	if err != nil || len(page) == 0 {
		return nil, err
	}
	if after.Key == "" {
		s.n, s.seen = 0, Expiry{}
	}
	if slices.ContainsFunc(page, s.seen.is) {
		return nil, unavailable("ganbauth: list tokens: %w", errSamePage)
	}
	if s.n++; s.n&(s.n-1) == 0 {
		s.seen = page[len(page)-1]
	}
	return page, nil
}

func (e Expiry) is(other Expiry) bool { return e.Key == other.Key && e.At.Equal(other.At) }

var errSamePage = errors.New("the Store's ExpiringAfter does not begin the page behind the entry it is given")

// listedStore cuts pages from a list. It reads the list again for each first page.
type listedStore struct {
	lister  ExpiryLister
	records *records
	keys    []string
}

// next cuts the next page, from a new list if it is the first page. Behind a time it has
// none: what comes within a day waits for the next turn.
func (s *listedStore) next(ctx context.Context, after Expiry, before time.Time) (page []Expiry, err error) {
	if after == (Expiry{}) {
		s.keys, err = listed(ctx, s.records, func(ctx context.Context) ([]string, error) {
			return s.lister.Expiring(ctx, before)
		})
	}
	n := min(len(s.keys), pageSize)
	for _, key := range s.keys[:n] {
		page = append(page, Expiry{At: before, Key: key}) // not the zero Expiry, whatever the key is
	}
	s.keys = s.keys[n:]
	return page, err
}

func listed[V any](ctx context.Context, r *records, list func(context.Context) (V, error)) (V, error) {
	v, err := await(ctx, r, r.isPrompt(ctx), listTimeout, list, nil)
	if err != nil {
		err = unavailable("ganbauth: list tokens: %w", err)
	}
	return v, err
}

// engine keeps tokens alive: the one behind [Kit.KeepAlive] and [Kit.RefreshExpiring].
type engine struct {
	*keeper
	lock  string     // the name of the lock across processes
	store TokenStore // that lists
	owned func(storeKey string) (owner, bool)
	about func(context.Context, owner) context.Context
	runs
}

// errHeld means that another call is keeping the tokens alive, in this process or in
// another one that is running.
var errHeld = errors.New("ganbauth: tokens are being kept alive by another process or call")

// keepAlive takes the lock and keeps tokens alive, again and again until ctx ends.
func (en *engine) keepAlive(ctx context.Context) error {
	for wait := minLook; ; {
		begun := time.Now()
		err := en.locked(ctx, func() error { return en.begin(time.Time{}).forever(ctx) })
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil, errors.Is(err, errHeld):
			wait = minLook
			continue
		case time.Since(begun) > maxLook:
			wait = minLook
		}
		en.say(ctx, slog.LevelError, "ganbauth: tokens are not kept alive", "error", err, "again_in", wait)
		_ = pause(ctx, wait)
		wait = min(2*wait, maxLook)
	}
}

// refreshExpiring refreshes once what expires within that time.
func (en *engine) refreshExpiring(ctx context.Context, within time.Duration) (n int, err error) {
	before := time.Now().Add(within)
	err = en.locked(ctx, func() (err error) {
		n, err = en.begin(before).once(ctx)
		return err
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return n, err
}

func (en *engine) begin(before time.Time) *keeping {
	return &keeping{engine: en, pages: pagesOf(en.store, en.records), before: before, begun: time.Now()}
}

// locked calls work under the lock. It waits for the lock longer than the lease of a
// process that has died. The error is errHeld if another call still has the lock then. An
// unlock that hangs is left behind.
func (en *engine) locked(ctx context.Context, work func() error) error {
	soon, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	leave, err := en.one.lock(soon, "")
	if err == nil {
		defer leave()
		if en.records.locker != nil {
			var unlock func()
			if unlock, err = en.records.lock(soon, en.lock); err == nil {
				defer shortly(unlock)
			}
		}
	}
	deadline, _ := soon.Deadline()
	switch {
	case err == nil:
		return work()
	case errors.Is(err, context.DeadlineExceeded) && !time.Now().Before(deadline):
		return &unavailableError{errHeld, time.Minute}
	}
	return err
}

// keeping is what one holder of the lock does, and what it has seen.
type keeping struct {
	*engine
	pages  pages
	before time.Time // of RefreshExpiring: what expires before it is refreshed; else zero
	begun  time.Time

	underWay sync.WaitGroup

	mu       sync.Mutex // of what the refreshes under way change
	asked    int        // token requests
	n        int        // tokens that were refreshed
	failing  map[string]backOff
	early    map[string]struct{} // keys that were refreshed in the second of begun
	fault    error               // the last one of the Store or the Locker
	unbegun  int                 // refreshes in a row that the Store or the Locker did not let begin
	why      error               // the last of these
	shortest time.Duration       // the shortest lead of a token that was seen
	longest  time.Duration       // the longest of one that was seen and waits for its time

	lapsed     *Token // one that had expired when its turn came
	unreadable int    // entries of this pass whose token cannot be read
	empty      int
	failed     int // to load, in a row
	reported   bool
	busy       time.Duration // of the passes that nothing has ended
	sent       int           // token requests in them
	counted    time.Time     // when the tokens have last been counted
}

// backOff is a key that waits after failures.
type backOff struct {
	failures int
	until    time.Time
}

// lead returns how long before its expiry KeepAlive refreshes t.
func lead(t *Token) time.Duration {
	return min(max(t.ExpiresAt.Sub(t.IssuedAt)/2, 0), maxLead)
}

// isDue reports whether KeepAlive refreshes t now.
func isDue(t *Token) bool { return time.Until(t.ExpiresAt) <= lead(t) }

// forever keeps tokens alive for turnOfDuty. It ends early when the store fails.
//
// The first pass sees all that expire within a day. Those that follow go only as far as
// tokens that were seen may be due, and then look at what has come within a day since. A
// token that lives for long is due there at once: its lead takes the passes no further.
func (ke *keeping) forever(ctx context.Context) error {
	reach, seen := maxLead, time.Time{} // what expires before that time has been seen
	for time.Since(ke.begun) < turnOfDuty {
		now := seconds(time.Now()) // as stores keep times
		complete, err := ke.pass(ctx, Expiry{}, now.Add(reach))
		if complete && reach < maxLead {
			complete, err = ke.pass(ctx, Expiry{At: seen}, now.Add(maxLead))
		}
		if away := (*awayError)(nil); errors.As(err, &away) {
			_ = pause(ctx, away.wait())
			continue
		}
		if err != nil {
			return err
		}
		ke.warnOfRate(ctx)
		if !complete {
			continue
		}
		seen = now.Add(maxLead)
		ke.report(ctx)
		look := maxLook
		if ke.shortest > 0 {
			look = min(max(ke.shortest/10, minLook), maxLook)
		}
		if ke.longest > 0 {
			reach = ke.longest + look
		}
		if err := pause(ctx, look); err != nil {
			return err
		}
	}
	return nil
}

// once refreshes what is due now and returns how many tokens it has refreshed.
func (ke *keeping) once(ctx context.Context) (n int, err error) {
	_, err = ke.pass(ctx, Expiry{}, ke.before)
	ke.warnOfRate(ctx)
	ke.report(ctx)
	if err == nil && ke.asked > 0 {
		// The pace holds across runs and across processes.
		_ = pause(ctx, ke.guard.untilJob())
	}
	if err == nil && ke.fault != nil {
		err = fmt.Errorf("ganbauth: not all tokens can be kept alive: %w", ke.fault)
	}
	return ke.n, err
}

// pass goes through the tokens behind an entry that expire before that time, the soonest
// first. It reports whether it has reached the last.
func (ke *keeping) pass(ctx context.Context, after Expiry, before time.Time) (complete bool, err error) {
	begun, already := time.Now(), ke.asked
	defer func() {
		ke.underWay.Wait()
		if err == nil {
			ke.busy += time.Since(begun)
			ke.sent += ke.asked - already
		}
	}()
	if after == (Expiry{}) {
		ke.unreadable, ke.empty, ke.failed = 0, 0, 0
	}
	for {
		page, err := ke.pages.next(ctx, after, before)
		if err != nil || len(page) == 0 {
			return err == nil, err
		}
		turned, asked := time.Now(), ke.asked
		for _, e := range page {
			if ke.isLate(turned, pageTime, asked) {
				return false, nil
			}
			if err := ke.keep(ctx, e.Key); err != nil {
				return false, err
			}
		}
		ke.underWay.Wait()
		if err := ke.takesNoWrites(); err != nil {
			return false, err
		}
		if ke.isLate(begun, frontAfter, asked) {
			return false, nil
		}
		after = page[len(page)-1]
	}
}

// isLate reports whether KeepAlive is to begin at the front again: it has been busy since that
// time for longer than limit, and has got on.
func (ke *keeping) isLate(since time.Time, limit time.Duration, asked int) bool {
	ke.mu.Lock()
	defer ke.mu.Unlock()
	return ke.before.IsZero() && ke.asked > asked && time.Since(since) > limit
}

// keep refreshes the token under storeKey if it is due. It returns an error only for what
// concerns all keys.
func (ke *keeping) keep(ctx context.Context, storeKey string) error {
	who, ok := ke.owned(storeKey)
	if !ok || ke.waits(storeKey) {
		return nil
	}
	ctx = ke.about(ctx, who)
	t, err := ke.look(ctx, storeKey)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrLoginRequired):
		ke.empty++
		return nil
	case isUnreadable(err):
		ke.unreadable++
		ke.fails(err)
		return nil
	case err != nil:
		ke.fails(err)
		ke.backOff(storeKey)
		if ke.failed++; ke.failed < storeAway {
			return nil
		}
		ke.failed = 0
		_, err := ke.records.load(ctx, ke.lock) // nothing is there: only a store that is away fails
		return err
	}
	ke.failed = 0
	if t.RefreshToken == "" {
		return nil
	}
	if !ke.due(storeKey, t) || ke.coolDowns.check(storeKey) != nil || ke.unsaved.get(storeKey) != nil {
		ke.see(t)
		return nil
	}
	if err := ke.takesNoWrites(); err != nil {
		return err
	}
	turn, err := ke.guard.enter(ctx, storeKey, forJob, true)
	if err != nil {
		return err
	}
	if !t.Valid() && lead(t) > 0 { // what SetToken got without an expiry has had no turn to miss
		ke.lapsed = t
	}
	ke.underWay.Go(func() { ke.refreshed(ctx, storeKey, t, turn) })
	return nil
}

// refreshed refreshes t in its turn.
func (ke *keeping) refreshed(ctx context.Context, storeKey string, t *Token, turn *turn) {
	next, err := ke.ahead(ctx, storeKey, t, func(cur *Token) bool { return ke.due(storeKey, cur) }, turn)
	switch {
	case err == nil:
		ke.see(next)
	case !errors.Is(err, ErrLoginRequired):
		ke.see(t)
		ke.backOff(storeKey)
	}
	ke.mu.Lock()
	defer ke.mu.Unlock()
	switch {
	case turn.wasSent():
		ke.asked++
		ke.unbegun = 0
		if err == nil {
			ke.n++
		}
	case kindOf(err).topic == topicUnavailable:
		ke.unbegun++
		ke.fault, ke.why = err, err
	} // else another process or a user's request has refreshed it
	if err != nil {
		return
	}
	delete(ke.failing, storeKey)
	if next.IssuedAt.Equal(seconds(ke.begun)) {
		if ke.early == nil {
			ke.early = map[string]struct{}{}
		}
		ke.early[storeKey] = struct{}{}
	}
}

// fails keeps an error of the Store or the Locker.
func (ke *keeping) fails(err error) {
	ke.mu.Lock()
	defer ke.mu.Unlock()
	ke.fault = err
}

// takesNoWrites returns the error of the Store or the Locker if it has let no refresh begin
// for storeAway keys in a row.
func (ke *keeping) takesNoWrites() error {
	ke.mu.Lock()
	defer ke.mu.Unlock()
	if ke.unbegun < storeAway {
		return nil
	}
	return ke.why
}

// due reports whether t is to be refreshed now. RefreshExpiring does not refresh a token
// again that was issued since it began: with many tokens of a short life it would never end.
func (ke *keeping) due(storeKey string, t *Token) bool {
	switch {
	case ke.before.IsZero():
		return isDue(t)
	case !t.ExpiresAt.Before(ke.before):
		return false
	}
	ke.mu.Lock()
	defer ke.mu.Unlock()
	_, early := ke.early[storeKey]
	return !early && !t.IssuedAt.After(ke.begun)
}

// see notes the lead of a token that waits for its time. The shortest lead says how often to
// look at the store, and the longest how far.
func (ke *keeping) see(t *Token) {
	ke.mu.Lock()
	defer ke.mu.Unlock()
	l := lead(t)
	if time.Until(t.ExpiresAt) < maxLead { // another one is seen again when it comes within a day
		ke.longest = max(ke.longest, l)
	}
	if l > 0 && (ke.shortest == 0 || l < ke.shortest) {
		ke.shortest = l
	}
}

// waits reports whether the key has failed and its time has not come again.
func (ke *keeping) waits(storeKey string) bool {
	ke.mu.Lock()
	defer ke.mu.Unlock()
	return time.Now().Before(ke.failing[storeKey].until)
}

// backOff makes a key whose refresh has failed wait, longer each time.
func (ke *keeping) backOff(storeKey string) {
	ke.mu.Lock()
	defer ke.mu.Unlock()
	if ke.failing == nil {
		ke.failing = map[string]backOff{}
	}
	b := ke.failing[storeKey]
	wait := min(minBackOff<<min(b.failures, 10), maxBackOff)
	ke.failing[storeKey] = backOff{b.failures + 1, time.Now().Add(wait - jitter(wait/4))}
}

// report logs once what cannot be kept alive.
func (ke *keeping) report(ctx context.Context) {
	if ke.reported || ke.fault == nil && ke.empty == 0 {
		return
	}
	ke.reported = true
	level := slog.LevelInfo
	args := []any{"without_token", ke.empty}
	if ke.fault != nil {
		level = slog.LevelError
		args = append(args, "unreadable", ke.unreadable, "error", ke.fault)
	}
	ke.say(ctx, level, "ganbauth: not every entry of the store can be kept alive", args...)
}

// warnOfRate warns, once an hour, if tokens expire before their turn because the rate is
// too low for their number. What counts is the time in which nothing but the rate held it
// up: tokens also expire while the bank or the store is away.
func (ke *keeping) warnOfRate(ctx context.Context) {
	t := ke.lapsed
	if t == nil || ke.busy < time.Minute || time.Since(ke.counted) < turnOfDuty {
		return
	}
	ke.lapsed, ke.counted = nil, time.Now()
	life := min(t.ExpiresAt.Sub(t.IssuedAt), maxLead)
	n, err := ke.count(ctx, time.Now().Add(life))
	if err != nil {
		return // the next pass meets it, too
	}
	needed, reached := perSecond(n, life), perSecond(ke.sent, ke.busy)
	if needed <= reached {
		return
	}
	ke.say(ctx, slog.LevelWarn, "ganbauth: tokens expire before they are refreshed, because too few token requests a second are "+
		"allowed: see Options.TokenRate", "tokens", n, "expire_within", life, "needed_per_second", needed, "reached_per_second", reached)
}

// count returns how many of the kit's tokens expire before that time.
func (ke *keeping) count(ctx context.Context, before time.Time) (n int, err error) {
	for after := (Expiry{}); ; {
		page, err := ke.pages.next(ctx, after, before)
		if len(page) == 0 {
			return n, err
		}
		for _, e := range page {
			if _, ours := ke.owned(e.Key); ours {
				n++
			}
		}
		after = page[len(page)-1]
	}
}

func perSecond(n int, d time.Duration) float64 {
	return math.Round(float64(n)/d.Seconds()*100) / 100
}

// pause waits for d, or until ctx ends, whose error it then returns.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// runs are the calls that keep tokens alive in this process. Shutdown ends them.
type runs struct {
	mu   sync.Mutex
	over bool
	m    map[*run]struct{}

	one keyedMutex // one at a time
}

type run struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// errShutdown is the error of a run that Shutdown has ended.
var errShutdown = fmt.Errorf("ganbauth: ended by Shutdown: %w", context.Canceled)

// start returns the context of a new run. The caller calls end.
func (r *runs) start(ctx context.Context) (_ context.Context, end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil, nil, errShutdown
	}
	ctx, cancel := context.WithCancelCause(ctx)
	this := &run{cancel, make(chan struct{})}
	if r.m == nil {
		r.m = map[*run]struct{}{}
	}
	r.m[this] = struct{}{}
	return ctx, func() {
		cancel(nil)
		close(this.done)
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.m, this)
	}, nil
}

// shutdown ends all runs and waits for their ends, and lets no other begin.
func (r *runs) shutdown(ctx context.Context) error {
	r.mu.Lock()
	r.over = true
	var ends []chan struct{}
	for this := range r.m {
		this.cancel(errShutdown)
		ends = append(ends, this.done)
	}
	r.mu.Unlock()
	return waitForAll(ctx, ends)
}
