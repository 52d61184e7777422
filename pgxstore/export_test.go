package pgxstore

import (
	"context"

	"github.com/ganbauth/ganbauth/lease"
)

const PageSQL = pageSQL

type Bounds = bounds

func (b *bounds) Join(ctx context.Context) context.Context { return b.join(ctx) }

// Shared is the context whose timer calls share.
func Shared(bounded context.Context) context.Context { return bounded.(boundedContext).Context }

func EngineOf(s *Store) lease.Engine { return engine{s} }
