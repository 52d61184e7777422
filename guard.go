package ganbauth

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxRefreshes may be at the bank while it does not answer. Each answer of the last
	// second allows one more, so that a bank that is well is as quick as it can be.
	maxRefreshes = 64
	// mostRefreshes and maxLogins are, together, the connections for token requests.
	mostRefreshes = 960
	maxLogins     = 64
	// maxJobs of the refreshes may be nobody's who waits.
	maxJobs = 16
	// maxAside more may wait for locks for longer than asideAfter: those of a process that
	// hangs or has died must not take all turns of one that is well.
	maxAside   = 128
	asideAfter = time.Second

	// maxWait is how long a request waits for a refresh or a code exchange. The work goes
	// on without it.
	maxWait = 10 * time.Second

	// maxQueue is how much of maxWait a request may spend in the queue. What is left is for
	// the lock and the bank.
	maxQueue = 8 * time.Second

	// The bank is away when this many users in a row have failed: fewAway of them in a way
	// that says so, or manyUnclear in any way.
	fewAway     = 3
	manyUnclear = 16

	// The pause between two probes grows with the time for which the bank has been away.
	minProbePause, maxProbePause = time.Second, time.Minute

	// firstRate is how many token requests a second are sent when the bank is back.
	firstRate = 10
	minRate   = 1.0 / 60
	// rateKept is for how long a rate is kept that nobody has had to wait for.
	rateKept = time.Minute
)

// guard stands between a Kit and the bank's token endpoint. It decides which token
// requests may be sent, and when. What one of them learns about the bank holds for all:
//
//   - While the bank is well, only the number of requests under way is bounded.
//   - A bank that limits the rate is sent as many requests a second as it takes.
//   - While the bank is away, one request at a time finds out whether it is back, and all
//     others are refused at once.
//
// Requests wait for their turn in their callers' goroutines, before they hold a lock.
// They leave nothing behind. docs/reliability.md has a table of the states.
type guard struct {
	observer

	mu         sync.Mutex
	waiting    [classes]list.List // of *turn
	out        [classes]int       // those that have their turn
	aside      int                // those that have it and wait for a lock
	asked      map[string]bool    // keys whose request the bank has and has not answered
	sinceLogin int                // refreshes that went before a login that waits
	nextJob    time.Time          // when the next job may go, without a TokenRate
	timer      *time.Timer        // for the first that waits for its time
	answers    meter              // of the bank, in the last second
	turnedAway meter              // requests that got no turn, in the last ten
	pace       pace
	breaker    breaker
}

// newGuard returns a guard that lets at most rate requests a second pass, or any number
// if rate is 0.
func newGuard(rate float64, o observer) *guard {
	return &guard{
		observer:   o,
		asked:      map[string]bool{},
		answers:    meter{tenth: time.Second / 10},
		turnedAway: meter{tenth: time.Second},
		pace:       pace{limit: rate},
	}
}

// class says on whose behalf a token request is. Where not all can go, users go before
// jobs, and refreshes before logins but for one turn in four.
type class int

const (
	forUser  class = iota // a refresh that a request needs
	forLogin              // the exchange of a code
	forJob                // a refresh ahead, for which nobody waits
	classes
)

// turn is the right to send one token request. Its holder calls leave at the end.
type turn struct {
	guard *guard
	key   string
	class class
	probe bool // it finds out whether the bank is back; its caller should not wait for that

	// Guarded by the guard's mu.
	place   *list.Element // in the queue
	ready   chan struct{} // closed when it is the turn's time, or it is refused
	refused error
	sentAt  time.Time
	late    *time.Timer
	aside   bool // it waits for a lock, and others go meanwhile
	heard   bool // an outcome is known, or there has been none for too long
	left    bool
}

