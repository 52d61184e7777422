package ganbauth

import (
	"context"
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
	// ErrorClass is empty on success, and otherwise one of these words, whatever a browser or
	// the bank sends:
	//
	//   - what the application or its user has to do: refused, no_user, login_required,
	//     insufficient_scope, invalid_state
	//   - a refusal of the consent page, the last one with an unknown code: access_denied,
	//     server_error, temporarily_unavailable, invalid_request, invalid_scope,
	//     unauthorized_client, unsupported_response_type, authorization_error
	//   - a refusal of the token endpoint: invalid_grant, invalid_request, invalid_scope,
	//     invalid_client, unauthorized_client, unsupported_grant_type, server_error,
	//     temporarily_unavailable
	//   - the gateway's words for a token that it refuses and for maintenance: WG_ERR_105,
	//     WG_ERR_300
	//   - any other refusal of the bank: rate_limited, status_4xx, status_5xx, bank_error
	//   - an answer that cannot be used: token_format, invalid_id_token, other_subject
	//   - no answer of the bank: canceled, timeout, network
	//   - no answer of the store, the sessions or a lock: unavailable
	//   - anything else: internal
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
	var args []any
	if e.Kit != "" {
		args = append(args, "kit", e.Kit)
	}
	args = append(args, "duration", e.Duration)
	if err != nil {
		level = slog.LevelWarn
		args = append(args, "class", e.ErrorClass, "error", err)
		if kindOf(err).operatorFault() {
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
