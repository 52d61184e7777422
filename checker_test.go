package ganbauth_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/ganbauth/ganbauth"
)

// The model checker: processes that share a store, a Locker and a bank do at random what
// applications do, while at random calls fail, hang, panic, take effect without an answer
// or too late, and processes die or stand still. What must hold is checked after every
// change of a record, at every answer, and when everything has come to rest.
//
// A seed decides everything but the order in which goroutines go on that wake in the same
// nanosecond, and the length of a cool-down. Every call of a process takes a random time
// of its own, so that hardly any two do.
//
//	SEED=17 go test -run TestRandomSchedules .      one seed, with its schedule
//	SEEDS=5000 go test -run TestRandomSchedules .   more of them
func TestRandomSchedules(t *testing.T) {
	first, n := 0, 300
	if s, err := strconv.Atoi(os.Getenv("SEEDS")); err == nil {
		n = s
	}
	if s, err := strconv.Atoi(os.Getenv("SEED")); err == nil {
		first, n = s, 1
	}
	manager := scs.New() // outside of the bubbles: it starts a goroutine that never ends
	total := tally{}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(uint64(seed), manager)
			defer func() {
				if t.Failed() || n == 1 || !w.over {
					fmt.Fprintln(os.Stderr, w.schedule())
				}
			}()
			synctest.Test(t, w.run)
			total.add(w.tally)
		})
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Attr("measured", fmt.Sprintf("%d schedules: %v", n, total))
	for _, what := range []string{"logins", "logouts", "refreshes", "faults", "deaths", "suspensions"} {
		if n > 100 && total[what] == 0 {
			t.Errorf("there were no %s in %d schedules", what, n)
		}
	}
}

// tally counts what the schedules have come to.
type tally map[string]int

func (c tally) add(more tally) {
	for what, n := range more {
		c[what] += n
	}
}

// The kinds of steps.
const (
	stepToken     = "token"
	stepPage      = "page"
	stepCall      = "call"
	stepLogin     = "login"
	stepSet       = "set token"
	stepLogout    = "logout"
	stepKeepAlive = "keep-alive"
	stepShutdown  = "shutdown"
	stepEmptied   = "emptied"
)

// ofHooks is what the numbers of steps begin with that Observe does, or the checker itself.
const ofHooks = 1 << 20

// step is one thing that a user or a job does at one process.
type step struct {
	world   *world
	process *process
	user    *user
	kind    string
	name    string
	number  uint64
	calls   uint64 // so far
	start   time.Time
	leaves  time.Duration // after which its context ends; 0 is never
	done    chan struct{}

	began      int    // event at which it began
	over       int    // event at which it ended; 0 is not yet
	emptied    int    // event at which the store was emptied meanwhile
	key        string // the last store key that it has asked for
	asked      int    // event at which it asked for its last write that was answered
	written    int    // event of that write
	writtenKey string // and its key
	gone       int    // event at which it last knew that nothing is under key

	proven map[string]bool // the keys of which the store has taken a write since the last token request
}

// prove notes that the store has taken a write of key, or beside it. In an engine of
// sessions the name of what is beside is a hash, and no step has two keys.
func (s *step) prove(key string) {
	if s.proven == nil {
		s.proven = map[string]bool{}
	}
	if key, _, _ = strings.Cut(key, "//"); strings.HasPrefix(key, ";") {
		key = ""
	}
	s.proven[key] = true
}

type stepKey struct{}

// context returns the step's own, which ends when a browser or a job leaves.
func (s *step) context() context.Context {
	ctx := context.WithValue(context.Background(), stepKey{}, s)
	if left := time.Until(s.start.Add(s.leaves)); left > 0 {
		leaving, leave := context.WithCancel(ctx)
		time.AfterFunc(left, leave)
		return leaving
	}
	return ctx
}

// draw returns the randomness of the step's next call.
func (s *step) draw() *rand.Rand {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	s.calls++
	return rand.New(rand.NewPCG(s.world.seed, s.number<<24|s.calls))
}

// plan is a step or a fault of the environment that is to come.
type plan struct {
	at   time.Duration
	what string
	do   func()
}

