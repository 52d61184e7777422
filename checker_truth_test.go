package ganbauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ganbauth/ganbauth"
)

// truth is what the checker knows and the processes do not: whose each token is, what a
// record may change to, and why a connection is over.
type truth struct {
	events  int               // a clock of what has happened
	records map[string]record // what the store has, by key
	moves   map[string][]move // what it has had
	grants  []*grant
	byRefresh,
	byAccess map[string]*issued
	byEpoch  map[string]*grant
	codes    map[string]*user  // whose a code is
	subjects map[string]string // who that is at the bank
	refused  map[string]int    // refresh tokens that the gateway has refused, by how often
	spent    map[string][]*request
	requests []*request // of this round
}

func newTruth() truth {
	return truth{records: map[string]record{}, moves: map[string][]move{}, byRefresh: map[string]*issued{}, byAccess: map[string]*issued{},
		byEpoch: map[string]*grant{}, codes: map[string]*user{}, subjects: map[string]string{}, refused: map[string]int{}, spent: map[string][]*request{}}
}

// grant is one login, or one token that SetToken has brought.
type grant struct {
	name, subject string
	user          *user
	key           string // of the store
	by            *step
	tokens        []*issued // by generation
	begun         int       // event of its first write
	stored        int       // event at which it was in the store for the first time; 0 is never
	brought       bool      // by SetToken
	over          string    // why the store need not have it any more
	told          int       // event at which the user was told of it
	out           int       // event at which a logout had answered
	outBy         *step
}

// issued is one token of a grant.
type issued struct {
	grant           *grant
	generation      int
	refresh, access string
	at              int // event
	holder          *process
	lost            string // why it never came to a process that lived on
	stored          bool
	odd             bool // the rest of its answer could not be used
}

func (t *issued) String() string { return fmt.Sprintf("%s.%d", t.grant.name, t.generation) }

// record is what the store has under a key.
type record struct {
	fingerprint string
	token       *issued // of a token
	grant       *grant  // of a token, or of a mark in its place
	mark        bool
	odd         bool // an older access token beside the refresh token
	from        int  // event
}

// move is one change of a record.
type move struct {
	at int
	to record
}

// request is one token request on its way.
type request struct {
	process  *process
	step     *step
	form     url.Values
	token    *issued // that it sends
	got      *issued
	over, ok bool // ok: the process has the answer
}

func (w *world) nameOf(r record) string {
	switch {
	case r.fingerprint == "":
		return "nothing"
	case r.token != nil && r.odd:
		return r.token.String() + " (refresh token only)"
	case r.token != nil:
		return r.token.String()
	case r.grant != nil:
		return "mark, " + r.grant.name + " is dead"
	}
	return w.alias("mark ", r.fingerprint)
}

// read returns what the store has.
func (w *world) read(key string) record {
	t, err := w.clean.Load(context.Background(), key)
	switch {
	case errors.Is(err, ganbauth.ErrTokenNotFound):
		return record{}
	case err != nil:
		w.blame(nil, "%s cannot be read: %v", w.short(key), err)
		return record{}
	}
	r := record{fingerprint: t.Fingerprint(), from: w.events}
	switch {
	case t.AccessToken == "" && t.Judged == "":
		r.mark = true
	case t.AccessToken == "":
		r.mark, r.grant = true, w.byEpoch[t.Epoch]
	default:
		if r.token = w.byRefresh[t.RefreshToken]; r.token == nil {
			w.blame(nil, "%s has a token that the bank has not issued", w.short(key))
			return record{}
		}
		r.grant, r.odd = r.token.grant, r.token.access != t.AccessToken
		w.byEpoch[t.Epoch] = r.grant
	}
	return r
}

// saw notes that a process has looked at a record.
func (p *process) saw(s *step, key string) {
	p.events++
	p.look(key)
	p.looked[key] = p.events
	if isRecord(key) {
		s.key = key
	}
	if p.records[key].fingerprint == "" {
		s.gone = p.events
	}
}

// isRecord tells the key of a user or a session from what the kit writes beside it.
func isRecord(key string) bool {
	return strings.HasPrefix(key, "bank/") && !strings.Contains(key, "//")
}

// look notices that a record has ended by itself.
func (w *world) look(key string) {
	if now := w.read(key); now.fingerprint != w.records[key].fingerprint {
		w.records[key] = now
		w.moves[key] = append(w.moves[key], move{w.events, now})
	}
}

