package ganbauth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// The token protocol: how a record is refreshed, judged, connected and logged out.
//
// A record is a token or a mark. A mark is a Token without an access token, and to
// everybody who reads it nobody is connected. There are two: a login that finds nothing
// puts a blank mark there first, so that a logout can end that login; and where the bank
// has declared a token dead, a mark with Judged takes the token's place, so that a
// process that has its successor and could not store it yet finds the place again.
//
// Every change is a compare and swap. Three rules follow from what breaks without them:
//
//   - Nothing is ever put where nothing is, but a blank mark. What was in flight when a user
//     logged out finds its place empty and is dropped.
//   - A record has an epoch. A login changes it and everything else keeps it. A login
//     replaces what has the epoch that it began on; everything else replaces exactly one
//     record.
//   - A refresh token or a code is sent only after the store has taken a write of this very
//     record. Its successor is kept, and its lock held, until the store has it.

const (
	// secondLook is how long the loser of a race without a Locker waits for the winner to
	// save.
	secondLook = time.Second

	// markLifetime is longer than a login may take.
	markLifetime = 2 * attemptLifetime

	logoutTimeout  = 10 * time.Second
	lockerPatience = 3 * time.Second // of a logout with a Locker that fails

	minPause, maxPause = 50 * time.Millisecond, 5 * time.Second // between two tries
)

// refreshing is the flight of one refresh of t, which needed has judged necessary. It has
// its turn at the bank.
func (k *keeper) refreshing(key string, t *Token, needed func(*Token) bool, turn *turn) call[*Token] {
	return func(ctx context.Context) (*Token, func(), error) {
		for range 3 {
			next, rest, err := k.refreshOnce(ctx, key, t, turn)
			if !errors.Is(err, ErrSuperseded) {
				return next, rest, err
			}
			if rest != nil {
				shortly(rest)
			}
			// Somebody has refreshed it, logged in or logged out: go by what is there.
			cur, err := k.load(ctx, key)
			switch {
			case err != nil || !needed(cur):
				return cur, nil, err
			case k.unsaved.get(key) != nil:
				cur, err = unstored(cur)
				return cur, nil, err
			}
			t = cur
		}
		return nil, nil, unavailable("ganbauth: refresh: %w", ErrSuperseded)
	}
}

// refreshOnce keeps a place for the successor of t, and spends t.
func (k *keeper) refreshOnce(ctx context.Context, key string, t *Token, turn *turn) (next *Token, rest func(), err error) {
	place := k.unsaved.begin(key)
	defer place.leave()
	return refresh{k, key, t, turn, place, time.Now()}.run(ctx)
}

// refresh is one try to replace a token by its successor. Its steps return the outcome, and
// the rest: what is done when those who wait have their answer.
type refresh struct {
	*keeper
	key   string
	old   *Token
	turn  *turn
	place *place
	begun time.Time
}

// run spends the refresh token once its place is claimed. The error is ErrSuperseded if
// another record is there.
func (r refresh) run(ctx context.Context) (next *Token, rest func(), err error) {
	if r.old.RefreshToken == "" {
		return nil, nil, fmt.Errorf("%w: there is no refresh token", ErrLoginRequired)
	}
	waiting := time.AfterFunc(asideAfter, r.turn.stepAside)
	unlock, err := r.records.claim(ctx, r.key, r.old)
	waiting.Stop()
	switch {
	case errors.Is(err, ErrSuperseded):
		r.warnOfRace(ctx)
		return nil, nil, err
	case err != nil: // nothing is spent
		return r.fail(ctx, err, nil)
	}
	r.turn.sent()
	next, err = r.askLocked(ctx, unlock)
	r.turn.answered(err, r.coolDowns.since(r.key))
	var salvaged *salvagedError
	switch {
	case err == nil:
		r.coolDowns.clear(r.key)
		return r.succeed(ctx, next, unlock)
	case errors.As(err, &salvaged):
		return r.salvage(ctx, salvaged, unlock)
	case r.isVerdict(err):
		return r.lose(ctx, err, unlock)
	}
	return r.fail(ctx, err, unlock)
}