// run is one schedule: rounds of steps that overlap, each followed by a rest.
func (w *world) run(t *testing.T) {
	w.build(t)
	for round := range 1 + w.rand.IntN(3) {
		w.say(nil, "—— round %d", round+1)
		w.round()
		w.rest()
	}
	w.end()
	for _, failure := range w.failures {
		t.Error(failure)
	}
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
}

// spend takes one fault from the budget, if there is one.
func (w *world) spend() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.budget == 0 {
		return false
	}
	w.budget--
	return true
}

// round plans and runs steps that overlap. Most rounds have few kinds of steps and one
// kind of calls that fail: what breaks a protocol is a coincidence, and not much of
// everything.
func (w *world) round() {
	w.mu.Lock() // an unlock of the round before may still be on its way
	w.calm = false
	w.budget = 1 + w.rand.IntN(3)
	w.focus = []tripKind{tripLook, tripWrite, tripWrite, tripLock, tripUnlock, tripToken, tripToken, tripToken, tripKinds}[w.rand.IntN(9)]
	w.mu.Unlock()
	kinds := w.kinds()
	if w.rand.IntN(3) > 0 {
		w.rand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		kinds = append(kinds[:1+w.rand.IntN(3)], stepToken)
	}
	window := []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 5 * time.Second, 30 * time.Second}[w.rand.IntN(4)]
	at := func() time.Duration { return time.Duration(w.rand.Int64N(int64(window))) }
	var plans []plan
	for range 3 + w.rand.IntN(7) {
		plans = append(plans, plan{at(), "", w.newStep(kinds)})
	}
	for range w.rand.IntN(3) {
		if p, ok := w.trouble(); ok && w.spend() {
			p.at = at()
			plans = append(plans, p)
		}
	}
	slices.SortFunc(plans, func(a, b plan) int { return cmp.Compare(a.at, b.at) })
	start := time.Now()
	for _, p := range plans {
		time.Sleep(time.Until(start.Add(p.at)))
		if p.what != "" {
			w.say(nil, "%s", p.what)
		}
		p.do()
	}
	time.Sleep(time.Until(start.Add(window)))
}

// kinds lists what the schedule's steps can be, the frequent ones more often.
func (w *world) kinds() []string {
	kinds := []string{stepToken, stepToken, stepPage, stepPage, stepCall, stepLogin, stepLogin, stepLogin, stepLogout, stepLogout}
	if w.shape.keyed {
		kinds = append(kinds, stepSet)
	}
	if !w.shape.engine {
		kinds = append(kinds, stepKeepAlive)
	}
	if w.shape.processes > 1 {
		kinds = append(kinds, stepShutdown)
	}
	return kinds
}

// newStep chooses a step for a living process.
func (w *world) newStep(kinds []string) func() {
	kind, u := kinds[w.rand.IntN(len(kinds))], w.users[0]
	if w.rand.IntN(5) == 0 {
		u = w.users[w.rand.IntN(len(w.users))]
	}
	which, variant := w.rand.IntN(16), w.rand.IntN(4)
	var leaves time.Duration
	if w.rand.IntN(6) == 0 {
		leaves = time.Millisecond + time.Duration(w.rand.Int64N(int64(500*time.Millisecond)))
	}
	w.steps++
	number := w.steps
	return func() {
		alive := w.living()
		if len(alive) == 0 {
			return
		}
		p := alive[which%len(alive)]
		if kind == stepShutdown && len(alive) < 2 {
			kind = stepToken
		}
		if kind == stepShutdown {
			p.leaving.Store(true)
		}
		s := w.step(p, u, kind, number)
		s.leaves = leaves
		w.going.Go(func() { w.perform(s, variant) })
	}
}

func (w *world) step(p *process, u *user, kind string, number uint64) *step {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events++
	s := &step{world: w, process: p, user: u, kind: kind, number: number, start: time.Now(), done: make(chan struct{}), began: w.events}
	s.name = fmt.Sprint(p.name, number%ofHooks)
	if number > ofHooks {
		s.name = p.name + "hook"
	}
	w.running = append(w.running, s)
	return s
}

