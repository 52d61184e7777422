package mysqlstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/internal/testenv"
)

// MariaDB is well and refuses each statement.
func TestStatementsFail(t *testing.T) {
	_, dsn := testenv.MariaDB(t)
	s := stores(t, dsn)()
	_, err := pool(t, dsn, 1).ExecContext(t.Context(), "DROP TABLE ganbauth_tokens")
	require.NoError(t, err)
	storetest.CallsFail(t, s)
	require.ErrorContains(t, s.Save(t.Context(), "k", storetest.Token("a")), "mysqlstore: save: ")
}