// enter waits for the turn of key. The error is an ErrUnavailable if the bank is away, if
// ctx ends, or if the bank's rate does not let the turn come within maxQueue. Without
// patience the turn comes at once or not at all. A job waits for as long as ctx lasts.
func (g *guard) enter(ctx context.Context, key string, c class, patient bool) (*turn, error) {
	t := &turn{guard: g, key: key, class: c, ready: make(chan struct{})}
	g.mu.Lock()
	err := g.queue(time.Now(), t, patient)
	g.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-t.ready:
	case <-ctx.Done():
		if err := g.withdraw(t); err != nil {
			return nil, err
		}
	}
	if t.refused != nil {
		return nil, t.refused
	}
	return t, nil
}

// check returns why no request of a user's can be sent, if it is because the bank is
// away.
func (g *guard) check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); !g.breaker.allows(now) {
		return g.breaker.refusal(now)
	}
	return nil
}

// untilJob returns the time until the next job may go.
func (g *guard) untilJob() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Until(g.timeOf(forJob))
}

// queue gives t its turn, a place in the queue, or an error. The caller holds g.mu.
func (g *guard) queue(now time.Time, t *turn, patient bool) error {
	switch {
	case !g.breaker.allows(now):
		return g.breaker.refusal(now)
	case g.breaker.away:
		t.probe, g.breaker.probe = true, t
		g.grant(now, t)
		return nil
	}
	t.place = g.waiting[t.class].PushBack(t)
	g.dispatch(now)
	if t.place == nil || patient {
		return nil
	}
	err := g.turnAway(now, t)
	g.dispatch(now) // the timer may have been for this one
	return err
}

// turnAway takes t out of the queue, and returns what its request is told.
func (g *guard) turnAway(now time.Time, t *turn) error {
	g.unqueue(t)
	g.turnedAway.add(now)
	return &unavailableError{errBusy, g.busyFor(now)}
}

// busyFor returns when to come again: spread over the time that it takes to serve those
// who were turned away lately, a minute at most, once those who wait have been served. The
// bank may have asked for a pause before all that.
func (g *guard) busyFor(now time.Time) time.Duration {
	rate := g.pace.perSecond()
	if rate == 0 {
		rate = float64(max(g.answers.sum(now), 1))
	}
	timeFor := func(n int) time.Duration {
		return time.Duration(min(float64(n)/rate, 60) * float64(time.Second)) // what is longer may not fit
	}
	wait := g.waiting[forUser].Len()
	pause := max(g.pace.next.Sub(now)-g.pace.interval(), 0)
	return max(pause+timeFor(wait)+jitter(timeFor(g.turnedAway.sum(now))), retrySoon)
}

func (g *guard) unqueue(t *turn) {
	g.waiting[t.class].Remove(t.place)
	t.place = nil
}

// withdraw takes a request that has gone out of the queue. It returns nil if the turn has
// come just then.
func (g *guard) withdraw(t *turn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.place == nil {
		return nil
	}
	now := time.Now()
	err := g.turnAway(now, t)
	g.dispatch(now)
	return err
}

// dispatch gives turns to those who can go now. The caller holds g.mu.
func (g *guard) dispatch(now time.Time) {
	if g.pace.learn(now) {
		g.tell(slog.LevelWarn, "ganbauth: the bank limits the rate of token requests", "per_second", g.pace.rate)
	}
	g.trim(now)
	for {
		t, at := g.next(now)
		if t == nil || at.After(now) {
			g.wakeAt(now, at)
			return
		}
		g.grant(now, t)
	}
}

// next returns who goes next, and when, or nil if nobody waits for whom there is room.
func (g *guard) next(now time.Time) (t *turn, at time.Time) {
	order := [...]class{forUser, forLogin, forJob}
	if g.sinceLogin >= 3 {
		order = [...]class{forLogin, forUser, forJob}
	}
	for _, c := range order {
		front := g.waiting[c].Front()
		if front == nil || !g.room(now, c) {
			continue
		}
		return front.Value.(*turn), g.timeOf(c)
	}
	return nil, time.Time{}
}