// perform does a step, and checks how it ends.
func (w *world) perform(s *step, variant int) {
	defer close(s.done)
	defer func() {
		if p := recover(); p != nil {
			w.fail(s, "a panic gets out: %v\n%s", p, debug.Stack())
		}
	}()
	w.say(s, "%s of %s begins", s.kind, s.user.name)
	var err error
	switch s.kind {
	case stepToken:
		err = w.token(s)
	case stepPage:
		err = w.page(s)
	case stepCall:
		err = w.call(s, variant)
	case stepLogin:
		err = w.login(s, variant)
	case stepSet:
		err = w.setToken(s)
	case stepLogout:
		err = w.logout(s, variant)
	case stepKeepAlive:
		ctx, cancel := context.WithTimeout(s.context(), 25*time.Second)
		_, err = s.process.kit.RefreshExpiring(ctx, time.Hour)
		cancel()
	case stepShutdown:
		err = w.shutdown(s)
	}
	w.ended(s, err)
}

// ended checks what a step has been answered, and how long that took.
func (w *world) ended(s *step, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events++
	s.over = w.events
	took := time.Since(s.start)
	w.note(s, "%s ends after %v: %v", s.kind, took.Round(time.Microsecond), err)
	p := s.process
	if p.dead.Load() || s.kind == stepKeepAlive || s.kind == stepShutdown {
		return
	}
	switch s.kind {
	case stepLogin: // several requests: see ask
	case stepCall: // the API takes its time, too
		w.judgeTime(s, "call", s.start, 2*mostOfAnAnswer)
	default:
		w.judgeTime(s, s.kind, s.start, mostOfAnAnswer)
	}
	switch {
	case err == nil, errors.Is(err, ganbauth.ErrUnavailable):
	case s.leaves > 0 && s.leaves < took:
	case errors.Is(err, ganbauth.ErrLoginRequired):
		w.turnedAway(s)
	case s.kind == stepCall && errors.As(err, new(*url.Error)):
	default:
		w.blame(s, "an error that says neither what to do nor to wait: %v", err)
	}
}

// token asks as a job does.
func (w *world) token(s *step) error {
	if !w.shape.keyed {
		return w.page(s)
	}
	t, err := s.process.kit.Token(s.context(), s.user.name)
	if err == nil {
		w.served(s, t.AccessToken)
	}
	return err
}

// mostOfAnAnswer is ten seconds, and a moment for hooks and for what belongs to an answer.
const mostOfAnAnswer = 10*time.Second + 500*time.Millisecond

// judgeTime: nobody waits for longer, whatever hangs.
func (w *world) judgeTime(s *step, what string, start time.Time, limit time.Duration) {
	if took := time.Since(start); took > limit && !s.process.stoodStill(start) && !s.process.dead.Load() {
		w.blame(s, "the answer to a %s took %v", what, took)
	}
}

var errStatus = map[int]error{401: ganbauth.ErrLoginRequired, 503: ganbauth.ErrUnavailable}

// ask sends a request of the user's browser to the process.
func (w *world) ask(s *step, jar http.CookieJar, method, target string, h http.Header) *http.Response {
	if strings.HasPrefix(target, "/") {
		target = appURL + target
	}
	req := httptest.NewRequestWithContext(s.context(), method, target, nil)
	req.Header = h.Clone()
	req.Header.Set("X-User", s.user.name)
	for _, c := range jar.Cookies(req.URL) {
		req.AddCookie(c)
	}
	start := time.Now()
	rec := httptest.NewRecorder()
	s.process.handler.ServeHTTP(rec, req)
	resp := rec.Result()
	w.mu.Lock()
	w.judgeTime(s, "request for "+req.URL.Path, start, mostOfAnAnswer)
	w.mu.Unlock()
	jar.SetCookies(req.URL, resp.Cookies())
	return resp
}

// page opens a page that needs a token, as a program does.
func (w *world) page(s *step) error {
	resp := w.ask(s, s.user.browser, "GET", "/p", program)
	if resp.StatusCode != 200 {
		return statusError(resp)
	}
	w.served(s, body(resp))
	return nil
}

func statusError(resp *http.Response) error {
	if err := errStatus[resp.StatusCode]; err != nil {
		return err
	}
	return fmt.Errorf("status %d: %s", resp.StatusCode, body(resp))
}

