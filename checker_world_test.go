package ganbauth_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// shape is what the processes of a schedule share.
type shape struct {
	name      string
	processes int
	swaps     bool // the store compares and swaps
	records   bool // its lock brings the record
	locker    bool
	engine    bool // the default store, on an engine of the sessions
	keyed     bool // tokens belong to users, not to sessions
	sealed    bool
	strict    bool // the bank ends a grant whose refresh token comes twice
}

var shapes = []shape{
	{name: "a store that compares and swaps, a Locker", swaps: true, locker: true, keyed: true, strict: true},
	{name: "a store that compares, swaps and locks", swaps: true, records: true, locker: true, keyed: true, strict: true},
	{name: "a store that compares and swaps, no Locker", swaps: true, keyed: true},
	{name: "a store of three methods, a Locker", locker: true, keyed: true, strict: true},
	{name: "the default store, by user", processes: 1, engine: true, keyed: true, strict: true},
	{name: "the default store, by session", processes: 1, engine: true, strict: true},
}

// world is one schedule: who takes part, what is true, and what has happened.
type world struct {
	seed    uint64
	rand    *rand.Rand // of the schedule; calls have their own
	manager *scs.SessionManager
	shape   shape
	bank    *ganbtest.Server
	begun   time.Time
	keys    [][]byte
	grave   chan struct{} // closed when the dead may rest
	going   sync.WaitGroup
	over    bool
	hook    string // what Observe does

	mu        sync.Mutex // never held while time passes
	processes []*process
	users     []*user
	running   []*step
	steps     uint64
	calm      bool     // nothing fails any more
	budget    int      // of faults
	delayed   bool     // somebody has had to wait, and others were quicker
	focus     tripKind // of the calls that fail
	readOnly  bool     // the store takes no writes
	away      bool     // the store answers nothing
	between   int      // trips to the store that are under way
	tally     tally
	lines     []string
	failures  []string

	clean    ganbauth.TokenStore // the store as it is
	names    map[string]string   // of an engine's records: their keys
	locks    map[string]*hold
	lostLock map[string]bool   // by key: of somebody who lives
	aliases  map[string]string // for the schedule, of what is random
	truth
}

// user is a user of the application.
type user struct {
	name    string
	browser http.CookieJar
}

// process is one process with a kit of its own. Everything outside of it is reached through
// reach, which is where it can die or stand still.
type process struct {
	*world
	name    string
	kit     *ganbauth.Kit
	handler http.Handler
	idle    *step // does what the kit does by itself

	dead, leaving atomic.Bool
	tidy          bool
	frozen        time.Time // until then it stands still
	frozenFrom    time.Time
	looked        map[string]int // event of its last look, by key
	told          map[ganbauth.EventType]int
	verdicts      int // marks of dead tokens that it has put
}

func newWorld(seed uint64, manager *scs.SessionManager) *world {
	w := &world{seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), manager: manager, tally: tally{}}
	w.shape = shapes[w.rand.IntN(len(shapes))]
	if w.shape.processes == 0 {
		w.shape.processes = 2 + w.rand.IntN(2)
	}
	w.shape.sealed = w.rand.IntN(4) == 0
	w.shape.strict = w.shape.strict && w.rand.IntN(2) == 0
	w.hook = []string{"", "", "", "panics", "hangs", "asks for a token", "shuts down"}[w.rand.IntN(7)]
	return w
}

