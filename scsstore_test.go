package ganbauth_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// faultyEngine is an engine of scs's, one of whose calls fails. It holds sessions and
// tokens.
type faultyEngine struct {
	*memstore.MemStore

	mu    sync.Mutex
	calls int
	names []string // of the calls
	fails int      // the number of the call that fails; 0: none
	after bool     // it has its effect all the same
	met   string   // the name of the call that failed
}

var errEngine = errors.New("the engine is away")

func (e *faultyEngine) call(name string, effect func() error) error {
	e.mu.Lock()
	e.calls++
	e.names = append(e.names, name)
	fails := e.calls == e.fails
	if fails {
		e.met = name
	}
	e.mu.Unlock()
	if fails && !e.after {
		return errEngine
	}
	if err := effect(); err != nil || !fails {
		return err
	}
	return errEngine
}

// failNext has the n-th call from now on fail, and returns a function that says whether
// it has.
func (e *faultyEngine) failNext(n int, after bool) (met func() string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls, e.fails, e.after, e.met = 0, n, after, ""
	return func() string {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.fails = 0
		return e.met
	}
}

// said returns the names of the calls since it was last asked.
func (e *faultyEngine) said() (names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	names, e.names = e.names, nil
	return names
}

func (e *faultyEngine) Find(name string) (b []byte, found bool, err error) {
	err = e.call("Find", func() (err error) { b, found, err = e.MemStore.Find(name); return err })
	if err != nil {
		return nil, false, err
	}
	return b, found, nil
}

func (e *faultyEngine) Commit(name string, b []byte, expiry time.Time) error {
	return e.call("Commit", func() error { return e.MemStore.Commit(name, b, expiry) })
}

func (e *faultyEngine) Delete(name string) error {
	return e.call("Delete", func() error { return e.MemStore.Delete(name) })
}

// faultyContext has the methods with a context only, as several engines of scs's.
type faultyContext struct{ *faultyEngine }

func (faultyContext) Find(string) ([]byte, bool, error)      { panic("use FindCtx") }
func (faultyContext) Commit(string, []byte, time.Time) error { panic("use CommitCtx") }
func (faultyContext) Delete(string) error                    { panic("use DeleteCtx") }

func (e faultyContext) FindCtx(_ context.Context, name string) ([]byte, bool, error) {
	return e.faultyEngine.Find(name)
}

func (e faultyContext) CommitCtx(_ context.Context, name string, b []byte, expiry time.Time) error {
	return e.faultyEngine.Commit(name, b, expiry)
}

func (e faultyContext) DeleteCtx(_ context.Context, name string) error {
	return e.faultyEngine.Delete(name)
}

// The default store compares and writes with one look, and its marks end by themselves.
func TestSCSCalls(t *testing.T) {
	e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
	s := setup{options: ganbauth.Options{Key: keyIs("u")}}
	s.sessions = func(m *scs.SessionManager) { m.Store = e }
	inBubble(t, s, func(t *testing.T, a *app) {
		e.said()
		require.NoError(t, a.kit.SetToken(t.Context(), "u", a.bank.Token()))
		require.Equal(t, []string{"Find", "Find", "Commit", "Find", "Commit"}, e.said())
		time.Sleep(expired)
		_, err := a.kit.Token(t.Context(), "u")
		require.NoError(t, err)
		require.Equal(t, []string{"Find", "Find", "Commit", "Find", "Find", "Commit"}, e.said(), "the first write is the proof")
	})
}

// I1 I10: every call of the engine that holds the sessions and the tokens fails, one at a
// time, before or after its effect. That is 503 and nothing worse: nobody is logged out,
// nothing is spent twice, and what has answered is so.
func TestI1EngineFailsAtEachCall(t *testing.T) {
	for kind, engineOf := range map[string]func(*faultyEngine) scs.Store{
		"engine":                func(e *faultyEngine) scs.Store { return e },
		"engine with a context": func(e *faultyEngine) scs.Store { return faultyContext{e} },
	} {
		for _, keyed := range []bool{false, true} {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprint(kind, ", Key ", keyed, ", after its effect ", after), func(t *testing.T) {
					for step := range engineSteps {
						calls := 0
						for n, met := 1, "?"; met != ""; n++ {
							e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
							s := setup{bare: true, bank: rotating}
							s.options.Store = nil
							if keyed {
								s.options.Key = keyIs("u")
							}
							s.sessions = func(m *scs.SessionManager) { m.Store = engineOf(e) }
							inBubble(t, s, func(t *testing.T, a *app) { met = failAt(t, a, e, step, n, after) })
							calls = n
						}
						require.Greater(t, calls, 1, "%s makes no call", engineSteps[step].name)
					}
				})
			}
		}
	}
}

