package ganbauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// badDay fails one request in twenty, half of them after the bank has processed it: then
// the new refresh token died with the answer.
type badDay struct {
	bank http.RoundTripper

	mu     sync.Mutex
	rand   *rand.Rand
	over   bool
	failed int
	lost   []string          // users whose refresh token was spent for nothing
	whose  map[string]string // the users' store keys, by their refresh tokens
}

func (d *badDay) draw() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return 1
	}
	return d.rand.Float64()
}

func (d *badDay) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := r.GetBody()
	text, _ := io.ReadAll(body)
	form, _ := url.ParseQuery(string(text))
	x := d.draw()
	if x >= 0.025 && x < 0.05 {
		d.mu.Lock()
		d.failed++
		d.mu.Unlock()
		return nil, errors.New("connection refused")
	}
	resp, err := d.bank.RoundTrip(r)
	if x < 0.025 && err == nil && resp.StatusCode == http.StatusOK {
		d.mu.Lock()
		d.lost = append(d.lost, d.whose[form.Get("refresh_token")])
		d.mu.Unlock()
		return nil, io.ErrUnexpectedEOF
	}
	return resp, err
}

// stored is told each token that is saved.
func (d *badDay) stored(key string, t *ganbauth.Token) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whose[t.RefreshToken] = key
}

// badStore fails one call in twenty.
type badStore struct {
	ganbauth.TokenStore
	day *badDay
}

var errBadDay = errors.New("the store fails")

func (s badStore) Load(ctx context.Context, key string) (*ganbauth.Token, error) {
	if s.day.draw() < 0.05 {
		return nil, errBadDay
	}
	return s.TokenStore.Load(ctx, key)
}

func (s badStore) Save(ctx context.Context, key string, t *ganbauth.Token) error {
	if s.day.draw() < 0.05 {
		return errBadDay
	}
	s.day.stored(key, t)
	return s.TokenStore.Save(ctx, key, t)
}

// A day of many users with hourly tokens, at two processes that share a Locker, while one
// in twenty of everything fails. At its end every token is accounted for: a connection is
// lost if, and only if, an answer of the bank died on the way (I14: the two are compared as
// lists of users). USERS sets their number.
func TestDay(t *testing.T) {
	users := 300
	if n, err := strconv.Atoi(os.Getenv("USERS")); err == nil {
		users = n
	}
	synctest.Test(t, func(t *testing.T) {
		bank := ganbtest.NewServer(ganbtest.Options{InProcess: true, RevokeOnReuse: true, Latency: 20 * time.Millisecond})
		day := &badDay{bank: bank.Client().Transport, rand: rand.New(rand.NewPCG(1, 2)), whose: map[string]string{}}
		memory := ganbauth.NewMemoryStore()
		cfg := bank.Config()
		cfg.HTTPClient = &http.Client{Transport: day}
		c, err := ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, bank.AuthMethod, cfg)
		require.NoError(t, err)
		locker := &keyLocker{held: map[string]bool{}}
		kits := make([]*ganbauth.Kit, 2)
		for i := range kits {
			kits[i], err = ganbauth.New(c, nil, ganbauth.Options{
				RedirectURI: appURL + "/cb", Scopes: []string{"openid", "offline_access"}, Store: badStore{memory, day}, Locker: locker,
				Key: keyIs(""), Logger: discard,
			})
			require.NoError(t, err)
		}
		subjects := make([]string, users)
		for u := range users {
			token := bank.Token()
			subjects[u] = token.Subject
			day.stored(fmt.Sprint("bank/", u), token)
			require.NoError(t, memory.Save(t.Context(), fmt.Sprint("bank/", u), token))
		}
		before := bank.Count(ganbtest.TokenEndpoint)

		gone := make([]bool, users)
		var served, unavailable int
		var mu sync.Mutex
		ask := func(u, kit int) {
			token, err := kits[kit].Token(t.Context(), fmt.Sprint(u))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && (token.Subject != subjects[u] || !token.Valid()):
				t.Errorf("user %d got somebody else's token, or a dead one", u)
			case err == nil && gone[u]:
				t.Errorf("user %d came back from nowhere", u)
			case err == nil:
				served++
			case errors.Is(err, ganbauth.ErrLoginRequired):
				gone[u] = true
			case ganbauth.StatusCode(err) == http.StatusServiceUnavailable:
				unavailable++
			default:
				t.Error(err)
			}
		}
		var wg sync.WaitGroup
		for u := range users {
			pace := rand.New(rand.NewPCG(3, uint64(u)))
			wg.Go(func() {
				for end := time.Now().Add(24 * time.Hour); time.Now().Before(end); {
					time.Sleep(10*time.Minute + time.Duration(pace.Int64N(int64(40*time.Minute))))
					var pair sync.WaitGroup // at both processes at once
					for kit := range kits {
						pair.Go(func() { ask(u, kit) })
					}
					pair.Wait()
				}
			})
		}
		wg.Wait()

		// The day is over. A refresh token that was spent for nothing shows now.
		day.mu.Lock()
		day.over = true
		day.mu.Unlock()
		time.Sleep(2 * time.Hour)
		var lost []string
		for u := range users {
			ask(u, 0)
			if gone[u] {
				lost = append(lost, fmt.Sprint("bank/", u))
			}
		}
		t.Attr("measured", fmt.Sprintf("%d users: %d token requests, %d connections refused, %d answers lost, %d users have to connect "+
			"again; %d requests served, %d answered 503", users, bank.Count(ganbtest.TokenEndpoint)-before, day.failed, len(day.lost),
			len(lost), served, unavailable))
		require.NotEmpty(t, lost)
		require.ElementsMatch(t, day.lost, lost, "each loss is an answer that died on the way, and each such answer is one loss")
	})
}
