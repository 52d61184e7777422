package ganbtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ganbauth/ganbauth"
)

// other returns a copy of token in which change has changed something.
func other(token *ganbauth.Token, change func(*ganbauth.Token)) *ganbauth.Token {
	c := *token
	change(&c)
	return &c
}

// testSwapper tests compare and swap: what is replaced, what is refused, and who wins.
func testSwapper(t *testing.T, newStore func() ganbauth.TokenStore) {
	next := other(sampleToken(), func(t *ganbauth.Token) { t.AccessToken, t.RefreshToken = "next", "next refresh" })
	for name, test := range map[string]func(t *testing.T, s swapTest){
		"a record takes the place of nothing": func(t *testing.T, s swapTest) {
			s.swaps(nil, sampleToken())
			s.refuses(nil, next)
			s.refuses(nil, sampleToken())
			s.refuses(nil, nil)
		},
		"nothing takes the place of nothing": func(t *testing.T, s swapTest) {
			s.swaps(nil, nil)
			s.refuses(sampleToken(), next)
			s.refuses(sampleToken(), nil)
		},
		"a record takes the place of another": func(t *testing.T, s swapTest) {
			s.swaps(nil, sampleToken())
			s.swaps(sampleToken(), next)
			s.refuses(sampleToken(), next)
			s.swaps(next, sampleToken())
		},
		"a record is deleted": func(t *testing.T, s swapTest) {
			s.swaps(nil, sampleToken())
			s.refuses(next, nil)
			s.swaps(sampleToken(), nil)
			s.refuses(sampleToken(), next)
			s.swaps(nil, next)
		},
		"a record takes its own place": func(t *testing.T, s swapTest) {
			s.swaps(nil, sampleToken())
			s.swaps(sampleToken(), sampleToken())
			s.swaps(sampleToken(), next)
			s.refuses(sampleToken(), sampleToken())
		},
		"what was loaded can be replaced": func(t *testing.T, s swapTest) {
			s.swaps(nil, sampleToken())
			loaded, err := s.store.Load(soon(s.t), s.key)
			if err != nil {
				t.Fatalf("Load: %v", err)
			}
			s.swaps(loaded, next)
		},
		"records of the same fingerprint are the same": func(t *testing.T, s swapTest) {
			s.swaps(nil, sampleToken())
			s.swaps(other(sampleToken(), func(t *ganbauth.Token) { t.Scope, t.ExpiresAt, t.Subject = "x", t.IssuedAt, "y" }), next)
		},
		"Save and Delete are seen": func(t *testing.T, s swapTest) {
			save(t, s.store, s.key, next)
			s.refuses(nil, sampleToken())
			s.swaps(next, sampleToken())
			if err := s.store.Delete(soon(s.t), s.key); err != nil {
				t.Fatalf("Delete: %v", err)
			}
			s.refuses(sampleToken(), next)
			s.swaps(nil, next)
		},
		"tokens do not share memory with the caller's": func(t *testing.T, s swapTest) {
			token := sampleToken()
			if err := s.Swap(soon(s.t), s.key, nil, token); err != nil {
				t.Fatalf("Swap: %v", err)
			}
			token.AccessToken = "changed after Swap"
			wantToken(t, s.store, s.key, sampleToken())
			s.swaps(sampleToken(), next)
		},
		"a context that has ended":     testSwapEnded,
		"of many, one wins":            testSwapRace,
		"each difference is a refusal": testSwapDifferences,
	} {
		t.Run(name, func(t *testing.T) {
			store := newStore()
			test(t, swapTest{t, store.(ganbauth.Swapper), store, newStore().(ganbauth.Swapper), uniqueKey()})
		})
	}
}

// swapTest is a Swapper and a key of a test's own. The other is a second value of the
// store.
type swapTest struct {
	t *testing.T
	ganbauth.Swapper
	store ganbauth.TokenStore
	other ganbauth.Swapper
	key   string
}

// swaps wants new to take the place of old.
func (s swapTest) swaps(old, new *ganbauth.Token) {
	s.t.Helper()
	if err := s.Swap(soon(s.t), s.key, old, new); err != nil {
		s.t.Fatalf("Swap of what is there: %v", err)
	}
	s.want(new)
}

