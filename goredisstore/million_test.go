package goredisstore_test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/goredisstore"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

func TestMillionTokens(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: testenv.Redis(t, "--appendonly", "no").Addr})
	t.Cleanup(func() { c.Close() })
	storetest.RedisPages(t, goredisstore.New(c, goredisstore.Options{}), func() string {
		info, err := c.Info(t.Context(), "all").Result()
		require.NoError(t, err)
		return info
	})
}
