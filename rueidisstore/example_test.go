package rueidisstore_test

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/redis/rueidis"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/rueidisstore"
)

// Tokens that belong to the application's users, on a server that all instances share. A
// live token costs no round trip. The Store is the Locker, too.
func ExampleNew() {
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{"redis.internal:6379"},
		CacheSizeEachConn: 16 << 20,
	})
	if err != nil {
		panic(err)
	}
	store := rueidisstore.New(client, rueidisstore.Options{})
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

// A logout on another machine must be seen within two seconds, whatever happens to the
// network.
func ExampleNew_strict() {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"redis.internal:6379"}})
	if err != nil {
		panic(err)
	}
	_ = ganbauth.Options{Store: rueidisstore.New(client, rueidisstore.Options{CacheTTL: 2 * time.Second})}
}

func userID(context.Context) (string, error) { return "", nil }