// wrote checks what a write has made of a record.
func (w *world) wrote(s *step, key string) (event int) {
	w.events++
	old, now := w.records[key], w.read(key)
	if s.kind != stepEmptied {
		s.process.looked[key] = w.events
	}
	if isRecord(key) {
		s.key = key
	}
	if now.fingerprint == "" {
		s.gone = w.events
	}
	if old.fingerprint == now.fingerprint {
		return w.events
	}
	w.note(s, "%s is %s now, was %s", w.short(key), w.nameOf(now), w.nameOf(old))
	w.records[key] = now
	w.moves[key] = append(w.moves[key], move{w.events, now})
	switch {
	case !isRecord(key):
	case now.fingerprint == "":
		w.judgeRemoval(s, old)
	case now.token == nil && now.grant == nil:
		if old.fingerprint != "" {
			w.blame(s, "a mark takes the place of %s", w.nameOf(old))
		}
	case now.token == nil:
		w.judgeVerdict(s, old, now)
	default:
		w.judgeToken(s, key, old, now)
	}
	return w.events
}

// judgeRemoval: only users end what they have.
func (w *world) judgeRemoval(s *step, old record) {
	switch {
	case s.kind == stepEmptied, s == s.process.idle && !w.shape.keyed:
	case s.kind != stepLogout && (s.kind != stepLogin || w.shape.keyed):
		w.blame(s, "a %s deletes %s", s.kind, w.nameOf(old))
	}
	if old.grant != nil {
		old.grant.over = "logged out by " + s.name
	}
}

// judgeVerdict: only the bank declares a token dead.
func (w *world) judgeVerdict(s *step, old, now record) {
	switch {
	case old.token == nil || old.grant != now.grant:
		w.blame(s, "a verdict takes the place of %s", w.nameOf(old))
	case !w.isDead(old.token):
		w.blame(s, "%s is judged dead, and it is not", old.token)
	}
	s.process.verdicts++
}

// isDead reports whether the bank refuses the refresh token.
func (w *world) isDead(t *issued) bool {
	newest := t.grant.tokens[len(t.grant.tokens)-1]
	return t != newest || w.endedAtBank(t.grant) || w.refused[t.refresh] > 1
}

func (w *world) endedAtBank(g *grant) bool {
	for _, at := range w.bank.Grants() {
		if at.Subject == g.subject && at.Ended != "" {
			return true
		}
	}
	return false
}

// judgeToken: what is older never takes the place of what is newer.
func (w *world) judgeToken(s *step, key string, old, now record) {
	t, g := now.token, now.grant
	if g.stored == 0 {
		defer func() { g.stored = w.events }()
	}
	if g.begun == 0 {
		g.begun = w.events
	}
	if g.out > 0 {
		w.blame(s, "%s comes back after the logout %s", t, g.outBy.name)
	}
	if g.key != key {
		w.blame(s, "%s is stored for %s, and is %s's", t, w.short(key), w.short(g.key))
	}
	switch {
	case old.fingerprint == "":
		w.blame(s, "%s is put where nothing is", t)
	case old.grant == nil && g.stored > 0:
		w.blame(s, "%s is older than the mark that it replaces", t)
	case old.grant == nil:
	case old.grant == g && old.token != nil && old.token.generation >= t.generation && !old.odd:
		w.blame(s, "%s replaces %s", t, old.token)
	case old.grant == g:
	case g.stored > 0:
		w.blame(s, "a refresh of %s replaces a newer login, %s", g.name, old.grant.name)
	case g.begun <= old.grant.stored:
		w.blame(s, "the login %s replaces %s, which was stored since it began", g.name, old.grant.name)
	default:
		old.grant.over = "replaced by " + g.name
	}
	t.stored = true
}

// emptied ends everything that was in flight. What is emptied cannot be told from a logout.
func (w *world) emptied() {
	for _, g := range w.grants {
		if g.over == "" {
			g.over = "the store was emptied"
		}
	}
	w.events++
	for _, s := range w.running {
		s.emptied = w.events
	}
}

// issue notes a grant's first token.
func (w *world) issue(s *step, u *user, access, refresh string) *grant {
	g := &grant{name: fmt.Sprintf("%s%d", u.name[:1], len(w.grants)+1), user: u, by: s}
	w.grants = append(w.grants, g)
	all := w.bank.Grants()
	g.subject = all[len(all)-1].Subject
	w.add(g, s, access, refresh)
	return g
}

func (w *world) add(g *grant, s *step, access, refresh string) *issued {
	w.events++
	t := &issued{grant: g, generation: len(g.tokens), access: access, refresh: refresh, at: w.events, holder: s.process}
	g.tokens = append(g.tokens, t)
	w.byAccess[access], w.byRefresh[refresh] = t, t
	return t
}

func (w *world) lose(g *grant, generation int, why string) { g.tokens[generation].lost = why }

