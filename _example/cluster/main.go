// The cluster is an application on two machines, in small: two instances behind a proxy,
// one Redis, one bank in a box. Kill an instance, and its user notices nothing.
//
//	cd _example/cluster && go run .
//
// It needs redis-server on the PATH, or -redis with the address of one.
//
// "cluster app" is one instance, which is all that an application has of this: app.go and
// stores.go. It reads its settings from the environment. compose.yaml runs it with the
// bank in a box and with Redis, PostgreSQL or MariaDB.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ganbauth/ganbauth/ganbtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cluster:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

// start runs one instance of the application, or else all that the cluster consists of.
func start(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 || args[0] != "app" {
		return run(ctx, args, out)
	}
	s, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	return serve(ctx, s, out)
}

// run runs the proxy, the bank, Redis and the instances until ctx ends.
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
	conf, remove, err := writeConf(box)
	if err != nil {
		return err
	}
	defer remove()

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	instances := []*instance{{name: "1"}, {name: "2"}}
	for _, in := range instances {
		environment := append(os.Environ(), "ADDR=127.0.0.1:0", "STORE=redis://"+*redisAddr, "REDIRECT_URI="+redirectURI,
			"GANB_CONF="+conf, "GANB_CLIENT_ID="+box.ClientID, "GANB_CLIENT_SECRET="+box.ClientSecret, "INSTANCE="+in.name)
		running.Go(func() { in.keepRunning(ctx, environment, out) })
	}
	server := &http.Server{Handler: proxy(instances), ReadHeaderTimeout: 10 * time.Second}
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

// writeConf writes the conf.json of the box for the instances.
func writeConf(box *ganbtest.Server) (file string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		return "", nil, err
	}
	config := box.Config()
	text, err := json.Marshal(map[string]string{
		"SALT": config.Salt, "AUTH_BASE_URL": config.AuthBaseURL, "AUTH_PATH": config.AuthPath, "TOKEN_PATH": config.TokenPath,
		"JWT_ISSUER": config.JWTIssuer,
	})
	file = filepath.Join(dir, "conf.json")
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	return file, func() { _ = os.RemoveAll(dir) }, err
}

// proxy sends requests to the instances, and kills one on request.
func proxy(instances []*instance) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetXForwarded() },
		Transport: &balancer{instances: instances},
	})
	mux.HandleFunc("POST /kill/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, in := range instances {
			if in.name == r.PathValue("name") {
				in.kill()
				http.Redirect(w, r, "/?killed="+in.name, http.StatusSeeOther)
				return
			}
		}
		http.NotFound(w, r)
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

// startRedis runs a Redis that keeps nothing, on a free port.
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

// keepRunning starts the process, and again five seconds after it has ended.
func (in *instance) keepRunning(ctx context.Context, environment []string, out io.Writer) {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, os.Args[0], "app")
		cmd.Env = environment
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

// balancer sends requests to the instances in turn, and a GET to the next one if an
// instance dies over it.
type balancer struct {
	instances []*instance
	turn      atomic.Int64
}

// RoundTrip waits up to ten seconds for an instance.
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
