package main

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
	"github.com/ganbauth/ganbauth/mysqlstore"
	"github.com/ganbauth/ganbauth/pgxstore"
	"github.com/ganbauth/ganbauth/rueidisstore"
)

// sizeSample is what a store costs that has so many tokens: times in nanoseconds.
type sizeSample struct {
	Engine                 string
	Tokens                 int
	Load, Lock, Swap, Page float64
	Bytes                  float64 // in the engine, for each token
}

// engine is one that is filled with tokens.
type engine struct {
	name  string
	store storetest.Store
	fill  func(from, to int) // adds tokens, by number
	bytes func() int64       // that all of them take
}

// engines start them, by name.
var engines = map[string]func(testing.TB) engine{
	"redis": func(tb testing.TB) engine {
		client, near := redisClients(testenv.Redis(tb, "--appendonly", "no").Addr)
		return newRedisEngine("Redis, goredisstore", client, near, goredisstore.New(client, goredisstore.Options{}))
	},
	"rueidis": func(tb testing.TB) engine {
		client, near := redisClients(testenv.Redis(tb, "--appendonly", "no").Addr)
		return newRedisEngine("Redis, rueidisstore", client, near, rueidisstore.New(near, rueidisstore.Options{}))
	},
	"postgres": func(tb testing.TB) engine {
		ctx := context.Background()
		_, url := testenv.Postgres(tb)
		pool := must(pgxpool.New(ctx, url))
		store := pgxstore.New(pool, pgxstore.Options{})
		check(store.Migrate(ctx))
		return engine{"PostgreSQL", store, func(from, to int) {
			check(store.Save(ctx, "template", issued(time.Now().Add(time.Hour))))
			_, err := pool.Exec(ctx, `
				INSERT INTO ganbauth_tokens (key, access_token, refresh_token, token_type, scope, id_token, subject, epoch, judged,
					fingerprint, issued_at, expires_at)
				SELECT convert_to('bank/user-' || n, 'UTF8'), access_token, refresh_token, token_type, scope, id_token, subject, epoch, judged,
					fingerprint, issued_at, expires_at + n % 86400 * interval '1 second'
				FROM ganbauth_tokens, generate_series($1::int, $2::int - 1) n WHERE key = 'template'`, from, to)
			check(err)
			_, err = pool.Exec(ctx, "VACUUM ANALYZE ganbauth_tokens")
			check(err)
		}, func() (n int64) {
			check(pool.QueryRow(ctx, "SELECT pg_total_relation_size('ganbauth_tokens')").Scan(&n))
			return n
		}}
	},
	"mariadb": func(tb testing.TB) engine {
		ctx := context.Background()
		_, dsn := testenv.MariaDB(tb)
		db := new(roundTrips).mysql(dsn)
		store := mysqlstore.New(db, mysqlstore.Options{})
		check(store.Migrate(ctx))
		return engine{"MariaDB", store, func(from, to int) {
			check(store.Save(ctx, "template", issued(time.Now().Add(time.Hour))))
			_, err := db.ExecContext(ctx, fmt.Sprintf(`
				INSERT INTO ganbauth_tokens (`+"`key`"+`, recorded, access_token, refresh_token, token_type, scope, id_token, subject, epoch, judged,
					fingerprint, issued_at, expires_at, due_at, touched_at)
				SELECT CONCAT('bank/user-', seq), 1, access_token, refresh_token, token_type, scope, id_token, subject, epoch, judged,
					fingerprint, issued_at, expires_at + seq %% 86400, expires_at + seq %% 86400, touched_at
				FROM seq_%d_to_%d, ganbauth_tokens WHERE `+"`key`"+` = 'template'`, from, to-1))
			check(err)
			_, err = db.ExecContext(ctx, "ANALYZE TABLE ganbauth_tokens")
			check(err)
		}, func() (n int64) {
			check(db.QueryRowContext(ctx, `SELECT data_length + index_length FROM information_schema.tables
				WHERE table_name = 'ganbauth_tokens'`).Scan(&n))
			return n
		}}
	},
}

func redisClients(addr string) (*redis.Client, rueidis.Client) {
	return redis.NewClient(&redis.Options{Addr: addr}), must(rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}}))
}