// I1: each call of the engine fails below a call of the store. The store says so, and never
// that there is no record; it does not write what it could not compare.
func TestI1StoreOnAnEngineThatFails(t *testing.T) {
	newer := fullToken
	newer.AccessToken = "AT-2"
	compare := func(old, new *ganbauth.Token) func(context.Context, ganbauth.TokenStore) error {
		return func(ctx context.Context, s ganbauth.TokenStore) error {
			return ganbauth.SCSCompareAndWrite(ctx, s, "key", old, new)
		}
	}
	for _, engineOf := range []func(*faultyEngine) scs.Store{
		func(e *faultyEngine) scs.Store { return e },
		func(e *faultyEngine) scs.Store { return faultyContext{e} },
	} {
		for _, test := range []struct {
			name  string
			do    func(ctx context.Context, s ganbauth.TokenStore) error
			calls []string
			left  *ganbauth.Token
		}{
			{"load", func(ctx context.Context, s ganbauth.TokenStore) error {
				got, err := s.Load(ctx, "key")
				require.Equal(t, err == nil, got != nil)
				return err
			}, []string{"Find"}, &fullToken},
			{"save", func(ctx context.Context, s ganbauth.TokenStore) error { return s.Save(ctx, "key", &newer) }, []string{"Find", "Commit"}, &newer},
			{"delete", func(ctx context.Context, s ganbauth.TokenStore) error { return s.Delete(ctx, "key") }, []string{"Delete"}, nil},
			{"replace", compare(&fullToken, &newer), []string{"Find", "Commit"}, &newer},
			{"remove", compare(&fullToken, nil), []string{"Find", "Delete"}, nil},
		} {
			for n := range len(test.calls) + 1 {
				for _, after := range []bool{false, true} {
					e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
					sessions := scs.New()
					sessions.Store = engineOf(e)
					s := ganbauth.NewSCSStore(sessions)
					require.NoError(t, s.Save(t.Context(), "key", &fullToken))
					where := fmt.Sprint(test.name, ", call ", n+1, ", after its effect ", after)
					met := e.failNext(n+1, after)
					err := test.do(t.Context(), s)
					calls := e.calls
					failed := met()
					want := &fullToken
					if n == len(test.calls) {
						require.NoError(t, err, where)
						want = test.left
					} else {
						require.ErrorIs(t, err, errEngine, where)
						require.NotErrorIs(t, err, ganbauth.ErrTokenNotFound, where)
						require.Equal(t, test.calls[n], failed, where)
						require.Equal(t, n+1, calls, "%s: nothing follows", where)
						if after && n == len(test.calls)-1 {
							want = test.left
						}
					}
					got, err := s.Load(t.Context(), "key")
					if want == nil {
						require.Equal(t, ganbauth.ErrTokenNotFound, err, where)
					} else {
						require.NoError(t, err, where)
						require.Equal(t, *want, *got, where)
					}
				}
			}
		}
	}
}

// A write that compares replaces nothing but what it names.
func TestSCSStoreCompares(t *testing.T) {
	s := ganbauth.NewSCSStore(scs.New())
	other := fullToken
	other.Epoch = "e2"
	for name, old := range map[string]*ganbauth.Token{"another record": &other, "nothing": nil} {
		require.NoError(t, s.Save(t.Context(), "key", &fullToken))
		for _, next := range []*ganbauth.Token{&other, nil} {
			require.Equal(t, ganbauth.ErrSuperseded, ganbauth.SCSCompareAndWrite(t.Context(), s, "key", old, next), name)
			got, err := s.Load(t.Context(), "key")
			require.NoError(t, err)
			require.Equal(t, fullToken, *got, name)
		}
	}
	require.NoError(t, s.Delete(t.Context(), "key"))
	require.Equal(t, ganbauth.ErrSuperseded, ganbauth.SCSCompareAndWrite(t.Context(), s, "key", &fullToken, &other))
	require.NoError(t, ganbauth.SCSCompareAndWrite(t.Context(), s, "key", nil, &other))
	got, err := s.Load(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, other, *got)
}

