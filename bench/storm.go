package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

const bankLatency = 50 * time.Millisecond

// bankProcess is a bank of its own, on loopback, so that its work is not ours.
type bankProcess struct {
	Config           ganbauth.Config
	ClientID, Secret string

	in  io.Writer
	out *json.Decoder
}

// serveBank is that process: it answers each line of standard input with one of JSON.
func serveBank(latency time.Duration) {
	b := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true})
	defer b.Close()
	out := json.NewEncoder(os.Stdout)
	check(out.Encode([]string{b.Config().AuthBaseURL, b.Config().JWTIssuer, b.ClientID, b.ClientSecret}))
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "token":
			b.Heal() // this is not what is measured
			t := b.Token("private:account", "offline_access")
			b.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(latency), -1)
			check(out.Encode([]string{t.AccessToken, t.RefreshToken}))
		case "requests":
			check(out.Encode(b.Count(ganbtest.TokenEndpoint)))
		}
	}
}

// startBank starts a bank in a process of its own, which answers after latency.
func startBank(latency time.Duration) (b *bankProcess, stop func()) {
	cmd := exec.Command(must(os.Executable()), "bank", latency.String())
	cmd.Stderr = os.Stderr
	in, out := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	check(cmd.Start())
	b = &bankProcess{in: in, out: json.NewDecoder(bufio.NewReader(out))}
	var hello [4]string
	check(b.out.Decode(&hello))
	b.Config = ganbauth.Config{AuthBaseURL: hello[0], JWTIssuer: hello[1], Salt: "of the benchmarks"}
	b.ClientID, b.Secret = hello[2], hello[3]
	return b, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

func ask[T any](b *bankProcess, question string) (answer T) {
	_ = must(fmt.Fprintln(b.in, question))
	check(b.out.Decode(&answer))
	return answer
}

// expired is a token of a user who has just connected, as it will be in an hour.
func (b *bankProcess) expired() *ganbauth.Token {
	t := ask[[2]string](b, "token")
	past := time.Now().Add(-time.Minute)
	return &ganbauth.Token{AccessToken: t[0], RefreshToken: t[1], TokenType: "Bearer",
		Scope: "private:account offline_access", ExpiresAt: past, IssuedAt: past.Add(-time.Hour)}
}

func (b *bankProcess) connector() *ganbauth.Connector {
	return must(ganbauth.NewConnector(b.ClientID, b.Secret, ganbauth.AuthBasic, b.Config))
}

// refresher serves requests whose header User says whose they are, and needs a live token
// for each.
type refresher struct {
	name string
	make func(*bankProcess, ganbauth.TokenStore) http.Handler
}

var refreshers = []refresher{
	{"**ganbauth**", func(b *bankProcess, store ganbauth.TokenStore) http.Handler {
		kit := must(ganbauth.New(b.connector(), nil, ganbauth.Options{
			RedirectURI: app + "/callback", Scopes: []string{"private:account", "offline_access"}, Logger: discardLog, Store: store,
			Key: func(r *http.Request) (string, error) { return r.Header.Get("User"), nil },
		}))
		return kit.RequireToken(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}},
	{"each request refreshes", func(b *bankProcess, store ganbauth.TokenStore) http.Handler {
		c := b.connector()
		return needsToken(store, func(ctx context.Context, user string, t *ganbauth.Token) (*ganbauth.Token, error) {
			next, err := c.RefreshTokens(ctx, t.RefreshToken)
			if err == nil {
				err = store.Save(ctx, kitKey+user, next)
			}
			return next, err
		})
	}},
	{"x/sync/singleflight", func(b *bankProcess, store ganbauth.TokenStore) http.Handler {
		c := b.connector()
		var group singleflight.Group
		return needsToken(store, func(ctx context.Context, user string, t *ganbauth.Token) (*ganbauth.Token, error) {
			next, err, _ := group.Do(user, func() (any, error) {
				next, err := c.RefreshTokens(ctx, t.RefreshToken)
				if err == nil {
					err = store.Save(ctx, kitKey+user, next)
				}
				return next, err
			})
			if err != nil {
				return nil, err
			}
			return next.(*ganbauth.Token), nil
		})
	}},
	{"x/oauth2 ReuseTokenSource", func(b *bankProcess, store ganbauth.TokenStore) http.Handler {
		config := &oauth2.Config{ClientID: b.ClientID, ClientSecret: b.Secret, Endpoint: oauth2.Endpoint{
			TokenURL: b.Config.AuthBaseURL + "/token", AuthStyle: oauth2.AuthStyleInHeader,
		}}
		var sources sync.Map
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user := r.Header.Get("User")
			source, ok := sources.Load(user)
			if !ok {
				t, err := store.Load(r.Context(), kitKey+user)
				check(err)
				source, _ = sources.LoadOrStore(user, config.TokenSource(context.Background(),
					&oauth2.Token{AccessToken: t.AccessToken, RefreshToken: t.RefreshToken, Expiry: t.ExpiresAt}))
			}
			if _, err := source.(oauth2.TokenSource).Token(); err != nil {
				w.WriteHeader(http.StatusBadGateway)
			}
		})
	}},
}

