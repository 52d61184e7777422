package ganbauth_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
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
	fails int    // the number of the call that fails; 0: none
	after bool   // it has its effect all the same
	met   string // the name of the call that failed
}

var errEngine = errors.New("the engine is away")

func (e *faultyEngine) call(name string, effect func() error) error {
	e.mu.Lock()
	e.calls++
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
								s.options.Key = func(*http.Request) (string, error) { return "u", nil }
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
	compare := func(old, new *ganbauth.Token) func(ganbauth.TokenStore, context.Context) error {
		return func(s ganbauth.TokenStore, ctx context.Context) error {
			return ganbauth.SCSCompareAndWrite(s, ctx, "key", old, new)
		}
	}
	for _, engineOf := range []func(*faultyEngine) scs.Store{
		func(e *faultyEngine) scs.Store { return e },
		func(e *faultyEngine) scs.Store { return faultyContext{e} },
	} {
		for _, test := range []struct {
			name  string
			do    func(s ganbauth.TokenStore, ctx context.Context) error
			calls []string
			left  *ganbauth.Token
		}{
			{"load", func(s ganbauth.TokenStore, ctx context.Context) error {
				got, err := s.Load(ctx, "key")
				require.Equal(t, err == nil, got != nil)
				return err
			}, []string{"Find"}, &fullToken},
			{"save", func(s ganbauth.TokenStore, ctx context.Context) error { return s.Save(ctx, "key", &newer) }, []string{"Find", "Commit"}, &newer},
			{"delete", func(s ganbauth.TokenStore, ctx context.Context) error { return s.Delete(ctx, "key") }, []string{"Delete"}, nil},
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
					err := test.do(s, t.Context())
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
			require.Equal(t, ganbauth.ErrSuperseded, ganbauth.SCSCompareAndWrite(s, t.Context(), "key", old, next), name)
			got, err := s.Load(t.Context(), "key")
			require.NoError(t, err)
			require.Equal(t, fullToken, *got, name)
		}
	}
	require.NoError(t, s.Delete(t.Context(), "key"))
	require.Equal(t, ganbauth.ErrSuperseded, ganbauth.SCSCompareAndWrite(s, t.Context(), "key", &fullToken, &other))
	require.NoError(t, ganbauth.SCSCompareAndWrite(s, t.Context(), "key", nil, &other))
	got, err := s.Load(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, other, *got)
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
