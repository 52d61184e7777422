package pgxstore

import "context"

const PageSQL = pageSQL

type Bounds = bounds

func (b *bounds) Join(ctx context.Context) context.Context { return b.join(ctx) }

// Shared is the context whose timer calls share.
func Shared(bounded context.Context) context.Context { return bounded.(boundedContext).Context }
