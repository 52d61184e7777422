package pgxstore_test

import (
	"context"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/pgxstore"
)

// Tokens that belong to the application's users, in the database that all instances
// share. The Store is the Locker, too.
func ExampleNew() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://app@db.internal/app")
	if err != nil {
		panic(err)
	}
	store := pgxstore.New(pool, pgxstore.Options{})
	if err := store.Migrate(ctx); err != nil {
		panic(err)
	}
	go store.Cleanup(ctx, time.Hour)

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

func userID(context.Context) (string, error) { return "", nil }