// refuses wants ErrSuperseded, and what is there to stay.
func (s swapTest) refuses(old, new *ganbauth.Token) {
	s.t.Helper()
	before, err := s.store.Load(soon(s.t), s.key)
	if err != nil {
		before = nil
	}
	if err := s.Swap(soon(s.t), s.key, old, new); !errors.Is(err, ganbauth.ErrSuperseded) {
		s.t.Errorf("Swap of what is not there: got error %v, want ErrSuperseded", err)
	}
	s.want(before)
}

func (s swapTest) want(record *ganbauth.Token) {
	s.t.Helper()
	if record != nil {
		wantToken(s.t, s.store, s.key, record)
		return
	}
	_, err := s.store.Load(soon(s.t), s.key)
	wantNotFound(s.t, err)
}

// testSwapDifferences tests that everything that tells records apart is compared.
func testSwapDifferences(t *testing.T, s swapTest) {
	judged := other(sampleMark(), func(t *ganbauth.Token) { t.Judged = "judged" })
	records := []*ganbauth.Token{
		sampleToken(), sampleMark(), judged,
		other(sampleToken(), func(t *ganbauth.Token) { t.AccessToken = "another" }),
		other(sampleToken(), func(t *ganbauth.Token) { t.AccessToken = "Access" }),
		other(sampleToken(), func(t *ganbauth.Token) { t.RefreshToken = "another" }),
		other(sampleToken(), func(t *ganbauth.Token) { t.RefreshToken = "" }),
		other(sampleToken(), func(t *ganbauth.Token) { t.Epoch = "another" }),
		other(sampleToken(), func(t *ganbauth.Token) { t.Epoch = "" }),
		other(sampleMark(), func(t *ganbauth.Token) { t.Epoch = "another" }),
		other(judged, func(t *ganbauth.Token) { t.Judged = "another" }),
	}
	for i, there := range records {
		s.key = uniqueKey()
		s.swaps(nil, there)
		for j, old := range records {
			if i != j {
				s.refuses(old, sampleToken())
				s.refuses(old, nil)
			}
		}
		s.refuses(nil, sampleToken())
		next := records[(i+1)%len(records)]
		s.swaps(there, next)
		s.swaps(next, there)
		s.swaps(there, nil)
	}
}

// testSwapEnded tests a caller that has left: an error may mean anything but that
// something else is there.
func testSwapEnded(t *testing.T, s swapTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	switch err := s.Swap(ended, s.key, nil, sampleToken()); {
	case errors.Is(err, ganbauth.ErrSuperseded):
		t.Error("Swap with a context that has ended says that something else is there")
	case err == nil:
		s.want(sampleToken())
	}
}

// testSwapRace has many swap the same record at once, through two values of the store.
func testSwapRace(t *testing.T, s swapTest) {
	var old *ganbauth.Token
	for round := range 20 {
		var winners, superseded atomic.Int32
		var winner atomic.Pointer[ganbauth.Token]
		var wg sync.WaitGroup
		const many = 8
		for i := range many {
			swapper := []ganbauth.Swapper{s.Swapper, s.other}[i%2]
			if _, shared := swapper.(ganbauth.Locker); !shared {
				swapper = s.Swapper
			}
			wg.Go(func() {
				mine := other(sampleToken(), func(t *ganbauth.Token) { t.AccessToken = fmt.Sprint(round, "-", i) })
				switch err := swapper.Swap(soon(s.t), s.key, old, mine); {
				case err == nil:
					winners.Add(1)
					winner.Store(mine)
				case errors.Is(err, ganbauth.ErrSuperseded):
					superseded.Add(1)
				default:
					t.Errorf("Swap: %v", err)
				}
			})
		}
		wg.Wait()
		if winners.Load() != 1 || superseded.Load() != many-1 {
			t.Fatalf("%d swap the same record at once: %d win and %d are told ErrSuperseded, want 1 and %d",
				many, winners.Load(), superseded.Load(), many-1)
		}
		old = winner.Load()
		s.want(old)
	}
}
