package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	scsredis "github.com/alexedwards/scs/goredisstore"
	scspgx "github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// withParts lends a testing.TB, which is what testenv starts its servers for.
func withParts(run func(testing.TB, int) []engineSample, rounds int) (samples []engineSample) {
	testing.Init()
	check(flag.Set("test.benchtime", "1x"))
	testing.Benchmark(func(b *testing.B) { samples = run(b, rounds) })
	if samples == nil {
		panic("the engine did not start")
	}
	return samples
}

// engineSample is a sample on an engine, with the questions that one request puts to it.
type engineSample struct {
	Sample     sample
	RoundTrips float64
}

// onEngine compares sessions alone, the default store on the sessions' engine, and the nested store.
func onEngine(engine scs.Store, store ganbauth.TokenStore, asked *atomic.Int64, rounds int) (samples []engineSample) {
	configure := func(s *scs.SessionManager) { s.Store = engine }
	contenders := []*contender{
		floor(configure),
		connected(configure, "**ganbauth** on the sessions' engine", ganbauth.Options{}),
		connected(configure, "**ganbauth** with the nested store", ganbauth.Options{Store: store}),
	}
	for i, s := range compare(contenders, rounds, false) {
		before := asked.Load()
		const n = 100
		serial(contenders[i], n)
		samples = append(samples, engineSample{s, float64(asked.Load()-before) / n})
	}
	return samples
}

func onRedis(tb testing.TB, rounds int) []engineSample {
	client := redis.NewClient(&redis.Options{Addr: testenv.Redis(tb).Addr})
	defer client.Close()
	var asked counter
	client.AddHook(&asked)
	return onEngine(scsredis.New(client), goredisstore.New(client, goredisstore.Options{}), &asked.n, rounds)
}

func onPostgres(tb testing.TB, rounds int) []engineSample {
	_, url := testenv.Postgres(tb)
	ctx := context.Background()
	var asked counter
	config := must(pgxpool.ParseConfig(url))
	config.ConnConfig.Tracer = &asked
	pool := must(pgxpool.NewWithConfig(ctx, config))
	defer pool.Close()
	_, err := pool.Exec(ctx, `CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL)`)
	check(err)
	store := pgxstore.New(pool, pgxstore.Options{})
	check(store.Migrate(ctx))
	return onEngine(scspgx.NewWithCleanupInterval(pool, 0), store, &asked.n, rounds)
}

// counter counts what a client asks its server.
type counter struct{ n atomic.Int64 }

func (c *counter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmds)
	}
}

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}

func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// refused compares an anonymous request that is turned away with one that sessions alone answer alike.
func refused(rounds int) (program, browser []sample) {
	engine := &countingEngine{}
	sessions := scs.New()
	sessions.Store = engine
	kit := must(ganbauth.New(connector(), sessions, ganbauth.Options{
		RedirectURI: app + "/callback", Scopes: []string{"openid"}, Logger: discardLog,
	}))
	protected := sessions.LoadAndSave(kit.RequireToken(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("let in") })))
	compareTo := func(name, accept string) []sample {
		r := request(nil, "/balance")
		r.Header.Set("Accept", accept)
		w := &recorded{discard: discard{header: http.Header{}}}
		protected.ServeHTTP(w, r)
		alike := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			for name, values := range w.header {
				rw.Header()[name] = values
			}
			rw.WriteHeader(w.status)
			_, _ = rw.Write(w.body)
		})
		return compare([]*contender{
			{name: "scs alone, the same answer", handler: sessions.LoadAndSave(alike), request: r, status: w.status},
			{name: name, handler: protected, request: r, status: w.status},
		}, rounds, false)
	}
	program = compareTo("**ganbauth**, 401", "application/json")
	browser = compareTo("**ganbauth**, 303 to the bank", "text/html")
	if n := engine.n.Load(); n != 0 {
		panic(fmt.Sprint(n, " store accesses for anonymous requests"))
	}
	return program, browser
}

type recorded struct {
	discard
	body []byte
}

func (r *recorded) Write(p []byte) (int, error) {
	r.body = append(r.body, p...)
	return len(p), nil
}

// countingEngine is an scs.Store that nobody should ask.
type countingEngine struct{ n atomic.Int64 }

func (e *countingEngine) count() { e.n.Add(1) }

func (e *countingEngine) Find(string) ([]byte, bool, error) { e.count(); return nil, false, nil }
func (e *countingEngine) Delete(string) error               { e.count(); return nil }
func (e *countingEngine) Commit(string, []byte, time.Time) error {
	e.count()
	return nil
}
