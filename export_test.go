package ganbauth

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/alexedwards/scs/v2"
)

// What the tests reach for behind the public names.

func VerifyIDToken(c *Connector, raw, accessToken, nonce string, now time.Time) error {
	claims, err := c.idTokens().verify(raw, accessToken, now)
	if err != nil {
		return err
	}
	return claims.checkLogin(nonce)
}

// ErrorClasses lists every class of the table of errors.
func ErrorClasses() (classes []string) {
	for _, k := range kinds {
		classes = append(classes, k.class)
	}
	return classes
}

// ErrorKind returns what the table of errors says of err.
func ErrorKind(err error) (class, topic string, operatorFault bool) {
	k := kindOf(err)
	return k.class, string(k.topic), k.operatorFault()
}

func RetryAfter(err error) time.Duration { return retryAfter(err) }

func Unavailable(err error) error { return unavailable("ganbauth: load token: %w", err) }

var (
	ErrOtherSubject   = errOtherSubject
	ErrBusy           = errBusy
	ErrAttemptExpired = errAttemptExpired
	ErrRenewedSince   = errRenewedSince
)

// CauseText is what an error says of its cause.
func CauseText(err error) string { return causeText(err) }

// PanicText is what an error and the log say of a panic.
func PanicText(value any) string { return (&panicError{value: value}).Error() }

// CutAnswer is the error of a token request whose answer broke off.
func CutAnswer(status int, err error) error { return &TokenError{StatusCode: status, err: err} }

// NoAnswer is the error of a token request that the bank has not answered.
func NoAnswer(err error) error { return &TokenError{err: err} }

// Salvaged is the error of a refresh whose answer is good for its refresh token only.
func Salvaged(err error) error { return &salvagedError{newSecret("RT"), err} }

func Refusal(status int) error { return &refusal{status, "x"} }

func RefreshVerdict(e *TokenError) (grantDead, gatewayRefused bool) {
	return e.grantDead(), e.gatewayRefused()
}

func LocalPath(s string) (string, bool) { return localPath(s) }

func ParseToken(body []byte, asked time.Time) (*Token, string, error) {
	answer, err := parseToken(tokenResponse{status: http.StatusOK, body: body, asked: asked}, assumed{})
	return answer.token, answer.idToken, err
}

type CallbackQuery struct{ State, Code, Failure string }

func ParseCallback(raw string) (CallbackQuery, error) {
	q, err := parseCallback(raw)
	return CallbackQuery{q.state, q.code, q.failure}, err
}

// fixedAttempts are those of a kit of the client "id" with the secret "secret" and the salt
// "s".
func fixedAttempts() attempts {
	c, err := NewConnector("id", "secret", AuthBasic, Config{AuthBaseURL: "https://bank.test", Salt: "s"})
	if err != nil {
		panic(err)
	}
	as, err := newAttempts(c, "bank", "https://app.test/callback", "openid")
	if err != nil {
		panic(err)
	}
	return as
}

// AttemptCookies returns the name of the cookie for the state "state", and two functions
// that make and open one, of fixedAttempts.
func AttemptCookies() (name string, seal func() string, open func(name, value string) bool) {
	as := fixedAttempts()
	name = as.cookieName("state")
	seal = func() string { return as.seal(name, &attempt{returnTo: "/x"}) }
	open = func(name, value string) bool {
		r := &http.Request{Header: http.Header{"Cookie": {name + "=" + value}}}
		return as.read(r, as.cookieName("state")).find(as.cookieName("state")) != nil
	}
	return name, seal, open
}

// SealedAttempt is what the cookie of a login says.
type SealedAttempt struct {
	Login
	OpenID, PKCE           bool
	Begun, Done            time.Time
	Owner, Nonce, Verifier string
}