// call asks the bank's API, sometimes with a token that the bank has just ended.
func (w *world) call(s *step, variant int) error {
	if !w.shape.keyed {
		return w.page(s)
	}
	if variant > 0 {
		w.say(s, "the bank ends the access tokens")
		w.bank.ExpireAccessTokens()
	}
	ctx, cancel := context.WithTimeout(s.context(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", w.bank.APIBase()+"/accounts", nil)
	resp, err := s.process.kit.ClientFor(s.user.name).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return nil
}

// login connects the user's account, with a callback that may be delivered twice.
func (w *world) login(s *step, variant int) error {
	jar := s.user.browser
	if w.shape.keyed {
		jar, _ = cookiejar.New(nil)
	}
	resp := w.ask(s, jar, "GET", "/bank/login", navigate)
	if resp.StatusCode != http.StatusSeeOther {
		return statusError(resp)
	}
	callback := w.bank.Approve(resp.Header.Get("Location"))
	u, _ := url.Parse(callback)
	w.mu.Lock()
	code := u.Query().Get("code")
	granted := w.bank.Grants()
	w.codes[code], w.subjects[code] = s.user, granted[len(granted)-1].Subject
	other := w.living()
	w.mu.Unlock()
	if variant == 1 { // twice at once, at two processes if there are two
		twin := w.step(other[int(s.number)%len(other)], s.user, stepLogin, s.number+1000)
		jarOfTwin, _ := cookiejar.New(nil)
		jarOfTwin.SetCookies(u, jar.Cookies(u))
		w.going.Go(func() {
			defer close(twin.done)
			time.Sleep(time.Duration(twin.draw().Int64N(int64(100 * time.Millisecond))))
			if w.shape.keyed {
				w.ask(twin, jarOfTwin, "GET", callback, navigate)
			}
		})
	}
	for range 2 {
		resp = w.ask(s, jar, "GET", callback, navigate)
		if resp.StatusCode != http.StatusServiceUnavailable {
			break
		}
		time.Sleep(time.Duration(s.draw().Int64N(int64(2 * time.Second)))) // the user reloads
	}
	if resp.StatusCode != http.StatusSeeOther {
		if resp.StatusCode >= 500 && resp.StatusCode != 503 && resp.StatusCode != 502 {
			return statusError(resp)
		}
		return nil // the page says what has happened
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events++
	for _, g := range w.grants {
		if g.by == s && g.tokens[0].lost == "" && !s.process.dead.Load() {
			g.told = w.events
		}
	}
	return nil
}

// setToken brings a token from elsewhere.
func (w *world) setToken(s *step) error {
	t := w.bank.Token()
	w.mu.Lock()
	g := w.issue(s, s.user, t.AccessToken, t.RefreshToken)
	g.key, g.brought = "bank/"+s.user.name, true
	w.note(s, "brings %s", g.name)
	w.mu.Unlock()
	err := s.process.kit.SetToken(s.context(), s.user.name, t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.lose(g, 0, "SetToken failed")
	}
	return err
}

// logout ends the user's connection in one of three ways. Afterwards nothing that was
// under way before connects the user again.
func (w *world) logout(s *step, variant int) error {
	var err error
	switch {
	case variant == 0 && w.shape.keyed:
		err = s.process.kit.Disconnect(s.context(), s.user.name)
	default:
		path := "/bank/logout"
		if variant == 1 {
			path = "/forget"
		}
		resp := w.ask(s, s.user.browser, "POST", path, with(navigate, "Sec-Fetch-Site", "same-origin"))
		if resp.StatusCode >= 400 {
			err = statusError(resp)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && !s.process.dead.Load() {
		w.loggedOut(s)
	}
	return err
}

// shutdown ends a process in order. What it has been issued before is stored then.
func (w *world) shutdown(s *step) error {
	p := s.process
	w.mu.Lock()
	running := slices.Clone(w.running)
	w.mu.Unlock()
	for _, other := range running {
		if other.process == p && other != s {
			<-other.done
		}
	}
	ctx, cancel := context.WithTimeout(s.context(), time.Minute)
	defer cancel()
	err := p.kit.Shutdown(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.tidy = err == nil && !p.dead.Load(); p.tidy {
		for _, r := range w.requests {
			if r.process == p && !r.over {
				w.blame(s, "Shutdown has returned, and a token request of %s is under way", r.step.name)
			}
		}
	}
	p.die()
	return err
}
