package storetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// instance is what a process of an application needs to know.
type instance struct {
	Engine, ClientID, ClientSecret string
	AuthBaseURL, Issuer, Salt      string
	NoLocker                       bool
}

const serveVariable = "STORETEST_SERVE"

// kit makes the kit of an instance.
func (in instance) kit(t *testing.T, newStore func(engine string) Store) *ganbauth.Kit {
	c, err := ganbauth.NewConnector(in.ClientID, in.ClientSecret, ganbauth.AuthBasic,
		ganbauth.Config{AuthBaseURL: in.AuthBaseURL, JWTIssuer: in.Issuer, Salt: in.Salt})
	require.NoError(t, err)
	var store ganbauth.TokenStore = newStore(in.Engine)
	if in.NoLocker {
		store = struct {
			ganbauth.TokenStore
			ganbauth.Swapper
		}{store, store.(ganbauth.Swapper)}
	}
	kit, err := ganbauth.New(c, nil, ganbauth.Options{
		RedirectURI: "https://app.test/callback", Scopes: []string{"openid", "offline_access"}, Store: store,
		Key:    func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil },
		Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	return kit
}

// serve is an instance of an application in a process of its own: it answers the user of
// X-User with the token's subject, and at /goroutines it shows how many of ganbauth's are
// at work.
func serve(t *testing.T, newStore func(engine string) Store) {
	var in instance
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(serveVariable)), &in))
	kit := in.kit(t, newStore)
	mux := http.NewServeMux()
	mux.Handle("/", kit.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := ganbauth.TokenFromContext(r.Context())
		_, _ = io.WriteString(w, token.Subject)
	})))
	mux.HandleFunc("/goroutines", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, ganbauthGoroutines()) })
	fmt.Println(httptest.NewServer(mux).URL)
	select {}
}

// The kit's own code and the stores', not the tests'.
var ganbauthFrame = regexp.MustCompile(`ganbauth/ganbauth(/lease|/redisstore|/goredisstore|/rueidisstore|/pgxstore|/mysqlstore)?\.`)

func ganbauthGoroutines() (n int) { return len(ganbauthStacks()) }

// ganbauthStacks returns the stacks of the goroutines that are at work in ganbauth's code.
func ganbauthStacks() (found []string) {
	stacks := make([]byte, 64<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if ganbauthFrame.MatchString(stack) {
			found = append(found, stack)
		}
	}
	return found
}

// fleet is an application in several processes, and its bank.
type fleet struct {
	t        *testing.T
	bank     *ganbtest.Server
	kit      *ganbauth.Kit // by which users connect
	env      instance
	subjects map[string]string // by user
	client   *http.Client
}

// newFleet starts a bank, and makes the kit of this process. The processes come later.
func newFleet(t *testing.T, engine string, newStore func(engine string) Store, opts ganbtest.Options) *fleet {
	bank := ganbtest.NewServer(opts)
	t.Cleanup(bank.Close)
	cfg := bank.Config()
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 1000},
		Timeout:   time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	t.Cleanup(client.CloseIdleConnections)
	in := instance{
		Engine: engine, ClientID: bank.ClientID, ClientSecret: bank.ClientSecret,
		AuthBaseURL: cfg.AuthBaseURL, Issuer: cfg.JWTIssuer, Salt: cfg.Salt,
	}
	return &fleet{t: t, bank: bank, kit: in.kit(t, newStore), subjects: map[string]string{}, client: client, env: in}
}

// process is a running instance.
type process struct {
	*fleet
	url string
	cmd *exec.Cmd
}