// ReadAttemptCookie reads a Cookie header with one of fixedAttempts.
func ReadAttemptCookie(cookie string) SealedAttempt {
	r := &http.Request{Header: http.Header{"Cookie": {cookie}}}
	as := fixedAttempts()
	a := as.read(r, "").find(as.cookieName("state"))
	if a == nil {
		return SealedAttempt{}
	}
	return SealedAttempt{Login{a.foreign, a.returnTo, a.login, a.scope, a.connection},
		a.openID, a.pkce, a.begun, a.done, a.owner, a.nonce(), a.verifier()}
}

// The bounds on what one browser holds of a kit.
const (
	MaxCookies      = maxCookies
	MaxCookiesEver  = maxCookiesEver
	MaxOwnCookies   = maxOwnCookies
	MaxAnswerHeader = maxAnswerHeader
	MaxOwnPath      = maxOwnPath
	MaxOtherPath    = maxOtherPath
)

// What the documents state.
const (
	DefaultLeeway   = defaultLeeway
	LeewayShare     = leewayShare
	Patience        = patience
	MaxWait         = maxWait
	MaxRemembered   = maxRemembered
	RequestTimeout  = requestTimeout
	APITimeout      = apiTimeout
	LookAgain       = lookAgain
	CallTimeout     = callTimeout
	LogoutTimeout   = logoutTimeout
	Grace           = grace
	AttemptLifetime = attemptLifetime
	MaxProbePause   = maxProbePause
	MaxLead         = maxLead
	MaxRefreshes    = maxRefreshes
	MostRefreshes   = mostRefreshes
	MaxLogins       = maxLogins
	MaxJobs         = maxJobs
	MaxQueue        = maxQueue
	FewAway         = fewAway
	ManyUnclear     = manyUnclear
	MinProbePause   = minProbePause
	FirstRate       = firstRate
	RateKept        = rateKept
	MinRate         = minRate
	MinCoolDown     = minCoolDown
	MaxCoolDown     = maxCoolDown
	PageSize        = pageSize
	MinBackOff      = minBackOff
	MaxBackOff      = maxBackOff
	TurnOfDuty      = turnOfDuty
	MaxConnection   = maxConnection
	MaxKey          = maxKey
	MaxClockSkew    = maxClockSkew
	MaxIDTokenAge   = maxIDTokenAge
	MaxBody         = maxBody
)

// Login is an attempt as tests make one.
type Login struct {
	Foreign                           bool
	ReturnTo, Path, Scope, Connection string
}

// PutAttempt answers r as begin does, beside a Location of that length.
func PutAttempt(k *Kit, w http.ResponseWriter, r *http.Request, state string, l Login, location int) {
	a := &attempt{begun: time.Now(), seed: newSeed(), openID: true, owner: hash(state), foreign: l.Foreign,
		returnTo: l.ReturnTo, login: l.Path, scope: l.Scope, connection: l.Connection}
	k.attempts.read(r, "").put(w, k.attempts.cookieName(state), a, location)
}

// FinishAttempt answers r as the callback does.
func FinishAttempt(k *Kit, w http.ResponseWriter, r *http.Request, state string, location int) bool {
	name := k.attempts.cookieName(state)
	j := k.attempts.read(r, name)
	a := j.find(name)
	if a == nil {
		return false
	}
	j.put(w, name, a.finished(nil), location)
	return true
}

// Held is an attempt that a browser holds.
type Held struct {
	Login
	Name string
	Size int
	Done bool
}

// HeldAttempts lists the attempts of r.
func HeldAttempts(k *Kit, r *http.Request) (held []Held) {
	for _, c := range k.attempts.read(r, "").cookies {
		held = append(held, Held{Login{c.foreign, c.returnTo, c.login, c.scope, c.connection}, c.name, c.size, !c.done.IsZero()})
	}
	return held
}

// AttemptPrefix begins the names of the kit's cookies.
func AttemptPrefix(k *Kit) string { return k.attempts.prefix }