// build makes the bank, the store, the users and the first processes.
func (w *world) build(t *testing.T) {
	w.begun = time.Now()
	w.grave = make(chan struct{})
	w.truth = newTruth()
	w.locks, w.lostLock, w.names = map[string]*hold{}, map[string]bool{}, map[string]string{}
	w.aliases = map[string]string{}
	w.bank = ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: w.shape.strict,
		Lifetime: []time.Duration{8 * time.Second, time.Minute, 10 * time.Minute}[w.rand.IntN(3)]})
	if w.shape.sealed {
		w.keys = [][]byte{key(1)}
	}
	var store ganbauth.TokenStore = ganbauth.NewMemoryStore()
	if w.shape.engine {
		sessions := *w.manager
		sessions.Store = memstore.NewWithCleanupInterval(0)
		w.manager = &sessions
		store = ganbauth.NewSCSStore(w.manager)
	}
	if w.clean = store; w.shape.sealed {
		w.clean = ganbauth.Seal(store, w.keys...)
	}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		jar, _ := cookiejar.New(nil)
		w.users = append(w.users, &user{name, jar})
		w.names[w.engineName("bank/"+name)] = "bank/" + name
	}
	for range w.shape.processes {
		w.start(t, store)
	}
	w.say(nil, "%s; %d processes; sealed %v, strict bank %v; Observe %s", w.shape.name, w.shape.processes, w.shape.sealed, w.shape.strict, cmp.Or(w.hook, "works"))
	w.calm = true
	for _, u := range w.users {
		if w.shape.keyed && w.rand.IntN(4) > 0 {
			s := w.step(w.processes[0], u, stepSet, ofHooks<<8+w.steps)
			w.perform(s, 0)
		}
	}
	time.Sleep(2 * time.Minute)
}

// engineName returns the name that the default store gives a record.
func (w *world) engineName(key string) string {
	var name nameOf
	sessions := *w.manager
	sessions.Store = &name
	_ = ganbauth.NewSCSStore(&sessions).Delete(context.Background(), key)
	return string(name)
}

type nameOf string

func (*nameOf) Find(string) ([]byte, bool, error)      { return nil, false, nil }
func (*nameOf) Commit(string, []byte, time.Time) error { return nil }
func (n *nameOf) Delete(name string) error             { *n = nameOf(name); return nil }

// start makes a process.
func (w *world) start(t *testing.T, store ganbauth.TokenStore) {
	p := &process{world: w, name: string(rune('A' + len(w.processes))), looked: map[string]int{}, told: map[ganbauth.EventType]int{}}
	p.idle = &step{world: w, process: p, user: w.users[0], kind: "idle", name: p.name, number: ofHooks<<9 + uint64(len(w.processes))}
	cfg := w.bank.Config()
	cfg.HTTPClient = &http.Client{Transport: wayToBank{p, w.bank.Client().Transport}}
	c, err := ganbauth.NewConnector(w.bank.ClientID, w.bank.ClientSecret, w.bank.AuthMethod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	opts := ganbauth.Options{
		RedirectURI: appURL + "/bank/callback", Scopes: []string{"openid", "offline_access"}, DefaultReturn: "/home",
		Logger: discard, EncryptionKeys: w.keys, Observe: p.observe,
	}
	var sessions *scs.SessionManager
	if w.shape.keyed {
		opts.Key = func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }
	}
	plain := threeMethods{p, store}
	switch {
	case w.shape.engine:
		own := *w.manager
		own.Store = engine{p, own.Store.(*memstore.MemStore)}
		sessions = &own
	case w.shape.records:
		opts.Store = lockingStore{comparing{plain, store.(ganbauth.Swapper)}}
	case w.shape.swaps:
		opts.Store = comparing{plain, store.(ganbauth.Swapper)}
	default:
		opts.Store = plain
	}
	if w.shape.locker && !w.shape.records {
		opts.Locker = locking{p}
	}
	if p.kit, err = ganbauth.New(c, sessions, opts); err != nil {
		t.Fatal(err)
	}
	p.handler = p.mount(sessions)
	w.processes = append(w.processes, p)
}

// observe counts events, and then does in some schedules what a hook should not.
func (p *process) observe(ctx context.Context, e ganbauth.Event) {
	p.mu.Lock()
	p.told[e.Type]++
	number := p.events
	s, _ := ctx.Value(stepKey{}).(*step)
	hook, over := p.hook, p.over
	p.mu.Unlock()
	if s == nil || over {
		return
	}
	switch hook {
	case "panics":
		panic("a hook")
	case "hangs":
		time.Sleep(time.Minute)
	case "asks for a token":
		p.perform(p.step(p, s.user, stepToken, ofHooks+uint64(number)), 0)
	case "shuts down":
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_ = p.kit.Shutdown(ctx)
	}
}