// needsToken is the middleware that an application would write.
func needsToken(store ganbauth.TokenStore, refresh func(context.Context, string, *ganbauth.Token) (*ganbauth.Token, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user := r.Header.Get("User")
		t, err := store.Load(r.Context(), kitKey+user)
		if err == nil && !t.Valid() {
			_, err = refresh(r.Context(), user, t)
		}
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
}

// stormSample is what became of the requests of one user that met the end of the token.
type stormSample struct {
	Name                  string
	TokenRequests, Failed int
	Last                  time.Duration // from the start to the last answer
	Lost                  bool          // the user has to connect again
}

// storm sends n requests of one user, spread over a time.
func storm(r refresher, n int, spread time.Duration) stormSample {
	b, stop := startBank(bankLatency)
	defer stop()
	store := ganbauth.NewMemoryStore()
	h := r.make(b, store)
	check(store.Save(context.Background(), kitKey+"warm", b.expired()))
	userRequest(h, "warm")
	check(store.Save(context.Background(), kitKey+"alice", b.expired()))

	before := ask[int](b, "requests")
	var failed atomic.Int32
	var wg sync.WaitGroup
	begin := make(chan struct{})
	var start time.Time
	for i := range n {
		wg.Go(func() {
			<-begin
			time.Sleep(time.Until(start.Add(spread * time.Duration(i) / time.Duration(n))))
			if userRequest(h, "alice") != http.StatusOK {
				failed.Add(1)
			}
		})
	}
	start = time.Now()
	close(begin)
	wg.Wait()
	s := stormSample{Name: r.name, Last: time.Since(start), Failed: int(failed.Load())}
	s.TokenRequests = ask[int](b, "requests") - before
	t := must(store.Load(context.Background(), kitKey+"alice"))
	_, err := b.connector().RefreshTokens(context.Background(), t.RefreshToken)
	s.Lost = err != nil
	return s
}

func userRequest(h http.Handler, user string) (status int) {
	r := request(nil, "/balance")
	r.Header.Set("User", user)
	w := &discard{header: http.Header{}}
	h.ServeHTTP(w, r)
	return max(w.status, http.StatusOK)
}

// herdSample is what became of many users' tokens that ended together.
type herdSample struct {
	Engine, Name     string
	Users            int
	Took             time.Duration
	PerSecond        float64
	Ratio            float64 // of PerSecond to that of the loop
	Failed           int     // in a round
	Goroutines       int     // at the peak, less one for each request
	HeapMore         int64   // afterwards, in bytes, for each user
	GoroutinesStayed int
}

// herd is many users whose tokens end together, with one way to refresh them.
type herd struct {
	refresher
	bank    *bankProcess
	stop    func()
	handler http.Handler
	store   ganbauth.TokenStore
	users   int

	seen herdSample
	took []float64
}

// herders are the ways to refresh that can be compared: the loop first.
func herders() []refresher { return []refresher{refreshers[1], refreshers[0], refreshers[2]} }

// herds has all users refresh at once, in turns by each of the refreshers, and measures
// how long that takes. The first of them is what the others are compared with.
func herds(compared []refresher, store ganbauth.TokenStore, users, rounds int) (samples []herdSample) {
	besides := make([]byte, heap)
	defer runtime.KeepAlive(besides)
	var all []*herd
	defer func() {
		for _, h := range all {
			h.stop()
		}
	}()
	for _, r := range compared {
		b, stop := startBank(bankLatency)
		h := &herd{refresher: r, bank: b, stop: stop, handler: r.make(b, store), store: store, users: users}
		h.expire()
		h.run() // opens the connections that are kept
		all = append(all, h)
	}
	for round := range rounds {
		for j := range all {
			all[(j+round)%len(all)].measure()
		}
	}
	for _, h := range all {
		var ratios []float64
		for round := range rounds {
			ratios = append(ratios, all[0].took[round]/h.took[round])
		}
		s := h.seen
		s.Name, s.Users, s.Ratio = h.name, users, median(ratios)
		s.Took = time.Duration(median(h.took))
		s.Failed = (s.Failed + rounds - 1) / rounds
		s.PerSecond = float64(users-s.Failed) / s.Took.Seconds()
		samples = append(samples, s)
	}
	return samples
}

// expire has everybody connect anew, with tokens that have ended.
func (h *herd) expire() {
	var wg sync.WaitGroup
	room := make(chan struct{}, 64)
	for i := range h.users {
		t := h.bank.expired()
		room <- struct{}{}
		wg.Go(func() {
			check(h.store.Save(context.Background(), fmt.Sprint(kitKey, "user-", i), t))
			<-room
		})
	}
	wg.Wait()
}

// measure is one round.
func (h *herd) measure() {
	h.expire()
	before, goroutines := settled()
	took, failed, peak := h.run()
	after, stayed := settled()
	runtime.KeepAlive(h.handler)
	h.took = append(h.took, float64(took))
	h.seen.Failed += failed
	h.seen.Goroutines = max(h.seen.Goroutines, peak-goroutines-h.users)
	h.seen.HeapMore, h.seen.GoroutinesStayed = (after-before)/int64(h.users), stayed-goroutines
}

// run has everybody ask at once.
func (h *herd) run() (took time.Duration, failed, peak int) {
	var failures atomic.Int32
	var wg, watching sync.WaitGroup
	begin, done := make(chan struct{}), make(chan struct{})
	for i := range h.users {
		wg.Go(func() {
			<-begin
			if userRequest(h.handler, fmt.Sprint("user-", i)) != http.StatusOK {
				failures.Add(1)
			}
		})
	}
	watching.Go(func() {
		for {
			peak = max(peak, runtime.NumGoroutine())
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	start := time.Now()
	close(begin)
	wg.Wait()
	took = time.Since(start)
	close(done)
	watching.Wait()
	return took, int(failures.Load()), peak
}

// settled is the heap that is in use and the goroutines that are there when all is quiet.
func settled() (heap int64, goroutines int) {
	time.Sleep(200 * time.Millisecond)
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), runtime.NumGoroutine()
}