// JustReturned reports whether the guard against loops knows a login for these scopes.
func JustReturned(k *Kit, r *http.Request, connection string, scopes ...string) bool {
	return len(k.attempts.read(r, "").justReturned(connection, scopes)) > 0
}

// AttemptSecrets returns what is derived from one seed.
func AttemptSecrets() (nonce, verifier string) {
	a := &attempt{seed: newSeed(), openID: true, pkce: true}
	return a.nonce(), a.verifier()
}

// AttemptRecord returns the record of an attempt, before it is sealed.
func AttemptRecord() []byte {
	a := &attempt{begun: time.Unix(1e9, 0), done: time.Unix(1e9+1, 0), foreign: true, seed: newSeed(), owner: hash("x"),
		returnTo: "/x", login: "/y", scope: "openid more", connection: "z"}
	return attempts{scope: "openid"}.marshal(a)
}

func UnmarshalAttempt(data []byte) error {
	_, err := attempts{scope: "openid"}.unmarshal(string(data))
	return err
}

// AttemptAgain returns the record of the attempt in data, written anew.
func AttemptAgain(data []byte) ([]byte, error) {
	as := attempts{scope: "openid"}
	a, err := as.unmarshal(string(data))
	if err != nil {
		return nil, err
	}
	return as.marshal(a), nil
}

// CutMarks returns a query without the marks of the kit of that name, and what they say.
func CutMarks(name, rawQuery string) (rest string, reloads int, returnTo string) {
	k := &Kit{owners: owners{kit: name}}
	rest, m := k.cutMarks(rawQuery)
	return rest, m.reloads, m.returnTo
}

func SCSRecord(store TokenStore, t *Token) []byte {
	data, err := store.(*scsStore).encode("key", t, time.Unix(1e9, 0))
	if err != nil {
		panic(err)
	}
	return data
}

// SCSCompareAndWrite is what the kit calls in place of a Swap.
func SCSCompareAndWrite(ctx context.Context, store TokenStore, key string, old, new *Token) error {
	return store.(*scsStore).compareAndWrite(ctx, key, old, new)
}

// SCSAgain returns the record in data, written anew.
func SCSAgain(store TokenStore, data []byte) ([]byte, error) {
	s := store.(*scsStore)
	t, deadline, err := s.decode("key", data)
	if err != nil {
		return nil, err
	}
	return s.encode("key", t, deadline)
}

// Seal is what New makes of a Store and EncryptionKeys.
func Seal(store TokenStore, keys ...[]byte) TokenStore {
	s, err := newSealer(tokenPurpose, keys...)
	if err != nil {
		panic(err)
	}
	if own, ok := store.(*scsStore); ok {
		return newSCSStore(own.sessions, sealedCodec{s})
	}
	return newSealedStore(store, sealedCodec{s})
}

// DefaultTransport is what a Connector uses where the application has none.
func DefaultTransport() http.RoundTripper { return defaultTransport() }

// Transports are what token requests go through, and calls of the API.
func Transports(k *Kit) (tokens, api http.RoundTripper) {
	return k.connector.http.Transport, k.api.base
}

// room counts the keys of m, and an empty map as one: a map does not shrink.
func room[K comparable, V any](m map[K]V) int {
	if m == nil {
		return 0
	}
	return max(len(m), 1)
}

// KeysHeld counts the keys that the kit remembers something about.
func KeysHeld(k *Kit) int {
	k.keeper.refreshes.mu.Lock()
	defer k.keeper.refreshes.mu.Unlock()
	k.keeper.records.writing.mu.Lock()
	defer k.keeper.records.writing.mu.Unlock()
	k.keeper.coolDowns.mu.Lock()
	defer k.keeper.coolDowns.mu.Unlock()
	k.keeper.refusals.mu.Lock()
	defer k.keeper.refusals.mu.Unlock()
	k.keeper.unsaved.mu.Lock()
	defer k.keeper.unsaved.mu.Unlock()
	k.keeper.guard.mu.Lock()
	asked := len(k.keeper.guard.asked)
	k.keeper.guard.mu.Unlock()
	return k.keeper.guard.held() + asked + room(k.keeper.refreshes.m) + room(k.keeper.refreshes.active) + room(k.keeper.records.writing.m) +
		room(k.keeper.coolDowns.m) + room(k.keeper.refusals.m) + room(k.keeper.unsaved.m)
}