// mount is the application.
func (p *process) mount(sessions *scs.SessionManager) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/bank/login", p.kit.LoginHandler())
	mux.Handle("/bank/callback", p.kit.CallbackHandler())
	mux.Handle("/bank/logout", p.kit.LogoutHandler())
	mux.HandleFunc("/forget", func(w http.ResponseWriter, r *http.Request) {
		if err := p.kit.Forget(w, r); err != nil {
			w.WriteHeader(ganbauth.StatusCode(err))
		}
	})
	mux.Handle("/p", p.kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, _ := ganbauth.TokenFromContext(r.Context())
		_, _ = io.WriteString(w, t.AccessToken)
	})))
	if sessions != nil {
		return sessions.LoadAndSave(mux)
	}
	return mux
}

func (w *world) living() (alive []*process) {
	for _, p := range w.processes {
		if !p.dead.Load() && !p.leaving.Load() {
			alive = append(alive, p)
		}
	}
	return alive
}

// die ends the process: nothing of it gets out any more.
func (p *process) die() {
	if !p.dead.Load() {
		p.dead.Store(true)
		p.leaving.Store(true)
		p.tally["deaths"]++
		p.note(nil, "%s IS DEAD", p.name)
	}
}

// freeze has the process stand still.
func (p *process) freeze(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tally["suspensions"]++
	p.delayed = true
	if time.Now().After(p.frozen) {
		p.frozenFrom = time.Now()
	}
	p.frozen = time.Now().Add(d)
	p.note(nil, "%s STANDS STILL for %v", p.name, d.Round(time.Millisecond))
}

// stoodStill reports whether the process has stood still since then.
func (p *process) stoodStill(since time.Time) bool { return p.frozen.After(since) }

// stillFor returns for how long the process stands still already.
func (p *process) stillFor() time.Duration {
	if time.Now().Before(p.frozen) {
		return time.Since(p.frozenFrom)
	}
	return 0
}

// await returns when the process may go on. For the dead that is at the end, with an error.
func (p *process) await() error {
	for {
		p.mu.Lock()
		dead, left := p.dead.Load(), time.Until(p.frozen)
		p.mu.Unlock()
		switch {
		case dead:
			<-p.grave
			return errBuried
		case left <= 0:
			return nil
		}
		time.Sleep(left)
	}
}

var (
	errBuried = errors.New("the process is dead")
	errFault  = errors.New("a fault")
)

// trip is one call that leaves a process.
type trip struct {
	kind tripKind
	key  string
	what string
}

type tripKind int

const (
	tripLook tripKind = iota
	tripWrite
	tripLock
	tripUnlock
	tripToken
	tripAPI
	tripKinds
)

// fault is what happens to one trip.
type fault struct {
	name  string
	after bool // after the effect
}

// faultsOf lists what can happen to each kind of trip.
var faultsOf = map[tripKind][]fault{
	tripLook: {{"error", false}, {"error", false}, {"hang", false}, {"panic", false}, {"slow", false}, {"death", false}, {"freeze", false}, {"freeze", true}},
	tripWrite: {
		{"error", false}, {"error", true}, {"error", false}, {"error", true}, {"repeated", true}, {"hang", false}, {"hang", true}, {"panic", false},
		{"panic", true}, {"slow", false}, {"slow", true}, {"late", false}, {"death", false}, {"death", true}, {"freeze", false}, {"freeze", true},
	},
	tripLock:   {{"error", false}, {"hang", false}, {"panic", false}, {"slow", false}, {"death", false}, {"death", true}, {"freeze", false}, {"freeze", true}},
	tripUnlock: {{"slow", false}, {"panic", true}, {"death", false}, {"freeze", false}},
	tripToken: {
		{"error", false}, {"error", true}, {"slow", false}, {"slow", true}, {"slow", true}, {"hang", false}, {"hang", true}, {"death", false},
		{"death", true}, {"freeze", false}, {"freeze", true}, {"status", false}, {"refused", false}, {"refused", false}, {"odd", true}, {"odd", true}, {"panic", false},
		{"outage", true}, {"outage", true}, {"outage", true},
	},
	tripAPI: {{"error", false}, {"slow", false}},
}