// askLocked sends the refresh token below the lock, which is given back if the application's
// code ends this goroutine (runtime.Goexit).
func (r refresh) askLocked(ctx context.Context, unlock func()) (next *Token, err error) {
	returned := false
	defer func() {
		if !returned && unlock != nil {
			unlock()
		}
	}()
	next, err = r.ask(ctx, func() (*Token, error) { return r.connector.renew(ctx, r.old) })
	returned = true
	return next, err
}

// fail keeps the token and has its key cool down.
func (r refresh) fail(ctx context.Context, err error, unlock func()) (*Token, func(), error) {
	var hint time.Duration
	if e := (*TokenError)(nil); errors.As(err, &e) {
		hint = e.RetryAfter
	}
	return nil, inTurn(unlock, r.tell(ctx, EventRefreshFailed, err)), r.coolDowns.begin(r.key, err, hint)
}

// succeed stores the successor. While the store does not take it, those who wait are served
// with it: the token that was spent is dead.
func (r refresh) succeed(ctx context.Context, next *Token, unlock func()) (*Token, func(), error) {
	p := &placement{r.keeper, r.key, r.place, next, r.old, r.replaces}
	refreshed := r.tell(ctx, EventTokenRefreshed, nil)
	switch _, err := p.put(ctx); {
	case err == nil:
		return next, inTurn(unlock, refreshed), nil
	case errors.Is(err, ErrSuperseded):
		r.warnOfRace(ctx)
		return nil, unlock, ErrSuperseded
	case !r.place.serve(next):
		return nil, unlock, ErrSuperseded // the user has logged out meanwhile
	default:
		return next, p.keepPutting(ctx, err, r.begun, unlock, refreshed), nil
	}
}

// salvage keeps the refresh token of an answer that cannot be used otherwise, beside the
// access token that is there.
func (r refresh) salvage(ctx context.Context, odd *salvagedError, unlock func()) (*Token, func(), error) {
	next := *r.old
	next.RefreshToken = odd.refreshToken.reveal()
	failed := r.tell(ctx, EventRefreshFailed, odd)
	p := &placement{r.keeper, r.key, r.place, &next, r.old, r.replaces}
	switch _, err := p.put(ctx); {
	case err == nil:
		return nil, inTurn(unlock, failed), r.coolDowns.begin(r.key, odd, 0)
	case errors.Is(err, ErrSuperseded):
		return nil, inTurn(unlock, failed), ErrSuperseded
	case !r.place.serve(&next):
		return nil, inTurn(unlock, failed), ErrSuperseded
	default:
		return nil, inTurn(failed, p.keepPutting(ctx, err, r.begun, unlock, nil)), r.coolDowns.begin(r.key, odd, 0)
	}
}

// replaces reports whether cur stands where a successor of the refreshed token belongs.
func (r refresh) replaces(cur *Token) bool {
	return cur.Fingerprint() == r.old.Fingerprint() || isJudged(cur, r.old)
}

// isVerdict reports whether err means that the bank has ended the connection. A gateway's
// refusal does so when it is heard a second time, after the cool-down.
func (r refresh) isVerdict(err error) bool {
	var e *TokenError
	switch {
	case errors.Is(err, errOtherSubject):
		return true
	case !errors.As(err, &e):
		return false
	case e.gatewayRefused():
		return r.coolDowns.suspect(r.key, spendable(r.old))
	}
	return e.grantDead()
}

// lose puts a mark in the place of the token that was judged dead, and of no other.
func (r refresh) lose(ctx context.Context, verdict error, unlock func()) (*Token, func(), error) {
	if r.records.locker == nil && r.old.RefreshToken != "" {
		r.awaitWinner(ctx)
	}
	err := r.records.swap(ctx, r.key, r.old, judged(r.old))
	if err != nil {
		if cur, _ := r.records.load(ctx, r.key); isJudged(cur, r.old) {
			err = nil // it had its effect, and the answer was lost
		}
	}
	switch {
	case errors.Is(err, ErrSuperseded):
		r.warnOfRace(ctx)
		return nil, unlock, ErrSuperseded
	case err != nil: // the next refresh hears the verdict again
		return r.fail(ctx, err, unlock)
	}
	r.coolDowns.clear(r.key)
	lost := r.tell(ctx, EventTokenLost, verdict)
	return nil, inTurn(unlock, lost), fmt.Errorf("%w: %w", ErrLoginRequired, verdict)
}

