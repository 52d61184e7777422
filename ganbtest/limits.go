package ganbtest

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// RateLimit is how many requests the bank takes. The zero value is no limit.
type RateLimit struct {
	// PerSecond is how many requests the bank processes in any second, or, below 1, in a
	// longer time: 0.5 is one in any two seconds. The others are answered 429 with
	// Retry-After. At 0 there is no limit.
	PerSecond float64
	// CountRefused counts the refused requests, too: the bank takes nothing until the
	// client has been quiet.
	CountRefused bool
	// Endpoints share the limit. Default: TokenEndpoint, UserInfo and API, which the
	// client calls and not its users' browsers.
	Endpoints []Endpoint
}

// Window is a time in which the bank is under maintenance. The API and the token endpoint
// answer 503 with WG_ERR_300 and a Retry-After that leads to its end; browsers get a page
// that says so.
type Window struct {
	// Start is the first moment of the maintenance, and End the first one after it, by
	// the bank's clock.
	Start, End time.Time
	// Every repeats the window: 7*24*time.Hour is once a week. At 0 there is one.
	Every time.Duration
}

// SetRateLimit replaces Options.RateLimit. What was counted before is forgotten.
func (s *Server) SetRateLimit(limit RateLimit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate = rate{RateLimit: limit}
}

// SetMaintenance replaces Options.Maintenance. Without windows it ends the maintenance.
func (s *Server) SetMaintenance(windows ...Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maintenance = slices.Clone(windows)
}

// MaintenanceEnd returns when the maintenance is over that the bank is under now, or the
// zero time if it is under none. Of windows that overlap the last one counts. See
// [Server.SetMaintenance].
func (s *Server) MaintenanceEnd() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	if left := s.closedFor(now); left > 0 {
		return now.Add(left)
	}
	return time.Time{}
}

// closedFor returns how long the maintenance goes on, or 0 if there is none at that time.
// It needs s.mu.
func (s *Server) closedFor(now time.Time) (left time.Duration) {
	for _, w := range s.maintenance {
		left = max(left, w.left(now))
	}
	return left
}

// refusal returns how the gateway turns a request away, or nil if it lets it pass.
func (s *Server) refusal(seen Request, r *http.Request) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if left := s.closedFor(seen.Time); left > 0 {
		a := newAnswer()
		a.header.Set("Retry-After", seconds(left))
		if seen.Endpoint == Authorization {
			maintenancePage(wordsFor(r), seen.Time.Add(left)).write(a, http.StatusServiceUnavailable)
		} else {
			writeAPIError(a, http.StatusServiceUnavailable, "WG_ERR_300", "The bank is under maintenance.")
		}
		return a
	}
	if left := s.rate.take(seen); left > 0 {
		return &answer{header: http.Header{"Retry-After": {seconds(left)}}, status: http.StatusTooManyRequests}
	}
	return nil
}

// seconds is a Retry-After of whole seconds, one at least.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// left returns how long the window stays open, or 0 if it is not open at that time.
func (w Window) left(now time.Time) time.Duration {
	since := now.Sub(w.Start)
	if since < 0 {
		return 0
	}
	if w.Every > 0 {
		since %= w.Every
	}
	return max(w.End.Sub(w.Start)-since, 0)
}

// rate is a RateLimit and the requests that count against it, the oldest first.
type rate struct {
	RateLimit
	counted []time.Time
}

// take counts a request, and returns for how long the bank refuses it. The limit is a
// sliding window, so that no second has more than PerSecond requests.
func (l *rate) take(r Request) time.Duration {
	endpoints := l.Endpoints
	if len(endpoints) == 0 {
		endpoints = []Endpoint{TokenEndpoint, UserInfo, API}
	}
	if l.PerSecond <= 0 || !slices.Contains(endpoints, r.Endpoint) {
		return 0
	}
	capacity := max(1, int(l.PerSecond))
	window := time.Duration(float64(capacity) / l.PerSecond * float64(time.Second))
	over, _ := slices.BinarySearchFunc(l.counted, r.Time.Add(-window), func(at, start time.Time) int {
		if at.After(start) {
			return 1
		}
		return -1
	})
	l.counted = l.counted[over:]
	refused := len(l.counted) >= capacity
	if !refused || l.CountRefused {
		l.counted = append(l.counted, r.Time)
	}
	if !refused {
		return 0
	}
	return l.counted[len(l.counted)-capacity].Add(window).Sub(r.Time)
}