// strike decides whether something happens to a trip.
func (w *world) strike(r *rand.Rand, v trip) (f fault, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	odds := 0.03
	if v.kind == w.focus {
		odds = 0.35
	}
	if w.calm || w.budget == 0 || r.Float64() > odds {
		return fault{}, false
	}
	choice := faultsOf[v.kind]
	f = choice[r.IntN(len(choice))]
	switch f.name {
	case "repeated", "late":
		if !w.shape.swaps {
			return fault{}, false // see what physics forbids of a store that does not compare
		}
	case "death":
		if len(w.living()) < 2 {
			return fault{}, false
		}
	case "freeze":
		if !w.shape.swaps && w.shape.locker {
			return fault{}, false
		}
	}
	w.budget--
	w.tally["faults"]++
	switch f.name {
	case "slow", "hang", "late", "freeze", "outage":
		w.delayed = true
	}
	return f, true
}

// reach carries a call to the outside and back, with what happens to it on the way. The
// effect returns what the schedule says of it.
func (p *process) reach(ctx context.Context, v trip, effect func(s *step) (string, error)) error {
	s, _ := ctx.Value(stepKey{}).(*step)
	if s == nil || s.process != p {
		s = p.idle
	}
	r := s.draw()
	way := func() time.Duration { return time.Millisecond + time.Duration(r.Int64N(int64(15*time.Millisecond))) }
	if v.kind == tripToken || v.kind == tripAPI {
		way = func() time.Duration {
			return 20*time.Millisecond + time.Duration(r.Int64N(int64(200*time.Millisecond)))
		}
	}
	if err := p.await(); err != nil {
		return err
	}
	if v.kind == tripLook || v.kind == tripWrite {
		p.count(1)
		defer p.count(-1)
	}
	time.Sleep(way())
	f, struck := p.strike(r, v)
	if struck && !f.after {
		if done, err := p.suffer(ctx, s, v, f, r, effect); done {
			return err
		}
	}
	if err := p.await(); err != nil {
		return err
	}
	err := p.take(s, v, effect)
	if struck && f.after {
		if done, err := p.suffer(ctx, s, v, f, r, nil); done {
			return err
		}
	}
	time.Sleep(way())
	if dead := p.await(); dead != nil {
		return dead
	}
	return err
}

func (w *world) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.between += n
}