// awaitWinner waits until another process has replaced the token, which it may be about to
// do if there is no Locker.
func (r refresh) awaitWinner(ctx context.Context) {
	for left, pause := secondLook, minPause; ; pause *= 2 {
		cur, _ := r.records.load(ctx, r.key) // nil if it fails
		if cur.Fingerprint() != r.old.Fingerprint() || left <= 0 {
			return
		}
		time.Sleep(min(pause, left))
		left -= pause
	}
}

// ask makes a token request. A panic on the way, of the application's HTTPClient for one,
// is as good as no answer: the lock must be given back.
func (k *keeper) ask(ctx context.Context, request func() (*Token, error)) (t *Token, err error) {
	err = safely(func() (err error) {
		t, err = request()
		return err
	})
	if p, ok := err.(*panicError); ok {
		k.say(ctx, slog.LevelError, "ganbauth: a token request panicked", "panic", p.text(), "stack", string(p.stack))
		return nil, &TokenError{err: p}
	}
	return t, err
}

// tell returns a function that tells of an event, or nil if nobody listens.
func (r refresh) tell(ctx context.Context, typ EventType, err error) func() {
	if !r.hasListener() {
		return nil
	}
	took := time.Since(r.begun)
	return func() { r.event(ctx, typ, took, err) }
}

// warnOfRace warns, once, if another process refreshes the same tokens and no Locker keeps
// the two apart: a bank that punishes the reuse of a refresh token would end connections.
func (r refresh) warnOfRace(ctx context.Context) {
	if r.records.locker != nil {
		return
	}
	cur, _ := r.records.load(ctx, r.key)
	if !isToken(cur) || cur.Epoch != r.old.Epoch {
		return
	}
	r.raceWarning.Do(func() {
		r.say(ctx, slog.LevelWarn, "ganbauth: another process refreshes the same tokens: set Options.Locker")
	})
}

// connect is a login that has begun at l: exchange sends the code and returns the token.
func (k *keeper) connect(ctx context.Context, key string, l login, exchange func(context.Context) (*Token, error)) error {
	base, place := l.base, l.place
	defer place.leave()
	begun := time.Now()
	mine, err := k.ask(ctx, func() (*Token, error) { return exchange(ctx) })
	if err != nil {
		return k.exchangeFailed(ctx, key, base, err)
	}
	mine.Epoch = rand.Text()
	p := &placement{k, key, place, mine, base, sameLogin(base)}
	there, err := p.putLogin(ctx)
	for pause := minPause; err != nil && !errors.Is(err, ErrSuperseded) && time.Since(begun) < patience; pause *= 2 {
		time.Sleep(pause)
		there, err = p.putLogin(ctx)
	}
	switch {
	case err == nil:
		k.replaced(key, place)
	case errors.Is(err, ErrSuperseded):
		return k.loginRefused(ctx, mine, there)
	case !place.serve(mine):
		return errLoggedOut
	default:
		k.replaced(key, place)
		p.keepPutting(ctx, err, begun, nil, nil)()
	}
	return nil
}

// replaced forgets what was known of key's connection. A login, whose place is by, has
// replaced it, or a logout has ended it, and by is nil.
func (k *keeper) replaced(key string, by *place) {
	k.unsaved.take(key, by)
	k.coolDowns.clear(key)
	k.refusals.clear(key)
}

// sameLogin returns a function that reports whether a record is base, or has become of it.
func sameLogin(base *Token) func(*Token) bool {
	return func(cur *Token) bool { return cur != nil && cur.Epoch == base.Epoch }
}

// login is a login that has begun: the record that it will replace, and its place among the
// changes of its key, which is to be left.
type login struct {
	base  *Token
	place *place
}

