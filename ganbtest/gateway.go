package ganbtest

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// handler is the whole bank.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, e Endpoint, h http.HandlerFunc) {
		mux.Handle(pattern, s.endpoint(e, h))
	}
	handle("GET "+basePath+"/auth/v1/authorization", Authorization, s.authorize)
	handle("POST "+basePath+"/auth/v1/authorization", Authorization, s.decide)
	handle("POST "+basePath+"/auth/v1/token", TokenEndpoint, s.token)
	handle("GET "+basePath+"/auth/v1/userinfo", UserInfo, s.userInfo)
	for _, api := range []string{"/personal/v1", "/corporation/v1"} {
		handle("GET "+basePath+api+"/accounts", API, s.withAccess(s.accounts))
		handle("GET "+basePath+api+"/accounts/balances", API, s.withAccess(s.balances))
		handle("POST "+basePath+api+"/transfer/request", API, s.withAccess(s.transferRequest))
	}
	mux.Handle("/", s.endpoint(API, func(w http.ResponseWriter, _ *http.Request) {
		writeAPIError(w, http.StatusMethodNotAllowed, "WG_ERR_019", "The operation is not found.")
	}))
	return mux
}

// endpoint records the request, delays it, and fails if it is its turn to.
func (s *Server) endpoint(e Endpoint, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if e == TokenEndpoint {
			_ = r.ParseForm()
		}
		entry, seen := s.record(e, r)
		f, refused := s.refusal(seen)
		if !refused {
			f = s.nextFault(seen)
		}
		if e == TokenEndpoint || e == API {
			f.Delay += s.opts.Latency
		}
		a := s.answer(f, h, r)
		s.answered(entry, a.status)
		for name, values := range a.header {
			w.Header()[name] = values
		}
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body)
	})
}

// answer is what h answers, or what the fault makes of it. It panics with
// http.ErrAbortHandler where the connection is cut.
func (s *Server) answer(f Fault, h http.HandlerFunc, r *http.Request) *answer {
	a := &answer{header: http.Header{}, status: http.StatusOK}
	if f.Processed {
		h(a, r)
	}
	wait(r.Context(), f.Delay)
	if !f.Processed && f.Status == 0 && !f.Cut {
		h(a, r)
	}
	if f.Cut {
		panic(http.ErrAbortHandler)
	}
	if f.Status != 0 {
		a = &answer{f.Header.Clone(), f.Status, []byte(f.Body)}
	}
	if f.Change != nil {
		var response map[string]any
		if json.Unmarshal(a.body, &response) == nil {
			f.Change(response)
			a.body, _ = json.Marshal(response)
		}
	}
	return a
}

// wait waits, or gives the request up when its client has left.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	}
}

// answer is a response that can still be changed.
type answer struct {
	header http.Header
	status int
	body   []byte
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }
func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func writeOAuthError(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

func writeAPIError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]string{"errorCode": code, "errorMessage": message})
}