// sends checks that a refresh token may be sent.
func (w *world) sends(s *step, r *request) {
	r.step = s
	w.requests = append(w.requests, r)
	const unproven = "%s is sent before the store has taken a write"
	if r.form.Get("grant_type") != "refresh_token" {
		w.tally["logins"]++
		if len(s.proven) == 0 { // a login has one key
			w.blame(s, unproven, "a code")
		}
		clear(s.proven)
		return
	}
	w.tally["refreshes"]++
	if r.token = w.byRefresh[r.form.Get("refresh_token")]; r.token == nil {
		w.blame(s, "a refresh token is sent that the bank has not issued")
		return
	}
	w.note(s, "sends %s", r.token)
	key := r.token.grant.key
	if !s.proven[key] && !s.proven[""] {
		w.blame(s, unproven, r.token)
	}
	delete(s.proven, key)
	delete(s.proven, "")
	for _, other := range w.spent[r.token.refresh] {
		dead := other.process.dead.Load() || other.process != r.process && (!w.shape.locker || w.lostLock[key])
		if !dead && (other.ok || !other.over) {
			w.blame(s, "%s is sent a second time, %s has sent it", r.token, other.step.name)
		}
	}
	w.spent[r.token.refresh] = append(w.spent[r.token.refresh], r)
}

// answered notes what the bank has answered.
func (w *world) answered(s *step, r *request, status int, text string) string {
	var a struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		Error   string `json:"error"`
	}
	_ = json.Unmarshal([]byte(text), &a)
	switch {
	case a.Access == "":
		return fmt.Sprint("the bank answers ", status, " ", a.Error)
	case r.token != nil:
		r.got = w.add(r.token.grant, s, a.Access, a.Refresh)
	default:
		g := w.issueLogin(s, r, a.Access, a.Refresh)
		r.got = g.tokens[0]
	}
	r.got.lost = "its answer was lost"
	return fmt.Sprint("the bank issues ", r.got)
}

// issueLogin notes the token of a code.
func (w *world) issueLogin(s *step, r *request, access, refresh string) *grant {
	u := w.codes[r.form.Get("code")]
	g := w.issue(s, u, access, refresh)
	g.subject = w.subjects[r.form.Get("code")]
	g.key, g.begun = s.writtenKey, s.written
	return g
}

// heard notes whether a process has got an answer.
func (w *world) heard(r *request, ok bool) error {
	r.over, r.ok = true, ok && r.got != nil
	if r.ok {
		r.got.lost = ""
	}
	return nil
}

// served checks a token that a user has got.
func (w *world) served(s *step, access string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.byAccess[access]
	switch {
	case s.process.dead.Load():
		return
	case t == nil:
		w.blame(s, "is served a token that the bank has not issued")
		return
	case t.grant.user != s.user:
		w.blame(s, "%s is served a token of %s", s.user.name, t.grant.user.name)
	}
	w.note(s, "is served %s", t)
	g := t.grant
	for _, newer := range w.grants {
		if newer.key == g.key && newer.told > 0 && newer.told < s.began && newer.over == "" && g.stored > 0 && g.stored < newer.begun &&
			(newer.by.process == s.process || newer.stored > 0 && s.process.looked[g.key] > newer.stored) {
			w.blame(s, "is served %s, and the login %s has answered before", t, newer.name)
		}
	}
	if g.out == 0 || g.out > s.began {
		return
	}
	switch p := s.process; {
	case g.outBy.process == p:
		w.blame(s, "is served %s after the logout %s at the same process", t, g.outBy.name)
	case p.looked[g.key] > g.out:
		w.blame(s, "is served %s after the logout %s, and the process has looked since", t, g.outBy.name)
	}
}

// loggedOut notes what a logout has ended that has answered.
func (w *world) loggedOut(s *step) {
	w.tally["logouts"]++
	w.events++
	if s.key == "" {
		return // nobody was connected in that session
	}
	if s.gone == 0 {
		w.blame(s, "a logout has answered and has not seen that nothing is there")
	}
	for _, g := range w.grants {
		older := g.begun > 0 && g.begun <= s.gone
		if g.brought && g.stored == 0 {
			older = g.by.over > 0 && g.by.over < s.began
		}
		if g.key == s.key && older && g.out == 0 {
			g.out, g.outBy = w.events, s
		}
	}
}

// turnedAway checks an answer that says that nobody is connected.
func (w *world) turnedAway(s *step) {
	if s.kind == stepLogin || s.kind == stepLogout || s.kind == stepSet {
		return
	}
	r := w.records[s.key]
	if r.token != nil && r.from < s.began && !w.endedAtBank(r.grant) && !w.isDead(r.token) {
		w.blame(s, "is told to connect, and %s was there all the time", r.token)
	}
}