// beginLogin comes before all that a login waits for, so that a logout meanwhile wins. It
// proves that the store takes writes under key. What the login will replace is what is
// there, or a mark that it has put there. If what it has written is gone, the user has
// logged out since.
func (k *keeper) beginLogin(ctx context.Context, key string) (login, error) {
	begun := false
	for range 10 {
		cur, err := k.records.load(ctx, key)
		switch {
		case err != nil:
			return login{}, err
		case cur == nil && begun:
			return login{}, errLoggedOut
		}
		base := cur
		switch {
		case cur == nil:
			base = blank(rand.Text())
		case isBlank(cur): // the same record, which must not end during this login
			base = blank(cur.Epoch)
		}
		p := k.unsaved.begin(key)
		err = k.records.swap(ctx, key, cur, base)
		if err == nil && !p.isTaken() {
			return login{base, p}, nil
		}
		p.leave()
		if err != nil && !errors.Is(err, ErrSuperseded) {
			return login{}, err
		}
		begun = begun || err == nil // the user has logged in or out: before that, or since
	}
	return login{}, unavailable("ganbauth: begin login: %w", ErrSuperseded)
}

// blank returns the mark of a login under way.
func blank(epoch string) *Token {
	now := time.Now()
	return &Token{Epoch: epoch, IssuedAt: seconds(now), ExpiresAt: seconds(now.Add(markLifetime))}
}

// isBlank reports whether t is such a mark, or stands for a record that is not sealed.
func isBlank(t *Token) bool { return t.AccessToken == "" && t.Judged == "" }

// exchangeFailed returns nil if the code was refused because another process has used it,
// as it has when a callback was delivered twice.
func (k *keeper) exchangeFailed(ctx context.Context, key string, base *Token, err error) error {
	var e *TokenError
	if errors.As(err, &e) && e.grantDead() {
		cur, _ := k.records.load(ctx, key)
		if isToken(cur) && cur.Epoch != base.Epoch {
			return nil
		}
	}
	return err
}

// loginRefused judges a login whose place was taken before it was stored: by another login,
// which stays, or by a logout, which wins.
func (k *keeper) loginRefused(ctx context.Context, mine, there *Token) error {
	if !isToken(there) {
		return errLoggedOut
	}
	if mine.Subject != there.Subject {
		k.say(ctx, slog.LevelWarn, "ganbauth: of two logins at once the first stays, and it is another bank user's")
	}
	return nil
}

var errLoggedOut = fmt.Errorf("%w: the user has logged out meanwhile", ErrLoginRequired)

// drop is a logout. It waits for no bank and no refresh. It reports whether there was a
// token.
func (k *keeper) drop(ctx context.Context, key string) (was bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logoutTimeout)
	defer cancel()
	begun := time.Now()
	for pause := minPause; ; pause = min(2*pause, time.Second) {
		there, err := k.dropOnce(ctx, key, begun.Add(lockerPatience))
		was = was || there // the answer to the first try may have been lost
		if err == nil {
			k.replaced(key, nil)
			return was, nil
		}
		if errors.Is(err, ErrSuperseded) {
			pause = minPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, unavailable("ganbauth: delete token: %w", err)
		}
	}
}

// dropOnce deletes what is under key, and reports whether that was a token. After patience
// it does without a Locker that fails.
func (k *keeper) dropOnce(ctx context.Context, key string, patience time.Time) (was bool, err error) {
	cur, err := k.records.load(ctx, key)
	switch {
	case isUnreadable(err):
		return true, k.records.delete(ctx, key)
	case cur == nil:
		return false, err
	}
	err = k.records.swap(ctx, key, cur, nil)
	if errors.Is(err, errNotLocked) && time.Now().After(patience) {
		err = k.records.delete(ctx, key)
	}
	return isToken(cur), err
}