// newRedisEngine measures size and cost of a store in Redis. Near, which sends in one
// pipeline what is sent at the same time, fills it.
func newRedisEngine(name string, client *redis.Client, near rueidis.Client, store storetest.Store) engine {
	ctx := context.Background()
	return engine{name, store, func(from, to int) {
		filling := rueidisstore.New(near, rueidisstore.Options{CacheTTL: -1})
		var wg sync.WaitGroup
		const together = 256
		for i := range together {
			wg.Go(func() {
				for n := from + i; n < to; n += together {
					check(filling.Save(ctx, fmt.Sprint(kitKey, "user-", n), issued(time.Now().Add(time.Hour+time.Duration(n%86400)*time.Second))))
				}
			})
		}
		wg.Wait()
	}, func() int64 {
		_, used, _ := strings.Cut(client.Info(ctx, "memory").Val(), "used_memory:")
		used, _, _ = strings.Cut(used, "\r")
		return must(strconv.ParseInt(used, 10, 64))
	}}
}

// sizes fills an engine more and more, and measures each time.
func sizes(tb testing.TB, name string, numbers []int) (samples []sizeSample) {
	e := engines[name](tb)
	empty, from := e.bytes(), 0
	for _, n := range numbers {
		e.fill(from, n)
		from = n
		s := sizeSample{Engine: e.name, Tokens: n, Bytes: float64(e.bytes()-empty) / float64(n)}
		e.measure(&s)
		samples = append(samples, s)
	}
	return samples
}

// measure makes calls one after the other.
func (e engine) measure(s *sizeSample) {
	ctx := context.Background()
	times := func(n int, call func()) float64 {
		var all []float64
		for range n {
			start := time.Now()
			call()
			all = append(all, float64(time.Since(start)))
		}
		return median(all)
	}
	key := func() string { return fmt.Sprint(kitKey, "user-", mathrand.IntN(s.Tokens)) }
	s.Load = times(1000, func() { must(e.store.Load(ctx, key())) })
	s.Lock = times(500, func() {
		_, unlock, err := e.store.LockRecord(ctx, key())
		check(err)
		unlock()
	})
	s.Swap = times(500, func() {
		k, next := "swapped-"+rand.Text(), issued(time.Now().Add(time.Hour))
		check(e.store.Swap(ctx, k, nil, next))
		check(e.store.Swap(ctx, k, next, nil))
	}) / 2
	s.Page = times(50, func() {
		after := ganbauth.Expiry{At: time.Now().Add(time.Hour + time.Duration(mathrand.IntN(min(s.Tokens/2, 80_000)))*time.Second)}
		page := must(e.store.ExpiringAfter(ctx, after, time.Now().Add(30*time.Hour), 100))
		if len(page) == 0 {
			panic("no page")
		}
	})
}

// nearMemory is the heap that a token takes that rueidisstore has in memory.
func nearMemory(tb testing.TB, n int) float64 {
	ctx, addr := context.Background(), testenv.Redis(tb, "--appendonly", "no").Addr
	client, near := redisClients(addr)
	defer client.Close()
	defer near.Close()
	newRedisEngine("", client, near, nil).fill(0, n)
	store := rueidisstore.New(near, rueidisstore.Options{CacheTTL: time.Minute})
	before, _ := settled()
	for i := range n {
		must(store.Load(ctx, fmt.Sprint(kitKey, "user-", i)))
	}
	after, _ := settled()
	runtime.KeepAlive(store)
	return float64(after-before) / float64(n)
}

// sizingRow is what an application needs that has so many tokens.
type sizingRow struct {
	Tokens                   int
	Redis, Postgres, MariaDB string
	Hour, Day                string
}

// Sizing is the page's table for those who choose machines.
func (r results) Sizing() (rows []sizingRow) {
	bytes := map[string]float64{} // of the most tokens, of which the empty engine is the least
	for _, s := range r.Sizes {
		bytes[s.Engine] = s.Bytes
	}
	const room, refreshes = 2, 2
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		size := func(engine string) string {
			return fmt.Sprintf("%.0f MB", max(1, room*bytes[engine]*float64(n)/1e6))
		}
		rate := func(life time.Duration) string {
			return fmt.Sprintf("%.1f", refreshes*float64(n)/life.Seconds())
		}
		rows = append(rows, sizingRow{n, size("Redis, goredisstore"), size("PostgreSQL"), size("MariaDB"), rate(time.Hour), rate(24 * time.Hour)})
	}
	return rows
}
