package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/ganbauth/ganbauth"
)

// latencySample is how long requests took, of those whose token was not about to end and
// of the others.
type latencySample struct {
	Name           string
	Requests       int
	P50, P99, P999 time.Duration
	TokenRequests  int
	Failed         int
}

// load is a steady one.
type load struct {
	users, rate int           // rate is in requests a second
	lead, long  time.Duration // to make the users, and to serve them
}

// latencies serves l; if they expire, one token in a hundred ends each second.
func (l load) latencies(expire bool) (live, refreshing latencySample) {
	b, stop := startBank(200 * time.Millisecond)
	defer stop()
	sessions := newUserSessions()
	kit := must(ganbauth.New(b.connector(), sessions.SessionManager, ganbauth.Options{
		RedirectURI: app + "/callback", Scopes: []string{"private:account", "offline_access"}, Logger: discardLog, Store: sessions.tokens,
	}))
	h := sessions.LoadAndSave(kit.RequireToken(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))

	const leeway = time.Minute
	perSecond := l.users / 100
	begin := time.Now().Add(l.lead).Truncate(time.Second)
	cookies := make([]string, l.users)
	due := make([]time.Time, l.users)
	for i := range cookies {
		t := issued(begin.Add(24 * time.Hour))
		if expire && i < perSecond*int(l.long/time.Second) {
			due[i] = begin.Add(time.Duration(i/perSecond) * time.Second)
			bankToken := b.expired()
			t = issued(due[i].Add(leeway))
			t.AccessToken, t.RefreshToken, t.IDToken, t.Subject, t.Scope = bankToken.AccessToken, bankToken.RefreshToken, "", "", bankToken.Scope
		}
		cookies[i] = sessions.add(i, t)
	}
	before := ask[int](b, "requests")
	if wait := time.Until(begin); wait < 0 {
		panic(fmt.Sprint("the sessions took too long to make: ", -wait))
	}

	type served struct {
		user  int
		at    time.Time
		took  time.Duration
		right bool
	}
	results := make([]served, l.rate*int(l.long/time.Second))
	var wg sync.WaitGroup
	time.Sleep(time.Until(begin))
	for i := range results {
		at := begin.Add(time.Duration(i) * time.Second / time.Duration(l.rate))
		time.Sleep(time.Until(at))
		wg.Go(func() {
			user := rand.IntN(l.users)
			r := request(nil, "/balance")
			r.Header.Set("Cookie", cookies[user])
			w := &discard{header: http.Header{}}
			start := time.Now()
			h.ServeHTTP(w, r)
			results[i] = served{user, start, time.Since(start), w.status == 0}
		})
	}
	wg.Wait()

	var liveTimes, refreshTimes []float64
	for _, s := range results {
		sample, times := &live, &liveTimes
		// The first request after the end of a token refreshes it, for as long as the
		// bank takes, and the next may wait.
		if d := due[s.user]; !d.IsZero() && !s.at.Before(d) && s.took > 100*time.Millisecond {
			sample, times = &refreshing, &refreshTimes
		}
		sample.Requests++
		if !s.right {
			sample.Failed++
		}
		*times = append(*times, float64(s.took))
	}
	for sample, times := range map[*latencySample][]float64{&live: liveTimes, &refreshing: refreshTimes} {
		sample.P50, sample.P99, sample.P999 = time.Duration(quantile(times, 0.5)), time.Duration(quantile(times, 0.99)), time.Duration(quantile(times, 0.999))
	}
	refreshing.TokenRequests = ask[int](b, "requests") - before
	live.Name = "no token ends"
	if expire {
		live.Name, refreshing.Name = "1 % end each second: requests that do not refresh", "those that do"
	}
	return live, refreshing
}
