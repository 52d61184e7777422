package ganbauth

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// EventType says what happened. The values are fit for a metric's label.
type EventType string

// What Options.Observe is told.
const (
	EventLoginStarted   EventType = "login_started"
	EventLoginSucceeded EventType = "login_succeeded"
	EventLoginFailed    EventType = "login_failed"
	EventTokenRefreshed EventType = "token_refreshed"
	EventRefreshFailed  EventType = "refresh_failed" // the token is kept
	EventTokenLost      EventType = "token_lost"     // the bank has ended the connection
	EventLogout         EventType = "logout"
)

// Event is one thing that happened in a Kit. It holds no secret and no personal data.
type Event struct {
	Type EventType
	// Kit is the Name in the Kit's Options.
	Kit string
	// Duration is how long it took: the whole callback for a login, the token request for a refresh.
	Duration time.Duration
	// ErrorClass is empty on success, and otherwise a short name such as invalid_grant, network, timeout,
	// status_503, or the bank's own error code.
	ErrorClass string
}

// observer tells the log and the application's hook.
type observer struct {
	kit  string
	log  *slog.Logger
	hook func(context.Context, Event)
}

func (o observer) event(ctx context.Context, typ EventType, start time.Time, err error) {
	e := Event{Type: typ, Kit: o.kit, Duration: time.Since(start), ErrorClass: errorClass(err)}
	level := slog.LevelInfo
	args := []any{"kit", e.Kit, "duration", e.Duration}
	if err != nil {
		level = slog.LevelWarn
		args = append(args, "class", e.ErrorClass, "error", err)
		if operatorFault(err) {
			level = slog.LevelError
		}
	}
	o.log.Log(ctx, level, "ganbauth: "+string(typ), args...)
	if o.hook == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			o.log.ErrorContext(ctx, "ganbauth: Observe panicked", "panic", p)
		}
	}()
	o.hook(ctx, e)
}

// operatorFault reports whether the bank's refusal is for the application's operator to mend: a client id, a secret
// or a registration that is wrong.
func operatorFault(err error) bool {
	var e *TokenError
	if !errors.As(err, &e) || e.Temporary() || e.grantLost() {
		return false
	}
	return e.StatusCode >= 400
}
