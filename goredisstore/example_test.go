package goredisstore_test

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/goredisstore"
)

// Tokens that belong to the application's users, on a server that all instances share.
// The Store is the Locker, too.
func ExampleNew() {
	client := redis.NewClient(&redis.Options{Addr: "redis.internal:6379"})
	store := goredisstore.New(client, goredisstore.Options{})
	if err := store.Check(context.Background()); err != nil {
		slog.Warn("tokens are not safe", "error", err)
	}

	connector, err := ganbauth.NewConnector("id", "secret", ganbauth.AuthBasic, ganbauth.Production("salt"))
	if err != nil {
		panic(err)
	}
	bank, err := ganbauth.New(connector, nil, ganbauth.Options{
		RedirectURI: "https://app.example/bank/callback",
		Scopes:      []string{"openid", "offline_access"},
		Store:       store,
		Key:         func(r *http.Request) (string, error) { return userID(r.Context()) },
	})
	_, _ = bank, err
}

// Tokens that belong to sessions end with them: the TTL is the sessions' Lifetime.
func ExampleNew_sessions() {
	client := redis.NewClient(&redis.Options{Addr: "redis.internal:6379"})
	store := goredisstore.New(client, goredisstore.Options{TTL: 24 * time.Hour})
	_ = ganbauth.Options{Store: store}
}

func userID(context.Context) (string, error) { return "", nil }
