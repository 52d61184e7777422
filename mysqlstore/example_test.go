package mysqlstore_test

import (
	"context"
	"database/sql"
	"net/http"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/mysqlstore"
)

// Tokens that belong to the application's users, in the database that all instances
// share. The Store is the Locker, too.
func ExampleNew() {
	ctx := context.Background()
	config, err := mysql.ParseDSN("app:secret@tcp(db.internal)/app")
	if err != nil {
		panic(err)
	}
	connections, err := mysql.NewConnector(config)
	if err != nil {
		panic(err)
	}
	db := sql.OpenDB(connections)
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20)
	store := mysqlstore.New(db, mysqlstore.Options{Connector: connections})
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
