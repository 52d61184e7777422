package pgxstore_test

import (
	"testing"
	"time"

	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

func TestKeepAlive(t *testing.T) {
	engine := func() (*testenv.Process, string) { return testenv.Postgres(t) }
	newStore := func(dsn string) storetest.Store { return storeWithLease(t, dsn, 3*time.Second) }
	storetest.KeepAlive(t, engine, newStore, "bank/user-")
}