// FailingSince returns when the first of a key's failures in a row was.
func FailingSince(k *Kit, storeKey string) time.Time { return k.keeper.coolDowns.since(storeKey) }

// Flights are flights with strings for outcomes.
type Flights struct{ flights[string] }

func NewFlights(keep func(string, error) time.Duration, most int, forgotten func(string, bool)) *Flights {
	return &Flights{flights[string]{keep: keep, most: most, forgotten: forgotten}}
}

func (f *Flights) Do(ctx context.Context, key string, admit func(context.Context) (leave func(), err error),
	run func(context.Context) (string, func(), error)) (string, error) {
	return f.do(ctx, key, admit, run)
}
func (f *Flights) Age(key string) time.Duration   { return f.age(key) }
func (f *Flights) Wait(ctx context.Context) error { return f.wait(ctx) }
func (f *Flights) Remembered() []string           { return f.remembered() }
func (f *Flights) Refuse(key string, err error) (value string, known bool) {
	return f.refuse(key, err)
}

// Held counts what takes room.
func (f *Flights) Held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return room(f.m) + room(f.active)
}

var (
	Shortly = shortly
	Safely  = safely
)

// CoolDowns are coolDowns.
type CoolDowns struct{ coolDowns }

func (c *CoolDowns) Begin(key string, err error, hint time.Duration) error {
	return c.begin(key, err, hint)
}
func (c *CoolDowns) Check(key string) error                 { return c.check(key) }
func (c *CoolDowns) Since(key string) time.Time             { return c.since(key) }
func (c *CoolDowns) Suspect(key, token string) (again bool) { return c.suspect(key, token) }
func (c *CoolDowns) Clear(key string)                       { c.clear(key) }

// Timer returns what the timer of key's entry calls.
func (c *CoolDowns) Timer(key string) (expire func()) {
	d := c.m[key]
	return func() { c.forget(key, d) }
}

// Held counts the keys that take room.
func (c *CoolDowns) Held() int { return room(c.m) }

// KeyedMutex is a keyedMutex.
type KeyedMutex struct{ keyedMutex }

func (m *KeyedMutex) Lock(ctx context.Context, key string) (unlock func(), err error) {
	return m.lock(ctx, key)
}

// Held counts the keys that take room.
func (m *KeyedMutex) Held() int { return room(m.m) }

// LoginsHeld counts the callbacks that the kit remembers.
func LoginsHeld(k *Kit) int {
	k.exchanges.mu.Lock()
	defer k.exchanges.mu.Unlock()
	return len(k.exchanges.m)
}

// Guard is a guard as tests use it.
type Guard struct {
	*guard
	Begun time.Time
}

func NewGuard(rate float64) Guard { return NewGuardWithLog(rate, slog.New(slog.DiscardHandler)) }

func NewGuardWithLog(rate float64, log *slog.Logger) Guard {
	return Guard{newGuard(rate, observer{log: log}), time.Now()}
}

// Turn is a turn.
type Turn struct{ *turn }

func (t Turn) StepAside()                                     { t.stepAside() }
func (t Turn) Sent()                                          { t.sent() }
func (t Turn) WasSent() bool                                  { return t.wasSent() }
func (t Turn) IsProbe() bool                                  { return t.probe }
func (t Turn) Answered(outcome error, failingSince time.Time) { t.answered(outcome, failingSince) }
func (t Turn) Leave()                                         { t.leave() }

// Finish sends the request, with that outcome, and leaves.
func (t Turn) Finish(outcome error, failingSince time.Time) {
	t.sent()
	t.answered(outcome, failingSince)
	t.leave()
}

