// The cluster is an application on two machines, in small: two instances behind a proxy, one Redis, one bank in a box.
// Kill an instance and its user notices nothing.
//
//	cd _example/cluster && go run .
//
// It needs redis-server on the PATH, or -redis with the address of one.
package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	scsredis "github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
	"github.com/ganbauth/ganbauth/goredisstore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if config := os.Getenv(instanceVariable); config != "" {
		err = serveInstance(config, os.Stdout)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// An instance, which is all that an application has of this.

const instanceVariable = "CLUSTER_INSTANCE"

type instanceConfig struct {
	Name                   string
	Redis                  string
	ClientID, ClientSecret string
	Bank                   bankConfig
	API, RedirectURI       string
}

// bankConfig is a ganbauth.Config for an instance of our own. The type has no methods, because a
// Config refuses to become JSON.
type bankConfig ganbauth.Config

func serveInstance(config string, out io.Writer) error {
	var c instanceConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: c.Redis})
	sessions := scs.New()
	sessions.Store = scsredis.New(client)
	connector, err := ganbauth.NewConnector(c.ClientID, c.ClientSecret, ganbauth.AuthBasic, ganbauth.Config(c.Bank))
	if err != nil {
		return err
	}
	bank, err := ganbauth.New(connector, sessions, ganbauth.Options{
		RedirectURI: c.RedirectURI,
		Scopes:      []string{"openid", "offline_access", "private:account"},
		Locker:      goredisstore.New(client, goredisstore.Options{Lease: 3 * time.Second}),
	})
	if err != nil {
		return err
	}

	mux := http.NewServeMux()
	mux.Handle("/bank/callback", bank.CallbackHandler())
	mux.Handle("/bank/logout", bank.LogoutHandler())
	mux.Handle("GET /{$}", bank.RequireToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := bank.Client(r.Context()).Get(c.API + "/accounts")
		if err == nil {
			defer resp.Body.Close()
			err = ganbauth.CheckResponse(resp)
		}
		var answer struct {
			Accounts []struct{ BranchName, AccountNumber string }
		}
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&answer)
		}
		if err != nil {
			bank.Refuse(w, r, err)
			return
		}
		token, _ := ganbauth.TokenFromContext(r.Context())
		w.Header().Set("Cache-Control", "no-store")
		_ = page.Execute(w, map[string]any{
			"Instance": c.Name, "PID": os.Getpid(), "Accounts": answer.Accounts, "Subject": token.Subject,
			"Seconds": int(time.Until(token.ExpiresAt).Seconds()),
		})
	})))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, listener.Addr())
	return http.Serve(listener, sessions.LoadAndSave(mux))
}

//go:embed page.html
var pageText string
var page = template.Must(template.New("").Parse(pageText))

// What stands around the instances.

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8090", "address of the proxy")
	redisAddr := flags.String("redis", "", "address of a Redis; without it one is started")
	lifetime := flags.Duration("lifetime", 20*time.Second, "how long access tokens live")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("%w (choose another address with -addr)", err)
	}
	defer listener.Close()
	if *redisAddr == "" {
		server, stop, err := startRedis()
		if err != nil {
			return err
		}
		defer stop()
		*redisAddr = server
	}
	origin := "http://" + listener.Addr().String()
	redirectURI := origin + "/bank/callback"
	box := ganbtest.NewServer(ganbtest.Options{RevokeOnReuse: true, Lifetime: *lifetime, RedirectURI: redirectURI, Latency: 100 * time.Millisecond})
	defer box.Close()

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	instances := []*instance{{name: "1"}, {name: "2"}}
	for _, in := range instances {
		config, err := json.Marshal(instanceConfig{
			Name: in.name, Redis: *redisAddr, ClientID: box.ClientID, ClientSecret: box.ClientSecret,
			Bank: bankConfig(box.Config()), API: box.APIBase(), RedirectURI: redirectURI,
		})
		if err != nil {
			return err
		}
		running.Go(func() { in.keepRunning(ctx, string(config), out) })
	}

	mux := http.NewServeMux()
	mux.Handle("/", &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetXForwarded() },
		Transport: &balancer{instances: instances},
	})
	mux.HandleFunc("POST /kill/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, in := range instances {
			if in.name == r.PathValue("name") {
				in.kill()
			}
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	server := &http.Server{Handler: http.NewCrossOriginProtection().Handler(mux), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	fmt.Fprintf(out, "Open %s/ in a browser. Ctrl-C ends it.\n", origin)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func startRedis() (addr string, stop func(), err error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return "", nil, fmt.Errorf("%w (install redis-server, or name a Redis with -redis)", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd := exec.Command(program, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--appendonly", "no")
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	return "127.0.0.1:" + strconv.Itoa(port), func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, nil
}

// instance is a process that is started again a while after it has ended.
type instance struct {
	name string

	mu   sync.Mutex
	addr string // "" while it does not run
	cmd  *exec.Cmd
}

func (in *instance) keepRunning(ctx context.Context, config string, out io.Writer) {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), instanceVariable+"="+config)
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			fmt.Fprintln(out, "instance", in.name, "does not start:", err)
			return
		}
		addr, _ := bufio.NewReader(stdout).ReadString('\n')
		in.set(strings.TrimSpace(addr), cmd)
		fmt.Fprintln(out, "instance", in.name, "runs as process", cmd.Process.Pid)
		err = cmd.Wait()
		in.set("", nil)
		if ctx.Err() == nil {
			fmt.Fprintf(out, "instance %s has ended (%v) and starts again in 5 s\n", in.name, err)
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
		}
	}
}

func (in *instance) set(addr string, cmd *exec.Cmd) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.addr, in.cmd = addr, cmd
}

func (in *instance) address() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.addr
}

// kill is kill -9.
func (in *instance) kill() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.cmd != nil {
		_ = in.cmd.Process.Kill()
	}
}

// balancer sends requests to the instances in turn, and a GET to the next one if an instance dies over it.
type balancer struct {
	instances []*instance
	turn      atomic.Int64
}

func (b *balancer) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		turn := int(b.turn.Add(1))
		for i := range b.instances {
			addr := b.instances[(turn+i)%len(b.instances)].address()
			if addr == "" {
				continue
			}
			try := r.Clone(r.Context())
			try.URL.Scheme, try.URL.Host = "http", addr
			if resp, err = http.DefaultTransport.RoundTrip(try); err == nil || r.Method != http.MethodGet {
				return resp, err
			}
		}
	}
	return nil, cmp.Or(err, errors.New("no instance runs"))
}
