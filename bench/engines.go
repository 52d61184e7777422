package main

import (
	"context"
	"crypto/tls"
	"database/sql"
	"flag"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	scsredis "github.com/alexedwards/scs/goredisstore"
	scsmysql "github.com/alexedwards/scs/mysqlstore"
	scspgx "github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	proxyoptions "github.com/oauth2-proxy/oauth2-proxy/v7/pkg/apis/options"
	proxypersistence "github.com/oauth2-proxy/oauth2-proxy/v7/pkg/sessions/persistence"
	proxyredis "github.com/oauth2-proxy/oauth2-proxy/v7/pkg/sessions/redis"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/mysqlstore"
	"github.com/ganbauth/ganbauth/pgxstore"
	"github.com/ganbauth/ganbauth/rueidisstore"
)

// withParts lends a testing.TB, which is what testenv starts its servers for.
func withParts[T any](run func(testing.TB) T) (result T) {
	testing.Init()
	check(flag.Set("test.benchtime", "1x"))
	done := false
	testing.Benchmark(func(b *testing.B) { result, done = run(b), true })
	if !done {
		panic("the engine did not start")
	}
	return result
}

// engineSample is a sample on an engine, with the questions that one request puts to it.
type engineSample struct {
	Sample     sample
	RoundTrips float64
}

// onEngine compares sessions alone, the default store on the sessions' engine, nested
// stores, and peers.
func onEngine(engine scs.Store, asked *roundTrips, rounds int, nested []nestedStore, peers ...*contender) (samples []engineSample) {
	configure := func(s *scs.SessionManager) { s.Store = engine }
	contenders := []*contender{
		floor(configure),
		connected(configure, "**ganbauth** on the sessions' engine", ganbauth.Options{}, nil),
	}
	for _, n := range nested {
		contenders = append(contenders, connected(configure, "**ganbauth** with "+n.name, ganbauth.Options{Store: n.store}, n.writer))
	}
	contenders = append(contenders, peers...)
	for i, s := range compare(contenders, rounds, engineBatchTime, false) {
		before := asked.n.Load()
		const n = 100
		serial(contenders[i], n)
		samples = append(samples, engineSample{s, float64(asked.n.Load()-before) / n})
	}
	return samples
}

// nestedStore is a store of ours. A token is written by writer, if there is one: a
// process that has just written a token asks for it for a while, where others have it in
// memory.
type nestedStore struct {
	name          string
	store, writer ganbauth.TokenStore
}

// onRedis measures a live token on Redis, with goredisstore and with rueidisstore.
func onRedis(tb testing.TB, rounds int) []engineSample {
	addr := testenv.Redis(tb).Addr
	var asked roundTrips
	client := redis.NewClient(&redis.Options{Addr: addr, Dialer: asked.dial})
	defer client.Close()
	near := asked.rueidis(addr)
	defer near.Close()
	written := goredisstore.New(client, goredisstore.Options{})
	return onEngine(scsredis.New(client), &asked, rounds, []nestedStore{
		{"goredisstore", written, nil},
		{"rueidisstore", rueidisstore.New(near, rueidisstore.Options{}), written},
	}, proxiedOnRedis(addr, &asked))
}

// proxiedOnRedis is oauth2-proxy with its store in Redis, whose client it makes itself.
func proxiedOnRedis(addr string, asked *roundTrips) *contender {
	store := must(proxyredis.NewRedisSessionStore(&proxyoptions.SessionOptions{
		Redis: proxyoptions.RedisStoreOptions{ConnectionURL: "redis://" + addr},
	}, proxyCookie()))
	client := store.(*proxypersistence.Manager).Store.(*proxyredis.SessionStore).Client
	client.(interface{ AddHook(redis.Hook) }).AddHook(asked)
	return proxied("oauth2-proxy", store)
}

// onPostgres measures a live token on PostgreSQL.
func onPostgres(tb testing.TB, rounds int) []engineSample {
	_, url := testenv.Postgres(tb)
	ctx := context.Background()
	var asked roundTrips
	config := must(pgxpool.ParseConfig(url))
	config.ConnConfig.DialFunc = asked.dial
	pool := must(pgxpool.NewWithConfig(ctx, config))
	defer pool.Close()
	_, err := pool.Exec(ctx, `CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL)`)
	check(err)
	store := pgxstore.New(pool, pgxstore.Options{})
	check(store.Migrate(ctx))
	return onEngine(scspgx.NewWithCleanupInterval(pool, 0), &asked, rounds, []nestedStore{{"pgxstore", store, nil}})
}

// onMariaDB measures a live token on MariaDB.
func onMariaDB(tb testing.TB, rounds int) []engineSample {
	_, dsn := testenv.MariaDB(tb)
	ctx := context.Background()
	var asked roundTrips
	db := asked.mysql(dsn)
	defer db.Close()
	_, err := db.ExecContext(ctx, "CREATE TABLE sessions (token CHAR(43) PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP(6) NOT NULL)")
	check(err)
	store := mysqlstore.New(db, mysqlstore.Options{})
	check(store.Migrate(ctx))
	return onEngine(scsmysql.NewWithCleanupInterval(db, 0), &asked, rounds, []nestedStore{{"mysqlstore", store, nil}})
}

// roundTrips counts how often a client waits for its server: what it reads after it has
// written.
type roundTrips struct{ n atomic.Int64 }

func (r *roundTrips) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return r.DialHook(new(net.Dialer).DialContext)(ctx, network, addr)
}

// DialHook implements [redis.Hook]: it counts what goes over each connection.
func (r *roundTrips) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		return &countingConn{Conn: conn, trips: r}, err
	}
}

// ProcessHook implements [redis.Hook].
func (r *roundTrips) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements [redis.Hook].
func (r *roundTrips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// rueidis returns a client that sends nothing by itself.
func (r *roundTrips) rueidis(addr string) rueidis.Client {
	return must(rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{addr}, Dialer: net.Dialer{KeepAlive: time.Hour}, ConnWriteTimeout: 10 * time.Second,
		DialCtxFn: func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return r.dial(ctx, "tcp", addr)
		},
	}))
}

func (r *roundTrips) mysql(dsn string) *sql.DB {
	config := must(mysql.ParseDSN(dsn))
	config.ParseTime = true
	config.DialFunc = r.dial
	db := sql.OpenDB(must(mysql.NewConnector(config)))
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	return db
}

type countingConn struct {
	net.Conn
	trips *roundTrips
	wrote atomic.Bool
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.wrote.Store(true)
	return c.Conn.Write(p)
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.wrote.Swap(false) {
		c.trips.n.Add(1)
	}
	return n, err
}

// refused compares an anonymous request that is turned away with one that sessions alone
// answer alike.
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
		}, rounds, batchTime, false)
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