// Enter waits for the turn of a user (u), a login (l) or a job (j).
func (g Guard) Enter(ctx context.Context, key string, kind rune, patient bool) (Turn, error) {
	t, err := g.enter(ctx, key, map[rune]class{'u': forUser, 'l': forLogin, 'j': forJob}[kind], patient)
	return Turn{t}, err
}

// Send is a request of a user's who has been failing since that time.
func (g Guard) Send(key string, outcome error, failingSince time.Time) {
	if t, err := g.Enter(context.Background(), key, 'u', true); err == nil {
		t.Finish(outcome, failingSince)
	}
}

// Held counts those who wait or have their turn, and what may still happen.
func (g Guard) Held() int { return g.held() }

// UntilJob returns the time until the next job may go.
func (g Guard) UntilJob() time.Duration { return g.untilJob() }

// Away returns what users are told if the bank is away.
func (g Guard) Away() error { return g.check() }

// Pace is a pace.
type Pace struct{ pace }

// NewPace returns a pace with that limit, and a rate and a ceiling learnt just now.
func NewPace(limit, rate, ceiling float64, now time.Time) *Pace {
	return &Pace{pace{limit: limit, rate: rate, ceiling: ceiling, waited: now}}
}

func (p *Pace) PerSecond() float64                         { return p.perSecond() }
func (p *Pace) Interval() time.Duration                    { return p.interval() }
func (p *Pace) TimeFor(now time.Time, n int) time.Duration { return p.timeFor(now, n) }
func (p *Pace) Take(now time.Time)                         { p.take(now) }
func (p *Pace) GiveBack()                                  { p.giveBack() }
func (p *Pace) Answered()                                  { p.answered() }
func (p *Pace) Learn(now time.Time) (first bool)           { return p.learn(now) }
func (p *Pace) Restart(now time.Time)                      { p.restart(now) }
func (p *Pace) Ceiling() float64                           { return p.ceiling }
func (p *Pace) TooMany(now, sent time.Time, hint time.Duration, took int) (again bool) {
	return p.tooMany(now, sent, hint, took)
}

// Meter is a meter.
type Meter struct{ meter }

func NewMeter(tenth time.Duration) *Meter  { return &Meter{meter{tenth: tenth}} }
func (m *Meter) Add(now time.Time)         { m.add(now) }
func (m *Meter) Sum(now time.Time) (n int) { return m.sum(now) }

func Jitter(d time.Duration) time.Duration { return jitter(d) }

// held counts what the guard remembers.
func (g *guard) held() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n = g.aside
	for c := range classes {
		n += g.waiting[c].Len() + g.out[c]
	}
	if g.timer != nil || g.breaker.probe != nil {
		n++
	}
	return n
}

func Replace(k *Kit, ctx context.Context, key, refused string) (*Token, error) {
	return k.keeper.replace(ctx, key, refused)
}

// Owners are the owners of a kit named "bank".
type Owners struct{ o *owners }

func NewOwners(sessions *scs.SessionManager, keyOf, connectionOf func(*http.Request) (string, error)) Owners {
	return Owners{&owners{kit: "bank", handleName: "ganbauth.bank", namesName: "ganbauth:bank", sessions: sessions, keyOf: keyOf, connectionOf: connectionOf}}
}

func (o Owners) StoreKey(r *http.Request) (string, error) {
	who, err := o.o.whose(r)
	return who.storeKey, err
}

func (o Owners) LoginKey(r *http.Request, connection string) (storeKey string, isNew bool, err error) {
	who, isNew, err := o.o.loginOwner(r, connection)
	return who.storeKey, isNew, err
}

func (o Owners) Connection(r *http.Request) (string, error)         { return o.o.connection(r) }
func (o Owners) WithSession(r *http.Request) (*http.Request, error) { return o.o.withSession(r) }
func (o Owners) Beginner(r *http.Request) (string, error)           { return o.o.beginner(r) }
func (o Owners) Began(r *http.Request, beginner string) (bool, error) {
	return o.o.began(r, beginner)
}