// When a record ends: with the session that holds its key, a login under way by itself, and
// else after the sessions' lifetime, counted from the login.
func TestSCSDeadlines(t *testing.T) {
	const key = "bank/;ABC"
	token, mark := fullToken, ganbauth.Token{Epoch: "e1"}
	token.Epoch = "e1"
	ends := func(t ganbauth.Token, in time.Duration) *ganbauth.Token {
		t.ExpiresAt = time.Now().Add(in).UTC()
		return &t
	}
	judged := mark
	judged.Judged = "rt"
	other := token
	other.Epoch = "e2"
	const lifetime, session, before = 24 * time.Hour, 3 * time.Hour, 2 * time.Hour
	for _, test := range []struct {
		name   string
		values map[string]string // of the session
		key    string
		stored *ganbauth.Token // two hours ago
		save   *ganbauth.Token
		want   time.Duration
	}{
		{"a login", nil, key, nil, &token, lifetime},
		{"a refresh", nil, key, &token, &token, lifetime - before},
		{"the next login", nil, key, &token, &other, lifetime},
		{"a login under way", nil, key, nil, ends(mark, 10*time.Minute), 10 * time.Minute},
		{"a login that is over", nil, key, nil, ends(mark, -time.Minute), lifetime},
		{"a grant that is dead", nil, key, nil, ends(judged, 10*time.Minute), lifetime},
		{"a token that ends soon", nil, key, nil, ends(token, 10*time.Minute), lifetime},
		{"the session's", map[string]string{"ganbauth.bank": key}, key, nil, &token, session},
		{"the session's, refreshed", map[string]string{"ganbauth.bank": key + " ancestor"}, key, &token, &token, session},
		{"the session's, of one connection", map[string]string{"user": "u", "ganbauth.bank": key}, key + "/c", nil, &token, session},
		{"another session's", map[string]string{"ganbauth.bank": key}, key + "D", nil, &token, lifetime},
		{"another kit's", map[string]string{"ganbauth.other": key}, key, nil, &token, lifetime},
		{"a kit's whose name begins alike", map[string]string{"ganbauth.ban": key}, key, nil, &token, lifetime},
		{"the application's own value", map[string]string{"bank": key}, key, nil, &token, lifetime},
	} {
		sessions := scs.New()
		engine := &spyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
		sessions.Store = engine
		store := ganbauth.NewSCSStore(sessions)
		if test.stored != nil {
			sessions.Lifetime = lifetime - before
			require.NoError(t, store.Save(t.Context(), test.key, test.stored))
			sessions.Lifetime = lifetime
		}
		ctx, err := sessions.Load(t.Context(), "")
		require.NoError(t, err)
		sessions.SetDeadline(ctx, time.Now().Add(session).UTC())
		for name, value := range test.values {
			sessions.Put(ctx, name, value)
		}
		require.NoError(t, store.Save(ctx, test.key, test.save))
		got := time.Until(engine.expiry[engine.names[len(engine.names)-1]])
		require.InDelta(t, test.want.Seconds(), got.Seconds(), 30, test.name)
	}
}

// A codec that fails is an error of the store, and nothing is written.
func TestSCSCodecFails(t *testing.T) {
	sessions := scs.New()
	codec := &failingCodec{}
	sessions.Codec = codec
	store := ganbauth.NewSCSStore(sessions)
	require.NoError(t, store.Save(t.Context(), "key", &fullToken))
	codec.fails = true
	newer := fullToken
	newer.AccessToken = "AT-2"
	require.ErrorIs(t, store.Save(t.Context(), "key", &newer), errEngine)
	got, err := store.Load(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, fullToken, *got)
}

// failingCodec is a codec that can fail.
type failingCodec struct {
	jsonCodec
	fails bool
}

func (c *failingCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	if c.fails {
		return nil, errEngine
	}
	return c.jsonCodec.Encode(deadline, values)
}

