package mysqlstore

import (
	"context"
	_ "embed"
	"fmt"
)

// Schema creates the table where it is missing. It is one statement, for applications whose
// migrations are their own; others call [Store.Migrate].
//
//go:embed schema.sql
var Schema string

// Whether the table is there. Without a look first, each start would need the right to
// create it, and would wait for a lock on it during a backup.
const thereSQL = "SELECT COUNT(*) > 0 FROM information_schema.tables" +
	" WHERE table_schema = DATABASE() AND table_name = 'ganbauth_tokens'"

// Migrate creates the table where it is missing. It may run at every start, in several
// processes at once: where nothing is missing it changes nothing and locks nothing. It fails
// if autocommit is off.
func (s *Store) Migrate(ctx context.Context) error {
	if err := s.pooled.look(ctx, s.db); err != nil {
		return fmt.Errorf("mysqlstore: migrate: %w", err)
	}
	var there bool
	if err := s.db.QueryRowContext(ctx, thereSQL).Scan(&there); err != nil {
		return fmt.Errorf("mysqlstore: migrate: %w", err)
	}
	if there {
		return nil
	}
	if _, err := s.db.ExecContext(ctx, Schema); err != nil {
		return fmt.Errorf("mysqlstore: migrate: %w", err)
	}
	return nil
}
