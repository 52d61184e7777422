// Ganbank is the bank in a box as a program: an authorization server and a little of the
// bank's API on a local port, for front ends, for servers in other languages, and for
// end-to-end tests.
//
//	go run github.com/ganbauth/ganbauth/ganbtest/ganbank@latest -addr 127.0.0.1:9999
//
// It prints where it is, and the conf.json that the bank's SDKs and [ganbauth.LoadConfig]
// read; the same file is at /conf.json. The client's ID and secret are those of
// -client-id and -client-secret (or GANB_CLIENT_SECRET in the environment), or else
// "ganbank" and "ganbank-secret". The page at / shows what the bank has seen, has a
// switch for each fault that can be rehearsed, and buttons that expire tokens and end
// grants. Scripts post the same forms and read /state.json:
//
//	curl -d fault=maintenance -d on=true http://127.0.0.1:9999/faults
//	curl -d action=expire http://127.0.0.1:9999/actions
//
// /healthz answers 200 as soon as the bank is open. SIGINT and SIGTERM end it when the
// requests that are under way have been answered, after ten seconds at the latest.
//
// In end-to-end tests -auto-approve spares the consent page, and -addr 127.0.0.1:0
// chooses a free port, which the first line of the output names. Nobody has to prove who
// they are at this bank: keep it off public networks.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "ganbank:", err)
		os.Exit(1)
	}
}

// errUsage is an error that the flag package has told already.
var errUsage = errors.New("usage")

// settings are what the flags say.
type settings struct {
	addr, url string
	bank      ganbtest.Options
}

const defaultSecret = "ganbank-secret"

// parse reads the flags. It tells what is wrong with them itself, and then returns
// errUsage.
func parse(args []string, now time.Time, stderr io.Writer) (settings, error) {
	s := settings{bank: ganbtest.Options{KeepRequests: 1000, RevokeOnReuse: true}}
	flags := flag.NewFlagSet("ganbank", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.addr, "addr", "127.0.0.1:9999", "`address` to listen on; port 0 chooses a free one")
	flags.StringVar(&s.url, "url", "", "`URL` at which clients find the bank (default http://ADDRESS)")
	autoApprove := flags.Bool("auto-approve", false, "approve at once, without the consent page")
	clientFlags(flags, &s.bank)
	tokenFlags(flags, &s.bank)
	limitFlags(flags, &s.bank, now)
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
		fmt.Fprintln(stderr, "ganbank:", err)
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return settings{}, err
	case err != nil:
		return settings{}, errUsage
	}
	s.bank.ClientSecret = cmp.Or(s.bank.ClientSecret, os.Getenv("GANB_CLIENT_SECRET"), defaultSecret)
	s.bank.Consent = !*autoApprove
	s.url = strings.TrimSuffix(s.url, "/")
	return s, nil
}

// clientFlags say who the client is, and who its user.
func clientFlags(flags *flag.FlagSet, o *ganbtest.Options) {
	flags.StringVar(&o.ClientID, "client-id", "ganbank", "the registered client's `ID`")
	flags.StringVar(&o.ClientSecret, "client-secret", "",
		"the client's `secret` (default $GANB_CLIENT_SECRET, or else "+defaultSecret+")")
	flags.Func("auth-method", "the `method` by which the client authenticates: basic or post (default basic)", func(value string) error {
		return choose(&o.AuthMethod, value, map[string]ganbauth.AuthMethod{"basic": ganbauth.AuthBasic, "post": ganbauth.AuthPost})
	})
	flags.Func("redirect-uri", "a registered redirect `URI`, may be repeated (default any)", func(value string) error {
		o.RedirectURI = strings.TrimSpace(o.RedirectURI + " " + value)
		return nil
	})
	flags.StringVar(&o.Application, "application", "", "the application's `name` on the consent page")
	flags.StringVar(&o.Subject, "subject", "sandbox-user", "the `user` at the bank; empty for a new one with each consent")
}