// rest lets everything come to an end, and checks what is left.
func (w *world) rest() {
	w.mu.Lock()
	w.calm, w.readOnly, w.away = true, false, false
	for _, p := range w.processes {
		if now := time.Now(); p.frozen.After(now) {
			p.frozen = now
		}
	}
	running := w.running
	w.running = nil
	w.mu.Unlock()
	limit := time.After(5 * time.Minute)
	for _, s := range running {
		if s.process.dead.Load() {
			continue
		}
		select {
		case <-s.done:
		case <-limit:
			if !s.process.dead.Load() {
				w.fail(s, "does not end")
			}
		}
	}
	time.Sleep(2 * time.Minute) // cool-downs, and writes that come late
	w.settled()
	for _, p := range w.living() {
		for _, u := range w.users {
			w.probe(p, u)
		}
	}
	clear(w.lostLock)
	w.requests = nil
}

// settled checks that nothing is lost.
func (w *world) settled() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.grants {
		newest := g.tokens[len(g.tokens)-1]
		r := w.records[g.key]
		if r.token == newest {
			continue
		}
		if why := w.excuse(g, newest); why == "" {
			w.blame(nil, "%s is lost: the store has %s", newest, w.nameOf(r))
		}
	}
	refreshed := map[*process]int{}
	for _, g := range w.grants {
		for _, t := range g.tokens[1:] {
			if t.stored && !t.odd {
				refreshed[t.holder]++
			}
		}
	}
	for _, p := range w.processes {
		if p.dead.Load() || w.delayed {
			continue
		}
		if told := p.told[ganbauth.EventTokenRefreshed]; told < refreshed[p] {
			w.blame(nil, "%s has refreshed %d tokens, and tells of %d", p.name, refreshed[p], told)
		}
		if told := p.told[ganbauth.EventTokenLost]; told < p.verdicts {
			w.blame(nil, "%s has judged %d tokens, and tells of %d", p.name, p.verdicts, told)
		}
	}
	for key, held := range w.locks {
		if !held.dead.Load() {
			w.blame(held.step, "the lock of %s is still held", w.short(key))
		}
	}
}

// excuse returns why the newest token of a grant is not in the store.
func (w *world) excuse(g *grant, newest *issued) string {
	switch {
	case g.over != "":
		return g.over
	case newest.lost != "":
		return newest.lost
	case newest.stored && w.endedAtBank(g), w.endedAtBank(g):
		return "the bank has ended it"
	case newest.holder.dead.Load() && !newest.holder.tidy:
		return "its process has died"
	case w.refused[newest.refresh] > 1:
		return "the bank's gateway has refused it twice"
	case g.by.emptied > g.begun:
		return "the store was emptied"
	}
	if g.stored > 0 {
		return ""
	}
	for _, m := range w.moves[g.key] {
		if m.at > g.begun && (m.to.fingerprint == "" || m.to.token != nil && m.to.grant != g) {
			return "another login or a logout came first"
		}
	}
	return ""
}

// probe asks for the user's token when nothing fails.
func (w *world) probe(p *process, u *user) {
	w.mu.Lock()
	before := maps.Clone(w.records)
	w.steps++
	number := w.steps
	w.mu.Unlock()
	s := w.step(p, u, stepPage, number)
	err := w.page(s)
	close(s.done)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(s, "is asked at rest: %v", err)
	r := before[s.key] // of the user, or of the session that the browser has by now
	alive := r.token != nil && !w.endedAtBank(r.grant) && r.token.lost == "" && !w.isDead(r.token)
	switch {
	case alive && err != nil:
		w.blame(s, "%s is in the store, and nothing fails any more: %v", r.token, err)
	case r.token == nil && !errors.Is(err, ganbauth.ErrLoginRequired):
		w.blame(s, "nobody is connected: %v", err)
	}
}

// end checks what is left behind.
func (w *world) end() {
	close(w.grave)
	w.going.Wait()
	time.Sleep(25 * time.Hour) // a suspicion lasts for a day
	for _, p := range w.processes {
		if n := ganbauth.KeysHeld(p.kit); n > 0 && !p.dead.Load() {
			w.fail(nil, "%s remembers %d keys", p.name, n)
		}
	}
}

// say adds a line to the schedule.
func (w *world) say(s *step, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(s, format, args...)
}

func (w *world) note(s *step, format string, args ...any) {
	name := ""
	if s != nil {
		name = s.name
	}
	w.lines = append(w.lines, fmt.Sprintf("%11.6f  %-5s %s", time.Since(w.begun).Seconds(), name, fmt.Sprintf(format, args...)))
	if len(w.lines) > 50_000 {
		fmt.Fprintln(os.Stderr, w.schedule(), "\n!!! it never comes to rest")
		os.Exit(2)
	}
}

// blame notes a violation.
func (w *world) blame(s *step, format string, args ...any) {
	w.note(s, "!!! "+format, args...)
	w.failures = append(w.failures, w.lines[len(w.lines)-1])
}

func (w *world) fail(s *step, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blame(s, format, args...)
}

func (w *world) schedule() string {
	return fmt.Sprintf("schedule of seed %d:\n%s\n", w.seed, strings.Join(w.lines, "\n"))
}
