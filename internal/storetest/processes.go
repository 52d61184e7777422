package storetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// instance is what a process of an application needs to know.
type instance struct {
	Engine, ClientID, ClientSecret string
	AuthBaseURL, Issuer, Salt      string
}

const serveVariable = "STORETEST_SERVE"

// serve is an instance of an application in a process of its own: it answers the user of X-User with his subject.
func serve(t *testing.T, newStore func(engine string) Store) {
	var in instance
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(serveVariable)), &in))
	c, err := ganbauth.NewConnector(in.ClientID, in.ClientSecret, ganbauth.AuthBasic,
		ganbauth.Config{AuthBaseURL: in.AuthBaseURL, JWTIssuer: in.Issuer, Salt: in.Salt})
	require.NoError(t, err)
	kit, err := ganbauth.New(c, nil, ganbauth.Options{
		RedirectURI: "https://app.test/callback", Scopes: []string{"openid", "offline_access"}, Store: newStore(in.Engine),
		Key:    func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil },
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	require.NoError(t, err)
	handler := kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		_, _ = io.WriteString(w, token.Subject)
	}))
	server := httptest.NewServer(handler)
	fmt.Println(server.URL)
	select {}
}

// process is a running instance.
type process struct {
	url string
	cmd *exec.Cmd
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// get returns what the instance answers a user.
func (p *process) get(ctx context.Context, user string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-User", user)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// Processes tests instances of an application that are processes of their own, at a bank that ends the grant when a
// refresh token is used twice. It runs the calling test again for each of them. The stores' leases are a second.
func Processes(t *testing.T, engine func() string, newStore func(engine string) Store) {
	if os.Getenv(serveVariable) != "" {
		serve(t, newStore)
	}
	bank := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true, Latency: 50 * time.Millisecond})
	t.Cleanup(bank.Close)
	addr := engine()
	store := newStore(addr)
	cfg := bank.Config()
	env, err := json.Marshal(instance{addr, bank.ClientID, bank.ClientSecret, cfg.AuthBaseURL, cfg.JWTIssuer, cfg.Salt})
	require.NoError(t, err)
	start := func() *process {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), serveVariable+"="+string(env))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		p := &process{cmd: cmd}
		t.Cleanup(p.kill)
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		p.url = strings.TrimSpace(line)
		return p
	}
	// lapsed puts a token at its expiry into the store, and returns its user's subject.
	lapsed := func(user string) (subject string) {
		token := bank.Token()
		token.IssuedAt, token.ExpiresAt = token.IssuedAt.Add(-time.Hour), token.IssuedAt
		require.NoError(t, store.Save(t.Context(), user, token))
		return token.Subject
	}
	storm := func(processes []*process, requests int, users []string, subjects map[string]string) (served int) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range requests {
			wg.Go(func() {
				user := users[i%len(users)]
				status, body, err := processes[i%len(processes)].get(t.Context(), user)
				mu.Lock()
				defer mu.Unlock()
				if err != nil || status != http.StatusOK {
					t.Errorf("got %d, %v", status, err)
				} else if body != subjects[user] {
					t.Error("a user saw somebody else's token")
				} else {
					served++
				}
			})
		}
		wg.Wait()
		return served
	}
	four := []*process{start(), start(), start(), start()}

	subjects := map[string]string{"alice": lapsed("alice")}
	served := storm(four, 1000, []string{"alice"}, subjects)
	require.Equal(t, 1, bank.Refreshes())
	t.Logf("4 processes, 1,000 requests of one user at the token's expiry: %d token request, %d served", bank.Refreshes(), served)

	var users []string
	for i := range 200 {
		user := fmt.Sprint("user-", i)
		users = append(users, user)
		subjects[user] = lapsed(user)
	}
	before := bank.Refreshes()
	served = storm(four, 1000, users, subjects)
	require.Equal(t, 200, bank.Refreshes()-before)
	t.Logf("4 processes, 1,000 requests of 200 users at once: %d token requests, %d served", bank.Refreshes()-before, served)

	// kill -9 of the process that holds the lock, before the bank has processed its request.
	subjects["bob"] = lapsed("bob")
	bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Minute), 1)
	before = bank.Refreshes()
	go func() { _, _, _ = four[0].get(context.Background(), "bob") }()
	require.Eventually(t, func() bool { return bank.Refreshes() > before }, 10*time.Second, time.Millisecond)
	four[0].kill()
	began := time.Now()
	status, body, err := four[1].get(t.Context(), "bob")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, subjects["bob"], body)
	t.Logf("the process with the lock was killed before the bank had answered: served by another after %s (lease 1 s)",
		time.Since(began).Round(100*time.Millisecond))

	// The same after the bank has processed it: the new token died with the process, which is physics; the user has to
	// connect again, and nobody else notices.
	subjects["carol"], subjects["dave"] = lapsed("carol"), lapsed("dave")
	bank.Fail(ganbtest.TokenEndpoint, ganbtest.AnswerLost, 1)
	_, _, _ = four[1].get(t.Context(), "carol")
	four[1].kill()
	require.Eventually(t, func() bool {
		status, _, err := four[2].get(t.Context(), "carol")
		return err == nil && status == http.StatusUnauthorized
	}, 10*time.Second, 50*time.Millisecond)
	status, body, err = four[2].get(t.Context(), "dave")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, subjects["dave"], body)
	t.Log("killed after the bank had answered: that user has to connect again, and nobody else")
}
