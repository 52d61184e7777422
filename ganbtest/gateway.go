package ganbtest

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"time"
)

// maxBody is how much of a request the bank reads, but for Options.API.
const maxBody = 64 << 10

// routes is the whole bank.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, e Endpoint, h http.HandlerFunc) {
		mux.Handle(pattern, s.endpoint(e, h))
	}
	handle("GET "+basePath+"/auth/v1/authorization", Authorization, s.authorize)
	handle("POST "+basePath+"/auth/v1/authorization", Authorization, s.decide)
	handle("POST "+basePath+"/auth/v1/token", TokenEndpoint, s.token)
	handle("GET "+basePath+"/auth/v1/userinfo", UserInfo, s.userInfo)
	for _, kind := range []string{"/personal/v1", "/corporation/v1", "/webhooks/v1"} {
		prefix := basePath + kind
		mux.Handle(prefix+"/", s.endpoint(API, http.StripPrefix(prefix, s.api()).ServeHTTP))
	}
	mux.Handle("/", s.endpoint(API, writeNoOperation))
	return mux
}

// endpoint records the request, delays it, and fails if it is its turn to.
func (s *Server) endpoint(e Endpoint, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e != API {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		}
		if e == TokenEndpoint {
			_ = r.ParseForm()
		}
		entry, seen := s.record(e, r)
		latency := time.Duration(0)
		if e == TokenEndpoint || e == API {
			latency = s.opts.Latency
		}
		a := s.refusal(seen, r)
		if a != nil {
			wait(r.Context(), latency)
		} else {
			f := s.nextFault(seen)
			f.Delay += latency
			a = s.answer(f, h, r)
		}
		s.answered(entry, a.status)
		a.copyTo(w)
	})
}

// answer is what h answers, or what the fault makes of it. It panics with
// http.ErrAbortHandler where the connection is cut.
func (s *Server) answer(f Fault, h http.HandlerFunc, r *http.Request) *answer {
	a := newAnswer()
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
		a = &answer{header: http.Header{}, status: f.Status, body: []byte(f.Body)}
	}
	if f.Body != "" {
		a.body = []byte(f.Body)
		a.header.Del("Content-Length")
	}
	maps.Copy(a.header, onTheWire(f.Header))
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
	header  http.Header
	status  int
	body    []byte
	decided bool // the status is
}

func newAnswer() *answer { return &answer{header: http.Header{}, status: http.StatusOK} }

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if !a.decided && status >= 200 {
		a.status, a.decided = status, true
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.decided = true
	a.body = append(a.body, b...)
	return len(b), nil
}

func (a *answer) copyTo(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
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
