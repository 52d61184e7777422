package goredisstore_test

import (
	"testing"
	"time"

	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

func TestKeepAlive(t *testing.T) {
	engine := func() (*testenv.Process, string) {
		server := testenv.Redis(t)
		return server, server.Addr
	}
	newStore := func(addr string) storetest.Store { return storeWithLease(t, addr, 3*time.Second) }
	storetest.KeepAlive(t, engine, newStore, "bank/user-")
}