// start starts as many instances.
func (f *fleet) start(n int) (processes []*process) {
	env, err := json.Marshal(f.env)
	require.NoError(f.t, err)
	caller, _, _ := strings.Cut(f.t.Name(), "/")
	for range n {
		cmd := exec.Command(os.Args[0], "-test.run=^"+caller+"$")
		cmd.Env = append(os.Environ(), serveVariable+"="+string(env))
		out, err := cmd.StdoutPipe()
		require.NoError(f.t, err)
		require.NoError(f.t, cmd.Start())
		p := &process{fleet: f, cmd: cmd}
		f.t.Cleanup(p.kill)
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(f.t, err)
		p.url = strings.TrimSpace(line)
		processes = append(processes, p)
	}
	return processes
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// get returns what the instance answers a browser of the user's.
func (p *process) get(path, user string) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, p.url+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-User", user)
	req.Header.Set("Accept", "text/html")
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// connect gives each user a token that is at its end.
func (f *fleet) connect(users ...string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, user := range users {
		wg.Go(func() {
			token := past(f.bank.Token())
			if err := f.kit.SetToken(f.t.Context(), user, token); err != nil {
				f.t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			f.subjects[user] = token.Subject
		})
	}
	wg.Wait()
}

// statuses counts answers; anybody else's subject fails the test.
type statuses struct {
	f     *fleet
	mu    sync.Mutex
	count map[int]int
}

func (f *fleet) statuses() *statuses { return &statuses{f: f, count: map[int]int{}} }

func (s *statuses) request(p *process, user string) {
	status, body, err := p.get("/", user)
	if err != nil {
		s.f.t.Error(err)
	} else if status == http.StatusOK && body != s.f.subjects[user] {
		s.f.t.Error("a user saw somebody else's token")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count[status]++
}

// storm sends requests all at once, of the users in turn to the processes in turn.
func (f *fleet) storm(processes []*process, requests int, users []string) map[int]int {
	s := f.statuses()
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() { s.request(processes[i/len(users)%len(processes)], users[i%len(users)]) })
	}
	wg.Wait()
	return s.count
}

func total(count map[int]int) (n int) {
	for _, c := range count {
		n += c
	}
	return n
}

func names(n int) (users []string) {
	for i := range n {
		users = append(users, fmt.Sprint("user-", i))
	}
	return users
}

// Processes tests instances of an application that are processes of their own. It runs
// the calling test again for each of them. The stores' leases are three seconds.
func Processes(t *testing.T, engine func() (*testenv.Process, string), newStore func(engine string) Store) {
	if os.Getenv(serveVariable) != "" {
		serve(t, newStore)
	}
	t.Parallel()
	server, addr := engine()
	const latency = 50 * time.Millisecond
	// The bank ends the grant when a refresh token is used twice.
	strict := ganbtest.Options{RevokeOnReuse: true, Latency: latency}

	t.Run("one user", func(t *testing.T) {
		f := newFleet(t, addr, newStore, strict)
		f.connect("alice")
		count := f.storm(f.start(4), 1000, []string{"alice"})
		t.Attr("measured", fmt.Sprintf("%d token request, %d requests served", f.bank.Refreshes(), count[200]))
		require.Equal(t, map[int]int{200: 1000}, count)
		require.Equal(t, 1, f.bank.Refreshes())
	})

	t.Run("200 users", func(t *testing.T) {
		f := newFleet(t, addr, newStore, strict)
		f.connect(names(200)...)
		count := f.storm(f.start(4), 1000, names(200))
		t.Attr("measured", fmt.Sprintf("%d token requests, %d requests served, each with its own user's token", f.bank.Refreshes(), count[200]))
		require.Equal(t, map[int]int{200: 1000}, count)
		require.Equal(t, 200, f.bank.Refreshes())
	})

	t.Run("no Locker", func(t *testing.T) {
		f := newFleet(t, addr, newStore, ganbtest.Options{Latency: latency})
		f.env.NoLocker = true
		f.connect(names(100)...)
		count := f.storm(f.start(2), 1000, names(100))
		t.Attr("measured", fmt.Sprintf("%d token requests for 100 users, %d of them double; %d requests served",
			f.bank.Refreshes(), f.bank.Refreshes()-100, count[200]))
		require.Equal(t, map[int]int{200: 1000}, count)
	})

	t.Run("killed before the answer", func(t *testing.T) {
		f := newFleet(t, addr, newStore, strict)
		f.connect("bob")
		processes := f.start(2)
		f.bank.Fail(ganbtest.TokenEndpoint, ganbtest.Slow(time.Minute), 1)
		go func() { _, _, _ = processes[0].get("/", "bob") }()
		require.Eventually(t, func() bool { return f.bank.Refreshes() > 0 }, 10*time.Second, time.Millisecond)
		processes[0].kill()
		began := time.Now()
		status, body, err := processes[1].get("/", "bob")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, f.subjects["bob"], body)
		t.Attr("measured", fmt.Sprintf("served by the other process after %s, at a lease of 3 s",
			time.Since(began).Round(100*time.Millisecond)))
	})

	// The new token died with the process, which is physics.
	t.Run("killed after the answer", func(t *testing.T) {
		f := newFleet(t, addr, newStore, strict)
		f.connect(names(20)...)
		processes := f.start(2)
		f.bank.Fail(ganbtest.TokenEndpoint, ganbtest.AnswerLost, 1)
		_, _, _ = processes[0].get("/", "user-0")
		processes[0].kill()
		count := f.storm(processes[1:], 20, names(20))
		t.Attr("measured", fmt.Sprintf("%d of 20 users has to connect again, %d served", count[303], count[200]))
		require.Equal(t, map[int]int{200: 19, 303: 1}, count)
	})

	for _, outage := range []struct {
		name string
		is   func(t *testing.T)
	}{
		{"restarted", func(t *testing.T) { server.Stop(); server.Start(t) }},
		{"stopped", func(t *testing.T) { server.Stop(); time.Sleep(10 * time.Second); server.Start(t) }},
		{"suspended", func(*testing.T) { server.Pause(); time.Sleep(10 * time.Second); server.Resume() }},
	} {
		t.Run(outage.name, func(t *testing.T) {
			// With lives that short there is always some refresh under way.
			f := newFleet(t, addr, newStore, ganbtest.Options{RevokeOnReuse: true, Latency: 300 * time.Millisecond, Lifetime: 4 * time.Second})
			unavailable := f.outageUnderLoad(func() { outage.is(t) })
			require.True(t, unavailable > 0 || outage.name == "restarted") // which may be too quick to be seen
		})
	}
}