// timeOf returns when the next of the class may go.
func (g *guard) timeOf(c class) time.Time {
	if c == forJob && g.pace.limit == 0 && g.nextJob.After(g.pace.next) {
		return g.nextJob
	}
	return g.pace.next
}

// room reports whether one more of the class may be under way.
func (g *guard) room(now time.Time, c class) bool {
	if c == forLogin {
		return g.out[c] < maxLogins
	}
	most := min(maxRefreshes+g.answers.sum(now), mostRefreshes)
	return g.out[forUser]+g.out[forJob] < most && (c == forUser || g.out[c] < maxJobs)
}

// trim turns those away whose turn would not come in time. Jobs have time.
func (g *guard) trim(now time.Time) {
	for _, c := range [...]class{forLogin, forUser} {
		q := &g.waiting[c]
		for q.Len() > 0 && g.timeForAll(now, c) > maxQueue {
			t := q.Back().Value.(*turn)
			t.refuse(g.turnAway(now, t))
		}
	}
}

// timeForAll returns the time until all refreshes that wait may go, or all logins. Where
// both wait, one turn in four is a login's.
func (g *guard) timeForAll(now time.Time, c class) time.Duration {
	users, logins := g.waiting[forUser].Len(), g.waiting[forLogin].Len()
	if c == forLogin {
		return g.pace.timeFor(now, logins+min(3*logins, users))
	}
	return g.pace.timeFor(now, users+min(users/3, logins))
}

// grant gives t its turn.
func (g *guard) grant(now time.Time, t *turn) {
	if t.place != nil {
		g.unqueue(t)
	}
	switch {
	case t.class == forLogin:
		g.sinceLogin = 0
	case g.waiting[forLogin].Len() > 0:
		g.sinceLogin++
	}
	if t.class == forJob {
		g.nextJob = now.Add(time.Second)
	}
	g.pace.take(now)
	g.out[t.class]++
	close(t.ready)
}

func (tn *turn) refuse(err error) {
	tn.refused = err
	close(tn.ready)
}

// wakeAt has dispatch called at that time, if there is one.
func (g *guard) wakeAt(now, at time.Time) {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if at.IsZero() {
		return
	}
	if at.Equal(g.pace.next) { // not a job that waits for the job before it
		g.pace.waited = now
	}
	g.timer = time.AfterFunc(at.Sub(now), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.dispatch(time.Now())
	})
}

// stepAside lets others go while the turn's holder waits for a lock, and another look for
// the bank. It comes back without waiting once more, as it holds the lock then.
func (tn *turn) stepAside() {
	g := tn.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if tn.left || tn.aside || !tn.sentAt.IsZero() || g.aside == maxAside {
		return
	}
	tn.aside = true
	g.aside++
	g.out[tn.class]--
	tn.noProbe()
	g.dispatch(time.Now())
}

// noProbe lets another turn be the probe. The caller holds g.mu.
func (tn *turn) noProbe() {
	if br := &tn.guard.breaker; br.probe == tn {
		br.probe = nil
	}
}

// comeBack undoes stepAside. The caller holds g.mu.
func (tn *turn) comeBack() {
	if tn.aside {
		tn.aside = false
		tn.guard.aside--
		tn.guard.out[tn.class]++
	}
}

// sent is called when the request goes out.
func (tn *turn) sent() {
	g := tn.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	tn.comeBack()
	tn.sentAt, tn.heard = time.Now(), false
	g.asked[tn.key] = true
	tn.late = time.AfterFunc(maxWait, func() { tn.answered(&TokenError{err: errOverdue}, time.Time{}) })
}

// wasSent reports whether the request has gone out.
func (tn *turn) wasSent() bool {
	tn.guard.mu.Lock()
	defer tn.guard.mu.Unlock()
	return !tn.sentAt.IsZero()
}