// set stores a token that came from elsewhere. It counts as a login: a mark goes before
// it where nothing is, or a write that arrives late would connect a user who has logged
// out. It does not begin again when another record is there: that may have replaced this
// token.
func (k *keeper) set(ctx context.Context, key string, t *Token) error {
	t.Epoch = rand.Text()
	l, err := k.beginLogin(ctx, key)
	switch {
	case errors.Is(err, errLoggedOut):
		return errOvertaken
	case err != nil:
		return err
	}
	defer l.place.leave()
	p := &placement{k, key, l.place, t, l.base, sameLogin(l.base)}
	switch _, err := p.putLogin(ctx); {
	case err == nil:
		k.replaced(key, l.place)
		return nil
	case errors.Is(err, ErrSuperseded):
		return errOvertaken
	default:
		return err
	}
}

var errOvertaken = unavailable("ganbauth: save token: the user has logged in or out meanwhile: %w", ErrSuperseded)

// placement puts a token that the bank has issued in its place.
type placement struct {
	*keeper
	key      string
	place    *place
	mine     *Token
	old      *Token                // what stands there, as far as known
	replaces func(cur *Token) bool // whether mine may replace cur
}

// put replaces what stands there by mine, however often that changes meanwhile. The error
// is ErrSuperseded if the place is taken, and then there is what has taken it; after any
// other error put may be tried again.
func (p *placement) put(ctx context.Context) (there *Token, err error) {
	for range 10 {
		putErr := p.records.swap(ctx, p.key, p.old, p.mine)
		if putErr == nil {
			return p.mine, nil
		}
		cur, err := p.records.load(ctx, p.key)
		switch {
		case err != nil:
			return nil, err
		case cur.Fingerprint() == p.mine.Fingerprint():
			return p.mine, nil // it had its effect, and the answer was lost
		case !p.replaces(cur):
			return cur, ErrSuperseded
		}
		p.old = cur
		if !errors.Is(putErr, ErrSuperseded) {
			return nil, putErr
		}
	}
	return nil, unavailable("ganbauth: the Store says that another record is there, and has the same one")
}

// putLogin is put for a login. If a refresh has already replaced mine, that is a success,
// too.
func (p *placement) putLogin(ctx context.Context) (there *Token, err error) {
	there, err = p.put(ctx)
	if sameLogin(p.mine)(there) {
		return there, nil
	}
	return there, err
}

// keepPutting is for a token that is served from its place. It returns a function that
// tells so, and begins to try until the token is stored or another record is there. Then
// it unlocks, and if the token is stored it calls stored. Both may be nil.
func (p *placement) keepPutting(ctx context.Context, err error, begun time.Time, unlock, stored func()) func() {
	took := time.Since(begun)
	return func() {
		p.event(ctx, EventTokenUnsaved, took, err)
		go func() {
			defer p.place.leave()
			var isStored bool
			defer func() {
				if isStored && stored != nil {
					stored()
				}
			}()
			if unlock != nil {
				defer unlock()
			}
			defer p.place.drop() // an unlock may take its time
			for pause := minPause; ; pause = min(2*pause, maxPause) {
				time.Sleep(pause)
				_, err := p.put(ctx)
				if isStored = err == nil; isStored || errors.Is(err, ErrSuperseded) {
					return
				}
			}
		}()
	}
}

// judged returns the mark that takes the place of a dead token, for as long as the token
// would have stayed.
func judged(t *Token) *Token {
	return &Token{Epoch: t.Epoch, Judged: spendable(t), IssuedAt: t.IssuedAt, ExpiresAt: t.ExpiresAt}
}

// isJudged reports whether cur is the mark that takes t's place. What counts is the token
// that was judged, not the record: another process may have written the same one again.
func isJudged(cur, t *Token) bool {
	return cur != nil && cur.Judged == spendable(t)
}

// spendable identifies what the bank has judged: the refresh token, if there is one.
func spendable(t *Token) string {
	if t.RefreshToken == "" {
		return hash("access " + t.AccessToken)
	}
	return hash("refresh " + t.RefreshToken)
}

// inTurn returns a function that calls all that are not nil, or nil if there is none.
func inTurn(fns ...func()) func() {
	fns = slices.DeleteFunc(fns, func(fn func()) bool { return fn == nil })
	if len(fns) == 0 {
		return nil
	}
	return func() {
		for _, fn := range fns {
			fn()
		}
	}
}
