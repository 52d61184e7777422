package mysqlstore_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

func TestKeepAlive(t *testing.T) {
	engine := func() (*testenv.Process, string) { return testenv.MariaDB(t) }
	newStore := func(dsn string) storetest.Store { return storeWithLease(t, dsn, 3*time.Second) }
	storetest.KeepAlive(t, engine, newStore, hex.EncodeToString([]byte("bank/user-")))
}