// Another release finds the records of this one: a session's are under the key itself, all
// others under a hash of it. A semicolon is in each name, so no cookie can name one.
func TestSCSRecordNames(t *testing.T) {
	handle := ";ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	for key, want := range map[string]string{
		"bank/" + handle:                      "",
		"bank/;":                              "",
		"bank/;A":                             "",
		"bank/;Z27":                           "",
		strings.Repeat("n", 8) + "/" + handle: "",
		strings.Repeat("n", 9) + "/" + handle: "hash",
		"bank/u":                              "hash",
		"bank/":                               "hash",
		"bank":                                "hash",
		";A":                                  "hash",
		"bank/;@":                             "hash",
		"bank/;[":                             "hash",
		"bank/;a":                             "hash",
		"bank/;aA":                            "hash",
		"bank/;A1":                            "hash",
		"bank/;A8":                            "hash",
		"bank/" + handle + "/c":               "hash",
	} {
		sessions := scs.New()
		engine := &spyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
		sessions.Store = engine
		require.NoError(t, ganbauth.NewSCSStore(sessions).Save(t.Context(), key, &fullToken))
		require.Len(t, engine.names, 1)
		name := engine.names[0]
		require.LessOrEqual(t, len(name), 43, key)
		if want == "" {
			require.Equal(t, key, name)
			continue
		}
		sum := sha256.Sum256([]byte("ganbauth token\x00" + key))
		require.Equal(t, (";" + base64.RawURLEncoding.EncodeToString(sum[:]))[:43], name, key)
	}
}

// engineSteps are what a user does, one after the other. Each returns the status.
var engineSteps = []struct {
	name string
	do   func(b *browser, callback string) int
	done int
}{
	{"login", func(b *browser, callback string) int { return b.get(callback).StatusCode }, 303},
	{"login again", func(b *browser, callback string) int { return b.get(callback).StatusCode }, 303},
	{"use", func(b *browser, _ string) int { return b.do("GET", "/p", program).StatusCode }, 200},
	{"status", func(b *browser, _ string) int { return b.do("GET", "/bank/status", program).StatusCode }, 200},
	{"refresh", func(b *browser, _ string) int { return b.do("GET", "/p", program).StatusCode }, 200},
	{"logout", func(b *browser, _ string) int { return b.post("/bank/logout").StatusCode }, 303},
}

// failAt lives a user's day, in one step of which the n-th call of the engine fails. It
// returns that call's name.
func failAt(t *testing.T, a *app, e *faultyEngine, faulty, n int, after bool) (met string) {
	t.Helper()
	defer time.Sleep(10 * time.Second) // what is under way comes to its end
	b := a.browser()
	codes, callback := 2, ""
	for i, step := range engineSteps {
		switch step.name {
		case "login", "login again":
			callback = b.callbackURL("/bank/login")
		case "refresh":
			time.Sleep(61 * time.Minute)
		}
		before := b.cookieHeader()
		name := func() string { return "" }
		if i == faulty {
			name = e.failNext(n, after)
		}
		status := step.do(b, callback)
		where := fmt.Sprintf("%s, call %d", step.name, n)
		if i == faulty {
			met = name()
			where += " " + met
		}
		if status != step.done {
			require.Equal(t, faulty, i, "%s: a later step has status %d", where, status)
			require.Equal(t, 503, status, where)
			time.Sleep(2 * time.Second) // it cools down
			if cookie := b.cookie("session"); i == 1 && cookie != "" {
				// RenewToken of scs deletes a session before it writes the new one.
				if _, found, _ := e.MemStore.Find(cookie); !found {
					callback = b.callbackURL("/bank/login")
					codes++
				}
			}
			require.Equal(t, step.done, step.do(b, callback), "%s: the next try", where)
		}
		if step.name == "logout" {
			require.Equal(t, 401, a.browser().do("GET", "/p", with(program, "Cookie", before)).StatusCode, where)
			_, tokens := storedIn(t, e.MemStore)
			require.Equal(t, codes-2, tokens, "%s: none but those of a session that is lost", where)
		}
	}
	require.Equal(t, codes+1, a.bank.Count(ganbtest.TokenEndpoint), "%s, call %d: each code once, and one refresh", engineSteps[faulty].name, n)
	return met
}