// take has the effect of a trip.
func (p *process) take(s *step, v trip, effect func(*step) (string, error)) error {
	p.mu.Lock()
	ofStore := v.kind == tripLook || v.kind == tripWrite || v.kind == tripLock && p.shape.records
	switch {
	case p.away && ofStore, p.readOnly && ofStore && v.kind != tripLook:
		p.note(s, "%s %s: the store is away", v.what, p.short(v.key))
		p.mu.Unlock()
		return errFault
	}
	p.mu.Unlock()
	text, err := effect(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == "" {
		text = "ok"
	}
	if err != nil {
		text = err.Error()
	}
	p.note(s, "%s %s: %s", v.what, p.short(v.key), text)
	return err
}

// short names a key for the schedule.
func (w *world) short(key string) string {
	name, beside, _ := strings.Cut(strings.TrimPrefix(key, "bank/"), "//")
	if strings.HasPrefix(name, ";") {
		name = w.alias("session ", name)
	}
	return strings.TrimSuffix(name+" "+beside, " ")
}

// alias numbers what has a random name.
func (w *world) alias(kind, name string) string {
	if w.aliases[kind+name] == "" {
		w.aliases[kind+name] = fmt.Sprint(kind, len(w.aliases)+1)
	}
	return w.aliases[kind+name]
}

// suffer does what a fault does. If done, the trip has ended with err.
func (p *process) suffer(ctx context.Context, s *step, v trip, f fault, r *rand.Rand, effect func(*step) (string, error)) (done bool, err error) {
	when := "before its effect"
	if f.after {
		when = "after its effect"
	}
	p.mu.Lock()
	p.note(s, "%s %s: %s %s", v.what, p.short(v.key), strings.ToUpper(f.name), when)
	p.mu.Unlock()
	switch f.name {
	case "error":
		return true, errFault
	case "repeated":
		return true, ganbauth.ErrSuperseded
	case "panic":
		panic("a fault")
	case "slow":
		p.linger(ctx, time.Duration(r.Int64N(int64(4*time.Second))))
		if ctx.Err() != nil && !f.after {
			return true, ctx.Err()
		}
		return false, nil
	case "hang":
		p.linger(ctx, 3*time.Minute)
		return true, errors.Join(errFault, ctx.Err())
	case "late":
		p.going.Go(func() {
			time.Sleep(time.Duration(r.Int64N(int64(20 * time.Second))))
			_ = p.take(s, v, effect)
		})
		p.linger(ctx, 3*time.Minute)
		return true, errors.Join(errFault, ctx.Err())
	case "outage": // the store fails when the bank has issued a token
		state := []*bool{&p.readOnly, &p.away}[r.IntN(2)]
		d := time.Duration(r.Int64N(int64([]time.Duration{2 * time.Second, 15 * time.Second}[r.IntN(2)])))
		p.say(s, "THE STORE IS AWAY OR TAKES NO WRITE for %v", d)
		p.set(state, true)
		p.going.Go(func() { time.Sleep(d); p.set(state, false) })
		return false, nil
	case "death":
		p.mu.Lock()
		p.die()
		p.mu.Unlock()
		return true, p.await()
	case "freeze":
		p.freeze(time.Duration(r.Int64N(int64(30 * time.Second))))
		return false, p.await()
	case "status", "refused", "odd":
		return true, bankFault(f.name)
	}
	panic(f.name)
}

type bankFault string

func (b bankFault) Error() string { return string(b) }

func (p *process) linger(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// threeMethods is the store as a process reaches it.
type threeMethods struct {
	*process
	store ganbauth.TokenStore
}

func (m threeMethods) Load(ctx context.Context, key string) (t *ganbauth.Token, err error) {
	err = m.reach(ctx, trip{tripLook, key, "load"}, func(s *step) (string, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		t, err = m.store.Load(ctx, key)
		m.saw(s, key)
		if errors.Is(err, ganbauth.ErrTokenNotFound) {
			return "nothing", nil
		}
		return m.nameOf(m.records[key]), err
	})
	if t == nil && err == nil || errors.Is(err, errBuried) {
		err = ganbauth.ErrTokenNotFound
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (m threeMethods) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	return m.write(ctx, key, "save", func() error { return m.store.Save(ctx, key, t) })
}

func (m threeMethods) Delete(ctx context.Context, key string) error {
	return m.write(ctx, key, "delete", func() error { return m.store.Delete(ctx, key) })
}

// write is a trip that changes a record. Only what is answered is a proof.
func (p *process) write(ctx context.Context, key, what string, do func() error) error {
	p.mu.Lock()
	p.events++
	asked := p.events
	p.mu.Unlock()
	var at int
	var by *step
	var there bool
	err := p.reach(ctx, trip{tripWrite, key, what}, func(s *step) (string, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		err := do()
		if err == nil {
			at, by = p.wrote(s, key), s
			there = p.records[key].fingerprint != ""
		} else if errors.Is(err, ganbauth.ErrSuperseded) {
			p.saw(s, key)
		}
		return p.nameOf(p.records[key]), err
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case errors.Is(err, errBuried):
		return ganbauth.ErrSuperseded
	case err == nil && by != nil:
		if there && asked > by.asked { // else it is no login's, or the kit waits for a newer one by now
			by.asked, by.written, by.writtenKey = asked, at, key
		}
		by.prove(key)
	}
	return err
}

func (m threeMethods) Expiring(ctx context.Context, before time.Time) (keys []string, err error) {
	err = m.reach(ctx, trip{tripLook, "", "list"}, func(*step) (string, error) {
		keys, err = m.store.(ganbauth.ExpiryLister).Expiring(ctx, before)
		return fmt.Sprint(keys), err
	})
	return keys, err
}

// comparing is a store that is a Swapper, too.
type comparing struct {
	threeMethods
	swapper ganbauth.Swapper
}

func (c comparing) Swap(ctx context.Context, key string, old, new *ganbauth.Token) error {
	return c.write(ctx, key, "swap", func() error { return c.swapper.Swap(ctx, key, old, new) })
}

// hold is a lock that a process holds.
type hold struct {
	*process
	step *step
}

// lease is how long a lock outlives a process that is dead or stands still.
const lease = 10 * time.Second

// lock waits for a lock. A process that is dead, or has stood still for a lease, loses its
// locks to those who wait.
func (p *process) lock(ctx context.Context, key string, then func(*step)) (unlock func(), err error) {
	wait := lease / 200
	for {
		var mine *hold
		err := p.reach(ctx, trip{tripLock, key, "lock"}, func(s *step) (string, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			held := p.locks[key]
			switch {
			case held == nil:
			case held.dead.Load(), held.stillFor() > lease:
				p.note(s, "takes the lock of %s over from %s", p.short(key), held.step.name)
				p.lostLock[key] = p.lostLock[key] || !held.dead.Load()
			default:
				return "held by " + held.step.name, nil
			}
			mine = &hold{p, s}
			p.locks[key] = mine
			if then != nil {
				then(s)
			}
			return "", nil
		})
		if err != nil {
			if mine != nil {
				p.unlock(mine, key)
			}
			return nil, err
		}
		if mine != nil {
			return func() {
				_ = p.reach(context.WithoutCancel(ctx), trip{tripUnlock, key, "unlock"}, func(*step) (string, error) {
					p.unlock(mine, key)
					return "", nil
				})
			}, nil
		}
		p.linger(ctx, wait)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		wait = min(2*wait, time.Second)
	}
}

func (p *process) unlock(mine *hold, key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.locks[key] == mine {
		delete(p.locks, key)
	}
}

// locking is a Locker.
type locking struct{ *process }

func (l locking) Lock(ctx context.Context, key string) (func(), error) { return l.lock(ctx, key, nil) }

// lockingStore is a store whose lock brings the record.
type lockingStore struct{ comparing }

func (l lockingStore) Lock(ctx context.Context, key string) (func(), error) {
	return l.lock(ctx, key, nil)
}

func (l lockingStore) LockRecord(ctx context.Context, key string) (fingerprint string, unlock func(), err error) {
	var by *step
	unlock, err = l.lock(ctx, key, func(s *step) {
		t, _ := l.store.Load(ctx, key)
		fingerprint, by = t.Fingerprint(), s
		l.saw(s, key)
	})
	if err == nil {
		l.mu.Lock()
		by.prove(key)
		l.mu.Unlock()
	}
	return fingerprint, unlock, err
}

// engine is an engine of sessions as a process reaches it. Only records meet faults.
type engine struct {
	*process
	*memstore.MemStore
}

// travel takes the time that one way to a session takes. To commit or delete a session takes
// none: scs holds a mutex meanwhile.
func (e engine) travel(ctx context.Context) {
	s, _ := ctx.Value(stepKey{}).(*step)
	if s == nil || s.process != e.process {
		s = e.idle
	}
	_ = e.await()
	time.Sleep(time.Millisecond + time.Duration(s.draw().Int64N(int64(15*time.Millisecond))))
}

// record returns the store key of what the engine knows by name, if that is a record.
func (e engine) record(name string) (key string, ok bool) {
	if !strings.Contains(name, ";") {
		return "", false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if key, ok = e.names[name]; !ok {
		key = name
	}
	return key, true
}

func (e engine) FindCtx(ctx context.Context, name string) (data []byte, found bool, err error) {
	key, ok := e.record(name)
	if !ok {
		e.travel(ctx)
		defer e.travel(ctx)
		return e.Find(name)
	}
	err = e.reach(ctx, trip{tripLook, key, "find"}, func(s *step) (string, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		data, found, err = e.Find(name)
		e.saw(s, key)
		return e.process.nameOf(e.records[key]), err
	})
	return data, found, err
}

func (e engine) CommitCtx(ctx context.Context, name string, data []byte, expiry time.Time) error {
	key, ok := e.record(name)
	if !ok {
		return e.Commit(name, data, expiry)
	}
	return e.write(ctx, key, "commit", func() error { return e.Commit(name, data, expiry) })
}

func (e engine) DeleteCtx(ctx context.Context, name string) error {
	key, ok := e.record(name)
	if !ok {
		return e.Delete(name)
	}
	return e.write(ctx, key, "delete", func() error { return e.Delete(name) })
}

// wayToBank is how a process reaches the bank.
type wayToBank struct {
	*process
	bank http.RoundTripper
}

// RoundTrip takes a request to the bank and an answer back. Of a token request it notes what
// was sent, and what the process gets.
func (b wayToBank) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if !strings.HasSuffix(req.URL.Path, "/token") {
		err = b.reach(req.Context(), trip{tripAPI, req.URL.Path, "calls"}, func(*step) (string, error) {
			if resp, err = b.bank.RoundTrip(req); err != nil {
				return "", err
			}
			return resp.Status, nil
		})
		if err != nil {
			return nil, err
		}
		return resp, nil
	}
	text, _ := io.ReadAll(req.Body)
	form, _ := url.ParseQuery(string(text))
	b.mu.Lock()
	b.tally["token requests"]++
	b.mu.Unlock()
	sent := &request{process: b.process, form: form}
	err = b.reach(req.Context(), trip{tripToken, "", form.Get("grant_type")}, func(s *step) (string, error) {
		in := req.Clone(req.Context())
		in.Body = io.NopCloser(strings.NewReader(string(text)))
		b.mu.Lock()
		b.sends(s, sent)
		b.mu.Unlock()
		if resp, err = b.bank.RoundTrip(in); err != nil {
			return "", err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.answered(s, sent, resp.StatusCode, body(resp)), nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	var odd bankFault
	switch isFault := errors.As(err, &odd); {
	case isFault && odd == "odd" && sent.got == nil:
		return resp, b.heard(sent, true)
	case isFault && odd == "odd":
		sent.got.odd = true
		return answer(200, oddAnswer(body(resp))), b.heard(sent, sent.token != nil)
	case isFault && odd == "status":
		return answer(503, ""), b.heard(sent, false)
	case isFault:
		b.refused[sent.form.Get("refresh_token")]++
		return answer(401, `{"errorCode":"WG_ERR_105"}`), b.heard(sent, false)
	case err != nil:
		_ = b.heard(sent, false)
		return nil, err
	}
	_ = b.heard(sent, true)
	return resp, nil
}

func answer(status int, text string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(text)), ProtoMajor: 1, ProtoMinor: 1}
}

// oddAnswer makes an answer that cannot be used, but for its refresh token.
func oddAnswer(text string) string {
	var members map[string]any
	if json.Unmarshal([]byte(text), &members) != nil {
		return text
	}
	delete(members, "token_type")
	data, _ := json.Marshal(members)
	return string(data)
}

// trouble is something that happens to all.
func (w *world) trouble() (plan, bool) {
	d := time.Duration(w.rand.Int64N(int64(15 * time.Second)))
	during := func(state *bool) func() {
		return func() {
			w.set(state, true)
			w.set(&w.delayed, true)
			w.going.Go(func() { time.Sleep(d); w.set(state, false) })
		}
	}
	which := w.rand.IntN(16)
	victim := func() *process {
		alive := w.living()
		return alive[which%len(alive)]
	}
	switch w.rand.IntN(6) {
	case 0:
		return plan{what: fmt.Sprint("THE STORE TAKES NO WRITE for ", d), do: during(&w.readOnly)}, true
	case 1:
		return plan{what: fmt.Sprint("THE STORE IS AWAY for ", d), do: during(&w.away)}, true
	case 2:
		return plan{what: "THE STORE IS EMPTIED", do: w.empty}, true
	case 3:
		return plan{what: "THE BANK ENDS ALL GRANTS", do: w.bank.RevokeGrants}, w.rand.IntN(3) == 0
	case 4:
		return plan{what: "a process stands still", do: func() { victim().freeze(2 * d) }}, w.shape.swaps || !w.shape.locker
	default:
		return plan{what: "a process dies", do: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.living()) > 1 {
				victim().die()
			}
		}}, true
	}
}

func (w *world) set(state *bool, value bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*state = value
}

// empty loses everything that the store has. A store that does not compare is spared while
// somebody is between a look and a write.
func (w *world) empty() {
	for range 1000 {
		if w.emptyNow() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// emptyNow deletes every record, and with it its lock where locks are in the records. It does
// nothing and returns false while a write is under way that compares below a lock.
func (w *world) emptyNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.shape.swaps && w.between > 0 {
		return false
	}
	for key := range w.locks {
		if strings.HasSuffix(key, "//write") {
			return false
		}
	}
	s := &step{world: w, kind: stepEmptied, name: "the store"}
	for _, key := range slices.Sorted(maps.Keys(w.records)) {
		_ = w.clean.Delete(context.Background(), key)
		w.wrote(s, key)
	}
	if w.shape.records {
		for key := range w.locks {
			w.lostLock[key] = true
		}
		clear(w.locks)
	}
	w.emptied()
	return true
}