// outageUnderLoad breaks the engine: nobody is logged out, not for a moment, and all is
// well again without a restart.
func (f *fleet) outageUnderLoad(outage func()) (unavailable int) {
	t := f.t
	users := names(50)
	f.connect(users...)
	processes := f.start(2)
	s := f.statuses()
	loaded, done := make(chan struct{}), make(chan struct{})
	stop := sync.OnceFunc(func() { close(loaded); <-done })
	defer stop()
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		defer wg.Wait()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
				wg.Go(func() { s.request(processes[i%2], users[i/2%len(users)]) })
			case <-loaded:
				return
			}
		}
	}()
	time.Sleep(4 * time.Second)
	refreshes := f.bank.Refreshes()
	require.Eventually(t, func() bool { return f.bank.Refreshes() >= refreshes+10 }, 10*time.Second, time.Millisecond)
	outage() // with answers of the bank on their way
	healed := time.Now()
	for !maps.Equal(f.storm(processes, 100, users), map[int]int{200: 100}) {
		require.Less(t, time.Since(healed), 30*time.Second, "everybody is served again, by every process")
	}
	recovery := time.Since(healed)
	time.Sleep(5 * time.Second)
	stop()
	goroutines := ""
	require.Eventually(t, func() bool {
		goroutines = ""
		for _, p := range processes {
			_, n, err := p.get("/goroutines", "")
			require.NoError(t, err)
			goroutines += n
		}
		return goroutines == "00"
	}, 30*time.Second, 50*time.Millisecond, "no goroutine is left behind")
	t.Attr("measured", fmt.Sprintf("%d served, %d answered 503, %d sent to log in; everybody served again after %s",
		s.count[200], s.count[503], s.count[303], recovery.Round(100*time.Millisecond)))
	require.Equal(t, s.count[200]+s.count[503], total(s.count))
	return s.count[503]
}
