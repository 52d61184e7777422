// The example connects bank accounts: on the bank in a box, with no set-up,
//
//	go run ./_example
//
// or at the real bank, with the conf.json of the bank's SDKs and the client from the
// environment:
//
//	GANB_CLIENT_ID=… GANB_CLIENT_SECRET=… \
//		go run ./_example -conf conf.json -redirect-uri https://…/bank/callback
//
// The application is in app.go. This file reads the flags and finds the bank.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "example:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

// settings are what the flags say.
type settings struct {
	addr, conf, redirectURI, method, kind, scopes string
	lifetime                                      time.Duration
}

func parse(args []string) (s settings, err error) {
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	flags.StringVar(&s.addr, "addr", "127.0.0.1:8080", "address to listen on")
	flags.StringVar(&s.conf, "conf", "", "the bank SDKs' conf.json; without it the bank in a box is used")
	flags.StringVar(&s.redirectURI, "redirect-uri", "", "as registered with the bank (default http://ADDR/bank/callback)")
	flags.StringVar(&s.method, "auth-method", "basic", "what the client is registered for: basic or post")
	flags.StringVar(&s.kind, "accounts", "personal", "whose API to call: personal or corporation")
	flags.StringVar(&s.scopes, "scopes", "openid offline_access private:account", "scopes to ask for")
	flags.DurationVar(&s.lifetime, "lifetime", 2*time.Minute, "how long the box's access tokens live")
	return s, flags.Parse(args)
}

// run serves the application until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("%w (choose another address with -addr)", err)
	}
	defer listener.Close()
	origin := "http://" + listener.Addr().String()
	s.redirectURI = cmp.Or(s.redirectURI, origin+"/bank/callback")
	bank, err := findBank(s)
	if err != nil {
		return err
	}
	if bank.box != nil {
		defer bank.box.Close()
	}
	app, err := newApp(bank, s.redirectURI, strings.Fields(s.scopes))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: app.routes(), ReadHeaderTimeout: 10 * time.Second}
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

// bank is the real bank or one in a box.
type bank struct {
	connector *ganbauth.Connector
	api       string           // where its API begins
	box       *ganbtest.Server // nil if it is the real one
}

// findBank returns the bank of the conf.json, or starts one in a box if there is none.
func findBank(s settings) (bank, error) {
	method, ok := map[string]ganbauth.AuthMethod{"basic": ganbauth.AuthBasic, "post": ganbauth.AuthPost}[s.method]
	if !ok {
		return bank{}, fmt.Errorf("-auth-method must be basic or post, not %q", s.method)
	}
	if s.conf == "" {
		box := ganbtest.NewServer(ganbtest.Options{
			AuthMethod: method, RedirectURI: s.redirectURI, Application: "The example",
			Consent: true, Lifetime: s.lifetime, RevokeOnReuse: true,
		})
		return bank{box.Connector(), box.APIBase(), box}, nil
	}
	config, err := ganbauth.LoadConfig(s.conf)
	if err != nil {
		return bank{}, err
	}
	id, secret := os.Getenv("GANB_CLIENT_ID"), os.Getenv("GANB_CLIENT_SECRET")
	if id == "" || secret == "" {
		return bank{}, errors.New("GANB_CLIENT_ID and GANB_CLIENT_SECRET must be set in the environment")
	}
	connector, err := ganbauth.NewConnector(id, secret, method, config)
	return bank{connector, strings.TrimSuffix(config.AuthBaseURL, "/auth/v1") + "/" + s.kind + "/v1", nil}, err
}