// tokenFlags say how tokens live.
func tokenFlags(flags *flag.FlagSet, o *ganbtest.Options) {
	flags.DurationVar(&o.Lifetime, "lifetime", time.Hour, "how long an access token lives")
	flags.Func("refresh", "the `mode` of refresh tokens: a second use ends the grant (strict), or only fails (rotate),\n"+
		"or they can be used again and again (keep) (default strict)", func(value string) error {
		type mode struct{ revoke, keep bool }
		var m mode
		err := choose(&m, value, map[string]mode{"strict": {revoke: true}, "rotate": {}, "keep": {keep: true}})
		o.RevokeOnReuse, o.KeepRefreshToken = m.revoke, m.keep
		return err
	})
}

// limitFlags say when the bank is slow, busy or closed.
func limitFlags(flags *flag.FlagSet, o *ganbtest.Options, now time.Time) {
	flags.DurationVar(&o.Latency, "latency", 0, "how long the token endpoint and the API take for an answer")
	flags.Float64Var(&o.RateLimit.PerSecond, "rate", 0,
		"how many `requests` a second the token endpoint and the API take (default any number)")
	flags.BoolVar(&o.RateLimit.CountRefused, "count-refused", false, "refused requests count against -rate, too")
	flags.Func("maintenance", "a `window`, START/LENGTH or START/LENGTH/EVERY, may be repeated. START is a time\n"+
		"or a duration from now: 2026-11-29T02:00:00+09:00/6h/168h, 30s/2m (default none)", func(value string) error {
		w, err := window(value, now)
		o.Maintenance = append(o.Maintenance, w)
		return err
	})
}

// choose sets what the word stands for.
func choose[T any](to *T, word string, choices map[string]T) error {
	choice, ok := choices[word]
	if !ok {
		return errors.New("not one of the words that it can be")
	}
	*to = choice
	return nil
}

// window reads START/LENGTH or START/LENGTH/EVERY.
func window(value string, now time.Time) (w ganbtest.Window, err error) {
	parts := strings.Split(value, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return w, errors.New("want START/LENGTH or START/LENGTH/EVERY")
	}
	if after, notDuration := time.ParseDuration(parts[0]); notDuration == nil {
		w.Start = now.Add(after)
	} else if w.Start, err = time.Parse(time.RFC3339, parts[0]); err != nil {
		return w, fmt.Errorf("%q is neither a time nor a duration", parts[0])
	}
	length, err := time.ParseDuration(parts[1])
	if err != nil {
		return w, err
	}
	w.End = w.Start.Add(length)
	if len(parts) == 3 {
		w.Every, err = time.ParseDuration(parts[2])
	}
	return w, err
}

// reachable returns an address at which this machine reaches a listener.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if ok && tcp.IP.IsUnspecified() {
		return fmt.Sprint("localhost:", tcp.Port)
	}
	return addr.String()
}

// run serves the bank until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parse(args, time.Now(), stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	}
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("%w (choose another address with -addr)", err)
	}
	s.bank.URL = cmp.Or(s.url, "http://"+reachable(listener.Addr()))
	c := newConsole(s.bank)
	server := &http.Server{Handler: c.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conf, err := json.MarshalIndent(c.conf(), "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "The bank in a box is at %[1]s/ and ends with Ctrl-C. Its conf.json, for the client %[2]q:\n%[3]s\n"+
		"To get the file: curl -o conf.json %[1]s/conf.json\nIts API is below %[4]s\n", s.bank.URL, s.bank.ClientID, conf, c.bank.APIBase())
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		fmt.Fprintln(stderr, "ganbank: other machines may reach this address, and nobody has to log in here")
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	timeout, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(timeout); err != nil {
		_ = server.Close()
		return fmt.Errorf("ended with requests under way: %w", err)
	}
	fmt.Fprintln(stdout, "The bank is closed.")
	return nil
}
