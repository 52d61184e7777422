package pgxstore

import (
	"context"
	"time"

	"github.com/ganbauth/ganbauth/lease"
)

const (
	PageSQL       = pageSQL
	MigrationLock = migrationLock
)

type Bounds = bounds

func (b *bounds) Join(ctx context.Context) context.Context { return b.join(ctx) }

// Shared is the context whose timer calls share.
func Shared(bounded context.Context) context.Context { return bounded.(boundedContext).Context }

type Pulse = pulse

func (p *pulse) Steady() bool { return p.steady() }

func (p *pulse) Beat(err error) { p.beat(err) }

// Busy has s take this process for a busy one until a read has been answered.
func Busy(s *Store) {
	s.pulse.beats.Store(steadyBeats)
	s.pulse.last.Store(int64(time.Since(epoch) + time.Hour))
}

func EngineOf(s *Store) lease.Engine { return engine{s} }