// notYet returns the error of a request that has waited for key in vain: for the bank, if
// it has been asked, or else for what err says.
func (g *guard) notYet(key string, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked[key] {
		return &unavailableError{&TokenError{err: errOverdue}, retrySoon}
	}
	return err
}

// errOverdue stands for the answer of a bank that has not answered within maxWait.
var errOverdue = context.DeadlineExceeded

// answered is called with what came of the request. The user of a refresh has been
// failing since that time, which is zero if the last refresh was well.
func (tn *turn) answered(err error, failingSince time.Time) {
	g, now := tn.guard, time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	tn.late.Stop()
	if !errors.Is(err, errOverdue) {
		delete(g.asked, tn.key)
	}
	sign := signOf(err)
	if tn.left || tn.heard && sign != signAlive {
		return
	}
	tn.heard = true
	// What a browser sends to the callback must not decide for others: a login counts only
	// as a probe.
	counts := tn.class != forLogin || tn.probe
	switch {
	case sign == signAlive:
		g.answers.add(now)
		g.pace.answered()
		since := g.breaker.since
		if counts && g.breaker.answered(now) {
			g.pace.restart(now)
			g.tell(slog.LevelInfo, "ganbauth: the bank is back", "away", now.Sub(since))
		}
	case sign == signTooMany && !g.pace.tooMany(now, tn.sentAt, hintOf(err), g.answers.sum(now)):
		// It was sent before the bank's last word on that.
	case counts && g.breaker.failed(now, tn, sign, err, failingSince):
		g.tell(slog.LevelWarn, "ganbauth: the bank is away; one token request at a time looks for it", "error", err)
		g.refuseAll(now)
	}
	tn.noProbe() // it may be late, and never leave
	if g.breaker.away && g.pace.next.After(g.breaker.until) {
		g.breaker.until = g.pace.next // a probe goes no sooner than another request
	}
	g.dispatch(now)
}

// refuseAll tells everybody who waits that the bank is away.
func (g *guard) refuseAll(now time.Time) {
	for c := range g.waiting {
		for e := g.waiting[c].Front(); e != nil; e = g.waiting[c].Front() {
			t := e.Value.(*turn)
			g.unqueue(t)
			t.refuse(g.breaker.refusal(now))
		}
	}
}

// leave ends the turn. One that was not used is not lost.
func (tn *turn) leave() {
	g, now := tn.guard, time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if tn.left {
		return
	}
	tn.left = true
	tn.comeBack()
	g.out[tn.class]--
	if tn.late != nil {
		tn.late.Stop()
	}
	if !tn.sentAt.IsZero() {
		delete(g.asked, tn.key)
	} else {
		g.pace.giveBack()
		if tn.class == forJob {
			g.nextJob = now
		}
	}
	tn.noProbe()
	g.dispatch(now)
}

// tell logs in a goroutine of its own, because its caller holds g.mu.
func (g *guard) tell(level slog.Level, message string, args ...any) {
	go g.say(context.Background(), level, message, args...)
}

// sign is what the outcome of a token request says about the bank.
type sign int

const (
	signAlive   sign = iota // the bank deals with this user
	signTooMany             // 429
	signUnclear             // this user's trouble, or the bank's
	signAway                // no answer, or one that says that the bank is away
)

// signOf reads the outcome of a token request.
func signOf(err error) sign {
	var (
		salvaged *salvagedError
		e        *TokenError
		dialed   *net.OpError
	)
	switch {
	case err == nil, errors.As(err, &salvaged), errors.Is(err, errOtherSubject):
		return signAlive
	case !errors.As(err, &e):
		return signUnclear
	case e.grantDead(), e.gatewayRefused():
		return signAlive
	case e.StatusCode == http.StatusTooManyRequests:
		return signTooMany
	case e.StatusCode == 0 && isTimeout(e.err), errors.As(e.err, &dialed) && (dialed.Op == "dial" || dialed.Op == "proxyconnect"):
		return signAway
	case e.Code == codeMaintenance, e.Code == "temporarily_unavailable", e.StatusCode > http.StatusInternalServerError:
		return signAway
	}
	return signUnclear
}

