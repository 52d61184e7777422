package pgxstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Schema creates the table and its indexes where they are missing. It is for applications
// whose migrations are their own; others call [Store.Migrate].
//
//go:embed schema.sql
var Schema string

const (
	// migrationLock keeps processes that start together from creating the table twice. The
	// number is arbitrary.
	migrationLock = 0x67616e6261757468

	// Whether the table, its indexes and its columns are there: in the schema where it
	// would be created, as another application's may be in a later one of the search path.
	// Without a look first, each start would ask for a lock on the table, behind which
	// everybody waits during a backup.
	stateSQL = `
WITH own AS (SELECT quote_ident(current_schema()) || '.ganbauth_tokens' AS name)
SELECT
    to_regclass(name) IS NOT NULL,
    3 = (SELECT count(*) FROM pg_index WHERE indrelid = to_regclass(name) AND indexrelid IN (
        to_regclass(name || '_touched_at'), to_regclass(name || '_buried'), to_regclass(name || '_expires_at'))),
    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(name) AND attname = 'fingerprint')
FROM own`

	// From the version that compared nothing.
	upgradeSQL = `
ALTER TABLE ganbauth_tokens
    ADD COLUMN IF NOT EXISTS epoch text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS judged text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS fingerprint text;
ALTER TABLE ganbauth_tokens SET (fillfactor = 70)`
)

// Migrate creates the table and its indexes in the first schema of the connection's search
// path, and adds the columns that a table of an earlier version lacks. It may run at every
// start, in several processes at once: where nothing is missing it changes nothing and locks
// nothing. A table that has been renamed keeps the names of its indexes: rename them, too,
// or Migrate fails.
func (s *Store) Migrate(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrationLock)); err != nil {
			return err
		}
		var table, indexes, columns bool
		if err := tx.QueryRow(ctx, stateSQL).Scan(&table, &indexes, &columns); err != nil {
			return err
		}
		if table && !columns {
			if _, err := tx.Exec(ctx, upgradeSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
		}
		if indexes {
			return nil
		}
		if _, err := tx.Exec(ctx, Schema, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, stateSQL).Scan(&table, &indexes, &columns); err != nil || indexes {
			return err
		}
		// CREATE INDEX IF NOT EXISTS looks at names alone.
		return errors.New("an index of another table has the name of one of ganbauth_tokens: rename it")
	})
	if err != nil {
		return fmt.Errorf("pgxstore: migrate: %w", err)
	}
	return nil
}
