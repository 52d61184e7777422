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
	EventTokenUnsaved   EventType = "token_unsaved"  // the store has not taken a new token yet; the process keeps it
	EventTokenLost      EventType = "token_lost"     // the bank has ended the connection
	EventLogout         EventType = "logout"
)

// Event is one thing that happened in a Kit. It holds no secret and no personal data.
type Event struct {
	Type EventType
	// Kit is the Name in the Kit's Options.
	Kit string
	// Duration is how long it took: for a login the whole callback, for a refresh the wait
	// for the lock and the token request.
	Duration time.Duration
	// ErrorClass is empty on success, and otherwise one of these words, whatever a
	// browser or the bank sends:
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
	//   - no answer, of the bank, the store, the sessions or a lock: canceled, timeout, network
	//   - any other failure of the store, the sessions or a lock: unavailable
	//   - anything else: internal
	ErrorClass string
}

// defaultName is the Name of a kit that has none.
const defaultName = "bank"

// observer tells the log and the application's hook.
type observer struct {
	kit  string
	log  *slog.Logger
	hook func(context.Context, Event)
}

// event tells the log and Observe what happened.
func (o observer) event(ctx context.Context, typ EventType, took time.Duration, err error) {
	if !o.hasListener() {
		return
	}
	e := Event{Type: typ, Kit: o.kit, Duration: took, ErrorClass: errorClass(err)}
	level := slog.LevelInfo
	args := append(o.line(), "duration", e.Duration)
	if err != nil {
		level = slog.LevelWarn
		args = append(args, "class", e.ErrorClass, "error", err)
		if typ == EventTokenUnsaved || kindOf(err).operatorFault() {
			level = slog.LevelError
		}
	}
	o.apart(ctx, func(ctx context.Context) {
		o.log.Log(ctx, level, "ganbauth: "+string(typ), args...)
		if o.hook != nil {
			o.hook(ctx, e)
		}
	})
}

// hasListener reports whether an event reaches anybody.
func (o observer) hasListener() bool { return o.hook != nil || o.hasLog() }

// hasLog reports whether the Logger keeps anything. It does not ask Logger.Enabled, which
// is the application's code and may hang.
func (o observer) hasLog() bool { return o.log.Handler() != slog.DiscardHandler }

// line begins a line of the log: with the kit's name, if it has one.
func (o observer) line() []any {
	if o.kit == defaultName {
		return nil
	}
	return []any{"kit", o.kit}
}

// say writes to the log what an operator must see and is no event.
func (o observer) say(ctx context.Context, level slog.Level, message string, args ...any) {
	if !o.hasLog() {
		return
	}
	args = append(o.line(), args...)
	o.apart(ctx, func(ctx context.Context) { o.log.Log(ctx, level, message, args...) })
}

// apart runs the application's code in a goroutine of its own and waits for it for a moment
// only: it must not hold up an answer, or end the process. The values of ctx are there, its
// end is not.
func (o observer) apart(ctx context.Context, tell func(context.Context)) {
	ctx = context.WithoutCancel(ctx)
	shortly(func() {
		if p, ok := safely(func() error { tell(ctx); return nil }).(*panicError); ok {
			_ = safely(func() error {
				o.log.ErrorContext(ctx, "ganbauth: Observe or the Logger panicked", "panic", p.text(), "stack", string(p.stack))
				return nil
			})
		}
	})
}
