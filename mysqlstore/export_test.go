package mysqlstore

import "github.com/ganbauth/ganbauth/lease"

var (
	PageSQL = pageSQL
	Seconds = seconds
)

func EngineOf(s *Store) lease.Engine { return engine{s} }