// I10: the engine fails when a callback is delivered again whose login has succeeded. The
// login is not lost.
func TestI10EngineFailsAtTheSecondDelivery(t *testing.T) {
	for n, met := 1, "?"; met != ""; n++ {
		e := &faultyEngine{MemStore: memstore.NewWithCleanupInterval(0)}
		s := setup{bare: true, sessions: func(m *scs.SessionManager) { m.Store = e }}
		inBubble(t, s, func(t *testing.T, a *app) {
			b := a.browser()
			r := mustRequest("GET", b.callbackURL("/bank/login"))
			r.Header = with(navigate, "Cookie", b.cookieHeader())
			ctx, leave := context.WithTimeout(t.Context(), time.Second)
			defer leave()
			a.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(2*time.Second), 1)
			_, _ = b.client.Transport.RoundTrip(r.WithContext(ctx))
			time.Sleep(2 * time.Second)

			name := e.failNext(n, false)
			status := b.get(r.URL.String()).StatusCode
			met = name()
			if status != 303 {
				require.Equal(t, 503, status, "call %d %s", n, met)
				require.Equal(t, 303, b.get(r.URL.String()).StatusCode, "call %d %s", n, met)
			}
			require.True(t, b.connected())
			require.Equal(t, 1, a.bank.Count(ganbtest.TokenEndpoint))
		})
	}
}

// oddCodec is a jsonCodec whose answers are changed.
type oddCodec struct {
	jsonCodec
	encode func() error
	decode func(b []byte, values map[string]any, err error) (map[string]any, error)
}

func (c *oddCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	if c.encode != nil {
		if err := c.encode(); err != nil {
			return nil, err
		}
	}
	return c.jsonCodec.Encode(deadline, values)
}

func (c *oddCodec) Decode(b []byte) (time.Time, map[string]any, error) {
	deadline, values, err := c.jsonCodec.Decode(b)
	if c.decode != nil {
		values, err = c.decode(b, values, err)
	}
	return deadline, values, err
}

// A record stands behind the codec's bytes only where the codec has shown that it reads over
// it. Otherwise it is a value, which every codec can read.
func TestSCSOddCodecs(t *testing.T) {
	one := map[string]any{"x": ""}
	calls := 0
	for name, codec := range map[string]*oddCodec{
		"it fails, and says something": {decode: func(_ []byte, values map[string]any, err error) (map[string]any, error) {
			if err != nil {
				values = one
			}
			return values, err
		}},
		"it finds something in what follows": {decode: func(_ []byte, values map[string]any, err error) (map[string]any, error) {
			if err != nil {
				values = map[string]any{"x": "", "y": ""}
			}
			return values, nil
		}},
		"it cannot encode at first": {
			encode: func() error {
				if calls++; calls == 1 {
					return errEngine
				}
				return nil
			},
			decode: func(_ []byte, values map[string]any, err error) (map[string]any, error) {
				if err != nil {
					values = one
				}
				return values, nil
			},
		},
	} {
		sessions := scs.New()
		sessions.Codec = codec
		store := ganbauth.NewSCSStore(sessions)
		require.NoError(t, store.Save(t.Context(), "key", &fullToken))
		got, err := store.Load(t.Context(), "key")
		require.NoError(t, err, name)
		require.Equal(t, fullToken, *got, name)
		all, err := sessions.Store.(*memstore.MemStore).All()
		require.NoError(t, err)
		for _, data := range all {
			_, values, err := jsonCodec{}.Decode(data)
			require.NoError(t, err, name)
			require.Len(t, values, 1, name)
		}
	}
}

// A value that cannot be read to its end is no record, whatever its beginning says.
func TestSCSBrokenValue(t *testing.T) {
	for name, spoil := range map[string]func(codec *oddCodec, values map[string]any){
		"no base64": func(_ *oddCodec, values map[string]any) {
			for k, v := range values {
				values[k] = v.(string) + "!"
			}
		},
		"the codec fails": func(codec *oddCodec, _ map[string]any) {
			codec.decode = func(_ []byte, values map[string]any, _ error) (map[string]any, error) { return values, errEngine }
		},
	} {
		sessions, codec := scs.New(), &oddCodec{}
		sessions.Codec = codec
		store := ganbauth.NewSCSStore(sessions)
		require.NoError(t, store.Save(t.Context(), "key", &fullToken))
		engine := sessions.Store.(*memstore.MemStore)
		all, err := engine.All()
		require.NoError(t, err)
		for record, data := range all {
			deadline, values, err := codec.Decode(data)
			require.NoError(t, err)
			spoil(codec, values)
			data, err = codec.Encode(deadline, values)
			require.NoError(t, err)
			require.NoError(t, engine.Commit(record, data, time.Now().Add(time.Hour)))
		}
		_, err = store.Load(t.Context(), "key")
		require.ErrorContains(t, err, "cannot be read", name)
	}
}
