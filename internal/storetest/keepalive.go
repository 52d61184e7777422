package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

const keepAliveVariable = "STORETEST_KEEP_ALIVE"

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.String()
}

// keeperOf makes a kit that keeps the tokens of store alive, one a second.
func (in instance) keeperOf(t *testing.T, store Store, log *slog.Logger) *ganbauth.Kit {
	c, err := ganbauth.NewConnector(in.ClientID, in.ClientSecret, ganbauth.AuthBasic,
		ganbauth.Config{AuthBaseURL: in.AuthBaseURL, JWTIssuer: in.Issuer, Salt: in.Salt})
	require.NoError(t, err)
	kit, err := ganbauth.New(c, nil, ganbauth.Options{
		RedirectURI: "https://app.test/callback", Scopes: []string{"openid", "offline_access"}, Store: store, Logger: log,
		Key: func(*http.Request) (string, error) { return "", nil },
	})
	require.NoError(t, err)
	return kit
}

// keepAlive has a kit keep the tokens of store alive until the function that it returns
// is called.
func (f *fleet) keepAlive(store Store) (log *lockedLog, end func()) {
	log = &lockedLog{}
	kit := f.env.keeperOf(f.t, store, slog.New(slog.NewTextHandler(log, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- kit.KeepAlive(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(end)
	return log, end
}

// keepAliveProcess starts a process of its own that keeps tokens alive.
func (f *fleet) keepAliveProcess() *process {
	env, err := json.Marshal(f.env)
	require.NoError(f.t, err)
	caller, _, _ := strings.Cut(f.t.Name(), "/")
	cmd := exec.Command(os.Args[0], "-test.run=^"+caller+"$")
	cmd.Env = append(os.Environ(), keepAliveVariable+"="+string(env))
	require.NoError(f.t, cmd.Start())
	p := &process{fleet: f, cmd: cmd}
	f.t.Cleanup(p.kill)
	return p
}

// reported is what KeepAlive logs when it cannot do its work.
var reported = regexp.MustCompile(`level=ERROR msg="ganbauth: (tokens are not|not every entry of the store can be) kept alive`)

// refreshed waits until the bank has been asked that often.
func (f *fleet) refreshed(n int) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return f.bank.Refreshes() >= n }, 2*time.Minute, time.Millisecond)
}

// requireAlive holds that each token was refreshed once and is stored.
func (f *fleet) requireAlive(users []string) {
	f.t.Helper()
	require.Equal(f.t, len(users), f.bank.Refreshes())
	for _, user := range users {
		token, err := f.kit.Token(f.t.Context(), user)
		require.NoError(f.t, err)
		require.Equal(f.t, f.subjects[user], token.Subject)
	}
	require.Equal(f.t, len(users), f.bank.Refreshes(), "what is stored is live")
}

// KeepAlive tests processes that keep tokens alive at a bank that ends the grant when a
// refresh token is used twice, on bad days of the process and of the engine. It runs the
// calling test again for the process that is killed. The stores' leases are three
// seconds. A request that stores a token contains mark, which is part of the key
// bank/user-0.
func KeepAlive(t *testing.T, engine func() (*testenv.Process, string), newStore func(engine string) Store, mark string) {
	if variable := os.Getenv(keepAliveVariable); variable != "" {
		var in instance
		require.NoError(t, json.Unmarshal([]byte(variable), &in))
		_ = in.keeperOf(t, newStore(in.Engine), slog.New(slog.DiscardHandler)).KeepAlive(context.Background())
		return
	}
	t.Parallel()
	server, addr := engine()
	strict := ganbtest.Options{RevokeOnReuse: true, Latency: 50 * time.Millisecond}

	t.Run("killed", func(t *testing.T) {
		f, users := newFleet(t, addr, newStore, strict), names(8)
		f.connect(users...)
		first := f.keepAliveProcess()
		f.refreshed(2)
		f.keepAliveProcess()
		time.Sleep(time.Second) // it is on the watch
		first.kill()
		killed, before := time.Now(), f.bank.Refreshes()
		f.refreshed(before + 1)
		took := time.Since(killed)
		f.refreshed(len(users))
		t.Attr("measured", fmt.Sprintf("the next token is refreshed %s later, at a lease of 3 s", took.Round(100*time.Millisecond)))
		require.Less(t, took, 20*time.Second)
	})

	t.Run("the engine hangs", func(t *testing.T) {
		f, users := newFleet(t, addr, newStore, strict), names(8)
		f.connect(users...)
		log, end := f.keepAlive(newStore(addr))
		f.refreshed(3)
		server.Pause()
		hung := time.Now()
		resume := sync.OnceFunc(server.Resume)
		defer resume()
		require.Eventually(t, func() bool { return reported.MatchString(log.String()) }, 2*time.Minute, 10*time.Millisecond)
		told := time.Since(hung)
		resume()
		f.refreshed(len(users))
		end()
		f.requireAlive(users)
		t.Attr("measured", fmt.Sprintf("an error in the log after %s; then all %d tokens are refreshed, each once", told.Round(time.Second), len(users)))
	})

	// What is lost says that the new token has been stored.
	t.Run("a lost reply", func(t *testing.T) {
		slow := strict
		slow.Latency = 300 * time.Millisecond
		f, users := newFleet(t, addr, newStore, slow), names(8)
		f.connect(users...)
		p := NewProxy(t, server.Addr)
		_, end := f.keepAlive(newStore(strings.Replace(addr, server.Addr, p.Addr, 1)))
		const replies = 3
		for i := range replies {
			f.refreshed(2*i + 1) // the bank has the request
			p.Lose(mark)
			require.Eventually(t, p.Lost, 10*time.Second, time.Millisecond)
		}
		f.refreshed(len(users))
		end()
		f.requireAlive(users)
		t.Attr("measured", fmt.Sprintf("%d replies lost: all %d tokens are refreshed, each once", replies, len(users)))
	})
}