// hintOf returns the Retry-After of the bank's answer, or 0.
func hintOf(err error) time.Duration {
	var e *TokenError
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// breaker knows whether the bank is away. Time is its caller's, as is the lock.
type breaker struct {
	failing  map[string]sign // the users who have failed since the last answer
	answerAt time.Time       // when the bank has last dealt with a user
	since    time.Time       // when the first of the failing has failed
	notUntil time.Time       // what the bank has asked for, by Retry-After
	toldAt   time.Time       // when it has

	away  bool
	cause error     // the last failure
	until time.Time // when the next probe may be sent
	probe *turn     // the one that is under way
}

// failed counts a failure, and reports whether it means that the bank is away from now
// on. A user who was already failing while the bank dealt with others says nothing about
// the bank.
func (br *breaker) failed(now time.Time, t *turn, s sign, err error, failingSince time.Time) (opened bool) {
	if br.away && br.probe != t || !failingSince.IsZero() && failingSince.Before(br.answerAt) {
		return false
	}
	old := now.Sub(br.toldAt) > maxProbePause // it says nothing about this outage
	if at := now.Add(hintOf(err)); old || at.After(br.notUntil) {
		br.notUntil, br.toldAt = at, now
	}
	br.cause = err
	if br.away {
		br.pause(now)
		return false
	}
	if br.failing == nil {
		br.failing, br.since = map[string]sign{}, now
	}
	br.failing[t.key] = max(br.failing[t.key], s)
	away := 0
	for _, s := range br.failing {
		if s != signUnclear {
			away++
		}
	}
	if away < fewAway && len(br.failing) < manyUnclear {
		return false
	}
	br.away, br.failing = true, nil
	br.pause(now)
	return true
}

// pause sets the time of the next probe. Machines that found out together look again
// apart.
func (br *breaker) pause(now time.Time) {
	wait := min(max(now.Sub(br.since)/4, minProbePause), maxProbePause)
	br.until = now.Add(wait - jitter(wait/5))
	if br.notUntil.After(br.until) {
		br.until = br.notUntil
	}
}

// answered forgets the failures, and reports whether the bank was away until now.
func (br *breaker) answered(now time.Time) (back bool) {
	back = br.away
	*br = breaker{answerAt: now}
	return back
}

// allows reports whether a request may be sent: the bank is not away, or it is time for a
// probe. While the bank is well, probe and until are zero.
func (br *breaker) allows(now time.Time) bool { return br.probe == nil && !now.Before(br.until) }

// refusal is what those are told who cannot be served while the bank is away.
func (br *breaker) refusal(now time.Time) error {
	wait := max(br.until.Sub(now), retrySoon)
	return &awayError{&unavailableError{br.cause, wait + jitter(wait/4)}}
}

// awayError is an unavailableError while the bank is away for everybody.
type awayError struct{ *unavailableError }

// Unwrap lets [errors.As] find the unavailableError.
func (e *awayError) Unwrap() error { return e.unavailableError }

// pace is how many token requests a second may be sent. Time is its caller's, as is the
// lock.
//
// After a 429 nothing is sent for as long as the bank asks, a second at least. Then the
// rate is a little less than what the bank took before. Each answer raises it: very
// slowly near the rate at which the bank has refused, quicker above it, and by one a
// second where no such rate is known, which doubles it in less than a second. Requests
// are spaced evenly.
type pace struct {
	limit   float64 // Options.TokenRate; 0: none
	rate    float64 // what was learnt; 0: nothing
	ceiling float64 // the rate at which the bank has refused last; 0: not known

	next     time.Time // when the next request may be sent
	refused  time.Time // when the bank has refused last
	learning bool      // the rate is known at next
	took     int       // what the bank has taken in the second before it refused
	waited   time.Time // when somebody has last had to wait
}

// perSecond returns the rate, or 0 if there is none.
func (pc *pace) perSecond() float64 {
	if pc.limit > 0 && (pc.rate == 0 || pc.rate > pc.limit) {
		return pc.limit
	}
	return pc.rate
}

// interval returns the time between two requests.
func (pc *pace) interval() time.Duration {
	if rate := pc.perSecond(); rate > 0 {
		return time.Duration(float64(time.Second) / rate)
	}
	return 0
}

// timeFor returns the time until the last of n requests may be sent.
func (pc *pace) timeFor(now time.Time, n int) time.Duration {
	wait := max(pc.next.Sub(now), 0)
	if !pc.learning { // else the rate is not known yet
		wait += time.Duration(n-1) * pc.interval()
	}
	return wait
}

// take counts a request that is sent now.
func (pc *pace) take(now time.Time) {
	if !pc.learning && now.Sub(pc.waited) > rateKept {
		pc.rate, pc.ceiling = 0, 0
	}
	if pc.next.Before(now) {
		pc.next = now
	}
	pc.next = pc.next.Add(pc.interval())
}

// giveBack counts out a request that was not sent.
func (pc *pace) giveBack() {
	if !pc.learning {
		pc.next = pc.next.Add(-pc.interval())
	}
}

// answered raises the rate.
func (pc *pace) answered() {
	switch {
	case pc.learning:
		pc.took++
	case pc.rate == 0:
	case pc.ceiling == 0:
		pc.rate++
	case pc.rate < 1.05*pc.ceiling:
		pc.rate += 0.001
	default:
		pc.rate += 0.1
	}
}

// tooMany holds requests back after a 429. It reports whether the refused request was
// sent after the last refusal: those that were under way together are refused together.
func (pc *pace) tooMany(now, sent time.Time, hint time.Duration, took int) (again bool) {
	if at := now.Add(max(hint, time.Second)); at.After(pc.next) {
		pc.next = at
	}
	if again = sent.After(pc.refused); again {
		pc.learning, pc.took = true, took
	}
	pc.refused = now
	return again
}

// learn sets the rate when requests may be sent again, and reports whether there was
// none.
func (pc *pace) learn(now time.Time) (first bool) {
	if !pc.learning || pc.next.After(now) {
		return false
	}
	first = pc.rate == 0
	took := float64(max(pc.took, 1))
	if pc.ceiling = pc.perSecond(); pc.ceiling == 0 || took < 0.8*pc.ceiling {
		pc.ceiling = took
	}
	pc.rate, pc.learning, pc.waited = max(0.95*pc.ceiling, minRate), false, now
	return first
}

// restart begins with a low rate, because everybody comes when the bank is back.
func (pc *pace) restart(now time.Time) {
	if pc.rate == 0 || pc.rate > firstRate {
		pc.rate, pc.ceiling = firstRate, 0
	}
	pc.learning, pc.waited = false, now
}

// meter counts what has happened in the last ten tenths.
type meter struct {
	tenth time.Duration
	begun time.Time
	last  int64 // the tenth that was counted in last
	n     [10]int
}

func (m *meter) add(now time.Time) {
	m.forget(now)
	m.n[m.last%10]++
}

func (m *meter) sum(now time.Time) (sum int) {
	m.forget(now)
	for _, n := range m.n {
		sum += n
	}
	return sum
}

// forget clears the tenths that are over.
func (m *meter) forget(now time.Time) {
	if m.begun.IsZero() {
		m.begun = now
	}
	tenth := max(int64(now.Sub(m.begun)/m.tenth), m.last)
	for i := max(m.last+1, tenth-9); i <= tenth; i++ {
		m.n[i%10] = 0
	}
	m.last = tenth
}
