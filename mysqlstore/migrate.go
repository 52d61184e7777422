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

// Migrate creates the table where it is missing. It may run at every start, in several
// processes at once. It fails if autocommit is off.
func (s *Store) Migrate(ctx context.Context) error {
	if err := s.pooled.look(ctx, s.db); err != nil {
		return fmt.Errorf("mysqlstore: migrate: %w", err)
	}
	if _, err := s.db.ExecContext(ctx, Schema); err != nil {
		return fmt.Errorf("mysqlstore: migrate: %w", err)
	}
	return nil
}
