package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	scsredis "github.com/alexedwards/scs/goredisstore"
	scsmysql "github.com/alexedwards/scs/mysqlstore"
	scspgx "github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/mysqlstore"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// lease is short, so that one can watch an instance take over from another.
const lease = 3 * time.Second

// openStores returns where the tokens are kept and where the sessions are, both in the
// engine that the URL names: redis://, postgres:// or mysql://. They serve until ctx ends.
func openStores(ctx context.Context, storeURL string, ttl time.Duration) (ganbauth.TokenStore, scs.Store, error) {
	u, err := url.Parse(storeURL)
	if err != nil {
		return nil, nil, errors.New("STORE is not a URL") // err would show the password
	}
	switch u.Scheme {
	case "redis":
		return openRedis(storeURL, ttl)
	case "postgres":
		return openPostgres(ctx, storeURL, ttl)
	case "mysql":
		return openMySQL(ctx, u, ttl)
	}
	return nil, nil, fmt.Errorf("STORE must be a redis://, postgres:// or mysql:// URL, not %q", u.Scheme)
}

func openRedis(storeURL string, ttl time.Duration) (ganbauth.TokenStore, scs.Store, error) {
	opts, err := redis.ParseURL(storeURL)
	if err != nil {
		return nil, nil, errors.New("STORE is not a URL of Redis")
	}
	client := redis.NewClient(opts)
	return goredisstore.New(client, goredisstore.Options{TTL: ttl, Lease: lease}), scsredis.New(client), nil
}

// openPostgres creates the tables if they are missing. Two instances may do so at once.
func openPostgres(ctx context.Context, storeURL string, ttl time.Duration) (ganbauth.TokenStore, scs.Store, error) {
	pool, err := pgxpool.New(ctx, storeURL)
	if err != nil {
		return nil, nil, err
	}
	store := pgxstore.New(pool, pgxstore.Options{TTL: ttl, Lease: lease})
	if err := store.Migrate(ctx); err != nil {
		return nil, nil, err
	}
	_, err = pool.Exec(ctx, `SELECT pg_advisory_xact_lock(1);
		CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL);
		CREATE INDEX IF NOT EXISTS sessions_expiry_idx ON sessions (expiry)`)
	if err != nil {
		return nil, nil, err
	}
	go store.Cleanup(ctx, time.Hour)
	return store, scspgx.New(pool), nil
}

// openMySQL creates the tables if they are missing.
func openMySQL(ctx context.Context, u *url.URL, ttl time.Duration) (ganbauth.TokenStore, scs.Store, error) {
	config := mysql.NewConfig()
	config.Net, config.Addr, config.DBName, config.User = "tcp", u.Host, strings.TrimPrefix(u.Path, "/"), u.User.Username()
	config.Passwd, _ = u.User.Password()
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, nil, err
	}
	db := sql.OpenDB(connector)
	store := mysqlstore.New(db, mysqlstore.Options{Connector: connector, TTL: ttl, Lease: lease})
	if err := store.Migrate(ctx); err != nil {
		return nil, nil, err
	}
	_, err = db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS sessions
		(token CHAR(43) PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP(6) NOT NULL, INDEX sessions_expiry_idx (expiry))`)
	if err != nil {
		return nil, nil, err
	}
	go store.Cleanup(ctx, time.Hour)
	return store, scsmysql.New(db), nil
}
