package ganbtest

import "time"

// Held returns how many codes, access tokens and requests the bank remembers.
func (s *Server) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.codes) + len(s.access) + len(s.requests.entries)
}

// SetPatience has TestStore give up on a store sooner.
func SetPatience(d time.Duration) { patience = d }