// Attach gives r's session the handle of that key.
func (o Owners) Attach(w http.ResponseWriter, r *http.Request, key, beginner string) (former string, err error) {
	return o.o.attach(w, r, owner{key: key}, beginner)
}

func (o Owners) Detach(w http.ResponseWriter, r *http.Request, connection string) error {
	return o.o.detach(w, r, connection, nil)
}

// NewErrorPage makes the page for err, for a user who is doing that: "using", "connecting" or
// "reconnecting".
func NewErrorPage(err error, doing, again string, sentFrom bool, home string, japanese bool) *ErrorPage {
	now := map[string]situation{"using": usingPage, "connecting": connecting, "reconnecting": reconnecting}[doing]
	page := newErrorPage(err, setting{now, again, sentFrom, home}, japanese)
	return &page
}

// JudgeCallback says whether a callback with this query can finish its user's login.
func JudgeCallback(k *Kit, raw string) error {
	q, err := parseCallback(raw)
	if err != nil {
		return err
	}
	return k.judge(q, true)
}

// What a kit finds out about a request.
func CheckOrigin(k *Kit, r *http.Request) error       { return k.checkOrigin(r) }
func CookieStayedBehind(k *Kit, r *http.Request) bool { return k.cookieStayedBehind(r) }
func SessionIsGone(k *Kit, r *http.Request) bool      { return k.sessionIsGone(r) }
func SentBy(k *Kit, r *http.Request) string           { return k.sentBy(r) }
func AtAnotherHost(k *Kit, r *http.Request) bool      { return k.atAnotherHost(r) }
func IsCallback(k *Kit, r *http.Request) bool         { return k.isCallback(r) }
func ReturnPath(k *Kit, r *http.Request) string       { return k.returnPath(r, k.ownPath(r)) }
func PrefersJapanese(h http.Header) bool              { return prefersJapanese(h) }

func PagesOf(k *Kit, r *http.Request) (again, back string) {
	return k.pagesOf(r, kindOfRequest(r), k.ownPath(r))
}

// RemedyFor says what deny does for r, which met err.
func RemedyFor(k *Kit, r *http.Request, err error, hasPath, straightBack bool) string {
	remedies := map[remedy]string{noRemedy: "none", askAgain: "ask again", askAgainSoon: "ask again soon", connectFirst: "connect", stopLoop: "stop"}
	return remedies[k.remedyFor(r, err, kindOfRequest(r), hasPath, straightBack)]
}

// Marked returns path with the mark of so many reloads.
func Marked(k *Kit, path string, reloads int) string {
	return k.marked(path, reloadedMark, strconv.Itoa(reloads))
}

func TokenIsGone(k *Kit, r *http.Request) bool { return k.tokenIsGone(r) }

func LoginURL(k *Kit, r *http.Request, own string, err error) string { return k.loginURL(r, own, err) }

// ScopesToAsk returns the scopes of a login that mends the lack of one, beside granted ones.
func ScopesToAsk(k *Kit, granted []string, missing string) []string {
	return k.scopesToAsk(&scopeError{granted: granted, missing: []string{missing}}, []string{missing})
}

// RunsHeld counts the calls of KeepAlive and RefreshExpiring that are remembered.
func RunsHeld(k *Kit) int {
	k.engine.runs.mu.Lock()
	defer k.engine.runs.mu.Unlock()
	return len(k.engine.runs.m)
}

// TurnsOut counts the turns at the bank that somebody has or waits for.
func TurnsOut(k *Kit) int { return k.keeper.guard.held() }

func KindOfRequest(r *http.Request) string {
	return [...]string{"program", "navigation", "form", "HTMX", "subrequest", "embedded", "prefetch"}[kindOfRequest(r)]
}
